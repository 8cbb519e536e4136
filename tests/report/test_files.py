"""The files of a report: they read back, are escaped, have every run once, and are the same for the same runs."""

import argparse
import shlex

import pandas as pd
import pytest

from tests.report import made
from tests.report.conftest import ACCURACIES
from tests.report.made import compared
from tljax.cli.flags import parse_experiment
from tljax.reports import report, tables
from tljax.reports.runs import read
from tljax.reports.schema import Options


def test_csv_reads_back_equal(runs, tmp_path):
    sections = compared(runs, tmp_path)
    for name, made_of in (("methods.csv", tables.methods(sections)), ("runs.csv", tables.runs(sections))):
        back = pd.read_csv(tmp_path / name, keep_default_na=True)
        plain = made_of.astype(object).where(made_of.notna(), None)
        pd.testing.assert_frame_equal(back.astype(object).where(back.notna(), None), plain, check_dtype=False)
    table = pd.read_csv(tmp_path / "runs.csv")
    assert len(table) == 18 and table["workdir"].nunique() == 18 and table["chosen"].sum() == 9
    assert table["test_accuracy"].notna().sum() == 9
    tested = table[table["chosen"] & (table["method"] == "prompt")]
    assert tested["test_accuracy"].tolist() == pytest.approx(ACCURACIES["prompt"])


def test_latex_escapes_what_it_must(tmp_path):
    names = {"a_b": "50%_of $x$", "c": "R&D #1"}
    for place, weights in enumerate(names.values()):
        right = {"validation": made.hits(0.5, 40), "test": made.hits(0.8 + 0.05 * place, 200)}
        made.leave(tmp_path / "runs" / str(place), made.experiment(backbone__weights=weights), right)
    compared(tmp_path / "runs", tmp_path / "out")
    latex = (tmp_path / "out" / "methods.tex").read_text()
    rows = [line for line in latex.splitlines() if line.startswith("linear")]
    assert rows[0].startswith(r"linear\_probe, weights=50\%\_of \$x\$ & ")
    assert rows[1].startswith(r"linear\_probe, weights=R\&D \#1 & ")
    assert all(row.count(" & ") == 10 for row in rows)
    assert r"test accuracy, \%" in latex and r"\toprule" in latex and r"\bottomrule" in latex
    assert "±" not in latex.split(r"\begin{tabular}")[1]


def test_a_runs_command_says_all_of_it(tmp_path):
    """The command line of a run, parsed as `train` does, is the run's experiment."""
    tried = made.experiment(
        seed=3,
        tuning__strategy="phases",
        tuning__phases=({"strategy": "linear_probe", "share": 0.2}, {"strategy": "lora", "rank": 4}),
        tuning__group_rates=(("head", 10.0),),
        optim__learning_rate=0.1 + 0.2,
        optim__clip_norm=1e-5,
        optim__b2=0.95,
        task__augment=("flip", "shift"),
        task__class_weights=(1.0, 2.5),
        task__validation="train[100:140]",
        head__bias=False,
        batch_norm__frozen_groups="batch",
        backbone__weights="a name with 'quotes' and spaces",
    )
    made.TRAINABLE["phases"] = 5
    made.leave(tmp_path / "run", tried, {"test": made.hits(0.8, 200)})
    ((run,), _) = read([str(tmp_path / "run")])
    words = shlex.split(" ".join(run.command))
    assert words[:4] == ["python", "-m", "tljax", "train"] and words[5] == "--workdir=runs/again"
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir")
    parsed, _ = parse_experiment(parser, words[4:])
    assert parsed == tried


def test_the_same_runs_give_the_same_bytes(runs, tmp_path):
    for out in ("one", "two"):
        report.report([str(runs)], tmp_path / out, Options(draws=200), ["svg", "png"])
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len(files) == 5 + 2 * 9
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


def test_the_page_has_every_run_once_and_nothing_from_elsewhere(runs, tmp_path):
    compared(runs, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert page.count('<details class="run"') == 18
    for folder in runs.iterdir():
        assert page.count(f"<dd><code>{folder}</code></dd>") == 1
    targets = {part.split('"')[0] for part in page.split(' id="')[1:]}
    links = {part.split('"')[0] for part in page.split('href="#')[1:]}
    assert links <= targets and len(page.split(' id="')) - 1 == len(targets)  # each id once
    assert not [part for part in ('<link rel="stylesheet', 'src="http', "url(http", "@import") if part in page]
    assert "$fish" in page and "a_bird &amp; co" in page
