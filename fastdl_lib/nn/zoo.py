"""The two networks of the course, with seeded random weights."""

import numpy as np

from fastdl_lib.nn.layers import Conv2d, Dropout, Flatten, Linear, MaxPool2d, ReLU
from fastdl_lib.nn.network import Network
from fastdl_lib.nn.norms import LocalResponseNorm

DROPOUT = {"both": (), "hidden": ("drop2",), "none": ("drop1", "drop2")}
"""Which Dropout is at work in DeepConvNet, to the layers to leave out; the book has both."""


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
    rng = np.random.default_rng(seed)
    conv = {"algorithm": algorithm, "rng": rng}
    layers = [
        ("conv1", Conv2d(3, 96, 11, stride=4, **conv)),
        ("relu1", ReLU()),
        ("norm1", LocalResponseNorm()),
        ("pool1", MaxPool2d(3, stride=2)),
        ("conv2", Conv2d(96, 256, 5, padding=2, groups=2, **conv)),
        ("relu2", ReLU()),
        ("norm2", LocalResponseNorm()),
        ("pool2", MaxPool2d(3, stride=2)),
        ("conv3", Conv2d(256, 384, 3, padding=1, **conv)),
        ("relu3", ReLU()),
        ("conv4", Conv2d(384, 384, 3, padding=1, groups=2, **conv)),
        ("relu4", ReLU()),
        ("conv5", Conv2d(384, 256, 3, padding=1, groups=2, **conv)),
        ("relu5", ReLU()),
        ("pool5", MaxPool2d(3, stride=2)),
        ("flatten", Flatten()),
        ("fc6", Linear(256 * 6 * 6, 4096, rng=rng)),
        ("relu6", ReLU()),
        ("drop6", Dropout(0.5, seed=seed)),
        ("fc7", Linear(4096, 4096, rng=rng)),
        ("relu7", ReLU()),
        ("drop7", Dropout(0.5, seed=seed + 1)),
        ("fc8", Linear(4096, 1000, rng=rng)),
    ]
    return Network("AlexNet", layers, (3, 227, 227))


def deep_convnet(seed: int = 0, algorithm: str = "auto") -> Network:
    """Make the book's DeepConvNet for 28x28 MNIST digits: 123,552 parameters, float32.

    Source: Saitoh, *Deep Learning from Scratch*, section 8.1, with its odd padding (conv4 has 2)
    and its dropout after the last layer. ``algorithm`` is that of all its :class:`Conv2d`.

    >>> network = deep_convnet()
    >>> network.parameter_count, network.shapes["fc2"]
    (123552, (10,))
    """
    rng = np.random.default_rng(seed)
    conv = {"algorithm": algorithm, "rng": rng}
    layers = [
        ("conv1", Conv2d(1, 16, 3, padding=1, **conv)),
        ("relu1", ReLU()),
        ("conv2", Conv2d(16, 16, 3, padding=1, **conv)),
        ("relu2", ReLU()),
        ("pool2", MaxPool2d(2)),
        ("conv3", Conv2d(16, 32, 3, padding=1, **conv)),
        ("relu3", ReLU()),
        ("conv4", Conv2d(32, 32, 3, padding=2, **conv)),
        ("relu4", ReLU()),
        ("pool4", MaxPool2d(2)),
        ("conv5", Conv2d(32, 64, 3, padding=1, **conv)),
        ("relu5", ReLU()),
        ("conv6", Conv2d(64, 64, 3, padding=1, **conv)),
        ("relu6", ReLU()),
        ("pool6", MaxPool2d(2)),
        ("flatten", Flatten()),
        ("fc1", Linear(64 * 4 * 4, 50, rng=rng)),
        ("relu7", ReLU()),
        ("drop1", Dropout(0.5, seed=seed)),
        ("fc2", Linear(50, 10, rng=rng)),
        ("drop2", Dropout(0.5, seed=seed + 1)),
    ]
    return Network("DeepConvNet", layers, (1, 28, 28))
