"""What a config leaves to the data and the weights."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tljax import backbone
from tljax.config import Experiment, TaskConfig
from tljax.data import images, splits
from tljax.data.examples import Split, Task
from tljax.data.readers import Texts
from tljax.data.text import Tokenizer, tokenised
from tljax.errors import InputError
from tljax.preprocessing import Preprocessing
from tljax.weights import Pretrained
from tljax.weights.surgery import with_channels


@dataclass(frozen=True)
class Resolved:
    """What a config leaves to the data and the weights; stored in the workdir, so that later verbs need neither.

    Attributes:
        pretrained: where the weights come from, and which network they fill.
        preprocessing: the weights' own, at the task's image size and number of channels.
        classes: names, in label order.
        steps: the run's length.
        train_examples: in the training split.
        data: the fingerprint of the data set.
        pairs: whether a text is two of them.
        class_weights: of each class in the loss; empty for equal ones.
        targets: of each value of a regression, its mean and standard deviation in the training split, by which it
            is scaled for the network.
        tokenizer: the SHA-256 of a text's.
        length: tokens of the longest training text, as batches are padded; 0 of images.
        truncated: training texts that were cut, and the tokens that they lost.
    """

    pretrained: Pretrained
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    steps: int
    train_examples: int
    data: str
    pairs: bool = False
    class_weights: tuple[float, ...] = ()
    targets: tuple[tuple[float, float], ...] = ()
    tokenizer: str = ""
    length: int = 0
    truncated: tuple[int, int] = (0, 0)


def resolve(experiment: Experiment, task: Task, tokenizer: Path | None = None) -> tuple[Resolved, dict[str, Split]]:
    """Looks at the catalogue and the data set; of weights, reads only a text's `tokenizer`, if that is not given.

    Returns:
        What was left open, and the splits of the task that the config names (`splits.resolve`).

    Raises:
        InputError: anything in the config names a thing that does not exist, or does not fit another.
    """
    config = experiment.task
    row = backbone.resolve(experiment.backbone)
    preprocessing = row.preprocessing
    if config.image_size:
        preprocessing = dataclasses.replace(preprocessing, size=config.image_size)
    if config.channels:
        preprocessing = with_channels(preprocessing, config.channels)
    _check(experiment, task, backbone.reads(row))
    cut = splits.resolve(task, config)
    train = cut["train"]
    found = Resolved(
        row,
        preprocessing,
        task.classes,
        experiment.total_steps(len(train)),
        len(train),
        task.fingerprint,
        task.pairs,
        _class_weights(config, train),
        _targets(train) if config.problem == "regression" else (),
    )
    if task.kind == "image":
        return found, cut
    words = Tokenizer(tokenizer or backbone.tokenizer(row, config.tokenizer))
    tokens = tokenised(train, words, config.max_tokens)
    longest = Texts(tokens, words, config.token_multiple, config.max_tokens).padded(int(tokens.shapes[:, 1].max()))
    truncated = tokens.facts["truncated"], tokens.facts["lost"]
    return dataclasses.replace(found, tokenizer=words.sha256, length=longest, truncated=truncated), cut


def _check(experiment: Experiment, task: Task, reads: str) -> None:
    """Raises InputError where the network, the data and what is asked of them do not go together."""
    config = experiment.task
    if reads != task.kind:
        name = experiment.backbone.name or experiment.backbone.weights
        held = {"image": "images", "text": "texts"}
        raise InputError(f"{name} reads {held[reads]}, and {config.dataset} holds {held[task.kind]}")
    if task.problem == "single_label" and len(task.classes) < 2:
        has = ", ".join(task.classes) or "none"
        raise InputError(f"{config.dataset} has one class, {has}: to train there must be at least two to tell apart")
    if config.balance not in ("", "loss", "sampling"):
        raise InputError(f"no task.balance {config.balance!r}; there are: loss, sampling")
    if config.problem != "single_label" and (config.balance or config.class_weights):
        raise InputError("task.balance and task.class_weights are of one class per example: of problem=single_label")
    if config.balance == "loss" and config.class_weights:
        raise InputError("task.balance=loss makes class weights, and task.class_weights gives them: keep one")
    if config.class_weights and len(config.class_weights) != len(task.classes):
        raise InputError(
            f"task.class_weights has {len(config.class_weights)}, {config.dataset} {len(task.classes)} classes"
        )
    if config.problem == "regression" and experiment.head.init == "pretrained":
        raise InputError("head.init=pretrained takes rows of classes by name, and a regression has none: use zeros")
    for key in ("mixup", "cutmix"):
        if getattr(experiment.regularise, key) and task.kind == "text":
            raise InputError(f"regularise.{key} mixes images, and {config.dataset} holds texts")
    if task.kind == "image":
        images.check(config)
    elif config.flip_test:
        raise InputError(f"task.flip_test mirrors images, and {config.dataset} holds texts")


def _class_weights(config: TaskConfig, train: Split) -> tuple[float, ...]:
    """n / (classes × n of the class), as scikit-learn balances; a class without examples weighs nothing."""
    if config.balance != "loss":
        return tuple(float(weight) for weight in config.class_weights)
    counts = np.bincount(train.labels, minlength=len(train.task.classes))
    weights = len(train) / (np.count_nonzero(counts) * np.maximum(counts, 1))
    return tuple(float(weight) for weight in np.where(counts, weights, 0))


def _targets(train: Split) -> tuple[tuple[float, float], ...]:
    labels = train.labels.astype(np.float64)
    spread = labels.std(axis=0)
    return tuple(zip(labels.mean(axis=0).tolist(), np.where(spread > 0, spread, 1.0).tolist(), strict=True))
