"""A recording keeps what was measured, and a file that is not whole is refused."""

import dataclasses
import json
import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
from helpers import example
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdl_lib.measuring.evidence import Measurement, Provenance
from fastdl_lib.measuring.recordings import (
    Recording,
    machine_recordings,
    read_recording,
    write_recording,
)

CARD = example()


def measured(name="conv1", **conditions):
    return Measurement.measured(name, "ms", 1.0, 2.0, machine=CARD, **conditions)


RUN = Recording(
    CARD,
    "python record.py",
    (
        measured("0", part="pass", device="cpu", batch=1, threads=1),
        measured("1", part="pass", device="cpu", batch=16, threads=2),
        measured("2", part="pass", device="gpu", batch=16),
        measured("3", part="copy"),
        Measurement.computed("MACs", "million", 724.4, "costs.py"),
        Measurement.published("scaling", "x", 56.0, "a blog"),
    ),
)


@pytest.fixture
def path(tmp_path):
    """A file with a good recording."""
    write_recording(tmp_path / "run.json", RUN)
    return tmp_path / "run.json"


# --- what is found in it ------------------------------------------------------------------------


def test_measured_comes_back_recorded(path):
    back = read_recording(path)
    assert back.machine == CARD and back.command == "python record.py"
    first, *_, macs, scaling = back.measurements
    assert first == dataclasses.replace(RUN["0"], provenance=Provenance.RECORDED)
    assert first.label == "recorded on Example CPU, 2025-01-31"
    assert (macs.label, macs.source) == ("computed", "costs.py")
    assert (scaling.label, scaling.source) == ("published", "a blog")
    # What was recorded once stays recorded, however often it is copied.
    write_recording(path, back)
    assert read_recording(path) == back
    # Each measurement has its line.
    lines = [line for line in path.read_text().splitlines() if line.startswith("  {")]
    names = [json.loads(line.rstrip(","))["name"] for line in lines]
    assert names == [m.name for m in RUN.measurements]


@pytest.mark.parametrize(
    ("conditions", "names", "message"),
    [
        ({"part": "pass"}, "012", ""),
        ({"part": "pass", "batch": 16}, "12", ""),
        ({"threads": 2}, "1", ""),
        ({"part": "race"}, "", r"has part='race'; there is part 'pass', 'copy'\."),
        ({"part": "pass", "batch": 2}, "", r"batch=2 where .*'pass'\}; there is batch 1, 16\."),
        ({"part": "pass", "layer": "conv1"}, "", "layer='conv1' where .*; none says its layer"),
        ({"part": "pass", "device": "gpu", "threads": None}, "", "none says its threads"),
    ],
)
def test_measurements_are_selected_or_it_is_said_which_there_are(conditions, names, message):
    assert RUN.has(**conditions) == bool(names)
    if names:
        assert "".join(m.name for m in RUN.select(**conditions)) == names
    else:
        with pytest.raises(ValueError, match=message):
            RUN.select(**conditions)


def test_the_machines_recordings_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTDL_DATA", str(tmp_path))
    folder = tmp_path / "recordings"
    folder.mkdir()
    assert machine_recordings() == {}
    for name in ("machine_b", "machine_a", "speed"):
        write_recording(folder / f"{name}.json", RUN)
    assert list(machine_recordings()) == ["machine_a", "machine_b"]
    (folder / "machine_c.json").write_text("{")
    with pytest.raises(ValueError, match=r"machine_c\.json is damaged"):
        machine_recordings()


# --- a file that is not whole -------------------------------------------------------------------


def changed(**changes):
    return lambda fields: fields["measurements"][0].update(changes)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        *((lambda f, key=key: f.pop(key), rf"missing fields \['{key}'\]")
          for key in ("machine", "command", "measurements")),
        (lambda f: f["machine"].pop("cpu"), r"machine card: missing fields \['cpu'\]"),
        (lambda f: f["measurements"].append(3), "a measurement is a JSON object, got int"),
        *((lambda f, key=key: f["measurements"][1].pop(key), rf"missing fields \['{key}'\]")
          for key in ("name", "unit", "samples", "provenance", "source", "conditions")),
        (changed(provenance="guessed"), "provenance 'guessed' is none of"),
        (changed(provenance="Measured"), "is none of"),
        (changed(samples=[]), "has no samples"),
        (changed(samples=[[1.0]]), r"has the sample \[1.0\]; every one must be a number"),
        (changed(name=""), "a measurement has no name"),
        (lambda f: f.update(command=""), "does not say the command"),
        (lambda f: f["machine"].update(memory_gib=0), "memory_gib is 0"),
        (changed(samples=[10**400]), "too large"),
        (changed(extra=1), r"unknown fields \['extra'\]"),
    ],
)  # fmt: skip
def test_a_recording_that_breaks_the_format_is_refused(path, rule, message):
    fields = json.loads(path.read_text())
    rule(fields)
    path.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=rf"run\.json is not a valid recording: .*{message}"):
        read_recording(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", r"run\.json is damaged .*git checkout"),
        (b'{"schema": "fastdl-rec', r"run\.json is damaged .*git checkout"),
        (b"\xff\xfe\x00", r"run\.json is damaged"),
        (b"[" * 100_000, r"run\.json is damaged .*its brackets are nested too deeply"),
        (b"NaN", "it holds NaN, which is no"),
        (b'{"schema": "x", "schema": "x"}', "an object has a key twice"),
        (b"[1, 2]", "has the schema None"),
        (b'{"schema": "x", "machine": 1e999}', "it holds 1e999, which is no finite number"),
        (b'{"schema": "fastdl-recording/2"}', "has the schema '.*/2', .*reads 'fastdl-recording/1"),
    ],
)
def test_a_damaged_recording_is_refused(path, text, message):
    path.write_bytes(text)
    with pytest.raises(ValueError, match=message):
        read_recording(path)
    with pytest.raises(FileNotFoundError, match=r"no file gone\.json .*it holds \['run\.json'\]"):
        read_recording(path.with_name("gone.json"))


# --- writing ------------------------------------------------------------------------------------


def test_a_failed_write_keeps_the_old_file(path, tmp_path, monkeypatch):
    before = path.read_bytes()

    def full(part, text, **_):
        part.write_bytes(text[:100].encode())
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space left"):
        write_recording(path, dataclasses.replace(RUN, command="another"))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, width=64),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.dictionaries(st.text(), JSON, max_size=4), st.lists(st.floats(), min_size=1, max_size=5))
def test_conditions_and_samples_come_back_as_they_were_or_are_refused(conditions, samples):
    """Equal and of the same types: 1, 1.0 and True are three, and so are 0.0 and -0.0."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.json"
        try:
            m = Measurement("m", "ms", samples, Provenance.MEASURED, CARD, "", conditions)
        except ValueError:
            assert "inf" in repr((conditions, samples)) or "nan" in repr(samples)
            return
        write_recording(path, Recording(CARD, "x", (m,)))
        back = read_recording(path)["m"]
    assert repr(back.conditions) == repr(conditions) and repr(back.samples) == repr(tuple(samples))


@pytest.mark.parametrize(
    ("given", "kept"),
    [(np.int8(3), 3), (np.float32(0.5), 0.5), (np.bool_(True), True), ([np.str_("a")], ["a"])],
)
def test_numbers_of_numpy_become_pythons(given, kept):
    assert repr(measured(kept=given).conditions["kept"]) == repr(kept)
    assert type(Measurement.measured("m", "ms", np.float32(0.5)).samples[0]) is float


@pytest.mark.parametrize("odd", [(3, 3), {1: "one"}, {3}, b"x", 1j, [(1,)], np.zeros(2), Path("x")])
def test_what_a_recording_cannot_keep_is_refused_when_it_is_measured(odd):
    with pytest.raises(TypeError, match="'conv1': no recording keeps"):
        measured(kept=odd)
    for sample in ("1.0", True, None, 1j, [1.0]):
        with pytest.raises(TypeError, match="every one must be a number"):
            Measurement.measured("conv1", "ms", sample, machine=CARD)


def test_what_another_machine_measured_is_no_part_of_a_recording(tmp_path):
    theirs = dataclasses.replace(measured(), machine=example(cores=96))
    for run in (
        Recording(CARD, "x", (theirs,)),
        Recording(CARD, "", (measured(),)),
        Recording(CARD, "x", (measured(""),)),
        Recording(example(memory_gib=math.inf), "x", ()),
    ):
        with pytest.raises(ValueError, match=r"another machine|command|no name|inf"):
            write_recording(tmp_path / "run.json", run)
    assert not list(tmp_path.iterdir())
