"""Fixtures that several test files share, and the order in which files start."""

import contextlib
import os
import uuid
from pathlib import Path

# Before NumPy is loaded, and for every kernel and job that a test starts. Workers of OpenBLAS spin
# on after a product for a core that another test wants; measurements need not be precise here.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
os.environ.setdefault("FASTDL_TIME_SCALE", "0.1")

import hypothesis
import psutil
import pytest

from fastdl_lib.core.arrays import gpu_status
from fastdl_lib.core.compiler import c_compiler
from fastdl_lib.core.pretend_gpu import pretend_gpu
from fastdl_lib.course.notebooks import is_chapter
from fastdl_lib.measuring.machine import machine_card

# No test here asserts a time, so none may fail for being slow either; the same draws every time.
hypothesis.settings.register_profile("fastdl", deadline=None, max_examples=50, derandomize=True)
hypothesis.settings.load_profile("fastdl")


# The files that take longest start first, so that two workers end at about the same time.
LONGEST = (
    "test_browser",
    "04_distributed_training",
    "01_where_time_goes",
    "05_half_precision",
    "02_im2col",
    "03_cpu_vs_gpu",
    "06_binarized_networks",
    "test_rank_runs",
    "test_release",
    "test_chapter_03",
    "test_workers",
)


def pytest_configure(config):
    """A notebook that only looks like a chapter, such as 01_words-Copy1.ipynb, is no test."""
    if config.args_source is config.ArgsSource.TESTPATHS:
        own = [arg for arg in config.args if arg.endswith(".ipynb") and not is_chapter(arg)]
        config.args = [arg for arg in config.args if arg not in own]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(LONGEST)))


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


@pytest.fixture
def no_process_left(monkeypatch):
    """Whatever a test starts has ended when it ends."""
    mark = str(uuid.uuid4())
    monkeypatch.setenv("FASTDL_TEST_MARK", mark)
    # The programs of ranks lie in another folder than the package they test.
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[1]))
    yield

    def left() -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get("FASTDL_TEST_MARK") == mark and process.pid != os.getpid():
                    found.append(process)
        return found

    psutil.wait_procs(left(), timeout=30)
    assert not left()
