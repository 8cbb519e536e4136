"""What a convolutional network computes, where XLA does not write it well by itself; see `tests/models`.

What it computes often and takes many operations is under `jax.jit`, as in `ops`.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from tljax.models.kernels import ops

Padding = tuple[tuple[int, int], tuple[int, int]]


def conv(
    x: Float[Array, "batch height width inputs"],
    kernel: Float[Array, "rows columns inputs outputs"],
    stride: int = 1,
    padding: Padding = ((0, 0), (0, 0)),
) -> Float[Array, "batch height2 width2 outputs"]:
    """Convolves images in two dimensions, on a CPU as a matrix product wherever that is faster.

    Args:
        x: NHWC.
        kernel: HWIO.
        stride: along each axis.
        padding: zeros (before, after) each axis.
    """
    rows, columns, inputs, outputs = kernel.shape
    if ops.platform() != "cpu":
        return _conv(x, kernel, stride, padding)
    if (rows, columns) == (1, 1):
        # XLA's CPU convolution is about half as fast as the matrix product that a 1x1 convolution is.
        return ops.linear(x[:, ::stride, ::stride], kernel.reshape(inputs, outputs))
    if rows == columns == stride and padding == ((0, 0), (0, 0)):
        return _conv_of_patches_apart(x, kernel)
    if max(x.shape[1:3]) <= 4:
        # On maps this small the CPU convolution falls into a naive loop; unrolled patches and one product do not.
        return _conv_as_patches(x, kernel, stride, padding)
    if rows == columns == 3 and padding == ((1, 1), (1, 1)):
        if stride == 2:
            return _conv_halving(x, kernel)
        if stride == 1 and min(x.shape[1:3]) > 5 and min(inputs, outputs) >= 32:  # below, its sums cost what it saves
            return _conv_winograd(x, kernel)
    return _conv(x, kernel, stride, padding)


def _conv(x, kernel, stride, padding):
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _conv_of_patches_apart(x, kernel):
    """Convolves patches that do not overlap: a product of the flattened patches, which are whole."""
    size, _, inputs, outputs = kernel.shape
    height, width = (side // size for side in x.shape[1:3])
    x = x[:, : height * size, : width * size].reshape(-1, height, size, width, size, inputs)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, height, width, size * size * inputs)
    return ops.linear(x, kernel.reshape(-1, outputs))


def _conv_as_patches(x, kernel, stride, padding):
    rows, columns, _, outputs = kernel.shape
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    height = (x.shape[1] - rows) // stride + 1
    width = (x.shape[2] - columns) // stride + 1
    patches = [
        x[:, row : row + stride * height : stride, column : column + stride * width : stride]
        for row in range(rows)
        for column in range(columns)
    ]
    return ops.linear(jnp.concatenate(patches, axis=-1), kernel.reshape(-1, outputs))


@jax.custom_vjp
def _conv_halving(x, kernel):
    """Convolves by 3x3, stride 2, padded by 1: its gradient in `x` comes without the zeros that XLA would multiply.

    XLA spreads the output's gradient over a map of the input's size, three quarters of it zeros. Each of the four
    phases of the input (even or odd row and column) is instead a convolution of the gradient as it is.
    """
    return _conv(x, kernel, 2, ((1, 1), (1, 1)))


def _conv_halving_forward(x, kernel):
    return _conv_halving(x, kernel), (x, kernel)


def _conv_halving_backward(kept, dy):
    x, kernel = kept
    _, in_kernel = jax.vjp(lambda kernel: _conv(x, kernel, 2, ((1, 1), (1, 1))), kernel)

    def phase(row, column):
        # Even pixels lie under the middle of the kernel alone, odd ones under its last and first row.
        rows = slice(1, 2) if row == 0 else slice(None, None, -2)
        columns = slice(1, 2) if column == 0 else slice(None, None, -2)
        taps = kernel[rows, columns].swapaxes(2, 3)
        pad = (0, row), (0, column)
        if taps.shape[:2] == (1, 1):
            return jnp.dot(dy, taps[0, 0])
        return _conv(dy, taps, 1, pad)

    dx = interleaved([[phase(row, column) for column in range(2)] for row in range(2)])
    return dx[:, : x.shape[1], : x.shape[2]], *in_kernel(dy)


_conv_halving.defvjp(_conv_halving_forward, _conv_halving_backward)


@jax.custom_vjp
def _conv_winograd(x, kernel):
    """Convolves by 3x3, stride 1, padded by 1, as F(2x2, 3x3) of 1509.09308: 16 matrix products where there were 36.

    Each square of 2x2 pixels comes from a window of 4x4, of which `_windows` are sums, and `_taps` sums of the kernel.
    """
    return _winograd(x, kernel, 0)


def _winograd(x, kernel, axis):
    """Returns the convolution by a kernel whose `axis` (0 or 1) of the last two meets the channels of `x`."""

    def product(x, taps):
        return ops.product(x.reshape(-1, x.shape[-1]), taps, 1, axis).reshape(*x.shape[:-1], -1)

    products = [list(map(product, *rows)) for rows in zip(_windows(x), _taps(kernel), strict=True)]
    lines = [_gathered(*column) for column in zip(*products, strict=True)]
    y = interleaved([list(_gathered(*line)) for line in zip(*lines, strict=True)])
    return y[:, : x.shape[1], : x.shape[2]]


def _windows(x):
    """Returns 4x4 maps [batch, height/2, width/2, channels]: Bᵀ·window·B of every other pixel's window."""
    rows, columns = (-(-side // 2) for side in x.shape[1:3])
    x = jnp.pad(x, ((0, 0), (1, 2 * rows + 1 - x.shape[1]), (1, 2 * columns + 1 - x.shape[2]), (0, 0)))

    def along(x, axis, count):
        a, b, c, d = (lax.slice_in_dim(x, i, i + 2 * count - 1, 2, axis) for i in range(4))
        return a - c, b + c, c - b, b - d

    return [along(row, 2, columns) for row in along(x, 1, rows)]


def _taps(kernel):
    """Returns 4x4 matrices [inputs, outputs]: G·kernel·Gᵀ."""

    def along(a, b, c):
        return a, (a + b + c) / 2, (a - b + c) / 2, c

    return [along(*row) for row in along(*kernel)]


def _gathered(a, b, c, d):
    """Aᵀ·(a, b, c, d): the even and the odd pixels."""
    return a + b + c, b - c - d


def _conv_winograd_forward(x, kernel):
    return _conv_winograd(x, kernel), (x, kernel)


def _conv_winograd_backward(kept, dy):
    x, kernel = kept
    dx = _winograd(dy, kernel[::-1, ::-1], 1)
    even = jnp.pad(dy, ((0, 0), (0, dy.shape[1] % 2), (0, dy.shape[2] % 2), (0, 0)))

    def spread(a, b):  # the transpose of `_gathered`
        return a, a + b, a - b, -b

    def gathered(a, b, c, d):  # and of `_taps`
        return jnp.stack((a + (b + c) / 2, (b - c) / 2, (b + c) / 2 + d))

    lines = zip(*(spread(even[:, row::2, ::2], even[:, row::2, 1::2]) for row in range(2)), strict=True)
    spectrum = zip(*(spread(*line) for line in lines), strict=True)

    def product(x, dy):
        return ops.product(x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1]), 0, 0)

    products = [list(map(product, *rows)) for rows in zip(_windows(x), spectrum, strict=True)]
    return dx, gathered(*(gathered(*row) for row in products))


_conv_winograd.defvjp(_conv_winograd_forward, _conv_winograd_backward)
_conv_winograd = jax.jit(_conv_winograd)


def interleaved(phases: list[list[Float[Array, "batch rows columns channels"]]]) -> Float[Array, "batch ..."]:
    """The map whose even and odd rows and columns are these: `phases[row % 2][column % 2]`."""
    rows = jnp.stack([jnp.stack(row, axis=3) for row in phases], axis=2)
    batch, height, _, width, _, channels = rows.shape
    return rows.reshape(batch, 2 * height, 2 * width, channels)


def depthwise_conv(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "rows columns 1 channels"],
    stride: int = 1,
    padding: Padding = ((0, 0), (0, 0)),
) -> Float[Array, "batch height2 width2 channels"]:
    """Convolves each channel by a kernel of its own, on a CPU as a sum over the kernel's taps.

    Args:
        x, kernel, stride, padding: as in `conv`.
    """
    if ops.platform() == "cpu":
        return _depthwise_conv(x, kernel[:, :, 0], stride, padding)
    channels = x.shape[-1]
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=layout, feature_group_count=channels
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise_conv(x, kernel, stride, padding):
    """On a CPU, XLA's grouped convolution is a naive loop, and its gradients are two more, ten times as slow."""
    return _sum_of_taps(_padded(x, *padding), kernel, stride)


def _padded(x, down, across):
    """Returns the padded map, in memory: else what makes `x` would be computed, and compiled, again for every tap."""
    return lax.optimization_barrier(jnp.pad(x, ((0, 0), down, across, (0, 0))))


def _taps_of(x, rows, columns, stride):
    """Yields the place of each tap, and the pixels of a padded map that lie under it."""
    height, width = (x.shape[1] - rows) // stride + 1, (x.shape[2] - columns) // stride + 1
    for row in range(rows):
        for column in range(columns):
            down, across = slice(row, row + stride * height, stride), slice(column, column + stride * width, stride)
            yield row, column, x[:, down, across]


def _sum_of_taps(x, kernel, stride):
    exact = jnp.promote_types(x.dtype, jnp.float32)
    kernel = kernel.astype(exact)
    taps = _taps_of(x, *kernel.shape[:2], stride)
    return sum(pixels.astype(exact) * kernel[row, column] for row, column, pixels in taps).astype(x.dtype)


def _depthwise_conv_forward(x, kernel, stride, padding):
    return _depthwise_conv(x, kernel, stride, padding), (x, kernel)


def _depthwise_conv_backward(stride, padding, kept, dy):
    x, kernel = kept
    rows, columns, _ = kernel.shape
    padded = _padded(x, *padding)
    exact = jnp.promote_types(dy.dtype, jnp.float32)

    def tap(place):
        """The gradient of a tap; in one sum over all axes but the last, XLA would read memory anew for each channel."""
        start = 0, place // columns, place % columns, 0
        span = [stride * (side - 1) + 1 for side in dy.shape[1:3]]
        pixels = lax.dynamic_slice(padded, start, (x.shape[0], *span, x.shape[3]))[:, ::stride, ::stride]
        return jnp.sum(jnp.sum(pixels.astype(exact) * dy, 0), (0, 1))

    # A loop, as every tap written out would take the compiler seconds.
    dkernel = lax.map(tap, jnp.arange(rows * columns)).reshape(kernel.shape)
    height, width = (-(-side // stride) for side in padded.shape[1:3])

    def phase(row, column):
        """The gradient of every `stride`-th pixel of the padded map: of the taps that meet it, turned around."""
        taps = kernel[row::stride, column::stride][::-1, ::-1]
        down = taps.shape[0] - 1, height - dy.shape[1]
        across = taps.shape[1] - 1, width - dy.shape[2]
        return _sum_of_taps(_padded(dy, down, across), taps, 1)

    phases = [[phase(row, column) for column in range(stride)] for row in range(stride)]
    dx = phases[0][0] if stride == 1 else interleaved(phases)
    top, left = padding[0][0], padding[1][0]
    return dx[:, top : top + x.shape[1], left : left + x.shape[2]], dkernel.astype(kernel.dtype)


_depthwise_conv.defvjp(_depthwise_conv_forward, _depthwise_conv_backward)
_depthwise_conv = jax.jit(_depthwise_conv, static_argnums=(2, 3))


def max_pool(
    x: Float[Array, "batch height width channels"], padding: tuple[int, int]
) -> Float[Array, "batch height2 width2 channels"]:
    """The maximum of 3x3 windows, stride 2. Its gradient goes to the first of equal ones, as in PyTorch and XLA."""
    if ops.platform() != "cpu":
        return nn.max_pool(x, (3, 3), (2, 2), (padding, padding))
    return _max_pool(x, padding)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_pool(x, padding):
    """On a CPU, XLA does not vectorize its window reduction, and its gradient looks for each maximum again."""
    return _max_and_place(x, padding)[0]


def _max_and_place(x, padding):
    """The maxima, and which pixel of its window (0 to 8, row by row) each of them is."""
    x = jnp.pad(x, ((0, 0), padding, padding, (0, 0)), constant_values=-jnp.inf)
    height, width = ((side - 3) // 2 + 1 for side in x.shape[1:3])
    best, place = x[:, : 2 * height : 2, : 2 * width : 2], jnp.zeros((), jnp.int8)
    for number in range(1, 9):
        row, column = divmod(number, 3)
        pixel = x[:, row : row + 2 * height : 2, column : column + 2 * width : 2]
        place = jnp.where(pixel > best, jnp.int8(number), place)
        best = jnp.maximum(best, pixel)  # which, unlike `where`, lets NaN through
    return best, place


def _max_pool_forward(x, padding):
    best, place = _max_and_place(x, padding)
    return best, (place, x.shape)


def _max_pool_backward(padding, kept, dy):
    place, (_, height, width, _) = kept

    def tap(row, column):
        """The gradient as it goes to this pixel of each window, on a map of one more window each way."""
        dtap = jnp.where(place == 3 * row + column, dy, 0)
        down, right = row // 2, column // 2  # the last pixel of a window is the next one's first
        return jnp.pad(dtap, ((0, 0), (down, 1 - down), (right, 1 - right), (0, 0)))

    def phase(row, column):
        return sum(tap(r, c) for r in range(row, 3, 2) for c in range(column, 3, 2))

    dx = interleaved([[phase(row, column) for column in range(2)] for row in range(2)])
    before = padding[0]
    return (dx[:, before : before + height, before : before + width],)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def batch_norm(
    x: Float[Array, "*batch channels"],
    scale: Float[Array, " channels"],
    bias: Float[Array, " channels"],
    eps: float,
) -> tuple[Float[Array, "*batch channels"], Float[Array, " channels"], Float[Array, " channels"]]:
    """Normalizes `x` by its own statistics (1502.03167); returns its mean and variance too, in float32.

    The gradient is the textbook's, two sums and one pass, where XLA's of the written-out formula takes several.
    Nothing may be differentiated through the mean and variance that are returned.

    Args:
        x: statistics are taken over all axes but the last.
        scale, bias: of the normalized `x`.
        eps: added to the variance.
    """
    return _batch_norm_forward(x, scale, bias, eps)[0]


def _batch_norm_forward(x, scale, bias, eps):
    axes = tuple(range(x.ndim - 1))
    exact = x.astype(jnp.float32)
    mean = jnp.mean(exact, axes)
    variance = jnp.maximum(jnp.mean(jnp.square(exact), axes) - jnp.square(mean), 0)
    inverse = lax.rsqrt(variance + eps)
    y = ((exact - mean) * (inverse * scale) + bias).astype(x.dtype)
    return (y, mean, variance), (x, mean, inverse, scale)


def _batch_norm_backward(eps, kept, cotangents):
    x, mean, inverse, scale = kept
    axes, dy = tuple(range(x.ndim - 1)), cotangents[0].astype(jnp.float32)
    centered = x.astype(jnp.float32) - mean
    dbias, dscale = jnp.sum(dy, axes), jnp.sum(dy * centered, axes) * inverse
    count = x.size // x.shape[-1]
    dx = (scale * inverse) * (dy - dbias / count - centered * (inverse * dscale / count))
    return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(scale.dtype)


batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)
batch_norm = jax.jit(batch_norm, static_argnums=3)
