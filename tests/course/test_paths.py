"""Every command that writes to a path it is given refuses a bad one before its work."""

import argparse
import contextlib
import importlib
import os
import sys
import types
from pathlib import Path

import pytest

from fastdl_lib.course import chip, notebooks, ranks, record

COURSE = Path(ranks.__file__).parent
COMMANDS = sorted(
    path.stem for path in COURSE.glob("[!_]*.py") if "__main__" in path.read_text(encoding="utf-8")
)


class Seen(Exception):
    """The parser of a command, caught as it begins to read the line."""


def parser_of(command, monkeypatch):
    """The parser of a command; None where it takes no arguments."""

    def caught(parser, *_, **__):
        raise Seen(parser)

    module = importlib.import_module(f"fastdl_lib.course.{command}")
    if not module.main.__code__.co_argcount:
        return None
    with monkeypatch.context() as patch:
        for name in ("parse_args", "parse_intermixed_args"):
            patch.setattr(argparse.ArgumentParser, name, caught)
        with pytest.raises(Seen) as seen:
            module.main([])
    return seen.value.args[0]


def paths_of(parser, words=()):
    """The words in front of an option, and its name, for each that takes a path."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield from paths_of(below, (*words, name))
        elif action.type is not None:
            with contextlib.suppress(ValueError, TypeError, argparse.ArgumentTypeError):
                if isinstance(action.type("a.npz"), Path):
                    yield (*words, (action.option_strings or [action.dest])[0])


# The words in front of a path, and the ending of its name; only read: a recording to --check.
WRITTEN = {
    ("train", "--out"): ".npz", ("train", "--checkpoint"): ".npz",
    ("record", "chip", "--out"): ".json",
    ("record", "--out"): ".json", ("record", "ranks", "--out"): ".json",
    ("ranks", "train", "--out"): ".npz", ("ranks", "train", "--checkpoint"): ".npz",
    ("ranks", "train", "--result"): ".json", ("ranks", "all-reduce", "--result"): ".json",
    ("ranks", "steps", "--result"): ".json",
    ("notebooks", "execute", "notebooks"): ".ipynb", ("notebooks", "clean", "notebooks"): ".ipynb",
}  # fmt: skip
ONLY_READ = {("record", "--check"), ("notebooks", "check", "notebooks")}
FOLDERS = {("copies", "folder")}  # made where it is missing; tried in test_copies.py


def test_every_path_that_a_command_takes_is_tried_here(monkeypatch):
    fake_mpi(monkeypatch)
    found = set()
    for command in COMMANDS:
        parser = parser_of(command, monkeypatch)
        found |= {(command, *words) for words in paths_of(parser)} if parser else set()
    # A notebook's verb, and what is recorded, are choices of one parser.
    known = {(words[0], words[-1]) if words[0] != "ranks" else words for words in WRITTEN}
    assert found == known | {(words[0], words[-1]) for words in ONLY_READ} | FOLDERS


def fake_mpi(monkeypatch):
    """One rank, without MPI."""
    world = types.SimpleNamespace(rank=0, size=1, Barrier=lambda: None)
    world.Split_type, world.allreduce = lambda kind: world, lambda value, how: value
    mpi = types.SimpleNamespace(COMM_WORLD=world, COMM_TYPE_SHARED=0, MIN=min)
    monkeypatch.setitem(sys.modules, "mpi4py", types.SimpleNamespace(MPI=mpi))
    alone = type("Alone", (contextlib.nullcontext,), {"rank": 0, "size": 1, "local_rank": 0})
    monkeypatch.setattr(ranks, "MpiWorkers", lambda **_: alone())


@pytest.fixture
def no_work(monkeypatch):
    """Whoever begins to work fails the test."""

    def work(*_, **__):
        pytest.fail("the work began")

    fake_mpi(monkeypatch)
    train = importlib.import_module("fastdl_lib.course.train")
    monkeypatch.setattr(ranks, "JOBS", dict.fromkeys(ranks.JOBS, work))
    for module, name in (
        (train, "mnist"), (chip, "measure"), (record, "measure_machine"),
        (ranks, "measure"), (notebooks, "_run"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, work)
    monkeypatch.setattr(record.psutil, "cpu_percent", lambda interval: 0.0)


def a_folder(tmp_path, name):
    (tmp_path / name).mkdir()
    return tmp_path / name


def in_a_file(tmp_path, name):
    (tmp_path / "file").touch()
    return tmp_path / "file" / name


def read_only(tmp_path, name):
    """A folder that even the superuser cannot write to."""
    if not os.path.isdir("/proc/self"):
        pytest.skip("there is no /proc")
    return Path("/proc", name)


PLACES = {
    "a folder": a_folder,
    "no such folder": lambda tmp_path, name: tmp_path / "gone" / name,
    "a folder that is a file": in_a_file,
    "a read-only place": read_only,
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("words", WRITTEN, ids=" ".join)
def test_what_could_not_be_written_is_refused_before_the_work(
    words, place, no_work, tmp_path, capsys
):
    command, *before, option = words
    path = PLACES[place](tmp_path, f"new{WRITTEN[words]}")
    given = [*before, *([option] if option[0] == "-" else []), str(path)]
    main = importlib.import_module(f"fastdl_lib.course.{command}").main
    try:
        status = main(given)
        message = capsys.readouterr().err
    except (OSError, ValueError, RuntimeError) as error:  # a rank's, told by its job
        status, message = 1, str(error)
    except SystemExit as error:
        status, message = error.code, capsys.readouterr().err
    assert status and (path.name in message or path.parent.name in message), message
    assert "Traceback" not in message and "delete" not in message


def test_weights_and_checkpoint_are_two_files(no_work, tmp_path, capsys):
    path, train = tmp_path / "run.npz", importlib.import_module("fastdl_lib.course.train")
    assert train.main(["--out", str(path), "--checkpoint", str(tmp_path / "." / "run.npz")]) == 1
    assert "would both be written to run.npz: give two names" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"both be written to run\.npz"):
        ranks.main(["train", "--out", str(path), "--checkpoint", str(path)])


@pytest.mark.parametrize("content", ['{"schema": "fastdl-recording/1"}', "my notes"])
def test_what_stands_where_the_recipe_would_go_is_kept(content, no_work, tmp_path, capsys):
    (tmp_path / "run.json").write_text(content)
    train = importlib.import_module("fastdl_lib.course.train")
    assert train.main(["--out", str(tmp_path / "run.npz")]) == 1
    assert "run.json would be written beside the weights" in capsys.readouterr().err
    assert (tmp_path / "run.json").read_text() == content
