"""The command that makes the weights in ``data/weights``: ``python -m fastdl_lib.course.train``.

``--network`` chooses which, ``--help`` says how.
"""

import argparse
import dataclasses
import hashlib
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastdl_lib.binary.networks import BINARY_PARTS, binary_deep_convnet, binary_mlp
from fastdl_lib.core.datasets import mnist
from fastdl_lib.core.files import check_destination, read_json, whole_file
from fastdl_lib.course.ranks import (
    COUNT,
    MNIST_IMAGES,
    fit_as_told,
    number_within,
    training_options,
    without_dropout,
)
from fastdl_lib.measuring.machine import machine_card
from fastdl_lib.nn.training import Evaluation, History, evaluate, hold_out
from fastdl_lib.nn.zoo import deep_convnet

WEIGHTS_SCHEMA = "fastdl-weights/1"

# The networks to train, and their options.
NETWORKS = {
    "deep-convnet": lambda options: deep_convnet(options.seed),
    "mlp": lambda options: binary_mlp(options.seed, options.hidden, binary=options.binary),
    "binary-deep-convnet": lambda o: binary_deep_convnet(o.seed, o.width, binary=o.binary),
}

# The weights in data/weights.
RECIPE = {"epochs": 12, "shift": 2}
# The binary networks, and their float twins beside them.
BINARY_RECIPE = {"epochs": 60, "batch": 256, "learning_rate": 5e-3, "warmup": 0.05, "shift": 1}
# About 99 % in the shortest time.
FAST_RECIPE = {"epochs": 1, "learning_rate": 8e-3, "warmup": 0.3, "shift": 0}

# Of 60,000 images, 5,000 are held out for --validate.
HELD_OUT_SHARE = 12


def main(arguments: Sequence[str] | None = None) -> int:
    """Train a network on MNIST as the command line says; return the exit status."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.network != "deep-convnet":
        parser.set_defaults(**BINARY_RECIPE)
    if options.fast:
        parser.set_defaults(**FAST_RECIPE)
    options = parser.parse_args(arguments)  # anew: what was not given has other defaults now
    try:
        _train(options, arguments)
    except KeyboardInterrupt:  # fit has said what is kept
        return 130
    except (ValueError, OSError, FloatingPointError, MemoryError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _train(options: argparse.Namespace, arguments: list[str]) -> None:
    made = options.out and options.out.with_suffix(".json")
    network = trained = NETWORKS[options.network](options)
    weights_bytes = sum(weight.nbytes for weight in network.parameters.values())
    check_destination(options.out, made, options.checkpoint, room_bytes=3 * weights_bytes)
    if made and made.exists():
        try:
            read_json(made, WEIGHTS_SCHEMA)
        except ValueError:
            told = "would be written beside the weights, and is there as something else"
            raise ValueError(f"{made.name} {told}: give --out another name.") from None
    card = machine_card()
    print(card.summary)
    images, labels = (array[: options.images] for array in mnist("train"))
    validation = None
    if options.validate:
        held = len(images) // HELD_OUT_SHARE
        (images, labels), validation = hold_out(images, labels, held)
    if options.network == "deep-convnet":
        trained = without_dropout(network, options)
    history = fit_as_told(trained, images, labels, options, validation=validation)
    # Who compares recipes must not see the test set.
    test = None if options.validate else evaluate(network, *mnist("test"))
    print(f"Trained on {len(images):,} images in {history.seconds:,.1f} s (measured here)")
    if test is not None:
        print(f"Test: {test}")
    if options.out is not None:
        network.save_weights(options.out, packed=options.packed)
        how = _how_made(options, arguments, history, test) | {
            "training_images": len(images),
            "validation_images": 0 if validation is None else len(validation[0]),
            "machine": card.to_dict(),
        }
        with whole_file(made) as part:
            part.write_text(json.dumps(how, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        print(f"Wrote {options.out.name} and {made.name}")


def _how_made(
    options: argparse.Namespace, arguments: list[str], history: History, test: Evaluation | None
) -> dict[str, Any]:
    """What stands beside the weights, for JSON: no path of this machine."""
    words = ["python", "-m", "fastdl_lib.course.train", *map(_without_folders, arguments)]
    aside = ("out", "checkpoint", "fast", "validate", "images", "packed", "network")
    if options.network == "deep-convnet":
        aside += ("hidden", "width", "binary")
    else:
        aside += ("dropout", "width" if options.network == "mlp" else "hidden")
    if options.optimizer != "sgd":
        aside += ("momentum", "weight_decay")
    return {
        "schema": WEIGHTS_SCHEMA,
        "weights": options.out.name,
        "sha256": hashlib.sha256(options.out.read_bytes()).hexdigest(),
        "network": history.network,
        "command": shlex.join(words),
        "recipe": {name: value for name, value in vars(options).items() if name not in aside},
        "training_s": round(history.seconds, 1),
        "validation_accuracy": history.epochs[-1].validation_accuracy,
        "test_images": 0 if test is None else test.images,
        "test_accuracy": None if test is None else test.accuracy,
        "epochs": [dataclasses.asdict(epoch) for epoch in history.epochs],
        "licence": "MIT, as the code of this project; trained on MNIST (see data/README.md)",
    }


def _without_folders(word: str) -> str:
    """A word of the command line; of a path that leads out of the working folder the name only."""
    option, equals, value = word.partition("=") if word[:1] == "-" else ("", "", word)
    path = Path(value)
    return option + equals + (path.name if path.is_absolute() or ".." in path.parts else value)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fastdl_lib.course.train",
        description="Train a network on MNIST and say how well it reads the test set.",
    )
    add = parser.add_argument
    default = " (default: %(default)s)"
    which = f"which one; the others than deep-convnet have the defaults {BINARY_RECIPE}"
    add("--network", choices=NETWORKS, default="deep-convnet", help=which)
    add("--binary", choices=BINARY_PARTS, default="all", help="what is one bit" + default)
    add("--hidden", type=COUNT, default=2048, help="values in mlp's hidden layers" + default)
    add("--width", type=COUNT, default=1, help="multiplies binary-deep-convnet's filters" + default)
    add("--packed", action="store_true", help="write binary weights as one bit each")
    add("--fast", action="store_true", help=f"the short recipe: other defaults, {FAST_RECIPE}")
    training_options(parser, **RECIPE)
    images = number_within(int, low=HELD_OUT_SHARE, high=MNIST_IMAGES + 1)
    add("--images", type=images, help="train on the first so many images only (default: all)")
    validate = "hold out a twelfth of the training images and count on it; no test set is touched"
    add("--validate", action="store_true", help=validate)
    return parser


if __name__ == "__main__":
    sys.exit(main())
