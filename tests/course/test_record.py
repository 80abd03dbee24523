"""A machine's whole run: every branch through the stand-in GPU, and what a recording must stand."""

import dataclasses
import json
import shutil
import types
from functools import partial

import numpy as np
import pytest
from helpers import example, honest, needs_a_known_blas, small_alexnet

from fastdl_lib.core.arrays import array_module, tf32_allowed, to_cpu
from fastdl_lib.core.datasets import data_folder
from fastdl_lib.core.pretend_gpu import pretend_gpu
from fastdl_lib.core.threads import blas_threads
from fastdl_lib.course import machine_parts, record
from fastdl_lib.course.machine_parts import PARTS, Plan, Sizes, measure_machine
from fastdl_lib.course.plausible import check_recording
from fastdl_lib.course.record import check_place, main, recording_name, save
from fastdl_lib.measuring import timing
from fastdl_lib.measuring.recordings import Recording, read_recording, write_recording
from fastdl_lib.nn.layers import Conv2d, Dropout, Flatten, Linear, ReLU
from fastdl_lib.nn.network import Network

HONEST = honest("gpu")
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


def small_digits():
    layers = [("conv", Conv2d(1, 4, 5, stride=3, rng=np.random.default_rng(0))), ("relu", ReLU())]
    layers += [("flatten", Flatten()), ("drop", Dropout(0.5, seed=0))]
    layers += [("fc", Linear(4 * 8 * 8, 10, rng=np.random.default_rng(0)))]
    return Network("small digits", layers, (1, 28, 28))


SMALL = Plan(
    network=small_alexnet,
    digits=small_digits,
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
    command = "FASTDL_TIME_SCALE=0.001 python -m fastdl_lib.course.record --minutes 8"
    assert recording.command == command
    for m in recording.measurements:
        assert m.machine.gpu == "Stand-in GPU"
        assert ("threads" in m.conditions) == (m.conditions["device"] == "cpu"), m.name
        assert all(float(f"{sample:.4g}") == sample for sample in m.samples)
    assert lines[0].startswith("0:0") and "Stand-in GPU" in lines[0]
    assert any("to_gpu, 64 bytes, GPU: " in line and "GB/s" in line for line in lines)
    assert not [line for line in lines if "left out" in line]
    assert "the GPU is the tests' stand-in." in check_recording(recording)


@pytest.mark.parametrize(
    ("conditions", "count"),
    [
        ({"part": "ceiling", "what": "product", "device": "gpu"}, 4),
        ({"part": "ceiling", "dtype": "float16", "device": "cpu"}, 1),
        ({"part": "ceiling", "what": "copy"}, 2),
        ({"part": "dtypes", "what": "product", "device": "gpu", "size": 48}, 3),
        ({"part": "dtypes", "what": "product", "device": "cpu", "dtype": "float16", "size": 16}, 1),
        ({"part": "dtypes", "what": "add", "device": "cpu", "size": 100, "threads": 1}, 3),
        ({"part": "dtypes", "what": "forward", "device": "cpu", "network": "small digits"}, 2),
        ({"part": "dtypes", "what": "training", "batch": 3}, 3),
        ({"part": "binary", "device": "gpu", "rows": 5, "outputs": 6, "length": 70}, 3),
        ({"part": "binary", "device": "cpu", "way": "float32", "threads": 2}, 1),
        ({"part": "sweep", "device": "gpu"}, 2),
        ({"part": "transfer", "direction": "to_gpu", "bytes": 64}, 1),
        ({"part": "wrong"}, 4),
        ({"part": "chain", "steps": 3}, 1),
        ({"part": "race", "device": "cpu", "algorithm": "loops"}, 2),
        ({"part": "race", "device": "gpu", "layer": "conv1"}, 2),
        ({"part": "training", "network": "small digits", "what": "speed"}, 2),
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
    with pytest.raises(ValueError, match=r"a part must be one of 'clock', .*got 'speed'"):
        measure_machine(dataclasses.replace(SMALL, parts=("speed",)))


def test_when_the_time_is_up_the_rest_is_left_out_and_said(quick):
    lines = []
    recording = measure_machine(dataclasses.replace(SMALL, minutes=1e-9), lines.append)
    assert recording.measurements == ()
    assert sum("left out, the time is up" in line for line in lines) > 20
    assert any("nothing was measured of" in fault for fault in check_recording(recording))


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
            weight = network.parameters["fc.weight"]
            master = self.state["master.fc.weight"]
            seen.add((array_module(weight).__name__, str(weight.dtype), str(master.dtype)))
            assert self.loss_scale == 1024 and self.skipped == 0

    monkeypatch.setattr(machine_parts, "MixedPrecision", Watched)
    with pretend_gpu():
        measure_machine(dataclasses.replace(SMALL, parts=("dtypes",)), str)
    assert seen == {("cupy", "float16", "float32")}


# --- the command --------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path, monkeypatch):
    """The command with its measuring replaced; the plans it measured, and the course's folder."""
    (tmp_path / "recordings").mkdir()
    shutil.copytree(data_folder() / "published", tmp_path / "published")
    monkeypatch.setenv("FASTDL_DATA", str(tmp_path))
    monkeypatch.setattr(record, "machine_card", lambda: HONEST.machine)
    plans = []
    monkeypatch.setattr(record, "measure_machine", lambda plan, say: plans.append(plan) or HONEST)
    monkeypatch.setattr(record.psutil, "cpu_percent", lambda interval: 5.0)
    monkeypatch.setattr(record.psutil, "cpu_count", lambda: 4)
    return plans, tmp_path / "recordings"


def test_the_command_writes_where_the_course_looks(command, capsys, monkeypatch):
    plans, folder = command
    assert main([]) == 0
    (path,) = folder.iterdir()
    assert path.name == f"machine_nvidia_h100_80gb_hbm3_{HONEST.machine.date}.json"
    assert read_recording(path).measurements == HONEST.measurements
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
    # Parts never replace a recording that holds more.
    capsys.readouterr()
    assert main(["--out", str(path), "--parts", "sweep"]) == 1
    assert f"{path.name} also holds binary, ceiling," in capsys.readouterr().err
    assert read_recording(path).measurements == HONEST.measurements and len(plans) == 3


def test_what_is_not_accepted_is_said_and_what_is_interrupted_not_written(
    command, capsys, monkeypatch
):
    def interrupted(plan, say):
        raise KeyboardInterrupt

    monkeypatch.setattr(record, "measure_machine", interrupted)
    assert main([]) == 130
    assert "nothing was written" in capsys.readouterr().out and not list(command[1].iterdir())
    bad = dataclasses.replace(HONEST.measurements[0], samples=(1.0, 1.0, 0.0))
    bad = dataclasses.replace(HONEST, measurements=(bad, *HONEST.measurements[1:]))
    monkeypatch.setattr(record, "measure_machine", lambda plan, say: bad)
    assert main([]) == 1
    assert len(list(command[1].iterdir())) == 1
    out = capsys.readouterr().out
    assert "holds 0.0 GFLOP/s" in out and "is not accepted. Record again" in out


def test_what_is_there_and_is_not_this_machines_recording_is_kept(command, capsys):
    plans, folder = command
    path = folder / f"{recording_name(HONEST.machine)}.json"
    write_recording(path, Recording(example(), "make record", ()))
    theirs = path.read_text()
    for text, message in ((theirs, "the recording of another machine"), ("{}", "the schema None")):
        path.write_text(text)
        assert main([]) == 1 and message in capsys.readouterr().err
        assert path.read_text() == text and plans == []


@pytest.mark.parametrize("what", record.OTHERS)
def test_jobs_of_ranks_or_c_files_never_replace_another_recording(
    what, command, capsys, monkeypatch
):
    path = command[1] / "mine.json"
    made = Recording(example(), f"python -m fastdl_lib.course.record {what}", ())
    other = types.SimpleNamespace(RECORDING=path.name, measure=lambda: made)
    monkeypatch.setitem(record.OTHERS, what, other)
    assert main([what, "--out", str(path)]) == main([what, "--out", str(path)]) == 0
    write_recording(path, HONEST)
    assert main([what, "--out", str(path)]) == 1
    assert "mine.json is a recording of something else" in capsys.readouterr().err
    assert read_recording(path).measurements == HONEST.measurements


def test_wrong_words_and_a_wrong_time_scale_are_refused_before_the_work(
    command, capsys, monkeypatch
):
    plans, folder = command
    for arguments, message in (
        (["--minutes", "0"], "must be above 0"),
        (["--minutes", "nan"], "must be above 0"),
        (["--parts", "sweep"], "say with --out where"),
        (["chip", "--parts", "pass", "--out", "chip.json"], "for a machine's recording, not for"),
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        assert message in capsys.readouterr().err
    monkeypatch.setenv("FASTDL_TIME_SCALE", "fast")
    assert main([]) == 1
    assert "FASTDL_TIME_SCALE must be a positive number" in capsys.readouterr().err
    for write in (check_place, partial(save, HONEST)):
        with pytest.raises(ValueError, match=r"a recording is a \.json file"):
            write(folder / "run.txt")
    assert plans == [] and not list(folder.iterdir())


def test_check_judges_a_file(command, tmp_path, capsys):
    path = tmp_path / "theirs.json"
    write_recording(path, HONEST)
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
