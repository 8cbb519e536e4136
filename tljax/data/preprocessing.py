"""The preprocessing of images, a part of the pretrained weights that want it."""

from dataclasses import dataclass

IMAGENET_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
IMAGENET_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)

INTERPOLATIONS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # in the order of PIL's numbers


@dataclass(frozen=True)
class Preprocessing:
    """What pretrained weights expect of an image; it travels with them.

    Attributes:
        size: pixels along each side.
        crop_fraction: the center crop's share of the resized (shorter) side, in evaluation.
        mean, std: per channel, in grey levels 0 to 255, in the order that `channels` gives.
        channels: `rgb` or `bgr`; `grey`; `rgba` or `bgra`.
        interpolation: one of `INTERPOLATIONS`, as PIL computes it: all but `nearest` are antialiased.
        resize: `crop` keeps the aspect ratio, and the longer side is cut to the shorter; `squash` does not keep it;
            `none` takes pictures of that size alone.
        rescale: what the weights' own library multiplies grey levels by before it takes off the mean: mean and std
            are shown and exported times this.
    """

    size: int = 224
    crop_fraction: float = 1.0
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    channels: str = "rgb"
    interpolation: str = "bicubic"
    resize: str = "crop"
    rescale: float = 1 / 255

    @property
    def inputs(self) -> int:
        """The count of an image's channels."""
        return len(self.mean)

    @property
    def edge(self) -> int:
        """Returns the pixels of the (shorter) side before the center is cut out of it, in evaluation."""
        return int(self.size / self.crop_fraction + 1e-6)  # a crop fraction of 224 / 256 means 256

    def rescaled(self, values: tuple[float, ...]) -> list[float]:
        """Returns mean or std in the range that the weights' own library gives it in."""
        if self.rescale == 1 / 255:
            return [value / 255 for value in values]
        return [value * self.rescale for value in values]
