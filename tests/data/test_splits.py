import hashlib
import itertools

import numpy as np
import pytest

from tests.data.made import base, task
from tljax.config.schema import TaskConfig
from tljax.data import splits
from tljax.data.dataset import Split
from tljax.errors import InputError

# Chosen by sha256 alone: the same on every machine, whatever the version of NumPy.
FIVE_SHOTS = "74b26f25df5d88cd"
TENTH = "e0cb2e30095bff1a"
MNIST_FIVE = "fa1baa06d2c77d6f"
MNIST_TENTH = "b78208f14c194e7a"

CLASSES = ("ant", "bee", "cat")
LABELS = [(0, 1, 2, 0, 2, 1, 0)[i % 7] for i in range(97)]  # 41, 28 and 28 of the classes


def made(train: int = 97, **values):
    """97 examples in train, 20 in test."""
    bases = {"train": base(LABELS[:train], prefix="train/"), "test": base([0, 1] * 10, prefix="test/")}
    return task(bases, CLASSES, **values)


def rows(split: Split) -> list[tuple[str, list[int]]]:
    return [(name, part.tolist()) for name, part in split.rows]


def digest(split: Split) -> str:
    return hashlib.sha256("\n".join(sorted(split.ids)).encode()).hexdigest()[:16]


def counts(split: Split) -> list[int]:
    return np.bincount(split.labels, minlength=3).tolist()


@pytest.mark.parametrize(
    ("slicing", "expected"),
    {
        "train": [("train", range(97))],
        "train[:80%]": [("train", range(78))],  # 77.6
        "train[80%:]": [("train", range(78, 97))],
        "train[10:20]+test[:5]": [("train", range(10, 20)), ("test", range(5))],
        "test[-10%:]": [("test", range(18, 20))],
        "train[-3:]": [("train", range(94, 97))],
        "train[90:]+train[:2]": [("train", range(90, 97)), ("train", range(2))],
        "test[10%:20]": [("test", range(2, 4))],  # a unit at either end is that of both
    }.items(),
)
def test_a_slice_is_what_tfds_says_it_is(slicing, expected):
    assert rows(splits.cut(made(), slicing)) == [(name, list(part)) for name, part in expected]


@pytest.mark.parametrize(
    ("slicing", "message"),
    {
        "validation": "made: no split 'validation' (Unknown split 'validation'. Should be one of ['train', 'test']); "
        "it has {'train': 97, 'test': 20}",
        "train[:99]": "(Requested slice [:99] incompatible with 97 examples)",
        "train[5:5]": "no split 'train[5:5]' (it is empty)",
        "train[50:20]": "it is empty",
        "train[97:]": "it is empty",
        "train[": "Error parsing split 'train['",
        "train[:120%]": "Error parsing split",
        "train[1shard]": "shards cannot be sliced",
        "train[:10]+train[5:15]": "'train[:10]+train[5:15]' has examples of train twice; cut its slices apart",
        "train[:50]+test+train[20:30]": "examples of train twice",
        "train[:50]+test[:5]+vtab": "Unknown split 'vtab'",
        "vtab:train800": "made is no data set of VTAB",
    }.items(),
)
def test_a_slice_that_cannot_be_cut_is_one_line(slicing, message):
    with pytest.raises(InputError) as error:
        splits.cut(made(), slicing)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_shots_are_k_of_each_class_in_stored_order():
    train = splits.cut(made(), "train")
    for k in (1, 5, 28):
        kept = splits.shots(train, k, seed=0)
        assert counts(kept) == [k, k, k]
        assert np.all(np.diff(kept.rows[0][1]) > 0)
    assert rows(splits.shots(train, 2, seed=0)) == [("train", [13, 15, 57, 62, 81, 88])]
    ants = [f"train/{i}" for i, label in enumerate(LABELS) if label == 0]
    ants.sort(key=lambda name: hashlib.sha256(f"0\0train\0{name}".encode()).hexdigest())
    assert {*ants[:2]} == {"train/13", "train/62"}
    assert digest(splits.shots(train, 5, seed=0)) == FIVE_SHOTS
    assert splits.shots(train, 5, seed=0).name == "train, 5 of each class, seed 0"


def test_fewer_shots_are_some_of_more_and_another_seed_takes_others():
    train = splits.cut(made(), "train")
    for seed in range(5):
        kept = [set(splits.shots(train, k, seed).ids) for k in (1, 2, 5, 10, 28)]
        assert all(one < more for one, more in itertools.pairwise(kept))
        parts = [set(splits.fraction(train, part, seed).ids) for part in (0.01, 0.1, 0.25, 0.9, 1.0)]
        assert all(one < more for one, more in itertools.pairwise(parts))
    assert len({digest(splits.shots(train, 5, seed)) for seed in range(5)}) == 5


def test_what_is_added_displaces_but_never_reshuffles():
    before, after = (splits.shots(splits.cut(made(n), "train"), 5, seed=3) for n in (60, 97))
    gone = set(before.ids) - set(after.ids)
    come = set(after.ids) - set(before.ids)
    assert len(gone) == len(come)
    assert all(int(name.removeprefix("train/")) >= 60 for name in come)
    # Nor does the place in the order matter, only what an example is called.
    train = splits.cut(made(), "train[50:]+train[:50]")
    assert set(splits.shots(train, 5, seed=3).ids) == set(after.ids)


def test_shots_from_two_splits():
    kept = splits.shots(splits.cut(made(), "train[:20]+test"), 1, seed=0)
    assert counts(kept) == [1, 1, 1]
    assert len(kept) == 3


def test_a_fraction_is_stratified_and_leaves_no_class_empty():
    train = splits.cut(made(), "train")
    assert counts(train) == [41, 28, 28]
    assert counts(splits.fraction(train, 0.5, seed=0)) == [21, 14, 14]  # 20.5 of 41
    assert counts(splits.fraction(train, 0.1, seed=0)) == [4, 3, 3]
    assert counts(splits.fraction(train, 0.001, seed=0)) == [1, 1, 1]
    assert digest(splits.fraction(train, 0.1, seed=0)) == TENTH
    whole = splits.fraction(train, 1.0, seed=0)
    assert rows(whole) == rows(train)


def test_a_fraction_of_targets_is_of_all_examples():
    regression = task({"train": base([[i / 7] for i in range(40)])}, ("height",), "regression")
    many = task({"train": base([[0, 2], [], [1], [0]] * 10)}, CLASSES, "multi_label")
    for made_task in (regression, many):
        train = splits.cut(made_task, "train")
        assert len(splits.fraction(train, 0.25, seed=0)) == 10
        assert len(splits.fraction(train, 0.001, seed=0)) == 1
        with pytest.raises(InputError, match=r"task.shots needs one class per example, made is .*; take task.fraction"):
            splits.shots(train, 1, seed=0)


def test_a_subset_that_cannot_be_had_is_named():
    train = splits.cut(made(), "train[:8]")
    with pytest.raises(
        InputError, match=r"task.shots=3 is too many: of train\[:8\], class 'bee' has 2, class 'cat' has 2; take fewer"
    ):
        splits.shots(train, 3, seed=0)
    with pytest.raises(InputError, match="class 'cat' has 0"):
        splits.shots(splits.cut(made(), "test"), 1, seed=0)
    for part in (0.0, -0.5, 1.5):
        with pytest.raises(InputError, match="must be above 0 and at most 1"):
            splits.fraction(train, part, seed=0)
    with pytest.raises(InputError, match=r"task\.shots=-1 must be at least 1"):
        splits.shots(train, -1, seed=0)


def test_a_config_names_the_splits():
    found = splits.make_splits(made(), TaskConfig(train="train[:80%]", validation="train[80%:]", test="test"))
    assert {name: len(split) for name, split in found.items()} == {"train": 78, "validation": 19, "test": 20}
    assert list(splits.make_splits(made(), TaskConfig(test=""))) == ["train"]
    few = splits.make_splits(made(), TaskConfig(train="train[:80%]", validation="train[80%:]", shots=5, subset_seed=1))
    assert counts(few["train"]) == [5, 5, 5]
    assert few["train"].ids == splits.shots(splits.cut(made(), "train[:80%]"), 5, seed=1).ids
    assert len(few["validation"]) == 19
    part = splits.make_splits(made(), TaskConfig(fraction=0.5))
    assert counts(part["train"]) == [21, 14, 14]


@pytest.mark.parametrize(
    ("names", "values", "expected"),
    [
        (("train", "validation", "test"), {}, ("validation", "test")),
        (("train", "dev", "test"), {}, ("dev", "test")),
        (("train", "val"), {}, ("val", "")),
        (("train", "Valid", "validation"), {}, ("validation", "")),
        (("train", "test"), {}, ("", "test")),
        (("train",), {"train": "train[:80%]"}, ("", "")),
        (("train", "validation", "test"), {"validation": "", "test": ""}, ("", "")),
        (("train", "validation", "test"), {"test": "validation"}, ("", "validation")),  # whose test has no labels
        (("train", "validation", "test"), {"train": "train+validation[:3]"}, ("", "test")),
        (("train", "validation", "test"), {"train": "all"}, ("", "")),
        (("train", "validation", "test"), {"train": "train[:9]", "validation": "train[9:]"}, ("train[9:]", "test")),
        (("train", "validation", "test"), {"train": "vtab:train800", "validation": "vtab:val200"}, ("vtab:val200", "")),
        (("train", "validation_matched"), {}, ("", "")),
    ],
)
def test_what_a_config_leaves_unset_is_the_data_sets_own(names, values, expected):
    data = task({name: base(LABELS[:20], prefix=f"{name}/") for name in names}, CLASSES)
    resolved = splits.with_own_splits(data, TaskConfig(**values))
    assert (resolved.validation, resolved.test) == expected
    assert splits.with_own_splits(data, resolved) == resolved


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"train": "train[:80%]", "validation": "train[70%:]"},
            "task.train='train[:80%]' and task.validation='train[70%:]' share 10 examples "
            "(train/68, train/69, train/70 …); cut them apart",
        ),
        ({"train": "train+test[:1]", "test": "test"}, "task.test='test' share 1 examples (test/0); cut them apart"),
        ({"train": "train[:5]", "validation": "train[5:9]", "test": "train[8:12]"}, "share 1 examples (train/8)"),
        # No seed hides a leak: one shot of each class would seldom hit these.
        ({"train": "train", "validation": "train[96:]", "shots": 1}, "share 1 examples (train/96)"),
        (
            {"validation": "test[:50%]", "test": "test[50%:]"},
            "'test[:50%]' is cut from the test set; cut it from train",
        ),
        ({"validation": "train[:0]+test"}, "it is empty"),
        ({"shots": 1, "fraction": 0.5}, "task.shots=1 and task.fraction=0.5: set one of them"),
        ({"shots": 29}, "class 'bee' has 28, class 'cat' has 28"),
        ({"fraction": 2.0}, "task.fraction=2.0 must be"),
        ({"shots": -1}, "task.shots=-1 must be at least 1"),
    ],
)
def test_a_config_that_would_mislead_is_refused(values, message):
    with pytest.raises(InputError) as error:
        splits.make_splits(made(), TaskConfig(**values))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_subsets_of_mnist_5k_are_pinned():
    # The names and labels of the data set; no picture is needed to choose, and no order either.
    names = [f"{i:04d}" for i in range(5000)]
    mnist = task({"train": base([i // 500 for i in range(5000)], id=names)}, tuple("0123456789"), name="mnist_5k")
    train = splits.cut(mnist, "train")
    assert digest(splits.shots(train, 5, seed=0)) == MNIST_FIVE
    assert digest(splits.fraction(train, 0.1, seed=0)) == MNIST_TENTH
