"""How tables and their labels are read: every file of `cases/tables` with its right value, and what is like them."""

import gzip
import json
import os
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import ROOT, make_folder, tiny_run
from tests.data import made
from tljax.config.schema import TaskConfig
from tljax.core.inputs import Inputs
from tljax.data import dataset
from tljax.data.dataset import Source
from tljax.data.labels import in_order, infer
from tljax.data.sources import folder as sources_folder
from tljax.data.sources import huggingface
from tljax.data.sources import table as sources_table
from tljax.data.sources.table_files import kind_of, read_table
from tljax.errors import InputError
from tljax.weights.adapt import class_subset

CASES = ROOT / "tests" / "cases" / "tables"


@contextmanager
def refused(message: str) -> Iterator[None]:
    """What is inside ends in an InputError of one line with this in it."""
    with pytest.raises(InputError) as error:
        yield
    assert message in str(error.value) and "\n" not in str(error.value)


HOT = {"problem": "multi_label", "label": ("labels",)}


def read(path: Path, **keys: Any) -> Source:
    return sources_table.READERS[kind_of(str(path))](str(path), TaskConfig(**keys))


def labels(source: Source) -> list[Any]:
    return [item.label for item in source.splits["train"]]


def texts(source: Source) -> list[str]:
    return [item.read() for item in source.splits["train"]]


def rows(folder: Path, cells: list[Any], **keys: Any) -> Source:
    """What is read of JSON lines with these labels."""
    lines = [json.dumps({"text": f"text {i}", "label": cell}) for i, cell in enumerate(cells)]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    return read(folder / "rows.jsonl", **keys)


def test_lists_of_0_and_1_are_multi_hot(shapes, tmp_path, capsys):
    for name in "abcd":
        (tmp_path / f"{name}.png").write_bytes((shapes / "disc" / "00.png").read_bytes())
    (tmp_path / "hot.jsonl").write_bytes((CASES / "multi_hot_list.jsonl").read_bytes())
    source = read(tmp_path / "hot.jsonl", **HOT)
    assert source.classes == ("class_0", "class_1", "class_2")
    assert labels(source) == [(0,), (1, 2), (), (0, 1)]
    said = "column 'labels' read as multi-hot, 3 classes (class_0, class_1, class_2); line 1 [1, 0, 0] -> class_0\n"
    assert capsys.readouterr().out == f"jsonl:{tmp_path}/hot.jsonl: labels: {said}"
    assert read(tmp_path / "hot.jsonl", classes=("x", "y", "z"), **HOT).classes == ("x", "y", "z")
    with refused("task.classes has 2 names (x, y), and there are 3 places in the lists"):
        read(tmp_path / "hot.jsonl", classes=("x", "y"), **HOT)
    text = read(CASES / "multi_hot_text.csv", **HOT)
    assert text.classes == ("class_0", "class_1") and labels(text) == [(0,), (1,), (), (0, 1)]


@pytest.mark.parametrize(
    "cells",
    [
        ["0 1 0", "1 1 0"],
        ["0,1,0", "1,1,0"],
        ["[0 1 0]", "[1. 1. 0.]"],
        ["(0, 1, 0)", "(1, 1, 0)"],
        [[False, True, False], [True, True, False]],
        [[0.0, 1.0, 0.0], [1.0, 1.0, 0.0]],
    ],
)
def test_multi_hot_however_it_is_written(tmp_path, cells):
    source = rows(tmp_path, cells, problem="multi_label")
    assert source.classes == ("class_0", "class_1", "class_2") and labels(source) == [(1,), (0, 1)]


def test_one_column_of_0_and_1(tmp_path):
    one = read(CASES / "one_binary_column.csv", problem="multi_label", label=("toxic",))
    assert one.classes == ("toxic",) and labels(one) == [(), (0,), (), (0,)]
    assert rows(tmp_path, [True, False], problem="multi_label").classes == ("label",)
    single = read(CASES / "one_binary_column.csv", label=("toxic",))
    assert single.classes == ("0", "1") and labels(single) == [0, 1, 0, 1]


def test_lists_of_names_and_of_numbers_stay_such(tmp_path):
    for cells, classes, expected in [
        ([["a", "b"], [], ["b"]], ("a", "b"), [(0, 1), (), (1,)]),
        (["['a', 'b']", "[]", '["b"]'], ("a", "b"), [(0, 1), (), (1,)]),
        (["0|1", "1", "0"], ("0", "1"), [(0, 1), (1,), (0,)]),
        (["3 17 4", "17"], ("3", "4", "17"), [(0, 1, 2), (2,)]),
        ([[3, 3, 5], [7]], ("3", "5", "7"), [(0, 1), (2,)]),
        (["[red]", "x"], ("[red]", "x"), [(0,), (1,)]),
    ]:
        source = rows(tmp_path, cells, problem="multi_label")
        assert source.classes == classes and labels(source) == expected


def test_a_doubt_names_both_ways_out(tmp_path):
    ragged = [[0], [1], [0, 1]]
    with refused("line 1: label is [0], and line 3: [0, 1]: class numbers, or multi-hot?"):
        rows(tmp_path, ragged, problem="multi_label")
    numbers = rows(tmp_path, ragged, problem="multi_label", classes=("0", "1"))
    assert labels(numbers) == [(0,), (1,), (0, 1)]
    with refused("line 1: label is [0]: class numbers, or multi-hot?"):
        rows(tmp_path, [[0], [1]], problem="multi_label")
    assert labels(rows(tmp_path, [[0], [1]], problem="multi_label", classes=("on",))) == [(), (0,)]
    with refused("line 1: label is [0, 2, 0]: in a list of class numbers none is there twice"):
        rows(tmp_path, [[0, 2, 0], [1, 0, 0]], problem="multi_label")
    for cells in ([[1, 0], [0, 1]], ["1 0", "0 1"], ["[1, 0]", "[0, 1]"]):
        with refused("set task.problem=multi_label, or write the name of its class"):
            rows(tmp_path, cells)
    with refused("label: no example has a label"):
        rows(tmp_path, [None, None], problem="multi_label")
    with refused("label: 'a, b' is one class as it stands: write the names of several with | between"):
        rows(tmp_path, ["a", "a, b", "b;a"], problem="multi_label")
    assert rows(tmp_path, ["dog, big", "cat, small"], problem="multi_label").classes == ("cat, small", "dog, big")
    named = rows(tmp_path, ["a", "a, b"], problem="multi_label", classes=("a", "a, b"))
    assert labels(named) == [(0,), (1,)]


def test_a_column_that_splits_unasked_is_said(tmp_path, capsys):
    lines = ["text,label,split", *(f"{name} {i},{i % 2},{name}" for name in ("train", "val", "test") for i in range(4))]
    (tmp_path / "x.csv").write_text("\n".join(lines))
    source = read(tmp_path / "x.csv")
    assert {name: len(items) for name, items in source.splits.items()} == {"train": 4, "validation": 4, "test": 4}
    assert "column 'split' names each row's split: train 4, validation 4, test 4" in capsys.readouterr().out


def test_the_order_of_classes_is_one_for_folders_and_tables(tmp_path):
    table = read(CASES / "class_order.csv")
    assert table.classes == ("0", "1", "2", "10", "11") and labels(table) == [3, 2, 0, 1, 4, 3, 2, 0]
    root = make_folder(tmp_path / "data", 1, ("10", "2", "0", "1", "11"))
    assert sources_folder.folder(str(root), TaskConfig()).classes == table.classes
    assert in_order(["img10", "img2", "a", "B", "img02", ""]) == ("", "B", "a", "img02", "img2", "img10")
    assert in_order(["10.5", "-1", "9.5", "0.10"]) == ("-1", "0.10", "9.5", "10.5")
    assert in_order(["9" * 5000, "1", "x" + "9" * 5000])[0] == "1"


def test_one_name_however_it_is_written(tmp_path, capsys):
    source = read(CASES / "same_name_two_forms.csv")
    assert source.classes == ("Café", "True", "true") and labels(source) == [0, 0, 2, 1]
    assert "'True' and 'true' differ in case alone, and are different classes" in capsys.readouterr().out
    for cells in (["true", "FALSE", "True"], [True, False, True]):
        booleans = rows(tmp_path, cells)
        assert booleans.classes == ("False", "True") and labels(booleans) == [1, 0, 1]
    root = make_folder(tmp_path / "data", 1, ("true", "false"))
    assert sources_folder.folder(str(root), TaskConfig()).classes == ("False", "True")


def test_folders_of_one_class(tmp_path):
    forms = [unicodedata.normalize(form, "Café") for form in ("NFC", "NFD")]
    for split, name in zip(("train", "val"), forms, strict=True):
        make_folder(tmp_path / "data" / split, 1, (name, "x"))
    assert sources_folder.folder(str(tmp_path / "data"), TaskConfig()).classes == ("Café", "x")
    make_folder(tmp_path / "data" / "train", 1, (forms[1],))
    with refused("are one class, 'Café': join them"):
        sources_folder.folder(str(tmp_path / "data"), TaskConfig())


def test_classes_that_are_named(tmp_path):
    named = rows(tmp_path, ["b", "a", "b"], classes=("b", "c", "a"))
    assert named.classes == ("b", "c", "a") and labels(named) == [0, 2, 0]
    with refused("line 2: label 'z' is none of task.classes (b, a)"):
        rows(tmp_path, ["b", "z", "a"], classes=("b", "a"))
    for missing in ("nan", "NULL", "N/A", "NA", "None"):
        with refused(f"line 2: label '{missing}' stands for a missing one"):
            rows(tmp_path, ["a", missing, "b"])
        assert rows(tmp_path, ["a", missing, "b"], classes=("a", "b", missing)).classes == ("a", "b", missing)
    with refused("task.classes has the class 'b' twice"):
        rows(tmp_path, ["a", "b"], classes=("a", "b", "b"))
    with refused("line 1: label {'x': 1} is no name of a class"):
        rows(tmp_path, [{"x": 1}, "a", "b"])


def test_names_that_are_there_twice():
    task = made.task({"train": made.base([0, 1])}, ("a", "a"))
    with refused("made has the class 'a' twice"):
        dataset.among(task, ("a", "b"))
    with refused("the run has the class 'a' twice"):
        dataset.among(made.task({"train": made.base([0, 1])}, ("a", "b")), ("a", "a", "b"))
    kernel = np.zeros((2, 3), np.float32)
    with refused("the pretrained head has the class 'crane' 2 times"):
        class_subset(kernel, None, ("crane", "cat", "crane"), ("cat", "crane"))
    assert class_subset(kernel, None, ("crane", "cat", "crane"), ("cat",))["kernel"].shape == (2, 1)
    with refused("the data has the class 'é' twice"):
        infer("single_label", ["label"], [], ("é", "e\u0301"), numbered=True)


def test_a_run_keeps_its_own_order_of_classes():
    """A set whose classes an older version sorted as text is the same set, with labels matched by name."""
    old = made.task({"train": made.base([0, 1, 2, 1])}, ("1", "10", "2"))
    known = dataset.fingerprint("single_label", old.classes, {"train": old.bases["train"].index})
    new = made.task({"train": made.base([0, 2, 1, 2])}, ("1", "2", "10"))
    task = dataset.in_stored_order(new, old.classes, known)
    assert (task.classes, task.fingerprint) == (old.classes, known)
    assert task.bases["train"].index.equals(old.bases["train"].index)
    assert dataset.in_stored_order(new, old.classes, "of other data") is new


def test_a_run_of_before_finds_its_data_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("TLJAX_CACHE", str(tmp_path / "cache"))
    root = make_folder(tmp_path / "data", 4, ("1", "10", "2"))
    with monkeypatch.context() as before:
        before.setattr("tljax.data.labels.in_order", lambda names: tuple(sorted(names)))
        run = tiny_run(f"folder:{root}")
    assert run.resolved.classes == ("1", "10", "2")
    task = Inputs(run.experiment, run.resolved).task
    index = task.bases["train"].index
    assert task.classes == ("1", "10", "2") and len(index) == 12
    for id, label in zip(index.column("id").to_pylist(), index.column("label").to_pylist(), strict=True):
        assert id.startswith(f"{task.classes[label]}/")
    assert tiny_run(f"folder:{root}").resolved.classes == ("1", "2", "10")


def test_a_list_that_a_library_numbers(tmp_path):
    import datasets

    names = datasets.Sequence(datasets.ClassLabel(names=["x", "y", "z"]))
    features = datasets.Features({"text": datasets.Value("string"), "label": names})
    for name, lists, expected in (
        ("hot", [[0, 1, 1], [0, 0, 0]], [(1, 2), ()]),
        ("numbers", [[0, 1], [0]], [(0, 1), (0,)]),
    ):
        data = datasets.Dataset.from_dict({"text": ["a", "b"], "label": lists}, features=features)
        data.save_to_disk(str(tmp_path / name))
        source = huggingface.hf(str(tmp_path / name), TaskConfig(problem="multi_label"))
        assert source.classes == ("x", "y", "z") and labels(source) == expected


def test_empty_texts_are_counted(capsys):
    with refused("2 of 4 texts are empty: line 3, line 4; fill or remove them, or set task.on"):
        read(CASES / "empty_texts.csv")
    source = read(CASES / "empty_texts.csv", on_error="skip")
    assert "empty_texts.csv: 2 of 4 texts are empty: line 3, line 4\n" in capsys.readouterr().out
    assert source.splits["train"][0].read() == "alpha"
    with refused("line 3: the text is empty"):
        source.splits["train"][1].read()


def test_separators_and_quotes(tmp_path):
    with refused("semicolons.csv, line 1: the only column is 'text;label'; set task.separator="):
        read(CASES / "semicolons.csv")
    assert texts(read(CASES / "semicolons.csv", separator=";")) == ["a; b", "c, d"]
    (tmp_path / "tabs.csv").write_text('text\tlabel\n"a\tx\n')
    with refused("set task.separator='tab'"):
        read(tmp_path / "tabs.csv")
    assert texts(read(tmp_path / "tabs.csv", separator="tab", quote="")) == ['"a']
    (tmp_path / "t.tsv").write_text('text\tlabel\n"a ""b""\tc"\tx\n')
    with refused("t.tsv, line 2: has 3 cells, and the header 2; quotes are text here: if they a"):
        read(tmp_path / "t.tsv")
    assert texts(read(tmp_path / "t.tsv", quote='"')) == ['a "b"\tc']
    for keys, message in {
        ("separator", ";;"): "task.separator=';;': one character, or tab",
        ("separator", '"'): "task.separator='\"': one character, or tab",
        ("quote", "''"): "task.quote=\"''\": one character that does not separate cells, or none",
        ("quote", ","): "task.quote=',': one character that does not separate cells, or none",
    }.items():
        with pytest.raises(InputError) as error:
            read(CASES / "rows.csv.gz", **dict([keys]))
        assert str(error.value) == message
    with refused("only a CSV has a separator and quotes"):
        read(CASES / "rows.jsonl", separator=",")


def test_rows_with_other_numbers_of_fields_are_named(tmp_path):
    for name, message in {
        "too_few_fields": "too_few_fields.csv, line 3: has 1 cells, and the header 2",
        "too_many_fields": "too_many_fields.csv, line 3: has 3 cells, and the header 2",
    }.items():
        with refused(message):
            read(CASES / f"{name}.csv")


def test_what_a_table_holds():
    """`read_table` as `predict` uses it: all columns, no labels."""
    quoted = read_table(str(CASES / "predict_quoted.csv"))
    assert quoted.columns == {
        "id": ["7", "8", "9"],
        "text": ["first line\nsecond line, with a comma", 'she said "no"', "plain"],
    }
    assert quoted.where == [f"csv:{CASES}/predict_quoted.csv, line {line}" for line in (2, 4, 5)]
    assert read_table(str(CASES / "predict_bom.csv")).header == ["id", "text"]
    lines = read_table(str(CASES / "rows.jsonl"))
    assert lines.columns == {"id": [1, 2], "text": ["alpha\nbeta", "gamma"], "label": ["x", "y"]}
    assert read_table(str(CASES / "rows.csv.gz")).columns == {"text": ["alpha", "beta"], "label": ["x", "y"]}
    dates = np.array(read_table(str(CASES / "julian_dates.csv")).columns["date"], np.float64)
    assert (len(set(dates)), round(dates.mean(), 6), round(dates.std(), 6)) == (8, 2460000.535, 0.022913)
    seconds = read_table(str(CASES / "unix_seconds.csv")).columns["seconds"]
    assert len(set(map(float, seconds))) == 8


@pytest.mark.parametrize("suffix", ["gz", "zst"])
@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_compressed_tables_are_read(tmp_path, kind, suffix):
    plain = {
        "csv": b"text,label\nalpha,x\nbeta,y\n",
        "tsv": b"text\tlabel\nalpha\tx\nbeta\ty\n",
        "jsonl": b'\xef\xbb\xbf{"text": "alpha", "label": "x"}\r\n\n{"text": "beta", "label": "y"}',
    }
    pq.write_table(pa.table({"text": ["alpha", "beta"], "label": ["x", "y"]}), tmp_path / "t.parquet")
    content = plain.get(kind) or (tmp_path / "t.parquet").read_bytes()
    packed = gzip.compress(content) if suffix == "gz" else pa.compress(content, codec="zstd", asbytes=True)
    path = tmp_path / f"t.{kind}.{suffix}"
    path.write_bytes(packed)
    source = read(path)
    assert (texts(source), labels(source)) == (["alpha", "beta"], [0, 1])
    path.write_bytes(packed[:-1])
    with refused(f"t.{kind}.{suffix}: not a whole {'gzip' if suffix == 'gz' else 'zstd'} file (Truncated"):
        read(path)


def test_lines_that_are_no_json_are_named(tmp_path):
    good = '{"text": "a", "label": "x"}\n'
    for line, message in {
        "{": "line 2: is no JSON (Expecting property name enclosed in double quotes at character 2)",
        '{"text": "b", "text": "c", "label": "y"}': "line 2: has the key 'text' twice",
        '["b", "y"]': "line 2: is a JSON list, and no object",
        '{"txt": "b", "label": "y"}': "line 2: text is None, which is no text",
        '{"text": ["b"], "label": "y"}': "line 2: text is ['b'], which is no text",
        '{"text": "b", "label": NaN}': "line 2: the label is empty",
        '{"text": "b", "label": null}': "line 2: the label is empty",
        "[" * 100_000: "line 2: maximum recursion depth exceeded",
    }.items():
        (tmp_path / "t.jsonl").write_text(good + line + '\n{"text": "d", "label": "y", "more": 1}\n')
        with pytest.raises(InputError) as error:
            read(tmp_path / "t.jsonl")
        assert f"t.jsonl, {message}" in str(error.value)
        assert read(tmp_path / "t.jsonl", on_error="skip").classes == ("x", "y")
    (tmp_path / "t.jsonl").write_bytes(b'{"text": "\xff", "label": "x"}\n' + good.encode())
    assert read_table(str(tmp_path / "t.jsonl")).faults == {0: "is not valid UTF-8"}
    for content, message in {
        '[{"text": "a"}]': "is a JSON array; write one object a line",
        "": "has no rows",
        "{}\n": "line 1: the object is empty",
        "text,label\n": "line 1: is no JSON",
    }.items():
        (tmp_path / "t.jsonl").write_text(content)
        with refused(message):
            read(tmp_path / "t.jsonl")


def test_which_table_a_file_is(tmp_path):
    kinds = {"a.CSV": "csv", "a.tsv.gz": "csv", "a.ndjson.zst": "jsonl", "a.pq": "parquet", "a.txt": "", "a.gz": ""}
    assert {name: kind_of(name) for name in kinds} == kinds
    with refused("a.txt: is no table by its suffix"):
        read_table(str(tmp_path / "a.txt"))
    with refused("csv:a.jsonl: is jsonl by its suffix; give jsonl:a.jsonl"):
        read_table("a.jsonl", "csv")
    (tmp_path / "odd").write_text("text,label\na,x\n")
    assert read_table(str(tmp_path / "odd"), "csv").header == ["text", "label"]
    os.mkfifo(tmp_path / "pipe.csv")
    with refused("no such file"):
        read_table(str(tmp_path / "pipe.csv"))
