"""Trackers show a run's metrics elsewhere, as they come: TensorBoard, or a service by a class of the user's own."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

from etils import epath

from tljax import console
from tljax.config import ranges
from tljax.config.references import is_reference, resolve_reference
from tljax.errors import InputError, message_of
from tljax.io.tensorboard import TensorBoard


@runtime_checkable
class Tracker(Protocol):
    """Gets a run's metrics as they are logged.

    `config.log.trackers=("tensorboard", "package.module:name")` names them. `name` is called with the workdir's path,
    in the first process of the run alone, and returns a tracker. A method that raises `tljax.errors.InputError` ends
    the run; after any other exception the tracker gets no more, and the run goes on.
    """

    def start(self, config: Mapping[str, Any], step: int) -> None:
        """Begins, or goes on after `step`: what was logged after it does not count. `config` is nested dicts."""

    def log(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Takes `metrics` by name: of a training `step` (`split` is train) or of a validation."""

    def finish(self, result: Mapping[str, Any] | None) -> None:
        """Ends: `result` is `result.json`; None where the run was stopped, and will go on."""


TRACKERS: dict[str, Callable[[epath.Path], Tracker]] = {"tensorboard": TensorBoard}


class Trackers:
    """All trackers of a run.

    Args:
        names: of trackers, as `config.log.trackers` has them.
        folder: the run's workdir.
        active: whether they get anything, which is so in the first process of the run.

    Raises:
        InputError: there is no such tracker.
    """

    def __init__(self, names: Iterable[str], folder: epath.Path, active: bool = True):
        makers = {name: _maker(name) for name in names}
        self._trackers = {name: make(folder) for name, make in makers.items()} if active else {}

    def start(self, config: Mapping[str, Any], step: int) -> None:
        """Begins, as `Tracker.start` does."""
        self._call(lambda tracker: tracker.start(config, step))

    def log(self, step: int, split: str, metrics: Mapping[str, Any]) -> None:
        """Passes on those `metrics` of a `split` at a `step` that are numbers."""
        numbers = {name: value for name, value in metrics.items() if isinstance(value, float)}
        self._call(lambda tracker: tracker.log(step, split, numbers))

    def finish(self, result: Mapping[str, Any] | None) -> None:
        """Ends, as `Tracker.finish` does."""
        self._call(lambda tracker: tracker.finish(result))

    def _call(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                call(tracker)
            except InputError:
                raise
            except Exception as error:  # whatever a service's client raises
                del self._trackers[name]
                console.console.print(f"log.trackers={name}: no more ({type(error).__name__}: {message_of(error)})")


def _maker(name: str) -> Callable[[epath.Path], Tracker]:
    if is_reference(name):
        return resolve_reference(name, "log.trackers")
    if name not in TRACKERS:
        raise InputError(ranges.no_such("log.trackers", name, TRACKERS))
    return TRACKERS[name]
