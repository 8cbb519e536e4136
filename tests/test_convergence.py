"""Whether a run has converged or diverged, on made curves."""

import numpy as np
import pytest

from tljax.config.schema import Experiment, OptimConfig
from tljax.training.convergence import advice, course

STEPS = np.linspace(0.005, 1, 200)
COSINE = (1 + np.cos(np.pi * STEPS)) / 2
SPENT = np.cumsum(COSINE) / COSINE.sum()
NOISE = np.random.default_rng(0).normal(size=200)


def rows(losses, rates=None, **more):
    rates = np.ones(len(losses)) if rates is None else rates
    pairs = enumerate(zip(losses, rates, strict=True), 1)
    return [{"step": i, "split": "train", "loss": float(a), "learning_rate": float(b), **more} for i, (a, b) in pairs]


@pytest.mark.parametrize(
    ("losses", "rates"),
    [
        (2.3 - STEPS, None),
        (0.5 + 1.8 * np.exp(-1.5 * STEPS) + 0.02 * NOISE, None),
        # Flat at the end, for nothing moves without a rate; and yet it has not converged.
        (0.5 + 1.8 * np.exp(-1.5 * SPENT) + 0.01 * NOISE, COSINE),
        (0.5 + 1.8 * np.exp(-1.5 * SPENT[9::10]), COSINE[9::10]),
    ],
)
def test_a_loss_that_still_falls_has_not_converged(losses, rates):
    judged = course(rows(losses, rates))
    assert judged.falling
    assert judged.falling[0] > judged.falling[1]
    assert judged.diverged is None


@pytest.mark.parametrize(
    ("losses", "rates"),
    [
        (0.5 + 1.8 * np.exp(-8 * STEPS) + 0.05 * NOISE, None),
        (0.02 + 2.3 * np.exp(-12 * SPENT) + 0.005 * abs(NOISE), COSINE),
        (2.3 + 0.1 * NOISE, None),  # never learnt a thing, and says no more
        (np.full(200, 0.7), None),
        (0.02 + 2.3 * np.exp(-12 * STEPS) + 0.03 * (STEPS > 0.9), None),  # up again by a hair
        (2.3 - STEPS[:8], None),  # too few to say
    ],
)
def test_a_loss_that_does_not_has(losses, rates):
    assert course(rows(losses, rates)) == course([])


@pytest.mark.parametrize(
    "losses",
    [2.3 + 3 * STEPS, np.where(STEPS < 0.5, 2.3 - 3.4 * STEPS, 1.9), 2.3 + 0.4 * (STEPS > 0.3) + 0.05 * NOISE],
)
def test_a_loss_that_rises_has_diverged(losses):
    judged = course(rows(losses))
    assert judged.diverged
    assert judged.falling is None


def test_other_rows_and_losses_that_are_no_numbers_are_left_out():
    falling = rows(2.3 - STEPS)
    others = [{"step": 3, "split": "validation", "loss": 99.0}, {"step": 4, "split": "train"}]
    broken = rows([float("nan")])
    assert course([*others, *broken, *falling]) == course(falling)


def test_advice_names_keys_with_values():
    experiment = Experiment(steps=200, optim=OptimConfig(learning_rate=1e-3))
    assert advice(rows(2.3 - STEPS), experiment) == [
        "not converged: the training loss was still falling, from 1.6 to 1.4; "
        "try config.steps=400, or config.optim.learning_rate=0.003"
    ]
    assert advice(rows(2.3 + 3 * STEPS), experiment) == [
        "the training loss rose, to 5.16 from 2.31: the learning rate is too high; try "
        "config.optim.learning_rate=0.0001, config.optim.clip_norm=1.0, config.optim.warmup_steps=20"
    ]
    calm = Experiment(epochs=2.0, optim=OptimConfig(learning_rate=1e-3, clip_norm=1.0))
    assert advice(rows([0.5] * 20, skipped_steps=3), calm) == [
        "3 steps were not finite and were skipped: try config.optim.learning_rate=0.0001"
    ]
    assert "config.epochs=4," in advice(rows(2.3 - STEPS), calm)[0]
    assert advice([], experiment) == []
