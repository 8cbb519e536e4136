"""A user's own loss (`config.loss`) and metrics (`config.metrics`), checked where they give something."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from tljax.config.ranges import shown
from tljax.errors import InputError
from tljax.metrics.bootstrap import Statistic


@dataclass(frozen=True)
class CustomLoss:
    """A loss of each example: `function(outputs, labels, **arguments)`.

    Attributes:
        where: what errors call it.
        function: traced in the training step; it gives float [batch].
        arguments: `config.loss_args`.
    """

    where: str
    function: Callable[..., Any]
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __call__(
        self, outputs: Float[Array, "batch outputs"], labels: Num[Array, "batch ..."]
    ) -> Float[Array, " batch"]:
        """Returns the loss of each example.

        Raises:
            InputError: the function gives something of another shape.
        """
        losses = self.function(outputs, labels, **self.arguments)
        if getattr(losses, "shape", None) != outputs.shape[:1]:
            shape = f"shape {losses.shape}" if hasattr(losses, "shape") else f"a {type(losses).__name__}"
            raise InputError(
                f"{self.where} gives {shape} for outputs of shape {outputs.shape}: give one loss an example, shape"
                f" {outputs.shape[:1]}, without a mean over the batch"
            )
        return losses

    def on_host(self, outputs: np.ndarray, labels: np.ndarray) -> Float[np.ndarray, " n"]:
        """Returns the loss of each example of a split, computed in float64."""
        labels = labels.astype(np.float64) if np.issubdtype(labels.dtype, np.floating) else labels
        with _in_float64():
            return np.asarray(self(jnp.asarray(outputs, jnp.float64), jnp.asarray(labels)), np.float64)


@dataclass(frozen=True)
class CustomMetric:
    """A metric of a whole split: `function(outputs, labels)` gives a number, or numbers by name.

    Attributes:
        where: what errors call it.
        name: of the metric, where the function gives a number.
        function: of float64 [n, outputs], and labels as `Problem.encode` gives them; its attribute `better` says
            whether `higher` (the default) or `lower` values are better, or has that by name.
    """

    where: str
    name: str
    function: Callable[[np.ndarray, np.ndarray], Any]

    @property
    def better(self) -> Mapping[str, str]:
        """Which way metrics are better, `higher` or `lower` by name, as far as the function says."""
        better = getattr(self.function, "better", "higher")
        return better if isinstance(better, Mapping) else {self.name: better}

    def values(self, outputs: Float[np.ndarray, "n outputs"], labels: Num[np.ndarray, "n ..."]) -> dict[str, float]:
        """Returns the metric, or metrics, by name.

        Raises:
            InputError: the function gives something else than numbers.
        """
        with _in_float64():
            result = self.function(outputs, labels)
        by_name = result if isinstance(result, Mapping) else {self.name: result}
        try:
            return {str(name): float(value) for name, value in by_name.items()}
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{self.where} gives {shown(result)}: give a number, or a dict of numbers by name"
            ) from error

    def statistic(self, outputs: Float[np.ndarray, "n outputs"], labels: Num[np.ndarray, "n ..."]) -> Statistic:
        """Returns what gives the metric of resamples, each of which it is computed of anew."""

        def statistic(times: np.ndarray) -> dict[str, np.ndarray]:
            places = [np.repeat(np.arange(len(labels)), column.astype(int)) for column in times.T]
            draws = [self.values(outputs[rows], labels[rows]) for rows in places]
            return {name: np.array([draw[name] for draw in draws]) for name in draws[0]}

        return statistic


@contextlib.contextmanager
def _in_float64() -> Iterator[None]:
    """JAX computes on the host, and float64 stays what it is."""
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        yield
