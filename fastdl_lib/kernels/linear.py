"""Fully connected layers of few images, or of few weights: x (batch, in) by weight (out, in).

A BLAS lays both sides out anew before it multiplies, which pays where each weight meets many
images. Here the weights are read as they lie, once, and go straight into the sums. Two kinds of
tiles do that. *Dots*, for fewer images than a register has places, and for weights that stay in the
cache (:func:`fastdl_lib.kernels.vectors.dot_tile`)::

              w[0]    w[1]   ...   w[5]     a vector of each: from memory for the first images,
      x[0]   s[0,0]  s[0,1]       s[0,5]    from the core's own cache (L2) for the next
      x[1]   s[1,0]  s[1,1]       s[1,5]
      ...                                   24 sums in registers, each of 16 parts (AVX-512) that
      x[3]   s[3,0]  s[3,1]       s[3,5]    are added up at the end; 24 products from 10 loads

*Columns*, for a whole register of images and more, have an image in each place of a register, so
that nothing is left to add up (:func:`fastdl_lib.kernels.vectors.product_tile`)::

    weight [out][in]    a tile's rows, walked along "in": each value is spread over a register
    images [in][batch]  turned, filled up with zeros to whole vectors; a block stays in the cache
    sums   [out][batch] in registers for a block of "in"; the blocks' sums are added up

Either way the sum of an image and a row is made in one order, whatever else is computed: an image
has the same output, bit for bit, in every batch that takes the same way, by any number of threads.
"""

import numpy as np

from fastdl_lib.core.threads import CACHE_BYTES, blocks, in_parallel
from fastdl_lib.kernels import vectors
from fastdl_lib.kernels.compiled import compiled, suits
from fastdl_lib.kernels.vectors import call

# These decide how sums are rounded, so they are the same on every machine.
_MOST_IMAGES = 64  # beyond, laying out pays
_TERMS = 1024  # in a block of columns: of 64 images they take 256 KiB of the cache


def product(x: np.ndarray, weight: np.ndarray) -> np.ndarray | None:
    """Return x @ weight.T, (batch, out), in float32; None where NumPy is to do it: for arrays that
    do not suit, without tiles for this CPU, and where the BLAS is as fast or faster (for one image
    and large weights, say)."""
    lanes = vectors.lanes()
    if not lanes or not suits(x, weight):
        return None
    if 1 < len(x) < lanes or weight.nbytes <= CACHE_BYTES:
        return _by_dots(x, weight)
    return _by_columns(x, weight) if _are_few(x, weight) else None


def gradient_by_weight(
    grad_out: np.ndarray, x: np.ndarray, weight: np.ndarray
) -> np.ndarray | None:
    """Return grad_out.T @ x, (out, in), each value written once; None where NumPy is to do it."""
    if not suits(x, weight) or not _are_few(x, weight):
        return None
    grad_out = np.ascontiguousarray(grad_out)  # also in the order of its strides
    grad_weight = np.empty_like(weight)

    def work(features: slice) -> None:
        _outer(grad_out[:, features], x, grad_weight[features])

    in_parallel(work, len(weight), least=64)
    return grad_weight


def _are_few(x: np.ndarray, weight: np.ndarray) -> bool:
    """Whether the images are few, but not one, in whole vectors, and the weights beyond the cache,
    so that the product takes as long as to read these."""
    few = 2 <= len(x) <= _MOST_IMAGES and weight.nbytes > vectors.cache_bytes()
    return few and vectors.lanes() > 0 and x.shape[1] % vectors.lanes() == 0


def _by_dots(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    out = np.empty((len(x), len(weight)), np.float32)
    most, rows = vectors.dot_tile_shape(len(x))
    height, taller = vectors.nearly_equal(len(x), most)
    rows = min(rows, len(weight))
    tiles = tuple(vectors.dot_tile(n, rows) for n in (height, height + bool(taller)))
    terms = x.shape[1] // vectors.lanes()

    def work(part: slice) -> None:
        _dots(tiles, height, taller, rows, terms, vectors.lanes(), x, weight[part], out[:, part])

    in_parallel(work, len(weight), least=rows)
    return out


def _by_columns(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    lanes, batch = vectors.lanes(), len(x)
    columns = np.zeros((x.shape[1], -(-batch // lanes) * lanes), np.float32)
    columns[:, :batch] = x.T
    rows, width = vectors.tile_shape(columns.shape[1])
    offsets = 4 * np.arange(_TERMS)
    out = np.empty((batch, len(weight)), np.float32)

    def work(part: slice) -> None:
        made = np.zeros((part.stop - part.start, columns.shape[1]), np.float32)
        sums = np.zeros((rows, width * lanes), np.float32)
        tiles = tuple(vectors.product_tile(n, width) for n in (rows, len(made) % rows or rows))
        _columns(tiles, weight[part], columns, offsets, sums, made)
        out[:, part] = made[:, :batch].T

    in_parallel(work, len(weight), least=rows)
    return out


def _outer(grad_out: np.ndarray, x: np.ndarray, out: np.ndarray) -> None:
    """``grad_out``: some columns of a whole one. A block of x stays in the core's own cache."""
    rows, width = vectors.tile_shape(x.shape[1])
    rows, panel = min(rows, len(out)), width * vectors.lanes()
    tile = vectors.product_tile(rows, width)
    block = panel * max(1, vectors.cache_bytes() // 4 // (len(x) * panel * 4))
    offsets = grad_out.strides[0] * np.arange(len(x))
    for part in blocks(slice(0, x.shape[1]), block):
        _tiles_outer(tile, rows, panel, grad_out, x[:, part], offsets, out[:, part])


@compiled
def _dots(tiles, height, taller, rows, terms, lanes, x, w, out):
    """``terms`` whole vectors of each row by a tile, what is left value by value."""
    x_row, w_row, out_row = x.strides[0], w.strides[0], out.strides[0]
    for row in range(0, len(w), rows):
        f = min(row, len(w) - rows)  # the last tile does some rows again
        n, left = 0, taller
        while n < len(x):
            tile, step = (tiles[1], height + 1) if left > 0 else (tiles[0], height)
            a, b = np.intp(x[n].ctypes.data), np.intp(w[f].ctypes.data)
            to = np.intp(out[n, f:].ctypes.data)
            if terms:
                call(tile, (a, x_row, b, w_row, terms, to, out_row))
            else:
                out[n : n + step, f : f + rows] = 0
            for i in range(n, n + step):
                for j in range(f, f + rows):
                    for k in range(terms * lanes, x.shape[1]):
                        out[i, j] += x[i, k] * w[j, k]
            n, left = n + step, left - 1


@compiled
def _columns(tiles, weight, columns, offsets, sums, out):
    rows, panel = sums.shape
    line, b_step, c_row = weight.strides[0], columns.strides[0], sums.strides[0]
    where, to = np.intp(offsets.ctypes.data), np.intp(sums.ctypes.data)
    for k in range(0, len(columns), len(offsets)):
        terms = min(len(offsets), len(columns) - k)
        for i in range(0, len(out), rows):
            count = min(rows, len(out) - i)
            tile = tiles[0] if count == rows else tiles[1]
            for c in range(0, columns.shape[1], panel):
                a, b = np.intp(weight[i, k:].ctypes.data), np.intp(columns[k, c:].ctypes.data)
                call(tile, (a, line, where, terms, b, b_step, 0, 0, to, c_row))
                for row in range(count):
                    for one in range(panel):
                        out[i + row, c + one] += sums[row, one]


@compiled
def _tiles_outer(tile, rows, panel, grad_out, x, offsets, out):
    where, b_step, c_row = np.intp(offsets.ctypes.data), x.strides[0], out.strides[0]
    for row in range(0, len(out), rows):
        i = min(row, len(out) - rows)  # the last tile does some rows again
        a = np.intp(grad_out.ctypes.data) + 4 * i
        for c in range(0, x.shape[1], panel):
            b, to = np.intp(x[0, c:].ctypes.data), np.intp(out[i, c:].ctypes.data)
            call(tile, (a, 4, where, len(x), b, b_step, 0, 0, to, c_row))
