"""A whole ablation by `sweep`, against the same runs one by one without the cache.

    .venv/bin/python benchmarks/ablation.py [--set=mnist] [--epochs=20] [--image-size=64] [--rates=4] [--seeds=3]

configs/ablation.py: linear probe and the last 1, 2 and 4 blocks × learning rates × seeds. Wall times are those of whole
processes, with imports and compilation. Runs that differ in numbers only take the same time, so that of each strategy
`--alone` runs are trained by themselves, and their median is multiplied; with --alone=0, all of them are, and
settings and accuracies are compared. What the compiled FLOPs allow is the same sum of `result.json`'s costs.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from configs.ablation import RATES, SEEDS, get_config, sweep  # noqa: E402
from tljax.config.schema import Experiment  # noqa: E402
from tljax.sweeps import selection  # noqa: E402
from tljax.sweeps import trial as sweeps  # noqa: E402

_CONFIG = """
from configs import ablation
from configs.ablation import get_config

def sweep(arg):
    from benchmarks.ablation import kept
    return kept(arg, {rates}, {seeds})
"""


def kept(arg: str, rates: int, seeds: int) -> list[dict[str, Any]]:
    """The sweep with fewer rates and seeds."""
    kept_rates, kept_seeds = RATES[arg][:rates], SEEDS[:seeds]
    trials = [(values, values["optim.learning_rate"], values["seed"]) for values in sweep(arg)]
    return [values for values, rate, seed in trials if rate in kept_rates and seed in kept_seeds]


def timed(verb: str, *arguments: object, cache: Path) -> float:
    """Seconds of a whole process, with a cache of its own."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "tljax", verb, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TLJAX_CACHE": str(cache)}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def flops(result: dict[str, Any], batch_size: int, forward: float) -> float:
    """Of a whole run: its steps, and one forward pass over each example that it evaluates."""
    evaluated = sum(split["count"] for split in result["splits"].values())
    return result["cost"]["step_flops"] * result["steps"] + forward * evaluated / batch_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", choices=tuple(RATES), default="mnist")
    parser.add_argument("--epochs", type=float, default=20.0)
    parser.add_argument("--image-size", type=int, default=0, help="default: that of the config")
    parser.add_argument("--rates", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--alone", type=int, default=1, help="runs of each strategy by themselves; 0 for all")
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="ablation-"))
    config = root / "config.py"
    config.write_text(_CONFIG.format(rates=options.rates, seeds=options.seeds))
    values = get_config(options.set)
    values.epochs, values.task.image_size = options.epochs, options.image_size or values.task.image_size
    experiment = Experiment.from_config(values)
    named = (
        f"--config={config}:{options.set}",
        f"--config.epochs={values.epochs}",
        f"--config.task.image_size={values.task.image_size}",
    )
    overrides = kept(options.set, options.rates, options.seeds)
    # What has to be fetched is nobody's time.
    timed("inspect", *named, cache=root)
    shutil.rmtree(root / "compiled")
    # With every run tested, as those that train by themselves are.
    together = timed("sweep", *named, f"--root={root / 'together'}", "--peek-test", cache=root)
    trials = sweeps.make_trials(experiment, overrides, root / "together")
    strategies: dict[str, list[sweeps.Trial]] = {}
    for trial in trials:
        strategies.setdefault(trial.experiment.tuning.strategy + str(trial.experiment.tuning.k or ""), []).append(trial)
    rows, alone, allowed, differences = [], 0.0, [0.0, 0.0], []
    for name, members in strategies.items():
        seconds, results = [], []
        for number, trial in enumerate(members[: options.alone or len(members)]):
            workdir = root / "alone" / f"{name}-{number}"
            keys = [f"--config.{key}={value}" for key, value in trial.overrides.items()]
            seconds.append(timed("train", *named, *keys, "--config.cache=off", f"--workdir={workdir}", cache=root))
            results.append(json.loads((workdir / "result.json").read_text()))
            for split, metrics in trial.result["splits"].items():
                differences.append(abs(metrics["accuracy"] - results[-1]["splits"][split]["accuracy"]))
        whole = statistics.median(seconds) * len(members)
        cost, size = results[0]["cost"], experiment.task.batch_size
        uncached = flops(results[0], size, cost["forward_flops"]) * len(members)
        # Cached: the steps, and evaluation from the boundary on, which is a third of a step from there at the most.
        rest = min(members[0].result["cost"]["step_flops"], cost["forward_flops"])
        cached = flops(members[0].result, size, rest) * len(members)
        alone, allowed = alone + whole, [allowed[0] + uncached, allowed[1] + cached]
        rows.append(
            (name, len(members), f"{statistics.median(seconds):.0f}", f"{whole:.0f}", f"{uncached / cached:.1f}")
        )
    examples = experiment.task.batch_size
    results = [trial.result for trial in trials]
    counted = sum(split["count"] for split in results[0]["splits"].values()) + round(
        results[0]["steps"] * examples / options.epochs
    )
    once = counted * cost["forward_flops"] / examples
    factor, wall = allowed[0] / (allowed[1] + once), alone / together
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, jax {jax.__version__}; {options}\n")
    print("| strategy | runs | one alone, s | all alone, s | FLOPs alone ÷ cached |\n|---|---|---|---|---|")
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")
    print(f"\nalone {alone:.0f} s, sweep {together:.0f} s: {wall:.2f} ×; the compiled FLOPs allow {factor:.2f} ×")
    print(f"so {wall / factor:.2f} of what they allow; largest difference in accuracy {max(differences):.4f}")
    if not options.alone:
        print("the same settings are best:", _same_best(trials, root, strategies))


def _same_best(trials: list[sweeps.Trial], root: Path, strategies: dict[str, list[sweeps.Trial]]) -> bool:
    alone = [
        sweeps.Trial(trial.overrides, trial.experiment, root / "alone" / f"{name}-{number}")
        for name, members in strategies.items()
        for number, trial in enumerate(members)
    ]
    together, apart = (
        {name: members[0].setting for name, members in selection.select_trials(group).items()}
        for group in (trials, alone)
    )
    return together == apart


if __name__ == "__main__":
    main()
