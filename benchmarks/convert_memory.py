"""Peak memory of converting a ViT-L with random weights, over the size of its file.

.venv/bin/python benchmarks/convert_memory.py
"""

import multiprocessing
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tljax import console
from tljax.cli.convert import convert
from tljax.config.schema import BackboneConfig
from tljax.models.registry import BACKBONES
from tljax.weights import mappings, pretrained
from tljax.weights.mapping import unconvert

NAME = "vit_large_patch16"


def make(file: Path) -> None:
    """A checkpoint under timm's names."""
    module, rng = BACKBONES[NAME], np.random.default_rng(0)
    shapes = {
        path: shape for path, shape in pretrained.shapes(module).items() if path not in pretrained.optional(module)
    }
    arrays = {path: rng.standard_normal(shape, dtype=np.float32) for path, shape in shapes.items()}
    save_file(unconvert(arrays, mappings.tables(module)["timm"]), file)


def peak_of_converting(file: Path, output: Path) -> int:
    """Bytes, of this whole process."""
    convert(BackboneConfig(name=NAME, weights=str(file)), output)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


def main() -> None:
    # New processes, each with its own peak.
    fresh = multiprocessing.get_context("spawn").Pool
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.safetensors"
        with fresh(1) as pool:
            pool.apply(make, (file,))
        size = file.stat().st_size
        with fresh(1) as pool:
            peak = pool.apply(peak_of_converting, (file, Path(folder) / "converted"))
    row = (NAME, f"{size / 1e9:.2f}", f"{peak / 1e9:.2f}", f"{peak / size:.2f}")
    console.table("convert", ("", "file, GB", "peak, GB", "peak ÷ file"), [row])


if __name__ == "__main__":
    main()
