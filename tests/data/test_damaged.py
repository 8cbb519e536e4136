"""Two hundred damaged inputs: one line that names the file or the row; or skipped, counted and listed; never a hang."""

import io
import os
import shutil
import signal
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.data.test_tasks import load
from tests.data.test_tfds import IMAGE, TWO, make
from tljax.errors import InputError

FORMATS = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "bmp": "BMP", "tif": "TIFF", "gif": "GIF"}


@dataclass
class Case:
    """A damaged input.

    Attributes:
        lay: puts it into a folder and gives the data set's name.
        says: what the error must say.
        skipped: what is skipped with `on_error=skip`, ids or ends of them; None where the whole set is of no use.
        kept: how many examples are left then.
        keys: of the config.
    """

    lay: Callable[[Path], str]
    says: str
    skipped: list[str] | None = None
    kept: int = 4
    keys: dict[str, Any] = field(default_factory=dict)


def encoded(format: str, seed: int = 0, size: tuple[int, int] = (24, 32)) -> bytes:
    data = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(data, format, **({"quality": 90} if format in ("JPEG", "WEBP") else {}))
    return data.getvalue()


WHOLE = {suffix: encoded(format) for suffix, format in FORMATS.items()}


def folder(root: Path) -> Path:
    """Four images that are as they should be."""
    for name in ("a/0.png", "a/1.png", "b/0.png", "b/1.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(WHOLE["png"])
    return root


def image_case(suffix: str, data: bytes) -> Case:
    def lay(root: Path) -> str:
        (folder(root) / "b" / f"bad.{suffix}").write_bytes(data)
        return f"folder:{root}"

    return Case(lay, f"b/bad.{suffix}: not a readable image", [f"b/bad.{suffix}"])


def png(width: int, height: int, mode: int = 2, depth: int = 8) -> bytes:
    """A PNG that claims a size, a color type and a depth, and has one row."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, mode, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def images() -> Iterator[tuple[str, Case]]:
    for suffix, whole in WHOLE.items():
        for part in (0.1, 0.3, 0.5, 0.7, 0.9):
            yield f"{suffix} cut at {part}", image_case(suffix, whole[: int(part * len(whole))])
        for length in (0, 1, 8, 24):
            yield f"{suffix} cut after {length} bytes", image_case(suffix, whole[:length])
        noise = np.random.default_rng(1).bytes(500)
        starts = {"noise": b"", "the first bytes and noise": whole[:12], "the header and noise": whole[:20]}
        for what, start in starts.items():
            yield f"{suffix} of {what}", image_case(suffix, start + noise)
        yield f"{suffix} that is text", image_case(suffix, b"<html>404 Not Found</html>\n" * 20)
    for place in range(20, len(WHOLE["png"]) - 12, len(WHOLE["png"]) // 8):
        broken = bytearray(WHOLE["png"])
        broken[place] ^= 0xFF
        yield f"png with byte {place} flipped", image_case("png", bytes(broken))
    for width, height in ((10**5, 10**5), (2**31 - 1, 2**31 - 1), (10**9, 1), (0, 5)):
        yield f"png of {width} × {height}", image_case("png", png(width, height))
    for mode, depth in ((7, 8), (2, 3)):
        yield f"png of color type {mode} and depth {depth}", image_case("png", png(4, 4, mode, depth))
    for suffix, place, size in (("bmp", 18, b"\xff\xff\xff\x7f" * 2), ("gif", 6, b"\xff" * 4)):
        huge = bytearray(WHOLE[suffix])
        huge[place : place + len(size)] = size
        yield f"{suffix} with huge sides", image_case(suffix, bytes(huge))


def odd_file(lay_one: Callable[[Path], None], says: str) -> Case:
    def lay(root: Path) -> str:
        lay_one(folder(root) / "b" / "bad.png")
        return f"folder:{root}"

    return Case(lay, f"b/bad.png: {says}", ["b/bad.png"])


def a_loop(path: Path) -> None:
    path.symlink_to(path)


def a_folder(path: Path) -> None:
    (path / "deep").mkdir(parents=True)


def an_empty_class(root: Path) -> str:
    (folder(root) / "c").mkdir()
    return f"folder:{root}"


def files() -> Iterator[tuple[str, Case]]:
    yield "a folder named like an image", odd_file(a_folder, "has the suffix of an image, and is no file")
    yield "a pipe", odd_file(os.mkfifo, "has the suffix of an image, and is no file")
    yield "a link to nothing", odd_file(lambda path: path.symlink_to("none.png"), "cannot be read (No such file")
    yield "a link to itself", odd_file(a_loop, "cannot be read (Too many levels of symbolic links")
    yield (
        "a link to a device",
        odd_file(lambda path: path.symlink_to("/dev/zero"), "has the suffix of an image, and is"),
    )
    yield "an empty class", Case(an_empty_class, "class folder 'c' has no .jpg|")


def table(file: str, content: str | bytes, says: str, skipped: list[str] | None = None, **keys: Any) -> Case:
    """A file of a table, beside a folder of images."""

    def lay(root: Path) -> str:
        folder(root)
        (root / file).write_bytes(content.encode() if isinstance(content, str) else content)
        return f"csv:{root / file}"

    return Case(lay, says, skipped, keys=keys)


PICTURES = "image,label,split\na/0.png,x,train\nb/0.png,y,train\na/1.png,x,train\nb/1.png,y,train\n"
TEXTS = "text,label\np,x\nq,y\nr,x\ns,y\n"
IDS = "id,text,label\n1,p,x\n2,q,y\n3,r,x\n4,s,y\n"
NUMBERS = "text,v,w\np,1,2\nq,2,3\nr,3,4\ns,4,5\n"
FLAGS = "text,f,g\np,0,1\nq,1,0\nr,1,1\ns,0,0\n"


def tables() -> Iterator[tuple[str, Case]]:
    line = "t.csv, line 6"
    rows = {
        "a missing file": ("a/9.png,x,train", "/a/9.png: cannot be read (No such file or directory)"),
        "a path of a folder": ("a,x,train", "/a: is no file"),
        "a path that is empty": (",x,train", "names no image"),
        "a path with a NUL": ("a\0.png,x,train", "embedded null"),
        "a path that is too long": (f"{'a' * 5000},x,train", "cannot be read (File name too long)"),
        "an empty label": ("a/0.png,,train", "the label is empty"),
        "a label of spaces": ("a/0.png,  ,train", "the label is empty"),
        "too few cells": ("a/0.png,x", "has 2 cells, and the header 3"),
        "too many cells": ("a/0.png,x,train,", "has 4 cells, and the header 3"),
        "one cell": ("a/0.png", "has 1 cells, and the header 3"),
        "a path that is no UTF-8": (b"a/\xff.png,x,train", "is not valid UTF-8"),
        "a label that is no UTF-8": (b"a/0.png,\xe9,train", "is not valid UTF-8"),
    }
    for what, (row, says) in rows.items():
        data = row if isinstance(row, bytes) else row.encode()
        yield f"csv with {what}", table("t.csv", PICTURES.encode() + data + b"\n", f"{line}: ", [line])
        yield f"csv with {what}, said", table("t.csv", PICTURES.encode() + data + b"\n", says, [line])
    for what, split in {"unknown": "trian", "empty": "", "of spaces": " ", "another language's": "prüfung"}.items():
        says = f"{line}: split {split.strip()!r} is none of train, val, valid, validation, dev, test; mend it"
        yield f"csv with a split that is {what}", table("t.csv", f"{PICTURES}a/0.png,x,{split}\n", says)
    for what, (text, says) in {
        "no bytes": (b"", "t.csv, line 1: must name the columns, each once; it is []"),
        "a header alone": (TEXTS[:11], "t.csv: has no rows under its header"),
        "a column twice": ("text,label,label\na,b,c\n", "line 1: must name the columns, each once"),
        "UTF-16": (TEXTS.encode("utf-16"), "t.csv: is UTF-16; save it as UTF-8"),
        "no column of text or image": (
            "t,label\na,b\n",
            "t.csv: inputs are in no column: set task.image or task.text",
        ),
        "both text and image": ("text,image,label\na,b,c\n", "could be read from image or text: set task.image or"),
        "a label's column mistyped": ("text,lable\na,b\n", "no column 'label'; did you mean lable? it has text, lable"),
        "semicolons": (TEXTS.replace(",", ";"), "line 1: the only column is 'text;label'; set task.separator=';'"),
        "a quote that never ends": (f'{TEXTS}"t,x\nu,y\n', "t.csv, line 6: unexpected end of data"),
        "a quote within quotes": (f'{TEXTS}"t"t,x\n', "t.csv, line 6: ',' expected after '\"'"),
        "a class of two lines": (f'{TEXTS}t,"z\nz"\n', r"class name 'z\nz' is empty, has a line break"),
    }.items():
        yield f"csv with {what}", table("t.csv", text, says)
    yield "csv that is a folder", Case(lambda root: f"csv:{folder(root)}", ": no such file")
    yield "csv that is missing", Case(lambda root: f"csv:{root}/t.csv", "t.csv: no such file")
    for key, names, says in (
        ("image", "imgae", "no column 'imgae'; did you mean image?"),
        ("label", ("labell",), "no column 'labell'; did you mean label?"),
        ("split", "spilt", "no column 'spilt'; did you mean split?"),
        ("label", ("label", "split"), "task.problem=single_label takes one column"),
        ("text", ("image", "label", "split"), "an example has one text or two"),
    ):
        yield f"csv with task.{key}={names}", table("t.csv", PICTURES, says, **{key: names})
    for what, (row, says) in {
        "an id twice": ("2,t,x", "t.csv, line 6: has the id '2', as has "),
        "an id and a label of nothing": ("2,t,", "has the id '2', as has "),
        "an empty id": (" ,t,x", "t.csv, line 6: the id is empty"),
    }.items():
        yield f"csv with {what}", table("t.csv", f"{IDS}{row}\n", says, [line])
    for value in ("nan", "inf", "-inf", "", "abc", "1e309", "1,5", "None", "0x1", "١e٩٩٩"):
        cell = f'"{value}"'
        says = f"{line}: w is {value!r}, which is no finite number"
        yield (
            f"csv with the value {value}",
            table("t.csv", f"{NUMBERS}t,0,{cell}\n", says, [line], problem="regression", label=("v", "w")),
        )
    for value in ("2", "", "yes", "-1", "0.5"):
        says = f"{line}: g is {value!r}, neither 0 nor 1"
        yield (
            f"csv with the flag {value}",
            table("t.csv", f"{FLAGS}t,0,{value}\n", says, [line], problem="multi_label", label=("f", "g")),
        )
    lines = 'text,label\n"p\n\np",x\n\n"q\r\nq",y\nr,x\ns,y\nt,\n'
    yield "csv after rows of several lines", table("t.csv", lines, "t.csv, line 10: the label", ["line 10"])
    yield (
        "tsv with a row of commas",
        table("t.tsv", TEXTS.replace(",", "\t") + "t,x\n", "t.tsv, line 6: has 1", ["line 6"]),
    )


def parquet(columns: dict[str, Any], says: str, skipped: list[str] | None = None, **keys: Any) -> Case:
    def lay(root: Path) -> str:
        pq.write_table(pa.table(columns), folder(root) / "t.parquet")
        return f"parquet:{root / 't.parquet'}"

    return Case(lay, says, skipped, keys=keys)


def cut_parquet(part: float) -> Case:
    def lay(root: Path) -> str:
        root.mkdir()
        pq.write_table(pa.table({"text": ["a", "b"] * 500, "label": ["x", "y"] * 500}), root / "t.parquet")
        whole = (root / "t.parquet").read_bytes()
        (root / "t.parquet").write_bytes(whole[: int(part * len(whole))])
        return f"parquet:{root / 't.parquet'}"

    return Case(lay, "t.parquet: not a whole parquet file (")


def parquets() -> Iterator[tuple[str, Case]]:
    paths, classes, row = ["a/0.png", "a/1.png", "b/0.png", "b/1.png"], ["x", "x", "y", "y"], "t.parquet, row 4"
    data = [WHOLE["png"]] * 4
    for part in (0, 0.01, 0.1, 0.5, 0.9, 0.99):
        yield f"parquet cut at {part}", cut_parquet(part)
    yield (
        "parquet without rows",
        parquet({"text": pa.array([], "string"), "label": pa.array([], "string")}, "has no rows"),
    )
    lists = {"text": ["a", "b"], "label": [["x"], ["y"]]}
    yield (
        "parquet with lists for labels",
        parquet(lists, "row 0: label is ['x'], and with task.problem=single_label an example has one class"),
    )
    yield (
        "parquet without labels",
        parquet({"text": ["a"], "class": ["b"]}, "no column 'label'; set task.label; it has text, class"),
    )
    for what, (column, value, says) in {
        "a label that is null": ("label", None, f"{row}: the label is empty"),
        "a path that is null": ("image", None, f"{row}: names no image"),
        "a path to nothing": ("image", "a/9.png", f"{row}: "),
    }.items():
        columns = {"image": [*paths, "a/0.png"], "label": [*classes, "x"]}
        columns[column][-1] = value
        yield f"parquet with {what}", parquet(columns, says, [row])
    for what, (bad, says, id) in {
        "no bytes": (None, f"{row}: names no image", "00000004"),
        "bytes that are cut off": (data[0][:99], "00000004: not a readable image", "00000004"),
        "empty bytes": (b"", "00000004: not a readable image", "00000004"),
    }.items():
        yield f"parquet with {what}", parquet({"image": [*data, bad], "label": [*classes, "x"]}, says, [id])
    yield (
        "parquet with a NaN",
        parquet(
            {"text": list("pqrst"), "label": [1.0, 2.0, 3.0, 4.0, float("nan")]},
            f"{row}: label is nan, which is no finite number",
            [row],
            problem="regression",
        ),
    )
    yield (
        "parquet with a list that is null",
        parquet(
            {"text": list("pqrst"), "label": [["x"], ["y"], [], ["x", "y"], None]},
            f"{row}: the label is empty",
            [row],
            problem="multi_label",
        ),
    )
    yield (
        "parquet with a text that is null",
        parquet({"text": [*"pqrs", None], "label": [*classes, "x"]}, f"{row}: text is None, which is no text", [row]),
    )
    yield (
        "parquet with numbers for texts",
        parquet({"text": [1, 2], "label": ["x", "y"]}, "row 0: text is 1, "),
    )


def hugging_face(change: Callable[[Path], None], says: str, **columns: Any) -> Case:
    def lay(root: Path) -> str:
        import datasets

        datasets.disable_progress_bars()
        names = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["x", "y"])})
        rows = {"text": list("pqrst"), "label": [0, 1, 0, 1, 0]} | columns
        datasets.Dataset.from_dict(rows, features=names).save_to_disk(str(root))
        change(root)
        return f"hf:{root}"

    keys = {"skipped": ["train, row 4"]} if columns else {}
    return Case(lay, says, **keys)


def cut_off(pattern: str, length: int) -> Callable[[Path], None]:
    def cut(root: Path) -> None:
        (file,) = root.glob(pattern)
        file.write_bytes(file.read_bytes()[:length])

    return cut


def gone(pattern: str) -> Callable[[Path], None]:
    def remove(root: Path) -> None:
        for file in root.glob(pattern):
            file.unlink()

    return remove


def tfds_set(change: Callable[[Path], None], says: str, skipped: list[str] | None = None, **last: Any) -> Case:
    def lay(root: Path) -> str:
        rows = [{"image": WHOLE["png"], "label": i % 2} for i in range(5)]
        rows[4] |= last
        path = make(root, {"image": IMAGE, "label": TWO}, {"train": rows})
        change(path)
        return f"tfds:{path}"

    return Case(lay, says, skipped)


def nothing(root: Path) -> None:
    pass


def others() -> Iterator[tuple[str, Case]]:
    row = "hf:"
    yield "hf with a label of none", hugging_face(nothing, "train, row 4: label -1 is none of", label=[0, 1, 0, 1, -1])
    yield "hf with a text of none", hugging_face(nothing, "train, row 4: text is None", text=[*"pqrs", None])
    yield "hf with its arrow gone", hugging_face(gone("*.arrow"), row)
    yield "hf with its arrow cut off", hugging_face(cut_off("*.arrow", 300), row)
    yield "hf with its arrow empty", hugging_face(cut_off("*.arrow", 0), row)
    yield "hf with its state cut off", hugging_face(cut_off("state.json", 20), row)
    yield "hf with its info cut off", hugging_face(cut_off("dataset_info.json", 20), row)
    yield "hf of nothing", Case(lambda root: f"hf:{root}", "no such folder")
    yield "tfds with an image that is none", tfds_set(nothing, "not a readable image", ["0000000"], image=b"none")
    yield "tfds with an image that is empty", tfds_set(nothing, "not a readable image", ["0000000"], image=b"")
    yield (
        "tfds with a label of none",
        tfds_set(nothing, "label -1 is none of the classes", ["0000000"], label=-1),
    )
    shard = "*.array_record-*"
    yield "tfds with a shard gone", tfds_set(gone(shard), "array_record-00000-of-00001: no such file")
    for length in (0, 1000, 2**16, 2**16 + 500):
        yield f"tfds with a shard of {length} bytes", tfds_set(cut_off(shard, length), "train, record 0")
    yield "tfds with its info cut off", tfds_set(cut_off("dataset_info.json", 30), "damaged (")
    yield "tfds with its features cut off", tfds_set(cut_off("features.json", 30), "damaged (")
    yield "tfds with its info gone", tfds_set(gone("dataset_info.json"), "no dataset_info.json in it")


CASES = dict([*images(), *files(), *tables(), *parquets(), *others()])


@pytest.fixture(autouse=True)
def in_time(tmp_path, monkeypatch):
    monkeypatch.setenv("TLJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))

    def late(*_):
        raise TimeoutError("hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_there_are_two_hundred():
    assert len(CASES) >= 200


@pytest.mark.parametrize("name", CASES)
def test_damage_is_named_or_skipped_and_counted(tmp_path, capsys, name):
    case = CASES[name]
    dataset = case.lay(tmp_path / "data")
    with pytest.raises(InputError) as error:
        load(dataset, **case.keys)
    assert case.says in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    left = [path for path in (tmp_path / "cache" / "datasets").glob("*") if path.suffix != ".lock"]
    assert not left
    if case.skipped is None:
        with pytest.raises(InputError):
            load(dataset, on_error="skip", **case.keys)
        return
    task = load(dataset, on_error="skip", **case.keys)
    assert len(task.skipped) == len(case.skipped)
    for one, id in zip(task.skipped, case.skipped, strict=True):
        assert id in one["id"] and len(one["reason"].splitlines()) == 1
    assert sum(len(base.index) for base in task.bases.values()) == case.kept
    total = len(case.skipped) + case.kept
    assert f"{len(case.skipped)} of {total} examples are left out: " in capsys.readouterr().out


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_wrong_suffix_with_an_image_is_fine(tmp_path, suffix):
    for other in FORMATS:
        (folder(tmp_path / "data") / "a" / f"{other}.{suffix}").write_bytes(WHOLE[other])
    assert len(load(f"folder:{tmp_path / 'data'}").bases["train"].index) == 10


def test_what_may_not_be_read_is_named(tmp_path, monkeypatch):
    root = folder(tmp_path / "data")
    read = Path.read_bytes

    def refused(path: Path) -> bytes:  # as the system does, but also where the tests run as root
        if path.name == "1.png":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(InputError, match=r"[ab]/1\.png: cannot be read \(Permission denied\); mend or remove it"):
        load(f"folder:{root}")
    task = load(f"folder:{root}", on_error="skip")
    assert sorted(one["id"] for one in task.skipped) == ["a/1.png", "b/1.png"]


def test_a_split_of_which_nothing_is_left_is_an_error(tmp_path):
    for split in ("train", "test"):
        folder(tmp_path / "data" / split)
    for name in ("a/0.png", "a/1.png", "b/0.png", "b/1.png"):
        (tmp_path / "data" / "test" / name).write_bytes(b"")
    with pytest.raises(InputError, match=r"no example of test can be used; the first: test/./.\.png: not a readable"):
        load(f"folder:{tmp_path / 'data'}", on_error="skip")
    shutil.rmtree(tmp_path / "data" / "test")
    assert len(load(f"folder:{tmp_path / 'data'}").bases["train"].index) == 4
