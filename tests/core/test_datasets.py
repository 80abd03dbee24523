"""The image loaders: what they return, and what they say when a file is not what it should be."""

import errno
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


@pytest.mark.parametrize("split", ["valid", "Train", "", None, 3, ["train"]])
def test_mnist_refuses_another_split(split):
    wrong = ValueError if isinstance(split, str) else TypeError
    with pytest.raises(wrong, match="split must be one of 'train', 'test', got"):
        datasets.mnist(split)


@pytest.mark.parametrize("count", [1, 2, 5, np.int64(3)])
def test_photos_alternate(count):
    batch = datasets.photos(count)
    assert batch.shape == (count, 3, 227, 227) and batch.dtype == np.float32
    assert batch.flags.c_contiguous
    assert batch.min() >= 0 and 0.5 < batch.max() <= 1
    for index in range(count):
        assert np.array_equal(batch[index], datasets.photos(2)[index % 2])


def test_photos_are_channel_first_and_upright():
    cat, coffee = datasets.photos()
    assert cat[0].mean() > cat[2].mean(), "the cat is ginger: more red than blue"
    assert not np.array_equal(cat, coffee)


@pytest.mark.parametrize("count", [0, -1, 2.0, "2", None])
def test_photos_refuses_what_is_no_count(count):
    with pytest.raises(ValueError if type(count) is int else TypeError, match="count must be"):
        datasets.photos(count)


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
    return datasets._read_idx(SMALL, (10_000,))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_environment_variable_wins(folder):
    assert datasets.data_folder() == folder


def test_an_empty_environment_variable_counts_as_unset(monkeypatch):
    monkeypatch.setenv("FASTDL_DATA", "")
    assert datasets.data_folder() == Path(datasets.__file__).resolve().parents[2] / "data"


def test_a_named_folder_that_is_missing_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("FASTDL_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"FASTDL_DATA names .*nowhere.*no folder"):
        datasets.data_folder()


def test_a_package_outside_a_checkout_says_so(monkeypatch, tmp_path):
    monkeypatch.delenv("FASTDL_DATA", raising=False)
    monkeypatch.setattr(datasets, "__file__", str(tmp_path / "fastdl_lib" / "core" / "datasets.py"))
    with pytest.raises(FileNotFoundError, match="FASTDL_DATA is not set, and there is no"):
        datasets.data_folder()


# --- damaged files --------------------------------------------------------------------------


def damaged(content: bytes, how: str) -> bytes:
    if how == "truncated":
        return content[: len(content) // 2]
    if how == "empty":
        return b""
    if how == "not gzip":
        return b"<html>404</html>"
    if how == "flipped bit":
        middle = len(content) // 2
        return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    raise AssertionError(how)


@pytest.mark.parametrize("how", ["truncated", "empty", "not gzip", "flipped bit"])
def test_a_damaged_mnist_file_is_named_with_its_fix(folder, how):
    path = folder / "mnist" / SMALL
    path.write_bytes(damaged(path.read_bytes(), how))
    with pytest.raises(
        ValueError, match=rf"mnist/{SMALL} is .*expected .*got .*move it away"
    ) as info:
        read_small()
    assert f"git checkout -- data/mnist/{SMALL}" in str(info.value)
    assert str(folder) not in str(info.value), "the message names the file inside the data folder"


def test_other_digits_in_a_whole_gzip_file_are_refused(folder):
    path = folder / "mnist" / SMALL
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[-1] ^= 1
    path.write_bytes(gzip.compress(bytes(raw)))
    with pytest.raises(ValueError, match="is not the official file: expected decompressed bytes"):
        read_small()


def test_the_official_bytes_compressed_anew_or_not_at_all_are_accepted(folder):
    path = folder / "mnist" / SMALL
    raw = gzip.decompress(path.read_bytes())
    for content in (gzip.compress(raw, compresslevel=1), raw):
        path.write_bytes(content)
        assert np.bincount(read_small()).tolist()[:2] == [980, 1135]


def test_a_file_in_the_place_of_another_is_refused(folder):
    shutil.copy(folder / "mnist" / SMALL, folder / "mnist" / "train-labels-idx1-ubyte.gz")
    with pytest.raises(ValueError, match=r"train-labels-.* is not the official file"):
        datasets._read_idx("train-labels-idx1-ubyte.gz", (60_000,))


def test_the_idx_header_is_checked():
    good = bytes([0, 0, 8, 1, 0, 0, 0, 3]) + bytes([7, 8, 9])
    assert datasets._parse_idx(good, "x.gz", (3,)).tolist() == [7, 8, 9]
    for bad in (b"\0\0\x0d" + good[3:], good[:7] + b"\x04" + good[8:], good[:5], b""):
        with pytest.raises(ValueError, match="expected the idx header 0000080100000003"):
            datasets._parse_idx(bad, "x.gz", (3,))
    for bad in (good[:-1], good + b"\0"):
        with pytest.raises(ValueError, match=r"expected 3 values after the header, got [24]"):
            datasets._parse_idx(bad, "x.gz", (3,))


@pytest.mark.parametrize("how", ["truncated", "empty", "not gzip", "flipped bit"])
def test_a_damaged_photo_is_named_with_its_fix(folder, how):
    path = folder / "photos" / "coffee_227.png"
    path.write_bytes(damaged(path.read_bytes(), how))
    with pytest.raises(ValueError, match=r"photos/coffee_227.png is damaged.*git checkout -- data"):
        datasets.photos()


def test_a_missing_photo_is_named_with_its_fix(folder):
    (folder / "photos" / "chelsea_227.png").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"chelsea_227.png is missing.*git checkout -- data"
    ):
        datasets.photos()


# --- downloads, from mirrors on this machine ------------------------------------------------


@pytest.fixture
def mirrors(monkeypatch):
    """A web server whose folders are mirrors; ``mirrors(*folders)`` sets the list to try."""
    official = (SHIPPED / "mnist" / SMALL).read_bytes()
    answers = {
        "good": official,
        "other": gzip.compress(b"other"),
        "truncated": official[:1000],
    }
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            kind, _, name = self.path.lstrip("/").partition("/")
            asked.append(kind)
            if kind not in answers or name != SMALL:
                self.send_error(404)
                return
            self.send_response(200)
            promised = official if kind == "truncated" else answers[kind]
            self.send_header("Content-Length", str(len(promised)))
            self.end_headers()
            self.wfile.write(answers[kind])

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    base = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def use(*folders: str) -> list[str]:
        urls = tuple(down() if folder == "down" else f"{base}/{folder}/" for folder in folders)
        monkeypatch.setattr(datasets, "MNIST_MIRRORS", urls)
        return asked

    def down() -> str:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return f"http://127.0.0.1:{free.getsockname()[1]}/"

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


def test_a_missing_folder_is_made(missing, mirrors):
    missing.rmdir()
    mirrors("good")
    assert read_small().size == 10_000


@pytest.mark.parametrize("first", ["down", "other", "truncated", "no such folder"])
def test_the_next_mirror_is_tried(missing, mirrors, first):
    mirrors(first, "good")
    assert read_small().size == 10_000
    assert names(missing) == [SMALL]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("down", "ConnectionError"),
        ("other", r"something else \(wrong SHA-256\)"),
        ("truncated", r"IncompleteRead"),
        ("no such folder", "404"),
    ],
)
def test_when_no_mirror_helps_the_error_lists_each(missing, mirrors, kind, reason):
    mirrors(kind, kind)
    with pytest.raises(FileNotFoundError, match=rf"mnist/{SMALL} is missing.*no network") as info:
        read_small()
    message = str(info.value)
    assert message.count("  http://127.0.0.1:") == 2
    assert len(re.findall(reason, message)) >= 2
    assert f"git checkout -- data/mnist/{SMALL}" in message
    assert names(missing) == [], "no partial file is left"


def test_two_downloads_at_once_do_no_harm(missing, mirrors):
    mirrors("good")
    with ThreadPoolExecutor(4) as pool:
        sizes = list(pool.map(lambda _: read_small().size, range(4)))
    assert sizes == [10_000] * 4
    assert names(missing) == [SMALL]


@pytest.mark.parametrize(
    "refusal",
    [
        PermissionError(errno.EACCES, "Permission denied"),
        OSError(errno.EROFS, "Read-only file system"),
    ],
)
def test_a_read_only_folder(folder, mirrors, monkeypatch, refusal):
    # Not through permission bits, which do not bind root.
    def refuse(*args, **kwargs):
        raise refusal

    asked = mirrors("good")
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert read_small().size == 10_000, "with the file there, it simply works"

    (folder / "mnist" / SMALL).unlink()
    with pytest.raises(PermissionError, match=rf"{refusal.strerror}.*FASTDL_DATA"):
        read_small()
    assert asked == []
