"""Data in memory: the same examples give the same name and the same run, whatever holds them."""

import datasets
import grain.python as grain
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import tljax
from tljax.config.schema import TaskConfig
from tljax.config.serialization import build
from tljax.data import registry
from tljax.data.dataset import Task

CLASSES = ["dark", "light"]


def _load(name: str, problem: str = "single_label") -> Task:
    return registry.load(build(TaskConfig, {"dataset": name, "problem": problem}, "task"))


def _labels(task: Task, split: str = "train") -> dict[str, object]:
    index = task.bases[split].index
    return dict(zip(index.column("id").to_pylist(), index.column("label").to_pylist(), strict=True))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3)).astype(np.uint8)


def test_pictures_come_back_as_they_were(images, tmp_path):
    labels = [0, 1, 1, 0, 1, 0]
    name = tljax.from_arrays(images=images, labels=np.array(labels), classes=CLASSES)
    task = _load(name)
    assert task.classes == tuple(CLASSES) and list(_labels(task).values()) != []
    base = task.bases["train"]
    for row, id in enumerate(base.index.column("id").to_pylist()):
        content = base.records.__getitems__([row])[0]["image"]
        import io

        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), images[int(id)])
        assert base.index.column("label")[row].as_py() == labels[int(id)]
    assert tljax.from_arrays(images=list(images), labels=labels, classes=CLASSES) == name
    assert tljax.from_arrays(images=images[::-1], labels=labels, classes=CLASSES) != name
    assert tljax.from_arrays(images=images, labels=labels[::-1], classes=CLASSES) != name
    words = tljax.from_arrays(images=images, labels=[CLASSES[label] for label in labels])
    assert _labels(_load(words)) == _labels(task)
    # Files keep their own bytes.
    paths = []
    for i, picture in enumerate(images):
        paths.append(tmp_path / f"{i}.bmp")
        Image.fromarray(picture).save(paths[-1])
    files = _load(tljax.from_arrays(images=paths, labels=labels)).bases["train"]
    assert {files.records.__getitems__([row])[0]["image"] for row in range(6)} == {path.read_bytes() for path in paths}


def test_splits_and_texts(images):
    task = _load(tljax.from_arrays(images=images, labels=list("ababab"), splits=["train"] * 4 + ["test"] * 2))
    assert {split: len(base.index) for split, base in task.bases.items()} == {"train": 4, "test": 2}
    task = _load(tljax.from_arrays(texts=["a", "b"], text_pairs=["c", "d"], labels=["x", "y"]))
    assert task.pairs and task.bases["train"].records.__getitems__([0])[0].keys() == {"text", "text_pair"}


def test_several_labels_and_values(images):
    name = tljax.from_arrays(
        images=images, labels=np.eye(3, dtype=int)[[0, 1, 2, 0, 1, 2]], problem="multi_label", classes=list("xyz")
    )
    assert _labels(_load(name, "multi_label"))["00000001"] == [1]
    name = tljax.from_arrays(images=images, labels=np.linspace(0, 1, 6), problem="regression")
    assert _labels(_load(name, "regression"))["00000005"] == [1.0]
    with pytest.raises(tljax.InputError, match=r"is regression: set task\.problem=regression"):
        _load(name)


def test_other_libraries_hold_the_same_examples():
    texts, labels = ["good", "bad", "fine", "dull"], ["yes", "no", "yes", "no"]
    name = tljax.from_arrays(texts=texts, labels=labels)
    rows = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
    frame = pd.DataFrame(rows).rename(columns={"text": "words", "label": "liked"})
    hub = datasets.Dataset.from_list(rows)
    assert tljax.from_examples(rows) == name
    assert tljax.from_examples(frame, text="words", label="liked") == name
    assert tljax.from_examples({"train": hub}) == tljax.from_examples(hub) == name
    assert tljax.from_examples(grain.MapDataset.source(rows)) == name
    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["no", "yes"]))
    numbered = datasets.Dataset.from_list([row | {"label": int(row["label"] == "yes")} for row in rows], features)
    task = _load(tljax.from_examples(datasets.DatasetDict(train=numbered, test=numbered)))
    assert task.classes == ("no", "yes") and _labels(task) == _labels(_load(name)) and "test" in task.bases


def test_pictures_of_a_hugging_face_data_set(images):
    rows = {"picture": [Image.fromarray(picture) for picture in images], "label": [0, 1] * 3}
    features = datasets.Features(picture=datasets.Image(), label=datasets.ClassLabel(names=CLASSES))
    name = tljax.from_examples(datasets.Dataset.from_dict(rows, features), image="picture")
    assert _load(name).classes == tuple(CLASSES)
    assert _labels(_load(name)) == _labels(_load(tljax.from_arrays(images=images, labels=[0, 1] * 3, classes=CLASSES)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: tljax.from_arrays(labels=[0]), "give images or texts"),
        (lambda x: tljax.from_arrays(images=x, labels=[0]), "lists of different lengths: image 6, label 1"),
        (
            lambda x: tljax.from_arrays(images=x / 255, labels=[0] * 6),
            "image[0] of train: image is float64 [8, 8, 3]: give a path",
        ),
        (lambda x: tljax.from_arrays(images=["no.png"], labels=[0]), "image[0] of train: no.png: cannot be read"),
        (lambda x: tljax.from_arrays(texts=["a", " "], labels=["x", "y"]), "1 of 2 texts are empty: text[1] of train"),
        (lambda x: tljax.from_arrays(images=x, labels=["dark", "lite"] * 3, classes=CLASSES), "'lite' is none of"),
        (lambda x: tljax.from_examples([{"text": "a", "y": 1}]), "train[0] has no field 'label'; it has text, y"),
        (lambda x: tljax.from_examples([]), "train has no examples"),
        (lambda x: _load("memory:0123456789abcdef"), "is not in the cache (any more): call tljax.from_arrays"),
    ],
)
def test_what_cannot_be_is_named(images, call, message):
    with pytest.raises(tljax.InputError) as error:
        call(images)
    assert message in str(error.value)
