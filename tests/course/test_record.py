"""A machine's whole run: every branch through the stand-in GPU, and what a recording must stand."""

import dataclasses
import datetime
import json
import os
import platform
import re

import numpy as np
import pytest
from helpers import example, needs_a_known_blas, small_alexnet

from fastdl_lib.core.arrays import array_module, tf32_allowed, to_cpu
from fastdl_lib.core.pretend_gpu import pretend_gpu
from fastdl_lib.core.threads import blas_threads
from fastdl_lib.course import machine_parts, record
from fastdl_lib.course.machine_parts import PARTS, Plan, Sizes, measure_machine
from fastdl_lib.course.record import check_place, check_recording, main, recording_name, save
from fastdl_lib.measuring import timing
from fastdl_lib.measuring.recordings import (
    Recording,
    machine_recordings,
    read_recording,
    write_recording,
)

NETWORK = small_alexnet()
CPU = Sizes(
    ceiling={"float64": (64,), "float32": (64,), "float16": (16,)},
    dtype_product={"float64": 32, "float32": 32, "float16": 16},
    dtype_values=100,
    dtype_network={"float64": ("forward",), "float32": ("forward",)},
    dtype_batch=2,
    binary=[(5, 6, 70)],
    sweep=(8, 16),
    race_batch=2,
    passes=[(1, "forward"), (2, "forward"), (2, "training")],
    layers=[(2, "forward"), (2, "training")],
)
GPU = CPU._replace(
    ceiling=dict.fromkeys(machine_parts.GPU.ceiling, (64,)),
    dtype_product=dict.fromkeys(("float64", "float32", "float16"), 48),
    dtype_network=machine_parts.GPU.dtype_network,
    dtype_batch=3,
)
SMALL = Plan(
    network=small_alexnet,
    sizes={"cpu": CPU, "gpu": GPU},
    transfer_bytes=(64,),
    wrong_size=16,
    chain_steps=3,
    narrow_batch=2,
    mnist_images=100,
    test_images=100,
)


@pytest.fixture(scope="module")
def quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTDL_TIME_SCALE", "0.001")
        patch.setattr(machine_parts, "PAUSE_S", 0)
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
    recording, lines = whole
    assert {m.conditions["part"] for m in recording.measurements} == set(PARTS)
    assert len({m.name for m in recording.measurements}) == len(recording.measurements)
    assert recording.command == "python -m fastdl_lib.course.record --minutes 8"
    for m in recording.measurements:
        assert m.machine.gpu == "Stand-in GPU"
        assert ("threads" in m.conditions) == (m.conditions["device"] == "cpu"), m.name
        assert all(float(f"{sample:.4g}") == sample for sample in m.samples)
    assert lines[0].startswith("0:0") and "Stand-in GPU" in lines[0]
    assert any("to_gpu, 64 bytes, GPU: " in line and "GB/s" in line for line in lines)
    assert not [line for line in lines if "left out" in line]


@pytest.mark.parametrize(
    ("conditions", "count"),
    [
        ({"part": "ceiling", "what": "product", "device": "gpu"}, 4),
        ({"part": "ceiling", "dtype": "float16", "device": "cpu"}, 1),
        ({"part": "ceiling", "what": "copy"}, 2),
        ({"part": "dtypes", "what": "product", "device": "gpu", "size": 48}, 3),
        ({"part": "dtypes", "what": "product", "device": "cpu", "dtype": "float16", "size": 16}, 1),
        ({"part": "dtypes", "what": "add", "device": "cpu", "size": 100, "threads": 1}, 3),
        ({"part": "dtypes", "what": "forward", "device": "cpu", "network": "DeepConvNet"}, 2),
        ({"part": "dtypes", "what": "training", "batch": 3}, 3),
        ({"part": "binary", "device": "gpu", "rows": 5, "outputs": 6, "length": 70}, 3),
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
        # 4 x 4 pixels, 3 channels, 5 x 5 taps, all 8 filters; and the whole layer.
        ({"part": "race", "algorithm": "loops", "layer": "conv1", "macs": 16 * 75 * 8}, 1),
        ({"part": "race", "algorithm": "compiled", "layer": "conv1", "macs": 144 * 75 * 8}, 1),
    ],
)
def test_the_conditions_that_the_chapters_select_by(whole, conditions, count):
    assert len(whole[0].select(**conditions)) == count


@needs_a_known_blas
@pytest.mark.parametrize("threads", [1, 2])
def test_one_thread_and_all(whole, threads):
    for count, where in (
        (1, {"part": "ceiling", "dtype": "float32"}),
        (1, {"part": "binary", "way": "bits"}),
        (2, {"part": "race", "algorithm": "winograd"}),
        (1, {"part": "pass", "direction": "training"}),
    ):
        rows = whole[0].select(**where, device="cpu", threads=threads)
        assert len(rows) == count and all(f"CPU, {threads} thread" in m.name for m in rows)
    # Numba's loops take one, the sweep and the layers all.
    for part, how in (("race", {"algorithm": "compiled"}), ("sweep", {}), ("layers", {})):
        assert whole[0].has(part=part, **how, threads=threads) == (threads == 1 + (part != "race"))


def passes_with(change):
    """A plan of the passes alone, with ``change(conv1, x)`` called before conv1 runs."""

    def network():
        network = small_alexnet()
        first = network.layers["conv1"]
        forward = first.forward
        first.forward = lambda x, training=False: change(first, x) or forward(x, training)
        return network

    return dataclasses.replace(SMALL, network=network, parts=("pass",))


def test_each_pass_is_computed_as_its_conditions_say(quick):
    seen = set()

    def spy(layer, x):
        seen.add((array_module(x).__name__, str(x.dtype), tf32_allowed(), layer.algorithm))

    with pretend_gpu():
        measure_machine(passes_with(spy), str)
    assert seen == {
        ("numpy", "float32", False, "auto"),
        ("cupy", "float32", False, "gpu"),
        ("cupy", "float32", True, "gpu"),
        ("cupy", "float16", False, "gpu"),
    }


@pytest.mark.parametrize("part", ["sweep", "layers"])
def test_a_part_alone_without_a_gpu(quick, part):
    recording = measure_machine(dataclasses.replace(SMALL, parts=(part,)), str)
    assert {m.conditions["part"] for m in recording.measurements} == {part}
    assert recording.command.endswith(f"--parts {part}")
    assert recording.machine.versions.keys() >= {"numpy", "numba"}
    with pytest.raises(ValueError, match=r"a part must be one of 'ceiling', .*got 'speed'"):
        measure_machine(dataclasses.replace(SMALL, parts=("speed",)))


def test_when_the_time_is_up_the_rest_is_left_out_and_said(quick):
    lines = []
    recording = measure_machine(dataclasses.replace(SMALL, minutes=1e-9), lines.append)
    assert recording.measurements == ()
    assert sum("left out, the time is up" in line for line in lines) > 20
    assert any("nothing was measured of" in fault for fault in check_recording(recording, NETWORK))


@pytest.mark.parametrize("text", ["", "CUDA out of memory. Tried ...", "an illegal memory access"])
def test_what_does_not_fit_into_memory_is_left_out_and_said(quick, text):
    def limited(layer, x):
        if len(x) > 1:
            raise RuntimeError(text) if text else MemoryError

    lines = []
    if "illegal" in text:
        with pytest.raises(RuntimeError, match=text):
            measure_machine(passes_with(limited), str)
        return
    recording = measure_machine(passes_with(limited), lines.append)
    assert {m.conditions["batch"] for m in recording.measurements} == {1}
    left_out = [line for line in lines if "does not fit into memory" in line]
    assert left_out and all("batch 2" in line for line in left_out)


def test_binary_products_are_exact_where_their_conditions_say(quick, monkeypatch):
    """Each way is run on its device, on +1 and -1 alone, and all give the same whole numbers."""
    seen, measured = {"cpu": [], "gpu": []}, machine_parts.benchmark

    def watched(product, *, device, **options):
        seen[device].append(product())
        return measured(product, device=device, **options)

    monkeypatch.setattr(machine_parts, "benchmark", watched)
    with blas_threads(1), pretend_gpu():
        measure_machine(dataclasses.replace(SMALL, parts=("binary",)), str)
        rng = np.random.default_rng(0)
        x, w = (rng.choice([-1, 1], (count, 70)) for count in (5, 6))
        for device, module in (("cpu", "numpy"), ("gpu", "cupy")):
            assert [array_module(out).__name__ for out in seen[device]] == [module] * 3
            assert all(np.array_equal(to_cpu(out), x @ w.T) for out in seen[device])


def test_float16_trains_with_master_weights_on_the_gpu(quick, monkeypatch):
    seen = set()

    class Watched(machine_parts.MixedPrecision):
        def step(self, network):
            super().step(network)
            weight = network.parameters["fc2.weight"]
            master = self.state["master.fc2.weight"]
            seen.add((array_module(weight).__name__, str(weight.dtype), str(master.dtype)))
            assert self.loss_scale == 1024 and self.skipped == 0

    monkeypatch.setattr(machine_parts, "MixedPrecision", Watched)
    with pretend_gpu():
        measure_machine(dataclasses.replace(SMALL, parts=("dtypes",)), str)
    assert seen == {("cupy", "float16", "float32")}


# --- is it plausible? ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plausible(whole):
    """The run's fields with times that no noise decides: 1 ms a layer, 100 GFLOP/s at most."""
    recording, _ = whole
    card = recording.machine
    card = dataclasses.replace(card, versions={**card.versions, "cupy": "14.0.0"})
    values = {"GFLOP/s": 100.0, "GB/s": 10.0, "Gvalues/s": 1.0, "images/s": 500.0, "%": 97.0}
    kept = []
    for m in recording.measurements:
        value = values.get(m.unit, 1.0)
        if m.conditions["part"] == "pass":
            value = 11.0 if m.conditions["direction"] == "forward" else 22.0
        spread = (0.999 * value, value, 0.999 * value, value)
        kept.append(dataclasses.replace(m, samples=spread, machine=card))
    return Recording(card, recording.command, tuple(kept))


def damaged(recording, where, change):
    """A copy in which the first measurement that has these conditions has other samples or fields,
    or other conditions: None takes one away."""
    rows = list(recording.measurements)
    found = recording.select(**where)[0]
    if isinstance(change, tuple):
        change = {"samples": change}
    elif not change.keys() & {"unit", "provenance"}:
        both = {**found.conditions, **change}
        change = {"conditions": {key: value for key, value in both.items() if value is not None}}
    rows[rows.index(found)] = dataclasses.replace(found, **change)
    return dataclasses.replace(recording, measurements=tuple(rows))


def only(recording, keep):
    """A copy with the measurements whose conditions ``keep`` likes."""
    rows = tuple(m for m in recording.measurements if keep(m.conditions))
    return dataclasses.replace(recording, measurements=rows)


def test_a_plausible_recording_is_accepted(plausible, whole):
    assert check_recording(plausible, NETWORK) == []
    assert "the GPU is the tests' stand-in." in check_recording(whole[0], NETWORK)


def test_the_recordings_of_the_course_are_accepted():
    recordings = machine_recordings()
    assert recordings, "data/recordings/ holds no machine_*.json: make record"
    for name, recording in recordings.items():
        assert check_recording(recording) == [], name


LAYERS = {"part": "layers", "device": "cpu", "training": False}
BACKWARD = {"part": "layers", "training": True, "direction": "backward"}
GPU_PASS = {"part": "pass", "device": "gpu", "dtype": "float32"}
RACE = {"part": "race", "device": "cpu"}
COPY = {"part": "ceiling", "what": "copy"}


@pytest.mark.parametrize(
    ("where", "change", "message"),
    [
        ({"part": "sweep"}, (0.0, 1.0, 1.0), "holds 0.0 ms"),
        ({"part": "transfer"}, (10.0, -1.0, 10.0), "holds -1.0"),
        ({"part": "pass"}, (11.0, 11.0), "has 2 samples, 3 are the least"),
        ({"part": "training", "what": "accuracy"}, (100.5,), "holds 100.5 %"),
        (LAYERS | {"layer": "relu1"}, (1.0,) * 3, "not measured in the same"),
        (LAYERS | {"layer": "relu1"}, (20.0,) * 4, "add up to 2.73 times the whole"),
        (GPU_PASS | {"direction": "training"}, (60.0,) * 3, "add up to 0.37 times the whole"),
        # The peak. One image of conv1 is 86,400 MACs; the products run at 100 GFLOP/s.
        ({"part": "sweep", "size": 16}, (6e-5,) * 3, "comes to 137 GFLOP/s at least"),
        (RACE | {"algorithm": "im2col", "layer": "conv1"}, (2e-3,) * 3, "to 173 GFLOP/s"),
        (RACE | {"algorithm": "winograd", "layer": "conv1"}, (2e-4,) * 3, "GFLOP/s at least"),
        (BACKWARD | {"layer": "conv2"}, (1e-5,) * 4, "conv2 backward.* GFLOP/s at least"),
        (BACKWARD | {"layer": "fc3"}, (1e-5,) * 4, "fc3 backward.* comes to 192 GFLOP/s"),
        ({"part": "pass", "dtype": "float16"}, (1e-6,) * 3, "GFLOP/s at least"),
        ({"part": "dtypes", "what": "product"}, (126.0,) * 3, "to 126 GFLOP/s at l.* the 100 of"),
        ({"part": "binary", "way": "float32"}, (126.0,) * 3, "comes to 126 GFLOP/s at least"),
        # 8,100 is 64 x 126.6: more than words of 64 explain.
        ({"part": "binary", "way": "bits"}, (8100.0,) * 3, "comes to 127 GFLOP/s at"),
        # What may be faster: Winograd's way multiplies less often than MACs are counted.
        (RACE | {"algorithm": "winograd", "layer": "conv1"}, (1.4e-3,) * 3, None),
        ({"part": "wrong", "what": "no synchronise"}, (1e-9,) * 3, None),
        ({"part": "binary", "way": "bits"}, (4000.0,) * 3, None),
        (COPY, {"unit": "s"}, "is in 's', expected 'GB/s'"),
        (COPY, {"provenance": "computed", "source": "a guess"}, "is computed, not measured"),
        ({"part": "race"}, {"part": "rush"}, "is of no part of"),
        ({"part": "race"}, {"macs": None}, "does not say its macs"),
        ({"part": "sweep", "device": "cpu"}, {"threads": None}, "does not say its threads"),
        ({"part": "ceiling", "what": "product"}, {"dtype": None}, "does not say its dtype"),
        ({"part": "dtypes", "what": "forward"}, {"batch": None}, "does not say its batch"),
        ({"part": "binary", "way": "bits"}, {"length": None}, "does not say its length"),
        ({"part": "binary"}, {"rows": 0}, "has the rows 0"),
        (LAYERS, {"layer": ["conv1"]}, r"has the layer \['conv1'\]"),
        ({"part": "sweep"}, {"size": "16"}, "has the size '16'"),
        ({"part": "pass"}, {"batch": True}, "has the batch True"),
        ({"part": "sweep"}, {"device": "tpu", "threads": 1}, "neither cpu nor gpu"),
        (LAYERS | {"layer": "pool2"}, {"layer": "pool9"}, "must be there once.* see .*pool9"),
        (LAYERS | {"layer": "pool2"}, {"layer": "relu2", "kind": "relu"}, "more than once"),
        (LAYERS | {"layer": "pool2"}, {"layer": "relu2"}, "must be there once.* see .*relu2"),
        (GPU_PASS | {"direction": "forward", "batch": 2}, {"batch": 3}, "no whole pass beside"),
        ({"part": "race", "algorithm": "compiled"}, {"macs": 10**6}, "counts 1,000,000 MACs, more"),
        ({"part": "ceiling", "dtype": "tf32"}, {"dtype": "x"}, "no product of its dtype was meas"),
        ({"part": "sweep"}, {"note": "ann@home"}, "names a user or a computer"),
        ({"part": "sweep"}, {"note": "/opt/x"}, "holds a path"),
    ],
)
def test_what_cannot_be_is_said(plausible, where, change, message):
    faults = check_recording(damaged(plausible, where, change), NETWORK)
    assert bool(faults) == bool(message)
    assert all(re.search(message, fault) for fault in faults), faults


def test_a_recording_multiplied_is_faster_than_its_cores_can_be():
    for recording in machine_recordings().values():
        for factor in (1, 30, 1000):
            rows = tuple(
                m.convert(lambda x, by=factor if m.unit != "ms" else 1 / factor: by * x, m.unit)
                for m in recording.measurements
                if m.conditions["device"] == "cpu" and m.unit != "%"
            )
            faster = dataclasses.replace(recording, measurements=rows)
            faults = "".join(record._peak_faults(faster, record.alexnet()))
            assert ("no such hardware does" in faults) == (factor > 1)


def test_samples_without_any_spread_are_refused(plausible):
    rows = tuple(dataclasses.replace(m, samples=m.samples[:1] * 3) for m in plausible.measurements)
    (fault,) = check_recording(dataclasses.replace(plausible, measurements=rows), NETWORK)
    assert "no clock repeats itself like that" in fault


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_part_is_named_unless_it_came_later(plausible, part):
    faults = check_recording(only(plausible, lambda there: there["part"] != part), NETWORK)
    assert (not faults) == (part in ("dtypes", "binary"))
    assert all(f"nothing was measured of {{'part': '{part}'" in fault for fault in faults)


def test_a_part_that_came_later_is_whole_or_absent_and_without_a_gpu_none_is_asked_for(plausible):
    gone = {"part": "binary", "way": "bits", "device": "gpu"}
    left = only(plausible, lambda there: not gone.items() <= there.items())
    (fault,) = check_recording(left, NETWORK)
    assert fault == "nothing was measured of {'part': 'binary', 'way': 'bits'} on the gpu."
    versions = {"numba": "1", "numpy": "2", "fastdl": "0"}
    card = dataclasses.replace(plausible.machine, gpu="none. No CuPy.", versions=versions)
    left = only(plausible, lambda there: there["device"] == "cpu")
    assert check_recording(dataclasses.replace(left, machine=card), NETWORK) == []


TODAY, DAY = datetime.date.today(), datetime.timedelta(days=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"date": "yesterday"}, "the date 'yesterday' is none"),
        ({"date": "1999-12-31"}, "is not from 2025-01-01 to today"),
        ({"date": str(TODAY + 2 * DAY)}, "is not from 2025-01-01 to today"),
        ({"date": str(TODAY + DAY)}, ""),
        ({"versions": {"numpy": "2.4.6"}}, "does not name the version of numba"),
        ({"cpu": "CPU in /home/ann"}, "holds a path"),
        ({"system": r"C:\Users"}, "holds a path"),
        ({"system": "Linux of planted-host"}, "names a user or a computer"),
        ({"cpu": "Intel Core i7-5930K CPU @ 3.50GHz"}, ""),
    ],
)
def test_a_card_that_cannot_be(plausible, changes, message, monkeypatch):
    monkeypatch.setattr(platform, "node", lambda: "planted-host")
    card = dataclasses.replace(plausible.machine, **changes)
    faults = check_recording(dataclasses.replace(plausible, machine=card), NETWORK)
    assert message in faults[0] if message else faults == []


# --- the command --------------------------------------------------------------------------------


@pytest.fixture
def command(plausible, tmp_path, monkeypatch):
    """The command with its measuring replaced; the plans it measured, and the course's folder."""
    (tmp_path / "recordings").mkdir()
    monkeypatch.setenv("FASTDL_DATA", str(tmp_path))
    monkeypatch.setattr(record, "machine_card", lambda: plausible.machine)
    monkeypatch.setattr(record, "alexnet", small_alexnet)
    plans = []
    monkeypatch.setattr(
        record, "measure_machine", lambda plan, say: plans.append(plan) or plausible
    )
    monkeypatch.setattr(record.psutil, "cpu_percent", lambda interval: 5.0)
    monkeypatch.setattr(record.psutil, "cpu_count", lambda: 4)
    return plans, tmp_path / "recordings"


def test_the_command_writes_where_the_course_looks(command, plausible, capsys, monkeypatch):
    plans, folder = command
    assert main([]) == 0
    (path,) = folder.iterdir()
    assert path.name == f"machine_stand_in_gpu_{plausible.machine.date}.json"
    assert read_recording(path).measurements == plausible.measurements
    out = capsys.readouterr().out
    assert out.endswith(f"{path.name} is accepted.\n") and "Other programs" not in out
    # The same machine may record again, and says when it is not left alone.
    monkeypatch.setattr(record.psutil, "cpu_percent", lambda interval: 25.0)
    assert main([]) == 0 and plans == [Plan()] * 2
    assert "Other programs use 100 % of a core" in capsys.readouterr().out
    # Parts alone go into a file of their own.
    out = folder / "mine.json"
    main(["--out", str(out), "--minutes", "2", "--parts", "sweep", "race"])
    assert out.exists() and plans[2:] == [Plan(minutes=2.0, parts=("sweep", "race"))]


def test_what_is_not_accepted_is_said_and_what_is_interrupted_not_written(
    command, plausible, capsys, monkeypatch
):
    def interrupted(plan, say):
        raise KeyboardInterrupt

    monkeypatch.setattr(record, "measure_machine", interrupted)
    assert main([]) == 130
    assert "nothing was written" in capsys.readouterr().out and not list(command[1].iterdir())
    bad = damaged(plausible, {"part": "sweep"}, (1.0, 1.0, 0.0))
    monkeypatch.setattr(record, "measure_machine", lambda plan, say: bad)
    assert main([]) == 1
    assert len(list(command[1].iterdir())) == 1
    out = capsys.readouterr().out
    assert "holds 0.0 ms" in out and "is not accepted. Record again" in out


def test_what_is_there_and_is_not_this_machines_recording_is_kept(command, plausible, capsys):
    plans, folder = command
    path = folder / f"{recording_name(plausible.machine)}.json"
    card = dataclasses.replace(plausible.machine, cores=96)
    write_recording(path, dataclasses.replace(plausible, machine=card))
    theirs = path.read_text()
    for text, message in ((theirs, "the recording of another machine"), ("{}", "the schema None")):
        path.write_text(text)
        assert main([]) == 1 and message in capsys.readouterr().err
        assert path.read_text() == text and plans == []


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("gone/run.json", "there is no folder 'gone'"),
        ("run.txt", "a recording is a .json file"),
        ("folder.json", "a recording is a .json file"),
        ("locked/run.json", "'locked' cannot be written to"),
    ],
)
def test_a_place_that_cannot_be_is_refused_before_the_work(
    command, tmp_path, monkeypatch, capsys, plausible, out, message
):
    for folder in ("folder.json", "locked"):
        (tmp_path / folder).mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: path.name != "locked")
    for refuse in (check_place, lambda path: save(plausible, path)):
        with pytest.raises((ValueError, OSError), match=message):
            refuse(tmp_path / out)
    assert main(["--out", str(tmp_path / out)]) == 1 and message in capsys.readouterr().err
    assert not [path for path in tmp_path.rglob("*") if path.is_file()] and command[0] == []


def test_wrong_words_and_a_wrong_time_scale_are_refused_before_the_work(
    command, capsys, monkeypatch
):
    plans, folder = command
    for arguments, message in (
        (["--minutes", "0"], "must be above 0"),
        (["--minutes", "nan"], "must be above 0"),
        (["--parts", "sweep"], "say with --out where"),
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        assert message in capsys.readouterr().err
    monkeypatch.setenv("FASTDL_TIME_SCALE", "fast")
    assert main([]) == 1
    assert "FASTDL_TIME_SCALE must be a positive number" in capsys.readouterr().err
    assert plans == [] and not list(folder.iterdir())


def test_check_judges_a_file(command, plausible, tmp_path, capsys):
    path = tmp_path / "theirs.json"
    write_recording(path, plausible)
    assert main(["--check", str(path)]) == 0
    assert capsys.readouterr().out == "theirs.json is accepted.\n"
    fields = json.loads(path.read_text())
    fields["measurements"][0]["samples"] = [-1, 1, 1]
    path.write_text(json.dumps(fields))
    assert main(["--check", str(path)]) == 1 and "holds -1.0" in capsys.readouterr().out
    path.write_text(path.read_text()[:-9])
    assert main(["--check", str(path)]) == 1
    assert "theirs.json is damaged" in capsys.readouterr().err and command[0] == []


def test_the_name_of_a_file():
    assert recording_name(example()) == "machine_example_cpu_2025-01-31"
    card = example(gpu="NVIDIA H100 80GB HBM3")
    assert recording_name(card) == "machine_nvidia_h100_80gb_hbm3_2025-01-31"
