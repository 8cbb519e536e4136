"""Recipes: well-known schedules of strategies, as the phases that they are.

A recipe is a function `(length, peak, *, …) -> phases` of how long a run is and of its learning rate.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from tljax.config import choices, ranges
from tljax.config.tuning import PhaseConfig
from tljax.errors import InputError
from tljax.peft.config import ADAPTERS
from tljax.tuning.strategies import STRATEGIES, Layout


@dataclass(frozen=True)
class Length:
    """What recipes reckon with.

    Attributes:
        steps: of the run.
        per_epoch: steps of an epoch, with a fraction.
        layout: the parameters' names and groups.
    """

    steps: int
    per_epoch: float
    layout: Layout


def lp_ft(
    length: Length, peak: float, *, share: ranges.Between = 0.5, probe_rate: ranges.AboveZero = 10.0
) -> list[PhaseConfig]:
    """Returns the head on frozen features, then everything from that head (2202.10054).

    Args:
        length, peak: of the run.
        share: the part of the run that trains the head alone.
        probe_rate: the head's rate in that part, as a multiple of `optim.learning_rate`.
    """
    return [PhaseConfig("linear_probe", share=share, learning_rate=probe_rate * peak), PhaseConfig("full")]


def gradual_unfreezing(
    length: Length,
    peak: float,
    *,
    every: ranges.Positive | None = None,
    by: ranges.Positive = 1,
    direction: choices.Direction = "down",
) -> list[PhaseConfig]:
    """Returns the head, then more groups per phase (ULMFiT, 1801.06146, has one), under the whole run's schedule.

    Args:
        length, peak: of the run.
        every: steps before the next groups join; by default the run is shared out evenly.
        by: how many groups join at a time.
        direction: the next group is `down` from the head, or `up` from the input.

    Raises:
        InputError: the run is shorter than a step per phase, or than `every`.
    """
    strategy = "last_k" if direction == "down" else "first_k"
    joins = [(strategy, {"k": k}) for k in range(by, len(length.layout.blocks), by)]
    stages = [("linear_probe", {}), *joins, ("full", {})]
    every = length.steps // len(stages) if every is None else every
    if every < 1:
        raise InputError(f"gradual_unfreezing needs a step or more for each of {len(stages)} phases: a longer run")
    if every >= length.steps and len(stages) > 1:
        raise InputError(
            f"tuning.every={every}: the second phase would never come, for the run has {length.steps} steps"
        )
    stages = stages[: -(-length.steps // every)]  # a run that ends before every group has joined has fewer phases
    lengths = [every] * (len(stages) - 1) + [None]
    return [
        PhaseConfig(strategy, arguments, steps=steps, schedule="run")
        for (strategy, arguments), steps in zip(stages, lengths, strict=True)
    ]


def fine_tune(length: Length, peak: float, *, freeze_epochs: ranges.AboveZero = 1.0) -> list[PhaseConfig]:
    """Returns fastai's `fine_tune`: the head, then everything at half the rate, the lowest group a hundredth of that.

    Rates between are spaced evenly by their logarithm, over our groups instead of fastai's three. Its one-cycle
    schedule becomes a warm-up over 30% and half a cosine; momentum stays as it is.

    Args:
        length, peak: of the run.
        freeze_epochs: epochs of the head alone, before `config.epochs` or `steps` end with everything.
    """
    remaining = length.steps - round(freeze_epochs * length.per_epoch)
    factor = 100 ** (1 / len(length.layout.blocks))
    warmup_steps = max(0, int(0.3 * remaining))
    return [
        PhaseConfig("linear_probe", epochs=freeze_epochs, schedule="constant"),
        PhaseConfig("discriminative", {"factor": factor}, learning_rate=peak / 2, warmup_steps=warmup_steps),
    ]


def phases(length: Length, peak: float, *, phases: Annotated[tuple, ranges.NotEmpty()]) -> list[PhaseConfig]:
    """Returns the phases that a config spells out.

    Args:
        length, peak: of the run.
        phases: in a config (dict, …), each of a strategy, its arguments and its length (see `phases.py`); here they are
            read already.
    """
    return list(phases)


RECIPES: dict[str, Callable[..., list[PhaseConfig]]] = {
    "lp_ft": lp_ft,
    "gradual_unfreezing": gradual_unfreezing,
    "fine_tune": fine_tune,
    "phases": phases,
}
# What `tuning.strategy` may name -> whose signature has its arguments: of what it adds, where it adds something.
SIGNATURES: dict[str, Callable[..., Any]] = STRATEGIES | ADAPTERS | RECIPES
