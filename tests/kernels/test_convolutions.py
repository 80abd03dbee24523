"""The compiled convolutions, beside NumPy's version of the same algorithm."""

import numpy as np
import pytest
from helpers import whole_vectors
from hypothesis import assume, example, given, seed, settings
from hypothesis import strategies as st

from fastdl_lib.convolution import blocked, winograd
from fastdl_lib.convolution.algorithms import conv2d, conv2d_backward
from fastdl_lib.convolution.geometry import Geometry
from fastdl_lib.core.threads import blas_threads
from fastdl_lib.kernels import vectors

pytestmark = pytest.mark.skipif(
    not vectors.lanes(), reason="no compiled convolution is written for this CPU (no AVX2)"
)
ALGORITHMS = pytest.mark.parametrize("algorithm", [blocked, winograd], ids=["blocked", "winograd"])


def made(shape, order, number):
    """Small whole numbers, so that sums are exact, in one of four orders in memory."""
    values = np.random.default_rng(number).integers(-2, 3, shape).astype(np.float32)
    orders = {"first": (0, 1, 2, 3), "last": (0, 2, 3, 1), "turned": (3, 1, 0, 2)}
    axes = (orders | {"row by row": (0, 2, 1, 3)})[order]
    return np.ascontiguousarray(values.transpose(axes)).transpose(np.argsort(axes))


def both_ways(algorithm, geometry, order, monkeypatch, dtype=np.float32):
    x, weight = (
        made(s, order, n).astype(dtype)
        for n, s in enumerate((geometry.x_shape, geometry.weight_shape))
    )
    grad_out = made(geometry.out_shape, order, 2).astype(dtype)
    bias = np.arange(len(weight), dtype=dtype)
    results = []
    for compiled in (True, False):
        with monkeypatch.context() as patch:
            if not compiled:
                patch.setattr(algorithm, "_is_compiled", lambda *given: False)
            out = algorithm.forward(x, weight, bias, geometry)
            results.append((out, *algorithm.backward(grad_out, x, weight, geometry, True)))
    return results


@ALGORITHMS
@seed(0)
@settings(max_examples=25)
@given(whole_vectors(), st.sampled_from(["first", "last", "turned"]))
# One pixel wide, an array counts as without gaps whatever the step from pixel to pixel.
@example(Geometry((3, 16, 5, 1), (16, 16, 3, 3), padding=1), "row by row")
def test_the_loops_give_what_numpy_gives(algorithm, geometry, order):
    taps = -(-max(geometry.kernel) // geometry.stride)
    assume(taps <= winograd.LARGEST_TILE)
    results = both_ways(algorithm, geometry, order, pytest.MonkeyPatch())
    for got, want in zip(*results, strict=True):
        if algorithm is blocked:  # sums of whole numbers are exact
            np.testing.assert_array_equal(got, want)
        else:
            np.testing.assert_allclose(got, want, atol=1e-4 * (1 + np.abs(want).max()))


@ALGORITHMS
def test_the_same_bits_again_and_float64_through_the_reference(algorithm, monkeypatch):
    geometry = Geometry((4, 32, 9, 9), (48, 32, 3, 3), padding=1)
    with blas_threads(2):
        first, again = (both_ways(algorithm, geometry, "last", monkeypatch)[0] for _ in range(2))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    compiled, numpy = both_ways(algorithm, geometry, "last", monkeypatch, np.float64)
    for a, b in zip(compiled, numpy, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_reaches_what_sees_it(bad):
    x = np.ones((2, 16, 9, 9), np.float32)
    x[1, 3, 4, 4] = bad
    weight = np.ones((16, 16, 3, 3), np.float32)
    want = conv2d(x, weight, padding=1, algorithm="im2col")
    np.testing.assert_array_equal(conv2d(x, weight, padding=1, algorithm="blocked"), want)
    assert np.isfinite(want).sum() == want.size - 16 * 9


@pytest.mark.parametrize("channels", [1, 16])
@ALGORITHMS
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_weight_that_is_no_number_reaches_the_gradients_of_what_it_saw(channels, algorithm, bad):
    """Not those of pixels where it would meet nothing but the zeros around the gradient."""
    geometry = Geometry((2, channels, 6, 6), (channels, channels, 3, 3))
    grad_out, x, weight = map(
        np.ones, (geometry.out_shape, geometry.x_shape, geometry.weight_shape)
    )
    weight[0, 0, 1, 1] = bad
    given = [array.astype(np.float32) for array in (grad_out, x, weight)]
    want, _, _ = conv2d_backward(*given, algorithm="im2col")
    got, _, _ = algorithm.backward(*given, geometry, True)
    np.testing.assert_array_equal(got, want)
    assert np.isfinite(want).sum() == want.size - 2 * 16
