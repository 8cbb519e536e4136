"""The frozen prefix computed once: the same run, whatever is killed, changed or shared on the way."""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from tests import forks
from tests.conftest import PATIENCE, ROOT, StopAt, make_folder, make_table, tiny_run
from tljax.config import schema
from tljax.core.run import Run, prepare
from tljax.data import array_cache
from tljax.data.loader import length_of
from tljax.distributed import mesh
from tljax.distributed.preemption import Stopped
from tljax.errors import InputError
from tljax.evals.predictions import predictions_of
from tljax.io import compilation_cache
from tljax.io.download.fetch import cache_dir
from tljax.profiling.cost import cost
from tljax.training import feature_cache
from tljax.training.trainer import train


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("TLJAX_CACHE", str(tmp_path / "cache"))


def _trained(run: Run, cached: bool, steps: int = 6) -> tuple[dict, list[float]]:
    """The parameters after some steps, and the losses."""
    run.cached, losses = cached, []
    state = run.init_state()
    for number in range(steps):
        phase = run.phase_at(number)
        if number == phase.start:
            start = run.prefix_length(phase)
            read = None
            if start:
                read = feature_cache.computed(run, state, run.inputs.splits["train"], [start], training=True)[start]
            stream = run.train_input(read)
            state = run.enter_phase(state, phase) if number else state
        batch = stream.batch(number)
        state, found = run.programs.train_step(phase, length_of(batch), run.prefix_length(phase))(
            state, mesh.put_batch(batch, run.mesh)
        )
        losses.append(float(found["loss"]))
    return jax.device_get(state.params), losses


RUNS = {
    "resnet head": ("tiny_resnet", {"tuning__strategy": "linear_probe"}),
    "resnet last block": ("tiny_resnet", {"tuning__strategy": "last_k", "tuning__k": 1}),
    "three views": (
        "tiny_vit",
        {"tuning__strategy": "linear_probe", "task__crop": "inception", "task__augment": ("flip",), "task__views": 3},
    ),
    "dropout": (
        "tiny_vit",
        {"tuning__strategy": "last_k", "tuning__k": 1, "regularize__dropout": 0.1, "regularize__drop_path": 0.2},
    ),
    "gradual": ("tiny_vit", {"tuning__strategy": "gradual_unfreezing", "tuning__by": 2}),
    "lora above": (
        "tiny_vit",
        {"tuning__strategy": "lora", "tuning__rank": 2, "tuning__targets": ("block_2/attention/qkv",)},
    ),
}


def test_a_step_with_features_is_a_part_of_one_that_trains_everything_from_images(shapes):
    run = tiny_run(f"folder:{shapes}", tuning__strategy="last_k", tuning__k=1)
    whole = cost(run)
    run.cached = True
    part = cost(run)
    assert part["step_flops"] < whole["step_flops"] and part["step_share_of_full"] < whole["step_share_of_full"] < 1


@pytest.mark.parametrize("name", RUNS)
def test_a_cached_run_is_the_run(shapes, name):
    network, values = RUNS[name]
    each = [_trained(tiny_run(f"folder:{shapes}", network, **values), cached) for cached in (False, True)]
    (params, losses), (cached_params, cached_losses) = each
    np.testing.assert_allclose(cached_losses, losses, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), cached_params, params)


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_forward_pass_costs_the_same_and_evaluation_takes_the_program_that_was_planned(
    shapes, mirrored, monkeypatch
):
    splits = {"task__train": "train[:16]", "task__validation": "train[16:]"}
    values = {"tuning__strategy": "last_k", "tuning__k": 1, "task__flip_test": mirrored} | splits
    run, plain = (tiny_run(f"folder:{shapes}", **values) for _ in range(2))
    run.cached = True
    monkeypatch.setattr("tljax.profiling.cost._counts", lambda: False)  # XLA counts other things, too
    assert cost(run)["forward_flops"] == cost(plain)["forward_flops"]
    phase, state = run.phases[0], run.init_state()
    start = run.evaluation_prefix_length(phase)
    assert start == (0 if mirrored else run.masks.frozen_prefix(phase))
    made = set(run.programs._cache)
    split = run.inputs.splits["validation"]
    read = feature_cache.computed(run, state, split, (start,))[start] if start else run.inputs.reader(split)
    predictions_of(run, state, split, "validation", read=read, start=start)
    assert not [key for key in set(run.programs._cache) - made if key[0] == "eval"]


def _computed(run: Run, stops: list[int], name: str = "train", **values) -> dict[int, feature_cache.Features]:
    return feature_cache.computed(run, run.init_state(), run.inputs.splits[name], stops, **values)


def _made() -> dict[Path, int]:
    """Every part that is there, and when it was written."""
    parts = (path for path in (cache_dir() / "features").rglob("0*") if path.suffix == "" and path.is_file())
    return {path: path.stat().st_mtime_ns for path in parts}


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(feature_cache, "_BATCH_ON_CPU", 4)
    monkeypatch.setattr(feature_cache, "_BATCHES", 2)


@pytest.fixture(scope="module")
def probe(shapes) -> Run:
    return tiny_run(f"folder:{shapes}", tuning__strategy="linear_probe")


def test_several_boundaries_are_tapped_in_one_pass_and_are_what_the_network_gives(probe, small_parts):
    together, state = _computed(probe, [1, 3, 5]), probe.init_state()
    assert len(_made()) == 3 * 3  # 24 drawings, 8 a part
    x = probe.inputs.reader(probe.inputs.splits["train"])(range(24))
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    wanted = jax.jit(lambda x: probe.network.features(variables, x, (1, 3, 5)))(x)
    for stop, one in zip((1, 3, 5), wanted, strict=True):
        np.testing.assert_allclose(together[stop].array()[0], one, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(together[stop]([5, 23, 0]), together[stop].array()[0, [5, 23, 0]])
    assert together[5].array().shape == (1, 24, 16)
    before = _made()
    np.testing.assert_array_equal(_computed(probe, [3])[3].array(), together[3].array())
    assert _made() == before  # read, not made again


class _Enough(Exception):
    pass


@pytest.mark.parametrize("known", [True, False])
def test_products_by_onednn_make_the_same_features(probe, tmp_path, monkeypatch, recwarn, known):
    """Of options that jaxlib does not know, nothing is left."""
    intel, amd = tmp_path / "intel", tmp_path / "amd"
    intel.write_text("vendor_id\t: GenuineIntel\n")
    amd.write_text("vendor_id\t: AuthenticAMD\n")
    quick = compilation_cache.quick_products
    assert quick(intel) and not quick(amd) and not quick(tmp_path / "none")
    with monkeypatch.context() as patch:
        patch.setenv("XLA_FLAGS", "--xla_cpu_use_onednn=false")
        assert not quick(intel)
    found = []
    for options in (quick(intel) if known else {"xla_cpu_no_such_option": True}, None):
        probe.programs._cache.clear()
        monkeypatch.setattr(compilation_cache, "quick_products", lambda options=options: options)
        features_of = _computed(probe, [3])[3]
        found.append(np.array(features_of.array()))
        shutil.rmtree(cache_dir() / "features")
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-6)
    assert not [warning for warning in recwarn if "compilation cache" in str(warning.message)]


def test_a_build_that_is_stopped_goes_on_where_it_was(probe, small_parts):
    batches = []

    def halt():
        batches.append(1)
        if len(batches) == 4:  # in the second part
            raise _Enough

    with pytest.raises(_Enough):
        _computed(probe, [5], halt=halt)
    first = _made()
    assert len(first) == 1
    found = _computed(probe, [5])[5].array()
    assert first.items() <= _made().items() and len(_made()) == 3
    shutil.rmtree(cache_dir() / "features")
    np.testing.assert_array_equal(_computed(probe, [5])[5].array(), found)


_BUILD = """
import sys, pathlib
from tests.conftest import tiny_run
from tljax.training import feature_cache as features
features._BATCH_ON_CPU, features._BATCHES = 4, 2
run = tiny_run(f"folder:{sys.argv[1]}", tuning__strategy="linear_probe")
features.computed(run, run.init_state(), run.inputs.splits["train"], [5])
"""


@pytest.mark.slow
def test_builds_killed_anywhere_and_beside_each_other_leave_what_one_makes(probe, shapes, small_parts):
    """Two processes build the same; one is killed with -9 while it writes, and the other takes over what it was at."""
    command = [sys.executable, "-c", _BUILD, str(shapes)]
    pair = [forks.Popen(command, cwd=ROOT) for _ in range(2)]
    until = time.monotonic() + PATIENCE
    while not list((cache_dir() / "features").rglob("*.tmp")) and time.monotonic() < until:
        time.sleep(0.001)
    os.kill(pair[0].pid, signal.SIGKILL)
    assert [process.wait() for process in pair] == [-signal.SIGKILL, 0]
    (folder,) = (cache_dir() / "features").iterdir()
    found = _computed(probe, [5])[5].array()
    parts = {"000000", "000001", "000002"}
    assert {path.name for path in folder.iterdir()} == parts | {f"{name}.sealed.json" for name in parts} | {"used"}
    shutil.rmtree(cache_dir() / "features")
    np.testing.assert_array_equal(_computed(probe, [5])[5].array(), found)


def test_the_name_is_that_of_all_it_depends_on(tmp_path):
    data, states = make_folder(tmp_path / "shapes", 12), {}

    def key(network: str = "tiny_vit", stop: int = 5, change=lambda state: state, **values) -> Path:
        run = tiny_run(f"folder:{data}", network, tuning__strategy="linear_probe", **values)
        source = feature_cache._source(run, run.inputs.splits["train"], True)
        kind = network, values.get("task__image_size"), values.get("compute_dtype")
        if kind not in states:
            states[kind] = run.init_state()
        state = change(jax.tree.map(lambda leaf: leaf, states[kind]))
        return feature_cache._folder(run, {"params": state.params, "batch_stats": state.batch_stats}, source, stop)

    def in_block(number: int):
        def change(state):
            kernel = state.params["backbone"][f"block_{number}"]["mlp"]["fc1"]["kernel"]
            state.params["backbone"][f"block_{number}"]["mlp"]["fc1"]["kernel"] = kernel.at[0, 0].add(1e-6)
            return state

        return change

    views = {"task__crop": "inception", "task__views": 2}
    names = {
        "as it is": key(),
        "a weight of the prefix": key(change=in_block(2)),
        "another boundary": key(stop=4),
        "another image size": key(task__image_size=40),
        "bfloat16": key(compute_dtype="bfloat16"),
        "another network": key("tiny_resnet", stop=3),
        "views": key(**views),
        "of another seed": key(**views, seed=1),  # with the same weights
        "flipped": key(**views, task__augment=("flip",)),
        "fewer examples": key(task__train="train[:20]"),
    }
    # What does not matter changes nothing.
    assert key(optim__learning_rate=0.5, task__batch_size=4, mesh__frozen="sharded") == names["as it is"]
    assert key(stop=2, change=in_block(2)) == key(stop=2)
    picture = next(data.rglob("*.png"))
    pixels = np.array(Image.open(picture))
    pixels[3, 4] ^= 1
    Image.fromarray(pixels).save(picture)
    names["a pixel"] = key()
    assert len(set(names.values())) == len(names)


def test_texts_are_kept_at_their_own_lengths(tmp_path, tiny_text_weights):
    values = schema.default()
    values.steps, values.backbone.weights, values.task.dataset = 6, str(tiny_text_weights), ""
    table = make_table(tmp_path / "table.csv")
    values.task.update(dataset=f"csv:{table}", text=("text",), label=("label",), batch_size=8, max_tokens=32)
    values.task.token_multiple = 8
    values.tuning.update(strategy="last_k", k=1)
    values.optim.update(name="sgd", learning_rate=0.1)
    runs = [prepare(schema.Experiment.from_config(values)) for _ in range(2)]
    (params, losses), (cached_params, cached_losses) = (
        _trained(run, cached) for run, cached in zip(runs, (False, True), strict=True)
    )
    np.testing.assert_allclose(cached_losses, losses, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), cached_params, params)


def test_what_was_not_used_for_longest_goes_first_and_nothing_that_is_held(monkeypatch, tmp_path):
    folders = [array_cache.folder_of("features", number) for number in range(3)]
    for number, folder in enumerate(folders):
        held = array_cache.using(folder)
        (folder / "000000").write_bytes(bytes(1000))
        os.utime(folder / "used", (number, number))
        if number:
            held.close()
        else:
            kept = held
    wanted = array_cache.folder_of("features", "new")
    assert array_cache.make_room(wanted, 1000, 3000)
    assert [folder.exists() for folder in folders] == [True, False, True]
    assert not array_cache.make_room(wanted, 3000, 3000)  # the first is held
    assert [folder.exists() for folder in folders] == [True, False, False]
    kept.close()
    assert array_cache.make_room(wanted, 3000, 3000)
    assert not folders[0].exists()


def test_no_room_is_said_before_anything_is_computed(probe, shapes):
    run = tiny_run(f"folder:{shapes}", tuning__strategy="linear_probe", input__cache_gb=1e-7)
    with pytest.raises(InputError, match=r"features of train.* take .* GB of disk.*input.cache_gb.*cache=off"):
        _computed(run, [5])
    assert not _made()


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"tuning__strategy": "full"}, "trains from the first group on"),
        ({"task__crop": "inception"}, "task.views"),
        ({"regularize__mixup": 0.2}, "mixup"),
        ({"cache": "sometimes"}, "on, off, auto"),
    ],
)
def test_cache_on_where_nothing_stays_the_same_is_an_error(shapes, values, told):
    with pytest.raises(InputError, match=told):
        feature_cache.choice(
            tiny_run(f"folder:{shapes}", **({"tuning__strategy": "linear_probe", "cache": "on"} | values))
        )


def test_it_is_chosen_where_it_pays(shapes):
    def choice(**values) -> tuple[bool, str]:
        return feature_cache.choice(tiny_run(f"folder:{shapes}", **({"tuning__strategy": "linear_probe"} | values)))

    assert choice(steps=30)[0]  # ten epochs
    chosen, told = choice(steps=1)
    assert not chosen and "does not pay" in told
    chosen, told = choice(task__crop="inception")
    assert not chosen and "task.views" in told
    assert choice(steps=30, cache="off") == (False, "")
    assert choice(tuning__strategy="full") == (False, "")
    chosen, told = choice(steps=30, input__cache_gb=1e-7)
    assert not chosen and "input.cache_gb" in told


def test_a_run_stopped_while_features_are_computed_goes_on_to_the_same_end(shapes, tiny_weights, tmp_path, small_parts):
    values = schema.default()
    values.update(epochs=3.0, eval_every=3)
    values.backbone.weights, values.task.dataset = str(tiny_weights), f"folder:{shapes}"
    values.task.update(batch_size=8, train="train[:16]", validation="train[16:20]", test="train[20:]")
    results = {}
    for name, mode, stops in (("off", "off", ()), ("auto", "auto", ()), ("stopped", "auto", (2, 7))):
        values.cache = mode
        experiment = schema.Experiment.from_config(values)
        for count in stops:  # in the first part; then between two steps
            with pytest.raises(Stopped):
                train(experiment, tmp_path / name, StopAt(count))
        results[name] = train(experiment, tmp_path / name)
        if name == "auto":
            shutil.rmtree(cache_dir() / "features")
    assert json.loads((tmp_path / "auto" / "plan.json").read_text())["cached"]
    assert results["off"]["cost"]["step_flops"] > 50 * results["auto"]["cost"]["step_flops"]
    for split in ("validation", "test"):
        off, auto, stopped = (results[name]["splits"][split] for name in ("off", "auto", "stopped"))
        assert stopped == auto  # to the bit
        assert auto["accuracy"] == off["accuracy"]
        assert auto["loss"] == pytest.approx(off["loss"], rel=1e-5)
