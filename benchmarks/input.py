"""Training images per second and core: torch's DataLoader, Grain with PIL, and tljax from JPEGs and from its cache.

    .venv/bin/pip install -e '.[test]' -r benchmarks/requirements.txt
    .venv/bin/python benchmarks/input.py [--files=192] [--rounds=7] [--interpolation=bilinear] [--json=input.json]

All read the same files, in one process with one thread on one core, and make batches of 64 squares of 224 pixels by
the same crop, half of them mirrored. They take turns, each all files in each round; a row gives the median of the
rounds, and its ratio to that of the DataLoader which gives bytes (`uint8`) as tljax does (it normalizes on the device),
and to that of the one that normalizes on the host, as is usual.

The files are cut from two photographs of scikit-learn laid side by side and mirrored, so that they have the detail of
photographs at either size (quality 90).
"""

import argparse
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grain
import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode

from tljax import console
from tljax.data import array_cache
from tljax.data.preprocessing import Preprocessing
from tljax.data.transforms import image as images

SIZE, RESIZE, BATCH = 224, 256, 64
SIZES = ((500, 375), (1024, 768))
CROPS = {"inception": 0, "random": RESIZE}  # -> task.resize
Epoch = Callable[[], Iterator[object]]  # the batches of all files


@dataclass(frozen=True)
class Files:
    """JPEGs of one size in class folders, and how they are resized."""

    root: Path
    interpolation: str

    @property
    def paths(self) -> list[Path]:
        return sorted(self.root.rglob("*.jpg"))


def make(root: Path, width: int, height: int, count: int) -> None:
    rng = np.random.default_rng(0)
    for label, photograph in enumerate(load_sample_images().images):
        (root / str(label)).mkdir(parents=True)
        beside = np.concatenate([photograph, photograph[:, ::-1]], 1)
        whole = np.concatenate([beside, beside[::-1]], 0)
        for i in range(count // 2):
            top, left = rng.integers(whole.shape[0] - height + 1), rng.integers(whole.shape[1] - width + 1)
            picture = Image.fromarray(whole[top : top + height, left : left + width])
            picture.save(root / str(label) / f"{i:04d}.jpg", quality=90)


def torch_loader(files: Files, crop: str, normalized: bool) -> Epoch:
    filter = InterpolationMode(files.interpolation)
    if crop == "inception":
        cut = [transforms.RandomResizedCrop(SIZE, interpolation=filter)]
    else:
        cut = [transforms.Resize(RESIZE, interpolation=filter), transforms.RandomCrop(SIZE)]
    to_floats = [transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    last = to_floats if normalized else [transforms.PILToTensor()]
    dataset = ImageFolder(files.root, transforms.Compose([*cut, transforms.RandomHorizontalFlip(), *last]))
    return lambda: iter(torch.utils.data.DataLoader(dataset, BATCH, shuffle=True))


def grain_pil(files: Files, crop: str) -> Epoch:
    filter = Image.Resampling[files.interpolation.upper()]

    def view(path: Path, rng: np.random.Generator) -> np.ndarray:
        image = Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
        if crop == "inception":
            top, left, height, width = images.inception_box(image.height, image.width, rng)
            image = image.crop((left, top, left + width, top + height)).resize((SIZE, SIZE), filter)
        else:
            shorter = min(image.size)
            image = image.resize((image.width * RESIZE // shorter, image.height * RESIZE // shorter), filter)
            left, top = int(rng.integers(image.width - SIZE + 1)), int(rng.integers(image.height - SIZE + 1))
            image = image.crop((left, top, left + SIZE, top + SIZE))
        picture = np.asarray(image)
        return picture[:, ::-1] if rng.random() < 0.5 else picture

    dataset = grain.MapDataset.source(files.paths).seed(0).shuffle().random_map(view).batch(BATCH)
    return lambda: (dataset[i] for i in range(len(dataset)))  # indexed, it starts no threads


def tljax(files: Files, crop: str, decode: str) -> Epoch:
    """From encoded files."""
    preprocessing = Preprocessing(size=SIZE, interpolation=files.interpolation)
    view = partial(images.training_view_of, decode=decode, resize=CROPS[crop], crop=crop, augment=("flip",))
    return _batches(files.paths, lambda path, rng: view(path.read_bytes(), path.name, preprocessing, rng=rng))


def tljax_cached(files: Files, crop: str, decode: str) -> Epoch:
    """From what was decoded once."""
    preprocessing = Preprocessing(size=SIZE, interpolation=files.interpolation)
    view = partial(images.training_view, preprocessing=preprocessing, crop=crop, augment=("flip",), decode=decode)
    return _batches(cache(files, crop, preprocessing), lambda source, rng: view(source, rng=rng))


def cache(files: Files, crop: str, preprocessing: Preprocessing) -> array_cache.ArrayCache:
    """`source_view` of each file, as a run keeps it."""
    sources = (
        images.source_view(path.read_bytes(), path.name, preprocessing, decode="exact", resize=CROPS[crop], crop=crop)
        for path in files.paths
    )
    return array_cache.get_or_create(files.root.parent / f"{files.root.name}-{crop}", sources, {})


def _batches(sources: list, view: Callable[[object, np.random.Generator], np.ndarray]) -> Epoch:
    order = np.random.default_rng(0).permutation(len(sources)).reshape(-1, BATCH)

    def epoch() -> Iterator[np.ndarray]:
        for rows in order:
            yield np.stack([view(sources[i], np.random.Generator(np.random.Philox(key=int(i)))) for i in rows])

    return epoch


def pipelines(files: Files, crop: str) -> dict[str, Epoch]:
    return {
        "torch DataLoader, uint8": torch_loader(files, crop, normalized=False),
        "torch DataLoader, normalized": torch_loader(files, crop, normalized=True),
        "Grain and PIL": grain_pil(files, crop),
        "tljax, exact": tljax(files, crop, "exact"),
        "tljax, fast": tljax(files, crop, "fast"),
        "tljax, cache, exact": tljax_cached(files, crop, "exact"),
        "tljax, cache, fast": tljax_cached(files, crop, "fast"),
    }


def rates(epochs: dict[str, Epoch], count: int, rounds: int) -> dict[str, float]:
    """Images per second of each, the median of `rounds` after a first."""
    seconds: dict[str, list[float]] = {name: [] for name in epochs}
    for _ in range(rounds + 1):
        for name, epoch in epochs.items():
            start = time.perf_counter()
            examples = sum(len(batch[0]) if isinstance(batch, list) else len(batch) for batch in epoch())
            seconds[name].append(time.perf_counter() - start)
            assert examples == count, (name, examples)
    return {name: count / statistics.median(times[1:]) for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=192, help=f"of each size, a multiple of {BATCH}")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--interpolation", default="bilinear", choices=images._FILTERS)
    parser.add_argument("--json", type=Path, help="also writes the rows there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for width, height in SIZES:
            root = Path(folder) / f"{width}x{height}"
            make(root, width, height, options.files)
            for crop in CROPS:
                speeds = rates(pipelines(Files(root, options.interpolation), crop), options.files, options.rounds)
                base, normalized = list(speeds.values())[:2]
                cells = [
                    (name, f"{rate:.0f}", f"{rate / base:.2f}", f"{rate / normalized:.2f}")
                    for name, rate in speeds.items()
                ]
                title = f"{width} × {height}, {crop} crop, {options.interpolation}"
                console.table(title, ("", "images/s", "÷ uint8", "÷ normalized"), cells)
                rows += [{"width": width, "height": height, "crop": crop, "interpolation": options.interpolation,
                          "pipeline": name, "images_per_second": rate} for name, rate in speeds.items()]  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
