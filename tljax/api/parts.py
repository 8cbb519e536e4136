"""Parts of tljax for a training loop of your own: configs, batches, multipliers, optimizers, split trees."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import optax
from ml_collections import ConfigDict

from tljax.api import session
from tljax.api.encoder import Classified, Encoder
from tljax.config import files, schema
from tljax.config.serialization import build, check_key
from tljax.config.tuning import ARGUMENT_SECTIONS, OptimConfig, TuningConfig
from tljax.core.run import prepare
from tljax.errors import InputError
from tljax.tuning import masks, optimizers
from tljax.tuning.multipliers import Tree, multiplier_tree
from tljax.tuning.strategies import Layout

partition, combine = masks.partition, masks.combine


def default_config(**values: Any) -> ConfigDict:
    """Returns a config with every key, at its default, to be filled in.

        config = tljax.default_config(task__dataset="folder:birds", tuning__strategy="lora")

    Args:
        values: by key, with `__` for the point.

    Raises:
        InputError: a key that does not exist (what may be meant is named), or a value of another type.
    """
    return _with_values(schema.default(), values)


def load_config(name: str, **values: Any) -> ConfigDict:
    """Returns the config of a file, or of what comes with tljax, as `--config` of the command line reads it.

        config = tljax.load_config("quickstart:scratch", seed=1, optim__learning_rate=3e-4)

    Args:
        name: `FILE[:arg]`, or `NAME[:arg]` of a config that `tljax configs` lists; a file goes first.
        values: by key, with `__` for the point.

    Raises:
        InputError: there is no such file, name or key, or the file is wrong; its line is named.
    """
    return _with_values(files.load(name), values)


def _with_values(config: ConfigDict, values: Mapping[str, Any]) -> ConfigDict:
    for key, value in values.items():
        dotted = key.replace("__", ".")
        check_key(config, dotted, tuple(ARGUMENT_SECTIONS.values()))
        *path, name = dotted.split(".")
        try:
            functools.reduce(lambda section, part: section[part], path, config)[name] = value
        except TypeError as error:
            raise InputError(f"config.{dotted}: {str(error).splitlines()[0]}") from error
    return config


def batches(config: ConfigDict | Mapping[str, Any], start: int = 0) -> Iterator[dict[str, Any]]:
    """Yields the training batches of a config, those that `train` takes at each step.

    Args:
        config: as of `train`.
        start: the first step.

    Yields:
        `input` (uint8 images [batch, size, size, channels], or token ids), `label`, `weight` and `mask` [batch].
    """
    session.begin()
    run = prepare(session.experiment_of(config))
    return run.train_input().batches(start, run.resolved.steps)


def multipliers(model: Encoder | Classified, strategy: str, **arguments: Any) -> Tree:
    """Returns a learning-rate multiplier for each parameter, as a strategy gives it; 0 is frozen.

    Args:
        model: an encoder, or one with a head.
        strategy: a name, or `module:name` of your own.
        arguments: of the strategy.

    Returns:
        A tree as `model.params`.

    Raises:
        InputError: no such strategy, or it does not suit the network.
    """
    tuning = TuningConfig.from_section({"strategy": strategy, **arguments}, "tuning")
    if isinstance(model, Classified):
        return multiplier_tree(tuning.strategy, tuning.arguments, model.layout, tuning.group_rates)
    # Strategies speak of a head, which always trains.
    params = {"backbone": model.params, "head": {"kernel": 0}}
    layout = Layout.from_params(params, model.groups, model.module.pooled_norm)
    return multiplier_tree(tuning.strategy, tuning.arguments, layout, tuning.group_rates)["backbone"]


def optimizer(
    multipliers: Tree, learning_rate: optax.ScalarOrSchedule, name: str = "adamw", **settings: Any
) -> optax.GradientTransformation:
    """Returns the optax optimizer of a multiplier tree: no state and no update for what is frozen.

    Made for trees of which `partition(params, multipliers)` has taken the frozen leaves, so that no gradient of them
    is ever computed.

    Args:
        multipliers: of each leaf, by which the learning rate is scaled.
        learning_rate: a number, or an optax schedule.
        name: a row of `config.optim.name`, or `module:name`.
        settings: other keys of `config.optim`: `weight_decay`, `clip_norm`, `momentum`, `b1`, `b2`, `args`.

    Raises:
        InputError: a key or value that `config.optim` cannot have.
    """
    config = build(OptimConfig, {"name": name, **settings}, "optim")
    return optax.chain(optimizers.optimizer(config, multipliers), optax.scale_by_learning_rate(learning_rate))
