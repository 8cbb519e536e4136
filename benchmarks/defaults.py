"""Each strategy with its own default rate and length, beside the best of a search over rates, on real data.

    python benchmarks/defaults.py --sets=mnist,solar,reviews --strategies=linear_probe,full,lora --seeds=3

Of a search, the rate is that which validation likes best (mean over seeds), and its test accuracy counts. A linear
probe is beside L2 logistic regression on the same features, whose C validation chooses among 45.
"""

import argparse
import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

import tljax
from tljax.config.defaults import DEFAULTS
from tljax.config.schema import Experiment
from tljax.core.run import prepare

SETS = {
    "mnist": ("mnist_5k", "vit_small_patch14.dinov2", 42),
    "solar": ("elpv", "vit_small_patch14.dinov2", 70),
    "solar_resnet": ("elpv", "resnet50_half.open_nsfw", 96),
    "reviews": ("movie_sentiment", "minilm_l6.gt_all", 0),
}
ARGUMENTS = {"last_k": {"k": 4}, "first_k": {"k": 4}, "layer_decay": {"decay": 0.75}}
FACTORS = (0.2, 0.5, 1.0, 2.0, 5.0)


def config_of(name: str, strategy: str) -> ConfigDict:
    """Returns a config of 600 training examples, 200 to choose by and 1,000 to test, with nothing else said."""
    dataset, weights, size = SETS[name]
    config = tljax.default_config(task__dataset=dataset, backbone__weights=weights)
    config.task.update(train="train[:600]", validation="train[600:800]", test="train[-1000:]", batch_size=32)
    config.task.update({"image_size": size} if size else {"max_tokens": 32})
    config.tuning.strategy = strategy
    for key, value in ARGUMENTS.get(strategy, {}).items():
        config.tuning[key] = value
    return config


def logistic_regression(config: ConfigDict) -> float:
    """Returns the test accuracy of logistic regression on the features that a linear probe has."""
    run = prepare(Experiment.from_config(config))
    encoder = tljax.load_backbone(
        config.backbone.weights, image_size=config.task.image_size, max_tokens=config.task.max_tokens
    )
    parts = []
    for split in (run.inputs.splits[name] for name in ("train", "test", "validation")):
        examples = split.__getitems__(range(len(split)))
        inputs = [example.get("image") or example["text"] for example in examples]
        parts.append((encoder.features(inputs), np.asarray(split.labels)))
    return tljax.probe(*parts)["accuracy"]


def row(name: str, strategy: str, seeds: int, root: Path) -> Iterator[str]:
    """Yields the cells of a set and a strategy: by default, and by a search."""
    config = config_of(name, strategy)
    numbers = {"seed": list(range(seeds))}
    own = tljax.sweep(config, numbers, root / "own")
    yield _mean(own["test accuracy"])
    if strategy == "linear_probe":
        yield f"{100 * logistic_regression(config):.1f}"
        return
    peak = DEFAULTS[strategy].learning_rate
    table = tljax.sweep(
        config, {"optim.learning_rate": [peak * factor for factor in FACTORS], **numbers}, root / "search"
    )
    chosen = table[table.chosen]
    yield f"{_mean(chosen['test accuracy'])} ({chosen['optim.learning_rate'].iloc[0]:g})"


def _mean(values: np.ndarray) -> str:
    return f"{100 * np.mean(values):.1f} ± {100 * np.std(values):.1f}"


def main() -> None:
    """Prints a row of the table as it comes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--strategies", default="linear_probe,full,lora,last_k,bias_only")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    print("| set | strategy | by default | by search (rate), or logistic regression |\n|---|---|---|---|")
    for name in options.sets.split(","):
        for strategy in options.strategies.split(","):
            with (
                tempfile.TemporaryDirectory() as root,
                Path(os.devnull).open("w") as nowhere,
                contextlib.ExitStack() as quiet,
            ):
                quiet.enter_context(contextlib.redirect_stdout(nowhere))
                quiet.enter_context(contextlib.redirect_stderr(nowhere))
                cells = list(row(name, strategy, options.seeds, Path(root)))
            print(f"| {name} | `{strategy}` | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
