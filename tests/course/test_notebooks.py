"""The notebooks have the course's form, and the tool that says so is right."""

import json
import os
import shutil
import subprocess

import nbformat
import pytest
import staged
import toys
from staged import NOTEBOOKS

from fastdl_lib.course import notebooks as course


def test_there_are_notebooks():
    assert NOTEBOOKS


def staged_faults(path):
    """Return the faults of a staged notebook, named as in the checkout it comes from."""
    name = f"notebooks/{path.name}"
    faults = [fault.replace(str(path), name) for fault in course.format_faults(path)]
    # format_faults looks for the folder the file lies in, here a temporary one.
    for cell in course.read_notebook(path).cells:
        if cell.cell_type == "code":
            traces = course._machine_traces(cell, course.ROOT / name)
            faults += [f"names the machine that ran it: {trace!r}" for trace in traces]
    return faults


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_format(path):
    assert staged_faults(path) == [], "of the staged notebook: repair it, then git add it"


def test_path_of_the_checkout_is_reported_in_a_staged_notebook(tmp_path):
    path = toys.write_chapters(tmp_path / "notebooks")[1]
    cells = toys.chapter_cells()
    cells[1].outputs[0].text = f"data in {course.ROOT}\n"
    toys.write(path, cells)
    assert any(repr(str(course.ROOT)) in fault for fault in staged_faults(path))


def git(folder, *arguments):
    subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True)


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_what_is_staged_counts_and_nothing_else(tmp_path):
    path, other = toys.write_chapters(tmp_path / "notebooks")
    assert staged.checkout(tmp_path) == tmp_path  # no git: the files as they are
    git(tmp_path, "init", "--quiet")
    assert staged.checkout(tmp_path) == tmp_path  # nothing staged yet
    git(tmp_path, "add", ".")
    committed = path.read_bytes()
    path.write_bytes(b"saved by a learner")
    other.unlink()
    (tmp_path / "notebooks" / "Untitled.ipynb").write_bytes(b"{}")
    folder = staged.checkout(tmp_path)
    assert folder != tmp_path
    copies = sorted((folder / "notebooks").iterdir())
    assert [copy.name for copy in copies] == [path.name, other.name]
    assert copies[0].read_bytes() == committed
    git(tmp_path, "add", ".")
    folder = staged.checkout(tmp_path) / "notebooks"
    assert sorted(copy.name for copy in folder.iterdir()) == [path.name, "Untitled.ipynb"]
    assert (folder / path.name).read_bytes() == b"saved by a learner"


def test_made_chapters_have_no_fault(tmp_path):
    for path in toys.write_chapters(tmp_path / "notebooks"):
        assert course.format_faults(path) == []


def figure(cells):
    return next(cell for cell in cells if cell.cell_type == "code" and len(cell.outputs) == 2)


def graded(cells):
    return [cell for cell in cells if cell.metadata.get("nbgrader", {}).get("grade")]


def set_source(cell, source):
    cell.source = source


BROKEN = {
    "never run": (
        lambda cells: figure(cells).update(execution_count=None),
        "never run, not as [2]",
    ),
    "run out of order": (
        lambda cells: figure(cells).update(execution_count=7),
        "run as [7], not as [2]",
    ),
    "error": (
        lambda cells: cells[1].outputs.append(
            nbformat.v4.new_output("error", ename="ValueError", evalue="", traceback=[])
        ),
        "ends in ValueError",
    ),
    "stderr": (
        lambda cells: cells[1].outputs.append(
            nbformat.v4.new_output("stream", name="stderr", text="Warning: slow\n")
        ),
        "writes to stderr: Warning: slow",
    ),
    "home folder in output": (
        lambda cells: cells[1].outputs[0].update(text="/home/ada/data\n"),
        "names the machine that ran it: '/home'",
    ),
    "temporary folder in source": (
        lambda cells: set_source(cells[1], "open('/tmp/x')"),
        "names the machine that ran it: '/tmp'",
    ),
    "Windows account in output": (
        lambda cells: cells[1].outputs[0].update(text=r"C:\Users\ada\data"),
        r"names the machine that ran it: 'C:\\Users'",
    ),
    "installed package in output": (
        lambda cells: cells[1].outputs[0].update(text="lib/site-packages/numpy\n"),
        "names the machine that ran it: 'site-packages'",
    ),
    "path in alternative text": (
        lambda cells: figure(cells).outputs[1].metadata["image/png"].update(alt="/Users/ada"),
        "names the machine that ran it: '/Users'",
    ),
    "long cell": (
        lambda cells: set_source(cells[1], "print(1)\n" * 26),
        "26 code lines; at most 25",
    ),
    "many cells of six lines": (
        lambda cells: [
            set_source(cell, "print(1)\n" * 6) for cell in cells if cell.cell_type == "code"
        ],
        "half of the code cells have 6 lines or more",
    ),
    "silent cell": (
        lambda cells: (set_source(cells[1], "x = 1"), cells[1].update(outputs=[])),
        "shows nothing and asserts nothing",
    ),
    "no alternative text": (
        lambda cells: figure(cells).outputs[1].update(metadata={}),
        "figure without alternative text",
    ),
    "no assertion beside the figure": (
        lambda cells: set_source(cells[3], "print(dots)"),
        "no assertion beside the figure",
    ),
    "syntax error": (
        lambda cells: set_source(cells[1], "print(1"),
        "is not Python",
    ),
    "trailing semicolon": (
        lambda cells: set_source(cells[1], "print(1);  # quietly"),
        "a line ends in `;`",
    ),
    "two graded cells": (
        lambda cells: cells.remove(graded(cells)[0]),
        "2 graded cells; at least 3 wanted",
    ),
    "no title": (
        lambda cells: set_source(cells[0], "#" + cells[0].source),
        "the first cell is not a title",
    ),
    "no heading": (
        lambda cells: set_source(cells[0], cells[0].source.replace("## In practice", "")),
        "no heading 'in practice'",
    ),
    "heading only in a code block": (
        lambda cells: set_source(
            cells[0], cells[0].source.replace("## Sources", "```\n## Sources\n```")
        ),
        "no heading 'sources'",
    ),
    "dead link": (
        lambda cells: set_source(cells[0], cells[0].source + "\n[more](02_more.ipynb#there)"),
        "a link leads nowhere: 02_more.ipynb",
    ),
    "no link back": (
        lambda cells: set_source(cells[0], cells[0].source.replace("00_start", "01_measure")),
        "no link to the previous chapter, 00_start_here.ipynb",
    ),
    "an invalid cell": (
        lambda cells: cells[0].update(surprise=1),
        "not a valid notebook",
    ),
}


@pytest.mark.parametrize(("break_it", "fault"), BROKEN.values(), ids=BROKEN)
def test_each_fault_is_reported(tmp_path, break_it, fault):
    path = toys.write_chapters(tmp_path / "notebooks")[1]
    notebook = nbformat.read(path, as_version=4)
    break_it(notebook.cells)
    path.write_text(json.dumps(notebook), encoding="utf-8")
    course.clean(path)
    faults = course.format_faults(path)
    assert any(fault in reported for reported in faults), faults


def test_unclean_notebook_is_reported(tmp_path):
    path = toys.write_chapters(tmp_path / "notebooks")[1]
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata["widgets"] = {"state": {}}
    nbformat.write(notebook, path)
    faults = course.format_faults(path)
    assert any("widget state" in fault for fault in faults)
    assert any("not clean: run" in fault for fault in faults)


def test_a_notebook_that_was_never_run_is_told_once(tmp_path):
    path = toys.write_chapters(tmp_path / "notebooks")[1]
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, path)
    (fault,) = course.format_faults(path)
    assert fault.startswith("never run: `python -m fastdl_lib.course.notebooks execute")


def test_a_bold_lead_serves_as_a_heading(tmp_path):
    path = toys.write_chapters(tmp_path / "notebooks")[1]
    cells = toys.chapter_cells()
    cells[0].source = cells[0].source.replace(
        "## What you will do", "**What you will do.** Measure."
    )
    toys.write(path, cells)
    assert course.format_faults(path) == []


def test_missing_link_to_the_next_chapter_and_too_few_exercises(tmp_path):
    start = toys.write_chapters(tmp_path / "notebooks")[0]
    toys.write(start, [toys.markdown("# Start here"), toys.code("print(1)", toys.printed("1\n"))])
    assert course.format_faults(start) == [
        "0 graded cells; at least 1 wanted",
        "no link to the next chapter, 01_measure.ipynb",
    ]


def test_name_without_a_chapter_number_is_reported(tmp_path):
    path = toys.write(tmp_path / "notebooks" / "notes.ipynb", [toys.markdown("# Notes")])
    assert course.format_faults(path) == ["the file's name is not NN_words.ipynb"]


def test_host_and_user_names_are_reported(tmp_path, monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "lovelace-7.example.org")
    monkeypatch.setattr("getpass.getuser", lambda: "countess")
    path = toys.write_chapters(tmp_path / "notebooks")[1]
    cells = toys.chapter_cells()
    cells[1].outputs[0].text = "ready on lovelace-7, countess, not viscountess\n"
    toys.write(path, cells)
    (fault,) = [fault for fault in course.format_faults(path) if "lovelace" in fault]
    assert "'lovelace-7'" in fault
    faults = course.format_faults(path)
    assert sum("names the machine" in fault for fault in faults) == 2


def test_path_of_the_checkout_is_reported(tmp_path):
    path = toys.write_chapters(tmp_path / "notebooks")[1]
    cells = toys.chapter_cells()
    cells[1].outputs[0].text = f"data in {tmp_path.resolve()}\n"
    toys.write(path, cells)
    assert any(repr(str(tmp_path.resolve())) in fault for fault in course.format_faults(path))


def test_addresses_and_prose_are_not_machine_paths(tmp_path):
    path = toys.write_chapters(tmp_path / "notebooks")[1]
    cells = toys.chapter_cells()
    cells[1].outputs[0].text = "https://example.org/home/tmp and the square/root, w/tmp\n"
    toys.write(path, cells)
    assert course.format_faults(path) == []


def test_expected_error_is_no_fault(tmp_path):
    path = toys.write_chapters(tmp_path / "notebooks")[1]
    cells = toys.chapter_cells()
    error = nbformat.v4.new_output("error", ename="ValueError", evalue="", traceback=[])
    cells.insert(2, toys.code("raise ValueError", error, tags=["raises-exception"]))
    toys.write(path, cells)
    assert course.format_faults(path) == []


def test_hidden_tests_do_not_count_as_lines():
    hidden = "### BEGIN HIDDEN TESTS\n" + "assert True\n" * 30 + "### END HIDDEN TESTS"
    assert course.code_lines(f"# why\n\nassert True\n{hidden}\nassert True") == 2


def test_clean_drops_what_changes_and_keeps_what_counts(tmp_path):
    view = {"model_id": "1", "version_major": 2, "version_minor": 0}
    data = {course._WIDGET_VIEW: view}
    both = nbformat.v4.new_output("display_data", data={**data, "text/plain": "a figure"})
    only = nbformat.v4.new_output("display_data", data=data)
    cell = toys.code("pass", toys.printed("a"), only, toys.printed("b"), both, tags=["setup"])
    cell.metadata.update(execution={"iopub.status.busy": "now"}, collapsed=True, scrolled=False)
    notebook = nbformat.v4.new_notebook(cells=[cell, toys.test("t", 1)])
    notebook.metadata.update(
        widgets={"application/vnd.jupyter.widget-state+json": {"state": {}}},
        kernelspec={"name": "other", "display_name": "Other"},
        language_info={"name": "python", "version": "3.11.7"},
    )
    path = tmp_path / "toy.ipynb"
    nbformat.write(notebook, path)

    assert course.clean(path)
    once = path.read_bytes()
    modified = path.stat().st_mtime_ns
    assert not course.clean(path)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (once, modified)
    assert once.endswith(b"}\n")
    assert b"\r" not in once

    cleaned = nbformat.read(path, as_version=4)
    assert cleaned.metadata == {
        "kernelspec": {
            "display_name": "Python 3 (ipykernel)",
            "language": "python",
            "name": "python3",
        },
        "language_info": {"name": "python"},
    }
    assert cleaned.cells[0].metadata == {"tags": ["setup"]}
    first, second = cleaned.cells[0].outputs
    assert first.text == "ab"
    assert second.data == {"text/plain": "a figure"}
    assert cleaned.cells[1].metadata.nbgrader.points == 1


def test_execute_writes_outputs_and_is_repeatable(tmp_path):
    path = toys.write_chapters(tmp_path / "notebooks")[1]
    seconds = course.execute(path)
    first = path.read_bytes()
    assert seconds > 0
    assert course.format_faults(path) == []
    pictures = [
        output.data["image/png"]
        for cell in course.read_notebook(path).cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    # The slider figure was drawn anew; the made picture of the other cell is gone.
    assert len(pictures) == 1
    assert pictures[0] != toys.PNG
    course.execute(path)
    assert path.read_bytes() == first


def test_execute_uses_this_python_in_the_notebooks_folder(tmp_path):
    source = "import sys, os\nprint(sys.prefix)\nprint(os.getcwd())"
    path = toys.write(tmp_path / "where.ipynb", [toys.code(source)])
    course.execute(path)
    (output,) = course.read_notebook(path).cells[0].outputs
    prefix, folder = output.text.splitlines()
    assert os.path.samefile(prefix, course.sys.prefix)
    assert os.path.samefile(folder, tmp_path)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import os\nos._exit(1)", "the kernel died"),
        ("import time\ntime.sleep(60)", "it did not finish within 2 s"),
    ],
)
def test_execute_leaves_the_file_when_a_cell_fails(tmp_path, capsys, source, reason):
    path = toys.write(
        tmp_path / "toy.ipynb", [toys.code("print(1)"), toys.code(f"# try it\n{source}")]
    )
    before = path.read_bytes()
    assert course.main(["execute", "--cell-timeout", "2", str(path)]) == 1
    message = capsys.readouterr().err
    assert f"toy.ipynb: stopped in code cell 2 (# try it): {reason}" in message
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["toy.ipynb"]


def test_command_line_reports_and_goes_on(tmp_path, capsys):
    start, chapter = toys.write_chapters(tmp_path / "notebooks")
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
    assert "widget state" in shown.out

    assert course.main(["clean", str(start), str(chapter)]) == 0
    assert capsys.readouterr().out == f"cleaned {start}\n"


def test_readme_shows_the_stored_pictures():
    pictures = {path.stem: course.readme_picture(course.read_notebook(path)) for path in NOTEBOOKS}
    stored = {name: picture for name, picture in pictures.items() if picture is not None}
    assert stored.keys() == course.README_PICTURES.keys(), "one tag readme-picture in each of these"
    readme = (staged.ROOT / "README.md").read_text(encoding="utf-8")
    for name, file in course.README_PICTURES.items():
        picture = (staged.ROOT / file).read_bytes()
        assert picture == stored[name], f"run make execute, stage {name} and {file}"
        assert f"]({file})" in readme
