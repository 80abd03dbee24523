"""PyTorch's modules for the layers and networks of ``fastdl_lib``, on the same weights.

``torch`` is None where PyTorch is not installed: ask before calling anything else.
"""

import functools
import warnings
from collections import OrderedDict
from collections.abc import Callable

from fastdl_lib.binary.layers import PixelBytes
from fastdl_lib.nn.layers import Conv2d, Dropout, Flatten, Layer, Linear, MaxPool2d, ReLU
from fastdl_lib.nn.network import Network
from fastdl_lib.nn.norms import BatchNorm, LocalResponseNorm

try:
    import torch
except ImportError:
    torch = None

LAYOUTS = (
    {"PyTorch eager": torch.contiguous_format, "PyTorch channels_last": torch.channels_last}
    if torch
    else {}
)
"""The names of the two eager peers and the memory layout of each."""


def torch_layer(layer: Layer) -> "torch.nn.Module":
    """PyTorch's module for ``layer``, on the very same weights, in evaluation mode."""
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
        case BatchNorm():
            module = torch.nn.BatchNorm1d(layer.features, layer.eps, layer.momentum)
            module.running_mean = torch.from_numpy(layer.buffers["mean"])
            module.running_var = torch.from_numpy(layer.buffers["variance"])
        case PixelBytes():
            module = pixel_bytes()
        case ReLU():
            module = torch.nn.ReLU()
        case Flatten():
            module = torch.nn.Flatten()
        case Dropout():
            module = torch.nn.Dropout(layer.rate)
        case _:
            raise TypeError(f"no module of PyTorch is known for {type(layer).__name__}.")
    for name, array in layer.parameters.items():
        setattr(module, name, torch.nn.Parameter(torch.from_numpy(array), requires_grad=False))
    return module.eval()


def pixel_bytes() -> "torch.nn.Module":
    """From images of 0 to 1 to the whole numbers 0 to 255."""

    class Pixels(torch.nn.Module):
        def forward(self, x: "torch.Tensor") -> "torch.Tensor":
            return (255 * x).round_()

    return Pixels()


def int8_layer(layer: Linear) -> "torch.nn.Module":
    """PyTorch's own dynamic quantisation: weights in int8, and each batch of inputs as it comes."""
    with warnings.catch_warnings():
        # It is deprecated for a package of its own, torchao, and says so at every call.
        warnings.simplefilter("ignore")
        model = torch.nn.Sequential(torch_layer(layer))
        return torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, torch.qint8)


def own_norm(layer: LocalResponseNorm) -> "torch.nn.Module":
    """The normalisation as an expert writes it for torch.compile, which makes one loop of it.

    Zero channels on both sides instead of cases at the edges, and roots instead of a power: the
    fastest of five ways tried under torch.compile, within 2 % of a network without the layer.
    """
    if (layer.size, layer.beta) != (5, 0.75):
        raise ValueError(f"own_norm() is for size 5 and beta 0.75, not {layer.size}, {layer.beta}.")

    class OwnNorm(torch.nn.Module):
        def forward(self, x):
            channels, squares = x.shape[1], x * x
            nothing = torch.zeros_like(squares[:, :2])
            padded = torch.cat([nothing, squares, nothing], 1)
            energy = sum(padded[:, shift : shift + channels] for shift in range(5))
            root = (layer.k + layer.alpha * energy).rsqrt()
            return x * root * root.sqrt()

    return OwnNorm()


def torch_network(
    network: Network,
    layout: "torch.memory_format",
    *,
    expert: bool = False,
    trainable: bool = False,
) -> "torch.nn.Sequential":
    """``network`` as a row of modules, under its layers' names.

    Args:
        expert: with :func:`own_norm` in place of PyTorch's normalisation.
        trainable: in training mode, with a copy of the weights; else it shares them.
    """
    modules = OrderedDict()
    for name, layer in network.layers.items():
        own = expert and isinstance(layer, LocalResponseNorm)
        modules[name] = own_norm(layer) if own else torch_layer(layer)
    model = torch.nn.Sequential(modules)
    if trainable:
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
            parameter.requires_grad_(True)
        model.train()
    return model.to(memory_format=layout)


def compiled(function: Callable, *, freezing: bool = False, tuned: bool = False) -> Callable:
    """torch.compile for one shape; ``freezing`` folds the weights into the code, without gradients.

    Frozen weights are re-packed once for the kernels that use them: for inference alone. ``tuned``:
    it times several kernels for each product and takes the fastest ("max-autotune").
    """
    # Some code of torch.nn.Sequential is shared by all networks, and PyTorch compiles a piece of
    # code eight times at most, then silently runs it eagerly. So forget the networks before; and
    # fullgraph=True makes whatever falls back an error.
    torch._dynamo.reset()
    options = {"freezing": freezing, "compile_threads": 1, "max_autotune": tuned}
    return torch.compile(function, dynamic=False, fullgraph=True, options=options)


@functools.cache
def compiler_works() -> bool:
    """Whether torch.compile can be used here: it needs PyTorch and a C++ compiler."""
    if not torch:
        return False
    try:
        compiled(torch.neg)(torch.ones(2))
    except Exception as error:  # what is missing decides the type
        print(f"torch.compile does not work here ({error}): its rows are left out.")
        return False
    return True
