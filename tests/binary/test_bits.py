"""Packing, and products of packed rows: equal to the whole-number product for every shape."""

import itertools
import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from helpers import SEEDS
from hypothesis import given
from hypothesis import strategies as st

from fastdl_lib.binary.bits import pack, panels_of, rows_of, two_rows_product, unpack, xnor_product
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
def test_unpack_and_rows_of_are_the_way_back(length, outer, seed):
    x = signs(np.random.default_rng(seed), *outer, length)
    back = unpack(pack(x), length)
    assert back.dtype == np.float32 and (back == x).all()
    rows = pack(x).repeat(33, axis=0) if outer else pack(x)[None]
    rows = rows.reshape(-1, rows.shape[-1])
    assert (rows_of(panels_of(rows), rows.shape[1]) == rows).all()


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
    again = np.empty_like(out)
    laid_out = panels_of(pack(b))
    assert xnor_product(pack(a), laid_out, length, algorithm=algorithm, out=again) is again
    assert (again == out).all()


@on_the_cpu
@pytest.mark.parametrize("shape", [(67, 1030, 130), (3, 4200, 65), (130, 5, 20_000)])
def test_large_products_are_cut_into_blocks(algorithm, shape):
    a, b = random_rows(*shape)
    for threads in (1, 2):
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


WORDS, OUT = np.zeros((2, 2), np.uint64), np.empty((2, 2), np.int32)
FIT = WORDS, WORDS, 65


@pytest.mark.parametrize(("given", "options", "error", "message"), [
    ((WORDS, WORDS, 64), {}, ValueError, r"length=64 takes 1 words a row, got the shape \(2, 2\)"),
    ((WORDS, WORDS[:, :1], 65), {}, ValueError, "length=65 takes 2 words a row, got the shape"),
    ((WORDS, WORDS.reshape(-1)[:3], 65), {}, ValueError, r"2 words a row, got the shape \(3,\)"),
    ((WORDS.astype(np.int64), WORDS, 65), {}, TypeError, "words must be uint64, as pack"),
    ((WORDS[None], WORDS, 65), {}, ValueError, "a product takes rows"),
    ((WORDS, WORDS[:0], 65), {}, ValueError, "a product takes rows"),
    ((WORDS, WORDS, 65.0), {}, TypeError, "length must be a whole number"),
    (FIT, {"algorithm": "bits"}, ValueError, "algorithm must be one of 'auto', 'numpy', 'comp"),
    (FIT, {"algorithm": "gpu"}, TypeError, r"gpu runs on the GPU only: move the words there by"),
    *((FIT, {"out": out}, ValueError, r"out must be int32, \(2, 2\) without gaps; got")
      for out in (OUT[:1], OUT.T, OUT.astype(np.int64))),
])  # fmt: skip
def test_words_that_do_not_fit_are_refused(given, options, error, message):
    with pytest.raises(error, match=message):
        xnor_product(*given, **options)


# --- the GPU ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1, 1), (20, 33, 784)])
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
    with pretend_gpu():
        for algorithm in ("numpy", "compiled"):
            with pytest.raises(TypeError, match=f"{algorithm} runs on the CPU only"):
                xnor_product(to_gpu(WORDS), to_gpu(WORDS), 65, algorithm=algorithm)
        with pytest.raises(TypeError, match="1 of 2 arrays are on the GPU"):
            xnor_product(to_gpu(WORDS), to_gpu(WORDS), 65, out=OUT)
