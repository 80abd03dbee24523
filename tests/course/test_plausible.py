"""What a recording must stand: forgeries are refused with their reason, honest noise is not."""

import dataclasses
import datetime
import re
import socket

import numpy as np
import pytest
from helpers import HONEST, honest

from fastdl_lib.course import machine_parts
from fastdl_lib.course.plausible import check_recording
from fastdl_lib.measuring.recordings import read_recording
from fastdl_lib.measuring.recordings import write_recording as write

TODAY, DAY = datetime.date.today(), datetime.timedelta(days=1)


def changed(recording, rule, **where):
    """A copy with ``rule(measurement)``'s fields, or without it for None, where the conditions hold
    (and all of them do not need to be there)."""
    rows = []
    for m in recording.measurements:
        if where.items() <= m.conditions.items():
            fields = rule(m)
            m = None if fields is None else dataclasses.replace(m, **fields)
        rows.append(m)
    assert rows != list(recording.measurements), where
    return dataclasses.replace(recording, measurements=tuple(filter(None, rows)))


def first(recording, rule, **where):
    """As :func:`changed`, for the first of them alone."""
    there = recording.select(**where)[0]
    return changed(recording, lambda m: rule(m) if m is there else {}, **where)


def gone(m):
    return None


def left_out(m):
    """Other programs ran beside most of the samples."""
    kept = m.samples[: max(4, len(m.samples) // 4)]
    return {"samples": kept, "left_out": len(m.samples) - len(kept)}


def samples(*values):
    return lambda m: {"samples": values}


def times(factor, digits=4):
    """So many times as fast."""

    def faster(m):
        by = {"ms": 1 / factor, "%": 1}.get(m.unit, factor)
        return {"samples": [float(f"{by * sample:.{digits}g}") for sample in m.samples]}

    return faster


def said(**changes):
    """Conditions changed; None takes one away."""

    def rule(m):
        there = {**m.conditions, **changes}
        return {"conditions": {key: value for key, value in there.items() if value is not None}}

    return rule


def edited(factor):
    """Half of the samples and one more edited, so that the median moves."""
    return lambda m: {
        "samples": [
            float(f"{s * (factor if i <= len(m.samples) // 2 else 1):.4g}")
            for i, s in enumerate(m.samples)
        ]
    }


def same_samples(recording):
    """Half of the measurements without spread."""
    rows = [
        dataclasses.replace(m, samples=m.samples[:1] * len(m.samples)) if i % 2 else m
        for i, m in enumerate(recording.measurements)
    ]
    return dataclasses.replace(recording, measurements=tuple(rows))


def sorted_by_turns(recording):
    """The samples of each measurement in order, upwards and downwards by turns."""
    rows = [
        dataclasses.replace(m, samples=tuple(sorted(m.samples, reverse=bool(i % 2))))
        for i, m in enumerate(recording.measurements)
    ]
    return dataclasses.replace(recording, measurements=tuple(rows))


def turned_copy(recording):
    """A measurement with another's samples, the last one first."""
    m, other, *rest = recording.measurements
    other = dataclasses.replace(other, samples=m.samples[::-1])
    return dataclasses.replace(recording, measurements=(m, other, *rest))


def spread(m):
    """Samples made of the median by a rule."""
    return {"samples": [float(f"{m.median * (1 + i % 3 / 500):.4g}") for i in range(20)]}


def card(**changes):
    """Another machine's card, or an edited one."""
    return lambda r: dataclasses.replace(r, machine=dataclasses.replace(r.machine, **changes))


def with_copy(**changes):
    """The rows of a pass twice, the second time said to be of another size."""

    def forge(recording):
        m = recording.select(part="pass")[0]
        twin = dataclasses.replace(m, name="twin", conditions={**m.conditions, **changes})
        return dataclasses.replace(recording, measurements=(*recording.measurements, twin))

    return forge


def on(rule, one=False, **where):
    return lambda recording: (first if one else changed)(recording, rule, **where)


CPU = {"device": "cpu"}
LAYERS = {"part": "layers", "device": "cpu", "training": False}
GUESS = {"provenance": "computed", "source": "a guess"}
COMMAND = "python -m fastdl_lib.course.record --minutes"
FASTER = "no CPU has more than|one by one|at most"
FORGERIES = [
    # --- faster than the machine ---
    *((kind, on(times(n)), FASTER) for kind in HONEST for n in (3, 30, 1000)),
    *((kind, on(times(3), part="ceiling"), "at most|as fast as") for kind in HONEST),
    ("old", on(times(3, digits=6)), "digits; the recorder keeps 4"),
    *(
        ("new", on(times(3), part=part), message)
        for part, message in {
            "clock": "no CPU has more than 6.5",
            "sweep": "of the largest measured product",
            "dtypes": "of the largest measured product",
            "binary": "of the largest measured product",
            "race": "one by one|GFLOP/s at least",
            "training": "is as fast as",
            "layers": "GFLOP/s at least|add up to the whole",
            "pass": "samples took",
        }.items()
    ),
    ("new", on(times(1 / 1000)), "its samples took"),
    *((kind, on(times(n)), "samples of") for kind in HONEST for n in (1.5, 1 / 2, 1 / 10)),
    *(
        (kind, on(times(n), one=True, part="pass", direction="training", **row), "samples took|by")
        for kind in ("old", "gpu")
        for n, row in ((3, {"threads": 1}), (3, {"threads": 2, "batch": 8}), (1 / 10, {}))
    ),
    ("new", on(times(3), one=True, part="pass", batch=16), "takes.* as long as"),
    *(("old", on(times(n), part="training"), "as much as") for n in (3, 1 / 10)),
    ("new", on(times(1 / 3), part="binary"), "as fast as"),
    ("new", on(times(1 / 3), part="dtypes", dtype="float16", what="product"), "as fast as"),
    ("gpu", on(times(30), part="chain"), "no three launches take"),
    ("gpu", on(times(30), part="transfer"), "moves as much as"),
    ("new", on(times(3), part="ceiling", threads=1), "this machine does"),
    ("new", on(times(3), part="race", algorithm="im2col", threads=1), "GFLOP/s at least"),
    ("new", on(times(8), layer="norm1", batch=64), "takes as long as"),
    ("gpu", on(times(5), part="ceiling", dtype="float64", device="gpu"), "does 73,700 at most"),
    ("new", on(times(1 / 50), part="sweep", size=16), "takes as long as"),
    ("new", on(times(3), what="copy"), "moves as much as"),
    ("new", on(times(4), what="add", dtype="float32"), "moves as much as"),
    ("gpu", on(times(3), what="copy", device="gpu"), "this machine does 3,685 at most"),
    ("gpu", on(times(4), part="ceiling", dtype="float16", device="gpu"), "1,087,900 at most"),
    # --- another machine's card ---
    ("new", card(cpu="Xeon", blas_threads=64, cores=64), "2 threads; the card's BLAS has 64"),
    ("new", card(cores=64), "of 64 cores its products used 2"),
    ("new", card(memory_gib=0.1), "in 0.1 GiB does not run"),
    ("new", card(python="2.7.18"), "Python 2.7.18 in"),
    ("new", card(cpu="Apple M2"), "Apple M2 is no CPU of Linux x86_64"),
    ("new", card(system="Linux aarch64"), "AMD EPYC is no CPU of aarch64"),
    ("haswell", card(blas="OpenBLAS 0.3.31 (Zen)"), r"Intel Core is no CPU of \(Zen"),
    ("new", card(lanes=8), "needs vectors of 16 float32 numbers"),
    ("new", card(lanes=4, blas="OpenBLAS 0.3.31 (Nehalem)"), "this machine does"),
    ("new", card(cores=1), "as fast as on one thread"),
    ("new", card(lanes=64), "no CPU has 64 float32 lanes"),
    ("new", card(highest_ghz=12.0), "lanes at 12.0 GHz"),
    ("new", card(gpu="NVIDIA H100"), "nothing was measured of .* on the gpu"),
    ("gpu", card(gpu="Tesla V100-SXM2-16GB"), "this machine does 17,270 at most"),
    ("gpu", card(gpu="none. No CuPy."), "ran on a GPU; the card has 'none"),
    ("new", card(date=str(TODAY + 2 * DAY)), "is not from 2025-01-01 to today"),
    ("new", card(date="1999-12-31"), "is not from 2025-01-01 to today"),
    ("new", card(date="yesterday"), "the date 'yesterday' is none"),
    ("new", card(date="20261129"), "the date '20261129' is none"),
    ("new", card(versions={"numpy": "2.4.6"}), "not name the version of numba"),
    ("new", card(cpu="CPU in /home/ann"), "holds a path"),
    *(
        ("new", card(system=path), "holds a path")
        for path in (r"C:\Users", "home/joe/x", "in ~joe/x", "a/b/c", "..\\joe", "../joe", "tmp/x")
    ),
    ("new", card(system="a " * 5000), "has 10,000 letters"),
    *(
        ("new", card(system=f"Linux of {name}"), "names a user or a computer")
        for name in ("planted-host", "planted_user")
    ),
    *(
        ("new", lambda r, words=words: dataclasses.replace(r, command=words), "not made by this")
        for words in (
            "by hand", f"{COMMAND} 0", f"{COMMAND} 8; echo", f"{COMMAND} 8 --minutes 9",
            f"FASTDL_TIME_SCALE=0 {COMMAND} 8", f"FASTDL_TIME_SCALE=1e999 {COMMAND} 8", COMMAND,
        )
    ),
    # --- samples that no clock gave ---
    ("new", on(lambda m: {"samples": m.samples[:1]}), "has 1 samples, 3 are the least"),
    ("new", on(lambda m: {"samples": m.samples[:2]}, one=True, part="pass"), "has 2 samples"),
    ("new", on(lambda m: {"samples": m.samples[:1] * len(m.samples)}), "no clock repeats itself"),
    ("new", same_samples, "no clock repeats itself"),
    ("new", turned_copy, "has the very samples of"),
    ("new", on(lambda m: {"samples": sorted(m.samples)}), "rise and fall alike"),
    ("gpu", on(spread), "rise and fall alike"),
    ("new", sorted_by_turns, "rise and fall alike"),
    ("new", on(times(1, digits=2)), "the samples are too round"),
    ("new", on(times(1, digits=3)), "the samples are too round"),
    ("new", on(edited(0.02), part="pass", batch=1), "fall into two groups"),
    ("new", on(edited(0.1), part="sweep", size=1024), "GFLOP/s at least"),
    ("new", on(edited(0.3), part="sweep", size=1024), "GFLOP/s at least"),
    ("new", on(times(4), part="sweep", size=64), "size.*|takes as long as"),
    ("new", on(times(3), part="race", layer="conv2", algorithm="winograd", threads=2), "thread"),
    ("new", on(times(4), one=True, part="pass", batch=16, threads=2), "one thread|whole pass"),
    ("new", on(times(0.1), part="pass", batch=8), "samples took"),
    ("new", with_copy(batch=2), "has the very samples of"),
    ("new", with_copy(), "more than once under the same conditions"),
    ("new", on(samples(0.0, 1.234, 1.345), one=True, part="sweep"), "holds 0.0 ms"),
    ("new", on(samples(11.12, -1.234, 1.345), one=True, part="pass"), "holds -1.234 ms"),
    *(
        ("new", on(samples(right), part="training", what="accuracy"), f"holds {right} %")
        for right in (0.01, 12.0, 93.0, 99.9, 100.0, 100.5)
    ),
    # --- conditions and units ---
    ("new", on(lambda m: {"unit": "s"}, what="copy"), "is in 's', expected 'GB/s'"),
    ("new", on(lambda m: GUESS, what="copy"), "is computed, not measured"),
    ("new", on(said(part="rush"), one=True, part="race"), "is of no part of"),
    ("new", on(said(macs=None), part="race"), "does not say its macs"),
    ("new", on(said(threads=None), one=True, part="sweep"), "does not say its threads"),
    ("new", on(said(dtype=None), one=True, part="ceiling"), "does not say its dtype"),
    ("new", on(said(rows=0), one=True, part="binary"), "has the rows 0"),
    ("new", on(said(layer=["a"]), one=True, part="layers"), r"has the layer \['a'\]"),
    ("new", on(said(size="16"), one=True, part="sweep"), "has the size '16'"),
    ("new", on(said(batch=True), one=True, part="pass", batch=16), "has the batch True"),
    ("new", on(said(device="tpu"), one=True, part="sweep"), "neither cpu nor gpu"),
    ("new", on(said(note="ann@home"), one=True, part="sweep"), "names a user or a comp"),
    ("new", on(said(note="/opt/x"), one=True, part="sweep"), "holds a path"),
    ("new", on(said(note="fast"), one=True, part="sweep"), r"says \['note'\], which the rec"),
    ("new", on(lambda m: {"name": "a " * 500}, one=True, part="sweep"), "has 1,000 letters"),
    ("new", on(said(dtype="x"), part="ceiling", dtype="float32"), "no product of its dtype was"),
    ("new", on(said(macs=10**10), part="race", algorithm="im2col"), "of the layer's"),
    ("new", on(said(macs=10**10), part="race", algorithm="loops"), "of the layer's"),
    ("new", on(said(macs=10**6), one=True, part="race", algorithm="im2col"), "of the layer's"),
    ("new", on(said(macs=10**400), part="race", algorithm="loops"), "has the macs 1000"),
    ("new", on(said(algorithm="ours"), one=True, part="race"), "the algorithm 'ours', which there"),
    ("new", on(said(kind="pool"), **LAYERS, layer="fc6"), "see .*'fc6', 'pool'"),
    # --- what is missing, and layers that do not add up ---
    ("new", on(gone, one=True, **LAYERS, layer="relu1"), "there once.* see .*relu1"),
    ("new", on(said(layer="pool9"), one=True, **LAYERS, layer="pool2"), "see .*pool9"),
    ("new", on(samples(9.876, 9.765, 9.654), **LAYERS, layer="relu1", batch=16), "in the same"),
    ("new", on(times(0.01), **LAYERS, kind="relu"), "add up to the whole pass"),
    ("new", on(gone, part="pass", batch=16, direction="forward"), "no whole pass beside"),
    *(
        ("gpu", on(gone, part=part), rf"nothing was measured of {{'part': '{part}'")
        for part in machine_parts.PARTS
    ),
    ("gpu", on(gone, part="binary", way="bits", device="gpu"), "'bits'} on the gpu"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "forge", "message"), FORGERIES)
def test_a_forgery_is_refused_with_its_reason(kind, forge, message, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "planted-host")
    monkeypatch.setattr("getpass.getuser", lambda: "planted_user")
    faults = check_recording(forge(honest(kind)))
    assert any(re.search(message, fault) for fault in faults), faults


@pytest.mark.parametrize("text", ["NaN", "Infinity", "1e999", '"3.0"', "true", "[1.0]", "null"])
def test_a_sample_that_is_no_number_is_no_recording(tmp_path, text):
    write(tmp_path / "run.json", honest("old"))
    content = (tmp_path / "run.json").read_text()
    (tmp_path / "run.json").write_text(content.replace("99.14", text, 1))
    with pytest.raises(ValueError, match=r"run\.json is (damaged|not a valid recording)"):
        read_recording(tmp_path / "run.json")


@pytest.mark.parametrize(
    "forge",
    [
        on(samples(1e-9, 2.111e-9, 3.123e-9), what="no synchronise"),
        on(times(3), part="binary", way="bits"),  # a word does 64 at once
        card(cpu="Intel Core i7-5930K CPU @ 3.50GHz"),
        card(cores=1, quota_cores=1.5),  # short samples take what is left of it on two
        card(date=str(TODAY + DAY)),  # as it is somewhere already
        card(date="2026-11-24"),
        lambda r: changed(card(date="2026-11-24")(r), gone, part="clock"),
        on(left_out, part="pass"),
    ],
)
def test_what_can_be_is_accepted(forge):
    assert check_recording(forge(honest("gpu"))) == []


def shaken(recording, seed, busy):
    """The recording as the same machine could have measured it: another clock, noise in each
    measurement and sample, and runs in which other programs took their share."""
    rng = np.random.default_rng(seed)
    clock, rows = rng.uniform(0.85, 1.1), []
    for m in recording.measurements:
        # A clock and a memory have their own; the theoretical peak is not exceeded by noise.
        pace = clock * (rng.lognormal(0, 0.04) if m.unit != "GHz" else 1)
        found = []
        for sample in m.samples:
            slow = rng.uniform(1.2, 3) if rng.random() < busy else 1
            speed = pace * min(1.02, rng.lognormal(0, 0.03)) / slow
            value = sample * {"%": 1, "ms": 1 / speed}.get(m.unit, speed)
            found.append(float(f"{value:.4g}"))
        rows.append(dataclasses.replace(m, samples=tuple(found)))
    return dataclasses.replace(recording, measurements=tuple(rows))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("busy", [0.02, 0.25])
@pytest.mark.parametrize("kind", HONEST)
def test_an_honest_noisy_recording_is_accepted(kind, busy, seed):
    assert check_recording(shaken(honest(kind), seed, busy)) == []
