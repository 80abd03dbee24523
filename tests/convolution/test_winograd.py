"""Winograd's transforms are exact in rational arithmetic; tiles are chosen by counting."""

import numpy as np
import pytest
from helpers import reference

from fastdl_lib.convolution.geometry import Geometry
from fastdl_lib.convolution.winograd import (
    LARGEST_TILE,
    best_tile,
    forward,
    saves_work,
    transform_matrices,
)


def convolved(x, weight, outputs=None, **window):
    return forward(x, weight, None, Geometry.of(x, weight, **window), outputs)


SIZES = [(m, r) for r in range(1, LARGEST_TILE + 1) for m in range(1, LARGEST_TILE + 2 - r)]


@pytest.mark.parametrize(("outputs", "taps"), SIZES)
def test_the_transforms_filter_one_row(outputs, taps):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal(outputs + taps - 1), rng.standard_normal(taps)
    into, filters, out_of = transform_matrices(outputs, taps)
    expected = [x[i : i + taps] @ w for i in range(outputs)]
    np.testing.assert_allclose(out_of @ ((filters @ w) * (into @ x)), expected, atol=1e-11)


def test_f_2_3_is_the_one_of_the_paper():
    """Lavin and Gray, section 4.1; of their last product they take the sign on both sides."""
    into, filters, out_of = transform_matrices(2, 3)
    assert into.tolist() == [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, -1, 0, 1]]
    assert filters.tolist() == [[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]
    assert out_of.tolist() == [[1, 1, 1, 0], [0, 1, -1, 1]]


@pytest.mark.parametrize("taps", [2, 3, 5])
def test_every_choice_of_tile_agrees(taps):
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((2, 3, 11, 8)), rng.standard_normal((4, 3, taps, taps))
    for outputs in range(1, LARGEST_TILE + 2 - taps):
        out = convolved(x, weight, outputs, padding=1)
        np.testing.assert_allclose(out, reference(x, weight, padding=1), atol=1e-10)


def test_the_error_in_float32_is_small_and_grows_with_the_tile():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 64, 24, 24)).astype(np.float32)
    weight = rng.standard_normal((32, 64, 3, 3)).astype(np.float32)
    exact = convolved(x.astype(float), weight.astype(float))
    errors = []
    for m in (2, 4, 6):
        difference = convolved(x, weight, outputs=m) - exact
        errors.append(np.sqrt((difference**2).mean() / (exact**2).mean()))
    assert errors[0] < errors[1] < errors[2] < 5e-6


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: transform_matrices(7, 3), ValueError, "tiles of 9 pixels.* at most 6 outputs"),
        (lambda: transform_matrices(0, 3), ValueError, "outputs must be at least 1"),
        (lambda: transform_matrices(2.0, 3), TypeError, "outputs must be a whole number"),
        (lambda: best_tile(10, 11, 64, 64), ValueError, "up to 8 taps .* got 11: use im2col"),
        (lambda: transform_matrices(2, 3).output.fill(0), ValueError, "read-only"),
    ],
)
def test_too_large_a_tile_is_refused_and_a_way_out_named(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize(
    ("layer", "m"),
    [((55, 3, 48, 96), 5), ((27, 5, 48, 128), 4), ((13, 3, 256, 384), 5), ((2, 3, 64, 64), 2)],
)
def test_the_tile_fits_the_layer(layer, m):
    """AlexNet's conv1 without its stride, conv2, conv3; and a tile larger than the output."""
    assert best_tile(*layer) == m


@pytest.mark.parametrize(
    ("saves", "why", "shapes", "window"),
    [
        (True, "AlexNet's conv1", ((16, 3, 227, 227), (96, 3, 11, 11)), {"stride": 4}),
        (False, "too few images pay for the filters", ((3, 256, 15, 15), (384, 256, 3, 3)), {}),
        (False, "one channel: nothing but transforms", ((16, 1, 30, 30), (16, 1, 3, 3)), {}),
        (False, "a filter of one tap saves nothing", ((16, 64, 28, 28), (64, 64, 1, 1)), {}),
        (False, "too many taps", ((16, 64, 66, 66), (64, 64, 11, 11)), {}),
    ],
)
def test_it_is_chosen_where_it_saves_work(saves, why, shapes, window):
    assert saves_work(Geometry(*shapes, **window)) == saves, why
