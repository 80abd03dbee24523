"""Every figure of the course, one function each, and the one place of their style.

A figure function returns a :class:`Picture`: it shows itself in a notebook, carries a text that
says the same in words, and bears a caption with provenance and machine. Colours are Okabe and
Ito's, which colour-blind readers can tell apart; hatching shows provenance.
"""

import base64
import functools
import html
import io
import math
import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import matplotlib.colors
import matplotlib.ticker
import numpy as np
from IPython.display import display
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from fastdl_lib.convolution.im2col import im2col, output_size
from fastdl_lib.core.arrays import to_cpu
from fastdl_lib.core.threads import threads_in_words
from fastdl_lib.measuring.costs import KINDS, Ceilings, LayerCost
from fastdl_lib.measuring.evidence import Measurement, Provenance, format_number
from fastdl_lib.measuring.machine import MachineCard
from fastdl_lib.measuring.published import PublishedTable
from fastdl_lib.measuring.recordings import Recording
from fastdl_lib.measuring.timing import LayerProfile
from fastdl_lib.precision.formats import FloatFormat, NumberFormat
from fastdl_lib.scaling.simulator import Scaling

__all__ = [
    "BitsRow",
    "Picture",
    "ScalingLine",
    "Shares",
    "SizeRow",
    "Trial",
    "accuracy_lines",
    "all_reduce_steps",
    "batch_sweep",
    "bit_layout",
    "bits_summary",
    "block_sweep",
    "cost_shares",
    "epoch_lines",
    "error_against_speed",
    "format_ranges",
    "guess_and_truth",
    "image_row",
    "ladder",
    "layer_bars",
    "loss_curves",
    "magnitude_histogram",
    "memory_against_batch",
    "memory_bars",
    "patch_matrix",
    "popcount_steps",
    "prediction_bars",
    "race",
    "roofline",
    "roofline_against_measured",
    "samples_strip",
    "scaling_lines",
    "share_bars",
    "share_pies",
    "sign_gradient",
    "sign_pictures",
    "size_accuracy",
    "size_sweep",
    "speed_ratios",
    "step_parts",
    "training_days",
    "transfer_bars",
    "trials",
]

KIND_COLOURS = {
    "conv": "#0072B2",
    "fc": "#D55E00",
    "pool": "#009E73",
    "norm": "#E69F00",
    "relu": "#56B4E9",
    "other": "#999999",
}
KIND_NAMES = {
    "conv": "convolution",
    "fc": "fully connected",
    "pool": "max-pooling",
    "norm": "local response norm",
    "relu": "ReLU",
    "other": "other",
}
PROVENANCE_HATCH = {
    Provenance.MEASURED: "",
    Provenance.RECORDED: "..",
    Provenance.SIMULATED: "xx",
    Provenance.COMPUTED: "--",
    Provenance.PUBLISHED: "//",
}
# Hatching must not be taken for the border of a slice.
matplotlib.rcParams["hatch.linewidth"] = 0.45
_INK, _GREY, _PURPLE, _FRAME = "#222222", "#666666", "#CC79A7", "#D55E00"
_DOTS_AN_INCH = 130
_PIXELS_AN_INCH = 96


class Picture:
    """A finished figure: the image, its text alternative and its caption.

    In a notebook it shows itself as the last expression of a cell.
    """

    def __init__(
        self, figure: Figure, title: str, caption: str, alt: str, legend: Sequence[Artist] = ()
    ) -> None:
        """Set title, legend and caption around the axes, which get the room between them."""
        self.figure, self.caption, self.alt = figure, caption, alt
        width, height = figure.get_size_inches()
        lines = textwrap.wrap(caption, width=int(width * 14), break_long_words=False)
        below = (0.14 * len(lines) + 0.12) / height
        figure.text(0.01, 0.06 / height, "\n".join(lines), fontsize=8, color=_GREY, va="bottom")
        if legend:
            rows = math.ceil(1.45 * len(legend) / width)
            figure.legend(
                handles=list(legend),
                loc="lower center",
                bbox_to_anchor=(0.5, below),
                borderaxespad=0.2,
                ncols=math.ceil(len(legend) / rows),
                frameon=False,
                fontsize=9,
                columnspacing=1.2,
            )
            below += (0.08 + 0.2 * rows) / height
        figure.text(0.01, 1 - 0.08 / height, title, fontsize=12, color=_INK, va="top")
        above = 0.5 / height
        figure.get_layout_engine().set(rect=(0, below, 1, 1 - below - above))

    @functools.cached_property
    def png(self) -> bytes:
        """The image as PNG bytes."""
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=_DOTS_AN_INCH, facecolor="white")
        return buffer.getvalue()

    @property
    def width_px(self) -> int:
        """How wide the image is meant to be shown, CSS pixels."""
        return round(self.figure.get_figwidth() * _PIXELS_AN_INCH)

    def mimebundle(self) -> tuple[dict, dict]:
        """The image and its text, as a notebook output's data and metadata."""
        data = {"image/png": base64.b64encode(self.png).decode(), "text/plain": self.alt}
        return data, {"image/png": {"alt": self.alt, "width": self.width_px}}

    def _ipython_display_(self) -> None:
        data, metadata = self.mimebundle()
        display(data, metadata=metadata, raw=True)
        # JupyterLab drops the alt text of images, so it stands below the image as well.
        words = f"<details><summary>In words</summary>{html.escape(self.alt)}</details>"
        display({"text/html": words, "text/plain": "(the same in words)"}, raw=True)


def _new(width: float, height: float, columns: int = 1, **options: Any) -> tuple:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns, **options)
    for axis in np.ravel(axes):
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=9)
    return figure, axes


def _caption(origin: MachineCard | str, provenance: Provenance, *notes: str) -> str:
    """Provenance, machine (or source) and notes in one line, as every caption has them."""
    where = origin if isinstance(origin, str) else origin.summary
    return " | ".join([f"{provenance.capitalize()}: {where}", *(note for note in notes if note)])


def _threads(measurement: Measurement) -> str:
    return threads_in_words(measurement.conditions["threads"])


def _plain_log(axis: Any) -> None:
    """Write 0.1, 1, 10, 100 on a logarithmic axis instead of powers."""
    axis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda v, _: f"{v:,g}"))
    axis.set_minor_formatter(matplotlib.ticker.NullFormatter())


def _kind_patches(kinds: Collection[str]) -> list[Patch]:
    return [Patch(color=KIND_COLOURS[k], label=KIND_NAMES[k]) for k in KINDS if k in kinds]


# --- chapter 00 ---------------------------------------------------------------------------------


class RooflinePoint(NamedTuple):
    """A dot under the roof: what ran, FLOP per byte, and the GFLOP/s it reached."""

    name: str
    intensity: float
    gflops: float
    kind: str = "other"


def roofline(
    ceilings: Ceilings,
    points: Sequence[RooflinePoint] = (),
    *,
    title: str = "Your machine's roof: memory limits on the left, arithmetic on the right",
) -> Picture:
    """Draw the two ceilings and, below them, what ran (Williams et al. 2009).

    Args:
        points: :class:`RooflinePoint` or plain tuples of the same order.
    """
    figure, axes = _new(8.5, 4.6)
    points = [RooflinePoint(*point) for point in points]
    intensities = [point.intensity for point in points] + [0.1, 1000]
    x = np.geomspace(min(intensities) / 1.5, max(intensities) * 1.5, 200)
    roof = [ceilings.attainable_gflops(value) for value in x]
    axes.loglog(x, roof, color=_INK, linewidth=2)
    axes.fill_between(x, roof, color=_GREY, alpha=0.08, linewidth=0)
    axes.axvline(ceilings.ridge, color=_GREY, linewidth=0.8, linestyle=":")
    lowest = min([roof[0], *(point.gflops for point in points)]) / 2
    axes.set_ylim(lowest, ceilings.gemm_gflops.median * 2.5)
    axes.set_xlim(x[0], x[-1])
    peak, speed = ceilings.gemm_gflops.median, ceilings.copy_gb_per_s.median
    axes.text(ceilings.ridge * 1.1, peak * 1.12, f"{format_number(peak)} GFLOP/s", fontsize=9)
    axes.text(x[0] * 1.2, roof[0] * 3.2, f"{format_number(speed)} GB/s", fontsize=9)
    axes.text(
        ceilings.ridge * 1.1,
        lowest * 1.2,
        f"ridge: {format_number(ceilings.ridge)} FLOP/byte",
        fontsize=9,
        color=_GREY,
    )
    for point in points:
        colour = _PURPLE if point.kind == "other" else KIND_COLOURS[point.kind]
        axes.plot(point.intensity, point.gflops, "o", color=colour, markersize=8, zorder=3)
    for names, intensity, gflops in _labels(points):
        axes.annotate(
            names,
            (intensity, gflops),
            xytext=(8, -4),
            textcoords="offset points",
            fontsize=9,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8},
        )
    _plain_log(axes.xaxis)
    _plain_log(axes.yaxis)
    axes.set_xlabel("arithmetic intensity, FLOP per byte moved (computed)")
    axes.set_ylabel(f"speed, GFLOP/s ({ceilings.gemm_gflops.provenance})")
    machine = ceilings.gemm_gflops.machine
    threads = (
        f"product on {_threads(ceilings.gemm_gflops)}, copy on {_threads(ceilings.copy_gb_per_s)}"
    )
    dots = "; ".join(
        f"{p.name}: {format_number(p.gflops)} GFLOP/s at {format_number(p.intensity)} FLOP/byte"
        for p in points
    )
    alt = (
        f"Roofline: {format_number(speed)} GB/s of memory traffic up to "
        f"{format_number(ceilings.ridge)} FLOP per byte, then {format_number(peak)} GFLOP/s. {dots}"
    )
    caption = _caption(machine, ceilings.gemm_gflops.provenance, threads)
    return Picture(figure, title, caption, alt.strip())


def _labels(points: Sequence[RooflinePoint]) -> list[tuple[str, float, float]]:
    """One label for points that lie on top of each other: (names, intensity, GFLOP/s)."""
    groups: list[list[RooflinePoint]] = []
    for point in points:
        for group in groups:
            near_x = abs(np.log(point.intensity / group[0].intensity)) < 0.5
            near_y = abs(np.log(point.gflops / group[0].gflops)) < 0.25
            if near_x and near_y:
                group.append(point)
                break
        else:
            groups.append([point])
    return [
        (
            ", ".join(point.name for point in group),
            max(point.intensity for point in group),
            float(np.mean([point.gflops for point in group])),
        )
        for group in groups
    ]


def guess_and_truth(
    name: str,
    unit: str,
    guess: float,
    measured: Measurement,
    published: Sequence[Measurement] = (),
) -> Picture:
    """Draw a guess beside the own measurement and what others published, on one axis."""
    rows = [("your guess", guess, Provenance.COMPUTED, _PURPLE)]
    own = "this machine" if measured.provenance is Provenance.MEASURED else measured.name
    rows.append((own, measured.median, measured.provenance, KIND_COLOURS["conv"]))
    rows += [(m.name, m.median, m.provenance, KIND_COLOURS["fc"]) for m in published]
    figure, axes = _new(8.5, 1.5 + 0.42 * len(rows))
    for place, (label, value, provenance, colour) in enumerate(rows):
        guessed = label == "your guess"
        axes.barh(
            place,
            value,
            height=0.62,
            color=colour,
            hatch="" if guessed else PROVENANCE_HATCH[provenance],
            edgecolor="white",
        )
        note = "" if guessed else f"  ({provenance})"
        end = measured.high if label == own else value
        axes.text(end, place, f"  {format_number(value)} {unit}{note}", va="center", fontsize=9)
    if len(measured.samples) > 1:
        axes.plot([measured.low, measured.high], [1, 1], color=_INK, linewidth=2)
    axes.set_yticks(range(len(rows)), [row[0] for row in rows], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.45 * max(row[1] for row in rows) or 1)
    axes.set_xlabel(f"{name}, {unit}")
    alt = f"{name}: " + "; ".join(f"{row[0]} {format_number(row[1])} {unit}" for row in rows)
    sources = [f"{m.name}: {m.source}" for m in published]
    caption = _caption(measured.machine or measured.source, measured.provenance, *sources)
    return Picture(figure, f"{name}: guess and measurement", caption, alt)


# --- chapter 01 ---------------------------------------------------------------------------------


def image_row(images: np.ndarray, titles: Sequence[str], *, title: str, caption: str) -> Picture:
    """Show images side by side. ``images``: (n, 3 or 1, H, W) in [0, 1], one title each."""
    figure, axes = _new(2.6 * len(images), 3.5, len(images), squeeze=False)
    for axis, image, name in zip(axes[0], images, titles, strict=True):
        axis.imshow(image.transpose(1, 2, 0), cmap="gray", interpolation="none")
        axis.set_title(name, fontsize=10)
        axis.axis("off")
    size = "x".join(str(n) for n in images.shape[2:])
    return Picture(
        figure, title, caption, f"{len(images)} images of {size} pixels: {' and '.join(titles)}"
    )


# --- chapter 01: shares -------------------------------------------------------------------------


class Shares(NamedTuple):
    """How a forward pass divides over layers: percentages with their provenance."""

    label: str
    percent: dict[str, float]
    """Layer name to percent; what is missing to 100 is drawn as unlabelled."""
    kinds: dict[str, str]
    provenance: Provenance
    origin: str
    """The provenance in words, with the machine of a recording."""

    @classmethod
    def of_profile(cls, label: str, profile: LayerProfile) -> "Shares":
        """The shares of a profile measured here (or recorded)."""
        return cls(
            label, profile.layer_shares(), profile.kinds, profile.provenance, profile.first.label
        )

    @classmethod
    def of_published(cls, label: str, table: PublishedTable, value: str, **where: Any) -> "Shares":
        """The shares in a published table with a column ``layer`` and a column ``value``.

        Percentages stay as they were published; times become percentages of their sum.
        """
        rows = table.select(**where)
        unit = {column.key: column.unit for column in table.columns}[value]
        total = 100 if unit == "%" else sum(row[value] for row in rows)
        percent = {row["layer"]: 100 * row[value] / total for row in rows}
        kinds = {name: _kind_of_name(name) for name in percent}
        return cls(label, percent, kinds, Provenance.PUBLISHED, str(Provenance.PUBLISHED))

    @classmethod
    def of_recording(cls, label: str, recording: Recording, implementation: str) -> "Shares":
        """The shares of one implementation in a recording of ``benchmarks/layer_shares.py``."""
        rows = [
            measurement
            for measurement in recording.measurements
            if measurement.conditions["implementation"] == implementation
        ]
        if not rows:
            raise ValueError(f"the recording has no implementation {implementation!r}.")
        total = sum(row.median for row in rows)
        percent = {row.conditions["layer"]: 100 * row.median / total for row in rows}
        kinds = {row.conditions["layer"]: row.conditions["kind"] for row in rows}
        return cls(label, percent, kinds, rows[0].provenance, rows[0].label)

    def of_kind(self, *kinds: str) -> float:
        """The percentage of all layers of these kinds together."""
        return sum(p for name, p in self.percent.items() if self.kinds[name] in kinds)

    def parts(self) -> list[tuple[str, str, float]]:
        """(layer, kind, percent), grouped by kind, what is unlabelled last."""
        parts = [
            (name, kind, self.percent[name])
            for kind in KINDS
            for name in self.percent
            if self.kinds[name] == kind and self.percent[name] > 0
        ]
        rest = 100 - sum(part[2] for part in parts)
        return [*parts, ("unlabelled", "other", rest)] if rest > 0.05 else parts

    def in_words(self) -> str:
        """The share of each kind of layer, for a text alternative."""
        kinds = ", ".join(
            f"{KIND_NAMES[kind]} {self.of_kind(kind):.1f} %" for kind in KINDS if self.of_kind(kind)
        )
        return f"{self.label} ({self.origin}): {kinds}"


def _kind_of_name(name: str) -> str:
    """The kind that a published layer name stands for: ``conv1`` is convolution."""
    stem = name.rstrip("0123456789")
    return stem if stem in KINDS else "other"


def share_pies(shares: Sequence[Shares], machine: MachineCard, *notes: str, title: str) -> Picture:
    """Draw one pie for each of ``shares``, layers coloured by kind, convolution's sum in words."""
    figure, axes = _new(3.3 * len(shares), 4.6, len(shares), squeeze=False)
    for axis, share in zip(axes[0], shares, strict=True):
        parts = share.parts()
        axis.pie(
            [percent for _, _, percent in parts],
            labels=[name if percent >= 4.5 else "" for name, _, percent in parts],
            colors=[KIND_COLOURS[kind] for _, kind, _ in parts],
            startangle=90,
            counterclock=False,
            wedgeprops={"edgecolor": "white", "linewidth": 1.2},
            textprops={"fontsize": 8},
            hatch=[PROVENANCE_HATCH[share.provenance]],
            labeldistance=1.06,
        )
        axis.set_title(
            f"{share.label}\n({share.provenance})\nconvolution {share.of_kind('conv'):.1f} %",
            fontsize=10,
        )
    alt = "Pies of forward time. " + ". ".join(share.in_words() for share in shares)
    caption = _share_caption(shares, machine, *notes)
    return Picture(figure, title, caption, alt, _share_legend(shares))


def _share_caption(shares: Sequence[Shares], machine: MachineCard, *notes: str) -> str:
    """The machine belongs to what ran on it, in whichever place that stands."""
    present = {share.provenance for share in shares}
    for provenance in (Provenance.MEASURED, Provenance.RECORDED):
        if provenance in present:
            return _caption(machine, provenance, *notes)
    return " | ".join(["Published", *notes])


def _share_legend(shares: Sequence[Shares]) -> list[Patch]:
    return _kind_patches({kind for share in shares for _, kind, _ in share.parts()})


def share_bars(shares: Sequence[Shares], machine: MachineCard, *notes: str, title: str) -> Picture:
    """Draw the same shares as stacked bars: lengths are easier to compare than angles.

    >>> from fastdl_lib.measuring.published import published
    >>> from fastdl_lib.measuring.machine import machine_card
    >>> table = published("fig_8_14")
    >>> cpu = Shares.of_published("Fig 8-14, CPU", table, "share_pct", device="CPU")
    >>> share_bars([cpu], machine_card(), title="A published pie").png[1:4]
    b'PNG'
    """
    figure, axes = _new(9.5, 1.7 + 0.6 * len(shares))
    for place, share in enumerate(shares):
        left = 0.0
        for name, kind, percent in share.parts():
            axes.barh(
                place,
                percent,
                left=left,
                height=0.66,
                color=KIND_COLOURS[kind],
                edgecolor="white",
                hatch=PROVENANCE_HATCH[share.provenance],
            )
            if percent >= 5.5:
                axes.text(
                    left + percent / 2,
                    place,
                    f"{name}\n{percent:.1f}",
                    ha="center",
                    va="center",
                    fontsize=7.5,
                    color=_INK if kind in ("norm", "relu") else "white",
                    bbox={"facecolor": KIND_COLOURS[kind], "edgecolor": "none", "pad": 0.6},
                )
            left += percent
    axes.set_yticks(
        range(len(shares)), [f"{s.label}\n({s.provenance})" for s in shares], fontsize=9
    )
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of the time, %")
    alt = "Stacked bars of forward time. " + ". ".join(share.in_words() for share in shares)
    caption = _share_caption(shares, machine, *notes)
    return Picture(figure, title, caption, alt, _share_legend(shares))


def cost_shares(costs: Sequence[LayerCost], *, title: str) -> Picture:
    """Draw, layer by layer, who holds the parameters and who does the multiplications."""
    costs = [cost for cost in costs if cost.macs]
    figure, axes = _new(9.5, 4.0, 2, sharey=True)
    panels = (
        ("share of the parameters, %", [cost.parameters for cost in costs]),
        ("share of the MACs, %", [cost.macs for cost in costs]),
    )
    words = []
    for axis, (label, counts) in zip(axes, panels, strict=True):
        percent = [100 * count / sum(counts) for count in counts]
        axis.barh(
            [cost.name for cost in costs],
            percent,
            color=[KIND_COLOURS[cost.kind] for cost in costs],
            hatch=PROVENANCE_HATCH[Provenance.COMPUTED],
            edgecolor="white",
        )
        for place, value in enumerate(percent):
            axis.text(value, place, f" {value:.1f}", va="center", fontsize=9)
        axis.set_xlim(0, 1.18 * max(percent))
        axis.set_xlabel(label)
        conv = sum(p for cost, p in zip(costs, percent, strict=True) if cost.kind == "conv")
        words.append(f"{label}: convolution {conv:.1f}, fully connected {100 - conv:.1f}")
    axes[0].invert_yaxis()
    caption = "Computed: counted from the layers' shapes, no clock involved"
    return Picture(figure, title, caption, "; ".join(words), _kind_patches(["conv", "fc"]))


def layer_bars(profile: LayerProfile, *, title: str) -> Picture:
    """Draw each layer's time, median with quartiles; backward beside forward if measured."""
    names = [name for name in profile.forward if profile.kinds[name] != "other"]
    figure, axes = _new(9, 1.7 + (0.32 if profile.backward else 0.25) * len(names))
    series = [("forward", profile.forward, "")]
    if profile.backward:
        series.append(("backward", profile.backward, "\\\\"))
    height = 0.8 / len(series)
    for index, (direction, measurements, hatch) in enumerate(series):
        medians = [measurements[name].median for name in names]
        spread = [
            [max(0.0, measurements[name].median - measurements[name].low) for name in names],
            [max(0.0, measurements[name].high - measurements[name].median) for name in names],
        ]
        axes.barh(
            np.arange(len(names)) + (index - (len(series) - 1) / 2) * height,
            medians,
            height=height,
            xerr=spread,
            color=[KIND_COLOURS[profile.kinds[name]] for name in names],
            hatch=hatch,
            edgecolor="white",
            error_kw={"ecolor": _INK, "elinewidth": 1.2},
            label=direction,
        )
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel(f"time for a batch of {profile.batch}, ms (median, line: quartiles)")
    handles = _kind_patches({profile.kinds[name] for name in names})
    if profile.backward:
        handles += [
            Patch(facecolor=_GREY, edgecolor="white", hatch=hatch, label=direction)
            for direction, _, hatch in series
        ]
    times = profile.layer_ms()
    alt = f"Time of each layer, batch {profile.batch}: " + ", ".join(
        f"{name} {format_number(times[name])} ms" for name in names
    )
    return Picture(figure, title, _profile_caption(profile), alt, handles)


def _profile_caption(profile: LayerProfile) -> str:
    return _caption(
        profile.machine,
        profile.provenance,
        f"batch {profile.batch}, BLAS on {_threads(profile.first)}, "
        f"{len(profile.first.samples)} passes",
    )


def roofline_against_measured(
    profile: LayerProfile, costs: Sequence[LayerCost], ceilings: Ceilings
) -> Picture:
    """Draw, layer by layer, the roofline's time beside the measured one, and their ratio."""
    costs = [cost for cost in costs if cost.bytes]
    measured = {name: measurement.median for name, measurement in profile.forward.items()}
    title = "How far each layer is from the roofline's promise"
    figure, axes = _new(9, 1.6 + 0.25 * len(costs))
    words = []
    for place, cost in enumerate(costs):
        promise, actual = cost.roofline_ms(ceilings), measured[cost.name]
        colour = KIND_COLOURS[cost.kind]
        axes.plot([promise, actual], [place, place], color=colour, linewidth=3, alpha=0.35)
        axes.plot(promise, place, "o", markersize=7, markerfacecolor="white", color=colour)
        axes.plot(actual, place, "o", markersize=7, color=colour)
        axes.text(
            max(promise, actual) * 1.15, place, f"{actual / promise:.1f}x", va="center", fontsize=9
        )
        words.append(f"{cost.name} {actual / promise:.1f}")
    axes.set_xscale("log")
    _plain_log(axes.xaxis)
    axes.set_xlim(right=axes.get_xlim()[1] * 1.6)
    axes.set_yticks(range(len(costs)), [cost.name for cost in costs])
    axes.set_xlabel(f"time for a batch of {profile.batch}, ms")
    axes.set_ylim(len(costs) - 0.4, -0.6)
    legend = [
        Line2D([], [], linestyle="", marker="o", color=_GREY, markerfacecolor=face, label=label)
        for face, label in (
            ("white", f"roofline ({Provenance.COMPUTED})"),
            (_GREY, f"measured ({profile.provenance})"),
        )
    ]
    alt = "Measured time over roofline time: " + ", ".join(words)
    return Picture(figure, title, _profile_caption(profile), alt, legend)


def batch_sweep(profiles: Mapping[int, LayerProfile], *, title: str) -> Picture:
    """Draw the time an image takes, by kind of layer, against the batch size."""
    batches = sorted(profiles)
    figure, (left, right) = _new(9.5, 4.2, 2)
    bottom = np.zeros(len(batches))
    for kind in KINDS:
        each = np.array(
            [profiles[b].kind_shares()[kind] / 100 * profiles[b].total_ms / b for b in batches]
        )
        if kind == "other" and each.max() < 0.01:
            continue
        places = range(len(batches))
        left.bar(
            places, each, bottom=bottom, color=KIND_COLOURS[kind], edgecolor="white", width=0.7
        )
        bottom += each
    left.set_xticks(range(len(batches)), [str(b) for b in batches])
    left.set_xlabel("batch size, images")
    left.set_ylabel("time an image takes, ms")
    for kind in ("conv", "fc"):
        share = [profiles[b].kind_shares()[kind] for b in batches]
        right.plot(range(len(batches)), share, "o-", color=KIND_COLOURS[kind], linewidth=2)
        for place, value in enumerate(share):
            right.annotate(
                f"{value:.0f}",
                (place, value),
                xytext=(0, 7),
                textcoords="offset points",
                ha="center",
                fontsize=9,
            )
    right.set_xticks(range(len(batches)), [str(b) for b in batches])
    right.set_ylim(0, 100)
    right.set_xlabel("batch size, images")
    right.set_ylabel("share of the forward time, %")
    profile = profiles[batches[0]]
    alt = "Time an image takes: " + "; ".join(
        f"batch {b}: {profiles[b].total_ms / b:.1f} ms, "
        f"convolution {profiles[b].kind_shares()['conv']:.0f} %, "
        f"fully connected {profiles[b].kind_shares()['fc']:.0f} %"
        for b in batches
    )
    threads = f"BLAS on {_threads(profile.first)}, medians"
    caption = _caption(profile.machine, profile.provenance, threads)
    return Picture(figure, title, caption, alt, _kind_patches(KINDS[:-1]))


def samples_strip(measurements: Sequence[Measurement], *, title: str) -> Picture:
    """Draw every sample of several measurements of the same thing, the median marked.

    The first measurement is the reference that the ratios are taken to.
    """
    reference = measurements[0].median
    figure, axes = _new(9, 1.3 + 0.5 * len(measurements))
    rng = np.random.default_rng(0)
    for place, measurement in enumerate(measurements):
        heights = place + rng.uniform(-0.17, 0.17, len(measurement.samples))
        axes.plot(
            measurement.samples, heights, "o", color=KIND_COLOURS["conv"], alpha=0.45, markersize=5
        )
        axes.plot([measurement.median] * 2, [place - 0.32, place + 0.32], color=_INK, linewidth=2)
        axes.text(
            1.01,
            place,
            f"{format_number(measurement.median)} {measurement.unit}"
            + (f"\n= {_ratio(measurement.median / reference)}x" if len(measurements) > 1 else ""),
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=9,
        )
    axes.set_yticks(range(len(measurements)), [m.name for m in measurements])
    axes.set_ylim(len(measurements) - 0.4, -0.6)
    medians = [measurement.median for measurement in measurements]
    if max(medians) > 20 * min(medians):
        axes.set_xscale("log")
        _plain_log(axes.xaxis)
    else:
        axes.set_xlim(left=0)
    axes.set_xlabel(f"one dot a run, {measurements[0].unit} (bar: median)")
    alt = f"{title}. " + "; ".join(
        f"{m.name}: median {format_number(m.median)} {m.unit}, from "
        f"{format_number(min(m.samples))} to {format_number(max(m.samples))}, "
        f"{_ratio(m.median / reference)} times the first"
        for m in measurements
    )
    machine, provenance = measurements[0].machine, measurements[0].provenance
    return Picture(figure, title, _caption(machine, provenance), alt)


def _ratio(value: float) -> str:
    """Two decimals, where they say something."""
    return f"{value:.2f}" if 0.01 <= value < 100 else format_number(value)


# --- chapter 02 ---------------------------------------------------------------------------------


def patch_matrix(
    kernel: int,
    stride: int = 1,
    padding: int = 0,
    patch: int = 1,
    *,
    size: int = 5,
    pixel: int | None = None,
) -> Picture:
    """Draw which pixel of a ``size`` x ``size`` image goes to which cell of the patch matrix.

    Args:
        kernel, stride, padding: of a square window on a square image of one channel.
        patch: the patch to frame, counted from 1; what lies past the last stands for the last.
        pixel: the number of a pixel whose copies are circled.

    Raises:
        TypeError, ValueError: as :func:`fastdl_lib.convolution.im2col.output_size`.

    >>> patch_matrix(3, size=4).alt[:60]
    'A 4x4 image and its patches of 3x3 pixels, stride 1, padding'
    """
    outputs = output_size(size, kernel, stride, padding)
    image = np.arange(1, size * size + 1).reshape(size, size)
    matrix = im2col(image[None, None], (kernel, kernel), stride, padding)[0]
    rows, patches = matrix.shape
    patch = min(patch, patches)
    figure, (left, right) = _new(10.5, 4.7, 2, width_ratios=(1, 1.75))
    _number_grid(left, np.pad(image, padding), pixel)
    _number_grid(right, matrix, pixel)
    row, column = divmod(patch - 1, outputs)
    for axis, corner, width, height in (
        (left, (column * stride - 0.5, row * stride - 0.5), kernel, kernel),
        (right, (patch - 1.5, -0.5), 1, rows),
    ):
        frame = Rectangle(corner, width, height, fill=False, edgecolor=_FRAME, linewidth=3.5)
        axis.add_patch(frame)
        frame.set(zorder=3, clip_on=False)
    right.set_xticks([patch - 1], [f"patch {patch}"], color=_FRAME, fontsize=10, weight="bold")
    left.set_xticks(
        [column * stride + (kernel - 1) / 2],
        [f"patch {patch} of {patches}"],
        color=_FRAME,
        fontsize=10,
        weight="bold",
    )
    padded = f", {padding} of padding" if padding else ""
    left.set_title(f"the image: {size}x{size} pixels{padded}", fontsize=10)
    right.set_title(f"the patch matrix: {rows} rows, {patches} columns", fontsize=10)
    right.set_xlabel("one column a patch", fontsize=9)
    right.set_ylabel("one row a place in the window", fontsize=9)
    factor = matrix.size / image.size
    copies = int((matrix == pixel).sum())
    title = f"{image.size} pixels become {matrix.size} numbers, {factor:.1f} times as many"
    if pixel is not None:
        title = f"Pixel {pixel} lies in {copies} patches, so it stands {copies} times in the matrix"
    caption = "Computed: counted, no clock involved | number and shade tell the pixel"
    if padding:
        caption += ", 0 is padding"
    column_of = ", ".join(str(value) for value in matrix[:, patch - 1])
    alt = (
        f"A {size}x{size} image and its patches of {kernel}x{kernel} pixels, stride {stride}, "
        f"padding {padding}: {patches} patches are the columns of a {rows}x{patches} matrix, "
        f"{factor:.1f} times the pixels. Column {patch} holds the pixels {column_of}"
    )
    if pixel is not None:
        alt += f". Pixel {pixel} stands {copies} times in the matrix"
    return Picture(figure, title, caption, alt)


def _number_grid(axis: Any, values: np.ndarray, circled: int | None) -> None:
    """Draw whole numbers in cells shaded by their value; 0 is padding and stays pale."""
    rows, columns = values.shape
    shades = matplotlib.colormaps["cividis"](0.1 + 0.9 * values / values.max())
    shades[values == 0] = matplotlib.colors.to_rgba("#EEEEEE")
    axis.imshow(shades, interpolation="none", aspect="equal" if columns < 3 * rows else "auto")
    size = min(12, 250 / columns, 115 / rows)
    for (row, column), value in np.ndenumerate(values):
        dark = value and shades[row, column, :3].mean() < 0.45
        colour = "white" if dark else _INK if value else _GREY
        axis.text(column, row, value, ha="center", va="center", fontsize=size, color=colour)
        if value == circled:
            axis.plot(column, row, "o", ms=2.2 * size, mfc="none", mec="white", mew=2.4)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    axis.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    axis.grid(which="minor", color="white", linewidth=1.2)
    axis.tick_params(which="both", length=0)
    axis.spines[:].set_visible(False)


def memory_bars(
    memory: Mapping[str, tuple[float, float, float, float]],
    machine: MachineCard,
    *notes: str,
    title: str,
) -> Picture:
    """Draw what im2col holds on top of its input, predicted and measured, beside that input.

    Args:
        memory: for each layer, in MB: its input, its patches, the peak computed beforehand and
            the peak measured.
    """
    figure, axes = _new(9, 1.9 + 0.62 * len(memory))
    hatch = PROVENANCE_HATCH[Provenance.COMPUTED]
    series = (
        (0, f"input ({Provenance.COMPUTED})", _GREY, hatch),
        (2, f"peak on top of it ({Provenance.COMPUTED})", KIND_COLOURS["relu"], hatch),
        (3, f"peak on top of it ({Provenance.MEASURED})", KIND_COLOURS["conv"], ""),
    )
    for index, (column, label, colour, pattern) in enumerate(series):
        places = np.arange(len(memory)) + 0.27 * (index - 1)
        values = [sizes[column] for sizes in memory.values()]
        axes.barh(
            places, values, height=0.25, color=colour, hatch=pattern, edgecolor="white", label=label
        )
        for place, value in zip(places, values, strict=True):
            axes.text(value, place, f" {format_number(value)}", va="center", fontsize=8)
    largest = max(max(sizes) for sizes in memory.values())
    for place, (size, patches, _, _) in enumerate(memory.values()):
        text = f"patches: {patches / size:.1f} times the input"
        axes.text(1.42 * largest, place, text, va="center", ha="right", fontsize=9)
    axes.set_yticks(range(len(memory)), list(memory))
    axes.set_ylim(len(memory) - 0.45, -0.55)
    axes.set_xlim(0, 1.44 * largest)
    axes.set_xlabel("memory, MB")
    alt = "; ".join(
        f"{name}: input {format_number(size)} MB, patches {patches / size:.1f} times that, "
        f"peak {format_number(predicted)} MB (computed) and {format_number(peak)} MB (measured)"
        for name, (size, patches, predicted, peak) in memory.items()
    )
    legend = axes.get_legend_handles_labels()[0]
    return Picture(figure, title, _caption(machine, Provenance.MEASURED, *notes), alt, legend)


_RUNGS = ("#999999", "#56B4E9", "#E69F00", "#0072B2", "#009E73", "#CC79A7", "#D55E00")
_LINES = ("--", ":", "-.")
_PALE_BOX = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.6}


def race(
    speeds: Mapping[tuple[str, str, int], Measurement],
    ceilings: Mapping[int, Measurement],
    *,
    title: str,
) -> Picture:
    """Draw the speed of several algorithms on several layers, a group of bars an algorithm.

    Args:
        speeds: (algorithm, layer, threads) to GFLOP/s. The smallest number of threads is drawn as
            bars, a larger one as diamonds. Algorithms and layers keep their order.
        ceilings: threads to the GFLOP/s of a large product; each becomes a line.
    """
    algorithms = list(dict.fromkeys(algorithm for algorithm, _, _ in speeds))
    rows = list(dict.fromkeys((algorithm, layer) for algorithm, layer, _ in speeds))
    few, *more = sorted({threads for _, _, threads in speeds})
    figure, axes = _new(10, 1.9 + 0.17 * (len(rows) + 1.6 * len(algorithms)))
    left = min(speed.median for speed in speeds.values()) / 3
    places = [i + 1.6 * (1 + algorithms.index(row[0])) for i, row in enumerate(rows)]
    words = dict.fromkeys(algorithms, "")
    for (algorithm, layer), place in zip(rows, places, strict=True):
        colour = _RUNGS[algorithms.index(algorithm) % len(_RUNGS)]
        runs = {
            n: speeds[algorithm, layer, n] for n in (few, *more) if (algorithm, layer, n) in speeds
        }
        for threads, run in runs.items():
            if threads == few:
                axes.barh(
                    place,
                    run.median - left,
                    left=left,
                    height=0.85,
                    color=colour,
                    edgecolor="white",
                    hatch=PROVENANCE_HATCH[run.provenance],
                )
                axes.plot([run.low, run.high], [place, place], color=_INK, linewidth=1.5)
            else:
                axes.plot(run.median, place, "D", color=_INK, mfc="white", ms=5, zorder=3)
        text = " / ".join(format_number(run.median) for run in runs.values())
        end = 1.15 * max(run.high for run in runs.values())
        axes.text(end, place, text, va="center", fontsize=7.5, bbox=_PALE_BOX)
        words[algorithm] += f" {layer} {text}"
    for algorithm in algorithms:
        first = min(p for row, p in zip(rows, places, strict=True) if row[0] == algorithm)
        axes.text(left * 1.08, first - 1.05, algorithm, va="center", fontsize=9.5, weight="bold")
    styles = dict(zip(sorted(ceilings), _LINES, strict=False))
    for threads, style in styles.items():
        axes.axvline(ceilings[threads].median, color=_INK, lw=1.2, linestyle=style, zorder=0)
    axes.set_yticks(places, [layer for _, layer in rows], fontsize=7.5)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(places[-1] + 0.8, -0.2)
    axes.set_xscale("log")
    axes.set_xlim(left, 5 * max(run.median for run in (*speeds.values(), *ceilings.values())))
    _plain_log(axes.xaxis)
    axes.set_xlabel("GFLOP/s: two FLOP for each MAC of the definition, over the time taken")
    legend: list[Artist] = [
        Patch(
            facecolor=_GREY, edgecolor="white", label=f"{threads_in_words(few)} (line: quartiles)"
        )
    ]
    legend += [
        Line2D([], [], ls="", marker="D", color=_INK, mfc="white", ms=5, label=threads_in_words(n))
        for n in more
    ]
    others = dict.fromkeys(run.provenance for run in speeds.values())
    legend += [
        Patch(fc=_GREY, ec="white", hatch=PROVENANCE_HATCH[provenance], label=str(provenance))
        for provenance in others
        if PROVENANCE_HATCH[provenance]
    ]
    legend += [
        Line2D([], [], color=_INK, ls=style, label=f"product ceiling, {threads_in_words(threads)}")
        for threads, style in styles.items()
    ]
    alt = "GFLOP/s: " + "; ".join(f"{name}:{text}" for name, text in words.items())
    for threads in styles:
        ceiling = format_number(ceilings[threads].median)
        alt += f"; product ceiling, {threads_in_words(threads)}: {ceiling}"
    own = list(speeds.values())[-1]
    return Picture(figure, title, _caption(own.machine, own.provenance), alt, legend)


def block_sweep(sweeps: Mapping[str, Mapping[float, Measurement]], *, title: str) -> Picture:
    """Draw the speed of an algorithm against how much memory the patches of a block take.

    Args:
        sweeps: for each line, megabytes of patches to GFLOP/s. A measurement's name, the number
            of images in a block, is written at its dot.
    """
    figure, axes = _new(9, 4.2)
    words = []
    for colour, marker, (label, sweep) in zip(_RUNGS[3:], "osD^", sweeps.items(), strict=False):
        sizes = sorted(sweep)
        speeds = [sweep[size] for size in sizes]
        spread = [[m.median - m.low for m in speeds], [m.high - m.median for m in speeds]]
        medians = [speed.median for speed in speeds]
        axes.errorbar(sizes, medians, spread, fmt=f"{marker}-", color=colour, label=label)
        for size, speed in zip(sizes, speeds, strict=True):
            axes.annotate(
                speed.name,
                (size, speed.high),
                xytext=(0, 6),
                textcoords="offset points",
                ha="center",
                fontsize=9,
                color=colour,
            )
        dots = ", ".join(
            f"{speed.name} at a time, {format_number(size)} MB, {format_number(speed.median)}"
            for size, speed in zip(sizes, speeds, strict=True)
        )
        words.append(f"{label}: {dots} GFLOP/s")
    everything = [speed for sweep in sweeps.values() for speed in sweep.values()]
    axes.set_xscale("log")
    _plain_log(axes.xaxis)
    axes.set_ylim(0, 1.2 * max(speed.high for speed in everything))
    axes.set_xlabel("patches laid out at a time, MB (computed); numbers: images at a time")
    axes.set_ylabel("speed, GFLOP/s (median, line: quartiles)")
    first = everything[0]
    caption = _caption(first.machine, first.provenance, f"run on {_threads(first)}")
    return Picture(figure, title, caption, "; ".join(words), axes.get_legend_handles_labels()[0])


def error_against_speed(
    speeds: Sequence[Measurement], errors: Sequence[float], *, title: str
) -> Picture:
    """Draw the error of several algorithms against their speed; the best corner is bottom right.

    Args:
        speeds: in GFLOP/s; the first one is the algorithm the others want to beat.
        errors: relative to the largest value of the right answer, one for each speed, above 0.
    """
    figure, axes = _new(9, 4.2)
    names = [speed.name for speed in speeds]
    axes.plot(
        [speed.median for speed in speeds[1:]], errors[1:], color=_GREY, linewidth=1, zorder=1
    )
    for place, (speed, error) in enumerate(zip(speeds, errors, strict=True)):
        colour = KIND_COLOURS["conv"] if place else _FRAME
        axes.plot([speed.low, speed.high], [error, error], color=colour, linewidth=2)
        axes.plot(speed.median, error, "o" if place else "D", color=colour, ms=8)
        axes.annotate(
            names[place],
            (speed.median, error),
            # In turn to the right and to the left: neighbours in the list are close in speed.
            xytext=(9, 4) if place % 2 == 0 else (-9, 4),
            ha="left" if place % 2 == 0 else "right",
            textcoords="offset points",
            fontsize=9,
            bbox=_PALE_BOX,
        )
    axes.axvline(speeds[0].median, color=_FRAME, linewidth=0.8, linestyle=":")
    axes.set_yscale("log")
    axes.set_ylim(min(errors) / 3, max(errors) * 4)
    axes.set_xlim(0, 1.25 * max(speed.high for speed in speeds))
    axes.set_xlabel(f"speed, {speeds[0].unit} (line: quartiles)")
    axes.set_ylabel("largest error, relative")
    alt = "; ".join(
        f"{name}: {format_number(speed.median)} {speed.unit}, error {error:.1e}"
        for name, speed, error in zip(names, speeds, errors, strict=True)
    )
    caption = _caption(speeds[0].machine, speeds[0].provenance, f"run on {_threads(speeds[0])}")
    return Picture(figure, title, caption, alt)


class Trial(NamedTuple):
    """One run of an algorithm: its time, its peak of memory and its error."""

    image_ms: Measurement
    """The time of one image, ms; its name says what ran."""
    peak_mb: float
    """The most memory it took on top of its input, MB."""
    error: float
    """The largest error, relative to the largest value of the right answer."""


def trials(results: Sequence[Trial], *, title: str) -> Picture:
    """Draw time, memory and error of what was tried; the last one stands out."""
    results = [Trial(*result) for result in results]
    panels = (
        ("time of an image, ms", [trial.image_ms.median for trial in results]),
        ("peak memory on top, MB", [trial.peak_mb for trial in results]),
        ("largest error, relative", [trial.error for trial in results]),
    )
    figure, axes = _new(10, 1.8 + 0.34 * len(results), 3, sharey=True)
    colours = ["#BBBBBB"] * (len(results) - 1) + [KIND_COLOURS["conv"]]
    for axis, (label, values) in zip(axes, panels, strict=True):
        logarithmic = "error" in label or max(values) > 20 * max(min(values), 1e-12)
        shown = [max(value, 1e-9) for value in values]
        left = min(shown) / 3 if logarithmic else 0
        axis.barh(range(len(results)), np.array(shown) - left, left=left, height=0.7, color=colours)
        for place, value in enumerate(values):
            text = f"{value:.0e}" if "error" in label else format_number(value)
            axis.text(shown[place], place, f" {text}", va="center", fontsize=9)
        if logarithmic:
            axis.set_xscale("log")
            axis.set_xlim(left, 30 * max(shown))
        else:
            axis.set_xlim(0, 1.4 * max(shown))
        axis.set_xlabel(label)
        axis.tick_params(axis="y", length=0)
    axes[0].set_yticks(range(len(results)), [trial.image_ms.name for trial in results])
    axes[0].set_ylim(len(results) - 0.5, -0.5)
    last = results[-1].image_ms
    alt = "; ".join(
        f"{trial.image_ms.name}: {format_number(trial.image_ms.median)} ms an image, "
        f"{format_number(trial.peak_mb)} MB, error {trial.error:.0e}"
        for trial in results
    )
    caption = _caption(last.machine, last.provenance, f"run on {_threads(last)}")
    return Picture(figure, title, caption, alt)


# --- chapter 03 ---------------------------------------------------------------------------------

_DEVICES = {"cpu": ("#0072B2", "CPU"), "gpu": ("#009E73", "GPU")}


def _device_bar(axis: Any, place: float, left: float, m: Measurement, height: float) -> None:
    """A bar from ``left``, where a logarithmic axis begins: CPU or GPU, with quartiles."""
    axis.barh(
        place,
        m.median - left,
        left=left,
        height=height,
        color=_DEVICES[_device(m)][0],
        hatch=PROVENANCE_HATCH[m.provenance],
        edgecolor="white",
    )
    axis.plot([m.low, m.high], [place, place], color=_INK, linewidth=1.5)


def _device(measurement: Measurement) -> str:
    return measurement.conditions.get("device", "cpu")


def _origins(measurements: Collection[Measurement], *notes: str) -> str:
    """A caption that names every machine whose clock ran, then the notes."""
    clocked = (Provenance.MEASURED, Provenance.RECORDED)
    machines = {
        f"{origin.capitalize()}: {m.machine.summary}": None
        for origin in clocked
        for m in measurements
        if m.machine is not None and m.conditions.get("speed_is", m.provenance) == origin
    }
    return " | ".join([*machines, *(note for note in notes if note)])


def _provenance_patches(measurements: Collection[Measurement]) -> list[Patch]:
    """What each hatching that occurs stands for."""
    present = {measurement.provenance for measurement in measurements}
    return [
        Patch(fc=_GREY, ec="white", hatch=hatch, label=str(provenance))
        for provenance, hatch in PROVENANCE_HATCH.items()
        if provenance in present
    ]


def _device_patches(measurements: Collection[Measurement]) -> list[Patch]:
    present = {_device(measurement) for measurement in measurements}
    return [Patch(color=c, label=label) for name, (c, label) in _DEVICES.items() if name in present]


def ladder(panels: Mapping[str, Sequence[Measurement]], *notes: str, title: str) -> Picture:
    """Draw the speed of each rung, slowest first, a panel for each piece of work.

    Args:
        panels: for each piece of work its rungs, all in one unit. A measurement's name is the
            rung's; its condition ``device``, ``"cpu"`` (the default) or ``"gpu"``, the colour.
        notes: for the caption, such as where published rungs come from.
    """
    rungs = list(dict.fromkeys(m.name for measurements in panels.values() for m in measurements))
    everything = [m for measurements in panels.values() for m in measurements]
    figure, axes = _new(10.5, 2.0 + 0.36 * len(rungs), len(panels), sharey=True, squeeze=False)
    words = []
    for axis, (work, measurements) in zip(axes[0], panels.items(), strict=True):
        left = min(m.median for m in measurements) / 3
        first = measurements[0].median
        said = []
        for m in measurements:
            place = rungs.index(m.name)
            _device_bar(axis, place, left, m, height=0.7)
            times = f"{format_number(m.median / first)}x"
            text = f"  {format_number(m.median)} ({times})"
            axis.text(m.high, place, text, va="center", fontsize=9)
            said.append(f"{m.name} {format_number(m.median)} ({m.provenance}), {times}")
        axis.set_xscale("log")
        axis.set_xlim(left, 60 * max(m.median for m in measurements))
        axis.xaxis.set_major_locator(matplotlib.ticker.LogLocator(numticks=5))
        _plain_log(axis.xaxis)
        axis.set_xlabel(f"speed, {measurements[0].unit} (line: quartiles)")
        axis.set_title(work, fontsize=10)
        axis.tick_params(axis="y", length=0)
        words.append(f"{work}, {measurements[0].unit}: " + "; ".join(said))
    axes[0][0].set_yticks(range(len(rungs)), rungs)
    axes[0][0].set_ylim(len(rungs) - 0.5, -0.5)
    legend = [*_device_patches(everything), *_provenance_patches(everything)]
    return Picture(figure, title, _origins(everything, *notes), ". ".join(words), legend)


def size_sweep(
    lines: Mapping[str, Mapping[int, Measurement]],
    *notes: str,
    cpu_wins_to: int | None = None,
    title: str,
) -> Picture:
    """Draw how long a square product takes against its size, a line for each device.

    Args:
        lines: for each label, size to milliseconds; the condition ``device`` gives the colour,
            the provenance the style: solid where a clock ran.
        notes: for the caption, such as what a simulated line rests on.
        cpu_wins_to: the largest size at which the CPU is ahead, shaded up to there.
    """
    figure, axes = _new(9, 4.6)
    styles = {Provenance.MEASURED: "o-", Provenance.RECORDED: "s-", Provenance.SIMULATED: "x--"}
    words = []
    for label, line in lines.items():
        sizes = sorted(line)
        times = [line[size] for size in sizes]
        medians = [time.median for time in times]
        axes.errorbar(
            sizes,
            medians,
            [[t.median - t.low for t in times], [t.high - t.median for t in times]],
            fmt=styles.get(times[0].provenance, "d:"),
            color=_DEVICES[_device(times[0])][0],
            label=f"{label} ({times[0].provenance})",
        )
        dots = ", ".join(f"{n}: {format_number(t)}" for n, t in zip(sizes, medians, strict=True))
        words.append(f"{label} ({times[0].provenance}), ms by size: {dots}")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    _plain_log(axes.xaxis)
    _plain_log(axes.yaxis)
    if cpu_wins_to is not None:
        edges = axes.get_xlim()
        axes.axvspan(edges[0], cpu_wins_to, color=_GREY, alpha=0.12, linewidth=0)
        axes.set_xlim(edges)
        axes.text(
            0.02,
            0.95,
            f"the CPU is ahead up to {cpu_wins_to}",
            transform=axes.transAxes,
            fontsize=9,
            va="top",
            bbox=_PALE_BOX,
        )
        words.append(f"The CPU is ahead up to {cpu_wins_to}")
    axes.set_xlabel("size n of a product n x n times n x n, float32")
    axes.set_ylabel("time, ms (median, line: quartiles)")
    everything = [time for line in lines.values() for time in line.values()]
    legend = axes.get_legend_handles_labels()[0]
    return Picture(figure, title, _origins(everything, *notes), ". ".join(words), legend)


def transfer_bars(
    rows: Mapping[str, Mapping[str, Measurement]], *notes: str, title: str
) -> Picture:
    """Draw what a step takes on the way to the GPU and on it, one part after the other.

    Args:
        rows: for each bar its parts in order, name to milliseconds; all bars share the names. The
            first part is the computing, the others are transfers.
    """
    parts = list(next(iter(rows.values())))
    colours = dict(zip(parts, ("#009E73", "#E69F00", "#CC79A7", "#56B4E9"), strict=False))
    figure, axes = _new(9.5, 1.9 + 0.5 * len(rows))
    words = []
    for place, (label, row) in enumerate(rows.items()):
        left = 0.0
        for part, time in row.items():
            axes.barh(
                place,
                time.median,
                left=left,
                height=0.62,
                color=colours[part],
                hatch=PROVENANCE_HATCH[time.provenance],
                edgecolor="white",
            )
            left += time.median
        moving = left - row[parts[0]].median
        text = f"{format_number(left)} ms, {100 * moving / left:.0f} % of it on the way"
        axes.text(left, place, f"  {text}", va="center", fontsize=9)
        said = ", ".join(f"{part} {format_number(time.median)}" for part, time in row.items())
        words.append(f"{label}: {said}; {text}")
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, 1.5 * max(sum(t.median for t in row.values()) for row in rows.values()))
    axes.set_xlabel("time for one batch, ms")
    legend = [Patch(color=colours[part], label=part) for part in parts]
    legend += _provenance_patches([time for row in rows.values() for time in row.values()])
    return Picture(figure, title, " | ".join(notes), "; ".join(words), legend)


def memory_against_batch(
    needs: Mapping[str, Mapping[int, float]],
    limits: Mapping[str, float],
    *notes: str,
    title: str,
) -> Picture:
    """Draw the memory a batch needs against its size, and what machines have, as lines.

    Args:
        needs: for each line, batch size to bytes, counted.
        limits: name, as it is written at the line, to the bytes of a memory.
    """
    figure, axes = _new(9, 4.6)
    words = []
    for (label, line), colour, marker in zip(needs.items(), _RUNGS[3:], "osD^", strict=False):
        batches = sorted(line)
        gigabytes = [line[batch] / 1e9 for batch in batches]
        axes.plot(batches, gigabytes, f"{marker}--", color=colour, label=label)
        words.append(
            f"{label}: "
            + ", ".join(
                f"batch {batch} {format_number(size)} GB"
                for batch, size in zip(batches, gigabytes, strict=True)
            )
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.margins(x=0.02)
    for name, size in limits.items():
        axes.axhline(size / 1e9, color=_INK, linewidth=0.9, linestyle=":")
        axes.text(
            0.01,
            size / 1e9,
            name,
            transform=axes.get_yaxis_transform(),
            va="bottom",
            fontsize=9,
        )
        words.append(f"{name} has {format_number(size / 1e9)} GB")
    _plain_log(axes.xaxis)
    _plain_log(axes.yaxis)
    axes.set_xlabel("batch, images")
    axes.set_ylabel(f"memory, GB ({Provenance.COMPUTED})")
    caption = " | ".join(["Computed: counted from the layers' shapes, float32", *notes])
    return Picture(figure, title, caption, "; ".join(words), axes.get_legend_handles_labels()[0])


def training_days(groups: Mapping[str, Sequence[Measurement]], *notes: str, title: str) -> Picture:
    """Draw how many days a training takes, group by group, on a logarithmic axis.

    Args:
        groups: heading to bars, all in days; those that :func:`fastdl_lib.measuring.costs.training_days`
            computed say from which speed.
        notes: for the caption, such as where published numbers come from.
    """
    bars = [m for group in groups.values() for m in group]
    figure, axes = _new(10.5, 2.0 + 0.3 * (len(bars) + 1.3 * len(groups)))
    left = min(m.low for m in bars) / 2
    place, places, words = 0.0, [], []
    for heading, group in groups.items():
        axes.text(left * 1.04, place, heading, va="center", fontsize=9.5, weight="bold")
        place += 1
        for m in group:
            _device_bar(axes, place, left, m, height=0.78)
            text = f"{format_number(m.median)} days ({m.provenance})"
            if "speed_is" in m.conditions:
                speed = f"{format_number(m.conditions['images_per_s'])} images/s"
                text = text.replace(")", f" from {speed}, {m.conditions['speed_is']})")
            axes.text(m.high, place, f"  {text}", va="center", fontsize=8.5)
            words.append(f"{m.name}: {text}")
            places.append(place)
            place += 1
        place += 0.3
    axes.set_yticks(places, [m.name for m in bars], fontsize=9)
    axes.set_ylim(place - 0.6, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_xscale("log")
    # The texts behind the bars take up to half of the width.
    axes.set_xlim(left, left * (max(m.high for m in bars) / left) ** 2)
    _plain_log(axes.xaxis)
    axes.set_xlabel("days to train AlexNet (line: quartiles)")
    legend = [*_device_patches(bars), *_provenance_patches(bars)]
    return Picture(figure, title, _origins(bars, *notes), "; ".join(words), legend)


# --- chapter 04 ---------------------------------------------------------------------------------

_PARTS = {"computing": "#0072B2", "waiting": "#E69F00", "communicating": "#D55E00"}


def _all_reduce(way: str, workers: int) -> tuple[list[list[list[set[int]]]], float]:
    """Who holds whose sums after each step, [step][worker][chunk], and the gradients' share of
    what the busiest link carries in one direction, all steps together."""
    if way == "ring":
        holds = [[{w} for _ in range(workers)] for w in range(workers)]
        states = [holds]
        for step in range(2 * (workers - 1)):
            holds = [[set(chunk) for chunk in own] for own in holds]
            for worker in range(workers):
                chunk = (worker - step) % workers
                holds[(worker + 1) % workers][chunk] |= states[-1][worker][chunk]
            states.append(holds)
        return states, 2 * (workers - 1) / workers
    states, distance = [[[{w}] for w in range(workers)]], 1
    ups = []
    while distance < workers:
        ups.append([(w + distance, w) for w in range(0, workers - distance, 2 * distance)])
        distance *= 2
    downs = [[(parent, child) for child, parent in pairs] for pairs in reversed(ups)]
    for pairs in ups + downs:
        holds = [[set(own[0])] for own in states[-1]]
        for source, target in pairs:
            holds[target][0] |= states[-1][source][0]
        states.append(holds)
    return states, float(len(ups + downs))


def all_reduce_steps(way: str, workers: int = 4) -> Picture:
    """Draw who holds which sums after each step of an all-reduce.

    Args:
        way: ``"ring"`` cuts the gradients into one chunk a worker, ``"tree"`` sends them whole.
        workers: from 2 up.

    Raises:
        ValueError: another way, or fewer than 2 workers.
    """
    if way not in ("ring", "tree") or workers < 2:
        raise ValueError(f"a 'ring' or a 'tree' of 2 workers or more, got {way!r}, {workers}.")
    states, moved = _all_reduce(way, workers)
    chunks = len(states[0][0])
    wide, tall = 0.27 * chunks + 0.22, 0.27 * workers + 0.3
    figure, axes = _new(max(8.5, wide * len(states) + 0.7), 1.35 + tall, len(states))
    shades = matplotlib.colors.LinearSegmentedColormap.from_list("", ["white", "#0072B2"])
    for step, (axis, holds) in enumerate(zip(axes, states, strict=True)):
        for worker, chunk in np.ndindex(workers, chunks):
            has, before = holds[worker][chunk], states[max(0, step - 1)][worker][chunk]
            new = has != before
            box = Rectangle(
                (chunk, worker), 1, 1, facecolor=shades(0.75 * (len(has) - 1) / (workers - 1)),
                edgecolor=_FRAME if new else _GREY, linewidth=2.2 if new else 0.6,
                zorder=3 if new else 2,
            )  # fmt: skip
            axis.add_patch(box)
            text = "all" if len(has) == workers else "".join(str(w + 1) for w in sorted(has))
            axis.text(
                chunk + 0.5, worker + 0.5, text, ha="center", va="center", fontsize=7.5, zorder=4
            )
        axis.set_xlim(-0.05, chunks + 0.05)
        axis.set_ylim(workers + 0.05, -0.05)
        axis.set_aspect("equal")
        axis.spines[:].set_visible(False)
        axis.set_xticks([])
        axis.set_yticks([w + 0.5 for w in range(workers)] if not step else [])
        axis.tick_params(length=0)
        axis.set_title("start" if not step else f"step {step}", fontsize=9)
    axes[0].set_yticklabels([f"worker {w + 1}" for w in range(workers)])
    steps = len(states) - 1
    title = (
        f"All-reduce by a {way}: {steps} steps, {format_number(moved)} times the gradients' bytes"
    )
    pieces = f"{chunks} chunks" if chunks > 1 else "one piece"
    caption = (
        f"Computed: gradients in {pieces}; a number names a worker whose gradients are in the sum; "
        "framed: it has just arrived"
    )
    ends = ["/".join("all" if len(c) == workers else "-" for c in own) for own in states[-1]]
    alt = (
        f"{title}. {workers} workers, gradients in {pieces}. At the end they hold: "
        f"{'; '.join(ends)}"
    )
    return Picture(figure, title, caption, alt)


class ScalingLine(NamedTuple):
    """A line over the number of workers."""

    label: str
    workers: Sequence[int]
    values: Sequence[float]
    provenance: Provenance


def scaling_lines(
    lines: Sequence[ScalingLine],
    *notes: str,
    title: str,
    logarithmic: bool = True,
) -> Picture:
    """Draw speed-ups against the number of workers.

    Args:
        lines: what was published is drawn as dots, what was simulated dashed, both in the colour
            of their label, which two lines may share.
        notes: for the caption.
        logarithmic: both axes; otherwise neither.
    """
    figure, axes = _new(9, 4.8)
    styles = {Provenance.PUBLISHED: "o", Provenance.SIMULATED: "--", Provenance.COMPUTED: ":"}
    lines = [ScalingLine(*line) for line in lines]
    labels = list(dict.fromkeys(line.label for line in lines))
    words = []
    for line in lines:
        axes.plot(
            line.workers,
            line.values,
            styles.get(line.provenance, "-"),
            color=_RUNGS[3:][labels.index(line.label) % len(_RUNGS[3:])],
            linewidth=2,
            label=f"{line.label} ({line.provenance})",
        )
        dots = zip(line.workers, line.values, strict=True)
        text = ", ".join(f"{n}: {format_number(v)}" for n, v in dots)
        words.append(f"{line.label} ({line.provenance}): {text}")
    ends = [min(line.workers[0] for line in lines), max(line.workers[-1] for line in lines)]
    axes.plot(ends, ends, color=_GREY, linewidth=0.9, linestyle=":", label="as many times")
    if logarithmic:
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        _plain_log(axes.xaxis)
        _plain_log(axes.yaxis)
    axes.set_xlabel("workers (GPUs)")
    axes.set_ylabel("speed-up over one GPU")
    axes.legend(loc="upper left", frameon=False, fontsize=9)
    return Picture(figure, title, " | ".join(notes), ". ".join(words))


def step_parts(scaling: Scaling, *notes: str, title: str) -> Picture:
    """Draw what a simulated step is made of, and the speed-up, against the number of workers."""
    figure, (left, right) = _new(9.5, 4.3, 2)
    places, bottom = np.arange(len(scaling.workers)), np.zeros(len(scaling.workers))
    values = (scaling.compute_s, scaling.waiting_s, scaling.communication_s)
    for colour, seconds in zip(_PARTS.values(), values, strict=True):
        left.bar(
            places, seconds, bottom=bottom, color=colour, width=0.75, edgecolor="white",
            hatch=PROVENANCE_HATCH[Provenance.SIMULATED],
        )  # fmt: skip
        bottom = bottom + seconds
    left.set_xticks(places, [str(n) for n in scaling.workers])
    left.set_xlabel("workers (GPUs)")
    left.set_ylabel(f"a step, s ({Provenance.SIMULATED})")
    right.plot(scaling.workers, scaling.workers, ":", color=_GREY, linewidth=0.9)
    right.plot(scaling.workers, scaling.speedup, "x--", color=KIND_COLOURS["conv"], linewidth=2)
    last = f"{scaling.speedup[-1]:.1f}x, {scaling.efficiency_pct[-1]:.0f} %"
    right.text(0.97, 0.06, last, transform=right.transAxes, ha="right", fontsize=10)
    right.set_xscale("log", base=2)
    right.set_yscale("log", base=2)
    _plain_log(right.xaxis)
    _plain_log(right.yaxis)
    right.set_xlabel("workers (GPUs)")
    right.set_ylabel("speed-up (dotted: as many times)")
    rows = zip(scaling.workers, *values, scaling.speedup, strict=True)
    words = "; ".join(
        f"{n} workers: computing {format_number(c)} s, waiting {format_number(w)} s, "
        f"communicating {format_number(m)} s, speed-up {format_number(s)}"
        for n, c, w, m, s in rows
    )
    legend = [Patch(color=colour, label=part) for part, colour in _PARTS.items()]
    caption = " | ".join([f"{Provenance.SIMULATED.capitalize()}: {scaling.job.name}", *notes])
    return Picture(figure, title, caption, f"{title}. {words}", legend)


def epoch_lines(
    lines: Mapping[str, Sequence[float]], origin: MachineCard, *notes: str, title: str, ylabel: str
) -> Picture:
    """Draw what was measured after each epoch, a line for each way to train.

    Args:
        lines: label to one number an epoch.
        origin: the machine that trained.
    """
    figure, axes = _new(9, 4.3)
    markers = "osD^vPX"
    for place, (label, values) in enumerate(lines.items()):
        epochs = range(1, len(values) + 1)
        colour = _RUNGS[::-1][place % len(_RUNGS)]
        axes.plot(epochs, values, f"{markers[place % 7]}-", color=colour, label=label, linewidth=2)
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"{ylabel} ({Provenance.MEASURED})")
    words = "; ".join(
        f"{label}: {', '.join(format_number(v) for v in values)}" for label, values in lines.items()
    )
    caption = _caption(origin, Provenance.MEASURED, *notes)
    axes.legend(loc="best", frameon=False, fontsize=9)
    return Picture(figure, title, caption, f"{ylabel} by epoch. {words}")


def prediction_bars(
    groups: Mapping[str, Sequence[Measurement]], *notes: str, title: str
) -> Picture:
    """Draw predictions beside what was measured then, group by group, all in one unit.

    Args:
        groups: heading to bars; hatching shows which were simulated.
    """
    bars = [m for group in groups.values() for m in group]
    figure, axes = _new(9.5, 1.7 + 0.42 * (len(bars) + 0.8 * len(groups)))
    place, ticks, words = 0.0, [], []
    for heading, group in groups.items():
        axes.text(0, place, heading, va="center", fontsize=9.5, weight="bold")
        place += 0.9
        for m in group:
            axes.barh(
                place, m.median, height=0.72, edgecolor="white",
                color=_GREY if m.provenance is Provenance.SIMULATED else KIND_COLOURS["conv"],
                hatch=PROVENANCE_HATCH[m.provenance],
            )  # fmt: skip
            axes.plot([m.low, m.high], [place, place], color=_INK, linewidth=1.5)
            text = f"{format_number(m.median)} {m.unit} ({m.provenance})"
            axes.text(m.high, place, f"  {text}", va="center", fontsize=9)
            words.append(f"{heading}, {m.name}: {text}")
            ticks.append(place)
            place += 1
    axes.set_yticks(ticks, [m.name for m in bars], fontsize=9)
    axes.set_ylim(place - 0.5, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, 1.45 * max(m.high for m in bars))
    axes.set_xlabel(f"{bars[0].unit} (line: quartiles)")
    return Picture(
        figure, title, _origins(bars, *notes), "; ".join(words), _provenance_patches(bars)
    )


# --- chapter 05 ---------------------------------------------------------------------------------

_BITS = {"sign": "#CC79A7", "exponent": "#E69F00", "fraction": "#56B4E9"}
_SERIES = tuple(zip(_RUNGS[::-1], ("-", "--", "-.", ":", "-", "--", "-."), "osD^vPX", strict=True))


def bit_layout(
    number_format: FloatFormat,
    value: float | str,
    *,
    asked: float | None = None,
    title: str | None = None,
) -> Picture:
    """Draw the bits of a number, what each counts, and how they become the number.

    Args:
        number_format: a float format of up to 32 bits.
        value: a number, which is rounded to the format, or its bits as a string of 0s and 1s.
        asked: the number that was meant, if bits are given: those that differ from its bits are
            framed, and the error is that against it.
        title: by default, what became of the number.

    Raises:
        TypeError: the format is no float format.
        ValueError: it has more than 32 bits, or the bits do not fit it.

    >>> from fastdl_lib.precision.formats import FLOAT16
    >>> print(bit_layout(FLOAT16, 0.1).alt[:59])
    0.1 as float16 is 0.0999755859375. Bits: 0 01011 1001100110
    """
    if not isinstance(number_format, FloatFormat):
        raise TypeError(f"{number_format!r} has no exponent; give a float format such as FLOAT16.")
    if number_format.bits > 32:
        raise ValueError(
            f"{number_format.name} has {number_format.bits} bits; 32 at most fit into the figure."
        )
    exponent_bits, fraction_bits = number_format.exponent_bits, number_format.fraction_bits
    if isinstance(value, str):
        stored = number_format.value_of(value)
        bits = "".join(value.split())
    else:
        asked = float(value)
        bits = number_format.bits_of(asked).replace(" ", "")
        stored = number_format.value_of(bits)
    meant = bits if asked is None else number_format.bits_of(asked).replace(" ", "")
    figure, axes = _new(9.5, 3.7)
    for place, (bit, unchanged) in enumerate(zip(bits, meant, strict=True)):
        from_right = len(bits) - 1 - place
        if place == 0:
            part, weight = "sign", "+/-"
        elif place <= exponent_bits:
            part, weight = "exponent", f"{2 ** (exponent_bits - place)}"
        else:
            part, weight = "fraction", f"$2^{{-{place - exponent_bits}}}$"
        flipped = bit != unchanged
        box = Rectangle(
            (place, 0), 1, 1, facecolor=_BITS[part], alpha=0.9 if bit == "1" else 0.3,
            edgecolor="white", linewidth=1.5,
        )  # fmt: skip
        axes.add_patch(box)
        if flipped:
            frame = Rectangle((place + 0.06, 0.05), 0.88, 0.9, fill=False, ec=_INK, lw=2.5)
            axes.add_patch(frame)
        centre = {"ha": "center", "va": "center"}
        axes.text(place + 0.5, 0.5, bit, fontsize=13, color=_INK, **centre)
        axes.text(place + 0.5, 1.17, str(from_right), fontsize=7.5, color=_GREY, **centre)
        axes.text(place + 0.5, -0.2, weight, fontsize=8.5, color=_INK, **centre)
    axes.set_xlim(-0.02, max(len(bits), 16) + 0.02)
    axes.set_ylim(-1.95, 1.3)
    axes.spines[:].set_visible(False)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(
        "above each bit its number, below it what a 1 there counts", fontsize=8.5, color=_GREY
    )
    formula, plain = _decoding(number_format, bits, stored)
    axes.text(0, -0.92, formula, fontsize=13, color=_INK, va="center")
    fate = _stored_in_words(number_format, asked, stored)
    axes.text(0, -1.6, fate, fontsize=10.5, color=_INK, va="center")
    for text in axes.texts:  # long ones would squeeze the boxes, and measuring takes time
        text.set_in_layout(False)
    spaced = f"{bits[0]} {bits[1 : 1 + exponent_bits]} {bits[1 + exponent_bits :]}"
    name = number_format.name
    is_what = f"{spaced} in {name}" if asked is None else f"{asked:.8g} as {name}"
    flips = [str(len(bits) - 1 - i) for i in range(len(bits)) if bits[i] != meant[i]]
    with_flips = f" with bit {', '.join(flips)} flipped" if flips else ""
    title = title or f"{is_what}{with_flips} is {stored:.13g}"
    caption = (
        f"Computed: {name} has 1 bit of sign, {exponent_bits} of exponent (bias "
        f"{number_format.bias}), {fraction_bits} of fraction | dark: 1, pale: 0, framed: flipped"
    )
    alt = f"{is_what}{with_flips} is {stored:.13g}. Bits: {spaced}. {plain}. {fate}"
    legend = [Patch(color=colour, label=part) for part, colour in _BITS.items()]
    return Picture(figure, title, caption, alt, legend)


def _decoding(number_format: FloatFormat, bits: str, stored: float) -> tuple[str, str]:
    """How the bits become the number: for the figure, and in plain text."""
    end = 1 + number_format.exponent_bits
    sign, exponent, fraction = bits[0], int(bits[1:end], 2), int(bits[end:], 2)
    signed = "-" if sign == "1" else ""
    if math.isnan(stored):
        last = "all ones: NaN, not a number"
        words = (
            f"exponent all ones, fraction {'not 0: NaN' if number_format.has_infinity else last}"
        )
        return words, words
    if math.isinf(stored):
        words = f"exponent all ones, fraction 0: {signed}infinity"
        return words, words
    if stored == 0:
        words = f"exponent and fraction all zeros: {signed}0"
        return words, words
    share = fraction / 2**number_format.fraction_bits
    if exponent == 0:
        biased, factor, note = 1, share, "   (subnormal: no 1 is hidden)"
    else:
        biased, factor, note = exponent, 1 + share, ""
    shown = f"{biased} - {number_format.bias}"
    formula = rf"$(-1)^{sign} \times 2^{{{shown}}} \times {factor:.9g}$ = {stored:.9g}{note}"
    plain = f"(-1)^{sign} x 2^({shown}) x {factor:.9g} = {stored:.9g}{note}"
    return formula, plain


def _stored_in_words(number_format: FloatFormat, asked: float | None, stored: float) -> str:
    """What was asked for, what is stored, and the error."""
    if asked is None:
        return f"stored: {stored:.13g}"
    said = f"asked: {asked:.13g}    stored: {stored:.13g}    "
    if asked == stored or (math.isnan(asked) and math.isnan(stored)):
        return said + "exact"
    if not (math.isfinite(stored) and math.isfinite(asked)):
        beyond = abs(asked) > number_format.largest
        return said + f"largest: {number_format.largest:.6g}" * beyond
    error = f"error: {stored - asked:.3g}"
    if asked == 0:
        return said + error
    if abs(stored) > 2 * abs(asked):
        return said + f"{format_number(stored / asked)} times what was asked"
    return said + f"{error}, {format_number(100 * abs((stored - asked) / asked))} % of it"


def _in_digits(number_format: NumberFormat) -> str:
    """How fine a format is, below its name."""
    if isinstance(number_format, FloatFormat):
        digits = (number_format.fraction_bits + 1) * math.log10(2)
        return f"{number_format.fraction_bits} fraction bits: {digits:.1f} digits"
    return f"steps of {number_format.smallest_subnormal:g}"


def _range_bar(axis: Any, place: float, number_format: NumberFormat, height: float = 0.5) -> None:
    """A bar over powers of two from the smallest number, pale up to the smallest normal one."""
    lowest, normal, largest = (
        math.log2(number)
        for number in (
            number_format.smallest_subnormal,
            number_format.smallest_normal,
            number_format.largest,
        )
    )
    colour = "#0072B2" if isinstance(number_format, FloatFormat) else "#E69F00"
    axis.barh(place, normal - lowest, left=lowest, height=height, color=colour, alpha=0.35)
    axis.barh(place, largest - normal, left=normal, height=height, color=colour)


def _powers_of_two(axis: Any) -> None:
    axis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda v, _: f"$2^{{{v:.0f}}}$"))


def _range_patches(formats: Sequence[NumberFormat]) -> list[Patch]:
    patches = [Patch(color="#0072B2", label="normal numbers: all digits")]
    if any(isinstance(number_format, FloatFormat) for number_format in formats):
        patches.append(Patch(color="#0072B2", alpha=0.35, label="subnormal: digits get lost"))
    if not all(isinstance(number_format, FloatFormat) for number_format in formats):
        patches.append(Patch(color="#E69F00", label="evenly spaced"))
    return patches


def format_ranges(formats: Sequence[NumberFormat], *, title: str) -> Picture:
    """Draw from which to which size the positive numbers of each format reach.

    Args:
        formats: one bar each; integers with a scale are drawn at the scale 1.
    """
    figure, axes = _new(9.5, 1.7 + 0.52 * len(formats))
    # float64 would leave the others no room: it runs out of the picture.
    left, right = -176, 155
    words = []
    for place, number_format in enumerate(formats):
        _range_bar(axes, place, number_format)
        smallest, largest = number_format.smallest_subnormal, number_format.largest
        ends = ((smallest, math.log2(smallest), -1.5), (largest, math.log2(largest), 1.5))
        for number, power, beside in ends:
            text = f"{number:,.6g}" if 1 <= number < 1e6 else f"{number:.1e}"
            at, colour = power + beside, _INK
            if not left < power < right:
                text = (
                    f"\N{LEFTWARDS ARROW} {text}" if beside < 0 else f"{text} \N{RIGHTWARDS ARROW}"
                )
                at, beside, colour = (left if beside < 0 else right) - beside, -beside, "white"
            side = "left" if beside > 0 else "right"
            axes.text(at, place, text, ha=side, va="center", fontsize=9, color=colour)
        words.append(
            f"{number_format.name}, {number_format.bits} bits: {smallest:.3g} to {largest:.6g}, "
            f"{_in_digits(number_format)}"
        )
    names = [f"{number_format.name}\n{_in_digits(number_format)}" for number_format in formats]
    axes.set_yticks(range(len(formats)), names)
    axes.set_ylim(len(formats) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.axvline(0, color=_INK, linewidth=0.9, linestyle=":")
    axes.set_xlim(left, right)
    axes.set_xticks(range(-140, 140, 20))
    _powers_of_two(axes.xaxis)
    axes.set_xlabel("size of a positive number (dotted: 1)")
    caption = "Computed: from the smallest number above 0 to the largest of each format"
    return Picture(figure, title, caption, "; ".join(words), _range_patches(formats))


def magnitude_histogram(
    groups: Mapping[str, Any],
    formats: Sequence[NumberFormat],
    origin: MachineCard,
    *notes: str,
    title: str,
    least: int = -60,
) -> Picture:
    """Draw how large values are, power of two by power of two, above what formats can hold.

    Args:
        groups: label to an array of any shape, NumPy or CuPy. Zeros are counted apart.
        formats: a bar below the histogram each, with a line up at both of its ends.
        origin: the machine that computed the values.
        notes: for the caption.
        least: smaller powers of two are counted with this one, in the first step.

    Raises:
        ValueError: a value is infinite or NaN.
    """
    figure = Figure(figsize=(9.5, 4.1 + 0.3 * len(formats)), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[8, 0.8 + 0.85 * len(formats)])
    for axis in (upper, lower):
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=9)
    words, ends = [], []
    for (label, array), (colour, style, _) in zip(groups.items(), _SERIES, strict=False):
        sizes = np.abs(to_cpu(array).astype(np.float64)).ravel()
        if not np.isfinite(sizes).all():
            raise ValueError(f"{label!r} holds infinite values or NaN, which have no size.")
        zeros = 100 * float(np.mean(sizes == 0))
        sizes = sizes[sizes > 0]
        powers = np.maximum(np.frexp(sizes)[1] - 1, least)
        first, last = (int(powers.min()), int(powers.max())) if sizes.size else (0, 0)
        share = 100 * np.bincount(powers - first, minlength=1) / max(1, to_cpu(array).size)
        # Stairs that start and end on the axis.
        edges = np.arange(first, last + 2)
        text = f"{label} ({zeros:.0f} % are 0)"
        upper.stairs(share, edges, color=colour, linestyle=style, linewidth=2, label=text)
        upper.stairs(share, edges, color=colour, fill=True, alpha=0.12)
        ends += [first, last + 1]
        start = f"2^{first}" if first > least else "less"
        said = [f"{label}: {zeros:.1f} % are 0, the others from {start} to 2^{last + 1}"]
        for number_format in formats if sizes.size else ():
            lost = 100 * float(np.mean(sizes <= number_format.smallest_subnormal / 2))
            over = 100 * float(np.mean(sizes > number_format.largest))
            said.append(
                f"of these {format_number(lost)} % become 0 in {number_format.name} and "
                f"{format_number(over)} % lie beyond its largest"
            )
        words.append(", ".join(said))
    for place, number_format in enumerate(formats):
        _range_bar(lower, place, number_format)
        for number in (number_format.smallest_subnormal, number_format.largest):
            power = math.log2(number)
            upper.axvline(power, color=_GREY, linewidth=0.9, linestyle=":")
            lower.plot([power, power], [-0.7, place], color=_GREY, linewidth=0.9, linestyle=":")
    # Formats that reach further than everything else may run out of the picture.
    reach = [math.log2(f.smallest_subnormal) for f in formats if f.smallest_subnormal > 1e-20]
    reach += [math.log2(f.largest) for f in formats if f.largest < 1e20]
    upper.set_xlim(min([*ends, *reach]) - 2, max([*ends, *reach]) + 2)
    upper.set_ylim(bottom=0)
    upper.set_ylabel("share of all values, %")
    # A legend between the two: the histogram keeps all of its room.
    upper.legend(
        loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, frameon=False, fontsize=9,
        borderaxespad=0.2,
    )  # fmt: skip
    lower.set_yticks(range(len(formats)), [number_format.name for number_format in formats])
    lower.set_ylim(len(formats) - 0.4, -0.6)
    lower.tick_params(axis="y", length=0)
    lower.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(14, integer=True))
    _powers_of_two(lower.xaxis)
    lower.set_xlabel("size |x| of a value, in powers of two")
    step = "a step holds the values between two powers of two"
    if min(ends) == least:
        step += f", the first one all below 2^{least + 1} too"
    upper.set_xlabel(step, fontsize=8.5)
    alt = f"Sizes of values. {'. '.join(words)}"
    caption = _caption(origin, Provenance.MEASURED, *notes)
    return Picture(figure, title, caption, alt, _range_patches(formats))


def _apart(places: Sequence[float], least: float, low: float, high: float) -> list[float]:
    """Move labels at these heights until two are at least ``least`` apart, between two bounds."""
    order = np.argsort(places, kind="stable")
    moved = [0.0] * len(places)
    floor = low
    for rank, index in enumerate(order):
        moved[index] = max(places[index], floor)
        floor = moved[index] + least
        # Room must be left for the labels above.
        top = high - least * (len(places) - 1 - rank)
        moved[index] = max(low, min(moved[index], top))
    return moved


def loss_curves(
    curves: Mapping[str, Sequence[float]],
    origin: MachineCard,
    *notes: str,
    title: str,
    ylabel: str = "training loss",
    provenance: Provenance = Provenance.MEASURED,
) -> Picture:
    """Draw training losses step by step, as moving means, with the name at each line's end.

    Args:
        curves: label to one number a step, up to 8 lines. A line ends with a cross where a number
            is infinite or NaN.
        origin: the machine that trained.
        notes: for the caption.

    Raises:
        ValueError: no line, or more than 8.
    """
    if not 1 <= len(curves) <= 8:
        raise ValueError(f"1 to 8 lines can be told apart, got {len(curves)}.")
    figure, axes = _new(9.5, 4.5)
    series = [*_SERIES, (_INK, ":", "*")]
    width = max(1, max(len(curve) for curve in curves.values()) // 40)
    ends, words = [], []
    for (label, curve), (colour, style, marker) in zip(curves.items(), series, strict=False):
        values = np.asarray(curve, dtype=np.float64)
        finite = np.isfinite(values)
        count = len(values) if finite.all() else int(np.argmin(finite))
        sums = np.cumsum(np.insert(values[:count], 0, 0.0))
        steps = np.arange(1, count + 1)
        start = np.maximum(0, steps - width)
        means = (sums[steps] - sums[start]) / (steps - start)
        axes.plot(
            steps, means, style, color=colour, linewidth=1.8, marker=marker, markersize=5,
            markevery=(max(1, count // 20), max(1, count // 8)),
        )  # fmt: skip
        at, last = (count, float(means[-1])) if count else (1, float("nan"))
        text = f"{label}: {last:.3g}"
        said = f"{label}: from {means[0]:.3g} to {last:.3g} after {at} steps" if count else label
        if count < len(values):
            axes.plot(at, last, "x", color=colour, markersize=10, markeredgewidth=2.5, zorder=4)
            text = f"{label}: NaN after step {count}"
            said += f", not finite from step {count + 1} on"
        ends.append((text, colour, marker, at, last))
        words.append(said)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    low, high = axes.get_ylim()
    right = max(at for *_, at, _ in ends)
    axes.set_xlim(0, right)
    heights = [high if math.isnan(last) else last for *_, last in ends]
    places = _apart(heights, (high - low) / 15, low, high)
    beside = axes.get_yaxis_transform()
    for (text, colour, marker, at, last), place in zip(ends, places, strict=True):
        axes.plot(1.05, place, marker, color=colour, markersize=5, transform=beside, clip_on=False)
        axes.annotate(
            text,
            (at, last if math.isfinite(last) else high),
            xytext=(1.065, place),
            textcoords=beside,
            va="center",
            fontsize=9,
            color=_INK,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "lw": 0.9,
                "relpos": (0, 0.5),
                "shrinkA": 5,
                "shrinkB": 0,
            },
            annotation_clip=False,
        )
    axes.set_xlabel("step")
    axes.set_ylabel(f"{ylabel} ({provenance})")
    smooth = f"each point the mean of {width} steps" if width > 1 else ""
    caption = _caption(origin, provenance, smooth, *notes)
    return Picture(figure, title, caption, f"{ylabel.capitalize()}. {'; '.join(words)}")


def accuracy_lines(
    panels: Mapping[tuple[str, str], Mapping[str, tuple[Sequence[float], Sequence[float]]]],
    origin: MachineCard,
    *notes: str,
    title: str,
    lowest: float = 0,
) -> Picture:
    """Draw accuracy against something, one to three panels side by side.

    Args:
        panels: ``(what is on the axis, "linear" or "log")`` to lines, label to numbers and to the
            accuracy at each, %. A label keeps its colour in all panels.
        origin: the machine that counted the right answers.
        notes: for the caption.
        lowest: where the vertical axis begins, %.

    Raises:
        ValueError: no panel or more than 3, another scale, or a logarithm of 0.
    """
    if not 1 <= len(panels) <= 3:
        raise ValueError(f"1 to 3 panels fit beside each other, got {len(panels)}.")
    figure, axes = _new(9.5, 4.4, len(panels), sharey=True, squeeze=False)
    labels = list(dict.fromkeys(label for lines in panels.values() for label in lines))
    words = []
    for axis, ((xlabel, scale), lines) in zip(axes[0], panels.items(), strict=True):
        if scale not in ("linear", "log"):
            raise ValueError(f"a scale is 'linear' or 'log', got {scale!r} for {xlabel!r}.")
        numbers = sorted({float(x) for xs, _ in lines.values() for x in xs})
        if scale == "log" and numbers[0] <= 0:
            raise ValueError(f"{numbers[0]:g} has no place on a logarithmic axis: {xlabel!r}.")
        for label, (xs, accuracies) in lines.items():
            colour, style, marker = _SERIES[labels.index(label) % len(_SERIES)]
            axis.plot(
                xs, accuracies, style, marker=marker, color=colour, linewidth=1.8, markersize=6,
                clip_on=False, zorder=3,
            )  # fmt: skip
            dots = zip(xs, accuracies, strict=True)
            said = ", ".join(f"{_short(x)}: {format_number(a)}" for x, a in dots)
            words.append(f"{label}, %, by {xlabel}: {said}")
        axis.set_xlabel(xlabel)
        axis.grid(axis="y", color=_GREY, alpha=0.2, linewidth=0.8)
        if scale == "log":
            binary = all(math.frexp(x)[0] == 0.5 for x in numbers)
            axis.set_xscale("log", base=2 if binary else 10)
            if not binary or 1 <= numbers[0] <= numbers[-1] <= 1024:
                _plain_log(axis.xaxis)
            elif len(numbers) <= 12:
                axis.set_xticks(numbers, [f"$2^{{{math.frexp(x)[1] - 1}}}$" for x in numbers])
        elif len(numbers) <= 10:
            axis.set_xticks(numbers, [f"{x:g}" for x in numbers])
    axes[0][0].set_ylim(lowest, 100)
    axes[0][0].set_ylabel(f"accuracy, % ({Provenance.MEASURED})")
    legend = []
    for label in labels:
        colour, style, marker = _SERIES[labels.index(label) % len(_SERIES)]
        legend.append(Line2D([], [], color=colour, ls=style, marker=marker, label=label))
    return Picture(
        figure, title, _caption(origin, Provenance.MEASURED, *notes), ". ".join(words), legend
    )


def _short(number: float) -> str:
    """A power of two that is far from 1 as such, any other number as it is."""
    mantissa, exponent = math.frexp(number)
    return f"2^{exponent - 1}" if mantissa == 0.5 and abs(exponent) > 7 else f"{number:g}"


class BitsRow(NamedTuple):
    """One network in one format: how right, how large, how fast."""

    name: str
    bits: int
    accuracy_pct: float
    size_bytes: int
    speed: Measurement
    """Images/s."""
    emulated: bool
    """Whether the arithmetic was rounded in software, since the processor lacks the format."""


def bits_summary(rows: Sequence[BitsRow], origin: MachineCard, *notes: str, title: str) -> Picture:
    """Draw accuracy, size and speed of one network against the bits of a number.

    Args:
        rows: :class:`BitsRow` or plain tuples of the same order, most bits first.
        origin: the machine that counted the right answers.
        notes: for the caption.
    """
    rows = [BitsRow(*row) for row in rows]
    figure = Figure(figsize=(9.5, 7.0), layout="constrained")
    panels = figure.subplots(3, 1, sharex=True)
    places, place = [], 0.0
    for before, row in zip([None, *rows], rows, strict=False):
        place += 0 if before is None else 1.0 if before.bits == row.bits else 1.45
        places.append(place)
    blue = KIND_COLOURS["conv"]
    accuracies = [row.accuracy_pct for row in rows]
    kilobytes = [row.size_bytes / 1e3 for row in rows]
    speeds = [row.speed.median for row in rows]
    for axis in panels:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=9)
        axis.tick_params(axis="x", length=0)
        for bits in dict.fromkeys(row.bits for row in rows):
            alike = [p for p, row in zip(places, rows, strict=True) if row.bits == bits]
            axis.axvspan(alike[0] - 0.55, alike[-1] + 0.55, color=_GREY, alpha=0.08, linewidth=0)
    accuracy, size, speed = panels
    accuracy.plot(places, accuracies, "o", color=blue, markersize=9, zorder=3)
    spread = max(max(accuracies) - min(accuracies), 0.2)
    accuracy.set_ylim(min(accuracies) - 0.35 * spread, max(accuracies) + 0.6 * spread)
    accuracy.set_ylabel("accuracy, %\n(not from 0)")
    size.bar(
        places, kilobytes, width=0.62, color=KIND_COLOURS["norm"], edgecolor="white",
        hatch=PROVENANCE_HATCH[Provenance.COMPUTED],
    )  # fmt: skip
    size.set_ylim(0, 1.25 * max(kilobytes))
    size.set_ylabel("weights, kB")
    _plain_log(size.yaxis)
    for p, row in zip(places, rows, strict=True):
        speed.plot([p, p], [row.speed.low, row.speed.high], color=_INK, linewidth=1.5)
        speed.plot(
            p, row.speed.median, "D", color=KIND_COLOURS["fc"], markersize=8, zorder=3,
            markeredgewidth=1.8, markerfacecolor="white" if row.emulated else KIND_COLOURS["fc"],
        )  # fmt: skip
    speed.set_yscale("log")
    _plain_log(speed.yaxis)
    speed.set_ylim(min(speeds) / 2.2, max(row.speed.high for row in rows) * 6)
    speed.set_ylabel("speed, images/s\n(line: quartiles)")
    texts = (
        [f"{value:.2f}" for value in accuracies],
        [format_number(value) for value in kilobytes],
        [format_number(value) for value in speeds],
    )
    for axis, values, labels in zip(panels, (accuracies, kilobytes, speeds), texts, strict=True):
        for p, value, text in zip(places, values, labels, strict=True):
            axis.annotate(
                text, (p, value), xytext=(0, 4 if axis is size else 8), textcoords="offset points",
                ha="center", fontsize=9,
            )  # fmt: skip
    names = ["\n".join(textwrap.wrap(row.name, 12, break_long_words=False)) for row in rows]
    speed.set_xticks(
        places, [f"{name}\n{row.bits} bits" for name, row in zip(names, rows, strict=True)]
    )
    speed.set_xlim(places[0] - 0.7, places[-1] + 0.7)
    speed.set_xlabel("format of a number")
    accuracy.set_title(f"right answers ({Provenance.MEASURED})", fontsize=9.5)
    size.set_title(f"size of the weights ({Provenance.COMPUTED})", fontsize=9.5)
    speed.set_title(f"forward pass ({rows[0].speed.provenance})", fontsize=9.5)
    words = "; ".join(
        f"{row.name}, {row.bits} bits: {a} % right, {k} kB, {s} images/s"
        + (" (emulated)" if row.emulated else "")
        for row, a, k, s in zip(rows, *texts, strict=True)
    )
    marks = {
        "arithmetic of the format itself": KIND_COLOURS["fc"],
        "rounded in software (emulated)": "white",
    }
    legend = [
        Line2D(
            [], [], ls="", marker="D", color=KIND_COLOURS["fc"], mfc=fill, ms=8, mew=1.8,
            label=label,
        )
        for label, fill in marks.items()
    ]  # fmt: skip
    return Picture(figure, title, _caption(origin, Provenance.MEASURED, *notes), words, legend)


# --- chapter 06 ---------------------------------------------------------------------------------

# Values below 0 blue, 0 white, above 0 vermilion: told apart in print and by colour-blind readers.
_AROUND_ZERO = matplotlib.colors.LinearSegmentedColormap.from_list(
    "around zero", ("#0072B2", "#FFFFFF", "#D55E00")
)


def sign_gradient(*, title: str) -> Picture:
    """Draw sign, its true gradient and the straight-through one that takes its place."""
    figure, axes = _new(9.5, 3.4, 3)
    x = np.linspace(-2, 2, 401)
    panels = {
        "sign(x), going forward": np.where(x >= 0, 1.0, -1.0),
        "its gradient: 0 wherever there is one": np.zeros_like(x),
        "straight through: 1 where |x| <= 1": (np.abs(x) <= 1).astype(float),
    }
    for axis, (name, y) in zip(axes, panels.items(), strict=True):
        axis.axhline(0, color=_GREY, linewidth=0.6)
        axis.axvline(0, color=_GREY, linewidth=0.6)
        # A line for each piece, since none of the steps is a slope.
        for piece in np.split(np.arange(len(x)), np.flatnonzero(np.diff(y)) + 1):
            axis.plot(x[piece], y[piece], color=KIND_COLOURS["conv"], linewidth=2.5)
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("x")
        axis.set_xlim(-2, 2)
        axis.set_ylim(-1.3, 1.6)
        axis.set_yticks((-1, 0, 1))
    axes[0].set_ylabel("value")
    forward, true, straight = axes
    forward.plot(0, 1, "o", color=KIND_COLOURS["conv"], markersize=7)
    forward.plot(0, -1, "o", color=KIND_COLOURS["conv"], mfc="white", markersize=7, zorder=3)
    true.plot(0, 0, "o", color=KIND_COLOURS["conv"], mfc="white", markersize=7, zorder=3)
    true.annotate(
        "a jump: no gradient", (0, 0.08), xytext=(0, 0.75), ha="center", fontsize=9,
        arrowprops={"arrowstyle": "->", "color": _GREY, "lw": 0.8},
        bbox=_PALE_BOX,
    )  # fmt: skip
    straight.fill_between(
        x, (np.abs(x) <= 1).astype(float), color=KIND_COLOURS["conv"], alpha=0.12, linewidth=0
    )
    straight.text(0, 0.42, "passes", ha="center", fontsize=9, bbox=_PALE_BOX)
    for place in (-1.5, 1.5):
        straight.text(place, 0.12, "stopped", ha="center", fontsize=9)
    alt = (
        "Three curves of x from -2 to 2. sign(x): -1 below 0, +1 from 0 on. Its gradient: 0 "
        "everywhere but at the jump, where there is none. The straight-through gradient: 1 where "
        "|x| <= 1, 0 beyond."
    )
    caption = f"{str(Provenance.COMPUTED).capitalize()} | sign(0) is +1"
    return Picture(figure, title, caption, alt)


def sign_pictures(
    rows: Mapping[str, np.ndarray],
    names: Sequence[str],
    origin: MachineCard,
    *notes: str,
    title: str,
    provenance: Provenance = Provenance.MEASURED,
) -> Picture:
    """Show weights, pixels or activations as small pictures, a row a kind.

    Args:
        rows: label to (n, H, W). Signs, +1 and -1 alone, are drawn white and black; values that
            are nowhere negative, such as pixels, from black to white; others around a white 0.
        names: n words, one over each column.
        origin: the machine that trained or answered.
        notes: for the caption.

    Raises:
        ValueError: no row, or a row that is not (n, H, W) with n names.
    """
    count = len(names)
    for label, pictures in rows.items():
        if pictures.ndim != 3 or len(pictures) != count:
            raise ValueError(
                f"{label!r}: {count} names want ({count}, H, W), got {pictures.shape}."
            )
    if not rows:
        raise ValueError("there is nothing to draw: pass {label: (n, H, W)}.")
    heights = [1.15 * min(2.0, max(0.6, p.shape[1] / p.shape[2])) for p in rows.values()]
    figure = Figure(figsize=(9.5, 1.0 + (sum(heights) + 0.12 * len(rows))), layout="constrained")
    grid = figure.subplots(len(rows), count, squeeze=False, gridspec_kw={"height_ratios": heights})
    words, legend = [], {}
    for axes, (label, pictures) in zip(grid, rows.items(), strict=True):
        values = to_cpu(pictures)
        if np.isin(values, (-1, 1)).all():
            look: dict[str, Any] = {"cmap": "gray", "vmin": -1, "vmax": 1}
            words.append(f"{label}: {100 * float((values > 0).mean()):.1f} % are +1, the others -1")
            legend |= {"+1": "white", "-1": "black"}
        elif values.min() >= 0:
            look = {"cmap": "gray", "vmin": 0, "vmax": float(values.max()) or 1.0}
            words.append(f"{label}: from 0 (black) to {values.max():.3g} (white)")
        else:
            edge = float(np.abs(values).max())
            look = {"cmap": _AROUND_ZERO, "vmin": -edge, "vmax": edge}
            words.append(f"{label}: from {values.min():.3g} to {values.max():.3g}")
            legend |= {"above 0": _AROUND_ZERO(1.0), "below 0": _AROUND_ZERO(0.0)}
        for axis, picture in zip(axes, values, strict=True):
            axis.imshow(picture, interpolation="none", **look)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_color(_GREY)
        size = "x".join(str(n) for n in values.shape[1:])
        axes[0].set_ylabel(
            "\n".join([*textwrap.wrap(label, 14), size]), fontsize=9, rotation=0, ha="right",
            va="center",
        )  # fmt: skip
        for axis, name in zip(axes, names, strict=True):
            axis.set_title(name, fontsize=9)
    for axis in grid[1:].ravel():
        axis.title.set_visible(False)
    patches = [Patch(fc=colour, ec=_GREY, label=label) for label, colour in legend.items()]
    alt = f"Pictures of {', '.join(names)}. {'; '.join(words)}"
    return Picture(figure, title, _caption(origin, provenance, *notes), alt, patches)


def popcount_steps(a_bits: str, b_bits: str, *, title: str) -> Picture:
    """Multiply two rows of +1 and -1 by eye: number by number, and with XNOR and a count.

    Args:
        a_bits, b_bits: texts of one length, 2 to 16; ``"1"`` stands for +1, ``"0"`` for -1.

    Raises:
        ValueError: other characters, or another length.
    """
    length = len(a_bits)
    if not 2 <= length <= 16 or len(b_bits) != length or set(a_bits + b_bits) - set("01"):
        raise ValueError(
            f"two texts of 2 to 16 characters 0 or 1, of one length, got {a_bits!r} and {b_bits!r}."
        )
    a, b = ([1 if bit == "1" else -1 for bit in bits] for bits in (a_bits, b_bits))
    product = [x * y for x, y in zip(a, b, strict=True)]
    xnor = "".join("1" if x == y else "0" for x, y in zip(a_bits, b_bits, strict=True))
    total, ones = sum(product), xnor.count("1")
    halves = (
        ("numbers", {"a": a, "b": b, "a x b": product}, f"sum: {total}"),
        (
            "bits", {"a": a_bits, "b": b_bits, "XNOR": xnor},
            f"count of ones: {ones}\n2 x {ones} - {length} = {2 * ones - length}",
        ),
    )  # fmt: skip
    figure, axes = _new(9.5, 4.0)
    axes.axis("off")
    same, differ = KIND_COLOURS["relu"], "#FFFFFF"
    for block, (heading, lines, result) in enumerate(halves):
        top = 4.1 * block
        axes.text(-0.33 * length, top + 0.45, heading, fontsize=10.5, weight="bold", va="center")
        for row, (name, values) in enumerate(lines.items()):
            place = top + row + (0.12 if row == 2 else 0)
            axes.text(-0.04 * length, place + 0.45, name, ha="right", va="center", fontsize=10)
            for column, value in enumerate(values):
                agrees = row == 2 and xnor[column] == "1"
                axes.add_patch(
                    Rectangle(
                        (column, place), 0.94, 0.9, facecolor=same if agrees else differ,
                        edgecolor=_INK if row == 2 else _GREY, linewidth=1.4 if row == 2 else 0.7,
                    )
                )  # fmt: skip
                text = value if isinstance(value, str) else f"{value:+d}"
                axes.text(column + 0.47, place + 0.45, text, ha="center", va="center", fontsize=11)
        axes.text(1.03 * length, top + 2.57, result, va="center", fontsize=11, weight="bold")
    axes.set_xlim(-0.34 * length, 1.42 * length)
    axes.set_ylim(7.3, -0.2)
    axes.set_title("where two bits agree, the product is +1 (coloured)", fontsize=10)
    alt = (
        f"a is {a_bits}, b is {b_bits}, 1 for +1 and 0 for -1. Number by number the products "
        f"{', '.join(f'{value:+d}' for value in product)} add up to {total}. XNOR is {xnor}, with "
        f"{ones} ones of {length}: 2 x {ones} - {length} = {2 * ones - length}."
    )
    caption = f"{str(Provenance.COMPUTED).capitalize()} | 1 stands for +1, 0 for -1"
    return Picture(figure, title, caption, alt)


def speed_ratios(groups: Mapping[str, Sequence[Measurement]], *notes: str, title: str) -> Picture:
    """Draw how many times as fast as a baseline things are, group by group, from a line at 1.

    Args:
        groups: what is compared with which baseline, to ratios in the unit ``"x"``, above 1 where
            faster than the baseline. Hatching shows which were measured and which published.
        notes: for the caption, such as where published ratios come from.

    Raises:
        ValueError: no ratio, another unit, or a ratio of 0 or less.
    """
    bars = [m for group in groups.values() for m in group]
    if not bars:
        raise ValueError("there is no ratio to draw.")
    for m in bars:
        if m.unit != "x" or min(m.samples) <= 0:
            median = f"{format_number(m.median)} {m.unit}"
            raise ValueError(
                f"a ratio has the unit 'x' and is above 0, got {median} for {m.name!r}."
            )
    figure, axes = _new(9.5, 1.8 + 0.34 * (len(bars) + 1.2 * len(groups)))
    low, high = min(1.0, *(m.low for m in bars)), max(1.0, *(m.high for m in bars))
    logarithmic = high / low > 20
    place, ticks, words = 0.0, [], []
    for heading, group in groups.items():
        axes.text(
            0, place, heading, va="center", fontsize=9.5, weight="bold",
            transform=axes.get_yaxis_transform(), zorder=4,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},
        )  # fmt: skip
        place += 0.95
        for m in group:
            axes.barh(
                place, m.median - 1, left=1, height=0.72, edgecolor="white",
                color=KIND_COLOURS["fc" if m.median < 1 else "conv"],
                hatch=PROVENANCE_HATCH[m.provenance],
            )  # fmt: skip
            if len(m.samples) > 1:
                axes.plot([m.low, m.high], [place, place], color=_INK, linewidth=1.5)
            text = f"{format_number(m.median)}x"
            end = max(1.0, m.high)
            axes.annotate(
                f"{text} ({m.provenance})", (end, place), xytext=(5, 0),
                textcoords="offset points", va="center", fontsize=9,
            )  # fmt: skip
            words.append(f"{heading}, {m.name}: {text} ({m.provenance})")
            ticks.append(place)
            place += 1
        place += 0.25
    axes.axvline(1, color=_INK, linewidth=1.2, zorder=3)
    axes.set_yticks(ticks, [m.name for m in bars], fontsize=9)
    axes.set_ylim(place - 0.6, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    if logarithmic:
        axes.set_xscale("log")
        _plain_log(axes.xaxis)
        axes.set_xlim(low / 1.3 if low < 1 else 0.8, high * (high / low) ** 0.45)
    else:
        axes.set_xlim(0, 1.35 * high)
    axes.set_xlabel("times as fast as the baseline (line at 1: the same)")
    marks = [
        Patch(color=KIND_COLOURS[kind], label=label)
        for kind, label, shown in (
            ("conv", "faster", any(m.median >= 1 for m in bars)),
            ("fc", "slower", any(m.median < 1 for m in bars)),
        )
        if shown
    ]
    return Picture(
        figure, title, _origins(bars, *notes), "; ".join(words),
        [*marks, *_provenance_patches(bars)],
    )  # fmt: skip


class SizeRow(NamedTuple):
    """One network: its bytes on disk and how many of the test images it gets wrong."""

    name: str
    size_bytes: int
    wrong: int
    images: int


def size_accuracy(rows: Sequence[SizeRow], origin: MachineCard, *notes: str, title: str) -> Picture:
    """Draw bytes on disk and test error of networks of one architecture beside each other.

    The line through each error is where, by chance alone, 95 % of other test sets of this size
    would put it: 1.96 standard deviations of a count.

    Args:
        rows: :class:`SizeRow` or plain tuples of the same order; the first is compared with.
        origin: the machine that counted the wrong answers.
        notes: for the caption.
    """
    rows = [SizeRow(*row) for row in rows]
    figure, (size, error) = _new(9.5, 1.9 + 0.5 * len(rows), 2, sharey=True)
    places = range(len(rows))
    kilobytes = [row.size_bytes / 1e3 for row in rows]
    shares = [row.wrong / row.images for row in rows]
    percent = [100 * share for share in shares]
    spread = [
        196 * math.sqrt(share * (1 - share) / row.images)
        for share, row in zip(shares, rows, strict=True)
    ]
    size.barh(places, kilobytes, height=0.55, color=KIND_COLOURS["norm"], edgecolor="white")
    words = []
    for place, row, k, p, s in zip(places, rows, kilobytes, percent, spread, strict=True):
        smaller = "" if place == 0 else f" ({kilobytes[0] / k:.1f}x smaller)"
        size.annotate(
            f"{format_number(k)} kB{smaller}", (k, place), xytext=(5, 0),
            textcoords="offset points", va="center", fontsize=9,
        )  # fmt: skip
        error.plot([p - s, p + s], [place, place], color=_INK, linewidth=1.5)
        error.plot(p, place, "o", color=KIND_COLOURS["conv"], markersize=9, zorder=3)
        error.annotate(
            f"{p:.2f} %", (p, place), xytext=(0, 9), textcoords="offset points", ha="center",
            fontsize=9,
        )  # fmt: skip
        words.append(
            f"{row.name}: {format_number(k)} kB{smaller}, {row.wrong:,} of {row.images:,} wrong, "
            f"{p:.2f} %"
        )
    size.set_yticks(places, ["\n".join(textwrap.wrap(row.name, 22)) for row in rows])
    size.set_ylim(len(rows) - 0.5, -0.65)
    for axis in (size, error):
        axis.tick_params(axis="y", length=0)
    size.set_xlim(0, 1.5 * max(kilobytes))
    _plain_log(size.xaxis)
    size.set_xlabel("bytes on disk, kB")
    error.set_xlim(0, 1.2 * max(p + s for p, s in zip(percent, spread, strict=True)) or 1)
    error.grid(axis="x", color=_GREY, alpha=0.2, linewidth=0.8)
    error.set_xlabel("test error, % (line: 95 % by chance alone)")
    return Picture(figure, title, _caption(origin, Provenance.MEASURED, *notes), "; ".join(words))
