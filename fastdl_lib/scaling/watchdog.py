"""A process that watches over others on its machine: it says which one was killed or hangs.

A watched process writes a sign of life into its row of a small shared file, again and again, and
holds one end of a pipe, which closes when it ends, however it ends (:class:`Sign`). The watching
process, which runs this file and imports nothing of the package, says who ended without having said
so, and ends who gave no sign for too long. What started the processes, such as ``mpiexec``, then
ends the others.
"""

import contextlib
import faulthandler
import mmap
import os
import selectors
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

ROW = struct.Struct("=QQQ")  # signs given, step, state
RUNNING, FINISHED, FAILED = range(3)

TICK_S = 0.05
FIRST_STEP_S = 60.0  # loading data, then compiling loops: up to there it does not hang
LAST_WORDS_S = 0.5  # for a hanging process to say where it stands
# What started the processes ends the rest when one has died; where it does not, this does.
GRACE_S = 3.0


def start(
    folder: str | os.PathLike,
    processes: Mapping[int, int],
    patience_s: float,
    grace_s: float = GRACE_S,
) -> subprocess.Popen:
    """Start a process that watches over others, until all have ended or said that they are done.

    Args:
        folder: an empty one. It may be deleted when each process has made its :class:`Sign`.
        processes: process numbers by rank; the first one has row 0.
        patience_s: a process that gives no sign for so long hangs. Up to the end of its first step,
            in which loops are compiled, it may take a minute.
        grace_s: when one has died, the rest have so long until they are ended.
    """
    folder = Path(folder)
    (folder / "signs").write_bytes(bytes(ROW.size * len(processes)))
    for row in range(len(processes)):
        os.mkfifo(folder / str(row))
    words = [
        str(folder),
        str(patience_s),
        str(grace_s),
        *(f"{rank}:{pid}" for rank, pid in processes.items()),
    ]
    # In a session of its own: whoever ends the watched ones by their group does not end it.
    watchdog = subprocess.Popen(
        [sys.executable, "-I", str(Path(__file__).resolve()), *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    watchdog.stdout.readline()  # it has opened the files
    watchdog.stdout.close()
    return watchdog


class Sign:
    """What a watched process holds: a row of the shared file, and an end of a pipe.

    Args:
        folder: the one that :func:`start` was given.
        row: this process's place there, from 0 up.
    """

    def __init__(self, folder: str | os.PathLike, row: int) -> None:
        self._row = _Row(folder, row)
        self._pipe = os.open(Path(folder) / str(row), os.O_WRONLY)
        self._beats = self._step = 0

    def beat(self, step: int) -> None:
        """Say that this process is alive, and in which step."""
        self._beats += 1
        self._step = step
        self._row.write(self._beats, step, RUNNING)

    def finished(self) -> None:
        """Say that this process may end now."""
        self._row.write(self._beats, self._step, FINISHED)
        os.close(self._pipe)

    def failed(self) -> None:
        """Say that this process ends, and has said why itself."""
        self._row.write(self._beats, self._step, FAILED)


def show_stack_when_asked() -> None:
    """Let this process write its Python stack to stderr when the watchdog asks where it hangs."""
    faulthandler.register(signal.SIGUSR1, all_threads=False)


class _Row:
    """A row of the shared file: signs given, step, state."""

    def __init__(self, folder: str | os.PathLike, row: int) -> None:
        with open(Path(folder) / "signs", "r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)
        self._place = row * ROW.size

    def write(self, beats: int, step: int, state: int) -> None:
        ROW.pack_into(self._memory, self._place, beats, step, state)

    def read(self) -> tuple[int, int, int]:
        return ROW.unpack_from(self._memory, self._place)


class _Watched:
    """A process that is watched over."""

    def __init__(self, folder: str, row: int, rank: int, pid: int) -> None:
        self.rank, self.pid, self.row = rank, pid, _Row(folder, row)
        self.pipe = os.open(Path(folder) / str(row), os.O_RDONLY | os.O_NONBLOCK)
        self.silent_s, self._seen = 0.0, -1

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid})"

    @property
    def state(self) -> int:
        return self.row.read()[2]

    @property
    def step(self) -> int:
        return self.row.read()[1]

    def listen(self, passed_s: float) -> None:
        """Note for how long it has been silent."""
        beats = self.row.read()[0]
        self.silent_s = self.silent_s + passed_s if beats == self._seen else 0.0
        self._seen = beats

    def hangs(self, patience_s: float) -> bool:
        limit_s = patience_s if self.step > 1 else max(patience_s, FIRST_STEP_S)
        return self.state == RUNNING and self.silent_s > limit_s

    def send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def end_hanging(self) -> None:
        """Say that it hangs, let it say where, and end it."""
        _say(
            f"{self} hangs in step {self.step}: no sign of life for {self.silent_s:.0f} s. "
            "The job is ended; where that rank stood:"
        )
        self.send(signal.SIGUSR1)
        time.sleep(LAST_WORDS_S)
        self.row.write(0, self.step, FAILED)
        self.send(signal.SIGKILL)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _watch(selector: selectors.BaseSelector, patience_s: float) -> None:
    """Watch until something goes wrong, and say what; who is left then stays in the selector."""
    watched = [key.data for key in selector.get_map().values()]
    left = list(watched)
    clock = time.monotonic()
    # In the order in which the pipes closed: once one process is dead, what started them ends the
    # others so soon that all may be dead at the next look. (The process numbers do not tell: with
    # much memory to hand back, the first to die may be the last to be gone.)
    while left:
        for key, _ in selector.select(TICK_S):
            one = key.data
            selector.unregister(one.pipe)
            left.remove(one)
            if any(other.state == FAILED for other in watched):
                return
            if one.state == RUNNING:
                _say(f"{one} was killed, or left before the end, in step {one.step}: the job ends.")
                return
        before, clock = clock, time.monotonic()
        for one in left:
            # Where the whole machine stood still, nobody hangs.
            one.listen(min(clock - before, 2 * TICK_S))
            if one.hangs(patience_s):
                one.end_hanging()
                selector.unregister(one.pipe)
                return


def main(folder: str, patience_s: str, grace_s: str, *processes: str) -> None:
    """Watch over the processes, given as rank:number, and end who is left when one is gone."""
    with selectors.DefaultSelector() as selector:
        for row, pair in enumerate(processes):
            one = _Watched(folder, row, *map(int, pair.split(":")))
            selector.register(one.pipe, selectors.EVENT_READ, one)
        # Only now may they go wrong: from here on their pipes are seen to close in order.
        print("ready", flush=True)
        _watch(selector, float(patience_s))
        deadline = time.monotonic() + float(grace_s)
        while selector.get_map() and time.monotonic() < deadline:
            for key, _ in selector.select(TICK_S):
                selector.unregister(key.fileobj)
        for key in selector.get_map().values():
            key.data.send(signal.SIGKILL)


if __name__ == "__main__":
    main(*sys.argv[1:])
