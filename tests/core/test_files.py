"""Files are written whole or not at all."""

import os
import time

import pytest

from fastdl_lib.core.files import whole_file


def names(folder):
    return sorted(os.listdir(folder))


def test_the_block_writes_the_file(tmp_path):
    with whole_file(tmp_path / "a.json") as part:
        part.write_text("new")
        assert names(tmp_path) != ["a.json"], "nothing stands under the name before the end"
    assert names(tmp_path) == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "new"


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_a_failing_block_leaves_the_old_file_and_no_part(tmp_path, failure):
    (tmp_path / "a.json").write_text("old")
    with pytest.raises(failure), whole_file(tmp_path / "a.json") as part:
        part.write_text("half")
        raise failure
    assert names(tmp_path) == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "old"


def test_a_missing_and_a_read_only_folder_are_named(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    for path, words in (
        (tmp_path / "results" / "a.json", "the folder 'results' does not exist; make it"),
        (tmp_path / "a.json", r"cannot be written to \(Read-only file system\)"),
    ):
        with pytest.raises(OSError, match=words), whole_file(path):
            pytest.fail("the block must not run")
        monkeypatch.setattr("tempfile.TemporaryDirectory", refuse)


def test_a_link_stays_a_link_and_what_a_dead_process_left_goes(tmp_path):
    (tmp_path / "a.json").write_text("old")
    (tmp_path / "link.json").symlink_to("a.json")
    for name, age_s in (("left", 90_000), ("of another writer", 10)):
        folder = tmp_path / f".writing-{name}"
        folder.mkdir()
        os.utime(folder, (time.time() - age_s,) * 2)
    with whole_file(tmp_path / "link.json") as part:
        part.write_text("new")
    assert names(tmp_path) == [".writing-of another writer", "a.json", "link.json"]
    assert (tmp_path / "link.json").is_symlink() and (tmp_path / "a.json").read_text() == "new"
