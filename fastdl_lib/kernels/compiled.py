"""How this package compiles a loop: for this CPU, at the first call, kept on disk."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a loop over NumPy arrays with Numba; it lets go of Python's lock while it runs.

    NaN and infinity pass as in NumPy (no "fast math"), a division by zero gives infinity, and the
    machine code is kept beside the file, or in the user's cache folder, for the next process.
    """
    import numba  # importing it takes a while

    options = {"nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder that can be written to
        return numba.njit(**options)(function)


@functools.cache
def can_compile() -> bool:
    """Whether loops are compiled here; NUMBA_DISABLE_JIT=1 turns that off."""
    import numba

    return not numba.config.DISABLE_JIT


def suits(*arrays: Any) -> bool:
    """Whether compiled loops take these arrays: NumPy's, float32, without gaps in memory."""
    return (
        all(isinstance(a, np.ndarray) and a.dtype == np.float32 for a in arrays)
        and all(a.flags.c_contiguous for a in arrays)
        and can_compile()
    )
