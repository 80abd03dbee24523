"""A fully connected layer whose weights stay in few bits and are widened while it multiplies.

For one image such a layer reads every weight for a single MAC, so that memory is its limit: in half
the bytes it takes about half the time. Not if the weights are decoded first: then the wide ones are
written and read back, and more bytes move than before. Here a weight becomes a float32 in a
register, is multiplied there, and is gone. Storage alone is narrow; products and sums are float32.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fastdl_lib.core.arrays import check_on_cpu
from fastdl_lib.core.threads import in_parallel
from fastdl_lib.kernels.compiled import compiled
from fastdl_lib.nn.layers import Layer, Linear, check_batch
from fastdl_lib.precision.formats import (
    FLOAT32,
    FixedPoint,
    FloatFormat,
    NumberFormat,
    ScaledInteger,
    Stored,
    check_format,
)

Array = Any  # numpy.ndarray or cupy.ndarray
Shape = tuple[int, ...]

_LEAST_ROWS = 64  # of weights, that are worth a thread


def _widening(format: FloatFormat | None) -> Callable:
    """How Numba makes a float32 of one code; None: of whole numbers, which still lack a scale."""
    if format is None:
        return lambda code: np.float32(code)
    shift = np.uint32(FLOAT32.fraction_bits - format.fraction_bits)
    if format.exponent_bits == FLOAT32.exponent_bits:
        # A bfloat16 is the upper half of a float32.
        return lambda code: np.uint32(np.uint32(code) << shift).view(np.float32)
    sign = np.uint32(1 << (format.bits - 1))
    hidden = np.uint32(1 << format.fraction_bits)
    rebias = np.uint32((FLOAT32.bias - format.bias) << FLOAT32.fraction_bits)
    step = np.float32(format.smallest_subnormal)

    def widen(code):
        # Same fraction, exponent counted from another bias; subnormals are multiples of the step.
        # In plain arithmetic: the CPU's own conversion of halves is not on every CPU.
        magnitude = np.uint32(code & (sign - np.uint32(1)))
        normal = np.uint32((magnitude << shift) + rebias).view(np.float32)
        value = np.float32(np.int32(magnitude)) * step if magnitude < hidden else normal
        return -value if code & sign else value

    return widen


# The kernels take x (N, K), codes (O, K), factor (O,), out (N, O) and the rows of codes to do.
# Several rows go side by side: each is a stream of its own that the memory fetches ahead, and x is
# loaded once for all of them. Behind the last row comes the last again, to the same result.
#
# A CPU adds 16 numbers at once, if it may add them in another order than they stand in: "reassoc"
# allows that, "contract" to round a product and its addition once. No more of fastmath: infinities
# and NaN in x stay what they are.
_FASTMATH = {"reassoc", "contract"}


@functools.cache
def _one_image(format: FloatFormat | None) -> Callable[..., None]:
    """The sums for one image, compiled at the first call. Importing Numba takes a while."""
    import numba

    widen = numba.njit(inline="always")(_widening(format))

    def one_image(x, codes, factor, out, start, stop):
        last = stop - 1
        for o in range(start, stop, 8):
            o1, o2, o3, o4 = min(o + 1, last), min(o + 2, last), min(o + 3, last), min(o + 4, last)
            o5, o6, o7 = min(o + 5, last), min(o + 6, last), min(o + 7, last)
            s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = np.float32(0)
            for k in range(codes.shape[1]):
                value = x[0, k]
                s0 += value * widen(codes[o, k])
                s1 += value * widen(codes[o1, k])
                s2 += value * widen(codes[o2, k])
                s3 += value * widen(codes[o3, k])
                s4 += value * widen(codes[o4, k])
                s5 += value * widen(codes[o5, k])
                s6 += value * widen(codes[o6, k])
                s7 += value * widen(codes[o7, k])
            out[0, o], out[0, o1] = s0 * factor[o], s1 * factor[o1]
            out[0, o2], out[0, o3] = s2 * factor[o2], s3 * factor[o3]
            out[0, o4], out[0, o5] = s4 * factor[o4], s5 * factor[o5]
            out[0, o6], out[0, o7] = s6 * factor[o6], s7 * factor[o7]

    return compiled(one_image, _FASTMATH)


@functools.cache
def _images(format: FloatFormat | None) -> Callable[..., None]:
    """The sums for several images."""
    import numba

    widen = numba.njit(inline="always")(_widening(format))

    def images(x, codes, factor, out, start, stop):
        last, last_image = stop - 1, len(x) - 1
        for o in range(start, stop, 4):
            o1, o2, o3 = min(o + 1, last), min(o + 2, last), min(o + 3, last)
            for n in range(0, len(x), 4):
                n1, n2 = min(n + 1, last_image), min(n + 2, last_image)
                n3 = min(n + 3, last_image)
                a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = np.float32(0)
                c0 = c1 = c2 = c3 = d0 = d1 = d2 = d3 = np.float32(0)
                for k in range(codes.shape[1]):
                    x0, x1, x2, x3 = x[n, k], x[n1, k], x[n2, k], x[n3, k]
                    a, b = widen(codes[o, k]), widen(codes[o1, k])
                    c, d = widen(codes[o2, k]), widen(codes[o3, k])
                    a0, a1, a2, a3 = a0 + x0 * a, a1 + x1 * a, a2 + x2 * a, a3 + x3 * a
                    b0, b1, b2, b3 = b0 + x0 * b, b1 + x1 * b, b2 + x2 * b, b3 + x3 * b
                    c0, c1, c2, c3 = c0 + x0 * c, c1 + x1 * c, c2 + x2 * c, c3 + x3 * c
                    d0, d1, d2, d3 = d0 + x0 * d, d1 + x1 * d, d2 + x2 * d, d3 + x3 * d
                f, f1, f2, f3 = factor[o], factor[o1], factor[o2], factor[o3]
                out[n, o], out[n1, o], out[n2, o], out[n3, o] = a0 * f, a1 * f, a2 * f, a3 * f
                out[n, o1], out[n1, o1] = b0 * f1, b1 * f1
                out[n2, o1], out[n3, o1] = b2 * f1, b3 * f1
                out[n, o2], out[n1, o2] = c0 * f2, c1 * f2
                out[n2, o2], out[n3, o2] = c2 * f2, c3 * f2
                out[n, o3], out[n1, o3] = d0 * f3, d1 * f3
                out[n2, o3], out[n3, o3] = d2 * f3, d3 * f3

    return compiled(images, _FASTMATH)


class StoredLinear(Layer):
    """A trained :class:`~fastdl_lib.nn.layers.Linear` with its weights stored in another format.

    Forward only, on the CPU, for small batches: with many images the products are the limit, not
    the memory, and Linear's BLAS is the better choice. Input (N, in) float32, output (N, out)
    float32, equal within float32's rounding to Linear's with the decoded weights. The bias stays
    float32. The rows of weights are shared out among as many threads as the BLAS may use. The first
    forward pass in a format compiles, which takes about a second.

    Args:
        layer: its weights are copied, float32, on the CPU.
        format: the weights' format, any but float64 (which float32 sums would not do justice).

    Raises TypeError, ValueError: no such Linear; a format this cannot multiply from, or too narrow.

    >>> from fastdl_lib.precision.formats import INT8
    >>> wide = Linear(512, 256, rng=np.random.default_rng(0))
    >>> narrow = StoredLinear(wide, INT8)
    >>> x = np.ones((1, 512), np.float32)
    >>> np.allclose(narrow.forward(x), wide.forward(x), atol=0.1)
    True
    >>> [wide.parameters["weight"].nbytes, narrow.weight.nbytes]
    [524288, 131076]
    """

    kind = "fc"

    def __init__(self, layer: Linear, format: NumberFormat) -> None:
        super().__init__()
        if not isinstance(layer, Linear):
            raise TypeError(f"StoredLinear stores a Linear layer, got {type(layer).__name__}.")
        check_format("format", format)
        weight = layer.parameters["weight"]
        check_on_cpu("StoredLinear", weight)
        if weight.dtype != np.float32:
            raise TypeError(f"StoredLinear stores float32 weights, got {weight.dtype}.")
        if isinstance(format, ScaledInteger) and format.axis not in (None, 0):
            raise ValueError(
                f"{format.name} has a scale for each input, which no sum over the inputs can be "
                "multiplied by afterwards; use axis=0, one for each output, or axis=None."
            )
        _check_holds(format, weight)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        # One row behind the other, whatever the order in memory was.
        self.format = format
        self.weight: Stored = format.store(np.ascontiguousarray(weight))
        """(out, in)."""
        self.bias = layer.parameters["bias"].copy()
        # What each sum is multiplied by at last: the scales, or the step of whole numbers.
        factor = 1.0 if isinstance(format, FloatFormat) else format.epsilon
        self._factor = np.full(self.out_features, factor, np.float32)
        if self.weight.scale is not None:
            self._factor *= self.weight.scale

    @property
    def nbytes(self) -> int:
        """Bytes of the stored weights, their scales and the bias."""
        return self.weight.nbytes + self.bias.nbytes

    @property
    def parameter_count(self) -> int:
        return math.prod(self.weight.shape) + self.bias.size

    def stored_bytes(self, bytes_per_value: float = 4) -> int:
        return self.nbytes

    def macs(self, input_shape: Shape) -> int:
        return self.in_features * self.out_features

    def to_store(self, packed: bool = False) -> dict[str, np.ndarray]:
        raise TypeError(
            f"StoredLinear's {self.format.name} has no place in a file of weights: save the "
            "network with the Linear that it was made from."
        )

    def output_shape(self, input_shape: Shape) -> Shape:
        if input_shape != (self.in_features,):
            raise ValueError(
                f"this StoredLinear takes ({self.in_features},) features, got {input_shape}."
            )
        return (self.out_features,)

    def forward(self, x: Array, training: bool = False) -> Array:
        if training:
            raise RuntimeError(
                "StoredLinear does not train: few bits take no small steps. Train the Linear it "
                "was made from, in float32 or with mixed precision, and store it anew."
            )
        check_batch(self, x, 2)
        check_on_cpu("StoredLinear", x)
        if x.dtype != np.float32:
            raise TypeError(f"StoredLinear takes float32, got {x.dtype}; use x.astype(np.float32).")
        self.output_shape(x.shape[1:])
        floats = self.format if isinstance(self.format, FloatFormat) else None
        kernel = (_one_image if len(x) == 1 else _images)(floats)
        # Codes are larger than the weights they stand for: their sums must not overflow before.
        large = (np.abs(x) > 2.0**64).any(axis=1, keepdims=True)
        shrink = np.where(large, np.float32(2.0**-40), np.float32(1))
        x, codes = np.ascontiguousarray(x) * shrink, self.weight.codes
        out = np.empty((len(x), self.out_features), np.float32)
        in_parallel(
            lambda rows: kernel(x, codes, self._factor, out, rows.start, rows.stop),
            self.out_features,
            least=_LEAST_ROWS,
        )
        out /= shrink
        out += self.bias
        return out

    def backward(self, grad_out: Array) -> Array:
        raise RuntimeError("StoredLinear has no backward pass; see Linear.")


def _check_holds(format: NumberFormat, weight: np.ndarray) -> None:
    """Refuse a format wider than float32, and weights that would become infinite, NaN, smaller than
    the format rounds, or all of them 0."""
    if isinstance(format, FloatFormat) and format.bits > FLOAT32.bits:
        raise ValueError(
            f"StoredLinear adds up in float32, which does not hold {format.name}; keep the Linear."
        )
    extremes = np.array([weight.min(), weight.max()])
    rounded = format.round(extremes)
    saturated = isinstance(format, FixedPoint) and (abs(rounded - extremes) > format.epsilon).any()
    if saturated or not np.isfinite(rounded).all() or (extremes.any() and not rounded.any()):
        raise ValueError(
            f"the weights reach from {extremes[0]:g} to {extremes[1]:g}, and {format.name} ends at "
            f"{format.largest:g} and begins at {format.smallest_subnormal:g}: scale them, or take "
            "a format with a wider range."
        )
