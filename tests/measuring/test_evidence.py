"""A number keeps its samples and its provenance, wherever it shows."""

import dataclasses
import math
from functools import partial

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
    ("call", "error", "message"),
    [
        *((partial(dataclasses.replace, measured(), **changes), ValueError, message)
          for changes, message in (
            ({"samples": ()}, "'conv1' has no samples"),
            *(({"samples": (1.0, bad)}, f"holds {bad}; every") for bad in (math.nan, -math.inf)),
            *(({"provenance": kind, "machine": None}, "needs a machine card: pass machine=")
              for kind in ("measured here", "recorded")),
            *(({"provenance": kind}, "needs a source: pass source=")
              for kind in ("simulated", "computed", "published")),
            ({"provenance": "guessed"}, "guessed"),
        )),
        *((partial(measured(3.0).over, other), ValueError, "'conv1', in ms, cannot be divided by ")
          for other in (measured(2.0, unit="s"), measured(0.0), measured(-1.0, 1.0))),
        (partial(measured(3.0).convert, lambda ms: math.nan, "x"), ValueError, "'conv1' holds nan"),
        (partial(measured(3.0).convert, lambda ms: "1", "x"), TypeError, "'conv1' has the sample"),
    ],
)  # fmt: skip
def test_a_number_without_its_evidence_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


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
    assert (scaled.unit, scaled.name, scaled.machine) == ("quarters", "conv1", CARD)
    ratio = m.over(close_by := measured(*samples, name="b"))
    assert ratio.median == pytest.approx(1) and close_by.over(m, "x", "gain").name == "gain"


def test_a_division_looks_for_the_median_once_not_once_a_sample(monkeypatch):
    looked, median = [], np.median
    monkeypatch.setattr(np, "median", lambda samples: looked.append(1) or median(samples))
    measured(*range(1, 100)).over(measured(2.0))
    assert len(looked) == 1


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


def test_short_ways_to_make_one():
    m = Measurement.measured("error", "%", 1.5, 2.5, machine=CARD, images=100)
    assert m == measured(1.5, 2.5, name="error", unit="%", conditions={"images": 100})
    for kind in ("computed", "simulated", "published"):
        made = getattr(Measurement, kind)("x", "ms", 3, "a source", device="gpu")
        assert (made.provenance, made.source, made.samples) == (Provenance(kind), "a source", (3,))
        assert made.conditions == {"device": "gpu"} and made.machine is None


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
