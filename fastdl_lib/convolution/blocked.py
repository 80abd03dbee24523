"""im2col's product, block by block and channels last, so that no patch leaves the cache. CPU only.

The patches of some output rows, or of some small images, are laid out, multiplied and forgotten
before they leave the cache, instead of a matrix up to 25 times the input. The blocks are shared
out among threads; the result is channels last in memory. In float32 compiled loops stand for all of
this where the CPU has them (:mod:`fastdl_lib.kernels.direct`): they need no patches.
"""

import math

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from fastdl_lib.convolution.geometry import Geometry, channels_last
from fastdl_lib.core import threads
from fastdl_lib.core.arrays import wide
from fastdl_lib.core.threads import blas_threads_now, blocks, in_parallel, sum_in_order
from fastdl_lib.kernels import pixels
from fastdl_lib.kernels.compiled import suits


def _windows(x: np.ndarray, rows: slice, geometry: Geometry) -> np.ndarray:
    """What the filter sees at every position of some output rows: (N, rows, OW, FH, FW, C), a view
    of a padded, channels-last copy of the input rows that they need."""
    batch, channels, height, width = x.shape
    stride, padding = geometry.stride, geometry.padding
    first = rows.start * stride - padding
    last = (rows.stop - 1) * stride - padding + geometry.kernel[0]
    padded = np.zeros((batch, last - first, width + 2 * padding, channels), x.dtype)
    seen = max(0, min(last, height) - first)  # none where a block lies in the padding
    inside = padded[:, max(0, -first) : seen, padding : padding + width]
    inside[...] = x[:, :, max(0, first) : max(0, last)].transpose(0, 2, 3, 1)
    windows = sliding_window_view(padded, geometry.kernel, axis=(1, 2))[:, ::stride, ::stride]
    return windows.transpose(0, 1, 2, 4, 5, 3)


def _patches(windows: np.ndarray, group: int, group_channels: int) -> np.ndarray:
    """Copy one group's channels: (N, rows * OW, FH * FW * C / groups), a patch a row. An image is a
    product of its own: the order of a BLAS's sums may depend on the number of rows."""
    seen = windows[..., group * group_channels : (group + 1) * group_channels]
    return np.ascontiguousarray(seen).reshape(len(seen), math.prod(seen.shape[1:3]), -1)


def _filter_matrices(weight: np.ndarray, geometry: Geometry) -> np.ndarray:
    """(groups, K / groups, FH * FW * C / groups), a filter a row, in the order of a patch; a view
    where the weights are channels last."""
    return weight.transpose(0, 2, 3, 1).reshape(geometry.groups, geometry.group_filters, -1)


def _block_size(geometry: Geometry, matrices: np.ndarray) -> tuple[int, int]:
    """(images, output rows) whose patches stay in the cache: several images, or a part of one."""
    a_row, cache = geometry.out_w * matrices[0, 0].nbytes, threads.CACHE_BYTES
    return max(1, cache // (geometry.out_h * a_row)), min(geometry.out_h, max(1, cache // a_row))


def forward(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, geometry: Geometry
) -> np.ndarray:
    """Convolve; the result is channels last in memory."""
    if _is_compiled(x, geometry.group_filters):
        return _forward_compiled(x, weight, bias, geometry)
    out, out_h = channels_last(geometry.out_shape, x.dtype), geometry.out_h
    matrices = _filter_matrices(weight, geometry)
    images, rows = _block_size(geometry, matrices)
    blocks_an_image, workers = -(-out_h // rows), max(1, blas_threads_now())
    if len(x) < workers:  # too few images: give every thread equal parts of each
        blocks_an_image = min(out_h, workers * -(-blocks_an_image // workers))
        rows = -(-out_h // blocks_an_image)
        blocks_an_image = -(-out_h // rows)

    def work(part: slice) -> None:
        """Part counts blocks: whole images, or the parts of one after those of another."""
        first, block = divmod(part.start, blocks_an_image)
        here = slice(block * rows, min(out_h, (block + 1) * rows))
        these = slice(first, max(first + 1, part.stop // blocks_an_image))
        windows = _windows(x[these], here, geometry)
        for group, matrix in enumerate(matrices):
            made = _patches(windows, group, geometry.group_channels) @ matrix.T
            if bias is not None:
                made += bias.reshape(geometry.groups, -1)[group]
            filters = slice(group * len(matrix), (group + 1) * len(matrix))
            result = out[these, filters, here]
            result.transpose(0, 2, 3, 1)[...] = made.reshape(*windows.shape[:3], -1)

    in_parallel(work, len(x) * blocks_an_image, block=images if blocks_an_image == 1 else 1)
    return out


def backward(
    grad_out: np.ndarray, x: np.ndarray, weight: np.ndarray, geometry: Geometry, need_grad_x: bool
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """The gradients by x (None unless needed), weight and bias, with one block's patches at a
    time; those of weight (up to 1 MiB) and bias are sums over images in float64."""
    turned = geometry.turned(weight) if need_grad_x else None
    turns = turned is not None and _is_compiled(x, turned.group_filters)
    if _is_compiled(x, geometry.group_filters) and turns == need_grad_x:
        return _backward_compiled(grad_out, x, weight, geometry, turned)
    stride, padding, channels = geometry.stride, geometry.padding, geometry.group_channels
    (height, width), sums = x.shape[2:], wide(x.dtype)
    # Float16 is wide before it is multiplied: what is rounded to float16 is the result alone.
    matrices = _filter_matrices(weight, geometry).astype(sums, copy=False)
    images, rows = _block_size(geometry, matrices)
    # Large weights' sums of each image would take long to add up.
    are_apart = sums == np.float32 and matrices.nbytes <= threads.CACHE_BYTES
    grad_x = channels_last(x.shape, x.dtype) if need_grad_x else None
    totals: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def work(part: slice) -> None:
        total = np.zeros(matrices.shape, np.float64 if are_apart else sums)
        for these in blocks(part, images):
            size = (these.stop - these.start, height + 2 * padding, width + 2 * padding)
            padded = np.zeros((*size, x.shape[1]), sums)
            images_here = x[these].astype(sums, copy=False)
            for here in blocks(slice(0, geometry.out_h), rows):
                windows = _windows(images_here, here, geometry)
                grads = grad_out[these, :, here].transpose(0, 2, 3, 1).astype(sums, copy=False)
                grads = grads.reshape(len(grads), -1, geometry.groups, geometry.group_filters)
                for group, matrix in enumerate(matrices):
                    grads_here, patches = grads[:, :, group], _patches(windows, group, channels)
                    parts = len(patches) if are_apart else 1
                    columns = grads_here.reshape(parts, -1, len(matrix)).swapaxes(1, 2)
                    made = columns @ patches.reshape(parts, -1, matrix.shape[1])
                    total[group] += made.sum(axis=0, dtype=np.float64) if are_apart else made[0]
                    if need_grad_x:
                        grad_patches = grads_here @ matrix
                        seen = padded[:, here.start * stride :, :, group * channels :]
                        _add_patches(seen, grad_patches.reshape(*windows.shape[:5], -1), stride)
            if need_grad_x:
                inside = padded[:, padding : padding + height, padding : padding + width]
                grad_x[these] = inside.transpose(0, 3, 1, 2)
        totals[part.start] = total, grad_out[part].sum(axis=(0, 2, 3), dtype=np.float64)

    in_parallel(work, len(x))
    grad_matrices, grad_bias = sum_in_order(totals)
    grad_weight = grad_matrices.reshape(len(weight), *geometry.kernel, -1).transpose(0, 3, 1, 2)
    return grad_x, grad_weight, grad_bias


def _add_patches(images: np.ndarray, grads: np.ndarray, stride: int) -> None:
    """Add patches (N, rows, OW, FH, FW, C) to the places of (N, H, W, C or more) they come from."""
    _, rows, columns, filter_h, filter_w, channels = grads.shape
    for p, q in np.ndindex(filter_h, filter_w):
        view = images[:, p : p + stride * rows : stride, q : q + stride * columns : stride]
        view[:, :rows, :columns, :channels] += grads[:, :, :, p, q]


# --- the same in compiled loops, which need no patches --------------------------------------------


def _is_compiled(x: np.ndarray, group_filters: int) -> bool:
    """Whether the loops of :mod:`fastdl_lib.kernels.direct` take this convolution."""
    if x.dtype != np.float32:
        return False
    from fastdl_lib.kernels import direct  # Numba takes a while to import

    return direct.fits(group_filters)


def _pixels(x: np.ndarray) -> np.ndarray:
    """Images as (N, H, W, C) without gaps."""
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


def _forward_compiled(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, geometry: Geometry
) -> np.ndarray:
    from fastdl_lib.kernels import direct

    out = channels_last(geometry.out_shape, x.dtype)
    start = np.zeros(len(weight), x.dtype) if bias is None else np.ascontiguousarray(bias)
    by_term = weight.reshape(geometry.groups, -1, *weight.shape[1:]).transpose(0, 3, 4, 2, 1)
    pixels_out, how = out.transpose(0, 2, 3, 1), (geometry.stride, geometry.padding)
    direct.convolve(_pixels(x), by_term, start, pixels_out, *how)
    return out


def _backward_compiled(
    grad_out: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    geometry: Geometry,
    turned: Geometry | None,
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """``turned``: the convolution that makes grad_x; None where nobody asks for it."""
    from fastdl_lib.kernels import direct

    grads, how = _pixels(grad_out), (geometry.groups, geometry.stride, geometry.padding)
    grad_weight = direct.gradient_by_weight(grads, _pixels(x), geometry.kernel, *how)
    grad_weight = grad_weight.transpose(0, 4, 1, 2, 3).reshape(len(weight), *geometry.kernel, -1)
    grad_x = None
    if turned is not None:
        grad_x = _forward_compiled(grad_out, geometry.turn(weight), None, turned)
    return grad_x, grad_weight.transpose(0, 3, 1, 2), channel_sums(grads)


def channel_sums(grads: np.ndarray) -> np.ndarray:
    """Add up (N, H, W, C) by channels, (C,), in float64; the same bits every time."""
    sums: dict[int, tuple[np.ndarray]] = {}

    def work(part: slice) -> None:
        sums[part.start] = (np.zeros(grads.shape[-1]),)
        if suits(grads):
            pixels.channel_sums()(grads[part].reshape(-1, grads.shape[-1]), *sums[part.start])
        else:
            grads[part].sum(axis=(0, 1, 2), dtype=np.float64, out=sums[part.start][0])

    in_parallel(work, len(grads), row_bytes=grads[0].nbytes)
    return sum_in_order(sums)[0]
