"""Makes weight files that lie: about their sizes, their names, their types, or what they are.

`make(folder, count, seed)` makes the kinds below, each once, and then cuts and flips in good files up to `count`.
Every one of them must be refused by `read`, with an `InputError` of one line, in little memory and time.
"""

import io
import json
import os
import pickle
import random
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tljax.weights.mapping import LINEAR, ParamMapping, Table, convert
from tljax.weights.readers import files

TABLE = Table((ParamMapping("fc.weight", "fc/kernel", LINEAR), ParamMapping("fc.bias", "fc/bias")))
TARGETS = {"fc/kernel": (3, 4), "fc/bias": (4,)}
WEIGHT, BIAS = np.arange(12, dtype=np.float32).reshape(4, 3), np.ones(4, np.float32)
GOOD = {"fc.weight": WEIGHT, "fc.bias": BIAS}


def read(path: Path) -> dict[str, np.ndarray]:
    """Reads a file as `convert` and `train` do: all arrays that a small network takes."""
    return convert(files.read(path), TABLE, TARGETS).arrays


# safetensors


def safetensors(header: object, data: bytes = bytes(64), length: int | None = None) -> bytes:
    """A file with this header, which may be text, and may lie about its length."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(start: int, stop: int, shape: object = (4, 3), dtype: str = "F32") -> dict[str, object]:
    """An array's entry in a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def header(**changes: object) -> dict[str, object]:
    """The header of the good file, with entries changed."""
    return {"fc.weight": entry(0, 48), "fc.bias": entry(48, 64, (4,))} | changes


SAFETENSORS: dict[str, bytes] = {
    "header_of_a_gigabyte": safetensors(header(), length=10**9),
    "header_beyond_all_memory": safetensors(header(), length=2**63 + 5),
    "header_of_nested_lists": safetensors("[" * 100_000 + "]" * 100_000),
    "header_of_nested_objects": safetensors('{"a":' * 100_000 + "1" + "}" * 100_000),
    "header_a_list": safetensors([1, 2]),
    "header_no_text": safetensors("\xff{"),
    "negative_offsets": safetensors(header(**{"fc.bias": entry(-16, 0, (4,))})),
    "overlapping_offsets": safetensors(header(**{"fc.bias": entry(0, 16, (4,))}), bytes(48)),
    "offsets_beyond_the_file": safetensors(header(**{"fc.bias": entry(48, 6400, (1588,))})),
    "a_hole_between": safetensors(header(**{"fc.bias": entry(64, 80, (4,))}), bytes(80)),
    "a_name_twice": safetensors(f'{json.dumps(header())[:-1]}, "fc.bias": {json.dumps(entry(48, 64, (4,)))}}}'),
    "unknown_type": safetensors(header(**{"fc.bias": entry(48, 64, (4,), "F99")})),
    "type_without_numpy": safetensors(header(**{"fc.bias": entry(48, 52, (4,), "F8_E8M0")}), bytes(52)),
    "whole_numbers": safetensors(header(**{"fc.bias": entry(48, 64, (4,), "I32")})),
    "complex_numbers": safetensors(header(**{"fc.bias": entry(48, 80, (4,), "C64")}), bytes(80)),
    "shape_too_large": safetensors(header(**{"fc.bias": entry(48, 64, (2**40, 2**40))})),
    "shape_no_list": safetensors(header(**{"fc.bias": entry(48, 64, "x")})),
    "shape_of_another": safetensors(header(**{"fc.bias": entry(48, 64, (2, 2))})),
    "not_a_number": safetensors(header(), np.float32([np.nan] * 16).tobytes()),
    "infinite": safetensors(header(), np.float32([np.inf] * 16).tobytes()),
    "a_name_with_escapes": safetensors(header() | {"x\n\x1b[31m\nred": entry(64, 64, (0,))}),
    "no_arrays": safetensors({}, b""),
    "a_long_name": safetensors({"x" * 1_000_000: entry(0, 64, (16,))}),
    "many_names": safetensors({f"module.{i}": entry(64, 64, (0,)) for i in range(20_000)} | header()),
    "a_name_of_wrappers": safetensors({"module." * 100_000: entry(0, 64, (16,))}),
}

# npz


def npy(array: np.ndarray = WEIGHT, text: str = "", version: bytes = b"\x01\x00") -> bytes:
    """A .npy file, whose header may be replaced."""
    file = io.BytesIO()
    np.save(file, array)
    if not text:
        return file.getvalue()
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text.encode() + array.tobytes()


def zipped(members: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    """An archive of these files, of which two may have one name."""
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", compression) as archive:
        warnings.simplefilter("ignore")
        for name, content in members:
            archive.writestr(name, content)
    return file.getvalue()


def npz(weight: bytes, *more: tuple[str, bytes]) -> bytes:
    """The good archive, with another weight."""
    return zipped([("fc.weight.npy", weight), ("fc.bias.npy", npy(BIAS)), *more])


def overlapping(name: str, copies: int = 2000) -> bytes:
    """An archive whose directory lists one file under many names."""
    archive = zipped([(name, bytes(100_000))])
    end = archive.index(b"PK\x05\x06")
    start = archive.index(b"PK\x01\x02")
    one = archive[start:end]
    rows = b"".join(one.replace(name.encode(), f"{i:0{len(name)}d}".encode()) for i in range(copies))
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, copies, copies, len(rows), start, 0)
    return archive[:start] + rows + tail


def claim(archive: bytes, size: int = 0xFFFFFF00) -> bytes:
    """The archive, whose directory says of its first file that it is so large."""
    start = archive.index(b"PK\x01\x02")
    return archive[: start + 24] + struct.pack("<L", size) + archive[start + 28 :]


DESCR = "{'descr': '<f4', 'fortran_order': False, 'shape': %s, }\n"
BOMB = bytes(60_000_000)
NPZ: dict[str, Callable[[], bytes]] = {
    "claims_a_trillion": lambda: npz(npy(text=DESCR % "(1000000, 1000000)")),
    "negative_shape": lambda: npz(npy(text=DESCR % "(-1, 3)")),
    "shape_no_tuple": lambda: npz(npy(text=DESCR % "'x'")),
    "nested_header": lambda: npz(npy(text="(" * 5000 + ")" * 5000)),
    "header_that_calls": lambda: npz(npy(text="__import__('os').getcwd()\n")),
    "objects": lambda: npz(npy(np.array([{"a": 1}], object))),
    "texts": lambda: npz(npy(np.array(["a", "b"]))),
    "unknown_version": lambda: npz(npy(text=DESCR % "(4, 3)", version=b"\x09\x00")),
    "bomb": lambda: zipped([("fc.weight.npy", BOMB)], zipfile.ZIP_DEFLATED),
    "a_file_twice": lambda: npz(npy(), ("fc.bias.npy", npy(BIAS))),
    "files_on_one_another": lambda: overlapping("fc.weight.npy"),
    "claims_more_than_it_has": lambda: claim(npz(npy())),
    "encrypted": lambda: (a := npz(npy()))[: a.index(b"PK\x01\x02") + 8] + b"\x01" + a[a.index(b"PK\x01\x02") + 9 :],
    "infinite_double": lambda: npz(npy(np.full((4, 3), 1e300))),
}

# What torch saves


def op_global(module: str, name: str) -> bytes:
    return b"c" + f"{module}\n{name}\n".encode()


def op_text(text: str) -> bytes:
    return b"X" + struct.pack("<L", len(text.encode())) + text.encode()


def op_int(number: int) -> bytes:
    data = number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8b" + struct.pack("<L", len(data)) + data


def op_tuple(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def op_tensor(
    shape: bytes = op_tuple(op_int(4), op_int(3)),
    strides: bytes = op_tuple(op_int(3), op_int(1)),
    offset: int = 0,
    key: str = "0",
    kind: bytes = op_global("torch", "FloatStorage"),
) -> bytes:
    storage = op_tuple(op_text("storage"), kind, op_text(key), op_text("cpu"), op_int(12)) + b"Q"
    arguments = op_tuple(storage, op_int(offset), shape, strides, b"\x89", b"}")
    return op_global("torch._utils", "_rebuild_tensor_v2") + arguments + b"R"


def op_dict(items: dict[str, bytes]) -> bytes:
    return b"}(" + b"".join(op_text(name) + value for name, value in items.items()) + b"u"


BIAS_OPS = op_tensor(op_tuple(op_int(4)), op_tuple(op_int(1)), key="1")


def torch_file(content: bytes, *more: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A file as torch saves it, with this pickle of instructions."""
    members = [
        ("m/data.pkl", b"\x80\x02" + content + b"."),
        ("m/data/0", WEIGHT.tobytes()),
        ("m/data/1", BIAS.tobytes()),
    ]
    return zipped([*members, *more], compression)


def torch_with(weight: bytes = op_tensor(), **more: bytes) -> bytes:
    return torch_file(op_dict({"fc.weight": weight, "fc.bias": BIAS_OPS, **more}))


def legacy(pickles: list[object], rest: bytes = b"") -> bytes:
    magic = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    return b"".join(part if isinstance(part, bytes) else pickle.dumps(part, 2) for part in (*magic, *pickles)) + rest


GOOD_DICT = b"\x80\x02" + op_dict({"fc.weight": op_tensor(), "fc.bias": BIAS_OPS}) + b"."
# A state as numpy's dtypes take it, by which a BUILD would change one that the whole process uses.
DTYPE_STATE = op_tuple(op_int(3), op_text("<"), b"N", b"N", b"N", op_int(-1), op_int(-1), op_int(0))
DTYPE = op_global("numpy", "dtype") + op_tuple(op_text("f4"), b"\x89", b"\x88") + b"R"
COLLIDING = b"".join(op_int((2**61 - 1) * i) + b"N" for i in range(1, 100_000))
TORCH: dict[str, Callable[[], bytes]] = {
    "calls_system": lambda: torch_with(x=op_global("os", "system") + op_tuple(op_text("exit 1")) + b"R"),
    "calls_eval_as_a_tensor": lambda: torch_file(op_global("builtins", "eval") + op_tuple(op_text("1")) + b"R"),
    "builds_a_type": lambda: torch_with(x=DTYPE + DTYPE_STATE + b"b"),
    "builds_a_storage": lambda: torch_with(x=op_global("torch", "BFloat16Storage") + DTYPE_STATE + b"b"),
    "builds_our_function": lambda: torch_with(
        x=op_global("torch._utils", "_rebuild_tensor_v2") + op_dict({"__code__": b"N"}) + b"b"
    ),
    "only_arguments": lambda: torch_file(op_dict({"args": op_global("argparse", "Namespace") + b")\x81}b"})),
    "a_whole_model": lambda: torch_file(op_global("models", "Net\x1b[2J") + b")\x81}b"),
    "nested_lists": lambda: torch_file(b"]" * 100_000 + b"a" * 99_999),
    "nested_dicts": lambda: torch_file((b"}" + op_text("a")) * 50_000 + b"N" + b"s" * 50_000),
    "a_dict_in_itself": lambda: torch_file(b"}q\x00" + op_text("a") + b"h\x00s"),
    "doubled_dicts": lambda: torch_file(
        b"}q\x00" + b"".join(b"}(" + op_text("a") + b"h\x00" + op_text("b") + b"h\x00uq\x00" for _ in range(60))
    ),
    "a_memo_of_gigabytes": lambda: torch_file(b"Nr\xff\xff\xff\x7f" + op_dict({})),
    "a_bytearray_of_terabytes": lambda: torch_file(b"\x96" + struct.pack("<Q", 2**42)),
    "bytes_beyond_all_memory": lambda: torch_file(b"\x8e" + struct.pack("<Q", 2**62)),
    "too_many_instructions": lambda: torch_file(b"N0" * 1_000_000),
    "colliding_keys": lambda: torch_with(x=b"}(" + COLLIDING + b"u"),
    "a_tensor_of_terabytes": lambda: torch_with(
        op_tensor(op_tuple(op_int(10**6), op_int(10**6)), op_tuple(b"K\0", b"K\0"))
    ),
    "negative_offset": lambda: torch_with(op_tensor(offset=-4)),
    "beyond_its_storage": lambda: torch_with(op_tensor(offset=4)),
    "sizes_no_numbers": lambda: torch_with(op_tensor(op_tuple(op_text("4"), op_text("3")))),
    "enormous_sizes": lambda: torch_with(op_tensor(op_tuple(op_int(1 << 100_000), op_int(3)))),
    "many_sizes": lambda: torch_with(op_tensor(op_tuple(*[op_int(1 << 30)] * 10_000), op_tuple(*[op_int(1)] * 10_000))),
    "a_storage_elsewhere": lambda: torch_with(op_tensor(key="../../../etc/passwd")),
    "a_storage_of_nothing_known": lambda: torch_with(op_tensor(kind=op_global("os", "system"))),
    "no_storage": lambda: torch_with(op_tensor(key="7")),
    "truncated_pickle": lambda: zipped([("m/data.pkl", GOOD_DICT[:-40]), ("m/data/0", WEIGHT.tobytes())]),
    "empty_stack": lambda: torch_file(b"0000"),
    "a_tuple_of_nothing": lambda: torch_file(b"\x87"),
    "two_pickles": lambda: torch_file(op_dict({}), ("n/data.pkl", GOOD_DICT)),
    "no_pickle": lambda: zipped([("m/data/0", bytes(4))]),
    "big_endian": lambda: torch_file(GOOD_DICT[2:-1], ("m/byteorder", b"big")),
    "bomb": lambda: torch_file(GOOD_DICT[2:-1], ("m/data/2", BOMB), compression=zipfile.ZIP_DEFLATED),
    "a_pickle_of_zeros": lambda: zipped([("m/data.pkl", BOMB)], zipfile.ZIP_DEFLATED),
    "legacy_storage_beyond_the_file": lambda: legacy([GOOD_DICT, ["0", "1"]], struct.pack("<Q", 2**63) + bytes(8)),
    "legacy_without_storages": lambda: legacy([GOOD_DICT]),
    "legacy_of_unknown_storages": lambda: legacy([GOOD_DICT, ["9"]], bytes(64)),
    "legacy_facts_no_dict": lambda: legacy([])[:-20] + b"N.",
    "several_state_dicts": lambda: torch_file(op_dict({"a": GOOD_DICT[2:-1], "b": GOOD_DICT[2:-1]})),
    "a_number_beside": lambda: torch_with(epoch=op_int(3)),
    "sets_as_dicts": lambda: torch_file(b"\x8f(" + op_text("a") + b"N" + b"u"),
    "an_extension": lambda: torch_file(b"\x82\x01"),
}

# The index of shards, and what is no such file at all

SHARD = "model-00001-of-00001.safetensors"
INDEX: dict[str, str] = {
    "elsewhere": json.dumps({"weight_map": {"fc.weight": "../x.safetensors"}}),
    "absolute": json.dumps({"weight_map": {"fc.weight": "/etc/passwd"}}),
    "of_an_index": json.dumps({"weight_map": {"fc.weight": "of_an_index.index.json"}}),
    "of_numbers": json.dumps({"weight_map": {"fc.weight": 3}}),
    "no_map": json.dumps({"metadata": {}}),
    "a_list_for_a_map": json.dumps({"weight_map": ["fc.weight"]}),
    "a_list": "[]",
    "nested": "[" * 200_000,
    "nested_map": '{"weight_map":' * 100_000,
    "a_key_twice": f'{{"weight_map": {{"fc.weight": "{SHARD}", "fc.weight": "other.safetensors"}}}}',
    "huge": '{"weight_map": {' + ",".join(f'"{i}": "{SHARD}"' for i in range(250_000)) + "}}",
    "no_text": "\udcff",
    "missing_shard": json.dumps({"weight_map": {"fc.weight": "missing.safetensors"}}),
    "a_long_number": '{"weight_map": ' + "9" * 100_000 + "}",
}


def _strange(folder: Path) -> Iterator[Path]:
    """What stands where a file is expected."""
    contents = {
        "empty.bin": b"",
        "page.bin": b"\n<!DOCTYPE html><html><body>Sign in</body></html>",
        "page.safetensors": b"<html>404</html>",
        "pointer.safetensors": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "text.pth": b"not weights\n" * 9,
        "zeros.pt": bytes(1000),
        "noise.onnx": random.Random(0).randbytes(1000),
        "weights.h5": b"\x89HDF\r\n\x1a\n",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        yield folder / name
    os.mkfifo(folder / "pipe.safetensors")
    (folder / "folder.bin").mkdir()
    for name, target in (("device.npz", "/dev/zero"), ("loop.pth", "loop.pth"), ("dangling.pth", "nowhere")):
        (folder / name).symlink_to(target)
    for name in ("pipe.safetensors", "folder.bin", "device.npz", "loop.pth", "dangling.pth"):
        yield folder / name


def _damaged(folder: Path, rng: random.Random) -> Iterator[Path]:
    """Good files that were cut, or in which a bit was flipped where a checksum or the format shows it, without end."""
    good = {".npz": npz(npy()), ".pth": torch_with(), ".safetensors": b""}
    save_file(GOOD, folder / "good.safetensors")
    good[".safetensors"] = (folder / "good.safetensors").read_bytes()
    for number in range(1_000_000):
        suffix = rng.choice(list(good))
        content = bytearray(good[suffix])
        if rng.random() < 0.5:
            content = content[: rng.randrange(1, len(content) - 1)]
        elif suffix == ".safetensors":
            content[rng.randrange(0, 8)] ^= 1 << rng.randrange(8)  # the length of its header
        else:
            array = content.index(WEIGHT.tobytes())
            content[array + rng.randrange(WEIGHT.nbytes)] ^= 1 << rng.randrange(8)
        path = folder / f"damaged{number}{suffix}"
        path.write_bytes(content)
        yield path


# Of which each takes some tenths of a second, and seconds where types are checked.
LONG = {"nested_lists", "nested_dicts", "colliding_keys", "too_many_instructions", "many_names", "many_sizes", "huge"}


def make(folder: Path, count: int = 150, seed: int = 0, long: bool = True) -> list[Path]:
    """Makes at most `count` hostile files in a folder: each kind once, and then damaged ones.

    Args:
        folder: an empty one.
        count: how many.
        seed: of the damage.
        long: whether those of `LONG` are among them.

    Returns:
        Their paths; each is to be refused by `read`.
    """
    paths = []
    for suffix, kinds in ((".safetensors", SAFETENSORS), (".npz", NPZ), (".pth", TORCH), (".index.json", INDEX)):
        for name, content in kinds.items():
            if name in LONG and not long:
                continue
            path = folder / f"{name}{suffix}"
            content = content() if callable(content) else content
            path.write_bytes(content if isinstance(content, bytes) else content.encode(errors="surrogateescape"))
            paths.append(path)
    paths += _strange(folder)
    damaged = _damaged(folder, random.Random(seed))
    return paths[:count] + [next(damaged) for _ in range(count - len(paths))]
