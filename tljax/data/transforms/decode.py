"""Encoded images, opened by their content and decoded upright, to the values that PIL gives."""

import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from tljax.data.transforms.augment import to_array, to_image
from tljax.errors import InputError, message_of

# Those that hold pictures. Of others that PIL knows, some start programs (EPS) and some only link to a picture.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
_ORIENTATION = 0x0112
# How to turn a picture upright, by its EXIF orientation (1 is upright), as `ImageOps.exif_transpose` does.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_QUARTER_TURNS = [_TURNS[orientation] for orientation in (5, 6, 7, 8)]


# What libjpeg-turbo says of pixels that it cannot read. (That there are bytes too many, which many cameras write, is no
# such fault.)
_BROKEN_SCANS = ("premature end of data segment", "bad Huffman code", "bad arithmetic code", "found marker")


@contextmanager
def naming_faults(name: str) -> Iterator[None]:
    """Turns whatever fails inside into an InputError that names the image."""
    try:
        yield
    except Exception as error:  # PIL's plugins raise what they come across: OSError, SyntaxError, struct.error, …
        reason = message_of(error)
        if isinstance(error, UnidentifiedImageError):  # whose message is the address of a buffer
            reason = f"its content is none of {', '.join(_FORMATS)}"
        raise InputError(f"{name}: not a readable image ({reason}); mend or remove it") from error


def size_of(data: bytes) -> tuple[int, int]:
    """Returns the width and height of an image when it is upright, from its header alone."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            sideways = _TURNS.get(image.getexif().get(_ORIENTATION)) in _QUARTER_TURNS
    except (OSError, SyntaxError, ValueError, OverflowError, Image.DecompressionBombError) as error:
        raise InputError(f"not a readable image ({error})") from error
    return (height, width) if sideways else (width, height)


def frames_of(data: bytes) -> int:
    """Returns how many pictures an image has, of which the first is read: frames of an animation, or pages."""
    with Image.open(io.BytesIO(data)) as image:
        # A JPEG of several (MPO) has one picture for each eye, or a smaller one, as cameras write them.
        return getattr(image, "n_frames", 1) if image.format not in ("JPEG", "MPO") else 1


class Encoded:
    """An encoded image of which the header is read: `size` is its width and height when upright.

    JPEGs are decoded by simplejpeg: with the same library as in PIL (libjpeg-turbo) and to the same values, without
    PIL's copies. Whatever it has a doubt about is left to PIL, and so is JPEG of four colors.

    Args:
        data: the file's content.
        strict: whether a JPEG with a broken scan is refused, of which PIL fills what it cannot read with grey.
    """

    def __init__(self, data: bytes, strict: bool = False):
        self._data, self._strict = data, strict
        self._image = Image.open(io.BytesIO(data), formats=_FORMATS)  # refuses decompression bombs
        self._jpeg = self._image.format in ("JPEG", "MPO") and self._image.mode in ("L", "RGB")
        if not self._jpeg:
            self._image.load()  # before the orientation is asked for: PIL turns a TIFF by itself
        try:
            orientation = self._image.getexif().get(_ORIENTATION, 1)
        except Exception:  # damaged metadata beside a whole picture, which viewers pass over too
            orientation = 1
        self._turn = _TURNS.get(orientation)
        width, height = self._image.size
        self.size = (height, width) if self._turn in _QUARTER_TURNS else (width, height)

    def factor(self, scale: float) -> int:
        """Returns the largest of 1, 2, 4, 8 that divides a JPEG's sides and leaves `scale` times themselves.

        libjpeg-turbo has the other eighths too, but no SIMD code for them: they take longer than full size. A picture
        to be turned is only divided without remainder: what pads its last pixels would come first.
        """
        fits = [f for f in (8, 4, 2) if f * scale <= 1 and not (self._turn and any(side % f for side in self.size))]
        return fits[0] if self._jpeg and fits else 1

    def pixels(self, mode: str, factor: int = 1) -> np.ndarray:
        """Returns the upright picture with the channels of a mode of PIL's, uint8 [height, width, channels].

        Its sides are divided by what `factor` gave, and rounded up; the last pixel may be filled in part.
        """
        if self._jpeg:
            pixels = self._jpeg_pixels(mode, factor)
            if self._turn is None and pixels.shape[-1] == len(mode):
                return pixels
            image = to_image(pixels)
        else:
            image = self._image
        return to_array(_converted(image if self._turn is None else image.transpose(self._turn), mode))

    def _jpeg_pixels(self, mode: str, factor: int) -> np.ndarray:
        colors = "GRAY" if mode == self._image.mode == "L" else "RGB"  # PIL makes grey from RGB, not from YCbCr
        width, height = (-(-side // factor) for side in self._image.size)
        try:
            return simplejpeg.decode_jpeg(self._data, colors, min_height=height, min_width=width)
        except ValueError as error:  # damaged, or of a kind that it cannot read: PIL raises, or knows better
            if self._strict and any(fault in str(error) for fault in _BROKEN_SCANS):
                raise
            return to_array(self._image.convert("L" if colors == "GRAY" else "RGB").reduce(factor))


def pixels_of(picture: Image.Image | np.ndarray, mode: str) -> np.ndarray:
    """Returns a picture that is in memory as `Encoded.pixels` returns one from a file: upright, uint8, of one mode.

    Args:
        picture: of PIL; or uint8 [height, width] or [height, width, channels] of grey, RGB or RGBA.
        mode: PIL's.

    Raises:
        ValueError: an array of another type or shape; or levels of which nothing says which is white.
    """
    if isinstance(picture, Image.Image):
        return to_array(_converted(ImageOps.exif_transpose(picture), mode))
    array = np.asarray(picture)
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (1, 3, 4))):
        raise ValueError(f"an array of {array.dtype} {list(array.shape)}: give uint8 [height, width, channels]")
    if array.ndim == 3 and array.shape[-1] == len(mode):
        return array
    return to_array(to_image(array[..., None] if array.ndim == 2 else array).convert(mode))


def _converted(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits, as they are or as integers of 32
        levels = np.asarray(image).astype(np.int64)
        if levels.min() < 0 or levels.max() > 65535:
            raise ValueError(f"grey levels from {levels.min()} to {levels.max()}, beyond 16 bits")
        if image.mode == "I" and 0 < levels.max() < 256:
            raise ValueError(
                f"grey levels up to {levels.max()} of 32 bits, and nothing says which is white; save 8 bits"
            )
        image = Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("grey levels as fractions, and nothing says which is white; save them with 8 or 16 bits")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the same colors, without PIL's warning
    return image.convert(mode)
