"""What the devices of a run tell each other in a training step of ViT-B/16, from the compiled programs: nothing is run.

    .venv/bin/python benchmarks/collectives.py [--devices=8] [--gigabytes=50] [--microseconds=5]

224 px, 8 images on each device, AdamW. Beside it stands the time that this takes 512 devices by the formula of a ring,
2(N-1)/N × bytes ÷ bandwidth + 2(N-1) × latency: each device sends and receives `--gigabytes` a second at the same time,
a message from one to the next takes `--microseconds`, and nothing is hidden behind the computation. What is to be sent
does not depend on the number of devices (tests/test_collectives.py, up to 512).
"""

import argparse
import math
import re

import jax

from tljax.config import schema
from tljax.config.schema import Experiment
from tljax.core.run import Resolved, Run
from tljax.data.preprocessing import Preprocessing
from tljax.tuning.masks import partition
from tljax.weights.catalog import Pretrained

STRATEGIES = {
    "full": {"strategy": "full"},
    "last_k, k=2": {"strategy": "last_k", "k": 2},
    "lora, rank=8": {"strategy": "lora", "rank": 8},
    "linear_probe": {"strategy": "linear_probe"},
}
_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_OPERATION = re.compile(rf"= (\S.*?) ({'|'.join(_KINDS)})(?:-start)?\(")
_ARRAY = re.compile(r"(pred|bf16|[sufc]\d+)\[([\d,]*)\]")


def make_run(
    devices: int,
    backbone: str = "vit_base_patch16",
    size: int = 224,
    architecture: dict | None = None,
    mesh: dict | None = None,
    **arguments,
) -> Run:
    """A run on no data, on the first of the devices, with 8 images on each."""
    values = schema.default()
    values.backbone.name, values.steps = backbone, 100
    values.task.update(image_size=size, batch_size=8 * devices)
    values.tuning.update(arguments)
    values.mesh.update(mesh or {})
    pixels = Preprocessing(size=size)
    row = Pretrained("", "", backbone, "", pixels, "none", architecture=architecture or {})
    resolved = Resolved(row, pixels, tuple("0123456789"), 100, 1000, "none")
    return Run(Experiment.from_config(values), resolved, devices=jax.devices()[:devices])


def collective_bytes(program: jax.stages.Compiled) -> dict[str, int]:
    """Bytes of the arrays that collective operations give each device, by kind; of a loop's body once."""
    counts = dict.fromkeys(_KINDS, 0)
    for result, kind in _OPERATION.findall(program.as_text()):
        for of, shape in _ARRAY.findall(result):
            bits = 8 if of == "pred" else int(re.sub(r"\D", "", of))
            counts[kind] += bits // 8 * math.prod(int(n) for n in shape.split(",") if n)
    return {kind: count for kind, count in counts.items() if count}


def trainable_bytes(run: Run) -> int:
    """Of the arrays that train, in all."""
    leaves = jax.tree.leaves(partition(run.abstract_state().params, run.masks.multipliers)[0])
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def ring_seconds(count: int, devices: int, bandwidth: float, latency: float) -> float:
    """Of an all-reduce of so many bytes, at so many bytes a second and seconds a message."""
    return 2 * (devices - 1) / devices * count / bandwidth + 2 * (devices - 1) * latency


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--gigabytes", type=float, default=50, metavar="GB", help="a second, that a device sends")
    parser.add_argument("--microseconds", type=float, default=5, help="of a message from one device to the next")
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", options.devices)
    print(f"| strategy | trains, MB | all-reduce, MB | other, MB | at 512 devices, ms |\n|{'---|' * 5}")
    for name, arguments in STRATEGIES.items():
        run = make_run(options.devices, **arguments)
        counts = collective_bytes(run.programs.train_step(run.phases[0]).program)
        summed, trains = counts.pop("all-reduce", 0), trainable_bytes(run)
        seconds = ring_seconds(summed, 512, options.gigabytes * 1e9, options.microseconds * 1e-6)
        cells = (
            f"`{name}`",
            *(f"{n / 1e6:.3f}" for n in (trains, summed, sum(counts.values()))),
            f"{1e3 * seconds:.2f}",
        )
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
