"""Number formats against NumPy and ml_dtypes bit for bit, and against exact fractions."""

import copy
import itertools
import math
import pickle
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from helpers import FLOATS, all_values, float_formats, nearest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdl_lib.core.threads import FLAT_BLOCK, blas_threads
from fastdl_lib.precision.formats import (
    BFLOAT16,
    FLOAT8_E4M3,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    FORMATS,
    INT8,
    INT8_PER_CHANNEL,
    FixedPoint,
    FloatFormat,
    ScaledInteger,
    Stored,
)

# A format that comes to FORMATS is tested with the others: beside NumPy or ml_dtypes where they
# have it, and beside exact fractions.
KNOWN = [kind for kind in FLOATS if kind.dtype is not None]
NARROW = [kind for kind in KNOWN if kind.bits <= 16]
EVERY = [*FORMATS.values(), FixedPoint(8, 8), FixedPoint(4, 28), ScaledInteger(4)]


def every(kinds):
    return pytest.mark.parametrize("kind", kinds, ids=str)


def converted(x, kind):
    """What NumPy or ml_dtypes make of x: the codes, and the values in x's dtype."""
    dtype = np.dtype(getattr(kind, "dtype", kind))
    with np.errstate(all="ignore"):
        return x.astype(dtype).view(f"uint{8 * dtype.itemsize}"), x.astype(dtype).astype(x.dtype)


def same_bits(got, expected):
    """Equal down to the signs of zeros; a NaN is a NaN."""
    assert got.dtype == expected.dtype and got.shape == expected.shape
    np.testing.assert_array_equal(got, expected)
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(got[numbers]), np.signbit(expected[numbers]))


def any_float32(count=400_000, seed=0):
    """Random bits: every exponent, subnormals, infinities, NaN."""
    bits = np.random.default_rng(seed).integers(0, 2**32, count, dtype=np.uint32)
    return np.concatenate([bits.view(np.float32), np.array([0, -0.0, np.inf, -np.inf], "f4")])


def between_neighbours(kind, dtype):
    """Every value, the middle between neighbours, what lies next to both, and all negated."""
    values = all_values(kind)
    # As if one more number came after the largest.
    values = np.append(values, 2 * values[-1] - values[-2])
    points = np.concatenate([values, (values[1:] + values[:-1]) / 2])
    points = points[points <= float(np.finfo(dtype).max)].astype(dtype)
    below, above = (np.nextafter(points, dtype(end)) for end in (-np.inf, np.inf))
    points = np.concatenate([points, below, above])
    return np.concatenate([points, -points])


# --- the formats ----------------------------------------------------------------------------


@every(KNOWN)
def test_limits_are_those_of_numpy_and_ml_dtypes(kind):
    limits = ml_dtypes.finfo(kind.dtype)  # NumPy's own for NumPy's own
    assert kind.bits == limits.bits == 8 * kind.dtype.itemsize
    assert kind.largest == float(limits.max)
    assert kind.smallest_normal == float(limits.smallest_normal)
    assert kind.smallest_subnormal == float(limits.smallest_subnormal)
    assert kind.epsilon == float(limits.eps)


def test_formats_are_listed_under_their_names():
    assert all(name == kind.name == str(kind) for name, kind in FORMATS.items())
    bits = [kind.bits for kind in FORMATS.values()]
    assert bits == sorted(bits, reverse=True)
    assert (FixedPoint(2, 14).name, ScaledInteger(4).name) == ("fixed<2,14>", "int4")


@every(EVERY)
def test_a_copied_format_is_the_same(kind):
    for other in (copy.deepcopy(kind), pickle.loads(pickle.dumps(kind))):
        assert other == kind and hash(other) == hash(kind)
    assert kind != FixedPoint(3, 3)


# --- floats: the very bits ------------------------------------------------------------------


@every(NARROW)
def test_every_code_means_what_numpy_and_ml_dtypes_say(kind):
    codes = np.arange(2**kind.bits).astype(f"uint{kind.bits}")
    for dtype in (np.float32, np.float64):  # to float8 and bfloat16 from float64 by our own code
        with np.errstate(invalid="ignore"):  # of NaN that signal
            expected = codes.view(kind.dtype).astype(dtype)
        same_bits(Stored(kind, codes).decode(dtype), expected)
    # And back; of bfloat16's and float8_e5m2's NaN only one is written, as ml_dtypes does.
    again, numbers = kind.store(expected).codes, ~np.isnan(expected)
    np.testing.assert_array_equal(again[numbers], codes[numbers])
    np.testing.assert_array_equal(again, converted(expected, kind)[0])


def assert_rounds_as_its_dtype(kind, x):
    kept = x.copy()
    codes, rounded = converted(x, kind)
    same_bits(kind.round(x), rounded)
    np.testing.assert_array_equal(kind.store(x).codes, codes)
    same_bits(x, kept)


@every(NARROW)
def test_rounding_float32_is_numpys_and_ml_dtypes(kind):
    assert_rounds_as_its_dtype(kind, any_float32())
    assert_rounds_as_its_dtype(kind, between_neighbours(kind, np.float32))


@every([FLOAT32, FLOAT16])
def test_rounding_float64_is_numpys(kind):
    bits = np.random.default_rng(1).integers(0, 2**64, 400_000, dtype=np.uint64)
    assert_rounds_as_its_dtype(kind, bits.view(np.float64))
    # Random exponents of float64 lie mostly outside: as many inside.
    inside = any_float32(seed=2)
    inside = inside[~np.isnan(inside)].astype(np.float64) * (1 + 2.0**-30)
    assert_rounds_as_its_dtype(kind, inside)
    assert_rounds_as_its_dtype(kind, between_neighbours(FLOAT16, np.float64))


def about(kind, dtype, seed, count=60):
    """Numbers that a float format holds, ties, what lies next to both, and beyond its ends."""
    rng = np.random.default_rng(seed)
    exponents = [math.frexp(end)[1] for end in (kind.smallest_subnormal, kind.largest)]
    exponents = rng.integers(exponents[0] - 3, exponents[1] + 2, count)
    halves = rng.integers(0, 2 ** (kind.fraction_bits + 2), count)
    x = np.ldexp(halves.astype(float), exponents - kind.fraction_bits - 2)
    x = np.append(x, halves * (kind.smallest_subnormal / 2)) * rng.choice([-1, 1], 2 * count)
    with np.errstate(over="ignore"):
        x = x.astype(dtype)
        x = np.concatenate([x, np.nextafter(x, dtype(0)), np.nextafter(x, dtype(2) * x)])
    return x[np.isfinite(x)]


@settings(derandomize=True)
@given(float_formats(), st.sampled_from([np.float32, np.float64]), st.integers(0, 10**6))
def test_floats_are_rounded_to_the_nearest_exactly(kind, dtype, seed):
    x = about(kind, dtype, seed)
    with np.errstate(over="ignore"):  # float64's own numbers in float32
        expected = np.array([nearest(Fraction(float(one)), kind) for one in x]).astype(dtype)
    got = kind.round(x)
    np.testing.assert_array_equal(got, expected)
    same_bits(kind.store(x).decode(dtype), got)
    assert (kind.store(x).codes < 2**kind.bits).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_wide_format_keeps_every_bit(dtype):
    x = any_float32(1000)
    x = np.append(x[~np.isnan(x)], np.float32(np.nan)).astype(dtype)
    for kind, rng in itertools.product((FLOAT64, FLOAT32), (None, np.random.default_rng(0))):
        rounded = kind.round(x, rng=rng)
        assert rounded is not x
        same_bits(rounded, x)


@every(NARROW)
def test_bits_and_values_are_each_others_way_back(kind):
    for value in [*all_values(kind)[::97], math.inf if kind.has_infinity else 0.0]:
        text = kind.bits_of(value)
        assert [len(part) for part in text.split()] == [1, kind.exponent_bits, kind.fraction_bits]
        assert kind.value_of(text) == kind.value_of(text.replace(" ", "")) == value
    assert math.isnan(kind.value_of(kind.bits_of(math.nan)))
    assert kind.bits_of(-0.0)[0] == "1"


def test_bits_of_known_numbers():
    assert FLOAT16.bits_of(0.1) == "0 01011 1001100110"
    assert FLOAT32.bits_of(1.0) == "0 01111111 " + 23 * "0"
    assert FLOAT64.value_of(FLOAT64.bits_of(0.1)) == 0.1
    assert FLOAT16.value_of("1 11111 0000000000") == -math.inf
    assert BFLOAT16.bits_of(np.float32(-2)) == "1 10000000 0000000"


@pytest.mark.parametrize("twin", ["float8_e3m4", "float8_e4m3"])
def test_a_format_of_ones_own_is_rounded_alike(twin):
    """Without a dtype, against the dtype that ml_dtypes has for it."""
    own, x = FloatFormat("own", int(twin[-3]), int(twin[-1])), any_float32(200_000)
    stored, (codes, rounded) = own.store(x), converted(x, getattr(ml_dtypes, twin))
    assert own.dtype is None
    same_bits(own.round(x), rounded)
    # What a NaN carries is each package's own affair.
    numbers = ~np.isnan(x)
    np.testing.assert_array_equal(stored.codes[numbers], codes[numbers])
    assert np.isnan(stored.decode()[~numbers]).all()


# --- stochastic rounding --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@every([*NARROW, FixedPoint(8, 4)])
def test_stochastic_rounding_goes_to_a_neighbour_and_has_the_mean(kind, dtype):
    values = all_values(kind)
    small, tiny, step = kind.smallest_normal, kind.smallest_subnormal, values[-1] - values[-2]
    points = [kind.largest / 3, 1.1, -0.7, 1.3 * small, 2.3 * tiny, -0.2 * tiny]
    points.append(kind.largest - step / 4)
    rng, count = np.random.default_rng(3), 20_000
    for point in np.array(points, dtype):
        got = kind.round(np.full(count, point), rng=rng).astype(np.float64)
        after = np.searchsorted(values, point)
        lower, upper = values[after - 1], values[after]
        if point in (lower, upper):
            np.testing.assert_array_equal(got, point)
            continue
        assert set(got) == {lower, upper}
        share = (float(point) - lower) / (upper - lower)
        error = got.mean() - float(point)
        four_errors = 4 * (upper - lower) * math.sqrt(share * (1 - share) / count)
        assert abs(error) < four_errors
        # The same test finds out nearest rounding.
        nearest = float(kind.round(np.array([point]))[0])
        assert abs(nearest - float(point)) > four_errors


class Drawn(np.random.Generator):
    """Draws one number for ever."""

    def __init__(self, number):
        super().__init__(np.random.PCG64(0))
        self.number = number

    def random(self, size=None, dtype=np.float64):
        return np.full(size, self.number, dtype)


@every([*NARROW, FixedPoint(4, 3)])
def test_the_chance_decides(kind):
    """Up in magnitude where it is below the share of the spacing; never where that is 0."""
    values = all_values(kind)
    up, down = values[values >= 0], values[values <= 0][::-1]
    values, steps = (np.concatenate([f(up), f(down)]) for f in (lambda v: v[:-1], np.diff))
    for share, chance, up in ((0, 0, 0), (0.25, 0, 1), (0.25, 0.2, 1), (0.25, 0.25, 0)):
        got = kind.round(values + share * steps, rng=Drawn(chance))
        np.testing.assert_array_equal(got, values + up * steps)
    if isinstance(kind, FloatFormat):
        others = np.array([-0.0, np.nan, np.inf, -np.inf])
        same_bits(kind.round(others, rng=Drawn(0.5)), converted(others, kind)[1])


@every(NARROW)
def test_stochastic_rounding_overflows_the_more_the_further_above(kind):
    step, rng = np.diff(all_values(kind))[-1], np.random.default_rng(4)
    for share in (0.1, 0.8):
        x = np.full(4000, -(kind.largest + share * step))
        got = kind.round(x, rng=rng)
        finite = np.isfinite(got)
        assert (got[finite] == -kind.largest).all() and abs(finite.mean() - (1 - share)) < 0.04
    assert not np.isfinite(kind.round(np.full(99, kind.largest + step), rng=rng)).any()


@every([FLOAT16, FLOAT8_E4M3, FixedPoint(4, 4), INT8])
def test_one_seed_gives_one_result(kind):
    """Whatever the threads, and the order in memory."""
    x = np.random.default_rng(5).normal(size=(7, 5, 3, FLAT_BLOCK // 32)).astype("f4")
    once = kind.round(x, rng=np.random.default_rng(6))
    for threads, turned in itertools.product((1, 2), (False, True)):
        y = np.moveaxis(np.moveaxis(x, 1, -1).copy(), -1, 1) if turned else x
        with blas_threads(threads):
            again = kind.round(y, rng=np.random.default_rng(6))
        np.testing.assert_array_equal(again, once)
        assert again.strides == y.strides
    assert (kind.round(x, rng=np.random.default_rng(7)) != once).any()


# --- fixed point and integers ---------------------------------------------------------------


@given(
    st.integers(1, 9),
    st.integers(1, 20),
    st.lists(st.floats(-300, 300, width=32), min_size=1, max_size=20),
)
def test_fixed_point_is_whole_steps_within_its_range(integer_bits, fraction_bits, values):
    kind, step = FixedPoint(integer_bits, fraction_bits), 2.0**-fraction_bits
    lowest, highest = -(2 ** (integer_bits - 1)), 2 ** (integer_bits - 1) - step
    assert (kind.bits, kind.largest, kind.epsilon) == (integer_bits + fraction_bits, highest, step)
    # Python rounds halves to even, too.
    expected = [min(max(round(value / step) * step, lowest), highest) for value in values]
    stored = kind.store(np.array(values))
    for got in (kind.round(np.array(values)), stored.decode(np.float64), stored.codes * step):
        np.testing.assert_array_equal(got, expected)


def test_fixed_point_codes_are_the_smallest_that_do():
    for bits, expected in ((2, "i1"), (8, "i1"), (9, "i2"), (16, "i2"), (17, "i4"), (32, "i4")):
        kind = FixedPoint(bits - 1, 1)
        for dtype in (np.float32, np.float64):
            x = np.array([1e30, -1e30, 3e38, 0.5], dtype)
            stored, end = kind.store(x), 2 ** (bits - 1) - 1
            assert stored.codes.dtype == np.dtype(expected)
            if dtype == np.float32 and bits > 25:  # the nearest float32 below
                end = int(np.nextafter(np.float32(end), np.float32(0)))
            np.testing.assert_array_equal(stored.codes, [end, -(2 ** (bits - 1)), end, 1])
            np.testing.assert_array_equal(stored.decode(dtype), kind.round(x))


def parts(array, axis):
    """Views of what has a scale of its own."""
    return [array] if axis is None else list(np.moveaxis(array, axis, 0))


@settings(derandomize=True)
@given(
    st.sampled_from([2, 4, 8, 12, 16]), st.sampled_from([None, 0, 1]),
    st.sampled_from([FLOAT32, FLOAT64]), st.integers(-140, 128), st.integers(0, 10**6),
)  # fmt: skip
def test_scaled_integers_are_the_nearest_exactly(bits, axis, wide, exponent, seed):
    """Numbers of any size, ties between two codes, and what lies next to these."""
    rng, end, kind = np.random.default_rng(seed), 2 ** (bits - 1) - 1, ScaledInteger(bits, axis)
    x = np.ldexp(rng.uniform(-0.99, 0.99, (3, 4, 5)), exponent).astype(wide.dtype)
    x[:, 1] *= exponent % 3 > 0
    for part, scale in zip(parts(x, axis), kind.store(x).scale.reshape(-1), strict=True):
        exact = max(Fraction(float(np.abs(part).max())) / end, Fraction(FLOAT32.smallest_normal))
        assert scale == (nearest(exact, FLOAT32) if part.any() else 1)
        ties = (rng.integers(-end, end, part.shape) + 0.5) * float(scale)
        ties = ties.astype(wide.dtype)
        beside = np.nextafter(ties, wide.dtype.type(rng.choice([-np.inf, np.inf])))
        mixed = np.choose(rng.integers(0, 3, part.shape), [part, ties, beside])
        part[...] = np.where(np.abs(part) < np.abs(part).max(), mixed, part)
    stored, rounded = kind.store(x), kind.round(x)
    same_bits(stored.decode(wide.dtype), rounded)
    drawn = kind.round(x, rng=np.random.default_rng(9))
    four = (parts(array, axis) for array in (x, stored.codes, rounded, drawn))
    for part, codes, got, either, scale in zip(*four, stored.scale.reshape(-1), strict=True):
        assert (np.abs(either - part) <= scale * 1.0001).all()
        scale = Fraction(float(scale))
        expected = [round(Fraction(float(value)) / scale) for value in part.flat]
        assert codes.ravel().tolist() == expected
        assert got.ravel().tolist() == [nearest(code * scale, wide) for code in expected]
    assert stored.scale.dtype == np.float32
    assert stored.nbytes == 60 * stored.codes.itemsize + 4 * stored.scale.size


@pytest.mark.parametrize("bits", range(2, 17))
def test_the_ends_of_float32_scale_too(bits):
    """The largest number stays finite; what is far below the least scale becomes 0."""
    for kind in (ScaledInteger(bits), ScaledInteger(bits, axis=0)):
        largest, tiny = np.float32(FLOAT32.largest), np.float32(FLOAT32.smallest_subnormal)
        for x in (np.array([largest, -largest / 3]), np.array([-largest], np.float32)):
            end = x[0] / (2 ** (bits - 1) - 1)
            for got in (kind.round(x), kind.store(x).decode()):
                assert np.isfinite(got).all() and np.abs(got - x).max() <= 0.51 * abs(end)
        assert (kind.round(np.array([tiny, -tiny])) == 0).all()
        assert (kind.store(np.zeros((2, 3), np.float32)).scale == 1).all()


# --- every format ---------------------------------------------------------------------------


@every(EVERY)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_shape_dtype_and_order_stay(kind, dtype):
    x = np.random.default_rng(11).normal(size=(3, 4, 5, 6)).astype(dtype)
    last = np.moveaxis(np.moveaxis(x, 1, -1).copy(), -1, 1)
    shaped = [x, last, x[:, ::2], np.broadcast_to(x[:1], x.shape), x[0, 0], x[:0], x[0, 0, 0]]
    if kind != INT8_PER_CHANNEL:
        shaped.append(np.array(x[0, 0, 0, 0]))
    for y in shaped:
        rounded, stored = kind.round(y), kind.store(y)
        assert isinstance(rounded, np.ndarray) and rounded.dtype == dtype
        assert rounded.shape == stored.shape == y.shape
        assert stored.nbytes >= stored.codes.nbytes == y.size * stored.codes.itemsize
        for got in (stored.decode(dtype), kind.round(np.ascontiguousarray(y)).reshape(y.shape)):
            np.testing.assert_array_equal(got, rounded)
        assert isinstance(stored.decode(), np.ndarray) and stored.decode().dtype == np.float32
    assert kind.round(last).strides == last.strides
    assert np.abs(kind.round(x) - x).max() < 0.6


ZEROS = np.zeros(3, np.float32)


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda: FLOAT16.round(0.1), TypeError, r"wrap lists and numbers with np\.asarray"),
        (lambda: FLOAT16.round(ZEROS.astype("f2")), TypeError, r"use x\.astype\(np\.float32\)"),
        (lambda: FixedPoint(8, 8).store(np.arange(3)), TypeError, "rounds float32 and float64, go"),
        (lambda: INT8.store(np.arange(3)), TypeError, "rounds float32 and float64, got int64"),
        (lambda: FLOAT16.round(ZEROS, rng=0), TypeError, r"numpy\.random\.default_rng\(0\)"),
        (lambda: INT8.round(ZEROS, rng=np.random), TypeError, r"numpy\.random\.default_rng"),
        *((lambda act=act, bad=bad: act(np.array([1.0, bad])), ValueError, message)
          for act, message in (
              (FixedPoint(8, 8).round, "fixed<8,8> has no NaN and no infinity"),
              (FixedPoint(8, 8).store, "has no NaN and no infinity"),
              (INT8.round, "x holds inf or NaN"), (INT8_PER_CHANNEL.store, "x holds inf or NaN"))
          for bad in (np.nan, np.inf, -np.inf)),
        (lambda: INT8.store(np.array([1e300])), ValueError, "makes the scale no float32"),
        (lambda: ScaledInteger(8, 1).round(ZEROS), ValueError, r"needs an axis 1; .* shape \(3,\)"),
        (lambda: FLOAT16.store(ZEROS).decode("f2"), TypeError, "float32 or float64, not float16"),
        *((lambda wrong=wrong: FixedPoint(*wrong), ValueError, "bits must be")
          for wrong in ((0, 8), (1, 0), (20, 13), (8, -1))),
        (lambda: FixedPoint(8.0, 8), TypeError, "integer_bits must be a whole number"),
        (lambda: ScaledInteger(1), ValueError, "bits must be"),
        (lambda: ScaledInteger(17), ValueError, "bits must be"),
        (lambda: ScaledInteger(8, axis=-1), ValueError, "axis must be at least 0"),
        *((lambda sizes=sizes: FloatFormat("odd", *sizes), ValueError, "must lie in")
          for sizes in ((1, 4), (9, 4), (5, 0), (5, 24), (11, 51))),
        *((lambda fraction=fraction: FloatFormat("odd", 8, fraction, has_infinity=False),
           ValueError, "8 exponent bits without infinity reach beyond float32")
          for fraction in (1, 7, 23)),
        *((lambda wrong=wrong: FLOAT16.value_of(wrong), ValueError, "16 bits, 1 of sign, 5 of exp")
          for wrong in ("0 01111", "0 01111 100000000x", "0" * 17, "")),
        (lambda: FLOAT16.value_of(15), TypeError, "takes a string"),
        *((lambda wrong=wrong: FLOAT16.bits_of(wrong), TypeError, "takes a number")
          for wrong in ("1", None, True)),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(act, error, message):
    with np.errstate(invalid="ignore"), pytest.raises(error, match=message):
        act()


def test_a_generator_of_another_library_is_refused(fake_gpu):
    with pytest.raises(TypeError, match=r"cupy\.random\.default_rng\(0\)"):
        FLOAT16.round(fake_gpu.zeros(3), rng=np.random.default_rng(0))


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int64])
def test_numpys_whole_numbers_of_bits_are_as_good_as_pythons(kind):
    x = np.array([1.7, -3.2, 0.3])
    for made, plain in (
        (FixedPoint(kind(8), kind(8)), FixedPoint(8, 8)),
        (ScaledInteger(kind(8), axis=kind(0)), ScaledInteger(8, axis=0)),
        (FloatFormat("half", kind(5), kind(10)), FloatFormat("half", 5, 10)),
    ):
        rows = np.stack([x, 2 * x])
        assert made == plain and np.array_equal(made.round(rows), plain.round(rows))
    with pytest.raises(TypeError, match="exponent_bits must be a whole number"):
        FloatFormat("a", 5.0, 2)
