"""The keys that one of `tuning.phases` has beside the arguments of its strategy."""

from dataclasses import dataclass

from tljax.config import choices, ranges


@dataclass(frozen=True)
class PhaseConfig:
    """A phase's strategy, length and rates; `phases.py` says what each does. All but the strategy may be left out."""

    strategy: choices.Strategy
    steps: ranges.Positive
    epochs: ranges.AboveZero
    share: ranges.Part
    learning_rate: ranges.NotNegative
    schedule: choices.PhaseSchedule
    warmup_steps: ranges.Count
