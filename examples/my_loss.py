"""A loss of your own: a function that returns one loss an example. Its further arguments are keys of the config.

--config.loss=my_loss:focal --config.loss_args.gamma=1.5
"""

import jax
import jax.numpy as jnp


def focal(outputs, labels, *, gamma: float = 2.0):
    """Focal loss (1708.02002)."""
    log_p = jnp.take_along_axis(jax.nn.log_softmax(outputs), labels[:, None], axis=-1)[:, 0]
    return -((1 - jnp.exp(log_p)) ** gamma) * log_p
