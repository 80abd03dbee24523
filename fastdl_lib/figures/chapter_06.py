"""Figures of chapter 06, binarized networks: sign and its gradient, bits, ratios, size."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.colors
import numpy as np

from fastdl_lib.core.arrays import to_cpu
from fastdl_lib.figures import forms
from fastdl_lib.figures.forms import Bar
from fastdl_lib.figures.picture import Colour, Origin, Picture, canvas, drawn
from fastdl_lib.measuring.evidence import Provenance, format_number
from fastdl_lib.measuring.machine import MachineCard

# Values below 0 blue, 0 white, above 0 vermilion: told apart in print and by colour-blind readers.
_AROUND_ZERO = matplotlib.colors.LinearSegmentedColormap.from_list(
    "around zero", (Colour.BLUE, "#FFFFFF", Colour.VERMILION)
)


@drawn()
def sign_gradient(*notes: str, title: str) -> Picture:
    """Draw sign, its true gradient and the straight-through one that takes its place."""
    figure, (forward, true, straight) = canvas(9.5, 3.4, 3)
    x = np.linspace(-2, 2, 401)
    inside = (np.abs(x) <= 1).astype(float)
    panels = {
        "sign(x), going forward": (forward, np.where(x >= 0, 1.0, -1.0)),
        "its gradient: 0 wherever there is one": (true, np.zeros_like(x)),
        "straight through: 1 where |x| <= 1": (straight, inside),
    }
    for name, (axis, y) in panels.items():
        axis.axhline(0, color=Colour.GREY, linewidth=0.6)
        axis.axvline(0, color=Colour.GREY, linewidth=0.6)
        # A line for each piece, since none of the steps is a slope.
        for piece in np.split(np.arange(len(x)), np.flatnonzero(np.diff(y)) + 1):
            axis.plot(x[piece], y[piece], color=Colour.BLUE, linewidth=2.5)
        axis.set(title=name, xlabel="x", xlim=(-2, 2), ylim=(-1.3, 1.6), yticks=(-1, 0, 1))
    forward.set_ylabel("value")
    for axis, y, fill in ((forward, 1, Colour.BLUE), (forward, -1, "white"), (true, 0, "white")):
        axis.plot(0, y, "o", color=Colour.BLUE, mfc=fill, markersize=7, zorder=3)
    arrow = {"arrowstyle": "->", "color": Colour.GREY, "lw": 0.8}
    centre = {"ha": "center", "fontsize": 9}
    jump = {"xytext": (0, 0.75), "arrowprops": arrow, "bbox": forms.PALE_BOX}
    true.annotate("a jump: no gradient", (0, 0.08), **centre, **jump)
    straight.fill_between(x, inside, color=Colour.BLUE, alpha=0.12, linewidth=0)
    straight.text(0, 0.42, "passes", bbox=forms.PALE_BOX, **centre)
    for place in (-1.5, 1.5):
        straight.text(place, 0.12, "stopped", **centre)
    alt = (
        "Three curves of x from -2 to 2. sign(x): -1 below 0, +1 from 0 on. Its gradient: 0 "
        "everywhere but at the jump, where there is none. The straight-through gradient: 1 where "
        "|x| <= 1, 0 beyond."
    )
    return Picture(figure, title, [Origin(Provenance.COMPUTED, "sign(0) is +1")], alt, notes)


@drawn()
def sign_pictures(
    rows: Mapping[str, Any], names: Sequence[str], origin: MachineCard, *notes: str, title: str
) -> Picture:
    """Show weights, pixels or activations as small pictures, a row a kind, a name a column.

    ``rows`` hold label to (n, H, W). Signs, +1 and -1 alone, are drawn white and black; values
    that are nowhere negative, such as pixels, from black to white; others around a white 0.
    """
    heights = [1.15 * min(2.0, max(0.6, p.shape[1] / p.shape[2])) for p in rows.values()]
    height, shape = 1.0 + sum(heights) + 0.12 * len(rows), (len(names), len(rows))
    figure, grid = canvas(9.5, height, *shape, squeeze=False, height_ratios=heights)
    words, legend = [], {}
    for row, (axes, (label, pictures)) in enumerate(zip(grid, rows.items(), strict=True)):
        values = to_cpu(pictures)
        look, said, marks = _look(values)
        words.append(f"{label}: {said}")
        legend |= marks
        for axis, picture, name in zip(axes, values, names, strict=True):
            axis.imshow(picture, interpolation="none", **look)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set(visible=True, color=Colour.GREY)
            if row == 0:
                axis.set_title(name, fontsize=9)
        size = "x".join(str(n) for n in values.shape[1:])
        beside = {"fontsize": 9, "rotation": 0, "ha": "right", "va": "center"}
        axes[0].set_ylabel("\n".join([*textwrap.wrap(label, 14), size]), **beside)
    alt = f"Pictures of {', '.join(names)}. {'; '.join(words)}"
    handles = forms.patches(legend, ec=Colour.GREY)
    return Picture(figure, title, [Origin.on(origin)], alt, notes, handles)


def _look(values: np.ndarray) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """How to draw values, what they are in words, and the legend's colours."""
    if np.isin(values, (-1, 1)).all():
        said = f"{100 * float((values > 0).mean()):.1f} % are +1, the others -1"
        return {"cmap": "gray", "vmin": -1, "vmax": 1}, said, {"+1": "white", "-1": "black"}
    if values.min() >= 0:
        look = {"cmap": "gray", "vmin": 0, "vmax": float(values.max()) or 1.0}
        return look, f"from 0 (black) to {values.max():.3g} (white)", {}
    edge = float(np.abs(values).max())
    look = {"cmap": _AROUND_ZERO, "vmin": -edge, "vmax": edge}
    marks = {"above 0": _AROUND_ZERO(1.0), "below 0": _AROUND_ZERO(0.0)}
    return look, f"from {values.min():.3g} to {values.max():.3g}", marks


@drawn()
def popcount_steps(a_bits: str, b_bits: str, *notes: str, title: str) -> Picture:
    """Multiply two rows of +1 and -1 by eye: number by number, and with XNOR and a count.

    The rows are texts of one length, 2 to 16, ``"1"`` for +1 and ``"0"`` for -1; else a ValueError.
    """
    length = len(a_bits)
    if not 2 <= length <= 16 or len(b_bits) != length or set(a_bits + b_bits) - set("01"):
        texts = f"got {a_bits!r} and {b_bits!r}"
        raise ValueError(f"two texts of 2 to 16 characters 0 or 1, of one length, {texts}.")
    a, b = ([1 if bit == "1" else -1 for bit in bits] for bits in (a_bits, b_bits))
    product = [x * y for x, y in zip(a, b, strict=True)]
    xnor = "".join("1" if value == 1 else "0" for value in product)
    total, ones = sum(product), xnor.count("1")
    counted = f"2 x {ones} - {length} = {2 * ones - length}"
    numbers = {"a": a, "b": b, "a x b": product}
    signs = {name: [f"{value:+d}" for value in row] for name, row in numbers.items()}
    bits = {"a": a_bits, "b": b_bits, "XNOR": xnor}
    halves = {f"sum: {total}": signs, f"count of ones: {ones}\n{counted}": bits}
    figure, axes = canvas(9.5, 4.0)
    for block, (result, lines) in enumerate(halves.items()):
        top, heading = 4.1 * block, ("numbers", "bits")[block]
        axes.text(-0.33 * length, top + 0.45, heading, fontsize=10.5, weight="bold", va="center")
        for row, (name, texts) in enumerate(lines.items()):
            place = top + row + (0.12 if row == 2 else 0)
            axes.text(-0.04 * length, place + 0.45, name, ha="right", va="center", fontsize=10)
            edge = {"ec": Colour.INK, "lw": 1.4} if row == 2 else {"ec": Colour.GREY, "lw": 0.7}
            for column, text in enumerate(texts):
                face = Colour.SKY if row == 2 and xnor[column] == "1" else "white"
                forms.cell(axes, (column, place), text, 11, fc=face, **edge)
        axes.text(1.03 * length, top + 2.57, result, va="center", fontsize=11, weight="bold")
    forms.bare(axes)
    title_above = "where two bits agree, the product is +1 (coloured)"
    axes.set(xlim=(-0.34 * length, 1.42 * length), ylim=(7.3, -0.2), title=title_above)
    alt = (
        f"a is {a_bits}, b is {b_bits}, 1 for +1 and 0 for -1. Number by number the products "
        f"{', '.join(signs['a x b'])} add up to {total}. XNOR is {xnor}, with "
        f"{ones} ones of {length}: {counted}."
    )
    origin = Origin(Provenance.COMPUTED, "1 stands for +1, 0 for -1")
    return Picture(figure, title, [origin], alt, notes)


@drawn()
def size_accuracy(
    rows: Sequence[tuple[str, int, int, int]], origin: MachineCard, *notes: str, title: str
) -> Picture:
    """Draw bytes on disk and test error of networks of one architecture beside each other.

    The line through each error is where, by chance alone, 95 % of other test sets of this size
    would put it: 1.96 standard deviations of a count.

    ``rows``: (name, bytes, wrong answers, images); the first is compared with.
    """
    figure, (size, error) = canvas(9.5, 1.9 + 0.5 * len(rows), 2, sharey=True)
    bars, words, ends = [], [], []
    for place, (name, size_bytes, wrong, images) in enumerate(rows):
        smaller = f" ({rows[0][1] / size_bytes:.1f}x smaller)" if place else ""
        size_said, kilobytes = f"{format_number(size_bytes / 1e3)} kB{smaller}", size_bytes / 1e3
        bars.append(Bar("\n".join(textwrap.wrap(name, 22)), kilobytes, size_said, Colour.ORANGE))
        share = wrong / images
        percent, spread = 100 * share, 196 * math.sqrt(share * (1 - share) / images)
        dot = {"fmt": "o", "markersize": 9, "color": Colour.BLUE, "ecolor": Colour.INK}
        error.errorbar(percent, place, xerr=spread, **dot)
        forms.write_above(error, f"{percent:.2f} %", (percent, place))
        words.append(
            f"{name}: {size_said}, {wrong:,} of {images:,} wrong, {percent:.2f} % "
            f"(by chance {percent - spread:.2f} to {percent + spread:.2f})"
        )
        ends.append(percent + spread)
    forms.horizontal_bars(size, bars, height=0.55)
    size.set_ylim(len(rows) - 0.5, -0.65)
    forms.plain_ticks(size.xaxis)
    size.locator_params(axis="x", nbins=5)
    size.set_xlabel("bytes on disk, kB")
    error.tick_params(axis="y", length=0)
    error.grid(axis="x", color=Colour.GREY, alpha=0.2, linewidth=0.8)
    label = "test error, % (line: 95 % by chance alone)"
    error.set(xlim=(0, 1.2 * max(ends) or 1), xlabel=label)
    return Picture(figure, title, [Origin.on(origin)], "; ".join(words), notes)
