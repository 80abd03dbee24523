"""Whether something else ran while the clock did: other programs, the host's other guests, or a
clock that fell.

On Linux each thread is told how long it has waited for a core. A process that is kept waiting while
others use the cores was disturbed; one whose threads wait for each other was not: that is part of
what is measured.
"""

import dataclasses
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil

from fastdl_lib.measuring.evidence import Measurement

WAITED_LIMIT = 0.05
"""Of the processor time that it asked for, what the process may be kept waiting."""
OTHERS_LIMIT = 0.1
"""Cores that other programs, or the host's other guests, may use meanwhile."""
CLOCK_LIMIT = 0.7
"""Of the best speed that a core has reached in this process."""

_WINDOW_S = 2e-3  # shorter samples share one look at the system's tables


def waited_s() -> float:
    """Seconds that this process has been kept waiting for a core so far, its threads added up;
    where the system does not tell, those in which it has not computed."""
    if not os.path.exists("/proc/self/schedstat"):
        return time.perf_counter() - time.process_time()
    waited_ns = 0
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/schedstat") as file:
                waited_ns += int(file.read().split()[1])
        except OSError:  # a thread that has just ended
            continue
    return 1e-9 * waited_ns


def others_s() -> float:
    """Seconds of all cores that other programs, and the host for other guests, have used so far."""
    times = psutil.cpu_times()
    busy = ("user", "nice", "system", "irq", "softirq", "steal")
    return sum(getattr(times, name, 0.0) for name in busy) - time.process_time()


_FACTOR = np.ones((64, 64), np.float32)  # within the first cache, and for one thread of a BLAS
_PRODUCT = np.empty_like(_FACTOR)
_best_s = float("inf")


def clock_share() -> float:
    """How fast a core runs small products now, of the best seen in this process."""
    global _best_s
    seen_s = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        np.dot(_FACTOR, _FACTOR, out=_PRODUCT)
        seen_s = min(seen_s, time.perf_counter() - start)
    _best_s = min(_best_s, seen_s)
    return _best_s / seen_s


class Watch:
    """Takes samples, and notes beside each which part of the processor time that it asked for the
    process was kept waiting.

    >>> watch = Watch()
    >>> watch.take(lambda: 1.5, budget_s=0.001, least=3)
    >>> watch.samples[:3], len(watch.waited) == len(watch.samples)
    ([1.5, 1.5, 1.5], True)
    """

    def __init__(self) -> None:
        self.samples: list[Any] = []
        self.waited: list[float] = []
        self.disturbed = ""
        """What disturbed the samples, in words; empty where nothing did."""
        self.left_out = 0
        """How many more samples were taken."""

    def take(
        self, one: Callable[[], Any], budget_s: float, least: int, most: int | None = None
    ) -> None:
        """Call ``one`` for samples until the budget is used up or there are ``most``, ``least``
        times at least. While other programs run it takes up to twice as many, within the budget;
        the disturbed ones go where ``least`` others are there."""
        clock_share()
        began_s, others_before_s = time.perf_counter(), others_s()
        looked_s, before = began_s, (waited_s(), time.process_time())
        while True:
            self.samples.append(one())
            now_s = time.perf_counter()
            late = len(self.samples) >= least and now_s - began_s >= budget_s
            full = most is not None and len(self.samples) >= most
            if now_s - looked_s >= _WINDOW_S or late or full:
                waited, ran = waited_s() - before[0], time.process_time() - before[1]
                share = max(0.0, waited) / max(1e-9, max(0.0, waited) + ran)
                self.waited += [share] * (len(self.samples) - len(self.waited))
                looked_s, before = time.perf_counter(), (waited_s(), time.process_time())
            others = 0.0
            if late or full:
                others = (others_s() - others_before_s) / max(1e-9, now_s - began_s)
            enough = full and (
                others <= OTHERS_LIMIT
                or len(self._quiet()) >= most
                or len(self.samples) >= 2 * most
            )
            if late or enough:
                break
        taken, quiet = range(len(self.samples)), self._quiet()
        kept = (quiet if others > OTHERS_LIMIT and len(quiet) >= least else taken)[:most]
        self.samples = [self.samples[i] for i in kept]
        self.waited = [self.waited[i] for i in kept]
        self.left_out = len(taken) - len(kept)
        self._judge(others)

    def mark(self, measured: Measurement) -> Measurement:
        """The measurement made of the samples, with what was noted beside them."""
        noted = {"disturbed": self.disturbed, "left_out": self.left_out}
        return dataclasses.replace(measured, waited=tuple(self.waited), **noted)

    def _quiet(self) -> list[int]:
        return [i for i, waited in enumerate(self.waited) if waited <= WAITED_LIMIT]

    def _judge(self, others: float) -> None:
        waited, clock, words = float(np.median(self.waited)), clock_share(), []
        if waited > WAITED_LIMIT and others > OTHERS_LIMIT:
            words.append(
                f"got {1 - waited:.0%} of the processor time it asked for, while other programs "
                f"used {others:.1f} cores"
            )
        if clock < CLOCK_LIMIT:
            words.append(f"a core ran at {clock:.0%} of its best speed afterwards")
        self.disturbed = "; ".join(words)
