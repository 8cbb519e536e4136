"""The same run on other devices and processes: one batch, one result, and checkpoints that go from each to each.

    python -m tests.test_layouts ROOT NAME --coordinator=… --num-processes=… --process-id=…

is one process of one layout. All of them train, wait for each other, restore what the others saved, and go on from it.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from tests import forks
from tests.conftest import PATIENCE, ROOT, tiny_run
from tljax.checkpoints.checkpointer import flatten_state
from tljax.checkpoints.workdir import Workdir
from tljax.core.run import Run
from tljax.core.state import TrainState
from tljax.distributed import mesh, processes
from tljax.evals.predictions import load, predictions_of
from tljax.io import arrays
from tljax.models.registry import BACKBONES
from tljax.models.vision.vit import ViT
from tljax.training.trainer import train
from tljax.tuning import multipliers

# Processes, devices of each, and how its own run is laid on them.
LAYOUTS = {
    "1x1": (1, 1, {}),
    "1x4": (1, 4, {"fsdp": 4}),
    "2x2": (2, 2, {"fsdp": 2, "frozen": "sharded"}),
    "4x1": (4, 1, {"fsdp": 4, "frozen": "sharded"}),
}
STEPS, HALF = 20, 10
# Its largest arrays have 4,096 elements or more, and are shared out.
WIDE = ViT(width=32, depth=2, heads=2, patch_size=8, grid=(4, 4))


def _run(root: Path, network: str = "wide_vit", **values: Any) -> Run:
    splits = {"task__train": "train[:16]", "task__test": "train[16:]", "task__eval_batch_size": 4}
    length = {"steps": STEPS, "eval_every": HALF, "optim__learning_rate": 0.02}
    return tiny_run(f"folder:{root / 'shapes'}", network, **splits | length | values)


def _layouts(root: Path, own: dict[str, Any]) -> list[Run]:
    """The run of this layout, and the same with its parameters shared out in every other way."""
    arguments = {"tuning__strategy": "last_k", "tuning__k": 1}
    run = _run(root, **arguments, **{f"mesh__{key}": value for key, value in own.items()})
    can = [fsdp for fsdp in (1, 2, 4) if run.mesh.size % fsdp == 0]
    others = [{"fsdp": fsdp, "frozen": frozen} for fsdp in can for frozen in ("replicated", "sharded")[: min(fsdp, 2)]]
    return [run, *(_run(root, **arguments, mesh__fsdp=one["fsdp"], mesh__frozen=one["frozen"]) for one in others)]


def _digest(tree: Any) -> str:
    return multipliers.digest(flatten_dict(mesh.gathered(tree), sep="/"))


def _restored(run: Run, workdir: Path, step: int) -> TrainState:
    return Workdir(workdir).checkpoints(run.experiment).restore(step, run.abstract_state(step))


def _resumed(run: Run, source: Path, workdir: Path) -> None:
    """Goes on in this layout from the middle of a run in another."""

    def copy() -> bool:
        shutil.copytree(source, workdir)
        (workdir / "result.json").unlink()
        shutil.rmtree(workdir / "checkpoints" / str(STEPS))
        return True

    processes.on_lead(copy)
    train(run.experiment, workdir, prepared=run)


def _statistics(root: Path) -> dict[str, list[float]]:
    """Of BatchNorm, after three steps."""
    run = _run(root, "tiny_resnet")
    state, stream = run.init_state(), run.train_input()
    for step in range(3):
        state, _ = run.programs.train_step(run.phases[0])(state, mesh.put_batch(stream.batch(step), run.mesh))
    return {path: np.asarray(leaf).tolist() for path, leaf in flatten_dict(state.batch_stats, sep="/").items()}


def _process(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("name")
    processes.add_arguments(parser)
    options = parser.parse_args(arguments)
    with processes.join(options):
        _part(options)


def _part(options: argparse.Namespace) -> None:
    root, name = options.root, options.name
    assert (jax.process_count(), jax.local_device_count()) == LAYOUTS[name][:2]
    BACKBONES["wide_vit"] = WIDE
    run, *others = _layouts(root, LAYOUTS[name][2])
    train(run.experiment, root / name, prepared=run)
    stream = run.train_input()
    found: dict[str, Any] = {
        "batches": [_digest(mesh.put_batch(stream.batch(step), run.mesh)) for step in (0, HALF, STEPS - 1)],
        "statistics": _statistics(root) if name in ("1x1", "2x2") else {},
    }
    if processes.is_lead():
        (root / f"{name}.trained").touch()
    deadline = time.monotonic() + PATIENCE
    while not all((root / f"{other}.trained").exists() for other in LAYOUTS):
        assert time.monotonic() < deadline, "another layout's run has not ended"
        time.sleep(0.1)
    found["restored"] = [
        _digest(flatten_state(_restored(one, root / other, STEPS))) for other in LAYOUTS for one in others
    ]
    split = run.inputs.splits["test"]
    predicted = predictions_of(run, _restored(run, root / "1x1", STEPS), split, "test")
    found["logits"] = predicted.logits.tolist()
    before = list(LAYOUTS)[list(LAYOUTS).index(name) - 1]
    _resumed(run, root / before, root / f"{name}-from-{before}")
    if processes.is_lead():
        (root / f"{name}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def root(tmp_path_factory, shapes) -> Path:
    """The folder in which every layout has done its part."""
    root = tmp_path_factory.mktemp("layouts")
    (root / "shapes").symlink_to(shapes)
    started = []
    for name, (count, devices, _) in LAYOUTS.items():
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            flags = [f"--coordinator=127.0.0.1:{found.getsockname()[1]}", f"--num-processes={count}"]
        for number in range(count):
            command = [sys.executable, "-m", "tests.test_layouts", root, name]
            command += [*flags, f"--process-id={number}"] if count > 1 else []
            environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            started.append((name, forks.Popen(command, cwd=ROOT, env=environment, **pipes)))
    for name, process in started:
        told, _ = process.communicate(timeout=PATIENCE + 100)
        assert process.returncode == 0, f"{name}: {told[-5000:]}"
    return root


def _found(root: Path, key: str) -> dict[str, Any]:
    return {name: json.loads((root / f"{name}.json").read_text())[key] for name in LAYOUTS}


def _parameters(workdir: Path) -> dict[str, np.ndarray]:
    leaves = {}
    for folder in (workdir / "checkpoints").glob("base-*"):
        leaves |= arrays.read(arrays.epath.Path(folder))
    leaves |= arrays.read(arrays.epath.Path(workdir / "checkpoints" / str(STEPS)))
    return {name: leaf for name, leaf in leaves.items() if name.startswith("params")}


pytestmark = pytest.mark.slow


def test_the_global_batches_are_the_same(root):
    found = _found(root, "batches")
    assert len(set(found["1x1"])) == 3
    assert all(batches == found["1x1"] for batches in found.values())


def test_the_parameters_are_the_same_to_rounding(root):
    wanted = _parameters(root / "1x1")
    for folder in root.iterdir():
        if folder.is_dir() and folder.name != "shapes":
            found = _parameters(folder)
            assert found.keys() == wanted.keys()
            for name, leaf in wanted.items():
                assert np.linalg.norm(found[name] - leaf) <= 1e-5 * np.linalg.norm(leaf), (folder.name, name)


def test_statistics_are_of_the_global_batch(root):
    found = _found(root, "statistics")
    assert found["1x1"]
    for path, wanted in found["1x1"].items():
        np.testing.assert_allclose(found["2x2"][path], wanted, rtol=1e-5, atol=1e-6, err_msg=path)


def test_each_layout_restores_the_checkpoints_of_each_to_the_bit(root):
    found = _found(root, "restored")
    assert {name: len(digests) // len(LAYOUTS) for name, digests in found.items()} == {
        "1x1": 1,
        "1x4": 5,
        "2x2": 5,
        "4x1": 5,
    }
    for name, digests in found.items():
        # One after another the ways to lay it out, for each run that it is from.
        every = np.array(digests).reshape(len(LAYOUTS), -1)
        assert (every == every[:, :1]).all(), name
        assert every[:, 0].tolist() == np.array(found["1x1"]).reshape(len(LAYOUTS), -1)[:, 0].tolist()


def test_evaluation_of_one_checkpoint_is_the_same(root):
    found = {name: np.array(logits) for name, logits in _found(root, "logits").items()}
    kept, _ = load(root / "1x1" / "evaluations" / f"{STEPS}-test.parquet")
    for name, logits in found.items():
        assert len(logits) == len(kept.ids) == 8
        assert (logits.argmax(axis=-1) == kept.logits.argmax(axis=-1)).all(), name
        np.testing.assert_allclose(logits, kept.logits, rtol=1e-5, atol=1e-6, err_msg=name)
    counted = {json.loads((root / name / "result.json").read_text())["splits"]["test"]["count"] for name in LAYOUTS}
    assert counted == {8}


def test_one_layout_goes_on_from_the_middle_of_another(root):
    for name, before in zip(LAYOUTS, [list(LAYOUTS)[-1], *LAYOUTS], strict=False):
        lines = (root / f"{name}-from-{before}" / "metrics.jsonl").read_text().splitlines()
        steps = [json.loads(line)["step"] for line in lines]
        assert steps == sorted(steps) and steps[-1] == STEPS
        ended = json.loads((root / f"{name}-from-{before}" / "result.json").read_text())
        whole = json.loads((root / before / "result.json").read_text())
        assert ended["frozen_digest_after"] == whole["frozen_digest_after"]
        assert ended["splits"]["test"]["accuracy"] == whole["splits"]["test"]["accuracy"]


if __name__ == "__main__":
    _process(sys.argv[1:])
