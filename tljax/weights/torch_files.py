"""Reads what `torch.save` writes, without torch.

The file is a zip: `NAME/data.pkl` is a pickle of the structure, in which each storage is a persistent id
`("storage", type, key, device, length)`, and `NAME/data/KEY` holds that storage's bytes (torch/serialization.py,
torch/_utils.py). The unpickler here knows tensors and plain containers; whatever else a file names is refused, and
nothing of it is imported or run.
"""

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from tljax.errors import InputError


class Storage(NamedTuple):
    """One record of the zip: its key, and the type of its elements."""

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
        InputError: the format is the one before torch 1.6, there is not exactly one state dict, or the pickle names
            anything else than tensors and plain containers.
    """
    _refuse_legacy(path)
    with zipfile.ZipFile(path) as archive:
        (pickled,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        folder = pickled.removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
            raise InputError(f"{path}: written on a big-endian machine; re-save it on a little-endian one")
        with archive.open(pickled) as file:
            content = _Unpickler(file, path).load()
    return {
        name: partial(_array, path, f"{folder}data/", tensor) for name, tensor in _state_dict(content, path).items()
    }


_LEGACY = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)  # torch.serialization.MAGIC_NUMBER


def _refuse_legacy(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(len(_LEGACY)) == _LEGACY:
            raise InputError(
                f"{path}: written in the format before torch 1.6, which is not read here; load it with torch and "
                "re-save it, with safetensors or with `torch.save` of torch 1.6 or newer"
            )


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

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _GLOBALS:
            raise InputError(
                f"{self.path}: its pickle asks for {module}.{name}, which is no plain tensor, and was not run; if you "
                "trust the file, load it with torch and re-save its state_dict alone, best with safetensors"
            )
        return _GLOBALS[f"{module}.{name}"]

    def persistent_load(self, pid: Any) -> Storage:
        kind, dtype, key, _device, _length = pid
        if kind != "storage":
            raise ValueError(f"a persistent id of kind {kind!r}")
        return Storage(key, dtype)


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


def _array(path: Path, folder: str, tensor: Tensor) -> np.ndarray:
    """Reads the window's part of its storage: nothing of the file stays in memory but the array."""
    dtype, shape, strides = tensor.storage.dtype, tensor.shape, tensor.strides
    if 0 in shape:
        return np.empty(shape, dtype)
    if min((tensor.offset, *strides)) < 0 or len(shape) != len(strides):
        raise ValueError(f"a tensor of shape {shape}, strides {strides} at {tensor.offset}")
    span = 1 + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    with zipfile.ZipFile(path) as archive, archive.open(f"{folder}{tensor.storage.key}") as file:
        file.seek(tensor.offset * dtype.itemsize)
        flat = np.frombuffer(file.read(span * dtype.itemsize), dtype, span)
    window = np.lib.stride_tricks.as_strided(flat, shape, [stride * dtype.itemsize for stride in strides])
    return np.array(window, order="C")
