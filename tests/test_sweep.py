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
from tljax.checkpoints.workdir import Workdir
from tljax.config.schema import Experiment
from tljax.config.serialization import to_dict
from tljax.evals.predictions import load
from tljax.io.download.fetch import cache_dir
from tljax.sweeps import runner, selection, sweep
from tljax.sweeps.sweep import Protocol
from tljax.sweeps.trial import Trial, make_trials
from tljax.training import callbacks, feature_cache
from tljax.training.trainer import train


def _experiment(shapes, weights, monkeypatch, **values) -> Experiment:
    monkeypatch.setenv("TLJAX_TEST_FOLDER", str(shapes))
    monkeypatch.setenv("TLJAX_TEST_WEIGHTS", str(weights))
    config = get_config("pretrained")
    config.task.update(crop="center", augment=())
    config.update(values)
    return Experiment.from_config(config)


@pytest.mark.slow
def test_each_run_is_its_own(shapes, lively_weights, tmp_path, monkeypatch):
    monkeypatch.setenv("TLJAX_CACHE", str(tmp_path / "cache"))
    experiment, built = _experiment(shapes, lively_weights, monkeypatch), []
    computed = feature_cache.computed

    def counting(run, state, split, stops, **options):
        before = set((cache_dir() / "features").rglob("0*"))
        features = computed(run, state, split, stops, **options)
        if set((cache_dir() / "features").rglob("0*")) != before:
            built.append((split.name, list(stops)))
        return features

    monkeypatch.setattr(feature_cache, "computed", counting)
    trials = make_trials(experiment, overrides(), tmp_path / "runs")
    assert len({trial.folder for trial in trials}) == 6
    runner.run_trials(trials, trials, evaluate_test=True)
    # One pass per split, with all boundaries: before block 1, before block 2, and the pooled features.
    assert built == [("train[:16]", [2, 3, 5]), ("train[16:20]", [2, 3, 5]), ("train[20:]", [2, 3, 5])]
    for number in (0, 3, 4, 5):  # two probes that differ in rate and seed, and both that train deeper
        trial, alone = trials[number], tmp_path / "alone" / str(number)
        expected = train(Experiment.from_config(to_dict(trial.experiment) | {"cache": "off"}), alone)
        for split in ("validation", "test"):
            theirs, _ = load(alone / "evaluations" / f"12-{split}.parquet")
            ours, _ = load(trial.folder / "evaluations" / f"12-{split}.parquet")
            np.testing.assert_allclose(ours.logits, theirs.logits, rtol=1e-4, atol=1e-5)
            assert trial.result["splits"][split]["accuracy"] == expected["splits"][split]["accuracy"]
        assert trial.result["frozen_digest_after"] == expected["frozen_digest_after"]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("result.json")}
    runner.run_trials(trials, trials, evaluate_test=True)  # nothing is left to do
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("result.json")} == before
    assert len(selection.select_trials(trials)) == 3


@pytest.mark.slow
def test_the_test_split_is_evaluated_once_of_the_chosen_and_never_of_others(
    shapes, lively_weights, tmp_path, monkeypatch
):
    experiment, evaluated = _experiment(shapes, lively_weights, monkeypatch), Counter()
    predictions_of = callbacks.predictions_of

    def counting(run, state, split, label, **options):
        evaluated[run.experiment, label] += 1
        return predictions_of(run, state, split, label, **options)

    monkeypatch.setattr(callbacks, "predictions_of", counting)
    trials = make_trials(experiment, overrides(), tmp_path / "runs")
    held = []

    def run_due(due, test):
        held.append([trial.result and trial.result.get("held") for trial in trials])
        runner.run_trials(due, trials, evaluate_test=test)

    assert sweep.sweep(trials, Protocol(), run_due) == []
    assert held == [[None] * 6, [["test"]] * 6]
    chosen = [trial for members in selection.select_trials(trials).values() for trial in members]
    assert len(chosen) == 4  # two seeds of the better probe, and what has but one setting
    tested = {name: count for (name, label), count in evaluated.items() if label == "test"}
    assert tested == {trial.experiment: 1 for trial in chosen}
    for trial in trials:
        if trial not in chosen:
            assert trial.result["held"] == ["test"] and list(trial.result["splits"]) == ["validation"]
            assert not list(trial.folder.glob("evaluations/*test*"))
    # Held back and tested later, or tested at the end of training: the same bits of everything.
    peeked = make_trials(experiment, overrides(), tmp_path / "peeked")
    runner.run_trials(peeked, peeked, evaluate_test=True, peeked=True)
    assert all(trial.result["peeked"] and "test" in trial.result["splits"] for trial in peeked)
    for trial, twin in zip(trials, peeked, strict=True):
        if trial in chosen:
            expected = outcome(twin.folder)
            assert expected.pop("result: peeked") and outcome(trial.folder) == expected
            assert list(trial.result) == [key for key in twin.result if key != "peeked"]


def test_what_fails_is_kept_and_tried_again_only_when_asked(shapes, tiny_weights, tmp_path, monkeypatch, capsys):
    experiment, tried = _experiment(shapes, tiny_weights, monkeypatch), []
    wrong = [{"tuning.strategy": "last_k", "tuning.k": 9}, {"tuning.strategy": "last_k", "tuning.k": 1}]
    trials = make_trials(experiment, wrong, tmp_path)
    runner.run_trials(trials, trials)
    assert trials[1].result and not trials[0].result and not trials[1].error
    assert f"failed: {trials[0].error['error']}" in capsys.readouterr().out
    assert json.loads((trials[1].folder / "config.json").read_text())["config"]["tuning"]["k"] == 1
    crash = make_trials(experiment, [{"tuning.strategy": "last_k", "tuning.k": 2}], tmp_path)
    train_run = runner.train_run

    def crashing(*arguments):
        tried.append(1)
        if len(tried) == 1:
            raise MemoryError("so much\nis not there")
        return train_run(*arguments)

    monkeypatch.setattr(runner, "train_run", crashing)
    for _ in range(2):
        runner.run_trials(crash, crash)
        assert crash[0].error["error"] == "MemoryError: so much is not there" and len(tried) == 1
    Workdir(crash[0].folder).forget_error()  # as --retry-failed does
    runner.run_trials(crash, crash)
    assert crash[0].result and not crash[0].error and len(tried) == 2


def test_a_trial_that_another_process_runs_is_waited_for_and_not_run_again(
    shapes, tiny_weights, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(runner, "_LOOK", 0.02)
    experiment = _experiment(shapes, tiny_weights, monkeypatch, steps=4, eval_every=0)
    theirs, ours = make_trials(experiment, [{"tuning.strategy": "last_k", "tuning.k": k} for k in (1, 2)], tmp_path)
    held, ended = threading.Event(), threading.Event()
    result = {"splits": {}, "steps": 4, "wall_seconds": 0.0, "input_seconds": 0.0}

    def other():
        folder = Workdir(theirs.folder)
        with folder.locked():
            held.set()
            while not (ours.result or ours.error):
                time.sleep(0.02)
            time.sleep(0.2)
            folder.finish(result)
            ended.set()

    thread = threading.Thread(target=other)
    thread.start()
    held.wait()
    runner.run_trials([theirs, ours], [theirs, ours])
    thread.join()
    assert ended.is_set() and theirs.result == result and not (theirs.folder / "metrics.jsonl").exists()
    assert "waiting for trials that another process runs: 1" in capsys.readouterr().out


@pytest.mark.slow
def test_killed_again_and_again_each_trial_is_run_once(shapes, lively_weights, tmp_path, monkeypatch):
    experiment = _experiment(shapes, lively_weights, monkeypatch, steps=400, eval_every=100)
    flags = ["--config=tests/configs_sweep.py:pretrained", "--config.task.crop=center", "--config.task.augment=()"]
    flags += ["--config.steps=400", "--config.eval_every=100", "--jobs=2"]

    def start(root: Path) -> subprocess.Popen:
        command = [sys.executable, "-m", "tljax", "sweep", *flags, f"--root={root}"]
        return forks.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)

    trials = make_trials(experiment, overrides(), tmp_path / "runs")
    first = {}
    for moment in (_writers, _two_train):  # heads, of which one process has all; and two children
        driver = start(tmp_path / "runs")
        _until(lambda moment=moment: moment(trials), driver)
        children = _writers(trials)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        _until(lambda children=children: not any(Path(f"/proc/{pid}").exists() for pid in children))
        first |= {trial: (trial.folder / "result.json").stat().st_mtime_ns for trial in trials if trial.result}
    driver = start(tmp_path / "runs")
    _until(lambda: _one_trains(trials), driver)
    os.kill(_writers(trials)[0], signal.SIGKILL)
    assert driver.wait() == 1  # what was killed has not ended, and nothing is chosen
    assert not any("test" in trial.result["splits"] for trial in trials if trial.result)
    assert start(tmp_path / "runs").wait() == 0
    whole = make_trials(experiment, overrides(), tmp_path / "whole")
    assert start(tmp_path / "whole").wait() == 0
    for trial, twin in zip(trials, whole, strict=True):
        assert _last(trial) == _last(twin)
        steps = Counter((line["split"], line["step"]) for line in Workdir(trial.folder).metrics)
        assert set(steps.values()) == {1} and ("train", 400) in steps
    assert ["held" in trial.result for trial in trials].count(True) == 2
    unchosen = [trial for trial in trials if "held" in trial.result and trial in first]
    assert all((trial.folder / "result.json").stat().st_mtime_ns == first[trial] for trial in unchosen)


def _last(trial: Trial) -> dict:
    """All that it leaves but earlier checkpoints: one that was told to stop has saved there, too."""
    return {
        key: value for key, value in outcome(trial.folder).items() if not key.startswith(("step 1", "step 2", "step 3"))
    }


def _one_trains(trials: list[Trial]) -> bool:
    """Whether a process is between its first step and its last."""
    return any(0 < len(Workdir(trial.folder).metrics) < 390 for trial in trials if Workdir(trial.folder).writer)


def _two_train(trials: list[Trial]) -> bool:
    return _one_trains(trials) and len(set(_writers(trials))) == 2


def _writers(trials: list[Trial]) -> list[int]:
    return [writer["pid"] for trial in trials if (writer := Workdir(trial.folder).writer)]


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
