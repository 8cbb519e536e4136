"""A data set and an augmentation of the user's own, by name: nothing of tljax is edited."""

import argparse

import my_augmentation
import my_dataset
import numpy as np
import pytest

from tests.conftest import tiny_run
from tljax.checkpoints.workdir import Workdir
from tljax.cli import flags
from tljax.config.references import source_hash
from tljax.config.schema import TaskConfig
from tljax.data import registry
from tljax.data.preprocessing import Preprocessing
from tljax.data.readers import ImageReader
from tljax.data.splits import cut
from tljax.errors import InputError
from tljax.training.trainer import train

DRAWINGS, DARKEN = "my_dataset:drawings", "my_augmentation:darken"
CONFIG = f"""
from tljax.config import default

def get_config():
    config = default()
    config.task.dataset = "{DRAWINGS}"
    config.task.dataset_args.count = 3
    return config
"""


def reviews() -> dict:
    """Four texts with the numbers of their classes."""
    texts = [("good", 1), ("bad", 0), ("so good", 1), ("so bad", 0)]
    return {"classes": ["no", "yes"], "splits": {"train": [{"text": text, "label": label} for text, label in texts]}}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TLJAX_CACHE", str(tmp_path / "cache"))


def load(dataset=DRAWINGS, **values):
    return registry.load(TaskConfig(dataset=dataset, **{"dataset_args": {"count": 3}} | values))


def test_examples_are_counted_and_have_the_values_of_the_function():
    task, data = load(), my_dataset.drawings(count=3)
    assert task.classes == ("disc", "square")
    for split, examples in data["splits"].items():
        train = cut(task, split)
        assert len(train) == 6 and np.bincount(train.labels).tolist() == [3, 3]
        read = ImageReader(train, Preprocessing(size=32), TaskConfig(), training=False)
        for place, id in enumerate(train.ids):
            example = examples[int(id)]
            np.testing.assert_array_equal(read([place])[0], example["image"])
            assert task.classes[train.labels[place]] == example["label"]


def test_texts_may_have_numbers_of_classes():
    train = cut(load("tests.extending.test_data:reviews", dataset_args={}), "train")
    assert sorted((example["text"], int(example["label"])) for example in train) == [
        ("bad", 0),
        ("good", 1),
        ("so bad", 0),
        ("so good", 1),
    ]


def test_arguments_and_content_make_another_data_set():
    assert load().fingerprint == load().fingerprint
    assert load().fingerprint != load(dataset_args={"count": 3, "seed": 1}).fingerprint


def test_an_augmentation_changes_training_images_as_it_says():
    train = cut(load(), "train")
    plain, dark = (
        ImageReader(train, Preprocessing(size=32), TaskConfig(augment=augment), training=True)
        for augment in ((), (DARKEN,))
    )
    pictures = dark(range(6), [0] * 6)
    assert (pictures <= plain(range(6), [0] * 6)).all() and pictures.sum() < plain(range(6), [0] * 6).sum()
    np.testing.assert_array_equal(pictures[2:4], dark([2, 3], [0, 0]))
    assert dark.recipe != plain.recipe


def test_a_run_resumes_on_the_same_data_and_on_no_other(tmp_path, monkeypatch):
    values = {"task__dataset_args": {"count": 8}, "task__augment": (DARKEN,), "task__test": "test"}
    run = tiny_run(DRAWINGS, **values)
    result = train(run.experiment, tmp_path / "run", prepared=run)
    assert result["splits"]["test"]["count"] == 16
    experiment, resolved = Workdir(tmp_path / "run").load()
    assert experiment == run.experiment and resolved == run.resolved
    references = {DARKEN: source_hash(my_augmentation.darken), DRAWINGS: source_hash(my_dataset.drawings)}
    assert Workdir(tmp_path / "run").origin["references"] == references
    inputs = type(run.inputs)(experiment, resolved)
    assert inputs.task.fingerprint == resolved.data
    drawings = my_dataset.drawings
    monkeypatch.setattr(my_dataset, "drawings", lambda *, count: drawings(count=count, seed=1))
    with pytest.raises(InputError, match="is not the data that this run was trained on"):
        type(run.inputs)(experiment, resolved).task  # noqa: B018


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"dataset": "tests.extending.test_dat:reviews"},
            "no module tests.extending.test_dat .did you mean test_data",
        ),
        (
            {"dataset": "my_dataset:drawing"},
            "my_dataset has no drawing .did you mean drawings",
        ),
        ({"dataset_args": {"count": 3, "sise": 8}}, "takes no task.dataset_args.sise .did you mean size"),
        ({"dataset_args": {}}, "task.dataset_args.count is required by my_dataset:drawings"),
        ({"classes": ("a",)}, "has no columns, so task.classes names none"),
        ({"dataset": "mnist_5k"}, "task.dataset_args are of a function, and mnist_5k is none"),
        ({"dataset": "my_augmentation:darken", "dataset_args": {}}, "write ., before the first"),
    ],
)
def test_errors_are_one_line_that_names_the_thing(values, message):
    with pytest.raises(InputError, match=message) as caught:
        load(**values)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ({"image": np.zeros((8, 8)), "label": 0}, r"train\[0\]: image is float64 \[8, 8\]: give a path"),
        ({"image": "nowhere.png", "label": 0}, "nowhere.png: cannot be read"),
        ({"image": np.zeros((8, 8), np.uint8), "label": "c"}, "label 'c' is none of its classes"),
        ({"image": np.zeros((8, 8), np.uint8), "label": 2}, "label 2 is none of the classes 0 to 1"),
        ({"image": np.zeros((8, 8), np.uint8), "label": [0]}, "none of the classes 0 to 1"),
        ({"image": np.zeros((8, 8), np.uint8)}, "has no 'label'"),
        ({"label": 0}, "one is a dict with image or text, and label"),
    ],
)
def test_an_example_that_cannot_be_used_is_named(example, message, monkeypatch):
    monkeypatch.setattr(my_dataset, "drawings", lambda: {"classes": ["a", "b"], "splits": {"train": [example]}})
    with pytest.raises(InputError, match=message):
        load(dataset_args={})


@pytest.mark.parametrize(
    ("name", "augment", "message"),
    [
        ("halve", lambda picture, rng: picture / 2, r"returned float64 \[32, 32, 3\]: return uint8 \[32, 32, 3\]"),
        ("cut", lambda picture, rng: picture[:8], r"returned uint8 \[8, 32, 3\]: return uint8 \[32, 32, 3\]"),
    ],
)
def test_an_augmentation_must_return_such_a_picture(name, augment, message, monkeypatch):
    monkeypatch.setattr(my_augmentation, name, augment, raising=False)
    config = TaskConfig(augment=(f"my_augmentation:{name}",))
    read = ImageReader(cut(load(), "train"), Preprocessing(size=32), config, training=True)
    with pytest.raises(InputError, match=message):
        read([0], [0])


def test_arguments_come_from_the_command_line(tmp_path):
    config = tmp_path / "config.py"
    config.write_text(CONFIG)
    flags_given = [f"--config={config}", "--config.steps=1"]
    parsed, _ = flags.parse_experiment(argparse.ArgumentParser(), flags_given)
    assert parsed.task.dataset_args == {"count": 3}
    flags_given += [f"--config.task.dataset={DRAWINGS}", "--config.task.dataset_args.count=4"]
    flags_given += [f"--config.task.augment=('{DARKEN}',)"]
    experiment, _ = flags.parse_experiment(argparse.ArgumentParser(), flags_given)
    assert experiment.task.dataset_args == {"count": 4} and experiment.task.augment == (DARKEN,)
    other, _ = flags.parse_experiment(argparse.ArgumentParser(), [*flags_given[:3], "--config.task.dataset=csv:x"])
    assert (other.task.dataset, other.task.dataset_args) == ("csv:x", {})
    with pytest.raises(InputError, match=r"count.*many"):
        flags.parse_experiment(argparse.ArgumentParser(), [*flags_given[:3], "--config.task.dataset_args.count=many"])
    with pytest.raises(InputError, match=r"no config.task.augment\[0\] 'flop' \(did you mean flip"):
        flags.parse_experiment(argparse.ArgumentParser(), [*flags_given[:-1], "--config.task.augment=('flop',)"])
