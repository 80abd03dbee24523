"""Measure how fast ``fastdl_lib`` is beside the book's way and PyTorch.

    python benchmarks/speed.py --sections forward-64 train-32 --budget 120

A section is a kind and a batch size. All its candidates compute the same from the same weights,
which is checked before anything is timed, and take turns in one process. Quote the ratios, which
are taken within a round; the milliseconds belong to this machine and this minute.
``benchmarks/README.md`` describes the method and the candidates.
"""

import argparse
import contextlib
import copy
import gc
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from fair import MIN_ROUNDS, Pass, Rounds, clocked, clocked_parts, in_turn
from peer_book import BookAdam, BookDropout, BookSGD, book_layer, book_network
from peer_pytorch import LAYOUTS, compiled, compiler_works, torch, torch_layer, torch_network

from fastdl_lib.costs import layer_costs, layer_kind
from fastdl_lib.datasets import mnist, photos
from fastdl_lib.evidence import Column, Measurement, Provenance, Recording, Table, write_recording
from fastdl_lib.layers import Conv2d, Dropout
from fastdl_lib.machine import MachineCard, machine_card
from fastdl_lib.networks import Network, alexnet, deep_convnet
from fastdl_lib.optimizers import SGD, Adam
from fastdl_lib.threads import blas_threads, threads_in_words

BOOK64, BOOK32 = "book, float64", "book, float32"
IM2COL, OURS = "fastdl, im2col", "fastdl"
EAGER, CHANNELS_LAST, EXPERT = "PyTorch eager", "PyTorch channels_last", "torch.compile, expert"
CEILING = "square product"

TOLERANCES = {"float64": 1e-9, "float32": 1e-4}  # of an output's largest value
# Of a gradient's length: where rounding turns a value's sign, ReLU lets another gradient through.
GRADIENT_TOLERANCES = {"float64": 1e-9, "float32": 1e-2}

Gradients = dict[str, np.ndarray]


class Contest(NamedTuple):
    """The candidates of one section, checked and warmed up, and what each part of a pass does."""

    passes: dict[str, Pass]
    work: dict[str, float]


# --- checks before the clock --------------------------------------------------------------------


def check_outputs(runs: dict[str, Callable[[], Any]], wanted: np.ndarray, what: str) -> None:
    """Run each once and compare its output with ``wanted``; this is also the warm-up.

    Raises:
        ValueError: an output too far from the wanted one.
    """
    errors = {}
    for name, run in runs.items():
        out = np.asarray(run())
        errors[name] = np.abs(out - wanted).max() / np.abs(wanted).max()
        if not errors[name] <= TOLERANCES[str(out.dtype)]:
            raise ValueError(
                f"{what}, {name}: {out.dtype}, off by {errors[name]:.1e} of the largest value."
            )
    print(f"{what}: all {len(runs)} equal, within {max(errors.values()):.0e} of the largest value")


def check_gradients(name: str, gradients: Gradients, wanted: Gradients) -> None:
    """Compare one candidate's gradients with ``wanted``.

    Raises:
        ValueError: other names or shapes, mixed dtypes, or a gradient too far from the wanted one.
    """
    shapes = {parameter: gradient.shape for parameter, gradient in gradients.items()}
    dtypes = {str(gradient.dtype) for gradient in gradients.values()}
    if shapes != {parameter: gradient.shape for parameter, gradient in wanted.items()}:
        raise ValueError(f"{name}: other gradients than expected, {shapes}.")
    errors = {
        parameter: np.linalg.norm(gradients[parameter] - gradient) / np.linalg.norm(gradient)
        for parameter, gradient in wanted.items()
    }
    worst = max(errors, key=errors.get)
    if len(dtypes) > 1 or not errors[worst] <= GRADIENT_TOLERANCES[min(dtypes)]:
        raise ValueError(f"{name}: {dtypes}, the gradient of {worst} is off by {errors[worst]}.")
    print(f"gradients, {name}: {min(dtypes)}, the worst ({worst}) within {errors[worst]:.0e}")


# --- AlexNet's forward pass ---------------------------------------------------------------------


def by_im2col(layer: Conv2d) -> Conv2d:
    """The same layer, weights shared, with im2col for its algorithm."""
    other = copy.copy(layer)
    other.algorithm = "im2col"
    return other


def no_gradients(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    """``function(*arguments)`` without PyTorch noting anything for a backward pass."""
    return torch.no_grad()(partial(function, *arguments))


def forward(batch: int) -> Contest:
    """The whole network on the course's photos."""
    network, images = alexnet(), photos(batch)
    convolutions = {
        name: by_im2col(layer)
        for name, layer in network.layers.items()
        if isinstance(layer, Conv2d)
    }
    runs = {
        BOOK64: partial(book_network(network, np.float64).forward, images.astype(np.float64)),
        BOOK32: partial(book_network(network, np.float32).forward, images),
        IM2COL: partial(network.variant("im2col", **convolutions).forward, images),
        OURS: partial(network.forward, images),
    }
    for name, layout in LAYOUTS.items():
        x = torch.from_numpy(images).to(memory_format=layout)
        runs[name] = no_gradients(torch_network(network, layout), x)
    if compiler_works():
        layout = LAYOUTS[CHANNELS_LAST]
        model = compiled(torch_network(network, layout, expert=True), freezing=True)
        runs[EXPERT] = no_gradients(model, torch.from_numpy(images).to(memory_format=layout))
    check_outputs(runs, runs[BOOK64](), "logits")
    return Contest({name: clocked(run) for name, run in runs.items()}, {"all": batch})


# --- training steps -----------------------------------------------------------------------------


class Trainee(NamedTuple):
    """One way to train: the gradients without Dropout, to be checked, and the step to be timed."""

    gradients: Callable[[], Gradients]
    step: Callable[[], None]


@contextlib.contextmanager
def without_dropout(network: Network) -> Iterator[None]:
    """Let Dropout keep everything for a while: its random numbers differ between candidates."""
    dropouts = [
        layer for layer in network.layers.values() if isinstance(layer, (Dropout, BookDropout))
    ]
    rates = [layer.rate for layer in dropouts]
    for layer in dropouts:
        layer.rate = 0.0
    yield
    for layer, rate in zip(dropouts, rates, strict=True):
        layer.rate = rate


def numpy_trainee(network: Network, optimizer: Any, x: np.ndarray, labels: np.ndarray) -> Trainee:
    """Train a network of ``fastdl_lib``'s or of the book's layers."""

    def gradients() -> Gradients:
        with without_dropout(network):
            network.loss_and_gradients(x, labels)
        return network.gradients

    def step() -> None:
        network.loss_and_gradients(x, labels)
        optimizer.step(network)

    return Trainee(gradients, step)


def torch_trainee(
    model: "torch.nn.Module",
    rule: Callable,
    x: "torch.Tensor",
    labels: "torch.Tensor",
    wrap: Callable,
) -> Trainee:
    """Train a model of PyTorch; ``wrap`` may compile the function that computes the loss."""
    optimizer = rule(model.parameters(), fused=True)  # one loop for each parameter, not several

    @wrap
    def loss(x: "torch.Tensor", labels: "torch.Tensor") -> "torch.Tensor":
        return torch.nn.functional.cross_entropy(model(x), labels)

    def gradients() -> Gradients:
        model.eval()  # of these layers, Dropout alone does something else in training
        loss(x, labels).backward()
        model.train()
        return {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(x, labels).backward()
        optimizer.step()

    return Trainee(gradients, step)


def training(
    make: Callable[[], Network],
    x: np.ndarray,
    labels: np.ndarray,
    rules: tuple[Callable, Callable, Callable],
    work: float,
) -> Contest:
    """Whole training steps: forward, loss, backward, update.

    Args:
        rules: make the optimiser of the book, of ``fastdl_lib`` and of PyTorch.
        work: what a step counts for.
    """
    book_rule, our_rule, torch_rule = rules
    network = with_biases(make())
    made = {}
    for name, dtype in {BOOK64: np.float64, BOOK32: np.float32}.items():
        book = book_network(network, dtype)
        made[name] = numpy_trainee(book, book_rule(), x.astype(dtype), labels)
    made[OURS] = numpy_trainee(network, our_rule(), x, labels)
    kinds = {name: (layout, False) for name, layout in LAYOUTS.items()}
    if compiler_works():
        kinds[EXPERT] = (LAYOUTS[CHANNELS_LAST], True)
    for name, (layout, expert) in kinds.items():
        model = torch_network(network, layout, expert=expert, trainable=True)
        images = torch.from_numpy(x).to(memory_format=layout)
        wrap = compiled if expert else lambda loss: loss
        made[name] = torch_trainee(model, torch_rule, images, torch.from_numpy(labels), wrap)
    exact = numpy_trainee(
        with_biases(make()).astype(np.float64), None, x.astype(np.float64), labels
    )
    wanted = exact.gradients()
    for name, trainee in made.items():
        check_gradients(name, trainee.gradients(), wanted)
        trainee.step()  # the warm-up
    return Contest({name: clocked(trainee.step) for name, trainee in made.items()}, {"all": work})


def with_biases(network: Network) -> Network:
    """Give every bias a value, as training does at its first step.

    With biases of zero a blank patch gives exactly zero, or with Winograd's algorithm a rounding
    error to either side of it, and ReLU passes a gradient on for one of the three.
    """
    rng = np.random.default_rng(0)
    for name, array in network.parameters.items():
        if name.endswith(".bias"):
            array[...] = 0.1 * rng.standard_normal(array.shape)
    return network


def train(batch: int) -> Contest:
    """AlexNet on the course's photos, with plain gradient descent and any labels."""
    labels = np.random.default_rng(0).integers(1000, size=batch)
    rate = 1e-4  # so small that the same photos again and again do no harm
    rules = (
        partial(BookSGD, rate),
        partial(SGD, rate),
        torch and partial(torch.optim.SGD, lr=rate),
    )
    return training(alexnet, photos(batch), labels, rules, work=batch)


def deep(batch: int) -> Contest:
    """The book's DeepConvNet on MNIST with Adam, as chapter 8 of the book trains it."""
    x, labels = (array[:batch] for array in mnist())
    rate = 1e-3
    rules = (
        partial(BookAdam, rate),
        partial(Adam, rate),
        torch and partial(torch.optim.Adam, lr=rate),
    )
    return training(deep_convnet, x, labels, rules, work=1)


# --- layers of one kind, alone ------------------------------------------------------------------


def alone(kind: str, batch: int) -> Contest:
    """AlexNet's layers of one kind, each on the input that it has in the network, ReLU left out."""
    network, x, inputs = alexnet(), photos(batch), {}
    for name, layer in network.layers.items():
        if layer_kind(layer) == kind:
            inputs[name] = x
        x = layer.forward(x)
    layers = {name: network.layers[name] for name in inputs}
    runs = {OURS: {name: partial(layers[name].forward, x) for name, x in inputs.items()}}
    if kind == "conv":
        runs[IM2COL] = {
            name: partial(by_im2col(layers[name]).forward, x) for name, x in inputs.items()
        }
    for candidate, layout in LAYOUTS.items():
        runs[candidate] = {
            name: no_gradients(
                torch_layer(layers[name]).to(memory_format=layout),
                torch.from_numpy(np.ascontiguousarray(x)).to(memory_format=layout),
            )
            for name, x in inputs.items()
        }
    for name, x in inputs.items():
        wanted = book_layer(layers[name], np.float64).forward(x.astype(np.float64))
        check_outputs({candidate: parts[name] for candidate, parts in runs.items()}, wanted, name)
    passes = {candidate: clocked_parts(parts) for candidate, parts in runs.items()}
    costs = [cost for cost in layer_costs(network, batch) if cost.kind == kind]
    if kind != "conv":
        return Contest(passes, {cost.name: 1e-9 * cost.bytes for cost in costs})
    passes[CEILING] = square_products()
    return Contest(passes, {cost.name: 2e-9 * cost.macs for cost in costs})


SQUARES = {f"{size} x {size}": size for size in (1024, 2048)}


def square_products() -> Pass:
    """The products that chapter 00 takes for the ceiling."""
    products = {}
    for part, size in SQUARES.items():
        a, b, out = np.random.default_rng(0).standard_normal((3, size, size), dtype=np.float32)
        products[part] = partial(np.matmul, a, b, out=out)
        products[part]()
    return clocked_parts(products)


# --- sections -----------------------------------------------------------------------------------


class Kind(NamedTuple):
    """What the sections of one kind measure."""

    title: str
    make: Callable[[int], Contest]
    unit: str  # of the work in a second
    threads: int | None = None  # None: all cores


KINDS = {
    "forward": Kind("AlexNet, forward pass", forward, "images/s"),
    "train": Kind("AlexNet, training step with SGD", train, "images/s"),
    "deep": Kind("DeepConvNet, training step with Adam", deep, "steps/s"),
    "conv": Kind("AlexNet's convolutions alone", partial(alone, "conv"), "GFLOP/s", threads=1),
    "norm": Kind("AlexNet's normalisations alone", partial(alone, "norm"), "GB/s", threads=1),
    "pool": Kind("AlexNet's poolings alone", partial(alone, "pool"), "GB/s", threads=1),
}
DEFAULT = [
    *("forward-1", "forward-16", "forward-64", "train-32", "deep-100"),
    *("conv-64", "norm-16", "pool-16"),
]

TARGETS = {
    ("forward-64", BOOK64): 18,
    ("forward-64", BOOK32): 8,
    ("forward-64", EAGER): 2.2,
    ("forward-64", CHANNELS_LAST): 2.0,
    ("forward-64", EXPERT): 1.0,
    ("forward-16", CHANNELS_LAST): 1.5,
    ("forward-1", CHANNELS_LAST): 1.1,
    ("train-32", BOOK64): 12,
    ("train-32", EAGER): 1.5,
    ("train-32", EXPERT): 1.0,
    ("deep-100", BOOK64): 15,
    ("deep-100", EAGER): 0.75,
    ("conv-64", CHANNELS_LAST): 1.1,
    ("norm-16", EAGER): 6,
    ("pool-16", EAGER): 10,
}
"""How many times faster than whom ``fastdl`` is meant to be; shown, never asserted."""


class Section(NamedTuple):
    """A kind and a batch size, named such as ``forward-64``."""

    kind: Kind
    batch: int
    name: str

    @classmethod
    def parse(cls, text: str) -> "Section":
        kind, _, batch = text.rpartition("-")
        if kind not in KINDS or not batch.isdecimal() or int(batch) < 1:
            raise argparse.ArgumentTypeError(
                f"{text!r}: write a kind of {', '.join(KINDS)} and a batch size, as forward-64."
            )
        return cls(KINDS[kind], int(batch), text)


class Result(NamedTuple):
    """One section's rounds, and the measurements that can be read from them."""

    section: Section
    work: dict[str, float]
    rounds: Rounds
    threads: int
    card: MachineCard

    @property
    def candidates(self) -> list[str]:
        """All but the ceiling, in the order in which they were made."""
        return [name for name in self.rounds.refused if name != CEILING]

    def measured(self, what: str, unit: str, samples: np.ndarray) -> Measurement | None:
        """The samples as a measurement; None where no pass was undisturbed."""
        if not len(samples):
            return None
        return Measurement(what, unit, tuple(samples), Provenance.MEASURED, self.card)

    def ms(self, name: str, parts: Iterable[str]) -> np.ndarray:
        """All undisturbed times of a candidate."""
        return self.rounds.ms(name, self.rounds.where(name), parts)

    def tried(self, name: str) -> int:
        """How often a candidate was timed or should have been, the refused tries included."""
        return len(self.rounds.where(name)) + self.rounds.refused[name].total()

    def row(self, name: str, parts: list[str]) -> dict[str, Any]:
        """What the tables show of a candidate: ratios to ours, times, speed, passes."""
        both, ms = self.rounds.where(name, OURS), self.ms(name, parts)
        ratios = self.rounds.ms(name, both, parts) / self.rounds.ms(OURS, both, parts)
        work = sum(self.work[part] for part in parts)
        return {
            "candidate": name,
            "ratio": self.measured("ratio", "", ratios),
            "ratio_of_minima": min(ms) / min(self.ms(OURS, parts)) if len(both) else None,
            "ms": self.measured("time", "ms", ms),
            "least_ms": min(ms, default=None),
            "speed": self.measured("speed", self.section.kind.unit, 1e3 * work / ms),
            "passes": f"{len(ms)} of {self.tried(name)}",
        }

    def table(self) -> Table:
        """All candidates; where a pass has several parts, each of these first."""
        splits = {"all": list(self.work)}
        if len(self.work) > 1:
            splits = {part: [part] for part in self.work} | splits
        rows = [
            {"part": part, **self.row(name, parts)}
            for part, parts in splits.items()
            for name in self.candidates
        ]
        columns = [
            Column("candidate", "implementation"),
            Column("ratio", "time / time of fastdl", "", Provenance.MEASURED),
            Column("ratio_of_minima", "by minima", "", Provenance.MEASURED),
            Column("ms", "time", "ms", Provenance.MEASURED),
            Column("least_ms", "minimum", "ms", Provenance.MEASURED),
            Column("speed", "speed", self.section.kind.unit, Provenance.MEASURED),
            Column("passes", "undisturbed passes"),
        ]
        if len(self.work) > 1:
            columns.insert(0, Column("part", "layer"))
        kind, batch = self.section.kind, self.section.batch
        caption = f"{kind.title}, batch {batch}, {threads_in_words(self.threads)}"
        if CEILING in self.rounds.refused:
            ceiling = self.ceiling()
            columns.insert(-1, Column("share", "of the ceiling", "%", Provenance.MEASURED))
            for row in rows:
                speed = row["speed"]
                row["share"] = 100 * speed.median / ceiling.median if speed and ceiling else None
            caption += f"; ceiling: a square product in the same rounds, {ceiling}"
        return Table(tuple(columns), tuple(rows), f"{caption}: median (quartiles)")

    def ceiling(self) -> Measurement | None:
        """The speed of the square product that is faster."""
        speeds = [
            self.measured("ceiling", "GFLOP/s", 2e-6 * size**3 / self.ms(CEILING, [part]))
            for part, size in SQUARES.items()
        ]
        return max(filter(None, speeds), key=lambda speed: speed.median, default=None)

    def remark(self) -> str:
        """How many tries did not count, and why."""
        reasons = sum(self.rounds.refused.values(), Counter())
        text = ", ".join(f"{count} because {reason}" for reason, count in reasons.items())
        if len(self.rounds.where(OURS)) < MIN_ROUNDS:
            text += ". Too few passes are left: wait until nothing else runs, or raise --budget"
        return f"Tries that do not count: {text or 'none'}."

    def targets(self) -> list[dict[str, Any]]:
        """A row of the closing table for each target of this section that was measured."""
        rows = {name: self.row(name, list(self.work)) for name in self.candidates}
        return [
            {"section": section, "target": float(target), "threads": self.threads, **rows[name]}
            for (section, name), target in TARGETS.items()
            if section == self.section.name and name in rows
        ]

    def samples(self) -> list[Measurement]:
        """Every undisturbed time, with the number of its round, for the recording."""
        shared = {"section": self.section.name, "batch": self.section.batch, "warmup": 1}
        if torch:
            shared["torch"] = torch.__version__
        return [
            Measurement(
                f"{self.section.name} / {name} / {part}",
                "ms",
                tuple(self.rounds.ms(name, rounds, [part]).round(5)),
                Provenance.MEASURED,
                self.card,
                conditions={
                    **shared,
                    "threads": self.threads,
                    "implementation": name,
                    "part": part,
                    "rounds": rounds,
                    "tried": self.tried(name),
                },
            )
            for name in self.rounds.refused
            if (rounds := self.rounds.where(name))
            for part in (SQUARES if name == CEILING else self.work)
        ]


def run_section(section: Section, threads: int, budget_s: float, card: MachineCard) -> Result:
    """Build, check and time one section's candidates."""
    print(f"\n{section.name}: {section.kind.title}, {threads_in_words(threads)}", flush=True)
    if torch:
        torch.set_num_threads(threads)
    with blas_threads(threads):
        contest = section.kind.make(section.batch)
        always = [OURS, CEILING] if CEILING in contest.passes else [OURS]
        rounds = in_turn(contest.passes, budget_s, always)
    return Result(section, contest.work, rounds, threads, card)


def target_table(results: list[Result]) -> Table | None:
    """The targets beside what was measured; None where no section has any."""
    rows = [row for result in results for row in result.targets()]
    if not rows:
        return None
    columns = (
        Column("section"),
        Column("threads"),
        Column("candidate", "fastdl beside"),
        Column("target", "times faster: target"),
        Column("ratio", "measured", "", Provenance.MEASURED),
        Column("ratio_of_minima", "by minima", "", Provenance.MEASURED),
        Column("passes", "undisturbed passes"),
    )
    return Table(columns, tuple(rows), "Targets (set beforehand) and ratios: median (quartiles)")


def arguments() -> argparse.Namespace:
    """Read and check the command line, before a minute of measuring could be lost."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--sections",
        nargs="+",
        type=Section.parse,
        default=[Section.parse(name) for name in DEFAULT],
        metavar="KIND-BATCH",
        help=f"kinds: {', '.join(KINDS)} (default: {' '.join(DEFAULT)})",
    )
    parser.add_argument("--budget", type=float, default=60, help="seconds a section (default: 60)")
    parser.add_argument("--threads", type=int, help="default: all cores; 1 for conv, norm and pool")
    parser.add_argument("--record", type=Path, help="also write a recording to this .json file")
    chosen = parser.parse_args()
    if not 0 < chosen.budget < float("inf") or (chosen.threads or 1) < 1:
        parser.error("--budget and --threads must be positive.")
    if chosen.record:
        chosen.record.parent.mkdir(parents=True, exist_ok=True)
    return chosen


def main() -> None:
    """Check, measure and print section by section; with ``--record`` also write all samples."""
    chosen = arguments()
    if not torch:
        print("PyTorch is not installed (pip install -e '.[peers]'): measuring the rest.")
    card = machine_card()
    results = []
    for section in chosen.sections:
        threads = chosen.threads or section.kind.threads or card.cores
        results.append(run_section(section, threads, chosen.budget, card))
        print(f"\n{results[-1].table()}")
        print(results[-1].remark(), flush=True)
        gc.collect()  # PyTorch's models refer to themselves: without this they stay for a while
    print(f"\n{card.summary}\nPyTorch {torch.__version__ if torch else 'absent'}")
    if table := target_table(results):
        print(f"\n{table}")
    if chosen.record:
        names = " ".join(section.name for section in chosen.sections)
        command = f"python benchmarks/speed.py --sections {names} --budget {chosen.budget:g}"
        if chosen.threads:
            command += f" --threads {chosen.threads}"
        kept = tuple(sample for result in results for sample in result.samples())
        write_recording(chosen.record, Recording(card, command, kept))
        print(f"\n{len(kept)} measurements written to {chosen.record}")


if __name__ == "__main__":
    main()
