"""Winograd's transforms are exact in rational arithmetic; tiles are chosen by counting."""

import copy

import numpy as np
import pytest

from fastdl_lib.convolution.winograd import (
    LARGEST_TILE,
    best_tile,
    conv2d_winograd,
    saves_work,
    transform_matrices,
)
from fastdl_lib.nn.layers import Conv2d

SIZES = [(m, r) for r in range(1, LARGEST_TILE + 1) for m in range(1, LARGEST_TILE + 2 - r)]


@pytest.mark.parametrize(("outputs", "taps"), SIZES)
def test_the_transforms_filter_one_row(outputs, taps):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal(outputs + taps - 1), rng.standard_normal(taps)
    into, filters, out_of = transform_matrices(outputs, taps)
    expected = [x[i : i + taps] @ w for i in range(outputs)]
    np.testing.assert_allclose(out_of @ ((filters @ w) * (into @ x)), expected, atol=1e-11)


def test_the_transforms_serve_all_and_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        transform_matrices(2, 3).output[...] = 0
    with pytest.raises(TypeError, match=r"outputs must be a whole number, got 2\.0"):
        transform_matrices(2.0, 3)


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
    answers = [
        conv2d_winograd(x, weight, padding=1, outputs=m) for m in range(1, LARGEST_TILE + 2 - taps)
    ]
    for answer in answers[1:]:
        np.testing.assert_allclose(answer, answers[0], atol=1e-10)


def test_the_error_in_float32_is_small_and_grows_with_the_tile():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 64, 24, 24)).astype(np.float32)
    weight = rng.standard_normal((32, 64, 3, 3)).astype(np.float32)
    exact = conv2d_winograd(x.astype(float), weight.astype(float))
    errors = []
    for m in (2, 4, 6):
        difference = conv2d_winograd(x, weight, outputs=m) - exact
        errors.append(np.sqrt((difference**2).mean() / (exact**2).mean()))
    assert errors[0] < errors[1] < errors[2] < 5e-6


def test_not_a_number_reaches_its_whole_tile():
    x = np.zeros((1, 1, 8, 8), np.float32)
    x[0, 0, 0, 0] = np.nan
    out = conv2d_winograd(x, np.ones((1, 1, 3, 3), np.float32), outputs=3)
    assert np.isnan(out[0, 0, :3, :3]).all() and not np.isnan(out[0, 0, 3:, 3:]).any()


def test_too_large_a_tile_is_refused_and_a_way_out_named():
    with pytest.raises(ValueError, match=r"tiles of 9 pixels.* at most 6 outputs"):
        transform_matrices(7, 3)
    with pytest.raises(ValueError, match=r"up to 8 taps .* got 11: use im2col"):
        best_tile(10, 11, 64, 64)
    with pytest.raises(ValueError, match="outputs must be at least 1"):
        transform_matrices(0, 3)


@pytest.mark.parametrize(
    ("layer", "m"),
    [((55, 3, 48, 96), 5), ((27, 5, 48, 128), 4), ((13, 3, 256, 384), 5), ((2, 3, 64, 64), 2)],
)
def test_the_tile_fits_the_layer(layer, m):
    """AlexNet's conv1 without its stride, conv2, conv3; and a tile larger than the output."""
    assert best_tile(*layer) == m


def test_it_is_chosen_where_it_saves_work():
    assert saves_work(16, 55, 11, 4, 3, 96), "AlexNet's conv1"
    assert not saves_work(3, 13, 3, 1, 256, 384), "too few images pay for the filters' transform"
    assert not saves_work(16, 28, 3, 1, 1, 16), "one channel: nothing but transforms"
    assert not saves_work(16, 28, 1, 1, 64, 64), "a filter of one tap has nothing to save"
    assert not saves_work(16, 56, 11, 1, 64, 64), "too many taps"


def test_conv2d_picks_by_shape_and_takes_any_by_name():
    rng = np.random.default_rng(0)
    layer = Conv2d(16, 16, 3, rng=rng)
    x = rng.standard_normal((4, 16, 14, 14)).astype(np.float32)
    assert (layer.algorithm_for(x), layer.algorithm_for(x[:1])) == ("winograd", "blocked")
    expected = layer.forward(x)
    for name in ("loops", "compiled", "im2col", "blocked", "winograd"):
        layer.algorithm = name
        assert layer.algorithm_for(x) == name
        np.testing.assert_allclose(layer.forward(x), expected, atol=1e-4)
    with pytest.raises(ValueError, match=r"must be one of .*'winograd'.*, got 'fft'"):
        layer.algorithm = "fft"
    with pytest.raises(ValueError, match="got 'fast'"):
        Conv2d(16, 16, 3, algorithm="fast", rng=rng)


def test_conv2d_lays_its_weights_out_as_the_algorithm_reads_them():
    layer = Conv2d(3, 4, 2, rng=np.random.default_rng(0))
    weight = layer.parameters["weight"]
    assert weight.transpose(0, 2, 3, 1).flags.c_contiguous
    twin = copy.copy(layer)
    layer.algorithm = "im2col"
    assert layer.parameters["weight"].flags.c_contiguous
    assert twin.parameters["weight"] is weight
    assert (layer.parameters["weight"] == weight).all()
    layer.algorithm = "blocked"
    assert layer.parameters["weight"].transpose(0, 2, 3, 1).flags.c_contiguous
    assert (layer.parameters["weight"] == weight).all()


def test_conv2d_picks_what_knows_the_gpu_or_float16(fake_gpu):
    layer, x = Conv2d(16, 16, 3, rng=np.random.default_rng(0)), np.ones((8, 16, 14, 14), np.float32)
    assert layer.algorithm_for(fake_gpu.asarray(x)) == "gpu"
    assert layer.algorithm_for(x.astype(np.float16)) == "blocked"
    assert layer.algorithm_for(x) == "winograd"
