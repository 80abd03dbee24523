"""Ranks of real MPI jobs: their weights, their faults, and what a notebook gets of them.

Every job has a time limit, and leaves no process behind.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import ranks as scenarios

from fastdl_lib.core import arrays
from fastdl_lib.measuring.evidence import Provenance
from fastdl_lib.nn.network import binary_mlp
from fastdl_lib.nn.optimizers import SGD
from fastdl_lib.nn.training import fit
from fastdl_lib.scaling import mpi, watchdog
from fastdl_lib.scaling import workers as distributed
from fastdl_lib.scaling.workers import Delayed, all_reduce_bandwidth, mpi_status, run_ranks

# Elsewhere a missing MPI is a failure: requirements.txt installs one.
needs_mpi = pytest.mark.skipif(sys.platform == "win32", reason="no mpich wheel for Windows")

HERE = Path(__file__).resolve().parent
LIMIT_S = 100  # of a job that takes seconds


@pytest.fixture(autouse=True)
def no_process_left(monkeypatch):
    """Whatever a test starts has ended when it ends."""
    mark = str(uuid.uuid4())
    monkeypatch.setenv("FASTDL_TEST_MARK", mark)
    # The programs of the ranks lie in another folder than the package they test.
    monkeypatch.setenv("PYTHONPATH", str(HERE.parents[1]))
    yield
    psutil.wait_procs(marked(mark), timeout=10)
    left = marked(mark)
    assert not left


def marked(mark):
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get("FASTDL_TEST_MARK") == mark and process.pid != os.getpid():
                found.append(process)
    return found


def job(count, scenario, *words, **options):
    """Run a scenario of ranks.py."""
    program = [str(HERE / "ranks.py"), scenario]
    return run_ranks(count, *words, program=program, timeout_s=LIMIT_S, **options)


def train(count, *words, **options):
    """Run the command on few images."""
    few = ["train", "--images", 600, "--test", 100, "--optimizer", "sgd", *words]
    return run_ranks(count, *few, **{"timeout_s": LIMIT_S, "show": False, **options})


# --- the same weights -------------------------------------------------------------------------


@needs_mpi
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ranks_come_to_the_weights_of_one(count):
    found = job(count, "same_weights")
    assert found.keys() == scenarios.CASES.keys()
    for case, result in found.items():
        # float64; floats added up in another order differ in the last digits.
        assert result["weights"] < 1e-11 < 1e-3 < result["moved"], case
        for key in ("losses", "right", "validation"):
            got, wanted = np.array(result[key]).T
            np.testing.assert_allclose(got, wanted, rtol=1e-10, err_msg=f"{case}, {key}")
        assert result["all ranks alike"] and result["dropout is itself again"], case


@needs_mpi
@pytest.mark.parametrize("count", [2, 4])
def test_ranks_train_deep_convnet_as_one_does(count):
    found = job(count, "deep")
    for dtype, tolerance in {"float32": 1e-4, "float64": 1e-12}.items():
        differ, moved = found[dtype]
        assert differ < tolerance * moved, dtype


@needs_mpi
@pytest.mark.parametrize("bucket_bytes", [8, 4_000_000])
def test_gpu_arrays_take_the_same_way(bucket_bytes):
    found = job(2, "on_gpu", bucket_bytes)
    assert found["on the GPU"]
    assert found["weights"] < 1e-12 < 1e-3 < found["moved"]
    assert found["asynchronous"] < 1e-12


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
    buckets = distributed._Buckets(network, 70, lambda flat: sent.append(flat.copy()))
    network.loss_and_gradients(*(array[:5] for array in scenarios.toy_data()))
    wanted = {name: gradient.copy() for name, gradient in network.gradients.items()}
    for name in reversed(network.layers):
        buckets.after_layer(name)
        after.append(len(sent))
    # All weights are as large as a bucket. The biases of fc and conv2 fill one, conv's is left.
    assert [a.nbytes for n, a in network.parameters.items() if "bias" in n] == [48, 48, 24]
    assert after == [1, 1, 1, 1, 3, 3, 3, 5]
    gone = np.concatenate(sent)
    assert gone.size == network.parameter_count
    np.testing.assert_array_equal(
        np.sort(gone), np.sort(np.concatenate([gradient.ravel() for gradient in wanted.values()]))
    )
    for name, gradient in network.gradients.items():
        np.testing.assert_array_equal(gradient, wanted[name])
        axes = distributed._axes(network.parameters[name])
        assert gradient.transpose(axes).flags.c_contiguous


def test_what_is_sent_is_what_the_optimizer_sees():
    network = scenarios.toy()

    def double(flat):
        flat *= 2

    for bucket_bytes in (8, 70, 10**6):
        buckets = distributed._Buckets(network, bucket_bytes, double)
        for _ in range(2):
            network.loss_and_gradients(*scenarios.toy_data(5))
            wanted = {name: 2 * gradient for name, gradient in network.gradients.items()}
            for name in reversed(network.layers):
                buckets.after_layer(name)
            for name, gradient in network.gradients.items():
                np.testing.assert_array_equal(gradient, wanted[name])


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
        distributed._Buckets(network, 8, send).after_layer("conv2")
        np.testing.assert_array_equal(layer.gradients["weight"], 2 * values)
    np.testing.assert_array_equal(sent[0], sent[2])  # 1 and 3 are the bias


@needs_mpi
def test_only_rank_0_shows_progress(capfd):
    result = train(4, show=True)
    out, err = capfd.readouterr()
    assert re.findall(r"epoch 1/1(?=.*loss)", out) == ["epoch 1/1"]
    assert out.count("Test: ") == 1 and out.count("each on") == 1
    assert "1 thread" in out
    assert (result["ranks"], result["threads"], len(result["waited_s"])) == (4, 1, 4)
    assert not err


# --- faults -----------------------------------------------------------------------------------


@needs_mpi
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    "how, message",
    [
        ("kill", r"rank {} \(process \d+\) was killed, or left before the end, in step \d"),
        ("hang", r"rank {} \(process \d+\) hangs in step \d: no sign of life for \d s"),
        ("raise", r"rank {} of 2 failed in step 3: RuntimeError: a fault that was asked for\."),
        ("exit", r"rank {} of 2 failed in step 3: it left with sys.exit\(0\)"),
    ],
)
def test_a_rank_that_goes_wrong_ends_the_job_and_is_named(rank, how, message):
    with pytest.raises(RuntimeError) as error:
        train(2, "--fault", f"{how}:{rank}:3", "--patience", 5)
    named = [line for line in str(error.value).splitlines() if "rank " in line]
    assert len(named) == 1 and re.search(message.format(rank), named[0]), str(error.value)


@needs_mpi
def test_the_plain_command_names_the_rank_too():
    words = "-n 2 {} -m mpi4py -m fastdl_lib.scaling.workers train --images 600 --fault kill:1:3"
    command = [mpi._mpiexec(), *words.format(sys.executable).split()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    assert result.returncode == 9
    assert re.search(r"rank 1 \(process \d+\) was killed", result.stderr)


@needs_mpi
def test_a_hanging_rank_shows_where_it_stands():
    words = "-n 2 {} -m mpi4py -m fastdl_lib.scaling.workers train --images 600 --fault hang:1:3"
    command = [mpi._mpiexec(), *words.format(sys.executable).split(), "--patience", "5"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    assert result.returncode != 0
    assert re.search(r"rank 1 .* hangs[\s\S]*in faulty", result.stderr)


@needs_mpi
def test_a_rank_that_leaves_without_a_word_is_named():
    with pytest.raises(RuntimeError, match=r"rank 1 \(process \d+\) was killed, or left"):
        job(2, "leave")


@needs_mpi
def test_ranks_that_all_wait_are_not_left_waiting():
    with pytest.raises(RuntimeError, match=r"rank \d of 2 failed .* waited for the other ranks"):
        job(2, "deadlock")


@needs_mpi
def test_ranks_that_call_differently_are_refused():
    with pytest.raises(RuntimeError, match=r"rank 1 of 2 .* its seed is 1, rank 0's 0; all ranks"):
        job(2, "disagree")


@needs_mpi
def test_a_late_job_is_ended():
    with pytest.raises(TimeoutError, match="the job of 2 ranks was ended after 6 s"):
        train(2, "--fault", "hang:1:3", "--patience", 1000, timeout_s=6)


@needs_mpi
def test_a_restart_goes_on_to_the_same_weights(tmp_path):
    run = ["--epochs", 3, "--batch", 100, "--dropout", "both"]
    whole = train(2, *run, "--out", tmp_path / "whole.npz")
    broken = [*run, "--checkpoint", tmp_path / "run.npz", "--out", tmp_path / "again.npz"]
    with pytest.raises(RuntimeError, match="rank 1"):  # six steps an epoch
        train(2, *broken, "--fault", "kill:1:9")
    copy = tmp_path / "copy.npz"
    copy.write_bytes((tmp_path / "run.npz").read_bytes())
    # A second fault, of the other rank and the other kind, in the last epoch.
    with pytest.raises(RuntimeError, match="rank 0"):
        train(2, *broken, "--fault", "raise:0:8")
    again = train(2, *broken)
    assert again["weights"] == whole["weights"]
    weights = [dict(np.load(tmp_path / name)) for name in ("whole.npz", "again.npz")]
    for name, weight in weights[0].items():
        np.testing.assert_array_equal(weights[1][name], weight)
    facts = [[(e["epoch"], e["loss"], e["accuracy"]) for e in r["epochs"]] for r in (whole, again)]
    assert facts[0] == facts[1] and len(facts[0]) == 3

    # On another number of ranks, too: floats add up in another order.
    broken[broken.index(tmp_path / "run.npz")] = copy
    other = train(1, *broken)
    assert [epoch["loss"] for epoch in other["epochs"]] == pytest.approx(
        [epoch["loss"] for epoch in whole["epochs"]], rel=1e-4
    )
    assert other["epochs"][0] == again["epochs"][0] or facts[0][0] == (
        1,
        other["epochs"][0]["loss"],
        other["epochs"][0]["accuracy"],
    )


# --- asynchronous -----------------------------------------------------------------------------


@needs_mpi
def test_asynchronous_training(tmp_path):
    found = job(4, "asynchronous", tmp_path / "run.npz")
    serial = found["serial"]
    assert serial["weights"] == 0 and serial["moved"] > 1e-3
    got, wanted = np.array(serial["losses"]).T
    np.testing.assert_allclose(got, wanted, rtol=1e-12)
    assert serial["staleness"] == {"0": 16} and serial["validated"]

    stale = {int(age): count for age, count in found["stale"]["staleness"].items()}
    assert sum(stale.values()) == 16  # two epochs of 60 images in batches of 8
    # Three ranks begin each epoch with the same weights; nobody may be more than two steps behind.
    assert set(stale) == {0, 1, 2}
    assert found["stale"]["mean"] == sum(age * n for age, n in stale.items()) / 16
    assert found["again"] == {"staleness": {}, "epochs": 2}


@needs_mpi
def test_an_asynchronous_run_goes_on_too(tmp_path):
    run = ["async", "--images", 600, "--test", 100, "--epochs", 2, "--max-staleness", 1]
    run += ["--checkpoint", tmp_path / "run.npz"]
    with pytest.raises(RuntimeError, match="rank 2"):
        run_ranks(3, *run, "--fault", "kill:2:5", timeout_s=LIMIT_S, show=False)
    result = run_ranks(3, *run, timeout_s=LIMIT_S, show=False)
    assert [epoch["epoch"] for epoch in result["epochs"]] == [1, 2]
    with pytest.raises(RuntimeError, match=r"its optimizer is Adam, gradients up to 1 steps old"):
        train(2, "--epochs", 2, "--optimizer", "adam", "--checkpoint", tmp_path / "run.npz")


@needs_mpi
def test_a_parameter_server_alone_is_refused():
    with pytest.raises(RuntimeError, match=r"rank 0 of 1 .* at least one rank that computes"):
        run_ranks(1, "async", "--images", 100, timeout_s=LIMIT_S, show=False)


def test_a_parameter_server_takes_no_loss_scale():
    server = distributed._Server(SimpleNamespace(size=2), max_staleness=0, steps=1)
    with pytest.raises(ValueError, match=r"takes no loss scale, got 8\.0: .*train in float32"):
        server.gradients(scenarios.toy(), *scenarios.toy_data(2), 2, loss_scale=8.0)


@pytest.mark.parametrize("staleness", [0, 1, 4])
def test_delayed_gradients_are_of_old_weights(staleness):
    x, labels = scenarios.toy_data(48)
    run = {"epochs": 1, "batch": 6, "progress": False}
    network, seen = scenarios.toy(dropout=False), []
    delayed = Delayed(staleness)
    compute = delayed.gradients

    def spy(network, x, labels, images, loss_scale):
        seen.append((x, labels))
        return compute(network, x, labels, images, loss_scale)

    delayed.gradients = spy
    fit(network, x, labels, optimizer=SGD(0.1), workers=delayed, **run)

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


def test_batch_norm_is_not_shared_out():
    network, two = binary_mlp(hidden=8), SimpleNamespace(size=2, rank=0)
    x, labels = np.zeros((4, 1, 28, 28), np.float32), np.arange(4)
    with pytest.raises(ValueError, match=r"has batch normalisation, .* train it in one process"):
        distributed.MpiWorkers.begin(two, network, SGD(0.1), {}, [])
    with pytest.raises(ValueError, match=r"has batch normalisation, .* train it in one process"):
        distributed.fit_async(
            network, x, labels, epochs=1, optimizer=SGD(0.1), ranks=two, max_staleness=1
        )


@pytest.mark.parametrize(
    "value, error", [(-1, ValueError), (1.5, TypeError), (True, TypeError), ("2", TypeError)]
)
def test_a_staleness_that_is_none_is_refused(value, error):
    with pytest.raises(error, match="staleness"):
        Delayed(value)


# --- the watchdog, without MPI ------------------------------------------------------------------


WATCHED = """
import sys, time
sys.stdin.readline()
from fastdl_lib.scaling import watchdog
watchdog.show_stack_when_asked()
sign = watchdog.Sign({folder!r}, int(sys.argv[1]))
sign.beat(step=7)
print("ready", flush=True)
for line in sys.stdin:
    word = line.strip()
    if word == "beat":
        sign.beat(step=7)
    elif word == "finished":
        sign.finished()
    elif word == "failed":
        sign.failed()
        break
    elif word == "hang":
        break
if word == "hang":
    time.sleep(1000)
"""

posix = pytest.mark.skipif(os.name == "nt", reason="there is no MPI job to watch on Windows")


@pytest.fixture
def two(tmp_path):
    """Two watched processes, ranks 5 and 6, words to them, and what was said in the end."""
    code = textwrap.dedent(WATCHED).format(folder=str(tmp_path / "signs"))
    (tmp_path / "signs").mkdir()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with open(tmp_path / "said", "w") as said:
        old = os.dup(2)
        os.dup2(said.fileno(), 2)  # their stderr is this process's
    try:
        watched = [
            subprocess.Popen([sys.executable, "-c", code, str(row)], **pipes) for row in range(2)
        ]
        numbers = {5 + row: process.pid for row, process in enumerate(watched)}
        watching = watchdog.start(tmp_path / "signs", numbers, patience_s=1.0)
    finally:
        os.dup2(old, 2)
        os.close(old)

    def tell(row, word):
        watched[row].stdin.write(word + "\n")
        watched[row].stdin.flush()

    for row, process in enumerate(watched):
        tell(row, "begin")
        process.stdout.readline()

    def end():
        watching.wait(timeout=LIMIT_S)
        return (tmp_path / "said").read_text()

    yield watched, tell, end
    for process in (*watched, watching):
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def keep_beating(tell, rows, times=40):
    for _ in range(times):
        for row in rows:
            tell(row, "beat")
        time.sleep(0.05)


@posix
def test_the_watchdog_says_who_was_killed_and_ends_the_rest(two):
    watched, _, end = two
    watched[1].send_signal(signal.SIGKILL)
    watched[1].wait()
    assert end().startswith(f"rank 6 (process {watched[1].pid}) was killed, or left")
    assert watched[0].wait(timeout=LIMIT_S) == -signal.SIGKILL


@posix
def test_the_watchdog_keeps_silent_when_all_goes_well(two):
    watched, tell, end = two
    tell(0, "finished")
    tell(1, "finished")
    assert end() == ""
    assert watched[0].poll() is None


@posix
def test_the_watchdog_leaves_the_word_to_who_has_failed(two):
    watched, tell, end = two
    tell(0, "failed")
    assert end() == ""
    assert watched[1].wait(timeout=LIMIT_S) == -signal.SIGKILL


@posix
@pytest.mark.parametrize("frozen", [False, True])
def test_the_watchdog_ends_who_hangs(two, frozen):
    watched, tell, end = two
    if frozen:
        watched[0].send_signal(signal.SIGSTOP)
    else:
        tell(0, "hang")
    keep_beating(tell, [1])
    said = end()
    assert said.startswith(f"rank 5 (process {watched[0].pid}) hangs in step 7")
    assert ("Stack (most recent call first)" in said) is not frozen
    assert watched[0].wait(timeout=LIMIT_S) == -signal.SIGKILL


@posix
def test_a_process_may_take_long_until_its_first_sign(tmp_path):
    (tmp_path / "signs").write_bytes(bytes(watchdog.ROW.size))
    os.mkfifo(tmp_path / "0")
    watched = watchdog._Watched(str(tmp_path), 0, rank=3, pid=os.getpid())
    sign = watchdog.Sign(tmp_path, 0)

    def hangs_after(*silent_s):
        for passed_s in silent_s:
            watched.listen(passed_s)
        return watched.hangs(patience_s=10)

    assert not hangs_after(0, 50)
    assert hangs_after(20)
    sign.beat(step=1)
    assert not hangs_after(20)
    assert not hangs_after(9)
    sign.beat(step=2)
    assert not hangs_after(20, 9)
    assert hangs_after(2)
    sign.finished()
    assert not hangs_after(100)
    os.close(watched.pipe)


# --- from a notebook --------------------------------------------------------------------------


@pytest.fixture
def status(monkeypatch):
    """mpi_status() that looks anew, and for itself only."""
    monkeypatch.setattr(mpi, "mpi_status", fresh := mpi_status.__wrapped__)
    return fresh


def test_windows_is_told_so_in_a_sentence(status, monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    available, library, reason = status()
    assert (available, library) == (False, "") and "Windows" in reason
    assert reason.count(". ") == 0 and reason.endswith(".")
    with pytest.raises(RuntimeError, match="Windows"):
        run_ranks(2, "train")


def test_a_missing_mpiexec_is_named(status, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(mpi, "_mpiexec", lambda: None)
    assert "pip install" in status().reason
    with pytest.raises(RuntimeError, match="mpiexec is neither beside this Python nor on PATH"):
        run_ranks(2, "train")


@posix
def test_a_missing_library_is_named(status, monkeypatch, tmp_path):
    broken = tmp_path / "mpiexec"
    broken.write_text("#!/bin/sh\necho 'RuntimeError: cannot load MPI library' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(mpi, "_mpiexec", lambda: str(broken))
    assert "a job of one rank failed (RuntimeError: cannot load MPI library)" in status().reason
    broken.chmod(0o644)
    assert not status().available


@needs_mpi
def test_the_library_is_named():
    assert re.match(r"[\w ]+ [\d.]+", mpi_status().name)


@needs_mpi
def test_a_wrong_word_is_said_once():
    with pytest.raises(RuntimeError) as error:
        run_ranks(3, "bogus", timeout_s=LIMIT_S, show=False)
    assert str(error.value).count("invalid choice: 'bogus'") == 1


@pytest.mark.parametrize("ranks, timeout_s", [(0, 10), (2, 0), (2.5, 10), ("2", 10)])
def test_numbers_of_ranks_and_seconds_are_checked(ranks, timeout_s):
    with pytest.raises((TypeError, ValueError), match=r"ranks must|timeout_s must"):
        run_ranks(ranks, "train", timeout_s=timeout_s)


@needs_mpi
def test_bandwidth_is_measured():
    measured = all_reduce_bandwidth(4_000_000, ranks=2, rounds=3)
    assert measured.unit == "GB/s" and len(measured.samples) == 3
    assert measured.provenance is Provenance.MEASURED and measured.machine.blas_threads in (0, 1)
    assert measured.conditions == {"ranks": 2, "bytes": 4_000_000, "threads": 1}


@needs_mpi
def test_steps_are_measured_in_every_way():
    words = ["steps", "--batch", 6, "--steps", 1, "--rounds", 2]
    result = run_ranks(2, *words, timeout_s=LIMIT_S, show=False)
    assert result["gradient_bytes"] == 4 * 123_552
    kinds = result["step_s"]
    assert set(kinds) >= {"one rank", "all ranks", "all ranks, no overlap"}
    assert all(len(samples) == 2 and min(samples) > 0 for samples in kinds.values())
