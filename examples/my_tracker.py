"""A tracker of your own: it writes what it gets to `journal.jsonl` in the workdir, as a service's client would.

--config.log.trackers="('tensorboard', 'my_tracker:Journal')"
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Journal:
    """Writes a line for each call."""

    def __init__(self, workdir: Path):
        self._path = Path(workdir) / "journal.jsonl"

    def start(self, config: Mapping[str, Any], step: int) -> None:
        self._write(started=step, learning_rate=config["optim"]["learning_rate"])

    def log(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        self._write(step=step, split=split, **metrics)

    def finish(self, result: Mapping[str, Any] | None) -> None:
        self._write(result=result)

    def _write(self, **content: Any) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(content) + "\n")
