"""Figures of chapter 03, CPU against GPU: sizes and transfers."""

from fastdl_lib.figures import forms
from fastdl_lib.figures.forms import Bar, Sweeps
from fastdl_lib.figures.picture import Colour, Picture, canvas, drawn, origins_of
from fastdl_lib.measuring.evidence import format_number


@drawn()
def size_sweep(lines: Sweeps, *notes: str, title: str, cpu_wins_to: int = 0) -> Picture:
    """Draw how long a square product takes against its size, a line for each device.

    ``lines`` holds for each label size to milliseconds; the condition ``device`` gives the colour,
    the provenance the style: solid where a clock ran. Up to ``cpu_wins_to`` the figure is shaded.
    """
    figure, axes = canvas(9, 4.6)
    times, words = [time for line in lines.values() for time in line.values()], []
    for label, line in lines.items():
        first = next(iter(line.values()))
        look = forms.device_colour(first), forms.PROVENANCE_LOOK[first.provenance]
        words.append(forms.draw_line(axes, f"{label} ({first.provenance})", line, *look))
    forms.log_axes(axes, 2, 10)
    if cpu_wins_to:
        edges, said = axes.get_xlim(), f"the CPU is ahead up to {cpu_wins_to}"
        axes.axvspan(edges[0], cpu_wins_to, color=Colour.GREY, alpha=0.12, linewidth=0)
        axes.set_xlim(edges)
        look = {"fontsize": 9, "va": "top", "bbox": forms.PALE_BOX}
        axes.text(0.02, 0.95, said, transform=axes.transAxes, **look)
        words.append(said)
    axes.set_xlabel("size n of a product n x n times n x n, float32")
    axes.set_ylabel("time, ms (median, line: quartiles)")
    alt, legend = f"ms by size. {'. '.join(words)}", axes.get_legend_handles_labels()[0]
    return Picture(figure, title, origins_of(times), alt, notes, legend)


@drawn()
def transfer_bars(rows: Sweeps, *notes: str, title: str) -> Picture:
    """Draw what a step takes on the way to the GPU and on it, one part after the other.

    ``rows`` holds for each bar its parts in order, name to milliseconds; all bars share the names.
    The first part is the computing, the others are transfers.
    """
    first, *_ = parts = list(next(iter(rows.values())))
    palette = (Colour.GREEN, Colour.ORANGE, Colour.PURPLE, Colour.SKY)
    colours = dict(zip(parts, palette, strict=False))
    figure, axes = canvas(9.5, 1.9 + 0.5 * len(rows))
    words, ends = [], []
    for place, (label, row) in enumerate(rows.items()):
        bars = [Bar.of(time, "", colours[part]) for part, time in row.items()]
        ends.append(forms.stacked_bar(axes, place, bars))
        moving = 100 * (ends[-1] - row[first].median) / ends[-1]
        text = f"{format_number(ends[-1])} ms, {moving:.0f} % of it on the way"
        forms.write_beside(axes, text, (ends[-1], place))
        said = ", ".join(f"{part} {format_number(time.median)}" for part, time in row.items())
        words.append(f"{label}: {said}; {text}")
    forms.name_rows(axes, list(rows))
    axes.set(xlim=(0, 1.02 * max(ends)), xlabel="time for one batch, ms")
    times = [time for row in rows.values() for time in row.values()]
    legend = [*forms.patches(colours), *forms.provenance_patches(times)]
    return Picture(figure, title, origins_of(times), "; ".join(words), notes, legend)
