"""The cost of a step, from the compiled program of a whole ViT-Ti/16; `benchmarks/cost.py` prints it as a table."""

import pytest

from benchmarks.cost import STRATEGIES, measure

# GFLOP of a step and MB beside its arguments, at most; 224 px, batch 8, AdamW.
AT_MOST = {
    "linear_probe": (19.3, 10),
    "last_2": (23.5, 35),
    "bias_only": (41, 160),
    "lora": (41.5, 175),
    "full": (57.5, 240),
}


@pytest.fixture(scope="module")
def blocks():
    return measure()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_step_costs_what_trains_and_no_more(blocks, strategy):
    block, (gflop, megabytes) = blocks[strategy], AT_MOST[strategy]
    assert block["forward_flops"] <= (19.6e9 if strategy == "lora" else 19.3e9)
    assert block["forward_flops"] < block["step_flops"] <= gflop * 1e9
    assert block["step_temp_bytes"] <= megabytes * 1e6
    assert block["optimizer_state_bytes"] == 8 * block["trainable_params"]
