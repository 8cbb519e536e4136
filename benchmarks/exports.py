"""Whether timm and transformers load what `convert` exports, and compute with it what tljax computes.

    .venv/bin/pip install -e '.[test]' -r benchmarks/requirements.txt
    .venv/bin/python benchmarks/exports.py

Each network of the tests' golden cases (small, with random weights), and one BiT in full, is exported, loaded by the
library's own `create_model` or `from_pretrained`, and given the same input. A row gives the largest difference of the
logits, or of the features or hidden states where there is no head, and their standard deviation. It also writes
`.pth` files with torch, in both of its formats, and compares what tljax reads from them bit by bit.

Exits with status 1 if anything differs by more than its tolerance.
"""

import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import timm
import torch
import transformers
from flax.traverse_util import unflatten_dict
from safetensors.numpy import load_file

from tests.conftest import GOLDEN, golden
from tests.models import (
    test_beit,
    test_bert,
    test_convnext,
    test_eva,
    test_regnet,
    test_resnet,
    test_resnext,
    test_swin,
    test_vit,
    test_vit_family,
)
from tests.weights.test_pooling import folder_of
from tljax import console
from tljax.cli.convert import convert
from tljax.config.schema import BackboneConfig
from tljax.data.preprocessing import Preprocessing
from tljax.models.registry import BACKBONES, Backbone, attributes
from tljax.weights import pretrained
from tljax.weights.adapt import adapt_channels, with_channels
from tljax.weights.catalog import Pretrained
from tljax.weights.readers import files

Arrays = Mapping[str, np.ndarray]
TEXT = ("input_ids", "attention_mask", "token_type_ids")
TOLERANCE = 2e-5
# Absolute. BiT's normalizations magnify rounding, and its features here are of the order of 1.
TOLERANCES = {"ResNet": 5e-5, "BiT": 2e-4}


@dataclass(frozen=True)
class Case:
    """A network, its arrays under our paths, an input, and the row of `BACKBONES` that it is a variant of."""

    name: str
    row: str
    module: Backbone
    arrays: Arrays
    x: Any
    channels: int = 3


def vit(case: str, row: str) -> Case:
    module, arrays = test_vit.load(case)
    return Case(case, row, module, arrays, golden(case)[1]["image"])


def described_vit(case: str) -> Case:
    """A network and a row as the case's own config describes them."""
    module, arrays = test_vit_family.loaded(case)
    return Case(case, test_vit_family.described(case).backbone, module, arrays, golden(case)[1]["image"])


def resnet(case: str, row: str) -> Case:
    module, names = test_resnet.CASES[case]
    arrays = test_resnet.converted(test_resnet.weights_of(case), module, names)
    return Case(case, row, module, arrays, golden(case)[1]["image"])


def relative(case: str, row: str) -> Case:
    tests = test_swin if "swin" in case else test_beit if "beit" in case else test_eva
    return Case(case, row, tests.CASES[case][0], tests.arrays_at(case), golden(case)[1]["image"])


def convolutional(case: str, row: str, module: Backbone, names: str = "timm") -> Case:
    arrays = test_resnet.converted(test_resnet.weights_of(case), module, names)
    return Case(case, row, module, arrays, golden(case)[1]["image"])


def text(case: str, row: str) -> Case:
    module, names, _ = test_bert.CASES[case]
    arrays = test_bert.arrays_of(test_bert.weights_of(case), module, names)
    x = {name: value for name, value in golden(case)[1].items() if name in TEXT}
    return Case(case, row, module, arrays, x)


def repository(case: str) -> Case:
    """A text encoder's case, by what its own config says."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = folder_of(case, Path(scratch) / "r")
        row = pretrained.resolve_weights(BackboneConfig(weights=str(folder)))
        arrays = {path: np.array(array) for path, array in pretrained.read(row, folder)[0].items()}
    x = {name: value for name, value in golden(case)[1].items() if name in TEXT}
    return Case(case, row.backbone, pretrained.module_of(row), arrays, x)


def random(name: str, row: str, module: Backbone, size: int) -> Case:
    """A network with random weights and a random head for 5 classes, for which there is no golden case."""
    rng = np.random.default_rng(0)
    arrays = {}
    for path, shape in sorted(pretrained.shapes(module).items()):
        known = tuple(5 if length is None else length for length in shape)
        center = 1.0 if path.endswith(("scale", "var")) else 0.0
        arrays[path] = (center + 0.05 * rng.standard_normal(known)).astype(np.float32)
    return Case(name, row, module, arrays, rng.standard_normal((2, size, size, 3)).astype(np.float32))


def with_inputs(case: Case, channels: int) -> Case:
    """The case, adapted to another number of channels."""
    first = case.module.input_kernel
    arrays = {**case.arrays, first: adapt_channels(case.arrays[first], channels)}
    x = np.concatenate([case.x, case.x], -1)[..., :channels]
    return replace(case, name=f"{case.name}, {channels} channel(s)", arrays=arrays, x=x, channels=channels)


def headless(case: Case) -> Case:
    arrays = {path: array for path, array in case.arrays.items() if not path.startswith("head")}
    return replace(case, name=f"{case.name}, no head", arrays=arrays)


def ours(case: Case) -> np.ndarray:
    """Logits, else features; of a text encoder without a head the hidden states."""
    variables = jax.tree.map(jnp.asarray, unflatten_dict(dict(case.arrays), sep="/"))
    head = variables.pop("head", None)
    bare = case.module.input_spec.kind == "text" and head is None
    output = jax.jit(lambda v, x: case.module.apply(v, x, pool=not bare))(variables, case.x)
    return np.asarray(output if head is None else output @ head["kernel"] + head["bias"])


def images(case: Case) -> torch.Tensor:
    return torch.from_numpy(case.x.transpose(0, 3, 1, 2).copy())


def by_timm(folder: Path, case: Case) -> np.ndarray:
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    return model(images(case)).numpy()


def by_transformers(folder: Path, case: Case) -> np.ndarray:
    head = "head/kernel" in case.arrays
    if case.module.input_spec.kind == "text":
        load = transformers.AutoModelForSequenceClassification if head else transformers.AutoModel
        model = load.from_pretrained(folder).eval()
        output = model(**{name: torch.from_numpy(np.asarray(value)).long() for name, value in case.x.items()})
        return (output.logits if head else output.last_hidden_state).numpy()
    transformers.AutoImageProcessor.from_pretrained(folder)
    if not head:
        return transformers.AutoModel.from_pretrained(folder).eval()(images(case)).pooler_output.numpy()
    model = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    return model(images(case)).logits.numpy()


LIBRARIES: dict[str, Callable[[Path, Case], np.ndarray]] = {"timm": by_timm, "hf": by_transformers}


def cases() -> list[tuple[Case, str]]:
    """Each case, with the libraries that it is for."""
    plain, basic = vit("timm_vit_cls", "vit_base_patch16"), resnet("timm_resnet_basic", "resnet18")
    registers = test_vit.HF_DINOV2.clone(registers=4)
    hf_basic = resnet("hf_resnet_basic", "resnet18")
    return [
        (plain, "timm hf"),
        (headless(plain), "timm"),
        (with_inputs(plain, 1), "timm hf"),
        (with_inputs(plain, 4), "timm hf"),
        (vit("timm_vit_avg_fcnorm", "vit_base_patch16"), "timm"),
        (vit("timm_vit_dinov2", "vit_small_patch14_dinov2"), "timm"),
        (vit("timm_vit_dinov2_reg4", "vit_small_patch14_reg4_dinov2"), "timm"),
        (vit("timm_deit3", "deit3_small_patch16"), "timm"),
        (vit("hf_vit", "vit_base_patch16"), "hf"),
        (vit("hf_dinov2", "vit_small_patch14_dinov2"), "hf"),
        (random("DINOv2 with registers", "vit_small_patch14_dinov2", registers, 70), "hf"),
        *(
            (described_vit(case), "timm")
            for case in test_vit_family.CASES
            if case.startswith("timm") and "_at" not in case
        ),
        *(
            (headless(described_vit(case)), "hf")
            for case in ("hf_dinov3_vit", "hf_dinov3_vit_gated", "hf_siglip_vision")
        ),
        (basic, "timm hf"),
        (with_inputs(basic, 1), "timm hf"),
        (resnet("timm_resnet_bottleneck", "resnet50"), "timm hf"),
        (resnet("timm_resnet_d", "resnet50d"), "timm"),
        (hf_basic, "hf"),
        (with_inputs(hf_basic, 4), "hf"),
        (resnet("hf_resnet_bottleneck", "resnet50"), "hf"),
        (resnet("hf_resnet_bottleneck_v1", "resnet50_v1"), "hf"),
        (random("resnetv2_50x1_bit", "resnetv2_50x1_bit", BACKBONES["resnetv2_50x1_bit"], 64), "timm"),
        (convolutional("timm_convnext", "convnext_tiny", *test_convnext.CASES["timm_convnext"]), "timm hf"),
        (convolutional("timm_convnextv2", "convnextv2_atto", *test_convnext.CASES["timm_convnextv2"]), "timm hf"),
        (convolutional("hf_convnextv2", "convnextv2_tiny", *test_convnext.CASES["hf_convnextv2"]), "hf"),
        (convolutional("timm_resnext50", "resnext50_32x4d", test_resnext.CASES["timm_resnext50"]), "timm"),
        (convolutional("timm_seresnet50", "seresnet50", test_resnext.CASES["timm_seresnet50"]), "timm"),
        (convolutional("timm_ecaresnet50d", "ecaresnet50d", test_resnext.CASES["timm_ecaresnet50d"]), "timm"),
        (convolutional("timm_regnety", "regnety_002", test_regnet.CASES["timm_regnety"]), "timm"),
        (random("mobilenetv3_small_050", "mobilenetv3_small_050", BACKBONES["mobilenetv3_small_050"], 64), "timm"),
        (text("hf_bert_cls", "bert_base"), "hf"),
        (text("hf_roberta_cls", "roberta_base"), "hf"),
        (text("hf_distilbert_cls", "distilbert_base"), "hf"),
        (headless(text("hf_bert_cls", "bert_base")), "hf"),
        *((repository(f"hf_{name}_cls"), "hf") for name in ("xlmr", "camembert", "mpnet", "electra", "albert")),
        *((repository(f"hf_modernbert_cls_{pool}"), "hf") for pool in ("mean", "cls")),
        *((repository(f"hf_deberta_{kind}_cls"), "hf") for kind in ("v3", "v2_conv")),
        (relative("timm_swin", "swin_tiny_patch4_window7"), "timm hf"),
        (relative("timm_swinv2", "swinv2_tiny_window8"), "timm"),
        (relative("timm_beit", "beit_base_patch16"), "timm hf"),
        (relative("hf_beit_shared_bias", "beit_base_patch16"), "hf"),
        (relative("timm_eva", "eva_giant_patch14"), "timm"),
        (relative("timm_eva02", "eva02_tiny_patch14"), "timm"),
        (relative("timm_eva02_base", "eva02_base_patch14"), "timm"),
    ]


def difference(case: Case, library: str, folder: Path) -> tuple[str, str, str, str, str]:
    """A row of the table."""
    size = 224 if case.module.input_spec.kind == "text" else case.x.shape[1]
    expects = with_channels(Preprocessing(size), case.channels)
    row = Pretrained("", "", case.row, "", expects, "unknown", architecture=attributes(case.module))
    (folder / "ours").mkdir(parents=True)
    pretrained.write(folder / "ours", row, case.arrays)
    expected = ours(case)
    try:
        convert(BackboneConfig(weights=str(folder / "ours")), folder / library, to=library)
        with torch.inference_mode():
            theirs = LIBRARIES[library](folder / library, case)
    except Exception as error:  # whatever the library says of what it was given
        return case.name, library, " ".join(str(error).split())[:200], "", "NO"
    tolerance = TOLERANCES.get(type(case.module).__name__, TOLERANCE)
    moved = float(abs(theirs - expected).max()) if theirs.shape == expected.shape else np.inf
    return case.name, library, f"{moved:.1e}", f"{expected.std():.2f}", "yes" if moved <= tolerance else "NO"


def pth(folder: Path, legacy: bool) -> str:
    """Whether tljax reads torch's file to the bits that torch wrote: dtypes, views, shared storages."""
    state = {
        name: torch.from_numpy(array) for name, array in load_file(GOLDEN / "timm_vit_cls/weights.safetensors").items()
    }
    base = state["head.weight"]
    state |= {"turned": base.transpose(-1, -2), "part": base[..., 1:], "bf16": base.bfloat16(), "half": base.half()}
    state |= {"count": torch.tensor(7), "parameter": torch.nn.Parameter(base), "empty": torch.empty(0, 3)}
    path = folder / "weights.pth"
    torch.save({"state_dict": state, "epoch": 3}, path, _use_new_zipfile_serialization=not legacy)
    arrays = files.read(path)
    same = set(arrays) == set(state)
    for name, tensor in state.items():
        plain = tensor.detach().contiguous()
        bits = plain.view(torch.int16).numpy() if plain.dtype == torch.bfloat16 else plain.numpy()
        same &= arrays[name].shape == tuple(tensor.shape) and arrays[name].tobytes() == bits.tobytes()
    return "yes" if same else "NO"


def main() -> None:
    transformers.logging.set_verbosity_error()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for n, (case, libraries) in enumerate(cases()):
            rows += [difference(case, library, Path(scratch) / f"{n}-{library}") for library in libraries.split()]
        for legacy in (False, True):
            kind = "torch.save, before 1.6" if legacy else "torch.save, zip"
            rows.append((kind, "torch", "", "", pth(Path(scratch), legacy)))
    versions = f"timm {timm.__version__}, transformers {transformers.__version__}, torch {torch.__version__}"
    console.table(versions, ("network", "loaded by", "largest difference", "deviation", "within tolerance"), rows)
    sys.exit(any(row[-1] == "NO" for row in rows))


if __name__ == "__main__":
    main()
