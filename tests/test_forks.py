"""Forked processes are as those that `subprocess` starts."""

import json
import os
import signal
import subprocess
import sys

import pytest

from tests import forks
from tests.conftest import ROOT

SAYS = """
import json, os, sys, jax
print(json.dumps({
    "argv": sys.argv, "cwd": os.getcwd(), "variable": os.environ.get("A_VARIABLE"), "home": "HOME" in os.environ,
    "parent": os.getppid(),
    "session": os.getsid(0) == os.getpid(), "in": sys.stdin.read(),
    "plain": jax.config.values["jax_disable_most_optimizations"], "devices": jax.device_count(),
    "tensor": float(jax.numpy.ones(3).sum()),
}))
print("a warning", file=sys.stderr)
"""


def test_a_process_is_as_its_command_and_options_say(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "HOME"}
    environment |= {"A_VARIABLE": "é", "JAX_NUM_CPU_DEVICES": "3"}
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    started, whole = {}, {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    for kind in (forks.Popen, forks._Real):
        command = [sys.executable, "-c", SAYS, "an argument"]
        process = kind(command, cwd=tmp_path, env=environment, start_new_session=True, **whole)
        out, err = process.communicate("some words")
        assert process.returncode == 0, err
        assert err == "a warning\n"
        started[kind] = json.loads(out)
    assert started[forks.Popen] == started[forks._Real]
    assert started[forks.Popen]["parent"] == os.getpid()


def test_a_process_has_imported_what_takes_long_and_has_no_backend():
    code = "import sys; from jax._src import xla_bridge as b; "
    code += "print('tljax.cli.train' in sys.modules, bool(b._backends))"
    assert forks.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).stdout == b"True False\n"


@pytest.mark.parametrize("code, status", [("sys.exit(7)", 7), ("1 / 0", 1), ("os._exit(9)", 9), ("", 0)])
def test_an_exit_status_is_passed_on(code, status):
    code = f"import atexit, os, sys; atexit.register(print, 'the end'); print('begun', flush=True); {code}"
    done = forks.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == status
    assert done.stdout.split("\n")[:-1] == ["begun", *["the end"] * (status != 9)]
    assert ("ZeroDivisionError" in done.stderr) == (status == 1)
    with pytest.raises(subprocess.CalledProcessError):
        forks.run([sys.executable, "-c", "raise SystemExit(3)"], cwd=ROOT, check=True)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it(number):
    code = "import time; print('begun', flush=True); time.sleep(60)"
    process = forks.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "begun\n"
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.05)
    process.send_signal(number)
    assert process.wait(10) == -number
    assert ("KeyboardInterrupt" in process.communicate()[1]) == (number == signal.SIGINT)


def test_modules_and_scripts_are_run(tmp_path):
    (tmp_path / "script.py").write_text("import sys; print(__name__, sys.argv[1:], sys.path[0])")
    options = {"cwd": tmp_path, "capture_output": True, "text": True, "check": True}
    for command in (["script.py", "x"], ["-m", "script", "x"]):
        command = [sys.executable, *command]
        assert forks.run(command, **options).stdout == subprocess.run(command, **options).stdout


def test_what_asks_for_another_python_is_not_forked():
    code = "import sys; print('jax' in sys.modules)"
    began = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    for options in ({"env": os.environ | {"PYTHONPATH": "/a/path"}}, {"env": began}):
        done = forks.run([sys.executable, "-c", code], capture_output=True, text=True, **options)
        assert done.stdout == "False\n"
    assert forks.run(["echo", "x"], capture_output=True, text=True).stdout == "x\n"
