"""Figures of chapter 04, distributed training: all-reduce, scaling, the parts of a step."""

from collections.abc import Sequence

import matplotlib.colors
import matplotlib.ticker
import numpy as np

from fastdl_lib.figures import forms
from fastdl_lib.figures.picture import HATCH, Colour, Origin, Picture, canvas, check_drawable, drawn
from fastdl_lib.measuring.evidence import Provenance, format_number
from fastdl_lib.measuring.machine import MachineCard
from fastdl_lib.scaling.simulator import Scaling, all_reduce_schedule


@drawn()
def all_reduce_steps(way: str, workers: int = 4) -> Picture:
    """Draw who holds which sums after each step of an all-reduce.

    See :func:`fastdl_lib.scaling.simulator.all_reduce_schedule`.
    """
    states, moved = all_reduce_schedule(way, workers)
    chunks = len(states[0][0])
    width = (0.27 * chunks + 0.22) * len(states) + 0.7
    figure, axes = canvas(max(8.5, width), 1.65 + 0.27 * workers, len(states))
    shades = matplotlib.colors.LinearSegmentedColormap.from_list("", ["white", Colour.BLUE])
    held = []
    for step, (axis, holds) in enumerate(zip(axes, states, strict=True)):
        texts = [[_held(has, workers) for has in own] for own in holds]
        held.append("; ".join("/".join(row) for row in texts))
        for worker, chunk in np.ndindex(workers, chunks):
            has, before = holds[worker][chunk], states[max(0, step - 1)][worker][chunk]
            look = {"edgecolor": Colour.GREY, "linewidth": 0.6, "zorder": 2}
            if has != before:
                look = {"edgecolor": Colour.VERMILION, "linewidth": 2.2, "zorder": 3}
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
    title = f"All-reduce by a {way}: {len(states) - 1} steps, {bytes_moved}"
    alt = (
        f"{title}. {workers} workers, gradients in {pieces}. Step by step, worker by worker they "
        f"hold the sums of: {' | '.join(held[:-1])}. At the end they hold: {held[-1]}"
    )
    note = "a number names a worker whose gradients are in the sum; framed: it has just arrived"
    counted = Origin(Provenance.COMPUTED, f"gradients in {pieces}")
    return Picture(figure, title, [counted], alt, [note])


def _held(has: set[int], workers: int) -> str:
    """Whose gradients are in a sum."""
    return "all" if len(has) == workers else "".join(str(w + 1) for w in sorted(has))


@drawn()
def scaling_lines(
    lines: Sequence[tuple], *notes: str, title: str, logarithmic: bool = True
) -> Picture:
    """Draw speed-ups against the number of workers, on two logarithmic axes or on none.

    ``lines``: (label, numbers of workers, speed-ups, provenance, source), dots where published and
    dashed where simulated, both in the colour of their label, which two lines may share.
    """
    figure, axes = canvas(9, 4.8)
    looks = dict(zip(dict.fromkeys(line[0] for line in lines), forms.LOOKS[2:], strict=False))
    words = []
    for label, workers, values, provenance, _ in lines:
        look = looks[label][0], forms.PROVENANCE_LOOK[provenance]
        dots = dict(zip(workers, values, strict=True))
        words.append(forms.draw_line(axes, f"{label} ({provenance})", dots, *look))
    ends = [min(line[1][0] for line in lines), max(line[1][-1] for line in lines)]
    axes.plot(ends, ends, color=Colour.GREY, linewidth=0.9, linestyle=":", label="ideal")
    if logarithmic:
        forms.log_axes(axes, 2, 2)
    axes.set(xlabel="workers (GPUs)", ylabel="speed-up over one GPU")
    axes.legend(loc="upper left")
    origins = dict.fromkeys(Origin(*line[3:]) for line in lines)
    return Picture(figure, title, list(origins), ". ".join(words), notes)


@drawn()
def step_parts(scaling: Scaling, *notes: str, title: str) -> Picture:
    """Draw what a simulated step is made of, and the speed-up, against the number of workers."""
    check_drawable(scaling.step_s, "step_parts: scaling.step_s")
    figure, (left, right) = canvas(9.5, 4.3, 2)
    parts = {
        "computing": (Colour.BLUE, scaling.compute_s),
        "waiting": (Colour.ORANGE, scaling.waiting_s),
        "communicating": (Colour.VERMILION, scaling.communication_s),
    }
    hatch = HATCH[Provenance.SIMULATED]
    forms.stacked_columns(left, scaling.workers, parts.values(), hatch)
    left.set(xlabel="workers (GPUs)", ylabel=f"a step, s ({Provenance.SIMULATED})")
    right.plot(scaling.workers, scaling.workers, ":", color=Colour.GREY, linewidth=0.9)
    right.plot(scaling.workers, scaling.speedup, "x--", color=Colour.BLUE, linewidth=2)
    last = f"{scaling.speedup[-1]:.1f}x, {scaling.efficiency_pct[-1]:.0f} %"
    right.text(0.97, 0.06, last, transform=right.transAxes, ha="right", fontsize=10)
    forms.log_axes(right, 2, 2)
    right.set(xlabel="workers (GPUs)", ylabel="speed-up (dotted: ideal)")
    words = []
    for place, (workers, speedup) in enumerate(zip(scaling.workers, scaling.speedup, strict=True)):
        said = (f"{part} {format_number(s[place])} s" for part, (_, s) in parts.items())
        words.append(f"{workers} workers: {', '.join(said)}, speed-up {format_number(speedup)}")
    simulated = Origin(Provenance.SIMULATED, scaling.job.name)
    legend = forms.patches({part: colour for part, (colour, _) in parts.items()})
    return Picture(figure, title, [simulated], f"{title}. {'; '.join(words)}", notes, legend)


@drawn(shows_gaps=True)
def epoch_lines(
    lines: forms.Curves, origin: MachineCard, *notes: str, title: str, ylabel: str
) -> Picture:
    """Draw what was measured after each epoch, a line for each way to train."""
    figure, axes = canvas(9, 4.3)
    by_epoch = {label: dict(enumerate(values, 1)) for label, values in lines.items()}
    words = forms.draw_lines(axes, by_epoch, "-")
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    axes.set(xlabel="epoch", ylabel=f"{ylabel} ({Provenance.MEASURED})")
    axes.legend(loc="best")
    alt = f"{ylabel} by epoch. {'; '.join(words)}"
    return Picture(figure, title, [Origin.on(origin)], alt, notes)
