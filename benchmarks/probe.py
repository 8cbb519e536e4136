"""Many heads at once on cached features, against one after another, a plain vmap, one large product and PyTorch.

    taskset -c 0,1 .venv/bin/python benchmarks/probe.py [--epochs=20] [--rounds=3] [--clock=cpu]

2,000 × 384 features, batches of 64, AdamW; 64 heads are 4 learning rates × 4 weight decays × 4 seeds. What is compared
runs in turn, A B A B, compiled before; medians, and in brackets the spread. Seconds are of 100 epochs: those of
`--epochs`, multiplied. `--clock=cpu` counts the process's own time, for one core that others use as well. torch is
measured where it is installed.
"""

import argparse
import importlib.util
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tljax.config.schema import Experiment
from tljax.data.loader import TrainInput
from tljax.evals import linear_probe, logistic_regression
from tljax.evals.probe import Examples

N, WIDTH, BATCH = 2000, 384, 64
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Call = Callable[[], object]


def compare(calls: dict[str, Call], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of each, in turn, after one that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            start = clock()
            call()
            if number:
                seconds[name].append(clock() - start)
    return seconds


def experiments(rates: int, decays: int, seeds: int, epochs: int) -> list[Experiment]:
    grid = [(r, d, s) for r in np.geomspace(1e-4, 1e-1, rates) for d in np.geomspace(1e-4, 1e-1, decays) for s in seeds]
    return [
        Experiment.from_config(
            {
                "seed": s,
                "epochs": float(epochs),
                "task": {"batch_size": BATCH},
                "optim": {"learning_rate": float(r), "weight_decay": float(d)},
            }
        )
        for r, d, s in grid
    ]


def data(classes: int) -> tuple[np.ndarray, TrainInput]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, N).astype(np.int32)
    x = rng.standard_normal((N, WIDTH), np.float32)
    return x, TrainInput(None, labels, np.ones(N, np.float32), BATCH, seed=0)


def large_product(flops: float, size: int = 2048) -> Call:
    """So many floating-point operations as products of square matrices."""
    a = jnp.asarray(np.random.default_rng(0).standard_normal((size, size), np.float32))
    program, times = jax.jit(jnp.matmul), max(1, round(flops / (2 * size**3)))
    scale = flops / (2 * size**3) / times
    assert abs(scale - 1) < 0.05, "too few operations for products of this size"

    def call():
        for _ in range(times):
            product = program(a, a)
        jax.block_until_ready(product)

    return call


def plain_loss(params: dict[str, jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(x @ params["kernel"] + params["bias"], y).mean()


def plain(x: np.ndarray, stream: TrainInput, experiment: Experiment, classes: int, steps: int) -> Call:
    """One head, as one writes it: optax's AdamW of a kernel [features, classes], and a scan over steps."""
    rows, features, labels = jnp.asarray(stream.order(steps)[..., 1]), jnp.asarray(x), jnp.asarray(stream.labels)
    rate = optax.cosine_decay_schedule(experiment.optim.learning_rate, steps)
    tx = optax.adamw(rate, weight_decay=experiment.optim.weight_decay, mask={"kernel": True, "bias": False})

    def step(carry, places):
        params, opt_state = carry
        grads = jax.grad(plain_loss)(params, features[places], labels[places])
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    @jax.jit
    def run():
        params = {"kernel": jnp.zeros((WIDTH, classes)), "bias": jnp.zeros(classes)}
        return jax.lax.scan(step, (params, tx.init(params)), rows)[0]

    return lambda: jax.block_until_ready(run())


def plain_vmap(x: np.ndarray, stream: TrainInput, grid: list[Experiment], classes: int, steps: int) -> Call:
    """A step as one writes it for one head, and vmap around it; every head gathers the batches of its seed."""

    def step(params, opt_state, rate, decay, x, y):
        tx = optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(decay, {"kernel": True, "bias": False}))
        updates, opt_state = tx.update(jax.grad(plain_loss)(params, x, y), opt_state, params)
        return jax.tree.map(lambda w, u: w - rate * u, params, updates), opt_state

    orders = {e.seed: stream_of(stream, e.seed).order(steps)[..., 1] for e in grid}
    rows = jnp.asarray(np.stack([orders[e.seed] for e in grid], axis=1))
    rates, decays = (jnp.array([getattr(e.optim, name) for e in grid]) for name in ("learning_rate", "weight_decay"))
    features, labels = jnp.asarray(x), jnp.asarray(stream.labels)
    unit = optax.cosine_decay_schedule(1.0, steps)

    @jax.jit
    def run():
        params = {"kernel": jnp.zeros((len(grid), WIDTH, classes)), "bias": jnp.zeros((len(grid), classes))}
        tx = optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(0.0, {"kernel": True, "bias": False}))

        def body(carry, numbered):
            number, places = numbered
            rate = rates * unit(number)
            return jax.vmap(step)(*carry, rate, decays, features[places], labels[places]), None

        return jax.lax.scan(body, (params, jax.vmap(tx.init)(params)), (jnp.arange(steps), rows))[0]

    return lambda: jax.block_until_ready(run())


def stream_of(stream: TrainInput, seed: int) -> TrainInput:
    return TrainInput(None, stream.labels, stream.weights, BATCH, seed)


def in_torch(x: np.ndarray, stream: TrainInput, classes: int, steps: int, fused: bool) -> Call:
    """One head in PyTorch: features in memory, batches by index, AdamW of one kernel or of many tensors."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    features, labels = torch.from_numpy(x), torch.from_numpy(stream.labels).long()
    rows = torch.from_numpy(stream.order(steps)[..., 1]).long()

    def call():
        head = torch.nn.Linear(WIDTH, classes)
        optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=1e-2, fused=fused)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for places in rows:
            optimizer.zero_grad(set_to_none=True)
            torch.nn.functional.cross_entropy(head(features[places]), labels[places]).backward()
            optimizer.step()
            schedule.step()

    return call


def table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    print(f"\n| {title} | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def text_of(seconds: list[float], scale: float) -> str:
    return f"{scale * statistics.median(seconds):.2f} ({scale * min(seconds):.2f} … {scale * max(seconds):.2f})"


def heads_against_others(classes: int, epochs: int, rounds: int, clock: Callable[[], float]) -> None:
    x, stream = data(classes)
    single, grid = experiments(1, 1, [0], epochs), experiments(4, 4, range(4), epochs)
    steps = grid[0].total_steps(N)
    flops = 4 * BATCH * WIDTH * classes * steps * len(grid)
    calls = {
        "one large product, the same FLOPs": large_product(flops, 2048 if flops > 1e11 else 1024),
        "64 heads at once": lambda: linear_probe.fit(grid, x, stream, classes),
        "64 heads, a plain `vmap`": plain_vmap(x, stream, grid, classes, steps),
        "one head": lambda: linear_probe.fit(single, x, stream, classes),
        "one head, plain JAX": plain(x, stream, single[0], classes, steps),
    }
    if importlib.util.find_spec("torch"):
        calls["one head, PyTorch"] = in_torch(x, stream, classes, steps, fused=False)
        calls["one head, PyTorch, fused AdamW"] = in_torch(x, stream, classes, steps, fused=True)
    seconds = compare(calls, rounds, clock)
    for name in [name for name in seconds if name.startswith("one head")]:
        seconds[f"64 × {name}"] = [64 * times for times in seconds[name]]
    ours, scale = statistics.median(seconds["64 heads at once"]), 100 / epochs
    rows = [(name, text_of(times, scale), f"{statistics.median(times) / ours:.2f}") for name, times in seconds.items()]
    table(f"{classes} classes", ("s of 100 epochs", "÷ 64 heads at once"), rows)


def more_and_more(epochs: int, rounds: int, clock: Callable[[], float]) -> None:
    x, stream = data(10)
    counts = [4**i for i in range(5)]
    calls = {
        str(count): partial(linear_probe.fit, experiments(count, 1, [0], epochs), x, stream, 10) for count in counts
    }
    seconds = compare(calls, rounds, clock)
    scale = 100 / epochs
    rows = [
        (name, text_of(times, scale), f"{1e3 * scale * statistics.median(times) / int(name):.0f}")
        for name, times in seconds.items()
    ]
    table("heads, 10 classes", ("s of 100 epochs", "ms per head"), rows)


def clouds(classes: int, n: int, seed: int) -> Examples:
    """Overlapping clouds of unequal spread, off the origin, as features are."""
    fixed = np.random.default_rng(0)
    centers, shift = 0.25 * fixed.standard_normal((classes, WIDTH)), 0.5 * fixed.standard_normal(WIDTH)
    mix = fixed.standard_normal((WIDTH, WIDTH)) * np.geomspace(3, 0.1, WIDTH) / WIDTH**0.5
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n).astype(np.int32)
    x = (centers[labels] + rng.standard_normal((n, WIDTH))) @ mix + shift
    return Examples(x.astype(np.float32), labels)


def grid_of_strengths(rounds: int, clock: Callable[[], float]) -> None:
    """45 strengths on 2,000 examples; accuracies on another 2,000."""
    from sklearn.linear_model import LogisticRegression

    train, test = clouds(10, N, 1), clouds(10, N, 2)

    def theirs(tolerance, dtype=np.float32):
        fits = (LogisticRegression(C=c, tol=tolerance, max_iter=10_000) for c in logistic_regression.STRENGTHS)
        return [fit.fit(train.features.astype(dtype), train.labels) for fit in fits]

    calls = {
        "tljax": lambda: logistic_regression.fit(train, 10),
        "scikit-learn, tol=1e-4 (its default)": lambda: theirs(1e-4),
    }
    seconds = compare(calls, rounds, clock)
    start = clock()
    exact = theirs(1e-10, np.float64)
    seconds["scikit-learn, float64, tol=1e-10"] = [clock() - start]
    truth = np.array([fit.score(test.features, test.labels) for fit in exact])
    strengths = {
        "tljax": [fit.accuracy(test) for fit in logistic_regression.fit(train, 10)],
        "scikit-learn, tol=1e-4 (its default)": [fit.score(test.features, test.labels) for fit in theirs(1e-4)],
        "scikit-learn, float64, tol=1e-10": truth,
    }
    rows = [
        (name, text_of(seconds[name], 1), f"{100 * np.abs(strengths[name] - truth).max():.2f}") for name in strengths
    ]
    table("logistic regression, 45 C", ("s", "accuracy, points from the minimum's, at most over C"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    options = parser.parse_args()
    clock = CLOCKS[options.clock]
    cores = len(os.sched_getaffinity(0))
    versions = f"jax {jax.__version__}, Python {platform.python_version()}"
    print(f"{jax.devices()[0].device_kind}, {cores} core(s), {versions}, {options.clock} time, {options.epochs} epochs")
    heads_against_others(10, options.epochs, options.rounds, clock)
    heads_against_others(100, options.epochs, options.rounds, clock)
    more_and_more(options.epochs, options.rounds, clock)
    grid_of_strengths(options.rounds, clock)


if __name__ == "__main__":
    main()
