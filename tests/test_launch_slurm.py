"""The launcher for Slurm on a make-believe one: `sbatch` runs the script that submitit wrote, as Slurm would."""

import argparse
import stat
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
import submitit  # noqa: F401  as it sets up logging it has absl close its stream: not one that a test captures

from tests.conftest import StopAt
from tljax.distributed.preemption import PreemptionSignal, Stopped
from tljax.errors import InputError
from tljax.sweeps.launchers import slurm

SBATCH = """
    import os, pathlib, re, subprocess, sys
    root = pathlib.Path(os.environ["FAKE_SLURM"])
    text = pathlib.Path(sys.argv[1]).read_text()
    number = 7 + len(list(root.glob("*.sh")))
    script = root / f"{number}.sh"
    script.write_text(text)
    array = re.search(r"--array=0-(\\d+)%", text)
    tasks = [f"{number}_{i}" for i in range(int(array[1]) + 1)] if array else [str(number)]
    for task in tasks:
        (root / "queue" / task).write_text("RUNNING")
        base, _, index = task.partition("_")
        environment = os.environ | {"SLURM_JOB_ID": base, "SLURM_CPUS_PER_TASK": "1"}
        if index:
            environment |= {"SLURM_ARRAY_JOB_ID": base, "SLURM_ARRAY_TASK_ID": index}
        again, queued = root / "again" / task, root / "queue" / task
        tries = f"while bash {script}; [ -e {again} ]; do rm {again}; done; rm -f {queued}"
        subprocess.Popen(["bash", "-c", tries], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    print("Submitted batch job", number)
"""
COMMANDS = {
    "sbatch": f"#!{sys.executable}\n{textwrap.dedent(SBATCH)}",
    "srun": '#!/bin/sh\nwhile case "$1" in --output) shift ;; --*) ;; *) false ;; esac; do shift; done\nexec "$@"\n',
    "squeue": """#!/bin/sh
        case "$*" in *--jobs=*) exec cat "$FAKE_SLURM/queue/${*##*--jobs=}" ;; esac
        cd "$FAKE_SLURM/queue"
        for task in *; do state=$(cat "$task" 2>&-) && echo "$task $state"; done
        true
    """,
    "scontrol": '#!/bin/sh\n[ "$1" = requeue ] && touch "$FAKE_SLURM/again/$2"\n',
}
# Counts its tries, then ends as it is told to, by a list of statuses; 0 leaves a result.
WORK = """
import pathlib, sys, time
folder, statuses = pathlib.Path(sys.argv[1]), sys.argv[2].split(",")
folder.mkdir(parents=True, exist_ok=True)
while (folder / "wait").exists():
    time.sleep(0.05)
tries = len(list(folder.glob("try*")))
(folder / f"try{tries}").touch()
if statuses[tries] == "0":
    (folder / "result.json").touch()
sys.exit(int(statuses[tries]))
"""


class Trial:
    """What the launcher asks of a trial."""

    def __init__(self, folder: Path):
        self.folder, self.error = folder, None

    @property
    def result(self) -> bool:
        return (self.folder / "result.json").exists()

    @property
    def tries(self) -> int:
        return len(list(self.folder.glob("try*")))


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """The folder of the make-believe Slurm: the scripts that it was given, and its queue."""
    root = tmp_path / "slurm"
    for name in ("bin", "queue", "again"):
        (root / name).mkdir(parents=True)
    for name, text in COMMANDS.items():
        command = root / "bin" / name
        command.write_text(text)
        command.chmod(command.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("FAKE_SLURM", str(root))
    monkeypatch.setenv("PATH", str(root / "bin"), prepend=":")
    monkeypatch.setattr(slurm, "POLL", 0.05)
    return root


def jobs_of(root: Path, *statuses: str) -> list[SimpleNamespace]:
    """Jobs of a trial each; `statuses` are those of its tries, one after another."""
    trials = [Trial(root / f"trial-{i}") for i in range(len(statuses))]
    commands = [(sys.executable, "-c", WORK, str(p.folder), s) for p, s in zip(trials, statuses, strict=True)]
    return [SimpleNamespace(name=p.folder.name, command=c, trials=(p,)) for p, c in zip(trials, commands, strict=True)]


def launcher(root: Path, *options: str):
    parser = argparse.ArgumentParser()
    slurm.add_arguments(parser)
    values = parser.parse_args([f"--sbatch={option}" for option in options])
    return slurm.launcher(argparse.Namespace(**vars(values), root=root, logs=root / "logs", jobs=2))


def test_jobs_run_and_what_saved_is_requeued_by_itself(tmp_path, cluster, capsys):
    jobs = jobs_of(tmp_path / "runs", "0", "75,75,0", "1,0", "0")
    launcher(tmp_path / "runs")(jobs, PreemptionSignal())
    assert [job.trials[0].tries for job in jobs] == [1, 3, 1, 1]
    assert [job.trials[0].result for job in jobs] == [True, True, False, True]
    assert "Slurm job 7: 4 tasks, 2 at a time" in capsys.readouterr().out
    # What ended without a result is submitted again by the same call, and nothing else.
    launcher(tmp_path / "runs")([job for job in jobs if not job.trials[0].result], PreemptionSignal())
    assert [job.trials[0].tries for job in jobs] == [1, 3, 2, 1]
    assert all(job.trials[0].result for job in jobs)


def test_what_is_in_the_queue_is_not_submitted_again(tmp_path, cluster, capsys):
    jobs = jobs_of(tmp_path / "runs", "0", "0", "0")
    for job in jobs:
        job.trials[0].folder.mkdir(parents=True)
        (job.trials[0].folder / "wait").touch()
    with pytest.raises(Stopped):
        launcher(tmp_path / "runs")(jobs[:2], StopAt(3))
    names = [job.trials[0].folder.name for job in jobs]
    queued = slurm.waiting(names, tmp_path / "runs" / "logs")
    assert queued.keys() == {"trial-0", "trial-1"} and queued["trial-1"].startswith("Slurm job 7_1 ")
    assert slurm.waiting(names, tmp_path) == {}
    (cluster / "queue" / "7_1").unlink()  # cancelled, as far as the queue can tell
    with pytest.raises(Stopped):
        launcher(tmp_path / "runs")(jobs, StopAt(3))
    scripts = [script.read_text() for script in sorted(cluster.glob("*.sh"))]
    assert len(scripts) == 2 and "dependency" not in scripts[0]
    assert "#SBATCH --array=0-1%2" in scripts[1] and "#SBATCH --dependency=afterany:7_0" in scripts[1]
    assert sorted(path.name for path in (cluster / "queue").iterdir()) == ["7_0", "8_0", "8_1"]
    for job in jobs:
        (job.trials[0].folder / "wait").unlink()
    launcher(tmp_path / "runs")(jobs, PreemptionSignal())
    assert "3 jobs are in Slurm's queue already" in capsys.readouterr().out
    assert all(job.trials[0].result for job in jobs) and len(list(cluster.glob("*.sh"))) == 2
    assert [job.trials[0].tries for job in jobs] == [1, 2, 1]  # Slurm's, which the make-believe one did not stop


def test_what_was_cancelled_while_it_saved_is_not_requeued(tmp_path, cluster):
    jobs = jobs_of(tmp_path / "runs", "75,0")
    trial = jobs[0].trials[0]
    trial.folder.mkdir(parents=True)
    (trial.folder / "wait").touch()
    with pytest.raises(Stopped):
        launcher(tmp_path / "runs")(jobs, StopAt(3))
    (cluster / "queue" / "7").write_text("COMPLETING")
    (trial.folder / "wait").unlink()
    launcher(tmp_path / "runs")(jobs, PreemptionSignal())
    assert trial.tries == 1 and not trial.result
    launcher(tmp_path / "runs")(jobs, PreemptionSignal())
    assert trial.tries == 2 and trial.result


def test_options_of_sbatch(tmp_path, cluster):
    options = ("partition=gpu", "time=01:00:00", "gpus-per-node=1", "exclusive", "job-name=mine")
    containers = ("container-image=ghcr.io#org/image:1", "container-mounts=/data", "no-container-mount-home")
    launcher(tmp_path / "runs", *options, *containers)(jobs_of(tmp_path / "runs", "0", "0", "0"), PreemptionSignal())
    script = (cluster / "7.sh").read_text().splitlines()
    for option in (
        "array=0-2%2",
        "cpus-per-task=2",
        "exclusive",
        "gpus-per-node=1",
        "job-name=mine",
        "open-mode=append",
    ):
        assert f"#SBATCH --{option}" in script
    for option in ("partition=gpu", "requeue", "signal=USR1@120", "time=01:00:00"):
        assert f"#SBATCH --{option}" in script
    for option in ("--time", "--job"):
        assert sum(line.startswith(f"#SBATCH {option}") for line in script) == 1
    (srun,) = [line for line in script if line.startswith("srun ")]
    for option in ("'--container-image=ghcr.io#org/image:1'", "--container-mounts=/data", "--no-container-mount-home"):
        assert f" {option} " in srun and not any(option in line for line in script if line.startswith("#SBATCH"))


def test_what_cannot_be_is_told_before_anything_runs(tmp_path, cluster, monkeypatch):
    with pytest.raises(InputError, match="--sbatch=array=1-3: the sweep sets it itself; --jobs says how many"):
        launcher(tmp_path, "array=1-3")
    (cluster / "bin" / "squeue").write_text("#!/bin/sh\necho 'Unable to contact slurm controller' >&2; exit 1\n")
    with pytest.raises(InputError, match="no Slurm answers: Unable to contact slurm controller"):
        launcher(tmp_path)(jobs_of(tmp_path, "0"), PreemptionSignal())
    (cluster / "bin" / "squeue").write_text("#!/bin/sh\n")
    (cluster / "bin" / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition' >&2; exit 1\n")
    with pytest.raises(InputError, match="sbatch: sbatch: error: invalid partition"):
        launcher(tmp_path)(jobs_of(tmp_path, "0"), PreemptionSignal())
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(InputError, match=r"needs submitit: pip install 'tljax\[slurm\]'"):
        launcher(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InputError, match="no sbatch on PATH"):
        launcher(tmp_path)
