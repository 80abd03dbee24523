"""Networks in few bits against arithmetic in real small floats, and training in them."""

import copy
import json
import math

import ml_dtypes
import numpy as np
import pytest
from helpers import (
    IMAGES,
    LABELS,
    OPTIMIZERS,
    STEPS,
    assert_same_weights,
    break_at,
    digits,
    random_gradients,
    set_gradients,
    small_alexnet,
    toy,
    train,
    weights_differ,
)
from hypothesis import given
from hypothesis import strategies as st

from fastdl_lib.core.datasets import data_folder
from fastdl_lib.nn import layers
from fastdl_lib.nn.layers import Conv2d, Dropout, Flatten, Layer, Linear, ReLU
from fastdl_lib.nn.loss import loss_and_gradient
from fastdl_lib.nn.network import Network
from fastdl_lib.nn.optimizers import SGD, Adam
from fastdl_lib.nn.zoo import deep_convnet
from fastdl_lib.precision.formats import (
    BFLOAT16,
    FLOAT8_E4M3,
    FLOAT8_E5M2,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    FORMATS,
    INT8,
    INT8_PER_CHANNEL,
    FixedPoint,
    FloatFormat,
)
from fastdl_lib.precision.mixed import (
    DynamicLossScale,
    MixedPrecision,
    Precision,
    Rounding,
    in_precision,
    weight_bytes,
)

FIXED = FixedPoint(8, 8)
REAL = {
    FLOAT16: np.float16,
    BFLOAT16: ml_dtypes.bfloat16,
    FLOAT8_E4M3: ml_dtypes.float8_e4m3fn,
    FLOAT8_E5M2: ml_dtypes.float8_e5m2,
    FLOAT32: np.float32,
    FLOAT64: np.float64,
}


def as_stored(x, format):
    """x as real arrays of the format hold it, or by the formula of a fixed point or INT8."""
    if format in REAL:
        with np.errstate(over="ignore"):
            return x.astype(REAL[format]).astype(x.dtype)
    if format is FIXED:
        return (np.clip(np.rint(x.astype(float) * 256), -(2**15), 2**15 - 1) / 256).astype(x.dtype)
    assert format is INT8
    scale = np.float32(np.abs(x).max() / np.float32(127)) or np.float32(1)
    return np.rint(x / scale.astype(float)).astype(x.dtype) * scale


def is_stored(x, format):
    if format is INT8:  # 255 values of one scale
        steps = x / (np.abs(x).max() / 127 or 1)
        return np.abs(steps - np.rint(steps)).max() < 1e-3 and len(np.unique(x)) <= 255
    return ((x == as_stored(x, format)) | np.isnan(x)).all()


def rounded(network, format):
    """A copy of a network whose float32 weights are those of the format."""
    return in_precision(network, Precision(format))


def roundings(network):
    return [layer for layer in network.layers.values() if isinstance(layer, Rounding)]


def images_for(network):
    return IMAGES.astype(network.parameters["fc.weight"].dtype)


def copied(network):
    return {name: array.copy() for name, array in network.parameters.items()}


def assert_holds(arrays, expected):
    assert arrays.keys() == expected.keys()
    assert [name for name, array in arrays.items() if (array != expected[name]).any()] == []


@pytest.fixture(scope="module")
def trained():
    return deep_convnet().load_weights(data_folder() / "weights" / "deep_convnet.npz")


# --- a network in another format ----------------------------------------------------------------


@pytest.mark.parametrize("make", [deep_convnet, small_alexnet, toy])
def test_in_float32_it_is_the_network_itself(make):
    network = make()
    same = in_precision(network, Precision(FLOAT32))
    x = np.random.default_rng(0).standard_normal((5, *network.input_shape), dtype=np.float32)
    assert (same.forward(x) == network.forward(x)).all()
    for one in (network, same):
        for layer in one.layers.values():
            if isinstance(layer, Dropout):
                layer.reseed(0)
    losses = [one.loss_and_gradients(x, np.arange(5) % 3) for one in (network, same)]
    assert losses[0] == losses[1]
    assert_holds(same.gradients, network.gradients)


def test_in_float64_its_arrays_are_float64():
    wide = in_precision(toy(), Precision(FLOAT64, FLOAT64, FLOAT64))
    x = IMAGES[:5].astype(np.float64)
    assert (wide.forward(x) == toy().astype(np.float64).forward(x)).all()
    half = in_precision(toy(), Precision(FLOAT16, FLOAT64, FLOAT64))
    assert half.forward(x).dtype == np.float64 and is_stored(half.forward(x), FLOAT16)
    # The weights come straight from their own dtype: 1 + 2**-11 + 2**-40 is no tie.
    network = toy().astype(np.float64)
    network.parameters["fc.bias"][...] = 1 + 2.0**-11 + 2.0**-40
    assert (rounded(network, FLOAT16).parameters["fc.bias"] == 1 + 2.0**-10).all()


def test_where_roundings_stand(trained):
    half = rounded(trained, FLOAT16)
    assert half.name == "DeepConvNet in float16"
    expected = ["input stored"]
    for name in trained.layers:
        left_out = name.startswith(("relu", "pool", "flatten"))
        expected += [name] if left_out else [name, f"{name} stored"]
    assert list(half.layers) == expected
    alexnet = rounded(small_alexnet(), BFLOAT16)
    assert "norm1 stored" in alexnet.layers and "pool1 stored" not in alexnet.layers
    still = toy()
    still.layers["drop"].rate = 0.0
    assert "drop stored" not in rounded(still, FLOAT16).layers


@pytest.mark.parametrize(
    "format", [FLOAT16, BFLOAT16, FLOAT8_E4M3, FLOAT8_E5M2, FIXED, INT8], ids=str
)
@pytest.mark.parametrize("make", [deep_convnet, small_alexnet])
def test_every_value_is_one_of_the_format(make, format):
    network = make()
    for layer in network.layers.values():
        if isinstance(layer, Dropout):
            layer.rate = 0.3  # 1 / 0.7 is no power of two
    weights, network = network.parameters, rounded(network, format)
    for name, array in network.parameters.items():
        assert (array == as_stored(weights[name], format)).all() and array.dtype == np.float32, name
        assert array.strides == weights[name].strides
        assert not np.shares_memory(array, weights[name])
    rng = np.random.default_rng(0)
    x = 3 * rng.standard_normal((4, *network.input_shape), dtype=np.float32)
    for name, layer in network.layers.items():
        before, x = x, layer.forward(x, training=True)
        assert x.dtype == np.float32
        if isinstance(layer, Rounding):
            assert is_stored(x, format), name
        elif f"{name} stored" not in network.layers:
            assert np.isin(x, before).all() or isinstance(layer, ReLU), name
            assert format is INT8 or is_stored(x, format), name
    grad = rng.standard_normal(x.shape, dtype=np.float32)
    for name, layer in reversed(network.layers.items()):
        grad = layer.backward(grad)
        assert not isinstance(layer, Rounding) or is_stored(grad, format), name


def test_int8_per_channel_has_a_scale_for_each_output(trained):
    network = rounded(trained, INT8_PER_CHANNEL)
    for name, array in network.parameters.items():
        weight = trained.parameters[name]
        groups = weight if name.endswith("weight") else weight[None]
        expected = np.concatenate([as_stored(part[None], INT8) for part in groups])
        np.testing.assert_allclose(array, expected.reshape(weight.shape), rtol=1e-6, err_msg=name)
    x = np.random.default_rng(0).random((3, 1, 28, 28), dtype=np.float32)
    assert all(is_stored(layer.forward(x), INT8) for layer in roundings(network))


def test_a_copy_shares_nothing(trained):
    before, drop = copied(trained), trained.layers["drop1"]
    drop.reseed(3)
    x = np.ones((2, 50), np.float32)
    expected = copy.deepcopy(drop).forward(x, training=True)
    half = rounded(trained, FLOAT16)
    for array in half.parameters.values():
        array[...] = 0
    half.layers["drop1"].forward(x, training=True)
    assert_holds(trained.parameters, before)
    assert (drop.forward(x, training=True) == expected).all()


def test_chance_is_in_training_only_and_seeded():
    x = np.full((1, 1000), 1 + 2.0**-12, np.float32)
    layer = Rounding(FLOAT16, stochastic=True, seed=1)
    assert (layer.forward(x) == 1).all()
    first = layer.forward(x, training=True)
    assert set(np.unique(first)) == {1, 1 + 2.0**-10} and 200 < (first > 1).sum() < 300
    assert set(np.unique(layer.backward(x))) == {1, 1 + 2.0**-10}
    assert (layer.forward(x, training=True) != first).any()
    layer.reseed(1)
    assert (layer.forward(x, training=True) == first).all()
    networks = [in_precision(toy(), Precision(FIXED), stochastic=True, seed=s) for s in (0, 0, 1)]
    assert_same_weights(*networks[:2])
    assert weights_differ(networks[0], networks[2])
    draws = roundings(networks[0])
    assert len({layer.seed for layer in draws}) == len(draws) > 3
    assert all(layer.stochastic for layer in draws)


@pytest.mark.parametrize("format", [FLOAT16, FIXED], ids=str)
def test_ranks_draw_what_one_process_draws(format):
    """Each for its images of the batch, whatever their order in memory, pass after pass."""
    x = np.random.default_rng(0).standard_normal((7, 3, 4, 5), dtype=np.float32)
    whole = Rounding(format, stochastic=True, seed=2)
    parts = [Rounding(format, stochastic=True, seed=2) for _ in range(2)]
    for batch in (x, x[:6], x.transpose(0, 2, 3, 1)):
        expected = whole.forward(batch, training=True), whole.backward(batch)
        for here, layer in zip((slice(0, 3), slice(3, len(batch))), parts, strict=True):
            layer.share(here, len(batch))
            part = np.asfortranarray(batch[here])
            assert (layer.forward(part, training=True) == expected[0][here]).all()
            assert (layer.backward(part) == expected[1][here]).all()
            layer.share(None, 0)
            assert (layer.forward(part) == format.round(part)).all()


# --- products in few bits -----------------------------------------------------------------------


def sums_in(a, b, bias, precision):
    """a @ b + bias, one operation after the other with real numbers of the formats."""
    compute, accumulate = (REAL[format] for format in precision[1:])
    # A half and a product of halves in float32 need float64 to add up exactly.
    sums = np.float64 if (compute, accumulate) == (np.float32, np.float16) else accumulate
    a, b = a.astype(compute), b.astype(compute)
    total = np.zeros((len(a), b.shape[1]), accumulate)
    with np.errstate(over="ignore", invalid="ignore"):
        for k in range(a.shape[1]):
            products = a[:, k, None] * b[k]
            assert products.dtype == compute
            total = (total.astype(sums) + products.astype(sums)).astype(accumulate)
        return (total + bias.astype(accumulate)).astype(np.float32)


def convolution_in(conv, x, weight, bias, precision):
    """A convolution as sums_in over each patch, in the order channel, row, column."""
    edge = (conv.padding, conv.padding)
    x = np.pad(x, ((0, 0), (0, 0), edge, edge))
    window, stride, outs = (conv.kernel, conv.kernel), conv.stride, []
    windows = np.lib.stride_tricks.sliding_window_view(x, window, (2, 3))[:, :, ::stride, ::stride]
    patches = np.split(windows.transpose(1, 0, 2, 3, 4, 5), conv.groups)
    filters, biases = (np.split(one, conv.groups) for one in (weight, bias))
    for patch, some, start in zip(patches, filters, biases, strict=True):
        patch = patch.transpose(1, 2, 3, 0, 4, 5)
        rows = patch.reshape(math.prod(patch.shape[:3]), -1)
        sums = sums_in(rows, some.reshape(len(some), -1).T, start, precision)
        outs.append(sums.reshape(*patch.shape[:3], -1).transpose(0, 3, 1, 2))
    return np.concatenate(outs, axis=1)


@pytest.mark.parametrize(
    "precision",
    [
        Precision(FLOAT16, FLOAT16, FLOAT16),
        Precision(FLOAT16, FLOAT32, FLOAT16),
        Precision(FLOAT16, FLOAT16, FLOAT32),
        Precision(FLOAT32, FLOAT32, FLOAT64),
        Precision(FLOAT32, FLOAT16, FLOAT16),
        Precision(BFLOAT16, BFLOAT16, BFLOAT16),
    ],
    ids=lambda precision: "-".join(map(str, precision)),
)
@given(
    images=st.integers(1, 3), groups=st.integers(1, 2), stride=st.integers(1, 2),
    padding=st.integers(0, 1), kernel=st.integers(1, 3), scale=st.sampled_from([1e-3, 1, 300]),
    seed=st.integers(0, 10**6),
)  # fmt: skip
def test_products_agree_with_real_small_floats(
    precision, images, groups, stride, padding, kernel, scale, seed
):
    rng, channels = np.random.default_rng(seed), 2 * groups
    window = {"stride": stride, "padding": padding, "groups": groups}
    conv = Conv2d(channels, channels, kernel, **window, rng=rng)
    fc = Linear(math.prod(conv.output_shape((channels, 4, 3))), 3, rng=rng)
    for layer in (conv, fc):
        layer.parameters["bias"][...] = scale * rng.standard_normal(len(layer.parameters["bias"]))
    net = [("conv", conv), ("relu", ReLU()), ("flatten", Flatten()), ("fc", fc)]
    network = in_precision(Network("small", net, (channels, 4, 3)), precision)
    x = (scale * rng.standard_normal((images, channels, 4, 3))).astype(np.float32)

    weights, store = network.parameters, precision.store
    kernels, bias = weights["conv.weight"], weights["conv.bias"]
    expected = convolution_in(conv, as_stored(x, store), kernels, bias, precision)
    expected = np.maximum(as_stored(expected, store), 0).reshape(images, -1)
    expected = sums_in(expected, weights["fc.weight"].T, weights["fc.bias"], precision)
    np.testing.assert_array_equal(network.forward(x), as_stored(expected, store))


def test_the_columns_come_in_blocks_of_images(monkeypatch, trained):
    images, answers = digits(3)
    network = in_precision(trained, Precision(FLOAT16, FLOAT16, FLOAT16))
    whole = network.forward(images)
    sizes, im2col = [], layers.im2col
    monkeypatch.setattr(layers, "COLUMN_BYTES", 1)
    monkeypatch.setattr(layers, "im2col", lambda x, *rest: sizes.append(len(x)) or im2col(x, *rest))
    assert (network.forward(images) == whole).all()
    assert set(sizes) == {1}
    assert (whole.argmax(axis=1) == answers).all()


def test_products_in_few_bits_run_forward_only(fake_gpu):
    network = in_precision(toy(), Precision(FLOAT16, accumulate=FLOAT16))
    with pytest.raises(RuntimeError, match=r"accumulates in float16 runs forward only; to train"):
        network.loss_and_gradients(IMAGES[:2], LABELS[:2])
    with pytest.raises(TypeError, match="CPU only"):
        network.to_gpu().forward(fake_gpu.asarray(IMAGES[:2]))


def one_layer(make):
    fc = make(64, 3, rng=np.random.default_rng(0))
    return Network("other", [("flatten", Flatten()), ("fc", fc)], (1, 8, 8))


class Doubling(Linear):
    """A layer of a learner's own, which multiplies in a way of its own."""

    sums_by = Layer.sums_by


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: in_precision(toy(), FLOAT16), TypeError, r"one such as Precision\(FLOAT16\)"),
        (lambda: in_precision(toy(), Precision("float16")), TypeError, "store must be a number fo"),
        (lambda: in_precision(toy(), Precision(INT8, INT8)), TypeError, "compute must be a float"),
        (lambda: rounded(rounded(toy(), FLOAT16), FLOAT16), ValueError, "is rounded already"),
        (
            lambda: in_precision(one_layer(Doubling), Precision(FLOAT16, FLOAT16)),
            TypeError,
            r"a Doubling does not say how .*define sums_by",
        ),
        (lambda: Rounding(np.float16), TypeError, "format must be a number format"),
        (lambda: weight_bytes(toy(), None), TypeError, "format must be a number .*, got None"),
        (lambda: DynamicLossScale(0), ValueError, "start must be at least"),
        (lambda: DynamicLossScale(interval=0), ValueError, "interval must be at least 1"),
        (lambda: MixedPrecision(SGD, FLOAT16), TypeError, r"a plain one such as Adam\(\), got"),
        (lambda: MixedPrecision(run_of("")[1], FIXED), TypeError, "optimizer must be a plain one"),
        (lambda: MixedPrecision(SGD(1), "float16"), TypeError, "storage must be a number format"),
        (lambda: MixedPrecision(SGD(1), FLOAT16, loss_scale=0), ValueError, "loss_scale must be"),
        (lambda: MixedPrecision(SGD(1), FLOAT16, seed=-1), ValueError, "seed must be"),
        (
            lambda: MixedPrecision(SGD(1), FIXED, loss_scale=DynamicLossScale()),
            ValueError,
            r"fixed<8,8> saturates where a float overflows.* such as loss_scale=256",
        ),
    ],
)
def test_what_is_no_format_or_constant_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("format", [*FORMATS.values(), FixedPoint(4, 5), FixedPoint(12, 12)])
def test_bytes_are_those_of_the_stored_codes(format):
    network, stored = small_alexnet(), 0
    for array in network.parameters.values():
        whole = INT8 if format is INT8_PER_CHANNEL and array.ndim == 1 else format
        stored += whole.store(array).nbytes
    assert weight_bytes(network, format) == stored


# --- the loss scale -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_gradient_is_scaled_before_it_is_rounded(dtype):
    logits, labels = (8 * np.eye(4, 10)).astype(dtype), np.arange(4)
    loss, plain = loss_and_gradient(logits.astype(np.float64), labels)
    close = 1e-2 if dtype == np.float16 else 1e-4
    for scale in (1, 2.0**20, np.float64(3)):
        scaled_loss, grad = loss_and_gradient(logits, labels, scale)
        assert grad.dtype == dtype and float(scaled_loss) == pytest.approx(float(loss), rel=1e-4)
        with np.errstate(over="ignore"):
            np.testing.assert_allclose(grad, (float(scale) * plain).astype(dtype), rtol=close)
    tiny = (30 * np.eye(4, 10)).astype(np.float16)
    assert not loss_and_gradient(tiny, labels)[1].any()
    assert loss_and_gradient(tiny, labels, 2.0**30)[1][:, :4].any()


def test_a_dynamic_scale_backs_off_and_grows():
    scale = DynamicLossScale(start=64, interval=3)
    seen = []
    for overflowed in map(int, "1001000000"):
        scale.update(bool(overflowed))
        seen.append((scale.scale, scale.good_steps))
    assert seen == [
        (32, 0), (32, 1), (32, 2), (16, 0), (16, 1), (16, 2), (32, 0), (32, 1), (32, 2), (64, 0),
    ]  # fmt: skip
    largest = DynamicLossScale(start=1.5e308, interval=1)
    largest.update(False)
    assert largest.scale == float(np.finfo(np.float64).max)


def test_a_scale_that_cannot_be_the_cause_says_so():
    scale = DynamicLossScale(start=4)
    for _ in range(12):
        scale.update(True)
    with pytest.raises(FloatingPointError, match=r"not finite even at a loss scale of 0\.000977"):
        scale.update(True)
    assert scale.scale == 2.0**-10


# --- steps --------------------------------------------------------------------------------------


KINDS = {
    format.name: (format, lambda format=format: rounded(toy(), format))
    for format in (FLOAT16, BFLOAT16, FLOAT8_E5M2, FIXED, INT8)
} | {"float16 arrays": (FLOAT16, lambda: toy().astype(np.float16))}


def scaled_gradients(network, scale, steps=5):
    """Gradients as a backward pass with this loss scale makes them, in the weights' dtype."""
    return [
        {name: (scale * 0.1 * g).astype(np.float32) for name, g in gradients.items()}
        for gradients in random_gradients(network, steps)
    ]


def step_by(optimizer, network, gradients):
    with np.errstate(over="ignore"):
        set_gradients(network, gradients)
    optimizer.step(network)


@pytest.mark.parametrize("master_weights", [True, False])
@pytest.mark.parametrize("inner", OPTIMIZERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_against_the_other_optimizer_and_casts(kind, inner, master_weights):
    format, make = KINDS[kind]
    network, scale = make(), 64.0
    options = {"master_weights": master_weights, "loss_scale": scale}
    optimizer = MixedPrecision(OPTIMIZERS[inner](), format, **options)
    held = network.parameters
    dtype = held["fc.weight"].dtype
    # The other optimiser alone, on a float32 network that holds the master weights.
    masters, alone = make().astype(np.float32), OPTIMIZERS[inner]()
    for gradients in scaled_gradients(network, scale):
        step_by(optimizer, network, gradients)
        stored = {n: as_stored(g, format) / np.float32(scale) for n, g in gradients.items()}
        step_by(alone, masters, stored)
        for name, array in network.parameters.items():
            master = masters.parameters[name]
            expected = as_stored(master, format).astype(dtype)
            assert array is held[name] and array.dtype == dtype, "changed in place"
            assert (array == expected).all(), name
            if master_weights:
                assert (optimizer.state[f"master.{name}"] == master).all(), name
            else:
                master[...] = expected
    assert optimizer.steps == 5 and optimizer.skipped == 0
    assert {array.dtype for array in optimizer.state.values()} <= {np.dtype(np.float32)}
    masters_kept = {f"master.{name}" for name in held} if master_weights else set()
    assert optimizer.state.keys() == alone.state.keys() | masters_kept


@pytest.mark.parametrize("inner", OPTIMIZERS)
@pytest.mark.parametrize("scale", [1.0, 1024.0, "dynamic"])
def test_in_float32_it_is_the_other_optimizer(inner, scale):
    if scale == "dynamic":
        scale = DynamicLossScale(256, interval=3)
    network, _ = train(optimizer=MixedPrecision(OPTIMIZERS[inner](), FLOAT32, loss_scale=scale))
    assert_same_weights(network, train(optimizer=OPTIMIZERS[inner]())[0])


@pytest.mark.parametrize("bad", [math.inf, math.nan, 1e30])
@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("kind", ["float16 arrays", "float16", "float8_e5m2"])
def test_a_step_that_overflows_is_skipped_whole(kind, dynamic, bad):
    format, make = KINDS[kind]
    network = make()
    scale = DynamicLossScale(1024.0, interval=2) if dynamic else 1024.0
    optimizer = MixedPrecision(SGD(0.1, momentum=0.9), format, loss_scale=scale)
    first, second, *_ = scaled_gradients(network, 1024.0)
    step_by(optimizer, network, first)

    weights, state = copied(network), copy.deepcopy(optimizer.state)
    second["fc.bias"][1] = bad
    step_by(optimizer, network, second)
    assert (optimizer.skipped, optimizer.steps) == (1, 1)
    assert optimizer.loss_scale == (512 if dynamic else 1024)
    assert_holds(network.parameters, weights)
    assert_holds(optimizer.state, state)

    for _ in range(2):
        step_by(optimizer, network, first)
    assert (optimizer.skipped, optimizer.steps) == (1, 3)
    assert optimizer.loss_scale == 1024
    assert any((array != weights[name]).any() for name, array in network.parameters.items())


@pytest.mark.parametrize("scale", [0.25, DynamicLossScale(0.25)])
@pytest.mark.filterwarnings("error")
def test_what_overflows_only_without_its_scale_is_skipped_too(scale):
    network = toy()
    optimizer = MixedPrecision(SGD(0.1), FLOAT32, loss_scale=scale)
    gradients = {name: np.full(w.shape, 2e38) for name, w in network.parameters.items()}
    before = copied(network)
    step_by(optimizer, network, gradients)
    assert optimizer.skipped == 1
    assert_holds(network.parameters, before)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("kind", ["float16", "float16 arrays", "fixed<8,8>", "int8"])
def test_weights_that_are_not_finite_are_no_overflow(kind, bad):
    """No loss scale mends them: skipping each step would say nothing."""
    format, make = KINDS[kind]
    network, optimizer = make(), MixedPrecision(SGD(1.0), format)
    gradients = scaled_gradients(network, 1.0)[0]
    gradients["fc.bias"][1] = network.parameters["conv.bias"][0] = bad
    with pytest.raises(FloatingPointError, match="weights are NaN or infinite, not only gradients"):
        step_by(optimizer, network, gradients)
    assert optimizer.skipped == optimizer.steps == 0


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("format", [*FORMATS.values(), FIXED], ids=str)
def test_what_is_not_finite_is_seen_or_refused(format, bad, trained):
    """An image, and a weight, in a network of the format."""
    if isinstance(format, FloatFormat):
        x = np.zeros((3, 1, 28, 28), np.float32)
        x[1, 0, 9, 9] = bad
        for formats in ((format,), (format, FLOAT16, BFLOAT16), (format, BFLOAT16, FLOAT8_E4M3)):
            out = in_precision(trained, Precision(*formats)).forward(x)
            assert not np.isfinite(out[1]).all() and np.isfinite(out[::2]).all()
        broken = copy.deepcopy(trained)
        broken.parameters["fc2.bias"][3] = bad
        assert not np.isfinite(rounded(broken, format).forward(x[:1])[0, 3])
        return
    for layer in (Rounding(format), Rounding(format, stochastic=True)):
        with pytest.raises(ValueError, match=r"no NaN and no infinity|x holds inf or NaN"):
            layer.forward(np.array([[1, bad]], np.float32), training=True)
    broken = toy()
    broken.parameters["fc.bias"][1] = bad
    with pytest.raises(ValueError, match=r"no NaN and no infinity|x holds inf or NaN"):
        rounded(broken, format)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_fixed_point_saturates_but_skips_what_is_not_finite(bad):
    network = rounded(toy(), FIXED)
    optimizer, bias = MixedPrecision(SGD(1.0), FIXED), copied(network)["fc.bias"]
    gradients = scaled_gradients(network, 1.0)[0]
    gradients["fc.bias"][...] = [1e30, -1e30, 0]
    step_by(optimizer, network, gradients)
    expected = bias + np.float32([-128 + 2**-8, 127.99609375, 0])
    assert optimizer.skipped == 0
    np.testing.assert_allclose(network.parameters["fc.bias"], expected, atol=2**-7)
    before = copied(network)
    gradients["fc.bias"][0] = bad
    step_by(optimizer, network, gradients)
    assert optimizer.skipped == 1
    assert_holds(network.parameters, before)


@pytest.mark.parametrize("arrays", [np.float16, np.float32])
def test_what_is_too_small_for_a_step_adds_up_in_master_weights_or_by_chance(arrays):
    """Weights of 1, changed by a sixteenth of a float16's spacing there, 160 times."""
    change, steps, found = 2.0**-14, 160, {}
    for way in ("nearest", "stochastic", "master"):
        network = toy().astype(np.float16).astype(arrays)
        for array in network.parameters.values():
            array[...] = 1
        options = {"master_weights": way == "master", "stochastic": way == "stochastic"}
        optimizer = MixedPrecision(SGD(1.0), FLOAT16, **options)
        for _ in range(steps):
            weights = network.parameters.items()
            step_by(optimizer, network, {n: np.full(w.shape, -change) for n, w in weights})
        found[way] = network.parameters["fc.weight"].astype(np.float64)
        assert is_stored(found[way], FLOAT16)
    assert (found["nearest"] == 1).all()
    assert (found["master"] == 1 + steps * change).all()
    # 288 weights, each a sum of 160 draws: ten steps of the spacing with a deviation of 3.
    assert 2 < found["stochastic"].std() / 2.0**-10 < 4.2
    assert abs(found["stochastic"].mean() - 1 - steps * change) < 6 * 3.1 * 2.0**-10 / 288**0.5


def test_draws_depend_on_seed_and_step_alone():
    def steps(seed, count, start=0):
        network, options = rounded(toy(), FIXED), {"stochastic": True, "master_weights": False}
        optimizer = MixedPrecision(SGD(0.1), FIXED, **options, seed=seed)
        optimizer.steps = start
        for gradients in scaled_gradients(network, 1.0)[:count]:
            step_by(optimizer, network, gradients)
        return network

    assert_same_weights(steps(0, 3), steps(0, 3))
    assert weights_differ(steps(0, 1), steps(1, 1))
    assert weights_differ(steps(0, 1), steps(0, 1, start=1))


class Clipped(Linear):
    def after_step(self):
        self.parameters["weight"].clip(-1, 1, out=self.parameters["weight"])


def test_a_refused_step_changes_nothing():
    network, optimizer = toy().astype(np.float16), MixedPrecision(Adam(), FLOAT16)
    with pytest.raises(RuntimeError, match=r"step\(\) needs the gradients of toy"):
        optimizer.step(network)
    assert optimizer.state == {} and optimizer.steps == optimizer.skipped == 0
    network.loss_and_gradients(IMAGES[:2].astype(np.float16), LABELS[:2])
    with pytest.raises(ValueError, match=r"conv\.weight is a float16 array, which holds no bfloat"):
        MixedPrecision(Adam(), BFLOAT16).step(network)
    optimizer.step(network)
    for make, message in (
        (Linear, r"worked on another network: its master\.fc\.weight is"),
        (Clipped, "fc, a Clipped, changes its weights after a step"),
    ):
        other = one_layer(make)
        other.loss_and_gradients(IMAGES[:2], LABELS[:2])
        before = copied(other)
        with pytest.raises(ValueError, match=message):
            optimizer.step(other)
        assert optimizer.steps == 1
        assert_holds(other.parameters, before)


# --- in fit -------------------------------------------------------------------------------------


def test_fit_scales_the_loss_and_reports_it_unscaled():
    largest = []
    for scale in (1.0, 2.0**10):
        network = toy().astype(np.float16)
        optimizer = MixedPrecision(SGD(0.01), FLOAT16, loss_scale=scale)
        _, history = train(network, optimizer, images=images_for(network), epochs=1)
        largest.append({name: np.abs(g).max() for name, g in network.gradients.items()})
        assert history.epochs[0].loss < 3
    for name, plain in largest[0].items():
        assert 500 < largest[1][name] / plain < 2000, name


def run_of(kind):
    """A network and an optimiser in whose runs all kinds of chance are at work."""
    if kind == "float16 arrays, dynamic":
        scale = DynamicLossScale(2.0**18, interval=7)
        optimizer = MixedPrecision(Adam(5e-3), FLOAT16, loss_scale=scale, stochastic=True)
        return toy().astype(np.float16), optimizer
    network = in_precision(toy(), Precision(FIXED), stochastic=True)
    options = {"master_weights": False, "stochastic": True, "seed": 3, "loss_scale": 4.0}
    return network, MixedPrecision(SGD(0.05, momentum=0.9), FIXED, **options)


@pytest.mark.filterwarnings("error")  # a scale that is too large finds its way down in silence
@pytest.mark.parametrize("broken_at", [STEPS + 1, 3 * STEPS - 1, 4 * STEPS])
@pytest.mark.parametrize("kind", ["float16 arrays, dynamic", "fixed point, stochastic"])
def test_an_interrupted_run_goes_on_to_the_same_weights(kind, broken_at, tmp_path):
    path = tmp_path / "run.npz"
    network, optimizer = run_of(kind)
    images = images_for(network)
    expected, history = train(network, optimizer, images=images)
    if kind == "float16 arrays, dynamic":
        assert optimizer.skipped == 3 and optimizer.loss_scale == 2.0**17, "it backed off, and grew"

    network, broken = run_of(kind)
    break_at(network, broken_at, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        train(network, broken, images=images, checkpoint=path)
    at_the_break, kept = copy.deepcopy(broken.numbers), path.read_bytes()
    for one, again in (run_of(kind), (network, broken)):  # another process, and this one
        path.write_bytes(kept)
        got, got_history = train(one, again, images=images, checkpoint=path)
        assert got_history == history
        assert_same_weights(got, expected)
        assert again.numbers == optimizer.numbers != at_the_break or kind.startswith("fixed")
        assert again.steps == optimizer.steps
        assert_holds(again.state, optimizer.state)


def test_a_checkpoint_of_another_precision_is_refused(tmp_path):
    def run(optimizer=None, network=None, **options):
        if optimizer is None:
            options = {"storage": FLOAT16, "loss_scale": 8.0, **options}
            optimizer = MixedPrecision(Adam(), **options)
        network = rounded(toy(), FLOAT16) if network is None else network
        train(network, optimizer, epochs=1, checkpoint=tmp_path / "run.npz")

    run()
    # A network that bears the same name, but rounds what passes to something else.
    other = rounded(toy(), FLOAT16)
    other.layers["conv stored"].format = BFLOAT16
    for message, options in {
        "storage is float16, this call's bfloat16": {"storage": BFLOAT16},
        "loss scale is 8.0, this call's 1.0": {"loss_scale": 1.0},
        "loss scale is 8.0, this call's {'start'": {"loss_scale": DynamicLossScale()},
        "master weights is True, this call's False": {"master_weights": False},
        "rounding is to nearest, this call's stochastic, seed 0": {"stochastic": True},
        "layers conv stored is .*float16.*bfloat16": {"network": other},
        "optimizer is MixedPrecision of Adam, this call's A": {"optimizer": Adam()},
    }.items():
        with pytest.raises(ValueError, match=f"its {message}"):
            run(**options)


def test_a_checkpoint_from_before_there_were_numbers_still_serves(tmp_path):
    path = tmp_path / "run.npz"
    expected, _ = train(epochs=2, checkpoint=path)
    with np.load(path) as archive:
        arrays = dict(archive)
    record = json.loads(str(arrays.pop("record")))
    del record["numbers"]
    np.savez(path, record=np.array(json.dumps(record)), **arrays)
    assert_same_weights(train(epochs=2, checkpoint=path)[0], expected)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"scale": 0.0}, "scale must be at least 0.000976"),
        ({"scale": "8"}, "its numbers are"),
        ({"good_steps": 4}, "good_steps must be at least 0 and below 4"),
        ({"skipped": -1}, "skipped must be at least 0"),
        ({"skipped": 1.0}, "its numbers are"),
        ({"more": 1}, "its numbers are"),
    ],
)
def test_numbers_of_a_loss_scale_that_cannot_be_are_refused(numbers, message, tmp_path):
    def make():
        scale = DynamicLossScale(start=8.0, interval=4)
        return MixedPrecision(SGD(0.1), FLOAT16, loss_scale=scale), toy().astype(np.float16)

    path, (optimizer, network) = tmp_path / "run.npz", make()
    images = images_for(network)
    train(network, optimizer, images=images, epochs=1, checkpoint=path)
    with np.load(path) as archive:
        arrays = dict(archive)
    record = json.loads(str(arrays["record"]))
    record["numbers"] |= numbers
    np.savez(path, **arrays | {"record": np.array(json.dumps(record))})
    optimizer, network = make()
    before = optimizer.numbers
    with pytest.raises(ValueError, match=message):
        train(network, optimizer, images=images, epochs=1, checkpoint=path)
    assert_same_weights(network, toy().astype(np.float16))
    assert optimizer.numbers == before and not optimizer.state


@pytest.mark.filterwarnings("error")
def test_a_loss_that_is_no_number_still_ends_the_run():
    network = toy().astype(np.float16)
    network.layers["fc"].parameters["bias"][0] = math.inf
    optimizer = MixedPrecision(SGD(0.1), FLOAT16, loss_scale=DynamicLossScale())
    with pytest.raises(FloatingPointError, match="the loss became nan in epoch 1, step 1"):
        train(network, optimizer, images=images_for(network))
    assert optimizer.skipped == 0


@pytest.mark.parametrize("kind", ["float16 arrays", "float16", "bfloat16"])
def test_a_network_in_sixteen_bits_learns_as_in_thirty_two(kind):
    format, make = KINDS[kind]
    network, optimizer = make(), MixedPrecision(Adam(5e-3), format, loss_scale=256)
    _, history = train(network, optimizer, images=images_for(network), epochs=15)
    _, plain = train(epochs=15)
    assert history.epochs[-1].loss == pytest.approx(plain.epochs[-1].loss, rel=0.2)


def test_in_fixed_point_chance_learns_what_nearest_cannot():
    """Gupta's finding, small: without master weights, changes below half a step."""
    format, losses = FixedPoint(8, 6), {}
    for stochastic in (False, True):
        network = in_precision(toy(), Precision(format), stochastic=stochastic)
        optimizer = MixedPrecision(SGD(0.01), format, master_weights=False, stochastic=stochastic)
        _, history = train(network, optimizer, epochs=30, schedule=None)
        losses[stochastic] = history.epochs[-1].loss
    plain = train(optimizer=SGD(0.01), epochs=30, schedule=None)[1].epochs
    assert losses[True] < 1.15 * plain[-1].loss < 0.7 * plain[0].loss
    assert losses[False] > 0.9 * plain[0].loss
