"""A folded network answers as the float network it was made from, bit for bit."""

import re

import numpy as np
import pytest
from helpers import SEEDS, as_bytes, byte_images, odd_binary_network, shaken
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdl_lib.binary.export_c import compile_c, export_c
from fastdl_lib.binary.inference import FIRST_LAYERS, fold
from fastdl_lib.binary.layers import BinaryConv2d, BinaryLinear, PixelBytes, Sign
from fastdl_lib.binary.networks import binary_deep_convnet, binary_mlp
from fastdl_lib.core.arrays import to_cpu, to_gpu
from fastdl_lib.core.compiler import c_compiler
from fastdl_lib.core.datasets import mnist
from fastdl_lib.core.pretend_gpu import pretend_gpu
from fastdl_lib.nn.layers import Flatten, Linear, ReLU
from fastdl_lib.nn.network import Network
from fastdl_lib.nn.norms import BatchNorm
from fastdl_lib.nn.optimizers import Adam
from fastdl_lib.nn.training import evaluate, fit, predict_classes


def assert_same_logits(network, x):
    expected = network.forward(x)
    folded = fold(network)
    for way in FIRST_LAYERS:
        folded.first_layer = way
        out = folded.forward(x)
        assert out.dtype == np.float32 and np.array_equal(out, expected), way


# --- the same answers ---------------------------------------------------------------------------


@settings(max_examples=20)
@given(hidden=st.integers(1, 140), depth=st.integers(1, 3), seed=SEEDS)
def test_a_folded_mlp(hidden, depth, seed):
    network = shaken(binary_mlp(seed, hidden, depth), seed)
    assert_same_logits(network, byte_images(np.random.default_rng(seed), 4, (1, 28, 28)))


def test_a_folded_deep_convnet():
    network = shaken(binary_deep_convnet())
    assert_same_logits(network, byte_images(np.random.default_rng(0), 3, (1, 28, 28)))


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6))
def test_folded_networks_of_odd_sizes(seed):
    network = odd_binary_network(seed)
    assert_same_logits(network, byte_images(np.random.default_rng(seed), 2, network.input_shape))


TINY, HUGE = [0, -0.0, 1e-45, -1e-38, 1e-10, -1, 0.1], [-1e10, 1e30, -3e38, 3e38]
EXTREMES = [*TINY, *HUGE, np.nan, np.inf, -np.inf]


@settings(max_examples=150)
@given(
    seed=st.integers(0, 20), place=st.integers(0, 99), value=st.sampled_from(EXTREMES),
    other=st.sampled_from(EXTREMES), eps=st.sampled_from([1e-4, 1e-45, 1e-300]),
)  # fmt: skip
def test_whatever_stands_in_a_network_the_logits_are_the_same_or_it_is_refused(
    seed, place, value, other, eps
):
    network = odd_binary_network(seed)
    arrays = list((network.parameters | network.buffers).values())
    arrays[place % len(arrays)].flat[0] = value
    arrays[(place + 1) % len(arrays)].flat[-1] = other
    for layer in network.layers.values():
        if isinstance(layer, BatchNorm):
            layer.eps = eps
    x = byte_images(np.random.default_rng(seed), 2, network.input_shape)
    with np.errstate(all="ignore"):
        try:
            folded = fold(network)
        except ValueError as error:
            assert re.match("odd, layer .* NaN or infinity", str(error))
        else:
            assert np.array_equal(folded.forward(x), network.forward(x))


def test_thresholds_stand_exactly_where_the_float_layers_change_their_mind():
    """Every sum of a small layer, tried."""
    network = shaken(binary_mlp(hidden=200, depth=2))
    stage = fold(network).layers["fc2"]
    sums = np.arange(-200, 201)
    floats = network.layers["norm2"].forward(np.repeat(sums[:, None], 200, 1).astype(np.float32))
    threshold = stage.buffers["threshold"]
    falling = np.unpackbits(stage.buffers["falling"].view(np.uint8), bitorder="little")[:200] > 0
    assert np.array_equal((sums[:, None] >= threshold) != falling, floats >= 0)
    assert falling.any() and not falling.all()


def test_all_test_images_through_a_trained_network_folded_and_in_c(tmp_path):
    x, labels = (array[:6000] for array in mnist("train"))
    network = binary_mlp(hidden=96, depth=2)
    fit(network, x, labels, epochs=2, optimizer=Adam(5e-3), progress=False)
    x, labels = mnist("test")
    folded = fold(network)
    assert np.array_equal(folded.forward(x), network.forward(x))
    assert evaluate(folded, x, labels) == evaluate(network, x, labels)
    if c_compiler() is not None:
        answers = compile_c(export_c(folded, tmp_path / "net.c")).predict_classes(as_bytes(x))
        assert np.array_equal(answers, predict_classes(network, x))
        assert (answers == labels).mean() > 0.8


@pytest.mark.parametrize("make", [lambda: binary_mlp(hidden=70), binary_deep_convnet])
def test_a_folded_network_on_the_pretend_gpu(make):
    network = shaken(make())
    x = byte_images(np.random.default_rng(0), 2, (1, 28, 28))
    expected = network.forward(x)
    folded = fold(network)
    with pretend_gpu():
        there = folded.to_gpu()
        out = to_cpu(there.forward(to_gpu(x)))
        folded.to_cpu()
    assert np.array_equal(out, expected)
    assert np.array_equal(folded.forward(x), expected)


# --- refusals -----------------------------------------------------------------------------------


class OwnSign(Sign):
    """A learner's, which may do anything."""


def small(*layers, width=4):
    """A network of 4 x width pixels; a layer's name is its class's."""
    named = [(f"{type(one).__name__}{n}", one) for n, one in enumerate(layers)]
    return Network("small", named, (1, 4, width))


def product(features=16, outputs=4):
    return BinaryLinear(features, outputs, rng=np.random.default_rng(0))


def conv(**options):
    return BinaryConv2d(1, 2, 3, rng=np.random.default_rng(0), **options)


FLAT = (PixelBytes(), Flatten())


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((Flatten(), product()), "must begin with PixelBytes"),
        ((*FLAT, Linear(16, 4, rng=np.random.default_rng(0))), "layer Linear2: .* stands Linear"),
        ((*FLAT, product(), ReLU()), "layer BinaryLinear2: a Sign must follow"),
        ((*FLAT, product(), OwnSign(), product(4)), "layer BinaryLinear2: a Sign must follow"),
        ((*FLAT, product(), Sign()), "must end in a product"),
        ((PixelBytes(),), "must end in a product"),
        ((*FLAT, product(), Sign(), BatchNorm(4)), "layer BatchNorm4: .* here stands BatchNorm"),
        ((PixelBytes(), conv(padding=1), Flatten()),
         "padding_value must be 0.0 in front of a layer that takes pixels, got -1.0"),
        ((PixelBytes(), conv(), Flatten()), "a product that gives a class one number"),
        ((PixelBytes(), conv()), "a classifier ends in"),
        ((PixelBytes(), conv(algorithm="winograd"), Flatten()), "winograd rounds; set its"),
        ((PixelBytes(), conv(), Flatten(), BatchNorm(8), Sign(), product(8)),
         "layer BinaryConv2d1: a Flatten stands between it and its BatchNorm"),
    ],
)  # fmt: skip
def test_other_networks_are_refused(layers, message):
    with pytest.raises(ValueError, match=message):
        fold(small(*layers))
    with pytest.raises(ValueError, match="layer BinaryLinear2: sums reach 16,830,000"):
        fold(small(*FLAT, product(66_000, 1), width=16_500))


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_networks_of_another_dtype_are_refused(dtype):
    network = binary_mlp(hidden=8)
    network.layers["norm1"].map_arrays(lambda array: array.astype(dtype))
    with pytest.raises(TypeError, match=f"layer fc1: .* float32 alone, .* is {dtype.__name__}"):
        fold(network)
    with pytest.raises(TypeError, match=f"takes float32, got {dtype.__name__}"):
        fold(binary_mlp(hidden=8)).forward(np.zeros((1, 1, 28, 28), dtype))


def test_a_convolution_may_be_the_last_product():
    last = BinaryConv2d(2, 3, 2, rng=np.random.default_rng(1))
    for end in ((Flatten(), Sign(), product(8, 2)), (Sign(), last, Flatten())):
        network = small(PixelBytes(), conv(), *end)
        assert_same_logits(network, byte_images(np.random.default_rng(0), 4, (1, 4, 4)))


def test_a_folded_network_does_not_learn_and_has_two_ways():
    folded = fold(binary_mlp(hidden=8))
    with pytest.raises(ValueError, match="does not learn"):
        folded.forward(np.zeros((1, 1, 28, 28), np.float32), training=True)
    with pytest.raises(ValueError, match="first_layer must be one of"):
        folded.first_layer = "bits"


# --- NaN, infinity and other images -------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1e-3, 1.001, 255])
@pytest.mark.parametrize("way", [None, *FIRST_LAYERS])
def test_images_that_are_none_are_refused(way, value):
    network = binary_mlp(hidden=8)
    if way:
        network = fold(network)
        network.first_layer = way
    x = np.zeros((2, 1, 28, 28), np.float32)
    x[1, 0, 3, 4] = value
    with pytest.raises(ValueError, match=r"images must lie in 0\.\.1, got "):
        network.forward(x)
    with pytest.raises(ValueError, match="images must lie in"):
        evaluate(network, x, np.zeros(2, np.int64))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("make", [lambda: binary_mlp(hidden=8), binary_deep_convnet])
def test_weights_that_are_none_stay_visible_or_are_refused(make, value, tmp_path):
    network = make()
    name = next(iter(network.parameters))
    network.parameters[name].flat[0] = value
    x = byte_images(np.random.default_rng(0), 2, (1, 28, 28))
    assert np.isnan(network.forward(x)).any(axis=1).all()
    with pytest.raises(FloatingPointError, match="not finite"):
        evaluate(network, x, np.zeros(2, np.int64))
    with pytest.raises(ValueError, match="its weight holds NaN or infinity"):
        fold(network)
    with pytest.raises(ValueError, match="NaN or infinity"):
        network.save_weights(tmp_path / "bits.npz", packed=True)
    assert not list(tmp_path.iterdir())
