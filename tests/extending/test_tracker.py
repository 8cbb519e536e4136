"""`config.log.trackers`: a run's metrics go to a tracker of a user's own."""

import json

import pytest
from etils import epath
from my_tracker import Journal

from tests.configs_tiny import get_config
from tests.conftest import StopAt
from tljax.checkpoints.workdir import Workdir
from tljax.config.schema import Experiment
from tljax.distributed.preemption import Stopped
from tljax.errors import InputError
from tljax.training.trackers import Trackers
from tljax.training.trainer import train

NAME = "my_tracker:Journal"
FAILS = "tests.extending.test_tracker:Fails"


class Fails(Journal):
    """A service that is gone after its first step."""

    def log(self, step, split, metrics):
        raise ConnectionError("the service is gone")


def _experiment(shapes, tiny_weights, monkeypatch, *trackers: str) -> Experiment:
    monkeypatch.setenv("TLJAX_TEST_FOLDER", str(shapes))
    monkeypatch.setenv("TLJAX_TEST_WEIGHTS", str(tiny_weights))
    config = get_config("pretrained")
    config.update(steps=4, eval_every=2)
    config.log.trackers = trackers
    return Experiment.from_config(config)


def test_it_gets_what_the_workdir_has_and_goes_on_after_a_stop(shapes, tiny_weights, tmp_path, monkeypatch, capsys):
    experiment = _experiment(shapes, tiny_weights, monkeypatch, NAME, FAILS)
    with pytest.raises(Stopped):
        train(experiment, tmp_path, StopAt(2))
    # Another tracker is no other run.
    result = train(_experiment(shapes, tiny_weights, monkeypatch, NAME), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert [row["started"] for row in rows if "started" in row] == [0, 0, 2]
    assert [row["result"] for row in rows if "result" in row] == [None, json.loads(json.dumps(result))]
    logged = [row for row in rows if "step" in row]
    assert [(row["step"], row["split"]) for row in logged] == [
        *((1, "train"), (2, "train"), (2, "validation")),
        *((3, "train"), (4, "train"), (4, "validation")),
    ]
    for row, line in zip(logged, Workdir(tmp_path).metrics, strict=True):
        assert row.items() <= line.items()
    assert f"log.trackers={FAILS}: no more (ConnectionError: the service is gone)" in capsys.readouterr().out
    assert not (tmp_path / "events").exists() and not list(tmp_path.glob("events*"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tensorbord", "no log.trackers 'tensorbord' .did you mean tensorboard"),
        ("my_tracker:Jornal", "did you mean Journal"),
        ("my_trackr:Journal", "no module my_trackr"),
    ],
)
def test_what_is_not_there_is_named_with_the_nearest(tmp_path, name, message):
    with pytest.raises(InputError, match=message):
        Trackers([name], epath.Path(tmp_path), active=False)
