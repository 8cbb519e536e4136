"""VTAB-1k (1910.04867): 19 tasks of 1000 training images each, the rows as google-research/task_adaptation cuts them.

Every list is a range of rows in the order in which TFDS stores a split, and random only because TFDS sorts by a hash of
each example's key. So it is the published one only of a data set that TFDS prepared (`tfds:NAME` or `tfds:PATH`). One
draw is TFDS's own: `caltech101` is parted into train and test as it is prepared, from the order of a directory listing,
and may differ by machine.

The protocol: choose hyperparameters on `vtab:train800` and `vtab:val200`, train again on `vtab:train800val200`, report
`vtab:test`. Classes are missing from the 1000 examples of some tasks (`sun397` has most), which is VTAB's doing.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tljax.data.dataset import Task
from tljax.errors import InputError

PARTS = ("train800", "val200", "train800val200", "test")

Slices = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class Rows:
    """The rows of a TFDS data set by split of the benchmark.

    Attributes:
        versions: majors of TFDS's version that they hold for; by TFDS's rules a minor one moves no example.
        sizes: of the splits that they are cut from.
        val200, test: (split, from, to).
    """

    versions: tuple[str, ...]
    sizes: Mapping[str, int]
    val200: tuple[str, int, int]
    test: tuple[str, int, int]


@dataclass(frozen=True)
class VtabTask:
    """A task of the benchmark.

    Attributes:
        dataset: TFDS's name, a key of `ROWS`.
        classes: how many.
        label: the feature that is the label, or `vtab:NAME`, a row of `LABELS`: what `task.label` takes.
    """

    dataset: str
    classes: int
    label: str = "label"


def _three(version: str, train: int, validation: int, test: int) -> Rows:
    sizes = {"train": train, "validation": validation, "test": test}
    return Rows((version,), sizes, ("validation", 0, 200), ("test", 0, test))


def _two(version: str, train: int, test: int, kept: int, held_out: str = "test") -> Rows:
    """Validation is what follows the first `kept` rows of train."""
    return Rows((version,), {"train": train, held_out: test}, ("train", kept, kept + 200), (held_out, 0, test))


def _rows_of(version: str, count: int, kept: int, tested: int) -> Rows:
    """Validation follows the first `kept` rows of the only split, the test set is its last `tested` rows."""
    return Rows((version,), {"train": count}, ("train", kept, kept + 200), ("train", count - tested, count))


ROWS: dict[str, Rows] = {
    "caltech101": _two("3", 3060, 6084, kept=2754),
    "cifar100": _two("3", 50_000, 10_000, kept=45_000),
    "clevr": _two("3", 70_000, 15_000, kept=63_000, held_out="validation"),  # its test split has no objects
    "diabetic_retinopathy_detection/btgraham-300": _three("3", 35_126, 10_906, 42_670),
    "dmlab": _three("2", 65_550, 22_628, 22_735),
    # Its pixels are 0 and 1, which VTAB multiplies by 255.
    "dsprites": _rows_of("2", 737_280, kept=589_824, tested=73_728),
    "dtd": _three("3", 1880, 1880, 1880),
    "eurosat/rgb": _rows_of("2", 27_000, kept=16_200, tested=5400),
    "kitti": _three("3", 6347, 423, 711),
    "oxford_flowers102": _three("2", 1020, 1020, 6149),
    # VTAB asks for 3. 4 re-encodes damaged pictures and adds boxes, under the same keys and so in the same order.
    "oxford_iiit_pet": Rows(
        ("3", "4"), {"train": 3680, "test": 3669}, val200=("train", 2944, 3144), test=("test", 0, 3669)
    ),
    "patch_camelyon": _three("2", 262_144, 32_768, 32_768),
    "resisc45": _rows_of("3", 31_500, kept=18_900, tested=6300),
    # Validation comes from test, whose other half is the test set: other instances of the toys than in train.
    "smallnorb": Rows(
        ("2",), {"train": 24_300, "test": 24_300}, val200=("test", 0, 200), test=("test", 12_150, 24_300)
    ),
    "sun397/tfds": _three("4", 76_128, 10_875, 21_750),
    "svhn_cropped": _two("3", 73_257, 26_032, kept=65_931),
}

TASKS: dict[str, VtabTask] = {
    "caltech101": VtabTask("caltech101", 102),
    "cifar100": VtabTask("cifar100", 100),
    "clevr_count": VtabTask("clevr", 8, "vtab:clevr_count"),
    "clevr_distance": VtabTask("clevr", 6, "vtab:clevr_distance"),
    "diabetic_retinopathy": VtabTask("diabetic_retinopathy_detection/btgraham-300", 5),
    "dmlab": VtabTask("dmlab", 6),
    "dsprites_location": VtabTask("dsprites", 16, "vtab:dsprites_location"),
    "dsprites_orientation": VtabTask("dsprites", 16, "vtab:dsprites_orientation"),
    "dtd": VtabTask("dtd", 47),
    "eurosat": VtabTask("eurosat/rgb", 10),
    "kitti_distance": VtabTask("kitti", 4, "vtab:kitti_distance"),
    "oxford_flowers102": VtabTask("oxford_flowers102", 102),
    "oxford_iiit_pet": VtabTask("oxford_iiit_pet", 37),
    "patch_camelyon": VtabTask("patch_camelyon", 2),
    "resisc45": VtabTask("resisc45", 45),
    "smallnorb_azimuth": VtabTask("smallnorb", 18, "label_azimuth"),
    "smallnorb_elevation": VtabTask("smallnorb", 9, "label_elevation"),
    "sun397": VtabTask("sun397/tfds", 397),
    "svhn": VtabTask("svhn_cropped", 10),
}


def slices(dataset: str, part: str) -> Slices:
    """Returns (split, from, to) of a part of `PARTS`, one after another; `dataset` is a key of `ROWS`."""
    rows = ROWS[dataset]
    train = ("train", 0, 800)
    return {
        "train800": (train,),
        "val200": (rows.val200,),
        "train800val200": (train, rows.val200),
        "test": (rows.test,),
    }[part]


def rows(name: str, part: str) -> dict[str, np.ndarray]:
    """Lists the rows of each split of a task, int64, ascending; `name` is a key of `TASKS`, `part` is of `PARTS`."""
    parts: dict[str, list[np.ndarray]] = {}
    for split, start, stop in slices(TASKS[name].dataset, part):
        parts.setdefault(split, []).append(np.arange(start, stop))
    return {split: np.concatenate(arrays) for split, arrays in parts.items()}


def find(task: Task, part: str) -> Slices:
    """Returns the slices of `vtab:PART` of a task that TFDS prepared.

    Raises:
        InputError: no such part; the data set is none of VTAB's, or its version or sizes are not those of the lists.
    """
    if part not in PARTS:
        raise InputError(f"no split 'vtab:{part}'; there are: {', '.join('vtab:' + name for name in PARTS)}")
    dataset, version = _dataset_and_version(task.name)
    if dataset is None:
        raise InputError(f"{task.name} is no data set of VTAB; tfds: and one of: {', '.join(ROWS)}")
    row = ROWS[dataset]
    asked = f"vtab:{part} is defined for {dataset} {' or '.join(f'{major}.*.*' for major in row.versions)}"
    if version and version.split(".")[0] not in row.versions:
        raise InputError(f"{asked}, not {version} ({task.name}): prepare that version with TFDS")
    sizes = {split: len(task.bases[split].index) if split in task.bases else 0 for split in row.sizes}
    if sizes != row.sizes:
        skipped = f" ({len(task.skipped)} were skipped)" if task.skipped else ""
        raise InputError(f"{asked} with {dict(row.sizes)} examples, {task.name} has {sizes}{skipped}")
    return slices(dataset, part)


def _dataset_and_version(name: str) -> tuple[str | None, str]:
    """Returns the key of `ROWS`, and the version, in `tfds:NAME[/CONFIG][:VERSION]` or `tfds:PATH/NAME[/CONFIG]/…`."""
    kind, _, rest = name.partition(":")
    path, _, version = rest.partition(":")
    parts = path.rstrip("/").split("/")
    if re.fullmatch(r"\d+\.\d+\.\d+", parts[-1]):
        version = version or parts.pop()
    for dataset in ROWS:
        if kind == "tfds" and parts[-dataset.count("/") - 1 :] == dataset.split("/"):
            return dataset, version
    return None, version


@dataclass(frozen=True)
class Label:
    """A label that VTAB derives from another feature; the splits in `ROWS[dataset].sizes` have that one.

    Attributes:
        dataset: TFDS's name.
        feature: the one that it is derived from, beside the image the only one to read.
        classes: names, in label order.
        derive: from the feature's value, as TFDS decodes it, to the class.
    """

    dataset: str
    feature: str
    classes: tuple[str, ...]
    derive: Callable[[Any], int]


def _clevr_count(objects: Mapping[str, Any]) -> int:
    """A scene has 3 to 10 objects."""
    return len(objects["size"]) - 3


_CLEVR = (0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0)


def _clevr_distance(objects: Mapping[str, Any]) -> int:
    """Returns the interval of the nearest object's distance to the camera, the third of its pixel coordinates."""
    return _interval(min(float(place[2]) for place in objects["pixel_coords"]), _CLEVR)


_KITTI = (-100.0, 8.0, 20.0, 999.0)
_VEHICLES = 3  # Car, Van and Truck come first among the types


def _kitti_distance(objects: Mapping[str, Any]) -> int:
    """Returns the interval of the nearest vehicle's distance in m; the last is of a picture without a vehicle."""
    pairs = zip(objects["type"], objects["location"], strict=True)
    return _interval(min((float(place[2]) for kind, place in pairs if kind < _VEHICLES), default=1000.0), _KITTI)


def _interval(value: float, bounds: tuple[float, ...]) -> int:
    """Returns which interval, open below and closed above, in float32 as in VTAB."""
    return int(np.searchsorted(np.array(bounds, np.float32), np.float32(value), side="left")) - 1


LABELS: dict[str, Label] = {
    "clevr_count": Label("clevr", "objects", tuple(str(count) for count in range(3, 11)), _clevr_count),
    "clevr_distance": Label(
        "clevr", "objects", ("0-8", "8-8.5", "8.5-9", "9-9.5", "9.5-10", "over 10"), _clevr_distance
    ),
    # 32 places and 40 turns, neighbours joined.
    "dsprites_location": Label(
        "dsprites", "label_x_position", tuple(f"x {2 * i}-{2 * i + 1}" for i in range(16)), lambda x: int(x // 2)
    ),
    "dsprites_orientation": Label(
        "dsprites", "label_orientation", tuple(f"turn {i}/16" for i in range(16)), lambda turn: int(turn // 2.5)
    ),
    "kitti_distance": Label("kitti", "objects", ("under 8 m", "8-20 m", "over 20 m", "no vehicle"), _kitti_distance),
}
