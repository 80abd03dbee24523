"""The watchdog over ranks, without MPI: who was killed, who hangs, who has said why itself."""

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
import sys, time
sys.stdin.readline()
from fastdl_lib.scaling import watchdog
watchdog.show_stack_when_asked()
sign = watchdog.Sign(sys.argv[1], int(sys.argv[2]))
do = {
    "beat": lambda: sign.beat(step=7),
    "finished": sign.finished,
    "failed": lambda: sys.exit(sign.failed()),
    "hang": lambda: time.sleep(1000),
}
do["beat"]()
print("ready", flush=True)
for line in sys.stdin:
    do[line.strip()]()
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


def test_the_watchdog_says_who_was_killed_and_ends_the_rest(two):
    watched, _, end = two
    watched[1].send_signal(signal.SIGKILL)
    watched[1].wait()
    assert end().startswith(f"rank 6 (process {watched[1].pid}) was killed, or left")
    assert watched[0].wait(timeout=LIMIT_S) == -signal.SIGKILL


def test_the_watchdog_keeps_silent_when_all_goes_well(two):
    watched, tell, end = two
    tell(0, "finished")
    tell(1, "finished")
    assert end() == ""
    assert watched[0].poll() is None


def test_the_watchdog_leaves_the_word_to_who_has_failed(two):
    watched, tell, end = two
    tell(0, "failed")
    assert end() == ""
    assert watched[1].wait(timeout=LIMIT_S) == -signal.SIGKILL


@pytest.mark.parametrize("frozen", [False, True])
def test_the_watchdog_ends_who_hangs(two, frozen):
    watched, tell, end = two
    if frozen:
        watched[0].send_signal(signal.SIGSTOP)
    else:
        tell(0, "hang")
    with contextlib.suppress(BrokenPipeError):  # ended with the other
        for _ in range(40):
            tell(1, "beat")
            time.sleep(0.05)
    said = end()
    assert said.startswith(f"rank 5 (process {watched[0].pid}) hangs in step 7")
    assert ("Stack (most recent call first)" in said) is not frozen
    assert watched[0].wait(timeout=LIMIT_S) == -signal.SIGKILL


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
