"""Strategies, optimizers and schedules of a user's own, by `module:name`, from the file beside the config."""

import argparse
import importlib
import json
import re
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from tests.conftest import tiny_run
from tests.extending.conftest import EXAMPLES
from tests.test_tuning import VIT
from tljax.checkpoints.workdir import Workdir
from tljax.cli import flags
from tljax.config import references
from tljax.config.references import is_reference, resolve_reference, source_hash
from tljax.config.schema import Experiment, OptimConfig
from tljax.config.serialization import to_dict
from tljax.distributed import mesh
from tljax.errors import InputError
from tljax.sweeps.trial import make_trials
from tljax.tuning import optimizers
from tljax.tuning.multipliers import multiplier_tree
from tljax.tuning.phases import Length, phases

CONFIG = """
from tljax.config import default

def get_config():
    config = default()
    config.steps = 10
    config.tuning.strategy = "my_strategy:every_nth"
    config.tuning.stride = 3
    config.optim.name = "my_optimizer:scaled_sgd"
    config.optim.learning_rate = 1e-3
    config.optim.args.scale = 2
    return config
"""
STRATEGY = "my_strategy:every_nth"
MODULES = ("my_strategy", "my_optimizer")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with a config and a user's modules, of which `sys.path` knows nothing."""
    for module in MODULES:
        shutil.copy(EXAMPLES / f"{module}.py", tmp_path)
        monkeypatch.delitem(sys.modules, module, raising=False)
    (tmp_path / "config.py").write_text(CONFIG)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(EXAMPLES)])
    monkeypatch.setattr(references, "_of_runs", {})
    yield tmp_path
    for module in MODULES:
        sys.modules.pop(module, None)


def _experiment(folder: Path, *arguments: str) -> Experiment:
    return flags.parse_experiment(argparse.ArgumentParser(), [f"--config={folder / 'config.py'}", *arguments])[0]


def test_a_strategy_beside_the_config(folder):
    tuning = _experiment(folder).tuning
    assert (tuning.strategy, tuning.arguments) == (STRATEGY, {"stride": 3})
    tree = flatten_dict(multiplier_tree(tuning.strategy, tuning.arguments, VIT), sep="/")
    trained = {VIT.group_of[path] for path, multiplier in tree.items() if multiplier}
    assert trained == {"stem", "block_2", "block_5", "block_8", "block_11", "head"}


def test_flags_are_read_by_the_signature(folder):
    experiment = _experiment(folder, "--config.tuning.stride=4", "--config.optim.args.scale=0.5")
    assert experiment.tuning.arguments == {"stride": 4}
    assert experiment.optim.args == {"scale": 0.5}
    other = _experiment(folder, "--config.tuning.strategy=lora", "--config.tuning.rank=4", "--config.optim.name=sgd")
    assert (other.tuning.arguments, other.optim.args) == ({"rank": 4}, {})


def test_a_config_with_references_is_written_and_read(folder, tmp_path):
    experiment = _experiment(folder)
    values = json.loads(json.dumps(to_dict(experiment)))
    assert values["tuning"]["stride"] == 3 and values["tuning"]["k"] is None
    assert Experiment.from_config(values) == experiment
    names = {STRATEGY: "tuning.strategy", "my_optimizer:scaled_sgd": "optim.name"}
    sources = {name: source_hash(resolve_reference(name, key)) for name, key in names.items()}
    assert experiment.references == sources and {len(source) for source in sources.values()} == {64}
    (first,) = make_trials(experiment, [{"tuning.stride": 2}], tmp_path)
    assert first.folder.name.startswith("my_strategy.every_nth-")
    (tmp_path / "my_strategy.py").write_text((tmp_path / "my_strategy.py").read_text() + "\n")
    (changed,) = make_trials(experiment, [{"tuning.stride": 2}], tmp_path)
    assert changed.folder != first.folder


def test_names_of_runs_are_what_they_were(tmp_path):
    """Before a strategy's arguments were its signature's, and before there was `optim.args`."""
    phases = ({"strategy": "layer_decay", "decay": 1, "share": 0.5}, {"strategy": "full"})
    overrides = [
        {"tuning.strategy": "linear_probe"},
        {"tuning.strategy": "last_k", "tuning.k": 2},
        {"tuning.strategy": "phases", "tuning.phases": phases, "optim.learning_rate": 1},
    ]
    names = [
        trial.name
        for trial in make_trials(Experiment(steps=6, optim=OptimConfig(learning_rate=1e-3)), overrides, tmp_path)
    ]
    assert names == ["linear_probe-f016e350fc", "last_k-13a49633cc", "phases-1f8a25247b"]


def test_phases_take_references(folder):
    _experiment(folder)
    own = {"strategy": STRATEGY, "stride": 4, "share": 0.5, "schedule": "my_optimizer:power"}
    tuning = {"strategy": "phases", "phases": [own, {"strategy": "full"}]}
    experiment = Experiment.from_config({"steps": 10, "tuning": tuning})
    first, _ = phases(experiment.tuning, experiment.optim, Length(10, 5.0, VIT))
    assert first.strategy == STRATEGY and first.arguments == {"stride": 4} and "stem" not in first.frozen
    assert [float(first.shape(step)) for step in (0, 4)] == pytest.approx([1.0, 0.2])


def test_an_optimizer_is_scaled_and_decays_as_ours_do(folder):
    _experiment(folder)
    params = {"fast": {"kernel": jnp.ones(3)}, "slow": {"kernel": jnp.ones(3)}}
    multipliers = {"fast": {"kernel": 1.0}, "slow": {"kernel": 0.5}}
    config = OptimConfig("my_optimizer:scaled_sgd", weight_decay=0.1, args={"scale": 3})
    tx = optimizers.optimizer(config, multipliers)
    updates, _ = tx.update(jax.tree.map(lambda leaf: 2 * leaf, params), tx.init(params), params)
    np.testing.assert_allclose(updates["fast"]["kernel"], 6.1, rtol=1e-6)
    np.testing.assert_allclose(updates["slow"]["kernel"], 3.05, rtol=1e-6)


def test_an_optimizer_of_optax_is_optaxs(folder):
    params = {"kernel": jnp.arange(3.0)}
    ours = optimizers.optimizer(OptimConfig("optax:adabelief", args={"b1": 0.5}), {"kernel": 1.0})
    adabelief = resolve_reference("optax:adabelief", "optim.name")(0.1, b1=0.5)
    state, their_state = ours.init(params), adabelief.init(params)
    for _ in range(3):
        grads = jax.tree.map(jnp.cos, params)
        updates, state = ours.update(grads, state, params)
        their_updates, their_state = adabelief.update(grads, their_state, params)
        np.testing.assert_allclose(-0.1 * updates["kernel"], their_updates["kernel"], rtol=1e-6)
        params = jax.tree.map(lambda leaf, update: leaf + update, params, their_updates)


def test_a_schedule_gives_the_part_of_the_rate(folder):
    _experiment(folder)
    schedule = optimizers.schedule("my_optimizer:power", 2.0, 0, 10, {"exponent": 2.0})
    assert [float(schedule(step)) for step in (0, 5)] == pytest.approx([2.0, 0.5])


def test_a_run_trains_by_references(folder, shapes):
    references.look_in(folder)
    run = tiny_run(
        f"folder:{shapes}",
        tuning__strategy=STRATEGY,
        tuning__stride=2,
        optim__name="my_optimizer:scaled_sgd",
        optim__schedule="my_optimizer:power",
    )
    frozen = {path for path, multiplier in flatten_dict(run.masks.multipliers, sep="/").items() if not multiplier}
    assert {path.split("/")[1] for path in frozen} == {"block_0", "block_2"}
    state = run.init_state()
    _, metrics = run.programs.train_step(run.phases[0])(state, mesh.put_batch(run.train_input().batch(0), run.mesh))
    assert float(metrics["learning_rate"]) == pytest.approx(0.1)
    workdir = Workdir(folder / "run")
    with workdir.locked():
        workdir.start(run.experiment, run.resolved)
    assert workdir.load()[0] == run.experiment and set(workdir.origin["references"]) == set(run.experiment.references)
    _check_a_later_process(workdir, run.experiment, folder)


def _check_a_later_process(workdir: Workdir, experiment: Experiment, folder: Path):
    """A verb that is given the workdir alone looks for modules where the run had them."""
    sys.path.remove(str(folder))
    del sys.modules["my_strategy"]
    assert workdir.load()[0] == experiment and sys.path[-1] == str(folder)
    (folder / "elsewhere").mkdir()
    (folder / "my_strategy.py").rename(folder / "elsewhere" / "my_strategy.py")
    del sys.modules["my_strategy"]
    importlib.invalidate_caches()
    with pytest.raises(
        InputError, match=f"no module my_strategy.* PYTHONPATH .the run had it in {re.escape(str(folder))}"
    ):
        workdir.load()
    with pytest.raises(InputError, match="my_strategy of /there is another than that of"):
        references.look_where_a_run_did({STRATEGY: "/there"}, {STRATEGY: "another source"})


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("tuning", {}, "tuning.stride is required by my_strategy:every_nth(layout, *, stride)"),
        (
            "tuning",
            {"strid": 3},
            "my_strategy:every_nth takes no tuning.strid (did you mean stride?); it takes: stride",
        ),
        ("tuning", {"stride": "x"}, "tuning.stride must be int, not str 'x'"),
        ("tuning", {"strategy": "my_strategy:every_nht"}, "my_strategy has no every_nht (did you mean every_nth?)"),
        (
            "tuning",
            {"strategy": "my_strateg:every_nth"},
            "no module my_strateg (did you mean my_strategy?): put",
        ),
        ("tuning", {"strategy": "my_strategy:Layout.blocks"}, "it is <property object"),
        (
            "optim",
            {"name": "my_optimizer:scaled_sgd", "args": {"scal": 1.0}},
            "takes no optim.args.scal (did you mean",
        ),
        ("optim", {"name": "my_optimizer:scaled_sgd", "args": {"scale": "x"}}, "optim.args.scale must be float, not"),
        ("optim", {"args": {"scale": 1.0}}, "optim.args.scale: adamw takes none"),
        ("optim", {"schedule": "my_optimizer:powr"}, "my_optimizer has no powr (did you mean power?)"),
        (
            "optim",
            {"schedule": "my_optimizer:power", "schedule_args": {"steps": 3}},
            "takes no optim.schedule_args.steps",
        ),
        ("optim", {"schedule": "my_optimizer"}, "no config.optim.schedule 'my_optimizer'"),
    ],
)
def test_what_cannot_be_used_is_a_line(folder, section, values, message):
    sys.path.append(str(folder))
    values = {"strategy": STRATEGY, **values} if section == "tuning" else values
    with pytest.raises(InputError) as error:
        Experiment.from_config({"steps": 1, section: values})
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_module_that_fails_is_its_line(folder):
    sys.path.append(str(folder))
    (folder / "broken_strategies.py").write_text("import os\n\nimport no_such_package\n")
    with pytest.raises(InputError, match=r"broken_strategies.py, line 3: ModuleNotFoundError: .*no_such_package"):
        resolve_reference("broken_strategies:every_nth", "tuning.strategy")


def test_what_a_strategy_returns_is_checked(folder):
    sys.path.append(str(folder))
    with (folder / "my_strategy.py").open("a") as file:
        file.write("\n\ndef everything(layout, stride=2):\n    return stride\n")
    sys.path.append(str(folder))
    with pytest.raises(InputError, match="my_strategy:everything must return a dict of a multiplier for each path"):
        multiplier_tree("my_strategy:everything", {}, VIT)


def test_a_flag_for_what_is_no_argument_is_named(folder):
    with pytest.raises(InputError, match=r"every_nth takes no tuning.strid \(did you mean stride\?\)"):
        _experiment(folder, "--config.tuning.strid=3")


@pytest.mark.parametrize(("name", "reference"), [("a.b:c", True), ("last_k", False), ("a:b:c", False), (3, False)])
def test_a_reference_is_module_and_name(name, reference):
    assert is_reference(name) == reference
