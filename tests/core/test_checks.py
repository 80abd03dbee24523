"""One error type for one mistake, and a message that names what was given."""

import math

import numpy as np
import pytest

from fastdl_lib.core.checks import check_choice, check_number, check_whole_number


@pytest.mark.parametrize("value", [1, 7, np.int8(3), np.uint64(2)])
def test_whole_numbers(value):
    check_whole_number("n", value, 1)
    check_number("n", value, low=1)


@pytest.mark.parametrize("value", [1.0, "1", None, True, np.float32(1), np.bool_(True), [1]])
def test_what_is_no_whole_number(value):
    with pytest.raises(TypeError, match="n must be a whole number, got"):
        check_whole_number("n", value, 0)


def test_a_number_below_the_least():
    with pytest.raises(ValueError, match=r"n must be at least 1, got 0\."):
        check_whole_number("n", 0, 1)


@pytest.mark.parametrize("value", ["1", None, True, 1j])
def test_what_is_no_number(value):
    with pytest.raises(TypeError, match="n must be a number, got"):
        check_number("n", value, low=0)


@pytest.mark.parametrize("value", [0, -1, 2, 2.5, math.nan, math.inf, -math.inf])
def test_a_number_outside(value):
    with pytest.raises(ValueError, match=r"n must be above 0 and below 2 and finite, got"):
        check_number("n", value, low=0, low_included=False, high=2)


def test_choices():
    check_choice("way", "b", ["a", "b"])
    check_choice("way", None, ["a", None])
    with pytest.raises(ValueError, match=r"way must be one of 'a', 'b', got 'c'\."):
        check_choice("way", "c", {"a": 1, "b": 2})
    for value in (None, 3, ["a"]):
        with pytest.raises(TypeError, match=r"way must be one of 'a', 'b', got"):
            check_choice("way", value, ["a", "b"])
