"""Ten strategies on real weights: the half-width ResNet-50 on MNIST digits, or DINOv2 ViT-S/14 on solar cells.

    tljax train --config=strategies:mnist_lora --workdir=runs/mnist_lora
    python benchmarks/strategies.py     # all of them, three seeds each, as a table

SET is mnist or elpv, STRATEGY a row of `STRATEGIES`. What is new learns at 3e-3, and so does all that `linear_probe`,
BitFit, LoRA and adapters train; whatever else was pretrained moves at the set's own rate of `RATES`.
"""

from tljax.config import default
from tljax.errors import InputError

NEW, RATES = 3e-3, {"mnist": 1e-3, "elpv": 1e-4}
STRATEGIES = {
    "linear_probe": {},
    "last_k": {"k": 3},
    "first_k": {"k": 3},
    "full": {},
    "layer_decay": {"decay": 0.75},
    "bias_only": {},
    "lora": {"rank": 8},
    "adapter": {"bottleneck": 32},
    "lp_ft": {"share": 0.5},
    "gradual_unfreezing": {"by": 6},
}
SMALL = ("linear_probe", "bias_only", "lora", "adapter")


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
        config.task.update(dataset="elpv", train="train[:600]", validation="train[600:900]", test="train[900:1900]")
        config.task.update(image_size=84, batch_size=30, augment=("flip", "flip_vertical"))
    config.epochs = {"mnist": 4.0, "elpv": 2.5}[data]
    rate = NEW if name in SMALL else RATES[data]
    config.optim.update(learning_rate=rate, warmup_steps=5, clip_norm=1.0)
    config.tuning.update(strategy=name, **STRATEGIES[name])
    if name == "lp_ft":  # whose head has a phase of its own to learn in
        config.tuning.probe_rate = NEW / rate
    else:
        config.tuning.group_rates = (("head", NEW / rate),)
    return config
