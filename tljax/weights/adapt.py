"""Changes to pretrained arrays, and to what they expect of an image, that let them fit another task."""

import dataclasses
import difflib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from tljax.data.preprocessing import Preprocessing
from tljax.errors import InputError

_EXTRA = {1: "grey", 3: "", 4: "a"}  # what an image file has beside the order of its colors


class _Resampling(NamedTuple):
    cubic: float | None  # Keys' a, or None for a linear kernel
    antialias: bool = False
    offset: float = 0.0  # added to the new size in the sampling step only
    align_corners: bool = False


RESAMPLINGS = {
    "bicubic_antialias": _Resampling(cubic=-0.5, antialias=True),  # timm
    "bicubic": _Resampling(cubic=-0.75),  # transformers' ViT and DINOv2
    "bicubic_offset": _Resampling(cubic=-0.75, offset=0.1),  # DINOv2's own code, without registers
    "bilinear": _Resampling(cubic=None),  # timm's npz loader
    "bilinear_corners": _Resampling(cubic=None, align_corners=True),  # google-research/vision_transformer
}


def class_subset(
    kernel: Float[np.ndarray, "width known"],
    bias: Float[np.ndarray, " known"] | None,
    known: Sequence[str],
    classes: Sequence[str],
) -> dict[str, np.ndarray]:
    """Returns the part of a head that tells `classes` apart: {kernel [width, classes], bias [classes]}.

    Args:
        kernel, bias: the whole head.
        known: its classes' names, in order.
        classes: names, in the order that the new head has them.

    Raises:
        InputError: a class is not known (the nearest is named) or there twice, or the names are not those of
            this head.
    """
    if len(known) != kernel.shape[1]:
        raise InputError(f"the checkpoint names {len(known)} classes and its head has {kernel.shape[1]}")
    for name in classes:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(f"the pretrained head has no class {name!r}{hint}")
        if known.count(name) > 1:
            raise InputError(
                f"the pretrained head has the class {name!r} {known.count(name)} times: rename all but one"
            )
    rows = [list(known).index(name) for name in classes]
    return {"kernel": kernel[:, rows]} | ({} if bias is None else {"bias": bias[rows]})


def adapt_channels(kernel: Float[np.ndarray, "rows columns inputs outputs"], channels: int) -> np.ndarray:
    """Returns a first convolution's kernel for another number of channels, as timm's `adapt_input_conv` makes it.

    For 1 it is the sum over the three, which on a grey image gives what the three give on three equal channels; for
    more, the three over and over in their own order (a `bgr` network's fourth is like its blue), times 3 / channels.

    BiT standardizes its kernels when it runs, and with them the factor: there a sum gives what the three would give
    only up to a factor for each filter, which training has to find again.

    Raises:
        InputError: the kernel is not for three channels.
    """
    if kernel.shape[2] == channels:
        return kernel
    if kernel.shape[2] != 3:
        raise InputError(_not_three(kernel.shape[2], channels))
    kernel = kernel.astype(np.float32)
    if channels == 1:
        return kernel.sum(2, keepdims=True)
    return kernel[:, :, np.arange(channels) % 3] * np.float32(3 / channels)


def with_channels(preprocessing: Preprocessing, channels: int) -> Preprocessing:
    """Returns what weights expect of images with other channels, by the rule that adapts their kernel.

    Mean and standard deviation become the average over the three for 1 channel, and the three over and over for more.

    Raises:
        InputError: no image file has so many channels, or the weights are not for three.
    """
    if channels not in _EXTRA:
        raise InputError(f"images of {channels} channels: there is no such file yet, only of 1 (grey), 3, or 4 (alpha)")
    if preprocessing.inputs == channels:
        return preprocessing
    if preprocessing.inputs != 3:
        raise InputError(_not_three(preprocessing.inputs, channels))
    if channels == 1:
        mean, std = ((sum(values) / 3,) for values in (preprocessing.mean, preprocessing.std))
        return dataclasses.replace(preprocessing, mean=mean, std=std, channels="grey")
    mean, std = (tuple((values * 2)[:channels]) for values in (preprocessing.mean, preprocessing.std))
    return dataclasses.replace(preprocessing, mean=mean, std=std, channels=preprocessing.channels + _EXTRA[channels])


def _not_three(inputs: int, channels: int) -> str:
    return f"the weights take images of {inputs} channels, and only 3 can be adapted to {channels}: use task.channels=0"


def resample_pos_embed(
    table: Float[np.ndarray, "..."], source: tuple[int, int], target: tuple[int, int], rule: str
) -> Float[np.ndarray, "..."]:
    """Resamples position embeddings for another grid; rows before the grid's (class token, registers) stay.

    Args:
        table: [1, rows, width]: prefix rows, then `source` grid rows, row-major. One of [rows, heads] has biases of
            displacements, which every library resamples by `resample_biases`.
        source: the grid (down, across) that the table was learned on.
        target: the grid to have them on.
        rule: a name in `RESAMPLINGS`: whose interpolation to follow.

    Raises:
        InputError: the rule is not known.
    """
    if rule not in RESAMPLINGS:
        raise InputError(f"no resampling named {rule!r}; known: {', '.join(RESAMPLINGS)}")
    if source == target:
        return table
    if table.ndim == 2:
        return resample_biases(table, source, target)
    prefix = table.shape[1] - source[0] * source[1]
    grid = table[0, prefix:].reshape(*source, -1).astype(np.float64)
    down, across = (_matrix(n, m, RESAMPLINGS[rule]) for n, m in zip(source, target, strict=True))
    grid = np.einsum("yh,xw,hwd->yxd", down, across, grid, optimize=True)
    return np.concatenate([table[0, :prefix], grid.reshape(-1, table.shape[-1])]).astype(table.dtype)[None]


def resample_biases(
    table: Float[np.ndarray, "rows heads"], source: tuple[int, int], target: tuple[int, int]
) -> Float[np.ndarray, "rows2 heads"]:
    """Resamples attention biases of displacements for another window, as timm does; rows after those stay.

    A displacement of n patches keeps its place in the new window if n is small, and moves outwards by more the larger
    it is; between, biases are interpolated linearly.

    Args:
        table: a row for each displacement, row-major, and then such as are of a class token.
        source: the window (down, across) that the table was learned on.
        target: the window to have it on.
    """
    sides = [2 * side - 1 for side in source]
    grid = table[: sides[0] * sides[1]].reshape(*sides, -1).astype(np.float64)
    for axis, (old, new) in enumerate(zip(source, target, strict=True)):
        places, asked = _geometric(old - 1, new - 1), np.arange(1.0 - new, new)
        matrix = np.stack([np.interp(asked, places, row) for row in np.eye(len(places))], -1)
        grid = np.moveaxis(np.tensordot(matrix, grid, (1, axis)), 0, axis)
    biases = grid.reshape(-1, table.shape[-1]).astype(table.dtype)
    return np.concatenate([biases, table[sides[0] * sides[1] :]])


def _geometric(count: int, reach: int) -> Float[np.ndarray, " places"]:
    """Returns where -count … count are put, each step longer by a factor than that before, to end at ±reach.

    The factor is between 1.01 and 1.5, even where that ends elsewhere.
    """
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        factor = (low + high) / 2
        low, high = (low, factor) if np.sum(factor ** np.arange(count)) > reach else (factor, high)
    steps = np.cumsum(factor ** np.arange(count))
    return np.concatenate([-steps[::-1], [0.0], steps])


def _matrix(n: int, m: int, rule: _Resampling) -> Float[np.ndarray, "m n"]:
    """Returns the [m, n] matrix that interpolates n samples at m places.

    With antialias, as in PIL and PyTorch, the kernel is stretched by n / m when shrinking, and weights that fall
    outside are dropped and the rest renormalized; without, edge samples repeat.
    """
    half_pixel = (np.arange(m) + 0.5) * n / (m + rule.offset) - 0.5
    center = np.linspace(0, n - 1, m) if rule.align_corners else half_pixel
    stretch = max(n / m, 1.0) if rule.antialias else 1.0
    reach = int(np.ceil(2 * stretch)) + 1
    positions = np.floor(center)[:, None] + np.arange(-reach, reach + 1)
    weights = _kernel(np.abs(positions - center[:, None]) / stretch, rule.cubic)
    if rule.antialias:
        weights = np.where((positions >= 0) & (positions < n), weights, 0.0)
        weights /= weights.sum(1, keepdims=True)
    matrix = np.zeros((m, n))
    np.add.at(matrix, (np.arange(m)[:, None], np.clip(positions, 0, n - 1).astype(int)), weights)
    return matrix


def _kernel(x: np.ndarray, a: float | None) -> np.ndarray:
    """Returns Keys' cubic kernel (1981) at distance x, or the linear one."""
    if a is None:
        return np.maximum(1 - x, 0)
    inside, outside = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, inside, np.where(x < 2, outside, 0.0))
