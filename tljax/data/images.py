"""From encoded bytes to a square uint8 picture on the host, and to normalised float32 on the device."""

import io
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image, ImageOps

from tljax.config import Preprocessing
from tljax.errors import InputError

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def decode(data: bytes, name: str) -> Image.Image:
    """An upright RGB picture.

    Raises:
        InputError: the bytes are not a whole image; `name` says which.
    """
    try:
        return ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{name}: not a readable image ({error}); mend or remove it") from error


def evaluation_view(image: Image.Image, preprocessing: Preprocessing) -> UInt8[np.ndarray, "size size 3"]:
    """The shorter side resized to size / crop_fraction, then the centre size × size pixels."""
    size = preprocessing.size
    scale = round(size / preprocessing.crop_fraction) / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    image = image.resize((width, height), _FILTERS[preprocessing.interpolation])
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))


def training_view(
    image: Image.Image, preprocessing: Preprocessing, augment: Sequence[str], rng: np.random.Generator
) -> UInt8[np.ndarray, "size size 3"]:
    """The evaluation view, after the named augmentations in order."""
    for name in augment:
        image = AUGMENTATIONS[name](image, rng)
    return evaluation_view(image, preprocessing)


def _flip(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Left-right, half of the time."""
    return ImageOps.mirror(image) if rng.random() < 0.5 else image


def _flip_vertical(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Upside down, half of the time."""
    return ImageOps.flip(image) if rng.random() < 0.5 else image


def _inception_crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A crop of 8% to 100% of the area with aspect ratio 3/4 to 4/3 (1409.4842), as torchvision draws it."""
    width, height = image.size
    for _ in range(10):
        area = width * height * rng.uniform(0.08, 1.0)
        ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.integers(0, width - w + 1), rng.integers(0, height - h + 1)
            return image.crop((left, top, left + w, top + h))
    return image


def _shift(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Moved by up to a tenth of each side, black moving in."""
    dx, dy = (int(rng.integers(-side // 10, side // 10 + 1)) for side in image.size)
    return image.transform(image.size, Image.Transform.AFFINE, (1, 0, dx, 0, 1, dy))


AUGMENTATIONS: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "flip": _flip,
    "flip_vertical": _flip_vertical,
    "inception_crop": _inception_crop,
    "shift": _shift,
}


def normalise(
    image: UInt8[Array, "batch height width 3"], preprocessing: Preprocessing
) -> Float[Array, "batch height width 3"]:
    """What the network takes, computed on the device: a quarter of the bytes travel."""
    x = image[..., ::-1] if preprocessing.channels == "bgr" else image
    return (x.astype(jnp.float32) - jnp.array(preprocessing.mean)) / jnp.array(preprocessing.std)
