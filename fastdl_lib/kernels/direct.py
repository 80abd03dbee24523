"""Convolution without columns and without tiles: a filter's sums straight from the images.

A tile (:func:`fastdl_lib.kernels.vectors.product_tile`) makes a few neighbouring output pixels of a
*panel* of filters, one to three vectors of them::

    a[row, k]  value k below the filter at output pixel ``row``: how far it lies from the corner of
               that window stands in a table of offsets, the same for all, so nothing is copied
    b[k]       weight k of the panel's filters, side by side; the panel stays in the core's own
               cache (L2) for a whole image
    c          sums of the output, in registers: they begin with the bias and are stored once

The gradient by the weight is such a tile as well: a few channels, at one place below the filter,
times the gradients of a panel of filters, summed over an image's output pixels.

The loops compute with addresses that nothing checks: an image is copied into the middle of zeros,
which every filter lies inside, and :func:`fits` says which numbers of filters they take. The copy
stays in the core's own cache, and the next image takes its place.
"""

import numpy as np

from fastdl_lib.core.threads import in_parallel, sum_in_order
from fastdl_lib.kernels import vectors
from fastdl_lib.kernels.compiled import compiled
from fastdl_lib.kernels.vectors import call


def fits(filters: int) -> bool:
    """Whether the loops take that many filters in a group: whole vectors."""
    return bool(vectors.lanes()) and filters % vectors.lanes() == 0


def convolve(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, out: np.ndarray, stride: int, padding: int
) -> None:
    """Fill out (N, OH, OW, K) with the convolution of x (N, H, W, C).

    Args:
        weight: (groups, FH, FW, C / groups, K / groups).
        bias: (K,).
    """
    groups, filter_h, filter_w, channels, filters = weight.shape
    most, width = vectors.tile_shape(filters)
    panel = width * vectors.lanes()
    panels = weight.reshape(groups, -1, filters // panel, panel).transpose(0, 2, 1, 3)
    panels = np.ascontiguousarray(panels)
    rows, longer = vectors.nearly_equal(out.shape[2], most)
    tiles = tuple(vectors.product_tile(n, width) for n in (rows, rows + bool(longer)))

    def work(part: slice) -> None:
        image = _between_zeros(x, padding)
        offsets = _offsets(image, filter_h, filter_w, channels, 1)
        shared = x, image, padding, panels, bias, out, offsets
        _panels_out(part.start, part.stop, tiles, rows, longer, *shared, stride)

    in_parallel(work, len(x) * groups * panels.shape[1])


def gradient_by_weight(
    grad_out: np.ndarray,
    x: np.ndarray,
    kernel: tuple[int, int],
    groups: int,
    stride: int,
    padding: int,
) -> np.ndarray:
    """Return the gradient by the weight of :func:`convolve`, in its shape, as sums in float64.

    The sum over an image's pixels is float32; over the images it is float64, so that it comes out
    alike however a batch is shared out.
    """
    channels, filters = x.shape[-1] // groups, grad_out.shape[-1] // groups
    shape = groups, *kernel, channels, filters
    if groups == 1:  # the channels below one row of a filter lie side by side
        kernel, channels = (kernel[0], 1), kernel[1] * channels
    rows, width = vectors.tile_shape(filters, channels)
    tile = vectors.product_tile(rows, width)
    sums: dict[int, tuple[np.ndarray]] = {}
    panel = width * vectors.lanes()

    def work(images: slice) -> None:
        total = np.zeros((groups, *kernel, channels, filters))
        of_one, image = np.empty(total.shape, np.float32), _between_zeros(x, padding)
        offsets = _offsets(image, *grad_out.shape[1:3], 1, stride)
        ours = x[images], image, padding, grad_out[images]
        _weights_back(tile, rows, panel, *ours, total, of_one, offsets)
        sums[images.start] = (total,)

    in_parallel(work, len(x))
    return sum_in_order(sums)[0].reshape(shape)


def _between_zeros(x: np.ndarray, padding: int) -> np.ndarray:
    """Where an image (H, W, C) of x lies while a thread works on it."""
    height, width = (size + 2 * padding for size in x.shape[1:3])
    return np.zeros((height, width, x.shape[3]), np.float32)


def _offsets(image: np.ndarray, rows: int, columns: int, channels: int, step: int) -> np.ndarray:
    """How many bytes from a corner each value of that window lies, every ``step`` pixels."""
    row, column, one = image.strides
    down, along = step * row * np.arange(rows), step * column * np.arange(columns)
    offsets = down[:, None, None] + along[:, None] + one * np.arange(channels)
    return offsets.ravel()


@compiled
def _panels_out(
    begin, end, tiles, rows, longer, x, image, padding, panels, bias, out, offsets, stride
):
    """Panels begin ... end: those of the first image, then those of the second, ..."""
    _, height, length, _ = out.shape
    groups, count, terms, panel = panels.shape
    a_row, c_row = stride * image.strides[1], out.strides[2]
    where = np.intp(offsets.ctypes.data)
    channels = x.shape[3] // groups
    for number in range(begin, end):
        n, p = divmod(number, groups * count)
        g, k = divmod(p, count)
        if p == 0 or number == begin:
            for i in range(x.shape[1]):
                image[padding + i, padding : padding + x.shape[2]] = x[n, i]
        b = np.intp(panels[g, k].ctypes.data)
        start = np.intp(bias.ctypes.data) + 4 * p * panel
        for i in range(height):
            a = np.intp(image[i * stride].ctypes.data) + 4 * g * channels
            c = np.intp(out[n, i].ctypes.data) + 4 * p * panel
            j, left = 0, longer
            while j < length:
                tile, step = (tiles[1], rows + 1) if left > 0 else (tiles[0], rows)
                at, to = a + j * a_row, c + j * c_row
                call(tile, (at, a_row, where, terms, b, 4 * panel, start, 0, to, c_row))
                j, left = j + step, left - 1


@compiled
def _weights_back(tile, rows, panel, x, image, padding, grad_out, total, of_one, offsets):
    groups, filter_h, filter_w, channels, filters = total.shape
    where, terms = np.intp(offsets.ctypes.data), len(offsets)
    # Not grad_out.strides[2], which says nothing where the output is one pixel wide.
    b_row, c_row = 4 * grad_out.shape[3], 4 * filters
    sums, added = total.reshape(-1), of_one.reshape(-1)
    for n in range(len(x)):
        for i in range(x.shape[1]):
            image[padding + i, padding : padding + x.shape[2]] = x[n, i]
        for g in range(groups):
            for k in range(0, filters, panel):
                b = np.intp(grad_out[n].ctypes.data) + 4 * (g * filters + k)
                for i in range(filter_h):
                    for j in range(filter_w):
                        for c in range(0, channels, rows):
                            a = np.intp(image[i, j].ctypes.data) + 4 * (g * channels + c)
                            to = np.intp(of_one[g, i, j, c].ctypes.data) + 4 * k
                            call(tile, (a, 4, where, terms, b, b_row, 0, 0, to, c_row))
        for w in range(len(sums)):
            sums[w] += added[w]
