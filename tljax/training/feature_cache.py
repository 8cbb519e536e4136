"""The frozen prefix, computed once: what the first groups of a backbone give of each example, kept on disk.

A run whose first groups are frozen computes the same activations at their end in every epoch. Here they are computed
once, part by part, each written whole and then renamed: a build that is killed goes on at the part it was at,
processes that want the same share the parts out among them, and nothing half written is ever read. Each part has
checksums, which are compared as it is opened: a damaged one is made again. A folder is named
by all that its content depends on: the parameters of the prefix, the examples, how they are cut and augmented, the
types of the numbers. What it holds is the network's own output to rounding, as the compiler may order sums otherwise in
a prefix than in a whole step.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from tljax import console
from tljax.core.model import Variables
from tljax.core.run import Run
from tljax.core.state import TrainState
from tljax.data import array_cache
from tljax.data.dataset import Split
from tljax.data.loader import ahead, length_of, padded
from tljax.data.readers import ExampleReader
from tljax.distributed.mesh import gathered, make_mesh, placed, replicated, split
from tljax.errors import InputError
from tljax.io import checksums, compilation_cache, storage
from tljax.models.registry import user_source
from tljax.profiling.cost import of_prefix
from tljax.tuning import multipliers
from tljax.tuning.phases import Phase

# A CPU's caches hold what so many examples need between two layers; an accelerator wants more at a time.
_BATCH, _BATCH_ON_CPU = 256, 32
_RATE, _RATE_OF_CPU = 2e13, 1e11  # FLOP a second that a network reaches on one accelerator, and on a machine without
_BANDWIDTH = 1e9  # bytes a second, from a disk or its cache to the device
_FORMAT = 2  # to be raised where what is computed, or how it is stored, changes
_BATCHES = 16  # of a part: at most so much is lost when a build is killed


@dataclass(frozen=True, eq=False)
class Features:
    """Reads activations of a split's examples at the end of a frozen prefix; a `Reader`.

    Attributes:
        parts: memory maps [rows, …] in order: the first view of every example, then the second, …
        examples, views: how many.
        read: the reader of the examples themselves, which knows how a batch of their activations is padded.
        used: holds the folder, so that it is not evicted.
    """

    parts: Sequence[np.ndarray]
    examples: int
    views: int
    read: ExampleReader
    used: IO[bytes]

    def __call__(self, places: Sequence[int], epochs: Sequence[int] | None = None, among: Sequence[int] = ()) -> Any:
        views = [epoch % self.views for epoch in epochs] if epochs is not None else [0] * len(places)
        rows = [self._row(place + self.examples * view) for place, view in zip(places, views, strict=True)]
        return self.read.with_features(rows, places, among)

    def _row(self, row: int) -> np.ndarray:
        part, place = divmod(row, len(self.parts[0]))
        return self.parts[part][place]

    def array(self) -> np.ndarray:
        """Returns all of them, [views, examples, …]; of images, or pooled."""
        return np.concatenate(self.parts).reshape(self.views, self.examples, *self.parts[0].shape[1:])


@dataclass(frozen=True, eq=False)
class _Source:
    """What a prefix is computed of: a split's examples in `views`, in rows as `Features` has them."""

    split: Split
    read: ExampleReader
    views: int
    varies: bool
    recipe: tuple

    @property
    def rows(self) -> int:
        return self.views * len(self.split)

    def batch(self, rows: range) -> Any:
        views, places = zip(*(divmod(row, len(self.split)) for row in rows), strict=True)
        return self.read(places, views if self.varies else None)

    def tokens(self, rows: range) -> int:
        """Returns what the longest of some texts is padded to; 0 of images."""
        return self.read.length(range(rows.start, rows.stop))


def computed(
    run: Run,
    state: TrainState,
    split: Split,
    stops: Sequence[int],
    training: bool = False,
    halt: Callable[[], None] = lambda: None,
) -> dict[int, Features]:
    """Computes activations of a split at the ends of prefixes, in one pass over what is not there yet.

    Args:
        run: whose network, data and transforms are taken.
        state: with the prefixes' parameters.
        split: of the run's data.
        stops: the prefixes, each as its number of groups.
        training: whether the examples are cut and augmented for training.
        halt: called between two batches; raises to stop there.

    Raises:
        InputError: the disk, or `input.cache_gb`, does not hold them.
    """
    stops, source = sorted(set(stops)), _source(run, split, training)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    variables = gathered(run.of_groups(variables, max(stops)))
    folders = {stop: _folder(run, variables, source, stop) for stop in stops}
    # Held from here on, so that no other process takes it for unused.
    used = {stop: array_cache.using(folder) for stop, folder in folders.items()}
    for stop, folder in folders.items():
        needed, limit = _disk_bytes(run, source.rows, stop), run.experiment.input.cache_gb * 1e9
        if not array_cache.make_room(folder, needed - array_cache.size(folder), limit):
            raise InputError(
                f"the features of {split.name} take {needed / 1e9:.2f} GB of disk, and there is no room for them:"
                f" raise input.cache_gb, free some disk, name another TLJAX_CACHE, or set cache=off"
            )
    try:
        _complete(run, variables, source, folders, halt)
    except OSError as error:
        where = folders[stops[-1]].parent
        raise InputError(f"{where}: cannot be written ({error.strerror}): free some disk, or set cache=off") from error
    return {stop: _opened(run, source, stop, folders[stop], used[stop]) for stop in stops}


def stops(run: Run, phase: Phase) -> list[int]:
    """Returns the prefixes whose features can be computed as a phase begins: its own, and those of later phases.

    Of these, only those of which nothing trains until then.
    """
    prefixes, longest = set(), run.prefix_length(phase)
    for later in run.phases[run.phases.index(phase) :]:
        longest = min(longest, run.prefix_length(later))
        prefixes |= {longest} if longest == run.prefix_length(later) else set()
    return sorted(prefixes - {0})


def choice(run: Run, runs: int = 1) -> tuple[bool, str]:
    """Returns whether a run computes its frozen prefixes once (`config.cache`), and why, in a line for the log.

    It depends on the config, the data and the kind of device alone, and on the room there is.

    Args:
        runs: how many are going to read the same features.

    Raises:
        InputError: no such `cache`, or it is `on` and nothing stays the same.
    """
    experiment = run.experiment
    prefixes = {phase: run.masks.frozen_prefix(phase) for phase in run.phases if run.masks.frozen_prefix(phase)}
    reason = "" if prefixes else "the strategy trains from the first group on, or moves BatchNorm statistics there"
    if _varies(run) and not experiment.task.views:
        reason = reason or "every epoch crops and augments anew; task.views=V keeps to V views of each image"
    if experiment.regularize.mixup or experiment.regularize.cutmix:
        reason = reason or "mixup and cutmix make new images at each step"
    if reason and experiment.cache == "on":
        raise InputError(f"cache=on, but nothing frozen stays the same: {reason}")
    if reason or experiment.cache == "off":
        return False, f"what is frozen is computed at each step: {reason}" if prefixes and reason else ""
    pays, estimate = _worth(run, prefixes, runs)
    return pays or experiment.cache == "on", estimate


def _varies(run: Run) -> bool:
    """Returns whether chance cuts or augments the training examples."""
    return run.network.input_spec.varies(run.experiment.task)


def _worth(run: Run, prefixes: dict[Phase, int], runs: int) -> tuple[bool, str]:
    """Returns whether features take less time than the prefixes in every step, written and read, and the sums."""
    task, splits = run.experiment.task, run.inputs.splits
    views = task.views if _varies(run) else 1
    costs = {stop: of_prefix(run, stop) for stop in set(prefixes.values())}
    steps = {phase: runs * run.batch_size * (phase.stop - phase.start) for phase in prefixes}
    again = sum(costs[stop] * steps[phase] for phase, stop in prefixes.items())
    flops_once = sum(costs.values()) * views * len(splits["train"])
    rows = sum(views * len(split) if name == "train" else len(split) for name, split in splits.items())
    size = sum(_disk_bytes(run, rows, stop) for stop in costs)
    read = sum(_disk_bytes(run, steps[phase], stop) for phase, stop in prefixes.items())
    rate = _RATE_OF_CPU if jax.default_backend() == "cpu" else _RATE * run.mesh.size
    room = size < run.experiment.input.cache_gb * 1e9
    groups = " and ".join(str(stop) for stop in sorted(costs))
    estimate = (
        f"the first {groups} of {len(run.layout.groups) - 1} groups are frozen and can be computed once:"
        f" {flops_once / 1e12:.3g} instead of {again / 1e12:.3g} TFLOP, {size / 1e9:.2g} GB of disk"
    )
    pays = room and (again - flops_once) / rate > (read + 2 * size) / _BANDWIDTH
    return pays, estimate + ("" if pays else ", which does not pay" if room else ", more than input.cache_gb")


def _disk_bytes(run: Run, rows: int, stop: int) -> int:
    """Returns the bytes of so many rows on disk; of texts at most, as if all were as long as the longest."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(_row(run, stop))) * rows


def _row(run: Run, stop: int) -> Any:
    """Returns the shape and dtype of what is kept of an example."""
    return _kept(run.programs.abstract_batch(1, start=stop)["input"])


def _kept(output: Any) -> Any:
    """Returns what is stored of a prefix's output: a text's mask follows from its tokens."""
    return output["hidden"] if isinstance(output, dict) else output


def _source(run: Run, split: Split, training: bool) -> _Source:
    config, inputs = run.experiment.task, run.inputs
    varies = training and _varies(run)
    views = config.views if varies else 1
    read = inputs.reader(split, views, training)
    return _Source(split, read, views, varies, read.recipe)


def _folder(run: Run, variables: Variables, source: _Source, stop: int) -> Path:
    versions = _FORMAT, jax.__version__
    network = run.network.backbone, run.network.adapters, run.experiment.compute_dtype, jax.default_backend()
    network += user_source(run.network.backbone)
    prefix = multipliers.digest(flatten_dict(run.of_groups(variables, stop), sep="/"))
    return array_cache.folder_of("features", *versions, *network, prefix, stop, source.split.key, *source.recipe)


def _complete(
    run: Run, variables: Variables, source: _Source, folders: dict[int, Path], halt: Callable[[], None]
) -> None:
    """Makes the parts that are missing; those that another process is at are left to it, and waited for at the end."""
    parts = _parts(source)
    if not any(_missing(folders, number) for number in range(len(parts))):
        return
    compute = _program(run, variables, max(folders), parts[0].step)
    how = "once, with products by oneDNN" if _options() else "once"
    with console.progress(f"features of {source.split.name}, {how}", 0, source.rows, "examples") as report:
        for patient in (False, True):
            for number, rows in enumerate(parts):
                with contextlib.ExitStack() as stack:
                    missing = _missing(folders, number)
                    claims = [array_cache.claimed(_part(folder, number), patient) for folder in missing.values()]
                    if all(stack.enter_context(claim) for claim in claims):
                        missing = _missing(missing, number)  # another process may just have made them
                        for folder in missing.values():
                            if (part := _part(folder, number)).exists():
                                wrong = checksums.wrong(array_cache.seal_of(part))
                                console.console.print(f"{part} was damaged ({wrong}): made again")
                        if missing:
                            _make_part(run, compute, source, rows, missing, number, halt, report)
                report(rows.stop)


def _parts(source: _Source) -> list[range]:
    """Returns the rows of each part, in steps of a batch."""
    size = _BATCH_ON_CPU if jax.default_backend() == "cpu" else _BATCH
    starts = range(0, source.rows, size * _BATCHES)
    return [range(start, min(start + size * _BATCHES, source.rows), size) for start in starts]


def _missing(folders: dict[int, Path], number: int) -> dict[int, Path]:
    """Returns the folders that lack a part, or have a damaged one."""
    return {
        stop: folder for stop, folder in folders.items() if checksums.wrong(array_cache.seal_of(_part(folder, number)))
    }


def _part(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}"


def _program(run: Run, variables: Variables, stop: int, size: int) -> Callable[[Any, tuple[int, ...]], list[jax.Array]]:
    """Returns a function (input of at most `size` rows, stops) -> activations, of this process's devices alone."""
    mesh = make_mesh(jax.local_devices())
    if jax.process_count() > 1:
        variables = jax.tree.map(np.asarray, variables)
    variables = jax.device_put(variables, replicated(mesh))
    size = -(-size // mesh.size) * mesh.size

    def compute(x, stops):
        groups = variables if max(stops) == stop else run.of_groups(variables, max(stops))
        step = prefix_step(run, size, length_of({"input": x}), stops)
        outputs = step(groups, jax.device_put(padded(x, size), split(mesh)))
        return [_kept(output) for output in outputs]

    return compute


def prefix_step(run: Run, batch_size: int, length: int, stops: tuple[int, ...]) -> jax.stages.Compiled:
    """Compiles prefixes: (variables of their groups, input) -> what the backbone gives after each.

    Args:
        run: whose network it is, and whose programs keep it.
        batch_size: rows of the input, on the devices of this process alone.
        length: tokens of each text, 0 of images.
        stops: the prefixes, each as its number of groups.
    """
    return run.programs.get_or_compile(
        ("prefix", batch_size, length, stops), lambda: _prefix_step(run, batch_size, length, stops)
    )


def _prefix_step(run: Run, batch_size: int, length: int, stops: tuple[int, ...]) -> jax.stages.Compiled:
    mesh = make_mesh(jax.local_devices())
    everywhere, by_row = replicated(mesh), split(mesh)
    jitted = jax.jit(
        functools.partial(run.network.features, stops=stops), in_shardings=(everywhere, by_row), out_shardings=by_row
    )
    abstract = run.of_groups(run.network.abstract, max(stops))
    abstract = jax.tree.map(functools.partial(placed, sharding=everywhere), abstract)
    x = run.programs.abstract_batch(batch_size, length)["input"]
    lowered = jitted.lower(abstract, jax.tree.map(functools.partial(placed, sharding=by_row), x))
    if options := _options():
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another jaxlib may not know them
            return lowered.compile(compiler_options=options)
    return lowered.compile()


def _options() -> dict[str, bool | str] | None:
    """Returns options of the compiler that are known to help here; None where none are."""
    return compilation_cache.quick_products() if jax.default_backend() == "cpu" else None


def _make_part(
    run: Run,
    compute: Callable[[Any, tuple[int, ...]], list[jax.Array]],
    source: _Source,
    rows: range,
    folders: dict[int, Path],
    number: int,
    halt: Callable[[], None],
    report: Callable[[int], None],
) -> None:
    """Computes some rows, a batch at each step of their range, and writes them to each folder, whole or not at all."""
    tokens = source.tokens(rows)

    def batch(start: int) -> Any:
        return {"input": source.batch(range(start, min(start + rows.step, rows.stop)))}

    with contextlib.ExitStack() as stack:
        parts = [_part(folder, number) for folder in folders.values()]
        files = [stack.enter_context(storage.replacing(part)) for part in parts]
        rows_left, pending = len(range(rows.start, rows.stop)), []
        for inputs in ahead(batch, rows, run.experiment.input.workers):
            halt()
            pending.append(compute(inputs["input"], tuple(folders)))
            if len(pending) > 2:  # two in flight keep the device busy
                rows_left -= _write(files, pending.pop(0), min(rows_left, rows.step), tokens)
                report(rows.stop - rows_left)
        for outputs in pending:
            rows_left -= _write(files, outputs, min(rows_left, rows.step), tokens)
        for part, file in zip(parts, files, strict=True):  # sealed before there is a part
            file.flush()
            checksums.seal(array_cache.seal_of(part), {part.name: Path(file.name)})


def _write(files: Sequence[IO[bytes]], outputs: Sequence[jax.Array], rows: int, tokens: int) -> int:
    """Adds the first `rows` of each output to its file; returns how many those were."""
    for file, output in zip(files, outputs, strict=True):
        array = np.asarray(output)[:rows]
        if tokens and array.ndim == 3:
            array = np.pad(array, ((0, 0), (0, tokens - array.shape[1]), (0, 0)))
        file.write(np.ascontiguousarray(array).view(np.uint8).data)
    return rows


def _opened(run: Run, source: _Source, stop: int, folder: Path, used: IO[bytes]) -> Features:
    row, parts = _row(run, stop), []
    for number, rows in enumerate(_parts(source)):
        count = len(range(rows.start, rows.stop))
        values = np.asarray(np.memmap(_part(folder, number), row.dtype, "r"))  # whose rows are quick to take
        parts.append(values.reshape(count, *((-1, row.shape[2]) if row.ndim == 3 else row.shape[1:])))
    return Features(parts, len(source.split), source.views, source.read, used)
