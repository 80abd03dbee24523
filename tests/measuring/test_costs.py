"""What is counted before anything runs: checked by hand and against the paper's network."""

import math
import tracemalloc

import numpy as np
import pytest
from helpers import ceilings, example

from fastdl_lib.binary.inference import fold
from fastdl_lib.binary.networks import binary_deep_convnet, binary_mlp
from fastdl_lib.measuring.costs import (
    KINDS,
    LayerCost,
    cost_table,
    layer_costs,
    memory_bytes,
    training_days,
)
from fastdl_lib.measuring.evidence import Measurement, Provenance
from fastdl_lib.nn.layers import Conv2d, Dropout, Flatten, Linear, MaxPool2d, ReLU
from fastdl_lib.nn.network import Network
from fastdl_lib.nn.norms import BatchNorm, LocalResponseNorm
from fastdl_lib.nn.optimizers import SGD
from fastdl_lib.nn.zoo import alexnet, deep_convnet
from fastdl_lib.precision.formats import BFLOAT16, FLOAT16
from fastdl_lib.precision.mixed import Precision, in_precision
from fastdl_lib.precision.stored import StoredLinear

ALEXNET_MACS = {
    "conv1": 105_415_200,
    "conv2": 223_948_800,
    "conv3": 149_520_384,
    "conv4": 112_140_288,
    "conv5": 74_760_192,
    "fc6": 37_748_736,
    "fc7": 16_777_216,
    "fc8": 4_096_000,
}


@pytest.fixture(scope="module")
def alex():
    return alexnet()


def by_name(network, batch=1):
    return {cost.name: cost for cost in layer_costs(network, batch)}


# --- AlexNet ------------------------------------------------------------------------------------


def test_alexnet_takes_724_406_816_macs_an_image(alex):
    costs = by_name(alex)
    assert {name: cost.macs for name, cost in costs.items() if cost.macs} == ALEXNET_MACS
    assert sum(cost.macs for cost in costs.values()) == 724_406_816
    assert sum(cost.parameters for cost in costs.values()) == 60_965_224


def test_alexnets_convolutions_hold_few_parameters_and_do_most_of_the_work(alex):
    costs = layer_costs(alex)
    conv = [cost for cost in costs if cost.kind == "conv"]
    parameters = 100 * sum(c.parameters for c in conv) / sum(c.parameters for c in costs)
    macs = 100 * sum(c.macs for c in conv) / sum(c.macs for c in costs)
    assert (round(parameters, 1), round(macs, 1)) == (3.8, 91.9)


def test_macs_agree_with_counting_them_in_loops():
    """One addition to a counter for each multiplication that the definition does."""
    rng = np.random.default_rng(0)
    layers = [
        ("conv", Conv2d(4, 6, 3, stride=2, padding=1, groups=2, rng=rng)),
        ("flatten", Flatten()),
        ("fc", Linear(6 * 3 * 2, 5, rng=rng)),
    ]
    costs = by_name(Network("N", layers, (4, 5, 4)), batch=3)
    count = 0
    for _ in np.ndindex(3, 6, 3, 2):  # each output value
        for _ in np.ndindex(2, 3, 3):  # each weight of its filter
            count += 1
    assert costs["conv"].macs == count
    assert costs["fc"].macs == 3 * 36 * 5


# --- bytes --------------------------------------------------------------------------------------


def test_bytes_by_hand(alex):
    costs = by_name(alex)
    # conv1 reads 3x227x227 pixels and 34,944 weights and writes 96x55x55 values of 4 bytes.
    assert costs["conv1"].bytes == 4 * (154_587 + 34_944 + 290_400)
    assert costs["relu1"].bytes == 4 * 2 * 290_400
    assert costs["pool1"].bytes == 4 * (290_400 + 96 * 27 * 27)
    assert costs["fc6"].bytes == 4 * (9_216 + 37_752_832 + 4_096)
    assert costs["flatten"].bytes == costs["drop6"].bytes == 0
    assert costs["fc6"].intensity == pytest.approx(2 * 37_748_736 / costs["fc6"].bytes)
    assert costs["drop6"].intensity == 0


def test_a_larger_batch_moves_the_weights_once(alex):
    one, many = by_name(alex), by_name(alex, batch=16)
    for name, cost in one.items():
        assert many[name].macs == 16 * cost.macs
        assert many[name].parameters == cost.parameters
        weights = 4 * cost.parameters
        assert many[name].bytes - weights == 16 * (cost.bytes - weights)
    assert many["fc6"].intensity > 15 * one["fc6"].intensity


@pytest.mark.parametrize("size", [8, 4, 2, 1, 4.0])
def test_bytes_follow_the_size_of_a_value(alex, size):
    for wide, cost in zip(
        layer_costs(alex, 3), layer_costs(alex, 3, bytes_per_value=size), strict=True
    ):
        assert type(cost.bytes) is int and 4 * cost.bytes == size * wide.bytes
        assert (cost.macs, cost.parameters) == (wide.macs, wide.parameters)
    for training in (False, True):
        wide = memory_bytes(alex, 3, training=training)
        stored = memory_bytes(alex, 3, training=training, bytes_per_value=size)
        assert type(stored) is int and 4 * stored == size * wide


def test_bits_that_fill_no_byte_take_a_whole_one_in_each_layer():
    layers = [("relu", ReLU()), ("relu2", ReLU())]
    network = Network("N", layers, (1, 3, 3))
    # Nine values in and nine out, 18 bits: 2.25 bytes; at 3 bits each 6.75.
    assert [cost.bytes for cost in layer_costs(network, bytes_per_value=1 / 8)] == [3, 3]
    assert [cost.bytes for cost in layer_costs(network, bytes_per_value=3 / 8)] == [7, 7]
    # Memory is one block: 18 values, and 27 in training.
    assert memory_bytes(network, 1, bytes_per_value=1 / 8) == 3
    assert memory_bytes(network, 1, training=True, bytes_per_value=1 / 8) == 4


@pytest.mark.parametrize(
    ("size", "error", "message"),
    [
        (0, ValueError, "bytes_per_value must be above 0"),
        (-2, ValueError, "bytes_per_value must be above 0"),
        (math.inf, ValueError, "bytes_per_value must be above 0 and finite"),
        (math.nan, ValueError, "bytes_per_value must be above 0"),
        ("float16", TypeError, "bytes_per_value must be a number, got 'float16'"),
        (True, TypeError, "bytes_per_value must be a number"),
    ],
)
@pytest.mark.parametrize("count", [layer_costs, cost_table, memory_bytes])
def test_a_bad_size_of_a_value_is_refused(alex, count, size, error, message):
    with pytest.raises(error, match=message):
        count(alex, 1, bytes_per_value=size)


def test_a_layer_that_is_stored_narrow_counts_as_what_it_was(alex):
    stored = {name: StoredLinear(alex.layers[name], BFLOAT16) for name in ("fc6", "fc8")}
    narrow = alex.variant("AlexNet", **stored)
    assert layer_costs(narrow, 2) == layer_costs(alex, 2)
    assert memory_bytes(narrow, 2) == memory_bytes(alex, 2)
    assert stored["fc6"].kind == "fc"


@pytest.mark.parametrize("kind", ["mlp", "convnet", "scaled", "folded", "in float16"])
def test_the_rows_add_up_to_the_total(kind):
    """Normalisations, signs and pixels cost what they move; so do folded and rounded networks."""
    network = {
        "mlp": lambda: binary_mlp(hidden=64),
        "convnet": binary_deep_convnet,
        "scaled": lambda: binary_mlp(hidden=64, scaled=True),
        "folded": lambda: fold(binary_deep_convnet()),
        "in float16": lambda: in_precision(deep_convnet(), Precision(FLOAT16, FLOAT16, FLOAT16)),
    }[kind]()
    *rows, total = cost_table(network, 16).rows
    for key in ("parameters", "macs", "megabytes"):
        assert total[key] > 0
        assert sum(row[key] for row in rows) == pytest.approx(total[key], rel=1e-12)


def test_binary_layers_by_hand():
    costs = by_name(binary_mlp(hidden=64), batch=16)
    assert costs["pixels"].bytes == 4 * 16 * 2 * 784
    assert costs["fc1"].macs == 16 * 784 * 64
    # A normalisation reads and writes 64 values an image, and has 2 + 2 numbers for each.
    assert (costs["norm1"].kind, costs["norm1"].macs) == ("norm", 0)
    assert costs["norm1"].bytes == 4 * (16 * 2 * 64 + 4 * 64)
    assert costs["sign1"].bytes == 4 * 16 * 2 * 64


def test_folding_and_rounding_keep_the_products():
    def macs(network):
        return sum(cost.macs for cost in layer_costs(network))

    binary = binary_deep_convnet()
    assert macs(fold(binary)) == macs(binary) == 8_772_340
    few = Precision(FLOAT16, FLOAT16, FLOAT16)
    rounded = in_precision(deep_convnet(), few)
    costs = by_name(rounded)
    assert {name: cost for name, cost in costs.items() if "stored" not in name} == by_name(
        deep_convnet()
    )
    assert not any(cost.bytes for name, cost in costs.items() if "stored" in name)
    # Of a folded layer the words of 64 bits are read and written: 2x2 of them for 64 filters.
    folded = by_name(fold(binary_mlp(hidden=64)))
    assert folded["fc2"].bytes == 8 + 64 * 8 + 64 * 4 + 8 + 8


# --- roofline -----------------------------------------------------------------------------------


def test_roofline_time_is_the_larger_bound():
    roof = ceilings(gflops=100, gb_per_s=10)
    computing = LayerCost("c", "conv", (1,), 0, macs=500_000_000, bytes=1_000_000)
    moving = LayerCost("m", "relu", (1,), 0, macs=0, bytes=50_000_000)
    assert computing.roofline_ms(roof) == pytest.approx(10)  # 1 GFLOP at 100 GFLOP/s
    assert moving.roofline_ms(roof) == pytest.approx(5)  # 50 MB at 10 GB/s
    both = LayerCost("b", "fc", (1,), 0, macs=500_000_000, bytes=200_000_000)
    assert both.roofline_ms(roof) == pytest.approx(20)


def test_the_roof_has_its_ridge_where_both_limits_meet():
    roof = ceilings(gflops=100, gb_per_s=10)
    assert roof.ridge == 10
    assert roof.attainable_gflops(1) == 10
    assert roof.attainable_gflops(10) == roof.attainable_gflops(1000) == 100


def test_no_layer_beats_the_roof(alex):
    roof = ceilings(gflops=123, gb_per_s=17)
    for cost in layer_costs(alex, batch=4):
        if cost.macs:
            gflops = 2e-6 * cost.macs / cost.roofline_ms(roof)
            assert gflops == pytest.approx(roof.attainable_gflops(cost.intensity))


def test_half_the_bytes_halve_the_time_where_moving_is_the_limit(alex):
    roof = ceilings(gflops=100, gb_per_s=10)
    wide, half = by_name(alex), {c.name: c for c in layer_costs(alex, bytes_per_value=2)}
    # One image's fully connected layers read each weight for one MAC: far left of the ridge.
    assert half["fc6"].roofline_ms(roof) == pytest.approx(wide["fc6"].roofline_ms(roof) / 2)
    assert half["fc6"].intensity == 2 * wide["fc6"].intensity < roof.ridge
    # A convolution is bound by its products, which storage does not make faster.
    assert half["conv3"].roofline_ms(roof) == wide["conv3"].roofline_ms(roof)
    table = cost_table(alex, ceilings=roof, bytes_per_value=2)
    assert table.rows[-1]["megabytes"] == pytest.approx(
        cost_table(alex).rows[-1]["megabytes"] / 2, rel=1e-12
    )
    assert "2 bytes a value" in table.caption and "bytes" not in cost_table(alex).caption


# --- the table ----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 8])
def test_the_table_adds_up(alex, batch):
    table = cost_table(alex, batch, ceilings())
    *rows, total = table.rows
    assert total["layer"] == "all" and total["macs"] == batch * 724_406_816
    for key in ("parameters", "macs", "megabytes", "roofline_ms", "parameters_pct", "macs_pct"):
        assert sum(row[key] for row in rows) == pytest.approx(total[key]), key
    assert total["parameters_pct"] == total["macs_pct"] == 100
    # Every layer that moves something has a row.
    assert len(rows) == 20 and not {"flatten", "drop6", "drop7"} & {row["layer"] for row in rows}


def test_the_table_wears_its_provenance(alex):
    table = cost_table(alex, 2)
    assert table.caption == "AlexNet, forward pass of 2 images (computed)"
    assert "roofline_ms" not in [column.key for column in table.columns]
    assert all(c.provenance is Provenance.COMPUTED for c in table.columns[2:])
    assert "1,448,813,632" in str(table) and "91.9" not in table.caption


# --- other networks -----------------------------------------------------------------------------


def test_deep_convnet_by_hand():
    costs = by_name(deep_convnet())
    assert costs["conv1"].macs == 16 * 28 * 28 * 9
    assert costs["conv4"].macs == 32 * 16 * 16 * 32 * 9
    assert costs["fc1"].macs == 1024 * 50
    assert sum(cost.parameters for cost in costs.values()) == 123_552
    assert cost_table(deep_convnet()).rows[-1]["parameters"] == 123_552


def test_every_layer_has_a_kind():
    rng = np.random.default_rng(0)
    kinds = {
        "conv": Conv2d(1, 1, 1, rng=rng), "fc": Linear(1, 1, rng=rng), "pool": MaxPool2d(2),
        "norm": LocalResponseNorm(), "relu": ReLU(),
    }  # fmt: skip
    assert {kind: layer.kind for kind, layer in kinds.items()} == dict(
        zip(kinds, kinds, strict=True)
    )
    assert Flatten().kind == Dropout(0.5).kind == "other"
    assert {*kinds, "other"} == set(KINDS)


@pytest.mark.parametrize(
    ("batch", "error"),
    [(-1, ValueError), (1.0, TypeError), ("2", TypeError), (True, TypeError), (None, TypeError)],
)
@pytest.mark.parametrize("count", [layer_costs, cost_table, memory_bytes])
def test_a_bad_batch_is_refused(count, batch, error):
    with pytest.raises(error, match=r"batch must be (a whole number|at least)"):
        count(deep_convnet(), batch)
    assert memory_bytes(deep_convnet(), np.int64(0)) > 0


# --- days of training ---------------------------------------------------------------------------


def training_speed(*samples, unit="images/s"):
    return Measurement(
        "a step", unit, samples, Provenance.MEASURED, machine=example(), conditions={"batch": 16}
    )


def test_days_are_seconds_over_86_400():
    days = training_days(training_speed(10.0), epochs=2, images=432_000)
    assert (days.samples, days.unit) == ((1.0,), "days")
    assert training_days(training_speed(31.0)).median == pytest.approx(43.05, abs=0.01)


def test_days_are_computed_and_name_the_speed_they_come_from():
    days = training_days(training_speed(20.0, 25.0, 50.0))
    assert days.provenance is Provenance.COMPUTED and days.machine == example()
    assert days.source == "from 25.0 (22.5-37.5) images/s, measured here"
    assert days.conditions == {
        "batch": 16,
        "epochs": 90,
        "images": 1_281_167,
        "images_per_s": 25.0,
        "speed_is": "measured here",
    }
    assert len(days.samples) == 3 and days.samples[0] > days.samples[2]


@pytest.mark.parametrize(
    ("speed", "options", "message"),
    [
        (training_speed(3.0, unit="ms"), {}, "takes images/s, got 'a step' in ms"),
        (training_speed(3.0), {"epochs": 0}, "epochs must be above 0"),
        (training_speed(3.0), {"images": -1}, "images must be above 0"),
        (training_speed(3.0), {"epochs": float("nan")}, "epochs must be above 0"),
        (training_speed(3.0, 0.0), {}, "a speed of 0"),
    ],
)
def test_days_of_nothing_are_refused(speed, options, message):
    with pytest.raises(ValueError, match=message):
        training_days(speed, **options)


# --- memory -------------------------------------------------------------------------------------


def test_memory_of_a_small_network_counted_by_hand():
    rng = np.random.default_rng(0)
    layers = [
        ("flatten", Flatten()),
        ("fc", Linear(12, 5, rng=rng)),
        ("fc2", Linear(5, 2, rng=rng)),
    ]
    network = Network("small", layers, (3, 2, 2))
    weights = 12 * 5 + 5 + 5 * 2 + 2
    # Largest pair: the 12 numbers of the image beside as many, flat.
    assert memory_bytes(network, 7) == 4 * (weights + 7 * 24)
    kept = 12 + 12 + 5 + 2
    assert memory_bytes(network, 7, training=True) == 4 * (3 * weights + 60 + 7 * kept)


def test_memory_counts_buffers_once():
    network = Network("N", [("flatten", Flatten()), ("norm", BatchNorm(12))], (3, 2, 2))
    learnt, kept = 2 * 12, 2 * 12  # scale and shift; mean and variance
    assert memory_bytes(network, 0) == 4 * (learnt + kept)
    assert memory_bytes(network, 0, training=True) == 4 * (3 * learnt + 12 + kept)


def test_memory_counted_is_about_what_a_training_step_takes(alex):
    x, labels = np.zeros((4, 3, 227, 227), np.float32), np.arange(4)
    optimizer = SGD(1e-6, momentum=0.9)
    tracemalloc.start()
    try:
        for _ in range(2):  # momentum and old gradients are there from the second step on
            tracemalloc.reset_peak()
            alex.loss_and_gradients(x, labels)
            optimizer.step(alex)
        peak = tracemalloc.get_traced_memory()[1] + 4 * alex.parameter_count
    finally:
        tracemalloc.stop()
    assert 0.8 < peak / memory_bytes(alex, 4, training=True) < 1.1
