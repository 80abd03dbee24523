"""Everything that runs on a GPU, against float64 on the CPU: on the stand-in and on a real one.

The stand-in runs the very text of our kernels through a C compiler. ``pytest -m gpu`` runs the same
list on a GPU.
"""

import sys

import numpy as np
import pytest
from helpers import IMAGES, LABELS, LAYERS, layer_and_batch, set_gradients, small_alexnet, toy

from fastdl_lib.convolution import gpu
from fastdl_lib.convolution.algorithms import ALGORITHMS, conv2d, conv2d_backward
from fastdl_lib.convolution.geometry import Geometry
from fastdl_lib.core.arrays import (
    array_module,
    beside,
    gpu_available,
    gpu_status,
    release_gpu_memory,
    tf32,
    tf32_allowed,
    to_cpu,
    to_gpu,
)
from fastdl_lib.core.checks import Status
from fastdl_lib.nn.layers import Conv2d, Dropout, RandomLayer
from fastdl_lib.nn.loss import loss_and_gradient
from fastdl_lib.nn.norms import LocalResponseNorm
from fastdl_lib.nn.optimizers import SGD, Adam
from fastdl_lib.nn.training import evaluate, fit, predict_classes
from fastdl_lib.nn.zoo import alexnet, deep_convnet
from fastdl_lib.precision.formats import FLOAT16, FORMATS, INT8_PER_CHANNEL, FixedPoint
from fastdl_lib.precision.mixed import (
    DynamicLossScale,
    MixedPrecision,
    Precision,
    Rounding,
    in_precision,
)

REAL = pytest.param(
    "real",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not gpu_available(), reason=gpu_status().reason)],
)
on_a_real_gpu = pytest.mark.parametrize("xp", [REAL], indirect=True)

# How far from float64, as a share of the largest value: some roundings of each format.
CLOSE = {"float16": 1e-2, "tf32": 5e-3, "float32": 2e-5, "float64": 1e-12}


@pytest.fixture(params=["stand-in", REAL])
def xp(request):
    """CuPy, or what stands in for it."""
    if request.param == "stand-in":
        return request.getfixturevalue("fake_gpu")
    request.addfinalizer(release_gpu_memory)
    return array_module(to_gpu(np.zeros(1)))


def cudnn_for(xp, monkeypatch):
    """Let cuDNN's path run on the stand-in too, where PyTorch computes on the CPU; give PyTorch."""
    torch = pytest.importorskip("torch")
    if "stand-in" in xp.__version__:
        monkeypatch.setattr(gpu, "cudnn_status", lambda: Status(True, "stand-in"))
    elif not gpu.cudnn_status().available:
        pytest.skip(gpu.cudnn_status().reason)
    return torch


def assert_close(got, expected, dtype, what=""):
    atol = CLOSE[str(dtype)] * np.abs(expected).max()
    np.testing.assert_allclose(to_cpu(got).astype(float), expected, rtol=0, atol=atol, err_msg=what)


def normal(shape, dtype, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def channels_last(x):
    return array_module(x).ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


# --- convolution --------------------------------------------------------------------------------

# x, weight, and the window; sizes that differ on the two axes show what is mixed up.
CASES = {
    "as conv1": ((2, 3, 23, 27), (8, 3, 11, 11), {"stride": 4}),
    "as conv2": ((2, 8, 9, 7), (6, 4, 5, 5), {"padding": 2, "groups": 2}),
    "as conv3": ((3, 5, 6, 4), (7, 5, 3, 3), {"padding": 1}),
    "one pixel": ((2, 4, 5, 6), (3, 4, 1, 1), {"stride": 2}),
    "long filter": ((2, 6, 9, 8), (6, 2, 2, 5), {"stride": 3, "padding": 3, "groups": 3}),
    "gaps": ((1, 2, 9, 11), (2, 2, 2, 2), {"stride": 4, "padding": 1}),
}
WORK_ON_GPU = [name for name, row in ALGORITHMS.items() if "gpu" in row.devices]
ON_GPU = [name for name in WORK_ON_GPU if ALGORITHMS[name].devices == ("gpu",)]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("algorithm", WORK_ON_GPU)
@pytest.mark.parametrize("blocked", [False, True], ids=["whole", "in blocks"])
def test_convolution_forward_and_backward(xp, monkeypatch, algorithm, case, dtype, blocked):
    if algorithm == "cudnn":
        cudnn_for(xp, monkeypatch)
    elif blocked:
        monkeypatch.setattr(gpu, "_PATCHES_BYTES", 1000)
    *shapes, window = CASES[case]
    shapes.append(shapes[1][0])
    given = [normal(shape, dtype, seed) for seed, shape in enumerate(shapes)]
    exact = [array.astype(float) for array in given]
    expected = conv2d(*exact, **window)
    grad_out = normal(expected.shape, dtype, 3)
    grads = conv2d_backward(grad_out.astype(float), *exact[:2], **window)

    window = {**window, "algorithm": algorithm}
    x, weight, bias, grad_out = map(to_gpu, (*given, grad_out))
    if blocked:  # the other layout in memory too
        x, weight, grad_out = map(channels_last, (x, weight, grad_out))
    out = conv2d(x, weight, bias, **window)
    assert type(out) is xp.ndarray and out.dtype == dtype
    if algorithm != "cudnn":  # which chooses by itself
        last = out.transpose(0, 2, 3, 1).flags.c_contiguous
        assert last == ALGORITHMS[algorithm].channels_last
    assert_close(out, expected, dtype)
    assert_close(conv2d(x, weight, **window), expected - exact[2][:, None, None], dtype)
    got = conv2d_backward(grad_out, x, weight, **window)
    for name, one, wanted in zip(("x", "weight", "bias"), got, grads, strict=True):
        assert one.dtype == dtype and one.shape == wanted.shape
        assert_close(one, wanted, dtype, f"gradient by {name}")
    without = conv2d_backward(grad_out, x, weight, **window, need_grad_x=False)
    assert without[0] is None
    assert_close(without[1], grads[1], dtype)


def test_pixels_of_float16_add_up_in_float32(xp):
    x, weight = xp.ones((1, 1, 21, 21), xp.float16), xp.ones((33, 1, 11, 11), xp.float16)
    grad_out = xp.ones((1, 33, 11, 11), xp.float16)
    grad_x, _, grad_bias = conv2d_backward(grad_out, x, weight, algorithm="gpu")
    # 11 x 11 patches of 33 each; one by one in float16, every addition beyond 2048 would round.
    assert float(grad_x[0, 0, 10, 10]) == np.float16(33 * 121)
    assert float(grad_bias[0]) == 121


def test_an_image_beyond_32_bits_is_refused():
    geometry = Geometry((1, 64, 4096, 4096), (64, 64, 3, 3), padding=1)
    with pytest.raises(ValueError, match=r"9,663,676,416 values.*algorithm='cudnn'"):
        next(gpu._blocks(geometry, 2))


def test_weights_keep_their_layout_across_the_bus(xp):
    network = small_alexnet()
    for moved in (network.to_gpu(), network.to_cpu()):
        weight = moved.layers["conv2"].parameters["weight"]
        assert weight.transpose(0, 2, 3, 1).flags.c_contiguous


# --- layers and networks ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer(xp, kind, dtype):
    layer, x = layer_and_batch(kind)
    x = x.astype(dtype)
    grad_out = normal((len(x), *layer.output_shape(x.shape[1:])), dtype, 1)

    def forward_backward(arrays, move):
        layer, _ = layer_and_batch(kind)
        layer.map_arrays(lambda array: move(array.astype(dtype).astype(arrays)))
        out = layer.forward(move(x.astype(arrays)), training=True)
        grad_x = layer.backward(move(grad_out.astype(arrays)))
        return {"out": out, "x": grad_x, **layer.gradients, **layer.buffers}

    expected = forward_backward("float64", np.asarray)
    for move, place in ((to_gpu, xp), (np.asarray, np)):  # the same code on the CPU
        for name, array in forward_backward(dtype, move).items():
            assert type(array) is place.ndarray and array.dtype == dtype, name
            if place is np or not isinstance(layer, RandomLayer):  # CuPy draws other numbers
                assert_close(array, expected[name], dtype, name)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_dropout_keeps_or_drops(xp, dtype):
    layer, x = Dropout(0.25, seed=0), xp.ones((50, 80), dtype)
    out = layer.forward(x, training=True)
    assert out.dtype == dtype
    values, kept = np.unique(out.get()), (out.get() > 0).mean()
    np.testing.assert_allclose(values, [0, 4 / 3], rtol=1e-3)
    assert 0.7 < kept < 0.8
    assert (layer.backward(x).get() == out.get()).all()


def test_the_squares_of_float16_do_not_overflow(xp):
    x = xp.full((1, 5, 2, 2), 1000, xp.float16)
    out = LocalResponseNorm().forward(x).get()[:, 2]  # has two neighbours on either side
    np.testing.assert_allclose(out, 1000 / (2 + 5e-4 * 1e6) ** 0.75, rtol=1e-3)


def test_the_loss_of_float16(xp):
    logits, labels = 8 * normal((6, 10), np.float16), np.arange(6)
    expected, wanted = loss_and_gradient(logits.astype(float), labels)
    loss, grad = loss_and_gradient(to_gpu(logits), to_gpu(labels))
    assert grad.dtype == np.float16 and float(loss) == pytest.approx(float(expected), rel=1e-5)
    assert_close(grad, wanted, "float16")


NETWORKS = {"small AlexNet": (small_alexnet, 3), "DeepConvNet": (deep_convnet, 3)}


@pytest.mark.parametrize("dtype", ["float16", "tf32", "float32"])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("algorithm", ON_GPU)
def test_a_network(xp, monkeypatch, name, dtype, algorithm):
    if algorithm == "cudnn":
        cudnn_for(xp, monkeypatch)
    compare_networks(*NETWORKS[name], dtype, algorithm)


@pytest.mark.parametrize("dtype", ["float16", "tf32", "float32"])
@on_a_real_gpu
def test_alexnet(xp, dtype):
    compare_networks(alexnet, 4, dtype, "gpu")


def compare_networks(make, images, dtype, algorithm):
    kind = "float32" if dtype == "tf32" else dtype
    networks = [make().astype(np.float16).astype(one) for one in (np.float64, kind)]
    for network in networks:
        for layer in network.layers.values():
            if isinstance(layer, Dropout):
                layer.rate = 0.0  # CuPy's generator draws other numbers than NumPy's
    x, labels = normal((images, *networks[0].input_shape), np.float16), np.arange(images) % 7

    def training_pass(network, x, labels):
        loss = network.loss_and_gradients(x, labels)
        return loss, {"logits": network.forward(x), **network.gradients}

    expected_loss, expected = training_pass(networks[0], x.astype(float), labels)
    on_gpu = networks[1].to_gpu()
    for layer in on_gpu.layers.values():
        if isinstance(layer, Conv2d):
            layer.algorithm = algorithm
    with tf32(dtype == "tf32"):
        loss, got = training_pass(on_gpu, to_gpu(x.astype(kind)), to_gpu(labels))
    # Roundings grow from layer to layer, and a pooling window may choose another pixel.
    share = {"float16": 0.1, "tf32": 0.05, "float32": 1e-3}[dtype]
    assert loss == pytest.approx(expected_loss, rel=share)
    for name, array in got.items():
        assert array.dtype == kind, name
        error = np.linalg.norm(to_cpu(array).astype(float) - expected[name])
        assert error <= share * np.linalg.norm(expected[name]), name


# --- few bits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("format", [*FORMATS.values(), FixedPoint(8, 8)], ids=lambda f: f.name)
def test_a_rounding_gives_the_bits_of_the_cpus(xp, format):
    x = 10 * normal((3, 5, 4, 6), np.float32)
    x.reshape(-1)[:3] = 0, 1e5, -1e-7
    expected = Rounding(format).forward(x)
    for turned in (to_gpu(x), channels_last(to_gpu(x))):
        got = Rounding(format).forward(turned)
        assert type(got) is xp.ndarray and got.dtype == np.float32
        assert got.strides == turned.strides
        np.testing.assert_array_equal(got.get(), expected)


@pytest.mark.parametrize("format", [FLOAT16, FixedPoint(8, 8)], ids=lambda f: f.name)
def test_a_rounding_draws_on_the_gpu(xp, format):
    layer = Rounding(format, stochastic=True, seed=1)
    x = xp.full((100, 100), 1 + format.epsilon / 4, xp.float32)
    drawn = []
    for seed in (1, 1, 2):
        layer.reseed(seed)
        drawn.append(layer.forward(x, training=True).get())
        assert set(np.unique(layer.backward(x).get())) == {1, 1 + format.epsilon}
    assert (drawn[0] == drawn[1]).all() and (drawn[0] != drawn[2]).any()
    assert 0.22 < (drawn[0] > 1).mean() < 0.28  # a standard deviation is 0.004


@pytest.mark.parametrize("format", [FLOAT16, INT8_PER_CHANNEL], ids=lambda f: f.name)
def test_a_network_in_few_bits(xp, format):
    network = in_precision(deep_convnet(), Precision(format))
    x = normal((4, 1, 28, 28), np.float32)
    expected = network.forward(x)
    on_gpu = in_precision(deep_convnet().to_gpu(), Precision(format))
    for name, array in on_gpu.parameters.items():
        np.testing.assert_array_equal(array.get(), network.parameters[name], err_msg=name)
    # Float32 adds up in another order there, and a rounding may then go the other way.
    error = np.abs(on_gpu.forward(to_gpu(x)).get() - expected).max()
    assert error < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("master_weights", [True, False])
@pytest.mark.parametrize("inner", [lambda: SGD(0.1, momentum=0.9, weight_decay=1e-3), Adam])
@pytest.mark.parametrize("arrays", ["float16", "float32"])
def test_steps_in_few_bits_are_those_of_the_cpu(xp, inner, arrays, master_weights):
    rng = np.random.default_rng(0)
    networks = [deep_convnet().astype(np.float16).astype(arrays) for _ in range(2)]
    networks[1].to_gpu()
    options = {"master_weights": master_weights}
    optimizers = [
        MixedPrecision(inner(), FLOAT16, loss_scale=DynamicLossScale(64.0), **options)
        for _ in networks
    ]
    for step in range(4):
        gradients = {
            name: rng.standard_normal(array.shape) for name, array in networks[0].parameters.items()
        }
        if step == 2:
            gradients["fc2.bias"][3] = np.inf
        for network, optimizer in zip(networks, optimizers, strict=True):
            set_gradients(network, gradients, lambda a, like: beside(a.astype(like.dtype), like))
            optimizer.step(network)
    cpu, there = optimizers
    assert there.numbers == cpu.numbers == {"skipped": 1, "scale": 32.0, "good_steps": 1}
    assert there.state.keys() == cpu.state.keys()
    for key, array in there.state.items():
        np.testing.assert_allclose(array.get(), cpu.state[key], rtol=1e-5, atol=1e-7, err_msg=key)
    for name, array in networks[1].parameters.items():
        assert type(array) is xp.ndarray and array.dtype == arrays
        wanted = networks[0].parameters[name].astype(np.float64)
        # A half's spacing, where float32 differed in its last bit.
        np.testing.assert_allclose(array.get(), wanted, rtol=2.0**-10, atol=2.0**-24, err_msg=name)


FIXED = FixedPoint(8, 8)
LEARNERS = {
    "SGD": (lambda net: net, lambda: SGD(0.05, momentum=0.9)),
    "SGD, float16": (lambda net: net.astype(np.float16), lambda: SGD(0.05, momentum=0.9)),
    "Adam, float16": (lambda net: net.astype(np.float16), lambda: Adam(0.01)),
    "mixed, float16 arrays": (
        lambda net: net.astype(np.float16),
        lambda: MixedPrecision(Adam(0.01), FLOAT16, loss_scale=DynamicLossScale(2.0**20)),
    ),
    "mixed, float16, stochastic": (
        lambda net: in_precision(net, Precision(FLOAT16), stochastic=True),
        lambda: MixedPrecision(Adam(0.01), FLOAT16, loss_scale=256, stochastic=True),
    ),
    "fixed<8,8>, stochastic": (
        lambda net: in_precision(net, Precision(FIXED), stochastic=True),
        lambda: MixedPrecision(SGD(0.05), FIXED, master_weights=False, stochastic=True),
    ),
}


def learner(kind, network):
    """The network on the GPU, its optimizer, and the dtype of its images."""
    change, make_optimizer = LEARNERS[kind]
    network = change(network).to_gpu()
    half = {array.dtype for array in network.parameters.values()} == {np.dtype(np.float16)}
    return network, make_optimizer(), np.float16 if half else np.float32


@pytest.mark.parametrize("kind", LEARNERS)
def test_fit_learns_on_the_gpu(xp, kind):
    network, optimizer, dtype = learner(kind, toy())
    dtypes = {array.dtype for array in network.parameters.values()}
    x, y = to_gpu(IMAGES.astype(dtype)), to_gpu(LABELS)
    fit(network, x, y, epochs=10, optimizer=optimizer, batch=10, progress=False)
    assert evaluate(network, x, y).accuracy > 0.9
    assert (predict_classes(network, x) == LABELS).mean() > 0.9
    assert {array.dtype for array in network.parameters.values()} == dtypes
    assert all(type(array) is xp.ndarray for array in optimizer.state.values())


# --- nothing crosses the bus by itself ----------------------------------------------------------


def counted(fake_gpu, work):
    before = dict(fake_gpu.counts)
    work()
    moved = {name: fake_gpu.counts[name] - count for name, count in before.items()}
    return {name: count for name, count in moved.items() if count}


# Fixed point asks whether anything is not a number.
@pytest.mark.parametrize("kind", [kind for kind in LEARNERS if "fixed" not in kind])
def test_what_a_training_step_moves(fake_gpu, kind):
    network, optimizer, dtype = learner(kind, small_alexnet())
    x, labels = to_gpu(normal((4, *network.input_shape), dtype)), to_gpu(np.arange(4))
    assert counted(fake_gpu, lambda: network.forward(x, training=True)) == {}
    # The labels' smallest and largest, and the loss.
    assert counted(fake_gpu, lambda: network.loss_and_gradients(x, labels)) == {"numbers": 3}
    finite = {"numbers": 1} if "mixed" in kind else {}  # whether all gradients are
    for _ in range(2):
        assert counted(fake_gpu, lambda: optimizer.step(network)) == finite
    assert optimizer.steps == 2


def test_what_fit_and_evaluate_move(fake_gpu):
    network = toy().to_gpu()
    x, labels = to_gpu(IMAGES[:12]), to_gpu(LABELS[:12])

    def train():
        fit(network, x, labels, epochs=2, optimizer=Adam(), batch=4, progress=False)

    # The labels' range once; of a step the loss and right answers in one, and all weights' sums;
    # of an epoch those of what Adam remembers.
    numbers = 2 + 2 * (2 * 3 + 1)
    # To the GPU goes the order of each epoch.
    assert counted(fake_gpu, train) == {"to_gpu": 2, "numbers": numbers, "synchronize": 4}
    assert counted(fake_gpu, lambda: evaluate(network, x, labels, batch=4)) == {"numbers": 2 + 3}


# --- TF32, memory, cuDNN ------------------------------------------------------------------------


def test_tf32_is_off_on_in_its_block_and_off_again(fake_gpu):
    assert not tf32_allowed()
    with tf32():
        assert tf32_allowed()
        with tf32(False):
            assert not tf32_allowed()
        assert tf32_allowed()
    assert not tf32_allowed()
    with pytest.raises(KeyError), tf32():
        raise KeyError
    assert not tf32_allowed()


def test_tf32_reaches_pytorch_as_well(fake_gpu, monkeypatch):
    torch = cudnn_for(fake_gpu, monkeypatch)
    seen, by_torch = [], torch.nn.functional.conv2d

    def look(*arguments, **options):
        seen.append(torch.backends.cudnn.allow_tf32)
        return by_torch(*arguments, **options)

    monkeypatch.setattr(torch.nn.functional, "conv2d", look)
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    x, weight = fake_gpu.ones((1, 2, 4, 4)), fake_gpu.ones((3, 2, 2, 2))
    conv2d(x, weight, algorithm="cudnn")
    with tf32():
        assert torch.backends.cuda.matmul.allow_tf32
        conv2d(x, weight, algorithm="cudnn")
    assert seen == [False, True]
    assert before == (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)


def test_cudnn_out_of_memory_is_a_memory_error(fake_gpu, monkeypatch):
    torch = cudnn_for(fake_gpu, monkeypatch)

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch.nn.functional, "conv2d", full)
    with pytest.raises(MemoryError, match="out of memory"):
        conv2d(fake_gpu.ones((1, 2, 4, 4)), fake_gpu.ones((3, 2, 2, 2)), algorithm="cudnn")


@on_a_real_gpu
def test_tf32_rounds_and_float32_does_not(xp):
    if int(xp.cuda.Device().compute_capability) < 80:
        pytest.skip("this GPU has no TF32")
    a, b = normal((256, 256), np.float32), normal((256, 256), np.float32, 1)
    errors = []
    for on in (False, True):
        with tf32(on):
            product = to_cpu(to_gpu(a) @ to_gpu(b))
        errors.append(np.abs(product - a.astype(float) @ b.astype(float)).max())
    assert errors[1] > 20 * errors[0]


@on_a_real_gpu
def test_out_of_memory_is_survived(xp):
    network = alexnet().to_gpu()
    x = xp.zeros((2, *network.input_shape), xp.float32)
    with pytest.raises(MemoryError):
        xp.empty(2 * xp.cuda.runtime.memGetInfo()[1], xp.uint8)
    release_gpu_memory()
    assert network.forward(x).shape == (2, 1000)


def test_cudnn_says_why_not(fake_gpu, monkeypatch):
    shapes = (1, 2, 4, 4), (3, 2, 2, 2), (1, 3, 3, 3)
    x, weight, out = map(fake_gpu.ones, shapes)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert gpu.cudnn_status()[:2] == (False, "PyTorch is not installed (pip install torch).")
    for convolve in (conv2d, lambda *given, **way: conv2d_backward(out, *given, **way)):
        with pytest.raises(RuntimeError, match=r"'cudnn' cannot be used here\. PyTorch is not"):
            convolve(x, weight, algorithm="cudnn")


def test_cudnn_without_a_gpu_for_pytorch(fake_gpu, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "sees no GPU: install a build for your CUDA" in gpu.cudnn_status().reason
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: False)
    assert gpu.cudnn_status().reason.endswith("came without cuDNN.")
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91900)
    assert gpu.cudnn_status().available and "cuDNN 91900" in gpu.cudnn_status().reason
