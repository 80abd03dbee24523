"""The simulator's clusters step by step, as discrete events with real queues (SimPy).

It shares with ``simulator.py`` what a message takes and how step times vary, but neither the
formula for the slowest of n nor the one for the busiest link: here workers queue. So each of the
two tests the other. Only this one can tell how stale asynchronous workers' gradients are.
"""

import math
from collections.abc import Iterable

import numpy as np
import simpy

from fastdl_lib.core.checks import check_whole_number
from fastdl_lib.scaling.clusters import Cluster, Combine, Job, ParameterServer
from fastdl_lib.scaling.simulator import (
    SYNCHRONOUS,
    Mode,
    Parts,
    Scaling,
    Stragglers,
    Synchronous,
    expected_slowest,
    worker_counts,
)

PIECES = 8  # of a client's exchange that may hide: sent while it computes


def run_events(
    cluster: Cluster,
    job: Job,
    combine: Combine,
    workers: int | Iterable[int],
    *,
    steps: int = 100,
    seed: int = 0,
    mode: Mode = SYNCHRONOUS,
    stragglers: Stragglers | None = None,
) -> Scaling:
    """Run every step as events, queues included.

    The busiest link of a parameter server serves one piece at a time, first come, first served. A
    client sends what may hide in pieces while it computes, the rest when it has computed. An
    all-reduce has no queue: its time follows the slowest worker.

    Raises: TypeError, ValueError: as ``simulator.step_times``, or fewer than 1 steps.

    >>> from fastdl_lib.scaling.simulator import Asynchronous
    >>> net = Cluster(nodes=8, between_gb_per_s=1.25, between_latency_s=5e-5)
    >>> job = Job(gradient_bytes=95e6, step_s=0.45, batch=64)
    >>> run = run_events(net, job, ParameterServer(), 8, mode=Asynchronous(), steps=20)
    >>> round(float(run.staleness[0]))
    7
    """
    steps = check_whole_number("steps", steps, 1)
    points = worker_counts(cluster, combine, mode, workers)
    unsteady = stragglers or Stragglers()
    runs = [_Run(cluster, job, combine, n, steps, seed, mode, unsteady) for n in points]
    how = f"simulated: {steps:,} steps of discrete events"
    return Scaling.of(job, points, [run.parts() for run in runs], how)


class _Run:
    """One number of workers, event by event."""

    def __init__(self, cluster, job, combine, workers, steps, seed, mode, stragglers):
        self.job, self.combine, self.workers, self.steps = job, combine, workers, steps
        self.mode, self.stragglers = mode, stragglers
        self.rng = np.random.default_rng(seed)
        _, self.gpus = cluster.spread_over(workers)
        cost = combine.communication(cluster, job, workers)
        backup = getattr(mode, "backup", 0)
        self.slowest = expected_slowest(workers, stragglers, backup=backup, gpus_per_node=self.gpus)
        self.compute_s = job.step_s * min(1.0, self.slowest)
        self.exposed_s = combine.exposed_s(job, cost, self.compute_s)
        self.latency_s = combine.late_latency_s(job, cost)
        self.may_hide = combine.may_hide(job, cost)
        # A node's GPUs are one client of the servers where they are summed inside.
        self.queues = isinstance(combine, ParameterServer)
        self.together = combine.together(self.gpus)
        self.clients = math.ceil(workers / self.together)
        self.own_s = cost.bandwidth_s
        self.service_s = cost.by_bytes_s / self.clients
        self.env = simpy.Environment()
        self.link = simpy.Resource(self.env)

    def times(self) -> np.ndarray:
        """Seconds that each client computes in one step: the slowest of its GPUs."""
        draw = self.stragglers.draw
        return self.job.step_s * draw(self.rng, self.workers, self.gpus, self.together)

    def piece(self, delay: float, share: float, link_free: list[float]):
        """A share of an exchange: ready after ``delay``; through the busiest link in its turn,
        and no faster than through the client's own, which is free at ``link_free[0]``."""
        try:
            yield self.env.timeout(delay)
            link_free[0] = max(link_free[0], self.env.now) + share * self.own_s
            own = self.env.timeout(link_free[0] - self.env.now)
            with self.link.request() as turn:
                yield turn
                yield self.env.timeout(share * self.service_s)
            yield own
        except simpy.Interrupt:
            return  # nobody waits for this gradient any more

    def client(self, compute_s: float):
        """Compute, and exchange piece by piece; ends when both are done."""
        hidden = self.may_hide
        link_free = [0.0]
        parts = [self.env.process(self.piece(compute_s, 1 - hidden, link_free))]
        for number in range(PIECES if hidden else 0):
            done = (number + 0.5) / PIECES  # ready midway through the computation that makes it
            parts.append(self.env.process(self.piece(done * compute_s, hidden / PIECES, link_free)))
        try:
            yield self.env.all_of(parts)
            yield self.env.timeout(self.latency_s)
        except simpy.Interrupt:
            for part in parts:
                if part.is_alive:
                    part.interrupt()

    def parts(self) -> Parts:
        """What a step took in the mean."""
        return self.synchronous() if isinstance(self.mode, Synchronous) else self.asynchronous()

    def synchronous(self) -> Parts:
        """Steps one after another. The wait is the expected one, so that what differs from the
        expectation shows as communication."""
        self.env.run(self.env.process(self.all_steps()))
        mean_s = self.env.now / self.steps
        compute_s = min(self.compute_s, mean_s)
        wait_s = min(self.job.step_s * max(0.0, self.slowest - 1), mean_s - compute_s)
        left_s = mean_s - compute_s - wait_s
        return Parts(self.workers - self.mode.backup, compute_s, wait_s, left_s)

    def all_steps(self):
        """Each step ends with the last gradients that count."""
        needed = self.clients - self.mode.backup
        for _ in range(self.steps):
            times = self.times()
            if not self.queues:
                yield self.env.timeout(float(np.sort(times)[needed - 1]) + self.exposed_s)
                continue
            running = [self.env.process(self.client(float(t))) for t in times]
            arrived = simpy.Container(self.env)
            for process in running:
                process.callbacks.append(lambda _, arrived=arrived: arrived.put(1))
            yield arrived.get(needed)
            for process in running:
                if process.is_alive:
                    process.interrupt()

    def asynchronous(self) -> Parts:
        """Each client steps on its own, until the first has done all its steps."""
        bound = self.mode.staleness
        progress = np.zeros(self.clients, int)
        waited_s = 0.0
        stale: list[int] = []
        advance = self.env.event()  # fires whenever a client has finished a step
        finished = self.env.event()

        def run(number: int):
            nonlocal advance, waited_s
            while True:
                since = self.env.now
                while bound is not None and progress[number] - progress.min() > bound:
                    yield advance
                waited_s += self.env.now - since
                fetched_at = len(stale)
                yield from self.client(float(self.times()[number]))
                stale.append(len(stale) - fetched_at)
                progress[number] += 1
                fired, advance = advance, self.env.event()
                fired.succeed()
                if progress[number] == self.steps and not finished.triggered:
                    finished.succeed()

        for number in range(self.clients):
            self.env.process(run(number))
        self.env.run(finished)
        updates = len(stale)
        cycle_s = self.clients * self.env.now / updates
        compute_s = min(self.job.step_s * self.stragglers.mean, cycle_s)
        slowest = expected_slowest(self.together, self.stragglers, gpus_per_node=self.together)
        inside_s = self.job.step_s * (slowest - self.stragglers.mean)
        wait_s = min(waited_s / updates + inside_s, cycle_s - compute_s)
        left_s = cycle_s - compute_s - wait_s
        return Parts(self.workers, compute_s, wait_s, left_s, float(np.mean(stale)))
