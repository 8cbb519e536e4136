"""Random changes of a training picture at its final size; each is a function of the picture and its generator.

Colors change as in torchvision on PIL images, value by value. Of four channels the last is alpha: what only concerns
colors leaves it alone. What moves in from outside is 0 in every channel: black, and transparent.
"""

import functools
import math
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageEnhance, ImageOps

from tljax.config.references import resolve_reference, source_hash
from tljax.errors import InputError

Picture = UInt8[np.ndarray, "height width channels"]
Random = np.random.Generator


def to_image(picture: Picture) -> Image.Image:
    """Returns a picture as an image of mode L, RGB or RGBA."""
    return Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)


def to_array(image: Image.Image) -> Picture:
    """Returns an image of mode L, RGB or RGBA as a read-only picture."""
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def flip(picture: Picture, rng: Random) -> Picture:
    """Mirrors left and right, half of the time."""
    if rng.random() >= 0.5:
        return picture
    flipped = np.empty_like(picture)
    for channel in range(picture.shape[-1]):  # five times as fast as to copy the mirrored view, pixel by pixel
        flipped[..., channel] = picture[:, ::-1, channel]
    return flipped


def flip_vertical(picture: Picture, rng: Random) -> Picture:
    """Turns upside down, half of the time."""
    return picture[::-1] if rng.random() < 0.5 else picture


def shift(picture: Picture, rng: Random) -> Picture:
    """Moves by whole pixels, up to a tenth of each side."""
    height, width = picture.shape[:2]
    dx, dy = (int(rng.integers(-(side // 10), side // 10 + 1)) for side in (width, height))
    return to_array(_moved(to_image(picture), 1, 0, dx, 0, 1, dy))


def rand_augment(picture: Picture, rng: Random) -> Picture:
    """Applies RandAugment (1909.13719) with torchvision's defaults: two operations, magnitude 9 of 0 to 30."""
    image = to_image(picture)
    for _ in range(2):
        image = _drawn(image, _narrow(picture.shape[0], picture.shape[1]), 9, rng)
    return to_array(image)


def trivial_augment(picture: Picture, rng: Random) -> Picture:
    """Applies TrivialAugment (2103.10158) in its wide space, as torchvision has it: one operation of any magnitude."""
    return to_array(_drawn(to_image(picture), _WIDE, None, rng))


def color_jitter(picture: Picture, rng: Random) -> Picture:
    """Scales brightness, contrast and saturation by 0.6 to 1.4 each, in random order (timm's default; hue is kept)."""
    image = to_image(picture)
    factors = rng.uniform(-0.4, 0.4, 3)
    for i in rng.permutation(3):
        image = OPERATIONS[("brightness", "contrast", "saturation")[i]](image, factors[i])
    return to_array(image)


def random_erasing(picture: Picture, rng: Random) -> Picture:
    """Blackens a rectangle, half of the time (1708.04896): 2% to 33% of the area, 0.3 to 3.3 times as high as wide.

    Drawn as in torchvision. There it is set to 0 after normalization, which is the mean color; here it is black, as
    is what moves in with other augmentations.
    """
    height, width, channels = picture.shape
    if rng.random() >= 0.5:
        return picture
    for _ in range(10):
        area = height * width * rng.uniform(0.02, 0.33)
        ratio = math.exp(rng.uniform(math.log(0.3), math.log(3.3)))
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if h < height and w < width:
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            erased = picture.copy()
            erased[top : top + h, left : left + w, : min(channels, 3)] = 0
            return erased
    return picture


AUGMENTATIONS: dict[str, Callable[[Picture, Random], Picture]] = {
    "flip": flip,
    "flip_vertical": flip_vertical,
    "shift": shift,
    "rand_augment": rand_augment,
    "trivial_augment": trivial_augment,
    "color_jitter": color_jitter,
    "random_erasing": random_erasing,
}


@functools.cache
def augmentation(name: str) -> Callable[[Picture, Random], Picture]:
    """Returns an augmentation by its name, or by `package.module:name`.

    Raises:
        InputError: there is none.
    """
    if name in AUGMENTATIONS:
        return AUGMENTATIONS[name]
    function = resolve_reference(name, "task.augment")

    def checked(picture: Picture, rng: Random) -> Picture:
        changed = function(picture, rng)
        if not (isinstance(changed, np.ndarray) and changed.dtype == np.uint8 and changed.shape == picture.shape):
            kind = (
                f"{changed.dtype} {list(changed.shape)}" if isinstance(changed, np.ndarray) else type(changed).__name__
            )
            raise InputError(
                f"task.augment {name!r} returned {kind}: return uint8 {list(picture.shape)}, as it is given"
            )
        return changed

    return checked


def version_of(name: str) -> str:
    """Returns the name of an augmentation, with a hash of its source file where it is the user's own."""
    if name in AUGMENTATIONS:
        return name
    return f"{name} {source_hash(resolve_reference(name, 'task.augment'))}"


def _moved(image: Image.Image, *matrix: float) -> Image.Image:
    """Takes the pixel at (x, y) from (a x + b y + c, d x + e y + f) of the image, or the nearest to that."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


def _colors(change: Callable[[Image.Image, float], Image.Image]) -> Callable[[Image.Image, float], Image.Image]:
    def changed(image: Image.Image, magnitude: float) -> Image.Image:
        if image.mode != "RGBA":
            return change(image, magnitude)
        recolored = change(image.convert("RGB"), magnitude)
        recolored.putalpha(image.getchannel("A"))
        return recolored

    return changed


# Each of an image and a magnitude, as `torchvision.transforms.autoaugment` defines it. A shear keeps the upper left
# corner in its place, not the center: torchvision follows the code of AutoAugment's authors.
OPERATIONS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "identity": lambda image, m: image,
    "shear_x": lambda image, m: _moved(image, 1, m, 0, 0, 1, 0),
    "shear_y": lambda image, m: _moved(image, 1, 0, 0, m, 1, 0),
    "translate_x": lambda image, m: _moved(image, 1, 0, -int(m), 0, 1, 0),
    "translate_y": lambda image, m: _moved(image, 1, 0, 0, 0, 1, -int(m)),
    "rotate": lambda image, m: image.rotate(m),
    "brightness": _colors(lambda image, m: ImageEnhance.Brightness(image).enhance(1 + m)),
    "saturation": _colors(lambda image, m: ImageEnhance.Color(image).enhance(1 + m)),
    "contrast": _colors(lambda image, m: ImageEnhance.Contrast(image).enhance(1 + m)),
    "sharpness": _colors(lambda image, m: ImageEnhance.Sharpness(image).enhance(1 + m)),
    "posterize": _colors(lambda image, m: ImageOps.posterize(image, int(m))),
    "solarize": _colors(ImageOps.solarize),
    "autocontrast": _colors(lambda image, m: ImageOps.autocontrast(image)),
    "equalize": _colors(lambda image, m: ImageOps.equalize(image)),
}

# Operation -> its 31 magnitudes, and whether half of the draws take the negative one.
Space = dict[str, tuple[np.ndarray, bool]]


def _space(shear: float, translate_x: float, translate_y: float, rotate: float, enhance: float, bits: int) -> Space:
    none, steps = np.zeros(31), np.arange(31)
    return {
        "identity": (none, False),
        "shear_x": (np.linspace(0, shear, 31), True),
        "shear_y": (np.linspace(0, shear, 31), True),
        "translate_x": (np.linspace(0, translate_x, 31), True),
        "translate_y": (np.linspace(0, translate_y, 31), True),
        "rotate": (np.linspace(0, rotate, 31), True),
        **{name: (np.linspace(0, enhance, 31), True) for name in ("brightness", "saturation", "contrast", "sharpness")},
        "posterize": (8 - np.round(steps / (30 / bits)), False),
        "solarize": (np.linspace(255, 0, 31), False),
        "autocontrast": (none, False),
        "equalize": (none, False),
    }


def _narrow(height: int, width: int) -> Space:
    return _space(0.3, 150 / 331 * width, 150 / 331 * height, 30, 0.9, 4)


_WIDE = _space(0.99, 32, 32, 135, 0.99, 6)


def _drawn(image: Image.Image, space: Space, bin: int | None, rng: Random) -> Image.Image:
    """Applies one operation of a space, each as likely; `bin` is its magnitude's place, None for any."""
    name = list(space)[rng.integers(len(space))]
    magnitudes, signed = space[name]
    magnitude = float(magnitudes[rng.integers(len(magnitudes)) if bin is None else bin])
    return OPERATIONS[name](image, -magnitude if signed and rng.integers(2) else magnitude)
