"""JSON that tljax writes and reads: a number that is not finite is null, and nothing is chosen by it."""

import json
import math

import numpy as np
import pytest

from tljax.checkpoints.workdir import Workdir
from tljax.errors import InputError
from tljax.evals.predictions import Predictions
from tljax.io import strict_json
from tljax.problems.registry import PROBLEMS
from tljax.reports import checks
from tljax.reports.runs import Run


def test_a_number_that_is_not_finite_is_null():
    value = {"a": math.nan, "b": [1.5, -math.inf, (np.float64("inf"), "NaN")], "c": {"d": 2}, "e": None}
    text = strict_json.dumps(value, indent=1)
    content = json.loads(text, parse_constant=pytest.fail)
    assert content == {"a": None, "b": [1.5, None, [None, "NaN"]], "c": {"d": 2}, "e": None}
    assert strict_json.dumps({"x": [0.1]}) == json.dumps({"x": [0.1]})


def test_files_of_a_run_are_json(tmp_path):
    """r2 of one example is not a number: it is null in the log, the result and the evaluations."""
    metrics = Predictions(PROBLEMS["regression"], ("x",), ["a"], np.array([[1.0]]), np.array([[1.5]])).metrics()
    assert math.isnan(metrics["r2"])
    folder = Workdir(tmp_path)
    folder.append({"step": 1, "split": "validation", "seconds": 1.0, "input_seconds": 0.0, **metrics})
    folder.finish({"splits": {"test": metrics}, "steps": 1, "wall_seconds": 1.0, "input_seconds": 0.0})
    folder.save_evaluation("1-test", metrics)
    for name in ("metrics.jsonl", "result.json", "evaluations/1-test.json"):
        content = json.loads((tmp_path / name).read_text(), parse_constant=pytest.fail)
        assert content.get("splits", {}).get("test", content)["r2"] is None
    assert folder.metrics[0]["r2"] is None and folder.rewind(1) == (1.0, 0.0)
    run = object.__new__(Run)
    vars(run).update(name="runs/a", folder=folder, result=folder.result)
    assert math.isnan(run.metrics("test")["r2"]) and run.metrics("test")["mae"] == 0.5
    with pytest.raises(InputError, match="runs/a: r2 of test is not a number"):
        checks.check_metric(run, "r2", "test", math.nan)
    checks.check_metric(run, "mae", "test", 0.5)


@pytest.mark.parametrize("value", [math.nan, None])
def test_no_setting_is_chosen_by_what_is_not_a_number(value):
    with pytest.raises(InputError, match="mae is not a number, so that nothing is best by it"):
        PROBLEMS["regression"].headline.quality({"mae": value})
    with pytest.raises(InputError, match="accuracy is not among the metrics"):
        PROBLEMS["single_label"].headline.quality({"mae": 1.0})
