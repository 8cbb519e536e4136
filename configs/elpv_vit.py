"""DINOv2 ViT-S/14 on photographs of solar cells: is a cell defective (probability of at least 0.5)?

    tljax train --config=elpv_vit --workdir=runs/elpv_linear_probe
    tljax train --config=elpv_vit:last_k --workdir=runs/elpv_last_2

On a CPU with 2 cores, jax 0.10.2; 120 steps each; test accuracy over 1,724 cells with its 95% bootstrap interval:

    linear_probe   .832 (.814 … .850)         770 parameters train   0.33 × full fine-tuning's FLOPs    9 min
    last_k k=2     .863 (.847 … .879)   3,552,002                    0.44 ×                            11 min

The photographs are CC BY-NC-SA 4.0: this config fetches them, nothing of them is shipped.
"""

from tljax.config import default
from tljax.errors import InputError


def get_config(arg: str = "linear_probe"):
    config = default()
    config.backbone.weights = "vit_small_patch14.dinov2"
    config.task.update(dataset="elpv", train="train[:600]", validation="train[600:900]", test="train[900:]")
    config.task.update(image_size=224, augment=("flip", "flip_vertical"), batch_size=20)
    config.epochs = 4.0
    config.optim.update(learning_rate=3e-3, warmup_steps=5, clip_norm=1.0)
    config.tuning.strategy = arg
    if arg == "last_k":
        config.tuning.k = 2
        config.optim.learning_rate = 1e-4
    elif arg != "linear_probe":
        raise InputError(f"configs/elpv_vit.py:{arg}: there are :linear_probe and :last_k")
    return config
