"""A product of a few rows with a large matrix: a fully connected layer and up to 64 images.

Such a product takes as long as reading the weights does, if nothing else is done with them. A BLAS
first lays both sides out anew; here the weights come straight from memory into the sums::

    weight [out][in]    a tile's rows, walked along "in": each value is spread over a register
    images [in][batch]  turned, filled up with zeros to whole vectors; a block stays in the cache
    sums   [out][batch] in registers for a block of "in"; the blocks' sums are added up

Sums of sums lose fewer digits than one long one. An image's are made in one order, whatever the
batch and the threads. The loops compute with addresses that nothing checks: :func:`fits` says what
they take.
"""

import numpy as np

from fastdl_lib.core.threads import blocks, in_parallel
from fastdl_lib.kernels import vectors
from fastdl_lib.kernels.compiled import compiled, suits
from fastdl_lib.kernels.vectors import call

_MOST_ROWS = 64  # beyond, laying out pays
_TERMS = 1024  # in a block: of 64 images they take 256 KiB of the cache


def fits(x: np.ndarray, weight: np.ndarray) -> bool:
    """Whether the loops take x (batch, in) and weight (out, in), and are the faster way: not for
    one image, which the BLAS reads as fast, nor for weights that stay in the cache."""
    few = 2 <= len(x) <= _MOST_ROWS and vectors.lanes() and x.shape[1] % vectors.lanes() == 0
    return bool(few) and suits(x, weight) and weight.nbytes > vectors.cache_bytes()


def product(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return x @ weight.T, (batch, out), of float32 that :func:`fits`."""
    lanes, batch = vectors.lanes(), len(x)
    columns = np.zeros((x.shape[1], -(-batch // lanes) * lanes), np.float32)
    columns[:, :batch] = x.T
    rows, width = vectors.tile_shape(columns.shape[1])
    offsets = 4 * np.arange(_TERMS)
    out = np.empty((batch, len(weight)), np.float32)

    def work(part: slice) -> None:
        made = np.zeros((part.stop - part.start, columns.shape[1]), np.float32)
        sums = np.zeros((rows, width * lanes), np.float32)
        last = vectors.product_tile(len(made) % rows or rows, width)
        tiles = vectors.product_tile(rows, width), last
        _blocks(tiles, weight[part], columns, offsets, sums, _ZEROS, made)
        out[:, part] = made[:, :batch].T

    in_parallel(work, len(weight), least=rows)
    return out


def outer_product(grad_out: np.ndarray, x: np.ndarray, out: np.ndarray) -> None:
    """Fill out (features, in) with grad_out.T @ x, the gradient by the weights; ``grad_out`` is
    (batch, features), some columns of a whole one. Each value is written once."""
    rows, width = vectors.tile_shape(x.shape[1])
    panel = width * vectors.lanes()
    tiles = tuple(vectors.product_tile(n, width) for n in (rows, len(out) % rows or rows))
    block = panel * max(1, vectors.cache_bytes() // 4 // (len(x) * panel * 4))
    offsets = grad_out.strides[0] * np.arange(len(x))
    for part in blocks(slice(0, x.shape[1]), block):
        _outer(tiles, rows, panel, grad_out, x[:, part], offsets, _ZEROS, out[:, part])


_ZEROS = np.zeros(64, np.float32)  # where the sums of a tile's row begin


@compiled
def _blocks(tiles, weight, columns, offsets, sums, zeros, out):
    rows, panel = sums.shape
    where, start = np.intp(offsets.ctypes.data), np.intp(zeros.ctypes.data)
    line, b_step, c_row = weight.strides[0], columns.strides[0], sums.strides[0]
    for k in range(0, len(columns), len(offsets)):
        terms = min(len(offsets), len(columns) - k)
        for i in range(0, len(out), rows):
            count = min(rows, len(out) - i)
            tile = tiles[0] if count == rows else tiles[1]
            for c in range(0, columns.shape[1], panel):
                a, b = np.intp(weight[i, k:].ctypes.data), np.intp(columns[k, c:].ctypes.data)
                to = np.intp(sums.ctypes.data)
                call(tile, (a, line, where, terms, b, b_step, start, 0, to, c_row))
                for row in range(count):
                    for one in range(panel):
                        out[i + row, c + one] += sums[row, one]


@compiled
def _outer(tiles, rows, panel, grad_out, x, offsets, zeros, out):
    where, start = np.intp(offsets.ctypes.data), np.intp(zeros.ctypes.data)
    b_step, c_row = x.strides[0], out.strides[0]
    for i in range(0, len(out), rows):
        tile = tiles[0] if i + rows <= len(out) else tiles[1]
        a = np.intp(grad_out.ctypes.data) + 4 * i
        for c in range(0, x.shape[1], panel):
            b, to = np.intp(x[0, c:].ctypes.data), np.intp(out[i, c:].ctypes.data)
            call(tile, (a, 4, where, len(x), b, b_step, start, 0, to, c_row))
