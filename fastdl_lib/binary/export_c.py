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
    "popcount": """
/* How many bits are 1. */
#ifdef __POPCNT__
#define popcount(word) __builtin_popcountll(word)
#else
static int popcount(uint64_t word)
{
    word -= word >> 1 & UINT64_C(0x5555555555555555);
    word = (word & UINT64_C(0x3333333333333333)) + (word >> 2 & UINT64_C(0x3333333333333333));
    word = (word + (word >> 4)) & UINT64_C(0x0f0f0f0f0f0f0f0f);
    return (int) (word * UINT64_C(0x0101010101010101) >> 56);
}
#endif
""",
    "pixel_sums": """
/* Sums of pixels times weights of +1 and -1, by the eight bit planes of the pixels: twice what the
   bits of the weights select, less the sum of all pixels. Volatile, here and below: gcc 11 and 12
   get the loop over the outputs wrong where they compute several at once by AVX-512. */
static void pixel_sums(const uint8_t *pixels, int height, int width, int channels, int kernel_h,
                       int kernel_w, int stride, int padding, int outputs, int words,
                       const uint64_t *weights, volatile int32_t *sums)
{
    static uint64_t planes[8][@PATCH_WORDS@];
    int out_h = (height + 2 * padding - kernel_h) / stride + 1;
    int out_w = (width + 2 * padding - kernel_w) / stride + 1;
    for (int i = 0; i < out_h; ++i)
        for (int j = 0; j < out_w; ++j) {
            int32_t total = 0;
            int place = 0;
            for (int plane = 0; plane < 8; ++plane)
                for (int k = 0; k < words; ++k) planes[plane][k] = 0;
            for (int p = 0; p < kernel_h; ++p)
                for (int q = 0; q < kernel_w; ++q)
                    for (int c = 0; c < channels; ++c, ++place) {
                        int y = i * stride + p - padding, x = j * stride + q - padding;
                        unsigned pixel = 0;
                        if (y >= 0 && y < height && x >= 0 && x < width)
                            pixel = pixels[(c * height + y) * width + x];
                        total += (int32_t) pixel;
                        for (int plane = 0; plane < 8; ++plane)
                            planes[plane][place / 64] |= (uint64_t) (pixel >> plane & 1)
                                                         << place % 64;
                    }
            for (int o = 0; o < outputs; ++o) {
                const uint64_t *weight = weights + (long) o * words;
                int32_t selected = 0;
                for (int plane = 0; plane < 8; ++plane) {
                    int32_t ones = 0;
                    for (int k = 0; k < words; ++k) ones += popcount(planes[plane][k] & weight[k]);
                    selected += ones * (1 << plane);
                }
                *sums++ = 2 * selected - total;
            }
        }
}
""",
    "bit_sums": """
/* Sums of +1 and -1 times weights of +1 and -1: places that differ count -1, the others +1. A pixel
   is some words, around the image stands the pixel "around". */
static void bit_sums(const uint64_t *bits, int height, int width, int words, int kernel_h,
                     int kernel_w, int stride, int padding, const uint64_t *around, int outputs,
                     int length, const uint64_t *weights, volatile int32_t *sums)
{
    int out_h = (height + 2 * padding - kernel_h) / stride + 1;
    int out_w = (width + 2 * padding - kernel_w) / stride + 1;
    for (int i = 0; i < out_h; ++i)
        for (int j = 0; j < out_w; ++j) {
            const uint64_t *weight = weights;
            for (int o = 0; o < outputs; ++o) {
                int32_t differing = 0;
                for (int p = 0; p < kernel_h; ++p)
                    for (int q = 0; q < kernel_w; ++q, weight += words) {
                        int y = i * stride + p - padding, x = j * stride + q - padding;
                        const uint64_t *seen = around;
                        if (y >= 0 && y < height && x >= 0 && x < width)
                            seen = bits + (long) (y * width + x) * words;
                        for (int k = 0; k < words; ++k) differing += popcount(seen[k] ^ weight[k]);
                    }
                *sums++ = length - 2 * differing;
            }
        }
}
""",
    "pool": """
/* The largest sum of each window, in place: what is written lies before what is read later. */
static void pool(int32_t *sums, int height, int width, int outputs, int kernel, int stride)
{
    int32_t *out = sums;
    for (int i = 0; i + kernel <= height; i += stride)
        for (int j = 0; j + kernel <= width; j += stride)
            for (int o = 0; o < outputs; ++o) {
                int32_t largest = sums[(i * width + j) * outputs + o];
                for (int p = 0; p < kernel; ++p)
                    for (int q = 0; q < kernel; ++q) {
                        int32_t sum = sums[((i + p) * width + j + q) * outputs + o];
                        if (sum > largest) largest = sum;
                    }
                *out++ = largest;
            }
}
""",
    "compare": """
/* Batch normalisation and sign: a bit is 1 where a sum reaches its threshold, or, where "falling"
   says so, where it does not. */
static void compare(const int32_t *sums, int places, int outputs, const int32_t *thresholds,
                    const uint64_t *falling, uint64_t *bits)
{
    for (int place = 0; place < places; ++place)
        for (int first = 0; first < outputs; first += 64) {
            uint64_t word = falling[first / 64];
            for (int o = first; o < outputs && o < first + 64; ++o)
                word ^= (uint64_t) (sums[o - first] >= thresholds[o]) << (o - first);
            sums += outputs - first < 64 ? outputs - first : 64;
            *bits++ = word;
        }
}
""",
}


@dataclasses.dataclass(frozen=True)
class CFile:
    """A network in C, as :func:`export_c` wrote it; all sizes in bytes, counted."""

    path: Path
    name: str
    """What its functions' names begin with."""
    input_shape: tuple[int, int, int]
    """(C, H, W) of a picture."""
    classes: int
    constants_bytes: int
    """What lies in read-only memory (flash) beside the code."""
    buffers_bytes: int
    """What lies in memory that is written to, beside a small stack."""
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
    buffers = 4 * sums + 8 * sum(words) + 8 * 8 * stages[0].patch_words
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
        raise ValueError(f"{folded.name} has no finite logits: its scale, factor or shift is none.")
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
    patch_words = str(stages[0].patch_words)
    channels, height, width = folded.input_shape
    classes = stages[-1].layer.outputs
    lines = [
        f"/* {_in_comment(folded.name)}: pictures of {channels}x{height}x{width} bytes,",
        f"   {classes} classes. Written by fastdl_lib.binary.export_c; C99, no heap. */",
        "#include <stdint.h>",
        *(_PARTS[part].replace("@PATCH_WORDS@", patch_words) for part in _PARTS if part in needed),
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


def _in_comment(text: str) -> str:
    return re.sub(r"[^ -~]|[*/\\]", "_", text)


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
        self.patch_words = layer.row_words
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
                f"{layer.outputs}, {self.patch_words}, {name}_words, sums);"
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
        for kind, sign in (("scale", "*"), ("factor", "*"), ("shift", "+")):
            if kind in layer.buffers:
                yield f"        value = value {sign} {name}_{kind}[o];"
        yield "        logits[o] = value;"
        yield "    }"


def _constant(name: str, array: np.ndarray) -> Iterator[str]:
    kinds = {"uint64": "uint64_t", "int32": "int32_t", "float32": "float"}
    yield f"static const {kinds[array.dtype.name]} {name}[{array.size}] = {{"
    values = array.reshape(-1).tolist()
    if array.dtype == np.uint64:
        words = [f"UINT64_C(0x{value:x})" for value in values]
    elif array.dtype == np.float32:
        words = [f"{value.hex()}f" for value in values]
    else:
        words = [str(value) for value in values]
    for start in range(0, len(words), 8):
        yield f"    {', '.join(words[start : start + 8])},"
    yield "};"


class CNetwork:
    """A compiled C network: answers for pictures. Made by :func:`compile_c`."""

    def __init__(self, file: CFile, compiled: Compiled, flags: tuple[str, ...]) -> None:
        self.file, self.library_bytes = file, compiled.size_bytes
        self.flags = flags
        """With which it was compiled."""
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
