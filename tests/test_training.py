"""What a training step does, beside keeping frozen leaves still (`test_freezing.py`): values, on tiny networks."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from tests import quick_compile
from tests.conftest import make_folder, tiny_run
from tljax.core.run import Run
from tljax.core.state import TrainState
from tljax.errors import InputError
from tljax.tuning.multipliers import digest

STEPS = 5


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return f"folder:{make_folder(tmp_path_factory.mktemp('training') / 'shapes')}"


def _batches(count: int = STEPS, size: int = 8, ragged: int | None = None) -> list[dict]:
    """Noise with labels; in batch number `ragged` only five rows count."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(count):
        mask = np.arange(size) < (5 if number == ragged else size)
        image = rng.integers(0, 256, (size, 32, 32, 3)).astype(np.uint8)
        label = rng.integers(0, 2, size).astype(np.int32)
        mask = mask.astype(np.float32)
        found.append({"input": image, "label": label, "mask": mask, "weight": mask})
    return found


def _train(run: Run, batches: list[dict], state: TrainState | None = None) -> tuple[TrainState, list[dict[str, float]]]:
    state, history = run.init_state() if state is None else state, []
    for batch in batches:
        phase = run.phase_at(int(state.step))
        if 0 < int(state.step) == phase.start:
            state = run.enter_phase(state, phase)
        state, found = run.programs.train_step(phase)(state, batch)
        history.append({name: float(value) for name, value in found.items()})
    return state, history


def _flat(tree) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in flatten_dict(tree, sep="/").items()}


def _copy(state: TrainState) -> TrainState:
    return jax.tree.map(jnp.copy, state)


def test_a_batch_in_parts_is_the_batch(dataset):
    """4 × 16 against 64 in float32, with a ragged, masked batch in the middle."""
    batches = _batches(size=64, ragged=2)
    runs = [tiny_run(dataset, task__batch_size=64, optim__accumulate=parts, optim__clip_norm=1.0) for parts in (1, 4)]
    (whole, told), (parts, again) = (_train(run, batches) for run in runs)
    for path, leaf in _flat(whole.params).items():
        np.testing.assert_allclose(_flat(parts.params)[path], leaf, atol=1e-6, err_msg=path)
    for one, other in zip(told, again, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_masked_rows_count_for_nothing(dataset):
    run = tiny_run(dataset)
    (batch,) = _batches(1, ragged=0)
    other = {**batch, "input": batch["input"].copy(), "label": 1 - batch["label"]}
    other["input"][5:] = 0
    other["label"][:5] = batch["label"][:5]
    states = [_train(run, [one])[0] for one in (batch, other)]
    jax.tree.map(np.testing.assert_array_equal, states[0].params, states[1].params)


def test_l2_sp_pulls_to_where_the_leaves_started(dataset):
    """Its gradient alone, where the loss has none: a batch whose mask keeps one row, at labels smoothed to 1/2."""
    run = tiny_run(dataset, regularize__l2_sp=0.5, regularize__l2_sp_new=0.25)
    state = run.init_state()
    # Random weights are all new: they are pulled to 0.
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(state.anchor))
    spec = run.programs._spec(run.phases[0], jax.tree.map(jnp.asarray, run.programs._traced_hparams(run.phases[0])), 0)
    assert set(jax.tree.leaves(spec.pull)) == {0.25}
    from tljax.core.train_step import _l2_sp

    moved = jax.tree.map(lambda leaf: leaf + 1.0, state.params)
    anchor = jax.tree.map(jnp.copy, state.params)
    pull = jax.tree.map(lambda _: 0.5, spec.pull)
    penalty, grads = _l2_sp(moved, anchor, dataclasses.replace(spec, pull=pull))
    count = sum(leaf.size for leaf in jax.tree.leaves(moved))
    assert float(penalty) == pytest.approx(0.25 * count, rel=1e-4)
    assert all(np.allclose(leaf, 0.5, atol=1e-6) for leaf in jax.tree.leaves(grads))
    plain = tiny_run(dataset)
    (batch,) = _batches(1)
    pulled, _ = _train(run, [batch])
    free, _ = _train(plain, [batch])
    start = _flat(plain.init_state().params)
    for path, leaf in _flat(pulled.params).items():
        np.testing.assert_allclose(leaf, _flat(free.params)[path] - 0.1 * 0.25 * start[path], atol=1e-6, err_msg=path)


def test_sam_takes_the_gradient_where_the_loss_is_higher(dataset):
    batches = _batches(1)
    plain, sharp = tiny_run(dataset), tiny_run(dataset, optim__sam_rho=0.05)
    state, (told,) = _train(plain, batches)
    start = plain.init_state()
    gradient = jax.tree.map(lambda old, new: (old - new) / 0.1, start.params, state.params)
    climbed = jax.tree.map(lambda w, g: w + 0.05 * g / told["grad_norm"], start.params, gradient)
    after, _ = _train(plain, batches, start.replace(params=jax.tree.map(jnp.copy, climbed)))
    step = jax.tree.map(lambda old, new: old - new, climbed, after.params)
    found, (same,) = _train(sharp, batches)
    assert same["loss"] == pytest.approx(told["loss"], rel=1e-6)
    for path, leaf in _flat(found.params).items():
        wanted = _flat(plain.init_state().params)[path] - _flat(step)[path]
        np.testing.assert_allclose(leaf, wanted, atol=3e-6, err_msg=path)


@pytest.mark.parametrize("average", ["ema", "swa"])
def test_an_average_is_what_is_evaluated(dataset, average, monkeypatch):
    monkeypatch.setattr(quick_compile, "OPTION", {})  # its kernels round as they are fused
    settings = {"optim__average": average, "optim__average_decay": 0.3, "optim__average_start": 0.5}
    run = tiny_run(dataset, "tiny_resnet", **settings)
    plain = tiny_run(dataset, "tiny_resnet")
    batches = _batches(6)
    state, _ = _train(run, batches)
    seen = [plain.init_state()]
    seen = [_copy(seen[0])] + [None] * 6
    running = plain.init_state()
    for number, batch in enumerate(batches, 1):
        running, _ = _train(plain, [batch], running)
        seen[number] = _copy(running)
    params, batch_stats = run.evaluation_variables(state)
    for wanted_of, found in ((lambda s: s.params, params), (lambda s: s.batch_stats, batch_stats)):
        values = [_flat(wanted_of(one)) for one in seen]
        for path, leaf in _flat(found).items():
            if average == "swa":  # of the values after steps 4, 5 and 6: steps 3, 4 and 5 from 0
                wanted = np.mean([value[path] for value in values[4:]], axis=0)
            else:
                wanted = values[0][path]
                for step in range(6):
                    decay = min(0.3, (1 + step) / (10 + step))
                    wanted = decay * wanted + (1 - decay) * values[step + 1][path]
            np.testing.assert_allclose(leaf, wanted, rtol=1e-5, atol=1e-6, err_msg=path)
    for path, leaf in _flat(state.params).items():
        np.testing.assert_array_equal(leaf, _flat(seen[-1].params)[path])


def test_a_step_that_is_not_finite_moves_nothing_and_is_counted(dataset):
    run = tiny_run(dataset, "tiny_resnet", optim__momentum=0.9, optim__average="ema")
    state = run.init_state()
    broken = state.replace(params=jax.tree.map(jnp.copy, state.params))
    broken.params["head"]["bias"] = broken.params["head"]["bias"].at[0].set(jnp.inf)
    before = jax.tree.map(np.array, broken)
    after, (told,) = _train(run, _batches(1), broken)
    assert not np.isfinite(told["loss"])
    assert (int(after.step), int(after.skipped)) == (1, 1)
    for name in ("params", "opt_state", "batch_stats", "average"):
        jax.tree.map(np.testing.assert_array_equal, getattr(before, name), jax.tree.map(np.array, getattr(after, name)))
    assert int(_train(run, _batches(1))[0].skipped) == 0


@pytest.mark.parametrize(
    ("values", "arrays"),
    [
        ({"optim__name": "adamw"}, 4),
        ({"optim__name": "adamw", "optim__average": "ema"}, 5),
        ({"optim__name": "adamw", "optim__clip_norm": 1.0}, 4),
        ({"optim__name": "sgd"}, 3),
    ],
)
def test_the_optimizer_writes_each_of_its_arrays_once_and_copies_none(dataset, values, arrays):
    """Of three kernels: gradient, moments, kernel, average."""
    run = tiny_run(dataset, tuning__strategy="full", **values)
    text = run.programs.trace_train_step(run.phases[0]).lower().compile().as_text()
    shape = ",".join(map(str, run.abstract_state().params["backbone"]["block_0"]["mlp"]["fc1"]["kernel"].shape))
    made = re.findall(
        rf"^  (?:ROOT )?%\S+ = f32\[{shape}\]\S* ([a-z-]+)\(", text[text.index("\nENTRY") :], re.MULTILINE
    )
    assert len([name for name in made if name not in ("parameter", "bitcast")]) == 3 * arrays
    assert "copy" not in made


def test_remat_gives_the_same_step(dataset):
    states = [_train(tiny_run(dataset, remat=remat), _batches(2))[0] for remat in (False, True)]
    for path, leaf in _flat(states[0].params).items():
        np.testing.assert_allclose(_flat(states[1].params)[path], leaf, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("backbone", ["tiny_vit", "tiny_resnet"])
def test_bfloat16_computes_and_float32_keeps(dataset, backbone):
    exact, coarse = (tiny_run(dataset, backbone, compute_dtype=dtype) for dtype in ("float32", "bfloat16"))
    (wanted, told), (found, again) = (_train(run, _batches(3)) for run in (exact, coarse))
    assert {leaf.dtype for leaf in jax.tree.leaves(found.params)} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(found.batch_stats)} <= {jnp.dtype("float32")}
    text = coarse.programs.trace_train_step(coarse.phases[0]).lower().as_text()
    # Each product of the network is of bfloat16s; a convolution or product of float32s would be one that slipped.
    products = [line for line in text.splitlines() if "dot_general" in line or "convolution" in line]
    assert products and all("xbf16>" in line.split(":")[-1].split("->")[0] for line in products)
    assert again[0]["loss"] == pytest.approx(told[0]["loss"], rel=0.02)
    assert any(
        not np.array_equal(a, b) for a, b in zip(*(_flat(one.params).values() for one in (wanted, found)), strict=True)
    )


def test_dropout_and_stochastic_depth_are_a_function_of_seed_and_step(dataset):
    noisy = {"regularize__dropout": 0.3, "regularize__drop_path": 0.3}
    run = tiny_run(dataset, **noisy)
    first, second = (_train(run, _batches(2))[0] for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)
    other = _train(tiny_run(dataset, seed=1, **noisy), _batches(2), tiny_run(dataset, **noisy).init_state())[0]
    assert any(
        not np.array_equal(a, b) for a, b in zip(*(_flat(one.params).values() for one in (first, other)), strict=True)
    )
    # The same picture twice in one batch: each row has a mask of its own; and a later step has others.
    (batch,) = _batches(1)
    same = {**batch, "input": np.repeat(batch["input"][:1], 8, axis=0)}
    state = run.init_state()
    state = state.replace(params=jax.tree.map(lambda leaf: leaf + 0.1, state.params))
    image = jnp.array(same["input"])
    logits, _ = run.network.forward({"params": state.params}, image, jax.random.key(0), noisy=run.layout.groups)
    assert len({row.tobytes() for row in np.asarray(logits)}) == 8
    quiet, _ = run.network.forward({"params": state.params}, image)
    assert len({row.tobytes() for row in np.asarray(quiet)}) == 1


@pytest.mark.parametrize("mode", ["frozen", "update_stats", "batch"])
def test_batch_norm_of_frozen_groups_by_mode(dataset, mode):
    tuned = {"tuning__strategy": "last_k", "tuning__k": 1, "optim__name": "adamw"}
    run = tiny_run(dataset, "tiny_resnet", batch_norm__frozen_groups=mode, **tuned)
    state = run.init_state()
    before = jax.tree.map(np.array, (state.params, state.batch_stats))
    features = _frozen_part(run, *before)
    after, _ = _train(run, _batches(6), state)  # a new branch is silent: its inside learns from the third step on
    stats, params = _flat(after.batch_stats), _flat(after.params)
    frozen_stats = [path for path in stats if path.split("/")[1] in run.phases[0].frozen]
    moved = [not np.array_equal(stats[path], _flat(before[1])[path]) for path in frozen_stats]
    assert frozen_stats and set(moved) == {mode == "update_stats"}
    multipliers = flatten_dict(run.masks.multipliers, sep="/")
    for path, old in _flat(before[0]).items():
        assert np.array_equal(old, params[path]) == (multipliers[path] == 0), path
    kept = run.frozen_leaves(after)
    assert {path.removeprefix("batch_stats/") for path in kept if "batch_stats" in path} == (
        set() if mode == "update_stats" else set(frozen_stats)
    )
    if mode == "frozen":
        np.testing.assert_array_equal(_frozen_part(run, after.params, after.batch_stats), features)


def _frozen_part(run: Run, params, batch_stats) -> np.ndarray:
    """What the frozen groups give, in training, which must be what they give in evaluation."""
    stop = next(i for i, group in enumerate(run.layout.groups) if group not in run.phases[0].frozen)
    x = jnp.array(_batches(1)[0]["input"], jnp.float32)
    variables = jax.tree.map(jnp.asarray, {"params": params["backbone"], "batch_stats": batch_stats["backbone"]})
    calm = run.network.backbone.apply(variables, x, stop=stop)
    modes = dict.fromkeys(run.phases[0].frozen, run.experiment.batch_norm.frozen_groups)
    busy, _ = run.network.backbone.apply(variables, x, stop=stop, batch_norm=modes, mutable=["batch_stats"])
    assert np.array_equal(calm, busy) == (run.experiment.batch_norm.frozen_groups == "frozen")
    return np.asarray(calm)


def test_a_switch_of_phases_keeps_what_goes_on_and_starts_what_is_new(dataset):
    phases = ({"strategy": "linear_probe", "steps": 3}, {"strategy": "last_k", "k": 1})
    run = tiny_run(dataset, optim__name="adamw", tuning__strategy="phases", tuning__phases=phases, optim__average="ema")
    state, _ = _train(run, _batches(3))
    old = jax.tree.map(np.array, state)
    entered = run.enter_phase(state, run.phases[1])
    told = {
        jax.tree_util.keystr(path): np.array(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(entered.opt_state)
    }
    before = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(old.opt_state)}
    assert before.keys() < told.keys()
    for path, leaf in told.items():
        if path in before:
            np.testing.assert_array_equal(leaf, before[path])
        else:
            assert not leaf.any() and "since 1" in path
    jax.tree.map(np.testing.assert_array_equal, old.params, jax.tree.map(np.array, entered.params))
    fresh = flatten_dict(entered.average["params"], sep="/")
    block = "backbone/block_2/mlp/fc1/kernel"
    np.testing.assert_array_equal(fresh[block], flatten_dict(old.params, sep="/")[block])
    np.testing.assert_array_equal(fresh["head/kernel"], old.average["params"]["head"]["kernel"])
    assert jax.tree.structure(entered) == jax.tree.structure(run.abstract_state(4))
    assert jax.tree.structure(old) == jax.tree.structure(run.abstract_state(3))


def test_a_leaf_that_no_phase_trains_stays_and_one_of_any_phase_moves(dataset):
    phases = ({"strategy": "first_k", "k": 1, "steps": 3}, {"strategy": "last_k", "k": 1})
    run = tiny_run(dataset, tuning__strategy="phases", tuning__phases=phases)
    start = run.init_state()
    before, frozen = _flat(jax.tree.map(np.array, start.params)), digest(run.frozen_leaves(start))
    state, _ = _train(run, _batches(6), start)
    moved = {path for path, leaf in _flat(state.params).items() if not np.array_equal(leaf, before[path])}
    assert {path.split("/")[1] for path in moved if "head" not in path} == {"stem", "block_2", "norm"}
    assert set(run.frozen_leaves(state)) == set(before) - moved
    assert digest(run.frozen_leaves(state)) == frozen


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"optim__accumulate": 3},
            "task.batch_size=8 cannot be shared by 1 devices in 3 parts (optim.accumulate): use 6 or 9",
        ),
        ({"optim__accumulate": 0}, "optim.accumulate must be at least 1, not 0"),
        (
            {"compute_dtype": "float16"},
            "no config.compute_dtype 'float16' (did you mean bfloat16?); there are: float32, bfloat16",
        ),
        ({"batch_norm__frozen_groups": "still"}, "no config.batch_norm.frozen_groups 'still'; there are: frozen"),
        ({"regularize__dropout": 1.0}, "regularize.dropout must be at least 0 and below 1, not 1.0"),
        ({"regularize__l2_sp": -1.0}, "regularize.l2_sp must be at least 0, not -1.0"),
    ],
)
def test_what_cannot_be_used_is_named(dataset, values, message):
    with pytest.raises(InputError) as error:
        assert tiny_run(dataset, **values).batch_size
    assert message in str(error.value)
