"""Images in files of their own stay where they are: the same examples as if they were packed, and no copy."""

import dataclasses
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.conftest import make_folder, tiny_run
from tests.data.test_tasks import load
from tljax.checkpoints import workdir
from tljax.config.serialization import to_dict
from tljax.data.records.file_reader import FileReader
from tljax.errors import InputError
from tljax.io.download.fetch import cache_dir
from tljax.sweeps.trial import make_trials


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TLJAX_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def pictures(tmp_path):
    """Two splits with odd names, an animation and a damaged file."""
    for split, count in {"train": 6, "test": 2}.items():
        make_folder(tmp_path / "pictures" / split, per_class=count)
    root = tmp_path / "pictures" / "train" / "disc"
    shutil.copy(root / "00.png", os.fsencode(root) + b"/\xff.png")
    shutil.copy(root / "01.png", root / "é x.png")
    shutil.copy(root / "02.png", root / "\\xfe.png")
    frames = [Image.new("RGB", (16, 16), (80 * n, 0, 0)) for n in range(3)]
    frames[0].save(root / "moves.gif", save_all=True, append_images=frames[1:])
    (root / "05.png").write_bytes(b"none")
    return tmp_path / "pictures"


def datasets(root) -> list[str]:
    """The same kind of pictures as a folder, and as rows of a table."""
    files = sorted((root / "test").rglob("*.png"))
    (root.parent / "t.csv").write_text("image,label\n" + "".join(f"{file},{file.parent.name}\n" for file in files))
    return [f"folder:{root}", f"csv:{root.parent / 't.csv'}"]


def test_examples_are_those_of_packed_ones_to_the_bit(pictures):
    for dataset in datasets(pictures):
        packed, in_place = (load(dataset, pack=pack, on_error="skip") for pack in (True, False))
        assert packed.fingerprint == in_place.fingerprint
        for name in ("kind", "classes", "pairs", "skipped", "notes"):
            assert getattr(packed, name) == getattr(in_place, name)
        assert list(packed.bases) == list(in_place.bases)
        for split, base in packed.bases.items():
            other, rows = in_place.bases[split], range(len(base.index))
            assert isinstance(other.records, FileReader) and base.index.equals(other.index)
            assert len(base.records) == len(other.records)
            assert base.records.__getitems__(rows) == other.records.__getitems__(rows)
    assert len(in_place.skipped) == 0 and len(load(f"folder:{pictures}", on_error="skip").skipped) == 1


def test_no_picture_is_copied(tmp_path):
    root = make_folder(tmp_path / "large", per_class=4)
    noise = np.random.default_rng(0)
    for path in root.rglob("*.png"):
        Image.fromarray(noise.integers(0, 255, (128, 128, 3), np.uint8)).save(path)
    size = sum(path.stat().st_size for path in root.rglob("*.png"))

    def kept() -> int:
        return sum(path.stat().st_size for path in cache_dir().rglob("*") if path.is_file())

    load(f"folder:{root}")
    assert kept() < 20_000 < 300_000 < size
    load(f"folder:{root}", pack=True)
    assert kept() > size


def test_a_picture_that_changes_while_it_is_used_is_named(tmp_path):
    root = make_folder(tmp_path / "shapes", per_class=3)
    task = load(f"folder:{root}")
    base = task.bases["train"]
    ids, rows = base.index.column("id").to_pylist(), range(6)
    path = root / ids[2]
    whole, stat = path.read_bytes(), path.stat()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    base.records.__getitems__([0, 1, 3, 4, 5])
    with pytest.raises(InputError, match=rf"^{path}: was changed since the data set was indexed; put it back, or run"):
        base.records.__getitems__(rows)
    Image.new("RGB", (32, 32)).save(path)
    changed = load(f"folder:{root}")
    assert changed.fingerprint != task.fingerprint
    assert changed.bases["train"].records.__getitems__([2])[0]["image"] == path.read_bytes()
    path.unlink()
    with pytest.raises(
        InputError, match=rf"^{path}: cannot be read any more \(No such file or directory\); put it back"
    ):
        changed.bases["train"].records.__getitems__(rows)


def test_a_flipped_bit_that_no_time_tells_of_is_named_and_then_indexed(tmp_path, monkeypatch):
    root = make_folder(tmp_path / "shapes", per_class=3)
    # As on a disk that loses bits: nothing that `stat` says has changed.
    monkeypatch.setattr("tljax.io.checksums.stamp", lambda path: (path.stat().st_size, 0, 0))
    task = load(f"folder:{root}")
    path = root / task.bases["train"].index.column("id").to_pylist()[0]
    Image.new("RGB", (32, 32)).save(path)
    path.write_bytes(path.read_bytes().ljust(int(task.bases["train"].index.column("bytes")[0].as_py()), b"\0"))
    again = load(f"folder:{root}")
    assert again.fingerprint == task.fingerprint
    with pytest.raises(InputError, match="was changed since"):
        again.bases["train"].records.__getitems__([0])
    mended = load(f"folder:{root}")
    assert mended.fingerprint != task.fingerprint and mended.bases["train"].records.__getitems__([0])


def test_pack_changes_no_name_and_lets_a_run_go_on(shapes):
    packed, in_place = (
        tiny_run(f"folder:{shapes}", task__train="train[:16]", task__pack=pack) for pack in (True, False)
    )
    first, second = packed.experiment, in_place.experiment
    assert first == second and hash(first) == hash(second)
    assert "pack" not in to_dict(second)["task"] and to_dict(first)["task"]["pack"] is True
    settings = [{"config": to_dict(experiment), "resolved": {}} for experiment in (first, second)]
    assert workdir._differences(*settings) == []
    other = dataclasses.replace(second, task=dataclasses.replace(second.task, shots=1))
    assert workdir._differences(settings[0], {"config": to_dict(other), "resolved": {}})
    trials = [make_trials(experiment, [{}], "root")[0].folder for experiment in (first, second)]
    assert trials[0] == trials[1]
    a, b = (run.inputs.splits["train"] for run in (packed, in_place))
    assert a.key == b.key and a.__getitems__(range(16)) == b.__getitems__(range(16))
