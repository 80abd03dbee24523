"""Fair timing: warmed up, repeated, synchronised, with its spread and its thread count.

The environment variable ``FASTDL_TIME_SCALE`` multiplies every time budget: 0.05 makes a quick run
(grading 300 copies, a browser test), 4 a steadier one. It changes how often something is repeated,
never what is reported.
"""

import contextlib
import dataclasses
import functools
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from fastdl_lib.core.arrays import (
    array_module,
    freed_memory_kept,
    gpu_available,
    gpu_status,
    keep_freed_memory,
    synchronize,
    tf32,
    to_gpu,
)
from fastdl_lib.core.checks import check_choice, check_number, check_whole_number
from fastdl_lib.core.threads import blas_threads, blas_threads_now, in_parallel
from fastdl_lib.measuring.costs import KINDS, Ceilings, Network
from fastdl_lib.measuring.disturbance import Watch
from fastdl_lib.measuring.evidence import Column, Measurement, Table, device_in_words
from fastdl_lib.measuring.machine import MachineCard, machine_card


def time_scale() -> float:
    """What FASTDL_TIME_SCALE multiplies every time budget by, 1 where it is not set; ValueError
    where it is no positive number."""
    text = os.environ.get("FASTDL_TIME_SCALE", "1")
    with contextlib.suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise ValueError(f"FASTDL_TIME_SCALE must be a positive number, got {text}.")


def _watched(
    one: Callable[[], Any], budget_s: float, least: int, most: int | None
) -> Callable[[], Watch]:
    """Check how often to take a sample, and return what takes them: ``least`` at least, then until
    the seconds are used up or there are ``most``."""
    check_number("budget_s", budget_s, low=0, low_included=False)
    least = check_whole_number("min_repeats", least, 1)
    if most is not None:
        most = check_whole_number("max_repeats", most, least)
    seconds = budget_s * time_scale()

    def take() -> Watch:
        watch = Watch()
        watch.take(one, seconds, least, most)
        return watch

    return take


def _check_device(device: str) -> None:
    check_choice("device", device, ("cpu", "gpu"))
    if device == "gpu" and not gpu_available():
        raise RuntimeError(f"device='gpu' needs a GPU. {gpu_status().reason}")


@contextlib.contextmanager
def _running_on(device: str, threads: int | None, **more: Any) -> Iterator[dict[str, Any]]:
    """Set the BLAS threads for a block, which gets the conditions that say where it runs; a GPU has
    no threads of the BLAS."""
    with contextlib.nullcontext() if threads is None else blas_threads(threads):
        where = {"device": device}
        if device == "cpu":
            where["threads"] = blas_threads_now()
            if freed_memory_kept():
                where["freed_memory"] = "kept"
        yield {**where, **more}


_TICK_S = time.get_clock_info("perf_counter").resolution


def benchmark(
    function: Callable[..., Any],
    *arguments: Any,
    name: str = "",
    budget_s: float = 0.5,
    warmup: int = 1,
    min_repeats: int = 3,
    max_repeats: int | None = None,
    threads: int | None = None,
    device: str = "cpu",
    machine: MachineCard | None = None,
) -> Measurement:
    """Time ``function(*arguments)`` and return all samples, in milliseconds.

    The function runs ``warmup`` times unclocked, then again and again until ``budget_s`` seconds
    are used up, ``min_repeats`` times at least and ``max_repeats`` times at most. The clock is
    monotonic; a GPU is waited for before each reading. A time too short for the clock counts as its
    resolution.

    Args:
        threads: BLAS threads to run with; by default as many as are set now. Kept in
            ``conditions`` either way, where the CPU computes.
        device: where the function computes, "cpu" or "gpu". Kept in ``conditions``.
        machine: a card to attach; by default a new one.

    Raises: RuntimeError where the device is "gpu" and there is none.

    >>> m = benchmark(sum, range(100), budget_s=0.001)
    >>> m.unit, m.conditions["warmup"], len(m.samples) >= 3
    ('ms', 1, True)
    """
    if not callable(function):
        got = f"got {type(function).__name__}; write benchmark(f, x), not benchmark(f(x))"
        raise TypeError(f"benchmark() takes a function and its arguments, {got}.")
    warmup = check_whole_number("warmup", warmup, 0)
    _check_device(device)

    def one_ms() -> float:
        synchronize()
        start = time.perf_counter()
        function(*arguments)
        synchronize()
        return 1e3 * max(time.perf_counter() - start, _TICK_S)

    take = _watched(one_ms, budget_s, min_repeats, max_repeats)
    with _running_on(device, threads, warmup=warmup) as conditions:
        for _ in range(warmup):
            function(*arguments)
        watch = take()
    name = name or getattr(function, "__name__", "function")
    made = Measurement.measured(name, "ms", *watch.samples, machine=machine, **conditions)
    return watch.mark(made)


_PRODUCT_ROWS = {"cpu": (1024, 2048), "gpu": (4096, 8192)}
_COPY_MEGABYTES = {"cpu": 128, "gpu": 512}


def measure_ceilings(
    budget_s: float = 1.0, threads: int | None = None, device: str = "cpu"
) -> Ceilings:
    """Measure the two ceilings of this machine's CPU, or of its GPU, ``budget_s`` seconds each.

    The product is a square one of float32 matrices, of 1024 or 2048 rows (on a GPU 4096 or 8192),
    whichever is faster; the copy one of 128 MB (512 MB) into as much again, past most caches. Both
    run on so many threads.

    >>> ceilings = measure_ceilings(budget_s=0.01)
    >>> ceilings.gemm_gflops.unit, ceilings.copy_gb_per_s.unit
    ('GFLOP/s', 'GB/s')
    """
    where = {"device": device, "machine": machine_card()}
    how = {"budget_s": budget_s / 2, "threads": threads, **where}
    products = [product_gflops(size, **how) for size in _PRODUCT_ROWS[device]]
    fastest = max(products, key=lambda product: product.median)
    return Ceilings(fastest, copy_gb_per_s(budget_s=budget_s, threads=threads, **where))


def product_gflops(
    size: int, dtype: str = "float32", *, device: str = "cpu", **options: Any
) -> Measurement:
    """Measure the product of two matrices of ``size`` x ``size`` that lie on the device, GFLOP/s.

    ``dtype`` is "float64", "float32", "float16", or on a GPU "tf32": float32 numbers that its
    tensor cores round to 10 bits. ``options`` are what :func:`benchmark` takes.
    """
    if dtype not in ("float64", "float32", "float16", *(["tf32"] if device == "gpu" else [])):
        raise ValueError(f"the {device} multiplies no matrices of {dtype!r}.")
    _check_device(device)
    size = check_whole_number("size", size, 1)
    rng = np.random.default_rng(0)
    pair = rng.standard_normal((2, size, size), dtype=np.float32)
    pair = pair.astype("float32" if dtype == "tf32" else dtype, copy=False)
    a, b = to_gpu(pair) if device == "gpu" else pair
    xp = array_module(a)
    out = xp.empty_like(a)
    with tf32(dtype == "tf32"):
        product = benchmark(lambda: xp.matmul(a, b, out=out), device=device, **options)
    name = f"{dtype} product, {size} x {size}"
    return product.convert(lambda ms: 2 * size**3 / ms * 1e-6, "GFLOP/s", name)


def copy_gb_per_s(*, device: str = "cpu", **options: Any) -> Measurement:
    """Measure a large copy within the device's memory, bytes read and written, GB/s; on the CPU
    shared out among the threads.

    ``options`` are what :func:`benchmark` takes, such as ``budget_s``.
    """
    _check_device(device)
    megabytes = _COPY_MEGABYTES[device]
    source = np.ones(megabytes * 2**18, dtype=np.float32)
    if device == "gpu":
        source = to_gpu(source)
    xp = array_module(source)
    target = xp.empty_like(source)

    def copy_part(part: slice) -> None:
        xp.copyto(target[part], source[part])

    whole = partial(in_parallel, copy_part, len(source), on=source)
    copy = benchmark(whole, device=device, **options)
    name = f"copy of {megabytes} MB, read and written"
    return copy.convert(lambda ms: 2 * source.nbytes / ms * 1e-6, "GB/s", name)


def clock_ghz(**options: Any) -> Measurement:
    """Measure the clock of one core, GHz: a chain of shifts and additions, each waiting for the one
    before it, one a cycle. The fastest sample comes closest to the highest clock.

    ``options`` are what :func:`benchmark` takes, such as ``budget_s``. The first call compiles.
    """
    steps, chain = 1_000_000, _chain()  # two cycles each
    one = benchmark(chain, steps, np.uint64(3), **{"threads": 1} | options)
    return one.convert(lambda ms: 2 * steps / ms * 1e-6, "GHz", "clock of a core")


@functools.cache
def _chain() -> Callable[[int, int], int]:
    import numba

    @numba.njit
    def chain(steps: int, x: int) -> int:
        for _ in range(steps):
            x += x >> np.uint64(3)
        return x

    return chain


@dataclasses.dataclass(frozen=True)
class LayerProfile:
    """The time of every layer of a network, in milliseconds for the whole batch."""

    network: str
    batch: int
    kinds: dict[str, str]
    """Layer name to kind; see :data:`fastdl_lib.measuring.costs.KINDS`."""
    forward: dict[str, Measurement]
    backward: dict[str, Measurement]
    """Empty for a forward profile."""

    @property
    def first(self) -> Measurement:
        """The first layer's forward time; all layers share its machine, label and conditions."""
        return next(iter(self.forward.values()))

    def layer_ms(self) -> dict[str, float]:
        """Median time of each layer, forward and (if measured) backward together."""
        return {
            name: m.median + (self.backward[name].median if name in self.backward else 0.0)
            for name, m in self.forward.items()
        }

    @property
    def total_ms(self) -> float:
        """The sum of the layers' medians."""
        return sum(self.layer_ms().values())

    def layer_shares(self) -> dict[str, float]:
        """Each layer's percentage of the total."""
        return {name: 100 * ms / self.total_ms for name, ms in self.layer_ms().items()}

    def kind_shares(self) -> dict[str, float]:
        """Each kind's percentage of the total, in the order of :data:`KINDS`."""
        shares = dict.fromkeys(KINDS, 0.0)
        for name, share in self.layer_shares().items():
            shares[self.kinds[name]] = shares.get(self.kinds[name], 0.0) + share
        return shares

    def _passes_ms(self, *kinds: str) -> list[float]:
        """What the layers of these kinds took together, pass by pass."""
        runs = [m for times in (self.forward, self.backward) for m in times.items()]
        wanted = [m.samples for name, m in runs if self.kinds[name] in kinds]
        return [sum(one) for one in zip(*wanted, strict=True)] or [0.0] * len(self.first.samples)

    @property
    def total(self) -> Measurement:
        """All layers together, ms, pass by pass: its median and :attr:`total_ms`, the sum of
        medians, differ by some tenths."""
        samples = self._passes_ms(*self.kinds.values())
        return dataclasses.replace(self.first, name=self.network, samples=samples)

    @property
    def speed(self) -> Measurement:
        """Images a second, pass by pass."""
        return self.total.convert(lambda ms: 1e3 * self.batch / ms, "images/s")

    def kind_share(self, kind: str) -> Measurement:
        """One kind's percentage of the total, pass by pass, which :meth:`kind_shares` has without
        its spread."""
        pairs = zip(self._passes_ms(kind), self.total.samples, strict=True)
        samples = tuple(100 * part / whole for part, whole in pairs)
        return dataclasses.replace(self.first, name=f"share of {kind}", unit="%", samples=samples)

    def __repr__(self) -> str:  # what print shows: its parts would fill a page
        return str(self.table())

    def table(self) -> Table:
        """The profile as a table: milliseconds with quartiles, and shares."""
        ways = {"forward": self.forward, **({"backward": self.backward} if self.backward else {})}
        rows = tuple(
            {"layer": name, **{way: ms[name] for way, ms in ways.items()}, "share": share}
            for name, share in self.layer_shares().items()
        )
        units = {**dict.fromkeys(ways, "ms"), "share": "%"}
        columns = (Column(key, "", unit, self.first.provenance) for key, unit in units.items())
        what = "training step" if self.backward else "forward pass"
        on_gpu = self.first.conditions.get("device") == "gpu"
        where = ("" if on_gpu else "BLAS on ") + device_in_words(self.first.conditions)
        speed = 1e3 * self.batch / self.total_ms
        caption = (
            f"{self.network}, {what}, batch {self.batch}: {self.total_ms:,.0f} ms, "
            f"{speed:,.1f} images/s ({self.first.label}, {where}, median and quartiles)"
        )
        return Table((Column("layer"), *columns), rows, caption)


@keep_freed_memory()
def profile_layers(
    network: Network,
    x: Any,
    labels: Any = None,
    *,
    budget_s: float = 2.0,
    min_repeats: int = 3,
    max_repeats: int | None = None,
    threads: int | None = None,
) -> LayerProfile:
    """Time every layer of ``network`` on the batch ``x``.

    Args:
        x: (N, C, H, W), the network's dtype, on the CPU or the GPU; it decides the device.
        labels: (N,) class numbers; with them a training step is measured, forward and backward
            (the loss is timed with the last layer). Without them the forward pass alone.
        budget_s: seconds for the clocked passes together, after one unclocked pass;
            ``min_repeats`` passes at least, ``max_repeats`` at most.
        threads: BLAS threads to run with; by default as many as are set now.

    >>> from fastdl_lib.nn.zoo import deep_convnet
    >>> x = np.zeros((2, 1, 28, 28), np.float32)
    >>> profile = profile_layers(deep_convnet(), x, budget_s=0.01)
    >>> profile.batch, round(sum(profile.layer_shares().values()))
    (2, 100)
    """
    network.check_input(x, labels)
    one_pass = partial(_one_pass, network, x, labels)
    take = _watched(one_pass, budget_s, min_repeats, max_repeats)
    device = "cpu" if array_module(x) is np else "gpu"
    with _running_on(device, threads, warmup=1, batch=len(x)) as conditions:
        one_pass()
        watch = take()
    card = machine_card()

    def measured(direction: str) -> dict[str, Measurement]:
        where, runs = {"machine": card, **conditions}, {}
        for name in network.layers:
            times = [times_ms[direction, name] for times_ms in watch.samples]
            run = Measurement.measured(f"{name} {direction}", "ms", *times, **where)
            runs[name] = watch.mark(run)
        return runs

    kinds = {name: layer.kind for name, layer in network.layers.items()}
    backward = {} if labels is None else measured("backward")
    return LayerProfile(network.name, len(x), kinds, measured("forward"), backward)


def _one_pass(network: Network, x: Any, labels: Any) -> dict[tuple[str, str], float]:
    """Run the network once: milliseconds by direction and layer, 0 where a layer did not run."""
    times_ms: dict[tuple[str, str], float] = defaultdict(float)
    synchronize()
    clock = time.perf_counter()

    def lap(direction: str, name: str) -> None:
        nonlocal clock
        synchronize()
        before, clock = clock, time.perf_counter()
        times_ms[direction, name] += 1e3 * (clock - before)

    forward, backward = partial(lap, "forward"), partial(lap, "backward")
    if labels is None:
        network.forward(x, after=forward)
    else:
        network.training_pass(x, labels, after_forward=forward, after_backward=backward)
    return times_ms
