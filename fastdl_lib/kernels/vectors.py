"""The innermost loops, written for the vector registers of a CPU: a tile of a matrix product, and a
small matrix applied to vectors.

NumPy hands a product to the BLAS, which is at its best where all three sides are long. Here the
sums of a small piece of the result stay in registers from the first term to the last::

                 vectors of b (the registers are loaded anew for each term)
                 b0      b1      b2
      a[0] ->  c[0,0]  c[0,1]  c[0,2]     each c: one register of 16 sums (AVX-512), 8 (AVX2);
      a[1] ->  c[1,0]  c[1,1]  c[1,2]     for each term k, a[row] is spread over a register,
      ...                                 and rows x vectors sums grow by a[row] * b[vector]:
      a[7] ->  c[7,0]  c[7,1]  c[7,2]     24 products from 11 loads, nothing stored till the end

The text of such a function is written for LLVM, the compiler below Numba, as its shape asks, and
compiled within milliseconds. Loops compiled by Numba call it by its address (:func:`call`). It is
given addresses and nothing checks them: :mod:`fastdl_lib.kernels.winograd` does, once, at its door.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic

ADDRESS, FLOAT = ir.IntType(64), ir.FloatType()

_engines = []  # the machine code lives as long as they do


@functools.cache
def lanes() -> int:
    """How many float32 a vector register holds, 16 or 8; 0 on CPUs for which nothing is written
    here (no AVX2, or no x86): there NumPy computes."""
    has = llvm.get_host_cpu_features()
    if has.get("avx512f") and config.CPU_NAME in (None, "", llvm.get_host_cpu_name()):
        return 16
    return 8 if has.get("avx2") and has.get("fma") else 0


@functools.cache
def tile_shape(columns: int, multiple: int = 0) -> tuple[int, int]:
    """Rows and vectors of the tile with the most products for each value loaded.

    Its sums, the vectors of b and one value of a fill the registers; its vectors divide ``columns``
    (whole vectors), its rows divide ``multiple`` (0: any).
    """
    registers = {16: 32, 8: 16}[lanes()]
    shapes = [
        (rows, vectors)
        for vectors in (1, 2, 3)
        if columns % (vectors * lanes()) == 0
        for rows in range(1, (registers - 1) // vectors)  # rows * vectors + vectors + 1 of them
        if multiple % rows == 0
    ]
    return max(shapes, key=lambda shape: shape[0] * shape[1] / sum(shape))


@functools.cache
def cache_bytes() -> int:
    """The size of a core's own (L2) cache; 1 MiB where the system does not say."""
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

    All are addresses or steps in bytes. a[row, k] lies at a + row * a_row + offsets[k], so that a
    need be no matrix (the pixels below a filter, say); b[k] at b + k * b_step, the vectors of start
    and c side by side from each row's beginning. Without a start: zeros, and a step of 0.
    """
    writer = Writer(10)
    build = writer.build
    a, a_row, offsets, terms, b, b_step, start, start_row, c, c_row = writer.function.args
    size = 4 * lanes()

    def places(base: ir.Value, row_step: ir.Value) -> list[ir.Value]:
        lines = [writer.place(base, row_step, row) for row in range(rows)]
        return [writer.place(line, size, v) for line in lines for v in range(vectors)]

    first = [writer.load(place) for place in places(start, start_row)]
    before, loop, done = build.block, *map(build.append_basic_block, ("loop", "done"))
    build.branch(loop)
    build.position_at_end(loop)
    k, line = build.phi(ADDRESS), build.phi(ADDRESS)
    sums = [build.phi(writer.vector) for _ in first]
    offset = writer.load(build.add(offsets, build.mul(k, ADDRESS(8))), ADDRESS)
    term = build.add(a, offset)
    columns = [writer.load(writer.place(line, size, v)) for v in range(vectors)]
    grown = []
    for row in range(rows):
        value = writer.spread(writer.load(term, FLOAT))
        term = build.add(term, a_row)
        old = sums[row * vectors : (row + 1) * vectors]
        grown += [writer.add_product(s, value, v) for s, v in zip(old, columns, strict=True)]
    k_next, line_next = build.add(k, ADDRESS(1)), build.add(line, b_step)
    for phi, at_first, then in zip(
        [k, line, *sums], [ADDRESS(0), b, *first], [k_next, line_next, *grown], strict=True
    ):
        phi.add_incoming(at_first, before)
        phi.add_incoming(then, loop)
    build.cbranch(build.icmp_signed("<", k_next, terms), loop, done)
    build.position_at_end(done)
    for total, place in zip(grown, places(c, c_row), strict=True):
        writer.store(total, place)
    return writer.compiled()


@functools.cache
def matrix_on_vectors(matrix: Sequence[Sequence[float]], watched: bool = False) -> int:
    """Return the address of ``apply(x, x_step, y, y_step, start)``: y[i] = start + sum over k of
    matrix[i][k] * x[k], each x[k], y[i] and start one vector.

    The matrix (a tuple of tuples) is known when this is compiled: its zeros take no time, its ones
    no multiplication, and what is between stays in registers. ``watched``: it takes the address of
    one more vector, which it makes NaN where a y is no finite number.
    """
    writer = Writer(5 + watched)
    x, x_step, y, y_step, start, *seen = writer.function.args
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
def dot_tile_shape(images: int) -> tuple[int, int]:
    """Rows of x and of w of the :func:`dot_tile` with the most products for each vector loaded,
    where ``images`` rows of x are cut into equal parts, or nearly; at most 8 of w, so many streams
    as a core fetches ahead."""
    registers = {16: 32, 8: 16}[lanes()]
    heights = {-(-images // parts) for parts in range(1, images + 1)}
    shapes = [
        (rows, min(8, (registers - 1 - rows) // rows))  # sums, rows of x and one of w
        for rows in heights
        if 3 * rows <= registers
    ]
    return max(shapes, key=lambda shape: shape[0] * shape[1] / sum(shape))


@functools.cache
def dot_tile(x_rows: int, w_rows: int) -> int:
    """Return the address of ``tile(x, x_row, w, w_row, terms, out, out_row)``: out[i, j] = sum of
    x[i] * w[j] over so many whole vectors, at least one.

    Each register sums every 16th (8th) term, in order; its numbers are then added in pairs. So the
    result is the same, whatever else is in the tile.
    """
    writer = Writer(7)
    build = writer.build
    x, x_row, w, w_row, terms, out, out_row = writer.function.args
    before, loop, done = build.block, *map(build.append_basic_block, ("loop", "done"))
    build.branch(loop)
    build.position_at_end(loop)
    k = build.phi(ADDRESS)
    sums = [build.phi(writer.vector) for _ in range(x_rows * w_rows)]
    at = build.mul(k, ADDRESS(4 * lanes()))
    lines = [writer.load(writer.place(build.add(x, at), x_row, i)) for i in range(x_rows)]
    grown = [None] * len(sums)
    for j in range(w_rows):
        column = writer.load(writer.place(build.add(w, at), w_row, j))
        for i, line in enumerate(lines):
            grown[i * w_rows + j] = writer.add_product(sums[i * w_rows + j], line, column)
    k_next = build.add(k, ADDRESS(1))
    nothing = ir.Constant(writer.vector, [0.0] * lanes())
    for phi, at_first, then in zip(
        [k, *sums], [ADDRESS(0), *[nothing] * len(sums)], [k_next, *grown], strict=True
    ):
        phi.add_incoming(at_first, before)
        phi.add_incoming(then, loop)
    build.cbranch(build.icmp_signed("<", k_next, terms), loop, done)
    build.position_at_end(done)
    for number, total in enumerate(grown):
        i, j = divmod(number, w_rows)
        place = writer.place(writer.place(out, out_row, i), 4, j)
        writer.store(writer.added_up(total), place)
    return writer.compiled()
