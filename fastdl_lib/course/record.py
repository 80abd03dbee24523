"""A machine's whole set of measurements, written as one recording, and its check.

``python -m fastdl_lib.course.record`` (or ``make record``) measures this machine in eight minutes and
writes ``data/recordings/machine_<name>_<date>.json``; ``--check FILE`` judges a recording by what
cannot be. What was measured stands in each measurement's ``conditions``, first of all in ``part``:
:data:`PARTS` says what each part holds. ``Recording.select`` finds them by it.
"""

import argparse
import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import math
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from fastdl_lib.binary.bits import WORD, pack, xnor_product
from fastdl_lib.convolution.gpu import cudnn_status
from fastdl_lib.convolution.winograd import LARGEST_TILE
from fastdl_lib.core.arrays import (
    array_module,
    gpu_available,
    release_gpu_memory,
    synchronize,
    tf32,
    to_cpu,
    to_gpu,
)
from fastdl_lib.core.datasets import data_folder, mnist
from fastdl_lib.core.threads import blas_threads_now, threads_in_words
from fastdl_lib.measuring.costs import layer_costs
from fastdl_lib.measuring.evidence import Measurement, Provenance
from fastdl_lib.measuring.machine import MachineCard, machine_card
from fastdl_lib.measuring.recordings import Recording, read_recording, write_recording
from fastdl_lib.measuring.timing import (
    PRODUCT_SIZES,
    benchmark,
    copy_gb_per_s,
    product_gflops,
    profile_layers,
    time_scale,
)
from fastdl_lib.nn.layers import CONV_ALGORITHMS, Conv2d
from fastdl_lib.nn.network import Network, alexnet, deep_convnet
from fastdl_lib.nn.optimizers import SGD, Adam, Optimizer, warmup_cosine
from fastdl_lib.nn.training import evaluate, fit, training_pass
from fastdl_lib.precision.formats import FLOAT16
from fastdl_lib.precision.mixed import MixedPrecision

__all__ = [
    "PARTS",
    "Plan",
    "check_place",
    "check_recording",
    "measure_machine",
    "recording_name",
    "save",
]

PARTS = {
    "ceiling": "large products by dtype, GFLOP/s, and a large copy, GB/s",
    "dtypes": "products, a large x + y, and DeepConvNet by dtype: GFLOP/s, Gvalues/s, ms",
    "binary": "products of +1 and -1, in float32 and as bits, GFLOP/s of the float product",
    "sweep": "square float32 products from small to large, ms",
    "transfer": "copies to the GPU and back by size, GB/s",
    "wrong": "GPU timings with a mistake in them, beside the right ones, ms",
    "chain": "steps that wait for each other, one number on the GPU, ms",
    "race": "AlexNet's convolutions by algorithm, ms and their MACs",
    "training": "DeepConvNet: images/s of fit() and the accuracy it came to, %",
    "pass": "AlexNet's forward pass and training step by batch, algorithm, dtype, threads, ms",
    "layers": "the same layer by layer, float32, ms",
}
"""What a recording holds."""

_GPU_ONLY = {"transfer", "wrong", "chain"}

MINUTES = 8.0
PAUSE_S = 0.15  # OpenBLAS's workers spin for 0.1 s after a product, and would slow what comes next
BUSY_PERCENT = 20  # of one core, that other programs use before the run
DIGITS = 4  # of a sample; its spread is far larger

_Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much is measured: sizes by device ("cpu", "gpu"), and seconds."""

    minutes: float = MINUTES
    """In all, warm-up included: what has not begun by then is left out, and said."""
    parts: tuple[str, ...] = tuple(PARTS)
    network: Callable[[], Network] = alexnet
    products: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=PRODUCT_SIZES.copy)
    float16_product: int = 256
    """On the CPU, where one of 1024 takes two seconds."""
    dtype_product: Mapping[str, int] = dataclasses.field(
        default_factory=lambda: {"cpu": 512, "gpu": 4096}
    )
    dtype_values: Mapping[str, int] = dataclasses.field(
        default_factory=lambda: {"cpu": 2**24, "gpu": 2**27}
    )
    """Numbers in each of the arrays that are added, past every cache."""
    dtype_batch: Mapping[str, int] = dataclasses.field(
        default_factory=lambda: {"cpu": 100, "gpu": 1024}
    )
    binary_products: Mapping[str, Sequence[tuple[int, int, int]]] = dataclasses.field(
        default_factory=lambda: {
            "cpu": [(1024, 1024, 1024), (100, 4096, 4096)],
            "gpu": [(1024, 1024, 1024), (100, 4096, 4096), (4096, 4096, 4096)],
        }
    )
    """Rows, outputs (rows of weights), and the length of both."""
    sweep: Mapping[str, Sequence[int]] = dataclasses.field(
        default_factory=lambda: {
            "cpu": [2**n for n in range(4, 12)],
            "gpu": [2**n for n in range(4, 13)],
        }
    )
    transfer_bytes: Sequence[int] = (2**12, 2**16, 2**20, 2**24, 2**28)
    wrong_size: int = 4096
    chain_steps: int = 2000
    race_batch: Mapping[str, int] = dataclasses.field(
        default_factory=lambda: {"cpu": 16, "gpu": 128}
    )
    forward: Mapping[str, Sequence[int]] = dataclasses.field(
        default_factory=lambda: {"cpu": (1, 16, 64), "gpu": (1, 16, 128, 256)}
    )
    training: Mapping[str, Sequence[int]] = dataclasses.field(
        default_factory=lambda: {"cpu": (8, 32), "gpu": (1, 16, 128, 256)}
    )
    layers_forward: Mapping[str, Sequence[int]] = dataclasses.field(
        default_factory=lambda: {"cpu": (1, 16, 64), "gpu": (128,)}
    )
    layers_training: Mapping[str, Sequence[int]] = dataclasses.field(
        default_factory=lambda: {"cpu": (32,), "gpu": (128,)}
    )
    precision_batch: int = 128
    """Images a pass of the GPU in TF32 and float16."""
    mnist_images: int = 6000
    test_images: int = 10_000

    @property
    def share(self) -> float:
        """Of the eight minutes; the budget of each measurement is multiplied by it."""
        return self.minutes / MINUTES


# --- measuring ----------------------------------------------------------------------------------


class _Run:
    """What is measured so far, the time that is left, and how each number is kept."""

    def __init__(self, plan: Plan, say: _Say) -> None:
        self.plan, self.say = plan, say
        self.card = machine_card()
        self.measurements: list[Measurement] = []
        self.start = time.perf_counter()
        # One thread and all, each once; 0 alone where the BLAS does not tell.
        self.threads = sorted({min(1, blas_threads_now()), blas_threads_now()})

    def __call__(
        self, name: str, measure: Callable[..., Measurement], budget_s: float, **conditions: Any
    ) -> None:
        """Measure one thing and keep it, unless the time is up or the memory is too small.

        ``measure`` takes what :func:`fastdl_lib.measuring.timing.benchmark` takes and returns a measurement.
        """
        if self.time_is_up(name):
            return
        time.sleep(PAUSE_S * min(1.0, self.plan.share))
        options = {"budget_s": budget_s * self.plan.share, "max_repeats": 15, "machine": self.card}
        with self.memory_may_not_do(name):
            kept = self.keep(name, measure(**options), **conditions)
            self.show(f"{name}: {kept.value()} {kept.unit}")

    def keep(self, name: str, measurement: Measurement, **conditions: Any) -> Measurement:
        """Keep a measurement under this name, its samples rounded, and return it as it is kept."""
        samples = tuple(float(f"{sample:.{DIGITS}g}") for sample in measurement.samples)
        conditions = {**conditions, **measurement.conditions}
        kept = dataclasses.replace(
            measurement, name=name, samples=samples, machine=self.card, conditions=conditions
        )
        self.measurements.append(kept)
        return kept

    def show(self, line: str) -> None:
        """Say a line, after the minutes and seconds so far."""
        elapsed_s = int(time.perf_counter() - self.start)
        self.say(f"{elapsed_s // 60}:{elapsed_s % 60:02} {line}")

    def time_is_up(self, name: str) -> bool:
        """Whether it is too late to begin; if so, say that this is left out."""
        limit_s = 60 * self.plan.minutes * max(1.0, time_scale())
        if time.perf_counter() - self.start < limit_s:
            return False
        self.show(f"{name}: left out, the time is up")
        return True

    @contextlib.contextmanager
    def memory_may_not_do(self, name: str) -> Iterator[None]:
        """Where the memory is too small for the block, say that this is left out, and go on."""
        try:
            yield
        except (MemoryError, RuntimeError) as error:  # CuPy's own, and those of the CUDA libraries
            says_so = re.search(r"out of memory|ALLOC_FAILED", str(error), re.IGNORECASE)
            if not isinstance(error, MemoryError) and not says_so:
                raise
            release_gpu_memory()
            self.show(f"{name}: left out, it does not fit into memory")


def measure_machine(plan: Plan = Plan(), say: _Say = print) -> Recording:
    """Measure this machine, its GPU included where there is one.

    Args:
        plan: what and how much; ``FASTDL_TIME_SCALE`` multiplies its time budgets.
        say: called with a line of text for each number, and for each that was left out.

    Raises:
        ValueError: a part that does not exist.
    """
    unknown = [part for part in plan.parts if part not in PARTS]
    if unknown:
        raise ValueError(f"there is no part {unknown[0]!r}; there are {list(PARTS)}.")
    run = _Run(plan, say)
    run.show(run.card.summary)
    devices = ["cpu", "gpu"] if gpu_available() else ["cpu"]
    steps = {
        "ceiling": _ceilings,
        "dtypes": _dtypes,
        "binary": _binary_products,
        "sweep": _sweep,
        "transfer": _transfers,
        "wrong": _wrong_timings,
        "chain": _chain,
        "race": _race,
        "training": _mnist_training,
    }
    for part, step in steps.items():
        for device in devices:
            if part in plan.parts and (device == "gpu" or part not in _GPU_ONLY):
                step(run, device)
    if {"pass", "layers"} & set(plan.parts):
        for device in devices:
            _passes(run, device)
    options = "" if plan.parts == tuple(PARTS) else f" --parts {' '.join(plan.parts)}"
    return Recording(
        dataclasses.replace(run.card, versions=run.card.versions | _more_versions()),
        f"python -m fastdl_lib.course.record --minutes {plan.minutes:g}{options}",
        tuple(run.measurements),
    )


def _more_versions() -> dict[str, str]:
    """What else decides a time here and is not on every machine card."""
    versions = {"numba": importlib.metadata.version("numba")}
    if gpu_available() and cudnn_status().available:
        torch = sys.modules["torch"]
        versions["torch"] = str(torch.__version__)
        versions["cudnn"] = str(torch.backends.cudnn.version())
    return versions


def _threads_of(run: _Run, device: str) -> list[int | None]:
    """The numbers of BLAS threads to try; a GPU is not asked."""
    return [None] if device == "gpu" else run.threads


def _in_words(threads: int | None) -> str:
    return "GPU" if threads is None else f"CPU, {threads_in_words(threads)}"


def _ceilings(run: _Run, device: str) -> None:
    kinds = ["float64", "float32"] + (["tf32", "float16"] if device == "gpu" else [])
    wanted = [
        (dtype, size, threads)
        for dtype in kinds
        for size in run.plan.products[device]
        for threads in _threads_of(run, device)
    ]
    if device == "cpu":
        wanted.append(("float16", run.plan.float16_product, 1))  # no BLAS knows it
    for dtype, size, threads in wanted:
        run(
            f"{dtype} product, {size} x {size}, {_in_words(threads)}",
            partial(product_gflops, size, dtype, device=device, threads=threads or None),
            1.0,
            part="ceiling",
            what="product",
            dtype=dtype,
            size=size,
        )
    run(
        f"copy, {_in_words(None if device == 'gpu' else 1)}",
        partial(copy_gb_per_s, device=device),
        1.0,
        part="ceiling",
        what="copy",
    )


def _dtypes(run: _Run, device: str) -> None:
    """What narrower numbers bring: where products are the limit, where bytes are, and in a network.

    NumPy has no BLAS for float16 and no instructions either: a small product shows it, and a
    network would take minutes. A GPU has, and trains in it with mixed precision.
    """
    threads, kinds = _threads_of(run, device)[-1], ["float64", "float32", "float16"]
    for dtype in kinds:
        size = run.plan.dtype_product[device]
        each = _threads_of(run, device)
        if dtype == "float16" and device == "cpu":
            size, each = run.plan.float16_product, [1]
        for count in each:
            run(
                f"by dtype: {dtype} product, {size} x {size}, {_in_words(count)}",
                partial(product_gflops, size, dtype, device=device, threads=count or None),
                0.4,
                part="dtypes",
                what="product",
                dtype=dtype,
                size=size,
            )
    for dtype in kinds:
        values = run.plan.dtype_values[device]
        name = f"by dtype: {dtype} x + y, {values} values, {_in_words(threads and 1)}"
        add = partial(_gvalues_per_s, values, dtype, device)
        run(name, add, 0.6, part="dtypes", what="add", dtype=dtype, size=values)
    ways = ["forward"] if device == "cpu" else ["forward", "training"]
    for dtype in kinds[:2] if device == "cpu" else kinds:
        for way in ways:
            name = f"by dtype: {dtype} DeepConvNet {way}, {_in_words(threads)}"
            with run.memory_may_not_do(name):
                _dtype_pass(run, device, name, dtype, way, threads)
            release_gpu_memory()


def _gvalues_per_s(count: int, dtype: str, device: str, **options: Any) -> Measurement:
    """x + y into an array that is there already; NumPy's elementwise work takes one thread."""
    x = np.ones(count, dtype)
    x = to_gpu(x) if device == "gpu" else x
    xp = array_module(x)
    y, out = xp.ones_like(x), xp.empty_like(x)
    threads = {"threads": 1} if device == "cpu" else {}
    added = benchmark(lambda: xp.add(x, y, out=out), device=device, **threads, **options)
    return added.convert(lambda ms: count / ms * 1e-6, "Gvalues/s")


def _dtype_pass(
    run: _Run, device: str, name: str, dtype: str, way: str, threads: int | None
) -> None:
    """DeepConvNet's arrays in that dtype; it trains in float16 with float32 master weights."""
    batch = run.plan.dtype_batch[device]
    network = deep_convnet().astype(dtype)
    if device == "gpu":
        network.to_gpu()
    x, labels = _images(network, batch, device, dtype), np.arange(batch) % 10
    labels = to_gpu(labels) if device == "gpu" else labels
    optimizer: Optimizer = SGD(1e-6, momentum=0.9)  # no harm, as in _one_batch
    if dtype == "float16":
        optimizer = MixedPrecision(optimizer, FLOAT16, loss_scale=1024)

    def step() -> None:
        training_pass(network, x, labels, weight=optimizer.loss_scale)
        optimizer.step(network)

    run(
        f"{name}, batch {batch}",
        partial(
            benchmark,
            step if way == "training" else partial(network.forward, x),
            device=device,
            threads=threads or None,
        ),
        1.0,
        part="dtypes",
        what=way,
        dtype=dtype,
        network=network.name,
        batch=batch,
    )


def _binary_products(run: _Run, device: str) -> None:
    """Does one bit pay? The same product in float32 and as bits, with and without packing."""
    for rows, outputs, length in run.plan.binary_products[device]:
        rng = np.random.default_rng(0)
        x, w = (rng.choice(np.float32([-1, 1]), (count, length)) for count in (rows, outputs))
        if device == "gpu":
            x, w = to_gpu(x), to_gpu(w)
        for way, product in _binary_ways(x, w).items():
            for threads in _threads_of(run, device):
                name = f"+1 and -1, {way}: {rows} x {outputs} x {length}, {_in_words(threads)}"
                work = partial(_product_speed, product, 2 * rows * outputs * length)
                run(
                    name,
                    partial(work, device=device, threads=threads or None),
                    0.2,
                    part="binary",
                    way=way,
                    rows=rows,
                    outputs=outputs,
                    length=length,
                )
    release_gpu_memory()


def _binary_ways(x: Any, w: Any) -> dict[str, Callable[[], Any]]:
    """The product of x (rows, length) and w (outputs, length), where they lie.

    Weights are packed before the clock starts: once, when a network is stored.
    """
    words_x, words_w, length = pack(x), pack(w), x.shape[1]
    out = array_module(x).empty((len(x), len(w)), np.float32)
    return {
        "float32": lambda: array_module(x).matmul(x, w.T, out=out),
        "bits": lambda: xnor_product(words_x, words_w, length),
        "bits, packing counted": lambda: xnor_product(pack(x), words_w, length),
    }


def _product_speed(product: Callable[[], Any], operations: int, **options: Any) -> Measurement:
    """In the operations of the float product, whoever does them."""
    return benchmark(product, **options).convert(lambda ms: operations / ms * 1e-6, "GFLOP/s")


def _square(size: int, device: str) -> Callable[[], Any]:
    """A float32 product of two matrices that lie on the device."""
    a, b = np.random.default_rng(0).standard_normal((2, size, size), dtype=np.float32)
    if device == "gpu":
        a, b = to_gpu(a), to_gpu(b)
    xp = array_module(a)
    out = xp.empty_like(a)
    return lambda: xp.matmul(a, b, out=out)


def _sweep(run: _Run, device: str) -> None:
    threads = _threads_of(run, device)[-1]
    for size in run.plan.sweep[device]:
        run(
            f"float32 product, {size} x {size}, {_in_words(threads)}, in the sweep",
            partial(
                benchmark, _square(size, device), device=device, threads=threads or None, warmup=3
            ),
            0.3,
            part="sweep",
            size=size,
        )


def _transfers(run: _Run, device: str) -> None:
    for size in run.plan.transfer_bytes:
        here = np.ones(size // 4, np.float32)
        for direction in ("to_gpu", "to_cpu"):
            run(
                f"{direction}, {size} bytes",
                partial(_gb_per_s, here, direction),
                0.5,
                part="transfer",
                direction=direction,
                bytes=size,
            )


def _gb_per_s(array: np.ndarray, direction: str, **options: Any) -> Measurement:
    move, array = (to_gpu, array) if direction == "to_gpu" else (to_cpu, to_gpu(array))
    moved = benchmark(move, array, device="gpu", **options)
    return moved.convert(lambda ms: array.nbytes / ms * 1e-6, "GB/s")


def _wrong_timings(run: _Run, device: str) -> None:
    """The same work with the clock read too early, with the compiler's time in it, and right."""
    size = run.plan.wrong_size
    product = _square(size, device)

    def clocked(function: Callable[[], Any], wait: bool, count: int) -> Measurement:
        samples = []
        for _ in range(count):
            synchronize()
            start = time.perf_counter()
            function()
            if wait:
                synchronize()
            samples.append(1e3 * (time.perf_counter() - start))
        synchronize()
        conditions = {"device": device, "warmup": 0}
        return Measurement("", "ms", samples, Provenance.MEASURED, run.card, conditions=conditions)

    def not_waited_for(**options: Any) -> Measurement:
        product()  # only the waiting is wrong
        return clocked(product, wait=False, count=5)

    x = to_gpu(np.ones(size, np.float32))

    def new_kernel() -> Callable[[], Any]:
        # A number that no earlier run had: CuPy keeps what it has compiled on the disk.
        body = f"y = x[i] * x[i] + (T){time.time_ns() % 10**9};"
        kernel = array_module(x).ElementwiseKernel("raw T x", "T y", body, "fastdl_new")
        return partial(kernel, x, array_module(x).empty_like(x))

    def compiled_inside(**options: Any) -> Measurement:
        return clocked(lambda: new_kernel()(), wait=True, count=3)

    kernel = f"own kernel, {size} numbers"
    for work, what, measure in (
        ("product", "no synchronise", not_waited_for),
        ("product", "right", partial(benchmark, product, device=device)),
        ("own kernel", "no warm-up", compiled_inside),
        ("own kernel", "right", partial(benchmark, new_kernel(), device=device)),
    ):
        name = kernel if work == "own kernel" else f"float32 product, {size} x {size}"
        run(f"{name}: {what}", measure, 0.5, part="wrong", what=what, work=work, size=size)


def _chain(run: _Run, device: str) -> None:
    """Chapter 03's recurrence, three launches a step, none of which can begin before the last."""
    x, steps = to_gpu(np.full(1, 0.3, np.float32)), run.plan.chain_steps

    def chain() -> None:
        y = x
        for _ in range(steps):
            y = 3.7 * y * (1 - y)

    measure = partial(benchmark, chain, device=device)
    run(f"chain of {steps} steps", measure, 0.5, part="chain", steps=steps)


def _gpu_algorithms() -> list[str]:
    return ["gpu", *(["cudnn"] if cudnn_status().available else [])]


def _images(network: Network, batch: int, device: str, dtype: str = "float32") -> Any:
    shape = (batch, *network.input_shape)
    x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32).astype(dtype, copy=False)
    return to_gpu(x) if device == "gpu" else x


def _race(run: _Run, device: str) -> None:
    network = run.plan.network()
    macs = {cost.name: cost.macs for cost in layer_costs(network)}
    if device == "gpu":
        network.to_gpu()
    for name, layer in network.layers.items():
        if isinstance(layer, Conv2d):
            with run.memory_may_not_do(f"{name}, {device}"):
                _race_of(run, device, name, layer, network.input_shape_of(name), macs[name])


def _race_of(
    run: _Run, device: str, name: str, layer: Conv2d, shape: tuple[int, ...], macs: int
) -> None:
    """One convolution by every algorithm of the device; the slow ones on less work."""

    def race(algorithm: str, function: Callable, batch: int, macs: int, threads: int | None):
        run(
            f"{name}, {algorithm}, batch {batch}, {_in_words(threads)}",
            partial(benchmark, function, device=device, threads=threads or None),
            0.7,
            part="race",
            layer=name,
            algorithm=algorithm,
            batch=batch,
            macs=macs,
        )

    image = np.random.default_rng(0).standard_normal((1, *shape), dtype=np.float32)
    if device == "cpu":
        loops, part_macs = _cut(layer, image)
        race("loops", loops, 1, part_macs, 1)
        layer.algorithm = "compiled"
        race("compiled", partial(layer.forward, image), 1, macs, 1)
    batch = run.plan.race_batch[device]
    images = np.repeat(image, batch, axis=0)
    images = to_gpu(images) if device == "gpu" else images
    algorithms = ["blocked", "winograd"] if device == "cpu" else _gpu_algorithms()
    for algorithm in ["im2col", *algorithms]:
        layer.algorithm = algorithm
        for threads in _threads_of(run, device):
            race(algorithm, partial(layer.forward, images), batch, batch * macs, threads)


def _cut(layer: Conv2d, image: np.ndarray) -> tuple[Callable[[], Any], int]:
    """A convolution of 4 x 4 pixels of one group for Python's loops, and its MACs."""
    channels, side = layer.in_channels // layer.groups, layer.kernel + 3 * layer.stride
    part = image[:, :channels, :side, :side]
    patch = channels * layer.kernel**2
    filters = max(1, min(layer.out_channels // layer.groups, 200_000 // (16 * patch)))
    weight = np.ascontiguousarray(layer.parameters["weight"][:filters])
    loops = partial(CONV_ALGORITHMS["loops"], part, weight, stride=layer.stride)
    return loops, loops()[0].size * patch


def _mnist_training(run: _Run, device: str) -> None:
    """A short run of fit(): its speed epoch by epoch, and what it came to."""
    share = min(1.0, run.plan.share * time_scale())
    count, epochs, batch = max(100, int(run.plan.mnist_images * share)), 3, 100
    name = f"DeepConvNet, batch {batch}, {_in_words(_threads_of(run, device)[-1])}"
    if run.time_is_up(name):
        return
    # Without Dropout, as the course trains it: so short a run would come to little with it.
    network = deep_convnet().variant("DeepConvNet", drop1=None, drop2=None)
    images, labels = (array[:count] for array in mnist("train"))
    test = [array[: run.plan.test_images] for array in mnist("test")]
    where = {"device": device}
    if device == "cpu":
        where["threads"] = blas_threads_now()
    else:
        network.to_gpu()
        images, labels, *test = map(to_gpu, (images, labels, *test))
    history = fit(
        network,
        images,
        labels,
        epochs=epochs,
        batch=batch,
        optimizer=Adam(3e-3),
        schedule=warmup_cosine(0.1),
        progress=False,
    )
    conditions = {
        "part": "training",
        "network": network.name,
        "batch": batch,
        "images": count,
        "epochs": epochs,
    }
    speed = tuple(count / epoch.seconds for epoch in history.epochs)
    accuracy = (100 * evaluate(network, *test).accuracy,)
    for what, unit, samples in (("speed", "images/s", speed), ("accuracy", "%", accuracy)):
        measurement = Measurement(
            what, unit, samples, Provenance.MEASURED, run.card, conditions=where
        )
        kept = run.keep(f"{name}: {what}", measurement, what=what, **conditions)
        run.show(f"{name}: {kept.value()} {unit}")


def _passes(run: _Run, device: str) -> None:
    """Whole passes and passes by layers, small batches first."""
    plan = run.plan
    kinds = ["float32"] if device == "cpu" else ["float32", "tf32", "float16"]
    algorithms = ["auto"] if device == "cpu" else _gpu_algorithms()
    for dtype in kinds:
        network = plan.network()
        if dtype == "float16":
            network.astype(np.float16)
        if device == "gpu":
            network.to_gpu()
        batches = sorted(
            [(batch, False) for batch in plan.forward[device]]
            + [(batch, True) for batch in plan.training[device]]
        )
        if dtype != "float32":
            batches = [(plan.precision_batch, False), (plan.precision_batch, True)]
        for algorithm in algorithms:
            for layer in network.layers.values():
                if isinstance(layer, Conv2d):
                    layer.algorithm = algorithm
            for batch, training in batches:
                with tf32(dtype == "tf32"):
                    _one_batch(run, device, network, batch, training, algorithm, dtype)
                release_gpu_memory()


def _one_batch(
    run: _Run,
    device: str,
    network: Network,
    batch: int,
    training: bool,
    algorithm: str,
    dtype: str,
) -> None:
    direction = "training" if training else "forward"
    name = f"{network.name} {direction}, batch {batch}, {algorithm}, {dtype}"
    classes = next(reversed(network.shapes.values()))[0]
    labels = np.arange(batch) % classes
    with run.memory_may_not_do(name):
        x = _images(network, batch, device, "float32" if dtype == "tf32" else dtype)
        labels = to_gpu(labels) if device == "gpu" else labels
        # The rate is so small that the same images again and again do no harm.
        optimizer = SGD(1e-6, momentum=0.9)

        def step() -> None:
            network.loss_and_gradients(x, labels)
            optimizer.step(network)

        function = step if training else partial(network.forward, x)
        shared = {"network": network.name, "batch": batch, "algorithm": algorithm, "dtype": dtype}
        if "pass" in run.plan.parts:
            for threads in _threads_of(run, device):
                run(
                    f"{name}, {_in_words(threads)}",
                    partial(benchmark, function, device=device, threads=threads or None),
                    5.0,
                    part="pass",
                    direction=direction,
                    **shared,
                )
        chosen = run.plan.layers_training if training else run.plan.layers_forward
        if "layers" not in run.plan.parts or dtype != "float32" or batch not in chosen[device]:
            return
        if run.time_is_up(f"{name}, by layers"):
            return
        profile = profile_layers(
            network,
            x,
            labels if training else None,
            budget_s=5.0 * run.plan.share,
            max_repeats=9,
        )
        run.show(f"{name}, by layers: {profile.total_ms:,.1f} ms together")
        shared["training"] = training
        for way, layers in (("forward", profile.forward), ("backward", profile.backward)):
            for layer, measurement in layers.items():
                run.keep(
                    f"{layer} {way}, {name}",
                    measurement,
                    part="layers",
                    direction=way,
                    layer=layer,
                    kind=profile.kinds[layer],
                    **shared,
                )


# --- is it plausible? ---------------------------------------------------------------------------

UNITS = {
    "ceiling": {"product": "GFLOP/s", "copy": "GB/s"},
    "dtypes": {"product": "GFLOP/s", "add": "Gvalues/s", "forward": "ms", "training": "ms"},
    "binary": "GFLOP/s",
    "training": {"speed": "images/s", "accuracy": "%"},
    "transfer": "GB/s",
}
"""By part, or part and ``what``; all other parts are in ms."""

LEAST_SAMPLES = 3
# The ceilings were not measured in the same moment: a machine's clock rises and falls by so much.
ABOVE_PEAK = 1.25
# The layers' times added up, by the whole pass's. Down to 0.4, because a training step also moves
# the weights, which at small batches takes longer than the layers. Up to 2.5, because a GPU is
# waited for after every layer, so that asking for the next one no longer overlaps with the work.
LAYERS_BY_PASS = (0.4, 2.5)
FIRST_DATE = datetime.date(2025, 1, 1)
# Recordings made before these days lack the parts "dtypes" and "binary"; none is asked of them.
DTYPES_SINCE = "2026-11-25"
BINARY_SINCE = "2026-11-25"
# What starts at a root, a home or a drive; a model's name may hold a slash.
_PATH = re.compile(r"(?<![\w.])(?:~?/|[A-Za-z]:\\|\\\\)\w")


def check_recording(recording: Recording, network: Network | None = None) -> list[str]:
    """Say what in a machine's recording cannot be: one sentence a fault, none when it is accepted.

    Args:
        recording: as ``python -m fastdl_lib.course.record`` makes it.
        network: what was measured; by default the course's AlexNet.

    >>> from fastdl_lib.measuring.recordings import machine_recordings
    >>> [fault for run in machine_recordings().values() for fault in check_recording(run)]
    []
    """
    network = network or alexnet()
    found = recording.measurements
    faults = [*_card_faults(recording), *_missing(recording)]
    for measurement in found:
        faults += _own_faults(measurement, network)
    seen = [json.dumps(m.conditions, sort_keys=True, default=str) for m in found]
    twice = [m.name for m, key in zip(found, seen, strict=True) if seen.count(key) > 1]
    if twice:
        faults.append(f"measured more than once under the same conditions: {twice[0]!r}.")
    if not faults:  # from here on the conditions are there and the numbers are positive
        faults = [*_layer_faults(recording, network), *_peak_faults(recording, network)]
    return faults


def _card_faults(recording: Recording) -> Iterator[str]:
    card = recording.machine
    try:
        day = datetime.date.fromisoformat(card.date)
    except ValueError:
        yield f"the date {card.date!r} is none; it must be YYYY-MM-DD."
    else:
        # Somewhere it is tomorrow already.
        if not FIRST_DATE <= day <= datetime.date.today() + datetime.timedelta(days=1):
            yield f"the date {card.date} is not from {FIRST_DATE} to today."
    versions = ["numpy", "numba", "fastdl"]
    if _has_gpu(card):
        versions += ["cupy", "cuda", "cuda driver"]
    for name in versions:
        if not card.versions.get(name):
            yield f"the machine card does not name the version of {name}."
    if "stand-in" in card.versions.get("cupy", ""):
        yield "the GPU is the tests' stand-in."
    texts = [recording.command, *_texts(card.to_dict())]
    for measurement in recording.measurements:
        texts += _texts(measurement.to_dict())
    host = platform.node()
    for text in texts:
        if _PATH.search(text):
            yield f"{text!r} holds a path."
        # A word before the @ and one behind it; a CPU's name may hold "CPU @ 3.50GHz".
        elif re.search(r"\w@\w", text) or (
            len(host) > 3 and re.search(rf"\b{re.escape(host)}\b", text)
        ):
            yield f"{text!r} names a user or a computer."


def _texts(value: Any) -> Iterator[str]:
    """Every text in what JSON can hold."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _has_gpu(card: MachineCard) -> bool:
    return not card.gpu.startswith("none")


def _missing(recording: Recording) -> Iterator[str]:
    required = []
    for device in ["cpu", "gpu"] if _has_gpu(recording.machine) else ["cpu"]:
        here = {"device": device}
        required += [
            {"part": "ceiling", **here, "what": "product", "dtype": "float32"},
            {"part": "ceiling", **here, "what": "copy"},
            {"part": "sweep", **here},
            {"part": "race", **here},
            {"part": "training", **here, "what": "speed"},
            {"part": "training", **here, "what": "accuracy"},
            {"part": "pass", **here, "direction": "forward", "dtype": "float32"},
            {"part": "pass", **here, "direction": "training", "dtype": "float32"},
            {"part": "layers", **here, "training": False},
            {"part": "layers", **here, "training": True},
        ]
    if _has_gpu(recording.machine):
        required += [{"part": "transfer", "direction": way} for way in ("to_gpu", "to_cpu")]
        required.append({"part": "chain"})
        for what in ("no synchronise", "no warm-up", "right"):
            required.append({"part": "wrong", "what": what})
    if recording.machine.date >= DTYPES_SINCE:
        required += _required_dtypes(recording.machine)
    if recording.machine.date >= BINARY_SINCE:
        required += [
            {"part": "binary", "device": device, "way": way}
            for device in (["cpu", "gpu"] if _has_gpu(recording.machine) else ["cpu"])
            for way in ("float32", "bits")
        ]
    for conditions in required:
        if not recording.has(**conditions):
            yield f"nothing was measured of {conditions}."


def _required_dtypes(card: MachineCard) -> Iterator[dict[str, str]]:
    """What the part "dtypes" must hold."""
    for device in ["cpu", "gpu"] if _has_gpu(card) else ["cpu"]:
        for dtype in ("float64", "float32", "float16"):
            whats = ["product", "add"]
            if device == "gpu":
                whats += ["forward", "training"]
            elif dtype != "float16":
                whats.append("forward")
            for what in whats:
                yield {"part": "dtypes", "device": device, "dtype": dtype, "what": what}


# The conditions that each part's numbers cannot be judged or found without.
_NEEDED = {
    "ceiling": ("what",),
    "dtypes": ("what", "dtype"),
    "binary": ("way", "rows", "outputs", "length"),
    "sweep": ("size",),
    "transfer": ("direction", "bytes"),
    "wrong": ("what", "work", "size"),
    "chain": ("steps",),
    "race": ("layer", "algorithm", "batch", "macs"),
    "training": ("what", "network", "batch", "images", "epochs"),
    "pass": ("network", "direction", "batch", "algorithm", "dtype"),
    "layers": (
        *("network", "direction", "training", "batch", "algorithm", "dtype", "layer", "kind"),
    ),
}


_WHOLE_NUMBERS = {
    *("size", "bytes", "batch", "macs", "images", "epochs", "steps", "threads"),
    *("rows", "outputs", "length"),
}


def _own_faults(measurement: Measurement, network: Network) -> Iterator[str]:
    """What is wrong with one measurement, whatever the others say."""
    name, conditions = measurement.name, measurement.conditions
    part = conditions.get("part")
    if part not in PARTS:
        yield f"{name!r} belongs to no part of {list(PARTS)}."
        return
    needed = ["device", *_NEEDED[part]]
    if conditions.get("device") == "cpu":
        needed.append("threads")
    what = conditions.get("what")
    if part == "ceiling" and what == "product":
        needed += ["dtype", "size"]
    if part == "dtypes":
        needed += ["size"] if what in ("product", "add") else ["network", "batch"]
    lacking = [key for key in needed if key not in conditions]
    if lacking:
        yield f"{name!r} does not say its {lacking[0]}."
        return
    for key in needed:
        value = conditions[key]
        kind = int if key in _WHOLE_NUMBERS else bool if key == "training" else str
        # 0 threads stand for a number that the BLAS does not tell.
        if type(value) is not kind or (kind is int and value < (key != "threads")):
            yield f"{name!r} has the {key} {value!r}."
            return
    if conditions["device"] not in ("cpu", "gpu"):
        yield f"{name!r} ran on the device {conditions['device']!r}, which is neither cpu nor gpu."
    if conditions.get("layer", next(iter(network.layers))) not in network.layers:
        yield f"{name!r} is of a layer that {network.name} does not have."
    unit = UNITS.get(part, "ms")
    unit = unit if isinstance(unit, str) else unit.get(conditions["what"])
    if measurement.unit != unit:
        yield f"{name!r} is in {measurement.unit!r}, expected {unit!r}."
    if measurement.provenance is not Provenance.RECORDED:
        yield f"{name!r} is {measurement.provenance}, not measured."
    if min(measurement.samples) <= 0:
        yield f"{name!r} holds {min(measurement.samples)}; every sample must be above 0."
    if conditions.get("what") == "accuracy":
        if max(measurement.samples) > 100:
            yield f"{name!r} is above 100 %."
    elif len(measurement.samples) < LEAST_SAMPLES:
        yield f"{name!r} has {len(measurement.samples)} samples, {LEAST_SAMPLES} are the least."


def _layer_faults(recording: Recording, network: Network) -> Iterator[str]:
    """Each profile holds every layer once and agrees with the whole pass."""
    keys = ("device", "network", "batch", "algorithm", "dtype", "training")
    layers = recording.select(part="layers")
    for values in dict.fromkeys(tuple(m.conditions[key] for key in keys) for m in layers):
        group = dict(zip(keys, values, strict=True))
        rows = recording.select(part="layers", **group)
        training = group.pop("training")
        where = (
            f"{group['network']}, {group['device']}, batch {group['batch']}, training {training}"
        )
        for way in ("forward", "backward") if training else ("forward",):
            there = [m.conditions["layer"] for m in rows if m.conditions["direction"] == way]
            if sorted(there) != sorted(network.layers):
                odd = sorted(set(there) ^ set(network.layers)) or sorted(there)
                yield (
                    f"{where}, {way}: every layer of {network.name} must be there once, so that "
                    f"the shares sum to one; see {odd[0]}."
                )
        if len({len(m.samples) for m in rows}) != 1:
            yield f"{where}: the layers were not measured in the same passes."
        conditions = {**group, "direction": "training" if training else "forward"}
        if group["device"] == "cpu":
            conditions["threads"] = rows[0].conditions["threads"]
        if not recording.has(part="pass", **conditions):
            yield f"{where}: there is no whole pass beside the layers."
            continue
        (whole, *_) = recording.select(part="pass", **conditions)
        ratio = sum(m.median for m in rows) / whole.median
        low, high = LAYERS_BY_PASS
        if not low <= ratio <= high:
            yield (
                f"{where}: the layers add up to {ratio:.2f} times the whole pass; "
                f"{low} to {high} can be explained."
            )


def _peak_faults(recording: Recording, network: Network) -> Iterator[str]:
    """Nothing multiplies faster than the products that were measured as the ceiling."""
    peaks: dict[tuple[str, str], float] = {}  # GFLOP/s
    for m in recording.select(part="ceiling", what="product"):
        key = (m.conditions["device"], m.conditions["dtype"])
        peaks[key] = max(peaks.get(key, 0.0), *m.samples)
    costs = {cost.name: cost.macs for cost in layer_costs(network)}
    first = next(iter(network.layers))

    def least_macs(layer: str, algorithm: str, way: str) -> float:
        """Multiplications an image needs at least, in one direction."""
        macs = costs[layer] / _saving(network.layers[layer], algorithm)
        return macs * (1 if way == "forward" or layer == first else 2)

    for m in recording.measurements:
        there = m.conditions
        part, dtype = there["part"], there.get("dtype", "float32")
        if part == "dtypes" and there["what"] == "product":
            macs = there["size"] ** 3
            m = m.convert(lambda gflops, macs=macs: 2 * macs / gflops * 1e-6, "ms")
        elif part == "binary":
            # A word does as many at once, where a float32 product does one at least.
            macs = there["rows"] * there["outputs"] * there["length"]
            m = m.convert(lambda gflops, macs=macs: 2 * macs / gflops * 1e-6, "ms")
            macs /= 1 if there["way"] == "float32" else WORD
        elif part == "sweep" or (part == "wrong" and there["work"] == "product"):
            if there.get("what") == "no synchronise":
                continue  # the asking alone: any speed can come out
            macs = there["size"] ** 3
        elif part == "race":
            saving = _saving(network.layers[there["layer"]], there["algorithm"])
            macs = there["macs"] / saving
            if there["macs"] > there["batch"] * costs[there["layer"]]:
                yield f"{m.name!r} counts {there['macs']:,} MACs, more than the layer has."
        elif part == "layers":
            macs = there["batch"] * least_macs(
                there["layer"], there["algorithm"], there["direction"]
            )
        elif part == "pass":
            ways = ("forward", "backward") if there["direction"] == "training" else ("forward",)
            macs = there["batch"] * sum(
                least_macs(layer, there["algorithm"], way) for layer in costs for way in ways
            )
        else:
            continue
        if (there["device"], dtype) not in peaks:
            yield f"{m.name!r}: no product of {dtype} was measured on the {there['device']}."
            continue
        gflops, peak = 2 * macs / m.median * 1e-6, peaks[there["device"], dtype]
        if gflops > ABOVE_PEAK * peak:
            yield (
                f"{m.name!r} comes to {gflops:,.0f} GFLOP/s at least, above the {peak:,.0f} of "
                "the largest measured product."
            )


def _saving(layer: Any, algorithm: str) -> float:
    """By how many times Winograd's algorithm at most lessens a convolution's multiplications.

    cuDNN may use it as well. A stride of s turns a filter of k x k taps into one of k/s x k/s.
    """
    if not isinstance(layer, Conv2d) or algorithm not in ("auto", "winograd", "cudnn"):
        return 1.0
    taps = math.ceil(layer.kernel / layer.stride)
    outputs = range(1, LARGEST_TILE + 2 - taps)
    return max([1.0, *((m * taps / (m + taps - 1)) ** 2 for m in outputs)])


# --- where a recording goes ---------------------------------------------------------------------


def check_place(path: Path, machine: MachineCard | None = None) -> None:
    """Refuse, before anything is measured, a place where no recording can or must be written.

    Args:
        machine: refuse also to take the place of another machine's recording.

    Raises:
        ValueError: the name is no .json file's, or what is there is not the same kind of recording.
        FileNotFoundError, PermissionError: the folder is missing or cannot be written to.
    """
    if path.suffix != ".json" or path.is_dir():
        raise ValueError(f"a recording is a .json file, got the name {path.name!r}.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent.name!r}; make it.")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"the folder {path.parent.name!r} cannot be written to.")
    if not path.exists():
        return
    there = read_recording(path).machine
    if machine and (there.cpu, there.cores, there.gpu) != (
        *(machine.cpu, machine.cores, machine.gpu),
    ):
        raise ValueError(
            f"{path.name} is the recording of another machine ({there.summary}); "
            "give yours another name with --out."
        )


def save(recording: Recording, path: Path) -> Recording:
    """Write the whole file or nothing, say so, and return what is read back from it.

    What was measured is *recorded* there. Call :func:`check_place` before the work.

    Raises:
        As :func:`check_place`, and ValueError where JSON does not keep what a measurement holds.
    """
    check_place(path)
    write_recording(path, recording)
    print(f"{len(recording.measurements)} measurements written to {path.name}", flush=True)
    return read_recording(path)


# --- the command --------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Record this machine, or check a recording, as the command line says; return exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.parts and not options.out:
        parser.error("--parts makes no whole recording: say with --out where it shall go.")
    try:
        if options.check:
            return _report(options.check.name, check_recording(read_recording(options.check)))
        return _record(options)
    except KeyboardInterrupt:
        print("Interrupted: nothing was written.")
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 1


def _record(options: argparse.Namespace) -> int:
    card = machine_card()
    path = options.out or data_folder() / "recordings" / f"{recording_name(card)}.json"
    check_place(path, card)
    time_scale()  # refused now rather than in a minute
    # While this process sleeps, all that runs is others'.
    others = psutil.cpu_percent(interval=1.0) * (psutil.cpu_count() or 1)
    if others > BUSY_PERCENT:
        print(f"Other programs use {others:.0f} % of a core: stop them, or they are measured too.")
    plan = Plan(minutes=options.minutes, parts=tuple(options.parts or PARTS))
    recording = measure_machine(plan, partial(print, flush=True))
    return _report(path.name, check_recording(save(recording, path)))


def recording_name(card: MachineCard) -> str:
    """The file's name without its ending: by the GPU, or the CPU where there is none, and the day.

    >>> from fastdl_lib.measuring.machine import machine_card
    >>> recording_name(machine_card()).startswith("machine_")
    True
    """
    device = card.gpu if _has_gpu(card) else card.cpu
    return f"machine_{re.sub(r'[^a-z0-9]+', '_', device.lower()).strip('_')}_{card.date}"


def _report(name: str, faults: list[str]) -> int:
    for fault in faults:
        print(f"  {fault}")
    if faults:
        print(f"{name} is not accepted. Record again, on a machine that does nothing else.")
    else:
        print(f"{name} is accepted.")
    return 1 if faults else 0


def _minutes(text: str) -> float:
    minutes = float(text)
    if not 0 < minutes < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return minutes


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fastdl_lib.course.record",
        description="Measure this machine and write what came out as a recording.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="parts:\n" + "\n".join(f"  {part:9} {what}" for part, what in PARTS.items()),
    )
    add = parser.add_argument
    add("--out", type=Path, help="the file (default: data/recordings/machine_<name>_<date>.json)")
    add("--minutes", type=_minutes, default=MINUTES, help="in all (default: %(default)g)")
    add("--parts", nargs="+", choices=PARTS, metavar="PART", help="these alone; needs --out")
    add("--check", type=Path, metavar="FILE", help="measure nothing, judge this recording")
    return parser


if __name__ == "__main__":
    sys.exit(main())
