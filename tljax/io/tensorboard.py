"""TensorBoard's curves of a run."""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from tljax import console
from tljax.io import storage


class TensorBoard:
    """A tracker that writes scalars to an events file, on a disk; in a bucket it writes none.

    A disk that fails ends the curves, never the run, which has the same numbers in `metrics.jsonl`.
    """

    def __init__(self, folder: epath.Path):
        self._folder, self._writer = folder, None

    def start(self, config: Mapping[str, Any], step: int) -> None:
        """Opens a file; what earlier ones have after `step` does not count. The `config` is in the workdir."""
        if storage.is_remote(self._folder):
            return
        self._board = _tensorboard()
        events = self._board.proto.event_pb2
        self._writer = self._try(lambda: self._board.event_file_writer.EventsWriter(str(self._folder / "events")))
        if self._writer:
            self._write(step, session_log=events.SessionLog(status=events.SessionLog.START))

    def log(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Writes `metrics` of a `split` at a `step`, by name."""
        for name, value in metrics.items():
            if self._writer:
                self._write(step, summary=self._board.summary.scalar(f"{split}/{name}", value))
        if self._writer:
            self._try(self._writer.flush)

    def finish(self, result: Mapping[str, Any] | None) -> None:
        """Does nothing: all is written, and the `result` is in the workdir."""

    def _write(self, step: int, **content: Any) -> None:
        event = self._board.proto.event_pb2.Event(wall_time=time.time(), step=step, **content)
        self._try(lambda: self._writer.write_event(event))

    def _try(self, write: Callable[[], Any]) -> Any:
        try:
            return write()
        except OSError as error:
            self._writer = None
            message = f"{self._folder}: no more curves for TensorBoard ({storage.reason(error)})"
            console.console.print(f"{message}; metrics.jsonl has the numbers")


def _tensorboard() -> Any:
    # Where torch is installed, tensorboardX would import it for tensors that no run has: seconds, and its own CUDA.
    absent = "torch" not in sys.modules
    if absent:
        sys.modules["torch"] = None
    try:
        import tensorboardX
        import tensorboardX.event_file_writer
        import tensorboardX.summary
    finally:
        if absent:
            del sys.modules["torch"]
    return tensorboardX
