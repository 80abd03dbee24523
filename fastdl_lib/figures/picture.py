"""What every figure of the course has: a style, a caption with provenance, and a text alternative.

A figure function returns a :class:`Picture`: it shows itself in a notebook, carries a text that
says the same in words, and bears a caption with provenance and machine or source. Colours are
Okabe and Ito's, which colour-blind readers can tell apart; hatching shows provenance. Figures look
the same whatever style the reader has set, and leave that style alone: see :func:`drawn`.
"""

import base64
import contextlib
import enum
import functools
import html
import inspect
import io
import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from IPython.display import display
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from fastdl_lib.core.arrays import to_cpu
from fastdl_lib.measuring.evidence import Measurement, Provenance
from fastdl_lib.measuring.machine import MachineCard


class Colour(enum.StrEnum):
    """The palette; ``INK`` is for texts, ``GREY`` for what stays in the background."""

    VERMILION = "#D55E00"
    PURPLE = "#CC79A7"
    GREEN = "#009E73"
    BLUE = "#0072B2"
    ORANGE = "#E69F00"
    SKY = "#56B4E9"
    SILVER = "#999999"
    INK = "#222222"
    GREY = "#666666"


HATCH = {
    Provenance.MEASURED: "",
    Provenance.RECORDED: "..",
    Provenance.SIMULATED: "xx",
    Provenance.COMPUTED: "--",
    Provenance.PUBLISHED: "//",
}
CLOCKED = (Provenance.MEASURED, Provenance.RECORDED)
DOTS_AN_INCH = 130
_PIXELS_AN_INCH = 96
_STYLE = {
    "hatch.linewidth": 0.45, "axes.titlesize": 10, "legend.fontsize": 9, "legend.frameon": False,
    "xtick.labelsize": 9, "ytick.labelsize": 9, "axes.spines.top": False,
    "axes.spines.right": False,
}  # fmt: skip
# A longer list of sources would not be read in a caption.
_LONGEST_SOURCES = 240


class Origin(NamedTuple):
    """Where a figure's numbers come from: their provenance, and the machine or source."""

    provenance: Provenance
    where: str = ""
    disturbed: str = ""

    @classmethod
    def on(cls, card: MachineCard, provenance: Provenance = Provenance.MEASURED) -> "Origin":
        """What a machine's clock, or its network's answers, say."""
        return cls(provenance, card.summary)

    def __str__(self) -> str:
        told = ": ".join(filter(None, [self.provenance.capitalize(), self.where]))
        return f"{told}; DISTURBED: {self.disturbed}" if self.disturbed else told


def origins_of(measurements: Iterable[Measurement]) -> list[Origin]:
    """Every machine whose clock ran, then the sources of what no clock here measured."""
    found: dict[Provenance, dict[str, str]] = {provenance: {} for provenance in Provenance}
    for m in measurements:
        # Days computed from a speed owe it to the clock that took the speed.
        clock = Provenance(m.conditions.get("speed_is", m.provenance))
        if clock in CLOCKED and m.machine is not None:
            told = found[clock].get(m.machine.summary)
            found[clock][m.machine.summary] = told or m.disturbed
        if m.provenance not in CLOCKED:
            machine = m.machine.summary if m.machine and clock is m.provenance else ""
            found[m.provenance]["; ".join(filter(None, [m.source, machine]))] = ""
    origins = [Origin(clock, *told) for clock in CLOCKED for told in found.pop(clock).items()]
    return origins + [Origin(each, _shortened([*texts])) for each, texts in found.items() if texts]


def _shortened(sources: list[str]) -> str:
    """As many of the sources as a caption has room for, and how many more there are."""
    text, *others = sources
    text = textwrap.shorten(text, _LONGEST_SOURCES, placeholder=" ...")
    for place, source in enumerate(others):
        if len(text) + len(source) > _LONGEST_SOURCES:
            return f"{text}; and {len(others) - place} more"
        text += f"; {source}"
    return text


@contextlib.contextmanager
def style(plain: bool = False) -> Iterator[None]:
    """The course's style; after it the process's ``rcParams`` are the reader's again.

    ``plain``: texts between two $ are no formulas.
    """
    with matplotlib.rc_context():
        formulas = matplotlib.rcParams["text.parse_math"] and not plain
        matplotlib.rcdefaults()
        # Thin hatching, so that none is taken for the border of a slice.
        matplotlib.rcParams |= {**_STYLE, "text.parse_math": formulas}
        yield


def drawn(shows_gaps: bool = False) -> Callable:
    """Decorate a function that draws: in the course's style, and from data that can be drawn.

    The function then raises ValueError, naming the argument, for data without a value and, unless
    it shows them as gaps, for infinite values and NaN.
    """

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def draw(*data: Any, **options: Any) -> Any:
            given = inspect.signature(function).bind(*data, **options).arguments
            for name, value in given.items():
                check_drawable(value, f"{function.__name__}: {name}", shows_gaps)
            with style(plain=True):
                return function(*data, **options)

        return draw

    return decorate


def check_drawable(value: Any, name: str, shows_gaps: bool = False) -> None:
    """Refuse data that are empty somewhere, or not finite."""
    if isinstance(value, Mapping | list | tuple):
        parts = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, part in parts:
            if part is None:
                raise ValueError(f"{name}[{key!r}] is None; leave out what there is no value of.")
            check_drawable(part, f"{name}[{key!r}]", shows_gaps)
        size, finite = len(value), True
    elif isinstance(value, Real):
        size, finite = 1, math.isfinite(value)
    elif hasattr(value, "astype") and value.dtype.kind not in "OSU":
        size, finite = value.size, np.isfinite(to_cpu(value).astype(np.float64)).all()
    else:
        return
    if not size:
        raise ValueError(f"{name} is empty; there is nothing to draw.")
    if not (finite or shows_gaps):
        raise ValueError(f"{name} holds infinite values or NaN, which have no place in the figure.")


class Picture:
    """A finished figure: the image, its text alternative and its caption.

    In a notebook it shows itself as the last expression of a cell. ``origins`` make the caption,
    ``notes`` end it; ``alt`` says the figure's numbers in words. Without an origin, with a clock's
    that names no machine or a published one that names no source, or without words, a ValueError.

    >>> figure, axes = canvas(6, 3)
    >>> counted = Origin(Provenance.COMPUTED, "counted from the shapes")
    >>> Picture(figure, "MACs", [counted], "conv1: 105 million", ["batch 1"]).caption
    'Computed: counted from the shapes | batch 1'
    """

    def __init__(
        self, figure: Figure, title: str, origins: Sequence[Origin], alt: str,
        notes: Sequence[str] = (), legend: Sequence[Artist] = (),
    ) -> None:  # fmt: skip
        """Set title, legend and caption around the axes, which get the room between them."""
        if not origins or not all(isinstance(origin, Origin) for origin in origins):
            raise ValueError(
                f"the figure {title!r} does not say where its numbers come from; pass a list of "
                "origins, such as origins_of(measurements)."
            )
        needed = {Provenance.PUBLISHED: "its source: Origin(kind, source)"}
        needed |= dict.fromkeys(CLOCKED, "a machine: Origin.on(card)")
        for origin in origins:
            kind = Provenance(origin.provenance)
            if kind in needed and not origin.where.strip():
                raise ValueError(f"{title!r}: {kind} needs {needed[kind]}.")
        if not alt.strip():
            raise ValueError(f"{title!r}: alt is empty; it says the figure's numbers in words.")
        self.figure, self.title, self.alt = figure, title, alt
        self.caption = " | ".join([*map(str, origins), *filter(None, notes)])
        with style(plain=True):
            self._set_around(legend)

    def _set_around(self, legend: Sequence[Artist]) -> None:
        figure = self.figure
        width, height = figure.get_size_inches()
        small = {"fontsize": 8, "color": Colour.GREY, "va": "bottom"}
        large = {"fontsize": 12, "color": Colour.INK, "va": "top"}
        lines, heading = self._lines(self.caption, 16, small), self._lines(self.title, 10, large)
        # A long caption or title takes nothing from the axes.
        height += 0.14 * (len(lines) - 1) + 0.2 * (len(heading) - 1)
        figure.set_figheight(height)
        below, above = (0.14 * len(lines) + 0.12) / height, (0.3 + 0.2 * len(heading)) / height
        figure.text(0.01, 0.06 / height, "\n".join(lines), **small)
        figure.text(0.01, 1 - 0.08 / height, "\n".join(heading), **large)
        if legend:
            place = {"loc": "lower center", "bbox_to_anchor": (0.5, below), "borderaxespad": 0.2}
            for rows in range(math.ceil(1.45 * len(legend) / width), len(legend) + 1):
                columns = math.ceil(len(legend) / rows)
                drawn = figure.legend(handles=legend, ncols=columns, columnspacing=1.2, **place)
                if columns == 1 or drawn.get_window_extent().width < figure.bbox.width:
                    break
                drawn.remove()
            below += (0.08 + 0.2 * math.ceil(len(legend) / columns)) / height
        figure.set_layout_engine("constrained", rect=(0, below, 1, 1 - below - above))

    def _lines(self, text: str, letters_an_inch: float, look: dict[str, Any]) -> list[str]:
        """The text in lines that are not wider than the figure."""
        lines = textwrap.wrap(text, int(letters_an_inch * self.figure.get_figwidth())) or [""]
        written = self.figure.text(0.01, 0, "\n".join(lines), **look)
        excess = written.get_window_extent().x1 / (0.99 * self.figure.bbox.width)
        written.remove()
        return lines if excess <= 1 else self._lines(text, 0.98 * letters_an_inch / excess, look)

    @functools.cached_property
    def png(self) -> bytes:
        """The image as PNG bytes."""
        buffer = io.BytesIO()
        with style():
            self.figure.savefig(buffer, format="png", dpi=DOTS_AN_INCH, facecolor="white")
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


@style()
def canvas(width: float, height: float, columns: int = 1, rows: int = 1, **options: Any) -> tuple:
    """A new figure of this size in inches and its axes, without the frame's upper and right side.

    ``options`` are those of ``matplotlib.figure.Figure.subplots``.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **options)
