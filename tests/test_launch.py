"""The scripts of `launch/`: what of them can be run or checked on one machine."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import PATIENCE, ROOT
from tests.test_stopping import _at
from tljax.distributed.preemption import SAVED

LAUNCH = ROOT / "launch"


def test_shell_scripts_are_clean():
    scripts = [path.name for path in LAUNCH.iterdir() if path.suffix in (".sh", ".sbatch")]
    assert {"local.sh", "slurm.sbatch", "tpu_vm.sh"} <= set(scripts)
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([shellcheck, *scripts], cwd=LAUNCH, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_every_script_only_calls_tljax():
    for path in LAUNCH.iterdir():
        if path.suffix in (".sh", ".sbatch"):
            assert len(re.findall(r'(?:"\S*python\S*"|\.venv/bin/python) -m tljax\b', path.read_text())) == 1, path
        assert len(path.read_text().splitlines()) < 100 or path.suffix == ".md"


def test_the_jobset_starts_as_many_processes_as_it_says_and_names_their_first():
    jobset = yaml.safe_load((LAUNCH / "kubernetes.yaml").read_text())
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    assert container["command"] == ["python", "-m", "tljax", "train"]
    flags = dict(entry.removeprefix("--").split("=", 1) for entry in container["args"])
    assert spec["completionMode"] == "Indexed"
    assert (job["replicas"], spec["parallelism"], spec["completions"]) == (1, 2, int(flags["num-processes"]))
    variables = {entry["name"]: entry for entry in container["env"]}
    assert flags["coordinator"] == "$(COORDINATOR)" and flags["process-id"] == "$(PROCESS)"
    # A pod's name is JOBSET-JOB-REPLICA-INDEX, below the JobSet's own.
    host, port = variables["COORDINATOR"]["value"].split(":")
    name = jobset["metadata"]["name"]
    assert host == f"{name}-{job['name']}-0-0.{name}"
    assert {"containerPort": int(port)} in container["ports"]
    index = variables["PROCESS"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert index == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    volumes = {entry["name"] for entry in spec["template"]["spec"]["volumes"]}
    (mount,) = container["volumeMounts"]
    assert mount["name"] in volumes and flags["workdir"].startswith(mount["mountPath"])


def test_a_tpu_slice_runs_the_same_command_on_every_host(tmp_path):
    gcloud = tmp_path / "gcloud"
    gcloud.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    gcloud.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TPU": "slice", "ZONE": "zone"}
    command = [LAUNCH / "tpu_vm.sh", "train", "--config=a.py", "--config.task.train=train[:80%]"]
    arguments = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    assert arguments[:-1] == ["compute", "tpus", "tpu-vm", "ssh", "slice", "--zone=zone", "--worker=all"]
    on_host = arguments[-1].removeprefix("--command=cd tljax && .venv/bin/python ")
    parsed = subprocess.run(["bash", "-c", f"printf '%s\\n' {on_host}"], capture_output=True, text=True).stdout
    assert parsed.splitlines() == ["-m", "tljax", "train", *command[2:], "--coordinator=auto"]


@pytest.fixture
def environment(shapes, tiny_weights) -> dict[str, str]:
    tests = {"TLJAX_TEST_FOLDER": str(shapes), "TLJAX_TEST_WEIGHTS": str(tiny_weights), "PYTHON": sys.executable}
    return os.environ | tests


def _local(workdir: Path, environment: dict[str, str], *flags: str) -> subprocess.Popen:
    command = [LAUNCH / "local.sh", "2", "train", "--config=tests/configs_tiny.py:pretrained", *flags]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*command, f"--workdir={workdir}"], cwd=ROOT, env=environment, **pipes)


def _output(process: subprocess.Popen, status: int) -> str:
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == status, output[-3000:]
    return output


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("bash"), reason="no bash here")
def test_two_local_processes_train_stop_and_go_on(tmp_path, environment):
    run, length = tmp_path / "run", ("--config.steps=60", "--config.eval_every=30")
    process = _local(run, environment, *length)
    _at(run, 10, process)
    process.send_signal(signal.SIGTERM)
    assert _output(process, SAVED).count("by SIGTERM: the same command goes on") == 2
    output = _output(_local(run, environment, *length), 0)
    assert "on 2 cpu device(s)" in output and "resuming" in output
    assert json.loads((run / "result.json").read_text())["steps"] == 60


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash here")
def test_local_processes_end_with_the_highest_of_their_statuses(tmp_path, environment):
    process = _local(tmp_path / "run", environment, "--config.task.batch_size=3")
    assert _output(process, 2).count("task.batch_size=3 cannot be shared by 2 devices: use 2 or 4") == 2
