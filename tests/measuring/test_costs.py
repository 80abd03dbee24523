"""What is counted before anything runs: checked by hand and against the paper's network."""

import dataclasses
import itertools
import math
import tracemalloc
from functools import partial

import numpy as np
import pytest
from helpers import SEEDS, ceilings, example
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdl_lib.binary.inference import fold
from fastdl_lib.binary.layers import BinaryConv2d, BinaryLinear, PixelBytes, Sign
from fastdl_lib.binary.networks import binary_deep_convnet
from fastdl_lib.measuring.costs import (
    Ceilings,
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
from fastdl_lib.precision.formats import BFLOAT16, FLOAT16, INT8
from fastdl_lib.precision.mixed import Precision, in_precision
from fastdl_lib.precision.stored import StoredLinear

HALF = Precision(FLOAT16, FLOAT16, FLOAT16)


@pytest.fixture(scope="module")
def alex():
    return alexnet()


def by_name(network, batch=1, **options):
    return {cost.name: cost for cost in layer_costs(network, batch, **options)}


# --- counted ------------------------------------------------------------------------------------


def test_alexnet_by_hand(alex):
    costs = by_name(alex)
    assert {name: cost.macs for name, cost in costs.items() if cost.macs} == {
        "conv1": 105_415_200, "conv2": 223_948_800, "conv3": 149_520_384, "conv4": 112_140_288,
        "conv5": 74_760_192, "fc6": 37_748_736, "fc7": 16_777_216, "fc8": 4_096_000,
    }  # fmt: skip
    assert sum(cost.parameters for cost in costs.values()) == 60_965_224
    # conv1 reads 3x227x227 pixels and 34,944 weights and writes 96x55x55 values of 4 bytes.
    assert costs["conv1"].bytes == 4 * (154_587 + 34_944 + 290_400)
    assert costs["fc6"].bytes == 4 * (9_216 + 37_752_832 + 4_096)
    assert costs["flatten"].bytes == costs["drop6"].bytes == costs["drop6"].intensity == 0
    assert costs["fc6"].intensity == pytest.approx(2 * 37_748_736 / costs["fc6"].bytes)


def test_folding_rounding_and_storing_narrow_keep_the_products(alex):
    for network in (binary := binary_deep_convnet(), fold(binary)):
        assert sum(cost.macs for cost in layer_costs(network)) == 8_772_340
    rounded = by_name(in_precision(deep_convnet(), HALF))
    stored = {name: rounded.pop(name) for name in list(rounded) if "stored" in name}
    assert rounded == by_name(deep_convnet())
    assert stored and not any(cost.bytes for cost in stored.values())
    narrow = {name: StoredLinear(alex.layers[name], BFLOAT16) for name in ("fc6", "fc8")}
    narrow = alex.variant("AlexNet", **narrow)
    # Two bytes for each weight that is stored so, whatever the others and the images take.
    saved = {"fc6": 2 * 37_748_736, "fc8": 2 * 4_096_000}
    for one, other in zip(layer_costs(narrow, 2), layer_costs(alex, 2), strict=True):
        less = other.bytes - saved.get(one.name, 0)
        assert one == dataclasses.replace(other, bytes=less)
    assert memory_bytes(narrow, 2) == memory_bytes(alex, 2) - sum(saved.values())


# --- counted again, without asking a layer ------------------------------------------------------


@st.composite
def chains(draw):
    """A random network, and by layer (parameters, buffers, MACs, values out), counted from its
    constants by walking over the places of each filter."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = draw(st.integers(1, 5)), draw(st.integers(3, 9)), draw(st.integers(3, 9))
    layers, counts, start = [], [], shape

    def places(size, kernel, stride, padding=0):
        return sum(at % stride == 0 for at in range(size + 2 * padding - kernel + 1))

    def add(layer, parameters=0, buffers=0, macs=0):
        layers.append((f"{len(layers)}", layer))
        counts.append((parameters, buffers, macs, math.prod(shape)))

    for _ in range(draw(st.integers(1, 4))):
        channels, height, width = shape
        kind = draw(st.sampled_from(["conv", "binary", "pool", "norm", "lrn", "relu", "drop"]))
        kernel, stride = draw(st.integers(1, min(height, width, 4))), draw(st.integers(1, 3))
        if kind in ("conv", "binary"):
            groups = draw(st.sampled_from([g for g in range(1, channels + 1) if channels % g == 0]))
            groups = 1 if kind == "binary" else groups
            filters, padding = groups * draw(st.integers(1, 4)), draw(st.integers(0, 2))
            window = {"stride": stride, "padding": padding}
            out = (places(height, kernel, stride, padding), places(width, kernel, stride, padding))
            taps = sum(1 for _ in np.ndindex(channels // groups, kernel, kernel))
            shape = (filters, *out)
            if kind == "conv":
                layer = Conv2d(channels, filters, kernel, **window, groups=groups, rng=rng)
            else:
                layer = BinaryConv2d(channels, filters, kernel, **window, rng=rng)
            biases = filters if kind == "conv" else 0
            add(layer, filters * taps + biases, 0, math.prod(shape) * taps)
        elif kind == "pool":
            shape = channels, places(height, kernel, stride), places(width, kernel, stride)
            add(MaxPool2d(kernel, stride=stride))
        else:
            of = {"norm": BatchNorm, "lrn": LocalResponseNorm, "relu": ReLU, "drop": Dropout}[kind]
            arguments = {"norm": (channels,), "drop": (0.5,)}.get(kind, ())
            learned = 2 * channels if kind == "norm" else 0
            add(of(*arguments), learned, learned)
    features = math.prod(shape)
    shape = (features,)
    add(Flatten())
    outputs = draw(st.integers(1, 9))
    shape = (outputs,)
    add(Linear(features, outputs, rng=rng), features * outputs + outputs, 0, features * outputs)
    return Network("N", layers, start), counts


@settings(derandomize=True, max_examples=60, deadline=None)
@given(chains(), st.integers(0, 5), st.sampled_from([8, 4, 2, 1]))
def test_random_networks_cost_what_their_constants_say(chain, batch, size):
    network, counts = chain
    images = [math.prod(network.input_shape), *(out for *_, out in counts)]
    narrow = [Precision(INT8), Precision(FLOAT16)]
    if not any(isinstance(layer, BinaryConv2d) for layer in network.layers.values()):
        narrow.append(HALF)
    for made in (network, *(in_precision(network, precision) for precision in narrow)):
        rows = [c for c in layer_costs(made, batch + 1, bytes_per_value=size) if "st" not in c.name]
        assert [(c.parameters, c.macs) for c in rows] == [
            (parameters, (batch + 1) * macs) for parameters, _, macs, _ in counts
        ]
        for row, (parameters, buffers, _, out), before in zip(rows, counts, images, strict=False):
            nothing = isinstance(network.layers[row.name], (Flatten, Dropout))
            moved = (batch + 1) * (before + out) + parameters + buffers
            assert row.bytes == (0 if nothing else size * moved)
        *parts, total = cost_table(made, batch + 1, ceilings()).rows
        for key in ("parameters", "macs", "megabytes", "roofline_ms", "macs_pct"):
            assert sum(part[key] for part in parts) == pytest.approx(total[key], rel=1e-12), key
    learned, kept = (sum(count[place] for count in counts) for place in (0, 1))
    largest = max(array.size for array in network.parameters.values())
    pairs = max(a + b for a, b in itertools.pairwise(images))
    forwards = size * (learned + kept + batch * pairs)
    assert memory_bytes(network, batch, bytes_per_value=size) == forwards
    training = size * (3 * learned + largest + kept + batch * sum(images))
    assert memory_bytes(network, batch, training=True, bytes_per_value=size) == training


@settings(derandomize=True, max_examples=30, deadline=None)
@given(chains())
def test_pytorchs_hooks_count_the_same(chain):
    """The same layers in PyTorch: its parameters, and the shapes that pass through its hooks."""
    torch = pytest.importorskip("torch")
    network, _ = chain
    twins, macs = [], {}

    def twin(layer):
        if isinstance(layer, Conv2d):
            bias = not isinstance(layer, BinaryConv2d)
            sizes = layer.in_channels, layer.out_channels, layer.kernel
            window = {"stride": layer.stride, "padding": layer.padding, "groups": layer.groups}
            return torch.nn.Conv2d(*sizes, **window, bias=bias)
        if isinstance(layer, Linear):
            return torch.nn.Linear(layer.in_features, layer.out_features)
        if isinstance(layer, MaxPool2d):
            return torch.nn.MaxPool2d(layer.kernel, layer.stride)
        if isinstance(layer, BatchNorm):
            return torch.nn.BatchNorm2d(layer.features)
        return torch.nn.Flatten() if isinstance(layer, Flatten) else torch.nn.Identity()

    def hook(name):
        def count(module, given, out):
            weight = getattr(module, "weight", None)
            product = weight is not None and weight.ndim > 1
            macs[name] = out.numel() * math.prod(weight.shape[1:]) if product else 0

        return count

    for name, layer in network.layers.items():
        twins.append(twin(layer))
        twins[-1].register_forward_hook(hook(name))
    model = torch.nn.Sequential(*twins).eval()
    with torch.no_grad():
        model(torch.zeros(3, *network.input_shape))
    costs = by_name(network, 3)
    assert {name: cost.macs for name, cost in costs.items()} == macs
    there = [sum(p.numel() for p in module.parameters()) for module in twins]
    assert [cost.parameters for cost in costs.values()] == there


@settings(derandomize=True, max_examples=40, deadline=None)
@given(st.integers(1, 200), st.integers(1, 3), st.integers(0, 1), st.integers(1, 3), SEEDS)
def test_folded_networks_cost_their_words(filters, kernel, padding, batch, seed):
    rng = np.random.default_rng(seed)
    layers = [
        ("pixels", PixelBytes()),
        ("a", BinaryConv2d(2, filters, kernel, padding=1, padding_value=0, rng=rng)),
        ("norm", BatchNorm(filters)),
        ("sign", Sign()),
        ("b", BinaryConv2d(filters, 70, kernel, padding=padding, padding_value=-1, rng=rng)),
        ("norm2", BatchNorm(70)),
        ("sign2", Sign()),
        ("flatten", Flatten()),
        ("c", BinaryLinear(70 * (6 - 2 * kernel + 2 * padding + 2) ** 2, 3, rng=rng)),
    ]
    network = Network("N", layers, (2, 4, 4))
    folded = fold(network)
    first, second, last = layer_costs(folded, batch)
    assert sum(cost.macs for cost in (first, second, last)) == sum(
        cost.macs for cost in layer_costs(network, batch)
    )

    def words(bits):
        return 8 * sum(at % 64 == 0 for at in range(bits))

    a = (4 + 2 - kernel + 1) ** 2
    b = (4 + 2 - kernel + 1 + 2 * padding - kernel + 1) ** 2
    stored = [
        filters * words(2 * kernel**2) + 4 * filters + words(filters),
        70 * kernel**2 * words(filters) + 4 * 70 + words(70),
        3 * b * words(70),
    ]
    images = [4 * 2 * 16, a * words(filters), b * words(70), 4 * 3]
    assert [cost.bytes for cost in (first, second, last)] == [
        batch * (images[at] + images[at + 1]) + stored[at] for at in range(3)
    ]
    pairs = max(one + other for one, other in itertools.pairwise(images))
    assert memory_bytes(folded, batch) == sum(stored) + batch * pairs
    assert sum(stored) == folded.bytes
    with pytest.raises(ValueError, match=r"BitLayer.* does not learn: no training step"):
        memory_bytes(folded, batch, training=True)


def test_bits_that_fill_no_byte_take_a_whole_one_in_each_layer():
    network = Network("N", [("relu", ReLU()), ("relu2", ReLU())], (1, 3, 3))
    # Nine values in and nine out, 18 bits: 2.25 bytes; at 3 bits each 6.75.
    for bits, rounded_up in ((1, 3), (3, 7)):
        costs = layer_costs(network, bytes_per_value=bits / 8)
        assert [cost.bytes for cost in costs] == [rounded_up] * 2
    # Memory is one block: 18 values, and 27 in training.
    assert memory_bytes(network, 1, bytes_per_value=1 / 8) == 3
    assert memory_bytes(network, 1, training=True, bytes_per_value=1 / 8) == 4


class Odd(ReLU):
    """A layer that says anything of its MACs."""

    says: object = np.int16(30_000)

    def macs(self, input_shape):
        return self.says


def odd(says):
    layer = Odd()
    layer.says = says
    return layer_costs(Network("N", [("odd", layer)], (1, 2, 2)), batch=np.int8(100))


def test_macs_of_a_large_batch_do_not_overflow():
    assert repr(odd(np.int16(30_000))[0].macs) == "3000000"


def speed(*samples, unit="images/s"):
    return Measurement.measured("a step", unit, *samples, machine=example(), batch=16)


SMALL = deep_convnet()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        *((partial(odd, says), TypeError, r"odd\.macs\(\) must be") for says in (None, 2.5, "9")),
        (partial(odd, -3), ValueError, r"odd\.macs\(\) must be"),
        *((partial(count, SMALL, -1), ValueError, "batch must be at least")
          for count in (layer_costs, cost_table, memory_bytes)),
        (partial(layer_costs, SMALL, 1.0), TypeError, "batch must be a whole number"),
        *((partial(layer_costs, SMALL, bytes_per_value=size), ValueError, "must be above 0 and fi")
          for size in (0, math.inf)),
        (partial(memory_bytes, SMALL, 1, bytes_per_value="float16"), TypeError, "must be a number"),
        (partial(Ceilings, speed(3.0, unit="ms"), speed(3.0, unit="GB/s")), ValueError, "in GFLOP"),
        (partial(Ceilings, speed(3.0, unit="GFLOP/s"), speed(3.0)), ValueError, "is in GB/s"),
        (partial(training_days, speed(3.0, unit="ms")), ValueError, "got 'a step' in ms"),
        (partial(training_days, speed(3.0), epochs=0), ValueError, "epochs must be above 0"),
        (partial(training_days, speed(3.0), images=-1), ValueError, "images must be above 0"),
        (partial(training_days, speed(3.0, 0.0)), ValueError, "a speed of 0"),
        (partial(training_days, speed(1e-320)), ValueError, "every sample must be finite"),
    ],
)  # fmt: skip
def test_what_cannot_be_counted_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


# --- roofline -----------------------------------------------------------------------------------


def test_roofline_time_is_the_larger_bound(alex):
    roof = ceilings(gflops=100, gb_per_s=10)
    assert roof.ridge == roof.attainable_gflops(1) == 10
    assert roof.attainable_gflops(10) == roof.attainable_gflops(1000) == 100
    for macs, size, time_ms in (
        (500_000_000, 1_000_000, 10),  # 1 GFLOP at 100 GFLOP/s
        (0, 50_000_000, 5),  # 50 MB at 10 GB/s
        (500_000_000, 200_000_000, 20),
    ):
        cost = LayerCost("c", "conv", (1,), 0, macs=macs, bytes=size)
        assert cost.roofline_ms(roof) == pytest.approx(time_ms)
    for cost in (*layer_costs(alex, batch=4), *layer_costs(alex, bytes_per_value=2)):
        if cost.macs:
            gflops = 2e-6 * cost.macs / cost.roofline_ms(roof)
            assert gflops == pytest.approx(roof.attainable_gflops(cost.intensity))


# --- the table ----------------------------------------------------------------------------------


def test_the_table_of_alexnet(alex):
    table = cost_table(alex, 2)
    assert table.caption == "AlexNet, forward pass of 2 images (computed)"
    assert cost_table(alex).caption.endswith("of 1 image (computed)")
    assert "roofline_ms" not in [column.key for column in table.columns]
    assert all(c.provenance is Provenance.COMPUTED for c in table.columns[2:])
    *rows, total = table.rows
    # Every layer that moves something has a row.
    assert len(rows) == 20 and not {"flatten", "drop6", "drop7"} & {row["layer"] for row in rows}
    assert total["macs"] == 2 * 724_406_816 and "1,448,813,632" in str(table)
    for key, share in (("parameters_pct", 3.8), ("macs_pct", 91.9)):
        assert round(sum(row[key] for row in rows if "conv" in row["layer"]), 1) == share


# --- days of training ---------------------------------------------------------------------------


def test_days_are_computed_and_name_the_speed_they_come_from():
    days = training_days(speed(10.0), epochs=2, images=432_000)
    assert (days.samples, days.unit) == ((1.0,), "days")
    days = training_days(speed(20.0, 25.0, 50.0))
    assert days.median == pytest.approx(90 * 1_281_167 / 25 / 86_400)
    assert days.provenance is Provenance.COMPUTED and days.machine == example()
    assert days.source == "from 25.0 (22.5-37.5) images/s, measured here"
    assert days.conditions == {
        "batch": 16, "epochs": 90, "images": 1_281_167, "images_per_s": 25.0,
        "speed_is": "measured here",
    }  # fmt: skip
    assert len(days.samples) == 3 and days.samples[0] > days.samples[2]
    small = training_days(speed(10.0), epochs=np.int16(2000), images=np.int32(2_000_000))
    assert small.median == pytest.approx(2000 * 2_000_000 / 10 / 86_400)
    assert type(small.conditions["images"]) is int


# --- memory -------------------------------------------------------------------------------------


def test_memory_counted_is_about_what_a_training_step_takes(alex):
    x, labels = np.zeros((8, 3, 227, 227), np.float32), np.arange(8)
    optimizer = SGD(1e-6, momentum=0.9)

    def step():
        alex.loss_and_gradients(x, labels)
        optimizer.step(alex)

    step()  # compiles, which takes minutes where each allocation is noted
    optimizer.state.clear()
    alex.drop_gradients()
    tracemalloc.start()
    try:
        step()  # from now on there are momentum and old gradients
        tracemalloc.reset_peak()
        step()
        peak = tracemalloc.get_traced_memory()[1] + 4 * alex.parameter_count
    finally:
        tracemalloc.stop()
    assert 0.8 < peak / memory_bytes(alex, 8, training=True) < 1.1
