"""A user's own strategy, optimizer and schedule, as they may stand beside a config."""

import optax

from tljax.tuning.strategies import Layout


def every_nth(layout: Layout, *, stride: int) -> dict[str, float]:
    """Trains every `stride`-th block and the head."""
    return layout.by_group(lambda group: group == "head" or layout.index(group) % stride == 0)


def scaled_sgd(learning_rate, scale: float = 1.0):
    """Returns plain gradient descent, `scale` times as fast."""
    return optax.sgd(learning_rate * scale)


def power(step, *, steps, warmup_steps, exponent: float = 1.0):
    """Returns a line to 0 to the power of `exponent`; it has no warm-up."""
    return (1 - step / steps) ** exponent


def everything(layout: Layout, stride=2):
    """Returns a number where a dict is asked for."""
    return stride
