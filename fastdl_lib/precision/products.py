"""A matrix product in which every product and every partial sum is rounded to a format.

Three choices are often taken for one: the format in which numbers are *stored*
(:meth:`~fastdl_lib.precision.formats.NumberFormat.store`), the one in which they are *computed*,
multiplied say, and the one in which sums are *accumulated*. A GPU that stores and multiplies halves
may well add up in 32 bits.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fastdl_lib.core.arrays import array_module
from fastdl_lib.core.threads import in_parallel
from fastdl_lib.kernels.compiled import compiled
from fastdl_lib.precision.formats import FLOAT16, FLOAT32, FLOAT64, FloatFormat, check_format

# So many sums are carried on at a time: they and their part of the second matrix stay in cache.
SUMS = 256


@functools.cache
def _compiled_sums(round_products: bool, round_sums: bool, sticky: bool) -> Callable[..., None]:
    """The loops of :func:`product`, to be compiled at the first call. Importing Numba takes a
    while.

    A number is rounded by adding and subtracting 1.5 * 2^52 of the spacings it is to have: a
    float64 as large as that has no bits below the spacing, so the addition itself rounds, to
    nearest even.
    """
    import numba

    exponent = np.int64(0x7FF0000000000000)  # its bits in a float64

    @numba.njit(inline="always")
    def rounded(s, smallest_normal, magic, limit, beyond):
        power = np.int64(np.float64(s).view(np.int64) & exponent).view(np.float64)
        power = power if power > smallest_normal else smallest_normal
        shift = power * magic
        return s * beyond if abs(s) > limit else (s + shift) - shift

    @compiled
    def sums(a, b, out, start, product_constants, sum_constants):
        p0, p1, p2, p3 = product_constants
        s0, s1, s2, s3 = sum_constants
        total = np.empty(b.shape[1])
        for row in range(a.shape[0]):
            total[:] = 0.0
            for k in range(a.shape[1]):
                left = a[row, k]
                for i in range(b.shape[1]):
                    if round_products:
                        term = rounded(np.float64(left) * np.float64(b[k, i]), p0, p1, p2, p3)
                    else:
                        term = np.float64(left * b[k, i])
                    before = total[i]
                    s = before + term
                    if sticky:
                        # What s has lost (Knuth's TwoSum) makes its last bit odd, so that rounding
                        # again does not take it for a tie: Boldo, Melquiond, "Emulation of FMA
                        # and correctly rounded sums", IEEE Trans. Computers 57(4), 2008.
                        part = s - before
                        lost = (before - (s - part)) + (term - part)
                        bits = np.float64(s).view(np.int64)
                        step = 1 if (lost > 0) == (s > 0) else -1
                        # Of an infinite sum nothing that is a number is lost.
                        bits += step if abs(lost) > 0 and bits & 1 == 0 else 0
                        s = np.int64(bits).view(np.float64)
                    total[i] = rounded(s, s0, s1, s2, s3) if round_sums else s
            for i in range(b.shape[1]):
                out[row, start + i] = total[i]

    return sums


def _constants(rounding: FloatFormat) -> tuple[float, float, float, float]:
    """What the loops need to round: the smallest normal number; 1.5 * 2^52 spacings at 1; the
    largest float64 that does not overflow; and the factor that makes the rest infinite, or NaN."""
    limit = rounding.largest + rounding.epsilon / 2 * 2.0 ** (math.frexp(rounding.largest)[1] - 1)
    if rounding.has_infinity:  # the tie goes to the even one, which is infinity
        limit = math.nextafter(limit, 0.0)
    beyond = math.inf if rounding.has_infinity else math.nan
    return rounding.smallest_normal, 1.5 * 2**52 * rounding.epsilon, limit, beyond


def product(
    a: np.ndarray,
    b: np.ndarray,
    *,
    compute: FloatFormat = FLOAT32,
    accumulate: FloatFormat = FLOAT32,
    dtype: Any = np.float32,
) -> np.ndarray:
    """Multiply two matrices, (M, K) and (K, N), to (M, N), rounding at every step; float32, or of
    another ``dtype``, such as float64 for sums accumulated in it.

    Both matrices are rounded to ``compute``, and so is each product of two numbers. The sums begin
    at 0 and go on in the order of k; each is the exact sum rounded once, to ``accumulate``, to
    nearest even. With float32 for both, or float64 for both, it is the BLAS's product, which adds
    up in an order of its own (and where two of its partial sums overflow, to NaN). A zero has no
    sign. CPU only; the first call ever for each kind of rounding compiles, for about a second.
    Threads as in :func:`~fastdl_lib.core.threads.in_parallel`.

    Raises TypeError: an array of another device or dtype; ValueError: shapes that do not fit.

    >>> ones = np.ones((1, 4096), np.float32)
    >>> float(product(ones, ones.T, compute=FLOAT16, accumulate=FLOAT16)[0, 0])  # 2048 + 1 = 2048
    2048.0
    >>> float(product(ones, ones.T, compute=FLOAT16, accumulate=FLOAT32)[0, 0])
    4096.0
    """
    check_format("compute", compute, FloatFormat)
    check_format("accumulate", accumulate, FloatFormat)
    if array_module(a, b) is not np:
        raise TypeError("product() runs on the CPU only: move a and b there with to_cpu().")
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
        raise ValueError(f"product() takes (M, K) and (K, N), got {a.shape} and {b.shape}.")
    kind = np.float64 if compute == FLOAT64 else np.float32
    a, b = (compute.round(one).astype(kind, copy=False) for one in (a, b))
    if compute == accumulate and compute in (FLOAT32, FLOAT64):
        return (a @ b).astype(dtype, copy=False)
    # Neighbours in memory are computed side by side: the longer of the two axes.
    if len(a) > b.shape[1]:
        return _rounded_sums(b.T, a.T, compute, accumulate, dtype).T
    return _rounded_sums(a, b, compute, accumulate, dtype)


def _rounded_sums(
    a: np.ndarray, b: np.ndarray, compute: FloatFormat, accumulate: FloatFormat, dtype: Any
) -> np.ndarray:
    """:func:`product` of matrices that are rounded already."""
    # A float64 sum of products that are longer than the sums' format may fall on a tie only for
    # having been rounded. It cannot where that format's range is narrow, float16's or less.
    sticky = compute.fraction_bits > accumulate.fraction_bits and (
        compute == FLOAT64 or accumulate.exponent_bits > FLOAT16.exponent_bits
    )
    round_products = compute not in (FLOAT32, FLOAT64)  # the processor does it
    loops = _compiled_sums(round_products, accumulate != FLOAT64, sticky)
    a = np.ascontiguousarray(a)
    out = np.empty((len(a), b.shape[1]), dtype)
    constants = _constants(compute), _constants(accumulate)

    def work(part: slice) -> None:
        loops(a, np.ascontiguousarray(b[:, part]), out, part.start, *constants)

    in_parallel(work, b.shape[1], block=SUMS, least=SUMS // 8)
    return out
