"""EfficientNet-Lite0 on photographs of solar cells (is a cell defective?): trained on ImageNet, or from random weights.

    python -m tljax train --config=configs/quickstart.py --workdir=runs/quickstart
    python -m tljax train --config=configs/quickstart.py:scratch --workdir=runs/scratch

On a CPU, jax 0.10.2; 100 steps; test accuracy over 1,324 cells with its 95% bootstrap interval:

    pretrained, last_k k=2   .858 (.839 … .877)   1,496,322 parameters train   146 s of CPU in all, on 2 cores
    random weights, k=2 too  .756 (.733 … .779)  --config.backbone.weights= --config.backbone.name=tf_efficientnet_lite0

What does not train is computed once: a step costs 0.19 of one that trains everything, as :scratch does. Of all cells,
.69 are functional. The photographs are CC BY-NC-SA 4.0: this config fetches them, nothing of them is shipped.
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
