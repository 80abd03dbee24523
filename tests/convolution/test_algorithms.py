"""Every algorithm of the CPU agrees with scipy in float64, and so do its gradients.

A new row of ALGORITHMS is tested by being there; those of the GPU are in test_gpu.py.
"""

import functools
import re

import numpy as np
import pytest
from helpers import convolutions, digits, reference, small_alexnet
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdl_lib.convolution.algorithms import _ROWS, ALGORITHMS, choose, conv2d, conv2d_backward
from fastdl_lib.convolution.geometry import Geometry, channels_last
from fastdl_lib.core import threads
from fastdl_lib.core.threads import blas_threads
from fastdl_lib.nn.optimizers import Adam
from fastdl_lib.nn.zoo import deep_convnet

ON_CPU = [name for name, row in ALGORITHMS.items() if "cpu" in row.devices]
# Others have im2col's way back.
WAYS_BACK = list({ALGORITHMS[name].backward: name for name in reversed(ON_CPU)}.values())

every_algorithm = pytest.mark.parametrize("algorithm", ON_CPU)
every_way_back = pytest.mark.parametrize("algorithm", WAYS_BACK)


def test_no_algorithm_has_another_ones_name():
    assert list(ALGORITHMS) == [row.name for row in _ROWS]


# --- forward ------------------------------------------------------------------------------------


@every_algorithm
@given(case=convolutions())
def test_convolution_agrees_with_scipy(algorithm, case):
    x, weight, bias, window = case
    out = conv2d(x, weight, bias, **window, algorithm=algorithm)
    expected = reference(x, weight, bias, **window)
    assert out.shape == expected.shape and out.dtype == x.dtype
    tolerance = 1e-4 if x.dtype == np.float32 else 1e-11
    np.testing.assert_allclose(out, expected, rtol=tolerance, atol=tolerance)


@every_algorithm
def test_inputs_are_left_alone_and_need_not_be_contiguous(algorithm):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 7, 6, 4)).transpose(0, 3, 1, 2)[:, :, ::2]
    weight = rng.standard_normal((3, 3, 2, 4)).transpose(2, 3, 0, 1)
    before = x.copy(), weight.copy()
    out = conv2d(x, weight, padding=1, algorithm=algorithm)
    np.testing.assert_allclose(out, reference(x, weight, padding=1), atol=1e-12)
    assert (x == before[0]).all() and (weight == before[1]).all()


@pytest.mark.parametrize("count", [1, 2])
@every_algorithm
def test_alexnets_second_layer_in_small(algorithm, count):
    """Groups, padding and several blocks and tiles, shared out among threads."""
    rng = np.random.default_rng(0)
    x = channels_last((5, 8, 27, 27), np.float32)
    x[...] = rng.standard_normal(x.shape)
    weight, bias = (rng.standard_normal(s).astype(np.float32) for s in ((6, 4, 5, 5), 6))
    with blas_threads(count):
        out = conv2d(x, weight, bias, padding=2, groups=2, algorithm=algorithm)
    expected = reference(x, weight, bias, padding=2, groups=2)
    np.testing.assert_allclose(out, expected, atol=5e-6 * np.abs(expected).max())
    # As the table says: the channels of a pixel lie together, and the pixels of a row.
    together = out.strides[1] == out.itemsize and out.strides[3] == out.itemsize * out.shape[1]
    assert together == ALGORITHMS[algorithm].channels_last


@pytest.mark.parametrize("count", [1, 2, 7])
@every_algorithm
def test_more_padding_than_filter(algorithm, count):
    """Rows of outputs that see nothing but padding, for some threads nothing else."""
    x, weight = np.ones((1, 1, 1, 1)), np.ones((1, 1, 2, 2))
    with blas_threads(count):
        out = conv2d(x, weight, padding=3, algorithm=algorithm)
    np.testing.assert_allclose(out, reference(x, weight, padding=3), atol=1e-12)
    x = np.ones((1, 1, 3, 3))
    far = conv2d(x, weight, stride=100, algorithm=algorithm)
    assert far.tolist() == [[[[4.0]]]], "a stride larger than the input gives one position"


def test_blocks_that_see_nothing_but_padding(monkeypatch):
    monkeypatch.setattr(threads, "CACHE_BYTES", 2**10)
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((1, 2, 4, 9)), rng.standard_normal((2, 2, 3, 3))
    out = conv2d(x, weight, padding=6, algorithm="blocked")
    np.testing.assert_allclose(out, reference(x, weight, padding=6), atol=1e-12)
    y = rng.standard_normal(out.shape)
    ways = [conv2d_backward(y, x, weight, padding=6, algorithm=a) for a in ("im2col", "blocked")]
    for expected, blocked in zip(*ways, strict=True):
        np.testing.assert_allclose(blocked, expected, atol=1e-10)


def with_a_few(case, values):
    """The case with two of these in its input, in its weights or in its bias."""
    x, weight, bias, window = case
    rng = np.random.default_rng(x.size)
    array = (x, weight, x if bias is None else bias)[rng.integers(3)]
    array.flat[rng.integers(array.size, size=2)] = rng.choice(values, 2)
    return x, weight, bias, window


NOT_FINITE = [np.nan, np.inf, -np.inf]


@every_algorithm
@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
@pytest.mark.parametrize("values", [NOT_FINITE, [3e37, -2e37]])
@settings(derandomize=True)
@given(case=convolutions())
def test_what_is_not_finite_and_what_is_huge_stay_where_they_belong(algorithm, values, case):
    """Also where Winograd's transforms of a tile, or of a filter, grow beyond all numbers."""
    x, weight, bias, window = with_a_few(case, values)
    out = conv2d(x, weight, bias, **window, algorithm=algorithm)
    expected = reference(x, weight, bias, **window)
    assert (np.isnan(out) == np.isnan(expected)).all()
    with np.errstate(over="ignore"):
        expected = expected.astype(x.dtype)
    largest = np.prod([np.abs(a).max(initial=1, where=np.isfinite(a)) for a in (x, weight)])
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4 * largest)


@every_way_back
@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
@pytest.mark.parametrize("values", [NOT_FINITE, [3e37, -2e37]])
@settings(derandomize=True)
@given(case=convolutions(dtypes=[np.float32]))
def test_so_they_do_on_the_way_back(algorithm, values, case):
    x, weight, _, window = with_a_few((*case[:2], None, case[3]), values)
    y = np.random.default_rng(1).standard_normal(Geometry.of(x, weight, **window).out_shape)
    y = y.astype(x.dtype)
    wide = [array.astype(float) for array in (y, x, weight)]
    expected = conv2d_backward(*wide, **window)
    got = conv2d_backward(y, x, weight, **window, algorithm=algorithm)
    for one, wanted in zip(got, expected, strict=True):
        assert (np.isfinite(one) == np.isfinite(wanted.astype(x.dtype))).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("algorithm", ["auto", *ON_CPU])
@settings(derandomize=True)
@given(case=convolutions(dtypes=[np.float64]))
def test_where_a_filter_sees_nothing_but_zeros_the_output_is_the_bias(algorithm, dtype, case):
    """Bit for bit: with a fresh bias of 0, ReLU's derivative there is 0 by every algorithm."""
    x, weight, bias, window = case
    x, weight = x.astype(dtype), weight.astype(dtype)
    bias = None if bias is None else bias.astype(dtype)
    rng = np.random.default_rng(0)
    x *= rng.random(x.shape[2:]) < 0.3
    x *= rng.random((*x.shape[:2], 1, 1)) < 0.6  # whole channels, as a dead ReLU leaves them
    out = conv2d(x, weight, bias, **window, algorithm=algorithm)
    unseen = conv2d(np.abs(x), np.ones_like(weight), **window) == 0
    wanted = np.zeros(len(weight), dtype) if bias is None else bias
    assert (out == wanted[:, None, None])[unseen].all()


# --- the table and its doors --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_what_the_table_does_not_list_is_refused_and_what_is_advised_works(device, dtype, fake_gpu):
    xp = np if device == "cpu" else fake_gpu
    x, weight = xp.ones((1, 4, 5, 5), dtype), xp.ones((6, 4, 3, 3), dtype)
    for name, row in ALGORITHMS.items():
        if device in row.devices and dtype in row.dtypes:
            continue
        with pytest.raises(TypeError, match=f"'{name}' takes .* got {dtype} on the") as refused:
            conv2d(x, weight, algorithm=name)
        _, advice = str(refused.value).split(": use ")
        others = re.findall(r"'(\w+)'", advice)
        assert others and all(choose(one, x, Geometry.of(x, weight)) for one in others)
        moved = f"to_{row.devices[0]}()" in advice
        assert moved == (device not in row.devices), "a move to where it runs"


@pytest.mark.parametrize("algorithm", [n for n in ON_CPU if "float16" in ALGORITHMS[n].dtypes])
def test_float16_is_added_up_in_float32(algorithm):
    rng = np.random.default_rng(0)
    x, weight = (rng.random(s).astype(np.float16) for s in ((2, 16, 9, 9), (4, 16, 3, 3)))
    out = conv2d(x, weight, algorithm=algorithm)
    assert out.dtype == np.float16
    np.testing.assert_allclose(out, reference(x, weight), rtol=1e-3)


@every_way_back
@settings(derandomize=True)
@given(case=convolutions(dtypes=[np.float16]), factor=st.sampled_from([8, 64]))
def test_gradients_in_float16_are_rounded_once(algorithm, case, factor):
    """Of whole numbers, whose sums float32 knows exactly; beyond 2,048 float16 knows even ones."""
    if "float16" not in ALGORITHMS[algorithm].dtypes:
        return
    x, weight, _, window = case
    shape = Geometry.of(x, weight, **window).out_shape
    y = np.random.default_rng(0).standard_normal(shape)
    y, x, weight = (np.rint(factor * array).astype(np.float16) for array in (y, x, weight))
    exact = conv2d_backward(*(array.astype(float) for array in (y, x, weight)), **window)
    got = conv2d_backward(y, x, weight, **window, algorithm=algorithm)
    for one, wanted in zip(got, exact, strict=True):
        with np.errstate(over="ignore"):
            assert (one == wanted.astype(np.float16)).all()


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"algorithm": "fft"}, ValueError, r"must be one of 'auto', 'loops'.*, got 'fft'"),
        ({"algorithm": None}, TypeError, "algorithm must be one of"),
        (
            {"grad_out": np.ones((2, 1, 3, 3))},
            ValueError,
            r"shape \(2, 1, 2, 2\), got \(2, 1, 3, 3\)",
        ),
        ({"grad_out": np.ones((2, 1, 2, 2))}, TypeError, r"float64.*grad_out\.astype\(x\.dtype\)"),
        ({"grad_out": None}, TypeError, "expected a NumPy or CuPy array"),
    ],
)
def test_the_doors_refuse(changes, error, words):
    shapes = {"grad_out": (2, 1, 2, 2), "x": (2, 1, 3, 3), "weight": (1, 1, 2, 2)}
    given = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    with pytest.raises(error, match=words):
        conv2d_backward(**{**given, **changes})


def test_auto_chooses_by_device_dtype_and_work(fake_gpu):
    x, weight = np.ones((8, 16, 14, 14), np.float32), np.ones((16, 16, 3, 3), np.float32)
    geometry = Geometry.of(x, weight)
    assert choose("auto", x, geometry).name == "winograd"
    assert choose("auto", x, geometry, training=True).name == "blocked"
    large = np.ones((96, 64, 3, 3), np.float32), np.ones((8, 64, 14, 14), np.float32)
    assert choose("auto", large[1], Geometry.of(*large[::-1]), training=True).name == "winograd"
    assert choose("auto", x[:1], Geometry.of(x[:1], weight)).name == "blocked"
    assert choose("auto", x.astype(np.float16), geometry).name == "blocked"
    assert choose("auto", fake_gpu.asarray(x), geometry).name == "gpu"


# --- backward -----------------------------------------------------------------------------------


@every_way_back
@given(case=convolutions(dtypes=[np.float64]))
def test_backward_is_the_adjoint_of_forward(algorithm, case):
    """A convolution is linear in x and in weight, so <conv(d), y> = <d, gradient>, exactly: here
    for one random direction d each, with scipy's convolution."""
    x, weight, _, window = case
    rng = np.random.default_rng(0)
    y = rng.standard_normal(conv2d(x, weight, **window).shape)
    grad_x, grad_weight, grad_bias = conv2d_backward(y, x, weight, **window, algorithm=algorithm)
    assert grad_x.shape == x.shape and grad_weight.shape == weight.shape
    dx, dw = rng.standard_normal(x.shape), rng.standard_normal(weight.shape)
    for changed, d, grad in (
        (reference(dx, weight, **window), dx, grad_x),
        (reference(x, dw, **window), dw, grad_weight),
    ):
        np.testing.assert_allclose(np.vdot(changed, y), np.vdot(d, grad), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(grad_bias, y.sum(axis=(0, 2, 3)), atol=1e-12)


@every_way_back
@given(case=convolutions())
def test_backward_keeps_the_dtype(algorithm, case):
    x, weight, _, window = case
    y = np.ones(Geometry.of(x, weight, **window).out_shape, x.dtype)
    back = functools.partial(conv2d_backward, y, x, weight, **window, algorithm=algorithm)
    gradients, without = back(), back(need_grad_x=False)
    assert {grad.dtype for grad in gradients} == {x.dtype}
    assert without[0] is None
    assert (without[1] == gradients[1]).all() and (without[2] == gradients[2]).all()


@every_way_back
@pytest.mark.parametrize("count", [1, 2, 3])
def test_backward_gives_the_same_bits_every_time(algorithm, count):
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((7, 4, 9, 9)), rng.standard_normal((6, 4, 3, 3))
    y = rng.standard_normal((7, 6, 7, 7))
    with blas_threads(count):
        first, second = (conv2d_backward(y, x, weight, algorithm=algorithm) for _ in range(2))
    assert all((a == b).all() for a, b in zip(first, second, strict=True))


# --- training -----------------------------------------------------------------------------------

# On digits, whose paper is exactly 0: fresh biases are, too, so that whole areas stand at the place
# where ReLU bends.


def fresh(name, algorithm, dtype, seed=0):
    """The network, and digits as it takes them."""
    if name == "DeepConvNet":
        network, size, channels = deep_convnet(seed).variant("", drop1=None, drop2=None), 28, 1
    else:
        network, size, channels = small_alexnet(seed).variant("", drop3=None), 27, 3
    for layer in network.layers.values():
        if layer.algorithm is not None:
            layer.algorithm = algorithm
    images, labels = digits(192)
    images = images[:, :, :size, :size].repeat(channels, axis=1).astype(dtype)
    return network.astype(dtype), images, labels % 7


@pytest.mark.parametrize("algorithm", ["auto", "compiled", "blocked", "winograd"])
@pytest.mark.parametrize("name", ["DeepConvNet", "small AlexNet"])
def test_a_fresh_network_has_the_gradients_of_im2col(name, algorithm):
    gradients = []
    for way in ("im2col", algorithm):
        network, x, labels = fresh(name, way, np.float64)
        network.loss_and_gradients(x[:8], labels[:8])
        gradients.append(network.gradients)
    for key, wanted in gradients[0].items():
        far = np.abs(gradients[1][key] - wanted).max() / np.abs(wanted).max()
        assert far < 1e-10, key


def trained_by(ranks, name, algorithm, dtype, steps, seed):
    """All weights after so many steps of Adam, each batch shared as ranks do."""
    network, x, labels = fresh(name, algorithm, dtype, seed)
    optimizer = Adam(1e-3)
    for step in range(steps):
        total = dict.fromkeys(network.parameters, 0.0)
        for rank in range(ranks):
            part = slice(*(16 * edge // ranks for edge in (rank, rank + 1)))
            images, shown = (array[16 * step :][part] for array in (x, labels))
            for layer in network.layers.values():
                layer.share(part if ranks > 1 else None, 16)
            network.training_pass(images, shown, scale=len(images) / 16)
            total = {key: total[key] + grad for key, grad in network.gradients.items()}
        optimizer.update(network.parameters, {k: total[k].astype(dtype) for k in total})
    return np.concatenate([array.ravel() for array in network.parameters.values()]).astype(float)


@pytest.mark.parametrize(
    ("name", "algorithm", "dtype", "steps", "far"),
    [
        ("DeepConvNet", "auto", np.float32, 12, 1e-6),
        ("small AlexNet", "auto", np.float32, 12, 1e-6),  # in NumPy's loops: it has few filters
        ("DeepConvNet", "winograd", np.float64, 2, 1e-6),
    ],
)
def test_several_ranks_go_the_way_of_one(name, algorithm, dtype, steps, far):
    for seed in range(3):
        how = name, algorithm, dtype
        start, one = (trained_by(1, *how, count, seed) for count in (0, steps))
        several = trained_by(2 + seed, *how, steps, seed)
        assert np.abs(several - one).max() < far * np.abs(one - start).max()
