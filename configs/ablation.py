"""How much of the network to train: the head, or the last 1, 2 or 4 blocks too, at four rates, three seeds each.

    tljax sweep --config=ablation:mnist --root=runs/ablation_mnist
    tljax sweep --config=ablation:elpv --root=runs/ablation_elpv

48 runs of 20 epochs: the half-width ResNet-50 on MNIST digits, or DINOv2 ViT-S/14 on solar cells. What is frozen is
computed once for all of them, and the twelve heads train side by side.
"""

from tljax.config import default
from tljax.config.search_space import grid, product
from tljax.errors import InputError

STRATEGIES = grid({"tuning.strategy": ("linear_probe",)}) + grid(
    {"tuning.strategy": ("last_k",), "tuning.k": (1, 2, 4)}
)
RATES = {"mnist": (3e-4, 1e-3, 3e-3, 1e-2), "elpv": (3e-5, 1e-4, 3e-4, 1e-3)}
SEEDS = (0, 1, 2)


def get_config(arg: str = "mnist"):
    config = default()
    if arg == "mnist":
        config.backbone.weights = "resnet50_half.open_nsfw"
        config.task.update(dataset="mnist_5k", train="train[:1000]", validation="train[1000:2000]", test="train[2000:]")
        config.task.update(image_size=64, batch_size=50)
    elif arg == "elpv":
        config.backbone.weights = "vit_small_patch14.dinov2"
        config.task.update(dataset="elpv", train="train[:600]", validation="train[600:900]", test="train[900:]")
        config.task.update(image_size=224, batch_size=20)
    else:
        raise InputError(f"configs/ablation.py:{arg}: there are :mnist and :elpv")
    config.epochs = 20.0
    config.optim.update(warmup_steps=10, clip_norm=1.0, weight_decay=0.01)
    return config


def sweep(arg: str = "mnist"):
    return product(STRATEGIES, grid({"optim.learning_rate": RATES[arg], "seed": SEEDS}))
