"""The book's way to compute a network, forward and backward, as layers of ``fastdl_lib``.

Written anew after the description of Saitoh, *Deep Learning from Scratch*, chapters 6 to 8. The
book names no dtype, so its columns, and all that follows, are float64; ``dtype=np.float32`` gives
the same algorithms with that one thing changed. It has neither groups nor local response
normalisation: a layer of two groups is two of its convolutions, and the normalisation is a plain
loop over channels.
"""

import numpy as np

from fastdl_lib.nn.layers import Conv2d, Dropout, Flatten, Layer, Linear, MaxPool2d, ReLU
from fastdl_lib.nn.network import Network
from fastdl_lib.nn.norms import LocalResponseNorm


def im2col(x: np.ndarray, size: int, stride: int, padding: int, dtype: type) -> np.ndarray:
    """Lay the patches of (N, C, H, W) out as rows: (N * OH * OW, C * size * size) of ``dtype``."""
    batch, channels, height, width = x.shape
    out_h = (height + 2 * padding - size) // stride + 1
    out_w = (width + 2 * padding - size) // stride + 1
    padded = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    patches = np.zeros((batch, channels, size, size, out_h, out_w), dtype)
    for p in range(size):
        for q in range(size):
            rows = slice(p, p + stride * out_h, stride)
            columns = slice(q, q + stride * out_w, stride)
            patches[:, :, p, q] = padded[:, :, rows, columns]
    return patches.transpose(0, 4, 5, 1, 2, 3).reshape(batch * out_h * out_w, -1)


def col2im(
    rows: np.ndarray, shape: tuple[int, ...], size: int, stride: int, padding: int
) -> np.ndarray:
    """Add the rows of patches up into an image batch of ``shape``: the adjoint of im2col."""
    batch, channels, height, width = shape
    out_h = (height + 2 * padding - size) // stride + 1
    out_w = (width + 2 * padding - size) // stride + 1
    patches = rows.reshape(batch, out_h, out_w, channels, size, size).transpose(0, 3, 4, 5, 1, 2)
    padded = np.zeros((batch, channels, height + 2 * padding, width + 2 * padding), rows.dtype)
    for p in range(size):
        for q in range(size):
            places = (slice(p, p + stride * out_h, stride), slice(q, q + stride * out_w, stride))
            padded[:, :, places[0], places[1]] += patches[:, :, p, q]
    return padded[:, :, padding : padding + height, padding : padding + width]


def from_rows(rows: np.ndarray, batch: int) -> np.ndarray:
    """Turn (N * OH * OW, K) into (N, K, OH, OW) for a square map: a view, without a copy."""
    side = round((len(rows) // batch) ** 0.5)
    return rows.reshape(batch, side, side, -1).transpose(0, 3, 1, 2)


class BookLayer(Layer):
    """A layer that has the weights of ``layer`` in ``dtype`` and computes as the book does.

    What backward needs is kept in training only, as in ``fastdl_lib``; the book keeps it always.
    """

    def __init__(self, layer: Layer, dtype: type) -> None:
        super().__init__()
        self.layer, self.dtype = layer, dtype
        self.parameters = {name: array.astype(dtype) for name, array in layer.parameters.items()}
        self.output_shape = layer.output_shape


class BookConvolution(BookLayer):
    """One product of the patches with all filters; a layer of two groups is two convolutions."""

    def forward(self, x: np.ndarray, training: bool = False) -> np.ndarray:
        layer, groups = self.layer, self.layer.groups
        weights = np.split(self.parameters["weight"], groups)
        biases = np.split(self.parameters["bias"], groups)
        self.shape = (len(x), x.shape[1] // groups, *x.shape[2:])
        outs, kept = [], []
        for part, weight, bias in zip(np.split(x, groups, axis=1), weights, biases, strict=True):
            rows = im2col(part, layer.kernel, layer.stride, layer.padding, self.dtype)
            outs.append(from_rows(np.dot(rows, weight.reshape(len(weight), -1).T) + bias, len(x)))
            if training:
                kept.append(rows)
        self.rows = kept
        return outs[0] if groups == 1 else np.concatenate(outs, axis=1)

    def backward(self, grad_out: np.ndarray) -> np.ndarray:
        # In the first layer too, where fastdl asks for backward_weights() alone: as the book does.
        layer, groups = self.layer, self.layer.groups
        weights = np.split(self.parameters["weight"], groups)
        grads_weight, grads_bias, grads_x = [], [], []
        parts = np.split(grad_out, groups, axis=1)
        for part, weight, rows in zip(parts, weights, self.rows, strict=True):
            grad = part.transpose(0, 2, 3, 1).reshape(-1, len(weight))
            grads_bias.append(np.sum(grad, axis=0))
            grads_weight.append(np.dot(rows.T, grad).T.reshape(weight.shape))
            grad_rows = np.dot(grad, weight.reshape(len(weight), -1))
            grads_x.append(col2im(grad_rows, self.shape, layer.kernel, layer.stride, layer.padding))
        self.gradients = {
            "weight": np.concatenate(grads_weight),
            "bias": np.concatenate(grads_bias),
        }
        return grads_x[0] if groups == 1 else np.concatenate(grads_x, axis=1)


class BookPooling(BookLayer):
    """Patches as rows once more, one row for each window and channel, and their maximum."""

    def forward(self, x: np.ndarray, training: bool = False) -> np.ndarray:
        batch, channels = x.shape[:2]
        rows = im2col(x, self.layer.kernel, self.layer.stride, 0, self.dtype)
        rows = rows.reshape(-1, self.layer.kernel**2)
        if training:
            self.shape, self.largest = x.shape, np.argmax(rows, axis=1)
        return from_rows(np.max(rows, axis=1).reshape(-1, channels), batch)

    def backward(self, grad_out: np.ndarray) -> np.ndarray:
        grad = grad_out.transpose(0, 2, 3, 1)
        rows = np.zeros((grad.size, self.layer.kernel**2), self.dtype)
        rows[np.arange(grad.size), self.largest] = grad.flatten()
        return col2im(rows, self.shape, self.layer.kernel, self.layer.stride, 0)


class BookAffine(BookLayer):
    """A product with the weights, stored (in, out) as in the book.

    The parameter is the transposed view of that array, so that names and shapes are ours.
    """

    def __init__(self, layer: Linear, dtype: type) -> None:
        super().__init__(layer, dtype)
        self.parameters["weight"] = np.ascontiguousarray(self.parameters["weight"].T).T

    def forward(self, x: np.ndarray, training: bool = False) -> np.ndarray:
        self.x = x if training else None
        return np.dot(x, self.parameters["weight"].T) + self.parameters["bias"]

    def backward(self, grad_out: np.ndarray) -> np.ndarray:
        grad_weight = np.dot(self.x.T, grad_out).T
        self.gradients = {"weight": grad_weight, "bias": np.sum(grad_out, axis=0)}
        return np.dot(grad_out, self.parameters["weight"])


class BookReLU(BookLayer):
    """Mask the negative values in a copy."""

    def forward(self, x: np.ndarray, training: bool = False) -> np.ndarray:
        self.mask = x <= 0
        out = x.copy()
        out[self.mask] = 0
        return out

    def backward(self, grad_out: np.ndarray) -> np.ndarray:
        grad_out[self.mask] = 0
        return grad_out


class BookDropout(BookLayer):
    """A mask of random numbers; scaled in training, where the book scales at test time."""

    def __init__(self, layer: Dropout, dtype: type) -> None:
        super().__init__(layer, dtype)
        self.rate, self.generator = layer.rate, np.random.default_rng(0)

    def forward(self, x: np.ndarray, training: bool = False) -> np.ndarray:
        if not training:
            return x
        kept = self.generator.random(x.shape) >= self.rate
        self.mask = (kept / (1 - self.rate)).astype(self.dtype)
        return x * self.mask

    def backward(self, grad_out: np.ndarray) -> np.ndarray:
        return grad_out * self.mask


class LoopedNorm(BookLayer):
    """Normalise channel by channel, in a plain loop: the book has no such layer."""

    def window(self, channel: int) -> slice:
        """The channels that a channel is normalised by, and that it takes part in."""
        reach = self.layer.size // 2
        return slice(max(0, channel - reach), channel + reach + 1)

    def forward(self, x: np.ndarray, training: bool = False) -> np.ndarray:
        layer, squares, out = self.layer, x**2, np.empty_like(x)
        if training:
            self.x, self.energies = x, np.empty_like(x)
        for channel in range(x.shape[1]):
            energy = layer.k + layer.alpha * squares[:, self.window(channel)].sum(axis=1)
            out[:, channel] = x[:, channel] / energy**layer.beta
            if training:
                self.energies[:, channel] = energy
        return out

    def backward(self, grad_out: np.ndarray) -> np.ndarray:
        layer, x = self.layer, self.x
        scales = self.energies**-layer.beta
        shares, grad_x = grad_out * x * scales / self.energies, np.empty_like(x)
        for channel in range(x.shape[1]):
            shared = shares[:, self.window(channel)].sum(axis=1)
            shared *= 2 * layer.alpha * layer.beta * x[:, channel]
            grad_x[:, channel] = grad_out[:, channel] * scales[:, channel] - shared
        return grad_x


_BOOK = {
    Conv2d: BookConvolution,
    MaxPool2d: BookPooling,
    Linear: BookAffine,
    LocalResponseNorm: LoopedNorm,
    ReLU: BookReLU,
    Dropout: BookDropout,
}


def book_layer(layer: Layer, dtype: type) -> Layer:
    """The book's way to compute ``layer``, with weights and patches of ``dtype``."""
    return Flatten() if isinstance(layer, Flatten) else _BOOK[type(layer)](layer, dtype)


def book_network(network: Network, dtype: type) -> Network:
    """The book's way to compute ``network``, with weights of its own."""
    layers = [(name, book_layer(layer, dtype)) for name, layer in network.layers.items()]
    return Network(f"{network.name}, as in the book", layers, network.input_shape)


class BookSGD:
    """Plain gradient descent: one NumPy expression for each parameter."""

    def __init__(self, learning_rate: float) -> None:
        self.learning_rate = learning_rate

    def step(self, network: Network) -> None:
        """Update the weights in place from the gradients of the last backward pass."""
        gradients = network.gradients
        for name, parameter in network.parameters.items():
            parameter -= self.learning_rate * gradients[name]


class BookAdam:
    """Adam (Kingma, Ba 2015) in plain NumPy expressions, as in the book's chapter 6."""

    def __init__(self, learning_rate: float) -> None:
        self.learning_rate, self.steps = learning_rate, 0
        self.means: dict[str, np.ndarray] = {}
        self.squares: dict[str, np.ndarray] = {}

    def step(self, network: Network) -> None:
        """Update the weights in place from the gradients of the last backward pass."""
        self.steps += 1
        # A plain float: a NumPy float64 would widen float32 weights.
        rate = self.learning_rate * (1 - 0.999**self.steps) ** 0.5 / (1 - 0.9**self.steps)
        gradients = network.gradients
        for name, parameter in network.parameters.items():
            gradient = gradients[name]
            mean = self.means.setdefault(name, np.zeros_like(parameter))
            square = self.squares.setdefault(name, np.zeros_like(parameter))
            mean += (1 - 0.9) * (gradient - mean)
            square += (1 - 0.999) * (gradient**2 - square)
            parameter -= rate * mean / (np.sqrt(square) + 1e-7)
