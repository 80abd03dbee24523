"""The machine card says what decides a time, and nothing about a person or a computer's name."""

import dataclasses
import datetime
import getpass
import json
import math
import os
import pathlib
import platform
import socket
import sys
from types import SimpleNamespace

import pytest
from helpers import example

from fastdl_lib.core import threads
from fastdl_lib.measuring import machine
from fastdl_lib.measuring.machine import MachineCard, machine_card

GIB = 2**30


def test_the_card_is_filled_and_comes_back_from_json():
    card = machine_card()
    assert card.cpu and card.blas and card.gpu and card.system and card.python
    assert card.cores >= 1 and card.blas_threads >= 1 and card.memory_gib > 0
    assert card.versions.keys() == {"numpy", "matplotlib", "jupyterlab", "fastdl"}
    assert datetime.date.fromisoformat(card.date)
    for one in (card, example(memory_gib=16), example(lanes=8, highest_ghz=3.5)):
        assert MachineCard.from_dict(json.loads(json.dumps(one.to_dict()))) == one


def test_the_card_names_no_host_no_user_and_no_path(monkeypatch, tmp_path):
    # Names that cannot be there by chance, wherever a careless line would look for them.
    for module, name in ((platform, "node"), (socket, "gethostname"), (getpass, "getuser")):
        monkeypatch.setattr(module, name, lambda: "planted-name")
    for name in ("USER", "LOGNAME", "USERNAME", "HOSTNAME", "COMPUTERNAME"):
        monkeypatch.setenv(name, "planted-name")
    monkeypatch.chdir(tmp_path)
    card = machine_card()
    for text in (str(card), card._repr_html_(), card.summary, json.dumps(card.to_dict())):
        assert "planted" not in text
        for path in (pathlib.Path.cwd(), pathlib.Path.home(), sys.prefix):
            assert str(path) not in text or str(path) == "/"
        assert "\\" not in text
    # No path at all; the name of a CPU may well hold a slash, and in HTML it closes a tag.
    card = dataclasses.replace(card, cpu="")
    assert "/" not in str(card) and "/" not in card._repr_html_().replace("</", "<")


def test_a_failing_gpu_brings_no_path_onto_the_card(fake_gpu, monkeypatch):
    def no_library(*_):
        raise OSError(r"/home/alice/lib/libnvrtc.so: no such file, nor C:\Users\Alice Li\nvrtc.dll")

    monkeypatch.setattr(fake_gpu, "arange", no_library)
    gpu = machine_card().gpu
    assert gpu.startswith("none. CuPy's test kernel failed (OSError: ") and "pip install" in gpu
    assert not {"/", "\\"} & set(gpu) and "alice" not in gpu.lower()


def test_how_a_card_shows():
    assert example().summary == (
        "Example CPU, 8 cores, OpenBLAS 0.3.30 (Haswell) on 4 threads, NumPy 2.4.6, 2025-01-31"
    )
    with_gpu = example(cores=1, blas_threads=1, gpu="Example GPU").summary
    assert "CPU, 1 core, " in with_gpu and "on 1 thread, Example GPU, NumPy" in with_gpu
    shown = example(cpu="<script>")._repr_html_()
    assert "<script>" not in shown and "measured here" in shown


def test_the_theoretical_peak_counts_lanes_units_cores_and_clock():
    card = example(cores=2, lanes=16, highest_ghz=3.5)
    assert card.peak_gflops() == 2 * 16 * 2 * 2 * 3.5 == 2 * card.peak_gflops("float64")
    words = "448 GFLOP/s = 2 cores x 16 lanes x at most 2 FMA units x 2 x 3.50 GHz"
    assert words in str(card) and words in card._repr_html_()
    for unknown in (example(lanes=16), example(highest_ghz=3.5), example()):
        assert unknown.peak_gflops() == 0 and "unknown" in str(unknown)
    assert example(lanes=16, cores=1).peak_gflops(ghz=2.0) == 128
    assert "  1 core x 16 lanes x at most" in str(example(lanes=16, cores=1))


@pytest.mark.parametrize(
    ("flags", "khz", "parts"),
    [
        ("flags : fpu sse2 fma avx2", [3_500_000, 4_700_000], (8, 4.7)),
        ("flags : fpu fma avx512f amx_tile", [], (16, 0.0)),
        ("Features : fp asimd sve", [], (0, 0.0)),
        ("flags : fpu sse2", [], (0, 0.0)),
        (None, [], (0, 0.0)),
    ],
)
def test_lanes_and_clock_are_what_the_system_tells(monkeypatch, tmp_path, flags, khz, parts):
    (tmp_path / "cpuinfo").write_text(f"model name : A CPU\n{flags}\n")
    for core, each in enumerate(khz):
        (tmp_path / f"cpu{core}" / "cpufreq").mkdir(parents=True)
        (tmp_path / f"cpu{core}" / "cpufreq" / "cpuinfo_max_freq").write_text(f"{each}\n")
    there = {"/proc/cpuinfo": tmp_path / "cpuinfo", "/sys/devices/system/cpu": tmp_path}
    monkeypatch.setattr(machine, "Path", there.__getitem__)
    monkeypatch.setattr(machine.sys, "platform", "linux" if flags else "darwin")
    assert machine._peak_parts() == parts


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cpu": ""}, "cpu is empty"),
        ({"cores": 0}, "cores is 0, 1 is the least"),
        ({"memory_gib": 0}, "memory_gib is 0, 0.01 is the least"),
        ({"memory_gib": math.inf}, "memory_gib is inf"),
        ({"memory_gib": math.nan}, "memory_gib is nan"),
        ({"blas_threads": -1}, "blas_threads is -1"),
        ({"lanes": -8}, "lanes is -8"),
        ({"versions": {"numpy": 2}}, "versions hold 2, which is no text"),
        ({"hostname": "x"}, r"unknown fields \['hostname'\]"),
        *(({name: odd}, f"'{name}' has the wrong type")
          for name, odd in (("cores", True), ("cores", 1.5), ("cpu", 3), ("versions", ["numpy"]))),
    ],
)  # fmt: skip
def test_what_is_no_card_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        MachineCard.from_dict(example().to_dict() | change)


def test_a_card_holds_every_field_but_those_that_older_ones_lack():
    for field in dataclasses.fields(MachineCard):
        fields = example().to_dict()
        del fields[field.name]
        if field.default is dataclasses.MISSING:
            with pytest.raises(ValueError, match=rf"missing fields \['{field.name}'\]"):
                MachineCard.from_dict(fields)
        else:
            assert MachineCard.from_dict(fields) == example()


def test_the_next_card_asks_only_for_what_changes(monkeypatch):
    first = machine_card()

    def asked(*_):
        raise AssertionError("asked again")

    for module, name in ((machine.platform, "system"), (machine.psutil, "virtual_memory")):
        monkeypatch.setattr(module, name, asked)
    monkeypatch.setattr(machine.metadata, "version", asked)
    monkeypatch.setattr(machine, "blas_threads_now", lambda: 97)
    assert machine_card() == dataclasses.replace(first, blas_threads=97)


@pytest.fixture
def cgroup(tmp_path, monkeypatch):
    """The folder of a container's limit files; the machine itself has 8 cores and 64 GiB."""

    monkeypatch.setattr(threads, "_CONTROL_GROUPS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    memory = SimpleNamespace(total=64 * GIB)
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: memory)
    machine._lasting.cache_clear()
    yield tmp_path
    machine._lasting.cache_clear()


@pytest.mark.parametrize(
    ("file", "text", "cores", "gib"),
    [
        (None, "", 8, 64.0),
        ("cpu.max", "170000 100000\n", 1, 64.0),
        ("cpu.max", "1600000 100000\n", 8, 64.0),
        ("cpu.max", "", 8, 64.0),
        ("memory.max", f"{4 * GIB}\n", 8, 4.0),
        ("memory.max", f"{128 * GIB}\n", 8, 64.0),
    ],
)
def test_a_containers_limit_is_honoured(cgroup, file, text, cores, gib):
    if file:
        (cgroup / file).write_text(text)
    card = machine_card()
    assert (card.cores, card.memory_gib) == (cores, gib)
    assert card.quota_cores == (1.7 if cores == 1 else 0)
    assert ("1 (a quota of 1.7)" in str(card)) == (cores == 1) == ("1 core (a quo" in card.summary)


def test_without_affinity_all_cores_count(cgroup, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert machine_card().cores == 3
