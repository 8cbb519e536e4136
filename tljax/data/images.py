"""From encoded bytes to a square uint8 picture on the host, and to normalised float32 on the device."""

import io
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num, UInt8
from PIL import Image, ImageOps

from tljax.config import Preprocessing
from tljax.errors import InputError

_MODES = {"rgb": "RGB", "bgr": "RGB", "grey": "L", "rgba": "RGBA", "bgra": "RGBA"}  # PIL's
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def decode(data: bytes, name: str, channels: str = "rgb") -> Image.Image:
    """An upright picture with the channels that a `Preprocessing` names; their order is left to `normalise`.

    Raises:
        InputError: the bytes are not a whole image; `name` says which.
    """
    try:
        return ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert(_MODES[channels])
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{name}: not a readable image ({error}); mend or remove it") from error


def evaluation_view(image: Image.Image, preprocessing: Preprocessing) -> UInt8[np.ndarray, "size size channels"]:
    """The shorter side, or both to `squash`, resized to size / crop_fraction, then the centre size × size pixels.

    Fractions of a pixel are dropped or rounded as in torchvision, which timm uses. (Where half a pixel is left on
    either side of the centre, transformers drops it, and so may see the picture from one pixel beside.)
    """
    size, shorter = preprocessing.size, min(image.size)
    edge = int(size / preprocessing.crop_fraction + 1e-6)  # a crop fraction of 224 / 256 means 256
    squash = preprocessing.resize == "squash"
    width, height = (edge if squash else edge * side // shorter for side in image.size)
    image = image.resize((width, height), _FILTERS[preprocessing.interpolation])
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size))).reshape(size, size, -1)


def training_view(
    image: Image.Image, preprocessing: Preprocessing, augment: Sequence[str], rng: np.random.Generator
) -> UInt8[np.ndarray, "size size channels"]:
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
    image: Num[Array, "batch height width channels"], preprocessing: Preprocessing
) -> Float[Array, "batch height width channels"]:
    """What the network takes, computed on the device: a quarter of the bytes travel."""
    x = image
    if preprocessing.channels in ("bgr", "bgra"):
        x = jnp.concatenate([image[..., 2::-1], image[..., 3:]], axis=-1)
    return (x.astype(jnp.float32) - jnp.array(preprocessing.mean)) / jnp.array(preprocessing.std)
