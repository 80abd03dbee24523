"""Numbers that say where they come from, and tables of them.

Every number of the course carries one of five labels (:class:`Provenance`). A measurement keeps
all its samples, so that its spread is never lost, and the machine card that explains it.
"""

import dataclasses
import enum
import html
import json
import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import numpy as np

from fastdl_lib.core.files import check_fields
from fastdl_lib.core.threads import threads_in_words
from fastdl_lib.measuring.machine import MachineCard, machine_card


class Provenance(enum.StrEnum):
    """Where a number comes from. Every table, caption and legend shows it."""

    MEASURED = "measured here"
    RECORDED = "recorded"
    SIMULATED = "simulated"
    COMPUTED = "computed"
    PUBLISHED = "published"


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A number with its unit, its samples and its provenance.

    Args:
        samples: one or more finite numbers, in the order they were taken; kept as Python's floats.
        machine: the card of the machine; needed for measured and recorded numbers.
        source: where a number comes from that no machine measured; needed there.
        conditions: what else decides the number, such as ``{"batch": 16, "threads": 2}``; only what
            JSON gives back as it was. A NumPy number becomes Python's.
        waited: for each sample which part of the processor time that it asked for it was kept
            waiting, 0 to 1; empty where nobody looked.
        disturbed: what disturbed the samples (:mod:`~fastdl_lib.measuring.disturbance`), in words;
            shown wherever the number is.
        left_out: how many more samples were taken, which do not count since the machine was busy.

    Raises:
        TypeError: a sample that is no number, a condition that no recording can keep.
        ValueError: no sample, a number that is not finite, or a label without its evidence.

    ``print(m)`` shows three digits, the quartiles and how it was measured; a format such as
    ``f"{m:.1f}"`` the median alone, both with unit and label.

    >>> m = Measurement.computed("MACs", "MACs", 724_406_816)
    >>> print(m)
    724,000,000 MACs (computed)
    >>> f"{m:,.0f}"
    '724,406,816 MACs (computed)'
    """

    name: str
    unit: str
    samples: tuple[float, ...]
    provenance: Provenance
    machine: MachineCard | None = None
    source: str = ""
    conditions: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    waited: tuple[float, ...] = ()
    disturbed: str = ""
    left_out: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "samples", tuple(map(self._number, self.samples)))
        object.__setattr__(self, "waited", tuple(map(self._number, self.waited)))
        object.__setattr__(self, "provenance", Provenance(self.provenance))
        object.__setattr__(self, "conditions", self._kept(dict(self.conditions)))
        if not self.samples:
            raise ValueError(f"{self.name!r} has no samples; a measurement needs at least one.")
        on_a_machine = self.provenance in (Provenance.MEASURED, Provenance.RECORDED)
        if on_a_machine and self.machine is None:
            needs = "a machine card: pass machine=machine_card()."
        elif not on_a_machine and not self.source:
            needs = "a source: pass source='paper and table', or how it was computed."
        else:
            return
        raise ValueError(f"{self.name!r} is {self.provenance}, so it needs {needs}")

    def _number(self, sample: Any) -> float:
        sample = sample.item() if hasattr(sample, "item") else sample
        if not isinstance(sample, Real) or isinstance(sample, bool):
            raise TypeError(f"{self.name!r} has the sample {sample!r}; every one must be a number.")
        if not math.isfinite(sample):
            raise ValueError(f"{self.name!r} holds {sample}; every sample must be finite.")
        return float(sample)

    def _kept(self, conditions: dict) -> dict:
        """The conditions as JSON gives them back; refuses what comes back as something else."""
        try:
            text = json.dumps(conditions, default=np.generic.item, allow_nan=False)
            back = json.loads(text)
        except ValueError:
            raise ValueError(f"{self.name!r}: {conditions} must be finite.") from None
        except TypeError:
            back = None
        if back != conditions:
            raise TypeError(
                f"{self.name!r}: no recording keeps {conditions}. Give texts, numbers, True, False "
                "or None, lists of them, or dictionaries with texts for keys."
            )
        return back

    @classmethod
    def measured(
        cls,
        name: str,
        unit: str,
        *samples: float,
        machine: MachineCard | None = None,
        **conditions: Any,
    ) -> "Measurement":
        """What was measured here: one sample or more, and by default a card of this moment."""
        card = machine or machine_card()
        return cls(name, unit, samples, Provenance.MEASURED, card, conditions=conditions)

    @classmethod
    def computed(
        cls, name: str, unit: str, value: float, source: str = "counted here", **conditions: Any
    ) -> "Measurement":
        """What was counted or calculated; ``source`` says from what."""
        return cls(name, unit, (value,), Provenance.COMPUTED, None, source, conditions)

    @classmethod
    def simulated(
        cls, name: str, unit: str, value: float, source: str, **conditions: Any
    ) -> "Measurement":
        """What a model says; ``source`` names the model."""
        return cls(name, unit, (value,), Provenance.SIMULATED, None, source, conditions)

    @classmethod
    def published(
        cls, name: str, unit: str, value: float, source: str, **conditions: Any
    ) -> "Measurement":
        """What somebody else published; ``source`` names paper and table."""
        return cls(name, unit, (value,), Provenance.PUBLISHED, None, source, conditions)

    @classmethod
    def derived(cls, name: str, unit: str, value: Any, *parents: "Measurement") -> "Measurement":
        """A number, or several samples of it, calculated from other measurements.

        Parents that were all measured here give one that is *measured here*; all recorded on one
        machine, or all simulated, give their own label; anything else is *computed*, and its source
        names the parents' labels. Conditions in which all agree stay.

        >>> caffe = Measurement.published("Caffe", "ms", 96.5, "convnet-benchmarks")
        >>> print(Measurement.derived("an image", "ms", caffe.median / 128, caffe))
        0.754 ms (computed)
        """
        first, *others = parents
        kind, machine = first.provenance, first.machine
        here = kind is Provenance.MEASURED  # whichever card: this process runs on one machine
        alike = all(p.provenance is kind and (here or p.machine == machine) for p in others)
        if kind is Provenance.PUBLISHED or not alike:
            kind, machine = Provenance.COMPUTED, None
        source = "from " + "; ".join(dict.fromkeys(f"{p.name}, {p.label}" for p in parents))
        conditions = dict(first.conditions)
        for p in others:
            conditions = dict(pair for pair in conditions.items() if pair in p.conditions.items())
        disturbed = next((p.disturbed for p in parents if p.disturbed), "")
        value = tuple(np.ravel(value))
        return cls(name, unit, value, kind, machine, source, conditions, disturbed=disturbed)

    def over(self, other: "Measurement", unit: str = "times", name: str = "") -> "Measurement":
        """Each sample of this one divided by the other's median, labelled as :meth:`derived`.

        Raises: ValueError where the other has another unit, or a median of 0.

        >>> slow, fast = (Measurement.measured("product", "ms", ms) for ms in (24.0, 8.0))
        >>> print(slow.over(fast))
        3.00 times (measured here)
        """
        divisor = other.median
        if self.unit != other.unit or not divisor:
            by = f"{other.name!r}, {other.value()} {other.unit}"
            what = f"{self.name!r}, in {self.unit}, cannot be divided by {by}"
            raise ValueError(f"{what}: two of one unit are, the second not 0.")
        ratios = [sample / divisor for sample in self.samples]
        name = name or f"{self.name} over {other.name}"
        return self.derived(name, unit, ratios, self, other)

    @property
    def median(self) -> float:
        """The middle sample: one slow run does not move it."""
        return float(np.median(self.samples))

    @property
    def low(self) -> float:
        """The lower quartile: a quarter of the samples lie below."""
        return float(np.percentile(self.samples, 25))

    @property
    def high(self) -> float:
        """The upper quartile: a quarter of the samples lie above."""
        return float(np.percentile(self.samples, 75))

    @property
    def label(self) -> str:
        """The provenance in words, with the machine or source where the reader needs it."""
        if self.provenance is Provenance.RECORDED:
            gpu = f" with {self.machine.gpu}" if self.machine.has_gpu else ""
            return f"recorded on {self.machine.cpu}{gpu}, {self.machine.date}"
        return str(self.provenance)

    def convert(self, rule: Callable[[float], float], unit: str, name: str = "") -> "Measurement":
        """Apply ``rule`` to every sample, such as milliseconds to GFLOP/s; the spread survives."""
        samples = tuple(rule(sample) for sample in self.samples)
        return dataclasses.replace(self, name=name or self.name, unit=unit, samples=samples)

    def value(self) -> str:
        """Median and, where there are several samples, quartiles; without unit or label."""
        text = format_number(self.median)
        if len(self.samples) > 1:
            text += f" ({format_number(self.low)}-{format_number(self.high)})"
        return text

    def __str__(self) -> str:
        count = f"{len(self.samples)} samples" if len(self.samples) > 1 else ""
        if self.left_out:
            count = f"{len(self.samples)} of {len(self.samples) + self.left_out} samples"
        where = device_in_words(self.conditions)
        if where and self.conditions.get("threads", 1) > 1:
            where = f"up to {where}"
        words = ", ".join(filter(None, (self.label, count, where, self._mark)))
        return f"{self.value()} {self.unit} ({words})"

    def __format__(self, spec: str) -> str:
        words = ", ".join(filter(None, (self.label, self._mark)))
        return f"{self.median:{spec}} {self.unit} ({words})" if spec else str(self)

    @property
    def _mark(self) -> str:
        return f"disturbed: {self.disturbed}" if self.disturbed else ""

    def to_dict(self) -> dict:
        """A plain dictionary for JSON, without the machine card (the recording holds it once)."""
        mark = {"waited": [round(w, 3) for w in self.waited], "disturbed": self.disturbed}
        left_out = {"left_out": self.left_out}
        return (
            (mark if self.disturbed else {})
            | (left_out if self.left_out else {})
            | {
                "name": self.name,
                "unit": self.unit,
                "samples": list(self.samples),
                "provenance": self.provenance.name.lower(),
                "source": self.source,
                "conditions": dict(self.conditions),
            }
        )

    @classmethod
    def from_dict(cls, fields: dict, machine: MachineCard | None) -> "Measurement":
        """Build a measurement from :meth:`to_dict`'s output, or raise ValueError.

        What was measured there is *recorded* for whoever reads it.
        """
        texts = dict.fromkeys(("name", "unit", "provenance", "source"), str)
        if isinstance(fields, dict):
            fields = {"waited": [], "disturbed": "", "left_out": 0} | fields
        kept = {"samples": list, "conditions": dict, "waited": list}
        check_fields(fields, texts | kept | {"disturbed": str, "left_out": int}, "a measurement")
        name, kind = fields["name"], fields["provenance"]
        kinds = {kind.lower(): each for kind, each in Provenance.__members__.items()}
        if not name:
            raise ValueError("a measurement has no name.")
        if kind not in kinds:
            raise ValueError(f"measurement {name!r}: provenance {kind!r} is none of {[*kinds]}.")
        kinds["measured"] = Provenance.RECORDED
        return cls(**fields | {"provenance": kinds[kind], "machine": machine})


def device_in_words(conditions: Mapping[str, Any]) -> str:
    """Where it ran: the GPU, or the CPU's BLAS threads; empty where the conditions say neither."""
    if conditions.get("device") == "gpu":
        return "on the GPU"
    threads = conditions.get("threads")
    return "" if threads is None else threads_in_words(threads)


def format_number(value: float) -> str:
    """Three significant digits, plainly; what is not finite as such.

    >>> [format_number(v) for v in (0.01234, 12.34, 1234.5, 0, -math.inf)]
    ['0.0123', '12.3', '1,230', '0', '-inf']
    """
    if value == 0 or not math.isfinite(value):
        return f"{abs(value) if value == 0 else value:g}"
    digits = 2 - math.floor(math.log10(abs(value)))
    rounded = round(value, digits)
    if 1e-4 <= abs(rounded) < 1e15:
        return f"{rounded:,.{max(0, digits)}f}"
    return f"{rounded:.2e}"


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a :class:`Table`: its key, heading, unit and where its numbers come from."""

    key: str
    heading: str = ""
    unit: str = ""
    provenance: Provenance | None = None

    @property
    def title(self) -> str:
        """Heading and unit, as shown."""
        return (self.heading or self.key) + (f", {self.unit}" if self.unit else "")

    @property
    def note(self) -> str:
        """The provenance in words, shown below the title."""
        return str(self.provenance or "")

    def show(self, value: Any) -> str:
        """A cell's value as text; percentages have one decimal, other numbers three digits."""
        if value is None:
            return "-"
        if isinstance(value, Measurement):
            return value.value()
        if isinstance(value, (float, np.floating)):
            return f"{value:.1f}" if self.unit == "%" else format_number(float(value))
        if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
            return f"{value:,}"
        if isinstance(value, (list, tuple)):
            return "x".join(str(part) for part in value)
        return str(value)


@dataclasses.dataclass(frozen=True, repr=False)
class Table:
    """Rows that show themselves in a notebook and as text, provenance in the header.

    >>> print(Table((Column("n", unit="images"),), ({"n": 2},), "A caption"))
    A caption
    n, images
            2
    """

    columns: tuple[Column, ...]
    rows: tuple[Mapping[str, Any], ...]
    caption: str

    def __str__(self) -> str:
        notes = [column.note for column in self.columns]
        lines = [[c.title for c in self.columns], *([notes] if any(notes) else []), *self._cells()]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        numeric = self._numeric()
        text = [self.caption, *self._marks()]
        for line in lines:
            cells = zip(line, widths, numeric, strict=True)
            aligned = (cell.rjust(w) if right else cell.ljust(w) for cell, w, right in cells)
            text.append("  ".join(aligned).rstrip())
        return "\n".join(text)

    __repr__ = __str__  # what a notebook shows where it cannot show HTML

    def _repr_html_(self) -> str:
        styles = [f" style='text-align:{'right' if r else 'left'}'>" for r in self._numeric()]
        head = body = ""
        for style, column in zip(styles, self.columns, strict=True):
            note = f"<br><i style='font-weight:normal'>{column.note}</i>" if column.note else ""
            head += f"<th{style}{html.escape(column.title)}{note}</th>"
        for line in self._cells():
            cells = zip(styles, line, strict=True)
            body += f"<tr>{''.join(f'<td{style}{html.escape(c)}</td>' for style, c in cells)}</tr>"
        caption = "<br>".join(map(html.escape, (self.caption, *self._marks())))
        return (
            f"<table><caption style='text-align:left'>{caption}</caption>"
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        )

    def _marks(self) -> list[str]:
        """A line where a number in it was disturbed."""
        cells = [cell for row in self.rows for cell in row.values()]
        marks = [cell.disturbed for cell in cells if isinstance(cell, Measurement)]
        return [f"Disturbed: {mark}." for mark in dict.fromkeys(filter(None, marks))][:1]

    def _cells(self) -> list[list[str]]:
        return [[c.show(row[c.key]) for c in self.columns] for row in self.rows]

    def _numeric(self) -> list[bool]:
        return [
            any(isinstance(row[c.key], (int, float, np.number, Measurement)) for row in self.rows)
            for c in self.columns
        ]


class Verdict(enum.StrEnum):
    """What a learner's own run says of a claim."""

    CONFIRMED = "confirmed"
    CORRECTED = "corrected"
    QUALIFIED = "qualified"


def claim_table(*rows: tuple[str, str, str, str]) -> Table:
    """A chapter's closing table: (claim, what your run says, verdict, evidence).

    Raises: ValueError for another verdict than :class:`Verdict` has.
    """
    keys = ("claim", "your run says", "verdict", "evidence")
    checked = [(claim, says, str(Verdict(word)), shown) for claim, says, word, shown in rows]
    dicts = tuple(dict(zip(keys, row, strict=True)) for row in checked)
    return Table(tuple(map(Column, keys)), dicts, "The chapter's claims and their verdicts")
