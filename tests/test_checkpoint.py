import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath

from tests.conftest import tiny_run
from tljax.checkpoints import checkpointer
from tljax.checkpoints.checkpointer import Checkpoints, flatten_state
from tljax.config.schema import CheckpointConfig
from tljax.core.state import TrainState
from tljax.core.train_step import TrainStep
from tljax.errors import InputError
from tljax.io import arrays, storage
from tljax.io.arrays import Damaged
from tljax.problems.registry import PROBLEMS
from tljax.training import feature_cache
from tljax.training.trainer import train

ACCURACY = PROBLEMS["single_label"].headline


def _open(folder: Path, judged=ACCURACY, writer=False, **config) -> Checkpoints:
    return Checkpoints(epath.Path(folder), judged, CheckpointConfig(**config), writer)


def _state(step: int) -> TrainState:
    params = {"a": {"w": jnp.full((3, 2), float(step)), "frozen": optax.MaskedNode()}}
    return TrainState(jnp.int32(step), params, optax.adam(1e-3).init(params), {}, {}, {}, jnp.int32(0))


def _probe(step: int, rows: int = 1000) -> TrainState:
    """A large leaf that does not move, and a small one that does."""
    params = {"frozen": jnp.arange(rows, dtype=jnp.float32), "head": jnp.full(4, float(step))}
    return TrainState(jnp.int32(step), params, (), {}, {}, {}, jnp.int32(0))


UNMOVED = frozenset({"params/frozen"})


def _base(state: TrainState) -> dict:
    return {name: leaf for name, leaf in flatten_state(state).items() if name in UNMOVED}


def _abstract(state: TrainState) -> TrainState:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def _same(found: TrainState, wanted: TrainState) -> None:
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_the_latest_the_best_and_every_nth_are_kept_and_come_back_whole(tmp_path):
    scores = {1: 0.2, 2: 0.9, 3: 0.5, 4: 0.1, 5: 0.3, 6: 0.1, 7: 0.0}
    with _open(tmp_path, writer=True, keep=2, keep_every=3) as saved:
        for step, accuracy in scores.items():
            saved.save(_state(step), validation={"accuracy": accuracy})
    with _open(tmp_path) as saved:
        assert saved.steps == [2, 3, 6, 7]
        assert (saved.find_step("latest"), saved.find_step("best"), saved.find_step("3")) == (7, 2, 3)
        for step in saved.steps:
            _same(saved.restore(step, _abstract(_state(0))), _state(step))
    assert len({saved.identity(step) for step in saved.steps}) == 4


def test_where_less_is_better_the_least_is_best(tmp_path):
    with _open(tmp_path, PROBLEMS["regression"].headline, writer=True, keep=1) as saved:
        for step, error in ((1, 0.9), (2, 0.1), (3, 0.5)):
            saved.save(_state(step), validation={"mae": error})
    with _open(tmp_path, PROBLEMS["regression"].headline) as saved:
        assert saved.find_step("best") == 2
        assert saved.steps == [2, 3]


def test_saving_is_of_the_state_at_the_call_even_if_it_is_donated_at_once(tmp_path):
    bump = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    state = TrainState(jnp.int32(1), {"w": jnp.zeros((1000, 1000))}, (), {}, {}, {}, jnp.int32(0))
    abstract = _abstract(state)
    with _open(tmp_path, writer=True) as saved:
        saved.save(state)
        for _ in range(20):
            state = bump(state)
        jax.block_until_ready(state)
    with _open(tmp_path) as saved:
        assert not np.any(saved.restore(1, abstract).params["w"])


def test_what_does_not_move_is_stored_once_and_comes_back_from_wherever_the_folder_is_copied(tmp_path):
    with _open(tmp_path / "run" / "checkpoints", writer=True, keep=20) as saved:
        saved.keep_base(_base(_probe(0, 1_000_000)))
        for step in range(1, 21):
            saved.save(_probe(step, 1_000_000), UNMOVED)
    size = sum(path.stat().st_size for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert size < 1.05 * 4_000_000
    step = tmp_path / "run" / "checkpoints" / "20"
    assert set(arrays.read(epath.Path(step))) == {"step", "skipped", "params/head"}
    shutil.copytree(tmp_path / "run", tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "run")
    with _open(tmp_path / "elsewhere" / "checkpoints") as saved:
        for step in (1, 20):
            _same(saved.restore(step, _abstract(_probe(0, 1_000_000))), _probe(step, 1_000_000))


def test_what_moves_later_is_in_the_steps_from_then_on(tmp_path):
    moved = _probe(2).replace(params={"frozen": jnp.zeros(1000), "head": jnp.ones(4)})
    with _open(tmp_path, writer=True) as saved:
        saved.keep_base(_base(_probe(0)))
        saved.save(_probe(1), UNMOVED)
        saved.save(moved)
    with _open(tmp_path) as saved:
        _same(saved.restore(1, _abstract(moved)), _probe(1))
        _same(saved.restore(2, _abstract(moved)), moved)


def test_runs_side_by_side_share_the_files_of_what_does_not_move(tmp_path):
    runs = [tmp_path / name / "checkpoints" for name in ("a", "b", "c")]
    for run in runs[:2]:
        with _open(run, writer=True) as saved:
            saved.keep_base(_base(_probe(0)))
            saved.save(_probe(1), UNMOVED)
    files = [{path.stat().st_ino for path in run.glob("base-*/arrays/**/*") if path.is_file()} for run in runs[:2]]
    assert files[0] == files[1] and len(files[0]) > 3
    (tmp_path / "a" / "checkpoints" / "1").rename(tmp_path / "gone")
    shutil.rmtree(tmp_path / "a")
    with _open(runs[1]) as saved:
        _same(saved.restore(1, _abstract(_probe(0))), _probe(1))
    _flip(runs[1])  # a damaged one is not taken over
    with _open(runs[2], writer=True) as saved:
        saved.keep_base(_base(_probe(0)))
        saved.wait()
        assert not arrays.wrong(epath.Path(next(runs[2].glob("base-*"))))


def test_another_base_than_that_of_the_steps_is_refused(tmp_path):
    with _open(tmp_path, writer=True) as saved:
        saved.keep_base(_base(_probe(0)))
        saved.save(_probe(1), UNMOVED)
    with _open(tmp_path, writer=True) as saved, pytest.raises(InputError, match="are these the same weights"):
        saved.keep_base({"params/frozen": jnp.zeros(1000)})


def _largest(folder: Path) -> Path:
    """The largest file of arrays."""
    return max((path for path in folder.rglob("*") if path.parent.name == "d"), key=lambda path: path.stat().st_size)


def _flip(folder: Path, file: Path | None = None) -> None:
    file = file or _largest(folder)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.unlink()  # it may be linked
    file.write_bytes(content)


def _truncate(folder: Path, file: Path | None = None) -> None:
    file = file or _largest(folder)
    os.truncate(file, file.stat().st_size - 7)


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def _other_numbers(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["content"]["metrics"]["accuracy"] = 0.99
    (folder / "manifest.json").write_text(json.dumps(manifest))


DAMAGE = {
    "a file is cut off": (_truncate, "bytes, not"),
    "a byte is flipped": (_flip, "has other bytes than were written"),
    "a file is missing": (lambda folder: _largest(folder).unlink(), "is missing"),
    "the manifest is cut off": (lambda folder: _truncate(folder, folder / "manifest.json"), "manifest.json"),
    "the manifest says other numbers": (_other_numbers, "has other content than was written"),
    "the manifest is another's": (lambda folder: (folder / "manifest.json").write_text("[]"), "manifest.json"),
    "half written": (lambda folder: (folder / "manifest.json").unlink(), ""),
    "half removed": (lambda folder: ((folder / "manifest.json").unlink(), _largest(folder).unlink()), ""),
    "an empty folder": (_empty, ""),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_of_a_damaged_newest_step_no_number_is_used(tmp_path, capsys, damage):
    do, told = DAMAGE[damage]
    with _open(tmp_path, writer=True) as saved:
        saved.keep_base(_base(_probe(0)))
        for step in (1, 2):
            saved.save(_probe(step), UNMOVED, {"accuracy": step / 10})
    do(tmp_path / "2")
    with _open(tmp_path) as saved:  # who evaluates reads the one before, and leaves all as it is
        assert saved.find_step("latest") == 1
        assert saved.find_step("best") == 1 or damage in ("a file is cut off", "a byte is flipped", "a file is missing")
        assert told in capsys.readouterr().out.replace("\n", "")
        if told:
            with pytest.raises(Damaged, match="2 is damaged"):
                saved.restore(2, _abstract(_probe(0)))
    assert (tmp_path / "2").exists()
    with _open(tmp_path, writer=True) as saved:
        assert saved.newest() == 1
        _same(saved.restore(1, _abstract(_probe(0))), _probe(1))
        saved.save(_probe(2), UNMOVED, {"accuracy": 0.2})
    with _open(tmp_path) as saved:
        assert (saved.steps, saved.find_step("best")) == ([1, 2], 2)
        _same(saved.restore(2, _abstract(_probe(0))), _probe(2))
    assert (tmp_path / "2.damaged").exists() == bool(told)


def test_what_was_to_be_removed_when_a_process_died_is_removed_by_the_next(tmp_path):
    with _open(tmp_path, writer=True, keep=1) as saved:
        for step in (1, 2, 3):
            saved.save(_state(step))
    shutil.copytree(tmp_path / "3", tmp_path / "2")
    with _open(tmp_path, writer=True, keep=1) as saved:
        assert saved.newest() == 3
        assert saved.steps == [3]
    shutil.copytree(tmp_path / "3", tmp_path / "2")
    _flip(tmp_path / "3")
    with _open(tmp_path, writer=True, keep=1) as saved:  # not while it is the only one that is whole
        assert saved.newest() == 2


def test_if_all_are_damaged_nothing_begins_anew_unasked(tmp_path):
    with _open(tmp_path, writer=True) as saved:
        saved.save(_state(1))
    _flip(tmp_path / "1")
    with _open(tmp_path, writer=True) as saved, pytest.raises(InputError, match="no step is undamaged"):
        saved.newest()


def test_a_damaged_base_is_seen_and_made_anew(tmp_path):
    with _open(tmp_path, writer=True) as saved:
        saved.keep_base(_base(_probe(0)))
        saved.save(_probe(1), UNMOVED)
    base = next(tmp_path.glob("base-*"))
    _flip(base)
    with _open(tmp_path) as saved, pytest.raises(Damaged, match=f"{base.name} is damaged"):
        saved.restore(1, _abstract(_probe(0)))
    with _open(tmp_path, writer=True) as saved:
        assert saved.newest() == 1
        assert not saved.base_is_whole()
        saved.keep_base(_base(_probe(0)))
        assert saved.base_is_whole()
        _same(saved.restore(1, _abstract(_probe(0))), _probe(1))


def _failing(monkeypatch, times: int) -> list[int]:
    """The disk is full for so many tries of a save."""
    monkeypatch.setattr(storage, "PAUSES", (0.01, 0.01, 0.01))
    tries, save = [], arrays._save

    def _save(folder, tree):
        tries.append(1)
        save(folder, tree)
        if len(tries) <= times:
            _truncate(folder)
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(arrays, "_save", _save)
    return tries


def test_a_disk_that_is_full_for_a_moment_costs_nothing(tmp_path, monkeypatch, capsys):
    with _open(tmp_path, writer=True) as saved:
        tries = _failing(monkeypatch, 3)
        saved.save(_state(1))
        saved.wait()
        assert len(tries) == 4
        _same(saved.restore(1, _abstract(_state(0))), _state(1))
    assert "No space left on device); again in" in capsys.readouterr().out.replace("\n", " ")


def test_a_disk_that_stays_full_ends_the_run_with_the_last_good_step_named(tmp_path, monkeypatch):
    with pytest.raises(InputError) as error, _open(tmp_path, writer=True) as saved:
        saved.save(_state(1))
        saved.wait()
        _failing(monkeypatch, 100)
        saved.save(_state(2))
        saved.save(_state(3))  # where the failure comes out
    assert f"{tmp_path}/2: cannot be written (No space left on device), tried 4 times" in str(error.value)
    assert "last step saved: step 1" in str(error.value)
    monkeypatch.undo()
    with _open(tmp_path, writer=True) as saved:
        assert saved.newest() == 1
        _same(saved.restore(1, _abstract(_state(0))), _state(1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1"]


@pytest.mark.parametrize("cache, steps", [("off", 1), ("on", 0)])
def test_a_disk_that_does_not_take_the_base_ends_the_run_at_once(cache, steps, tmp_path, shapes, monkeypatch):
    """It is stored beside the first step, or before features are computed, and no second step is taken without it."""
    run, taken, computed = tiny_run(f"folder:{shapes}", tuning__strategy="linear_probe", cache=cache), [], []
    step, compute = TrainStep.__call__, feature_cache.computed
    monkeypatch.setattr(TrainStep, "__call__", lambda self, *of: taken.append(1) or step(self, *of))
    monkeypatch.setattr(feature_cache, "computed", lambda *of, **also: computed.append(1) or compute(*of, **also))
    _failing(monkeypatch, 100)
    with pytest.raises(InputError) as error:
        train(run.experiment, tmp_path, prepared=run)
    assert f"{tmp_path}/checkpoints/base-" in str(error.value)
    assert "(No space left on device), tried 4 times" in str(error.value) and "saved: none" in str(error.value)
    assert len(taken) == steps and not computed


def test_what_is_stored_beside_a_step_is_not_given_away_to_it(tmp_path, shapes, monkeypatch):
    """Averages of statistics that rest are in the base, and the step's, as a later phase may move them."""
    values = {"tuning__strategy": "last_k", "tuning__k": 1, "optim__average": "ema", "cache": "off"}
    run, kept = tiny_run(f"folder:{shapes}", "tiny_resnet", **values), {}
    keep_base = Checkpoints.keep_base
    monkeypatch.setattr(Checkpoints, "keep_base", lambda self, leaves: kept.update(leaves) or keep_base(self, leaves))
    train(run.experiment, tmp_path, prepared=run)
    assert {name.split("/")[0] for name in kept} == {"average", "batch_stats", "params"}
    assert {name for name, leaf in kept.items() if isinstance(leaf, np.ndarray)} == {
        name for name in kept if name.startswith("average/")
    }
    assert not [name for name, leaf in kept.items() if isinstance(leaf, jax.Array) and leaf.is_deleted()]


@pytest.mark.parametrize(
    ("which", "message"),
    [("7", "no checkpoint '7'; there are: latest, best, 1"), ("best", "no checkpoint has a validation metric")],
)
def test_a_step_that_is_not_there(tmp_path, which, message):
    with _open(tmp_path, writer=True) as saved:
        saved.save(_state(1))
        saved.wait()
        with pytest.raises(InputError) as error:
            saved.find_step(which)
    assert message in str(error.value)


def test_an_empty_folder(tmp_path):
    with _open(tmp_path) as saved, pytest.raises(InputError, match="no checkpoint yet"):
        saved.find_step("latest")


@pytest.mark.parametrize("shape", [(3, 3), (2, 2)])
def test_another_models_checkpoint_is_refused(tmp_path, shape):
    with _open(tmp_path, writer=True) as saved:
        saved.save(_state(1))
    other = _abstract(_state(1))
    other.params["a"]["w"] = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=other.step.sharding)
    with _open(tmp_path) as saved, pytest.raises(InputError) as error:
        saved.restore(1, other)
    assert f"params/a/w is (3, 2) there, {shape} here" in str(error.value)


def test_a_missing_leaf_is_named(tmp_path):
    with _open(tmp_path, writer=True) as saved:
        saved.save(_state(1))
    other = _abstract(_state(1))
    other.params["a"]["extra"] = other.step
    with _open(tmp_path) as saved, pytest.raises(InputError, match="params/a/extra is None there"):
        saved.restore(1, other)


def test_names_are_those_of_the_state(tmp_path):
    assert {"step", "skipped", "params/a/w", "opt_state/0/mu/a/w"} <= set(checkpointer.flatten_state(_state(1)))


def test_a_tree_and_its_facts(tmp_path):
    tree = {"a": {"b": np.arange(5.0, dtype=np.float32)}, "c": np.ones((2, 3), np.float32)}
    facts = {"pretrained": {"x": 1}, "ignored": [], "head": []}
    arrays.save_tree(tmp_path / "t", tree, facts)
    found = arrays.load_tree(tmp_path / "t")
    assert arrays.load_metadata(tmp_path / "t") == facts
    np.testing.assert_array_equal(found["a"]["b"], tree["a"]["b"])
    assert isinstance(found["c"], np.ndarray)
    with pytest.raises(InputError, match="not a folder made by `tljax convert`"):
        arrays.load_metadata(tmp_path)


def test_a_linear_probes_checkpoints_are_as_small_as_what_trains(tmp_path, shapes):
    run = tiny_run(f"folder:{shapes}", "vit_small_patch16", tuning__strategy="linear_probe", optim__name="adamw")
    state = run.init_state()
    leaves = flatten_state(state)
    trained = sum(leaf.nbytes for name, leaf in leaves.items() if name not in run.masks.frozen_names())
    whole = sum(leaf.nbytes for name, leaf in leaves.items() if name.startswith("params/"))
    with _open(tmp_path, writer=True, keep=20) as saved:
        saved.keep_base({name: leaves[name] for name in run.masks.frozen_names()})
        for step in range(1, 21):
            saved.save(state.replace(step=jnp.int32(step)), run.masks.frozen_names())
    sizes = [
        sum(path.stat().st_size for path in (tmp_path / str(step)).rglob("*") if path.is_file()) for step in saved.steps
    ]
    assert max(sizes) <= 3 * trained + 65536
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) <= 1.05 * whole
    assert whole > 80e6


def test_nothing_is_best_by_a_metric_that_is_not_a_number(tmp_path):
    judged = PROBLEMS["regression"].metric("r2")
    with _open(tmp_path, judged, writer=True, keep=1) as saved:
        for step, r2 in ((1, 0.5), (2, float("nan")), (3, 0.1), (4, 0.2)):
            saved.save(_state(step), validation={"mae": 1.0, "r2": r2})
            saved.wait()
            if r2 != r2:  # as a bare NaN no other reader would take it
                text = (tmp_path / "2" / arrays.MANIFEST).read_text()
                assert json.loads(text, parse_constant=pytest.fail)["content"]["metrics"] == {"mae": 1.0, "r2": None}
                with pytest.raises(InputError, match="validation's r2 is not a number at step 2"):
                    saved.find_step("best")
        assert saved.steps == [1, 4]  # the best of those that have one stays
        assert saved.find_step("best") == 1
        # As an older version wrote it, it is whole.
        manifest = tmp_path / "4" / arrays.MANIFEST
        content = json.loads(manifest.read_text())["content"] | {"metrics": {"r2": float("nan")}}
        manifest.write_text(json.dumps({"content": content, "sha256": arrays._seal(content)}))
        assert saved.newest() == 4
        with pytest.raises(InputError, match="validation's r2 is not a number at step 4"):
            saved.find_step("best")
