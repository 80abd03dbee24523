"""Measure how AlexNet's forward time divides over its layers, in up to five implementations.

    python benchmarks/layer_shares.py --batch 16 --budget 60

The network, its weights, the photos and the number of threads are the same for all; only the code
differs, and with it convolution's share. Before anything is timed, the outputs are checked equal.
Quote the ratios and the shares, which come from one interleaved run; the milliseconds belong to
this machine and this minute. ``benchmarks/README.md`` describes the method.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from fair import MIN_ROUNDS, Times, in_turn
from peer_book import book_layer
from peer_pytorch import LAYOUTS, torch, torch_layer

from fastdl_lib.core.datasets import photos
from fastdl_lib.core.threads import blas_threads
from fastdl_lib.course.record import check_place, save
from fastdl_lib.measuring.costs import KINDS
from fastdl_lib.measuring.evidence import Column, Measurement, Provenance, Table
from fastdl_lib.measuring.machine import MachineCard, machine_card
from fastdl_lib.measuring.recordings import Recording
from fastdl_lib.measuring.timing import LayerProfile
from fastdl_lib.nn.network import Network
from fastdl_lib.nn.zoo import alexnet

REFERENCE = "book, float64"  # the outputs of the others are compared with its
BASELINE = "fastdl"  # the times of the others are divided by its
TOLERANCE = 1e-4  # of a layer's largest output; float32 alone makes about 1e-6

Array = Any  # numpy.ndarray or torch.Tensor


class Implementation(NamedTuple):
    """One way to compute AlexNet: a function for each layer, and the photos in its layout."""

    layers: dict[str, Callable[[Array], Array]]
    images: Array
    conditions: dict[str, Any]


def implementations(network: Network, images: np.ndarray) -> dict[str, Implementation]:
    """All that can run here, by name, in the order they are shown; PyTorch's where it is there.

    Weights and photos take their dtype and memory layout here, outside the clock.
    """
    layers = network.layers.items()
    made = {}
    for dtype in (np.float64, np.float32):
        book = {name: book_layer(layer, dtype).forward for name, layer in layers}
        made[f"book, {np.dtype(dtype)}"] = Implementation(book, images, {})
    made["fastdl"] = Implementation({name: layer.forward for name, layer in layers}, images, {})
    for label, layout in LAYOUTS.items():
        made[label] = Implementation(
            {name: torch_layer(layer).to(memory_format=layout) for name, layer in layers},
            torch.from_numpy(images).to(memory_format=layout),
            {"torch": torch.__version__},
        )
    return made


def check_equal(made: dict[str, Implementation]) -> None:
    """Compare every layer's output with the reference's; this is also each one's warm-up.

    Raises:
        ValueError: an output of another dtype than was promised, or too far from the reference.
    """

    def outputs(implementation: Implementation) -> Iterator[np.ndarray]:
        x = implementation.images
        for forward in implementation.layers.values():
            x = forward(x)
            yield np.asarray(x)

    expected = list(outputs(made[REFERENCE]))
    for name, implementation in made.items():
        dtype = np.float64 if name == REFERENCE else np.float32
        both = zip(implementation.layers, outputs(implementation), expected, strict=True)
        for layer, out, wanted in both:
            error = np.abs(out - wanted).max() / np.abs(wanted).max()
            if out.dtype != dtype or not error <= TOLERANCE:
                raise ValueError(
                    f"{name}, {layer}: {out.dtype} and off by {error:.1e} of the largest value; "
                    f"expected {np.dtype(dtype)} and at most {TOLERANCE:.0e}."
                )
        print(f"{name}: equal in every layer; logits within {error:.0e} of the largest")


def one_pass(implementation: Implementation) -> Times:
    """Run the network once and clock every layer. All of this is CPU code, done on return."""
    times_ms, x = {}, implementation.images
    clock = time.perf_counter()
    for name, forward in implementation.layers.items():
        x = forward(x)
        before, clock = clock, time.perf_counter()
        times_ms[name] = 1e3 * (clock - before)
    return times_ms


def measure(made: dict[str, Implementation], budget_s: float) -> list[dict[str, Times]]:
    """Time all in turn until the budget is used up; return the rounds with nobody disturbed.

    Raises:
        SystemExit: other programs left too few rounds undisturbed.
    """
    passes = {name: partial(one_pass, implementation) for name, implementation in made.items()}
    taken = in_turn(passes, budget_s)
    rounds, quiet = len(taken.rounds), [taken.rounds[i] for i in taken.where(*made)]
    print(f"\n{len(quiet)} of {rounds} interleaved rounds were undisturbed; these count.")
    if len(quiet) < MIN_ROUNDS:
        raise SystemExit("That is too few. Wait until nothing else runs, or raise --budget.")
    return quiet


def as_profile(
    network: Network, passes: list[Times], card: MachineCard, conditions: dict[str, Any]
) -> LayerProfile:
    """The samples of one implementation, each layer's with all that decides them."""
    kinds = {name: layer.kind for name, layer in network.layers.items()}
    forward = {
        layer: Measurement(
            name=f"{conditions['implementation']} / {layer} forward",
            unit="ms",
            samples=tuple(round(times_ms[layer], 5) for times_ms in passes),
            provenance=Provenance.MEASURED,
            machine=card,
            conditions={**conditions, "layer": layer, "kind": kind},
        )
        for layer, kind in kinds.items()
    }
    return LayerProfile(network.name, conditions["batch"], kinds, forward, backward={})


def ratio_table(
    names: list[str], rounds: list[dict[str, Times]], card: MachineCard, batch: int
) -> Table:
    """The whole pass of each, by the baseline's in the same round; in ms; in images/s."""
    totals = {name: np.array([sum(times[name].values()) for times in rounds]) for name in names}

    def measured(unit: str, samples: np.ndarray) -> Measurement:
        return Measurement("forward pass", unit, tuple(samples), Provenance.MEASURED, card)

    rows = [
        {
            "implementation": name,
            "ratio": measured("", total / totals[BASELINE]),
            "total": measured("ms", total),
            "speed": measured("images/s", 1e3 * batch / total),
        }
        for name, total in totals.items()
    ]
    columns = (
        Column("implementation"),
        Column("ratio", f"time / time of {BASELINE}", "", Provenance.MEASURED),
        Column("total", "forward pass", "ms", Provenance.MEASURED),
        Column("speed", "images/s", "", Provenance.MEASURED),
    )
    caption = f"AlexNet forward, batch {batch}: median and quartiles of {len(rounds)} rounds"
    return Table(columns, tuple(rows), caption)


def share_table(profiles: dict[str, LayerProfile]) -> Table:
    """Each kind of layer's percentage of the pass, without ``other`` (flatten: below 0.1 %)."""
    kinds = [kind for kind in KINDS if kind != "other"]
    rows = [
        {"implementation": name, **{kind: profile.kind_share(kind) for kind in kinds}}
        for name, profile in profiles.items()
    ]
    columns = [Column(kind, unit="%", provenance=Provenance.MEASURED) for kind in kinds]
    caption = "The same rounds: share of each kind of layer in the forward pass"
    return Table((Column("implementation"), *columns), tuple(rows), caption)


def arguments() -> argparse.Namespace:
    """Read and check the command line, before a minute of measuring could be lost."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    cores = machine_card().cores
    parser.add_argument("--batch", type=int, default=16, help="images a pass (default: 16)")
    parser.add_argument("--budget", type=float, default=60, help="seconds to measure (default: 60)")
    parser.add_argument("--threads", type=int, default=cores, help=f"default here: {cores}")
    parser.add_argument("--record", type=Path, help="also write a recording to this .json file")
    chosen = parser.parse_args()
    if not (chosen.batch >= 1 and chosen.threads >= 1 and 0 < chosen.budget < float("inf")):
        parser.error("--batch, --threads and --budget must be positive.")
    if chosen.record:
        check_place(chosen.record)
    return chosen


def main() -> None:
    """Check, measure, print; with ``--record`` also write all samples."""
    chosen = arguments()
    network = alexnet()
    if torch:
        torch.set_num_threads(chosen.threads)
    else:
        print("PyTorch is not installed (pip install -e '.[peers]'): measuring the rest.")
    with blas_threads(chosen.threads):
        card = machine_card()
        made = implementations(network, photos(chosen.batch))
        check_equal(made)
        rounds = measure(made, chosen.budget)
    shared = {"batch": chosen.batch, "threads": chosen.threads, "warmup": 1}
    profiles = {
        name: as_profile(
            network,
            [times[name] for times in rounds],
            card,
            {**shared, "implementation": name, **implementation.conditions},
        )
        for name, implementation in made.items()
    }
    print(f"\n{card.summary}\nPyTorch {torch.__version__ if torch else 'absent'}")
    print(f"\n{ratio_table(list(made), rounds, card, chosen.batch)}\n\n{share_table(profiles)}")
    if chosen.record:
        options = f"--batch {chosen.batch} --budget {chosen.budget:g} --threads {chosen.threads}"
        command = f"python benchmarks/layer_shares.py {options}"
        kept = tuple(m for profile in profiles.values() for m in profile.forward.values())
        save(Recording(card, command, kept), chosen.record)


if __name__ == "__main__":
    main()
