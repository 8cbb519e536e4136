"""The files of a run's folder: config.json, plan.json, metrics.jsonl, result.json, checkpoints/, tokenizer/, …"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import shlex
import sys
import traceback
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict

from tljax import console
from tljax.checkpoints import code
from tljax.checkpoints.checkpointer import Checkpoints
from tljax.config.references import folders_of, look_where_a_run_did
from tljax.config.schema import RESULT_NEUTRAL_SECTIONS, Experiment, MeshConfig
from tljax.config.serialization import build, to_dict, with_present_names
from tljax.core.resolve import Resolved
from tljax.data.transforms.tokenize import Tokenizer
from tljax.errors import InputError
from tljax.io import storage, strict_json
from tljax.io.lock import Lock, check, clear, writer
from tljax.problems.registry import problem_for

_MOVE = "move the folder away, or give another --workdir"
_FINISH = "remove it, and the same command writes it again"


class Workdir:
    """A run's folder. `config.json` is written first and never changes; `result.json` last, when all is done.

    Args:
        path: of a disk, or `gs://…`, `s3://…`, `az://…`.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = storage.locate(path)
        self._config = self.path / "config.json"
        self._plan = self.path / "plan.json"
        self._contents = self.path / "training_contents.npy"
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
            Lost: within, from what writes there, when this process is the writer no more.
        """
        lock = Lock(self.path)
        if self.path.is_file():
            raise InputError(f"{self.path} is a file: give a folder for the run, which is made, as --workdir")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except OSError as error:
            raise _unwritable(self.path, error) from error
        try:
            for folder in (self.path, self.path / "tokenizer"):
                storage.sweep(folder)
            yield
        finally:
            lock.release()

    def start(self, experiment: Experiment, resolved: Resolved, tokenizer: Tokenizer | None = None) -> None:
        """Claims the folder for an experiment, or finds that it is this experiment's already.

        A folder in which no step was logged, as a failed start leaves it, is claimed anew.

        Args:
            experiment, resolved: the run's.
            tokenizer: of a text's network; it is copied there.

        Raises:
            InputError: it holds a run of another config or of other data; the differences are shown.
        """
        settings = {"config": to_dict(experiment), "resolved": to_dict(resolved)}
        references = experiment.references
        if self._config.exists() and self._metrics.exists():
            stored_settings = self._settings
            differences = _differences(
                {key: stored_settings[key] for key in settings}, json.loads(strict_json.dumps(settings))
            )
            sources = references | stored_settings.get("references", {})
            differences += [f"the source of {name}" for name in references if sources[name] != references[name]]
            if differences:
                shown = "; ".join(differences)
                raise InputError(f"{self.path} holds another run ({shown}): give another --workdir")
            return
        metadata = {"versions": code.versions(), "git_commit": code.git_commit(), "command": shlex.join(sys.orig_argv)}
        metadata |= {"references": references, "reference_folders": folders_of(references)} if references else {}
        self.check()
        try:
            for name, file in tokenizer.files.items() if tokenizer else ():
                (self.path / "tokenizer").mkdir(exist_ok=True)
                storage.write_whole(self.path / "tokenizer" / name, file.read_bytes())
        except OSError as error:
            raise _unwritable(self.path / "tokenizer", error) from error
        self._write(self._config, settings | {"sha256": _digest(settings)} | metadata)

    def with_own_splits(self, experiment: Experiment) -> Experiment:
        """Returns an experiment with the splits of the run that has begun here, where it leaves them to the data."""
        is_open = None in (experiment.task.validation, experiment.task.test)
        is_begun = is_open and self._config.exists() and self._metrics.exists()
        return experiment.with_splits(self.load()[0].task) if is_begun else experiment

    @property
    def tokenizer(self) -> Path | None:
        """Returns the folder of the tokenizer of a run on texts that has begun, on this machine; else None."""
        folder = self.path / "tokenizer"
        return storage.local(folder) if folder.is_dir() and self._metrics.exists() else None

    def load(self) -> tuple[Experiment, Resolved]:
        """Returns what `start` wrote, but for the mesh, which was that of the devices then.

        Raises:
            InputError: there is no run here, or its config cannot be read.
        """
        if not self._config.exists():
            reason = "is a file, and a run is a folder" if self.path.is_file() else "no run here (no config.json)"
            raise InputError(f"{self.path}: {reason}")
        settings = self._settings
        try:
            resolved = build(Resolved, settings["resolved"], "resolved")
            look_where_a_run_did(settings.get("reference_folders", {}), settings.get("references", {}))
            experiment = Experiment.from_config(with_present_names(settings["config"]))
            experiment = dataclasses.replace(experiment, mesh=MeshConfig())
        except InputError as error:
            raise InputError(f"{self._config}: {error}; {_MOVE}") from error
        except (TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:  # of other types within
            raise InputError(f"{self._config}: damaged ({storage.reason(error)}); {_MOVE}") from error
        if settings.get("sha256", _digest(settings)) != _digest(settings):  # earlier versions wrote none
            raise InputError(f"{self._config}: config or resolved is not what the run wrote; bring that back")
        return experiment, resolved

    @property
    def origin(self) -> dict[str, Any]:
        """Returns how the run that `load` gives was made: `versions`, `git_commit` and `command`.

        `references` has the SHA-256 of the source of each object that its config names as `module:name`.
        """
        settings = self._settings
        origin = {key: settings.get(key) for key in ("versions", "git_commit", "command")}
        return origin | {"references": settings.get("references", {})}

    def checkpoints(self, experiment: Experiment, writer: bool = False) -> Checkpoints:
        """Returns the run's checkpoints, of which its config says which are kept and which is best."""
        config, problem = experiment.checkpoint, problem_for(experiment)
        best = problem.metric(config.best) if config.best else problem.headline
        return Checkpoints(self.path / "checkpoints", best, config, writer, self.check)

    @property
    def result(self) -> dict[str, Any] | None:
        """Returns the finished run's result, or None."""
        if not self._result.exists():
            return None
        kinds = {"splits": dict, "steps": int, "wall_seconds": int | float, "input_seconds": int | float}
        result = storage.read_json(self._result, _FINISH, **kinds)
        storage.checked(result, str(self._result), _FINISH, {"held": list} if "held" in result else {})
        for split, metrics in result["splits"].items():
            storage.checked(metrics, f"{self._result}: splits.{split}", _FINISH, {})
        return result

    def finish(self, result: Mapping[str, Any]) -> None:
        """Writes `result.json`.

        Raises:
            InputError: the disk does not take it.
        """
        self.forget_error()  # first: killed in between, a run is not finished and failed at once
        storage.persistently(lambda: self._put(self._result, result), str(self._result))

    @property
    def error(self) -> dict[str, Any] | None:
        """Returns why the run has failed: `error`, in a line, and `when`; None if it has not, or ended well since."""
        mend = "remove it, and the run is tried again"
        return storage.read_json(self._error, mend, error=str) if self._error.exists() else None

    def fail(self, error: Exception) -> None:
        """Writes `error.json`, by which a sweep does not try the run again."""
        line = " ".join(str(error).split())
        message = {"error": line if isinstance(error, InputError) else f"{type(error).__name__}: {line}"}
        trace = [] if isinstance(error, InputError) else traceback.format_exception(error)
        self._write(
            self._error, message | {"when": datetime.now(UTC).isoformat(timespec="seconds"), "traceback": trace}
        )

    def forget_error(self) -> None:
        """Removes `error.json`, if it is there."""
        self.check()
        self._error.unlink(missing_ok=True)

    def clear(self) -> None:
        """Removes the lock of a writer that has died, as `lock.clear` does."""
        clear(self.path)

    @property
    def writer(self) -> dict[str, Any] | None:
        """Returns who writes here, as `lock.writer` sees it."""
        return writer(self.path)

    @property
    def plan(self) -> dict[str, Any]:
        """Returns what `save_plan` wrote."""
        return storage.read_json(self._plan, _MOVE, steps=int, cost=dict, frozen_digest=str, cached=bool)

    def save_plan(self, plan: Mapping[str, Any]) -> None:
        """Writes `plan.json`: what `inspect` says, what a step needs of memory, and the digest of what is frozen."""
        self._write(self._plan, plan)

    @property
    def training_contents(self) -> np.ndarray | None:
        """Returns what `save_training_contents` wrote; None of a run of a version that kept none."""
        if not self._contents.exists():
            return None
        try:
            return np.load(io.BytesIO(storage.read(self._contents)))
        except (ValueError, EOFError) as error:
            raise InputError(f"{self._contents}: damaged ({storage.reason(error)}); {_MOVE}") from error

    def save_training_contents(self, contents: np.ndarray) -> None:
        """Writes the training split's `Split.contents`, by which an evaluation knows an example that was trained on."""
        file = io.BytesIO()
        np.save(file, np.unique(contents))
        self.check()
        storage.persistently(lambda: storage.write_whole(self._contents, file.getvalue()), str(self._contents))

    def append(self, line: Mapping[str, Any]) -> None:
        """Adds a line of metrics. Where the disk does not take it now, or it is a bucket, `flush` writes it.

        Raises:
            Lost: this process is the writer no more.
        """
        self._unwritten.append(strict_json.dumps(line) + "\n")
        if not storage.is_remote(self.path):
            with contextlib.suppress(OSError):
                self._append()

    def flush(self) -> None:
        """Writes the lines that are not there yet.

        Raises:
            InputError: the disk does not take them.
            Lost: this process is the writer no more.
        """
        if self._unwritten:
            storage.persistently(self._append, str(self._metrics))

    def rewind(self, step: int) -> tuple[float, float]:
        """Drops the metrics after `step`, which a resumed run is going to write again; those before stay as they are.

        Returns:
            The seconds that the run had taken by then, and those of them that it had waited for input.

        Raises:
            InputError: the disk does not take what is left.
        """
        self.check()
        try:
            content = _content(self._metrics)
            lines = [(line, _row(line)) for line in content.splitlines()]
            earlier = [(line, row) for line, row in lines if row is not None and row["step"] <= step]
            whole, torn = b"".join(line + b"\n" for line, _ in earlier), [line for line, row in lines if row is None]
            if torn:
                self._set_aside(b"\n".join(torn))
            if whole != content:
                storage.write_whole(self._metrics, whole)
        except OSError as error:
            raise _unwritable(self._metrics, error) from error
        return (earlier[-1][1]["seconds"], earlier[-1][1]["input_seconds"]) if earlier else (0.0, 0.0)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Returns the whole lines of `metrics.jsonl`, in order; none if the run has not logged yet."""
        rows = map(_row, _content(self._metrics).splitlines())
        return [row for row in rows if row is not None]  # but for what a process that was killed had begun to write

    @property
    def evaluations(self) -> epath.Path:
        """Returns the folder of evaluations of checkpoints; made if it is not there.

        Raises:
            Lost: this process is the run's writer no more.
        """
        self.check()
        folder = self.path / "evaluations"
        folder.mkdir(exist_ok=True)
        return folder

    def save_evaluation(self, name: str, metrics: Mapping[str, Any]) -> None:
        """Writes `evaluations/NAME.json`."""
        self._write(self.evaluations / f"{name}.json", metrics)

    def check(self) -> None:
        """Raises `Lost` if this process, which was the folder's writer, is so no more. Who writes asks before."""
        check(self.path)

    def _append(self) -> None:
        self.check()
        content = "".join(self._unwritten).encode()
        if storage.is_remote(self.path):  # which can only replace
            self._metrics.write_bytes(_content(self._metrics) + content)
        elif (line := storage.last_line(self._metrics)) and _row(line) is None:
            self._set_aside(line)
            storage.append(self._metrics, content, torn=line)
        else:
            storage.append(self._metrics, b"\n" * bool(line) + content)
        self._unwritten = []

    def _set_aside(self, torn: bytes) -> None:
        """Keeps lines of metrics that were not written to their end, and says so."""
        aside = self.path / f"{self._metrics.name}.torn"
        storage.write_whole(aside, _content(aside) + torn + b"\n")
        message = f"{self._metrics}: what was not written to the end of its line is in {aside.name} now"
        console.console.print(f"{message}; the other lines stay")

    @property
    def _settings(self) -> dict[str, Any]:
        """Returns what `start` wrote."""
        return storage.read_json(self._config, _MOVE, config=dict, resolved=dict)

    def _write(self, path: epath.Path, content: Mapping[str, Any]) -> None:
        """Writes JSON whole or not at all."""
        try:
            self._put(path, content)
        except OSError as error:
            raise _unwritable(path, error) from error

    def _put(self, path: epath.Path, content: Mapping[str, Any]) -> None:
        self.check()
        storage.write_whole(path, (strict_json.dumps(content, indent=1) + "\n").encode())


def _content(path: epath.Path) -> bytes:
    """Returns a file's bytes; none if it is not there, and never because a bucket does not answer."""
    try:
        return storage.read(path)
    except FileNotFoundError:
        return b""


def _row(line: bytes) -> dict[str, Any] | None:
    """Returns what a line of `metrics.jsonl` says; None of one that is not whole."""
    try:
        row = json.loads(line)
        numbers = all(isinstance(row[key], int | float) for key in ("step", "seconds", "input_seconds"))
        is_complete = numbers and isinstance(row["split"], str)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return row if is_complete else None


def _unwritable(path: epath.Path, error: OSError) -> InputError:
    return InputError(f"{path}: cannot be written ({storage.reason(error)}): mend the disk, or give another --workdir")


def _digest(settings: Mapping[str, Any]) -> str:
    """Returns a SHA-256 of all that a run's config and what was resolved for it say."""
    content = {key: settings[key] for key in ("config", "resolved")}
    return hashlib.sha256(strict_json.dumps(content).encode()).hexdigest()


def _differences(stored: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    old, new = (flatten_dict(tree, keep_empty_nodes=True, sep=".") for tree in (stored, settings))
    free = (*(f"config.{section}." for section in RESULT_NEUTRAL_SECTIONS), "config.task.pack", "config.filled_from")
    keys = [key for key in old | new if old.get(key) != new.get(key) and not key.startswith(free)]
    # What follows from a key of the same name is not said twice.
    keys = [key for key in keys if f"config.{key.removeprefix('resolved.')}" not in keys]
    return [f"{key}: {old.get(key)!r} there, {new.get(key)!r} now" for key in keys]
