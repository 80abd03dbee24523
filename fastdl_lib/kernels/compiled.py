"""How this package compiles a loop: for this CPU, at the first call, kept on disk."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import numpy as np


def compiled(function: Callable[..., Any], fastmath: bool | set[str] = False) -> Callable[..., Any]:
    """Compile a loop over NumPy arrays with Numba; it lets go of Python's lock while it runs.

    NaN and infinity pass as in NumPy (unless ``fastmath`` allows LLVM more), a division by zero
    gives infinity, and the machine code is kept beside the file, or in the user's cache folder, for
    the next process. No such folder, a full disk or a damaged file there costs the time to compile,
    no more.
    """
    import numba  # importing it takes a while
    from numba.core.caching import FunctionCache

    class Kept(FunctionCache):
        def _index_key(self, sig: Any, codegen: Any) -> Any:
            # Numba's own key names a function that the loop calls otherwise in every process.
            return sig, codegen.magic_tuple(), _told(function)

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

    made = numba.njit(nogil=True, error_model="numpy", fastmath=fastmath)(function)
    with contextlib.suppress(RuntimeError):  # no folder that can be written to
        made._cache = Kept(function)  # what njit(cache=True) does with a FunctionCache
    return made


def _told(function: Callable[..., Any]) -> str:
    """A function's code and the values that it takes from around it, the same in every process."""
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    called = [getattr(value, "py_func", None) for value in cells]
    held = [_told(f) if f else repr(value) for f, value in zip(called, cells, strict=True)]
    code = function.__code__
    return repr((code.co_code, code.co_consts, code.co_names, held))


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
