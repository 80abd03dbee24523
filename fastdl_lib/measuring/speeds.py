"""How fast a layer or a network is on the CPU or the GPU: measured, recorded or published.

The same call runs on both sides: what is given is moved to the device before the clock and back
afterwards, so that no copy over the bus is measured with it.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from fastdl_lib.core.arrays import keep_freed_memory, release_gpu_memory, to_cpu, to_gpu
from fastdl_lib.measuring.costs import Network
from fastdl_lib.measuring.evidence import Measurement
from fastdl_lib.measuring.published import published
from fastdl_lib.measuring.recordings import Recording
from fastdl_lib.measuring.timing import benchmark

TOLERANCE = 1e-3
Layer = Any  # a fastdl_lib.nn.layers.Layer


@contextlib.contextmanager
def _on(device: str, model: Layer | Network, algorithm: str) -> Iterator[None]:
    """Put ``model`` on a device with a way to convolve for a block, and both back afterwards."""
    layers = list(model.layers.values()) if hasattr(model, "layers") else [model]
    before = [(layer, layer.algorithm) for layer in layers if layer.algorithm is not None]
    on_gpu = layers if device == "gpu" else []
    try:
        for layer in on_gpu:
            layer.map_arrays(to_gpu)
        for layer, _ in before:
            layer.algorithm = algorithm  # lays the weights out as it reads them
        yield
    finally:
        for layer in on_gpu:
            layer.map_arrays(to_cpu)
        if on_gpu:
            release_gpu_memory()
        for layer, name in before:
            layer.algorithm = name


@keep_freed_memory()
def forward_ms(
    model: Layer | Network,
    x: np.ndarray,
    *,
    algorithm: str = "auto",
    device: str = "cpu",
    expected: np.ndarray | None = None,
    **options: Any,
) -> Measurement:
    """Check what a layer or network makes of ``x``, then time it, in milliseconds.

    Args:
        x: (N, C, H, W) on the CPU; moved to the device before the clock starts.
        algorithm: how the convolutions are computed, see ``ALGORITHMS``.
        device: "cpu" or "gpu". Weights and algorithm are put back afterwards.
        expected: the right answer for the first images of ``x``, to 0.1 % of its largest value; for
            another one an ArithmeticError, and nothing is timed.
        options: what :func:`fastdl_lib.measuring.timing.benchmark` takes, such as ``threads``.

    >>> from fastdl_lib.nn.layers import ReLU
    >>> forward_ms(ReLU(), np.ones((1, 2, 3, 3), np.float32), budget_s=0.001).unit
    'ms'
    """
    with _on(device, model, algorithm):
        there = to_gpu(x) if device == "gpu" else x
        if expected is not None:
            answer = to_cpu(model.forward(there[: len(expected)]))
            error = float(np.abs(answer - expected).max() / np.abs(expected).max())
            if not error <= TOLERANCE:
                off = f"is off by {error:.0e} of the largest value, allowed is {TOLERANCE:.0e}"
                raise ArithmeticError(
                    f"{algorithm!r} on the {device} {off}; a wrong answer is not timed."
                )
        time_ms = benchmark(model.forward, there, device=device, **options)
    more = {"batch": len(x), "algorithm": algorithm}
    return dataclasses.replace(time_ms, conditions={**time_ms.conditions, **more})


@keep_freed_memory()
def training_speed(
    network: Network,
    x: np.ndarray,
    labels: np.ndarray,
    optimizer: Any,
    *,
    algorithm: str = "auto",
    device: str = "cpu",
    name: str = "",
    **options: Any,
) -> Measurement:
    """Time whole training steps, forward, backward and update, in images a second.

    Args:
        x, labels: (N, C, H, W) and (N,) on the CPU; moved to the device before the clock starts.
        optimizer: takes the steps, such as ``SGD(1e-6, momentum=0.9)``, whose learning rate leaves
            the weights practically what they are. It forgets its state afterwards.
        algorithm, device, options: as for :func:`forward_ms`.
    """
    with _on(device, network, algorithm):
        if device == "gpu":
            x, labels = to_gpu(x), to_gpu(labels)

        def step() -> None:
            network.loss_and_gradients(x, labels)
            optimizer.step(network)

        time_ms = benchmark(step, device=device, name=name or network.name, **options)
        # As much memory again as the weights, and nobody asks for them.
        optimizer.state.clear()
        network.drop_gradients()
    return _images_per_s(time_ms, len(x), time_ms.name)


def _images_per_s(time_ms: Measurement, batch: int, name: str) -> Measurement:
    speed = time_ms.convert(lambda ms: 1e3 * batch / ms, "images/s", name)
    return dataclasses.replace(speed, conditions={**speed.conditions, "batch": batch})


def recorded_training_speeds(recording: Recording, device: str) -> dict[int, Measurement]:
    """AlexNet's training speeds in a machine's recording: batch size to images/s.

    Where a batch was recorded in several ways (algorithms, threads), the fastest in float32 is
    taken. Empty where there is none.
    """
    asked = {"part": "pass", "direction": "training", "dtype": "float32", "device": device}
    asked["network"] = "AlexNet"
    fastest: dict[int, Measurement] = {}
    for run in recording.select(**asked) if recording.has(**asked) else ():
        batch = run.conditions["batch"]
        where = run.machine.gpu if device == "gpu" else run.machine.cpu
        speed = _images_per_s(run, batch, f"{where}, batch {batch}")
        if batch not in fastest or speed.median > fastest[batch].median:
            fastest[batch] = speed
    return fastest


def published_training_speeds() -> dict[str, Measurement]:
    """What others published of training AlexNet: the run's short name to images/s.

    >>> print(published_training_speeds()["caffe_titan"])
    195 images/s (published, on the GPU)
    """
    speeds = {}
    for row in published("alexnet_training_speeds").rows:
        several = f"{row['gpus']} x " if (row["gpus"] or 1) > 1 else ""
        device = row["device"].partition(",")[0]
        speed = row["images_per_s"] or 1e3 * row["images"] / row["time_ms"]
        where = {"device": row["kind"].lower(), "batch": row["batch"]}
        name = f"{several}{device}, {row['software']}"
        told = Measurement.published(name, "images/s", speed, row["origin"], **where)
        speeds[row["run"]] = told
    return speeds
