"""Dot products of some rows with many: a fully connected layer of a few images, or a small one.

A BLAS lays the weights out anew before it multiplies, which pays where each of them meets many
images. Here they are read as they lie, once. A tile (:func:`fastdl_lib.kernels.vectors.dot_tile`)
takes a few images times a few of the weights' rows along their whole length::

              w[0]    w[1]   ...   w[5]     a vector of each: from memory for the first images,
      x[0]   s[0,0]  s[0,1]       s[0,5]    from the core's cache (L2) for the next
      x[1]   s[1,0]  s[1,1]       s[1,5]
      ...                                   24 sums stay in registers, each of 16 parts (AVX-512),
      x[3]   s[3,0]  s[3,1]       s[3,5]    beside 4 vectors of x; 24 products from 10 loads

:mod:`fastdl_lib.kernels.rows` has an image in each place of a register, and is the faster way from
a whole register of them on. Here the sum of an image and a row is made in the same order whatever
else is computed: an image has the same output, bit for bit, in every batch.
"""

import numpy as np

from fastdl_lib.core.threads import CACHE_BYTES, in_parallel
from fastdl_lib.kernels import vectors
from fastdl_lib.kernels.compiled import compiled
from fastdl_lib.kernels.vectors import call


def fits(x: np.ndarray, weight: np.ndarray) -> bool:
    """Whether weights (out, in) meet few images, but more than one, or stay in the core's cache."""
    few = 1 < len(x) < vectors.lanes()
    return few or (vectors.lanes() > 0 and weight.nbytes <= CACHE_BYTES)


def product(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return x @ weight.T, (batch, out), of float32 without gaps in memory."""
    out = np.empty((len(x), len(weight)), np.float32)
    most, rows = vectors.dot_tile_shape(len(x))
    # Images in tiles of nearly one height: 10 are 4 + 3 + 3.
    images, longer = divmod(len(x), -(-len(x) // most))
    heights, lengths = (images, images + 1), (rows, len(weight) % rows or rows)
    tiles = tuple(vectors.dot_tile(n, r) for r in lengths for n in heights)
    terms = x.shape[1] // vectors.lanes()
    sizes = images, longer, rows, terms, terms * vectors.lanes()

    def work(part: slice) -> None:
        _rows_out(part.start, part.stop, tiles, *sizes, x, weight, out)

    in_parallel(work, -(-len(weight) // rows))
    return out


@compiled
def _rows_out(begin, end, tiles, images, longer, rows, terms, whole, x, w, out):
    """The rows of w from begin * rows to end * rows, or to the last."""
    x_row, w_row, out_row = x.strides[0], w.strides[0], out.strides[0]
    for block in range(begin, end):
        first, last = block * rows, min(len(w), (block + 1) * rows)
        kind = 0 if last - first == rows else 2
        n, left = 0, longer
        while n < len(x):
            tile, step = (tiles[kind + 1], images + 1) if left > 0 else (tiles[kind], images)
            at, to = np.intp(x[n].ctypes.data), np.intp(out[n].ctypes.data) + 4 * first
            if terms:
                call(tile, (at, x_row, np.intp(w[first].ctypes.data), w_row, terms, to, out_row))
            else:
                out[n : n + step, first:last] = 0
            for i in range(n, n + step):
                for f in range(first, last):
                    for k in range(whole, x.shape[1]):
                        out[i, f] += x[i, k] * w[f, k]
            n, left = n + step, left - 1
