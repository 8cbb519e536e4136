"""A strategy's own learning rate, warm-up, decay, clip and length, for configs that leave them out.

They are a start and no optimum: a linear probe's were chosen beside logistic regression on five sets of features, the
others are those that papers and timm, peft and transformers use. `benchmarks/defaults.py` compares each with a search.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from tljax.errors import InputError

Experiment = TypeVar("Experiment", bound=Any)  # `schema.Experiment`, which imports this


@dataclass(frozen=True)
class Defaults:
    """What a strategy trains with where a config does not say.

    Attributes:
        learning_rate: AdamW's peak.
        warmup: the part of the run in which it rises to that.
        weight_decay, clip_norm: as in `config.optim`.
        epochs: passes over the training split.
        min_steps: of the run, however few its examples.
    """

    learning_rate: float
    warmup: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    epochs: float = 10.0
    min_steps: int = 300


_HEAD = Defaults(3e-3, weight_decay=0.3, epochs=100, min_steps=1000)  # steps on cached features cost next to nothing
_NETWORK = Defaults(5e-5, warmup=0.1, weight_decay=0.05, clip_norm=1.0)
_PART = dataclasses.replace(_NETWORK, learning_rate=1e-4)
_FEW = dataclasses.replace(_NETWORK, learning_rate=1e-3, weight_decay=0.0)
DEFAULTS: Mapping[str, Defaults] = {
    **dict.fromkeys(("linear_probe", "mlp_head"), _HEAD),
    **dict.fromkeys(("full", "layer_decay", "discriminative", "lp_ft", "gradual_unfreezing", "fine_tune"), _NETWORK),
    **dict.fromkeys(("last_k", "first_k", "surgical", "pattern"), _PART),
    **dict.fromkeys(("bias_only", "norm_only", "lora", "adapter", "prompt"), _FEW),
}
OTHERS = "full"  # whose values a strategy takes that has none of its own
_RATES = ("learning_rate", "warmup", "weight_decay", "clip_norm")
_LENGTH = ("epochs", "min_steps")


def filled(experiment: Experiment) -> Experiment:
    """Returns an experiment with its strategy's own values for a learning rate, and for a length, that are left out.

    Raises:
        InputError: the learning rate is left out of another optimizer than AdamW, of which they are.
    """
    optim, strategy = experiment.optim, experiment.tuning.strategy
    own = DEFAULTS.get(strategy, DEFAULTS[OTHERS])
    changes: dict[str, Any] = {}
    if not experiment.steps and not experiment.epochs:
        changes |= {"epochs": own.epochs, "min_steps": experiment.min_steps or own.min_steps}
    if optim.learning_rate is None:
        if optim.name != "adamw":
            raise InputError(f"optim.name={optim.name} needs an optim.learning_rate: strategies' own are of adamw")
        values = {key: getattr(own, key) for key in _RATES if not getattr(optim, key)}
        if optim.warmup_steps:
            del values["warmup"]
        changes["optim"] = dataclasses.replace(optim, **values)
    if not changes:
        return experiment
    name = strategy if strategy in DEFAULTS else OTHERS
    return dataclasses.replace(experiment, filled_from=name, **changes)


def cleared(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config without what `filled` put in, for another strategy's own values to take that place."""
    config = dict(config)
    own = DEFAULTS.get(config.pop("filled_from", ""))
    if own is None:
        return config
    optim = dict(config["optim"])
    if optim["learning_rate"] == own.learning_rate:
        optim["learning_rate"] = None
        optim |= {key: 0.0 for key in _RATES[1:] if optim[key] == getattr(own, key)}
    if config["epochs"] == own.epochs:
        config |= dict.fromkeys(_LENGTH, 0)
    return config | {"optim": optim}


def described(experiment: Experiment) -> str:
    """Returns the values that may be a strategy's own, in words."""
    values = [f"{key} {getattr(experiment.optim, key):g}" for key in _RATES if getattr(experiment.optim, key)]
    if experiment.epochs:
        values += [f"epochs {experiment.epochs:g}", f"min_steps {experiment.min_steps}"]
    return ", ".join(values)
