"""The networks of the course, with seeded random weights, and how weights are stored."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastdl_lib.binary.layers import BinaryConv2d, BinaryLinear, PixelBytes, Sign
from fastdl_lib.core.arrays import array_module, beside, to_cpu, to_gpu
from fastdl_lib.core.checks import check_whole_number
from fastdl_lib.core.files import whole_file
from fastdl_lib.nn.layers import (
    BatchNorm,
    Conv2d,
    Dropout,
    Flatten,
    Layer,
    Linear,
    LocalResponseNorm,
    MaxPool2d,
    ReLU,
    check_labels,
    loss_and_right,
    softmax_cross_entropy_arrays,
)

__all__ = [
    "BINARY_PARTS",
    "Network",
    "alexnet",
    "binary_deep_convnet",
    "binary_mlp",
    "deep_convnet",
]

Array = Any  # numpy.ndarray or cupy.ndarray


class Network:
    """Named layers in a row.

    Args:
        name: such as ``"AlexNet"``.
        layers: (name, layer) pairs, first to last.
        input_shape: the shape of one image, (C, H, W).

    Raises:
        ValueError: two layers share a name, or a layer does not fit the one before it.
    """

    def __init__(
        self, name: str, layers: Sequence[tuple[str, Layer]], input_shape: tuple[int, int, int]
    ) -> None:
        self.name, self.layers, self.input_shape = name, dict(layers), tuple(input_shape)
        if len(self.layers) != len(layers):
            raise ValueError(f"{name}: two layers share a name in {[n for n, _ in layers]}.")
        self.shapes: dict[str, tuple[int, ...]] = {}
        """The shape of one output of each layer, without the batch axis."""
        if not self.layers:
            raise ValueError(f"{name} has no layers; give at least one (name, layer) pair.")
        shape = self.input_shape
        for layer_name, layer in self.layers.items():
            try:
                shape = layer.output_shape(shape)
            except ValueError as error:
                raise ValueError(f"{name}, layer {layer_name}: {error}") from None
            self.shapes[layer_name] = shape

    def variant(self, name: str, **layers: Layer | None) -> "Network":
        """Return a network with some layers replaced, or left out where None is given.

        All other layers, weights included, are shared with this one, so a variant costs no memory.

        Raises:
            ValueError: there is no layer of that name, or the new one does not fit.

        >>> deep_convnet().variant("without dropout", drop1=None, drop2=None).shapes["fc2"]
        (10,)
        """
        unknown = layers.keys() - self.layers.keys()
        if unknown:
            raise ValueError(f"{self.name} has no layer {sorted(unknown)[0]!r}: {[*self.layers]}.")
        changed = {**self.layers, **layers}
        kept = [(n, layer) for n, layer in changed.items() if layer is not None]
        return Network(name, kept, self.input_shape)

    def input_shape_of(self, name: str) -> tuple[int, ...]:
        """The shape of one input of the layer ``name``, without the batch axis.

        >>> alexnet().input_shape_of("fc6")
        (9216,)
        """
        names = list(self.layers)
        if name not in names:
            raise KeyError(f"{self.name} has no layer {name!r}; it has {names}.")
        place = names.index(name)
        return self.shapes[names[place - 1]] if place else self.input_shape

    @property
    def parameters(self) -> dict[str, Array]:
        """All weights by name, such as ``"conv1.weight"``."""
        return self._by_name({n: layer.parameters for n, layer in self.layers.items()})

    @property
    def gradients(self) -> dict[str, Array]:
        """All gradients of the last backward pass, under the names of ``parameters``."""
        return self._by_name({n: layer.gradients for n, layer in self.layers.items()})

    @property
    def buffers(self) -> dict[str, Array]:
        """What layers remember but do not learn by gradients, such as ``"norm1.mean"``."""
        return self._by_name({n: layer.buffers for n, layer in self.layers.items()})

    @staticmethod
    def _by_name(arrays: dict[str, dict[str, Array]]) -> dict[str, Array]:
        return {f"{layer}.{n}": a for layer, named in arrays.items() for n, a in named.items()}

    @property
    def parameter_count(self) -> int:
        """How many numbers the network learns."""
        return sum(layer.parameter_count for layer in self.layers.values())

    def check_input(self, x: Array, labels: Array | None = None) -> None:
        """Refuse a batch that does not fit this network, and labels that do not fit the batch.

        Raises:
            ValueError: a wrong shape, an empty batch, or a label that is no class.
            TypeError: another dtype or library than the weights'; labels that are not whole.
        """
        array_module(x)
        if x.ndim != 4 or x.shape[1:] != self.input_shape or x.shape[0] < 1:
            wanted = ", ".join(str(size) for size in self.input_shape)
            hint = " For one image use x[None]." if x.shape == self.input_shape else ""
            raise ValueError(
                f"{self.name} takes a batch of shape (N, {wanted}) with N >= 1, got {x.shape}."
                + hint
            )
        weight = next(iter(self.parameters.values()), x)
        array_module(x, weight)
        if x.dtype != weight.dtype:
            raise TypeError(
                f"{self.name}'s weights are {weight.dtype}, the images are {x.dtype}; "
                f"use x.astype(np.{weight.dtype})."
            )
        if labels is not None:
            array_module(x, labels)
            check_labels(labels, len(x), next(reversed(self.shapes.values()))[0])

    def forward(
        self, x: Array, training: bool = False, after: Callable[[str], None] | None = None
    ) -> Array:
        """Run all layers. ``x``: (N, C, H, W); result: (N, classes), same dtype (logits).

        ``after`` is called with each layer's name when the layer has run.

        Raises:
            ValueError, TypeError: see :meth:`check_input`.
        """
        self.check_input(x)
        for name, layer in self.layers.items():
            x = layer.forward(x, training)
            if after is not None:
                after(name)
        return x

    def backward(self, grad_out: Array, after: Callable[[str], None] | None = None) -> None:
        """Run the layers backwards from the gradient by the logits; fills ``gradients``.

        Down to the first layer that learns: nothing below it has a use for a gradient. ``after`` is
        called with each layer's name when its gradients are there, and with those below as well.
        """
        for layer in self.layers.values():
            layer.gradients = {}  # of an earlier pass, maybe another network's
        learning = [name for name, layer in self.layers.items() if layer.parameters]
        below = not learning
        for name, layer in reversed(self.layers.items()):
            if not below and name != learning[0]:
                grad_out = layer.backward(grad_out)
            elif not below:
                layer.backward_weights(grad_out)
                below = True
            if after is not None:
                after(name)

    def loss_and_gradients(
        self,
        x: Array,
        labels: Array,
        *,
        scale: float = 1.0,
        after_forward: Callable[[str], None] | None = None,
        after_backward: Callable[[str], None] | None = None,
    ) -> float:
        """One training pass, forward and backward: return the loss, leave ``gradients`` filled.

        Args:
            x, labels: a batch, (N, C, H, W) and (N,).
            scale: multiplies all gradients, such as a loss scale; the loss stays as it is.
            after_forward, after_backward: called with each layer's name when it has run that way.

        Returns:
            The mean loss, nats an image.

        Raises:
            ValueError, TypeError: see :meth:`check_input`, and labels that do not fit.

        >>> network, x = deep_convnet(), np.zeros((2, 1, 28, 28), np.float32)
        >>> loss = network.loss_and_gradients(x, np.array([3, 8]))
        >>> network.gradients["fc2.weight"].shape
        (10, 50)
        """
        self.check_input(x, labels)
        hooks = {"after_forward": after_forward, "after_backward": after_backward}
        return self.training_pass(x, labels, scale=scale, **hooks)[0]

    def training_pass(
        self,
        x: Array,
        labels: Array,
        *,
        scale: float = 1.0,
        after_forward: Callable[[str], None] | None = None,
        after_backward: Callable[[str], None] | None = None,
    ) -> tuple[float, int]:
        """As :meth:`loss_and_gradients`, for labels that were checked before; returns also how many
        images were right. The last layer's ``after_forward`` comes again when the loss is there.
        """
        logits = self.forward(x, training=True, after=after_forward)
        loss, grad = softmax_cross_entropy_arrays(logits, labels, scale)
        if after_forward is not None:
            after_forward(next(reversed(self.layers)))
        self.backward(grad, after=after_backward)
        return loss_and_right(loss, logits, labels)  # last: a GPU is not kept waiting in between

    def astype(self, dtype: Any) -> "Network":
        """Convert all weights in place and return the network.

        Raises:
            TypeError: ``dtype`` is not float16, float32 or float64.
        """
        if np.dtype(dtype) not in (np.float16, np.float32, np.float64):
            raise TypeError(f"weights are float16, float32 or float64, got {np.dtype(dtype)}.")
        return self._map_arrays(
            lambda array: array.astype(dtype) if array.dtype.kind == "f" else array
        )

    def to_gpu(self) -> "Network":
        """Move all weights to the GPU in place and return the network.

        Raises:
            RuntimeError: there is no usable GPU.
        """
        return self._map_arrays(to_gpu)

    def to_cpu(self) -> "Network":
        """Move all weights to the CPU in place and return the network."""
        return self._map_arrays(to_cpu)

    def _map_arrays(self, rule: Callable[[Array], Array]) -> "Network":
        for layer in self.layers.values():
            layer.map_arrays(rule)
        return self

    def save_weights(self, path: str | os.PathLike, *, packed: bool = False) -> None:
        """Write all weights and buffers to an ``.npz`` file: the whole file, or nothing.

        ``packed`` stores binary weights as one bit each; of the latent ones only the signs are kept
        (and their mean size, where it is the layer's scale).

        Raises:
            ValueError: the name does not end in .npz.
            FileNotFoundError, PermissionError: the folder is missing or cannot be written to.
        """
        path = Path(path)
        if path.suffix != ".npz":
            raise ValueError(f"weights are stored as .npz, got the name {path.name!r}.")
        with whole_file(path) as part:
            stored = {name: layer.to_store(packed) for name, layer in self.layers.items()}
            np.savez(part, **self._by_name(stored))

    def load_weights(self, path: str | os.PathLike) -> "Network":
        """Read weights that :meth:`save_weights` wrote, and return the network.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged, belongs to another network, or holds numbers that this
                one's dtype does not; nothing is changed.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path.name} in {path.parent.name}/.")
        try:
            with np.load(path, allow_pickle=False) as archive:
                loaded = self._from_store({name: archive[name] for name in archive.files})
        except Exception as error:  # damage in an archive raises many types
            raise ValueError(f"{path.name} is damaged ({error}); restore or remake it.") from None
        weights = self.parameters | self.buffers
        fitting = {name: _as_weight(array, weights.get(name)) for name, array in loaded.items()}
        for name in sorted(weights.keys() | loaded.keys()):
            if fitting.get(name) is None:
                raise ValueError(
                    f"{path.name} holds the weights of another network than {self.name}: {name} "
                    f"is {_in_words(loaded.get(name))}, expected {_in_words(weights.get(name))}."
                )
            if fitting[name].dtype.kind == "f" and not np.isfinite(fitting[name]).all():
                raise ValueError(
                    f"{path.name}: {name} holds numbers that are not finite in "
                    f"{fitting[name].dtype}; nothing was loaded."
                )
        for name, old in weights.items():
            # In place: weights stay where they were, on the CPU or the GPU, and in their order.
            old[...] = beside(fitting[name], old)
        return self

    def _from_store(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What a file holds as parameters and buffers; what no layer asks for stays in."""
        for layer_name, layer in self.layers.items():
            start = f"{layer_name}."
            stored = {n[len(start) :]: arrays.pop(n) for n in [*arrays] if n.startswith(start)}
            arrays |= {start + name: array for name, array in layer.from_store(stored).items()}
        return arrays


def _as_weight(array: np.ndarray, weight: Array | None) -> np.ndarray | None:
    """A stored array in the dtype of the weight that it is for; None where it cannot be its."""
    if weight is None or array.shape != weight.shape or array.dtype.kind != weight.dtype.kind:
        return None
    with np.errstate(over="ignore"):
        return array.astype(weight.dtype, copy=False)


def _in_words(array: Array | None) -> str:
    return "missing" if array is None else f"{array.dtype} {array.shape}"


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
    _check_binary_part(binary)
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
    return Network(f"{_BINARY_NAMES[binary]} {name}", layers, (1, 28, 28))


def binary_deep_convnet(
    seed: int = 0, width: int = 1, *, binary: str = "all", scaled: bool = False
) -> Network:
    """Make a binarized DeepConvNet for 28x28 digits: :func:`deep_convnet` with its weights and
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
    _check_binary_part(binary)
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
    return Network(f"{_BINARY_NAMES[binary]} DeepConvNet", layers, (1, 28, 28))


_BINARY_NAMES = {"all": "Binary", "weights": "Binary-weight", "none": "Float"}


def _check_binary_part(binary: str) -> None:
    if binary not in BINARY_PARTS:
        raise ValueError(f"binary must be one of {list(BINARY_PARTS)}, got {binary!r}.")


def _activation(number: int, binary: str) -> tuple[str, Layer]:
    return (f"sign{number}", Sign()) if binary == "all" else (f"relu{number}", ReLU())
