"""What a function is given, refused with a message that names it; and what this machine offers."""

import math
from collections.abc import Iterable
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
