"""Weights in few bits, widened while they are multiplied: against float64 sums."""

import numpy as np
import pytest
from helpers import all_values
from hypothesis import given
from hypothesis import strategies as st

from fastdl_lib.core.threads import blas_threads
from fastdl_lib.nn.layers import Conv2d, Linear
from fastdl_lib.precision.formats import (
    BFLOAT16,
    FLOAT8_E4M3,
    FLOAT8_E5M2,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    INT8,
    INT8_PER_CHANNEL,
    FixedPoint,
    ScaledInteger,
)
from fastdl_lib.precision.stored import StoredLinear

every_format = pytest.mark.parametrize(
    "format",
    [
        *(FLOAT32, FLOAT16, BFLOAT16, FLOAT8_E4M3, FLOAT8_E5M2, INT8, INT8_PER_CHANNEL),
        *(ScaledInteger(4), ScaledInteger(16, axis=0), FixedPoint(2, 6), FixedPoint(4, 20)),
    ],
    ids=str,
)


def linear(weight, dtype=np.float32):
    """A Linear with these weights, of (outputs, inputs)."""
    weight = np.asarray(weight, dtype)
    rng = np.random.default_rng(0)
    layer = Linear(weight.shape[1], weight.shape[0], rng=rng)
    layer.parameters["weight"] = weight
    layer.parameters["bias"] = np.zeros(len(weight), np.float32)
    return layer


def random_layer(inputs, outputs, seed=0):
    rng = np.random.default_rng(seed)
    weight = 0.3 * rng.standard_normal((outputs, inputs))
    weight[0, 0] = 0.5  # no format makes all of them 0
    layer = linear(weight)
    layer.parameters["bias"] = rng.standard_normal(outputs, dtype=np.float32)
    return layer


def images(count, inputs, seed=1):
    return np.random.default_rng(seed).standard_normal((count, inputs), dtype=np.float32)


@every_format
@given(
    count=st.integers(1, 9), inputs=st.integers(1, 70), outputs=st.integers(1, 150),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_forward_is_the_product_with_the_decoded_weights(format, count, inputs, outputs, seed):
    layer = random_layer(inputs, outputs, seed)
    stored = StoredLinear(layer, format)
    x = images(count, inputs, seed)
    out = stored.forward(x)
    assert (out.dtype, out.shape) == (np.float32, (count, outputs))
    weight = stored.weight.decode(np.float64)
    wanted = x.astype(np.float64) @ weight.T + layer.parameters["bias"]
    # Each term is rounded when it is widened, multiplied, added (in any order) and scaled.
    sizes = np.abs(x).astype(np.float64) @ np.abs(weight).T + np.abs(layer.parameters["bias"])
    assert (np.abs(out - wanted) <= (inputs + 4) * 2.0**-24 * sizes).all()
    assert stored.nbytes == stored.weight.nbytes + 4 * outputs


@pytest.mark.parametrize("format", [FLOAT16, BFLOAT16, FLOAT8_E4M3, FLOAT8_E5M2, INT8], ids=str)
@pytest.mark.parametrize("count", [1, 3])
def test_every_value_of_the_format_is_widened_exactly(format, count):
    values = all_values(format)  # for 8-bit integers -127 to 127: the scale is 1
    stored = StoredLinear(linear(values[:, None]), format)
    out = stored.forward(np.ones((count, 1), np.float32))
    assert np.array_equal(out, np.tile(values.astype(np.float32), (count, 1)))
    assert len(np.unique(stored.weight.codes)) == len(values)


def test_a_negative_zero_is_widened_too():
    stored = StoredLinear(linear([[-0.0, 1.0]]), FLOAT16)
    assert stored.weight.codes.tolist() == [[0x8000, 0x3C00]]
    assert stored.forward(np.ones((1, 2), np.float32)).tolist() == [[1.0]]


@pytest.mark.parametrize("count", [1, 2])
def test_infinities_and_nan_of_the_images_pass(count):
    stored = StoredLinear(linear([[1, 1, 0], [-1, 0, 0], [0.5, 0, 1]]), INT8)
    for bad in (np.inf, np.nan):
        x = np.ones((count, 3), np.float32)
        x[0, 0] = bad
        out = stored.forward(x)
        assert np.array_equal(out[0], [bad, -bad, bad], equal_nan=True)
        assert np.isfinite(out[1:]).all()


@every_format
def test_large_images_do_not_overflow_before_they_are_scaled(format):
    """Whole numbers are up to 2^24 times the weights, and the others' rows are left alone."""
    layer, x = random_layer(9, 70), images(3, 9)
    layer.parameters["bias"][...] = 0
    stored, expected = StoredLinear(layer, format), None
    for size in (1, 2.0**63, 2.0**100, 2.0**124):
        x[1] = images(1, 9)[0] * np.float32(size)
        out = stored.forward(x)
        out[1] /= np.float32(size)
        expected = out if expected is None else expected
        np.testing.assert_array_equal(out, expected)


@every_format
@pytest.mark.parametrize("count", [1, 5])
def test_the_same_bits_with_any_number_of_threads_and_any_order_in_memory(format, count):
    layer, x = random_layer(33, 203), images(count, 33)
    outs = set()
    for threads in (1, 2, 3):
        layer.parameters["weight"] = np.asfortranarray(layer.parameters["weight"])
        with blas_threads(threads):
            outs.add(StoredLinear(layer, format).forward(np.asfortranarray(x)).tobytes())
    outs.add(StoredLinear(random_layer(33, 203), format).forward(x).tobytes())
    assert len(outs) == 1


def test_it_says_what_it_costs():
    """In MACs and bytes of the stored weights, scales and bias."""
    for format, weight_bytes in ((BFLOAT16, 2 * 60), (INT8, 60 + 4), (INT8_PER_CHANNEL, 60 + 20)):
        stored = StoredLinear(random_layer(12, 5), format)
        assert stored.nbytes == weight_bytes + 4 * 5
        assert (stored.macs((12,)), stored.parameter_count, stored.kind) == (60, 65, "fc")


@pytest.mark.parametrize(
    ("layer", "format", "error", "message"),
    [
        (Conv2d(1, 1, 1, rng=np.random.default_rng(0)), INT8, TypeError, "stores a Linear layer"),
        (linear([[1]]), "int8", TypeError, "must be a number format such as .* got 'int8'"),
        (linear([[1]], "f2"), INT8, TypeError, "stores float32 weights, got float16"),
        (linear([[1]]), FLOAT64, ValueError, "adds up in float32, which does not hold float"),
        (linear([[1]]), ScaledInteger(8, axis=1), ValueError, "a scale for each input"),
        (linear([[1, -70000.0]]), FLOAT16, ValueError, "from -70000 to 1, and float16 ends at 655"),
        (linear([[480.0, 0]]), FLOAT8_E4M3, ValueError, "float8_e4m3 ends at 448"),
        (linear([[np.nan, 0]]), BFLOAT16, ValueError, "from nan to nan"),
        (linear([[np.inf, 0]]), FLOAT32, ValueError, "from 0 to inf"),
        (linear([[np.nan, 0]]), INT8, ValueError, "x holds inf or NaN"),
        (linear([[-np.inf, 0]]), FixedPoint(2, 6), ValueError, "no NaN and no infinity"),
        (linear([[1, -2.1]]), FixedPoint(2, 6), ValueError, "from -2.1 to 1, and fixed<2,6> ends"),
        (linear([[1e-3, -2e-3]]), FixedPoint(2, 6), ValueError, "begins at 0.015625: scale them"),
        (linear([[1e-8, -2e-8]]), FLOAT16, ValueError, "begins at 5.96046e-08: scale them"),
    ],
)
def test_what_it_cannot_store_is_refused(layer, format, error, message):
    with pytest.raises(error, match=message):
        StoredLinear(layer, format)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.ones((2, 4)), TypeError, r"takes float32, got float64; use x.astype\(np.float32\)"),
        (np.ones(4, np.float32), ValueError, r"shape \(N, features\), no size 0; got \(4,\)"),
        (np.ones((0, 4), np.float32), ValueError, r"no size 0; got \(0, 4\)"),
        (np.ones((2, 5), np.float32), ValueError, r"takes .*4.* got .*5"),
        ([[1.0] * 4], TypeError, "expected a NumPy or CuPy array"),
    ],
)
def test_images_that_do_not_fit_are_refused(x, error, message):
    with pytest.raises(error, match=message):
        StoredLinear(random_layer(4, 3), INT8).forward(x)


def test_it_runs_forward_only_and_on_the_cpu(fake_gpu):
    stored = StoredLinear(random_layer(4, 3), INT8)
    with pytest.raises(RuntimeError, match=r"does not train.*store it anew"):
        stored.forward(images(2, 4), training=True)
    with pytest.raises(TypeError, match="StoredLinear runs on the CPU only"):
        stored.forward(fake_gpu.ones((1, 4), np.float32))
