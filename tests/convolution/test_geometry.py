"""Sizes that fit together, or a message that says what would; im2col and its way back."""

import re

import numpy as np
import pytest
from helpers import convolutions
from hypothesis import given
from hypothesis import strategies as st

from fastdl_lib.convolution.algorithms import conv2d
from fastdl_lib.convolution.geometry import Geometry, output_size, tap_views
from fastdl_lib.convolution.im2col import col2im, im2col

ones = np.ones


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


def test_small_whole_numbers_of_numpy_do_not_overflow():
    small = np.int8
    size = output_size(small(100), small(3), small(1), small(100))
    assert size == 298 and type(size) is int
    shapes = np.array([1, 1, 100, 100], small), np.array([1, 1, 3, 3], small)
    geometry = Geometry(*shapes, small(2), small(100), small(1))
    assert geometry == Geometry((1, 1, 100, 100), (1, 1, 3, 3), 2, 100)
    assert geometry.out_shape == (1, 1, 149, 149) and hash(geometry)
    sizes = [*geometry.x_shape, *geometry.weight_shape, geometry.stride, geometry.padding]
    assert {type(value) for value in (*sizes, geometry.groups)} == {int}
    x = np.ones((1, 1, 300, 2), np.float32)
    columns = im2col(x, (small(3), 3), small(2), small(100))
    assert col2im(columns, x.shape, (small(3), 3), small(2), small(100)).min() >= 1


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


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: im2col(ones((3, 3)), (2, 2)), ValueError, r"\(N, C, H, W\), got \(3, 3\)"),
        (
            lambda: im2col(ones((0, 1, 3, 3)), (2, 2)),
            ValueError,
            "every size of a batch must be at least 1, got 0",
        ),
        (
            lambda: col2im(ones((1, 4, 5)), (1, 1, 3, 3), (2, 2)),
            *(ValueError, r"have the shape \(1, 4, 4\), got \(1, 4, 5\)"),
        ),
        (lambda: im2col(ones((1, 1, 3, 3)), 3), TypeError, r"a pair \(FH, FW\), .*; got 3"),
        (
            lambda: col2im(ones((1, 9, 1)), (1, 1, 3, 3), (1, 2, 3)),
            *(TypeError, r"a pair \(FH, FW\), such as \(3, 3\); got \(1, 2, 3\)"),
        ),
        (lambda: output_size(227.0, 11, 4), TypeError, "size must be a whole number"),
        (lambda: Geometry((1, 2, 5.5, 5), (3, 2, 3, 3)), TypeError, r"size of x .* got 5\.5"),
        (lambda: col2im(ones((1, 4, 4)), (1, 1, 3.0, 3), (2, 2)), TypeError, "size of a batch"),
        (lambda: tap_views(ones((1, 1, 4, 4)), (2, 2), 1.7), TypeError, r"stride .* got 1\.7"),
        (lambda: tap_views(ones((1, 1, 4, 4)), 2, 1), TypeError, r"a pair \(FH, FW\)"),
        (lambda: tap_views(ones(()), (2, 2), 1), ValueError, r"\(N, C, H, W\), got \(\)"),
    ],
)
def test_what_is_no_batch_no_pair_or_half_a_pixel_is_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()


# --- bad input ----------------------------------------------------------------------------------

# What is wrong, among an x of (1, 4, 5, 5) and a weight of (6, 4, 3, 3), both float32.
BAD_INPUT = [
    ({"x": ones((4, 5, 5))}, ValueError, r"got \(4, 5, 5\) and .* For one image use x\[None\]"),
    ({"weight": ones((4, 3, 3))}, ValueError, r"\(K, C/groups, FH, FW\)"),
    ({"x": [1.0]}, TypeError, r"np\.asarray"),
    ({"weight": ones(1, float)}, TypeError, r"weight is float64; .* weight\.astype\(x\.dtype\)"),
    ({"bias": ones(6, float)}, TypeError, r"Use bias\.astype\(x\.dtype\)"),
    ({"x": ones(1, np.int32)}, TypeError, r"got int32; use x\.astype\(np\.float32\)"),
    ({"x": ones((0, 4, 5, 5))}, ValueError, "every size of x must be at least 1, got 0"),
    ({"stride": 0}, ValueError, "stride must be at least 1, got 0"),
    ({"padding": -1}, ValueError, "padding must be at least 0"),
    ({"padding": "same"}, TypeError, "padding must be a whole number, got 'same'"),
    (
        {"weight": ones((6, 4, 8, 3))},
        *(ValueError, "a window of 8 .* input of 5 .* padding >= 2 or a smaller kernel"),
    ),
    ({"groups": 0}, ValueError, "groups must be at least 1, got 0"),
    ({"groups": 3}, ValueError, "groups=3 must divide the 4 input channels and the 6 filters"),
    ({"groups": 2}, ValueError, "has 4 in 2 .*, so it should look at 2"),
    ({"weight": ones((6, 3, 3, 3))}, ValueError, "looks at 3 channels, .* should look at 4"),
    ({"bias": ones(4)}, ValueError, r"bias must have the shape \(6,\), got \(4,\)"),
]


@pytest.mark.parametrize(("wrong", "error", "words"), BAD_INPUT)
def test_bad_input_is_refused_and_the_fix_named(wrong, error, words):
    given = {"x": ones((1, 4, 5, 5), np.float32), "weight": ones((6, 4, 3, 3), np.float32)}
    for name, value in wrong.items():
        if error is ValueError and isinstance(value, np.ndarray):
            value = value.astype(np.float32)
        given[name] = value
    with pytest.raises(error, match=words):
        conv2d(**given)
