"""A user's own loss, metric and problem, by `module:name`: a short run of each, and what is said of a wrong one."""

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import my_loss
import my_metric
import my_problem
import numpy as np
import pytest

from tests.conftest import ROOT, TINY, make_folder, tiny_run
from tljax.checkpoints.workdir import Workdir
from tljax.cli.convert import FORMATS, convert
from tljax.cli.flags import parse_experiment
from tljax.config.schema import BackboneConfig, Experiment
from tljax.config.serialization import to_dict
from tljax.errors import InputError
from tljax.evals import predictions
from tljax.evals.evaluate import evaluate
from tljax.evals.predict import predict
from tljax.models.registry import BACKBONES
from tljax.problems.base import Problem
from tljax.problems.registry import PROBLEMS, check_problem, problem_for, problem_of
from tljax.reports.run_metrics import measure
from tljax.reports.runs import read
from tljax.training.trainer import train

FOCAL, MARGIN, GRADED = "my_loss:focal", "my_metric:margin", "my_problem:Graded"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> str:
    return f"folder:{make_folder(tmp_path_factory.mktemp('data') / 'shapes', classes=('disc', 'ring', 'square'))}"


@pytest.fixture(autouse=True)
def _backbone(monkeypatch) -> None:
    monkeypatch.setitem(BACKBONES, "tiny_vit", TINY["tiny_vit"])


def _run(dataset: str, **values):
    splits = {"train": "train[:24]", "validation": "train[24:30]", "test": "train[30:]"}
    values = {"steps": 3, "log_every": 1, "head__init": "truncated_normal", **values}
    return tiny_run(dataset, **{f"task__{key}": value for key, value in splits.items()}, **values)


def _trained(run, folder: Path) -> tuple[dict, list[dict]]:
    result = train(run.experiment, folder, prepared=run)
    return result, [line for line in Workdir(folder).metrics if line["split"] == "train"]


def _first_step(run) -> tuple[jax.Array, np.ndarray]:
    """The outputs and labels of the first batch, before a step is taken."""
    state, batch = run.init_state(), next(iter(run.train_input().batches(0, 1)))
    outputs = run.programs.eval_step(8)(state.params, state.batch_stats, jnp.asarray(batch["input"]))
    return outputs, batch["label"]


class Thresholds(my_problem.Graded):
    """Of ordered classes, whether each is passed: one output less than there are classes."""

    def num_outputs(self, classes):
        return classes - 1

    def loss(self, outputs, labels):
        passed = labels[:, None] > jnp.arange(outputs.shape[-1])
        return jnp.sum(jax.nn.softplus(jnp.where(passed, -outputs, outputs)), axis=-1)


def test_only_a_head_with_an_output_for_each_class_is_exported(dataset, tmp_path):
    run, folder = _run(dataset, task__problem=f"{__name__}:Thresholds"), Workdir(tmp_path / "run")
    with folder.locked():
        folder.start(run.experiment, run.resolved)
    (folder.path / "metrics.jsonl").touch()
    for to in FORMATS:
        with pytest.raises(InputError, match=r"Thresholds has 2 outputs for 3 classes, .* can be exported"):
            convert(BackboneConfig(weights=str(folder.path)), tmp_path / "out", to)
    assert not (tmp_path / "out").exists()


def test_a_loss_and_a_metric_by_reference(dataset, tmp_path):
    loss, metrics = FOCAL, (MARGIN,)
    run = _run(dataset, loss=loss, loss_args={"gamma": 1.5}, metrics=metrics, checkpoint__best="margin")
    outputs, labels = _first_step(run)
    result, lines = _trained(run, tmp_path / "run")
    assert lines[0]["loss"] == pytest.approx(float(my_loss.focal(outputs, labels, gamma=1.5).mean()), rel=1e-5)
    config = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert (config["loss"], config["loss_args"], config["metrics"]) == (loss, {"gamma": 1.5}, list(metrics))

    kept, _ = predictions.load(tmp_path / "run" / "evaluations" / "3-test.parquet")
    assert (kept.problem, kept.logits.dtype) == (PROBLEMS["single_label"], np.float32)
    expected = my_metric.margin(kept.logits.astype(np.float64), kept.labels)
    with jax.enable_x64(True):
        own = my_loss.focal(jnp.asarray(kept.logits, jnp.float64), jnp.asarray(kept.labels), gamma=1.5).mean()
    metrics = result["splits"]["test"]
    assert {name: metrics[name] for name in expected} == expected
    assert metrics["loss"] == pytest.approx(float(own), rel=1e-12)
    assert metrics["loss_95"][0] < metrics["loss"] < metrics["loss_95"][1]
    assert evaluate(tmp_path / "run")["margin"] == expected["margin"]
    plain = PROBLEMS["single_label"].summarize(kept.logits, kept.labels)
    assert {name: metrics[name] for name in plain if not name.startswith("loss")} == {
        name: value for name, value in plain.items() if not name.startswith("loss")
    }

    (stored,), _ = read([str(tmp_path / "run")])
    measured = measure(stored, "test", "least_margin")
    assert measured.value == pytest.approx(expected["least_margin"], rel=1e-12)
    twice = measured.statistic(np.array([[2.0], *[[0.0]] * 5]))["least_margin"]
    assert twice == pytest.approx(my_metric.margin(kept.logits[:1].astype(np.float64), kept.labels[:1])["least_margin"])


def test_a_problem_by_reference(dataset, tmp_path):
    run = _run(dataset, task__problem=GRADED)
    outputs, labels = _first_step(run)
    result, lines = _trained(run, tmp_path / "run")
    assert lines[0]["loss"] == pytest.approx(float(my_problem.Graded().loss(outputs, labels).mean()), rel=1e-5)
    kept, _ = predictions.load(tmp_path / "run" / "evaluations" / "3-test.parquet")
    assert isinstance(kept.problem, my_problem.Graded) and kept.problem.name == GRADED
    off = np.abs(kept.logits.argmax(axis=-1) - kept.labels).mean()
    assert result["splits"]["test"]["grades_off"] == evaluate(tmp_path / "run")["grades_off"] == off
    with jax.enable_x64(True):
        own = kept.problem.loss(jnp.asarray(kept.logits, jnp.float64), jnp.asarray(kept.labels)).mean()
    assert result["splits"]["test"]["loss"] == pytest.approx(float(own), rel=1e-12)
    best = Workdir(tmp_path / "run").checkpoints(run.experiment)
    assert best.find_step("best") == 3
    picture = next(Path(dataset.partition(":")[2]).glob("*/*.png"))
    ((_, answer),) = predict(tmp_path / "run", [picture])
    assert set(answer) == {"disc", "ring", "square"} and sum(answer.values()) == pytest.approx(1)


def test_class_weights_weigh_a_user_s_loss(dataset):
    weights = (1.0, 2.0, 0.5)
    plain, weighed = (
        _run(dataset, loss=FOCAL, task__class_weights=value, regularize__mixup=0.2) for value in ((), weights)
    )
    outputs, labels = jnp.eye(3)[jnp.array([0, 1, 2, 2])], jnp.array([0, 1, 1, 2])
    own = jnp.array(weights)[labels]
    losses = plain.problem.example_losses(outputs, labels)
    np.testing.assert_array_equal(weighed.problem.weighted_loss(outputs, labels, own, jnp.array(weights)), own * losses)


def test_what_is_unset_changes_no_name_of_a_run():
    experiment = Experiment.from_config({"steps": 1})
    assert not {"loss", "loss_args", "metrics"} & to_dict(experiment).keys()
    own = Experiment.from_config({"steps": 1, "loss": "a:b", "loss_args": {"x": 1}, "metrics": ("a:c",)})
    assert Experiment.from_config(json.loads(json.dumps(to_dict(own)))) == own


def test_a_command_line_names_parts_and_their_arguments():
    keys = ("steps=1", f"loss={FOCAL}", "loss_args.gamma=1.5", f"metrics=('{MARGIN}',)")
    arguments = [f"--config={ROOT / 'configs' / 'default.py'}", *(f"--config.{key}" for key in keys)]
    experiment, _ = parse_experiment(argparse.ArgumentParser(), arguments)
    assert (experiment.loss_args, experiment.metrics) == ({"gamma": 1.5}, (MARGIN,))
    loss = problem_for(experiment).custom_loss
    assert (loss.function, loss.arguments) == (my_loss.focal, {"gamma": 1.5})


def mean_loss(outputs, labels):
    return jnp.mean(outputs)


def no_number(outputs, labels):
    return "high"


def a_known_name(outputs, labels):
    return {"accuracy": 1.0}


def one_argument(outputs):
    return outputs


not_a_function = 3


class Lacking(Problem):
    """A problem that is not finished."""

    def loss(self, outputs, labels):
        return outputs


class NoHeadline(my_problem.Graded):
    """A problem whose metrics lack its headline."""

    def metrics(self, outputs, labels):
        return {"x": 1.0}


HERE = "tests.extending.test_problem"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loss": "focal"}, "config.loss=focal: give module:name"),
        ({"loss": "my_loss.focal"}, r"give module:name, .*did you mean my_loss:focal\?"),
        ({"loss": "my_loss.py:focal"}, "no module my_loss.py: give my_loss:focal, without .py"),
        ({"loss": "my_loss:focall"}, "has no focall.*did you mean focal"),
        ({"loss": "my_losses:focal"}, "no module my_losses"),
        ({"loss": f"{HERE}:not_a_function"}, "not_a_function is a int, and no function"),
        ({"loss": f"{HERE}:one_argument"}, r"takes \(outputs\): its first two arguments must be \(outputs, labels\)"),
        ({"loss": FOCAL, "loss_args": {"gama": 1.0}}, "loss_args.gama.*did you mean gamma"),
        ({"loss_args": {"gamma": 1.0}}, "config.loss_args=.* are of config.loss, which is empty"),
        ({"loss": f"{HERE}:mean_loss"}, r"gives shape \(\) for outputs of shape \(2, 3\): give one loss an example"),
        ({"loss": FOCAL, "regularize": {"label_smoothing": 0.1}}, "label_smoothing is of the problem's own"),
        ({"metrics": ("top2",)}, "config.metrics=top2: give module:name"),
        ({"task": {"problem": FOCAL}}, "is no problem: make it a subclass"),
        ({"task": {"problem": f"{HERE}:Lacking"}}, "lacks answer, .*metrics, .*headline, train_metric: write them"),
        ({"task": {"problem": GRADED}, "regularize": {"label_smoothing": 0.1}}, "loss takes no smoothing"),
        ({"task": {"problem": "single_labl"}}, r"no config.task.problem 'single_labl' \(did you mean single_label\?\)"),
    ],
)
def test_what_is_said_of_a_wrong_part(values, message):
    with pytest.raises(InputError, match=message) as error:
        check_problem(Experiment.from_config({"steps": 1, **values}), 3)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_number", "gives 'high': give a number"),
        ("a_known_name", "gives 'accuracy', which single_label has already"),
    ],
)
def test_what_is_said_of_a_metric_s_result(name, message):
    problem = problem_for(Experiment.from_config({"steps": 1, "metrics": (f"{HERE}:{name}",)}))
    with pytest.raises(InputError, match=message):
        problem.summarize(np.eye(3), np.arange(3))


def test_what_is_said_of_a_headline_that_is_no_metric():
    with pytest.raises(InputError, match="metrics gives no 'grades_off', its headline: x"):
        problem_of(f"{HERE}:NoHeadline").summarize(np.eye(3), np.arange(3))
