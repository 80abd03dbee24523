"""The jobs of chapter 04: the command that ranks run, and its runs, live or replayed."""

import re
import subprocess
import sys

import numpy as np
import pytest
from helpers import needs_mpi

from fastdl_lib.core.checks import Status
from fastdl_lib.core.datasets import data_folder
from fastdl_lib.course import ranks as command
from fastdl_lib.course import record
from fastdl_lib.course.ranks import RANK_RUNS, rank_run, run_ranks
from fastdl_lib.measuring.evidence import Provenance
from fastdl_lib.measuring.recordings import read_recording
from fastdl_lib.nn.zoo import deep_convnet
from fastdl_lib.scaling import mpi

pytestmark = pytest.mark.usefixtures("no_process_left")

LIMIT_S = 300  # of a job that takes seconds where the machine is not busy
ALL = "all ranks"
WAYS = {f"{ALL}, {how}" for how in ("no overlap", "no communication", "a whole batch each")}
KINDS = {
    "all-reduce": {"4", "494208"},
    "steps": {"one rank", ALL, *WAYS},
    "training": {"seconds", "loss", "accuracy"},
}
FEW = ["train", "--images", 180, "--test", 50, "--batch", 30, "--optimizer", "sgd"]


def run(count, *words, **options):
    return run_ranks(count, *words, **{"timeout_s": LIMIT_S, "show": False, **options})


def train(count, *words, **options):
    """Run the command on few images: six steps an epoch."""
    return run(count, *FEW, *words, **options)


# --- the command ------------------------------------------------------------------------------


# Without a network and its images, ranks are there at once.
QUICK = ["all-reduce", "--bytes", 4, "--rounds", 1, "--patience", 60]


@needs_mpi
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("kill:0:0", r"rank 0 \(process \d+\) was killed, or left before the end, in step 0"),
        ("raise:0:0", r"rank 0 of 2 failed in step 0: RuntimeError: a fault that was asked for\."),
        ("exit:1:0", r"rank 1 of 2 failed in step 0: it left with sys.exit\(0\)"),
    ],
)
def test_a_rank_that_goes_wrong_ends_the_job_and_is_named(fault, message):
    with pytest.raises(RuntimeError) as error:
        run(2, *QUICK, "--fault", fault)
    named = [line for line in str(error.value).splitlines() if "rank " in line]
    assert len(named) == 1 and re.search(message, named[0]), str(error.value)


@needs_mpi
def test_the_plain_command_names_the_rank_and_shows_where_it_stands():
    words = [*FEW, "--fault", "hang:0:3", "--patience", 3]
    message = r"rank 0 .* hangs in step \d: no sign of life for \d+ s[\s\S]*in faulty"
    start = [mpi._mpiexec(), "-n", 2, sys.executable, "-m", "mpi4py"]
    words = [*start, "-m", "fastdl_lib.course.ranks", *words]
    result = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=LIMIT_S)
    assert result.returncode != 0
    assert re.search(message, result.stderr)


@needs_mpi
def test_a_late_job_is_ended():
    with pytest.raises(TimeoutError, match="the job of 2 ranks was ended after 3 s"):
        run(2, *QUICK, "--fault", "hang:1:0", timeout_s=3)


@needs_mpi
def test_a_restart_goes_on_to_the_same_weights(tmp_path, capfd):
    words = ["--epochs", 3, "--dropout", "both"]
    whole = train(2, *words, "--out", tmp_path / "whole.npz", show=True)
    out, err = capfd.readouterr()  # of rank 0 alone
    assert "epoch 1/3" in out and out.count("Test: ") == 1 and out.count("each on") == 1
    assert "1 thread" in out and not err
    assert (whole["ranks"], whole["threads"], len(whole["waited_s"])) == (2, 1, 2)
    broken = [*words, "--checkpoint", tmp_path / "run.npz", "--out", tmp_path / "again.npz"]
    with pytest.raises(RuntimeError, match=r"rank 1 .* in step \d"):
        train(2, *broken, "--fault", "kill:1:9")
    copy = tmp_path / "copy.npz"
    copy.write_bytes((tmp_path / "run.npz").read_bytes())
    again = train(2, *broken)
    assert again["weights"] == whole["weights"]
    weights = [dict(np.load(tmp_path / name)) for name in ("whole.npz", "again.npz")]
    for name, weight in weights[0].items():
        np.testing.assert_array_equal(weights[1][name], weight)
    facts = [[(e["epoch"], e["loss"], e["accuracy"]) for e in r["epochs"]] for r in (whole, again)]
    assert facts[0] == facts[1] and len(facts[0]) == 3
    # On another number of ranks, too: floats add up in another order.
    other = train(1, *words, "--checkpoint", copy)["epochs"]
    losses = [[epoch["loss"] for epoch in epochs] for epochs in (other, whole["epochs"])]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][0] == losses[1][0], "the first epoch was in the checkpoint"


@needs_mpi
def test_a_wrong_word_is_said_once():
    with pytest.raises(RuntimeError) as error:
        run(2, "bogus")
    assert str(error.value).count("invalid choice: 'bogus'") == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("all-reduce --bytes 3", "--bytes: it must be at least 4"),
        ("all-reduce --bytes 8 2", "--bytes: it must be at least 4"),
        ("all-reduce --bytes 8 99999999999999", "takes 200,000.0 GB .* machine has 16.0 GB free"),
        ("all-reduce --bytes 8000000001", "takes 16.0 GB .* free for each: give less"),
        ("steps --network alexnet --batch 99999999", "--batch 99999999 takes 61,8"),
        ("all-reduce --rounds 0", "--rounds: it must be at least 1"),
        ("steps --rounds 0", "--rounds: it must be at least 1"),
        ("steps --steps 1.5", "--steps: invalid literal"),
        ("steps --batch 70000", "MNIST has 60,000 training images"),
        ("steps --batch 1", "--batch 1: give each of 2 ranks an image or more"),
        ("steps --network alexnet --batch 1", "give each of 2 ranks an image or more"),
        ("train --images 70000", "--images: it must be at least 1 and below 60001"),
        ("train --test 10001", "--test: it must be at least 1 and below 10001"),
        ("train --images 50", "--batch 100 takes more than --images 50"),
        ("train --epochs 0", "--epochs: it must be at least 1"),
        ("train --learning-rate nan", "--learning-rate: it must be above 0 and finite, got nan"),
        ("train --learning-rate 0", "--learning-rate: it must be above 0"),
        ("train --momentum 1", "--momentum: it must be at least 0 and below 1"),
        ("train --warmup -0.1", "--warmup: it must be at least 0"),
        ("train --seed -1", "--seed: it must be at least 0"),
        ("train --seed 99999999999", "--seed: it must be at least 0 and below 4294967296"),
        ("train --shift -1", "--shift: it must be at least 0"),
        ("train --shift 1000", "--shift: it must be at least 0 and below 28"),
        ("train --epochs 99999999999", "--epochs: it must be at least 1 and below 1000000000"),
        ("train --threads 0", "--threads: it must be at least 1"),
        ("train --threads 99999999999", "--threads: it must be at least 1 and below 1025"),
        ("train --patience inf", "--patience: it must be above 0 and finite"),
        ("train --fault kill:2:5", "--fault names rank 2; there are ranks 0 to 1"),
        ("train --fault stop:0:5", "--fault: such as kill:1:20"),
        ("train --out weights.bin", "--out: the name must end in .npz"),
    ],
)
def test_a_number_out_of_range_is_refused_by_the_parser(words, says, capsys):
    with pytest.raises(SystemExit):
        command._parsed(words.split(), ranks=2, free_bytes=16e9)
    assert re.search(says, " ".join(capsys.readouterr().err.split()))


def test_as_many_bytes_as_there_is_memory_are_taken():
    words = ["all-reduce", "--bytes", "8000000000"]
    assert command._parsed(words, ranks=2, free_bytes=16e9).bytes == [8_000_000_000]


@needs_mpi
def test_steps_are_measured_in_every_way():
    result = run(2, "steps", "--batch", 6, "--steps", 1, "--rounds", 2)
    assert result["gradient_bytes"] == 4 * 123_552
    assert result["step_s"].keys() == KINDS["steps"]
    assert all(len(taken) == 2 and min(taken) > 0 for taken in result["step_s"].values())


# --- from a notebook --------------------------------------------------------------------------


@pytest.fixture
def without_mpi(monkeypatch):
    monkeypatch.setattr(command, "mpi_status", lambda: Status(False, "there is no MPI."))


@pytest.mark.usefixtures("without_mpi")
@pytest.mark.parametrize("name", RANK_RUNS)
def test_without_mpi_the_recording_stands_in_and_says_so(name):
    found = rank_run(name)
    assert found.keys() == KINDS[name.partition(",")[0]]
    ranks, words = RANK_RUNS[name]
    rounds = int((re.search(r"--rounds (\d+)", words) or [0, 1])[1])
    for what, measurement in found.items():
        assert measurement.provenance is Provenance.RECORDED
        there = [measurement.conditions[key] for key in ("run", "what", "ranks")]
        assert there == [name, what, ranks] and len(measurement.samples) == rounds


def test_the_recording_holds_what_the_runs_would():
    recording = read_recording(data_folder() / "recordings" / "ranks.json")
    runs = [m.conditions["run"] for m in recording.measurements]
    assert list(dict.fromkeys(runs)) == list(RANK_RUNS)
    losses = [m.median for m in recording.select(what="loss")]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)


@needs_mpi
def test_with_mpi_it_is_measured_here_and_recorded(monkeypatch, tmp_path, capfd):
    quick = (2, "all-reduce --bytes 7 --rounds 1")
    monkeypatch.setattr(command, "RANK_RUNS", {"quick": quick})
    recording = command.measure()
    (measurement,) = recording.measurements
    where = {"run": "quick", "what": "4", "ranks": 2, "threads": 1, "freed_memory": "kept"}
    assert measurement.provenance is Provenance.MEASURED and measurement.conditions == where
    (recorded,) = record.save(recording, tmp_path / "ranks.json").measurements
    assert recorded.provenance is Provenance.RECORDED and recorded.conditions == where
    (speed,) = re.findall(r" 4 bytes: all-reduce (\S+) GB/s", capfd.readouterr().out)
    assert 0 < float(speed) < 1, "few bytes are slow, and no 0"


@pytest.mark.parametrize(("scale", "steps"), [("0.04", "4"), ("0.001", "1"), ("4", "100")])
def test_a_quick_run_clocks_fewer_steps_together(monkeypatch, scale, steps):
    monkeypatch.setattr(command, "mpi_status", lambda: Status(True, ""))
    monkeypatch.setattr(command, "run_ranks", lambda count, *words, **_: pytest.fail(str(words)))
    monkeypatch.setenv("FASTDL_TIME_SCALE", scale)
    with pytest.raises(pytest.fail.Exception, match=f"'--steps', '{steps}', '--rounds', '4'"):
        rank_run("steps, one layer")


@pytest.mark.parametrize(
    ("cores", "share", "mark"), [(2, 0.99, ""), (2, 0.6, "a rank got 60% of a core"), (1, 0.5, "")]
)
def test_steps_tell_when_other_programs_had_the_cores(monkeypatch, card, cores, share, mark):
    kinds = ("one rank", "all ranks", "all ranks, no communication")
    result = {
        "job": "steps", "threads": 1, "machine": card.to_dict(),
        "step_s": {kind: [0.1, 0.2] for kind in kinds},
        "core_share": {kind: [0.3, 0.3] for kind in kinds} | {kinds[2]: [share, share]},
    }  # fmt: skip
    monkeypatch.setattr(command, "mpi_status", lambda: Status(True, ""))
    monkeypatch.setattr(command, "run_ranks", lambda *_, **__: result)
    monkeypatch.setattr(command, "usable_cores", lambda: cores)
    assert {m.disturbed for m in rank_run("steps, one layer").values()} == {mark}


@pytest.mark.usefixtures("without_mpi")
def test_without_mpi_nothing_is_recorded(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(command, "rank_run", None)
    assert record.main(["ranks", "--out", str(tmp_path / "ranks.json")]) == 1
    assert "there is no MPI" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_the_large_array_is_as_large_as_the_gradients():
    assert f" {4 * deep_convnet().parameter_count} " in RANK_RUNS["all-reduce"][1]


def test_an_unknown_run_is_refused():
    with pytest.raises(KeyError, match="no run 'steps'; there are"):
        rank_run("steps")
