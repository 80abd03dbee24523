"""Whether MPI works here, said in a sentence, and what a job refuses before it starts."""

import errno
import importlib.util
import os
import re
import sys
import tempfile
from types import SimpleNamespace

import pytest
from helpers import needs_mpi

from fastdl_lib.core.checks import Status
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


def test_what_is_missing_is_named(status, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(mpi, "_mpiexec", lambda: None)
    with pytest.raises(RuntimeError, match=r"mpiexec is neither .* on PATH: pip install mpich\.$"):
        run_program(2, PROGRAM, "train")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert status().reason.startswith("mpi4py is not installed: pip install")


HANDS = "run it by hand to see more: .*mpiexec -n 2"
FAILURES = {
    "no mpi4py": ("ModuleNotFoundError: No module named 'mpi4py'", "install it: pip install -e"),
    "no library": (
        "RuntimeError: cannot load MPI library",
        "finds no MPI library .* mpich",
    ),
    "small /dev/shm": (
        "EXIT: Bus error (signal 7)",
        "/dev/shm, which is full .* --shm-size",
    ),
    "no /dev/shm": ("MPIDI_POSIX_comm_bootstrap(288)...: Out of memory", "/dev/shm, which is full"),
    "host name": ("gethostbyname failed, vm (errno 0)", "add it to the line of .* /etc/hosts"),
    "another full disk": ("OSError: No space left on device", "a disk is full: df -h"),
    "root": ("prterun has detected an attempt to run as root.", "does not run as root"),
    "open files": ("error: Too many open files", "ulimit -n"),
    "unknown": ("unable to query the RMK for a node list", HANDS),
    "nothing said": ("", f"exit status 1.*{HANDS}"),
}


@pytest.mark.skipif(os.name == "nt", reason="shell scripts")
@pytest.mark.parametrize("failure", FAILURES)
def test_each_failure_has_its_own_advice(failure, status, monkeypatch, tmp_path):
    said, advice = FAILURES[failure]
    where = "" if failure == "small /dev/shm" else ">&2"  # as MPICH has it
    (tmp_path / "said").write_text(said)
    _fake(monkeypatch, tmp_path, f"cat {tmp_path}/said {where}; exit 1")
    available, reason, *_ = status()
    assert not available and re.search(advice, reason), reason
    assert failure == "nothing said" or said.rstrip(".") in reason


@pytest.mark.skipif(os.name == "nt", reason="shell scripts")
def test_a_job_that_ends_without_a_word_has_no_room(status, monkeypatch, tmp_path):
    _fake(monkeypatch, tmp_path, "exit 15")
    used = SimpleNamespace(free=3 * 2**20)
    monkeypatch.setattr(mpi.shutil, "disk_usage", lambda path: used)
    monkeypatch.setattr(mpi.Path, "is_dir", lambda path: True)
    assert "exit status 15): ranks talk through /dev/shm" in status().reason
    used.free = 5 * 2**20  # enough for two ranks, not for three
    monkeypatch.setattr(mpi, "mpi_status", lambda: Status(True, "MPI."))
    with pytest.raises(RuntimeError, match=r"status 15 and without a result\.\nranks talk through"):
        run_program(3, PROGRAM, "train")


@pytest.mark.skipif(os.name == "nt", reason="shell scripts")
def test_a_job_that_does_not_start_or_is_two_jobs_is_told_apart(status, monkeypatch, tmp_path):
    fake = _fake(monkeypatch, tmp_path, 'echo "1 Open MPI v5.0.11, package: x"')
    assert re.search(r"do not find each other.*\(Open MPI 5\.0\.11\) are two MPIs", status().reason)
    fake.write_text("#!/bin/sh\nsleep 100 & wait\n")
    monkeypatch.setattr(mpi, "START_S", 0.2)
    assert re.search(f"started no job in 0.2 s: {HANDS}", status().reason)
    fake.chmod(0o644)
    assert re.search("does not start .*--force-reinstall mpich", status().reason)


def _fake(monkeypatch, folder, does):
    """A command in mpiexec's place."""
    fake = folder / "mpiexec"
    fake.write_text(f"#!/bin/sh\n{does}\n")
    fake.chmod(0o755)
    monkeypatch.setattr(mpi, "_mpiexec", lambda: str(fake))
    return fake


@needs_mpi
def test_a_batch_system_around_it_changes_nothing(status, monkeypatch):
    """As in a JupyterLab that runs in a job of SLURM, where mpiexec would call srun, or of PBS."""
    for name in ("SLURM_JOB_ID", "SLURM_JOBID", "SLURM_NNODES", "SLURM_TASKS_PER_NODE", "PMI_RANK"):
        monkeypatch.setenv(name, "1")
    for name in ("SLURM_NODELIST", "SLURM_JOB_NODELIST", "LSB_HOSTS", "LSB_MCPU_HOSTS"):
        monkeypatch.setenv(name, "node1")
    for name in ("PBS_ENVIRONMENT", "PBS_JOBID", "PMIX_RANK", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.setenv(name, "7")
    for name in ("PBS_NODEFILE", "PE_HOSTFILE", "COBALT_NODEFILE", "HYDRA_HOST_FILE"):
        monkeypatch.setenv(name, "/no/such/file")
    for name in ("HYDRA_LAUNCHER", "HYDRA_RMK", "HYDRA_TOPOLIB", "MPIEXEC_PORT_RANGE"):
        monkeypatch.setenv(name, "nonsense")
    found = status()
    assert found.available and re.match(r"[\w ]+ [\d.]+", found.name), found.reason


@needs_mpi
def test_settings_of_mpi_with_which_no_job_starts_are_named(status, monkeypatch):
    monkeypatch.setenv("MPIR_CVAR_ENABLE_GPU", "nonsense")
    assert re.search(r"job of two .*: unset .*MPIR_CVAR_ENABLE_GPU", status().reason)


@pytest.mark.parametrize("missing", [True, False], ids=["no folder", "a full disk"])
def test_no_room_for_temporary_files_is_named(missing, status, monkeypatch):
    def full(*args, **options):
        raise OSError(errno.ENOSPC, "no room", "x")

    if missing:
        monkeypatch.setattr(tempfile, "tempdir", "/no/such/folder")
    else:
        monkeypatch.setattr(tempfile, "TemporaryFile", full)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(mpi, "_mpiexec", lambda: "mpiexec")
    says = r"temporary files cannot be written in .* \((No such|No space).* set TMPDIR to another"
    assert re.search(f"MPI does not start: {says}", status().reason)
    monkeypatch.setattr(mpi, "mpi_status", lambda: Status(True, "MPI."))
    with pytest.raises(RuntimeError, match=f"no job was started: {says}"):
        run_program(2, PROGRAM, "train")


@pytest.mark.parametrize("ranks, timeout_s", [(0, 10), (2, 0), (2, 1e300), (2.5, 10), ("2", 10)])
def test_numbers_of_ranks_and_seconds_are_checked(ranks, timeout_s):
    with pytest.raises((TypeError, ValueError), match=r"ranks must|timeout_s must"):
        run_program(ranks, PROGRAM, "train", timeout_s=timeout_s)
