"""A folded network answers as the float network it was made from, bit for bit."""

import numpy as np
import pytest
from helpers import SEEDS, byte_images, shaken
from hypothesis import given
from hypothesis import strategies as st

from fastdl_lib.binary.inference import FIRST_LAYERS, fold
from fastdl_lib.binary.layers import BinaryConv2d, BinaryLinear, PixelBytes, Sign
from fastdl_lib.binary.networks import binary_deep_convnet, binary_mlp
from fastdl_lib.core.arrays import to_cpu, to_gpu
from fastdl_lib.core.datasets import mnist
from fastdl_lib.core.pretend_gpu import pretend_gpu
from fastdl_lib.nn.layers import Dropout, Flatten, Linear, MaxPool2d, ReLU
from fastdl_lib.nn.network import Network
from fastdl_lib.nn.norms import BatchNorm
from fastdl_lib.nn.training import evaluate


def assert_same_logits(network, x):
    expected = network.forward(x)
    folded = fold(network)
    for way in FIRST_LAYERS:
        folded.first_layer = way
        out = folded.forward(x)
        assert out.dtype == np.float32 and np.array_equal(out, expected), way


# --- the same answers ---------------------------------------------------------------------------


@given(
    hidden=st.integers(1, 140), depth=st.integers(1, 3), scaled=st.booleans(), seed=SEEDS,
)  # fmt: skip
def test_a_folded_mlp(hidden, depth, scaled, seed):
    network = shaken(binary_mlp(seed, hidden, depth, scaled=scaled), seed)
    assert_same_logits(network, byte_images(np.random.default_rng(seed), 4, (1, 28, 28)))


@pytest.mark.parametrize("scaled", [False, True])
def test_a_folded_deep_convnet(scaled):
    network = shaken(binary_deep_convnet(scaled=scaled))
    assert_same_logits(network, byte_images(np.random.default_rng(0), 3, (1, 28, 28)))


@given(
    channels=st.integers(1, 3), filters=st.sampled_from([1, 5, 64, 70]), kernel=st.integers(1, 3),
    stride=st.integers(1, 2), padding=st.integers(0, 2), around=st.sampled_from([-1.0, 1.0]),
    pool=st.booleans(), normed=st.booleans(), seed=SEEDS,
)  # fmt: skip
def test_folded_convolutions(
    channels, filters, kernel, stride, padding, around, pool, normed, seed
):
    rng = np.random.default_rng(seed)
    window = {"stride": stride, "padding": padding, "rng": rng}
    layers = [("pixels", PixelBytes())]
    layers.append(("conv1", BinaryConv2d(channels, filters, kernel, padding_value=0.0, **window)))
    if pool:
        layers.append(("pool1", MaxPool2d(2, stride=1)))
    layers += [("norm1", BatchNorm(filters)), ("sign1", Sign()), ("drop", Dropout(0.5))]
    layers.append(
        ("conv2", BinaryConv2d(filters, 9, min(kernel, 2), padding_value=around, **window))
    )
    layers += [("norm2", BatchNorm(9))] if normed else []
    layers += [("sign2", Sign()), ("flatten", Flatten())]
    size = Network("front", layers, (channels, 9, 8)).shapes["flatten"][0]
    layers.append(("fc", BinaryLinear(size, 4, rng=rng)))
    network = shaken(Network("net", layers, (channels, 9, 8)), seed)
    assert_same_logits(network, byte_images(rng, 2, (channels, 9, 8)))


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


def test_all_test_images_through_a_trained_network(trained_mlp):
    x, labels = mnist("test")
    folded = fold(trained_mlp)
    assert np.array_equal(folded.forward(x), trained_mlp.forward(x))
    assert evaluate(folded, x, labels) == evaluate(trained_mlp, x, labels)


@pytest.fixture(scope="module")
def trained_mlp():
    from fastdl_lib.nn.optimizers import Adam
    from fastdl_lib.nn.training import fit

    x, labels = (array[:6000] for array in mnist("train"))
    network = binary_mlp(hidden=128, depth=2)
    fit(network, x, labels, epochs=2, optimizer=Adam(5e-3), progress=False)
    return network


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


def test_a_folded_network_is_small():
    network = binary_mlp(hidden=2048)
    floats = sum(array.nbytes for array in network.parameters.values())
    assert 30 < floats / fold(network).bytes < 32


# --- refusals -----------------------------------------------------------------------------------


def small(*layers):
    return Network("small", layers, (1, 4, 4))


def test_other_networks_are_refused():
    rng = np.random.default_rng(0)
    flat = ("pixels", PixelBytes()), ("flatten", Flatten())
    product = ("fc1", BinaryLinear(16, 4, rng=rng))
    for layers, message in [
        ((("flatten", Flatten()), product), "must begin with PixelBytes"),
        ((*flat, ("fc1", Linear(16, 4, rng=rng))), "layer fc1: .* here stands Linear"),
        ((*flat, product, ("relu", ReLU())), "layer fc1: a Sign must follow"),
        ((*flat, product, ("sign1", Sign())), "must end in a product"),
        (
            (*flat, product, ("sign1", Sign()), ("norm1", BatchNorm(4))),
            "layer norm1: .* here stands BatchNorm",
        ),
        (
            (
                ("pixels", PixelBytes()),
                ("conv1", BinaryConv2d(1, 2, 3, padding=1, rng=rng)),
            ),
            "padding_value must be 0.0 in front of a layer that takes pixels, got -1.0",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            fold(small(*layers))


def test_sums_beyond_float32_are_refused():
    layers = ("pixels", PixelBytes()), ("flatten", Flatten())
    product = BinaryLinear(66_000, 1, rng=np.random.default_rng(0))
    network = Network("wide", (*layers, ("fc1", product)), (1, 6600, 10))
    with pytest.raises(ValueError, match="sums reach 16,830,000"):
        fold(network)


def test_images_and_words_that_do_not_fit_are_refused():
    folded = fold(binary_mlp(hidden=8))
    with pytest.raises(ValueError, match=r"images must lie in 0\.\.1, got 0\.\.2"):
        x = np.zeros((1, 1, 28, 28), np.float32)
        x[0, 0, 0, 0] = 2
        folded.forward(x)
    with pytest.raises(ValueError, match="does not learn"):
        folded.forward(np.zeros((1, 1, 28, 28), np.float32), training=True)
    with pytest.raises(ValueError, match="first_layer must be one of"):
        folded.first_layer = "bits"
