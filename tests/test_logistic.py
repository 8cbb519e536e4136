"""Logistic regression, held against scikit-learn's, and its choice of C."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from tljax.errors import InputError
from tljax.evals import logistic_regression
from tljax.evals.probe import Examples

pytestmark = pytest.mark.optimized


def _examples(classes: int, n: int = 300, width: int = 12, seed: int = 1) -> Examples:
    """Clouds that overlap, of unequal size in each direction, off the origin."""
    centers = np.random.default_rng(0).standard_normal((classes, width))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n).astype(np.int32)
    x = (centers[labels] + 1.5 * rng.standard_normal((n, width))) * np.geomspace(0.1, 3, width) + 1
    return Examples(x.astype(np.float32), labels)


def _exact(strength: float) -> LogisticRegression:
    """By Newton's method: scikit-learn's L-BFGS stops where the loss stands still, biases 4e-5 from the minimum."""
    return LogisticRegression(C=strength, tol=1e-9, max_iter=1000, solver="newton-cg")


GRID = (1e2, 1e-4, 1e-2, 1.0)  # in no order


@pytest.mark.parametrize("classes", [2, 3, 40])
def test_it_is_scikit_learns(classes):
    train, test = _examples(classes), _examples(classes, seed=2)
    for found, strength in zip(logistic_regression.fit(train, classes, GRID), GRID, strict=True):
        its = _exact(strength).fit(train.features.astype(float), train.labels)
        # Softmax is blind to what all classes share: scikit-learn's rows sum to 0, and of two it keeps the difference.
        kernel, bias = found.kernel.T, found.bias - found.bias.mean()
        if classes == 2:
            kernel, bias = kernel[1:] - kernel[:1], bias[1:] - bias[:1]
        assert found.strength == strength and found.gradient < 1e-6
        scale = np.abs(its.coef_).max()
        np.testing.assert_allclose(kernel, its.coef_, atol=1e-4 * scale)
        np.testing.assert_allclose(bias - bias.mean(), its.intercept_ - its.intercept_.mean(), atol=1e-4 * scale)
        assert found.accuracy(test) == pytest.approx(its.score(test.features, test.labels), abs=0.002)


def test_standardised_features():
    train = _examples(3)
    train.features[:, 4] = 7.0  # which are constant, and stay out
    (found,) = logistic_regression.fit(train, 3, [0.5], standardize=True)
    x = train.features.astype(float)
    scaler = StandardScaler().fit(x)
    its = _exact(0.5).fit(scaler.transform(x), train.labels)
    np.testing.assert_allclose(found.kernel.T * scaler.scale_, its.coef_, atol=1e-4)
    logits = its.decision_function(scaler.transform(x))
    own = train.features @ found.kernel + found.bias
    np.testing.assert_allclose(own - own.mean(1, keepdims=True), logits - logits.mean(1, keepdims=True), atol=1e-3)


def test_c_is_chosen_on_validation_and_fitted_to_both():
    train, validation = _examples(3, 60), _examples(3, 200, seed=2)
    found = logistic_regression.search(train, validation, 3, GRID)
    by_hand = {c: logistic_regression.fit(train, 3, [c])[0].accuracy(validation) for c in GRID}
    assert found.strength == max(by_hand, key=by_hand.get)
    both = Examples(
        *(np.concatenate(pair) for pair in zip(vars(train).values(), vars(validation).values(), strict=True))
    )
    (again,) = logistic_regression.fit(both, 3, [found.strength])
    np.testing.assert_array_equal(found.kernel, again.kernel)


def test_it_stops_in_time():
    assert [found.steps for found in logistic_regression.fit(_examples(3), 3, [1.0, 10.0], max_steps=2)] == [2, 2]
    assert all(
        1e-7 < found.gradient <= 1e-3 for found in logistic_regression.fit(_examples(3), 3, [1.0], tolerance=1e-3)
    )


def test_what_it_cannot_fit():
    train = _examples(3)
    for arguments, says in (
        ((train, 2), "one label below 2"),
        ((Examples(train.features, np.eye(3)[train.labels]), 3), "one label below 3"),
        ((train, 3, [1.0, 0.0]), "C must be above 0, not 0.0"),
    ):
        with pytest.raises(InputError, match=says):
            logistic_regression.fit(*arguments)
