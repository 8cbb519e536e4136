"""The preprocessing of images, a part of the pretrained weights that want it."""

from dataclasses import dataclass

IMAGENET_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
IMAGENET_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)


@dataclass(frozen=True)
class Preprocessing:
    """What pretrained weights expect of an image; it travels with them.

    Attributes:
        size: pixels along each side.
        crop_fraction: the centre crop's share of the resized (shorter) side, in evaluation.
        mean, std: per channel, in grey levels 0 to 255, in the order that `channels` gives.
        channels: `rgb` or `bgr`; `grey`; `rgba` or `bgra`.
        interpolation: `bilinear` or `bicubic`, both antialiased.
        resize: `crop` keeps the aspect ratio, and the longer side is cut to the shorter; `squash` does not keep it.
    """

    size: int = 224
    crop_fraction: float = 1.0
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    channels: str = "rgb"
    interpolation: str = "bicubic"
    resize: str = "crop"

    @property
    def inputs(self) -> int:
        """How many channels an image has."""
        return len(self.mean)
