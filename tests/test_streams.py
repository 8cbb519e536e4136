"""What is printed: texts as they are, and to streams that fail, without harm to what a command does."""

import csv
import io
import json
import os
import signal
import subprocess
import sys

import pytest
from markupsafe import escape

from tests.conftest import PATIENCE, ROOT
from tests.test_stopping import _at, _steps
from tljax import console, streams
from tljax.cli import output_formats
from tljax.distributed.preemption import SAVED
from tljax.problems.registry import PROBLEMS
from tljax.reports.html import page
from tljax.reports.runs import Unfinished

NAMES = ("[red]", "[/]", "[bold]x", "a[b]c", "<script>", "=1+1", "a\x1b[31mb", "a,b", '"', "", ":smile:", "a\nb")
SHOWN = [name.replace("\x1b", "\\x1b").replace("\n", "\\n") for name in NAMES]


def test_texts_are_printed_as_they_are_and_control_characters_are_shown(capsys):
    for name in NAMES:
        console.console.print(name)
        console.console.print(f"{name}:")
    assert capsys.readouterr().out.splitlines() == [line for name in SHOWN for line in (name, f"{name}:")]
    console.table(NAMES[6], NAMES[:2], [(name, name) for name in NAMES])
    with console.progress(NAMES[6], 0, 2) as report:
        report(1, NAMES[1])
    printed = capsys.readouterr().out
    assert all(printed.count(name) >= 2 for name in SHOWN) and "\x1b" not in printed
    assert printed.endswith("a\\x1b[31mb 1/2  [/]\n")


def test_a_bar_on_a_terminal_takes_no_text_for_markup(monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(console.console, "_file", terminal)
    monkeypatch.setattr(console.console, "_force_terminal", True)
    monkeypatch.setattr(console.console, "is_interactive", True)
    monkeypatch.setenv("TERM", "xterm")
    with console.progress("[red]\x1b[31m", 0, 2) as report:
        report(1, "[/]")
    assert "[red]\\x1b[31m" in terminal.getvalue() and "[/]" in terminal.getvalue()


def test_predictions_hold_names_as_they_are_in_files_and_show_them_as_text():
    written = {}
    for name in output_formats.FORMATS:
        file = io.StringIO(newline="")
        write = output_formats.FORMATS[name](file, PROBLEMS["single_label"], NAMES, len(NAMES), tabular=False)
        write("id\x1b[0m", {}, dict.fromkeys(NAMES, 1 / len(NAMES)))
        written[name] = file.getvalue()
    rows = list(csv.reader(io.StringIO(written["csv"], newline="")))
    assert rows[0][3:] == [f"p_{name}" for name in NAMES] and rows[1][:2] == ["id\x1b[0m", "[red]"]
    assert list(json.loads(written["jsonl"])["probabilities"]) == list(NAMES)
    assert written["text"] == "\t".join(["id\\x1b[0m", *(f"{name} 0.0833" for name in SHOWN)]) + "\n"


def test_the_page_shows_texts_as_they_are():
    html = page([], [], [Unfinished(name, "<b>") for name in NAMES], "report")
    assert "\x1b" not in html
    assert all(escape(name) in html for name in SHOWN if "\\n" not in name)


class _Full(io.StringIO):
    """A disk that is full, or whatever else does not take a text."""

    encoding, error = "ascii", OSError(28, "No space left on device")

    def write(self, text: str) -> int:
        raise self.error


@pytest.mark.parametrize("error", [_Full.error, BrokenPipeError(32, "Broken pipe"), ValueError("I/O on closed file")])
def test_only_where_results_go_to_stdout_alone_is_it_an_error_that_it_cannot_be_written(error, monkeypatch):
    monkeypatch.setattr(_Full, "error", error)
    monkeypatch.setattr(sys, "stdout", streams.Output(_Full()))
    print("lost")
    console.console.print("lost")
    console.table("lost", ("", ""), [("", "")])
    expected = streams.Closed if isinstance(error, BrokenPipeError) else streams.InputError
    with pytest.raises(expected), streams.results():
        print("missed")
    with pytest.raises(expected), streams.results() as stdout:
        stdout.write("missed")
    print("lost again")


def test_what_an_encoding_lacks_is_escaped():
    bytes_ = io.BytesIO()
    stream = streams.Output(io.TextIOWrapper(bytes_, encoding="ascii"))
    print("…é\udce9", file=stream, flush=True)
    assert bytes_.getvalue() == b"\\u2026\\xe9\\udce9\n"


@pytest.fixture
def command(shapes, tiny_weights, monkeypatch):
    monkeypatch.setenv("TLJAX_TEST_FOLDER", str(shapes))
    monkeypatch.setenv("TLJAX_TEST_WEIGHTS", str(tiny_weights))
    return f"{sys.executable} -m tljax train --config=tests/configs_tiny.py:pretrained"


def _shell(command: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, **options
    )


def test_a_closed_pipe_a_full_disk_and_ascii_end_no_run(tmp_path, command):
    run = tmp_path / "run"
    short = f"{command} --workdir={run} --config.task.validation= --config.task.test= --config.steps="
    ended = _shell(f"PYTHONIOENCODING=ascii {short}4 2>/dev/full | head -1; exit ${{PIPESTATUS[0]}}")
    assert (ended.returncode, ended.stderr) == (0, "") and "steps of 4 images" in ended.stdout
    assert json.loads((run / "result.json").read_text())["steps"] == 4 and _steps(run) == [4]
    predict = f"{sys.executable} -m tljax predict --workdir={run} $TLJAX_TEST_FOLDER > /dev/full"
    ended = _shell(predict)
    assert ended.returncode == 2 and "error: stdout: cannot be written (No space left on device)" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_ctrl_c_through_a_pipe_saves(tmp_path, command):
    run = tmp_path / "run"
    piped = f"{command} --workdir={run} --config.steps=4000 --config.eval_every=1000"
    process = subprocess.Popen(
        ["bash", "-c", f"{piped} 2>&1 | tee {tmp_path}/log; exit ${{PIPESTATUS[0]}}"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    _at(run, 5, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of the pipe
    _, printed = process.communicate(timeout=PATIENCE)
    assert (process.returncode, printed) == (SAVED, "")
    assert _steps(run)[-1] >= 5


def test_a_command_whose_results_go_to_stdout_asks_for_one_that_is_open():
    code = "from tljax import streams; streams.install()\nwith streams.results(): print('lost')"
    command = ["sh", "-c", f'exec "{sys.executable}" -c "$0" >&-', code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode and "InputError: stdout is closed" in done.stderr
