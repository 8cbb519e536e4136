"""Reads what `torch.save` writes, without torch.

The file is a zip: `NAME/data.pkl` is a pickle of the structure, in which each storage is a persistent id
`("storage", type, key, device, length)`, and `NAME/data/KEY` holds that storage's bytes (torch/serialization.py,
torch/_utils.py). Before torch 1.6 it was a row of pickles, the fourth of them the structure and the fifth the storages'
keys, and then each storage's length and bytes. The unpickler here knows tensors and plain containers; whatever else a
file names is refused, and nothing of it is imported or run.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from tljax.errors import InputError


class Storage(NamedTuple):
    """What holds elements: its key, and their type."""

    key: str
    dtype: np.dtype


class Tensor(NamedTuple):
    """A strided window on a storage; offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read(path: Path) -> dict[str, Callable[[], np.ndarray]]:
    """For each tensor of the file's state dict, what reads it.

    A state dict inside others, as in `{"state_dict": …, "epoch": …}`, is taken if it is the only one.

    Raises:
        InputError: it is from a big-endian machine, there is not exactly one state dict, or the pickle names anything
            else than tensors and plain containers.
    """
    content, opened = (_read_legacy if _is_legacy(path) else _read_zip)(path)
    return {name: partial(_array, opened, tensor) for name, tensor in _state_dict(content, path).items()}


Opened = Callable[[str], AbstractContextManager[BinaryIO]]  # from a storage's key to a file that stands at its start


def _read_zip(path: Path) -> tuple[Any, Opened]:
    with zipfile.ZipFile(path) as archive:
        (pickled,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        folder = pickled.removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
            raise InputError(_BIG_ENDIAN.format(path))
        with archive.open(pickled) as file:
            content = _Unpickler(file, path).load()

    @contextmanager
    def opened(key: str) -> Iterator[BinaryIO]:
        with zipfile.ZipFile(path) as archive, archive.open(f"{folder}data/{key}") as file:
            yield file

    return content, opened


_BIG_ENDIAN = "{}: written on a big-endian machine; re-save it on a little-endian one"
_LEGACY = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)  # torch.serialization.MAGIC_NUMBER


def _is_legacy(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_LEGACY)) == _LEGACY


def _read_legacy(path: Path) -> tuple[Any, Opened]:
    places: dict[str, int] = {}
    with path.open("rb") as file:
        _magic, _version, facts = (_Unpickler(file, path).load() for _ in range(3))
        if not facts["little_endian"]:
            raise InputError(_BIG_ENDIAN.format(path))
        unpickler = _Unpickler(file, path)
        content = unpickler.load()
        for key in _Unpickler(file, path).load():
            length = int.from_bytes(file.read(8), "little")
            places[key] = file.tell()
            file.seek(length * unpickler.storages[key].dtype.itemsize, io.SEEK_CUR)
        if file.tell() > path.stat().st_size:
            raise ValueError("it ends early")

    @contextmanager
    def opened(key: str) -> Iterator[BinaryIO]:
        with path.open("rb") as file:
            file.seek(places[key])
            yield file

    return content, opened


def _tensor(
    storage: Storage, offset: int, shape: tuple, strides: tuple, requires_grad: bool, hooks: Any, flags: Any = None
) -> Tensor:
    if flags:  # a view that torch conjugates or negates when it is read
        raise ValueError(f"a tensor marked {flags}")
    return Tensor(storage, offset, shape, strides)


def _parameter(tensor: Tensor, requires_grad: bool, hooks: Any) -> Tensor:
    return tensor


_ELEMENTS = {
    "Float": np.float32,
    "Double": np.float64,
    "Half": np.float16,
    "BFloat16": ml_dtypes.bfloat16,
    "Long": np.int64,
    "Int": np.int32,
    "Short": np.int16,
    "Char": np.int8,
    "Byte": np.uint8,
    "Bool": np.bool_,
}
_GLOBALS = {
    "collections.OrderedDict": OrderedDict,
    "torch.Size": tuple,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
} | {f"torch.{name}Storage": np.dtype(element) for name, element in _ELEMENTS.items()}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, path: Path):
        super().__init__(file, encoding="utf-8")
        self.path = path
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _GLOBALS:
            raise InputError(
                f"{self.path}: its pickle asks for {module}.{name}, which is no plain tensor, and was not run; if you "
                "trust the file, load it with torch and re-save its state_dict alone, best with safetensors"
            )
        return _GLOBALS[f"{module}.{name}"]

    def persistent_load(self, pid: Any) -> Storage:
        kind, dtype, key, _device, _length, *view = pid
        if kind != "storage" or any(view):  # a part of another storage, as torch 0.3 and before had them
            raise ValueError(f"a persistent id {pid!r}")
        return self.storages.setdefault(key, Storage(key, dtype))


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    found = dict(_state_dicts(content))
    if len(found) != 1:
        held = f"several state dicts ({', '.join(found)})" if found else "no state dict"
        raise InputError(f"{path}: holds {held}; re-save the one that is meant alone")
    (tensors,) = found.values()
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise InputError(f"{path}: {name!r} beside the tensors is a {type(value).__name__}; re-save it without")
    return tensors


def _state_dicts(content: Any, where: str = "") -> Iterator[tuple[str, dict]]:
    """The outermost dictionaries that hold tensors under names, each with the keys that lead there."""
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        return  # an optimizer numbers its parameters
    if any(isinstance(value, Tensor) for value in content.values()):
        yield where, content
        return
    for key, value in content.items():
        yield from _state_dicts(value, f"{where}.{key}" if where else key)


def _array(opened: Opened, tensor: Tensor) -> np.ndarray:
    """Reads the window's part of its storage: nothing of the file stays in memory but the array."""
    dtype, shape, strides = tensor.storage.dtype, tensor.shape, tensor.strides
    if 0 in shape:
        return np.empty(shape, dtype)
    if min((tensor.offset, *strides)) < 0 or len(shape) != len(strides):
        raise ValueError(f"a tensor of shape {shape}, strides {strides} at {tensor.offset}")
    span = 1 + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    with opened(tensor.storage.key) as file:
        file.seek(tensor.offset * dtype.itemsize, io.SEEK_CUR)
        flat = np.frombuffer(file.read(span * dtype.itemsize), dtype, span)
    window = np.lib.stride_tricks.as_strided(flat, shape, [stride * dtype.itemsize for stride in strides])
    return np.array(window, order="C")
