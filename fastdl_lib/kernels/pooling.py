"""The largest value of each window, and its way back.

A few channels of a window at a time: the largest value so far stays in a register while those below
the window are read, one load each, and is stored once. On the way back what stays there is the
gradient that nobody has taken yet. NumPy's version, which goes through the whole images for every
place below a window, stands in :class:`fastdl_lib.nn.layers.MaxPool2d`.
"""

import functools

import numpy as np
from llvmlite import ir

from fastdl_lib.kernels import vectors
from fastdl_lib.kernels.compiled import compiled
from fastdl_lib.kernels.vectors import ADDRESS, FLOAT, call


def largest(x: np.ndarray, out: np.ndarray, kernel: int, stride: int) -> None:
    """Fill out (N, OH, OW, C) with the largest value of each window of x (N, H, W, C), NaN where it
    holds one."""
    _windows(*_tiles(_largest, kernel, x.shape[3]), x, x, out, out, stride)


def largest_back(
    x: np.ndarray,
    out: np.ndarray,
    grad_out: np.ndarray,
    grad_x: np.ndarray,
    kernel: int,
    stride: int,
) -> None:
    """Fill grad_x (N, H, W, C), the way back of :func:`largest`: the first of equal values in a
    window gets the gradient."""
    grad_x[...] = 0
    _windows(*_tiles(_largest_back, kernel, x.shape[3]), x, grad_x, out, grad_out, stride)


def _tiles(tile, kernel, channels):
    """The channels go into vectors of ``size``, and what is left into a last one."""
    size = vectors.lanes()
    return size, tile(kernel, size), tile(kernel, channels % size or size)


@compiled
def _windows(size, tile, last, x, grad_x, out, grad_out, stride):
    images, height, width, channels = out.shape
    line, pixel = x.strides[1:3]
    for n in range(images):
        for i in range(height):
            for j in range(width):
                a, da = x[n, i * stride, j * stride], grad_x[n, i * stride, j * stride]
                b, db = out[n, i, j], grad_out[n, i, j]
                for c in range(0, channels, size):
                    at, grad = np.intp(a.ctypes.data) + 4 * c, np.intp(da.ctypes.data) + 4 * c
                    to, back = np.intp(b.ctypes.data) + 4 * c, np.intp(db.ctypes.data) + 4 * c
                    of = tile if c + size <= channels else last
                    call(of, (at, grad, line, pixel, to, back))


@functools.cache
def _largest(kernel: int, channels: int) -> int:
    """Return the address of ``tile(x, _, line, pixel, out, _)``, for one window."""
    writer = vectors.Writer(6)
    build, kind = writer.build, ir.VectorType(FLOAT, channels)
    x, _, line, pixel, out, _ = writer.function.args

    def grow(row: ir.Value, most: ir.Value) -> list[ir.Value]:
        for q in range(kernel):
            value = writer.load(writer.place(row, pixel, q), kind)
            is_nan = build.fcmp_unordered("uno", most, most)
            keep = build.or_(build.fcmp_ordered(">=", most, value), is_nan)
            most = build.select(keep, most, value)
        return [build.add(row, line), most]

    _, most = writer.loop(ADDRESS(kernel), [x, writer.load(x, kind)], grow)
    writer.store(most, out)
    return writer.compiled()


@functools.cache
def _largest_back(kernel: int, channels: int) -> int:
    """Return the address of ``tile(x, grad_x, line, pixel, out, grad_out)``, for one window."""
    writer = vectors.Writer(6)
    build, kind = writer.build, ir.VectorType(FLOAT, channels)
    x, grad_x, line, pixel, out, grad_out = writer.function.args
    most, nothing = writer.load(out, kind), ir.Constant(kind, None)

    def grow(row: ir.Value, grads: ir.Value, left: ir.Value) -> list[ir.Value]:
        for q in range(kernel):
            hit = build.fcmp_ordered("==", writer.load(writer.place(row, pixel, q), kind), most)
            place = writer.place(grads, pixel, q)
            gets = build.select(hit, left, nothing)
            writer.store(build.fadd(writer.load(place, kind), gets), place)
            left = build.select(hit, nothing, left)
        return [build.add(row, line), build.add(grads, line), left]

    writer.loop(ADDRESS(kernel), [x, grad_x, writer.load(grad_out, kind)], grow)
    return writer.compiled()
