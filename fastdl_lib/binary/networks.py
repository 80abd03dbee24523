"""Binarized networks for 28x28 digits, and their float twins, with seeded random weights."""

import itertools

import numpy as np

from fastdl_lib.binary.layers import BinaryConv2d, BinaryLinear, PixelBytes, Sign
from fastdl_lib.core.checks import check_choice, check_whole_number
from fastdl_lib.nn.layers import Conv2d, Flatten, Layer, Linear, MaxPool2d, ReLU
from fastdl_lib.nn.network import Network
from fastdl_lib.nn.norms import BatchNorm

BINARY_PARTS = {"all": "weights and values", "weights": "weights only", "none": "nothing"}
"""What may be one bit in :func:`binary_mlp` and :func:`binary_deep_convnet`."""


def binary_mlp(
    seed: int = 0, hidden: int = 2048, depth: int = 3, *, binary: str = "all"
) -> Network:
    """Make the binarized network 784-2048-2048-2048-10 for 28x28 digits, or its float twin.

    Each hidden layer is product, batch normalisation, sign; the last one product and
    normalisation. Source: Courbariaux et al., "Binarized neural networks", 2016, section 2, whose
    Torch7 network has these sizes. The images are taken as the whole numbers 0 to 255, so that
    every product is exact.

    Args:
        seed: decides the first weights.
        hidden, depth: values in a hidden layer, and how many there are.
        binary: "all" (weights and values), "weights" (as BinaryConnect, with ReLU), or "none", the
            float twin: the same layers with float weights and ReLU.

    >>> network = binary_mlp(hidden=64)
    >>> list(network.layers)[:5], network.shapes["norm4"]
    (['pixels', 'flatten', 'fc1', 'norm1', 'sign1'], (10,))
    """
    check_choice("binary", binary, BINARY_PARTS)
    hidden = check_whole_number("hidden", hidden, 1)
    depth = check_whole_number("depth", depth, 1)
    rng = np.random.default_rng(seed)
    layers: list[tuple[str, Layer]] = [("pixels", PixelBytes()), ("flatten", Flatten())]
    sizes = [28 * 28, *[hidden] * depth, 10]
    for number, (features, outputs) in enumerate(itertools.pairwise(sizes), start=1):
        product = _linear(features, outputs, binary, rng)
        layers += _stage(f"fc{number}", product, outputs, binary if number <= depth else None)
    return Network(f"{_NAMES[binary]} {'-'.join(map(str, sizes))}", layers, (1, 28, 28))


def binary_deep_convnet(seed: int = 0, width: int = 1, *, binary: str = "all") -> Network:
    """Make a binarized DeepConvNet for 28x28 digits: :func:`~fastdl_lib.nn.zoo.deep_convnet` with
    its weights and values one bit, and batch normalisation before each sign.

    Where a pool follows, it comes before normalisation and sign, as in Courbariaux et al. 2016: of
    signs alone most windows would have the same largest value.

    ``width`` multiplies the numbers of filters and of hidden values, for one bit says less; the
    others are as of :func:`binary_mlp`.

    >>> binary_deep_convnet().shapes["norm8"]
    (10,)
    """
    check_choice("binary", binary, BINARY_PARTS)
    width = check_whole_number("width", width, 1)
    rng = np.random.default_rng(seed)
    layers: list[tuple[str, Layer]] = [("pixels", PixelBytes())]
    channels = 1
    for number, (filters, padding) in enumerate(
        [(16, 1), (16, 1), (32, 1), (32, 2), (64, 1), (64, 1)], start=1
    ):
        filters *= width
        if binary == "none":
            product: Layer = Conv2d(channels, filters, 3, padding=padding, rng=rng)
        else:
            # Around an image is paper, 0; around signs -1; around the values of ReLU again 0.
            around = {"padding": padding, "padding_value": 0.0}
            if binary == "all" and number > 1:
                around["padding_value"] = -1.0
            product = BinaryConv2d(channels, filters, 3, **around, rng=rng)
        layers += _stage(f"conv{number}", product, filters, binary, pooled=number % 2 == 0)
        channels = filters
    layers.append(("flatten", Flatten()))
    hidden = 50 * width
    fc7 = _linear(channels * 4 * 4, hidden, binary, rng)
    layers += _stage("fc7", fc7, hidden, binary)
    layers += _stage("fc8", _linear(hidden, 10, binary, rng), 10, None)
    return Network(f"{_NAMES[binary]} DeepConvNet", layers, (1, 28, 28))


_NAMES = {"all": "Binary", "weights": "Binary-weight", "none": "Float"}


def _linear(features: int, outputs: int, binary: str, rng: np.random.Generator) -> Layer:
    return (Linear if binary == "none" else BinaryLinear)(features, outputs, rng=rng)


def _stage(
    name: str, product: Layer, outputs: int, binary: str | None, *, pooled: bool = False
) -> list[tuple[str, Layer]]:
    """A product, a pool where it is pooled, normalisation, and the sign or ReLU; without these
    where ``binary`` is None."""
    number = name.lstrip("convf")
    layers = [("pool", MaxPool2d(2))] if pooled else []
    layers.append(("norm", BatchNorm(outputs)))
    if binary is not None:
        layers.append(("sign", Sign()) if binary == "all" else ("relu", ReLU()))
    return [(name, product), *((f"{kind}{number}", layer) for kind, layer in layers)]
