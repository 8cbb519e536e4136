"""A run's phases: strategies that follow one another, as a pure function of the step.

Most runs have one phase. `tuning.strategy` may also be a row of `RECIPES`, or `phases` with `tuning.phases`, a tuple
of dicts. Each of those has

    strategy and its arguments,
    steps, epochs or share (of the run): its length; the last phase may leave it out and takes what is left,
    learning_rate, schedule, warmup_steps: as in `optim`, whose values they default to. The schedule `run` goes on
        with the whole run's instead of one of the phase's own.

At a switch, a leaf that goes on training keeps its moments and their age; one that starts to train starts with fresh
ones, even if it had trained before and rested; what an average (`optim.average`) holds of it starts at its value.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import optax

from tljax.config.schema import OptimConfig, TuningConfig
from tljax.errors import InputError
from tljax.peft.config import AdapterConfig
from tljax.tuning import multipliers as tuning_multipliers
from tljax.tuning import optimizers
from tljax.tuning.multipliers import check_arguments, takes
from tljax.tuning.strategies import STRATEGIES, Layout

Spec = Mapping[str, Any]  # a phase as `tuning.phases` has it
_LENGTHS = ("steps", "epochs", "share")
_RATES = ("learning_rate", "schedule", "warmup_steps")


@dataclass(frozen=True, eq=False)
class Phase:
    """A stretch of a run in which the same leaves train.

    Attributes:
        strategy, arguments: a row of `STRATEGIES` and what it takes.
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
    multipliers: tuning_multipliers.Tree
    since: tuning_multipliers.Tree
    frozen: frozenset[str]

    def schedule(self, step: Any) -> Any:
        """The learning rate at a step of the run."""
        return self.peak * self.shape(step)


@dataclass(frozen=True)
class Length:
    """What recipes reckon with: the run's steps, steps per epoch (with a fraction), and its layout."""

    steps: int
    per_epoch: float
    layout: Layout


def lp_ft(length: Length, peak: float, *, share: float = 0.5, probe_rate: float = 10.0) -> list[Spec]:
    """The head on frozen features, then everything from that head (2202.10054)."""
    return [
        {"strategy": "linear_probe", "share": share, "learning_rate": probe_rate * peak},
        {"strategy": "full"},
    ]


def gradual_unfreezing(
    length: Length, peak: float, *, every: int | None = None, by: int = 1, direction: str = "down"
) -> list[Spec]:
    """The head, then `by` more groups per phase (ULMFiT, 1801.06146, has one), under the whole run's schedule.

    Raises:
        InputError: the direction is unknown, `by` is below 1, or the run is shorter than a step per phase.
    """
    if direction not in ("down", "up"):
        raise InputError(f"tuning.direction must be down (from the head) or up (from the input), not {direction!r}")
    if by < 1:
        raise InputError(f"tuning.by must be at least 1, not {by}")
    strategy = "last_k" if direction == "down" else "first_k"
    some = [{"strategy": strategy, "k": k} for k in range(by, len(length.layout.blocks), by)]
    found = [{"strategy": "linear_probe"}, *some, {"strategy": "full"}]
    every = length.steps // len(found) if every is None else every
    if every < 1:
        raise InputError(f"gradual_unfreezing needs a step or more for each of {len(found)} phases: a longer run")
    if every >= length.steps and len(found) > 1:
        raise InputError(
            f"tuning.every={every}: the second phase would never come, for the run has {length.steps} steps"
        )
    # A run that ends before every group has joined has fewer phases.
    found = [{**spec, "schedule": "run"} for spec in found[: -(-length.steps // every)]]
    return [{**spec, "steps": every} for spec in found[:-1]] + found[-1:]


def fine_tune(length: Length, peak: float, *, freeze_epochs: float = 1.0) -> list[Spec]:
    """fastai's `fine_tune`: the head, then everything at half the rate, the lowest group a hundredth of that.

    Rates between are spaced evenly by their logarithm, over our groups instead of fastai's three. Its one-cycle
    schedule becomes a warm-up over 30% and half a cosine; momentum stays as it is.
    """
    rest = length.steps - round(freeze_epochs * length.per_epoch)
    factor = 100 ** (1 / len(length.layout.blocks))
    everything = {"strategy": "discriminative", "factor": factor, "learning_rate": peak / 2}
    return [
        {"strategy": "linear_probe", "epochs": freeze_epochs, "schedule": "constant"},
        {**everything, "warmup_steps": max(0, int(0.3 * rest))},
    ]


RECIPES: dict[str, Callable[..., list[Spec]]] = {
    "lp_ft": lp_ft,
    "gradual_unfreezing": gradual_unfreezing,
    "fine_tune": fine_tune,
}


def arguments_of(strategy: str) -> dict[str, bool]:
    """The names that `tuning.strategy` takes, strategies and recipes alike: whether each must be given.

    Raises:
        InputError: there is no such strategy.
    """
    if strategy == "phases":
        return {"phases": True}
    if strategy in RECIPES:
        return takes(RECIPES[strategy])
    if strategy not in STRATEGIES:
        known = ", ".join([*STRATEGIES, *RECIPES, "phases"])
        raise InputError(f"no tuning.strategy {strategy!r}; there are: {known}")
    return tuning_multipliers.arguments_of(strategy)


def additions(config: TuningConfig) -> tuple[AdapterConfig, ...]:
    """What the strategies of all phases add to the network.

    Raises:
        InputError: a strategy or an argument is not known, or two phases add the same thing in two ways.
    """
    check_arguments(config.strategy, config.arguments, arguments_of(config.strategy))
    if config.strategy in RECIPES:
        return ()
    specs = config.phases if config.strategy == "phases" else ({"strategy": config.strategy, **config.arguments},)
    found: list[AdapterConfig] = []
    for i, spec in enumerate(specs):
        one = tuning_multipliers.addition(*_split(spec, f"tuning.phases[{i}]")[:2])
        if one is not None and one not in found:
            if any(type(one) is type(other) for other in found):
                raise InputError(f"tuning.phases[{i}]: {one} is not what an earlier phase adds; a network has one")
            found.append(one)
    return tuple(found)


def phases(config: TuningConfig, rates: OptimConfig, length: Length) -> tuple[Phase, ...]:
    """The run's phases, from 0 to its last step without a gap.

    Raises:
        InputError: a strategy, an argument, a length or a schedule cannot be used; the phase is named.
    """
    check_arguments(config.strategy, config.arguments, arguments_of(config.strategy))
    if config.strategy in RECIPES:
        specs = RECIPES[config.strategy](length, rates.learning_rate, **config.arguments)
    elif config.strategy == "phases":
        specs = config.phases
    else:
        specs = [{"strategy": config.strategy, **config.arguments}]
    found: list[Phase] = []
    for i, spec in enumerate(specs):
        where = _place(config, i) if len(specs) > 1 else config.strategy
        strategy, arguments, own = _split(spec, where)
        start = found[-1].stop if found else 0
        steps = _steps(own, length, last=i == len(specs) - 1, left=length.steps - start, where=where)
        peak, shape = _schedule({**vars(rates), **own}, rates, start, steps, length.steps, where)
        multipliers = tuning_multipliers.multipliers(strategy, arguments, length.layout, config.group_rates)
        since = _since(i, multipliers, found[-1] if found else None)
        frozen = tuning_multipliers.frozen_groups(length.layout, multipliers)
        found.append(Phase(strategy, arguments, start, start + steps, peak, shape, multipliers, since, frozen))
    if found[-1].stop != length.steps:
        raise InputError(
            f"tuning.phases take {found[-1].stop} steps and the run {length.steps}: leave out the last one's length"
        )
    return tuple(found)


def _place(config: TuningConfig, number: int) -> str:
    """Returns what errors call a phase: its place in the config, or in what a recipe makes of its arguments."""
    if config.strategy == "phases":
        return f"tuning.phases[{number}]"
    arguments = "".join(f", tuning.{name}={value}" for name, value in config.arguments.items())
    return f"{config.strategy}{arguments}, phase {number}"


def _since(number: int, multipliers: tuning_multipliers.Tree, before: Phase | None) -> tuning_multipliers.Tree:
    """The phase since which each leaf trains; for a frozen one, this."""
    if before is None:
        return jax.tree.map(lambda _: 0, multipliers)
    return jax.tree.map(
        lambda now, then, since: since if now and then else number, multipliers, before.multipliers, before.since
    )


def _split(spec: Any, where: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """A phase's strategy, its arguments, and its length and rates."""
    if not isinstance(spec, Mapping) or spec.get("strategy") not in STRATEGIES:
        raise InputError(f"{where}: needs a 'strategy', one of {', '.join(STRATEGIES)}; it is {spec!r}")
    own = {key: value for key, value in spec.items() if key in (*_LENGTHS, *_RATES)}
    arguments = {key: value for key, value in spec.items() if key not in own and key != "strategy"}
    unknown = arguments.keys() - tuning_multipliers.arguments_of(spec["strategy"]).keys()
    if unknown:
        known = ", ".join([*tuning_multipliers.arguments_of(spec["strategy"]), *_LENGTHS, *_RATES])
        raise InputError(f"{where}: no key {min(unknown, key=str)!r} for {spec['strategy']}; there are: {known}")
    return spec["strategy"], arguments, own


def _steps(own: Spec, length: Length, *, last: bool, left: int, where: str) -> int:
    given = [key for key in _LENGTHS if key in own]
    if not given and last:
        steps = left
    elif len(given) != 1:
        raise InputError(f"{where}: give one of steps, epochs and share; it has {', '.join(given) or 'none'}")
    else:
        unit = {"steps": 1, "epochs": length.per_epoch, "share": length.steps}[given[0]]
        steps = round(own[given[0]] * unit)
    if not 1 <= steps <= left:
        raise InputError(f"{where}: {steps} steps long, where {left} of the run's {length.steps} are left")
    return steps


def _schedule(
    own: Spec, rates: OptimConfig, start: int, steps: int, total: int, where: str
) -> tuple[float, optax.Schedule]:
    whole = own["schedule"] == "run"
    values = vars(rates) if whole else own
    peak, warmup = values["learning_rate"], values["warmup_steps"]
    try:
        made = optimizers.schedule(values["schedule"], 1.0, warmup, total if whole else steps)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    return peak, made if whole else lambda step: made(step - start)
