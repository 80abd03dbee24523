"""Every layer's gradient agrees with finite differences, its values with plain references."""

import copy
import math
import re

import numpy as np
import pytest
from helpers import SEEDS, images, needs_a_known_blas
from hypothesis import given
from hypothesis import strategies as st

from fastdl_lib.core import threads
from fastdl_lib.core.threads import blas_threads
from fastdl_lib.nn import layers, norms
from fastdl_lib.nn.layers import Conv2d, Dropout, Flatten, Layer, Linear, MaxPool2d, ReLU
from fastdl_lib.nn.loss import check_labels, softmax_cross_entropy
from fastdl_lib.nn.norms import BatchNorm, LocalResponseNorm


def in_float64(layer):
    layer.parameters = {name: array.astype(float) for name, array in layer.parameters.items()}
    return layer


def check_gradients(make, x, step=1e-5):
    """Compare a layer's gradients by input and weights with central finite differences.

    ``make()`` gives the same fresh layer each time, so that Dropout draws the same mask.
    """
    layer = in_float64(make())
    # A bias of zeros would hide a bias that is added in the wrong place.
    rng = np.random.default_rng(3)
    for array in layer.parameters.values():
        array += rng.standard_normal(array.shape)
    weights = layer.parameters
    out = layer.forward(x, training=True)
    assert out.shape[1:] == layer.output_shape(x.shape[1:])
    grad_out = rng.standard_normal(out.shape)
    grad_x = layer.backward(grad_out)
    assert grad_x.shape == x.shape

    def loss():
        again = make()
        again.parameters = weights
        return np.vdot(again.forward(x, training=True), grad_out)

    gradients = {"x": grad_x, **layer.gradients}
    assert gradients.keys() == {"x", *weights}
    for name, array in {"x": x, **weights}.items():
        places = rng.permutation(array.size)[:25]
        numeric = []
        for place in places:
            at = np.unravel_index(place, array.shape)
            kept = array[at]
            array[at] = kept + step
            above = loss()
            array[at] = kept - step
            numeric.append((above - loss()) / (2 * step))
            array[at] = kept
        np.testing.assert_allclose(
            gradients[name].ravel()[places], numeric, rtol=1e-5, atol=1e-7, err_msg=name
        )


# --- gradients ----------------------------------------------------------------------------------


@given(
    x=images(), filters=st.integers(1, 2), kernel=st.integers(1, 3), stride=st.integers(1, 3),
    padding=st.integers(0, 2), grouped=st.booleans(), seed=SEEDS,
)  # fmt: skip
def test_conv2d_gradient(x, filters, kernel, stride, padding, grouped, seed):
    channels = x.shape[1]
    groups = channels if grouped else 1
    kernel = min(kernel, *(size + 2 * padding for size in x.shape[2:]))

    def make():
        rng = np.random.default_rng(seed)
        window = {"stride": stride, "padding": padding, "groups": groups}
        return Conv2d(channels, filters * groups, kernel, **window, rng=rng)

    check_gradients(make, x)


@given(x=images(), kernel=st.integers(1, 4), stride=st.none() | st.integers(1, 7))
def test_max_pool_gradient(x, kernel, stride):
    kernel = min(kernel, *x.shape[2:])
    check_gradients(lambda: MaxPool2d(kernel, stride=stride), x)


@given(
    x=images(), size=st.sampled_from([1, 3, 5, 9, 11]), alpha=st.floats(1e-4, 2),
    beta=st.floats(0.1, 2), k=st.floats(0.5, 3),
)  # fmt: skip
def test_local_response_norm_gradient(x, size, alpha, beta, k):
    check_gradients(lambda: LocalResponseNorm(size, alpha=alpha, beta=beta, k=k), x)


@given(x=images())
def test_relu_and_flatten_gradients(x):
    check_gradients(ReLU, x)
    check_gradients(Flatten, x)


@given(images=st.integers(1, 4), features=st.integers(1, 6), outputs=st.integers(1, 5), seed=SEEDS)
def test_linear_gradient(images, features, outputs, seed):
    x = np.random.default_rng(seed).standard_normal((images, features))
    check_gradients(lambda: Linear(features, outputs, rng=np.random.default_rng(seed)), x)


@given(x=images(), flat=st.booleans(), seed=SEEDS)
def test_batch_norm_gradient(x, flat, seed):
    x = np.random.default_rng(seed).standard_normal((x.shape[0] + 1, *x.shape[1:]))
    x = x.reshape(len(x), -1) if flat else x
    check_gradients(lambda: BatchNorm(x.shape[1], eps=0.1), x)


@pytest.mark.parametrize("shape", [(7, 3), (4, 3, 5, 2)])
def test_batch_norm_normalises_each_feature_and_remembers(shape):
    x = np.random.default_rng(0).normal(5, 2, shape).astype(np.float32)
    layer = BatchNorm(3, momentum=0.25)
    layer.parameters["weight"][:] = [1, 2, 3]
    layer.parameters["bias"][:] = [0, 1, -1]
    axes, across = (0, *range(2, x.ndim)), (1, 3, *[1] * (x.ndim - 2))
    mean, variance = x.mean(axes, float), x.var(axes, float)

    def expected(mean, variance):
        normal = (x - mean.reshape(across)) / np.sqrt(variance.reshape(across) + 1e-4)
        weight, bias = (layer.parameters[name].reshape(across) for name in ("weight", "bias"))
        return normal * weight + bias

    close = {"rtol": 1e-4, "atol": 1e-4}
    out = layer.forward(x, training=True)
    np.testing.assert_allclose(out, expected(mean, variance), **close)
    np.testing.assert_allclose(layer.buffers["mean"], 0.25 * mean, **close)
    np.testing.assert_allclose(layer.buffers["variance"], 0.75 + 0.25 * variance, **close)
    out = layer.forward(x)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, expected(0.25 * mean, 0.75 + 0.25 * variance), **close)


def test_batch_norm_cuts_large_batches_into_blocks(monkeypatch):
    x = np.random.default_rng(0).standard_normal((50, 4, 3, 3))
    grad_out = np.random.default_rng(1).standard_normal(x.shape)
    results = []
    for size in (threads.CACHE_BYTES, 200):
        monkeypatch.setattr(threads, "CACHE_BYTES", size)
        layer = in_float64(BatchNorm(4))
        out = layer.forward(x, training=True)
        results.append((out, layer.backward(grad_out), *layer.gradients.values()))
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)


def test_batch_norm_computes_float16_in_float32():
    x = np.random.default_rng(0).normal(0, 300, (64, 2)).astype(np.float16)
    layer = BatchNorm(2)
    layer.parameters = {n: a.astype(np.float16) for n, a in layer.parameters.items()}
    out = layer.forward(x, training=True)
    assert out.dtype == np.float16 and np.isfinite(layer.buffers["variance"]).all()
    np.testing.assert_allclose(out.std(axis=0, dtype=float), 1, rtol=1e-2)
    assert layer.backward(out).dtype == np.float16


def test_batch_norm_learns_no_variance_from_one_value():
    """Such as that of an epoch's last batch, where one image is left."""
    layer = BatchNorm(2)
    before = {name: array.copy() for name, array in layer.buffers.items()}
    layer.forward(np.array([[3.0, 4.0]], np.float32), training=True)
    assert all((array == before[name]).all() for name, array in layer.buffers.items())
    layer.forward(np.ones((1, 2, 1, 2), np.float32), training=True)  # two pixels are two values
    assert (layer.buffers["mean"] != before["mean"]).all()


def test_batch_norm_refuses_other_features():
    with pytest.raises(ValueError, match=r"this BatchNorm takes \(3,\) features or \(3, H, W\)"):
        BatchNorm(3).forward(np.ones((2, 4), np.float32))
    with pytest.raises(ValueError, match=r"BatchNorm takes a batch of shape"):
        BatchNorm(3).forward(np.ones((2, 3, 4), np.float32))


@given(x=images(), rate=st.floats(0, 0.9), seed=st.integers(0, 100))
def test_dropout_gradient(x, rate, seed):
    check_gradients(lambda: Dropout(rate, seed=seed), x)


@pytest.mark.parametrize("make", [
    lambda rng: Conv2d(2, 3, 2, rng=rng),
    lambda rng: Linear(4, 3, rng=rng),
])  # fmt: skip
def test_the_first_layer_leaves_the_gradient_of_the_images_out(make):
    layer = make(np.random.default_rng(0))
    x = np.ones((2, 2, 3, 3) if isinstance(layer, Conv2d) else (2, 4), np.float32)
    assert layer.backward_weights(np.ones_like(layer.forward(x, training=True))) is None
    assert layer.gradients.keys() == {"weight", "bias"}


# --- divided among threads, in any order of memory ----------------------------------------------


def in_memory(x, order):
    """The same values: contiguous, channels last, or a part of a larger channels-last array."""
    if order == "NCHW":
        return np.ascontiguousarray(x)
    larger = np.full((x.shape[0], x.shape[2] + 1, x.shape[3] + 2, x.shape[1]), np.nan, x.dtype)
    part = larger[:, : x.shape[2], : x.shape[3]]
    part[...] = x.transpose(0, 2, 3, 1)
    return (part.copy() if order == "channels last" else part).transpose(0, 3, 1, 2)


DIVIDED = {
    "ReLU": ReLU,
    "MaxPool2d, overlapping": lambda: MaxPool2d(3, stride=2),
    "MaxPool2d": lambda: MaxPool2d(2),
    "MaxPool2d, with gaps": lambda: MaxPool2d(2, stride=3),
    "LocalResponseNorm": LocalResponseNorm,
    "Conv2d": lambda: Conv2d(6, 4, 3, padding=1, rng=np.random.default_rng(0)),
}


@needs_a_known_blas
@pytest.mark.parametrize("order", ["NCHW", "channels last", "a part"])
@pytest.mark.parametrize("name", DIVIDED)
def test_threads_blocks_and_order_of_memory_change_nothing(name, order, monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 4, (7, 6, 9, 8)).astype(np.float32)  # some ties
    with blas_threads(1):
        layer = DIVIDED[name]()
        expected = layer.forward(x, training=True)
        grad_out = rng.standard_normal(expected.shape).astype(np.float32)
        expected_grad = layer.backward(grad_out)
    monkeypatch.setattr(threads, "CACHE_BYTES", 2**11)
    parts, plain = [], layers.in_parallel

    def watched(work, *arguments, **options):
        plain(lambda part: (parts.append(part), work(part)), *arguments, **options)

    for module in (layers, norms):
        monkeypatch.setattr(module, "in_parallel", watched)
    with blas_threads(3):
        layer = DIVIDED[name]()
        out = layer.forward(in_memory(x, order), training=True)
        grad = layer.backward(in_memory(grad_out, order))
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if name == "Conv2d" else {"rtol": 1e-6}
    np.testing.assert_allclose(out, expected, **tolerance)
    np.testing.assert_allclose(grad, expected_grad, **tolerance)
    assert name == "Conv2d" or len(parts) > 6, "the work was not divided"


@needs_a_known_blas
@pytest.mark.parametrize("threads", [2, 3])
def test_a_linear_layer_divides_its_features(threads):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 200)).astype(np.float32)
    results = []
    for count in (1, threads):
        layer = Linear(200, 210, rng=np.random.default_rng(1))
        with blas_threads(count):
            out = layer.forward(x, training=True)
            grad_x = layer.backward(out)
        results.append([out, grad_x, *layer.gradients.values()])
    for one, divided in zip(*results, strict=True):
        np.testing.assert_allclose(divided, one, rtol=1e-4, atol=1e-4)


# --- values -------------------------------------------------------------------------------------


def pool_by_loops(x, kernel, stride):
    """(largest value of each window, its first place in row order)."""
    out_h, out_w = ((size - kernel) // stride + 1 for size in x.shape[2:])
    out = np.empty((*x.shape[:2], out_h, out_w), x.dtype)
    places = {}
    for n, c, i, j in np.ndindex(out.shape):
        window = x[n, c, i * stride : i * stride + kernel, j * stride : j * stride + kernel]
        p, q = np.unravel_index(np.argmax(window), window.shape)  # argmax takes the first
        out[n, c, i, j] = window[p, q]
        places[n, c, i, j] = (n, c, i * stride + p, j * stride + q)
    return out, places


@given(
    shape=st.tuples(*[st.integers(1, 3)] * 2, *[st.integers(1, 8)] * 2),
    kernel=st.integers(1, 4), stride=st.integers(1, 9), seed=SEEDS,
)  # fmt: skip
def test_max_pool_agrees_with_loops_ties_and_overlap_included(shape, kernel, stride, seed):
    rng = np.random.default_rng(seed)
    kernel = min(kernel, *shape[2:])
    x = rng.integers(-1, 2, shape).astype(np.float32)  # three values: many ties
    layer = MaxPool2d(kernel, stride=stride)
    out = layer.forward(x, training=True)
    expected, places = pool_by_loops(x, kernel, stride)
    np.testing.assert_array_equal(out, expected)
    grad_out = rng.integers(-9, 9, out.shape).astype(np.float32)
    grad_x = np.zeros_like(x)
    for at, place in places.items():
        grad_x[place] += grad_out[at]
    np.testing.assert_array_equal(layer.backward(grad_out), grad_x)


def test_max_pool_drops_windows_that_do_not_fit():
    x = np.arange(25, dtype=np.float32).reshape(1, 1, 5, 5)
    assert MaxPool2d(2).forward(x).tolist() == [[[[6, 8], [16, 18]]]]
    assert MaxPool2d(3, stride=2).forward(x).tolist() == [[[[12, 14], [22, 24]]]]


@given(x=images(), size=st.sampled_from([1, 3, 5, 9]))
def test_local_response_norm_agrees_with_a_loop(x, size):
    alpha, beta, k = 0.3, 0.75, 2.0
    expected = np.empty_like(x)
    for c in range(x.shape[1]):
        near = x[:, max(0, c - size // 2) : c + size // 2 + 1]
        expected[:, c] = x[:, c] / (k + alpha * (near**2).sum(axis=1)) ** beta
    out = LocalResponseNorm(size, alpha=alpha, beta=beta, k=k).forward(x)
    np.testing.assert_allclose(out, expected, rtol=1e-12)


def test_local_response_norm_has_the_constants_of_the_paper():
    layer = LocalResponseNorm()
    assert (layer.size, layer.alpha, layer.beta, layer.k) == (5, 1e-4, 0.75, 2.0)


def test_linear_by_hand():
    layer = Linear(2, 3, rng=np.random.default_rng(0))
    layer.parameters = {"weight": np.array([[1.0, 2], [3, 4], [5, 6]]), "bias": np.arange(3.0)}
    assert layer.forward(np.array([[1.0, 10]])).tolist() == [[21, 44, 67]]


# --- dropout ------------------------------------------------------------------------------------


def test_dropout_drops_at_its_rate_and_scales_the_rest():
    x = np.full((100, 1000), 3.0, np.float32)
    out = Dropout(0.25, seed=0).forward(x, training=True)
    assert np.unique(out).tolist() == [0.0, 4.0]
    # 100,000 draws: the standard deviation of the rate is 0.0014.
    assert np.mean(out == 0) == pytest.approx(0.25, abs=0.007)


def test_dropout_is_seeded_and_draws_anew_each_time():
    x = np.ones((10, 100), np.float32)
    first, second = Dropout(0.5, seed=1), Dropout(0.5, seed=1)
    a, b = (first.forward(x, training=True) for _ in range(2))
    assert (a != b).any()
    assert (a == second.forward(x, training=True)).all()
    assert (a != Dropout(0.5, seed=2).forward(x, training=True)).any()


def test_dropout_does_nothing_outside_training():
    x = np.ones((3, 4), np.float32)
    layer = Dropout(0.9)
    layer.forward(x, training=True)
    assert layer.forward(x) is x
    with pytest.raises(RuntimeError, match=r"needs a forward\(x, training=True\)"):
        layer.backward(x)


@pytest.mark.parametrize("rate", [-0.1, 1, math.nan, "a", None, True, [0.5]])
def test_dropout_refuses_what_is_no_rate(rate):
    with pytest.raises((TypeError, ValueError), match=r"rate must .*, such as 0\.5; got"):
        Dropout(rate)


def test_a_rate_of_numpy_does_not_widen():
    x = np.ones((3, 4), np.float32)
    assert Dropout(np.float64(0.5)).forward(x, training=True).dtype == np.float32


# --- loss ---------------------------------------------------------------------------------------


def losses_in_float64(logits, labels):
    logits = np.longdouble(logits)
    return np.array([
        np.log(np.exp(row - row.max()).sum()) - (row[label] - row.max())
        for row, label in zip(logits, labels, strict=True)
    ])  # fmt: skip


@given(images=st.integers(1, 5), classes=st.integers(1, 6), seed=SEEDS, scale=st.floats(0, 50))
def test_softmax_cross_entropy_and_its_gradient(images, classes, seed, scale):
    rng = np.random.default_rng(seed)
    logits = scale * rng.standard_normal((images, classes))
    labels = rng.integers(classes, size=images)
    before = logits.copy()
    loss, grad = softmax_cross_entropy(logits, labels)
    assert float(loss) == pytest.approx(float(losses_in_float64(logits, labels).mean()), abs=1e-10)
    assert (logits == before).all()
    for at in np.ndindex(logits.shape):
        moved = []
        for step in (1e-4, -1e-4):
            logits[at] = before[at] + step
            moved.append(losses_in_float64(logits, labels).mean())
        logits[at] = before[at]
        assert grad[at] == pytest.approx(float((moved[0] - moved[1]) / 2e-4), abs=1e-6)
    np.testing.assert_allclose(grad.sum(axis=1), 0, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("label_dtype", [np.uint8, np.int64])
def test_softmax_cross_entropy_keeps_the_dtype_and_does_not_overflow(dtype, label_dtype):
    logits = np.array([[1e4, 0], [0, -1e4]], dtype)
    loss, grad = softmax_cross_entropy(logits, np.array([0, 1], label_dtype))
    assert loss.shape == () and float(loss) == pytest.approx(5e3) and grad.dtype == dtype
    assert grad.tolist() == [[0, 0], [0.5, -0.5]]


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (np.array([0, 3]), ValueError, r"there are 3 classes: .* in 0\.\.2, got 0\.\.3"),
        (np.array([-1, 0]), ValueError, r"must lie in 0\.\.2, got -1\.\.0"),
        (np.array([0.0, 1.0]), TypeError, "whole numbers, got float64"),
        (np.array([True, False]), TypeError, "whole numbers, got bool"),
        (np.array([0]), ValueError, r"the shape \(2,\), one for each image; got \(1,\)"),
        (np.eye(3, dtype=int)[:2], ValueError, r"\(2,\), .* got \(2, 3\)"),
        ([0, 1], TypeError, r"np\.asarray"),
    ],
)
def test_bad_labels_are_refused(labels, error, message):
    with pytest.raises(error, match=message):
        check_labels(labels, 2, 3)


# --- what holds for every layer -----------------------------------------------------------------

EVERY_LAYER = {
    "Conv2d": (lambda rng: Conv2d(4, 6, 3, stride=2, padding=1, groups=2, rng=rng), (2, 4, 7, 7)),
    "MaxPool2d": (lambda rng: MaxPool2d(3, stride=2), (2, 4, 7, 7)),
    "LocalResponseNorm": (lambda rng: LocalResponseNorm(), (2, 4, 7, 7)),
    "ReLU": (lambda rng: ReLU(), (2, 4, 7, 7)),
    "Flatten": (lambda rng: Flatten(), (2, 4, 7, 7)),
    "Linear": (lambda rng: Linear(5, 3, rng=rng), (2, 5)),
    "BatchNorm": (lambda rng: BatchNorm(4), (2, 4, 7, 7)),
    "Dropout": (lambda rng: Dropout(0.5), (2, 5)),
}


@pytest.fixture(params=EVERY_LAYER)
def layer_and_x(request):
    make, shape = EVERY_LAYER[request.param]
    rng = np.random.default_rng(0)
    return make(rng), rng.standard_normal(shape, dtype=np.float32)


def a_layer(kind):
    return isinstance(kind, type) and issubclass(kind, Layer) and kind is not Layer


def test_every_layer_is_tried_here():
    modules = (layers, norms)
    found = {kind.__name__ for module in modules for kind in vars(module).values() if a_layer(kind)}
    assert found == EVERY_LAYER.keys()


def test_float32_stays_float32(layer_and_x):
    layer, x = layer_and_x
    for training in (False, True):
        out = layer.forward(x, training)
        assert out.dtype == np.float32
        assert out.shape == (len(x), *layer.output_shape(x.shape[1:]))
    assert layer.backward(np.ones_like(out)).dtype == np.float32
    arrays = [*layer.parameters.values(), *layer.gradients.values()]
    assert {array.dtype for array in arrays} <= {np.dtype(np.float32)}


def test_forward_and_backward_change_neither_input_nor_gradient(layer_and_x):
    layer, x = layer_and_x
    before = x.copy()
    out = layer.forward(x, training=True)
    kept, grad_out = out.copy(), np.ones_like(out)
    layer.backward(grad_out)
    assert (x == before).all() and (out == kept).all() and (grad_out == 1).all()


def test_training_does_not_change_the_answer(layer_and_x):
    layer, x = layer_and_x
    if not isinstance(layer, (BatchNorm, Dropout)):
        np.testing.assert_array_equal(layer.forward(x), layer.forward(x, training=True))


def test_backward_before_forward_says_what_to_do(layer_and_x):
    layer, x = layer_and_x
    message = r"\.backward\(\) needs a forward\(x, training=True\) before it"
    with pytest.raises(RuntimeError, match=message):
        layer.backward(x)
    grad_out = np.ones_like(layer.forward(x))  # not in training
    with pytest.raises(RuntimeError, match=message):
        layer.backward(grad_out)
    layer.forward(x, training=True)
    layer.backward(grad_out)
    with pytest.raises(RuntimeError, match=message):  # each forward serves once
        layer.backward(grad_out)


def test_a_gradient_of_another_shape_or_dtype_is_refused(layer_and_x):
    layer, x = layer_and_x
    grad_out = np.ones_like(layer.forward(x, training=True))
    with pytest.raises(ValueError, match=r"takes a gradient of the output's shape \(2, "):
        layer.backward(grad_out[:1])
    with pytest.raises(TypeError, match=r"float32, got float64; use grad\.astype\(np\.float32\)"):
        layer.backward(grad_out.astype(np.float64))
    layer.backward(grad_out)  # the refusals cost nothing


def test_a_list_is_refused(layer_and_x):
    layer, x = layer_and_x
    with pytest.raises(TypeError, match=r"expected a NumPy or CuPy array, got list"):
        layer.forward(x.tolist(), training=True)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [int, bool, np.uint8, np.complex64])
@pytest.mark.parametrize("name", sorted(EVERY_LAYER.keys() - {"Flatten"}))
def test_other_dtypes_are_refused(name, dtype, training):
    make, shape = EVERY_LAYER[name]
    with pytest.raises(TypeError, match=rf"{np.dtype(dtype)}.*use x\.astype\(np\.float32\)"):
        make(np.random.default_rng(0)).forward(np.ones(shape, dtype), training)


@pytest.mark.parametrize("shape", [(0, 3), (0, 4, 7, 7), (2, 0)])
@pytest.mark.parametrize("make", [ReLU, lambda: Dropout(0.5)])
def test_layers_for_any_shape_refuse_what_is_empty(make, shape):
    with pytest.raises(ValueError, match=r"takes a batch of shape \(N, \.\.\.\), no size 0; got"):
        make().forward(np.ones(shape, np.float32))


@pytest.mark.parametrize("shape", [(4, 7, 7), (0, 4, 7, 7), (2, 4, 0, 7)])
@pytest.mark.parametrize("name", ["Conv2d", "MaxPool2d", "LocalResponseNorm", "Flatten"])
def test_what_is_no_batch_of_images_is_refused(name, shape):
    layer = EVERY_LAYER[name][0](np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"\(N, C, H, W\)|every size must be >= 1"):
        layer.forward(np.ones(shape, np.float32))


SIZES = {
    "in_channels must be at least 1, got 0": lambda rng: Conv2d(0, 1, 3, rng=rng),
    "out_channels must be at least 1": lambda rng: Conv2d(1, -2, 3, rng=rng),
    "kernel must be at least 1": lambda rng: Conv2d(1, 1, 0, rng=rng),
    "kernel must be a whole number": lambda rng: Conv2d(1, 1, 1.5, rng=rng),
    "stride must be at least 1": lambda rng: Conv2d(1, 1, 3, stride=0, rng=rng),
    "padding must be at least 0": lambda rng: Conv2d(1, 1, 3, padding=-1, rng=rng),
    "groups=3 must divide in_channels=4": lambda rng: Conv2d(4, 6, 3, groups=3, rng=rng),
    "groups must be at least 1": lambda rng: Conv2d(4, 4, 3, groups=0, rng=rng),
    "groups must be a whole number, got True": lambda rng: Conv2d(4, 4, 3, groups=True, rng=rng),
    "groups must be a whole number, got 2.0": lambda rng: Conv2d(4, 4, 3, groups=2.0, rng=rng),
    "rng must be a NumPy generator": lambda rng: Conv2d(1, 1, 3, rng=None),
    "such as np.random.default_rng(0); got 3": lambda rng: Linear(2, 1, rng=3),
    "in_features must be at least 1, got 0": lambda rng: Linear(0, 1, rng=rng),
    "out_features must be a whole number": lambda rng: Linear(2, 1.0, rng=rng),
    "kernel must be at least 1, got 0": lambda rng: MaxPool2d(0),
    "stride must be at least 1, got 0": lambda rng: MaxPool2d(2, stride=0),
    "size must be at least 1, got 0": lambda rng: LocalResponseNorm(0),
    "size must be odd": lambda rng: LocalResponseNorm(4),
}


@pytest.mark.parametrize("message", SIZES)
def test_sizes_that_cannot_be_are_refused(message):
    wrong_type = "whole number" in message or "rng" in message
    with pytest.raises(TypeError if wrong_type else ValueError, match=re.escape(message)):
        SIZES[message](np.random.default_rng(0))


def test_linear_refuses_other_features_and_dtypes():
    layer = Linear(5, 3, rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"takes \(5,\) features, got \(4,\)"):
        layer.forward(np.ones((2, 4), np.float32))
    with pytest.raises(ValueError, match=r"a batch of shape \(N, 5\)"):
        layer.forward(np.ones(5, np.float32))
    message = r"x is float64 but weight is float32; use x\.astype\(np\.float32\)"
    with pytest.raises(TypeError, match=message):
        layer.forward(np.ones((2, 5)))


def test_a_pooling_window_larger_than_the_image_is_refused():
    with pytest.raises(ValueError, match="a window of 3 does not fit an input of 2"):
        MaxPool2d(3).forward(np.ones((1, 1, 2, 2), np.float32))


def test_constants_of_lrn_do_not_widen_a_float32_batch():
    layer = LocalResponseNorm(alpha=np.float64(1e-4), beta=np.float64(0.75), k=np.float64(2))
    x = np.ones((1, 4, 2, 2), np.float32)
    assert layer.forward(x, training=True).dtype == np.float32
    assert layer.backward(x).dtype == np.float32


def test_conv2d_picks_by_shape_and_takes_any_by_name():
    rng = np.random.default_rng(0)
    layer = Conv2d(16, 16, 3, rng=rng)
    x = rng.standard_normal((4, 16, 14, 14)).astype(np.float32)
    assert (layer.algorithm_for(x), layer.algorithm_for(x[:1])) == ("winograd", "blocked")
    expected = layer.forward(x)
    for name in ("loops", "compiled", "im2col", "blocked", "winograd"):
        layer.algorithm = name
        assert layer.algorithm_for(x) == name
        np.testing.assert_allclose(layer.forward(x), expected, atol=1e-4)
    with pytest.raises(ValueError, match=r"must be one of .*'winograd'.*, got 'fft'"):
        layer.algorithm = "fft"
    with pytest.raises(ValueError, match="got 'fast'"):
        Conv2d(16, 16, 3, algorithm="fast", rng=rng)


def test_conv2d_lays_its_weights_out_as_the_algorithm_reads_them():
    layer = Conv2d(3, 4, 2, rng=np.random.default_rng(0))
    weight = layer.parameters["weight"]
    assert weight.transpose(0, 2, 3, 1).flags.c_contiguous
    twin = copy.copy(layer)
    layer.algorithm = "im2col"
    assert layer.parameters["weight"].flags.c_contiguous
    assert twin.parameters["weight"] is weight
    assert (layer.parameters["weight"] == weight).all()
    layer.algorithm = "blocked"
    assert layer.parameters["weight"].transpose(0, 2, 3, 1).flags.c_contiguous
    assert (layer.parameters["weight"] == weight).all()


def test_whole_numbers_may_be_numpys_small_ones():
    """12 x 12 taps and 219 outputs are more than an int8 holds."""
    small, rng = np.int8, np.random.default_rng(0)
    layer = Conv2d(small(1), small(2), small(12), padding=small(100), rng=rng)
    assert np.isfinite(layer.parameters["weight"]).all()
    assert layer.macs((1, 30, 30)) == 2 * 219**2 * 144
    assert layer.forward(np.ones((1, 1, 30, 30), np.float32)).shape == (1, 2, 219, 219)
    assert MaxPool2d(small(100)).forward(np.ones((1, 1, 300, 300))).shape == (1, 1, 3, 3)
    assert Linear(small(100), small(100), rng=rng).macs((100,)) == 10_000
