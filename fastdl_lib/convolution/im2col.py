"""Convolution, one function an algorithm, all with one signature.

``conv2d_*(x, weight, bias=None, *, stride=1, padding=0, groups=1)`` takes

* ``x``: (N, C, H, W), float16, float32 or float64, on the CPU or the GPU;
* ``weight``: (K, C / groups, FH, FW), of the same dtype;
* ``bias``: (K,) or None,

and returns (N, K, OH, OW) of the same dtype; float16 adds up in float32. As everywhere in deep
learning, the filter is not flipped: this is cross-correlation.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from fastdl_lib.core.arrays import array_module
from fastdl_lib.core.checks import check_whole_number
from fastdl_lib.core.threads import blas_threads_now, blocks, in_parallel, sum_in_order

__all__ = [
    "channels_last",
    "check_conv_shapes",
    "check_grad_out",
    "check_on_cpu",
    "check_window",
    "col2im",
    "conv2d_blocked",
    "conv2d_blocked_backward",
    "conv2d_compiled",
    "conv2d_im2col",
    "conv2d_im2col_backward",
    "conv2d_loops",
    "im2col",
    "output_size",
    "padded_channels_last",
    "refuse_float16",
    "tap_views",
    "wide",
]

Array = Any  # numpy.ndarray or cupy.ndarray

CACHE_BYTES = 2**20
"""How much of a batch is worked on at a time, so that it stays in a core's own (L2) cache."""


def check_window(kernel: int, stride: int, padding: int) -> None:
    """Refuse a window that cannot slide.

    Raises:
        TypeError: one of the three is not a whole number.
        ValueError: kernel or stride below 1, or padding below 0.
    """
    check_whole_number("kernel", kernel, 1)
    check_whole_number("stride", stride, 1)
    check_whole_number("padding", padding, 0)


def _pair(kernel: tuple[int, int]) -> tuple[int, int]:
    try:
        filter_h, filter_w = kernel
    except (TypeError, ValueError):
        raise TypeError(
            f"kernel must be a pair (FH, FW), such as (3, 3); got {kernel!r}."
        ) from None
    return filter_h, filter_w


def output_size(size: int, kernel: int, stride: int = 1, padding: int = 0) -> int:
    """Return how many positions a window has along one axis of ``size`` pixels.

    Raises:
        ValueError: the window is larger than the padded input, or a size is not positive.

    >>> output_size(227, kernel=11, stride=4)  # (227 - 11) / 4 + 1
    55
    """
    check_window(kernel, stride, padding)
    kernel, stride, padding = int(kernel), int(stride), int(padding)
    if size < 1:
        raise ValueError(f"the input size must be at least 1, got {size}.")
    if kernel > size + 2 * padding:
        raise ValueError(
            f"a window of {kernel} does not fit an input of {size} with padding {padding}: "
            f"use padding >= {-(-(kernel - size) // 2)} or a smaller kernel."
        )
    return (size + 2 * padding - kernel) // stride + 1


def check_conv_shapes(
    x: Array, weight: Array, bias: Array | None, stride: int, padding: int, groups: int
) -> tuple[int, int, int, int, int]:
    """Check everything a convolution is given.

    Returns:
        ``(OH, OW, stride, padding, groups)`` as Python's own whole numbers: NumPy's small ones
        overflow where sizes are computed with them.

    Raises:
        TypeError: arrays of two libraries or two dtypes, a dtype that is not float, or a stride,
            padding or groups that is not a whole number.
        ValueError: shapes that do not fit; the message says which, and what would.
    """
    xp = array_module(x, weight) if bias is None else array_module(x, weight, bias)
    if x.ndim != 4 or weight.ndim != 4:
        raise ValueError(
            "convolution takes x of shape (N, C, H, W) and weight of shape (K, C/groups, FH, FW); "
            f"got {x.shape} and {weight.shape}. For one image use x[None]."
        )
    if x.dtype not in (xp.float16, xp.float32, xp.float64):
        raise TypeError(
            f"x must be float16, float32 or float64, got {x.dtype}; use x.astype(np.float32)."
        )
    for name, array in (("weight", weight), ("bias", bias)):
        if array is not None and array.dtype != x.dtype:
            raise TypeError(
                f"x is {x.dtype} but {name} is {array.dtype}; mixing them would silently compute "
                f"in float64. Use {name}.astype(x.dtype)."
            )
    if 0 in x.shape or 0 in weight.shape:
        raise ValueError(
            f"empty array: x {x.shape}, weight {weight.shape}; every size must be >= 1."
        )
    channels, filters = x.shape[1], weight.shape[0]
    check_whole_number("groups", groups, 1)
    if channels % groups or filters % groups:
        raise ValueError(
            f"groups={groups} must divide the {channels} input channels and the {filters} filters."
        )
    if weight.shape[1] != channels // groups:
        raise ValueError(
            f"weight {weight.shape} looks at {weight.shape[1]} channels, but x {x.shape} has "
            f"{channels} in {groups} group(s), so it should look at {channels // groups}."
        )
    if bias is not None and bias.shape != (filters,):
        raise ValueError(f"bias must have the shape ({filters},), got {bias.shape}.")
    return (
        output_size(x.shape[2], weight.shape[2], stride, padding),
        output_size(x.shape[3], weight.shape[3], stride, padding),
        *(int(stride), int(padding), int(groups)),
    )


def check_grad_out(grad_out: Array, x: Array, out_shape: tuple[int, ...]) -> None:
    """Refuse a gradient that does not belong to the output of this shape and x's dtype.

    Raises:
        ValueError: another shape.
        TypeError: another dtype.
    """
    if grad_out.shape != out_shape:
        raise ValueError(
            f"grad_out must have the output's shape {out_shape}, got {grad_out.shape}."
        )
    if grad_out.dtype != x.dtype:
        raise TypeError(
            f"x is {x.dtype} but grad_out is {grad_out.dtype}; use grad_out.astype(x.dtype)."
        )


def check_on_cpu(name: str, x: Array) -> None:
    """Refuse an array on the GPU.

    Raises:
        TypeError: x is a CuPy array; ``name`` is the function that needs the CPU.
    """
    if array_module(x) is not np:
        raise TypeError(
            f"{name} runs on the CPU only: move x, weight and bias there with to_cpu()."
        )


def refuse_float16(name: str, x: Array) -> None:
    """Refuse numbers of half precision.

    Raises:
        TypeError: x is float16; ``name`` is the function that does not know it.
    """
    if x.dtype == np.float16:
        raise TypeError(
            f"{name} does not take float16: use algorithm 'blocked' or 'im2col', or "
            "x.astype(np.float32)."
        )


def wide(dtype: np.dtype) -> np.dtype:
    """The dtype to add up in: float32 for float16, the same for others.

    >>> wide(np.dtype("float16")), wide(np.dtype("float64"))
    (dtype('float32'), dtype('float64'))
    """
    return np.promote_types(dtype, np.float32)


def tap_views(x: Array, kernel: tuple[int, int], stride: int) -> Iterator[tuple[int, int, Array]]:
    """For each place (p, q) of a window, yield p, q and what that place sees as the window slides.

    Args:
        x: (N, C, H, W), padded already; any dtype.
        kernel: (FH, FW).

    Yields:
        FH * FW times (p, q, view): view (N, C, OH, OW) shares x's memory, so that writing to it
        writes to x.

    >>> x = np.arange(16).reshape(1, 1, 4, 4)
    >>> [view[0, 0].tolist() for _, _, view in tap_views(x, (1, 2), 2)]
    [[[0, 2], [8, 10]], [[1, 3], [9, 11]]]
    """
    out_h = output_size(x.shape[2], kernel[0], stride)
    out_w = output_size(x.shape[3], kernel[1], stride)
    for p in range(kernel[0]):
        for q in range(kernel[1]):
            rows = slice(p, p + stride * (out_h - 1) + 1, stride)
            columns = slice(q, q + stride * (out_w - 1) + 1, stride)
            yield p, q, x[:, :, rows, columns]


def conv2d_loops(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
) -> np.ndarray:
    """Convolve with plain Python loops: the definition, readable and slow. CPU only.

    Shapes as in the module's head; accumulates in Python's float64 and returns x.dtype.

    Raises:
        TypeError, ValueError: as :func:`check_conv_shapes`; TypeError for an array on the GPU.

    >>> x, w = np.ones((1, 1, 3, 3), np.float32), np.ones((1, 1, 2, 2), np.float32)
    >>> conv2d_loops(x, w)[0, 0].tolist()
    [[4.0, 4.0], [4.0, 4.0]]
    """
    shapes = check_conv_shapes(x, weight, bias, stride, padding, groups)
    out_h, out_w, stride, padding, groups = shapes
    check_on_cpu("conv2d_loops", x)
    batch, filters = x.shape[0], weight.shape[0]
    _, group_channels, filter_h, filter_w = weight.shape
    filters_a_group = filters // groups
    padded = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding))).tolist()
    taps = weight.tolist()
    start = [0.0] * filters if bias is None else bias.tolist()
    out = np.empty((batch, filters, out_h, out_w), dtype=x.dtype)
    for n in range(batch):
        for k in range(filters):
            first_channel = k // filters_a_group * group_channels
            for i in range(out_h):
                for j in range(out_w):
                    total = start[k]
                    for c in range(group_channels):
                        for p in range(filter_h):
                            row = padded[n][first_channel + c][i * stride + p]
                            for q in range(filter_w):
                                total += row[j * stride + q] * taps[k][c][p][q]
                    out[n, k, i, j] = total
    return out


@functools.cache
def _compiled_loops() -> Callable[..., None]:
    """The loops, to be compiled at the first call for each dtype. Importing Numba takes a while."""
    import numba

    @numba.njit
    def loops(padded, weight, bias, stride, groups, out):
        batch, filters, out_h, out_w = out.shape
        _, group_channels, filter_h, filter_w = weight.shape
        for n in range(batch):
            for k in range(filters):
                first_channel = k // (filters // groups) * group_channels
                for i in range(out_h):
                    for j in range(out_w):
                        total = bias[k]
                        for c in range(group_channels):
                            for p in range(filter_h):
                                for q in range(filter_w):
                                    value = padded[
                                        n, first_channel + c, i * stride + p, j * stride + q
                                    ]
                                    total += value * weight[k, c, p, q]
                        out[n, k, i, j] = total

    return loops


def conv2d_compiled(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
) -> np.ndarray:
    """Convolve with the loops of :func:`conv2d_loops`, compiled by Numba; CPU, one thread.

    Shapes as in the module's head; accumulates in x.dtype. The first call for each dtype compiles,
    which takes about a second.

    Raises:
        TypeError, ValueError: as :func:`check_conv_shapes`; TypeError for an array on the GPU, and
            for float16.

    >>> x, w = np.ones((1, 1, 3, 3), np.float32), np.ones((1, 1, 2, 2), np.float32)
    >>> conv2d_compiled(x, w)[0, 0].tolist()
    [[4.0, 4.0], [4.0, 4.0]]
    """
    shapes = check_conv_shapes(x, weight, bias, stride, padding, groups)
    out_h, out_w, stride, padding, groups = shapes
    check_on_cpu("conv2d_compiled", x)
    refuse_float16("conv2d_compiled", x)
    padded = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    out = np.empty((len(x), len(weight), out_h, out_w), x.dtype)
    start = np.zeros(len(weight), x.dtype) if bias is None else bias
    # One memory order, so that a change of it does not compile anew.
    loops, arrays = _compiled_loops(), map(np.ascontiguousarray, (padded, weight, start))
    loops(*arrays, stride, groups, out)
    return out


def im2col(x: Array, kernel: tuple[int, int], stride: int = 1, padding: int = 0) -> Array:
    """Lay every patch under the filter out as a column.

    Args:
        x: (N, C, H, W), any dtype; it is kept.
        kernel: (FH, FW).
        stride, padding: in pixels, the same on both axes; the padding is zeros on every side.

    Returns:
        (N, C * FH * FW, OH * OW), a copy. Column ``i * OW + j`` holds the patch whose top left
        corner is at (i * stride, j * stride); its entries run over channel, row, column.
        (The book's own ``im2col`` has the patches as rows and allocates float64.)

    Raises:
        TypeError: kernel is no pair, or one of its numbers, stride or padding is not whole.
        ValueError: x is not 4-D or has a size 0, or the window does not fit.

    >>> x = np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3)
    >>> im2col(x, (2, 2))[0].astype(int).tolist()  # 4 patches of 4 pixels
    [[0, 1, 3, 4], [1, 2, 4, 5], [3, 4, 6, 7], [4, 5, 7, 8]]
    """
    xp = array_module(x)
    if x.ndim != 4 or 0 in x.shape:
        raise ValueError(f"im2col takes x of shape (N, C, H, W), no size 0; got {x.shape}.")
    batch, channels, height, width = x.shape
    filter_h, filter_w = _pair(kernel)
    out_h = output_size(height, filter_h, stride, padding)
    out_w = output_size(width, filter_w, stride, padding)
    stride, padding = int(stride), int(padding)
    if padding:
        x = xp.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    columns = xp.empty((batch, channels, filter_h, filter_w, out_h, out_w), dtype=x.dtype)
    # FH * FW slice copies instead of a loop over pixels.
    for p, q, view in tap_views(x, kernel, stride):
        columns[:, :, p, q] = view
    return columns.reshape(batch, channels * filter_h * filter_w, out_h * out_w)


def col2im(
    columns: Array,
    input_shape: tuple[int, int, int, int],
    kernel: tuple[int, int],
    stride: int = 1,
    padding: int = 0,
) -> Array:
    """Add every column back to the pixels it came from: the adjoint of :func:`im2col`.

    Args:
        columns: (N, C * FH * FW, OH * OW), as :func:`im2col` makes them.
        input_shape: the (N, C, H, W) that im2col was given.
        kernel, stride, padding: as im2col was given them; what fell on the padding is dropped.

    Returns:
        (N, C, H, W) of the same dtype. A pixel that lies in m patches holds the sum of m entries.

    Raises:
        TypeError: kernel is no pair, or one of its numbers, stride or padding is not whole.
        ValueError: the columns do not belong to that input shape.

    >>> ones = np.ones((1, 4, 4), np.float32)
    >>> col2im(ones, (1, 1, 3, 3), (2, 2))[0, 0].astype(int).tolist()
    [[1, 2, 1], [2, 4, 2], [1, 2, 1]]
    """
    xp = array_module(columns)
    batch, channels, height, width = input_shape
    filter_h, filter_w = _pair(kernel)
    out_h = output_size(height, filter_h, stride, padding)
    out_w = output_size(width, filter_w, stride, padding)
    stride, padding = int(stride), int(padding)
    expected = (batch, channels * filter_h * filter_w, out_h * out_w)
    if columns.shape != expected:
        raise ValueError(
            f"columns of an input {tuple(input_shape)} with kernel {tuple(kernel)}, "
            f"stride {stride}, padding {padding} have the shape {expected}, got {columns.shape}."
        )
    columns = columns.reshape(batch, channels, filter_h, filter_w, out_h, out_w)
    image = xp.zeros(
        (batch, channels, height + 2 * padding, width + 2 * padding), dtype=columns.dtype
    )
    for p, q, view in tap_views(image, kernel, stride):
        view += columns[:, :, p, q]
    return image[:, :, padding : padding + height, padding : padding + width]


def conv2d_im2col(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
) -> Array:
    """Convolve as one matrix product an image and group: weight (K, C*FH*FW) times the columns.

    Shapes and errors as in the module's head.

    Source: Chellapilla, Puri, Simard, "High performance convolutional neural networks for document
    processing", 2006.

    >>> x, w = np.ones((2, 3, 8, 8), np.float32), np.ones((4, 3, 3, 3), np.float32)
    >>> conv2d_im2col(x, w, padding=1).shape
    (2, 4, 8, 8)
    """
    xp = array_module(x)
    shapes = check_conv_shapes(x, weight, bias, stride, padding, groups)
    out_h, out_w, stride, padding, groups = shapes
    batch, filters = x.shape[0], weight.shape[0]
    columns = im2col(x, weight.shape[2:], stride, padding)
    columns = columns.reshape(batch, groups, -1, out_h * out_w)
    matrix = weight.reshape(groups, filters // groups, -1)
    out = xp.matmul(matrix, columns).reshape(batch, filters, out_h, out_w)
    if bias is not None:
        out += bias[:, None, None]
    return out


def conv2d_im2col_backward(
    grad_out: Array,
    x: Array,
    weight: Array,
    *,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
    need_grad_x: bool = True,
) -> tuple[Array | None, Array, Array]:
    """Return the gradients of :func:`conv2d_im2col` with respect to x, weight and bias.

    Args:
        grad_out: gradient of the loss by the output, (N, K, OH, OW).
        need_grad_x: False for a network's first layer, whose input has no use for a gradient.

    Returns:
        ``(grad_x, grad_weight, grad_bias)`` in the shapes of x, weight and (K,); grad_x is None
        when it is not needed. The columns are made again here: that costs a copy and saves
        keeping up to 25 times the input in memory between forward and backward.

    Raises:
        ValueError: a gradient that does not have the output's shape.
        TypeError: a gradient of another dtype than x.

    >>> x, w = np.ones((2, 3, 8, 8), np.float32), np.ones((4, 3, 3, 3), np.float32)
    >>> [g.shape for g in conv2d_im2col_backward(np.ones((2, 4, 6, 6), np.float32), x, w)]
    [(2, 3, 8, 8), (4, 3, 3, 3), (4,)]
    """
    xp = array_module(grad_out, x, weight)
    shapes = check_conv_shapes(x, weight, None, stride, padding, groups)
    out_h, out_w, stride, padding, groups = shapes
    batch, filters = x.shape[0], weight.shape[0]
    check_grad_out(grad_out, x, (batch, filters, out_h, out_w))
    columns = im2col(x, weight.shape[2:], stride, padding)
    columns = columns.reshape(batch, groups, -1, out_h * out_w)
    matrix = weight.reshape(groups, filters // groups, -1)
    grad = xp.ascontiguousarray(grad_out).reshape(batch, groups, filters // groups, -1)
    grad_bias = grad_out.sum(axis=(0, 2, 3), dtype=wide(x.dtype)).astype(x.dtype, copy=False)
    grad_matrix = xp.zeros(matrix.shape, wide(x.dtype))
    for image_grad, image_columns in zip(grad, columns, strict=True):
        grad_matrix += xp.matmul(image_grad, image_columns.transpose(0, 2, 1))
    grad_x = None
    if need_grad_x:
        grad_columns = xp.matmul(matrix.transpose(0, 2, 1), grad)
        grad_columns = grad_columns.reshape(batch, -1, out_h * out_w)
        grad_x = col2im(grad_columns, x.shape, weight.shape[2:], stride, padding)
    grad_weight = grad_matrix.reshape(weight.shape).astype(x.dtype, copy=False)
    return grad_x, grad_weight, grad_bias


# --- the same product, laid out for the caches --------------------------------------------------


def channels_last(shape: tuple[int, int, int, int], dtype: Any) -> np.ndarray:
    """Make an empty array of shape (N, C, H, W) whose memory runs over N, H, W, C.

    The channels of a pixel then lie side by side, so that a copy of a patch moves long runs; who
    reads the array by its axes does not notice.

    >>> x = channels_last((2, 96, 55, 55), np.float32)
    >>> x.shape, [stride // x.itemsize for stride in x.strides]
    ((2, 96, 55, 55), [290400, 1, 5280, 96])
    """
    batch, channels, height, width = shape
    return np.empty((batch, height, width, channels), dtype).transpose(0, 3, 1, 2)


def padded_channels_last(x: np.ndarray, padding: int, height: int, width: int) -> np.ndarray:
    """Copy x (N, C, H, W) into the middle of zeros: (N, height, width, C), contiguous.

    What does not fit below and on the right is cut off: no window reaches it.
    """
    out = np.zeros((x.shape[0], height, width, x.shape[1]), x.dtype)
    inside = out[:, padding : padding + x.shape[2], padding : padding + x.shape[3]]
    inside[...] = x.transpose(0, 2, 3, 1)[:, : inside.shape[1], : inside.shape[2]]
    return out


def _windows(
    x: np.ndarray, rows: slice, kernel: tuple[int, int], stride: int, padding: int
) -> np.ndarray:
    """What the filter sees at every position of some output rows: (N, rows, OW, FH, FW, C), a view
    of a padded, channels-last copy of the input rows that they need."""
    batch, channels, height, width = x.shape
    first = rows.start * stride - padding
    last = (rows.stop - 1) * stride - padding + kernel[0]
    padded = np.zeros((batch, last - first, width + 2 * padding, channels), x.dtype)
    seen = max(0, min(last, height) - first)  # none where a block lies in the padding
    inside = padded[:, max(0, -first) : seen, padding : padding + width]
    inside[...] = x[:, :, max(0, first) : max(0, last)].transpose(0, 2, 3, 1)
    windows = sliding_window_view(padded, kernel, axis=(1, 2))[:, ::stride, ::stride]
    return windows.transpose(0, 1, 2, 4, 5, 3)


def _patches(windows: np.ndarray, group: int, group_channels: int) -> np.ndarray:
    """Copy one group's channels: (N * rows * OW, FH * FW * C / groups), a patch a row."""
    seen = windows[..., group * group_channels : (group + 1) * group_channels]
    return np.ascontiguousarray(seen).reshape(math.prod(seen.shape[:3]), -1)


def _filter_matrices(weight: np.ndarray, groups: int) -> np.ndarray:
    """(groups, K / groups, FH * FW * C / groups), a filter a row, in the order of a patch; a view
    where the weights are channels last."""
    return weight.transpose(0, 2, 3, 1).reshape(groups, len(weight) // groups, -1)


def _block_size(out_h: int, out_w: int, matrices: np.ndarray) -> tuple[int, int]:
    """(images, output rows) whose patches stay in the cache: several images, or a part of one."""
    a_row = out_w * matrices[0, 0].nbytes
    return max(1, CACHE_BYTES // (out_h * a_row)), min(out_h, max(1, CACHE_BYTES // a_row))


def conv2d_blocked(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
) -> np.ndarray:
    """Convolve as :func:`conv2d_im2col`, but block by block and channels last. CPU only.

    The patches of some output rows, or of some small images, are laid out, multiplied and forgotten
    before they leave the cache, instead of a matrix up to 25 times the input. The blocks are shared
    out among threads. Shapes as in the module's head; the result is channels last in memory
    (:func:`channels_last`).

    Raises:
        TypeError, ValueError: as :func:`check_conv_shapes`; TypeError for an array on the GPU.

    >>> x, w = np.ones((2, 3, 8, 8), np.float32), np.ones((4, 3, 3, 3), np.float32)
    >>> conv2d_blocked(x, w, padding=1).shape
    (2, 4, 8, 8)
    """
    shapes = check_conv_shapes(x, weight, bias, stride, padding, groups)
    out_h, out_w, stride, padding, groups = shapes
    check_on_cpu("conv2d_blocked", x)
    out = channels_last((len(x), len(weight), out_h, out_w), x.dtype)
    matrices = _filter_matrices(weight, groups)
    images, rows = _block_size(out_h, out_w, matrices)
    blocks_an_image = -(-out_h // rows)
    threads = max(1, blas_threads_now())
    if len(x) < threads:  # too few images: give every thread equal parts of each
        blocks_an_image = min(out_h, threads * -(-blocks_an_image // threads))
        rows = -(-out_h // blocks_an_image)
        blocks_an_image = -(-out_h // rows)

    def work(part: slice) -> None:
        """Part counts blocks: whole images, or the parts of one after those of another."""
        first, block = divmod(part.start, blocks_an_image)
        here = slice(block * rows, min(out_h, (block + 1) * rows))
        these = slice(first, max(first + 1, part.stop // blocks_an_image))
        windows = _windows(x[these], here, weight.shape[2:], stride, padding)
        for group, matrix in enumerate(matrices):
            made = _patches(windows, group, weight.shape[1]) @ matrix.T
            if bias is not None:
                made += bias.reshape(groups, -1)[group]
            result = out[these, group * made.shape[1] : (group + 1) * made.shape[1], here]
            result.transpose(0, 2, 3, 1)[...] = made.reshape(*windows.shape[:3], -1)

    in_parallel(work, len(x) * blocks_an_image, block=images if blocks_an_image == 1 else 1)
    return out


def conv2d_blocked_backward(
    grad_out: Array,
    x: Array,
    weight: Array,
    *,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
    need_grad_x: bool = True,
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """Return the gradients of :func:`conv2d_blocked` with respect to x, weight and bias.

    As :func:`conv2d_im2col_backward`, which also describes arguments and result, but with the
    patches of one block at a time.

    Raises:
        TypeError, ValueError: as there; TypeError for an array on the GPU.

    >>> x, w = np.ones((2, 3, 8, 8), np.float32), np.ones((4, 3, 3, 3), np.float32)
    >>> [g.shape for g in conv2d_blocked_backward(np.ones((2, 4, 6, 6), np.float32), x, w)]
    [(2, 3, 8, 8), (4, 3, 3, 3), (4,)]
    """
    shapes = check_conv_shapes(x, weight, None, stride, padding, groups)
    out_h, out_w, stride, padding, groups = shapes
    check_on_cpu("conv2d_blocked_backward", x)
    check_grad_out(grad_out, x, (len(x), len(weight), out_h, out_w))
    kernel, (height, width) = weight.shape[2:], x.shape[2:]
    matrices = _filter_matrices(weight, groups)
    images, rows = _block_size(out_h, out_w, matrices)
    grad_x = channels_last(x.shape, x.dtype) if need_grad_x else None
    sums: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def work(part: slice) -> None:
        total = np.zeros(matrices.shape, wide(x.dtype))
        for these in blocks(part, images):
            size = (these.stop - these.start, height + 2 * padding, width + 2 * padding)
            padded = np.zeros((*size, x.shape[1]), wide(x.dtype))
            for here in blocks(slice(0, out_h), rows):
                windows = _windows(x[these], here, kernel, stride, padding)
                grads = grad_out[these, :, here].transpose(0, 2, 3, 1)
                grads = grads.reshape(-1, groups, matrices.shape[1])
                for group, matrix in enumerate(matrices):
                    total[group] += grads[:, group].T @ _patches(windows, group, weight.shape[1])
                    if need_grad_x:
                        grad_patches = grads[:, group] @ matrix
                        seen = padded[:, here.start * stride :, :, group * weight.shape[1] :]
                        _add_patches(seen, grad_patches.reshape(*windows.shape[:5], -1), stride)
            if need_grad_x:
                inside = padded[:, padding : padding + height, padding : padding + width]
                grad_x[these] = inside.transpose(0, 3, 1, 2)
        sums[part.start] = total, grad_out[part].sum(axis=(0, 2, 3), dtype=wide(x.dtype))

    in_parallel(work, len(x))
    grad_matrices, grad_bias = (total.astype(x.dtype, copy=False) for total in sum_in_order(sums))
    grad_weight = grad_matrices.reshape(len(weight), *kernel, -1).transpose(0, 3, 1, 2)
    return grad_x, grad_weight, grad_bias


def _add_patches(images: np.ndarray, grads: np.ndarray, stride: int) -> None:
    """Add patches (N, rows, OW, FH, FW, C) to the places of (N, H, W, C or more) they come from."""
    _, rows, columns, filter_h, filter_w, channels = grads.shape
    for p, q in np.ndindex(filter_h, filter_w):
        view = images[:, p : p + stride * rows : stride, q : q + stride * columns : stride]
        view[:, :rows, :columns, :channels] += grads[:, :, :, p, q]
