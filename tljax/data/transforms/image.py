"""From an encoded image to a square uint8 picture on the host, and to normalized float32 on the device."""

import importlib.util
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num, UInt8
from PIL import Image

from tljax.config.ranges import INT32
from tljax.config.schema import TaskConfig
from tljax.data.preprocessing import INTERPOLATIONS, Preprocessing
from tljax.data.transforms.augment import augmentation, to_array, to_image
from tljax.data.transforms.decode import Encoded, naming_faults, pixels_of
from tljax.errors import InputError

DECODERS = ("exact", "fast")
CROPS = ("center", "random", "inception")

_MODES = {"rgb": "RGB", "bgr": "RGB", "grey": "L", "rgba": "RGBA", "bgra": "RGBA"}  # PIL's
_FILTERS = {name: Image.Resampling[name.upper()] for name in INTERPOLATIONS}
# fast_image_resize's names; it is not used for others, which are rare (its lanczos is up to 7 grey levels off PIL's).
_FAST_FILTERS = {"bilinear": "bilinear", "bicubic": "catmull_rom"}
_FAST_PIXELS = {1: "U8", 3: "U8x3"}
_MOST_PIXELS = 2**27  # of a picture made larger: a strip of 1 × 60,000 would fill the memory


def check(task: TaskConfig) -> None:
    """Checks that decoder, crop and resizing go together, and that augmentations are there.

    Raises:
        InputError: an augmentation of the user's own cannot be imported; or a crop is without the resizing that it
            needs, or with one that it does not heed.
    """
    if task.crop == "random" and not task.resize:
        raise InputError("task.crop=random needs task.resize: the shorter side that the square is cut from, as 256")
    if task.crop == "center" and task.resize:
        raise InputError("task.crop=center does not heed task.resize, but resizes as in evaluation; set it to 0")
    if task.decode == "fast" and importlib.util.find_spec("cykooz_resizer") is None:
        raise InputError("task.decode=fast needs cykooz-resizer, which is not installed here; use decode=exact")
    for name in task.augment:
        augmentation(name)


def check_size(preprocessing: Preprocessing) -> None:
    """Raises InputError where one image would have more values than are counted in 32 bits."""
    size, channels = preprocessing.size, preprocessing.inputs
    values = size * size * channels
    if values > INT32:
        raise InputError(
            f"task.image_size={size}: an image of {size} × {size} × {channels} values takes {4 * values / 1e9:.1f} GB"
            f" as float32: give at most {math.isqrt(INT32 // channels)}"
        )


def decode(data: bytes, name: str, channels: str = "rgb") -> Image.Image:
    """Returns an upright picture with the channels that a `Preprocessing` names; their order is left to `normalize`.

    The content decides what format it is, whatever the file is called. As in PIL, and so in timm and torchvision,
    alpha that is not wanted is dropped and not blended, grey is ITU-R 601-2 luma, and of an animation the first frame
    is taken. Grey of 16 bits is scaled (65535 becomes 255), where PIL would cut off what is above 255.

    Args:
        data: an encoded image.
        name: what errors call it.
        channels: as in `Preprocessing`.

    Raises:
        InputError: the bytes are not a whole image of 8 or 16 bits, or one of too many pixels, or a JPEG's scan is
            broken; `name` says which.
    """
    with naming_faults(name):
        return to_image(Encoded(data, strict=True).pixels(_MODES[channels]))


def cacheable(*, decode: str, resize: int, crop: str) -> bool:
    """Tells whether `source_view` does not depend on the random crop, so that it can be kept.

    Args:
        decode, resize, crop: as in `TaskConfig`.
    """
    return not (decode == "fast" and crop == "inception" and not resize)


def source_size(height: int, width: int, preprocessing: Preprocessing, *, resize: int, crop: str) -> tuple[int, int]:
    """Returns the height and width that `source_view` gives an upright picture of this height and width.

    Args:
        height, width: in pixels.
        preprocessing: what the weights expect.
        resize, crop: as in `TaskConfig`.
    """
    if crop == "center":
        return preprocessing.size, preprocessing.size
    width, height = _resized((width, height), resize, squash=False) if resize else (width, height)
    return height, width


def source_view(
    data: bytes, name: str, preprocessing: Preprocessing, *, decode: str, resize: int, crop: str
) -> UInt8[np.ndarray, "height width channels"]:
    """Returns what is the same in every epoch of a training picture: decoded, and resized where the config says so.

    With `crop` center it is `evaluation_view`. With `decode` fast, a JPEG that is resized is decoded at 1/2, 1/4 or 1/8
    of its size where that is no smaller than what is wanted of it, and resized from there: it is blurred twice, and a
    photograph is up to 4 grey levels from the exact one on average. Resizing itself then has PIL's filters with
    coarser weights: 0.2 grey levels.

    Args:
        data: an encoded image.
        name: what errors call it.
        preprocessing: what the weights expect.
        decode, resize, crop: as in `TaskConfig`.

    Raises:
        InputError: as in `decode`.
    """
    with naming_faults(name):
        encoded, mode = Encoded(data), _MODES[preprocessing.channels]
        center, fast = crop == "center", decode == "fast"
        if not center and not resize:
            return encoded.pixels(mode)
        target = _evaluated(encoded.size, preprocessing) if center else _resized(encoded.size, resize, squash=False)
        scale = max(length / side for length, side in zip(target, encoded.size, strict=True))
        factor = encoded.factor(scale) if fast else 1
        box = (0, 0, *(side / factor for side in encoded.size))
        pixels = encoded.pixels(mode, factor)
    picture = _resize(pixels, target, preprocessing, fast, box)
    if center:
        left, top, right, bottom = _window(target, preprocessing.size)
        picture = picture[top:bottom, left:right]
    return picture


def training_view(
    source: UInt8[np.ndarray, "height width channels"],
    preprocessing: Preprocessing,
    *,
    crop: str,
    augment: Sequence[str],
    rng: np.random.Generator,
    decode: str = "exact",
) -> UInt8[np.ndarray, "size size channels"]:
    """Cuts a training picture out of what `source_view` gave, as `crop` says, then augments it in order.

    `random` is any square of the wanted size; a picture too small for one is enlarged first. `inception` is
    torchvision's RandomResizedCrop (`inception_box`).

    Args:
        source: what `source_view` gave.
        preprocessing: what the weights expect.
        crop, augment, decode: as in `TaskConfig`.
        rng: of this view.
    """
    size, fast = preprocessing.size, decode == "fast"
    if crop == "random":
        if min(source.shape[:2]) < size:
            target = _resized((source.shape[1], source.shape[0]), size, squash=False)
            source = _resize(source, target, preprocessing, fast)
        top, left = (int(rng.integers(side - size + 1)) for side in source.shape[:2])
        source = source[top : top + size, left : left + size]
    elif crop == "inception":
        top, left, height, width = inception_box(source.shape[0], source.shape[1], rng)
        # Cut first, as torchvision: what is resized does not see beyond its box.
        source = _resize(source[top : top + height, left : left + width], (size, size), preprocessing, fast)
    return _augmented(source, augment, rng)


def training_view_of(
    data: bytes,
    name: str,
    preprocessing: Preprocessing,
    *,
    decode: str,
    resize: int,
    crop: str,
    augment: Sequence[str],
    rng: np.random.Generator,
) -> UInt8[np.ndarray, "size size channels"]:
    """Returns `training_view` of `source_view`, but decodes no more than the crop needs (where not `cacheable`).

    There the crop is drawn first, and a JPEG decoded at the lowest of 1/8, 1/4, 1/2 and 1 that gives it enough pixels.

    Args:
        data: an encoded image.
        name: what errors call it.
        preprocessing: what the weights expect.
        decode, resize, crop, augment: as in `TaskConfig`.
        rng: of this view.

    Raises:
        InputError: as in `decode`.
    """
    if cacheable(decode=decode, resize=resize, crop=crop):
        source = source_view(data, name, preprocessing, decode=decode, resize=resize, crop=crop)
        return training_view(source, preprocessing, crop=crop, augment=augment, rng=rng, decode=decode)
    size = preprocessing.size
    with naming_faults(name):
        encoded = Encoded(data)
        top, left, height, width = inception_box(encoded.size[1], encoded.size[0], rng)
        factor = encoded.factor(size / min(height, width))
        pixels = encoded.pixels(_MODES[preprocessing.channels], factor)
    # To whole pixels of the smaller picture: a random crop may as well be there.
    left, top, right, bottom = (round(x / factor) for x in (left, top, left + width, top + height))
    source = _resize(pixels[top:bottom, left:right], (size, size), preprocessing, fast=True)
    return _augmented(source, augment, rng)


def view_of(picture: Any, name: str, preprocessing: Preprocessing) -> UInt8[np.ndarray, "size size channels"]:
    """Returns a picture as evaluation sees it.

    Args:
        picture: a path, the content of a file, a picture of PIL, or uint8 [height, width, channels].
        name: what errors call it.
        preprocessing: what the weights expect.

    Raises:
        InputError: it is none of these, or cannot be read; `name` says which.
    """
    if isinstance(picture, str | os.PathLike):
        try:
            picture = Path(picture).read_bytes()
        except OSError as error:
            raise InputError(f"{name}: cannot be read ({error.strerror or error})") from error
    if isinstance(picture, bytes):
        return source_view(picture, name, preprocessing, decode="exact", resize=0, crop="center")
    with naming_faults(name):
        pixels = pixels_of(picture, _MODES[preprocessing.channels])
        return evaluation_view(to_image(pixels), preprocessing)


def evaluation_view(image: Image.Image, preprocessing: Preprocessing) -> UInt8[np.ndarray, "size size channels"]:
    """Resizes the shorter side, or both to `squash`, to `preprocessing.edge`; takes the center size × size pixels.

    Fractions of a pixel are dropped or rounded as in torchvision, which timm uses. (Where half a pixel is left on
    either side of the center, transformers drops it, and so may see the picture from one pixel beside.)
    """
    target = _evaluated(image.size, preprocessing)
    image = image.resize(target, _FILTERS[preprocessing.interpolation])
    return to_array(image.crop(_window(target, preprocessing.size)))


def inception_box(height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draws top, left, height and width of a random part of a picture (1409.4842), as torchvision does.

    It has 8% to 100% of the area and is 3/4 to 4/3 times as wide as high; after 10 draws that do not fit, the largest
    part in the center that is.

    Args:
        height, width: of the picture.
        rng: of this view.
    """
    for _ in range(10):
        area = width * height * rng.uniform(0.08, 1.0)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    return (height - h) // 2, (width - w) // 2, h, w


def normalize(
    image: Num[Array, "batch height width channels"], preprocessing: Preprocessing
) -> Float[Array, "batch height width channels"]:
    """Returns what the network takes, computed on the device: a quarter of the bytes travel."""
    x = image
    if preprocessing.channels in ("bgr", "bgra"):
        x = jnp.concatenate([image[..., 2::-1], image[..., 3:]], axis=-1)
    return (x.astype(jnp.float32) - jnp.array(preprocessing.mean)) / jnp.array(preprocessing.std)


def _evaluated(size: tuple[int, int], preprocessing: Preprocessing) -> tuple[int, int]:
    """Returns width and height to which evaluation resizes, before it cuts out the center."""
    if preprocessing.resize != "none":
        return _resized(size, preprocessing.edge, preprocessing.resize == "squash")
    if size != (preprocessing.size,) * 2:
        side = preprocessing.size
        raise InputError(f"it has {size[0]} × {size[1]} pixels, and the weights take {side} × {side} and resize none")
    return size


def _resized(size: tuple[int, int], edge: int, squash: bool) -> tuple[int, int]:
    """Returns width and height after the shorter side, or both to `squash`, is brought to `edge`."""
    shorter = min(size)
    width, height = (edge if squash else edge * side // shorter for side in size)
    if width * height > _MOST_PIXELS:
        raise InputError(f"{size[0]} × {size[1]} pixels would become {width} × {height}; cut it, or squash to resize")
    return width, height


def _window(size: tuple[int, int], side: int) -> tuple[int, int, int, int]:
    """Returns left, top, right and bottom of the square in the center."""
    left, top = (round((whole - side) / 2) for whole in size)
    return left, top, left + side, top + side


def _resize(
    pixels: np.ndarray,
    size: tuple[int, int],
    preprocessing: Preprocessing,
    fast: bool,
    box: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
    """Resizes to a width and height, antialiased; of `box` (left, top, right, bottom), which may end within a pixel.

    The fast way is fast_image_resize: PIL's algorithm with 16-bit weights and SIMD. It gives the same bits with any
    instruction set. Alpha, which weighs the colors, is left to PIL, and so are boxes: with some, 6.1.0 reads outside
    of its memory.
    """
    height, width, channels = pixels.shape
    kernel = _FAST_FILTERS.get(preprocessing.interpolation)
    if not fast or kernel is None or channels not in _FAST_PIXELS or box not in (None, (0, 0, width, height)):
        return to_array(to_image(pixels).resize(size, _FILTERS[preprocessing.interpolation], box))
    import cykooz_resizer  # which not every machine can have

    kind = getattr(cykooz_resizer.PixelType, _FAST_PIXELS[channels])
    picture = cykooz_resizer.ImageData(width, height, kind, pixels.tobytes())
    resized = cykooz_resizer.ImageData(*size, kind)
    algorithm = cykooz_resizer.ResizeAlg.convolution(getattr(cykooz_resizer.FilterType, kernel))
    cykooz_resizer.Resizer().resize(picture, resized, cykooz_resizer.ResizeOptions(algorithm))
    return np.frombuffer(resized.get_buffer(), np.uint8).reshape(size[1], size[0], channels)


def _augmented(picture: np.ndarray, augment: Sequence[str], rng: np.random.Generator) -> np.ndarray:
    for name in augment:
        picture = augmentation(name)(picture, rng)
    return picture
