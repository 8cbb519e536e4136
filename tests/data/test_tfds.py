"""Data sets that TFDS prepared, read where they are."""

import io
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from tests.data.test_tasks import column, load
from tljax.data.sources.vtab import LABELS
from tljax.errors import InputError
from tljax.io.download.fetch import cache_dir


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TLJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))


def make(
    root: Path, features: Mapping[str, Any], splits: Mapping[str, list], name: str = "made", version="1.0.0"
) -> Path:
    """A folder as TFDS prepares it in array_record; the keys are the places in the lists."""

    class Made(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(version)

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {split: iter(enumerate(examples)) for split, examples in splits.items()}

        def _generate_examples(self):
            raise NotImplementedError

    Made.name = name
    tfds.disable_progress_bar()
    builder = Made(data_dir=root, file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_path)


def picture(i: int, **options: Any) -> bytes:
    data = io.BytesIO()
    pixels = np.full((4 + i, 7, 3), i, np.uint8)
    Image.fromarray(pixels).save(data, options.pop("format", "PNG"), **options)
    return data.getvalue()


IMAGE, TWO = tfds.features.Image(), tfds.features.ClassLabel(names=["cat", "dog"])


def test_images_in_the_order_of_tfds(tmp_path):
    sideways = Image.Exif()
    sideways[0x0112] = 8
    train = [{"image": picture(i), "label": i % 2, "file_name": f"{i}.png"} for i in range(11)]
    train[3]["image"] = picture(3, format="JPEG", exif=sideways)
    test = [{"image": picture(20), "label": "dog", "file_name": "a"}]
    path = make(
        tmp_path, {"image": IMAGE, "label": TWO, "file_name": tfds.features.Text()}, {"train": train, "test": test}
    )
    task = load(f"tfds:{path}")
    assert (task.kind, task.classes) == ("image", ("cat", "dog"))
    found = tfds.builder_from_directory(path).as_data_source(
        split="train", decoders={"image": tfds.decode.SkipDecoding()}
    )
    ids = [example["file_name"].decode() for example in found]
    assert column(task, "id") == ids and sorted(ids) != ids
    assert column(task, "label") == [example["label"] for example in found]
    records = task.bases["train"].records.__getitems__(list(range(11)))
    assert records == [{"image": example["image"]} for example in found]
    sizes = dict(zip(ids, zip(column(task, "height"), column(task, "width"), strict=True), strict=True))
    assert sizes == {f"{i}.png": (4 + i, 7) for i in range(11)} | {"3.png": (7, 7)}
    assert column(task, "label", "test") == [1]
    (index,) = (path for path in (cache_dir() / "datasets").iterdir() if path.is_dir())
    names = [
        "index-test.parquet",
        "index-train.parquet",
        "sealed.json",
        "task.json",
        "tfds.json",
    ]  # no record was copied
    assert sorted(path.name for path in index.iterdir()) == names
    before = {file: file.stat().st_mtime_ns for file in cache_dir().rglob("*.parquet")}
    assert load(f"tfds:{path}").fingerprint == task.fingerprint
    assert {file: file.stat().st_mtime_ns for file in cache_dir().rglob("*.parquet")} == before
    shutil.move(path, tmp_path / "elsewhere")
    assert load(f"tfds:{tmp_path / 'elsewhere'}").fingerprint == task.fingerprint


def test_what_is_prepared_here_is_a_set_of_tfds_too(shapes):
    task = load(f"folder:{shapes}", pack=True)
    (folder,) = (cache_dir() / "datasets").glob("folder-*[0-9a-f]")
    again = load(f"tfds:{folder}")
    assert again.fingerprint == task.fingerprint and column(again, "id") == column(task, "id")


def test_texts_pairs_and_labels_by_name(tmp_path):
    text = tfds.features.Text()
    features = {"idx": np.int32, "one": text, "two": text, "label": TWO, "stars": np.float32, "place": (2,)}
    features["place"] = tfds.features.Tensor(shape=(2,), dtype=np.float32)
    features["tags"] = tfds.features.Sequence(tfds.features.ClassLabel(names=["x", "y", "z"]))
    rows = [
        {"idx": i, "one": f"é {i}", "two": "b\0", "label": i, "stars": i / 4, "place": [i, 9], "tags": [[2, 0], []][i]}
        for i in range(2)
    ]
    spec = f"tfds:{make(tmp_path, features, {'train': rows})}"
    pairs = load(spec, text=("one", "two"), label=("label",))
    first = column(pairs, "label").index(0)
    assert pairs.pairs and pairs.bases["train"].records.__getitems__([first]) == [{"text": "é 0", "text_pair": "b\0"}]
    assert column(pairs, "id") == ["00000000", "00000001"] and column(pairs, "bytes") == [6, 6]
    stars = load(spec, text=("one",), label=("stars",), problem="regression")
    assert stars.classes == ("stars",) and stars.bases["train"].records.__getitems__([first]) == [{"text": "é 0"}]
    assert column(stars, "label")[first] == [0.0] and column(stars, "label")[1 - first] == [0.25]
    place = load(spec, text=("one",), label=("place",), problem="regression")
    assert place.classes == ("place_0", "place_1") and column(place, "label")[1 - first] == [1.0, 9.0]
    tags = load(spec, text=("one",), label=("tags",), problem="multi_label")
    assert tags.classes == ("x", "y", "z") and column(tags, "label")[first] == [0, 2]
    assert column(tags, "label")[1 - first] == []
    numbers = load(spec, text=("two",), label=("idx",))
    assert numbers.classes == ("0", "1") and column(numbers, "label")[first] == 0
    for keys, message in {
        (): "task.text could be one or two; set it",
        ("three",): "no feature 'three'; it has",
        ("one", "label"): "one, label: an example is one image, one text or two",
    }.items():
        with pytest.raises(InputError, match=message):
            load(spec, text=keys)
    with pytest.raises(InputError, match=r"no task\.label 'vtab:x'; there are: vtab:clevr_count"):
        load(spec, label=("vtab:x",))


def test_two_images_or_labels_are_named(tmp_path):
    features = {"left": IMAGE, "right": IMAGE, "kind": TWO, "sort": TWO}
    rows = [{"left": picture(i), "right": picture(9), "kind": i, "sort": 1 - i} for i in range(2)]
    spec = f"tfds:{make(tmp_path, features, {'train': rows})}"
    with pytest.raises(InputError, match=r"has the labels kind, sort: set task.label to one of them"):
        load(spec)
    with pytest.raises(InputError, match=r"has the images left, right: set task.image to one of them"):
        load(spec, label=("kind",))
    assert set(column(load(spec, label=("sort",), image="right"), "height")) == {13}


def test_labels_that_were_withheld_and_ids_that_are_twice_there(tmp_path, capsys):
    features = {"image": IMAGE, "label": TWO, "file_name": tfds.features.Text()}
    train = [{"image": picture(i), "label": i % 2, "file_name": "same.png"} for i in range(3)]
    test = [{"image": picture(i), "label": -1, "file_name": f"{i}"} for i in range(20)]
    task = load(f"tfds:{make(tmp_path, features, {'train': train, 'test': test})}")
    assert list(task.bases) == ["train"]
    assert "test has no labels, and is left out" in capsys.readouterr().out
    assert column(task, "id") == [f"{i:08d}/same.png" for i in range(3)]


def test_a_label_of_vtab(tmp_path):
    objects = tfds.features.Sequence(
        {
            "size": tfds.features.ClassLabel(num_classes=2),
            "pixel_coords": tfds.features.Tensor(shape=(3,), dtype=np.float32),
        }
    )
    rows = [
        {"image": picture(i), "objects": {"size": [0] * n, "pixel_coords": [[0, 0, 8.0 + i]] * n}}
        for i, n in enumerate((3, 10))
    ]
    features = {"image": IMAGE, "objects": objects}
    path = make(tmp_path, features, {"train": rows, "validation": rows, "test": rows}, "clevr", "3.1.0")
    count = load(f"tfds:{path}", label=("vtab:clevr_count",))
    assert count.classes == LABELS["clevr_count"].classes and list(count.bases) == ["train", "validation"]
    heights = dict(zip(column(count, "height"), column(count, "label"), strict=True))
    assert heights == {4: 0, 5: 7}
    distance = load(f"tfds:{path}", label=("vtab:clevr_distance",))
    assert dict(zip(column(distance, "height"), column(distance, "label"), strict=True)) == {4: 0, 5: 2}


def test_sprites_are_black_and_white(tmp_path):
    grey = tfds.features.Image(shape=(2, 2, 1))
    features = {"image": grey, "label_orientation": tfds.features.ClassLabel(num_classes=40)}
    rows = [{"image": np.array([[0, 1], [1, i]], np.uint8)[..., None], "label_orientation": 3 + i} for i in range(2)]
    for row in rows:
        data = io.BytesIO()
        Image.fromarray(row["image"][..., 0]).save(data, "PNG")
        row["image"] = data.getvalue()
    task = load(
        f"tfds:{make(tmp_path, features, {'train': rows}, 'dsprites', '2.0.0')}", label=("vtab:dsprites_orientation",)
    )
    found = task.bases["train"].records.__getitems__([0, 1])
    pictures = [np.asarray(Image.open(io.BytesIO(one["image"]))).tolist() for one in found]
    assert sorted(pictures) == [[[0, 255], [255, 0]], [[0, 255], [255, 255]]]
    assert column(task, "label") == [1, 1]


def test_by_name(tmp_path, monkeypatch):
    rows = [{"image": picture(i), "label": i} for i in range(2)]
    path = make(tmp_path / "tfds", {"image": IMAGE, "label": TWO}, {"train": rows}, "at_home")
    assert path == tmp_path / "tfds" / "at_home" / "1.0.0"
    for spec in ("at_home", "at_home:1.0.0", str(path)):
        assert load(f"tfds:{spec}").classes == ("cat", "dog")
    digits = {"image": tfds.features.Image(shape=(28, 28, 1)), "label": tfds.features.ClassLabel(num_classes=10)}
    data = io.BytesIO()
    Image.new("L", (28, 28)).save(data, "PNG")
    make(tmp_path / "tfds", digits, {"train": [{"image": data.getvalue(), "label": 7}]}, "mnist", "3.0.1")
    mnist = load("tfds:mnist")  # which TFDS has the code of, too
    assert mnist.classes == tuple("0123456789") and column(mnist, "label") == [7]
    shutil.rmtree(tmp_path / "tfds" / "mnist")
    for spec, message in {
        "mnits": "tfds:mnits: TFDS has no such set; did you mean mnist,",
        "mnist:9.9.9": "tfds:mnist:9.9.9: AssertionError: .* only: 3.0.1",
        str(path.parent): f"no dataset_info.json in it; give {path}",
        "/none/such": "no dataset_info.json in it; give a folder of TFDS",
    }.items():
        with pytest.raises(InputError, match=message) as error:
            load(f"tfds:{spec}")
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"leave task\.split empty"):
        load(f"tfds:{path}", split="x")
    builder = tfds.builder("mnist", data_dir=tmp_path / "tfds")

    def fails(self, **keys):
        raise ModuleNotFoundError("No module named 'tensorflow'\nand more")

    monkeypatch.setattr(type(builder), "download_and_prepare", fails)
    with pytest.raises(InputError) as error:
        load("tfds:mnist")
    assert str(error.value) == (
        "tfds:mnist: TFDS cannot prepare it here (ModuleNotFoundError: No module named 'tensorflow' and more); where "
        "TensorFlow is (pip install 'tljax[prepare]'), run "
        f"`tfds build mnist --file_format=array_record --data_dir={tmp_path / 'tfds'}`"
    )


def test_a_set_in_another_format_says_what_to_run(tmp_path):
    path = make(tmp_path, {"image": IMAGE, "label": TWO}, {"train": [{"image": picture(1), "label": 0}]})
    info = path / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(InputError) as error:
        load(f"tfds:{path}")
    assert str(error.value) == (
        f"tfds:{path}: is stored as tfrecord, which only TensorFlow reads: where it is (pip install 'tljax[prepare]'), "
        f"run `tfds convert_format --dataset_version_dir={path} --out_file_format=array_record`"
    )


def test_what_is_damaged(tmp_path):
    rows = [{"image": picture(i), "label": i % 2} for i in range(4)]
    rows[2]["image"] = b"no image"
    path = make(tmp_path, {"image": IMAGE, "label": TWO}, {"train": rows})
    with pytest.raises(InputError, match=r"train, record \d \(0000000\d\): not a readable image .*task.on_error=skip"):
        load(f"tfds:{path}")
    task = load(f"tfds:{path}", on_error="skip")
    assert len(task.bases["train"].index) == len(task.bases["train"].records) == 3 and len(task.skipped) == 1
    gone = int(task.skipped[0]["id"])
    assert column(task, "row") == [row for row in range(4) if row != gone]
    found = task.bases["train"].records.__getitems__([0, 1, 2])
    assert [len(one["image"]) for one in found] == column(task, "bytes")
    (shard,) = path.glob("*.array_record-*")
    whole = shard.read_bytes()
    for length in (1000, 2**16, len(whole) - 1):  # array_record reads a file that ends with a block as empty records
        shard.write_bytes(whole[:length])
        with pytest.raises(InputError, match=f"train, record 0.*: damaged .*; prepare {path} again with TFDS"):
            load(f"tfds:{path}")
    shard.unlink()
    with pytest.raises(InputError, match=f"{shard}: no such file, .*; prepare {path} again with TFDS"):
        load(f"tfds:{path}")
    (path / "features.json").write_text("{")
    with pytest.raises(InputError, match=f"tfds:{path}: damaged"):
        load(f"tfds:{path}")
