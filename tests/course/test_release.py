"""The students' copy leaks nothing, keeps every exercise, and is graded fairly by nbgrader."""

import csv
import math
import re
import sqlite3

import nbformat
import numpy as np
import pytest
import toys

from fastdl_lib.course import notebooks as course
from fastdl_lib.course.release import main, nbgrader_config, programs_on_path, release

# Shorter lines, such as `else:` or `return x`, may well stand in a stub by right.
TELLING_LENGTH = 12
REGION = r"^[^\n]*### BEGIN {0}\n(.*?)^[^\n]*### END {0}[^\n]*$\n?"


@pytest.fixture(scope="module", params=["toys", "real"])
def released_course(request, tmp_path_factory):
    """A course, in a folder with spaces, and its release, made once and graded once."""
    folder = tmp_path_factory.mktemp(f"{request.param} in a folder with spaces")
    toy = request.param == "toys"
    chapters = toys.write_chapters(folder / "made") if toy else course.notebook_paths()
    copy = toys.course_copy(folder / "course", chapters)
    if not toy:
        earlier_gradebook(copy)
    release(copy)
    return copy


def earlier_gradebook(root):
    """A gradebook that is not new: for a new one nbgrader takes two seconds more."""
    with sqlite3.connect(root / "gradebook.db") as database:
        database.execute("CREATE TABLE grades_given (points)")
    return root / "gradebook.db"


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
    quiet = re.compile(r"#.*|[\w.]+\(\)")
    return {line for line in lines if len(line) > TELLING_LENGTH and not quiet.fullmatch(line)}


def leaks(instructors, students):
    """Return lines of solutions and hidden tests, and their marks, that stand in a text."""
    secret, public = set(), set()
    for cell in instructors.cells:
        solution, rest = regions(cell.source, "SOLUTION")
        hidden, rest = regions(rest, "HIDDEN TESTS")
        if course.grading(cell).get("solution") and not solution:
            solution, rest = rest, ""
        secret |= telling_lines(solution) | telling_lines(hidden)
        public |= telling_lines(rest)
    # Whatever text the file holds counts, not just the cells' sources.
    text = "\n".join(course.texts(students))
    found = {line for line in secret - public if line in text}
    return found | {mark for mark in ("BEGIN", "END") if re.search(rf"### {mark} [A-Z]+", text)}


def test_no_solution_no_hidden_test_and_no_output_leaks(released_course):
    for name, instructors, students in pairs(released_course):
        assert leaks(instructors, students) == set(), name
        assert "widgets" not in students.metadata, name
        for cell in students.cells:
            assert "source_hidden" not in cell.metadata.get("jupyter", {}), name
            assert not cell.get("outputs"), name
            assert cell.get("execution_count") is None, name


def test_leaks_are_found():
    def found_in(*cells):
        instructors = nbformat.v4.new_notebook(cells=toys.chapter_cells())
        return leaks(instructors, nbformat.v4.new_notebook(cells=list(cells)))

    secret = {"product_of_sides = height * width", "return product_of_sides"}
    assert found_in(nbformat.v4.new_markdown_cell("\n".join(secret))) == secret
    hidden = {line for line in toys.TEST.splitlines() if "sides_drawn" in line}
    assert found_in(toys.code("\n".join(hidden))) == hidden
    assert found_in(toys.code("### BEGIN SOLUTION")) == {"BEGIN"}
    shown = toys.printed("    product_of_sides = height * width")
    assert found_in(toys.code("1", shown)) == {"product_of_sides = height * width"}


def test_exercises_keep_their_stub_and_their_visible_tests(released_course):
    for name, instructors, students in pairs(released_course):
        before, after = (
            {course.grading(cell)["grade_id"]: cell for cell in cells if course.grading(cell)}
            for cells in (instructors.cells, students.cells)
        )
        assert before.keys() == after.keys() != set(), name
        for grade_id, cell in after.items():
            original = before[grade_id].source
            if course.grading(cell)["solution"]:
                signatures = re.findall(r"^def .*", original, re.MULTILINE)
                for line in [*signatures, *telling_lines(regions(original, "SOLUTION")[1])]:
                    assert line in cell.source, (name, grade_id)
                assert_asks_to_be_replaced(cell.source, original)
            else:
                visible = regions(original, "HIDDEN TESTS")[1]
                assert cell.source.strip() == visible.strip(), (name, grade_id)


def assert_asks_to_be_replaced(stub, original):
    namespace = {"np": np, "math": math}
    exec(stub, namespace)
    function = namespace[re.search(r"^def (\w+)", original, re.MULTILINE)[1]]
    with pytest.raises(NotImplementedError, match=r"^Replace this line with your answer\.$"):
        function(*[None] * function.__code__.co_argcount)


def test_nbgrader_metadata(released_course):
    from nbgrader.nbgraderformat import MetadataValidator

    for name, *copies in pairs(released_course):
        for notebook in copies:
            MetadataValidator().validate_nb(notebook)
            marks = [course.grading(cell) for cell in notebook.cells if course.grading(cell)]
            assert len({mark.grade_id for mark in marks}) == len(marks), name
            for mark in marks:
                assert not mark.grade or mark.points > 0, (name, mark.grade_id)
                assert mark.grade == mark.locked, (name, mark.grade_id)


# --- grading ---


def hand_in(root, student, name, cells, bom=""):
    """Hand in what grading depends on: setup cells, exercises and their tests.

    The lesson around them is run by nbval, where a failing test of an exercise fails as well.
    """
    kept = [cell for cell in cells if course.grading(cell) or "setup" in course.tags(cell)]
    path = toys.write(root / "submitted" / student / "notebooks" / f"{name}.ipynb", kept)
    path.write_text(bom + path.read_text(encoding="utf-8"), encoding="utf-8")
    return path


def grade(root):
    """Grade what was handed in; return {(student, notebook): (points, maximum)} and the export."""
    from nbgrader.api import Gradebook
    from nbgrader.converters import Autograde
    from nbgrader.coursedir import CourseDirectory
    from nbgrader.utils import capture_log

    config = nbgrader_config(root)
    about = {"assignment_id": "notebooks", "student_id": "*", "config": config}
    directory = CourseDirectory(root=str(root), **about)
    with programs_on_path():
        result = capture_log(Autograde(coursedir=directory, config=config))
    assert result["success"], result
    with Gradebook(directory.db_url, "fastdl") as gradebook:
        graded = gradebook.assignment_submissions("notebooks")
        scores = {
            (s.student.id, n.name): (n.score, n.max_score) for s in graded for n in s.notebooks
        }
        export = config.ExportApp.plugin_class(to=str(root / "grades.csv"))
        export.export(gradebook)
        with open(root / "grades.csv", encoding="utf-8") as file:
            return scores, {row["student_id"]: row for row in csv.DictReader(file)}


@pytest.fixture(autouse=True)
def as_a_grader(monkeypatch):
    # Timing budgets shrink; what is graded does not depend on time.
    monkeypatch.setenv("FASTDL_TIME_SCALE", "0.02")
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")


# nbgrader's own use of its database.
@pytest.mark.filterwarnings("ignore:Object of type")
@pytest.mark.parametrize("released_course", ["real"], indirect=True)
def test_grading_of_the_chapters(released_course):
    """Each second exercise is solved, the others are left as they were handed out."""
    wanted, solve = {}, False
    for name, instructors, students in pairs(released_course):
        cells, points = list(students.cells), 0
        for place, cell in enumerate(instructors.cells):
            mark = course.grading(cell)
            if mark.get("solution"):
                solve = not solve
            if solve and mark.get("solution"):
                cells[place] = cell
            points += mark.points if solve and mark.get("grade") else 0
        hand_in(released_course, "mia", name.removesuffix(".ipynb"), cells)
        wanted["mia", name.removesuffix(".ipynb")] = points
    scores, exported = grade(released_course)
    assert {chapter: scores[chapter][0] for chapter in wanted} == wanted
    assert all(0 <= points <= maximum > 0 for points, maximum in scores.values())
    assert float(exported["mia"]["score"]) == sum(wanted.values())
    assert exported["mia"]["not_graded"] == ""


def without(*grade_ids):
    return lambda cells: [c for c in cells if course.grading(c).get("grade_id") not in grade_ids]


@pytest.mark.filterwarnings("ignore:Object of type")
@pytest.mark.parametrize("released_course", ["toys"], indirect=True)
def test_a_fault_in_a_chapter_costs_no_more_than_that_chapter(released_course):
    root = released_course
    (_, start, start_stub), (_, chapter, chapter_stub) = pairs(root)
    start, chapter = start.cells, chapter.cells
    # Renamed by a browser, saved by an editor, the answer in a new cell; two tests deleted, and the
    # answer there twice.
    own = toys.code(toys.SOLUTION, tags=["setup"])
    retyped = [own, *without("area_start", "area_start_test")(start)]
    hand_in(root, "mia", "mia_00-Start_Here (1)", retyped, bom="\ufeff")
    wrong = toys.answer("area")
    wrong.source = "area = None"
    path = hand_in(
        root, "mia", "01_measure", [wrong, *without("area_larger", "area_zero")(chapter)]
    )
    path.rename(f"{path}.txt")
    # A whole exercise deleted; no notebook at all.
    hand_in(root, "ben", "00_start_here", without("area_start", "area_start_test")(start))
    hand_in(root, "ben", "01_measure", []).write_text("[" * 100_000)
    # A kernel that dies; points and kind of the cells rewritten.
    hand_in(
        root, "eva", "00_start_here", [*start, toys.code("import os\nos._exit(1)", tags=["setup"])]
    )
    path = hand_in(root, "eva", "01_measure", chapter)
    rewritten = path.read_text(encoding="utf-8").replace('"points": ', '"points": 1e')
    path.write_text(rewritten.replace('"grade": true', '"grade": false'), encoding="utf-8")
    # No file has the name of a notebook.
    for name, cells in (("00_start_here", start_stub.cells), ("01_measure", chapter_stub.cells)):
        path = hand_in(root, "tom", name, cells)
        path.rename(f"{path}.txt")
    scores, exported = grade(root)
    assert {student: (points, scores[student, "01_measure"][0]) for (student, name), (points, _)
            in scores.items() if name == "00_start_here"} == {
        "mia": (1, 4), "ben": (0, 0), "eva": (0, 4), "tom": (0, 0),
    }  # fmt: skip
    told = {student: (row["score"], row["not_graded"]) for student, row in exported.items()}
    assert told == {
        "mia": ("5.0", ""), "ben": ("", "01_measure"), "eva": ("", "00_start_here"),
        "tom": ("0.0", ""),
    }  # fmt: skip


# --- release, tried on made chapters ---


@pytest.fixture
def copy(tmp_path):
    copy = toys.course_copy(tmp_path / "course", toys.write_chapters(tmp_path / "made"))
    earlier_gradebook(copy)
    return copy


def test_the_release_is_new_unfolded_and_holds_chapters_only(copy):
    path = copy / "notebooks" / "00_start_here.ipynb"
    notebook = course.read_notebook(path)
    notebook.cells[2].metadata["jupyter"] = {"source_hidden": True}
    notebook.cells[3].metadata["jupyter"] = {"source_hidden": True, "outputs_hidden": False}
    course.write_notebook(path, notebook)
    (copy / "notebooks" / "results.json").write_text("{}")
    for name in ("Untitled", "01_measure-Copy1", "Copy of 01_measure", ".ipynb_checkpoints/01_a"):
        toys.write(copy / "notebooks" / f"{name}.ipynb", [toys.code("secret = 42")])
    stale = copy / "release" / "notebooks" / "stale.ipynb"
    stale.parent.mkdir(parents=True)
    stale.write_text("{}")
    released = release(copy)
    assert sorted(stale.parent.iterdir()) == released
    assert [path.name for path in released] == ["00_start_here.ipynb", "01_measure.ipynb"]
    cells = course.read_notebook(released[0]).cells
    assert "jupyter" not in cells[2].metadata
    assert cells[3].metadata.jupyter == {"outputs_hidden": False}


def leave_open(notebook):
    cell = notebook.cells[-4]
    cell.source = cell.source.replace("### END SOLUTION", "")
    return course.clean_notebook(notebook)


def keep_widgets(notebook):
    notebook.metadata["widgets"] = {"state": "what the solution shows"}
    return notebook


def interrupted(path):
    raise KeyboardInterrupt


BAD = {
    leave_open: (course.CourseError, "no end solution statement found"),
    keep_widgets: (course.CourseError, r"not clean: 01_measure\.ipynb\. Run"),
    interrupted: (KeyboardInterrupt, None),
}


@pytest.mark.parametrize(
    ("change", "told"), BAD.items(), ids=lambda it: getattr(it, "__name__", "")
)
def test_a_failed_release_leaves_the_earlier_one_and_its_grades(copy, monkeypatch, change, told):
    earlier = [copy / "release" / "notebooks" / "01_measure.ipynb", copy / "gradebook.db"]
    earlier[0].parent.mkdir(parents=True)
    earlier[0].write_text("an earlier release")
    before = [path.read_bytes() for path in earlier]
    if change is interrupted:
        monkeypatch.setattr("fastdl_lib.course.release.unfold", interrupted)
    else:
        path = copy / "notebooks" / "01_measure.ipynb"
        nbformat.write(change(course.read_notebook(path)), path)
    with pytest.raises(told[0], match=told[1]):
        release(copy)
    assert [path.read_bytes() for path in earlier] == before
    assert [*copy.glob("release/**/*")] == [earlier[0].parent, earlier[0]]


@pytest.mark.parametrize("taken", ["release", "release/notebooks", "gradebook.db/x"])
def test_a_release_without_a_place_is_refused_at_once(copy, monkeypatch, taken):
    monkeypatch.setattr("fastdl_lib.course.release._generate", None)
    (copy / "gradebook.db").unlink()
    (copy / taken).parent.mkdir(parents=True, exist_ok=True)
    (copy / taken).write_text("a file")
    with pytest.raises(course.CourseError, match="no place for release/notebooks and gradebook"):
        release(copy)
    assert (copy / taken).read_text() == "a file"


@pytest.mark.parametrize("name", ["course [2026]", "a%20course"])
def test_a_folder_that_nbgrader_takes_for_a_pattern_is_refused(tmp_path, name):
    with pytest.raises(course.CourseError, match="nbgrader does not find its files in a folder"):
        release(tmp_path / name)
    assert not (tmp_path / name).exists()


def test_a_course_without_chapters_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(release, "__defaults__", (toys.course_copy(tmp_path / "course", []),))
    assert main([]) == 1
    assert "no chapter" in capsys.readouterr().err
