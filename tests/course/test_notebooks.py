"""The notebooks have the course's form, and the tool that says so is right."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import nbformat
import pytest
import toys
from conftest import pytest_configure

from fastdl_lib.course import notebooks as course
from fastdl_lib.course.notebooks import format_faults

CHAPTERS = course.notebook_paths()


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_format(path):
    assert format_faults(path) == []


def test_readme_shows_the_stored_pictures():
    readme = (course.ROOT / "README.md").read_text(encoding="utf-8")
    stored = {path.stem: course.readme_picture(course.read_notebook(path)) for path in CHAPTERS}
    assert {name for name, picture in stored.items() if picture} == course.README_PICTURES.keys()
    for name, file in course.README_PICTURES.items():
        assert (course.ROOT / file).read_bytes() == stored[name], "run make execute"
        assert f"]({file})" in readme


def test_readme_and_chapter_00_link_every_chapter():
    readme = (course.ROOT / "README.md").read_text(encoding="utf-8")
    start = "".join(course.texts(course.read_notebook(CHAPTERS[0]).cells))
    names = [path.name for path in CHAPTERS]
    assert not [name for name in names if f"](notebooks/{name})" not in readme]
    assert not [name for name in names[1:] if f"]({name})" not in start]


# --- the check, tried on made chapters ---


@pytest.fixture
def start(tmp_path):
    return toys.write_chapters(tmp_path / "notebooks")[0]


@pytest.fixture
def chapter(start):
    return start.with_name("01_measure.ipynb")


def changed(path, change):
    """Change a chapter's cells, clean it, and return what is wrong then."""
    notebook = course.read_notebook(path)
    change(notebook.cells)
    path.write_text(json.dumps(notebook), encoding="utf-8")
    course.clean(path)
    return format_faults(path)


def at(place, **new):
    return lambda cells: cells[place].update(new)


def in_prose(old, new):
    return lambda cells: cells[0].update(source=cells[0].source.replace(old, new))


def output(text):
    return lambda cells: cells[1].outputs[0].update(text=text)


def added(result):
    return lambda cells: cells[1].outputs.append(result)


def alt_text(**metadata):
    return lambda cells: cells[2].outputs[1].update(metadata={"image/png": metadata})


def told(place, **nbgrader):
    return lambda cells: cells[place].metadata.nbgrader.update(nbgrader)


def code_cells(**new):
    return lambda cells: [cell.update(new) for cell in cells if cell.cell_type == "code"]


BROKEN = {
    "never run": (at(2, execution_count=None), "never run, not as [2]"),
    "out of order": (at(2, execution_count=7), "run as [7], not as [2]"),
    "error": (added(toys.failed()), "ends in ValueError"),
    "stderr": (added(toys.printed("Warning: slow\n", "stderr")), "writes to stderr: Warning: slow"),
    "home in output": (output("/home/ada/data\n"), "names the machine that ran it: '/home'"),
    "temporary folder": (at(1, source="open('/tmp/x')"), "names the machine that ran it: '/tmp'"),
    "Windows account": (output(r"C:\Users\ada\data"), r"the machine that ran it: 'C:\\Users'"),
    "installed package": (output("lib/site-packages/numpy\n"), "that ran it: 'site-packages'"),
    "path in alternative text": (alt_text(alt="/Users/ada"), "the machine that ran it: '/Users'"),
    "no alternative text": (alt_text(), "figure without alternative text"),
    "long cell": (at(3, source="print(1)\n" * 26), "26 code lines; at most 25"),
    "long set-up cell": (at(1, source="print(1)\n" * 13), "13 code lines; at most 12"),
    "label typed by hand": (at(3, source="print('7 ms (computed)')"), "by hand, '(computed'"),
    "cells of six lines": (code_cells(source="print(1)\n" * 6), "code cells have 6 lines or more"),
    "silent cell": (at(1, source="x = 1", outputs=[]), "shows nothing and asserts nothing"),
    "no assertion": (at(3, source="print(dots)"), "no assertion beside the figure"),
    "syntax error": (at(1, source="print(1"), "is not Python"),
    "trailing semicolon": (at(1, source="print(1);  # quietly"), "a line ends in `;`"),
    "two graded cells": (lambda cells: cells.pop(), "2 graded cells; at least 3 wanted"),
    "answer without marks": (
        at(7, source="def area(height, width):\n    ### BEGIN SOLUTION\n    return height * width"),
        "area: the solution stands between one ### BEGIN SOLUTION and one ### END SOLUTION",
    ),
    "no points": (told(8, points=0), "area_test: a test without points"),
    "unlocked": (told(8, locked=False), "area_test: not locked"),
    "half hidden": (
        at(9, source="assert area(1, 1) == 1, 'one'\n### BEGIN HIDDEN TESTS"),
        "area_larger: hidden tests stand between",
    ),
    "nothing hidden": (at(8, source=toys.ZERO_TEST), "area: no hidden tests"),
    "no message": (
        at(9, source="assert area(1, 1) == 1"),
        "an assertion without a message",
    ),
    "graded time": (
        at(9, source="import time\nassert time.perf_counter() > 0, 'slow'"),
        "area_larger: calls perf_counter(): a time is never graded",
    ),
    "one name twice": (told(9, grade_id="area_test"), "two cells of the name area_test"),
    "test before its answer": (
        lambda cells: cells.insert(1, cells.pop(8)),
        "area_test: a test before any answer",
    ),
    "no title": (in_prose("# Measure", "Measure"), "the first cell is not a title"),
    "no heading": (in_prose("## In practice", ""), "no heading 'in practice'"),
    "heading in code": (in_prose("## Sources", "```\n## Sources\n```"), "no heading 'sources'"),
    "dead link": (
        in_prose("## Sources", "## Sources\n[more](02_more.ipynb#there)"),
        "a link leads nowhere: 02_more.ipynb",
    ),
    "no link back": (
        in_prose("00_start", "01_measure"),
        "no link to the previous chapter, 00_start_here.ipynb",
    ),
}


@pytest.mark.parametrize(("break_it", "fault"), BROKEN.values(), ids=BROKEN)
def test_each_fault_is_reported(chapter, break_it, fault):
    faults = changed(chapter, break_it)
    assert any(fault in reported for reported in faults), faults


RIGHT = {
    "as it was made": lambda cells: None,
    "a bold lead serves as a heading": in_prose("## What you will do", "**What you will do.** Go."),
    "addresses and prose": output("https://example.org/home/tmp and the square/root, w/tmp\n"),
    "an expected error": lambda cells: cells[-1].update(
        outputs=[toys.failed()], metadata={**cells[-1].metadata, "tags": ["raises-exception"]}
    ),
    "assert_ counts as an assertion": at(
        3, source="import numpy as np\nnp.testing.assert_equal(dots, 1)"
    ),
}


@pytest.mark.parametrize("change", RIGHT.values(), ids=RIGHT)
def test_what_is_right_is_not_reported(chapter, change):
    assert changed(chapter, change) == []


def test_a_notebook_that_was_never_run_is_told_once(chapter):
    (fault,) = changed(chapter, code_cells(outputs=[], execution_count=None))
    assert fault.startswith("never run: `python -m fastdl_lib.course.notebooks execute")


def test_chapter_00_needs_one_exercise_and_a_link(start):
    assert format_faults(start) == []

    def shorten(cells):
        cells[0].source = "# Start here"
        del cells[2:]

    assert changed(start, shorten) == [
        "0 graded cells; at least 1 wanted",
        "no link to the next chapter, 01_measure.ipynb",
    ]


OWN = ("Untitled", "Copy of 01_measure", "01_measure-Copy1", "01_measure (1)", "1_x", "01_a.b")


def test_what_is_no_chapter(start, chapter):
    for name in (*OWN, ".ipynb_checkpoints/01_measure"):
        toys.write(start.parent / f"{name}.ipynb", [toys.code("1")])
    assert course.notebook_paths(start.parents[1]) == [start, chapter]
    assert format_faults(start) == format_faults(chapter) == []
    config = SimpleNamespace(
        args_source="testpaths", ArgsSource=SimpleNamespace(TESTPATHS="testpaths")
    )
    config.args = ["tests", *(f"notebooks/{name}.ipynb" for name in (*OWN, "01_measure"))]
    pytest_configure(config)
    assert config.args == ["tests", "notebooks/01_measure.ipynb"]
    notes = start.rename(start.with_name("notes.ipynb"))
    assert format_faults(notes) == ["the file's name is not NN_words.ipynb"]


def test_names_of_host_and_user_and_path_of_the_checkout_are_reported(chapter, monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "lovelace-7.example.org")
    monkeypatch.setattr("getpass.getuser", lambda: "countess")
    checkout = str(chapter.parents[1].resolve())
    text = f"ready on lovelace-7, countess, not viscountess; data in {checkout}\n"
    faults = "\n".join(changed(chapter, output(text)))
    assert faults.count("names the machine") == 3 + (" '/tmp'" in faults)
    for name in ("lovelace-7", "countess", checkout):
        assert f": {name!r}" in faults


# --- clean ---


def test_clean_drops_what_changes_and_keeps_what_counts(tmp_path):
    data = {course.WIDGET_VIEW: {"model_id": "1", "version_major": 2, "version_minor": 0}}
    both = nbformat.v4.new_output("display_data", data={**data, "text/plain": "a figure"})
    only = nbformat.v4.new_output("display_data", data=data)
    cell = toys.code("pass", toys.printed("a"), only, toys.printed("b"), both, tags=["setup"])
    cell.metadata.update(execution={"iopub.status.busy": "now"}, collapsed=True, scrolled=False)
    notebook = nbformat.v4.new_notebook(cells=[cell, toys.graded("t", 1)])
    notebook.metadata.update(
        widgets={"application/vnd.jupyter.widget-state+json": {"state": {}}},
        kernelspec={"name": "other", "display_name": "Other"},
        language_info={"name": "python", "version": "3.11.7"},
    )
    path = tmp_path / "toy.ipynb"
    nbformat.write(notebook, path)

    assert course.clean(path)
    once, modified = path.read_bytes(), path.stat().st_mtime_ns
    assert not course.clean(path)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (once, modified)
    assert once.endswith(b"}\n")
    assert b"\r" not in once

    cleaned = nbformat.read(path, as_version=4)
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    assert cleaned.metadata == {"kernelspec": kernel, "language_info": {"name": "python"}}
    assert cleaned.cells[0].metadata == {"tags": ["setup"]}
    first, second = cleaned.cells[0].outputs
    assert first.text == "ab"
    assert second.data == {"text/plain": "a figure"}
    assert cleaned.cells[1].metadata.nbgrader.points == 1


def encoded(**changes):
    """A notebook's bytes with some of its fields changed."""
    fields = nbformat.v4.new_notebook(cells=[toys.code("1")]) | changes
    return json.dumps(fields).encode()


UNREADABLE = {
    "nothing": (b"", "does not appear to be JSON"),
    "cut off": (encoded()[:40], "does not appear to be JSON"),
    "100,000 lists": (b"[" * 100_000, "recursion"),
    "a list": (b"[]", "not a readable notebook"),
    "no text": (b"\xff\xfe\x00", "codec can't decode"),
    "of the next format": (encoded(nbformat=5), "Unsupported nbformat version 5"),
    "without cells": (encoded(cells=None), "not a readable notebook"),
    "a cell without a type": (encoded(cells=[{"source": ""}]), "not a readable notebook"),
    "a number as source": (encoded(cells=[toys.code("1") | {"source": 1}]), "1 is not valid"),
    "one tag": (encoded(cells=[toys.code("1") | {"metadata": {"tags": "a"}}]), "not a readable"),
}


@pytest.mark.parametrize(("content", "told"), UNREADABLE.values(), ids=UNREADABLE)
def test_what_is_no_notebook_is_told_and_left(tmp_path, content, told):
    path = tmp_path / "toy.ipynb"
    path.write_bytes(content)
    for do in (course.clean, course.execute, format_faults):
        with pytest.raises(course.CourseError, match=told) as caught:
            do(path)
        assert "toy.ipynb: not a readable notebook (" in str(caught.value)
    assert path.read_bytes() == content


@pytest.mark.parametrize("change", [
    lambda text: "\ufeff" + text, lambda text: text.replace("\n", "\r\n"),
], ids=["byte-order mark", "Windows' line ends"])  # fmt: skip
def test_clean_reads_what_other_programs_wrote(chapter, change):
    text = chapter.read_text(encoding="utf-8")
    chapter.write_bytes(change(text).encode())
    assert course.clean(chapter)
    assert chapter.read_text(encoding="utf-8") == text


# --- execute ---


def test_execute_writes_outputs_and_is_repeatable(chapter):
    assert course.execute(chapter) > 0
    first = chapter.read_bytes()
    assert format_faults(chapter) == []
    outputs = [
        out for cell in course.read_notebook(chapter).cells for out in cell.get("outputs", [])
    ]
    # The slider figure was drawn anew; the made picture of the other cell is gone.
    (picture,) = [out.data["image/png"] for out in outputs if "image/png" in out.get("data", {})]
    assert picture != toys.PNG
    course.execute(chapter)
    assert chapter.read_bytes() == first


FAILING = {
    "1 / 0": "ZeroDivisionError: division by zero",
    "import os\nos._exit(1)": "the kernel died",
    "import time\ntime.sleep(60)": "it did not finish within 2 s",
}


@pytest.mark.parametrize(("failing", "reason"), FAILING.items())
def test_execute_leaves_the_file_when_a_cell_fails(tmp_path, capsys, failing, reason):
    # Its first cell finds this Python, and itself in the notebook's folder.
    places = {sys.prefix: "sys.prefix", str(tmp_path): "'.'"}
    where = [f"assert os.path.samefile({there!r}, {here})" for there, here in places.items()]
    cells = [toys.code("\n".join(["import os, sys", *where])), toys.code(f"# try it\n{failing}")]
    path = toys.write(tmp_path / "toy.ipynb", cells)
    before = path.read_bytes()
    assert course.main(["execute", "--cell-timeout", "2", str(path)]) == 1
    message = capsys.readouterr().err
    assert f"toy.ipynb: stopped in code cell 2 (# try it): {reason}" in message
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["toy.ipynb"]


def test_execute_overwrites_no_edit_made_meanwhile(tmp_path):
    edit = "with open('toy.ipynb', 'a') as file:\n    _ = file.write(' ')"
    path = toys.write(tmp_path / "toy.ipynb", [toys.code(edit)])
    before = path.read_bytes()
    with pytest.raises(course.CourseError, match=r"toy\.ipynb: edited while it ran; nothing is"):
        course.execute(path)
    assert path.read_bytes() == before + b" "


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_execute_that_is_killed_leaves_the_file(tmp_path):
    kill = "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)"
    path = toys.write(tmp_path / "toy.ipynb", [toys.code("print(1)"), toys.code(kill)])
    before = path.read_bytes()
    command = [sys.executable, "-m", "fastdl_lib.course.notebooks", "execute", str(path)]
    assert subprocess.run(command, cwd=course.ROOT, capture_output=True).returncode == -9
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["toy.ipynb"]


def test_execute_looks_at_its_places_before_it_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(course, "ROOT", tmp_path)
    monkeypatch.setattr(course, "_run", None)
    path = toys.write(tmp_path / "notebooks" / "02_im2col.ipynb", [toys.code("1")])
    with pytest.raises(course.CourseError, match=r"not run: .*folder '\.github' does not exist"):
        course.execute(path)
    with pytest.raises(course.CourseError, match=r"not a readable notebook .*directory"):
        course.execute(tmp_path)


# --- the command ---


@pytest.mark.parametrize("verb", ["execute", "clean", "check"])
def test_a_folder_without_chapters_is_told(tmp_path, monkeypatch, capsys, verb):
    monkeypatch.setattr(course.notebook_paths, "__defaults__", (tmp_path,))
    assert course.main([verb]) == 1
    assert "no chapter (NN_words.ipynb) in " in capsys.readouterr().err


def test_command_line_reports_and_goes_on(start, chapter, tmp_path, capsys):
    assert course.main(["check", str(start), str(chapter)]) == 0
    damaged = tmp_path / "damaged.ipynb"
    damaged.write_text('{"cells": [', encoding="utf-8")
    notebook = course.read_notebook(start)
    notebook.metadata["widgets"] = {}
    nbformat.write(notebook, start)

    assert course.main(["check", str(damaged), str(tmp_path / "none.ipynb"), str(start)]) == 1
    shown = capsys.readouterr()
    assert "damaged.ipynb: not a readable notebook" in shown.err
    assert "none.ipynb: there is no such file" in shown.err
    assert "not clean: run" in shown.out

    with pytest.raises(SystemExit):
        course.main(["execute", "--cell-timeout", "0", str(start)])
    assert "--cell-timeout must be at least 1 second, got 0" in capsys.readouterr().err

    assert course.main(["clean", str(start), str(chapter)]) == 0
    assert capsys.readouterr().out == f"cleaned {start}\n"
