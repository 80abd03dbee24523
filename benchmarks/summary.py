"""The targets beside what ``speed.py`` recorded, a column for each machine, in Markdown.

    .venv/bin/python benchmarks/summary.py data/recordings/speed_*.json

A ratio is the other's time over that of ``fastdl``, median of the rounds in which both have an
undisturbed pass; where a target is a share of the reference's time, that share. Losses stay in.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
from contests import OURS
from speed import TARGETS

from fastdl_lib.measuring.recordings import Recording, read_recording

Times = dict[int, float]  # milliseconds by the number of the round


def passes(recording: Recording, section: str) -> tuple[dict[str, Times], str]:
    """All parts of each round's pass added up, by implementation; and who the others' times are
    divided by."""
    found: dict[str, Times] = defaultdict(lambda: defaultdict(float))
    reference = OURS
    for m in recording.measurements:
        if m.conditions["section"] != section:
            continue
        reference = m.conditions.get("reference", OURS)
        for number, ms in zip(m.conditions["rounds"], m.samples, strict=True):
            found[m.conditions["implementation"]][number] += ms
    return found, reference


def cell(times: dict[str, Times], other: str, reference: str) -> str:
    """Median and quartiles of the ratio, and of how many rounds."""
    both = sorted(times.get(other, {}).keys() & times.get(reference, {}).keys())
    if not both:
        return "-"
    ratios = [times[other][i] / times[reference][i] for i in both]
    low, middle, high = np.percentile(ratios, (25, 50, 75))
    return f"{middle:.3g} ({low:.3g}-{high:.3g}), {len(both)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recordings", nargs="+", type=Path)
    recordings = [read_recording(path) for path in parser.parse_args().recordings]
    machines = [f"{r.machine.cpu}, {r.machine.date}" for r in recordings]
    print(f"| section | beside | target | {' | '.join(machines)} |")
    print("|---|---|---|" + "---|" * len(machines))
    for (section, other), target in TARGETS.items():
        measured = (passes(recording, section) for recording in recordings)
        cells = [cell(times, other, reference) for times, reference in measured]
        if any(text != "-" for text in cells):
            print(f"| `{section}` | {other} | {target} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
