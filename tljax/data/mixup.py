"""Mixup (1710.09412) and CutMix (1905.04899), on the device: a batch mixed with itself in reverse, as timm does."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

KEY = 1 << 30  # folded into a step's key: no part of a batch has this number


def apply_mixup_cutmix(batch: dict[str, Any], key: jax.Array, mixup: float, cutmix: float) -> dict[str, Any]:
    """Mixes a batch of images [batch, height, width, channels] with itself by one draw from Beta(alpha, alpha).

    Args:
        batch: `input`, `label` and `weight`.
        key: of this step.
        mixup, cutmix: alpha of each; 0 for never. With both, each has every other step, by a coin.

    Returns:
        The same batch if both are 0; else with float32 images, and besides `other` and `other_weight`, the labels of
        what was mixed in and their weights, and `share`, the part of the image that is still its own, float32 [batch].
    """
    if not (mixup or cutmix):
        return batch
    coin, draw, place = jax.random.split(key, 3)
    image = batch["input"].astype(jnp.float32)
    other = image[::-1]
    cut = jax.random.bernoulli(coin) if mixup and cutmix else bool(cutmix)
    alpha = jnp.where(cut, cutmix or 1.0, mixup or 1.0)
    share = jax.random.beta(draw, alpha, alpha)
    inside = _box(place, share, image.shape[1:3])[None, :, :, None]
    image = jnp.where(cut, jnp.where(inside, other, image), share * image + (1 - share) * other)
    share = jnp.where(cut, 1 - jnp.mean(inside.astype(jnp.float32)), share)
    shares = jnp.full(image.shape[:1], share, jnp.float32)
    other = {"other": batch["label"][::-1], "other_weight": batch["weight"][::-1]}
    return {**batch, **other, "input": image, "share": shares}


def loss(batch: dict[str, Any], loss_of: Callable[[jax.Array, jax.Array], jax.Array]) -> Float[Array, " batch"]:
    """Returns the loss of each example: where it is mixed, that of both labels, by their shares of the image.

    Args:
        batch: as `apply_mixup_cutmix` gives it.
        loss_of: (labels, weight of each) -> loss of each example, as if it had that label.
    """
    losses = loss_of(batch["label"], batch["weight"])
    if "share" not in batch:
        return losses
    return batch["share"] * losses + (1 - batch["share"]) * loss_of(batch["other"], batch["other_weight"])


def weights(batch: dict[str, Any]) -> Float[Array, " batch"]:
    """Returns the weight of each example: where it is mixed, that of both labels, by their shares of the image."""
    return loss(batch, lambda labels, weights: weights)


def _box(key: jax.Array, share: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Draws a box of 1 - share of the area and of the image's shape, cut off at its edges: true inside."""
    edges = []
    for axis, (side, axis_key) in enumerate(zip(size, jax.random.split(key), strict=True)):
        half = jnp.floor(side * jnp.sqrt(1 - share)) // 2
        center = jax.random.randint(axis_key, (), 0, side)
        places = jnp.arange(side)
        within = (places >= center - half) & (places < center + half)
        edges.append(within[:, None] if axis == 0 else within[None, :])
    return edges[0] & edges[1]
