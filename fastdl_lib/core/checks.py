"""What a function is given, or gives back, refused with a message that names it; and what this
machine offers."""

import functools
import math
import reprlib
from collections.abc import Callable, Iterable
from numbers import Real
from typing import Any, NamedTuple

import numpy as np


class Status(NamedTuple):
    """Whether something works on this machine, and why (not)."""

    available: bool
    reason: str
    """One sentence a learner can act on."""
    name: str = ""
    """What was found, such as a GPU's name; empty where there is none."""
    versions: dict[str, str] = {}  # noqa: RUF012  a NamedTuple's default; nobody changes it


def check_whole_number(name: str, value: int, least: int) -> int:
    """Refuse what is no whole number from ``least`` up, and return it as Python's own: NumPy's
    integers are whole numbers too, and small ones overflow where sizes are computed with them.

    Raises: TypeError for what is not a whole number (True and False are none), else ValueError.

    >>> check_whole_number("stride", np.int8(4), 1)
    4
    """
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, got {value!r}.")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}.")
    return int(value)


def check_number(
    name: str, value: float, *, low: float, low_included: bool = True, high: float = math.inf
) -> None:
    """Refuse what is no number from ``low`` (above it where not included) to below ``high``.

    Raises: TypeError for what is no number (True and False are none), else ValueError.
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {value!r}.")
    if not (low < value or (low_included and low == value)) or not value < high:
        least = f"at least {low}" if low_included else f"above {low}"
        most = "" if high == math.inf else f" and below {high}"
        raise ValueError(f"{name} must be {least}{most} and finite, got {value}.")


def check_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Refuse what is none of ``choices``: TypeError for another type than theirs, else ValueError.

    >>> check_choice("device", "tpu", ["cpu", "gpu"])
    Traceback (most recent call last):
    ValueError: device must be one of 'cpu', 'gpu', got 'tpu'.
    """
    choices = list(choices)
    if not isinstance(value, tuple({type(choice) for choice in choices})):
        error = TypeError
    elif value in choices:
        return
    else:
        error = ValueError
    raise error(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}.")


def returning(function: Callable, *examples: Any) -> Callable:
    """The function, held to answers of one kind with an example: what an exercise's tests call.

    A number stands for any number, a text for a text, an array for an array of numbers;
    ``(1, "a")`` for a pair of these two, ``[1]`` for numbers in a list or array of any length,
    ``{1: "a"}`` for a dictionary of texts and ``{}`` for any. For another answer the function
    raises AssertionError.

    >>> returning(lambda batch: None, 1.0)(8)
    Traceback (most recent call last):
    AssertionError: <lambda>(8) should return a number, but returned None. Does it end in `return`?
    """

    @functools.wraps(function)
    def checked(*given: Any, **named: Any) -> Any:
        answer = function(*given, **named)
        if any(_alike(answer, example) for example in examples):
            return answer
        asked = [reprlib.repr(value) for value in given]
        asked += [f"{name}={reprlib.repr(value)}" for name, value in named.items()]
        call = " ".join(f"{function.__name__}({', '.join(asked)})".split())
        wanted, got = " or ".join(map(_kind, examples)), " ".join(reprlib.repr(answer).split())
        hint = " Does it end in `return`?" if answer is None else ""
        raise AssertionError(f"{call} should return {wanted}, but returned {got}.{hint}")

    return checked


def _kind(example: Any) -> str:
    """What an example of :func:`returning` stands for, in words."""
    if isinstance(example, tuple):
        return f"({', '.join(map(_kind, example))})"
    if isinstance(example, list):
        return f"[{_kind(example[0])}, ...]"
    named = {str: "a text", dict: "a dictionary", np.ndarray: "an array of numbers"}
    return "None" if example is None else named.get(type(example), "a number")


def _alike(answer: Any, example: Any) -> bool:
    """Whether an answer is of one kind with an example."""
    array = getattr(getattr(answer, "dtype", None), "kind", "") in ("b", "i", "u", "f")
    if isinstance(example, (tuple, list)):
        listed = isinstance(answer, (tuple, list)) or (array and answer.ndim)
        if not listed or (isinstance(example, tuple) and len(answer) != len(example)):
            return False
        examples = example if isinstance(example, tuple) else example * len(answer)
        return all(map(_alike, answer, examples))
    if isinstance(example, dict):
        return isinstance(answer, dict) and all(
            _alike(value, kind) for kind in example.values() for value in answer.values()
        )
    if isinstance(example, Real):
        return isinstance(answer, Real) or (array and not answer.ndim)
    if isinstance(example, np.ndarray):
        return array and isinstance(answer.shape, tuple)
    return isinstance(answer, type(example))
