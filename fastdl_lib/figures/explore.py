"""What a learner moves: guesses made before a measurement, and figures with sliders.

Both work in three places. In a running JupyterLab they are live; on a static page (GitHub, HTML)
and in a headless run the same output shows as a picture or as text.
"""

import base64
import html
import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import ipywidgets as widgets
from IPython.display import display

from fastdl_lib.figures.forms import guess_and_truth
from fastdl_lib.figures.picture import Picture, style
from fastdl_lib.measuring.evidence import Measurement

_WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


class Prediction:
    """A guess, committed before the measurement; made by :func:`predict`."""

    def __init__(
        self, question: str, value: float | None, unit: str, low: float, high: float
    ) -> None:
        self.question, self.unit = question, unit
        self.value = value
        """The guess as it stands: None, the number given to :func:`predict`, or the slider's."""
        look = {"readout_format": ".4g", "layout": widgets.Layout(width="420px")}
        self._decades: tuple[float, float] | None = None
        kind, limits = widgets.FloatSlider, {"min": low, "max": high, "step": (high - low) / 100}
        if low > 0 and high >= 100 * low:
            ends = math.log10(low), math.log10(high)
            kind, limits = widgets.FloatLogSlider, {"min": ends[0], "max": ends[1], "step": 0.02}
            self._decades = low, high
        start = low if value is None else value
        self._slider = kind(value=start, **limits, **look, continuous_update=False)
        self._slider.observe(lambda change: setattr(self, "value", change["new"]), names="value")

    def compare(self, measured: Measurement, *published: Measurement) -> Picture:
        """Show guess, own measurement and published values side by side; the guess is now fixed.

        Without a guess, the other two; logarithmic where the slider is. A number of another unit
        than the guess's raises ValueError.
        """
        for m in (measured, *published):
            if m.unit != self.unit:
                units = f"the guess is in {self.unit}, but {m.name!r} is in {m.unit}"
                raise ValueError(f"{units}; convert it first.")
        self._slider.disabled = True
        told = self.question, self.unit, self.value, measured, *published
        return guess_and_truth(*told, decades=self._decades)

    def _repr_mimebundle_(self, **_: Any) -> dict:
        heading = widgets.HTML(f"<b>{self.question}</b>: your guess, in {self.unit}")
        guess = "no guess yet" if self.value is None else f"guess {self.value:g} {self.unit}"
        text = (
            f"{self.question}: {guess} (edit the number above and run the cell again, or run it "
            "in JupyterLab and move the slider)"
        )
        return {**widgets.VBox([heading, self._slider])._repr_mimebundle_(), "text/plain": text}


def predict(
    question: str, guess: float | None = None, *, unit: str, low: float, high: float
) -> Prediction:
    """Commit a guess before measuring. It is a plain number; in JupyterLab a slider may change it.

    None is no guess yet. ``low`` and ``high`` bound the slider, which is logarithmic where they lie
    two decades apart; a guess outside raises ValueError.

    >>> predict("share of convolution", 50, unit="%", low=0, high=100).value
    50.0
    """
    if guess is None:
        return Prediction(question, None, unit, float(low), float(high))
    if not isinstance(guess, Real) or isinstance(guess, bool):
        raise TypeError(f"a guess is a number, got {guess!r}.")
    if not low <= guess <= high:
        raise ValueError(f"a guess must lie between {low} and {high} {unit}, got {guess}.")
    return Prediction(question, float(guess), unit, float(low), float(high))


def explore(draw: Callable[..., Picture], **choices: Sequence[Any] | float) -> widgets.VBox:
    """Show ``draw(**values)`` with one control for each of ``choices``.

    The output holds three forms of itself: the live figure, the first picture as PNG for static
    pages, and its text alternative. Numbers get a slider, anything else a drop-down list; each
    starts at its first value. A single number gets a field to type another one into.

    ``draw`` takes one keyword argument for each choice: the values to pick from (numbers are put
    in order), or the number to start from. No choice, or one without values, raises
    ValueError.
    """
    listed = [values for values in choices.values() if not isinstance(values, Real)]
    if not choices or not all(len(values) for values in listed):
        raise ValueError("explore() needs at least one choice, each with at least one value.")
    controls = {name: _control(name, values) for name, values in choices.items()}

    def picture() -> Picture:
        with style():
            return draw(**{name: control.value for name, control in controls.items()})

    first = picture()
    image = widgets.HTML(_image_tag(first))
    for control in controls.values():
        control.observe(lambda _: setattr(image, "value", _image_tag(picture())), names="value")
    box = widgets.VBox([*controls.values(), image])
    data, metadata = first.mimebundle()
    data[_WIDGET_VIEW] = box._repr_mimebundle_()[_WIDGET_VIEW]
    data["text/plain"] = f"Interactive figure (run the notebook to move it). {first.alt}"
    display(data, metadata=metadata, raw=True)
    return box


def _control(name: str, values: Sequence[Any] | float) -> widgets.Widget:
    if isinstance(values, Real):
        return widgets.FloatText(value=float(values), description=name.replace("_", " "))
    common = {"value": values[0], "description": name.replace("_", " ")}
    if all(isinstance(value, Real) for value in values):  # a slider to the right is to more
        return widgets.SelectionSlider(options=sorted(values), **common, continuous_update=False)
    return widgets.Dropdown(options=list(values), **common)


def _image_tag(picture: Picture) -> str:
    """The picture as HTML: unlike an Image widget it carries the alternative text."""
    return (
        f'<img alt="{html.escape(picture.alt)}" width="{picture.width_px}" '
        f'src="data:image/png;base64,{base64.b64encode(picture.png).decode()}">'
    )
