"""Small notebooks of the course's form, on which the tests try the course's tools.

`write_chapters(folder)` writes two chapters without a fault: outputs, exercises and a slider
figure in them. A test changes one thing and sees what the tool says.
"""

from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from fastdl_lib.course import notebooks as course

# A valid picture of one pixel.
PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJg"
    "gg=="
)

SETUP = "import random\n\nprint('ready')"

SLIDER_FIGURE = """\
import base64
import io

import ipywidgets
import matplotlib.pyplot as plt
from IPython.display import display

image = ipywidgets.Image(format="png")
slider = ipywidgets.IntSlider(value=4, min=1, max=9, description="size")
box = ipywidgets.VBox([slider, image])"""

DRAW = """\
def draw(_=None):
    figure, axes = plt.subplots(figsize=(3, 2))
    axes.bar([0], [slider.value])
    axes.set_ylim(0, 9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    plt.close(figure)
    image.value = buffer.getvalue()"""

SHOW = """\
slider.observe(draw, "value")
draw()
bundle = box._repr_mimebundle_()
bundle["image/png"] = base64.b64encode(image.value).decode()
bundle["text/plain"] = "interactive figure (run the notebook to use it)"
display(bundle, metadata={"image/png": {"alt": "one bar, 4 high"}}, raw=True)"""

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


def markdown(source):
    """A markdown cell."""
    return new_markdown_cell(source)


def code(source, *outputs, tags=()):
    """A code cell with its outputs."""
    cell = new_code_cell(source, outputs=list(outputs))
    if tags:
        cell.metadata["tags"] = list(tags)
    return cell


def solution(grade_id, source=SOLUTION):
    """The cell that a learner fills in."""
    cell = new_code_cell(source)
    cell.metadata["nbgrader"] = {
        "grade": False,
        "grade_id": grade_id,
        "locked": False,
        "schema_version": 3,
        "solution": True,
        "task": False,
    }
    return cell


def test(grade_id, points, source=TEST):
    """A graded cell."""
    cell = new_code_cell(source)
    cell.metadata["nbgrader"] = {
        "grade": True,
        "grade_id": grade_id,
        "locked": True,
        "points": points,
        "schema_version": 3,
        "solution": False,
        "task": False,
    }
    return cell


# pytest would take it for a test.
test.__test__ = False


def printed(text):
    """What `print` leaves in a notebook."""
    return new_output("stream", name="stdout", text=text)


def picture(alt="a dot"):
    """A figure; `alt` is its alternative text."""
    metadata = {"image/png": {"alt": alt}} if alt else {}
    data = {"image/png": PNG, "text/plain": "figure"}
    return new_output("display_data", data=data, metadata=metadata)


def start_cells():
    """The cells of a chapter 00 without a fault."""
    return [
        markdown("# Start here\n\nNext: [measure](01_measure.ipynb)"),
        code(SETUP, printed("ready\n"), tags=["setup"]),
        solution("area_start"),
        test("area_start_test", 1),
    ]


def chapter_cells():
    """The cells of a chapter 01 without a fault."""
    headings = "\n\n".join(f"## {heading.capitalize()}" for heading in course.HEADINGS)
    return [
        markdown(f"# Measure\n\nPrevious: [start](00_start_here.ipynb)\n\n{headings}"),
        code(SETUP, printed("ready\n"), tags=["setup"]),
        code("dots = 1\nprint(dots)", printed("1\n"), picture()),
        code("assert dots == 1"),
        code(SLIDER_FIGURE),
        code(DRAW),
        code(SHOW, picture()),
        code("assert len(image.value) > 1000"),
        solution("area"),
        test("area_test", 2),
        test("area_larger", 1, LARGER_TEST),
        test("area_zero", 1, ZERO_TEST),
    ]


def write(path, cells):
    """Write a clean notebook whose code cells look as if run once, in order."""
    notebook = new_notebook(cells=cells)
    code_cells = [cell for cell in cells if cell.cell_type == "code"]
    for count, cell in enumerate(code_cells, 1):
        cell.execution_count = count
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    course.clean(path)
    return Path(path)


def write_chapters(folder):
    """Write chapters 00 and 01 to a folder and return their paths."""
    folder = Path(folder)
    return [
        write(folder / "00_start_here.ipynb", start_cells()),
        write(folder / "01_measure.ipynb", chapter_cells()),
    ]
