"""Binarized networks for 28x28 digits, and their float twins, with seeded random weights."""

import numpy as np

from fastdl_lib.binary.layers import BinaryConv2d, BinaryLinear, PixelBytes, Sign
from fastdl_lib.core.checks import check_whole_number
from fastdl_lib.nn.layers import Conv2d, Flatten, Layer, Linear, MaxPool2d, ReLU
from fastdl_lib.nn.network import Network
from fastdl_lib.nn.norms import BatchNorm

__all__ = ["BINARY_PARTS", "binary_deep_convnet", "binary_mlp"]

BINARY_PARTS = {"all": "weights and values", "weights": "weights only", "none": "nothing"}
"""What may be one bit in :func:`binary_mlp` and :func:`binary_deep_convnet`."""


def binary_mlp(
    seed: int = 0, hidden: int = 2048, depth: int = 3, *, binary: str = "all", scaled: bool = False
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
        scaled: multiply by the mean size of the weights, as XNOR-Net; see ``BinaryLinear``.

    Raises:
        TypeError, ValueError: as the layers; another word for ``binary``.

    >>> network = binary_mlp(hidden=64)
    >>> list(network.layers)[:5], network.shapes["norm4"]
    (['pixels', 'flatten', 'fc1', 'norm1', 'sign1'], (10,))
    """
    _check_part(binary)
    check_whole_number("depth", depth, 1)
    rng = np.random.default_rng(seed)
    layers: list[tuple[str, Layer]] = [("pixels", PixelBytes()), ("flatten", Flatten())]
    features = 28 * 28
    for number in range(1, depth + 2):
        outputs = hidden if number <= depth else 10
        if binary == "none":
            layers.append((f"fc{number}", Linear(features, outputs, rng=rng)))
        else:
            product = BinaryLinear(features, outputs, scaled=scaled, rng=rng)
            layers.append((f"fc{number}", product))
        layers.append((f"norm{number}", BatchNorm(outputs)))
        if number <= depth:
            layers.append(_activation(number, binary))
        features = outputs
    name = "-".join(map(str, [784, *[hidden] * depth, 10]))
    return Network(f"{_NAMES[binary]} {name}", layers, (1, 28, 28))


def binary_deep_convnet(
    seed: int = 0, width: int = 1, *, binary: str = "all", scaled: bool = False
) -> Network:
    """Make a binarized DeepConvNet for 28x28 digits: :func:`~fastdl_lib.nn.zoo.deep_convnet` with its weights and
    values one bit, and batch normalisation before each sign.

    Where a pool follows, it comes before normalisation and sign, as in Courbariaux et al. 2016: of
    signs alone most windows would have the same largest value.

    Args:
        seed: decides the first weights.
        width: multiplies the numbers of filters and of hidden values, for one bit says less.
        binary, scaled: as of :func:`binary_mlp`.

    Raises:
        TypeError, ValueError: as the layers; another word for ``binary``.

    >>> binary_deep_convnet().shapes["norm8"]
    (10,)
    """
    _check_part(binary)
    check_whole_number("width", width, 1)
    rng = np.random.default_rng(seed)
    layers: list[tuple[str, Layer]] = [("pixels", PixelBytes())]
    channels = 1
    for number, (filters, padding) in enumerate(
        [(16, 1), (16, 1), (32, 1), (32, 2), (64, 1), (64, 1)], start=1
    ):
        filters *= width
        window = {"padding": padding, "rng": rng}
        if binary == "none":
            product: Layer = Conv2d(channels, filters, 3, **window)
        else:
            # Around an image is paper, 0; around signs -1; around the values of ReLU again 0.
            around = -1.0 if binary == "all" and number > 1 else 0.0
            product = BinaryConv2d(
                channels, filters, 3, **window, padding_value=around, scaled=scaled
            )
        layers.append((f"conv{number}", product))
        if number % 2 == 0:
            layers.append((f"pool{number}", MaxPool2d(2)))
        layers += [(f"norm{number}", BatchNorm(filters)), _activation(number, binary)]
        channels = filters
    layers.append(("flatten", Flatten()))
    for number, (features, outputs) in enumerate(
        [(channels * 4 * 4, 50 * width), (50 * width, 10)], start=7
    ):
        if binary == "none":
            product = Linear(features, outputs, rng=rng)
        else:
            product = BinaryLinear(features, outputs, scaled=scaled, rng=rng)
        layers += [(f"fc{number}", product), (f"norm{number}", BatchNorm(outputs))]
        if number == 7:
            layers.append(_activation(number, binary))
    return Network(f"{_NAMES[binary]} DeepConvNet", layers, (1, 28, 28))


_NAMES = {"all": "Binary", "weights": "Binary-weight", "none": "Float"}


def _check_part(binary: str) -> None:
    if binary not in BINARY_PARTS:
        raise ValueError(f"binary must be one of {list(BINARY_PARTS)}, got {binary!r}.")


def _activation(number: int, binary: str) -> tuple[str, Layer]:
    return (f"sign{number}", Sign()) if binary == "all" else (f"relu{number}", ReLU())
