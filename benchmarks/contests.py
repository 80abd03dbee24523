"""The candidates of ``speed.py`` on the CPU, checked against each other before any clock runs."""

import contextlib
import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from fair import Pass, clocked, clocked_parts
from peer_book import BookAdam, BookDropout, BookSGD, book_layer, book_network
from peer_engines import OPENVINO_AS_IT_LIKES, engines, openvino
from peer_pytorch import LAYOUTS, compiled, compiler_works, torch, torch_layer, torch_network

from fastdl_lib.core.arrays import to_cpu
from fastdl_lib.core.datasets import mnist, photos
from fastdl_lib.core.threads import blas_threads_now
from fastdl_lib.measuring.costs import layer_costs
from fastdl_lib.nn.layers import Conv2d, Dropout
from fastdl_lib.nn.network import Network
from fastdl_lib.nn.optimizers import SGD, Adam
from fastdl_lib.nn.zoo import alexnet, deep_convnet

BOOK64, BOOK32 = "book, float64", "book, float32"
IM2COL, OURS = "fastdl, im2col", "fastdl"
EAGER, CHANNELS_LAST, EXPERT = "PyTorch eager", "PyTorch channels_last", "torch.compile, expert"
TUNED = "torch.compile, expert, max-autotune"
CEILING = "square product"

# Of an output's largest value; TF32 and float16 keep 11 bits of each factor, bfloat16 ("16 bits")
# keeps 8, and "8 bits" 4 or, as whole numbers, 8.
TOLERANCES = {
    **{"float64": 1e-9, "float32": 1e-4, "tf32": 2e-2, "float16": 2e-2},
    **{"16 bits": 2e-2, "8 bits": 5e-2},
}
# Of a gradient's length: where rounding turns a value's sign, ReLU lets another gradient through.
GRADIENT_TOLERANCES = {"float64": 1e-9, "float32": 5e-2, "tf32": 0.2, "float16": 0.2}

Array = Any  # numpy.ndarray, cupy.ndarray or torch.Tensor
Gradients = dict[str, Array]


class Contest(NamedTuple):
    """The candidates of one section, checked and warmed up, and what each part of a pass does."""

    passes: dict[str, Pass]
    work: dict[str, float]
    reference: str = OURS
    """The candidate that the others' times are divided by."""


# --- checks before the clock --------------------------------------------------------------------


def as_numpy(array: Array) -> np.ndarray:
    """Any library's array as NumPy's, fetched from the GPU if need be."""
    if torch and isinstance(array, torch.Tensor):
        # NumPy has no bfloat16.
        return (array.float() if array.dtype == torch.bfloat16 else array).cpu().numpy()
    return to_cpu(array)


def check_outputs(
    runs: dict[str, Callable[[], Array]],
    wanted: np.ndarray,
    what: str,
    precision: str | None = None,
) -> None:
    """Run each once and compare its output with ``wanted``; this is also the warm-up.

    Args:
        precision: a key of TOLERANCES; by default the output's dtype.

    Raises:
        ValueError: an output too far from the wanted one.
    """
    errors = {}
    for name, run in runs.items():
        out = as_numpy(run())
        errors[name] = np.abs(out - wanted).max() / np.abs(wanted).max()
        if not errors[name] <= TOLERANCES[precision or str(out.dtype)]:
            raise ValueError(
                f"{what}, {name}: {out.dtype}, off by {errors[name]:.1e} of the largest value."
            )
    names = f"all {len(runs)} equal" if len(runs) > 1 else f"{name} equal"
    print(f"{what}: {names}, within {max(errors.values()):.0e} of the largest value")


def check_gradients(
    name: str, gradients: Gradients, wanted: Gradients, precision: str | None = None
) -> None:
    """Compare one candidate's gradients with ``wanted``.

    Args:
        precision: a key of GRADIENT_TOLERANCES; by default the gradients' dtype.

    Raises:
        ValueError: other names or shapes, mixed dtypes, or a gradient too far from the wanted one.
    """
    found = {parameter: as_numpy(gradient) for parameter, gradient in gradients.items()}
    shapes = {parameter: gradient.shape for parameter, gradient in found.items()}
    dtypes = {str(gradient.dtype) for gradient in found.values()}
    if shapes != {parameter: gradient.shape for parameter, gradient in wanted.items()}:
        raise ValueError(f"{name}: other gradients than expected, {shapes}.")
    errors = {
        # In wanted's dtype: the squares of float16 overflow.
        parameter: np.linalg.norm(found[parameter].astype(gradient.dtype) - gradient)
        / np.linalg.norm(gradient)
        for parameter, gradient in wanted.items()
    }
    worst = max(errors, key=errors.get)
    tolerance = GRADIENT_TOLERANCES[precision or min(dtypes)]
    if len(dtypes) > 1 or not errors[worst] <= tolerance:
        raise ValueError(f"{name}: {dtypes}, the gradient of {worst} is off by {errors[worst]}.")
    print(f"gradients, {name}: {min(dtypes)}, the worst ({worst}) within {errors[worst]:.0e}")


# --- AlexNet's forward pass ---------------------------------------------------------------------


def by_im2col(layer: Conv2d) -> Conv2d:
    """The same layer, weights shared, with im2col for its algorithm."""
    other = copy.copy(layer)
    other.algorithm = "im2col"
    return other


def no_gradients(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    """``function(*arguments)`` without PyTorch noting anything for a backward pass."""
    return torch.no_grad()(partial(function, *arguments))


def forward(batch: int) -> Contest:
    """The whole network on the course's photos."""
    network, images = alexnet(), photos(batch)
    convolutions = {
        name: by_im2col(layer)
        for name, layer in network.layers.items()
        if isinstance(layer, Conv2d)
    }
    runs = {
        BOOK64: partial(book_network(network, np.float64).forward, images.astype(np.float64)),
        BOOK32: partial(book_network(network, np.float32).forward, images),
        IM2COL: partial(network.variant("im2col", **convolutions).forward, images),
        OURS: partial(network.forward, images),
    }
    for name, layout in LAYOUTS.items():
        x = torch.from_numpy(images).to(memory_format=layout)
        runs[name] = no_gradients(torch_network(network, layout), x)
    if compiler_works():
        layout = LAYOUTS[CHANNELS_LAST]
        model = compiled(torch_network(network, layout, expert=True), freezing=True)
        x = torch.from_numpy(images).to(memory_format=layout)
        runs[EXPERT] = no_gradients(model, x)
        tuned = compiled(torch_network(network, layout, expert=True), freezing=True, tuned=True)
        runs[TUNED] = no_gradients(tuned, x)
    runs |= engines(network, images, blas_threads_now())
    check_outputs(runs, runs[BOOK64](), "logits")
    return Contest({name: clocked(run) for name, run in runs.items()}, {"all": batch})


def forward_in_bfloat16(batch: int) -> Contest:
    """The same pass in half the bits beside ours in float32: other work, so a table of its own."""
    network, images = alexnet(), photos(batch)
    wanted, runs = network.forward(images), {}
    if torch:
        layout = LAYOUTS[CHANNELS_LAST]
        half = torch_network(network, layout, expert=True, trainable=True).eval().bfloat16()
        x = torch.from_numpy(images).to(memory_format=layout).bfloat16()
        runs[f"{CHANNELS_LAST}, bfloat16"] = no_gradients(half, x)
        if compiler_works():
            runs[f"{EXPERT}, bfloat16"] = no_gradients(compiled(half, freezing=True), x)
    with contextlib.suppress(ImportError):
        runs[OPENVINO_AS_IT_LIKES] = openvino(network, images, blas_threads_now(), "")
    check_outputs(runs, wanted, "logits", "16 bits")
    runs[OURS] = partial(network.forward, images)
    return Contest({name: clocked(run) for name, run in runs.items()}, {"all": batch})


# --- training steps -----------------------------------------------------------------------------


class Trainee(NamedTuple):
    """One way to train: the gradients without Dropout, to be checked, and the step to be timed."""

    gradients: Callable[[], Gradients]
    step: Callable[[], None]


@contextlib.contextmanager
def without_dropout(network: Network) -> Iterator[None]:
    """Let Dropout keep everything for a while: its random numbers differ between candidates."""
    dropouts = [
        layer for layer in network.layers.values() if isinstance(layer, (Dropout, BookDropout))
    ]
    rates = [layer.rate for layer in dropouts]
    for layer in dropouts:
        layer.rate = 0.0
    yield
    for layer, rate in zip(dropouts, rates, strict=True):
        layer.rate = rate


def numpy_trainee(network: Network, optimizer: Any, x: np.ndarray, labels: np.ndarray) -> Trainee:
    """Train a network of ``fastdl_lib``'s or of the book's layers."""

    def gradients() -> Gradients:
        with without_dropout(network):
            network.loss_and_gradients(x, labels)
        return network.gradients

    def step() -> None:
        network.loss_and_gradients(x, labels)
        optimizer.step(network)

    return Trainee(gradients, step)


def torch_trainee(
    model: "torch.nn.Module",
    rule: Callable,
    x: "torch.Tensor",
    labels: "torch.Tensor",
    wrap: Callable,
) -> Trainee:
    """Train a model of PyTorch; ``wrap`` may compile the function that computes the loss."""
    optimizer = rule(model.parameters(), fused=True)  # one loop for each parameter, not several

    @wrap
    def loss(x: "torch.Tensor", labels: "torch.Tensor") -> "torch.Tensor":
        return torch.nn.functional.cross_entropy(model(x), labels)

    def gradients() -> Gradients:
        model.eval()  # of these layers, Dropout alone does something else in training
        loss(x, labels).backward()
        model.train()
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(x, labels).backward()
        optimizer.step()

    return Trainee(gradients, step)


def training(
    make: Callable[[], Network],
    x: np.ndarray,
    labels: np.ndarray,
    rules: tuple[Callable, Callable, Callable],
    work: float,
) -> Contest:
    """Whole training steps: forward, loss, backward, update.

    Args:
        rules: make the optimiser of the book, of ``fastdl_lib`` and of PyTorch.
        work: what a step counts for.
    """
    book_rule, our_rule, torch_rule = rules
    network = with_biases(make())
    made = {}
    for name, dtype in {BOOK64: np.float64, BOOK32: np.float32}.items():
        book = book_network(network, dtype)
        made[name] = numpy_trainee(book, book_rule(), x.astype(dtype), labels)
    made[OURS] = numpy_trainee(network, our_rule(), x, labels)
    kinds = {name: (layout, False) for name, layout in LAYOUTS.items()}
    if compiler_works():
        kinds[EXPERT] = (LAYOUTS[CHANNELS_LAST], True)
    for name, (layout, expert) in kinds.items():
        model = torch_network(network, layout, expert=expert, trainable=True)
        images = torch.from_numpy(x).to(memory_format=layout)
        wrap = compiled if expert else lambda loss: loss
        made[name] = torch_trainee(model, torch_rule, images, torch.from_numpy(labels), wrap)
    exact = numpy_trainee(
        with_biases(make()).astype(np.float64), None, x.astype(np.float64), labels
    )
    wanted = exact.gradients()
    for name, trainee in made.items():
        check_gradients(name, trainee.gradients(), wanted)
        trainee.step()  # the warm-up
    return Contest({name: clocked(trainee.step) for name, trainee in made.items()}, {"all": work})


def with_biases(network: Network) -> Network:
    """Give every bias a value, as training does at its first step.

    With biases of zero a blank patch gives exactly zero, or with Winograd's algorithm a rounding
    error to either side of it, and ReLU passes a gradient on for one of the three.
    """
    rng = np.random.default_rng(0)
    for name, array in network.parameters.items():
        if name.endswith(".bias"):
            array[...] = 0.1 * rng.standard_normal(array.shape)
    return network


def train(batch: int) -> Contest:
    """AlexNet on the course's photos, with plain gradient descent and any labels."""
    labels = np.random.default_rng(0).integers(1000, size=batch)
    rate = 1e-4  # so small that the same photos again and again do no harm
    rules = (
        partial(BookSGD, rate),
        partial(SGD, rate),
        torch and partial(torch.optim.SGD, lr=rate),
    )
    return training(alexnet, photos(batch), labels, rules, work=batch)


def deep(batch: int) -> Contest:
    """The book's DeepConvNet on MNIST with Adam, as chapter 8 of the book trains it."""
    x, labels = (array[:batch] for array in mnist())
    rate = 1e-3
    rules = (
        partial(BookAdam, rate),
        partial(Adam, rate),
        torch and partial(torch.optim.Adam, lr=rate),
    )
    return training(deep_convnet, x, labels, rules, work=1)


# --- layers of one kind, alone ------------------------------------------------------------------


def alone(kind: str, batch: int) -> Contest:
    """AlexNet's layers of one kind, each on the input that it has in the network, ReLU left out."""
    network, x, inputs = alexnet(), photos(batch), {}
    for name, layer in network.layers.items():
        if layer.kind == kind:
            inputs[name] = x
        x = layer.forward(x)
    layers = {name: network.layers[name] for name in inputs}
    runs = {OURS: {name: partial(layers[name].forward, x) for name, x in inputs.items()}}
    if kind == "conv":
        runs[IM2COL] = {
            name: partial(by_im2col(layers[name]).forward, x) for name, x in inputs.items()
        }
    for candidate, layout in LAYOUTS.items():
        runs[candidate] = {
            name: no_gradients(
                torch_layer(layers[name]).to(memory_format=layout),
                torch.from_numpy(np.ascontiguousarray(x)).to(memory_format=layout),
            )
            for name, x in inputs.items()
        }
    for name, x in inputs.items():
        wanted = book_layer(layers[name], np.float64).forward(x.astype(np.float64))
        check_outputs({candidate: parts[name] for candidate, parts in runs.items()}, wanted, name)
    passes = {candidate: clocked_parts(parts) for candidate, parts in runs.items()}
    costs = [cost for cost in layer_costs(network, batch) if cost.kind == kind]
    if kind != "conv":
        return Contest(passes, {cost.name: 1e-9 * cost.bytes for cost in costs})
    passes[CEILING] = square_products()
    return Contest(passes, {cost.name: 2e-9 * cost.macs for cost in costs})


SQUARES = {f"{size} x {size}": size for size in (1024, 2048)}


def square_products() -> Pass:
    """The products that chapter 00 takes for the ceiling."""
    products = {}
    for part, size in SQUARES.items():
        a, b, out = np.random.default_rng(0).standard_normal((3, size, size), dtype=np.float32)
        products[part] = partial(np.matmul, a, b, out=out)
        products[part]()
    return clocked_parts(products)
