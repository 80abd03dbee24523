"""Binary layers: their values, and gradients that pass straight through the sign."""

import numpy as np
import pytest
from helpers import SEEDS, digits, images, numeric_gradient
from hypothesis import given
from hypothesis import strategies as st

from fastdl_lib.binary.layers import BinaryConv2d, BinaryLinear, PixelBytes, Sign, sign
from fastdl_lib.binary.networks import BINARY_PARTS, binary_deep_convnet, binary_mlp
from fastdl_lib.convolution.algorithms import conv2d
from fastdl_lib.core.arrays import to_cpu, to_gpu
from fastdl_lib.core.pretend_gpu import pretend_gpu
from fastdl_lib.nn.layers import Linear
from fastdl_lib.nn.optimizers import SGD, Adam


def gradient(loss, array):
    found = numeric_gradient(loss, array, range(array.size), 1e-5)
    return np.reshape(found, array.shape)


def plain_sign(x):
    return np.where(x >= 0, 1.0, -1.0)


# --- values -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_sign_has_two_values_and_none_for_what_is_no_number(dtype):
    ends = np.finfo(dtype)
    x = np.array([-2, -1e-7, -0.0, 0.0, 1e-7, ends.max, ends.min, np.nan, np.inf, -np.inf], dtype)
    expected = [-1, -1, 1, 1, 1, 1, -1, np.nan, np.nan, np.nan]
    assert sign(x).dtype == dtype and np.array_equal(sign(x), expected, equal_nan=True)
    assert np.array_equal(Sign().forward(x[None])[0], expected, equal_nan=True)
    assert sign(np.zeros((3, 70_000), dtype)[:, ::2]).all()
    with pretend_gpu():
        assert np.array_equal(to_cpu(sign(to_gpu(x))), expected, equal_nan=True)


def test_pixel_bytes_finds_every_stored_byte_again():
    stored = np.arange(256, dtype=np.uint8)
    x = stored.astype(np.float32) / np.float32(255)
    assert (PixelBytes().forward(x[None]) == stored).all()
    values = PixelBytes().forward(digits(100)[0])
    assert (values == np.rint(values)).all() and values.max() == 255


@given(
    x=images(), filters=st.integers(1, 3), kernel=st.integers(1, 3), stride=st.integers(1, 3),
    padding=st.integers(0, 2), around=st.sampled_from([-1.0, 0.0]), seed=SEEDS,
)  # fmt: skip
def test_products_are_whole_numbers_exactly(x, filters, kernel, stride, padding, around, seed):
    kernel, rng = min(kernel, *(n + 2 * padding for n in x.shape[2:])), np.random.default_rng(seed)
    window = {"stride": stride, "padding": padding, "padding_value": around}
    layer = BinaryConv2d(x.shape[1], filters, kernel, **window, rng=rng)
    x, edge = sign(x.astype(np.float32)), (padding, padding)
    framed = np.pad(x.astype(float), ((0, 0), (0, 0), edge, edge), constant_values=around)
    weight = plain_sign(layer.parameters["weight"])
    expected = conv2d(framed, weight, stride=stride, algorithm="loops")
    assert (layer.forward(x) == expected).all()
    rows = x.reshape(len(x), -1)
    layer = BinaryLinear(rows.shape[1], filters, rng=rng)
    whole = rows.astype(int) @ plain_sign(layer.parameters["weight"]).astype(int).T
    assert (layer.forward(rows) == whole).all()


@pytest.mark.parametrize("make", [
    lambda whole: BinaryConv2d(whole(3), whole(100), whole(12), rng=np.random.default_rng(0)),
    lambda whole: BinaryLinear(whole(100), whole(100), rng=np.random.default_rng(0)),
    lambda whole: binary_mlp(hidden=whole(100), depth=whole(2)),
    lambda whole: binary_deep_convnet(width=whole(3)),
])  # fmt: skip
def test_small_whole_numbers_of_numpy_make_the_same_weights(make):
    for name, weight in make(int).parameters.items():
        assert np.isfinite(weight).all() and np.array_equal(make(np.int8).parameters[name], weight)


# --- gradients ----------------------------------------------------------------------------------


@given(x=images())
def test_the_gradient_of_sign_is_that_of_hard_tanh(x):
    x = 3 * x  # some beyond 1, none at 1
    grad_out = np.random.default_rng(1).standard_normal(x.shape)
    layer = Sign()
    layer.forward(x, training=True)
    expected = gradient(lambda: np.vdot(np.clip(x, -1, 1), grad_out), x)
    np.testing.assert_allclose(layer.backward(grad_out), expected, atol=1e-8)


def test_the_sign_s_own_gradient_is_zero_and_what_lies_before_learns_nothing():
    images, labels = digits(50)
    network = binary_mlp(hidden=16)
    for layer in network.layers.values():
        if isinstance(layer, Sign):
            layer.straight_through = False
    network.loss_and_gradients(images, labels)
    assert not network.gradients["fc1.weight"].any() and network.gradients["fc4.weight"].any()


@pytest.mark.parametrize(("make", "shape"), [
    (lambda rng: BinaryLinear(5, 3, rng=rng), (2, 5)),
    (lambda rng: BinaryConv2d(2, 3, 2, rng=rng), (2, 2, 4, 4)),
    (lambda rng: BinaryConv2d(2, 3, 3, padding=1, rng=rng), (2, 2, 4, 4)),
    (lambda rng: BinaryConv2d(2, 3, 2, stride=2, padding=1, rng=rng), (2, 2, 4, 4)),
])  # fmt: skip
def test_gradients_are_those_of_the_line_that_stands_in_for_the_sign(make, shape):
    rng = np.random.default_rng(0)
    layer, x = make(rng), rng.standard_normal(shape)
    weight = layer.parameters["weight"] = layer.parameters["weight"].astype(float)
    start = weight.copy()
    out = layer.forward(x, training=True)
    grad_out = rng.standard_normal(out.shape)
    grad_x = layer.backward(grad_out)

    def product():
        line = plain_sign(start) + weight - start
        if x.ndim == 2:
            return x @ line.T
        edge = (layer.padding, layer.padding)
        framed = np.pad(x, ((0, 0), (0, 0), edge, edge), constant_values=-1.0)
        return conv2d(framed, line, stride=layer.stride, algorithm="loops")

    def loss():
        return np.vdot(product(), grad_out)

    np.testing.assert_allclose(out, product(), rtol=1e-12, atol=1e-12)
    assert layer.gradients.keys() == {"weight"}
    close = {"rtol": 1e-6, "atol": 1e-7}
    np.testing.assert_allclose(layer.gradients["weight"], gradient(loss, weight), **close)
    np.testing.assert_allclose(grad_x, gradient(loss, x), **close)


# --- training -----------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [SGD(1e5), Adam(5.0)])
def test_latent_weights_stay_within_one(optimizer):
    images, labels = digits(50)
    network = binary_mlp(hidden=16)
    for _ in range(3):
        network.loss_and_gradients(images, labels)
        optimizer.step(network)
    for name, weight in network.parameters.items():
        if name.startswith("fc"):
            assert abs(weight).max() == 1, name
    assert abs(network.parameters["norm1.bias"]).max() > 1, "only weights are clipped"


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("optimizer", [SGD(0.1), Adam()])
def test_a_gradient_that_overflowed_shows_in_the_next_logits(optimizer, value):
    images, labels = digits(5)
    network = binary_mlp(hidden=8)
    network.loss_and_gradients(images, labels)
    network.layers["fc2"].gradients["weight"][3, 4] = value
    with np.errstate(all="ignore"):
        optimizer.step(network)
        assert not np.isfinite(network.forward(images)).any()


@pytest.mark.parametrize("binary", BINARY_PARTS)
@pytest.mark.parametrize("make", [lambda **kw: binary_mlp(hidden=64, **kw), binary_deep_convnet])
def test_binary_networks_learn(make, binary):
    images, labels = digits(60)
    network, optimizer = make(binary=binary), Adam(1e-2)
    losses = []
    for _ in range(8):
        losses.append(network.loss_and_gradients(images, labels))
        optimizer.step(network)
    assert losses[-1] < 0.6 * losses[0]


def test_the_float_twin_has_the_layers_and_sizes_of_the_binary_network():
    one, twin = binary_mlp(hidden=16), binary_mlp(hidden=16, binary="none")
    assert list(one.shapes.values()) == list(twin.shapes.values())
    assert isinstance(twin.layers["fc1"], Linear) and "fc1.bias" in twin.parameters


@pytest.mark.parametrize("make", [binary_mlp, binary_deep_convnet])
def test_another_word_for_what_is_binary_is_refused(make):
    with pytest.raises(ValueError, match="binary must be one of 'all', 'weights', 'none'"):
        make(binary="both")


@pytest.mark.parametrize("make", [lambda **kw: binary_mlp(hidden=50, **kw), binary_deep_convnet])
def test_packed_weights_give_the_same_answers_from_a_smaller_file(make, tmp_path):
    images, labels = digits(64)
    network = make()
    network.loss_and_gradients(images, labels)
    Adam().step(network)
    network.save_weights(tmp_path / "floats.npz")
    network.save_weights(tmp_path / "bits.npz", packed=True)
    other = make(seed=1).load_weights(tmp_path / "bits.npz")
    assert (other.forward(images) == network.forward(images)).all()
    floats, bits = ((tmp_path / f"{name}.npz").stat().st_size for name in ("floats", "bits"))
    assert bits < floats / 4
