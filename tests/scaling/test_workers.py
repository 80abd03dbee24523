"""Ranks of real MPI jobs: their weights and their faults; and gradients that come late.

Every job has a time limit, and leaves no process behind.
"""

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import ranks as scenarios
from helpers import needs_mpi

from fastdl_lib.binary.networks import binary_mlp
from fastdl_lib.core import arrays
from fastdl_lib.nn.optimizers import SGD
from fastdl_lib.nn.training import fit
from fastdl_lib.nn.zoo import deep_convnet
from fastdl_lib.precision.formats import INT8
from fastdl_lib.precision.mixed import Precision, in_precision
from fastdl_lib.scaling import workers
from fastdl_lib.scaling.mpi import run_program
from fastdl_lib.scaling.workers import Delayed

pytestmark = pytest.mark.usefixtures("no_process_left")


def job(count, scenario):
    """Run a scenario of ranks.py; it takes seconds where the machine is not busy."""
    program = [str(Path(__file__).with_name("ranks.py")), scenario]
    return run_program(count, program, timeout_s=300)


# --- the same weights -------------------------------------------------------------------------


# Three share no batch evenly, and two have nothing to do in the last step; four on Mondays too.
COUNTS = [2, 3, *[4] * (os.environ.get("FASTDL_WHOLE_COURSE") == "1")]


@needs_mpi
@pytest.mark.parametrize("count", COUNTS)
def test_ranks_come_to_the_weights_of_one(count):
    found = job(count, "weights")
    same = found["same"]
    assert list(same) == list(scenarios.CASES if count == 2 else scenarios.EVERY_SIZE)
    for case, result in same.items():
        # float64; floats added up in another order differ in the last digits.
        assert result["weights"] < 1e-11 < 1e-3 < result["moved"], case
        assert len(result["epochs"]) == 3
        facts = np.array(result["epochs"])  # (epochs, 6): of all ranks and of one, in turn
        np.testing.assert_allclose(facts[:, ::2], facts[:, 1::2], rtol=1e-10, err_msg=case)
        assert result["all ranks alike"] and result["dropout draws alone again"] < 1e-9, case
    differ, moved = found["float32"]
    assert differ < 1e-3 * moved, "sums depend on how the batch is shared out"
    for result in found.get("gpu", []):
        assert result["on the GPU"]
        assert result["weights"] < 1e-12 < 1e-3 < result["moved"]
    if count == 2:
        assert found["one core"]["1"] > 0 == found["one core"]["2"]
        assert not found["shared memory"], "a killed job would leave them"


def test_each_rank_takes_the_gpu_of_its_number(fake_gpu, monkeypatch):
    used = []
    device = lambda number: SimpleNamespace(use=lambda: used.append(number))  # noqa: E731
    monkeypatch.setattr(fake_gpu.cuda, "Device", device)
    monkeypatch.setattr(fake_gpu.cuda.runtime, "getDeviceCount", lambda: 2)
    for number in range(3):
        arrays.use_gpu(number)
    assert used == [0, 1, 0]


def test_gradients_go_off_as_backward_makes_them():
    network, sent, after = scenarios.toy(), [], []

    def double(flat):
        sent.append(flat.copy())
        flat *= 2

    sending = workers._Gradients(network, 70, double)
    for _ in range(2):  # the second time into the same buckets
        sent.clear(), after.clear()
        network.loss_and_gradients(*scenarios.toy_data(5))
        wanted = {name: gradient.copy() for name, gradient in network.gradients.items()}
        for name in reversed(network.layers):
            sending.after_layer(name)
            after.append(len(sent))
        # All weights are as large as a bucket. The biases of fc and conv2 fill one, conv's is left.
        assert [a.nbytes for n, a in network.parameters.items() if "bias" in n] == [48, 48, 24]
        assert after == [1, 1, 1, 1, 3, 3, 3, 5]
        made = np.concatenate([gradient.ravel() for gradient in wanted.values()])
        np.testing.assert_array_equal(np.sort(np.concatenate(sent)), np.sort(made))
        for name, gradient in network.gradients.items():  # the optimiser sees what was sent
            np.testing.assert_array_equal(gradient, 2 * wanted[name])


def test_a_gradient_in_another_order_of_memory_goes_in_its_weights():
    """Two ranks may compute by two algorithms, which lay their gradients out differently."""
    network, sent = scenarios.toy(), []
    network.loss_and_gradients(*scenarios.toy_data(5))
    layer = network.layers["conv2"]
    weight = layer.parameters["weight"]
    values = np.arange(weight.size, dtype=float).reshape(weight.shape)

    def send(flat):
        sent.append(flat.copy())
        flat *= 2

    for layout in (np.ascontiguousarray, np.asfortranarray):
        layer.gradients = {**layer.gradients, "weight": layout(values)}
        workers._Gradients(network, 8, send).after_layer("conv2")
        np.testing.assert_array_equal(layer.gradients["weight"], 2 * values)
    np.testing.assert_array_equal(sent[0], sent[2])  # 1 and 3 are the bias


# --- faults -----------------------------------------------------------------------------------


@needs_mpi
@pytest.mark.parametrize(
    ("scenario", "says"),
    [
        ("leave", r"rank 1 \(process \d+\) was killed, or left"),
        ("deadlock", r"rank \d of 2 failed .* waited for the other ranks"),
        ("disagree", r"rank 1 of 2 .* its seed is 1, rank 0's 0; all ranks"),
    ],
)
def test_what_goes_wrong_among_ranks_is_named(scenario, says):
    with pytest.raises(RuntimeError, match=says):
        job(2, scenario)


@pytest.mark.parametrize(
    ("make", "layer"),
    [
        (lambda: binary_mlp(hidden=8), "a BatchNorm"),
        (lambda: in_precision(deep_convnet(), Precision(INT8)), "input stored, a Rounding"),
    ],
)
def test_what_depends_on_the_whole_batch_is_not_shared_out(make, layer):
    network, two = make(), SimpleNamespace(size=2, rank=0)
    with pytest.raises(ValueError, match=rf"{layer}, .* train it in one process"):
        workers.MpiWorkers.begin(two, network, SGD(0.1), {}, [])


# --- gradients that come late -----------------------------------------------------------------


@pytest.mark.parametrize("staleness", [0, 1, 4])
def test_delayed_gradients_are_of_old_weights(staleness):
    x, labels = scenarios.toy_data(48)
    run = {"epochs": 1, "batch": 6, "progress": False}
    network, seen = scenarios.toy(dropout=False), []

    class Spied(Delayed):
        def gradients(self, network, x, labels, *rest):
            seen.append((x, labels))
            return super().gradients(network, x, labels, *rest)

    fit(network, x, labels, optimizer=SGD(0.1), workers=Spied(staleness), **run)

    other = scenarios.toy(dropout=False)
    weights = [{name: w.copy() for name, w in other.parameters.items()}]
    for step, (images, targets) in enumerate(seen):
        for name, old in weights[max(0, step - staleness)].items():
            other.parameters[name][...] = old
        other.loss_and_gradients(images, targets)
        weights.append({n: w - 0.1 * other.gradients[n] for n, w in weights[-1].items()})
    for name, wanted in weights[-1].items():
        np.testing.assert_allclose(network.parameters[name], wanted, rtol=1e-12, atol=1e-15)


def test_a_delayed_run_does_not_go_on(tmp_path):
    x, labels = scenarios.toy_data(12)
    run = {"optimizer": SGD(0.1), "progress": False, "checkpoint": tmp_path / "run.npz"}
    fit(scenarios.toy(), x, labels, epochs=1, workers=Delayed(2), **run)
    with pytest.raises(ValueError, match="cannot go on"):
        fit(scenarios.toy(), x, labels, epochs=1, workers=Delayed(2), **run)
    with pytest.raises(ValueError, match="its optimizer is SGD, gradients 2 steps old"):
        fit(scenarios.toy(), x, labels, epochs=1, **run)


@pytest.mark.parametrize(("value", "error"), [(-1, ValueError), (1.5, TypeError)])
def test_a_staleness_that_is_none_is_refused(value, error):
    with pytest.raises(error, match="staleness"):
        Delayed(value)
