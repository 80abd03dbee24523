"""The students' copy leaks nothing, keeps every exercise, and is graded fairly by nbgrader."""

import re
import shutil
from collections import Counter

import nbformat
import pytest
import toys
from staged import NOTEBOOKS

from fastdl_lib.course import notebooks as course

# Shorter lines, such as `else:` or `return x`, may well stand in a stub by right.
TELLING_LENGTH = 12
STUB = 'raise NotImplementedError("Replace this line with your answer.")'
REGION = r"^[^\n]*### BEGIN {0}\n(.*?)^[^\n]*### END {0}[^\n]*$\n?"


def course_copy(folder, notebooks):
    """A course of these notebooks in a folder of its own."""
    (folder / "notebooks").mkdir(parents=True)
    for path in notebooks:
        shutil.copy(path, folder / "notebooks")
    shutil.copy(course.ROOT / "nbgrader_config.py", folder)
    return folder


@pytest.fixture(scope="module")
def toy_course(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    copy = course_copy(folder / "course", toys.write_chapters(folder / "notebooks"))
    course.release(copy)
    return copy


@pytest.fixture(scope="module")
def real_course(tmp_path_factory):
    copy = course_copy(tmp_path_factory.mktemp("real") / "course", NOTEBOOKS)
    course.release(copy)
    return copy


@pytest.fixture(params=["toy_course", "real_course"])
def released_course(request):
    return request.getfixturevalue(request.param)


def pairs(root):
    """Yield the name and the two copies, the instructor's and the students', of each notebook."""
    for path in course.notebook_paths(root):
        released = root / "release" / "notebooks" / path.name
        yield path.name, course.read_notebook(path), course.read_notebook(released)


def regions(source, kind):
    """The code between the marks, and what stands outside them."""
    pattern = re.compile(REGION.format(kind), re.DOTALL | re.MULTILINE)
    return "\n".join(pattern.findall(source)), pattern.sub("", source)


def telling_lines(source):
    lines = (line.strip() for line in source.splitlines())
    # A comment tells nothing, nor does the bare call of a function that the question names.
    quiet = re.compile(r"#.*|\w+\(\)")
    return {line for line in lines if len(line) > TELLING_LENGTH and not quiet.fullmatch(line)}


def leaks(instructors, students):
    """Return lines of solutions and hidden tests, and their marks, that stand in a text."""
    secret, public = set(), set()
    for cell in instructors.cells:
        solution, rest = regions(cell.source, "SOLUTION")
        hidden, rest = regions(rest, "HIDDEN TESTS")
        if cell.metadata.get("nbgrader", {}).get("solution") and not solution:
            solution, rest = rest, ""
        secret |= telling_lines(solution) | telling_lines(hidden)
        public |= telling_lines(rest)
    # Whatever text the file holds counts, not just the cells' sources.
    text = "\n".join(course._strings(students))
    found = {line for line in secret - public if line in text}
    return found | {mark for mark in ("BEGIN", "END") if re.search(rf"### {mark} [A-Z]+", text)}


def nbgrader_cells(notebook):
    cells = [cell for cell in notebook.cells if "nbgrader" in cell.metadata]
    return {cell.metadata.nbgrader.grade_id: cell for cell in cells}


def test_every_notebook_is_released_and_nothing_else(released_course):
    names = [path.name for path in (released_course / "release" / "notebooks").iterdir()]
    expected = [path.name for path in course.notebook_paths(released_course)]
    assert expected
    assert sorted(names) == expected


def test_no_solution_and_no_hidden_test_leaks(released_course):
    for name, instructors, students in pairs(released_course):
        assert leaks(instructors, students) == set(), name


def test_leaks_are_found():
    instructors = nbformat.v4.new_notebook(cells=toys.chapter_cells())
    text = "\n".join(toys.SOLUTION.splitlines()[3:5])
    students = nbformat.v4.new_notebook(cells=[toys.markdown(text)])
    assert leaks(instructors, students) == {
        "product_of_sides = height * width",
        "return product_of_sides",
    }
    hidden = [line for line in toys.TEST.splitlines() if "sides_drawn" in line]
    students = nbformat.v4.new_notebook(cells=[toys.code("\n".join(hidden))])
    assert leaks(instructors, students) == set(hidden)
    students = nbformat.v4.new_notebook(cells=[toys.code("### BEGIN SOLUTION")])
    assert leaks(instructors, students) == {"BEGIN"}
    shown = toys.printed("    product_of_sides = height * width")
    students = nbformat.v4.new_notebook(cells=[toys.code("1", shown)])
    assert leaks(instructors, students) == {"product_of_sides = height * width"}


def test_no_output_and_no_state(released_course):
    for name, _, students in pairs(released_course):
        assert "widgets" not in students.metadata, name
        for cell in students.cells:
            assert "source_hidden" not in cell.metadata.get("jupyter", {}), name
            if cell.cell_type == "code":
                assert cell.outputs == [], name
                assert cell.execution_count is None, name


def test_exercises_keep_their_stub_and_their_visible_tests(released_course):
    for name, instructors, students in pairs(released_course):
        before, after = nbgrader_cells(instructors), nbgrader_cells(students)
        assert before.keys() == after.keys(), name
        for grade_id, cell in after.items():
            original = before[grade_id].source
            if cell.metadata.nbgrader.solution:
                assert STUB in cell.source, (name, grade_id)
                signatures = re.findall(r"^def .*", original, re.MULTILINE)
                for line in [*signatures, *telling_lines(regions(original, "SOLUTION")[1])]:
                    assert line in cell.source, (name, grade_id)
                compile(cell.source, grade_id, "exec")
            else:
                visible = regions(original, "HIDDEN TESTS")[1]
                assert cell.source.strip() == visible.strip(), (name, grade_id)


def test_nbgrader_metadata(released_course):
    from nbgrader.nbgraderformat import MetadataValidator

    for name, instructors, students in pairs(released_course):
        for notebook in (instructors, students):
            MetadataValidator().validate_nb(notebook)
            marked = [
                cell.metadata.nbgrader for cell in notebook.cells if "nbgrader" in cell.metadata
            ]
            ids = Counter(mark.grade_id for mark in marked)
            assert max(ids.values(), default=1) == 1, (name, ids)
            for mark in marked:
                assert not mark.grade or mark.points > 0, (name, mark.grade_id)
                assert mark.grade == mark.locked, (name, mark.grade_id)


def test_folded_cells_are_unfolded(tmp_path):
    cells = toys.start_cells()
    cells[2].metadata["jupyter"] = {"source_hidden": True}
    cells[3].metadata["jupyter"] = {"source_hidden": True, "outputs_hidden": False}
    path = toys.write(tmp_path / "made" / "00_start_here.ipynb", cells)
    (released,) = course.release(course_copy(tmp_path / "course", [path]))
    released_cells = course.read_notebook(released).cells
    assert "jupyter" not in released_cells[2].metadata
    assert released_cells[3].metadata.jupyter == {"outputs_hidden": False}


def test_stale_release_is_replaced_and_other_files_stay_at_home(tmp_path):
    copy = course_copy(tmp_path / "course", toys.write_chapters(tmp_path / "made"))
    (copy / "notebooks" / "results.json").write_text("{}")
    course.release(copy)
    stale = copy / "release" / "notebooks" / "stale.ipynb"
    stale.write_text("{}")
    released = course.release(copy)
    assert sorted(stale.parent.iterdir()) == released
    assert [path.name for path in released] == ["00_start_here.ipynb", "01_measure.ipynb"]


def test_unclean_notebook_is_refused(tmp_path):
    copy = course_copy(tmp_path / "course", toys.write_chapters(tmp_path / "made"))
    path = copy / "notebooks" / "01_measure.ipynb"
    notebook = course.read_notebook(path)
    notebook.metadata["widgets"] = {"state": "what the solution shows"}
    nbformat.write(notebook, path)
    with pytest.raises(course.CourseError, match=r"not clean: 01_measure\.ipynb\. Run"):
        course.release(copy)
    assert not (copy / "release").exists()


def test_open_solution_mark_is_refused(tmp_path):
    cells = toys.start_cells()
    cells[2].source = cells[2].source.replace("### END SOLUTION", "")
    path = toys.write(tmp_path / "made" / "00_start_here.ipynb", cells)
    copy = course_copy(tmp_path / "course", [path])
    with pytest.raises(course.CourseError, match="no end solution statement found"):
        course.release(copy)
    assert not (copy / "release").exists()


def test_a_course_without_notebooks_is_refused(tmp_path):
    with pytest.raises(course.CourseError, match="no notebook in"):
        course.release(course_copy(tmp_path / "course", []))


def grade(root, student, notebooks):
    """Hand in notebooks, let nbgrader grade them; return {notebook: (points, maximum)}."""
    from nbgrader.api import Gradebook
    from nbgrader.converters import Autograde
    from nbgrader.coursedir import CourseDirectory
    from nbgrader.utils import capture_log

    folder = root / "submitted" / student / "notebooks"
    folder.mkdir(parents=True)
    for path in notebooks:
        shutil.copy(path, folder)
    config = course.nbgrader_config(root)
    directory = CourseDirectory(
        root=str(root), assignment_id="notebooks", student_id=student, config=config
    )
    grader = Autograde(coursedir=directory, config=config)
    with course.programs_on_path():
        result = capture_log(grader)
    assert result["success"], result
    with Gradebook(directory.db_url, "fastdl") as gradebook:
        submission = gradebook.find_submission("notebooks", student)
        return {
            notebook.name: (notebook.score, notebook.max_score) for notebook in submission.notebooks
        }


def exercises_only(path, folder):
    """Write what grading depends on: the setup, the exercises and their tests.

    The lesson around them is run by nbval, where a failing test of an exercise fails as well.
    """
    cells = [
        cell
        for cell in course.read_notebook(path).cells
        if "nbgrader" in cell.metadata or "setup" in cell.metadata.get("tags", [])
    ]
    return toys.write(folder / path.name, cells)


# nbgrader's own use of its database.
@pytest.mark.filterwarnings("ignore:Object of type")
@pytest.mark.parametrize("which", ["toys", "real"])
def test_grading(tmp_path, monkeypatch, which):
    # Timing budgets shrink; what is graded does not depend on time.
    monkeypatch.setenv("FASTDL_TIME_SCALE", "0.02")
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
    notebooks = toys.write_chapters(tmp_path / "made") if which == "toys" else NOTEBOOKS
    made = [exercises_only(path, tmp_path / "exercises") for path in notebooks]
    root = course_copy(tmp_path / "course", made)
    released = course.release(root)
    solved = grade(root, "solved", course.notebook_paths(root))
    untouched = grade(root, "untouched", released)
    assert solved.keys() == untouched.keys() == {path.stem for path in notebooks}
    for name, (points, maximum) in solved.items():
        assert points == maximum > 0, name
    for name, (points, maximum) in untouched.items():
        assert points == 0 < maximum, name
