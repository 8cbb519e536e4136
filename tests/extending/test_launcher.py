"""`--launcher=module:name`: a sweep runs by a launcher of a user's own."""

import argparse
import sys

import pytest

from tests.report import made
from tljax.config.search_space import grid
from tljax.distributed.preemption import PreemptionSignal, Stopped
from tljax.errors import InputError
from tljax.sweeps.launchers import registry
from tljax.sweeps.launchers.base import make_jobs
from tljax.sweeps.trial import make_trials

NAME = "my_launcher:Journal"


def _options(tmp_path, *flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    registry.add_arguments(parser)
    return argparse.Namespace(**vars(parser.parse_args(flags)), root=tmp_path, logs=tmp_path / "logs")


def test_it_gets_every_trial_once_in_jobs_that_can_run_anywhere(tmp_path):
    overrides = grid({"tuning.strategy": ("last_k",), "tuning.k": (1, 2)})
    trials = make_trials(made.experiment(), overrides, tmp_path)
    program = "import sys; sys.exit(sys.argv[-1] != '--conclude')"
    jobs = make_jobs(trials, (sys.executable, "-c", program), test=False)
    assert jobs[0].command[-1] == f"--trials={trials[0].name}"
    launch = registry.make_launcher(_options(tmp_path, f"--launcher={NAME}"))
    launch(jobs, PreemptionSignal())
    launch(make_jobs(trials[1:], (sys.executable, "-c", program), test=True), PreemptionSignal())
    expected = [f"{trial.name} 1 1" for trial in trials] + [f"{trials[1].name}-test 1 0"]
    assert (tmp_path / "logs" / "journal.txt").read_text().splitlines() == expected


def test_it_stops_when_it_is_told(tmp_path):
    class Set(PreemptionSignal):
        def reason(self) -> str:
            return "a test"

    launch = registry.make_launcher(_options(tmp_path, f"--launcher={NAME}"))
    jobs = make_jobs(make_trials(made.experiment(), [{"seed": 1}], tmp_path), ("false",), test=False)
    with pytest.raises(Stopped):
        launch(jobs, Set())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((f"--launcher={NAME}", "--jobs=2"), "Journal runs a job at a time"),
        (("--launcher=my_launcher:Jornal",), "did you mean Journal"),
        (("--launcher=my_launchr:Journal",), "no module my_launchr"),
    ],
)
def test_what_it_cannot_do_is_an_error_before_anything_is_trained(tmp_path, flags, message):
    with pytest.raises(InputError, match=message):
        registry.make_launcher(_options(tmp_path, *flags))


def test_an_unknown_name_is_answered_with_those_that_there_are(tmp_path):
    with pytest.raises(argparse.ArgumentError, match=r"no launcher 'slrm': there are local, print, slurm, or give"):
        _options(tmp_path, "--launcher=slrm")
