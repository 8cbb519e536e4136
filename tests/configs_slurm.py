"""Four runs on `configs_tiny` of a few seconds each, none of which shares anything with another."""

import itertools

from tests import configs_tiny

__all__ = ["get_config", "sweep"]


def get_config():
    config = configs_tiny.get_config("pretrained")
    config.update(steps=2000, eval_every=1000, log_every=10)
    return config


def sweep():
    for rate, seed in itertools.product((1e-4, 1e-3), (0, 1)):
        yield {"optim.learning_rate": rate, "seed": seed}
