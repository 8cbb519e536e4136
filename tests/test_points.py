"""A sweep's points: their names, which of them share a process, their seeds, and what the workdirs say of them."""

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
from tljax.sweeps.trial import Trial, named, points, uneven, units

PROBES = grid({"tuning.strategy": ("linear_probe",), "optim.learning_rate": (1e-3, 1e-2), "seed": (0, 1)})
DEEPER = grid({"tuning.strategy": ("last_k",), "tuning.k": (1, 2), "optim.learning_rate": (1e-3,), "seed": (0, 1)})


def _points(root, overrides) -> list[Trial]:
    return points(made.experiment(), overrides, root)


def _finish(point: Trial, accuracy: float, test: bool = False) -> None:
    right = {"validation": made.hits(accuracy, 40)} | ({"test": made.hits(accuracy, 200)} if test else {})
    made.leave(point.folder, point.experiment, right)
    if not test:
        made.edit(point.folder / "result.json", lambda result: result.update(held=["test"]))


def test_a_name_is_of_the_content_and_of_nothing_else(tmp_path):
    found = _points(tmp_path, PROBES + DEEPER)
    assert len({point.name for point in found}) == 8
    again = points(made.experiment(input__workers=3, checkpoint__keep=5), reversed(PROBES + DEEPER), tmp_path)
    assert [point.name for point in again] == [point.name for point in found][::-1]
    assert not {point.name for point in points(made.experiment(steps=21), PROBES, tmp_path)} & {p.name for p in found}
    assert named(found, [found[5].name, found[1].name]) == [found[1], found[5]]
    with pytest.raises(InputError, match="no point full-0123456789"):
        named(found, ["full-0123456789"])


def test_a_bad_point_is_found_before_any_is_trained(tmp_path):
    for wrong, told in (
        ([{"optim.learning_rat": 1.0}], "learning_rate"),
        ([{"optin.learning_rate": 1.0}], "optim"),
        ([{"seed": 1}, {"seed": 1}], "twice"),
        ([], "no run"),
    ):
        with pytest.raises(InputError, match=told):
            _points(tmp_path, wrong)


def test_heads_share_a_process_and_so_do_runs_that_are_only_to_be_tested(tmp_path):
    experiment = made.experiment(backbone__weights="some.weights", task__crop="center", task__augment=())
    found = points(experiment, DEEPER[:2] + PROBES + DEEPER[2:], tmp_path)
    assert [[found.index(point) for point in unit] for unit in units(found)] == [[0], [1], [2, 3, 4, 5], [6], [7]]
    for point in (found[0], found[1], found[2]):
        _finish(point, 0.5)
    assert [[found.index(point) for point in unit] for unit in units(found)] == [[3, 4, 5], [6], [7], [0, 1], [2]]


def test_uneven_seeds_are_told(tmp_path):
    assert not uneven(_points(tmp_path, PROBES + DEEPER))
    told = uneven(_points(tmp_path, PROBES[:3]))
    assert "such as (0, 1) and (0,)" in told


class Trainer:
    """Instead of training: leaves accuracies, and keeps what it was asked for."""

    def __init__(self, accuracies, failing=()):
        self.accuracies, self.failing, self.asked = accuracies, failing, []

    def __call__(self, wanted, test):
        self.asked.append(([point.overrides for point in wanted], test))
        for point in wanted:
            if point.overrides in self.failing:
                point.folder.mkdir(exist_ok=True)
                Workdir(point.folder).fail(InputError("the loss is nan"))
            elif point.result:
                made.edit(point.folder / "result.json", lambda result: result.pop("held"))
            else:
                _finish(point, self.accuracies(point.overrides), test)


def _accuracy(overrides) -> float:
    """The higher rate is better with seed 0, the lower one much better with seed 1."""
    return {(1e-3, 0): 0.5, (1e-2, 0): 0.6, (1e-3, 1): 0.9, (1e-2, 1): 0.6}[
        overrides["optim.learning_rate"], overrides["seed"]
    ]


def test_all_seeds_of_all_settings_are_trained_before_the_chosen_alone_are_tested(tmp_path):
    found, trainer = _points(tmp_path, PROBES + DEEPER), Trainer(_accuracy)
    assert sweep.sweep(found, Protocol(), trainer) == []
    lower = PROBES[:2]
    assert trainer.asked == [(PROBES + DEEPER, False), (lower + DEEPER, True)]
    assert ["held" in point.result for point in found] == [False, False, True, True, False, False, False, False]
    assert sweep.sweep(found, Protocol(), trainer) == [] and len(trainer.asked) == 2


def test_with_seeds_chosen_the_first_seed_chooses(tmp_path):
    found, trainer = _points(tmp_path, PROBES + DEEPER), Trainer(_accuracy)
    assert sweep.sweep(found, Protocol(seeds="chosen"), trainer) == []
    first, higher = [one for one in PROBES + DEEPER if one["seed"] == 0], PROBES[2:]
    assert trainer.asked == [(first, False), (higher + DEEPER, True)]
    assert [point.overrides for point in found if not point.result] == PROBES[1:2]


def test_a_tuned_section_makes_settings_of_methods(tmp_path):
    found, trainer = _points(tmp_path, DEEPER), Trainer(lambda one: 0.5 + one["tuning.k"] / 10)
    assert sweep.sweep(found, Protocol(tuned=("optim", "tuning")), trainer) == []
    assert trainer.asked[1:] == [(DEEPER[2:], True)]


def test_with_a_peek_all_are_tested_at_once(tmp_path):
    found, trainer = _points(tmp_path, PROBES), Trainer(_accuracy)
    assert sweep.sweep(found, Protocol(peek=True), trainer) == []
    assert trainer.asked == [(PROBES, True)]


def test_a_setting_that_failed_is_not_chosen_and_what_did_not_end_keeps_from_choosing(tmp_path):
    found, trainer = _points(tmp_path, PROBES), Trainer(_accuracy, failing=PROBES[:1])
    assert sweep.sweep(found, Protocol(), trainer) == []
    assert trainer.asked == [(PROBES, False), (PROBES[2:], True)]
    again = _points(tmp_path / "again", PROBES)
    assert sweep.sweep(again, Protocol(), lambda wanted, test: _finish(wanted[0], 0.9)) == again[1:]


def test_without_validation_a_single_setting_is_tested_and_several_are_not(tmp_path):
    keys = {"task.validation": ("",)}
    found, asked = _points(tmp_path, product(PROBES + DEEPER, grid(keys))), []

    def leave(wanted, test):
        asked.append(([point.name for point in wanted], test))
        for point in wanted:
            if not point.result:
                made.leave(point.folder, point.experiment, {})
            made.edit(
                point.folder / "result.json",
                lambda result: result.pop("held") if test else result.update(held=["test"]),
            )

    assert sweep.sweep(found, Protocol(), leave) == []
    assert asked == [([point.name for point in found], False), ([point.name for point in found[4:]], True)]


def test_status_tells_how_far_each_point_is_and_computes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("jax.devices", None)
    found = _points(tmp_path, PROBES + DEEPER)
    _finish(found[0], 0.75)
    _finish(found[1], 0.5, test=True)
    Trainer(_accuracy, failing=[found[2].overrides])([found[2]], False)
    for point in found[3:6]:
        made.leave(point.folder, point.experiment, {}, curve=(0.1, 0.2), finished=False)
    Workdir(found[3].folder).save_plan({"steps": 30, "cost": {}, "cached": False, "frozen_digest": ""})
    sleeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    for point, host, pid in ((found[3], socket.gethostname(), sleeper.pid), (found[4], "elsewhere", 7)):
        (point.folder / "writer.json").write_text(json.dumps({"host": host, "pid": pid, "started": "now", "beats": 1}))
    (found[5].folder / "writer.json").write_text(
        json.dumps({"host": "elsewhere", "pid": 7, "started": "now", "beats": 1})
    )
    os.utime(found[5].folder / "writer.json", (1, 1))  # no sign of life since 1970
    states = [status.standing(point) for point in found]
    told = ["trained", "tested", "failed", "running", "running", "to do", "to do", "to do"]
    assert [one.state for one in states] == told
    assert states[0].validation == 0.75 and states[2].note == "the loss is nan"
    assert (states[3].step, states[3].steps, states[3].seconds, states[3].left) == (20, 30, 2.0, 1.0)
    status.show(found)
    shown = capsys.readouterr().out
    assert (
        "8 points: 1 tested, 1 trained, 2 running, 1 failed, 3 to do" in shown
        and f"{found[2].name} failed: the loss is nan" in shown
    )
    running = "step 20 of 30, validation accuracy 0.2000 at step 20, 0:00:01 left, process"
    assert f"{found[3].name} running: {running} {sleeper.pid} on {socket.gethostname()}" in shown
    assert f"{found[5].name} to do: step 20 of ?, validation accuracy 0.2000 at step 20\n" in shown
    assert "tested 1; trained 0" in shown and "0.6250" in shown  # one setting, its mean over both seeds
    assert "running 1; failed 0" in shown
    sleeper.communicate(b"\n")
    assert status.standing(found[3]).state == "to do"  # its process is dead
    (found[0].folder / "result.json").write_text("[]")
    assert "result.json: damaged" in status.standing(found[0]).note


def test_a_point_that_another_has_is_told_apart_from_one_that_fails(tmp_path):
    folder = Workdir(tmp_path / "run")
    with folder.locked(), pytest.raises(Taken, match="is being written by process"), folder.locked():
        pass
    folder.fail(RuntimeError("out of\nmemory"))
    assert folder.error["error"] == "RuntimeError: out of memory" and folder.error["traceback"]
    folder.finish({"splits": {}})
    assert folder.error is None
