"""Figures of chapter 04, distributed training: all-reduce, overlap, scaling, parts of a step."""

from collections.abc import Mapping, Sequence

import matplotlib.colors
import numpy as np
from matplotlib.patches import ConnectionPatch

from fastdl_lib.figures import forms
from fastdl_lib.figures.picture import HATCH, Colour, Origin, Picture, canvas, check_drawable, drawn
from fastdl_lib.measuring.evidence import Provenance, format_number
from fastdl_lib.measuring.machine import MachineCard
from fastdl_lib.scaling.curves import Curve
from fastdl_lib.scaling.simulator import Scaling, all_reduce_schedule


@drawn()
def all_reduce_steps(way: str, workers: int = 4, shown: int | None = None) -> Picture:
    """Draw who holds which sums after each step of an all-reduce, and what came from whom;
    ``shown``: only the first so many steps.

    See :func:`fastdl_lib.scaling.simulator.all_reduce_schedule`.
    """
    states, moved = all_reduce_schedule(way, workers)
    steps, chunks = len(states) - 1, len(states[0][0])
    states = states[: None if shown is None else shown + 1]
    width = (0.27 * chunks + 0.32) * (steps + 1) + 0.7
    figure, axes = canvas(max(8.5, width), 1.65 + 0.27 * workers, steps + 1)
    for axis in axes[len(states) :]:
        axis.set_visible(False)
    shades = matplotlib.colors.LinearSegmentedColormap.from_list("", ["white", Colour.BLUE])
    held = []
    for step, (axis, holds) in enumerate(zip(axes, states, strict=False)):
        texts = [[_held(has, workers) for has in own] for own in holds]
        held.append("; ".join("/".join(row) for row in texts))
        for worker, chunk in np.ndindex(workers, chunks):
            has, before = holds[worker][chunk], states[max(0, step - 1)][worker][chunk]
            look = {"edgecolor": Colour.GREY, "linewidth": 0.6, "zorder": 2}
            if has != before:
                look = {"edgecolor": Colour.VERMILION, "linewidth": 2.2, "zorder": 3}
                source = _sender(states[step - 1], holds, worker, chunk)
                ends = (chunk + 0.9, source + 0.5), (chunk + 0.1, worker + 0.5)
                arrow = {"arrowstyle": "->", "color": Colour.VERMILION, "linewidth": 0.7}
                arrow |= {"coordsA": "data", "axesA": axes[step - 1], "axesB": axis}
                figure.add_artist(ConnectionPatch(*ends, **arrow))
            look["facecolor"] = shades(0.75 * (len(has) - 1) / (workers - 1))
            forms.cell(axis, (chunk, worker), texts[worker][chunk], 7.5, **look)
        forms.bare(axis)
        limits = {"xlim": (-0.05, chunks + 0.05), "ylim": (workers + 0.05, -0.05)}
        axis.set(aspect="equal", **limits)
        axis.tick_params(length=0)
        axis.set_title(f"step {step}" if step else "start", fontsize=9)
    names = [f"worker {worker + 1}" for worker in range(workers)]
    axes[0].set_yticks(np.arange(workers) + 0.5, names)
    pieces = f"{chunks} chunks" if chunks > 1 else "one piece"
    bytes_moved = f"{format_number(moved)} times the gradients' bytes one after another"
    title = f"All-reduce by a {way}: {steps} steps, {bytes_moved}"
    alt = (
        f"{title}. {workers} workers, gradients in {pieces}. Step by step, worker by worker they "
        f"hold the sums of: {' | '.join(held[:-1])}. At the end they hold: {held[-1]}"
    )
    note = "a number names a worker whose gradients are in the sum; framed: it has just arrived"
    counted = Origin(Provenance.COMPUTED, f"gradients in {pieces}")
    return Picture(figure, title, [counted], alt, [note])


def _sender(before: list, after: list, worker: int, chunk: int) -> int:
    """Whose sum a worker was sent: the nearest before it that had what is new."""
    had, has = before[worker][chunk], after[worker][chunk]
    others = ((worker - distance) % len(before) for distance in range(1, len(before)))
    return next(other for other in others if had | before[other][chunk] == has)


def _held(has: set[int], workers: int) -> str:
    """Whose gradients are in a sum."""
    return "all" if len(has) == workers else "".join(str(w + 1) for w in sorted(has))


@drawn()
def overlap_timeline(seen: Sequence[tuple], card: MachineCard, *notes: str) -> Picture:
    """Draw what a rank did when: ``seen`` has ("forward", "backward" or "link", from, to), in s."""
    begin_s = min(start for _, start, _ in seen)
    rows: dict[str, list] = {"forward": [], "backward": [], "link": []}
    for what, *span in seen:
        rows[what].append([1e3 * (at - begin_s) for at in span])
    end_ms = max(end for _, end in rows["backward"])
    tail_ms = max(0.0, max(end for _, end in rows["link"]) - end_ms)
    sent = format_number(sum(end - start for start, end in rows["link"]))
    title = f"{sent} ms of sending, the end {format_number(tail_ms)} ms after that of computing"
    figure, axes = canvas(9, 1.4 + 0.5 * len(rows))
    colours = (Colour.SKY, Colour.BLUE, Colour.GREEN)
    for place, (name, colour) in enumerate(zip(rows, colours, strict=True)):
        for start, end in rows[name]:
            late = name == "link" and end > end_ms
            look = {"color": Colour.VERMILION if late else colour, "edgecolor": "white"}
            axes.barh(place, end - start, left=start, height=0.7, **look)
    axes.axvline(end_ms, color=Colour.INK, linewidth=1, linestyle=":")
    forms.name_rows(axes, [*rows])
    axes.set(xlabel=f"ms from the start of the step ({Provenance.MEASURED})", xlim=(0, None))
    said = [
        f"{name}: {', '.join(f'{start:.1f} to {end:.1f}' for start, end in spans)} ms"
        for name, spans in rows.items()
    ]
    note = "dotted: computing ends; red: messages that end after it"
    return Picture(figure, title, [Origin.on(card)], f"{title}. {'. '.join(said)}", [note, *notes])


@drawn()
def scaling_lines(lines: Sequence[tuple], *notes: str, title: str) -> Picture:
    """Draw efficiency, the speed-up for each worker, against the number of workers.

    ``lines``: (label, numbers of workers, speed-ups, provenance, source), dots where published and
    dashed where simulated, both in the colour of their label, which two lines may share. At its end
    a line has its speed-up.
    """
    figure, axes = canvas(9, 4.8)
    looks = dict(zip(dict.fromkeys(line[0] for line in lines), forms.LOOKS[2:], strict=False))
    words, ends = [], []
    for label, workers, values, provenance, _ in lines:
        look = looks[label][0], forms.PROVENANCE_LOOK[provenance]
        dots = {n: 100 * times / n for n, times in zip(workers, values, strict=True)}
        words.append(forms.draw_line(axes, f"{label} ({provenance})", dots, *look))
        words[-1] += f"; speed-up at the end {format_number(values[-1])}"
        ends.append((dots[workers[-1]], workers[-1], f"{format_number(values[-1])}x", look[0]))
    heights = forms.apart([end[0] for end in ends], 4.5, 0, 112)
    for height, (_, last, text, colour) in zip(heights, ends, strict=True):
        forms.write_beside(axes, text, (last, height), color=colour)
    axes.axhline(100, color=Colour.GREY, linewidth=0.9, linestyle=":", label="ideal")
    forms.log_axes(axes, 2)
    axes.set(xlabel="workers (GPUs)", ylabel="efficiency, %", ylim=(0, 115))
    axes.legend(loc="lower left")
    origins = dict.fromkeys(Origin(*line[3:]) for line in lines)
    return Picture(figure, title, list(origins), ". ".join(words), notes)


@drawn()
def prediction_scatter(groups: Mapping[str, Sequence[Curve]], *notes: str, title: str) -> Picture:
    """Draw blindly predicted against published efficiencies; a curve's first point is given.

    Perfect scaling predicts 100 % for all, which is the upper line.
    """
    figure, axes = canvas(7.5, 5)
    words = []
    for (name, curves), look in zip(groups.items(), forms.LOOKS[2:], strict=False):
        workers = np.concatenate([curve.workers[1:] for curve in curves])
        both = [c.speedup[1:] for c in curves], [c.predicted()[1:] for c in curves]
        known, predicted = (100 * np.concatenate(times) / workers for times in both)
        axes.plot(known, predicted, look[2], color=look[0], alpha=0.7, markersize=5, label=name)
        pairs = (f"{a:.0f}: {b:.0f}" for a, b in zip(known, predicted, strict=True))
        words.append(f"{name}, published and predicted: {', '.join(pairs)}")
    axes.plot([0, 105], [0, 105], color=Colour.INK, linewidth=0.9, label="predicted rightly")
    axes.axhline(100, color=Colour.GREY, linestyle=":", label="perfect scaling predicts this")
    axes.set(xlabel=f"efficiency, % ({Provenance.PUBLISHED})", xlim=(20, 110), ylim=(20, 110))
    axes.set_ylabel(f"efficiency, % ({Provenance.SIMULATED})")
    axes.legend(loc="lower right")
    origins = [Origin(Provenance.SIMULATED, "blind"), Origin(Provenance.PUBLISHED, "all curves")]
    return Picture(figure, title, origins, ". ".join(words), notes)


@drawn()
def step_parts(scaling: Scaling, *notes: str, title: str) -> Picture:
    """Draw what shares a simulated step is made of, and the speed-up, against the workers."""
    check_drawable(scaling.step_s, "step_parts: scaling.step_s")
    figure, (left, right) = canvas(9.5, 4.3, 2)
    parts = {
        "computing": (Colour.BLUE, scaling.compute_s),
        "waiting": (Colour.ORANGE, scaling.waiting_s),
        "communicating": (Colour.VERMILION, scaling.communication_s),
    }
    hatch = HATCH[Provenance.SIMULATED]
    shares = [(colour, 100 * seconds / scaling.step_s) for colour, seconds in parts.values()]
    forms.stacked_columns(left, scaling.workers, shares, hatch)
    left.set(xlabel="workers (GPUs)", ylabel=f"of a step, % ({Provenance.SIMULATED})")
    right.plot(scaling.workers, scaling.workers, ":", color=Colour.GREY, linewidth=0.9)
    right.plot(scaling.workers, scaling.speedup, "x--", color=Colour.BLUE, linewidth=2)
    last = f"{scaling.speedup[-1]:.1f}x, {scaling.efficiency_pct[-1]:.0f} %"
    right.text(0.97, 0.06, last, transform=right.transAxes, ha="right", fontsize=10)
    forms.log_axes(right, 2, 2)
    # The same axes for all, so that harm is seen.
    right.set(xlabel="workers (GPUs)", ylabel="speed-up (dotted: ideal)")
    right.set_ylim(min(0.25, *scaling.speedup), 1.3 * scaling.workers[-1])
    words = []
    for place, (workers, speedup) in enumerate(zip(scaling.workers, scaling.speedup, strict=True)):
        said = (f"{part} {format_number(s[place])} s" for part, (_, s) in parts.items())
        words.append(f"{workers} workers: {', '.join(said)}, speed-up {format_number(speedup)}")
    simulated = Origin(Provenance.SIMULATED, scaling.job.name)
    legend = forms.patches({part: colour for part, (colour, _) in parts.items()})
    return Picture(figure, title, [simulated], f"{title}. {'; '.join(words)}", notes, legend)
