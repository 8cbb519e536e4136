"""What a run's step costs, read from the compiled programs: the proof that frozen means frozen."""

import dataclasses
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp

from tljax.core.run import Run
from tljax.models.kernels import ops
from tljax.profiling import flops
from tljax.tuning.masks import partition
from tljax.tuning.multipliers import Tree
from tljax.tuning.phases import Phase

Block = dict[str, Any]

_ANALYSED: weakref.WeakKeyDictionary[jax.stages.Compiled, Any] = weakref.WeakKeyDictionary()


def cost(run: Run) -> Block:
    """Returns the cost block of `result.json` and `inspect`.

    Returns:
        `trainable_params`, `frozen_params`: numbers of parameters that train in some phase, and in none.
        `optimizer_state_bytes`: of the moments; step counters are left out.
        `forward_flops`, `step_flops`: of one training batch over all devices, from the compiled evaluation (of a batch
            of another size, in proportion) and training step. With the feature cache, a step is what is left of it,
            and the forward pass, which no program has as a whole, is counted by `flops`. On a GPU both are: XLA
            counts nothing there of what cuDNN and cuBLAS compute.
        `step_temp_bytes`: that the training step needs on each device beside its arguments.
        `step_peak_bytes`: the same with its arguments: parameters, optimizer state and batch.
        `evaluation_peak_bytes`: the same of the evaluation step.
        `step_share_of_full`: the step's FLOPs over those of one that trains everything, both counted by `flops` (to
            compile the full step only for this would take longer than anything else here).
        `phases`: where there are several, a block for each; the FLOPs above are then the mean over all steps, the
            bytes the highest.
    """
    rows = evaluation_rows(run)
    # The compiler needs no Python, which is one thread's at a time: it is at one program while the next is traced.
    with ThreadPoolExecutor() as pool:
        traced, compiled = [], []
        for phase in run.phases:
            prefix = run.prefix_length(phase)
            traced.append(run.programs.trace_train_step(phase, start=prefix))
            lowered = traced[-1].lower()
            compiled.append(pool.submit(run.programs.train_step, phase, start=prefix, lowered=lowered))
        last = run.phases[-1]
        start = run.evaluation_prefix_length(last)
        evaluated = run.programs.trace_eval_step(rows, start=start)
        evaluating = pool.submit(run.programs.eval_step, rows, start=start, lowered=evaluated.lower())
        counted = [flops.count(step.jaxpr) for step in traced]
        full = counted[-1] if _trains_everything(last) else _of_everything(run, last)
        programs, evaluation = [future.result().program for future in compiled], evaluating.result()
    if start or not _counts():
        forward = flops.count(evaluated.jaxpr) + of_prefix(run, start) * rows
    else:
        forward = _flops(evaluation) * run.mesh.size
    common = {"forward_flops": forward * run.batch_size / rows, "evaluation_peak_bytes": peak_bytes(evaluation)}
    blocks = [
        _of_phase(run, phase, program, own) | common | {"step_share_of_full": own / full}
        for phase, program, own in zip(run.phases, programs, counted, strict=True)
    ]
    if len(blocks) == 1:
        return blocks[0]
    lengths = [phase.stop - phase.start for phase in run.phases]

    def mean(key: str) -> float:
        return sum(block[key] * n for block, n in zip(blocks, lengths, strict=True)) / sum(lengths)

    bytes_ = ("optimizer_state_bytes", "step_temp_bytes", "step_peak_bytes")
    return {
        **_parameters(run, run.masks.multipliers),
        **common,
        **{key: mean(key) for key in ("step_flops", "step_share_of_full")},
        **{key: max(block[key] for block in blocks) for key in bytes_},
        "phases": blocks,
    }


def of_prefix(run: Run, stop: int) -> float:
    """Returns the FLOPs of the first `stop` groups for one example."""
    return flops.count(run.programs.trace_prefix(stop).jaxpr) / run.mesh.size if stop else 0.0


def evaluation_rows(run: Run) -> int:
    """Returns how many examples are evaluated at a time, over all devices; the batch size where none are."""
    config = run.experiment.task
    held_out = [name for name in ("validation", "test") if getattr(config, name)]
    if not held_out:
        return run.batch_size
    rows = min(config.eval_batch_size, max(len(run.inputs.splits[name]) for name in held_out))
    return -(-rows // run.mesh.size) * run.mesh.size


def _of_phase(run: Run, phase: Phase, program: jax.stages.Compiled, counted: float) -> Block:
    # XLA counts the body of a loop once. The optimizer's few FLOPs are thereby counted with every part: no less.
    parts = run.experiment.optim.accumulate
    return {
        **_parameters(run, phase.multipliers),
        "optimizer_state_bytes": optimizer_state_bytes(run.programs.abstract_state(phase).opt_state),
        "step_flops": _flops(program) * run.mesh.size * parts if _counts() else counted,
        "step_temp_bytes": _memory(program).temp_size_in_bytes,
        "step_peak_bytes": peak_bytes(program),
    }


def peak_bytes(program: jax.stages.Compiled) -> int:
    """Returns a program's bytes on each device: arguments, temporaries, and results that replace no argument."""
    memory = _memory(program)
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes + results


def _memory(program: jax.stages.Compiled) -> Any:
    """Returns XLA's analysis, kept: it takes a twentieth of a second of a ViT's step, and a start asks thrice."""
    if program not in _ANALYSED:
        _ANALYSED[program] = program.memory_analysis()
    return _ANALYSED[program]


def _trains_everything(phase: Phase) -> bool:
    return not phase.frozen and all(jax.tree.leaves(phase.multipliers))


def _of_everything(run: Run, phase: Phase) -> float:
    """Returns the FLOPs of a step of the same phase with nothing frozen, for comparison."""
    ones, zeros = (jax.tree.map(lambda _, n=n: n, phase.multipliers) for n in (1.0, 0))
    everything = dataclasses.replace(phase, multipliers=ones, since=zeros, frozen=frozenset())
    # Only Muon's update has products; what others compute for each leaf takes as long to trace as the network.
    trace = run.programs.trace_train_step if run.experiment.optim.name == "muon" else run.programs.trace_gradients
    return flops.count(trace(everything, start=run.prefix_length(everything)).jaxpr)


def _parameters(run: Run, multipliers: Tree) -> Block:
    sizes = jax.tree.map(lambda leaf: leaf.size, run.abstract_state().params)
    trainable = sum(jax.tree.leaves(partition(sizes, multipliers)[0]))
    return {"trainable_params": trainable, "frozen_params": sum(jax.tree.leaves(sizes)) - trainable}


def optimizer_state_bytes(opt_state) -> int:
    """Returns the bytes of an optimizer state's floating-point arrays (its counters are integers)."""
    leaves = jax.tree.leaves(opt_state)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating))


def _counts() -> bool:
    """Returns whether XLA counts all that its programs compute."""
    return ops.platform() != "gpu"


def _flops(program: jax.stages.Compiled) -> float:
    """Returns the FLOPs of one device's share of the batch."""
    return float(program.cost_analysis()["flops"])
