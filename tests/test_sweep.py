"""Runs of a sweep end as if each had been trained by itself, what they share is computed once, each is run once."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmarks.kill import outcome
from tests import forks
from tests.configs_sweep import get_config
from tests.configs_sweep import sweep as overrides
from tests.conftest import PATIENCE, ROOT
from tests.report import made
from tljax import features, joint, loop, selection, sweep
from tljax.config import Experiment
from tljax.fields import to_dict
from tljax.points import Point, points
from tljax.predictions import load
from tljax.sweep import Protocol
from tljax.train import train
from tljax.weights.sources import cache_dir
from tljax.workdir import Workdir


def _experiment(shapes, weights, monkeypatch, **values) -> Experiment:
    monkeypatch.setenv("TLJAX_TEST_FOLDER", str(shapes))
    monkeypatch.setenv("TLJAX_TEST_WEIGHTS", str(weights))
    found = get_config("pretrained")
    found.task.update(crop="centre", augment=())
    found.update(values)
    return Experiment.from_config(found)


@pytest.mark.slow
def test_each_run_is_its_own(shapes, lively_weights, tmp_path, monkeypatch):
    monkeypatch.setenv("TLJAX_CACHE", str(tmp_path / "cache"))
    experiment, built = _experiment(shapes, lively_weights, monkeypatch), []
    computed = features.computed

    def counting(run, state, split, stops, **options):
        before = set((cache_dir() / "features").rglob("0*"))
        found = computed(run, state, split, stops, **options)
        if set((cache_dir() / "features").rglob("0*")) != before:
            built.append((split.name, list(stops)))
        return found

    monkeypatch.setattr(features, "computed", counting)
    found = points(experiment, overrides(), tmp_path / "runs")
    assert len({point.folder for point in found}) == 6
    joint.carry_out(found, found, test=True)
    # One pass per split, with all boundaries: before block 1, before block 2, and the pooled features.
    assert built == [("train[:16]", [2, 3, 5]), ("train[16:20]", [2, 3, 5]), ("train[20:]", [2, 3, 5])]
    for number in (0, 3, 4, 5):  # two probes that differ in rate and seed, and both that train deeper
        point, alone = found[number], tmp_path / "alone" / str(number)
        wanted = train(Experiment.from_config(to_dict(point.experiment) | {"cache": "off"}), alone)
        for split in ("validation", "test"):
            theirs, _ = load(alone / "evaluations" / f"12-{split}.parquet")
            mine, _ = load(point.folder / "evaluations" / f"12-{split}.parquet")
            np.testing.assert_allclose(mine.logits, theirs.logits, rtol=1e-4, atol=1e-5)
            assert point.result["splits"][split]["accuracy"] == wanted["splits"][split]["accuracy"]
        assert point.result["frozen_digest_after"] == wanted["frozen_digest_after"]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("result.json")}
    joint.carry_out(found, found, test=True)  # nothing is left to do
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("result.json")} == before
    assert len(selection.chosen(found)) == 3


@pytest.mark.slow
def test_the_test_split_is_evaluated_once_of_the_chosen_and_never_of_others(
    shapes, lively_weights, tmp_path, monkeypatch
):
    experiment, evaluated = _experiment(shapes, lively_weights, monkeypatch), Counter()
    predictions_of = loop.predictions_of

    def counting(run, state, split, label, **options):
        evaluated[run.experiment, label] += 1
        return predictions_of(run, state, split, label, **options)

    monkeypatch.setattr(loop, "predictions_of", counting)
    found = points(experiment, overrides(), tmp_path / "runs")
    held = []

    def carry_out(wanted, test):
        held.append([point.result and point.result.get("held") for point in found])
        joint.carry_out(wanted, found, test=test)

    assert sweep.sweep(found, Protocol(), carry_out) == []
    assert held == [[None] * 6, [["test"]] * 6]
    chosen = [point for members in selection.chosen(found).values() for point in members]
    assert len(chosen) == 4  # two seeds of the better probe, and what has but one setting
    tested = {name: count for (name, label), count in evaluated.items() if label == "test"}
    assert tested == {point.experiment: 1 for point in chosen}
    for point in found:
        if point not in chosen:
            assert point.result["held"] == ["test"] and list(point.result["splits"]) == ["validation"]
            assert not list(point.folder.glob("evaluations/*test*"))
    # Held back and tested later, or tested at the end of training: the same bits of everything.
    peeked = points(experiment, overrides(), tmp_path / "peeked")
    joint.carry_out(peeked, peeked, test=True, peeked=True)
    assert all(point.result["peeked"] and "test" in point.result["splits"] for point in peeked)
    for point, twin in zip(found, peeked, strict=True):
        if point in chosen:
            wanted = outcome(twin.folder)
            assert wanted.pop("result: peeked") and outcome(point.folder) == wanted
            assert list(point.result) == [key for key in twin.result if key != "peeked"]


def test_what_fails_is_kept_and_tried_again_only_when_asked(shapes, tiny_weights, tmp_path, monkeypatch, capsys):
    experiment, tried = _experiment(shapes, tiny_weights, monkeypatch), []
    wrong = [{"tuning.strategy": "last_k", "tuning.k": 9}, {"tuning.strategy": "last_k", "tuning.k": 1}]
    found = points(experiment, wrong, tmp_path)
    joint.carry_out(found, found)
    assert found[1].result and not found[0].result and not found[1].error
    assert f"failed: {found[0].error['error']}" in capsys.readouterr().out
    assert json.loads((found[1].folder / "config.json").read_text())["config"]["tuning"]["k"] == 1
    crash = points(experiment, [{"tuning.strategy": "last_k", "tuning.k": 2}], tmp_path)
    train_run = joint.train_run

    def crashing(*arguments):
        tried.append(1)
        if len(tried) == 1:
            raise MemoryError("so much\nis not there")
        return train_run(*arguments)

    monkeypatch.setattr(joint, "train_run", crashing)
    for _ in range(2):
        joint.carry_out(crash, crash)
        assert crash[0].error["error"] == "MemoryError: so much is not there" and len(tried) == 1
    Workdir(crash[0].folder).forget_error()  # as --retry-failed does
    joint.carry_out(crash, crash)
    assert crash[0].result and not crash[0].error and len(tried) == 2


def test_a_point_that_another_process_is_at_is_waited_for_and_not_run_again(
    shapes, tiny_weights, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(joint, "_LOOK", 0.02)
    experiment = _experiment(shapes, tiny_weights, monkeypatch, steps=4, eval_every=0)
    theirs, mine = points(experiment, [{"tuning.strategy": "last_k", "tuning.k": k} for k in (1, 2)], tmp_path)
    held, ended = threading.Event(), threading.Event()
    result = {"splits": {}, "steps": 4, "wall_seconds": 0.0, "input_seconds": 0.0}

    def other():
        folder = Workdir(theirs.folder)
        with folder.locked():
            held.set()
            while not (mine.result or mine.error):
                time.sleep(0.02)
            time.sleep(0.2)
            folder.finish(result)
            ended.set()

    thread = threading.Thread(target=other)
    thread.start()
    held.wait()
    joint.carry_out([theirs, mine], [theirs, mine])
    thread.join()
    assert ended.is_set() and theirs.result == result and not (theirs.folder / "metrics.jsonl").exists()
    assert "waiting for points that another process is at: 1" in capsys.readouterr().out


@pytest.mark.slow
def test_killed_again_and_again_each_point_is_run_once(shapes, lively_weights, tmp_path, monkeypatch):
    experiment = _experiment(shapes, lively_weights, monkeypatch, steps=400, eval_every=100)
    flags = ["--config=tests/configs_sweep.py:pretrained", "--config.task.crop=centre", "--config.task.augment=()"]
    flags += ["--config.steps=400", "--config.eval_every=100", "--jobs=2"]

    def start(root: Path) -> subprocess.Popen:
        command = [sys.executable, "-m", "tljax", "sweep", *flags, f"--root={root}"]
        return forks.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)

    found = points(experiment, overrides(), tmp_path / "runs")
    first = {}
    for moment in (_writers, _two_train):  # heads, of which one process has all; and two children
        driver = start(tmp_path / "runs")
        _until(lambda moment=moment: moment(found), driver)
        children = _writers(found)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        _until(lambda children=children: not any(Path(f"/proc/{pid}").exists() for pid in children))
        first |= {point: (point.folder / "result.json").stat().st_mtime_ns for point in found if point.result}
    driver = start(tmp_path / "runs")
    _until(lambda: _one_trains(found), driver)
    os.kill(_writers(found)[0], signal.SIGKILL)
    assert driver.wait() == 1  # what was killed has not ended, and nothing is chosen
    assert not any("test" in point.result["splits"] for point in found if point.result)
    assert start(tmp_path / "runs").wait() == 0
    whole = points(experiment, overrides(), tmp_path / "whole")
    assert start(tmp_path / "whole").wait() == 0
    for point, twin in zip(found, whole, strict=True):
        assert _last(point) == _last(twin)
        steps = Counter((line["split"], line["step"]) for line in Workdir(point.folder).metrics)
        assert set(steps.values()) == {1} and ("train", 400) in steps
    assert ["held" in point.result for point in found].count(True) == 2
    unchosen = [point for point in found if "held" in point.result and point in first]
    assert all((point.folder / "result.json").stat().st_mtime_ns == first[point] for point in unchosen)


def _last(point: Point) -> dict:
    """All that it leaves but earlier checkpoints: one that was told to stop has saved there, too."""
    return {
        key: value for key, value in outcome(point.folder).items() if not key.startswith(("step 1", "step 2", "step 3"))
    }


def _one_trains(found: list[Point]) -> bool:
    """Whether a process is between its first step and its last."""
    return any(0 < len(Workdir(point.folder).metrics) < 390 for point in found if Workdir(point.folder).writer)


def _two_train(found: list[Point]) -> bool:
    return _one_trains(found) and len(set(_writers(found))) == 2


def _writers(found: list[Point]) -> list[int]:
    return [writer["pid"] for point in found if (writer := Workdir(point.folder).writer)]


def _until(moment, driver: subprocess.Popen | None = None) -> None:
    deadline = time.monotonic() + PATIENCE
    while not moment():
        assert time.monotonic() < deadline and (driver is None or driver.poll() is None)
        time.sleep(0.05)


def test_a_report_tells_that_test_was_looked_at(tmp_path):
    root = made.sweep(tmp_path / "runs", {"linear_probe": (0.8, 0.9), "full": (0.9, 0.9)}, seeds=(0, 1))
    for path in root.glob("*/result.json"):
        made.edit(path, lambda result: result.update(peeked=True))
    made.compared(root, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Tested before any was chosen (sweep --peek-test): 8 runs." in page
