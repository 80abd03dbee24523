"""Products of matrices, rounded one step at a time."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from helpers import float_formats, nearest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdl_lib.core.threads import blas_threads
from fastdl_lib.precision.formats import (
    BFLOAT16,
    FLOAT8_E4M3,
    FLOAT8_E5M2,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    INT8,
    FloatFormat,
)
from fastdl_lib.precision.products import product


def step_by_step(a, b, compute, accumulate):
    """The definition, in the formats' own arithmetic."""
    total = np.zeros((len(a), b.shape[1]), accumulate.dtype)
    with np.errstate(all="ignore"):
        a, b = a.astype(compute.dtype), b.astype(compute.dtype)
        for k in range(a.shape[1]):
            products = a[:, k, None] * b[None, k]
            assert products.dtype == compute.dtype
            total = total + products.astype(accumulate.dtype)
            assert total.dtype == accumulate.dtype
    return total.astype(np.float32)


def matrices(scale=1.0, shape=(9, 60, 37), seed=0, dtype=np.float32):
    rng, (rows, inner, columns) = np.random.default_rng(seed), shape
    a, b = rng.normal(0, scale, (rows, inner)), rng.normal(0, scale, (inner, columns))
    return a.astype(dtype), b.astype(dtype)


# The operands reach the ends of the formats: subnormal products and sums, and overflow.
@pytest.mark.parametrize("scale", [1.0, 1e-3, 3e-5, 150.0])
@pytest.mark.parametrize(
    "pair",
    [(FLOAT16, FLOAT16), (BFLOAT16, BFLOAT16), (FLOAT16, FLOAT32), (BFLOAT16, FLOAT32),
     (FLOAT8_E5M2, FLOAT16), (FLOAT8_E4M3, FLOAT32), (FLOAT16, FLOAT64), (FLOAT32, FLOAT64)],
    ids=str,
)  # fmt: skip
def test_product_is_the_formats_own_arithmetic(pair, scale):
    for shape in ((9, 60, 37), (37, 60, 9), (1, 33, 1), (3, 1, 2)):
        a, b = matrices(scale, shape)
        got = product(a, b, compute=pair[0], accumulate=pair[1])
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, step_by_step(a, b, *pair))
    spread = a * np.float32(2.0) ** np.random.default_rng(1).integers(-20, 20, a.shape)
    spread = spread.astype(np.float32)
    np.testing.assert_array_equal(
        product(spread, b, compute=pair[0], accumulate=pair[1]), step_by_step(spread, b, *pair)
    )


@pytest.mark.parametrize(
    "pair",
    [
        *itertools.product([FLOAT32, FLOAT64], [FLOAT16, BFLOAT16, FLOAT8_E5M2]),
        (FLOAT64, FLOAT32),
    ],
    ids=str,
)
def test_sums_of_longer_products_are_rounded_once(pair):
    """Ties that a tiny number before or after them breaks, and random ones."""
    compute, accumulate = pair
    tie, tiny = accumulate.epsilon / 2, accumulate.smallest_subnormal
    wide = [2.0**-20 * tie, -(2.0**-20) * tie, 2.0**-23 * (1 + tie)]
    nudges = [tiny, -tiny, 2 * tiny, *wide]
    rows = []
    for nudge in nudges:
        rows += [[1, tie + nudge, 0], [nudge, 1 + tie, 0], [tie, nudge, 1]]
        rows += [[nudge, -1 - 3 * tie, 0], [nudge, 2.0**12 * (1 + tie), tie], [-nudge, tie * 3, 1]]
    rng = np.random.default_rng(12)
    rows = np.array(rows + rng.normal(size=(60, 3)).tolist())
    rows = np.concatenate([rows, rows * 2.0 ** rng.integers(-9, 2, rows.shape)])
    if accumulate in (BFLOAT16, FLOAT32):
        rows = np.concatenate([rows, [[2.0**-100, 1 + tie, 0], [-(2.0**-100), 1 + 3 * tie, 0]]])
    kind = np.float64 if compute == FLOAT64 else np.float32
    rows = rows.astype(kind)
    got = product(rows, np.ones((3, 1), kind), compute=compute, accumulate=accumulate)[:, 0]
    for row, value in zip(rows, got, strict=True):
        total = Fraction(0)
        for term in row:
            total = Fraction(nearest(total + Fraction(float(term)), accumulate))
        assert value == float(total), row


def operation(act, one, other, kind):
    """A sum or a product rounded once, exactly; infinities and NaN as IEEE 754 has them."""
    if math.isfinite(one) and math.isfinite(other):
        return nearest(act(Fraction(one), Fraction(other)), kind)
    found = act(one, other)
    return found if kind.has_infinity else math.nan


def factors(rng, compute, accumulate, rows, inner, columns):
    """Matrices whose products are ties of the sums, much smaller numbers that break these, numbers
    at the ends of both formats, infinite ones and NaN."""

    def pick(*values):
        return rng.choice(values, (rows, inner))

    bits = accumulate.fraction_bits + 1
    ends = [max(math.frexp(kind.smallest_normal)[1] for kind in (compute, accumulate))]
    ends += [min(math.frexp(kind.largest)[1] for kind in (compute, accumulate)) - 1]
    exponent = rng.choice([0, *ends]) + pick(0, 0, -1, 1, -bits, -bits - 1, -30, -60, -100)
    a = np.ldexp(1 + rng.integers(0, 2**bits, (rows, inner)) / 2**bits, exponent) * pick(1, -1)
    a = np.where(rng.random(a.shape) < 0.3, np.ldexp(pick(1.0, -1.0), exponent), a)
    largest = min(accumulate.largest, FLOAT32.largest)
    special = pick(0, largest, -largest, math.inf, -math.inf, math.nan)
    a = np.where(rng.random(a.shape) < 0.05, special, a)
    b = rng.choice([1, 1, 1, -1, 2, 0.5, 1.25, 0.7], (inner, columns))
    return compute.round(a), compute.round(b)


@settings(derandomize=True, max_examples=100)
@given(
    float_formats(), float_formats(), st.tuples(*[st.integers(1, 4)] * 2), st.integers(0, 7),
    st.integers(0, 10**6),
)  # fmt: skip
def test_product_is_exact_arithmetic_rounded_at_every_step(compute, accumulate, outer, inner, seed):
    if compute == accumulate and compute in (FLOAT32, FLOAT64):
        return  # the BLAS's
    rng = np.random.default_rng(seed)
    a, b = factors(rng, compute, accumulate, outer[0], inner, outer[1])
    got = product(a, b, compute=compute, accumulate=accumulate)
    for i, j in np.ndindex(outer):
        total = 0.0
        for left, right in zip(a[i].tolist(), b[:, j].tolist(), strict=True):
            term = operation(lambda p, q: p * q, left, right, compute)
            total = operation(lambda p, q: p + q, total, term, accumulate)
        with np.errstate(over="ignore"):  # a float64 sum beyond float32
            np.testing.assert_array_equal(got[i, j], np.float32(total))


@pytest.mark.parametrize("accumulate", [FLOAT32, BFLOAT16, FLOAT16, FLOAT8_E5M2], ids=str)
@pytest.mark.parametrize("compute", [FLOAT64, FloatFormat("own", 8, 20), BFLOAT16], ids=str)
def test_a_sum_that_is_infinite_stays_so(compute, accumulate):
    formats, ones = {"compute": compute, "accumulate": accumulate}, np.ones((4, 1))
    large = 2.0 ** (math.frexp(accumulate.largest)[1] - 1)
    for last in (1, -1, large, -large, 0):
        for sign in (1, -1):
            a = sign * np.array([[large, large, last, last], [math.inf, last, last, last]])
            assert (product(a, ones, **formats) == sign * math.inf).all()
            a[:, 2:] = -sign * math.inf
            assert np.isnan(product(a, ones, **formats)).all()


@pytest.mark.parametrize("kind", [FLOAT32, FLOAT64], ids=str)
def test_wide_formats_are_the_blas_product(kind):
    a, b = matrices(dtype=np.float64)
    got = product(a, b, compute=kind, accumulate=kind)
    np.testing.assert_array_equal(
        got, (a.astype(kind.dtype) @ b.astype(kind.dtype)).astype(np.float32)
    )


def test_product_is_the_same_with_more_threads_and_any_layout():
    a, b = matrices(shape=(40, 20, 700))
    pair = {"compute": FLOAT32, "accumulate": FLOAT16}
    with blas_threads(1):
        once = product(a, b, **pair)
    with blas_threads(2):
        np.testing.assert_array_equal(
            product(np.asfortranarray(a), np.asfortranarray(b), **pair), once
        )
        np.testing.assert_array_equal(product(b.T, a.T, **pair).T, once)
        np.testing.assert_array_equal(product(a, b.astype(np.float64), **pair), once)
    for shape in ((0, 3, 4), (3, 0, 4), (3, 4, 0)):
        got = product(*matrices(shape=shape), **pair)
        assert got.shape == shape[::2] and (got == 0).all()


def test_product_refuses_what_it_cannot_take(fake_gpu):
    a, b = matrices(shape=(2, 3, 4))
    for wrong in ((a, b.T), (a[0], b), (a[None], b)):
        with pytest.raises(ValueError, match=r"takes \(M, K\) and \(K, N\), got"):
            product(*wrong)
    for options in ({"compute": INT8}, {"accumulate": "float16"}):
        with pytest.raises(TypeError, match="must be a floating-point format such as FLOAT16"):
            product(a, b, **options)
    with pytest.raises(TypeError, match=r"use x\.astype\(np\.float32\)"):
        product(a.astype(np.float16), b)
    with pytest.raises(TypeError, match=r"move a and b there with to_cpu\(\)"):
        product(fake_gpu.asarray(a), fake_gpu.asarray(b))
