"""Files that are written whole or not at all, and JSON files that hold what they should."""

import contextlib
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_DAY_S = 86_400.0
_ROOM = 2**22  # bytes that are written before the work


def check_destination(*paths: str | os.PathLike | None, room_bytes: int = _ROOM) -> None:
    """Refuse, before the work, names of files that could not be written after it; None is none.

    4 MiB are written there, for once; of more, ``room_bytes``, the system is asked whether it is
    free.

    Raises: OSError, such as FileNotFoundError where there is no such folder, PermissionError where
    it is read-only or full or the file is write-protected, and IsADirectoryError where it is a
    folder; ValueError where two are one file. Leaves no trace.
    """
    files = [Path(os.path.realpath(path)) for path in paths if path is not None]
    for number, path in enumerate(files):
        if path in files[:number]:
            raise ValueError(f"two files would both be written to {path.name}: give two names.")
        with _part_of(path, _ROOM):
            free = shutil.disk_usage(path.parent).free
        if free < room_bytes:
            raise PermissionError(
                f"cannot write {path.name}: it may take {room_bytes / 1e6:,.0f} MB, and "
                f"{free / 1e6:,.0f} MB are free there; make room or choose another folder."
            )


@contextlib.contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path of the same name; the block writes it, then it takes ``path``'s place.

    If the block raises or the process dies, ``path`` stays as it was. Two writers at once do no
    harm: the later one wins. Where ``path`` is a symbolic link, the file that it names is written;
    where nothing may take its place (a file mounted into a container), its bytes are overwritten.

    Raises: as :func:`check_destination`.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with whole_file(Path(folder) / "note.txt") as part:
    ...         _ = part.write_text("all of it")
    ...     (Path(folder) / "note.txt").read_text()
    'all of it'
    """
    path = Path(os.path.realpath(path))
    with _part_of(path) as part:
        for left in path.parent.glob(".writing-*"):  # by a process that died
            if time.time() - left.stat().st_mtime > _DAY_S:
                shutil.rmtree(left, ignore_errors=True)
        yield part
        if path.exists():
            shutil.copymode(path, part)
        try:
            os.replace(part, path)
        except OSError:
            shutil.copyfile(part, path)


@contextlib.contextmanager
def _part_of(path: Path, room: int = 0) -> Iterator[Path]:
    """A file of the same name, not there yet, in a temporary folder beside ``path``, once so many
    bytes have been written there."""
    where = f"cannot write {path.name}: the folder {path.parent.name!r}"
    if os.path.isdir(path):  # a name too long is no folder, and raises below
        raise IsADirectoryError(f"cannot write {path.name}: it is a folder; give another name.")
    if os.path.exists(path) and not path.is_file():
        raise FileExistsError(f"cannot write {path.name}: it is a device or a pipe, not a file.")
    if os.path.exists(path) and not os.access(path, os.W_OK):
        raise PermissionError(
            f"cannot write {path.name}: it is write-protected; give another name."
        )
    if not path.parent.is_dir():
        if path.parent.exists():
            raise NotADirectoryError(f"{where} is a file; give another folder.")
        raise FileNotFoundError(f"{where} does not exist; make it.")
    with contextlib.ExitStack() as stack:
        try:
            beside = tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-")
            part = Path(stack.enter_context(beside), path.name)
            part.write_bytes(bytes(room))
            part.unlink()
        except OSError as error:  # a read-only disk gives no PermissionError
            raise PermissionError(
                f"{where} cannot be written to ({error.strerror}); make it writable or choose "
                "another."
            ) from error
        yield part


def read_json(path: Path, schema: str) -> dict:
    """Read a JSON file whose ``schema`` field must be ``schema``.

    Raises: FileNotFoundError, which lists the neighbours; ValueError where it is damaged or of
    another schema.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file {path.name} in {path.parent.name}/; "
            f"it holds {sorted(p.name for p in path.parent.glob('*.json'))}."
        )
    try:
        fields = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:  # a UnicodeDecodeError is one
        raise ValueError(
            f"{path.name} is damaged or no JSON file at all ({error}); mend it there, restore it "
            "(git checkout, which drops your own changes), or give another file."
        ) from None
    found = fields.get("schema") if isinstance(fields, dict) else None
    if found != schema:
        raise ValueError(
            f"{path.name} has the schema {found!r}, this version of fastdl reads {schema!r}; "
            "update fastdl, or make the file anew."
        )
    return fields


def parse_json(text: str) -> Any:
    """Parse JSON as the standard has it: no NaN, no infinity, no key twice; else ValueError."""
    try:
        return json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_finite,
            parse_float=_finite,
        )
    except RecursionError:
        raise ValueError("its brackets are nested too deeply") from None


def _finite(text: str) -> float:
    if not math.isfinite(float(text)):
        raise ValueError(f"it holds {text}, which is no finite number")
    return float(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError(f"an object has a key twice; its keys are {[key for key, _ in pairs]}")
    return fields


def check_fields(fields: Any, kinds: Mapping[str, type | tuple[type, ...]], what: str) -> None:
    """Refuse, with a ValueError, anything but a dictionary with exactly these keys and kinds."""
    if not isinstance(fields, dict):
        raise ValueError(f"{what} is a JSON object, got {type(fields).__name__}.")
    missing, unknown = kinds.keys() - fields.keys(), fields.keys() - kinds.keys()
    if missing or unknown:
        raise ValueError(
            f"{what}: missing fields {sorted(missing)}, unknown fields {sorted(unknown)}."
        )
    for name, kind in kinds.items():
        if not isinstance(fields[name], kind) or isinstance(fields[name], bool):
            raise ValueError(
                f"{what}: field {name!r} has the wrong type, {type(fields[name]).__name__}."
            )
