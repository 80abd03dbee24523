"""Fully connected layers of few images or few weights, against NumPy in float64."""

import numpy as np
import pytest

from fastdl_lib.core.threads import CACHE_BYTES, blas_threads
from fastdl_lib.kernels import linear, vectors
from fastdl_lib.nn.layers import Linear

pytestmark = pytest.mark.skipif(not vectors.lanes(), reason="no tile is written for this CPU")
LARGE = (vectors.cache_bytes() // 4000 + 5, 1504)  # more than the cache, two blocks, odd rows
# Images and the shape of the weights: by dots, but for those of 16 images and more with large ones.
SIZES = [
    *[(1, (2, 3)), (5, (7, 16)), (17, (10, 50)), (33, (51, 577)), (CACHE_BYTES // 2**13, (3, 40))],
    *[(batch, LARGE) for batch in (2, 3, 17, 33, 48, 64)],
]


def whole_numbers(*shape):
    return np.random.default_rng(shape).integers(-3, 4, shape).astype(np.float32)


@pytest.mark.parametrize(("images", "shape"), SIZES)
def test_the_product_has_the_same_bits_in_any_batch_by_any_threads(images, shape):
    rng = np.random.default_rng(images)
    x, w = (rng.standard_normal(s, np.float32) for s in ((images, shape[1]), shape))
    made, lanes = [], vectors.lanes()
    for threads in (2, 1, 2):
        with blas_threads(threads):
            made.append(linear.product(x, w))
    right = x.astype(float) @ w.T.astype(float)
    np.testing.assert_allclose(made[0], right, rtol=0, atol=2e-6 * (abs(x) @ abs(w).T).max())
    np.testing.assert_array_equal(made[1:], [made[0]] * 2)
    for few in (1, 2, 3, 16, 17, 33, 34):
        one_way = shape != LARGE or (few > 1 and (few < lanes) == (images < lanes))
        if few < images and one_way:
            np.testing.assert_array_equal(linear.product(x[-few:], w), made[0][-few:])


@pytest.mark.parametrize(("images", "shape"), SIZES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_reaches_what_sees_it(images, shape, bad):
    x, w = np.ones((images, shape[1]), np.float32), np.ones(shape, np.float32)
    x[-1, -1] = w[0, 0] = bad
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(linear.product(x, w), x @ w.T)


@pytest.mark.parametrize("batch", [2, 17, 64])
@pytest.mark.parametrize("order", ["rows", "columns", "every other", "one value"])
def test_a_large_layer_takes_gradients_in_any_order(batch, order):
    x, grads = whole_numbers(batch, LARGE[1]), whole_numbers(batch, LARGE[0])
    if order == "columns":
        grads = np.asfortranarray(grads)
    elif order == "every other":
        grads = grads.repeat(2, axis=1)[:, ::2]
    elif order == "one value":
        grads = np.broadcast_to(np.float32(2), grads.shape)
    layer = Linear(*LARGE[::-1], rng=np.random.default_rng(3))
    layer.forward(x, training=True)
    layer.backward(grads)
    np.testing.assert_array_equal(layer.gradients["weight"], grads.T @ x)
    made = linear.gradient_by_weight(grads, x, layer.parameters["weight"])
    np.testing.assert_array_equal(made, grads.T @ x)


def test_what_goes_through_the_blas():
    x, w = np.ones((65, LARGE[1]), np.float32), np.ones(LARGE, np.float32)
    for a, b in ((x[:1], w), (x, w), (x.astype(float), w.astype(float)), (x[:20, ::2], w[:, ::2])):
        assert linear.product(a, b) is linear.gradient_by_weight(a[:, :1], a, b) is None
    assert linear.gradient_by_weight(x[:4, :3], x[:4], w[:3]) is None
