"""The candidates of ``speed.py`` with values of one bit, checked against each other before."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from contests import Contest, as_numpy, check_outputs, no_gradients
from fair import clocked
from peer_pytorch import torch, torch_network
from precision_contests import FLOAT32

from fastdl_lib.binary.bits import pack, panels_of, two_rows_product, xnor_product
from fastdl_lib.binary.export_c import compile_c, export_c
from fastdl_lib.binary.inference import fold
from fastdl_lib.binary.networks import binary_mlp
from fastdl_lib.core.compiler import c_compiler
from fastdl_lib.core.datasets import mnist
from fastdl_lib.core.threads import blas_threads_now

try:
    import numkong
except ImportError:
    numkong = None

BITS, PACKED = "fastdl, bits", "fastdl, bits, packing counted"
COUNTS = "NumKong, one bit, counts only"
NUMPY_BITS, TWO_ROWS = "NumPy, bits", "NumPy, two rows in one"
TWIN, ONE_BIT, FIRST_FLOAT = "fastdl, float32 twin", "fastdl, bits", "fastdl, bits, first in float"
IN_C = "C file, an image at a time, 1 thread"
LENGTH = 4096


def signs(rows: int, length: int, seed: int) -> np.ndarray:
    """+1 and -1 by chance, (rows, length), float32."""
    return np.random.default_rng(seed).choice(np.float32([-1, 1]), (rows, length))


def multiplied(rows: int, outputs: int, length: int) -> Contest:
    """x (rows, length) times the weights w (outputs, length), both of +1 and -1.

    Weights are in each candidate's own format before the clock starts, and so are the rows of x,
    but where packing is counted.
    """
    x, w = signs(rows, length, 0), signs(outputs, length, 1)
    bits_x, bits_w = pack(x), pack(w)
    panels = panels_of(bits_w)
    columns = w.T.copy()  # no BLAS takes longer for these than for rows, and some takes less
    out, whole = np.empty((rows, outputs), np.float32), np.empty((rows, outputs), np.int32)
    runs: dict[str, Callable[[], Any]] = {
        FLOAT32: lambda: np.matmul(x, columns, out=out),
        BITS: lambda: xnor_product(bits_x, panels, length, out=whole),
        PACKED: lambda: xnor_product(pack(x), panels, length, out=whole),
        NUMPY_BITS: lambda: xnor_product(bits_x, bits_w, length, algorithm="numpy", out=whole),
        TWO_ROWS: lambda: two_rows_product(x, w),
    }
    if torch:
        products = {"float32": torch.matmul, "bfloat16": torch.matmul}
        if hasattr(torch, "_int_mm"):
            products["int8"] = torch._int_mm
        for name, product in products.items():
            pair = [torch.from_numpy(a).to(getattr(torch, name)) for a in (x, columns)]
            runs[f"PyTorch, {name}"] = no_gradients(product, *pair)
    wanted = runs[FLOAT32]().copy()
    for name, run in runs.items():
        if "bfloat16" in name:  # its results have 8 bits
            check_outputs({name: run}, wanted, "product", "16 bits")
        elif not np.array_equal(as_numpy(run()), wanted):
            raise ValueError(f"{name} does not give the same whole numbers.")
    runs |= numkong_runs(x, w, wanted)
    print(f"{rows} x {outputs} x {length}: all others give the same whole numbers")
    work = {"all": 2e-9 * rows * outputs * length}
    return Contest({name: clocked(run) for name, run in runs.items()}, work, FLOAT32)


def numkong_runs(x: np.ndarray, w: np.ndarray, wanted: np.ndarray) -> dict[str, Callable[[], Any]]:
    """NumKong's products of x and w, its weights laid out and memory for results there before the
    clock; of one bit it counts the places that differ and stops there."""
    if not numkong:
        print("NumKong is not installed (pip install -e '.[peers]'): left out.")
        return {}
    runs, threads = {}, blas_threads_now()
    for name, kind, multiply, narrow in (
        (COUNTS, "uint1", "hammings", lambda values: pack(values).view(np.uint8)),
        ("NumKong, int8", "int8", "dots", lambda values: values.astype(np.int8)),
        ("NumKong, bfloat16", "bfloat16", "dots", lambda values: values.astype(ml_dtypes.bfloat16)),
    ):
        rows, product = narrow(x), getattr(numkong, f"{multiply}_packed")
        weights = getattr(numkong, f"{multiply}_pack")(narrow(w), dtype=kind)
        out = product(rows, weights)
        found = np.asarray(out).astype(np.int32)
        if not np.array_equal(x.shape[1] - 2 * found if name == COUNTS else found, wanted):
            raise ValueError(f"{name} does not give the same whole numbers.")
        runs[name] = partial(product, rows, weights, out=out, threads=threads)
    return runs


def square(size: int) -> Contest:
    """A square product."""
    return multiplied(size, size, size)


def rows(count: int) -> Contest:
    """So many rows times the weights of a large layer."""
    return multiplied(count, LENGTH, LENGTH)


def network(batch: int) -> Contest:
    """784-3x2048-10 from the pixels to the logits: of bits, and its twin in float32."""
    images, twin, binary = mnist("test")[0][:batch], binary_mlp(binary="none"), binary_mlp()
    planes, first_float = fold(binary), fold(binary)
    planes.first_layer, first_float.first_layer = "planes", "float"
    twins: dict[str, Callable[[], Any]] = {TWIN: partial(twin.forward, images)}
    bits: dict[str, Callable[[], Any]] = {
        ONE_BIT: partial(planes.forward, images),
        FIRST_FLOAT: partial(first_float.forward, images),
    }
    if c_compiler():
        pixels = np.rint(255 * images).astype(np.uint8)
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            chip = compile_c(export_c(planes, Path(folder, "network.c")))
        bits[IN_C] = partial(chip.logits, pixels)
    halves: dict[str, Callable[[], Any]] = {}
    if torch:
        x, layout = torch.from_numpy(images), torch.contiguous_format
        twins["PyTorch, float32 twin"] = no_gradients(torch_network(twin, layout), x)
        # Pixels up to 255 are exact in bfloat16, but images of 0 to 1 are not.
        pixels_first, *rest = torch_network(twin, layout)
        model = torch.nn.Sequential(*rest).to(torch.bfloat16)
        halves["PyTorch, bfloat16 twin"] = no_gradients(
            lambda: model(pixels_first(x).to(torch.bfloat16))
        )
    wanted = binary.forward(images)
    for name, run in bits.items():
        if not np.array_equal(run(), wanted):
            raise ValueError(f"{name} does not give the binary network's logits, bit for bit.")
    print(f"one bit: {len(bits)} ways, the same logits, bit for bit")
    exact = binary_mlp(binary="none").astype(np.float64).forward(images.astype(np.float64))
    check_outputs(twins, exact, "twins")
    for name, run in halves.items():
        check_outputs({name: run}, exact, "twin", "8 bits")
    runs = twins | bits | halves
    return Contest({name: clocked(run) for name, run in runs.items()}, {"all": batch}, TWIN)
