"""Problems by name: ours, and a user's own as `module:Name`, with the loss and metrics that a config adds."""

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tljax.config.ranges import no_such
from tljax.config.references import check_arguments, is_reference, resolve_reference
from tljax.config.schema import Experiment
from tljax.errors import InputError
from tljax.problems.base import Problem
from tljax.problems.custom import CustomLoss, CustomMetric
from tljax.problems.multi_label import MultiLabel
from tljax.problems.regression import Regression
from tljax.problems.single_label import SingleLabel

PROBLEMS: dict[str, Problem] = {problem.name: problem for problem in (SingleLabel(), MultiLabel(), Regression())}
_NEAREST = "SingleLabel, MultiLabel or Regression of tljax.problems"


@functools.cache
def problem_of(name: str) -> Problem:
    """Returns the problem of `config.task.problem`.

    Raises:
        InputError: there is none of that name, or what the name refers to is no problem, or lacks a member.
    """
    if name in PROBLEMS:
        return PROBLEMS[name]
    if not is_reference(name):
        raise InputError(no_such("config.task.problem", name, PROBLEMS))
    part, where = resolve_reference(name, "config.task.problem"), f"config.task.problem={name}"
    kind = part if inspect.isclass(part) else type(part)
    if not issubclass(kind, Problem):
        raise InputError(f"{where} is no problem: make it a subclass of tljax.problems.base.Problem, or an instance")
    lacking = [
        *sorted(kind.__abstractmethods__),
        *(key for key in ("headline", "train_metric") if not hasattr(kind, key)),
    ]
    if lacking:
        raise InputError(f"{where} lacks {', '.join(lacking)}: write them, or subclass {_NEAREST}")
    problem = copy.copy(part() if inspect.isclass(part) else part)
    problem.name = name
    return problem


def problem_for(experiment: Experiment) -> Problem:
    """Returns the problem of an experiment, with the loss and the metrics that its config adds.

    Raises:
        InputError: of `problem_of`; or a loss or metric is not there, is no function, or does not take what it gets.
    """
    problem = problem_of(experiment.task.problem)
    if not experiment.loss and experiment.loss_args:
        raise InputError(f"config.loss_args={dict(experiment.loss_args)} are of config.loss, which is empty: name one")
    if not experiment.loss and not experiment.metrics:
        return problem
    return problem.with_parts(_loss(experiment), [_metric(name) for name in experiment.metrics])


def check_problem(experiment: Experiment, classes: int) -> None:
    """Checks that a config's keys, and what its loss gives, go with its problem.

    Args:
        experiment: with what the config asks for.
        classes: how many classes, or values, the data have.

    Raises:
        InputError: a key that the problem, or the config's own loss, cannot have; or a loss of another shape.
    """
    problem, regularize = problem_for(experiment), experiment.regularize
    if not problem.one_class and (experiment.task.balance or experiment.task.class_weights):
        raise InputError("task.balance and task.class_weights are of one class per example: of problem=single_label")
    if not problem.has_classes and experiment.head.init == "pretrained":
        raise InputError(f"head.init=pretrained takes rows of classes by name, and {problem.name} has none: use zeros")
    if regularize.label_smoothing and experiment.loss:
        raise InputError(
            f"regularize.label_smoothing is of the problem's own loss, not of {experiment.loss}: set it to 0"
        )
    if regularize.label_smoothing and not problem.has_classes:
        raise InputError(
            f"regularize.label_smoothing is shared out over classes, and {problem.name} has none: set it to 0"
        )
    if regularize.label_smoothing and not problem.smooths_labels:
        raise InputError(f"regularize.label_smoothing: {problem.name}.loss takes no smoothing: set it to 0")
    for key in ("mixup", "cutmix"):
        if getattr(regularize, key) and not problem.mixes_labels:
            raise InputError(f"regularize.{key} mixes labels, which {problem.name} does not allow: set it to 0")
    shape, dtype = problem.label_spec(classes)
    labels = jax.ShapeDtypeStruct((2, *shape), dtype)
    outputs = jax.ShapeDtypeStruct((2, problem.num_outputs(classes)), jnp.float32)
    jax.eval_shape(problem.example_losses, outputs, labels)


def _loss(experiment: Experiment) -> CustomLoss | None:
    if not experiment.loss:
        return None
    function, labels = _function(experiment.loss, "config.loss")
    arguments = check_arguments(function, experiment.loss_args, "config.loss_args", supplied=(labels,))
    return CustomLoss(f"config.loss={experiment.loss}", function, arguments)


def _metric(name: str) -> CustomMetric:
    function, labels = _function(name, "config.metrics")
    check_arguments(function, {}, "config.metrics", supplied=(labels,))
    return CustomMetric(f"config.metrics={name}", name.partition(":")[2], function)


def _function(name: str, key: str) -> tuple[Callable[..., Any], str]:
    """Returns the function of (outputs, labels) that a reference names, and what it calls the labels.

    Raises:
        InputError: it is no reference, or not to such a function.
    """
    if not is_reference(name):
        hint = f" (did you mean {':'.join(name.rsplit('.', 1))}?)" if "." in name and ":" not in name else ""
        raise InputError(f"{key}={name}: give module:name, of a function in a file beside the config{hint}")
    function = resolve_reference(name, key)
    if not callable(function):
        raise InputError(f"{key}={name} is a {type(function).__name__}, and no function of (outputs, labels)")
    signature = inspect.signature(function)
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    taken = [parameter.name for parameter in signature.parameters.values() if parameter.kind in by_position]
    if len(taken) < 2:
        raise InputError(f"{key}={name} takes {signature}: its first two arguments must be (outputs, labels)")
    return function, taken[1]
