"""`predict` on a tiny network: of files, folders and stdin, in every format, and of what cannot be read."""

import csv
import io
import json
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy.special import expit, softmax

from tests.configs_tiny import get_config
from tests.conftest import make_table, tljax
from tljax import __main__
from tljax.checkpoints.workdir import Workdir
from tljax.config.schema import Experiment
from tljax.core.run import Run
from tljax.evals import predict, predictions
from tljax.evals.evaluate import evaluate
from tljax.training.trainer import train

TABLES = Path(__file__).parent / "cases" / "tables"


@pytest.fixture(scope="module", autouse=True)
def _data(shapes, lively_weights, tiny_text_weights, tmp_path_factory):
    os.environ["TLJAX_TEST_FOLDER"] = str(shapes)
    os.environ["TLJAX_TEST_WEIGHTS"] = str(lively_weights)
    os.environ["TLJAX_TEST_TABLE"] = str(make_table(tmp_path_factory.mktemp("table") / "reviews.csv"))
    os.environ["TLJAX_TEST_TEXT_WEIGHTS"] = str(tiny_text_weights)


def _trained(workdir: Path, arg: str, **values) -> Path:
    found = get_config(arg)
    found.update(steps=3, eval_every=0)
    found.optim.warmup_steps = 0
    found.task.update(values)
    train(Experiment.from_config(found), workdir)
    return workdir


@pytest.fixture(scope="module")
def of_images(tmp_path_factory) -> Path:
    return _trained(tmp_path_factory.mktemp("run") / "images", "pretrained")


@pytest.fixture(scope="module")
def of_texts(tmp_path_factory) -> Path:
    return _trained(tmp_path_factory.mktemp("run") / "texts", "text", text=("text",))


def _run(capsys, *arguments: object, status: int = 0) -> tuple[list[str], str]:
    """The lines of stdout, and stderr, of `tljax predict` in this process."""
    capsys.readouterr()
    assert __main__.main(["predict", *map(str, arguments)]) == status
    done = capsys.readouterr()
    return done.out.splitlines(), done.err


def _stdin(monkeypatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_predict_prints_class_names_and_probabilities(of_images, shapes, capsys):
    files = [shapes / "disc" / "00.png", shapes / "square" / "03.png"]
    lines, _ = _run(capsys, f"--workdir={of_images}", *files)
    assert len(lines) == 2
    for file, line in zip(files, lines, strict=True):
        name, *classes = line.split("\t")
        assert name == str(file)
        found = {part.split()[0]: float(part.split()[1]) for part in classes}
        assert set(found) == {"disc", "square"}
        assert sum(found.values()) == pytest.approx(1, abs=2e-4)
        assert list(found.values()) == sorted(found.values(), reverse=True)
    lines, _ = _run(capsys, f"--workdir={of_images}", "--top=1", files[0])
    assert len(lines[0].split("\t")) == 2


def test_predict_takes_a_text_per_line(of_texts, tmp_path):
    (tmp_path / "x.txt").write_text("a good film\nthe plot the plot the plot bad\n")
    lines = tljax("predict", f"--workdir={of_texts}", tmp_path / "x.txt").stdout.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["a good film", "the plot the plot the plot bad"]
    for line in lines:
        found = [part.rsplit(" ", 1) for part in line.split("\t")[1:]]
        assert {name for name, _ in found} == {"negative", "positive"}
        assert sum(float(value) for _, value in found) == pytest.approx(1, abs=2e-4)


def test_a_folder_stdin_and_every_format_give_the_probabilities_of_evaluate(
    of_images, shapes, capsys, monkeypatch, tmp_path
):
    evaluate(of_images, split="train[:24]")
    stored, _ = predictions.load(of_images / "evaluations" / "3-train[:24].parquet")
    wanted = dict(zip(stored.ids, softmax(stored.logits.astype(np.float64), axis=-1), strict=True))
    assert len(wanted) == 24
    out, fixed = tmp_path / "out.csv", f"--workdir={of_images}"
    lines, _ = _run(capsys, fixed, "--format=csv", f"--out={out}", shapes)
    assert lines == [] and not list(tmp_path.glob("*.tmp"))
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert list(rows[0]) == ["id", "prediction", "probability", "p_disc", "p_square"]
    assert [row["id"] for row in rows] == sorted(str(path) for path in shapes.rglob("*.png"))
    for row in rows:
        odds = wanted[str(Path(row["id"]).relative_to(shapes))]
        np.testing.assert_allclose([float(row["p_disc"]), float(row["p_square"])], odds, rtol=1e-6)
        assert row["prediction"] == ("disc", "square")[int(odds.argmax())]
        assert float(row["probability"]) == max(float(row["p_disc"]), float(row["p_square"]))
    _stdin(monkeypatch, "".join(f"{row['id']}\n" for row in rows).encode())
    lines, _ = _run(capsys, fixed, "--format=jsonl", "-")
    for line, row in zip(lines, rows, strict=True):
        found = json.loads(line)
        assert found["id"] == row["id"] and found["prediction"] == row["prediction"]
        assert found["probabilities"] == {name: float(row[f"p_{name}"]) for name in ("disc", "square")}
    for size in (1, 5, 24, 100):
        lines, _ = _run(capsys, fixed, "--format=jsonl", f"--batch-size={size}", shapes)
        assert [json.loads(line)["id"] for line in lines] == [row["id"] for row in rows]
        for line, row in zip(lines, rows, strict=True):
            assert json.loads(line)["probabilities"]["disc"] == pytest.approx(float(row["p_disc"]), rel=1e-5)


def test_what_cannot_be_read_is_named_and_the_others_predicted(of_images, shapes, tmp_path, capsys):
    good = [shapes / "disc" / "00.png", shapes / "square" / "03.png"]
    wanted, _ = _run(capsys, f"--workdir={of_images}", *good)
    (tmp_path / "x.png").write_bytes(b"not an image")
    (tmp_path / "cut.png").write_bytes(good[0].read_bytes()[:300])
    some = [tmp_path / "x.png", good[0], tmp_path / "y.png", tmp_path / "cut.png", good[1]]
    for size in (1, 2, 100):
        lines, told = _run(capsys, f"--workdir={of_images}", f"--batch-size={size}", *some, status=1)
        assert [line.split("\t")[0] for line in lines] == [str(path) for path in good]
        if size == 100:
            assert lines == wanted
        assert "x.png: not a readable image" in told
        assert "cut.png: not a readable image" in told
        assert "y.png: no such file" in told
        assert "3 of 5 could not be read" in told
    lines, told = _run(capsys, f"--workdir={of_images}", tmp_path / "y.png", status=1)
    assert lines == [] and "1 of 1 could not be read" in told
    told = _run(capsys, f"--workdir={of_images}", "a superb film", status=1)[1]
    assert "a superb film: no such file; texts are given by line, in a .txt file or on stdin (-)" in told


def test_lines_that_are_no_text_are_named_and_skipped(of_texts, tmp_path, capsys, monkeypatch):
    content = b"a good film\r\nthe plot\ttwice\nbad \xff film\nthe dull plot"
    (tmp_path / "x.txt").write_bytes(content)
    fixed = (f"--workdir={of_texts}", "--format=jsonl")
    lines, told = _run(capsys, *fixed, tmp_path / "x.txt", tmp_path / "none.txt", status=1)
    assert [json.loads(line)["id"] for line in lines] == ["a good film", "the dull plot"]
    assert "x.txt, line 2: needs one text without a tab" in told
    assert "x.txt, line 3: not UTF-8" in told
    assert "none.txt: no such file" in told
    assert "3 of 5 could not be read" in told
    _stdin(monkeypatch, content)
    again, told = _run(capsys, *fixed, "-", status=1)
    assert again == lines and "stdin, line 2: needs" in told
    assert "name files with a text per line" in _run(capsys, *fixed, tmp_path, status=2)[1]


def _objects(capsys, *arguments: object, status: int = 0) -> tuple[list[dict], str]:
    lines, told = _run(capsys, *arguments, "--format=jsonl", status=status)
    return [json.loads(line, parse_constant=pytest.fail) for line in lines], told


def _asked(monkeypatch) -> list:
    """The texts that the network is given from now on."""
    texts, launch = [], predict._launch

    def launched(run, variables, values, size):
        texts.extend(values)
        return launch(run, variables, values, size)

    monkeypatch.setattr(predict, "_launch", launched)
    return texts


def test_a_table_is_read_as_train_reads_it(of_texts, capsys, monkeypatch, tmp_path):
    texts = _asked(monkeypatch)
    fixed = f"--workdir={of_texts}"
    quoted, bom = TABLES / "predict_quoted.csv", TABLES / "predict_bom.csv"
    objects, _ = _objects(capsys, fixed, quoted)
    assert texts == ["first line\nsecond line, with a comma", 'she said "no"', "plain"]
    where = [(one["id"], one["file"], one["row"]) for one in objects]
    assert where == [("7", str(quoted), 0), ("8", str(quoted), 1), ("9", str(quoted), 2)]
    texts.clear()
    pq.write_table(pa.table({"id": [5, 6], "text": ["eps\nilon", "zeta"]}), tmp_path / "x.parquet")
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbfeta\n")
    files = (bom, f"csv:{bom}", TABLES / "rows.jsonl", TABLES / "rows.csv.gz", f"parquet:{tmp_path}/x.parquet")
    objects, _ = _objects(capsys, fixed, *files, tmp_path / "x.txt")
    assert texts == [*["alpha", "beta"] * 2, "alpha\nbeta", "gamma", "alpha", "beta", "eps\nilon", "zeta", "eta"]
    ids = ["1", "2", "1", "2", 1, 2, "00000000", "00000001", 5, 6, "eta"]  # without a column id, as train has them
    assert [one["id"] for one in objects] == ids
    assert "file" not in objects[-1] and objects[-2]["row"] == 1
    rows = list(csv.DictReader(_run(capsys, fixed, "--format=csv", quoted, tmp_path / "x.txt")[0]))
    where = [(row["id"], row["file"], row["row"]) for row in (rows[0], rows[3])]
    assert where == [("7", str(quoted), "0"), ("eta", "", "")]


def test_columns_and_separators_of_a_table_are_named(of_texts, capsys, monkeypatch, tmp_path):
    texts = _asked(monkeypatch)
    (tmp_path / "x.csv").write_text("id;review;rest\na;b, c;d\n")
    (tmp_path / "x.tsv").write_text('text\tid\nan "odd one\t3\n')
    flags = ("--config.task.text=('review',)", "--config.task.separator=;")
    assert [one["id"] for one in _objects(capsys, f"--workdir={of_texts}", *flags, tmp_path / "x.csv")[0]] == ["a"]
    assert [one["id"] for one in _objects(capsys, f"--workdir={of_texts}", tmp_path / "x.tsv")[0]] == ["3"]
    assert texts == ["b, c", 'an "odd one']
    monkeypatch.setattr(predict, "Run", None)
    for arguments, told in (
        ((flags[1], tmp_path / "x.csv"), "x.csv: no column 'text'; it has id, review, rest: give --config.task.text="),
        ((tmp_path / "x.csv",), "set task.separator=';'"),
        (("--config.seed=1", TABLES / "predict_bom.csv"), "config.seed is the run's, whatever is predicted"),
        (("csv:none.csv",), "csv:none.csv: no such file"),
        ((tmp_path,), "name files with a text per line, or a table"),
        (("README.md",), "README.md: is no table by its suffix, and lines are read of .txt and of stdin (-) alone"),
    ):
        lines, error = _run(capsys, f"--workdir={of_texts}", *arguments, status=2)
        assert told in error and lines == []


def test_rows_that_cannot_be_read_are_named_and_skipped(of_texts, of_images, shapes, capsys, tmp_path):
    (tmp_path / "x.csv").write_bytes(b'id,text\n1,"a\nb"\n2,c,d\n3,\xff\n4,e\n')
    objects, told = _objects(capsys, f"--workdir={of_texts}", tmp_path / "x.csv", status=1)
    assert [one["id"] for one in objects] == ["1", "4"] and "2 of 4 could not be read" in told
    assert "x.csv, line 4: has 3 cells, and the header 2" in told and "x.csv, line 5: is not valid UTF-8" in told
    (tmp_path / "y.jsonl").write_text('{"text": "a"}\n{"text": 3}\n{"text"\n')
    objects, told = _objects(capsys, f"--workdir={of_texts}", tmp_path / "y.jsonl", status=1)
    assert [one["id"] for one in objects] == ["00000000"]
    assert "y.jsonl, line 2: text is 3, which is no text" in told and "y.jsonl, line 3: is no JSON" in told
    shutil.copyfile(shapes / "disc" / "00.png", tmp_path / "00.png")
    (tmp_path / "z.csv").write_text("id,image\nx,00.png\ny,none.png\n,00.png\n")
    objects, told = _objects(capsys, f"--workdir={of_images}", f"csv:{tmp_path / 'z.csv'}", status=1)
    assert [one["id"] for one in objects] == ["x", "00000002/00.png"] and "z.csv, line 3: " in told
    alone, _ = _objects(capsys, f"--workdir={of_images}", f"folder:{tmp_path}")
    assert alone[0]["probabilities"] == pytest.approx(objects[0]["probabilities"], rel=1e-5)


def test_texts_have_the_probabilities_of_evaluate(of_texts, tmp_path, capsys):
    evaluate(of_texts)
    stored, _ = predictions.load(of_texts / "evaluations" / "3-test.parquet")
    rows = list(csv.DictReader(Path(os.environ["TLJAX_TEST_TABLE"]).read_text().splitlines()))
    (tmp_path / "x.txt").write_text("".join(f"{row['text']}\n" for row in rows))
    lines, _ = _run(capsys, f"--workdir={of_texts}", "--format=jsonl", tmp_path / "x.txt")
    found = [json.loads(line) for line in lines]
    assert [one["id"] for one in found] == [row["text"] for row in rows]
    by_text = {one["id"]: one["probabilities"] for one in found}
    test = Run(*Workdir(of_texts).load(), tokenizer=Workdir(of_texts).tokenizer).inputs.splits["test"]
    for example, odds in zip(test, softmax(stored.logits.astype(np.float64), axis=-1), strict=True):
        said = by_text[example["text"]]
        np.testing.assert_allclose([said["negative"], said["positive"]], odds, rtol=1e-5)


@pytest.mark.parametrize("problem", ["multi_label", "regression"])
def test_several_labels_and_values_in_every_format(tmp_path, capsys, problem):
    label = ("both",) if problem == "multi_label" else ("length",)
    workdir = _trained(tmp_path / "run", "text", problem=problem, label=label, text=("text",))
    evaluate(workdir)
    stored, _ = predictions.load(workdir / "evaluations" / "3-test.parquet")
    test = Run(*Workdir(workdir).load(), tokenizer=Workdir(workdir).tokenizer).inputs.splits["test"]
    (tmp_path / "x.txt").write_text("".join(f"{one['text']}\n" for one in test))
    lines, _ = _run(capsys, f"--workdir={workdir}", "--format=csv", tmp_path / "x.txt")
    rows = list(csv.DictReader(lines))
    objects = [
        json.loads(line) for line in _run(capsys, f"--workdir={workdir}", "--format=jsonl", tmp_path / "x.txt")[0]
    ]
    for row, one, logits in zip(rows, objects, stored.logits.astype(np.float64), strict=True):
        if problem == "regression":
            assert list(row) == ["id", "length"]
            assert float(row["length"]) == one["values"]["length"] == pytest.approx(logits[0], rel=1e-6)
        else:
            odds = dict(zip(("praise", "strong"), expit(logits), strict=True))
            assert list(row) == ["id", "prediction", "p_praise", "p_strong"]
            assert one["probabilities"] == pytest.approx(odds, rel=1e-5)
            assert {name: float(row[f"p_{name}"]) for name in odds} == one["probabilities"]
            assert set(one["prediction"]) == {name for name in odds if one["probabilities"][name] > 0.5}
            assert "|".join(one["prediction"]) == row["prediction"]


def test_usage_errors_come_before_the_network(of_images, shapes, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(predict, "Run", None)
    fixed, file = f"--workdir={of_images}", shapes / "disc" / "00.png"
    (tmp_path / "x.png").write_bytes((shapes / "disc" / "00.png").read_bytes())
    (tmp_path / "empty").mkdir()
    for arguments, told in (
        ((fixed, "--top=2", "--format=csv", file), "--format=text"),
        ((fixed, "--batch-size=-1", file), "argument --batch-size: must be at least 0, not -1"),
        ((fixed, f"--out={tmp_path}/no/x.csv", file), "no such folder"),
        ((fixed, f"--out={tmp_path}/x.png", tmp_path / "x.png"), "it is read as an input; give another file"),
        ((fixed, f"--out={tmp_path}/x.png", tmp_path), "it is read as an input; give another file"),
        ((fixed, f"--out={tmp_path}/x.png", f"folder:{tmp_path}"), "it is read as an input; give another file"),
        ((fixed, tmp_path / "empty"), "no image in it"),
        ((f"--workdir={tmp_path}", file), "no run here"),
        ((f"--workdir={tmp_path}/x.png", file), "x.png: is a file, and a run is a folder"),
    ):
        lines, error = _run(capsys, *arguments, status=2)
        assert told in error and lines == []


def test_no_checkpoint_leaves_neither_header_nor_file(of_images, shapes, tmp_path, capsys):
    for where in ((), (f"--out={tmp_path / 'x.csv'}",)):
        fixed = (f"--workdir={of_images}", "--step=99", "--format=csv")
        lines, error = _run(capsys, *fixed, *where, shapes / "disc" / "00.png", status=2)
        assert lines == [] and "no checkpoint '99'" in error
    assert list(tmp_path.iterdir()) == []


def test_few_files_are_read_ahead_and_no_more():
    read = []

    def reading(number):
        def read_it():
            read.append(number)
            return number

        return read_it

    found = predict._ahead(((str(i), reading(i)) for i in range(1000)), 2, 10)
    assert next(found) == ("0", 0)
    time.sleep(0.2)
    assert len(read) <= 12
    assert [value for _, value in found] == list(range(1, 1000))


def test_reading_goes_on_while_the_network_computes():
    started = []

    def item(number):
        def read_it():
            started.append(number)
            return number

        return str(number), read_it

    found = predict._ahead((item(i) for i in range(8)), 2, 4)
    next(found)
    deadline = time.monotonic() + 5
    while len(started) < 5 and time.monotonic() < deadline:  # nobody asks for more
        time.sleep(0.01)
    assert sorted(started) == [0, 1, 2, 3, 4]


def test_a_grey_picture_and_a_large_one_among_others(of_images, tmp_path, capsys):
    Image.fromarray(np.full((300, 200), 90, np.uint8)).save(tmp_path / "grey.png")
    Image.fromarray(np.full((8, 8, 4), 90, np.uint8)).save(tmp_path / "alpha.png")
    (tmp_path / ".hidden.png").write_bytes(b"")
    lines, _ = _run(capsys, f"--workdir={of_images}", tmp_path)
    assert [Path(line.split("\t")[0]).name for line in lines] == ["alpha.png", "grey.png"]
