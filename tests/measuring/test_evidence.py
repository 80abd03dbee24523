"""A number keeps its samples and its provenance, wherever it shows."""

import dataclasses
import math

import numpy as np
import pytest
from helpers import example
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdl_lib.measuring.evidence import (
    Column,
    Measurement,
    Provenance,
    Table,
    claim_table,
    format_number,
)

CARD = example()


def measured(*samples, **changes):
    fields = {"name": "conv1", "unit": "ms", "provenance": Provenance.MEASURED, "machine": CARD}
    return Measurement(samples=samples or (1.0, 2.0, 3.0), **{**fields, **changes})


# --- a measurement ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": ()}, "'conv1' has no samples"),
        *(({"samples": (1.0, bad)}, f"holds {bad}; every") for bad in (math.nan, -math.inf)),
        *(
            ({"provenance": kind, "machine": None}, "needs a machine card: pass machine=")
            for kind in ("measured here", "recorded")
        ),
        *(
            ({"provenance": kind}, "needs a source: pass source=")
            for kind in ("simulated", "computed", "published")
        ),
        ({"provenance": "guessed"}, "guessed"),
    ],
)
def test_a_number_without_its_evidence_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(measured(), **changes)


SAMPLES = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=12)
LAWS = settings(derandomize=True, max_examples=100, deadline=None)


@LAWS
@given(SAMPLES)
def test_the_median_lies_within_the_quartiles_and_these_within_the_samples(samples):
    m, close = measured(*samples), 1e-12
    assert min(samples) * (1 - close) <= m.low <= m.median * (1 + close)
    assert m.median <= m.high * (1 + close) <= max(samples) * (1 + 2 * close)
    shuffled = measured(*reversed(samples))
    assert (shuffled.low, shuffled.median, shuffled.high) == (m.low, m.median, m.high)
    scaled = m.convert(lambda ms: 4 * ms, "quarters")
    assert (scaled.low, scaled.median, scaled.high) == (4 * m.low, 4 * m.median, 4 * m.high)


@LAWS
@given(SAMPLES, SAMPLES)
def test_a_ratio_keeps_the_interval_of_what_is_divided(samples, others):
    one, other = measured(*samples), measured(*others, name="other")
    ratio = one.over(other)
    assert (ratio.unit, ratio.provenance) == ("times", Provenance.MEASURED)
    assert len(ratio.samples) == len(samples)
    for kind in ("low", "median", "high"):
        assert getattr(ratio, kind) == pytest.approx(getattr(one, kind) / other.median, rel=1e-9)
    assert one.over(one).median == pytest.approx(1)
    back = measured(other.median).over(measured(one.median))
    assert ratio.median * back.median == pytest.approx(1, rel=1e-9)
    assert ratio.low <= ratio.median * (1 + 1e-12) and ratio.median <= ratio.high * (1 + 1e-12)


@pytest.mark.parametrize("other", [measured(2.0, unit="s"), measured(0.0), measured(-1.0, 1.0)])
def test_a_ratio_of_two_units_or_by_zero_is_refused(other):
    with pytest.raises(ValueError, match=r"'conv1', in ms, cannot be divided by 'conv1', .* not 0"):
        measured(3.0).over(other)


@pytest.mark.parametrize(
    "rule", [lambda ms: ms * 1e308 * 1e308, lambda ms: math.nan, lambda ms: "1"]
)
def test_what_becomes_no_number_is_refused(rule):
    with pytest.raises((ValueError, TypeError), match="'conv1' h"):
        measured(3.0).convert(rule, "x")


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=20))
def test_spread_and_conversion_are_those_of_the_samples(samples):
    m = measured(*samples, conditions={"threads": 2})
    assert (m.low, m.median, m.high) == tuple(np.percentile(samples, [25, 50, 75]))
    rate = m.convert(lambda ms: 1e3 / ms, "images/s")
    assert rate.samples == tuple(1e3 / sample for sample in samples)
    assert (rate.unit, rate.name, rate.provenance) == ("images/s", "conv1", Provenance.MEASURED)
    assert rate.machine is CARD and rate.conditions == {"threads": 2}
    assert m.convert(float, "ms", "renamed").name == "renamed"


@pytest.mark.parametrize(
    ("measurement", "spec", "text"),
    [
        (measured(5.0), "", "5.00 ms (measured here)"),
        (measured(5.0, conditions={"threads": 1}), "", "5.00 ms (measured here, 1 thread)"),
        (measured(5.0, conditions={"device": "gpu"}), "", "5.00 ms (measured here, on the GPU)"),
        (
            measured(1.0, 2.0, 4.0, conditions={"threads": 2}),
            "",
            "2.00 (1.50-3.00) ms (measured here, 3 samples, up to 2 threads)",
        ),
        (measured(1.0, 2.04, 4.0, conditions={"threads": 2}), ".1f", "2.0 ms (measured here)"),
        (measured(2.0), "6.1f", "   2.0 ms (measured here)"),
        (Measurement.computed("n", "MACs", 724_406_816), ",.0f", "724,406,816 MACs (computed)"),
    ],
)
def test_text_shows_unit_and_label(measurement, spec, text):
    assert format(measurement, spec) == text
    assert spec or str(measurement) == text


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
        *((0, "0"), (0.5, "0.500"), (-12.34, "-12.3"), (724_406_816, "724,000,000")),
        *((1234.5, "1,230"), (0.00001234, "1.23e-05"), (9.87e20, "9.87e+20")),
    ],
)
def test_numbers_have_three_digits(value, text):
    assert format_number(value) == text


# --- tables -------------------------------------------------------------------------------------

TABLE = Table(
    (
        Column("layer"),
        Column("time", "forward", "ms", Provenance.MEASURED),
        Column("share", "", "%"),
        Column("macs", "MACs", provenance=Provenance.COMPUTED),
        Column("shape"),
    ),
    (
        dict(layer="<b>1", time=measured(), share=91.949, macs=105_415_200, shape=(3, 4)),
        dict(layer="fc6", time=None, share=np.float64(0.04), macs=np.int64(7), shape=""),
    ),
    "Layers & times",
)


def test_a_table_as_text():
    assert str(TABLE).splitlines() == [
        "Layers & times",
        "layer       forward, ms  share, %         MACs  shape",
        "          measured here               computed",
        "<b>1   2.00 (1.50-2.50)      91.9  105,415,200  3x4",
        "fc6                   -       0.0            7",
    ]
    assert str(Table((Column("layer"),), (), "Nothing")).splitlines() == ["Nothing", "layer"]


def test_a_cell_shows_what_is_no_usual_number_as_such():
    values = [math.inf, -np.inf, np.float32("nan"), None, True, np.True_, (), "", -0.0]
    shown = ["inf", "-inf", "nan", "-", "True", "True", "", ""]
    for unit, zero in (("ms", "0"), ("%", "-0.0")):
        column = Column("x", unit=unit)
        assert [column.show(value) for value in values] == [*shown, zero]
        rows = tuple({"x": value} for value in values)
        assert str(Table((column,), rows, "All")).count("inf") == 2
        assert Table((column,), rows, "All")._repr_html_().count("<td") == len(values)


def test_a_table_as_html():
    text = TABLE._repr_html_()
    assert "<b>" not in text and "&lt;b&gt;1" in text and "Layers &amp; times" in text
    assert text.count("<tr>") == 3 and text.count("<td") == 10
    assert "forward, ms<br><i style='font-weight:normal'>measured here</i>" in text
    assert "MACs<br><i style='font-weight:normal'>computed</i>" in text


def test_a_claim_has_a_verdict():
    verdicts = ("confirmed", "corrected", "qualified")
    table = claim_table(*(("conv takes the time", "59 %", kind, "table 2") for kind in verdicts))
    assert [c.key for c in table.columns] == ["claim", "your run says", "verdict", "evidence"]
    assert tuple(row["verdict"] for row in table.rows) == verdicts
    for wrong in ("", "true", "CONFIRMED"):
        with pytest.raises(ValueError, match="not a valid Verdict"):
            claim_table(("a", "b", wrong, "c"))
    with pytest.raises(ValueError):
        claim_table(("a", "b", "confirmed"))
