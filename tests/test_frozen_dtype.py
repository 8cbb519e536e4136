"""`backbone.frozen_dtype=bfloat16`: what never trains is rounded once; what trains is what that gives, to rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from tests.conftest import tiny_run
from tljax.checkpoints.workdir import Workdir
from tljax.cli.convert import _from_run
from tljax.core.run import Run
from tljax.core.state import TrainState
from tljax.distributed import mesh
from tljax.training.trainer import train
from tljax.tuning.multipliers import digest

STRATEGIES = {"linear_probe": {}, "lora": {"tuning__rank": 2}, "last_k": {"tuning__k": 1}}


def _run(shapes, weights, strategy: str, **values) -> Run:
    return tiny_run(
        f"folder:{shapes}",
        "",
        backbone__weights=str(weights),
        tuning__strategy=strategy,
        **STRATEGIES[strategy] | values,
    )


def _leaves(state: TrainState) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in flatten_dict(state.params, sep="/").items()}


def _trained(run: Run, state: TrainState) -> tuple[TrainState, list[float]]:
    stream, losses = run.train_input(), []
    for number in range(3):
        step = run.programs.train_step(run.phases[0])
        state, metrics = step(state, mesh.put_batch(stream.batch(number), run.mesh))
        losses.append(float(metrics["loss"]))
    return state, losses


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_trains_is_what_rounded_weights_give(shapes, lively_weights, strategy):
    plain = _run(shapes, lively_weights, strategy)
    half = _run(shapes, lively_weights, strategy, backbone__frozen_dtype="bfloat16")
    multipliers = flatten_dict(plain.masks.multipliers, sep="/")
    state, start = half.init_state(), plain.init_state()
    dtypes = {path: leaf.dtype for path, leaf in _leaves(state).items()}
    assert dtypes == {path: jnp.float32 if multiplier else jnp.bfloat16 for path, multiplier in multipliers.items()}
    frozen = digest(half.frozen_leaves(state))
    rounded = {
        path: leaf if multipliers[path] else leaf.astype(jnp.bfloat16).astype(jnp.float32)
        for path, leaf in flatten_dict(start.params, sep="/").items()
    }
    assert any(np.any(rounded[path] != leaf) for path, leaf in flatten_dict(start.params, sep="/").items())
    start = start.replace(params=jax.device_put(unflatten_dict(rounded, sep="/"), plain.mesh.devices.flat[0]))
    (state, losses), (start, expected) = _trained(half, state), _trained(plain, start)
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    after = _leaves(start)
    for path, leaf in _leaves(state).items():
        np.testing.assert_allclose(
            leaf.astype(np.float32), after[path], rtol=0, atol=1e-5 * bool(multipliers[path]), err_msg=path
        )
    assert digest(half.frozen_leaves(state)) == frozen


def test_what_a_later_phase_trains_is_not_rounded(shapes, tiny_weights):
    run = tiny_run(
        f"folder:{shapes}",
        "",
        backbone__weights=str(tiny_weights),
        backbone__frozen_dtype="bfloat16",
        tuning__strategy="lp_ft",
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(run.abstract_state().params)} == {jnp.dtype(jnp.float32)}


def test_a_run_is_kept_resumed_and_exported(shapes, lively_weights, tmp_path):
    run = _run(shapes, lively_weights, "last_k", backbone__frozen_dtype="bfloat16", eval_every=3)
    train(run.experiment, tmp_path / "run")
    experiment, resolved = Workdir(tmp_path / "run").load()
    with Workdir(tmp_path / "run").checkpoints(experiment) as checkpoints:
        state = checkpoints.restore(6, Run(experiment, resolved).abstract_state(6))
    leaves = _leaves(state)
    _, arrays, _ = _from_run(Workdir(tmp_path / "run"), "latest")
    assert leaves["backbone/stem/kernel"].dtype == jnp.bfloat16 and leaves["head/kernel"].dtype == np.float32
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(arrays["params/stem/kernel"], leaves["backbone/stem/kernel"].astype(np.float32))
