"""Weights in the containers of other people, against the outputs of the libraries that made them (tests/golden)."""

import json
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from safetensors.numpy import load_file

from tests.conftest import GOLDEN, golden
from tljax.cli.convert import _name_of, convert
from tljax.config.schema import BackboneConfig
from tljax.data.preprocessing import Preprocessing
from tljax.models.registry import BACKBONES, Backbone, attributes
from tljax.models.vision.resnet import ResNet
from tljax.models.vision.vit import ViT
from tljax.weights import pretrained
from tljax.weights.catalog import Pretrained

pytestmark = pytest.mark.optimized

VIT = ViT(width=16, depth=2, heads=2, patch_size=8, grid=(4, 4))
DINOV2 = ViT(width=16, depth=2, heads=2, patch_size=14, grid=(4, 4), layer_scale=1e-5, registers=4, positions="patches")
DINOV3 = BACKBONES["vit_small_patch16_dinov3_qkvb"].clone(
    width=24, depth=2, heads=2, patch_size=8, grid=(4, 4), pool="class"
)
CLIP = BACKBONES["vit_base_patch16_clip_quickgelu"].clone(width=16, depth=2, heads=2, patch_size=8, grid=(4, 4))
RESNET = ResNet(depths=(1, 1, 1, 1), widths=(8, 8, 12, 16), kind="basic")

# case: module, file; none where the folder itself is read
CASES = {
    "foreign_timm_hf_vit": (VIT, ""),
    "foreign_timm_bin": (VIT, ""),
    "foreign_sharded_bin": (VIT, ""),
    "foreign_sharded_safetensors": (VIT, ""),
    "foreign_timm_hf_resnet": (RESNET, ""),
    "hf_timm_wrapper": (RESNET, "weights.safetensors"),
    "foreign_ddp_module": (VIT, "checkpoint.pth"),
    "foreign_orig_mod": (VIT, "checkpoint.pth"),
    "foreign_ddp_orig_mod": (VIT, "checkpoint.pth"),
    "foreign_model_ema": (VIT, "checkpoint.pth"),
    "foreign_state_dict_epoch": (VIT, "model_best.pth.tar"),
    "foreign_float16": (VIT, "model.safetensors"),
    "foreign_bfloat16": (VIT, "model.safetensors"),
    "foreign_torchvision_vit": (VIT, "vit_b_16-tiny.pth"),
    "foreign_mae_pretrained": (VIT, "mae_pretrain.pth"),
    "foreign_mae_finetuned": (VIT.clone(pool="mean"), "mae_finetuned.pth"),
    "foreign_dinov2_official": (DINOV2, "dinov2_vits14_reg4_pretrain.pth"),
    "foreign_dinov2_chunked": (DINOV2, "teacher_checkpoint.pth"),
    "foreign_dinov3_official": (DINOV3, "dinov3_vits16_pretrain.pth"),
    "foreign_openai_clip": (CLIP, "open_clip_pytorch_model.bin"),
}


@lru_cache
def network(module: Backbone):
    return jax.jit(
        lambda variables, images: (module.apply(variables, images, pool=False), module.apply(variables, images))
    )


def read(case: str) -> tuple[Backbone, dict[str, np.ndarray]]:
    """The case's module, and its weights under our paths."""
    module, file = CASES[case]
    name = "vit_base_patch16" if isinstance(module, ViT) else "resnet18"
    path = GOLDEN / case / file
    row = Pretrained(str(path), "", name, "", Preprocessing(), "unknown", architecture=attributes(module))
    return module, pretrained.read(row, path)[0]


@pytest.mark.parametrize("case", CASES)
def test_outputs_are_the_references_within_their_rounding(case, capsys):
    facts, io = golden(case)
    module, arrays = read(case)
    weights = unflatten_dict({path: jnp.asarray(array, jnp.float32) for path, array in arrays.items()}, sep="/")
    head = weights.pop("head", None)
    tokens, features = network(module)(weights, io["image"])
    outputs = {"tokens" if isinstance(module, ViT) else "feature_map": tokens, "features": features}
    if head:  # CLIP's projection has no bias
        outputs["logits"] = features @ head["kernel"] + head.get("bias", 0)
    assert set(outputs) == set(facts["outputs"])
    for name, output in outputs.items():
        bound = facts["bound"] * abs(io[name]).max()
        np.testing.assert_allclose(output, io[name], atol=bound, rtol=0, err_msg=name)
    note = "checkpoint.pth: took model_ema, not model\n" if case == "foreign_model_ema" else ""
    assert capsys.readouterr().err.endswith(note) and bool(note) == (case == "foreign_model_ema")


@pytest.mark.parametrize("case", [case for case in CASES if (GOLDEN / case / "config.json").is_file()])
def test_a_folder_says_what_its_network_is(case):
    module = pretrained.module_of(pretrained.resolve_weights(BackboneConfig(weights=str(GOLDEN / case))))
    assert attributes(module) == attributes(CASES[case][0])


def test_a_last_norm_after_the_pooling_says_that_the_mean_is_pooled():
    for case, pool in (("foreign_mae_finetuned", {"pool": "mean"}), ("foreign_mae_pretrained", {})):
        config = BackboneConfig("vit_base_patch16", str(GOLDEN / case / CASES[case][1]))
        assert pretrained.resolve_weights(config).architecture == pool


DISTILLED = ViT(width=36, depth=2, heads=3, patch_size=8, grid=(4, 4), distilled=True, pool="distilled")


@pytest.mark.parametrize("heads", [2, 1])
def test_a_distilled_deit_goes_back_to_timm_with_both_heads(tmp_path, heads):
    """The one head that a run trained reads the mean of what the two would read."""
    path = GOLDEN / "timm_deit_distilled" / "weights.safetensors"
    row = Pretrained(
        str(path), "", "deit_tiny_distilled_patch16", "timm", Preprocessing(), "MIT", architecture=attributes(DISTILLED)
    )
    arrays, _ = pretrained.read(row, path)
    if heads == 1:
        arrays = {name: array for name, array in arrays.items() if not name.startswith("head_dist/")}
    pretrained.write(tmp_path / "orbax", row, arrays)
    convert(BackboneConfig(weights=str(tmp_path / "orbax")), tmp_path / "timm", to="timm")
    config = json.loads((tmp_path / "timm" / "config.json").read_text())
    assert config["architecture"] == "deit_tiny_distilled_patch16_224"
    assert config["pretrained_cfg"]["classifier"] == ["head", "head_dist"]
    source, result = load_file(path), load_file(tmp_path / "timm" / "model.safetensors")
    if heads == 1:
        source |= {name.replace("head.", "head_dist."): source[name] for name in ("head.weight", "head.bias")}
    assert set(result) == set(source)
    for name, array in source.items():
        assert result[name].tobytes() == array.tobytes(), name


def test_what_is_exported_can_be_read_by_whom_the_umask_lets(tmp_path):
    case = GOLDEN / "timm_deit_distilled" / "weights.safetensors"
    row = Pretrained(str(case), "", "deit_tiny_distilled_patch16", "timm", Preprocessing(), "MIT")
    row = Pretrained(**{**vars(row), "architecture": attributes(DISTILLED)})
    pretrained.write(tmp_path / "orbax", row, pretrained.read(row, case)[0])
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "file").touch()
    for to in ("timm", "orbax"):
        convert(BackboneConfig(weights=str(tmp_path / "orbax")), tmp_path / f"as_{to}", to=to)
        for path in (tmp_path / f"as_{to}", *(tmp_path / f"as_{to}").rglob("*")):
            plain = tmp_path / "plain" / ("" if path.is_dir() else "file")
            assert path.stat().st_mode == plain.stat().st_mode, path


@pytest.mark.parametrize(
    ("module", "name", "wanted"),
    [
        (BACKBONES["vit_small_patch14_dinov2"], "vit_base_patch14_dinov2", "vit_small_patch14_dinov2"),
        (BACKBONES["vit_small_patch16"].clone(grid=(24, 24), eps=1e-12), "vit_base_patch16", "vit_small_patch16"),
        (BACKBONES["deit_small_patch16"], "deit_small_patch16", "deit_small_patch16"),
        (VIT, "vit_base_patch16", "vit_base_patch16"),
    ],
)
def test_an_export_is_called_by_its_sizes(module, name, wanted):
    assert _name_of(module, name) == wanted
