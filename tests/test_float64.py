"""Targets of a regression that float32 would merge: dates and times, from a table to what `predict` prints."""

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data import made
from tljax import __main__
from tljax.checkpoints.workdir import Workdir
from tljax.cli.convert import convert
from tljax.config import schema
from tljax.config.schema import BackboneConfig, Experiment, TaskConfig
from tljax.core.resolve import _targets
from tljax.core.run import Run
from tljax.data import registry
from tljax.data.labels import Labels
from tljax.data.splits import cut
from tljax.errors import InputError
from tljax.evals import predictions
from tljax.evals.evaluate import evaluate
from tljax.training.console_output import training_row
from tljax.training.trainer import train

TABLES = Path(__file__).parent / "cases" / "tables"
JULIAN = np.array([2460000.50 + i / 100 for i in range(8)])


def _column(name: str) -> np.ndarray:
    rows = list(csv.reader((TABLES / name).read_text().splitlines()))[1:]
    return np.array([float(value) for _, value in rows])


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_text_weights) -> Path:
    """A run on eight dates a hundredth of a day apart."""
    found = schema.default()
    found.steps, found.backbone.weights, found.eval_every = 4, str(tiny_text_weights), 0
    found.task.update(dataset=f"csv:{TABLES / 'julian_dates.csv'}", max_tokens=8, token_multiple=8, batch_size=8)
    found.task.update(problem="regression", label=("date",), train="train", validation="", test="")
    found.optim.update(name="sgd", learning_rate=0.05)
    found.head.init = "truncated_normal"
    workdir = tmp_path_factory.mktemp("run") / "dates"
    train(Experiment.from_config(found), workdir)
    return workdir


@pytest.mark.parametrize(("name", "label"), [("julian_dates.csv", "date"), ("unix_seconds.csv", "seconds")])
def test_eight_targets_stay_eight(name, label, tmp_path, monkeypatch):
    monkeypatch.setenv("TLJAX_CACHE", str(tmp_path))
    keys = TaskConfig(dataset=f"csv:{TABLES / name}", problem="regression", label=(label,), text=("text",))
    task = registry.load(keys)
    split = cut(task, "train")
    assert split.labels.dtype == np.float64
    np.testing.assert_array_equal(np.sort(split.labels[:, 0]), _column(name))
    import tensorflow_datasets as tfds

    (info,) = (tmp_path / "datasets").glob("csv-*/dataset_info.json")
    stored = tfds.builder_from_directory(info.parent).as_data_source(split="train")  # as anyone else reads it
    assert [one["label"][0] for one in stored] == split.labels[:, 0].tolist()
    ((mean, spread),) = _targets(split)
    assert (mean, spread) == pytest.approx((split.labels.mean(), split.labels.std()), rel=1e-15)
    if label == "date":
        assert mean == pytest.approx(2460000.535, abs=1e-9) and spread == pytest.approx(0.022913, abs=1e-6)


def test_predictions_and_metrics_are_float64_end_to_end(finished):
    dates = evaluate(finished, split="train")
    kept, _ = predictions.load(finished / "evaluations" / "4-train.parquet")
    assert kept.logits.dtype == kept.labels.dtype == np.float64
    np.testing.assert_allclose(np.sort(kept.labels[:, 0]), JULIAN, rtol=1e-15)
    assert np.abs(kept.logits - 2460000.535).max() < 0.1
    assert dates["mae"] == np.abs(kept.logits - kept.labels).mean()
    stored = pq.read_schema(finished / "evaluations" / "4-train.parquet")
    assert stored.field("logits").type.value_type == stored.field("label").type.value_type == pa.float64()
    ((mean, spread),) = Workdir(finished).load()[1].targets
    assert mean == pytest.approx(2460000.535, abs=1e-9) and spread == pytest.approx(0.022913, abs=1e-6)


def test_a_run_without_validation_shows_its_training_metric(finished):
    folder = Workdir(finished)
    ((name, value, note),) = training_row(Run(*folder.load(), tokenizer=folder.tokenizer), folder)
    assert name == "train scaled mae" and 0 < float(value) < 5
    assert note == "in standard deviations, the batch of step 4"


def test_printed_values_are_told_apart(finished, tmp_path, capsys):
    (tmp_path / "x.txt").write_text("a\nthe film\ngood plot plot\nvery dull\n")
    for kind in ("text", "csv", "jsonl"):
        assert __main__.main(["predict", f"--workdir={finished}", f"--format={kind}", str(tmp_path / "x.txt")]) == 0
        lines = capsys.readouterr().out.splitlines()
        read = {
            "text": lambda line: line.rpartition(" ")[2],
            "csv": lambda line: line.rpartition(",")[2],
            "jsonl": lambda line: json.loads(line)["values"]["date"],
        }[kind]
        values = [float(read(line)) for line in lines[kind == "csv" :]]
        assert len(set(values)) == 4 and np.abs(np.array(values) - 2460000.535).max() < 1
        assert len({np.float32(value) for value in values}) < 4  # which is what was printed before


def test_values_that_float32_merges_are_no_head_of_another_library(finished, tmp_path):
    with pytest.raises(InputError, match=r"values of 2460000\.535 ± 0\.0229 run together in float32"):
        convert(BackboneConfig(weights=str(finished)), tmp_path / "converted")
    assert not (tmp_path / "converted").exists()


def test_predictions_that_an_older_version_stored_are_read(tmp_path):
    labels, logits = np.float32([[0.1], [2.5]]), np.float32([[0.2], [2.25]])
    digest = hashlib.sha256(json.dumps(["regression", ("x",), ["a", "b"]]).encode())
    for array in (labels, logits):
        digest.update(array.data)
    table = pa.table(
        {
            "id": ["a", "b"],
            "label": pa.array(labels.tolist(), pa.list_(pa.float32())),
            "logits": pa.array(logits.tolist(), pa.list_(pa.float32(), 1)),
        }
    )
    facts = {"step": 3, "problem": "regression", "classes": ["x"], "sha256": digest.hexdigest()}
    pq.write_table(table.replace_schema_metadata({"tljax": json.dumps(facts)}), tmp_path / "x.parquet")
    kept, facts = predictions.load(tmp_path / "x.parquet")
    assert facts == {"step": 3} and kept.logits.dtype == kept.labels.dtype == np.float64
    np.testing.assert_array_equal(kept.labels, labels)
    np.testing.assert_array_equal(kept.logits, logits)


def test_a_constant_target_has_no_spread_of_rounding():
    split = cut(made.task({"train": made.base([[0.1, 1.0]] * 7)}, ("x", "y"), "regression"), "train")
    assert 0 < split.labels[:, 0].std() < 1e-16
    assert [spread for _, spread in _targets(split)] == [1.0, 1.0]


@pytest.mark.parametrize("values", [(1e200, -1e200), (1e-200, 2e-200)])
def test_targets_beyond_float64_are_refused(values):
    split = cut(made.task({"train": made.base([[value] for value in values])}, ("x",), "regression"), "train")
    with pytest.raises(InputError, match=r"made: x has the standard deviation (inf|0) in float64; take another unit"):
        _targets(split)


@pytest.mark.parametrize("value", ["1e39", 16777217, "2460000.51", np.float64(0.1)])
def test_a_number_is_kept_in_full(value):
    assert Labels("regression", ("x",), "values").encode([value]) == (float(value),)


@pytest.mark.parametrize("value", ["nan", "inf", "1e999", 10**400, None, "x", ""])
def test_what_is_no_finite_number_is_refused(value):
    with pytest.raises(InputError, match="which is no finite number"):
        Labels("regression", ("x",), "values").encode([value])
