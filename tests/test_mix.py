"""Mixup and CutMix by value."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tljax.data import mixup


def _batch(rows: int = 6, size: int = 16) -> dict[str, jax.Array]:
    """Each image is its own number everywhere."""
    numbers = jnp.arange(rows, dtype=jnp.uint8)
    image = jnp.broadcast_to(10 * numbers[:, None, None, None], (rows, size, size, 3))
    return {"input": image, "label": jnp.arange(rows), "mask": jnp.ones(rows), "weight": jnp.ones(rows)}


def test_without_either_nothing_changes():
    batch = _batch()
    assert mixup.apply_mixup_cutmix(batch, jax.random.key(0), 0.0, 0.0) is batch
    np.testing.assert_array_equal(mixup.loss(batch, lambda labels, weights: labels * 1.0), np.arange(6.0))


def test_mixup_is_the_weighted_mean_of_each_image_and_the_reversed_batch():
    shares = []
    for seed in range(200):
        found = mixup.apply_mixup_cutmix(_batch(), jax.random.key(seed), 0.4, 0.0)
        share = float(found["share"][0])
        wanted = 10 * (share * np.arange(6) + (1 - share) * np.arange(6)[::-1])
        np.testing.assert_allclose(found["input"][:, 3, 5, 1], wanted, rtol=1e-5)
        shares.append(share)
    np.testing.assert_array_equal(found["other"], np.arange(6)[::-1])
    assert np.mean(shares) == pytest.approx(0.5, abs=0.08)
    assert np.var(shares) == pytest.approx(1 / (4 * (2 * 0.4 + 1)), abs=0.02)  # of Beta(0.4, 0.4)


def test_cutmix_pastes_a_box_and_its_share_is_what_is_left():
    areas = []
    for seed in range(200):
        found = mixup.apply_mixup_cutmix(_batch(), jax.random.key(seed), 0.0, 1.0)
        own = np.asarray(found["input"][0, :, :, 0]) == 0
        assert set(np.unique(found["input"][0])) <= {0.0, 50.0}
        assert float(found["share"][0]) == pytest.approx(own.mean(), abs=1e-6)
        rows, columns = np.nonzero(~own)
        if len(rows):  # all of one rectangle
            assert (np.ptp(rows) + 1) * (np.ptp(columns) + 1) == len(rows)
        areas.append(1 - own.mean())
    assert min(areas) < 0.05 and max(areas) > 0.6


def test_both_take_turns_by_a_coin():
    kinds = []
    for seed in range(60):
        image = np.asarray(mixup.apply_mixup_cutmix(_batch(), jax.random.key(seed), 1.0, 1.0)["input"])
        kinds.append(set(np.unique(image[0])) <= {0.0, 50.0})
    assert 15 < sum(kinds) < 45


def test_the_loss_is_of_both_labels_by_their_shares():
    batch = {"label": jnp.array([0.0, 1.0]), "other": jnp.array([10.0, 20.0]), "share": jnp.array([0.75, 0.25])}
    batch |= {"weight": jnp.array([1.0, 3.0]), "other_weight": jnp.array([3.0, 1.0])}
    np.testing.assert_allclose(mixup.loss(batch, lambda labels, weights: labels), [2.5, 15.25])
    np.testing.assert_allclose(mixup.loss(batch, lambda labels, weights: weights * labels), [7.5, 15.75])
    np.testing.assert_allclose(mixup.weights(batch), [1.5, 1.5])


def test_a_step_s_mix_is_a_function_of_its_key():
    keys = map(jax.random.key, (3, 3, 4))
    first, same, other = (mixup.apply_mixup_cutmix(_batch(), key, 0.3, 0.3)["input"] for key in keys)
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)
