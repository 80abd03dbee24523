"""Every figure is a real image that says the same in words, with provenance and machine."""

import base64
import dataclasses
import html
import io

import matplotlib.colors
import numpy as np
import pytest
from helpers import ceilings, example
from PIL import Image

from fastdl_lib.figures import picture as plots
from fastdl_lib.figures.picture import Shares
from fastdl_lib.measuring.costs import layer_costs, layer_kind, training_days
from fastdl_lib.measuring.evidence import Column, Measurement, Provenance
from fastdl_lib.measuring.published import PublishedTable
from fastdl_lib.measuring.recordings import Recording
from fastdl_lib.measuring.timing import LayerProfile
from fastdl_lib.nn.network import deep_convnet
from fastdl_lib.precision.formats import (
    BFLOAT16,
    FLOAT8_E4M3,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    INT8,
    FixedPoint,
)
from fastdl_lib.scaling.clusters import Cluster, Job, Ring
from fastdl_lib.scaling.simulator import step_times

CARD = example()
MACHINE = "Measured here: Example CPU, 8 cores"


def measured(name, *samples, unit="ms", **conditions):
    return Measurement(
        name, unit, samples, Provenance.MEASURED, machine=CARD,
        conditions={"threads": 4, **conditions},
    )  # fmt: skip


def profile_of(times_ms, batch=4, backward=None):
    """A profile with these times; a layer's kind is its name without the number."""

    def three(times):
        return {name: measured(name, ms - 0.1, ms, ms + 0.3) for name, ms in times.items()}

    kinds = {name: name.rstrip("0123456789") for name in times_ms}
    kinds = {name: kind if kind in plots.KINDS else "other" for name, kind in kinds.items()}
    return LayerProfile("N", batch, kinds, three(times_ms), three(backward or {}))


TIMES = {"conv1": 30.0, "relu1": 4.0, "norm1": 20.0, "pool1": 6.0, "flatten": 0.5, "fc2": 39.5}
FORWARD = profile_of(TIMES)
TRAINING = profile_of(TIMES, backward={name: 2 * ms for name, ms in TIMES.items()})

FIGURE = PublishedTable(
    "fig", "Shares", "A thesis", "", "Figure 1", "labels", (), {"READ": ""},
    (Column("layer"), Column("device"), Column("share_pct", unit="%")),
    tuple(
        {"layer": layer, "device": "GPU", "share_pct": pct, "tag": "READ"}
        for layer, pct in (("conv1", 60.5), ("conv2", 29.5), ("fc6", 8.0))
    ),
)  # fmt: skip
LOG = PublishedTable(
    "log", "Times", "A log", "", "file", "read", (), {"READ": ""},
    (Column("layer"), Column("run"), Column("forward_ms", unit="ms")),
    tuple(
        {"layer": layer, "run": run, "forward_ms": ms, "tag": "READ"}
        for layer, run, ms in (("conv1", "a", 30.0), ("data", "a", 10.0), ("conv1", "b", 1.0))
    ),
)  # fmt: skip


def own_and_published():
    return [
        Shares.of_profile("this machine", FORWARD),
        Shares.of_published("GPU, 2014", FIGURE, "share_pct", device="GPU"),
    ]


def deep_profile():
    network = deep_convnet()
    names = list(network.layers)
    times = {name: 1.0 + place for place, name in enumerate(names)}
    profile = profile_of(times)
    kinds = {name: layer_kind(layer) for name, layer in network.layers.items()}
    return LayerProfile("DeepConvNet", 4, kinds, profile.forward, {}), layer_costs(network, 4)


def speed(gflops, name="", threads=1):
    return measured(name, gflops - 1, gflops, gflops + 2, unit="GFLOP/s", threads=threads)


LOOPS = Measurement(
    "loops", "GFLOP/s", (0.02,), Provenance.COMPUTED, source="a piece", conditions={"threads": 1}
)
SPEEDS = {
    ("Python loops", "conv1", 1): LOOPS,
    ("im2col", "conv1", 1): speed(80.0),
    ("im2col", "conv1", 4): speed(250.0, threads=4),
    ("im2col", "conv2", 1): speed(70.0),
}


def published_ms(name, value, unit="ms", device="gpu", provenance=Provenance.PUBLISHED):
    return Measurement(
        name, unit, (value,), provenance, source="a log", conditions={"device": device}
    )


RUNGS = {
    "conv3": [dataclasses.replace(LOOPS, name="Python loops"), speed(80.0, "NumPy")],
    "AlexNet": [speed(60.0, "NumPy"), published_ms("GPU", 6000.0, "GFLOP/s")],
}
SWEEP = {
    "this CPU": {n: measured("p", ms) for n, ms in ((1024, 8.0), (16, 0.001), (64, 0.004))},
    "H100": {
        n: published_ms("p", ms, provenance=Provenance.SIMULATED)
        for n, ms in ((16, 0.005), (1024, 0.05))
    },
}
MOVES = {
    name: {
        "computing": published_ms("a", computing),
        "images": published_ms("b", 5.0, provenance=Provenance.COMPUTED),
        "weights": published_ms("c", weights, provenance=Provenance.COMPUTED),
    }
    for name, computing, weights in (("forward", 27.0, 8.0), ("training", 81.0, 0.0))
}
DAYS = {
    "here": [training_days(measured("this CPU", 31.0, 32.0, 34.0, unit="images/s"))],
    "slide": [published_ms("Titan", 6.0, "days"), published_ms("Xeon", 43.0, "days", "cpu")],
}
NET = Cluster(nodes=4, between_gb_per_s=1, between_latency_s=0.0)
SCALING = step_times(
    NET, Job(name="a job", gradient_bytes=1e9, step_s=1.0, batch=8), Ring(), [1, 2, 4]
)
SPEEDUPS = [
    plots.ScalingLine("TensorFlow", (1, 8, 100), (1.0, 8.0, 56.0), Provenance.PUBLISHED),
    ("a model", (1, 8, 100), (1.0, 7.5, 52.5), Provenance.SIMULATED),
]

SIZES = {"gradients": np.array([0.0, 0.0, 2.0**-25, 1.5 * 2.0**-25, -(2.0**-20), 1e5, 3.0, 3.0])}
NOISE = ([0.01, 0.1, 1.0], [99.0, 98.0, 40.0])
FORMAT_ROWS = [
    ("float32", 32, 99.41, 1_658_000, measured("f", 1900, 2000, unit="images/s"), False),
    plots.BitsRow("bfloat16", 16, 99.4, 829_000, measured("b", 700, unit="images/s"), True),
    ("float16", 16, 99.39, 829_000, measured("h", 11.5, unit="images/s"), False),
]


# Function name: how to draw one, and what its text alternative and its caption must say.
PICTURES = {
    "pixels": np.arange(8.0).reshape(2, 2, 2) % 4,
    "latent weights": np.array([[[0.5, -0.25]], [[0.0, 0.125]]]),
    "binary weights": np.array([[[1, -1], [1, 1]], [[1, 1], [-1, 1]]]),
}
RATIOS = {
    "here, against BLAS": [measured("NumPy", 0.3, unit="x"), measured("Numba", 1.5, 1.7, unit="x")],
    "a paper": [published_ms("against a naive kernel", 23.0, "x")],
}
SIZE_ROWS = [("float32", 320_000, 100, 10_000), ("binary", 10_000, 200, 10_000)]

FIGURES = {
    "roofline": (
        lambda: plots.roofline(
            two_ceilings(), [("copy", 0.125, 1.2), ("product", 170.0, 95.0, "conv")]
        ),
        ["10.0 GB/s", "10.0 FLOP per byte", "100 GFLOP/s", "copy: 1.20 GFLOP/s at 0.125 FLOP"],
        [MACHINE, "product on 4 threads", "copy on 1 thread"],
    ),
    "guess_and_truth": (
        lambda: plots.guess_and_truth(
            "share of convolution", "%", 50.0, measured("conv", 58.0, 59.0, 61.0, unit="%"),
            [Measurement("GPU, 2014", "%", (92.1,), Provenance.PUBLISHED, source="A thesis")],
        ),
        ["your guess 50.0 %", "this machine 59.0 %", "GPU, 2014 92.1 %"],
        [MACHINE, "GPU, 2014: A thesis"],
    ),
    "image_row": (
        lambda: plots.image_row(
            np.random.default_rng(0).random((2, 3, 9, 9)), ["a cat", "a cup"],
            title="Two photos", caption="Photos: CC0",
        ),
        ["2 images of 9x9 pixels", "a cat", "a cup"],
        ["Photos: CC0"],
    ),
    "share_pies": (
        lambda: plots.share_pies(own_and_published(), CARD, "batch 4", title="Pies"),
        [
            "this machine (measured here): convolution 30.0 %, fully connected 39.5 %",
            "local response norm 20.0 %", "GPU, 2014 (published): convolution 90.0 %",
        ],
        [MACHINE, "batch 4"],
    ),
    "share_bars": (
        lambda: plots.share_bars(own_and_published(), CARD, "batch 4", title="Bars"),
        [
            "this machine (measured here): convolution 30.0 %, fully connected 39.5 %",
            "GPU, 2014 (published): convolution 90.0 %",
        ],
        [MACHINE, "batch 4"],
    ),
    "cost_shares": (
        lambda: plots.cost_shares(layer_costs(deep_convnet()), title="DeepConvNet: who does what"),
        ["share of the parameters, %: convolution 58.1, fully connected 41.9", "share of the MACs"],
        ["Computed: counted from the layers' shapes"],
    ),
    "layer_bars": (
        lambda: plots.layer_bars(TRAINING, title="Layers"),
        ["batch 4", "conv1 90.0 ms", "fc2 118 ms"],
        [MACHINE, "batch 4", "BLAS on 4 threads", "3 passes"],
    ),
    "roofline_against_measured": (
        lambda: plots.roofline_against_measured(*deep_profile(), ceilings()),
        ["Measured time over roofline time: conv1 ", "fc2 "],
        [MACHINE, "batch 4"],
    ),
    "batch_sweep": (
        lambda: plots.batch_sweep(
            {8: FORWARD, 1: profile_of({"conv1": 3.0, "fc2": 7.0}, 1)}, title="By batch"
        ),
        ["batch 1: 10.0 ms, convolution 30 %, fully connected 70 %", "batch 8: 12.5 ms"],
        [MACHINE, "BLAS on 4 threads"],
    ),
    "samples_strip": (
        lambda: plots.samples_strip(
            [measured("fair", 10.0, 11.0, 12.0), measured("one shot", 44.0)], title="Strips"
        ),
        [
            "fair: median 11.0 ms, from 10.0 to 12.0, 1.00 times",
            "one shot: median 44.0 ms, from 44.0 to 44.0, 4.00 times the first",
        ],
        [MACHINE],
    ),
    "patch_matrix": (
        lambda: plots.patch_matrix(3, stride=2, padding=1, patch=2, size=4, pixel=6),
        [
            "A 4x4 image and its patches of 3x3 pixels, stride 2, padding 1: 4 patches",
            "9x4 matrix, 2.2 times the pixels", "Column 2 holds the pixels 0, 0, 0, 2, 3, 4, 6, 7",
            "Pixel 6 stands 4 times in the matrix",
        ],
        ["Computed: counted", "0 is padding"],
    ),
    "memory_bars": (
        lambda: plots.memory_bars(
            {"conv1": (5.0, 35.0, 44.4, 44.5), "conv2": (2.0, 50.0, 62.0, 61.0)}, CARD, "8 images",
            title="Memory",
        ),
        ["conv2: input 2.00 MB, patches 25.0 times that", "62.0 MB (computed)", "61.0 MB (mea"],
        [MACHINE, "8 images"],
    ),
    "race": (
        lambda: plots.race(SPEEDS, {1: speed(100.0), 4: speed(390.0, threads=4)}, title="A race"),
        [
            "Python loops: conv1 0.0200; im2col: conv1 80.0 / 250 conv2 70.0",
            "product ceiling, 1 thread: 100; product ceiling, 4 threads: 390",
        ],
        [MACHINE],
    ),
    "block_sweep": (
        lambda: plots.block_sweep({"conv2": {7.0: speed(80.0, "1"), 56.0: speed(60.0, "8")}},
                                  title="Blocks"),
        ["conv2: 1 at a time, 7.00 MB, 80.0, 8 at a time, 56.0 MB, 60.0 GFLOP/s"],
        [MACHINE, "run on 1 thread"],
    ),
    "error_against_speed": (
        lambda: plots.error_against_speed(
            [speed(80.0, "im2col"), speed(110.0, "F(2, 3)")], [4e-7, 2e-6], title="Errors"
        ),
        ["im2col: 80.0 GFLOP/s, error 4.0e-07; F(2, 3): 110 GFLOP/s, error 2.0e-06"],
        [MACHINE, "run on 1 thread"],
    ),
    "trials": (
        lambda: plots.trials(
            [
                plots.Trial(measured("conv2, im2col", 4.0), 62.0, 3e-7),
                plots.Trial(measured("conv2, winograd", 2.0), 0.0, 0.0),
            ],
            title="Tried",
        ),
        ["conv2, im2col: 4.00 ms an image, 62.0 MB, error 3e-07; conv2, winograd: 2.00 ms"],
        [MACHINE, "run on 4 threads"],
    ),
    "ladder": (
        lambda: plots.ladder(RUNGS, "Titan X: a log", title="A ladder"),
        [
            "conv3, GFLOP/s: Python loops 0.0200 (computed), 1.00x; NumPy 80.0 (measured here), ",
            "4,000x", "AlexNet, GFLOP/s: NumPy 60.0 (measured here), 1.00x; GPU 6,000 (published)",
        ],
        [MACHINE, "Titan X: a log"],
    ),
    "size_sweep": (
        lambda: plots.size_sweep(SWEEP, "H100: a model", cpu_wins_to=64, title="Sizes"),
        [
            "this CPU (measured here), ms by size: 16: 0.00100, 64: 0.00400, 1024: 8.00",
            "H100 (simulated), ms by size: 16: 0.00500, 1024: 0.0500",
            "The CPU is ahead up to 64",
        ],
        [MACHINE, "H100: a model"],
    ),
    "transfer_bars": (
        lambda: plots.transfer_bars(MOVES, "Published: a log | Computed: the bus", title="Moves"),
        [
            "forward: computing 27.0, images 5.00, weights 8.00; 40.0 ms, 32 % of it on the way",
            "training: computing 81.0, images 5.00, weights 0; 86.0 ms, 6 % of it on the way",
        ],
        ["Published: a log", "Computed: the bus"],
    ),
    "memory_against_batch": (
        lambda: plots.memory_against_batch(
            {"forward": {1: 3e8, 128: 2e9}, "training": {1: 8e8, 128: 3e9}}, {"a GPU": 12e9},
            "AlexNet", title="Memory",
        ),
        ["forward: batch 1 0.300 GB, batch 128 2.00 GB", "training: batch 1", "a GPU has 12.0 GB"],
        ["Computed: counted", "AlexNet"],
    ),
    "training_days": (
        lambda: plots.training_days(DAYS, "slide: NVIDIA", title="Days"),
        [
            "this CPU: 41.7 days (computed from 32.0 images/s, measured here)",
            "Titan: 6.00 days (published)",
        ],
        [MACHINE, "slide: NVIDIA"],
    ),
    "all_reduce_steps": (
        lambda: plots.all_reduce_steps("ring", 3),
        ["ring: 4 steps, 1.33 times the gradients' bytes", "3 chunks", "all/all/all; all/all/all;"],
        ["Computed", "framed: it has just arrived"],
    ),
    "scaling_lines": (
        lambda: plots.scaling_lines(SPEEDUPS, "Figure 8-16", title="Scaling"),
        ["TensorFlow (published): 1: 1.00, 8: 8.00, 100: 56.0", "a model (simulated)", "100: 52.5"],
        ["Figure 8-16"],
    ),
    "step_parts": (
        lambda: plots.step_parts(SCALING, "a ring", title="A step"),
        ["A step. 1 workers: computing 1.00 s, waiting 0 s, communicating 0 s, speed-up 1.00"],
        ["Simulated: a job", "a ring"],
    ),
    "epoch_lines": (
        lambda: plots.epoch_lines(
            {"fresh": [80.0, 90.5], "stale": [20.0, 10.0]}, CARD, "SGD", title="E",
            ylabel="right, %",
        ),
        ["right, % by epoch. fresh: 80.0, 90.5; stale: 20.0, 10.0"],
        [MACHINE, "SGD"],
    ),
    "prediction_bars": (
        lambda: plots.prediction_bars(
            {"two": [published_ms("forecast", 47.0, provenance=Provenance.SIMULATED),
                     measured("two ranks", 50.0, 51.0)]}, "one thread", title="Predicted",
        ),
        ["two, forecast: 47.0 ms (simulated); two, two ranks: 50.5 ms (measured here)"],
        [MACHINE, "one thread"],
    ),
    "bit_layout": (
        lambda: plots.bit_layout(FLOAT16, 0.1),
        [
            "0.1 as float16 is 0.0999755859375. Bits: 0 01011 1001100110",
            "(-1)^0 x 2^(11 - 15) x 1.59960938", "error: -2.44e-05, 0.0244 % of it",
        ],
        ["Computed: float16 has 1 bit of sign, 5 of exponent (bias 15), 10 of fraction"],
    ),
    "format_ranges": (
        lambda: plots.format_ranges([FLOAT64, FLOAT16, FixedPoint(8, 8)], title="Ranges"),
        [
            "float16, 16 bits: 5.96e-08 to 65504, 10 fraction bits: 3.3 digits",
            "fixed<8,8>, 16 bits: 0.00391 to 127.996, steps of 0.00390625",
        ],
        ["Computed"],
    ),
    "magnitude_histogram": (
        lambda: plots.magnitude_histogram(SIZES, [FLOAT16, INT8], CARD, "a batch", title="Sizes"),
        [
            "gradients: 25.0 % are 0, the others from 2^-25 to 2^17",
            "of these 16.7 % become 0 in float16 and 16.7 % lie beyond its largest",
        ],
        [MACHINE, "a batch"],
    ),
    "loss_curves": (
        lambda: plots.loss_curves(
            {"float16": [2.0, 1.5, 1.0], "diverges": [2.0, np.nan, np.nan]}, CARD, "SGD", title="L"
        ),
        [
            "float16: from 2 to 1 after 3 steps",
            "diverges: from 2 to 2 after 1 steps, not finite from step 2 on",
        ],
        [MACHINE, "SGD"],
    ),
    "accuracy_lines": (
        lambda: plots.accuracy_lines(
            {("noise", "log"): {"pixels": NOISE}, ("bits", "linear"): {"all": ([1, 3], [9, 99])}},
            CARD, "2,000 images", title="Robust",
        ),
        ["pixels, %, by noise: 0.01: 99.0, 0.1: 98.0, 1: 40.0", "all, %, by bits: 1: 9.00, 3: 99"],
        [MACHINE, "2,000 images"],
    ),
    "bits_summary": (
        lambda: plots.bits_summary(FORMAT_ROWS, CARD, "10,000 images", title="Bits"),
        [
            "float32, 32 bits: 99.41 % right, 1,660 kB, 1,950 images/s; ",
            "bfloat16, 16 bits: 99.40 % right, 829 kB, 700 images/s (emulated)",
        ],
        [MACHINE, "10,000 images"],
    ),
    "sign_gradient": (
        lambda: plots.sign_gradient(title="Sign"),
        ["1 where |x| <= 1, 0 beyond"],
        ["Computed", "sign(0) is +1"],
    ),
    "sign_pictures": (
        lambda: plots.sign_pictures(PICTURES, ["unit 3", "unit 5"], CARD, "MNIST", title="W"),
        [
            "Pictures of unit 3, unit 5. pixels: from 0 (black) to 3 (white)",
            "latent weights: from -0.25 to 0.5",
            "binary weights: 75.0 % are +1, the others -1",
        ],
        [MACHINE, "MNIST"],
    ),
    "popcount_steps": (
        lambda: plots.popcount_steps("10110100", "11100110", title="By eye"),
        [
            "a is 10110100, b is 11100110", "+1, -1, +1, -1, +1, +1, -1, +1 add up to 2",
            "XNOR is 10101101, with 5 ones of 8: 2 x 5 - 8 = 2",
        ],
        ["Computed"],
    ),
    "speed_ratios": (
        lambda: plots.speed_ratios(RATIOS, "Published: a paper", title="Ratios"),
        [
            "here, against BLAS, NumPy: 0.300x (measured here)",
            "a paper, against a naive kernel: 23.0x (published)",
        ],
        [MACHINE, "Published: a paper"],
    ),
    "size_accuracy": (
        lambda: plots.size_accuracy(SIZE_ROWS, CARD, "all of MNIST", title="Size"),
        [
            "float32: 320 kB, 100 of 10,000 wrong, 1.00 %",
            "binary: 10.0 kB (32.0x smaller), 200 of 10,000 wrong, 2.00 %",
        ],
        [MACHINE, "all of MNIST"],
    ),
}  # fmt: skip


def two_ceilings():
    plain = ceilings()
    return plots.Ceilings(
        measured("product", plain.gemm_gflops.median, unit="GFLOP/s"),
        measured("copy", plain.copy_gb_per_s.median, unit="GB/s", threads=1),
    )


def test_every_public_figure_is_tried_here():
    assert FIGURES.keys() == set(plots.__all__) - {
        "BitsRow", "Picture", "ScalingLine", "Shares", "SizeRow", "Trial"
    }  # fmt: skip


@pytest.fixture(scope="module", params=FIGURES)
def figure(request):
    draw, alt, caption = FIGURES[request.param]
    return draw(), alt, caption


def test_the_image_is_real_and_not_blank(figure):
    picture, _, _ = figure
    image = Image.open(io.BytesIO(picture.png))
    image.load()
    width, height = picture.figure.get_size_inches() * plots._DOTS_AN_INCH
    assert image.format == "PNG"
    assert image.size == (pytest.approx(width, abs=1), pytest.approx(height, abs=1))
    assert len(image.convert("RGB").getcolors(2**24)) > 20
    # Something was drawn in the middle, not only a caption below.
    middle = np.asarray(image.convert("L"))[image.height // 4 : -image.height // 4]
    assert (middle < 250).mean() > 0.01


def test_the_text_alternative_names_the_numbers(figure):
    picture, alt, _ = figure
    for part in alt:
        assert part in picture.alt


def test_the_caption_names_provenance_and_machine(figure):
    picture, _, caption = figure
    for part in caption:
        assert part in picture.caption
    shown = " ".join(" ".join(text.get_text().split()) for text in picture.figure.texts)
    assert " ".join(picture.caption.split()) in shown


def test_a_picture_shows_itself_in_a_notebook(figure, monkeypatch):
    picture, _, _ = figure
    shown = []
    monkeypatch.setattr(plots, "display", lambda data, **options: shown.append((data, options)))
    picture._ipython_display_()
    (image, options), (words, _) = shown
    assert base64.b64decode(image["image/png"]) == picture.png
    assert image["text/plain"] == picture.alt
    assert options["metadata"]["image/png"] == {"alt": picture.alt, "width": picture.width_px}
    assert html.escape(picture.alt) in words["text/html"]


def test_every_axes_says_what_it_shows(figure):
    picture, _, _ = figure
    for axes in picture.figure.axes:
        assert axes.get_xlabel() or axes.get_title()


def test_the_same_numbers_give_the_same_image():
    draw = FIGURES["samples_strip"][0]
    assert draw().png == draw().png


def test_a_recorded_profile_says_so():
    recorded = {
        name: Measurement(
            name, "ms", m.samples, Provenance.RECORDED, machine=CARD, conditions=m.conditions
        )
        for name, m in FORWARD.forward.items()
    }
    profile = LayerProfile("N", 4, FORWARD.kinds, recorded, {})
    assert plots.layer_bars(profile, title="Layers").caption.startswith("Recorded: Example CPU")


# --- shares -------------------------------------------------------------------------------------


def test_shares_of_a_profile_add_up():
    shares = Shares.of_profile("own", FORWARD)
    assert shares.provenance is Provenance.MEASURED
    assert sum(percent for _, _, percent in shares.parts()) == pytest.approx(100)
    assert shares.of_kind("conv") == pytest.approx(30)
    assert shares.of_kind("conv", "fc") == pytest.approx(69.5)
    assert shares.of_kind(*plots.KINDS) == pytest.approx(100)
    assert shares.of_kind() == 0


def test_parts_are_grouped_by_kind_in_one_order():
    kinds = [kind for _, kind, _ in Shares.of_profile("own", FORWARD).parts()]
    assert kinds == ["conv", "fc", "pool", "norm", "relu", "other"]


def test_what_a_published_figure_leaves_out_is_unlabelled():
    shares = Shares.of_published("GPU", FIGURE, "share_pct", device="GPU")
    assert shares.provenance is Provenance.PUBLISHED
    assert shares.of_kind("conv") == 90  # as published, not scaled to 100
    *parts, rest = shares.parts()
    assert [name for name, _, _ in parts] == ["conv1", "conv2", "fc6"]
    assert rest == ("unlabelled", "other", pytest.approx(2.0))
    assert sum(percent for _, _, percent in shares.parts()) == pytest.approx(100)


def test_published_times_become_percentages():
    shares = Shares.of_published("a log", LOG, "forward_ms", run="a")
    assert shares.percent == {"conv1": 75.0, "data": 25.0}
    assert shares.kinds == {"conv1": "conv", "data": "other"}
    assert "unlabelled" not in [name for name, _, _ in shares.parts()]
    with pytest.raises(ValueError, match="log has no row with"):
        Shares.of_published("a log", LOG, "forward_ms", run="c")


def test_shares_of_a_recording():
    measurements = tuple(
        Measurement(
            f"{implementation} {layer}", "ms", (ms,), Provenance.RECORDED, machine=CARD,
            conditions={"implementation": implementation, "layer": layer, "kind": kind},
        )
        for implementation, layer, kind, ms in (
            ("numpy", "conv1", "conv", 3.0), ("numpy", "fc6", "fc", 1.0), ("torch", "x", "fc", 9.0)
        )
    )  # fmt: skip
    recording = Recording(CARD, "make shares", measurements)
    shares = Shares.of_recording("recorded", recording, "numpy")
    assert shares.percent == {"conv1": 75.0, "fc6": 25.0}
    assert shares.provenance is Provenance.RECORDED
    assert shares.in_words() == (
        "recorded (recorded on Example CPU, 2025-01-31): convolution 75.0 %, fully connected 25.0 %"
    )
    with pytest.raises(ValueError, match="no implementation 'caffe'"):
        Shares.of_recording("recorded", recording, "caffe")


# --- chapter 02 ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("patch", "shown"), [(1, 1), (4, 4), (99, 4)])
def test_a_patch_past_the_last_stands_for_the_last(patch, shown):
    picture = plots.patch_matrix(3, size=4, patch=patch)
    assert f"Column {shown} holds" in picture.alt
    labels = [text.get_text() for axes in picture.figure.axes for text in axes.get_xticklabels()]
    assert labels == [f"patch {shown} of 4", f"patch {shown}"]


def test_the_patch_matrix_shows_what_im2col_makes():
    _, right = plots.patch_matrix(2, size=3).figure.axes
    shown = np.array([int(text.get_text()) for text in right.texts]).reshape(4, 4)
    assert shown.tolist() == [[1, 2, 4, 5], [2, 3, 5, 6], [4, 5, 7, 8], [5, 6, 8, 9]]


def test_a_window_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="does not fit"):
        plots.patch_matrix(6, size=5)


def test_a_race_hatches_what_was_computed_and_marks_more_threads():
    (axes,) = plots.race(SPEEDS, {1: speed(100.0)}, title="A race").figure.axes
    assert [bar.get_hatch() for bar in axes.patches] == ["--", "", ""]
    diamonds = [line for line in axes.lines if line.get_marker() == "D"]
    assert [float(line.get_xdata()[0]) for line in diamonds] == [250.0]


def test_a_race_of_threads_that_cannot_be_known_has_bars_only():
    unknown = {("im2col", "conv1", 0): speed(80.0, threads=0)}
    picture = plots.race(unknown, {0: speed(100.0, threads=0)}, title="A race")
    assert len(picture.figure.axes[0].patches) == 1
    assert "an unknown number of threads: 100" in picture.alt


def test_only_the_last_trial_stands_out():
    tried = [plots.Trial(measured(name, 2.0), 5.0, 1e-7) for name in "abc"]
    for axes in plots.trials(tried, title="Tried").figure.axes:
        colours = [bar.get_facecolor() for bar in axes.patches]
        assert colours[0] == colours[1] != colours[2]


# --- chapter 03 ---------------------------------------------------------------------------------


def hatches(axes):
    return [bar.get_hatch() for bar in axes.patches]


def test_a_ladder_shows_provenance_by_hatching_and_the_device_by_colour():
    left, right = plots.ladder(RUNGS, title="A ladder").figure.axes
    assert (hatches(left), hatches(right)) == (["--", ""], ["", "//"])
    numpy, gpu = right.patches
    assert numpy.get_facecolor() != gpu.get_facecolor()
    # Both panels keep a rung at one height, and a panel may lack one.
    heights = [round(bar.get_y() + bar.get_height() / 2) for bar in (*left.patches, *right.patches)]
    assert heights == [0, 1, 1, 2]
    assert [text.get_text() for text in left.get_yticklabels()] == ["Python loops", "NumPy", "GPU"]


def test_a_size_sweep_is_dashed_where_no_clock_ran():
    (axes,) = plots.size_sweep(SWEEP, cpu_wins_to=64, title="Sizes").figure.axes
    own, model = (container.lines[0] for container in axes.containers)
    assert (own.get_linestyle(), model.get_linestyle()) == ("-", "--")
    assert list(own.get_xdata()) == [16, 64, 1024]
    (shaded,) = axes.patches
    assert shaded.get_x() + shaded.get_width() == 64


def test_a_size_sweep_without_a_winner_shades_nothing():
    picture = plots.size_sweep(SWEEP, title="Sizes")
    assert not picture.figure.axes[0].patches and "ahead" not in picture.alt


def test_the_parts_of_a_transfer_stand_one_after_the_other():
    (axes,) = plots.transfer_bars(MOVES, "a log", title="Moves").figure.axes
    starts = [(round(bar.get_x(), 9), round(bar.get_width(), 9)) for bar in axes.patches]
    assert starts == [(0, 27), (27, 5), (32, 8), (0, 81), (81, 5), (86, 0)]
    assert hatches(axes) == ["//", "--", "--"] * 2


def test_memory_stands_in_gigabytes_beside_its_limits():
    needs, limits = {"training": {1: 1e9, 8: 4e9}}, {"6 GB": 6e9, "12 GB": 12e9}
    (axes,) = plots.memory_against_batch(needs, limits, title="Memory").figure.axes
    line, *lines = axes.lines
    assert list(line.get_ydata()) == [1, 4]
    assert [float(limit.get_ydata()[0]) for limit in lines] == [6, 12]


def test_days_from_a_speed_are_hatched_as_computed():
    picture = plots.training_days(DAYS, title="Days")
    (axes,) = picture.figure.axes
    assert hatches(axes) == ["--", "//", "//"]
    own, titan, xeon = axes.patches
    assert own.get_facecolor() == xeon.get_facecolor() != titan.get_facecolor()
    assert axes.get_xscale() == "log"


def test_the_caption_names_each_machine_whose_clock_ran_once():
    other = dataclasses.replace(CARD, cpu="Other CPU")
    recorded = dataclasses.replace(
        speed(90.0, "GPU"), provenance=Provenance.RECORDED, machine=other
    )
    rungs = {"conv3": [*RUNGS["conv3"], recorded], "AlexNet": RUNGS["AlexNet"]}
    caption = plots.ladder(rungs, "", "a note", title="A ladder").caption
    own, replayed, note = caption.split(" | ")
    assert own.startswith(MACHINE) and note == "a note"
    assert replayed.startswith("Recorded: Other CPU, 8 cores")
    published = plots.training_days({"slide": DAYS["slide"]}, "NVIDIA", title="Days")
    assert published.caption == "NVIDIA"


@pytest.mark.parametrize(
    ("ratio", "shown"), [(0.13, "0.13x"), (99, "99.00x"), (0.0008, "0.000800x"), (3452.6, "3,450x")]
)
def test_a_strip_shows_extreme_ratios_with_digits(ratio, shown):
    strips = [measured("first", 1.0), measured("second", ratio)]
    (axes,) = plots.samples_strip(strips, title="Strips").figure.axes
    assert axes.texts[1].get_text().endswith(f"= {shown}")


# --- chapter 04 ---------------------------------------------------------------------------------


def held(axes):
    """What stands in an all-reduce's panel, row by row."""
    texts = [text.get_text() for text in axes.texts]
    workers = int(axes.get_ylim()[0])
    return np.array(texts).reshape(workers, -1).tolist()


def test_a_ring_gathers_and_then_shares():
    panels = [held(axes) for axes in plots.all_reduce_steps("ring", 3).figure.axes]
    assert panels[0] == [["1"] * 3, ["2"] * 3, ["3"] * 3]
    assert panels[1] == [["1", "1", "13"], ["12", "2", "2"], ["3", "23", "3"]]
    # After n - 1 steps each worker holds one chunk that is complete.
    assert [row.count("all") for row in panels[2]] == [1, 1, 1]
    assert panels[4] == [["all"] * 3] * 3


@pytest.mark.parametrize(("workers", "steps"), [(2, 2), (3, 4), (4, 4), (8, 6)])
def test_a_tree_sums_up_and_down(workers, steps):
    panels = [held(axes) for axes in plots.all_reduce_steps("tree", workers).figure.axes]
    assert len(panels) == steps + 1
    assert panels[steps // 2][0] == ["all"]
    assert panels[-1] == [["all"]] * workers


def test_what_has_just_arrived_is_framed():
    frame = matplotlib.colors.to_rgba(plots._FRAME)
    for axes in plots.all_reduce_steps("ring", 4).figure.axes[1:]:
        assert sum(box.get_edgecolor() == frame for box in axes.patches) == 4


@pytest.mark.parametrize(("way", "workers"), [("star", 4), ("ring", 1)])
def test_another_all_reduce_is_refused(way, workers):
    with pytest.raises(ValueError, match="a 'ring' or a 'tree' of 2 workers or more"):
        plots.all_reduce_steps(way, workers)


def test_published_points_are_dots_and_simulated_ones_dashed():
    (axes,) = plots.scaling_lines(SPEEDUPS, title="Scaling").figure.axes
    dots, dashes, ideal = axes.lines
    assert (dots.get_marker(), dots.get_linestyle(), dashes.get_linestyle()) == ("o", "None", "--")
    assert list(ideal.get_ydata()) == [1, 100]
    assert axes.get_xscale() == "log"
    (axes,) = plots.scaling_lines(SPEEDUPS, title="Scaling", logarithmic=False).figure.axes
    assert axes.get_xscale() == axes.get_yscale() == "linear"


def test_lines_of_one_label_share_a_colour():
    lines = [SPEEDUPS[0], ("TensorFlow", (1, 100), (1.0, 50.0), Provenance.SIMULATED), SPEEDUPS[1]]
    first, second, third = plots.scaling_lines(lines, title="S").figure.axes[0].lines[:3]
    assert first.get_color() == second.get_color() != third.get_color()


def test_the_parts_of_a_step_add_up():
    left, _ = plots.step_parts(SCALING, title="A step").figure.axes
    tops = [max(b.get_y() + b.get_height() for b in left.patches[n::3]) for n in range(3)]
    assert tops == pytest.approx(SCALING.step_s)


def test_a_forecast_is_hatched():
    draw = FIGURES["prediction_bars"][0]
    assert hatches(draw().figure.axes[0]) == ["xx", ""]


# --- chapter 05 ---------------------------------------------------------------------------------


def boxes(picture):
    """What stands in a bit layout's boxes."""
    (axes,) = picture.figure.axes
    return "".join(t.get_text() for t in axes.texts if t.get_position()[1] == 0.5)


@pytest.mark.parametrize(
    ("number_format", "value", "wanted", "words"),
    [
        (FLOAT16, 1.0, "0011110000000000", "(-1)^0 x 2^(15 - 15) x 1 = 1. asked: 1"),
        (FLOAT16, -(2.0**-24), "1000000000000001", "x 2^(1 - 15) x 0.0009765625"),
        (FLOAT16, 1e-8, "0" * 16, "exponent and fraction all zeros: 0. "),
        (FLOAT16, -1e6, "1111110000000000", "fraction 0: -infinity. asked: -1000000 "),
        (FLOAT16, float("nan"), "0111111000000000", "fraction not 0: NaN"),
        (FLOAT8_E4M3, 1e3, "01111111", "fraction all ones: NaN, not a number"),
        (FLOAT8_E4M3, 448.0, "01111110", "x 2^(15 - 7) x 1.75 = 448"),
        (FLOAT32, 0.1, "00111101110011001100110011001101", "error: 1.49e-09"),
    ],
)  # fmt: skip
def test_a_bit_layout_decodes_any_number(number_format, value, wanted, words):
    picture = plots.bit_layout(number_format, value)
    assert boxes(picture) == wanted
    assert words in picture.alt
    assert picture.figure.get_size_inches().tolist() == [9.5, 3.7]
    # All words lie within the picture.
    picture.figure.canvas.draw()
    (axes,) = picture.figure.axes
    right = max(text.get_window_extent().x1 for text in axes.texts)
    assert right <= picture.figure.bbox.x1


def test_a_flipped_bit_is_framed_and_named():
    picture = plots.bit_layout(FLOAT16, "0 11011 1001100110", asked=0.1)
    assert picture.alt.startswith("0.1 as float16 with bit 14 flipped is 6552. ")
    assert "65,500 times what was asked" in picture.alt
    (axes,) = picture.figure.axes
    (frame,) = (box for box in axes.patches if not box.get_fill())
    assert int(frame.get_x()) == 1
    alone = plots.bit_layout(FLOAT16, "0110111001100110")
    assert alone.alt.startswith("0 11011 1001100110 in float16 is 6552. ")
    assert all(box.get_fill() for box in alone.figure.axes[0].patches)


def test_a_bit_layout_refuses_what_it_cannot_draw():
    with pytest.raises(TypeError, match="int8 has no exponent"):
        plots.bit_layout(INT8, 1.0)
    with pytest.raises(ValueError, match="float64 has 64 bits; 32 at most"):
        plots.bit_layout(FLOAT64, 1.0)
    with pytest.raises(ValueError, match="float16 has 16 bits"):
        plots.bit_layout(FLOAT16, "0101")


def test_a_range_is_pale_where_it_is_subnormal():
    (axes,) = plots.format_ranges([FLOAT16, FixedPoint(8, 8)], title="R").figure.axes
    subnormal, normal, none, fixed = axes.patches
    assert (subnormal.get_x(), subnormal.get_width(), subnormal.get_alpha()) == (-24, 10, 0.35)
    assert normal.get_x() + normal.get_width() == pytest.approx(np.log2(65504))
    assert (none.get_width(), fixed.get_x()) == (0, -8)
    assert normal.get_facecolor() != fixed.get_facecolor()


def test_a_histogram_counts_powers_of_two_and_draws_the_limits():
    upper, lower = plots.magnitude_histogram(SIZES, [FLOAT16], CARD, title="S").figure.axes
    values, edges, _ = upper.patches[0].get_data()
    assert (edges[0], edges[-1]) == (-25, 17)
    # 2^-25 and 1.5 * 2^-25 of eight values, of which two are 0.
    assert values[0] == pytest.approx(25) and values.sum() == pytest.approx(75)
    assert upper.get_legend().get_texts()[0].get_text() == "gradients (25 % are 0)"
    lines = [line.get_xdata()[0] for line in upper.lines]
    assert lines == pytest.approx([-24, np.log2(65504)])
    left, right = lower.get_xlim()
    assert left < -25 and right > 17
    wide = plots.magnitude_histogram(SIZES, [BFLOAT16], CARD, title="S").figure.axes[0]
    assert wide.get_xlim() == (-27, 19)


def test_a_histogram_of_zeros_alone_and_of_infinities():
    nothing = plots.magnitude_histogram({"g": np.zeros(5)}, [FLOAT16], CARD, title="S")
    assert "g: 100.0 % are 0" in nothing.alt and nothing.png
    with pytest.raises(ValueError, match="'g' holds infinite values"):
        plots.magnitude_histogram({"g": np.array([1, np.inf])}, [FLOAT16], CARD, title="S")


def test_a_loss_curve_is_a_moving_mean_that_ends_where_numbers_end():
    values = [*range(100), np.inf, 5.0]
    (axes,) = plots.loss_curves({"a": values}, CARD, title="L").figure.axes
    line = axes.lines[0]
    assert list(line.get_xdata()) == list(range(1, 101))
    assert line.get_ydata()[:3] == pytest.approx([0, 0.5, 1.5])  # 102 steps: of two each
    assert axes.lines[1].get_marker() == "x"


def test_labels_at_the_ends_of_loss_curves_keep_apart():
    curves = {f"line {i}": [2.0, 0.5 + 0.001 * i] for i in range(8)}
    (axes,) = plots.loss_curves(curves, CARD, title="L").figure.axes
    heights = sorted(text.xyann[1] for text in axes.texts)
    low, high = axes.get_ylim()
    assert min(np.diff(heights)) == pytest.approx((high - low) / 15)
    assert low <= heights[0] and heights[-1] <= high
    # Told apart without colour.
    assert len({line.get_marker() for line in axes.lines}) == 8
    with pytest.raises(ValueError, match="1 to 8 lines can be told apart, got 9"):
        plots.loss_curves(curves | {"more": [1.0]}, CARD, title="L")


@pytest.mark.parametrize(
    ("places", "wanted"),
    [
        ([5.0, 1.0], [5.0, 1.0]),
        ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]),
        ([10.0, 10.0, 9.9], [9.0, 10.0, 8.0]),
        ([-4.0, 20.0], [0.0, 10.0]),
    ],
)
def test_labels_move_apart_between_bounds(places, wanted):
    assert plots._apart(places, 1.0, 0.0, 10.0) == wanted


def test_a_label_keeps_its_colour_in_all_panels():
    panels = {("a", "log"): {"x": NOISE, "y": NOISE}, ("b", "linear"): {"y": ([1, 2], [50, 90])}}
    left, right = plots.accuracy_lines(panels, CARD, title="A", lowest=30).figure.axes
    assert left.lines[1].get_color() == right.lines[0].get_color() != left.lines[0].get_color()
    assert (left.get_xscale(), right.get_xscale()) == ("log", "linear")
    assert left.get_ylim() == right.get_ylim() == (30, 100)


def test_powers_of_two_stand_on_the_axis_as_such():
    scales = [2.0**-24, 1.0, 2.0**18]
    picture = plots.accuracy_lines({("S", "log"): {"x": (scales, [1, 2, 3])}}, CARD, title="A")
    labels = [text.get_text() for text in picture.figure.axes[0].get_xticklabels()]
    assert labels == ["$2^{-24}$", "$2^{0}$", "$2^{18}$"]
    assert "2^-24: 1.00, 1: 2.00, 2^18: 3.00" in picture.alt


@pytest.mark.parametrize(
    ("panels", "message"),
    [
        ({}, "1 to 3 panels fit beside each other, got 0"),
        ({("a", "logit"): {"x": NOISE}}, "'linear' or 'log', got 'logit'"),
        ({("a", "log"): {"x": ([0, 1], [1, 2])}}, "0 has no place on a logarithmic axis: 'a'"),
    ],
)
def test_accuracy_lines_refuse(panels, message):
    with pytest.raises(ValueError, match=message):
        plots.accuracy_lines(panels, CARD, title="A")


def test_emulated_speeds_are_hollow_and_equal_bits_stand_together():
    _, size, speed = plots.bits_summary(FORMAT_ROWS, CARD, title="B").figure.axes
    dots = [line for line in speed.lines if line.get_marker() == "D"]
    assert [dot.get_markerfacecolor() == "white" for dot in dots] == [False, True, False]
    single, brain, half = (dot.get_xdata()[0] for dot in dots)
    assert brain - single > half - brain
    bars = [bar for bar in size.patches if bar.get_hatch()]
    assert [bar.get_height() for bar in bars] == [1658, 829, 829]
    labels = [text.get_text() for text in speed.get_xticklabels()]
    assert labels == ["float32\n32 bits", "bfloat16\n16 bits", "float16\n16 bits"]


# --- chapter 06 ---------------------------------------------------------------------------------


def test_the_jump_of_sign_is_no_slope():
    forward, true, straight = plots.sign_gradient(title="S").figure.axes
    pieces = [line for line in forward.lines if len(line.get_xdata()) > 2]
    assert [set(piece.get_ydata()) for piece in pieces] == [{-1.0}, {1.0}]
    assert pieces[1].get_xdata()[0] == 0
    (flat,) = (line for line in true.lines if len(line.get_xdata()) > 2)
    assert set(flat.get_ydata()) == {0}
    passing = [line.get_xdata() for line in straight.lines if 1 in line.get_ydata()]
    (inside,) = (x for x in passing if len(x) > 2)
    assert (inside[0], inside[-1]) == (pytest.approx(-1), pytest.approx(1))


def test_signs_are_black_and_white_and_latent_weights_lie_around_zero():
    grid = np.array(plots.sign_pictures(PICTURES, "ab", CARD, title="W").figure.axes).reshape(3, 2)
    pixels, latent, signs = (row[0].images[0] for row in grid)
    assert latent.norm.vmin == -latent.norm.vmax == -0.5
    assert latent.cmap(0.5)[:3] == pytest.approx((1, 1, 1), abs=0.01)
    assert (signs.norm.vmin, signs.norm.vmax, signs.cmap.name) == (-1, 1, "gray")
    assert (pixels.norm.vmin, pixels.norm.vmax) == (0, 3)
    assert np.array_equal(grid[2, 1].images[0].get_array(), PICTURES["binary weights"][1])
    assert [axis.title.get_visible() for axis in grid[:, 0]] == [True, False, False]


@pytest.mark.parametrize("rows", [{}, {"a": np.ones((2, 4))}, {"a": np.ones((3, 2, 2))}])
def test_pictures_without_names_are_refused(rows):
    with pytest.raises(ValueError, match=r"nothing to draw|2 names want"):
        plots.sign_pictures(rows, ["x", "y"], CARD, title="W")


@pytest.mark.parametrize(("a", "b"), [("10", "01"), ("10110100", "11100110"), ("1" * 16, "1" * 16)])
def test_xnor_counts_what_the_products_add_up_to(a, b):
    picture = plots.popcount_steps(a, b, title="P")
    (axes,) = picture.figure.axes
    length = len(a)
    agree = sum(x == y for x, y in zip(a, b, strict=True))
    total = 2 * agree - length
    words = [text.get_text() for text in axes.texts]
    assert f"sum: {total}" in words
    assert f"count of ones: {agree}\n2 x {agree} - {length} = {total}" in words
    # The products and the XNOR: coloured where two bits agree.
    white = matplotlib.colors.to_rgba("white")
    coloured = [box.get_y() for box in axes.patches if box.get_facecolor() != white]
    assert len(coloured) == 2 * agree
    assert len(set(coloured)) == (2 if agree else 0) and set(coloured) <= {2.12, 6.22}
    picture.figure.canvas.draw()
    assert max(t.get_window_extent().x1 for t in axes.texts) <= picture.figure.bbox.x1


@pytest.mark.parametrize(
    ("a", "b"), [("10", "101"), ("1", "1"), ("12", "10"), ("1" * 17, "1" * 17)]
)
def test_other_bits_are_refused(a, b):
    with pytest.raises(ValueError, match="2 to 16 characters 0 or 1"):
        plots.popcount_steps(a, b, title="P")


def test_ratios_start_at_the_baseline():
    (axes,) = plots.speed_ratios(RATIOS, title="R").figure.axes
    slower, faster, published = axes.patches
    assert (slower.get_x(), slower.get_width()) == (1, pytest.approx(-0.7))
    assert (faster.get_x(), faster.get_width()) == (1, pytest.approx(0.6))
    assert published.get_hatch() == "//" and faster.get_hatch() == ""
    assert slower.get_facecolor() != faster.get_facecolor() == published.get_facecolor()
    assert axes.get_xscale() == "log"
    near = {"here": RATIOS["here, against BLAS"]}
    (axes,) = plots.speed_ratios(near, title="R").figure.axes
    assert axes.get_xscale() == "linear"
    assert any(set(line.get_xdata()) == {1} for line in axes.lines)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({}, "there is no ratio to draw"),
        ({"g": [measured("a", 3.0)]}, "the unit 'x' and is above 0, got 3.00 ms for 'a'"),
        ({"g": [measured("a", -1.0, unit="x")]}, "is above 0"),
    ],
)
def test_what_is_no_ratio_is_refused(groups, message):
    with pytest.raises(ValueError, match=message):
        plots.speed_ratios(groups, title="R")


def test_an_error_bears_the_spread_of_chance():
    size, error = plots.size_accuracy(SIZE_ROWS, CARD, title="S").figure.axes
    assert [bar.get_width() for bar in size.patches] == [320, 10]
    line = error.lines[2]
    # Of 10,000 images 2 % wrong: a standard deviation of 14 images.
    assert list(line.get_xdata()) == pytest.approx([2 - 1.96 * 0.14, 2 + 1.96 * 0.14])
    assert error.get_xlim()[0] == 0
