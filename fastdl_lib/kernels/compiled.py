"""How this package compiles a loop: for this CPU, at the first call, kept on disk."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import numpy as np


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a loop over NumPy arrays with Numba; it lets go of Python's lock while it runs.

    NaN and infinity pass as in NumPy (no "fast math"), a division by zero gives infinity, and the
    machine code is kept beside the file, or in the user's cache folder, for the next process. No
    such folder, a full disk or a damaged file there costs the time to compile, no more.
    """
    import numba  # importing it takes a while
    from numba.core.caching import FunctionCache

    class Kept(FunctionCache):
        def load_overload(self, *key: Any) -> Any:
            try:
                return super().load_overload(*key)
            except Exception:  # a damaged pickle raises many types
                with contextlib.suppress(OSError):
                    self.flush()
                return None

        def save_overload(self, *key_and_code: Any) -> None:
            with contextlib.suppress(OSError):
                super().save_overload(*key_and_code)

    made = numba.njit(nogil=True, error_model="numpy")(function)
    with contextlib.suppress(RuntimeError):  # no folder that can be written to
        made._cache = Kept(function)  # what njit(cache=True) does with a FunctionCache
    return made


@functools.cache
def can_compile() -> bool:
    """Whether loops are compiled here; NUMBA_DISABLE_JIT=1 turns that off."""
    import numba

    return not numba.config.DISABLE_JIT


def suits(*arrays: Any, dtype: Any = np.float32) -> bool:
    """Whether compiled loops take these arrays: NumPy's, of that dtype, without gaps in memory."""
    return (
        all(isinstance(a, np.ndarray) and a.dtype == dtype for a in arrays)
        and all(a.flags.c_contiguous for a in arrays)
        and can_compile()
    )
