"""The compiled loops, beside NumPy's version of the same layer."""

import subprocess
import sys

import numpy as np
import pytest

from fastdl_lib.kernels import pixels
from fastdl_lib.kernels.compiled import can_compile, compiled
from fastdl_lib.nn import layers, norms
from fastdl_lib.nn.layers import MaxPool2d
from fastdl_lib.nn.norms import LocalResponseNorm

needs_compiler = pytest.mark.skipif(not can_compile(), reason="nothing is compiled here")


def passes(layer, x, grad_out, compiled, monkeypatch):
    """Output and gradient, by the loops or by NumPy."""
    with monkeypatch.context() as patch:
        if not compiled:
            for module in (layers, norms):
                patch.setattr(module, "suits", lambda *arrays: False)
        out = layer.forward(x, training=True)
        return out, layer.backward(np.broadcast_to(grad_out, out.shape).copy())


def images(shape, seed=0):
    """Channels last in memory, with ties, zeros of both signs and large values."""
    batch, channels, height, width = shape
    rng = np.random.default_rng(seed)
    x = rng.integers(-3, 4, (batch, height, width, channels)).astype(np.float32)
    x *= rng.choice(np.float32([0.1, 1, 30]), x.shape)
    return x.transpose(0, 3, 1, 2)


@pytest.mark.parametrize("channels", [1, 3, 16, 37])
@pytest.mark.parametrize("size", [1, 3, 5, 9])
def test_response_norm(channels, size, monkeypatch):
    layer, x = LocalResponseNorm(size, alpha=0.01), images((2, channels, 3, 5))
    grad_out = images(x.shape, seed=1)
    (out, grad), (want, want_grad) = (
        passes(layer, x, grad_out, way, monkeypatch) for way in (True, False)
    )
    np.testing.assert_allclose(out, want, rtol=1e-6)
    np.testing.assert_allclose(grad, want_grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel, stride", [(1, 1), (2, 2), (3, 2), (3, 1), (2, 3)])
@pytest.mark.parametrize("channels", [1, 17, 32])
def test_pooling_and_who_gets_the_gradient_of_equal_values(kernel, stride, channels, monkeypatch):
    layer, x = MaxPool2d(kernel, stride=stride), images((2, channels, 7, 8))
    grad_out = np.float32([0.5, 2, 8])[np.random.default_rng(2).integers(0, 3, (2, channels, 1, 1))]
    (out, grad), (want, want_grad) = (
        passes(layer, x, grad_out, way, monkeypatch) for way in (True, False)
    )
    np.testing.assert_array_equal(out, want)
    np.testing.assert_array_equal(grad, want_grad)  # sums of powers of two are exact


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "layer", [LocalResponseNorm(), MaxPool2d(3, stride=2)], ids=["norm", "pool"]
)
def test_what_is_no_number_spreads_as_in_numpy(layer, bad, monkeypatch):
    x = images((1, 20, 5, 5)).copy(order="K")
    x[0, 7, 2, 2] = bad
    with np.errstate(invalid="ignore"):
        got = passes(layer, x, np.float32(1), True, monkeypatch)
        want = passes(layer, x, np.float32(1), False, monkeypatch)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
        np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize(
    "before, compiles",
    [
        ("numba.config.DISABLE_JIT = 1", "False"),
        ("numba.config.DISABLE_JIT = 0; caching.CacheImpl._locator_classes = []", "True"),
    ],
    ids=["no compiler", "no folder for the machine code"],
)
def test_where_something_is_missing(before, compiles):
    code = (
        f"import numba; from numba.core import caching; {before}\n"
        "import numpy as np\n"
        "from fastdl_lib.kernels.compiled import can_compile\n"
        "from fastdl_lib.nn.layers import MaxPool2d\n"
        "x = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)\n"
        "print(can_compile(), MaxPool2d(2).forward(x).sum())"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout.split() == [compiles, "40.0"], ran.stderr


def plus_one(x):
    return x + 1


@needs_compiler
@pytest.mark.parametrize("damage", ["*.nbi", "*.nbc", "a full disk"])
def test_a_damaged_or_full_cache_costs_no_more_than_to_compile(damage, tmp_path, monkeypatch):
    import numba
    from numba.core import caching

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    if damage == "a full disk":
        monkeypatch.setattr(caching.IndexDataCacheFile, "save", full)
    assert compiled(plus_one)(1.0) == 2
    for file in tmp_path.rglob(damage):
        file.write_bytes(file.read_bytes()[:50])
    assert compiled(plus_one)(1.0) == 2
    assert compiled(plus_one)(1.0) == 2
    assert len([*tmp_path.rglob("*.nbc")]) == (damage != "a full disk")


@needs_compiler
def test_a_loop_is_kept_with_what_it_takes_from_around_it(tmp_path, monkeypatch):
    import numba

    def adding(step):
        more = numba.njit(lambda x: x + step)
        return compiled(lambda x: more(x) + 1)

    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    for _ in range(2):  # the second time as another process would
        assert [adding(step)(1.0) for step in (1, 2)] == [3, 4]
        assert len([*tmp_path.rglob("*.nbc")]) == 2


def test_where_positive_passes_what_is_no_number_as_numpy_does():
    values = np.float32([-1, -0.0, 0, 1e-45, 2, np.nan, np.inf])
    grads = np.float32([3, np.nan, -np.inf, 0, -2]).repeat(len(values))
    values = np.tile(values, 5)
    made = np.empty_like(grads)
    pixels.where_positive()(grads, values, made)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(made, grads * (values > 0))
