"""What saving costs: its share of the time of a loop that saves every 50 steps, and bytes on disk.

    .venv/bin/python benchmarks/saving.py [--rounds=6] [--every=50] [--cases=vit_full,resnet_full] [--folder=DIR]

Stretches of so many steps with a save at their start, and without one, take turns in one process; a round is one of
each, and which comes first changes. A stretch ends when its last step is computed and its save is on disk, as if the
next save came then. The share is the ratio of the two, less 1: the median of the rounds, the least and the most; of the
time on the clock, and of the process's time on the processors, which others on the machine disturb less. The loop is
held up while `save` copies the leaves; they are written while it goes on.

Networks of random weights at a small image size, AdamW, float32. A checkpoint is held against the bytes of what trains
and of the optimizer's state; 20 of them, with the base that they share, against 20 whole states.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from tljax.checkpoints.checkpointer import Checkpoints, flatten_state
from tljax.checkpoints.workdir import Workdir
from tljax.config import schema
from tljax.config.schema import Experiment
from tljax.core.run import Run, prepare
from tljax.core.state import TrainState
from tljax.data.loader import length_of
from tljax.distributed import mesh

# Name -> network, strategy, pixels along a side, batch: a step takes 0.1 to 0.3 s on two cores.
CASES = {
    "vit_probe": ("vit_small_patch16", "linear_probe", 48, 32),
    "vit_full": ("vit_small_patch16", "full", 32, 8),
    "resnet_full": ("resnet50", "full", 64, 8),
}


@dataclass
class Measured:
    """Of one case.

    Attributes:
        seconds: of a step, the median of stretches without a save.
        shares: of the time, by round; `processor_shares` likewise.
        held: seconds that `save` took, the median.
        bytes_of: of a `step`'s checkpoint, the `base`, what is `trained` with the optimizer's state, a whole `state`.
    """

    seconds: float
    shares: list[float]
    processor_shares: list[float]
    held: float
    bytes_of: dict[str, int]


def make_run(pictures: Path, backbone: str, strategy: str, size: int, batch_size: int) -> Run:
    """A run that is longer than it is going to be run."""
    values = schema.default()
    values.backbone.name, values.tuning.strategy, values.steps = backbone, strategy, 10**6
    values.task.update(dataset=f"folder:{pictures}", image_size=size, batch_size=batch_size)
    values.optim.update(learning_rate=1e-4)
    values.checkpoint.keep = 1
    return prepare(Experiment.from_config(values))


def measure(run: Run, folder: Path, every: int, rounds: int) -> Measured:
    """Trains in turns with a save and without; a first stretch, which compiles, does not count."""
    (phase,), names = run.phases, run.masks.frozen_names()
    stream, state = run.train_input(), run.init_state()

    def stretch(state: TrainState, saved: Checkpoints | None) -> tuple[TrainState, np.ndarray]:
        """The state after it; its seconds, those on the processors, and those in `save`."""
        first, began, held = int(state.step), _clocks(), 0.0
        if saved:
            saved.save(state, run.masks.frozen_names(first))
            held = time.perf_counter() - began[0]
        for batch in mesh.put_ahead(stream.batches(first, first + every), run.mesh):
            state, _ = run.programs.train_step(phase, length_of(batch))(state, batch)
        jax.block_until_ready(state)
        if saved:
            saved.wait()
        return state, np.array([*(_clocks() - began), held])

    turns: dict[bool, list[np.ndarray]] = {True: [], False: []}
    with Workdir(folder).checkpoints(run.experiment, writer=True) as checkpoints:
        checkpoints.keep_base({name: leaf for name, leaf in flatten_state(state).items() if name in names})
        state, _ = stretch(state, checkpoints)
        for number in range(rounds):
            for saving in (True, False) if number % 2 else (False, True):
                state, times = stretch(state, checkpoints if saving else None)
                turns[saving].append(times)
        (step,) = checkpoints.steps
    saving, without = np.array(turns[True]), np.array(turns[False])
    shares = saving / np.where(without, without, 1) - 1
    base = sum(_size(path) for path in (folder / "checkpoints").glob("base-*"))
    trained = _bytes(state.params) - _bytes(run.frozen_leaves(state)) + _bytes(state.opt_state)
    measured = {"step": _size(folder / "checkpoints" / str(step)), "base": base, "trained": trained}
    measured["state"] = _bytes(state)
    seconds = float(np.median(without[:, 0])) / every
    return Measured(seconds, list(shares[:, 0]), list(shares[:, 1]), float(np.median(saving[:, 2])), measured)


def _clocks() -> np.ndarray:
    return np.array([time.perf_counter(), time.process_time()])


def row(name: str, measured: Measured) -> str:
    """A line of the table."""
    sizes = {key: size / 1e6 for key, size in measured.bytes_of.items()}
    cells = (
        f"`{name}`",
        f"{measured.seconds:.2f}",
        _spread(measured.shares),
        _spread(measured.processor_shares),
        f"{measured.held:.3f}",
        f"{sizes['step']:.2f}",
        f"{sizes['trained']:.2f}",
        f"{sizes['base']:.1f}",
        f"{sizes['base'] + 20 * sizes['step']:.1f}",
        f"{20 * sizes['state']:.1f}",
    )
    return f"| {' | '.join(cells)} |"


def _spread(shares: list[float]) -> str:
    return f"{statistics.median(shares):.1%} ({min(shares):.1%} … {max(shares):.1%})"


def _bytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _pictures(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for i in range(256):
        file = folder / "pictures" / str(i % 2) / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(file)
    return folder / "pictures"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--folder", type=Path, help="on the disk to be measured; else a temporary one")
    options = parser.parse_args()
    columns = ("s / step", "share of the time", "of processors' time", "held up, s", "a checkpoint, MB")
    columns += ("what trains and its state, MB", "base, MB", "20 checkpoints, MB", "20 whole states, MB")
    print(f"| a save every {options.every} steps | {' | '.join(columns)} |")
    print("|" + "---|" * (len(columns) + 1), flush=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        pictures = _pictures(Path(temporary))
        for name in options.cases.split(","):
            measured = measure(make_run(pictures, *CASES[name]), Path(temporary) / name, options.every, options.rounds)
            print(row(name, measured), flush=True)


if __name__ == "__main__":
    main()
