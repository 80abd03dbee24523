"""Numbers that a function is given, refused with a message that names them."""

import math
from numbers import Real

import numpy as np

__all__ = ["check_number", "check_whole_number"]


def check_whole_number(name: str, value: int, least: int) -> None:
    """Refuse what is no whole number from ``least`` up.

    Raises:
        TypeError: the value is not a whole number; True and False are none.
        ValueError: it is below ``least``.
    """
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, got {value!r}.")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}.")


def check_number(
    name: str, value: float, *, low: float, low_included: bool = True, high: float = math.inf
) -> None:
    """Refuse what is no number from ``low`` (above it where not included) to below ``high``.

    Raises:
        TypeError: the value is no number; True and False are none.
        ValueError: it is outside, or not finite.
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {value!r}.")
    if not (low < value or (low_included and low == value)) or not value < high:
        least = f"at least {low}" if low_included else f"above {low}"
        most = "" if high == math.inf else f" and below {high}"
        raise ValueError(f"{name} must be {least}{most} and finite, got {value}.")
