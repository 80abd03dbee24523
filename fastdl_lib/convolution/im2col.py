"""Convolution as one large matrix product: every patch under the filter laid out as a column.

Source: Chellapilla, Puri, Simard, "High performance convolutional neural networks for document
processing", 2006.
"""

from typing import Any

import numpy as np

from fastdl_lib.convolution.geometry import Geometry, places, tap_views
from fastdl_lib.core.arrays import array_module, wide

Array = Any  # numpy.ndarray or cupy.ndarray


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

    >>> x = np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3)
    >>> im2col(x, (2, 2))[0].astype(int).tolist()  # 4 patches of 4 pixels
    [[0, 1, 3, 4], [1, 2, 4, 5], [3, 4, 6, 7], [4, 5, 7, 8]]
    """
    xp = array_module(x)
    (batch, channels, _, _), window = places(x.shape, kernel, stride, padding)
    filter_h, filter_w, stride, padding, out_h, out_w = window
    if padding:
        x = xp.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    columns = xp.empty((batch, channels, filter_h, filter_w, out_h, out_w), dtype=x.dtype)
    # FH * FW slice copies instead of a loop over pixels.
    for p, q, view in tap_views(x, (filter_h, filter_w), stride):
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
        (N, C, H, W) of the same dtype. A pixel that lies in m patches holds the sum of m entries,
        of float16 added up in float32.

    >>> ones = np.ones((1, 4, 4), np.float32)
    >>> col2im(ones, (1, 1, 3, 3), (2, 2))[0, 0].astype(int).tolist()
    [[1, 2, 1], [2, 4, 2], [1, 2, 1]]
    """
    xp = array_module(columns)
    (batch, channels, height, width), window = places(input_shape, kernel, stride, padding)
    filter_h, filter_w, stride, padding, out_h, out_w = window
    expected = (batch, channels * filter_h * filter_w, out_h * out_w)
    if columns.shape != expected:
        raise ValueError(
            f"columns of an input {tuple(input_shape)} with kernel {filter_h, filter_w}, "
            f"stride {stride}, padding {padding} have the shape {expected}, got {columns.shape}."
        )
    columns = columns.reshape(batch, channels, filter_h, filter_w, out_h, out_w)
    sums = np.float32 if columns.dtype == np.float16 else columns.dtype
    image = xp.zeros((batch, channels, height + 2 * padding, width + 2 * padding), dtype=sums)
    for p, q, view in tap_views(image, (filter_h, filter_w), stride):
        view += columns[:, :, p, q]
    image = image[:, :, padding : padding + height, padding : padding + width]
    return image.astype(columns.dtype, copy=False)


def _columns_and_matrices(x: Array, weight: Array, geometry: Geometry) -> tuple[Array, Array]:
    """(N, groups, C / groups * FH * FW, OH * OW) and (groups, K / groups, C / groups * FH * FW)."""
    columns = im2col(x, geometry.kernel, geometry.stride, geometry.padding)
    columns = columns.reshape(len(x), geometry.groups, -1, columns.shape[2])
    return columns, weight.reshape(geometry.groups, geometry.group_filters, -1)


def forward(x: Array, weight: Array, bias: Array | None, geometry: Geometry) -> Array:
    """Convolve as one matrix product an image and group: the weights times the columns."""
    columns, matrices = _columns_and_matrices(x, weight, geometry)
    out = array_module(x).matmul(matrices, columns).reshape(geometry.out_shape)
    if bias is not None:
        out += bias[:, None, None]
    return out


def backward(
    grad_out: Array, x: Array, weight: Array, geometry: Geometry, need_grad_x: bool
) -> tuple[Array | None, Array, Array]:
    """The gradients by x (None unless needed), weight and bias. The columns are made again: that
    costs a copy and saves keeping up to 25 times the input between forward and backward."""
    xp, dtype, sums = array_module(x), x.dtype, wide(x.dtype)
    # What float16 products are made of is wide from the start, and results are rounded once.
    x, weight, grad = (array.astype(sums, copy=False) for array in (x, weight, grad_out))
    columns, matrices = _columns_and_matrices(x, weight, geometry)
    grad_bias = grad.sum(axis=(0, 2, 3)).astype(dtype, copy=False)
    grad = xp.ascontiguousarray(grad)
    grad = grad.reshape(len(x), geometry.groups, geometry.group_filters, -1)
    grad_matrices = xp.zeros(matrices.shape, sums)
    for image_grad, image_columns in zip(grad, columns, strict=True):
        grad_matrices += image_grad @ image_columns.transpose(0, 2, 1)
    grad_x = None
    if need_grad_x:
        grad_columns = xp.matmul(matrices.transpose(0, 2, 1), grad)
        grad_columns = grad_columns.reshape(len(x), -1, grad_columns.shape[-1])
        place = geometry.kernel, geometry.stride, geometry.padding
        grad_x = col2im(grad_columns, geometry.x_shape, *place).astype(dtype, copy=False)
    return grad_x, grad_matrices.reshape(weight.shape).astype(dtype, copy=False), grad_bias
