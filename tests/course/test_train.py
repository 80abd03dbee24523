"""The command that trains the shipped weights, and those weights."""

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from helpers import assert_same_weights, digits

from fastdl_lib.binary.networks import binary_deep_convnet, binary_mlp
from fastdl_lib.core.datasets import data_folder, mnist
from fastdl_lib.course import train
from fastdl_lib.nn.optimizers import Adam, warmup_cosine
from fastdl_lib.nn.training import evaluate, fit, hold_out
from fastdl_lib.nn.zoo import deep_convnet


def made_of(weights):
    """What stands beside weights; its digest is theirs."""
    made = json.loads(weights.with_suffix(".json").read_text(encoding="utf-8"))
    assert made["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    return made


def test_the_command_trains_validates_and_goes_on(tmp_path):
    (tmp_path / "out").mkdir()
    arguments = [
        "--images", "120", "--validate", "--epochs", "2", "--batch", "60", "--dropout", "none",
        "--out", "out/net.npz", f"--checkpoint={tmp_path / 'run.npz'}",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "fastdl_lib.course.train", *arguments],
        cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    for words in ("epoch 2/2 |", "validation", "Trained on 110 images in"):
        assert words in done.stdout
    assert "Test" not in done.stdout, "who compares recipes must not see the test set"

    made = made_of(tmp_path / "out" / "net.npz")
    assert tmp_path.name not in json.dumps(made)
    assert made["command"] == (
        "python -m fastdl_lib.course.train --images 120 --validate --epochs 2 --batch 60 "
        "--dropout none --out out/net.npz --checkpoint=run.npz"
    )
    assert made["test_accuracy"] is None and made["test_images"] == 0
    assert made["training_images"] == 110 and made["validation_images"] == 10
    assert made["recipe"]["seed"] == 0 and made["recipe"]["dropout"] == "none"
    assert made["machine"]["versions"]["numpy"] == np.__version__ and made["machine"]["date"]
    assert made["training_s"] > 0 and len(made["epochs"]) == 2
    assert made["epochs"][-1]["validation_accuracy"] == made["validation_accuracy"]
    assert "MIT" in made["licence"]

    # Its fit, called by hand, gives the same weights.
    images, labels = (array[:120] for array in mnist("train"))
    (images, labels), validation = hold_out(images, labels, 10)
    network = deep_convnet()
    fit(
        network.variant("DeepConvNet", drop1=None, drop2=None), images, labels, epochs=2, batch=60,
        optimizer=Adam(made["recipe"]["learning_rate"]),
        schedule=warmup_cosine(made["recipe"]["warmup"]), shift=made["recipe"]["shift"],
        validation=validation, progress=False, checkpoint=tmp_path / "run.npz",
    )  # fmt: skip
    assert_same_weights(network, deep_convnet().load_weights(tmp_path / "out" / "net.npz"))


@pytest.fixture
def small_mnist(monkeypatch):
    """A few images of MNIST in place of all."""
    images, labels = digits(60)
    whole = {"train": (images[30:], labels[30:]), "test": (images[:30], labels[:30])}
    monkeypatch.setattr(train, "mnist", whole.__getitem__)
    return whole


def test_the_command_tests_the_network_it_writes(small_mnist, tmp_path, capsys):
    out = tmp_path / "net.npz"
    arguments = ["--fast", "--epochs", "1", "--optimizer", "sgd", "--seed", "4", "--out", str(out)]
    assert train.main(arguments) == 0
    made = made_of(out)
    test = evaluate(deep_convnet().load_weights(out), *small_mnist["test"])
    assert made["test_accuracy"] == test.accuracy and made["test_images"] == 30
    assert f"Test: {test}" in capsys.readouterr().out
    assert made["validation_accuracy"] is None
    # A recipe's values stand where the command line says nothing.
    recipe = made["recipe"]
    assert recipe["shift"] == train.FAST_RECIPE["shift"] != train.RECIPE["shift"]
    assert (recipe["epochs"], recipe["optimizer"], recipe["momentum"]) == (1, "sgd", 0.9)
    assert made["command"].endswith("--seed 4 --out net.npz")


@pytest.mark.parametrize(
    ("words", "make", "size", "others"),
    [
        (["mlp", "--hidden", "24"], lambda: binary_mlp(hidden=24), "hidden", {"width", "dropout"}),
        (["mlp", "--hidden", "24", "--binary", "none"],
         lambda: binary_mlp(hidden=24, binary="none"), "hidden", {"width", "dropout"}),
        (["binary-deep-convnet"], binary_deep_convnet, "width", {"hidden", "dropout"}),
    ],
)  # fmt: skip
def test_the_command_trains_binary_networks(words, make, size, others, small_mnist, tmp_path):
    out = tmp_path / "net.npz"
    arguments = ["--network", *words, "--epochs", "1", "--packed", "--out", str(out)]
    assert train.main(arguments) == 0
    made = made_of(out)
    # Packed weights answer as the latent ones that were tested.
    test = evaluate(make().load_weights(out), *small_mnist["test"])
    assert made["test_accuracy"] == test.accuracy and made["network"] == make().name
    recipe = made["recipe"]
    assert recipe.keys() >= {"binary", size} and not recipe.keys() & others
    assert recipe["learning_rate"] == train.BINARY_RECIPE["learning_rate"]


def test_the_command_says_in_a_line_what_is_wrong(small_mnist, tmp_path, capsys, monkeypatch):
    for arguments, message in (
        (["--images", "11"], "--images: it must be at least 12 and below 60001 and finite, got 11"),
        (["--images", "60001"], "below 60001 and finite, got 60001"),
        (["--epochs", "0"], "--epochs: it must be at least 1 and below 1000000000 and finite"),
        (["--learning-rate", "nan"], "--learning-rate: it must be above 0 and finite, got nan"),
        (["--warmup", "1"], "--warmup: it must be at least 0 and below 1 and finite, got 1"),
        (["--out", "net.pkl"], "--out: the name must end in .npz, got 'net.pkl'"),
    ):
        with pytest.raises(SystemExit) as caught:
            train.main(arguments)
        assert caught.value.code == 2 and message in capsys.readouterr().err

    def too_large(options):
        raise MemoryError("Unable to allocate 3.64 TiB")

    monkeypatch.setitem(train.NETWORKS, "mlp", too_large)
    assert train.main(["--network", "mlp", "--hidden", "1000000"]) == 1
    assert capsys.readouterr().err == "Unable to allocate 3.64 TiB\n"

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(deep_convnet().__class__, "backward", interrupted)
    assert train.main(["--epochs", "1", "--checkpoint", str(tmp_path / "run.npz")]) == 130
    out = capsys.readouterr().out
    assert "Interrupted in epoch 1: run.npz holds 0 finished ones" in out


def test_no_path_of_the_machine_is_stored():
    for word, shown in (
        ("--fast", "--fast"),
        ("data/weights/net.npz", "data/weights/net.npz"),
        (os.path.abspath("net.npz"), "net.npz"),
        (f"--out={os.path.abspath('net.npz')}", "--out=net.npz"),
        ("../someone/net.npz", "net.npz"),
        (os.path.abspath("rate=0.1.npz"), "rate=0.1.npz"),
        (f"--out={os.path.abspath('rate=0.1.npz')}", "--out=rate=0.1.npz"),
    ):
        assert train._without_folders(word) == shown


def test_the_stored_weights_reach_the_books_accuracy():
    """At least the book's 99.38 % (Saitoh, section 8.1), on all 10,000 test images."""
    weights = data_folder() / "weights" / "deep_convnet.npz"
    made = made_of(weights)
    test = evaluate(deep_convnet().load_weights(weights), *mnist("test"))
    assert test.images == 10_000 and test.accuracy >= 0.9938
    # Another machine's rounding may turn an image or two that were undecided.
    assert abs(test.correct - 10_000 * made["test_accuracy"]) <= 3 and made["test_images"] == 10_000
    assert made["training_images"] == 60_000 and made["network"] == "DeepConvNet"
