"""An optimizer and a schedule of your own. The schedule gives the part of the learning rate, warm-up included.

--config.optim.name=my_optimizer:scaled_sgd --config.optim.args.scale=2
--config.optim.schedule=my_optimizer:power --config.optim.schedule_args.exponent=2
"""

import optax


def scaled_sgd(learning_rate, scale: float = 1.0):
    """Returns plain gradient descent, `scale` times as fast."""
    return optax.sgd(learning_rate * scale)


def power(step, *, steps, warmup_steps, exponent: float = 1.0):
    """Returns a line to 0 to the power of `exponent`; it has no warm-up."""
    return (1 - step / steps) ** exponent
