import collections
import shutil

import pytest

from tests.conftest import make_folder
from tljax.data import tasks
from tljax.errors import InputError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TLJAX_CACHE", str(tmp_path / "cache"))


def test_a_folder_becomes_a_task(shapes):
    task = tasks.load(f"folder:{shapes}")
    assert task.classes == ("disc", "square")
    split = task.split("train")
    assert collections.Counter(split[i]["label"] for i in range(len(split))) == {0: 12, 1: 12}
    example = split[0]
    name = example["id"].decode()
    assert example["image"] == (shapes / name).read_bytes()
    assert task.classes[example["label"]] == name.split("/")[0]


def test_slices_part_the_data(shapes):
    task = tasks.load(f"folder:{shapes}")
    names = [
        {task.split(slicing)[i]["id"] for i in range(len(task.split(slicing)))}
        for slicing in ("train[:10]", "train[10:18]", "train[75%:]")
    ]
    assert [len(part) for part in names] == [10, 8, 6]
    assert len(set.union(*names)) == 24


def test_a_folder_is_prepared_once_and_again_when_it_changes(shapes, tmp_path):
    root = tmp_path / "shapes"
    shutil.copytree(shapes, root)
    first = tasks.load(f"folder:{root}")
    prepared = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "datasets").iterdir()}
    assert tasks.load(f"folder:{root}").fingerprint == first.fingerprint
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "datasets").iterdir()} == prepared
    (root / "disc" / "00.png").unlink()
    changed = tasks.load(f"folder:{root}")
    assert len(changed.split("train")) == 23
    assert changed.fingerprint != first.fingerprint


def test_the_fingerprint_is_of_the_content_not_of_the_place(shapes, tmp_path):
    shutil.copytree(shapes, tmp_path / "elsewhere")
    assert tasks.load(f"folder:{tmp_path / 'elsewhere'}").fingerprint == tasks.load(f"folder:{shapes}").fingerprint


def test_what_cannot_be_used_is_named(shapes, tmp_path):
    cases = {
        "mnist": "no task.dataset 'mnist'; there are: mnist_5k, elpv, folder:PATH",
        f"folder:{tmp_path / 'none'}": "no such folder",
        f"folder:{shapes / 'disc'}": "needs a sub-folder of images for each of at least 2 classes",
    }
    for dataset, message in cases.items():
        with pytest.raises(InputError) as error:
            tasks.load(dataset)
        assert message in str(error.value)
    task = tasks.load(f"folder:{shapes}")
    for slicing, message in {"test": "no split 'test'", "train[:99]": "no split", "train[5:5]": "no split"}.items():
        with pytest.raises(InputError) as error:
            task.split(slicing)
        assert message in str(error.value)


def test_an_empty_class_folder_is_named(tmp_path):
    root = make_folder(tmp_path / "shapes", per_class=2)
    (root / "triangle").mkdir()
    with pytest.raises(InputError, match=r"class folder 'triangle' has no .* in it: remove it or fill it"):
        tasks.load(f"folder:{root}")


def test_a_truncated_image_is_named_and_nothing_is_kept(tmp_path):
    root = make_folder(tmp_path / "shapes", per_class=3)
    file = root / "square" / "01.png"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(InputError, match=r"square/01\.png: not a readable image"):
        tasks.load(f"folder:{root}")
    assert [path.suffix for path in (tmp_path / "cache" / "datasets").iterdir()] == [".lock"]
