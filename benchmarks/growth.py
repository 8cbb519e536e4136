"""How time grows: a step with batch, image size and depth; building the feature cache with examples.

    .venv/bin/python benchmarks/growth.py [--rounds=5] [--clock=cpu] [--figure=benchmarks/growth.png]

ViT-S/16, full fine-tuning at batch 16, 224 px and 12 blocks, one of the three varied at a time. Medians; beside each
stands what the smallest one and the compiled FLOPs predict. `--clock=cpu` counts the process's own time on all cores,
for a machine that others use as well. Heads side by side are in benchmarks/probe.py.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from tljax.config import schema
from tljax.config.schema import Experiment
from tljax.core.run import Resolved, Run, prepare
from tljax.data.preprocessing import Preprocessing
from tljax.training import feature_cache
from tljax.weights.catalog import Pretrained

STEPS = {"batch_size": (4, 8, 16, 32), "image_size": (96, 160, 224, 288), "depth": (3, 6, 12, 18)}
EXAMPLES = (128, 256, 512, 1024)
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Curve = list[tuple[int, float, float]]  # what varies, seconds, FLOPs


def step(
    rounds: int, clock: Callable[[], float], batch_size: int = 16, image_size: int = 224, depth: int = 12
) -> tuple[float, float]:
    """Median seconds of a step, and its FLOPs."""
    values = schema.default()
    values.backbone.name, values.steps = "vit_small_patch16", 100
    values.task.update(image_size=image_size, batch_size=batch_size)
    values.tuning.strategy = "full"
    size = Preprocessing(size=image_size)
    row = Pretrained("", "", "vit_small_patch16", "", size, "none", architecture={"depth": depth})
    run = Run(Experiment.from_config(values), Resolved(row, size, tuple("0123456789"), 100, 1000, "none"))
    program, state, times = run.programs.train_step(run.phases[0]), run.init_state(), []
    batch = jax.tree.map(lambda leaf: jax.device_put(np.ones(leaf.shape, leaf.dtype), leaf.sharding), _batch(run))
    for _ in range(rounds + 1):
        began = clock()
        state, metrics = program(state, batch)
        jax.block_until_ready((state, metrics))
        times.append(clock() - began)
    return statistics.median(times[1:]), program.program.cost_analysis()["flops"]


def _batch(run: Run):
    return run.programs.abstract_batch(run.batch_size)


def build(folder: Path, examples: int, clock: Callable[[], float]) -> float:
    """Seconds in which features of so many pictures are computed, the compilation apart."""
    values = schema.default()
    values.backbone.name, values.steps = "vit_small_patch16", 100
    values.task.update(dataset=f"folder:{folder}", image_size=224, train=f"train[:{examples}]", batch_size=16)
    values.tuning.strategy = "linear_probe"
    run = prepare(Experiment.from_config(values))
    run.cached, state = True, run.init_state()
    start, split = run.prefix_length(run.phases[0]), run.inputs.splits["train"]
    feature_cache.prefix_step(run, 32, 0, (start,))
    began = clock()
    feature_cache.computed(run, state, split, [start], training=True)
    return clock() - began


def draw(curves: dict[str, Curve], path: Path) -> None:
    figure = Figure(figsize=(3.2 * len(curves), 3), layout="constrained")
    for axes, (name, curve) in zip(figure.subplots(1, len(curves)), curves.items(), strict=True):
        x, seconds, flops = map(np.array, zip(*curve, strict=True))
        axes.plot(x, seconds, "o-", label="measured")
        axes.plot(x, seconds[0] * flops / flops[0], "k:", label="by FLOPs")
        axes.set(xlabel=name.replace("_", " "), ylabel="s", ylim=(0, None))
        axes.legend()
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--figure", type=Path, default=Path("benchmarks/growth.png"))
    options = parser.parse_args()
    clock = CLOCKS[options.clock]
    curves: dict[str, Curve] = {
        name: [(value, *step(options.rounds, clock, **{name: value})) for value in of] for name, of in STEPS.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TLJAX_CACHE"] = f"{folder}/cache"
        rng = np.random.default_rng(0)
        for number in range(max(EXAMPLES)):
            picture = Path(folder) / "pictures" / f"class{number % 2}" / f"{number:05d}.png"
            picture.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (224, 224, 3), np.uint8)).save(picture)
        curves["examples cached"] = [(n, build(Path(folder) / "pictures", n, clock), n) for n in EXAMPLES]
    print(f"{os.cpu_count()} cores, {jax.default_backend()}, jax {jax.__version__}, {options.clock} clock\n")
    print("| what varies | | seconds | by FLOPs from the first |\n|---|---|---|---|")
    for name, curve in curves.items():
        for value, seconds, flops in curve:
            print(f"| {name.replace('_', ' ')} | {value} | {seconds:.3f} | {curve[0][1] * flops / curve[0][2]:.3f} |")
    draw(curves, options.figure)


if __name__ == "__main__":
    main()
