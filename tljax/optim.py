"""The optimizer of a multiplier tree: state for trainable leaves only, one learning rate per multiplier."""

import jax
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from tljax.config import OptimConfig
from tljax.errors import InputError
from tljax.tuning import Tree

FROZEN = "frozen"
_NOT_DECAYED = ("bias", "scale", "class_token", "pos_embed")

# AdamW decays the weights themselves; SGD, as in PyTorch, adds the decay to the gradient, before momentum.
OPTIMIZERS = {
    "adamw": lambda config, decay: optax.chain(optax.scale_by_adam(), decay),
    "sgd": lambda config, decay: optax.chain(decay, optax.trace(decay=config.momentum)),
}


def schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """Linear warm-up from 0, then half a cosine to 0 at `steps` (transformers' `get_cosine_schedule_with_warmup`).

    Raises:
        InputError: the warm-up is not shorter than the run.
    """
    if not 0 <= config.warmup_steps < steps:
        raise InputError(f"optim.warmup_steps is {config.warmup_steps}, the whole run only {steps} steps")
    return optax.warmup_cosine_decay_schedule(
        0.0 if config.warmup_steps else config.learning_rate, config.learning_rate, config.warmup_steps, steps
    )


def optimizer(config: OptimConfig, multipliers: Tree, steps: int) -> optax.GradientTransformation:
    """Masked clip → direction and weight decay → multiplier → learning rate.

    Made for trees in which `tuning.select` has masked the frozen leaves, so that the clip's norm is that of the
    trainable ones; `set_to_zero` keeps a frozen leaf still even where a caller passes its gradient.

    Raises:
        InputError: an unknown name or a setting out of range.
    """
    if config.name not in OPTIMIZERS:
        raise InputError(f"no optim.name {config.name!r}; there are: {', '.join(OPTIMIZERS)}")
    if config.learning_rate <= 0:
        raise InputError(f"optim.learning_rate must be above 0, not {config.learning_rate}")
    labels = jax.tree.map(_label, multipliers)
    scales = {_label(m): optax.scale(m) if m else optax.set_to_zero() for m in jax.tree.leaves(multipliers)}
    parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    decay = optax.add_decayed_weights(config.weight_decay, decay_mask(multipliers))
    parts += [OPTIMIZERS[config.name](config, decay)]
    parts += [optax.multi_transform(scales, labels), optax.scale_by_learning_rate(schedule(config, steps))]
    return optax.chain(*parts)


def decay_mask(params: Tree) -> Tree:
    """True for the kernels that weight decay acts on: no bias, norm, class token or position embedding."""
    paths = flatten_dict(params, sep="/")
    return unflatten_dict({path: path.split("/")[-1] not in _NOT_DECAYED for path in paths}, sep="/")


def _label(multiplier: float) -> str:
    return f"x{multiplier!r}" if multiplier else FROZEN
