"""Small notebooks of the course's form, on which the tests try the course's tools.

`write_chapters(folder)` writes two chapters without a fault: outputs, exercises and a slider
figure in them. A test changes one thing and sees what the tool says.
"""

import shutil
from dataclasses import dataclass

from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from fastdl_lib.course import notebooks as course

# A valid picture of one pixel.
PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJg"
    "gg=="
)
SETUP = "import random\n\nprint('ready')"
DRAW = """\
from fastdl_lib.figures.explore import explore
from fastdl_lib.figures.picture import Origin, Picture, canvas

def draw(size):
    figure, axes = canvas(3, 2)
    axes.bar([0], [size])
    axes.set_ylim(0, 9)
    return Picture(figure, "A bar", [Origin("computed", "made up")], f"one bar, {size} high")"""
SLIDER = "box = explore(draw, size=[4, 5, 6])"

SOLUTION = """\
def area(height, width):
    \"\"\"Return the area of a rectangle.\"\"\"
    ### BEGIN SOLUTION
    product_of_sides = height * width
    return product_of_sides
    ### END SOLUTION"""
TEST = """\
assert area(2, 3) == 6, "a 2 by 3 rectangle has an area of 6"
### BEGIN HIDDEN TESTS
sides_drawn = random.randint(4, 99), random.randint(4, 99)
assert area(*sides_drawn) == sides_drawn[0] * sides_drawn[1], f"wrong for {sides_drawn}"
### END HIDDEN TESTS"""
LARGER_TEST = 'assert area(10, 10) == 100, "a 10 by 10 square has an area of 100"'
ZERO_TEST = 'assert area(0, 5) == 0, "a rectangle without height has no area"'


def code(source, *outputs, tags=(), **nbgrader):
    """A code cell with its outputs, its tags and what nbgrader is told of it."""
    cell = new_code_cell(source, outputs=list(outputs))
    if tags:
        cell.metadata["tags"] = list(tags)
    if nbgrader:
        cell.metadata["nbgrader"] = {"schema_version": 3, "task": False, **nbgrader}
    return cell


def answer(grade_id):
    return code(SOLUTION, grade_id=grade_id, grade=False, locked=False, solution=True)


def graded(grade_id, points, source=TEST):
    about = {"grade": True, "locked": True, "solution": False, "points": points}
    return code(source, grade_id=grade_id, **about)


def printed(text, name="stdout"):
    return new_output("stream", name=name, text=text)


def failed():
    return new_output("error", ename="ValueError", evalue="", traceback=[])


def picture():
    data = {"image/png": PNG, "text/plain": "figure"}
    return new_output("display_data", data=data, metadata={"image/png": {"alt": "a dot"}})


def start_cells():
    return [
        new_markdown_cell("# Start here\n\nNext: [measure](01_measure.ipynb)"),
        code(SETUP, printed("ready\n"), tags=["setup"]),
        answer("area_start"),
        graded("area_start_test", 1),
    ]


def chapter_cells():
    headings = "\n\n".join(f"## {heading.capitalize()}" for heading in course.HEADINGS)
    return [
        new_markdown_cell(f"# Measure\n\nPrevious: [start](00_start_here.ipynb)\n\n{headings}"),
        code(SETUP, printed("ready\n"), tags=["setup"]),
        code("dots = 1\nprint(dots)", printed("1\n"), picture()),
        code("assert dots == 1"),
        code(DRAW),
        code(SLIDER, picture()),
        code("assert len(box.children) == 2"),
        answer("area"),
        graded("area_test", 2),
        graded("area_larger", 1, LARGER_TEST),
        graded("area_zero", 1, ZERO_TEST),
    ]


def write(path, cells):
    """Write a clean notebook whose code cells look as if run once, in order."""
    for count, cell in enumerate((cell for cell in cells if cell.cell_type == "code"), 1):
        cell.execution_count = count
    path.parent.mkdir(parents=True, exist_ok=True)
    course.write_notebook(path, new_notebook(cells=cells))
    return path


def write_chapters(folder):
    start = write(folder / "00_start_here.ipynb", start_cells())
    return [start, write(folder / "01_measure.ipynb", chapter_cells())]


def course_copy(folder, notebooks):
    """A course of these notebooks in a folder of its own."""
    (folder / "notebooks").mkdir(parents=True)
    for path in notebooks:
        shutil.copy(path, folder / "notebooks")
    shutil.copy(course.ROOT / "nbgrader_config.py", folder)
    return folder


@dataclass
class Exercise:
    """A solution cell with what it needs, and the graded cells after it that judge it."""

    grade_id: str
    setup: list[str]
    solution: str
    tests: list[str]


def exercises_of(path):
    """The exercises of a notebook in order."""
    cells = [cell for cell in course.read_notebook(path).cells if cell.cell_type == "code"]
    setup = [cell.source for cell in cells if "setup" in course.tags(cell)]
    found = []
    for cell in cells:
        mark = course.grading(cell)
        if mark.get("solution") and not mark.get("grade"):
            found.append(Exercise(mark["grade_id"], setup, cell.source, []))
        elif mark.get("grade"):
            assert found, f"{mark['grade_id']} in {path}: a test before any exercise"
            found[-1].tests.append(cell.source)
    return found
