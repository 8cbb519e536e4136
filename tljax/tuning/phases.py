"""A run's phases: strategies that follow one another, as a pure function of the step.

Most runs have one phase. `tuning.strategy` may also be a row of `recipes.RECIPES`, of which `phases` takes
`tuning.phases`, a tuple of dicts. Each of those has

    strategy and its arguments,
    steps, epochs or share (of the run): its length; the last phase may leave it out and takes what is left,
    learning_rate, schedule, warmup_steps: as in `optim`, whose values they default to. The schedule `run` goes on
        with the whole run's instead of one of the phase's own.

At a switch, a leaf that goes on training keeps its moments and their age; one that starts to train starts with fresh
ones, even if it had trained before and was frozen since; what an average (`optim.average`) holds of it starts at its
value.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import optax

from tljax.config.tuning import OptimConfig, PhaseConfig, TuningConfig
from tljax.errors import InputError
from tljax.peft.config import ADAPTERS, AdapterConfig
from tljax.tuning import optimizers
from tljax.tuning.multipliers import Tree, frozen_groups, multiplier_tree
from tljax.tuning.recipes import RECIPES, Length

_LENGTHS = ("steps", "epochs", "share")


@dataclass(frozen=True, eq=False)
class Phase:
    """A stretch of a run in which the same leaves train.

    Attributes:
        strategy, arguments: a strategy's name and what it is given.
        start, stop: steps of the run; `stop` is no longer part of it.
        peak: the highest learning rate.
        shape: step of the run -> the learning rate as a part of `peak`.
        multipliers: of each leaf.
        since: the number of the phase since which each leaf has trained without a pause.
        frozen: the groups in which nothing trains.
    """

    strategy: str
    arguments: Mapping[str, Any]
    start: int
    stop: int
    peak: float
    shape: optax.Schedule
    multipliers: Tree
    since: Tree
    frozen: frozenset[str]

    def schedule(self, step: Any) -> Any:
        """Returns the learning rate at a step of the run."""
        return self.peak * self.shape(step)


def adapters(config: TuningConfig) -> tuple[AdapterConfig, ...]:
    """Returns what the strategies of all phases add to the network.

    Raises:
        InputError: two phases add the same thing in two ways.
    """
    # Of recipes, but for `phases`, none adds anything.
    specs = config.phases if config.strategy in RECIPES else (PhaseConfig(config.strategy, config.arguments),)
    parts: list[AdapterConfig] = []
    for place, spec in enumerate(specs):
        if spec.strategy not in ADAPTERS:
            continue
        part = ADAPTERS[spec.strategy](**spec.arguments)
        if part not in parts:
            if any(type(part) is type(other) for other in parts):
                raise InputError(f"tuning.phases[{place}]: {part} is not what an earlier phase adds; a network has one")
            parts.append(part)
    return tuple(parts)


def phases(config: TuningConfig, rates: OptimConfig, length: Length) -> tuple[Phase, ...]:
    """Returns the run's phases, from 0 to its last step without a gap.

    Args:
        config: the strategy or recipe.
        rates: the section `optim`.
        length: of the run, and what it trains.

    Raises:
        InputError: an argument does not suit the network, or a length or a schedule the run; the phase is named.
    """
    if config.strategy in RECIPES:
        arguments = {**config.arguments, "phases": config.phases} if config.phases else config.arguments
        specs = RECIPES[config.strategy](length, rates.learning_rate, **arguments)
    else:
        specs = [PhaseConfig(config.strategy, config.arguments)]
    result: list[Phase] = []
    for place, spec in enumerate(specs):
        where = _place(config, place) if len(specs) > 1 else config.strategy
        before = result[-1] if result else None
        start = before.stop if before else 0
        steps = _steps(spec, length, last=place == len(specs) - 1, left=length.steps - start, where=where)
        peak, shape = _schedule(spec, rates, start, steps, length.steps, where)
        multipliers = multiplier_tree(spec.strategy, spec.arguments, length.layout, config.group_rates)
        since = _since(place, multipliers, before)
        frozen = frozen_groups(length.layout, multipliers)
        stop = start + steps
        result.append(Phase(spec.strategy, spec.arguments, start, stop, peak, shape, multipliers, since, frozen))
    if result[-1].stop != length.steps:
        raise InputError(
            f"tuning.phases take {result[-1].stop} steps and the run {length.steps}: leave out the last one's length"
        )
    return tuple(result)


def _place(config: TuningConfig, number: int) -> str:
    """Returns what errors call a phase: its place in the config, or in what a recipe makes of its arguments."""
    if config.strategy == "phases":
        return f"tuning.phases[{number}]"
    arguments = "".join(f", tuning.{name}={value}" for name, value in config.arguments.items())
    return f"{config.strategy}{arguments}, phase {number}"


def _since(number: int, multipliers: Tree, before: Phase | None) -> Tree:
    """Returns the phase since which each leaf trains; for a frozen one, this."""
    if before is None:
        return jax.tree.map(lambda _: 0, multipliers)
    return jax.tree.map(
        lambda now, then, since: since if now and then else number, multipliers, before.multipliers, before.since
    )


def _steps(spec: PhaseConfig, length: Length, *, last: bool, left: int, where: str) -> int:
    keys = [key for key in _LENGTHS if getattr(spec, key) is not None]
    if not keys and last:
        steps = left
    elif len(keys) != 1:
        raise InputError(f"{where}: give one of steps, epochs and share; it has {', '.join(keys) or 'none'}")
    else:
        unit = {"steps": 1, "epochs": length.per_epoch, "share": length.steps}[keys[0]]
        steps = round(getattr(spec, keys[0]) * unit)
    if not 1 <= steps <= left:
        raise InputError(f"{where}: {steps} steps long, where {left} of the run's {length.steps} are left")
    return steps


def _schedule(
    spec: PhaseConfig, rates: OptimConfig, start: int, steps: int, total: int, where: str
) -> tuple[float, optax.Schedule]:
    """Returns a phase's peak, and the part of it that each step of the run has."""
    spans_run = spec.schedule == "run"

    def rate(key: str) -> Any:
        own = getattr(spec, key)
        return getattr(rates, key) if spans_run or own is None else own

    name = rate("schedule")
    arguments = rates.schedule_args if name == rates.schedule else {}
    try:
        length = total if spans_run else steps
        warmup = rates.warmup_of(length) if spans_run or spec.warmup_steps is None else spec.warmup_steps
        shape = optimizers.schedule(name, 1.0, warmup, length, arguments)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    return rate("learning_rate"), shape if spans_run else lambda step: shape(step - start)
