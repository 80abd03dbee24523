"""Winograd's convolution: fewer multiplications, paid with additions and a little precision.

F(m, r) computes m neighbouring outputs of a filter with r taps from t = m + r - 1 inputs with t
multiplications instead of m * r. In two dimensions a tile of t x t pixels gives m x m outputs,

    Y = A^T [(G w G^T) * (B^T x B)] A,

and since ``*`` is elementwise, the sum over the channels is one matrix product for each of the
t * t places of a tile: again large products, but with fewer multiplications in all.

Sources: Winograd, *Arithmetic Complexity of Computations*, SIAM 1980; Lavin, Gray, "Fast
algorithms for convolutional neural networks", CVPR 2016, arXiv:1509.09308.
"""

import functools
import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from fastdl_lib.convolution import blocked
from fastdl_lib.convolution.geometry import Geometry, channels_last, padded_channels_last
from fastdl_lib.core.checks import check_whole_number
from fastdl_lib.core.threads import CACHE_BYTES, blocks, in_parallel, sum_in_order
from fastdl_lib.kernels.pixels import pixels_unseen

# Small numbers and their reciprocals in turn keep the transforms' entries, and with them the
# rounding errors, small; halves and doubles are exact in floating point.
_POINTS = [Fraction(p) for p in ("0", "1", "-1", "1/2", "-2", "2", "-1/2")]
_BLOCK_BYTES = 2**22  # tiles and products of a block of images; about a core's L2 and L3 cache

LARGEST_TILE = len(_POINTS) + 1
"""Pixels on a tile's side, m + r - 1; larger tiles lose too many digits in float32."""


class Transforms(NamedTuple):
    """The matrices of F(m, r), t = m + r - 1: B^T (t, t), G (t, r) and A^T (m, t), read-only."""

    input: np.ndarray
    filter: np.ndarray
    output: np.ndarray


@functools.lru_cache(typed=True)  # 2.0 is refused where 2 was before
def transform_matrices(outputs: int, taps: int) -> Transforms:
    """Make the matrices of F(outputs, taps) by Toom and Cook's method.

    Read the inputs as a polynomial, evaluate it at t - 1 points and at infinity, multiply point by
    point, interpolate. The divisions of the interpolation are moved into the filter's matrix.

    Raises: ValueError for more than 8 pixels a tile.

    >>> transform_matrices(2, 3).output.tolist()
    [[1.0, 1.0, 1.0, 0.0], [0.0, 1.0, -1.0, 1.0]]
    """
    outputs = check_whole_number("outputs", outputs, 1)
    taps = check_whole_number("taps", taps, 1)
    tile = outputs + taps - 1
    if tile > LARGEST_TILE:
        raise ValueError(
            f"F({outputs}, {taps}) needs tiles of {tile} pixels; beyond {LARGEST_TILE} float32 "
            f"loses too many digits. Use at most {LARGEST_TILE + 1 - taps} outputs, or im2col."
        )
    points = _POINTS[: tile - 1]
    rows, scales = [], []
    for point in points:
        others = [other for other in points if other != point]
        scale = math.prod(point - other for other in others)
        # A sign belongs on both sides or on neither: so that F(2, 3) is the one of the paper.
        sign = -1 if scale < 0 else 1
        rows.append([sign * value for value in [*_coefficients(others), Fraction(0)]])
        scales.append(sign * scale)
    rows.append(_coefficients(points))  # the point at infinity

    def powers(count: int) -> np.ndarray:
        finite = [[point**k for k in range(count)] for point in points]
        at_infinity = [Fraction(k == count - 1) for k in range(count)]
        return np.array([*finite, at_infinity], dtype=float)

    filters = powers(taps) / np.array([*scales, 1], dtype=float)[:, None]
    made = Transforms(np.array(rows, dtype=float), filters, powers(outputs).T)
    for matrix in made:
        matrix.setflags(write=False)  # one copy serves all
    return made


def _coefficients(roots: list[Fraction]) -> list[Fraction]:
    """The polynomial with these roots, lowest power first, leading coefficient 1."""
    result = [Fraction(1)]
    for root in roots:
        shifted, scaled = [Fraction(0), *result], [*result, Fraction(0)]
        result = [a - root * b for a, b in zip(shifted, scaled, strict=True)]
    return result


def _macs(outputs: int, out_size: int, taps: int, in_channels: int, out_channels: int) -> float:
    """The MACs of F(outputs, taps) for a square image: the products and the two transforms."""
    tile, tiles = outputs + taps - 1, -(-out_size // outputs)
    products = tile**2 * in_channels * out_channels
    into = 2 * tile**3 * in_channels
    out_of = (tile**2 * outputs + tile * outputs**2) * out_channels
    return tiles**2 * (products + into + out_of)


@functools.cache
def best_tile(out_size: int, taps: int, in_channels: int, out_channels: int) -> int:
    """Return the m of F(m, taps) that does ``out_size`` outputs along an axis with the fewest MACs;
    ``in_channels`` and ``out_channels`` are those of one group.

    A large tile saves multiplications, until its transforms and the part of the last tile that
    hangs over the edge eat the gain.

    >>> best_tile(13, taps=3, in_channels=256, out_channels=384)  # three tiles of 5 for 13 pixels
    5
    """
    if taps > LARGEST_TILE:
        raise ValueError(
            f"Winograd's tiles take filters of up to {LARGEST_TILE} taps (after the stride is "
            f"taken out), got {taps}: use im2col or blocked."
        )
    return min(
        range(1, LARGEST_TILE + 2 - taps),
        key=lambda m: _macs(m, out_size, taps, in_channels, out_channels),
    )


def saves_work(geometry: Geometry, training: bool = False) -> bool:
    """True where Winograd's way takes fewer MACs than the direct one and pays in practice: not for
    few channels, where the transforms outweigh the products, nor for fewer than four images, which
    do not pay for the transformed filters.

    In training nor for layers of up to 64 channels and filters a group. The direct way is nearly as
    fast there, and its float32 errs ten times less: the last digits decide which side of 0 a ReLU
    is on, and Adam, which divides a gradient by its own size, makes steps of the digits of those
    that are 0.

    >>> saves_work(Geometry((16, 256, 13, 13), (384, 256, 3, 3), padding=1))
    True
    """
    kernel, filters = max(geometry.kernel), geometry.group_filters
    taps, channels = -(-kernel // geometry.stride), geometry.group_channels * geometry.stride**2
    small = training and geometry.group_channels * filters <= 64 * 64
    if small or geometry.x_shape[0] < 4 or taps > LARGEST_TILE:
        return False
    out_size = max(geometry.out_h, geometry.out_w)
    m = best_tile(out_size, taps, channels, filters)
    direct = out_size**2 * kernel**2 * geometry.group_channels * filters
    return _macs(m, out_size, taps, channels, filters) < direct


class _Tiles(NamedTuple):
    """A convolution cut into tiles; pairs are (vertical, horizontal)."""

    geometry: Geometry
    transforms: list[Transforms]
    """In the dtype of x."""
    outputs: list[int]
    """m: outputs a tile."""
    tile: list[int]
    """t: pixels a tile, of s x s image pixels each where the stride is s."""
    grid: list[int]
    """How many tiles cover the output."""


def _tiles(geometry: Geometry, dtype: np.dtype, outputs: int | None = None) -> _Tiles:
    channels = geometry.group_channels * geometry.stride**2
    plan = _Tiles(geometry, [], [], [], [])
    for size, kernel in zip(geometry.out_shape[2:], geometry.kernel, strict=True):
        taps = -(-kernel // geometry.stride)
        m = outputs or best_tile(size, taps, channels, geometry.group_filters)
        plan.transforms.append(_transforms_in(dtype, m, taps))
        plan.outputs.append(m)
        plan.tile.append(m + taps - 1)
        plan.grid.append(-(-size // m))
    return plan


@functools.cache
def _transforms_in(dtype: np.dtype, outputs: int, taps: int) -> Transforms:
    return Transforms(*(matrix.astype(dtype) for matrix in transform_matrices(outputs, taps)))


def _transform(matrices: list[np.ndarray], values: np.ndarray) -> np.ndarray:
    """Apply one matrix to axis 0 and one to axis 1 of ``values`` (a, b, ...)."""
    vertical, horizontal = matrices
    rows, columns, *rest = values.shape
    half = (vertical @ values.reshape(rows, -1)).reshape(len(vertical), columns, -1)
    return (horizontal @ half).reshape(len(vertical), len(horizontal), *rest)


def _transform_filters(matrices: list[np.ndarray], values: np.ndarray) -> np.ndarray:
    """Apply two matrices to the first two axes of (a, b, groups, channels, filters).

    Shared out by channels, a few at a time so that they stay in the cache. No product here may
    wake the BLAS's own threads: they would spin on for a while and take the cores from ours.
    """
    vertical, horizontal = matrices
    if values.dtype == np.float32:
        from fastdl_lib.kernels import winograd as loops

        if loops.fits(values[0, 0].size, values.shape[-1]):
            return loops.on_two_axes(matrices, np.ascontiguousarray(values))
    out = np.empty((len(vertical), len(horizontal), *values.shape[2:]), values.dtype)

    def work(channels: slice) -> None:
        for group in range(values.shape[2]):
            out[:, :, group, channels] = _transform(matrices, values[:, :, group, channels])

    a_channel = out[:, :, 0, 0].nbytes
    in_parallel(work, values.shape[3], block=max(1, CACHE_BYTES // a_channel))
    return out


def _whole_filters(plan: _Tiles, weight: np.ndarray) -> np.ndarray:
    """The filters as (r, r, groups, s * s * C / groups, K / groups).

    A stride of s is taken out first: s x s pixels count as one pixel with s * s times the
    channels, and the filter is filled up with zeros to whole ones of them.
    """
    filters, channels, filter_h, filter_w = weight.shape
    s, groups = plan.geometry.stride, plan.geometry.groups
    taps = [len(t.filter[0]) for t in plan.transforms]
    whole = weight.transpose(2, 3, 1, 0)
    if s > 1:
        whole = np.zeros((taps[0] * s, taps[1] * s, channels, filters), weight.dtype)
        whole[:filter_h, :filter_w] = weight.transpose(2, 3, 1, 0)
    whole = whole.reshape(taps[0], s, taps[1], s, channels, groups, filters // groups)
    return whole.transpose(0, 2, 5, 1, 3, 4, 6).reshape(*taps, groups, s * s * channels, -1)


def _filter_tiles(plan: _Tiles, weight: np.ndarray) -> np.ndarray:
    """Transform the filters: (t, t, groups, s * s * C / groups, K / groups)."""
    return _transform_filters([t.filter for t in plan.transforms], _whole_filters(plan, weight))


def _filter_tiles_back(plan: _Tiles, tiles: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The adjoint of :func:`_filter_tiles`: from the gradient by the tiles to that by weight."""
    filters, channels, filter_h, filter_w = shape
    s, groups = plan.geometry.stride, plan.geometry.groups
    whole = _transform_filters([t.filter.T for t in plan.transforms], tiles)
    whole = whole.reshape(*whole.shape[:2], groups, s, s, channels, filters // groups)
    whole = whole.transpose(2, 6, 0, 3, 1, 4, 5).reshape(
        filters, s * whole.shape[0], s * whole.shape[1], channels
    )
    return whole[:, :filter_h, :filter_w].transpose(0, 3, 1, 2)


def _image_tiles(plan: _Tiles, x: np.ndarray) -> np.ndarray:
    """Cut images into overlapping tiles and transform them.

    Returns (t, t, groups, tiles, s * s * C / groups), the tiles of all images in a row.
    """
    images, s, groups = len(x), plan.geometry.stride, plan.geometry.groups
    (m_h, m_w), (tile_h, tile_w), (rows, columns) = plan.outputs, plan.tile, plan.grid
    height, width = s * (rows * m_h + tile_h - m_h), s * (columns * m_w + tile_w - m_w)
    padded = padded_channels_last(x, plan.geometry.padding, height, width)
    image, row, column, one = padded.strides
    windows = as_strided(
        padded,
        (tile_h, tile_w, images, rows, columns, groups, s, s, plan.geometry.group_channels),
        (
            *(s * row, s * column, image, s * m_h * row, s * m_w * column),
            *(plan.geometry.group_channels * one, row, column, one),
        ),
        writeable=False,
    )
    tiles = _transform([t.input for t in plan.transforms], np.ascontiguousarray(windows))
    tiles = tiles.reshape(tile_h, tile_w, images * rows * columns, groups, -1)
    return tiles.transpose(0, 1, 3, 2, 4)


def set_unseen(x: np.ndarray, bias: np.ndarray | None, out: np.ndarray, geometry: Geometry) -> None:
    """Make an output the bias exactly, where the filters of its group see nothing but zeros."""
    window = (*geometry.kernel, geometry.stride, geometry.padding)
    bias = np.zeros(out.shape[1], out.dtype) if bias is None else np.ascontiguousarray(bias)

    def work(images: slice) -> None:
        pixels, ours = (array[images].transpose(0, 2, 3, 1) for array in (x, out))
        by_group = bias.reshape(geometry.groups, -1)
        pixels_unseen()(np.ascontiguousarray(pixels), ours, by_group, *window)

    in_parallel(work, len(x))


def _images_a_block(plan: _Tiles, x: np.ndarray, passes: int) -> int:
    """How many images to work on at a time.

    As many as keep their tiles in the cache; more where the filters are large, since every block
    goes ``passes`` times through all of them: then as many as have half as much to move.
    """
    geometry, places = plan.geometry, math.prod(plan.tile)
    channels, filters = geometry.group_channels * geometry.stride**2, geometry.group_filters
    values = places * math.prod(plan.grid) * geometry.groups * (channels + filters)
    of_filters = x.itemsize * places * geometry.groups * channels * filters
    target = max(_BLOCK_BYTES, passes * of_filters // 2)
    return max(1, min(len(x), target // (values * x.itemsize)))


def forward(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    geometry: Geometry,
    outputs: int | None = None,
) -> np.ndarray:
    """Convolve by Winograd's minimal filtering; the result is channels last in memory.

    In float32 it differs from the exact result by a few 1e-6 of a tile's largest, so that sums
    which are 0 may come out a little above or below: in a network whose biases start at 0, ReLU's
    derivative depends on it. :func:`set_unseen` mends that where a filter sees nothing but zeros;
    it cannot where weights are zeros or terms cancel. Where a value is no finite number, or grows
    beyond all in the transforms, the batch is computed by
    :mod:`~fastdl_lib.convolution.blocked`. ``outputs`` is m, by default :func:`best_tile` of each
    axis.
    """
    plan, start = _tiles(geometry, x.dtype, outputs), bias
    if start is None:
        start = np.zeros(len(weight), x.dtype)
    convolve = _forward_compiled if _is_compiled(plan, x) else _forward
    with np.errstate(over="ignore", invalid="ignore"):
        out, finite = convolve(plan, x, weight, start)
    return out if finite else blocked.forward(x, weight, bias, geometry)


def _forward(
    plan: _Tiles, x: np.ndarray, weight: np.ndarray, bias: np.ndarray
) -> tuple[np.ndarray, bool]:
    """The output, and whether all in it are finite numbers."""
    (m_h, m_w), (rows, columns), filters = plan.outputs, plan.grid, len(bias)
    filter_tiles = _filter_tiles(plan, weight)
    # Whole tiles; what hangs over the edge is cut off at the end, without a copy.
    out = channels_last((len(x), filters, rows * m_h, columns * m_w), x.dtype)
    block = _images_a_block(plan, x, passes=1)

    def work(images: slice) -> None:
        image_tiles = _image_tiles(plan, x[images])
        _, _, groups, tiles, _ = image_tiles.shape
        products = np.empty((*plan.tile, tiles, filters), x.dtype)
        # Groups side by side, so that the channels of an output lie together.
        by_group = products.reshape(*plan.tile, tiles, groups, -1).transpose(0, 1, 3, 2, 4)
        np.matmul(image_tiles, filter_tiles, out=by_group)
        made = _transform([t.output for t in plan.transforms], products)
        made = made.reshape(m_h, m_w, -1, rows, columns, filters).transpose(2, 3, 0, 4, 1, 5)
        np.add(made, bias, out=out[images].transpose(0, 2, 3, 1).reshape(made.shape))

    in_parallel(work, len(x), block=block)
    out = out[:, :, : plan.geometry.out_h, : plan.geometry.out_w]
    return out, bool(np.isfinite(out.sum()))


def backward(
    grad_out: np.ndarray, x: np.ndarray, weight: np.ndarray, geometry: Geometry, need_grad_x: bool
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """The gradients by x (None unless needed), weight and bias. That by weight is made of products
    of the same size, with each transform applied the other way round; that by x is a convolution
    itself, but for a stride. Where it is not, or a gradient is no finite number, which may be the
    transforms' fault, :mod:`~fastdl_lib.convolution.blocked` makes it."""
    plan = _tiles(geometry, x.dtype)
    gradient = _gradient_compiled if _is_compiled(plan, x) else _gradient
    with np.errstate(over="ignore", invalid="ignore"):
        grad_weight = _filter_tiles_back(plan, gradient(plan, grad_out, x), weight.shape)
        finite = np.isfinite(grad_weight.sum())
    if not finite:
        return blocked.backward(grad_out, x, weight, geometry, need_grad_x)
    grad_x, turned = None, geometry.turned(weight) if need_grad_x else None
    if turned is not None:
        grad_x = forward(grad_out, geometry.turn(weight), None, turned)
    elif need_grad_x:
        grad_x, _, _ = blocked.backward(grad_out, x, weight, geometry, need_grad_x)
    grads = np.ascontiguousarray(grad_out.transpose(0, 2, 3, 1))
    return grad_x, grad_weight, blocked.channel_sums(grads)


def _gradient(plan: _Tiles, grad_out: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The gradient by the transformed filters, in the shape of :func:`_filter_tiles`."""
    block = _images_a_block(plan, x, passes=2)  # read and written
    sums: dict[int, tuple[np.ndarray]] = {}

    def work(part: slice) -> None:
        total = 0
        for images in blocks(part, block):
            tiles = _image_tiles(plan, x[images]).swapaxes(3, 4)
            total = total + tiles @ _output_tiles_back(plan, grad_out[images])
        sums[part.start] = (total,)

    in_parallel(work, len(x))
    return sum_in_order(sums)[0]


def _output_tiles_back(plan: _Tiles, grad_out: np.ndarray) -> np.ndarray:
    """From the gradient by the output to that by the products: (t, t, groups, tiles, K/groups)."""
    images, filters = grad_out.shape[:2]
    (m_h, m_w), (rows, columns) = plan.outputs, plan.grid
    # Outputs past the edge of the last tiles were never used: their gradient is zero.
    padded = padded_channels_last(grad_out, 0, rows * m_h, columns * m_w)
    tiles = padded.reshape(images, rows, m_h, columns, m_w, filters).transpose(2, 4, 0, 1, 3, 5)
    tiles = _transform([t.output.T for t in plan.transforms], np.ascontiguousarray(tiles))
    tiles = tiles.reshape(*plan.tile, images * rows * columns, plan.geometry.groups, -1)
    return tiles.transpose(0, 1, 3, 2, 4)


# --- the same in compiled loops -------------------------------------------------------------------


def _is_compiled(plan: _Tiles, x: np.ndarray) -> bool:
    """Whether the loops of :mod:`fastdl_lib.kernels.winograd` take this convolution."""
    if x.dtype != np.float32:
        return False
    from fastdl_lib.kernels import winograd as loops  # Numba takes a while to import

    geometry = plan.geometry
    return loops.fits(geometry.group_channels * geometry.stride**2, geometry.group_filters)


def _whole_pixels(plan: _Tiles, x: np.ndarray) -> tuple[np.ndarray, int]:
    """Images as (N, H, W, C) without a stride, and the padding that is left to the loops."""
    geometry, s = plan.geometry, plan.geometry.stride
    if s == 1:
        return np.ascontiguousarray(x.transpose(0, 2, 3, 1)), geometry.padding
    height, width = (
        size + len(t.filter[0]) - 1
        for size, t in zip(geometry.out_shape[2:], plan.transforms, strict=True)
    )
    out = np.empty((len(x), height, width, s * s * x.shape[1]), x.dtype)

    def work(images: slice) -> None:
        padded = padded_channels_last(x[images], geometry.padding, s * height, s * width)
        padded = padded.reshape(-1, height, s, width, s, geometry.groups, geometry.group_channels)
        padded = padded.transpose(0, 1, 3, 5, 2, 4, 6)
        out[images].reshape(padded.shape)[...] = padded

    in_parallel(work, len(x), row_bytes=out[0].nbytes)
    return out, 0


def _forward_compiled(
    plan: _Tiles, x: np.ndarray, weight: np.ndarray, bias: np.ndarray
) -> tuple[np.ndarray, bool]:
    from fastdl_lib.kernels import winograd as loops

    (pixels, padding), bias = _whole_pixels(plan, x), np.ascontiguousarray(bias)
    out = channels_last(plan.geometry.out_shape, x.dtype)
    filters, pixels_out = _whole_filters(plan, weight), out.transpose(0, 2, 3, 1)
    return out, loops.convolve(pixels, filters, bias, pixels_out, plan.transforms, padding)


def _gradient_compiled(plan: _Tiles, grad_out: np.ndarray, x: np.ndarray) -> np.ndarray:
    from fastdl_lib.kernels import winograd as loops

    grads = np.ascontiguousarray(grad_out.transpose(0, 2, 3, 1))
    pixels, padding = _whole_pixels(plan, x)
    return loops.gradient_by_filters(grads, pixels, plan.geometry.groups, plan.transforms, padding)
