"""Threads are set and given back, and a batch is divided among them without a gap."""

import threading

import numpy as np
import pytest

from fastdl_lib.machine import machine_card
from fastdl_lib.threads import blas_libraries, blas_threads, blas_threads_now, in_parallel

needs_a_known_blas = pytest.mark.skipif(
    not blas_libraries().info(), reason="threadpoolctl cannot set this BLAS's threads"
)


@needs_a_known_blas
def test_blas_threads_sets_and_restores():
    before = blas_threads_now()
    with blas_threads(1):
        assert blas_threads_now() == 1
        assert machine_card().blas_threads == 1
        with blas_threads(2):
            assert blas_threads_now() == 2
        assert blas_threads_now() == 1
    assert blas_threads_now() == before


@needs_a_known_blas
def test_blas_threads_restores_after_an_error():
    with blas_threads(2):
        with pytest.raises(ZeroDivisionError), blas_threads(1):
            raise ZeroDivisionError
        assert blas_threads_now() == 2


@pytest.mark.parametrize("count", [0, -1, 1.0, "2", True, None])
def test_blas_threads_refuses_what_is_no_count(count):
    with pytest.raises(ValueError, match="a whole number from 1 up"), blas_threads(count):
        pytest.fail("the block must not run")


# --- a batch over threads -----------------------------------------------------------------------


@needs_a_known_blas
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("images", [1, 2, 5, 16])
def test_every_image_is_worked_on_once(images, threads):
    seen = np.zeros(images, int)

    def work(part):
        seen[part] += 1

    with blas_threads(threads):
        in_parallel(work, images)
    assert (seen == 1).all()


@needs_a_known_blas
def test_each_thread_works_with_a_blas_of_one():
    seen = []

    def work(part):
        seen.append((threading.get_ident(), blas_threads_now(), part.stop - part.start))

    with blas_threads(2):
        in_parallel(work, 6)
        assert blas_threads_now() == 2
    assert len({thread for thread, _, _ in seen}) == 2
    assert [(blas, images) for _, blas, images in seen] == [(1, 3), (1, 3)]


@needs_a_known_blas
def test_a_thread_gets_no_fewer_images_than_the_least():
    parts = []
    with blas_threads(3):
        in_parallel(parts.append, 8, least=4)
    assert sorted((part.start, part.stop) for part in parts) == [(0, 4), (4, 8)]


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
