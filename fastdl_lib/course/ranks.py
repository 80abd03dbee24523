"""The MPI jobs of chapter 04 on two ranks: measured here, or, where MPI is missing, replayed.

``python -m fastdl_lib.course.ranks`` runs them all and writes ``data/recordings/ranks.json``.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastdl_lib.core.datasets import data_folder
from fastdl_lib.measuring.evidence import Measurement, Provenance
from fastdl_lib.measuring.machine import MachineCard
from fastdl_lib.measuring.recordings import Recording, read_recording, write_recording
from fastdl_lib.scaling.mpi import mpi_status, run_ranks

__all__ = ["RANK_RUNS", "rank_run"]

_TRAINING = (
    *("train", "--images", 2000, "--test", 1000, "--batch", 100),
    *("--optimizer", "sgd", "--learning-rate", 0.02),
)

RANK_RUNS: Mapping[str, tuple[Any, ...]] = {
    "all-reduce": (2, "all-reduce", "--bytes", 4, 494_208, "--rounds", 4),
    "steps, batch 100": (2, "steps", "--batch", 100, "--steps", 3, "--rounds", 4),
    "steps, one layer": (
        *(2, "steps", "--network", "one_layer", "--batch", 100, "--steps", 100, "--rounds", 4),
    ),
    "training, 1 rank": (1, *_TRAINING),
    "training, 2 ranks": (2, *_TRAINING),
}
"""Name of a run: the number of ranks, then the words of ``fastdl_lib.scaling.workers``.

494,208 bytes are the gradients of DeepConvNet.
"""


def rank_run(name: str, show: bool = False) -> dict[str, Measurement]:
    """Run one of :data:`RANK_RUNS`; where MPI is missing, read what was recorded of it.

    Args:
        show: print what rank 0 prints.

    Returns:
        For an all-reduce its seconds, by the number of bytes (as text); for steps the seconds of
        one, by the way to train; for a training its ``"seconds"``, ``"loss"`` (nats, of the epoch)
        and ``"accuracy"`` (%, of the test images).

    Raises:
        KeyError: there is no such run.
        RuntimeError, TimeoutError: as :func:`fastdl_lib.scaling.mpi.run_ranks`.

    >>> sorted(rank_run("all-reduce"))
    ['4', '494208']
    """
    if name not in RANK_RUNS:
        raise KeyError(f"there is no run {name!r}; there are {sorted(RANK_RUNS)}.")
    if not mpi_status().available:
        recorded = read_recording(data_folder() / "recordings" / "ranks.json").select(run=name)
        return {m.conditions["what"]: m for m in recorded}
    ranks, *words = RANK_RUNS[name]
    result = run_ranks(ranks, *words, "--device", "cpu", show=show)
    card = MachineCard.from_dict(result["machine"])
    return {
        what: Measurement(
            f"{name}, {what}",
            unit,
            tuple(samples),
            Provenance.MEASURED,
            machine=card,
            conditions={"run": name, "what": what, "ranks": ranks, "threads": result["threads"]},
        )
        for what, (unit, samples) in _samples(result).items()
    }


def _samples(result: Mapping[str, Any]) -> dict[str, tuple[str, list[float]]]:
    """Name to unit and samples."""
    if result["job"] == "all-reduce":
        return {str(row["bytes"]): ("s", row["all_reduce_s"]) for row in result["sizes"]}
    if result["job"] == "steps":
        return {kind: ("s", samples) for kind, samples in result["step_s"].items()}
    return {
        "seconds": ("s", [result["seconds"]]),
        "loss": ("nats", [result["epochs"][-1]["loss"]]),
        "accuracy": ("%", [100 * result["test_accuracy"]]),
    }


def main(arguments: list[str] | None = None) -> int:
    """Run all and write the recording."""
    parser = argparse.ArgumentParser(
        prog="python -m fastdl_lib.course.ranks",
        description="Run the MPI jobs of chapter 04 on this machine and record them.",
    )
    default = data_folder() / "recordings" / "ranks.json"
    parser.add_argument("--out", type=Path, default=default, help="the file")
    options = parser.parse_args(arguments)
    if not mpi_status().available:
        print(mpi_status().reason, file=sys.stderr)
        return 1
    found = [m for name in RANK_RUNS for m in rank_run(name, show=True).values()]
    command = "python -m fastdl_lib.course.ranks"
    write_recording(options.out, Recording(found[0].machine, command, tuple(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
