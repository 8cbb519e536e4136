"""Values that cannot mean anything, from any source: each is refused by its key's name, before anything is computed."""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from tests import config_fuzz
from tests.conftest import TINY, make_table, tiny_run
from tljax.cli import convert, evaluate, predict, report, sweep, train
from tljax.cli import inspect as inspect_verb
from tljax.config import choices
from tljax.config.schema import Experiment, default
from tljax.config.search_space import choice, grid, log_uniform, random, uniform, zipped
from tljax.config.serialization import to_dict, with_values
from tljax.config.tuning import argument_kinds
from tljax.core.classifier import HEAD_INITS
from tljax.core.resolve import warnings
from tljax.core.run import Run, prepare
from tljax.data.registry import SOURCES
from tljax.data.sources import memory
from tljax.data.transforms import image
from tljax.data.transforms.augment import AUGMENTATIONS
from tljax.errors import InputError
from tljax.models.registry import BACKBONES, BATCH_NORM_MODES
from tljax.problems.registry import PROBLEMS
from tljax.sweeps import trial
from tljax.training import trainer
from tljax.tuning import optimizers, phases, strategies

TABLE = Path(__file__).parent / "cases" / "config_values.tsv"
ROWS = [line.split("\t") for line in TABLE.read_text().splitlines()[1:]]
VALUES = [row for row in ROWS if not row[0].startswith("--")]
# Whose argument a key is, where the table does not say.
STRATEGY_OF = {"decay": "layer_decay", "factor": "discriminative", "direction": "gradual_unfreezing"}
STRATEGY_OF |= {"phases": "phases", "patterns": "pattern"}
# What the table calls a bound or a set of names, and what a message says of it.
SAID = {
    "0 or more": ["at least 0"],
    "1 or more": ["at least 1"],
    "above 0, at most 1": ["above 0 and at most 1"],
    "below 1": ["below 1"],
    "below 2**63": [str(2**63)],
    "an integer": ["must be int"],
    "64 hex digits": ["64 hexadecimal digits"],
    "float32 or bfloat16": ["float32, bfloat16"],
    "on, off or auto": ["on, off, auto"],
    "stop or skip": ["stop, skip"],
    "down or up": ["down, up"],
    "replicated or sharded": ["replicated, sharded"],
    "center, random, inception": ["center, random, inception"],
    "the memory": ["GB"],
    "positions": ["32 positions"],
    "the kernel's smaller side": ["kernel (16 x ", "give 1 to 16"],
    "the regex's own message": ["unterminated character set"],
    "one of the two": ["one of config.steps and config.epochs"],
}


def _read(text: str) -> Any:
    """What the table's text is in Python."""
    try:
        return eval(text, {"__builtins__": {}, "nan": math.nan, "inf": math.inf, "True": True})
    except (SyntaxError, NameError):
        return text


def _overrides(key: str, text: str) -> tuple[dict[str, Any], bool]:
    """The values by dotted key that a row of the table means, and whether they are of texts."""
    section, name = key.replace("regularize", "regularize").rpartition(".")[::2]
    text, _, note = re.fullmatch(r"(.+?)( \((.+)\))?", text).groups()
    text, place = re.fullmatch(r"(.+?)(?: (?:on|for|of) (.+))?", text).groups()
    overrides: dict[str, Any] = {"tuning.strategy": "full"}
    if section == "tuning":
        overrides["tuning.strategy"] = note or STRATEGY_OF.get(name, "full")
    elif note:
        overrides["epochs"] = float(note.removeprefix("with epochs "))
    if place == "batch 16":
        overrides["task.batch_size"] = 16
    overrides[f"{section}.{name}" if section else name] = 7 if text == "more than steps" else _read(text)
    return overrides, place == "texts" or name in ("max_tokens", "targets")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return make_table(tmp_path_factory.mktemp("data") / "table.csv")


def _run(overrides: dict[str, Any], is_text: bool, shapes: Path, table: Path, text_weights: Path) -> Run:
    """A run of six steps of eight examples that is asked all that `train` asks before it begins."""
    if is_text:
        config = default()
        config.steps, config.backbone.weights = 6, str(text_weights)
        config.task.update(dataset=f"csv:{table}", text=("text",), label=("label",), batch_size=8, max_tokens=16)
        run = prepare(Experiment.from_config(with_values(config.to_dict(), overrides)))
    else:
        keys = {key.replace(".", "__"): value for key, value in overrides.items()}
        run = tiny_run(f"folder:{shapes}", **keys)
    assert run.batch_size
    trainer._check_best(run)
    return run


@pytest.mark.parametrize(("key", "text", "right"), VALUES)
def test_a_value_of_the_table(key, text, right, shapes, table, tiny_text_weights, capsys):
    overrides, is_text = _overrides(key, text)
    values = {"steps": 6, **overrides}
    try:
        Experiment.from_config(with_values(default().to_dict(), values))
    except InputError as error:
        message = str(error)
    else:
        if right == "works with a warning: nothing moves":
            _run(overrides, is_text, shapes, table, tiny_text_weights)
            assert "nothing moves" in capsys.readouterr().err
            return
        with pytest.raises(InputError) as caught:
            _run(overrides, is_text, shapes, table, tiny_text_weights)
        message = str(caught.value)
    assert "\n" not in message
    assert key.split(".")[-1] in message.replace("image size", "image_size"), message
    for name in re.findall(r", (\w+) named", right):
        assert re.search(rf"did you mean .*{name}", message), message
    for said in (said for text, every in SAID.items() if text in right for said in every):
        assert said in message, message


FLAGS = {
    "--max-seconds": (train, sweep),
    "--workdir": (train, evaluate, predict),
    "--batch-size": (evaluate, predict),
    "--top": (predict,),
    "--interval": (evaluate,),
    "--resamples": (report,),
}
MORE = [("--root", "", (sweep,)), ("--out", "", (report, predict)), ("--jobs", "0", (sweep,))]
MORE += [("--sheet", "", (inspect_verb,)), ("--lr-find", "", (inspect_verb,)), ("--num-processes", "0", (train,))]
MORE += [("--process-id", "-1", (train,)), ("--join-timeout", "nan", (train,)), ("--sha256", "abc", (convert,))]
MORE += [("--max-seconds", value, (train, sweep)) for value in ("inf", "soon", "1e400")]
MORE += [("--interval", value, (evaluate,)) for value in ("-1", "inf")]


@pytest.mark.parametrize(
    ("flag", "text", "verb"),
    [
        (flag.split(" ")[0], text.replace("(empty)", ""), verb)
        for flag, text, verbs in [
            *((key, text, FLAGS[key.split(" ")[0]]) for key, text, _ in ROWS if key[0] == "-"),
            *MORE,
        ]
        for verb in verbs
    ],
)
def test_a_flag_of_the_table(flag, text, verb, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        verb.main([f"{flag}={text}"])
    assert f"argument {flag}: " in str(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [1e39, -1e308, 10**400, 1e-45, 1e-300])
def test_what_float32_cannot_hold_is_refused(value):
    with pytest.raises(InputError, match=r"config.optim.learning_rate must be a (finite|larger) number \(of float32\)"):
        Experiment.from_config({"steps": 1, "optim": {"learning_rate": value}})


def test_a_flag_that_is_missing_is_named_in_a_line():
    with pytest.raises(InputError, match=r"required: --workdir; see python -m tljax train --help"):
        train.main([])


@pytest.mark.parametrize(
    ("sweeps", "message"),
    [
        (
            lambda: grid({"seed": (0, 1), "optim.momentum": (0.9, 1.5)}),
            "config.optim.momentum must be .*below 1, not 1.5",
        ),
        (lambda: grid({"optim.learning_rate": (math.nan,)}), "config.optim.learning_rate must be a finite number"),
        (lambda: grid({"optim.schedule": ("cosin",)}), r"config.optim.schedule 'cosin' \(did you mean cosine\?\)"),
        (lambda: grid({"seed": 3}), "seed needs a list of values, not 3"),
        (lambda: zipped({"optim.schedule": "cosine"}), "optim.schedule needs a list of values, not 'cosine'"),
        (lambda: random(-1, 0, {}), "random draws a count of runs, 0 or more, not -1"),
        (lambda: random(1, 0, {"seed": 3}), "random needs a distribution of seed"),
        (lambda: [uniform(0, math.nan)], "uniform needs low <= high, both finite"),
        (lambda: [log_uniform(1, math.inf)], "log_uniform needs 0 < low <= high, both finite"),
        (lambda: [choice()], "choice needs values"),
        (lambda: {"seed": (1, 2)}, r"sweep\(\) must return dicts, one for each run, not {'seed': \(1, 2\)}"),
        (lambda: None, r"sweep\(\) must return dicts, one for each run, not None"),
        (lambda: ["seed"], r"sweep\(\) must yield a dict of values by key for each run, not 'seed'"),
        (lambda: [{3: 1}], "no key config.3"),
    ],
)
def test_a_sweep_is_checked_as_it_is_read(sweeps, message, tmp_path):
    with pytest.raises(InputError, match=message):
        trial.make_trials(Experiment(steps=1), sweeps(), tmp_path)


PROBE = {"strategy": "linear_probe", "share": 0.5}


@pytest.mark.parametrize(
    ("phase", "message"),
    [
        ({"learning_rate": math.nan}, "learning_rate must be a finite number"),
        ({"learning_rate": -1.0}, "learning_rate must be at least 0"),
        ({"share": 1.5}, "share must be above 0 and at most 1"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"steps": "9"}, "steps must be int"),
        ({"epochs": -1.0}, "epochs must be above 0"),
        ({"warmup_steps": -1}, "warmup_steps must be at least 0"),
        ({"schedule": "x"}, "schedule 'x'; there are: cosine, linear, constant, run"),
        ({"strategy": "lp_ft"}, "strategy 'lp_ft'"),
        ({"strategy": "last_k", "k": None}, "k is None: give a value, or leave it out"),
        ({"strategy": "lora", "rank": 0}, "rank must be at least 1"),
    ],
)
def test_a_phase_is_checked_as_it_is_read(phase, message):
    tuning = {"strategy": "phases", "phases": ({**PROBE, **phase}, {"strategy": "full"})}
    with pytest.raises(InputError) as error:
        Experiment.from_config({"steps": 9, "tuning": tuning})
    assert "tuning.phases[0]." in str(error.value) and message in str(error.value)


def test_the_names_in_the_schema_are_those_that_there_are():
    tables = {
        choices.Strategy: strategies.STRATEGIES,
        choices.StrategyOrRecipe: [*strategies.STRATEGIES, *phases.RECIPES],
        choices.Schedule: optimizers.SCHEDULES,
        choices.Optimizer: optimizers.OPTIMIZERS,
        choices.Augmentation: AUGMENTATIONS,
        choices.Crop: image.CROPS,
        choices.Decoder: image.DECODERS,
        choices.Problem: PROBLEMS,
        choices.HeadInit: [*HEAD_INITS, "pretrained"],
        choices.BatchNormMode: BATCH_NORM_MODES,
    }
    for annotation, rows in tables.items():
        assert get_args(annotation)[1].values == tuple(rows), annotation
    assert (*SOURCES, "tfds", memory.PREFIX) == choices.DATASET_KINDS


def test_every_argument_of_a_strategy_has_a_range():
    for strategy in (*strategies.STRATEGIES, *phases.RECIPES):
        kinds = argument_kinds("tuning.strategy", strategy)
        assert not {int, float, int | None, float | None, object} & set(kinds.values()), strategy


def test_every_number_of_the_schema_has_a_range():
    def numbers(section: Any) -> list[str]:
        kinds = get_type_hints(type(section), include_extras=True)
        nested = [
            line for value in vars(section).values() if dataclasses.is_dataclass(value) for line in numbers(value)
        ]
        return [name for name, kind in kinds.items() if kind in (int, float, int | None, float | None)] + nested

    assert numbers(Experiment()) == []


def test_what_is_seldom_meant_is_said(shapes):
    run = tiny_run(f"folder:{shapes}", task__batch_size=32)
    assert warnings(run.experiment, run.resolved) == [
        "task.batch_size=32 is more than the 24 training examples: a step has some twice"
    ]
    with pytest.raises(InputError, match=r"task.batch_size=2147483647 is too large: 699050 have 2147483647 values"):
        tiny_run(f"folder:{shapes}", task__batch_size=2**31 - 1).batch_size  # noqa: B018
    assert to_dict(Experiment.from_config(to_dict(run.experiment))) == to_dict(run.experiment)


def test_odd_values_are_accepted_or_refused_by_name(shapes, monkeypatch):
    monkeypatch.setitem(BACKBONES, "tiny_vit", TINY["tiny_vit"])
    base = config_fuzz.base()
    base["backbone"]["name"], base["tuning"]["strategy"] = "tiny_vit", "full"
    base["task"].update(dataset=f"folder:{shapes}", image_size=32, batch_size=8)

    def check(values: dict[str, Any]) -> None:
        run = prepare(Experiment.from_config(values))
        assert run.batch_size
        trainer._check_best(run)

    for key, values in config_fuzz.odd_values(seed=0, count=150):
        assert config_fuzz.outcome(key, values, check, base) in ("accepted", "refused"), key
