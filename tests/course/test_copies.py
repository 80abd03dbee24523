"""A learner's own copies: nothing of the solutions is in them, and nothing in them is lost."""

import re

import pytest
import toys
from test_release import leaks

from fastdl_lib.course import notebooks as course
from fastdl_lib.course.copies import main, make_copies, own_copy


@pytest.fixture
def root(tmp_path):
    return toys.course_copy(tmp_path / "course", toys.write_chapters(tmp_path / "made"))


def change(path):
    """What a maintainer, or a learner, does to a chapter."""
    notebook = course.read_notebook(path)
    notebook.cells[0].source += " Changed."
    course.write_notebook(path, notebook)
    return path.read_bytes()


@pytest.mark.parametrize("chapter", course.notebook_paths(), ids=lambda path: path.stem)
def test_a_copy_leads_to_the_solution_and_holds_nothing_of_it(chapter, tmp_path):
    solved, copy = course.read_notebook(chapter), own_copy(chapter, tmp_path)
    assert leaks(solved, copy) == set()
    assert "widgets" not in copy.metadata and [c.id for c in copy.cells[:-1]] == [
        c.id for c in solved.cells
    ]
    for cell in copy.cells:
        assert not cell.get("outputs") and not cell.get("execution_count")
        assert not cell.metadata.get("jupyter", {}).get("source_hidden")
    link = re.search(r"\((.*)\)", copy.cells[-1].source)[1]
    assert (tmp_path / link).resolve() == chapter.resolve()


def test_what_is_there_is_never_written_over(root, tmp_path):
    mine, source = tmp_path / "mine", root / "notebooks" / "01_measure.ipynb"
    assert make_copies(mine, root) == [
        f"{name} is yours now" for name in ("AGENTS.md", "00_start_here.ipynb", "01_measure.ipynb")
    ]
    assert make_copies(mine, root) == []
    work = change(mine / source.name)
    assert make_copies(mine, root) == []
    for new in ("01_measure_new.ipynb", "01_measure_new1.ipynb"):
        change(source)
        told = f"01_measure.ipynb has changed in the course: the new one is {new}"
        assert make_copies(mine, root) == [told]
        assert "Changed" in (mine / new).read_text() and make_copies(mine, root) == []
    assert (mine / source.name).read_bytes() == work
    (mine / source.name).unlink()  # to start anew
    assert make_copies(mine, root) == ["01_measure.ipynb is yours now"]


@pytest.mark.parametrize("in_the_way", ["mine", "mine/.given.json/x"])
def test_no_place_is_told_in_a_line(root, tmp_path, monkeypatch, capsys, in_the_way):
    taken = tmp_path / in_the_way
    taken.parent.mkdir(parents=True, exist_ok=True)
    taken.write_text("in the way")
    assert main([str(tmp_path / "mine")]) == 1
    assert re.fullmatch("no place for your copies in mine: .*\n", capsys.readouterr().err)
    assert taken.read_text() == "in the way"


def test_a_damaged_note_of_what_was_given_is_told(root, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / ".given.json").write_text("{")
    assert main([str(tmp_path / "mine")]) == 1
    assert "no place" in capsys.readouterr().err
