"""Can a machine's recording be what it says? What no machine does, and what does not fit together.

A recording that another machine made cannot be repeated here. Its numbers must stay under what the
card's cores, vectors and clock can do, or the GPU's datasheet; the same work measured twice must
agree; and samples must look as a clock leaves them, as many as fill the seconds that the recorder
gives them. What cannot be known: which of two like CPUs it was, and a number that is a little off.
Whoever makes a forgery to pass all this can.
"""

import dataclasses
import datetime
import functools
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fastdl_lib.convolution.algorithms import ALGORITHMS
from fastdl_lib.course.machine_parts import BUDGETS_S, DIGITS, MINUTES, PARTS, REPEATS, ROWS, Plan
from fastdl_lib.course.notebooks import machine_names, texts
from fastdl_lib.measuring.costs import LayerCost, layer_costs
from fastdl_lib.measuring.evidence import Measurement, Provenance
from fastdl_lib.measuring.machine import MachineCard
from fastdl_lib.measuring.published import published
from fastdl_lib.measuring.recordings import Recording
from fastdl_lib.nn.network import Network
from fastdl_lib.nn.zoo import alexnet, deep_convnet

LEAST_SAMPLES = 3
FIRST_DATE = datetime.date(2025, 1, 1)
# Parts that were thought of after the first recordings; those of before may lack them whole.
LATER, LATER_FROM = ("clock", "dtypes", "binary"), datetime.date(2026, 11, 29)
# What no hardware does: vectors of more float32 numbers, a faster clock, and adding up in fewer
# cycles an addition that needs the one before. Memory's GB/s, and a GPU's products: far above the
# largest datasheet's numbers.
MOST_LANES, MOST_GHZ, ADD_CYCLES = 16, 6.5, 2
MOST = {("cpu", None): 2_000, ("gpu", None): 20_000}
MOST |= {("gpu", dtype): 5e6 for dtype in ("float64", "float32", "tf32", "float16")}
# Clocks of different moments; a product by the largest ones; a theoretical peak.
ABOVE_MEASURED, ABOVE_THEORY = 1.25, 1.1
# A GPU's launch from Python, microseconds at least.
LAUNCH_US = 0.5
# A word of 64 bits does 64 MACs of a binary product.
SAVES = {name: row.saves for name, row in ALGORITHMS.items()} | {
    "auto": max(row.saves for row in ALGORITHMS.values()),
    "bits": 64,
    "bits, packing counted": 64,
}
# The layers' times added up, by the whole pass's. Down to 0.4, because a training step also moves
# the weights, which at small batches takes longer than the layers. Up to 2.5, because a GPU is
# waited for after every layer, so that asking for the next one no longer overlaps with the work.
# The same limits hold for the same work measured twice, on a machine that is busy now and then.
ALIKE = (0.4, 2.5)
# By image, training takes the forward pass and twice its MACs, and moves the weights on one thread,
# which weighs the more, the more threads compute.
TRAINS, TRAINS_GPU = (1.9, 6), (1.9, 20)
# A run of fit(), by the forward pass alone and, in MACs a second, by the training of a larger
# network: on two threads 0.30, and 0.46 and 0.49, were measured. Small products need few threads.
FITS, FITS_GPU, SMALLER = (0.2, 1 / 1.9), (0.01, 1 / 1.9), (0.32, 1.3)
# Of the seconds that a row may take, what its samples took together.
FILLED, FILLED_ROW = (0.8, 1.9), (0.6, 3)
# Right test images, %: five runs of 6,000 images came to 97.1 to 97.6; of fewer, guesses.
RIGHT, RIGHT_OF_FEWER = (94, 99), (5, 99)
# Conditions that benchmark() adds.
MAY_SAY = {"part", "device", "threads", "warmup", "freed_memory", "batch"}
_Pair = tuple[str, float, tuple[float, float]]  # what by what, ratio, limits
LONGEST = 400  # letters of a text
MOST_COUNTED = 2**63
BLAS_MOST = 64  # threads that NumPy's own OpenBLAS can use
# A CPU's name, and a system or kernels of the BLAS that are another kind of CPU's.
APART = (
    (
        r"\b(Apple|ARM|Ampere|Cortex|Graviton|Neoverse)",
        r"(Linux x86_|Windows AMD)64|SkylakeX",
    ),
    (r"\b(AMD|Intel)\b", r"aarch64|arm64"),
    (r"\bIntel\b", r"\(Zen"),
)
# What starts at a root, a home or a drive, or leads through folders; a unit holds one slash.
_PATH = re.compile(
    r"(?<![\w.])(~\w*/|/\w|[A-Za-z]:\\)|\\|\w/[^\s/]+/|(?<!\w)\.\.?/"
    r"|\b(home|Users|root|tmp|mnt|media|opt|usr|var|work|scratch)/"
)
_NUMBER = r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)"
_COMMAND = re.compile(  # as the recorder writes it
    rf"(?:FASTDL_TIME_SCALE={_NUMBER} )?python -m fastdl_lib\.(?:course\.)?record "
    rf"--minutes {_NUMBER}(?: --parts [ \w]+)?"
)
_MODEL = re.compile(r"\b[A-Z]\d{2,3}\b")  # of a GPU, such as H100


def check_recording(recording: Recording) -> list[str]:
    """Say what in a machine's recording cannot be: one sentence a fault, none when it is accepted.

    >>> from fastdl_lib.measuring.recordings import machine_recordings
    >>> {len(check_recording(recording)) for recording in machine_recordings().values()}
    {0}
    """
    faults = [*_card_faults(recording), *_missing(recording)]
    faults += (f for m in recording.measurements for f in _own_faults(m, recording.machine))
    faults += _sample_faults(recording.measurements)
    if not faults:  # from here on the conditions are there and the numbers are positive
        faults = [*_layer_faults(recording), *_peak_faults(recording), *_time_faults(recording)]
    if not faults:
        faults = [
            f"{what}, {ratio:.2f} times; {low:.2g} to {high:.2g} can be explained."
            for what, ratio, (low, high) in _pairs(recording)
            if not low <= ratio <= high
        ]
    return faults


@functools.cache
def _costs(make: Callable[[], Network] = alexnet) -> Sequence[LayerCost]:
    return layer_costs(make())


@functools.cache
def _macs(make: Callable[[], Network] = alexnet) -> Mapping[str, int]:
    """By layer, for one image."""
    return {cost.name: cost.macs for cost in _costs(make)}


def _card_faults(recording: Recording) -> Iterator[str]:
    card = recording.machine
    try:
        day = datetime.datetime.strptime(card.date, "%Y-%m-%d").date()
    except ValueError:
        yield f"the date {card.date!r} is none; it must be YYYY-MM-DD."
    else:
        tomorrow = datetime.date.today() + datetime.timedelta(days=1)  # as it is somewhere already
        if not FIRST_DATE <= day <= tomorrow:
            yield f"the date {card.date} is not from {FIRST_DATE} to today."
    for name in ("numpy", "numba", "fastdl", *(("cupy", "cuda") if card.has_gpu else ())):
        if not card.versions.get(name):
            yield f"the machine card does not name the version of {name}."
    if "stand-in" in card.versions.get("cupy", ""):
        yield "the GPU is the tests' stand-in."
    minutes, scale = _given(recording)
    if not 0 < minutes * scale < math.inf:
        yield f"it was not made by this command but by {recording.command!r}."
    if not (card.lanes in (0, 4, 8, 16) and card.highest_ghz <= MOST_GHZ):
        yield f"no CPU has {card.lanes} float32 lanes at {card.highest_ghz} GHz."
    if not (1 <= card.memory_gib <= 2**16 and re.match(r"3\.[1-9]\d\.", card.python)):
        yield f"Python {card.python} in {card.memory_gib:g} GiB does not run the course."
    for name, other in APART:
        if re.search(name, card.cpu) and (odd := re.search(other, f"{card.system}, {card.blas}")):
            yield f"{card.cpu} is no CPU of {odd[0]}."
    if 0 < 2 * card.blas_threads < min(card.cores, BLAS_MOST):
        yield f"of {card.cores} cores its products used {card.blas_threads}: record all of them."
    if card.lanes and ("SkylakeX" in card.blas) > (card.lanes == 16):
        yield f"{card.blas} needs vectors of 16 float32 numbers; the card says {card.lanes}."
    took_s = sum(sum(m.samples) for m in recording.measurements if m.unit == "ms") / 1e3
    if took_s > 60 * (1 + 2 * minutes * max(1, scale)):  # what has begun is ended
        yield f"its samples took {took_s / 60:,.0f} minutes, its command gives it {minutes:g}."
    # A word before the @ and one behind it; a CPU's name may hold "CPU @ 3.50GHz".
    names = "|".join([r"\w@\w", *(rf"\b{re.escape(name)}\b" for name in machine_names())])
    measured = [m.to_dict() for m in recording.measurements]
    for text in dict.fromkeys(texts([recording.command, card.to_dict(), measured])):
        if len(text) > LONGEST:
            yield f"{text[:40]!r}... has {len(text):,} letters; {LONGEST} are the most."
        elif _PATH.search(text):
            yield f"{text!r} holds a path."
        elif re.search(names, text):
            yield f"{text!r} names a user or a computer."


def _given(recording: Recording) -> tuple[float, float]:
    """The minutes that the command names, and the scale of times; 0 where it is another one."""
    match = _COMMAND.fullmatch(recording.command)
    return (float(match[2]), float(match[1] or 1)) if match else (0.0, 0.0)


def _missing(recording: Recording) -> Iterator[str]:
    """Every row of the table is there for each device, but for parts that came later."""
    devices = {"cpu", "gpu"} if recording.machine.has_gpu else {"cpu"}
    early = recording.machine.date < str(LATER_FROM)
    for row in ROWS:
        if not early or row.part not in LATER or recording.has(part=row.part):
            for device in (device for device in row.devices if device in devices):
                if not recording.has(**row.fixed, device=device):
                    yield f"nothing was measured of {row.fixed} on the {device}."


def _own_faults(m: Measurement, card: MachineCard) -> Iterator[str]:
    """What is wrong with one measurement, whatever the others say."""
    name, there = m.name, m.conditions
    device, threads = there.get("device"), there.get("threads")
    row = next((row for row in ROWS if row.fixed.items() <= there.items()), None)
    if row is None:
        yield f"{name!r} is of no part of {list(PARTS)}, or of nothing that its part holds."
        return
    says = {"device": str, **row.says, **({"threads": int} if device == "cpu" else {})}
    for key, kind in says.items():
        value = there.get(key)
        if value is None:
            yield f"{name!r} does not say its {key}."
        # 0 threads stand for a number that the BLAS does not tell.
        elif isinstance(kind, type) and (
            type(value) is not kind
            or (kind is int and not (key != "threads") <= value < MOST_COUNTED)
        ):
            yield f"{name!r} has the {key} {value!r}."
    if (way := there.get("algorithm", "auto")) not in ("auto", *ALGORITHMS):
        yield f"{name!r} names the algorithm {way!r}, which there is not."
    if more := there.keys() - says.keys() - MAY_SAY:
        yield f"{name!r} says {sorted(more)}, which the recorder does not."
    if device not in ("cpu", "gpu"):
        yield f"{name!r} ran on the device {device!r}, neither cpu nor gpu."
    if device == "gpu" and not card.has_gpu:
        yield f"{name!r} ran on a GPU; the card has {card.gpu!r}."
    if device == "cpu" and threads not in (None, 1, card.blas_threads):
        yield f"{name!r} ran on {threads} threads; the card's BLAS has {card.blas_threads}."
    if m.unit != row.unit:
        yield f"{name!r} is in {m.unit!r}, expected {row.unit!r}."
    if m.provenance is not Provenance.RECORDED:
        yield f"{name!r} is {m.provenance}, not measured."
    low, high = min(m.samples), max(m.samples)
    least, most = 0, math.inf
    if row.unit == "%":
        least, most = RIGHT if there.get("images") == Plan.mnist_images else RIGHT_OF_FEWER
    if not (least < low and high < most):
        odd = low if low <= least else high
        yield f"{name!r} holds {odd} {row.unit}; it lies between {least} and {most}."
    if row.unit != "%" and len(m.samples) < LEAST_SAMPLES:
        yield f"{name!r} has {len(m.samples)} samples, {LEAST_SAMPLES} are the least."
    apart = high > 20 * low > 0 and m.high > 20 * m.low
    if apart and (m.unit != "ms" or m.high > 1):  # shorter ones are disturbed
        yield f"the samples of {name!r} fall into two groups, {m.value()} {m.unit}."


def _sample_faults(found: Sequence[Measurement]) -> Iterator[str]:
    """What the samples together show of how they came about."""
    seen = Counter(json.dumps(m.conditions, sort_keys=True) for m in found)
    twice = [key for key, count in seen.items() if count > 1]
    if twice:
        yield f"measured more than once under the same conditions: {twice[0]}."
    kept = [(sorted(m.samples), m.name) for m in found if len(set(m.samples)) > 2]
    for samples, name in kept:
        first = next(other for same, other in kept if same == samples)
        if first != name:
            yield f"{name!r} has the very samples of {first!r}."
    if sum(len(set(m.samples)) == 1 for m in found) > len(found) / 4:
        yield "many samples are all the same: no clock repeats itself like that."
    orders = Counter(tuple(np.argsort(m.samples[:5]).tolist()) for m in found if len(m.samples) > 4)
    if max(orders.values(), default=0) > max(10, orders.total() / 4):
        yield "many samples rise and fall alike: chance does not repeat itself like that."
    texts = [f"{sample:.12e}".partition("e")[0] for m in found for sample in m.samples]
    digits = [len(text.replace(".", "").rstrip("0")) for text in texts]
    if max(digits, default=0) > DIGITS:
        yield f"a sample has {max(digits)} digits; the recorder keeps {DIGITS}."
    # One number in ten ends with a 0 by chance.
    if sum(count < DIGITS for count in digits) > len(digits) / 3:
        yield "the samples are too round: most numbers of a clock have all their digits."


def _layer_faults(recording: Recording) -> Iterator[str]:
    """Each profile holds every layer once, and there is a whole pass beside it."""
    for where, rows, whole in _profiles(recording):
        training = rows[0].conditions["training"]
        ways = ("forward", "backward") if training else ("forward",)
        keys = "direction", "layer", "kind"
        there = Counter(tuple(m.conditions[key] for key in keys) for m in rows)
        wanted = Counter((way, cost.name, cost.kind) for way in ways for cost in _costs())
        if there != wanted:
            odd = [*(there - wanted), *(wanted - there)][0]
            yield f"{where}: each must be there once, so that shares sum to one; see {odd}."
        if len({len(m.samples) for m in rows}) != 1:
            yield f"{where} were not measured in the same passes."
        if not whole:
            yield f"{where}: there is no whole pass beside them."


def _profiles(
    recording: Recording,
) -> Iterator[tuple[str, list[Measurement], Measurement | None]]:
    """Each profile by layers: what it is of, its rows, and the whole pass."""
    keys = ("device", "network", "batch", "algorithm", "dtype")
    groups: dict[tuple, list[Measurement]] = {}
    for m in recording.measurements:
        if m.conditions["part"] == "layers":
            group = tuple(m.conditions[key] for key in (*keys, "training"))
            groups.setdefault(group, []).append(m)
    for (*values, training), rows in groups.items():
        group = dict(zip(keys, values, strict=True))
        where = {**group, "part": "pass", "direction": "training" if training else "forward"}
        if group["device"] == "cpu":
            where["threads"] = rows[0].conditions["threads"]
        whole = recording.select(**where)[0] if recording.has(**where) else None
        yield f"the layers of {group}, training {training}", rows, whole


def _cores(card: MachineCard) -> int:
    """How many may compute at once: with a quota each thread has one until that is used up."""
    return max(card.cores, card.blas_threads) if card.quota_cores else card.cores


def _threads(m: Measurement, recording: Recording) -> int:
    """On how many cores it can have run, all where the BLAS does not tell; 1 on a GPU."""
    usable = _cores(recording.machine)
    return min(m.conditions.get("threads", 1) or usable, usable)


def _ghz(recording: Recording) -> float:
    """The highest clock, as the system told it or as it was measured; 0 where neither is there."""
    clocks = (max(m.samples) for m in recording.measurements if m.unit == "GHz")
    return max([recording.machine.highest_ghz, *clocks])


def _caps(recording: Recording) -> dict[tuple[str, str | None], float]:
    """By device and dtype (None: the copy), what one core, or the GPU, can do at most, GFLOP/s
    and GB/s; what no machine does where the card or the datasheets do not say."""
    card, ghz = recording.machine, _ghz(recording)
    if not (ghz and card.lanes):
        card, ghz = dataclasses.replace(card, lanes=MOST_LANES), MOST_GHZ
    card = dataclasses.replace(card, cores=1, highest_ghz=ABOVE_THEORY * ghz)
    caps = {("cpu", dtype): card.peak_gflops(dtype) for dtype in ("float64", "float32", "float16")}
    caps |= MOST
    for row in published("gpu_datasheets").rows if card.has_gpu else ():
        model = set(_MODEL.findall(row["gpu"]))
        if model and model <= set(_MODEL.findall(card.gpu)):
            plain, tensor = row["fp32_tflops_to"] or row["fp32_tflops"], row["fp16_tensor_tflops"]
            told = {"float64": plain, "float32": plain, "float16": tensor}  # float64: not faster
            told |= {"tf32": row["tf32_tflops"] or tensor, None: row["memory_gb_per_s"] / 1e3}
            caps |= {("gpu", dtype): ABOVE_THEORY * 1e3 * n for dtype, n in told.items() if n}
    return caps


def _peak_faults(recording: Recording) -> Iterator[str]:
    """Nothing is faster than the hardware can be, nor than the products measured as its ceiling."""
    caps, peaks, clock = _caps(recording), {}, _ghz(recording) or MOST_GHZ
    if clock > MOST_GHZ:
        yield f"the clock was measured as {clock} GHz: no CPU has more than {MOST_GHZ}."

    for m in recording.select(part="ceiling"):
        key = m.conditions["device"], m.conditions.get("dtype")
        most = _threads(m, recording) * caps.get(key, math.inf)
        if m.median > most:
            yield f"{m.name!r} is {m.value()} {m.unit}: this machine does {most:,.0f} at most."
        # By core: what other programs took while one thread was measured, two may show.
        peaks[key] = max(peaks.get(key, 0.0), _best(m) / _threads(m, recording))
    for m in recording.measurements:
        there = m.conditions
        key = there["device"], there.get("dtype", "float32")
        most = there.get("batch", 1) * _macs().get(there.get("layer"), 0)
        if there["part"] == "race" and not (
            there["macs"] == most or (there["algorithm"] == "loops" and there["macs"] < most)
        ):  # Python's loops do a few rows alone
            yield f"{m.name!r} counts {there['macs']:,} of the layer's {most:,} MACs."
        way = ALGORITHMS.get(there.get("algorithm"))
        if there["part"] == "race" and way and way.loops:
            cycles = ADD_CYCLES * there["macs"] / m.median * 1e-6
            if cycles > ABOVE_THEORY * clock:
                yield f"{m.name!r} adds up one by one, which takes {cycles:.1f} GHz."
        if there["part"] == "chain" and 1e3 * _best(m) < LAUNCH_US * 3 * there["steps"]:
            yield f"{m.name!r}: no three launches take {1e3 * _best(m) / there['steps']:.2g} us."
        gflops = _gflops(m)
        if gflops and key not in peaks:
            yield f"{m.name!r}: no product of its dtype was measured on the {there['device']}."
        elif gflops and gflops > ABOVE_MEASURED * _threads(m, recording) * peaks[key]:
            yield (
                f"{m.name!r} comes to {gflops:,.0f} GFLOP/s at least, above the "
                f"{_threads(m, recording) * peaks[key]:,.0f} of the largest measured product."
            )


def _time_faults(recording: Recording) -> Iterator[str]:
    """The recorder measures again until a row's seconds are used up: a scale of its own.

    How long the samples took that were left out, no recording keeps.
    """
    minutes, scale = _given(recording)
    took_s = given_s = 0.0
    for m in recording.select(device="cpu"):
        budget_s = BUDGETS_S.get(m.conditions["part"], 0) * minutes / MINUTES * scale
        some = LEAST_SAMPLES < len(m.samples) < REPEATS and not m.left_out
        if m.unit == "ms" and budget_s and some:
            row_s = sum(m.samples) / 1e3
            took_s, given_s = took_s + row_s, given_s + budget_s
            if not FILLED_ROW[0] < row_s / budget_s < FILLED_ROW[1]:
                yield f"{m.name!r}: {len(m.samples)} samples took {row_s:.3g} of {budget_s:.3g} s."
    if given_s and not FILLED[0] < took_s / given_s < FILLED[1]:
        yield f"rows that were measured for {given_s:.1f} s hold samples of {took_s:.1f} s."


def _gflops(m: Measurement) -> float:
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
        macs = there["batch"] * _macs().get(there["layer"], 0)
    elif part == "pass":
        macs = (
            there["batch"] * sum(_macs().values()) * (2 if there["direction"] == "training" else 1)
        )
    elif part == "training" and m.unit == "images/s":
        return 4 * m.median * sum(_macs(deep_convnet).values()) / SAVES["auto"] * 1e-9
    else:
        return 0.0
    return 2 * macs / saves / m.median * 1e-6


def _pairs(recording: Recording) -> Iterator[_Pair]:
    """The same work measured twice, or more of it: (what by what, ratio, limits).

    The fastest samples are compared: other programs can only slow a run down.
    """
    found = {json.dumps(m.conditions, sort_keys=True): m for m in recording.measurements}

    def beside(m: Measurement, **changes: Any) -> Measurement | None:
        """What was measured under the same conditions but for these, if anything was."""
        return found.get(json.dumps({**m.conditions, **changes}, sort_keys=True))

    for where, rows, whole in _profiles(recording):
        yield f"{where} add up to the whole pass", sum(map(_best, rows)) / _best(whole), ALIKE
    for m in recording.measurements:
        threads = m.conditions.get("threads", 0)
        if threads > 1 and (one := beside(m, threads=1)):
            faster = _best(one) / _best(m) if m.unit == "ms" else _best(m) / _best(one)
            limits = 0.02, 3 * min(threads, _cores(recording.machine)) - 1.5
            yield f"{m.name!r} is as fast as on one thread", faster, limits
        for pairs in _PAIRS_OF.get(m.conditions["part"], ()):
            yield from pairs(m, recording, beside)


def _by_the_ceiling(m: Measurement, recording: Recording, beside: Callable) -> Iterator[_Pair]:
    """A square product of floats, by the same one among the ceilings."""
    there = m.conditions
    sides = {there[key] for key in ("size", "rows", "outputs", "length") if key in there}
    if there.get("what", there.get("way", "product")) in ("product", "float32") and len(sides) == 1:
        (size,) = sides
        gflops = 2e-6 * size**3 / _best(m) if m.unit == "ms" else _best(m)
        like = {"dtype": "float32", "size": size} | {
            key: there[key] for key in ("device", "dtype", "threads") if key in there
        }
        for top in _found(recording, part="ceiling", what="product", **like):
            yield f"{m.name!r} is as fast as {top.name!r}", gflops / _best(top), ALIKE


def _by_half(m: Measurement, recording: Recording, beside: Callable) -> Iterator[_Pair]:
    if half := beside(m, size=m.conditions["size"] // 2):  # eight times the work
        yield f"{m.name!r} takes as long as {half.name!r}", _best(m) / _best(half), (0.5, math.inf)


def _by_the_copy(m: Measurement, recording: Recording, beside: Callable) -> Iterator[_Pair]:
    """What moves bytes, by a copy within the memory."""
    there, gb_per_s, limits = m.conditions, _best(m), (0, 10)  # of a bus to the GPU
    if there["part"] == "dtypes":
        gb_per_s, limits = 3 * 4 * gb_per_s, ALIKE  # two numbers are read, one is written
    device = "cpu" if there["part"] == "transfer" else there["device"]
    if there["part"] == "transfer" or (there["what"], there["dtype"]) == ("add", "float32"):
        for copy in _found(recording, what="copy", device=device):
            yield f"{m.name!r} moves as much as {copy.name!r}", gb_per_s / _best(copy), limits


def _by_less(m: Measurement, recording: Recording, beside: Callable) -> Iterator[_Pair]:
    """More images, by fewer of them."""
    there = m.conditions
    if there["part"] == "layers" and _best(m) <= 1:
        return
    batches = {other.conditions.get("batch", there["batch"]) for other in recording.measurements}
    smaller = (beside(m, batch=n) for n in sorted(batches) if n < there["batch"])
    for less in filter(None, smaller):
        more = there["batch"] / less.conditions["batch"]
        most = 3 * more if there["part"] == "pass" else 6 * more  # from a cache to the memory
        yield f"{m.name!r} takes as long as {less.name!r}", _best(m) / _best(less), (0.7, most)


def _by_the_forward_pass(m: Measurement, recording: Recording, beside: Callable) -> Iterator[_Pair]:
    """A training step, by the forward pass of as many images, or of the next larger batch."""
    there = m.conditions
    key = "direction" if there["part"] == "pass" else "what"
    if there[key] == "training":
        (low, high), gpu = TRAINS, there["device"] == "gpu"
        limits = TRAINS_GPU if gpu else (low, high * max(2, _threads(m, recording)))
        batches = range(there["batch"], 4 * there["batch"] + 1)
        forward = (beside(m, batch=n, **{key: "forward"}) for n in batches)
        for whole in [*filter(None, forward)][:1]:
            ratio = _best(m) / there["batch"] / (_best(whole) / whole.conditions["batch"])
            yield f"{m.name!r} takes, by image, as long as {whole.name!r}", ratio, limits


def _by_the_race(m: Measurement, recording: Recording, beside: Callable) -> Iterator[_Pair]:
    there = m.conditions
    if (there["kind"], there["direction"]) == ("conv", "forward"):
        same = {"device", "layer", "batch", "threads", "algorithm"} & there.keys()
        same -= {"algorithm"} if there["algorithm"] == "auto" else set()
        raced = _found(recording, part="race", **{key: there[key] for key in same})
        for best in sorted(raced, key=_best)[:1]:
            yield f"{m.name!r} takes as long as in the race", _best(m) / _best(best), ALIKE


def _by_other_networks(m: Measurement, recording: Recording, beside: Callable) -> Iterator[_Pair]:
    """A run of fit(), by the forward pass of its network and by the training of a larger one."""
    there = m.conditions
    if there["what"] != "speed":
        return
    gpu, threads = there["device"] == "gpu", _threads(m, recording)
    where = {"part": "dtypes", "what": "forward", "device": there["device"]}
    for way in _found(recording, **where, dtype="float32"):
        share = _best(m) * _best(way) / (1e3 * way.conditions["batch"])
        limits = FITS_GPU if gpu else (FITS[0] / threads, FITS[1])
        yield f"{m.name!r} is as fast as {way.name!r}", share, limits
    by_image = sum(_macs(deep_convnet).values()) / sum(_macs().values())
    where = {"part": "pass", "direction": "training", "device": "cpu"}
    for step in _found(recording, **where, threads=there.get("threads"))[-1:]:
        share = by_image * _best(m) * _best(step) / (1e3 * step.conditions["batch"])
        limits = SMALLER[0] / threads, SMALLER[1]
        yield f"{m.name!r} computes as much as {step.name!r}", share, limits


_PAIRS_OF: Mapping[str, tuple[Callable[..., Iterator[_Pair]], ...]] = {
    "dtypes": (_by_the_ceiling, _by_the_copy, _by_the_forward_pass),
    "binary": (_by_the_ceiling,),
    "sweep": (_by_the_ceiling, _by_half),
    "transfer": (_by_the_copy,),
    "training": (_by_other_networks,),
    "pass": (_by_less, _by_the_forward_pass),
    "layers": (_by_less, _by_the_race),
}


def _best(m: Measurement) -> float:
    return min(m.samples) if m.unit == "ms" else max(m.samples)


def _found(recording: Recording, **conditions: Any) -> Sequence[Measurement]:
    return recording.select(**conditions) if recording.has(**conditions) else ()
