"""A run's checkpoints: what moves at each step, and once what does not."""

import contextlib
import hashlib
import math
import os
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import serialization

from tljax import console
from tljax.config.schema import CheckpointConfig
from tljax.core.state import TrainState
from tljax.distributed import mesh
from tljax.errors import InputError
from tljax.io import arrays, storage
from tljax.io.arrays import MANIFEST, Damaged
from tljax.io.lock import Lost
from tljax.problems.metric import Metric
from tljax.tuning import multipliers

_BASE = "base-"


class Checkpoints:
    """The checkpoints of a run: in `STEP/` the leaves that have changed since the start, in `base-DIGEST/` all others.

    Saving is asynchronous; of a train state as it is at the call, of a base as it has to stay until it is waited for.
    """

    def __init__(
        self,
        folder: epath.Path,
        best: Metric,
        config: CheckpointConfig,
        writer: bool = False,
        check: Callable[[], None] = lambda: None,
    ):
        """Opens `folder`; `best` chooses the best step. A `writer` also removes what a killed run left half done.

        `check` raises where this process may write there no more; it is asked before anything is written or removed.
        """
        self._folder, self._best, self._config, self._writer = folder, best, config, writer
        self._check, self._verified = check, set[bool]()
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._saving: Future | None = None
        self._base = ""
        self._base_leaves: dict[str, np.ndarray] = {}
        if writer:
            check()
            folder.mkdir(parents=True, exist_ok=True)
            self._clean()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: Any, *error: Any) -> None:
        # What ended the block is the thing to say, not what a disk did to the last save besides.
        with contextlib.suppress(InputError) if kind else contextlib.nullcontext():
            self.wait()
        self._thread.shutdown()

    @property
    def steps(self) -> list[int]:
        """Returns the steps of the checkpoints that are there now, from the first to the latest."""
        numbered = [path for path in storage.children(self._folder) if _is_step(path.name)]
        return sorted(int(path.name) for path in numbered if (path / MANIFEST).exists())

    def keep_base(self, leaves: Mapping[str, Any]) -> None:
        """Starts storing leaves that do not move, unless they are there; all steps saved from now on refer to them.

        Args:
            leaves: of a train state, as `flatten_state` names them.

        Raises:
            InputError: the steps that there are have another base. `wait` says whether the disk takes this one.
        """
        self.wait()
        base = {name: np.asarray(leaf) for name, leaf in leaves.items()}
        self._base, steps = multipliers.digest(base) if base else "", self.steps
        if steps and self._base_of(steps[-1]) != self._base:
            raise InputError(f"{self._folder}: what does not train is not what it was: are these the same weights?")
        if self._base:
            self._saving = self._thread.submit(self._save_base, self._base_folder(self._base), base)

    def base_is_whole(self) -> bool:
        """Returns whether the base is undamaged to which the step of `newest`, and all that are saved now, refer."""
        self.wait()
        return not self._base or not arrays.wrong(self._base_folder(self._base))

    def save(
        self, state: TrainState, frozen: Collection[str] = (), validation: Mapping[str, Any] | None = None
    ) -> None:
        """Starts saving `state` under its step, when the save before it is done.

        With several processes, all have to call it, as each may have a part of an array; one writes.

        Args:
            frozen: names of leaves that still are as in the base.
            validation: metrics, which decide which step is best.

        Raises:
            InputError: the save before this one failed for good.
        """
        self.wait()
        step = int(state.step)
        leaves = mesh.gathered({name: leaf for name, leaf in flatten_state(state).items() if name not in frozen})
        if not self._writer or step in self.steps:
            return
        for leaf in leaves.values():
            if isinstance(leaf, jax.Array):
                leaf.copy_to_host_async()
        # Copied, not viewed: on a CPU the step that follows may write into donated buffers that are still being read.
        copied = {name: np.array(leaf) for name, leaf in leaves.items()}
        metadata = {"step": step, "base": self._base, "metrics": dict(validation or {})}
        self._saving = self._thread.submit(self._save, step, copied, metadata)

    def wait(self) -> None:
        """Waits until the last save is whole.

        Raises:
            InputError: it failed for good.
        """
        saving, self._saving = self._saving, None
        if saving:
            saving.result()

    def find_step(self, which: str) -> int:
        """Returns the step meant by `latest` (the last that is undamaged), `best` or a number.

        Raises:
            InputError: there is no such checkpoint; those that there are are named.
        """
        steps = self.steps
        if not steps:
            raise InputError(f"{self._folder}: no checkpoint yet; train first")
        if which == "latest":
            return self.newest()
        if which == "best":
            qualities = self._qualities(steps)
            if not qualities:
                raise InputError(
                    "no checkpoint has a validation metric: set config.task.validation, or use --step=latest"
                )
            if wrong := [str(step) for step, quality in qualities.items() if math.isnan(quality)]:
                raise InputError(
                    f"{self._folder}: validation's {self._best.name} is not a number at step {', '.join(wrong)}, so"
                    " that no step is best by it: use --step=latest or a number"
                )
            return max(qualities, key=qualities.get)
        if which in map(str, steps):
            return int(which)
        raise InputError(f"no checkpoint {which!r}; there are: latest, best, {', '.join(map(str, steps))}")

    def identity(self, step: int) -> str:
        """Returns a hash of all that the checkpoint holds."""
        return hashlib.sha256(storage.read(self._folder / str(step) / MANIFEST)).hexdigest()

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """Returns the train state saved at `step`, laid out as `abstract` (shapes, dtypes and shardings) says.

        Raises:
            Damaged: its files are not the ones that were written.
            InputError: it was made for another model.
        """
        self.wait()
        folder, base = self._folder / str(step), self._base_of(step)
        leaves = arrays.read(folder)
        if base:
            stored = self._base_leaves or arrays.read(self._base_folder(base))
            leaves = stored | leaves
            if not self._writer:  # who evaluates restores one step after another
                self._base_leaves = stored
        expected = flatten_state(abstract)
        _check_fit(_shapes(leaves), _shapes(expected), str(folder))
        placed = {name: mesh.place(leaves[name], leaf.sharding) for name, leaf in expected.items()}
        tree = serialization.to_state_dict(abstract)
        filled = jax.tree_util.tree_map_with_path(lambda path, _: placed[_name(path)], tree, is_leaf=_is_leaf)
        return serialization.from_state_dict(abstract, filled)

    def newest(self) -> int:
        """Returns the latest step that is undamaged; 0 if there is none at all.

        A writer sets aside those that are damaged, and removes what a killed one had no time to.

        Raises:
            InputError: all are damaged.
        """
        steps = self.steps
        for step in reversed(steps):
            folder = self._folder / str(step)
            wrong = arrays.wrong(folder)
            if not wrong:
                self._base = self._base_of(step)
                if self._writer:
                    self._prune()
                return step
            if step not in self.steps:  # its run has just removed it
                return self.newest()
            aside = f", and lies in {self._set_aside(step)} now" if self._writer else ""
            console.console.print(f"{folder} is damaged ({wrong}){aside}: the step before it is used")
        if steps:
            raise InputError(f"{self._folder}: no step is undamaged; begin anew with another --workdir")
        return 0

    def _save(self, step: int, leaves: dict[str, np.ndarray], metadata: dict[str, Any]) -> None:
        self._write(self._folder / str(step), leaves, metadata)
        if step not in self.steps:
            raise InputError(f"{self._folder / str(step)}: just saved, and not there; is the disk whole?")
        storage.persistently(self._prune, str(self._folder))

    def _save_base(self, folder: epath.Path, leaves: dict[str, np.ndarray]) -> None:
        if arrays.wrong(folder) and not self._link(folder):
            self._write(folder, leaves, {})

    def _write(self, folder: epath.Path, leaves: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> None:
        """Writes a step, or a base, whole; the first of each in a run is looked at again as a reader would."""
        is_base = not metadata
        verify = is_base not in self._verified
        try:
            storage.persistently(lambda: arrays.write(folder, leaves, metadata, self._check, verify), str(folder))
            if verify:
                arrays.manifest(folder)
                self._verified.add(is_base)
        except Lost:
            raise
        except InputError as error:
            good = f"step {self.steps[-1]}" if self.steps else "none"
            raise InputError(
                f"{error}; last step saved: {good}. Mend the disk, then the same command goes on"
            ) from error

    def _prune(self) -> None:
        """Removes the steps that the config does not keep."""
        self._check()
        steps, config = self.steps, self._config
        qualities = {step: quality for step, quality in self._qualities(steps).items() if not math.isnan(quality)}
        steps_kept = {*steps[-config.keep :], max(qualities, key=qualities.get, default=0)}
        for step in steps:
            if step not in steps_kept and not (config.keep_every and step % config.keep_every == 0):
                arrays.remove(self._folder / str(step))

    def _clean(self) -> None:
        """Removes what was being written or removed when a process died, and a base that no step refers to."""
        begun = storage.children(self._folder)
        begun = [path for path in begun if _is_step(path.name) or path.name.startswith(_BASE)]
        steps = self.steps
        for path in begun:
            if not (path / MANIFEST).exists() or (not steps and path.name.startswith(_BASE)):
                arrays.remove(path)

    def _set_aside(self, step: int) -> epath.Path:
        aside = self._folder / f"{step}.damaged"
        arrays.remove(aside)
        return (self._folder / str(step)).rename(aside)

    def _link(self, folder: epath.Path) -> bool:
        """Takes a base from a run beside this one that has the same: one set of files for a whole sweep.

        Each workdir has it whole, as links: copied elsewhere it is complete, and removing one harms no other.
        """
        if storage.is_remote(folder):
            return False
        for beside in self._folder.parent.parent.iterdir():
            twin = beside / self._folder.name / folder.name
            if twin == folder or arrays.wrong(twin):
                continue
            try:
                for name in arrays.manifest(twin)["files"]:
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    os.link(twin / name, folder / name)
                storage.write_whole(folder / MANIFEST, storage.read(twin / MANIFEST))
                return True
            except OSError:  # another disk, or one that knows no links
                arrays.remove(folder)
        return False

    def _base_of(self, step: int) -> str:
        return arrays.manifest(self._folder / str(step)).get("base", "")

    def _base_folder(self, digest: str) -> epath.Path:
        return self._folder / f"{_BASE}{digest[:16]}"

    def _qualities(self, steps: list[int]) -> dict[int, float]:
        """Returns how good each step that was validated is; NaN where the metric is not a number."""
        qualities = {}
        for step in steps:
            with contextlib.suppress(Damaged):
                metrics = arrays.manifest(self._folder / str(step)).get("metrics")
                if metrics:
                    qualities[step] = math.nan
                    with contextlib.suppress(InputError):
                        qualities[step] = self._best.quality(metrics)
        return qualities


def flatten_state(state: TrainState) -> dict[str, Any]:
    """Returns the leaves of a train state by name, as `params/backbone/…` and `opt_state/…`."""
    leaves = jax.tree_util.tree_leaves_with_path(serialization.to_state_dict(state), is_leaf=_is_leaf)
    return {_name(path): leaf for path, leaf in leaves}


def _is_step(name: str) -> bool:
    return name.isdecimal() and str(int(name)) == name


def _is_leaf(node: Any) -> bool:
    return hasattr(node, "shape")


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _shapes(leaves: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(leaf.shape) for name, leaf in leaves.items()}


def _check_fit(stored: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], where: str) -> None:
    wrong = [path for path in expected | stored if stored.get(path) != expected.get(path)]
    if wrong:
        first = "; ".join(f"{path} is {stored.get(path)} there, {expected.get(path)} here" for path in wrong[:3])
        raise InputError(f"{where}: saved from another model ({first})")
