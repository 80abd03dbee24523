"""Clusters, the jobs that run on them, and what combining their gradients takes.

Each way to combine (:class:`Ring`, :class:`Tree`, :class:`HalvingDoubling`,
:class:`ParameterServer`) loads the links in its own way; the busiest link sets the time. Links are
full duplex, and buckets follow each other through them: the two directions do not add up, the
busier one takes the time. Times are seconds, sizes bytes, rates GB/s (1e9 bytes a second).
"""

import abc
import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from fastdl_lib.core.checks import check_number, check_whole_number
from fastdl_lib.measuring.evidence import Measurement, Provenance
from fastdl_lib.measuring.published import published

_TAGS = {
    "PUBLISHED": Provenance.PUBLISHED,
    "COMPUTED": Provenance.COMPUTED,
    "ASSUMPTION": Provenance.SIMULATED,
}


@functools.cache
def constants() -> Mapping[str, Measurement]:
    """Every number that the simulator brings along, with its unit and source, by name.

    They stand in ``data/published/scaling_constants.json``. What is labelled *simulated* here is an
    assumption, and its source says why it was made.

    >>> print(constants()["ethernet_10g"])
    1.25 GB/s (published)
    """
    return {
        row["name"]: Measurement(
            row["name"], row["unit"], (row["value"],), _TAGS[row["tag"]], source=row["source"]
        )
        for row in published("scaling_constants").rows
    }


def default(name: str) -> float:
    """A field whose default is one of :func:`constants`."""
    return dataclasses.field(default_factory=lambda: constants()[name].median)


def keep_numbers(kept: Any, **limits: Mapping[str, Any] | int) -> None:
    """Check a frozen dataclass's numbers by name, and keep them as Python's own, with which one can
    compute: a whole number from a least one up, or a number within check_number's limits."""
    for name, limit in limits.items():
        value = getattr(kept, name)
        if isinstance(limit, int):
            value = check_whole_number(name, value, limit)
        else:
            check_number(name, value, **limit)
        object.__setattr__(kept, name, value if isinstance(limit, int) else float(value))


ABOVE_0 = {"low": 0, "low_included": False}
FROM_0 = {"low": 0}
UP_TO_1 = {"low": 0, "high": math.nextafter(1, 2)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster:
    """Nodes with GPUs, and the links inside and between them.

    Args:
        nodes: how many there are at most.
        inside_gb_per_s: from one GPU to another of its node, one direction.
        host_gb_per_s: from one GPU to its node's memory; by default as between two GPUs.
        host_total_gb_per_s: what all GPUs of a node share on that way; None: no common limit.
        between_gb_per_s: of a node's network link, one direction.
        between_latency_s: of one message, with the software around it.
        endpoint_gb_per_s: what the software (gRPC, TCP) gets out of a link; None: all of it.

    Raises: TypeError, ValueError: a rate or a count is missing, not positive or not finite.

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

    def __post_init__(self) -> None:
        keep_numbers(self, nodes=1, gpus_per_node=1)
        needed = ("inside_gb_per_s", "inside_latency_s") if self.gpus_per_node > 1 else ()
        needed += ("between_gb_per_s", "between_latency_s") if self.nodes > 1 else ()
        for name, value in list(vars(self).items()):
            if value is None and name in needed:
                raise ValueError(
                    f"{self.nodes} nodes with {self.gpus_per_node} GPUs need links: give {name}, "
                    "such as 1.25 (GB/s, of 10 Gbit/s) or 50e-6 (s)."
                )
            if value is not None and name.endswith(("_latency_s", "_gb_per_s")):
                keep_numbers(self, **{name: FROM_0 if name.endswith("_latency_s") else ABOVE_0})

    @property
    def gpus(self) -> int:
        """All GPUs of the cluster."""
        return self.nodes * self.gpus_per_node

    @property
    def inside(self) -> tuple[float | None, float | None]:
        """GB/s in one direction and seconds of a transfer between two GPUs of a node."""
        return self.inside_gb_per_s, self.inside_latency_s

    @property
    def between(self) -> tuple[float | None, float | None]:
        """The same of two nodes: the wire's rate or the software's, the slower."""
        rates = [rate for rate in (self.between_gb_per_s, self.endpoint_gb_per_s) if rate]
        return min(rates, default=None), self.between_latency_s

    def with_link_share(self, share: float) -> "Cluster":
        """The same cluster whose links carry only ``share`` (above 0) of their rate."""
        fields = vars(self).items()
        rates = {name: share * v for name, v in fields if v and name.endswith("_gb_per_s")}
        return dataclasses.replace(self, **rates)

    def spread_over(self, workers: int) -> tuple[int, int]:
        """(nodes, GPUs in the fullest node) that ``workers`` take up, node by node.

        Raises: TypeError, ValueError: no whole number, or more than there are GPUs.
        """
        workers = check_whole_number("workers", workers, 1)
        if workers > self.gpus:
            raise ValueError(
                f"{workers} workers need {workers} GPUs; {self.name} has {self.gpus}. Ask for "
                "fewer, or give it more with dataclasses.replace(cluster, nodes=...)."
            )
        return math.ceil(workers / self.gpus_per_node), min(workers, self.gpus_per_node)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What one worker does in a step.

    Args:
        gradient_bytes: of all gradients; float32 takes 4 bytes a parameter.
        step_s: forward and backward pass of one batch on one GPU.
        batch: images in a worker's batch.
        hidden_share: 0 to 1, the part of the communication that may run beside the computation.
        bucket_bytes: gradients are sent in pieces of this size. The last piece is only ready when
            the backward pass has ended, so it never hides.
        largest_tensor_bytes: the largest piece that a parameter server holds whole.

    Raises: TypeError, ValueError: a number is missing or outside its range.

    >>> Job(gradient_bytes=95e6, step_s=0.45, batch=64).images_per_s
    142.22222222222223
    """

    name: str = "job"
    gradient_bytes: float
    step_s: float
    batch: int
    hidden_share: float = default("hidden_share")
    bucket_bytes: float = default("bucket_bytes")
    largest_tensor_bytes: float = 0.0

    def __post_init__(self) -> None:
        keep_numbers(self, gradient_bytes=ABOVE_0, step_s=ABOVE_0, bucket_bytes=ABOVE_0, batch=1)
        keep_numbers(self, hidden_share=UP_TO_1, largest_tensor_bytes=FROM_0)
        if math.isinf(self.gradient_bytes / self.bucket_bytes):
            raise ValueError(f"{self.bucket_bytes:g} bytes are too few for a bucket.")
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

    @property
    def last_bucket(self) -> float:
        """Share of the bytes that are only ready when the backward pass has ended."""
        return min(1.0, self.bucket_bytes / self.gradient_bytes)


# --- ways to combine ----------------------------------------------------------------------------


class Communication(NamedTuple):
    """What combining the gradients of one step takes, in seconds, before any of it hides."""

    bandwidth_s: float = 0.0
    """Bytes of one worker over its own links."""
    latency_s: float = 0.0
    """Messages that wait for each other, whatever their size."""
    incast_s: float = 0.0
    """What comes on top because many share a link: the busiest server's, or a node's memory."""
    last: float = 1.0
    """Share of bandwidth and incast that the last bucket takes, were all tensors cut up evenly."""

    @property
    def total_s(self) -> float:
        """Bandwidth, latency and incast."""
        return self.bandwidth_s + self.latency_s + self.incast_s

    @property
    def by_bytes_s(self) -> float:
        """What grows with the bytes: bandwidth and incast."""
        return self.bandwidth_s + self.incast_s

    def then(self, after: "Communication") -> "Communication":
        """One after the other."""
        sums = [a + b for a, b in zip(self[:3], after[:3], strict=True)]
        by_bytes_s = self.by_bytes_s + after.by_bytes_s
        last_s = self.last * self.by_bytes_s + after.last * after.by_bytes_s
        return Communication(*sums, last_s / by_bytes_s if 0 < by_bytes_s < math.inf else 1.0)


class Combine(abc.ABC):
    """A way to combine the gradients of all workers."""

    hides_behind: float
    """Share of a step that communication can hide behind."""

    @abc.abstractmethod
    def communication(self, cluster: Cluster, job: Job, workers: int) -> Communication:
        """What combining takes.

        Raises: TypeError, ValueError: ``workers`` do not fit into the cluster.
        """

    def together(self, gpus: int) -> int:
        """How many of a node's ``gpus`` come to the servers as one client."""
        return 1

    def may_hide(self, job: Job, communication: Communication) -> float:
        """Share of the bytes' time that may hide: ``hidden_share``, but never the last bucket."""
        return min(job.hidden_share, 1 - communication.last)

    def late_latency_s(self, job: Job, communication: Communication) -> float:
        """What of the latency cannot hide: that of the last bucket's messages, seconds."""
        return max(1 - job.hidden_share, 1 / job.buckets) * communication.latency_s

    def exposed_s(
        self, job: Job, communication: Communication, compute_s: float, counted: float = 1.0
    ) -> float:
        """What of the communication is left over when ``compute_s`` of computing, as long as it is
        waited for, hide all that they can, seconds. Of what is sent later, only the share of the
        workers that are ``counted`` is waited for; each has its own link."""
        if math.isinf(communication.total_s):  # some of it never comes
            return math.inf
        late = 1 - self.may_hide(job, communication)
        waited_for_s = max(communication.bandwidth_s, counted * communication.by_bytes_s)
        late_s = late * waited_for_s + self.late_latency_s(job, communication)
        dropped_s = late * (communication.by_bytes_s - waited_for_s)
        return max(late_s, communication.total_s - dropped_s - self.hides_behind * compute_s)


class AllReduce(Combine):
    """First inside the nodes, then between them, each as :meth:`moves` says."""

    @property
    def hides_behind(self) -> float:
        """It runs beside the backward pass, which makes the gradients."""
        return constants()["backward_share"].median

    @abc.abstractmethod
    def moves(self, n: int) -> tuple[float, int]:
        """Of ``n`` who combine: how many times all gradients' bytes go over a link one after
        another, and in how many rounds that wait for each other."""

    def communication(self, cluster, job, workers):
        nodes, gpus = cluster.spread_over(workers)
        inside = _over(job, gpus, self.moves(gpus), *cluster.inside)
        return inside.then(_over(job, nodes, self.moves(nodes), *cluster.between))


def _over(
    job: Job, n: int, moves: tuple[float, int], gb_per_s: float | None, latency_s: float | None
) -> Communication:
    """What ``n`` who combine send over their links; one alone needs none."""
    if n == 1:
        return Communication()
    times, rounds = moves
    bandwidth_s = times * job.gradient_bytes / (1e9 * gb_per_s)
    latency_s = float(job.buckets) * (rounds * latency_s)
    return Communication(bandwidth_s, latency_s, last=job.last_bucket)


@dataclasses.dataclass(frozen=True)
class Ring(AllReduce):
    """One ring through all GPUs; each link carries ``2 (n-1)/n`` of the gradients in ``2 (n-1)``
    rounds (Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms", 2009).

    >>> job = Job(gradient_bytes=1e9, step_s=1, batch=1, bucket_bytes=1e9)
    >>> pair = Cluster(nodes=2, between_gb_per_s=1, between_latency_s=0.01)
    >>> Ring().communication(pair, job, 2)
    Communication(bandwidth_s=1.0, latency_s=0.02, incast_s=0.0, last=1.0)
    """

    def moves(self, n):
        return 2 * (n - 1) / n, 2 * (n - 1)

    def communication(self, cluster, job, workers):
        nodes, gpus = cluster.spread_over(workers)
        inside = _over(job, gpus, self.moves(workers), *cluster.inside)
        if nodes == 1:
            return inside
        # The ring goes at the pace of its slowest link, and enters each node once.
        between = _over(job, nodes, self.moves(workers), *cluster.between)
        return between._replace(
            bandwidth_s=max(between.bandwidth_s, inside.bandwidth_s),
            latency_s=max(between.latency_s, inside.latency_s),
        )


@dataclasses.dataclass(frozen=True)
class Tree(AllReduce):
    """Sums go up a binary tree, the result comes down again: ``2 log2 n`` rounds one after another,
    each with all gradients. It is as many bytes in all as in a ring, ``2 (n - 1)`` times the
    gradients, in few rounds of long messages: good for small gradients.

    >>> job = Job(gradient_bytes=1e9, step_s=1, batch=1, bucket_bytes=1e9)
    >>> eight = Cluster(nodes=8, between_gb_per_s=1, between_latency_s=0.01)
    >>> Tree().communication(eight, job, 8)
    Communication(bandwidth_s=6.0, latency_s=0.06, incast_s=0.0, last=1.0)
    """

    def moves(self, n):
        up_down = 2 * (n - 1).bit_length()
        return up_down, up_down


@dataclasses.dataclass(frozen=True)
class HalvingDoubling(AllReduce):
    """Partners swap halves, then quarters, and back: the bytes of a ring in ``2 log2 n`` rounds
    (Thakur, Rabenseifner, Gropp, 2005). For an n that is no power of two the rounds are rounded
    up; the extra bytes are left out.

    >>> job = Job(gradient_bytes=1e9, step_s=1, batch=1, bucket_bytes=1e9)
    >>> four = Cluster(nodes=4, between_gb_per_s=1, between_latency_s=0.01)
    >>> HalvingDoubling().communication(four, job, 4)
    Communication(bandwidth_s=1.5, latency_s=0.04, incast_s=0.0, last=1.0)
    """

    def moves(self, n):
        return 2 * (n - 1) / n, 2 * (n - 1).bit_length()


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

    Raises: TypeError, ValueError: no whole number of shards from 1 up; KeyError: a number of
    workers that the mapping lacks.

    >>> job = Job(gradient_bytes=1e9, step_s=1, batch=1, bucket_bytes=1e9)
    >>> net = Cluster(nodes=10, between_gb_per_s=1, between_latency_s=0)
    >>> ParameterServer(shards=1, dedicated=True).communication(net, job, 10)
    Communication(bandwidth_s=1.0, latency_s=0.0, incast_s=9.0, last=1.0)
    """

    shards: int | Mapping[int, int] | None = None
    dedicated: bool = False
    summed_inside: bool = True

    hides_behind: ClassVar[float] = 1.0  # weights are fetched beside the forward pass, too

    def __post_init__(self) -> None:
        if isinstance(self.shards, Mapping):
            whole = {n: check_whole_number("shards", s, 1) for n, s in self.shards.items()}
            object.__setattr__(self, "shards", whole)
        elif self.shards is not None:
            keep_numbers(self, shards=1)

    def together(self, gpus):
        return gpus if self.summed_inside else 1

    def late_latency_s(self, job, communication):
        return communication.latency_s  # the servers answer a worker once

    def communication(self, cluster, job, workers):
        nodes, gpus = cluster.spread_over(workers)
        size = job.gradient_bytes
        inside = Communication()
        if gpus > 1:
            # Through the node's memory; with one node that is the server.
            own_s = size / (1e9 * (cluster.host_gb_per_s or cluster.inside_gb_per_s))
            shared_s = gpus * size / (1e9 * (cluster.host_total_gb_per_s or math.inf))
            latency_s, incast_s = 2 * cluster.inside_latency_s, max(0.0, shared_s - own_s)
            inside = Communication(own_s, latency_s, incast_s, job.last_bucket)
        if nodes == 1:
            return inside
        shards = nodes if self.shards is None else self.shards
        if isinstance(shards, Mapping):
            shards = shards[workers]
        shard = max(size / shards, job.largest_tensor_bytes)  # on the server that holds most
        together = self.together(gpus)
        clients, here = math.ceil(workers / together), gpus // together  # in all, in a full node
        if self.dedicated:
            even = here * size
            cut_up, busiest = (max(even, clients * one) for one in (size / shards, shard))
        else:

            def load(clients_here: int, served: float) -> float:
                """What a node's clients exchange with other nodes, and its server with theirs."""
                return clients_here * (size - served) + (clients - clients_here) * served

            # Were every node to serve an even share; and where the largest shard may be.
            even = load(here, size / nodes)
            rest = clients - here * (nodes - 1)
            cut_up, busiest = (
                max(even, load(here, one), load(rest, one)) for one in (size / shards, shard)
            )
        gb_per_s, latency_s = cluster.between
        rate = 1e9 * gb_per_s
        last = min(1.0, job.last_bucket * cut_up / busiest)
        return inside.then(Communication(even / rate, 2 * latency_s, (busiest - even) / rate, last))
