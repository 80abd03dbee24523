"""The real images of the course: MNIST and two photos.

The files lie in ``data/`` (their sources and licences: ``data/README.md``). Each is checked
against its SHA-256 before use, so that a damaged file cannot pass for a result.
"""

import gzip
import hashlib
import logging
import math
import os
import re
import tempfile
import textwrap
import zlib
from pathlib import Path

import numpy as np
import pooch
from PIL import Image

from fastdl_lib.core.checks import check_choice, check_whole_number

# Tried in this order. The database's first home, yann.lecun.com/exdb/mnist, has been empty since
# 2025.
MNIST_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "https://raw.githubusercontent.com/fgnt/mnist/master/",
)

# Of the .gz file, to check a download with; and of the decompressed bytes, since a copy that
# somebody compressed anew is as good.
_SHA256 = {
    "train-images-idx3-ubyte.gz": (
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    "train-labels-idx1-ubyte.gz": (
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    "t10k-images-idx3-ubyte.gz": (
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    "t10k-labels-idx1-ubyte.gz": (
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
}
_PHOTO_SHA256 = {
    "chelsea_227.png": "9e423a2fd37727bbe030ffc53fe0151f63b5aa0f6dbde6e6bd4292a714480b81",
    "coffee_227.png": "bc714cd96ca7e0b530911da986b30118d0ee37380926b42e2a233fb3e41e399a",
}
_SPLITS = {"train": "train", "test": "t10k"}
# The idx format: 0, 0, a code for the dtype, the number of axes, 4 bytes for each size, the values.
_IDX_DTYPES = {8: "uint8", 9: "int8", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
# How other files begin that are found under such names.
_BEGINNINGS = {
    b"PK": "a ZIP archive: unpack it",
    b"\x93NUMPY": "an array of NumPy's: np.load reads it",
    b"\x89PNG": "a PNG picture",
    b"\x1f\x8b": "a gzip file within a gzip file: unpack it",
    b"<": "a web page",
}
_TIMEOUT_S = 15


def data_folder() -> Path:
    """Return the folder that holds the course's data: the one that the environment variable
    ``FASTDL_DATA`` names, else ``data/`` of the checkout that this package was installed from.

    Raises: FileNotFoundError where there is no such folder.

    >>> data_folder().is_dir()
    True
    """
    named = os.environ.get("FASTDL_DATA")
    folder = Path(named).expanduser() if named else Path(__file__).resolve().parents[2] / "data"
    if folder.is_dir():
        return folder
    if named:
        raise FileNotFoundError(
            f"the environment variable FASTDL_DATA names {named!r}, which is no folder; copy "
            "the checkout's data/ folder there, or unset the variable."
        )
    raise FileNotFoundError(
        f"no data folder: FASTDL_DATA is not set, and there is no {folder}; work in a clone "
        "of the course (pip install -e .), or set FASTDL_DATA to its data/ folder."
    )


def mnist(
    split: str = "train", folder: str | os.PathLike | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return MNIST's images, float32 (n, 1, 28, 28) from 0 (paper) to 1 (ink), and the digits that
    they show, int64 (n,). A file that is missing from ``data/mnist`` is downloaded first.

    Args:
        split: ``"train"`` (n = 60,000) or ``"test"`` (n = 10,000).
        folder: where other data of this format lies, such as Fashion-MNIST or one of EMNIST's sets
            (whose pictures lie on their side): ``*train-images*`` and ``*train-labels*``, or
            ``*t10k-*`` or ``*test-*``, packed (``.gz``) or not. n and the size are the files'.

    Raises: ValueError for a file that is not the official one, or not what it should be;
    FileNotFoundError where no mirror gives a missing one, or the folder has none; PermissionError
    where it cannot be written.

    Source: Y. LeCun, C. Cortes, C. J. C. Burges, *The MNIST database of handwritten digits*.

    >>> images, labels = mnist("test")
    >>> images.shape, labels.shape
    ((10000, 1, 28, 28), (10000,))
    """
    check_choice("split", split, _SPLITS)
    if folder is None:
        names = (f"{_SPLITS[split]}-{what}-ubyte.gz" for what in ("images-idx3", "labels-idx1"))
        pixels, digits = map(_official, names)
    else:
        pixels, digits = _images_and_labels(Path(folder).expanduser(), split)
    images = pixels[:, None].astype(np.float32)
    images /= 255
    return images, digits.astype(np.int64)


def photos(count: int = 2) -> np.ndarray:
    """Return a batch of photos, a cat and a cup of coffee in turn: float32 (count, 3, 227, 227), as
    AlexNet takes them; red, green and blue from 0 to 1.

    Raises: ValueError for a damaged file, FileNotFoundError for a missing one.

    Source: Chelsea (S. van der Walt) and Coffee (R. Michetti), both CC0, from scikit-image.

    >>> photos(5).shape
    (5, 3, 227, 227)
    """
    count = check_whole_number("count", count, 1)
    both = np.stack([_read_photo(name) for name in _PHOTO_SHA256])
    return both[np.arange(count) % len(both)]


def _read_photo(name: str) -> np.ndarray:
    """One photo, float32 (3, 227, 227)."""
    path = data_folder() / "photos" / name
    fix = f"move aside what is there and bring it back: git checkout -- data/photos/{name}"
    if not path.is_file():
        raise FileNotFoundError(f"the photo photos/{name} is missing; {fix}")
    content = path.read_bytes()
    got = hashlib.sha256(content).hexdigest()
    if got != _PHOTO_SHA256[name]:
        raise ValueError(
            f"the photo photos/{name} is damaged or another file: expected bytes of SHA-256 "
            f"{_PHOTO_SHA256[name]}, got {len(content):,} bytes of {got}; {fix}"
        )
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)) / 255


def _content(path: Path) -> bytes:
    """What a file holds, packed or not, whatever its name says; ValueError where it breaks off."""
    content = path.read_bytes()
    if not content.startswith(b"\x1f\x8b"):
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(
            f"a gzip file of {len(content):,} bytes that does not decompress ({error})"
        ) from None


def _idx(content: bytes, axes: int) -> np.ndarray:
    """The values of an idx file of uint8 with so many axes; ValueError, which says what it is."""
    header = 4 + 4 * content[3] if len(content) > 3 else 4
    if content[:2] != b"\0\0" or len(content) < header or content[2] not in _IDX_DTYPES:
        kinds = [kind for begin, kind in _BEGINNINGS.items() if content.startswith(begin)]
        other = f"bytes that begin with {content[:8]!r}" if content else "an empty file"
        raise ValueError([*kinds, other][0])
    dtype = np.dtype(_IDX_DTYPES[content[2]])
    shape = tuple(np.frombuffer(content[4:header], ">u4").tolist())
    what = f"an idx file of {dtype.name}, {' x '.join(map(str, shape))}"
    missing = math.prod(shape) * dtype.itemsize - (len(content) - header)
    if missing:
        more = "too many" if missing < 0 else "missing"
        raise ValueError(f"{what}, with {abs(missing):,} bytes {more}")
    if dtype != np.uint8 or len(shape) != axes or 0 in shape:
        raise ValueError(what)
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _official(name: str) -> np.ndarray:
    """The checked content of one file in ``data/mnist``, uint8."""
    path = data_folder() / "mnist" / name
    if not path.exists():
        _download(name, path.parent)
    fix = f"move it away, and call again to download it or: git checkout -- data/mnist/{name}"
    axes, expected = 3 if "images" in name else 1, _SHA256[name][1]
    try:
        content = _content(path)
        got = hashlib.sha256(content).hexdigest()
        if got == expected:
            return _idx(content, axes)
        shape = " x ".join(map(str, _idx(content, axes).shape))
        fix = f"other data is read by mnist(folder=...); {fix}"
        raise ValueError(f"a whole file of the format, {shape}, with SHA-256 {got}")
    except ValueError as error:
        raise ValueError(
            f"mnist/{name} is not MNIST's: expected bytes of SHA-256 {expected}, got {error}; {fix}"
        ) from None


def _images_and_labels(folder: Path, split: str) -> list[np.ndarray]:
    """The two idx files of a split in a folder of one's own."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {str(folder)!r}.")
    names = sorted(path.name for path in folder.glob("[!.]*") if path.is_file())
    arrays = []
    for what, axes in (("images", 3), ("labels", 1)):
        wanted = re.compile(rf"(^|[-_. ])({split}|{_SPLITS[split]})[-_. ]{what}([-_. ]|$)", re.I)
        found = [name for name in names if wanted.search(name)]
        packed_twice = {f"{name}.gz" for name in found}  # as well as unpacked
        found = [name for name in found if name not in packed_twice]
        if not found:
            raise FileNotFoundError(
                f"{folder.name}/ holds no *{_SPLITS[split]}-{what}*, packed or not; it holds "
                f"{textwrap.shorten(', '.join(names) or 'no file', 300)}."
            )
        if len(found) > 1:
            raise ValueError(
                f"{folder.name}/ holds several files of {split} {what}: {', '.join(found)}; give "
                "each set a folder of its own."
            )
        try:
            arrays.append(_idx(_content(folder / found[0]), axes))
        except ValueError as error:
            raise ValueError(
                f"{found[0]} is no idx file of {what}: expected uint8 with {axes} axes, as "
                f"{'n x height x width' if axes == 3 else 'n'}; got {error}."
            ) from None
    if len(arrays[0]) != len(arrays[1]):
        images, labels = map(len, arrays)
        raise ValueError(f"{folder.name}/ holds {images:,} {split} images and {labels:,} labels.")
    return arrays


def _download(name: str, folder: Path) -> None:
    """Fetch one MNIST file into ``folder`` from the first mirror that has it.

    pooch checks a temporary file of its own and moves it into place: an interrupted download leaves
    nothing under the name, and two at once do no harm.
    """
    try:
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:  # a read-only disk gives no PermissionError
        raise PermissionError(
            f"mnist/{name} is missing and cannot be downloaded, because the folder mnist in the "
            f"data folder cannot be written to ({error.strerror}); make it writable, or set the "
            "environment variable FASTDL_DATA to a copy of the data folder that is."
        ) from error

    # pooch's log line would put this machine's path into a notebook.
    pooch.get_logger().setLevel(logging.WARNING)
    failures = []
    for mirror in MNIST_MIRRORS:
        downloader = pooch.HTTPDownloader(progressbar=True, timeout=_TIMEOUT_S)
        try:
            saved = pooch.retrieve(
                mirror + name,
                known_hash=f"sha256:{_SHA256[name][0]}",
                fname=name,
                path=folder,
                downloader=downloader,
            )
        except ValueError:
            failures.append(f"  {mirror}: sent something else (wrong SHA-256)")
        except OSError as error:  # requests' errors are OSErrors, too
            cause = str(error).rpartition("Caused by ")[2]
            reason = textwrap.shorten(f"{type(error).__name__}: {cause}", 160)
            failures.append(f"  {mirror}: {reason}")
        else:
            # pooch's temporary files are private; in a shared folder others read it as well.
            os.chmod(saved, 0o644)
            return
    raise FileNotFoundError(
        f"mnist/{name} is missing and could not be downloaded (no network?):\n"
        + "\n".join(failures)
        + "\nConnect to a network and call again, or bring the file back: git checkout -- "
        f"data/mnist/{name}"
    )
