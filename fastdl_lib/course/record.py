"""The one recorder: where a recording goes and how it is kept.

``python -m fastdl_lib.course.record`` (or ``make record``) measures this machine in eight minutes
and writes ``data/recordings/machine_<name>_<date>.json``; ``--check FILE`` judges a
recording. :mod:`fastdl_lib.course.machine_parts` says what it holds,
:mod:`fastdl_lib.course.plausible` what cannot be. ``record ranks`` records
chapter 04's jobs of several ranks (:mod:`fastdl_lib.course.ranks`) instead, ``record chip`` chapter
06's C files (:mod:`fastdl_lib.course.chip`).
"""

import argparse
import math
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import psutil

from fastdl_lib.core.datasets import data_folder
from fastdl_lib.core.files import check_destination
from fastdl_lib.course import chip, ranks
from fastdl_lib.course.machine_parts import MINUTES, PARTS, Plan, measure_machine
from fastdl_lib.course.plausible import check_recording
from fastdl_lib.measuring.machine import MachineCard, machine_card
from fastdl_lib.measuring.recordings import Recording, read_recording, write_recording
from fastdl_lib.measuring.timing import time_scale

OTHERS = {"ranks": ranks, "chip": chip}
BUSY_PERCENT = 20  # of one core, that other programs use before the run

# --- where a recording goes ---------------------------------------------------------------------


def check_place(path: Path, machine: MachineCard | None = None) -> None:
    """Refuse, before anything is measured, a place where no recording can or must be written, nor,
    where ``machine`` is given, over the recording of another one.

    Raises:
        ValueError: the name is no .json file's, or what is there is not the same kind of recording.
        OSError: as :func:`fastdl_lib.core.files.check_destination`.
    """
    if path.suffix != ".json":
        raise ValueError(f"a recording is a .json file, got the name {path.name!r}.")
    check_destination(path)
    if not path.exists():
        return
    there = read_recording(path).machine
    if machine and not there.is_of(machine):
        raise ValueError(
            f"{path.name} is the recording of another machine ({there.summary}); "
            "give yours another name with --out."
        )


def save(recording: Recording, path: Path) -> Recording:
    """Write the whole file or nothing, say so, and return what is read back from it.

    What was measured is *recorded* there. Call :func:`check_place` before the work.
    """
    check_place(path)
    write_recording(path, recording)
    print(f"{len(recording.measurements)} measurements written to {path.name}", flush=True)
    return read_recording(path)


def recording_name(card: MachineCard) -> str:
    """The file's name without its ending: by the GPU, or the CPU where there is none, and day."""
    device = card.gpu if card.has_gpu else card.cpu
    return f"machine_{re.sub(r'[^a-z0-9]+', '_', device.lower()).strip('_')}_{card.date}"


# --- the command --------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Record this machine, or check a recording, as the command line says; return exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m fastdl_lib.course.record",
        description="Measure this machine and write what came out as a recording.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="parts:\n" + "\n".join(f"  {part:9} {what}" for part, what in PARTS.items()),
    )
    add = parser.add_argument
    what = "this machine (default), or, with --out alone, chapter 04's jobs of two ranks or 06's C"
    add("what", nargs="?", choices=["machine", *OTHERS], default="machine", help=what)
    files = "data/recordings/machine_<name>_<date>.json, or ranks.json or chip.json there"
    add("--out", type=Path, help=f"the file (default: {files})")
    add("--minutes", type=float, default=MINUTES, help="in all (default: %(default)g)")
    add("--parts", nargs="+", choices=PARTS, metavar="PART", help="these alone; needs --out")
    add("--check", type=Path, metavar="FILE", help="measure nothing, judge this recording")
    options = parser.parse_args(arguments)
    if not 0 < options.minutes < math.inf:
        parser.error(f"--minutes must be above 0, got {options.minutes:g}.")
    if options.parts and not options.out:
        parser.error("--parts makes no whole recording: say with --out where it shall go.")
    other = OTHERS.get(options.what)
    if other and (options.parts or options.check):
        parser.error(f"--parts and --check are for a machine's recording, not for {options.what}.")
    try:
        if other:
            path = options.out or data_folder() / "recordings" / other.RECORDING
            check_place(path)
            # Old ones name rank_runs and chip_runs.
            if path.exists() and options.what.rstrip("s") not in read_recording(path).command:
                raise ValueError(
                    f"{path.name} is a recording of something else: give --out another name."
                )
            save(other.measure(), path)
            return 0
        if options.check:
            return _report(options.check.name, check_recording(read_recording(options.check)))
        return _record(options)
    except KeyboardInterrupt:
        print("Interrupted: nothing was written.")
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 1


def _record(options: argparse.Namespace) -> int:
    card = machine_card()
    path = options.out or data_folder() / "recordings" / f"{recording_name(card)}.json"
    check_place(path, card)
    parts = options.parts or list(PARTS)
    there = read_recording(path).measurements if path.exists() else ()
    lost = sorted({str(m.conditions.get("part")) for m in there} - set(parts))
    if lost:
        raise ValueError(f"{path.name} also holds {', '.join(lost)}: give another name with --out.")
    time_scale()  # refused now rather than in a minute
    # While this process sleeps, all that runs is others'.
    others = psutil.cpu_percent(interval=1.0) * (psutil.cpu_count() or 1)
    if others > BUSY_PERCENT:
        print(f"Other programs use {others:.0f} % of a core: stop them, or they are measured too.")
    plan = Plan(minutes=options.minutes, parts=tuple(parts))
    recording = measure_machine(plan, partial(print, flush=True))
    return _report(path.name, check_recording(save(recording, path)))


def _report(name: str, faults: list[str]) -> int:
    verdict = "accepted."
    for fault in faults:
        print(f"  {fault}")
        verdict = "not accepted. Record again, on a machine that does nothing else."
    print(f"{name} is {verdict}")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
