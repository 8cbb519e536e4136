"""What a report refuses to compare, and what it leaves out and tells."""

import json

import pandas as pd
import pytest

from tests.report import made
from tests.report.made import compared
from tljax.cli import report
from tljax.errors import InputError


def _two(tmp_path, **other):
    """A run, and another with something else."""
    right = {split: made.hits(0.8, count) for split, count in made.COUNTS.items()}
    values = {name: other.pop(name) for name in list(other) if "__" in name}
    made.leave(tmp_path / "runs" / "a", made.experiment(tuning__strategy="full"), right)
    second = made.experiment(**{"tuning__strategy": "lora", **values})
    return made.leave(tmp_path / "runs" / "b", second, other.pop("right", right), **other)


REFUSED = {
    "content of the data": ({"fingerprint": "another"}, "the content of the data set, by its fingerprint"),
    "classes": ({"classes": ("cat", "cow", "a_bird & co", "$fish")}, r"the classes \('dog' and 'cow'\)"),
    "test split": ({"task__test": "test[:50%]"}, r"the test split, task.test \('test' and 'test\[:50%\]'\)"),
    "validation split": ({"task__validation": "train[100:120]"}, "the validation split"),
    "problem": ({"task__problem": "multi_label"}, "the kind of problem, task.problem"),
    "order of examples": ({"key": "shuffled"}, "the examples that they were judged on, or their order"),
    "twice one seed": ({"tuning__strategy": "full"}, "one setting with one seed, 0: leave out one"),
}


@pytest.mark.parametrize(("other", "message"), REFUSED.values(), ids=REFUSED)
def test_runs_that_cannot_be_compared_are_named(tmp_path, other, message):
    _two(tmp_path, **other)
    with pytest.raises(InputError, match=message) as caught:
        compared(tmp_path / "runs", tmp_path / "out")
    assert "runs/b" in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_names_and_labels_of_examples_must_agree(tmp_path):
    folder = _two(tmp_path)
    path = folder / "evaluations" / "20-test.parquet"
    made.predictions(made.hits(0.8, 200), names="others").save(path, {"data": "content test"})
    with pytest.raises(InputError, match=r"runs/a and .*runs/b differ in the examples"):
        compared(tmp_path / "runs", tmp_path / "out")


def test_a_metric_of_another_definition_is_noticed(tmp_path):
    folder = _two(tmp_path)
    made.edit(folder / "result.json", lambda result: result["splits"]["test"].update(accuracy=0.81))
    with pytest.raises(InputError, match=r"runs/b says test accuracy 0.81, and of its predictions it is 0.8: "):
        compared(tmp_path / "runs", tmp_path / "out")
    made.edit(folder / "result.json", lambda result: result["splits"]["test"].update(accuracy=0.8, kappa=0.5))
    with pytest.raises(InputError, match=r"runs/a and .*runs/b differ in the metrics that there are"):
        compared(tmp_path / "runs", tmp_path / "out")


def test_predictions_that_are_gone_are_asked_for(tmp_path):
    folder = _two(tmp_path)
    (folder / "evaluations" / "20-test.parquet").unlink()
    with pytest.raises(InputError, match=r"has no predictions of test: python -m tljax evaluate --workdir=\S*runs/b"):
        compared(tmp_path / "runs", tmp_path / "out")


def test_seeds_are_paired(tmp_path):
    _two(tmp_path)
    for place, seed in ((0, 5), (1, 6)):
        right = {split: made.hits(0.7, count, seed) for split, count in made.COUNTS.items()}
        made.leave(tmp_path / "runs" / f"c{place}", made.experiment(tuning__strategy="prompt", seed=seed), right)
    with pytest.raises(InputError, match="have no seed in common, and seeds are paired"):
        compared(tmp_path / "runs", tmp_path / "out")


def test_what_is_not_finished_is_told(tmp_path, capsys):
    root = made.sweep(tmp_path / "runs", {"linear_probe": (0.8,), "full": (0.9,)}, seeds=(0,))
    made.leave(root / "half", made.experiment(tuning__strategy="lora"), {}, curve=(0.1,), finished=False)
    made.leave(root / "new", made.experiment(tuning__strategy="lora", seed=1), {}, curve=(), finished=False)
    (root / "alien").mkdir()
    (root / "alien" / "config.json").write_text('{"model_type": "vit"}')
    (root / "failed").mkdir()
    (root / "failed" / "error.json").write_text(json.dumps({"error": "the loss is nan at step 3", "when": "now"}))
    (root / "torn").mkdir()
    (root / "torn" / "config.json").write_text('{"config": ')
    report.main([str(root), f"--out={tmp_path / 'out'}", "--resamples=200"])
    output = capsys.readouterr().out
    assert "half: not finished: at step 20 of 20" in output and "new: not finished: no step logged" in output
    assert "4 runs, 5 more left out" in output
    page = (tmp_path / "out" / "report.html").read_text()
    assert "failed: failed: the loss is nan at step 3" in output
    for name in ("half", "new", "alien", "failed", "torn"):
        assert page.count(f"<code>{root / name}</code>") == 1


def test_a_run_without_the_split_is_left_out_and_told(tmp_path, capsys):
    _two(tmp_path, task__test="")
    report.main([str(tmp_path / "runs"), f"--out={tmp_path / 'out'}", "--resamples=200"])
    output = capsys.readouterr().out
    assert "runs/b: no test split (task.test is empty)" in output and "1 runs, 1 more left out" in output
    assert "no test split (task.test is empty)" in (tmp_path / "out" / "report.html").read_text()
    with pytest.raises(InputError, match=r"runs/b has no test split .*: set it, or give --split=validation"):
        compared(tmp_path / "runs" / "b", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_without_out_the_folder_is_report(tmp_path, monkeypatch, capsys):
    _two(tmp_path)
    monkeypatch.chdir(tmp_path)
    report.main(["runs", "--resamples=200"])
    assert (tmp_path / "report" / "report.html").exists() and "report/report.html" in capsys.readouterr().out


def test_a_method_that_is_not_tested_yet_is_left_out_and_told(tmp_path):
    root = made.sweep(tmp_path / "runs", {"linear_probe": (0.8, 0.9), "full": (0.9, 0.9)}, seeds=(0, 1))
    for seed in (0, 1):
        right = {"validation": made.hits(0.9, 40, seed)}
        made.leave(root / f"lora-{seed}", made.experiment(tuning__strategy="lora", seed=seed), right)
    (section,) = compared(root, tmp_path / "out")
    assert [method.name for method in section.methods] == ["linear_probe", "full"]
    (left,) = section.left_out
    assert left.name == "lora" and left.reason.startswith("2 of the 2 chosen runs have no test metrics yet: python -m ")
    assert "<b>lora</b> is not in the table" in (tmp_path / "out" / "report.html").read_text()
    assert len(pd.read_csv(tmp_path / "out" / "runs.csv")) == 10


def test_an_evaluation_that_came_later_counts(tmp_path):
    folder = _two(tmp_path)
    result = json.loads((folder / "result.json").read_text())
    later = {"split": "test", "step": 20, **result["splits"].pop("test")}
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "evaluations" / "20-test.json").write_text(json.dumps(later))
    (section,) = compared(tmp_path / "runs", tmp_path / "out")
    assert [method.name for method in section.methods] == ["lora", "full"] and section.methods[0].mean == pytest.approx(
        0.8
    )
