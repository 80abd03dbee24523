"""Dot products of some rows with many: beside NumPy, and the same in every batch."""

import numpy as np
import pytest

from fastdl_lib.kernels import dots, vectors

pytestmark = pytest.mark.skipif(not vectors.lanes(), reason="no tile is written for this CPU")
SIZES = pytest.mark.parametrize(
    ("images", "length", "rows"), [(1, 3, 2), (5, 16, 7), (17, 50, 10), (33, 577, 51)]
)


@SIZES
def test_an_image_has_the_same_sums_in_every_batch(images, length, rows):
    rng = np.random.default_rng(images)
    x, w = (rng.standard_normal((n, length), np.float32) for n in (images, rows))
    together = dots.product(x, w)
    np.testing.assert_allclose(together, x.astype(float) @ w.T.astype(float), rtol=0, atol=1e-4)
    for n in range(images):
        np.testing.assert_array_equal(dots.product(x[n:], w), together[n:])


@SIZES
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_reaches_what_sees_it(images, length, rows, bad):
    x, w = np.ones((images, length), np.float32), np.ones((rows, length), np.float32)
    x[-1, -1] = w[0, 0] = bad
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(dots.product(x, w), x @ w.T)
