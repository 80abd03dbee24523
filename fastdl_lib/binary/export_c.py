"""A folded binary network as one C99 file: for a chip without an operating system, or for any.

The file holds all constants and code. It includes nothing but ``<stdint.h>``, takes no memory at
run time beside its static buffers, and computes with whole numbers up to the logits. A pixel is a
byte, 0 to 255.
"""

import ctypes
import dataclasses
import math
import os
import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from fastdl_lib.binary.bits import WORD, pack, rows_of
from fastdl_lib.binary.inference import BinaryNetwork, BitLayer, fold
from fastdl_lib.core.arrays import beside, check_on_cpu, to_cpu
from fastdl_lib.core.compiler import Compiled, compile_library
from fastdl_lib.core.files import whole_file
from fastdl_lib.nn.network import Network

C_FLAGS = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-O3")
"""With which :func:`compile_c` compiles first: warnings are errors."""

_PARTS = {
    re.search(r"^static \w+ (\w+)", part, re.M)[1]: part
    for part in Path(__file__).with_name("network.c").read_text("ascii").strip().split("\n\n")[1:]
}
"""Functions of every exported network, by their names."""


@dataclasses.dataclass(frozen=True)
class CFile:
    """A network in C, as :func:`export_c` wrote it; all sizes in bytes, counted.

    ``name`` is what its functions' names begin with; pictures are of ``input_shape``, (C, H, W).
    ``constants_bytes`` lie in read-only memory (flash) beside the code, ``buffers_bytes`` in memory
    that is written to, beside a small stack.
    """

    path: Path
    name: str
    input_shape: tuple[int, int, int]
    classes: int
    constants_bytes: int
    buffers_bytes: int
    text: str = dataclasses.field(repr=False)
    """What was written."""
    checked: tuple[np.ndarray, np.ndarray] = dataclasses.field(repr=False, compare=False)
    """Random images, uint8, and Python's logits for them."""


def export_c(network: Network, path: str | os.PathLike, *, name: str = "network") -> CFile:
    """Write a binary network as one self-contained C99 file, the whole file or nothing.

    The file defines, for a picture of (C, H, W) bytes, and so many logits as there are classes::

        void <name>_logits(const uint8_t *pixels, float *logits);
        int <name>_classify(const uint8_t *pixels);

    C knows no shapes: who calls them hands over whole, contiguous pictures. No heap, and no
    floating point but in the last normalisation, a product and a sum a class. Its buffers are
    static: one thread at a time.

    Args:
        network: folded, or one that :func:`~fastdl_lib.binary.inference.fold` takes.
        path: ends in .c.
        name: what the functions' names begin with.

    Raises:
        ValueError: a path or name that C cannot use; a network that does not fold.
        FileNotFoundError, PermissionError: the folder is missing or cannot be written to.

    >>> import tempfile
    >>> from fastdl_lib.binary.networks import binary_mlp
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export_c(binary_mlp(hidden=64), Path(folder, "digits.c")).constants_bytes
    8632
    """
    path = Path(path).absolute()
    if path.suffix != ".c":
        raise ValueError(f"C is stored as .c, got the name {path.name!r}.")
    if not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII):
        raise ValueError(f"name must be letters, digits and _, a letter first; got {name!r}.")
    folded = network if isinstance(network, BinaryNetwork) else fold(network)
    stages = [_Stage(folded, *stage) for stage in enumerate(folded.layers, start=1)]
    sums = max(stage.sums for stage in stages)
    # The layers read and write bits in turns; the last one writes none.
    turns = [stages[turn:-1:2] for turn in (0, 1)]
    words = [max(stage.words_out for stage in turn) for turn in turns if turn]
    text = _c_text(folded, name, stages, sums, words)
    checked = _answers(folded)
    with whole_file(path) as part:
        part.write_text(text, encoding="ascii")
    constants = folded.bytes + 8 * sum(stage.around_words for stage in stages)
    buffers = 4 * sums + 8 * sum(words) + 8 * 8 * stages[0].layer.row_words
    classes = stages[-1].layer.outputs
    return CFile(path, name, folded.input_shape, classes, constants, buffers, text, checked)


def _answers(folded: BinaryNetwork) -> tuple[np.ndarray, np.ndarray]:
    """Random images, from black ones to noise, and Python's logits for them."""
    rng, count = np.random.default_rng(0), 32
    shape = (count, *folded.input_shape)
    is_lit = rng.random(shape) < np.linspace(0, 1, count)[:, None, None, None]
    pixels = rng.integers(0, 256, shape, np.uint8) * is_lit
    x, words = pixels / np.float32(255), next(iter(folded.buffers.values()))
    parts = (folded.forward(beside(x[start : start + 4], words)) for start in range(0, count, 4))
    logits = np.concatenate([to_cpu(part) for part in parts])
    if not np.isfinite(logits).all():
        raise ValueError(f"{folded.name} has no finite logits: its factor or shift is none.")
    return pixels, logits


def _c_text(
    folded: BinaryNetwork, name: str, stages: list["_Stage"], sums: int, words: list[int]
) -> str:
    """The file, with buffers of so many sums and words."""
    needed = {"popcount", "pixel_sums"}  # a function that is not used would be a warning
    if len(stages) > 1:
        needed |= {"bit_sums", "compare"}
    if any(stage.layer.pool for stage in stages):
        needed.add("pool")
    parts = [part for name, part in _PARTS.items() if name in needed]
    patch_words, classes = str(stages[0].layer.row_words), stages[-1].layer.outputs
    channels, height, width = folded.input_shape
    title = re.sub(r"[^ -~]|[*/\\]", "_", folded.name)
    lines = [
        f"/* {title}: pictures of {channels}x{height}x{width} bytes,",
        f"   {classes} classes. Written by fastdl_lib.binary.export_c; C99, no heap. */",
        "#include <stdint.h>",
        *(f"\n{text.replace('PATCH_WORDS', patch_words)}\n" for text in parts),
        *(line for stage in stages for line in stage.constants()),
        f"static int32_t sums[{sums}];",
        *(f"static uint64_t bits{turn}[{count}];" for turn, count in enumerate(words)),
        "",
        f"/* pixels: {channels * height * width} bytes, channel after channel, row by row;",
        f"   logits: room for {classes}. Neither is checked. One thread at a time. */",
        f"void {name}_logits(const uint8_t *pixels, float *logits);",
        "/* The number of the largest logit, the first one of several. */",
        f"int {name}_classify(const uint8_t *pixels);",
        "",
        f"void {name}_logits(const uint8_t *pixels, float *logits)",
        "{",
        *(line for turn, stage in enumerate(stages) for line in stage.calls(turn)),
        "}",
        _CLASSIFY.replace("@NAME@", name).replace("@CLASSES@", str(classes)),
    ]
    return "\n".join(lines)


_CLASSIFY = """
int @NAME@_classify(const uint8_t *pixels)
{
    float logits[@CLASSES@];
    int best = 0;
    @NAME@_logits(pixels, logits);
    for (int o = 1; o < @CLASSES@; ++o)
        if (logits[o] > logits[best]) best = o;
    return best;
}
"""


class _Stage:
    """One layer of a folded network, and what stands in C for it."""

    def __init__(self, network: BinaryNetwork, number: int, name: str) -> None:
        self.layer: BitLayer = network.layers[name]
        # Two names may be the same in C, or none of C's; with the number they are.
        self.name = f"layer{number}_" + re.sub(r"\W", "_", name, flags=re.ASCII)
        layer, shape = self.layer, network.input_shape_of(name)
        # One that takes a flat row sees an image of one pixel.
        self.input_shape = shape if len(shape) == 3 else (*shape, 1, 1)
        self.sums_shape = layer.sums_shape(shape)
        self.sums = math.prod(self.sums_shape)
        self.pooled = math.prod(layer.output_shape(shape)[1:])
        self.pixel_words = -(-layer.channels // WORD)
        self.words_out = self.pooled * -(-layer.outputs // WORD)
        self.around_words = self.pixel_words if layer.padding and not layer.takes_pixels else 0

    def constants(self) -> Iterator[str]:
        for kind, array in self.layer.buffers.items():
            if kind == "words":
                array = rows_of(array, self.layer.row_words)
            yield from _constant(f"{self.name}_{kind}", to_cpu(array))
        if self.around_words:
            around = np.full((1, self.layer.channels), self.layer.padding_value)
            yield from _constant(f"{self.name}_around", pack(around))

    def calls(self, turn: int) -> Iterator[str]:
        """Lines of C that compute this stage, the one of that number."""
        layer, name = self.layer, self.name
        channels, height, width = self.input_shape
        kernel = f"{layer.kernel[0]}, {layer.kernel[1]}, {layer.stride}, {layer.padding}"
        if layer.takes_pixels:
            yield (
                f"    pixel_sums(pixels, {height}, {width}, {channels}, {kernel}, "
                f"{layer.outputs}, {layer.row_words}, {name}_words, sums);"
            )
        else:
            around = f"{name}_around" if self.around_words else "0"
            yield (
                f"    bit_sums(bits{(turn - 1) % 2}, {height}, {width}, {self.pixel_words}, "
                f"{kernel}, {around}, {layer.outputs}, {layer.length}, {name}_words, sums);"
            )
        if layer.pool is not None:
            yield (
                f"    pool(sums, {self.sums_shape[1]}, {self.sums_shape[2]}, {layer.outputs}, "
                f"{layer.pool.kernel}, {layer.pool.stride});"
            )
        if layer.ends_in_sign:
            yield (
                f"    compare(sums, {self.pooled}, {layer.outputs}, {name}_threshold, "
                f"{name}_falling, bits{turn % 2});"
            )
            return
        yield f"    for (int o = 0; o < {layer.outputs}; ++o) {{"
        # Volatile: each step is rounded to float, as NumPy's, and never joined with the next one.
        yield "        volatile float value = (float) sums[o];"
        if "factor" in layer.buffers:
            yield f"        value = value * {name}_factor[o];"
            yield f"        value = value + {name}_shift[o];"
        yield "        logits[o] = value;"
        yield "    }"


def _constant(name: str, array: np.ndarray) -> Iterator[str]:
    kind, write = {
        "uint64": ("uint64_t", lambda value: f"UINT64_C(0x{value:x})"),
        "int32": ("int32_t", str),
        "float32": ("float", lambda value: f"{value.hex()}f"),
    }[array.dtype.name]
    yield f"static const {kind} {name}[{array.size}] = {{"
    words = [write(value) for value in array.reshape(-1).tolist()]
    for start in range(0, len(words), 8):
        yield f"    {', '.join(words[start : start + 8])},"
    yield "};"


class CNetwork:
    """A compiled C network: answers for pictures. Made by :func:`compile_c`."""

    def __init__(self, file: CFile, compiled: Compiled, flags: tuple[str, ...]) -> None:
        self.file, self.library_bytes = file, compiled.size_bytes
        self.flags = flags  # with which it was compiled
        self._logits = getattr(compiled.functions, f"{file.name}_logits")
        self._classify = getattr(compiled.functions, f"{file.name}_classify")
        self._logits.restype, self._classify.restype = None, ctypes.c_int
        self._logits.argtypes, self._classify.argtypes = [ctypes.c_void_p] * 2, [ctypes.c_void_p]
        self._one_thread = threading.Lock()  # its buffers are static

    def logits(self, images: np.ndarray) -> np.ndarray:
        """(N, classes), float32, for images (N, C, H, W), uint8; others are refused by a TypeError
        or ValueError."""
        images = self._whole(images)
        out = np.empty((len(images), self.file.classes), np.float32)
        with self._one_thread:
            for image, row in zip(images, out, strict=True):
                self._logits(image.ctypes.data, row.ctypes.data)
        return out

    def predict_classes(self, images: np.ndarray) -> np.ndarray:
        """(N,), int64, for images as :meth:`logits` takes them."""
        images = self._whole(images)
        start, size = images.ctypes.data, math.prod(self.file.input_shape)
        with self._one_thread:
            places = range(start, start + size * len(images), size)
            return np.array([self._classify(place) for place in places], np.int64)

    def _whole(self, images: np.ndarray) -> np.ndarray:
        """The images one behind the other in memory, once they fit: C asks nothing."""
        check_on_cpu("a C network", images)
        if images.dtype != np.uint8:
            raise TypeError(
                f"a C network takes pixels as uint8, 0 to 255, got {images.dtype}; "
                "use np.rint(255 * x).astype(np.uint8)."
            )
        if images.ndim != 4 or images.shape[1:] != self.file.input_shape:
            wanted = ", ".join(map(str, self.file.input_shape))
            hint = " For one image use x[None]." if images.shape == self.file.input_shape else ""
            raise ValueError(
                f"this C network takes images (N, {wanted}), got {images.shape}.{hint}"
            )
        return np.ascontiguousarray(images)


def compile_c(file: CFile, flags: Sequence[str] = ("-march=native",)) -> CNetwork:
    """Compile a C network with this machine's compiler, load it, and compare it with Python.

    The flags are :data:`C_FLAGS` and ``flags``. Where the compiler refuses them, or random images
    get other logits than Python's (compilers have faults, too), safer ones follow: no loops made
    to vectors, -O2, no -march. ``flags`` of the result says with which the answers are right.

    Raises:
        ValueError: the file is no longer what :func:`export_c` wrote.
        RuntimeError: there is no C compiler, it refuses the file, or the answers stay wrong.
    """
    if file.path.read_text(encoding="ascii", errors="replace") != file.text:
        raise ValueError(f"{file.path.name} is not what export_c wrote any more: export it again.")
    given, faults = tuple(flags), []
    without = tuple(flag for flag in given if not flag.startswith(("-march", "-mcpu")))
    tries = given, (*given, "-fno-tree-loop-vectorize"), (*given, "-O2"), (*without, "-O2")
    for tried in dict.fromkeys(tries):
        used = (*C_FLAGS, *tried)
        try:
            made = CNetwork(file, compile_library(file.text, used, name=file.path.stem), used)
        except RuntimeError as error:
            faults.append(str(error))
            continue
        images, expected = file.checked
        wrong = int((made.logits(images) != expected).any(axis=1).sum())
        if not wrong:
            return made
        faults.append(f"{wrong} of {len(images)} images get other answers than in Python.")
    raise RuntimeError(f"no C network from {file.path.name}: {faults[0]}")
