"""The candidates of ``speed.py`` that differ in their number formats, checked before any clock."""

from collections.abc import Callable
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
from contests import OURS, Contest, check_outputs, no_gradients
from fair import clocked
from peer_pytorch import int8_layer, torch, torch_layer

from fastdl_lib.nn.zoo import alexnet
from fastdl_lib.precision.formats import FORMATS
from fastdl_lib.precision.stored import StoredLinear

FLOAT32, FLOAT16 = "NumPy, float32", "NumPy, to float16"


def stored_as(name: str) -> str:
    """The candidate that multiplies from weights in that format."""
    return f"fastdl, stored in {name}"


STORED = ("float32", "bfloat16", "float16", "float8_e4m3", "int8", "int8 per channel")
# Of the largest output. Random weights: what is rounded away adds up as a random walk.
_ERRORS = {"float32": "float32", "float8_e4m3": "8 bits", "int8": "8 bits"}


def stored(batch: int) -> Contest:
    """AlexNet's first fully connected layer, 9216 to 4096, its weights in several formats."""
    layer = alexnet().layers["fc6"]
    weight, bias = layer.parameters["weight"], layer.parameters["bias"]
    x = np.random.default_rng(0).standard_normal((batch, layer.in_features), dtype=np.float32)
    wanted = x.astype(np.float64) @ weight.astype(np.float64).T
    out = np.empty((batch, layer.out_features), np.float32)

    def numpy_product() -> np.ndarray:
        np.matmul(x, weight.T, out=out)
        return np.add(out, bias, out=out)

    runs: dict[str, Callable[[], Any]] = {FLOAT32: numpy_product}
    precisions = {FLOAT32: "float32"}
    for name in STORED:
        runs[stored_as(name)] = partial(StoredLinear(layer, FORMATS[name]).forward, x)
        precisions[stored_as(name)] = _ERRORS.get(name.split()[0], "16 bits")
    if torch:
        images = torch.from_numpy(x)
        runs["PyTorch, float32"] = no_gradients(torch_layer(layer), images)
        half = torch_layer(layer).to(torch.bfloat16)
        runs["PyTorch, bfloat16"] = no_gradients(half, images.to(torch.bfloat16))
        runs["PyTorch, int8, dynamic"] = no_gradients(int8_layer(layer), images)
        for name, precision in zip(list(runs)[-3:], ("float32", "16 bits", "8 bits"), strict=True):
            precisions[name] = precision
    for name, run in runs.items():
        check_outputs({name: run}, wanted, f"fc6, batch {batch}", precisions[name])
    return Contest({name: clocked(run) for name, run in runs.items()}, {"all": batch}, FLOAT32)


def product(size: int) -> Contest:
    """A square product in NumPy, by dtype; float16 also through float32 and back."""
    a, b = np.random.default_rng(0).standard_normal((2, size, size))
    wanted = a @ b
    runs = {}
    for dtype in ("float32", "float64", "float16"):
        factors = a.astype(dtype), b.astype(dtype)
        runs[f"NumPy, {dtype}"] = partial(np.matmul, *factors, out=np.empty_like(factors[0]))

    def widened() -> np.ndarray:
        return (factors[0].astype(np.float32) @ factors[1].astype(np.float32)).astype(np.float16)

    runs["NumPy, float16 through float32"] = widened
    if torch:
        for name in ("float32", "bfloat16", "float16"):
            dtype = getattr(torch, name)
            pair = torch.from_numpy(a).to(dtype), torch.from_numpy(b).to(dtype)
            runs[f"PyTorch, {name}"] = no_gradients(torch.matmul, *pair)
    for name, run in runs.items():
        precision = "16 bits" if "16" in name else name.split(", ")[1]
        check_outputs({name: run}, wanted, f"product of {size}", precision)
    work = {"all": 2e-9 * size**3}
    return Contest({name: clocked(run) for name, run in runs.items()}, work, FLOAT32)


def cast(millions: int) -> Contest:
    """float32 rounded to narrower formats, and their bits stored."""
    x = np.random.default_rng(0).standard_normal(millions * 10**6, dtype=np.float32)

    def into(dtype: Any) -> Callable[[], np.ndarray]:
        """NumPy's cast into an array that is there already."""
        out = np.empty(x.shape, dtype)

        def run() -> np.ndarray:
            np.copyto(out, x, casting="same_kind")
            return out

        return run

    def codes(name: str) -> Callable[[], np.ndarray]:
        return lambda: FORMATS[name].store(x).codes

    runs = {
        OURS: codes("bfloat16"),
        "fastdl, to float16": codes("float16"),
        "fastdl, to float8_e4m3": codes("float8_e4m3"),
        FLOAT16: into(np.float16),
        "ml_dtypes, to bfloat16": lambda: x.astype(ml_dtypes.bfloat16),
        "ml_dtypes, to float8_e4m3": lambda: x.astype(ml_dtypes.float8_e4m3fn),
    }
    same = {
        OURS: "ml_dtypes, to bfloat16",
        "fastdl, to float16": FLOAT16,
        "fastdl, to float8_e4m3": "ml_dtypes, to float8_e4m3",
    }
    for name, other in same.items():
        ours, theirs = runs[name](), runs[other]()
        if not np.array_equal(ours, theirs.view(ours.dtype)):
            raise ValueError(f"{name} and {other} are not the same bits.")
    if torch:
        values = torch.from_numpy(x)
        for name in ("bfloat16", "float16"):
            out = torch.empty(x.shape, dtype=getattr(torch, name))
            runs[f"PyTorch, to {name}"] = partial(out.copy_, values)
            runs[f"PyTorch, to {name}"]()
            wanted = runs[OURS if name == "bfloat16" else "fastdl, to float16"]()
            if not np.array_equal(out.view(torch.int16).numpy().view(np.uint16), wanted):
                raise ValueError(f"PyTorch's {name} is not the same bits.")
    print(f"casts of {millions} million values: the same bits, format by format")
    work = {"all": 1e-3 * millions}
    return Contest({name: clocked(run) for name, run in runs.items()}, work)


def add(millions: int) -> Contest:
    """x + y over large arrays, in NumPy, by dtype: little arithmetic, many bytes."""
    x, y = np.random.default_rng(0).standard_normal((2, millions * 10**6), dtype=np.float32)
    runs = {}
    for dtype in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16):
        terms = x.astype(dtype), y.astype(dtype)
        runs[f"NumPy, {np.dtype(dtype)}"] = partial(np.add, *terms, out=np.empty_like(terms[0]))
    if torch:
        for name in ("float32", "bfloat16", "float16"):
            pair = [torch.from_numpy(term).to(getattr(torch, name)) for term in (x, y)]
            out = torch.empty_like(pair[0])
            runs[f"PyTorch, {name}"] = no_gradients(partial(torch.add, *pair, out=out))
    for name, run in runs.items():
        precision = "16 bits" if "16" in name else "float32"
        check_outputs({name: run}, x + y, f"sum of {millions} million values", precision)
    work = {"all": 1e-3 * millions}
    return Contest({name: clocked(run) for name, run in runs.items()}, work, FLOAT32)
