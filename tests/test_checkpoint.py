import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath

from tljax import array_files
from tljax.checkpoint import Checkpoints
from tljax.config import CheckpointConfig
from tljax.errors import InputError
from tljax.metrics import JUDGED
from tljax.step import State

ACCURACY = JUDGED["single_label"]


def _open(folder, judged=ACCURACY, writer=False, **config) -> Checkpoints:
    return Checkpoints(epath.Path(folder), judged, CheckpointConfig(**config), writer)


def _state(step: int) -> State:
    params = {"a": {"w": jnp.full((3, 2), float(step)), "frozen": optax.MaskedNode()}}
    return State(jnp.int32(step), params, optax.adam(1e-3).init(params), {}, {}, {}, jnp.int32(0))


def _abstract(state: State) -> State:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def test_the_latest_and_the_best_are_kept_and_come_back_whole(tmp_path):
    with _open(tmp_path, writer=True) as saved:
        for step, accuracy in ((1, 0.2), (2, 0.9), (3, 0.5), (4, 0.9), (5, 0.1)):
            saved.save(_state(step), {"accuracy": accuracy})
    with _open(tmp_path) as saved:
        assert saved.resolve("latest") == 5
        assert saved.resolve("best") in (2, 4)
        assert len(saved.steps) == 2
        found = saved.restore(5, _abstract(_state(0)))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(_state(5)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_where_less_is_better_the_least_is_best(tmp_path):
    with _open(tmp_path, JUDGED["regression"], writer=True) as saved:
        for step, error in ((1, 0.9), (2, 0.1), (3, 0.5)):
            saved.save(_state(step), {"mae": error})
        assert saved.resolve("best") == 2
    with _open(tmp_path, JUDGED["regression"]) as saved:
        assert saved.steps == [2, 3]


def test_saving_is_of_the_state_at_the_call_even_if_it_is_donated_at_once(tmp_path):
    bump = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    state = State(jnp.int32(1), {"w": jnp.zeros((1000, 1000))}, (), {}, {}, {}, jnp.int32(0))
    abstract = _abstract(state)
    with _open(tmp_path, writer=True) as saved:
        saved.save(state)
        for _ in range(20):
            state = bump(state)
        jax.block_until_ready(state)
    with _open(tmp_path) as saved:
        assert not np.any(saved.restore(1, abstract).params["w"])


def test_what_a_killed_save_left_is_cleaned_by_the_next_writer(tmp_path):
    with _open(tmp_path, writer=True) as saved:
        saved.save(_state(1))
    (tmp_path / "2.orbax-checkpoint-tmp").mkdir()
    with _open(tmp_path) as saved:
        assert saved.steps == [1]
    with _open(tmp_path, writer=True) as saved:
        assert saved.steps == [1]
    assert not list(tmp_path.glob("*tmp*"))


@pytest.mark.parametrize(
    ("which", "message"),
    [("7", "no checkpoint '7'; there are: latest, best, 1"), ("best", "no checkpoint has a validation metric")],
)
def test_a_step_that_is_not_there(tmp_path, which, message):
    with _open(tmp_path, writer=True) as saved:
        saved.save(_state(1))
        with pytest.raises(InputError) as error:
            saved.resolve(which)
    assert message in str(error.value)


def test_an_empty_folder(tmp_path):
    with _open(tmp_path) as saved, pytest.raises(InputError, match="no checkpoint yet"):
        saved.resolve("latest")


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


def test_a_damaged_file_is_an_error_not_a_number(tmp_path):
    with _open(tmp_path, writer=True) as saved:
        saved.save(_state(1))
    for file in (tmp_path / "1" / "state").rglob("*"):
        if file.is_file() and "/d/" in str(file):
            file.write_bytes(file.read_bytes()[:-7])
    with _open(tmp_path) as saved, pytest.raises(InputError, match="cannot be restored"):
        saved.restore(1, _abstract(_state(1)))


def test_a_tree_and_its_facts(tmp_path):
    tree = {"a": {"b": np.arange(5.0, dtype=np.float32)}, "c": np.ones((2, 3), np.float32)}
    array_files.save_tree(tmp_path / "t", tree, {"x": 1})
    found = array_files.load_tree(tmp_path / "t")
    assert array_files.load_facts(tmp_path / "t") == {"x": 1}
    np.testing.assert_array_equal(found["a"]["b"], tree["a"]["b"])
    assert isinstance(found["c"], np.ndarray)
    with pytest.raises(InputError, match="not a folder made by `tljax convert`"):
        array_files.load_facts(tmp_path)
