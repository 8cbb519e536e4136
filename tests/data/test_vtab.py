import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from tests.data.made import base, task
from tljax.config.schema import TaskConfig
from tljax.data import splits
from tljax.data.sources import vtab
from tljax.errors import InputError

PINNED = json.loads((Path(__file__).parent / "vtab_rows.json").read_text())


def digest(name: str, part: str) -> str:
    """sha256 over each split's name and its rows as 64-bit little-endian integers."""
    found = hashlib.sha256()
    for split, rows in vtab.rows(name, part).items():
        found.update(split.encode() + rows.astype("<i8").tobytes())
    return found.hexdigest()


@pytest.mark.parametrize("name", vtab.TASKS)
def test_rows_are_pinned(name):
    assert {part: digest(name, part) for part in vtab.PARTS} == PINNED[name]


# What task_adaptation's own tests count in `val`, after which 200 are taken, and in `test`.
COUNTED = {
    "caltech101": (306, 6084, 102),
    "cifar100": (5000, 10_000, 100),
    "clevr_count": (7000, 15_000, 8),
    "clevr_distance": (7000, 15_000, 6),
    "diabetic_retinopathy": (10_906, 42_670, 5),
    "dmlab": (22_628, 22_735, 6),
    "dsprites_location": (73_728, 73_728, 16),
    "dsprites_orientation": (73_728, 73_728, 16),
    "dtd": (1880, 1880, 47),
    "eurosat": (5400, 5400, 10),
    "kitti_distance": (423, 711, 4),
    "oxford_flowers102": (1020, 6149, 102),
    "oxford_iiit_pet": (736, 3669, 37),
    "patch_camelyon": (32_768, 32_768, 2),
    "resisc45": (6300, 6300, 45),
    "smallnorb_azimuth": (12_150, 12_150, 18),
    "smallnorb_elevation": (12_150, 12_150, 9),
    "sun397": (10_875, 21_750, 397),
    "svhn": (7326, 26_032, 10),
}


@pytest.mark.parametrize("name", vtab.TASKS)
def test_rows_are_apart_and_as_many_as_vtab_counts(name):
    validation, test, classes = COUNTED[name]
    parts = {part: vtab.rows(name, part) for part in vtab.PARTS}
    assert [sum(map(len, parts[part].values())) for part in vtab.PARTS] == [800, 200, 1000, test]
    places = {part: {(split, row) for split, rows in found.items() for row in rows} for part, found in parts.items()}
    assert places["train800val200"] == places["train800"] | places["val200"]
    assert not places["train800val200"] & places["test"]
    assert vtab.TASKS[name].classes == classes
    sizes = vtab.ROWS[vtab.TASKS[name].dataset].sizes
    assert all(row < sizes[split] for split, row in set.union(*places.values()))
    ((split, rows),) = parts["val200"].items()
    assert sizes[split] - rows[0] - (test if split in parts["test"] else 0) == validation


def test_the_benchmark_is_whole():
    assert len(vtab.TASKS) == 19
    assert {row.dataset for row in vtab.TASKS.values()} == set(vtab.ROWS)
    derived = {row.label.removeprefix("vtab:"): row for row in vtab.TASKS.values() if row.label.startswith("vtab:")}
    assert derived.keys() == vtab.LABELS.keys()
    for name, row in derived.items():
        assert (len(vtab.LABELS[name].classes), vtab.LABELS[name].dataset) == (row.classes, row.dataset)


def prepared(name: str, **sizes: int):
    """A task of that name; TFDS's sizes of `dtd` unless given."""
    sizes = sizes or {"train": 1880, "validation": 1880, "test": 1880}
    bases = {split: base([0] * count, prefix=f"{split}/") for split, count in sizes.items()}
    return task(bases, ("banded",), name=name)


def test_a_task_that_tfds_prepared_is_cut():
    for name in ("tfds:dtd", "tfds:dtd:3.0.1", "tfds:/data/dtd/3.0.1", "tfds:~/data/dtd/3.0.1/", "tfds:dtd/"):
        for part in vtab.PARTS:
            split = splits.cut(prepared(name), f"vtab:{part}")
            wanted = vtab.rows("dtd", part)
            assert [name for name, _ in split.rows] == list(wanted)
            for split_name, rows in split.rows:
                np.testing.assert_array_equal(rows, wanted[split_name])
    split = splits.cut(prepared("tfds:dtd"), "vtab:train800val200")
    assert split.ids == [f"train/{i}" for i in range(800)] + [f"validation/{i}" for i in range(200)]


def test_a_config_of_the_protocol():
    chosen = {"train": "vtab:train800", "validation": "vtab:val200", "test": "vtab:test"}
    norb = prepared("tfds:smallnorb:2.0.0", train=24_300, test=24_300)
    found = splits.make_splits(norb, TaskConfig(**chosen))  # its validation is of TFDS's test split, by definition
    assert [(name, split.rows[0][0], len(split)) for name, split in found.items()] == [
        ("train", "train", 800),
        ("validation", "test", 200),
        ("test", "test", 12_150),
    ]
    with pytest.raises(InputError, match="share 200 examples"):
        splits.make_splits(prepared("tfds:dtd"), TaskConfig(**chosen | {"train": "vtab:train800val200"}))


@pytest.mark.parametrize(
    ("made", "part", "message"),
    [
        (("tfds:dtd",), "train1000", "no split 'vtab:train1000'; there are: vtab:train800, vtab:val200"),
        (("dtd",), "test", "dtd is no data set of VTAB; tfds: and one of: caltech101"),
        (("folder:/data/dtd",), "test", "is no data set of VTAB"),
        (("tfds:mydtd",), "test", "is no data set of VTAB"),
        (("tfds:eurosat/all",), "test", "is no data set of VTAB; tfds: and one of:"),
        (("tfds:dtd:1.0.0",), "test", "vtab:test is defined for dtd 3.*.*, not 1.0.0 (tfds:dtd:1.0.0)"),
        (("tfds:/data/dtd/4.0.0",), "test", "not 4.0.0 (tfds:/data/dtd/4.0.0): prepare that version with TFDS"),
    ],
)
def test_what_vtab_does_not_define_is_named(made, part, message):
    with pytest.raises(InputError) as error:
        splits.cut(prepared(*made), f"vtab:{part}")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_sizes_are_checked():
    with pytest.raises(InputError) as error:
        splits.cut(prepared("tfds:dtd", train=1880, test=1880), "vtab:train800")
    assert str(error.value) == (
        "vtab:train800 is defined for dtd 3.*.* with {'train': 1880, 'validation': 1880, 'test': 1880} examples, "
        "tfds:dtd has {'train': 1880, 'validation': 0, 'test': 1880}"
    )
    # A split that the lists do not use may be there or not.
    svhn = prepared("tfds:svhn_cropped", train=73_257, test=26_032, extra=10)
    assert len(splits.cut(svhn, "vtab:val200")) == 200


def test_objects_are_counted():
    label = vtab.LABELS["clevr_count"]
    for count in (3, 4, 10):
        assert label.classes[label.derive({"size": [0] * count})] == str(count)


def test_the_nearest_object_is_found():
    label = vtab.LABELS["clevr_distance"]
    for distance, name in {7.9: "0-8", 8.0: "0-8", 8.1: "8-8.5", 9.2: "9-9.5", 10.0: "9.5-10", 10.5: "over 10"}.items():
        place = np.array([[0, 0, 12], [300, 200, distance]], np.float32)
        assert label.classes[label.derive({"pixel_coords": list(place)})] == name


def test_the_nearest_vehicle_is_found():
    label = vtab.LABELS["kitti_distance"]
    van, pedestrian = 1, 3
    for objects, name in {
        ((van, 1.0),): "under 8 m",
        ((van, 8.0),): "under 8 m",
        ((van, 10.0),): "8-20 m",
        ((van, 30.0),): "over 20 m",
        ((pedestrian, 1.0),): "no vehicle",
        ((pedestrian, 1.0), (van, 30.0)): "over 20 m",
        ((van, 30.0), (van, 1.0)): "under 8 m",
        (): "no vehicle",
    }.items():
        found = {"type": [kind for kind, _ in objects], "location": [np.array([0, 0, z]) for _, z in objects]}
        assert label.classes[label.derive(found)] == name


def test_dsprites_positions_and_turns_are_joined():
    place, turn = vtab.LABELS["dsprites_location"], vtab.LABELS["dsprites_orientation"]
    assert [place.derive(np.int64(x)) for x in range(32)] == sorted([*range(16), *range(16)])
    turns = [turn.derive(np.int64(x)) for x in range(40)]
    assert turns[:8] == [0, 0, 0, 1, 1, 2, 2, 2]
    assert np.bincount(turns).tolist() == [3, 2] * 8
