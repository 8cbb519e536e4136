"""Pretrained weights: where they are, what they expect, and how their names map to ours."""

import csv
from dataclasses import dataclass, field
from pathlib import Path

from tljax.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing


@dataclass(frozen=True)
class Pretrained:
    """One published checkpoint.

    Attributes:
        uri, sha256: the file.
        backbone: the row of `models.registry.BACKBONES` that it fills.
        source: whose names the file uses, a library in the tables of `weights.mappings`.
        preprocessing: what it was trained on.
        licence: SPDX identifier of the weights.
        pos_embed: the rule of `adapt.RESAMPLINGS` that its own code resamples position embeddings by.
        architecture: attributes in which the network differs from that row.
        classes: names of what its own head tells apart, in order; empty where the checkpoint does not say.
        problem: what kind of labels its own head is for; empty where the checkpoint does not say.
        pool: how its features are pooled instead of as its own head wants them; empty for that.
        origins: what is expected of an input, or how it is pooled -> where that comes from.
    """

    uri: str
    sha256: str
    backbone: str
    source: str
    preprocessing: Preprocessing
    licence: str
    pos_embed: str = "bicubic_antialias"
    architecture: dict = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    problem: str = ""
    pool: str = ""
    origins: dict = field(default_factory=dict)


PICTURE = ("size", "resize", "crop", "interpolation", "rescaling", "mean", "std")  # what `origins` tells of a picture

_MEAN_AND_STD = {
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "half": ((127.5,) * 3, (127.5,) * 3),
    "none": ((0.0,) * 3, (255.0,) * 3),
    "lite": ((127.0,) * 3, (128.0,) * 3),
    "satellite": ((109.65, 104.805, 75.48), (54.315, 39.78, 36.465)),
    "unit": ((0.0,) * 3, (255.0,) * 3),
    "clip": ((122.7709383, 116.7460125, 104.09373615), (68.5005327, 66.6321579, 70.32316305)),
    "caffe": ((104.0, 117.0, 123.0), (1.0, 1.0, 1.0)),
}


def _row(cells: dict[str, str]) -> Pretrained:
    preprocessing = Preprocessing()
    if cells["size"]:  # a text encoder has none
        mean, std = _MEAN_AND_STD[cells["normalize"]]
        images = mean, std, cells["channels"], cells["interpolation"], cells["resize"] or "crop"
        preprocessing = Preprocessing(int(cells["size"]), float(cells["crop"]), *images)
    places = cells["uri"], cells["sha256"], cells["backbone"], cells["names"]
    origins = dict.fromkeys((*PICTURE, "pool"), "tljax/weights/catalog.csv")
    return Pretrained(*places, preprocessing, cells["licence"], cells["pos_embed"], origins=origins)


with (Path(__file__).parent / "catalog.csv").open() as _file:
    CATALOG = {cells["name"]: _row(cells) for cells in csv.DictReader(_file)}
