"""Optimisers against their formulas, runs that go on exactly, and the weights in data/weights."""

import io
import itertools
import math
import os
import pickle
import subprocess
import sys
import textwrap

import helpers
import numpy as np
import pytest
from helpers import (
    IMAGES,
    LABELS,
    OPTIMIZERS,
    RUN,
    STEPS,
    assert_same_weights,
    break_at,
    random_gradients,
    set_gradients,
    strokes,
    toy,
    train,
    weights_differ,
)
from hypothesis import given
from hypothesis import strategies as st

from fastdl_lib.core import arrays, threads
from fastdl_lib.core.threads import blas_threads
from fastdl_lib.nn import checkpoints, training
from fastdl_lib.nn.layers import Flatten, Linear
from fastdl_lib.nn.network import Network
from fastdl_lib.nn.optimizers import SGD, Adam, warmup_cosine
from fastdl_lib.nn.training import (
    Epoch,
    Evaluation,
    History,
    _shifted,
    evaluate,
    hold_out,
    predict_classes,
)

# --- optimisers ---------------------------------------------------------------------------------


def sgd_in_float64(weight, gradients, rate, momentum, weight_decay):
    velocity = np.zeros_like(weight)
    for gradient in gradients:
        velocity = momentum * velocity + gradient + weight_decay * weight
        weight = weight - rate * velocity
    return weight


def adam_in_float64(weight, gradients, rate, beta1, beta2, epsilon):
    mean, square = np.zeros_like(weight), np.zeros_like(weight)
    for t, gradient in enumerate(gradients, start=1):
        mean = beta1 * mean + (1 - beta1) * gradient
        square = beta2 * square + (1 - beta2) * gradient**2
        mean_hat, square_hat = mean / (1 - beta1**t), square / (1 - beta2**t)
        weight = weight - rate * mean_hat / (np.sqrt(square_hat) + epsilon)
    return weight


FORMULAS = [
    (SGD, (0.1, 0.0, 0.0), sgd_in_float64),
    (SGD, (0.1, 0.9, 0.0), sgd_in_float64),
    (SGD, (0.1, 0.0, 0.05), sgd_in_float64),
    (SGD, (0.03, 0.8, 0.05), sgd_in_float64),
    (Adam, (1e-3, 0.9, 0.999, 1e-8), adam_in_float64),
    (Adam, (0.2, 0.5, 0.7, 0.1), adam_in_float64),
]


@pytest.mark.parametrize("block", [7, threads.FLAT_BLOCK])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("kind", "constants", "formula"), FORMULAS)
def test_an_optimizer_follows_its_formula(kind, constants, formula, dtype, block, monkeypatch):
    monkeypatch.setattr(threads, "FLAT_BLOCK", block)
    network, optimizer = toy().astype(dtype), kind(*constants)
    held = network.parameters
    before = {name: array.astype(np.float64) for name, array in held.items()}
    steps = random_gradients(network)
    for gradients in steps:
        set_gradients(network, gradients)
        optimizer.step(network)
    for name, array in network.parameters.items():
        assert array is held[name] and array.dtype == dtype, "changed in place"
        expected = formula(before[name], [g[name] for g in steps], *constants)
        tolerance = 1e-5 if dtype == np.float32 else 1e-13
        np.testing.assert_allclose(array, expected, rtol=tolerance, atol=tolerance, err_msg=name)
    assert {array.dtype for array in optimizer.state.values()} <= {np.dtype(dtype)}
    assert optimizer.steps == len(steps)


LAYOUTS = {
    "weights turned": (lambda a: np.ascontiguousarray(a.T).T, lambda a: a),
    "gradients turned": (lambda a: a, lambda a: np.ascontiguousarray(a.T).T),
    "both turned": (lambda a: np.ascontiguousarray(a.T).T, lambda a: np.ascontiguousarray(a.T).T),
    "weights with gaps": (lambda a: np.repeat(a, 2, axis=-1)[..., ::2], lambda a: a),
    "weights backwards": (lambda a: a[..., ::-1].copy()[..., ::-1], lambda a: a),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_how_a_weight_lies_in_memory_changes_nothing(kind, layout, monkeypatch):
    monkeypatch.setattr(threads, "FLAT_BLOCK", 50)
    plain, other = toy(), toy()
    relay_weight, relay_gradient = LAYOUTS[layout]
    for layer in other.layers.values():
        layer.parameters = {name: relay_weight(array) for name, array in layer.parameters.items()}
    held = other.parameters
    one, two = OPTIMIZERS[kind](), OPTIMIZERS[kind]()
    for gradients in random_gradients(plain):
        set_gradients(plain, gradients)
        set_gradients(other, gradients, lambda a, like: relay_gradient(a.astype(like.dtype)))
        one.step(plain)
        two.step(other)
    assert_same_weights(plain, other)
    assert all(array is held[name] for name, array in other.parameters.items())


@pytest.mark.parametrize("layout", ["both turned", "weights turned"])
def test_a_turned_weight_comes_in_blocks_where_its_gradient_is_turned_too(layout, monkeypatch):
    monkeypatch.setattr(threads, "FLAT_BLOCK", 5)
    weight = np.arange(24.0).reshape(2, 3, 4)
    lays = [relay(weight) for relay in LAYOUTS[layout]]
    blocks = []
    with blas_threads(1):
        threads.in_flat_blocks(lambda *block: blocks.append(block), lays)
    if layout == "both turned":
        assert [len(block[0]) for block in blocks] == [5, 5, 5, 5, 4]
        assert sorted(np.concatenate([block[1] for block in blocks])) == list(range(24))
        for weights, gradients in blocks:
            assert (weights == gradients).all() and np.shares_memory(weights, lays[0])
    else:
        assert len(blocks) == 1 and blocks[0][0] is lays[0]


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_optimizer_works_on_the_gpu(kind, fake_gpu):
    cpu, gpu = toy(), toy().to_gpu()
    held, one, two = gpu.parameters, OPTIMIZERS[kind](), OPTIMIZERS[kind]()
    for gradients in random_gradients(cpu):
        set_gradients(cpu, gradients)
        set_gradients(gpu, gradients, lambda a, like: arrays.to_gpu(a.astype(like.dtype)))
        crossings = dict(fake_gpu.counts)
        one.step(cpu)
        two.step(gpu)
        assert fake_gpu.counts == crossings, "nothing crosses the bus"
    for name, array in gpu.parameters.items():
        assert array is held[name] and (array.get() == cpu.parameters[name]).all(), name
    assert {type(array) for array in two.state.values()} == {fake_gpu.ndarray}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_numbers_of_numpy_do_not_widen(kind):
    one, other = toy(), toy()
    plain, numpys = OPTIMIZERS[kind](), OPTIMIZERS[kind]()
    numpys.learning_rate = np.float64(numpys.learning_rate)
    for network, optimizer in ((one, plain), (other, numpys)):
        for gradients in random_gradients(network):
            set_gradients(network, gradients)
            optimizer.step(network)
    assert_same_weights(one, other)
    assert type(SGD(0.1, np.float64(0.5)).momentum) is float


CONSTANTS = {
    "learning_rate must be above 0 and finite, got 0": lambda: SGD(0),
    "learning_rate must be above 0 and finite, got nan": lambda: SGD(math.nan),
    "learning_rate must be above 0 and finite, got inf": lambda: Adam(math.inf),
    "learning_rate must be a number, got 'fast'": lambda: SGD("fast"),
    "learning_rate must be a number, got True": lambda: SGD(True),
    "momentum must be at least 0 and below 1": lambda: SGD(1, momentum=1),
    "weight_decay must be at least 0": lambda: SGD(1, weight_decay=-1),
    "beta1 must be at least 0 and below 1": lambda: Adam(beta1=-0.1),
    "beta2 must be at least 0 and below 1": lambda: Adam(beta2=1.0),
    "epsilon must be above 0": lambda: Adam(epsilon=0),
    "warmup must be at least 0 and below 1": lambda: warmup_cosine(1),
    "warmup must be a number": lambda: warmup_cosine(None),
}


@pytest.mark.parametrize("message", CONSTANTS)
def test_constants_out_of_range_are_refused(message):
    with pytest.raises(TypeError if "a number" in message else ValueError, match=message):
        CONSTANTS[message]()


def test_weight_decay_of_float16_weights_is_computed_in_float32():
    weights = {"w": np.full(3, 2e-4, np.float16)}
    optimizer = SGD(1e-3, momentum=0.9, weight_decay=1e-4)
    optimizer.update(weights, {"w": np.zeros(3, np.float16)})
    np.testing.assert_allclose(optimizer.state["velocity.w"], 2e-8, rtol=1e-3)  # 0 in float16


def test_a_step_needs_gradients_of_this_network():
    network, optimizer = toy(), Adam()
    with pytest.raises(RuntimeError, match=r"Adam\.step\(\) needs the gradients of toy: call netw"):
        optimizer.step(network)
    network.loss_and_gradients(IMAGES[:2], LABELS[:2])
    optimizer.step(network)
    rng = np.random.default_rng(0)
    layers = [("flatten", Flatten()), ("fc", Linear(64, 3, rng=rng))]
    other = Network("other", layers, (1, 8, 8))
    other.loss_and_gradients(IMAGES[:2], LABELS[:2])
    with pytest.raises(ValueError, match=r"worked on another network: its mean\.fc\.weight is"):
        optimizer.step(other)


def test_a_refused_step_changes_nothing():
    network, optimizer = toy(), SGD(0.1, momentum=0.9)
    network.loss_and_gradients(IMAGES[:2], LABELS[:2])
    optimizer.step(network)
    network.astype(float)
    network.loss_and_gradients(IMAGES[:2].astype(float), LABELS[:2])
    # All but the last weight are as the optimiser knows them.
    for key in list(optimizer.state)[:-1]:
        optimizer.state[key] = optimizer.state[key].astype(float)
    before = {name: array.copy() for name, array in network.parameters.items()}
    with pytest.raises(ValueError, match=r"velocity\.fc\.bias is float32 .*, the weight float6"):
        optimizer.step(network)
    assert optimizer.steps == 1
    assert all((array == before[name]).all() for name, array in network.parameters.items())


# --- schedules ----------------------------------------------------------------------------------


def test_warm_up_and_cosine_at_their_ends():
    schedule = warmup_cosine(0.25)
    expected = {0: 0, 0.125: 0.5, 0.25: 1, 0.625: 0.5, 1: 0}
    for done, factor in expected.items():
        assert schedule(done) == pytest.approx(factor)
    assert warmup_cosine(0)(0) == 1


def test_a_step_gets_the_rate_of_its_middle():
    rates = []

    class Spy(SGD):
        def step(self, network):
            rates.append(self.learning_rate)
            super().step(network)

    optimizer = Spy(0.5)
    _, history = train(
        optimizer=optimizer, epochs=2, batch=32, schedule=lambda done: np.float64(done)
    )
    assert rates == pytest.approx([0.5 * (k + 0.5) / 6 for k in range(6)])
    assert [epoch.learning_rate for epoch in history.epochs] == [rates[2], rates[5]]
    assert optimizer.learning_rate == 0.5, "the optimiser gets its own rate back"


@pytest.mark.parametrize("schedule", [warmup_cosine, 0.1, lambda done: -1, lambda done: math.nan])
def test_a_schedule_that_is_none_is_refused(schedule):
    with pytest.raises(
        TypeError, match=r"schedule must take .*warmup_cosine\(\), with its brackets"
    ):
        train(schedule=schedule)


# --- shifts and batches -------------------------------------------------------------------------


def shifted_by_loops(images, offsets):
    out = np.zeros_like(images)
    count, channels, height, width = images.shape
    for n, c, y, x in itertools.product(*map(range, (count, channels, height, width))):
        from_y, from_x = y - offsets[n, 0], x - offsets[n, 1]
        if 0 <= from_y < height and 0 <= from_x < width:
            out[n, c, y, x] = images[n, c, from_y, from_x]
    return out


@given(data=st.data(), height=st.integers(1, 4), width=st.integers(1, 4))
def test_shifts_agree_with_loops(data, height, width):
    count = data.draw(st.integers(1, 3))
    images = np.random.default_rng(0).random((count, 2, height, width), dtype=np.float32)
    offset = st.tuples(st.integers(-height, height), st.integers(-width, width))
    offsets = np.array(data.draw(st.lists(offset, min_size=count, max_size=count)))
    kept = images.copy()
    got = _shifted(images, offsets)
    assert got.dtype == np.float32 and (got == shifted_by_loops(images, offsets)).all()
    assert (images == kept).all()


def test_shifts_on_the_gpu(fake_gpu):
    offsets = np.array([[1, -2], [0, 0], [-8, 3]])
    got = _shifted(arrays.to_gpu(IMAGES[:3]), offsets)
    assert (got.get() == _shifted(IMAGES[:3], offsets)).all()


def batches_seen(**changes):
    """The batches a run trains on, in order."""
    seen, network = [], toy()
    conv = network.layers["conv"]
    forward = conv.forward

    def spy(x, training=False):
        seen.append(x.copy())
        return forward(x, training)

    conv.forward = spy
    train(network, **changes)
    return seen


def test_an_epoch_takes_every_image_once_in_an_order_of_its_own():
    seen = batches_seen(epochs=2, shift=0)
    assert [len(x) for x in seen] == [16, 16, 16, 16, 6] * 2
    first, second = np.concatenate(seen[:5]), np.concatenate(seen[5:])
    for epoch in (first, second):
        assert sorted(x.tobytes() for x in epoch) == sorted(x.tobytes() for x in IMAGES)
    assert (first != second).any() and (first != IMAGES).any()
    again = np.concatenate(batches_seen(epochs=1, shift=0))
    assert (again == first).all(), "the order hangs on seed and epoch alone"
    assert (np.concatenate(batches_seen(epochs=1, shift=0, seed=6)) != first).any()


def test_training_images_are_shifted_up_to_the_limit_in_all_directions():
    dots = np.zeros((400, 1, 8, 8), np.float32)
    dots[:, :, 4, 4] = 1
    seen = np.concatenate(batches_seen(images=dots, labels=np.zeros(400, int), epochs=1, shift=2))
    assert (seen.sum(axis=(1, 2, 3)) == 1).all()
    places = {(int(y) - 4, int(x) - 4) for _, _, y, x in np.argwhere(seen)}
    assert places == set(itertools.product(range(-2, 3), repeat=2))


def test_what_is_held_out_is_not_trained_on():
    (x, labels), (held_x, held_labels) = hold_out(IMAGES, LABELS, 20, seed=1)
    assert x.shape == (50, 1, 8, 8) and held_x.shape == (20, 1, 8, 8)
    parts = [(a.tobytes(), int(b)) for a, b in zip(x, labels, strict=True)]
    parts += [(a.tobytes(), int(b)) for a, b in zip(held_x, held_labels, strict=True)]
    whole = [(a.tobytes(), int(b)) for a, b in zip(IMAGES, LABELS, strict=True)]
    assert sorted(parts) == sorted(whole) and len(set(parts)) == 70
    assert (hold_out(IMAGES, LABELS, 20, seed=1)[1][0] == held_x).all()
    assert (hold_out(IMAGES, LABELS, 20, seed=2)[1][0] != held_x).any()
    with pytest.raises(ValueError, match="count must be below the 70 images, got 70"):
        hold_out(IMAGES, LABELS, 70)
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        hold_out(IMAGES, LABELS, 0)


# --- evaluation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 32, 69, 70, 500])
def test_every_image_counts_those_of_the_last_batch_included(batch):
    network = toy()
    logits = network.forward(IMAGES).astype(float)
    right = [
        max(range(3), key=lambda k: row[k]) == t for row, t in zip(logits, LABELS, strict=True)
    ]
    losses = [
        math.log(sum(map(math.exp, row))) - row[t] for row, t in zip(logits, LABELS, strict=True)
    ]
    got = evaluate(network, IMAGES, LABELS, batch=batch)
    assert (got.images, got.correct) == (70, sum(right))
    assert got.accuracy == sum(right) / 70
    assert got.loss == pytest.approx(sum(losses) / 70, rel=1e-5)
    classes = predict_classes(network, IMAGES, batch=batch)
    assert classes.shape == (70,) and (classes == logits.argmax(axis=1)).all()


def test_a_network_that_cannot_decide_is_not_right():
    network = toy()
    for array in network.parameters.values():
        array[...] = 0
    assert evaluate(network, IMAGES, LABELS).correct == (LABELS == 0).sum()


def test_evaluation_on_the_gpu(fake_gpu):
    expected = evaluate(toy(), IMAGES, LABELS, batch=32)
    network = toy().to_gpu()
    got = evaluate(network, arrays.to_gpu(IMAGES), arrays.to_gpu(LABELS), batch=32)
    assert got.correct == expected.correct and got.loss == pytest.approx(expected.loss)
    assert type(predict_classes(network, arrays.to_gpu(IMAGES))) is np.ndarray


def test_an_evaluation_says_where_it_comes_from():
    text = str(Evaluation(images=10_000, correct=9_938, loss=0.02))
    assert text == "99.38 % of 10,000 images right, loss 0.0200 nats an image (measured here)"


# --- fit ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_fit_learns(kind):
    validation = strokes(60, seed=1)
    network, history = train(optimizer=OPTIMIZERS[kind](), epochs=25, validation=validation)
    assert [epoch.epoch for epoch in history.epochs] == list(range(1, 26))
    assert history.epochs[-1].loss < 0.4 < 0.9 < history.epochs[0].loss
    assert history.epochs[-1].accuracy > 0.9
    accuracy = evaluate(network, *validation).accuracy
    assert accuracy > 0.95 and history.epochs[-1].validation_accuracy == accuracy


def test_the_history_is_what_happened():
    network = toy()
    network.layers["drop"].rate = 0.0
    _, history = train(network, SGD(1e-30), epochs=1, shift=0, schedule=None)
    expected = evaluate(toy(), IMAGES, LABELS)
    (epoch,) = history.epochs
    assert epoch.accuracy == expected.accuracy
    assert epoch.loss == pytest.approx(expected.loss, rel=1e-5)
    assert epoch.validation_accuracy is None and epoch.learning_rate == 1e-30


def test_a_history_shows_itself_as_a_table():
    epochs = (Epoch(1, 0.5, 0.75, None, 0.1, 12.0), Epoch(2, 0.25, 0.875, None, 0.05, 13.0))
    history = History("toy", epochs)
    assert history.seconds == 25
    lines = str(history).splitlines()
    assert lines[0].startswith("toy: 25.0 s of training (measured here); loss and training acc")
    assert lines[1].split("  ")[-1] == "training, s" and lines[2].count("measured here") == 3
    assert lines[-1].split() == ["2", "0.0500", "0.250", "87.5", "13.0"]
    assert "validation" not in str(history)
    with_validation = History("toy", (Epoch(1, 0.5, 0.75, 0.98, 0.1, 12.0),))
    assert with_validation.table().rows[0]["validation_accuracy"] == 98
    assert "validation accuracy, %" in with_validation._repr_html_()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_same_seed_gives_the_same_weights_and_another_one_others(kind):
    used = toy()
    used.forward(IMAGES, training=True)  # what Dropout drew before does not matter
    one, one_history = train(used, OPTIMIZERS[kind]())
    same, same_history = train(optimizer=OPTIMIZERS[kind]())
    other, _ = train(optimizer=OPTIMIZERS[kind](), seed=6)
    assert_same_weights(one, same)
    assert one_history == same_history
    assert weights_differ(one, other)


def test_dropout_draws_anew_in_every_epoch_and_layer():
    seeds = {training._seed_of(0, epoch, index) for epoch in range(1, 20) for index in range(20)}
    assert len(seeds) == 19 * 20
    assert training._seed_of(0, 1, 2) != training._seed_of(1, 1, 2)


def test_fit_on_the_gpu_does_what_it_does_on_the_cpu(fake_gpu, tmp_path):
    network = toy().to_gpu()
    images, labels = arrays.to_gpu(IMAGES), arrays.to_gpu(LABELS)
    changes = {"images": images, "labels": labels, "validation": (images, labels)}
    train(network, checkpoint=tmp_path / "run.npz", **changes)
    expected, _ = train()
    for name, array in network.parameters.items():
        assert type(array) is fake_gpu.ndarray
        np.testing.assert_allclose(array.get(), expected.parameters[name], rtol=1e-4, atol=1e-5)
    again = toy().to_gpu()
    train(again, checkpoint=tmp_path / "run.npz", **changes)
    for name, array in again.parameters.items():
        assert (array.get() == network.parameters[name].get()).all(), name
        assert type(array) is fake_gpu.ndarray


@pytest.mark.gpu
@pytest.mark.skipif(not arrays.gpu_available(), reason=arrays.gpu_status().reason)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_fit_learns_on_a_real_gpu(kind):
    network, images, labels = toy().to_gpu(), arrays.to_gpu(IMAGES), arrays.to_gpu(LABELS)
    train(network, OPTIMIZERS[kind](), images, labels, epochs=25)
    assert evaluate(network, images, labels).accuracy > 0.95


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"images": IMAGES[:, 0]}, ValueError, r"takes a batch of shape \(N, 1, 8, 8\)"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, ValueError, "N >= 1, got"),
        ({"images": IMAGES.astype(float)}, TypeError, r"use x\.astype\(np\.float32\)"),
        ({"labels": LABELS[:-1]}, ValueError, r"labels must have the shape \(70,\).* got \(69,\)"),
        ({"labels": np.eye(3)[LABELS]}, ValueError, r"one for each image; got \(70, 3\)"),
        ({"labels": LABELS.astype(float)}, TypeError, "labels must be whole numbers, got float64"),
        ({"labels": LABELS + 1}, ValueError, r"there are 3 classes: .* in 0\.\.2, got 1\.\.3"),
        ({"labels": LABELS - 1}, ValueError, r"got -1\.\.1"),
        ({"labels": LABELS.tolist()}, TypeError, r"np\.asarray"),
        ({"validation": (IMAGES, LABELS[:-1])}, ValueError, "labels must have the shape"),
        ({"optimizer": "Adam"}, TypeError, r"optimizer must be one such as Adam\(\), got 'Adam'"),
        ({"epochs": 0}, ValueError, "epochs must be at least 1, got 0"),
        ({"epochs": 1.5}, TypeError, "epochs must be a whole number"),
        ({"batch": 0}, ValueError, "batch must be at least 1"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"seed": None}, TypeError, "seed must be a whole number"),
        ({"shift": -1}, ValueError, "shift must be at least 0"),
        ({"shift": 8}, ValueError, r"shift must be below the images' \(8, 8\), got 8"),
        ({"checkpoint": "run.pkl"}, ValueError, r"stored as \.npz, got the name 'run\.pkl'"),
    ],
)
def test_input_that_does_not_fit_is_refused_before_the_first_step(changes, error, message):
    network = toy()
    with pytest.raises(error, match=message):
        train(network, **changes)
    assert_same_weights(network, toy())
    shown = {"images": IMAGES, "labels": LABELS} | changes
    if "images" in changes or "labels" in changes:
        with pytest.raises(error, match=message):
            evaluate(network, shown["images"], shown["labels"])


# --- progress -----------------------------------------------------------------------------------


def test_progress_in_a_log_is_a_line_an_epoch(capsys):
    train(epochs=1, progress=False)
    assert capsys.readouterr() == ("", "")
    train(epochs=3, batch=1, progress=True, validation=(IMAGES, LABELS))
    out, err = capsys.readouterr()
    assert err == ""
    assert out.count("\n") == 3 and out.count("\r") <= 6
    # What is left on the screen: the last of what was written over each other.
    lines = [line.rpartition("\r")[2] for line in out.rstrip().split("\n")]
    for number, line in enumerate(lines, start=1):
        assert line.startswith(f"epoch {number}/3 |")
        assert "loss " in line and "accuracy " in line and "validation " in line
        assert len(line) < 100


@pytest.mark.parametrize(
    ("module", "tty", "interval_s"),
    [("io", True, 0.1), ("ipykernel.iostream", False, 1.0), ("io", False, math.inf)],
)
def test_the_line_moves_in_a_terminal_and_in_a_notebook(module, tty, interval_s, monkeypatch):
    stream = type("Stream", (io.StringIO,), {"isatty": lambda self: tty})
    stream.__module__ = module
    monkeypatch.setattr(sys, "stdout", stream())
    with training._bar("epoch 1/1", 5, True) as bar:
        assert bar.mininterval == interval_s


# --- checkpoints: a run goes on exactly ---------------------------------------------------------


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.npz"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("the disk went away")])
@pytest.mark.parametrize("finished", [0, 1, 3])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_interrupted_run_goes_on_to_the_same_weights(kind, finished, error, path, capsys):
    whole, whole_history = train(optimizer=OPTIMIZERS[kind](), validation=(IMAGES, LABELS))
    network, optimizer = toy(), OPTIMIZERS[kind]()
    held = network.parameters
    break_at(network, finished * STEPS + 3, error)
    again = {"checkpoint": path, "validation": (IMAGES, LABELS)}
    with pytest.raises(type(error)):
        train(network, optimizer, **again)

    # In another process, with everything made anew.
    path_of_another = path.with_name("copy.npz")
    path_of_another.write_bytes(path.read_bytes())
    fresh, history = train(optimizer=OPTIMIZERS[kind](), **{**again, "checkpoint": path_of_another})
    assert_same_weights(fresh, whole)
    assert history == whole_history

    # In the same notebook, the cell run again.
    assert optimizer.learning_rate == OPTIMIZERS[kind]().learning_rate
    _, history = train(network, optimizer, **again)
    assert_same_weights(network, whole)
    assert history == whole_history
    assert all(array is held[name] for name, array in network.parameters.items()), "in place"


def test_a_run_interrupted_twice_goes_on_in_another_process(path):
    """The second time the network began with the stored weights, no longer with its first ones."""
    network = toy()
    for call in (STEPS + 1, STEPS + 2):
        break_at(network, call, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            train(network, checkpoint=path)
    fresh, _ = train(checkpoint=path)
    assert_same_weights(fresh, train()[0])


def test_an_interrupted_epoch_is_lost_whole_and_said_so(path, capsys):
    reference = toy()
    break_at(reference, 2 * STEPS + 1, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        train(reference, checkpoint=path)
    line = (
        "Interrupted in epoch 3: run.npz holds 2 finished ones, the same call goes on from there.\n"
    )
    assert capsys.readouterr().out == line

    later = toy()
    break_at(later, 3 * STEPS, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        train(later, checkpoint=path.with_name("later.npz"))
    assert_same_weights(reference, later)
    assert later.parameters["fc.weight"] is later.layers["fc"].parameters["weight"]

    lost = toy()
    break_at(lost, 3 * STEPS, KeyboardInterrupt())
    capsys.readouterr()
    with pytest.raises(KeyboardInterrupt):
        train(lost)
    assert capsys.readouterr().out.startswith("Interrupted in epoch 3: nothing was stored;")


def test_a_killed_process_loses_one_epoch(path):
    """The process dies in its third epoch, without a chance to tidy up."""
    code = """
        import os, sys
        from helpers import STEPS, toy, train

        network, lives = toy(), iter(range(2 * STEPS + 2))
        backward = network.layers["fc"].backward

        def mortal(grad):
            return os._exit(9) if next(lives, None) is None else backward(grad)

        network.layers["fc"].backward = mortal
        train(network, checkpoint=sys.argv[1])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(path)],
        env={**os.environ, "PYTHONPATH": os.path.dirname(helpers.__file__)},
        check=False,
    )
    assert done.returncode == 9
    steps = []

    class Spy(Adam):
        def step(self, network):
            steps.append(self.learning_rate)
            super().step(network)

    Spy.__name__ = "Adam"
    network, _ = train(optimizer=Spy(5e-3), checkpoint=path)
    assert len(steps) == 2 * STEPS
    assert_same_weights(network, train()[0])


def test_a_finished_run_returns_at_once(path, monkeypatch):
    first, history = train(checkpoint=path)
    monkeypatch.setattr(Network, "forward", lambda *_, **__: pytest.fail("nothing is left to do"))
    again = toy()
    for network in (again, first):
        again_history = train(network, checkpoint=path)[1]
        assert again_history == history and again_history.seconds == history.seconds > 0
    assert_same_weights(again, first)
    assert [p.name for p in path.parent.iterdir()] == ["run.npz"]


def test_a_failed_write_leaves_the_checkpoint_before(path, monkeypatch):
    """The disk is full when the third epoch ends."""
    savez, writes = np.savez, itertools.count()

    def full(file, **named):
        if next(writes) == 3:
            file.write_bytes(b"half")
            raise OSError("no space left on device")
        savez(file, **named)

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="no space left"):
        train(checkpoint=path)
    assert [p.name for p in path.parent.iterdir()] == ["run.npz"]
    steps = []
    network = toy()
    backward = network.layers["fc"].backward
    network.layers["fc"].backward = lambda grad: steps.append(1) or backward(grad)
    train(network, checkpoint=path)
    assert len(steps) == 2 * STEPS
    assert_same_weights(network, train()[0])


def test_a_missing_folder_shows_before_the_first_epoch(tmp_path):
    network = toy()
    with pytest.raises(FileNotFoundError, match="the folder 'gone' does not exist; make it"):
        train(network, checkpoint=tmp_path / "gone" / "run.npz")
    assert_same_weights(network, toy())


def another_rate():
    network = toy()
    network.layers["drop"].rate = 0.5
    return network


OTHER_RUNS = {
    "epochs": ({"epochs": 5}, "its epochs is 4, this call's 5"),
    "batch": ({"batch": 17}, "its batch is 16, this call's 17"),
    "seed": ({"seed": 6}, "its seed is 5, this call's 6"),
    "shift": ({"shift": 0}, "its shift is 1, this call's 0"),
    "schedule": ({"schedule": None}, "its schedule is"),
    "optimizer": ({"optimizer": SGD(0.1)}, "its optimizer is Adam, this call's SGD"),
    "rate": ({"optimizer": Adam(0.1)}, "its learning_rate is 0.005, this call's 0.1"),
    "beta": ({"optimizer": Adam(5e-3, beta1=0.5)}, "its beta1 is 0.9, this call's 0.5"),
    "images": ({"images": IMAGES[1:], "labels": LABELS[1:]}, "its images is 70, this call's 69"),
    "pixels": ({"images": IMAGES[::-1]}, "its training data is"),
    "labels": ({"labels": LABELS[::-1]}, "its training data is"),
    "validation": ({"validation": (IMAGES, LABELS)}, "its validation data is None, this call's"),
    "rate of dropout": ({"network": another_rate()}, r"its layers drop is .*0\.25.*0\.5"),
    "network": ({"network": toy().variant("a toy", drop=None)}, "its network is toy, this call's"),
    "layers": (
        {"network": toy().variant("toy", drop=None)},
        "its layers drop is .* this call's None",
    ),
    "dtype": ({"network": toy().astype(float), "images": IMAGES.astype(float)}, "its dtype is flo"),
    "start": ({"network": toy(seed=1)}, r"it began with other weights \(another seed of the n"),
}


@pytest.mark.parametrize("what", OTHER_RUNS)
def test_a_checkpoint_of_another_run_is_refused(what, path):
    network = toy()
    break_at(network, STEPS + 1, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        train(network, checkpoint=path)
    before = path.read_bytes()
    changes, message = OTHER_RUNS[what]
    with pytest.raises(ValueError, match=f"run.npz belongs to another run: {message}") as caught:
        train(**changes, checkpoint=path)
    assert str(caught.value).endswith("Give this run a checkpoint of another name.")
    assert path.read_bytes() == before


def test_a_run_without_a_finished_epoch_gives_way_to_another(path):
    network = toy()
    break_at(network, 2, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        train(network, checkpoint=path)
    assert_same_weights(network, toy())
    train(network, checkpoint=path, seed=6)
    assert_same_weights(network, train(seed=6)[0])


@pytest.mark.parametrize("keep", [0, 1, 100, 1000, -1, -100])
def test_a_truncated_checkpoint_is_refused(keep, path):
    train(checkpoint=path, epochs=1)
    path.write_bytes(path.read_bytes()[:keep])
    network = toy()
    message = r"run\.npz is damaged, or no checkpoint \(.*\): restore it, or give"
    with pytest.raises(ValueError, match=message):
        train(network, checkpoint=path, epochs=1)
    assert_same_weights(network, toy())


def test_a_changed_byte_never_passes_for_a_run(path):
    expected, history = train(checkpoint=path, epochs=1)
    good = path.read_bytes()
    places = np.random.default_rng(0).integers(len(good), size=60)
    for place in [*range(0, 120, 11), *places.tolist(), *range(-120, 0, 11)]:
        bad = bytearray(good)
        bad[place] ^= 0x55
        path.write_bytes(bad)
        network = toy()
        try:
            _, got = train(network, checkpoint=path, epochs=1)
        except ValueError:
            assert_same_weights(network, toy())
        else:
            # The byte said nothing of the run, such as a date in the archive.
            assert_same_weights(network, expected)
            assert got == history


def test_a_checkpoint_of_another_version_or_a_pickle_is_refused(path, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SCHEMA", "fastdl-checkpoint/0")
    train(checkpoint=path, epochs=1)
    monkeypatch.undo()
    with pytest.raises(
        ValueError, match=r"no checkpoint \(it has the schema 'fastdl-checkpoint/0'\)"
    ):
        train(checkpoint=path, epochs=1)

    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "sprung"),))

    toy().save_weights(path)  # a good file, of another kind
    weights = path.read_bytes()
    record = np.empty((), object)
    record[()] = Trap()
    np.savez(path, record=record)
    for content in (weights, path.read_bytes(), pickle.dumps(Trap())):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="damaged, or no checkpoint"):
            train(checkpoint=path, epochs=1)
        assert path.read_bytes() == content
    assert not (tmp_path / "sprung").exists()


# --- a loss that is no number -------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
def test_a_run_that_goes_astray_stops_and_keeps_the_last_good_epoch(path):
    def schedule(done):
        return 1.0 if done < 0.5 else 1e38

    network, optimizer = toy(), SGD(0.01)
    message = (
        r"the loss became (nan|inf) in epoch 3, step \d of 5: try a lower learning rate "
        r"\(it was 1e\+36 there\)"
    )
    with pytest.raises(FloatingPointError, match=message):
        train(network, optimizer, schedule=schedule, checkpoint=path)
    assert all(np.isfinite(array).all() for array in network.parameters.values())
    assert optimizer.learning_rate == 0.01
    half = toy()
    break_at(half, 2 * STEPS + 1, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        train(half, SGD(0.01), schedule=schedule, checkpoint=path.with_name("half.npz"))
    assert_same_weights(network, half)


@pytest.mark.filterwarnings("error")
def test_weights_that_the_last_step_ruined_are_not_stored(path):
    last = 1 - 0.6 / (RUN["epochs"] * STEPS)
    network = toy()
    with pytest.raises(FloatingPointError, match=r"the sum of conv\.weight became .* last step"):
        train(network, SGD(1e20), schedule=lambda done: 1e200 * (done > last), checkpoint=path)
    assert_same_weights(network, toy())


@pytest.mark.filterwarnings("error")
def test_images_that_are_not_finite_are_named_as_a_cause():
    images = IMAGES.copy()
    images[7, 0, 3, 3] = np.nan
    with pytest.raises(FloatingPointError, match="see that the images are finite"):
        train(images=images)
