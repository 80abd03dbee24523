"""The timer, tried with a clock that only moves when it is told to."""

import math
import sys
import time
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import batch, needs_a_known_blas, small_alexnet

from fastdl_lib.core.arrays import tf32_allowed, to_gpu
from fastdl_lib.core.threads import blas_threads, blas_threads_now
from fastdl_lib.measuring import disturbance, timing
from fastdl_lib.measuring.evidence import Measurement, Provenance
from fastdl_lib.measuring.timing import (
    benchmark,
    measure_ceilings,
    product_gflops,
    profile_layers,
)
from fastdl_lib.nn.zoo import deep_convnet

QUICK = {"budget_s": 1e-3}
X = np.zeros((2, 1, 28, 28), np.float32)


@pytest.fixture(autouse=True)
def unscaled(monkeypatch):
    monkeypatch.delenv("FASTDL_TIME_SCALE", raising=False)


@pytest.fixture
def clock(monkeypatch):
    """A clock in seconds; ``clock.work(s)`` lets s seconds pass."""

    class Clock:
        now = 100.0

        def work(self, seconds):
            self.now += seconds

    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(disturbance, "others_s", lambda: 0.0)
    monkeypatch.setattr(disturbance, "clock_share", lambda: 1.0)
    return clock


# --- benchmark ----------------------------------------------------------------------------------


def test_samples_are_exactly_what_the_clock_says(clock, card):
    durations = iter([9.0, 9.0, 1.0, 2.0, 3.0, 4.0])
    calls = []

    def function(a, b):
        calls.append((a, b))
        clock.work(next(durations))
        return math.nan

    m = benchmark(function, 1, 2, budget_s=1.0, warmup=2, min_repeats=4, machine=card)
    assert calls == [(1, 2)] * 6
    assert m.samples == pytest.approx((1000, 2000, 3000, 4000))
    assert (m.name, m.unit, m.provenance) == ("function", "ms", Provenance.MEASURED)
    assert m.machine is card and m.conditions["warmup"] == 2


def test_it_repeats_until_the_budget_is_used_up(clock, monkeypatch):
    work = partial(benchmark, lambda: clock.work(0.125), name="a name", budget_s=1.0, warmup=0)
    for scale, expected in (("1", 8), ("0.5", 4), ("0.001", 3), ("2", 16)):
        monkeypatch.setenv("FASTDL_TIME_SCALE", scale)
        m = work()
        assert (m.samples, m.name) == ((125.0,) * expected, "a name")
    assert len(work(max_repeats=7).samples) == 7
    # What is too short for the clock is no zero.
    assert min(benchmark(lambda: None, max_repeats=3).samples) > 0


def fail():
    raise KeyError("my own error")


@pytest.mark.parametrize("way", ["benchmark", "profile_layers"])
def test_an_error_in_what_is_timed_passes_through(way):
    network, before = small_alexnet(), blas_threads_now()
    network.layers["pool2"].forward = lambda *_, **__: fail()
    with pytest.raises(KeyError, match="my own error"):
        if way == "benchmark":
            benchmark(fail, threads=1)
        else:
            profile_layers(network, batch(network)[0], threads=1)
    assert blas_threads_now() == before


NETWORK = deep_convnet()


@pytest.mark.parametrize(
    "timer", [partial(benchmark, sum, []), partial(profile_layers, NETWORK, X)]
)
def test_numpys_whole_numbers_count_and_bad_budgets_are_refused(timer):
    runs = timer(max_repeats=np.uint8(5), min_repeats=np.int64(2), budget_s=np.float32(9))
    m = runs if isinstance(runs, Measurement) else runs.first
    assert len(m.samples) + m.left_out in range(5, 11) and min(m.samples) > 0
    assert len(m.samples) == 5 or m.left_out  # fewer where something else ran meanwhile
    for wrong, error, message in (
        ({"budget_s": 0}, ValueError, "budget_s must be above 0 and finite, got 0"),
        ({"budget_s": math.nan}, ValueError, "budget_s must be above 0 and finite, got nan"),
        ({"budget_s": None}, TypeError, "budget_s must be a number, got None"),
        ({"min_repeats": 0}, ValueError, "min_repeats must be at least 1, got 0"),
        ({"max_repeats": 2}, ValueError, "max_repeats must be at least 3, got 2"),
        ({"max_repeats": 3.0}, TypeError, "max_repeats must be a whole number, got 3.0"),
        ({"threads": 0}, ValueError, "number of BLAS threads must be at least 1"),
    ):
        with pytest.raises(error, match=message):
            timer(**wrong)


ON_THE_GPU = [partial(benchmark, sum, []), partial(product_gflops, 8), measure_ceilings]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (partial(benchmark, 3.0), TypeError, r"got float; write benchmark\(f, x\), not benchmark"),
        (partial(benchmark, sum, [], warmup=-1), ValueError, "warmup must be at least 0"),
        (partial(benchmark, sum, [], device="cuda"), ValueError, "device must be one of 'cpu', 'g"),
        (partial(product_gflops, 0), ValueError, "size must be at least 1"),
        (partial(product_gflops, 2.5), TypeError, "size must be a whole number"),
        (partial(product_gflops, 9, "tf32"), ValueError, "cpu multiplies no matrices of 'tf32'"),
        (partial(profile_layers, NETWORK, X[:0]), ValueError, r"got \(0, 1, 28, 28\)"),
        (partial(profile_layers, NETWORK, X, np.array([0, 10])), ValueError, r"in 0\.\.9"),
        *((partial(call, device="gpu"), RuntimeError, "device='gpu' needs a GPU")
          for call in ON_THE_GPU),
    ],
)  # fmt: skip
def test_what_cannot_be_timed_is_refused(call, error, message, monkeypatch):
    monkeypatch.setattr(timing, "gpu_available", lambda: False)
    with pytest.raises(error, match=message):
        call()


def test_a_bad_time_scale_is_named(monkeypatch):
    for scale in ("0", "-1", "nan", "inf", "fast", ""):
        monkeypatch.setenv("FASTDL_TIME_SCALE", scale)
        with pytest.raises(ValueError, match="FASTDL_TIME_SCALE must be a positive number"):
            benchmark(sum, [])


@needs_a_known_blas
def test_the_thread_count_is_stated_set_and_restored(clock, card):
    seen = []

    def function():
        seen.append(blas_threads_now())
        clock.work(1)

    with blas_threads(2):
        assert benchmark(function, machine=card).conditions["threads"] == 2
        assert benchmark(function, threads=1, machine=card).conditions["threads"] == 1
        assert blas_threads_now() == 2
    assert seen == [2] * 4 + [1] * 4


def test_the_clock_of_a_core_is_two_cycles_a_step(monkeypatch, card):
    def measured(function, steps, start, **options):
        assert function(3, np.uint64(8)) == 8 + 1 + 1 + 1  # x += x >> 3
        return Measurement.measured("x", "ms", 0.5, machine=card, **options)

    monkeypatch.setattr(timing, "benchmark", measured)
    m = timing.clock_ghz(warmup=1)
    assert (m.unit, m.median) == ("GHz", pytest.approx(2 * 1_000_000 / 0.5e-3 / 1e9))
    assert m.conditions == {"threads": 1, "warmup": 1}


# --- on a GPU -----------------------------------------------------------------------------------

ON_GPU = {"device": "gpu", "warmup": 1}


def test_the_gpu_is_waited_for_around_each_sample(fake_gpu, clock, card, monkeypatch):
    """A GPU's work takes its time while it is waited for: unwaited, none of it would be seen."""
    asked = []
    waits = []

    def wait():
        waits.append(1)
        clock.work(sum(asked))
        asked.clear()

    stream = SimpleNamespace(synchronize=wait)
    monkeypatch.setattr(fake_gpu.cuda, "get_current_stream", lambda: stream)
    m = benchmark(lambda: asked.append(0.5), budget_s=1.0, warmup=3, device="gpu", machine=card)
    # The work of the warm-up is waited for before the first reading.
    assert set(m.samples) == {500.0}
    assert len(waits) == 2 * len(m.samples)
    # What a BLAS could do with its threads does not matter there.
    assert m.conditions == {"device": "gpu", "warmup": 3} and str(m).endswith("on the GPU)")


@pytest.mark.parametrize(
    ("device", "dtype", "real"),
    [
        *(("cpu", dtype, dtype) for dtype in ("float64", "float32", "float16")),
        *(("gpu", dtype, "float32") for dtype in ("tf32", "float32")),
    ],
)
def test_a_product_is_of_the_dtype_it_says_and_tf32_allowed_during_its_own_alone(
    fake_gpu, monkeypatch, device, dtype, real
):
    seen = set()
    xp = fake_gpu if device == "gpu" else np
    matmul = xp.matmul

    def watched(a, b, out):
        seen.add((a.dtype, b.dtype, out.dtype, tf32_allowed()))
        return matmul(a, b, out=out)

    monkeypatch.setattr(xp, "matmul", watched)
    m = product_gflops(16, dtype, device=device, **QUICK)
    assert seen == {(np.dtype(real),) * 3 + (dtype == "tf32",)} and not tf32_allowed()
    assert (m.name, m.conditions["device"]) == (f"{dtype} product, 16 x 16", device)


def test_a_profile_on_the_gpu_waits_after_every_layer(fake_gpu):
    network = small_alexnet().to_gpu()
    profile = profile_layers(network, to_gpu(batch(network)[0]), **QUICK)
    assert profile.first.conditions == {**ON_GPU, "batch": 2}
    assert "(measured here, on the GPU, median" in profile.table().caption
    passes = 1 + len(profile.first.samples) + profile.first.left_out
    assert fake_gpu.counts["synchronize"] == passes * (1 + len(network.layers))


# --- ceilings of the CPU ------------------------------------------------------------------------


def test_ceilings_divide_the_work_by_the_time(monkeypatch, card):
    def half_a_second(function, *, device, threads=None, **_):
        function()
        conditions = {"device": device, "threads": threads}
        return Measurement.measured("x", "ms", 500.0, machine=card, **conditions)

    monkeypatch.setattr(timing, "benchmark", half_a_second)
    # Of NumPy's small whole numbers 2 * 128 ** 3 would overflow.
    monkeypatch.setattr(timing, "_PRODUCT_ROWS", {"cpu": (64, np.int16(128))})
    monkeypatch.setattr(timing, "_COPY_MEGABYTES", {"cpu": 2})
    ceilings = measure_ceilings(threads=2)
    product, copy = ceilings.gemm_gflops, ceilings.copy_gb_per_s
    assert (product.unit, copy.unit) == ("GFLOP/s", "GB/s")
    assert copy.name == "copy of 2 MB, read and written"
    assert product.median == pytest.approx(2 * 128**3 / 0.5 / 1e9)
    assert copy.median == pytest.approx(2 * 2 * 2**20 / 0.5 / 1e9)
    assert (product.conditions["threads"], copy.conditions["threads"]) == (2, 2)


# --- layer profiles -----------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
def test_a_profile_adds_up_to_100_percent(training):
    network = small_alexnet()
    weights = {name: array.copy() for name, array in network.parameters.items()}
    x, labels = batch(network, images=3)
    profile = profile_layers(network, x, labels if training else None, **QUICK)
    assert list(profile.forward) == list(network.layers)
    assert list(profile.backward) == (list(network.layers) if training else [])
    assert sum(profile.layer_shares().values()) == pytest.approx(100)
    assert sum(profile.kind_shares().values()) == pytest.approx(100)
    assert sum(profile.layer_ms().values()) == pytest.approx(profile.total_ms)
    assert (profile.network, profile.batch) == ("small AlexNet", 3)
    assert profile.first.provenance is Provenance.MEASURED
    kept = {"freed_memory": "kept"} if sys.platform == "linux" else {}
    assert profile.first.conditions == {
        "device": "cpu", "threads": blas_threads_now(), **kept, "warmup": 1, "batch": 3,
    }  # fmt: skip
    counts = {len(m.samples) for m in [*profile.forward.values(), *profile.backward.values()]}
    assert len(counts) == 1 and counts.pop() >= 3
    assert all((weights[name] == array).all() for name, array in network.parameters.items())


def test_a_profile_gives_each_layer_its_own_time(clock):
    """Each layer takes a second more than the one before it, and ten times that backward."""
    network = small_alexnet()

    def slowed(function, seconds):
        def run(*arguments, **options):
            clock.work(seconds)
            return function(*arguments, **options)

        return run

    for place, layer in enumerate(network.layers.values(), start=1):
        layer.forward = slowed(layer.forward, place)
        layer.backward = slowed(layer.backward, 10 * place)
    first = network.layers["conv1"]
    first.backward_weights = slowed(first.backward_weights, 10)
    x, labels = batch(network)
    profile = profile_layers(network, x, labels, budget_s=1.0)
    for place, name in enumerate(network.layers, start=1):
        assert profile.forward[name].samples == pytest.approx([1000 * place] * 3), name
        assert profile.backward[name].samples == pytest.approx([10_000 * place] * 3), name
        assert profile.layer_ms()[name] == pytest.approx(11_000 * place)
    whole_ms = 11_000 * 66
    assert profile.total_ms == pytest.approx(whole_ms)
    assert profile.total.samples == pytest.approx([whole_ms] * 3)
    assert profile.speed.samples == pytest.approx([1000 * len(x) / whole_ms] * 3)
    assert (profile.total.unit, profile.speed.unit) == ("ms", "images/s")
    # conv1 and conv2 are the layers 1 and 5, fc3 and fc4 the layers 9 and 11.
    for kind, places in (("conv", 6), ("fc", 20)):
        assert profile.kind_shares()[kind] == pytest.approx(100 * places / 66)
        assert profile.kind_share(kind).samples == pytest.approx([100 * places / 66] * 3)


@needs_a_known_blas
@pytest.mark.parametrize("labels", [None, np.zeros(2, int)])
def test_the_profile_table(labels):
    network = deep_convnet()
    profile = profile_layers(network, X, labels, **QUICK, threads=1)
    table = profile.table()
    assert str(profile) == str(table)
    assert [row["layer"] for row in table.rows] == list(network.layers)
    ways = ["forward"] if labels is None else ["forward", "backward"]
    assert [column.key for column in table.columns] == ["layer", *ways, "share"]
    assert all(c.provenance is Provenance.MEASURED for c in table.columns[1:])
    what = "forward pass" if labels is None else "training step"
    assert table.caption.startswith(f"DeepConvNet, {what}, batch 2: ")
    assert "(measured here, BLAS on 1 thread, " in table.caption
