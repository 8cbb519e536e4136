"""How parameters are shared out, and that no name of what was computed depends on it."""

import dataclasses

import jax
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from tests.conftest import tiny_run
from tljax.checkpoints.workdir import Workdir
from tljax.config.schema import MeshConfig
from tljax.distributed import mesh as distributed_mesh
from tljax.errors import InputError
from tljax.sweeps import selection, trial


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((768, 3072), (None, "fsdp")),
        ((3072, 768), ("fsdp",)),
        ((197, 768), (None, "fsdp")),  # the longest that can be shared out, where the longest cannot
        ((1000, 768), ("fsdp",)),
        ((7, 7, 3, 64), (None, None, None, "fsdp")),
        ((3072,), ()),  # too small to be worth it
        ((999, 333), ()),  # odd
        ((), ()),
    ],
)
def test_the_longest_axis_that_fsdp_divides_is_shared_out(shape, spec):
    mesh = AbstractMesh((2, 4), (distributed_mesh.DATA, distributed_mesh.FSDP))
    found = distributed_mesh.spread(mesh, shape)
    assert found.spec == PartitionSpec(*spec)
    assert distributed_mesh.spread(
        AbstractMesh((8, 1), (distributed_mesh.DATA, distributed_mesh.FSDP)), shape
    ).is_fully_replicated
    leaf = jax.ShapeDtypeStruct(shape, "float32", sharding=found)
    assert distributed_mesh.shares(leaf) * (4 if spec else 1) == 4 * leaf.size


def test_devices_that_cannot_be_shared_out_so_are_an_error(shapes):
    with pytest.raises(InputError, match=r"mesh.fsdp=2 does not divide the 1 devices: use 1$"):
        tiny_run(f"folder:{shapes}", mesh__fsdp=2)


def test_a_layout_of_frozen_leaves_that_there_is_not_is_an_error(shapes):
    with pytest.raises(InputError, match=r"no config.mesh.frozen .split.; there are: replicated, sharded"):
        tiny_run(f"folder:{shapes}", mesh__frozen="split")


def test_no_name_of_what_is_computed_depends_on_the_mesh(shapes, tmp_path):
    run = tiny_run(f"folder:{shapes}")
    other = dataclasses.replace(run.experiment, mesh=MeshConfig(fsdp=8, frozen="sharded"))
    assert trial._content(run.experiment) == trial._content(other)
    assert trial.common(run.experiment) == trial.common(other)
    assert selection.setting_of(run.experiment) == selection.setting_of(other)
    folder = Workdir(tmp_path / "run")
    with folder.locked():
        folder.start(other, run.resolved)
        folder.append({"step": 1})
        folder.start(run.experiment, run.resolved)  # which would be refused, were it another run
    assert Workdir(tmp_path / "run").load()[0] == run.experiment
