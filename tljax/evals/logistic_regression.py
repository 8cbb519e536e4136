"""L2-regularized logistic regression on features, over a grid of strengths.

    best = logistic_regression.search(train, validation, classes)  # C chosen on validation, then fitted to both
    logits = test.features @ best.kernel + best.bias

The protocol of CLIP (2103.00020) and DINOv2 (2304.07193). It minimizes what scikit-learn's `LogisticRegression` does,
C · Σ cross-entropy + ½‖kernel‖², by L-BFGS. Along a direction the logits are linear, so a line search multiplies no
matrices, and a step takes two products, each of all the strengths that are fitted at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from tljax.errors import InputError
from tljax.evals.probe import Examples

STRENGTHS = tuple(float(c) for c in 10 ** np.linspace(-6, 5, 45))  # DINOv2's
_MEMORY = 10  # pairs that L-BFGS remembers, as scipy's
_COLUMNS = 128  # strengths × classes that are fitted at once: a matrix product is near its best, and all stays in cache


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted classifier; `features @ kernel + bias` are its logits.

    Attributes:
        strength: C.
        kernel, bias: float32 [features, classes] and [classes].
        steps: of L-BFGS.
        gradient: the largest entry, at the end, of that of the objective divided by C · n.
    """

    strength: float
    kernel: Float[np.ndarray, "features classes"]
    bias: Float[np.ndarray, " classes"]
    steps: int
    gradient: float

    def accuracy(self, examples: Examples) -> float:
        """Returns the part of examples whose label has the highest logit."""
        return float(np.mean((examples.features @ self.kernel + self.bias).argmax(axis=-1) == examples.labels))


def search(
    train: Examples, validation: Examples, classes: int, strengths: Sequence[float] = STRENGTHS, **options: Any
) -> Fit:
    """Fits each strength to `train`, and that with the best accuracy on `validation` to all; of equals the first.

    Args:
        train, validation: with a class for each example.
        classes: two or more.
        strengths: C of each fit.
        options: of `fit`.

    Raises:
        InputError: as `fit`.
    """
    fits = fit(train, classes, strengths, **options)
    best = max(fits, key=lambda fitted: fitted.accuracy(validation))
    features = np.concatenate([train.features, validation.features])
    labels = np.concatenate([train.labels, validation.labels])
    return fit(Examples(features, labels), classes, [best.strength], **options)[0]


def fit(
    train: Examples,
    classes: int,
    strengths: Sequence[float] = STRENGTHS,
    *,
    standardize: bool = False,
    tolerance: float = 3e-8,
    max_steps: int = 1000,
) -> list[Fit]:
    """Returns a fit of each strength, in order.

    Neighboring strengths are fitted at once, from the strongest regularization on; each starts at the solution
    before it.

    Args:
        train: with a class for each example.
        classes: two or more.
        strengths: C of each fit.
        standardize: whether features are shifted and scaled to mean 0 and standard deviation 1 over `train` (those that
            are constant only shifted), as scikit-learn's `StandardScaler` does. What is returned takes features as
            they are.
        tolerance: a fit ends where no entry of its gradient is above. It is what scikit-learn calls `tol`, whose 1e-4
            is far from the minimum where the penalty is weak: by some points of accuracy, on data that separates.
        max_steps: or after that many.

    Raises:
        InputError: a strength that is not above 0, labels that are no classes, or too few classes.
    """
    labels = np.asarray(train.labels)
    if classes < 2 or labels.ndim != 1 or not ((labels >= 0) & (labels < classes)).all():
        raise InputError(f"logistic regression wants one label below {classes} for each example, and two classes")
    if not all(strength > 0 for strength in strengths):
        raise InputError(f"each C must be above 0, not {min(strengths)}")
    features = x = np.asarray(train.features, np.float32)
    # The bias is free, so that a shift changes no minimum; the way to that of centered features is far shorter.
    shift, scale = x.mean(axis=0), np.ones(x.shape[-1], np.float32)
    if standardize:
        scale = np.where(np.ptp(x, axis=0) > 0, x.std(axis=0), scale)
    x = (x - shift) / scale
    order = np.argsort(strengths, kind="stable")
    size = min(len(order), max(1, _COLUMNS // classes))
    # Of two classes scikit-learn fits one row, which is the difference of ours and is penalized twice as much.
    penalties = (2 if classes == 2 else 1) / (np.array(strengths)[order] * len(x))
    x = jnp.asarray(np.concatenate([x, np.ones_like(x[:, :1])], axis=-1))
    targets = jax.nn.one_hot(labels, classes, axis=0)
    weights = jnp.zeros((size, classes, x.shape[-1]))
    fits: list[Any] = [None] * len(order)
    for first in range(0, len(order), size):
        chunk = order[first : first + size]
        filled = np.resize(penalties[first : first + size], size).astype(np.float32)
        ended = _minimize(x, targets, filled, weights, tolerance, max_steps)
        weights = jnp.broadcast_to(ended.weights[len(chunk) - 1], ended.weights.shape)
        largest = np.abs(np.asarray(ended.gradient)).max(axis=(1, 2))
        for place, i in enumerate(chunk):
            kernel, bias = np.split(np.asarray(ended.weights[place]).T, [-1])
            kernel = kernel / scale[:, None]
            bias = _balanced(features, labels, kernel, bias[0] - shift @ kernel)
            fits[i] = Fit(float(strengths[i]), kernel, bias, int(ended.steps[place]), float(largest[place]))
    return fits


def _balanced(features, labels, kernel, bias):
    """Returns the bias with which each class's mean probability is its share of the labels, as it is at the minimum.

    A step of iterative scaling, in float64: nothing but its gradient holds a bias, and float32 leaves 1e-8 of that.
    """
    from scipy.special import softmax

    share = np.bincount(labels, minlength=len(bias)) / len(labels)
    mean = softmax((features @ kernel + bias).astype(np.float64), axis=1).mean(axis=0)
    occurs, bias = share > 0, bias.astype(np.float64)
    bias[occurs] += np.log(share[occurs] / mean[occurs])  # of another class it has no minimum
    return bias.astype(np.float32)


class _Iterate(NamedTuple):
    """The state of the fits; `weights` have the bias as their last column."""

    weights: Float[Array, "fits classes columns"]
    logits: Float[Array, "fits classes n"]
    gradient: Float[Array, "fits classes columns"]
    moves: Float[Array, "memory fits classes columns"]
    turns: Float[Array, "memory fits classes columns"]  # how each move changed the gradient
    curvature: Float[Array, "memory fits"]  # 1 / their product; 0 of one that never was
    number: Int[Array, ""]
    steps: Int[Array, " fits"]
    going: Array


@partial(jax.jit, donate_argnums=3)
def _minimize(x, targets, penalties, weights, tolerance, max_steps) -> _Iterate:
    """Runs L-BFGS (Liu & Nocedal 1989) on mean cross-entropy + penalty / 2 · ‖kernel‖²."""
    penalized = penalties[:, None, None] * jnp.ones(x.shape[-1]).at[-1].set(0)

    # Of the start: the kernel's rows and the bias bend by very different amounts.
    # Not column by column: where the penalty is weak, a fit that has not ended would lean on those that vary least.
    bend = penalized + jnp.ones(x.shape[-1]).at[:-1].set(jnp.mean(x[:, :-1] ** 2)) / targets.shape[0]

    def gradient(weights, chances):
        return jnp.einsum("gcn,nd->gcd", (chances - targets) / len(x), x) + penalized * weights

    def is_going(gradient):
        return jnp.max(jnp.abs(gradient), axis=(1, 2)) > tolerance

    def step(at: _Iterate) -> _Iterate:
        towards = jnp.where(at.going[:, None, None], -_newton(at, bend), 0)
        length, logits, chances = _line_search(at, towards, x, targets, penalized)
        move = length[:, None, None] * towards
        weights = at.weights + move
        new = gradient(weights, chances)
        turn = new - at.gradient
        product = jnp.sum(move * turn, axis=(1, 2))
        place = at.number % _MEMORY
        steps = at.steps + at.going
        return _Iterate(
            weights,
            logits,
            new,
            at.moves.at[place].set(move),
            at.turns.at[place].set(turn),
            at.curvature.at[place].set(jnp.where(product > 0, 1 / jnp.where(product > 0, product, 1), 0)),
            at.number + 1,
            steps,
            # A fit that no longer moves is as near as float32 comes.
            at.going & is_going(new) & (product > 0) & (steps < max_steps),
        )

    logits = jnp.einsum("gcd,nd->gcn", weights, x)
    start = gradient(weights, jax.nn.softmax(logits, axis=1))
    pairs = jnp.zeros((_MEMORY, *weights.shape))
    zeros = jnp.zeros(len(weights), jnp.int32)
    curvature = jnp.zeros((_MEMORY, len(weights)))
    at = _Iterate(
        weights,
        logits,
        start,
        pairs,
        pairs,
        curvature,
        jnp.zeros((), jnp.int32),
        zeros,
        is_going(start) & (max_steps > 0),
    )
    return jax.lax.while_loop(lambda at: jnp.any(at.going), step, at)


def _newton(at: _Iterate, bend: Float[Array, "fits 1 columns"]) -> Float[Array, "fits classes columns"]:
    """Returns the inverse Hessian, by the pairs and its diagonal `bend`, times the gradient: the two-loop recursion."""

    def dot(a, b):
        return jnp.sum(a * b, axis=(1, 2))

    def back(i, carry):
        direction, shares = carry
        place = (at.number - 1 - i) % _MEMORY
        share = at.curvature[place] * dot(at.moves[place], direction)
        return direction - share[:, None, None] * at.turns[place], shares.at[place].set(share)

    def forth(i, direction):
        place = (at.number + i) % _MEMORY
        share = shares[place] - at.curvature[place] * dot(at.turns[place], direction)
        return direction + share[:, None, None] * at.moves[place]

    direction, shares = jax.lax.fori_loop(0, _MEMORY, back, (at.gradient, jnp.zeros_like(at.curvature)))
    last = (at.number - 1) % _MEMORY
    square = at.curvature[last] * dot(at.turns[last], at.turns[last] / bend)
    direction = direction / (bend * jnp.where(square > 0, square, 1)[:, None, None])
    return jax.lax.fori_loop(0, _MEMORY, forth, direction)


def _line_search(at: _Iterate, towards, x, targets, penalized):
    """Returns how far to go: to where the slope, which along a line only grows, is at most half as steep either way.

    Newton's method, kept between the lengths where the slope is known to be negative and positive.

    Returns:
        Length [fits], and logits and probabilities there.
    """
    ahead = jnp.einsum("gcd,nd->gcn", towards, x)
    own = jnp.sum(targets * ahead, axis=(1, 2)) / len(x)
    square = jnp.sum(penalized * towards * towards, axis=(1, 2))
    product = jnp.sum(penalized * at.weights * towards, axis=(1, 2))

    def look(length):
        logits = at.logits + length[:, None, None] * ahead
        chances = jax.nn.softmax(logits, axis=1)
        mean = jnp.sum(chances * ahead, axis=1)
        bend = jnp.sum(chances * ahead * ahead, axis=1) - mean * mean
        slope = jnp.mean(mean, axis=-1) - own + product + length * square
        return slope, jnp.mean(bend, axis=-1) + square, logits, chances

    first = jnp.sum(at.gradient * towards, axis=(1, 2))

    def is_far(slope):
        return (jnp.abs(slope) > jnp.abs(first) / 2) & at.going

    def closer(carry):
        tries, low, high, length, (slope, bend, _, _) = carry
        low, high = jnp.where(slope < 0, length, low), jnp.where(slope > 0, length, high)
        newton = length - slope / jnp.maximum(bend, 1e-30)
        middle = jnp.where(jnp.isinf(high), 4 * length, (low + high) / 2)
        # Not all the way to Newton's far point either: where the slope is nearly straight, it may be anywhere.
        inside = (newton > low) & (newton < jnp.minimum(high, 10 * length))
        length = jnp.where(is_far(slope), jnp.where(inside, newton, middle), length)
        return tries + 1, low, high, length, look(length)

    def goes_on(carry):
        return jnp.any(is_far(carry[4][0])) & (carry[0] < 30)

    zeros, ones = jnp.zeros_like(first), jnp.ones_like(first)
    _, _, _, length, (_, _, logits, chances) = jax.lax.while_loop(
        goes_on, closer, (0, zeros, zeros + jnp.inf, ones, look(ones))
    )
    return length, logits, chances
