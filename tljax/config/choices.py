"""Names that a config's keys may have, as annotations; a test holds them and the tables of rows together."""

from typing import Annotated, Any

from tljax.config.ranges import Interval, NotNegative, OneOf, RegexStr
from tljax.config.references import is_reference


class OneOfOrReference(OneOf):
    """A registered name, or `package.module:name` of a user's own."""

    def check(self, path: str, value: Any) -> None:
        """Raises InputError for another name."""
        if not is_reference(value):
            super().check(path, value)


_STRATEGIES = (
    *("linear_probe", "last_k", "first_k", "surgical", "full", "layer_decay", "discriminative", "bias_only"),
    *("norm_only", "pattern", "lora", "adapter", "prompt", "mlp_head"),
)
_RECIPES = ("lp_ft", "gradual_unfreezing", "fine_tune", "phases")
_SCHEDULES = ("cosine", "linear", "constant")

Strategy = Annotated[str, OneOfOrReference(*_STRATEGIES)]
StrategyOrRecipe = Annotated[str, OneOfOrReference(*_STRATEGIES, *_RECIPES)]
Schedule = Annotated[str, OneOfOrReference(*_SCHEDULES)]
PhaseSchedule = Annotated[str, OneOfOrReference(*_SCHEDULES, "run")]
Optimizer = Annotated[str, OneOfOrReference("adamw", "sgd", "adafactor", "lamb", "lion", "muon")]
Average = Annotated[str, OneOf("", "ema", "swa")]
Augmentation = Annotated[
    str,
    OneOfOrReference(
        "flip", "flip_vertical", "shift", "rand_augment", "trivial_augment", "color_jitter", "random_erasing"
    ),
]
Crop = Annotated[str, OneOf("center", "random", "inception")]
Decoder = Annotated[str, OneOf("exact", "fast")]
Problem = Annotated[str, OneOfOrReference("single_label", "multi_label", "regression")]
Balance = Annotated[str, OneOf("", "loss", "sampling")]
HeadInit = Annotated[str, OneOf("zeros", "truncated_normal", "pretrained")]
BatchNormMode = Annotated[str, OneOf("frozen", "update_stats", "batch")]
Dtype = Annotated[str, OneOf("float32", "bfloat16")]
Channels = Annotated[int, OneOf(0, 1, 3, 4)]
StopOrSkip = Annotated[str, OneOf("stop", "skip")]
Direction = Annotated[str, OneOf("down", "up")]
NormWith = Annotated[str, OneOf("last_block", "head")]
FrozenLayout = Annotated[str, OneOf("replicated", "sharded")]
CacheMode = Annotated[str, OneOf("on", "off", "auto")]

DATASET_KINDS = ("folder", "csv", "jsonl", "parquet", "hf", "tfds", "memory")  # before the colon of a `task.dataset`

# Philox takes words of 64 bits without a sign, JAX with one.
Seed = Annotated[int, Interval(at_least=0), Interval(below=2**63)]
Workers = Annotated[int, Interval(at_least=0), Interval(at_most=1024)]
Multipliers = tuple[tuple[RegexStr, NotNegative], ...]


def is_dataset_function(name: str) -> bool:
    """Returns whether a `task.dataset` is `package.module:name` of a function, and not `KIND:PATH`."""
    return is_reference(name) and name.partition(":")[0] not in DATASET_KINDS
