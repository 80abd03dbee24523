"""Convolution by loops: the definition, in plain Python and compiled by Numba."""

import functools
from collections.abc import Callable

import numpy as np

from fastdl_lib.convolution.geometry import Geometry


def _padded(x: np.ndarray, padding: int) -> np.ndarray:
    return np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))


def forward(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, geometry: Geometry
) -> np.ndarray:
    """Convolve with plain Python loops, readable and slow; adds up in Python's float64."""
    batch, filters, out_h, out_w = geometry.out_shape
    _, group_channels, filter_h, filter_w = geometry.weight_shape
    stride = geometry.stride
    padded, taps = _padded(x, geometry.padding).tolist(), weight.tolist()
    start = [0.0] * filters if bias is None else bias.tolist()
    out = np.empty(geometry.out_shape, dtype=x.dtype)
    for n in range(batch):
        for k in range(filters):
            first_channel = k // geometry.group_filters * group_channels
            for i in range(out_h):
                for j in range(out_w):
                    total = start[k]
                    for c in range(group_channels):
                        for p in range(filter_h):
                            row = padded[n][first_channel + c][i * stride + p]
                            for q in range(filter_w):
                                total += row[j * stride + q] * taps[k][c][p][q]
                    out[n, k, i, j] = total
    return out


def forward_compiled(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, geometry: Geometry
) -> np.ndarray:
    """Convolve with the same loops, compiled; one thread, adds up in x.dtype.

    The first call for each dtype compiles, which takes about a second.
    """
    out = np.empty(geometry.out_shape, x.dtype)
    start = np.zeros(len(weight), x.dtype) if bias is None else bias
    # One memory order, so that a change of it does not compile anew.
    arrays = map(np.ascontiguousarray, (_padded(x, geometry.padding), weight, start))
    _compiled_loops()(*arrays, geometry.stride, geometry.groups, out)
    return out


@functools.cache
def _compiled_loops() -> Callable[..., None]:
    """The loops, to be compiled at the first call for each dtype. Importing Numba takes a while."""
    import numba

    @numba.njit
    def loops(padded, weight, bias, stride, groups, out):
        batch, filters, out_h, out_w = out.shape
        _, group_channels, filter_h, filter_w = weight.shape
        for n in range(batch):
            for k in range(filters):
                first_channel = k // (filters // groups) * group_channels
                for i in range(out_h):
                    for j in range(out_w):
                        total = bias[k]
                        for c in range(group_channels):
                            for p in range(filter_h):
                                for q in range(filter_w):
                                    value = padded[
                                        n, first_channel + c, i * stride + p, j * stride + q
                                    ]
                                    total += value * weight[k, c, p, q]
                        out[n, k, i, j] = total

    return loops
