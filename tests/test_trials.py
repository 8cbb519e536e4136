"""A sweep's trials: their names, which of them share a process, their seeds, and what the workdirs say of them."""

import json
import os
import socket
import subprocess
import sys

import pytest

from tests.report import made
from tljax.checkpoints.workdir import Workdir
from tljax.config.search_space import grid, product
from tljax.errors import InputError
from tljax.io.lock import Taken
from tljax.sweeps import status, sweep
from tljax.sweeps.sweep import Protocol
from tljax.sweeps.trial import Trial, make_trials, trials_by_name, uneven, units

PROBES = grid({"tuning.strategy": ("linear_probe",), "optim.learning_rate": (1e-3, 1e-2), "seed": (0, 1)})
DEEPER = grid({"tuning.strategy": ("last_k",), "tuning.k": (1, 2), "optim.learning_rate": (1e-3,), "seed": (0, 1)})


def _trials(root, overrides) -> list[Trial]:
    return make_trials(made.experiment(), overrides, root)


def _finish(trial: Trial, accuracy: float, test: bool = False) -> None:
    right = {"validation": made.hits(accuracy, 40)} | ({"test": made.hits(accuracy, 200)} if test else {})
    made.leave(trial.folder, trial.experiment, right)
    if not test:
        made.edit(trial.folder / "result.json", lambda result: result.update(held=["test"]))


def test_a_name_is_of_the_content_and_of_nothing_else(tmp_path):
    trials = _trials(tmp_path, PROBES + DEEPER)
    assert len({trial.name for trial in trials}) == 8
    again = make_trials(made.experiment(input__workers=3, checkpoint__keep=5), reversed(PROBES + DEEPER), tmp_path)
    assert [trial.name for trial in again] == [trial.name for trial in trials][::-1]
    assert not {trial.name for trial in make_trials(made.experiment(steps=21), PROBES, tmp_path)} & {
        p.name for p in trials
    }
    assert trials_by_name(trials, [trials[5].name, trials[1].name]) == [trials[1], trials[5]]
    with pytest.raises(InputError, match="no trial full-0123456789"):
        trials_by_name(trials, ["full-0123456789"])


def test_a_bad_trial_is_found_before_any_is_trained(tmp_path):
    for wrong, expected in (
        ([{"optim.learning_rat": 1.0}], "learning_rate"),
        ([{"optin.learning_rate": 1.0}], "optim"),
        ([{"seed": 1}, {"seed": 1}], "twice"),
        ([], "no run"),
    ):
        with pytest.raises(InputError, match=expected):
            _trials(tmp_path, wrong)


def test_heads_share_a_process_and_so_do_runs_that_are_only_to_be_tested(tmp_path):
    experiment = made.experiment(backbone__weights="some.weights", task__crop="center", task__augment=())
    trials = make_trials(experiment, DEEPER[:2] + PROBES + DEEPER[2:], tmp_path)
    assert [[trials.index(trial) for trial in unit] for unit in units(trials)] == [[0], [1], [2, 3, 4, 5], [6], [7]]
    for trial in (trials[0], trials[1], trials[2]):
        _finish(trial, 0.5)
    assert [[trials.index(trial) for trial in unit] for unit in units(trials)] == [[3, 4, 5], [6], [7], [0, 1], [2]]


def test_uneven_seeds_are_told(tmp_path):
    assert not uneven(_trials(tmp_path, PROBES + DEEPER))
    expected = uneven(_trials(tmp_path, PROBES[:3]))
    assert "such as (0, 1) and (0,)" in expected


class Trainer:
    """Instead of training: leaves accuracies, and keeps what it was asked for."""

    def __init__(self, accuracies, failing=()):
        self.accuracies, self.failing, self.asked = accuracies, failing, []

    def __call__(self, due, test):
        self.asked.append(([trial.overrides for trial in due], test))
        for trial in due:
            if trial.overrides in self.failing:
                trial.folder.mkdir(exist_ok=True)
                Workdir(trial.folder).fail(InputError("the loss is nan"))
            elif trial.result:
                made.edit(trial.folder / "result.json", lambda result: result.pop("held"))
            else:
                _finish(trial, self.accuracies(trial.overrides), test)


def _accuracy(overrides) -> float:
    """The higher rate is better with seed 0, the lower one much better with seed 1."""
    return {(1e-3, 0): 0.5, (1e-2, 0): 0.6, (1e-3, 1): 0.9, (1e-2, 1): 0.6}[
        overrides["optim.learning_rate"], overrides["seed"]
    ]


def test_all_seeds_of_all_settings_are_trained_before_the_chosen_alone_are_tested(tmp_path):
    trials, trainer = _trials(tmp_path, PROBES + DEEPER), Trainer(_accuracy)
    assert sweep.sweep(trials, Protocol(), trainer) == []
    lower = PROBES[:2]
    assert trainer.asked == [(PROBES + DEEPER, False), (lower + DEEPER, True)]
    assert ["held" in trial.result for trial in trials] == [False, False, True, True, False, False, False, False]
    assert sweep.sweep(trials, Protocol(), trainer) == [] and len(trainer.asked) == 2


def test_with_seeds_chosen_the_first_seed_chooses(tmp_path):
    trials, trainer = _trials(tmp_path, PROBES + DEEPER), Trainer(_accuracy)
    assert sweep.sweep(trials, Protocol(seeds="chosen"), trainer) == []
    first, higher = [overrides for overrides in PROBES + DEEPER if overrides["seed"] == 0], PROBES[2:]
    assert trainer.asked == [(first, False), (higher + DEEPER, True)]
    assert [trial.overrides for trial in trials if not trial.result] == PROBES[1:2]


def test_a_tuned_section_makes_settings_of_methods(tmp_path):
    trials, trainer = _trials(tmp_path, DEEPER), Trainer(lambda overrides: 0.5 + overrides["tuning.k"] / 10)
    assert sweep.sweep(trials, Protocol(tuned=("optim", "tuning")), trainer) == []
    assert trainer.asked[1:] == [(DEEPER[2:], True)]


def test_with_a_peek_all_are_tested_at_once(tmp_path):
    trials, trainer = _trials(tmp_path, PROBES), Trainer(_accuracy)
    assert sweep.sweep(trials, Protocol(peek=True), trainer) == []
    assert trainer.asked == [(PROBES, True)]


def test_a_setting_that_failed_is_not_chosen_and_what_did_not_end_keeps_from_choosing(tmp_path):
    trials, trainer = _trials(tmp_path, PROBES), Trainer(_accuracy, failing=PROBES[:1])
    assert sweep.sweep(trials, Protocol(), trainer) == []
    assert trainer.asked == [(PROBES, False), (PROBES[2:], True)]
    again = _trials(tmp_path / "again", PROBES)
    assert sweep.sweep(again, Protocol(), lambda due, test: _finish(due[0], 0.9)) == again[1:]


def test_without_validation_a_single_setting_is_tested_and_several_are_not(tmp_path):
    keys = {"task.validation": ("",)}
    trials, asked = _trials(tmp_path, product(PROBES + DEEPER, grid(keys))), []

    def leave(due, test):
        asked.append(([trial.name for trial in due], test))
        for trial in due:
            if not trial.result:
                made.leave(trial.folder, trial.experiment, {})
            made.edit(
                trial.folder / "result.json",
                lambda result: result.pop("held") if test else result.update(held=["test"]),
            )

    assert sweep.sweep(trials, Protocol(), leave) == []
    assert asked == [([trial.name for trial in trials], False), ([trial.name for trial in trials[4:]], True)]


def test_status_tells_how_far_each_trial_is_and_computes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("jax.devices", None)
    trials = _trials(tmp_path, PROBES + DEEPER)
    _finish(trials[0], 0.75)
    _finish(trials[1], 0.5, test=True)
    Trainer(_accuracy, failing=[trials[2].overrides])([trials[2]], False)
    for trial in trials[3:6]:
        made.leave(trial.folder, trial.experiment, {}, curve=(0.1, 0.2), finished=False)
    Workdir(trials[3].folder).save_plan({"steps": 30, "cost": {}, "cached": False, "frozen_digest": ""})
    sleeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    for trial, host, pid in ((trials[3], socket.gethostname(), sleeper.pid), (trials[4], "elsewhere", 7)):
        (trial.folder / "writer.json").write_text(json.dumps({"host": host, "pid": pid, "started": "now", "beats": 1}))
    (trials[5].folder / "writer.json").write_text(
        json.dumps({"host": "elsewhere", "pid": 7, "started": "now", "beats": 1})
    )
    os.utime(trials[5].folder / "writer.json", (1, 1))  # no sign of life since 1970
    states = [status.read_status(trial) for trial in trials]
    expected = ["trained", "tested", "failed", "running", "running", "to do", "to do", "to do"]
    assert [state.state for state in states] == expected
    assert states[0].validation == 0.75 and states[2].note == "the loss is nan"
    assert (states[3].step, states[3].steps, states[3].seconds, states[3].left) == (20, 30, 2.0, 1.0)
    status.show(trials)
    shown = capsys.readouterr().out
    assert (
        "8 trials: 1 tested, 1 trained, 2 running, 1 failed, 3 to do" in shown
        and f"{trials[2].name} failed: the loss is nan" in shown
    )
    running = "step 20 of 30, validation accuracy 0.2000 at step 20, 0:00:01 left, process"
    assert f"{trials[3].name} running: {running} {sleeper.pid} on {socket.gethostname()}" in shown
    assert f"{trials[5].name} to do: step 20 of ?, validation accuracy 0.2000 at step 20\n" in shown
    assert "tested 1; trained 0" in shown and "0.6250" in shown  # one setting, its mean over both seeds
    assert "running 1; failed 0" in shown
    sleeper.communicate(b"\n")
    assert status.read_status(trials[3]).state == "to do"  # its process is dead
    (trials[0].folder / "result.json").write_text("[]")
    assert "result.json: damaged" in status.read_status(trials[0]).note


def test_a_trial_that_another_has_is_told_apart_from_one_that_fails(tmp_path):
    folder = Workdir(tmp_path / "run")
    with folder.locked(), pytest.raises(Taken, match="is being written by process"), folder.locked():
        pass
    folder.fail(RuntimeError("out of\nmemory"))
    assert folder.error["error"] == "RuntimeError: out of memory" and folder.error["traceback"]
    folder.finish({"splits": {}})
    assert folder.error is None
