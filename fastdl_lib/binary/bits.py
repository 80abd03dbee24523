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

from typing import Any

import numpy as np

from fastdl_lib.core.arrays import array_module, check_on_cpu, gpu_kernel
from fastdl_lib.core.checks import check_choice, check_whole_number
from fastdl_lib.core.threads import blocks, in_parallel

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
    return pack_bits(x >= 0)


def pack_bits(bits: Array) -> Array:
    """Pack True and False, (..., length), as :func:`pack` packs +1 and -1."""
    xp, more = array_module(bits), -bits.shape[-1] % WORD
    if more:
        padded = xp.zeros((*bits.shape[:-1], bits.shape[-1] + more), bool)
        padded[..., : bits.shape[-1]] = bits
        bits = padded
    # Rows are whole words now: packed in one go, as CuPy can.
    packed = xp.packbits(xp.ascontiguousarray(bits).reshape(-1), bitorder="little")
    return packed.view(np.uint64).reshape(*bits.shape[:-1], -1)


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


PANEL = 32
"""Rows of a panel; the last one of a matrix has what is left."""


def panels_of(rows: Array) -> Array:
    """Lay rows of words, (N, words), out as products read them: in panels of 32 rows, in each of
    them all first words side by side, then all second ones. The result is (N * words,), flat.

    >>> panels_of(np.array([[1, 2], [3, 4], [5, 6]], np.uint64)).tolist()
    [1, 3, 5, 2, 4, 6]
    """
    whole, words = len(rows) // PANEL * PANEL, rows.shape[1]
    front = rows[:whole].reshape(-1, PANEL, words).transpose(0, 2, 1)
    return array_module(rows).concatenate([front.reshape(-1), rows[whole:].T.reshape(-1)])


def rows_of(panels: Array, words: int) -> Array:
    """The rows (N, words) that :func:`panels_of` laid out.

    >>> rows_of(np.array([1, 3, 5, 2, 4, 6], np.uint64), 2).tolist()
    [[1, 2], [3, 4], [5, 6]]
    """
    whole = panels.size // (PANEL * words) * PANEL * words
    front = panels[:whole].reshape(-1, words, PANEL).transpose(0, 2, 1).reshape(-1, words)
    return array_module(panels).concatenate([front, panels[whole:].reshape(words, -1).T])


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


def _numpy_product(a_words: np.ndarray, panels: np.ndarray, length: int, out: np.ndarray) -> None:
    """XOR and ``bitwise_count``, word by word, outermost, so that NumPy runs along many rows of b
    at once; blocks stay in the cache and are shared out among threads."""
    columns = np.ascontiguousarray(rows_of(panels, a_words.shape[1]).T)
    count_dtype = np.uint16 if length < 2**16 else np.uint32

    def work(part: slice) -> None:
        for here in blocks(slice(0, columns.shape[1]), _B_ROWS):
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
    sides = np.where(a_ones > length // 2, np.float32(-1), np.float32(1))
    a_ones = np.where(sides < 0, length - a_ones, a_ones)
    half = -(-rows // 2)
    # Bits of the first half of the rows, plus 4096 times those of the second.
    a_bits = (a * sides[:, None] > 0).astype(np.float32)
    pairs = a_bits[:half]
    pairs[: rows - half] += 2**_SHIFT * a_bits[half:]
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
    check_on_cpu("two_rows_product", a)
    array_module(a, b)
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


# --- compiled, and CuPy -------------------------------------------------------------------------


def _compiled(a_words: np.ndarray, panels: np.ndarray, length: int, out: np.ndarray) -> None:
    """Tiles that stay in registers (:mod:`fastdl_lib.kernels.bits`), where they can be compiled."""
    from fastdl_lib.kernels import bits, vectors  # Numba takes a while to import

    if vectors.lanes():
        bits.product(a_words, panels, PANEL, length, out)
    else:
        _numpy_product(a_words, panels, length, out)


# One thread an entry. Threads side by side read words side by side of a panel and the same word of
# a, so the popcounts are the limit, not the memory.
PRODUCT_KERNEL = f"""
    unsigned int row = (unsigned int) i / columns, column = (unsigned int) i % columns;
    unsigned int first = column / {PANEL} * {PANEL}, width = min(columns - first, {PANEL}u);
    int differing = 0;
    for (int k = 0; k < words; ++k) {{
        size_t place = (size_t) first * words + k * width + column - first;
        differing += __popcll(a[(size_t) row * words + k] ^ panels[place]);
    }}
    y = length - 2 * differing;
"""
PRODUCT_INPUTS = "raw uint64 a, raw uint64 panels, uint32 columns, int32 words, int32 length"


def _gpu_product(a_words: Array, panels: Array, length: int, out: Array) -> None:
    """By a CUDA kernel of our own."""
    if out.size >= 2**31:
        raise ValueError(
            f"the kernel counts to 2**31 results, got {out.shape}: multiply part by part."
        )
    kernel = gpu_kernel("fastdl_xnor_product", PRODUCT_INPUTS, "int32 y", PRODUCT_KERNEL)
    kernel(a_words, panels, out.shape[1], a_words.shape[1], length, out)


XNOR_PRODUCTS = {"numpy": _numpy_product, "compiled": _compiled, "gpu": _gpu_product}
"""Every way to multiply packed rows; the last one runs on the GPU only, the others on the CPU."""


def xnor_product(
    a_words: Array,
    b_words: Array,
    length: int,
    *,
    algorithm: str = "auto",
    out: Array | None = None,
) -> Array:
    """Multiply every row of a with every row of b, exactly for every length.

    Args:
        a_words: (M, words), uint64, as :func:`pack` makes them.
        b_words: (N, words) likewise, or laid out by :func:`panels_of` once for many products.
        length: places of a row that count.
        algorithm: a key of :data:`XNOR_PRODUCTS`; "auto": compiled on the CPU, which takes about a
            second at the first call (as "numpy" under NUMBA_DISABLE_JIT=1 and on CPUs without
            AVX2), a kernel on the GPU.
        out: (M, N), int32, to be filled and returned; a new array takes its memory from the system.

    Returns:
        (M, N), int32, beside the words: the sums of products of +1 and -1, from -length to length.

    Raises TypeError, ValueError: words or ``out`` of another dtype, shape or device; another
    algorithm.

    >>> a, b = pack(np.array([[1, -1, 1]])), pack(np.array([[1, 1, 1], [-1, 1, -1]]))
    >>> xnor_product(a, b, 3).tolist(), xnor_product(a, panels_of(b), 3).tolist()
    ([[1, -3]], [[1, -3]])
    """
    xp = array_module(a_words, b_words)
    check_choice("algorithm", algorithm, ["auto", *XNOR_PRODUCTS])
    length = _check_words(a_words, length)
    laid_out = b_words.ndim == 1 and b_words.size % a_words.shape[-1] == 0
    rows = b_words.reshape(-1, a_words.shape[-1]) if laid_out else b_words
    for words in (a_words, rows):
        _check_words(words, length)
        if words.ndim != 2 or len(words) < 1:
            raise ValueError(
                f"a product takes rows of words, (M, words), M >= 1; got {words.shape}."
            )
    if algorithm == "auto":
        algorithm = "compiled" if xp is np else "gpu"
    if (algorithm == "gpu") == (xp is np):
        there, move = ("GPU", "to_gpu()") if xp is np else ("CPU", "to_cpu()")
        raise TypeError(f"{algorithm} runs on the {there} only: move the words there by {move}.")
    a, panels = (xp.ascontiguousarray(w) for w in (a_words, rows if laid_out else panels_of(rows)))
    shape = len(a_words), len(rows)
    out = xp.empty(shape, np.int32) if out is None else out
    array_module(a, out)
    if out.shape != shape or out.dtype != np.int32 or not out.flags.c_contiguous:
        raise ValueError(f"out must be int32, {shape} without gaps; got {out.dtype}, {out.shape}.")
    XNOR_PRODUCTS[algorithm](a, panels.reshape(-1), length, out)
    return out
