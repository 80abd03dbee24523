"""Whether MPI works here, and jobs of several processes, the *ranks*, started from a notebook.

The process that imports this does not become a rank itself.
"""

import contextlib
import functools
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from fastdl_lib.core.checks import Status, check_number, check_whole_number

START_S = 30.0  # a job of two ranks, which takes a fraction of a second where all is well

# How batch systems, and a job of which this process is a part, tell mpiexec of other machines.
# Ranks start here all the same, as on a cluster's JupyterHub.
_ELSEWHERE = (
    "SLURM", "PBS_", "LSB_", "LOADL_", "COBALT_", "OAR_", "FLUX_", "PE_HOSTFILE", "PMI", "HYDRA_",
    "MPIEXEC_", "OMPI_COMM_", "OMPI_UNIVERSE",
)  # fmt: skip
_HERE = {
    "HYDRA_LAUNCHER": "fork",  # of MPICH; the rest is Open MPI's
    "OMPI_ALLOW_RUN_AS_ROOT": "1",  # a container's user is often root
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",  # more ranks than cores
    "PYTHONUNBUFFERED": "1",  # what a rank prints comes at once
}

TEMPORARY_BYTES = 2**16  # what ranks and the watchdog write, with room to spare
SHARED_BYTES = 2 * 2**20  # of /dev/shm for each rank: MPICH takes half of it
_SHM = (
    "ranks talk through /dev/shm, which is full or too small: give the container more (docker run "
    "--shm-size=1g), or, while no MPI job runs on this machine, delete what killed ones have left "
    "there: rm /dev/shm/mpich_shm_*"
)
_HOSTS = (
    f"this machine's name, {platform.node()}, is not known to itself: add it to the line of "
    "127.0.0.1 in /etc/hosts"
)
_SETTINGS = ("MPIR_", "MPICH_", "FI_", "UCX_", "OMPI_", "PMIX_", "PRTE_")
_ADVICE = {
    "No module named 'mpi4py'": "install it: pip install -e . (or pip install mpi4py)",
    "load MPI library|libmpi|shared object|undefined symbol": "mpi4py finds no MPI library that it "
    "can load: pip install mpich",
    "Bus error|POSIX_comm_bootstrap": _SHM,
    "gethostbyname|getaddrinfo|Name or service|[Rr]esolv": _HOSTS,
    "as root": "this MPI does not run as root: become another user, or pip install mpich",
    "opened simultaneously|Too many open files": "raise the limit of open files: ulimit -n 1024",
}
"""What is found in the errors of a job that does not start, and what to do."""


def _advice(said: str, ranks: int) -> str:
    """What to do about a failed job's words; empty where they say nothing that is known."""
    full = _no_temporary_files()
    if full:
        return full
    for sign, what in _ADVICE.items():
        if re.search(sign, said):
            return what
    shared = Path("/dev/shm")
    if shared.is_dir() and shutil.disk_usage(shared).free < ranks * SHARED_BYTES:
        return _SHM
    if "No space left" in said:
        return "a disk is full: df -h says which"
    settings = [name for name in sorted(os.environ) if name.startswith(_SETTINGS)]
    if settings:
        return f"it may be the settings of MPI that are in force here: unset {' '.join(settings)}"
    return ""


def _no_temporary_files() -> str:
    """Why no temporary files can be written; empty where they can."""
    try:
        with tempfile.TemporaryFile() as file:
            file.write(bytes(TEMPORARY_BYTES))
    except OSError as error:
        folder = tempfile.tempdir or "any folder for them"
        return (
            f"temporary files cannot be written in {folder} ({os.strerror(error.errno)}): make "
            "room there, or set TMPDIR to another folder"
        )
    return ""


def _mpiexec() -> str | None:
    """The command that starts ranks: the one beside this Python, whose library mpi4py loads."""
    beside_python = Path(sys.executable).parent / "mpiexec"
    return str(beside_python) if beside_python.is_file() else shutil.which("mpiexec")


@functools.cache
def mpi_status() -> Status:
    """Say whether MPI works here, proved by one small job of two other processes."""
    if sys.platform == "win32":
        return Status(
            False,
            "MPI is not installed on Windows, for which there is no mpich wheel: what is shown "
            "here was recorded on another machine (WSL runs it live).",
        )
    if importlib.util.find_spec("mpi4py") is None:
        return Status(False, "mpi4py is not installed: pip install -e . (or pip install mpi4py).")
    command = _mpiexec()
    if command is None:
        missing = "mpiexec is neither beside this Python nor on PATH: pip install mpich."
        return Status(False, missing)
    if full := _no_temporary_files():
        return Status(False, f"MPI does not start: {full}.")
    name = "MPI.Get_library_version().splitlines()[0]"
    code = f"from mpi4py import MPI; w = MPI.COMM_WORLD; w.rank or print(w.size, {name})"
    words = [command, "-n", "2", sys.executable, "-c", code]
    by_hand = f"run it by hand to see more: {command} -n 2 python -m mpi4py.bench helloworld"
    try:
        status, out, said = _run(words, START_S, show=False)
    except OSError as error:
        again = "pip install --force-reinstall mpich"
        return Status(False, f"mpiexec does not start ({error.strerror}): {again}.")
    if status is None:
        what = _advice(f"{out}\n{said}", 2) or by_hand
        return Status(False, f"mpiexec started no job in {START_S:g} s: {what}.")
    if status:
        said = f"{out}\n{said}"  # MPICH's mpiexec names a signal in its output
        lines = said.strip().splitlines() or [f"exit status {status}"]
        telling = [line for line in lines if "rror" in line or "nable" in line] or lines
        why = telling[-1].strip().rstrip(".")
        return Status(False, f"a job of two ranks failed ({why}): {_advice(said, 2) or by_hand}.")
    size, _, library = out.strip().splitlines()[-1].partition(" ")
    library = re.sub(r"( Version:| v|,.*)\s*", " ", library).strip()
    if size != "2":
        return Status(
            False,
            f"two ranks do not find each other: {command} and the library that mpi4py loads "
            f"({library}) are two MPIs; pip install --force-reinstall mpich mpi4py.",
        )
    return Status(True, f"{library} through mpi4py.", library)


def run_program(
    ranks: int,
    program: Sequence[str],
    *words: str | int | float | Path,
    timeout_s: float = 120.0,
    show: bool = True,
) -> dict[str, Any]:
    """Run a job of several ranks on this machine, show what rank 0 prints, return its result.

    It is the command ``mpiexec -n RANKS python -m mpi4py PROGRAM WORDS --result FILE``, where rank
    0 writes its result as JSON. No process is left behind, however it ends.

    Args:
        ranks: how many; they may be more than the cores.
        program: what each rank runs: ``["-m", "a.module"]`` or ``["a/file.py"]``.
        words: of its command line, such as ``"train", "--images", 2000``.
        timeout_s: the job is ended after so many seconds.
        show: print the output as it comes.

    Raises: RuntimeError: MPI or room for its files is missing, or the job failed; the message
    names the rank.
    TimeoutError: it took too long.
    """
    ranks = check_whole_number("ranks", ranks, 1)
    check_number("timeout_s", timeout_s, low=0, low_included=False, high=threading.TIMEOUT_MAX)
    if not mpi_status().available:
        raise RuntimeError(mpi_status().reason)
    if full := _no_temporary_files():
        raise RuntimeError(f"no job was started: {full}.")
    with tempfile.TemporaryDirectory(prefix="fastdl-job-") as folder:
        result = Path(folder) / "result.json"
        command = [_mpiexec(), "-n", str(ranks), sys.executable, "-m", "mpi4py", *program]
        command += [*map(str, words), "--result", str(result)]
        status, out, errors = _run(command, timeout_s, show)
        lines = errors.strip().splitlines()
        # What the ranks or the watchdog said; where they said nothing, the rest.
        named = [line for line in lines if line.startswith("rank ")]
        said = "\n".join(
            ["", *(named or [*lines[-20:], _advice(f"{out}\n{errors}", ranks)])]
        ).rstrip()
        if status is None:
            raise TimeoutError(
                f"the job of {ranks} ranks was ended after {timeout_s:g} s; give it less to do, or "
                f"more time with timeout_s.{said}"
            )
        if status or not result.is_file():
            raise RuntimeError(
                f"the job of {ranks} ranks ended with status {status} and without a result.{said}"
            )
        return json.loads(result.read_text(encoding="utf-8"))


def _run(command: list[str], timeout_s: float, show: bool) -> tuple[int | None, str, str]:
    """Run a command on this machine; its status, None if it took too long, output and errors."""
    here = {name: v for name, v in os.environ.items() if not name.startswith(_ELSEWHERE)} | _HERE
    text = {"encoding": "utf-8", "errors": "replace"}
    with tempfile.TemporaryFile("w+", **text) as errors:
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": errors}
        job = subprocess.Popen(command, env=here, **pipes, **text)
        late = threading.Event()
        timer = threading.Timer(timeout_s, lambda: (late.set(), _end(job)))
        timer.start()
        out = []
        try:
            for line in job.stdout:
                out.append(line)
                if show:
                    print(line, end="", flush=True)
            job.wait()
        finally:
            timer.cancel()
            _end(job)
            job.stdout.close()
        errors.seek(0)
        return None if late.is_set() else job.returncode, "".join(out), errors.read()


def _end(job: subprocess.Popen) -> None:
    """End a job and everything that it started."""
    processes = []
    with contextlib.suppress(psutil.NoSuchProcess):
        if job.poll() is None:
            first = psutil.Process(job.pid)
            processes = [first, *first.children(recursive=True)]
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    job.wait()
