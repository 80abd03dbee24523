"""One error type for one mistake, and a message that names what was given."""

import math

import numpy as np
import pytest

from fastdl_lib.core.checks import check_choice, check_number, check_whole_number, returning


@pytest.mark.parametrize("value", [1, 7, np.int8(3), np.uint64(2)])
def test_numbers_and_choices(value):
    assert type(check_whole_number("n", value, 1)) is int
    check_number("n", value, low=1)
    check_choice("way", value, [7, value])
    check_choice("way", None, ["a", None])


def whole(value):
    check_whole_number("n", value, 1)


def between(value):
    check_number("n", value, low=0, low_included=False, high=2)


def one_of(value):
    check_choice("n", value, {"a": 1, "b": 2})


REFUSALS = [
    (whole, TypeError, "n must be a whole number, got", [1.0, "1", None, True, np.bool_(1), [1]]),
    (whole, ValueError, r"n must be at least 1, got 0\.", [0]),
    (between, TypeError, "n must be a number, got", ["1", None, True, 1j]),
    (
        *(between, ValueError, "n must be above 0 and below 2 and finite, got"),
        [0, -1, 2, 2.5, math.nan, math.inf, -math.inf],
    ),
    (one_of, ValueError, r"n must be one of 'a', 'b', got 'c'\.", ["c"]),
    (one_of, TypeError, r"n must be one of 'a', 'b', got", [None, 3, ["a"]]),
]


@pytest.mark.parametrize(
    ("check", "error", "words", "value"),
    [(*one, value) for *one, values in REFUSALS for value in values],
)
def test_refusals(check, error, words, value):
    with pytest.raises(error, match=words):
        check(value)


@pytest.mark.parametrize(
    ("examples", "right", "wrong"),
    [
        ((1.0,), (2, np.float32(2), np.array(2)), (None, "2", (2,), np.ones(1), np.array(None))),
        ((1, None), (3, None), ("", [])),
        ((("a", 1.0),), (("b", 2), ["b", np.int8(2)]), (None, ("b",), ("b", None), (1, "b"), "b1")),
        (([1],), ([], [1, 2], np.ones(2)), (3, [None], np.ones((2, 2)), np.array(["a"]))),
        (({1: "a"},), ({}, {2: "b"}), (None, {1: None}, ["a"])),
        (({},), ({"a": None},), ([], 1)),
        ((np.ones(1),), (np.ones((2, 2)), np.array(True)), ([1.0], 1.0, np.array(["a"]))),
    ],
)
def test_answers_of_another_kind_are_told(examples, right, wrong):
    for answer in right:
        assert returning(lambda answer=answer: answer, *examples)() is answer
    for answer in wrong:
        with pytest.raises(
            AssertionError, match=r"^half\(3, by='x'\) should return .+, but returned"
        ):
            returning(half_of(answer), *examples)(3, by="x")


def half_of(answer):
    def half(number, by):
        return answer

    return half
