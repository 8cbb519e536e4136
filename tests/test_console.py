"""What a person sees without a terminal: a line where something takes long, tables of 80 columns, plain paths."""

import sys
import threading
import types
from pathlib import Path

import pytest

from tljax import console
from tljax.io import storage


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(console, "_clock", lambda: now[0])
    return now


def test_what_takes_long_has_a_line_at_most_every_15_seconds(clock, capsys):
    with console.progress("decoding train", 0, 100, "images") as report:
        for second in range(1, 50):
            clock[0] = float(second)
            report(second)
    assert capsys.readouterr().out.splitlines() == [
        "decoding train 15/100 images, 1 a second, 15 s, some 85 s left",
        "decoding train 30/100 images, 1 a second, 30 s, some 70 s left",
        "decoding train 45/100 images, 1 a second, 45 s, some 55 s left",
    ]


def test_what_takes_less_has_none_and_texts_are_lines_as_ever(clock, capsys):
    with console.progress("train", 10, 20) as report:
        clock[0] = 14.0
        report(11)
        report(12, "loss 0.5")
        clock[0] = 28.0
        report(13)  # the line before is 14 seconds old
        clock[0] = 29.0
        report(14)
    assert capsys.readouterr().out.splitlines() == [
        "train 12/20  loss 0.5",
        "train 14/20 steps, 0.138 a second, 29 s, some 44 s left",
    ]


def test_an_unknown_total_and_a_standstill(clock, capsys):
    with console.progress("predict", 0, None, "images") as report:
        clock[0] = 20.0
        report(0)
    assert capsys.readouterr().out == "predict 0/? images, 0 a second, 20 s\n"


def test_a_notebook_has_one_place_that_is_replaced(clock, monkeypatch):
    shown = []
    handle = types.SimpleNamespace(update=lambda data, raw: shown.append(data["text/plain"]))

    def display(data, raw, display_id):
        shown.append(data["text/plain"])
        return handle

    monkeypatch.setitem(sys.modules, "IPython.display", types.SimpleNamespace(display=display))
    monkeypatch.setattr(console.console, "is_jupyter", True)
    with console.progress("train", 0, 4) as report:
        for step in range(1, 5):
            clock[0] += 0.125
            report(step, "loss 0.5" if step == 1 else "")
    assert shown == [  # the second came 0.125 s after the first was drawn
        "train 1/4 steps, 8 a second, 0 s, some 0 s left  loss 0.5",
        "train 3/4 steps, 8 a second, 0 s, some 0 s left  loss 0.5",
        "train 4/4 steps, 8 a second, 0 s, some 0 s left  loss 0.5",
    ]
    with console.quiet(), console.progress("train", 0, 4) as report:
        report(4, "loss 0.5")
    assert len(shown) == 3


def test_what_cannot_tell_how_far_it_is_says_that_it_goes_on(clock, capsys, monkeypatch):
    looks = []

    def over(event: threading.Event) -> bool:
        looks.append(event)
        clock[0] += console.EVERY
        return len(looks) > 2 and event.wait(60)

    monkeypatch.setattr(console, "_over", over)
    with console.waiting("a trial"), console.quiet(), console.waiting("compiling"):
        while len(looks) < 3:
            pass
    assert capsys.readouterr().out.splitlines() == ["a trial: 15 s so far", "a trial: 30 s so far"]
    looks.clear()
    with console.quiet(), console.waiting("compiling"):
        while len(looks) < 3:
            pass
    assert capsys.readouterr().out == ""


def test_what_is_over_at_once_says_nothing_and_may_fail(capsys):
    with pytest.raises(ValueError, match="broken"), console.waiting("compiling"):
        raise ValueError("broken")
    with console.waiting("again"):  # after a failure, too
        assert console._waits.label == "again"
    assert capsys.readouterr().out == ""


def test_tables_fit_80_columns_where_there_is_no_terminal(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(console.console, "_width", 200)  # of the terminal that stdin may be
    columns = ("setting", "runs", "validation accuracy", "test accuracy", "s")
    console.table("long " * 30, columns, [["learning_rate=0.001, " * 9, 3, "0.9012 ± 0.0102", "0.9012 ± 0.0102", 1234]])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    monkeypatch.setenv("COLUMNS", "120")
    console.table("", columns, [["learning_rate=0.001, " * 9, 3, "0.9", "0.9", 1]])
    assert 80 < max(map(len, capsys.readouterr().out.splitlines())) <= 200


def test_paths_are_shown_without_dots_and_relative_where_they_lie_below(tmp_path, monkeypatch):
    below = tmp_path / "here"
    (below / "runs").mkdir(parents=True)
    monkeypatch.chdir(below)
    assert console.shown_path(below / "runs" / "a") == "runs/a"
    assert console.shown_path("../here/runs/./a") == "runs/a"
    assert console.shown_path("../there/a") == str(tmp_path / "there" / "a")
    assert console.shown_path(below) == "."
    assert console.shown_path("gs://bucket/a/../b") == "gs://bucket/a/../b"
    Path("link").symlink_to(tmp_path)
    assert console.shown_path("link/../x") == "link/../x"  # which is no `x` here
    assert storage.locate("../here/runs") == below / "runs"


def test_the_next_step_is_a_line_that_a_shell_takes(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/venv/bin/tljax", "train"])
    console.next_step("predict", "--workdir=my runs/a", "FILE")
    console.next_step("r/report.html", program="open")
    assert capsys.readouterr().out == "next: tljax predict '--workdir=my runs/a' FILE\nnext: open r/report.html\n"
