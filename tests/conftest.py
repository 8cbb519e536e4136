"""What several tests share: small models with golden weights, tiny data sets, and the command line."""

import gc
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from tests import forks, memory, quick_compile
from tljax.config import schema
from tljax.core.run import Run, prepare
from tljax.data.preprocessing import Preprocessing
from tljax.distributed.preemption import PreemptionSignal
from tljax.io.download.fetch import cache_dir
from tljax.models.registry import BACKBONES, attributes
from tljax.models.text.albert import Albert
from tljax.models.text.bert import Bert
from tljax.models.text.deberta import Deberta
from tljax.models.text.modernbert import ModernBert
from tljax.models.text.mpnet import MPNet
from tljax.models.vision.beit import BEiT
from tljax.models.vision.convnext import ConvNeXt
from tljax.models.vision.efficientnet import EfficientNet
from tljax.models.vision.eva import EVA
from tljax.models.vision.mobilenetv3 import MobileNetV3
from tljax.models.vision.regnet import RegNet
from tljax.models.vision.resnet import ResNet
from tljax.models.vision.swin import Swin
from tljax.models.vision.vit import ViT
from tljax.weights import pretrained
from tljax.weights.catalog import Pretrained

quick_compile.install()
memory.keep_freed()
ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"
# Seconds until what other processes do has failed: on a machine that is busy, two of one run take minutes.
PATIENCE = 900


def golden(name: str) -> tuple[dict, dict[str, np.ndarray]]:
    """A golden case's facts, and its inputs and outputs."""
    facts = json.loads((GOLDEN / name / "case.json").read_text())
    return facts, dict(np.load(GOLDEN / facts.get("io_from", name) / "io.npz"))


def tljax(*arguments: object, status: int = 0, **environment: str) -> subprocess.CompletedProcess:
    """Runs `python -m tljax` as a user does; the exit status must be `status`."""
    done = forks.run(
        [sys.executable, "-m", "tljax", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == status, f"exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


def make_folder(root: Path, per_class: int = 12, classes: tuple[str, ...] = ("disc", "square"), seed: int = 0) -> Path:
    """Little drawings: the class decides the shape, the seed its place, size and colors."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:32, :32]
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            x, y, r = rng.integers(10, 22), rng.integers(10, 22), rng.integers(5, 9)
            across, down = abs(columns - x), abs(rows - y)
            inside = np.hypot(across, down) < r if name == "disc" else np.maximum(across, down) < r * 0.85
            picture = rng.integers(0, 90, (32, 32, 3)) + 140 * inside[..., None]
            Image.fromarray(picture.astype(np.uint8)).save(root / name / f"{i:02d}.png")
    return root


@pytest.fixture
def shapes_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes arrays for weights whatever their values: to look through a billion zeros takes seconds."""
    monkeypatch.setattr("tljax.weights.mapping._unusable", lambda array: "")


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder data set of 24 drawings in two classes."""
    return make_folder(tmp_path_factory.mktemp("data") / "shapes")


TINY = {
    "tiny_vit": ViT(width=16, depth=3, heads=2, patch_size=8, grid=(4, 4)),
    "tiny_dinov3": BACKBONES["vit_small_plus_patch16_dinov3_qkvb"].clone(
        width=16, depth=2, heads=2, patch_size=8, grid=(4, 4), layer_scale=0.1
    ),
    "tiny_siglip": BACKBONES["vit_base_patch16_siglip"].clone(width=16, depth=2, heads=2, patch_size=8, grid=(4, 4)),
    "tiny_clip": BACKBONES["vit_base_patch16_clip_quickgelu"].clone(
        width=16, depth=2, heads=2, patch_size=8, grid=(4, 4)
    ),
    "tiny_resnet": ResNet(depths=(1, 1), widths=(8, 16), stem_width=8, kind="basic"),
    "tiny_efficientnet": EfficientNet(
        operators=("fused", "mbconv"),
        depths=(1, 2),
        widths=(8, 8),
        sizes=(3, 3),
        strides=(1, 2),
        expansions=(2, 2),
        stem_width=8,
        head_width=16,
    ),
    "tiny_beit": BEiT(width=16, depth=3, heads=2, patch_size=8, grid=(4, 4)),
    "tiny_eva": EVA(width=16, depth=3, heads=2, mlp_width=24, patch_size=8, grid=(4, 4)),
    "tiny_swin": Swin(width=8, depths=(2, 1), heads=(2, 2), window=4, grid=(8, 8), version=2),
    "tiny_convnext": ConvNeXt(depths=(1, 1), widths=(8, 16), response_norm=True),
    "tiny_seresnext": ResNet(depths=(1, 1), widths=(8, 16), stem_width=8, cardinality=2, base_width=32, attention="se"),
    "tiny_mobilenetv3": MobileNetV3(
        depths=(1, 2),
        widths=(8, 8),
        sizes=(3, 3),
        strides=(1, 2),
        expansions=(1, 2, 2),
        squeezes=(1,),
        relu_stages=1,
        stem_width=8,
        last_width=16,
        head_width=16,
    ),
    "tiny_regnet": RegNet(depth=2, width_start=8, width_slope=4.0, width_factor=2.0, squeeze=0.25, stem_width=8),
}


_TEXT = {"width": 8, "depth": 2, "heads": 2, "mlp_width": 16, "vocabulary": 14, "positions": 32}
TINY |= {
    "tiny_albert": Albert(**_TEXT, embedding_width=4, repeats=2),
    "tiny_mpnet": MPNet(**_TEXT),
    "tiny_modernbert": ModernBert(**_TEXT, window=4),
    "tiny_deberta": Deberta(**_TEXT, buckets=4),
}


def tiny_run(dataset: str, network: str = "tiny_vit", **values: Any) -> Run:
    """A run of six steps of eight pictures, on networks that compile in a second; `values` by dotted key."""
    found = schema.default()
    found.steps, found.backbone.name, found.task.dataset = 6, network, dataset
    found.task.update(image_size=32, batch_size=8)
    found.optim.update(name="sgd", learning_rate=0.1)
    found.tuning.strategy = "full"
    for key, value in values.items():
        section, _, name = key.rpartition("__")
        (found[section] if section else found)[name] = value
    with pytest.MonkeyPatch.context() as patch:
        for name, module in TINY.items():
            patch.setitem(BACKBONES, name, module)
        experiment = schema.Experiment.from_config(found)
        return prepare(experiment)


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `tljax convert` makes it, of `tiny_vit` with random weights."""
    return make_weights(tmp_path_factory.mktemp("weights") / "tiny", 0.1)


@pytest.fixture(scope="session")
def tiny_resnet_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, of `tiny_resnet`."""
    return make_weights(tmp_path_factory.mktemp("weights") / "tiny_resnet", 0.1, "tiny_resnet", "resnet18")


@pytest.fixture(scope="session")
def lively_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `tiny_weights`, but larger ones: what the network says of one picture is far from what it says of another."""
    return make_weights(tmp_path_factory.mktemp("weights") / "lively", 1.0)


def make_weights(folder: Path, scale: float, network: str = "tiny_vit", kind: str = "vit_tiny_patch16") -> Path:
    module, rng = TINY[network], np.random.default_rng(0)
    shapes = {
        path: shape for path, shape in pretrained.shapes(module).items() if path not in pretrained.optional(module)
    }
    arrays = {path: scale * rng.standard_normal(shape, dtype=np.float32) for path, shape in shapes.items()}
    arrays |= {path: np.ones(shape, np.float32) for path, shape in shapes.items() if path.endswith("/var")}
    size = Preprocessing(size=32)
    row = Pretrained("tiny", "", kind, "", size, "MIT", architecture=attributes(module))
    folder.mkdir()
    pretrained.write(folder, row, arrays)
    return folder


WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "the",
    "film",
    "plot",
    "good",
    "fine",
    "bad",
    "dull",
    "very",
]


@pytest.fixture(scope="session")
def tiny_text_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `tljax convert` makes it, of a text encoder of random weights and a vocabulary of 14 words."""
    module, rng = Bert(width=16, depth=2, heads=2, vocabulary=len(WORDS), positions=32), np.random.default_rng(0)
    shapes = {
        path: shape for path, shape in pretrained.shapes(module).items() if path not in pretrained.optional(module)
    }
    arrays = {path: 0.3 * rng.standard_normal(shape, dtype=np.float32) for path, shape in shapes.items()}
    row = Pretrained("tiny", "", "bert_base", "", Preprocessing(), "MIT", architecture=attributes(module))
    folder = tmp_path_factory.mktemp("weights") / "tiny_text"
    folder.mkdir()
    pretrained.write(folder, row, arrays)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    return folder


def make_table(path: Path, rows: int = 32) -> Path:
    """Sentences of 3 to 25 words, of which one decides the label; with a second sentence, and with numbers."""
    rng, lines = np.random.default_rng(0), ["text,second,label,both,length"]
    for i in range(rows):
        word = WORDS[9 + i % 4]
        words = list(rng.choice(["a", "the", "film", "plot", "very"], rng.integers(2, 25)))
        words.insert(int(rng.integers(len(words))), word)
        label = "positive" if i % 4 < 2 else "negative"
        both = "|".join(name for name, on in (("praise", i % 4 < 2), ("strong", i % 2)) if on)
        lines.append(f"{' '.join(words)},{word} film,{label},{both},{len(words)}")
    path.write_text("\n".join(lines) + "\n")
    return path


class StopAt(PreemptionSignal):
    """Told to stop when it is asked for the `count`-th time."""

    def __init__(self, count: int):
        super().__init__()
        self._left = count

    def reason(self) -> str:
        self._left -= 1
        return "a test" if self._left <= 0 else ""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the most slow tests come first: no worker shall begin a long file when the others have ended."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def pytest_collection_finish() -> None:
    """Sets a million objects of imported modules apart from what is searched for garbage, again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _unoptimised(request: pytest.FixtureRequest) -> None:
    """But of files marked `optimized`, LLVM makes the kernels as they stand, here and in processes that tests start."""
    plain = request.node.get_closest_marker("optimized") is None
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(int(plain))
    jax.config.update("jax_disable_most_optimizations", plain)


@pytest.fixture(scope="module", autouse=True)
def _programs() -> Iterator[None]:
    """Frees the compiled programs of a file's tests: each takes some of the 65,530 memory maps that a process may have.

    Of all tests together they are more, and the compiler then dies of a segmentation fault.
    """
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Downloads and compiled programs are shared by tests, in the checkout's .venv; the user's cache is left alone."""
    os.environ.setdefault("TLJAX_CACHE", str(Path(sys.prefix) / "tljax-test-cache"))
    # Tests compile the same little programs again and again, here and in the processes that they start.
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache_dir() / "compiled")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "compiled"))
    # Each core has tests of its own: to share a program out over cores takes a seventh longer.
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_parallel_codegen_split_count=1")
