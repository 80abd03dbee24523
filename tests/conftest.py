"""Fixtures that several test files share."""

import hypothesis
import pytest

from fastdl_lib.core.arrays import gpu_status
from fastdl_lib.core.compiler import c_compiler
from fastdl_lib.core.pretend_gpu import pretend_gpu
from fastdl_lib.measuring.machine import machine_card

# No test here asserts a time, so none may fail for being slow either.
hypothesis.settings.register_profile("fastdl", deadline=None, max_examples=50)
hypothesis.settings.load_profile("fastdl")


@pytest.fixture
def fake_gpu():
    """A GPU without a GPU: the strict stand-in in CuPy's place."""
    if c_compiler() is None:
        pytest.skip("the stand-in for a GPU runs kernels through a C compiler, and there is none")
    with pretend_gpu() as stand_in:
        gpu_status.cache_clear()  # a test may break what proves it
        yield stand_in


@pytest.fixture(scope="session")
def card():
    return machine_card()
