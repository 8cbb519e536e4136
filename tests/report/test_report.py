"""What a report says of runs, against numpy by hand; what it chooses; and what it refuses to compare."""

import argparse
import io
import json
import shlex

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tests import configs_sweep
from tests.report import made
from tests.report.conftest import ACCURACIES
from tljax import report, sweep
from tljax.config import Experiment
from tljax.errors import InputError
from tljax.flags import parse_experiment
from tljax.report import curves, tables
from tljax.report.runs import read
from tljax.report.section import Options

NAMES = ["linear_probe", "last_k", "full"]  # by parameters that train


def _report(folder, out, *more, **options):
    found, _ = report.report([str(folder), *map(str, more)], out, Options(draws=500, **options))
    return found


def test_the_table_is_what_numpy_says(runs, tmp_path):
    (found,) = _report(runs, tmp_path, test="t")
    assert [method.name for method in found.methods] == NAMES and found.baseline.name == "linear_probe"
    p = []
    for method in found.methods:
        wanted = np.array(ACCURACIES[method.name])
        assert [run.seed for run in method.runs] == [0, 1, 2]
        np.testing.assert_allclose(method.values, wanted, atol=1e-12)
        assert method.mean == pytest.approx(wanted.mean()) and method.deviation == pytest.approx(wanted.std(ddof=1))
        assert method.low < wanted.mean() < method.high
        if method.against:
            assert method.against.difference == pytest.approx((wanted - ACCURACIES["linear_probe"]).mean())
            p.append(stats.ttest_rel(method.values, found.baseline.values).pvalue)
            assert method.against.p == p[-1]
    least, most = sorted(p)
    adjusted = sorted(method.against.adjusted for method in found.methods if method.against)
    assert adjusted == pytest.approx([2 * least, max(2 * least, most)])
    assert found.methods[1].cost("trainable_params") == 50_000 and found.methods[1].seconds == pytest.approx(16.0)


def test_a_setting_is_chosen_by_validation_alone(runs, tmp_path):
    (found,) = _report(runs, tmp_path)
    assert found.tried == 6 and not found.peeked and len(found.runs) == 18
    for method in found.methods:
        assert [setting.words for setting in method.settings] == ["learning_rate=0.001", "learning_rate=0.01"]
        assert [setting.chosen for setting in method.settings] == [False, True]
        np.testing.assert_allclose(method.settings[0].validation, [0.5] * 3)
    text = (tmp_path / "methods.md").read_text()
    assert "18 finished runs of 3 methods in 6 settings." in text
    assert "Of the 2 settings of each method, the one with the best mean accuracy" in text
    assert "(train[100:140]) was chosen; no other split" in text
    assert "Compared are the 9 runs of these settings, on the test split of 200 examples (test)." in text
    assert "The test split was looked at for no run that was not chosen." in text


def test_a_look_at_the_test_split_is_told(tmp_path):
    root = made.sweep(tmp_path / "runs", {"linear_probe": (0.8, 0.9), "full": (0.7, 0.8)}, seeds=(0, 1))
    for rate, strategy in ((3e-3, "full"), (1e-4, "linear_probe")):
        for seed in (0, 1):
            right = {split: made.hits(0.4, count, seed) for split, count in made.COUNTS.items()}
            tried = made.experiment(tuning__strategy=strategy, optim__learning_rate=rate, seed=seed)
            made.leave(root / f"peeked-{strategy}-{seed}", tried, right)
    (found,) = _report(root, tmp_path / "out")
    assert sorted(run.name.rpartition("/")[2] for run in found.peeked) == [
        f"peeked-{strategy}-{seed}" for strategy in ("full", "linear_probe") for seed in (0, 1)
    ]
    told = "The test split was looked at for 4 runs that were not chosen."
    assert told in (tmp_path / "out" / "methods.md").read_text()
    page = (tmp_path / "out" / "report.html").read_text()
    assert told in page and page.count("tested, not chosen") == 4


def test_the_best_is_bold_and_what_is_not_told_from_it_is_marked(runs, tmp_path):
    (found,) = _report(runs, tmp_path, test="t")
    assert [(method.best, method.tied) for method in found.methods] == [(False, False), (True, False), (False, True)]
    markdown = (tmp_path / "methods.md").read_text()
    assert "| **92.0 ± 2.0** |" in markdown and "| 92.0 ± 1.0 ≈ |" in markdown and "| 81.0 ± 1.0 |" in markdown
    latex = (tmp_path / "methods.tex").read_text()
    assert r"\textbf{92.0 $\pm$ 2.0}" in latex and r"\underline{92.0 $\pm$ 1.0}" in latex


def test_equal_digits_are_a_tie_whatever_the_test_says(tmp_path):
    steady = {"linear_probe": (0.800, 0.800, 0.800), "full": (0.801, 0.801, 0.801)}
    for strategy, of in steady.items():
        for seed, accuracy in enumerate(of):
            right = {"validation": made.hits(0.5, 40, seed), "test": made.hits(accuracy, 4000, seed)}
            made.leave(tmp_path / "runs" / f"{strategy}-{seed}", made.experiment(tuning__strategy=strategy, seed=seed), right)
    (found,) = _report(tmp_path / "runs", tmp_path / "out", test="t")
    probe, full = found.methods
    assert full.best and not probe.tied and full.against.adjusted == 0.0  # 80.0 and 80.1
    for seed in range(3):
        right = {"validation": made.hits(0.5, 40, seed), "test": made.hits(0.8008, 5000, seed)}
        made.leave(tmp_path / "more" / f"lora-{seed}", made.experiment(tuning__strategy="lora", seed=seed), right)
        right["test"] = made.hits(0.8012, 5000, seed)
        made.leave(tmp_path / "more" / f"full-{seed}", made.experiment(tuning__strategy="full", seed=seed), right)
    (found,) = _report(tmp_path / "more", tmp_path / "out", test="t")
    assert found.methods[0].tied and found.methods[1].best and found.methods[1].against.adjusted == 0.0


def test_the_default_test_is_the_paired_bootstrap(runs, tmp_path):
    (found,) = _report(runs, tmp_path)
    for method in found.methods[1:]:
        assert method.against.p == 2 / 501 and method.against.low > 0.02  # no draw of 500 is on the other side
        assert method.against.adjusted == pytest.approx(4 / 501)
    assert found.methods[2].tied


def test_single_seeds_have_mcnemar(tmp_path):
    for strategy, accuracy in (("linear_probe", 0.8), ("full", 0.9)):
        right = {"validation": made.hits(0.5, 40), "test": made.hits(accuracy, 200, len(strategy))}
        made.leave(tmp_path / strategy, made.experiment(tuning__strategy=strategy), right)
    (found,) = _report(tmp_path / "linear_probe", tmp_path / "out", tmp_path / "full", test="mcnemar")
    mine, others = made.hits(0.9, 200, 4), made.hits(0.8, 200, 12)
    gained, lost = (mine & ~others).sum(), (others & ~mine).sum()
    wanted = stats.binomtest(int(gained), int(gained + lost)).pvalue
    assert found.methods[1].against.p == pytest.approx(wanted, rel=1e-12)
    assert np.isnan(found.methods[0].deviation) and "± is" not in (tmp_path / "out" / "methods.md").read_text()
    with pytest.raises(InputError, match="a t-test needs two"):
        _report(tmp_path / "linear_probe", tmp_path / "out", tmp_path / "full", test="t")


def test_one_run_is_a_report_too(runs, tmp_path):
    (found,) = _report(runs / "full-0.01-1", tmp_path)
    assert found.baseline is None and len(found.runs) == 1 and found.best.mean == pytest.approx(0.92)
    assert "difference" not in (tmp_path / "methods.md").read_text()


def test_another_baseline_and_metric(runs, tmp_path):
    (found,) = _report(runs, tmp_path, baseline="full", metric="loss")
    assert found.baseline.name == "full" and found.options.metric == "loss"
    best = min(found.methods, key=lambda method: method.mean)
    assert best.best and found.scale.less_is_better
    losses = [run.metrics("test")["loss"] for run in best.runs]
    assert best.mean == pytest.approx(np.mean(losses))
    assert f"{best.mean:.4f} ± " in (tmp_path / "methods.md").read_text()
    with pytest.raises(InputError, match=r"no method 'lora'.* there are: linear_probe; last_k; full"):
        _report(runs, tmp_path, baseline="lora")
    with pytest.raises(InputError, match="no metric 'accuracies'; there are: accuracy, "):
        _report(runs, tmp_path, metric="accuracies")


def test_csv_reads_back_equal(runs, tmp_path):
    found = _report(runs, tmp_path)
    for name, made_of in (("methods.csv", tables.methods(found)), ("runs.csv", tables.runs(found))):
        back = pd.read_csv(tmp_path / name, float_precision="round_trip", keep_default_na=True)
        plain = made_of.astype(object).where(made_of.notna(), None)
        pd.testing.assert_frame_equal(back.astype(object).where(back.notna(), None), plain, check_dtype=False)
    table = pd.read_csv(tmp_path / "runs.csv")
    assert len(table) == 18 and table["workdir"].nunique() == 18 and table["chosen"].sum() == 9
    assert table["test_accuracy"].notna().sum() == 9
    tested = table[table["chosen"] & (table["method"] == "last_k")]
    assert tested["test_accuracy"].tolist() == pytest.approx(ACCURACIES["last_k"])


def test_latex_escapes_what_it_must(tmp_path):
    names = {"a_b": "50%_of $x$", "c": "R&D #1"}
    for place, weights in enumerate(names.values()):
        right = {"validation": made.hits(0.5, 40), "test": made.hits(0.8 + 0.05 * place, 200)}
        made.leave(tmp_path / "runs" / str(place), made.experiment(backbone__weights=weights), right)
    _report(tmp_path / "runs", tmp_path / "out")
    latex = (tmp_path / "out" / "methods.tex").read_text()
    rows = [line for line in latex.splitlines() if line.startswith("linear")]
    assert rows[0].startswith(r"linear\_probe, weights=50\%\_of \$x\$ & ")
    assert rows[1].startswith(r"linear\_probe, weights=R\&D \#1 & ")
    assert all(row.count(" & ") == 10 for row in rows)
    assert r"test accuracy, \%" in latex and r"\toprule" in latex and r"\bottomrule" in latex
    assert "±" not in latex.split(r"\begin{tabular}")[1]


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
    "no test split": ({"task__test": ""}, r"runs/b has no test split \(task.test is empty\)"),
    "problem": ({"task__problem": "multi_label"}, "the kind of problem, task.problem"),
    "order of examples": ({"key": "shuffled"}, "the examples that they were judged on, or their order"),
    "twice one seed": ({"tuning__strategy": "full"}, "one setting with one seed, 0: leave out one"),
}


@pytest.mark.parametrize(("other", "told"), REFUSED.values(), ids=REFUSED)
def test_runs_that_cannot_be_compared_are_named(tmp_path, other, told):
    _two(tmp_path, **other)
    with pytest.raises(InputError, match=told) as caught:
        _report(tmp_path / "runs", tmp_path / "out")
    assert "runs/b" in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_names_and_labels_of_examples_must_agree(tmp_path):
    folder = _two(tmp_path)
    path = folder / "evaluations" / "20-test.parquet"
    made.predictions(made.hits(0.8, 200), names="others").save(path, {"data": "content test"})
    with pytest.raises(InputError, match=r"runs/a and .*runs/b differ in the examples"):
        _report(tmp_path / "runs", tmp_path / "out")


def test_a_metric_of_another_definition_is_noticed(tmp_path):
    folder = _two(tmp_path)
    made.edit(folder / "result.json", lambda result: result["splits"]["test"].update(accuracy=0.81))
    with pytest.raises(InputError, match=r"runs/b says test accuracy 0.81, and of its predictions it is 0.8: "):
        _report(tmp_path / "runs", tmp_path / "out")
    made.edit(folder / "result.json", lambda result: result["splits"]["test"].update(accuracy=0.8, kappa=0.5))
    with pytest.raises(InputError, match=r"runs/a and .*runs/b differ in the metrics that there are"):
        _report(tmp_path / "runs", tmp_path / "out")


def test_predictions_that_are_gone_are_asked_for(tmp_path):
    folder = _two(tmp_path)
    (folder / "evaluations" / "20-test.parquet").unlink()
    with pytest.raises(InputError, match=r"has no predictions of test: python -m tljax evaluate --workdir=\S*runs/b"):
        _report(tmp_path / "runs", tmp_path / "out")


def test_seeds_are_paired(tmp_path):
    _two(tmp_path)
    for place, seed in ((0, 5), (1, 6)):
        right = {split: made.hits(0.7, count, seed) for split, count in made.COUNTS.items()}
        made.leave(tmp_path / "runs" / f"c{place}", made.experiment(tuning__strategy="last_k", seed=seed), right)
    with pytest.raises(InputError, match="have no seed in common, and seeds are paired"):
        _report(tmp_path / "runs", tmp_path / "out")


def test_what_is_not_finished_is_told(tmp_path, capsys):
    root = made.sweep(tmp_path / "runs", {"linear_probe": (0.8,), "full": (0.9,)}, seeds=(0,))
    made.leave(root / "half", made.experiment(tuning__strategy="lora"), {}, curve=(0.1,), finished=False)
    made.leave(root / "new", made.experiment(tuning__strategy="lora", seed=1), {}, curve=(), finished=False)
    (root / "alien").mkdir()
    (root / "alien" / "config.json").write_text('{"model_type": "vit"}')
    (root / "torn").mkdir()
    (root / "torn" / "config.json").write_text('{"config": ')
    report.main([str(root), f"--out={tmp_path / 'out'}", "--resamples=200"])
    told = capsys.readouterr().out
    assert "half: not finished: at step 20 of 20" in told and "new: not finished: no step logged" in told
    assert "4 runs, 4 more not finished" in told
    page = (tmp_path / "out" / "report.html").read_text()
    for name in ("half", "new", "alien", "torn"):
        assert page.count(f"<code>{root / name}</code>") == 1


def test_a_method_that_is_not_tested_yet_is_left_out_and_told(tmp_path):
    root = made.sweep(tmp_path / "runs", {"linear_probe": (0.8, 0.9), "full": (0.9, 0.9)}, seeds=(0, 1))
    for seed in (0, 1):
        right = {"validation": made.hits(0.9, 40, seed)}
        made.leave(root / f"lora-{seed}", made.experiment(tuning__strategy="lora", seed=seed), right)
    (found,) = _report(root, tmp_path / "out")
    assert [method.name for method in found.methods] == ["linear_probe", "full"]
    (left,) = found.left_out
    assert left.name == "lora" and left.reason.startswith("2 of the 2 chosen runs have no test metrics yet: python -m ")
    assert "<b>lora</b> is not in the table" in (tmp_path / "out" / "report.html").read_text()
    assert len(pd.read_csv(tmp_path / "out" / "runs.csv")) == 10


def test_an_evaluation_that_came_later_counts(tmp_path):
    folder = _two(tmp_path)
    result = json.loads((folder / "result.json").read_text())
    later = {"split": "test", "step": 20, **result["splits"].pop("test")}
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "evaluations" / "20-test.json").write_text(json.dumps(later))
    (found,) = _report(tmp_path / "runs", tmp_path / "out")
    assert [method.name for method in found.methods] == ["lora", "full"] and found.methods[0].mean == pytest.approx(0.8)


def test_each_data_set_has_its_table(tmp_path):
    for dataset in ("shapes", "textures"):
        for strategy, accuracy in (("linear_probe", 0.8), ("full", 0.9)):
            right = {split: made.hits(accuracy, count) for split, count in made.COUNTS.items()}
            tried = made.experiment(tuning__strategy=strategy, task__dataset=dataset)
            made.leave(tmp_path / "runs" / dataset / strategy, tried, right, fingerprint=dataset)
    found = _report(tmp_path / "runs", tmp_path / "out")
    assert [section.title for section in found] == ["shapes", "textures"]
    assert [[method.name for method in section.methods] for section in found] == [["linear_probe", "full"]] * 2
    assert (tmp_path / "out" / "methods.md").read_text().count("\n## textures\n") == 1
    assert pd.read_csv(tmp_path / "out" / "methods.csv")["data"].tolist() == ["shapes"] * 2 + ["textures"] * 2


def test_methods_that_differ_in_examples_alone_make_a_curve(tmp_path):
    for fraction in (0.1, 0.5, 1.0):
        for strategy in ("linear_probe", "full"):
            right = {split: made.hits(0.5 + 0.4 * fraction, count) for split, count in made.COUNTS.items()}
            tried = made.experiment(tuning__strategy=strategy, task__fraction=fraction)
            made.leave(tmp_path / "runs" / f"{strategy}-{fraction}", tried, right)
    (found,) = _report(tmp_path / "runs", tmp_path / "out")
    families = curves.by_training_examples(found)
    assert list(families) == ["linear_probe", "full"]
    sizes = [[method.runs[0].resolved.train_examples for method in of] for of in families.values()]
    assert sizes == [[10, 50, 100]] * 2
    assert "Data efficiency" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize("problem", ["multi_label", "regression"])
def test_other_problems(tmp_path, problem):
    for strategy, accuracy in (("linear_probe", 0.8), ("full", 0.9)):
        for seed in (0, 1):
            right = {split: made.hits(accuracy, count, seed) for split, count in made.COUNTS.items()}
            tried = made.experiment(tuning__strategy=strategy, seed=seed, task__problem=problem)
            made.leave(tmp_path / "runs" / f"{strategy}-{seed}", tried, right, curve=())
    (found,) = _report(tmp_path / "runs", tmp_path / "out", tuned=("optim",))
    assert found.options.metric == {"multi_label": "mean_average_precision", "regression": "mae"}[problem]
    assert found.best.name == "full"
    if problem == "regression":
        assert found.best.mean == pytest.approx(0.9 * 0.1 + 0.1 * 0.5, abs=1e-6)


def test_a_runs_command_says_all_of_it(tmp_path):
    """The command line of a run, parsed as `train` does, is the run's experiment."""
    tried = made.experiment(
        seed=3,
        tuning__strategy="phases",
        tuning__phases=({"strategy": "linear_probe", "share": 0.2}, {"strategy": "lora", "rank": 4}),
        tuning__group_rates=(("head", 10.0),),
        optim__learning_rate=0.1 + 0.2,
        optim__clip_norm=1e-5,
        optim__b2=0.95,
        task__augment=("flip", "shift"),
        task__class_weights=(1.0, 2.5),
        task__validation="train[100:140]",
        head__bias=False,
        batch_norm__frozen_groups="batch",
        backbone__weights="a name with 'quotes' and spaces",
    )
    made.TRAINABLE["phases"] = 5
    made.leave(tmp_path / "run", tried, {"test": made.hits(0.8, 200)})
    ((run,), _) = read([str(tmp_path / "run")])
    words = shlex.split(run.command)
    assert words[:4] == ["python", "-m", "tljax", "train"] and words[5] == "--workdir=runs/again"
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir")
    parsed, _ = parse_experiment(parser, words[4:])
    assert parsed == tried


def test_the_same_runs_give_the_same_bytes(runs, tmp_path):
    for out in ("one", "two"):
        report.report([str(runs)], tmp_path / out, Options(draws=200), ["svg", "png"])
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len(files) == 5 + 2 * 8
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


def test_the_page_has_every_run_once_and_nothing_from_elsewhere(runs, tmp_path):
    _report(runs, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert page.count('<details class="run"') == 18
    for folder in runs.iterdir():
        assert page.count(f"<dd><code>{folder}</code></dd>") == 1
    targets = {part.split('"')[0] for part in page.split(' id="')[1:]}
    links = {part.split('"')[0] for part in page.split('href="#')[1:]}
    assert links <= targets and len(page.split(' id="')) - 1 == len(targets)  # each id once
    assert not [part for part in ("<link rel=\"stylesheet", "src=\"http", "url(http", "@import") if part in page]
    assert "$fish" in page and "a_bird &amp; co" in page


def test_five_hundred_runs(tmp_path):
    right = {split: made.hits(0.8, count) for split, count in made.COUNTS.items()}
    for number in range(500):
        k, rest = divmod(number, 20)
        rate, seed = divmod(rest, 5)
        tried = made.experiment(tuning__strategy="last_k", tuning__k=k + 1, optim__learning_rate=10.0 ** -rate, seed=seed)
        kept = right if rate == 0 else {"validation": right["validation"]}
        made.leave(tmp_path / "runs" / f"{number:03d}", tried, kept)
    (found,) = _report(tmp_path / "runs", tmp_path / "out")
    assert len(found.runs) == 500 and len(found.methods) == 25


def test_a_real_sweep_ends_in_a_report(shapes, lively_weights, tmp_path, monkeypatch):
    monkeypatch.setenv("TLJAX_TEST_FOLDER", str(shapes))
    monkeypatch.setenv("TLJAX_TEST_WEIGHTS", str(lively_weights))
    config = configs_sweep.get_config("pretrained")
    config.task.update(crop="centre", augment=())
    points = sweep.points(Experiment.from_config(config), configs_sweep.sweep(), tmp_path / "runs")
    assert sweep.sweep(points) == []
    (found,) = _report(tmp_path / "runs", tmp_path / "out")
    assert [method.name for method in found.methods] == ["linear_probe", "last_k, k=1", "last_k, k=2"]
    assert [len(method.settings) for method in found.methods] == [2, 1, 1]
    for method in found.methods:
        for run, judged in zip(method.runs, method.judged, strict=True):
            assert run.metrics("test")["accuracy"] == judged.value
    table = pd.read_csv(io.BytesIO((tmp_path / "out" / "methods.csv").read_bytes()))
    assert table["seeds"].astype(str).tolist() == ["0 1", "0", "0"]
