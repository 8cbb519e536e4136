"""A sweep of seconds on `configs_tiny`: two seeds of linear probes at two rates, and of deeper strategies."""

import itertools

from tests.configs_tiny import get_config

__all__ = ["get_config", "sweep"]


def sweep():
    for rate, seed in itertools.product((1e-3, 1e-2), (0, 1)):
        yield {"tuning.strategy": "linear_probe", "optim.learning_rate": rate, "seed": seed}
    yield {"tuning.strategy": "last_k", "tuning.k": 1}
    yield {"tuning.strategy": "last_k", "tuning.k": 2}
