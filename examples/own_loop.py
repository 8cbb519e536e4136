"""A training loop of your own with tljax's parts: the loss curve of `tljax.train`, in plain JAX.

Run it by `python examples/own_loop.py`.
"""

import jax
import optax
from ml_collections import ConfigDict

import tljax


def get_config() -> ConfigDict:
    """Returns a config whose last two blocks are trained on photographs of solar cells."""
    config = tljax.default_config(steps=20, log_every=1, task__dataset="elpv", task__image_size=70)
    config.backbone.weights = "vit_small_patch14.dinov2"
    config.task.update(train="train[:300]", test="train[300:600]", batch_size=32)
    config.tuning.update(strategy="last_k", k=2)
    config.optim.update(name="adamw", learning_rate=3e-4, weight_decay=0.01, clip_norm=1.0, schedule="cosine")
    return config


def losses(config: ConfigDict) -> list[float]:
    """Trains a config's last blocks and a new head; returns the loss of each step."""
    backbone = tljax.load_backbone(config.backbone.weights, image_size=config.task.image_size)
    model = backbone.with_head(classes=2, strategy=config.tuning.strategy, k=config.tuning.k)
    rate = optax.cosine_decay_schedule(config.optim.learning_rate, config.steps)
    optimizer = tljax.optimizer(model.multipliers, rate, clip_norm=1.0, weight_decay=0.01)
    trainable, _ = tljax.partition(model.params, model.multipliers)  # gradients are taken of these leaves alone

    @jax.jit
    def step(trainable, state, batch):
        def loss_fn(trainable):
            logits = model.apply(tljax.combine(trainable, model.params), batch["input"])
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

        loss, gradients = jax.value_and_grad(loss_fn)(trainable)
        updates, state = optimizer.update(gradients, state, trainable)
        return optax.apply_updates(trainable, updates), state, loss

    state, curve = optimizer.init(trainable), []
    for batch in tljax.batches(config):
        trainable, state, loss = step(trainable, state, batch)
        curve.append(float(loss))
    return curve


if __name__ == "__main__":
    print(losses(get_config()))
