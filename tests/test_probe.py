"""Many heads at once: each is the head of its own run, whatever trains beside it."""

import dataclasses
import os
import sys

import jax
import numpy as np
import pytest

from tests import forks
from tests.conftest import make_folder, tiny_run
from tljax.config.schema import Experiment
from tljax.core.run import Run
from tljax.data.transforms import image
from tljax.errors import InputError
from tljax.evals import linear_probe, probe
from tljax.io import compilation_cache
from tljax.problems.registry import PROBLEMS

pytestmark = pytest.mark.optimized

VIEWS = 3  # that 24 examples have; batches of ten, so that epochs end within a batch
PROBE = {"tuning__strategy": "linear_probe", "head__init": "truncated_normal", "steps": 12, "task__batch_size": 10}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return f"folder:{make_folder(tmp_path_factory.mktemp('probe') / 'shapes', classes=('disc', 'ring', 'square'))}"


def _pictures(run: Run) -> np.ndarray:
    """As many views of each example as the network can be trained on: its pixels, brighter and brighter."""
    own = run.inputs.reader(run.inputs.splits["train"])(list(range(36)), None)
    return np.stack([np.minimum(own.astype(int) + 20 * view, 255).astype(np.uint8) for view in range(VIEWS)])


def _features(run: Run, pictures: np.ndarray) -> np.ndarray:
    params = {"params": run.init_state().params["backbone"]}
    apply = jax.jit(lambda x: run.network.backbone.apply(params, image.normalize(x, run.resolved.preprocessing)))
    return np.stack([np.asarray(apply(view)) for view in pictures])


def _own_run(run: Run, pictures: np.ndarray, frozen: dict) -> dict[str, np.ndarray]:
    """The head that the run itself trains, on the view of each epoch; its backbone is the others'."""
    stream, state = run.train_input(), run.init_state()
    state = state.replace(params={"backbone": jax.tree.map(np.asarray, frozen), "head": state.params["head"]})
    for step in range(run.resolved.steps):
        epoch, place = np.array(stream.indices(step)).T
        ones = np.ones(len(place), np.float32)
        batch = {"input": pictures[epoch % len(pictures), place], "label": stream.labels[place]}
        state, _ = run.programs.train_step(run.phases[0])(
            state, batch | {"mask": ones, "weight": stream.weights[place]}
        )
    return {name: np.asarray(leaf) for name, leaf in run.evaluation_variables(state)[0]["head"].items()}


CASES = {
    "adamw": (
        {"optim__name": "adamw", "optim__clip_norm": 0.5, "optim__average": "ema", "optim__warmup_steps": 3},
        [
            {"optim__learning_rate": 0.1, "optim__weight_decay": 0.3},
            {"optim__learning_rate": 0.02, "optim__weight_decay": 0.0, "seed": 7},
            {"optim__learning_rate": 0.02, "optim__weight_decay": 0.0, "regularize__label_smoothing": 0.2},
        ],
    ),
    "sgd": (
        {"optim__name": "sgd", "optim__average": "swa", "task__class_weights": (1.0, 2.0, 0.5)},
        [
            {"optim__learning_rate": 0.1},
            {"optim__learning_rate": 0.01, "seed": 1},
            {"optim__learning_rate": 0.1, "regularize__label_smoothing": 0.2},
        ],
    ),
    "adafactor": ({"optim__name": "adafactor", "optim__weight_decay": 0.01}, [{"optim__learning_rate": 0.1}]),
    "lamb": ({"optim__name": "lamb", "head__bias": False}, [{"optim__learning_rate": 0.1}]),
    "lion": ({"optim__name": "lion", "optim__accumulate": 2}, [{"optim__learning_rate": 0.01}]),
    "muon": ({"optim__name": "muon", "regularize__l2_sp_new": 0.1}, [{"optim__learning_rate": 0.01}]),
    "balanced": ({"task__balance": "sampling", "optim__sam_rho": 0.05}, [{"optim__learning_rate": 0.1}]),
}


@pytest.mark.parametrize("case", CASES)
def test_a_head_is_that_of_its_own_run(dataset, case):
    shared, numbers = CASES[case]
    runs = [tiny_run(dataset, **PROBE, **shared, **own) for own in numbers]
    pictures, frozen = _pictures(runs[0]), runs[0].init_state().params["backbone"]
    features = _features(runs[0], pictures)
    made = linear_probe.fit([run.experiment for run in runs], features, runs[0].train_input(), 3)
    for run, head in zip(runs, made, strict=True):
        own = _own_run(run, pictures, frozen)
        assert head.params.keys() == own.keys()
        assert np.abs(own["kernel"] - np.asarray(run.init_state().params["head"]["kernel"])).max() > 1e-3
        for name in own:
            np.testing.assert_allclose(head.params[name], own[name], atol=1e-5, err_msg=name)


def _problem(problem: str = "single_label", n: int = 40, width: int = 6, classes: int = 3):
    """Features, and labels that a linear rule gives."""
    rng = np.random.default_rng(0)
    rule, x = (rng.standard_normal(shape, np.float32) for shape in ((width, classes), (n, width)))
    values = x @ rule
    labels = {
        "single_label": values.argmax(-1).astype(np.int32),
        "multi_label": (values > 0).astype(np.float32),
        "regression": values,
    }[problem]
    return x, labels


def _experiment(rate: float = 0.1, problem: str = "single_label", seed: int = 0, **optim) -> Experiment:
    values = {"name": "adamw", "learning_rate": rate, **optim}
    found = {"steps": 20, "seed": seed, "optim": values, "task": {"batch_size": 16, "problem": problem}}
    return Experiment.from_config(found | {"head": {"init": "truncated_normal"}})


def _stream(labels: np.ndarray, size: int = 16):
    from tljax.data.loader import TrainInput

    def read(places, keys=None, *, among=None):
        raise AssertionError("features are there already")

    return TrainInput(read, labels, np.ones(len(labels), np.float32), size, seed=0)


GRID = [_experiment(rate, seed=seed) for seed in (0, 3) for rate in (0.3, 0.1, 0.03, 0.01, 0.003)]


def test_in_one_chunk_or_several():
    x, labels = _problem()
    whole = linear_probe.fit(GRID, x, _stream(labels), 3)
    two_at_once = linear_probe.fit(GRID, x, _stream(labels), 3, bytes_at_once=4 * 6 * 3 * 2)
    alone = [linear_probe.fit([one], x, _stream(labels), 3)[0] for one in GRID]
    for others in (two_at_once, alone):
        for head, other in zip(whole, others, strict=True):
            np.testing.assert_allclose(head.params["kernel"], other.params["kernel"], atol=1e-6)
            np.testing.assert_allclose(head.params["bias"], other.params["bias"], atol=1e-6)


def test_each_core_trains_a_chunk(monkeypatch):
    """As many chunks as cores, though one would hold all heads; and of one program, whoever asks for it first."""
    sizes, programs, advance = [], [], linear_probe._advance

    def noted(*of, **also):
        programs.append(advance(*of, **also))

        def call(states, *rest):
            sizes.append(len(states.params["head"]["bias"]))
            return programs[-1](states, *rest)

        return call

    monkeypatch.setattr(linear_probe, "_advance", noted)
    x, labels = _problem()
    kernels = []
    for cores in (1, 3):
        monkeypatch.setattr(linear_probe, "cores", lambda cores=cores: cores)
        advance.cache_clear()
        kernels.append(np.stack([head.params["kernel"] for head in linear_probe.fit(GRID[:5], x, _stream(labels), 3)]))
    assert sizes == [5, 2, 2, 2]
    assert [program._cache_size() for program in programs] == [1, 1]
    np.testing.assert_allclose(*kernels, atol=1e-6)


_ON_FOUR = """
import sys
import numpy as np
import jax
from tests.test_probe import GRID, _problem, _stream
from tljax.evals import linear_probe as heads
assert jax.device_count() == 4
x, labels = _problem()
made = heads.fit(GRID, x, _stream(labels), 3)
np.save(sys.argv[1], np.stack([head.params["kernel"] for head in made]))
"""


def test_vectors_of_512_bits_make_the_same_heads(monkeypatch):
    wide, found = compilation_cache.wide_vectors(), []
    assert wide == {"xla_cpu_prefer_vector_width": 512}
    x, labels = _problem()
    for options in (wide, {"xla_cpu_prefer_vector_width": 128}):
        linear_probe._advance.cache_clear()
        monkeypatch.setattr(compilation_cache, "wide_vectors", lambda options=options: options)
        found.append(np.stack([head.params["kernel"] for head in linear_probe.fit(GRID, x, _stream(labels), 3)]))
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-6)
    monkeypatch.undo()
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_prefer_vector_width=256")
    assert not compilation_cache.wide_vectors()


def test_on_four_devices(tmp_path):
    """Five heads of each seed, padded to eight."""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    forks.run([sys.executable, "-c", _ON_FOUR, tmp_path / "out.npy"], check=True, env=os.environ | flags)
    x, labels = _problem()
    for head, kernel in zip(linear_probe.fit(GRID, x, _stream(labels), 3), np.load(tmp_path / "out.npy"), strict=True):
        np.testing.assert_allclose(head.params["kernel"], kernel, atol=1e-6)


@pytest.mark.parametrize("problem", ["single_label", "multi_label", "regression"])
def test_the_best_of_validation_is_chosen(problem):
    x, labels = _problem(problem)
    rates = (1e-5, 0.1, 1e-4)
    experiments = [_experiment(rate, problem, seed) for rate in rates for seed in (0, 1)]
    held = probe.Examples(*_problem(problem, 30))
    found = probe.search(experiments, x, _stream(labels), held, 3, test=held)
    assert [head.experiment for head in found.best] == experiments[2:4]
    for head in found.heads:
        logits = held.features @ head.params["kernel"] + head.params["bias"]
        metric = PROBLEMS[problem].headline.name
        expected = PROBLEMS[problem].summarize(logits, held.labels, full=False)[metric]
        assert head.validation[metric] == pytest.approx(expected, abs=1e-5)
        assert bool(head.test) == (head in found.best)
    assert found.best[0].test == found.best[0].validation


def test_a_choice_never_looks_at_test():
    """On test labels that are all wrong the same is chosen; and a tie goes to the first."""
    x, labels = _problem()
    validation = probe.Examples(x, labels)
    experiments = [_experiment(rate) for rate in (1e-6, 0.1, 0.1)]
    wrong = probe.Examples(x, (labels + 1) % 3)
    for test in (None, validation, wrong):
        found = probe.search(experiments, x, _stream(labels), validation, 3, test=test, test_all=True)
        assert found.best[0] is found.heads[1]
        assert all(bool(head.test) == (test is not None) for head in found.heads)


def test_a_head_that_is_no_longer_finite_leaves_the_others_alone():
    x, labels = _problem("regression")
    grid = [_experiment(rate, "regression", name="sgd") for rate in (0.05, 1e18)]
    found = probe.search(grid, x, _stream(labels), probe.Examples(x, labels), 3)
    assert [head.failed for head in found.heads] == [False, True]
    assert found.heads[1].state.skipped > 0 and not found.heads[1].validation
    assert found.best == [found.heads[0]]
    alone = linear_probe.fit(grid[:1], x, _stream(labels), 3)[0]
    np.testing.assert_allclose(found.best[0].params["kernel"], alone.params["kernel"], atol=1e-6)
    with pytest.raises(InputError, match="no head stayed finite"):
        probe.search(grid[1:], x, _stream(labels), probe.Examples(x, labels), 3)


def test_what_can_train_together():
    one = _experiment()
    other = dataclasses.replace(one, seed=4, eval_every=5)
    assert linear_probe.together(one, other)
    longer = dataclasses.replace(one, steps=21)
    full = dataclasses.replace(one, tuning=dataclasses.replace(one.tuning, strategy="full"))
    dropout = dataclasses.replace(one, regularize=dataclasses.replace(one.regularize, dropout=0.1))
    x, labels = _problem()
    for bad, says in ((longer, "differs from the first"), (full, "linear_probe"), (dropout, "regularize.dropout")):
        assert not linear_probe.together(one, bad)
        with pytest.raises(InputError, match=says):
            linear_probe.fit([one, bad], x, _stream(labels), 3)
    with pytest.raises(InputError, match="no experiments"):
        linear_probe.fit([], x, _stream(labels), 3)
    for name in ("learning_rate", "weight_decay"):  # which needs no check here: no experiment has such a value
        with pytest.raises(InputError, match=f"{name} must"):
            _experiment(**{name: -1.0})


@pytest.mark.parametrize("balanced", [False, True])
def test_the_order_is_that_of_the_steps(balanced):
    labels = np.array([0] * 9 + [1] * 4, np.int32)
    stream = dataclasses.replace(_stream(labels, 5), seed=2, balanced=labels if balanced else None)
    assert [[tuple(row) for row in step] for step in stream.order(11)] == [stream.indices(step) for step in range(11)]
