"""A run of seconds on a folder of drawings: `:vit`, or `:pretrained`, the little network whose weights are there.

`:text` is one on a table of sentences.
"""

import os

from tljax.config.schema import default


def get_config(arg: str = "vit"):
    config = default()
    config.backbone.name = "vit_tiny_patch16" if arg == "vit" else ""
    if arg == "pretrained":
        config.backbone.weights = os.environ["TLJAX_TEST_WEIGHTS"]
    config.task.update(train="train[:16]", validation="train[16:20]", test="train[20:]", batch_size=4)
    if arg == "text":
        config.backbone.weights = os.environ["TLJAX_TEST_TEXT_WEIGHTS"]
        config.task.update(dataset=f"csv:{os.environ['TLJAX_TEST_TABLE']}", max_tokens=16, token_multiple=4)
    else:
        config.task.update(dataset=f"folder:{os.environ['TLJAX_TEST_FOLDER']}", image_size=32)
        config.task.update(crop="inception", augment=("flip",))
    config.tuning.strategy = "full"
    config.optim.update(learning_rate=1e-3, clip_norm=1.0, weight_decay=0.05, warmup_steps=2)
    config.update(steps=12, eval_every=4, log_every=1)
    return config
