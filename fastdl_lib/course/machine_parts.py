"""The parts of a machine's recording: what each holds, how much of it, and how it is measured.

What was measured stands in each measurement's ``conditions``, first of all in ``part``;
``Recording.select`` finds it by them.
"""

import contextlib
import dataclasses
import importlib.metadata
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from fastdl_lib.binary.bits import pack, panels_of, xnor_product
from fastdl_lib.convolution.algorithms import ALGORITHMS, Algorithm, conv2d
from fastdl_lib.core.arrays import (
    array_module,
    gpu_available,
    keep_freed_memory,
    release_gpu_memory,
    synchronize,
    tf32,
    to_cpu,
    to_gpu,
)
from fastdl_lib.core.checks import check_choice
from fastdl_lib.core.datasets import mnist
from fastdl_lib.core.threads import blas_threads_now, threads_in_words
from fastdl_lib.measuring.costs import layer_costs
from fastdl_lib.measuring.evidence import Measurement
from fastdl_lib.measuring.machine import machine_card
from fastdl_lib.measuring.recordings import Recording
from fastdl_lib.measuring.timing import (
    benchmark,
    clock_ghz,
    copy_gb_per_s,
    product_gflops,
    profile_layers,
    time_scale,
)
from fastdl_lib.nn.layers import Conv2d, Dropout
from fastdl_lib.nn.network import Network
from fastdl_lib.nn.optimizers import SGD, Adam, Optimizer, warmup_cosine
from fastdl_lib.nn.training import evaluate, fit
from fastdl_lib.nn.zoo import alexnet, deep_convnet
from fastdl_lib.precision.formats import FLOAT16
from fastdl_lib.precision.mixed import MixedPrecision

PARTS = {
    "clock": "a core's clock, by steps that wait for each other, GHz",
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
"""What a recording holds, in the order it is measured."""


class Row(NamedTuple):
    """A kind of measurement of a part: its unit, and the conditions each of them must state."""

    part: str
    unit: str
    says: Mapping[str, Any]
    """Beside device and, on the CPU, threads: the one value, or the type, of each condition."""
    devices: tuple[str, ...] = ("cpu", "gpu")
    """Where a machine that has the device must have measured at least one."""

    @property
    def fixed(self) -> dict[str, Any]:
        """The part, and the conditions that tell it from the other rows."""
        given = {key: value for key, value in self.says.items() if not isinstance(value, type)}
        return {"part": self.part, **given}


_PRODUCT = {"rows": int, "outputs": int, "length": int}
_FIT = {"network": str, "batch": int, "images": int, "epochs": int}
_PASS = {"network": str, "batch": int, "algorithm": str, "dtype": str}
_LAYER = {**_PASS, "layer": str, "kind": str}
_GPU = ("gpu",)

ROWS = (
    Row("clock", "GHz", {}, ("cpu",)),
    Row("ceiling", "GFLOP/s", {"what": "product", "dtype": str, "size": int}),
    Row("ceiling", "GB/s", {"what": "copy"}),
    Row("dtypes", "GFLOP/s", {"what": "product", "dtype": str, "size": int}),
    Row("dtypes", "Gvalues/s", {"what": "add", "dtype": str, "size": int}),
    Row("dtypes", "ms", {"what": "forward", "dtype": str, "network": str, "batch": int}),
    Row("dtypes", "ms", {"what": "training", "dtype": str, "network": str, "batch": int}, _GPU),
    Row("binary", "GFLOP/s", {"way": "float32", **_PRODUCT}),
    Row("binary", "GFLOP/s", {"way": "bits", **_PRODUCT}),
    Row("binary", "GFLOP/s", {"way": "bits, packing counted", **_PRODUCT}),
    Row("sweep", "ms", {"size": int}),
    Row("transfer", "GB/s", {"direction": "to_gpu", "bytes": int}, _GPU),
    Row("transfer", "GB/s", {"direction": "to_cpu", "bytes": int}, _GPU),
    Row("wrong", "ms", {"what": "no synchronise", "work": str, "size": int}, _GPU),
    Row("wrong", "ms", {"what": "no warm-up", "work": str, "size": int}, _GPU),
    Row("wrong", "ms", {"what": "right", "work": str, "size": int}, _GPU),
    Row("chain", "ms", {"steps": int}, _GPU),
    Row("race", "ms", {"layer": str, "algorithm": str, "batch": int, "macs": int}),
    Row("training", "images/s", {"what": "speed", **_FIT}),
    Row("training", "%", {"what": "accuracy", **_FIT}),
    Row("pass", "ms", {"direction": "forward", **_PASS}),
    Row("pass", "ms", {"direction": "training", **_PASS}),
    Row("layers", "ms", {"training": False, "direction": "forward", **_LAYER}),
    Row("layers", "ms", {"training": True, "direction": "forward", **_LAYER}),
    Row("layers", "ms", {"training": True, "direction": "backward", **_LAYER}),
)

MINUTES = 8.0
BUDGETS_S = {"race": 0.7, "pass": 5.0}  # in all of these minutes, of each row
REPEATS = 15  # of a row at most
PAUSE_S = 0.15  # OpenBLAS's workers spin for 0.1 s after a product, and would slow what comes next
DIGITS = 4  # of a sample; its spread is far larger


class Sizes(NamedTuple):
    """How large the work on one device is."""

    ceiling: Mapping[str, Sequence[int]]
    """Rows of the square products by dtype."""
    dtype_product: Mapping[str, int]
    dtype_values: int
    """Numbers in each of the arrays that are added, past every cache."""
    dtype_network: Mapping[str, Sequence[str]]
    """By dtype: "forward", "training" or both."""
    dtype_batch: int
    binary: Sequence[tuple[int, int, int]]
    """Rows, outputs (rows of weights), and the length of both."""
    sweep: Sequence[int]
    race_batch: int
    passes: Sequence[tuple[int, str]]
    """Batch, and "forward" or "training"; small ones first."""
    layers: Sequence[tuple[int, str]]
    """Those of them that are measured layer by layer too."""


_BOTH = ("forward", "training")
CPU = Sizes(
    # NumPy has no BLAS for float16 and no instructions either: of 1024 rows it takes two seconds.
    ceiling={"float64": (1024, 2048), "float32": (1024, 2048), "float16": (256,)},
    dtype_product={"float64": 512, "float32": 512, "float16": 256},
    dtype_values=2**24,
    dtype_network={"float64": ("forward",), "float32": ("forward",)},
    dtype_batch=100,
    binary=[(1024, 1024, 1024), (100, 4096, 4096)],
    sweep=[2**n for n in range(4, 12)],
    race_batch=16,
    passes=[(1, "forward"), (8, "training"), (16, "forward"), (32, "training"), (64, "forward")],
    layers=[(1, "forward"), (16, "forward"), (32, "training"), (64, "forward")],
)
GPU = Sizes(
    ceiling=dict.fromkeys(("float64", "float32", "tf32", "float16"), (4096, 8192)),
    dtype_product=dict.fromkeys(("float64", "float32", "float16"), 4096),
    dtype_values=2**27,
    dtype_network=dict.fromkeys(("float64", "float32", "float16"), _BOTH),
    dtype_batch=1024,
    binary=[(1024, 1024, 1024), (100, 4096, 4096), (4096, 4096, 4096)],
    sweep=[2**n for n in range(4, 13)],
    race_batch=128,
    passes=[(batch, way) for batch in (1, 16, 128, 256) for way in _BOTH],
    layers=[(128, way) for way in _BOTH],
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is measured, and how much of it."""

    minutes: float = MINUTES
    """In all, warm-up included: what has not begun by then is left out, and said."""
    parts: tuple[str, ...] = tuple(PARTS)
    network: Callable[[], Network] = alexnet
    digits: Callable[[], Network] = deep_convnet
    """The smaller network, of MNIST's images: trained, and computed in other dtypes."""
    sizes: Mapping[str, Sizes] = dataclasses.field(default_factory={"cpu": CPU, "gpu": GPU}.copy)
    transfer_bytes: Sequence[int] = (2**12, 2**16, 2**20, 2**24, 2**28)
    wrong_size: int = 4096
    chain_steps: int = 2000
    narrow_batch: int = 128
    """Images a pass of the GPU in TF32 and float16."""
    mnist_images: int = 6000
    test_images: int = 10_000

    @property
    def share(self) -> float:
        """Of the eight minutes; the budget of each measurement is multiplied by it."""
        return self.minutes / MINUTES


class _Run:
    """What is measured so far, the time that is left, and how each number is kept."""

    def __init__(self, plan: Plan, say: Callable[[str], None]) -> None:
        self.plan, self.say = plan, say
        self.card = machine_card()
        self.measurements: list[Measurement] = []
        self.start = time.perf_counter()
        # One thread and all, each once; 0 alone where the BLAS does not tell.
        self.threads = sorted({min(1, blas_threads_now()), blas_threads_now()})

    def __call__(
        self,
        name: str,
        measure: Callable[..., Measurement],
        budget_s: float,
        device: str,
        threads: Sequence[int] = (),
        **conditions: Any,
    ) -> None:
        """Measure one thing and keep it, unless the time is up or the memory is too small.

        ``measure`` takes what :func:`fastdl_lib.measuring.timing.benchmark` takes; on the CPU it is
        called for each number of ``threads``, by default one and all.
        """
        for count in [None] if device == "gpu" else threads or self.threads:
            full = f"{name}, {'GPU' if count is None else f'CPU, {threads_in_words(count)}'}"
            if self.time_is_up(full):
                continue
            time.sleep(PAUSE_S * min(1.0, self.plan.share))
            budget = {"budget_s": budget_s * self.plan.share, "max_repeats": REPEATS}
            with self.memory_may_not_do(full):
                where = {"device": device, "threads": count or None, "machine": self.card}
                self.keep(full, measure(**where, **budget), **conditions)

    def keep(self, name: str, measurement: Measurement, show: bool = True, **conditions: Any):
        """Keep a measurement under this name, its samples rounded, and say it."""
        samples = tuple(float(f"{sample:.{DIGITS}g}") for sample in measurement.samples)
        conditions = {**conditions, **measurement.conditions}
        kept = dataclasses.replace(measurement, name=name, samples=samples, conditions=conditions)
        self.measurements.append(dataclasses.replace(kept, machine=self.card))
        if show:
            self.show(f"{name}: {kept.value()} {kept.unit}")

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


@keep_freed_memory()
def measure_machine(plan: Plan = Plan(), say: Callable[[str], None] = print) -> Recording:
    """Measure this machine, its GPU included where there is one.

    ``FASTDL_TIME_SCALE`` multiplies the plan's time budgets; ``say`` is called with a line of text
    for each number, and for each that was left out.
    """
    for part in plan.parts:
        check_choice("a part", part, PARTS)
    run = _Run(plan, say)
    run.show(run.card.summary)
    devices = ["cpu", "gpu"] if gpu_available() else ["cpu"]
    for measure, parts in _MEASURES.items():
        wanted = [row for row in ROWS if row.part in parts and row.part in plan.parts]
        for device in devices:
            if any(device in row.devices for row in wanted):
                measure(run, device)
    options = "" if plan.parts == tuple(PARTS) else f" --parts {' '.join(plan.parts)}"
    scale = "" if time_scale() == 1 else f"FASTDL_TIME_SCALE={time_scale()!r} "
    return Recording(
        dataclasses.replace(run.card, versions=run.card.versions | _more_versions()),
        f"{scale}python -m fastdl_lib.course.record --minutes {plan.minutes:.15g}{options}",
        tuple(run.measurements),
    )


def _more_versions() -> dict[str, str]:
    """What else decides a time here and is not on every machine card."""
    versions = {"numba": importlib.metadata.version("numba")}
    for algorithm in ALGORITHMS.values():
        versions |= algorithm.status().versions
    return versions


# --- numbers without a network ------------------------------------------------------------------


def _there(array: np.ndarray, device: str) -> Any:
    return to_gpu(array) if device == "gpu" else array


def _rate(work: Callable[[], Any], count: int, unit: str, **options: Any) -> Measurement:
    """How many thousand millions a second, where each call of ``work`` comes to ``count``."""
    return benchmark(work, **options).convert(lambda ms: count / ms * 1e-6, unit)


def _product(run: _Run, device: str, part: str, dtype: str, size: int, budget_s: float) -> None:
    slow = device == "cpu" and dtype == "float16"  # and on one thread, whatever the BLAS may use
    threads, measure = [1] if slow else run.threads, partial(product_gflops, size, dtype)
    where = {"part": part, "what": "product", "dtype": dtype, "size": size}
    run(f"{part}: {dtype} product, {size} x {size}", measure, budget_s, device, threads, **where)


def _clock(run: _Run, device: str) -> None:
    run("clock of a core", clock_ghz, 0.2, device, [1], part="clock")


def _ceilings(run: _Run, device: str) -> None:
    for dtype, sizes in run.plan.sizes[device].ceiling.items():
        for size in sizes:
            _product(run, device, "ceiling", dtype, size, 1.0)
    run("copy", copy_gb_per_s, 1.0, device, [1], part="ceiling", what="copy")


def _dtypes(run: _Run, device: str) -> None:
    """What narrower numbers bring: where products are the limit, where bytes are, and in a network.

    A GPU trains in float16 with float32 master weights.
    """
    sizes, batch = run.plan.sizes[device], run.plan.sizes[device].dtype_batch
    for dtype, size in sizes.dtype_product.items():
        _product(run, device, "dtypes", dtype, size, 0.4)
    for dtype in sizes.dtype_product:
        add, values = partial(_gvalues_per_s, sizes.dtype_values, dtype), sizes.dtype_values
        where = {"part": "dtypes", "what": "add", "dtype": dtype, "size": values}
        run(f"{dtype} x + y, {values} values", add, 0.6, device, [1], **where)
    for dtype, way in ((dtype, way) for dtype, ways in sizes.dtype_network.items() for way in ways):
        network = run.plan.digits()
        name = f"dtypes: {dtype} {network.name} {way}, batch {batch}"
        with run.memory_may_not_do(name):
            network = _placed(network, device, dtype)
            timed = partial(benchmark, _Work(network, batch, device, dtype).of(way))
            where = {"what": way, "dtype": dtype, "network": network.name, "batch": batch}
            run(name, timed, 1.0, device, run.threads[-1:], part="dtypes", **where)
        release_gpu_memory()


def _gvalues_per_s(count: int, dtype: str, *, device: str, **options: Any) -> Measurement:
    """x + y into an array that is there already; NumPy's elementwise work takes one thread."""
    x = _there(np.ones(count, dtype), device)
    xp = array_module(x)
    y, out = xp.ones_like(x), xp.empty_like(x)
    return _rate(lambda: xp.add(x, y, out=out), count, "Gvalues/s", device=device, **options)


def _binary_products(run: _Run, device: str) -> None:
    """Does one bit pay? The same product in float32 and as bits, with and without packing."""
    for rows, outputs, length in run.plan.sizes[device].binary:
        rng, ones = np.random.default_rng(0), np.float32([-1, 1])
        x, w = (_there(rng.choice(ones, (n, length)), device) for n in (rows, outputs))
        shape = {"rows": rows, "outputs": outputs, "length": length}
        for way, product in _binary_ways(x, w).items():
            # In the operations of the float product, whoever does them.
            timed = partial(_rate, product, 2 * rows * outputs * length, "GFLOP/s")
            name = f"+1 and -1, {way}: {rows} x {outputs} x {length}"
            run(name, timed, 0.2, device, part="binary", way=way, **shape)
    release_gpu_memory()


def _binary_ways(x: Any, w: Any) -> dict[str, Callable[[], Any]]:
    """The product of x (rows, length) and w (outputs, length), where they lie.

    Weights are packed and laid out before the clock starts: once, when a network is stored.
    """
    words_x, words_w, length = pack(x), panels_of(pack(w)), x.shape[1]
    out, whole = (array_module(x).empty((len(x), len(w)), kind) for kind in (np.float32, np.int32))
    return {
        "float32": lambda: array_module(x).matmul(x, w.T, out=out),
        "bits": lambda: xnor_product(words_x, words_w, length, out=whole),
        "bits, packing counted": lambda: xnor_product(pack(x), words_w, length, out=whole),
    }


def _square(size: int, device: str) -> Callable[[], Any]:
    """A float32 product of two matrices that lie on the device."""
    both = np.random.default_rng(0).standard_normal((2, size, size), dtype=np.float32)
    a, b = (_there(matrix, device) for matrix in both)
    xp = array_module(a)
    out = xp.empty_like(a)
    return lambda: xp.matmul(a, b, out=out)


def _sweep(run: _Run, device: str) -> None:
    for size in run.plan.sizes[device].sweep:
        timed = partial(benchmark, _square(size, device), warmup=3)
        name = f"sweep: float32 product, {size} x {size}"
        run(name, timed, 0.3, device, run.threads[-1:], part="sweep", size=size)


def _transfers(run: _Run, device: str) -> None:
    for size in run.plan.transfer_bytes:
        array = np.ones(size // 4, np.float32)
        for move, given in ((to_gpu, array), (to_cpu, to_gpu(array))):
            where = {"part": "transfer", "direction": move.__name__, "bytes": size}
            timed = partial(_rate, partial(move, given), size, "GB/s")
            run(f"{move.__name__}, {size} bytes", timed, 0.5, device, **where)


def _wrong_timings(run: _Run, device: str) -> None:
    """The same work with the clock read too early, with the compiler's time in it, and right."""
    size = run.plan.wrong_size
    product, x = _square(size, device), to_gpu(np.ones(size, np.float32))

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
        where = {"device": device, "warmup": 0}
        return Measurement.measured("", "ms", *samples, machine=run.card, **where)

    def not_waited_for(**options: Any) -> Measurement:
        product()  # only the waiting is wrong
        return clocked(product, wait=False, count=5)

    def new_kernel() -> Callable[[], Any]:
        # A number that no earlier run had: CuPy keeps what it has compiled on the disk.
        body = f"y = x[i] * x[i] + (T){time.time_ns() % 10**9};"
        kernel = array_module(x).ElementwiseKernel("raw T x", "T y", body, "fastdl_new")
        return partial(kernel, x, array_module(x).empty_like(x))

    def compiled_inside(**options: Any) -> Measurement:
        return clocked(lambda: new_kernel()(), wait=True, count=3)

    for work, what, measure in (
        ("product", "no synchronise", not_waited_for),
        ("product", "right", partial(benchmark, product)),
        ("own kernel", "no warm-up", compiled_inside),
        ("own kernel", "right", partial(benchmark, new_kernel())),
    ):
        where = {"part": "wrong", "what": what, "work": work, "size": size}
        run(f"{work} of {size}: {what}", measure, 0.5, device, **where)


def _chain(run: _Run, device: str) -> None:
    """Chapter 03's recurrence, three launches a step, none of which can begin before the last."""
    x, steps = to_gpu(np.full(1, 0.3, np.float32)), run.plan.chain_steps

    def chain() -> None:
        y = x
        for _ in range(steps):
            y = 3.7 * y * (1 - y)

    timed, where = partial(benchmark, chain), {"part": "chain", "steps": steps}
    run(f"chain of {steps} steps", timed, 0.5, device, **where)


# --- networks -----------------------------------------------------------------------------------


def _placed(network: Network, device: str, dtype: str = "float32") -> Network:
    if dtype != "tf32":
        network.astype(dtype)
    return network.to_gpu() if device == "gpu" else network


class _Work:
    """A network's passes over one batch: random images, labels, and steps that do no harm."""

    def __init__(self, network: Network, batch: int, device: str, dtype: str) -> None:
        classes = network.classes
        images = np.random.default_rng(0).standard_normal((batch, *network.input_shape), np.float32)
        kind = "float32" if dtype == "tf32" else dtype
        self.network, self.x = network, _there(images.astype(kind, copy=False), device)
        self.labels = _there(np.arange(batch) % classes, device)
        # The rate is so small that the same images again and again change nothing.
        self.optimizer: Optimizer = SGD(1e-6, momentum=0.9)
        if dtype == "float16":
            self.optimizer = MixedPrecision(self.optimizer, FLOAT16, loss_scale=1024)

    def of(self, way: str) -> Callable[[], Any]:
        """The forward pass, or the training step."""
        return self.step if way == "training" else partial(self.network.forward, self.x)

    def step(self) -> None:
        self.network.loss_and_gradients(self.x, self.labels, scale=self.optimizer.loss_scale)
        self.optimizer.step(self.network)


def _algorithms(device: str) -> list[Algorithm]:
    """Those of a device that can be used here."""
    return [a for a in ALGORITHMS.values() if device in a.devices and a.status().available]


def _race(run: _Run, device: str) -> None:
    network = _placed(run.plan.network(), device)
    for cost in layer_costs(network):
        if isinstance(layer := network.layers[cost.name], Conv2d):
            with run.memory_may_not_do(f"{cost.name}, {device}"):
                shape = network.input_shape_of(cost.name)
                _race_of(run, device, cost.name, layer, shape, cost.macs)


def _race_of(
    run: _Run, device: str, name: str, layer: Conv2d, shape: tuple[int, ...], macs: int
) -> None:
    """One convolution by every algorithm of the device; the slow ones on less work."""

    def race(algorithm: str, work: Callable, batch: int, macs: int, threads: Sequence[int] = ()):
        where = {"layer": name, "algorithm": algorithm, "batch": batch, "macs": macs}
        title = f"{name}, {algorithm}, batch {batch}"
        budget_s = BUDGETS_S["race"]
        run(title, partial(benchmark, work), budget_s, device, threads, part="race", **where)

    image = np.random.default_rng(0).standard_normal((1, *shape), dtype=np.float32)
    batch = run.plan.sizes[device].race_batch
    images = _there(np.repeat(image, batch, axis=0), device)
    slowest = next(iter(ALGORITHMS))
    for algorithm in _algorithms(device):
        layer.algorithm = algorithm.name
        if algorithm.name == slowest:
            race(slowest, *_cut(layer, image, slowest), [1])
        elif algorithm.loops:
            race(algorithm.name, partial(layer.forward, image), 1, macs, [1])
        else:
            race(algorithm.name, partial(layer.forward, images), batch, batch * macs)


def _cut(layer: Conv2d, image: np.ndarray, algorithm: str) -> tuple[Callable[[], Any], int, int]:
    """A convolution of 4 x 4 pixels of one group of one image, for Python's loops; 1; its MACs."""
    channels, side = layer.in_channels // layer.groups, layer.kernel + 3 * layer.stride
    part = image[:, :channels, :side, :side]
    patch = channels * layer.kernel**2
    filters = max(1, min(layer.out_channels // layer.groups, 200_000 // (16 * patch)))
    weight = np.ascontiguousarray(layer.parameters["weight"][:filters])
    loops = partial(conv2d, part, weight, stride=layer.stride, algorithm=algorithm)
    return loops, 1, loops().size * patch


def _mnist_training(run: _Run, device: str) -> None:
    """A short run of fit(): its speed epoch by epoch, and what it came to."""
    share = min(1.0, run.plan.share * time_scale())
    count, epochs, batch = max(100, int(run.plan.mnist_images * share)), 3, 100
    # Without Dropout, as the course trains it: so short a run would come to little with it.
    network = run.plan.digits()
    drops = [key for key, layer in network.layers.items() if isinstance(layer, Dropout)]
    network = network.variant(network.name, **dict.fromkeys(drops))
    name = f"{network.name}, batch {batch}, {device.upper()}"
    if run.time_is_up(name):
        return
    _placed(network, device)
    images, labels = (_there(array[:count], device) for array in mnist("train"))
    count = len(images)  # no more than there are
    test = [_there(array[: run.plan.test_images], device) for array in mnist("test")]
    how = {"optimizer": Adam(3e-3), "schedule": warmup_cosine(0.1), "progress": False}
    history = fit(network, images, labels, epochs=epochs, batch=batch, **how)
    said = {"network": network.name, "batch": batch, "images": count, "epochs": epochs}
    where = {"device": device, **({"threads": blas_threads_now()} if device == "cpu" else {})}
    speed = [count / epoch.seconds for epoch in history.epochs]
    accuracy = [100 * evaluate(network, *test).accuracy]
    for what, unit, samples in (("speed", "images/s", speed), ("accuracy", "%", accuracy)):
        found = Measurement.measured(what, unit, *samples, machine=run.card, **where)
        run.keep(f"{name}: {what}", found, part="training", what=what, **said)


def _passes(run: _Run, device: str) -> None:
    """Whole passes and passes by layers, small batches first."""
    plan = run.plan
    for dtype in ["float32"] if device == "cpu" else ["float32", "tf32", "float16"]:
        network = _placed(plan.network(), device, dtype)
        narrow = [(plan.narrow_batch, way) for way in _BOTH]
        fast = [algorithm.name for algorithm in _algorithms(device) if algorithm.fast]
        for algorithm in ["auto"] if device == "cpu" else fast:
            for layer in network.layers.values():
                if isinstance(layer, Conv2d):
                    layer.algorithm = algorithm
            for batch, way in plan.sizes[device].passes if dtype == "float32" else narrow:
                said = {"network": network.name, "batch": batch, "algorithm": algorithm}
                name = f"{network.name} {way}, batch {batch}, {algorithm}, {dtype}"
                with tf32(dtype == "tf32"), run.memory_may_not_do(name):
                    work = _Work(network, batch, device, dtype)
                    if "pass" in plan.parts:
                        where = {"part": "pass", "direction": way, **said, "dtype": dtype}
                        timed = partial(benchmark, work.of(way))
                        run(name, timed, BUDGETS_S["pass"], device, **where)
                    if "layers" in plan.parts and dtype == "float32":
                        _layers(run, device, name, work, way, said)
                release_gpu_memory()


def _layers(
    run: _Run, device: str, name: str, work: _Work, way: str, said: Mapping[str, Any]
) -> None:
    wanted = (said["batch"], way) in run.plan.sizes[device].layers
    if not wanted or run.time_is_up(f"{name}, by layers"):
        return
    training = way == "training"
    labels = work.labels if training else None
    budget_s = BUDGETS_S["pass"] * run.plan.share
    profile = profile_layers(work.network, work.x, labels, budget_s=budget_s, max_repeats=9)
    run.show(f"{name}, by layers: {profile.total_ms:,.1f} ms together")
    where = {"part": "layers", **said, "dtype": "float32", "training": training}
    for direction, layers in (("forward", profile.forward), ("backward", profile.backward)):
        for layer, found in layers.items():
            of = {"direction": direction, "layer": layer, "kind": profile.kinds[layer]}
            run.keep(f"{layer} {direction}, {name}", found, show=False, **where, **of)


_MEASURES: Mapping[Callable[[_Run, str], None], tuple[str, ...]] = {
    _clock: ("clock",),
    _ceilings: ("ceiling",),
    _dtypes: ("dtypes",),
    _binary_products: ("binary",),
    _sweep: ("sweep",),
    _transfers: ("transfer",),
    _wrong_timings: ("wrong",),
    _chain: ("chain",),
    _race: ("race",),
    _mnist_training: ("training",),
    _passes: ("pass", "layers"),
}
