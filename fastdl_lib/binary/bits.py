"""Values of +1 and -1 as bits, 64 to a word, and products of such rows by XOR and popcount.

A bit is 1 for +1 and 0 for -1. Two values multiply to +1 where their bits agree: of ``length``
places, those that differ count -1 and the others +1, so

    dot product = length - 2 * popcount(a XOR b)

(XNOR counts the places that agree; counting those that differ saves the NOT.) Rows are filled up
with zeros to whole words; there both bits agree, nothing is counted, and the result stays.

Source: Courbariaux et al., "Binarized neural networks", 2016, section 3; Rastegari et al.,
"XNOR-Net", ECCV 2016, section 3.2.

:func:`xnor_product` multiplies so. :func:`two_rows_product` needs no bits at all: it is what a
float32 product alone can do with +1 and -1.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from fastdl_lib.core.arrays import array_module, check_on_cpu, gpu_kernel
from fastdl_lib.core.checks import check_choice, check_whole_number
from fastdl_lib.core.threads import blocks, in_parallel
from fastdl_lib.kernels.compiled import can_compile

Array = Any  # numpy.ndarray or cupy.ndarray

WORD = 64
"""Bits of a word."""


def pack(x: Array) -> Array:
    """Pack the signs along the last axis into words: bit i of word j is place 64 j + i.

    ``x`` is (..., length), any dtype; 0 or more is +1, bit 1; below is -1, bit 0. The result is
    (..., words), uint64, with words = ceil(length / 64), filled up with zeros.

    Raises ValueError: no axis, a last one of size 0, or NaN or infinity, which no bit can say.

    >>> pack(np.array([[1, -1, 1, 1]])).tolist()  # read from the right: 1101
    [[13]]
    """
    xp = array_module(x)
    if x.ndim < 1 or x.shape[-1] < 1:
        raise ValueError(f"pack() takes (..., length) with length from 1 up, got {x.shape}.")
    if x.dtype.kind not in "biu" and not xp.isfinite(x).all():
        raise ValueError("pack() takes finite numbers, and x holds NaN or infinity.")
    bits = xp.ascontiguousarray(x >= 0)
    more = -x.shape[-1] % WORD
    if more:
        padded = xp.zeros((*x.shape[:-1], x.shape[-1] + more), bool)
        padded[..., : x.shape[-1]] = bits
        bits = padded
    # Rows are whole words now: packed in one go, as CuPy can.
    packed = xp.packbits(bits.reshape(-1), bitorder="little")
    return packed.view(np.uint64).reshape(*x.shape[:-1], -1)


def unpack(words: Array, length: int) -> Array:
    """Turn words, (..., words), uint64, back to +1 and -1, (..., length), float32.

    Raises TypeError, ValueError: words of another dtype; a length that is not whole, or not of so
    many words.

    >>> unpack(np.array([[13]], np.uint64), 4).tolist()
    [[1.0, -1.0, 1.0, 1.0]]
    """
    xp = array_module(words)
    length = _check_words(words, length)
    flat = xp.ascontiguousarray(words).reshape(-1).view(np.uint8)
    bits = xp.unpackbits(flat, bitorder="little").reshape(*words.shape[:-1], -1)
    out = bits[..., :length].astype(np.float32)
    out *= 2
    out -= 1
    return out


def _check_words(words: Array, length: int) -> int:
    if words.dtype != np.uint64:
        raise TypeError(f"words must be uint64, as pack() makes them; got {words.dtype}.")
    length = check_whole_number("length", length, 1)
    if words.ndim < 1 or words.shape[-1] != -(-length // WORD):
        raise ValueError(
            f"length={length} takes {-(-length // WORD)} words a row, got the shape {words.shape}."
        )
    return length


# --- plain NumPy --------------------------------------------------------------------------------

# Rows of a and of b at a time. A call of NumPy costs about half a microsecond for each row of its
# arrays, so the rows must be long; and what is counted must stay in the cache.
_A_ROWS, _B_ROWS = 32, 4096
# So many words of 64 ones fit a byte.
_WORDS_A_BYTE = 255 // WORD


def _numpy_product(a_words: np.ndarray, b_words: np.ndarray, length: int) -> np.ndarray:
    """XOR and ``bitwise_count``, word by word, outermost, so that NumPy runs along many rows of b
    at once; blocks stay in the cache and are shared out among threads."""
    out = np.empty((len(a_words), len(b_words)), np.int32)
    columns = np.ascontiguousarray(b_words.T)
    count_dtype = np.uint16 if length < 2**16 else np.uint32

    def work(part: slice) -> None:
        for here in blocks(slice(0, len(b_words)), _B_ROWS):
            shape = (part.stop - part.start, here.stop - here.start)
            differing, counts = np.empty(shape, np.uint64), np.empty(shape, np.uint8)
            bytes_sum, total = np.empty(shape, np.uint8), np.zeros(shape, count_dtype)
            for k, column in enumerate(columns):
                np.bitwise_xor(a_words[part, k, None], column[here], out=differing)
                if k % _WORDS_A_BYTE == 0:
                    np.bitwise_count(differing, out=bytes_sum)
                else:
                    np.bitwise_count(differing, out=counts)
                    bytes_sum += counts
                if k % _WORDS_A_BYTE == _WORDS_A_BYTE - 1 or k == len(columns) - 1:
                    total += bytes_sum
            np.multiply(total, -2, out=out[part, here], dtype=np.int32, casting="unsafe")
            out[part, here] += length

    in_parallel(work, len(a_words), block=_A_ROWS)
    return out


_SHIFT = 12  # bits of a count
_LONGEST = 2 * 2**_SHIFT - 1


def two_rows_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Multiply rows of +1 and -1 with a float32 product that does two rows of a at once. CPU only.

    With bits 0 and 1, a count is at most the number of ones in a's row; a row with more ones than
    zeros is turned around first, so that a count is length / 2 at most. Two counts below 4096 fit
    the 24 bits in which float32 is exact: row i + 4096 * row j times b gives both, and integers
    take them apart.

    ``a`` and ``b`` are (M, length) and (N, length), float32, +1 and -1 only (else TypeError,
    ValueError), length up to 8191; the result is (M, N), int32: ``a @ b.T``, exact.

    >>> a = np.array([[1, -1, 1]], np.float32)
    >>> two_rows_product(a, np.array([[1, 1, 1], [-1, 1, -1]], np.float32)).tolist()
    [[1, -3]]
    """
    _check_rows_of_signs(a, b)
    rows, length = a.shape
    a_ones = np.count_nonzero(a > 0, axis=1)
    turned = a_ones > length // 2
    a_ones = np.where(turned, length - a_ones, a_ones)
    sides = np.where(turned, np.float32(-1), np.float32(1))
    half = -(-rows // 2)
    # Bits of the first half of the rows, plus 4096 times those of the second.
    pairs = (a[:half] * sides[:half, None] > 0).astype(np.float32)
    pairs[: rows - half] += np.float32(2**_SHIFT) * (a[half:] * sides[half:, None] > 0)
    b_bits = (b > 0).astype(np.float32)
    counts = pairs @ b_bits.T
    b_ones = np.count_nonzero(b > 0, axis=1)
    out = np.empty((rows, len(b)), np.int32)

    def work(part: slice) -> None:
        both = counts[part].astype(np.int32)
        for first, count in ((0, both & (2**_SHIFT - 1)), (half, both >> _SHIFT)):
            here = slice(first + part.start, min(first + part.stop, rows))
            count = count[: here.stop - here.start]
            # Of bits x and y the values are 2x - 1 and 2y - 1.
            count *= 4
            count -= 2 * b_ones.astype(np.int32)
            count += (length - 2 * a_ones[here, None]).astype(np.int32)
            np.multiply(count, sides[here, None], out=out[here], casting="unsafe", dtype=np.int32)

    in_parallel(work, half, block=max(1, 2**15 // len(b)))
    return out


def _check_rows_of_signs(a: np.ndarray, b: np.ndarray) -> None:
    array_module(a, b)
    check_on_cpu("two_rows_product", a)
    if a.dtype != np.float32 or b.dtype != np.float32:
        raise TypeError(f"two_rows_product takes float32, got {a.dtype} and {b.dtype}.")
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or 0 in a.shape or 0 in b.shape:
        raise ValueError(
            "two_rows_product takes (M, length) and (N, length), no size 0; "
            f"got {a.shape} and {b.shape}."
        )
    if not all((abs(one) == 1).all() for one in (a, b)):
        raise ValueError("two_rows_product takes +1 and -1 only; use sign(x).")
    if a.shape[1] > _LONGEST:
        raise ValueError(
            f"two counts fit a float32 for a length of {_LONGEST} at most, got {a.shape[1]}: cut "
            "the rows into parts and add up."
        )


# --- Numba --------------------------------------------------------------------------------------

# Rows of b at a time: their counts and words stay in the cache.
_TILE = 512


@functools.cache
def _compiled_loops() -> Callable[..., None]:
    """The loops, to be compiled at their first call. Importing Numba takes a while."""
    import numba
    from numba.extending import intrinsic

    @intrinsic
    def popcount(typing_context, word):
        def code(context, builder, signature, arguments):
            return builder.ctpop(arguments[0])

        return numba.types.uint64(numba.types.uint64), code

    @numba.njit(inline="always")
    def ones(p, q, r, s):
        return popcount(p) + popcount(q) + popcount(r) + popcount(s)

    # Four rows of a and four words at a time: of a word of b that was fetched once, four bits of
    # work are made, and sixteen words of a stay in registers. Along j the machine takes eight words
    # at once, with AVX-512.
    @numba.njit(nogil=True)
    def product(a, b_columns, length, start, stop, out):
        words, columns = b_columns.shape
        counts = np.empty((4, _TILE), np.uint64)
        n0, n1, n2, n3 = counts[0], counts[1], counts[2], counts[3]
        for first in range(0, columns, _TILE):
            width = min(_TILE, columns - first)
            for i in range(start, stop, 4):
                counts[:] = 0
                r0, r1 = a[i], a[min(i + 1, stop - 1)]
                r2, r3 = a[min(i + 2, stop - 1)], a[min(i + 3, stop - 1)]
                for k in range(0, words, 4):
                    a00, a01, a02, a03 = r0[k], r0[k + 1], r0[k + 2], r0[k + 3]
                    a10, a11, a12, a13 = r1[k], r1[k + 1], r1[k + 2], r1[k + 3]
                    a20, a21, a22, a23 = r2[k], r2[k + 1], r2[k + 2], r2[k + 3]
                    a30, a31, a32, a33 = r3[k], r3[k + 1], r3[k + 2], r3[k + 3]
                    b0 = b_columns[k, first : first + width]
                    b1 = b_columns[k + 1, first : first + width]
                    b2 = b_columns[k + 2, first : first + width]
                    b3 = b_columns[k + 3, first : first + width]
                    for j in range(width):
                        w0, w1, w2, w3 = b0[j], b1[j], b2[j], b3[j]
                        n0[j] += ones(a00 ^ w0, a01 ^ w1, a02 ^ w2, a03 ^ w3)
                        n1[j] += ones(a10 ^ w0, a11 ^ w1, a12 ^ w2, a13 ^ w3)
                        n2[j] += ones(a20 ^ w0, a21 ^ w1, a22 ^ w2, a23 ^ w3)
                        n3[j] += ones(a30 ^ w0, a31 ^ w1, a32 ^ w2, a33 ^ w3)
                for row in range(min(4, stop - i)):
                    results, found = out[i + row, first : first + width], counts[row]
                    for j in range(width):  # all in 32 bits, as many at once as there are
                        results[j] = np.int32(length) - np.int32(2) * np.int32(found[j])

    return product


def _compiled(a_words: np.ndarray, b_words: np.ndarray, length: int) -> np.ndarray:
    """By Numba, to popcount instructions; blocks of rows are shared out among threads."""
    if not can_compile():
        return _numpy_product(a_words, b_words, length)
    out = np.empty((len(a_words), len(b_words)), np.int32)
    more = -a_words.shape[1] % 4
    if more:  # four words are taken at a time; zeros in both agree
        a_words, b_words = (np.pad(one, ((0, 0), (0, more))) for one in (a_words, b_words))
    a, columns = np.ascontiguousarray(a_words), np.ascontiguousarray(b_words.T)
    product = _compiled_loops()

    def work(part: slice) -> None:
        product(a, columns, length, part.start, part.stop, out)

    in_parallel(work, len(a), least=4)
    return out


# --- CuPy ---------------------------------------------------------------------------------------

# One thread an entry. Threads side by side read words side by side of b's columns and the same
# word of a, so the popcounts are the limit, not the memory.
PRODUCT_KERNEL = """
    unsigned int row = (unsigned int) i / columns, column = (unsigned int) i % columns;
    int differing = 0;
    for (int k = 0; k < words; ++k) {
        differing += __popcll(a[(size_t) row * words + k] ^ b[(size_t) k * columns + column]);
    }
    y = length - 2 * differing;
"""
PRODUCT_INPUTS = "raw uint64 a, raw uint64 b, int32 columns, int32 words, int32 length"


def _gpu_product(a_words: Array, b_words: Array, length: int) -> Array:
    """By a CUDA kernel of our own."""
    xp, shape = array_module(a_words, b_words), (len(a_words), len(b_words))
    if shape[0] * shape[1] >= 2**31:
        raise ValueError(f"the kernel counts to 2**31 results, got {shape}: multiply part by part.")
    out = xp.empty(shape, np.int32)
    a, columns = xp.ascontiguousarray(a_words), xp.ascontiguousarray(b_words.T)
    kernel = gpu_kernel("fastdl_xnor_product", PRODUCT_INPUTS, "int32 y", PRODUCT_KERNEL)
    return kernel(a, columns, shape[1], a.shape[1], length, out)


XNOR_PRODUCTS = {"numpy": _numpy_product, "compiled": _compiled, "gpu": _gpu_product}
"""Every way to multiply packed rows; the last one runs on the GPU only, the others on the CPU."""


def xnor_product(a_words: Array, b_words: Array, length: int, *, algorithm: str = "auto") -> Array:
    """Multiply every row of a with every row of b, exactly for every length.

    Args:
        a_words, b_words: (M, words) and (N, words), uint64, as :func:`pack` makes them.
        length: places of a row that count.
        algorithm: a key of :data:`XNOR_PRODUCTS`; "auto": compiled by Numba on the CPU, which takes
            about a second at the first call (as "numpy" under NUMBA_DISABLE_JIT=1), a kernel on the
            GPU.

    Returns:
        (M, N), int32, beside the words: the sums of products of +1 and -1, from -length to length.

    Raises TypeError, ValueError: words of another dtype, or on another device; shapes that do not
    fit each other or the length; another algorithm.

    >>> a, b = pack(np.array([[1, -1, 1]])), pack(np.array([[1, 1, 1], [-1, 1, -1]]))
    >>> xnor_product(a, b, 3).tolist()
    [[1, -3]]
    """
    xp = array_module(a_words, b_words)
    check_choice("algorithm", algorithm, ["auto", *XNOR_PRODUCTS])
    for words in (a_words, b_words):
        length = _check_words(words, length)
        if words.ndim != 2 or len(words) < 1:
            raise ValueError(
                f"a product takes rows of words, (M, words), M >= 1; got {words.shape}."
            )
    if algorithm == "auto":
        algorithm = "compiled" if xp is np else "gpu"
    if (algorithm == "gpu") == (xp is np):
        there, move = ("GPU", "to_gpu()") if xp is np else ("CPU", "to_cpu()")
        raise TypeError(f"{algorithm} runs on the {there} only: move the words there by {move}.")
    return XNOR_PRODUCTS[algorithm](a_words, b_words, length)
