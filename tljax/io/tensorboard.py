"""TensorBoard's curves of a run."""

import sys
import time
from collections.abc import Callable
from typing import Any

from etils import epath

from tljax import console
from tljax.io import storage


class Events:
    """Scalars in an events file, on a disk; a bucket has none. What was written after step `start` does not count.

    A disk that fails ends the curves, never the run, which has the same numbers in `metrics.jsonl`.
    """

    def __init__(self, folder: epath.Path, start: int):
        self._folder, self._writer = folder, None
        if storage.is_remote(folder):
            return
        self._board = _tensorboard()
        events = self._board.proto.event_pb2
        self._writer = self._try(lambda: self._board.event_file_writer.EventsWriter(str(folder / "events")))
        if self._writer:
            self._write(start, session_log=events.SessionLog(status=events.SessionLog.START))

    def __enter__(self) -> "Events":
        return self

    def __exit__(self, *error: Any) -> None:
        self.flush()

    def scalar(self, name: str, value: float, step: int) -> None:
        """Writes the `value` of the curve `name` at `step`."""
        if self._writer:
            self._write(step, summary=self._board.summary.scalar(name, value))

    def flush(self) -> None:
        """Brings what was written so far to the disk."""
        if self._writer:
            self._try(self._writer.flush)

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
