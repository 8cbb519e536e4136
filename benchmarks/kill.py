"""A run that is killed again and again ends with the bits of one that was not: `kill -9` at any moment.

    .venv/bin/python benchmarks/kill.py [--kills=60] [--seed=0] [--recipes=lora,lp_ft] [--signal=TERM] [--folder=DIR]

Each recipe is trained once without interruption, with tiny networks and data that are made on the spot. Then it is
killed, restarted, and killed again until it ends, in as many workdirs as that takes. Half of the kills come at a time
drawn uniformly from what the whole process took, the others are aimed at a phase (`PHASES`). The table counts them by
the phase that the dead process was in, by its log and its files.

The state in every checkpoint that is kept, metrics.jsonl and result.json without seconds, plan.json and what `evaluate`
writes must be equal to the bit; exit status 1 if anything is not. Stray is what lies in the workdir or in TLJAX_CACHE
and is not there after the run that was not killed, or has `tmp`, `.partial` or `.making-` in its name, and a compiled
program that cannot be read.

`--signal=TERM` asks a run to stop instead. In the loop of steps it must leave a checkpoint of the very step that it
logged last, and exit with status 75.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from tljax.checkpoints.workdir import Workdir
from tljax.config.schema import default
from tljax.core.run import Run
from tljax.data.preprocessing import Preprocessing
from tljax.evals import predictions
from tljax.models.registry import attributes
from tljax.models.text.bert import Bert
from tljax.models.vision.resnet import ResNet
from tljax.models.vision.vit import ViT
from tljax.weights import pretrained
from tljax.weights.catalog import Pretrained

ROOT = Path(__file__).parents[1]
STEPS = 24
NETWORKS = {
    "vit": ("vit_tiny_patch16", ViT(width=64, depth=3, heads=2, patch_size=8, grid=(4, 4))),
    "resnet": ("resnet18", ResNet(depths=(1, 1), widths=(32, 64), stem_width=16, kind="basic")),
    "text": ("bert_base", Bert(width=64, depth=2, heads=2, vocabulary=12, positions=32)),
}
# Strategy -> its network, and what else its config says.
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "linear_probe": ("vit", {}),
    "last_k": ("text", {"tuning.k": 1}),
    "full": ("vit", {"optim.accumulate": 2, "regularize.dropout": 0.1}),
    "lora": ("vit", {"optim.average": "ema"}),
    "lp_ft": ("resnet", {}),
    "gradual_unfreezing": ("resnet", {"tuning.every": 7, "regularize.l2_sp": 0.1}),
}
# What a kill is aimed at -> how long after its beginning it may come, in seconds.
PHASES = {
    "data": 0.2,  # a data set is prepared or decoded
    "compile": 2.0,  # after the header, before a step is logged
    "step": 0.05,  # a step is logged
    "save": 0.005,  # a checkpoint is not whole yet
    "clean-up": 0.0,  # a checkpoint is not whole any more
    "evaluation": 0.5,  # the last checkpoint is there, and no result
    "evaluate": 0.0,  # that verb writes what it found
}
KILLS_PER_RUN = 8
TRIES = 4  # runs in which an aim may be missed
LEFTOVER = re.compile(r"tmp|\.partial|\.making-")


def get_config(recipe: str) -> ConfigDict:
    """A row of `RECIPES`, without its data set and weights."""
    network, values = RECIPES[recipe]
    config = default()
    config.task.update(train="train[:96]", validation="train[96:104]", test="train[104:]", batch_size=4)
    if network == "text":
        config.task.update(max_tokens=16, token_multiple=16)
    else:
        config.task.update(image_size=32, crop="inception", augment=("flip",))
    config.tuning.strategy = recipe
    config.optim.update(learning_rate=1e-3, clip_norm=1.0, weight_decay=0.05, warmup_steps=2)
    config.update(steps=STEPS, log_every=1)
    config.update_from_flattened_dict(values)
    return config


def make(folder: Path) -> None:
    """Two classes of pictures and of sentences, and random weights for each network."""
    rng = np.random.default_rng(0)
    words = [*"abcdefgh", "[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    rows = ["text,label"]
    for i in range(120):
        label, picture = ("dark", "light")[i % 2], rng.integers(0, 200, (32, 32, 3)) + 55 * (i % 2)
        (folder / "pictures" / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.astype(np.uint8)).save(folder / "pictures" / label / f"{i}.png")
        rows.append(f"{' '.join(rng.choice(words[:7], rng.integers(2, 12)))} {'gh'[i % 2]},{label}")
    (folder / "table.csv").write_text("\n".join(rows) + "\n")
    for network, (name, module) in NETWORKS.items():
        shapes = {path: shape for path, shape in pretrained.shapes(module).items() if not path.startswith("head")}
        arrays = {
            path: path.endswith(("scale", "var")) + 0.1 * rng.standard_normal(shape, np.float32)
            for path, shape in shapes.items()
        }
        row = Pretrained(network, "", name, "", Preprocessing(size=32), "", architecture=attributes(module))
        (folder / network).mkdir()
        pretrained.write(folder / network, row, arrays)
    (folder / "text" / "vocab.txt").write_text("\n".join(words))


@dataclass
class Life:
    """One run, from its first process to its last.

    Attributes:
        recipe: a row of `RECIPES`.
        folder: for its workdir, its TLJAX_CACHE, and what its latest process printed.
        data: what `make` made.
        compiled: programs that were compiled before.
        flags: more of the config.
        verb, started: of its latest process.
    """

    recipe: str
    folder: Path
    data: Path
    compiled: Path
    flags: tuple[str, ...] = ()
    verb: str = ""
    started: float = 0.0

    def __post_init__(self) -> None:
        self.folder.mkdir()
        self.workdir, self.cache, self._log = (self.folder / name for name in ("run", "cache", "log"))

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def logged(self) -> list[int]:
        """The steps that the latest process logged."""
        return [int(step) for step in re.findall(rf"^train (\d+)/{STEPS}  loss", self.log, re.MULTILINE)]

    def start(self, verb: str = "train", aim: str = "") -> subprocess.Popen:
        """A process of the run, in a process group of its own; without a cache to be killed in where it makes one."""
        command = [sys.executable, "-m", "tljax", verb, f"--workdir={self.workdir}"]
        if verb == "train":
            network = RECIPES[self.recipe][0]
            dataset = f"csv:{self.data}/table.csv" if network == "text" else f"folder:{self.data}/pictures"
            command += [f"--config={Path(__file__)}:{self.recipe}", *self.flags]
            command += [f"--config.task.dataset={dataset}", f"--config.backbone.weights={self.data / network}"]
        else:
            command.append("--split=train")  # the others are there already
        if aim == "data":
            shutil.rmtree(self.cache, ignore_errors=True)
        if aim == "compile":
            self.compiled = self.folder / "compiled"
            shutil.rmtree(self.compiled, ignore_errors=True)
        # Written to disk however soon it was compiled, so that a later process only reads it.
        environment = {"JAX_COMPILATION_CACHE_DIR": self.compiled, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": 0}
        environment = {"TLJAX_CACHE": self.cache, **environment}
        self.verb, self.started = verb, time.time()
        with self._log.open("w") as log:
            return subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | {key: str(value) for key, value in environment.items()},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def end(self, verb: str = "train") -> float:
        """Runs to the end; returns the seconds that it took."""
        began = time.monotonic()
        self.ended(self.start(verb))
        return time.monotonic() - began

    def ended(self, process: subprocess.Popen, status: Iterable[int] = (0,)) -> int:
        """Waits for a process, which must exit with a `status`, and alone."""
        exit_status = process.wait(timeout=600)
        if exit_status not in status:
            raise SystemExit(f"{self.recipe}: exit status {exit_status}, not {status}\n{self.log[-3000:]}")
        deadline = time.monotonic() + 10
        with contextlib.suppress(ProcessLookupError):
            while time.monotonic() < deadline:
                os.killpg(process.pid, 0)
                time.sleep(0.01)
            raise SystemExit(f"{self.recipe}: processes of group {process.pid} outlived the one that began it")
        return exit_status

    def phase(self) -> str:
        """Of the latest process, running or dead: a row of `PHASES`, or `start`."""
        if self._touched(self.cache.glob("*/*.partial")) or self._touched(self.cache.glob("*/*.making-*")):
            return "data"
        if self.verb == "evaluate":
            return "evaluate" if self._touched([self.workdir / "evaluations"]) else "start"
        whole, broken = checkpoints(self.workdir)
        if folders := self._touched(broken):
            older = any(int(path.name) < max(whole, default=0) for path in folders if path.name.isdigit())
            return "clean-up" if older else "save"
        log = self.log
        if STEPS in whole and (self.logged or "resuming" in log):
            return "evaluation"
        if self.logged:
            return "step"
        return "compile" if f" {STEPS} steps of " in log else "start"

    def _touched(self, paths: Iterable[Path]) -> list[Path]:
        """Those that the latest process changed, not what an earlier one left."""
        changed = []
        for path in paths:
            with contextlib.suppress(FileNotFoundError):  # it was renamed or removed meanwhile
                if path.stat().st_mtime >= self.started:
                    changed.append(path)
        return changed

    def names(self) -> set[str]:
        """What lies in the workdir and the cache, down to a checkpoint's folder."""
        paths = (path for base in (self.workdir, self.cache) for glob in ("*", "*/*") for path in base.glob(glob))
        # TensorBoard's events are a file for each process.
        return {re.sub(r"events\.out\..*", "events", str(path.relative_to(self.folder))) for path in paths}

    def strays(self, names: set[str]) -> list[str]:
        """What is there beside `names`, or not done; what the workdir lacks; and programs that cannot be read."""
        files = (str(path.relative_to(self.folder)) for path in self.folder.rglob("*"))
        damaged = re.findall(r"Error reading persistent compilation cache entry for '(\w+)'", self.log)
        return [
            *sorted((self.names() - names) | set(filter(LEFTOVER.search, files))),
            *(f"no {name}" for name in sorted(names - self.names()) if name.startswith("run/")),
            *(f"compiled {name} damaged" for name in damaged),
        ]


def outcome(workdir: Path) -> dict[str, Any]:
    """All that a run leaves but times, by what it is."""
    folder = Workdir(workdir)
    experiment, resolved = folder.load()
    run = Run(experiment, resolved, tokenizer=folder.tokenizer)
    contents: dict[str, Any] = {"plan": folder.plan}
    with folder.checkpoints(experiment) as saved:
        for step in saved.steps:
            state = saved.restore(step, run.abstract_state(step))
            for path, leaf in jax.tree_util.tree_leaves_with_path(state):
                contents[f"step {step}: {jax.tree_util.keystr(path)}"] = np.asarray(leaf).tobytes()
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    contents["metrics"] = [_timeless(line) for line in lines]
    contents |= {f"result: {key}": value for key, value in _timeless(folder.result).items()}
    for path in (workdir / "evaluations").glob("*.json"):
        contents[path.name] = json.loads(path.read_text())
    for path in (workdir / "evaluations").glob("*.parquet"):
        kept, _ = predictions.load(path)
        contents[path.name] = kept.ids, kept.labels.tobytes(), kept.logits.tobytes()
    return contents


def checkpoints(workdir: Path) -> tuple[list[int], list[Path]]:
    """The steps whose checkpoints are whole, and the folders that are not yet, or not any more."""
    folders = [path for path in (workdir / "checkpoints").glob("*") if path.name.isdigit() or "base" in path.name]
    broken = [path for path in folders if not (path / "manifest.json").exists()]
    return [int(path.name) for path in folders if path not in broken and path.name.isdigit()], broken


def _timeless(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if not key.endswith("seconds")}


@dataclass
class Whole:
    """What a run leaves that was not killed, and the seconds that it took."""

    outcome: dict[str, Any]
    names: set[str]
    seconds: float


@dataclass
class Row:
    """What became of a recipe's killed runs."""

    recipe: str
    kills: Counter = field(default_factory=Counter)
    missed: Counter = field(default_factory=Counter)
    runs: int = 0
    starts: int = 0
    different: list[str] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        kills = ", ".join(f"{phase} {count}" for phase, count in sorted(self.kills.items()))
        cells = (f"`{self.recipe}`", self.kills.total(), kills, self.runs, self.starts)
        last = ("no" if self.different else "yes", len(self.strays) or "none")
        return f"| {' | '.join(map(str, (*cells, *last)))} |"


HEADER = "| strategy | kills | by phase | runs | processes | identical | stray files |\n|---|---|---|---|---|---|---|"


def strike(life: Life, process: subprocess.Popen, aim: str, seconds: float, number: int, rng: random.Random) -> str:
    """Sends a process group the signal `number` at the moment aimed at; returns the phase, empty if it ended before."""
    due = time.monotonic() + rng.uniform(0, seconds)
    # So many steps of this process come first, that not always the same one is met.
    after = rng.randrange(6) if aim in ("step", "save", "clean-up") else 0
    late = rng.uniform(0, PHASES.get(aim, 0.0))
    while process.poll() is None:
        if time.monotonic() >= due if aim == "random" else life.phase() == aim and len(life.logged) >= after:
            time.sleep(late)
            if process.poll() is None:
                os.killpg(process.pid, number)
                return _stopped(life, process, number)
        time.sleep(0.0002)
    life.ended(process)
    return ""


def _stopped(life: Life, process: subprocess.Popen, number: int) -> str:
    """The phase in which a process was killed; if it was asked, it must have ended as it should."""
    if number == signal.SIGKILL:
        # It may have ended between the last look and the kill.
        return life.phase() if life.ended(process, (-number, 0)) else ""
    phase = life.phase()
    status = life.ended(process, (0, 75, -number, 128 + number))
    steps = life.logged
    if steps and steps[-1] < STEPS:
        whole, broken = checkpoints(life.workdir)
        latest = max(whole, default=0)
        if status != 75 or latest != steps[-1] or broken:
            raise SystemExit(
                f"{life.recipe}: stopped at step {steps[-1]} with status {status}, its latest checkpoint is of step"
                f" {latest}, not whole are {broken}\n{life.log[-3000:]}"
            )
    return phase if status else ""


def kill(
    recipes: dict[str, int], folder: Path, seed: int = 0, number: int = signal.SIGKILL, aims: Iterable[str] = PHASES
) -> list[Row]:
    """Kills runs of each recipe so many times, half of them at `aims`, and compares how they end."""
    folder.mkdir(parents=True, exist_ok=True)
    make(folder / "data")
    rng, rows = random.Random(seed), []
    moments = itertools.cycle([moment for aim in aims for moment in ("random", aim)])
    flags = ("--config.eval_every=2",)
    if number != signal.SIGKILL:  # it shall stop between two checkpoints, too, and not keep what it saves there
        flags = ("--config.eval_every=5", "--config.checkpoint.keep=1")

    def life(recipe: str, name: str) -> Life:
        return Life(recipe, folder / f"{recipe}-{name}", folder / "data", folder / "compiled", flags)

    for recipe, count in recipes.items():
        left = list(itertools.islice(moments, count))
        rng.shuffle(left)
        verbs = ("train", "evaluate") if "evaluate" in left else ("train",)
        attempt = life(recipe, "whole")
        seconds = [attempt.end(verb) for verb in verbs]
        whole = Whole(outcome(attempt.workdir), attempt.names(), seconds[0])
        _tell(f"{recipe}: {seconds[0]:.1f} s without a kill")
        row = Row(recipe)
        while left:
            attempt = life(recipe, str(row.runs))
            for verb in verbs:
                _live(attempt, verb, left, whole, row, number, rng)
            contents = outcome(attempt.workdir)
            wrong = [key for key in contents | whole.outcome if contents.get(key) != whole.outcome.get(key)]
            strays = attempt.strays(whole.names)
            row.different += [f"{attempt.folder.name}: {key}" for key in wrong]
            row.strays += [f"{attempt.folder.name}: {name}" for name in strays]
            row.runs += 1
            _tell(f"{recipe}: run {row.runs} ended, {'; '.join([*wrong, *strays]) or 'identical'}")
            if not (wrong or strays):
                shutil.rmtree(attempt.folder)
        rows.append(row)
    return rows


def _live(life: Life, verb: str, left: list[str], whole: Whole, row: Row, number: int, rng: random.Random) -> None:
    """A verb from its start to its end, killed at what is `left` for it; what was met is taken out of that."""
    ended, limit = False, len(left) - KILLS_PER_RUN
    while not ended:
        aims = [aim for aim in left if (aim == "evaluate") == (verb == "evaluate")]
        aim = aims[0] if aims and len(left) > limit else ""
        process, began = life.start(verb, aim), time.monotonic()
        row.starts += 1
        phase = strike(life, process, aim, whole.seconds, number, rng) if aim else ""
        ended = not phase
        if ended:
            life.ended(process)
            row.missed[aim] += 1
            if verb == "train" and "resuming" not in life.log:  # sooner than the first, which had to compile
                whole.seconds = min(whole.seconds, time.monotonic() - began)
        else:
            left.remove(aim)
            row.kills[phase] += 1
            step = max(life.logged, default=0)
            _tell(f"{row.recipe}: signal {number} in {phase}, aimed at {aim}, last step logged {step}")
        if aim in PHASES and row.missed[aim] == TRIES:
            left[left.index(aim)] = "random"
            _tell(f"{row.recipe}: {aim} was missed {TRIES} times; a random moment instead")


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=60, help="over all recipes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipes", default=",".join(RECIPES))
    parser.add_argument("--signal", choices=("KILL", "TERM"), default="KILL")
    parser.add_argument("--folder", type=Path, help="a new one, kept; else a temporary one")
    options = parser.parse_args()
    names = options.recipes.split(",")
    counts = {name: options.kills // len(names) + (i < options.kills % len(names)) for i, name in enumerate(names)}
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary) / "kill").absolute()
        rows = kill(counts, folder, options.seed, signal.Signals[f"SIG{options.signal}"])
    print(HEADER, *rows, sep="\n")
    wrong = [text for row in rows for text in (*row.different, *row.strays)]
    if wrong:
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    main()
