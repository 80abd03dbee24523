"""Number formats: which numbers they hold, how others are rounded to these, and their bits.

A float has a sign, an exponent and a fraction. Its value is (-1)^sign * 1.fraction * 2^(exponent -
bias): the one before the point is hidden, no bit is spent on it, and the bias lets the exponent's
bits, which count from 0, stand for negative powers as well. Between two powers of two all
neighbours have the same distance, and it doubles at the next power. Exponent bits that are all 0
mean a *subnormal*: nothing hidden, 0.fraction * 2^(1 - bias), evenly spaced down to 0. Exponent
bits that are all 1 mean infinity (fraction 0) or NaN, "not a number" (any other fraction).
Fixed-point numbers and scaled integers have the same distance everywhere instead.
"""

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import ml_dtypes
import numpy as np

from fastdl_lib.core.arrays import array_module
from fastdl_lib.core.checks import check_whole_number
from fastdl_lib.core.threads import in_flat_blocks
from fastdl_lib.kernels.compiled import suits
from fastdl_lib.kernels.rounding import MOST_FRACTION_BITS, to_nearest

Array = Any  # numpy.ndarray or cupy.ndarray


class NumberFormat(ABC):
    """What the formats share."""

    name: str
    """Such as ``"float16"``."""
    bits: int
    """Of one number."""
    largest: float
    """The largest finite number."""
    smallest_normal: float
    """The smallest positive number with full precision; the step where the spacing is even."""
    smallest_subnormal: float
    """The smallest positive number; the step where the spacing is even."""
    epsilon: float
    """The distance from 1.0 to the next number; the step where the spacing is even."""

    def round(self, x: Array, *, rng: Any = None) -> Array:
        """Round every value to one that the format holds; the array keeps its dtype.

        To the nearest, between two equally near ones to the one whose last bit is 0 ("ties to
        even"). With ``rng``, stochastically: to one of the two neighbours, to the nearer the more
        likely, so that the mean is x; S. Gupta et al., "Deep learning with limited numerical
        precision", ICML 2015. A value that the format holds stays in both.

        Beyond ``largest`` floats become infinite (NaN in float8_e4m3, which has no infinity) as if
        the numbers went on there: from half a spacing above on, or, stochastically, with a
        probability that grows from 0 to 1 within a spacing. Fixed point and integers saturate.

        Args:
            x: float32 or float64, any shape, NumPy or CuPy; it is kept.
            rng: None, or a random generator of x's library, such as ``np.random.default_rng(0)``.
                It is asked for one number per value, as fine as x's dtype. One seed, one result.

        Returns an array of x's shape, dtype, library and order in memory. Raises TypeError: another
        dtype or generator; ValueError: a NaN or an infinity, which fixed point and integers do not
        have.

        >>> FLOAT16.round(np.array([0.1, 2049.0, 70000.0], np.float32)).tolist()
        [0.0999755859375, 2048.0, inf]
        >>> halves = FLOAT16.round(np.full(1000, 2049.0, np.float32), rng=np.random.default_rng(0))
        >>> np.unique(halves).tolist(), bool(abs(halves.mean() - 2049) < 0.1)
        ([2048.0, 2050.0], True)
        """
        chance = self._chance(x, rng)
        out = array_module(x).empty_like(x)
        self._round_into(x, chance, out)
        return out

    @abstractmethod
    def _round_into(self, x: Array, chance: Array | None, out: Array) -> None:
        """Round x to out, which lies in memory as x and ``chance`` do."""

    @abstractmethod
    def store(self, x: Array) -> "Stored":
        """Round to nearest, as :meth:`round` does, and keep the bits alone.

        >>> stored = FLOAT16.store(np.array([1.0, -2.0], np.float32))
        >>> [hex(code) for code in stored.codes.tolist()], stored.nbytes
        (['0x3c00', '0xc000'], 4)
        """

    @abstractmethod
    def _decode(self, stored: "Stored", dtype: np.dtype) -> Array:
        """The values behind the codes."""

    def _chance(self, x: Array, rng: Any) -> Array | None:
        """A uniform random number for each value, drawn in the order of x's shape whatever its
        order in memory; None without a generator."""
        xp = array_module(x)
        if x.dtype not in _ROUNDED:
            raise TypeError(
                f"{self.name} rounds float32 and float64, got {x.dtype}; use x.astype(np.float32)."
            )
        if rng is None:
            return None
        if isinstance(rng, np.random.Generator) != (xp is np) or not hasattr(rng, "random"):
            raise TypeError(
                "rng must be a generator of x's library, such as "
                f"{xp.__name__}.random.default_rng(0), got {rng!r}."
            )
        chance = rng.random(x.shape, dtype=x.dtype.type)
        if x.flags.c_contiguous:
            return chance
        like_x = xp.empty_like(x)
        like_x[...] = chance
        return like_x

    def of(self, array: Array) -> "NumberFormat":
        """The format of one of a network's arrays: scales of channels are for the weights that
        have channels; a bias has one scale."""
        return self

    def __repr__(self) -> str:
        return self.name


def check_format(name: str, format: Any, kind: type[NumberFormat] = NumberFormat) -> None:
    """Refuse, by a TypeError, what is no format of that kind."""
    if not isinstance(format, kind):
        wanted = "number" if kind is NumberFormat else "floating-point"
        raise TypeError(f"{name} must be a {wanted} format such as FLOAT16, got {format!r}.")


def _in_blocks(work: Callable[..., None], arrays: Sequence[Array | None]) -> None:
    # NumPy warns of what is meant to happen here, such as overflow to infinity.
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        in_flat_blocks(work, arrays)


def _to_whole(y: Array, chance: Array | None) -> None:
    """Round y >= 0, in place, to whole numbers: to even, or up where ``chance`` is below what is
    left above the floor."""
    xp = array_module(y)
    if chance is None:
        xp.round(y, out=y)
        return
    whole = xp.floor(y)
    y -= whole
    xp.add(whole, chance < y, out=y)


def _take_sign(out: Array, x: Array) -> None:
    """Give positive numbers, in place, the signs of x, of zeros and NaN too."""
    _, whole = _EXPONENT[x.dtype.name]
    bits = out.view(whole)
    bits |= x.view(whole) & np.iinfo(whole).min


def _own_whole_numbers(number_format: NumberFormat, **least: int) -> None:
    """Check fields and make them Python's own: NumPy's small ones overflow in sums of bits."""
    for name, low in least.items():
        value = check_whole_number(name, getattr(number_format, name), low)
        object.__setattr__(number_format, name, value)


# The exponent's bits of a dtype, and the whole numbers of its width.
_EXPONENT = {"float32": (0x7F800000, np.int32), "float64": (0x7FF0000000000000, np.int64)}
_ROUNDED = (np.float32, np.float64)
_NATIVE = (np.float16, *_ROUNDED)  # those that NumPy and CuPy convert themselves
# The dtypes that NumPy and ml_dtypes have, by exponent bits, fraction bits and has_infinity.
_DTYPES = {
    (11, 52, True): np.dtype(np.float64),
    (8, 23, True): np.dtype(np.float32),
    (5, 10, True): np.dtype(np.float16),
    (8, 7, True): np.dtype(ml_dtypes.bfloat16),
    (4, 3, False): np.dtype(ml_dtypes.float8_e4m3fn),
    (5, 2, True): np.dtype(ml_dtypes.float8_e5m2),
}


@dataclass(frozen=True, repr=False)
class FloatFormat(NumberFormat):
    """A binary floating-point format: sign, exponent, fraction.

    Args:
        name: such as ``"float16"``.
        exponent_bits, fraction_bits: 2 to 8 and 1 to 23, or float64's 11 and 52; the sign has one
            more.
        has_infinity: False: the exponent's all-ones are ordinary numbers, but for the last, NaN.
            A format without NaN too, such as OCP's FP6 and FP4, cannot be told.

    ``dtype`` is the dtype of that format, NumPy's or ml_dtypes'; None where neither has it.

    Sources: IEEE 754-2019, section 3.4 (float16, 32, 64); Open Compute Project, "OCP 8-bit
    floating point specification (OFP8)", 2023 (float8).

    >>> FLOAT16.largest, FLOAT16.smallest_normal == 2**-14, FLOAT16.smallest_subnormal == 2**-24
    (65504.0, True, True)
    >>> FLOAT8_E4M3.largest, FLOAT8_E4M3.bias
    (448.0, 7)
    """

    name: str
    exponent_bits: int
    fraction_bits: int
    has_infinity: bool = True

    def __post_init__(self) -> None:
        _own_whole_numbers(self, exponent_bits=0, fraction_bits=0)
        sizes = self.exponent_bits, self.fraction_bits
        dtype = _DTYPES.get((*sizes, bool(self.has_infinity)))
        if dtype is None and not (2 <= sizes[0] <= 8 and 1 <= sizes[1] <= 23):
            raise ValueError(
                f"{self.name}: exponent_bits must lie in 2..8 and fraction_bits in 1..23, got "
                f"{sizes[0]} and {sizes[1]}."
            )
        if self.exponent_bits == 8 and not self.has_infinity:
            raise ValueError(
                f"{self.name}: 8 exponent bits without infinity reach beyond float32, which has to "
                "hold such numbers; use has_infinity=True, or 7 exponent bits."
            )
        bias = 2 ** (self.exponent_bits - 1) - 1
        # Without infinities the top exponent counts, and NaN has only its last fraction.
        top = 2**self.exponent_bits - 1 - self.has_infinity - bias
        below_two = 2 - 2.0**-self.fraction_bits * (1 if self.has_infinity else 2)
        self.__dict__.update(  # a frozen object's own door stays closed behind this
            dtype=dtype,
            bits=1 + self.exponent_bits + self.fraction_bits,
            bias=bias,
            largest=below_two * 2.0**top,
            smallest_normal=2.0 ** (1 - bias),
            smallest_subnormal=2.0 ** (1 - bias - self.fraction_bits),
            epsilon=2.0**-self.fraction_bits,
        )

    def _powers(self, x: Array) -> Array:
        """The power of two at or below each \\|x\\|, not below the smallest normal number (so the
        subnormals get the spacing they have) nor above that of the largest (so infinity does not
        become inf/inf)."""
        # Exponent without sign and fraction: the bits of a power of two.
        mask, whole = _EXPONENT[x.dtype.name]
        powers = (x.view(whole) & mask).view(x.dtype)
        # Plain floats, no NumPy float64: they would widen float32.
        top = 2.0 ** (math.frexp(self.largest)[1] - 1)
        return array_module(x).clip(powers, self.smallest_normal, top, out=powers)

    def _round_into(self, x: Array, chance: Array | None, out: Array) -> None:
        if self.bits >= 8 * x.dtype.itemsize:  # every value of that dtype is one of this format
            out[...] = x
            return
        _in_blocks(self._round_block, [x, chance, out])

    @functools.cached_property
    def _limits(self) -> tuple[Any, ...]:
        """What the compiled loop is told of the smallest, the largest and what lies beyond."""
        powers = np.float32([self.smallest_normal, 2.0 ** (math.frexp(self.largest)[1] - 1)])
        beyond = np.float32(np.inf if self.has_infinity else np.nan)
        return *powers.view(np.int32), np.float32(self.largest), beyond

    def _round_block(self, x: Array, chance: Array | None, out: Array) -> None:
        if chance is None and self.fraction_bits <= MOST_FRACTION_BITS and suits(x, out):
            to_nearest()(x, out, self.fraction_bits, *self._limits)
            return
        xp = array_module(x)
        powers = self._powers(x)
        xp.abs(x, out=out)
        # All of these are exact but the rounding to whole multiples of the spacing itself.
        out /= powers
        out *= 1 / self.epsilon
        _to_whole(out, chance)
        out *= self.epsilon
        out *= powers
        beyond = out > self.largest
        if xp is not np or beyond.any():
            out[beyond] = np.inf if self.has_infinity else np.nan
        _take_sign(out, x)

    def store(self, x: Array) -> "Stored":
        xp = array_module(x)
        # ml_dtypes would round float64 twice, by way of float32.
        exact = _ROUNDED if self.dtype in _NATIVE else _ROUNDED[:1]
        if self.dtype is not None and xp is np and x.dtype in exact:
            # The same bits as below, several times as fast, and with what a NaN carries.
            with np.errstate(over="ignore", under="ignore", invalid="ignore"):
                return Stored(self, x.astype(self.dtype).view(self._code_dtype))
        rounded = self.round(x)
        codes = xp.empty_like(rounded, dtype=self._code_dtype)
        _in_blocks(self._encode_block, [rounded, codes])
        return Stored(self, codes)

    @property
    def _code_dtype(self) -> np.dtype:
        return np.min_scalar_type(2**self.bits - 1)

    @property
    def _infinity_code(self) -> int:
        """Exponent all ones, fraction 0; above the last code where that is no infinity."""
        return (2**self.exponent_bits - 1) << self.fraction_bits

    @property
    def _nan_code(self) -> int:
        """The positive NaN that NumPy and ml_dtypes write."""
        if self.has_infinity:
            return self._infinity_code | 2 ** (self.fraction_bits - 1)
        return 2 ** (self.bits - 1) - 1

    def _encode_block(self, rounded: Array, codes: Array) -> None:
        """The bits of values that the format holds."""
        xp = array_module(rounded)
        if self.dtype in _NATIVE:
            codes[...] = rounded.astype(self.dtype).view(self._code_dtype)
            return
        single = rounded.astype(np.float32, copy=False)
        # A factor aligns the two exponents, down to the subnormals: the rest is leaving bits out.
        wide = (single * 2.0 ** (self.bias - 127)).view(np.uint32)
        sign = (wide >> 31) << (self.bits - 1)
        wide = (wide & 0x7FFFFFFF) >> (23 - self.fraction_bits)  # float32 has 23
        if self.has_infinity:
            wide = xp.minimum(wide, np.uint32(self._infinity_code))
        wide = xp.where(xp.isnan(single), np.uint32(self._nan_code), wide)
        codes[...] = wide | sign

    def _decode_block(self, codes: Array, out: Array) -> None:
        """The way back, exact in float32 for all but float64."""
        if self.dtype in _NATIVE:
            out[...] = codes.view(self.dtype)
            return
        wide = codes.astype(np.uint32)
        size = wide & (2 ** (self.bits - 1) - 1)
        values = (size << (23 - self.fraction_bits)).view(np.float32)
        values *= 2.0 ** (127 - self.bias)
        if self.has_infinity:
            values[size == self._infinity_code] = np.inf
            values[size > self._infinity_code] = np.nan
        else:
            values[size == self._nan_code] = np.nan
        _take_sign(values, (wide << (32 - self.bits)).view(np.float32))
        out[...] = values

    def _decode(self, stored: "Stored", dtype: np.dtype) -> Array:
        out = array_module(stored.codes).empty_like(stored.codes, dtype=dtype)
        _in_blocks(self._decode_block, [stored.codes, out])
        return out

    def bits_of(self, value: float) -> str:
        """Return sign, exponent and fraction of a number rounded to this format, as 0s and 1s.

        >>> FLOAT16.bits_of(1.5), FLOAT16.bits_of(-2**-24)
        ('0 01111 1000000000', '1 00000 0000000001')
        """
        if not isinstance(value, Real) or isinstance(value, bool):
            raise TypeError(f"bits_of() takes a number, got {value!r}.")
        code = int(self.store(np.array(float(value))).codes)
        text = f"{code:0{self.bits}b}"
        end = 1 + self.exponent_bits
        return f"{text[0]} {text[1:end]} {text[end:]}"

    def value_of(self, bits: str) -> float:
        """Return the number behind a string of 0s and 1s, as many as the format has bits; spaces
        may stand anywhere.

        >>> FLOAT16.value_of("0 01111 1000000000"), FLOAT8_E4M3.value_of("0 1111 110")
        (1.5, 448.0)
        """
        if not isinstance(bits, str):
            raise TypeError(f"value_of() takes a string of 0s and 1s, got {bits!r}.")
        text = "".join(bits.split())
        if len(text) != self.bits or set(text) - set("01"):
            raise ValueError(
                f"{self.name} has {self.bits} bits, 1 of sign, {self.exponent_bits} of exponent, "
                f"{self.fraction_bits} of fraction, such as {self.bits_of(1.0)!r} for 1; got "
                f"{bits!r}, {len(text)} characters."
            )
        codes = np.array(int(text, 2), self._code_dtype)
        return float(Stored(self, codes).decode(np.float64))


FLOAT64 = FloatFormat("float64", 11, 52)
FLOAT32 = FloatFormat("float32", 8, 23)
FLOAT16 = FloatFormat("float16", 5, 10)
BFLOAT16 = FloatFormat("bfloat16", 8, 7)
FLOAT8_E4M3 = FloatFormat("float8_e4m3", 4, 3, has_infinity=False)
FLOAT8_E5M2 = FloatFormat("float8_e5m2", 5, 2)


class _EvenlySpaced(NumberFormat):
    """Whole multiples of a step: what fixed point and scaled integers share."""

    _step: float
    _lowest: int
    """The lowest code."""

    @property
    def _highest(self) -> int:
        return 2 ** (self.bits - 1) - 1

    @property
    def largest(self) -> float:
        return self._highest * self._step

    @property
    def smallest_normal(self) -> float:
        return self._step

    smallest_subnormal = epsilon = smallest_normal

    @property
    def _code_dtype(self) -> np.dtype:
        return np.dtype(next(f"int{size}" for size in (8, 16, 32) if self.bits <= size))

    def _whole_block(self, y: Array, chance: Array | None) -> None:
        """Round y, in steps, to whole numbers within the format's, in place."""
        xp = array_module(y)
        if chance is None:
            xp.round(y, out=y)
        else:
            signed = y.copy()
            xp.abs(y, out=y)
            _to_whole(y, chance)
            _take_sign(y, signed)
        y += 0.0  # whole numbers have no -0, and this makes it 0
        # The largest code of 32 bits is no float32: the nearest below it is.
        highest = float(self._highest)
        if float(y.dtype.type(highest)) > highest:
            highest = float(np.nextafter(y.dtype.type(highest), y.dtype.type(0)))
        xp.clip(y, float(self._lowest), highest, out=y)


@dataclass(frozen=True, repr=False)
class FixedPoint(_EvenlySpaced):
    """Fixed point: whole multiples of 2^-fraction_bits, in two's complement.

    From -2^(integer_bits - 1) to 2^(integer_bits - 1) - 2^-fraction_bits; beyond, the end.

    Args:
        integer_bits: the bits before the point, the sign among them; at least 1.
        fraction_bits: those behind it; at least 0. 2 to 32 bits together.

    Source: S. Gupta et al., "Deep learning with limited numerical precision", ICML 2015, whose
    <IL, FL> these are.

    >>> FixedPoint(8, 8).largest, FixedPoint(8, 8).epsilon, FixedPoint(2, 14)
    (127.99609375, 0.00390625, fixed<2,14>)
    >>> FixedPoint(4, 2).round(np.array([0.3, -9.0])).tolist()
    [0.25, -8.0]
    """

    integer_bits: int
    fraction_bits: int

    def __post_init__(self) -> None:
        _own_whole_numbers(self, integer_bits=1, fraction_bits=0)
        if not 2 <= self.bits <= 32:
            raise ValueError(
                f"integer_bits and fraction_bits must be 2 to 32 together, got "
                f"{self.integer_bits} + {self.fraction_bits} = {self.bits}."
            )

    @property
    def name(self) -> str:
        return f"fixed<{self.integer_bits},{self.fraction_bits}>"

    @property
    def bits(self) -> int:
        return self.integer_bits + self.fraction_bits

    @property
    def _step(self) -> float:
        return 2.0**-self.fraction_bits

    @property
    def _lowest(self) -> int:
        return -(2 ** (self.bits - 1))

    def _round_into(self, x: Array, chance: Array | None, out: Array) -> None:
        if not bool(array_module(x).isfinite(x).all()):
            raise ValueError(f"{self.name} has no NaN and no infinity, and x holds one.")

        def work(x: Array, chance: Array | None, out: Array) -> None:
            array_module(x).multiply(x, 1 / self._step, out=out)
            self._whole_block(out, chance)
            out *= self._step

        _in_blocks(work, [x, chance, out])

    def store(self, x: Array) -> "Stored":
        rounded = self.round(x)
        rounded *= 1 / self._step
        return Stored(self, rounded.astype(self._code_dtype))

    def _decode(self, stored: "Stored", dtype: np.dtype) -> Array:
        # Through float64: 32 bits are more than float32 holds, and are rounded once.
        values = stored.codes.astype(np.float64)
        values *= self._step  # in place: else 0 axes would give a number
        return values.astype(dtype)


@dataclass(frozen=True, repr=False)
class ScaledInteger(_EvenlySpaced):
    """Small whole numbers times a scale that is fitted to the array: -127..127 for 8 bits.

    The scale, a float32 of full precision, is max\\|x\\| / 127: of the whole array, or one for each
    index of an axis (axis 0 of a weight is its output channels). Of zeros alone it is 1. A value is
    the product of both, rounded to the array's dtype. ``largest`` and ``epsilon`` are those of the
    scale 1.

    Args:
        bits: 2 to 16.
        axis: None, or the axis whose indices have scales of their own, from 0 up.

    >>> x = np.array([[1.0, -2.0], [0.25, 0.5]], np.float32)
    >>> INT8.store(x).codes.tolist(), INT8_PER_CHANNEL.store(x).codes.tolist()
    ([[64, -127], [16, 32]], [[64, -127], [64, 127]])
    """

    bits: int = 8
    axis: int | None = None

    def __post_init__(self) -> None:
        _own_whole_numbers(self, bits=2)
        if self.bits > 16:
            raise ValueError(f"bits must be 2 to 16, got {self.bits}.")
        if self.axis is not None:
            _own_whole_numbers(self, axis=0)

    @property
    def name(self) -> str:
        ending = {None: "", 0: " per channel"}.get(self.axis, f" per index of axis {self.axis}")
        return f"int{self.bits}{ending}"

    _step = 1.0

    @property
    def _lowest(self) -> int:
        return -self._highest

    def of(self, array: Array) -> NumberFormat:
        return ScaledInteger(self.bits) if array.ndim < 2 else self

    def _scale(self, x: Array) -> Array:
        """The scale, or one for each index of the axis, float32."""
        xp = array_module(x)
        if self.axis is not None and self.axis >= x.ndim:
            raise ValueError(f"{self.name} needs an axis {self.axis}; x has the shape {x.shape}.")
        shape = () if self.axis is None else (x.shape[self.axis],)
        if x.size == 0:
            return xp.ones(shape, np.float32)
        others = tuple(axis for axis in range(x.ndim) if axis != self.axis)
        size = xp.maximum(x.max(axis=others), -x.min(axis=others)).astype(np.float64)
        if not bool((size / self._highest <= FLOAT32.largest).all()):
            raise ValueError(
                f"{self.name} scales by the largest value: x holds inf or NaN, or what makes the "
                "scale no float32."
            )
        # With the very largest float32 the product must not become infinite.
        most = np.nextafter(np.float32(FLOAT32.largest / self._highest), np.float32(0))
        scale = xp.maximum(size / self._highest, FLOAT32.smallest_normal).astype(np.float32)
        scale = xp.where(size <= FLOAT32.largest, xp.minimum(scale, most), scale)
        return xp.where(size == 0, np.float32(1), scale)

    def _spread(self, scale: Array, like: Array) -> Array:
        """The scales in float64, in a shape that goes with an array's."""
        if self.axis is not None:
            scale = scale.reshape(-1, *(1,) * (like.ndim - 1 - self.axis))
        return scale.astype(np.float64)

    def _in_steps(self, x: Array, scale: Array, chance: Array | None, out: Array) -> None:
        """Whole numbers where ``out`` is of such a dtype; else these times the scale."""
        xp, steps = array_module(x), None
        if self.axis is not None:  # one for each value, in x's order of memory
            steps = xp.empty_like(x, dtype=np.float64)
            steps[...] = self._spread(scale, x)

        def work(x: Array, steps: Array | None, chance: Array | None, out: Array) -> None:
            step = scale.astype(np.float64) if steps is None else steps
            # In float64, which holds every tie times the scale: no other quotient becomes a tie.
            whole = x / step
            self._whole_block(whole, chance)
            out[...] = whole * step if out.dtype.kind == "f" else whole

        _in_blocks(work, [x, steps, chance, out])

    def _round_into(self, x: Array, chance: Array | None, out: Array) -> None:
        self._in_steps(x, self._scale(x), chance, out)

    def store(self, x: Array) -> "Stored":
        chance = self._chance(x, None)
        scale, codes = self._scale(x), array_module(x).empty_like(x, dtype=self._code_dtype)
        self._in_steps(x, scale, chance, codes)
        return Stored(self, codes, scale)

    def _decode(self, stored: "Stored", dtype: np.dtype) -> Array:
        values = stored.codes.astype(np.float64)
        values *= self._spread(stored.scale, values)
        return values.astype(dtype)


INT8 = ScaledInteger(8)
INT8_PER_CHANNEL = ScaledInteger(8, axis=0)

_NAMED = [FLOAT64, FLOAT32, FLOAT16, BFLOAT16, FLOAT8_E4M3, FLOAT8_E5M2, INT8, INT8_PER_CHANNEL]
FORMATS: dict[str, NumberFormat] = {format.name: format for format in _NAMED}
"""The formats with a name of their own, widest first."""


@dataclass(frozen=True, eq=False)
class Stored:
    """An array as a format keeps it: bits, and a scale where the format has one.

    >>> stored = BFLOAT16.store(np.array([0.1, 1.0], np.float32))
    >>> stored.shape, stored.nbytes, stored.decode().tolist()
    ((2,), 4, [0.10009765625, 1.0])
    """

    format: NumberFormat
    codes: Array
    """Floats: their bits, as uint64, 32, 16 or 8. Others: int8, 16 or 32, the smallest that does;
    times the step or the scale they are the value. NumPy or CuPy."""
    scale: Array | None = None
    """Scaled integers: float32, of shape () or (indices of the axis,); others: None."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's."""
        return self.codes.shape

    @property
    def nbytes(self) -> int:
        """Bytes of the codes and the scales."""
        return self.codes.nbytes + (0 if self.scale is None else self.scale.nbytes)

    def decode(self, dtype: Any = np.float32) -> Array:
        """Return the values, in float32 or float64 (TypeError: another dtype); the same as the
        format's ``round`` gave.

        Exact, but that float32 rounds what it does not hold: float64, fixed point beyond 24 bits,
        and the product of integer and scale.

        >>> FixedPoint(4, 4).store(np.array([1.03])).decode().tolist()
        [1.0]
        """
        dtype = np.dtype(dtype)
        if dtype not in _ROUNDED:
            raise TypeError(f"decode() gives float32 or float64, not {dtype}.")
        return self.format._decode(self, dtype)
