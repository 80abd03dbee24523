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
    random_gradients,
    set_gradients,
    small_alexnet,
    toy,
    train,
    weights_differ,
)
from hypothesis import given
from hypothesis import strategies as st

from fastdl_lib.core.datasets import data_folder, mnist
from fastdl_lib.nn import layers
from fastdl_lib.nn.layers import Conv2d, Dropout, Flatten, Layer, Linear, ReLU
from fastdl_lib.nn.loss import softmax_cross_entropy
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
)
from fastdl_lib.precision.mixed import (
    DynamicLossScale,
    MixedPrecision,
    Precision,
    Rounding,
    in_precision,
    weight_bytes,
)

REAL = {
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "float32": np.float32,
}
FIXED = FixedPoint(8, 8)
DIGITS, ANSWERS = (array[:20] for array in mnist("test"))


def as_stored(x, format):
    """x as real arrays of the format hold it, or by the formula of a fixed point."""
    if format.name in REAL:
        with np.errstate(over="ignore"):
            return x.astype(REAL[format.name]).astype(x.dtype)
    if format is FIXED:
        return (np.clip(np.rint(x.astype(float) * 256), -(2**15), 2**15 - 1) / 256).astype(x.dtype)
    assert format.name == "int8"
    scale = np.float32(np.abs(x).max() / np.float32(127))
    return np.rint(x / scale).astype(x.dtype) * scale


def is_stored(x, format):
    if format is INT8:  # 255 values of one scale
        steps = x / (np.abs(x).max() / 127 or 1)
        return np.abs(steps - np.rint(steps)).max() < 1e-3 and len(np.unique(x)) <= 255
    return ((x == as_stored(x, format)) | np.isnan(x)).all()


def rounded(network, format):
    """A copy of a network whose float32 weights are those of the format."""
    return in_precision(network, Precision(format))


@pytest.fixture(scope="module")
def trained():
    return deep_convnet().load_weights(data_folder() / "weights" / "deep_convnet.npz")


def copied(network):
    return {name: array.copy() for name, array in network.parameters.items()}


def assert_unchanged(network, before):
    for name, array in network.parameters.items():
        assert (array == before[name]).all(), name


# --- a network in another format ----------------------------------------------------------------


@pytest.mark.parametrize("make", [deep_convnet, small_alexnet, toy])
def test_in_float32_it_is_the_network_itself(make):
    network = make()
    same = in_precision(network, Precision(FLOAT32))
    x = np.random.default_rng(0).standard_normal((5, *network.input_shape), dtype=np.float32)
    assert (same.forward(x) == network.forward(x)).all()
    labels = np.arange(5) % 3
    for one in (network, same):
        for layer in one.layers.values():
            if isinstance(layer, Dropout):
                layer.reseed(0)
    loss = network.loss_and_gradients(x, labels)
    assert same.loss_and_gradients(x, labels) == loss
    gradients = same.gradients
    for name, gradient in network.gradients.items():
        assert (gradients[name] == gradient).all(), name


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
    left_out = {"flatten"} | {name for name in trained.layers if name.startswith(("relu", "pool"))}
    expected = ["input stored"]
    for name in trained.layers:
        expected += [name] if name in left_out else [name, f"{name} stored"]
    assert list(half.layers) == expected
    alexnet = rounded(small_alexnet(), BFLOAT16)
    assert "norm1 stored" in alexnet.layers and "pool1 stored" not in alexnet.layers
    still = toy()
    still.layers["drop"].rate = 0.0
    assert "drop stored" not in rounded(still, FLOAT16).layers


@pytest.mark.parametrize(
    "format", [FLOAT16, BFLOAT16, FLOAT8_E4M3, FLOAT8_E5M2, FIXED, INT8], ids=lambda f: f.name
)
@pytest.mark.parametrize("make", [deep_convnet, small_alexnet])
def test_every_value_is_one_of_the_format(make, format):
    network = make()
    for layer in network.layers.values():
        if isinstance(layer, Dropout):
            layer.rate = 0.3  # 1 / 0.7 is no power of two
    network = rounded(network, format)
    assert all(is_stored(array, format) for array in network.parameters.values())
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
        if isinstance(layer, Rounding):
            assert is_stored(grad, format), name


def test_what_overflows_is_infinite_as_in_the_format():
    network = toy()
    network.layers["fc"].parameters["bias"][...] = 70000
    assert np.isposinf(rounded(network, FLOAT16).forward(IMAGES)).all()
    doubled = Network("doubled", [("flatten", Flatten()), ("drop", Dropout(0.5))], (1, 8, 8))
    out = rounded(doubled, FLOAT16).forward(np.full((9, 1, 8, 8), 40000, np.float32), training=True)
    assert set(np.unique(out)) == {0, math.inf}


def test_weights_are_those_a_cast_gives(trained):
    for format in (FLOAT16, BFLOAT16, FLOAT8_E4M3, FIXED):
        for name, array in rounded(trained, format).parameters.items():
            weight = trained.parameters[name]
            assert (array == as_stored(weight, format)).all() and array.dtype == np.float32, name
            assert array.strides == weight.strides and not np.shares_memory(array, weight)


def test_int8_per_channel_has_a_scale_for_each_output(trained):
    network = rounded(trained, INT8_PER_CHANNEL)
    for name, array in network.parameters.items():
        weight = trained.parameters[name]
        groups = weight if name.endswith("weight") else weight[None]
        expected = np.concatenate([as_stored(part[None], INT8) for part in groups])
        np.testing.assert_allclose(array, expected.reshape(weight.shape), rtol=1e-6, err_msg=name)
    per_array = rounded(trained, INT8)
    x = np.random.default_rng(0).random((3, 1, 28, 28), dtype=np.float32)
    for layer in network.layers.values():
        if isinstance(layer, Rounding):
            assert is_stored(layer.forward(x), INT8)
    error = {
        net.name: sum(np.abs(a - trained.parameters[n]).sum() for n, a in net.parameters.items())
        for net in (network, per_array)
    }
    assert error["DeepConvNet in int8 per channel"] < 0.8 * error["DeepConvNet in int8"]


def test_a_copy_shares_nothing(trained):
    before = {name: array.copy() for name, array in trained.parameters.items()}
    drop = trained.layers["drop1"]
    drop.reseed(3)
    x = np.ones((2, 50), np.float32)
    expected = copy.deepcopy(drop).forward(x, training=True)
    half = rounded(trained, FLOAT16)
    for array in half.parameters.values():
        array[...] = 0
    half.layers["drop1"].forward(x, training=True)
    assert all((array == before[name]).all() for name, array in trained.parameters.items())
    assert (drop.forward(x, training=True) == expected).all()


def test_chance_is_in_training_only_and_seeded():
    x = np.full((1, 1000), 1 + 2.0**-12, np.float32)
    layer = Rounding(FLOAT16, stochastic=True, seed=1)
    assert (layer.forward(x) == 1).all()
    first = layer.forward(x, training=True)
    assert set(np.unique(first)) == {1, 1 + 2.0**-10} and 200 < (first > 1).sum() < 300
    back = layer.backward(x)
    assert set(np.unique(back)) == {1, 1 + 2.0**-10}
    second = layer.forward(x, training=True)
    assert (second != first).any()
    layer.reseed(1)
    assert (layer.forward(x, training=True) == first).all()
    networks = [in_precision(toy(), Precision(FIXED), stochastic=True, seed=s) for s in (0, 0, 1)]
    assert_same_weights(*networks[:2])
    assert weights_differ(networks[0], networks[2])
    seeds = [layer.seed for layer in networks[0].layers.values() if isinstance(layer, Rounding)]
    assert len(set(seeds)) == len(seeds) > 3
    draws = [layer for layer in networks[0].layers.values() if isinstance(layer, Rounding)]
    assert all(layer.stochastic for layer in draws)


# --- products in few bits -----------------------------------------------------------------------


SUMS = [
    Precision(FLOAT16, FLOAT16, FLOAT16),
    Precision(FLOAT16, FLOAT32, FLOAT16),
    Precision(FLOAT16, FLOAT16, FLOAT32),
    Precision(FLOAT32, FLOAT16, FLOAT16),
    Precision(BFLOAT16, BFLOAT16, BFLOAT16),
]


def sums_in(a, b, bias, precision):
    """a @ b + bias, one operation after the other with real numbers of the formats."""
    compute, accumulate = REAL[precision.compute.name], REAL[precision.accumulate.name]
    out = np.empty((len(a), b.shape[1]), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for i, j in np.ndindex(out.shape):
            total = accumulate(0)
            # A half and a product of halves in float32 need float64 to add up exactly.
            sums = np.float64 if (compute, accumulate) == (np.float32, np.float16) else accumulate
            for k in range(a.shape[1]):
                one = compute(compute(a[i, k]) * compute(b[k, j]))
                total = accumulate(sums(total) + sums(one))
            total = accumulate(total + accumulate(bias[j]))
            out[i, j] = total
    return out


def loops_in(conv, x, weight, bias, precision):
    """A convolution as sums_in over each patch, in the order channel, row, column."""
    _, out_h, out_w = conv.output_shape(x.shape[1:])
    around = (conv.padding, conv.padding)
    x = np.pad(x, ((0, 0), (0, 0), around, around))
    out = np.empty((len(x), conv.out_channels, out_h, out_w), np.float32)
    ins, outs = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    for n, g, i, j in np.ndindex(len(x), conv.groups, out_h, out_w):
        rows = slice(i * conv.stride, i * conv.stride + conv.kernel)
        columns = slice(j * conv.stride, j * conv.stride + conv.kernel)
        patch = x[n, g * ins : (g + 1) * ins, rows, columns].reshape(1, -1)
        mine = slice(g * outs, (g + 1) * outs)
        filters = weight[mine].reshape(outs, -1).T
        out[n, mine, i, j] = sums_in(patch, filters, bias[mine], precision)[0]
    return out


@pytest.mark.parametrize("precision", SUMS, ids=lambda p: "-".join(f.name for f in p))
@given(
    images=st.integers(1, 3), groups=st.integers(1, 2), stride=st.integers(1, 2),
    padding=st.integers(0, 1), kernel=st.integers(1, 3), scale=st.sampled_from([1e-3, 1, 300]),
    seed=st.integers(0, 10**6),
)  # fmt: skip
def test_products_agree_with_real_small_floats(
    precision, images, groups, stride, padding, kernel, scale, seed
):
    rng = np.random.default_rng(seed)
    conv = Conv2d(
        2 * groups, 2 * groups, kernel, stride=stride, padding=padding, groups=groups, rng=rng
    )
    _, height, width = conv.output_shape((2 * groups, 4, 3))
    fc = Linear(2 * groups * height * width, 3, rng=rng)
    for layer in (conv, fc):
        layer.parameters["bias"][...] = scale * rng.standard_normal(len(layer.parameters["bias"]))
    layers = [("conv", conv), ("relu", ReLU()), ("flatten", Flatten()), ("fc", fc)]
    network = in_precision(Network("small", layers, (2 * groups, 4, 3)), precision)
    x = (scale * rng.standard_normal((images, 2 * groups, 4, 3))).astype(np.float32)

    def store(values):
        return values if precision.store is FLOAT32 else as_stored(values, precision.store)

    weights = {name: array.copy() for name, array in network.parameters.items()}
    expected = loops_in(conv, store(x), weights["conv.weight"], weights["conv.bias"], precision)
    expected = np.maximum(store(expected), 0).reshape(images, -1)
    expected = sums_in(expected, weights["fc.weight"].T, weights["fc.bias"], precision)
    np.testing.assert_array_equal(network.forward(x), store(expected))


def test_the_columns_come_in_blocks_of_images(monkeypatch, trained):
    network = in_precision(trained, Precision(FLOAT16, FLOAT16, FLOAT16))
    whole = network.forward(DIGITS[:3])
    monkeypatch.setattr(layers, "COLUMN_BYTES", 1)
    sizes = []
    im2col = layers.im2col
    monkeypatch.setattr(layers, "im2col", lambda x, *rest: sizes.append(len(x)) or im2col(x, *rest))
    assert (network.forward(DIGITS[:3]) == whole).all()
    assert set(sizes) == {1}
    assert (whole.argmax(axis=1) == ANSWERS[:3]).all()


def test_products_in_few_bits_run_forward_only(fake_gpu):
    network = in_precision(toy(), Precision(FLOAT16, accumulate=FLOAT16))
    with pytest.raises(RuntimeError, match=r"accumulates in float16 runs forward only; to train"):
        network.loss_and_gradients(IMAGES[:2], LABELS[:2])
    with pytest.raises(TypeError, match="CPU only"):
        network.to_gpu().forward(fake_gpu.asarray(IMAGES[:2]))


class Doubling(Linear):
    """A layer of a learner's own, which multiplies in a way of its own."""

    sums_by = Layer.sums_by


def test_a_layer_that_does_not_say_how_it_sums_is_refused():
    rng = np.random.default_rng(0)
    network = Network("own", [("flat", Flatten()), ("fc", Doubling(4, 2, rng=rng))], (1, 2, 2))
    assert in_precision(network, Precision(FLOAT16)).forward(np.ones((1, 1, 2, 2), "f4")).any()
    with pytest.raises(TypeError, match=r"a Doubling does not say how .*define sums_by"):
        in_precision(network, Precision(FLOAT16, FLOAT16))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: in_precision(toy(), FLOAT16), TypeError, r"one such as Precision\(FLOAT16\)"),
        (lambda: in_precision(toy(), Precision("float16")), TypeError, "store must be a number fo"),
        (lambda: in_precision(toy(), Precision(INT8, INT8)), TypeError, "compute must be a float"),
        (
            lambda: in_precision(rounded(toy(), FLOAT16), Precision(FLOAT16)),
            ValueError,
            "toy in float16 is rounded already",
        ),
        (lambda: Rounding(np.float16), TypeError, "format must be a number format"),
        (lambda: weight_bytes(toy(), None), TypeError, "format must be a number .*, got None"),
        (lambda: DynamicLossScale(0), ValueError, "start must be at least"),
        (lambda: DynamicLossScale(math.inf), ValueError, "start must be"),
        (lambda: DynamicLossScale(growth=1), ValueError, "growth must be above 1"),
        (lambda: DynamicLossScale(backoff=1), ValueError, "backoff must be above 0 and below 1"),
        (lambda: DynamicLossScale(interval=0), ValueError, "interval must be at least 1"),
        (lambda: DynamicLossScale(interval=2.5), TypeError, "interval must be a whole number"),
        (lambda: MixedPrecision(SGD, FLOAT16), TypeError, r"a plain one such as Adam\(\), got"),
        (
            lambda: MixedPrecision(MixedPrecision(SGD(1), FLOAT16), FLOAT16),
            TypeError,
            "optimizer must be a plain one",
        ),
        (lambda: MixedPrecision(SGD(1), "float16"), TypeError, "storage must be a number format"),
        (lambda: MixedPrecision(SGD(1), FLOAT16, loss_scale=0), ValueError, "loss_scale must be"),
        (lambda: MixedPrecision(SGD(1), FLOAT16, loss_scale="x"), TypeError, "loss_scale must be"),
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
    network = small_alexnet()
    stored = 0
    for array in network.parameters.values():
        whole = INT8 if format is INT8_PER_CHANNEL and array.ndim == 1 else format
        stored += whole.store(array).nbytes
    assert weight_bytes(network, format) == stored


# --- the loss scale -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_gradient_is_scaled_before_it_is_rounded(dtype):
    logits, labels = (8 * np.eye(4, 10)).astype(dtype), np.arange(4)
    loss, plain = softmax_cross_entropy(logits.astype(np.float64), labels)
    for scale in (1, 2.0**20, np.float64(3)):
        scaled_loss, grad = softmax_cross_entropy(logits, labels, scale)
        assert grad.dtype == dtype and float(scaled_loss) == pytest.approx(float(loss), rel=1e-4)
        with np.errstate(over="ignore"):
            np.testing.assert_allclose(
                grad,
                (float(scale) * plain).astype(dtype),
                rtol=1e-2 if dtype == np.float16 else 1e-4,
            )
    tiny = (30 * np.eye(4, 10)).astype(np.float16)
    assert not softmax_cross_entropy(tiny, labels)[1].any()
    assert softmax_cross_entropy(tiny, labels, 2.0**30)[1][:, :4].any()


def test_a_dynamic_scale_backs_off_and_grows():
    scale = DynamicLossScale(start=64, growth=4, backoff=0.25, interval=3)
    seen = []
    for overflowed in map(int, "1001000000"):
        scale.update(bool(overflowed))
        seen.append((scale.scale, scale.good_steps))
    assert seen == [
        (16, 0), (16, 1), (16, 2), (4, 0), (4, 1), (4, 2), (16, 0), (16, 1), (16, 2), (64, 0),
    ]  # fmt: skip


def test_a_scale_that_cannot_be_the_cause_says_so():
    scale = DynamicLossScale(start=4)
    for _ in range(12):
        scale.update(True)
    assert scale.scale == 2.0**-10
    with pytest.raises(FloatingPointError, match=r"not finite even at a loss scale of 0\.000977"):
        scale.update(True)
    assert scale.scale == 2.0**-10


# --- steps --------------------------------------------------------------------------------------


KINDS = {
    "float16 arrays": (FLOAT16, lambda: toy().astype(np.float16)),
    "float16": (FLOAT16, lambda: rounded(toy(), FLOAT16)),
    "bfloat16": (BFLOAT16, lambda: rounded(toy(), BFLOAT16)),
    "float8_e5m2": (FLOAT8_E5M2, lambda: rounded(toy(), FLOAT8_E5M2)),
    "fixed<8,8>": (FIXED, lambda: rounded(toy(), FIXED)),
    "int8": (INT8, lambda: rounded(toy(), INT8)),
}


def scaled_gradients(network, scale, steps=5):
    """Gradients as a backward pass with this loss scale makes them, in the weights' dtype."""
    return [
        {name: (scale * 0.1 * g).astype(np.float32) for name, g in gradients.items()}
        for gradients in random_gradients(network, steps)
    ]


@pytest.mark.parametrize("master_weights", [True, False])
@pytest.mark.parametrize("inner", OPTIMIZERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_against_the_other_optimizer_and_casts(kind, inner, master_weights):
    format, make = KINDS[kind]
    network, scale = make(), 64.0
    options = {"master_weights": master_weights, "loss_scale": scale}
    optimizer = MixedPrecision(OPTIMIZERS[inner](), format, **options)
    held = network.parameters
    dtype = next(iter(held.values())).dtype
    # The other optimiser alone, on a float32 network that holds the master weights.
    masters, alone = make().astype(np.float32), OPTIMIZERS[inner]()
    for gradients in scaled_gradients(network, scale):
        set_gradients(network, gradients)
        optimizer.step(network)
        stored = {n: as_stored(g, format) / np.float32(scale) for n, g in gradients.items()}
        set_gradients(masters, stored)
        alone.step(masters)
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
    set_gradients(network, first)
    optimizer.step(network)

    weights, state = copied(network), copy.deepcopy(optimizer.state)
    second["fc.bias"][1] = bad
    with np.errstate(over="ignore"):
        set_gradients(network, second)
    optimizer.step(network)
    assert (optimizer.skipped, optimizer.steps) == (1, 1)
    assert optimizer.loss_scale == (512 if dynamic else 1024)
    assert_unchanged(network, weights)
    assert optimizer.state.keys() == state.keys()
    assert all((array == state[name]).all() for name, array in optimizer.state.items())

    for _ in range(2):
        set_gradients(network, first)
        optimizer.step(network)
    assert (optimizer.skipped, optimizer.steps) == (1, 3)
    assert optimizer.loss_scale == 1024
    assert any((array != weights[name]).any() for name, array in network.parameters.items())


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_fixed_point_saturates_but_skips_what_is_not_finite(bad):
    network = rounded(toy(), FIXED)
    optimizer, bias = MixedPrecision(SGD(1.0), FIXED), copied(network)["fc.bias"]
    gradients = scaled_gradients(network, 1.0)[0]
    gradients["fc.bias"][...] = [1e30, -1e30, 0]
    set_gradients(network, gradients)
    optimizer.step(network)
    expected = bias + np.float32([-128 + 2**-8, 127.99609375, 0])
    assert optimizer.skipped == 0
    np.testing.assert_allclose(network.parameters["fc.bias"], expected, atol=2**-7)
    before = copied(network)
    gradients["fc.bias"][0] = bad
    set_gradients(network, gradients)
    optimizer.step(network)
    assert optimizer.skipped == 1
    assert_unchanged(network, before)


@pytest.mark.parametrize("arrays", [np.float16, np.float32])
def test_what_is_too_small_for_a_step_adds_up_in_master_weights_or_by_chance(arrays):
    """Weights of 1, changed by a sixteenth of a float16's spacing there, 160 times."""
    change, steps = 2.0**-14, 160
    found = {}
    for way in ("nearest", "stochastic", "master"):
        network = toy().astype(np.float16).astype(arrays)
        for array in network.parameters.values():
            array[...] = 1
        optimizer = MixedPrecision(
            SGD(1.0), FLOAT16, master_weights=way == "master", stochastic=way == "stochastic"
        )
        for _ in range(steps):
            shapes = {name: array.shape for name, array in network.parameters.items()}
            set_gradients(network, {name: np.full(s, -change) for name, s in shapes.items()})
            optimizer.step(network)
        found[way] = network.parameters["fc.weight"].astype(np.float64)
        assert is_stored(network.parameters["fc.weight"], FLOAT16)
    assert (found["nearest"] == 1).all()
    assert (found["master"] == 1 + steps * change).all()
    # 288 weights, each a sum of 160 draws: ten steps of the spacing with a deviation of 3.
    spread = found["stochastic"].std() / 2.0**-10
    assert 2 < spread < 4.2
    assert abs(found["stochastic"].mean() - 1 - steps * change) < 6 * 3.1 * 2.0**-10 / 288**0.5


def test_draws_depend_on_seed_and_step_alone():
    def steps(seed, count, start=0):
        network = rounded(toy(), FIXED)
        optimizer = MixedPrecision(
            SGD(0.1), FIXED, stochastic=True, master_weights=False, seed=seed
        )
        optimizer.steps = start
        for gradients in scaled_gradients(network, 1.0)[:count]:
            set_gradients(network, gradients)
            optimizer.step(network)
        return network

    assert_same_weights(steps(0, 3), steps(0, 3))
    assert weights_differ(steps(0, 1), steps(1, 1))
    assert weights_differ(steps(0, 1), steps(0, 1, start=1))


def test_a_refused_step_changes_nothing():
    network, optimizer = toy().astype(np.float16), MixedPrecision(Adam(), FLOAT16)
    with pytest.raises(RuntimeError, match=r"step\(\) needs the gradients of toy"):
        optimizer.step(network)
    assert optimizer.state == {} and optimizer.steps == optimizer.skipped == 0
    network.loss_and_gradients(IMAGES[:2].astype(np.float16), LABELS[:2])
    with pytest.raises(ValueError, match=r"conv\.weight is a float16 array, which holds no bfloat"):
        MixedPrecision(Adam(), BFLOAT16).step(network)
    optimizer.step(network)
    fc = Linear(64, 3, rng=np.random.default_rng(0))
    other = Network("other", [("flatten", Flatten()), ("fc", fc)], (1, 8, 8))
    other.loss_and_gradients(IMAGES[:2], LABELS[:2])
    before = copied(other)
    with pytest.raises(ValueError, match=r"worked on another network: its master\.fc\.weight is"):
        optimizer.step(other)
    assert optimizer.steps == 1
    assert_unchanged(other, before)


class Clipped(Linear):
    def after_step(self):
        self.parameters["weight"].clip(-1, 1, out=self.parameters["weight"])


def test_layers_that_change_their_weights_after_a_step_are_refused():
    rng = np.random.default_rng(0)
    fc = Clipped(64, 3, rng=rng)
    network = Network("clipped", [("flatten", Flatten()), ("fc", fc)], (1, 8, 8))
    before = copied(network)
    network.loss_and_gradients(IMAGES[:2], LABELS[:2])
    with pytest.raises(ValueError, match="fc, a Clipped, changes its weights"):
        MixedPrecision(SGD(0.1), FLOAT16).step(network)
    assert_unchanged(network, before)


# --- in fit -------------------------------------------------------------------------------------


def test_fit_scales_the_loss_and_reports_it_unscaled():
    def first_loss(scale):
        network = toy().astype(np.float16)
        optimizer = MixedPrecision(SGD(0.01), FLOAT16, loss_scale=scale)
        return train(network, optimizer, images=IMAGES.astype(np.float16), epochs=1)

    seen = {}
    for scale in (1.0, 2.0**10):
        network, history = first_loss(scale)
        seen[scale] = {name: np.abs(g).max() for name, g in network.gradients.items()}
        assert history.epochs[0].loss < 3
    for name, largest in seen[1.0].items():
        assert 500 < seen[2.0**10][name] / largest < 2000, name


def test_gradients_that_vanish_in_float16_are_saved_by_the_scale():
    """A network that is right already: its loss's gradients lie below half a subnormal."""
    for scale, learns in ((1.0, False), (2.0**12, True)):
        network = toy().astype(np.float16)
        network.layers["fc"].parameters["weight"][...] = 0
        network.layers["fc"].parameters["bias"][...] = [18.5, 0, 0]
        x, labels = IMAGES[:4].astype(np.float16), np.zeros(4, int)
        network.loss_and_gradients(x, labels, scale=scale)
        assert any(g.any() for g in network.gradients.values()) == learns


def run_of(kind):
    """A network and an optimiser in whose runs all kinds of chance are at work."""
    if kind == "float16 arrays, dynamic":
        network, storage = toy().astype(np.float16), FLOAT16
        scale = DynamicLossScale(2.0**18, interval=7)
        return network, MixedPrecision(Adam(5e-3), storage, loss_scale=scale, stochastic=True)
    network = in_precision(toy(), Precision(FIXED), stochastic=True)
    options = {"master_weights": False, "stochastic": True, "seed": 3, "loss_scale": 4.0}
    return network, MixedPrecision(SGD(0.05, momentum=0.9), FIXED, **options)


@pytest.mark.parametrize("broken_at", [STEPS + 1, 3 * STEPS - 1, 4 * STEPS])
@pytest.mark.parametrize("kind", ["float16 arrays, dynamic", "fixed point, stochastic"])
def test_an_interrupted_run_goes_on_to_the_same_weights(kind, broken_at, tmp_path):
    path = tmp_path / "run.npz"
    network, optimizer = run_of(kind)
    images = IMAGES.astype(next(iter(network.parameters.values())).dtype)
    expected, history = train(network, optimizer, images=images)
    if kind == "float16 arrays, dynamic":
        assert optimizer.skipped == 3 and optimizer.loss_scale == 2.0**17, "it backed off, and grew"

    network, broken = run_of(kind)
    break_at(network, broken_at, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        train(network, broken, images=images, checkpoint=path)
    at_the_break = copy.deepcopy(broken.numbers)
    kept = path.read_bytes()
    for one, again in (run_of(kind), (network, broken)):  # another process, and this one
        path.write_bytes(kept)
        got, got_history = train(one, again, images=images, checkpoint=path)
        assert got_history == history
        assert_same_weights(got, expected)
        assert again.numbers == optimizer.numbers != at_the_break or kind.startswith("fixed")
        assert again.steps == optimizer.steps
        for key, array in optimizer.state.items():
            assert (again.state[key] == array).all(), key


def test_a_checkpoint_of_another_precision_is_refused(tmp_path):
    def run(network=None, **options):
        options = {"loss_scale": 8.0, **options}
        optimizer = MixedPrecision(Adam(), options.pop("storage", FLOAT16), **options)
        network = rounded(toy(), FLOAT16) if network is None else network
        train(network, optimizer, epochs=1, checkpoint=tmp_path / "run.npz")

    run()
    others = {
        "storage is float16, this call's bfloat16": {"storage": BFLOAT16},
        "loss scale is 8.0, this call's 1.0": {"loss_scale": 1.0},
        "loss scale is 8.0, this call's {'start'": {"loss_scale": DynamicLossScale()},
        "master weights is True, this call's False": {"master_weights": False},
        "rounding is to nearest, this call's stochastic, seed 0": {"stochastic": True},
    }
    for message, options in others.items():
        with pytest.raises(ValueError, match=f"its {message}"):
            run(**options)
    # A network that bears the same name, but rounds what passes to something else.
    other = rounded(toy(), FLOAT16)
    other.layers["conv stored"].format = BFLOAT16
    with pytest.raises(ValueError, match=r"its layers conv stored is .*float16.*bfloat16"):
        run(other)
    with pytest.raises(ValueError, match=r"its optimizer is MixedPrecision of Adam, this call's A"):
        train(rounded(toy(), FLOAT16), Adam(), epochs=1, checkpoint=tmp_path / "run.npz")


def test_a_checkpoint_from_before_there_were_numbers_still_serves(tmp_path):
    path = tmp_path / "run.npz"
    expected, _ = train(epochs=2, checkpoint=path)
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    record = json.loads(str(arrays.pop("record")))
    del record["numbers"]
    np.savez(path, record=np.array(json.dumps(record)), **arrays)
    assert_same_weights(train(epochs=2, checkpoint=path)[0], expected)


@pytest.mark.filterwarnings("error")
def test_a_loss_that_is_no_number_still_ends_the_run():
    network = toy().astype(np.float16)
    network.layers["fc"].parameters["bias"][0] = math.inf
    optimizer = MixedPrecision(SGD(0.1), FLOAT16, loss_scale=DynamicLossScale())
    with pytest.raises(FloatingPointError, match="the loss became nan in epoch 1, step 1"):
        train(network, optimizer, images=IMAGES.astype(np.float16))
    assert optimizer.skipped == 0


@pytest.mark.filterwarnings("error")
def test_a_scale_far_too_large_finds_its_way_down_in_silence():
    network = toy().astype(np.float16)
    optimizer = MixedPrecision(Adam(5e-3), FLOAT16, loss_scale=DynamicLossScale(2.0**40))
    _, history = train(network, optimizer, images=IMAGES.astype(np.float16), epochs=20)
    assert 15 < optimizer.skipped < 40 and optimizer.loss_scale < 2.0**25
    assert optimizer.steps + optimizer.skipped == 20 * STEPS
    assert history.epochs[-1].loss < 0.8 * history.epochs[0].loss


@pytest.mark.parametrize("kind", ["float16 arrays", "float16", "bfloat16"])
def test_a_network_in_sixteen_bits_learns_as_in_thirty_two(kind):
    format, make = KINDS[kind]
    network = make()
    images = IMAGES.astype(next(iter(network.parameters.values())).dtype)
    optimizer = MixedPrecision(Adam(5e-3), format, loss_scale=256)
    _, history = train(network, optimizer, images=images, epochs=15)
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
