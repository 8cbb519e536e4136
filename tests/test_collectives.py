"""What devices tell each other in a step, and what each holds, from programs compiled for up to 512; nothing is run.

    JAX_NUM_CPU_DEVICES=512 python -m tests.test_collectives

prints as JSON what is found of each of `CASES`.
"""

import json
import math
import os
import sys
from typing import Any

import jax
import pytest

from benchmarks.collectives import collective_bytes, make_run, ring_seconds, trainable_bytes
from tests import forks
from tests.conftest import ROOT
from tljax.distributed import mesh

SMALL = {"backbone": "vit_tiny_patch16", "size": 32, "architecture": {"width": 64, "depth": 2, "heads": 2}}
FULL, PROBE, LAST = {"strategy": "full"}, {"strategy": "linear_probe"}, {"strategy": "last_k", "k": 1}
CASES: dict[str, dict[str, Any]] = {
    **{f"full on {n}": SMALL | FULL | {"devices": n} for n in (8, 64, 512)},
    **{f"last block on {n}": SMALL | LAST | {"devices": n} for n in (8, 512)},
    "head of ViT-B on 8": PROBE | {"devices": 8},
    **{f"full over {n}": SMALL | FULL | {"devices": 8, "mesh": {"fsdp": n}} for n in (2, 4, 8)},
    "full over 8 of 64": SMALL | FULL | {"devices": 64, "mesh": {"fsdp": 8}},
    "head beside a whole backbone": SMALL | PROBE | {"devices": 8, "mesh": {"fsdp": 8}},
    "head beside a backbone over 8": SMALL | PROBE | {"devices": 8, "mesh": {"fsdp": 8, "frozen": "sharded"}},
}
# The sums over a batch of loss, weights, scores and mask, float32 each.
METRICS = 4 * 4


def _of(case: dict[str, Any]) -> dict[str, Any]:
    run = make_run(**case)
    program, state = run.programs.train_step(run.phases[0]).program, run.abstract_state()
    leaves = [(leaf.size * leaf.dtype.itemsize, mesh.shares(leaf)) for leaf in jax.tree.leaves(state)]
    return {
        "trains": trainable_bytes(run),
        "bytes": collective_bytes(program),
        "arguments": program.memory_analysis().argument_size_in_bytes,
        "batch": mesh.shares(run.programs.abstract_batch(run.batch_size)),
        "whole": sum(size for size, share in leaves if size == share),
        "spread": sum(size for size, share in leaves if size != share),
        "spread_params": sum(
            leaf.size * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(state.params)
            if not leaf.sharding.is_fully_replicated
        ),
    }


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, Any]]:
    command = [sys.executable, "-m", "tests.test_collectives"]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "512"}
    done = forks.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    return json.loads(done.stdout)


pytestmark = pytest.mark.slow


@pytest.mark.parametrize("case", [name for name, of in CASES.items() if "mesh" not in of])
def test_the_gradients_of_what_trains_are_summed_and_nothing_else_is_told(found, case):
    of = found[case]
    assert set(of["bytes"]) == {"all-reduce"}
    assert 0 < of["bytes"]["all-reduce"] - of["trains"] <= METRICS


def test_what_is_told_does_not_depend_on_the_number_of_devices(found):
    assert found["full on 8"]["bytes"] == found["full on 64"]["bytes"] == found["full on 512"]["bytes"]
    assert found["last block on 8"]["bytes"] == found["last block on 512"]["bytes"]


def test_a_linear_probe_of_vit_b_tells_of_its_head_alone(found):
    assert found["head of ViT-B on 8"]["trains"] == 4 * (768 * 10 + 10)


@pytest.mark.parametrize("case", CASES)
def test_each_device_holds_its_share_of_the_state_and_of_the_batch(found, case):
    of, count = found[case], CASES[case].get("mesh", {}).get("fsdp", 1)
    numbers = 3 * 4  # learning rate, weight decay and seed
    assert of["arguments"] == of["whole"] + of["spread"] / count + of["batch"] + numbers
    assert bool(of["spread"]) == (count > 1 and case != "head beside a whole backbone")


@pytest.mark.parametrize("case", [name for name in CASES if name.startswith("full over")])
def test_shares_of_parameters_are_brought_together_once_a_step(found, case):
    of = found[case]
    assert of["spread"] == 3 * of["spread_params"] > 0.8 * (of["spread"] + of["whole"])
    assert of["bytes"]["all-gather"] == of["spread_params"]
    assert of["bytes"]["all-reduce"] <= of["trains"] + METRICS + 4 * 4


def test_frozen_leaves_travel_only_where_they_are_spread(found):
    assert "all-gather" not in found["head beside a whole backbone"]["bytes"]
    of = found["head beside a backbone over 8"]
    assert of["bytes"]["all-gather"] == of["spread_params"] == of["spread"]


def test_a_ring_of_two_sends_everything_there_and_back():
    assert math.isclose(ring_seconds(10**9, 2, 1e9, 0.5), 1 + 1)
    assert math.isclose(ring_seconds(10**9, 512, 1e9, 0.0), 2 * 511 / 512)


if __name__ == "__main__":
    print(json.dumps({name: _of(case) for name, case in CASES.items()}))
