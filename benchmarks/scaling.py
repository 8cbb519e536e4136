"""Weak scaling from one process to two that train together over loopback, each pinned to a core of its own.

    .venv/bin/python benchmarks/scaling.py [--rounds=5] [--steps=20] [--strategy=full]

ViT-Ti/16 at 96 px, 8 images a step in each process. In each round, one after another: one process alone on the first
core; two that know nothing of each other, at the same time (what they take longer, they take from each other's caches
and memory); and two of one run. Efficiency is the first's time over the other's, of the median step.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROWS = 8


def worker(options: argparse.Namespace) -> None:
    """Prints the median seconds of a step."""
    from tljax.distributed import processes

    os.sched_setaffinity(0, {options.core})  # before jax counts the cores
    with processes.join(options):
        _steps(options)


def _steps(options: argparse.Namespace) -> None:
    import jax
    import numpy as np

    from tljax.config import schema
    from tljax.config.schema import Experiment
    from tljax.core.run import Resolved, Run
    from tljax.data.preprocessing import Preprocessing
    from tljax.distributed import mesh, processes
    from tljax.weights.catalog import Pretrained

    values = schema.default()
    values.backbone.name, values.steps, values.tuning.strategy = "vit_tiny_patch16", 100, options.strategy
    values.task.update(image_size=96, batch_size=ROWS * options.num_processes)
    size = Preprocessing(size=96)
    row = Pretrained("", "", "vit_tiny_patch16", "", size, "none")
    run = Run(Experiment.from_config(values), Resolved(row, size, tuple("0123456789"), 100, 1000, "none"))
    step, state, times = run.programs.train_step(run.phases[0]), run.init_state(), []
    share = jax.tree.map(
        lambda leaf: np.ones((ROWS, *leaf.shape[1:]), leaf.dtype), run.programs.abstract_batch(run.batch_size)
    )
    batch = mesh.put_batch(share, run.mesh)
    for _ in range(options.steps + 2):
        began = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        times.append(time.perf_counter() - began)
    if processes.is_lead():
        print(json.dumps(statistics.median(times[2:])))


def measure(options: argparse.Namespace, cores: list[int], together: bool) -> float:
    """Seconds of a step of processes on these cores, at the same time; of the slowest."""
    command = [sys.executable, __file__, f"--strategy={options.strategy}", f"--steps={options.steps}"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"--coordinator=127.0.0.1:{free.getsockname()[1]}"
    started = []
    for number, core in enumerate(cores):
        flags = [address, f"--num-processes={len(cores)}", f"--process-id={number}"] if together else []
        run = [*command, f"--core={core}", *flags]
        started.append(subprocess.Popen(run, cwd=ROOT, stdout=subprocess.PIPE, text=True))
    outputs = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise SystemExit("a process failed")
    lines = (line for text in outputs for line in text.splitlines())
    return max(json.loads(line) for line in lines if not line.startswith("[Gloo]"))  # which greets its peers there


def main() -> None:
    from tljax.distributed import processes

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--strategy", default="full")
    parser.add_argument("--core", type=int, help=argparse.SUPPRESS)
    processes.add_arguments(parser)
    options = parser.parse_args()
    if options.core is not None:
        worker(options)
        return
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise SystemExit("two cores are needed")
    apart, joined = [], []
    print(f"| round | one, s | two apart, s | one run of two, s | efficiency apart | of one run |\n|{'---|' * 6}")
    for number in range(options.rounds):
        alone = measure(options, cores[:1], together=False)
        two, times = measure(options, cores, together=False), measure(options, cores, together=True)
        apart.append(alone / two)
        joined.append(alone / times)
        print(
            f"| {number + 1} | {alone:.3f} | {two:.3f} | {times:.3f} | {apart[-1]:.3f} | {joined[-1]:.3f} |", flush=True
        )
    ends = [f"{statistics.median(times):.3f} ({min(times):.3f} to {max(times):.3f})" for times in (apart, joined)]
    print(f"| median | | | | {' | '.join(ends)} |")


if __name__ == "__main__":
    main()
