"""Files that are written whole or not at all."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["whole_file"]


@contextlib.contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path of the same name; the block writes it, then it takes ``path``'s place.

    If the block raises or the process dies, ``path`` stays as it was and no part is left under its
    name. Two writers at once do no harm: the later one wins.

    Raises:
        FileNotFoundError: the folder does not exist.
        PermissionError: the folder cannot be written to.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with whole_file(Path(folder) / "note.txt") as part:
    ...         _ = part.write_text("all of it")
    ...     (Path(folder) / "note.txt").read_text()
    'all of it'
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"cannot write {path.name}: the folder {path.parent.name!r} does not exist; make it."
        )
    try:
        folder = tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-")
    except OSError as error:  # a read-only disk gives no PermissionError
        raise PermissionError(
            f"cannot write {path.name}: the folder {path.parent.name!r} cannot be written to "
            f"({error.strerror}); make it writable or choose another."
        ) from error
    with folder:
        part = Path(folder.name) / path.name
        yield part
        if path.exists():
            shutil.copymode(path, part)
        os.replace(part, path)
