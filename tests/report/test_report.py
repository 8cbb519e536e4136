"""What a report says of runs, against numpy by hand, and what it chooses."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tests.conftest import tljax
from tests.report import made
from tests.report.conftest import ACCURACIES
from tests.report.made import compared
from tljax.errors import InputError
from tljax.reports import figures

NAMES = ["linear_probe", "prompt", "full"]  # by parameters that train


def test_the_table_is_what_numpy_says(runs, tmp_path):
    (section,) = compared(runs, tmp_path, test="t")
    assert [method.name for method in section.methods] == NAMES and section.baseline.name == "linear_probe"
    p = []
    for method in section.methods:
        expected = np.array(ACCURACIES[method.name])
        assert [run.seed for run in method.runs] == [0, 1, 2]
        np.testing.assert_allclose(method.values, expected, atol=1e-12)
        assert method.mean == pytest.approx(expected.mean()) and method.deviation == pytest.approx(expected.std(ddof=1))
        assert method.low < expected.mean() < method.high
        if method.against:
            assert method.against.difference == pytest.approx((expected - ACCURACIES["linear_probe"]).mean())
            p.append(stats.ttest_rel(method.values, section.baseline.values).pvalue)
            assert method.against.p == p[-1]
    least, most = sorted(p)
    adjusted = sorted(method.against.adjusted for method in section.methods if method.against)
    assert adjusted == pytest.approx([2 * least, max(2 * least, most)])
    assert section.methods[1].cost("trainable_params") == 50_000 and section.methods[1].seconds == pytest.approx(16.0)


def test_a_setting_is_chosen_by_validation_alone(runs, tmp_path):
    (section,) = compared(runs, tmp_path)
    assert section.tried == 6 and not section.peeked and len(section.runs) == 18
    for method in section.methods:
        assert [setting.words for setting in method.settings] == ["learning_rate=0.001", "learning_rate=0.01"]
        assert [setting.chosen for setting in method.settings] == [False, True]
        np.testing.assert_allclose(method.settings[0].validation, [0.5] * 3)
    text = (tmp_path / "methods.md").read_text()
    assert "18 finished runs of 3 methods in 6 settings." in text
    assert "Of each method's settings (2), the one with the best mean accuracy" in text
    assert "(train[100:140]) was chosen; no other split" in text
    assert "Compared are the 9 runs of these settings, on the test split of 200 examples (test)." in text
    assert "The test split was looked at for no run that was not chosen." in text


def test_settings_stand_in_the_order_of_their_numbers(tmp_path):
    rates = (1e-2, 3e-4, 1e-3, 1e-5)
    root = made.sweep(tmp_path / "runs", {"linear_probe": (0.8,)}, rates=rates, seeds=(0,))
    (section,) = compared(root, tmp_path / "out")
    words = [setting.words for setting in section.methods[0].settings]
    assert words == [f"learning_rate={rate:g}" for rate in sorted(rates)]


def test_a_look_at_the_test_split_is_told(tmp_path):
    root = made.sweep(tmp_path / "runs", {"linear_probe": (0.8, 0.9), "full": (0.7, 0.8)}, seeds=(0, 1))
    for rate, strategy in ((3e-3, "full"), (1e-4, "linear_probe")):
        for seed in (0, 1):
            right = {split: made.hits(0.4, count, seed) for split, count in made.COUNTS.items()}
            tried = made.experiment(tuning__strategy=strategy, optim__learning_rate=rate, seed=seed)
            made.leave(root / f"peeked-{strategy}-{seed}", tried, right)
    (section,) = compared(root, tmp_path / "out")
    assert sorted(run.name.rpartition("/")[2] for run in section.peeked) == [
        f"peeked-{strategy}-{seed}" for strategy in ("full", "linear_probe") for seed in (0, 1)
    ]
    text = "The test split was looked at for 4 runs that were not chosen."
    assert text in (tmp_path / "out" / "methods.md").read_text()
    page = (tmp_path / "out" / "report.html").read_text()
    assert text in page and page.count("tested, not chosen") == 4


def test_the_best_is_bold_and_what_is_not_told_from_it_is_marked(runs, tmp_path):
    (section,) = compared(runs, tmp_path, test="t")
    assert [(method.best, method.tied) for method in section.methods] == [(False, False), (True, False), (False, True)]
    markdown = (tmp_path / "methods.md").read_text()
    assert "| **92.0 ± 2.0** |" in markdown and "| 92.0 ± 1.0 ≈ |" in markdown and "| 81.0 ± 1.0 |" in markdown
    latex = (tmp_path / "methods.tex").read_text()
    assert r"\textbf{92.0 $\pm$ 2.0}" in latex and r"\underline{92.0 $\pm$ 1.0}" in latex


def test_equal_digits_are_a_tie_whatever_the_test_says(tmp_path):
    steady = {"linear_probe": (0.800, 0.800, 0.800), "full": (0.801, 0.801, 0.801)}
    for strategy, of in steady.items():
        for seed, accuracy in enumerate(of):
            right = {"validation": made.hits(0.5, 40, seed), "test": made.hits(accuracy, 4000, seed)}
            made.leave(
                tmp_path / "runs" / f"{strategy}-{seed}", made.experiment(tuning__strategy=strategy, seed=seed), right
            )
    (section,) = compared(tmp_path / "runs", tmp_path / "out", test="t")
    probe, full = section.methods
    assert full.best and not probe.tied and full.against.adjusted == 0.0  # 80.0 and 80.1
    for seed in range(3):
        right = {"validation": made.hits(0.5, 40, seed), "test": made.hits(0.8008, 5000, seed)}
        made.leave(tmp_path / "more" / f"lora-{seed}", made.experiment(tuning__strategy="lora", seed=seed), right)
        right["test"] = made.hits(0.8012, 5000, seed)
        made.leave(tmp_path / "more" / f"full-{seed}", made.experiment(tuning__strategy="full", seed=seed), right)
    (section,) = compared(tmp_path / "more", tmp_path / "out", test="t")
    assert section.methods[0].tied and section.methods[1].best and section.methods[1].against.adjusted == 0.0


def test_the_default_test_is_the_paired_bootstrap(runs, tmp_path):
    (section,) = compared(runs, tmp_path)
    for method in section.methods[1:]:
        assert method.against.p == 2 / 501 and method.against.low > 0.02  # no draw of 500 is on the other side
        assert method.against.adjusted == pytest.approx(4 / 501)
    assert section.methods[2].tied


def test_single_seeds_have_mcnemar(tmp_path):
    for strategy, accuracy in (("linear_probe", 0.8), ("full", 0.9)):
        right = {"validation": made.hits(0.5, 40), "test": made.hits(accuracy, 200, len(strategy))}
        made.leave(tmp_path / strategy, made.experiment(tuning__strategy=strategy), right)
    (section,) = compared(tmp_path / "linear_probe", tmp_path / "out", tmp_path / "full", test="mcnemar")
    first, second = made.hits(0.9, 200, 4), made.hits(0.8, 200, 12)
    gained, lost = (first & ~second).sum(), (second & ~first).sum()
    expected = stats.binomtest(int(gained), int(gained + lost)).pvalue
    assert section.methods[1].against.p == pytest.approx(expected, rel=1e-12)
    assert np.isnan(section.methods[0].deviation) and "± is" not in (tmp_path / "out" / "methods.md").read_text()
    with pytest.raises(InputError, match="a t-test needs two"):
        compared(tmp_path / "linear_probe", tmp_path / "out", tmp_path / "full", test="t")


def test_one_run_is_a_report_too(runs, tmp_path):
    (section,) = compared(runs / "full-0.01-1", tmp_path)
    assert section.baseline is None and len(section.runs) == 1 and section.best.mean == pytest.approx(0.92)
    assert "difference" not in (tmp_path / "methods.md").read_text()


def test_another_baseline_and_metric(runs, tmp_path):
    (section,) = compared(runs, tmp_path, baseline="full", metric="loss")
    assert section.baseline.name == "full" and section.options.metric == "loss"
    best = min(section.methods, key=lambda method: method.mean)
    assert best.best and section.scale.less_is_better
    losses = [run.metrics("test")["loss"] for run in best.runs]
    assert best.mean == pytest.approx(np.mean(losses))
    assert f"{best.mean:.4f} ± " in (tmp_path / "methods.md").read_text()
    with pytest.raises(InputError, match=r"no method 'lora'.* there are: linear_probe; prompt; full"):
        compared(runs, tmp_path, baseline="lora")
    with pytest.raises(InputError, match="no metric 'accuracies'; there are: accuracy, "):
        compared(runs, tmp_path, metric="accuracies")


def test_each_data_set_has_its_table(tmp_path):
    for dataset in ("shapes", "textures"):
        for strategy, accuracy in (("linear_probe", 0.8), ("full", 0.9)):
            right = {split: made.hits(accuracy, count) for split, count in made.COUNTS.items()}
            tried = made.experiment(tuning__strategy=strategy, task__dataset=dataset)
            made.leave(tmp_path / "runs" / dataset / strategy, tried, right, fingerprint=dataset)
    sections = compared(tmp_path / "runs", tmp_path / "out")
    assert [section.title for section in sections] == ["shapes", "textures"]
    assert [[method.name for method in section.methods] for section in sections] == [["linear_probe", "full"]] * 2
    assert (tmp_path / "out" / "methods.md").read_text().count("\n## textures\n") == 1
    assert pd.read_csv(tmp_path / "out" / "methods.csv")["data"].tolist() == ["shapes"] * 2 + ["textures"] * 2


def test_methods_that_differ_in_examples_alone_make_a_curve(tmp_path):
    for fraction in (0.1, 0.5, 1.0):
        for strategy in ("linear_probe", "full"):
            right = {split: made.hits(0.5 + 0.4 * fraction, count) for split, count in made.COUNTS.items()}
            tried = made.experiment(tuning__strategy=strategy, task__fraction=fraction)
            made.leave(tmp_path / "runs" / f"{strategy}-{fraction}", tried, right)
    (section,) = compared(tmp_path / "runs", tmp_path / "out")
    families = figures.by_training_examples(section)
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
    (section,) = compared(tmp_path / "runs", tmp_path / "out", tuned=("optim",))
    assert section.options.metric == {"multi_label": "mean_average_precision", "regression": "mae"}[problem]
    assert section.best.name == "full"
    if problem == "regression":
        assert section.best.mean == pytest.approx(0.9 * 0.1 + 0.1 * 0.5, abs=1e-6)


@pytest.mark.slow
def test_hundreds_of_runs(tmp_path):
    right = {split: made.hits(0.8, count) for split, count in made.COUNTS.items()}
    for number in range(300):
        k, rest = divmod(number, 20)
        rate, seed = divmod(rest, 5)
        tried = made.experiment(tuning__strategy="last_k", tuning__k=k + 1, optim__learning_rate=10.0**-rate, seed=seed)
        kept = right if rate == 3 else {"validation": right["validation"]}  # of equal settings the least rate counts
        made.leave(tmp_path / "runs" / f"{number:03d}", tried, kept)
    (section,) = compared(tmp_path / "runs", tmp_path / "out")
    assert len(section.runs) == 300 and len(section.methods) == 15


@pytest.mark.slow
def test_a_real_sweep_ends_in_a_report(shapes, lively_weights, tmp_path):
    where = {"TLJAX_TEST_FOLDER": str(shapes), "TLJAX_TEST_WEIGHTS": str(lively_weights)}
    keys = ("--config.task.crop=center", "--config.task.augment=()")
    tljax("sweep", "--config=tests/configs_sweep.py:pretrained", f"--root={tmp_path / 'runs'}", *keys, **where)
    text = tljax("report", tmp_path / "runs", f"--out={tmp_path / 'out'}", "--figures=pdf").stdout
    assert f"6 runs: {tmp_path / 'out'}/report.html" in text
    table = pd.read_csv(tmp_path / "out" / "methods.csv", dtype={"seeds": str})
    assert table["method"].tolist() == ["linear_probe", "last_k, k=1", "last_k, k=2"]
    assert table["settings_tried"].tolist() == [2, 1, 1] and table["seeds"].tolist() == ["0 1", "0", "0"]
    runs = pd.read_csv(tmp_path / "out" / "runs.csv")
    for _, row in table.iterrows():
        chosen = runs[(runs["method"] == row["method"]) & runs["chosen"]]
        assert row["mean"] == pytest.approx(chosen["test_accuracy"].mean())
        results = [json.loads((Path(workdir) / "result.json").read_text()) for workdir in chosen["workdir"]]
        assert chosen["test_accuracy"].tolist() == [result["splits"]["test"]["accuracy"] for result in results]
    assert (tmp_path / "out" / "figures" / "parameters.pdf").stat().st_size > 5000
