"""Files are written whole or not at all."""

import os
import time

import numpy as np
import pytest

from fastdl_lib.core.files import check_destination, read_json, whole_file


def names(folder):
    return sorted(os.listdir(folder))


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_a_failing_block_leaves_the_old_file_and_no_part(tmp_path, failure):
    (tmp_path / "a.json").write_text("old")
    with pytest.raises(failure), whole_file(tmp_path / "a.json") as part:
        part.write_text("half")
        raise failure
    assert names(tmp_path) == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "old"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("results/a.json", "the folder 'results' does not exist; make it"),
        ("file/a.json", "the folder 'file' is a file; give another"),
        ("there", "cannot write there: it is a folder; give another name"),
        ("link", "cannot write there: it is a folder"),
        ("a" * 300, r"cannot be written to \(File name too long\)"),
        ("a.json", r"cannot be written to \(Read-only file system\); make it writable or choose"),
    ],
)
def test_what_cannot_be_written_is_refused_before_the_block(name, words, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    (tmp_path / "file").touch()
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    if name == "a.json":
        monkeypatch.setattr("tempfile.TemporaryDirectory", refuse)
    with pytest.raises(OSError, match=words), whole_file(tmp_path / name):
        pytest.fail("the block must not run")
    with pytest.raises(OSError, match=words):
        check_destination(tmp_path / name)
    assert names(tmp_path) == ["file", "link", "there"]


@pytest.mark.skipif(not os.path.exists("/dev/null"), reason="there is no /dev/null")
def test_a_device_is_not_replaced_by_a_file():
    with pytest.raises(FileExistsError, match="cannot write null: it is a device or a pipe"):
        check_destination("/dev/null")
    assert not os.path.isfile("/dev/null")


def test_what_the_disk_or_the_file_refuses_is_said_before_the_work(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    (tmp_path / "a.json").write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.write_bytes", full)
        with pytest.raises(PermissionError, match="No space left on device"):
            check_destination(tmp_path / "b.json")
    monkeypatch.setattr("os.access", lambda path, mode: False)  # true for a superuser
    with pytest.raises(PermissionError, match=r"cannot write a\.json: it is write-protected"):
        check_destination(tmp_path / "a.json")
    assert names(tmp_path) == ["a.json"]


def test_a_file_that_none_may_replace_is_overwritten(tmp_path, monkeypatch):
    """One that is mounted into a container, or another's in a shared folder for temporary files."""

    def busy(*_):
        raise OSError(16, "Device or resource busy")

    (tmp_path / "a.json").write_text("old")
    monkeypatch.setattr("os.replace", busy)
    with whole_file(tmp_path / "a.json") as part:
        part.write_text("new")
    assert (tmp_path / "a.json").read_text() == "new" and names(tmp_path) == ["a.json"]


def test_two_results_in_one_file_are_refused(tmp_path):
    (tmp_path / "a.json").write_text("old")
    (tmp_path / "link.json").symlink_to("a.json")
    check_destination(tmp_path / "a.json", None, tmp_path / "b.json", None)
    assert names(tmp_path) == ["a.json", "link.json"] and (tmp_path / "a.json").stat().st_size == 3
    with pytest.raises(PermissionError, match=r"a\.json: it may take 1,000,000,000,000 MB, and"):
        check_destination(tmp_path / "a.json", room_bytes=10**18)
    with pytest.raises(ValueError, match=r"both be written to a\.json: give two names"):
        check_destination(tmp_path / "a.json", tmp_path / "link.json")


def test_weights_are_no_json_file_rather_than_damaged_ones(tmp_path):
    np.savez(tmp_path / "w.npz", a=np.ones(3))
    with pytest.raises(ValueError, match=r"w\.npz is damaged or no JSON file at all \(.* give"):
        read_json(tmp_path / "w.npz", "fastdl-recording/1")


def test_a_link_stays_a_link_and_what_a_dead_process_left_goes(tmp_path):
    (tmp_path / "a.json").write_text("old")
    (tmp_path / "link.json").symlink_to("a.json")
    for name, age_s in (("left", 90_000), ("of another writer", 10)):
        folder = tmp_path / f".writing-{name}"
        folder.mkdir()
        os.utime(folder, (time.time() - age_s,) * 2)
    with whole_file(tmp_path / "link.json") as part:
        part.write_text("new")
        assert (tmp_path / "a.json").read_text() == "old", "before the end"
    assert names(tmp_path) == [".writing-of another writer", "a.json", "link.json"]
    assert (tmp_path / "link.json").is_symlink() and (tmp_path / "a.json").read_text() == "new"
