"""NumPy on the CPU, CuPy on the GPU: the only module that knows both.

Every layer asks :func:`array_module` which library its input belongs to and computes there.
Data crosses between the two through :func:`to_gpu` and :func:`to_cpu` alone, so that no copy
over the bus hides inside a measurement.
"""

import contextlib
import ctypes
import functools
import sys
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np

from fastdl_lib.core.checks import Status

Array = Any  # numpy.ndarray or cupy.ndarray


_freed_memory_lock = threading.Lock()
_freed_memory_keepers = 0


@contextlib.contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Let freed memory wait for the next array, for a block, instead of going back to the system.

    GNU's C library hands large pieces back and fetches them again, page by page, which can take a
    third of a training step. Within the block up to 512 MB stay at the end of the heap. Blocks may
    lie within each other and in several threads; after the last one pieces of 32 MB and more are
    handed back again, as the library itself comes to do it. Other systems are left as they are.

    >>> with keep_freed_memory(), keep_freed_memory():
    ...     inside = freed_memory_kept()
    >>> inside == (sys.platform == "linux"), freed_memory_kept()
    (True, False)
    """
    _count_keepers(1)
    try:
        yield
    finally:
        _count_keepers(-1)


def freed_memory_kept() -> bool:
    """Whether a block of :func:`keep_freed_memory` is being run, and the C library minds it."""
    return _freed_memory_keepers > 0 and _mallopt() is not None


def _count_keepers(change: int) -> None:
    global _freed_memory_keepers
    with _freed_memory_lock:
        before, _freed_memory_keepers = _freed_memory_keepers, _freed_memory_keepers + change
        keep, set_option = _freed_memory_keepers > 0, _mallopt()
        if set_option is not None and keep != (before > 0):
            trim_threshold, mmap_threshold, mmap_max = -1, -3, -4  # M_..., as in malloc.h
            set_option(mmap_threshold, 2**25)
            set_option(mmap_max, 0 if keep else 2**16)
            set_option(trim_threshold, 2**29 if keep else 2**26)


@functools.cache
def _mallopt() -> Any:
    """The C library's call, None where it has none."""
    return getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None


def _is_cupy(array: Array) -> bool:
    return type(array).__module__.partition(".")[0] == "cupy"


def array_module(*arrays: Array) -> ModuleType:
    """Return the library that ``arrays`` belong to: the module ``numpy`` or ``cupy``.

    Raises: TypeError where one is no array, where only some are on the GPU, or where they were made
    on a pretend GPU whose block has ended.

    >>> array_module(np.zeros(3)).__name__
    'numpy'
    """
    if not arrays:
        raise TypeError("array_module() needs at least one array; got none.")
    for array in arrays:
        if not isinstance(array, np.ndarray) and not _is_cupy(array):
            raise TypeError(
                f"expected a NumPy or CuPy array, got {type(array).__name__}; "
                "wrap lists and numbers with np.asarray(..., dtype=np.float32)."
            )
    on_gpu = [_is_cupy(array) for array in arrays]
    if all(on_gpu):
        if "cupy" not in sys.modules:
            raise TypeError(
                "an array of a pretend GPU is out of its block: bring results back with to_cpu() "
                "inside `with pretend_gpu():`."
            )
        return sys.modules["cupy"]
    if any(on_gpu):
        raise TypeError(
            f"{sum(on_gpu)} of {len(arrays)} arrays are on the GPU and the others are not; "
            "move them with to_gpu() or to_cpu() first."
        )
    return np


@functools.cache
def gpu_status() -> Status:
    """Say whether a GPU computes here, proved by a small kernel and product: a wheel without its
    CUDA libraries passes ``cupy.cuda.is_available()`` and fails at the first kernel.
    """
    try:
        import cupy
    except ImportError:
        return Status(False, "CuPy is not installed (pip install -e '.[cuda13]').")
    extra = "pip install -e '.[cuda13]' or '.[cuda12]'"
    try:
        runtime = cupy.cuda.runtime
        made_for, driver = runtime.runtimeGetVersion(), runtime.driverGetVersion()
        extra = f"pip install -e '.[cuda{made_for // 1000}]'"
        fault = _driver_fault(made_for, driver, cupy.cuda.is_available())
        if fault:
            return Status(False, fault)
        # The smallest work that needs both a kernel compiled and the BLAS.
        numbers = cupy.arange(3) + 1.0
        proof = (numbers.reshape(3, 1) @ numbers.reshape(1, 3)).get()[0].tolist()
        name = runtime.getDeviceProperties(0)["name"]
    except Exception as error:  # CuPy raises many types here; the reason is what matters
        first_line = (str(error).strip().splitlines() or [""])[0]
        why = f"CuPy's test kernel failed ({type(error).__name__}: {first_line})"
        return Status(False, f"{why}; install the CUDA libraries with {extra}.")
    if proof != [1, 2, 3]:
        return Status(False, f"its test kernel answered {proof}.")
    name = name.decode() if isinstance(name, bytes) else str(name)
    versions = {"cupy": cupy.__version__, "cuda": _cuda_version(made_for)}
    versions["cuda driver"] = _cuda_version(driver)
    return Status(True, f"{name} through CuPy {cupy.__version__}.", name, versions)


def _driver_fault(made_for: int, driver: int, has_device: bool) -> str:
    """Why there is no GPU to try, as far as the driver tells; empty where there is one."""
    if driver == 0:
        return "CuPy finds no NVIDIA driver: install one for your GPU (nvidia-smi then lists it)."
    if driver // 1000 < made_for // 1000:
        return (
            f"the NVIDIA driver knows CUDA {_cuda_version(driver)} and this CuPy is made for CUDA "
            f"{_cuda_version(made_for)}: update the driver, or pip uninstall "
            f"cupy-cuda{made_for // 1000}x and pip install -e '.[cuda{driver // 1000}]'."
        )
    if not has_device:
        return (
            f"the NVIDIA driver (CUDA {_cuda_version(driver)}) shows no GPU: see nvidia-smi, and "
            "whether CUDA_VISIBLE_DEVICES hides it."
        )
    return ""


def _cuda_version(number: int) -> str:
    """CUDA's own numbering in words: 13010 is 13.1."""
    return f"{number // 1000}.{number % 1000 // 10}"


def gpu_available() -> bool:
    """True when a GPU computes here; :func:`gpu_status` says why when it does not."""
    return gpu_status().available


def _cupy(needed_by: str) -> ModuleType:
    if not gpu_available():
        raise RuntimeError(f"{needed_by}() needs a GPU. {gpu_status().reason}")
    return sys.modules["cupy"]


def use_gpu(number: int) -> None:
    """Compute on the GPU of that number from now on, in this thread; counted round where there are
    fewer. RuntimeError where there is none.
    """
    cuda = _cupy("use_gpu").cuda
    cuda.Device(number % cuda.runtime.getDeviceCount()).use()


def gpu_kernel(name: str, inputs: str, output: str, code: str) -> Callable[..., Array]:
    """A kernel of our own for CuPy (or what stands in for it): C code that makes entry number ``i``
    of the output. It takes the inputs and the array to fill, which it returns; it is compiled at
    its first call and kept. RuntimeError where there is no GPU.

    Args:
        inputs: such as ``"raw T x, int32 first"``; raw arrays are indexed by the code itself.
        output: such as ``"T y"``; T is any dtype, the same wherever it stands.
    """
    return _gpu_kernel(_cupy("gpu_kernel"), name, inputs, output, code)


@functools.cache
def _gpu_kernel(xp: ModuleType, name: str, inputs: str, output: str, code: str) -> Any:
    return xp.ElementwiseKernel(inputs, output, code, name)


def to_gpu(array: Array) -> Array:
    """Copy ``array`` to the GPU (same shape and dtype); RuntimeError where there is none."""
    array_module(array)
    return _cupy("to_gpu").asarray(array)


def to_cpu(array: Array) -> np.ndarray:
    """Copy ``array`` to a NumPy array (same shape and dtype); a NumPy array comes back as it is.

    >>> to_cpu(np.ones((2, 3), dtype=np.float32)).shape
    (2, 3)
    """
    return array if array_module(array) is np else array.get()


def check_on_cpu(name: str, x: Array) -> None:
    """Refuse, with a TypeError, an array on the GPU; ``name`` is the function that refuses."""
    if array_module(x) is not np:
        raise TypeError(f"{name} runs on the CPU only: move its arrays there with to_cpu().")


def wide(dtype: np.dtype) -> np.dtype:
    """The dtype to add up in: float32 for float16, the same for other floats."""
    return np.promote_types(dtype, np.float32)


def rounded(array: Array, dtype: np.dtype) -> Array:
    """The array in a narrower dtype; what is too large becomes infinite, without a warning."""
    with np.errstate(over="ignore"):
        return array.astype(dtype, copy=False)


def beside(array: np.ndarray, other: Array) -> Array:
    """Bring a NumPy array to where ``other`` is: to the GPU, or nowhere."""
    return array if array_module(other) is np else to_gpu(array)


def synchronize() -> None:
    """Wait until the GPU has finished what was asked of it; nothing to do without one.

    A GPU call returns before the work is done. A clock read without this measures the asking.
    """
    if "cupy" in sys.modules and gpu_available():
        sys.modules["cupy"].cuda.get_current_stream().synchronize()


def release_gpu_memory() -> None:
    """Hand back what CuPy and PyTorch hold of freed GPU memory, each for its next arrays, where the
    other one cannot use it; nothing to do without a GPU.
    """
    if "cupy" in sys.modules and gpu_available():
        sys.modules["cupy"].get_default_memory_pool().free_all_blocks()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()


def tf32_allowed() -> bool:
    """True where float32 products on the GPU may use TF32, see :func:`tf32`.

    >>> tf32_allowed()
    False
    """
    if "cupy" not in sys.modules or not gpu_available():
        return False
    core = sys.modules["cupy"]._core
    return core.get_compute_type(np.float32) == core._routines_linalg.COMPUTE_TYPE_TF32


@contextlib.contextmanager
def tf32(on: bool = True) -> Iterator[None]:
    """Let float32 products on the GPU use TF32 for a block, or (``on=False``) forbid it.

    TF32 reads float32 numbers with 10 bits of their fraction instead of 23, multiplies them on the
    tensor cores and adds up in float32. A GPU from before 2020 (compute capability below 8.0), and
    a machine without one, take no notice. Outside such a block float32 means float32, unless CuPy's
    own environment variable ``CUPY_TF32=1`` says otherwise. A PyTorch that is imported already gets
    the same setting, for products and cuDNN.

    Source: NVIDIA A100 Tensor Core GPU Architecture, whitepaper, 2020.
    """
    if not gpu_available():
        yield
        return
    core = sys.modules["cupy"]._core
    types = core._routines_linalg
    before = core.get_compute_type(np.float32)
    torch = sys.modules.get("torch")
    places = [torch.backends.cuda.matmul, torch.backends.cudnn] if torch else []
    allowed = [place.allow_tf32 for place in places]
    kind = types.COMPUTE_TYPE_TF32 if on else types.COMPUTE_TYPE_DEFAULT
    try:
        core.set_compute_type(np.float32, kind)
        for place in places:
            place.allow_tf32 = on
        yield
    finally:
        core.set_compute_type(np.float32, before)
        for place, old in zip(places, allowed, strict=True):
            place.allow_tf32 = old
