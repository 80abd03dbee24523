"""Every layer's gradient agrees with finite differences, its values with plain references."""

import copy
import importlib
import pkgutil

import numpy as np
import pytest
from helpers import LAYERS, SEEDS, images, layer_and_batch, needs_a_known_blas, numeric_gradient
from hypothesis import given
from hypothesis import strategies as st

from fastdl_lib import binary, nn
from fastdl_lib.binary.layers import PixelBytes
from fastdl_lib.convolution.algorithms import ALGORITHMS
from fastdl_lib.core import threads
from fastdl_lib.core.threads import blas_threads
from fastdl_lib.measuring.costs import KINDS
from fastdl_lib.nn import layers
from fastdl_lib.nn.layers import (
    Conv2d,
    Dropout,
    Flatten,
    Layer,
    Linear,
    MaxPool2d,
    ReLU,
)
from fastdl_lib.nn.loss import check_labels, loss_and_gradient
from fastdl_lib.nn.network import Network
from fastdl_lib.nn.norms import BatchNorm, LocalResponseNorm
from fastdl_lib.nn.optimizers import SGD
from fastdl_lib.nn.training import fit

RNG = np.random.default_rng

# --- gradients ----------------------------------------------------------------------------------


def some_conv(draw, x):
    channels, padding = x.shape[1], draw(st.integers(0, 2))
    groups = draw(st.sampled_from([1, channels]))
    kernel = min(draw(st.integers(1, 3)), *(size + 2 * padding for size in x.shape[2:]))
    filters = groups * draw(st.integers(1, 2))
    window = {"stride": draw(st.integers(1, 3)), "padding": padding, "groups": groups}
    return x, lambda: Conv2d(channels, filters, kernel, **window, rng=RNG(0))


def some_pool(draw, x):
    kernel = min(draw(st.integers(1, 4)), *x.shape[2:])
    stride = draw(st.none() | st.integers(1, 7))
    return x, lambda: MaxPool2d(kernel, stride=stride)


def some_response_norm(draw, x):
    constants = {
        "size": draw(st.sampled_from([1, 3, 5, 9, 11])), "alpha": draw(st.floats(1e-4, 2)),
        "beta": draw(st.floats(0.1, 2)), "k": draw(st.floats(0.5, 3)),
    }  # fmt: skip
    return x, lambda: LocalResponseNorm(**constants)


def some_linear(draw, x):
    x, outputs = x.reshape(len(x), -1), draw(st.integers(1, 5))
    return x, lambda: Linear(x.shape[1], outputs, rng=RNG(0))


def some_batch_norm(draw, x):
    x = RNG(draw(SEEDS)).standard_normal((len(x) + 1, *x.shape[1:]))
    x = x.reshape(len(x), -1) if draw(st.booleans()) else x
    return x, lambda: BatchNorm(x.shape[1], eps=0.1)


def some_dropout(draw, x):
    rate, seed = draw(st.floats(0, 0.9)), draw(st.integers(0, 100))
    return x, lambda: Dropout(rate, seed=seed)


# Layers that other shapes and constants are drawn for than those of LAYERS.
SOME = {
    "Conv2d": some_conv,
    "MaxPool2d": some_pool,
    "LocalResponseNorm": some_response_norm,
    "ReLU": lambda draw, x: (x, ReLU),
    "Flatten": lambda draw, x: (x, Flatten),
    "Linear": some_linear,
    "BatchNorm": some_batch_norm,
    "Dropout": some_dropout,
}


# Those of binary layers are stand-ins, and tested there.
OF_NN = [name for name, (make, _) in LAYERS.items() if f"{nn.__name__}." in make().__module__]


def in_float64(layer):
    layer.parameters = {name: array.astype(float) for name, array in layer.parameters.items()}
    return layer


@pytest.mark.parametrize("name", OF_NN)
@given(data=st.data(), x=images())
def test_gradients_agree_with_finite_differences(name, data, x):
    make, shape = LAYERS[name]
    if name in SOME:
        x, make = SOME[name](data.draw, x)  # make() gives the same layer each time, masks included
    else:
        x = RNG(data.draw(SEEDS)).standard_normal(shape)
    layer, rng = in_float64(make()), RNG(3)
    for array in layer.parameters.values():
        array += rng.standard_normal(array.shape)  # zeros would hide a misplaced bias
    weights = layer.parameters
    out = layer.forward(x, training=True)
    assert out.shape[1:] == layer.output_shape(x.shape[1:])
    grad_out = rng.standard_normal(out.shape)
    gradients = {"x": layer.backward(grad_out), **layer.gradients}
    assert gradients["x"].shape == x.shape and gradients.keys() == {"x", *weights}

    def loss():
        again = make()
        again.parameters = weights
        return np.vdot(again.forward(x, training=True), grad_out)

    for which, array in {"x": x, **weights}.items():
        places = rng.permutation(array.size)[:25]
        numeric = numeric_gradient(loss, array, places, 1e-5)
        np.testing.assert_allclose(
            gradients[which].ravel()[places], numeric, rtol=1e-5, atol=1e-7, err_msg=which
        )


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
    "BatchNorm": lambda: BatchNorm(6),
    "Conv2d": lambda: Conv2d(6, 4, 3, padding=1, rng=RNG(0)),
}


@needs_a_known_blas
@pytest.mark.parametrize("order", ["NCHW", "channels last", "a part"])
@pytest.mark.parametrize("name", DIVIDED)
def test_threads_blocks_and_order_of_memory_change_nothing(name, order, monkeypatch):
    x = RNG(0).integers(-3, 4, (7, 6, 9, 8)).astype(np.float32)  # some ties
    layer = DIVIDED[name]()
    with blas_threads(1):
        out = layer.forward(x, training=True)
        grad_out = RNG(1).standard_normal(out.shape).astype(np.float32)
        expected = [out, layer.backward(grad_out), *layer.gradients.values()]
    monkeypatch.setattr(threads, "CACHE_BYTES", 2**11)
    parts, plain = [], layers.in_parallel

    def watched(work, *arguments, **options):
        plain(lambda part: (parts.append(part), work(part)), *arguments, **options)

    monkeypatch.setattr(layers, "in_parallel", watched)
    layer = DIVIDED[name]()
    with blas_threads(3):
        out = layer.forward(in_memory(x, order), training=True)
        got = [out, layer.backward(in_memory(grad_out, order)), *layer.gradients.values()]
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if layer.parameters else {"rtol": 1e-6}
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, **tolerance)
    assert name == "Conv2d" or len(parts) > 6, "the work was not divided"


@needs_a_known_blas
def test_a_linear_layer_divides_its_features():
    x, results = RNG(0).standard_normal((5, 200)).astype(np.float32), []
    for count in (1, 2, 3):
        layer = Linear(200, 210, rng=RNG(1))
        with blas_threads(count):
            out = layer.forward(x, training=True)
            results.append([out, layer.backward(out), *layer.gradients.values()])
    for one, *others in zip(*results, strict=True):
        for divided in others:
            np.testing.assert_allclose(divided, one, rtol=1e-4, atol=1e-4)


# --- values -------------------------------------------------------------------------------------


@given(
    shape=st.tuples(*[st.integers(1, 3)] * 2, *[st.integers(1, 8)] * 2),
    kernel=st.integers(1, 4), stride=st.integers(1, 9), seed=SEEDS,
)  # fmt: skip
def test_max_pool_agrees_with_loops_ties_and_overlap_included(shape, kernel, stride, seed):
    rng, kernel = RNG(seed), min(kernel, *shape[2:])
    x = rng.integers(-1, 2, shape).astype(np.float32)  # three values: many ties
    layer = MaxPool2d(kernel, stride=stride)
    out = layer.forward(x, training=True)
    # Windows that do not fit whole are dropped.
    assert out.shape[2:] == tuple((size - kernel) // stride + 1 for size in shape[2:])
    grad_out = rng.integers(-9, 9, out.shape).astype(np.float32)
    grad_x = np.zeros_like(x)
    for n, c, i, j in np.ndindex(out.shape):
        window = x[n, c, i * stride : i * stride + kernel, j * stride : j * stride + kernel]
        p, q = np.unravel_index(np.argmax(window), window.shape)  # argmax takes the first
        assert out[n, c, i, j] == window[p, q]
        grad_x[n, c, i * stride + p, j * stride + q] += grad_out[n, c, i, j]
    np.testing.assert_array_equal(layer.backward(grad_out), grad_x)


@given(x=images(), size=st.sampled_from([1, 3, 5, 9]))
def test_local_response_norm_agrees_with_a_loop(x, size):
    alpha, beta, k = 0.3, 0.75, 2.0
    expected = np.empty_like(x)
    for c in range(x.shape[1]):
        near = x[:, max(0, c - size // 2) : c + size // 2 + 1]
        expected[:, c] = x[:, c] / (k + alpha * (near**2).sum(axis=1)) ** beta
    out = LocalResponseNorm(size, alpha=alpha, beta=beta, k=k).forward(x)
    np.testing.assert_allclose(out, expected, rtol=1e-12)
    paper = LocalResponseNorm()
    assert (paper.size, paper.alpha, paper.beta, paper.k) == (5, 1e-4, 0.75, 2.0)


def test_linear_by_hand():
    layer = Linear(2, 3, rng=RNG(0))
    layer.parameters = {"weight": np.array([[1.0, 2], [3, 4], [5, 6]]), "bias": np.arange(3.0)}
    assert layer.forward(np.array([[1.0, 10]])).tolist() == [[21, 44, 67]]


@pytest.mark.parametrize("shape", [(7, 3), (4, 3, 5, 2)])
def test_batch_norm_normalises_each_feature_and_remembers(shape):
    x = RNG(0).normal(5, 2, shape).astype(np.float32)
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
    np.testing.assert_allclose(layer.forward(x, training=True), expected(mean, variance), **close)
    np.testing.assert_allclose(layer.buffers["mean"], 0.25 * mean, **close)
    np.testing.assert_allclose(layer.buffers["variance"], 0.75 + 0.25 * variance, **close)
    learnt = expected(0.25 * mean, 0.75 + 0.25 * variance)
    np.testing.assert_allclose(layer.forward(x), learnt, **close)


def test_float16_is_computed_in_float32_and_rounded_once():
    x = RNG(0).normal(0, 300, (64, 2)).astype(np.float16)
    network = Network("N", [("norm", BatchNorm(2)), ("flat", Flatten())], (2, 1, 1))
    layer = network.astype(np.float16).layers["norm"]
    out = layer.forward(x, training=True)
    assert out.dtype == layer.parameters["weight"].dtype == np.float16
    np.testing.assert_allclose(out.std(axis=0, dtype=float), 1, rtol=1e-2)
    assert layer.backward(out).dtype == np.float16
    # More than float16's largest number, 65,504.
    assert layer.buffers["variance"].dtype == np.float32
    for _ in range(50):
        layer.forward(x, training=True)
    np.testing.assert_allclose(layer.buffers["variance"], x.var(axis=0, dtype=float), rtol=0.02)

    dropout = Dropout(0.1)
    dropped = dropout.forward(x, training=True)
    for array in (dropped, dropout.backward(x)):
        assert (array == np.where(dropped == 0, 0, x / np.float32(0.9)).astype(np.float16)).all()

    pool, x = MaxPool2d(2, stride=1), np.zeros((1, 1, 3, 3), np.float16)
    x[0, 0, 1, 1] = 1  # the largest of four windows
    pool.forward(x, training=True)
    grads = np.array([[[[1, 1], [1, 2048]]]], np.float16)  # 2048 + 1 is 2048 in float16
    assert pool.backward(grads)[0, 0, 1, 1] == np.float16(2051)


@pytest.mark.parametrize("shape", [(3, 1, 1), (1, 1, 3)])
def test_batch_norm_learns_no_variance_from_the_one_image_that_is_left(shape):
    """An epoch's last batch; over channels of one pixel, or features."""
    x = (3 * RNG(0).standard_normal((161, *shape)) + 1).astype(np.float32)
    norm, flat = ("norm", BatchNorm(3)), ("flat", Flatten())
    first = [norm, flat] if shape[0] == 3 else [flat, norm]
    network = Network("N", [*first, ("fc", Linear(3, 2, rng=RNG(0)))], shape)
    fit(network, x, np.arange(161) % 2, epochs=5, batch=20, optimizer=SGD(0.01), progress=False)
    variance, mean = (norm[1].buffers[name] for name in ("variance", "mean"))
    np.testing.assert_allclose(variance, x.var(axis=0, dtype=float).ravel(), rtol=0.15)
    np.testing.assert_allclose(mean, x.mean(axis=0, dtype=float).ravel(), atol=0.5)
    before = variance.copy()
    out = norm[1].forward(x[:1].reshape(1, 3), training=True)
    assert (out == norm[1].parameters["bias"]).all() and (variance == before).all()
    assert not norm[1].backward(np.ones_like(out)).any()
    norm[1].forward(np.ones((1, 3, 1, 2), np.float32), training=True)  # two pixels are two values
    assert (variance < before).all()


@pytest.mark.filterwarnings("ignore:overflow")
def test_a_variance_that_overflows_is_seen():
    """By infinity everything were divided to 0, which looks like an answer."""
    layer, x = BatchNorm(2), np.array([[1e25, 1], [-1e25, 3]], np.float32)
    out = layer.forward(x, training=True)
    assert np.isnan(out[:, 0]).all() and out[:, 1].round(3).tolist() == [-1, 1]
    assert np.isnan(layer.buffers["variance"][0])
    assert np.isnan(layer.forward(x)[:, 0]).all()


def test_dropout_drops_at_its_rate_by_its_seed_and_in_training_only():
    x = np.full((100, 1000), 3.0, np.float32)
    layer, same = Dropout(0.25, seed=1), Dropout(0.25, seed=1)
    first, second = (layer.forward(x, training=True) for _ in range(2))
    assert np.unique(first).tolist() == [0.0, 4.0]
    # 100,000 draws: the standard deviation of the rate is 0.0014.
    assert np.mean(first == 0) == pytest.approx(0.25, abs=0.007)
    assert (first != second).any() and (first == same.forward(x, training=True)).all()
    assert (first != Dropout(0.25, seed=2).forward(x, training=True)).any()
    assert layer.forward(x) is x


def test_conv2d_picks_by_shape_and_takes_any_by_name():
    layer = Conv2d(16, 16, 3, rng=RNG(0))
    x = RNG(1).standard_normal((4, 16, 14, 14)).astype(np.float32)
    assert (layer.algorithm_for(x), layer.algorithm_for(x[:1])) == ("winograd", "blocked")
    expected, weight, twin = layer.forward(x), layer.parameters["weight"], copy.copy(layer)
    assert weight.transpose(0, 2, 3, 1).flags.c_contiguous
    for name in [name for name, row in ALGORITHMS.items() if "cpu" in row.devices]:
        layer.algorithm = name
        assert layer.algorithm_for(x) == name
        np.testing.assert_allclose(layer.forward(x), expected, atol=1e-4)
        # Laid out as the algorithm reads it.
        axes = (0, 2, 3, 1) if ALGORITHMS[name].channels_last else (0, 1, 2, 3)
        assert layer.parameters["weight"].transpose(axes).flags.c_contiguous
        assert (layer.parameters["weight"] == weight).all()
    assert twin.parameters["weight"] is weight
    with pytest.raises(ValueError, match=r"must be one of .*'winograd'.*, got 'fft'"):
        layer.algorithm = "fft"


def test_whole_numbers_may_be_numpys_small_ones():
    """12 x 12 taps and 219 outputs are more than an int8 holds."""
    small = np.int8
    layer = Conv2d(small(1), small(2), small(12), padding=small(100), rng=RNG(0))
    assert np.isfinite(layer.parameters["weight"]).all()
    assert layer.macs((1, 30, 30)) == 2 * 219**2 * 144
    assert layer.forward(np.ones((1, 1, 30, 30), np.float32)).shape == (1, 2, 219, 219)
    assert MaxPool2d(small(100)).forward(np.ones((1, 1, 300, 300))).shape == (1, 1, 3, 3)
    assert Linear(small(100), small(100), rng=RNG(0)).macs((100,)) == 10_000


# --- loss ---------------------------------------------------------------------------------------


@given(images=st.integers(1, 5), classes=st.integers(1, 6), seed=SEEDS, scale=st.floats(0, 50))
def test_the_loss_and_its_gradient(images, classes, seed, scale):
    rng = RNG(seed)
    logits = scale * rng.standard_normal((images, classes))
    labels = rng.integers(classes, size=images)
    before = logits.copy()
    loss, grad = loss_and_gradient(logits, labels)
    assert (logits == before).all()

    def in_long_double():
        parts = []
        for row, label in zip(np.longdouble(logits), labels, strict=True):
            parts.append(np.log(np.exp(row - row.max()).sum()) - (row[label] - row.max()))
        return np.mean(parts)

    assert float(loss) == pytest.approx(float(in_long_double()), abs=1e-10)
    numeric = numeric_gradient(in_long_double, logits, range(logits.size), 1e-4)
    np.testing.assert_allclose(grad.ravel(), np.array(numeric, float), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("label_dtype", [np.uint8, np.int64])
def test_the_loss_keeps_the_dtype_and_does_not_overflow(dtype, label_dtype):
    logits = np.array([[1e4, 0], [0, -1e4]], dtype)
    loss, grad = loss_and_gradient(logits, np.array([0, 1], label_dtype))
    assert loss.shape == () and float(loss) == pytest.approx(5e3) and grad.dtype == dtype
    assert grad.tolist() == [[0, 0], [0.5, -0.5]]
    loss, grad = loss_and_gradient(logits * dtype(1e34), np.array([0, 1], label_dtype))
    assert float(loss) == pytest.approx(5e37) and np.isfinite(grad).all()
    # A sum that overflowed is no small probability, whose gradient would be 0.
    logits[1, 0] = -np.inf
    with np.errstate(invalid="ignore"):
        assert np.isnan(loss_and_gradient(logits, np.array([0, 1], label_dtype))[0])


# --- what holds for every layer -----------------------------------------------------------------


@pytest.fixture(params=LAYERS)
def layer_and_x(request):
    return layer_and_batch(request.param)


def test_every_layer_is_tried():
    found = set()
    for package in (nn, binary):
        for place in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            module = importlib.import_module(place.name)
            for name, kind in vars(module).items():
                if isinstance(kind, type) and issubclass(kind, Layer) and name[0] != "_":
                    found.add(name)
    found -= {"Layer", "RandomLayer"}  # which give nothing
    found -= {"BitLayer"}  # gives no values: see test_binary_inference.py
    tried = {type(make()).__name__ for make, _ in LAYERS.values()}
    assert found == tried, f"{found - tried}: add a row to LAYERS in tests/helpers.py"


def test_float32_stays_and_nothing_given_is_changed(layer_and_x):
    layer, x = layer_and_x
    assert layer.kind in KINDS and layer.macs(x.shape[1:]) >= 0
    before, answer = x.copy(), layer.forward(x)
    out = layer.forward(x, training=True)
    kept, grad_out = out.copy(), np.ones_like(out)
    assert out.shape == answer.shape == (len(x), *layer.output_shape(x.shape[1:]))
    found = [answer, out, layer.backward(grad_out)]
    found += [*layer.parameters.values(), *layer.gradients.values()]
    assert layer.gradients.keys() == layer.parameters.keys()
    assert {array.dtype for array in found} == {np.dtype(np.float32)}
    assert (x == before).all() and (out == kept).all() and (grad_out == 1).all()
    assert isinstance(layer, (BatchNorm, Dropout)) or (answer == out).all()
    with pytest.raises(TypeError, match="expected a NumPy or CuPy array, got list"):
        layer.forward(x.tolist(), training=True)


@pytest.mark.parametrize("training", [False, True])
def test_what_is_no_number_stays_none(layer_and_x, training):
    layer, x = layer_and_x
    x[-1].flat[:] = np.nan
    with np.errstate(invalid="ignore"):
        if isinstance(layer, PixelBytes):
            with pytest.raises(ValueError, match=r"images must lie in 0\.\.1, got nan"):
                layer.forward(x, training=training)
        else:
            assert np.isnan(layer.forward(x, training=training)[-1]).all()


def test_numbers_of_numpy_do_not_widen():
    x = np.ones((1, 4, 2, 2), np.float32)
    numbers = {"alpha": np.float64(1e-4), "beta": np.float64(0.75), "k": np.float64(2)}
    for layer in (LocalResponseNorm(**numbers), Dropout(np.float64(0.5))):
        assert layer.forward(x, training=True).dtype == np.float32
        assert layer.backward(x).dtype == np.float32


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_the_weights_alone(name):
    (whole, x), (layer, _) = layer_and_batch(name), layer_and_batch(name)
    grad_out = whole.forward(x, training=True)
    whole.backward(grad_out)
    layer.forward(x, training=True)
    assert layer.backward_weights(grad_out) is None
    assert layer.gradients.keys() == whole.gradients.keys()
    for which, gradient in layer.gradients.items():
        np.testing.assert_allclose(gradient, whole.gradients[which], rtol=1e-6)


# --- refusals -----------------------------------------------------------------------------------


def test_backward_needs_a_forward_and_a_fitting_gradient(layer_and_x):
    layer, x = layer_and_x
    message = r"\.backward\(\) needs a forward\(x, training=True\) before it"
    with pytest.raises(RuntimeError, match=message):
        layer.backward(x)
    grad_out = np.ones_like(layer.forward(x))  # not in training
    with pytest.raises(RuntimeError, match=message):
        layer.backward(grad_out)
    layer.forward(x, training=True)
    with pytest.raises(ValueError, match=r"takes a gradient of the output's shape \(2, "):
        layer.backward(grad_out[:1])
    with pytest.raises(TypeError, match=r"float32, got float64; use grad\.astype\(np\.float32\)"):
        layer.backward(grad_out.astype(np.float64))
    layer.backward(grad_out)  # the refusals cost nothing
    with pytest.raises(RuntimeError, match=message):  # each forward serves once
        layer.backward(grad_out)


@pytest.mark.parametrize("dtype", [int, bool, np.uint8, np.complex64])
def test_other_dtypes_are_refused(layer_and_x, dtype):
    layer, x = layer_and_x
    with pytest.raises(TypeError, match=rf"{np.dtype(dtype)}.*use x\.astype\(np\.float32\)"):
        layer.forward(x.astype(dtype))


IMAGES_ONLY = ("Conv2d", "MaxPool2d", "LocalResponseNorm", "Flatten")
NO_BATCH = [
    *((name, shape, r"\(N, C, H, W\)|size must be >= 1") for name in IMAGES_ONLY
      for shape in ((4, 7, 7), (0, 4, 7, 7), (2, 4, 0, 7))),
    *((name, shape, r"takes a batch of shape \(N, \.\.\.\), no size 0; got")
      for name in ("ReLU", "Dropout") for shape in ((0, 3), (0, 4, 7, 7), (2, 0))),
    ("Linear", (2, 4), r"takes \(5,\) features, got \(4,\)"),
    ("Linear", (5,), r"a batch of shape \(N, features\), no"),
    ("BatchNorm", (2, 3), r"this BatchNorm takes \(4,\) features or \(4, H, W\)"),
    ("BatchNorm", (2, 4, 4), "BatchNorm takes a batch of shape"),
    ("MaxPool2d", (1, 1, 2, 2), "a window of 3 does not fit an input of 2"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "shape", "message"), NO_BATCH)
def test_what_is_no_batch_for_a_layer_is_refused(name, shape, message):
    with pytest.raises(ValueError, match=message):
        LAYERS[name][0]().forward(np.ones(shape, np.float32))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda rng: Conv2d(0, 1, 3, rng=rng), ValueError, "in_channels must be at least 1, got 0"),
        (lambda rng: Conv2d(1, -2, 3, rng=rng), ValueError, "out_channels must be at least 1"),
        (lambda rng: Conv2d(1, 1, 3, stride=0, rng=rng), ValueError, "stride must be at least 1"),
        (lambda rng: Conv2d(1, 1, 3, padding=-1, rng=rng), ValueError, "padding must be at least"),
        (lambda rng: Conv2d(4, 6, 3, groups=3, rng=rng), ValueError, "groups=3 must divide in_cha"),
        (lambda rng: Conv2d(4, 4, 3, groups=True, rng=rng), TypeError, "groups must be a whole nu"),
        (lambda rng: Conv2d(1, 1, 3, rng=None), TypeError, "rng must be a NumPy generator"),
        (lambda rng: Conv2d(1, 1, 3, algorithm="fast", rng=rng), ValueError, "got 'fast'"),
        (lambda rng: Linear(2, 1, rng=3), TypeError, r"such as np\.random\.default_rng\(0\); got"),
        (lambda rng: Linear(0, 1, rng=rng), ValueError, "in_features must be at least 1, got 0"),
        (lambda rng: Linear(2, 1.0, rng=rng), TypeError, "out_features must be a whole number"),
        (lambda rng: MaxPool2d(0), ValueError, "kernel must be at least 1, got 0"),
        (lambda rng: LocalResponseNorm(4), ValueError, "size must be odd"),
        (lambda rng: Dropout(-0.1), ValueError, "rate must be at least 0 and below 1"),
        (lambda rng: Dropout(1), ValueError, "rate must be at least 0 and below 1"),
        (lambda rng: Dropout(True), TypeError, "rate must be a number, got True"),
        (lambda rng: LocalResponseNorm(alpha=np.nan), ValueError, "alpha must be at least 0"),
        (lambda rng: LocalResponseNorm(k="2"), TypeError, "k must be a number, got '2'"),
        (lambda rng: Dropout(0.5, seed=-1), ValueError, "seed must be at least 0, got -1"),
        (lambda rng: check_labels(np.array([0, 3]), 2, 3), ValueError, r"in 0\.\.2, got 0\.\.3"),
        (lambda rng: check_labels(np.array([-1, 0]), 2, 3), ValueError, r"got -1\.\.0"),
        (lambda rng: check_labels(np.array([0.0, 1]), 2, 3), TypeError, "whole numbers, got float"),
        (lambda rng: check_labels(np.array([True, False]), 2, 3), TypeError, "numbers, got bool"),
        (lambda rng: check_labels(np.array([0]), 2, 3), ValueError, r"\(2,\), one for each image"),
        (
            lambda rng: check_labels(np.array(np.eye(3, dtype=int)[:2]), 2, 3),
            ValueError,
            r"got \(2, 3\)",
        ),
        (lambda rng: check_labels([0, 1], 2, 3), TypeError, r"np\.asarray"),
    ],
)
def test_what_cannot_be_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make(RNG(0))
