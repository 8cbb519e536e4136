"""Images in folders by class."""

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from tljax import console
from tljax.config.schema import TaskConfig
from tljax.data.dataset import Item, Source
from tljax.data.labels import by_class, differing_in_case
from tljax.errors import InputError
from tljax.io import checksums
from tljax.io.download.fetch import local_copy

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
_IGNORED = ("thumbs.db", "desktop.ini")  # and whatever starts with a dot
# As people call splits -> as they are called here.
SPLITS = {"train": "train", **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"), "test": "test"}


def folder(path: str, config: TaskConfig) -> Source:
    """Finds images by class: `PATH/CLASS/…/x.jpg` as the split `train`, or the same in `PATH/train`, `val` and `test`.

    Classes are in natural order (`labels.in_order`), as those of a table are.

    Raises:
        InputError: there is no such folder; a class has no images, or is not in every split; with `on_error=stop`,
            something that should be an image by its suffix is no file.
    """
    root, name = local_copy(path), f"folder:{path}"
    if not root.is_dir():
        raise InputError(f"{name}: no such folder")
    places = _splits(root, name)
    folders = {split: _class_folders(place, name) for split, place in places.items()}
    classes = {split: list(paths) for split, paths in folders.items()}
    for split, names in classes.items():
        if not names:
            raise InputError(f"folder:{places[split]}: needs a sub-folder of images for each class, has none")
        if different := sorted(set(names) ^ set(classes["train"])):
            has, lacks = (split, "train") if different[0] in names else ("train", split)
            raise InputError(f"{name}: {has} has the class {different[0]!r}, and {lacks} has not: add or remove it")
    scan = _Scan(root, config.on_error)
    items = {
        split: [item for label, path in enumerate(paths.values()) for item in scan.images(path, label)]
        for split, paths in folders.items()
    }
    if warning := differing_in_case(classes["train"]):
        console.console.print(f"{name}: {warning}")
    levels = 2 if places == {"train": root} else 3  # of a class's folder and a file, below one of a split
    for problem, ids in {
        "files are no images by their suffix": scan.others,
        "images lie in folders within their class's": [id for id in scan.ids if len(Path(id).parts) > levels],
        "images lie in no class's folder, and are left out": scan.stray({root, *places.values()}),
    }.items():
        if ids:
            shown = ", ".join(ids[:3]) + (" …" if len(ids) > 3 else "")
            console.console.print(f"{name}: {len(ids)} {problem}: {shown}")
    # Stamps stand for the bytes: reading a large folder at every start would cost minutes.
    key = hashlib.sha256(repr((str(root.absolute()), classes, scan.stats)).encode()).hexdigest()
    return Source(key, "image", "single_label", tuple(classes["train"]), items)


def images_below(root: Path) -> list[Path]:
    """Lists every image by its suffix below a folder, sorted, as those of a class are."""
    return sorted(_Scan(root, "stop").files(root, set()))


def unusable(id: str, reason: str, on_error: str) -> Item:
    """Returns an item that will be skipped in place of an example that is known to be of no use.

    Args:
        id: of the example.
        reason: why.
        on_error: `stop` raises instead.

    Raises:
        InputError: with `on_error=stop`.
    """

    error = InputError(reason)
    if on_error != "skip":
        raise error
    return Item(id, 0, error)


def _splits(root: Path, name: str) -> dict[str, Path]:
    """Returns the folder of each split: of what `root` calls train, validation and test, or else itself."""
    below = _folders(root)
    of_splits = [folder for folder in below if folder.lower() in SPLITS]
    if not any(SPLITS[folder.lower()] == "train" for folder in of_splits) or (len(of_splits) == 1 and len(below) > 1):
        return {"train": root}
    if others := [folder for folder in below if folder not in of_splits]:
        raise InputError(f"{name}: {', '.join(others)} beside {', '.join(of_splits)} is no split; move it elsewhere")
    folders = {SPLITS[folder.lower()]: root / folder for folder in of_splits}
    if len(folders) < len(of_splits):
        raise InputError(f"{name}: two of {', '.join(of_splits)} are the same split; move one elsewhere")
    return {split: folders[split] for split in dict.fromkeys(SPLITS.values()) if split in folders}


def _class_folders(root: Path, name: str) -> dict[str, Path]:
    """Returns the folder of each class, by its name, in label order."""
    folders = by_class(_folders(root))
    for label, names in folders.items():
        if len(names) > 1:
            raise InputError(f"{name}: the folders {', '.join(map(ascii, names))} are one class, {label!r}: join them")
    return {label: root / folder for label, (folder,) in folders.items()}


def _folders(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


class _Scan:
    """A scan for images, which notes what stands for their content and what was passed over."""

    def __init__(self, root: Path, on_error: str):
        self.root, self.on_error = root, on_error
        self.stats: list[tuple[str | int, ...]] = []
        self.others: list[str] = []

    @property
    def ids(self) -> list[str]:
        """Returns the ids of the images that were found."""
        return [str(id) for id, *_ in self.stats]

    def stray(self, folders: Iterable[Path]) -> list[str]:
        """Returns the ids of images that lie beside folders of classes."""
        return [
            self._id(path)
            for folder in sorted(folders)
            for path in sorted(folder.iterdir())
            if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
        ]

    def images(self, folder: Path, label: int) -> list[Item]:
        items = [self._item(path, label) for path in sorted(self.files(folder, set()))]
        if not items:
            raise InputError(
                f"folder:{self.root}: class folder {str(folder.relative_to(self.root))!r} has no "
                f"{'|'.join(SUFFIXES)} in it: remove it or fill it"
            )
        return items

    def files(self, folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
        """Yields all that is an image by its suffix; a folder that links lead to again counts once, so a loop ends."""
        try:
            status = folder.stat()
            entries = sorted(folder.iterdir())
        except OSError as error:
            raise InputError(f"{folder}: cannot be read ({error.strerror}); mend or remove it") from error
        if (status.st_dev, status.st_ino) in seen:
            return
        seen.add((status.st_dev, status.st_ino))
        for path in entries:
            if path.name.startswith(".") or path.name.lower() in _IGNORED:
                continue
            if path.suffix.lower() in SUFFIXES:
                yield path
            elif path.is_dir():
                yield from self.files(path, seen)
            else:
                self.others.append(self._id(path))

    def _item(self, path: Path, label: int) -> Item:
        id = self._id(path)
        try:
            status = path.stat()
        except OSError as error:
            return unusable(id, f"{id}: cannot be read ({error.strerror}); mend or remove it", self.on_error)
        if not stat.S_ISREG(status.st_mode):
            return unusable(id, f"{id}: has the suffix of an image, and is no file; rename it", self.on_error)
        self.stats.append((id, *checksums.stamp(path)))
        return Item(id, label, path)

    def _id(self, path: Path) -> str:
        """Returns the path below the root; a name that is no UTF-8 is written with escapes."""
        return os.fsencode(path.relative_to(self.root)).decode(errors="backslashreplace")
