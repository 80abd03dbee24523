"""The candidates of ``speed.py`` on a GPU: CuPy beside PyTorch with cuDNN, on the same weights."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from contests import (
    CHANNELS_LAST,
    EAGER,
    OURS,
    Contest,
    Gradients,
    check_gradients,
    check_outputs,
    no_gradients,
    with_biases,
    without_dropout,
)
from fair import Pass, clocked
from peer_pytorch import LAYOUTS, torch, torch_network

from fastdl_lib.convolution.gpu import cudnn_status
from fastdl_lib.core.arrays import release_gpu_memory, synchronize, tf32, to_gpu
from fastdl_lib.core.datasets import photos
from fastdl_lib.nn.network import Network
from fastdl_lib.nn.optimizers import SGD
from fastdl_lib.nn.zoo import alexnet

OURS_HALF = f"{OURS}, float16"

# A GPU that has waited for its next pass clocks lower, so a pass is several runs.
RUNS_A_PASS = 10
RATE = 1e-4  # so small that the same photos again and again do no harm
# Of the loss in float16, where a mean over a batch would leave most gradients below the smallest
# number.
LOSS_SCALE = 1024.0


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One implementation: which library, which precision, and who convolves."""

    precision: str
    """float32, tf32 or float16."""
    layout: str = ""
    """The name of PyTorch's memory layout; empty for CuPy."""
    algorithm: str = "auto"
    """Of fastdl's convolutions."""

    @property
    def dtype(self) -> str:
        return "float16" if self.precision == "float16" else "float32"

    @contextlib.contextmanager
    def setting(self) -> Iterator[None]:
        """TF32 allowed, or true float32, in both libraries."""
        with tf32(self.precision == "tf32"):
            yield


def candidates() -> dict[str, Candidate]:
    """All that can run here, by the names they are shown under."""
    made = {
        OURS: Candidate("float32"),
        f"{OURS}, TF32": Candidate("tf32"),
        OURS_HALF: Candidate("float16"),
    }
    if cudnn_status().available:
        made[f"{OURS}, convolved by cuDNN"] = Candidate("float32", algorithm="cudnn")
        made[EAGER] = Candidate("float32", layout=EAGER)
        made[CHANNELS_LAST] = Candidate("float32", layout=CHANNELS_LAST)
        made[f"{CHANNELS_LAST}, TF32"] = Candidate("tf32", layout=CHANNELS_LAST)
        made[f"{CHANNELS_LAST}, float16"] = Candidate("float16", layout=CHANNELS_LAST)
    else:
        print(f"Without PyTorch's rows: {cudnn_status().reason}")
    return made


def on_gpu(candidate: Candidate, run: Callable[[], Any]) -> Pass:
    """A pass of several runs, waited for at its end; its time is that of one."""

    def several() -> None:
        with candidate.setting():
            for _ in range(RUNS_A_PASS):
                run()
            synchronize()

    one_pass = clocked(several)
    return lambda: {part: ms / RUNS_A_PASS for part, ms in one_pass().items()}


def network_on_gpu(candidate: Candidate, network: Network) -> Network:
    """A copy of fastdl's network, in the candidate's dtype."""
    own = alexnet(algorithm=candidate.algorithm)
    for name, array in own.parameters.items():
        array[...] = network.parameters[name]
    return own.astype(candidate.dtype).to_gpu()


def model_on_gpu(
    candidate: Candidate, network: Network, *, trainable: bool = False
) -> "torch.nn.Module":
    """PyTorch's modules with copies of the network's weights, in the candidate's dtype."""
    layout = LAYOUTS[candidate.layout]
    model = torch_network(network, layout, trainable=trainable)
    return model.to("cuda", getattr(torch, candidate.dtype), memory_format=layout)


def images_of(candidate: Candidate, images: np.ndarray) -> Any:
    """The photos on the GPU, in the candidate's library, dtype and layout."""
    if not candidate.layout:
        return to_gpu(images.astype(candidate.dtype))
    x = torch.from_numpy(images).to("cuda", getattr(torch, candidate.dtype))
    return x.to(memory_format=LAYOUTS[candidate.layout])


def gpu_forward(batch: int) -> Contest:
    """The whole network on the course's photos."""
    release_gpu_memory()
    network, images = alexnet(), photos(batch)
    wanted = network.forward(images)
    passes = {}
    for name, candidate in candidates().items():
        x = images_of(candidate, images)
        if candidate.layout:
            torch.backends.cudnn.benchmark = True  # cuDNN times its algorithms once for a shape
            run = no_gradients(model_on_gpu(candidate, network), x)
        else:
            run = partial(network_on_gpu(candidate, network).forward, x)
        with candidate.setting():
            check_outputs({name: run}, wanted, "logits", candidate.precision)
        passes[name] = on_gpu(candidate, run)
    return Contest(passes, {"all": batch})


def gpu_train(batch: int) -> Contest:
    """Whole training steps: forward, loss, backward, plain gradient descent; any labels."""
    release_gpu_memory()
    network, images = with_biases(alexnet()), photos(batch)
    labels = np.random.default_rng(0).integers(1000, size=batch)
    exact = with_biases(alexnet()).astype(np.float64)
    with without_dropout(exact):
        exact.loss_and_gradients(images.astype(np.float64), labels)
    wanted = exact.gradients
    passes = {}
    for name, candidate in candidates().items():
        make = torch_step if candidate.layout else cupy_step
        gradients, step = make(candidate, network, images_of(candidate, images), labels)
        with candidate.setting():
            check_gradients(name, gradients(), wanted, candidate.precision)
            step()  # the warm-up
        passes[name] = on_gpu(candidate, step)
    return Contest(passes, {"all": batch})


Step = tuple[Callable[[], Gradients], Callable[[], None]]


def cupy_step(candidate: Candidate, network: Network, x: Any, labels: np.ndarray) -> Step:
    """The gradients without Dropout, to be checked, and the step to be timed."""
    own, optimizer, labels = network_on_gpu(candidate, network), SGD(RATE), to_gpu(labels)
    scale = LOSS_SCALE if candidate.precision == "float16" else 1.0

    def gradients() -> Gradients:
        with without_dropout(own):
            own.loss_and_gradients(x, labels, scale=scale)
        return {name: gradient / scale for name, gradient in own.gradients.items()}

    def step() -> None:
        own.loss_and_gradients(x, labels, scale=scale)
        optimizer.step(own)

    optimizer.learning_rate = RATE / scale
    return gradients, step


def torch_step(candidate: Candidate, network: Network, x: Any, labels: np.ndarray) -> Step:
    """The same in PyTorch."""
    model = model_on_gpu(candidate, network, trainable=True)
    labels = torch.from_numpy(labels).to("cuda")
    scale = LOSS_SCALE if candidate.precision == "float16" else 1.0
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE / scale, fused=True)
    torch.backends.cudnn.benchmark = True

    def backward() -> None:
        optimizer.zero_grad(set_to_none=True)
        (scale * torch.nn.functional.cross_entropy(model(x), labels)).backward()

    def gradients() -> Gradients:
        model.eval()  # of these layers, Dropout alone does something else in training
        backward()
        model.train()
        return {name: weight.grad / scale for name, weight in model.named_parameters()}

    def step() -> None:
        backward()
        optimizer.step()

    return gradients, step
