"""Layers that normalise: over neighbouring channels, as AlexNet does, and over the batch."""

from collections.abc import Callable
from typing import Any

import numpy as np

from fastdl_lib.core.arrays import array_module, wide
from fastdl_lib.core.checks import check_number, check_whole_number
from fastdl_lib.core.threads import sum_in_order
from fastdl_lib.kernels import pixels as loops
from fastdl_lib.kernels.compiled import suits
from fastdl_lib.nn.layers import Layer, check_batch, check_image_shape, in_rows

Array = Any  # numpy.ndarray or cupy.ndarray
Shape = tuple[int, ...]


def _widened(x: Array) -> Array:
    """x in the dtype to compute sums and powers in, itself where it has that already."""
    return x.astype(wide(x.dtype), copy=False)


def _pixels(x: Array) -> Array:
    """(N, C, H, W) as rows of channels, (N * H * W, C): a view where x is channels last."""
    return x.transpose(0, 2, 3, 1).reshape(-1, x.shape[1])


def _from_pixels(pixels: Array, shape: Shape) -> Array:
    """The way back from :func:`_pixels`, a view: channels last in memory."""
    batch, channels, height, width = shape
    return pixels.reshape(batch, height, width, channels).transpose(0, 3, 1, 2)


class LocalResponseNorm(Layer):
    """Divide by a power of the energy in neighbouring channels.

    out = x / (k + alpha * sum of x^2 over ``size`` neighbouring channels) ** beta

    The constants are those of the paper: Krizhevsky, Sutskever, Hinton, "ImageNet classification
    with deep convolutional neural networks", NIPS 2012, section 3.3. Caffe divides alpha by size
    and has k = 1. Input and output (N, C, H, W); float16 is computed in float32, where the squares
    do not overflow. ``size`` is odd.

    >>> LocalResponseNorm().forward(np.ones((1, 96, 2, 2), np.float32)).shape
    (1, 96, 2, 2)
    """

    kind = "norm"

    def __init__(
        self, size: int = 5, *, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0
    ) -> None:
        super().__init__()
        size = check_whole_number("size", size, 1)
        if size % 2 == 0:
            raise ValueError(f"size must be odd, so that a channel is in the middle; got {size}.")
        for name, value in (("alpha", alpha), ("beta", beta), ("k", k)):
            check_number(name, value, low=0)
        # Plain floats: a NumPy float64 would widen a float32 batch.
        self.size, self.alpha, self.beta, self.k = size, float(alpha), float(beta), float(k)

    def output_shape(self, input_shape: Shape) -> Shape:
        return check_image_shape(self, input_shape)

    def _window_sum(self, a: Array, b: Array) -> Array:
        """Sum the products a * b over the neighbouring channels of each channel, (pixels, C)."""
        # The channels of a pixel lie in a row with zeros on both sides, so that adding the whole
        # array to itself, a few places further on, adds neighbours and never another pixel.
        xp, reach = array_module(a), self.size // 2
        (pixels, channels), row = a.shape, a.shape[1] + 2 * reach
        flat = xp.zeros(pixels * row + 2 * reach, a.dtype)
        inside = flat[: pixels * row].reshape(pixels, row)[:, reach : reach + channels]
        xp.multiply(a, b, out=inside)
        # Sums over 1, 2, 4, ... neighbours, each made of the last one; some make up the size.
        sums, width, total, taken = flat, 1, None, 0
        while taken < self.size:
            if self.size & width:
                further = sums[taken : taken + pixels * row]
                total = further if total is None else total + further
                taken += width
            if taken < self.size:
                sums, width = sums[:-width] + sums[width:], 2 * width
        return total.reshape(pixels, row)[:, :channels]

    def _energy_and_divisor(self, x: Array) -> tuple[Array, Array]:
        """k + alpha * sum of x^2, and its power beta."""
        xp = array_module(x)
        energy = self._window_sum(x, x)
        # Python floats do not widen a float32 array (NumPy 2's promotion rules).
        energy *= self.alpha
        energy += self.k
        if self.beta != 0.75:
            return energy, energy**self.beta
        divisor = xp.sqrt(energy)  # two roots take half the time of a power
        divisor *= xp.sqrt(divisor)
        return energy, divisor

    def forward(self, x: Array, training: bool = False) -> Array:
        check_batch(self, x, 4)
        pixels = _pixels(x)
        out = array_module(x).empty_like(pixels)
        is_compiled = self.beta == 0.75 and suits(pixels)
        constants = np.float32([self.alpha, self.k])

        def work(rows: slice) -> None:
            if is_compiled:
                loops.response_norm(self.size)(pixels[rows], out[rows], *constants)
                return
            values = _widened(pixels[rows])
            _, divisor = self._energy_and_divisor(values)
            array_module(x).divide(values, divisor, out=out[rows])

        in_rows(work, pixels)
        out = _from_pixels(out, x.shape)
        self._keep(training, out, pixels)
        return out

    def backward(self, grad_out: Array) -> Array:
        (pixels,) = self._recall(grad_out)
        grads, grad_x = _pixels(grad_out), array_module(pixels).empty_like(pixels)
        is_compiled = self.beta == 0.75 and suits(pixels, grads)
        constants = np.float32([self.alpha, self.k, 2 * self.alpha * self.beta])

        def work(rows: slice) -> None:
            if is_compiled:
                back = loops.response_norm_back(self.size)
                back(pixels[rows], grads[rows], grad_x[rows], *constants)
                return
            x = _widened(pixels[rows])
            # Computing these again takes less time than storing and fetching them.
            energy, divisor = self._energy_and_divisor(x)
            grad = grads[rows] / divisor
            shared = self._window_sum(grad / energy, x)
            shared *= x
            shared *= 2 * self.alpha * self.beta
            array_module(x).subtract(grad, shared, out=grad_x[rows])

        in_rows(work, pixels)
        return _from_pixels(grad_x, grad_out.shape)


class BatchNorm(Layer):
    """Bring each feature, or channel, to mean 0 and variance 1 over the batch; scale and shift it.

    out = weight * (x - mean) / sqrt(variance + eps) + bias

    In training, mean and variance are the batch's own, and ``buffers`` follow them: of the old
    value 1 - momentum stays at each step. One value a feature, such as one image of one pixel, says
    nothing of a variance: the buffers stay (PyTorch refuses such a batch). The variance of n values
    is the biased one, sum((x - mean)^2) / n; PyTorch normalises by it as well, but its
    ``running_var`` follows n / (n - 1) times that. Out of training mean and variance are those of
    ``buffers``. eps and momentum are the values of Courbariaux et al., "Binarized neural networks",
    2016 (their ``Train-time/mnist.py``); the method is Ioffe's and Szegedy's, "Batch
    normalization", ICML 2015.
    Input and output (N, features) or (N, C, H, W); float16 is computed in float32.

    >>> BatchNorm(1).forward(np.array([[1.0], [3.0]]), training=True).round(3).tolist()
    [[-1.0], [1.0]]
    """

    kind, mixes_images, not_negative = "norm", True, ("variance",)

    def __init__(self, features: int, *, eps: float = 1e-4, momentum: float = 0.1) -> None:
        super().__init__()
        features = check_whole_number("features", features, 1)
        check_number("eps", eps, low=0, low_included=False)
        check_number("momentum", momentum, low=0, high=1)
        self.features, self.eps, self.momentum = features, float(eps), float(momentum)
        zeros, ones = np.zeros(features, np.float32), np.ones(features, np.float32)
        self.parameters = {"weight": ones, "bias": zeros}
        self.buffers = {"mean": zeros.copy(), "variance": ones.copy()}

    def output_shape(self, input_shape: Shape) -> Shape:
        if input_shape[0] != self.features or len(input_shape) not in (1, 3):
            raise ValueError(
                f"this BatchNorm takes ({self.features},) features or ({self.features}, H, W) "
                f"channels, got {input_shape}."
            )
        return input_shape

    def macs(self, input_shape: Shape) -> int:
        return 0  # as papers count: products of a convolution or a matrix only

    def scale_and_shift(self) -> tuple[Array, Array]:
        """What the layer does out of training: ``out = x * scale + shift``, (features,) each."""
        weight, bias = (_widened(self.parameters[name]) for name in ("weight", "bias"))
        mean, variance = (_widened(self.buffers[name]) for name in ("mean", "variance"))
        scale = weight / array_module(weight).sqrt(variance + self.eps)
        return scale, bias - mean * scale

    def forward(self, x: Array, training: bool = False) -> Array:
        array_module(x, self.parameters["weight"])
        check_batch(self, x, 2, 4)
        self.output_shape(x.shape[1:])
        rows = x if x.ndim == 2 else _pixels(x)
        out = array_module(x).empty_like(rows)
        if training:
            kept = self._normalise_batch(rows, out)
        else:
            kept = ()
            scale, shift = self.scale_and_shift()

            def work(part: slice) -> None:
                values = rows[part] * scale
                values += shift
                out[part] = values

            in_rows(work, rows)
        out = out if x.ndim == 2 else _from_pixels(out, x.shape)
        self._keep(training, out, *kept)
        return out

    def _normalise_batch(self, rows: Array, out: Array) -> tuple[Array, Array]:
        """Fill ``out``, move the buffers; return the normalised rows and 1 / deviation."""
        mean = _sum_of_rows(rows, lambda part: _widened(rows[part])) / len(rows)
        normal = array_module(rows).empty_like(rows, dtype=wide(rows.dtype))

        def centred_squares(part: slice) -> Array:
            normal[part] = rows[part]
            normal[part] -= mean
            return normal[part] * normal[part]

        variance = _sum_of_rows(rows, centred_squares) / len(rows)
        with np.errstate(invalid="ignore"):
            variance += 0 * variance  # one that has overflowed is none: NaN
        inverse = 1 / array_module(rows).sqrt(variance + self.eps)
        weight, bias = _widened(self.parameters["weight"]), _widened(self.parameters["bias"])

        def work(part: slice) -> None:
            normal[part] *= inverse
            values = normal[part] * weight
            values += bias
            out[part] = values

        in_rows(work, normal)
        # One value has no variance: 0 would be learnt of it.
        learnt = {"mean": mean, "variance": variance} if len(rows) > 1 else {}
        for name, seen in learnt.items():
            buffer = self.buffers[name]
            buffer[...] = (1 - self.momentum) * _widened(buffer) + self.momentum * seen
        return normal, inverse

    def backward(self, grad_out: Array) -> Array:
        normal, inverse = self._recall(grad_out)
        xp = array_module(normal, grad_out)
        grads = grad_out if grad_out.ndim == 2 else _pixels(grad_out)
        grad_bias = _sum_of_rows(grads, lambda part: _widened(grads[part]))
        grad_weight = _sum_of_rows(grads, lambda part: _widened(grads[part]) * normal[part])
        grad_x = xp.empty_like(grads)
        scale = _widened(self.parameters["weight"]) * inverse
        shared, along = grad_bias / len(grads), grad_weight / len(grads)

        def work(part: slice) -> None:
            values = _widened(grads[part]) - shared
            values -= normal[part] * along
            values *= scale
            grad_x[part] = values

        in_rows(work, normal)
        sums = {"weight": grad_weight, "bias": grad_bias}
        self.gradients = {n: a.astype(grad_out.dtype, copy=False) for n, a in sums.items()}
        return grad_x if grad_out.ndim == 2 else _from_pixels(grad_x, grad_out.shape)


def _sum_of_rows(rows: Array, values: Callable[[slice], Array]) -> Array:
    """Add up ``values(part)``, (rows, features), over all rows; the same bits every time."""
    sums: dict[int, tuple[Array]] = {}

    def work(part: slice) -> None:
        sums[part.start] = (values(part).sum(axis=0),)

    in_rows(work, rows)
    return sum_in_order(sums)[0]
