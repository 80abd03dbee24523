"""Layers whose weights or values are one bit, +1 or -1, and how they learn all the same.

The sign's gradient is zero almost everywhere, so nothing would learn. In its place the gradient of
a straight line is taken, cut off where the value is beyond -1 or +1: the straight-through
estimator (Bengio, Leonard, Courville 2013). Each binary weight is the sign of a *latent* float
weight, which gathers the small steps of the optimiser and stays within [-1, 1].

Source: M. Courbariaux, I. Hubara, D. Soudry, R. El-Yaniv, Y. Bengio, "Binarized neural networks:
training neural networks with weights and activations constrained to +1 or -1", 2016,
arXiv:1602.02830.
"""

import math
from typing import Any

import numpy as np

from fastdl_lib.binary.bits import pack, unpack
from fastdl_lib.convolution.algorithms import choose
from fastdl_lib.convolution.geometry import Geometry
from fastdl_lib.core.arrays import array_module
from fastdl_lib.core.threads import in_flat_blocks
from fastdl_lib.nn.layers import Conv2d, Layer, Linear, check_batch

Array = Any  # numpy.ndarray or cupy.ndarray


def sign(x: Array) -> Array:
    """Return +1 where ``x`` is 0 or more, -1 below: two values only, unlike NumPy's; and NaN where
    ``x`` is NaN or infinite, so that a number which was lost does not become an answer.

    ``x``: any shape, any float dtype; the result has its shape, dtype and order in memory.

    >>> sign(np.array([-0.3, 0.0, 2.0])).tolist()
    [-1.0, 1.0, 1.0]
    """
    xp = array_module(x)
    out = xp.empty_like(x)

    def work(values: Array, signs: Array) -> None:
        xp.add(_zeros_or_nan(values), xp.asarray(1, x.dtype), out=signs)
        signs -= xp.multiply(values < 0, xp.asarray(2, x.dtype))

    in_flat_blocks(work, [x, out])
    return out


def _zeros_or_nan(values: Array) -> Array:
    """0 for every value, NaN for one that is NaN or infinite."""
    with np.errstate(invalid="ignore"):
        return values * 0


class Sign(Layer):
    """The sign of each value; backwards the gradient passes where the value is within [-1, 1].

    That is the gradient of hard tanh, clip(x, -1, 1), instead of the sign's own, which is 0.
    Any shape, any float dtype.

    Args:
        straight_through: False gives the sign's true gradient, 0: what lies before learns nothing.

    Source: Courbariaux et al. 2016, section 1.3.

    >>> layer = Sign()
    >>> layer.forward(np.array([[-3.0, -0.5, 0.0, 0.5]]), training=True).tolist()
    [[-1.0, -1.0, 1.0, 1.0]]
    >>> layer.backward(np.ones((1, 4))).tolist()
    [[0.0, 1.0, 1.0, 1.0]]
    """

    def __init__(self, *, straight_through: bool = True) -> None:
        super().__init__()
        self.straight_through = straight_through

    def forward(self, x: Array, training: bool = False) -> Array:
        check_batch(self, x)
        out = sign(x)
        self._keep(training, out, x)
        return out

    def backward(self, grad_out: Array) -> Array:
        (x,) = self._recall(grad_out)
        xp = array_module(x, grad_out)
        if not self.straight_through:
            return xp.zeros_like(grad_out)
        grad_x = xp.empty_like(x)

        def work(values: Array, grad: Array, passed: Array) -> None:
            xp.multiply(grad, abs(values) <= 1, out=passed)

        in_flat_blocks(work, [x, grad_out, grad_x])
        return grad_x


class PixelBytes(Layer):
    """From images of 0 to 1 to the whole numbers 0 to 255 that they were stored as; others are
    refused (ValueError), NaN and infinity among them.

    Sums of whole numbers are exact in float32, in any order, below 2 ** 24: with this layer in
    front, a binary network's first layer is exact as well. Its scale changes nothing in front of a
    :class:`~fastdl_lib.nn.norms.BatchNorm`. Any shape, any float dtype.

    >>> PixelBytes().forward(np.array([[0.0, 0.5, 1.0]], np.float32)).tolist()
    [[0.0, 128.0, 255.0]]
    """

    def forward(self, x: Array, training: bool = False) -> Array:
        check_batch(self, x)
        low, high = float(x.min()), float(x.max())
        if not (low >= 0 and high <= 1):
            raise ValueError(f"images must lie in 0..1, got {low:.8g}..{high:.8g}.")
        out = x * 255
        array_module(x).rint(out, out=out)
        self._keep(training, out)
        return out

    def backward(self, grad_out: Array) -> Array:
        self._recall(grad_out)
        return 255 * grad_out


class _BinaryWeights(Layer):
    """What the two layers with binary weights share."""

    sums_by = Layer.sums_by  # not those of the latent weights

    def after_step(self) -> None:
        """Clip the latent weights to [-1, 1]: beyond, they could only delay a change of sign. An
        infinite one, as of a gradient that overflowed, becomes NaN."""
        weight = self.parameters["weight"]
        xp = array_module(weight)

        def work(values: Array) -> None:
            zeros = _zeros_or_nan(values)
            xp.clip(values, -1, 1, out=values)
            values += zeros

        in_flat_blocks(work, [weight])

    def to_store(self, packed: bool = False) -> dict[str, np.ndarray]:
        """Packed, a bit a weight: of the latent ones only the signs are kept."""
        stored = super().to_store(packed)
        if packed:
            weight = stored.pop("weight")
            stored["weight.bits"] = pack(weight.reshape(len(weight), -1))
        return stored

    def from_store(self, stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Bits back to weights of +1 and -1."""
        if "weight" in stored or "weight.bits" not in stored:
            return stored
        shape = self.parameters["weight"].shape
        words, length = stored.pop("weight.bits"), math.prod(shape[1:])
        signs = unpack(words, length)
        if (pack(signs) != words).any():
            raise ValueError("bits stand where there is no weight.")
        return stored | {"weight": signs.reshape(-1, *shape[1:])}


class BinaryLinear(_BinaryWeights, Linear):
    """A fully connected layer of binary weights, without a bias: ``x @ sign(weight).T``.

    Behind a layer whose values are +1 and -1 this is a binarized network's product; behind one with
    float values it is BinaryConnect's (Courbariaux, Bengio, David, NIPS 2015). The gradient passes
    straight through the sign to the latent weight, which an optimiser's step leaves in [-1, 1].
    Input (N, in), output (N, out).

    >>> layer = BinaryLinear(9, 2, rng=np.random.default_rng(0))
    >>> layer.forward(np.ones((1, 9), np.float32)).tolist()
    [[-3.0, -1.0]]
    """

    def __init__(self, in_features: int, out_features: int, *, rng: np.random.Generator) -> None:
        super().__init__(in_features, out_features, rng=rng)
        del self.parameters["bias"]

    def forward(self, x: Array, training: bool = False) -> Array:
        self._check_input(x)
        signs = sign(self.parameters["weight"])
        out = self._product(x, signs)
        self._keep(training, out, x, signs)
        return out

    def _backward(self, grad_out: Array, need_grad_x: bool) -> Array | None:
        x, signs = self._recall(grad_out)
        grad_x, grad_weight = self._product_backward(grad_out, x, signs, need_grad_x)
        self._set_gradients(weight=grad_weight)
        return grad_x


class BinaryConv2d(_BinaryWeights, Conv2d):
    """Convolution with square filters of binary weights, without a bias.

    As :class:`~fastdl_lib.nn.layers.Conv2d`, with the signs of its latent weights; see
    :class:`BinaryLinear`. Input (N, C, H, W), output (N, K, OH, OW).

    Args:
        padding_value: what stands around the image. 0 would be a third value beside +1 and -1, but
            belongs in front of a layer of whole numbers; -1 is what a picture's background is.
        options: stride, padding and algorithm, as of Conv2d; "auto" takes an algorithm with exact
            sums, not Winograd's. There are no groups.

    >>> layer = BinaryConv2d(1, 2, 3, padding=1, rng=np.random.default_rng(0))
    >>> layer.forward(np.ones((1, 1, 28, 28), np.float32)).shape
    (1, 2, 28, 28)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        padding_value: float = -1.0,
        rng: np.random.Generator,
        **options: Any,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, rng=rng, groups=1, **options)
        del self.parameters["bias"]
        self.padding_value = float(padding_value)

    def algorithm_for(self, x: Array, training: bool = False) -> str:
        if self.algorithm != "auto":
            return self.algorithm
        return "blocked" if array_module(x) is np else "gpu"

    def forward(self, x: Array, training: bool = False) -> Array:
        check_batch(self, x, 4)
        self.output_shape(x.shape[1:])
        if self.padding:
            edges = ((0, 0), (0, 0), *[(self.padding, self.padding)] * 2)
            x = array_module(x).pad(x, edges, constant_values=self.padding_value)
        signs = sign(self.parameters["weight"])
        geometry = Geometry.of(x, signs, stride=self.stride)
        row = choose(self.algorithm_for(x), x, geometry)
        out = row.forward(x, signs, None, geometry)
        self._keep(training, out, x, signs, row, geometry)
        return out

    def _backward(self, grad_out: Array, need_grad_x: bool) -> Array | None:
        x, signs, row, geometry = self._recall(grad_out)
        grad_x, grad_weight, _ = row.backward(grad_out, x, signs, geometry, need_grad_x)
        self._set_gradients(weight=grad_weight)
        if grad_x is None or not self.padding:
            return grad_x
        inside = slice(self.padding, -self.padding)
        return grad_x[:, :, inside, inside]
