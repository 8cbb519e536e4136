"""EfficientNet-Lite0 on photographs of solar cells (is a cell defective?): trained on ImageNet, or from random weights.

    python -m tljax train --config=configs/quickstart.py --workdir=runs/quickstart
    python -m tljax train --config=configs/quickstart.py:scratch --workdir=runs/scratch
"""

from tljax.config import default
from tljax.errors import InputError


def get_config(arg: str = "pretrained"):
    config = default()
    config.task.update(dataset="elpv", train="train[:1000]", validation="train[1000:1300]", test="train[1300:]")
    config.task.update(image_size=160, batch_size=50)
    config.update(epochs=5.0, eval_every=50)
    config.optim.update(learning_rate=1e-3, warmup_steps=10, clip_norm=1.0)
    if arg == "pretrained":
        config.backbone.weights = "efficientnet_lite0.imagenet"
        config.tuning.update(strategy="last_k", k=2)
    elif arg == "scratch":
        config.backbone.name = "tf_efficientnet_lite0"
        config.tuning.strategy = "full"
    else:
        raise InputError(f"configs/quickstart.py:{arg}: there are :pretrained and :scratch")
    return config
