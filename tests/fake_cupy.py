"""A strict stand-in for CuPy, over NumPy: it refuses what CuPy refuses.

An array of it never becomes a NumPy array by itself, and never meets one in an operation. What
works here and not on a GPU is a hole in the tests; ``@pytest.mark.gpu`` tests run the real one.
"""

import operator
from types import SimpleNamespace

import numpy as np

__version__ = "14.0.0 (stand-in)"
float32, float64 = np.float32, np.float64
# How often something crossed the bus or was waited for.
counts = {"to_gpu": 0, "to_cpu": 0, "synchronize": 0}


def _raw(value):
    """The NumPy array inside ours, and plain numbers as they are."""
    if isinstance(value, ndarray):
        return value._array
    if isinstance(value, tuple):
        return tuple(_raw(part) for part in value)
    if isinstance(value, (np.ndarray, list)):
        raise TypeError(f"Unsupported type {type(value)}")
    return value


def _wrapped(function):
    def call(*arguments, **options):
        options = {name: _raw(value) for name, value in options.items()}
        result = function(*(_raw(value) for value in arguments), **options)
        return ndarray(result) if isinstance(result, (np.ndarray, np.generic)) else result

    return call


class ndarray:  # CuPy's name
    def __init__(self, array):
        # Like CuPy's sums, NumPy's scalars become arrays without axes.
        self._array = np.asarray(array)

    def __array__(self, *_, **__):
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()` to construct a NumPy array explicitly."
        )

    def __array_ufunc__(self, *_, **__):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")

    def __array_function__(self, *_, **__):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")

    def get(self):
        counts["to_cpu"] += 1
        return self._array.copy()

    def __getitem__(self, key):
        return ndarray(self._array[_raw(key)])

    def __setitem__(self, key, value):
        self._array[_raw(key)] = _raw(value)

    def __iter__(self):
        return (ndarray(part) for part in self._array)

    def __len__(self):
        return len(self._array)


ndarray.__module__ = "cupy"
for _name in ("shape", "dtype", "ndim", "size", "nbytes"):
    setattr(ndarray, _name, property(operator.attrgetter(f"_array.{_name}")))
ndarray.T = property(lambda self: ndarray(self._array.T))
_METHODS = "astype reshape transpose sum max min mean copy tolist __int__ __float__ __bool__"
_BINARY = "add sub mul truediv pow matmul and or xor lt le gt ge eq ne"
for _name in [*_METHODS.split(), "__neg__", "__invert__"]:
    setattr(ndarray, _name, _wrapped(getattr(np.ndarray, _name)))
for _name in _BINARY.split():
    for _special in (f"__{_name}__", f"__r{_name}__"):
        if hasattr(np.ndarray, _special):
            setattr(ndarray, _special, _wrapped(getattr(np.ndarray, _special)))


def _in_place(name):
    inner = getattr(np.ndarray, name)

    def change(self, other):
        inner(self._array, _raw(other))
        return self

    return change


for _name in _BINARY.split():
    if hasattr(np.ndarray, f"__i{_name}__"):
        setattr(ndarray, f"__i{_name}__", _in_place(f"__i{_name}__"))

_FUNCTIONS = (
    "empty empty_like zeros zeros_like ones ones_like arange ascontiguousarray pad "
    "maximum multiply divide subtract matmul sqrt exp log"
)
for _name in _FUNCTIONS.split():
    globals()[_name] = _wrapped(getattr(np, _name))


def asarray(array):
    """The one way in."""
    if isinstance(array, ndarray):
        return array
    counts["to_gpu"] += 1
    return ndarray(np.array(array))


class _Generator:
    def __init__(self, seed):
        self._generator = np.random.default_rng(seed)

    def random(self, shape, dtype):
        return ndarray(self._generator.random(shape, dtype=dtype))


def _synchronize():
    counts["synchronize"] += 1


random = SimpleNamespace(default_rng=_Generator)
cuda = SimpleNamespace(
    is_available=lambda: True,
    runtime=SimpleNamespace(
        getDeviceProperties=lambda device: {"name": b"Stand-in GPU"},
        runtimeGetVersion=lambda: 13010,
        driverGetVersion=lambda: 13020,
    ),
    get_current_stream=lambda: SimpleNamespace(synchronize=_synchronize),
)
