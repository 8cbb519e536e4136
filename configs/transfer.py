"""Pretrained weights on the known sets of transfer learning: full fine-tuning, or strategies × rates × seeds.

    tljax train --config=transfer:pets --workdir=runs/pets
    tljax sweep --config=transfer:pets --root=runs/transfer_pets --launcher=slurm --jobs=8
    tljax sweep --config=transfer:vtab_dtd --root=runs/transfer_dtd

The argument is a row of `IMAGES`, `imagenet_5shot`, `sst2`, or `vtab_` and a task of VTAB-1k, which selects on
`vtab:val200`; for the number to report, train the chosen setting again with `--config.task.validation=` and
`--config.task.train=vtab:train800val200`. All sets are read from TFDS (`TFDS_DATA_DIR`), but for `sst2`, which is
from a Hugging Face hub. One GPU is enough, with `--config.optim.accumulate=8` where a batch does not fit.

What to expect of `train`, in % of the test set. These are cited, not run here:

    cifar10          98.55 (98.46 … 98.60)   google-research/big_vision, big_vision/configs/transfer.py: the same
    cifar100         91.35 (91.09 … 91.62)   weights, steps, rates, crops and splits; five runs
    pets             93.78 (93.62 … 94.00)
    flowers          99.43 (99.42 … 99.45)
    imagenet_5shot   50.64                   google-research/big_transfer, README.md: its rate falls in steps
    sst2             92.7                    huggingface/transformers, examples/research_projects/distillation:
                                             README.md; of GLUE's validation split, which is the test set here

For the others no number of the same weights was at hand. Their steps, and the rate, follow BiT's rule
(google-research/big_transfer, bit_hyperrule.py): 500 steps below 20,000 examples, and 10,000 above.
"""

import itertools

from tljax.config import default
from tljax.data.sources import vtab
from tljax.errors import InputError

IMAGES = {  # TFDS's name; splits to train, validate and test on; steps; rate; crop
    "cifar10": ("cifar10", ("train[:98%]", "train[98%:]", "test"), 10_000, 3e-3, "random"),
    "cifar100": ("cifar100", ("train[:98%]", "train[98%:]", "test"), 10_000, 1e-2, "random"),
    "pets": ("oxford_iiit_pet", ("train[:90%]", "train[90%:]", "test"), 500, 3e-3, "inception"),
    "flowers": ("oxford_flowers102", ("train[:90%]", "train[90%:]", "test"), 500, 3e-3, "inception"),
    "dogs": ("stanford_dogs", ("train[:90%]", "train[90%:]", "test"), 500, 3e-3, "inception"),
    "food": ("food101", ("train[:98%]", "train[98%:]", "validation"), 10_000, 3e-3, "inception"),
    "sun397": ("sun397/tfds", ("train", "validation", "test"), 10_000, 3e-3, "inception"),
}
VTAB = ("vtab:train800", "vtab:val200", "vtab:test")
FEW = ("train[:99%]", "train[99%:]", "validation")  # of ImageNet and of SST-2, whose test labels are withheld

ADAMW = {"optim.name": "adamw", "optim.weight_decay": 0.01}
FULL = ({"tuning.strategy": "full"}, (1e-3, 3e-3, 1e-2, 3e-2))
PROBE = ({"tuning.strategy": "linear_probe", **ADAMW}, (3e-4, 1e-3, 3e-3, 1e-2))
STRATEGIES = {  # what it is, and its rates
    "vit": (
        *(FULL, PROBE),
        ({"tuning.strategy": "last_k", "tuning.k": 4, **ADAMW}, (3e-5, 1e-4, 3e-4, 1e-3)),
        ({"tuning.strategy": "bias_only", **ADAMW}, (3e-4, 1e-3, 3e-3, 1e-2)),
        ({"tuning.strategy": "lora", "tuning.rank": 8, **ADAMW}, (3e-4, 1e-3, 3e-3, 1e-2)),
        ({"tuning.strategy": "prompt", "tuning.tokens": 10, "tuning.deep": True, **ADAMW}, (1e-3, 3e-3, 1e-2, 3e-2)),
    ),
    "resnet": (FULL, PROBE, ({"tuning.strategy": "norm_only", **ADAMW}, (3e-4, 1e-3, 3e-3, 1e-2))),
    "bert": (
        ({"tuning.strategy": "full"}, (3e-5, 5e-5, 1e-4, 3e-4)),
        ({"tuning.strategy": "linear_probe"}, (1e-3, 3e-3, 1e-2, 3e-2)),
        ({"tuning.strategy": "bias_only"}, (1e-4, 3e-4, 1e-3, 3e-3)),
        ({"tuning.strategy": "lora", "tuning.rank": 8}, (1e-4, 3e-4, 1e-3, 3e-3)),
    ),
}
SEEDS = (0, 1, 2)


def get_config(arg: str = "pets"):
    config = default()
    config.tuning.strategy = "full"
    if arg == "sst2":
        _sst2(config)
    elif arg == "imagenet_5shot":
        _images(config, "imagenet2012", FEW, 500, 3e-3)
        config.backbone.weights = "resnetv2_50x1_bit.goog_in21k"
        config.task.update(shots=5, image_size=480, crop="random", resize=512, augment=("flip",))
    elif arg in IMAGES:
        dataset, splits, steps, rate, crop = IMAGES[arg]
        _images(config, dataset, splits, steps, rate)
        config.task.update(image_size=384, crop=crop, resize=448 if crop == "random" else 0, augment=("flip",))
    elif arg.removeprefix("vtab_") in vtab.TASKS and arg.startswith("vtab_"):
        task = vtab.TASKS[arg.removeprefix("vtab_")]
        _images(config, task.dataset, VTAB, 500, 3e-3)
        config.task.label = (task.label,)
    else:
        known = ", ".join((*IMAGES, "imagenet_5shot", "sst2", *(f"vtab_{name}" for name in vtab.TASKS)))
        raise InputError(f"configs/transfer.py:{arg}: there are {known}")
    return config


def _images(config, dataset, splits, steps, rate):
    """Weights and optimizer of big_vision's transfer."""
    config.backbone.weights = "vit_base_patch32_224.augreg_in21k"
    train, validation, test = splits
    # Some sets have a second image beside it: a mask, or the other eye's view.
    config.task.update(dataset=f"tfds:{dataset}", image="image", train=train, validation=validation, test=test)
    config.task.batch_size = 512
    config.steps = steps
    config.optim.update(name="sgd", learning_rate=rate, warmup_steps=100 if steps == 500 else 500, clip_norm=1.0)


def _sst2(config):
    config.backbone.weights = "bert-base-uncased"
    train, validation, test = FEW
    # TFDS has GLUE only where TensorFlow is.
    config.task.update(dataset="hf:nyu-mll/glue/sst2", text=("sentence",), label=("label",), batch_size=32)
    config.task.update(train=train, validation=validation, test=test)
    config.epochs = 3.0
    config.optim.update(learning_rate=5e-5, schedule="linear", warmup_steps=600, clip_norm=1.0, weight_decay=0.01)
    config.regularize.dropout = 0.1


def sweep(arg: str = "pets"):
    network = {"sst2": "bert", "imagenet_5shot": "resnet"}.get(arg, "vit")
    for (strategy, rates), seed in itertools.product(STRATEGIES[network], SEEDS):
        for rate in rates:
            yield {**strategy, "optim.learning_rate": rate, "seed": seed}
