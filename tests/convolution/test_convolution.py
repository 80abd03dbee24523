"""Every convolution agrees with scipy in float64, its gradient with finite differences."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import signal

from fastdl_lib.convolution import im2col as convolution
from fastdl_lib.convolution.im2col import (
    channels_last,
    col2im,
    conv2d_blocked,
    conv2d_blocked_backward,
    conv2d_compiled,
    conv2d_im2col,
    conv2d_im2col_backward,
    conv2d_loops,
    im2col,
    output_size,
)
from fastdl_lib.convolution.winograd import conv2d_winograd, conv2d_winograd_backward
from fastdl_lib.core.threads import blas_threads

WHOLE = {"stride": 2, "padding": 1, "groups": 2}
ALGORITHMS = [conv2d_loops, conv2d_compiled, conv2d_im2col, conv2d_blocked, conv2d_winograd]
BACKWARD = [conv2d_im2col_backward, conv2d_blocked_backward, conv2d_winograd_backward]
# In these, fast ones included, a value that is no number reaches its own outputs alone.
DIRECT = [algorithm for algorithm in ALGORITHMS if algorithm is not conv2d_winograd]
ON_CPU = [algorithm for algorithm in ALGORITHMS if algorithm is not conv2d_im2col]


def reference(x, weight, bias=None, *, stride=1, padding=0, groups=1):
    """The convolution by scipy, one plane at a time, in float64."""
    x, weight = x.astype(np.float64), weight.astype(np.float64)
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    filters, group_channels = weight.shape[:2]
    images = []
    for image in x:
        maps = []
        for k in range(filters):
            first = k // (filters // groups) * group_channels
            planes = [
                signal.correlate(image[first + c], weight[k, c], mode="valid")
                for c in range(group_channels)
            ]
            maps.append(sum(planes)[::stride, ::stride] + (0 if bias is None else bias[k]))
        images.append(maps)
    return np.array(images)


@st.composite
def convolutions(draw, dtypes=(np.float32, np.float64)):
    """(x, weight, bias or None, window) of any shapes that fit together."""
    groups = draw(st.integers(1, 3))
    channels = groups * draw(st.integers(1, 2))
    filters = groups * draw(st.integers(1, 3))
    kernel = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    padding = draw(st.integers(0, 3))
    height, width = (draw(st.integers(max(1, size - 2 * padding), 7)) for size in kernel)
    stride = draw(st.integers(1, 8))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dtype = draw(st.sampled_from(dtypes))
    x = rng.standard_normal((draw(st.integers(1, 3)), channels, height, width)).astype(dtype)
    weight = rng.standard_normal((filters, channels // groups, *kernel)).astype(dtype)
    bias = rng.standard_normal(filters).astype(dtype) if draw(st.booleans()) else None
    return x, weight, bias, {"stride": stride, "padding": padding, "groups": groups}


# --- forward ------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(case=convolutions())
def test_convolution_agrees_with_scipy(algorithm, case):
    x, weight, bias, window = case
    out = algorithm(x, weight, bias, **window)
    expected = reference(x, weight, bias, **window)
    assert out.shape == expected.shape and out.dtype == x.dtype
    tolerance = 1e-4 if x.dtype == np.float32 else 1e-11
    np.testing.assert_allclose(out, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_inputs_are_left_alone_and_need_not_be_contiguous(algorithm):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 7, 6, 4)).transpose(0, 3, 1, 2)[:, :, ::2]
    weight = rng.standard_normal((3, 3, 2, 4)).transpose(2, 3, 0, 1)
    before = x.copy(), weight.copy()
    out = algorithm(x, weight, padding=1)
    np.testing.assert_allclose(out, reference(x, weight, padding=1), atol=1e-12)
    assert (x == before[0]).all() and (weight == before[1]).all()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_alexnets_second_layer_in_small(algorithm, threads):
    """Groups, padding and several blocks and tiles, shared out among threads."""
    rng = np.random.default_rng(0)
    x = channels_last((5, 8, 27, 27), np.float32)
    x[...] = rng.standard_normal(x.shape)
    weight, bias = (rng.standard_normal(s).astype(np.float32) for s in ((6, 4, 5, 5), 6))
    with blas_threads(threads):
        out = algorithm(x, weight, bias, padding=2, groups=2)
    expected = reference(x, weight, bias, padding=2, groups=2)
    np.testing.assert_allclose(out, expected, atol=5e-6 * np.abs(expected).max())


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_more_padding_than_filter(algorithm, threads):
    """Rows of outputs that see nothing but padding, for some threads nothing else."""
    x, weight = np.ones((1, 1, 1, 1)), np.ones((1, 1, 2, 2))
    with blas_threads(threads):
        out = algorithm(x, weight, padding=3)
    np.testing.assert_allclose(out, reference(x, weight, padding=3), atol=1e-12)


def test_blocks_that_see_nothing_but_padding(monkeypatch):
    monkeypatch.setattr(convolution, "CACHE_BYTES", 2**10)
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((1, 2, 4, 9)), rng.standard_normal((2, 2, 3, 3))
    out = conv2d_blocked(x, weight, padding=6)
    np.testing.assert_allclose(out, reference(x, weight, padding=6), atol=1e-12)
    y = rng.standard_normal(out.shape)
    both = (backward(y, x, weight, padding=6) for backward in BACKWARD[:2])
    for expected, blocked in zip(*both, strict=True):
        np.testing.assert_allclose(blocked, expected, atol=1e-10)


@pytest.mark.parametrize("algorithm", [conv2d_blocked, conv2d_winograd])
def test_the_fast_ones_answer_channels_last(algorithm):
    out = algorithm(*(np.ones(shape, np.float32) for shape in ((2, 3, 9, 9), (4, 3, 3, 3))))
    # The channels of a pixel lie together, and pixels of a row follow each other.
    assert out.strides[1] == out.itemsize and out.strides[3] == out.itemsize * out.shape[1]


@pytest.mark.parametrize("algorithm", DIRECT)
def test_not_a_number_passes_through(algorithm):
    x = np.zeros((1, 1, 3, 3), np.float32)
    x[0, 0, 0, 0] = np.nan
    out = algorithm(x, np.ones((1, 1, 2, 2), np.float32))
    assert np.isnan(out).tolist() == [[[[True, False], [False, False]]]]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_stride_larger_than_the_input_gives_one_position(algorithm):
    x, weight = np.ones((1, 1, 3, 3)), np.ones((1, 1, 2, 2))
    assert algorithm(x, weight, stride=100).tolist() == [[[[4.0]]]]


@given(size=st.integers(1, 20), kernel=st.integers(1, 20), stride=st.integers(1, 25))
def test_output_size_counts_the_positions(size, kernel, stride):
    positions = [start for start in range(0, size, stride) if start + kernel <= size]
    if positions:
        assert output_size(size, kernel, stride) == len(positions)
    else:
        with pytest.raises(ValueError, match=r"use padding >= \d+") as error:
            output_size(size, kernel, stride)
        # The padding that it names is the least that works.
        least = int(re.search(r"padding >= (\d+)", str(error.value))[1])
        assert output_size(size, kernel, stride, least) >= 1
        with pytest.raises(ValueError):
            output_size(size, kernel, stride, least - 1)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_whole_numbers_may_be_numpys(algorithm):
    x, weight = np.ones((1, 4, 3, 3)), np.ones((2, 2, 2, 2))
    expected = algorithm(x, weight, stride=2, padding=1, groups=2)
    for kind in (np.uint8, np.int8, np.int64):
        window = {name: kind(value) for name, value in WHOLE.items()}
        assert (algorithm(x, weight, **window) == expected).all()


@pytest.mark.parametrize("backward", BACKWARD)
def test_whole_numbers_may_be_numpys_in_the_backward_pass(backward):
    x, weight, y = np.ones((1, 4, 3, 3)), np.ones((2, 2, 2, 2)), np.ones((1, 2, 2, 2))
    expected = backward(y, x, weight, **WHOLE)
    window = {name: np.uint8(value) for name, value in WHOLE.items()}
    both = zip(backward(y, x, weight, **window), expected, strict=True)
    assert all((a == b).all() for a, b in both)


def test_a_small_whole_number_on_a_large_image():
    x = np.ones((1, 1, 300, 2), np.float32)
    columns = im2col(x, (3, 3), np.uint8(2), np.uint8(1))
    assert (col2im(columns, x.shape, (3, 3), np.uint8(2), np.uint8(1)) >= 1).all()


@pytest.mark.parametrize("algorithm", ON_CPU)
def test_what_is_made_for_the_cpu_refuses_arrays_on_the_gpu(algorithm, fake_gpu):
    x, weight = (fake_gpu.asarray(np.ones(shape, np.float32)) for shape in (X, W))
    with pytest.raises(TypeError, match=rf"{algorithm.__name__} .* only: move .* with to_cpu\(\)"):
        algorithm(x, weight)


# --- im2col and back ----------------------------------------------------------------------------


def test_im2col_worked_example():
    """Two channels of 3 x 4 pixels, a 2 x 3 filter: four patches of 12 numbers."""
    x = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
    assert im2col(x, (2, 3))[0].T.astype(int).tolist() == [
        [0, 1, 2, 4, 5, 6, 12, 13, 14, 16, 17, 18],
        [1, 2, 3, 5, 6, 7, 13, 14, 15, 17, 18, 19],
        [4, 5, 6, 8, 9, 10, 16, 17, 18, 20, 21, 22],
        [5, 6, 7, 9, 10, 11, 17, 18, 19, 21, 22, 23],
    ]


def test_im2col_with_stride_and_padding():
    x = np.arange(1, 10, dtype=np.float32).reshape(1, 1, 3, 3)
    assert im2col(x, (2, 2), stride=2, padding=1)[0].T.astype(int).tolist() == [
        [0, 0, 0, 1],
        [0, 0, 2, 3],
        [0, 4, 0, 7],
        [5, 6, 8, 9],
    ]


@given(case=convolutions())
def test_col2im_is_the_adjoint_of_im2col(case):
    x, weight, _, window = case
    place = weight.shape[2:], window["stride"], window["padding"]
    columns = im2col(x, *place)
    y = np.random.default_rng(0).standard_normal(columns.shape).astype(x.dtype)
    image = col2im(y, x.shape, *place)
    assert columns.dtype == image.dtype == x.dtype and image.shape == x.shape
    left = np.vdot(columns.astype(float), y.astype(float))
    right = np.vdot(x.astype(float), image.astype(float))
    np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-3 if x.dtype == np.float32 else 1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.int8, bool])
def test_im2col_keeps_any_dtype_and_copies(dtype):
    x = np.ones((1, 1, 2, 2), dtype)
    columns = im2col(x, (1, 1))
    assert columns.dtype == dtype and not np.shares_memory(columns, x)


def test_im2col_refuses_what_is_no_batch():
    with pytest.raises(ValueError, match=r"x of shape \(N, C, H, W\), no size 0; got \(3, 3\)"):
        im2col(np.ones((3, 3)), (2, 2))
    with pytest.raises(ValueError, match=r"no size 0; got \(0, 1, 3, 3\)"):
        im2col(np.ones((0, 1, 3, 3)), (2, 2))


@pytest.mark.parametrize("kernel", [3, (3,), (1, 2, 3), None])
def test_a_kernel_that_is_no_pair_is_refused(kernel):
    message = r"kernel must be a pair \(FH, FW\), such as \(3, 3\); got " + re.escape(repr(kernel))
    with pytest.raises(TypeError, match=message):
        im2col(np.ones((1, 1, 3, 3)), kernel)
    with pytest.raises(TypeError, match=message):
        col2im(np.ones((1, 9, 1)), (1, 1, 3, 3), kernel)


def test_col2im_refuses_columns_of_another_input():
    with pytest.raises(ValueError, match=r"have the shape \(1, 4, 4\), got \(1, 4, 5\)"):
        col2im(np.ones((1, 4, 5)), (1, 1, 3, 3), (2, 2))


# --- backward -----------------------------------------------------------------------------------


@pytest.mark.parametrize("backward", BACKWARD)
@given(case=convolutions(dtypes=[np.float64]))
def test_backward_is_the_adjoint_of_forward(backward, case):
    """A convolution is linear in x and in weight, so <conv(d), y> = <d, gradient>, exactly."""
    x, weight, _, window = case
    rng = np.random.default_rng(0)
    out = conv2d_im2col(x, weight, **window)
    y = rng.standard_normal(out.shape)
    grad_x, grad_weight, grad_bias = backward(y, x, weight, **window)
    assert grad_x.shape == x.shape and grad_weight.shape == weight.shape
    dx, dw = rng.standard_normal(x.shape), rng.standard_normal(weight.shape)
    for changed, d, grad in (
        (reference(dx, weight, **window), dx, grad_x),
        (reference(x, dw, **window), dw, grad_weight),
    ):
        np.testing.assert_allclose(np.vdot(changed, y), np.vdot(d, grad), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(grad_bias, y.sum(axis=(0, 2, 3)), atol=1e-12)


@pytest.mark.parametrize("backward", BACKWARD)
@given(case=convolutions(dtypes=[np.float64]))
def test_backward_agrees_with_finite_differences(backward, case):
    x, weight, bias, window = case
    bias = np.zeros(len(weight)) if bias is None else bias
    rng = np.random.default_rng(0)
    y = rng.standard_normal(conv2d_im2col(x, weight, bias, **window).shape)
    gradients = backward(y, x, weight, **window)
    for array, grad in zip((x, weight, bias), gradients, strict=True):
        for place in rng.integers(array.size, size=3):
            values, step = array.reshape(-1), 1e-3
            kept = values[place]
            losses = []
            for sign in (1, -1):
                values[place] = kept + sign * step
                losses.append(np.vdot(reference(x, weight, bias, **window), y))
            values[place] = kept
            expected = (losses[0] - losses[1]) / (2 * step)
            np.testing.assert_allclose(grad.flat[place], expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("backward", BACKWARD)
@given(case=convolutions())
def test_backward_keeps_the_dtype(backward, case):
    x, weight, _, window = case
    y = np.ones_like(conv2d_im2col(x, weight, **window))
    gradients = backward(y, x, weight, **window)
    assert {grad.dtype for grad in gradients} == {x.dtype}
    without = backward(y, x, weight, **window, need_grad_x=False)
    assert without[0] is None
    assert (without[1] == gradients[1]).all() and (without[2] == gradients[2]).all()


@pytest.mark.parametrize("backward", BACKWARD)
def test_backward_refuses_a_gradient_of_another_shape_or_dtype(backward):
    x, weight = np.ones((2, 1, 3, 3), np.float32), np.ones((1, 1, 2, 2), np.float32)
    with pytest.raises(ValueError, match=r"output's shape \(2, 1, 2, 2\), got \(2, 1, 3, 3\)"):
        backward(np.ones((2, 1, 3, 3), np.float32), x, weight)
    with pytest.raises(TypeError, match=r"float64.*grad_out\.astype\(x\.dtype\)"):
        backward(np.ones((2, 1, 2, 2)), x, weight)


@pytest.mark.parametrize("backward", BACKWARD)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_backward_gives_the_same_bits_every_time(backward, threads):
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((7, 4, 9, 9)), rng.standard_normal((6, 4, 3, 3))
    y = rng.standard_normal((7, 6, 7, 7))
    with blas_threads(threads):
        first, second = (backward(y, x, weight) for _ in range(2))
    assert all((a == b).all() for a, b in zip(first, second, strict=True))


# --- bad input ----------------------------------------------------------------------------------

X, W = (1, 4, 5, 5), (6, 4, 3, 3)


def ones(shape, dtype=np.float32):
    return np.ones(shape, dtype)


BAD_INPUT = {
    "one image without its batch axis": (
        (ones(X[1:]), ones(W)),
        {},
        ValueError,
        r"got \(4, 5, 5\) and .* For one image use x\[None\]",
    ),
    "a filter without its first axis": ((ones(X), ones(W[1:])), {}, ValueError, r"\(K, C/groups"),
    "a list": ((ones(X).tolist(), ones(W)), {}, TypeError, r"np\.asarray"),
    "half the dtypes": (
        (ones(X), ones(W, np.float64)),
        {},
        TypeError,
        r"weight is float64; .* Use weight\.astype\(x\.dtype\)",
    ),
    "a bias of another dtype": (
        (ones(X), ones(W), ones(6, np.float64)),
        {},
        TypeError,
        r"Use bias\.astype\(x\.dtype\)",
    ),
    "integers": (
        (ones(X, np.int32), ones(W, np.int32)),
        {},
        TypeError,
        r"got int32; use x\.astype\(np\.float32\)",
    ),
    "whole numbers": ((ones(X, int), ones(W, int)), {}, TypeError, r"use x\.astype\(np\.float32\)"),
    "an empty batch": ((ones((0, 4, 5, 5)), ones(W)), {}, ValueError, "every size must be >= 1"),
    "no rows": ((ones((1, 4, 0, 5)), ones(W)), {}, ValueError, "every size must be >= 1"),
    "no filters": ((ones(X), ones((0, 4, 3, 3))), {}, ValueError, "every size must be >= 1"),
    "stride 0": ((ones(X), ones(W)), {"stride": 0}, ValueError, "stride must be at least 1, got 0"),
    "stride -1": ((ones(X), ones(W)), {"stride": -1}, ValueError, "stride must be at least 1"),
    "half a stride": ((ones(X), ones(W)), {"stride": 1.5}, TypeError, "stride must be a whole num"),
    "padding -1": ((ones(X), ones(W)), {"padding": -1}, ValueError, "padding must be at least 0"),
    "padding by name": (
        (ones(X), ones(W)),
        {"padding": "same"},
        TypeError,
        "padding must be a whole number, got 'same'",
    ),
    "a kernel larger than the input": (
        (ones(X), ones((6, 4, 8, 3))),
        {},
        ValueError,
        "a window of 8 does not fit an input of 5 .* use padding >= 2 or a smaller kernel",
    ),
    "groups 0": ((ones(X), ones(W)), {"groups": 0}, ValueError, "groups must be at least 1, got 0"),
    "groups 1.0": ((ones(X), ones(W)), {"groups": 1.0}, TypeError, "groups must be a whole number"),
    "groups True": ((ones(X), ones(W)), {"groups": True}, TypeError, "a whole number, got True"),
    "groups that do not divide the channels": (
        (ones(X), ones(W)),
        {"groups": 3},
        ValueError,
        "groups=3 must divide the 4 input channels and the 6 filters",
    ),
    "groups that do not divide the filters": (
        (ones(X), ones((6, 1, 3, 3))),
        {"groups": 4},
        ValueError,
        "groups=4 must divide",
    ),
    "a filter for all channels in two groups": (
        (ones(X), ones(W)),
        {"groups": 2},
        ValueError,
        "has 4 in 2 .*, so it should look at 2",
    ),
    "a filter for other channels": (
        (ones(X), ones((6, 3, 3, 3))),
        {},
        ValueError,
        "looks at 3 channels, .* should look at 4",
    ),
    "a bias for other filters": (
        (ones(X), ones(W), ones(4)),
        {},
        ValueError,
        r"bias must have the shape \(6,\), got \(4,\)",
    ),
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_refused_and_the_fix_named(algorithm, case):
    arguments, window, error, message = BAD_INPUT[case]
    with pytest.raises(error, match=message):
        algorithm(*arguments, **window)
