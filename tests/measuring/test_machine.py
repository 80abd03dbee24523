"""The machine card says what decides a time, and nothing about a person or a computer's name."""

import dataclasses
import datetime
import getpass
import json
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


def test_the_card_is_filled():
    card = machine_card()
    assert card.cpu and card.blas and card.gpu and card.system and card.python
    assert card.cores >= 1 and card.blas_threads >= 1 and card.memory_gib > 0
    assert card.versions.keys() == {"numpy", "matplotlib", "jupyterlab", "fastdl"}
    assert datetime.date.fromisoformat(card.date)


def test_the_card_names_no_host_no_user_and_no_path(monkeypatch, tmp_path):
    # Names that cannot be there by chance, wherever a careless line would look for them.
    monkeypatch.setattr(platform, "node", lambda: "planted-host")
    monkeypatch.setattr(socket, "gethostname", lambda: "planted-host")
    monkeypatch.setattr(getpass, "getuser", lambda: "planted-user")
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


def test_the_summary_has_what_a_caption_needs():
    assert example().summary == (
        "Example CPU, 8 cores, OpenBLAS 0.3.30 (Haswell) on 4 threads, NumPy 2.4.6, 2025-01-31"
    )
    with_gpu = example(blas_threads=1, gpu="Example GPU").summary
    assert "on 1 thread, Example GPU, NumPy" in with_gpu
    assert "Example CPU, 1 core, " in example(cores=1).summary


def test_html_is_escaped():
    assert "<script>" not in example(cpu="<script>")._repr_html_()
    assert "measured here" in example()._repr_html_()


def test_round_trip_through_json():
    for card in (machine_card(), example()):
        assert MachineCard.from_dict(json.loads(json.dumps(card.to_dict()))) == card


def without(field):
    return {key: value for key, value in example().to_dict().items() if key != field}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        *(
            (without(f.name), rf"missing fields \['{f.name}'\]")
            for f in dataclasses.fields(MachineCard)
        ),
        ({**example().to_dict(), "hostname": "x"}, r"unknown fields \['hostname'\]"),
        *(
            ({**example().to_dict(), key: wrong}, f"'{key}' has the wrong type")
            for key, wrong in (
                *(("cores", "8"), ("cores", True), ("cores", 1.5), ("memory_gib", None)),
                *(("cpu", 3), ("versions", ["numpy"])),
            )
        ),
        *((wrong, "a machine card is a JSON object") for wrong in (None, [], "card")),
    ],
)
def test_what_is_no_card_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        MachineCard.from_dict(fields)


def test_a_whole_number_of_gib_is_read():
    assert MachineCard.from_dict({**example().to_dict(), "memory_gib": 16}).memory_gib == 16


# --- a container's limits -----------------------------------------------------------------------


@pytest.fixture
def fresh():
    """What is kept from one card to the next is asked for again, before and after."""
    machine._memory_gib.cache_clear()
    yield
    machine._memory_gib.cache_clear()


def test_the_next_card_is_made_without_asking_again(monkeypatch):
    first = machine_card()

    def asked(*_):
        raise AssertionError("asked again")

    for module, name in ((machine.platform, "system"), (machine.psutil, "virtual_memory")):
        monkeypatch.setattr(module, name, asked)
    monkeypatch.setattr(machine.metadata, "version", asked)
    assert machine_card() == first


def test_the_threads_and_the_day_are_those_of_the_moment(monkeypatch):
    monkeypatch.setattr(machine, "blas_threads_now", lambda: 97)
    assert machine_card().blas_threads == 97


@pytest.fixture
def cgroup(tmp_path, monkeypatch, fresh):
    """Write a container's limit files; the machine itself has 8 cores and 64 GiB."""

    def as_if(path):
        return tmp_path if str(path) == "/sys/fs/cgroup" else pathlib.Path(path)

    monkeypatch.setattr(threads, "Path", as_if)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    memory = SimpleNamespace(total=64 * GIB)
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: memory)
    return lambda file, text: (tmp_path / file).write_text(text)


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("200000 100000\n", 2),
        ("50000 100000\n", 1),
        ("150000 100000\n", 2),
        ("1600000 100000\n", 8),
        ("max 100000\n", 8),
        ("", 8),
    ],
)
def test_a_cpu_quota_is_honoured(cgroup, quota, cores):
    cgroup("cpu.max", quota)
    assert machine_card().cores == cores


@pytest.mark.parametrize(
    ("limit", "gib"), [(f"{4 * GIB}\n", 4.0), ("max\n", 64.0), (f"{128 * GIB}\n", 64.0)]
)
def test_a_memory_limit_is_honoured(cgroup, limit, gib):
    cgroup("memory.max", limit)
    assert machine_card().memory_gib == gib


def test_no_container_no_limit(cgroup):
    card = machine_card()
    assert (card.cores, card.memory_gib) == (8, 64.0)


def test_without_affinity_all_cores_count(cgroup, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert machine_card().cores == 3
