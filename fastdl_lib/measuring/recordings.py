"""Recordings: what a machine measured, kept as JSON for readers who do not have it."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from fastdl_lib.core.datasets import data_folder
from fastdl_lib.core.files import check_fields, parse_json, read_json, whole_file
from fastdl_lib.measuring.evidence import Measurement
from fastdl_lib.measuring.machine import MachineCard

SCHEMA = "fastdl-recording/1"


@dataclasses.dataclass(frozen=True)
class Recording:
    """What one machine measured in one run."""

    machine: MachineCard
    command: str
    """What was typed to make it."""
    measurements: tuple[Measurement, ...]

    def __getitem__(self, name: str) -> Measurement:
        for measurement in self.measurements:
            if measurement.name == name:
                return measurement
        raise KeyError(f"no measurement {name!r}; there are {[m.name for m in self.measurements]}.")

    def select(self, **conditions: Any) -> tuple[Measurement, ...]:
        """The measurements whose conditions equal these, in order.

        Raises: ValueError where there is none, saying which condition fails and what there is.

        >>> recording = read_recording(data_folder() / "recordings" / "layer_shares.json")
        >>> len(recording.select(layer="conv1", batch=16))
        5
        """
        found, given = self.measurements, {}
        for key, wanted in conditions.items():
            left = tuple(m for m in found if key in m.conditions and m.conditions[key] == wanted)
            if not left:
                there = {repr(m.conditions[key]): None for m in found if key in m.conditions}
                others = f"there is {key} {', '.join(there)}" if there else f"none says its {key}"
                where = f" where {given}" if given else ""
                which = f"no measurement of {self.machine.summary} has {key}={wanted!r}{where}"
                raise ValueError(f"{which}; {others}.")
            found, given[key] = left, wanted
        return found

    def has(self, **conditions: Any) -> bool:
        """Whether :meth:`select` finds a measurement with these conditions."""
        return any(conditions.items() <= m.conditions.items() for m in self.measurements)


def write_recording(path: str | os.PathLike, recording: Recording) -> None:
    """Write ``recording`` as JSON: the whole file, or nothing.

    Raises: ValueError, TypeError for what :func:`read_recording` would refuse.
    """
    head = {
        "schema": SCHEMA,
        "machine": recording.machine.to_dict(),
        "command": recording.command,
    }
    # One measurement a line: half the size of indented JSON, and a change shows where it is.
    lines = [json.dumps(m.to_dict(), allow_nan=False) for m in recording.measurements]
    text = json.dumps(head, indent=1, allow_nan=False).removesuffix("\n}")
    text += ',\n "measurements": [\n  ' + ",\n  ".join(lines) + "\n ]\n}"
    for m in recording.measurements:
        if m.machine and not m.machine.is_of(recording.machine):
            raise ValueError(f"{m.name!r} is of another machine, {m.machine.summary}.")
    _recording(parse_json(text))
    with whole_file(path) as part:
        part.write_text(text + "\n", encoding="utf-8")


def read_recording(path: str | os.PathLike) -> Recording:
    """Read a recording; its measurements come back labelled *recorded*.

    Raises: FileNotFoundError; ValueError for a damaged file or one of another schema version.
    """
    path = Path(path)
    fields = read_json(path, SCHEMA)
    try:
        return _recording(fields)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(
            f"{path.name} is not a valid recording: {error} Record it anew, or restore the file."
        ) from None


def _recording(fields: dict[str, Any]) -> Recording:
    kinds = {"schema": str, "machine": dict, "command": str, "measurements": list}
    check_fields(fields, kinds, "a recording")
    if not fields["command"]:
        raise ValueError("it does not say the command that made it.")
    machine = MachineCard.from_dict(fields["machine"])
    measurements = tuple(Measurement.from_dict(m, machine) for m in fields["measurements"])
    return Recording(machine, fields["command"], measurements)


def machine_recordings() -> dict[str, Recording]:
    """Every machine's whole run in ``data/recordings/``, by the file's name without its ending.

    ``python -m fastdl_lib.course.record`` makes them.
    """
    folder = data_folder() / "recordings"
    return {path.stem: read_recording(path) for path in sorted(folder.glob("machine_*.json"))}
