"""The two networks of the course, with seeded random weights."""

from typing import Any

import numpy as np

from fastdl_lib.core.checks import check_whole_number
from fastdl_lib.nn.layers import Conv2d, Dropout, Flatten, Layer, Linear, MaxPool2d, ReLU
from fastdl_lib.nn.network import Network
from fastdl_lib.nn.norms import LocalResponseNorm

DROPOUT = {"both": (), "hidden": ("drop2",), "none": ("drop1", "drop2")}
"""Which Dropout is at work in DeepConvNet, to the layers to leave out; the book has both."""

# Name to constants, first to last: what a layer is, its name says; what comes in, the one before.
_ALEXNET: dict[str, dict[str, Any]] = {
    "conv1": {"out_channels": 96, "kernel": 11, "stride": 4},
    "relu1": {}, "norm1": {}, "pool1": {"kernel": 3, "stride": 2},
    "conv2": {"out_channels": 256, "kernel": 5, "padding": 2, "groups": 2},
    "relu2": {}, "norm2": {}, "pool2": {"kernel": 3, "stride": 2},
    "conv3": {"out_channels": 384, "kernel": 3, "padding": 1}, "relu3": {},
    "conv4": {"out_channels": 384, "kernel": 3, "padding": 1, "groups": 2}, "relu4": {},
    "conv5": {"out_channels": 256, "kernel": 3, "padding": 1, "groups": 2}, "relu5": {},
    "pool5": {"kernel": 3, "stride": 2}, "flatten": {},
    "fc6": {"out_features": 4096}, "relu6": {}, "drop6": {"rate": 0.5},
    "fc7": {"out_features": 4096}, "relu7": {}, "drop7": {"rate": 0.5},
    "fc8": {"out_features": 1000},
}  # fmt: skip
_DEEP_CONVNET: dict[str, dict[str, Any]] = {
    "conv1": {"out_channels": 16, "kernel": 3, "padding": 1}, "relu1": {},
    "conv2": {"out_channels": 16, "kernel": 3, "padding": 1}, "relu2": {}, "pool2": {"kernel": 2},
    "conv3": {"out_channels": 32, "kernel": 3, "padding": 1}, "relu3": {},
    "conv4": {"out_channels": 32, "kernel": 3, "padding": 2}, "relu4": {}, "pool4": {"kernel": 2},
    "conv5": {"out_channels": 64, "kernel": 3, "padding": 1}, "relu5": {},
    "conv6": {"out_channels": 64, "kernel": 3, "padding": 1}, "relu6": {}, "pool6": {"kernel": 2},
    "flatten": {}, "fc1": {"out_features": 50}, "relu7": {}, "drop1": {"rate": 0.5},
    "fc2": {"out_features": 10}, "drop2": {"rate": 0.5},
}  # fmt: skip


def alexnet(seed: int = 0, algorithm: str = "auto") -> Network:
    """Make the original two-group AlexNet for 227x227 images: 60,965,224 parameters, float32.

    The weights are seeded random numbers (no trained ones can be had offline): its answers mean
    nothing, its times do. The order conv, ReLU, norm, pool and all constants are the paper's:
    Krizhevsky, Sutskever, Hinton, NIPS 2012. The paper says 224x224, which does not give its own
    55x55 output; 227x227 does. ``algorithm`` is that of all its :class:`Conv2d`.

    >>> network = alexnet()
    >>> network.parameter_count, network.shapes["fc8"]
    (60965224, (1000,))
    """
    return _network("AlexNet", _ALEXNET, (3, 227, 227), seed, algorithm)


def deep_convnet(seed: int = 0, algorithm: str = "auto") -> Network:
    """Make the book's DeepConvNet for 28x28 MNIST digits: 123,552 parameters, float32.

    Source: Saitoh, *Deep Learning from Scratch*, section 8.1, with its odd padding (conv4 has 2)
    and its dropout after the last layer. ``algorithm`` is that of all its :class:`Conv2d`.

    >>> network = deep_convnet()
    >>> network.parameter_count, network.shapes["fc2"]
    (123552, (10,))
    """
    return _network("DeepConvNet", _DEEP_CONVNET, (1, 28, 28), seed, algorithm)


def _network(
    name: str, rows: dict[str, dict[str, Any]], shape: tuple, seed: int, algorithm: str
) -> Network:
    seed = check_whole_number("seed", seed, 0)
    rng, input_shape, draw_seed = np.random.default_rng(seed), shape, seed
    plain = {"relu": ReLU, "norm": LocalResponseNorm, "pool": MaxPool2d, "flatten": Flatten}
    layers: list[tuple[str, Layer]] = []
    for layer_name, constants in rows.items():
        kind = layer_name.rstrip("0123456789")
        if kind == "conv":
            layer: Layer = Conv2d(shape[0], **constants, algorithm=algorithm, rng=rng)
        elif kind == "fc":
            layer = Linear(shape[0], **constants, rng=rng)
        elif kind == "drop":
            layer, draw_seed = Dropout(**constants, seed=draw_seed), draw_seed + 1
        else:
            layer = plain[kind](**constants)
        layers.append((layer_name, layer))
        shape = layer.output_shape(shape)
    return Network(name, layers, input_shape)
