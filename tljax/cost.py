"""What a run's step costs, read from the compiled programs: the proof that frozen means frozen."""

import jax
import jax.numpy as jnp

from tljax import tuning
from tljax.run import Run


def cost(run: Run) -> dict[str, int | float]:
    """The cost block of `result.json` and `inspect`.

    Returns:
        `trainable_params`, `frozen_params`: numbers of parameters.
        `optimizer_state_bytes`: of the moments; step counters are left out.
        `forward_flops`, `step_flops`: of one training batch over all devices, from the compiled evaluation and
            training step.
        `step_temp_bytes`: that the training step needs on each device beside its arguments.
        `step_share_of_full`: the step's FLOPs over those of one that trains everything, both counted before
            optimisation (to compile the full step only for this would take longer than anything else here).
    """
    forward = run.eval_step(run.batch_size)
    lowered, full = run.lower_train_step(), run.lower_train_step(jax.tree.map(lambda _: 1.0, run.multipliers))
    sizes = jax.tree.map(lambda leaf: leaf.size, run.abstract_state.params)
    trainable = sum(jax.tree.leaves(tuning.select(sizes, run.multipliers)))
    return {
        "trainable_params": trainable,
        "frozen_params": sum(jax.tree.leaves(sizes)) - trainable,
        "optimizer_state_bytes": optimizer_state_bytes(run.abstract_state.opt_state),
        "forward_flops": _flops(forward) * run.mesh.size,
        "step_flops": _flops(run.train_step) * run.mesh.size,
        "step_temp_bytes": run.train_step.memory_analysis().temp_size_in_bytes,
        "step_share_of_full": _flops(lowered) / _flops(full),
    }


def optimizer_state_bytes(opt_state) -> int:
    """Bytes of an optimizer state's floating-point arrays (its counters are integers)."""
    leaves = jax.tree.leaves(opt_state)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating))


def _flops(program: jax.stages.Compiled | jax.stages.Lowered) -> float:
    """Of the whole batch where the program is only lowered, of one device's share where it is compiled."""
    return float(program.cost_analysis()["flops"])
