"""How data-parallel training scales: a simulator of clusters.

Each of n workers computes the gradients of its own batch; the gradients are combined; all start
the next step with the same weights. A step lasts as long as

    slowest worker + communication - what of it hides behind the computation

and each of the three has its own mechanism:

* **Stragglers.** Step times vary, and everybody waits for the slowest (:class:`Stragglers`).
* **Communication.** Each way to combine loads the links in its own way (``clusters.py``).
* **Incast.** A tensor is not cut up among parameter servers, so one of them holds at least the
  largest tensor, and its link carries that tensor to and from *every* worker. That time grows
  with n however many servers there are.

:func:`step_times` gives the expectation, :func:`bottleneck` says which of five causes holds a
cluster back. ``events.py`` runs the same cluster with real queues, ``curves.py`` says how far all
this is from measured curves.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Self

import numpy as np

from fastdl_lib.core.checks import check_choice, check_whole_number
from fastdl_lib.scaling.clusters import (
    UP_TO_1,
    Cluster,
    Combine,
    Job,
    ParameterServer,
    default,
    keep_numbers,
)

# --- who waits for whom -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stragglers:
    """How step times vary: a fixed part and an exponential tail, ``1 - spread + spread * Exp(1)``
    times a worker's mean step.

    Args:
        spread: standard deviation of a worker's step time, as a share of its mean.
        slow_probability: that a node has a slow step; all its GPUs then take
        slow_factor: times as long.

    Raises: TypeError, ValueError: a number outside its range.

    >>> Stragglers(slow_probability=0.01, slow_factor=5).mean
    1.04
    """

    spread: float = default("spread")
    slow_probability: float = 0.0
    slow_factor: float = 1.0

    def __post_init__(self) -> None:
        below_1, from_1 = {"low": 0, "high": 1}, {"low": 1}
        keep_numbers(self, spread=UP_TO_1, slow_probability=below_1, slow_factor=from_1)

    @property
    def mean(self) -> float:
        """A worker's mean step, slow ones included, as a multiple of one without."""
        return 1 + self.slow_probability * (self.slow_factor - 1)

    def draw(
        self, rng: np.random.Generator, workers: int, gpus_per_node: int = 1, together: int = 1
    ) -> np.ndarray:
        """A random step of each worker, in mean steps; the GPUs of a node are slow together. Of
        each so many that count ``together`` the slowest."""
        times = 1 - self.spread + self.spread * rng.standard_exponential(workers)
        if self.slow_probability:
            node = np.arange(workers) // gpus_per_node
            slow = rng.random(node[-1] + 1) < self.slow_probability
            times *= np.where(slow, self.slow_factor, 1.0)[node]
        return np.maximum.reduceat(times, np.arange(0, workers, together))

    def cdf(self, time: np.ndarray) -> np.ndarray:
        """Probability that a step without a slow node takes at most ``time``."""
        if 1 - self.spread == 1:  # 0, or too small to be seen
            return (time >= 1).astype(float)
        return -np.expm1(-np.maximum(0, time - (1 - self.spread)) / self.spread)


@dataclasses.dataclass(frozen=True)
class Synchronous:
    """All wait for each other in every step.

    With ``backup`` workers only the gradients of the first ``n - backup`` count, and nobody waits
    for the rest (Chen et al., "Revisiting Distributed Synchronous SGD", arXiv:1604.00981).
    """

    backup: int = 0

    def __post_init__(self) -> None:
        keep_numbers(self, backup=0)


@dataclasses.dataclass(frozen=True)
class Asynchronous:
    """Each worker goes on with what weights the parameter server has.

    ``staleness`` bounds how many steps a worker may be ahead of the slowest (0 is synchronous);
    None: no bound (Ho et al., "More Effective Distributed ML via a Stale Synchronous Parallel
    Parameter Server", NIPS 2013).
    """

    staleness: int | None = None

    def __post_init__(self) -> None:
        if self.staleness is not None:
            keep_numbers(self, staleness=0)


Mode = Synchronous | Asynchronous
SYNCHRONOUS = Synchronous()


@functools.cache
def _harmonic(n: int) -> float:
    """1 + 1/2 + ... + 1/n: the expected largest of n exponential times with mean 1."""
    return math.fsum(1 / i for i in range(1, n + 1))


def expected_slowest(
    workers: int, stragglers: Stragglers, *, backup: int = 0, gpus_per_node: int = 1
) -> float:
    """How long the ``workers - backup`` fastest of n take, in mean steps: exactly, by quadrature.

    Where all are slow together or none is, it is ``1 + spread (H(n) - H(backup) - 1)`` mean steps,
    H the harmonic numbers; elsewhere 1 minus the distribution is integrated.

    >>> round(expected_slowest(100, Stragglers(spread=0.1)), 3)
    1.419
    >>> round(expected_slowest(100, Stragglers(spread=0.1), backup=4), 3)
    1.21
    """
    backup = check_whole_number("backup", backup, 0)
    workers = check_whole_number("workers", workers, backup + 1)
    gpus_per_node = check_whole_number("gpus_per_node", gpus_per_node, 1)
    slow = stragglers.slow_factor if stragglers.slow_probability else 1.0
    spread = stragglers.spread
    if slow == 1 or workers <= gpus_per_node:
        return stragglers.mean * (1 + spread * (_harmonic(workers) - _harmonic(backup) - 1))
    # As fine as the distribution is steep, and that for steps without and with a slow node.
    grid = 1 - spread + spread * np.linspace(0, math.log(workers) + 35, 20_001)
    grid = np.concatenate([[0, np.nextafter(grid[0], 0)], grid])
    time = np.unique(np.concatenate([grid, slow * grid]))
    done = _finished(time, workers, stragglers, backup, gpus_per_node)
    return float(np.trapezoid(1 - done, time))


def _finished(
    time: np.ndarray, workers: int, stragglers: Stragglers, backup: int, gpus: int
) -> np.ndarray:
    """Probability that at most ``backup`` of the workers are still busy at each time."""
    probability = stragglers.slow_probability
    normal, slow = stragglers.cdf(time), stragglers.cdf(time / stragglers.slow_factor)

    def busy_in_node(members: int) -> np.ndarray:
        """Row j: the probability that j of a node's GPUs are busy, j up to ``backup``."""
        busy = np.zeros((backup + 1, len(time)))
        for j in range(min(backup, members) + 1):
            busy[j] = (1 - probability) * normal ** (members - j) * (1 - normal) ** j
            busy[j] += probability * slow ** (members - j) * (1 - slow) ** j
            busy[j] *= math.comb(members, j)
        return busy

    def together(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        counts = range(backup + 1)
        return np.array([sum(first[i] * second[j - i] for i in range(j + 1)) for j in counts])

    full, rest = divmod(workers, gpus)
    busy = busy_in_node(rest)  # of no members: surely none
    power = busy_in_node(gpus)
    while full:  # by repeated squaring
        if full & 1:
            busy = together(busy, power)
        power = together(power, power)
        full >>= 1
    return busy.sum(axis=0)


# --- results ------------------------------------------------------------------------------------


class Parts(NamedTuple):
    """What a step of one number of workers is made of."""

    counted: int
    compute_s: float
    waiting_s: float
    communication_s: float
    staleness: float | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Scaling:
    """The answers, one for each number of workers; all arrays have shape (points,), float64.

    Args:
        counted: workers whose gradients count: all but the backup ones.
        compute_s: a mean step; less where backup workers let the others not wait even for that.
        waiting_s: for slower workers.
        communication_s: what the computation does not hide.
        how: the numbers came about.
        staleness: updates by others between fetching weights and updating them, mean; from discrete
            events of asynchronous workers. Its bound is in steps: even at 0, n workers update one
            after another.
    """

    job: Job
    workers: np.ndarray
    counted: np.ndarray
    compute_s: np.ndarray
    waiting_s: np.ndarray
    communication_s: np.ndarray
    how: str
    staleness: np.ndarray | None = None

    @classmethod
    def of(cls, job: Job, workers: Sequence[int], parts: Iterable[Parts], how: str) -> Self:
        """Put together what each number of workers takes."""
        *arrays, staleness = map(np.array, zip(*parts, strict=True))
        known = None if staleness[0] is None else staleness
        return cls(job, np.array(workers), *arrays, how, known)

    @property
    def step_s(self) -> np.ndarray:
        """A step, or for asynchronous workers the time between a worker's updates."""
        return self.compute_s + self.waiting_s + self.communication_s

    @property
    def images_per_s(self) -> np.ndarray:
        """Of all workers."""
        return self.counted * self.job.batch / self.step_s

    @property
    def speedup(self) -> np.ndarray:
        """Times the images a second of one GPU alone."""
        return self.images_per_s / self.job.images_per_s

    @property
    def efficiency_pct(self) -> np.ndarray:
        """Speed-up for each worker, in percent."""
        return 100 * self.speedup / self.workers


def worker_counts(
    cluster: Cluster, combine: Combine, mode: Mode, workers: int | Iterable[int]
) -> list[int]:
    """The numbers of workers that were asked for, checked against what else was."""
    points = [workers] if isinstance(workers, (int, np.integer)) else list(workers)
    if not points:
        raise ValueError("workers is empty; give a number such as 8, or several: [1, 2, 4, 8].")
    least = 1 + mode.backup if isinstance(mode, Synchronous) else 1
    if isinstance(mode, Asynchronous) and not isinstance(combine, ParameterServer):
        raise ValueError(
            f"asynchronous workers need a ParameterServer; {type(combine).__name__} is an "
            "all-reduce, in which all take part at once."
        )
    if least > 1 and getattr(combine, "summed_inside", False) and cluster.gpus_per_node > 1:
        raise ValueError(
            f"a node that sums the gradients of {cluster.gpus_per_node} GPUs can leave none out; "
            "backup workers need ParameterServer(summed_inside=False), or one GPU a node."
        )
    what = "workers" if least == 1 else f"workers with {mode.backup} backup workers among them"
    return [check_whole_number(what, point, least) for point in points]


def step_times(
    cluster: Cluster,
    job: Job,
    combine: Combine,
    workers: int | Iterable[int],
    *,
    mode: Mode = SYNCHRONOUS,
    stragglers: Stragglers | None = None,
) -> Scaling:
    """The expected step, without drawing random numbers.

    The wait under bounded staleness has no closed form: it is simulated, with a fixed seed. Where
    gradients queue at a server, the wait for stragglers and the queue are added up although they
    overlap: a run of events was up to a quarter shorter. What backup workers send while they
    compute fills a server's link like all else, so that hiding more may lengthen a step: 10
    workers, 7 of them backup, a server for 1 GB at 1 GB/s and 0.45 s of computing take 3.4 s where
    nothing hides, 6.5 s with a hidden share of 0.5, by events too.

    Raises: TypeError, ValueError: more workers than GPUs, too many backup workers, or asynchronous
    workers with an all-reduce.

    >>> from fastdl_lib.scaling.clusters import Ring
    >>> net = Cluster(nodes=64, between_gb_per_s=1.25, between_latency_s=5e-5)
    >>> job = Job(gradient_bytes=95e6, step_s=0.45, batch=64)
    >>> step_times(net, job, Ring(), [1, 64]).speedup.round(1)
    array([ 1. , 53.7])
    """
    stragglers = stragglers or Stragglers()
    points = worker_counts(cluster, combine, mode, workers)
    parts_of = _synchronous if isinstance(mode, Synchronous) else _asynchronous
    parts = [
        parts_of(job, combine, n, mode, stragglers, cluster.gpus_per_node, cost)
        for n in points
        for cost in [combine.communication(cluster, job, n)]
    ]
    return Scaling.of(job, points, parts, "simulated: expectation")


def _synchronous(job, combine, workers, mode, stragglers, gpus, cost) -> Parts:
    slowest = expected_slowest(workers, stragglers, backup=mode.backup, gpus_per_node=gpus)
    compute_s, waiting_s = job.step_s * min(1.0, slowest), job.step_s * max(0.0, slowest - 1)
    counted = workers - mode.backup
    left_s = combine.exposed_s(job, cost, compute_s, counted / workers)
    return Parts(counted, compute_s, waiting_s, left_s)


def _asynchronous(job, combine, workers, mode, stragglers, gpus, cost) -> Parts:
    if mode.staleness == 0:
        return _synchronous(job, combine, workers, SYNCHRONOUS, stragglers, gpus, cost)
    together = min(workers, combine.together(gpus))
    slowest = expected_slowest(together, stragglers, gpus_per_node=together)  # of a client
    compute_s, wait_s = job.step_s * stragglers.mean, job.step_s * (slowest - stragglers.mean)
    # Alone, an update takes its own links' time; together they cannot pass the busiest link
    # faster than it carries them.
    own = cost._replace(incast_s=0.0, last=job.last_bucket)
    alone_s = combine.exposed_s(job, own, compute_s + wait_s)
    if mode.staleness is not None and workers > together and math.isfinite(alone_s):
        draw = functools.partial(
            stragglers.draw, workers=workers, gpus_per_node=gpus, together=together
        )
        pause = alone_s / job.step_s
        wait_s += job.step_s * max(0.0, _mean_step(draw, mode.staleness, pause) - slowest - pause)
    busiest_s = cost.by_bytes_s
    return Parts(workers, compute_s, wait_s, max(alone_s, busiest_s - compute_s - wait_s))


def _mean_step(draw: Callable[..., np.ndarray], staleness: int, pause: float) -> float:
    """Mean step of clients that pause after each, and may be so many ahead of the slowest."""
    steps, rng = 2000, np.random.Generator(np.random.SFC64(0))
    finish, done_by_all = 0.0, [0.0]  # entry t: when all had finished t steps
    for step in range(steps):
        finish = np.maximum(finish, done_by_all[max(0, step - staleness)]) + draw(rng) + pause
        done_by_all.append(float(finish.max()))
    return done_by_all[-1] / steps


# --- what holds it back -------------------------------------------------------------------------


class Bottleneck(NamedTuple):
    """Which cause costs the most time, and what a step would save without each."""

    cause: str
    step_s: float
    saved_s: Mapping[str, float]


def bottleneck(
    cluster: Cluster,
    job: Job,
    combine: Combine,
    workers: int,
    *,
    stragglers: Stragglers | None = None,
) -> Bottleneck:
    """Name the cause that costs a synchronous step most: each is taken away once, all else kept.

    The five causes, and what helps:

    * ``compute``: the GPUs themselves, so the time goes where it should; faster ones, or more;
    * ``bandwidth``: bytes over a worker's own link; a faster link, fewer bytes, a larger batch;
    * ``latency``: messages that wait for each other; fewer rounds (a tree), larger buckets;
    * ``incast``: many share one link; more even shards, an all-reduce, summing inside the nodes;
    * ``stragglers``: waiting for the slowest; backup workers, staleness, steadier machines.

    >>> from fastdl_lib.scaling.clusters import Ring
    >>> net = Cluster(nodes=100, between_gb_per_s=0.125, between_latency_s=5e-5)
    >>> vgg = Job(gradient_bytes=553e6, step_s=0.4, batch=64)
    >>> bottleneck(net, vgg, Ring(), 16).cause
    'bandwidth'
    """
    stragglers = stragglers or Stragglers()
    cost = combine.communication(cluster, job, workers)
    slowest = expected_slowest(workers, stragglers, gpus_per_node=cluster.gpus_per_node)

    def step_s(slowest: float = slowest, **without: float) -> float:
        left_s = combine.exposed_s(job, cost._replace(**without), job.step_s)
        return job.step_s * slowest + left_s

    now = step_s()
    without = {
        # Nothing to hide behind either; the wait is the stragglers' own.
        "compute": cost.total_s + job.step_s * (slowest - 1),
        "bandwidth": step_s(bandwidth_s=0.0),
        "latency": step_s(latency_s=0.0),
        "incast": step_s(incast_s=0.0),
        "stragglers": step_s(1.0),
    }
    # Two infinities have no difference; below 0 is rounding.
    saved = {cause: max(0.0, now - s) if s < now else 0.0 for cause, s in without.items()}
    return Bottleneck(max(saved, key=saved.get), now, saved)


# --- an all-reduce, step by step ----------------------------------------------------------------


def all_reduce_schedule(way: str, workers: int) -> tuple[list[list[list[set[int]]]], float]:
    """Who holds whose sums after each step of an all-reduce, and how much was moved.

    Args:
        way: ``"ring"`` cuts the gradients into one chunk a worker, ``"tree"`` sends them whole.
        workers: from 2 up.

    Returns:
        ``[step][worker][chunk]``, each the set of workers whose gradients are in the sum, from the
        start on; and how many times all gradients' bytes go over a link one after another: each
        step takes as long as its longest message.

    >>> states, moved = all_reduce_schedule("ring", 4)
    >>> len(states), moved, states[-1][0][0]
    (7, 1.5, {0, 1, 2, 3})
    """
    workers = check_whole_number("workers", workers, 2)
    check_choice("way", way, ("ring", "tree"))
    sends: list[list[tuple[int, int, int]]]  # of each step: (from, to, chunk)
    if way == "ring":
        chunks, moved = workers, 2 * (workers - 1) / workers
        sends = [
            [(w, (w + 1) % workers, (w - step) % workers) for w in range(workers)]
            for step in range(2 * (workers - 1))
        ]
    else:
        distances = [2**power for power in range((workers - 1).bit_length())]
        ups = [[(w + d, w, 0) for w in range(0, workers - d, 2 * d)] for d in distances]
        sends = ups + [[(to, source, 0) for source, to, _ in up] for up in reversed(ups)]
        chunks, moved = 1, float(len(sends))
    states = [[[{w} for _ in range(chunks)] for w in range(workers)]]
    for step in sends:
        holds = [[set(chunk) for chunk in own] for own in states[-1]]
        for source, to, chunk in step:
            holds[to][chunk] |= states[-1][source][chunk]
        states.append(holds)
    return states, moved
