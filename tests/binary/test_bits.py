"""Packing, and products of packed rows: equal to the whole-number product for every shape."""

import ctypes.util
import itertools
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from helpers import SEEDS
from hypothesis import given
from hypothesis import strategies as st

from fastdl_lib.binary import bits
from fastdl_lib.binary.bits import pack, two_rows_product, unpack, xnor_product
from fastdl_lib.core.arrays import gpu_available, gpu_status, to_cpu, to_gpu
from fastdl_lib.core.pretend_gpu import pretend_gpu
from fastdl_lib.core.threads import blas_threads

LENGTHS = st.integers(1, 300) | st.sampled_from([64, 128, 192, 256, 784, 1024, 2048])
on_the_cpu = pytest.mark.parametrize("algorithm", ["numpy", "compiled"])


def signs(rng, *shape):
    return rng.choice(np.array([-1, 1], np.float32), shape)


def random_rows(m, n, length):
    rng = np.random.default_rng(0)
    return signs(rng, m, length), signs(rng, n, length)


def whole_product(a, b):
    return a.astype(np.int64) @ b.astype(np.int64).T


# --- packing ------------------------------------------------------------------------------------


@given(length=LENGTHS, rows=st.integers(1, 4), seed=SEEDS)
def test_bits_stand_where_they_are_said_to_stand(length, rows, seed):
    x = signs(np.random.default_rng(seed), rows, length)
    words = pack(x)
    assert words.dtype == np.uint64 and words.shape == (rows, -(-length // 64))
    for row, place in itertools.product(range(rows), range(64 * words.shape[1])):
        bit = int(words[row, place // 64]) >> (place % 64) & 1
        assert bit == (place < length and x[row, place] > 0), (row, place)


@given(length=LENGTHS, outer=st.lists(st.integers(1, 3), max_size=2), seed=SEEDS)
def test_unpack_is_the_way_back(length, outer, seed):
    x = signs(np.random.default_rng(seed), *outer, length)
    back = unpack(pack(x), length)
    assert back.dtype == np.float32 and (back == x).all()


@pytest.mark.parametrize("dtype", [np.int8, np.float16, np.float64])
def test_zero_is_packed_as_plus_one_whatever_the_dtype(dtype):
    assert pack(np.array([[-1, 0, 1]], dtype)).tolist() == [[0b110]]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_no_bit_says_that_a_number_was_lost(dtype, value):
    x = np.ones((3, 70), dtype)
    x[1, 68] = value
    with pytest.raises(ValueError, match="x holds NaN or infinity"):
        pack(x)
    with pretend_gpu(), pytest.raises(ValueError, match="x holds NaN or infinity"):
        pack(to_gpu(np.full((1, 2), value, np.float32)))
    with pytest.raises(ValueError, match=r"takes \+1 and -1 only"):
        two_rows_product(np.ones((1, 70), np.float32), x.astype(np.float32))


def test_pack_takes_views():
    x = signs(np.random.default_rng(0), 70, 9)
    assert (pack(x.T) == pack(x.T.copy())).all()
    assert (unpack(pack(x)[::2], 9) == x[::2]).all()


# --- products -----------------------------------------------------------------------------------


@on_the_cpu
@given(m=st.integers(1, 40), n=st.integers(1, 40), length=LENGTHS, seed=SEEDS)
def test_a_product_of_bits_is_that_of_whole_numbers(algorithm, m, n, length, seed):
    rng = np.random.default_rng(seed)
    a, b = signs(rng, m, length), signs(rng, n, length)
    out = xnor_product(pack(a), pack(b), length, algorithm=algorithm)
    assert out.dtype == np.int32 and (out == whole_product(a, b)).all()


@on_the_cpu
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(67, 1030, 130), (3, 4200, 65), (130, 5, 20_000)])
def test_large_products_are_cut_into_blocks(algorithm, threads, shape):
    a, b = random_rows(*shape)
    with blas_threads(threads):
        out = xnor_product(pack(a), pack(b), shape[2], algorithm=algorithm)
    assert (out == (a @ b.T)).all()  # float32 is exact here


def test_where_nothing_is_compiled():
    code = """if True:
        import numpy as np
        from fastdl_lib.binary.bits import pack, xnor_product
        a = np.where(np.random.default_rng(0).random((5, 130)) < 0.5, 1, -1)
        for algorithm in ("auto", "compiled"):
            assert (xnor_product(pack(a), pack(a), 130, algorithm=algorithm) == a @ a.T).all()
        """
    subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "NUMBA_DISABLE_JIT": "1"}, check=True
    )


@on_the_cpu
@pytest.mark.parametrize("length", [1, 64, 255, 4096, 70_000])
def test_extreme_sums(algorithm, length):
    both = pack(np.stack([np.ones(length), -np.ones(length)]))
    out = xnor_product(both, both, length, algorithm=algorithm)
    assert out.tolist() == [[length, -length], [-length, length]]


@given(
    m=st.integers(1, 30), n=st.integers(1, 30), length=LENGTHS, share=st.floats(0, 1), seed=SEEDS
)
def test_two_rows_in_one_float32_product(m, n, length, share, seed):
    rng = np.random.default_rng(seed)
    a = np.where(rng.random((m, length)) < share, -1, 1).astype(np.float32)
    b = signs(rng, n, length)
    out = two_rows_product(a, b)
    assert out.dtype == np.int32 and (out == whole_product(a, b)).all()


@pytest.mark.parametrize("length", [4095, 4096, 8191])
def test_two_rows_at_the_largest_counts_a_float32_holds(length):
    half = np.ones(length, np.float32)
    half[length // 2 :] = -1  # the most ones that are not turned around
    a = np.stack([half, -half, np.ones(length, np.float32), -np.ones(length, np.float32)])
    a[0, -1], a[1, 0] = -a[0, -1], -a[1, 0]
    for row_order in itertools.permutations(range(4)):
        rows = a[list(row_order)]
        assert (two_rows_product(rows, a) == whole_product(rows, a)).all()


def test_two_rows_refuses_what_is_not_exact():
    x = np.ones((2, 8192), np.float32)
    with pytest.raises(ValueError, match=r"length of 8191 at most, got 8192: cut the rows"):
        two_rows_product(x, x)
    with pytest.raises(TypeError, match="takes float32, got float64"):
        two_rows_product(x[:, :5].astype(float), x[:, :5])
    with pytest.raises(ValueError, match=r"no size 0; got \(2, 5\) and \(2, 4\)"):
        two_rows_product(x[:, :5], x[:, :4])


def test_words_that_do_not_fit_are_refused():
    words = np.zeros((2, 2), np.uint64)
    for arguments, error, message in (
        ((words, words, 64), ValueError, r"length=64 takes 1 words a row, got the shape \(2, 2\)"),
        ((words, words[:, :1], 65), ValueError, r"length=65 takes 2 words a row, got the shape"),
        ((words.astype(np.int64), words, 65), TypeError, "words must be uint64, as pack"),
        ((words[None], words, 65), ValueError, "a product takes rows"),
        ((words, words, 65.0), TypeError, "length must be a whole number"),
    ):
        with pytest.raises(error, match=message):
            xnor_product(*arguments)
    with pytest.raises(ValueError, match="algorithm must be one of 'auto', 'numpy', 'compiled'"):
        xnor_product(words, words, 65, algorithm="bits")


# --- the GPU ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 65), (20, 33, 784)])
def test_the_kernel_on_the_pretend_gpu(shape):
    a, b = random_rows(*shape)
    with pretend_gpu():
        there = [to_gpu(array) for array in (a, b)]
        out = to_cpu(xnor_product(*map(pack, there), shape[2]))
        back = to_cpu(unpack(pack(there[0]), shape[2]))
    assert out.dtype == np.int32 and (out == whole_product(a, b)).all() and (back == a).all()


@pytest.mark.gpu
@pytest.mark.skipif(not gpu_available(), reason=gpu_status().reason)
@pytest.mark.parametrize("shape", [(1, 1, 1), (100, 4096, 4096), (33, 65, 130)])
def test_the_kernel_on_a_gpu(shape):
    a, b = random_rows(*shape)
    out = to_cpu(xnor_product(pack(to_gpu(a)), pack(to_gpu(b)), shape[2]))
    assert (out == a @ b.T).all()


def test_each_algorithm_needs_words_on_its_device():
    words = np.zeros((2, 2), np.uint64)
    with pytest.raises(TypeError, match=r"gpu runs on the GPU only: move the words there by to_g"):
        xnor_product(words, words, 65, algorithm="gpu")
    with pretend_gpu():
        for algorithm in ("numpy", "compiled"):
            with pytest.raises(TypeError, match=f"{algorithm} runs on the CPU only"):
                xnor_product(to_gpu(words), to_gpu(words), 65, algorithm=algorithm)


def nvrtc():
    """NVIDIA's run-time compiler, which needs no GPU, or a skip where it is not installed."""
    places = [ctypes.util.find_library("nvrtc")]
    for root in map(Path, sys.path):
        places += sorted(map(str, root.glob("nvidia/*/lib/libnvrtc.so*")))
    for place in filter(None, places):
        try:
            return ctypes.CDLL(place)
        except OSError:
            continue
    pytest.skip("NVRTC is not installed: pip install nvidia-cuda-nvrtc")


def test_nvrtc_compiles_the_kernel_without_a_gpu():
    """The text as CuPy puts it into a kernel, down to PTX."""
    library = nvrtc()
    names = [one.split() for one in bits.PRODUCT_INPUTS.split(",")]
    kinds = {"uint64": "const unsigned long long *", "int32": "int ", "uint32": "unsigned int "}
    inputs = ", ".join(kinds[kind] + name for *_, kind, name in names)
    text = f"""
        extern "C" __global__ void product({inputs}, int *out, long long size) {{
            long long i = (long long) blockIdx.x * blockDim.x + threadIdx.x;
            if (i >= size) return;
            int &y = out[i];
            {bits.PRODUCT_KERNEL}
        }}"""
    program = ctypes.c_void_p()
    none = ctypes.c_void_p()
    made = library.nvrtcCreateProgram(
        ctypes.byref(program), text.encode(), b"product.cu", 0, none, none
    )
    assert made == 0
    failed = library.nvrtcCompileProgram(program, 0, none)
    size = ctypes.c_size_t()
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    assert not failed, log.value.decode()
    library.nvrtcGetPTXSize(program, ctypes.byref(size))
    ptx = ctypes.create_string_buffer(size.value)
    library.nvrtcGetPTX(program, ptx)
    assert b"popc.b64" in ptx.value
