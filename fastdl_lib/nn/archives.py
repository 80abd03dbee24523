"""Arrays in an ``.npz`` file: read whole, or said what the file is instead."""

import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

_BEGINNINGS = {
    b"\x93NUMPY": "a single array (.npy)",
    b"\x1f\x8b": "compressed by gzip",
    b"\x80": "a Python pickle, which is never opened",
    b"": "empty",
}


def read_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Name to array of all that an ``.npz`` file holds; pickled objects are never opened.

    Raises: OSError where there is no such file, ValueError where it is damaged or another kind of
    file; says which.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path.name} is a folder, expected an .npz file.")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path.name} in {path.parent.name}/.")
    with path.open("rb") as file:
        start = file.read(2)
    if start != b"PK":
        raise ValueError(f"{path.name} is no .npz file: it is {_said(path)}.")
    try:
        with np.load(path, allow_pickle=False) as archive:
            if len(set(archive.files)) < len(archive.files):
                raise ValueError("it holds two arrays of one name")
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:  # damage in an archive raises many types
        raise ValueError(
            f"{path.name} cannot be read to its end ({error}): it is damaged, cut off, or holds "
            "something else than arrays. Restore it from a copy, or give another file."
        ) from None
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise ValueError(f"{path.name} is an archive, but no .npz file: it holds {name}.")
    return arrays


class Wanted(NamedTuple):
    """What an array in a file must be, as the layer or optimiser says that it belongs to."""

    dtype: np.dtype
    shape: tuple[int, ...]
    not_negative: bool = False
    """Whether a number below 0 cannot stand in it, such as in a variance."""


def check_arrays(arrays: dict[str, np.ndarray], wanted: dict[str, Wanted]) -> None:
    """Refuse arrays that are not those wanted, by name, or hold numbers that cannot be (ValueError;
    says which)."""
    for name in sorted(arrays.keys() | wanted.keys()):
        array, rule = arrays.get(name), wanted.get(name)
        found = "missing" if array is None else f"{array.dtype} {array.shape}"
        expected = "no such array" if rule is None else f"{rule.dtype} {rule.shape}"
        if found != expected:
            raise ValueError(f"{name} is {found}, expected {expected}.")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{name} holds numbers that are not finite.")
        if rule.not_negative and (array < 0).any():
            raise ValueError(f"{name} holds {array.min():g}, expected no number below 0.")


def is_checkpoint(arrays: dict[str, np.ndarray]) -> bool:
    """Whether these are the arrays of :class:`~fastdl_lib.nn.checkpoints.Checkpoint`."""
    return "record" in arrays and arrays["record"].dtype.kind == "U"


def holding(arrays: dict[str, np.ndarray]) -> str:
    """What a file's arrays are, in words."""
    if is_checkpoint(arrays):
        return "a checkpoint of a run"
    if arrays and all("." in name for name in arrays):
        return "the weights of a network"
    return f"the arrays {list(arrays)[:5]}"


def _said(path: Path) -> str:
    """What a file is that is no archive."""
    content = path.read_bytes()
    for start, kind in _BEGINNINGS.items():
        if content[: len(start) or None] == start:
            return kind
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return f"another kind of file, which begins with {content[:8]!r}"
    try:
        return f"JSON with the schema {json.loads(text)['schema']!r}, such as a recording"
    except (ValueError, TypeError, LookupError, RecursionError):
        return "text"
