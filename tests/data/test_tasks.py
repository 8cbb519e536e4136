"""Built-in data sets and folders of images, as tasks."""

import collections
import hashlib
import io
import os
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.conftest import ROOT, make_folder
from tljax.config.schema import TaskConfig
from tljax.config.serialization import build
from tljax.data import registry
from tljax.data.dataset import Task
from tljax.errors import InputError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TLJAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "datasets"


def load(dataset, **keys) -> Task:
    return registry.load(TaskConfig(dataset=str(dataset), **keys))


def column(task: Task, name: str, split: str = "train") -> list:
    return task.bases[split].index.column(name).to_pylist()


# First ids, and the sha256 of all of them joined by NUL: the order that TFDS's own builder gave.
ORDERS = {
    "mnist_5k": (
        ["1680", "1456", "4223", "4093", "3017"],
        "3502cf760c107f88e0e91ba1ef94ef1bda01ed55d11777a6655c8cf7109374b5",
    ),
    "elpv": (
        [f"images/cell{number}.png" for number in ("1124", "0300", "0862", "2472", "0368")],
        "95d3a89ac0661652c7cd2c9478c3c75187c9ac8bb05b9a437c431ac51c182d59",
    ),
}


@pytest.mark.parametrize("name", ORDERS)
def test_built_in_images_keep_their_order(name):
    ids = column(load(name), "id")
    first, sha256 = ORDERS[name]
    assert ids[:5] == first
    assert hashlib.sha256("\0".join(ids).encode()).hexdigest() == sha256


def test_what_the_built_in_sets_hold():
    digits, cells = load("mnist_5k"), load("elpv")
    assert column(digits, "label")[:5] == [3, 2, 8, 8, 6]
    assert collections.Counter(column(digits, "label")) == dict.fromkeys(range(10), 500)
    assert set(zip(column(digits, "height"), column(digits, "width"), strict=True)) == {(28, 28)}
    assert cells.classes == ("functional", "defective")
    assert collections.Counter(column(cells, "label")) == {0: 1803, 1: 821}
    (first,) = cells.bases["train"].records.__getitems__([0])
    assert hashlib.sha256(first["image"]).hexdigest() == column(cells, "sha256")[0]
    assert len(first["image"]) == column(cells, "bytes")[0] == 37905


def test_textures_of_test_touch_none_of_train():
    task = load("textures")
    assert task.classes == ("brick", "grass", "gravel")
    rows = {}
    for split, many in {"train": 40, "test": 16}.items():
        assert collections.Counter(column(task, "label", split)) == dict.fromkeys(range(3), many)
        rows[split] = {int(id.split("-")[1]) for id in column(task, "id", split)}
    assert (max(rows["train"]) + 64, min(rows["test"])) == (320, 384)  # in pixels from the top: a row lies between
    (tile,) = task.bases["test"].records.__getitems__([0])
    assert np.asarray(Image.open(io.BytesIO(tile["image"]))).shape == (64, 64)


def test_movie_sentiment_is_text():
    task = load("movie_sentiment")
    assert (task.kind, task.pairs, task.classes) == ("text", False, ("negative", "positive"))
    assert collections.Counter(column(task, "label")) == {0: 4575, 1: 4598}
    ids = column(task, "id")
    texts = task.bases["train"].records.__getitems__([ids.index("00001"), ids.index("00345")])
    assert texts[0]["text"].startswith("The Rock is destined to be the 21st Century's new ''Conan''")
    assert texts[1]["text"] == "Absorbing character study by André Turpin."
    assert set(column(task, "height")) == {0}


def test_a_folder_becomes_a_task(shapes, cache):
    task = load(f"folder:{shapes}")
    assert task.classes == ("disc", "square")
    assert collections.Counter(column(task, "label")) == {0: 12, 1: 12}
    ids = column(task, "id")
    assert ids[:5] == ["square/04.png", "square/11.png", "disc/03.png", "square/10.png", "disc/11.png"]
    for row, one in zip(range(24), task.bases["train"].records.__getitems__(list(range(24))), strict=True):
        assert one == {"image": (shapes / ids[row]).read_bytes()}
        assert task.classes[column(task, "label")[row]] == ids[row].split("/")[0]
    assert set(column(task, "height")) == {32}


def test_a_folder_is_prepared_once_and_again_when_it_changes(shapes, tmp_path, cache):
    root = tmp_path / "shapes"
    shutil.copytree(shapes, root)
    first = load(f"folder:{root}")
    prepared = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert load(f"folder:{root}").fingerprint == first.fingerprint
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == prepared
    (root / "disc" / "00.png").unlink()
    changed = load(f"folder:{root}")
    assert len(changed.bases["train"].index) == 23
    assert changed.fingerprint != first.fingerprint


def test_the_fingerprint_is_of_the_content_not_of_the_place(shapes, tmp_path, cache):
    shutil.copytree(shapes, tmp_path / "elsewhere")
    elsewhere = load(f"folder:{tmp_path / 'elsewhere'}")
    assert elsewhere.fingerprint == load(f"folder:{shapes}").fingerprint
    (tmp_path / "elsewhere" / "disc" / "00.png").rename(tmp_path / "elsewhere" / "disc" / "99.png")
    assert load(f"folder:{tmp_path / 'elsewhere'}").fingerprint != elsewhere.fingerprint


def test_splits_in_folders(tmp_path, cache):
    for split, many in {"train": 4, "valid": 2, "test": 3}.items():
        make_folder(tmp_path / "data" / split, per_class=many)
    task = load(f"folder:{tmp_path / 'data'}")
    assert {split: len(base.index) for split, base in task.bases.items()} == {"train": 8, "validation": 4, "test": 6}
    assert sorted(column(task, "id", "test"))[:2] == ["test/disc/00.png", "test/disc/01.png"]
    assert task.bases["validation"].records.__getitems__([0])[0]["image"] == (
        (tmp_path / "data" / column(task, "id", "validation")[0]).read_bytes()
    )


def test_a_folder_of_every_suffix_with_links_and_litter(tmp_path, cache, capsys):
    root = tmp_path / "data"
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (6, 9, 3), np.uint8))
    for name in ("a", "b"):
        (root / name / "deep").mkdir(parents=True)
        for suffix in ("jpg", "JPEG", "png", "WebP", "bmp", "tif", "tiff", "gif"):
            picture.save(root / name / "deep" / f"x.{suffix}")
    sideways = Image.Exif()
    sideways[0x0112] = 6
    picture.save(root / "a" / "sideways.jpg", exif=sideways)
    for litter in ("Thumbs.db", ".DS_Store", ".hidden.png"):
        (root / "a" / litter).write_bytes(b"x")
    for other in ("notes.txt", "labels.csv", "[red]x.npy"):
        (root / "b" / other).write_text("x")
    (root / "a" / "deep" / "loop").symlink_to(root / "a")
    (tmp_path / "c").mkdir()
    picture.save(tmp_path / "c" / "linked.png")
    (root / "a" / "linked").symlink_to(tmp_path / "c")
    task = load(f"folder:{root}")
    assert collections.Counter(column(task, "label")) == {0: 10, 1: 8}
    size = dict(zip(column(task, "id"), zip(column(task, "height"), column(task, "width"), strict=True), strict=True))
    assert size["a/sideways.jpg"] == (9, 6)
    assert size["a/linked/linked.png"] == size["a/deep/x.jpg"] == (6, 9)
    assert "3 files are no images by their suffix: b/[red]x.npy, b/labels.csv, b/notes.txt" in capsys.readouterr().out


FOLDERS = {
    "no such folder": ([], "data: no such folder"),
    "no class": (["x.png"], "data: needs a sub-folder of images for each class, has none"),
    "an empty class": (["a/x.png", "b/"], "class folder 'b' has no .jpg|.jpeg|.png"),
    "a class of test that train lacks": (
        ["train/a/x.png", "train/b/x.png", "test/a/x.png", "test/c/x.png"],
        "train has the class 'b', and test has not: add or remove it",
    ),
    "a split with an empty class": (
        ["train/a/x.png", "train/b/x.png", "val/a/x.png", "val/b/"],
        "class folder 'val/b' has no .jpg",
    ),
    "validation twice": (["train/a/x.png", "val/a/x.png", "valid/a/x.png"], "two of train, val, valid are the same"),
    "something beside the splits": (
        ["train/a/x.png", "test/a/x.png", "raw/a/x.png"],
        "raw beside test, train is no split; move it elsewhere",
    ),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_folders_that_cannot_be_used(tmp_path, cache, case):
    paths, message = FOLDERS[case]
    for path in paths:
        (tmp_path / "data" / path).parent.mkdir(parents=True, exist_ok=True)
        if path.endswith("/"):
            (tmp_path / "data" / path).mkdir()
        else:
            Image.new("RGB", (4, 4)).save(tmp_path / "data" / path)
    with pytest.raises(InputError) as error:
        load(f"folder:{tmp_path / 'data'}")
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"dataset": "mnist"},
            "no task.dataset 'mnist'; there are: mnist_5k, elpv, textures, movie_sentiment, folder:PATH, csv:PATH, ",
        ),
        ({"dataset": "folder:"}, "no task.dataset 'folder:'"),
        (
            {"dataset": "mnist_5k", "problem": "regresion"},
            "no config.task.problem 'regresion' (did you mean regression?)",
        ),
        ({"dataset": "mnist_5k", "on_error": "ignore"}, "no config.task.on_error 'ignore'; there are: stop, skip"),
        ({"dataset": "textures", "problem": "regression"}, "textures is single_label; task.problem=regression"),
        ({"dataset": "mnist_5k", "label": ("x",)}, "mnist_5k has no columns, so task.label names none"),
        ({"dataset": "tfds:x", "pack": True}, "tfds:x is read where TFDS packed it; leave task.pack as it is"),
        ({"dataset": "csv:x", "image": "a", "text": ("b",)}, "task.image='a' and task.text=('b',)"),
    ],
)
def test_what_cannot_be_asked_for_is_named(keys, message):
    with pytest.raises(InputError) as error:
        registry.load(build(TaskConfig, keys, "config.task"))
    assert message in str(error.value)


LOADING = """
import sys
from tljax.config.schema import TaskConfig
from tljax.data import registry
for dataset in sys.argv[1:]:
    task = registry.load(TaskConfig(dataset=dataset, pack=dataset.startswith("folder:")))
    task.bases["train"].records.__getitems__([0])
    print(task.name.partition(":")[0], len(task.bases["train"].index))
assert not {"tensorflow", "torch"} & set(sys.modules)
"""


def test_no_source_imports_tensorflow_or_torch(shapes, tmp_path):
    import datasets

    for name in ("tensorflow", "torch"):  # installed, so that whoever looks for them finds them
        (tmp_path / "packages" / name).mkdir(parents=True)
        (tmp_path / "packages" / name / "__init__.py").write_text("raise SystemExit(f'{__name__} was imported')")
    (tmp_path / "t.csv").write_text("text,label\nx,a\ny,b\n")
    pq.write_table(pa.table({"text": ["x", "y"], "label": ["a", "b"]}), tmp_path / "t.parquet")
    datasets.Dataset.from_dict({"text": ["x", "y"], "label": ["a", "b"]}).save_to_disk(str(tmp_path / "hf"))
    paths = os.pathsep.join([str(tmp_path / "packages"), str(ROOT)])
    environment = os.environ | {"TLJAX_CACHE": str(tmp_path / "cache"), "PYTHONPATH": paths}

    def run(*sets: str) -> str:
        command = [sys.executable, "-c", LOADING, *sets]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return "".join(line for line in done.stdout.splitlines(keepends=True) if ": labels: " not in line)

    said = run(f"folder:{shapes}", "csv:t.csv", "parquet:t.parquet", "hf:hf")
    assert said == "folder 24\ncsv 2\nparquet 2\nhf 2\n"
    (prepared,) = (tmp_path / "cache" / "datasets").glob("folder-*[0-9a-f]")
    assert run(f"tfds:{prepared}") == "tfds 24\n"
