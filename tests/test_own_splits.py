"""The data set's own validation and test: taken where a config leaves them unset, named in the workdir, and said."""

import json
import shutil

import pytest

from tests.conftest import make_folder, tiny_run
from tljax.checkpoints.workdir import Workdir
from tljax.config.schema import Experiment, TaskConfig
from tljax.errors import InputError
from tljax.sweeps.trial import make_trials
from tljax.training.console_output import split_lines
from tljax.training.trainer import train


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    root = tmp_path_factory.mktemp("birds")
    for split, count in {"train": 8, "val": 4, "test": 4}.items():
        make_folder(root / split, count)
    return root


def test_a_run_names_what_it_took_and_says_what_it_lacks(birds, shapes):
    run = tiny_run(f"folder:{birds}")
    assert (run.experiment.task.validation, run.experiment.task.test) == ("validation", "test")
    assert split_lines(run) == ["train: train, validation: validation, test: test"]
    assert split_lines(tiny_run(f"folder:{birds}", task__test="")) == [
        "train: train, validation: validation",
        "no test: the result has no test metrics; task.test names a split, or a part of one",
    ]
    lines = split_lines(tiny_run(f"folder:{shapes}", task__train="train[:80%]"))
    assert lines[0] == "train: train[:80%]"
    assert [line.partition(":")[0] for line in lines[1:]] == ["no validation", "no test"]


def test_another_experiment_of_a_run_has_its_splits(birds):
    run = tiny_run(f"folder:{birds}")
    unset = Experiment(task=TaskConfig(dataset=f"folder:{birds}"))
    assert unset.with_splits(run.experiment.task).task == TaskConfig(
        dataset=f"folder:{birds}", validation="validation", test="test"
    )
    none = Experiment(task=TaskConfig(validation="", test=""))
    assert none.with_splits(run.experiment.task) == none


def test_a_trial_that_leaves_its_splits_unset_keeps_its_name(tmp_path):
    (unset,), (empty,) = (
        make_trials(Experiment(steps=1, task=TaskConfig(dataset="folder:x", **splits)), [{}], tmp_path)
        for splits in ({}, {"validation": "", "test": ""})
    )
    assert unset.folder == empty.folder


@pytest.mark.slow
def test_a_workdir_of_an_earlier_version_goes_on_without_them(birds, tmp_path):
    new, old = tmp_path / "new", tmp_path / "old"
    unset = {"steps": 2, "task": {"dataset": f"folder:{birds}", "image_size": 32, "batch_size": 8}}
    unset["backbone"] = {"name": "vit_tiny_patch16"}
    assert list(train(Experiment.from_config(unset), new)["splits"]) == ["validation", "test"]
    stored = json.loads((new / "config.json").read_text())["config"]["task"]
    assert (stored["validation"], stored["test"]) == ("validation", "test")

    none = unset | {"task": unset["task"] | {"validation": "", "test": ""}}  # what an earlier version stored
    result = train(Experiment.from_config(none), old)
    assert result["splits"] == {}
    assert train(Experiment.from_config(unset), old) == result  # is finished, and no other run
    assert Workdir(old).load()[0].task.validation == ""
    with pytest.raises(InputError, match=r"holds another run .*task\.validation: '' there, 'train"):
        split = {"train": "train[4:]", "validation": "train[:4]"}
        train(Experiment.from_config(unset | {"task": unset["task"] | split}), old)
    shutil.rmtree(old)
