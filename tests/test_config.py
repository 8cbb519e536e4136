import argparse
import json

import pytest

from tljax.cli import flags
from tljax.config import schema, serialization
from tljax.config.schema import Experiment, OptimConfig
from tljax.errors import InputError


def _with(**overrides) -> dict:
    return schema.default().to_dict() | {"steps": 1} | overrides


def test_default_config_becomes_the_default_experiment():
    experiment = Experiment.from_config(_with(optim={"learning_rate": 0.1}))
    assert experiment == Experiment(steps=1, optim=OptimConfig(learning_rate=0.1))


def test_an_experiment_survives_json():
    values = _with(tuning={"strategy": "pattern", "patterns": ((".*", 1.0),)}, epochs=0)
    experiment = Experiment.from_config(values)
    again = Experiment.from_config(json.loads(json.dumps(serialization.to_dict(experiment))))
    assert again == experiment
    assert again.tuning.arguments["patterns"] == ((".*", 1.0),)


def test_a_config_of_an_earlier_version_is_read_by_its_names_of_then():
    then = {"regularise": {"dropout": 0.1}, "task": {"crop": "centre", "augment": ["colour_jitter", "flip"]}}
    now = {"regularize": {"dropout": 0.1}, "task": {"crop": "center", "augment": ["color_jitter", "flip"]}}
    assert serialization.with_present_names(then) == now


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (_with(regularise={}), "no key config.regularise: it is called config.regularize now"),
        (_with(task={"crop": "centre"}), "did you mean center"),
        (_with(optimm={}), "no key config.optimm: did you mean config.optim?"),
        (
            _with(optim={"learning_rat": 1.0}),
            "no key config.optim.learning_rat: did you mean config.optim.learning_rate?",
        ),
        (_with(optim={"learning_rate": "fast"}), "config.optim.learning_rate must be float, not str 'fast'"),
        (_with(seed=1.5), "config.seed must be int, not float 1.5"),
        (_with(seed=True), "config.seed must be int, not bool True"),
        (_with(task={"augment": "flip"}), "config.task.augment must be tuple, not str 'flip'"),
        (_with(epochs=2.0), "give the run's length as one of config.steps and config.epochs"),
    ],
)
def test_bad_values_are_named(values, message):
    with pytest.raises(InputError) as error:
        Experiment.from_config(values)
    assert message in str(error.value)


def test_integers_are_taken_for_floats_and_unset_arguments_stay_unset():
    experiment = Experiment.from_config(_with(optim={"learning_rate": 1}, tuning={"strategy": "last_k", "k": 2}))
    assert experiment.optim == OptimConfig(learning_rate=1.0)
    assert experiment.tuning.arguments == {"k": 2}


def test_experiments_with_phases_are_keys_of_a_dict():
    phases = ({"strategy": "linear_probe", "share": 0.5}, {"strategy": "full"})
    first, same = (Experiment.from_config(_with(tuning={"strategy": "phases", "phases": phases})) for _ in range(2))
    assert {first: 1}[same] == 1
    other = Experiment.from_config(_with(tuning={"strategy": "phases", "phases": phases[1:]}))
    assert {first: 1, other: 2}[other] == 2


def test_length_in_epochs():
    experiment = Experiment.from_config(_with(steps=0, epochs=1.5, task={"batch_size": 10}))
    assert experiment.total_steps(train_examples=100) == 15


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import no_such_module\n", "line 1: ModuleNotFoundError: No module named 'no_such_module'"),
        ("def get_config():\n    return 1 / 0\n", "line 2: ZeroDivisionError: division by zero"),
        ("def get_config(:\n", "line 1: SyntaxError: "),
    ],
)
def test_what_a_config_file_raises_is_its_line(tmp_path, text, message):
    file = tmp_path / "config.py"
    file.write_text(text)
    with pytest.raises(InputError) as error:
        flags.parse_experiment(argparse.ArgumentParser(), [f"--config={file}"])
    assert str(error.value).startswith(f"{file}, {message}") and "\n" not in str(error.value)
