"""The learning rate range test (Smith 2015, 1506.01186): the loss while the rate rises, on a state thrown away."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from tljax import console
from tljax.core.run import Run
from tljax.data.loader import length_of
from tljax.distributed import mesh
from tljax.errors import InputError

_SMOOTHING = 0.9


def lr_find(run: Run, picture: Path, lowest: float = 1e-7, highest: float = 10.0, steps: int = 100) -> dict[str, Any]:
    """Trains the first phase from its start while the rate rises geometrically, until the loss has quadrupled.

    Args:
        run: whose optimizer, data and strategy are taken.
        picture: the PNG to draw.
        lowest, highest: learning rates.
        steps: at most.

    Returns:
        `rates`, `losses` (smoothed as Adam's moments are, by 0.9) and `suggestion`: the rate at which the loss falls
        fastest by the rate's logarithm.

    Raises:
        InputError: the loss is not finite from the start.
    """
    phase = run.phases[0]
    rising = dataclasses.replace(phase, peak=lowest, shape=lambda step: (highest / lowest) ** (step / (steps - 1)))
    state, stream = run.init_state(), run.train_input()
    rates, losses, mean = [], [], 0.0
    with console.progress("learning rates", 0, steps) as report:
        for i, batch in enumerate(stream.batches(0, steps)):
            program = run.programs.train_step(rising, length_of(batch))
            state, metrics = program(state, mesh.put_batch(batch, run.mesh))
            mean = _SMOOTHING * mean + (1 - _SMOOTHING) * float(metrics["loss"])
            smooth = mean / (1 - _SMOOTHING ** (i + 1))
            if not np.isfinite(smooth) or smooth > 4 * min([smooth, *losses]):
                break
            rates.append(float(metrics["learning_rate"]))
            losses.append(smooth)
            report(i + 1)
    if len(rates) < 2:
        raise InputError(f"the loss is not finite at a learning rate of {lowest:.2g} already: look at the data")
    suggestion = rates[int(np.argmin(np.gradient(losses, np.log(rates))))]
    _draw(picture, rates, losses, suggestion, run)
    return {"rates": rates, "losses": losses, "suggestion": suggestion}


def _draw(picture: Path, rates: list[float], losses: list[float], suggestion: float, run: Run) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.semilogx(rates, losses)
    axes.axvline(suggestion, linestyle="--", color="0.5", label=f"falls fastest: {suggestion:.2g}")
    axes.set(xlabel="learning rate", ylabel="training loss, smoothed")
    axes.set_title(f"{run.phases[0].strategy} on {run.experiment.task.dataset}, {run.experiment.optim.name}")
    axes.legend()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=150)
