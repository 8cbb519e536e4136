"""What saving costs: its share of the time of a loop that saves every 50 steps, and bytes on disk.

    .venv/bin/python benchmarks/saving.py [--rounds=6] [--every=50] [--cases=vit_full,resnet_full] [--folder=DIR]

Stretches of so many steps with a save at their start, and without one, take turns in one process; a round is one of
each, and which comes first changes. A stretch ends when its last step is computed and its save is on disk, as if the
next save came then. The share is the ratio of the two, less 1: the median of the rounds, the least and the most.

Networks of random weights at a small image size, AdamW, float32. A checkpoint is held against the bytes of what trains
and of the optimizer's state; 20 of them, with the base that they share, against 20 whole states.
"""

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from tljax import config, sharding
from tljax.checkpoint import Checkpoints, named
from tljax.config import Experiment
from tljax.data.pipeline import length_of
from tljax.run import Run, prepare
from tljax.step import State
from tljax.workdir import Workdir

# Name -> network, strategy, pixels along a side, batch: a step takes 0.1 to 0.3 s on two cores.
CASES = {
    "vit_probe": ("vit_small_patch16", "linear_probe", 48, 32),
    "vit_full": ("vit_small_patch16", "full", 32, 16),
    "resnet_full": ("resnet50", "full", 64, 8),
}


@dataclass
class Found:
    """Of one case.

    Attributes:
        seconds: of a step, the median of stretches without a save.
        shares: of the time, by round.
        bytes_of: of a `step`'s checkpoint, the `base`, what is `trained` with the optimizer's state, a whole `state`.
    """

    seconds: float
    shares: list[float]
    bytes_of: dict[str, int]


def make_run(pictures: Path, backbone: str, strategy: str, size: int, batch_size: int) -> Run:
    """A run that is longer than it is going to be run."""
    values = config.default()
    values.backbone.name, values.tuning.strategy, values.steps = backbone, strategy, 10**6
    values.task.update(dataset=f"folder:{pictures}", image_size=size, batch_size=batch_size)
    values.optim.update(learning_rate=1e-4)
    values.checkpoint.keep = 1
    return prepare(Experiment.from_config(values))


def measure(run: Run, folder: Path, every: int, rounds: int) -> Found:
    """Trains in turns with a save and without; a first stretch, which compiles, does not count."""
    (phase,) = run.phases
    stream, state = run.train_input(), run.init_state()

    def stretch(state: State, saved: Checkpoints | None) -> tuple[State, float]:
        first, began = int(state.step), time.perf_counter()
        if saved:
            saved.save(state, run.unmoved(first))
        for batch in sharding.put_ahead(stream.batches(first, first + every), run.mesh):
            state, _ = run.train_step(phase, length_of(batch))(state, batch)
        jax.block_until_ready(state)
        if saved:
            saved.wait()
        return state, time.perf_counter() - began

    without, shares = [], []
    with Workdir(folder).checkpoints(run.experiment, writer=True) as checkpoints:
        checkpoints.keep_base({name: leaf for name, leaf in named(state).items() if name in run.unmoved()})
        state, _ = stretch(state, checkpoints)
        for number in range(rounds):
            times = {}
            for saving in (True, False) if number % 2 else (False, True):
                state, times[saving] = stretch(state, checkpoints if saving else None)
            without.append(times[False] / every)
            shares.append(times[True] / times[False] - 1)
        (step,) = checkpoints.steps
    base = sum(_size(path) for path in (folder / "checkpoints").glob("base-*"))
    trained = _bytes(state.params) - _bytes(run.frozen_leaves(state)) + _bytes(state.opt_state)
    found = {"step": _size(folder / "checkpoints" / str(step)), "base": base, "trained": trained}
    return Found(statistics.median(without), shares, found | {"state": _bytes(state)})


def row(name: str, found: Found) -> str:
    """A line of the table."""
    share, sizes = statistics.median(found.shares), {key: size / 1e6 for key, size in found.bytes_of.items()}
    cells = (
        f"`{name}`",
        f"{found.seconds:.2f}",
        f"{share:.1%} ({min(found.shares):.1%} … {max(found.shares):.1%})",
        f"{sizes['step']:.2f}",
        f"{sizes['trained']:.2f}",
        f"{sizes['base']:.1f}",
        f"{sizes['base'] + 20 * sizes['step']:.1f}",
        f"{20 * sizes['state']:.1f}",
    )
    return f"| {' | '.join(cells)} |"


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
    print(f"| a save every {options.every} steps | s / step | share of the time | a checkpoint, MB |"
          " what trains and its state, MB | base, MB | 20 checkpoints, MB | 20 whole states, MB |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        pictures = _pictures(Path(temporary))
        for name in options.cases.split(","):
            found = measure(make_run(pictures, *CASES[name]), Path(temporary) / name, options.every, options.rounds)
            print(row(name, found), flush=True)
            print(f"{name}: {', '.join(f'{share:.2%}' for share in found.shares)}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
