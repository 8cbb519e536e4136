"""Pictures that are whole files and yet not what they seem: strips, broken scans, animations, nested folders."""

import io
import os
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import make_folder, tiny_run
from tljax.cli import inspect
from tljax.config import schema
from tljax.config.schema import Experiment, TaskConfig
from tljax.data import registry
from tljax.data.dataset import Task, among
from tljax.data.transforms import image
from tljax.errors import InputError


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("TLJAX_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def data(tmp_path) -> Path:
    return make_folder(tmp_path / "data", per_class=3)


def load(data: Path, on_error: str = "stop") -> Task:
    return registry.load(TaskConfig(dataset=f"folder:{data}", on_error=on_error))


def with_a_broken_scan() -> bytes:
    """A progressive JPEG of which a bit is flipped, which PIL decodes without a word."""
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "JPEG", progressive=True)
    content = bytearray(encoded.getvalue())
    content[1948] ^= 0x10
    Image.open(io.BytesIO(content)).load()
    return bytes(content)


def test_a_strip_and_a_broken_scan_are_bad_files_and_inspect_lists_all(data, capsys):
    for name, shape in {"disc/wide.png": (1, 60_000), "square/high.png": (60_000, 1)}.items():
        Image.fromarray(np.zeros((*shape, 3), np.uint8)).save(data / name)
    (data / "disc" / "scan.jpg").write_bytes(with_a_broken_scan())
    (data / "disc" / "text.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"cannot be resized; cut it|not a readable image"):
        load(data)
    task = load(data, "skip")
    reasons = {one["id"]: one["reason"] for one in task.skipped}
    assert sorted(reasons) == ["disc/scan.jpg", "disc/text.png", "disc/wide.png", "square/high.png"]
    assert "60000 × 1 pixels, one side more than 256 times the other" in reasons["disc/wide.png"]
    assert "premature end of data segment" in reasons["disc/scan.jpg"] or "Huffman" in reasons["disc/scan.jpg"]
    assert len(task.bases["train"].index) == 6
    found = schema.default()
    found.steps, found.task.dataset = 1, f"folder:{data}"
    report = inspect.examine(Experiment.from_config(found))
    assert {one["id"] for one in report["skipped"]} == reasons.keys()
    inspect.diagnostics.show(report)
    said = capsys.readouterr()
    assert all(reason in said.out for reason in reasons.values())
    assert "a run refuses it with task.on_error=stop" in said.err


def test_integers_of_32_bits_that_hold_8_are_asked_about():
    for mode, most, fine in ((np.int32, 255, False), (np.int32, 65535, True), (np.uint16, 255, True)):
        levels = np.linspace(0, most, 64, dtype=mode).reshape(8, 8)
        content = io.BytesIO()
        Image.fromarray(levels).save(content, "TIFF")
        with nullcontext() if fine else pytest.raises(InputError, match="nothing says which is white"):
            image.decode(content.getvalue(), "x.tif")


def test_animations_and_nested_pictures_are_counted_and_said(data, capsys):
    frames = [Image.new("RGB", (16, 16), (80 * n, 0, 0)) for n in range(3)]
    for name in ("disc/moves.gif", "square/moves.webp"):
        frames[0].save(data / name, save_all=True, append_images=frames[1:])
    frames[1].save(data / "disc" / "still.gif")
    (data / "disc" / "deeper").mkdir()
    (data / "disc" / "00.png").rename(data / "disc" / "deeper" / "00.png")
    frames[0].save(data / "beside.png")
    task = load(data)
    said = capsys.readouterr().out
    assert "of 2 animated or many-page pictures the first is taken: " in said
    assert "1 images lie in folders within their class's: disc/deeper/00.png" in said
    assert "1 images lie in no class's folder, and are left out: beside.png" in said
    assert {one["id"]: one["note"] for one in task.notes} == dict.fromkeys(
        ("disc/moves.gif", "square/moves.webp"), "the first of 3 pictures is taken"
    )
    assert load(data).notes == task.notes


def test_a_picture_replaced_by_one_of_the_same_size_and_time_is_seen(data):
    path = data / "disc" / "00.png"
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(path, compress_level=0)
    first, stat, content = load(data), path.stat(), path.read_bytes()
    Image.fromarray(np.ones((32, 32, 3), np.uint8)).save(path, compress_level=0)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size and path.read_bytes() != content
    second = load(data)
    assert second.fingerprint != first.fingerprint
    path.chmod(0o600)  # prepared again, and the same data
    assert load(data).fingerprint == second.fingerprint


def test_one_class_is_of_use_to_evaluate_and_not_to_train(data):
    (data / "square" / "00.png").rename(data / "disc" / "square.png")
    shutil.rmtree(data / "square")
    assert (load(data).classes, among(load(data), ("disc", "square")).classes) == (("disc",), ("disc", "square"))
    with pytest.raises(InputError, match="has one class, disc: to train there must be at least two to tell apart"):
        tiny_run(f"folder:{data}")
