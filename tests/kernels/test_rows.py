"""The product of few rows, against NumPy's in float64."""

import numpy as np
import pytest

from fastdl_lib.kernels import rows, vectors
from fastdl_lib.nn.layers import Linear

pytestmark = pytest.mark.skipif(not vectors.lanes(), reason="no tile is written for this CPU")


@pytest.fixture(scope="module")
def weight():
    size = (vectors.cache_bytes() // 4000 + 5, 1504)  # more than the cache, two blocks, odd rows
    return np.random.default_rng(0).normal(size=size).astype(np.float32)


@pytest.mark.parametrize("batch", [2, 3, 17, 33, 48, 64])
def test_it_is_the_product_and_an_image_has_the_same_bits_in_any_batch(weight, batch):
    x = np.random.default_rng(batch).normal(size=(64, weight.shape[1])).astype(np.float32)
    assert rows.fits(x[:batch], weight)
    made = rows.product(x[:batch], weight)
    right = x[:batch].astype(float) @ weight.T.astype(float)
    np.testing.assert_allclose(made, right, rtol=0, atol=2e-6 * abs(right).max())
    np.testing.assert_array_equal(made, rows.product(x, weight)[:batch])


@pytest.mark.parametrize("batch", [2, 17, 64])
def test_the_gradient_by_the_weights(weight, batch):
    rng = np.random.default_rng(batch)
    x, grads = (rng.integers(-3, 4, (batch, n)).astype(np.float32) for n in weight.shape[::-1])
    out = np.full_like(weight, np.nan)
    rows.outer_product(grads[:, 2:], x, out[2:])
    np.testing.assert_array_equal(out[2:], grads[:, 2:].T @ x)
    assert np.isnan(out[:2]).all()


@pytest.mark.parametrize("order", ["columns", "every other", "one value"])
def test_a_large_layer_takes_gradients_in_any_order(weight, order):
    rng = np.random.default_rng(3)
    layer = Linear(*weight.shape[::-1], rng=rng)
    x, grads = (rng.integers(-3, 4, (5, n)).astype(np.float32) for n in weight.shape[::-1])
    if order == "columns":
        grads = np.asfortranarray(grads)
    elif order == "every other":
        grads = grads.repeat(2, axis=1)[:, ::2]
    else:
        grads = np.broadcast_to(np.float32(2), grads.shape)
    layer.forward(x, training=True)
    layer.backward(grads)
    np.testing.assert_array_equal(layer.gradients["weight"], grads.T @ x)


def test_what_is_no_number_stays_where_numpy_leaves_it(weight):
    x = np.ones((5, weight.shape[1]), np.float32)
    x[1, 7], x[2, 1400] = np.nan, np.inf
    made, right = rows.product(x, weight), x @ weight.T
    np.testing.assert_array_equal(np.isnan(made), np.isnan(right))
    np.testing.assert_array_equal(np.isinf(made), np.isinf(right))


def test_what_it_does_not_take_goes_through_the_blas(weight):
    x = np.ones((4, weight.shape[1]), np.float32)
    assert not rows.fits(x[:1], weight) and not rows.fits(x, weight[:3])
    assert not rows.fits(x.astype(float), weight.astype(float)) and not rows.fits(x[:, ::2], weight)
