"""A run of seconds on a folder of drawings: `:vit`, `:resnet` with BatchNorm, or the least of ViTs, `:pretrained`."""

import os

from tljax.config import default


def get_config(arg: str = "vit"):
    config = default()
    config.backbone.name = {"vit": "vit_tiny_patch16", "resnet": "resnet18", "pretrained": ""}[arg]
    if arg == "pretrained":
        config.backbone.weights = os.environ["TLJAX_TEST_WEIGHTS"]
    config.task.dataset = f"folder:{os.environ['TLJAX_TEST_FOLDER']}"
    config.task.update(train="train[:16]", validation="train[16:20]", test="train[17:]", image_size=32, batch_size=4)
    config.task.update(crop="inception", augment=("flip",))
    config.tuning.strategy = "full"
    config.optim.update(learning_rate=1e-3, clip_norm=1.0, weight_decay=0.05, warmup_steps=2)
    config.update(steps=12, eval_every=4, log_every=1)
    return config
