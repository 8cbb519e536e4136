"""Ten strategies on two sets of real images, three seeds each: accuracy and cost, as a table in Markdown.

    .venv/bin/python benchmarks/strategies.py [--sets=mnist,elpv] [--seeds=3] [--workdirs=runs/strategies]

Each run is a process of its own, so that its peak memory is its own; one that is finished in its workdir is not run
again. Seconds are the median of five steps, over a run's phases, taken when all runs of a set are done.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax

from tljax.config.schema import Experiment
from tljax.core.run import prepare
from tljax.distributed import mesh

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from configs.strategies import STRATEGIES, get_config  # noqa: E402


def train(name: str, seed: int, workdir: Path) -> dict[str, Any]:
    """The result of one training run, or of an earlier one in its workdir, and its `peak_bytes`."""
    peak = workdir / "peak.json"
    if not peak.exists():
        command = [sys.executable, "-m", "tljax", "train", f"--config=configs/strategies.py:{name}"]
        command += [f"--config.seed={seed}", f"--workdir={workdir}"]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{name}, seed {seed}: exit status {os.waitstatus_to_exitcode(status)}")
        peak.write_text(json.dumps(usage.ru_maxrss * 1024))
    result = json.loads((workdir / "result.json").read_text())
    return result | {"peak_bytes": json.loads(peak.read_text())}


def seconds(name: str) -> float:
    """Of a step: the median of five after the first, averaged over phases by their lengths."""
    experiment = Experiment.from_config(get_config(name))
    run = prepare(experiment)
    stream, state, total = run.train_input(), run.init_state(), 0.0
    for phase in run.phases:
        state, program, times = run.enter_phase(state, phase), run.programs.train_step(phase), []
        for number in range(6):
            batch = mesh.put_batch(stream.batch(number), run.mesh)
            start = time.perf_counter()
            state, metrics = program(state, batch)
            jax.block_until_ready((state, metrics))
            times.append(time.perf_counter() - start)
        total += statistics.median(times[1:]) * (phase.stop - phase.start)
    return total / run.resolved.steps


def row(strategy: str, results: list[dict[str, Any]], pace: float) -> str:
    """A line of the table: mean and standard deviation over seeds, and what the step costs."""
    accuracies = [100 * result["splits"]["test"]["accuracy"] for result in results]
    cost = results[0]["cost"]
    spread = statistics.stdev(accuracies) if len(accuracies) > 1 else float("nan")
    cells = (
        f"`{strategy}`",
        f"{statistics.mean(accuracies):.1f} ± {spread:.1f}",
        f"{cost['trainable_params']:,}",
        f"{cost['step_share_of_full']:.2f}",
        f"{max(result['peak_bytes'] for result in results) / 1e9:.1f}",
        f"{pace:.2f}",
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", default="mnist,elpv")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workdirs", type=Path, default=ROOT / "runs" / "strategies")
    options = parser.parse_args()
    for data in options.sets.split(","):
        names = {strategy: f"{data}_{strategy}" for strategy in STRATEGIES}
        seconds_of = {}
        for strategy, name in names.items():
            folders = [(options.workdirs / f"{name}_{seed}").absolute() for seed in range(options.seeds)]
            seconds_of[strategy] = [train(name, seed, folder) for seed, folder in enumerate(folders)]
            print(f"{name} done", file=sys.stderr, flush=True)
        print(f"\n| {data} | test accuracy, % | trainable | step FLOPs ÷ full | peak, GB | s / step |")
        print("|---|---|---|---|---|---|")
        for strategy, name in names.items():
            print(row(strategy, seconds_of[strategy], seconds(name)), flush=True)


if __name__ == "__main__":
    main()
