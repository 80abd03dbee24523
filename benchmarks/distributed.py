"""Measure all-reduce against a memory copy, and training on several ranks against one.

    python benchmarks/distributed.py --ranks 2 --rounds 12

All of it runs with one BLAS thread a rank. The ways to train take turns within one job, in a new
order each round; ratios are taken within a round. A round in which other programs took a core from
a rank does not count (``README.md``, method). Quote the ratios; the rest belongs to this machine
and this minute.
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from fair import MIN_ROUNDS

from fastdl_lib.course.ranks import run_ranks
from fastdl_lib.course.record import check_place, save
from fastdl_lib.measuring.evidence import Column, Measurement, Provenance, Table
from fastdl_lib.measuring.machine import MachineCard
from fastdl_lib.measuring.recordings import Recording

ALEXNET_GRADIENTS = 60_965_224  # float32 values
CORE_SHARE = 0.95  # that each rank must get during a pass, for its round to count
LEAST_SHARE = 0.05  # of a step: less communication is noise here, and so is what is hidden of it
LIMIT_S = 3600.0

ALONE, TOGETHER, LATE = "one rank", "all ranks", "all ranks, no overlap"
SILENT, WEAK = "all ranks, no communication", "all ranks, a whole batch each"


class Contest(NamedTuple):
    """A network, the images of a step, and the steps of a sample."""

    network: str
    batch: int
    steps: int


CONTESTS = [
    Contest("deep_convnet", 100, 10),
    Contest("deep_convnet", 400, 3),
    Contest("alexnet", 64, 1),
    Contest("alexnet", 128, 1),
]


def spread(samples: np.ndarray) -> str:
    """Median and quartiles."""
    low, middle, high = np.percentile(samples, [25, 50, 75])
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def quiet_rounds(result: dict[str, Any]) -> list[int]:
    """The rounds in which every rank had its core to itself."""
    shares = np.array(list(result["core_share"].values())).min(axis=0)
    return np.flatnonzero(shares >= CORE_SHARE).tolist()


def columns(ranks: int) -> tuple[Column, ...]:
    """The table's columns."""
    measured = Provenance.MEASURED
    return (
        Column("training"),
        Column("rounds", "rounds that count"),
        Column("one_ms", "one rank", "ms", measured),
        Column("all_ms", f"{ranks} ranks", "ms", measured),
        Column("strong", "speed-up", "", measured),
        Column("strong_minima", "of the minima", "", measured),
        Column("weak", "speed-up, a whole batch each", "", measured),
        Column("silent", "speed-up without communication", "", measured),
        Column("communication", "communication in a step without overlap", "%", measured),
        Column("hidden", "of it hidden by overlap", "%", measured),
    )


def training_row(contest: Contest, ranks: int, result: dict[str, Any]) -> dict[str, Any]:
    """One network's ratios, round by round."""
    kept, rounds = quiet_rounds(result), len(result["core_share"][ALONE])
    name = f"{result['network']}, batch {contest.batch}"
    if len(kept) < MIN_ROUNDS:
        few = dict.fromkeys(column.key for column in columns(ranks))
        return few | {"training": name, "rounds": f"{len(kept)} of {rounds}: too few"}
    times = {kind: np.array(samples)[kept] for kind, samples in result["step_s"].items()}
    least = {kind: samples.min() for kind, samples in times.items()}
    # What an all-reduce after backward adds to a step, and how much of it overlap takes away.
    added, left = least[LATE] - least[SILENT], least[TOGETHER] - least[SILENT]
    return {
        "training": name,
        "rounds": f"{len(kept)} of {rounds}",
        "one_ms": f"{1e3 * np.median(times[ALONE]):,.1f}",
        "all_ms": f"{1e3 * np.median(times[TOGETHER]):,.1f}",
        "strong": spread(times[ALONE] / times[TOGETHER]),
        "strong_minima": f"{least[ALONE] / least[TOGETHER]:.2f}",
        "weak": spread(ranks * times[ALONE] / times[WEAK]),
        "silent": spread(times[ALONE] / times[SILENT]),
        "communication": f"{100 * max(0.0, added) / least[LATE]:.1f}",
        "hidden": f"{100 * (1 - left / added):.0f}" if added > LEAST_SHARE * least[LATE] else "-",
    }


def measurements(
    name: str, samples: dict[str, list[float]], card: MachineCard, **conditions: Any
) -> list[Measurement]:
    """Seconds as the recording keeps them."""
    return [
        Measurement(
            f"{name}, {kind}", "s", tuple(times), Provenance.MEASURED, card, conditions=conditions
        )
        for kind, times in samples.items()
    ]


def main() -> None:
    """Measure and print; with ``--record`` also write all samples."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--record", type=Path)
    chosen = parser.parse_args()
    if chosen.record:
        check_place(chosen.record)
    size_bytes = 4 * ALEXNET_GRADIENTS
    common = ["--device", "cpu", "--rounds", chosen.rounds]
    options = {"show": False, "timeout_s": LIMIT_S}

    words = ["all-reduce", "--bytes", size_bytes, *common]
    result = run_ranks(chosen.ranks, *words, **options)
    card = MachineCard.from_dict(result["machine"])
    threads = result["threads"]
    row = result["sizes"][0]
    kept = measurements(
        f"{row['bytes']:,} bytes",
        {"all-reduce": row["all_reduce_s"], "copy": row["copy_s"]},
        card,
        ranks=chosen.ranks,
        threads=threads,
    )
    gb = row["bytes"] / 1e9
    reduced, copied = (np.array(row[key]) for key in ("all_reduce_s", "copy_s"))
    print(
        f"All-reduce of {ALEXNET_GRADIENTS:,} float32 values on {chosen.ranks} ranks: "
        f"{spread(gb / reduced)} GB/s; memory copy of one rank: {spread(gb / copied)} GB/s; "
        f"ratio {spread(copied / reduced)} ({Provenance.MEASURED})",
        flush=True,
    )

    rows = []
    for contest in CONTESTS:
        words = ["steps", "--network", contest.network, "--batch", contest.batch]
        result = run_ranks(chosen.ranks, *words, "--steps", contest.steps, *common, **options)
        rows.append(training_row(contest, chosen.ranks, result))
        name = f"{result['network']} step, batch {contest.batch}"
        where = {"ranks": chosen.ranks, "threads": threads, "batch": contest.batch}
        kept += measurements(name, result["step_s"], card, **where)
    caption = f"{chosen.ranks} ranks, one BLAS thread each: {card.summary} (measured here)"
    print(f"\n{Table(columns(chosen.ranks), tuple(rows), caption)}")
    if chosen.record:
        command = f"python benchmarks/distributed.py --ranks {chosen.ranks}"
        command += f" --rounds {chosen.rounds}"
        save(Recording(card, command, tuple(kept)), chosen.record)


if __name__ == "__main__":
    main()
