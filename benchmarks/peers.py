"""AlexNet's layers as others compute them: the book's algorithms, and PyTorch's modules.

:func:`book_layer` and :func:`torch_layer` turn a layer of ``fastdl_lib`` into a function of its
input that computes the same from the same weights. Forward only.
"""

from collections.abc import Callable

import numpy as np

from fastdl_lib.layers import Conv2d, Flatten, Layer, Linear, LocalResponseNorm, MaxPool2d, ReLU

try:
    import torch
except ImportError:
    torch = None


# --- the book's algorithms ----------------------------------------------------------------------
# Written anew after the description of the layers in Saitoh, *Deep Learning from Scratch*, chapter
# 7. Forward only: nothing is kept for a backward pass, and no position of a maximum is looked up.


def book_im2col(x: np.ndarray, size: int, stride: int, padding: int, dtype: type) -> np.ndarray:
    """Lay the patches of (N, C, H, W) out as rows: (N * OH * OW, C * size * size) of ``dtype``.

    The book names no dtype, so its columns, and all that follows, are float64.
    """
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


def from_rows(rows: np.ndarray, batch: int) -> np.ndarray:
    """Turn (N * OH * OW, K) into (N, K, OH, OW) for a square map: a view, without a copy."""
    side = round((len(rows) // batch) ** 0.5)
    return rows.reshape(batch, side, side, -1).transpose(0, 3, 1, 2)


def book_convolution(layer: Conv2d, dtype: type) -> Callable:
    """One product of the patches with all filters; a layer of two groups is two convolutions."""
    weights = np.split(layer.parameters["weight"].astype(dtype), layer.groups)
    biases = np.split(layer.parameters["bias"].astype(dtype), layer.groups)

    def convolve(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
        rows = book_im2col(x, layer.kernel, layer.stride, layer.padding, dtype)
        return from_rows(np.dot(rows, weight.reshape(len(weight), -1).T) + bias, len(x))

    def forward(x: np.ndarray) -> np.ndarray:
        if layer.groups == 1:
            return convolve(x, weights[0], biases[0])
        parts = zip(np.split(x, layer.groups, axis=1), weights, biases, strict=True)
        return np.concatenate([convolve(*part) for part in parts], axis=1)

    return forward


def book_pooling(layer: MaxPool2d, dtype: type) -> Callable:
    """Patches as rows once more, one row for each window and channel, and their maximum."""

    def forward(x: np.ndarray) -> np.ndarray:
        batch, channels = x.shape[:2]
        rows = book_im2col(x, layer.kernel, layer.stride, 0, dtype)
        largest = rows.reshape(-1, layer.kernel**2).max(axis=1)
        return from_rows(largest.reshape(-1, channels), batch)

    return forward


def book_affine(layer: Linear, dtype: type) -> Callable:
    """A product with the weights, stored (in, out) as in the book."""
    weight = np.ascontiguousarray(layer.parameters["weight"].T.astype(dtype))
    bias = layer.parameters["bias"].astype(dtype)
    return lambda x: np.dot(x, weight) + bias


def book_relu(x: np.ndarray) -> np.ndarray:
    """Mask the negative values in a copy."""
    out = x.copy()
    out[x <= 0] = 0
    return out


def looped_norm(layer: LocalResponseNorm) -> Callable:
    """Normalise channel by channel, in a plain loop: the book has no such layer."""

    def forward(x: np.ndarray) -> np.ndarray:
        squares, out = x**2, np.empty_like(x)
        for channel in range(x.shape[1]):
            first = max(0, channel - layer.size // 2)
            energy = squares[:, first : channel + layer.size // 2 + 1].sum(axis=1)
            out[:, channel] = x[:, channel] / (layer.k + layer.alpha * energy) ** layer.beta
        return out

    return forward


def book_layer(layer: Layer, dtype: type) -> Callable:
    """The book's way to compute ``layer``, with weights and patches of ``dtype``."""
    match layer:
        case Conv2d():
            return book_convolution(layer, dtype)
        case MaxPool2d():
            return book_pooling(layer, dtype)
        case Linear():
            return book_affine(layer, dtype)
        case LocalResponseNorm():
            return looped_norm(layer)
        case ReLU():
            return book_relu
    return layer.forward  # Flatten; Dropout, which does nothing outside training


# --- PyTorch ------------------------------------------------------------------------------------


def torch_layer(layer: Layer) -> Callable:
    """PyTorch's module for ``layer``, on the very same weights."""
    match layer:
        case Conv2d():
            window = {"stride": layer.stride, "padding": layer.padding, "groups": layer.groups}
            module = torch.nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel, **window)
        case MaxPool2d():
            module = torch.nn.MaxPool2d(layer.kernel, layer.stride)
        case Linear():
            module = torch.nn.Linear(layer.in_features, layer.out_features)
        case LocalResponseNorm():
            # PyTorch takes the mean over the neighbours where the paper takes the sum.
            alpha = layer.alpha * layer.size
            module = torch.nn.LocalResponseNorm(layer.size, alpha, layer.beta, layer.k)
        case ReLU():
            module = torch.nn.ReLU()
        case Flatten():
            module = torch.nn.Flatten()
        case _:
            module = torch.nn.Identity()  # Dropout outside training
    for name, array in layer.parameters.items():
        setattr(module, name, torch.nn.Parameter(torch.from_numpy(array), requires_grad=False))
    return module.eval()
