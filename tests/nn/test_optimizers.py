"""Optimisers against their formulas, however weights lie in memory, and the schedule's ends."""

import math

import numpy as np
import pytest
from helpers import (
    IMAGES,
    LABELS,
    OPTIMIZERS,
    SEEDS,
    assert_same_weights,
    random_gradients,
    set_gradients,
    toy,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastdl_lib.core import arrays, threads
from fastdl_lib.core.threads import blas_threads
from fastdl_lib.kernels import updates
from fastdl_lib.nn.layers import Flatten, Linear
from fastdl_lib.nn.network import Network
from fastdl_lib.nn.optimizers import SGD, Adam, warmup_cosine


def sgd_in_float64(weight, gradients, rate, momentum, weight_decay):
    velocity = np.zeros_like(weight)
    for gradient in gradients:
        velocity = momentum * velocity + gradient + weight_decay * weight
        weight = weight - rate * velocity
    return weight


def adam_in_float64(weight, gradients, rate, beta1, beta2, epsilon):
    mean, square = np.zeros_like(weight), np.zeros_like(weight)
    for t, gradient in enumerate(gradients, start=1):
        mean = beta1 * mean + (1 - beta1) * gradient
        square = beta2 * square + (1 - beta2) * gradient**2
        mean_hat, square_hat = mean / (1 - beta1**t), square / (1 - beta2**t)
        weight = weight - rate * mean_hat / (np.sqrt(square_hat) + epsilon)
    return weight


FORMULAS = [
    (SGD, (0.1, 0.0, 0.0), sgd_in_float64),
    (SGD, (0.1, 0.9, 0.0), sgd_in_float64),
    (SGD, (0.1, 0.0, 0.05), sgd_in_float64),
    (SGD, (0.03, 0.8, 0.05), sgd_in_float64),
    (Adam, (1e-3, 0.9, 0.999, 1e-8), adam_in_float64),
    (Adam, (0.2, 0.5, 0.7, 0.1), adam_in_float64),
]


@pytest.mark.parametrize("block", [7, threads.FLAT_BLOCK])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("kind", "constants", "formula"), FORMULAS)
def test_an_optimizer_follows_its_formula(kind, constants, formula, dtype, block, monkeypatch):
    monkeypatch.setattr(threads, "FLAT_BLOCK", block)
    # NumPy's own numbers would widen float32 weights.
    network, optimizer = toy().astype(dtype), kind(*map(np.float64, constants))
    optimizer.learning_rate = np.float64(optimizer.learning_rate)
    held = network.parameters
    before = {name: array.astype(np.float64) for name, array in held.items()}
    steps = random_gradients(network)
    for gradients in steps:
        set_gradients(network, gradients)
        optimizer.step(network)
    for name, array in network.parameters.items():
        assert array is held[name] and array.dtype == dtype, "changed in place"
        expected = formula(before[name], [g[name] for g in steps], *constants)
        tolerance = 1e-5 if dtype == np.float32 else 1e-13
        np.testing.assert_allclose(array, expected, rtol=tolerance, atol=tolerance, err_msg=name)
    assert {array.dtype for array in optimizer.state.values()} <= {np.dtype(dtype)}
    assert optimizer.steps == len(steps)


def turned(array):
    return np.ascontiguousarray(array.T).T


LAYOUTS = {
    "weights turned": (turned, lambda a: a),
    "gradients turned": (lambda a: a, turned),
    "both turned": (turned, turned),
    "weights with gaps": (lambda a: np.repeat(a, 2, axis=-1)[..., ::2], lambda a: a),
    "weights backwards": (lambda a: a[..., ::-1].copy()[..., ::-1], lambda a: a),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_how_a_weight_lies_in_memory_changes_nothing(kind, layout, monkeypatch):
    monkeypatch.setattr(threads, "FLAT_BLOCK", 50)
    plain, other, one, two = toy(), toy(), OPTIMIZERS[kind](), OPTIMIZERS[kind]()
    relay_weight, relay_gradient = LAYOUTS[layout]
    for layer in other.layers.values():
        layer.parameters = {name: relay_weight(array) for name, array in layer.parameters.items()}
    held = other.parameters
    for gradients in random_gradients(plain):
        set_gradients(plain, gradients)
        set_gradients(other, gradients, lambda a, like: relay_gradient(a.astype(like.dtype)))
        one.step(plain)
        two.step(other)
    assert_same_weights(plain, other)
    assert all(array is held[name] for name, array in other.parameters.items())


@pytest.mark.parametrize("layout", ["both turned", "weights turned"])
def test_a_turned_weight_comes_in_blocks_where_its_gradient_is_turned_too(layout, monkeypatch):
    monkeypatch.setattr(threads, "FLAT_BLOCK", 5)
    lays = [relay(np.arange(24.0).reshape(2, 3, 4)) for relay in LAYOUTS[layout]]
    blocks = []
    with blas_threads(1):
        threads.in_flat_blocks(lambda *block: blocks.append(block), lays)
    if layout == "both turned":
        assert [len(block[0]) for block in blocks] == [5, 5, 5, 5, 4]
        assert sorted(np.concatenate([block[1] for block in blocks])) == list(range(24))
        for weights, gradients in blocks:
            assert (weights == gradients).all() and np.shares_memory(weights, lays[0])
    else:
        assert len(blocks) == 1 and blocks[0][0] is lays[0]


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_optimizer_works_on_the_gpu(kind, fake_gpu):
    cpu, gpu = toy(), toy().to_gpu()
    held, one, two = gpu.parameters, OPTIMIZERS[kind](), OPTIMIZERS[kind]()
    for gradients in random_gradients(cpu):
        set_gradients(cpu, gradients)
        set_gradients(gpu, gradients, lambda a, like: arrays.to_gpu(a.astype(like.dtype)))
        crossings = dict(fake_gpu.counts)
        one.step(cpu)
        two.step(gpu)
        assert fake_gpu.counts == crossings, "nothing crosses the bus"
    for name, array in gpu.parameters.items():
        assert array is held[name] and (array.get() == cpu.parameters[name]).all(), name
    assert {type(array) for array in two.state.values()} == {fake_gpu.ndarray}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("kind", "constants"), [row[:2] for row in FORMULAS])
def test_the_loops_give_numpys_bits(kind, constants, dtype, monkeypatch):
    found = []
    for compiled in (True, False):
        if not compiled:
            monkeypatch.setattr(updates, "fits", lambda *arrays: False)
        rng, optimizer = np.random.default_rng(0), kind(*constants)
        weights = {"w": rng.standard_normal(1003).astype(dtype)}
        for _ in range(3):
            gradient = (rng.standard_normal(1003) * 10.0 ** rng.integers(-9, 3, 1003)).astype(dtype)
            gradient[:4] = [0.0, -0.0, np.nan, np.inf]
            with np.errstate(invalid="ignore"):  # infinity by infinity
                optimizer.update(weights, {"w": gradient})
        found.append([weights["w"], *optimizer.state.values()])
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


@settings(derandomize=True)
@given(
    seed=SEEDS, decay=st.sampled_from([0.0, 1e-4, 0.1]), momentum=st.sampled_from([0.0, 0.9]),
    narrow=st.sampled_from([np.float16, np.float32]),
)  # fmt: skip
@example(seed=0, decay=1e-4, momentum=0.9, narrow=np.float16)
def test_narrow_weights_are_changed_in_float32_and_rounded_once(seed, decay, momentum, narrow):
    """Of every size that float16 has: weight decay of 2e-4 by 1e-4 is 0 in float16."""
    rng, rate = np.random.default_rng(seed), 0.1
    sizes = 10.0 ** rng.uniform(-7, 3, (4, 50))
    weight, *gradients = (sizes * rng.choice([-1, 1], (4, 50))).astype(narrow)
    weights, sgd, adam = {"w": weight.copy()}, SGD(rate, momentum, decay), Adam(rate)
    expected, velocity, sizes = weight.astype(float), np.zeros(50), np.zeros(50)
    for gradient in gradients:
        sgd.update(weights, {"w": gradient})
        velocity = momentum * velocity + gradient + decay * expected
        sizes = momentum * sizes + abs(gradient) + decay * abs(expected)
        if momentum:
            assert sgd.state["velocity.w"].dtype == np.float32
            assert (abs(sgd.state["velocity.w"] - velocity) <= 1e-6 * sizes).all()
        expected = (expected - rate * velocity).astype(narrow)
        assert (abs(weights["w"] - expected) <= np.spacing(abs(expected)) + 1e-6 * sizes).all()
        expected = weights["w"].astype(float)
    adam.update({"w": weight}, {"w": gradients[0]})
    assert {array.dtype for array in adam.state.values()} == {np.dtype(np.float32)}
    square = 0.001 * gradients[0].astype(float) ** 2
    np.testing.assert_allclose(adam.state["square.w"], square, rtol=1e-5, atol=1e-45)


def test_wide_weights_decay_in_their_own_dtype():
    weights = {"w": np.array([1 / 3])}
    SGD(1.0, weight_decay=0.5).update(weights, {"w": np.zeros(1, np.float32)})
    assert weights["w"][0] == 1 / 3 - 0.5 * (1 / 3)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: SGD(0), ValueError, "learning_rate must be above 0 and finite, got 0"),
        (lambda: SGD(math.nan), ValueError, "learning_rate must be above 0 and finite, got nan"),
        (lambda: Adam(math.inf), ValueError, "learning_rate must be above 0 and finite, got inf"),
        (lambda: SGD("fast"), TypeError, "learning_rate must be a number, got 'fast'"),
        (lambda: SGD(True), TypeError, "learning_rate must be a number, got True"),
        (lambda: SGD(1, momentum=1), ValueError, "momentum must be at least 0 and below 1"),
        (lambda: SGD(1, weight_decay=-1), ValueError, "weight_decay must be at least 0"),
        (lambda: Adam(beta1=-0.1), ValueError, "beta1 must be at least 0 and below 1"),
        (lambda: Adam(beta2=1.0), ValueError, "beta2 must be at least 0 and below 1"),
        (lambda: Adam(epsilon=0), ValueError, "epsilon must be above 0"),
        (lambda: warmup_cosine(1), ValueError, "warmup must be at least 0 and below 1"),
        (lambda: warmup_cosine(None), TypeError, "warmup must be a number"),
    ],
)
def test_constants_out_of_range_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_gradient_of_another_shape_is_refused(kind):
    weights = {"w": np.ones(3, np.float32), "b": np.ones(5, np.float32)}
    for shape in ((4,), (6,), (5, 1), ()):
        optimizer, short = OPTIMIZERS[kind](), np.ones(shape, np.float32)
        with pytest.raises(ValueError, match=r"gradient of b is \(.*, the weight \(5,\)"):
            optimizer.update(weights, {"w": np.ones(3, np.float32), "b": short})
        assert not optimizer.steps and all((weight == 1).all() for weight in weights.values())


def test_a_step_that_is_refused_changes_nothing():
    network, optimizer = toy(), SGD(0.1, momentum=0.9)
    with pytest.raises(RuntimeError, match=r"SGD\.step\(\) needs the gradients of toy: call netw"):
        optimizer.step(network)
    network.loss_and_gradients(IMAGES[:2], LABELS[:2])
    optimizer.step(network)
    layers = [("flatten", Flatten()), ("fc", Linear(64, 3, rng=np.random.default_rng(0)))]
    other = Network("other", layers, (1, 8, 8))
    other.loss_and_gradients(IMAGES[:2], LABELS[:2])
    with pytest.raises(ValueError, match=r"on another network: its velocity\.fc\.weight is"):
        optimizer.step(other)
    network.astype(float)
    network.loss_and_gradients(IMAGES[:2].astype(float), LABELS[:2])
    # All but the last weight are as the optimiser knows them.
    for key in list(optimizer.state)[:-1]:
        optimizer.state[key] = optimizer.state[key].astype(float)
    before = {name: array.copy() for name, array in network.parameters.items()}
    with pytest.raises(ValueError, match=r"velocity\.fc\.bias is float32 .*, the weight float6"):
        optimizer.step(network)
    assert optimizer.steps == 1
    assert all((array == before[name]).all() for name, array in network.parameters.items())


def test_warm_up_and_cosine_at_their_ends():
    schedule = warmup_cosine(0.25)
    for done, factor in {0: 0, 0.125: 0.5, 0.25: 1, 0.625: 0.5, 1: 0}.items():
        assert schedule(done) == pytest.approx(factor)
    assert warmup_cosine(0)(0) == 1
