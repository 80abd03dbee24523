"""This machine's C compiler: which one it is, and C code compiled and loaded with it."""

import contextlib
import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple


def c_compiler() -> str | None:
    """The C compiler of this machine, None where there is none."""
    return next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)


class Compiled(NamedTuple):
    """A shared library made from C code."""

    functions: ctypes.CDLL
    """The loaded library; its attributes are the code's functions."""
    size_bytes: int
    """Of the library's file, which is gone."""


def compile_library(code: str, flags: Sequence[str] = ("-O2",), *, name: str = "code") -> Compiled:
    """Compile C code as a shared library and load it; no file stays behind.

    Where the folder of temporary files takes no programs (mounted ``noexec``), the user's cache
    and the folder in use are tried.

    Raises: RuntimeError where there is no compiler, it refuses the code, or no folder will do.

    >>> if c_compiler():
    ...     made = compile_library("int twice(int x) { return 2 * x; }")
    ...     assert made.functions.twice(21) == 42 and made.size_bytes > 0
    """
    compiler = c_compiler()
    if compiler is None:
        raise RuntimeError(
            "there is no C compiler here: install one (Debian and Ubuntu: sudo apt install gcc)."
        )
    faults = []
    for place in _places():
        try:
            with tempfile.TemporaryDirectory(dir=place, ignore_cleanup_errors=True) as folder:
                # A name of its own: a library that is loaded already would be taken again.
                source, library = Path(folder, f"{name}.c"), Path(folder, f"{name}.so")
                source.write_text(code, encoding="utf-8")
                command = [compiler, *flags, "-shared", "-fPIC", "-o", library, source]
                try:
                    told = subprocess.run(command, capture_output=True, text=True, errors="replace")
                except OSError as error:
                    what = f"{Path(compiler).name} does not run: {error.strerror}."
                    raise RuntimeError(what) from None
                if told.returncode or not library.exists():
                    said = told.stderr[-2000:].replace(f"{folder}/", "")
                    said = said or f"it ended with {told.returncode} and said nothing."
                    raise RuntimeError(f"{Path(compiler).name} does not take {name}.c:\n{said}")
                return Compiled(_loaded(library), library.stat().st_size)
        except OSError as error:  # no such folder, not to be written, or no programs allowed there
            faults.append(str(error).replace(place, "..."))
    raise RuntimeError(
        f"no folder takes compiled programs: {'; '.join(faults) or 'there is none'}."
    )


def _places() -> Iterator[str]:
    """Folders to compile in; the user may have no home, the home no cache, the rest be gone."""
    for find in (tempfile.gettempdir, lambda: os.path.expanduser("~/.cache"), os.getcwd):
        with contextlib.suppress(OSError):
            yield find()


def _loaded(library: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        what = str(error).replace(str(library), library.name)
        if "symbol" not in what:  # then it is the folder that will not do
            raise
        raise RuntimeError(f"{library.stem}.c calls what no library has: {what}.") from None
