"""A recording keeps what was measured, and a file that is not whole is refused."""

import json
import math
import os

import pytest
from helpers import example

from fastdl_lib.measuring.evidence import Measurement, Provenance
from fastdl_lib.measuring.recordings import (
    Recording,
    machine_recordings,
    read_recording,
    write_recording,
)

CARD = example()


def measured(*samples, **changes):
    fields = {"name": "conv1", "unit": "ms", "provenance": Provenance.MEASURED, "machine": CARD}
    return Measurement(samples=samples or (1.0, 2.0, 3.0), **{**fields, **changes})


def a_recording():
    measurements = (
        measured(1.0, 2.0, conditions={"threads": 2, "batch": 16}),
        Measurement.computed("MACs", "million", 724.4, "costs.py"),
        Measurement.published("scaling", "x", 56.0, "a blog"),
    )
    return Recording(CARD, "python record.py", measurements)


@pytest.fixture
def path(tmp_path):
    """A file with a good recording."""
    write_recording(tmp_path / "run.json", a_recording())
    return tmp_path / "run.json"


def change(path, rule):
    fields = json.loads(path.read_text())
    rule(fields)
    path.write_text(json.dumps(fields))


# --- what is found in it ------------------------------------------------------------------------


def test_measured_comes_back_recorded(path):
    back = read_recording(path)
    assert back.machine == CARD and back.command == "python record.py"
    first, macs, scaling = back.measurements
    assert first == measured(
        1.0, 2.0, provenance=Provenance.RECORDED, conditions={"threads": 2, "batch": 16}
    )
    assert first.label == "recorded on Example CPU, 2025-01-31"
    assert macs.label == "computed" and macs.source == "costs.py"
    assert scaling.label == "published" and scaling.source == "a blog"
    # What was recorded once stays recorded, however often it is copied.
    write_recording(path, back)
    assert read_recording(path) == back


def a_machines_run():
    rows = [
        {"part": "pass", "device": "cpu", "batch": 1, "threads": 1},
        {"part": "pass", "device": "cpu", "batch": 16, "threads": 2},
        {"part": "pass", "device": "gpu", "batch": 16},
        {"part": "copy"},
    ]
    measurements = (measured(name=str(i), conditions=row) for i, row in enumerate(rows))
    return Recording(CARD, "python record.py", tuple(measurements))


@pytest.mark.parametrize(
    ("conditions", "names"),
    [
        ({}, "0123"),
        ({"part": "pass"}, "012"),
        ({"part": "pass", "batch": 16}, "12"),
        ({"batch": 16, "device": "gpu"}, "2"),
        ({"threads": 2}, "1"),
    ],
)
def test_measurements_are_selected_by_their_conditions(conditions, names):
    recording = a_machines_run()
    assert "".join(m.name for m in recording.select(**conditions)) == names
    assert recording.has(**conditions)


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({"part": "race"}, r"has part='race'; there is part 'pass', 'copy'\."),
        ({"part": "pass", "batch": 2}, r"batch=2 where \{'part': 'pass'\}; there is batch 1, 16\."),
        ({"part": "pass", "layer": "conv1"}, "has layer='conv1' where .*; none says its layer"),
        ({"part": "pass", "device": "gpu", "threads": None}, "none says its threads"),
    ],
)
def test_what_was_not_recorded_is_answered_by_what_was(conditions, message):
    recording = a_machines_run()
    with pytest.raises(ValueError, match=message):
        recording.select(**conditions)
    assert not recording.has(**conditions)


def test_the_machines_recordings_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTDL_DATA", str(tmp_path))
    folder = tmp_path / "recordings"
    folder.mkdir()
    assert machine_recordings() == {}
    for name in ("machine_b", "machine_a", "speed"):
        write_recording(folder / f"{name}.json", a_machines_run())
    assert list(machine_recordings()) == ["machine_a", "machine_b"]
    assert machine_recordings()["machine_a"].has(part="copy")
    (folder / "machine_c.json").write_text("{")
    with pytest.raises(ValueError, match=r"machine_c\.json is damaged"):
        machine_recordings()


def test_each_measurement_has_its_line(path):
    write_recording(path, a_machines_run())
    text = path.read_text()
    lines = [line for line in text.splitlines() if line.startswith("  {")]
    assert [json.loads(line.rstrip(","))["name"] for line in lines] == ["0", "1", "2", "3"]
    assert text.endswith("}\n") and json.loads(text)["schema"] == "fastdl-recording/1"


# --- a file that is not whole -------------------------------------------------------------------


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file gone\.json in .*it holds \[\]"):
        read_recording(tmp_path / "gone.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", r"run\.json is damaged .*git checkout"),
        (b'{"schema": "fastdl-rec', r"run\.json is damaged .*git checkout"),
        (b"\xff\xfe\x00", r"run\.json is damaged"),
        (b"[1, 2]", r"run\.json has the schema None, .*reads 'fastdl-recording/1'"),
        (b'{"schema": "fastdl-recording/2"}', "has the schema 'fastdl-recording/2'"),
        (b'{"schema": "fastdl-published/1"}', "has the schema 'fastdl-published/1'"),
    ],
)
def test_what_is_no_recording_is_refused(path, text, message):
    path.write_bytes(text)
    with pytest.raises(ValueError, match=message):
        read_recording(path)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda f: f.pop("machine"), r"\['machine'\]"),
        (lambda f: f.pop("command"), r"\['command'\]"),
        (lambda f: f["machine"].pop("cpu"), r"machine card: missing fields \['cpu'\]"),
        (lambda f: f["measurements"].append(3), "a measurement is a JSON object, got int"),
        *(
            (lambda f, key=key: f["measurements"][1].pop(key), rf"missing fields \['{key}'\]")
            for key in ("name", "unit", "samples", "provenance", "source", "conditions")
        ),
    ],
)
def test_a_field_that_is_missing_is_named(path, rule, message):
    change(path, rule)
    with pytest.raises(ValueError, match=rf"run\.json is not a valid recording: .*{message}"):
        read_recording(path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"provenance": "guessed"}, "provenance 'guessed' is none of"),
        ({"provenance": "measured here"}, "is none of"),
        ({"samples": [1.0, math.nan]}, "holds nan"),
        ({"samples": [math.inf]}, "holds inf"),
        ({"samples": []}, "has no samples"),
        ({"samples": ["1.0"]}, "samples must be numbers"),
        ({"samples": [True]}, "samples must be numbers"),
        ({"samples": 1.0}, "'samples' has the wrong type, float"),
        ({"samples": [10**400]}, "too large"),
        ({"name": 3}, "'name' has the wrong type, int"),
        ({"conditions": []}, "'conditions' has the wrong type"),
        ({"extra": 1}, r"unknown fields \['extra'\]"),
    ],
)
def test_a_damaged_measurement_is_refused(path, wrong, message):
    change(path, lambda fields: fields["measurements"][0].update(wrong))
    with pytest.raises(ValueError, match=rf"not a valid recording: .*{message}"):
        read_recording(path)


# --- writing ------------------------------------------------------------------------------------


def test_a_failed_write_keeps_the_old_file(path, tmp_path, monkeypatch):
    before = path.read_bytes()

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        write_recording(path, a_machines_run())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "kept", [{"rate": math.nan}, {"shape": (3, 3)}, {1: "one"}, {"x": object()}]
)
def test_what_json_does_not_keep_is_refused_before_anything_is_written(tmp_path, kept):
    bad = measured(conditions=kept)
    with pytest.raises((ValueError, TypeError), match="JSON"):
        write_recording(tmp_path / "run.json", Recording(CARD, "x", (bad,)))
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"the folder 'gone' does not exist; make it"):
        write_recording(tmp_path / "gone" / "run.json", a_recording())
