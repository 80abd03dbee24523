"""Guesses and slider figures: live, as a picture and as text, all from one output."""

import base64
import functools
import io
import json
import math
import re

import ipywidgets as widgets
import numpy as np
import pytest
from helpers import example
from PIL import Image

from fastdl_lib.figures import explore as room
from fastdl_lib.figures.explore import explore, predict
from fastdl_lib.figures.picture import Origin, Picture, canvas
from fastdl_lib.measuring.evidence import Measurement, Provenance

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def share(value=59.0, unit="%", **changes):
    fields = {"provenance": Provenance.MEASURED, "machine": example(), **changes}
    return Measurement("convolution", unit, (value,), **fields)


# --- predictions --------------------------------------------------------------------------------


guess = functools.partial(predict, "share of convolution", unit="%", low=0, high=100)


def test_a_guess_is_a_number_within_its_bounds():
    for number in (0, 37.2, 100, np.int64(5), np.float32(0.5)):
        assert guess(number).value == number and type(guess(number).value) is float
    for number in ("50", True, np.True_, [50], 1j):
        with pytest.raises(TypeError, match="a guess is a number, got"):
            guess(number)
    for number in (-0.1, 101, math.nan, math.inf):
        with pytest.raises(ValueError, match="must lie between 0 and 100 %, got"):
            guess(number)


def test_a_prediction_shows_slider_and_text():
    prediction = guess(50)
    slider, bundle = prediction._slider, prediction._repr_mimebundle_()
    assert (slider.min, slider.max, slider.value, slider.disabled) == (0, 100, 50, False)
    assert json.dumps(bundle) and bundle.keys() >= {WIDGET_VIEW, "text/plain"}
    assert bundle["text/plain"].startswith("share of convolution: guess 50 % (edit the number")
    slider.value = 73
    assert prediction.value == 73
    assert "guess 73 %" in prediction._repr_mimebundle_()["text/plain"]


def test_no_guess_stays_none_until_the_slider_moves():
    prediction = guess()
    assert prediction.value is None
    assert ": no guess yet (edit the" in prediction._repr_mimebundle_()["text/plain"]
    picture = prediction.compare(share())
    assert "no guess made" in picture.title and "your guess" not in picture.alt
    prediction._slider.value = 20
    assert prediction.value == 20


def test_decades_get_a_logarithmic_slider():
    slider = predict("gain", 30, unit="x", low=1, high=1000)._slider
    assert isinstance(slider, widgets.FloatLogSlider) and slider.value == 30
    assert (slider.min, slider.max) == (0, 3)
    assert isinstance(predict("gain", unit="x", low=1, high=20)._slider, widgets.FloatSlider)


def test_comparing_draws_all_values_and_locks_the_guess():
    prediction = guess(50)
    published = share(
        95.0, provenance=Provenance.PUBLISHED, machine=None, source="a thesis, figure 3"
    )
    for other in ((share(unit="ms"),), (share(), share(unit="x"))):
        with pytest.raises(
            ValueError, match=r"the guess is in %, but 'convolution' is in .*; conv"
        ):
            prediction.compare(*other)
    assert not prediction._slider.disabled
    picture = prediction.compare(share(), published)
    assert prediction._slider.disabled
    for part in ("your guess 50 %", "this machine 59.0 %", "convolution 95.0 %"):
        assert part in picture.alt
    assert "Measured here: Example CPU" in picture.caption
    assert "a thesis, figure 3" in picture.caption
    # Run again, as a notebook is.
    assert prediction.compare(share(), published).alt == picture.alt


# --- slider figures -----------------------------------------------------------------------------


def draw(size=1, colour="red"):
    """A bar whose height and colour are those chosen."""
    figure, axes = canvas(3, 2)
    axes.bar([0], [size], color=colour)
    axes.set_ylim(0, 10)
    return Picture(figure, "A bar", [Origin(Provenance.COMPUTED)], f"a {colour} bar, {size} high")


@pytest.fixture
def shown(monkeypatch):
    """What explore() displays: (data, options)."""
    outputs = []
    monkeypatch.setattr(room, "display", lambda data, **options: outputs.append((data, options)))
    return outputs


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_one_output_has_a_widget_a_picture_and_text(shown):
    explore(draw, size=[3, 5], colour=["red", "blue"])
    ((data, options),) = shown
    assert options["raw"] is True
    assert set(data) == {WIDGET_VIEW, "image/png", "text/plain"}
    assert data[WIDGET_VIEW]["model_id"]
    first = draw(3, "red")
    np.testing.assert_array_equal(pixels(base64.b64decode(data["image/png"])), pixels(first.png))
    assert data["text/plain"].endswith("a red bar, 3 high")
    assert options["metadata"]["image/png"] == {"alt": "a red bar, 3 high", "width": first.width_px}


def controls_and_image(box):
    return box.children[:-1], box.children[-1]


def pixels_of(image):
    """Those of the PNG inside the live figure's <img>."""
    png = re.search(r'src="data:image/png;base64,([^"]+)"', image.value)[1]
    return pixels(base64.b64decode(png))


def test_moving_a_control_changes_the_image(shown):
    box = explore(draw, size=[3, 9, 5, 1], colour=["red", "blue"])
    (slider, list_), image = controls_and_image(box)
    assert slider.options == (1, 3, 5, 9) and slider.value == 3
    assert isinstance(slider, widgets.SelectionSlider) and isinstance(list_, widgets.Dropdown)
    for control, value, expected in (
        (slider, 9, draw(9, "red")),
        (list_, "blue", draw(9, "blue")),
        (slider, 3, draw(3, "blue")),
    ):
        before = pixels_of(image)
        control.value = value
        assert (pixels_of(image) != before).any()
        np.testing.assert_array_equal(pixels_of(image), pixels(expected.png))
        assert f'alt="{expected.alt}"' in image.value
    assert len(shown) == 1
    (field, _), image = controls_and_image(explore(draw, size=3, colour=["red", "blue"]))
    assert isinstance(field, widgets.FloatText) and field.description == "size"
    field.value = 9
    np.testing.assert_array_equal(pixels_of(image), pixels(draw(9, "red").png))
    shown.clear()
    for choices in ({}, {"size": []}, {"size": [1], "colour": ()}):
        with pytest.raises(ValueError, match="at least one choice, each with at least one value"):
            explore(draw, **choices)
    assert not shown


def test_the_text_alternative_cannot_break_the_page(shown):
    def draw_with_quotes(batch_size):
        picture = draw(batch_size)
        picture.alt = '"><script>'
        return picture

    (slider,), image = controls_and_image(explore(draw_with_quotes, batch_size=np.array([2, 4])))
    assert "<script>" not in image.value and image.value.count("<") == 1
    assert slider.description == "batch size" and slider.value == 2
