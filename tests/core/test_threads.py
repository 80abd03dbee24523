"""Threads are set and given back, and a batch is divided among them without a gap."""

import math
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers import needs_a_known_blas

from fastdl_lib.core import threads
from fastdl_lib.core.threads import (
    blas_threads,
    blas_threads_now,
    in_parallel,
    sum_in_order,
    usable_cores,
)


@pytest.mark.parametrize(("count", "error"), [(0, ValueError), (1.0, TypeError), (True, TypeError)])
def test_blas_threads_refuses_what_is_no_count(count, error):
    with pytest.raises(error, match="number of BLAS threads must be"), blas_threads(count):
        pytest.fail("the block must not run")


@needs_a_known_blas
@pytest.mark.parametrize("before", [1, 2])
def test_more_threads_than_the_blas_was_built_for_are_its_fault_not_the_threads(before):
    with blas_threads(np.int8(before)):
        for count in (10_000, 2**32 + 1):  # C's int would make 1 of it
            with pytest.raises(ValueError, match=rf"at most (?!1 )\d+ threads, got {count}\."):
                blas_threads(count).__enter__()
        assert blas_threads_now() == before


@needs_a_known_blas
@pytest.mark.parametrize("first_out", [0, 1])
@pytest.mark.parametrize("ours", [0, 1, 2])
def test_blocks_that_overlap_leave_the_number_of_before(first_out, ours):
    """In one thread, and in two of which this one is the first, the second, or neither."""
    with blas_threads(2), ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as another:
        places = [one.submit, another.submit]
        if ours < 2:
            places[ours] = lambda call, *given: call(*given)
        blocks = [blas_threads(1), blas_threads(1)]
        order = [(0, "__enter__"), (1, "__enter__"), (first_out, ""), (1 - first_out, "")]
        for (number, act), left in zip(order, (1, 1, 1, 2), strict=True):
            given = () if act else (None, None, None)
            done = places[number](getattr(blocks[number], act or "__exit__"), *given)
            if done is not None and hasattr(done, "result"):
                done.result()
            assert blas_threads_now() == left


@needs_a_known_blas
def test_work_shared_in_several_threads_at_once_leaves_the_number_of_before():
    def share():
        for _ in range(20):
            in_parallel(lambda part: np.ones((32, 32)) @ np.ones((32, 32)), 4)

    with blas_threads(2), ThreadPoolExecutor(3) as executor:
        for _ in range(5):
            for done in [executor.submit(share) for _ in range(3)]:
                done.result()
            assert blas_threads_now() == 2


V1 = "4:memory:/job\n2:cpu,cpuacct:/job\n"


@pytest.mark.parametrize(
    ("own", "files", "cores", "memory"),
    [
        ("", {}, 8, math.inf),
        ("", {"cpu.max": "299000 100000\n"}, 2, math.inf),  # a container's root
        ("0::/\n", {"cpu.max": "5000 100000\n"}, 1, math.inf),
        ("0::/\n", {"cpu.max": "max 100000\n", "memory.max": "max\n"}, 8, math.inf),
        ("0::/a/b\n", {"a/b/cpu.max": "300000 100000", "a/b/memory.max": "4096"}, 3, 4096),
        ("0::/a/b\n", {"a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000"}, 2, math.inf),
        ("0::/docker/f00\n", {"cpu.max": "100000 100000"}, 1, math.inf),
        (V1, {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3, math.inf),
        (V1, {"cpu,cpuacct/job/cpu.cfs_quota_us": "-1\n"}, 8, math.inf),
        (V1, {"memory/job/memory.limit_in_bytes": "9", "memory/memory.limit_in_bytes": "8"}, 8, 8),
        (
            "1:name=systemd:/x\n0::/job\n",
            {"unified/job/cpu.max": "100000 50000", "x/cpu.max": "1 1"},
            *(2, math.inf),
        ),
    ],
)
def test_the_least_limit_of_all_control_groups_counts(
    monkeypatch, tmp_path, own, files, cores, memory
):
    assert 1 <= usable_cores() <= os.cpu_count()
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(text)
    monkeypatch.setattr(threads, "_OWN_GROUPS", tmp_path / ("own" if own else "none"))
    monkeypatch.setattr(threads, "_CONTROL_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert (usable_cores(), threads.container_limit("memory")) == (cores, memory)


# --- a batch over threads -----------------------------------------------------------------------


@needs_a_known_blas
def test_each_thread_works_with_a_blas_of_one_and_the_callers_errstate():
    seen = []

    def work(part):
        seen.append((blas_threads_now(), np.geterr()["over"], threading.get_ident()))

    with blas_threads(2), np.errstate(over="raise"):
        in_parallel(work, 6)
        assert blas_threads_now() == 2
    assert [one[:2] for one in seen] == [(1, "raise")] * 2
    assert len({thread for *_, thread in seen}) == 2


@needs_a_known_blas
@pytest.mark.parametrize(
    ("threads", "count", "limits", "expected"),
    [
        (3, 8, {"least": 4}, [(0, 4), (4, 8)]),
        (2, 10, {"block": 2}, [(0, 2), (2, 4), (4, 5), (5, 7), (7, 9), (9, 10)]),
        (3, 5, {}, [(0, 1), (1, 3), (3, 5)]),
        (3, 2, {}, [(0, 1), (1, 2)]),
        (1, 5, {}, [(0, 5)]),
        (2, 0, {}, []),
    ],
)
def test_a_part_is_no_shorter_than_the_least_and_no_longer_than_a_block(
    threads, count, limits, expected
):
    parts = []
    with blas_threads(threads):
        in_parallel(parts.append, count, **limits)
    assert sorted((part.start, part.stop) for part in parts) == expected


@needs_a_known_blas
def test_work_within_work_is_not_divided_again():
    inner = []
    with blas_threads(2):
        in_parallel(lambda part: in_parallel(inner.append, part.stop - part.start), 4)
    assert inner == [slice(0, 2), slice(0, 2)]


@needs_a_known_blas
@pytest.mark.parametrize("bad", [0, 1])
def test_an_error_in_a_thread_is_raised_and_the_threads_are_given_back(bad):
    def work(part):
        if part.start == bad * 2:
            raise ValueError("image 7 is missing")

    with blas_threads(2):
        with pytest.raises(ValueError, match="image 7"):
            in_parallel(work, 4)
        assert blas_threads_now() == 2
        parts = []
        in_parallel(parts.append, 4)
        assert len(parts) == 2


@pytest.mark.parametrize("on_gpu", [False, True])
def test_work_on_the_gpu_comes_at_once_and_on_the_cpu_in_blocks_of_the_cache(fake_gpu, on_gpu):
    parts, x = [], fake_gpu.zeros(10) if on_gpu else np.zeros(10)
    in_parallel(parts.append, 10, row_bytes=threads.CACHE_BYTES // 5, on=x)
    assert (parts == [slice(0, 10)]) == on_gpu
    assert on_gpu or max(part.stop - part.start for part in parts) == 5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@needs_a_known_blas
def test_a_forked_process_makes_threads_of_its_own():
    with blas_threads(2):
        in_parallel(lambda part: None, 2)
        child = os.fork()
        if child == 0:
            signal.alarm(20)  # ends the child, should it wait for threads that are not there
            seen = []
            in_parallel(seen.append, 2)
            os._exit(0 if len(seen) == 2 else 1)
        assert os.waitpid(child, 0)[1] == 0


def test_sums_are_added_in_the_order_of_their_parts():
    # Arrays: of plain floats Python 3.12 and later make a compensated sum.
    values = {start: (np.array([value]),) for start, value in {4: 1.0, 0: 1e16, 2: -1e16}.items()}
    assert sum_in_order(values)[0] == 1
    assert sum(value for (value,) in values.values()) == 0, "another order, other bits"
