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
from fastdl_lib.measuring import timing
from fastdl_lib.measuring.evidence import Provenance
from fastdl_lib.measuring.timing import (
    benchmark,
    measure_ceilings,
    product_gflops,
    profile_layers,
)
from fastdl_lib.nn.zoo import deep_convnet


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
    return clock


# --- benchmark ----------------------------------------------------------------------------------


def test_samples_are_exactly_what_the_clock_says(clock, card):
    durations = iter([9.0, 9.0, 1.0, 2.0, 3.0, 4.0])
    calls = []

    def function(a, b):
        calls.append((a, b))
        clock.work(next(durations))

    m = benchmark(function, 1, 2, budget_s=1.0, warmup=2, min_repeats=4, machine=card)
    assert calls == [(1, 2)] * 6
    assert m.samples == pytest.approx((1000, 2000, 3000, 4000))
    assert (m.name, m.unit, m.provenance) == ("function", "ms", Provenance.MEASURED)
    assert m.machine is card and m.conditions["warmup"] == 2


@pytest.mark.parametrize(("scale", "expected"), [(None, 8), ("0.5", 4), ("0.001", 3), ("2", 16)])
def test_it_repeats_until_the_budget_is_used_up(clock, card, monkeypatch, scale, expected):
    if scale is not None:
        monkeypatch.setenv("FASTDL_TIME_SCALE", scale)
    m = benchmark(lambda: clock.work(0.125), budget_s=1.0, machine=card)
    assert len(m.samples) == expected
    assert set(m.samples) == {125.0}


def test_no_warmup_is_allowed(clock, card):
    calls = []
    benchmark(lambda: [calls.append(1), clock.work(1)], warmup=0, min_repeats=1, machine=card)
    assert len(calls) == 1


def test_a_card_is_made_where_none_is_given(clock):
    m = benchmark(lambda: clock.work(1), name="a name")
    assert m.name == "a name" and m.machine.cores >= 1


def test_not_a_number_does_not_matter(card):
    x = np.full((8, 8), np.nan, np.float32)
    m = benchmark(np.matmul, x, x, budget_s=1e-4, machine=card)
    assert len(m.samples) >= 3 and all(math.isfinite(sample) for sample in m.samples)
    assert benchmark(lambda: math.nan, budget_s=1e-4, machine=card).unit == "ms"


@pytest.mark.parametrize("failing_call", [1, 3])
def test_an_error_in_the_function_passes_through(card, failing_call):
    calls = []

    def function():
        calls.append(1)
        if len(calls) == failing_call:
            raise KeyError("my own error")

    before = blas_threads_now()
    with pytest.raises(KeyError, match="my own error"):
        benchmark(function, threads=1, machine=card)
    assert blas_threads_now() == before


def test_a_result_instead_of_a_function_is_refused():
    with pytest.raises(TypeError, match=r"got float; write benchmark\(f, x\), not benchmark\(f\("):
        benchmark(sum([1.0, 2.0]))


X = np.zeros((1, 1, 28, 28), np.float32)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"budget_s": 0}, ValueError, "budget_s must be above 0 and finite, got 0"),
        ({"budget_s": math.nan}, ValueError, "budget_s must be above 0 and finite, got nan"),
        ({"budget_s": "1"}, TypeError, "budget_s must be a number, got '1'"),
        ({"budget_s": None}, TypeError, "budget_s must be a number, got None"),
        ({"min_repeats": 0}, ValueError, "min_repeats must be at least 1, got 0"),
        ({"min_repeats": True}, TypeError, "min_repeats must be a whole number, got True"),
        ({"min_repeats": "3"}, TypeError, "min_repeats must be a whole number, got '3'"),
        ({"max_repeats": 2}, ValueError, "max_repeats must be at least 3, got 2"),
        ({"max_repeats": 3.0}, TypeError, "max_repeats must be a whole number, got 3.0"),
        ({"threads": 0}, ValueError, "number of BLAS threads must be at least 1"),
    ],
)
def test_bad_budgets_and_counts_are_refused_alike(wrong, error, message):
    with pytest.raises(error, match=message):
        benchmark(sum, [], **wrong)
    with pytest.raises(error, match=message):
        profile_layers(deep_convnet(), X, **wrong)


@pytest.mark.parametrize(("warmup", "error"), [(-1, ValueError), (1.0, TypeError)])
def test_a_bad_warmup_is_refused(warmup, error):
    with pytest.raises(error, match="warmup must be "):
        benchmark(sum, [], warmup=warmup)


@pytest.mark.parametrize("scale", ["0", "-1", "nan", "inf", "fast", ""])
def test_a_bad_time_scale_is_named(monkeypatch, scale):
    monkeypatch.setenv("FASTDL_TIME_SCALE", scale)
    with pytest.raises(ValueError, match="FASTDL_TIME_SCALE must be a positive number"):
        benchmark(sum, [])


def test_it_stops_after_the_most_repeats(clock, card):
    m = benchmark(lambda: clock.work(0.01), budget_s=1.0, max_repeats=7, machine=card)
    assert len(m.samples) == 7
    network = small_alexnet()
    assert len(profile_layers(network, batch(network)[0], max_repeats=5).first.samples) == 5


def test_the_device_is_stated_and_must_be_there(fake_gpu, card):
    assert benchmark(sum, [], budget_s=1e-3, machine=card).conditions["device"] == "cpu"
    m = benchmark(sum, [], budget_s=1e-3, device="gpu", machine=card)
    # What a BLAS could do with its threads does not matter there.
    assert m.conditions == {"device": "gpu", "warmup": 1}
    assert str(m).endswith("on the GPU)")
    with pytest.raises(ValueError, match="device must be one of 'cpu', 'gpu', got 'cuda'"):
        benchmark(sum, [], device="cuda")


def test_without_a_gpu_none_is_timed(monkeypatch):
    monkeypatch.setattr(timing, "gpu_available", lambda: False)
    for attempt in (partial(benchmark, sum, []), partial(product_gflops, 8), measure_ceilings):
        with pytest.raises(RuntimeError, match="device='gpu' needs a GPU"):
            attempt(device="gpu")


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
    m = benchmark(lambda: asked.append(0.5), budget_s=1.0, warmup=3, machine=card)
    # The work of the warm-up is waited for before the first reading.
    assert set(m.samples) == {500.0}
    assert len(waits) == 2 * len(m.samples)


# --- ceilings -----------------------------------------------------------------------------------


@needs_a_known_blas
def test_ceilings_say_what_they_are():
    ceilings = measure_ceilings(budget_s=1e-3, threads=1)
    assert ceilings.gemm_gflops.unit == "GFLOP/s" and ceilings.copy_gb_per_s.unit == "GB/s"
    assert ceilings.gemm_gflops.conditions["threads"] == 1
    assert ceilings.copy_gb_per_s.conditions["threads"] == 1
    assert ceilings.ridge > 0
    assert len(ceilings.gemm_gflops.samples) >= 3


def test_ceilings_divide_the_work_by_the_time(monkeypatch, card):
    def half_a_second(function, **options):
        function()
        return benchmark_of([500.0], card)

    def benchmark_of(samples_ms, machine):
        return timing.Measurement(
            "x", "ms", samples_ms, Provenance.MEASURED, machine=machine, conditions={"threads": 2}
        )

    monkeypatch.setattr(timing, "benchmark", half_a_second)
    ceilings = measure_ceilings()
    assert ceilings.gemm_gflops.median == pytest.approx(2 * 2048**3 / 0.5 / 1e9)
    assert ceilings.copy_gb_per_s.median == pytest.approx(2 * 4 * 32 * 2**20 / 0.5 / 1e9)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_a_product_is_of_the_dtype_it_says(monkeypatch, dtype):
    seen = []
    matmul = np.matmul

    def watched(a, b, out):
        seen.append({a.dtype, b.dtype, out.dtype})
        return matmul(a, b, out=out)

    monkeypatch.setattr(np, "matmul", watched)
    m = product_gflops(16, dtype, budget_s=1e-3)
    assert seen[0] == {np.dtype(dtype)} and m.name == f"{dtype} product, 16 x 16"
    assert m.conditions["device"] == "cpu"


def test_tf32_is_allowed_during_its_product_alone(fake_gpu, monkeypatch):
    seen = []
    matmul = fake_gpu.matmul

    def watched(a, b, out):
        seen.append((a.dtype, tf32_allowed()))
        return matmul(a, b, out=out)

    monkeypatch.setattr(fake_gpu, "matmul", watched)
    for dtype in ("tf32", "float32"):
        m = product_gflops(16, dtype, device="gpu", budget_s=1e-3)
        assert m.conditions == {"device": "gpu", "warmup": 1}
        assert set(seen) == {(np.dtype("float32"), dtype == "tf32")}
        seen.clear()
    assert not tf32_allowed()


def test_a_product_that_cannot_be():
    for dtype in ("tf32", "int8"):
        with pytest.raises(ValueError, match=f"the cpu multiplies no matrices of '{dtype}'"):
            product_gflops(16, dtype)


def test_ceilings_of_a_gpu(fake_gpu, monkeypatch):
    monkeypatch.setattr(timing, "_PRODUCT_ROWS", {"gpu": (8, 16)})
    monkeypatch.setattr(timing, "_COPY_MEGABYTES", {"gpu": 1})
    ceilings = measure_ceilings(budget_s=1e-3, device="gpu")
    assert ceilings.gemm_gflops.conditions["device"] == "gpu"
    assert ceilings.copy_gb_per_s.name == "copy of 1 MB, read and written"
    assert ceilings.copy_gb_per_s.conditions == {"device": "gpu", "warmup": 1}


# --- layer profiles -----------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
def test_a_profile_adds_up_to_100_percent(training):
    network = small_alexnet()
    x, labels = batch(network, images=3)
    profile = profile_layers(network, x, labels if training else None, budget_s=1e-3)
    assert list(profile.forward) == list(network.layers)
    assert list(profile.backward) == (list(network.layers) if training else [])
    assert sum(profile.layer_shares().values()) == pytest.approx(100)
    assert sum(profile.kind_shares().values()) == pytest.approx(100)
    assert sum(profile.layer_ms().values()) == pytest.approx(profile.total_ms)
    assert (profile.network, profile.batch) == ("small AlexNet", 3)
    assert profile.provenance is Provenance.MEASURED
    assert profile.first.conditions == {
        "device": "cpu",
        "threads": blas_threads_now(),
        **({"freed_memory": "kept"} if sys.platform == "linux" else {}),
        "warmup": 1,
        "batch": 3,
    }
    counts = {len(m.samples) for m in [*profile.forward.values(), *profile.backward.values()]}
    assert len(counts) == 1 and counts.pop() >= 3


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
    assert profile.total_ms == pytest.approx(11_000 * 66)
    assert profile.total.samples == pytest.approx([11_000 * 66] * 3)
    assert profile.speed.samples == pytest.approx([1000 * len(x) / (11_000 * 66)] * 3)
    assert profile.kind_share("fc").samples == pytest.approx([100 * 20 / 66] * 3)
    assert (profile.total.unit, profile.speed.unit) == ("ms", "images/s")
    # conv1 and conv2 are the layers 1 and 5, fc3 and fc4 the layers 9 and 11.
    assert profile.kind_shares()["conv"] == pytest.approx(100 * 6 / 66)
    assert profile.kind_shares()["fc"] == pytest.approx(100 * 20 / 66)
    assert profile.kinds["drop3"] == profile.kinds["flatten"] == "other"


@needs_a_known_blas
@pytest.mark.parametrize("training", [False, True])
def test_the_profile_table(training):
    network = deep_convnet()
    x = np.zeros((2, 1, 28, 28), np.float32)
    labels = np.zeros(2, int) if training else None
    table = profile_layers(network, x, labels, budget_s=1e-3, threads=1).table()
    assert [row["layer"] for row in table.rows] == list(network.layers)
    assert ("backward" in [c.key for c in table.columns]) == training
    assert all(c.provenance is Provenance.MEASURED for c in table.columns[1:])
    assert "DeepConvNet" in table.caption and "measured here" in table.caption
    assert ("training step" if training else "forward pass") in table.caption
    assert "batch 2" in table.caption and "BLAS on 1 thread," in table.caption


def test_a_profile_does_not_change_the_weights():
    network, fresh = deep_convnet(), deep_convnet()
    x = np.ones((2, 1, 28, 28), np.float32)
    profile_layers(network, x, np.array([1, 2]), budget_s=1e-3)
    for name, array in network.parameters.items():
        assert (array == fresh.parameters[name]).all()


@needs_a_known_blas
def test_a_failing_layer_passes_its_error():
    network = small_alexnet()

    def broken(*_, **__):
        raise ZeroDivisionError("this layer fails")

    network.layers["pool2"].forward = broken
    with blas_threads(2):
        with pytest.raises(ZeroDivisionError, match="this layer fails"):
            profile_layers(network, batch(network)[0], threads=1)
        assert blas_threads_now() == 2


def test_a_profile_refuses_what_the_network_refuses():
    network = deep_convnet()
    with pytest.raises(ValueError, match=r"N >= 1, got \(0, 1, 28, 28\)"):
        profile_layers(network, np.zeros((0, 1, 28, 28), np.float32))
    with pytest.raises(TypeError, match=r"use x\.astype\(np\.float32\)"):
        profile_layers(network, np.zeros((1, 1, 28, 28)))
    x = np.zeros((1, 1, 28, 28), np.float32)
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.9"):
        profile_layers(network, x, np.array([10]))


def test_a_profile_on_the_gpu_waits_after_every_layer(fake_gpu):
    network = small_alexnet().to_gpu()
    x = to_gpu(batch(network)[0])
    profile = profile_layers(network, x, budget_s=1e-3)
    assert profile.first.conditions == {"device": "gpu", "warmup": 1, "batch": 2}
    assert "(measured here, on the GPU, median" in profile.table().caption
    passes = 1 + len(next(iter(profile.forward.values())).samples)
    assert fake_gpu.counts["synchronize"] == passes * (1 + len(network.layers))
