"""Frozen means frozen, for every strategy and both kinds of backbone: bits, optimizer state and FLOPs."""

import functools

import jax
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from tests.conftest import make_folder
from tljax import config, metrics, sharding, step
from tljax.config import Experiment
from tljax.cost import cost, optimizer_state_bytes
from tljax.data import tasks
from tljax.run import Run, resolve
from tljax.strategies import STRATEGIES

BACKBONES = {"vit_tiny_patch16": 32, "resnet18": 64}
ARGUMENTS = {
    "linear_probe": {},
    "last_k": {"k": 2},
    "full": {},
    "first_k": {"k": 2},
    "surgical": {"groups": ("block_1",)},
    "layer_decay": {"decay": 0.75},
    "discriminative": {},
    "bias_only": {},
    "norm_only": {},
    "pattern": {"patterns": ((r"head/.*", 1.0), (r".*/(bias|scale)", 0.5), (r".*", 0.0))},
    "lora": {"rank": 2, "dropout": 0.1},
    "adapter": {"bottleneck": 4},
    "prompt": {"tokens": 2, "deep": True},
    "mlp_head": {"hidden": 8},
}
CASES = [(backbone, strategy) for backbone in BACKBONES for strategy in ARGUMENTS]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return f"folder:{make_folder(tmp_path_factory.mktemp('freezing') / 'shapes')}"


@functools.cache
def _run(dataset: str, backbone: str, strategy: str) -> Run:
    """With everything on that could read a frozen gradient: clip, weight decay, gradient norm."""
    values = config.default()
    values.steps, values.backbone.name = 6, backbone
    values.task.update(dataset=dataset, image_size=BACKBONES[backbone], batch_size=8, augment=("flip",))
    values.optim.update(learning_rate=1e-2, weight_decay=0.1, clip_norm=1.0)
    values.tuning.update(strategy=strategy, **ARGUMENTS[strategy])
    experiment = Experiment.from_config(values)
    return Run(experiment, resolve(experiment))


def test_every_strategy_is_here():
    assert set(ARGUMENTS) == set(STRATEGIES)


@pytest.mark.parametrize(("backbone", "strategy"), CASES)
def test_frozen_leaves_keep_their_bits_and_every_other_moves(dataset, backbone, strategy):
    run = _run(dataset, backbone, strategy)
    state = run.init_state()
    before = jax.tree.map(np.array, (state.params, state.batch_stats))
    stream = run.train_input(tasks.load(dataset))
    for number in range(5):
        state, found = run.train_step(state, sharding.put_batch(stream.batch(number), run.mesh))
    assert int(state.step) == 5
    assert found["grad_norm"] > 0
    multipliers = flatten_dict(run.multipliers, sep="/")
    after = flatten_dict(state.params, sep="/")
    for path, old in flatten_dict(before[0], sep="/").items():
        same = old.tobytes() == np.asarray(after[path]).tobytes()
        assert same == (multipliers[path] == 0), path
    stats = flatten_dict(state.batch_stats, sep="/")
    for path, old in flatten_dict(before[1], sep="/").items():
        same = old.tobytes() == np.asarray(stats[path]).tobytes()
        assert same == (path.split("/")[1] in run.frozen), path


@pytest.mark.parametrize(("backbone", "strategy"), CASES)
def test_optimizer_state_is_of_trainable_leaves_only(dataset, backbone, strategy):
    run = _run(dataset, backbone, strategy)
    state = run.abstract_state
    multipliers = flatten_dict(run.multipliers, sep="/")
    shapes = sorted(
        tuple(leaf.shape) for path, leaf in flatten_dict(state.params, sep="/").items() if multipliers[path]
    )
    moments = [tuple(leaf.shape) for leaf in jax.tree.leaves(state.opt_state) if leaf.dtype == np.float32]
    assert sorted(moments) == sorted(shapes * 2)
    trainable = sum(int(np.prod(shape)) for shape in shapes)
    assert optimizer_state_bytes(state.opt_state) == 8 * trainable


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_linear_probe_costs_a_forward_pass(dataset, backbone):
    found = cost(_run(dataset, backbone, "linear_probe"))
    assert found["step_flops"] <= 1.05 * found["forward_flops"]
    assert found["step_share_of_full"] < 0.36


@pytest.mark.parametrize("backbone", BACKBONES)
def test_cost_falls_with_what_is_frozen(dataset, backbone):
    flops = [cost(_run(dataset, backbone, strategy)) for strategy in ("linear_probe", "last_k", "full")]
    probe, last, full = (found["step_flops"] for found in flops)
    assert probe < last < full
    assert full > 2.5 * flops[0]["forward_flops"]
    assert flops[2]["step_share_of_full"] == 1.0
    assert all(found["trainable_params"] + found["frozen_params"] == flops[2]["trainable_params"] for found in flops)


def test_reading_frozen_gradients_would_cost_the_whole_backward_pass(dataset, monkeypatch):
    """The mistake that the step is written to avoid, put back: the bound above is one that can fail."""

    def careless(state, batch, *, forward, **others):
        def loss(params):
            logits, _ = forward(params, state.batch_stats, batch["image"], train=True)
            return metrics.cross_entropy(logits, batch["label"]).sum()

        after, found = step.train_step(state, batch, forward=forward, **others)
        return after, found | {"grad_norm": optax.tree.norm(jax.grad(loss)(state.params))}

    run = _run(dataset, "vit_tiny_patch16", "linear_probe")
    monkeypatch.setattr("tljax.run.train_step", careless)
    careless_flops = run.lower_train_step().compile().cost_analysis()["flops"]
    assert careless_flops > 2 * run.train_step.cost_analysis()["flops"]
