"""Loops over pixels whose channels lie side by side, such as normalising and its way back.

Each inner loop goes over the channels of one pixel, 4 to 16 of them at once in a vector register,
and all that is made of a pixel on the way stays in the core's smallest cache: the image is read
once and written once. NumPy goes through the whole image for every operation; its version stands in
:mod:`fastdl_lib.nn.norms` and :mod:`fastdl_lib.nn.layers`, for GPUs and other dtypes too.
"""

import functools
from collections.abc import Callable

import numpy as np

from fastdl_lib.kernels.compiled import compiled


@functools.cache
def response_norm(size: int) -> Callable[..., None]:
    """Return ``loop(x, out, alpha, k)`` for local response normalisation with beta = 0.75.

    x, out: (pixels, channels); alpha, k: np.float32. The squares of a pixel stand in a row with
    zeros at both ends, so that ``size`` neighbours are added without a question at the edges; as
    ``size`` is known when this is compiled, those additions become straight code.
    """
    reach = size // 2

    @compiled
    def loop(x, out, alpha, k):
        pixels, channels = x.shape
        square = np.zeros(channels + 2 * reach, x.dtype)
        for p in range(pixels):
            for c in range(channels):
                square[reach + c] = x[p, c] * x[p, c]
            for c in range(channels):
                energy = square[c]
                for step in range(1, size):
                    energy += square[c + step]
                root = np.sqrt(k + alpha * energy)
                out[p, c] = x[p, c] / (root * np.sqrt(root))  # two roots for one power

    return loop


@functools.cache
def response_norm_back(size: int) -> Callable[..., None]:
    """Return ``loop(x, grad_out, grad_x, alpha, k, factor)``, the way back of
    :func:`response_norm`; factor is 2 * alpha * beta, all arrays (pixels, channels)."""
    reach = size // 2

    @compiled
    def loop(x, grad_out, grad_x, alpha, k, factor):
        pixels, channels = x.shape
        square = np.zeros(channels + 2 * reach, x.dtype)
        ratio = np.zeros(channels + 2 * reach, x.dtype)
        divided = np.empty(channels, x.dtype)
        for p in range(pixels):
            for c in range(channels):
                square[reach + c] = x[p, c] * x[p, c]
            for c in range(channels):
                energy = square[c]
                for step in range(1, size):
                    energy += square[c + step]
                energy = k + alpha * energy
                root = np.sqrt(energy)
                divided[c] = grad_out[p, c] / (root * np.sqrt(root))
                ratio[reach + c] = divided[c] / energy * x[p, c]
            for c in range(channels):
                shared = ratio[c]
                for step in range(1, size):
                    shared += ratio[c + step]
                grad_x[p, c] = divided[c] - factor * shared * x[p, c]

    return loop


@functools.cache
def where_positive() -> Callable[..., None]:
    """Return ``loop(grad_out, out, grad_x)``, the way back of a maximum with 0: the gradient, times
    0 where the output is; all in a row."""

    @compiled
    def loop(grad_out, out, grad_x):
        for i in range(len(out)):
            grad_x[i] = grad_out[i] * (np.float32(1) if out[i] > 0 else np.float32(0))

    return loop


@functools.cache
def channel_sums() -> Callable[..., None]:
    """Return ``loop(x, out)``: add x (pixels, channels) up by channels into float64 (channels,)."""

    @compiled
    def loop(x, out):
        for p in range(x.shape[0]):
            for c in range(x.shape[1]):
                out[c] += x[p, c]

    return loop


@functools.cache
def pixels_unseen() -> Callable[..., None]:
    """Return ``loop(x, out, values, height, width, stride, padding)``: where the windows of an
    output (N, OH, OW, K) on x (N, H, W, C) hold nothing but zeros, it becomes values (groups, K /
    groups), unless it is no finite number. A pixel's first value but zero ends the search there."""

    @compiled
    def loop(x, out, values, height, width, stride, padding):
        images, rows, columns, channels = x.shape
        groups, filters = values.shape
        channels //= groups
        empty = np.empty((rows, columns), np.bool_)
        for n in range(images):
            for g in range(groups):
                for i in range(rows):
                    for j in range(columns):
                        c, end = g * channels, (g + 1) * channels
                        while c < end and x[n, i, j, c] == 0:
                            c += 1
                        empty[i, j] = c == end
                for i in range(out.shape[1]):
                    top = i * stride - padding
                    for j in range(out.shape[2]):
                        left, unseen = j * stride - padding, True
                        for p in range(max(0, top), min(rows, top + height)):
                            for q in range(max(0, left), min(columns, left + width)):
                                unseen = unseen and empty[p, q]
                            if not unseen:
                                break
                        if unseen:
                            for k in range(filters):
                                if np.isfinite(out[n, i, j, g * filters + k]):
                                    out[n, i, j, g * filters + k] = values[g, k]

    return loop
