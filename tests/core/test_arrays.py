"""NumPy and CuPy behind one door, tried with the strict stand-in and, where there is one, a GPU."""

import subprocess
import sys

import numpy as np
import pytest
from helpers import batch, small_alexnet

from fastdl_lib.core import arrays
from fastdl_lib.measuring.speeds import forward_ms
from fastdl_lib.measuring.timing import benchmark
from fastdl_lib.nn.zoo import deep_convnet


def test_array_module_says_whose_the_arrays_are(fake_gpu):
    assert arrays.array_module(np.zeros(1), np.ones((2, 2))) is np
    assert arrays.array_module(fake_gpu.zeros(3), fake_gpu.ones(2)) is fake_gpu
    with pytest.raises(TypeError, match=r"1 of 2 arrays are on the GPU.*to_gpu\(\) or to_cpu\(\)"):
        arrays.array_module(np.zeros(2), fake_gpu.zeros(2))
    with pytest.raises(TypeError, match="at least one array"):
        arrays.array_module()


@pytest.mark.parametrize("wrong", [[1.0, 2.0], 3.0, None, np.float32(1)])
def test_array_module_refuses_what_is_no_array(wrong):
    with pytest.raises(TypeError, match=r"expected a NumPy or CuPy array.*np.asarray"):
        arrays.array_module(np.zeros(2), wrong)


def test_status_without_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)  # cannot be imported
    arrays.gpu_status.cache_clear()
    try:
        status = arrays.gpu_status()
        assert status == (False, "CuPy is not installed (pip install -e '.[cuda13]').", "", {})
        assert not arrays.gpu_available()
        with pytest.raises(RuntimeError, match=r"needs a GPU\. CuPy is not installed"):
            arrays.to_gpu(np.zeros(2))
        arrays.synchronize()  # nothing to wait for, and no error
        with arrays.tf32():
            assert not arrays.tf32_allowed()
    finally:
        arrays.gpu_status.cache_clear()


@pytest.mark.parametrize(
    ("driver", "has_device", "reason"),
    [
        (13020, False, "the NVIDIA driver (CUDA 13.2) shows no GPU: see nvidia-smi"),
        (0, False, "CuPy finds no NVIDIA driver: install one"),
        (
            *(12040, True),
            "the NVIDIA driver knows CUDA 12.4 and this CuPy is made for CUDA 13.1: update the "
            "driver, or pip uninstall cupy-cuda13x and pip install -e '.[cuda12]'.",
        ),
        (13000, True, ""),
    ],
)
def test_status_says_what_is_wrong_with_the_driver(
    fake_gpu, monkeypatch, driver, has_device, reason
):
    monkeypatch.setattr(fake_gpu.cuda.runtime, "driverGetVersion", lambda: driver)
    monkeypatch.setattr(fake_gpu.cuda, "is_available", lambda: has_device)
    status = arrays.gpu_status()
    assert status.available == (not reason) and bool(status.name) == status.available
    assert status.reason.startswith(reason)
    arrays.synchronize()
    assert fake_gpu.counts["synchronize"] == status.available


def test_status_with_a_failing_kernel_or_a_wrong_answer(fake_gpu, monkeypatch):
    def no_nvrtc(*_):
        raise RuntimeError("libnvrtc.so.13 cannot be opened\nsecond line")

    monkeypatch.setattr(fake_gpu, "arange", no_nvrtc)
    reason = "CuPy's test kernel failed (RuntimeError: libnvrtc.so.13 cannot be opened); install"
    assert arrays.gpu_status().reason.startswith(reason) and not arrays.gpu_available()
    assert "cuda13" in arrays.gpu_status().reason
    arrays.gpu_status.cache_clear()
    monkeypatch.setattr(fake_gpu, "arange", lambda count: fake_gpu.zeros(count))
    assert not arrays.gpu_available()
    assert "answered [1.0, 1.0, 1.0]" in arrays.gpu_status().reason


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, bool])
def test_there_and_back(fake_gpu, dtype):
    array = np.arange(6).reshape(2, 3).astype(dtype)
    there = arrays.to_gpu(array)
    assert type(there) is fake_gpu.ndarray and there.dtype == dtype and there.shape == (2, 3)
    array[0, 0] = 1  # a copy: what happens here does not reach it
    back = arrays.to_cpu(there)
    assert back.dtype == dtype and back[0, 0] == 0
    assert arrays.to_gpu(there) is there and arrays.to_cpu(array) is array
    with pytest.raises(TypeError, match=r"expected a NumPy or CuPy array"):
        arrays.to_cpu([1, 2])


def test_importing_the_package_changes_nothing_in_the_process():
    code = """
import ctypes, sys
calls = []
sys.addaudithook(lambda event, given: calls.append(given) if event == "ctypes.dlsym" else None)
import fastdl_lib.nn.training, fastdl_lib.scaling.workers, fastdl_lib.measuring.speeds
from fastdl_lib.core.arrays import freed_memory_kept, keep_freed_memory
assert not any("mallopt" in map(str, given) for given in calls), calls
before = freed_memory_kept()
with keep_freed_memory():
    inside = freed_memory_kept()
assert sys.platform != "linux" or any("mallopt" in map(str, given) for given in calls)
print(before, inside, freed_memory_kept())
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert told.stdout.split() == ["False", str(sys.platform == "linux"), "False"], told.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is GNU's")
def test_memory_is_kept_until_the_last_block_ends(monkeypatch):
    calls = []
    monkeypatch.setattr(arrays, "_mallopt", lambda: lambda *options: calls.append(options))
    with arrays.keep_freed_memory():
        assert calls[-1] == (-1, 2**29)
        count = len(calls)
        with pytest.raises(ZeroDivisionError), arrays.keep_freed_memory():
            raise ZeroDivisionError
        assert len(calls) == count and arrays.freed_memory_kept()
    assert calls[-1] == (-1, 2**26) and not arrays.freed_memory_kept()


def test_a_measurement_says_that_freed_memory_is_kept():
    kept = {"freed_memory": "kept"} if sys.platform == "linux" else {}
    network = deep_convnet()
    measured = forward_ms(network, batch(network)[0], budget_s=1e-3)
    assert kept.items() <= measured.conditions.items()
    assert "freed_memory" not in benchmark(sum, [1], budget_s=1e-3).conditions


def test_saving_from_and_loading_to_the_gpu(fake_gpu, tmp_path):
    network = small_alexnet().to_gpu()
    network.save_weights(tmp_path / "weights.npz")
    other = small_alexnet(seed=5).to_gpu().load_weights(tmp_path / "weights.npz")
    for name, array in other.parameters.items():
        assert type(array) is fake_gpu.ndarray, f"{name} left the GPU"
        assert (array == network.parameters[name]).get().all()
