"""Sizes that fit together, or a message that says what would; im2col and its way back."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from references import convolutions

from fastdl_lib.convolution.algorithms import conv2d
from fastdl_lib.convolution.geometry import Geometry, output_size
from fastdl_lib.convolution.im2col import col2im, im2col


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


@pytest.mark.parametrize("size", [227.5, 227.0, "227", None, True])
def test_half_a_pixel_is_refused(size):
    with pytest.raises(TypeError, match="size must be a whole number"):
        output_size(size, 11, 4)


def test_small_whole_numbers_of_numpy_do_not_overflow():
    small = np.int8
    size = output_size(small(100), small(3), small(1), small(100))
    assert size == 298 and type(size) is int
    geometry = Geometry((1, 1, 300, 300), (1, 1, 3, 3), small(2), small(100))
    assert geometry.out_shape == (1, 1, 249, 249)
    assert {type(value) for value in (geometry.stride, geometry.padding, geometry.groups)} == {int}
    x = np.ones((1, 1, 300, 2), np.float32)
    columns = im2col(x, (small(3), 3), small(2), small(100))
    assert col2im(columns, x.shape, (small(3), 3), small(2), small(100)).min() >= 1


def test_a_geometry_is_frozen():
    with pytest.raises(AttributeError):
        Geometry((1, 1, 3, 3), (1, 1, 2, 2)).stride = 2


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
    columns = im2col(x, (2, 2), stride=2, padding=1)[0].T.astype(int).tolist()
    assert columns == [[0, 0, 0, 1], [0, 0, 2, 3], [0, 4, 0, 7], [5, 6, 8, 9]]


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


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int8, bool])
def test_im2col_keeps_any_dtype_and_copies(dtype):
    x = np.ones((1, 1, 2, 2), dtype)
    columns = im2col(x, (1, 1))
    assert columns.dtype == dtype and not np.shares_memory(columns, x)
    assert col2im(columns, x.shape, (1, 1)).dtype == dtype


def test_im2col_refuses_what_is_no_batch():
    with pytest.raises(ValueError, match=r"x of shape \(N, C, H, W\), no size 0; got \(3, 3\)"):
        im2col(np.ones((3, 3)), (2, 2))
    with pytest.raises(ValueError, match=r"no size 0; got \(0, 1, 3, 3\)"):
        im2col(np.ones((0, 1, 3, 3)), (2, 2))
    with pytest.raises(ValueError, match=r"have the shape \(1, 4, 4\), got \(1, 4, 5\)"):
        col2im(np.ones((1, 4, 5)), (1, 1, 3, 3), (2, 2))


@pytest.mark.parametrize("kernel", [3, (3,), (1, 2, 3), None])
def test_a_kernel_that_is_no_pair_is_refused(kernel):
    message = r"kernel must be a pair \(FH, FW\), such as \(3, 3\); got " + re.escape(repr(kernel))
    with pytest.raises(TypeError, match=message):
        im2col(np.ones((1, 1, 3, 3)), kernel)
    with pytest.raises(TypeError, match=message):
        col2im(np.ones((1, 9, 1)), (1, 1, 3, 3), kernel)


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


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_refused_and_the_fix_named(case):
    arguments, window, error, message = BAD_INPUT[case]
    with pytest.raises(error, match=message):
        conv2d(*arguments, **window)
