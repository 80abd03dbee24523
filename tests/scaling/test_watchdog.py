"""The watchdog over ranks, without MPI: who is frozen, and how long a first step may take.

Who was killed, hangs or has said why itself is named in real jobs: test_rank_runs.py.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

from fastdl_lib.scaling import watchdog

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="there is no MPI job to watch on Windows"),
    pytest.mark.usefixtures("no_process_left"),
]
LIMIT_S = 300  # of what takes seconds

WATCHED = """
import sys
sys.stdin.readline()
from fastdl_lib.scaling import watchdog
watchdog.show_stack_when_asked()
sign = watchdog.Sign(sys.argv[1], int(sys.argv[2]))
sign.beat(step=7)
print("ready", flush=True)
for line in sys.stdin:
    sign.finished() if line.strip() else sign.beat(step=7)
"""


@pytest.fixture
def two(tmp_path):
    """Two watched processes, ranks 5 and 6, words to them, and what was said in the end."""
    folder = tmp_path / "signs"
    folder.mkdir()
    command = [sys.executable, "-c", WATCHED, str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with open(tmp_path / "said", "w") as said:
        old = os.dup(2)
        os.dup2(said.fileno(), 2)  # their stderr is this process's
    try:
        watched = [subprocess.Popen([*command, str(row)], **pipes) for row in range(2)]
        numbers = {5 + row: process.pid for row, process in enumerate(watched)}
        watching = watchdog.start(folder, numbers, patience_s=1.0, grace_s=0.2)
    finally:
        os.dup2(old, 2)
        os.close(old)

    def tell(row, word=""):
        watched[row].stdin.write(word + "\n")
        watched[row].stdin.flush()

    for row, process in enumerate(watched):
        tell(row)
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


def test_the_watchdog_keeps_silent_when_all_goes_well(two):
    watched, tell, end = two
    tell(0, "finished")
    tell(1, "finished")
    assert end() == ""
    assert watched[0].poll() is None


def test_the_watchdog_ends_who_is_frozen_and_the_rest(two):
    watched, tell, end = two
    watched[0].send_signal(signal.SIGSTOP)
    with contextlib.suppress(BrokenPipeError):  # ended with the other
        for _ in range(40):
            tell(1)
            time.sleep(0.05)
    said = end()
    assert said.startswith(f"rank 5 (process {watched[0].pid}) hangs in step 7")
    assert "Stack (most recent call first)" not in said
    assert {process.wait(timeout=LIMIT_S) for process in watched} == {-signal.SIGKILL}


def test_a_process_may_take_long_until_its_first_step_is_done(tmp_path):
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
    assert not hangs_after(20, 50), "it compiles its loops"
    assert hangs_after(20)
    sign.beat(step=2)
    assert not hangs_after(20, 9)
    assert hangs_after(2)
    sign.finished()
    assert not hangs_after(100)
    os.close(watched.pipe)
