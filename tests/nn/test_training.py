"""Training, its progress and evaluation, and runs that go on exactly where they stopped."""

import io
import itertools
import math
import os
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
    STEPS,
    assert_same_weights,
    break_at,
    strokes,
    toy,
    train,
    weights_differ,
    with_a_byte_changed,
)
from hypothesis import given
from hypothesis import strategies as st

from fastdl_lib.binary.layers import BinaryLinear, Sign
from fastdl_lib.core import arrays
from fastdl_lib.nn import training
from fastdl_lib.nn.layers import Flatten, Linear, seed_of
from fastdl_lib.nn.network import Network
from fastdl_lib.nn.norms import BatchNorm
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


def interrupted(call, error=None, network=None, optimizer=None, **changes):
    """A run that ends in its backward pass number ``call``; return its network."""
    network, error = network or toy(), error or KeyboardInterrupt()
    break_at(network, call, error)
    with pytest.raises(type(error)):
        train(network, optimizer, **changes)
    return network


class Spy(Adam):
    """Writes down the rate of each step; by its name a plain Adam."""

    def __init__(self, learning_rate=5e-3):
        super().__init__(learning_rate)
        self.rates = []

    def step(self, network):
        self.rates.append(self.learning_rate)
        super().step(network)


Spy.__name__ = "Adam"


def test_a_step_gets_the_rate_of_its_middle():
    optimizer = Spy(0.5)
    _, history = train(
        optimizer=optimizer, epochs=2, batch=32, schedule=lambda done: np.float64(done)
    )
    assert optimizer.rates == pytest.approx([0.5 * (k + 0.5) / 6 for k in range(6)])
    ends = [epoch.learning_rate for epoch in history.epochs]
    assert ends == [optimizer.rates[2], optimizer.rates[5]]
    assert optimizer.learning_rate == 0.5, "the optimiser gets its own rate back"


# --- shifts and batches -------------------------------------------------------------------------


@given(data=st.data(), height=st.integers(1, 4), width=st.integers(1, 4))
def test_shifts_agree_with_loops(data, height, width):
    count = data.draw(st.integers(1, 3))
    images = np.random.default_rng(0).random((count, 2, height, width), dtype=np.float32)
    offset = st.tuples(st.integers(-height, height), st.integers(-width, width))
    offsets = np.array(data.draw(st.lists(offset, min_size=count, max_size=count)))
    kept, expected = images.copy(), np.zeros_like(images)
    for n, c, y, x in np.ndindex(images.shape):
        from_y, from_x = y - offsets[n, 0], x - offsets[n, 1]
        if 0 <= from_y < height and 0 <= from_x < width:
            expected[n, c, y, x] = images[n, c, from_y, from_x]
    got = _shifted(images, offsets)
    assert got.dtype == np.float32 and (got == expected).all()
    assert (images == kept).all()


def batches_seen(**changes):
    """The batches a run trains on, in order."""
    seen, network = [], toy()
    conv = network.layers["conv"]
    forward = conv.forward
    conv.forward = lambda x, training=False: seen.append(x.copy()) or forward(x, training)
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
    rest, held = hold_out(IMAGES, LABELS, 20, seed=1)
    assert [len(part[0]) for part in (rest, held)] == [50, 20]
    pairs = [
        sorted((image.tobytes(), int(label)) for part in parts for image, label in zip(*part))  # noqa: B905
        for parts in ((rest, held), ((IMAGES, LABELS),))
    ]
    assert pairs[0] == pairs[1] and len(set(pairs[0])) == 70
    assert (hold_out(IMAGES, LABELS, 20, seed=1)[1][0] == held[0]).all()
    assert (hold_out(IMAGES, LABELS, 20, seed=2)[1][0] != held[0]).any()
    for count, message in ((70, "below the 70 images, got 70"), (0, "at least 1, got 0")):
        with pytest.raises(ValueError, match=f"count must be {message}"):
            hold_out(IMAGES, LABELS, count)


# --- evaluation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 32, 69, 70, 500])
def test_every_image_counts_those_of_the_last_batch_included(batch):
    network = toy()
    logits = network.forward(IMAGES).astype(float)
    losses = [
        math.log(sum(map(math.exp, row))) - row[t] for row, t in zip(logits, LABELS, strict=True)
    ]
    got = evaluate(network, IMAGES, LABELS, batch=batch)
    assert (got.images, got.correct) == (70, (logits.argmax(axis=1) == LABELS).sum())
    assert got.accuracy == got.correct / 70
    assert got.loss == pytest.approx(sum(losses) / 70, rel=1e-5)
    classes = predict_classes(network, IMAGES, batch=batch)
    assert classes.shape == (70,) and (classes == logits.argmax(axis=1)).all()


def spoilt(value, name="fc.bias"):
    network = toy()
    network.parameters[name].flat[0] = value
    return network


NO_ANSWERS = {
    "a weight": (lambda: spoilt(np.nan, "conv.weight"), lambda x: x),
    "a logit": (lambda: spoilt(np.nan), lambda x: x),
    "an infinite logit": (lambda: spoilt(np.inf), lambda x: x),
    "the images": (toy, lambda x: np.where(np.arange(70)[:, None, None, None] == 41, np.nan, x)),
    "too small a format": (lambda: toy().astype(np.float16), lambda x: x.astype(np.float16) * 6e4),
}


@pytest.mark.parametrize("what", NO_ANSWERS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_where_there_are_no_numbers_there_is_no_answer(what):
    make, change = NO_ANSWERS[what]
    network, images = make(), change(IMAGES)
    images = images.astype(network.parameters["fc.bias"].dtype)
    message = f"toy: the logits, or the loss, of image {41 if what == 'the images' else 0} and"
    for use in (
        lambda: evaluate(network, images, LABELS, batch=16),
        lambda: predict_classes(network, images, batch=16),
    ):
        with pytest.raises(FloatingPointError, match=message):
            use()


def test_a_validation_that_has_no_numbers_stops_the_run():
    with pytest.raises(FloatingPointError, match="the logits, or the loss, of image 0 and"):
        train(validation=(np.full_like(IMAGES, np.nan), LABELS))


def test_a_network_that_cannot_decide_takes_the_first_class():
    network = toy()
    for array in network.parameters.values():
        array[...] = 0
    assert evaluate(network, IMAGES, LABELS).correct == (LABELS == 0).sum()


def test_an_evaluation_and_a_history_say_where_they_come_from():
    text = str(Evaluation(images=10_000, correct=9_938, loss=0.02))
    assert text == "99.38 % of 10,000 images right, loss 0.0200 nats an image (measured here)"
    epochs = (Epoch(1, 0.5, 0.75, None, 0.1, 12.0), Epoch(2, 0.25, 0.875, None, 0.05, 13.0))
    lines = str(History("toy", epochs)).splitlines()
    assert lines[0].startswith("toy: 25.0 s of training (measured here); loss and training acc")
    assert lines[1].split("  ")[-1] == "training, s" and lines[2].count("measured here") == 3
    assert lines[-1].split() == ["2", "0.0500", "0.250", "87.5", "13.0"]
    with_validation = History("toy", (Epoch(1, 0.5, 0.75, 0.98, 0.1, 12.0),))
    assert with_validation.table().rows[0]["validation_accuracy"] == 98
    assert "validation accuracy, %" in with_validation._repr_html_()


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


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_same_seed_gives_the_same_weights_and_another_one_others(kind):
    used = toy()
    used.forward(IMAGES, training=True)  # what Dropout drew before does not matter
    one, one_history = train(used, OPTIMIZERS[kind]())
    same, same_history = train(optimizer=OPTIMIZERS[kind]())
    assert_same_weights(one, same)
    assert one_history == same_history
    assert weights_differ(one, train(optimizer=OPTIMIZERS[kind](), seed=6)[0])


def test_dropout_draws_anew_in_every_epoch_and_layer():
    seeds = {seed_of(0, epoch, index) for epoch in range(1, 20) for index in range(20)}
    assert len(seeds) == 19 * 20
    assert seed_of(0, 1, 2) != seed_of(1, 1, 2)


def test_training_and_evaluation_on_the_gpu_do_what_they_do_on_the_cpu(fake_gpu, path):
    images, labels = arrays.to_gpu(IMAGES), arrays.to_gpu(LABELS)
    changes = {"images": images, "labels": labels, "validation": (images, labels)}
    network, _ = train(toy().to_gpu(), checkpoint=path, **changes)
    expected, _ = train()
    again, _ = train(toy().to_gpu(), checkpoint=path, **changes)
    for name, array in network.parameters.items():
        np.testing.assert_allclose(array.get(), expected.parameters[name], rtol=1e-4, atol=1e-5)
        assert (again.parameters[name].get() == array.get()).all(), name
        assert type(array) is type(again.parameters[name]) is fake_gpu.ndarray
    here, there = evaluate(expected, IMAGES, LABELS), evaluate(network, images, labels)
    assert there.correct == here.correct and there.loss == pytest.approx(here.loss, rel=1e-4)
    assert type(predict_classes(network, images)) is np.ndarray


@pytest.mark.gpu
@pytest.mark.skipif(not arrays.gpu_available(), reason=arrays.gpu_status().reason)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_fit_learns_on_a_real_gpu(kind):
    network, images, labels = toy().to_gpu(), arrays.to_gpu(IMAGES), arrays.to_gpu(LABELS)
    train(network, OPTIMIZERS[kind](), images, labels, epochs=25)
    assert evaluate(network, images, labels).accuracy > 0.95


NO_SCHEDULE = r"schedule must take .*warmup_cosine\(\), with its brackets"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"images": IMAGES[:, 0]}, ValueError, r"takes a batch of shape \(N, 1, 8, 8\)"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, ValueError, "N >= 1, got"),
        ({"labels": LABELS[:-1]}, ValueError, r"labels must have the shape \(70,\).* got \(69,\)"),
        ({"labels": LABELS + 1}, ValueError, r"there are 3 classes: .* in 0\.\.2, got 1\.\.3"),
        ({"validation": (IMAGES, LABELS[:-1])}, ValueError, "labels must have the shape"),
        ({"optimizer": "Adam"}, TypeError, r"optimizer must be one such as Adam\(\), got 'Adam'"),
        ({"epochs": 0}, ValueError, "epochs must be at least 1, got 0"),
        ({"epochs": 1.5}, TypeError, "epochs must be a whole number"),
        ({"batch": 0}, ValueError, "batch must be at least 1"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"shift": -1}, ValueError, "shift must be at least 0"),
        ({"shift": 8}, ValueError, r"shift must be below the images' \(8, 8\), got 8"),
        ({"schedule": warmup_cosine}, TypeError, NO_SCHEDULE),
        ({"schedule": 0.1}, TypeError, NO_SCHEDULE),
        ({"schedule": lambda done: -1}, TypeError, NO_SCHEDULE),
        ({"schedule": lambda done: math.nan}, TypeError, NO_SCHEDULE),
        ({"checkpoint": "run.pkl"}, ValueError, r"stored as \.npz, got the name 'run\.pkl'"),
        ({"checkpoint": "gone/run.npz"}, FileNotFoundError, "folder 'gone' does not exist; make"),
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
    assert err == "" and out.count("\n") == 3 and out.count("\r") <= 6
    # What is left on the screen: the last of what was written over each other.
    lines = [line.rpartition("\r")[2] for line in out.rstrip().split("\n")]
    for number, line in enumerate(lines, start=1):
        assert line.startswith(f"epoch {number}/3 |") and len(line) < 100
        assert "loss " in line and "accuracy " in line and "validation " in line


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


@pytest.mark.parametrize(
    ("kind", "finished", "error"),
    [("SGD", 0, KeyboardInterrupt()), ("SGD", 3, OSError("the disk went away")),
     ("Adam", 1, OSError("the disk went away")), ("Adam", 3, KeyboardInterrupt())],
)  # fmt: skip
def test_an_interrupted_run_goes_on_to_the_same_weights(kind, finished, error, path):
    validation, optimizer, network = (IMAGES, LABELS), OPTIMIZERS[kind](), toy()
    whole, whole_history = train(optimizer=OPTIMIZERS[kind](), validation=validation)
    held = network.parameters
    again = {"checkpoint": path, "validation": validation}
    interrupted(finished * STEPS + 3, error, network, optimizer, **again)
    copy = path.with_name("copy.npz")
    copy.write_bytes(path.read_bytes())

    # In another process, with everything made anew.
    fresh, history = train(optimizer=OPTIMIZERS[kind](), validation=validation, checkpoint=copy)
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
    network = interrupted(STEPS + 1, checkpoint=path)
    interrupted(STEPS + 2, network=network, checkpoint=path)
    assert_same_weights(train(checkpoint=path)[0], train()[0])


def test_an_interrupted_epoch_is_lost_whole_and_said_so(path, capsys):
    reference = interrupted(2 * STEPS + 1, checkpoint=path)
    line = (
        "Interrupted in epoch 3: run.npz holds 2 finished ones, the same call goes on from there.\n"
    )
    assert capsys.readouterr().out == line
    later = interrupted(3 * STEPS, checkpoint=path.with_name("later.npz"))
    assert_same_weights(reference, later)
    capsys.readouterr()
    interrupted(3 * STEPS)
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
    optimizer = Spy()
    network, _ = train(optimizer=optimizer, checkpoint=path)
    assert len(optimizer.rates) == 2 * STEPS
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
    savez, writes, optimizer = np.savez, itertools.count(), Spy()

    def full(file, **named):
        if next(writes) == 3:
            file.write_bytes(b"half")
            raise OSError("no space left on device")
        savez(file, **named)

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="no space left"):
        train(checkpoint=path)
    assert [p.name for p in path.parent.iterdir()] == ["run.npz"]
    network, _ = train(optimizer=optimizer, checkpoint=path)
    assert len(optimizer.rates) == 2 * STEPS
    assert_same_weights(network, train()[0])


def another_rate():
    network = toy()
    network.layers["drop"].rate = 0.5
    return network


OTHER_RUNS = [
    ({"epochs": 5}, "its epochs is 4, this call's 5"),
    ({"batch": 17}, "its batch is 16, this call's 17"),
    ({"seed": 6}, "its seed is 5, this call's 6"),
    ({"shift": 0}, "its shift is 1, this call's 0"),
    ({"schedule": None}, "its schedule is"),
    ({"optimizer": SGD(0.1)}, "its optimizer is Adam, this call's SGD"),
    ({"optimizer": Adam(0.1)}, "its learning_rate is 0.005, this call's 0.1"),
    ({"optimizer": Adam(5e-3, beta1=0.5)}, "its beta1 is 0.9, this call's 0.5"),
    ({"images": IMAGES[1:], "labels": LABELS[1:]}, "its images is 70, this call's 69"),
    ({"images": IMAGES[::-1]}, "its training data is"),
    ({"labels": LABELS[::-1]}, "its training data is"),
    ({"validation": (IMAGES, LABELS)}, "its validation data is None, this call's"),
    ({"network": another_rate()}, r"its layers drop is .*0\.25.*0\.5"),
    ({"network": toy().variant("a toy", drop=None)}, "its network is toy, this call's"),
    ({"network": toy().variant("toy", drop=None)}, "its layers drop is .* this call's None"),
    ({"network": toy().astype(float), "images": IMAGES.astype(float)}, "its dtype is flo"),
    ({"network": toy(seed=1)}, r"it began with other weights \(another seed of the n"),
]


def test_a_checkpoint_of_another_run_is_refused(path):
    interrupted(STEPS + 1, checkpoint=path)
    before = path.read_bytes()
    for changes, message in OTHER_RUNS:
        with pytest.raises(ValueError, match=f"run.npz belongs to another run: {message}") as error:
            train(**changes, checkpoint=path)
        assert str(error.value).endswith("Give this run a checkpoint of another name.")
        assert path.read_bytes() == before


def test_a_checkpoint_of_before_public_names_goes_on(path):
    network = interrupted(2 * STEPS + 1, checkpoint=path)
    with np.load(path) as archive:
        arrays = dict(archive)
    record = str(arrays["record"])
    assert record.count('"algorithm"') == 1
    np.savez(path, **arrays | {"record": record.replace('"algorithm"', '"_algorithm"')})
    assert_same_weights(train(network, checkpoint=path)[0], train()[0])


def test_a_run_without_a_finished_epoch_gives_way_to_another(path):
    network = interrupted(2, checkpoint=path)
    assert_same_weights(network, toy())
    train(network, checkpoint=path, seed=6)
    assert_same_weights(network, train(seed=6)[0])


def test_a_damaged_checkpoint_never_passes_for_a_run(path):
    """Cut off, or with a byte changed that may say nothing of the run, such as a date."""
    expected, history = train(checkpoint=path, epochs=1)
    good = path.read_bytes()
    cut_off = [good[:keep] for keep in (0, 1, 100, 1000, -1, -100)]
    for content in (*cut_off, *with_a_byte_changed(good)):
        path.write_bytes(content)
        network = toy()
        try:
            _, got = train(network, checkpoint=path, epochs=1)
        except ValueError as error:
            assert str(error).startswith(("run.npz ", "the checkpoint run.npz belongs to another"))
            assert_same_weights(network, toy())
        else:
            assert content not in cut_off
            assert_same_weights(network, expected)
            assert got == history


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
    assert optimizer.learning_rate == 0.01
    half = {"optimizer": SGD(0.01), "checkpoint": path.with_name("half.npz")}
    assert_same_weights(network, interrupted(2 * STEPS + 1, schedule=schedule, **half))
    assert all(np.isfinite(array).all() for array in network.parameters.values())


class Ruin(SGD):
    """Leaves a number that is none at a step."""

    def __init__(self, what, at):
        super().__init__(0.01, momentum=0.9)
        self.what, self.at = what, at

    def step(self, network):
        super().step(network)
        if self.steps == self.at:
            arrays = network.parameters | network.buffers | self.state
            arrays[self.what].flat[-1] = np.nan


@pytest.mark.parametrize(
    ("what", "at", "where"),
    [("binary.weight", 7, "epoch 2, step 2 of 5"), ("norm.variance", 10, "epoch 2, step 5 of 5"),
     ("velocity.binary.weight", 10, "epoch 2:")],
)  # fmt: skip
def test_numbers_that_the_loss_does_not_show_are_noticed(what, at, where, path):
    """The sign of what is no number is a number."""
    rng = np.random.default_rng(0)
    layers = [
        ("flatten", Flatten()), ("binary", BinaryLinear(64, 8, rng=rng)), ("norm", BatchNorm(8)),
        ("sign", Sign()), ("fc", Linear(8, 3, rng=rng)),
    ]  # fmt: skip
    network = Network("binary", layers, (1, 8, 8))
    with pytest.raises(FloatingPointError, match=f"the sum of .* became nan in {where}"):
        train(network, Ruin(what, at), checkpoint=path)
    stored = Network("binary", layers, (1, 8, 8)).load_weights(path)
    arrays = [*stored.parameters.values(), *stored.buffers.values()]
    assert all(np.isfinite(array).all() for array in arrays)


@pytest.mark.filterwarnings("error")
def test_images_that_are_not_finite_are_named_as_a_cause():
    images = IMAGES.copy()
    images[7, 0, 3, 3] = np.nan
    with pytest.raises(FloatingPointError, match="see that the images are finite"):
        train(images=images)
