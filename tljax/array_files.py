"""Arrays in a folder, by Orbax, which only this module imports; and what is known of them, as JSON."""

import contextlib
import hashlib
import json
import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as orbax
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from orbax.checkpoint import v1

from tljax import storage, strict_json
from tljax.errors import InputError

logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax narrates every file that it writes

MANIFEST = "manifest.json"


class Damaged(InputError):
    """Files that are not the ones that were written.

    Attributes:
        wrong: what is not as it was, in words.
    """

    def __init__(self, folder: epath.Path, wrong: str):
        super().__init__(f"{folder} is damaged: {wrong}")
        self.wrong = wrong


def write(folder: epath.Path, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
    """Writes arrays by name, then a manifest: `facts`, and the size and SHA-256 of every file.

    A folder with a manifest is whole, on a disk as in a bucket; `remove` takes the manifest away first.
    """
    remove(folder)
    with _here(folder, writing=True) as local:
        _save(Path(local / "arrays"), unflatten_dict(dict(arrays), sep="/"))
        # As a reader gets it, so that the seal is of the same.
        content = json.loads(strict_json.dumps({**facts, "files": storage.files_of(local)}))
    sealed = {"content": content, "sha256": _seal(content)}
    storage.write_whole(folder / MANIFEST, strict_json.dumps(sealed).encode())


def read(folder: epath.Path) -> dict[str, np.ndarray]:
    """The arrays that `write` wrote, by name, on the host.

    Raises:
        Damaged: a file is missing or has other bytes.
    """
    files = manifest(folder)["files"]
    with _here(folder) as local:
        if wrong := storage.check(local, files):
            raise Damaged(folder, wrong)
        return flatten_dict(_load(Path(local / "arrays")), sep="/")


def manifest(folder: epath.Path) -> dict[str, Any]:
    """The facts that `write` was given, and `files`.

    Raises:
        Damaged: it is missing or not as it was written.
    """
    try:
        found = json.loads((folder / MANIFEST).read_text())
        if _seal(found["content"]) == found["sha256"]:
            return found["content"]
        wrong = "has other content than was written"
    except (OSError, ValueError, KeyError, TypeError) as error:
        wrong = storage.reason(error)
    raise Damaged(folder, f"{MANIFEST}: {wrong}")


def wrong(folder: epath.Path) -> str:
    """What is not as it was written, in words; empty if nothing is."""
    try:
        return storage.check(folder, manifest(folder)["files"])
    except Damaged as error:
        return error.wrong


def remove(folder: epath.Path) -> None:
    """Takes a folder away, if it is there; one that is half removed counts as none."""
    (folder / MANIFEST).unlink(missing_ok=True)
    if folder.exists():
        folder.rmtree()


def save_tree(folder: Path, tree: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Writes a nested dict of arrays, and `facts` about it as `tljax.json`, into a new folder."""
    _save(folder / "arrays", tree)
    (folder / "tljax.json").write_text(strict_json.dumps(facts, indent=1))


def load_facts(folder: Path) -> dict[str, Any]:
    """The facts that `save_tree` wrote.

    Raises:
        InputError: `folder` is not one that it made.
    """
    try:
        return json.loads((folder / "tljax.json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: not a folder made by `tljax convert` ({error})") from error


def load_tree(folder: Path) -> dict[str, Any]:
    """The arrays that `save_tree` wrote, on the host.

    Raises:
        InputError: they cannot be read.
    """
    return _load(folder / "arrays")


def _load(folder: Path) -> dict[str, Any]:
    """By this process alone: where a run has several, the others may be reading at another time."""
    me = jax.process_index()
    alone = v1.options.MultiprocessingOptions(primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"{me}")
    try:
        with v1.Context(multiprocessing_options=alone):
            found = v1.metadata(folder).metadata
            return v1.load(folder, jax.tree.map(lambda leaf: np.empty((0,), leaf.dtype), found))
    except Exception as error:  # whatever Orbax or TensorStore met in the files
        raise InputError(f"{folder}: cannot be restored ({storage.reason(error)})") from error


def _save(folder: Path, tree: Mapping[str, Any]) -> None:
    """Without a copy of the arrays, which nobody changes, and without compression, which takes another.

    By Orbax's first interface: where a run has several processes, the second lets none of them save alone.
    """
    me = jax.process_index()
    alone = orbax.options.MultiprocessingOptions(primary_host=me, active_processes={me})
    as_they_are = orbax.type_handlers.NumpyHandler(deepcopy_host_arrays=False)
    registry = orbax.type_handlers.create_type_handler_registry((np.ndarray, as_they_are))
    handler = orbax.PyTreeCheckpointHandler(
        use_compression=False, multiprocessing_options=alone, type_handler_registry=registry
    )
    with orbax.Checkpointer(handler, multiprocessing_options=alone) as saver:
        saver.save(folder, args=orbax.args.PyTreeSave(tree))


def _seal(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@contextlib.contextmanager
def _here(folder: epath.Path, writing: bool = False) -> Iterator[epath.Path]:
    """The folder itself where it is on a disk; else a copy, which is brought there when all is `writing`-ten."""
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
