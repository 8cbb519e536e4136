"""A loss, two metrics and a problem as a user writes them, beside a config."""

import jax
import jax.numpy as jnp
import numpy as np

from tljax.problems.metric import Metric
from tljax.problems.single_label import SingleLabel


def focal(outputs, labels, *, gamma: float = 2.0):
    """Focal loss (1708.02002)."""
    log_p = jnp.take_along_axis(jax.nn.log_softmax(outputs), labels[:, None], axis=-1)[:, 0]
    return -((1 - jnp.exp(log_p)) ** gamma) * log_p


def margin(outputs, labels):
    """How far the label's logit is above the highest of the others."""
    own = np.take_along_axis(outputs, labels[:, None], axis=-1)[:, 0]
    others = np.where(np.arange(outputs.shape[-1]) == labels[:, None], -np.inf, outputs).max(axis=-1)
    return {"margin": np.mean(own - others), "least_margin": np.min(own - others)}


class Graded(SingleLabel):
    """Classes are grades, from 0 on: a wrong one is worse the farther it is off."""

    headline = Metric("grades_off", better="lower")

    def loss(self, outputs, labels):
        """The squared error of the expected grade."""
        grades = jnp.arange(outputs.shape[-1])
        return jnp.square(jax.nn.softmax(outputs) @ grades - labels)

    def metrics(self, outputs, labels):
        off = np.abs(outputs.argmax(axis=-1) - labels).mean()
        return {"grades_off": off, **super().metrics(outputs, labels)}
