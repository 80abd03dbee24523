"""Data-parallel training over MPI: several processes, the *ranks*, share every batch.

    mpiexec -n 2 python -m mpi4py -m fastdl_lib.scaling.workers train --images 10000 --epochs 1

starts two on this machine. On a cluster it is the same command with ``--hostfile``, or under
``srun`` (with ``--kill-on-bad-exit=1``). ``--help`` names the jobs. ``-m mpi4py`` ends the job
where a rank fails before :class:`MpiWorkers` are at work; after that they do it themselves, and
name the rank that failed, was killed, or hangs.

In *synchronous* training each rank computes the gradients of its part of the batch, an all-reduce
adds them up, and all take the same step: n ranks give the weights of one (floats add up in another
order, so the last digits differ). In *asynchronous* training rank 0, the parameter server, takes a
step with each gradient as it comes, though the weights have moved on since: it is *stale*.
"""

import argparse
import collections
import contextlib
import dataclasses
import functools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastdl_lib.core.arrays import (
    array_module,
    beside,
    gpu_available,
    keep_freed_memory,
    synchronize,
    to_cpu,
    to_gpu,
    use_gpu,
    wide,
)
from fastdl_lib.core.checks import check_number, check_whole_number
from fastdl_lib.core.datasets import mnist, photos
from fastdl_lib.core.files import whole_file
from fastdl_lib.core.threads import blas_threads, usable_cores
from fastdl_lib.measuring.evidence import Measurement, Provenance
from fastdl_lib.measuring.machine import MachineCard, machine_card
from fastdl_lib.nn.checkpoints import digest
from fastdl_lib.nn.layers import Flatten, Linear
from fastdl_lib.nn.network import Network, alexnet, deep_convnet
from fastdl_lib.nn.optimizers import SGD, Adam, Optimizer, Schedule, warmup_cosine
from fastdl_lib.nn.training import (
    DROPOUT,
    Epoch,
    Evaluation,
    History,
    Workers,
    epoch_seed,
    evaluate,
    fit,
)
from fastdl_lib.scaling import watchdog
from fastdl_lib.scaling.mpi import mpi_status, run_ranks

__all__ = [
    "AsyncHistory",
    "Delayed",
    "MpiWorkers",
    "all_reduce_bandwidth",
    "fit_async",
    "mpi_status",
    "run_ranks",
]

Array = Any  # numpy.ndarray or cupy.ndarray

# PyTorch's default is 25 MB (S. Li et al., "PyTorch Distributed", VLDB 2020, section 3.2.3), good
# for a network card. Between two cores the sum of 4 MB stays in their cache: half the time.
BUCKET_BYTES = 4_000_000

ALEXNET_BYTES = 4 * 60_965_224  # of its gradients in float32

# A sign of life comes with each layer, of at most a few hundred images.
PATIENCE_S = 10.0
# A rank that waits for others gives signs of life too: should all wait, this ends it.
LONGEST_WAIT = 30  # times the patience

PAUSE_S = 50e-6  # between two looks at what is under way, where cores are scarce
SPIN_S = 1.0  # of looking without a pause; whoever waits longer leaves the core to others


# --- what moves ---------------------------------------------------------------------------------


def _axes(array: Array) -> tuple[int, ...]:
    """The axes in the order of memory, widest strides first."""
    return tuple(sorted(range(array.ndim), key=lambda axis: -array.strides[axis]))


class _Parcel:
    """One array without gaps, and views of it in the shapes and memory order of named arrays."""

    def __init__(self, like: Mapping[str, Array]) -> None:
        first = next(iter(like.values()))
        sizes = [array.size for array in like.values()]
        self.flat = array_module(first).empty(sum(sizes), first.dtype)
        self.views: dict[str, Array] = {}
        start = 0
        for (name, array), size in zip(like.items(), sizes, strict=True):
            axes = _axes(array)
            turned = self.flat[start : start + size].reshape(tuple(array.shape[a] for a in axes))
            self.views[name] = turned.transpose(tuple(axes.index(a) for a in range(array.ndim)))
            start += size

    def fill(self, arrays: Mapping[str, Array]) -> None:
        for name, view in self.views.items():
            view[...] = arrays[name]


class _Buckets:
    """A network's gradients, gathered in the order in which its backward pass makes them.

    Each full bucket is handed to ``send``. Small gradients are copied together; one as large as a
    bucket goes as it lies. ``send`` adds up in place, so that the network's gradients become the
    sums.
    """

    def __init__(self, network: Network, bucket_bytes: int, send: Callable[[Array], None]) -> None:
        self.network, self._send = network, send
        self._parcels: dict[str, _Parcel] = {}
        self._missing: dict[int, int] = {}
        self._sizes: dict[int, int] = {}
        gathered: dict[str, Array] = {}
        for layer_name, layer in reversed(network.layers.items()):
            for name, weight in layer.parameters.items():
                if weight.nbytes < bucket_bytes:
                    gathered[f"{layer_name}.{name}"] = weight
            if sum(weight.nbytes for weight in gathered.values()) >= bucket_bytes:
                self._close(gathered)
                gathered = {}
        if gathered:
            self._close(gathered)

    def _close(self, gathered: dict[str, Array]) -> None:
        parcel = _Parcel(gathered)
        self._parcels |= dict.fromkeys(gathered, parcel)
        self._sizes[id(parcel)] = self._missing[id(parcel)] = len(gathered)

    def after_layer(self, layer_name: str) -> None:
        """Take in a layer's gradients, and send off the bucket that they fill."""
        layer = self.network.layers[layer_name]
        for name, weight in layer.parameters.items():
            gradient, parcel = layer.gradients[name], self._parcels.get(f"{layer_name}.{name}")
            if parcel is None:
                # All ranks send it in its weight's order of memory, whatever algorithm made it.
                axes = _axes(weight)
                if not gradient.transpose(axes).flags.c_contiguous:
                    made, gradient = gradient, array_module(weight).empty_like(weight)
                    gradient[...] = made
                layer.gradients[name] = gradient
                self._send(gradient.transpose(axes).reshape(-1))
                continue
            view = parcel.views[f"{layer_name}.{name}"]
            view[...] = gradient
            layer.gradients[name] = view
            self._missing[id(parcel)] -= 1
            if not self._missing[id(parcel)]:
                self._missing[id(parcel)] = self._sizes[id(parcel)]
                self._send(parcel.flat)


class MpiWorkers(Workers):
    """The ranks of an MPI job, for ``fit(..., workers=...)``; every rank runs the same script.

    As a context manager it sees to it that the job ends within seconds, with a message that names
    the rank, when a rank raises, is killed, leaves or hangs. Start the same command again: with a
    checkpoint ``fit`` goes on from there.

    MPI moves data only while it is called: after each layer of the backward pass, and in waiting.

    Args:
        comm: an MPI communicator; by default all ranks of the job.
        bucket_bytes: gradients go off in pieces of about so many bytes.
        overlap: send a bucket off as soon as it is full, while backward goes on; False: at its end.
        cuda_aware: hand GPU arrays to MPI as they are, which needs a library built for it. By
            default they cross over the CPU's memory. (MPI has no call that tells.)
        patience_s: a rank that gives no sign of life for so long hangs. Signs come with every layer
            and every 500 images of an evaluation.

    Raises:
        TypeError, ValueError: a number out of range.
        RuntimeError: MPI is missing.

    Sources: S. Li et al., "PyTorch Distributed: Experiences on accelerating data parallel
    training", VLDB 2020, section 3.2 (buckets, overlap).

    What each rank runs::

        with MpiWorkers() as workers:
            fit(network, images, labels, epochs=1, optimizer=Adam(), workers=workers)
    """

    def __init__(
        self,
        comm: Any = None,
        *,
        bucket_bytes: int = BUCKET_BYTES,
        overlap: bool = True,
        cuda_aware: bool = False,
        patience_s: float = PATIENCE_S,
    ) -> None:
        check_whole_number("bucket_bytes", bucket_bytes, 8)
        check_number("patience_s", patience_s, low=0, low_included=False)
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError):  # mpi4py finds no library
            raise RuntimeError(mpi_status().reason) from None
        self._mpi = MPI
        self.comm = (MPI.COMM_WORLD if comm is None else comm).Dup()
        self.rank, self.size = self.comm.rank, self.comm.size
        self.bucket_bytes, self.overlap, self.cuda_aware = bucket_bytes, overlap, cuda_aware
        self.patience_s = patience_s
        self.step = 0
        """Steps that were begun."""
        self.waited_s = 0.0
        """Seconds that this rank has waited for others or for data so far."""
        local = self.comm.Split_type(MPI.COMM_TYPE_SHARED)
        self.local_rank = local.rank
        self._local = local
        # Where ranks are more than cores, one that looks without a pause keeps another from work.
        self._crowded = local.size > usable_cores()
        self._sign: watchdog.Sign | None = None
        self._watchdog: subprocess.Popen | None = None
        self._buckets: _Buckets | None = None
        self._requests: list[Any] = []
        self._under_way: list[tuple[Array, np.ndarray]] = []
        self._held_back: list[Array] = []

    # --- faults ---

    def __enter__(self) -> "MpiWorkers":
        processes = dict(self._local.allgather((self.rank, os.getpid())))
        folder = None
        if self.local_rank == 0:
            folder = tempfile.mkdtemp(prefix="fastdl-ranks-")
            self._watchdog = watchdog.start(folder, processes, self.patience_s)
        folder = self._local.bcast(folder)
        watchdog.show_stack_when_asked()
        self._sign = watchdog.Sign(folder, self.local_rank)
        self._local.Barrier()
        if self.local_rank == 0:
            shutil.rmtree(folder)
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None:
            self._end_the_job(error)
        try:
            self.barrier()
        except BaseException as late:
            self._end_the_job(late)
        self._sign.finished()
        self._sign = None
        if self._watchdog is not None:
            self._watchdog.wait()

    def _end_the_job(self, error: BaseException) -> None:
        """Say which rank failed and why, and end all of them; never returns."""
        self._sign.failed()
        if isinstance(error, SystemExit):
            why = f"it left with sys.exit({error.code!r}) before the others were done"
        else:
            why = f"{type(error).__name__}: {error}"
            if not isinstance(error, (ValueError, OSError, FloatingPointError)):  # these say it all
                sys.stderr.write("".join(traceback.format_exception(error)))
        where = f"rank {self.rank} of {self.size} failed in step {self.step}"
        print(f"{where}: {why.rstrip('.')}. The job ends.", file=sys.stderr, flush=True)
        sys.stdout.flush()
        self.comm.Abort(130 if isinstance(error, KeyboardInterrupt) else 1)

    def beat(self, _layer: str = "") -> None:
        """Give a sign of life; what takes longer than a second should, now and then."""
        if self._sign is not None:
            self._sign.beat(self.step)

    # --- messages; all waiting is done here, with signs of life ---

    def wait(self, requests: list[Any], pause_s: float = 0.0) -> None:
        """Wait until all that was asked of MPI is done; this also drives it on.

        Raises:
            TimeoutError: all ranks wait, and none for another that works.
        """
        start = time.monotonic()
        while not self._mpi.Request.Testall(requests):
            self.beat()
            waited_s = time.monotonic() - start
            if waited_s > LONGEST_WAIT * self.patience_s:
                raise TimeoutError(
                    f"it has waited for the other ranks for {waited_s:.0f} s; do all ranks run the "
                    "same script with the same words?"
                )
            if pause_s or self._crowded or waited_s > SPIN_S:
                time.sleep(max(pause_s, PAUSE_S))
        self.waited_s += time.monotonic() - start

    def barrier(self, pause_s: float = 0.0) -> None:
        """Wait until all ranks are here; with a pause between looks a waiting rank uses no core."""
        self.wait([self.comm.Ibarrier()], pause_s)

    def add_up(self, *numbers: float) -> list[float]:
        """The sums over all ranks, float64."""
        total = np.array(numbers, np.float64)
        self.wait([self.comm.Iallreduce(self._mpi.IN_PLACE, total)])
        return total.tolist()

    def of_all(self, number: float) -> list[float]:
        """Every rank's number, in the order of the ranks."""
        out = np.zeros(self.size)
        self.wait([self.comm.Iallgather(np.array([float(number)]), out)])
        return out.tolist()

    def from_rank_0(self, value: Any) -> Any:
        """Rank 0's value, which JSON can hold, on every rank."""
        text = np.frombuffer(json.dumps(value).encode(), np.uint8).copy()
        size = np.array([text.size])
        self.wait([self.comm.Ibcast(size)])
        text = text if self.rank == 0 else np.empty(size[0], np.uint8)
        self.wait([self.comm.Ibcast(text)])
        return json.loads(text.tobytes())

    def _array_from_rank_0(self, array: Array) -> None:
        wire = np.ascontiguousarray(to_cpu(array))
        self.wait([self.comm.Ibcast(wire)])
        array[...] = beside(wire, array)

    # --- what fit asks for ---

    def begin(
        self,
        network: Network,
        optimizer: Optimizer,
        settings: dict[str, Any] | None,
        epochs: list[dict[str, Any]],
    ) -> list[dict[str, Any]]:
        _refuse_batch_norm(network, self.size)
        own = json.loads(json.dumps(settings))
        first = [own, epochs, optimizer.steps, optimizer.numbers, list(optimizer.state)]
        wanted, epochs, optimizer.steps, optimizer.numbers, remembered = self.from_rank_0(first)
        for name, value in (wanted or {}).items():
            if own.get(name) != value:
                raise ValueError(
                    f"its {name} is {own.get(name)}, rank 0's {value}; all ranks must call fit "
                    "with the same arguments"
                )
        weights = network.parameters
        for weight in weights.values():
            self._array_from_rank_0(weight)
        state = {}
        for key in remembered:
            weight = weights[key.partition(".")[2]]
            # As the optimiser makes it: float32 for float16 weights.
            new = array_module(weight).zeros_like(weight, dtype=wide(weight.dtype))
            state[key] = optimizer.state.get(key, new)
            self._array_from_rank_0(state[key])
        optimizer.state = state
        return epochs

    def share(self, images: int) -> slice:
        start, stop = (images * rank // self.size for rank in (self.rank, self.rank + 1))
        return slice(start, stop)

    def gradients(
        self, network: Network, x: Array, labels: Array, images: int, loss_scale: float = 1.0
    ) -> tuple[float, int]:
        self.step += 1
        self.beat()
        if self._buckets is None or self._buckets.network is not network:
            self._buckets = _Buckets(network, self.bucket_bytes, self._send)
        loss_sum, correct = 0.0, 0
        if len(x):
            with _shared_draws(network, self.share(images), images):
                weight = loss_scale * len(x) / images
                loss, correct = self._gradients_here(network, x, labels, weight)
            loss_sum = len(x) * loss
        else:  # an epoch's last batch may have fewer images than there are ranks
            for name, layer in reversed(network.layers.items()):
                layer.gradients = {
                    key: array_module(weight).zeros_like(weight)
                    for key, weight in layer.parameters.items()
                }
                self._buckets.after_layer(name)
        for flat in self._held_back:
            self._start(flat)
        self._held_back.clear()
        totals = np.array([loss_sum, correct], np.float64)
        self._requests.append(self.comm.Iallreduce(self._mpi.IN_PLACE, totals))
        self._finish()
        return float(totals[0]) / images, int(totals[1])

    def _gradients_here(
        self, network: Network, x: Array, labels: Array, weight: float
    ) -> tuple[float, int]:
        """As ``gradients``, of the images here; ``weight`` multiplies them."""

        def after_layer(name: str) -> None:
            self._buckets.after_layer(name)
            self.beat()
            # MPI moves data only while it is called.
            self._mpi.Request.Testall(self._requests)

        return network.training_pass(
            x,
            labels,
            scale=weight,
            after_forward=self.beat,
            after_backward=after_layer,
        )

    def _send(self, flat: Array) -> None:
        if self.overlap:
            self._start(flat)
        else:
            self._held_back.append(flat)

    def _start(self, flat: Array) -> None:
        """Begin to add up an array over all ranks, in pieces."""
        if self.cuda_aware:
            synchronize()  # MPI knows nothing of the GPU's queue
            wire = flat
        else:
            wire = to_cpu(flat)
        piece = max(1, self.bucket_bytes // wire.itemsize)
        for start in range(0, wire.size, piece):
            part = wire[start : start + piece]
            self._requests.append(self.comm.Iallreduce(self._mpi.IN_PLACE, part))
        self._under_way.append((flat, wire))

    def _finish(self) -> None:
        """Wait for all that was begun, and take the sums back."""
        self.wait(self._requests)
        for flat, wire in self._under_way:
            if wire is not flat:
                flat[...] = beside(wire, flat)
        self._requests, self._under_way = [], []

    def evaluate(self, network: Network, images: Array, labels: Array) -> Evaluation:
        here = self.share(len(images))
        correct, loss_sum = self.evaluate_here(network, images[here], labels[here])
        correct, loss_sum = self.add_up(correct, loss_sum)
        return Evaluation(len(images), int(correct), loss_sum / len(images))

    def evaluate_here(self, network: Network, images: Array, labels: Array) -> tuple[int, float]:
        """How many are right and the sum of the losses, with signs of life."""
        correct, loss_sum = 0, 0.0
        for start in range(0, len(images), 500):
            part = slice(start, start + 500)
            result = evaluate(network, images[part], labels[part])
            correct += result.correct
            loss_sum += result.loss * result.images
            self.beat()
        return correct, loss_sum

    def all_reduce(self, array: Array) -> None:
        """Add up an array without gaps over all ranks, in place."""
        self._start(array)
        self._finish()

    # --- single arrays, between two ranks ---

    def send(self, array: Array, to: int, tag: int) -> None:
        """Send an array that lies without gaps, on the CPU or the GPU."""
        self.wait([self.comm.Isend(to_cpu(array), to, tag)])

    def receive(self, array: Array, source: int, tag: int) -> None:
        """Receive into such an array."""
        wire = np.empty(array.shape, array.dtype)
        self.wait([self.comm.Irecv(wire, source, tag)])
        array[...] = beside(wire, array)

    def whoever_sends(self, tag: int) -> int:
        """Wait for a message of that tag; return the rank that sent it."""
        status = self._mpi.Status()
        while not self.comm.Iprobe(self._mpi.ANY_SOURCE, tag, status):
            self.beat()
            time.sleep(PAUSE_S)
        return status.Get_source()


def _refuse_batch_norm(network: Network, ranks: int) -> None:
    """Means and variances would be those of each rank's part of the batch, and drift apart."""
    mixing = [n for n, layer in network.layers.items() if layer.mixes_images]
    if mixing and ranks > 1:
        raise ValueError(
            f"{network.name} has batch normalisation ({mixing[0]}), whose means and variances are "
            "the whole batch's: train it in one process, with fit()."
        )


@contextlib.contextmanager
def _shared_draws(network: Network, here: slice, images: int) -> Iterator[None]:
    """Let layers draw for the whole batch, of which the images ``here`` are this rank's."""
    for layer in network.layers.values():
        layer.share(here, images)
    try:
        yield
    finally:
        for layer in network.layers.values():
            layer.share(None, 0)


# --- asynchronous -------------------------------------------------------------------------------


class Delayed(Workers):
    """For ``fit(..., workers=Delayed(4))``: one process trains with gradients that are 4 steps old.

    Each step's gradients are computed with the weights of ``staleness`` steps ago (the first ones
    with those of the start), as a worker far behind would. Needs the memory of so many copies of
    the weights.

    Args:
        staleness: whole number from 0 up; 0 is plain training.

    Raises:
        TypeError, ValueError: staleness is no such number; a run that was interrupted is to go on
            (the old weights are not in its checkpoint).

    >>> x, labels = np.zeros((4, 1, 28, 28), np.float32), np.array([0, 1, 2, 3])
    >>> stale = {"optimizer": SGD(0.1), "progress": False, "workers": Delayed(2)}
    >>> len(fit(deep_convnet(), x, labels, epochs=3, batch=2, **stale).epochs)
    3
    """

    def __init__(self, staleness: int) -> None:
        check_whole_number("staleness", staleness, 0)
        self.staleness = staleness
        self.way = f", gradients {staleness} steps old" if staleness else ""
        self._old: collections.deque[dict[str, Array]] = collections.deque()

    def begin(
        self,
        network: Network,
        optimizer: Optimizer,
        settings: dict[str, Any] | None,
        epochs: list[dict[str, Any]],
    ) -> list[dict[str, Any]]:
        if epochs and self.staleness:
            raise ValueError(
                f"a run with {self.staleness} steps of staleness cannot go on from a checkpoint; "
                "train without one."
            )
        self._old.clear()
        return epochs

    def gradients(
        self, network: Network, x: Array, labels: Array, images: int, loss_scale: float = 1.0
    ) -> tuple[float, int]:
        weights = network.parameters
        now = {name: weight.copy() for name, weight in weights.items()}
        self._old.append(now)
        if len(self._old) > self.staleness + 1:
            self._old.popleft()
        for name, weight in self._old[0].items():
            weights[name][...] = weight
        try:
            return network.training_pass(x, labels, scale=loss_scale)
        finally:
            for name, weight in now.items():
                weights[name][...] = weight


@dataclasses.dataclass(frozen=True)
class AsyncHistory:
    """How an asynchronous run went."""

    history: History
    staleness: Mapping[int, int]
    """How many gradients were so many steps old when they were used; counted in this process."""

    @property
    def mean_staleness(self) -> float:
        """Steps; 0 where nothing was left to do."""
        total = sum(self.staleness.values())
        return sum(age * count for age, count in self.staleness.items()) / max(1, total)


_ORDER, _WEIGHTS, _HEADER, _GRADIENTS = range(1, 5)  # tags


class _Server(Workers):
    """The parameter server, as ``fit`` on rank 0 sees it: each step's gradients are the next ones
    to arrive."""

    def __init__(self, ranks: MpiWorkers, max_staleness: int, steps: int) -> None:
        self.ranks, self.max_staleness, self.steps = ranks, max_staleness, steps
        self.way = f", gradients up to {max_staleness} steps old"
        self.staleness: collections.Counter[int] = collections.Counter()
        self._idle = collections.deque(range(1, ranks.size))
        self._version = 0  # steps taken
        self._handed_out = 0  # batches
        self._out: dict[int, int] = {}  # at which version a rank at work got its weights

    def begin(
        self,
        network: Network,
        optimizer: Optimizer,
        settings: dict[str, Any] | None,
        epochs: list[dict[str, Any]],
    ) -> list[dict[str, Any]]:
        self._weights, self._gradients = (_Parcel(network.parameters) for _ in range(2))
        self._version = self._handed_out = self.steps * len(epochs)
        return epochs

    def share(self, images: int) -> slice:
        return slice(0, 0)  # the others compute

    def _may_hand_out(self) -> bool:
        """Whether another rank may compute without anyone's gradient becoming too old.

        Of each rank at work: the steps taken since it got its weights, and one for every other
        rank at work, as all of them may come first.
        """
        epoch_ends = (self._version // self.steps + 1) * self.steps
        if not self._idle or self._handed_out >= epoch_ends:
            return False
        oldest = min(self._out.values(), default=self._version)
        return self._version - oldest + len(self._out) <= self.max_staleness

    def gradients(
        self, network: Network, x: Array, labels: Array, images: int, loss_scale: float = 1.0
    ) -> tuple[float, int]:
        if loss_scale != 1:
            raise ValueError(
                f"asynchronous training takes no loss scale, got {loss_scale}: a gradient may come "
                "that was scaled before the scale changed; train in float32 or bfloat16."
            )
        ranks = self.ranks
        ranks.step += 1
        ranks.beat()
        if self._may_hand_out():
            self._weights.fill(network.parameters)
        while self._may_hand_out():
            rank = self._idle.popleft()
            epoch, batch = divmod(self._handed_out, self.steps)
            ranks.send(np.array([epoch + 1, batch]), rank, _ORDER)
            ranks.send(self._weights.flat, rank, _WEIGHTS)
            self._out[rank] = self._version
            self._handed_out += 1
        rank = ranks.whoever_sends(_HEADER)
        header = np.empty(2)
        ranks.receive(header, rank, _HEADER)
        ranks.receive(self._gradients.flat, rank, _GRADIENTS)
        self.staleness[self._version - self._out.pop(rank)] += 1
        self._version += 1
        self._idle.append(rank)
        for name, layer in network.layers.items():
            layer.gradients = {k: self._gradients.views[f"{name}.{k}"] for k in layer.parameters}
        # The batch may be another than the one that fit thinks of, of another size.
        return float(header[0]) / images, int(header[1])

    def evaluate(self, network: Network, images: Array, labels: Array) -> Evaluation:
        correct, loss_sum = self.ranks.evaluate_here(network, images, labels)
        return Evaluation(len(images), correct, loss_sum / len(images))

    def stop(self) -> None:
        """Send the others home."""
        for rank in self._idle:
            self.ranks.send(np.array([0, 0]), rank, _ORDER)


def _compute_for_server(
    ranks: MpiWorkers, network: Network, images: Array, labels: Array, batch: int, seed: int
) -> None:
    """What ranks from 1 up do: weights in, gradients of one batch out, until the server stops."""
    weights, gradients = _Parcel(network.parameters), _Parcel(network.parameters)
    order, order_epoch = np.empty(0), 0
    while True:
        task = np.empty(2, np.int64)
        ranks.receive(task, 0, _ORDER)
        epoch, number = task.tolist()
        if epoch == 0:
            return
        ranks.step += 1
        ranks.receive(weights.flat, 0, _WEIGHTS)
        for name, weight in network.parameters.items():
            weight[...] = weights.views[name]
        if epoch != order_epoch:
            order_epoch = epoch
            order = np.random.default_rng(epoch_seed(seed, epoch, 0)).permutation(len(images))
        chosen = order[batch * number : batch * (number + 1)]
        for index, layer in enumerate(network.layers.values(), start=1):
            layer.reseed(epoch_seed(epoch_seed(seed, epoch, index), number, 0))
        part = beside(chosen, images)
        loss, right = network.training_pass(
            images[part],
            labels[part],
            after_forward=ranks.beat,
            after_backward=ranks.beat,
        )
        gradients.fill(network.gradients)
        ranks.send(np.array([loss * len(chosen), right]), 0, _HEADER)
        ranks.send(gradients.flat, 0, _GRADIENTS)


def fit_async(
    network: Network,
    images: Array,
    labels: Array,
    *,
    ranks: MpiWorkers,
    max_staleness: int,
    epochs: int,
    optimizer: Optimizer,
    batch: int = 100,
    schedule: Schedule | None = None,
    seed: int = 0,
    validation: tuple[Array, Array] | None = None,
    checkpoint: str | os.PathLike | None = None,
    progress: bool = True,
) -> AsyncHistory:
    """Train asynchronously: rank 0 keeps the weights, the others compute gradients of a batch each.

    A gradient is used as soon as it comes. It is *stale* by as many steps as were taken since its
    rank got the weights. An epoch ends when the gradients of all its batches have been used; a
    checkpoint stands for that moment. The result depends on who was faster, unless max_staleness
    is 0: then one rank computes at a time, and the weights are those of plain training.

    Args:
        ranks: two or more; all of them make the same call.
        max_staleness: no gradient becomes older than so many steps: before that, ranks that are
            done wait for the slow ones.
        network, images, labels, epochs, optimizer, batch, schedule, seed, validation, checkpoint,
            progress: as :func:`fit` takes them. ``batch`` images make one gradient.

    Returns:
        On rank 0 how it went; on the others the same, without staleness. The trained network is
        rank 0's.

    Raises:
        TypeError, ValueError: as ``fit``; max_staleness is no whole number, or there is one rank.

    Sources: Q. Ho et al., "More effective distributed ML via a stale synchronous parallel parameter
    server", NIPS 2013 (bounded staleness; theirs counts a worker's rounds, this one steps).
    """
    check_whole_number("max_staleness", max_staleness, 0)
    check_whole_number("batch", batch, 1)
    if ranks.size < 2:
        raise ValueError(
            "asynchronous training needs a parameter server and at least one rank that computes: "
            "mpiexec -n 2 or more, got 1 rank."
        )
    _refuse_batch_norm(network, ranks.size)
    told: list[dict[str, Any]] = []
    staleness: dict[int, int] = {}
    if ranks.rank == 0:
        server = _Server(ranks, max_staleness, math.ceil(len(images) / batch))
        history = fit(
            network,
            images,
            labels,
            epochs=epochs,
            optimizer=optimizer,
            batch=batch,
            schedule=schedule,
            seed=seed,
            validation=validation,
            checkpoint=checkpoint,
            progress=progress,
            workers=server,
        )
        server.stop()
        staleness = dict(sorted(server.staleness.items()))
        told = [dataclasses.asdict(epoch) for epoch in history.epochs]
    else:
        _compute_for_server(ranks, network, images, labels, batch, seed)
    told = ranks.from_rank_0(told)
    return AsyncHistory(History(network.name, tuple(Epoch(**one) for one in told)), staleness)


# --- the jobs of the command --------------------------------------------------------------------


def _digits(options: argparse.Namespace) -> list[tuple[Array, Array]]:
    """MNIST's training and test images, so many as were asked for, on the device asked for."""
    parts = [("train", options.images), ("test", options.test)]
    data = [tuple(array[:count] for array in mnist(part)) for part, count in parts]
    return [tuple(map(to_gpu, pair)) for pair in data] if options.device == "gpu" else data


def _trainee(options: argparse.Namespace) -> Network:
    network = deep_convnet(options.seed)
    network = network.variant(network.name, **dict.fromkeys(DROPOUT[options.dropout]))
    return _on_device(network, options)


def _on_device(network: Network, options: argparse.Namespace) -> Network:
    return network.to_gpu() if options.device == "gpu" else network


def _optimizer(options: argparse.Namespace) -> Optimizer:
    if options.optimizer == "sgd":
        return SGD(options.learning_rate, options.momentum)
    return Adam(options.learning_rate)


def _recipe(options: argparse.Namespace) -> dict[str, Any]:
    """What the two ways to train have in common."""
    return {
        "epochs": options.epochs,
        "batch": options.batch,
        "optimizer": _optimizer(options),
        "schedule": warmup_cosine(options.warmup),
        "seed": options.seed,
        "checkpoint": options.checkpoint,
    }


def _train(options: argparse.Namespace, ranks: MpiWorkers) -> dict[str, Any]:
    (images, labels), test = _digits(options)
    network = _trainee(options)
    recipe = _recipe(options)
    history = fit(network, images, labels, shift=options.shift, workers=ranks, **recipe)
    waited_s = ranks.of_all(ranks.waited_s)
    names = ranks.of_all(int(digest(network.parameters.values())[:12], 16))
    if len(set(names)) > 1:
        raise RuntimeError(f"the ranks have come to different weights: {names}")
    result = ranks.evaluate(network, *test)
    if ranks.rank == 0:
        print(f"Test: {result}")
    return {**_outcome(options, ranks, network, history, result), "waited_s": waited_s}


def _train_async(options: argparse.Namespace, ranks: MpiWorkers) -> dict[str, Any]:
    (images, labels), test = _digits(options)
    network = _trainee(options)
    bound = {"ranks": ranks, "max_staleness": options.max_staleness}
    run = fit_async(network, images, labels, **bound, **_recipe(options))
    if ranks.rank:
        return {}
    result = Evaluation(len(test[0]), *ranks.evaluate_here(network, *test))
    result = dataclasses.replace(result, loss=result.loss / result.images)
    print(f"Test: {result}")
    print(
        f"Staleness: {run.mean_staleness:.2f} steps in the mean, at most "
        f"{max(run.staleness, default=0)} ({Provenance.MEASURED})"
    )
    outcome = _outcome(options, ranks, network, run.history, result)
    return {**outcome, "staleness": run.staleness, "max_staleness": options.max_staleness}


def _outcome(
    options: argparse.Namespace,
    ranks: MpiWorkers,
    network: Network,
    history: History,
    test: Evaluation,
) -> dict[str, Any]:
    if options.out is not None and ranks.rank == 0:
        network.save_weights(options.out)
    return {
        "images": options.images,
        "batch": options.batch,
        "epochs": [dataclasses.asdict(epoch) for epoch in history.epochs],
        "seconds": history.seconds,
        "test_images": test.images,
        "test_accuracy": test.accuracy,
        "weights": digest(network.parameters.values()),
    }


def _clock(ranks: MpiWorkers, run: Callable[[], Any], idle: bool = False) -> tuple[float, float]:
    """Seconds of the slowest rank, and the least share of a core that one got meanwhile.

    An idle rank waits for the others without using its core. A share well below 1 tells that
    other programs ran.
    """
    ranks.barrier(pause_s=1e-3)
    start, used_s = time.perf_counter(), time.process_time()
    if not idle:
        run()
        synchronize()
    took_s = time.perf_counter() - start
    share = 1.0 if idle else (time.process_time() - used_s) / took_s
    ranks.barrier(pause_s=1e-3)
    return max(ranks.of_all(0.0 if idle else took_s)), min(ranks.of_all(share))


def _all_reduce(options: argparse.Namespace, ranks: MpiWorkers) -> dict[str, Any]:
    """Time all-reduces, and on rank 0 alone copies of as many bytes, in turn."""
    rows = []
    for size_bytes in options.bytes:
        values = np.zeros(size_bytes // 4, np.float32)
        target = np.zeros_like(values)
        calls = max(1, min(1000, 10_000_000 // size_bytes))  # so that the clock can tell

        def add_up(values: Array = values, calls: int = calls) -> None:
            for _ in range(calls):
                ranks.all_reduce(values)

        def copy(values: Array = values, target: Array = target, calls: int = calls) -> None:
            for _ in range(calls):
                np.copyto(target, values)

        times: dict[str, list[float]] = {"all_reduce_s": [], "copy_s": []}
        for number in range(options.rounds + 2):
            both = {
                "all_reduce_s": _clock(ranks, add_up)[0] / calls,
                "copy_s": _clock(ranks, copy, idle=ranks.rank > 0)[0] / calls,
            }
            if number >= 2:  # the first ones fetch the memory from the system
                for name, took_s in both.items():
                    times[name].append(took_s)
        rows.append({"bytes": values.nbytes, **times})
        if ranks.rank == 0:
            fast, slow = (values.nbytes / 1e9 / float(np.median(one)) for one in times.values())
            print(
                f"{values.nbytes:13,} bytes: all-reduce {fast:.2f} GB/s, copy {slow:.2f} GB/s "
                f"({Provenance.MEASURED})"
            )
    return {"sizes": rows}


def _one_layer() -> Network:
    """The smallest network for MNIST: 7,850 parameters, too little work to share."""
    fc = Linear(28 * 28, 10, rng=np.random.default_rng(0))
    return Network("one layer", [("flatten", Flatten()), ("fc", fc)], (1, 28, 28))


def _steps(options: argparse.Namespace, ranks: MpiWorkers) -> dict[str, Any]:
    """Time training steps of one rank alone and of all together, in turn."""
    batch = options.batch
    if options.network == "alexnet":
        network, x = alexnet(), photos(batch)
        labels = np.arange(batch) % 1000
    else:
        network = _one_layer() if options.network == "one_layer" else deep_convnet()
        x, labels = (array[:batch] for array in mnist("train"))
    network = _on_device(network, options)
    if options.device == "gpu":
        x, labels = to_gpu(x), to_gpu(labels)
    here = ranks.share(batch)
    optimizer = SGD(1e-4, 0.9)

    def alone() -> None:
        network.training_pass(x, labels)

    def together(overlap: bool, weak: bool = False) -> None:
        ranks.overlap = overlap
        if weak:
            ranks.gradients(network, x, labels, batch * ranks.size)
        else:
            ranks.gradients(network, x[here], labels[here], batch)

    kinds: dict[str, Callable[[], Any]] = {
        "one rank": alone,
        "all ranks": functools.partial(together, True),
        "all ranks, no overlap": functools.partial(together, False),
        "all ranks, no communication": lambda: network.training_pass(x[here], labels[here]),
        "all ranks, a whole batch each": functools.partial(together, True, True),
    }

    def steps(compute: Callable[[], Any]) -> None:
        for _ in range(options.steps):
            compute()
            optimizer.step(network)
            ranks.beat()

    ranks.begin(network, optimizer, None, [])
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    shares: dict[str, list[float]] = {kind: [] for kind in kinds}
    order = np.random.default_rng(0)
    for number in range(options.rounds + 1):
        for place in order.permutation(len(kinds)).tolist():
            kind, compute = list(kinds.items())[place]
            idle = kind == "one rank" and ranks.rank > 0
            took_s, share = _clock(ranks, functools.partial(steps, compute), idle)
            if number:  # the first round warms up
                seconds[kind].append(took_s / options.steps)
                shares[kind].append(share)
    if ranks.rank == 0:
        for kind, samples in seconds.items():
            print(f"{kind:30} {1e3 * float(np.median(samples)):9.1f} ms ({Provenance.MEASURED})")
    size_bytes = sum(weight.nbytes for weight in network.parameters.values())
    return {
        "network": network.name,
        "batch": batch,
        "gradient_bytes": size_bytes,
        "step_s": seconds,
        "core_share": shares,
    }


JOBS = {"train": _train, "async": _train_async, "all-reduce": _all_reduce, "steps": _steps}


def _fault(ranks: MpiWorkers, how: str, step: int) -> None:
    """Let this rank go wrong at a step, so that one can see what happens then."""
    beat = ranks.beat

    def faulty(layer: str = "") -> None:
        if ranks.step == step:
            if how == "raise":
                raise RuntimeError("a fault that was asked for")
            if how == "exit":
                sys.exit(0)
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            while how == "hang":
                time.sleep(1)
        beat(layer)

    ranks.beat = faulty


@keep_freed_memory()
def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says, as one rank of a job; return the exit status."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError):
        print(mpi_status().reason, file=sys.stderr)
        return 1
    first = MPI.COMM_WORLD.rank == 0
    with contextlib.ExitStack() as quiet:
        if not first:
            null = quiet.enter_context(open(os.devnull, "w", encoding="utf-8"))
            quiet.enter_context(contextlib.redirect_stdout(null))
            quiet.enter_context(contextlib.redirect_stderr(null))
        try:
            options = _parser().parse_args(arguments)
        except SystemExit:  # on all ranks alike: rank 0 has said what is wrong before any leaves
            MPI.COMM_WORLD.Barrier()
            raise
    if options.device == "auto":
        options.device = "gpu" if gpu_available() else "cpu"
    ranks = MpiWorkers(cuda_aware=options.cuda_aware, patience_s=options.patience)
    with ranks, blas_threads(options.threads):
        if options.device == "gpu":
            use_gpu(ranks.local_rank)
        card = machine_card()
        if first:
            counted = "1 rank" if ranks.size == 1 else f"{ranks.size} ranks"
            print(f"{counted}, each on {card.summary}", flush=True)
        if options.fault is not None and options.fault[1] == ranks.rank:
            _fault(ranks, options.fault[0], options.fault[2])
        outcome = JOBS[options.job](options, ranks)
        if first and options.result is not None:
            outcome |= {
                "job": options.job,
                "ranks": ranks.size,
                "threads": options.threads,
                "machine": card.to_dict(),
            }
            with whole_file(options.result) as part:
                part.write_text(json.dumps(outcome, allow_nan=False), encoding="utf-8")
    return 0


def _a_fault(text: str) -> tuple[str, int, int]:
    how, *numbers = text.split(":")
    if how not in ("raise", "exit", "kill", "hang") or len(numbers) != 2:
        raise argparse.ArgumentTypeError(f"such as kill:1:20, got {text!r}")
    return how, int(numbers[0]), int(numbers[1])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mpiexec -n 2 python -m mpi4py -m fastdl_lib.scaling.workers",
        description="Train in several processes that share every batch, or measure how fast they "
        "do. With --hostfile, or under srun --kill-on-bad-exit=1, on several machines.",
    )
    jobs = parser.add_subparsers(dest="job", required=True)
    default = " (default: %(default)s)"

    def job(name: str, text: str) -> Callable[..., Any]:
        add = jobs.add_parser(
            name, help=text, description=text, formatter_class=argparse.HelpFormatter
        ).add_argument
        add("--threads", type=int, default=1, help="BLAS threads a rank" + default)
        add("--device", choices=["auto", "cpu", "gpu"], default="auto", help="where" + default)
        add("--cuda-aware", action="store_true", help="the MPI library takes GPU arrays")
        seconds = "seconds without a sign of life after which a rank counts as hanging"
        add("--patience", type=float, default=PATIENCE_S, help=seconds + default)
        wrong = "HOW:RANK:STEP, such as kill:1:20: raise, exit, kill or hang there, to see the end"
        add("--fault", type=_a_fault, metavar="FAULT", help=wrong)
        add("--result", type=Path, help="write the result here, as JSON")
        return add

    for name, text, rate in [
        ("train", "train DeepConvNet on MNIST, synchronously", 3e-3),
        ("async", "train DeepConvNet on MNIST with rank 0 as parameter server", 1e-3),
    ]:
        add = job(name, text)
        add("--images", type=int, default=60_000, help="train on the first so many" + default)
        add("--test", type=int, default=10_000, help="test on the first so many" + default)
        add("--epochs", type=int, default=1, help="passes over the training images" + default)
        whole = "images a step, all ranks together" if name == "train" else "images a gradient"
        add("--batch", type=int, default=100, help=whole + default)
        add("--optimizer", choices=["adam", "sgd"], default="adam", help="kind" + default)
        add("--learning-rate", type=float, default=rate, help="the highest" + default)
        add("--momentum", type=float, default=0.9, help="of sgd" + default)
        text = "at work in training; the book has both"
        add("--dropout", choices=DROPOUT, default="none", help=text + default)
        add("--warmup", type=float, default=0.1, help="share in which the rate rises" + default)
        add("--seed", type=int, default=0, help="first weights and all chance" + default)
        add("--checkpoint", type=Path, help="store the run here after every epoch; go on from it")
        add("--out", type=Path, help="write the weights here")
        if name == "train":
            add("--shift", type=int, default=0, help="move images by so many pixels" + default)
        else:
            old = "steps that a gradient may be old"
            add("--max-staleness", type=int, default=4, help=old + default)

    add = job("all-reduce", "measure how fast arrays are added up over all ranks")
    add("--bytes", type=int, nargs="+", default=[ALEXNET_BYTES], help="of the arrays" + default)
    add("--rounds", type=int, default=10, help="samples" + default)

    add = job("steps", "measure training steps of one rank and of all, in turn")
    networks = ["deep_convnet", "alexnet", "one_layer"]
    add("--network", choices=networks, default=networks[0], help=default)
    add("--batch", type=int, default=100, help="images a step, all ranks together" + default)
    add("--steps", type=int, default=10, help="steps a sample" + default)
    add("--rounds", type=int, default=5, help="samples" + default)
    return parser


# --- from a notebook ------------------------------------------------------------------------------


def all_reduce_bandwidth(
    size_bytes: int = ALEXNET_BYTES, ranks: int = 2, rounds: int = 10
) -> Measurement:
    """Measure how fast ranks on this machine add up an array: its bytes by the seconds, in GB/s.

    By default the array is as large as AlexNet's gradients. All ranks start together, the time is
    that of the slowest. (NVIDIA's nccl-tests call this the *algorithm bandwidth*; what crosses each
    rank's link is 2 (n - 1) / n times as much, the *bus bandwidth*.)

    Args:
        size_bytes: of the array on each rank, a multiple of 4.
        ranks: from 2 up.
        rounds: samples.

    Raises:
        TypeError, ValueError: numbers out of range.
        RuntimeError: MPI is missing.

    >>> if mpi_status().available:
    ...     unit = all_reduce_bandwidth(4000, rounds=1).unit
    ... else:
    ...     unit = "GB/s"
    >>> unit
    'GB/s'
    """
    check_whole_number("size_bytes", size_bytes, 4)
    check_whole_number("ranks", ranks, 2)
    check_whole_number("rounds", rounds, 1)
    words = ["all-reduce", "--bytes", size_bytes, "--rounds", rounds, "--device", "cpu"]
    result = run_ranks(ranks, *words, show=False)
    row = result["sizes"][0]
    return Measurement(
        f"all-reduce of {row['bytes']:,} bytes on {ranks} ranks",
        "GB/s",
        tuple(row["bytes"] / 1e9 / took_s for took_s in row["all_reduce_s"]),
        Provenance.MEASURED,
        machine=MachineCard.from_dict(result["machine"]),
        conditions={"ranks": ranks, "bytes": row["bytes"], "threads": result["threads"]},
    )


if __name__ == "__main__":
    sys.exit(main())
