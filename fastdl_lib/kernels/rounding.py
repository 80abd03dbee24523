"""Rounding to a float of fewer bits, in one pass over memory.

NumPy's version, which goes through the values for every operation, stands in
:mod:`fastdl_lib.precision.formats`; the steps are the same, and so are the bits.
"""

import functools
from collections.abc import Callable

import numpy as np

from fastdl_lib.kernels.compiled import compiled

MOST_FRACTION_BITS = 21
"""With more, the sum that rounds would have no place left."""


@functools.cache
def to_nearest() -> Callable[..., None]:
    """Return ``loop(x, out, fraction_bits, least, most, largest, beyond)`` for flat float32 arrays.

    least, most: the bits of the powers of two that the smallest normal and the largest number lie
    at, np.int32; largest, np.float32, beyond which all is ``beyond``.
    """

    @compiled
    def loop(x, out, fraction_bits, least, most, largest, beyond):
        step, steps = np.float32(2.0**-fraction_bits), np.float32(2.0**fraction_bits)
        # Added to less than 2^22 and taken away again, it leaves a whole number, ties to even.
        rounder = np.float32(1.5 * 2.0**23)
        for i in range(len(x)):
            bits = np.float32(x[i]).view(np.int32)
            power = np.int32(min(max(bits & 0x7F800000, least), most)).view(np.float32)
            size = abs(x[i]) / power * steps
            size = ((size + rounder) - rounder) * step * power
            size = beyond if size > largest else size
            sign = bits & np.int32(-(2**31))
            out[i] = np.int32(np.float32(size).view(np.int32) | sign).view(np.float32)

    return loop
