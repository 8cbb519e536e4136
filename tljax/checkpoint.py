"""Checkpoints on disk; the only module that imports Orbax."""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import serialization
from orbax.checkpoint import v1 as ocp

from tljax.errors import InputError
from tljax.metrics import Judgement
from tljax.step import State

logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax narrates every file that it writes


class Checkpoints:
    """A run's checkpoints: the latest and the best by a validation metric are kept.

    Saving is asynchronous and atomic: a step's folder appears whole, or not at all.
    """

    def __init__(self, folder: Path, judged: Judgement, writer: bool = False):
        """Opens `folder`; `judged` says which is best. A `writer` also removes what a killed run left half written."""
        self._judged, self._writer = judged, writer
        if writer:
            # Not left to Orbax, which does it in a thread that a process ending early tears down with a traceback.
            for stale in folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(stale)
        policies = ocp.training.preservation_policies
        keep = policies.AnyPreservationPolicy(
            [
                policies.LatestN(1),
                policies.BestN(get_metric_fn=judged.quality, n=1, keep_checkpoints_without_metrics=False),
            ]
        )
        self._orbax = ocp.training.Checkpointer(
            folder,
            preservation_policy=keep,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: Any) -> None:
        self._orbax.close()

    @property
    def steps(self) -> list[int]:
        if not self._writer:
            self._orbax.reload()
        return [checkpoint.step for checkpoint in self._orbax.checkpoints]

    def save(self, state: State, validation: Mapping[str, Any] | None = None) -> None:
        """Starts saving `state` under its step; `validation` decides which is best."""
        step = int(state.step)
        if step in self.steps:
            return
        # Copied, not viewed: on a CPU the step that follows may write into donated buffers that are still being read.
        tree = jax.tree.map(lambda leaf: np.array(leaf), serialization.to_state_dict(state))
        self._orbax.save_async(step, tree, metrics=dict(validation) if validation else None)

    def resolve(self, which: str) -> int:
        """The step meant by `latest`, `best` or a number.

        Raises:
            InputError: there is no such checkpoint; those that there are are named.
        """
        steps = self.steps
        if not steps:
            raise InputError(f"{self._orbax.directory}: no checkpoint yet; train first")
        if which == "latest":
            return steps[-1]
        if which == "best":
            scored = [found for found in self._orbax.checkpoints if found.metrics]
            if not scored:
                raise InputError(
                    "no checkpoint has a validation metric: set config.task.validation, or use --step=latest"
                )
            return max(scored, key=lambda found: self._judged.quality(found.metrics)).step
        if which.isdigit() and int(which) in steps:
            return int(which)
        raise InputError(f"no checkpoint {which!r}; there are: latest, best, {', '.join(map(str, steps))}")

    def identity(self, step: int) -> str:
        """A hash of the names and sizes of a step's files."""
        folder = Path(self._orbax.directory) / str(step)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        facts = [(str(path.relative_to(folder)), path.stat().st_size) for path in files]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def restore(self, step: int, abstract: State) -> State:
        """The State saved at `step`, laid out as `abstract` (shapes, dtypes and shardings) says.

        Raises:
            InputError: the checkpoint is damaged or was made for another model.
        """
        tree = serialization.to_state_dict(abstract)
        where = f"{self._orbax.directory}/{step}"
        _check_fit(_shapes(_read(lambda: self._orbax.metadata(step).metadata, where)), _shapes(tree), where)
        return serialization.from_state_dict(abstract, _read(lambda: self._orbax.load(step, tree), where))


def save_tree(folder: Path, tree: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Writes a nested dict of arrays, and `facts` about it as JSON, into a new folder."""
    with _frugal():
        ocp.save(folder / "arrays", tree)
    (folder / "tljax.json").write_text(json.dumps(facts, indent=1))


def _frugal() -> ocp.Context:
    """Saves without a copy of the arrays, which nobody changes, and without compression, which is another."""
    context = ocp.Context()
    context.memory.deepcopy_host_arrays = False
    context.array.saving.use_compression = False
    return context


def load_facts(folder: Path) -> dict[str, Any]:
    """The facts that `save_tree` wrote.

    Raises:
        InputError: `folder` is not one that it made.
    """
    try:
        return json.loads((folder / "tljax.json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: not a folder made by `tljax convert` ({error})") from error


def load_tree(folder: Path) -> dict[str, Any]:
    """The arrays that `save_tree` wrote, on the host."""
    where = str(folder / "arrays")
    found = _read(lambda: ocp.metadata(folder / "arrays").metadata, where)
    abstract = jax.tree.map(lambda leaf: np.empty((0,), leaf.dtype), found)
    return _read(lambda: ocp.load(folder / "arrays", abstract), where)


def _read(read: Callable[[], Any], where: str) -> Any:
    try:
        return read()
    except Exception as error:  # whatever Orbax or TensorStore met in the files
        root = error
        while root.__cause__ or root.__context__:
            root = root.__cause__ or root.__context__
        reason = " ".join(f"{type(root).__name__}: {root}".split())[:300]
        raise InputError(f"{where}: cannot be restored ({reason})") from error


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: hasattr(node, "shape"))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}


def _check_fit(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Asked before the load, which would leave what is missing abstract, and other shapes padded, without a word."""
    if not found:  # what Orbax says of files that it cannot read
        raise InputError(f"{where}: cannot be restored (its files are damaged)")
    wrong = [path for path in wanted | found if found.get(path) != wanted.get(path)]
    if wrong:
        some = "; ".join(f"{path} is {found.get(path)} there, {wanted.get(path)} here" for path in wrong[:3])
        raise InputError(f"{where}: saved from another model ({some})")
