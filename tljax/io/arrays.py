"""Arrays in a folder, by Orbax, which only this module imports; and metadata about them, as JSON."""

import contextlib
import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as orbax
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from orbax.checkpoint import v1

from tljax.errors import InputError
from tljax.io import checksums, storage, strict_json

logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax narrates every file that it writes

MANIFEST = "manifest.json"
_DESCRIPTORS = Path("/proc/self/fd")  # by number, the files and folders that this process has opened
_METADATA = "tljax.json"
_KINDS = {"pretrained": dict, "ignored": list, "head": list}  # of what it must have


class Damaged(InputError):
    """Files that are not the ones that were written.

    Attributes:
        wrong: what is not as it was, in words.
    """

    def __init__(self, folder: epath.Path, wrong: str):
        super().__init__(f"{folder} is damaged: {wrong}")
        self.wrong = wrong


def write(
    folder: epath.Path,
    arrays: Mapping[str, np.ndarray],
    metadata: Mapping[str, Any],
    check: Callable[[], None] = lambda: None,
    verify: bool = False,
) -> None:
    """Writes arrays by name, then a manifest: `metadata`, and the size and SHA-256 of every file.

    A folder with a manifest is whole, on a disk as in a bucket; `remove` takes the manifest away first.

    Args:
        folder: where to; what it holds is removed.
        arrays: by name, in which `/` parts the levels of a tree.
        metadata: what JSON can hold.
        check: raises if this process may not write there; called first, and before the manifest is written.
        verify: whether what was written is looked for as `read` would, but for the arrays' values.

    Raises:
        InputError: `verify` has not found it.
    """
    check()
    remove(folder)
    with _here(folder, writing=True) as local:
        _save(Path(local / "arrays"), unflatten_dict(dict(arrays), sep="/"))
        if verify:
            _verify(Path(local / "arrays"), arrays)
        # As a reader gets it, so that the seal is of the same.
        content = json.loads(strict_json.dumps({**metadata, "files": storage.files_of(local)}))
    check()
    signed = {"content": content, "sha256": _seal(content)}
    storage.write_whole(folder / MANIFEST, strict_json.dumps(signed).encode())


def read(folder: epath.Path) -> dict[str, np.ndarray]:
    """Returns the arrays that `write` wrote, by name, on the host.

    Raises:
        Damaged: a file is missing or has other bytes.
    """
    files = manifest(folder)["files"]
    with _here(folder) as local:
        if wrong := storage.check(local, files):
            raise Damaged(folder, wrong)
        return flatten_dict(_load(Path(local / "arrays")), sep="/")


def manifest(folder: epath.Path) -> dict[str, Any]:
    """Returns the metadata that `write` was given, and `files`.

    Raises:
        Damaged: it is missing or not as it was written.
    """
    try:
        signed = json.loads((folder / MANIFEST).read_text())
        if _seal(signed["content"]) == signed["sha256"]:
            return storage.checked(signed["content"], MANIFEST, "it is not one of tljax", {"files": dict})
        wrong = "has other content than was written"
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        wrong = storage.reason(error)
    raise Damaged(folder, f"{MANIFEST}: {wrong}")


def wrong(folder: epath.Path) -> str:
    """Returns what is not as it was written, in words; empty if nothing is."""
    try:
        return storage.check(folder, manifest(folder)["files"])
    except Damaged as error:
        return error.wrong


def remove(folder: epath.Path) -> None:
    """Removes a folder, if it is there; one that is half removed counts as none."""
    (folder / MANIFEST).unlink(missing_ok=True)
    if folder.exists():
        folder.rmtree()


def save_tree(folder: Path, tree: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """Writes a nested dict of arrays, `metadata` about it, and checksums of both, into a new folder.

    Args:
        folder: the new folder.
        tree: the arrays.
        metadata: what JSON can hold, for `tljax.json`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _save(folder / "arrays", tree)
    (folder / _METADATA).write_text(strict_json.dumps(metadata, indent=1))
    checksums.seal_folder(folder)


def load_metadata(folder: Path) -> dict[str, Any]:
    """Returns the metadata that `save_tree` wrote.

    Raises:
        InputError: `folder` is not one that it made, or the metadata are damaged.
    """
    _check(folder, (_METADATA,))
    try:
        return storage.read_json(epath.Path(folder / _METADATA), "convert it again", **_KINDS)
    except InputError as error:
        raise InputError(f"{folder}: not a folder made by `tljax convert` ({error})") from error


def load_tree(folder: Path) -> dict[str, Any]:
    """Returns the arrays that `save_tree` wrote, on the host.

    Raises:
        InputError: they are damaged, or cannot be read.
    """
    _check(folder)
    return _load(folder / "arrays")


def _check(folder: Path, only: Collection[str] = ()) -> None:
    """Raises an InputError if files are not as `save_tree` wrote them; earlier versions of it left no checksums."""
    seal = folder / checksums.NAME
    if seal.exists() and (wrong := checksums.wrong(seal, only)):
        raise InputError(f"{folder} is damaged ({wrong}): make it again; if you changed it yourself, remove {seal}")


def _load(folder: Path) -> dict[str, Any]:
    try:
        with _pinned(folder) as pinned, _alone():
            metadata = v1.metadata(pinned).metadata
            return v1.load(pinned, jax.tree.map(lambda leaf: np.empty((0,), leaf.dtype), metadata))
    except Exception as error:  # whatever Orbax or TensorStore met in the files
        raise _unreadable(folder, error) from error


def _verify(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Raises InputError where Orbax does not find arrays with the names and shapes of those that it was to save."""
    try:
        with _pinned(folder) as pinned, _alone():
            metadata = flatten_dict(v1.metadata(pinned).metadata, sep="/")
    except Exception as error:  # as in `_load`
        raise _unreadable(folder, error) from error
    for name in arrays.keys() | metadata.keys():
        written, shape = (tuple(tree[name].shape) if name in tree else None for tree in (arrays, metadata))
        if written != shape:
            raise InputError(
                f"{folder}: not what was just saved ({name} is {shape}, not {written}); is the disk whole?"
            )


def _unreadable(folder: Path, error: Exception) -> InputError:
    message = re.sub(rf"{_DESCRIPTORS}/\d+", lambda _: str(folder.parent), storage.reason(error))
    return InputError(f"{folder}: cannot be restored ({message})")


def _alone() -> v1.Context:
    """Returns Orbax's options for this process alone: others of its run may be reading at another time."""
    me = jax.process_index()
    alone = v1.options.MultiprocessingOptions(primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"{me}")
    return v1.Context(multiprocessing_options=alone)


def _save(folder: Path, tree: Mapping[str, Any]) -> None:
    """Saves arrays without a copy of them, which nobody changes, and without compression, which takes another.

    This is Orbax's first interface: where a run has several processes, the second lets none of them save alone.
    """
    me = jax.process_index()
    alone = orbax.options.MultiprocessingOptions(primary_host=me, active_processes={me})
    as_they_are = orbax.type_handlers.NumpyHandler(deepcopy_host_arrays=False)
    registry = orbax.type_handlers.create_type_handler_registry((np.ndarray, as_they_are))
    handler = orbax.PyTreeCheckpointHandler(
        use_compression=False, multiprocessing_options=alone, type_handler_registry=registry
    )
    with _pinned(folder) as pinned, orbax.Checkpointer(handler, multiprocessing_options=alone) as saver:
        saver.save(pinned, args=orbax.args.PyTreeSave(tree))


@contextlib.contextmanager
def _pinned(folder: Path) -> Iterator[Path]:
    """Yields another path to a folder, of which the one around it must be there.

    Orbax takes brackets in a path for a pattern, and TensorStore makes folders anew that another process has removed;
    through a descriptor of the folder around it, neither can.
    """
    if not _DESCRIPTORS.is_dir():  # not Linux: odd paths end with what `_verify` finds
        yield folder
        return
    around = os.open(folder.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield _DESCRIPTORS / str(around) / folder.name
    finally:
        os.close(around)


def _seal(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@contextlib.contextmanager
def _here(folder: epath.Path, writing: bool = False) -> Iterator[epath.Path]:
    """Yields the folder itself on a disk; of a bucket a copy, which is brought there at the end when `writing`."""
    if not storage.is_remote(folder):
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="tljax-") as name:
        local = epath.Path(name)
        if not writing:
            storage.copy(folder, local)
        yield local
        if writing:
            storage.copy(local, folder)
