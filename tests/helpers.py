"""What tests of several wings build and compare with."""

import functools
import itertools
import math
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume
from hypothesis import strategies as st
from scipy import signal

from fastdl_lib.binary.layers import BinaryConv2d, BinaryLinear, PixelBytes, Sign
from fastdl_lib.convolution.geometry import Geometry
from fastdl_lib.core.compiler import c_compiler
from fastdl_lib.core.datasets import data_folder, mnist
from fastdl_lib.core.threads import blas_libraries
from fastdl_lib.measuring.costs import Ceilings
from fastdl_lib.measuring.evidence import Measurement, Provenance
from fastdl_lib.measuring.machine import MachineCard
from fastdl_lib.measuring.recordings import Recording, read_recording
from fastdl_lib.nn.layers import Conv2d, Dropout, Flatten, Linear, MaxPool2d, ReLU
from fastdl_lib.nn.network import Network
from fastdl_lib.nn.norms import BatchNorm, LocalResponseNorm
from fastdl_lib.nn.optimizers import SGD, Adam, warmup_cosine
from fastdl_lib.nn.training import fit
from fastdl_lib.precision.formats import FORMATS, FixedPoint, FloatFormat, Stored


def example(**changes):
    """A card with nothing of this machine in it."""
    fields = {
        "cpu": "Example CPU", "cores": 8, "memory_gib": 15.6, "blas": "OpenBLAS 0.3.30 (Haswell)",
        "blas_threads": 4, "gpu": "none. CuPy is not installed.", "system": "Linux x86_64",
        "python": "3.12.1", "versions": {"numpy": "2.4.6"}, "date": "2025-01-31",
    }  # fmt: skip
    return MachineCard(**{**fields, **changes})


@st.composite
def images(draw, least=1, most=6):
    """A float64 batch (N, C, H, W) whose values differ by 0.01 at least and are not 0."""
    size = st.integers(least, most)
    shape = draw(st.integers(1, 2)), draw(st.integers(1, 4)), draw(size), draw(size)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    count = math.prod(shape)
    return ((rng.permutation(count) - count // 2 + 0.5) / 50).reshape(shape)


SEEDS = st.integers(0, 2**32)


needs_a_known_blas = pytest.mark.skipif(
    not blas_libraries().info(), reason="threadpoolctl cannot set this BLAS's threads"
)


def small_alexnet(seed=0):
    """Every kind of layer of AlexNet, with groups, overlapping pooling, LRN and Dropout."""
    rng = np.random.default_rng(seed)
    layers = [
        ("conv1", Conv2d(3, 8, 5, stride=2, rng=rng)),
        ("relu1", ReLU()),
        ("norm1", LocalResponseNorm()),
        ("pool1", MaxPool2d(3, stride=2)),
        ("conv2", Conv2d(8, 12, 3, padding=1, groups=2, rng=rng)),
        ("relu2", ReLU()),
        ("pool2", MaxPool2d(3, stride=2)),
        ("flatten", Flatten()),
        ("fc3", Linear(12 * 2 * 2, 10, rng=rng)),
        ("drop3", Dropout(0.5, seed=seed)),
        ("fc4", Linear(10, 7, rng=rng)),
    ]
    return Network("small AlexNet", layers, (3, 27, 27))


def batch(network, images=2):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((images, *network.input_shape), dtype=np.float32)
    return x, np.arange(images) % 7


def ceilings(gflops=100.0, gb_per_s=10.0):
    def measured(unit, value):
        return Measurement("x", unit, (value,), Provenance.MEASURED, machine=example())

    return Ceilings(measured("GFLOP/s", gflops), measured("GB/s", gb_per_s))


def shaken(network, seed=0):
    """The network with normalisations as training could leave them, and worse: falling ones, flat
    ones, and some that put every sum on one side."""
    rng = np.random.default_rng(seed)
    for name, layer in network.layers.items():
        if isinstance(layer, BatchNorm):
            spread = np.sqrt(np.prod(network.input_shape_of(name)))
            count = layer.features
            layer.buffers["mean"][:] = rng.normal(0, spread, count)
            layer.buffers["variance"][:] = rng.uniform(0, spread**2, count)
            layer.parameters["weight"][:] = rng.normal(0, 1, count)
            layer.parameters["bias"][:] = rng.normal(0, 1, count)
            layer.parameters["weight"][::7] = 0
            layer.parameters["bias"][3::7] = 1e4
    return network


def numeric_gradient(loss, array, places, step):
    """Central differences of ``loss()`` by the values at some flat places of an array."""
    found = []
    for at in (np.unravel_index(place, array.shape) for place in places):
        kept, losses = array[at], []
        for moved in (kept + step, kept - step):
            array[at] = moved
            losses.append(loss())
        array[at] = kept
        found.append((losses[0] - losses[1]) / (2 * step))
    return found


def with_a_byte_changed(content):
    """A file's content with a byte changed: in the first header, in between, in the archive's."""
    between = np.random.default_rng(0).integers(len(content), size=40).tolist()
    for place in [*range(0, 200, 9), *between, *range(-200, 0, 9)]:
        bad = bytearray(content)
        bad[place] ^= 0x55
        yield bytes(bad)


# Elsewhere a missing MPI is a failure: requirements.txt installs one.
needs_mpi = pytest.mark.skipif(sys.platform == "win32", reason="no mpich wheel for Windows")
needs_a_compiler = pytest.mark.skipif(c_compiler() is None, reason="there is no C compiler")


def toy(seed=0):
    rng = np.random.default_rng(seed)
    layers = [
        ("conv", Conv2d(1, 6, 3, padding=1, rng=rng)),
        ("relu", ReLU()),
        ("pool", MaxPool2d(2)),
        ("flatten", Flatten()),
        ("drop", Dropout(0.25, seed=seed)),
        ("fc", Linear(6 * 4 * 4, 3, rng=rng)),
    ]
    return Network("toy", layers, (1, 8, 8))


def strokes(count=70, seed=0):
    """A horizontal, a vertical or a slanted stroke on noise, and which of them it is."""
    rng = np.random.default_rng(seed)
    images = 0.1 * rng.random((count, 1, 8, 8), dtype=np.float32)
    labels = np.arange(count) % 3
    for image, label, at in zip(images, labels, rng.integers(2, 6, count), strict=True):
        if label == 0:
            image[0, at] += 1
        elif label == 1:
            image[0, :, at] += 1
        else:
            image[0] += np.eye(8, k=at - 4, dtype=np.float32)
    return images, labels


IMAGES, LABELS = strokes()


OPTIMIZERS = {
    "SGD": lambda: SGD(0.02, momentum=0.9, weight_decay=1e-3),
    "Adam": lambda: Adam(5e-3),
}


RUN = {
    "epochs": 4, "batch": 16, "shift": 1, "seed": 5, "schedule": warmup_cosine(0.2),
    "progress": False,
}  # fmt: skip


def train(network=None, optimizer=None, images=IMAGES, labels=LABELS, **changes):
    """Train a toy network; return it and its history."""
    network = toy() if network is None else network
    optimizer = OPTIMIZERS["Adam"]() if optimizer is None else optimizer
    return network, fit(network, images, labels, optimizer=optimizer, **{**RUN, **changes})


def assert_same_weights(one, other):
    assert one.parameters.keys() == other.parameters.keys()
    for name, array in one.parameters.items():
        assert (array == other.parameters[name]).all(), name


def weights_differ(one, other):
    return any((array != other.parameters[name]).any() for name, array in one.parameters.items())


def break_at(network, call, error):
    """Let the network raise ``error`` in its backward pass number ``call``."""
    layer, calls = network.layers["fc"], itertools.count(1)
    backward = layer.backward

    def broken(grad_out):
        if next(calls) == call:
            del layer.backward
            raise error
        return backward(grad_out)

    layer.backward = broken


def random_gradients(network, steps=4, seed=1):
    rng = np.random.default_rng(seed)
    return [
        {name: rng.standard_normal(array.shape) for name, array in network.parameters.items()}
        for _ in range(steps)
    ]


def set_gradients(network, gradients, convert=lambda array, like: array.astype(like.dtype)):
    for layer_name, layer in network.layers.items():
        layer.gradients = {
            name: convert(gradients[f"{layer_name}.{name}"], like)
            for name, like in layer.parameters.items()
        }


STEPS = math.ceil(len(IMAGES) / RUN["batch"])


def odd_binary_network(seed):
    """A binary network for images of odd sizes: words half full, strides, pools, both paddings."""
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(1, 4)), *map(int, rng.integers(3, 9, 2)))
    layers, now = [("pixels", PixelBytes())], shape
    for number in range(int(rng.integers(1, 4))):
        window = {"stride": int(rng.integers(1, 3)), "padding": int(rng.integers(0, 3))}
        around = 0.0 if number == 0 else float(rng.choice([-1, 1]))
        outputs = int(rng.choice([1, 2, 7, 31, 33, 60, 63, 64, 65, 96, 127, 130]))
        kernel = min(int(rng.integers(1, 4)), *(size + 2 * window["padding"] for size in now[1:]))
        options = {"padding_value": around, "rng": rng}
        stage = [("conv", BinaryConv2d(now[0], outputs, kernel, **window, **options))]
        now = stage[0][1].output_shape(now)
        if rng.random() < 0.3 and min(now[1:]) > 1:
            stage.append(("pool", MaxPool2d(2, stride=1)))
            now = stage[-1][1].output_shape(now)
        if rng.random() < 0.8:
            stage.append(("norm", BatchNorm(outputs)))
        stage += [("sign", Sign()), ("drop", Dropout(0.5))]
        layers += [(f"{name} {number}", layer) for name, layer in stage]
    layers.append(("flatten", Flatten()))
    sizes = [math.prod(now), *([int(rng.choice([5, 33, 100]))] if rng.random() < 0.4 else [])]
    sizes.append(int(rng.integers(2, 11)))
    for number, (features, outputs) in enumerate(itertools.pairwise(sizes)):
        layers += [(f"fc {number}", BinaryLinear(features, outputs, rng=rng))]
        layers += [(f"norm fc {number}", BatchNorm(outputs))] * (rng.random() < 0.5)
        layers += [(f"sign fc {number}", Sign())] * (number < len(sizes) - 2)
    return shaken(Network("odd", layers, shape), seed)


@functools.cache
def _test_set():
    return mnist("test")


def digits(count):
    """The first images of MNIST's test set and what they show; the set is read once."""
    return [array[:count].copy() for array in _test_set()]


def byte_images(rng, count, shape):
    """Images of whole bytes, as mnist() gives them."""
    return rng.integers(0, 256, (count, *shape)).astype(np.float32) / np.float32(255)


def as_bytes(x):
    return np.rint(255 * x).astype(np.uint8)


def reference(x, weight, bias=None, *, stride=1, padding=0, groups=1):
    """The convolution by scipy, one plane at a time, in float64."""
    x, weight = x.astype(np.float64), weight.astype(np.float64)
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    filters, group_channels = weight.shape[:2]
    images = []
    for image in x:
        maps = []
        for k in range(filters):
            first = k // (filters // groups) * group_channels
            planes = [
                signal.correlate(image[first + c], weight[k, c], mode="valid")
                for c in range(group_channels)
            ]
            maps.append(sum(planes)[::stride, ::stride] + (0 if bias is None else bias[k]))
        images.append(maps)
    return np.array(images)


@st.composite
def convolutions(draw, dtypes=(np.float32, np.float64)):
    """(x, weight, bias or None, window) of any shapes that fit together."""
    groups = draw(st.integers(1, 3))
    channels = groups * draw(st.integers(1, 2))
    filters = groups * draw(st.integers(1, 3))
    kernel = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    padding = draw(st.integers(0, 3))
    height, width = (draw(st.integers(max(1, size - 2 * padding), 7)) for size in kernel)
    stride = draw(st.integers(1, 8))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dtype = draw(st.sampled_from(dtypes))
    x = rng.standard_normal((draw(st.integers(1, 3)), channels, height, width)).astype(dtype)
    weight = rng.standard_normal((filters, channels // groups, *kernel)).astype(dtype)
    bias = rng.standard_normal(filters).astype(dtype) if draw(st.booleans()) else None
    return x, weight, bias, {"stride": stride, "padding": padding, "groups": groups}


@st.composite
def whole_vectors(draw):
    """Geometries that compiled loops take in whole vectors; nothing else in them divides evenly."""
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    channels, filters = (16 * draw(st.sampled_from([1, 2, 3, 5])) for _ in range(2))
    kernel = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    window = {"stride": draw(st.integers(1, 3)), "padding": draw(st.integers(0, 3))}
    size = (draw(st.integers(1, 14)), draw(st.integers(1, 14)))
    assume(all(s + 2 * window["padding"] >= k for s, k in zip(size, kernel, strict=True)))
    x_shape = draw(st.integers(1, 3)), groups * channels, *size
    return Geometry(x_shape, (groups * filters, channels, *kernel), groups=groups, **window)


# --- layers -------------------------------------------------------------------------------------


def _rng():
    return np.random.default_rng(0)


# A row for every layer: the tests of all layers read it, on the CPU and on a GPU. What makes it,
# always alike, and the shape of a batch of two.
LAYERS = {
    "Conv2d": (lambda: Conv2d(4, 6, 3, stride=2, padding=1, groups=2, rng=_rng()), (2, 4, 7, 6)),
    "Linear": (lambda: Linear(5, 3, rng=_rng()), (2, 5)),
    "MaxPool2d": (lambda: MaxPool2d(3, stride=2), (2, 4, 9, 7)),
    "MaxPool2d, apart": (lambda: MaxPool2d(2), (2, 3, 8, 6)),
    "LocalResponseNorm": (lambda: LocalResponseNorm(alpha=0.1), (2, 9, 4, 3)),
    "BatchNorm": (lambda: BatchNorm(4), (2, 4, 7, 5)),
    "ReLU": (ReLU, (2, 4, 7, 7)),
    "Flatten": (Flatten, (2, 4, 7, 7)),
    "Dropout": (lambda: Dropout(0.5), (2, 5)),
    "Sign": (Sign, (2, 4, 7, 7)),
    "PixelBytes": (PixelBytes, (2, 1, 7, 7)),
    "BinaryLinear": (lambda: BinaryLinear(5, 3, rng=_rng()), (2, 5)),
    "BinaryConv2d": (lambda: BinaryConv2d(4, 6, 3, padding=1, rng=_rng()), (2, 4, 7, 6)),
}


def layer_and_batch(name):
    """A layer of LAYERS, and float32 values of both signs for it, or pixels from 0 to 1."""
    make, shape = LAYERS[name]
    layer, x = make(), np.random.default_rng(1).standard_normal(shape, dtype=np.float32)
    return layer, (x - x.min()) / np.ptp(x) if isinstance(layer, PixelBytes) else x


# --- number formats -----------------------------------------------------------------------------


FLOATS = [kind for kind in FORMATS.values() if isinstance(kind, FloatFormat)]


@st.composite
def float_formats(draw):
    """Those with a name, and others of one's own."""
    if draw(st.booleans()):
        return draw(st.sampled_from(FLOATS))
    exponent_bits = draw(st.integers(2, 8))
    infinity = exponent_bits == 8 or draw(st.booleans())
    return FloatFormat("own", exponent_bits, draw(st.integers(1, 23)), has_infinity=infinity)


def all_values(kind):
    """Every finite value of a format of few bits, ascending, float64; the two zeros are one."""
    if isinstance(kind, FloatFormat):
        codes = np.arange(2**kind.bits).astype(np.min_scalar_type(2**kind.bits - 1))
        values = Stored(kind, codes).decode(np.float64)
        return np.unique(values[np.isfinite(values)])
    end = 2 ** (kind.bits - 1)
    return np.arange(-end + (not isinstance(kind, FixedPoint)), end) * kind.epsilon


def nearest(exact, kind):
    """A Fraction rounded to a float format, to even where two are equally near; beyond doubt."""
    if not exact:
        return 0.0
    size = abs(exact)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= Fraction(2) ** exponent > size
    step = Fraction(2) ** (max(exponent, 1 - kind.bias) - kind.fraction_bits)
    rounded = round(exact / step) * step  # Python's round() of a Fraction: halves to even
    if abs(rounded) <= kind.largest:
        return float(rounded)
    return (math.inf if exact > 0 else -math.inf) if kind.has_infinity else math.nan


# --- a machine's recording ----------------------------------------------------------------------

HONEST = ("old", "new", "haswell", "gpu")
_PRODUCT = {"rows": 1024, "outputs": 1024, "length": 1024}
# Parts that the first recording lacks; not measured anywhere, but as that machine could have.
_LATER_ROWS = [
    ("GHz", 3.71, {"part": "clock"}),
    *(
        (unit, value * threads, {"part": part, **said, "threads": threads})
        for threads in (1, 2)
        for unit, part, value, said in (
            ("GFLOP/s", "dtypes", 52.1, {"what": "product", "dtype": "float64", "size": 512}),
            ("GFLOP/s", "dtypes", 98.2, {"what": "product", "dtype": "float32", "size": 512}),
            ("GFLOP/s", "binary", 99.3, {"way": "float32", **_PRODUCT}),
            ("GFLOP/s", "binary", 412.0, {"way": "bits", **_PRODUCT}),
            ("GFLOP/s", "binary", 377.0, {"way": "bits, packing counted", **_PRODUCT}),
        )
    ),
    *(
        (unit, value, {"part": "dtypes", "what": what, "dtype": dtype, **said})
        for unit, what, dtype, value, said in (
            ("GFLOP/s", "product", "float16", 0.5193, {"size": 256}),
            ("Gvalues/s", "add", "float64", 0.8123, {"size": 2**24}),
            ("Gvalues/s", "add", "float32", 1.634, {"size": 2**24}),
            ("Gvalues/s", "add", "float16", 0.4321, {"size": 2**24}),
            ("ms", "forward", "float64", 43.21, {"network": "DeepConvNet", "batch": 100}),
            ("ms", "forward", "float32", 19.87, {"network": "DeepConvNet", "batch": 100}),
        )
    ),
]
_GPU_ROWS = [
    ("GB/s", 21.12, {"part": "transfer", "direction": "to_gpu", "bytes": 2**24}),
    ("GB/s", 22.13, {"part": "transfer", "direction": "to_cpu", "bytes": 2**24}),
    ("ms", 0.01234, {"part": "wrong", "what": "no synchronise", "work": "product", "size": 4096}),
    ("ms", 4.567, {"part": "wrong", "what": "right", "work": "product", "size": 4096}),
    ("ms", 212.1, {"part": "wrong", "what": "no warm-up", "work": "own kernel", "size": 4096}),
    ("ms", 23.45, {"part": "chain", "steps": 2000}),
    ("ms", 1.234, {"part": "dtypes", "what": "training", "dtype": "float32", "batch": 1024}),
]


@functools.cache
def honest(kind):
    """A recording that must be accepted: the first one of the course ("old"), with the parts and
    the card of today ("new"), as by a CPU with vectors half as wide ("haswell"), with a "gpu"."""
    old = read_recording(data_folder() / "recordings" / "machine_amd_epyc_2026-11-24.json")
    if kind == "old":
        return old
    rng = np.random.default_rng(0)
    fields = {**vars(old.machine), "lanes": 16, "date": "2026-11-29"}
    if kind == "haswell":
        fields |= {"cpu": "Intel Core", "lanes": 8, "blas": "OpenBLAS 0.3.31 (Haswell)"}
    if kind == "gpu":
        more = {"cupy": "14.0.0", "cuda": "13.0"}
        fields |= {"gpu": "NVIDIA H100 80GB HBM3", "versions": old.machine.versions | more}
    card, rows = MachineCard(**fields), []

    def add(unit, values, conditions):
        samples = tuple(float(f"{value:.4g}") for value in values)
        name = f"{len(rows)} {conditions}"
        rows.append(Measurement(name, unit, samples, Provenance.RECORDED, card, "", conditions))

    for m in old.measurements:
        add(m.unit, m.samples, m.conditions)
    for unit, value, conditions in _LATER_ROWS:
        where = {"device": "cpu", "threads": 1, "warmup": 1}
        add(unit, value * rng.normal(1, 0.01, 9), {**where, **conditions})
    for m in rows[:] if kind == "gpu" else ():
        _on_a_gpu(m, add)
    for unit, value, conditions in _GPU_ROWS if kind == "gpu" else ():
        network = {"network": "DeepConvNet"} if conditions["part"] == "dtypes" else {}
        add(unit, value * rng.normal(1, 0.01, 9), {"device": "gpu", **conditions, **network})
    return Recording(card, "python -m fastdl_lib.course.record --minutes 8", tuple(rows))


def _on_a_gpu(m, add):
    """The same on a GPU of 30 TFLOP/s, where a CPU's algorithm has its like there."""
    there = {key: value for key, value in m.conditions.items() if key != "threads"}
    algorithm = {"auto": "gpu", "winograd": "gpu"}.get(there.get("algorithm"))
    one = m.conditions["threads"] == 1 and there["part"] not in ("ceiling", "dtypes")
    alone = m.conditions["threads"] == 1 and m.unit == "GFLOP/s" and there.get("dtype") != "float16"
    if there["part"] == "clock" or one or alone or there.get("algorithm") == "blocked":
        return
    if algorithm:
        there["algorithm"] = algorithm
    faster = 160 if there["part"] == "sweep" or m.unit == "GFLOP/s" else 60
    faster = {"images/s": 20, "%": 1}.get(m.unit, faster)
    if there.get("dtype") == "float16" and m.unit == "GFLOP/s":
        faster = 1e6
    by = 1 / faster if m.unit == "ms" else faster
    add(m.unit, [by * sample for sample in m.samples], {**there, "device": "gpu"})
