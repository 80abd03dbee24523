"""Measure how fast ``fastdl_lib`` is beside the book's way and PyTorch.

    python benchmarks/speed.py --sections forward-64 train-32 --budget 120

A section is a kind and a batch size. All its candidates compute the same from the same weights,
which is checked before anything is timed, and take turns in one process. Quote the ratios, which
are taken within a round; the milliseconds belong to this machine and this minute.
``benchmarks/README.md`` describes the method and the candidates.
"""

import argparse
import gc
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from binary_contests import BITS, LENGTH, ONE_BIT, PACKED, TWO_ROWS, network, rows, square
from contests import (
    BOOK64,
    CEILING,
    CHANNELS_LAST,
    EAGER,
    EXPERT,
    SQUARES,
    Contest,
    alone,
    deep,
    forward,
    forward_in_bfloat16,
    train,
)
from fair import MIN_ROUNDS, Rounds, in_turn
from gpu_contests import OURS_HALF, gpu_forward, gpu_train
from peer_engines import ONNX_RUNTIME, OPENVINO
from peer_pytorch import torch
from precision_contests import FLOAT16, add, cast, product, stored, stored_as

from fastdl_lib.core.arrays import gpu_available, gpu_status
from fastdl_lib.core.threads import blas_threads, threads_in_words
from fastdl_lib.course.record import check_place, save
from fastdl_lib.measuring.evidence import Column, Measurement, Provenance, Table
from fastdl_lib.measuring.machine import MachineCard, machine_card
from fastdl_lib.measuring.recordings import Recording

# --- sections -----------------------------------------------------------------------------------


class Kind(NamedTuple):
    """What the sections of one kind measure."""

    title: str
    make: Callable[[int], Contest]
    unit: str  # of the work in a second
    threads: int | None = None  # None: all cores
    on_gpu: bool = False
    size: str = "batch {}"  # what the number in a section's name is


KINDS = {
    "forward": Kind("AlexNet, forward pass", forward, "images/s"),
    "bfloat16": Kind("AlexNet, forward pass in bfloat16", forward_in_bfloat16, "images/s"),
    "train": Kind("AlexNet, training step with SGD", train, "images/s"),
    "deep": Kind("DeepConvNet, training step with Adam", deep, "steps/s"),
    "conv": Kind("AlexNet's convolutions alone", partial(alone, "conv"), "GFLOP/s", threads=1),
    "norm": Kind("AlexNet's normalisations alone", partial(alone, "norm"), "GB/s", threads=1),
    "pool": Kind("AlexNet's poolings alone", partial(alone, "pool"), "GB/s", threads=1),
    "stored": Kind("AlexNet's fc6 from narrow weights", stored, "images/s", threads=1),
    "product": Kind("A square product", product, "GFLOP/s", threads=1, size="{0} x {0}"),
    "cast": Kind("float32 to fewer bits", cast, "Gvalues/s", threads=1, size="{} million values"),
    "add": Kind("x + y", add, "Gvalues/s", threads=1, size="{} million values"),
    "binary": Kind(
        "A square product of +1 and -1", square, "GFLOP/s of float32's", size="{0} x {0} x {0}"
    ),
    "binary-rows": Kind(
        "A product of +1 and -1", rows, "GFLOP/s of float32's", size=f"{{}} x {LENGTH} x {LENGTH}"
    ),
    "binary-network": Kind("784-3x2048-10, forward pass", network, "images/s"),
    "gpu-forward": Kind("AlexNet, forward pass on the GPU", gpu_forward, "images/s", on_gpu=True),
    "gpu-train": Kind("AlexNet, training step on the GPU", gpu_train, "images/s", on_gpu=True),
}
DEFAULT = [
    *("forward-1", "forward-16", "forward-64", "train-32", "deep-100", "bfloat16-64"),
    *("conv-64", "norm-16", "pool-16"),
    *("stored-1", "stored-8", "product-512", "cast-16", "add-16"),
    *("binary-rows-100", "binary-1024", "binary-4096", "binary-network-100"),
]
DEFAULT_ON_GPU = ["gpu-forward-128", "gpu-train-128"]

TARGETS = {
    ("forward-64", EXPERT): 1.3,
    ("forward-64", CHANNELS_LAST): 3,
    ("forward-64", BOOK64): 25,
    ("forward-64", ONNX_RUNTIME): 1,
    ("forward-64", OPENVINO): 1,
    ("forward-16", EXPERT): 1.1,
    ("forward-16", CHANNELS_LAST): 1.8,
    ("forward-1", EXPERT): 0.85,
    ("forward-1", CHANNELS_LAST): 1.25,
    ("train-32", EXPERT): 1.35,
    ("train-32", EAGER): 2,
    ("train-32", BOOK64): 18,
    ("deep-100", EAGER): 1.3,
    ("deep-100", CHANNELS_LAST): 1.1,
    ("deep-100", BOOK64): 25,
    ("conv-64", CHANNELS_LAST): 1.4,
    ("norm-16", EAGER): 15,
    ("pool-16", EAGER): 15,
    ("stored-1", stored_as("bfloat16")): "0.62 or less",
    ("stored-1", stored_as("int8")): "0.4 or less",
    ("cast-16", FLOAT16): 3,
    ("binary-rows-100", BITS): "1/14 or less",
    ("binary-rows-100", PACKED): "1/8 or less",
    ("binary-1024", BITS): "1/10 or less",
    ("binary-4096", BITS): "1/12 or less",
    ("binary-4096", TWO_ROWS): "1/1.6 or less",
    ("binary-network-100", ONE_BIT): "1/5 or less",
    ("gpu-forward-128", EAGER): 0.5,
    ("gpu-forward-128", CHANNELS_LAST): 0.5,
    ("gpu-forward-128", OURS_HALF): "0.5 or less",
    ("gpu-train-128", EAGER): 0.5,
    ("gpu-train-128", CHANNELS_LAST): 0.5,
    ("gpu-train-128", OURS_HALF): "0.5 or less",
}
"""How many times faster than whom ``fastdl`` is meant to be; shown, never asserted. On the GPU that
is its float32: half of cuDNN's speed, and half of its own float16's or less. In ``stored`` it is
NumPy in float32 that all are compared with: narrow weights shall take so much of its time. So it is
in ``binary`` and ``binary-rows``, and in ``binary-network`` with the float32 twin."""


class Section(NamedTuple):
    """A kind and a batch size, or another size, named such as ``forward-64``."""

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
        if KINDS[kind].on_gpu and not gpu_available():
            raise argparse.ArgumentTypeError(f"{text} needs a GPU. {gpu_status().reason}")
        return cls(KINDS[kind], int(batch), text)


class Result(NamedTuple):
    """One section's rounds, and the measurements that can be read from them."""

    section: Section
    work: dict[str, float]
    reference: str
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
        """What the tables show of a candidate: ratios to the reference, times, speed, passes."""
        both, ms = self.rounds.where(name, self.reference), self.ms(name, parts)
        ratios = self.rounds.ms(name, both, parts) / self.rounds.ms(self.reference, both, parts)
        work = sum(self.work[part] for part in parts)
        return {
            "candidate": name,
            "ratio": self.measured("ratio", "", ratios),
            "ratio_of_minima": min(ms) / min(self.ms(self.reference, parts)) if len(both) else None,
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
            Column("ratio", f"time / time of {self.reference}", "", Provenance.MEASURED),
            Column("ratio_of_minima", "by minima", "", Provenance.MEASURED),
            Column("ms", "time", "ms", Provenance.MEASURED),
            Column("least_ms", "minimum", "ms", Provenance.MEASURED),
            Column("speed", "speed", self.section.kind.unit, Provenance.MEASURED),
            Column("passes", "undisturbed passes"),
        ]
        if len(self.work) > 1:
            columns.insert(0, Column("part", "layer"))
        kind, size = self.section.kind, self.section.kind.size.format(self.section.batch)
        place = where(self.section, self.threads, self.card)
        caption = f"{kind.title}, {size}, {place}"
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
        if len(self.rounds.where(self.reference)) < MIN_ROUNDS:
            text += ". Too few passes are left: wait until nothing else runs, or raise --budget"
        return f"Tries that do not count: {text or 'none'}."

    def targets(self) -> list[dict[str, Any]]:
        """A row of the closing table for each target of this section that was measured."""
        rows = {name: self.row(name, list(self.work)) for name in self.candidates}
        return [
            {"section": section, "target": str(target), "threads": self.threads, **rows[name]}
            for (section, name), target in TARGETS.items()
            if section == self.section.name and name in rows
        ]

    def samples(self) -> list[Measurement]:
        """Every undisturbed time, with the number of its round, for the recording."""
        shared = {"section": self.section.name, "batch": self.section.batch, "warmup": 1}
        shared["reference"] = self.reference
        shared["device"] = "gpu" if self.section.kind.on_gpu else "cpu"
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


def where(section: Section, threads: int, card: MachineCard) -> str:
    """The GPU's name, or the number of threads in words."""
    return card.gpu if section.kind.on_gpu else threads_in_words(threads)


def run_section(section: Section, threads: int, budget_s: float, card: MachineCard) -> Result:
    """Build, check and time one section's candidates."""
    print(f"\n{section.name}: {section.kind.title}, {where(section, threads, card)}", flush=True)
    if torch:
        torch.set_num_threads(threads)
    with blas_threads(threads):
        contest = section.kind.make(section.batch)
        always = [contest.reference, *({CEILING} & contest.passes.keys())]
        rounds = in_turn(contest.passes, budget_s, always)
    return Result(section, contest.work, contest.reference, rounds, threads, card)


def target_table(results: list[Result]) -> Table | None:
    """The targets beside what was measured; None where no section has any."""
    rows = [row for result in results for row in result.targets()]
    if not rows:
        return None
    columns = (
        Column("section"),
        Column("threads"),
        Column("candidate", "beside"),
        Column("target", "times faster: target"),
        Column("ratio", "measured", "", Provenance.MEASURED),
        Column("ratio_of_minima", "by minima", "", Provenance.MEASURED),
        Column("passes", "undisturbed passes"),
    )
    return Table(columns, tuple(rows), "Targets (set beforehand) and ratios: median (quartiles)")


def arguments() -> argparse.Namespace:
    """Read and check the command line, before a minute of measuring could be lost."""
    default = DEFAULT + (DEFAULT_ON_GPU if gpu_available() else [])
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--sections",
        nargs="+",
        type=Section.parse,
        default=[Section.parse(name) for name in default],
        metavar="KIND-SIZE",
        help=f"kinds: {', '.join(KINDS)} (default: {' '.join(default)})",
    )
    parser.add_argument("--budget", type=float, default=60, help="seconds a section (default: 60)")
    parser.add_argument("--threads", type=int, help="default: all cores; 1 for conv, norm and pool")
    parser.add_argument("--record", type=Path, help="also write a recording to this .json file")
    chosen = parser.parse_args()
    if not 0 < chosen.budget < float("inf") or (chosen.threads or 1) < 1:
        parser.error("--budget and --threads must be positive.")
    if chosen.record:
        check_place(chosen.record)
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
        save(Recording(card, command, kept), chosen.record)


if __name__ == "__main__":
    main()
