"""Time candidates side by side in one process, so that noise hits all of them or counts for none.

A *pass* runs one candidate once and returns its parts' times; :func:`in_turn` asks for passes round
by round, and takes each one only while the machine is quiet. ``README.md`` describes the method.
"""

import contextlib
import dataclasses
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from fastdl_lib.core.arrays import keep_freed_memory

PAUSE_S = 0.03  # between two passes, again and again until the worker threads have come to rest
NOISE_LIMIT = 0.03  # of a pass's time that other programs may run, all CPUs together
SPEED_LIMIT = 0.78  # of a CPU's best speed that it must reach just before a pass
SHORT_S = 0.3  # a pass that takes less is run twice, and the second one counts
TRIES = 5  # for an undisturbed pass, before its turn is given up
MIN_ROUNDS = 3

Times = dict[str, float]  # the milliseconds of each part of one pass, such as of each layer
Pass = Callable[[], Times]


def clocked(function: Callable[[], Any], part: str = "all") -> Pass:
    """A pass that has the function as its only part."""
    return clocked_parts({part: function})


def clocked_parts(functions: dict[str, Callable[[], Any]]) -> Pass:
    """A pass that runs the functions one after the other; all are CPU code, done on return."""

    def one_pass() -> Times:
        times_ms, clock = {}, time.perf_counter()
        for part, function in functions.items():
            function()
            before, clock = clock, time.perf_counter()
            times_ms[part] = 1e3 * (clock - before)
        return times_ms

    return one_pass


# --- is the machine quiet? ----------------------------------------------------------------------


def settle() -> None:
    """Pause until this process is idle: OpenBLAS's workers spin for 0.1 s after their last product.

    Without this they would take a core from the candidate that comes next.
    """
    for _ in range(30):
        used_s = time.process_time()
        time.sleep(PAUSE_S)
        if time.process_time() - used_s < 0.1 * PAUSE_S:
            return


def others_ran_s() -> float:
    """Seconds that the threads of all other programs have run so far; 0 where Linux is not.

    Not the time that our own threads have waited: an implementation whose threads get into each
    other's way has earned that delay.
    """
    ran_ns, own = 0, str(os.getpid())
    for task in Path("/proc").glob("[0-9]*/task/*/schedstat"):
        if task.parts[2] != own:
            with contextlib.suppress(OSError):  # a thread that has just ended
                ran_ns += int(task.read_text().split()[0])
    return 1e-9 * ran_ns


# Small enough for the first-level cache, and for one thread in every BLAS.
_FACTOR = np.ones((64, 64), np.float32)
_PRODUCT = np.empty_like(_FACTOR)
_best_s: dict[int, float] = {}


def _probe_s() -> float:
    start = time.perf_counter()
    for _ in range(5):
        np.matmul(_FACTOR, _FACTOR, out=_PRODUCT)
    return time.perf_counter() - start


def full_speed() -> bool:
    """Whether each CPU runs small products about as fast as it ever did here; True where no Linux.

    Another guest of the same host can halve a core, and nothing but its speed tells.
    """
    if not hasattr(os, "sched_setaffinity"):
        return True
    allowed = os.sched_getaffinity(0)
    try:
        for cpu in allowed:
            os.sched_setaffinity(0, {cpu})  # this thread alone
            # The first time, long enough to meet a quiet moment; then just to wake the CPU.
            seen_s = min(_probe_s() for _ in range(3 if cpu in _best_s else 2000))
            _best_s[cpu] = min(seen_s, _best_s.get(cpu, seen_s))
            if seen_s * SPEED_LIMIT > _best_s[cpu]:
                return False
    finally:
        os.sched_setaffinity(0, allowed)
    return True


def comes_to_full_speed() -> bool:
    """Wait half a second at most until the CPUs are at full speed."""
    for _ in range(TRIES):
        if full_speed():
            return True
        time.sleep(0.1)
    return False


def undisturbed(one_pass: Pass, refused: Counter[str]) -> Times | None:
    """The times of a pass that nothing disturbed, or None after some tries.

    ``refused`` counts the tries that came to nothing, by reason.
    """
    for _ in range(TRIES):
        settle()
        if not comes_to_full_speed():
            refused["a CPU was slow before it"] += 1
            continue
        before_s, start = others_ran_s(), time.perf_counter()
        times_ms = one_pass()
        if sum(times_ms.values()) < 1e3 * SHORT_S:
            # The pause has put its threads to sleep, and where they wake up is the system's affair.
            times_ms = one_pass()
        took_s = time.perf_counter() - start
        if others_ran_s() - before_s <= NOISE_LIMIT * took_s:
            return times_ms
        refused["another program ran"] += 1
    return None


# --- rounds -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Rounds:
    """What the candidates took, round by round."""

    rounds: list[dict[str, Times | None]]
    """For each round who took part; None for a candidate that was disturbed every time."""
    refused: dict[str, Counter[str]]
    """For each candidate, in the order given: how many tries of a pass did not count, and why."""

    def where(self, *names: str) -> list[int]:
        """The numbers of the rounds in which all of these have an undisturbed pass."""
        return [i for i, times in enumerate(self.rounds) if all(times.get(n) for n in names)]

    def ms(self, name: str, rounds: Iterable[int], parts: Iterable[str]) -> np.ndarray:
        """A candidate's milliseconds in these rounds, its parts added up."""
        passes = [self.rounds[i][name] for i in rounds]
        return np.array([sum(one[part] for part in parts) for one in passes])


@keep_freed_memory()  # for all alike: a change between two passes would fetch their pages anew
def in_turn(passes: dict[str, Pass], budget_s: float, always: Iterable[str] = ()) -> Rounds:
    """Time all in turn, round by round until the budget is used up, in a new order each round.

    Without ``always`` each takes part in every round. With it these do, and another sits out while
    it has used more than its even share of the time, so that slow ones do not starve the rest; each
    gets ``MIN_ROUNDS`` turns, past the budget if need be.
    """
    always = set(always or passes)
    rounds: list[dict[str, Times | None]] = []
    refused = {name: Counter() for name in passes}
    turns, used_s = Counter(), Counter()
    order, shuffle = list(passes), random.Random(0).shuffle
    start = time.perf_counter()
    while True:
        elapsed_s = time.perf_counter() - start
        late = elapsed_s > budget_s
        due = {name for name in passes if turns[name] < MIN_ROUNDS}
        if late and not due:
            return Rounds(rounds, refused)
        fair = {name for name in passes if not late and used_s[name] <= elapsed_s / len(passes)}
        shuffle(order)
        times: dict[str, Times | None] = {}
        for name in order:
            if name in always or name in (due if late else fair):
                began = time.perf_counter()
                times[name] = undisturbed(passes[name], refused[name])
                used_s[name] += time.perf_counter() - began
                turns[name] += 1
        rounds.append(times)
