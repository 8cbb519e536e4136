"""Memory: what is predicted of a step, what is done where it does not fit, and what a device is taken to have."""

import dataclasses
import json
import os
import sys
from pathlib import Path

import jax
import pytest

from tests import forks
from tests.conftest import ROOT, TINY, tiny_run, tljax
from tljax.checkpoints.checkpointer import flatten_state
from tljax.core.run import Run
from tljax.errors import InputError
from tljax.models.registry import BACKBONES
from tljax.profiling import device_memory, memory
from tljax.profiling.cost import cost, evaluation_rows, peak_bytes

GB = 10**9


@pytest.fixture(scope="module")
def dataset(shapes):
    return f"folder:{shapes}"


@pytest.fixture(autouse=True)
def _networks(monkeypatch):
    """Ways out are tried on the run's own network."""
    for name, module in TINY.items():
        monkeypatch.setitem(BACKBONES, name, module)


def _run(dataset: str, **values) -> Run:
    """Of a ViT whose activations outweigh its parameters."""
    return tiny_run(dataset, **{"task__image_size": 64, "task__batch_size": 16, "optim__name": "adamw"} | values)


def _bytes(tree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("network", ["tiny_vit", "tiny_resnet"])
@pytest.mark.parametrize("strategy", ["full", "linear_probe"])
def test_what_moves_is_given_away_and_what_is_frozen_is_only_read(dataset, network, strategy):
    run = _run(dataset, network=network, tuning__strategy=strategy)
    found = run.programs.train_step(run.phases[0]).program.memory_analysis()
    state = run.abstract_state()
    frozen = [leaf for name, leaf in flatten_state(state).items() if name in run.masks.frozen_names(1)]
    moves, leaves = _bytes(state) - _bytes(frozen), len(jax.tree.leaves(state)) - len(frozen)
    assert bool(frozen) == (strategy == "linear_probe")
    assert found.alias_size_in_bytes == moves
    beside = found.output_size_in_bytes - moves  # five metrics, and a table of where each result lies
    assert 0 < beside <= 5 * 4 + 8 * (leaves + 5)
    state, batch = _bytes(state), 16 * (64 * 64 * 3 + 3 * 4)
    numbers = 3 * 4  # learning rate, weight decay and seed
    assert found.argument_size_in_bytes == state + batch + numbers
    assert cost(run)["step_peak_bytes"] == state + batch + numbers + found.temp_size_in_bytes + beside


def test_remat_is_honoured(dataset):
    plain, again = (_run(dataset, remat=remat) for remat in (False, True))
    kept, recomputed = (memory._training(run, run.phases[0]).growing for run in (plain, again))
    assert recomputed < kept / 1.5  # of three blocks


def test_evaluation_counts_the_state_beside_it(dataset):
    run = _run(dataset, task__train="train[:16]", task__test="train[16:]", task__eval_batch_size=6)
    assert evaluation_rows(run) == 6
    state, found = run.abstract_state(), run.programs.eval_step(6).memory_analysis()
    assert memory._evaluation(run).peak == pytest.approx(
        _bytes(state) + found.temp_size_in_bytes + 6 * 64 * 64 * 3, abs=300
    )


def test_with_the_feature_cache_the_backbone_still_takes_its_memory(dataset):
    split = {"task__train": "train[:16]", "task__test": "train[16:]", "task__eval_batch_size": 6}
    run = _run(dataset, tuning__strategy="linear_probe", **split)
    run.cached = True
    (phase,) = run.phases
    state, features = (
        _bytes(run.abstract_state()),
        4 * run.programs.abstract_batch(1, 0, run.prefix_length(phase))["input"].size,
    )
    found = run.programs.train_step(phase, start=run.prefix_length(phase)).program.memory_analysis()
    assert found.argument_size_in_bytes == state + 16 * (features + 3 * 4) + 3 * 4
    found = run.programs.eval_step(6, start=run.prefix_length(phase)).memory_analysis()
    assert memory._evaluation(run).peak == pytest.approx(state + found.temp_size_in_bytes + 6 * features, abs=300)


def _with(monkeypatch, has: int, free: int = 0) -> None:
    monkeypatch.setattr(memory, "device_bytes", lambda: (has, free or has))


@pytest.mark.slow
def test_a_step_that_does_not_fit_is_an_error_that_names_what_fits(dataset, monkeypatch):
    run = _run(dataset, task__batch_size=32)
    need = memory._training(run, run.phases[0])
    has = need.peak * 3 // 4
    _with(monkeypatch, has)
    found = memory.predict(run)
    assert found["peak"] == need.peak and found["of"] == "a training step"
    ways = found["ways_out"]
    tried = {
        "task.batch_size=16": {"task__batch_size": 16},
        "optim.accumulate=2": {"task__batch_size": 32, "optim__accumulate": 2},
        "remat=True": {"task__batch_size": 32, "remat": True},
    }
    for setting, values in tried.items():
        other = _run(dataset, **values)
        assert ways[setting] == peak_bytes(other.programs.train_step(other.phases[0]).program)
    probe = _run(dataset, task__batch_size=32, tuning__strategy="linear_probe")
    exact = peak_bytes(probe.programs.train_step(probe.phases[0]).program)
    assert ways["tuning.strategy=linear_probe"] == pytest.approx(exact, rel=0.1)
    assert all(peak <= 0.9 * has for peak in ways.values())
    with pytest.raises(InputError, match=r"a training step needs .* MB on each device, .*optim\.accumulate=2 \("):
        memory.check(found)


_ON_FOUR = """
import sys
from tests.conftest import tiny_run
from tljax.profiling import memory
from tljax.profiling.cost import peak_bytes
from tljax.models.registry import BACKBONES
from tljax.models.vision.vit import ViT

BACKBONES["wide_vit"] = ViT(width=128, depth=1, heads=2, patch_size=8, grid=(4, 4))
whole, shared = (tiny_run(sys.argv[1], "wide_vit", optim__name="adamw", mesh__fsdp=fsdp) for fsdp in (1, 4))
needs, wants = (peak_bytes(run.programs.train_step(run.phases[0]).program) for run in (whole, shared))
memory.device_bytes = lambda: (needs - 1, needs - 1)
told = memory.predict(whole)["ways_out"]
assert told["mesh.fsdp=4"] == wants < 0.9 * needs, told
assert not any(name.startswith("mesh") for name in memory.predict(shared)["ways_out"])
"""


@pytest.mark.slow
def test_where_several_devices_hold_the_same_sharing_it_out_is_a_way_out(dataset):
    four = os.environ | {"JAX_NUM_CPU_DEVICES": "4"}
    forks.run([sys.executable, "-c", _ON_FOUR, dataset], check=True, env=four, cwd=ROOT)


def test_where_no_setting_helps_that_is_said(dataset, monkeypatch):
    run = _run(dataset)
    _with(monkeypatch, 1000)
    found = memory.predict(run)
    assert found["ways_out"] == {}
    with pytest.raises(InputError, match="no single setting makes it fit"):
        memory.check(found)


def test_evaluation_that_does_not_fit_wants_a_smaller_batch(dataset, monkeypatch):
    split = {"task__train": "train[:4]", "task__test": "train[4:]", "task__eval_batch_size": 20}
    run = _run(dataset, task__batch_size=1, tuning__strategy="linear_probe", **split)
    need = memory._evaluation(run)
    _with(monkeypatch, need.peak - 1)
    found = memory.predict(run)
    assert found["of"] == "evaluation"
    assert found["ways_out"] == {"task.eval_batch_size=10": need.shared(2)}


def test_little_left_is_a_warning_and_much_is_silence(dataset, monkeypatch, capsys):
    run = _run(dataset)
    peak = memory._training(run, run.phases[0]).peak
    for free, warned in ((2 * peak, False), (peak + 1, True)):
        _with(monkeypatch, 10 * peak, free)
        memory.check(memory.predict(run))
        assert ("may be too little" in capsys.readouterr().out) == warned


def test_inspect_says_what_a_step_needs(shapes):
    folder = {"TLJAX_TEST_FOLDER": str(shapes)}
    found = json.loads(tljax("inspect", "--config=tests/configs_tiny.py", "--json", **folder).stdout)["memory"]
    assert 0 < found["peak"] < found["free"] <= found["has"] and found["ways_out"] == {}


MEMINFO = "MemTotal:       {total} kB\nMemFree:        1 kB\nMemAvailable:   {available} kB\n"


def _host(root: Path, cgroup: str, files: dict[str, str]) -> tuple[int, int]:
    """What is found on a host of 8 GB, 6 of them available, with these control groups."""
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "meminfo").write_text(MEMINFO.format(total=8 * GB // 1024, available=6 * GB // 1024))
    (root / "proc" / "self" / "cgroup").write_text(cgroup)
    for name, content in files.items():
        (root / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "cgroup" / name).write_text(content)
    has, free = device_memory.host_bytes(root / "proc", root / "cgroup")
    return round(has / GB, 3), round(free / GB, 3)


def test_a_host_has_what_its_kernel_says(tmp_path):
    assert _host(tmp_path, "0::/\n", {}) == (8, 6)


@pytest.mark.parametrize("inner", ["max", str(4 * GB)])
def test_a_container_has_its_limit_and_those_around_it(tmp_path, inner):
    files = {
        "jobs/memory.max": str(5 * GB),
        "jobs/memory.current": str(3 * GB),
        "jobs/memory.stat": f"anon 1\ninactive_file {GB}\n",
        "jobs/one/memory.max": inner,
        "jobs/one/memory.current": str(GB),
        "jobs/one/memory.stat": "inactive_file 0\n",
    }
    assert _host(tmp_path, "0::/jobs/one\n", files) == (5 if inner == "max" else 4, 3)


def test_the_first_version_of_control_groups_has_other_names(tmp_path):
    files = {
        "memory/one/memory.limit_in_bytes": str(2 * GB),
        "memory/one/memory.usage_in_bytes": str(GB),
        "memory/one/memory.stat": f"inactive_file 0\ntotal_inactive_file {GB // 2}\n",
        "memory/memory.limit_in_bytes": "9223372036854771712",
        "memory/memory.usage_in_bytes": str(GB),
        "memory/memory.stat": "total_inactive_file 0\n",
    }
    assert _host(tmp_path, "3:cpuset:/\n2:memory:/one\n0::/\n", files) == (2, 1.5)


def test_an_accelerator_has_what_its_allocator_may_take(monkeypatch):
    @dataclasses.dataclass
    class Device:
        used: int
        platform: str = "gpu"

        def memory_stats(self):
            return {"bytes_limit": 60 * GB, "bytes_in_use": self.used}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device(GB), Device(3 * GB)])
    assert device_memory.device_bytes() == (60 * GB, 57 * GB)


def test_cpu_devices_share_their_host(monkeypatch):
    monkeypatch.setattr(device_memory, "host_bytes", lambda: (8 * GB, 6 * GB))
    cpus = jax.devices()[:1] * 4
    monkeypatch.setattr(jax, "local_devices", lambda: cpus)
    assert device_memory.device_bytes() == (2 * GB, 1.5 * GB)
