"""Every compiled loop between guard zones, so that one index too many is seen."""

import ast
import importlib
import re
import types
from pathlib import Path

import numpy as np
import pytest
from helpers import whole_vectors
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from fastdl_lib import kernels
from fastdl_lib.convolution.geometry import Geometry
from fastdl_lib.convolution.winograd import transform_matrices
from fastdl_lib.kernels import bits, direct, linear, pixels, pooling, rounding, updates, vectors
from fastdl_lib.kernels import winograd as tiled

needs_tiles = pytest.mark.skipif(not vectors.lanes(), reason="no tile is written for this CPU")
ZONE = 2**13


class Guarded:
    """Makes float32 arrays of small whole numbers between zones of other numbers."""

    def __init__(self, zones):
        self.zones, self.pairs = zones, []

    def __call__(self, shape, dtype=np.float32):
        number = len(self.pairs)
        whole = np.random.default_rng((self.zones, number)).uniform(
            -1000, 1000, int(np.prod(shape)) + 2 * ZONE
        )
        whole = whole.astype(np.int64).astype(dtype)
        self.pairs.append((whole, whole.copy()))
        inside = whole[ZONE:-ZONE].reshape(shape)
        inside[:] = np.random.default_rng(number).integers(-2, 3, shape)
        return inside

    def like(self, array):
        inside = self(array.shape, array.dtype)
        inside[:] = array
        return inside


def run_between_zones(run, *given):
    """The zones stay as they are, and nothing in them changes a result."""
    found = []
    for zones in (0, 1):
        guarded = Guarded(zones)
        found.append([result.copy() for result in run(guarded, *given)])
        for whole, before in guarded.pairs:
            for zone in (slice(ZONE), slice(-ZONE, None)):
                np.testing.assert_array_equal(whole[zone], before[zone])
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def run_pixels(guarded, shape, kernel=2, stride=1, size=3):
    batch, channels, height, width = shape
    window = [(edge - kernel) // stride + 1 for edge in (height, width)]
    x, grad_x = (guarded((batch, height, width, channels)) for _ in range(2))
    out, grad_out = (guarded((batch, *window, channels)) for _ in range(2))
    pooling.largest(x, out, kernel, stride)
    pooling.largest_back(x, out, grad_out, grad_x, kernel, stride)
    yield from (out, grad_x)
    rows, grad_rows = (a.reshape(-1, channels) for a in (x, grad_x))
    normal, constants = guarded(rows.shape), np.float32([1e-4, 2, 1.5e-4])
    pixels.response_norm(size)(rows, normal, *constants[:2])
    pixels.response_norm_back(size)(rows, normal, grad_rows, *constants)
    sums = guarded((channels,), np.float64)
    pixels.channel_sums()(rows, sums)
    yield from (normal, grad_rows, sums)
    pixels.where_positive()(rows.reshape(-1), normal.reshape(-1), grad_rows.reshape(-1))
    yield grad_rows
    x[:, 1:] = 0
    limits = np.int32([2**23, 254 * 2**23])
    rounding.to_nearest()(x.reshape(-1), grad_x.reshape(-1), 3, *limits, *np.float32([99, np.inf]))
    yield grad_x
    pixels.pixels_unseen()(x, out, guarded((1, channels)), kernel, kernel, stride, 1)
    yield out


def run_updates(guarded, count):
    for dtype in (np.float32, np.float64):
        arrays = [guarded((count,), dtype) for _ in range(4)]
        np.abs(arrays[3], out=arrays[3])
        updates.momentum()(*arrays[:3], *map(dtype, (0.5, 0.5, 0.5)))
        updates.adam()(*arrays, *map(dtype, (0.5,) * 7))
        yield from arrays


def run_linear(guarded, images, length, rows):
    x, weight, grads = map(guarded, ((images, length), (rows, length), (images, rows)))

    def products():
        with pytest.MonkeyPatch().context() as patch:
            patch.setattr(vectors, "cache_bytes", lambda: 0)
            for small in (2**20, 0):  # dots, then columns where the images are enough
                patch.setattr(linear, "CACHE_BYTES", small)
                out = linear.product(x, weight)
                if out is not None:
                    np.testing.assert_array_equal(
                        out, x @ weight.T
                    )  # whole numbers' sums are exact
                    yield out
            out = linear.gradient_by_weight(grads, x, weight)
            if out is not None:
                np.testing.assert_array_equal(out, grads.T @ x)
                yield out

    yield from with_own_arrays(guarded, (linear,), products)


def run_tiles(guarded, geometry):
    batch, channels, height, width = geometry.x_shape
    p, groups = geometry.padding, geometry.groups
    x = guarded((batch, height, width, channels))
    weight = guarded((groups, *geometry.kernel, geometry.group_channels, geometry.group_filters))
    bias = guarded((geometry.weight_shape[0],))
    out = guarded((batch, geometry.out_h, geometry.out_w, len(bias)))
    filters = guarded((3, 3, groups, geometry.group_channels, geometry.group_filters))
    transforms = [transform_matrices(3, 3)] * 2

    def tiles():
        direct.convolve(x, weight, bias, out, geometry.stride, p)
        yield out
        yield direct.gradient_by_weight(out, x, geometry.kernel, groups, geometry.stride, p)
        tiled.convolve(x, filters, bias, out, transforms, p)
        yield out
        yield tiled.gradient_by_filters(out, x, groups, transforms, p)

    yield from with_own_arrays(guarded, (direct, tiled), tiles)


def run_bits(guarded, count=2, columns=33, words=1):
    a, panels = guarded((count, words), np.uint64), guarded((columns * words,), np.uint64)
    out = guarded((count, columns), np.int32)

    def products():
        bits.product(a, panels, 32, 64 * words, out)
        yield out

    yield from with_own_arrays(guarded, (bits,), products)


def with_own_arrays(guarded, modules, run):
    """The arrays that these modules make stand between zones as well."""
    list(run())  # compiled, before they do
    own = {
        "empty": guarded, "zeros": lambda *how: guarded.like(np.zeros(*how)),
        "ascontiguousarray": guarded.like, "empty_like": guarded.like,
    }  # fmt: skip
    with pytest.MonkeyPatch().context() as patch:
        for module in modules:
            patch.setattr(module, "np", types.SimpleNamespace(**vars(np) | own))
        yield from run()


@seed(0)
@given(
    st.tuples(*[st.integers(*ends) for ends in ((1, 2), (1, 40), (4, 12), (4, 12))]),
    st.integers(1, 3), st.integers(1, 3), st.sampled_from([1, 3, 5]),
)  # fmt: skip
def test_no_loop_touches_memory_outside_its_arrays(shape, kernel, stride, size):
    run_between_zones(run_pixels, shape, kernel, stride, size)


@needs_tiles
@seed(0)
@settings(max_examples=12)
@given(whole_vectors())
def test_no_tile_touches_memory_outside_its_arrays(geometry):
    run_between_zones(run_tiles, geometry)


@needs_tiles
@seed(0)
@settings(max_examples=40)
@given(st.integers(1, 24), st.integers(1, 100), st.integers(1, 9))
def test_no_product_of_bits_touches_memory_outside_its_arrays(count, columns, words):
    run_between_zones(run_bits, count, columns, words)


@pytest.mark.parametrize("count", [1, 15, 33, 100])
def test_no_update_touches_memory_outside_its_arrays(count):
    run_between_zones(run_updates, count)


@needs_tiles
@seed(0)
@settings(max_examples=25)
@given(
    st.integers(1, 40),
    st.integers(1, 130) | st.integers(1, 9).map(lambda vectors: 16 * vectors),
    st.integers(1, 40),
)
def test_no_product_of_few_rows_touches_memory_outside_its_arrays(images, length, rows):
    run_between_zones(run_linear, images, length, rows)


@needs_tiles
def test_every_compiled_loop_runs_here(monkeypatch):
    """Found in the text of kernels/: what is compiled, or returns something compiled."""
    loops, seen = set(), set()

    def watched(name, function):
        return lambda *given: seen.add(name) or function(*given)

    for path in Path(kernels.__path__[0]).glob("[!_]*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if re.search(r"\bcompiled\(|@compiled\b|\bn?jit\b|vectorize\b", ast.unparse(node)):
                loops.add(f"{path.stem}.{getattr(node, 'name', None) or ast.unparse(node)}")
    # What compiles; the tiles run in the loops that call them.
    tiles = {f"vectors.{name}" for name in ("product_tile", "matrix_on_vectors", "dot_tile")}
    loops -= tiles | {"vectors.Writer", "bits.tile", "compiled.compiled"}
    for name in loops:
        file, _, function = name.partition(".")
        module = importlib.import_module(f"{kernels.__name__}.{file}")
        monkeypatch.setattr(module, function, watched(name, getattr(module, function)))
    list(run_pixels(Guarded(0), (1, 3, 4, 4)))
    list(run_bits(Guarded(0)))
    list(run_updates(Guarded(0), 5))
    list(run_linear(Guarded(0), 20, 32, 3))
    list(run_tiles(Guarded(0), Geometry((1, 16, 5, 5), (16, 16, 3, 3), padding=1)))
    assert seen == loops, "run it in run_pixels(), run_updates(), run_linear() or run_tiles()"
