"""Every figure is a real image that says the same in words, with provenance and machine."""

import base64
import dataclasses
import html
import importlib
import inspect
import io
import itertools
import pkgutil
import re
from functools import partial

import matplotlib
import matplotlib.patheffects
import matplotlib.style
import numpy as np
import pytest
from helpers import ceilings, example
from matplotlib import pyplot
from matplotlib.figure import Figure
from PIL import Image

from fastdl_lib import figures
from fastdl_lib.figures import (
    chapter_01,
    chapter_02,
    chapter_03,
    chapter_04,
    chapter_05,
    chapter_06,
    forms,
    picture,
)
from fastdl_lib.figures.forms import Shares
from fastdl_lib.figures.picture import Origin, Picture, origins_of
from fastdl_lib.measuring.costs import KINDS, Ceilings, layer_costs, training_days
from fastdl_lib.measuring.evidence import Column, Measurement, Provenance
from fastdl_lib.measuring.published import PublishedTable
from fastdl_lib.measuring.recordings import Recording
from fastdl_lib.measuring.timing import LayerProfile
from fastdl_lib.nn.zoo import deep_convnet
from fastdl_lib.precision.formats import FLOAT8_E4M3, FLOAT16, FLOAT32, FLOAT64, INT8, FixedPoint
from fastdl_lib.scaling.clusters import Cluster, Job, Ring
from fastdl_lib.scaling.curves import published_curves
from fastdl_lib.scaling.simulator import step_times

CARD = example()
MACHINE = "Measured here: Example CPU, 8 cores"
MEASURED, RECORDED, SIMULATED, COMPUTED, PUBLISHED = Provenance


def measured(name, *samples, unit="ms", **conditions):
    conditions = {"threads": 4, **conditions}
    return Measurement(name, unit, samples, MEASURED, machine=CARD, conditions=conditions)


def told(name, value, unit="ms", device="gpu", provenance=PUBLISHED):
    """A number that no clock here measured."""
    conditions = {"device": device}
    return Measurement(name, unit, (value,), provenance, source="a log", conditions=conditions)


def speed(gflops, name="", threads=1):
    return measured(name, gflops - 1, gflops, gflops + 2, unit="GFLOP/s", threads=threads)


def profile_of(times_ms, batch=4, backward=None):
    """A profile with these times; a layer's kind is its name without the number."""

    def three(times):
        return {name: measured(name, ms - 0.1, ms, ms + 0.3) for name, ms in times.items()}

    kinds = {name: name.rstrip("0123456789") for name in times_ms}
    kinds = {name: kind if kind in KINDS else "other" for name, kind in kinds.items()}
    return LayerProfile("N", batch, kinds, three(times_ms), three(backward or {}))


TIMES = {"conv1": 30.0, "relu1": 4.0, "norm1": 20.0, "pool1": 6.0, "flatten": 0.5, "fc2": 39.5}
FORWARD = profile_of(TIMES)
BY_BATCH = {8: FORWARD} | {
    batch: profile_of({"conv1": conv, "fc2": fc}, batch)
    for batch, conv, fc in ((1, 3.0, 3.1), (2, 1.0, 1.0), (64, 99.0, 1.0))
}
TRAINING = profile_of(TIMES, backward={name: 2 * ms for name, ms in TIMES.items()})


def table(column, unit, rows):
    return PublishedTable(
        "t", "Shares", "A thesis; with a note", "", "Figure 1", "labels", (), {"READ": ""},
        (Column("layer"), Column(column, unit=unit)),
        tuple({"layer": layer, column: value, "tag": "READ"} for layer, value in rows.items()),
    )  # fmt: skip


FIGURE = table("share_pct", "%", {"conv1": 60.5, "conv2": 29.5, "fc6": 8.0})
LOG = table("forward_ms", "ms", {"conv1": 30.0, "data": 10.0})
SHARES = [Shares.of_profile("this machine", FORWARD)]
SHARES += [Shares.of_published("GPU, 2014", FIGURE, "share_pct")]


def deep_profile():
    network = deep_convnet()
    profile = profile_of({name: 1.0 + place for place, name in enumerate(network.layers)})
    costs = layer_costs(network, 4)
    kinds = {cost.name: cost.kind for cost in costs}
    return dataclasses.replace(profile, kinds=kinds), costs, ceilings()


ONE = {"threads": 1}
LOOPS = Measurement("loops", "GFLOP/s", (0.02,), COMPUTED, source="a piece", conditions=ONE)
SPEEDS = {
    ("Python loops", "conv1", 1): LOOPS,
    ("im2col", "conv1", 1): speed(80.0),
    ("im2col", "conv1", 4): speed(250.0, threads=4),
    ("im2col", "conv2", 1): speed(70.0),
}
RUNGS = {
    "conv3": [dataclasses.replace(LOOPS, name="Python loops"), speed(80.0, "NumPy")],
    "AlexNet": [speed(60.0, "NumPy"), told("GPU", 6000.0, "GFLOP/s")],
}
SWEEP = {
    "this CPU": {n: measured("p", ms) for n, ms in ((1024, 8.0), (16, 0.001), (64, 0.004))},
    "H100": {n: told("p", ms, provenance=SIMULATED) for n, ms in ((16, 0.005), (1024, 0.05))},
}
IMAGES, WEIGHTS, KEPT = (told("a", ms, provenance=COMPUTED) for ms in (5.0, 8.0, 0.0))
MOVES = {
    "forward": {"computing": told("a", 27.0), "images": IMAGES, "weights": WEIGHTS},
    "training": {"computing": told("a", 81.0), "images": IMAGES, "weights": KEPT},
}
DAYS = {
    "here": [training_days(measured("this CPU", 31.0, 32.0, 34.0, unit="images/s"))],
    "slide": [told("Titan", 6.0, "days"), told("Xeon", 43.0, "days", "cpu")],
}
RATIOS = {
    "here, against BLAS": [measured("NumPy", 0.3, unit="x"), measured("Numba", 1.5, 1.7, unit="x")],
    "a paper": [told("against a naive kernel", 23.0, "x")],
}
SCALING = step_times(
    Cluster(nodes=4, between_gb_per_s=1, between_latency_s=0.0),
    Job(name="a job", gradient_bytes=1e9, step_s=1.0, batch=8), Ring(), [1, 2, 4],
)  # fmt: skip
SPEEDUPS = [
    ("TensorFlow", (1, 8, 100), (1.0, 8.0, 56.0), PUBLISHED, "Figure 8-16"),
    ("a model", (1, 8, 100), (1.0, 7.5, 52.5), SIMULATED, "17 servers"),
]
SIZES = {"gradients": np.array([0.0, 0.0, 2.0**-25, 1.5 * 2.0**-25, -(2.0**-20), 1e5, 3.0, 3.0])}
ACCURACIES = {
    ("noise", "log"): {"pixels": ([0.01, 0.1, 1.0], [99.0, 98.0, 40.0])},
    ("scale", "log"): {"all": ([2.0**-24, 1.0, 2.0**18], [9, 99, 9])},
}
PICTURES = {
    "pixels": np.arange(8.0).reshape(2, 2, 2) % 4,
    "latent weights": np.array([[[0.5, -0.25]], [[0.0, 0.125]]]),
    "binary weights": np.array([[[1, -1], [1, 1]], [[1, 1], [-1, 1]]]),
}
SIZE_ROWS = [("float32", 320_000, 100, 10_000), ("binary", 10_000, 200, 10_000)]
TRIALS = [
    chapter_02.Trial(measured("conv2, im2col", 4.0), 62.0, 3e-7),
    chapter_02.Trial(measured("conv2, winograd", 2.0), 0.0, 0.0),
]

# A figure, what it is drawn from, and what its words and its caption must hold.
FIGURES = [
    (forms.roofline, (
         Ceilings(speed(100.0, threads=4), measured("b", 10.0, unit="GB/s", threads=1)),
         [("copy", 0.125, speed(1.2)), ("product", 170.0, speed(95.0), "conv")]),
     "10.0 GB/s", "10.0 FLOP per byte", "100 GFLOP/s", "copy: 1.20 GFLOP/s at 0.125 FLOP",
     MACHINE, "product on 4 threads", "copy on 1 thread"),
    (forms.guess_and_truth,
     ("share", "%", 50.0, measured("m", 58, 59, 61, unit="%"), told("GPU, 2014", 92.1, "%")),
     "your guess 50 %", "this machine 59.0 %", "GPU, 2014 92.1 %", MACHINE, "GPU, 2014: a log"),
    (forms.image_row, (np.zeros((2, 3, 9, 9)), ["a cat", "a cup"], "a photographer, CC0"),
     "2 images of 9x9 pixels", "a cat", "a cup", "Published: a photographer, CC0"),
    (forms.share_pies, (SHARES, "batch 4"),
     "this machine (measured here): convolution 30.0 %, fully connected 39.5 %",
     "normalisation 20.0 %", "GPU, 2014 (published): convolution 90.0 %",
     MACHINE, "Published: A thesis |", "batch 4"),
    (forms.samples_strip, ([measured("fair", 10.0, 11.0, 12.0), measured("shot", 44.0)],),
     "fair: median 11.0 ms, from 10.0 to 12.0, 1.00 times",
     "shot: median 44.0 ms, from 44.0 to 44.0, 4.00 times the first", MACHINE),
    (forms.measured_bars, (DAYS, "slide: NVIDIA"),
     "here, this CPU: 41.7 days (computed from 32.0 images/s, measured here)",
     "slide, Titan: 6.00 days (published)",
     MACHINE, "Computed: from 32.0", "Published: a log", "slide: NVIDIA"),
    (partial(forms.measured_bars, start=1, xlabel="times"), (RATIOS,),
     "here, against BLAS, NumPy: 0.300x (measured here)",
     "a paper, against a naive kernel: 23.0x (published)", MACHINE, "Published: a log"),
    (forms.ladder, (RUNGS, "Titan X: a log"),
     "conv3, GFLOP/s: Python loops 0.0200 (computed), 1.00x; NumPy 80.0 (measured here), ",
     "4,000x", "AlexNet, GFLOP/s: NumPy 60.0 (measured here), 1.00x; GPU 6,000 (published)",
     MACHINE, "Titan X: a log"),
    (forms.loss_curves,
     ({"float16": [2.0, 1.5, 1.0], "diverges": [2.0, np.nan, np.nan]}, CARD, "SGD"),
     "float16: from 2 to 1 after 3 steps",
     "diverges: from 2 to 2 after 1 step, not finite from step 2 on", MACHINE, "SGD"),
    (chapter_01.share_bars, (SHARES, "batch 4"),
     "this machine (measured here): convolution 30.0 %", "(published): convolution 90.0 %",
     MACHINE, "Published: A thesis |", "batch 4"),
    (chapter_01.cost_shares, (layer_costs(deep_convnet()),),
     "share of the parameters, %: convolution 58.1, fully connected 41.9", "share of the MACs",
     "Computed: counted from the layers' shapes"),
    (chapter_01.layer_bars, (TRAINING,), "batch 4", "conv1 90.0 ms", "flatten 1.50",
     "fc2 118 ms",
     MACHINE, "batch 4, BLAS on 4 threads, 3 passes"),
    (chapter_01.roofline_against_measured, deep_profile(),
     "Measured time over roofline time: conv1 ", "fc2 ", MACHINE, "batch 4"),
    (chapter_01.waterfall, ({"conv1": {"ceiling": 10.0, "copying": 25.0, "rest": -5.0}}, TRAINING),
     "conv1 30.0 ms: ceiling 10.0, copying 25.0, rest -5.0", MACHINE, "batch 4"),
    (chapter_01.batch_sweep, (BY_BATCH,), "batch 8: 12.5 ms",
     "batch 1: 6.1 ms, convolution 49 %, fully connected 51 %", MACHINE, "BLAS on 4 threads"),
    (partial(chapter_02.patch_matrix, size=4, pixel=6), (3, 2, 1, 2),
     "A 4x4 image and its patches of 3x3 pixels, stride 2, padding 1: 4 patches",
     "9x4 matrix, 2.2 times the pixels", "Column 2 holds the pixels 0, 0, 0, 2, 3, 4, 6, 7",
     "Pixel 6 stands 4 times in the matrix", "Computed: counted", "0 is padding"),
    (chapter_02.memory_bars, ({"conv2": (2.0, 50.0, 62.0, 61.0)}, CARD, "8 images"),
     "conv2: input 2.00 MB, patches 25.0 times that", "62.0 MB (computed)", "61.0 MB (mea",
     MACHINE, "8 images"),
    (chapter_02.race, (SPEEDS, {1: speed(100.0), 4: speed(390.0, threads=4)}),
     "Python loops: conv1 0.0200; im2col: conv1 80.0 / 250 conv2 70.0",
     "product ceiling, 1 thread: 100; product ceiling, 4 threads: 390",
     MACHINE, "Computed: a piece"),
    (chapter_02.parts_of_times, ({"NumPy": [measured("in", 3.0), measured("products", 7.0)],
                                  "tiles": [measured("products", 4.0)]}, "8 images"),
     "NumPy, ms: in 3.00, products 7.00; together 10.0. tiles, ms: products 4.00; together 4.00",
     MACHINE, "8 images"),
    (chapter_02.error_against_speed,
     ([speed(80.0, "im2col"), speed(110.0, "F(2, 3)")], [4e-7, 2e-6]),
     "im2col: 80.0 GFLOP/s, error 4.0e-07; F(2, 3): 110 GFLOP/s, error 2.0e-06",
     MACHINE, "run on 1 thread"),
    (chapter_02.trials, (TRIALS,), "conv2, winograd: time of an image, ms 2.00; peak memory on ",
     "MB 62.0; largest error, relative 3e-07", MACHINE, "run on 4 threads"),
    (partial(chapter_03.size_sweep, cpu_wins_to=64), (SWEEP, "H100: a model"),
     "this CPU (measured here): 16: 0.00100, 64: 0.00400, 1024: 8.00",
     "H100 (simulated): 16: 0.00500, 1024: 0.0500", "the CPU is ahead up to 64",
     MACHINE, "Simulated: a log", "H100: a model"),
    (chapter_03.transfer_bars, (MOVES, "a bus"),
     "forward: computing 27.0, images 5.00, weights 8.00; 40.0 ms, 32 % of it on the way",
     "training: computing 81.0, images 5.00, weights 0; 86.0 ms, 6 % of it on the way",
     "Published: a log", "Computed: a log", "a bus"),
    (chapter_04.all_reduce_steps, ("ring", 3), "ring: 4 steps, 1.33 times the gradients' bytes",
     # After n - 1 steps each worker holds one chunk that is complete.
     "1/1/1; 2/2/2; 3/3/3 | 1/1/13; 12/2/2; 3/23/3 | 1/all/13; 12/2/all; all/23/3 | ",
     "At the end they hold: all/all/all; all/all/all; all/all/all",
     "Computed: gradients in 3 chunks", "framed: it has just arrived"),
    (partial(chapter_04.all_reduce_steps, shown=1), ("tree", 4), "tree: 4 steps, 4.00 times the",
     "they hold the sums of: 1; 2; 3; 4. At the end they hold: 12; 2; 34; 4", "Computed"),
    (chapter_04.overlap_timeline,
     ([("forward", 7.0, 7.001), ("backward", 7.001, 7.0055), ("link", 7.002, 7.004),
       ("link", 7.0055, 7.007)], CARD, "a note"),
     "3.50 ms of sending, the end 1.50 ms after that of computing",
     "backward: 1.0 to 5.5 ms. link: 2.0 to 4.0, 5.5 to 7.0 ms", MACHINE, "red: messages"),
    (chapter_04.prediction_scatter, ({"a curve": published_curves()[-1:]}, "a note"),
     "a curve, published and predicted: 100: 94, 100: 93, 100: 92, 94: 89, 80: 76, 56: 52",
     "Simulated: blind", "a note"),
    (chapter_04.scaling_lines, (SPEEDUPS, "a note"),
     "TensorFlow (published): 1: 100, 8: 100, 100: 56.0; speed-up at the end 56.0",
     "a model (simulated)", "100: 52.5",
     "Published: Figure 8-16", "Simulated: 17 servers", "a note"),
    (chapter_04.step_parts, (SCALING, "a ring"),
     "1 workers: computing 1.00 s, waiting 0 s, communicating 0 s, speed-up 1.00",
     "Simulated: a job", "a ring"),
    (chapter_05.bit_layout, (FLOAT16, 0.1),
     "0.1 as float16 is 0.0999755859375. Bits: 0 01011 1001100110",
     "(-1)^0 x 2^(11 - 15) x 1.59960938", "error: -2.44e-05, 0.0244 % of it",
     "Computed: float16 has 1 bit of sign, 5 of exponent (bias 15), 10 of fraction"),
    (chapter_05.format_ranges, ([FLOAT32, FLOAT16, FixedPoint(8, 8)],),
     "float16, 16 bits: 5.96e-08 to 65504, 10 fraction bits: 3.3 digits",
     "fixed<8,8>, 16 bits: 0.00391 to 127.996, steps of 0.00390625", "Computed: from"),
    (chapter_05.magnitude_histogram, (SIZES, [FLOAT16, INT8], CARD, "a batch"),
     "gradients: 25.0 % are 0, the others from 2^-25 to 2^17",
     "of these 16.7 % become 0 in float16 and 16.7 % lie beyond its largest", MACHINE, "a batch"),
    (chapter_05.accuracy_lines, (ACCURACIES, CARD, "2,000 images"),
     "pixels, %, by noise: 0.01: 99.0, 0.1: 98.0, 1: 40.0",
     "all, %, by scale: 2^-24: 9.00, 1: 99.0, 2^18: 9.00", MACHINE, "2,000 images"),
    (chapter_06.sign_gradient, (), "1 where |x| <= 1, 0 beyond", "Computed: sign(0) is +1"),
    (chapter_06.sign_pictures, (PICTURES, ["unit 3", "unit 5"], CARD, "MNIST"),
     "Pictures of unit 3, unit 5. pixels: from 0 (black) to 3 (white)",
     "latent weights: from -0.25 to 0.5", "binary weights: 75.0 % are +1, the others -1",
     MACHINE, "MNIST"),
    (chapter_06.popcount_steps, ("10110100", "11100110"),
     "a is 10110100, b is 11100110", "+1, -1, +1, -1, +1, +1, -1, +1 add up to 2",
     "XNOR is 10101101, with 5 ones of 8: 2 x 5 - 8 = 2", "Computed"),
    (chapter_06.size_accuracy, (SIZE_ROWS, CARD, "all of MNIST"),
     "float32: 320 kB, 100 of 10,000 wrong, 1.00 %",
     # Of 10,000 images 2 % wrong: a standard deviation of 14 images.
     "binary: 10.0 kB (32.0x smaller), 200 of 10,000 wrong, 2.00 % (by chance 1.73 to 2.27)",
     MACHINE, "all of MNIST"),
]  # fmt: skip
A_STRIP = next(row for row in FIGURES if row[0] is forms.samples_strip)


def plain(function):
    """The figure function itself, without the options that the list gives it."""
    return getattr(function, "func", function)


TITLED = {chapter_02.patch_matrix, chapter_04.all_reduce_steps, chapter_05.bit_layout}
TITLED |= {forms.guess_and_truth, chapter_04.overlap_timeline}


def draw(function, *arguments):
    return function(*arguments, **({} if plain(function) in TITLED else {"title": "A title"}))


# What a learner may have set; without LaTeX, usetex alone would stop every figure.
LEARNERS_STYLE = ["dark_background", {
    "text.usetex": True, "font.size": 30, "font.family": ["No Such Font"], "hatch.linewidth": 9,
    "figure.dpi": 3000, "savefig.dpi": 3000, "savefig.bbox": "tight", "savefig.transparent": True,
    "savefig.format": "pdf", "axes.grid": True, "figure.constrained_layout.h_pad": 3,
    "path.sketch": (1, 100, 2), "path.effects": [matplotlib.patheffects.Normal()],  # as xkcd()
}]  # fmt: skip


@pytest.fixture(scope="module", params=FIGURES, ids=lambda row: plain(row[0]).__name__)
def figure(request):
    """A figure built and saved in a learner's style, what its words must hold, and its texts'
    boxes in the image."""
    function, arguments, *words = request.param
    boxes = {}
    with matplotlib.style.context(LEARNERS_STYLE), pytest.MonkeyPatch.context() as patch:
        before = dict(matplotlib.rcParams)
        drawn = draw(function, *arguments)
        write = matplotlib.text.Text.draw

        def draw_text(text, renderer):
            if text.get_visible() and text.get_text().strip():
                boxes[text] = text.get_text(), text.get_window_extent(renderer)
            write(text, renderer)

        patch.setattr(matplotlib.text.Text, "draw", draw_text)
        drawn.png  # noqa: B018
        assert dict(matplotlib.rcParams) == before
    return drawn, words, list(boxes.values())


def test_every_public_figure_is_tried_here():
    names = [module.name for module in pkgutil.iter_modules(figures.__path__)]
    modules = [importlib.import_module(f"{figures.__name__}.{name}") for name in names]
    public = {
        f
        for module in modules
        for name, f in vars(module).items()
        if inspect.isfunction(f) and f.__module__ == module.__name__ and name[0] != "_"
    }
    untold = [f.__name__ for f in public if "return" not in f.__annotations__]
    assert not untold, "a function says what it returns: -> Picture"
    drawing = {f for f in public if f.__annotations__["return"] is Picture}
    drawing.remove(forms.shares_picture)  # what drawn functions share
    undecorated = [f.__name__ for f in drawing if not hasattr(f, "__wrapped__")]
    assert not undecorated, "decorate it with @drawn()"
    assert {plain(row[0]) for row in FIGURES} == drawing, "give it a row"


def test_the_image_is_real_and_words_caption_and_title_say_what_it_shows(figure):
    drawn, words, boxes = figure
    image = Image.open(io.BytesIO(drawn.png))
    size = drawn.figure.get_size_inches() * picture.DOTS_AN_INCH
    assert image.format == "PNG" and image.size == pytest.approx(tuple(size), abs=1)
    # White, and something was drawn in the middle, not only a caption below.
    pixels = np.asarray(image.convert("L"))
    assert (pixels[image.height // 4 : -image.height // 4] < 250).mean() > 0.01
    assert pixels[0, 0] == pixels[-1, -1] == 255
    said = drawn.alt + "\n" + drawn.caption
    assert not [part for part in words if part not in said], said
    shown = " ".join(" ".join(text.split()) for text, _ in boxes)
    assert drawn.title and drawn.title in shown and " ".join(drawn.caption.split()) in shown
    assert any(axes.get_xlabel() or axes.get_title() for axes in drawn.figure.axes)
    # Hatching that is drawn is explained.
    for axes in drawn.figure.axes:
        for hatch in {patch.get_hatch() for patch in axes.patches} - {"", None, "\\\\"}:
            (provenance,) = (p for p, h in picture.HATCH.items() if h == hatch)
            assert str(provenance) in f"{said} {shown}".lower()


def test_nothing_is_cut_off_and_no_labels_collide(figure):
    drawn, *_, boxes = figure
    width, height = drawn.figure.get_size_inches() * picture.DOTS_AN_INCH
    labels = {text.get_text() for axes in drawn.figure.axes for text in axes.texts} - {""}
    assert labels <= {text for text, _ in boxes}, "a label lies outside of its axes' range"
    for text, box in boxes:
        assert box.x0 > -2 and box.y0 > -2 and box.x1 < width + 2 and box.y1 < height + 2, text
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        across = min(a.x1, b.x1) - max(a.x0, b.x0)
        down = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert across < 2 or down < 0.25 * min(a.height, b.height), f"{one!r} on {other!r}"


def test_a_picture_shows_itself_in_a_notebook(monkeypatch):
    shown = []
    monkeypatch.setattr(picture, "display", lambda data, **options: shown.append((data, options)))
    drawn = draw(chapter_06.sign_gradient)
    drawn._ipython_display_()
    (image, options), (words, _) = shown
    assert base64.b64decode(image["image/png"]) == drawn.png and image["text/plain"] == drawn.alt
    assert options["metadata"]["image/png"] == {"alt": drawn.alt, "width": drawn.width_px}
    assert html.escape(drawn.alt) in words["text/html"]


def test_no_style_and_no_backend_changes_an_image():
    """Set before a figure is built, or between building and saving it; no figure stays open."""
    function, arguments, *_ = A_STRIP
    early, image = draw(function, *arguments), draw(function, *arguments).png
    backend = matplotlib.get_backend()
    try:
        pyplot.switch_backend("svg")
        with matplotlib.style.context(LEARNERS_STYLE), pyplot.ion():
            assert draw(function, *arguments).png == image == early.png
    finally:
        pyplot.switch_backend(backend)
    assert not pyplot.get_fignums()


def test_a_dollar_is_a_dollar():
    """Two of them in a name make no formula, nor does one with a backslash fail."""
    named = measured(r"$5 to \$6 or $\frac", 1.0)
    drawn = forms.samples_strip([named], "$x$", title="from $1 to $2")
    drawn.png  # noqa: B018
    texts = [t for t in drawn.figure.findobj(matplotlib.text.Text) if "$" in t.get_text()]
    assert len(texts) >= 3 and not any(text.get_parse_math() for text in texts)
    # A reader's own figure may have formulas, and logarithmic axes that matplotlib labels.
    figure, axes = picture.canvas(5, 3)
    axes.loglog([1, 1e6], [1, 1e6])
    Picture(figure, "$1 or $2", [Origin(COMPUTED)], "a line").png  # noqa: B018
    assert all(label.get_parse_math() for label in [*axes.get_xticklabels(), axes.title])


@pytest.mark.filterwarnings("error")
def test_long_texts_and_names_take_no_room_from_the_axes():
    _, (measurements,), *_ = A_STRIP
    heights = []
    for word in ("", "long ", "WIDE ", "W", "i"):
        drawn = forms.samples_strip(measurements, word * 400, title=word * 300)
        drawn.figure.draw_without_rendering()
        heights.append(drawn.figure.axes[0].get_window_extent().height)
        assert max(text.get_window_extent().x1 for text in drawn.figure.texts) < 900
    assert heights == pytest.approx(heights[:1] * 5, rel=0.05)
    name = "a name that somebody chose and that says all there is to say " * 3
    lines = {name[:90]: {1: measured("a", 1.0)}, name[1:90]: {1: measured("b", 2.0)}}
    for drawn in (
        forms.samples_strip([measured(name, 1.0)], title="T"),
        forms.loss_curves({name: [1.0, 2.0]}, CARD, title="T"),
        chapter_03.size_sweep(lines, title=""),
    ):
        drawn.figure.draw_without_rendering()
        assert drawn.figure.axes[0].get_window_extent().width > 200
        for legend in drawn.figure.legends:
            box = legend.get_window_extent()
            assert 0 < box.x0 < box.x1 < drawn.figure.bbox.width


def test_origins_name_each_machine_whose_clock_ran_once_and_the_sources():
    other = dataclasses.replace(CARD, cpu="Other CPU")
    recorded = dataclasses.replace(speed(90.0), provenance=RECORDED, machine=other)
    own, replayed, computed, published = map(
        str, origins_of([speed(1.0), LOOPS, recorded, speed(2.0), told("a", 1.0)])
    )
    assert own.startswith(MACHINE) and replayed.startswith("Recorded: Other CPU, 8 cores")
    assert (computed, published) == ("Computed: a piece", "Published: a log")
    many = [dataclasses.replace(LOOPS, source=f"source {i} " * 5) for i in range(9)]
    (origin,) = origins_of(many)
    assert origin.where.startswith("source 0 ") and origin.where.endswith("; and 4 more")
    (origin,) = origins_of([dataclasses.replace(LOOPS, source="a long title " * 40)])
    assert origin.where.endswith(" title a ...") and len(origin.where) <= 240
    gain = dataclasses.replace(LOOPS, machine=CARD)
    assert str(origins_of([gain])[0]).startswith("Computed: a piece; Example CPU")


# --- shares -------------------------------------------------------------------------------------


def test_shares_are_of_a_profile_a_published_table_or_a_recording():
    own, figure = SHARES
    kinds = (["conv"], ["conv", "fc"], KINDS, [])
    assert [own.of_kind(*some) for some in kinds] == pytest.approx([30, 69.5, 100, 0])
    assert [kind for _, kind, _ in own.parts()] == list(KINDS)
    assert figure.of_kind("conv") == 90  # as published, not scaled to 100
    assert figure.parts()[2:] == [("fc6", "fc", 8), ("unlabelled", "other", pytest.approx(2.0))]
    times = Shares.of_published("a log", LOG, "forward_ms")
    assert times.percent == {"conv1": 75.0, "data": 25.0}
    assert [part[:2] for part in times.parts()] == [("conv1", "conv"), ("data", "other")]
    runs = []
    for code, layer, kind, ms in (
        ("numpy", "conv1", "conv", 3.0), ("numpy", "fc6", "fc", 1.0), ("torch", "x", "fc", 9.0)
    ):  # fmt: skip
        run = measured(f"{code} {layer}", ms, implementation=code, layer=layer, kind=kind)
        runs.append(dataclasses.replace(run, provenance=RECORDED))
    recording = Recording(CARD, "make shares", tuple(runs))
    words = Shares.of_recording("as a rule", recording, "numpy").in_words()
    assert words == "as a rule (recorded): convolution 75.0 %, fully connected 25.0 %"
    with pytest.raises(ValueError, match="has implementation='caffe'; there is"):
        Shares.of_recording("recorded", recording, "caffe")


def test_a_layer_of_an_own_kind_is_drawn_as_another():
    times = {"conv1": 3.0, "mix1": 1.0}
    own = dataclasses.replace(profile_of(times), kinds={"conv1": "conv", "mix1": "attention"})
    shares = Shares.of_profile("own", own)
    assert shares.in_words().endswith("convolution 75.0 %, other 25.0 %")
    for drawn, words in (
        (draw(chapter_01.layer_bars, own), "mix1 1.00 ms"),
        (draw(chapter_01.batch_sweep, {4: own}), "convolution 75 %"),
        (draw(forms.share_pies, [shares]), "other 25.0 %"),
        (draw(chapter_01.share_bars, [shares]), "other 25.0 %"),
    ):
        assert words in drawn.alt and drawn.png


# --- single figures -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("figure", "words"),
    [
        ((forms.samples_strip, [measured("a", 1.0), measured("b", 0.13)]), "0.13 times the first"),
        ((forms.samples_strip, [measured("a", 1.0), measured("b", 99)]), "99.00 times the first"),
        ((forms.samples_strip, [measured("a", 1.0), measured("b", 8e-4)]), "0.000800 times the f"),
        ((forms.samples_strip, [measured("a", 1.0), measured("b", 3452)]), "3,450 times the first"),
        ((chapter_02.patch_matrix, 3, 1, 0, 1), "Column 1 holds the pixels 1, 2, 3, 6, 7, 8"),
        # A patch past the last stands for the last.
        ((chapter_02.patch_matrix, 3, 1, 0, 99), "Column 9 holds the pixels 13, 14, 15, 18"),
        ((chapter_02.race, {("b", "c", 0): speed(8.0)}, {0: speed(9.0)}),
         "b: c 8.00; product ceiling, an unknown number of threads: 9.00"),
        ((chapter_05.magnitude_histogram, {"g": np.zeros(5)}, [FLOAT16], CARD), "100.0 % are 0"),
        ((forms.loss_curves, {"a": [*range(100), np.inf, 5.0]}, CARD),
         "from 0 to 98.5 after 100 steps, not finite from step 101 on"),
        ((forms.loss_curves, {"a": [np.nan, 5.0]}, CARD), "a, not finite from step 1 on"),
    ],
)  # fmt: skip
def test_a_figure_says_in_words(figure, words):
    assert words in draw(*figure).alt


def test_a_logarithmic_axis_has_dots_which_begin_nowhere():
    runs = [measured("a", 1.0), told("b", 100.0), told("c", 9.0, provenance=COMPUTED)]
    for drawn in (
        draw(forms.measured_bars, {"g": runs}),
        draw(forms.ladder, {"g": runs}),
    ):
        axes, (legend,) = drawn.figure.axes[0], drawn.figure.legends
        assert not axes.patches and {"o", "d"} < {line.get_marker() for line in axes.lines}
        assert {"measured here", "published", "computed"} <= {t.get_text() for t in legend.texts}
    assert draw(partial(forms.measured_bars, start=1.0), {"g": runs}).figure.axes[0].patches, (
        "of a ratio"
    )


def test_a_number_with_few_digits_is_written_with_no_more():
    read_off = Measurement.published("Titan", "days", 6.0, "a slide", digits=2)
    assert "Titan: 6 days (published)" in draw(forms.measured_bars, {"g": [read_off]}).alt


def test_a_guess_is_compared_with_a_measurement_only_where_one_was_made():
    for truth, words in (
        (measured("a", 3.0), "guess and measurement"),
        (told("b", 3.0, provenance=COMPUTED), "guess and computed number"),
    ):
        assert forms.guess_and_truth("gain", "ms", 4.0, truth).title == f"gain: {words}"


def test_a_guess_over_decades_stands_on_all_of_them():
    for guess, text in ((20000.0, "your guess 20,000 x"), (None, "this machine 3.00 x")):
        truth = measured("gain", 3.0, unit="x")
        drawn = forms.guess_and_truth("gain", "x", guess, truth, decades=(1.0, 1e5))
        axes = drawn.figure.axes[0]
        assert axes.get_xscale() == "log" and axes.get_xlim() == pytest.approx((1 / 1.2, 1.2e5))
        assert text in drawn.alt
    counted = Measurement.measured("layers", "x", 2, machine=CARD, digits=1)
    assert "this machine 2 x" in forms.guess_and_truth("layers", "x", 1.0, counted).alt


def test_lines_that_end_together_have_one_leader():
    curves = {"a": [2.0, 1.0], "b": [2.0, 1.0], "c": [2.0, 2.0]}
    axes = draw(forms.loss_curves, curves, CARD).figure.axes[0]
    assert sum(text.arrow_patch is not None for text in axes.texts) == 2


def test_the_line_of_a_baseline_does_not_cross_headings():
    groups = {"one": [measured("a", 2.0, unit="x")], "two": [measured("b", 0.5, unit="x")]}
    axes = draw(partial(forms.measured_bars, start=1.0), groups).figure.axes[0]
    spans = [path.vertices[:, 1] for lines in axes.collections for path in lines.get_paths()]
    headings = [text.get_position()[1] for text in axes.texts if text.get_text() in groups]
    assert len(spans) == len(headings) == 2
    assert not any(low <= place <= high for low, high in spans for place in headings)


def test_histograms_with_one_reach_have_one_axis():
    drawn = [
        draw(
            partial(chapter_05.magnitude_histogram, reach=(-40, 30)),
            {"g": np.array([1.0, size])}, [FLOAT16], CARD,
        )
        for size in (2.0, 2.0**25)
    ]  # fmt: skip
    assert len({picture.figure.axes[0].get_xlim() for picture in drawn}) == 1


@pytest.mark.parametrize(
    ("number_format", "value", "bits", "words"),
    [
        (FLOAT16, 1.0, "0 01111 0000000000", "(-1)^0 x 2^(15 - 15) x 1 = 1. asked: 1"),
        (FLOAT16, -(2.0**-24), "1 00000 0000000001", "x 2^(1 - 15) x 0.0009765625"),
        (FLOAT16, 1e-8, "0 00000 0000000000", "exponent and fraction all zeros: 0. "),
        (FLOAT16, -1e6, "1 11111 0000000000", "fraction 0: -infinity. asked: -1000000 "),
        (FLOAT16, float("nan"), "0 11111 1000000000", "fraction not 0: NaN"),
        (FLOAT8_E4M3, 1e3, "0 1111 111", "fraction all ones: NaN, not a number"),
        (FLOAT8_E4M3, 448.0, "0 1111 110", "x 2^(15 - 7) x 1.75 = 448"),
        (FLOAT32, 0.1, "0 01111011 10011001100110011001101", "error: 1.49e-09"),
        # Bits as such, or with the number that was meant.
        (FLOAT16, "0110111001100110", "0 11011 1001100110", " 1001100110 in float16 is 6552"),
        (FLOAT16, ("0 11011 1001100110", 0.1), "0 11011 1001100110",
         "0.1 as float16 with bit 14 flipped is 6552. "),
        (FLOAT16, ("0 11011 1001100110", 0.1), "0 11011 1001100110", "65,500 times what was asked"),
    ],
)  # fmt: skip
def test_a_bit_layout_decodes_any_number(number_format, value, bits, words):
    value, asked = value if isinstance(value, tuple) else (value, None)
    drawn = chapter_05.bit_layout(number_format, value, asked=asked)
    assert f"Bits: {bits}. " in drawn.alt and words in drawn.alt


CURVES = {f"line {i}": [1.0] for i in range(8)}
BITS = "two texts of 2 to 16 characters 0 or 1"


def caption(origins, title="T", alt="words"):
    return Picture(Figure(), title, origins, alt)


@pytest.mark.parametrize(
    ("function", "arguments", "error", "message"),
    [
        *((caption, (none,), ValueError, "the figure 'A title' does not say where its numbers")
          for none in ([], "computed", [("computed", "counted")], None)),
        (caption, ([Origin(MEASURED)],), ValueError, "'A title': measured here needs a machine"),
        (caption, ([Origin(PUBLISHED)],), ValueError, "'A title': published needs its source"),
        (partial(caption, alt=" "), ([Origin(COMPUTED)],), ValueError, "'A title': alt is empty"),
        (caption, ([Origin("guessed")],), ValueError, "'guessed' is not a valid Provenance"),
        (forms.loss_curves, (CURVES, CARD), ValueError, "1 to 7 lines can be told apart, got 8"),
        (forms.measured_bars, ({},), ValueError, "measured_bars: groups is empty; there is noth"),
        (forms.loss_curves, ({"a": [1.0, None]}, CARD), ValueError,
         "loss_curves: curves['a'][1] is None; leave out what there is no value of"),
        (forms.ladder, ({"conv3": []},), ValueError, "ladder: panels['conv3'] is empty"),
        (forms.samples_strip, ([],), ValueError, "samples_strip: measurements is empty"),
        (forms.image_row, (np.zeros((0, 3, 9, 9)), ["a"], CARD), ValueError, "images is empty"),
        (chapter_01.cost_shares, ([],), ValueError, "costs is empty"),
        (chapter_02.error_against_speed, ([speed(80.0)], [np.nan]), ValueError,
         "error_against_speed: errors[0] holds infinite values or NaN"),
        (chapter_04.step_parts, (dataclasses.replace(SCALING, waiting_s=np.full(3, np.inf)),),
         ValueError, "step_parts: scaling.step_s holds infinite values"),
        (chapter_06.sign_pictures, ({"w": np.full((1, 2, 2), np.nan)}, ["a"], CARD), ValueError,
         "sign_pictures: rows['w'] holds infinite values or NaN, which have no place"),
        (forms.measured_bars, ({"g": [measured("a", 0.0)]},), ValueError, "above 0"),
        (forms.measured_bars, ({"g": [measured("a", 3.0), measured("b", 1.0, unit="x")]},),
         ValueError, "of one unit, got ['ms', 'x']"),
        (chapter_02.patch_matrix, (6,), ValueError, "does not fit"),
        (chapter_05.bit_layout, (INT8, 1.0), TypeError, "int8 has no exponent"),
        (chapter_05.bit_layout, (FLOAT64, 1.0), ValueError, "float64 has 64 bits; 32 at most"),
        (chapter_05.bit_layout, (FLOAT16, "0101"), ValueError, "float16 has 16 bits"),
        (chapter_05.magnitude_histogram, ({"g": np.array([1, np.inf])}, [FLOAT16], CARD),
         ValueError, "groups['g'] holds infinite values"),
        (chapter_06.popcount_steps, ("10", "101"), ValueError, BITS),
        (chapter_06.popcount_steps, ("12", "10"), ValueError, BITS),
        (chapter_06.popcount_steps, ("1" * 17, "1" * 17), ValueError, BITS),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused(function, arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        draw(function, *arguments)
