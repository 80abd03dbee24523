"""Winograd's convolution a block of tiles at a time, so that it stays in a core's cache.

For each block, three loops in turn::

    images  --windows_in-->  V [place][tile][channel]    t x t places of a tile
    V x U   ---products--->  M [place][tile][filter]     one product of matrices for each place
    M       --windows_out->  images

V and M are used again for every block; the images are read once and written once. The small
matrices of the method (:mod:`fastdl_lib.convolution.winograd`, which holds NumPy's version of all
this) are applied to vectors of channels, in registers: down the columns of a window into a scratch
in the core's smallest cache, then along its rows. Back go the same loops with the matrices turned.

The loops compute with addresses that nothing checks. They are right for the buffers of
:class:`_Tiling`, for float32 without gaps, and for channels and filters that :func:`fits`.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import as_strided

from fastdl_lib.core.threads import blocks, in_parallel, sum_in_order
from fastdl_lib.kernels import vectors
from fastdl_lib.kernels.compiled import compiled
from fastdl_lib.kernels.vectors import call

Pair = tuple[int, int]  # down and along an image
Matrices = tuple[np.ndarray, np.ndarray]  # for the columns of a window or tile, and for its rows


def fits(channels: int, filters: int) -> bool:
    """Whether the loops take that many channels and filters in a group: whole vectors of both."""
    lanes = vectors.lanes()
    return bool(lanes) and channels % lanes == 0 and filters % lanes == 0


def convolve(
    x: np.ndarray,
    filters: np.ndarray,
    bias: np.ndarray,
    out: np.ndarray,
    transforms: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    padding: int,
) -> bool:
    """Fill out (N, OH, OW, K) with the convolution of x (N, H, W, C), stride 1, and say whether all
    in it are finite numbers.

    Args:
        filters: (r, r, groups, C / groups, K / groups).
        bias: (K,).
        transforms: B^T, G and A^T of each direction.
        padding: zeros on the upper and left side; on the others as many as are needed.
    """
    into, of_filters, out_of = zip(*transforms, strict=True)
    rows, width = vectors.tile_shape(filters.shape[-1])
    lanes = vectors.lanes()
    panels = filters.reshape(*filters.shape[:-1], -1, width * lanes).swapaxes(3, 4)
    panels = on_two_axes(of_filters, np.ascontiguousarray(panels))
    panels = panels.reshape(-1, *panels.shape[2:])
    tiling = _Tiling(x, out, into, out_of, padding, rows, panels.nbytes)
    tile, offsets = vectors.product_tile(rows, width), 4 * np.arange(panels.shape[3])
    read, write = tiling.read(into), tiling.write(out_of, watched=True)
    finite: list[bool] = []

    def work(part: slice) -> None:
        inputs, outputs, scratch = tiling.buffers()
        for block in blocks(part, tiling.block):
            span = block.start, block.stop - block.start
            windows_in(lanes, x, inputs, scratch, *span, tiling.places, read)
            products(tile, rows, panels, inputs, outputs, offsets, span[1])
            windows_out(lanes, outputs, out, bias, scratch, *span, tiling.places, write)
        finite.append(not scratch[2].any())  # NaN counts as any

    in_parallel(work, tiling.tiles, least=rows)
    return all(finite)


def gradient_by_filters(
    grad_out: np.ndarray,
    x: np.ndarray,
    groups: int,
    transforms: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    padding: int,
) -> np.ndarray:
    """Return the gradient by the transformed filters of :func:`convolve`, (t, t, groups, ...)."""
    into, _, out_of = zip(*transforms, strict=True)
    channels, filters = x.shape[-1] // groups, grad_out.shape[-1] // groups
    rows, width = vectors.tile_shape(filters, channels)
    places = [len(m) for m in into]
    size = 4 * math.prod(places) * groups * channels * filters
    tiling = _Tiling(x, grad_out, into, out_of, padding, rows, size)  # read and written
    read, back = tiling.read(into), tiling.write(tuple(m.T for m in out_of))
    lanes, tile = vectors.lanes(), vectors.product_tile(rows, width)
    sums: dict[int, tuple[np.ndarray]] = {}

    def work(part: slice) -> None:
        inputs, outputs, scratch = tiling.buffers()
        total = np.zeros((math.prod(places), groups, channels, filters), np.float32)
        offsets = 4 * x.shape[-1] * np.arange(tiling.block)
        for block in blocks(part, tiling.block):
            span = block.start, block.stop - block.start
            windows_in(lanes, x, inputs, scratch, *span, tiling.places, read)
            windows_in(lanes, grad_out, outputs, scratch, *span, tiling.places, back)
            products_back(tile, rows, width * lanes, inputs, outputs, total, offsets, span[1])
        sums[part.start] = (total,)

    in_parallel(work, tiling.tiles, least=rows)
    return sum_in_order(sums)[0].reshape(*places, groups, channels, filters)


def on_two_axes(matrices: Matrices, values: np.ndarray) -> np.ndarray:
    """Apply one matrix to axis 0 and one to axis 1 of values (a, b, ...), without gaps in memory:
    one window whose vectors are all that lies behind those axes."""
    rows, columns = (len(m) for m in matrices)
    size, lanes = values[0, 0].size, vectors.lanes()
    flat = values.reshape(1, *values.shape[:2], size)
    out = np.empty((rows * columns, 1, size), np.float32)
    how = values.shape[:2], (1, 1), (1, 1), 0, *_addresses(matrices)
    places = max(rows, len(values)) * max(columns, values.shape[1])

    def work(part: slice) -> None:
        part = slice(part.start * lanes, part.stop * lanes)
        scratch = np.empty((2, places * lanes), np.float32)
        ours = flat[..., part], out[..., part]
        windows_in(lanes, *ours, scratch, 0, 1, (rows, columns), how)

    in_parallel(work, size // lanes, least=64)
    return out.reshape(rows, columns, *values.shape[2:])


class _Tiling:
    """How images are cut into tiles, and how many of these make a block."""

    def __init__(
        self,
        x: np.ndarray,
        out: np.ndarray,
        into: Matrices,
        out_of: Matrices,
        padding: int,
        rows: int,
        least_bytes: float,
    ) -> None:
        """``rows``: of the product's tile, which blocks are whole numbers of; ``least_bytes``: of a
        block, since each goes through all the filters: then it has as much to move itself."""
        self.places: Pair = tuple(len(m) for m in into)
        self.outputs: Pair = tuple(len(m) for m in out_of)
        sizes = zip(out.shape[1:3], self.outputs, strict=True)
        self.grid: Pair = tuple(-(-size // m) for size, m in sizes)
        self.padding, self.tiles = padding, len(x) * math.prod(self.grid)
        self._widths = x.shape[-1], out.shape[-1]
        # V and M within the core's own cache, beside a panel of filters and the images that pass
        # (0.7 was measured), or larger where the filters are.
        target = max(0.7 * vectors.cache_bytes(), least_bytes)
        count = min(self.tiles, target / (4 * math.prod(self.places) * sum(self._widths)))
        self.block = rows * max(1, int(count / rows))

    def read(self, matrices: Matrices) -> tuple:
        """What :func:`windows_in` is told of the windows that become tiles."""
        return self.places, self.outputs, self.grid, self.padding, *_addresses(matrices)

    def write(self, matrices: Matrices, watched: bool = False) -> tuple:
        """What is told of the windows that tiles become: they lie side by side."""
        return self.outputs, self.outputs, self.grid, 0, *_addresses(matrices, watched)

    def buffers(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """V, M, and what a window is worked on and watched in, for one thread."""
        count, line = math.prod(self.places), 16  # places on different lines of the cache
        planes = []
        for width in self._widths:
            flat = np.empty((count, self.block * width + line), np.float32)
            flat = flat[:, : self.block * width]
            strides = flat.strides[0], 4 * width, 4
            planes.append(as_strided(flat, (count, self.block, width), strides))
        return *planes, np.zeros((3, count * vectors.lanes()), np.float32)


def _addresses(matrices: Matrices, watched: bool = False) -> tuple[int, int, int]:
    down, along = (tuple(map(tuple, m.tolist())) for m in matrices)
    apply = vectors.matrix_on_vectors
    return apply(down), apply(along, watched), apply(((1.0,),))


@compiled
def windows_in(lanes, x, planes, scratch, first, count, made, how):
    """Transform the windows of tiles first ... first + count of (N, H, W, C) into planes."""
    window, step, grid, padding, down, along, copy = how
    _, height, length, channels = x.shape
    line, pixel = x.strides[1], x.strides[2]
    size, plane = 4 * lanes, planes.strides[0]
    cut = np.intp(scratch.ctypes.data)
    half = cut + scratch.strides[0]
    rows, columns = window
    for u in range(count):
        image, place = divmod(first + u, grid[0] * grid[1])
        i = place // grid[1] * step[0] - padding
        j = place % grid[1] * step[1] - padding
        inside = i >= 0 and j >= 0 and i + rows <= height and j + columns <= length
        for c in range(0, 4 * channels, size):
            at = np.intp(x.ctypes.data) + image * x.strides[0] + i * line + j * pixel + c
            from_row, from_column = line, pixel
            if not inside:
                for p in range(rows):
                    for q in range(columns):
                        there = 0 <= i + p < height and 0 <= j + q < length
                        source = at + p * line + q * pixel if there else 0
                        call(copy, (source, 0, cut + (p * columns + q) * size, 0, 0))
                at, from_row, from_column = cut, columns * size, size
            for q in range(columns):
                to = half + q * size
                call(down, (at + q * from_column, from_row, to, columns * size, 0))
            to = np.intp(planes.ctypes.data) + u * planes.strides[1] + c
            for p in range(made[0]):
                source = half + p * columns * size
                call(along, (source, size, to + p * made[1] * plane, plane, 0))


@compiled
def windows_out(lanes, planes, x, start, scratch, first, count, made, how):
    """Transform planes into the windows, without what hangs over the edge; start is added. What is
    no finite number makes a NaN in scratch[2], which holds zeros else."""
    window, step, grid, _, down, along, copy = how
    _, height, length, channels = x.shape
    line, pixel = x.strides[1], x.strides[2]
    size, plane = 4 * lanes, planes.strides[0]
    cut = np.intp(scratch.ctypes.data)
    half, seen = cut + scratch.strides[0], cut + 2 * scratch.strides[0]
    rows, columns = window
    for u in range(count):
        image, place = divmod(first + u, grid[0] * grid[1])
        i, j = place // grid[1] * step[0], place % grid[1] * step[1]
        inside = i + rows <= height and j + columns <= length
        for c in range(0, 4 * channels, size):
            source = np.intp(planes.ctypes.data) + u * planes.strides[1] + c
            for q in range(made[1]):
                to = half + q * size
                call(down, (source + q * plane, made[1] * plane, to, made[1] * size, 0))
            at = np.intp(x.ctypes.data) + image * x.strides[0] + i * line + j * pixel + c
            to, to_row, to_column = at, line, pixel
            if not inside:
                to, to_row, to_column = cut, columns * size, size
            for p in range(rows):
                source = half + p * made[1] * size
                begin = np.intp(start.ctypes.data) + c
                call(along, (source, size, to + p * to_row, to_column, begin, seen))
            if not inside:
                for p in range(min(rows, height - i)):
                    for q in range(min(columns, length - j)):
                        source = cut + (p * columns + q) * size
                        call(copy, (source, 0, at + p * line + q * pixel, 0, 0))


@compiled
def products(tile, rows, filters, inputs, outputs, offsets, count):
    """M = V x U: of each place and group, a few tiles' rows and a panel of filters at a time."""
    places, groups, panels, channels, panel = filters.shape
    terms = np.intp(offsets.ctypes.data)
    a_row, c_row = inputs.strides[1], outputs.strides[1]
    for p in range(places):
        for g in range(groups):
            for k in range(panels):
                b = np.intp(filters[p, g, k].ctypes.data)
                for u in range(0, count, rows):
                    a = np.intp(inputs[p, u].ctypes.data) + 4 * g * channels
                    c = np.intp(outputs[p, u].ctypes.data) + 4 * (g * panels + k) * panel
                    call(tile, (a, a_row, terms, channels, b, 4 * panel, 0, 0, c, c_row))


@compiled
def products_back(tile, rows, panel, inputs, outputs, grad_filters, offsets, count):
    """U's gradient grows by V^T x M: a few channels' rows and a panel of filters at a time."""
    places, groups, channels, filters = grad_filters.shape
    c_row, b_row = grad_filters.strides[2], outputs.strides[1]
    terms = np.intp(offsets.ctypes.data)
    for p in range(places):
        for g in range(groups):
            for k in range(0, filters, panel):
                b = np.intp(outputs[p, 0].ctypes.data) + 4 * (g * filters + k)
                for i in range(0, channels, rows):
                    a = np.intp(inputs[p, 0].ctypes.data) + 4 * (g * channels + i)
                    c = np.intp(grad_filters[p, g, i].ctypes.data) + 4 * k
                    call(tile, (a, 4, terms, count, b, b_row, c, c_row, c, c_row))
