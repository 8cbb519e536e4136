"""Reads the arrays out of a checkpoint file as `name -> numpy array`, each when it is asked for."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from tljax.errors import InputError
from tljax.io.checked_files import MAX_JSON, check_file, one_line, opened_zip, parse_json
from tljax.io.sharded_files import shards, weight_map
from tljax.weights.readers import torch_pickle

Readers = dict[str, Callable[[], np.ndarray]]


class Arrays(Mapping):  # without parameters: a type checker would look into, and so read, an array
    """The arrays of a file, `name -> numpy array`, each read anew when it is asked for.

    Nothing is kept, so that a conversion never holds the checkpoint beside what it makes of it.
    """

    def __init__(self, path: Path, readers: Readers):
        self._path = path
        self._readers = readers

    def __getitem__(self, name: str) -> np.ndarray:
        reader = self._readers[name]
        with _damage_named(self._path):
            return reader()

    def __contains__(self, name: object) -> bool:
        return name in self._readers

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


def read(path: Path) -> Arrays:
    """Every array in a checkpoint file, under the name that the file gives it.

    Args:
        path: .safetensors, .npz, .onnx, what `torch.save` wrote (.pth, .pt, .bin, .pth.tar, .ckpt), or the
            .index.json of shards.

    Raises:
        InputError: the kind of file is not known, the file is damaged, or a shard is missing; damage to an array
            itself is only found, and raised, when that array is asked for.
    """
    kind = next((ending for ending in _KINDS if path.name.endswith(ending)), None)
    if kind is None:
        raise InputError(f"{path}: cannot read weights from a {path.suffix!r} file; known: {', '.join(_KINDS)}")
    check_file(path)
    with _damage_named(path):
        return Arrays(path, _KINDS[kind](path))


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        line = one_line(str(error))
        if line == str(error):
            raise
        raise InputError(line) from error
    except (Exception, MemoryError) as error:  # each format's library has exceptions of its own
        reason = one_line(f"{type(error).__name__} {error}")
        raise InputError(f"{path}: damaged or not a {path.suffix} file ({reason}); fetch it anew") from error


def _read_safetensors(path: Path) -> Readers:
    check_header(path)
    # Opening checks that header and length fit; `ml_dtypes` is imported above, so that numpy knows "bfloat16".
    with _open_safetensors(path) as file:
        names = list(file.keys())
    return {name: partial(_safetensors_array, path, name) for name in names}


def check_header(path: Path) -> None:
    """Checks what the library does not of a safetensors file's header: that it is not huge, and no name stands twice.

    Raises:
        ValueError: it is huge, no JSON, or a name stands twice.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(MAX_JSON, path.stat().st_size):
            raise ValueError(f"a header of {length} bytes")
        parse_json(file.read(length))


def _safetensors_array(path: Path, name: str) -> np.ndarray:
    # Opened anew for each array: the pages of an open file count as this process's memory.
    with _open_safetensors(path) as file:
        return file.get_tensor(name)


def _open_safetensors(path: Path):
    from safetensors import safe_open

    return safe_open(path, "numpy")


def _read_npz(path: Path) -> Readers:
    with opened_zip(path) as archive:
        members = [name for name in archive.namelist() if name.endswith(".npy")]
    return {name.removesuffix(".npy"): partial(_npz_array, path, name) for name in members}


def _npz_array(path: Path, member: str) -> np.ndarray:
    with opened_zip(path) as archive, archive.open(member) as file:
        shape, _, dtype = _npy_header(file)
        size = math.prod(shape) * dtype.itemsize
        if not 0 <= size <= archive.getinfo(member).file_size:
            raise ValueError(f"an array of shape {shape} in a file of {archive.getinfo(member).file_size} bytes")
    with opened_zip(path) as archive, archive.open(member) as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
    # numpy has no name to write bfloat16 under, and writes two bytes of nothing known.
    return array.view(ml_dtypes.bfloat16) if array.dtype == "V2" else array


def _npy_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Reads shape, order and element type; numpy itself reserves memory by them before it reads on."""
    version = np.lib.format.read_magic(file)
    return (np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0)(file)


def _read_sharded(index: Path) -> Readers:
    home = weight_map(index)
    readers: Readers = {}
    for path in shards(index):
        arrays = read(path)
        for name in home:
            if home[name] == path.name and name not in arrays:
                raise InputError(f"{path}: lacks {name}, which {index.name} says is in it; fetch both anew")
        # An array that the index does not list still counts: the table of names must explain it.
        listed = [name for name in arrays if home.get(name, path.name) == path.name]
        readers |= {name: partial(arrays.__getitem__, name) for name in listed}
    return readers


# Names that an exporter made up, `onnx::MatMul_1966` or `Conv__440_weights`, change with every export.
_MADE_UP = re.compile(r"onnx::\w+|\w+?__\d+(_.*)?")


def _read_onnx(path: Path) -> Readers:
    """An ONNX graph's initializers; one with a made-up name is called `output#input` after its (only) node."""
    import onnx

    graph = onnx.load(path).graph
    names = {array.name: array.name for array in graph.initializer}
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name in names and _MADE_UP.fullmatch(name):
                names[name] = f"{node.output[0]}#{index}"
    return {names[array.name]: partial(onnx.numpy_helper.to_array, array) for array in graph.initializer}


_KINDS: dict[str, Callable[[Path], Readers]] = {
    ".safetensors": _read_safetensors,
    ".index.json": _read_sharded,
    ".npz": _read_npz,
    ".onnx": _read_onnx,
    **dict.fromkeys((".pth", ".pt", ".bin", ".pth.tar", ".ckpt"), torch_pickle.read),
}
