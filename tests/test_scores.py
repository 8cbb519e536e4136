import tracemalloc
import warnings
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import expit, softmax
from sklearn import metrics as theirs

from tljax.errors import InputError
from tljax.metrics import bootstrap, classification
from tljax.problems.registry import PROBLEMS


def _case(problem: str, n: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that know something, of halves so that some tie, and labels."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, classes)).astype(np.float32)
    if problem == "regression":
        return logits, (logits + rng.normal(size=(n, classes))).astype(np.float32)
    logits = np.round(2 * logits) / 2
    if problem == "multi_label":
        labels = (rng.random((n, classes)) < 0.3).astype(np.float32)
        return logits + 1.5 * labels - 1, labels
    labels = rng.integers(0, classes, n)
    logits[np.arange(n), labels] += 1
    return logits, labels


@pytest.mark.parametrize(("classes", "absent"), [(2, None), (3, 1), (7, None), (12, 0)])
def test_single_labels_are_judged_as_scikit_learn_does(classes, absent):
    logits, labels = _case("single_label", 997, classes)
    labels[labels == absent] = 2
    chances, said, every = softmax(logits.astype(np.float64), axis=-1), logits.argmax(-1), range(classes)
    found = PROBLEMS["single_label"].summarize(logits, labels)
    assert found["accuracy"] == theirs.accuracy_score(labels, said)
    assert found["macro_f1"] == theirs.f1_score(labels, said, average="macro")
    assert found["loss"] == theirs.log_loss(labels, chances, labels=every)
    assert found["brier"] == theirs.brier_score_loss(labels, chances, labels=every)
    assert found["count"] == 997
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a class is predicted which does not occur
        assert found["balanced_accuracy"] == theirs.balanced_accuracy_score(labels, said)
    if classes > 5:
        assert found["top_5"] == theirs.top_k_accuracy_score(labels, logits, k=5, labels=every)
    else:
        assert "top_5" not in found
    ranked = [1] if classes == 2 else np.unique(labels)
    for name, metric in (("auroc", theirs.roc_auc_score), ("average_precision", theirs.average_precision_score)):
        assert found[name] == np.mean([metric(labels == k, chances[:, k]) for k in ranked])


@pytest.mark.parametrize("classes", [1, 5, 60])
def test_several_labels_are_judged_as_scikit_learn_does(classes):
    logits, labels = _case("multi_label", 301, classes)
    labels[:, 1:2] = 0  # a class without examples has no precision, and takes no part in the mean
    labels[:, 2:3] = 1  # and one of all examples no AUROC
    chances, said = expit(logits.astype(np.float64)), logits > 0
    found = PROBLEMS["multi_label"].summarize(logits, labels)
    there, both = (labels.any(0), labels.any(0) & ~labels.all(0))
    mean = partial(_mean_over_columns, labels)
    assert found["mean_average_precision"] == mean(theirs.average_precision_score, logits, there)
    assert found["auroc"] == mean(theirs.roc_auc_score, logits, both)
    assert found["f1"] == mean(partial(theirs.f1_score, zero_division=0), said)
    assert found["micro_f1"] == theirs.f1_score(labels.ravel(), said.ravel())
    assert found["exact_match"] == theirs.accuracy_score((said == labels).all(-1), np.ones(301))
    assert found["brier"] == mean(partial(theirs.brier_score_loss, pos_label=1), chances)
    assert found["loss"] == pytest.approx(mean(partial(theirs.log_loss, labels=[0, 1]), chances), rel=1e-12)
    if classes > 1:
        assert found["f1"] == theirs.f1_score(labels, said, average="macro", zero_division=0)
        assert found["micro_f1"] == theirs.f1_score(labels, said, average="micro")


def _mean_over_columns(labels, metric, said, chosen=None):
    columns = range(labels.shape[1]) if chosen is None else np.flatnonzero(chosen)
    return np.mean([metric(labels[:, k], said[:, k]) for k in columns])


def test_values_are_judged_as_scikit_learn_does():
    values, labels = _case("regression", 200, 3)
    found = PROBLEMS["regression"].summarize(values, labels)
    pair = labels.astype(np.float64), values.astype(np.float64)
    assert found["mae"] == theirs.mean_absolute_error(*pair)
    assert found["loss"] == theirs.mean_squared_error(*pair)
    assert found["rmse"] == np.sqrt(theirs.mean_squared_error(*pair))
    assert found["r2"] == theirs.r2_score(*pair)


def test_the_loss_of_an_unlikely_label_is_not_cut_off():
    logits, labels = np.array([[0.0, 100.0], [3.0, 0.0]]), np.array([0, 0])
    found = PROBLEMS["single_label"].summarize(logits, labels)
    assert found["loss"] == pytest.approx((100 + np.log1p(np.exp(-3))) / 2, rel=1e-14)
    assert theirs.log_loss(labels, softmax(logits, axis=-1), labels=[0, 1]) < 20


def test_calibration_is_what_a_hand_counts():
    # Confidences 0.9, 0.9, 0.9 and 0.55, of which two, and none, are right: 3/4 · |0.9 - 2/3| + 1/4 · |0.55 - 0|.
    logits = np.log([[0.9, 0.1], [0.1, 0.9], [0.9, 0.1], [0.45, 0.55]])
    labels = np.array([0, 1, 1, 0])
    assert PROBLEMS["single_label"].summarize(logits, labels)["ece"] == pytest.approx(0.175 + 0.1375)
    bins = classification.calibration(logits, labels)
    assert bins.count.tolist() == [0] * 8 + [1] + [0] * 4 + [3, 0]  # (8/15, 9/15] and (13/15, 14/15]
    np.testing.assert_allclose(bins.confidence[[8, 13]], [0.55, 0.9])
    np.testing.assert_allclose(bins.accuracy[[8, 13]], [0, 2 / 3])
    assert np.isnan(bins.accuracy[bins.count == 0]).all()
    # Of two classes' own probabilities, three predictions of 0.3 of which one comes true, and one of 0.8 that does.
    chances = np.array([[0.3, 0.3], [0.3, 0.8]])
    logits, labels = np.log(chances / (1 - chances)), np.array([[1, 0], [0, 1]])
    found = PROBLEMS["multi_label"].summarize(logits, labels)
    assert (
        found["ece"]
        == pytest.approx(3 / 4 * (1 / 3 - 0.3) + 1 / 4 * 0.2)
        == classification.calibration(logits, labels).ece
    )


CASES = [
    *(("single_label", 60, 2), ("single_label", 60, 7), ("single_label", 7, 2), ("single_label", 9, 3)),
    *(("multi_label", 60, 5), ("multi_label", 12, 3), ("regression", 60, 3), ("regression", 3, 1)),
]


@pytest.mark.parametrize(("problem", "n", "classes"), CASES)
def test_intervals_are_those_of_the_metrics_of_each_resample(monkeypatch, problem, n, classes):
    monkeypatch.setattr(bootstrap, "_DRAWS", 80)
    monkeypatch.setattr(bootstrap, "_BLOCK", 25 * n)  # of 25, 25, 25 and 5 resamples
    logits, labels = _case(problem, n, classes, seed=5)
    found = PROBLEMS[problem].summarize(logits, labels)
    draws: dict[str, list[float]] = {}
    for rows in np.random.Generator(np.random.PCG64(0)).integers(0, n, (80, n)):
        resample = logits[rows].astype(np.float64), labels[rows]
        points = PROBLEMS[problem].metrics(*resample) | PROBLEMS[problem].ranking_metrics(*resample)
        for name, value in points.items():
            draws.setdefault(name, []).append(value)
    expected = {*found} - {"count", "accuracy_95", "exact_match_95"}
    for name in {name.removesuffix("_95") for name in expected} - {"accuracy", "exact_match"}:
        literal = np.array(draws[name])
        edges = np.quantile(literal[~np.isnan(literal)], (0.025, 0.975))
        assert found[f"{name}_95"] == pytest.approx(edges.tolist(), rel=1e-9, abs=1e-12), name


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_size_of_a_block_changes_no_interval(monkeypatch, problem):
    case = _case(problem, 50, 4)
    found = PROBLEMS[problem].summarize(*case)
    assert found == PROBLEMS[problem].summarize(*case)
    monkeypatch.setattr(bootstrap, "_BLOCK", 1)
    again = PROBLEMS[problem].summarize(*case)
    assert again.keys() == found.keys()
    for name, value in found.items():
        assert again[name] == pytest.approx(value, rel=1e-12), name


def test_the_interval_of_hits_is_the_percentile_bootstraps():
    rng = np.random.default_rng(1)
    hits = (rng.random(400) < 0.8).astype(float)
    logits = np.stack([hits, 1 - hits], -1).astype(np.float32)
    low, high = PROBLEMS["single_label"].summarize(logits, np.zeros(400, int))["accuracy_95"]
    wanted = stats.bootstrap((hits,), np.mean, method="percentile", n_resamples=20_000, rng=0).confidence_interval
    assert low == pytest.approx(wanted.low, abs=0.004)
    assert high == pytest.approx(wanted.high, abs=0.004)
    assert PROBLEMS["multi_label"].summarize(logits - 0.5, np.eye(2)[[0] * 400])["exact_match_95"] == [low, high]


def test_the_interval_of_the_mean_error_is_scipys():
    values, labels = _case("regression", 200, 2)
    errors = np.abs(values.astype(np.float64) - labels).mean(-1)
    wanted = stats.bootstrap((errors,), np.mean, method="percentile", rng=0).confidence_interval
    found = PROBLEMS["regression"].summarize(values, labels, full=False)["mae_95"]
    assert found == pytest.approx([wanted.low, wanted.high], abs=0.01)


@pytest.mark.parametrize(
    ("problem", "names"),
    [
        ("single_label", {"balanced_accuracy", "loss", "brier", "auroc"}),
        ("multi_label", {"micro_f1", "brier", "mean_average_precision"}),
        ("regression", {"mae", "rmse"}),
    ],
)
def test_19_of_20_intervals_hold_the_truth(monkeypatch, problem, names):
    monkeypatch.setattr(bootstrap, "_DRAWS", 200)
    truth = PROBLEMS[problem].summarize(*_case(problem, 100_000, 3, seed=1_000), full=problem != "regression")
    held = dict.fromkeys(names, 0)
    for seed in range(100):
        found = PROBLEMS[problem].summarize(*_case(problem, 150, 3, seed))
        for name in names:
            low, high = found[f"{name}_95"]
            held[name] += low <= truth[name] <= high
    assert all(87 <= count <= 99 for count in held.values()), held


def test_a_summary_while_training_is_the_cheap_part_of_the_full_one():
    for problem in PROBLEMS:
        case = _case(problem, 100, 7)
        full, part = PROBLEMS[problem].summarize(*case), PROBLEMS[problem].summarize(*case, full=False)
        assert PROBLEMS[problem].headline.name in part
        main = {"single_label": "accuracy", "multi_label": "exact_match", "regression": "mae"}[problem]
        assert [name for name in part if name.endswith("_95")] == [f"{main}_95"]
        left_out = {name for name in full if not name.endswith("_95")} - part.keys()
        assert left_out == {"single_label": {"auroc", "average_precision"}, "multi_label": {"auroc"}}.get(
            problem, set()
        )
        for name, value in part.items():
            assert full[name] == pytest.approx(value, rel=1e-15), name
        if problem == "single_label":
            assert full["accuracy_95"] == part["accuracy_95"]
        assert all(f"{name}_95" in full for name in full if not name.endswith("_95") and name != "count")


def test_a_large_split_has_no_intervals_of_rankings_and_the_same_points(monkeypatch):
    for problem, names in (
        ("single_label", {"auroc_95", "average_precision_95"}),
        ("multi_label", {"auroc_95", "mean_average_precision_95"}),
    ):
        case = _case(problem, 100, 3)
        full = PROBLEMS[problem].summarize(*case)
        with monkeypatch.context() as patch:
            patch.setattr(bootstrap, "LARGE", 299)
            assert PROBLEMS[problem].summarize(*case) == {name: full[name] for name in full if name not in names}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_order_of_examples_changes_no_metric(problem):
    logits, labels = _case(problem, 400, 6)
    order = np.random.default_rng(0).permutation(400)
    one, other = (PROBLEMS[problem].summarize(logits[rows], labels[rows]) for rows in (np.arange(400), order))
    for name in one:
        if not name.endswith("_95"):
            assert one[name] == pytest.approx(other[name], rel=1e-12), name


@given(st.sampled_from(sorted(PROBLEMS)), st.integers(1, 6), st.integers(2, 7), st.integers(0, 99), st.booleans())
@settings(max_examples=20, deadline=None)
def test_few_examples_or_classes_are_judged_without_a_warning(problem, n, classes, seed, alike):
    logits, labels = _case(problem, n, classes, seed)
    if alike:  # one class only, or a constant target, which rounding does not represent
        labels[:] = labels[0] if problem != "regression" else 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = PROBLEMS[problem].summarize(logits, labels)
    for name, value in found.items():
        if not name.endswith("_95"):
            assert np.isnan(value) == (name == "r2" and (alike or n == 1)), name
            assert f"{name}_95" in found or name in ("count", "r2", "mean_average_precision")
        else:
            assert value[0] <= value[1]
    if alike and problem != "regression":
        assert "auroc" not in found and "average_precision" not in found


def test_more_classes_than_examples_are_no_reason_to_warn():
    logits, _ = _case("single_label", 50, 102)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert PROBLEMS["single_label"].summarize(logits, np.arange(50))["count"] == 50


def test_an_output_that_is_not_finite_is_named():
    logits = np.array([[0.0, 1.0], [np.nan, 0.0], [0.0, np.inf]])
    with pytest.raises(InputError, match=r"not finite for 2 of 3 examples, the first at index 1"):
        PROBLEMS["single_label"].summarize(logits, np.array([0, 1, 1]))


def test_many_classes_take_no_table_of_them_all():
    rng, classes, count = np.random.default_rng(0), 2000, 4000
    logits, labels = rng.random((count, classes), np.float32), rng.integers(0, classes, count).astype(np.int32)
    wanted = theirs.balanced_accuracy_score(labels, logits.argmax(-1))
    tracemalloc.start()
    found = PROBLEMS["single_label"].summarize(logits, labels, full=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found["balanced_accuracy"] == wanted
    assert peak < 6.5 * logits.nbytes  # logits, probabilities and what softmax needs, in float64


@pytest.mark.parametrize("classes", [2, 3])
def test_one_class_in_an_evaluation_set(classes):
    logits = np.random.default_rng(0).standard_normal((12, classes), np.float32)
    found = PROBLEMS["single_label"].summarize(logits, np.ones(12, np.int32))
    assert found["balanced_accuracy"] == found["accuracy"] and "auroc" not in found
    assert all(np.isfinite(value).all() for value in found.values())
    has = np.zeros((12, classes), np.float32)
    has[:, 1] = 1
    found = PROBLEMS["multi_label"].summarize(logits, has)
    assert "auroc" not in found and all(np.isfinite(value).all() for value in found.values())
