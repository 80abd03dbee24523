"""Threads: how many the BLAS may use, and work on a batch spread over Python's own.

A matrix product can be cut among the BLAS's threads, or a batch among Python threads that each
compute with a BLAS of one. The second way also spreads what is no product: copying, pooling,
normalising. NumPy lets go of Python's lock while it computes, so such threads do run side by side.
"""

import contextlib
import contextvars
import functools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from threadpoolctl import ThreadpoolController

__all__ = [
    "blas_libraries",
    "blas_threads",
    "blas_threads_now",
    "blocks",
    "in_parallel",
    "sum_in_order",
    "threads_in_words",
]


@functools.cache
def blas_libraries() -> ThreadpoolController:
    """The BLAS libraries of this process; looking them up takes a millisecond, so it is done once.

    >>> len(blas_libraries()) >= 0  # Apple's Accelerate does not show
    True
    """
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
    """The number of threads a matrix product may use at this moment, 0 where it cannot be known.

    >>> blas_threads_now() >= 0
    True
    """
    libraries = blas_libraries().lib_controllers
    return max((library.get_num_threads() for library in libraries), default=0)


@contextlib.contextmanager
def blas_threads(count: int) -> Iterator[None]:
    """Run a block with ``count`` BLAS threads, and restore the number afterwards.

    Raises:
        ValueError: ``count`` is not a whole number of at least 1.
        RuntimeError: this thread cannot set the number. threadpoolctl leaves that to the first
            thread that did.

    Apple's Accelerate manages its own threads and takes no notice: their number stays unknown.

    >>> with blas_threads(1):
    ...     threads = blas_threads_now()
    >>> threads in (0, 1)
    True
    """
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(f"blas_threads() takes a whole number from 1 up, got {count!r}.")
    before = [(library, library.get_num_threads()) for library in blas_libraries().lib_controllers]
    try:
        for library, _ in before:
            library.set_num_threads(count)
        if any(library.get_num_threads() != count for library, _ in before):
            raise RuntimeError(
                f"the BLAS did not take {count} threads. Only the thread that first set their "
                "number can change it: set it there, before this thread starts."
            )
        yield
    finally:
        for library, threads in before:
            library.set_num_threads(threads)


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
    work: Callable[[slice], None], count: int, *, block: int | None = None, least: int = 1
) -> None:
    """Call ``work`` on slices that together cover ``range(count)``, shared out among threads.

    As many threads take part as the BLAS may use at this moment; while they work, each has a BLAS
    of one thread. Where this thread cannot set that (:func:`blas_threads`), or is at such work
    already, it does all of it. ``work`` stores its
    result itself, into an array made before.

    Args:
        work: takes a slice of what is counted: images, rows, features.
        count: how many there are.
        block: hand out no slice longer than this, so that what belongs to it stays in the cache.
        least: do not give a thread fewer than this.

    Raises:
        Whatever ``work`` raises.

    >>> seen = []
    >>> in_parallel(lambda part: seen.extend(range(part.start, part.stop)), 5)
    >>> sorted(seen)
    [0, 1, 2, 3, 4]
    """
    if count < 1:
        return
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
            try:
                stack.enter_context(blas_threads(1))
            except RuntimeError:  # not for this thread to set
                threads = 1
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
