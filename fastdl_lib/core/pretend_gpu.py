"""A strict stand-in for CuPy, over NumPy: code tried "as if on a GPU" on any machine.

Its arrays refuse what CuPy's refuse, in CuPy's words: they never become NumPy arrays by themselves
and never meet one in an operation. In one point it is stricter: CuPy passes ``np.exp(x)`` on where
it has a function of that name, the stand-in asks for ``xp.exp(x)``. Kernels of our own run as well:
their very text goes through this machine's C compiler. What it cannot show is speed.

What works here and not on a GPU is a hole in the tests; those marked ``gpu`` run the real one.
"""

import contextlib
import ctypes
import functools
import operator
import re
import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from fastdl_lib.core.arrays import gpu_status
from fastdl_lib.core.compiler import compile_library

# How often arrays crossed the bus, single numbers were fetched, and the GPU was waited for.
_counts: dict[str, int] = {}


@contextlib.contextmanager
def pretend_gpu() -> Iterator[ModuleType]:
    """Put the stand-in in the place of CuPy for a block, and yield it.

    Inside, ``gpu_available()`` is True, ``to_gpu()`` makes arrays of the stand-in, ``import cupy``
    finds it, and everything runs on the CPU. Afterwards all is as before, a real CuPy included;
    bring results back with ``to_cpu()`` before the block ends. The module's ``counts`` say how
    often arrays were copied ``to_gpu`` and ``to_cpu``, single ``numbers`` fetched (``float(x)``),
    and the GPU waited for (``synchronize``).

    >>> from fastdl_lib.core.arrays import array_module, to_cpu, to_gpu
    >>> with pretend_gpu() as cupy:
    ...     x = to_gpu(np.ones((2, 3), np.float32))
    ...     doubled = to_cpu(2 * x)
    ...     counts = cupy.counts
    >>> doubled.shape, counts
    ((2, 3), {'to_gpu': 1, 'to_cpu': 1, 'numbers': 0, 'synchronize': 0})
    """
    global _counts
    before, counts_before = sys.modules.get("cupy"), _counts
    gpu_status.cache_clear()
    _counts = dict.fromkeys(("to_gpu", "to_cpu", "numbers", "synchronize"), 0)
    sys.modules["cupy"] = _stand_in
    try:
        gpu_status()  # its proof is no transfer of the caller's
        _counts.update(dict.fromkeys(_counts, 0))
        _stand_in.counts = _counts
        yield _stand_in
    finally:
        if before is None:
            sys.modules.pop("cupy", None)
        else:
            sys.modules["cupy"] = before
        _counts = _stand_in.counts = counts_before
        gpu_status.cache_clear()


def _raw(value: Any) -> Any:
    """The NumPy array inside ours, and plain numbers as they are."""
    if isinstance(value, ndarray):
        return value._array
    if isinstance(value, tuple):
        return tuple(_raw(part) for part in value)
    if isinstance(value, (np.ndarray, list)):
        raise TypeError(f"Unsupported type {type(value)}")
    return value


def _wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments, **options):
        raw_options = {name: _raw(value) for name, value in options.items()}
        result = function(*(_raw(value) for value in arguments), **raw_options)
        for given in (*arguments, *options.values()):
            if isinstance(given, ndarray) and result is given._array:
                return given  # worked in place
        if isinstance(result, tuple):
            return tuple(ndarray(part) for part in result)
        return ndarray(result) if isinstance(result, (np.ndarray, np.generic)) else result

    return call


def _joining(function: Callable[..., Any]) -> Callable[..., Any]:
    """Such as concatenate: the first argument is a list of arrays."""
    return lambda arrays, *rest, **options: _wrapped(function)(tuple(arrays), *rest, **options)


def _matmul(a: Any, b: Any, out: Any = None) -> Any:
    """Products of float16 add up in float32 and are rounded once, as cuBLAS does it for CuPy."""
    if a.dtype != np.float16 or b.dtype != np.float16:
        return np.matmul(a, b, out=out)
    product = np.matmul(a.astype(np.float32), b.astype(np.float32))
    if out is None:
        return product.astype(np.float16)
    out[...] = product
    return out


def _fetching(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(self, *arguments):
        _counts["numbers"] += 1
        return function(self._array, *arguments)

    return call


class ndarray:  # CuPy's name
    __hash__ = None

    def __init__(self, array):
        # Like CuPy's sums, NumPy's scalars become arrays without axes.
        self._array = np.asarray(array)

    def __array__(self, *_, **__):
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()` to construct a NumPy array explicitly."
        )

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        if method == "__call__" and any(isinstance(value, np.generic) for value in inputs):
            return _wrapped(ufunc)(*inputs, **options)  # a number of NumPy's is no array
        _refuse(ufunc, (*inputs, *options.get("out", ())))

    def __array_function__(self, function, types, arguments, options):
        _refuse(function, arguments)

    def __dlpack__(self, **options):
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()

    def get(self):
        _counts["to_cpu"] += 1
        return self._array.copy()

    def __repr__(self):
        return repr(self.get())

    def __str__(self):
        return str(self.get())

    def __getitem__(self, key):
        return ndarray(self._array[_raw(key)])

    def __setitem__(self, key, value):
        self._array[_raw(key)] = _raw(value)

    def __iter__(self):
        return (ndarray(part) for part in self._array)

    def __len__(self):
        return len(self._array)


def _refuse(function, arguments):
    """NumPy's function was called with an array of ours."""
    for value in arguments:
        _raw(value)  # refuses NumPy's arrays
    raise TypeError(
        f"Unsupported type: np.{function.__name__}() got an array on the GPU. CuPy passes some of "
        f"NumPy's functions on and this stand-in none: use xp.{function.__name__}() with xp = "
        "array_module(x)."
    )


ndarray.__module__ = "cupy"
for _name in ("shape", "dtype", "ndim", "size", "nbytes", "itemsize", "strides", "flags"):
    setattr(ndarray, _name, property(operator.attrgetter(f"_array.{_name}")))
ndarray.T = property(lambda self: ndarray(self._array.T))
ndarray.__matmul__ = _wrapped(_matmul)  # no __imatmul__, as CuPy
ndarray.__rmatmul__ = lambda self, other: _wrapped(_matmul)(other, self)
_METHODS = (
    "astype view reshape ravel transpose swapaxes squeeze copy sum prod max min mean std var "
    "argmax argmin any all cumsum clip dot fill __neg__ __invert__ __abs__"
)
_BINARY = "add sub mul truediv floordiv mod pow and or xor lshift rshift lt le gt ge eq ne"
for _name in _METHODS.split():
    setattr(ndarray, _name, _wrapped(getattr(np.ndarray, _name)))
for _name in ("item", "tolist", "__int__", "__float__", "__bool__"):
    setattr(ndarray, _name, _fetching(getattr(np.ndarray, _name)))
for _name in _BINARY.split():
    for _special in (f"__{_name}__", f"__r{_name}__", f"__i{_name}__"):
        if hasattr(np.ndarray, _special):
            setattr(ndarray, _special, _wrapped(getattr(np.ndarray, _special)))


def _asarray(array: Any, dtype: Any = None) -> ndarray:
    """The one way in."""
    if isinstance(array, ndarray):
        return array if dtype is None else array.astype(dtype, copy=False)
    _counts["to_gpu"] += 1
    return ndarray(np.array(array, dtype, order="C"))


def _waited() -> None:
    _counts["synchronize"] += 1


class _Generator:
    def __init__(self, seed):
        self._generator = np.random.default_rng(seed)

    def random(self, size=None, dtype=np.float64):
        return ndarray(self._generator.random(size, dtype=dtype))


_C_LOOP = """
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#define __popcll __builtin_popcountll
/* As in CUDA: of a number and what is none, the number. */
#define fastdl_pick(a, b, sign) \\
    ({{ __auto_type a_ = (a); __typeof__(a_ + (b)) b_ = (b); a_ sign b_ || b_ != b_ ? a_ : b_; }})
#define max(a, b) fastdl_pick(a, b, >)
#define min(a, b) fastdl_pick(a, b, <)
typedef _Float16 float16;
typedef float float32;
typedef double float64;
typedef int8_t int8; typedef int16_t int16; typedef int32_t int32; typedef int64_t int64;
typedef uint8_t uint8; typedef uint16_t uint16; typedef uint32_t uint32; typedef uint64_t uint64;
typedef {T} T;
{entries}
void run({arrays}, ptrdiff_t size) {{
    for (ptrdiff_t i = 0; i < size; ++i) {{ {operation}; }}
}}
"""


class _ElementwiseKernel:
    """CuPy's, for what the course needs: arrays and numbers in, one array out, made if not given.
    The code indexes a raw array itself and sees one entry of another; T is any dtype, the same
    wherever it stands, other types have their names.

    It runs twice, with other values around the arrays and in the output beforehand: where the two
    results differ, it has used what is not its own (up to a MiB away), which a GPU may answer with
    anything.
    """

    def __init__(self, in_params, out_params, operation, name):
        if not name.isidentifier():
            raise ValueError(f"a kernel's name must be one of C's, such as 'scaled', got {name!r}.")
        both = f"{in_params},{out_params}".split(",")
        self._parameters = [tuple(one.split()) for one in both]
        self._operation, self.name = operation, name
        for words in self._parameters:
            if len(words) - (words[:1] == ("raw",)) != 2 or words[-2] not in _KERNEL_TYPES:
                raise TypeError(
                    f"'{name}': a parameter is written as in 'float32 x' or 'raw T x', got "
                    f"{' '.join(words)!r}; the stand-in knows the types {', '.join(_KERNEL_TYPES)}."
                )

    def __call__(self, *given):
        parameters = self._parameters
        given = [value if isinstance(value, ndarray) else _raw(value) for value in given]
        if not 0 <= len(parameters) - len(given) <= 1:
            raise TypeError(f"Wrong number of arguments for '{self.name}'")
        pairs = zip(parameters, given, strict=False)
        arrays = [(words, value) for words, value in pairs if isinstance(value, ndarray)]
        dtypes = {words[-2]: value.dtype for words, value in arrays if words[-2] == "T"}
        if len(given) < len(parameters):
            shapes = [value.shape for words, value in arrays if words[0] != "raw"]
            if not shapes:
                raise ValueError("Loop size is undecided.")
            kind, shape = parameters[-1][0], np.broadcast_shapes(*shapes)
            given.append(ndarray(np.empty(shape, dtypes.get(kind, kind))))
        out = given[-1]
        texts, entries, pointed = [], [], []
        for (*raw, kind, name), value in zip(parameters, given, strict=True):
            wanted = np.dtype(dtypes.get(kind, kind))
            if np.isscalar(value) and not raw:
                value = ndarray(np.full(out.shape, value, wanted))
            if not isinstance(value, ndarray) or value.dtype != wanted:
                raise TypeError(f"Type is mismatched. {name}: {value!r}, not {wanted}")
            if raw and not value.flags.c_contiguous:
                raise TypeError(f"The stand-in takes contiguous arrays only; {name} is not.")
            texts.append(f"const {kind} *{'' if raw else 'fastdl_'}{name}")
            entries += [] if raw else [f"#define {name} fastdl_{name}[i]"]
            pointed.append(value._array if raw else np.broadcast_to(value._array, out.shape))
        texts[-1] = texts[-1].removeprefix("const ")
        code = {"T": dtypes.get("T", "float32"), "arrays": ", ".join(texts)}
        code |= {"entries": "\n".join(entries), "operation": self._operation}
        run = _compiled(_C_LOOP.format(**code), self.name)
        first, second = (self._run_among(filling, run, pointed) for filling in (0x55, 0xAA))
        if first.tobytes() != second.tobytes():
            raise IndexError(
                f"'{self.name}' depends on what is not its own: an index beyond an array, or an "
                "entry of the output that it reads or never sets."
            )
        out._array[...] = first
        return out

    def _run_among(self, filling, run, arrays):
        """The output of one run, with that byte in it beforehand and on either side of each
        array."""
        wholes = [np.full(array.nbytes + 2 * _AROUND, filling, np.uint8) for array in arrays]
        insides = [
            whole[_AROUND : _AROUND + array.nbytes].view(array.dtype).reshape(array.shape)
            for whole, array in zip(wholes, arrays, strict=True)
        ]
        for inside, array in zip(insides[:-1], arrays, strict=False):
            inside[...] = array
        pointers = [ctypes.c_void_p(inside.ctypes.data) for inside in insides]
        run(*pointers, ctypes.c_ssize_t(insides[-1].size))
        around = (part for whole in wholes for part in (whole[:_AROUND], whole[-_AROUND:]))
        if any((part != filling).any() for part in around):
            raise IndexError(f"'{self.name}' writes beyond an array.")
        return insides[-1]


# Bytes on either side of an array.
_AROUND = 2**20
_KERNEL_TYPES = ("T", *re.findall(r"typedef \w+ (\w+);", _C_LOOP))


@functools.cache
def _compiled(code: str, name: str) -> Callable[..., None]:
    run = compile_library(code, name=name).functions.run
    run.restype = None
    return run


_FUNCTIONS = """
    empty empty_like zeros zeros_like ones ones_like full full_like arange linspace eye
    ascontiguousarray copyto broadcast_to reshape transpose moveaxis swapaxes expand_dims squeeze
    ravel pad roll flip where take_along_axis sort argsort nonzero clip round
    add subtract multiply divide true_divide power mod negative maximum minimum dot
    tensordot einsum outer abs absolute sign square sqrt exp expm1 log log2 log10 log1p sin cos tanh
    floor ceil rint isfinite isnan isinf equal not_equal greater greater_equal less less_equal
    logical_and logical_or logical_not sum prod mean std var max min amax amin argmax argmin any all
    count_nonzero cumsum bincount
"""
_DTYPES = "float16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool_"

_compute_types = {np.dtype(kind): 1 for kind in (np.float16, np.float32, np.float64)}

_stand_in = ModuleType("cupy", "The stand-in of fastdl_lib.core.pretend_gpu.")
vars(_stand_in).update(
    {name: _wrapped(getattr(np, name)) for name in _FUNCTIONS.split()}
    | {name: _joining(getattr(np, name)) for name in ("concatenate", "stack", "vstack", "hstack")}
    | {name: getattr(np, name) for name in ("pi", "e", "inf", "nan", "newaxis", *_DTYPES.split())},
    __version__="14.0.0 (stand-in)",
    counts=_counts,
    ndarray=ndarray,
    matmul=_wrapped(_matmul),
    # CuPy's know no axis.
    packbits=lambda bits, *, bitorder: _wrapped(np.packbits)(bits, bitorder=bitorder),
    unpackbits=lambda packed, *, bitorder: _wrapped(np.unpackbits)(packed, bitorder=bitorder),
    asarray=_asarray,
    array=lambda array, dtype=None: _asarray(array, dtype).copy(),
    asnumpy=lambda array: array.get() if isinstance(array, ndarray) else np.asarray(array),
    ElementwiseKernel=_ElementwiseKernel,
    random=SimpleNamespace(default_rng=_Generator),
    get_default_memory_pool=lambda: SimpleNamespace(free_all_blocks=lambda: None),
    from_dlpack=lambda tensor: ndarray(np.from_dlpack(tensor)),
    _core=SimpleNamespace(
        get_compute_type=lambda dtype: _compute_types[np.dtype(dtype)],
        set_compute_type=lambda dtype, kind: _compute_types.update({np.dtype(dtype): kind}),
        _routines_linalg=SimpleNamespace(COMPUTE_TYPE_DEFAULT=1, COMPUTE_TYPE_TF32=7),
    ),
    cuda=SimpleNamespace(
        is_available=lambda: True,
        Device=lambda number: SimpleNamespace(use=lambda: None),
        runtime=SimpleNamespace(
            getDeviceCount=lambda: 1,
            getDeviceProperties=lambda device: {"name": b"Stand-in GPU"},
            runtimeGetVersion=lambda: 13010,
            driverGetVersion=lambda: 13020,
        ),
        get_current_stream=lambda: SimpleNamespace(synchronize=_waited),
    ),
)
