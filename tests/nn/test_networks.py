"""AlexNet and DeepConvNet: their shapes and counts, float32 throughout, and stored weights."""

import math

import numpy as np
import pytest
from helpers import (
    IMAGES,
    LABELS,
    assert_same_weights,
    numeric_gradient,
    toy,
    train,
    with_a_byte_changed,
)  # fmt: skip
from hypothesis import given
from hypothesis import strategies as st

from fastdl_lib.binary.networks import binary_mlp
from fastdl_lib.nn.layers import Conv2d, Dropout, Flatten, Layer, Linear, MaxPool2d, ReLU
from fastdl_lib.nn.loss import loss_and_gradient
from fastdl_lib.nn.network import Network
from fastdl_lib.nn.norms import BatchNorm, LocalResponseNorm
from fastdl_lib.nn.optimizers import SGD
from fastdl_lib.nn.training import evaluate
from fastdl_lib.nn.zoo import alexnet, deep_convnet

# Of the layers: output shape, number of parameters, shape of the weight.
ALEXNET = {
    "conv1": ((96, 55, 55), 34_944, (96, 3, 11, 11)),
    "pool1": ((96, 27, 27), 0, None),
    "conv2": ((256, 27, 27), 307_456, (256, 48, 5, 5)),
    "pool2": ((256, 13, 13), 0, None),
    "conv3": ((384, 13, 13), 885_120, (384, 256, 3, 3)),
    "conv4": ((384, 13, 13), 663_936, (384, 192, 3, 3)),
    "conv5": ((256, 13, 13), 442_624, (256, 192, 3, 3)),
    "pool5": ((256, 6, 6), 0, None),
    "flatten": ((9216,), 0, None),
    "fc6": ((4096,), 37_752_832, (4096, 9216)),
    "fc7": ((4096,), 16_781_312, (4096, 4096)),
    "fc8": ((1000,), 4_097_000, (1000, 4096)),
}
DEEP_CONVNET = {
    "conv1": ((16, 28, 28), 160, (16, 1, 3, 3)),
    "conv2": ((16, 28, 28), 2_320, (16, 16, 3, 3)),
    "pool2": ((16, 14, 14), 0, None),
    "conv3": ((32, 14, 14), 4_640, (32, 16, 3, 3)),
    "conv4": ((32, 16, 16), 9_248, (32, 32, 3, 3)),
    "pool4": ((32, 8, 8), 0, None),
    "conv5": ((64, 8, 8), 18_496, (64, 32, 3, 3)),
    "conv6": ((64, 8, 8), 36_928, (64, 64, 3, 3)),
    "pool6": ((64, 4, 4), 0, None),
    "fc1": ((50,), 51_250, (50, 1024)),
    "fc2": ((10,), 510, (10, 50)),
}


@pytest.fixture(scope="module")
def alex():
    return alexnet()


def digits(images=2, dtype=np.float32):
    return np.random.default_rng(1).standard_normal((images, 1, 28, 28)).astype(dtype)


# --- counts and shapes --------------------------------------------------------------------------


def test_networks_layer_by_layer(alex):
    both = ((alex, 60_965_224, ALEXNET), (deep_convnet(), 123_552, DEEP_CONVNET))
    for network, parameters, expected in both:
        assert network.parameter_count == parameters
        assert sum(array.nbytes for array in network.parameters.values()) == 4 * parameters
        for name, (shape, count, weight_shape) in expected.items():
            arrays = network.layers[name].parameters
            assert network.shapes[name] == shape, name
            assert sum(array.size for array in arrays.values()) == count, name
            assert not count or arrays["weight"].shape == weight_shape, name


def test_alexnet_is_in_the_papers_order(alex):
    order = (
        "conv1 relu1 norm1 pool1 conv2 relu2 norm2 pool2 conv3 relu3 conv4 relu4 conv5 relu5 "
        "pool5 flatten fc6 relu6 drop6 fc7 relu7 drop7 fc8"
    )
    assert " ".join(alex.layers) == order
    convolutions = [layer for layer in alex.layers.values() if isinstance(layer, Conv2d)]
    assert [layer.groups for layer in convolutions] == [1, 2, 1, 2, 2]


def test_weights_are_seeded_and_have_the_variance_of_he(alex):
    for name, fan_in in (("conv2", 48 * 25), ("fc7", 4096)):
        weight = alex.layers[name].parameters["weight"]
        assert weight.std() == pytest.approx(np.sqrt(2 / fan_in), rel=0.01)
        assert not alex.layers[name].parameters["bias"].any()
    one, same, other = deep_convnet(seed=7), deep_convnet(seed=7), deep_convnet(seed=8)
    assert_same_weights(one, same)
    assert (one.parameters["conv1.weight"] != other.parameters["conv1.weight"]).any()
    x, labels = digits(), np.array([0, 1])
    assert one.loss_and_gradients(x, labels) == same.loss_and_gradients(x, labels)
    assert (one.gradients["conv1.weight"] == same.gradients["conv1.weight"]).all()


# --- a training pass ----------------------------------------------------------------------------


def test_a_training_pass_gives_float32_gradients_of_the_weights_shapes(alex):
    """Between the layers the network itself looks at shapes and dtypes."""
    rng = np.random.default_rng(0)
    for network, images in ((alex, 1), (deep_convnet(), 3)):
        x = rng.standard_normal((images, *network.input_shape), dtype=np.float32)
        assert math.isfinite(network.loss_and_gradients(x, np.zeros(images, int)))
        assert network.gradients.keys() == network.parameters.keys()
        for name, array in network.parameters.items():
            gradient = network.gradients[name]
            assert (gradient.shape, gradient.dtype) == (array.shape, np.float32), name
            assert np.isfinite(gradient).all(), name


def test_gradients_of_a_whole_network():
    """Central differences in float64 at a few weights of each array, Dropout drawing included."""

    def make():
        # Fresh each time, so that Dropout draws the same masks.
        network = deep_convnet(seed=3).astype(np.float64)
        network.layers["drop2"].rate = 0.25
        return network

    x, labels = digits(2, np.float64), np.array([3, 8])
    network = make()
    # ReLU has no gradient at 0, where a bias of 0 leaves what the padding is alone in.
    rng = np.random.default_rng(0)
    for array in network.parameters.values():
        array += 0.1 * rng.standard_normal(array.shape)
    network.loss_and_gradients(x, labels)
    weights, gradients = network.parameters, network.gradients

    def loss():
        again = make()
        for name, array in weights.items():
            layer, which = name.split(".")
            again.layers[layer].parameters[which] = array
        return loss_and_gradient(again.forward(x, training=True), labels)[0]

    checked = 0
    for name, array in weights.items():
        # Where the gradient is largest, and two places at random.
        places = [np.abs(gradients[name]).argmax(), *rng.integers(array.size, size=2)]
        numeric = np.array(numeric_gradient(loss, array, places, 1e-6))
        found = gradients[name].ravel()[places]
        np.testing.assert_allclose(found, numeric, rtol=1e-4, atol=1e-7, err_msg=name)
        checked += (abs(numeric) > 1e-6).sum()
    assert checked >= len(weights)


SHARED_STEPS = st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=2, max_size=6)


@given(steps=SHARED_STEPS)
def test_networks_that_share_layers_train_as_if_they_shared_only_weights(steps):
    """A whole, its head, a variant where a layer has another place, and one with a layer more, in
    any order: as twins do that are made anew for each step and get the weights by value."""

    def make():
        whole = with_norm()
        layers = list(whole.layers.items())
        extra = [("first", Conv2d(1, 1, 3, padding=1, rng=np.random.default_rng(9)))]
        return [
            whole,
            Network("head", layers[3:], whole.shapes["relu"]),
            Network("turned", [layers[0], layers[2], layers[1], *layers[3:]], whole.input_shape),
            Network("longer", [*extra, *layers], whole.input_shape),
        ]

    networks, rng = make(), np.random.default_rng(0)
    for which, step in steps:
        network, twin = networks[which], make()[which]
        x = rng.standard_normal((4, *network.input_shape), dtype=np.float32)
        for arrays in ("parameters", "buffers"):
            for name, array in getattr(twin, arrays).items():
                array[...] = getattr(network, arrays)[name]
        assert network.loss_and_gradients(x, LABELS[:4]) == twin.loss_and_gradients(x, LABELS[:4])
        assert network.gradients.keys() == network.parameters.keys()
        for name, gradient in network.gradients.items():
            np.testing.assert_array_equal(gradient, twin.gradients[name], err_msg=name)
        if step:
            SGD(0.1).step(network)


def with_norm():
    layers = toy().variant("whole", drop=None).layers
    return Network("whole", [("conv", layers.pop("conv")), ("norm", BatchNorm(6)),
                             *layers.items()], (1, 8, 8))  # fmt: skip


def test_a_pass_of_one_network_is_never_taken_for_anothers():
    whole = with_norm()
    head = Network("head", list(whole.layers.items())[3:], (6, 8, 8))
    x, inside = IMAGES[:4], np.ones((4, 6, 8, 8), np.float32)
    whole.loss_and_gradients(x, LABELS[:4])
    evaluate(head, inside, LABELS[:4])  # takes nothing away
    assert whole.gradients.keys() == whole.parameters.keys()
    head.loss_and_gradients(inside, LABELS[:4])
    assert not whole.gradients.keys() & head.gradients.keys()
    with pytest.raises(RuntimeError, match=r"needs the gradients of whole: .* none for \['fc\.wei"):
        SGD(0.1).step(whole)
    logits = whole.forward(x, training=True)
    head.forward(inside, training=True)
    with pytest.raises(RuntimeError, match="whole, layer pool: another network's pass has gone"):
        whole.backward(np.ones_like(logits))


def test_no_gradient_of_an_earlier_pass_survives():
    network = toy()
    network.loss_and_gradients(IMAGES[:4], LABELS[:4])
    network.layers["fc"].backward = lambda grad_out: np.zeros((4, 6 * 4 * 4), np.float32)
    with pytest.raises(RuntimeError, match=r"toy, layer fc: backward\(\) left gradients for \[\],"):
        network.loss_and_gradients(IMAGES[4:8], LABELS[4:8])
    assert not network.gradients


def test_backward_goes_down_to_the_first_layer_that_learns():
    network, called, seen = toy(), [], []
    before = Network("ReLU first", [("first", ReLU()), *network.layers.items()], (1, 8, 8))
    before.layers["first"].backward = lambda grad_out: called.append("first")
    network.layers["conv"].backward = lambda grad_out: called.append("conv")
    before.training_pass(IMAGES[:4], LABELS[:4], after_backward=seen.append)
    assert not called and before.gradients.keys() == network.parameters.keys()
    assert seen == list(reversed(before.layers))


def test_a_variant_shares_the_weights_and_leaves_the_original():
    network = deep_convnet()
    variant = network.variant("no ReLU after conv1", relu1=None, pool2=MaxPool2d(2, stride=2))
    assert "relu1" in network.layers
    assert list(variant.layers) == [name for name in network.layers if name != "relu1"]
    assert variant.parameters["conv2.weight"] is network.parameters["conv2.weight"]
    assert variant.input_shape_of("conv2") == network.input_shape_of("conv2") == (16, 28, 28)
    assert variant.input_shape_of("conv1") == (1, 28, 28)


# --- stored weights -----------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "weights.npz"
    deep_convnet(seed=5).save_weights(path)
    return path


def refuses(path, message):
    network = deep_convnet()
    with pytest.raises(ValueError, match=message):
        network.load_weights(path)
    assert_same_weights(network, deep_convnet())


def test_weights_come_back_bit_for_bit_in_the_networks_dtype(saved):
    network = deep_convnet()
    assert network.load_weights(saved) is network
    assert_same_weights(network, deep_convnet(seed=5))
    wide = deep_convnet().astype(np.float64).load_weights(saved)
    assert {a.dtype for a in wide.parameters.values()} == {np.dtype(np.float64)}
    assert [path.name for path in saved.parent.iterdir()] == ["weights.npz"]


def test_a_changed_byte_is_never_loaded(saved):
    untouched, loaded = deep_convnet(), deep_convnet(seed=5)
    for content in with_a_byte_changed(saved.read_bytes()):
        saved.write_bytes(content)
        network = deep_convnet()
        try:
            network.load_weights(saved)
        except ValueError:
            assert_same_weights(network, untouched)
        else:
            # The byte said nothing of the weights, such as a date in the archive.
            assert_same_weights(network, loaded)


def test_weights_of_another_network_and_of_other_packed_shapes_are_refused(saved, tmp_path):
    net(Flatten(), Linear(784, 10, rng=np.random.default_rng(0))).save_weights(saved)
    refuses(saved, r"holds the weights of a network, but not DeepConvNet's, .* expected ")
    binary_mlp(hidden=64).save_weights(saved, packed=True)
    with pytest.raises(ValueError, match="holds the weights of a network, but not Bin"):
        binary_mlp(hidden=96).load_weights(saved)


def test_weights_are_taken_out_of_a_checkpoint(tmp_path):
    trained, _ = train(optimizer=SGD(0.1, momentum=0.9), checkpoint=tmp_path / "run.npz")
    assert_same_weights(toy(seed=1).load_weights(tmp_path / "run.npz"), trained)
    refuses(tmp_path / "run.npz", r"run\.npz holds a checkpoint of a run, but not DeepConvNet's")


def test_weights_are_stored_as_npz_in_a_folder_that_is_there(tmp_path):
    with pytest.raises(ValueError, match=r"stored as \.npz, got the name 'weights\.pkl'"):
        toy().save_weights(tmp_path / "weights.pkl")
    with pytest.raises(FileNotFoundError, match="the folder 'gone' does not exist"):
        toy().save_weights(tmp_path / "gone" / "weights.npz")


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.zeros((1, 28, 28), np.float32), ValueError, r"For one image use x\[None\]"),
        (np.zeros((2, 1, 27, 28), np.float32), ValueError, r"\(N, 1, 28, 28\).*got \(2, 1, 27"),
        (np.zeros((2, 28, 28, 1), np.float32), ValueError, r"got \(2, 28, 28, 1\)"),
        (np.zeros((0, 1, 28, 28), np.float32), ValueError, r"N >= 1, got \(0, 1, 28, 28\)"),
        (np.zeros((2, 1, 28, 28)), TypeError, r"use x\.astype\(np\.float32\)"),
        (np.zeros((2, 1, 28, 28), np.uint8), TypeError, r"images are uint8; use x\.astype"),
        ([[1.0]], TypeError, r"np\.asarray"),
    ],
)
def test_images_that_do_not_fit_are_refused(x, error, message):
    with pytest.raises(error, match=message):
        deep_convnet().forward(x)


class Unfinished(Layer):
    def __init__(self):
        self.parameters = {}


def net(*layers, shape=(1, 28, 28)):
    return Network("N", [(f"l{number}", layer) for number, layer in enumerate(layers)], shape)


def own(**members):
    """A layer whose class has these members."""
    return type("Own", (Layer,), {"forward": lambda self, x, training=False: x, **members})()


def passed(forward=None, backward=lambda self, grad_out: grad_out, **members):
    """A training pass through a layer that gives something else than it says."""
    forward = forward or (lambda self, x, training=False: x)
    layer = own(forward=forward, backward=backward, **members)
    conv, relu = Conv2d(1, 2, 3, rng=np.random.default_rng(0)), ReLU()
    network = net(conv, layer, relu, Flatten(), Linear(8, 3, rng=np.random.default_rng(0)),
                  shape=(1, 4, 4))  # fmt: skip
    network.loss_and_gradients(np.ones((2, 1, 4, 4), np.float32), np.array([0, 1]))


CONV = Conv2d(3, 8, 3, rng=np.random.default_rng(0))
NO_NETWORK = [
    (lambda: net(CONV, Conv2d(4, 8, 3, rng=np.random.default_rng(0)), shape=(3, 9, 9)),
     ValueError, "N, layer l1: this Conv2d takes 4 channels, got 8"),
    (lambda: net(MaxPool2d(5), shape=(3, 4, 4)), ValueError, "N, layer l0: a window of 5 does not"),
    (lambda: net(Flatten(), MaxPool2d(2)), ValueError,
     r"N, layer l1: this MaxPool2d takes images of shape \(C, H, W\), got \(784,\)"),
    (lambda: net(Flatten(), LocalResponseNorm()), ValueError, "LocalResponseNorm takes images"),
    (lambda: net(Flatten(), Flatten()), ValueError, "this Flatten takes images of shape"),
    (lambda: Network("N", [("a", ReLU()), ("a", Dropout(0.5))], (1, 2, 2)), ValueError,
     "two layers share a name"),
    (lambda: net(*[ReLU()] * 2), ValueError, r"one layer stands under two names in \['l0', 'l1'\]"),
    (lambda: net(), ValueError, "has no layers"),
    (lambda: Network("N", [ReLU()], (1, 2, 2)), TypeError, r"are \(name, layer\) pairs, got <"),
    (lambda: Network("N", {"relu": ReLU()}, (1, 2, 2)), TypeError, "pairs, got 'relu'"),
    (lambda: Network("N", [("a.b", ReLU())], (1, 2, 2)), ValueError, "without a dot, got 'a.b'"),
    (lambda: net(ReLU), TypeError, r"l0 must be made of a .* class itself: write ReLU\(\.\.\.\)"),
    (lambda: net(np.tanh), TypeError, "must be made of a subclass of Layer, got <ufunc 'tanh'>"),
    (lambda: net(None), TypeError, "must be made of a subclass of Layer, got None"),
    (lambda: net(Unfinished()), TypeError,
     r"the __init__ of Unfinished does not begin with super\(\)\.__init__\(\)"),
    (lambda: net(own(kind="convolution")), ValueError,
     "N, layer l0: kind must be one of 'conv', 'fc', .*, got 'convolution'"),
    (lambda: net(own(output_shape=lambda self, shape: 5)), TypeError,
     "N, layer l0: output_shape must be a tuple of whole numbers, got 5"),
    (lambda: net(own(output_shape=lambda self, shape: (2.5,))), TypeError,
     r"layer l0: output_shape \(2\.5,\): each must be a whole number, got 2\.5"),
    (lambda: net(ReLU(), shape=(28, 28)), ValueError, r"input_shape is \(C, H, W\), .* \(28, 28\)"),
    (lambda: net(ReLU(), shape=(0, 28, 28)), ValueError, r"each must be at least 1, got 0"),
    (lambda: net(ReLU(), shape=(1, 28.0, 28)), TypeError, "must be a whole number, got 28.0"),
    (lambda: net(ReLU(), shape=784), TypeError, "input_shape must be a tuple of whole num.* 784"),
    (lambda: passed(lambda self, x, training=False: x[:, :1]), ValueError,
     r"layer l1: forward\(\) gave \(2, 1, 2, 2\) where output_shape\(\) promises \(2, 2, 2, 2\)"),
    (lambda: passed(lambda self, x, training=False: None), ValueError, "gave NoneType"),
    (lambda: passed(lambda self, x, training=False: x * np.float64(2)), TypeError,
     r"N, layer l1: forward\(\) gave float64 for float32; keep the dtype"),
    (lambda: passed(output_shape=lambda self, shape: (2, 2, 3)), ValueError, "this Linear takes"),
    (lambda: passed(backward=lambda self, grad_out: grad_out.astype(float)), TypeError,
     r"N, layer l1: backward\(\) gave float64 for float32"),
    (lambda: passed(backward=lambda self, grad_out: grad_out[0]), ValueError,
     r"N, layer l1: backward\(\) gave \(2, 2, 2\) where"),
    (lambda: net(ReLU(), shape=(1, 4, 4)).check_input(np.ones((1, 1, 4, 4)), np.zeros(1, int)),
     ValueError, r"N ends in l0 with an output of shape \(1, 4, 4\) .* ends in \(classes,\)"),
    (lambda: deep_convnet().variant("x", pool9=None), ValueError, "has no layer 'pool9'"),
    (lambda: deep_convnet().variant("no pool", pool6=None), ValueError,
     "no pool, layer fc1: this Linear takes"),
    (lambda: deep_convnet().input_shape_of("conv9"), KeyError, "has no layer 'conv9'"),
    (lambda: deep_convnet().astype(np.int32), TypeError, "float32 or float64, got int32"),
    (lambda: deep_convnet().backward(np.zeros((1, 10), np.float32)), RuntimeError,
     r"Dropout\.backward\(\) needs a forward"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), NO_NETWORK)
def test_what_a_network_cannot_do_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
