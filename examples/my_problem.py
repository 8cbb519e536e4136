"""A problem of your own: a subclass of `Problem`, or of one of tljax's own, in which you write what differs.

--config.task.problem=my_problem:Graded
"""

import jax
import jax.numpy as jnp
import numpy as np

from tljax import Metric
from tljax.problems.single_label import SingleLabel


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
