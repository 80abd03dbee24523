"""Speeds on either side: checked before they are timed, and everything put back afterwards."""

import dataclasses

import numpy as np
import pytest
from helpers import example

from fastdl_lib.core.arrays import array_module
from fastdl_lib.measuring.evidence import Measurement, Provenance
from fastdl_lib.measuring.published import published
from fastdl_lib.measuring.recordings import Recording
from fastdl_lib.measuring.speeds import (
    forward_ms,
    published_training_speeds,
    recorded_training_speeds,
    training_speed,
)
from fastdl_lib.nn.layers import Conv2d
from fastdl_lib.nn.optimizers import SGD
from fastdl_lib.nn.zoo import deep_convnet

QUICK = {"budget_s": 0.001, "min_repeats": 1}


def test_a_right_answer_is_timed_in_the_way_asked_for_and_a_wrong_one_not_at_all():
    layer = Conv2d(2, 3, 3, padding=1, rng=np.random.default_rng(0))
    x = np.random.default_rng(1).standard_normal((4, 2, 6, 5), dtype=np.float32)
    right = layer.forward(x)
    layer.algorithm = "blocked"
    run = forward_ms(layer, x, algorithm="im2col", expected=right[:2], threads=1, **QUICK)
    assert (run.unit, run.conditions["device"], run.conditions["threads"]) == ("ms", "cpu", 1)
    assert run.conditions["batch"] == 4
    assert layer.algorithm == "blocked"
    for wrong in (1.002 * right, np.full_like(right, np.nan)):
        with pytest.raises(ArithmeticError, match=r"off by .* of the largest .* is not timed"):
            forward_ms(layer, x, expected=wrong, **QUICK)


def places(network):
    return {array_module(array).__name__ for array in network.parameters.values()}


def test_a_network_goes_to_the_gpu_and_comes_back(fake_gpu, monkeypatch):
    network, images = deep_convnet(), np.zeros((2, 1, 28, 28), np.float32)
    seen = []
    inner = network.forward
    monkeypatch.setattr(network, "forward", lambda x: seen.append(array_module(x)) or inner(x))
    run = forward_ms(network, images, algorithm="im2col", device="gpu", **QUICK)
    where = {"device": "gpu", "warmup": 1, "batch": 2, "algorithm": "im2col"}
    assert run.conditions == where
    assert {module.__name__ for module in seen} == {"cupy"} and places(network) == {"numpy"}
    with pytest.raises(ValueError, match="takes a batch of shape"):
        forward_ms(network, np.zeros((2, 3, 28, 28), np.float32), device="gpu", **QUICK)
    assert places(network) == {"numpy"}


def test_training_moves_once_and_takes_whole_steps(fake_gpu):
    network = deep_convnet()
    before = {name: array.copy() for name, array in network.parameters.items()}
    x = np.random.default_rng(0).random((6, 1, 28, 28), dtype=np.float32)
    sgd = SGD(1e-6, momentum=0.9)
    how = {"algorithm": "im2col", "device": "gpu", "name": "here"}
    run = training_speed(network, x, np.arange(6), sgd, **how, **QUICK)
    assert (run.name, run.unit, run.conditions["batch"]) == ("here", "images/s", 6)
    assert fake_gpu.counts["to_gpu"] >= len(before) + 2 and places(network) == {"numpy"}
    assert any(not np.array_equal(before[n], a) for n, a in network.parameters.items())
    assert all(np.allclose(before[n], a, atol=1e-3) for n, a in network.parameters.items())
    assert not sgd.state and not network.gradients


def test_images_a_second_are_the_batch_over_the_time(monkeypatch):
    timed = Measurement.measured("step", "ms", 250.0, machine=example())
    monkeypatch.setattr("fastdl_lib.measuring.speeds.benchmark", lambda *_, **__: timed)
    x = np.zeros((5, 1, 28, 28), np.float32)
    assert training_speed(deep_convnet(), x, np.arange(5), SGD(1e-6)).median == 20


def recorded(ms, **changes):
    conditions = {
        "part": "pass", "direction": "training", "dtype": "float32", "device": "cpu",
        "network": "AlexNet", "batch": 8, **changes,
    }  # fmt: skip
    kind = Provenance.RECORDED
    return Measurement("a pass", "ms", (ms,), kind, machine=example(), conditions=conditions)


def test_the_fastest_recorded_way_counts():
    runs = (
        recorded(400.0, threads=1),
        recorded(250.0, threads=8),
        recorded(1000.0, batch=32, threads=8),
        recorded(10.0, direction="forward"),
        recorded(10.0, dtype="float16"),
        recorded(10.0, network="DeepConvNet"),
        recorded(4.0, device="gpu"),
    )
    recording = Recording(example(), "make record", runs)
    speeds = recorded_training_speeds(recording, "cpu")
    assert {batch: speed.median for batch, speed in speeds.items()} == {8: 32, 32: 32}
    assert speeds[8].provenance is Provenance.RECORDED and speeds[8].conditions["threads"] == 8
    assert speeds[8].name == f"{example().cpu}, batch 8"
    (on_gpu,) = recorded_training_speeds(recording, "gpu").values()
    assert (on_gpu.name, on_gpu.median) == (f"{example().gpu}, batch 8", 2000)
    without = dataclasses.replace(recording, measurements=runs[3:4])
    assert recorded_training_speeds(without, "cpu") == {}


def test_published_speeds_are_the_tables():
    speeds = published_training_speeds()
    assert speeds.keys() == {row["run"] for row in published("alexnet_training_speeds").rows}
    assert {speed.provenance for speed in speeds.values()} == {Provenance.PUBLISHED}
    assert (speeds["tf_p100_8"].median, round(speeds["caffe_titan"].median)) == (17822, 195)
    assert speeds["tf_p100_8"].name == "8 x P100, TensorFlow, May 2017"
    r4 = speeds["titanx_cudnn_r4_fp32"]
    assert (round(r4.median), r4.conditions) == (1580, {"device": "gpu", "batch": 128})
    cpu = speeds["cpu_openblas_2015"]
    assert (cpu.name, cpu.conditions["device"]) == ("Intel Core i7-5930K, Caffe + OpenBLAS", "cpu")
