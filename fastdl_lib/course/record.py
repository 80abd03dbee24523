"""The one recorder: where a recording goes, how it is kept, and whether it can be.

``python -m fastdl_lib.course.record`` (or ``make record``) measures this machine in eight minutes
and writes ``data/recordings/machine_<name>_<date>.json``; ``--check FILE`` judges a recording by
what cannot be. :mod:`fastdl_lib.course.machine_parts` says what it holds. ``record ranks`` records
chapter 04's jobs of several ranks (:mod:`fastdl_lib.course.ranks`) instead.
"""

import argparse
import datetime
import json
import math
import os
import platform
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from fastdl_lib.core.datasets import data_folder
from fastdl_lib.course import ranks
from fastdl_lib.course.machine_parts import MINUTES, PARTS, ROWS, Plan, measure_machine
from fastdl_lib.measuring.costs import layer_costs
from fastdl_lib.measuring.evidence import Measurement, Provenance
from fastdl_lib.measuring.machine import MachineCard, machine_card
from fastdl_lib.measuring.recordings import Recording, read_recording, write_recording
from fastdl_lib.measuring.timing import time_scale
from fastdl_lib.nn.network import Network
from fastdl_lib.nn.zoo import alexnet

BUSY_PERCENT = 20  # of one core, that other programs use before the run

# --- where a recording goes ---------------------------------------------------------------------


def check_place(path: Path, machine: MachineCard | None = None) -> None:
    """Refuse, before anything is measured, a place where no recording can or must be written, nor,
    where ``machine`` is given, over the recording of another one.

    Raises:
        ValueError: the name is no .json file's, or what is there is not the same kind of recording.
        FileNotFoundError, PermissionError: the folder is missing or cannot be written to.
    """
    if path.suffix != ".json" or path.is_dir():
        raise ValueError(f"a recording is a .json file, got the name {path.name!r}.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent.name!r}; make it.")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"the folder {path.parent.name!r} cannot be written to.")
    if not path.exists():
        return
    there = read_recording(path).machine
    if machine and any(getattr(there, k) != getattr(machine, k) for k in ("cpu", "cores", "gpu")):
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
    device = card.gpu if _has_gpu(card) else card.cpu
    return f"machine_{re.sub(r'[^a-z0-9]+', '_', device.lower()).strip('_')}_{card.date}"


def _has_gpu(card: MachineCard) -> bool:
    return not card.gpu.startswith("none")


# --- is it plausible? ---------------------------------------------------------------------------

LEAST_SAMPLES = 3
# The ceilings were not measured in the same moment: a machine's clock rises and falls by so much.
ABOVE_PEAK = 1.25
# How many times fewer multiplications than MACs Winograd's way takes at most: with 5 x 5 taps and
# tiles of 8 pixels (20 / 8) ** 2. A word of 64 bits does 64 MACs of a binary product.
SAVES = {"auto": 6.25, "winograd": 6.25, "cudnn": 6.25, "bits": 64, "bits, packing counted": 64}
# What no hardware does. A core of a CPU: two FMA units of 16 float32 lanes at 6 GHz, GFLOP/s. The
# memory of a CPU and, far above the largest datasheet's numbers, a GPU.
CPU_CORE_GFLOPS = 2 * 2 * 16 * 6.0
MOST = {("cpu", "GB/s"): 2_000, ("gpu", "GB/s"): 20_000, ("gpu", "GFLOP/s"): 5e6}
# The layers' times added up, by the whole pass's. Down to 0.4, because a training step also moves
# the weights, which at small batches takes longer than the layers. Up to 2.5, because a GPU is
# waited for after every layer, so that asking for the next one no longer overlaps with the work.
LAYERS_BY_PASS = (0.4, 2.5)
FIRST_DATE = datetime.date(2025, 1, 1)
# Parts that were thought of after the first recordings, which may lack them whole.
LATER = ("dtypes", "binary")
# What starts at a root, a home or a drive; a model's name may hold a slash.
_PATH = re.compile(r"(?<![\w.])(?:~?/|[A-Za-z]:\\|\\\\)\w")


def check_recording(recording: Recording, network: Network | None = None) -> list[str]:
    """Say what in a machine's recording cannot be: one sentence a fault, none when it is accepted.

    ``network`` is what was measured; by default the course's AlexNet.

    >>> from fastdl_lib.measuring.recordings import machine_recordings
    >>> [fault for run in machine_recordings().values() for fault in check_recording(run)]
    []
    """
    network, found = network or alexnet(), recording.measurements
    faults = [*_card_faults(recording), *_missing(recording)]
    faults += (fault for measurement in found for fault in _own_faults(measurement))
    seen = Counter(json.dumps(m.conditions, sort_keys=True) for m in found)
    twice = [key for key, count in seen.items() if count > 1]
    if twice:
        faults.append(f"measured more than once under the same conditions: {twice[0]}.")
    if sum(len(set(m.samples)) == 1 for m in found) > len(found) / 2:
        faults.append("most samples are all the same: no clock repeats itself like that.")
    if not faults:  # from here on the conditions are there and the numbers are positive
        faults = [*_layer_faults(recording, network), *_peak_faults(recording, network)]
    return faults


def _card_faults(recording: Recording) -> Iterator[str]:
    card = recording.machine
    try:
        day = datetime.date.fromisoformat(card.date)
    except ValueError:
        yield f"the date {card.date!r} is none; it must be YYYY-MM-DD."
    else:
        tomorrow = datetime.date.today() + datetime.timedelta(days=1)  # as it is somewhere already
        if not FIRST_DATE <= day <= tomorrow:
            yield f"the date {card.date} is not from {FIRST_DATE} to today."
    for name in ("numpy", "numba", "fastdl", *(("cupy", "cuda") if _has_gpu(card) else ())):
        if not card.versions.get(name):
            yield f"the machine card does not name the version of {name}."
    if "stand-in" in card.versions.get("cupy", ""):
        yield "the GPU is the tests' stand-in."
    host = platform.node()
    # A word before the @ and one behind it; a CPU's name may hold "CPU @ 3.50GHz".
    names = r"\w@\w" + (rf"|\b{re.escape(host)}\b" if len(host) > 3 else "")
    measured = [m.to_dict() for m in recording.measurements]
    for text in dict.fromkeys(_texts([recording.command, card.to_dict(), measured])):
        if _PATH.search(text):
            yield f"{text!r} holds a path."
        elif re.search(names, text):
            yield f"{text!r} names a user or a computer."


def _texts(value: Any) -> Iterator[str]:
    """Every text in what JSON can hold."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, Mapping)):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(inner)


def _missing(recording: Recording) -> Iterator[str]:
    """Every row of the table is there for each device, but for parts that came later."""
    devices = {"cpu", "gpu"} if _has_gpu(recording.machine) else {"cpu"}
    for row in ROWS:
        if row.part not in LATER or recording.has(part=row.part):
            for device in (device for device in row.devices if device in devices):
                if not recording.has(**row.fixed, device=device):
                    yield f"nothing was measured of {row.fixed} on the {device}."


def _own_faults(measurement: Measurement) -> Iterator[str]:
    """What is wrong with one measurement, whatever the others say."""
    name, conditions = measurement.name, measurement.conditions
    row = next((row for row in ROWS if row.fixed.items() <= conditions.items()), None)
    if row is None:
        yield f"{name!r} is of no part of {list(PARTS)}, or of nothing that its part holds."
        return
    threads = {"threads": int} if conditions.get("device") == "cpu" else {}
    for key, kind in {"device": str, **row.says, **threads}.items():
        value = conditions.get(key)
        if value is None:
            yield f"{name!r} does not say its {key}."
        # 0 threads stand for a number that the BLAS does not tell.
        elif isinstance(kind, type) and (
            type(value) is not kind or (kind is int and value < (key != "threads"))
        ):
            yield f"{name!r} has the {key} {value!r}."
    if conditions.get("device") not in ("cpu", "gpu"):
        yield f"{name!r} ran on the device {conditions.get('device')!r}, neither cpu nor gpu."
    if measurement.unit != row.unit:
        yield f"{name!r} is in {measurement.unit!r}, expected {row.unit!r}."
    if measurement.provenance is not Provenance.RECORDED:
        yield f"{name!r} is {measurement.provenance}, not measured."
    low, high = min(measurement.samples), max(measurement.samples)
    if low <= 0 or (row.unit == "%" and high > 100):
        yield f"{name!r} holds {low if low <= 0 else high} {row.unit}."
    if row.unit != "%" and len(measurement.samples) < LEAST_SAMPLES:
        yield f"{name!r} has {len(measurement.samples)} samples, {LEAST_SAMPLES} are the least."


def _layer_faults(recording: Recording, network: Network) -> Iterator[str]:
    """Each profile holds every layer once and agrees with the whole pass."""
    keys = ("device", "network", "batch", "algorithm", "dtype")
    layers = recording.select(part="layers")
    for *values, training in dict.fromkeys(
        tuple(m.conditions[key] for key in (*keys, "training")) for m in layers
    ):
        group = dict(zip(keys, values, strict=True))
        rows = recording.select(part="layers", training=training, **group)
        where = f"the layers of {group}, training {training}"
        ways = ("forward", "backward") if training else ("forward",)
        there = Counter((m.conditions["direction"], m.conditions["layer"]) for m in rows)
        wanted = Counter((way, layer) for way in ways for layer in network.layers)
        if there != wanted:
            odd = [*(there - wanted), *(wanted - there)][0]
            yield f"{where}: each must be there once, so that shares sum to one; see {odd}."
        if len({len(m.samples) for m in rows}) != 1:
            yield f"{where} were not measured in the same passes."
        if group["device"] == "cpu":
            group["threads"] = rows[0].conditions["threads"]
        way = "training" if training else "forward"
        if not recording.has(part="pass", direction=way, **group):
            yield f"{where}: there is no whole pass beside them."
            continue
        whole = recording.select(part="pass", direction=way, **group)[0]
        ratio, (low, high) = sum(m.median for m in rows) / whole.median, LAYERS_BY_PASS
        if not low <= ratio <= high:
            yield (
                f"{where} add up to {ratio:.2f} times the whole pass; "
                f"{low} to {high} can be explained."
            )


def _peak_faults(recording: Recording, network: Network) -> Iterator[str]:
    """Nothing is faster than the hardware can be, nor than the products measured as its ceiling."""
    card, peaks = recording.machine, {}
    for m in recording.select(part="ceiling"):
        device, dtype = m.conditions["device"], m.conditions.get("dtype")
        most = MOST.get((device, m.unit), CPU_CORE_GFLOPS * card.cores)
        if m.median > most:
            yield f"{m.name!r} is {m.value()} {m.unit}: no such hardware does {most:,.0f}."
        peaks[device, dtype] = max(peaks.get((device, dtype), 0.0), *m.samples)
    costs = {cost.name: cost.macs for cost in layer_costs(network)}
    for m in recording.measurements:
        there = m.conditions
        most = there.get("batch", 1) * costs.get(there.get("layer"), 0)
        if there["part"] == "race" and there["macs"] > most:
            yield f"{m.name!r} counts {there['macs']:,} MACs, more than the layer has."
        gflops = _gflops(m, costs)
        peak = peaks.get((there["device"], there.get("dtype", "float32")))
        if gflops and not peak:
            yield f"{m.name!r}: no product of its dtype was measured on the {there['device']}."
        elif gflops and gflops > ABOVE_PEAK * peak:
            yield (
                f"{m.name!r} comes to {gflops:,.0f} GFLOP/s at least, above the {peak:,.0f} of "
                "the largest measured product."
            )


def _gflops(m: Measurement, costs: Mapping[str, int]) -> float:
    """The speed that a time or a number of operations means at least; 0 where it says none."""
    there, part = m.conditions, m.conditions["part"]
    how = there.get("algorithm", there.get("way"))
    saves = SAVES.get(how, 1) if there.get("kind", "conv") == "conv" else 1
    if m.unit == "GFLOP/s":
        return m.median / saves
    if part == "sweep" or (there.get("work"), there.get("what")) == ("product", "right"):
        macs = there["size"] ** 3
    elif part == "race":
        macs = there["macs"]
    elif part == "layers":
        macs = there["batch"] * costs.get(there["layer"], 0)
    elif part == "pass":
        macs = there["batch"] * sum(costs.values()) * (2 if there["direction"] == "training" else 1)
    else:
        return 0.0
    return 2 * macs / saves / m.median * 1e-6


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
    what = "this machine (default), or chapter 04's jobs of two ranks, which take --out alone"
    add("what", nargs="?", choices=["machine", "ranks"], default="machine", help=what)
    files = "data/recordings/machine_<name>_<date>.json, or ranks.json there"
    add("--out", type=Path, help=f"the file (default: {files})")
    add("--minutes", type=float, default=MINUTES, help="in all (default: %(default)g)")
    add("--parts", nargs="+", choices=PARTS, metavar="PART", help="these alone; needs --out")
    add("--check", type=Path, metavar="FILE", help="measure nothing, judge this recording")
    options = parser.parse_args(arguments)
    if not 0 < options.minutes < math.inf:
        parser.error(f"--minutes must be above 0, got {options.minutes:g}.")
    if options.parts and not options.out:
        parser.error("--parts makes no whole recording: say with --out where it shall go.")
    if options.what == "ranks" and (options.parts or options.check):
        parser.error("ranks are recorded whole: --parts and --check are for a machine's recording.")
    try:
        if options.what == "ranks":
            return _record_ranks(options.out)
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
    time_scale()  # refused now rather than in a minute
    # While this process sleeps, all that runs is others'.
    others = psutil.cpu_percent(interval=1.0) * (psutil.cpu_count() or 1)
    if others > BUSY_PERCENT:
        print(f"Other programs use {others:.0f} % of a core: stop them, or they are measured too.")
    plan = Plan(minutes=options.minutes, parts=tuple(options.parts or PARTS))
    recording = measure_machine(plan, partial(print, flush=True))
    return _report(path.name, check_recording(save(recording, path)))


def _record_ranks(out: Path | None) -> int:
    path = out or data_folder() / "recordings" / ranks.RECORDING
    check_place(path)
    save(ranks.measure_ranks(), path)
    return 0


def _report(name: str, faults: list[str]) -> int:
    verdict = "accepted."
    for fault in faults:
        print(f"  {fault}")
        verdict = "not accepted. Record again, on a machine that does nothing else."
    print(f"{name} is {verdict}")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
