"""How parameters move: the sections `tuning` and `optim` of a config."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from tljax.config import choices, ranges, references
from tljax.config.references import check_arguments, is_reference, resolve_reference
from tljax.errors import InputError

# What `config.json` has of every run, null where unset: names of runs are hashes of that. Later arguments are not here.
_STORED_ARGUMENTS = (
    *("k", "groups", "decay", "norm_with", "factor", "patterns", "rank", "alpha", "dropout", "rslora", "targets"),
    *("bottleneck", "parallel", "scale", "tokens", "deep", "hidden", "share", "probe_rate", "every", "by"),
    *("direction", "freeze_epochs", "phases"),
)
# Keys that name something with arguments -> the section of these.
ARGUMENT_SECTIONS = {
    "tuning.strategy": "tuning",
    "optim.name": "optim.args",
    "optim.schedule": "optim.schedule_args",
    "task.dataset": "task.dataset_args",
    "loss": "loss_args",
}
# What such a thing is given by tljax beside its first parameter: recipes, and schedules of a user's.
_SUPPLIED = {"tuning.strategy": ("peak",), "optim.schedule": ("steps", "warmup_steps")}


def argument_kinds(key: str, name: str) -> dict[str, Any]:
    """Returns the type of each argument of what a config names; `object` where the signature does not say.

    Args:
        key: one of `ARGUMENT_SECTIONS`.
        name: the key's value; but for strategies, only what is named as `module:name` has arguments.

    Raises:
        InputError: there is no such strategy, or nothing that a reference stands for.
    """
    has_arguments = choices.is_dataset_function(name) if key == "task.dataset" else is_reference(name)
    if key != "tuning.strategy" and not has_arguments:
        return {}
    function = references.look_up(name, key)
    kinds = references.kinds_of(function)
    return {
        argument: kinds.get(argument, object) for argument in references.parameters_of(function, _supplied(key, name))
    }


def _supplied(key: str, name: str) -> tuple[str, ...]:
    return () if key == "tuning.strategy" and is_reference(name) else _SUPPLIED.get(key, ())


@dataclass(frozen=True)
class PhaseConfig:
    """One of `tuning.phases`; `phases.py` says what each key does. All but the strategy may be left out.

    Attributes:
        strategy, arguments: as of `TuningConfig`, but for recipes; in a config the arguments stand beside the strategy.
        steps, epochs, share: its length, in one of them.
        learning_rate, schedule, warmup_steps: in place of those of `optim`; the schedule `run` is the whole run's.
    """

    strategy: choices.Strategy
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)
    steps: ranges.Positive | None = None
    epochs: ranges.AboveZero | None = None
    share: ranges.Part | None = None
    learning_rate: ranges.NotNegative | None = None
    schedule: choices.PhaseSchedule | None = None
    warmup_steps: ranges.Count | None = None

    @classmethod
    def from_dict(cls, values: Any, where: str) -> "PhaseConfig":
        """Returns a phase as a config has it, with every key, type and range checked.

        Raises:
            InputError: it is no dict with a strategy, or has a key or a value that it cannot have.
        """
        if not isinstance(values, Mapping) or "strategy" not in values:
            raise InputError(f"{where} needs a 'strategy' and its arguments in a dict; it is {ranges.shown(values)}")
        for key, value in values.items():
            if value is None:
                raise InputError(f"{where}.{key} is None: give a value, or leave it out")
        kinds = get_type_hints(cls, include_extras=True)
        del kinds["arguments"]
        keys = {key: ranges.coerce(values[key], kinds[key], f"{where}.{key}") for key in kinds if key in values}
        arguments = {key: value for key, value in values.items() if key not in kinds}
        return cls(**keys, arguments=_strategy_arguments(keys["strategy"], arguments, where, tuple(kinds)))


@dataclass(frozen=True)
class TuningConfig:
    """Which parameters train, and how fast.

    Attributes:
        strategy: a row of `strategies.STRATEGIES` or `recipes.RECIPES`; or `package.module:name` of a function
            `(layout, **arguments) -> {path: multiplier}` (`strategies.Layout`).
        group_rates: for any strategy: ((regex, factor), …) over group names; the first match multiplies what the
            strategy gives that group.
        arguments: the strategy's own, converted to the types of its signature, where their ranges stand (of `lora`,
            `adapter`, `prompt` and `mlp_head`: of their class in `peft.config`). In a config, on the command line and
            in a sweep they are keys beside the strategy: `tuning.k`.
    """

    strategy: choices.StrategyOrRecipe = "linear_probe"
    group_rates: choices.Multipliers = ()
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)  # among them may be dicts, without a hash
    phases: tuple[PhaseConfig, ...] = field(default=(), init=False, repr=False, compare=False)

    def __post_init__(self):
        arguments = _strategy_arguments(self.strategy, self.arguments, "tuning", ("strategy", "group_rates"))
        object.__setattr__(self, "arguments", arguments)
        phases = arguments["phases"] if self.strategy == "phases" else ()
        phases = tuple(PhaseConfig.from_dict(phase, f"tuning.phases[{place}]") for place, phase in enumerate(phases))
        object.__setattr__(self, "phases", phases)

    @classmethod
    def from_section(cls, values: Any, path: str) -> "TuningConfig":
        """Returns the section `tuning` of a config, with every key, type and range checked.

        Args:
            values: the keys of the section; an argument that is None is unset.
            path: the section's name in errors.

        Raises:
            InputError: the section is no dict, or has a key or a value that it cannot have.
        """
        if not isinstance(values, Mapping):
            raise InputError(f"{path} must be a section of keys and values, not {ranges.shown(values)}")
        kinds = get_type_hints(cls, include_extras=True)
        own = ("strategy", "group_rates")
        keys = {key: ranges.coerce(values[key], kinds[key], f"{path}.{key}") for key in own if key in values}
        unset = (*_STORED_ARGUMENTS, *argument_kinds("tuning.strategy", keys.get("strategy", cls.strategy)))
        arguments = {
            key: value for key, value in values.items() if key not in own and not (value is None and key in unset)
        }
        return cls(**keys, arguments=arguments)

    def to_section(self) -> dict[str, Any]:
        """Returns what `from_section` reads, with a null for each argument that is not set."""
        arguments = dict.fromkeys(_STORED_ARGUMENTS) | dict(self.arguments)
        return {"strategy": self.strategy, **arguments, "group_rates": self.group_rates}

    @property
    def references(self) -> tuple[str, ...]:
        """The strategies and schedules that are named as `module:name`."""
        names = [self.strategy, *(name for phase in self.phases for name in (phase.strategy, phase.schedule))]
        return tuple(name for name in names if is_reference(name))


def _strategy_arguments(
    strategy: str, arguments: Mapping[str, Any], where: str, beside: tuple[str, ...]
) -> dict[str, Any]:
    function = references.look_up(strategy, "tuning.strategy")
    if is_reference(strategy):
        try:
            inspect.signature(function).bind_partial("layout")
        except TypeError as error:
            message = f"{error}: it is called with the layout, and its arguments by name"
            raise InputError(f"tuning.strategy={strategy}: {message}") from error
    return check_arguments(function, arguments, where, strategy, _supplied("tuning.strategy", strategy), beside)


@dataclass(frozen=True)
class OptimConfig:
    """How parameters move.

    Attributes:
        name: a row of `optimizers.OPTIMIZERS`; or `package.module:name` of a function `(learning_rate, **args)` that
            gives an optax optimizer, as `optax:adabelief` (`optimizers.from_reference`).
        learning_rate: the peak, which a leaf's multiplier scales. Left out, it is the strategy's own (`defaults`), and
            so are a warm-up, weight_decay and clip_norm that are left out, too.
        schedule: a row of `optimizers.SCHEDULES`, from the end of the warm-up to the last step; or
            `package.module:name` of a function `(step, *, steps, warmup_steps, **schedule_args)`, of the step in the
            run or phase and its length, that gives the part of the learning rate, warm-up included.
        warmup_steps: linear from 0.
        warmup: the same as a part of the run or phase, in place of steps.
        weight_decay: on kernels only (no bias, norm, position embedding or token).
        momentum: of `sgd`.
        b1, b2: of `adamw`, `lamb` and `lion`; unset takes the optimizer's own.
        clip_norm: global norm over trainable leaves; 0 for none.
        accumulate: parts that a batch is computed in, one after another; the step stays that of the whole batch.
        sam_rho: radius of sharpness-aware minimization (2010.01412), which doubles a step's cost; 0 for none.
        average: what is evaluated beside being trained: empty for the parameters themselves, `ema` or `swa` for an
            average of them (`step.averaged`).
        average_decay: of `ema`.
        average_start: of `swa`: the part of the run after which it starts.
        on_nonfinite: `stop` the run at a loss or gradient that is no number, or `skip` that step and count it.
        args, schedule_args: the arguments of an optimizer, and of a schedule, that is named as `module:name`.
    """

    name: choices.Optimizer = "adamw"
    learning_rate: ranges.NotNegative | None = None
    schedule: choices.Schedule = "cosine"
    warmup_steps: ranges.Count = 0
    warmup: ranges.Rate = 0.0
    weight_decay: ranges.NotNegative = 0.0
    momentum: ranges.Rate = 0.9
    b1: ranges.Rate | None = None
    b2: ranges.Rate | None = None
    clip_norm: ranges.NotNegative = 0.0
    accumulate: ranges.Positive = 1
    sam_rho: ranges.NotNegative = 0.0
    average: choices.Average = ""
    average_decay: ranges.Rate = 0.999
    average_start: ranges.Rate = 0.75
    on_nonfinite: choices.StopOrSkip = "stop"
    args: dict[str, Any] = field(default_factory=dict, hash=False)
    schedule_args: dict[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self):
        if self.warmup and self.warmup_steps:
            raise InputError("optim.warmup and optim.warmup_steps are two lengths of one warm-up: give one of them")
        object.__setattr__(self, "args", _reference_arguments("optim.name", self.name, self.args))
        schedule_args = _reference_arguments("optim.schedule", self.schedule, self.schedule_args)
        object.__setattr__(self, "schedule_args", schedule_args)

    def warmup_of(self, steps: int) -> int:
        """Returns the steps of the warm-up of a run or phase of so many."""
        return self.warmup_steps or int(self.warmup * steps)

    @property
    def references(self) -> tuple[str, ...]:
        """The optimizer and the schedule, where they are named as `module:name`."""
        return tuple(name for name in (self.name, self.schedule) if is_reference(name))


def schedule_arguments(name: str, schedule: Callable[..., Any], steps: int, warmup_steps: int) -> dict[str, int]:
    """Returns what a schedule of a user's is given beside the step, of what it takes.

    Args:
        name: of the schedule, for errors.
        schedule: the function.
        steps, warmup_steps: of the run.

    Raises:
        InputError: there is a warm-up, and it takes none.
    """
    supplied = {"steps": steps, "warmup_steps": warmup_steps}
    taken = references.parameters_of(schedule)
    if warmup_steps and "warmup_steps" not in taken:
        raise InputError(f"{name} takes no warmup_steps: set optim.warmup_steps to 0, or have it take them")
    return {key: value for key, value in supplied.items() if key in taken}


def check_phase_schedules(tuning: TuningConfig, optim: OptimConfig) -> None:
    """Raises InputError where a phase's own schedule needs arguments, which `optim.schedule` alone is given."""
    for phase in tuning.phases:
        if is_reference(phase.schedule) and phase.schedule != optim.schedule:
            _reference_arguments("optim.schedule", phase.schedule, {})


def _reference_arguments(key: str, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    where = ARGUMENT_SECTIONS[key]
    arguments = {argument: value for argument, value in arguments.items() if value is not None}
    if is_reference(name):
        return check_arguments(resolve_reference(name, key), arguments, where, name, _supplied(key, name))
    if arguments:
        raise InputError(f"{where}.{next(iter(arguments))}: {name} takes none; they are of {key}=module:name")
    return {}
