"""The innermost loops, written for the vector registers of a CPU: tiles of matrix products, and a
small matrix applied to vectors.

NumPy hands a product to the BLAS, which first copies both sides into an order of its own: where a
side is short, too few products make up for that. Here a small piece of the result, a *tile*, stays
in registers from the first term of its sums to the last::

                 b[k], some vectors: loaded anew for each term k
                 b0      b1      b2
      a[0] ->  c[0,0]  c[0,1]  c[0,2]     each c: one register of 16 sums (AVX-512), 8 (AVX2);
      a[1] ->  c[1,0]  c[1,1]  c[1,2]     for each term, a[row, k] is spread over a register, and
      ...                                 rows x vectors sums grow by a[row, k] * b[k, vector]:
      a[8] ->  c[8,0]  c[8,1]  c[8,2]     27 products from 12 loads, nothing stored till the end

These are 27 + 3 + 1 of AVX-512's 32 registers (:func:`tile_shape`). A core begins two such products
at a time and needs a few steps for each: with two dozen sums under way, none waits for itself. The
rows of a and the vectors of b are read again by the next tiles; the loops that call them see to it
that they still lie in the core's caches then: the tile's shape follows the CPU's registers, the
blocks of those loops its L2 cache (:func:`cache_bytes`).

Each such function is written as text for LLVM, the compiler below Numba, as its shape asks, and
compiled when it is first asked for, in about 20 ms, anew in each process. The loops around it are
compiled by Numba and kept on disk; they call it by its address (:func:`call`). It takes addresses
and steps in bytes, and nothing checks them: that is done once, where Python calls
:mod:`~fastdl_lib.kernels.direct`, :mod:`~fastdl_lib.kernels.winograd`,
:mod:`~fastdl_lib.kernels.linear` and :mod:`~fastdl_lib.kernels.bits`. Where a sum starts, the
address 0 stands for zeros.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic

from fastdl_lib.kernels.compiled import can_compile

ADDRESS, FLOAT = ir.IntType(64), ir.FloatType()

_engines = []  # the machine code lives as long as they do


@functools.cache
def lanes() -> int:
    """How many float32 a vector register holds, 16 or 8; 0 where NumPy computes: on CPUs for which
    nothing is written here (no AVX2, or no x86), and where no loop can be compiled to call it."""
    if not can_compile():
        return 0
    has = llvm.get_host_cpu_features()
    if has.get("avx512f") and config.CPU_NAME in (None, "", llvm.get_host_cpu_name()):
        return 16
    return 8 if has.get("avx2") and has.get("fma") else 0


def _registers() -> int:
    return {16: 32, 8: 16}[lanes()]


def _most_products(shapes: list[tuple[int, int]]) -> tuple[int, int]:
    """The shape with the most products for each value loaded."""
    return max(shapes, key=lambda shape: shape[0] * shape[1] / sum(shape))


@functools.cache
def tile_shape(columns: int, multiple: int = 0) -> tuple[int, int]:
    """Rows and vectors of the best :func:`product_tile`, whose sums, vectors of b and one value of
    a fill the registers; its vectors divide ``columns`` (whole vectors), its rows ``multiple`` (0:
    any)."""
    return _most_products(
        [
            (rows, vectors)
            for vectors in (1, 2, 3)
            if columns % (vectors * lanes()) == 0
            for rows in range(1, (_registers() - 1) // vectors)
            if multiple % rows == 0
        ]
    )


@functools.cache
def dot_tile_shape(images: int) -> tuple[int, int]:
    """Rows of x and of w of the best :func:`dot_tile`, whose sums, rows of x and one of w fill the
    registers. The ``images`` rows of x are cut into parts of nearly one height; of w it takes 8 at
    most, so many streams as a core fetches ahead."""
    heights = {-(-images // parts) for parts in range(1, images + 1)}
    return _most_products(
        [
            (rows, min(8, (_registers() - 1 - rows) // rows))
            for rows in heights
            if 3 * rows <= _registers()
        ]
    )


def nearly_equal(length: int, most: int) -> tuple[int, int]:
    """Cut a length into as few parts as ``most`` allows, of nearly one size: that size, and how
    many are longer by one.

    >>> nearly_equal(10, 4)  # 4 + 3 + 3
    (3, 1)
    """
    return divmod(length, -(-length // most))


@functools.cache
def cache_bytes() -> int:
    """The size of a core's own (L2) cache, which the block sizes of the loops follow; 1 MiB where
    the system does not say (such cores have 0.25 to 2)."""
    file = Path("/sys/devices/system/cpu/cpu0/cache/index2/size")
    text = file.read_text().strip() if file.is_file() else ""
    return int(text[:-1]) * 1024 if text[:-1].isdigit() and text[-1] == "K" else 2**20


@intrinsic
def call(typing_context: Any, address: Any, arguments: Any) -> Any:
    """Call a function at an address with a tuple of whole numbers, from a compiled loop."""

    def emit(context, builder, signature, values):
        kind = ir.FunctionType(ir.VoidType(), [ADDRESS] * len(arguments))
        function = builder.inttoptr(values[0], kind.as_pointer())
        builder.call(function, cgutils.unpack_tuple(builder, values[1]))
        return context.get_dummy_value()

    return types.void(address, arguments), emit


class Writer:
    """Writes one function of addresses and whole numbers, and compiles it; its vectors hold as many
    numbers as fill a register, of 32 bits or, where ``number`` is another type, of 64."""

    def __init__(self, arguments: int, number: ir.Type = FLOAT) -> None:
        self.module = ir.Module("kernel")
        kind = ir.FunctionType(ir.VoidType(), [ADDRESS] * arguments)
        self.function = ir.Function(self.module, kind, "kernel")
        self.build = ir.IRBuilder(self.function.append_basic_block("start"))
        self.vector = ir.VectorType(number, lanes() if number is FLOAT else lanes() // 2)

    def known(self, name: str, *values: ir.Value) -> ir.Value:
        """Call a function that LLVM knows and that gives what it takes: vectors of one type."""
        kind = values[0].type
        suffix = f"v{kind.count}{'f32' if kind.element is FLOAT else kind.element}"
        signature = ir.FunctionType(kind, [kind] * len(values))
        function = self.module.declare_intrinsic(f"llvm.{name}.{suffix}", (), signature)
        return self.build.call(function, values)

    def place(self, base: ir.Value, step: ir.Value | int, count: int) -> ir.Value:
        step = ADDRESS(step) if isinstance(step, int) else step
        return self.build.add(base, self.build.mul(step, ADDRESS(count)))

    def places(
        self, base: ir.Value, row_step: ir.Value, rows: int, size: int, columns: int
    ) -> list[ir.Value]:
        """The addresses of a tile's values, row by row; ``size``: of one, in bytes."""
        lines = [self.place(base, row_step, row) for row in range(rows)]
        return [self.place(line, size, column) for line in lines for column in range(columns)]

    def or_zeros(self, address: ir.Value, vectors: int) -> ir.Value:
        """The address, or where it is 0, that of so many vectors of zeros."""
        kind, name = ir.ArrayType(self.vector, vectors), self.module.get_unique_name("zeros")
        zeros = ir.GlobalVariable(self.module, kind, name)
        zeros.initializer, zeros.linkage = ir.Constant(kind, None), "internal"
        is_none = self.build.icmp_signed("==", address, ADDRESS(0))
        return self.build.select(is_none, self.build.ptrtoint(zeros, ADDRESS), address)

    def load(self, address: ir.Value, kind: ir.Type | None = None) -> ir.Value:
        kind = kind or self.vector
        loaded = self.build.load(self.build.inttoptr(address, kind.as_pointer()))
        loaded.align = 4
        return loaded

    def store(self, value: ir.Value, address: ir.Value) -> None:
        pointer = self.build.inttoptr(address, value.type.as_pointer())
        self.build.store(value, pointer).align = 4

    def spread(self, number: ir.Value) -> ir.Value:
        """One number in every place of a vector."""
        empty = ir.Constant(self.vector, ir.Undefined)
        first = self.build.insert_element(empty, number, ir.IntType(32)(0))
        places = ir.Constant(ir.VectorType(ir.IntType(32), self.vector.count), None)
        return self.build.shuffle_vector(first, empty, places)

    def add_product(self, total: ir.Value, x: ir.Value, y: ir.Value) -> ir.Value:
        return self.known("fmuladd", x, y, total)  # rounded once where the CPU can

    def added_up(self, vector: ir.Value) -> ir.Value:
        """The sum of a vector's numbers: halves are added until one is left."""
        count = vector.type.count
        while count > 1:
            count //= 2
            places = ir.VectorType(ir.IntType(32), count)
            halves = [
                self.build.shuffle_vector(vector, vector, ir.Constant(places, list(half)))
                for half in (range(count), range(count, 2 * count))
            ]
            vector = self.build.fadd(*halves)
        return self.build.extract_element(vector, ir.IntType(32)(0))

    def loop(
        self, count: ir.Value, first: Sequence[ir.Value], grow: Callable[..., Sequence[ir.Value]]
    ) -> list[ir.Value]:
        """Values that stay in registers: ``first``, then ``count`` times, at least once, what
        ``grow`` makes of them."""
        build, before = self.build, self.build.block
        loop, done = map(build.append_basic_block, ("loop", "done"))
        build.branch(loop)
        build.position_at_end(loop)
        first = [ADDRESS(0), *first]
        held = [build.phi(value.type) for value in first]
        grown = [build.add(held[0], ADDRESS(1)), *grow(*held[1:])]
        for value, at_first, then in zip(held, first, grown, strict=True):
            value.add_incoming(at_first, before)
            value.add_incoming(then, loop)
        build.cbranch(build.icmp_signed("<", grown[0], count), loop, done)
        build.position_at_end(done)
        return grown[1:]

    def compiled(self) -> int:
        """The address of the machine code."""
        self.build.ret_void()
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        name = config.CPU_NAME or llvm.get_host_cpu_name()
        features = "" if config.CPU_NAME else llvm.get_host_cpu_features().flatten()
        target = llvm.Target.from_default_triple()
        machine = target.create_target_machine(cpu=name, features=features, opt=3)
        module = llvm.parse_assembly(str(self.module))
        engine = llvm.create_mcjit_compiler(module, machine)
        engine.finalize_object()
        _engines.append(engine)
        return engine.get_function_address("kernel")


@functools.cache
def product_tile(rows: int, vectors: int) -> int:
    """Return the address of ``tile(a, a_row, offsets, terms, b, b_step, start, start_row, c,
    c_row)``: c[row, vector] = start[row, vector] + sum over k of a[row, k] * b[k, vector].

    a[row, k] lies at a + row * a_row + offsets[k], so that a need be no matrix (the pixels below a
    filter, say); b[k] at b + k * b_step; the vectors of start and c side by side from each row's
    beginning. A start of 0, with a step of 0: zeros.
    """
    writer = Writer(10)
    build, size = writer.build, 4 * lanes()
    a, a_row, offsets, terms, b, b_step, start, start_row, c, c_row = writer.function.args

    def grow(offset: ir.Value, line: ir.Value, *sums: ir.Value) -> list[ir.Value]:
        value = build.add(a, writer.load(offset, ADDRESS))
        columns = [writer.load(writer.place(line, size, v)) for v in range(vectors)]
        grown = []
        for row in range(rows):
            spread = writer.spread(writer.load(value, FLOAT))
            value = build.add(value, a_row)
            old = sums[row * vectors : (row + 1) * vectors]
            grown += [writer.add_product(s, spread, v) for s, v in zip(old, columns, strict=True)]
        return [build.add(offset, ADDRESS(8)), build.add(line, b_step), *grown]

    start = writer.or_zeros(start, vectors)
    first = map(writer.load, writer.places(start, start_row, rows, size, vectors))
    _, _, *sums = writer.loop(terms, [offsets, b, *first], grow)
    for total, place in zip(sums, writer.places(c, c_row, rows, size, vectors), strict=True):
        writer.store(total, place)
    return writer.compiled()


@functools.cache
def matrix_on_vectors(matrix: Sequence[Sequence[float]], watched: bool = False) -> int:
    """Return the address of ``apply(x, x_step, y, y_step, start)``: y[i] = start + sum over k of
    matrix[i][k] * x[k], each x[k], y[i] and start one vector; x and start may be 0, for zeros.

    The matrix (a tuple of tuples) is known when this is compiled: its zeros take no time, its ones
    no multiplication, and what is between stays in registers. ``watched``: it takes the address of
    one more vector, which it makes NaN where a y is no finite number.
    """
    writer = Writer(5 + watched)
    x, x_step, y, y_step, start, *seen = writer.function.args
    x, start = (writer.or_zeros(address, 1) for address in (x, start))
    vectors = [writer.load(writer.place(x, x_step, k)) for k in range(len(matrix[0]))]
    begin = writer.load(start)
    finite = writer.load(seen[0]) if watched else None
    for i, row in enumerate(matrix):
        total = begin
        for factor, vector in zip(row, vectors, strict=True):
            if factor == 1:
                total = writer.build.fadd(total, vector)
            elif factor:
                spread = ir.Constant(writer.vector, [float(factor)] * lanes())
                total = writer.add_product(total, spread, vector)
        writer.store(total, writer.place(y, y_step, i))
        if watched:  # 0 times a number is 0, but NaN for infinity
            finite = writer.add_product(finite, total, ir.Constant(writer.vector, [0.0] * lanes()))
    if watched:
        writer.store(finite, seen[0])
    return writer.compiled()


@functools.cache
def dot_tile(x_rows: int, w_rows: int) -> int:
    """Return the address of ``tile(x, x_row, w, w_row, terms, out, out_row)``: out[i, j] = sum of
    x[i] * w[j] over so many whole vectors, at least one.

    Each register sums every 16th (8th) term, in order; its numbers are then added in pairs. So the
    result is the same, whatever else is in the tile.
    """
    writer = Writer(7)
    build, size = writer.build, ADDRESS(4 * lanes())
    x, x_row, w, w_row, terms, out, out_row = writer.function.args

    def grow(x: ir.Value, w: ir.Value, *sums: ir.Value) -> list[ir.Value]:
        lines = [writer.load(writer.place(x, x_row, i)) for i in range(x_rows)]
        columns = [writer.load(writer.place(w, w_row, j)) for j in range(w_rows)]
        pairs = itertools.product(lines, columns)
        grown = [writer.add_product(s, *pair) for s, pair in zip(sums, pairs, strict=True)]
        return [build.add(x, size), build.add(w, size), *grown]

    nothing = [ir.Constant(writer.vector, None)] * (x_rows * w_rows)
    _, _, *sums = writer.loop(terms, [x, w, *nothing], grow)
    for total, place in zip(sums, writer.places(out, out_row, x_rows, 4, w_rows), strict=True):
        writer.store(writer.added_up(total), place)
    return writer.compiled()
