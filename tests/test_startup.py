"""What a start loads, and that compiled programs on disk survive a kill."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from filelock import FileLock

from tests.conftest import ROOT, tiny_run
from tests.flips import flip
from tljax.cli.convert import convert
from tljax.config.schema import BackboneConfig
from tljax.core import model
from tljax.core.model import Network
from tljax.core.programs import CompiledPrograms
from tljax.core.run import Run
from tljax.io import compilation_cache
from tljax.training.trainer import train
from tljax.weights import pretrained

VERBS = ("train", "evaluate", "predict", "inspect", "convert", "report", "models", "configs", "completion")
# What a single kind of data, weights or output needs is loaded where that is met.
RARE = {"sklearn", "matplotlib", "pandas", "tensorflow", "tensorflow_datasets", "onnx", "datasets", "torch"}
RARE |= {"tensorboardX", "huggingface_hub"}

PROGRAM = """
import os
import signal
import sys
from pathlib import Path

from tljax.io import compilation_cache as compiled

compiled.keep(Path(sys.argv[1]))
import jax
from etils import epath

compiled.check_programs()

def cut(self, content):
    Path(self).open("wb").write(content[: len(content) // 2])
    os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[2:] == ["kill"]:
    type(epath.Path("/")).write_bytes = cut
found = {"hits": 0, "misses": 0}
def count(name, **_):
    for kind in found:
        found[kind] += name == f"/jax/compilation_cache/cache_{kind}"
jax.monitoring.register_event_listener(count)

def wave(x):
    return jax.numpy.sin(x) @ x

print(jax.jit(wave)(jax.numpy.arange(3.0)), found["hits"], found["misses"])
"""


def _modules(code: str) -> set[str]:
    code += "; import sys; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


def test_help_loads_neither_jax_nor_numpy():
    loaded = _modules("import tljax.__main__ as main; main.main(['--help'])")
    assert not loaded & {"jax", "numpy", "ml_collections", "tljax.config.schema"}


def test_no_verb_loads_what_only_some_runs_use():
    assert not _modules("import " + ", ".join(f"tljax.cli.{verb}" for verb in VERBS)) & RARE


def test_prepared_images_are_opened_and_split_without_pandas(shapes):
    """Which `pyarrow.parquet.read_table` imports, and whatever is given an array of numpy's, to no use."""
    for pack in (False, True):
        make = f"tiny_run('folder:{shapes}', task__pack={pack}, task__train='train[:16]', task__test='train[16:]')"
        tiny_run(f"folder:{shapes}", task__pack=pack)
        loaded = _modules(f"from tests.conftest import tiny_run; {make}")
        assert "tensorflow_datasets" in loaded and "pandas" not in loaded


def test_what_a_verb_imports_is_not_searched_for_garbage():
    code = "import gc, sys, tljax.__main__ as main; main._imported('tljax.cli.train'); print(gc.isenabled())"
    code += "; print(len(gc.get_objects()) / (len(gc.get_objects()) + gc.get_freeze_count()) < 0.01)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["True", "True"]


def _start(folder: Path, *arguments: str, status: int = 0, **environment: str) -> tuple[str, str]:
    """stdout and stderr of a process that compiles a few programs; the user has set nothing of jax's but this."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    command = [sys.executable, "-c", PROGRAM, str(folder), *arguments]
    done = subprocess.run(command, cwd=ROOT, env=plain | environment, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    return done.stdout.strip(), done.stderr


def _programs(folder: Path) -> set[str]:
    return {path.name.removesuffix("-cache") for path in folder.glob("*-cache")}


def test_the_second_start_compiles_nothing(tmp_path):
    first, _ = _start(tmp_path)
    value, hits, misses = first.rsplit(" ", 2)
    assert int(hits) == 0 and int(misses) == len(_programs(tmp_path)) > 0
    assert _start(tmp_path)[0] == f"{value} {misses} 0"


def test_a_run_of_another_seed_compiles_nothing(shapes):
    misses = []

    def count(name: str, **_: object) -> None:
        misses.append(name.endswith("/cache_misses"))

    def begin(seed: int) -> Run:
        jax.clear_caches()
        run = tiny_run(f"folder:{shapes}", seed=seed)
        run.programs.train_step(run.phases[0])
        return run

    first = begin(0).init_state()
    jax.monitoring.register_event_listener(count)
    try:
        second = begin(1).init_state()
    finally:
        jax.monitoring.unregister_event_listener(count)
    assert misses and not any(misses)
    kernels = [state.params["backbone"]["block_0"]["mlp"]["fc1"]["kernel"] for state in (first, second)]
    assert not np.array_equal(*kernels)


@pytest.mark.parametrize("strategy, cache, beside", [("full", "off", []), ("linear_probe", "on", ["trace_gradients"])])
def test_a_run_traces_each_program_once(strategy, cache, beside, shapes, tmp_path, monkeypatch):
    """What the plan is counted from is what then trains and evaluates; and a frozen run's with nothing frozen."""
    traced = []

    def noted(kind: type, name: str) -> None:
        original = getattr(kind, name)

        def trace(self, *of, **also):
            traced.append(name)
            return original(self, *of, **also)

        monkeypatch.setattr(kind, name, trace)

    noted(CompiledPrograms, "trace_train_step")
    noted(CompiledPrograms, "trace_eval_step")
    noted(CompiledPrograms, "trace_gradients")
    noted(Network, "_init")
    run = tiny_run(f"folder:{shapes}", tuning__strategy=strategy, cache=cache)
    train(run.experiment, tmp_path, prepared=run)
    assert sorted(traced) == sorted(["_init", "trace_eval_step", "trace_train_step", *beside])


def test_weights_are_converted_and_read_once_beside_the_plan(shapes, tiny_weights, tmp_path, monkeypatch, capfd):
    folder, calls = tmp_path / "timm", []
    convert(BackboneConfig(weights=str(tiny_weights)), folder, "timm")
    read, restore = pretrained.read, pretrained.restore

    def slow(*of):
        calls.append("read")
        time.sleep(1.5)  # for the plan to ask for them meanwhile
        return read(*of)

    def restored(*of):
        found, main = restore(*of), threading.current_thread() is threading.main_thread()
        calls.append("restore, waited for" if main else "restore")
        return found

    monkeypatch.setenv("TLJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(pretrained, "read", slow)
    monkeypatch.setattr(model, "restore", restored)
    run = tiny_run(f"folder:{shapes}", "", backbone__weights=str(folder))
    train(run.experiment, tmp_path / "run", prepared=run)
    assert calls == ["read", "restore"]
    assert "another process" not in capfd.readouterr().err


def test_a_program_whose_writing_was_cut_short_is_compiled_again_once(tmp_path):
    first, _ = _start(tmp_path)
    value, _, number = first.rsplit(" ", 2)
    (name,) = (name for name in _programs(tmp_path) if name.startswith("jit_wave"))
    program = tmp_path / f"{name}-cache"
    program.write_bytes(program.read_bytes()[:100])
    (tmp_path / f"{name}-atime").unlink()
    second, told = _start(tmp_path)
    assert second == f"{value} {int(number) - 1} 1" and "Error" not in told
    third, told = _start(tmp_path)
    assert third == f"{value} {number} 0" and "Error" not in told


def test_a_program_with_a_flipped_bit_is_compiled_again_once(tmp_path):
    value, _, number = _start(tmp_path)[0].rsplit(" ", 2)
    (program,) = tmp_path.glob("jit_wave*-cache")
    flip(program, np.random.default_rng(0))
    assert _start(tmp_path)[0] == f"{value} {int(number) - 1} 1"
    assert _start(tmp_path)[0] == f"{value} {number} 0"


def test_a_process_killed_as_it_writes_a_program_leaves_none_that_is_damaged(tmp_path):
    _start(tmp_path, "kill", status=-signal.SIGKILL)
    (cut,) = _programs(tmp_path)
    assert not (tmp_path / f"{cut}-atime").exists()
    found, told = _start(tmp_path)
    assert found.split()[1] == "0" and "Error" not in told
    assert "Error" not in _start(tmp_path)[1]


def test_a_folder_of_the_users_own_is_left_alone(tmp_path):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "jit_x-cache").write_bytes(b"as jax writes it without a limit")
    _start(tmp_path / "ours", JAX_COMPILATION_CACHE_DIR=str(theirs))
    assert "jit_x" in _programs(theirs) and not list(theirs.glob("*-atime"))
    assert not (tmp_path / "ours").exists()


def test_mending_waits_for_who_is_writing(tmp_path):
    (tmp_path / "whole-cache").touch()
    (tmp_path / "whole-atime").touch()
    (tmp_path / "cut-cache").touch()
    with FileLock(tmp_path / ".lockfile"):
        assert compilation_cache.mend(tmp_path, timeout=0.1) == []
    assert compilation_cache.mend(tmp_path) == ["cut"]
    assert _programs(tmp_path) == {"whole"}
    assert compilation_cache.mend(tmp_path / "none") == []
