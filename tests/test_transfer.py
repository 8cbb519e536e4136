"""`configs/transfer.py`: every set of it is one that TFDS has, and a sweep of it is made of runs that can be had."""

import runpy

import pytest
import tensorflow_datasets as tfds

from tests.conftest import ROOT
from tljax.config.schema import Experiment
from tljax.data import registry
from tljax.data.sources import vtab
from tljax.errors import InputError
from tljax.sweeps.trial import make_trials
from tljax.tuning import phases
from tljax.tuning.multipliers import check_arguments
from tljax.tuning.optimizers import OPTIMIZERS
from tljax.weights import pretrained

TRANSFER = runpy.run_path(str(ROOT / "configs" / "transfer.py"))
SETS = (*TRANSFER["IMAGES"], "imagenet_5shot", "sst2", *(f"vtab_{name}" for name in vtab.TASKS))
BUILDERS = tfds.list_builders(with_community_datasets=False)


@pytest.mark.parametrize("name", SETS)
def test_every_set_is_a_sweep(name, tmp_path):
    experiment = Experiment.from_config(TRANSFER["get_config"](name))
    kind, _, spec = experiment.task.dataset.partition(":")
    if name == "sst2":
        assert (kind, spec) == ("hf", "nyu-mll/glue/sst2")
    else:
        assert kind == "tfds" and spec.partition("/")[0] in BUILDERS
    if name.startswith("vtab_"):
        assert spec == vtab.TASKS[name.removeprefix("vtab_")].dataset
        assert (experiment.task.train, experiment.task.test) == ("vtab:train800", "vtab:test")
    row = pretrained.resolve_weights(experiment.backbone)
    assert pretrained.reads(row) == ("text" if name == "sst2" else "image")
    overrides = list(TRANSFER["sweep"](name))
    trials = make_trials(experiment, (values for values in overrides if values["seed"] == 0), tmp_path)
    strategies = {trial.experiment.tuning.strategy for trial in trials}
    assert len(overrides) == 3 * len(trials) == 3 * 4 * len(strategies) and len(strategies) >= 3
    for trial in trials:
        tuning, optim = trial.experiment.tuning, trial.experiment.optim
        check_arguments(tuning.strategy, tuning.arguments, phases.arguments_of(tuning.strategy))
        assert optim.name in OPTIMIZERS and optim.warmup_steps < trial.experiment.total_steps(60_000)


@pytest.mark.parametrize("name", ["cats", "vtab", "vtab_cats", "dtd", ""])
def test_another_set_is_named(name):
    with pytest.raises(InputError, match=f"configs/transfer.py:{name}: there are cifar10, .*sst2, vtab_caltech101, "):
        TRANSFER["get_config"](name)


def test_a_set_that_is_not_at_hand_says_what_to_run(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("TLJAX_CACHE", str(tmp_path / "cache"))

    def fails(self, **keys):
        raise ModuleNotFoundError("No module named 'tensorflow'")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fails)
    with pytest.raises(InputError) as error:
        registry.load(Experiment.from_config(TRANSFER["get_config"]("pets")).task)
    assert str(error.value).startswith("tfds:oxford_iiit_pet: TFDS cannot prepare it here (ModuleNotFoundError")
    assert "run `tfds build oxford_iiit_pet --file_format=array_record" in str(error.value)
