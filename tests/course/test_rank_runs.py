"""The jobs of chapter 04 on two ranks: live where MPI works, else replayed, and both alike."""

import sys

import pytest

from fastdl_lib.core.checks import Status
from fastdl_lib.core.datasets import data_folder
from fastdl_lib.course import ranks as rank_runs
from fastdl_lib.course.ranks import RANK_RUNS, rank_run
from fastdl_lib.measuring.evidence import Provenance
from fastdl_lib.measuring.recordings import read_recording
from fastdl_lib.nn.network import deep_convnet

KINDS = {
    "all-reduce": {"4", "494208"},
    "steps": {
        "one rank",
        "all ranks",
        "all ranks, no overlap",
        "all ranks, no communication",
        "all ranks, a whole batch each",
    },
    "training": {"seconds", "loss", "accuracy"},
}
# Elsewhere a missing MPI is a failure: requirements.txt installs one.
needs_mpi = pytest.mark.skipif(sys.platform == "win32", reason="no mpich wheel for Windows")


@pytest.fixture
def without_mpi(monkeypatch):
    monkeypatch.setattr(rank_runs, "mpi_status", lambda: Status(False, "there is no MPI."))


@pytest.mark.usefixtures("without_mpi")
@pytest.mark.parametrize("name", RANK_RUNS)
def test_without_mpi_the_recording_stands_in_and_says_so(name):
    found = rank_run(name)
    assert found.keys() == KINDS[name.partition(",")[0]]
    ranks, *words = RANK_RUNS[name]
    for what, measurement in found.items():
        assert measurement.provenance is Provenance.RECORDED
        assert measurement.conditions["run"] == name and measurement.conditions["what"] == what
        assert measurement.conditions["ranks"] == ranks
        if "--rounds" in words:
            assert len(measurement.samples) == words[words.index("--rounds") + 1]


def test_the_recording_holds_what_the_runs_would():
    recording = read_recording(data_folder() / "recordings" / "ranks.json")
    assert recording.command == "python -m fastdl_lib.rank_runs"  # its name then
    runs = [m.conditions["run"] for m in recording.measurements]
    assert list(dict.fromkeys(runs)) == list(RANK_RUNS)
    losses = [m.median for m in recording.select(what="loss")]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)


@needs_mpi
def test_with_mpi_it_is_measured_here(monkeypatch):
    quick = (2, "all-reduce", "--bytes", 4000, "--rounds", 1)
    monkeypatch.setattr(rank_runs, "RANK_RUNS", {"quick": quick})
    (measurement,) = rank_run("quick").values()
    assert measurement.provenance is Provenance.MEASURED
    assert measurement.conditions == {"run": "quick", "what": "4000", "ranks": 2, "threads": 1}


@needs_mpi
def test_the_command_writes_a_recording(monkeypatch, tmp_path):
    quick = {"quick": (1, "all-reduce", "--bytes", 4000, "--rounds", 1)}
    monkeypatch.setattr(rank_runs, "RANK_RUNS", quick)
    assert rank_runs.main(["--out", str(tmp_path / "ranks.json")]) == 0
    (measurement,) = read_recording(tmp_path / "ranks.json").measurements
    assert measurement.conditions["what"] == "4000"


@pytest.mark.usefixtures("without_mpi")
def test_the_command_says_what_is_missing(capsys, tmp_path):
    assert rank_runs.main(["--out", str(tmp_path / "ranks.json")]) == 1
    assert "there is no MPI." in capsys.readouterr().err
    assert not (tmp_path / "ranks.json").exists()


def test_the_large_array_is_as_large_as_the_gradients():
    words = RANK_RUNS["all-reduce"]
    assert words[words.index("--rounds") - 1] == 4 * deep_convnet().parameter_count


def test_an_unknown_run_is_refused():
    with pytest.raises(KeyError, match="no run 'steps'; there are"):
        rank_run("steps")
