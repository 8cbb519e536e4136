"""A strategy's own learning rate and length, where a config gives none."""

import json

import pytest

from tests.conftest import tiny_run
from tljax.config import default, defaults
from tljax.config.defaults import DEFAULTS
from tljax.config.schema import Experiment
from tljax.config.serialization import to_dict
from tljax.errors import InputError
from tljax.sweeps.trial import make_trials
from tljax.tuning.recipes import RECIPES
from tljax.tuning.strategies import STRATEGIES


def _experiment(**values) -> Experiment:
    config = default()
    for key, value in values.items():
        section, _, name = key.rpartition("__")
        (config[section] if section else config)[name] = value
    return Experiment.from_config(config)


def test_every_strategy_has_its_own():
    assert set(DEFAULTS) == set(STRATEGIES) | set(RECIPES) - {"phases"}


@pytest.mark.parametrize("strategy", ["full", "linear_probe", "lora"])
def test_what_is_left_out_is_the_strategys(strategy):
    own, experiment = DEFAULTS[strategy], _experiment(tuning__strategy=strategy)
    optim = experiment.optim
    assert (optim.learning_rate, optim.warmup, optim.weight_decay, optim.clip_norm) == (
        *(own.learning_rate, own.warmup, own.weight_decay, own.clip_norm),
    )
    assert (experiment.epochs, experiment.min_steps, experiment.steps) == (own.epochs, own.min_steps, 0)
    assert experiment.filled_from == strategy
    # As many steps as the epochs have, and no fewer than `min_steps`.
    assert experiment.total_steps(64) == own.min_steps
    assert experiment.total_steps(10**6) == round(own.epochs * 10**6 / 64)


def test_what_is_given_stays():
    experiment = _experiment(tuning__strategy="full", optim__learning_rate=0.5, steps=7)
    assert (experiment.optim.learning_rate, experiment.optim.weight_decay, experiment.optim.warmup) == (0.5, 0, 0)
    assert experiment.total_steps(10**6) == 7 and experiment.filled_from == ""
    experiment = _experiment(tuning__strategy="full", optim__weight_decay=0.3, optim__warmup_steps=5, epochs=2.0)
    assert experiment.optim.learning_rate == DEFAULTS["full"].learning_rate
    assert (experiment.optim.weight_decay, experiment.optim.warmup, experiment.optim.warmup_steps) == (0.3, 0, 5)
    assert experiment.total_steps(64) == 2
    # A zero rate is a value.
    assert _experiment(steps=1, optim__learning_rate=0.0).optim.learning_rate == 0


def test_a_stored_config_is_read_back_as_it_was():
    experiment = _experiment(tuning__strategy="lora")
    assert Experiment.from_config(json.loads(json.dumps(to_dict(experiment)))) == experiment


def test_a_sweep_over_strategies_takes_the_values_of_each(tmp_path):
    experiment = _experiment(tuning__strategy="linear_probe", optim__clip_norm=3.0)
    values = [{"tuning.strategy": "linear_probe"}, {"tuning.strategy": "full"}]
    values += [{"tuning.strategy": "full", "optim.learning_rate": 0.1}, {"tuning.strategy": "full", "steps": 5}]
    probe, full, given, short = (trial.experiment for trial in make_trials(experiment, values, tmp_path))
    assert probe == experiment
    own = DEFAULTS["full"]
    assert (full.optim.learning_rate, full.epochs, full.optim.clip_norm) == (own.learning_rate, own.epochs, 3.0)
    assert (given.optim.learning_rate, given.epochs, given.optim.weight_decay) == (0.1, own.epochs, 0.0)
    assert (short.total_steps(10**6), short.optim.learning_rate) == (5, own.learning_rate)


def test_a_run_warms_up_for_its_part(shapes):
    run = tiny_run(f"folder:{shapes}", optim__name="adamw", optim__learning_rate=None, steps=0)
    own, steps = DEFAULTS["full"], run.resolved.steps
    assert steps == own.min_steps
    (phase,) = run.phases
    warm = int(own.warmup * steps)
    rates = [float(phase.schedule(step)) for step in (0, warm // 2, warm, steps)]
    assert rates == pytest.approx([0, own.learning_rate / 2, own.learning_rate, 0], rel=1e-6, abs=1e-11)
    assert "learning_rate 5e-05" in defaults.described(run.experiment)


def test_what_cannot_be_is_named():
    with pytest.raises(InputError, match=r"optim\.name=sgd needs an optim\.learning_rate"):
        _experiment(optim__name="sgd")
    with pytest.raises(InputError, match="two lengths of one warm-up"):
        _experiment(optim__warmup=0.1, optim__warmup_steps=3)
