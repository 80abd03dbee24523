"""Figures of chapter 05, half precision: bits, ranges, sizes of values, accuracy, formats."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.ticker
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from fastdl_lib.core.arrays import to_cpu
from fastdl_lib.figures import forms
from fastdl_lib.figures.picture import Colour, Origin, Picture, canvas, drawn
from fastdl_lib.measuring.evidence import Provenance, format_number
from fastdl_lib.measuring.machine import MachineCard
from fastdl_lib.precision.formats import FloatFormat, NumberFormat

# A histogram begins here; how many values are smaller is said beside it.
_LEAST = -60
_BITS = {"sign": Colour.PURPLE, "exponent": Colour.ORANGE, "fraction": Colour.SKY}


@drawn(shows_gaps=True)
def bit_layout(
    number_format: FloatFormat, value: float | str, *, asked: float | None = None
) -> Picture:
    """Draw the bits of a number, what each counts, and how they become the number.

    ``value`` is a number, which is rounded to the format, or its bits as a string of 0s and 1s.
    With bits, ``asked`` is the number that was meant: those that differ from its bits are framed,
    and the error is that against it.

    Raises: TypeError, ValueError for no float format, more than 32 bits, or bits that do not fit.

    >>> from fastdl_lib.precision.formats import FLOAT16
    >>> print(bit_layout(FLOAT16, 0.1).alt[:59])
    0.1 as float16 is 0.0999755859375. Bits: 0 01011 1001100110
    """
    if not isinstance(number_format, FloatFormat):
        raise TypeError(f"{number_format!r} has no exponent; give a float format such as FLOAT16.")
    if number_format.bits > 32:
        raise ValueError(f"{number_format.name} has {number_format.bits} bits; 32 at most fit.")
    if not isinstance(value, str):
        asked = float(value)
        value = number_format.bits_of(asked)
    stored = number_format.value_of(value)
    bits = "".join(value.split())
    meant = bits if asked is None else number_format.bits_of(asked).replace(" ", "")
    flips = [place for place, bit in enumerate(bits) if bit != meant[place]]
    figure, axes = canvas(9.5, 3.7)
    _draw_bits(axes, bits, number_format.exponent_bits, flips)
    formula = _decoding(number_format, bits, stored)
    fate = _stored_in_words(number_format, asked, stored)
    axes.text(0, -0.92, _raised(formula), fontsize=13, color=Colour.INK, va="center")
    axes.text(0, -1.6, fate, fontsize=10.5, color=Colour.INK, va="center")
    for text in axes.texts:  # long ones would squeeze the boxes, and measuring takes time
        text.set_in_layout(False)
    end, name = 1 + number_format.exponent_bits, number_format.name
    spaced = f"{bits[0]} {bits[1:end]} {bits[end:]}"
    is_what = f"{spaced} in {name}" if asked is None else f"{asked:.8g} as {name}"
    if flips:
        is_what += f" with bit {', '.join(str(len(bits) - 1 - place) for place in flips)} flipped"
    layout = (
        f"{name} has 1 bit of sign, {number_format.exponent_bits} of exponent (bias "
        f"{number_format.bias}), {number_format.fraction_bits} of fraction"
    )
    title = f"{is_what} is {stored:.13g}"
    alt = f"{title}. Bits: {spaced}. {formula}. {fate}"
    notes, legend = ["dark: 1, pale: 0, framed: flipped"], forms.patches(_BITS)
    return Picture(figure, title, [Origin(Provenance.COMPUTED, layout)], alt, notes, legend)


def _power_of_two(exponent: float) -> str:
    """2 to this power, for an axis: 2\N{SUPERSCRIPT ONE}\N{SUPERSCRIPT ZERO}."""
    return _raised(f"2^{exponent:.0f}")


def _raised(formula: str) -> str:
    """A formula whose powers, 2^-3 or 2^(5 - 15), are in small figures above the line."""
    small = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "^() ")
    return re.sub(r"\^(-?\d+|\([^)]*\))", lambda power: power[0].translate(small), formula)


def _draw_bits(axes: Any, bits: str, exponent_bits: int, flips: Sequence[int]) -> None:
    """A box a bit: above it its number, below it what a 1 there counts."""
    weights = ["+/-", *(f"{2**power}" for power in range(exponent_bits)[::-1])]
    weights += [_power_of_two(-place) for place in range(1, len(bits) - exponent_bits)]
    for place, (bit, weight) in enumerate(zip(bits, weights, strict=True)):
        part = "fraction" if place > exponent_bits else "exponent" if place else "sign"
        look = {"fc": _BITS[part], "alpha": 0.9 if bit == "1" else 0.3, "ec": "white", "lw": 1.5}
        forms.cell(axes, (place, 0), bit, 13, **look)
        if place in flips:
            look = {"fill": False, "ec": Colour.INK, "lw": 2.5}
            axes.add_patch(Rectangle((place + 0.06, 0.05), 0.88, 0.9, **look))
        for height, text, size in ((1.17, str(len(bits) - 1 - place), 7.5), (-0.2, weight, 8.5)):
            axes.text(place + 0.5, height, text, fontsize=size, ha="center", va="center")
    axes.set(xlim=(-0.02, max(len(bits), 16) + 0.02), ylim=(-1.95, 1.3))
    forms.bare(axes)
    said = "above each bit its number, below it what a 1 there counts"
    axes.set_title(said, fontsize=8.5, color=Colour.GREY)


def _decoding(number_format: FloatFormat, bits: str, stored: float) -> str:
    """How the bits become the number."""
    end = 1 + number_format.exponent_bits
    sign, exponent, fraction = bits[0], int(bits[1:end], 2), int(bits[end:], 2)
    if math.isnan(stored):
        not_zero = "not 0: NaN" if number_format.has_infinity else "all ones: NaN, not a number"
        return f"exponent all ones, fraction {not_zero}"
    if math.isinf(stored):
        return f"exponent all ones, fraction 0: {'-' * int(sign)}infinity"
    if stored == 0:
        return f"exponent and fraction all zeros: {'-' * int(sign)}0"
    factor, note = 1 + fraction / 2**number_format.fraction_bits, ""
    if exponent == 0:
        exponent, factor, note = 1, factor - 1, "   (subnormal: no 1 is hidden)"
    power = f"2^({exponent} - {number_format.bias})"
    return f"(-1)^{sign} x {power} x {factor:.9g} = {stored:.9g}{note}"


def _stored_in_words(number_format: FloatFormat, asked: float | None, stored: float) -> str:
    """What was asked for, what is stored, and the error."""
    if asked is None:
        return f"stored: {stored:.13g}"
    error, verdict = stored - asked, f"error: {stored - asked:.3g}"
    if asked == stored or (math.isnan(asked) and math.isnan(stored)):
        verdict = "exact"
    elif not math.isfinite(error):
        beyond = abs(asked) > number_format.largest
        verdict = f"largest: {number_format.largest:.6g}" * beyond
    elif abs(stored) > 2 * abs(asked) > 0:
        verdict = f"{format_number(stored / asked)} times what was asked"
    elif asked:
        verdict += f", {format_number(100 * abs(error / asked))} % of it"
    return f"asked: {asked:.13g}    stored: {stored:.13g}    {verdict}"


def _in_digits(number_format: NumberFormat) -> str:
    """How fine a format is, below its name."""
    if isinstance(number_format, FloatFormat):
        digits = (number_format.fraction_bits + 1) * math.log10(2)
        return f"{number_format.fraction_bits} fraction bits: {digits:.1f} digits"
    return f"steps of {number_format.smallest_subnormal:g}"


def _range_bar(axis: Any, place: float, number_format: NumberFormat) -> None:
    """A bar over powers of two from the smallest number, pale up to the smallest normal one."""
    numbers = (number_format.smallest_subnormal, number_format.smallest_normal)
    lowest, normal, largest = map(math.log2, (*numbers, number_format.largest))
    colour = Colour.BLUE if isinstance(number_format, FloatFormat) else Colour.ORANGE
    axis.barh(place, normal - lowest, left=lowest, height=0.5, color=colour, alpha=0.35)
    axis.barh(place, largest - normal, left=normal, height=0.5, color=colour)


def _powers_of_two(axis: Any) -> None:
    axis.set_major_locator(matplotlib.ticker.MaxNLocator(14, integer=True))
    axis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda v, _: _power_of_two(v)))


def _range_patches(formats: Sequence[NumberFormat]) -> list[Patch]:
    floats = [isinstance(number_format, FloatFormat) for number_format in formats]
    legend = forms.patches({"normal numbers: all digits": Colour.BLUE})
    if any(floats):
        legend += forms.patches({"subnormal: digits get lost": Colour.BLUE}, alpha=0.35)
    return legend if all(floats) else legend + forms.patches({"evenly spaced": Colour.ORANGE})


@drawn()
def format_ranges(formats: Sequence[NumberFormat], *notes: str, title: str) -> Picture:
    """Draw from which to which size the positive numbers of each format reach.

    Integers with a scale are drawn at the scale 1.
    """
    figure, axes = canvas(9.5, 1.7 + 0.52 * len(formats))
    words, names = [], []
    for place, number_format in enumerate(formats):
        _range_bar(axes, place, number_format)
        smallest, largest = number_format.smallest_subnormal, number_format.largest
        for number, beside in ((smallest, (-5, "right")), (largest, (5, "left"))):
            text = f"{number:,.6g}" if 1 <= number < 1e6 else f"{number:.1e}"
            end = {"xytext": (beside[0], 0), "ha": beside[1]}
            forms.write_beside(axes, text, (math.log2(number), place), **end)
        digits = _in_digits(number_format)
        names.append(f"{number_format.name}\n{digits}")
        reach = f"{smallest:.3g} to {largest:.6g}"
        words.append(f"{number_format.name}, {number_format.bits} bits: {reach}, {digits}")
    forms.name_rows(axes, names)
    axes.axvline(0, color=Colour.INK, linewidth=0.9, linestyle=":")
    left, right = axes.get_xlim()
    axes.set_xlim(left - 25, right + 25)  # room for the numbers
    _powers_of_two(axes.xaxis)
    axes.set_xlabel("size of a positive number (dotted: 1)")
    reach = "from the smallest number above 0 to the largest of each format"
    origins, legend = [Origin(Provenance.COMPUTED, reach)], _range_patches(formats)
    return Picture(figure, title, origins, "; ".join(words), notes, legend)


@drawn()
def magnitude_histogram(
    groups: dict,
    formats: Sequence[NumberFormat],
    origin: MachineCard,
    *notes: str,
    title: str,
    reach: tuple[int, ...] = (),
) -> Picture:
    """Draw how large values are, power of two by power of two, above what formats can hold.

    ``groups`` are label to an array of any shape, NumPy or CuPy; shares are of its values that are
    not 0. Each format has a bar below, with lines up to it; what the first one loses is shaded.
    The axis holds the powers of two in ``reach``, so that a row of pictures has one axis.
    """
    heights = {"rows": 2, "height_ratios": [8, 0.8 + 0.85 * len(formats)]}
    figure, (upper, lower) = canvas(9.5, 4.1 + 0.3 * len(formats), sharex=True, **heights)
    words, ends = [], []
    for (label, array), (colour, dashes, _) in zip(groups.items(), forms.LOOKS, strict=False):
        values = np.abs(to_cpu(array).astype(np.float64)).ravel()
        sizes = values[values > 0]
        zeros = 100 * float(np.mean(values == 0))
        every_power = np.frexp(sizes)[1] - 1
        powers = every_power[every_power >= _LEAST]
        first, last = (int(powers.min()), int(powers.max())) if powers.size else (0, 0)
        share = 100 * np.bincount(powers - first, minlength=1) / max(1, sizes.size)
        edges = np.arange(first, last + 2)  # stairs that start and end on the axis
        text = f"{label} ({zeros:.0f} % are 0)" if zeros else label
        if powers.size < sizes.size:
            text += f", {format_number(100 - float(share.sum()))} % further left"
        upper.stairs(share, edges, color=colour, linestyle=dashes, linewidth=2, label=text)
        ends += [first, last + 1]
        start = f"2^{first}" if powers.size == sizes.size else f"below 2^{_LEAST}"
        said = f"{label}: {zeros:.1f} % are 0, the others from {start} to 2^{last + 1}"
        words.append(", ".join([said, *_lost(sizes, formats)]))
    _draw_limits(upper, lower, formats, [*ends, *reach])
    upper.set(ylim=(0, None), ylabel="share of those not 0, %")
    # A legend between the two: the histogram keeps all of its room.
    upper.legend(ncols=2, loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.2)
    step = "a step holds the values between two powers of two"
    upper.set_xlabel(f"{step}; shaded: 0 or infinity in {formats[0].name}", fontsize=8.5)
    alt, legend = f"Sizes of values. {'. '.join(words)}", _range_patches(formats)
    return Picture(figure, title, [Origin.on(origin)], alt, notes, legend)


def _lost(sizes: np.ndarray, formats: Sequence[NumberFormat]) -> list[str]:
    """Which share of values above 0 each format rounds to 0 or cannot reach, in words."""
    said = []
    for each in formats if sizes.size else ():
        outside = sizes <= each.smallest_subnormal / 2, sizes > each.largest
        lost, over = (format_number(100 * float(np.mean(part))) for part in outside)
        zero = f"of these {lost} % become 0 in {each.name}"
        said.append(f"{zero} and {over} % lie beyond its largest")
    return said


def _draw_limits(upper: Any, lower: Any, formats: Sequence[NumberFormat], ends: list) -> None:
    """Draw the formats' bars below a histogram that has these ends, and lines up to it."""
    dotted = {"color": Colour.GREY, "linewidth": 0.9, "linestyle": ":"}
    powers = []
    for place, number_format in enumerate(formats):
        _range_bar(lower, place, number_format)
        for number in (number_format.smallest_subnormal, number_format.largest):
            powers.append(math.log2(number))
            upper.axvline(powers[-1], **dotted)
            lower.plot([powers[-1]] * 2, [-0.7, place], **dotted)
    limits = min(ends + powers) - 2, max(ends + powers) + 2
    # Half of the smallest number still becomes 0.
    for lost in ((limits[0], powers[0] - 1), (powers[1], limits[1])):
        upper.axvspan(*lost, color=Colour.VERMILION, alpha=0.12, linewidth=0)
    upper.set_xlim(limits)
    forms.name_rows(lower, [number_format.name for number_format in formats])
    _powers_of_two(lower.xaxis)
    lower.set_xlabel("size |x| of a value, in powers of two")


@drawn()
def accuracy_lines(
    panels: Mapping[tuple[str, str], dict], origin: MachineCard, *notes: str, title: str
) -> Picture:
    """Draw accuracy against something, one to three panels side by side.

    ``panels``: ``(what is on the axis, "linear" or "log")`` to lines, label to numbers and to the
    accuracy at each, %. A label keeps its colour in all panels.
    """
    figure, axes = canvas(9.5, 4.4, len(panels), sharey=True, squeeze=False)
    labels = dict.fromkeys(label for lines in panels.values() for label in lines)
    looks = dict(zip(labels, forms.LOOKS, strict=False))
    words = []
    for axis, ((xlabel, scale), lines) in zip(axes[0], panels.items(), strict=True):
        for label, (xs, accuracies) in lines.items():
            colour, dashes, marker = looks[label]
            name, dots = f"{label}, %, by {xlabel}", dict(zip(xs, accuracies, strict=True))
            words.append(forms.draw_line(axis, name, dots, colour, marker + dashes))
        axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
        if scale == "log":
            numbers = {x for xs, _ in lines.values() for x in xs}
            powers = {x: math.frexp(x)[1] - 1 for x in numbers if math.frexp(x)[0] == 0.5}
            forms.log_axes(axis, 2 if len(powers) == len(numbers) else 10)
            if len(powers) == len(numbers):
                axis.set_xticks(list(powers), [*map(_power_of_two, powers.values())])
        axis.set_xlabel(xlabel)
        axis.grid(axis="y", color=Colour.GREY, alpha=0.2, linewidth=0.8)
    axes[0][0].set(ylim=(-2, 102), ylabel=f"accuracy, % ({Provenance.MEASURED})")
    legend = [
        Line2D([], [], color=colour, ls=dashes, marker=marker, label=label)
        for label, (colour, dashes, marker) in looks.items()
    ]
    return Picture(figure, title, [Origin.on(origin)], ". ".join(words), notes, legend)
