"""Runs of a sweep end as if each had been trained by itself, and what they share is computed once."""

import json

import numpy as np
import pytest

from tests.configs_sweep import get_config
from tests.configs_sweep import sweep as overrides
from tljax import features, selection, sweep
from tljax.config import Experiment
from tljax.errors import InputError
from tljax.points import points
from tljax.predictions import load
from tljax.train import train
from tljax.weights.sources import cache_dir


def _experiment(shapes, weights, monkeypatch, **values) -> Experiment:
    monkeypatch.setenv("TLJAX_TEST_FOLDER", str(shapes))
    monkeypatch.setenv("TLJAX_TEST_WEIGHTS", str(weights))
    found = get_config("pretrained")
    found.task.update(crop="centre", augment=())
    found.update(values)
    return Experiment.from_config(found)


def test_each_run_is_its_own(shapes, lively_weights, tmp_path, monkeypatch):
    monkeypatch.setenv("TLJAX_CACHE", str(tmp_path / "cache"))
    experiment, built = _experiment(shapes, lively_weights, monkeypatch), []
    computed = features.computed

    def counting(run, state, split, stops, **options):
        before = set((cache_dir() / "features").rglob("0*"))
        found = computed(run, state, split, stops, **options)
        if set((cache_dir() / "features").rglob("0*")) != before:
            built.append((split.name, list(stops)))
        return found

    monkeypatch.setattr(features, "computed", counting)
    found = points(experiment, overrides(), tmp_path / "runs")
    assert len({point.folder for point in found}) == 6
    assert sweep.sweep(found) == []
    # One pass per split, with all boundaries: before block 1, before block 2, and the pooled features.
    assert built == [("train[:16]", [2, 3, 5]), ("train[16:20]", [2, 3, 5]), ("train[20:]", [2, 3, 5])]
    for number, point in enumerate(found):
        alone = tmp_path / "alone" / str(number)
        wanted = train(Experiment.from_config(_uncached(point.experiment)), alone)
        for split in ("validation", "test"):
            theirs, _ = load(alone / "evaluations" / f"12-{split}.parquet")
            mine, _ = load(point.folder / "evaluations" / f"12-{split}.parquet")
            np.testing.assert_allclose(mine.logits, theirs.logits, rtol=1e-4, atol=1e-5)
            assert point.result["splits"][split]["accuracy"] == wanted["splits"][split]["accuracy"]
        assert point.result["frozen_digest_after"] == wanted["frozen_digest_after"]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("result.json")}
    assert sweep.sweep(found) == []  # nothing is left to do
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("result.json")} == before
    assert len(selection.chosen(found)) == 3


def _uncached(experiment: Experiment) -> dict:
    from tljax.fields import to_dict

    return to_dict(experiment) | {"cache": "off"}


def test_a_bad_point_is_found_before_any_is_trained(shapes, tiny_weights, tmp_path, monkeypatch):
    experiment = _experiment(shapes, tiny_weights, monkeypatch)
    for wrong, told in (
        ([{"optim.learning_rat": 1.0}], "learning_rate"),
        ([{"optin.learning_rate": 1.0}], "optim"),
        ([{"seed": 1}, {"seed": 1}], "twice"),
        ([], "no run"),
    ):
        with pytest.raises(InputError, match=told):
            points(experiment, wrong, tmp_path)


def test_a_failed_point_does_not_stop_the_others(shapes, tiny_weights, tmp_path, monkeypatch, capsys):
    experiment = _experiment(shapes, tiny_weights, monkeypatch)
    wrong = [{"tuning.strategy": "last_k", "tuning.k": 9}, {"tuning.strategy": "last_k", "tuning.k": 1}]
    found = points(experiment, wrong, tmp_path)
    assert sweep.sweep(found) == [found[0]]
    assert found[1].result and not found[0].result
    assert "failed: " in capsys.readouterr().out
    assert json.loads((found[1].folder / "config.json").read_text())["config"]["tuning"]["k"] == 1
