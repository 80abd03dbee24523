"""Data-parallel training over MPI: several processes, the *ranks*, share every batch.

Each rank computes the gradients of its part of the batch, an all-reduce adds them up, and all take
the same step: n ranks give the weights of one. ``course/ranks.py`` is a command that does so.
:class:`Delayed` shows in one process what gradients do that come late.

Floats added up in another order differ in the last digit; then, now and then, a ReLU lets through
what it did not, and Adam makes a whole step of a gradient that was 0. So a float32 network on the
CPU sums over images in float64, gradients of weights of up to 1 MiB cross in float64, and the sum
is rounded once: 1 to 4 ranks have trained DeepConvNet to the same bits. In the last digits, and in
what follows from them, ranks still differ where layers compute by Winograd (above 64 channels and
filters a group), for larger weights, in float16, and on the GPU: with 128 filters on 64 channels
by 0.4 to 0.8 % of the way moved after 12 steps of Adam (as a norm; one weight by up to a third).
"""

import collections
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastdl_lib.core.arrays import array_module, beside, rounded, synchronize, to_cpu, wide
from fastdl_lib.core.checks import check_number, check_whole_number
from fastdl_lib.core.threads import CACHE_BYTES, usable_cores
from fastdl_lib.nn.network import Network
from fastdl_lib.nn.training import Evaluation, Workers, evaluate
from fastdl_lib.scaling import watchdog
from fastdl_lib.scaling.mpi import mpi_status

Array = Any  # numpy.ndarray or cupy.ndarray

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


def _sum_dtype(weight: Array) -> np.dtype:
    """What the gradients of a weight are added up in: those that layers sum in float64, so too."""
    small = array_module(weight) is np and weight.nbytes <= CACHE_BYTES
    return np.dtype(np.float64) if small and weight.dtype == np.float32 else weight.dtype


class _Bucket:
    """One array without gaps, and views of it in the shapes and memory order of small gradients."""

    def __init__(self, like: Mapping[str, Array]) -> None:
        sizes = np.cumsum([array.size for array in like.values()]).tolist()
        first = next(iter(like.values()))
        dtype = np.result_type(*map(_sum_dtype, like.values()))
        self.flat = array_module(first).empty(sizes[-1], dtype)
        self.views: dict[str, Array] = {}
        self.missing = len(like)
        for (name, array), stop in zip(like.items(), sizes, strict=True):
            axes = _axes(array)
            part = self.flat[stop - array.size : stop]
            turned = part.reshape(tuple(array.shape[axis] for axis in axes))
            self.views[name] = turned.transpose(tuple(map(axes.index, range(array.ndim))))


class _Gradients:
    """A network's gradients, sent off in the order in which its backward pass makes them.

    Small ones are gathered in buckets, and each full bucket is handed to ``send``; one as large as
    a bucket goes as it lies. ``send`` adds up in place, so that the network's gradients become the
    sums.
    """

    def __init__(self, network: Network, bucket_bytes: int, send: Callable[[Array], None]) -> None:
        self.network, self._send = network, send
        self._buckets: dict[str, _Bucket] = {}
        gathered: dict[str, Array] = {}
        for layer_name, layer in reversed(network.layers.items()):
            for name, weight in layer.parameters.items():
                if weight.nbytes < bucket_bytes:
                    gathered[f"{layer_name}.{name}"] = weight
            if sum(weight.nbytes for weight in gathered.values()) >= bucket_bytes:
                self._buckets |= dict.fromkeys(gathered, _Bucket(gathered))
                gathered = {}
        if gathered:
            self._buckets |= dict.fromkeys(gathered, _Bucket(gathered))

    def round_sums(self) -> None:
        """Give the layers their gradients, added up, in their weights' dtype."""
        for layer in self.network.layers.values():
            for name, weight in layer.parameters.items():
                layer.gradients[name] = rounded(layer.gradients[name], weight.dtype)

    def after_layer(self, layer_name: str) -> None:
        """Take in a layer's gradients, and send off the bucket that they fill."""
        layer = self.network.layers[layer_name]
        for name, weight in layer.parameters.items():
            gradient, bucket = layer.gradients[name], self._buckets.get(f"{layer_name}.{name}")
            if bucket is None:
                # All ranks send it in its weight's order of memory, whatever algorithm made it.
                axes, dtype = _axes(weight), _sum_dtype(weight)
                contiguous = gradient.transpose(axes).flags.c_contiguous
                if not (contiguous and gradient.dtype == dtype):
                    made, gradient = gradient, array_module(weight).empty_like(weight, dtype=dtype)
                    gradient[...] = made
                layer.gradients[name] = gradient
                self._send(gradient.transpose(axes).reshape(-1))
                continue
            view = bucket.views[f"{layer_name}.{name}"]
            view[...] = gradient
            layer.gradients[name] = view
            bucket.missing -= 1
            if not bucket.missing:
                bucket.missing = len(bucket.views)
                self._send(bucket.flat)


def _forget_shared_memory() -> None:
    """Delete the names of the memory that this machine's ranks share, now that all have it: a job
    that is killed would leave them in /dev/shm until that is full."""
    maps = Path("/proc/self/maps")
    if maps.is_file():
        for name in set(re.findall(r"/dev/shm/mpich_\S+", maps.read_text())):
            Path(name).unlink(missing_ok=True)


class MpiWorkers(Workers):
    """All ranks of an MPI job, for ``fit(..., workers=...)``; every rank runs the same script.

    As a context manager it sees to it that the job ends within seconds, with a message that names
    the rank, when a rank raises, is killed, leaves or hangs. Start the same command again: with a
    checkpoint ``fit`` goes on from there.

    MPI moves data only while it is called: after each layer of the backward pass, and in waiting.

    Args:
        cuda_aware: hand GPU arrays to MPI as they are, which needs a library built for it. By
            default they cross over the CPU's memory. (MPI has no call that tells.)
        patience_s: a rank that gives no sign of life for so long hangs; in its first step, where
            loops may be compiled, for a minute. Signs come with every layer and every 500 images
            of an evaluation.

    Raises: RuntimeError: MPI is missing.

    Sources: S. Li et al., "PyTorch Distributed: Experiences on accelerating data parallel
    training", VLDB 2020, section 3.2 (buckets, overlap).

    What each rank runs::

        with MpiWorkers() as workers:
            fit(network, images, labels, epochs=1, optimizer=Adam(), workers=workers)
    """

    bucket_bytes = 4_000_000
    """Gradients go off in pieces of about so many bytes. PyTorch takes 25 MB, good for a network
    card; between two cores the sum of 4 MB stays in their cache: half the time."""
    overlap = True
    """Send a bucket off as soon as it is full, while backward goes on; False: at its end."""

    def __init__(self, *, cuda_aware: bool = False, patience_s: float = PATIENCE_S) -> None:
        check_number("patience_s", patience_s, low=0, low_included=False)
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError):  # mpi4py finds no library
            raise RuntimeError(mpi_status().reason) from None
        self._mpi = MPI
        self.comm = MPI.COMM_WORLD.Dup()
        self.rank, self.size = self.comm.rank, self.comm.size
        self.cuda_aware, self.patience_s = cuda_aware, patience_s
        self.step = 0  # steps that were begun
        self.waited_s = 0.0  # for others or for data, so far
        self._local = self.comm.Split_type(MPI.COMM_TYPE_SHARED)
        self.local_rank = self._local.rank
        # Where ranks are more than cores, one that looks without a pause keeps another from work.
        self._crowded = self._local.size > usable_cores()
        self._sign: watchdog.Sign | None = None
        self._watchdog: subprocess.Popen | None = None
        self._sending: _Gradients | None = None
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
            _forget_shared_memory()
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

    def begin(self, network, optimizer, settings, epochs):
        mixing = [name for name, layer in network.layers.items() if layer.mixes_images]
        if mixing and self.size > 1:  # of each rank's part, they would drift apart
            kind = type(network.layers[mixing[0]]).__name__
            raise ValueError(
                f"{network.name} has a layer, {mixing[0]}, a {kind}, that computes with means or "
                "scales of the whole batch: train it in one process, with fit()."
            )
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
        state, optimizer.state = optimizer.state, {}
        for key in remembered:
            weight = weights[key.partition(".")[2]]
            # As the optimiser makes it: float32 for float16 weights.
            new = array_module(weight).zeros_like(weight, dtype=wide(weight.dtype))
            optimizer.state[key] = state.get(key, new)
            self._array_from_rank_0(optimizer.state[key])
        return epochs

    def share(self, images):
        start, stop = (images * rank // self.size for rank in (self.rank, self.rank + 1))
        return slice(start, stop)

    def gradients(self, network, x, labels, images, loss_scale=1.0):
        self.step += 1
        self.beat()
        if self._sending is None or self._sending.network is not network:
            self._sending = _Gradients(network, self.bucket_bytes, self._send)
        loss_sum, correct = 0.0, 0
        if len(x):
            loss, correct = self._pass_here(network, x, labels, images, loss_scale)
            loss_sum = len(x) * loss
        else:  # an epoch's last batch may have fewer images than there are ranks
            network.drop_gradients()
            for name, layer in reversed(network.layers.items()):
                layer.gradients = {
                    key: array_module(weight).zeros_like(weight)
                    for key, weight in layer.parameters.items()
                }
                self._sending.after_layer(name)
        for flat in self._held_back:
            self._start(flat)
        self._held_back.clear()
        totals = np.array([loss_sum, correct], np.float64)
        self._requests.append(self.comm.Iallreduce(self._mpi.IN_PLACE, totals))
        self._finish()
        self._sending.round_sums()
        return float(totals[0]) / images, int(totals[1])

    def _pass_here(self, network, x, labels, images, loss_scale) -> tuple[float, int]:
        """As ``gradients``, of the images here."""

        def after_layer(name: str) -> None:
            self._sending.after_layer(name)
            self.beat()
            # MPI moves data only while it is called.
            self._mpi.Request.Testall(self._requests)

        hooks = {"after_forward": self.beat, "after_backward": after_layer}
        for layer in network.layers.values():  # draws for the whole batch, keeps these images'
            layer.share(self.share(images), images)
        try:
            return network.training_pass(x, labels, scale=loss_scale * len(x) / images, **hooks)
        finally:
            for layer in network.layers.values():
                layer.share(None, 0)

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

    def evaluate(self, network, images, labels):
        here = self.share(len(images))
        sums = np.zeros(2)
        for start in range(here.start, here.stop, 500):  # with signs of life
            part = slice(start, min(start + 500, here.stop))
            result = evaluate(network, images[part], labels[part])
            sums += result.correct, result.loss * result.images
            self.beat()
        self.wait([self.comm.Iallreduce(self._mpi.IN_PLACE, sums)])
        return Evaluation(len(images), int(sums[0]), float(sums[1]) / len(images))

    def all_reduce(self, array: Array) -> None:
        """Add up an array without gaps over all ranks, in place."""
        self._start(array)
        self._finish()


class Delayed(Workers):
    """For ``fit(..., workers=Delayed(4))``: one process trains with gradients that are 4 steps old.

    Each step's gradients are computed with the weights of ``staleness`` steps ago (the first ones
    with those of the start), as a worker far behind would. Needs the memory of so many copies of
    the weights.

    Args:
        staleness: whole number from 0 up; 0 is plain training.

    Raises: TypeError, ValueError: staleness is no such number; a run that was interrupted is to go
    on (the old weights are not in its checkpoint).

    >>> Delayed(2).way
    ', gradients 2 steps old'
    """

    def __init__(self, staleness: int) -> None:
        self.staleness = staleness = check_whole_number("staleness", staleness, 0)
        self.way = f", gradients {staleness} steps old" if staleness else ""
        self._old = collections.deque[dict[str, Array]](maxlen=staleness + 1)

    def begin(self, network, optimizer, settings, epochs):
        if epochs and self.staleness:
            raise ValueError(
                f"a run with {self.staleness} steps of staleness cannot go on from a checkpoint; "
                "train without one."
            )
        self._old.clear()
        return epochs

    def gradients(self, network, x, labels, images, loss_scale=1.0):
        weights = network.parameters
        now = {name: weight.copy() for name, weight in weights.items()}
        self._old.append(now)  # of so many steps the oldest go
        for name, weight in self._old[0].items():
            weights[name][...] = weight
        try:
            return network.training_pass(x, labels, scale=loss_scale)
        finally:
            for name, weight in now.items():
                weights[name][...] = weight
