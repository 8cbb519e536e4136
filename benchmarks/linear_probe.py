"""A linear probe of ViT-S/16 as a whole process, against the standard loop in PyTorch: the network in every epoch.

    .venv/bin/pip install -r benchmarks/requirements.txt
    .venv/bin/python benchmarks/linear_probe.py [--examples=2048] [--epochs=10,100] [--threads=2]

tljax: `python -m tljax train` on PNG files at 224 px, batch 64, AdamW, with imports, decoding, compilation (nothing is
cached before), features and evaluation of a tenth. PyTorch: the same network of timm, its images ready in memory,
`no_grad` for the frozen part, eager; its import and one epoch are measured, and the epoch is multiplied.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]

_CONFIG = """
from tljax.config import default

def get_config():
    config = default()
    config.backbone.name = "vit_small_patch16"
    config.task.update(dataset="folder:{folder}", train="train[:90%]", validation="train[90%:]", image_size=224)
    config.task.update(batch_size=64)
    config.update(epochs=1.0, log_every=1000)
    config.tuning.strategy = "linear_probe"
    return config
"""

_TORCH = """
import sys, time
import torch, timm
from torch.nn import functional as F
examples, threads = map(int, sys.argv[1:])
torch.set_num_threads(threads)
model = timm.create_model("vit_small_patch16_224", num_classes=0).eval().requires_grad_(False)
head = torch.nn.Linear(384, 10)
optimizer = torch.optim.AdamW(head.parameters(), fused=True)
images = torch.randint(0, 256, (examples, 3, 224, 224), dtype=torch.uint8)
labels, order = torch.randint(0, 10, (examples,)), torch.randperm(examples)
began = time.perf_counter()
for rows in order.split(64):
    with torch.no_grad():
        x = model((images[rows].float() - 127) / 58)
    loss = F.cross_entropy(head(x), labels[rows])
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
print(time.perf_counter() - began)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=2048)
    parser.add_argument("--epochs", default="10,100")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "pictures"
        for number in range(options.examples):
            path = folder / f"class{number % 10}" / f"{number:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (224, 224, 3), np.uint8)).save(path, compress_level=1)
        config = Path(root) / "config.py"
        config.write_text(_CONFIG.format(folder=folder))
        began = time.perf_counter()
        command = [sys.executable, "-c", _TORCH, str(round(0.9 * options.examples)), str(options.threads)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        epoch = float(done.stdout)
        start = time.perf_counter() - began - epoch
        print(f"{options.threads} threads; PyTorch: {start:.1f} s to start, {epoch:.1f} s an epoch\n")
        print("| epochs | PyTorch, s | tljax, s | PyTorch ÷ tljax |\n|---|---|---|---|")
        for epochs in map(int, options.epochs.split(",")):
            command = [sys.executable, "-m", "tljax", "train", f"--config={config}", f"--config.epochs={epochs}"]
            command += [f"--workdir={root}/run-{epochs}"]
            began = time.perf_counter()
            environment = os.environ | {"TLJAX_CACHE": f"{root}/cache-{epochs}"}
            subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
            ours, theirs = time.perf_counter() - began, start + epochs * epoch
            print(f"| {epochs} | {theirs:.0f} | {ours:.1f} | {theirs / ours:.1f} |", flush=True)


if __name__ == "__main__":
    main()
