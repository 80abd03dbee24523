"""Fixtures that several test files share."""

import sys

import fake_cupy
import hypothesis
import pytest

from fastdl_lib.arrays import gpu_status
from fastdl_lib.machine import machine_card

# No test here asserts a time, so none may fail for being slow either.
hypothesis.settings.register_profile("fastdl", deadline=None, max_examples=50)
hypothesis.settings.load_profile("fastdl")


@pytest.fixture
def fake_gpu(monkeypatch):
    """A GPU without a GPU: the strict stand-in in CuPy's place."""
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy)
    monkeypatch.setattr(fake_cupy, "counts", dict.fromkeys(fake_cupy.counts, 0))
    gpu_status.cache_clear()
    yield fake_cupy
    gpu_status.cache_clear()


@pytest.fixture(scope="session")
def card():
    return machine_card()
