"""Ten strategies on two sets of real images, three seeds each: accuracy and cost, as a table in Markdown.

    .venv/bin/python benchmarks/strategies.py [--sets=mnist,elpv] [--seeds=3] [--workdirs=runs/strategies]

Each run is a process of its own, so that its peak memory and seconds are its own; one that is finished in its
workdir is not run again. Seconds are of a step between two log lines, compilation left out.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from configs.strategies import STRATEGIES  # noqa: E402


def run(name: str, seed: int, workdir: Path) -> dict[str, Any]:
    """One training run, or what an earlier one left: its result, `peak_bytes` and `step_seconds`."""
    peak = workdir / "peak.json"
    if not peak.exists():
        command = [sys.executable, "-m", "tljax", "train", f"--config=configs/strategies.py:{name}"]
        command += [f"--config.seed={seed}", f"--workdir={workdir}"]
        # The same program for each seed: compiled once.
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(workdir.parent / "compiled")}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{name}, seed {seed}: exit status {os.waitstatus_to_exitcode(status)}")
        peak.write_text(json.dumps(usage.ru_maxrss * 1024))
    result = json.loads((workdir / "result.json").read_text())
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    times = [(line["step"], line["seconds"]) for line in lines if line["split"] == "train"]
    pace = [(b - a) / (n - m) for (m, a), (n, b) in itertools.pairwise(times)]
    return result | {"peak_bytes": json.loads(peak.read_text()), "step_seconds": statistics.median(pace)}


def row(strategy: str, results: list[dict[str, Any]]) -> tuple[str, ...]:
    """A line of the table: mean and standard deviation over seeds, and what the step costs."""
    accuracies = [100 * result["splits"]["test"]["accuracy"] for result in results]
    cost = results[0]["cost"]
    spread = statistics.stdev(accuracies) if len(accuracies) > 1 else float("nan")
    return (
        f"`{strategy}`",
        f"{statistics.mean(accuracies):.1f} ± {spread:.1f}",
        f"{cost['trainable_params']:,}",
        f"{cost['step_share_of_full']:.2f}",
        f"{max(result['peak_bytes'] for result in results) / 1e9:.1f}",
        f"{statistics.median(result['step_seconds'] for result in results):.2f}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", default="mnist,elpv")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workdirs", type=Path, default=ROOT / "runs" / "strategies")
    options = parser.parse_args()
    for data in options.sets.split(","):
        print(f"\n| {data} | test accuracy, % | trainable | step FLOPs ÷ full | peak, GB | s / step |")
        print("|---|---|---|---|---|---|", flush=True)
        for strategy in STRATEGIES:
            name = f"{data}_{strategy}"
            results = [
                run(name, seed, (options.workdirs / f"{name}_{seed}").absolute()) for seed in range(options.seeds)
            ]
            print(f"| {' | '.join(row(strategy, results))} |", flush=True)


if __name__ == "__main__":
    main()
