"""What is kept to be used again is whole, or made again: nothing is computed from a flipped bit."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from tests.conftest import GOLDEN, make_table, make_weights, tiny_run
from tests.flips import flip, flip_and_read, kept_files
from tljax.config.schema import TaskConfig
from tljax.data import readers, registry, splits
from tljax.data.preprocessing import Preprocessing
from tljax.data.transforms import tokenize
from tljax.errors import InputError
from tljax.io import arrays, checksums
from tljax.io.download.fetch import cache_dir
from tljax.models.registry import attributes
from tljax.models.vision.vit import ViT
from tljax.training import feature_cache
from tljax.weights import pretrained
from tljax.weights.catalog import Pretrained

FLIPS = 12  # of each kind of file kept


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("TLJAX_CACHE", str(tmp_path / "cache"))


def test_a_seal_tells_what_is_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr(checksums, "BLOCK", 1000)
    monkeypatch.setattr(checksums, "_LARGE", 5000)
    rng = np.random.default_rng(0)
    for name, size in {"empty": 0, "small": 10, "large": 12_345}.items():
        (tmp_path / name).write_bytes(rng.bytes(size))
    for _ in range(2):  # the seal itself is not sealed
        checksums.seal_folder(tmp_path, by_size="small")
    assert checksums.wrong_folder(tmp_path) == ""
    flip(tmp_path / "small", rng)
    assert checksums.wrong_folder(tmp_path) == ""
    flip(tmp_path / "large", rng)
    assert checksums.wrong_folder(tmp_path) == "large has other bytes than were written"
    assert checksums.wrong(tmp_path / checksums.NAME, only=["empty"]) == ""
    assert checksums.wrong(tmp_path / checksums.NAME, only=["other"]) == "other is not sealed"
    (tmp_path / "empty").write_bytes(b"x")
    assert checksums.wrong_folder(tmp_path) == "empty has 1 bytes, not 0"
    (tmp_path / "empty").unlink()
    assert checksums.wrong_folder(tmp_path) == "empty: No such file or directory"
    content = (tmp_path / checksums.NAME).read_bytes()
    for place in range(0, 8 * len(content), 11):
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        (tmp_path / checksums.NAME).write_bytes(damaged)
        with pytest.raises(checksums.Damaged):
            checksums.checksums(tmp_path / checksums.NAME)


def prepared(shapes: Path, pack: bool) -> Callable[[], Sequence[np.ndarray]]:
    def read() -> list[np.ndarray]:
        task = registry.load(TaskConfig(dataset=f"folder:{shapes}", pack=pack))
        (base,) = task.bases.values()
        images = [
            np.frombuffer(record["image"], np.uint8) for record in base.records.__getitems__(range(len(base.index)))
        ]
        index = base.index.to_pydict()
        return [*images, np.array(index["id"]), np.array(index["label"]), np.array([task.fingerprint, *task.classes])]

    return read


def decoded(shapes: Path) -> Callable[[], Sequence[np.ndarray]]:
    split = splits.cut(registry.load(TaskConfig(dataset=f"folder:{shapes}")), "train")
    config = TaskConfig(crop="inception")
    return lambda: list(readers.ImageReader(split, Preprocessing(size=16), config, True).keep(1e9, 0).decoded)


def tokens(table: Path, vocabulary: Path) -> Callable[[], Sequence[np.ndarray]]:
    split = splits.cut(registry.load(TaskConfig(dataset=f"csv:{table}", text=("text",))), "train")

    def read() -> list[np.ndarray]:
        tokenized = tokenize.tokenized(split, tokenize.Tokenizer(vocabulary), 8)
        return [*tokenized, np.array(list(tokenized.facts.values()))]

    return read


def prefix(shapes: Path) -> Callable[[], Sequence[np.ndarray]]:
    run = tiny_run(f"folder:{shapes}", tuning__strategy="linear_probe")
    run.cached = True
    state, start = run.init_state(), run.prefix_length(run.phases[0])
    return lambda: [feature_cache.computed(run, state, run.inputs.splits["train"], [start])[start].array()]


VIT = ViT(width=48, depth=3, heads=3, patch_size=8, grid=(4, 4))


def arrays_and_facts(folder: Path) -> list[np.ndarray]:
    facts, tree = arrays.load_metadata(folder), flatten_dict(arrays.load_tree(folder), sep="/")
    return [*tree.values(), np.array(list(tree)), np.array(str(facts))]


def converted() -> Callable[[], Sequence[np.ndarray]]:
    weights = str(GOLDEN / "timm_vit_cls" / "weights.safetensors")
    row = Pretrained(weights, "", "vit_small_patch16", "timm", Preprocessing(32), "MIT", architecture=attributes(VIT))
    return lambda: arrays_and_facts(pretrained.converted(row))


def test_damage_in_a_folder_that_convert_made_is_named(tmp_path):
    make_weights(tmp_path / "weights", 0.1)
    rng, whole = np.random.default_rng(0), arrays_and_facts(tmp_path / "weights")
    for path in kept_files(tmp_path / "weights"):
        content = path.read_bytes()
        flip(path, rng)
        with pytest.raises(InputError, match=f"{tmp_path / 'weights'} is damaged .*make it again; if you changed it"):
            arrays_and_facts(tmp_path / "weights")
        path.write_bytes(content)
    (tmp_path / "weights" / checksums.NAME).unlink()  # as earlier versions left it
    assert all(map(np.array_equal, arrays_and_facts(tmp_path / "weights"), whole))


@pytest.mark.parametrize("kind", ["packed", "indexed", "decoded", "tokens", "features", "backbones"])
def test_flipped_bits_in_what_is_kept_change_nothing(kind, shapes, tmp_path, tiny_text_weights):
    read = {
        "packed": lambda: prepared(shapes, pack=True),
        "indexed": lambda: prepared(shapes, pack=False),
        "decoded": lambda: decoded(shapes),
        "tokens": lambda: tokens(make_table(tmp_path / "t.csv"), tiny_text_weights / "vocab.txt"),
        "features": lambda: prefix(shapes),
        "backbones": converted,
    }[kind]()
    read()
    flips = FLIPS if kind != "backbones" else FLIPS // 3  # Orbax takes .5 s to read
    folder = cache_dir() / ("datasets" if kind in ("packed", "indexed") else kind)
    outcomes = flip_and_read(folder, read, flips, np.random.default_rng(0))
    assert outcomes["same"] + outcomes["named"] == flips and not outcomes["stuck"], outcomes
    assert outcomes["named"] == 0 or kind == "packed"
