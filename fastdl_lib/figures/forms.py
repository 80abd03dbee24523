"""The forms that figures are built from, and the figures that several chapters show.

Forms draw into axes that the caller has made: horizontal bars, stacked ones, lines, cells with
text, legends. Figures take data first, then, where the data do not tell, ``origin``: the card of
the machine that measured or counted; then notes that end the caption, and the title by keyword.
"""

import math
import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.ticker
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from fastdl_lib.core.threads import threads_in_words
from fastdl_lib.figures.picture import (
    CLOCKED,
    HATCH,
    Colour,
    Origin,
    Picture,
    canvas,
    drawn,
    origins_of,
)
from fastdl_lib.measuring.costs import KINDS, Ceilings
from fastdl_lib.measuring.evidence import Measurement, Provenance, format_number
from fastdl_lib.measuring.machine import MachineCard
from fastdl_lib.measuring.published import PublishedTable
from fastdl_lib.measuring.recordings import Recording
from fastdl_lib.measuring.timing import LayerProfile

KINDS_SHOWN = {
    "conv": (Colour.BLUE, "convolution"),
    "fc": (Colour.VERMILION, "fully connected"),
    "pool": (Colour.GREEN, "max-pooling"),
    "norm": (Colour.ORANGE, "normalisation"),
    "relu": (Colour.SKY, "ReLU"),
    "other": (Colour.SILVER, "other"),
}
DEVICES = {"cpu": (Colour.BLUE, "CPU"), "gpu": (Colour.GREEN, "GPU")}
Groups = Mapping[str, Sequence[Measurement]]
Curves = Mapping[str, Sequence[float]]
Sweeps = Mapping[str, Mapping[Any, Measurement]]
# For lines of one kind: told apart without colour, too.
LOOKS = tuple(
    zip(list(Colour)[:7], ("-", "--", "-.", ":", "-", "--", "-."), "osD^vPX", strict=True)
)
PROVENANCE_LOOK = {
    Provenance.MEASURED: "o-",
    Provenance.RECORDED: "s-",
    Provenance.SIMULATED: "x--",
    Provenance.COMPUTED: "d:",
    Provenance.PUBLISHED: "o",
}
# Of a dot: what hatching is of a bar.
_DOTS = {
    HATCH[kind]: {"marker": look[0], "markersize": 8, "markeredgewidth": 1.8}
    | ({"markerfacecolor": "white"} if kind is Provenance.PUBLISHED else {})
    for kind, look in PROVENANCE_LOOK.items()
}
PALE_BOX = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.6}


# --- bars ---------------------------------------------------------------------------------------


class Bar(NamedTuple):
    """A horizontal bar: its name at the left, its value, the text at its end, and its spread."""

    name: str
    value: float
    text: str = ""
    colour: str = Colour.BLUE
    hatch: str = ""
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, m: Measurement, text: str = "", colour: str = Colour.BLUE, name: str = "") -> "Bar":
        """A measurement's bar: hatching shows its provenance, a line its quartiles."""
        spread = (m.low, m.high) if len(m.samples) > 1 else ()
        hatch = HATCH[m.provenance]
        return cls(name or m.name, m.median, text, colour, hatch, *spread)

    @property
    def end(self) -> float:
        """Where bar and spread end."""
        return self.value if self.high is None else max(self.value, self.high)


def horizontal_bars(
    axis: Any, bars: Sequence[Bar], *, places: Sequence[float] | None = None, height: float = 0.7,
    start: float = 0.0, log: bool = False, fontsize: float = 9,
) -> None:  # fmt: skip
    """Draw bars from top to bottom; their texts make room for themselves beside the axes.

    ``places`` are one a bar, downwards; by default 0, 1, 2 ... with the bars' names at the left.
    Bars begin at ``start``. A logarithmic axis has no 0 to begin at: without a start there are dots
    on it, whose shape shows the provenance.
    """
    dots = log and not start
    start = start or (min(bar.value for bar in bars) / 2 if log else 0.0)
    for place, bar in zip(range(len(bars)) if places is None else places, bars, strict=True):
        if dots:
            axis.axhline(place, color=Colour.GREY, linewidth=0.6, linestyle=":", zorder=0)
            axis.plot(
                bar.value, place, color=bar.colour, linestyle="", clip_on=False, **_DOTS[bar.hatch]
            )
        else:
            look = {"color": bar.colour, "hatch": bar.hatch, "edgecolor": "white"}
            axis.barh(place, bar.value - start, left=start, height=height, **look)
        if bar.low is not None:
            axis.plot([bar.low, bar.high], [place, place], color=Colour.INK, linewidth=1.5)
        if bar.text:
            look = {"xytext": (8, 0), "bbox": PALE_BOX} if dots else {}
            write_beside(axis, bar.text, (max(bar.end, start), place), fontsize=fontsize, **look)
    log_axes(axis, 10 if log else 0)
    end = max(start, *(bar.end for bar in bars))
    first = min(start, *(bar.value for bar in bars))
    axis.set_xlim(first, end * (1.1 if log else 1.02) or 1)
    if log and end < 100 * first:  # within two decades 1, 10 may be all that is labelled
        axis.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    if places is None:
        name_rows(axis, [bar.name for bar in bars])


def name_rows(axis: Any, names: Sequence[str], places: Sequence[float] = ()) -> None:
    """Write names at the left, from top to bottom."""
    places = places or range(len(names))
    axis.set_yticks(places, [*map(wrapped, names)])
    axis.set_ylim(max(places) + 0.6, -0.6)
    axis.tick_params(axis="y", length=0)


def wrapped(name: str) -> str:
    """A long name in several lines, so that it leaves room for the axes."""
    return "\n".join(textwrap.fill(line, 66) for line in name.split("\n"))


def write_beside(axis: Any, text: str, place: tuple[float, float], **options: Any) -> None:
    """Write to the right of a place, in the middle of its height."""
    beside = {"xytext": (5, 0), "textcoords": "offset points", "va": "center", "fontsize": 9}
    axis.annotate(text, place, **(beside | options))


def write_above(axis: Any, text: str, place: tuple[float, float], **options: Any) -> None:
    """Write over a place."""
    above = {"xytext": (0, 7), "ha": "center", "va": "baseline"}
    write_beside(axis, text, place, **(above | options))


def grouped_bars(axis: Any, groups: Mapping[str, Sequence[Bar]], **options: Any) -> list[float]:
    """Draw horizontal bars below the heading of each group; return the bars' places."""
    place, places, bars = 0.0, [], []
    for heading, group in groups.items():
        left, box = axis.get_yaxis_transform(), PALE_BOX | {"alpha": 1}
        look = {"fontsize": 9.5, "weight": "bold", "va": "center", "bbox": box, "zorder": 4}
        axis.text(0.003, place, heading, transform=left, **look)
        places += [place + 0.95 + i for i in range(len(group))]
        bars += group
        place += len(group) + 1.2
    horizontal_bars(axis, bars, places=places, height=0.75, **options)
    name_rows(axis, [bar.name for bar in bars], places)
    return places


def clustered_bars(axis: Any, series: Sequence[Sequence[Bar]], **options: Any) -> None:
    """Draw a bar of each series below each other, their common name at the left of them."""
    height = 0.8 / len(series)
    shifts = [(index - (len(series) - 1) / 2) * height for index in range(len(series))]
    places = [place + shift for shift in shifts for place in range(len(series[0]))]
    bars = [bar for each in series for bar in each]
    horizontal_bars(axis, bars, places=places, height=height, **options)
    name_rows(axis, [bar.name for bar in series[0]])


def stacked_bar(axis: Any, place: float, parts: Sequence[Bar]) -> float:
    """Draw parts one after the other, each with its text inside; return where they end."""
    left = 0.0
    for part in parts:
        look = {"color": part.colour, "hatch": part.hatch, "edgecolor": "white"}
        axis.barh(place, part.value, left=left, height=0.64, **look)
        if part.text:
            dark = part.colour in (Colour.ORANGE, Colour.SKY)
            box = {"facecolor": part.colour, "edgecolor": "none", "pad": 0.6}
            look = {"color": Colour.INK if dark else "white", "fontsize": 7.5, "bbox": box}
            axis.text(left + part.value / 2, place, part.text, ha="center", va="center", **look)
        left += part.value
    return left


def stacked_columns(
    axis: Any, names: Sequence[Any], series: Iterable[tuple[str, Any]], hatch: str = ""
) -> None:
    """Draw upright bars whose parts, ``(colour, one value a bar)``, stand on each other."""
    places, bottom = np.arange(len(names)), np.zeros(len(names))
    for colour, values in series:
        look = {"color": colour, "edgecolor": "white", "hatch": hatch}
        axis.bar(places, values, bottom=bottom, width=0.72, **look)
        bottom = bottom + values
    axis.set_xticks(places, [str(name) for name in names])


# --- lines and cells ----------------------------------------------------------------------------


def draw_line(axis: Any, label: str, dots: Mapping[float, Any], colour: str, look: str) -> str:
    """Draw x to y, measurements at their medians with quartiles; return the line in words."""
    x, values, spread = sorted(dots), [dots[place] for place in sorted(dots)], None
    if isinstance(values[0], Measurement):
        spread = [[m.median - m.low for m in values], [m.high - m.median for m in values]]
        values = [m.median for m in values]
    axis.errorbar(x, values, spread, fmt=look, color=colour, label=label, linewidth=1.8)
    words = (f"{plain(a)}: {format_number(b)}" for a, b in zip(x, values, strict=True))
    return f"{label}: {', '.join(words)}"


def draw_lines(axis: Any, lines: Mapping[str, Mapping[float, Any]], dashes: str) -> list[str]:
    """Draw lines of one kind, each in its colour and marker; return each in words."""
    looks = zip(lines.items(), LOOKS, strict=False)
    return [draw_line(axis, *line, colour, marker + dashes) for line, (colour, _, marker) in looks]


def plain(number: float) -> str:
    """A number for words; a power of two that is far from 1 as such: 2^-24."""
    mantissa, exponent = math.frexp(number)
    return f"2^{exponent - 1}" if mantissa == 0.5 and abs(exponent) > 16 else f"{number:g}"


def log_axes(axis: Any, x_base: int = 0, y_base: int = 0) -> None:
    """Make axes logarithmic to these bases, labelled 0.1, 1, 10; 0 leaves one as it is."""
    for base, name, which in ((x_base, "x", axis.xaxis), (y_base, "y", axis.yaxis)):
        if base:
            getattr(axis, f"set_{name}scale")("log", base=base)
            plain_ticks(which)
            which.set_minor_formatter(matplotlib.ticker.NullFormatter())


def plain_ticks(axis: Any) -> None:
    """Write 1,000 instead of 10^3."""
    axis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda v, _: f"{v:,g}"))


def cell(
    axis: Any, corner: tuple[float, float], text: str, fontsize: float, ink: str = Colour.INK,
    **look: Any,
) -> None:  # fmt: skip
    """Draw a unit square with a text in its middle."""
    axis.add_patch(Rectangle(corner, 1, 1, **look))
    middle = (corner[0] + 0.5, corner[1] + 0.5)
    axis.text(*middle, text, ha="center", va="center", fontsize=fontsize, color=ink, zorder=4)


def bare(axis: Any) -> None:
    """Take frame and ticks from axes that show cells or a picture."""
    axis.spines[:].set_visible(False)
    axis.set(xticks=[], yticks=[])


def apart(places: Sequence[float], least: float, low: float, high: float) -> list[float]:
    """Move labels at these heights until two are at least ``least`` apart, between two bounds."""
    moved = [0.0] * len(places)
    floor = low
    for rank, index in enumerate(np.argsort(places, kind="stable")):
        # Room must be left for the labels above.
        top = high - least * (len(places) - 1 - rank)
        moved[index] = max(low, min(max(places[index], floor), top))
        floor = moved[index] + least
    return moved


# --- legends ------------------------------------------------------------------------------------


def patches(labels: Mapping[str, str], **look: Any) -> list[Patch]:
    """Legend entries: label to colour."""
    return [Patch(facecolor=colour, label=label, **look) for label, colour in labels.items()]


def _known(kind: str) -> str:
    """A kind that has a colour; one of somebody's own layer is another."""
    return kind if kind in KINDS_SHOWN else "other"


def kind_colour(kind: str) -> str:
    """The colour of this kind of layer."""
    return KINDS_SHOWN[_known(kind)][0]


def kind_patches(kinds: Collection[str]) -> list[Patch]:
    """What the colours of these kinds of layers mean."""
    kinds = {*map(_known, kinds)}
    return patches({name: colour for kind, (colour, name) in KINDS_SHOWN.items() if kind in kinds})


def provenance_patches(measurements: Iterable[Measurement], dots: bool = False) -> list[Any]:
    """What each hatching that occurs stands for, or each shape of a dot."""
    present, look = {m.provenance for m in measurements}, {"fc": Colour.GREY, "ec": "white"}
    if dots:
        named = {p: _DOTS[HATCH[p]] | {"label": str(p), "color": Colour.GREY} for p in Provenance}
        return [Line2D([], [], linestyle="", **named[p]) for p in Provenance if p in present]
    return [Patch(hatch=HATCH[p], label=str(p), **look) for p in Provenance if p in present]


def device_colour(measurement: Measurement) -> str:
    """The colour of the CPU or GPU that it ran on."""
    return DEVICES[measurement.conditions.get("device", "cpu")][0]


def device_patches(measurements: Iterable[Measurement]) -> list[Patch]:
    """What the colours of the devices mean, where both occur."""
    both = len({device_colour(measurement) for measurement in measurements}) > 1
    return patches({name: colour for colour, name in DEVICES.values()}) if both else []


def ran_on(measurement: Measurement, what: str = "run") -> str:
    """A note for the caption: how many threads ran."""
    return f"{what} on {threads_in_words(measurement.conditions['threads'])}"


# --- figures of several chapters ----------------------------------------------------------------


@drawn()
def roofline(
    ceilings: Ceilings, points: Sequence[tuple] = (), *notes: str,
    title: str = "Your machine's roof: memory limits on the left, arithmetic on the right",
) -> Picture:  # fmt: skip
    """Draw the two ceilings and, below them, what ran (Williams et al. 2009).

    ``points``: (name, FLOP per byte, GFLOP/s reached, measured) and, for a layer, its kind.
    """
    figure, axes = canvas(8.5, 4.6)
    intensities = [point[1] for point in points] + [0.1, 1000]
    x = np.geomspace(min(intensities) / 2, max(intensities) * 1.5, 200)
    roof = [ceilings.attainable_gflops(value) for value in x]
    gemm, copy, ridge = ceilings.gemm_gflops, ceilings.copy_gb_per_s, ceilings.ridge
    axes.plot(x, roof, color=Colour.INK, linewidth=2)
    axes.fill_between(x, roof, color=Colour.GREY, alpha=0.08, linewidth=0)
    axes.axvline(ridge, color=Colour.GREY, linewidth=0.8, linestyle=":")
    log_axes(axes, 10, 10)
    lowest = min([roof[0], *(point[2].low for point in points)]) / 2
    highest = max([gemm.median, *(point[2].high for point in points)]) * 2.5
    axes.set(xlim=(x[0], x[-1]), ylim=(lowest, highest))
    peak, rate, at = map(format_number, (gemm.median, copy.median, ridge))
    axes.text(ridge * 1.1, gemm.median * 1.2, f"{peak} GFLOP/s", fontsize=9)
    axes.text(x[0] * 1.2, roof[0] * 3.2, f"{rate} GB/s", fontsize=9)
    grey = {"fontsize": 9, "color": Colour.GREY}
    axes.text(ridge * 1.1, lowest * 1.2, f"ridge: {at} FLOP/byte", **grey)
    words = []
    for name, intensity, speed, *kind in points:
        colour, gflops = kind_colour(kind[0]) if kind else Colour.PURPLE, speed.median
        axes.plot(intensity, gflops, "o", color=colour, markersize=8, zorder=3)
        axes.plot([intensity] * 2, [speed.low, speed.high], color=Colour.INK, zorder=4)
        reached = f"{format_number(gflops)} GFLOP/s at {format_number(intensity)} FLOP/byte"
        words.append(f"{name}: {reached}")
        # Away from the roof line, whichever side of it the dot lies.
        above = gflops > 1.1 * ceilings.attainable_gflops(intensity)
        place, look = (intensity, gflops), {} if above else {"xytext": (7, -9)}
        (write_above if above else write_beside)(axes, name, place, bbox=PALE_BOX, **look)
    axes.set_xlabel("arithmetic intensity, FLOP per byte moved (computed)")
    axes.set_ylabel(f"speed, GFLOP/s ({gemm.provenance})")
    alt = f"Roofline: {rate} GB/s of memory traffic up to {at} FLOP per byte, then {peak} GFLOP/s"
    notes = (f"{ran_on(gemm, 'product')}, {ran_on(copy, 'copy')}", *notes)
    origins = origins_of([gemm, copy, *(point[2] for point in points)])
    return Picture(figure, title, origins, f"{alt}. {'; '.join(words)}", notes)


@drawn()
def guess_and_truth(
    name: str, unit: str, guess: float | None, measured: Measurement, *published: Measurement,
    decades: tuple[float, float] | None = None,
) -> Picture:  # fmt: skip
    """Draw a guess, if there is one, beside the own measurement and what others published.

    ``decades``, the smallest and largest guess, make the axis logarithmic and reach over both.
    """
    own = "this machine" if measured.provenance is Provenance.MEASURED else measured.name
    bars = []
    if guess is not None:
        said = f"{guess:,.0f}" if guess == round(guess) else format_number(guess)
        bars.append(Bar("your guess", guess, f"{said} {unit}", Colour.PURPLE))
    for m in (measured, *published):
        text = f"{_number(m)} {unit}  ({m.provenance})"
        known = (own, Colour.BLUE) if m is measured else (m.name, Colour.VERMILION)
        bars.append(Bar.of(m, text, known[1], known[0]))
    figure, axes = canvas(8.5, 1.5 + 0.42 * len(bars))
    ends = [bar.value for bar in bars]
    wide = unit != "%" and max(ends) > 10 * min(ends) > 0
    log = decades is not None and min(m.low for m in (measured, *published)) > 0
    horizontal_bars(axes, bars, height=0.62, log=wide or log)
    if log:
        reached = [*decades, *(end for bar in bars for end in (bar.low or bar.value, bar.end))]
        axes.set_xlim(min(reached) / 1.2, max(reached) * 1.2)
    if unit == "%" and max(bar.end for bar in bars) <= 100:
        axes.set_xlim(0, 100)
    axes.set_xlabel(f"{name}, {unit}")
    words = "; ".join(f"{bar.name} {bar.text.partition('  (')[0]}" for bar in bars)
    notes = [f"{m.name}: {m.source}" for m in published]
    what = "measurement" if measured.provenance in CLOCKED else f"{measured.provenance} number"
    heading = f"{name}: guess and {what}" if guess is not None else f"{name}: no guess made"
    return Picture(figure, heading, origins_of([measured]), f"{name}: {words}", notes)


@drawn()
def image_row(
    images: np.ndarray, titles: Sequence[str], origin: MachineCard | str, *notes: str, title: str
) -> Picture:
    """Show images side by side, (n, 3 or 1, H, W) in [0, 1], each below its title.

    ``origin`` is the card of the machine that chose them, or the source of what was published.
    """
    width = min(10.5, max(5.2, 2.6 * len(images)))  # that of a notebook's column at most
    figure, axes = canvas(width, 0.9 + width / len(images), len(images), squeeze=False)
    for axis, image, name in zip(axes[0], images, titles, strict=True):
        axis.imshow(image.transpose(1, 2, 0), cmap="gray", interpolation="none")
        axis.set_title(name)
        axis.axis("off")
    size = "x".join(str(n) for n in images.shape[2:])
    alt = f"{len(images)} images of {size} pixels: {' and '.join(titles)}"
    own = isinstance(origin, MachineCard)
    where = Origin.on(origin) if own else Origin(Provenance.PUBLISHED, origin)
    return Picture(figure, title, [where], alt, notes)


class Shares(NamedTuple):
    """How a forward pass divides over layers: percentages with their provenance."""

    label: str
    percent: dict[str, float]
    """Layer name to percent; what is missing to 100 is drawn as unlabelled."""
    kinds: dict[str, str]
    origin: Origin

    @classmethod
    def of_profile(cls, label: str, profile: LayerProfile) -> "Shares":
        """The shares of a profile measured here (or recorded)."""
        (origin,) = origins_of([profile.first])
        return cls(label, profile.layer_shares(), profile.kinds, origin)

    @classmethod
    def of_published(cls, label: str, table: PublishedTable, value: str, **where: Any) -> "Shares":
        """The shares in a published table with a column ``layer`` and a column ``value``.

        Percentages stay as they were published; times become percentages of their sum.
        """
        rows = table.select(**where)
        percent = {row["layer"]: row[value] for row in rows}
        if {column.key: column.unit for column in table.columns}[value] != "%":
            percent = _of_their_sum(percent)
        kinds = {name: name.rstrip("0123456789") for name in percent}
        origin = Origin(Provenance.PUBLISHED, table.source.partition(";")[0])
        return cls(label, percent, kinds, origin)

    @classmethod
    def of_recording(cls, label: str, recording: Recording, implementation: str) -> "Shares":
        """The shares of one implementation in a recording of ``benchmarks/layer_shares.py``."""
        rows = recording.select(implementation=implementation)
        percent = _of_their_sum({row.conditions["layer"]: row.median for row in rows})
        kinds = {row.conditions["layer"]: row.conditions["kind"] for row in rows}
        return cls(label, percent, kinds, origins_of(rows)[0])

    def of_kind(self, *kinds: str) -> float:
        """The percentage of all layers of these kinds together."""
        return sum(p for name, p in self.percent.items() if _known(self.kinds[name]) in kinds)

    def parts(self) -> list[tuple[str, str, float]]:
        """(layer, kind, percent), grouped by kind, what is unlabelled last."""
        parts = [(n, _known(self.kinds[n]), p) for n, p in self.percent.items() if p > 0]
        parts.sort(key=lambda part: KINDS.index(part[1]))
        rest = 100 - sum(part[2] for part in parts)
        return [*parts, ("unlabelled", "other", rest)] if rest > 0.05 else parts

    def in_words(self) -> str:
        """The share of each kind of layer, for a text alternative."""
        each = {name: self.of_kind(kind) for kind, (_, name) in KINDS_SHOWN.items()}
        kinds = ", ".join(f"{name} {share:.1f} %" for name, share in each.items() if share)
        return f"{self.label} ({self.origin.provenance}): {kinds}"


def _of_their_sum(times: Mapping[str, float]) -> dict[str, float]:
    """Percentages of a sum."""
    return {name: 100 * time / sum(times.values()) for name, time in times.items()}


def shares_picture(
    figure: Any, what: str, shares: Sequence[Shares], notes: Sequence[str], title: str
) -> Picture:
    """What pies and stacked bars of shares have in common: words, caption and legend."""
    alt = f"{what} of forward time. " + ". ".join(share.in_words() for share in shares)
    origins = list(dict.fromkeys(share.origin for share in shares))
    legend = kind_patches({kind for share in shares for _, kind, _ in share.parts()})
    return Picture(figure, title, origins, alt, notes, legend)


@drawn()
def share_pies(shares: Sequence[Shares], *notes: str, title: str) -> Picture:
    """Draw one pie for each of ``shares``, layers coloured by kind, convolution's sum in words.

    >>> from fastdl_lib.measuring.published import published
    >>> table = published("fig_8_14")
    >>> cpu = Shares.of_published("Fig 8-14, CPU", table, "share_pct", device="CPU")
    >>> share_pies([cpu], title="A published pie").png[1:4]
    b'PNG'
    """
    figure, axes = canvas(max(5.0, 3.3 * len(shares)), 4.6, len(shares), squeeze=False)
    for axis, share in zip(axes[0], shares, strict=True):
        names, kinds, percents = zip(*share.parts(), strict=True)
        provenance = share.origin.provenance
        labels = [name if p >= 4.5 else "" for name, p in zip(names, percents, strict=True)]
        colours = [kind_colour(kind) for kind in kinds]
        wedges, _ = axis.pie(
            percents, labels=labels, colors=colours, hatch=[HATCH[provenance]],
            startangle=90, counterclock=False, labeldistance=1.06, textprops={"fontsize": 8},
            wedgeprops={"edgecolor": "white", "linewidth": 1.2},
        )  # fmt: skip
        for wedge, percent in zip(wedges, percents, strict=True):
            if percent < 1:  # white borders would hide so thin a slice
                wedge.set_linewidth(0)
        conv = f"convolution {share.of_kind('conv'):.1f} %"
        axis.set_title(f"{share.label}\n({provenance})\n{conv}")
    return shares_picture(figure, "Pies", shares, notes, title)


@drawn()
def samples_strip(measurements: Sequence[Measurement], *notes: str, title: str) -> Picture:
    """Draw every sample of several measurements of the same thing, the median marked.

    The first measurement is the reference that the ratios are taken to.
    """
    medians = [m.median for m in measurements]
    figure, axes = canvas(9, 1.3 + 0.5 * len(measurements))
    rng = np.random.default_rng(0)
    words = []
    for place, m in enumerate(measurements):
        heights = place + rng.uniform(-0.17, 0.17, len(m.samples))
        axes.plot(m.samples, heights, "o", color=Colour.BLUE, alpha=0.45, markersize=5)
        axes.plot([m.median] * 2, [place - 0.32, place + 0.32], color=Colour.INK, linewidth=2)
        ratio = m.median / medians[0]
        times = f"{ratio:.2f}" if 0.01 <= ratio < 100 else format_number(ratio)
        low, high, median = map(format_number, (min(m.samples), max(m.samples), m.median))
        text = f"{median} {m.unit}" + f"\n= {times}x" * (len(measurements) > 1)
        write_beside(axes, text, (1.01, place), xycoords=axes.get_yaxis_transform())
        said = f"{m.name}: median {median} {m.unit}, from {low} to {high}"
        words.append(f"{said}, {times} times the first")
    name_rows(axes, [m.name for m in measurements])
    if max(medians) > 8 * min(medians):
        log_axes(axes, 10)
    else:
        axes.set_xlim(left=0)
    axes.set_xlabel(f"one dot a run, {measurements[0].unit} (bar: median)")
    origins = origins_of(measurements)
    return Picture(figure, title, origins, f"{title}. {'; '.join(words)}", notes)


@drawn()
def measured_bars(
    groups: Groups,
    *notes: str,
    title: str,
    xlabel: str = "",
    start: float = 0.0,
    log: bool | None = None,
) -> Picture:
    """Draw measurements of one unit, a heading over each group; hatching shows provenance.

    Days that :func:`fastdl_lib.measuring.costs.training_days` computed say from which speed; a
    number with the condition ``digits`` is written with no more. Bars begin at ``start``: 1 for
    ratios to a baseline, the slower ones to the left. The axis is logarithmic where ``log`` says
    so, or without it where the numbers span a factor of 15. Nothing to draw, several units, or a
    number of 0 or less raise ValueError.
    """
    everything = [m for group in groups.values() for m in group]
    units = {m.unit for m in everything}
    if len(units) != 1 or min(m.low for m in everything) <= 0:
        raise ValueError(f"bars need numbers above 0 of one unit, got {sorted(units)}.")
    figure, axes = canvas(10, 1.8 + 0.32 * (len(everything) + 1.2 * len(groups)))
    bars = {
        heading: [Bar.of(m, _said(m), device_colour(m)) for m in group]
        for heading, group in groups.items()
    }
    ends = [start or everything[0].low, *(end for m in everything for end in (m.low, m.high))]
    log = max(ends) > 15 * min(ends) if log is None else log
    places = grouped_bars(axes, bars, start=start, log=log, fontsize=8.5)
    if start:
        line = {"color": Colour.INK, "linewidth": 1.2, "zorder": 3}
        for group in groups.values():  # not through the headings
            (first, *_), places = places[: len(group)], places[len(group) :]
            axes.vlines(start, first - 0.5, first + len(group) - 0.5, **line)
        axes.spines["left"].set_visible(False)
        axes.set_xlim(left=min(ends) / 1.3 if log else 0)
    axes.set_xlabel(xlabel or f"{everything[0].unit} (line: quartiles)")
    alt = "; ".join(f"{word}, {bar.name}: {bar.text}" for word in bars for bar in bars[word])
    legend = [*device_patches(everything), *provenance_patches(everything, log and not start)]
    return Picture(figure, title, origins_of(everything), alt, notes, legend)


def _said(m: Measurement) -> str:
    """A measurement's median and provenance, as they stand at its bar."""
    unit, speed = m.unit if m.unit == "x" else f" {m.unit}", ""
    if "speed_is" in m.conditions:
        images_per_s = format_number(m.conditions["images_per_s"])
        speed = f" from {images_per_s} images/s, {m.conditions['speed_is']}"
    return f"{_number(m)}{unit} ({m.provenance}{speed})"


def _number(m: Measurement) -> str:
    """A median, with no more digits than its condition ``digits`` says."""
    digits = m.conditions.get("digits")
    return f"{m.median:.{digits}g}" if digits else format_number(m.median)


@drawn()
def ladder(panels: Groups, *notes: str, title: str) -> Picture:
    """Draw the speed of each rung, slowest first, a panel for each piece of work.

    The rungs of a piece of work have one unit. A measurement's name is the rung's; its condition
    ``device``, ``"cpu"`` (the default) or ``"gpu"``, the colour.
    """
    everything = [m for measurements in panels.values() for m in measurements]
    rungs = list(dict.fromkeys(m.name for m in everything))
    figure, axes = canvas(10.5, 2.0 + 0.36 * len(rungs), len(panels), sharey=True, squeeze=False)
    words = []
    for axis, (work, measurements) in zip(axes[0], panels.items(), strict=True):
        unit, bars, said = measurements[0].unit, [], []
        for m in measurements:
            times = f"{format_number(m.median / measurements[0].median)}x"
            speed = format_number(m.median)
            bars.append(Bar.of(m, f"{speed} ({times})", device_colour(m)))
            said.append(f"{m.name} {speed} ({m.provenance}), {times}")
        horizontal_bars(axis, bars, places=[rungs.index(bar.name) for bar in bars], log=True)
        axis.xaxis.set_major_locator(matplotlib.ticker.LogLocator(numticks=5))
        axis.set(title=work, xlabel=f"speed, {unit} (line: quartiles)")
        axis.tick_params(axis="y", length=0)
        words.append(f"{work}, {unit}: " + "; ".join(said))
    name_rows(axes[0][0], rungs)
    legend = [*device_patches(everything), *provenance_patches(everything, dots=True)]
    return Picture(figure, title, origins_of(everything), ". ".join(words), notes, legend)


@drawn(shows_gaps=True)
def loss_curves(curves: Curves, origin: MachineCard, *notes: str, title: str) -> Picture:
    """Draw training losses step by step, as moving means, with the name at each line's end.

    ``curves`` are label to one number a step, up to 7 lines, else a ValueError. A line ends with a
    cross where a number is infinite or NaN.
    """
    if not 1 <= len(curves) <= len(LOOKS):
        raise ValueError(f"1 to {len(LOOKS)} lines can be told apart, got {len(curves)}.")
    figure, axes = canvas(9.5, 4.5)
    width = max(1, max(len(curve) for curve in curves.values()) // 40)
    ends, words = [], []
    for (label, curve), (colour, dashes, marker) in zip(curves.items(), LOOKS, strict=False):
        means = _moving_means(np.asarray(curve, dtype=np.float64), width)
        count, at, last = len(means), max(1, len(means)), means[-1] if len(means) else math.nan
        marked = {"marker": marker, "markersize": 5, "linewidth": 1.8}
        marked["markevery"] = (max(1, count // 20), max(1, count // 8))
        axes.plot(np.arange(1, count + 1), means, dashes, color=colour, **marked)
        text, steps = f"{label}: {format_number(last)}", "1 step" if at == 1 else f"{at} steps"
        said = f"{label}: from {means[0]:.3g} to {last:.3g} after {steps}" if count else label
        if count < len(curve):
            axes.plot(at, last, "x", color=colour, markersize=10, markeredgewidth=2.5, zorder=4)
            text = f"{label}: NaN after step {count}"
            said += f", not finite from step {count + 1} on"
        ends.append((text, colour, marker, at, last))
        words.append(said)
    _label_ends(axes, ends)
    axes.set(xlabel="step", ylabel=f"training loss, nats ({Provenance.MEASURED})")
    notes = (f"each point the mean of {width} steps" * (width > 1), *notes)
    return Picture(figure, title, [Origin.on(origin)], f"Training loss. {'; '.join(words)}", notes)


def _moving_means(values: np.ndarray, width: int) -> np.ndarray:
    """The mean of each value and up to ``width`` - 1 before it, up to the first not finite."""
    finite = np.isfinite(values)
    count = len(values) if finite.all() else int(np.argmin(finite))
    return np.array([values[max(0, n - width) : n].mean() for n in range(1, count + 1)])


def _label_ends(axes: Any, ends: Sequence[tuple[str, str, str, int, float]]) -> None:
    """Write (text, colour, marker, step, last value) of each line beside the axes, kept apart."""
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    low, high = axes.get_ylim()
    axes.set_xlim(0, max(at for *_, at, _ in ends))
    heights = [last if math.isfinite(last) else high for *_, last in ends]
    places = apart(heights, (high - low) / 15, low, high)
    beside = axes.get_yaxis_transform()
    for (text, colour, marker, at, _), height, place in zip(ends, heights, places, strict=True):
        axes.plot(1.05, place, marker, color=colour, markersize=5, transform=beside, clip_on=False)
        leader = {"arrowstyle": "-", "color": colour, "lw": 0.9, "relpos": (0, 0.5)}
        leader |= {"shrinkA": 5, "shrinkB": 0}
        there = {"xytext": (1.065, place), "textcoords": beside, "annotation_clip": False}
        # Where lines end together, one leader is enough: others would cross or hide each other.
        if abs(place - height) < (high - low) / 30:
            there["arrowprops"] = leader
        write_beside(axes, wrapped(text), (at, height), **there)
