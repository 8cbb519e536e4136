"""Folders with odd names: they hold runs, data and caches like any other."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from tests.conftest import TINY, make_folder, tiny_run
from tljax import __main__
from tljax.checkpoints.checkpointer import Checkpoints
from tljax.checkpoints.workdir import Workdir
from tljax.config.schema import CheckpointConfig
from tljax.core.state import TrainState
from tljax.errors import InputError
from tljax.io import arrays, storage
from tljax.models.registry import BACKBONES
from tljax.problems.registry import PROBLEMS
from tljax.training.trainer import train

ODD = (
    *("a[1]", "b\\c", "x*y", "q?z", "{a}", "100%", "#h", "sp ace", "ü", "-dash", "a'b\"c", "tail.", "new\nline"),
    *("[!a]", "**"),
)


def _state(step: int) -> TrainState:
    return TrainState(jnp.int32(step), {"w": jnp.arange(4.0), "b": jnp.ones(2)}, (), {}, {}, {}, jnp.int32(0))


def _open(folder: epath.Path, writer: bool = False) -> Checkpoints:
    return Checkpoints(folder / "checkpoints", PROBLEMS["single_label"].headline, CheckpointConfig(), writer)


@pytest.mark.parametrize("name", ODD)
def test_a_run_is_found_again_in_a_folder_of_whatever_name(tmp_path, name):
    folder = Workdir(tmp_path / name)
    with folder.locked(), _open(folder.path, writer=True) as saved:
        for step in (1, 2):
            folder.append({"step": step, "split": "train", "seconds": 1.0, "input_seconds": 0.0})
        saved.save(_state(2))
        folder.save_plan({"steps": 2})
    with _open(folder.path) as saved:
        assert (saved.steps, saved.newest()) == ([2], 2)
        jax.tree.map(np.testing.assert_array_equal, saved.restore(2, _abstract(_state(0))), _state(2))
    assert folder.rewind(1) == (1.0, 0.0) and len(folder.metrics) == 1
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert {path.name for path in (tmp_path / name).iterdir()} == {".lock", "checkpoints", "metrics.jsonl", "plan.json"}


def _abstract(state: TrainState) -> TrainState:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def test_a_first_checkpoint_that_cannot_be_read_ends_the_run(tmp_path, monkeypatch):
    """As where there is no /proc by whose descriptors Orbax reaches a folder with brackets."""
    monkeypatch.setattr(arrays, "_DESCRIPTORS", Path("/nowhere"))
    monkeypatch.setattr(storage, "PAUSES", ())
    with pytest.raises(InputError) as error, _open(epath.Path(tmp_path / "a[1]"), writer=True) as saved:
        saved.save(_state(1))
        saved.wait()
    assert "1/arrays: cannot be restored" in str(error.value) and "\n" not in str(error.value)
    with _open(epath.Path(tmp_path / "plain"), writer=True) as saved:
        saved.save(_state(1))
        saved.wait()
        monkeypatch.setattr(arrays, "_verify", lambda *_: pytest.fail("only the first is looked at again"))
        saved.save(_state(2))


def test_train_resume_evaluate_and_predict_with_odd_names_all_round(tmp_path, monkeypatch, capsys):
    odd = tmp_path / "a[1] *?{%#"
    monkeypatch.setenv("TLJAX_CACHE", str(odd / "cache"))
    pictures = make_folder(odd / "data", per_class=8)
    for name, module in TINY.items():
        monkeypatch.setitem(BACKBONES, name, module)
    cut = {"task__train": "train[:8]", "task__validation": "train[8:12]", "task__test": "train[12:]"}
    run = tiny_run(f"folder:{pictures}", steps=2, tuning__strategy="linear_probe", cache="on", **cut)
    result = train(run.experiment, odd / "run", prepared=run)
    (odd / "run" / "result.json").unlink()
    assert train(run.experiment, odd / "run")["splits"] == result["splits"]  # from its last step
    assert __main__.main(["evaluate", f"--workdir={odd / 'run'}"]) == 0
    out = odd / "out.csv"
    picture = next(pictures.glob("disc/*.png"))
    assert __main__.main(["predict", f"--workdir={odd / 'run'}", "--format=csv", f"--out={out}", str(picture)]) == 0
    assert len(out.read_text().splitlines()) == 2
    assert not [path for path in odd.rglob("*") if path.name.endswith((".tmp", ".partial"))]
