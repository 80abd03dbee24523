"""Products of rows of bits, 64 to a word: XOR and popcount with the counts in registers.

The weights are laid out once, when they are stored: 32 rows together make a *panel*, in which the
first words of all lie side by side, then the second words, and so on, as they are needed::

                 words k of 32 weight rows: four registers of eight (AVX-512)
                 b0       b1       b2       b3
      a[0] ->  n[0,0]   n[0,1]   n[0,2]   n[0,3]     word k of a row of a is spread over a register;
      a[1] ->  n[1,0]   n[1,1]   n[1,2]   n[1,3]     n[row, v] grows by popcount(a[row] ^ b[v]):
      ...                                            20 times three instructions from 9 loads,
      a[4] ->  n[4,0]   n[4,1]   n[4,2]   n[4,3]     nothing stored until the row ends

As many panels as fill half of the core's own (L2) cache are gone through for five rows of a, then
for the next five. A CPU without a popcount of vectors (AVX2) gets what LLVM makes of it, a table of
the counts of four bits. The NumPy version stands in :mod:`fastdl_lib.binary.bits`.
"""

import functools

import numpy as np
from llvmlite import ir

from fastdl_lib.core.threads import in_parallel
from fastdl_lib.kernels.compiled import compiled
from fastdl_lib.kernels.vectors import ADDRESS, Writer, cache_bytes, call, lanes

# Rows and vectors of a tile by lanes(): beside their counts the registers hold the vectors of b, a
# word of a, what is being counted and, where popcount is many instructions, its constants.
_TILES = {16: (5, 4), 8: (3, 2)}


def product(a: np.ndarray, panels: np.ndarray, panel: int, length: int, out: np.ndarray) -> None:
    """Fill out (M, N), int32, with length - 2 * (places that differ).

    Args:
        a: (M, words), uint64, without gaps.
        panels: (N * words,), uint64: panel after panel, each (words, its rows).
        panel: rows of a panel, whole tiles; the last one has what is left.
    """
    words, whole = a.shape[1], out.shape[1] // panel * panel
    if whole:
        _whole_panels(a, panels[: whole * words], length, out[:, :whole], panel)
    rest = out.shape[1] - whole
    if rest:  # with room to whole vectors
        register = lanes() // 2
        width = -(-rest // register) * register
        last = np.zeros((words, width), np.uint64)
        last[:, :rest] = panels[whole * words :].reshape(words, rest)
        few = np.empty((len(a), width), np.int32)
        _whole_panels(a, last.reshape(-1), length, few, width)
        out[:, whole:] = few[:, :rest]


def _whole_panels(
    a: np.ndarray, panels: np.ndarray, length: int, out: np.ndarray, width: int
) -> None:
    register, count = lanes() // 2, out.shape[1] // width
    rows, vectors = _TILES[lanes()]
    counts = rows * vectors
    while width % (vectors * register):  # a narrow panel has narrower tiles, of more rows
        vectors -= 1
    rows = min(counts // vectors, len(a))
    shared = tile(rows, vectors), rows, vectors * register, width, a, panels, length, out
    block = max(1, cache_bytes() // 2 // (8 * width * a.shape[1]))
    if len(a) > out.shape[1]:  # the threads share out what is longer
        in_parallel(lambda p: _tiles(p.start, p.stop, 0, count, block, *shared), len(a), least=rows)
    else:
        in_parallel(lambda p: _tiles(0, len(a), p.start, p.stop, block, *shared), count)


@compiled
def _tiles(top, bottom, left, right, block, tile, rows, columns, width, a, panels, length, out):
    """Rows top ... bottom, at least as many as a tile has, times panels left ... right."""
    words = a.shape[1]
    at_a, at_b, at_c = a.ctypes.data, panels.ctypes.data, out.ctypes.data
    for first in range(left, right, block):
        for row in range(top, bottom, rows):
            i = min(row, bottom - rows)  # the last tile does some rows again
            here_a, here_c = at_a + i * 8 * words, at_c + i * out.strides[0]
            for j in range(first * width, min(first + block, right) * width, columns):
                panel, inside = divmod(j, width)
                b = at_b + 8 * (panel * width * words + inside)
                to = (here_c + 4 * j, out.strides[0])
                call(tile, (here_a, 8 * words, words, b, 8 * width, *to, length))


@functools.cache
def tile(rows: int, vectors: int) -> int:
    """Return the address of ``tile(a, a_row, words, b, b_step, c, c_row, length)``: c[row, vector],
    int32, = length - 2 * sum over k of popcount(a[row, k] ^ b[k, vector]), steps in bytes."""
    writer = Writer(8, ADDRESS)
    build = writer.build
    a, a_row, words, b, b_step, c, c_row, length = writer.function.args
    register, half = 8 * writer.vector.count, ir.VectorType(ir.IntType(32), writer.vector.count)

    def grow(word: ir.Value, line: ir.Value, *counts: ir.Value) -> list[ir.Value]:
        columns = [writer.load(writer.place(line, register, v)) for v in range(vectors)]
        grown, here = [], word
        for row in range(rows):
            spread = writer.spread(writer.load(here, ADDRESS))
            here = build.add(here, a_row)
            for count, column in zip(counts[row * vectors :], columns, strict=False):
                differing = writer.known("ctpop", build.xor(spread, column))
                grown.append(build.add(count, differing))
        return [build.add(word, ADDRESS(8)), build.add(line, b_step), *grown]

    nothing = [ir.Constant(writer.vector, None)] * (rows * vectors)
    _, _, *counts = writer.loop(words, [a, b, *nothing], grow)
    full = build.trunc(writer.spread(length), half)
    places = writer.places(c, c_row, rows, register // 2, vectors)
    for count, place in zip(counts, places, strict=True):
        differing = build.trunc(count, half)
        writer.store(build.sub(full, build.add(differing, differing)), place)
    return writer.compiled()
