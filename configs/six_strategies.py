"""Six strategies, three learning rates and three seeds each, on 500 digits: a whole study, small enough for two cores.

    tljax sweep  --config=six_strategies --root=runs/six --jobs=2
    tljax sweep  --config=six_strategies --root=runs/six --status    # meanwhile, elsewhere
    tljax report runs/six --out=runs/six-report

54 runs of 4 epochs of the half-width ResNet-50. All are trained with the test split held back; the rate of each
strategy with the best mean over seeds on validation is chosen, and its three runs alone are tested.
"""

from tljax.config import default
from tljax.config.search_space import grid, product

STRATEGIES = (
    {"tuning.strategy": "linear_probe"},
    {"tuning.strategy": "last_k", "tuning.k": 3},
    {"tuning.strategy": "bias_only"},
    {"tuning.strategy": "lora", "tuning.rank": 8},
    {"tuning.strategy": "layer_decay", "tuning.decay": 0.75},
    {"tuning.strategy": "full"},
)


def get_config():
    config = default()
    config.backbone.weights = "resnet50_half.open_nsfw"
    config.task.update(dataset="mnist_5k", train="train[:500]", validation="train[500:1000]", test="train[1000:3000]")
    config.task.update(image_size=32, batch_size=50)
    config.epochs = 4.0
    config.optim.update(warmup_steps=5, clip_norm=1.0)
    return config


def sweep():
    return product(STRATEGIES, grid({"optim.learning_rate": (3e-4, 1e-3, 3e-3), "seed": (0, 1, 2)}))
