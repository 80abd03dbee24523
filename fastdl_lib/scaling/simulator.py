"""How data-parallel training scales: a simulator of clusters.

Each of n workers computes the gradients of its own batch; the gradients are combined; all start
the next step with the same weights. A step lasts as long as

    slowest worker + communication - what of it hides behind the computation

and each of the three has its own mechanism:

* **Stragglers.** Step times vary, and everybody waits for the slowest (:class:`Stragglers`).
* **Communication.** Each way to combine (:class:`Ring`, :class:`Tree`, :class:`HalvingDoubling`,
  :class:`Hierarchical`, :class:`ParameterServer`) loads the links in its own way; the busiest link
  sets the time. Links are full duplex, and buckets follow each other through them: the two
  directions do not add up, the busier one takes the time.
* **Incast.** A tensor is not cut up among parameter servers, so one of them holds at least the
  largest tensor, and its link carries that tensor to and from *every* worker. That time grows
  with n however many servers there are. ``Cluster.total_gb_per_s`` caps what all nodes send.

:func:`predict` gives the expectation, :func:`sweep` draws random steps for all worker counts at
once, :func:`discrete_event` runs a SimPy model with real queues. :func:`bottleneck` says which of
five causes holds a cluster back. Times are seconds, sizes bytes, rates GB/s (1e9 bytes a second).
How far it is from measured curves, ``scaling.py`` says.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar

import numpy as np
import simpy

from fastdl_lib.core.checks import check_number, check_whole_number
from fastdl_lib.measuring.evidence import Column, Measurement, Provenance, Table

__all__ = [
    "CAUSES",
    "CONSTANTS",
    "Asynchronous",
    "Bottleneck",
    "Cluster",
    "Combine",
    "Communication",
    "HalvingDoubling",
    "Hierarchical",
    "Job",
    "ParameterServer",
    "Ring",
    "Scaling",
    "Stragglers",
    "Synchronous",
    "Tree",
    "bottleneck",
    "constant_table",
    "discrete_event",
    "expected_slowest",
    "harmonic",
    "predict",
    "sweep",
]

# --- constants ----------------------------------------------------------------------------------


@functools.cache
def harmonic(n: int) -> float:
    """1 + 1/2 + ... + 1/n: the expected largest of n exponential times with mean 1.

    >>> round(harmonic(100), 2)
    5.19
    """
    return math.fsum(1 / i for i in range(1, n + 1))


_OSDI = "Abadi et al., TensorFlow, OSDI 2016 (read in a summary)"


def _constant(
    name: str, unit: str, value: float, source: str, kind: Provenance = Provenance.PUBLISHED
) -> tuple[str, Measurement]:
    return name, Measurement(name, unit, (value,), kind, source=source)


def _assumption(name: str, unit: str, value: float, why: str) -> tuple[str, Measurement]:
    return _constant(name, unit, value, f"assumption: {why}", Provenance.SIMULATED)


CONSTANTS: Mapping[str, Measurement] = dict(
    [
        _constant(
            "backward_share",
            "of a step",
            2 / 3,
            "a layer's backward pass takes two products (gradients of input and of weights), its "
            "forward pass one",
            Provenance.COMPUTED,
        ),
        _assumption(
            "hidden_share",
            "of the communication",
            0.75,
            "three quarters can run beside the computation, first and last layers cannot; chosen "
            "among 0.7 to 0.9 with the published curves in sight, one value for all",
        ),
        _constant(
            "spread",
            "of a step",
            0.1 / (harmonic(100) - 1),
            f"{_OSDI}, section 6.3: synchronous steps are about 10 % longer than asynchronous "
            "ones; taken at 100 workers, exponential tail",
            Provenance.COMPUTED,
        ),
        _assumption(
            "bucket_bytes",
            "bytes",
            25e6,
            "sent in pieces of 25 MB, as PyTorch's DistributedDataParallel does",
        ),
        _constant(
            "grpc_2017",
            "GB/s",
            100 * 0.1 / 16 / 0.613,
            f"{_OSDI}, section 6.2: 100 workers fetch 100 MB from 16 servers in 613 ms",
            Provenance.COMPUTED,
        ),
        _constant(
            "grpc_2016",
            "GB/s",
            0.16163,
            "github.com/tensorflow/tensorflow issue 4498, 2016-09: gRPC of TensorFlow 0.10, 161.63 "
            "MB/s between two processes, 1.3 Gbit/s on a network of 40",
        ),
        _constant(
            "grpc_latency",
            "s",
            0.0018 / 2,
            f"{_OSDI}, section 6.2: 1.8 ms for one worker to fetch and update a single number",
            Provenance.COMPUTED,
        ),
        _constant("ethernet_10g", "GB/s", 1.25, "10 Gbit/s (p2.8xlarge: documentation of SINGA)"),
        _assumption(
            "ec2_high",
            "GB/s",
            1.24 / 8,
            "Amazon gives no rate for p2.xlarge ('High'); 1.24 Gbit/s is the baseline that "
            "cloudonaut.io measured in 2018 for m5.xlarge, which has 4 virtual CPUs too",
        ),
        _constant("pcie3_x16", "GB/s", 15.75, "PCI Express 3.0, 16 lanes, one direction"),
        _constant(
            "nvlink1",
            "GB/s",
            20.0,
            "Tesla P100: 80 GB/s a direction over four links (microway.com); a ring uses one link",
        ),
        _assumption("gpu_latency", "s", 10e-6, "one transfer between two GPUs of a node"),
        _assumption(
            "osdi_servers",
            "servers",
            17,
            f"TensorFlow 0.8's post names none; 17 served up to 200 K40 workers in {_OSDI}, "
            "section 6.3",
        ),
        _constant(
            "k40_step",
            "s",
            3.37,
            "tensorflow/models, inception/README.md: one K40c, batch 32, 9.5 images/s",
        ),
    ]
)
"""Every number that the simulator brings along, with its unit and source.

What is labelled *simulated* here is an assumption, and says why it was made.
"""


def _value(name: str) -> float:
    return CONSTANTS[name].median


def constant_table() -> Table:
    """:data:`CONSTANTS` as a table.

    >>> len(constant_table().rows) == len(CONSTANTS)
    True
    """
    columns = (Column("name"), Column("value"), Column("unit"), Column("kind"), Column("source"))
    rows = tuple(
        {
            "name": name,
            "value": constant.median,
            "unit": constant.unit,
            "kind": "assumption"
            if constant.provenance is Provenance.SIMULATED
            else str(constant.provenance),
            "source": constant.source.removeprefix("assumption: "),
        }
        for name, constant in CONSTANTS.items()
    )
    return Table(columns, rows, "What the simulator takes for given")


# --- what is simulated --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster:
    """Nodes with GPUs, and the links inside and between them.

    Args:
        name: shown in tables.
        nodes: how many there are at most.
        gpus_per_node: GPUs a node.
        inside_gb_per_s: from one GPU to another of its node, one direction.
        inside_latency_s: of one such transfer.
        host_gb_per_s: from one GPU to its node's memory; by default as between two GPUs.
        host_total_gb_per_s: what all GPUs of a node share on that way; None: no common limit.
        between_gb_per_s: of a node's network link, one direction.
        between_latency_s: of one message, with the software around it.
        endpoint_gb_per_s: what the software (gRPC, TCP) gets out of a link; None: all of it.
        total_gb_per_s: what all nodes together can send (bisection of the network); None: no limit.
        source: where the rates come from.

    Raises:
        TypeError, ValueError: a rate or a count is missing, not positive or not finite.

    >>> Cluster(nodes=4, between_gb_per_s=1.25, between_latency_s=5e-5).gpus
    4
    """

    name: str = "cluster"
    nodes: int
    gpus_per_node: int = 1
    inside_gb_per_s: float | None = None
    inside_latency_s: float | None = None
    host_gb_per_s: float | None = None
    host_total_gb_per_s: float | None = None
    between_gb_per_s: float | None = None
    between_latency_s: float | None = None
    endpoint_gb_per_s: float | None = None
    total_gb_per_s: float | None = None
    source: str = ""

    def __post_init__(self) -> None:
        check_whole_number("nodes", self.nodes, 1)
        check_whole_number("gpus_per_node", self.gpus_per_node, 1)
        for there, linked, what in (
            ("inside", self.gpus_per_node > 1, f"{self.gpus_per_node} GPUs in a node"),
            ("between", self.nodes > 1, f"{self.nodes} nodes"),
        ):
            for name, such_as in (("gb_per_s", "1.25 for 10 Gbit/s"), ("latency_s", "50e-6")):
                if linked and getattr(self, f"{there}_{name}") is None:
                    raise ValueError(f"{what} need a link: give {there}_{name}, such as {such_as}.")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None and field.name.endswith("_latency_s"):
                check_number(field.name, value, low=0)
            elif value is not None and field.name.endswith("_gb_per_s"):
                check_number(field.name, value, low=0, low_included=False)

    @property
    def gpus(self) -> int:
        """All GPUs of the cluster."""
        return self.nodes * self.gpus_per_node

    @property
    def node_gb_per_s(self) -> float:
        """What a node's link carries in one direction: the wire or the software, the slower."""
        return min(self.between_gb_per_s, self.endpoint_gb_per_s or math.inf)

    def with_link_share(self, share: float) -> "Cluster":
        """The same cluster whose links carry only ``share`` of their rate.

        >>> slow = Cluster(nodes=2, between_gb_per_s=4, between_latency_s=0).with_link_share(0.5)
        >>> slow.between_gb_per_s
        2.0
        """
        check_number("share", share, low=0, low_included=False)
        rates = {
            field.name: share * getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name.endswith("_gb_per_s") and getattr(self, field.name) is not None
        }
        return dataclasses.replace(self, **rates)

    def spread_over(self, workers: int) -> tuple[int, int]:
        """(nodes, GPUs in the fullest node) that ``workers`` take up, node by node.

        Raises:
            TypeError, ValueError: no whole number, or more than there are GPUs.
        """
        check_whole_number("workers", workers, 1)
        if workers > self.gpus:
            raise ValueError(
                f"{workers} workers need {workers} GPUs; {self.name} has {self.gpus} "
                f"({self.nodes} nodes with {self.gpus_per_node}). Ask for fewer, or give it more "
                "nodes with dataclasses.replace(cluster, nodes=...)."
            )
        return math.ceil(workers / self.gpus_per_node), min(workers, self.gpus_per_node)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What one worker does in a step.

    Args:
        name: shown in tables.
        gradient_bytes: of all gradients; float32 takes 4 bytes a parameter.
        step_s: forward and backward pass of one batch on one GPU.
        batch: images in a worker's batch.
        hidden_share: 0 to 1, the part of the communication that may run beside the computation.
        bucket_bytes: gradients are sent in pieces of this size. The last piece is only ready when
            the backward pass has ended, so it never hides.
        largest_tensor_bytes: the largest piece that a parameter server holds whole.

    Raises:
        TypeError, ValueError: a number is missing or outside its range.

    >>> Job(gradient_bytes=95e6, step_s=0.45, batch=64).images_per_s
    142.22222222222223
    """

    name: str = "job"
    gradient_bytes: float
    step_s: float
    batch: int
    hidden_share: float = _value("hidden_share")
    bucket_bytes: float = _value("bucket_bytes")
    largest_tensor_bytes: float = 0.0

    def __post_init__(self) -> None:
        for name in ("gradient_bytes", "step_s", "bucket_bytes"):
            check_number(name, getattr(self, name), low=0, low_included=False)
        check_whole_number("batch", self.batch, 1)
        check_number("hidden_share", self.hidden_share, low=0, high=math.nextafter(1, 2))
        check_number("largest_tensor_bytes", self.largest_tensor_bytes, low=0)
        if self.largest_tensor_bytes > self.gradient_bytes:
            raise ValueError(
                f"the largest tensor ({self.largest_tensor_bytes:g} bytes) cannot be larger than "
                f"all gradients together ({self.gradient_bytes:g} bytes)."
            )

    @property
    def images_per_s(self) -> float:
        """Of one GPU alone."""
        return self.batch / self.step_s

    @property
    def buckets(self) -> int:
        """How many pieces the gradients are sent in."""
        return math.ceil(self.gradient_bytes / self.bucket_bytes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stragglers:
    """How step times vary, as a multiple of a worker's mean step.

    Args:
        spread: standard deviation of a worker's step time, as a share of its mean.
        distribution: "exponential": a fixed part and an exponential tail, ``1 - spread + spread *
            Exp(1)``; "lognormal".
        slow_probability: that a node has a slow step; all its GPUs then take
        slow_factor: times as long.
        failed_nodes: so many nodes never answer.

    Raises:
        TypeError, ValueError: a number outside its range, or an unknown distribution.

    >>> Stragglers(spread=0).spread
    0
    """

    spread: float = _value("spread")
    distribution: str = "exponential"
    slow_probability: float = 0.0
    slow_factor: float = 1.0
    failed_nodes: int = 0

    def __post_init__(self) -> None:
        check_number("spread", self.spread, low=0, high=math.nextafter(1, 2))
        if self.distribution not in ("exponential", "lognormal"):
            raise ValueError(
                f"distribution must be 'exponential' or 'lognormal', got {self.distribution!r}."
            )
        check_number("slow_probability", self.slow_probability, low=0, high=1)
        check_number("slow_factor", self.slow_factor, low=1)
        check_whole_number("failed_nodes", self.failed_nodes, 0)

    @property
    def mean(self) -> float:
        """A worker's mean step, slow ones included, as a multiple of one without."""
        return 1 + self.slow_probability * (self.slow_factor - 1)

    @property
    def plain(self) -> bool:
        """No slow nodes, exponential tail: the slowest of n has a closed form."""
        slow = self.slow_probability > 0 and self.slow_factor > 1
        return self.distribution == "exponential" and not slow

    def _log_sigma(self) -> float:
        return math.sqrt(math.log1p(self.spread**2))

    def draw(self, rng: np.random.Generator, size: int | tuple[int, ...]) -> np.ndarray:
        """Random step times with mean 1, without slow nodes."""
        if self.distribution == "exponential":
            return 1 - self.spread + self.spread * rng.standard_exponential(size)
        sigma = self._log_sigma()
        return np.exp(sigma * rng.standard_normal(size) - sigma**2 / 2)

    def cdf(self, time: np.ndarray) -> np.ndarray:
        """Probability that a step without a slow node takes at most ``time``."""
        if self.spread == 0:
            return (time >= 1).astype(float)
        if self.distribution == "exponential":
            return -np.expm1(-np.maximum(0, time - (1 - self.spread)) / self.spread)
        sigma = self._log_sigma()
        z = (np.log(np.maximum(time, 1e-300)) + sigma**2 / 2) / (sigma * math.sqrt(2))
        return 0.5 * (1 + np.array([math.erf(value) for value in z]))


@dataclasses.dataclass(frozen=True)
class Synchronous:
    """All wait for each other in every step.

    With ``backup`` workers only the gradients of the first ``n - backup`` count, and nobody waits
    for the rest (Chen et al., "Revisiting Distributed Synchronous SGD", arXiv:1604.00981).

    >>> Synchronous(backup=4).backup
    4
    """

    backup: int = 0

    def __post_init__(self) -> None:
        check_whole_number("backup", self.backup, 0)


@dataclasses.dataclass(frozen=True)
class Asynchronous:
    """Each worker goes on with what weights the parameter server has.

    ``staleness`` bounds how many steps a worker may be ahead of the slowest (0 is synchronous);
    None: no bound (Ho et al., "More Effective Distributed ML via a Stale Synchronous Parallel
    Parameter Server", NIPS 2013).

    >>> Asynchronous().staleness is None
    True
    """

    staleness: int | None = None

    def __post_init__(self) -> None:
        if self.staleness is not None:
            check_whole_number("staleness", self.staleness, 0)


Mode = Synchronous | Asynchronous


# --- ways to combine ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Communication:
    """What combining the gradients of one step takes, in seconds, before any of it hides."""

    bandwidth_s: float = 0.0
    """Bytes of one worker over its own links."""
    latency_s: float = 0.0
    """Messages that wait for each other, whatever their size."""
    incast_s: float = 0.0
    """What comes on top because many share a link: the busiest server's, or the network's cap."""

    @property
    def total_s(self) -> float:
        """All three."""
        return self.bandwidth_s + self.latency_s + self.incast_s

    def __add__(self, other: "Communication") -> "Communication":
        """One after the other."""
        return Communication(
            self.bandwidth_s + other.bandwidth_s,
            self.latency_s + other.latency_s,
            self.incast_s + other.incast_s,
        )


def _shared(cluster: Cluster, own_s: float, sent_bytes: float) -> float:
    """How much longer than its own link the network's common limit makes it take."""
    if cluster.total_gb_per_s is None:
        return 0.0
    return max(0.0, sent_bytes / (1e9 * cluster.total_gb_per_s) - own_s)


class Combine:
    """A way to combine the gradients of all workers; see the subclasses."""

    hides_behind: ClassVar[float] = _value("backward_share")
    """Share of a step that communication can hide behind: an all-reduce runs beside the backward
    pass, which makes the gradients; the weights of a parameter server are fetched beside the
    forward pass too."""

    def communication(self, cluster: Cluster, job: Job, workers: int) -> Communication:
        """What combining takes.

        Raises:
            TypeError, ValueError: ``workers`` do not fit into the cluster.
        """
        return self._communication(cluster, job, workers, *cluster.spread_over(workers))

    def _communication(
        self, cluster: Cluster, job: Job, workers: int, nodes: int, gpus: int
    ) -> Communication:
        raise NotImplementedError(f"{type(self).__name__} does not say what it takes.")

    def exposed_s(self, job: Job, communication: Communication) -> float:
        """What of the communication is left over when the computation hides all that it can, s."""
        total = communication.total_s
        return total - min(self.hidden_share(job) * total, self.hides_behind * job.step_s)

    @staticmethod
    def hidden_share(job: Job) -> float:
        """Share of the communication that may hide: all that the job allows but the last bucket."""
        return min(job.hidden_share, max(0.0, 1 - job.bucket_bytes / job.gradient_bytes))


def _inside(cluster: Cluster, job: Job, gpus: int, rounds: int) -> Communication:
    """Reduce-scatter and all-gather inside a node."""
    if gpus == 1:
        return Communication()
    volume = 2 * (gpus - 1) / gpus * job.gradient_bytes
    return Communication(
        volume / (1e9 * cluster.inside_gb_per_s), job.buckets * rounds * cluster.inside_latency_s
    )


def _between(cluster: Cluster, job: Job, nodes: int, volume: float, rounds: int) -> Communication:
    """``volume`` bytes out of (and into) each node, in ``rounds`` that wait for each other."""
    if nodes == 1:
        return Communication()
    own_s = volume / (1e9 * cluster.node_gb_per_s)
    return Communication(
        own_s,
        job.buckets * rounds * cluster.between_latency_s,
        _shared(cluster, own_s, nodes * volume),
    )


@dataclasses.dataclass(frozen=True)
class Ring(Combine):
    """One ring through all GPUs; each link carries ``2 (n-1)/n`` of the gradients in ``2 (n-1)``
    rounds (Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms", 2009).

    >>> job = Job(gradient_bytes=1e9, step_s=1, batch=1, bucket_bytes=1e9)
    >>> pair = Cluster(nodes=2, between_gb_per_s=1, between_latency_s=0.01)
    >>> Ring().communication(pair, job, 2)
    Communication(bandwidth_s=1.0, latency_s=0.02, incast_s=0.0)
    """

    def _communication(self, cluster, job, workers, nodes, gpus):
        volume = 2 * (workers - 1) / workers * job.gradient_bytes
        rounds = 2 * (workers - 1)
        if nodes == 1:
            return _inside(cluster, job, gpus, rounds)
        # The ring goes at the pace of its slowest link, and enters each node once.
        between = _between(cluster, job, nodes, volume, rounds)
        if gpus == 1:
            return between
        inside_s = volume / (1e9 * cluster.inside_gb_per_s)
        return dataclasses.replace(between, bandwidth_s=max(between.bandwidth_s, inside_s))


@dataclasses.dataclass(frozen=True)
class Tree(Combine):
    """Sums go up a binary tree, the result comes down again: ``2 log2 n`` rounds, each with all
    gradients. Few rounds and many bytes: good for small gradients.

    >>> job = Job(gradient_bytes=1e9, step_s=1, batch=1, bucket_bytes=1e9)
    >>> eight = Cluster(nodes=8, between_gb_per_s=1, between_latency_s=0.01)
    >>> Tree().communication(eight, job, 8)
    Communication(bandwidth_s=6.0, latency_s=0.06, incast_s=0.0)
    """

    def _communication(self, cluster, job, workers, nodes, gpus):
        rounds, size = 2 * math.ceil(math.log2(nodes)), job.gradient_bytes
        between = _between(cluster, job, nodes, rounds * size, rounds)
        if gpus == 1:
            return between
        rounds = 2 * math.ceil(math.log2(gpus))
        inside = Communication(
            rounds * size / (1e9 * cluster.inside_gb_per_s),
            job.buckets * rounds * cluster.inside_latency_s,
        )
        return inside + between


@dataclasses.dataclass(frozen=True)
class HalvingDoubling(Combine):
    """Partners swap halves, then quarters, and back: the bytes of a ring in ``2 log2 n`` rounds
    (Thakur, Rabenseifner, Gropp, 2005). For an n that is no power of two the rounds are rounded
    up; the extra bytes are left out.

    >>> job = Job(gradient_bytes=1e9, step_s=1, batch=1, bucket_bytes=1e9)
    >>> four = Cluster(nodes=4, between_gb_per_s=1, between_latency_s=0.01)
    >>> HalvingDoubling().communication(four, job, 4)
    Communication(bandwidth_s=1.5, latency_s=0.04, incast_s=0.0)
    """

    def _communication(self, cluster, job, workers, nodes, gpus):
        volume = 2 * (nodes - 1) / nodes * job.gradient_bytes
        return _inside(cluster, job, gpus, 2 * math.ceil(math.log2(gpus))) + _between(
            cluster, job, nodes, volume, 2 * math.ceil(math.log2(nodes))
        )


@dataclasses.dataclass(frozen=True)
class Hierarchical(Combine):
    """Sum inside each node first, then a ring of nodes, then share inside again.

    >>> job = Job(gradient_bytes=1e9, step_s=1, batch=1, bucket_bytes=1e9)
    >>> pods = Cluster(nodes=2, gpus_per_node=2, inside_gb_per_s=10, inside_latency_s=0,
    ...                between_gb_per_s=1, between_latency_s=0.01)
    >>> Hierarchical().communication(pods, job, 4)
    Communication(bandwidth_s=1.1, latency_s=0.02, incast_s=0.0)
    """

    def _communication(self, cluster, job, workers, nodes, gpus):
        volume = 2 * (nodes - 1) / nodes * job.gradient_bytes
        return _inside(cluster, job, gpus, 2 * (gpus - 1)) + _between(
            cluster, job, nodes, volume, 2 * (nodes - 1)
        )


@dataclasses.dataclass(frozen=True)
class ParameterServer(Combine):
    """Servers hold the weights, each its shard; gradients go in, weights come out.

    Tensors are dealt out so that the shards are as even as they can be, but a tensor stays whole:
    the largest shard is ``max(gradients / shards, largest tensor)``. Its server talks to everybody,
    so its link carries that shard once for every client, in each direction. A single worker needs
    no server.

    Args:
        shards: servers; or a mapping from the number of workers to it; None: one a node.
        dedicated: servers run on nodes of their own; otherwise on the workers' nodes, whose links
            they share.
        summed_inside: a node sums its GPUs' gradients and talks to the servers once; otherwise
            each GPU does.

    Raises:
        TypeError, ValueError: no whole number of shards from 1 up.

    >>> job = Job(gradient_bytes=1e9, step_s=1, batch=1, bucket_bytes=1e9)
    >>> net = Cluster(nodes=10, between_gb_per_s=1, between_latency_s=0)
    >>> ParameterServer(shards=1, dedicated=True).communication(net, job, 10)
    Communication(bandwidth_s=1.0, latency_s=0.0, incast_s=9.0)
    """

    shards: int | Mapping[int, int] | None = None
    dedicated: bool = False
    summed_inside: bool = True

    hides_behind: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.shards, Mapping):
            for shards in self.shards.values():
                check_whole_number("shards", shards, 1)
        elif self.shards is not None:
            check_whole_number("shards", self.shards, 1)

    def largest_shard_bytes(self, job: Job, workers: int, nodes: int) -> float:
        """Bytes on the server that holds most.

        Raises:
            KeyError: ``shards`` is a mapping without this number of workers.
        """
        shards = nodes if self.shards is None else self.shards
        if isinstance(shards, Mapping):
            if workers not in shards:
                raise KeyError(
                    f"shards are given for {sorted(shards)} workers, not for {workers}: add it."
                )
            shards = shards[workers]
        return max(job.gradient_bytes / shards, job.largest_tensor_bytes)

    def clients(self, nodes: int, workers: int) -> int:
        """Who talks to the servers: nodes, or every worker."""
        return nodes if self.summed_inside else workers

    def _communication(self, cluster, job, workers, nodes, gpus):
        size = job.gradient_bytes
        inside = Communication()
        if gpus > 1:
            # Through the node's memory; with one node that is the server.
            own_s = size / (1e9 * (cluster.host_gb_per_s or cluster.inside_gb_per_s))
            shared_s = gpus * size / (1e9 * (cluster.host_total_gb_per_s or math.inf))
            inside = Communication(own_s, 2 * cluster.inside_latency_s, max(0.0, shared_s - own_s))
        if nodes == 1:
            return inside
        shard = self.largest_shard_bytes(job, workers, nodes)
        clients = self.clients(nodes, workers)
        here = clients / nodes  # clients that share a node's link
        if self.dedicated:
            even = here * size
            busiest = max(even, clients * shard)
        else:
            # Were every node to serve an even share, its clients and its server would move this.
            even = 2 * here * size * (nodes - 1) / nodes
            # The node with the largest shard: its clients' other shards, all others' visits.
            busiest = max(even, here * (size - shard) + (clients - here) * shard)
        rate = 1e9 * cluster.node_gb_per_s
        sent = 2 * clients * size * (1 if self.dedicated else (nodes - 1) / nodes)
        incast_s = (busiest - even) / rate
        incast_s += _shared(cluster, busiest / rate, sent)
        between = Communication(even / rate, 2 * cluster.between_latency_s, incast_s)
        return inside + between


# --- the slowest of n ---------------------------------------------------------------------------


def expected_slowest(
    workers: int, stragglers: Stragglers, *, backup: int = 0, gpus_per_node: int = 1
) -> float:
    """How long the ``workers - backup`` fastest of n take, in mean steps: exactly, by quadrature.

    With an exponential tail and no slow nodes it is ``1 + spread (H(n) - H(backup) - 1)``, H the
    harmonic numbers; otherwise 1 minus the distribution is integrated.

    Raises:
        TypeError, ValueError: counts below 1, or as many backup workers as workers.

    >>> round(expected_slowest(100, Stragglers(spread=0.1)), 3)
    1.419
    >>> round(expected_slowest(100, Stragglers(spread=0.1), backup=4), 3)
    1.21
    """
    check_whole_number("workers", workers, 1)
    check_whole_number("gpus_per_node", gpus_per_node, 1)
    _check_backup(workers, backup)
    if stragglers.plain:
        return 1 + stragglers.spread * (harmonic(workers) - harmonic(backup) - 1)
    slow = stragglers.slow_factor if stragglers.slow_probability else 1.0
    if stragglers.distribution == "exponential":
        high = 1 - stragglers.spread + stragglers.spread * (math.log(workers) + 35)
    else:
        high = math.exp(stragglers._log_sigma() * (math.sqrt(2 * math.log(workers) + 1) + 7))
    time = np.linspace(0, slow * high, 20_001)
    done = _finished(time, workers, stragglers, backup, gpus_per_node)
    return float(np.trapezoid(1 - done, time))


def _check_backup(workers: int, backup: int) -> None:
    check_whole_number("backup", backup, 0)
    if backup >= workers:
        raise ValueError(
            f"{backup} backup workers of {workers} leave no gradients that count; take fewer."
        )


def _finished(
    time: np.ndarray, workers: int, stragglers: Stragglers, backup: int, gpus: int
) -> np.ndarray:
    """Probability that at most ``backup`` of the workers are still busy at each time."""
    probability = stragglers.slow_probability
    normal, slow = stragglers.cdf(time), stragglers.cdf(time / stragglers.slow_factor)

    def busy_in_node(members: int) -> np.ndarray:
        """Row j: the probability that j of a node's GPUs are busy, j up to ``backup``."""
        return np.array(
            [
                math.comb(members, j)
                * (
                    (1 - probability) * normal ** (members - j) * (1 - normal) ** j
                    + probability * slow ** (members - j) * (1 - slow) ** j
                )
                if j <= members
                else np.zeros_like(time)
                for j in range(backup + 1)
            ]
        )

    def together(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return np.array(
            [sum(first[i] * second[j - i] for i in range(j + 1)) for j in range(backup + 1)]
        )

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


@dataclasses.dataclass(frozen=True, eq=False)
class Scaling:
    """The answers, one for each number of workers; all arrays have shape (points,), float64."""

    job: Job
    workers: np.ndarray
    """int64."""
    counted: np.ndarray
    """Workers whose gradients count: all but backup and failed ones."""
    compute_s: np.ndarray
    waiting_s: np.ndarray
    """For slower workers; infinite where a failed node is waited for."""
    communication_s: np.ndarray
    """What the computation does not hide."""
    how: str
    """How the numbers came about."""
    staleness: np.ndarray | None = None
    """Updates by others between fetching weights and updating them, mean; from discrete events of
    asynchronous workers. The bound is in steps: even at 0, n workers update one after another."""

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

    def table(self) -> Table:
        """One row for each number of workers."""
        made = Provenance.SIMULATED
        columns = (
            Column("workers"),
            Column("compute_s", "computing", "s", made),
            Column("waiting_s", "waiting", "s", made),
            Column("communication_s", "communicating", "s", made),
            Column("images_per_s", "speed", "images/s", made),
            Column("speedup", "speed-up", provenance=made),
            Column("efficiency_pct", "efficiency", "%", made),
        )
        values = {c.key: getattr(self, c.key).tolist() for c in columns}
        rows = tuple(
            dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)
        )
        return Table(columns, rows, f"{self.job.name} ({self.how})")


def _points(workers: int | Iterable[int]) -> list[int]:
    points = [workers] if isinstance(workers, (int, np.integer)) else list(workers)
    if not points:
        raise ValueError("workers is empty; give a number such as 8, or several: [1, 2, 4, 8].")
    for point in points:
        check_whole_number("workers", point, 1)
    return [int(point) for point in points]


def _check_mode(combine: Combine, mode: Mode, points: Sequence[int]) -> None:
    if isinstance(mode, Asynchronous):
        if not isinstance(combine, ParameterServer):
            raise ValueError(
                f"asynchronous workers need a ParameterServer; {type(combine).__name__} is an "
                "all-reduce, in which all take part at once."
            )
    else:
        for point in points:
            _check_backup(point, mode.backup)


def _lost(cluster: Cluster, stragglers: Stragglers, workers: int) -> int:
    """Workers on failed nodes."""
    return min(workers, stragglers.failed_nodes * cluster.gpus_per_node)


def _assemble(
    cluster: Cluster,
    job: Job,
    combine: Combine,
    points: list[int],
    mode: Mode,
    stragglers: Stragglers,
    slowest: Callable[[int, int, int], float],
    behind: Callable[[int, float, int], float],
    how: str,
) -> Scaling:
    """Put a step together; ``slowest(workers, left, backup)`` and ``behind(workers, pause,
    staleness)`` give the stragglers' part, in mean steps."""
    waiting, communication, counted = [], [], []
    compute_s = job.step_s * (1.0 if isinstance(mode, Synchronous) else stragglers.mean)
    for workers in points:
        cost = combine.communication(cluster, job, workers)
        lost = _lost(cluster, stragglers, workers)
        if isinstance(mode, Synchronous):
            counted.append(workers - mode.backup)
            communication.append(combine.exposed_s(job, cost))
            if lost > mode.backup:
                waiting.append(math.inf)
            else:
                waiting.append(job.step_s * (slowest(workers, lost, mode.backup) - 1))
            continue
        # Alone, an update takes its own links' time; together they cannot pass the busiest link
        # faster than it carries them.
        alone = combine.exposed_s(job, dataclasses.replace(cost, incast_s=0.0))
        wait = 0.0
        if mode.staleness is not None and workers > 1:
            if lost:
                wait = math.inf
            else:
                wait = job.step_s * behind(workers, alone / job.step_s, mode.staleness)
        cycle = max(compute_s + wait + alone, cost.bandwidth_s + cost.incast_s)
        counted.append(workers - lost)
        waiting.append(wait)
        communication.append(cycle - compute_s - wait if math.isfinite(wait) else alone)
    return Scaling(
        job,
        np.array(points),
        np.array(counted),
        np.full(len(points), compute_s),
        np.array(waiting),
        np.array(communication),
        how,
    )


def predict(
    cluster: Cluster,
    job: Job,
    combine: Combine,
    workers: int | Iterable[int],
    *,
    mode: Mode = Synchronous(),
    stragglers: Stragglers = Stragglers(),
) -> Scaling:
    """The expected step, without drawing random numbers.

    The wait under bounded staleness has no closed form: it is simulated, with a fixed seed.

    Raises:
        TypeError, ValueError: more workers than GPUs, too many backup workers, or asynchronous
            workers with an all-reduce.

    >>> net = Cluster(nodes=64, between_gb_per_s=1.25, between_latency_s=5e-5)
    >>> job = Job(gradient_bytes=95e6, step_s=0.45, batch=64)
    >>> predict(net, job, Ring(), [1, 64]).speedup.round(1)
    array([ 1. , 53.7])
    """
    points = _points(workers)
    _check_mode(combine, mode, points)

    def slowest(n: int, lost: int, backup: int) -> float:
        return expected_slowest(
            n - lost, stragglers, backup=backup - lost, gpus_per_node=cluster.gpus_per_node
        )

    def behind(n: int, pause: float, staleness: int) -> float:
        return _stale_wait(n, pause, staleness, stragglers, cluster.gpus_per_node, 2000, 0)

    return _assemble(
        cluster, job, combine, points, mode, stragglers, slowest, behind, "simulated: expectation"
    )


# --- random steps -------------------------------------------------------------------------------


def sweep(
    cluster: Cluster,
    job: Job,
    combine: Combine,
    workers: int | Iterable[int],
    *,
    steps: int = 10_000,
    seed: int = 0,
    mode: Mode = Synchronous(),
    stragglers: Stragglers = Stragglers(),
) -> Scaling:
    """Draw ``steps`` random steps for every number of workers, all numbers in one go.

    Worker after worker joins: its times of all steps are drawn, and a running maximum over the
    workers so far is the slowest of 1, 2, 3, ... So all counts cost no more than the largest.
    Bounded staleness is stepped through for each count on its own.

    Raises:
        TypeError, ValueError: as :func:`predict`; fewer than 1 steps.

    >>> net = Cluster(nodes=8, between_gb_per_s=1.25, between_latency_s=5e-5)
    >>> job = Job(gradient_bytes=95e6, step_s=0.45, batch=64)
    >>> sweep(net, job, Ring(), range(1, 9), steps=1000).step_s.shape
    (8,)
    """
    points = _points(workers)
    check_whole_number("steps", steps, 1)
    _check_mode(combine, mode, points)
    gpus = cluster.gpus_per_node
    tables: dict[int, np.ndarray] = {}

    def slowest(n: int, lost: int, backup: int) -> float:
        if backup - lost not in tables:
            tables[backup - lost] = _slowest_of_each(
                max(points), stragglers, backup - lost, gpus, steps, seed
            )
        return tables[backup - lost][n - lost]

    def behind(n: int, pause: float, staleness: int) -> float:
        return _stale_wait(n, pause, staleness, stragglers, gpus, steps, seed)

    return _assemble(
        cluster,
        job,
        combine,
        points,
        mode,
        stragglers,
        slowest,
        behind,
        f"simulated: {steps:,} random steps",
    )


def _slowest_of_each(
    most: int, stragglers: Stragglers, backup: int, gpus: int, steps: int, seed: int
) -> np.ndarray:
    """Entry n: the mean over the steps of the (backup + 1)-th slowest of n workers; (most + 1,)."""
    rng = np.random.Generator(np.random.SFC64(seed))
    # The largest so far, the second largest, ...: as many as there are backup workers, and one.
    largest = np.full((backup + 1, steps), -np.inf, np.float32)
    drawn, lower = np.empty((2, steps), np.float32)
    # Spread and logarithm keep the order, so the plain draws are compared, and the mean converted.
    plain = stragglers.plain
    sigma = stragglers._log_sigma()
    means = np.full(most + 1, math.nan)
    for worker in range(most):
        if stragglers.distribution == "exponential":
            rng.standard_exponential(dtype=np.float32, out=drawn)
        else:
            rng.standard_normal(dtype=np.float32, out=drawn)
        if not plain:
            if stragglers.distribution == "exponential":
                drawn *= stragglers.spread
                drawn += 1 - stragglers.spread
            else:
                drawn *= sigma
                drawn -= sigma**2 / 2
                np.exp(drawn, out=drawn)
            if worker % gpus == 0:  # the next node
                count = rng.binomial(steps, stragglers.slow_probability)
                slow = rng.choice(steps, count, replace=False, shuffle=False) if count else None
            if slow is not None:
                drawn[slow] *= stragglers.slow_factor
        for row in largest[:-1]:
            np.minimum(row, drawn, out=lower)
            np.maximum(row, drawn, out=row)
            drawn, lower = lower, drawn
        np.maximum(largest[-1], drawn, out=largest[-1])
        if worker >= backup:
            means[worker + 1] = largest[-1].mean()
    return 1 - stragglers.spread + stragglers.spread * means if plain else means


def _stale_wait(
    workers: int,
    pause: float,
    staleness: int,
    stragglers: Stragglers,
    gpus: int,
    steps: int,
    seed: int,
) -> float:
    """Mean wait a step of workers that may be ``staleness`` steps ahead of the slowest."""
    rng = np.random.Generator(np.random.SFC64(seed))
    finish = np.zeros(workers)
    done_by_all = [0.0]  # entry t: when all had finished t steps
    node = np.arange(workers) // gpus
    for step in range(steps):
        times = stragglers.draw(rng, workers)
        if stragglers.slow_probability:
            times *= np.where(
                rng.random(node[-1] + 1) < stragglers.slow_probability, stragglers.slow_factor, 1
            )[node]
        start = np.maximum(finish, done_by_all[max(0, step - staleness)])
        finish = start + times + pause
        done_by_all.append(float(finish.max()))
    return max(0.0, done_by_all[-1] / steps - stragglers.mean - pause)


# --- discrete events ----------------------------------------------------------------------------


def discrete_event(
    cluster: Cluster,
    job: Job,
    combine: Combine,
    workers: int | Iterable[int],
    *,
    steps: int = 100,
    seed: int = 0,
    mode: Mode = Synchronous(),
    stragglers: Stragglers = Stragglers(),
    pieces: int = 8,
) -> Scaling:
    """Run every step as events with SimPy, queues included.

    The busiest link of a parameter server serves one piece at a time, first come, first served. A
    client sends ``pieces`` pieces of its exchange: those that may hide while it computes, the rest
    when it has computed. An all-reduce has no queue: its time follows the slowest worker.

    Raises:
        TypeError, ValueError: as :func:`predict`; fewer than 1 steps or 2 pieces.

    >>> net = Cluster(nodes=8, between_gb_per_s=1.25, between_latency_s=5e-5)
    >>> job = Job(gradient_bytes=95e6, step_s=0.45, batch=64)
    >>> run = discrete_event(net, job, ParameterServer(), 8, mode=Asynchronous(), steps=20)
    >>> round(float(run.staleness[0]))
    7
    """
    points = _points(workers)
    check_whole_number("steps", steps, 1)
    check_whole_number("pieces", pieces, 2)
    _check_mode(combine, mode, points)
    runs = [
        _Run(cluster, job, combine, point, steps, seed, mode, stragglers, pieces).result()
        for point in points
    ]
    counted, waiting, communication, staleness = zip(*runs, strict=True)
    asynchronous = isinstance(mode, Asynchronous)
    return Scaling(
        job,
        np.array(points),
        np.array(counted),
        np.full(len(points), job.step_s * (stragglers.mean if asynchronous else 1.0)),
        np.array(waiting),
        np.array(communication),
        f"simulated: {steps:,} steps of discrete events",
        np.array(staleness) if asynchronous else None,
    )


class _Run:
    """One number of workers, event by event."""

    def __init__(self, cluster, job, combine, workers, steps, seed, mode, stragglers, pieces):
        self.job, self.combine, self.workers, self.steps = job, combine, workers, steps
        self.mode, self.stragglers, self.pieces = mode, stragglers, pieces
        self.rng = np.random.default_rng(seed)
        _, self.gpus = cluster.spread_over(workers)
        self.lost = _lost(cluster, stragglers, workers)
        cost = combine.communication(cluster, job, workers)
        self.exposed_s = combine.exposed_s(job, cost)
        self.hidden_share = combine.hidden_share(job)
        self.latency_s = (1 - self.hidden_share) * cost.latency_s
        # A node's GPUs are one client of the servers where they are summed inside.
        self.queues = isinstance(combine, ParameterServer)
        self.together = self.gpus if self.queues and combine.summed_inside else 1
        self.clients = math.ceil(workers / self.together)
        self.alive = self.clients - math.ceil(self.lost / self.together)
        self.own_s = cost.bandwidth_s
        self.service_s = (cost.bandwidth_s + cost.incast_s) / self.clients
        self.env = simpy.Environment()
        self.link = simpy.Resource(self.env)

    def times(self) -> np.ndarray:
        """Seconds that each client computes in one step: the slowest of its GPUs."""
        times = self.stragglers.draw(self.rng, self.workers)
        node = np.arange(self.workers) // self.gpus
        if self.stragglers.slow_probability:
            slow = self.rng.random(node[-1] + 1) < self.stragglers.slow_probability
            times = times * np.where(slow, self.stragglers.slow_factor, 1.0)[node]
        first = np.arange(0, self.workers, self.together)
        return self.job.step_s * np.maximum.reduceat(times, first)

    def piece(self, delay: float, share: float):
        """A share of an exchange: ready after ``delay``; through the busiest link in its turn,
        and no faster than through the client's own."""
        try:
            yield self.env.timeout(delay)
            own = self.env.timeout(share * self.own_s)
            with self.link.request() as turn:
                yield turn
                yield self.env.timeout(share * self.service_s)
            yield own
        except simpy.Interrupt:
            return  # nobody waits for this gradient any more

    def client(self, compute_s: float):
        """Compute, and exchange piece by piece; ends when both are done."""
        last = 1 - self.hidden_share
        parts = [self.env.process(self.piece(compute_s, last))]
        if self.hidden_share:
            begin = 1 - self.combine.hides_behind
            for number in range(self.pieces):
                # Ready midway through the part of the computation that makes it.
                done = begin + (1 - begin) * (number + 0.5) / self.pieces
                share = self.hidden_share / self.pieces
                parts.append(self.env.process(self.piece(done * compute_s, share)))
        try:
            yield self.env.all_of(parts)
            yield self.env.timeout(self.latency_s)
        except simpy.Interrupt:
            for part in parts:
                if part.is_alive:
                    part.interrupt()

    def synchronous(self):
        """Steps one after another; each ends with the last gradients that count."""
        # Where a node is one client, backup workers are counted in nodes.
        needed = math.ceil((self.workers - self.mode.backup) / self.together)
        for _ in range(self.steps):
            times = self.times()[: self.alive]
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

    def result(self) -> tuple[int, float, float, float]:
        """(workers that count, waiting s, communication s, mean staleness)."""
        step_s = self.job.step_s
        if isinstance(self.mode, Synchronous):
            counted = self.workers - self.mode.backup
            if self.lost > self.mode.backup:
                return counted, math.inf, self.exposed_s, 0.0
            self.env.run(self.env.process(self.synchronous()))
            mean_s = self.env.now / self.steps
            wait = step_s * (
                expected_slowest(
                    self.workers - self.lost,
                    self.stragglers,
                    backup=self.mode.backup - self.lost,
                    gpus_per_node=self.gpus,
                )
                - 1
            )
            wait = min(wait, mean_s - step_s)
            return counted, wait, mean_s - step_s - wait, 0.0
        if self.lost and self.mode.staleness is not None:
            return self.workers - self.lost, math.inf, self.exposed_s, 0.0
        return self.asynchronous()

    def asynchronous(self) -> tuple[int, float, float, float]:
        """Each client steps on its own, until the first has done all its steps."""
        progress = np.zeros(self.alive, int)
        waited_s = 0.0
        stale: list[int] = []
        advance = self.env.event()  # fires whenever a client has finished a step
        finished = self.env.event()

        def run(number: int):
            nonlocal advance, waited_s
            while True:
                if self.mode.staleness is not None:
                    since = self.env.now
                    while progress[number] - progress.min() > self.mode.staleness:
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

        for number in range(self.alive):
            self.env.process(run(number))
        self.env.run(finished)
        updates = len(stale)
        cycle_s, wait_s = self.alive * self.env.now / updates, waited_s / updates
        communication_s = cycle_s - self.job.step_s * self.stragglers.mean - wait_s
        return self.workers - self.lost, wait_s, communication_s, float(np.mean(stale))


# --- what holds it back -------------------------------------------------------------------------

CAUSES: Mapping[str, str] = {
    "compute": "the GPUs themselves: faster ones, or more of them, speed it up",
    "bandwidth": "bytes over a worker's own link: a faster link, fewer bytes, a larger batch",
    "latency": "messages that wait for each other: fewer rounds (a tree), larger buckets",
    "incast": "many share one link: more even shards, an all-reduce, summing inside the nodes",
    "stragglers": "waiting for the slowest: backup workers, staleness, steadier machines",
}
"""The five causes, each with what it means and what helps."""


@dataclasses.dataclass(frozen=True)
class Bottleneck:
    """Which cause costs the most time, and what a step would save without each."""

    cause: str
    step_s: float
    saved_s: Mapping[str, float]

    @property
    def advice(self) -> str:
        """The cause in words, and what helps."""
        return f"{self.cause}: {CAUSES[self.cause]}"

    def table(self) -> Table:
        """The causes, the costliest first."""
        rows = sorted(self.saved_s.items(), key=lambda item: -item[1])
        made = Provenance.SIMULATED
        return Table(
            (
                Column("cause"),
                Column("saved_s", "saved without it", "s", made),
                Column("saved_pct", "of the step", "%", made),
                Column("what", "what it is, and what helps"),
            ),
            tuple(
                {
                    "cause": cause,
                    "saved_s": saved,
                    "saved_pct": 100 * saved / self.step_s,
                    "what": CAUSES[cause],
                }
                for cause, saved in rows
            ),
            f"What holds it back: {self.cause} (simulated)",
        )


def bottleneck(
    cluster: Cluster,
    job: Job,
    combine: Combine,
    workers: int,
    *,
    stragglers: Stragglers = Stragglers(),
) -> Bottleneck:
    """Name the cause that costs a synchronous step most: each is taken away once, all else kept.

    "compute" means that the cluster scales: the time goes where it should.

    Raises:
        TypeError, ValueError: as :func:`predict`; a failed node, which stops every step.

    >>> net = Cluster(nodes=100, between_gb_per_s=0.125, between_latency_s=5e-5)
    >>> vgg = Job(gradient_bytes=553e6, step_s=0.4, batch=64)
    >>> bottleneck(net, vgg, Ring(), 16).cause
    'bandwidth'
    """
    check_whole_number("workers", workers, 1)
    if stragglers.failed_nodes:
        raise ValueError("a failed node stops every synchronous step; take failed_nodes=0.")
    cost = combine.communication(cluster, job, workers)
    slowest = expected_slowest(workers, stragglers, gpus_per_node=cluster.gpus_per_node)

    def step_s(cost: Communication, slowest: float) -> float:
        return job.step_s * slowest + combine.exposed_s(job, cost)

    now = step_s(cost, slowest)
    saved = {
        # Nothing to hide behind either; the wait is the stragglers' own.
        "compute": now - cost.total_s - job.step_s * (slowest - 1),
        "bandwidth": now - step_s(dataclasses.replace(cost, bandwidth_s=0.0), slowest),
        "latency": now - step_s(dataclasses.replace(cost, latency_s=0.0), slowest),
        "incast": now - step_s(dataclasses.replace(cost, incast_s=0.0), slowest),
        "stragglers": now - step_s(cost, 1.0),
    }
    saved = {cause: max(0.0, saved_s) for cause, saved_s in saved.items()}  # rounding
    return Bottleneck(max(saved, key=saved.get), now, saved)
