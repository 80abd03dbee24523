"""nbgrader's settings: the assignment is the folder `notebooks`, nothing is moved for it.

What is wrong with one chapter of a submission costs that chapter alone, and is told.
"""

import contextlib
import re
import shutil
from pathlib import Path

import nbformat
from nbconvert.exporters import NotebookExporter
from nbgrader.api import MissingEntry
from nbgrader.plugins import CsvExportPlugin

c = get_config()  # noqa: F821 - nbgrader defines it

c.CourseDirectory.course_id = "fastdl"
# The instructor's notebooks are ./notebooks itself, not source/notebooks.
c.CourseDirectory.source_directory = "."

c.ClearSolutions.code_stub = {
    "python": 'raise NotImplementedError("Replace this line with your answer.")'
}

# Seconds a cell; nbgrader's own 30 is short for a measurement on a slow machine.
c.Execute.timeout = 120

# Deleted tests come back, as edited ones do, even where there is no release beside this file.
c.OverwriteCells.add_missing_cells = True

RELEASED = Path(__file__).resolve().parent / "release" / "notebooks"


def grade_id(cell):
    """nbgrader's name of a cell of an exercise; None for any other cell."""
    return (cell.metadata.get("nbgrader") or {}).get("grade_id")


def repaired(notebook, released):
    """Give each cell of an exercise what nbgrader was told of it, the last one where it is there
    twice, and put deleted tests at the end.

    A deleted answer does not come back: its stub would undo an answer that was written elsewhere.
    """
    known = {grade_id(cell): cell.metadata.nbgrader for cell in released.cells if grade_id(cell)}
    last = {grade_id(cell): cell for cell in notebook.cells}
    for cell in notebook.cells:
        name = grade_id(cell)
        cell.metadata.pop("nbgrader", None)
        if name in known and last[name] is cell:
            cell.metadata["nbgrader"] = known[name]
    tests = [cell for cell in released.cells if grade_id(cell) and known[grade_id(cell)].grade]
    notebook.cells += [cell for cell in tests if grade_id(cell) not in last]
    return notebook


class OneByOne(NotebookExporter):
    """A chapter that cannot be read or run is left without points; the others are graded."""

    def from_filename(self, filename, resources=None, **options):
        try:
            return super().from_filename(filename, resources, **options)
        except Exception as error:
            name = Path(filename).stem
            said = f"{name} could not be graded: {type(error).__name__}: {str(error)[:400]}"
            self.log.error(said)
            told = nbformat.v4.new_notebook(metadata={"not_graded": said})
            told.cells.append(nbformat.v4.new_markdown_cell(said))
            return nbformat.writes(told), resources | {"output_extension": ".ipynb"}

    def from_file(self, file_stream, resources=None, **options):
        text = file_stream.read().removeprefix("\ufeff")  # an editor's byte-order mark
        notebook = nbformat.reads(text, as_version=4)
        if "not_graded" in notebook.metadata:  # by the first of nbgrader's two rounds
            return text, resources | {"output_extension": ".ipynb"}
        released = RELEASED / f"{resources['metadata']['name']}.ipynb"
        if released.exists():
            notebook = repaired(notebook, nbformat.read(released, as_version=4))
        return self.from_notebook_node(notebook, resources, **options)


def take_renamed_chapters(assignment, student, notebooks):
    """Grade what came back renamed, too."""
    notebooks += named_as_released(Path(notebooks[0]).parent)


def named_as_released(folder):
    """Copy what came back as `01_words (1).ipynb`, `name_01-Words.ipynb` or `01_words.ipynb.txt` to
    `01_words.ipynb`; return the copies."""

    def plain(text):
        return re.sub(r"[\W_]+", "_", text.lower())

    copies = []
    for name in (path.name for path in RELEASED.glob("*.ipynb")):
        alike = [
            path for path in folder.glob("*.ipynb*") if plain(Path(name).stem) in plain(path.name)
        ]
        if alike and not (folder / name).exists():
            shutil.copy(max(alike, key=lambda path: path.stat().st_mtime), folder / name)
            copies.append(str(folder / name))
    return copies


# nbgrader passes a submission without any *.ipynb by, before its hook.
for handed_in in Path(__file__).resolve().parent.glob("submitted/*/notebooks"):
    with contextlib.suppress(OSError):
        named_as_released(handed_in)


class Grades(CsvExportPlugin):
    """The grades, and who has chapters that could not be graded: these have no score, not 0."""

    def export(self, gradebook):
        self.to = self.to or "grades.csv"
        super().export(gradebook)
        header, *rows = Path(self.to).read_text().splitlines()
        lines = [f"{header},not_graded"]
        for row in rows:
            *start, score, most = row.split(",")
            missing = self.not_graded(gradebook, start[0], start[3])
            lines.append(",".join([*start, "" if missing else score, most, " ".join(missing)]))
        Path(self.to).write_text("\n".join(lines) + "\n")

    @staticmethod
    def not_graded(gradebook, assignment, student):
        """The chapters that a student handed in and nobody has graded."""
        try:
            handed_in = gradebook.find_submission(assignment, student).notebooks
        except MissingEntry:
            return []
        open_grades = [grade for notebook in handed_in for grade in notebook.grades]
        open_grades = [g for g in open_grades if g.auto_score is None and g.manual_score is None]
        return sorted({grade.notebook.name for grade in open_grades})


c.Autograde.exporter_class = OneByOne
c.Autograde.pre_convert_hook = take_renamed_chapters
c.ExportApp.plugin_class = Grades
