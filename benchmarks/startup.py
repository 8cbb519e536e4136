"""How long until a run's first step: of a first start, of a second one, and of one that goes on with the run.

    .venv/bin/python benchmarks/startup.py [--rounds=3] [--cases=quickstart,solar,vit_full,vit_probe,…]

Each start is a process of `train`. Its clock starts before Python does, and stops when program, state and batch of the
first step are there. `quickstart` and `solar` are configs of this project, with trained weights and real pictures; the
others see 48 pictures of 224 px in batches of 16, with AdamW, and start from weights in a file as timm writes it, but
for `vit_scratch`, which draws its own. A round is a first start, for which TLJAX_CACHE holds what was downloaded and
nothing else, a second one in another workdir, and one in the workdir of a run that was stopped after a step; the cases
take turns. Seconds are medians of the rounds, with the least and the most, and so is the share, of each round's start
in its first.

Parts of it, as medians: `imports` until there is a config, `data` until the run is assembled, `tracing` in Python, and
`programs`, from the compiler or the disk; what two threads do at the same time counts twice. Then `--help`, and
`inspect` of ViT-B/16 with and without compiled programs.
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

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
REAL = {"quickstart": "configs/quickstart.py", "solar": "configs/elpv_vit.py:last_k"}
MADE = {
    "vit_scratch": ("vit_small_patch16", "full"),
    "vit_full": ("vit_small_patch16", "full"),
    "vit_probe": ("vit_small_patch16", "linear_probe"),
    "resnet_full": ("resnet50", "full"),
    "resnet_probe": ("resnet50", "linear_probe"),
    "vit_b": ("vit_base_patch16", "full"),  # of `inspect`
}
PARTS = {
    "tracing": ("jaxpr_trace_duration", "jaxpr_to_mlir_module_duration"),
    "programs": ("backend_compile_duration",),
}
TLJAX = [sys.executable, "-m", "tljax"]


def get_config(case: str):
    """The processes that are timed read it, too."""
    from tljax.config.schema import default

    values = default()
    values.backbone.name, values.tuning.strategy = MADE[case]
    weights = weights_of(case)
    values.backbone.weights = str(weights) if weights and weights.exists() else ""
    values.task.update(dataset=f"folder:{os.environ['STARTUP_PICTURES']}", image_size=224, batch_size=16)
    values.optim.update(learning_rate=1e-4, weight_decay=0.05, clip_norm=1.0)
    values.update(steps=10, log_every=1)
    return values


def weights_of(case: str) -> Path | None:
    """Where those of its network are, or will be; None of a case that brings or draws its own."""
    own = case in REAL or case == "vit_scratch"
    return None if own else Path(os.environ["STARTUP_WEIGHTS"], MADE[case][0])


def start(arguments: list[str]) -> None:
    """`train`, up to its first step; prints the seconds since STARTUP_BEGAN, and those of the parts."""
    began, parts = float(os.environ["STARTUP_BEGAN"]), dict.fromkeys(PARTS, 0.0)
    from tljax import __main__

    def prepare(*arguments):
        import jax

        from tljax.core import run

        parts["imports"] = time.time() - began
        prepared_run = run.prepare(*arguments)
        parts["data"] = time.time() - began - parts["imports"]
        jax.monitoring.register_event_duration_secs_listener(add)
        return prepared_run

    def add(event: str, seconds: float, **_) -> None:
        for part, events in PARTS.items():
            parts[part] += seconds if event.rsplit("/", 1)[-1] in events else 0

    def train_loop(run, *others):
        program = run.programs.train_step

        def ready(*arguments, **options):
            program(*arguments, **options)
            print(json.dumps(parts | {"seconds": time.time() - began}), flush=True)
            os._exit(0)

        run.programs.train_step = ready  # of which the loop asks when it has its first batch
        return steps(run, *others)

    original, steps = __main__.importlib.import_module, None

    def instrumented(name: str, package: str | None = None):
        module = original(name, package)
        if name == "tljax.cli.train":
            from tljax.training import trainer

            nonlocal steps
            steps = trainer.train_loop
            trainer.prepare, trainer.train_loop = prepare, train_loop
        return module

    __main__.importlib.import_module = instrumented
    sys.exit(__main__.main(["train", *arguments]))


def config(case: str) -> str:
    return f"--config={REAL.get(case, f'{__file__}:{case}')}"


def timed(case: str, workdir: Path) -> dict[str, float]:
    """What `start` prints, in a process of its own."""
    command = [sys.executable, __file__, "start", config(case), f"--workdir={workdir}"]
    environment = os.environ | {"STARTUP_BEGAN": str(time.time())}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def rounds(cases: list[str], number: int, folder: Path) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Case -> kind of start -> what each round found."""
    rounds_of = {case: {kind: [] for kind in ("first", "second", "goes on")} for case in cases}
    for case in cases:
        weights = weights_of(case)
        if weights and not weights.exists():
            drawn = folder / f"{case}-drawn"
            run_verb(["train", config(case), f"--workdir={drawn}", "--config.steps=1"])
            run_verb(["convert", str(drawn), str(weights), "--to=timm"])
        run_verb(["train", config(case), f"--workdir={folder / case}", "--max-seconds=1"], 75)
    for turn in range(number):
        for case, kinds in rounds_of.items():
            for path in (folder / "cache").iterdir():
                if path.is_dir() and path.name != "downloads":
                    shutil.rmtree(path)
            for kind, starts in kinds.items():
                workdir = folder / case
                starts.append(timed(case, workdir if kind == "goes on" else folder / f"{case}-{kind}-{turn}"))
            print(f"{case}, round {turn + 1}: done", file=sys.stderr, flush=True)
    return rounds_of


def run_verb(arguments: list[str], status: int = 0) -> None:
    """A verb, which is to end with this status."""
    done = subprocess.run([*TLJAX, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode != status:
        raise SystemExit(f"{' '.join(arguments)}: exit status {done.returncode}\n{done.stderr[-3000:]}")


def row(case: str, kinds: dict[str, list[dict[str, float]]]) -> list[str]:
    """Lines of the table, one for each kind of start."""
    lines = []
    for kind, starts in kinds.items():
        shares = [start["seconds"] / first["seconds"] for start, first in zip(starts, kinds["first"], strict=True)]
        parts = [f"{statistics.median(start[part] for start in starts):.1f}" for part in ("imports", "data", *PARTS)]
        seconds = spread([start["seconds"] for start in starts])
        share = "" if kind == "first" else spread(shares, 2)
        lines.append(f"| `{case}` | {kind} | {seconds} | {share} | {' | '.join(parts)} |")
    return lines


def spread(values: list[float], digits: int = 1) -> str:
    middle, *ends = (f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({' … '.join(ends)})"


def seconds(arguments: list[str]) -> float:
    """Of a whole process."""
    began = time.perf_counter()
    subprocess.run([*TLJAX, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def _pictures(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for i in range(48):
        file = folder / str(i % 2) / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(file)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", default="quickstart,solar,vit_full,vit_probe,vit_scratch,resnet_full,resnet_probe")
    options = parser.parse_args()
    import jax

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["STARTUP_PICTURES"] = str(_pictures(folder / "pictures"))
        os.environ["TLJAX_CACHE"], os.environ["STARTUP_WEIGHTS"] = str(folder / "cache"), str(folder / "weights")
        # Some let no module be kept compiled: each start would compile all of them.
        for name in [name for name in os.environ if name.startswith("JAX_") or name == "PYTHONDONTWRITEBYTECODE"]:
            del os.environ[name]
        cores = len(os.sched_getaffinity(0))
        print(
            f"{cores} cores, {platform.processor() or platform.machine()}, Python {platform.python_version()},", end=" "
        )
        print(f"jax {jax.__version__}, {options.rounds} rounds\n")
        print("| | start | seconds | ÷ first | imports | data | tracing | programs |\n" + "|---" * 8 + "|")
        for case, kinds in rounds(options.cases.split(","), options.rounds, folder).items():
            print("\n".join(row(case, kinds)))
        shutil.rmtree(folder / "cache" / "compiled")
        inspect = [seconds(["inspect", config("vit_b")]) for _ in range(2)]
        print("\n| | seconds |\n|---|---|")
        print(f"| `--help` | {spread([seconds(['--help']) for _ in range(5)], 2)} |")
        print(f"| `train --help` | {spread([seconds(['train', '--help']) for _ in range(5)], 2)} |")
        print(
            f"| `inspect` of ViT-B/16, first | {inspect[0]:.1f} |\n| `inspect` of ViT-B/16, second | {inspect[1]:.1f} |"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["start"]:
        start(sys.argv[2:])
    main()
