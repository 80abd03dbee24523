"""A number keeps its provenance, and a file that is not whole is refused."""

import json
import math
import os

import numpy as np
import pytest
from helpers import example
from hypothesis import given
from hypothesis import strategies as st

from fastdl_lib.measuring import evidence
from fastdl_lib.measuring.evidence import Column, Measurement, Provenance, Table, claim_table
from fastdl_lib.measuring.published import published
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


# --- a measurement ------------------------------------------------------------------------------


def test_no_sample_is_no_measurement():
    with pytest.raises(ValueError, match="'conv1' has no samples"):
        Measurement("conv1", "ms", (), Provenance.MEASURED, machine=CARD)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_every_sample_is_finite(bad):
    with pytest.raises(ValueError, match=f"holds {bad}; every sample must be finite"):
        measured(1.0, bad)


@pytest.mark.parametrize("provenance", [Provenance.MEASURED, Provenance.RECORDED])
def test_what_a_machine_measured_needs_the_machine(provenance):
    with pytest.raises(ValueError, match=r"needs a machine card: pass machine=machine_card\(\)"):
        measured(provenance=provenance, machine=None)


@pytest.mark.parametrize(
    "provenance", [Provenance.SIMULATED, Provenance.COMPUTED, Provenance.PUBLISHED]
)
def test_everything_else_needs_a_source(provenance):
    with pytest.raises(ValueError, match=r"needs a source: pass source="):
        measured(provenance=provenance)
    assert measured(provenance=provenance, source="a paper").label == str(provenance)


def test_provenance_must_be_known():
    with pytest.raises(ValueError, match="guessed"):
        measured(provenance="guessed")
    assert measured(provenance="computed", source="x").provenance is Provenance.COMPUTED


@given(st.lists(st.integers(-(10**6), 10**6), min_size=1, max_size=20))
def test_the_spread_is_that_of_the_samples(samples):
    m = measured(*samples)
    assert min(samples) <= m.low <= m.median <= m.high <= max(samples)
    assert (m.low, m.median, m.high) == tuple(np.percentile(samples, [25, 50, 75]))


@given(st.lists(st.floats(min_value=0.1, max_value=1e6), min_size=1, max_size=20))
def test_converting_keeps_samples_and_evidence(samples):
    m = measured(*samples, conditions={"threads": 2})
    rate = m.convert(lambda ms: 1e3 / ms, "images/s")
    assert rate.samples == tuple(1e3 / sample for sample in samples)
    assert (rate.unit, rate.name, rate.provenance) == ("images/s", "conv1", Provenance.MEASURED)
    assert rate.machine is CARD and rate.conditions == {"threads": 2}
    assert m.convert(float, "ms", "renamed").name == "renamed"


def test_text_shows_unit_spread_and_label():
    m = measured(1.0, 2.0, 4.0, conditions={"threads": 2})
    assert str(m) == "2.00 (1.50-3.00) ms (measured here, 3 samples, up to 2 threads)"
    assert str(measured(5.0, conditions={"threads": 1})) == "5.00 ms (measured here, 1 thread)"
    on_gpu = measured(5.0, conditions={"device": "gpu", "warmup": 1})
    assert str(on_gpu) == "5.00 ms (measured here, on the GPU)"
    assert str(measured(5.0)) == "5.00 ms (measured here)"


def test_a_format_shows_the_median_alone_with_unit_and_label():
    m = measured(1.0, 2.04, 4.0, conditions={"threads": 2})
    assert f"{m:.1f}" == "2.0 ms (measured here)"
    assert f"{m:6.1f}" == "   2.0 ms (measured here)"
    assert f"{m}" == str(m)
    count = Measurement.computed("MACs", "MACs", 724_406_816)
    assert f"{count:,.0f}" == "724,406,816 MACs (computed)"


def test_short_ways_to_make_one():
    m = Measurement.measured("error", "%", 1.5, 2.5, machine=CARD, images=100)
    assert m == measured(1.5, 2.5, name="error", unit="%", conditions={"images": 100})
    assert Measurement.measured("error", "%", 1).machine.cores >= 1
    for kind in ("computed", "simulated", "published"):
        made = getattr(Measurement, kind)("x", "ms", 3, "a source", device="gpu")
        assert (made.provenance, made.source, made.samples) == (Provenance(kind), "a source", (3,))
        assert made.conditions == {"device": "gpu"} and made.machine is None


def recorded_on(cpu):
    return measured(2.0, provenance="recorded", machine=example(cpu=cpu))


HERE, COUNTED = measured(2.0), Measurement.computed("bytes", "bytes", 8)
MODEL, PAPER = (
    Measurement("y", "ms", (4.0,), kind, source="z") for kind in ("simulated", "published")
)


@pytest.mark.parametrize(
    ("parents", "label"),
    [
        ((HERE, measured(3.0, machine=example(blas_threads=1))), "measured here"),
        ((recorded_on("A"), recorded_on("A")), "recorded on A, 2025-01-31"),
        ((recorded_on("A"), recorded_on("B")), "computed"),
        ((MODEL, MODEL), "simulated"),
        ((PAPER, PAPER), "computed"),
        ((HERE, PAPER), "computed"),
        ((MODEL, COUNTED), "computed"),
    ],
)
def test_what_is_derived_is_labelled_by_what_it_comes_from(parents, label):
    made = Measurement.derived("new", "x", 3.0, *parents)
    assert (made.label, made.samples, made.name, made.unit) == (label, (3.0,), "new", "x")
    assert all(parent.label in made.source for parent in parents)


def test_a_ratio_keeps_the_spread_and_the_conditions_that_agree():
    a = measured(10.0, 20.0, conditions={"threads": 2, "batch": 1, "warmup": 1})
    b = measured(1.0, 5.0, 9.0, name="b", conditions={"threads": 2, "batch": 4})
    ratio = a.over(b)
    assert (ratio.samples, ratio.unit, ratio.name) == ((2.0, 4.0), "times", "conv1 over b")
    assert ratio.conditions == {"threads": 2} and ratio.machine is CARD


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.5, "0.500"),
        (-12.34, "-12.3"),
        (724_406_816, "724,000,000"),
        (1234.5, "1,230"),
        (0.00001234, "1.23e-05"),
        (9.87e20, "9.87e+20"),
    ],
)
def test_numbers_have_three_digits(value, text):
    assert evidence.format_number(value) == text


# --- recordings ---------------------------------------------------------------------------------


def a_recording():
    measurements = (
        measured(1.0, 2.0, conditions={"threads": 2, "batch": 16}),
        Measurement("MACs", "million", (724.4,), Provenance.COMPUTED, source="costs.py"),
        Measurement("scaling", "x", (56.0,), Provenance.PUBLISHED, source="a blog"),
    )
    return Recording(CARD, "python record.py", measurements)


@pytest.fixture
def recorded(tmp_path):
    """A file with a good recording, and a way to change its fields."""
    path = tmp_path / "run.json"
    write_recording(path, a_recording())

    def change(rule):
        fields = json.loads(path.read_text())
        rule(fields)
        path.write_text(json.dumps(fields))
        return path

    return change


def test_measured_comes_back_recorded(recorded):
    path = recorded(lambda fields: None)
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


def test_a_measurement_is_found_by_name():
    assert a_recording()["MACs"].samples == (724.4,)
    with pytest.raises(KeyError, match=r"no measurement 'fc6'; there are \['conv1', 'MACs'"):
        a_recording()["fc6"]


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
        (
            {"part": "pass", "batch": 2},
            r"has batch=2 where \{'part': 'pass'\}; there is batch 1, 16\.",
        ),
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


def test_each_measurement_has_its_line(recorded):
    path = recorded(lambda fields: None)
    write_recording(path, a_machines_run())
    lines = [line for line in path.read_text().splitlines() if line.startswith("  {")]
    assert [json.loads(line.rstrip(","))["name"] for line in lines] == ["0", "1", "2", "3"]


def test_the_file_ends_in_a_newline_and_holds_its_schema(recorded):
    text = recorded(lambda fields: None).read_text()
    assert json.loads(text)["schema"] == "fastdl-recording/1"


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file gone\.json in .*it holds \[\]"):
        read_recording(tmp_path / "gone.json")


@pytest.mark.parametrize("length", [0, 1, 40, -3])
def test_a_truncated_file_is_refused(recorded, length):
    path = recorded(lambda fields: None)
    path.write_text(path.read_text()[:length])
    with pytest.raises(ValueError, match=r"run\.json is damaged .*git checkout"):
        read_recording(path)


def test_bytes_that_are_no_text_are_refused(recorded):
    path = recorded(lambda fields: None)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        read_recording(path)


@pytest.mark.parametrize("schema", ["fastdl-recording/2", "fastdl-published/1", None, 1])
def test_another_schema_is_refused(recorded, schema):
    path = recorded(lambda fields: fields.update(schema=schema))
    with pytest.raises(ValueError, match=r"run\.json has the schema .*reads 'fastdl-recording/1'"):
        read_recording(path)


def test_json_that_is_no_object_is_refused(tmp_path):
    path = tmp_path / "run.json"
    path.write_text("[1, 2]")
    with pytest.raises(ValueError, match="has the schema None"):
        read_recording(path)


@pytest.mark.parametrize("field", ["machine", "command", "measurements"])
def test_a_missing_field_is_named(recorded, field):
    path = recorded(lambda fields: fields.pop(field))
    with pytest.raises(ValueError, match=rf"run\.json is not a valid recording: .*\['{field}'\]"):
        read_recording(path)


@pytest.mark.parametrize("field", ["name", "unit", "samples", "provenance", "source", "conditions"])
def test_a_measurement_without_a_field_is_refused(recorded, field):
    path = recorded(lambda fields: fields["measurements"][1].pop(field))
    with pytest.raises(ValueError, match=rf"a measurement: missing fields \['{field}'\]"):
        read_recording(path)


def test_a_card_without_a_field_is_refused(recorded):
    path = recorded(lambda fields: fields["machine"].pop("cpu"))
    with pytest.raises(ValueError, match=r"machine card: missing fields \['cpu'\]"):
        read_recording(path)


@pytest.mark.parametrize(
    ("change", "message"),
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
def test_a_damaged_measurement_is_refused(recorded, change, message):
    path = recorded(lambda fields: fields["measurements"][0].update(change))
    with pytest.raises(ValueError, match=rf"not a valid recording: .*{message}"):
        read_recording(path)


def test_a_measurement_that_is_no_object_is_refused(recorded):
    path = recorded(lambda fields: fields["measurements"].append(3))
    with pytest.raises(ValueError, match="a measurement is a JSON object, got int"):
        read_recording(path)


def test_a_failed_write_keeps_the_old_file(recorded, tmp_path, monkeypatch):
    path = recorded(lambda fields: None)
    before = path.read_bytes()

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        write_recording(path, Recording(CARD, "another command", (measured(),)))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_what_json_cannot_hold_is_refused_before_anything_is_written(tmp_path):
    bad = measured(conditions={"learning_rate": math.nan})
    with pytest.raises(ValueError, match="JSON"):
        write_recording(tmp_path / "run.json", Recording(CARD, "x", (bad,)))
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"the folder 'gone' does not exist; make it"):
        write_recording(tmp_path / "gone" / "run.json", a_recording())


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere"
)
def test_a_read_only_folder_raises_and_stays_empty(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        write_recording(tmp_path / "run.json", a_recording())
    assert not list(tmp_path.iterdir())


# --- tables -------------------------------------------------------------------------------------


def a_table():
    columns = (
        Column("layer"),
        Column("time", "forward", "ms", Provenance.MEASURED),
        Column("share", "", "%"),
        Column("macs", "MACs", provenance=Provenance.COMPUTED),
        Column("shape"),
    )
    rows = (
        {
            "layer": "<b>1",
            "time": measured(),
            "share": 91.949,
            "macs": 105_415_200,
            "shape": (3, 4),
        },
        {"layer": "fc6", "time": None, "share": np.float64(0.04), "macs": np.int64(7), "shape": ""},
    )
    return Table(columns, rows, "Layers & times")


def test_a_table_as_text():
    assert str(a_table()).splitlines() == [
        "Layers & times",
        "layer       forward, ms  share, %         MACs  shape",
        "          measured here               computed",
        "<b>1   2.00 (1.50-2.50)      91.9  105,415,200  3x4",
        "fc6                   -       0.0            7",
    ]


def test_a_table_as_html():
    text = a_table()._repr_html_()
    assert "<b>" not in text and "&lt;b&gt;1" in text and "Layers &amp; times" in text
    assert text.count("<tr>") == 3 and text.count("<td") == 10
    assert "forward, ms<br><i style='font-weight:normal'>measured here</i>" in text
    assert "MACs<br><i style='font-weight:normal'>computed</i>" in text


def test_a_table_without_rows_shows_its_header():
    table = Table((Column("layer"),), (), "Nothing")
    assert str(table).splitlines() == ["Nothing", "layer"]
    assert "<tbody></tbody>" in table._repr_html_()


@pytest.mark.parametrize("verdict", ["confirmed", "corrected", "qualified"])
def test_a_claim_has_a_verdict(verdict):
    table = claim_table(("conv takes the time", "59 %", verdict, "table 2"))
    assert [c.key for c in table.columns] == ["claim", "your run says", "verdict", "evidence"]
    assert table.rows[0]["verdict"] == verdict and verdict in str(table)


@pytest.mark.parametrize("verdict", ["", "true", "CONFIRMED"])
def test_any_other_verdict_is_refused(verdict):
    with pytest.raises(ValueError, match="not a valid Verdict"):
        claim_table(("a", "b", verdict, "c"))


def test_a_claim_row_has_four_parts():
    with pytest.raises(ValueError):
        claim_table(("a", "b", "confirmed"))


# --- published tables ---------------------------------------------------------------------------

FIGURE = {
    "schema": "fastdl-published/1",
    "name": "figure",
    "title": "Shares of the forward time",
    "source": "A thesis",
    "url": "https://example.org",
    "item": "Figure 1",
    "how_read": "labels in the figure",
    "caveats": ["one run"],
    "tags": {"READ": "read in the source"},
    "columns": [
        {"name": "layer", "unit": None, "description": "as labelled"},
        {"name": "share_pct", "unit": "%", "description": "of the whole"},
    ],
    "rows": [
        {"layer": "conv1", "share_pct": 60.5, "tag": "READ"},
        {"layer": "fc6", "share_pct": 39.5, "tag": "READ"},
    ],
}


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """Write published tables into a data folder of their own."""
    folder = tmp_path / "published"
    folder.mkdir()
    monkeypatch.setenv("FASTDL_DATA", str(tmp_path))

    def write(rule=lambda fields: None, name="figure"):
        fields = json.loads(json.dumps(FIGURE))
        rule(fields)
        (folder / f"{name}.json").write_text(json.dumps(fields))

    return write


def test_a_published_table_is_read(publish):
    publish()
    table = published("figure")
    assert (table.source, table.item, table.caveats) == ("A thesis", "Figure 1", ("one run",))
    assert table.columns[1] == Column("share_pct", unit="%", provenance=Provenance.PUBLISHED)
    assert [row["share_pct"] for row in table.rows] == [60.5, 39.5]


def test_rows_are_selected(publish):
    publish()
    table = published("figure")
    assert [row["layer"] for row in table.select(layer="fc6", tag="READ")] == ["fc6"]
    with pytest.raises(KeyError, match=r"figure has no column 'device'; it has \['layer'"):
        table.select(device="GPU")
    with pytest.raises(ValueError, match="figure has no row with"):
        table.select(layer="conv9")


def test_a_published_table_says_so_where_it_shows(publish):
    publish()
    shown = published("figure").table(layer="conv1")
    assert shown.caption == "Shares of the forward time (published: A thesis, Figure 1)"
    assert len(shown.rows) == 1 and "published" in str(shown).splitlines()[2]


def test_an_unknown_table_lists_those_there_are(publish):
    publish(name="b")
    publish(name="a")
    with pytest.raises(
        FileNotFoundError, match=r"no file c\.json in published/; it holds \['a\.js"
    ):
        published("c")


def test_a_damaged_table_is_refused(publish, tmp_path):
    publish()
    path = tmp_path / "published" / "figure.json"
    path.write_text(path.read_text()[:-9])
    with pytest.raises(ValueError, match=r"figure\.json is damaged"):
        published("figure")


@pytest.mark.parametrize("field", sorted(FIGURE.keys() - {"schema"}))
def test_a_table_without_a_field_is_refused(publish, field):
    publish(lambda fields: fields.pop(field))
    with pytest.raises(ValueError, match=rf"figure\.json is not a valid .*missing fields.*{field}"):
        published("figure")


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda f: f.update(schema="fastdl-published/9"), "has the schema 'fastdl-published/9'"),
        (lambda f: f["rows"][1].pop("share_pct"), "row 2 must have exactly the columns"),
        (lambda f: f["rows"][0].update(extra=1), "row 1 must have exactly the columns"),
        (lambda f: f["rows"][0].pop("tag"), "row 1 must have exactly the columns"),
        (lambda f: f["rows"].append([1, 2]), "row 3 must have exactly the columns"),
        (lambda f: f["rows"][1].update(tag="HEARD"), "row 2 has the tag 'HEARD'"),
        (lambda f: f["rows"][1].update(tag=["READ"]), r"row 2 has the tag \['READ'\]"),
        (lambda f: f["columns"][0].pop("unit"), r"a column: missing fields \['unit'\]"),
        (lambda f: f["columns"].append("x"), "a column is a JSON object, got str"),
        (lambda f: f.update(rows={}), "'rows' has the wrong type, dict"),
    ],
)
def test_a_table_that_breaks_the_format_is_refused(publish, rule, message):
    publish(rule)
    with pytest.raises(ValueError, match=message):
        published("figure")
