"""Figures of chapter 01, where time goes: costs, layers' times, shares, waterfall, batch sizes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.lines import Line2D

from fastdl_lib.figures import forms
from fastdl_lib.figures.forms import Bar, Shares, kind_colour
from fastdl_lib.figures.picture import HATCH, Colour, Origin, Picture, canvas, drawn, origins_of
from fastdl_lib.measuring.costs import KINDS, Ceilings, LayerCost
from fastdl_lib.measuring.evidence import Provenance, format_number
from fastdl_lib.measuring.timing import LayerProfile


@drawn()
def share_bars(shares: Sequence[Shares], *notes: str, title: str) -> Picture:
    """Draw shares as stacked bars: lengths are easier to compare than angles."""
    figure, axes = canvas(9.5, 1.7 + 0.6 * len(shares))
    for place, share in enumerate(shares):
        hatch = HATCH[share.origin.provenance]
        parts = [
            Bar(name, p, f"{name}\n{p:.1f}" * (p >= 5.5), kind_colour(kind), hatch)
            for name, kind, p in share.parts()
        ]
        forms.stacked_bar(axes, place, parts)
    forms.name_rows(axes, [f"{share.label}\n({share.origin.provenance})" for share in shares])
    axes.set(xlim=(0, 100), xlabel="share of the time, %")
    return forms.shares_picture(figure, "Stacked bars", shares, notes, title)


@drawn()
def cost_shares(costs: Sequence[LayerCost], *notes: str, title: str) -> Picture:
    """Draw, layer by layer, who holds the parameters and who does the multiplications."""
    costs = [cost for cost in costs if cost.macs]
    figure, axes = canvas(9.5, 4.0, 2, sharey=True)
    counts = {
        "share of the parameters, %": [cost.parameters for cost in costs],
        "share of the MACs, %": [cost.macs for cost in costs],
    }
    words, hatch = [], HATCH[Provenance.COMPUTED]
    for axis, (label, values) in zip(axes, counts.items(), strict=True):
        shares = [(c, 100 * value / sum(values)) for c, value in zip(costs, values, strict=True)]
        conv, fc = (sum(p for c, p in shares if c.kind == kind) for kind in ("conv", "fc"))
        bars = [Bar(c.name, p, f"{p:.1f}", kind_colour(c.kind), hatch) for c, p in shares]
        forms.horizontal_bars(axis, bars, height=0.8)
        axis.set_xlabel(label)
        words.append(f"{label}: convolution {conv:.1f}, fully connected {fc:.1f}")
    counted = Origin(Provenance.COMPUTED, "counted from the layers' shapes, no clock involved")
    legend = forms.kind_patches({cost.kind for cost in costs})
    return Picture(figure, title, [counted], "; ".join(words), notes, legend)


@drawn()
def layer_bars(profile: LayerProfile, *notes: str, title: str) -> Picture:
    """Draw each layer's time, median with quartiles; backward beside forward if measured."""
    colours = {name: kind_colour(kind) for name, kind in profile.kinds.items()}
    series, legend = [], forms.kind_patches(profile.kinds.values())
    for word, hatch in {"forward": "", "backward": "\\\\"}.items():
        if times := getattr(profile, word):
            bars = [Bar.of(time, "", colours[name], name) for name, time in times.items()]
            series.append([bar._replace(hatch=hatch) for bar in bars])
        if profile.backward:
            legend += forms.patches({word: Colour.GREY}, edgecolor="white", hatch=hatch)
    figure, axes = canvas(9, 1.7 + (0.32 if profile.backward else 0.25) * len(colours))
    forms.clustered_bars(axes, series)
    axes.set_xlabel(f"time for a batch of {profile.batch}, ms (median, line: quartiles)")
    ms = profile.layer_ms().items()
    words = ", ".join(f"{name} {format_number(time)} ms" for name, time in ms)
    alt = f"Time of each layer, batch {profile.batch}: {words}"
    return _ran(profile, figure, title, alt, notes, legend)


def _ran(
    profile: LayerProfile, figure: Any, title: str, alt: str, notes: Sequence[str], legend: list
) -> Picture:
    """A picture of a profile: its caption says what ran how often."""
    passes = f"{len(profile.first.samples)} passes"
    run = f"batch {profile.batch}, {forms.ran_on(profile.first, 'BLAS')}, {passes}"
    return Picture(figure, title, origins_of([profile.first]), alt, (run, *notes), legend)


@drawn()
def roofline_against_measured(
    profile: LayerProfile, costs: Sequence[LayerCost], ceilings: Ceilings, *notes: str,
    title: str = "How far each layer is from the roofline's promise",
) -> Picture:  # fmt: skip
    """Draw, layer by layer, the roofline's time beside the measured one, and their ratio."""
    costs = [cost for cost in costs if cost.bytes]
    figure, axes = canvas(9, 1.6 + 0.25 * len(costs))
    words = []
    for place, cost in enumerate(costs):
        promise, actual = cost.roofline_ms(ceilings), profile.forward[cost.name].median
        dot = {"color": kind_colour(cost.kind), "markersize": 7}
        axes.plot([promise, actual], [place, place], linewidth=3, alpha=0.35, color=dot["color"])
        axes.plot(promise, place, "o", markerfacecolor="white", **dot)
        axes.plot(actual, place, "o", **dot)
        end, ratio = max(promise, actual), actual / promise
        ratio = f"{ratio:.1f}" if ratio < 100 else format_number(ratio)
        forms.write_beside(axes, f"{ratio}x", (end, place), xytext=(8, 0))
        words.append(f"{cost.name} {ratio}")
    forms.log_axes(axes, 10)
    forms.name_rows(axes, [cost.name for cost in costs])
    axes.set_xlabel(f"time for a batch of {profile.batch}, ms")
    faces = {f"roofline ({Provenance.COMPUTED})": "white"}
    faces[f"time taken ({profile.first.provenance})"] = Colour.GREY
    dot = {"linestyle": "", "marker": "o", "color": Colour.GREY}
    legend = [Line2D([], [], mfc=face, label=label, **dot) for label, face in faces.items()]
    alt = "Measured time over roofline time: " + ", ".join(words)
    return _ran(profile, figure, title, alt, notes, legend)


@drawn()
def waterfall(
    layers: Mapping[str, Mapping[str, float]], profile: LayerProfile, *notes: str, title: str
) -> Picture:
    """Draw how each layer's time comes about, ms: a part begins where the one before it ended.

    ``layers``: layer to its parts, the same ones in each, in order. A part below 0 goes back.
    """
    names = [*next(iter(layers.values()))]
    colours = dict(zip(names, [Colour.INK, *(look[0] for look in forms.LOOKS)], strict=False))
    figure, axes = canvas(9.5, 1.8 + 0.62 * len(layers))
    height, words = 0.84 / len(names), []
    for row, (layer, parts) in enumerate(layers.items()):
        end = furthest = 0.0
        for step, (name, part_ms) in enumerate(parts.items()):
            place = row + (step - (len(names) - 1) / 2) * height
            axes.barh(place, part_ms, left=end, height=height, color=colours[name])
            end += part_ms
            furthest = max(furthest, end)
        forms.write_beside(axes, f"{end:.1f} ms", (furthest, row))
        said = ", ".join(f"{name} {part_ms:.1f}" for name, part_ms in parts.items())
        words.append(f"{layer} {end:.1f} ms: {said}")
    forms.name_rows(axes, [*layers])
    axes.margins(x=0.1)
    axes.set_xlabel(f"time for a batch of {profile.batch}, ms")
    alt = f"From the ceiling's time to the measured one. {'; '.join(words)}"
    return _ran(profile, figure, title, alt, notes, forms.patches(colours))


@drawn()
def batch_sweep(profiles: Mapping[int, LayerProfile], *notes: str, title: str) -> Picture:
    """Draw the time an image takes, by kind of layer, against the batch size."""
    batches = sorted(profiles)
    profile_shares = [Shares.of_profile("", profiles[batch]) for batch in batches]
    shares = [{kind: share.of_kind(kind) for kind in KINDS} for share in profile_shares]
    image_ms = np.array([profiles[batch].total_ms / batch for batch in batches])
    figure, (left, right) = canvas(9.5, 4.2, 2)
    each = {kind: np.array([share[kind] for share in shares]) / 100 * image_ms for kind in KINDS}
    shown = [kind for kind in KINDS if kind != "other" or each[kind].max() >= 0.01]
    forms.stacked_columns(left, batches, [(kind_colour(kind), each[kind]) for kind in shown])
    left.set(xlabel="batch size, images", ylabel="time an image takes, ms")
    for kind in ("conv", "fc"):
        line = [share[kind] for share in shares]
        right.plot(range(len(batches)), line, "o-", color=kind_colour(kind), linewidth=2)
    for place, share in enumerate(shares):
        heights = forms.apart([share["conv"], share["fc"]], 8, 3, 97)
        for kind, height in zip(("conv", "fc"), heights, strict=True):
            look = {"color": kind_colour(kind), "weight": "bold", "bbox": forms.PALE_BOX}
            forms.write_above(right, f"{share[kind]:.0f}", (place, height), **look)
    right.set_xticks(range(len(batches)), [str(batch) for batch in batches])
    right.set_xlim(-0.3, len(batches) - 0.5)
    right.set(ylim=(0, 100), xlabel="batch size, images", ylabel="share of the forward time, %")
    said = "batch {}: {:.1f} ms, convolution {conv:.0f} %, fully connected {fc:.0f} %"
    each = zip(batches, image_ms, shares, strict=True)
    words = (said.format(batch, ms, **share) for batch, ms, share in each)
    alt, profile = f"Time an image takes: {'; '.join(words)}", profiles[batches[0]]
    notes = (f"{forms.ran_on(profile.first, 'BLAS')}, medians", *notes)
    legend = forms.kind_patches(shown)
    origins = origins_of(profiles[batch].first for batch in batches)
    return Picture(figure, title, origins, alt, notes, legend)
