"""Reads what `torch.save` writes, without torch.

The file is a zip: `NAME/data.pkl` is a pickle of the structure, in which each storage is a persistent id
`("storage", type, key, device, length)`, and `NAME/data/KEY` holds that storage's bytes (torch/serialization.py,
torch/_utils.py). Before torch 1.6 it was a row of pickles, the fourth of them the structure and the fifth the storages'
keys, and then each storage's length and bytes. What a pickle names besides tensors becomes an inert marker (`pickles`).
"""

import io
import math
import mmap
import pickle
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from tljax.errors import InputError
from tljax.io.checked_files import one_line, opened_zip
from tljax.weights.readers.pickles import Global, Opaque, Unpickler, as_dict

_MAX_PICKLE = 64 << 20  # bytes
_MAX_NUMBERS = 129  # an offset, and 64 sizes and strides
_AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "teacher")
_PLAIN = ("state_dict", "model_state_dict", "model", "net", "module")
_PREFERRED = {name: rank for rank, name in enumerate((*_AVERAGED, *_PLAIN))}  # as timm prefers them


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
    """Returns what reads each tensor of the file's state dict, by name.

    A state dict inside others is taken, as in `{"state_dict": …, "epoch": …}`. Of several it is the averaged one
    (`model_ema`, `teacher` …) or else the one under a usual name, and a line on stderr says which.

    Raises:
        InputError: it is from a big-endian machine, or there is no state dict, or several that could be meant.
    """
    content, opened = (_read_legacy if _is_legacy(path) else _read_zip)(path)
    size = max(path.stat().st_size, 1 << 20)
    return {name: partial(_array, opened, tensor, size) for name, tensor in _state_dict(content, path).items()}


Opened = Callable[[str], AbstractContextManager[BinaryIO]]  # from a storage's key to a file that stands at its start


def _read_zip(path: Path) -> tuple[Any, Opened]:
    with opened_zip(path) as archive:
        pickled = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickled) != 1:
            raise ValueError(f"{len(pickled)} files data.pkl in it")
        folder = pickled[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.namelist() and _start(archive, f"{folder}byteorder") != b"little":
            raise InputError(_BIG_ENDIAN.format(path))
        if archive.getinfo(pickled[0]).file_size > _MAX_PICKLE:
            raise ValueError(f"a pickle of more than {_MAX_PICKLE} bytes")
        content = _Unpickler().load(io.BytesIO(archive.read(pickled[0])))

    @contextmanager
    def opened(key: str) -> Iterator[BinaryIO]:
        with opened_zip(path) as archive, archive.open(f"{folder}data/{key}") as file:
            yield file

    return content, opened


def _start(archive: zipfile.ZipFile, name: str) -> bytes:
    with archive.open(name) as file:
        return file.read(16)


_BIG_ENDIAN = "{}: written on a big-endian machine; re-save it on a little-endian one"
_LEGACY = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)  # torch.serialization.MAGIC_NUMBER


def _is_legacy(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_LEGACY)) == _LEGACY


def _read_legacy(path: Path) -> tuple[Any, Opened]:
    places: dict[str, int] = {}
    with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as file:
        _magic, _version, facts = (_Unpickler().load(file) for _ in range(3))
        if not facts["little_endian"]:
            raise InputError(_BIG_ENDIAN.format(path))
        unpickler = _Unpickler()
        content = unpickler.load(file)
        for key in _Unpickler().load(file):
            length = int.from_bytes(file.read(8), "little")
            places[key] = file.tell()
            end = places[key] + length * unpickler.storages[key].dtype.itemsize
            if end > len(file):
                raise ValueError("it ends early")
            file.seek(end)

    @contextmanager
    def storage(key: str) -> Iterator[BinaryIO]:
        with path.open("rb") as file:
            file.seek(places[key])
            yield file

    return content, storage


def _tensor(
    storage: Storage, offset: int, shape: tuple, strides: tuple, requires_grad: bool, hooks: Any, flags: Any = None
) -> Tensor:
    if flags:  # a view that torch conjugates or negates when it is read
        raise ValueError(f"a tensor marked {flags}")
    numbers = (offset, *shape, *strides)
    plain = len(numbers) <= _MAX_NUMBERS and all(type(n) is int and n >= 0 for n in numbers)
    if not plain or len(shape) != len(strides) or type(storage) is not Storage:
        raise ValueError(f"a tensor of shape {shape}, strides {strides} at {offset}")
    return Tensor(storage, offset, tuple(shape), tuple(strides))


def _parameter(tensor: Tensor, *_: Any) -> Tensor:
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
_STORAGES = {f"torch.{name}Storage": np.dtype(element) for name, element in _ELEMENTS.items()}


class _Unpickler(Unpickler):
    def __init__(self) -> None:
        makers = {
            "collections.OrderedDict": as_dict,
            "torch.Size": tuple,
            "torch._utils._rebuild_tensor_v2": _tensor,
            "torch._utils._rebuild_parameter": _parameter,
            "torch._utils._rebuild_parameter_with_state": _parameter,
            # A tensor with attributes: (function, type, its arguments, attributes).
            "torch._tensor._rebuild_from_type_v2": lambda function, _type, arguments, _state: self.call(
                function, *arguments
            ),
        }
        super().__init__(makers, self._storage)
        self.storages: dict[str, Storage] = {}

    def _storage(self, pid: Any) -> Storage:
        kind, element, key, _device, _length, *view = pid
        dtype = _STORAGES.get(f"{element.module}.{element.name}") if isinstance(element, Global) else None
        if kind != "storage" or type(key) is not str or any(view):  # torch 0.3 had views of storages
            raise ValueError(f"a persistent id {pid!r}")
        if dtype is None:
            raise ValueError(f"a storage of {'.'.join(element) if isinstance(element, Global) else element!r}")
        storage = self.storages.setdefault(key, Storage(key, dtype))
        if storage.dtype != dtype:
            raise ValueError(f"a storage {key} of both {storage.dtype} and {dtype}")
        return storage


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    state_dicts = dict(_state_dicts(content, set()))
    if not state_dicts:
        markers = _markers(content if isinstance(content, dict) else {"": content})
        raise InputError(f"{path}: holds no state dict of plain tensors{markers}; save model.state_dict() alone")
    names = sorted(state_dicts, key=lambda name: _PREFERRED.get(name.partition(".")[0], len(_PREFERRED)))
    if len(names) > 1:
        if names[0].partition(".")[0] not in _PREFERRED or names[0].partition(".")[0] == names[1].partition(".")[0]:
            shown = ", ".join(repr(name)[:80] for name in list(state_dicts)[:8])
            raise InputError(f"{path}: holds several state dicts ({shown}); re-save the one that is meant alone")
        note = one_line(f"{path}: took {names[0]}, not {', '.join(names[1:])}")
        print(note, file=sys.stderr, flush=True)
    tensors = state_dicts[names[0]]
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            kind = f"{'.'.join(_name(value))}, which was not run" if _is_marker(value) else type(value).__name__
            raise InputError(f"{path}: {name!r} beside the tensors is a {kind}; re-save it without")
    return tensors


def _markers(content: dict) -> str:
    """Says what else than tensors a dictionary holds, to explain why there is no state dict in it."""
    names = sorted({".".join(_name(value)) for value in content.values() if _is_marker(value)})
    return f" (but {', '.join(names[:4])}, which was not run)" if names else ""


def _is_marker(value: Any) -> bool:
    return isinstance(value, Opaque | Global)


def _name(marker: Opaque | Global) -> Global:
    return marker.maker if isinstance(marker, Opaque) else marker


def _state_dicts(content: Any, seen: set[int], where: str = "") -> Iterator[tuple[str, dict]]:
    """The outermost dictionaries that hold tensors under names, each with the keys that lead there."""
    if not isinstance(content, dict) or id(content) in seen or not all(isinstance(key, str) for key in content):
        return  # an optimizer numbers its parameters
    seen.add(id(content))
    if any(isinstance(value, Tensor) for value in content.values()):
        yield where, content
        return
    for key, value in content.items():
        yield from _state_dicts(value, seen, f"{where}.{key}" if where else key)


def _array(opened: Opened, tensor: Tensor, limit: int) -> np.ndarray:
    """Reads the window's part of its storage: nothing of the file stays in memory but the array.

    Raises:
        ValueError: the tensor has more than `limit` bytes, or reaches beyond its storage.
    """
    dtype, shape, strides = tensor.storage.dtype, tensor.shape, tensor.strides
    if 0 in shape:
        return np.empty(shape, dtype)
    span = 1 + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    if max(math.prod(shape), tensor.offset + span) * dtype.itemsize > limit:
        raise ValueError(f"a tensor of shape {shape}, strides {strides} at {tensor.offset}, larger than the file")
    with opened(tensor.storage.key) as file:
        file.seek(tensor.offset * dtype.itemsize, io.SEEK_CUR)
        flat = np.frombuffer(file.read(span * dtype.itemsize), dtype, span)
    window = np.lib.stride_tricks.as_strided(flat, shape, [stride * dtype.itemsize for stride in strides])
    return np.array(window, order="C")
