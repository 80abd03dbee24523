"""A layer that a learner writes in a notebook: one class, and everything takes it."""

import numpy as np
import pytest
from helpers import IMAGES, LABELS, assert_same_weights, numeric_gradient, train, weights_differ

from fastdl_lib.core.arrays import to_gpu
from fastdl_lib.figures.chapter_01 import layer_bars
from fastdl_lib.measuring.costs import cost_table, layer_costs, memory_bytes
from fastdl_lib.measuring.speeds import forward_ms
from fastdl_lib.measuring.timing import profile_layers
from fastdl_lib.nn.layers import Conv2d, Flatten, Layer, Linear
from fastdl_lib.nn.network import Network
from fastdl_lib.nn.optimizers import SGD
from fastdl_lib.nn.training import evaluate
from fastdl_lib.precision.formats import FLOAT16
from fastdl_lib.precision.mixed import MixedPrecision, Precision, Rounding, in_precision
from fastdl_lib.scaling.workers import Delayed


class Square(Layer):
    """The shortest layer there is: nothing but its two passes."""

    def forward(self, x, training=False):
        self.x = x
        return x * x

    def backward(self, grad_out):
        return 2 * self.x * grad_out


class Scale(Layer):
    """One with a weight, a factor for each channel."""

    def __init__(self, channels):
        super().__init__()
        self.parameters = {"factor": np.ones((channels, 1, 1), np.float32)}

    def forward(self, x, training=False):
        self.x = x
        return x * self.parameters["factor"]

    def backward(self, grad_out):
        self.gradients = {"factor": (grad_out * self.x).sum(axis=(0, 2, 3))[:, None, None]}
        return grad_out * self.parameters["factor"]


class CountedScale(Scale):
    def macs(self, input_shape):
        return int(np.prod(input_shape))


def network(scale=CountedScale, first=False):
    rng = np.random.default_rng(0)
    layers = [
        *([("scale", scale(1))] if first else []),
        ("conv", Conv2d(1, 6, 3, padding=1, rng=rng)),
        ("square", Square()),
        *([] if first else [("scale", scale(6))]),
        ("flatten", Flatten()),
        ("fc", Linear(6 * 8 * 8, 3, rng=rng)),
    ]
    return Network("own", layers, (1, 8, 8))


@pytest.mark.parametrize("first", [False, True])
def test_it_trains_and_its_gradient_is_right(first):
    own = network(first=first).astype(np.float64)
    x, labels = IMAGES[:8].astype(np.float64), LABELS[:8]
    own.loss_and_gradients(x, labels)
    gradient, factor = own.gradients["scale.factor"], own.parameters["scale.factor"]
    numeric = numeric_gradient(
        lambda: own.loss_and_gradients(x, labels), factor, range(factor.size), 1e-6
    )
    np.testing.assert_allclose(gradient.ravel(), numeric, rtol=1e-5)
    trained, history = train(network(first=first))
    assert weights_differ(trained, network(first=first))
    assert history.epochs[-1].loss < history.epochs[0].loss


def test_it_says_what_it_costs_or_is_refused():
    own = network()
    costs = {cost.name: cost for cost in layer_costs(own, 2)}
    values = 6 * 8 * 8
    assert (costs["square"].kind, costs["square"].macs) == ("other", 0)
    assert costs["square"].bytes == 4 * 2 * 2 * values
    assert (costs["scale"].parameters, costs["scale"].macs) == (6, 2 * values)
    assert costs["scale"].bytes == 4 * (2 * 2 * values + 6)
    *rows, total = cost_table(own, 2).rows
    for key in ("parameters", "macs", "megabytes", "parameters_pct", "macs_pct"):
        assert sum(row[key] for row in rows) == pytest.approx(total[key], rel=1e-12)
    assert memory_bytes(own, 1) > 0
    with pytest.raises(TypeError, match=r"Scale has weights .* define macs\(self, input_shape\)"):
        layer_costs(network(Scale))


@pytest.mark.parametrize(
    ("members", "error", "words"),
    [
        ({"forward": Layer.forward, "foward": Scale.forward}, NotImplementedError,
         r"Own does not define forward\(self, x, training=False\)\."),
        ({"backward": Layer.backward}, NotImplementedError,
         r"Own does not define backward\(self, grad_out\)\."),
        ({"backward": lambda self, grad_out: grad_out}, RuntimeError,
         r"own, layer scale: backward\(\) left gradients for \[\], its weights .* \['factor'\]"),
        ({"forward": lambda self, x, training=False: np.negative(x, out=x)}, ValueError,
         "read-only"),
    ],
)  # fmt: skip
def test_what_it_forgets_is_named_and_the_callers_images_stay(members, error, words):
    x = IMAGES[:4].copy()
    with pytest.raises(error, match=words):
        network(type("Own", (Scale,), members), first=True).loss_and_gradients(x, LABELS[:4])
    assert (x == IMAGES[:4]).all()


def test_it_is_timed_and_drawn():
    profile = profile_layers(network(Scale), IMAGES[:4], LABELS[:4], budget_s=0.001)
    assert list(profile.forward) == list(profile.backward) == list(network().layers)
    assert profile.kinds["square"] == "other"
    words = layer_bars(profile, title="Own").alt
    assert all(f"{name} " in words for name in profile.forward)
    assert forward_ms(Square(), IMAGES[:4], budget_s=0.001).unit == "ms"
    assert forward_ms(network(Scale), IMAGES[:4], budget_s=0.001).unit == "ms"


def test_its_weights_are_stored(tmp_path):
    trained, _ = train(network(Scale), checkpoint=tmp_path / "run.npz")
    trained.save_weights(tmp_path / "own.npz", packed=True)
    assert_same_weights(network(Scale).load_weights(tmp_path / "own.npz"), trained)
    again, _ = train(network(Scale), checkpoint=tmp_path / "run.npz")
    assert_same_weights(again, trained)


def test_its_public_constants_tell_runs_apart():
    layer = Scale(2)
    layer.rate, layer.seed, layer._seen = np.float32(0.5), 3, 7
    assert layer.settings == {"class": "Scale", "rate": 0.5}
    conv = Conv2d(1, 6, 3, stride=2, rng=np.random.default_rng(0)).settings
    assert (conv["algorithm"], conv["stride"]) == ("auto", 2) and "_algorithm" not in conv


def test_it_is_stored_in_few_bits():
    trained, _ = train(network(Scale))
    trained.parameters["scale.factor"] += np.float32(2.0**-13)
    half = in_precision(trained, Precision(FLOAT16))
    assert isinstance(half.layers["square stored"], Rounding)
    factor = half.parameters["scale.factor"]
    assert (factor == trained.parameters["scale.factor"].astype(np.float16)).all()
    assert (factor != trained.parameters["scale.factor"]).any()
    train(half, MixedPrecision(SGD(0.01), FLOAT16))
    with pytest.raises(TypeError, match="Scale"):  # nor can its sums be rounded one by one
        in_precision(trained, Precision(FLOAT16, FLOAT16, FLOAT16))
    square = trained.variant("square only", scale=None)
    slow = in_precision(square, Precision(FLOAT16, FLOAT16, FLOAT16))
    assert evaluate(slow, IMAGES, LABELS).accuracy == pytest.approx(
        evaluate(square, IMAGES, LABELS).accuracy, abs=0.05
    )


def test_variants_and_stale_gradients_take_it():
    own = network(Scale)
    assert "square" not in own.variant("plain", square=None).layers
    trained, _ = train(own, workers=Delayed(2))
    assert weights_differ(trained, network(Scale))


def test_it_runs_on_the_gpu(fake_gpu):
    here, there = network(Scale), network(Scale).to_gpu()
    assert here.loss_and_gradients(IMAGES[:4], LABELS[:4]) == pytest.approx(
        there.loss_and_gradients(to_gpu(IMAGES[:4]), to_gpu(LABELS[:4])), rel=1e-5
    )
    assert forward_ms(network(Scale), IMAGES[:4], device="gpu", budget_s=0.001).unit == "ms"
