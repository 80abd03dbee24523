"""Whether MPI works here, and jobs of several processes, the *ranks*, started from a notebook.

The process that imports this does not become a rank itself.
"""

import contextlib
import functools
import json
import os
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

# In a batch system's session, as on a cluster's JupyterHub, ranks start here all the same.
_HERE = {"HYDRA_LAUNCHER": "fork"}


def _mpiexec() -> str | None:
    """The command that starts ranks: the one beside this Python, whose library mpi4py loads."""
    beside_python = Path(sys.executable).parent / "mpiexec"
    return str(beside_python) if beside_python.is_file() else shutil.which("mpiexec")


@functools.cache
def mpi_status() -> Status:
    """Say whether MPI works here, proved by one small job of other processes."""
    if sys.platform == "win32":
        return Status(
            False,
            "MPI is not installed on Windows, for which there is no mpich wheel: what is shown "
            "here was recorded on another machine (WSL runs it live).",
        )
    install = "install it with pip install -e . (or pip install mpi4py mpich)"
    command = _mpiexec()
    if command is None:
        return Status(False, f"mpiexec is neither beside this Python nor on PATH; {install}.")
    code = "from mpi4py import MPI; print(MPI.Get_library_version())"
    words = [command, "-n", "1", sys.executable, "-c", code]
    try:
        result = subprocess.run(
            words, capture_output=True, text=True, timeout=60, env=os.environ | _HERE
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Status(False, f"mpiexec did not start a job ({error}); {install}.")
    if result.returncode:
        lines = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
        why = next((line for line in reversed(lines) if "Error" in line), lines[-1]).strip()
        return Status(False, f"a job of one rank failed ({why}); {install}.")
    words = result.stdout.replace("Version", " ").replace(":", " ").split()
    library = " ".join(words[:2]).strip(",")
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

    Raises: RuntimeError: MPI is missing, or the job failed; the message names the rank.
    TimeoutError: it took too long.
    """
    check_whole_number("ranks", ranks, 1)
    check_number("timeout_s", timeout_s, low=0, low_included=False)
    if not mpi_status().available:
        raise RuntimeError(mpi_status().reason)
    with tempfile.TemporaryDirectory(prefix="fastdl-job-") as folder:
        result, errors = Path(folder) / "result.json", Path(folder) / "errors.txt"
        command = [_mpiexec(), "-n", str(ranks), sys.executable, "-m", "mpi4py", *program]
        command += [*map(str, words), "--result", str(result)]
        status = _run(command, errors, timeout_s, show)
        lines = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        # What the ranks or the watchdog said; where they said nothing, the rest.
        named = [line for line in lines if line.startswith("rank ")]
        said = "\n".join(["", *(named or lines[-20:])])
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


def _run(command: list[str], errors: Path, timeout_s: float, show: bool) -> int | None:
    """Run a command, its errors into a file; its status, or None if it took too long."""
    with open(errors, "wb") as stderr:
        job = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=os.environ | _HERE | {"PYTHONUNBUFFERED": "1"},  # what a rank prints comes at once
        )
    late = threading.Event()
    timer = threading.Timer(timeout_s, lambda: (late.set(), _end(job)))
    timer.start()
    try:
        for line in job.stdout:
            if show:
                print(line, end="", flush=True)
        job.wait()
    finally:
        timer.cancel()
        _end(job)
        job.stdout.close()
    return None if late.is_set() else job.returncode


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
