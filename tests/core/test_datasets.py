"""The image loaders: what they return, and what they say when a file is not what it should be."""

import errno
import functools
import gzip
import http.server
import re
import shutil
import socket
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pooch
import pytest

from fastdl_lib.core import datasets

SMALL = "t10k-labels-idx1-ubyte.gz"
SHIPPED = datasets.data_folder()


# --- what is returned -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("split", "count", "mean", "per_digit"),
    [
        ("train", 60_000, 0.13066, [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]),
        ("test", 10_000, 0.13251, [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]),
    ],
)
def test_mnist_is_the_whole_official_set(split, count, mean, per_digit):
    images, labels = datasets.mnist(split)
    assert images.shape == (count, 1, 28, 28) and images.dtype == np.float32
    assert labels.shape == (count,) and labels.dtype == np.int64
    assert images.min() == 0 and images.max() == 1
    assert images.mean(dtype=np.float64) == pytest.approx(mean, abs=1e-5)
    assert np.bincount(labels).tolist() == per_digit


def test_mnist_images_are_upright_and_match_their_labels():
    images, labels = datasets.mnist("test")
    zeros, ones = images[labels == 0, 0].mean(axis=0), images[labels == 1, 0].mean(axis=0)
    assert ones[14, 14] > 0.5 > zeros[14, 14], "a one has ink in the middle, a zero has none"
    assert ones[4:24, 12:17].sum() > ones[12:17, 4:24].sum(), "a one is taller than wide"


@pytest.mark.parametrize("count", [1, 2, np.int64(3)])
def test_photos_alternate(count):
    batch = datasets.photos(count)
    assert batch.shape == (count, 3, 227, 227) and batch.dtype == np.float32
    assert batch.flags.c_contiguous
    assert batch.min() >= 0 and 0.5 < batch.max() <= 1
    cat, coffee = datasets.photos()
    assert cat[0].mean() > cat[2].mean(), "the cat is ginger: more red than blue"
    assert not np.array_equal(cat, coffee)
    for image, expected in zip(batch, (cat, coffee, cat), strict=False):
        assert np.array_equal(image, expected)


@pytest.mark.parametrize(
    ("load", "wrong", "error", "words"),
    [
        (datasets.mnist, "valid", ValueError, "split must be one of 'train', 'test', got 'valid'"),
        (datasets.mnist, ["train"], TypeError, "split must be one of 'train', 'test', got"),
        (datasets.photos, 0, ValueError, "count must be at least 1"),
        (datasets.photos, 2.0, TypeError, "count must be a whole number"),
    ],
)
def test_another_split_and_what_is_no_count_are_refused(load, wrong, error, words):
    with pytest.raises(error, match=words):
        load(wrong)


# --- the data folder ------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of the data folder with the small test labels and the photos."""
    (tmp_path / "mnist").mkdir()
    shutil.copy(SHIPPED / "mnist" / SMALL, tmp_path / "mnist" / SMALL)
    shutil.copytree(SHIPPED / "photos", tmp_path / "photos")
    monkeypatch.setenv("FASTDL_DATA", str(tmp_path))
    return tmp_path


def read_small() -> np.ndarray:
    return datasets._official(SMALL)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_environment_variable_wins_unless_it_is_empty(folder, monkeypatch):
    assert datasets.data_folder() == folder
    monkeypatch.setenv("FASTDL_DATA", "")
    assert datasets.data_folder() == Path(datasets.__file__).resolve().parents[2] / "data"


def test_without_a_data_folder_the_error_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("FASTDL_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"FASTDL_DATA names .*nowhere.*no folder"):
        datasets.data_folder()
    monkeypatch.delenv("FASTDL_DATA")
    monkeypatch.setattr(datasets, "__file__", str(tmp_path / "fastdl_lib" / "core" / "datasets.py"))
    with pytest.raises(FileNotFoundError, match="FASTDL_DATA is not set, and there is no"):
        datasets.data_folder()


# --- damaged files --------------------------------------------------------------------------


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


DAMAGE = {
    "truncated": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "not gzip": lambda content: b"<html>404</html>",
    "flipped bit": lambda content: flipped(content, len(content) // 2),
    "other digits": lambda content: gzip.compress(flipped(gzip.decompress(content), 9_000)),
    "another file": lambda content: (SHIPPED / "mnist" / "train-labels-idx1-ubyte.gz").read_bytes(),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_mnist_file_is_named_with_its_fix(folder, how):
    path = folder / "mnist" / SMALL
    path.write_bytes(DAMAGE[how](path.read_bytes()))
    words = rf"mnist/{SMALL} is .*expected .*got .*git checkout -- data/mnist/{SMALL}"
    with pytest.raises(ValueError, match=words) as info:
        read_small()
    assert str(folder) not in str(info.value), "the message names the file inside the data folder"


def test_the_official_bytes_compressed_anew_or_not_at_all_are_accepted(folder):
    path = folder / "mnist" / SMALL
    raw = gzip.decompress(path.read_bytes())
    for content in (gzip.compress(raw, compresslevel=1), raw):
        path.write_bytes(content)
        assert np.bincount(read_small()).tolist()[:2] == [980, 1135]


# --- other data of the format -----------------------------------------------------------------


def idx(array, code=8):
    sizes = np.array(array.shape, ">u4").tobytes()
    return bytes([0, 0, code, array.ndim]) + sizes + array.tobytes()


PIXELS = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
CLASSES = np.array([7, 0, 25], np.uint8)


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz")),
        ("test", ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte.gz")),  # one unpacked
        ("train", ("emnist-letters-train-images-idx3-ubyte", "emnist-letters-train-labels.gz")),
        ("test", ("Test_Images.idx", "Test_Labels.idx")),
    ],
)
def test_other_data_is_read_from_a_folder_of_ones_own(tmp_path, split, names):
    for name, array in zip(names, (PIXELS, CLASSES), strict=True):
        content = idx(array)
        (tmp_path / name).write_bytes(gzip.compress(content) if "gz" in name else content)
    (tmp_path / f"{names[0].removesuffix('.gz')}.gz").write_bytes(
        gzip.compress(idx(PIXELS), mtime=0)
    )
    (tmp_path / "emnist-letters-mapping.txt").write_text("1 65 97")
    (tmp_path / f"._{names[0]}").touch()  # as macOS leaves beside what was unpacked
    images, labels = datasets.mnist(split, folder=str(tmp_path))
    assert images.dtype == np.float32 and labels.dtype == np.int64
    assert (images == PIXELS[:, None] / np.float32(255)).all() and (labels == CLASSES).all()


LABELS_IN_INT32 = idx(np.arange(3, dtype=">i4"), code=12)
OTHER_FILES = [
    ("images", b"", "got an empty file"),
    ("images", idx(PIXELS)[:-1], r"idx file of uint8, 3 x 4 x 5, with 1 bytes missing"),
    ("images", idx(PIXELS) + b"ab", "with 2 bytes too many"),
    ("images", idx(PIXELS)[:9], r"begin with b'\\x00\\x00\\x08"),
    ("images", idx(CLASSES), "expected uint8 with 3 axes, as n x height x width; got an idx file"),
    ("images", idx(PIXELS[:0]), "uint8, 0 x 4 x 5"),
    ("images", gzip.compress(idx(PIXELS), mtime=0)[:-9], "a gzip file of .* does not decompress"),
    (
        "images",
        gzip.compress(gzip.compress(idx(PIXELS), mtime=0), mtime=0),
        "a gzip file within a gzip file",
    ),
    ("images", b"PK\3\4 and so on", "a ZIP archive: unpack it"),
    ("images", b"<html>404</html>", "a web page"),
    ("labels", LABELS_IN_INT32, "expected uint8 with 1 axes, as n; got an idx file of int32, 3"),
    ("labels", idx(CLASSES[:2]), "3 train images and 2 labels"),
    ("labels", None, r"holds no \*train-labels\*, packed or not; it holds train-images"),
    ("other-train-labels", idx(CLASSES), "several files of train labels: other-train-labels, tr"),
]


@pytest.mark.parametrize(("what", "content", "words"), OTHER_FILES)
def test_what_is_no_such_data_is_refused_and_named(tmp_path, what, content, words):
    files = {"train-images": idx(PIXELS), "train-labels": idx(CLASSES)}
    files[what if "-" in what else f"train-{what}"] = content
    for name, bytes_ in files.items():
        if bytes_ is not None:
            (tmp_path / name).write_bytes(bytes_)
    with pytest.raises((ValueError, FileNotFoundError), match=words) as refused:
        datasets.mnist("train", tmp_path)
    assert "delete" not in str(refused.value) and "damaged" not in str(refused.value)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        datasets.mnist("train", tmp_path / "nowhere")


@pytest.mark.parametrize("pack", [gzip.compress, bytes])
def test_whole_other_data_under_mnists_name_is_not_called_damaged(folder, pack):
    (folder / "mnist" / SMALL).write_bytes(pack(idx(CLASSES)))
    words = r"is not MNIST's: .* got a whole file of the format, 3, .* mnist\(folder=\.\.\.\)"
    with pytest.raises(ValueError, match=words) as refused:
        read_small()
    assert "damaged" not in str(refused.value)


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (lambda path: path.write_bytes(flipped(path.read_bytes(), 9_000)), ValueError, "damaged"),
        (lambda path: path.unlink(), FileNotFoundError, "missing"),
    ],
)
def test_a_damaged_or_missing_photo_is_named_with_its_fix(folder, spoil, error, words):
    spoil(folder / "photos" / "coffee_227.png")
    with pytest.raises(error, match=f"photos/coffee_227.png is {words}.*git checkout -- data"):
        datasets.photos()


# --- downloads, from mirrors on this machine ------------------------------------------------


@pytest.fixture
def mirrors(monkeypatch, tmp_path_factory):
    """A web server whose folders are mirrors; ``mirrors(*folders)`` sets the list to try."""
    official = (SHIPPED / "mnist" / SMALL).read_bytes()
    answers = {"good": official, "other": gzip.compress(b"other"), "truncated": official[:1000]}
    site, asked = tmp_path_factory.mktemp("site"), []
    for kind, content in answers.items():
        (site / kind).mkdir()
        (site / kind / SMALL).write_bytes(content)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def send_header(self, name, value):
            promised = name == "Content-Length" and self.path.startswith("/truncated")
            super().send_header(name, str(len(official)) if promised else value)

        def log_request(self, *_):
            asked.append(self.path.split("/")[1])

        def log_message(self, *_):
            pass

    handler = functools.partial(Handler, directory=site)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as free:  # nobody listens there
        free.bind(("127.0.0.1", 0))
        nobody = free.getsockname()[1]

    def use(*folders: str) -> list[str]:
        ports = [nobody if folder == "down" else server.server_port for folder in folders]
        urls = [f"http://127.0.0.1:{port}/{f}/" for port, f in zip(ports, folders, strict=True)]
        monkeypatch.setattr(datasets, "MNIST_MIRRORS", urls)
        return asked

    yield use
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def missing(folder):
    """The folder mnist without its file."""
    (folder / "mnist" / SMALL).unlink()
    return folder / "mnist"


def test_a_missing_file_is_downloaded_once(missing, mirrors, capfd, caplog, monkeypatch):
    monkeypatch.setattr(pooch.get_logger(), "handlers", [caplog.handler])
    asked = mirrors("good", "good")
    assert np.bincount(read_small()).tolist()[:2] == [980, 1135]
    assert read_small().size == 10_000
    assert asked == ["good"]
    assert names(missing) == [SMALL]
    shown = capfd.readouterr().err
    assert "100%" in shown, "there is a progress bar"
    assert str(missing) not in shown + caplog.text, "no path of this machine gets into a notebook"


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("down", "ConnectionError"),
        ("other", r"something else \(wrong SHA-256\)"),
        ("truncated", r"IncompleteRead"),
        ("no such folder", "404"),
    ],
)
def test_the_next_mirror_is_tried_and_when_none_helps_the_error_lists_each(
    missing, mirrors, kind, reason
):
    mirrors(kind, kind)
    with pytest.raises(FileNotFoundError, match=rf"mnist/{SMALL} is missing.*no network") as info:
        read_small()
    message = str(info.value)
    assert message.count("  http://127.0.0.1:") == 2
    assert len(re.findall(reason, message)) >= 2
    assert f"git checkout -- data/mnist/{SMALL}" in message
    assert names(missing) == [], "no partial file is left"
    missing.rmdir()  # is made again
    mirrors(kind, "good")
    assert read_small().size == 10_000
    assert names(missing) == [SMALL]


def test_two_downloads_at_once_do_no_harm(missing, mirrors):
    mirrors("good")
    with ThreadPoolExecutor(4) as pool:
        sizes = list(pool.map(lambda _: read_small().size, range(4)))
    assert sizes == [10_000] * 4
    assert names(missing) == [SMALL]


def test_a_read_only_folder(folder, mirrors, monkeypatch):
    # Not through permission bits, which do not bind root.
    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    asked = mirrors("good")
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert read_small().size == 10_000, "with the file there, it simply works"

    (folder / "mnist" / SMALL).unlink()
    with pytest.raises(PermissionError, match=r"Read-only file system.*FASTDL_DATA"):
        read_small()
    assert asked == []
