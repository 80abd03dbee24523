"""Figures of chapter 02, im2col: the patch matrix, its memory, and the race of the algorithms."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from fastdl_lib.convolution.geometry import output_size
from fastdl_lib.convolution.im2col import im2col
from fastdl_lib.core.threads import threads_in_words
from fastdl_lib.figures import forms
from fastdl_lib.figures.forms import Bar, Curves, Groups
from fastdl_lib.figures.picture import HATCH, Colour, Origin, Picture, canvas, drawn, origins_of
from fastdl_lib.measuring.evidence import Measurement, Provenance, format_number
from fastdl_lib.measuring.machine import MachineCard


@drawn()
def patch_matrix(
    kernel: int, stride: int = 1, padding: int = 0, patch: int = 1, *, size: int = 5, pixel: int = 0
) -> Picture:
    """Draw which pixel of a ``size`` x ``size`` image goes to which cell of the patch matrix.

    ``patch``, counted from 1, is framed; what lies past the last stands for the last. The copies
    of ``pixel`` are circled; 0: none.

    >>> patch_matrix(3, size=4).alt[:60]
    'A 4x4 image and its patches of 3x3 pixels, stride 1, padding'
    """
    outputs = output_size(size, kernel, stride, padding)
    image = np.arange(1, size * size + 1).reshape(size, size)
    matrix = im2col(image[None, None], (kernel, kernel), stride, padding)[0]
    rows, count = matrix.shape
    patch = min(patch, count)
    wide = min(1.75, max(1, count / rows))
    figure, (left, right) = canvas(3.82 * (1 + wide), 4.7, 2, width_ratios=(1, wide))
    _number_grid(left, np.pad(image, padding), pixel)
    _number_grid(right, matrix, pixel)
    row, column = (stride * place for place in divmod(patch - 1, outputs))
    _frame(left, (column, row), kernel, kernel, f"patch {patch} of {count}")
    _frame(right, (patch - 1, 0), 1, rows, f"patch {patch}")
    padded = f", {padding} of padding" if padding else ""
    left.set_title(f"the image: {size}x{size} pixels{padded}")
    right.set_title(f"the patch matrix: {rows} rows, {count} columns")
    right.set_xlabel("one column a patch", fontsize=9)
    right.set_ylabel("one row a place in the window", fontsize=9)
    factor = f"{matrix.size / image.size:.1f} times"
    title = f"{image.size} pixels become {matrix.size} numbers, {factor} as many"
    held = ", ".join(map(str, matrix[:, patch - 1]))
    alt = (
        f"A {size}x{size} image and its patches of {kernel}x{kernel} pixels, stride {stride}, "
        f"padding {padding}: {count} patches are the columns of a {rows}x{count} matrix, "
        f"{factor} the pixels. Column {patch} holds the pixels {held}"
    )
    if pixel:
        copies = int((matrix == pixel).sum())
        title = f"Pixel {pixel} lies in {copies} patches, so it stands {copies} times in the matrix"
        alt += f". Pixel {pixel} stands {copies} times in the matrix"
    counted = Origin(Provenance.COMPUTED, "counted, no clock involved")
    notes = ["number and shade tell the pixel", "0 is padding" * bool(padding)]
    return Picture(figure, title, [counted], alt, notes)


def _frame(axis: Any, corner: tuple[int, int], width: int, height: int, name: str) -> None:
    """Frame a patch and write its name below."""
    look = {"fill": False, "ec": Colour.VERMILION, "lw": 3.5, "zorder": 5, "clip_on": False}
    axis.add_patch(Rectangle(corner, width, height, **look))
    look = {"color": Colour.VERMILION, "fontsize": 10, "weight": "bold"}
    axis.set_xticks([corner[0] + width / 2], [name], **look)
    axis.tick_params(length=0)


def _number_grid(axis: Any, values: np.ndarray, circled: int) -> None:
    """Draw whole numbers in cells shaded by their value; 0 is padding and stays pale."""
    rows, columns = values.shape
    shades = matplotlib.colormaps["cividis"](0.1 + 0.9 * values / values.max())
    size = min(12, 250 / columns, 115 / rows)
    for (row, column), value in np.ndenumerate(values):
        shade = shades[row, column] if value else "#EEEEEE"
        dark = value and shades[row, column, :3].mean() < 0.45
        ink = "white" if dark else Colour.INK if value else Colour.GREY
        forms.cell(axis, (column, row), str(value), size, ink, fc=shade, ec="white", lw=1.2)
        if value and value == circled:
            ring = {"ms": 2.2 * size, "mfc": "none", "mec": "white", "mew": 2.4, "zorder": 4}
            axis.plot(column + 0.5, row + 0.5, "o", **ring)
    forms.bare(axis)
    aspect = "equal" if columns < 3 * rows else "auto"
    axis.set(xlim=(0, columns), ylim=(rows, 0), aspect=aspect)


@drawn()
def memory_bars(memory: Curves, origin: MachineCard, *notes: str, title: str) -> Picture:
    """Draw what im2col holds on top of its input, predicted and measured, beside that input.

    ``memory`` holds for each layer, in MB: its input, its patches, the peak computed beforehand
    and the peak measured.
    """
    hatch = HATCH[Provenance.COMPUTED]
    series = {
        f"input ({Provenance.COMPUTED})": (0, Colour.GREY, hatch),
        f"peak on top of it ({Provenance.COMPUTED})": (2, Colour.SKY, hatch),
        f"peak on top of it ({Provenance.MEASURED})": (3, Colour.BLUE, ""),
    }
    words, texts = [], {}
    for name, sizes in memory.items():
        _, _, *peaks = texts[name] = [f"{format_number(size)} MB" for size in sizes]
        texts[name][0] += f", patches {sizes[1] / sizes[0]:.1f} times that"
        peak = "peak {} (computed) and {} (measured)".format(*peaks)
        words.append(f"{name}: input {texts[name][0]}, {peak}")
    bars, legend = [], []
    for label, (column, colour, pattern) in series.items():
        sizes = [(name, memory[name][column], texts[name][column]) for name in memory]
        bars.append([Bar(*size, colour, pattern) for size in sizes])
        legend += forms.patches({label: colour}, edgecolor="white", hatch=pattern)
    figure, axes = canvas(9, 1.9 + 0.62 * len(memory))
    forms.clustered_bars(axes, bars, fontsize=8)
    axes.set_xlabel("memory, MB")
    return Picture(figure, title, [Origin.on(origin)], "; ".join(words), notes, legend)


@drawn()
def race(
    speeds: Mapping[tuple[str, str, int], Measurement], ceilings: Mapping[int, Measurement],
    *notes: str, title: str,
) -> Picture:  # fmt: skip
    """Draw the speed of several algorithms on several layers, a group of bars an algorithm.

    ``speeds``: (algorithm, layer, threads) to GFLOP/s; the smallest number of threads is drawn as
    dots, a larger one as diamonds. ``ceilings``: threads to the GFLOP/s of a large product, a line.
    """
    runs: dict[str, dict[str, list[Measurement]]] = {name: {} for name, _, _ in speeds}
    for algorithm, layer, threads in sorted(speeds, key=lambda key: key[2]):
        runs[algorithm].setdefault(layer, []).append(speeds[algorithm, layer, threads])
    few, *more = sorted({threads for _, _, threads in speeds})
    figure, axes = canvas(10, 1.9 + 0.175 * (sum(map(len, runs.values())) + 1.3 * len(runs)))
    groups = {
        algorithm: [Bar.of(times[0], "", colour, layer) for layer, times in layers.items()]
        for (algorithm, layers), colour in zip(
            runs.items(), (Colour.GREY, *[*Colour][6::-1]), strict=False
        )
    }
    places = iter(forms.grouped_bars(axes, groups, log=True))
    diamond = {"ls": "", "marker": "D", "color": Colour.INK, "mfc": "white", "ms": 5}
    words = []
    for algorithm, layers in runs.items():
        said = ""
        for layer, times in layers.items():
            place, text = next(places), " / ".join(format_number(run.median) for run in times)
            for run in times[1:]:
                axes.plot(run.median, place, zorder=3, **diamond)
            beside = {"xycoords": axes.get_yaxis_transform(), "fontsize": 7.5}
            forms.write_beside(axes, text, (1, place), **beside)
            said += f" {layer} {text}"
        words.append(f"{algorithm}:{said}")
    legend = forms.provenance_patches(speeds.values(), dots=True)
    for dot in legend:
        dot.set_label(f"{threads_in_words(few)}, {dot.get_label()}")
    legend += [Line2D([], [], label=threads_in_words(n), **diamond) for n in more]
    for threads, dashes in zip(sorted(ceilings), ("--", ":", "-."), strict=False):
        label, ceiling = f"product ceiling, {threads_in_words(threads)}", ceilings[threads].median
        line = {"color": Colour.INK, "linewidth": 1.2, "linestyle": dashes}
        axes.axvline(ceiling, zorder=0, **line)
        legend.append(Line2D([], [], label=label, **line))
        words.append(f"{label}: {format_number(ceiling)}")
    axes.set_xlim(right=1.3 * max(m.high for m in (*speeds.values(), *ceilings.values())))
    axes.tick_params(axis="y", labelsize=7.5)
    axes.set_xlabel(
        "GFLOP/s: two FLOP for each MAC of the definition, over the time (line: quartiles)"
    )
    alt = "GFLOP/s: " + "; ".join(words)
    return Picture(figure, title, origins_of(speeds.values()), alt, notes, legend)


@drawn()
def parts_of_times(ways: Groups, *notes: str, title: str) -> Picture:
    """Draw what each way spends its milliseconds on: a bar a way, its parts one after the other."""
    figure, axes = canvas(9.5, 1.7 + 0.6 * len(ways))
    names = dict.fromkeys(part.name for parts in ways.values() for part in parts)
    colours = dict(zip(names, Colour, strict=False))
    longest, words = max(sum(part.median for part in parts) for parts in ways.values()), []
    for place, (way, parts) in enumerate(ways.items()):
        said = [f"{part.name} {format_number(part.median)}" for part in parts]
        texts = [text.rpartition(" ")[2] for text in said]
        bars = [
            Bar.of(part, text if part.median > 0.04 * longest else "", colours[part.name])
            for part, text in zip(parts, texts, strict=True)
        ]
        end = forms.stacked_bar(axes, place, bars)
        forms.write_beside(axes, f"{format_number(end)} ms", (end, place))
        words.append(f"{way}, ms: {', '.join(said)}; together {format_number(end)}")
    forms.name_rows(axes, [*ways])
    axes.set(xlim=(0, 1.1 * longest), xlabel="ms (medians)")
    everything = [part for parts in ways.values() for part in parts]
    legend, alt = forms.patches(colours), ". ".join(words)
    return Picture(figure, title, origins_of(everything), alt, notes, legend)


@drawn()
def error_against_speed(
    speeds: Sequence[Measurement], errors: Sequence[float], *notes: str, title: str
) -> Picture:
    """Draw the error of several algorithms against their speed; the best corner is bottom right.

    The first is the algorithm that the others want to beat. Errors are relative to the largest
    value of the right answer, and above 0.
    """
    figure, axes = canvas(9, 4.2)
    words = []
    for place, (speed, error) in enumerate(zip(speeds, errors, strict=True)):
        colour = Colour.BLUE if place else Colour.VERMILION
        axes.plot([speed.low, speed.high], [error, error], color=colour, linewidth=2)
        axes.plot(speed.median, error, "o" if place else "D", color=colour, ms=8)
        # In turn to the right and to the left: neighbours in the list are close in speed.
        side = {"xytext": (-9, 4), "ha": "right"} if place % 2 else {"xytext": (9, 4)}
        if not place:
            side = {"xytext": (0, -14), "ha": "center"}
        forms.write_beside(axes, speed.name, (speed.median, error), bbox=forms.PALE_BOX, **side)
        words.append(f"{speed.name}: {format_number(speed.median)} {speed.unit}, error {error:.1e}")
    axes.axvline(speeds[0].median, color=Colour.VERMILION, linewidth=0.8, linestyle=":")
    forms.log_axes(axes, 0, 10)
    axes.set(ylim=(min(errors) / 3, max(errors) * 4), ylabel="largest error, relative")
    limits = (0, 1.25 * max(speed.high for speed in speeds))
    axes.set(xlim=limits, xlabel=f"speed, {speeds[0].unit} (line: quartiles)")
    notes = (forms.ran_on(speeds[0]), *notes)
    return Picture(figure, title, origins_of(speeds), "; ".join(words), notes)


class Trial(NamedTuple):
    """One run of an algorithm: the time of an image (its name says what ran), the most memory it
    took on top of its input, and the largest error, relative to the right answer's largest value.
    """

    image_ms: Measurement
    peak_mb: float
    error: float


@drawn()
def trials(results: Sequence[Trial], *notes: str, title: str) -> Picture:
    """Draw time, memory and error of what was tried; the last one stands out."""
    times = [trial.image_ms for trial in results]
    panels = {
        "time of an image, ms": [m.median for m in times],
        "peak memory on top, MB": [trial.peak_mb for trial in results],
        "largest error, relative": [trial.error for trial in results],
    }
    figure, axes = canvas(10, 1.8 + 0.34 * len(results), 3, sharey=True)
    words = [f"{m.name}:" for m in times]
    colours = [Colour.SILVER] * (len(results) - 1) + [Colour.BLUE]
    for axis, (label, values) in zip(axes, panels.items(), strict=True):
        bars = []
        for place, value in enumerate(values):
            text = f"{value:.0e}" if value and "error" in label else format_number(value)
            bars.append(Bar(times[place].name, max(value, 1e-9), text, colours[place]))
            words[place] += f" {label} {text};"
        log = "error" in label or max(values) > 10 * min(values) > 0
        forms.horizontal_bars(axis, bars, log=log)
        axis.set_xlabel(label)
    notes = (forms.ran_on(times[-1]), *notes)
    return Picture(figure, title, origins_of(times), " ".join(words), notes)
