"""What a config leaves to the data and the weights."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tljax.config.ranges import INT32
from tljax.config.schema import Experiment, TaskConfig
from tljax.data.dataset import Split, Task
from tljax.data.input_spec import INPUTS, ImageInput, InputSpec, input_spec
from tljax.data.preprocessing import Preprocessing
from tljax.data.splits import make_splits
from tljax.data.transforms import image
from tljax.data.transforms.tokenize import Tokenizer
from tljax.errors import InputError
from tljax.problems.registry import check_problem, problem_of
from tljax.weights import pretrained
from tljax.weights.adapt import with_channels
from tljax.weights.catalog import Pretrained


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

    @property
    def input_spec(self) -> InputSpec:
        """What the network reads: texts, if one has a length."""
        return input_spec("text" if self.length else "image", self.preprocessing, self.length)


def resolve(experiment: Experiment, task: Task, tokenizer: Path | None = None) -> tuple[Resolved, dict[str, Split]]:
    """Looks up what a config leaves open in the catalog and the data set; reads no weights.

    Args:
        experiment: the config.
        task: its data set.
        tokenizer: of a text's network, if not what lies beside the weights.

    Returns:
        What was left open, and the splits of the task that the config names (`splits.make_splits`).

    Raises:
        InputError: anything in the config names a thing that does not exist, or does not fit another.
    """
    config = experiment.task
    row = pretrained.resolve_weights(experiment.backbone)
    preprocessing = row.preprocessing
    if config.image_size:
        preprocessing = dataclasses.replace(preprocessing, size=config.image_size)
    if config.channels:
        preprocessing = with_channels(preprocessing, config.channels)
    kind = pretrained.reads(row)
    _check(experiment, task, kind)
    spec = input_spec(kind, preprocessing)
    if task.kind == "text":
        check_length(row, config.max_tokens)
    else:
        image.check_size(preprocessing)
    cut = make_splits(task, config)
    train = cut["train"]
    weights, steps = _class_weights(config, train), experiment.total_steps(len(train))
    if steps > INT32:
        raise InputError(f"config.epochs={experiment.epochs:g} are {steps} steps: at most {INT32} are counted")
    resolved = Resolved(
        row,
        preprocessing,
        task.classes,
        steps,
        len(train),
        task.fingerprint,
        task.pairs,
        weights,
        _targets(train),
    )

    def load_tokenizer() -> Tokenizer:
        return Tokenizer(tokenizer or pretrained.tokenizer(row, config.tokenizer))

    return dataclasses.replace(resolved, **spec.measured(train, config, load_tokenizer)), cut


def warnings(experiment: Experiment, resolved: Resolved) -> list[str]:
    """Returns a line for each thing that a run can be asked to do, but is seldom meant."""
    lines, size, rates = [], experiment.task.batch_size, [experiment.optim.learning_rate]
    if phases := experiment.tuning.phases:
        rates = [rates[0] if phase.learning_rate is None else phase.learning_rate for phase in phases]
    if not all(np.float32(rate) > 0 for rate in rates):
        lines.append("nothing moves where the learning rate is 0, as optim.learning_rate or one in tuning.phases is")
    if size > resolved.train_examples:
        count = resolved.train_examples
        lines.append(f"task.batch_size={size} is more than the {count} training examples: a step has some twice")
    return lines


def _check(experiment: Experiment, task: Task, kind: str) -> None:
    """Raises InputError where the network, the data and what is asked of them do not go together."""
    config, content = experiment.task, INPUTS[task.kind].noun()
    if kind != task.kind:
        name = experiment.backbone.name or experiment.backbone.weights
        nouns = INPUTS[kind].noun() if kind in INPUTS else kind
        raise InputError(f"{name} reads {nouns}, and {config.dataset} holds {content}")
    if problem_of(task.problem).one_class and len(task.classes) < 2:
        has = ", ".join(task.classes) or "none"
        raise InputError(f"{config.dataset} has one class, {has}: to train there must be at least two to tell apart")
    check_problem(experiment, len(task.classes))
    if config.balance == "loss" and config.class_weights:
        raise InputError("task.balance=loss makes class weights, and task.class_weights gives them: keep one")
    if config.class_weights and len(config.class_weights) != len(task.classes):
        raise InputError(
            f"task.class_weights has {len(config.class_weights)}, {config.dataset} {len(task.classes)} classes"
        )
    for key in ("mixup", "cutmix"):
        if getattr(experiment.regularize, key) and task.kind == "text":
            raise InputError(f"regularize.{key} mixes images, and {config.dataset} holds {content}")
    if task.kind == "image":
        image.check(config)
        return
    for key in ImageInput.config_keys:
        if getattr(config, key) != getattr(TaskConfig(), key):
            raise InputError(f"task.{key} is of images, and {config.dataset} holds {content}: leave it out")


def check_length(row: Pretrained, max_tokens: int) -> None:
    """Raises InputError for texts that may have more tokens than a row's network has positions."""
    most = pretrained.module_of(row).input_spec.max_tokens
    if most is not None and max_tokens > most:
        raise InputError(
            f"task.max_tokens={max_tokens} is more than the {most} positions of {row.backbone}: shorten it"
        )


def _class_weights(config: TaskConfig, train: Split) -> tuple[float, ...]:
    """Computes n / (classes × n of the class), as scikit-learn balances; a class without examples weighs nothing.

    Raises:
        InputError: the config's are 0 for all classes that are trained on.
    """
    if config.balance != "loss":
        if config.class_weights and not np.any(np.array(config.class_weights)[train.labels]):
            raise InputError(f"task.class_weights={config.class_weights}: nothing that is trained on would weigh")
        return config.class_weights
    counts = np.bincount(train.labels, minlength=len(train.task.classes))
    weights = len(train) / (np.count_nonzero(counts) * np.maximum(counts, 1))
    return tuple(float(weight) for weight in np.where(counts, weights, 0))


def _targets(train: Split) -> tuple[tuple[float, float], ...]:
    """Returns by what each value of the training split is scaled for the network, where it is."""
    try:
        return problem_of(train.task.problem).targets(train.labels, train.task.classes)
    except InputError as error:
        raise InputError(f"{train.task.name}: {error}") from error
