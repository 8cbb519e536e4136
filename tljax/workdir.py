"""The files of a run's folder: config.json, plan.json, metrics.jsonl, result.json, checkpoints/, tokenizer/, …"""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from etils import epath
from flax.traverse_util import flatten_dict

from tljax import storage, strict_json
from tljax.checkpoint import Checkpoints
from tljax.config import INDIFFERENT, Experiment, MeshConfig
from tljax.data.text import Tokenizer
from tljax.errors import InputError
from tljax.fields import build, to_dict
from tljax.lock import Lock, clear, writer
from tljax.metrics import JUDGED
from tljax.resolve import Resolved

_PACKAGES = ("tljax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "grain", "tensorflow-datasets")


class Workdir:
    """A run's folder. `config.json` is written first and never changes; `result.json` last, when all is done.

    Args:
        path: of a disk, or `gs://…`, `s3://…`, `az://…`.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = storage.locate(path)
        self._config = self.path / "config.json"
        self._plan = self.path / "plan.json"
        self._metrics = self.path / "metrics.jsonl"
        self._result = self.path / "result.json"
        self._error = self.path / "error.json"
        self._unwritten: list[str] = []

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the folder, and this process its only writer.

        Raises:
            Taken: another process writes to it.
            InputError: it cannot be written to.
        """
        lock = Lock(self.path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except OSError as error:
            raise _unwritable(self.path, error) from error
        try:
            yield
        finally:
            lock.release()

    def start(self, experiment: Experiment, resolved: Resolved, tokenizer: Tokenizer | None = None) -> None:
        """Claims the folder for an experiment, or finds that it is this experiment's already.

        A folder in which no step was logged, as a failed start leaves it, is claimed anew. A text's `tokenizer` is
        copied there.

        Raises:
            InputError: it holds a run of another config or of other data; the differences are shown.
        """
        mine = {"config": to_dict(experiment), "resolved": to_dict(resolved)}
        if self._config.exists() and self._metrics.exists():
            theirs = self._read(self._config)
            differences = _differences({key: theirs[key] for key in mine}, json.loads(strict_json.dumps(mine)))
            if differences:
                shown = "; ".join(differences)
                raise InputError(f"{self.path} holds another run ({shown}): give another --workdir")
            return
        facts = {"versions": _versions(), "git_commit": _git_commit(), "command": shlex.join(sys.orig_argv)}
        for name, file in tokenizer.files.items() if tokenizer else ():
            (self.path / "tokenizer").mkdir(exist_ok=True)
            storage.write_whole(self.path / "tokenizer" / name, file.read_bytes())
        _write(self._config, mine | facts)

    @property
    def tokenizer(self) -> Path | None:
        """The folder of the tokenizer of a run on texts that has begun, on this machine; else None."""
        folder = self.path / "tokenizer"
        return storage.local(folder) if folder.is_dir() and self._metrics.exists() else None

    def load(self) -> tuple[Experiment, Resolved]:
        """What `start` wrote, but for the mesh, which was that of the devices then.

        Raises:
            InputError: there is no run here, or its config cannot be read.
        """
        if not self._config.exists():
            raise InputError(f"{self.path}: no run here (no config.json)")
        found = self._read(self._config)
        resolved = build(Resolved, found["resolved"], "resolved")
        return dataclasses.replace(Experiment.from_config(found["config"]), mesh=MeshConfig()), resolved

    @property
    def origin(self) -> dict[str, Any]:
        """How the run that `load` gives was made: `versions`, `git_commit` and `command`."""
        found = self._read(self._config)
        return {key: found.get(key) for key in ("versions", "git_commit", "command")}

    def checkpoints(self, experiment: Experiment, writer: bool = False) -> Checkpoints:
        """The run's checkpoints, of which its config says which are kept and which is best."""
        config, judged = experiment.checkpoint, JUDGED[experiment.task.problem]
        if config.keep < 1:
            raise InputError(f"checkpoint.keep must be at least 1, not {config.keep}")
        if config.best:
            judged = dataclasses.replace(judged, best=config.best)
        return Checkpoints(self.path / "checkpoints", judged, config, writer)

    @property
    def result(self) -> dict[str, Any] | None:
        """The finished run's result, or None."""
        return self._read(self._result) if self._result.exists() else None

    def finish(self, result: Mapping[str, Any]) -> None:
        """Writes `result.json`.

        Raises:
            InputError: the disk does not take it.
        """
        self.forget_error()  # first: killed in between, a run is not finished and failed at once
        storage.persistently(lambda: _write(self._result, result), str(self._result))

    @property
    def error(self) -> dict[str, Any] | None:
        """Why the run has failed: `error`, in a line, and `when`. None if it has not, or has ended well since."""
        return self._read(self._error) if self._error.exists() else None

    def fail(self, error: Exception) -> None:
        """Writes `error.json`, by which a sweep does not try the run again."""
        line = " ".join(str(error).split())
        told = {"error": line if isinstance(error, InputError) else f"{type(error).__name__}: {line}"}
        trace = [] if isinstance(error, InputError) else traceback.format_exception(error)
        _write(self._error, told | {"when": datetime.now(UTC).isoformat(timespec="seconds"), "traceback": trace})

    def forget_error(self) -> None:
        """Removes `error.json`, if it is there."""
        self._error.unlink(missing_ok=True)

    def clear(self) -> None:
        """As `lock.clear` does."""
        clear(self.path)

    @property
    def writer(self) -> dict[str, Any] | None:
        """As `lock.writer` sees it."""
        return writer(self.path)

    @property
    def plan(self) -> dict[str, Any]:
        """What `save_plan` wrote."""
        return self._read(self._plan)

    def save_plan(self, found: Mapping[str, Any]) -> None:
        """Writes `plan.json`: what `inspect` says, what a step needs of memory, and the digest of what is frozen."""
        _write(self._plan, found)

    def append(self, line: Mapping[str, Any]) -> None:
        """One more line of metrics. Where the disk does not take it now, or it is a bucket, `flush` writes it."""
        self._unwritten.append(strict_json.dumps(line) + "\n")
        if not storage.is_remote(self.path):
            with contextlib.suppress(OSError):
                self._append()

    def flush(self) -> None:
        """Writes the lines that are not there yet.

        Raises:
            InputError: the disk does not take them.
        """
        if self._unwritten:
            storage.persistently(self._append, str(self._metrics))

    def rewind(self, step: int) -> tuple[float, float]:
        """Drops the metrics after `step`, which a resumed run is going to write again.

        Returns:
            The seconds that the run had taken by then, and those of them that it had waited for input.
        """
        if not self._metrics.exists():
            return 0.0, 0.0
        kept = [line for line in self.metrics if line["step"] <= step]
        storage.write_whole(self._metrics, "".join(strict_json.dumps(line) + "\n" for line in kept).encode())
        return (kept[-1]["seconds"], kept[-1]["input_seconds"]) if kept else (0.0, 0.0)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The whole lines of `metrics.jsonl`, in order; none if the run has not logged yet."""
        lines = []
        for line in self._metrics.read_text().splitlines() if self._metrics.exists() else ():
            try:
                lines.append(json.loads(line))
            except ValueError:  # the line that a killed process was writing
                break
        return lines

    @property
    def evaluations(self) -> epath.Path:
        """The folder of what was found of checkpoints; made if it is not there."""
        folder = self.path / "evaluations"
        folder.mkdir(exist_ok=True)
        return folder

    def save_evaluation(self, name: str, found: Mapping[str, Any]) -> None:
        """Writes `evaluations/NAME.json`."""
        _write(self.evaluations / f"{name}.json", found)

    def _append(self) -> None:
        text = "".join(self._unwritten)
        if storage.is_remote(self.path):  # which can only replace
            before = self._metrics.read_text() if self._metrics.exists() else ""
            self._metrics.write_text(before + text)
        else:
            with open(self._metrics, "ab") as file:  # noqa: PTH123
                end = file.tell()
                try:
                    file.write(text.encode())
                    file.flush()
                except OSError:
                    os.truncate(self._metrics, end)  # a part of a line, on a disk that is full
                    raise
        self._unwritten = []

    def _read(self, path: epath.Path) -> dict[str, Any]:
        try:
            return json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: damaged ({error}); move the folder away") from error


def _write(path: epath.Path, content: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    try:
        storage.write_whole(path, (strict_json.dumps(content, indent=1) + "\n").encode())
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: epath.Path, error: OSError) -> InputError:
    return InputError(f"{path}: cannot be written ({storage.reason(error)}): mend the disk, or give another --workdir")


def _differences(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> list[str]:
    old, new = (flatten_dict(tree, keep_empty_nodes=True, sep=".") for tree in (theirs, mine))
    free = tuple(f"config.{section}." for section in INDIFFERENT)
    keys = [key for key in old | new if old.get(key) != new.get(key) and not key.startswith(free)]
    return [f"{key}: {old.get(key)!r} there, {new.get(key)!r} now" for key in keys]


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _git_commit() -> str | None:
    """The commit of the code that runs, with `-dirty` where it was changed; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() or None
