"""A machine's whole run: every branch through the stand-in GPU, and what a recording must stand."""

import dataclasses
import datetime
import json
import platform
import re

import numpy as np
import pytest
from helpers import example, needs_a_known_blas, small_alexnet

from fastdl_lib.core.arrays import array_module, tf32_allowed, to_cpu
from fastdl_lib.core.pretend_gpu import pretend_gpu
from fastdl_lib.core.threads import blas_threads
from fastdl_lib.course import record
from fastdl_lib.course.record import (
    PARTS,
    Plan,
    check_recording,
    main,
    measure_machine,
    recording_name,
)
from fastdl_lib.measuring import timing
from fastdl_lib.measuring.recordings import (
    Recording,
    machine_recordings,
    read_recording,
    write_recording,
)

NETWORK = small_alexnet()


def both(*sizes):
    return {"cpu": sizes, "gpu": sizes}


SMALL = Plan(
    network=small_alexnet,
    products=both(64),
    float16_product=16,
    dtype_product={"cpu": 32, "gpu": 48},
    dtype_values={"cpu": 100, "gpu": 200},
    dtype_batch={"cpu": 2, "gpu": 3},
    binary_products=both((5, 6, 70)),
    sweep=both(8, 16),
    transfer_bytes=(64,),
    wrong_size=16,
    chain_steps=3,
    race_batch={"cpu": 2, "gpu": 2},
    forward=both(1, 2),
    training=both(2),
    layers_forward=both(2),
    layers_training=both(2),
    precision_batch=2,
    mnist_images=100,
    test_images=100,
)


@pytest.fixture(scope="module")
def quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTDL_TIME_SCALE", "0.001")
        patch.setattr(record, "PAUSE_S", 0)
        patch.setattr(timing, "_COPY_MEGABYTES", {"cpu": 1, "gpu": 1})
        yield patch


@pytest.fixture(scope="module")
def whole(quick, tmp_path_factory):
    """A small run with the stand-in GPU, written and read; and the lines it said."""
    path = tmp_path_factory.mktemp("record") / "machine.json"
    lines = []
    with blas_threads(2), pretend_gpu():
        write_recording(path, measure_machine(SMALL, lines.append))
    return read_recording(path), lines


# --- measuring ----------------------------------------------------------------------------------


def test_a_run_with_a_gpu_holds_every_part_and_no_number_twice(whole):
    recording, _ = whole
    assert {m.conditions["part"] for m in recording.measurements} == set(PARTS)
    names = [m.name for m in recording.measurements]
    assert len(names) == len(set(names))
    assert all(m.machine.gpu == "Stand-in GPU" for m in recording.measurements)
    assert recording.command == "python -m fastdl_lib.course.record --minutes 8"


@pytest.mark.parametrize(
    ("conditions", "count"),
    [
        ({"part": "ceiling", "what": "product", "device": "gpu"}, 4),
        ({"part": "ceiling", "what": "product", "dtype": "tf32"}, 1),
        ({"part": "ceiling", "dtype": "float16", "device": "cpu"}, 1),
        ({"part": "ceiling", "what": "copy"}, 2),
        ({"part": "dtypes", "what": "product", "device": "gpu", "size": 48}, 3),
        ({"part": "dtypes", "what": "product", "device": "cpu", "dtype": "float16", "size": 16}, 1),
        ({"part": "dtypes", "what": "add", "device": "cpu", "size": 100, "threads": 1}, 3),
        ({"part": "dtypes", "what": "add", "device": "gpu", "size": 200}, 3),
        ({"part": "dtypes", "what": "forward", "device": "cpu", "network": "DeepConvNet"}, 2),
        ({"part": "dtypes", "what": "forward", "device": "gpu", "batch": 3}, 3),
        ({"part": "dtypes", "what": "training"}, 3),
        ({"part": "binary", "device": "gpu", "rows": 5, "outputs": 6, "length": 70}, 3),
        ({"part": "binary", "device": "gpu", "way": "bits"}, 1),
        ({"part": "binary", "device": "cpu", "way": "float32", "threads": 2}, 1),
        ({"part": "sweep", "device": "gpu"}, 2),
        ({"part": "transfer", "direction": "to_gpu", "bytes": 64}, 1),
        ({"part": "wrong"}, 4),
        ({"part": "chain", "steps": 3}, 1),
        ({"part": "race", "device": "cpu", "algorithm": "loops"}, 2),
        ({"part": "race", "device": "gpu", "layer": "conv1"}, 2),
        ({"part": "training", "network": "DeepConvNet", "what": "speed"}, 2),
        ({"part": "pass", "device": "gpu", "algorithm": "gpu", "dtype": "float32"}, 3),
        ({"part": "pass", "device": "gpu", "dtype": "float16"}, 2),
        ({"part": "layers", "device": "gpu", "training": True, "direction": "backward"}, 11),
        ({"part": "layers", "device": "cpu", "training": False}, 11),
    ],
)
def test_the_conditions_that_the_chapters_select_by(whole, conditions, count):
    assert len(whole[0].select(**conditions)) == count


@needs_a_known_blas
@pytest.mark.parametrize("threads", [1, 2])
def test_one_thread_and_all(whole, threads):
    recording, _ = whole
    for conditions, count in (
        ({"part": "ceiling", "dtype": "float32"}, 1),
        ({"part": "dtypes", "dtype": "float64", "what": "product"}, 1),
        ({"part": "binary", "way": "bits"}, 1),
        ({"part": "race", "algorithm": "winograd"}, 2),
        ({"part": "pass", "direction": "training"}, 1),
    ):
        rows = recording.select(**conditions, device="cpu", threads=threads)
        assert len(rows) == count
        assert all(f"CPU, {threads} thread" in m.name for m in rows)
    # Numba's loops take one, the sweep and the layers all.
    assert not recording.has(part="race", algorithm="compiled", threads=2)
    assert recording.has(part="sweep", threads=2) and recording.has(part="layers", threads=2)


def test_what_ran_on_the_gpu_names_no_threads(whole):
    for m in whole[0].measurements:
        assert ("threads" in m.conditions) == (m.conditions["device"] == "cpu"), m.name


def test_samples_are_rounded_to_four_digits(whole):
    for m in whole[0].measurements:
        assert all(float(f"{sample:.4g}") == sample for sample in m.samples)


def test_every_number_is_shown_as_it_comes(whole):
    _, lines = whole
    assert lines[0].startswith("0:0") and "Stand-in GPU" in lines[0]
    assert any("to_gpu, 64 bytes: " in line and "GB/s" in line for line in lines)
    assert not [line for line in lines if "left out" in line]


def test_the_loops_part_counts_its_own_macs(whole):
    conv1, _ = whole[0].select(part="race", algorithm="loops")
    # 4 x 4 pixels, 3 channels, 5 x 5 taps, all 8 filters.
    assert conv1.conditions["macs"] == 16 * 75 * 8
    (full,) = whole[0].select(part="race", algorithm="compiled", layer="conv1")
    assert full.conditions["macs"] == 12 * 12 * 75 * 8


def test_each_pass_is_computed_as_its_conditions_say(quick):
    seen = set()

    def watched():
        network = small_alexnet()
        first = network.layers["conv1"]
        forward = first.forward

        def spy(x, training=False):
            seen.add((array_module(x).__name__, str(x.dtype), tf32_allowed(), first.algorithm))
            return forward(x, training)

        first.forward = spy
        return network

    with pretend_gpu():
        measure_machine(dataclasses.replace(SMALL, network=watched, parts=("pass",)), str)
    assert seen == {
        ("numpy", "float32", False, "auto"),
        ("cupy", "float32", False, "gpu"),
        ("cupy", "float32", True, "gpu"),
        ("cupy", "float16", False, "gpu"),
    }


def test_a_part_alone_without_a_gpu(quick):
    lines = []
    recording = measure_machine(dataclasses.replace(SMALL, parts=("sweep",)), lines.append)
    assert {m.conditions["part"] for m in recording.measurements} == {"sweep"}
    assert recording.command.endswith("--parts sweep")
    assert recording.machine.versions.keys() >= {"numpy", "numba"}


def test_an_unknown_part_is_refused():
    with pytest.raises(ValueError, match=r"no part 'speed'; there are \['ceiling'"):
        measure_machine(dataclasses.replace(SMALL, parts=("speed",)))


def test_when_the_time_is_up_the_rest_is_left_out_and_said(quick):
    lines = []
    recording = measure_machine(dataclasses.replace(SMALL, minutes=1e-9), lines.append)
    assert recording.measurements == ()
    assert sum("left out, the time is up" in line for line in lines) > 20
    assert any("nothing was measured of" in fault for fault in check_recording(recording, NETWORK))


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried ...")])
def test_what_does_not_fit_into_memory_is_left_out_and_said(quick, error):
    def large():
        network = small_alexnet()
        first = network.layers["conv1"]
        forward = first.forward

        def limited(x, training=False):
            if len(x) > 1:
                raise error
            return forward(x, training)

        first.forward = limited
        return network

    lines = []
    plan = dataclasses.replace(SMALL, network=large, parts=("pass",))
    recording = measure_machine(plan, lines.append)
    assert {m.conditions["batch"] for m in recording.measurements} == {1}
    left_out = [line for line in lines if "does not fit into memory" in line]
    assert left_out and all("batch 2" in line for line in left_out)


def test_any_other_error_passes(quick, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(record, "product_gflops", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        measure_machine(dataclasses.replace(SMALL, parts=("ceiling",)), str)


# --- is it plausible? ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plausible(whole):
    """The run's fields with times that no noise decides: 1 ms a layer, 100 GFLOP/s at most."""
    recording, _ = whole
    card = recording.machine
    versions = {**card.versions, "cupy": "14.0.0"}
    since = max(card.date, record.DTYPES_SINCE, record.BINARY_SINCE)
    card = dataclasses.replace(card, versions=versions, date=since)
    values = {"GFLOP/s": 100.0, "GB/s": 10.0, "Gvalues/s": 1.0, "images/s": 500.0, "%": 97.0}
    kept = []
    for m in recording.measurements:
        value = values.get(m.unit, 1.0)
        if m.conditions["part"] == "pass":
            value = 11.0 if m.conditions["direction"] == "forward" else 22.0
        kept.append(dataclasses.replace(m, samples=(value,) * 3, machine=card))
    return Recording(card, recording.command, tuple(kept))


def damaged(recording, where, rule):
    """A copy in which ``rule`` changed the first measurement that has these conditions."""
    rows = list(recording.measurements)
    place = rows.index(recording.select(**where)[0])
    rows[place : place + 1] = rule(rows[place])
    return dataclasses.replace(recording, measurements=tuple(rows))


def samples(*values):
    return lambda m: [dataclasses.replace(m, samples=values)]


def conditions(**changes):
    return lambda m: [dataclasses.replace(m, conditions={**m.conditions, **changes})]


def without(key):
    def rule(m):
        left = {k: v for k, v in m.conditions.items() if k != key}
        return [dataclasses.replace(m, conditions=left)]

    return rule


def test_a_plausible_recording_is_accepted(plausible):
    assert check_recording(plausible, NETWORK) == []


def test_the_stand_in_is_no_gpu(whole):
    assert "the GPU is the tests' stand-in." in check_recording(whole[0], NETWORK)


FORWARD = {"part": "layers", "device": "cpu", "training": False}


@pytest.mark.parametrize(
    ("where", "rule", "message"),
    [
        ({"part": "sweep"}, samples(0.0, 1.0, 1.0), "holds 0.0; every sample must be above 0"),
        ({"part": "transfer"}, samples(10.0, -1.0, 10.0), "holds -1.0"),
        ({"part": "pass"}, samples(11.0, 11.0), "has 2 samples, 3 are the least"),
        ({"part": "training", "what": "accuracy"}, samples(100.5), "is above 100 %"),
        ({"part": "race"}, conditions(part="rush"), "belongs to no part"),
        ({"part": "race"}, without("macs"), "does not say its macs"),
        ({"part": "sweep", "device": "cpu"}, without("threads"), "does not say its threads"),
        ({"part": "ceiling", "what": "product"}, without("dtype"), "does not say its dtype"),
        (
            {"part": "pass"},
            lambda m: [dataclasses.replace(m, unit="s")],
            "is in 's', expected 'ms'",
        ),
        (
            {"part": "ceiling", "what": "copy"},
            lambda m: [dataclasses.replace(m, provenance="computed", source="a guess")],
            "is computed, not measured",
        ),
        ({"part": "sweep"}, lambda m: [m, m], "measured more than once"),
        # The shares no longer sum to one.
        (FORWARD | {"layer": "pool2"}, lambda m: [], "must be there once.* see pool2"),
        (FORWARD | {"layer": "pool2"}, conditions(layer="pool9"), "small AlexNet does not have"),
        (FORWARD | {"layer": "pool2"}, conditions(layer="relu2", kind="relu"), "more than once"),
        (FORWARD, conditions(layer=["conv1"]), r"has the layer \['conv1'\]"),
        ({"part": "sweep"}, conditions(size="16"), "has the size '16'"),
        ({"part": "pass"}, conditions(batch=0), "has the batch 0"),
        ({"part": "pass"}, conditions(batch=True), "has the batch True"),
        ({"part": "sweep"}, conditions(device="tpu", threads=1), "neither cpu nor gpu"),
        (FORWARD | {"layer": "relu1"}, samples(1.0, 1.0, 1.0, 1.0), "not measured in the same"),
        # The layers against the whole.
        (FORWARD | {"layer": "relu1"}, samples(20.0, 20.0, 20.0), "add up to 2.73 times the whole"),
        (
            {"part": "pass", "device": "gpu", "direction": "training", "dtype": "float32"},
            samples(60.0, 60.0, 60.0),
            "add up to 0.37 times the whole",
        ),
        (
            {"part": "pass", "device": "gpu", "direction": "training", "dtype": "float32"},
            lambda m: [],
            "nothing was measured of .*'pass'.*'gpu'",
        ),
        (
            {"part": "pass", "device": "gpu", "direction": "forward", "batch": 2},
            conditions(batch=3),
            "there is no whole pass beside the layers",
        ),
        # The peak. One image of conv1 is 86,400 MACs, of which Winograd's way may save three
        # quarters; the products run at 100 GFLOP/s.
        ({"part": "sweep", "size": 16}, samples(6e-5, 6e-5, 6e-5), "comes to 137 GFLOP/s at least"),
        (
            {"part": "race", "algorithm": "im2col", "layer": "conv1"},
            samples(2e-3, 2e-3, 2e-3),
            "comes to 173 GFLOP/s at least",
        ),
        (
            {"part": "race", "algorithm": "winograd", "layer": "conv1"},
            samples(2e-4, 2e-4, 2e-4),
            "GFLOP/s at least, above the 100",
        ),
        (
            {"part": "layers", "layer": "conv2", "training": True, "direction": "backward"},
            samples(1e-5, 1e-5, 1e-5),
            "conv2 backward.* GFLOP/s at least",
        ),
        # Backward a layer multiplies twice as often: 2 images, 2 x 480 MACs.
        (
            {"part": "layers", "layer": "fc3", "training": True, "direction": "backward"},
            samples(2.5e-5, 2.5e-5, 2.5e-5),
            "fc3 backward.* comes to 154 GFLOP/s at least",
        ),
        ({"part": "pass", "dtype": "float16"}, samples(1e-6, 1e-6, 1e-6), "GFLOP/s at least"),
        (
            {"part": "dtypes", "what": "product", "dtype": "float64"},
            samples(126.0, 126.0, 126.0),
            "comes to 126 GFLOP/s at least, above the 100",
        ),
        ({"part": "dtypes", "what": "product"}, without("size"), "does not say its size"),
        (
            {"part": "dtypes", "what": "add"},
            without("dtype"),
            "does not say its dtype|nothing was measured of .*'dtypes'.*'add'",
        ),
        ({"part": "dtypes", "what": "forward"}, without("batch"), "does not say its batch"),
        (
            {"part": "dtypes", "what": "add"},
            lambda m: [dataclasses.replace(m, unit="GB/s")],
            "is in 'GB/s', expected 'Gvalues/s'",
        ),
        (
            {"part": "dtypes", "what": "training", "dtype": "float16"},
            lambda m: [],
            "nothing was measured of .*'dtypes'.*'gpu'.*'float16'.*'training'",
        ),
        (
            {"part": "binary", "way": "float32"},
            samples(126.0, 126.0, 126.0),
            "comes to 126 GFLOP/s at least, above the 100",
        ),
        # 8,100 is 64 x 126.6: more than words of 64 explain.
        ({"part": "binary", "way": "bits"}, samples(*[8100.0] * 3), "comes to 127 GFLOP/s at"),
        ({"part": "binary", "way": "bits"}, without("length"), "does not say its length"),
        ({"part": "binary"}, conditions(rows=0), "has the rows 0"),
        ({"part": "binary"}, lambda m: [dataclasses.replace(m, unit="ms")], "is in 'ms'"),
        (
            {"part": "binary", "device": "gpu", "way": "bits"},
            lambda m: [],
            "nothing was measured of .*'binary'.*'gpu'.*'bits'",
        ),
        (
            {"part": "race", "layer": "conv1", "algorithm": "compiled"},
            conditions(macs=10**6),
            "counts 1,000,000 MACs, more than the layer has",
        ),
        (
            {"part": "ceiling", "dtype": "tf32"},
            lambda m: [],
            "no product of tf32 was measured on the gpu",
        ),
        ({"part": "sweep"}, lambda m: [dataclasses.replace(m, name="/opt/x")], "holds a path"),
        ({"part": "sweep"}, conditions(note="ann@home"), "names a user or a computer"),
    ],
)
def test_each_damage_is_refused_for_its_own_reason(plausible, where, rule, message):
    faults = check_recording(damaged(plausible, where, rule), NETWORK)
    assert faults and all(re.search(message, fault) for fault in faults), faults


def test_winograds_savings_are_allowed(plausible):
    """130 GFLOP/s by the count of MACs: too fast for im2col, not for Winograd's way."""
    where = {"part": "race", "device": "cpu", "layer": "conv2"}
    macs = plausible.select(**where, algorithm="winograd")[0].conditions["macs"]
    fast = samples(*[2 * macs / 130 * 1e-6] * 3)
    winograd = damaged(plausible, where | {"algorithm": "winograd"}, fast)
    assert check_recording(winograd, NETWORK) == []
    im2col = damaged(plausible, where | {"algorithm": "im2col"}, fast)
    assert "130 GFLOP/s at least" in check_recording(im2col, NETWORK)[0]


def test_a_wrong_timing_may_be_impossible(plausible):
    fast = damaged(plausible, {"part": "wrong", "what": "no synchronise"}, samples(*[1e-9] * 3))
    assert check_recording(fast, NETWORK) == []


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_part_is_named(plausible, part):
    rows = tuple(m for m in plausible.measurements if m.conditions["part"] != part)
    faults = check_recording(dataclasses.replace(plausible, measurements=rows), NETWORK)
    assert faults and all("nothing was measured of" in fault for fault in faults)
    assert all(f"'part': '{part}'" in fault for fault in faults)


def test_recordings_from_before_a_part_lack_it_and_no_other(plausible):
    card = dataclasses.replace(plausible.machine, date="2026-11-24")
    later = ("dtypes", "binary")
    rows = tuple(m for m in plausible.measurements if m.conditions["part"] not in later)
    assert check_recording(Recording(card, "x", rows), NETWORK) == []
    rows = tuple(m for m in rows if m.conditions["part"] != "chain")
    (fault,) = check_recording(Recording(card, "x", rows), NETWORK)
    assert fault == "nothing was measured of {'part': 'chain'}."


def test_bits_may_be_many_times_as_fast_as_the_peak(plausible):
    fast = damaged(plausible, {"part": "binary", "way": "bits"}, samples(*[4000.0] * 3))
    assert check_recording(fast, NETWORK) == []


def test_binary_products_are_exact_where_their_conditions_say(quick, monkeypatch):
    """Each way is run on its device, on +1 and -1 alone, and all give the same whole numbers."""
    seen, measured = {}, record.benchmark

    def watched(product, *, device, **options):
        out = product()
        seen.setdefault(device, []).append((array_module(out).__name__, to_cpu(out).copy()))
        return measured(product, device=device, **options)

    monkeypatch.setattr(record, "benchmark", watched)
    with blas_threads(1), pretend_gpu():
        measure_machine(dataclasses.replace(SMALL, parts=("binary",)), str)
    rng = np.random.default_rng(0)
    x, w = (rng.choice([-1, 1], (count, 70)) for count in (5, 6))
    for device, module in (("cpu", "numpy"), ("gpu", "cupy")):
        assert [name for name, _ in seen[device]] == [module] * 3
        assert all(np.array_equal(out, x @ w.T) for _, out in seen[device])


def test_float16_trains_with_master_weights_on_the_gpu(quick, monkeypatch):
    seen = []

    class Watched(record.MixedPrecision):
        def step(self, network):
            super().step(network)
            weight = network.parameters["fc2.weight"]
            master = self.state["master.fc2.weight"]
            seen.append((array_module(weight).__name__, str(weight.dtype), str(master.dtype)))
            assert self.loss_scale == 1024 and self.skipped == 0

    monkeypatch.setattr(record, "MixedPrecision", Watched)
    with pretend_gpu():
        measure_machine(dataclasses.replace(SMALL, parts=("dtypes",)), str)
    assert set(seen) == {("cupy", "float16", "float32")}


def test_a_clock_rate_in_the_cpu_s_name_is_no_address(plausible):
    card = dataclasses.replace(plausible.machine, cpu="Intel Core i7-5930K CPU @ 3.50GHz")
    assert check_recording(dataclasses.replace(plausible, machine=card), NETWORK) == []


TOMORROW = datetime.date.today() + datetime.timedelta(days=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"date": "yesterday"}, "the date 'yesterday' is none"),
        ({"date": "1999-12-31"}, "is not from 2025-01-01 to today"),
        ({"date": str(TOMORROW + datetime.timedelta(days=1))}, "is not from 2025-01-01 to today"),
        ({"versions": {"numpy": "2.4.6"}}, "does not name the version of numba"),
        ({"cpu": "CPU in /home/ann"}, "holds a path"),
        ({"system": r"C:\Users"}, "holds a path"),
        ({"system": "Linux of planted-host"}, "names a user or a computer"),
    ],
)
def test_a_card_that_cannot_be(plausible, changes, message, monkeypatch):
    monkeypatch.setattr(platform, "node", lambda: "planted-host")
    card = dataclasses.replace(plausible.machine, **changes)
    faults = check_recording(dataclasses.replace(plausible, machine=card), NETWORK)
    assert message in faults[0]


@pytest.mark.parametrize("date", [str(datetime.date.today()), str(TOMORROW), "2025-01-01"])
def test_a_date_that_can_be(plausible, date):
    card = dataclasses.replace(plausible.machine, date=date)
    assert check_recording(dataclasses.replace(plausible, machine=card), NETWORK) == []


def test_without_a_gpu_none_is_asked_for(plausible):
    card = dataclasses.replace(
        plausible.machine, gpu="none. CuPy is not installed.", versions={"numba": "1"}
    )
    card = dataclasses.replace(card, versions={"numba": "1", "numpy": "2", "fastdl": "0"})
    rows = tuple(m for m in plausible.measurements if m.conditions["device"] == "cpu")
    assert check_recording(Recording(card, "x", rows), NETWORK) == []


def test_the_recordings_of_the_course_are_accepted():
    recordings = machine_recordings()
    assert recordings, "data/recordings/ holds no machine_*.json: make record"
    for name, recording in recordings.items():
        assert check_recording(recording) == [], name


# --- the command --------------------------------------------------------------------------------


@pytest.fixture
def command(plausible, tmp_path, monkeypatch):
    """The command with its measuring replaced; returns exit status, and counts the runs."""
    (tmp_path / "recordings").mkdir()
    monkeypatch.setenv("FASTDL_DATA", str(tmp_path))
    monkeypatch.setattr(record, "machine_card", lambda: plausible.machine)
    monkeypatch.setattr(record, "alexnet", small_alexnet)
    plans = []

    def measured(plan, say):
        plans.append(plan)
        return plausible

    monkeypatch.setattr(record, "measure_machine", measured)
    monkeypatch.setattr(record.psutil, "cpu_percent", lambda interval: 5.0)
    monkeypatch.setattr(record.psutil, "cpu_count", lambda: 4)
    return main, plans, tmp_path / "recordings"


def test_the_command_writes_where_the_course_looks(command, plausible, capsys):
    run, plans, folder = command
    assert run([]) == 0
    (path,) = folder.iterdir()
    assert path.name == f"machine_stand_in_gpu_{plausible.machine.date}.json"
    assert read_recording(path).measurements == plausible.measurements
    assert plans == [Plan()]
    assert capsys.readouterr().out.endswith(f"{path.name} is accepted.\n")
    # The same machine may record again.
    assert run([]) == 0


def test_parts_and_minutes_and_a_file_of_ones_own(command, tmp_path):
    run, plans, folder = command
    out = tmp_path / "mine.json"
    run(["--out", str(out), "--minutes", "2", "--parts", "sweep", "race"])
    assert out.exists() and not list(folder.iterdir())
    assert plans == [Plan(minutes=2.0, parts=("sweep", "race"))]


def test_what_is_not_accepted_is_written_and_said(command, plausible, capsys, monkeypatch):
    run, _, folder = command
    bad = damaged(plausible, {"part": "sweep"}, samples(1.0, 1.0, 0.0))
    monkeypatch.setattr(record, "measure_machine", lambda plan, say: bad)
    assert run([]) == 1
    assert len(list(folder.iterdir())) == 1
    out = capsys.readouterr().out
    assert "every sample must be above 0" in out and "is not accepted. Record again" in out


def test_another_machines_file_is_kept(command, plausible, capsys):
    run, plans, folder = command
    path = folder / f"{recording_name(plausible.machine)}.json"
    card = dataclasses.replace(plausible.machine, cores=96)
    write_recording(path, dataclasses.replace(plausible, machine=card))
    before = path.read_bytes()
    assert run([]) == 1
    assert "is the recording of another machine" in capsys.readouterr().err
    assert path.read_bytes() == before and plans == []


def test_a_file_that_is_no_recording_is_kept(command, tmp_path, capsys):
    run, plans, _ = command
    path = tmp_path / "thesis.json"
    path.write_text('{"mine": 1}')
    assert run(["--out", str(path)]) == 1
    assert "has the schema None" in capsys.readouterr().err
    assert path.read_text() == '{"mine": 1}' and plans == []


@pytest.mark.parametrize(
    ("out", "message"),
    [("gone/run.json", "there is no folder 'gone'"), ("run.txt", "a recording is a .json file")],
)
def test_a_place_that_cannot_be_is_refused_at_once(command, tmp_path, capsys, out, message):
    run, plans, _ = command
    assert run(["--out", str(tmp_path / out)]) == 1
    assert message in capsys.readouterr().err and plans == []


def test_a_bad_time_scale_is_refused_at_once(command, capsys, monkeypatch):
    run, plans, folder = command
    monkeypatch.setenv("FASTDL_TIME_SCALE", "fast")
    assert run([]) == 1
    assert "FASTDL_TIME_SCALE must be a positive number" in capsys.readouterr().err
    assert plans == [] and not list(folder.iterdir())


@pytest.mark.parametrize(("percent", "busy"), [(5.0, False), (25.0, True)])
def test_a_busy_machine_is_said(command, monkeypatch, capsys, percent, busy):
    run, plans, _ = command
    monkeypatch.setattr(record.psutil, "cpu_percent", lambda interval: percent)
    assert run([]) == 0 and plans
    assert ("Other programs use 100 % of a core" in capsys.readouterr().out) == busy


def test_an_interrupted_run_writes_nothing(command, monkeypatch, capsys):
    run, _, folder = command

    def interrupted(plan, say):
        raise KeyboardInterrupt

    monkeypatch.setattr(record, "measure_machine", interrupted)
    assert run([]) == 130
    assert "nothing was written" in capsys.readouterr().out and not list(folder.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes", "0"], "must be above 0"),
        (["--minutes", "nan"], "must be above 0"),
        (["--minutes", "soon"], "invalid"),
        (["--parts", "speed", "--out", "x.json"], "invalid choice: 'speed'"),
        (["--parts", "sweep"], "say with --out where"),
    ],
)
def test_a_wrong_word_is_refused(command, capsys, arguments, message):
    run, plans, _ = command
    with pytest.raises(SystemExit):
        run(arguments)
    assert message in capsys.readouterr().err and plans == []


def test_check_judges_a_file(command, plausible, tmp_path, capsys):
    run, plans, _ = command
    path = tmp_path / "theirs.json"
    write_recording(path, plausible)
    assert run(["--check", str(path)]) == 0
    assert capsys.readouterr().out == "theirs.json is accepted.\n"
    fields = json.loads(path.read_text())
    fields["measurements"][0]["samples"] = [-1, 1, 1]
    path.write_text(json.dumps(fields))
    assert run(["--check", str(path)]) == 1
    assert "holds -1.0" in capsys.readouterr().out
    path.write_text(path.read_text()[:-9])
    assert run(["--check", str(path)]) == 1
    assert "theirs.json is damaged" in capsys.readouterr().err
    assert plans == []


def test_the_name_of_a_file():
    assert recording_name(example()) == "machine_example_cpu_2025-01-31"
    card = example(gpu="NVIDIA H100 80GB HBM3")
    assert recording_name(card) == "machine_nvidia_h100_80gb_hbm3_2025-01-31"
