"""What a training step of ViT-Ti/16 costs under each strategy, from the compiled programs: nothing is run.

    .venv/bin/python benchmarks/cost.py [--json]

224 px, batch 8, AdamW, with all that could read a frozen gradient by mistake turned on: clip, gradient norm, weight
decay, accumulation in two parts, the guard against steps that are not finite.
"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor

import jax

from tljax import console
from tljax.config import schema
from tljax.config.schema import Experiment
from tljax.core.run import Resolved, Run
from tljax.data.preprocessing import Preprocessing
from tljax.profiling.cost import Block, cost
from tljax.weights.catalog import Pretrained

STRATEGIES = {
    "linear_probe": {"strategy": "linear_probe"},
    "last_2": {"strategy": "last_k", "k": 2},
    "bias_only": {"strategy": "bias_only"},
    "lora": {"strategy": "lora", "rank": 8},
    "full": {"strategy": "full"},
}


def make_run(backbone: str = "vit_tiny_patch16", batch_size: int = 8, **tuning) -> Run:
    """A run on no data, of 100 steps at 224 px."""
    values = schema.default()
    values.backbone.name, values.steps = backbone, 100
    values.task.update(image_size=224, batch_size=batch_size)
    values.tuning.update(tuning)
    values.optim.update(clip_norm=1.0, weight_decay=0.05, accumulate=2)
    row = Pretrained("", "", backbone, "", Preprocessing(), "none")
    classes = tuple(str(number) for number in range(10))
    return Run(Experiment.from_config(values), Resolved(row, Preprocessing(), classes, 100, 1000, "none"))


def measure() -> dict[str, Block]:
    """Strategy -> its cost block."""
    # Two at a time: one is traced while another is compiled.
    with ThreadPoolExecutor(2) as pool:
        return dict(
            zip(STRATEGIES, pool.map(lambda tuning: cost(make_run(**tuning)), STRATEGIES.values()), strict=True)
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    options = parser.parse_args()
    blocks = measure()
    table = {
        name: {
            "step_gflop": round(block["step_flops"] / 1e9, 2),
            "forward_gflop": round(block["forward_flops"] / 1e9, 2),
            "share_of_full": round(block["step_share_of_full"], 3),
            "temp_mb": round(block["step_temp_bytes"] / 1e6, 1),
            "state_mb": round(block["optimizer_state_bytes"] / 1e6, 3),
            "trainable_params": block["trainable_params"],
        }
        for name, block in blocks.items()
    }
    if options.json:
        print(json.dumps(table))
        return
    columns = list(table["full"])
    rows = [(name, *(f"{row[column]:,}" for column in columns)) for name, row in table.items()]
    console.table(f"a step of ViT-Ti/16, {jax.default_backend()}, jax {jax.__version__}", ("strategy", *columns), rows)


if __name__ == "__main__":
    main()
