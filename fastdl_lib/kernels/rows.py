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

from fastdl_lib.core.threads import in_parallel
from fastdl_lib.kernels import vectors
from fastdl_lib.kernels.compiled import compiled, suits
from fastdl_lib.kernels.vectors import call

_MOST_ROWS = 64  # beyond, laying out pays
_TERMS = 1024  # in a block: of 64 images they take 256 KiB of the cache


def fits(x: np.ndarray, weight: np.ndarray) -> bool:
    """Whether :func:`product` takes x (batch, in) and weight (out, in), and is the faster way: not
    for one image, which the BLAS reads as fast, nor for weights that stay in the cache."""
    few = 2 <= len(x) <= _MOST_ROWS and bool(vectors.lanes())
    return few and suits(x, weight) and weight.nbytes > vectors.cache_bytes()


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
