"""Whether MPI works here, said in a sentence, and what a job refuses before it starts."""

import os
import re
import sys

import pytest
from helpers import needs_mpi

from fastdl_lib.scaling import mpi
from fastdl_lib.scaling.mpi import mpi_status, run_program

PROGRAM = ["-m", "fastdl_lib.course.ranks"]


@pytest.fixture
def status(monkeypatch):
    """mpi_status() that looks anew, and for itself only."""
    monkeypatch.setattr(mpi, "mpi_status", fresh := mpi_status.__wrapped__)
    return fresh


def test_windows_is_told_so_in_a_sentence(status, monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    available, reason, name, _ = status()
    assert (available, name) == (False, "") and "Windows" in reason
    with pytest.raises(RuntimeError, match="Windows"):
        run_program(2, PROGRAM, "train")


def test_a_missing_mpiexec_is_named(status, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(mpi, "_mpiexec", lambda: None)
    assert "pip install" in status().reason
    with pytest.raises(RuntimeError, match="mpiexec is neither beside this Python nor on PATH"):
        run_program(2, PROGRAM, "train")


@pytest.mark.skipif(os.name == "nt", reason="a shell script")
def test_a_missing_library_is_named(status, monkeypatch, tmp_path):
    broken = tmp_path / "mpiexec"
    broken.write_text("#!/bin/sh\necho 'RuntimeError: cannot load MPI library' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(mpi, "_mpiexec", lambda: str(broken))
    assert "a job of one rank failed (RuntimeError: cannot load MPI library)" in status().reason
    broken.chmod(0o644)
    assert not status().available


@needs_mpi
def test_a_batch_system_around_it_changes_nothing(status, monkeypatch):
    """As in a JupyterLab that runs in a job of SLURM, where mpiexec would call srun."""
    for name in ("SLURM_JOB_ID", "SLURM_JOBID", "SLURM_NNODES", "SLURM_TASKS_PER_NODE"):
        monkeypatch.setenv(name, "1")
    for name in ("SLURM_NODELIST", "SLURM_JOB_NODELIST"):
        monkeypatch.setenv(name, "node1")
    found = status()
    assert found.available and re.match(r"[\w ]+ [\d.]+", found.name)


@pytest.mark.parametrize("ranks, timeout_s", [(0, 10), (2, 0), (2.5, 10), ("2", 10)])
def test_numbers_of_ranks_and_seconds_are_checked(ranks, timeout_s):
    with pytest.raises((TypeError, ValueError), match=r"ranks must|timeout_s must"):
        run_program(ranks, PROGRAM, "train", timeout_s=timeout_s)
