"""Ten strategies on real weights: the half-width ResNet-50 on MNIST digits, or DINOv2 ViT-S/14 on solar cells.

    python -m tljax train --config=configs/strategies.py:mnist_lora --workdir=runs/mnist_lora
    python benchmarks/strategies.py     # all of them, three seeds each, as a table

SET is mnist or elpv, STRATEGY a row of `STRATEGIES`; each with one learning rate for both sets.
"""

from tljax.config import default
from tljax.errors import InputError

# What is new learns at 3e-3; what was pretrained moves at 1e-4 to 3e-4, the less of it the faster.
STRATEGIES = {
    "linear_probe": (3e-3, {}),
    "last_k": (1e-3, {"k": 3, "group_rates": (("head", 3.0),)}),
    "first_k": (3e-4, {"k": 3, "group_rates": (("head", 10.0),)}),
    "full": (3e-4, {"group_rates": (("head", 10.0),)}),
    "layer_decay": (1e-3, {"decay": 0.75, "group_rates": (("head", 3.0),)}),
    "bias_only": (3e-3, {}),
    "lora": (3e-3, {"rank": 8}),
    "adapter": (3e-3, {"bottleneck": 32}),
    "lp_ft": (3e-4, {"share": 0.5, "probe_rate": 10.0}),
    "gradual_unfreezing": (3e-4, {"by": 6, "group_rates": (("head", 10.0),)}),
}


def get_config(arg: str = "mnist_linear_probe"):
    data, _, name = arg.partition("_")
    if data not in ("mnist", "elpv") or name not in STRATEGIES:
        raise InputError(f"configs/strategies.py:{arg}: write :SET_STRATEGY of mnist, elpv and {', '.join(STRATEGIES)}")
    config = default()
    if data == "mnist":
        config.backbone.weights = "resnet50_half.open_nsfw"
        config.task.update(dataset="mnist_5k", train="train[:1000]", validation="train[1000:2000]", test="train[2000:]")
        config.task.update(image_size=64, batch_size=50)
    else:
        config.backbone.weights = "vit_small_patch14.dinov2"
        config.task.update(dataset="elpv", train="train[:600]", validation="train[600:900]", test="train[900:]")
        config.task.update(image_size=98, batch_size=30, augment=("flip", "flip_vertical"))
    config.epochs = 4.0
    rate, arguments = STRATEGIES[name]
    config.optim.update(learning_rate=rate, warmup_steps=5, clip_norm=1.0)
    config.tuning.update(strategy=name, **arguments)
    return config
