"""Threads: how many the BLAS may use, and work on a batch spread over Python's own.

A matrix product can be cut among the BLAS's threads, or a batch among Python threads that each
compute with a BLAS of one. The second way also spreads what is no product: copying, pooling,
normalising. NumPy lets go of Python's lock while it computes, so such threads do run side by side.
"""

import contextlib
import contextvars
import functools
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from fastdl_lib.core.arrays import array_module
from fastdl_lib.core.checks import check_whole_number

CACHE_BYTES = 2**20
"""How much is worked on at a time, so that it stays in a core's own (L2) cache. The same on every
machine, whatever its cache: where sums are cut, and which way they are made, depends on it, and so
do a result's last digits."""
FLAT_BLOCK = 2**16
"""So many values of a few arrays stay there."""


@functools.cache
def blas_libraries() -> ThreadpoolController:
    """The process's BLAS libraries, looked up once: that takes a millisecond."""
    return ThreadpoolController().select(user_api="blas")


def threads_in_words(count: int) -> str:
    """A number of threads as captions show it; 0 stands for a number that cannot be known.

    >>> threads_in_words(1), threads_in_words(8), threads_in_words(0)
    ('1 thread', '8 threads', 'an unknown number of threads')
    """
    if count == 0:
        return "an unknown number of threads"
    return "1 thread" if count == 1 else f"{count} threads"


def blas_threads_now() -> int:
    """The number of threads a matrix product may use at this moment, 0 where it cannot be known."""
    libraries = blas_libraries().lib_controllers
    return max((library.get_num_threads() for library in libraries), default=0)


_setting = threading.Lock()
_settings: list[list[tuple[Any, int]]] = []  # of the blocks being run: what was set before each


@contextlib.contextmanager
def blas_threads(count: int) -> Iterator[None]:
    """Run a block with ``count`` BLAS threads, and restore the number afterwards: where blocks of
    several threads overlap, after the last of them. Apple's Accelerate manages its own threads and
    takes no notice: their number stays unknown.

    Raises: ValueError for more than the BLAS was built for.

    >>> with blas_threads(1):
    ...     blas_threads_now() <= 1
    True
    """
    count = check_whole_number("the number of BLAS threads", count, 1)
    libraries = blas_libraries().lib_controllers
    with _setting:
        before = [(library, library.get_num_threads()) for library in libraries]
        _set_blas_threads([(library, min(count, 2**31 - 1)) for library in libraries])  # a C int
        got = [library.get_num_threads() for library in libraries]
        if got != [count] * len(got):
            _set_blas_threads(before)
            raise ValueError(f"this BLAS was built for at most {min(got)} threads, got {count}.")
        _settings.append(before)
    try:
        yield
    finally:
        with _setting:
            place = next(i for i, setting in enumerate(_settings) if setting is before)
            if place == len(_settings) - 1:
                _set_blas_threads(before)
            else:  # a later block still runs: it restores what was before this one
                _settings[place + 1][:] = before
            del _settings[place]


def _set_blas_threads(counts: list[tuple[Any, int]]) -> None:
    for library, count in counts:
        # threadpoolctl lets the first thread alone set OpenBLAS's number; for others it does
        # nothing. Our blocks take turns, and the last to end must be able to restore it.
        let_go = getattr(library, "clear_controlling_thread", lambda force: None)
        let_go(force=True)
        library.set_num_threads(count)
        let_go(force=True)


_CONTROL_GROUPS, _OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# What holds the limits, in the second version of control groups and in the first.
_LIMIT_FILES = {
    "cpu": (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")),
    "memory": (("memory.max",), ("memory.limit_in_bytes",)),
}


def container_limit(controller: str) -> float:
    """What the control groups leave to this process, its own and those around it (a container, a
    batch job, a service): cores of "cpu", bytes of "memory"; infinite where there is no limit."""
    limit = math.inf
    for folder in _control_groups(controller):
        for files in _LIMIT_FILES[controller]:
            paths = [folder / file for file in files]
            words = [word for path in paths if path.is_file() for word in path.read_text().split()]
            if words and words[0] not in ("max", "-1"):
                numbers = [int(word) for word in words]
                limit = min(limit, numbers[0] / (numbers[1] if controller == "cpu" else 1))
    return limit


def _control_groups(controller: str) -> list[Path]:
    """Their folders; a container may see its own as the root, whatever name it has outside."""
    lines = _OWN_GROUPS.read_text().splitlines() if _OWN_GROUPS.is_file() else []
    folders = [_CONTROL_GROUPS, _CONTROL_GROUPS / controller]
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            for root in (_CONTROL_GROUPS / place for place in ("", "unified", controllers)):
                own = root / name.strip("/")
                folders += [own, *(one for one in own.parents if root in one.parents)]
    return folders


def _allowed_cores() -> int:
    has_affinity = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1


def cpu_quota() -> float:
    """What a quota leaves of this process's cores, 1.5 for instance; 0 where none binds it."""
    quota = container_limit("cpu")
    return quota if quota < _allowed_cores() else 0.0


def usable_cores() -> int:
    """Whole cores that this process may use: affinity and a container's quota can lie under what
    the machine has. A quota of 1.5 leaves 1: two threads that never wait would soon have used it
    up, and the system stops both for the rest of each period."""
    return max(1, math.floor(cpu_quota() or _allowed_cores()))


def blocks(part: slice, size: int) -> list[slice]:
    """Cut a slice into slices of ``size``; the last may be shorter.

    >>> blocks(slice(3, 8), 2)
    [slice(3, 5, None), slice(5, 7, None), slice(7, 8, None)]
    """
    starts = range(part.start, part.stop, size)
    return [slice(start, min(start + size, part.stop)) for start in starts]


_here = threading.local()


@functools.cache
def _pool(process: int) -> ThreadPoolExecutor:
    """The waiting threads of the process of that number: a fork keeps the pool but no thread."""
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="fastdl")


def in_parallel(
    work: Callable[[slice], None],
    count: int,
    *,
    block: int | None = None,
    least: int = 1,
    row_bytes: int = 0,
    on: Any = None,
) -> None:
    """Call ``work`` on slices that together cover ``range(count)``, shared out among threads; it
    stores its result itself. What it raises is raised.

    As many threads take part as the BLAS may use at this moment; while they work, each has a BLAS
    of one thread. Where this thread is at such work already, it does all of it.

    Args:
        block: hand out no slice longer than this, so that what belongs to it stays in the cache.
        least: do not give a thread fewer than this.
        row_bytes: instead of these two, the bytes of one: as many as fit the cache make a block.
        on: an array that ``work`` computes with. One on the GPU is worked on at once, since each
            slice would be a launch more.

    >>> seen = []
    >>> in_parallel(lambda part: seen.extend(range(part.start, part.stop)), 5)
    >>> sorted(seen)
    [0, 1, 2, 3, 4]
    """
    if count < 1:
        return
    if on is not None and array_module(on) is not np:
        work(slice(0, count))
        return
    if row_bytes:
        block = max(1, CACHE_BYTES // row_bytes)
        least = -(-block // 8)
    nested = getattr(_here, "working", False)
    threads = 1 if nested else max(1, min(blas_threads_now(), count // max(1, least)))

    def share(number: int) -> None:
        part = slice(*(count * edge // threads for edge in (number, number + 1)))
        _here.working = True
        try:
            for piece in blocks(part, block or count):
                work(piece)
        finally:
            _here.working = nested

    with contextlib.ExitStack() as stack:
        if not nested:
            # A BLAS of one also where one thread has all the work: a BLAS thread once woken spins
            # on for a while after its product, and takes a core from the threads that come next.
            stack.enter_context(blas_threads(1))
        _side_by_side(share, threads)


def _side_by_side(share: Callable[[int], None], threads: int) -> None:
    """Call ``share`` with each number below ``threads``, 0 in this thread; raise its errors."""
    others: list[Future] = []
    try:
        for number in range(1, threads):
            # The context carries np.errstate along.
            context = contextvars.copy_context()
            others.append(_pool(os.getpid()).submit(context.run, share, number))
        share(0)
    finally:
        # The others write into the same arrays: nobody goes on before they have stopped.
        errors = [other.exception() for other in others]
    for error in filter(None, errors):
        raise error


def sum_in_order(sums: dict[int, tuple[Any, ...]]) -> tuple[Any, ...]:
    """Add up what threads have summed for their parts, in the order of the parts' starts.

    Whichever thread was first, the same bits come out.

    >>> sum_in_order({5: (1.0, 10), 0: (2.0, 20)})
    (3.0, 30)
    """
    return tuple(sum(parts) for parts in zip(*(sums[key] for key in sorted(sums)), strict=True))


def in_flat_blocks(change: Callable[..., None], arrays: Sequence[Any]) -> None:
    """Call ``change`` on views of the same FLAT_BLOCK values of every array, shared out among
    threads, so that temporaries stay in cache. None among the arrays stays None. Arrays that do not
    lie in memory alike and without gaps come whole, as do those of a GPU.

    >>> x = np.arange(4.0)
    >>> in_flat_blocks(lambda values, out: np.negative(values, out=out), [x, x])
    >>> x.tolist()
    [-0.0, -1.0, -2.0, -3.0]
    """
    given = [array for array in arrays if array is not None]
    first = given[0]
    # A weight may be a view of a kernel's own layout: in the order of its strides it has no gaps.
    axes = sorted(range(first.ndim), key=lambda axis: -first.strides[axis])
    if array_module(*given) is not np or not all(
        array.transpose(axes).flags.c_contiguous for array in given
    ):
        change(*arrays)
        return
    flat = [None if array is None else array.transpose(axes).reshape(-1) for array in arrays]

    def work(part: slice) -> None:
        change(*(None if array is None else array[part] for array in flat))

    if first.size <= FLAT_BLOCK:
        work(slice(None))  # in less time than it takes to share out
    else:
        in_parallel(work, first.size, block=FLAT_BLOCK, least=FLAT_BLOCK)
