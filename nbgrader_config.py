"""nbgrader's settings: the assignment is the folder `notebooks`, nothing is moved for it.

What is wrong with one chapter of a submission costs that chapter alone, and is told.
"""

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
    """Of an exercise's cell that is there twice the last one counts; deleted tests come at the end.

    A deleted answer does not come back: its stub would undo an answer that was written elsewhere.
    """
    places = {grade_id(cell): place for place, cell in enumerate(notebook.cells)}
    for place, cell in enumerate(notebook.cells):
        if places[grade_id(cell)] != place:
            cell.metadata.pop("nbgrader", None)
    tests = [cell for cell in released.cells if grade_id(cell) and cell.metadata.nbgrader.grade]
    notebook.cells += [cell for cell in tests if grade_id(cell) not in places]
    return notebook


class OneByOne(NotebookExporter):
    """A chapter that cannot be read or run is left without points; the others are graded."""

    def from_file(self, file_stream, resources=None, **options):
        name = resources["metadata"]["name"]
        resources["output_extension"] = ".ipynb"
        try:
            text = file_stream.read().removeprefix("\ufeff")  # an editor's byte-order mark
            notebook = nbformat.reads(text, as_version=4)
            if "not_graded" in notebook.metadata:  # by the first of nbgrader's two rounds
                return text, resources
            if (RELEASED / f"{name}.ipynb").exists():
                released = nbformat.read(RELEASED / f"{name}.ipynb", as_version=4)
                notebook = repaired(notebook, released)
            return self.from_notebook_node(notebook, resources, **options)
        except Exception as error:
            said = f"{name} could not be graded: {type(error).__name__}: {str(error)[:400]}"
            self.log.error(said)
            told = nbformat.v4.new_notebook(metadata={"not_graded": said})
            told.cells.append(nbformat.v4.new_markdown_cell(said))
            return nbformat.writes(told), resources


def take_renamed_chapters(assignment, student, notebooks):
    """Grade what came back as `01_words (1).ipynb` or `name_01_words.ipynb` as `01_words.ipynb`."""
    folder = Path(notebooks[0]).parent
    for name in (path.name for path in RELEASED.glob("*.ipynb")):
        alike = [path for path in folder.glob("*.ipynb") if Path(name).stem in path.stem]
        if alike and not (folder / name).exists():
            shutil.copy(max(alike, key=lambda path: path.stat().st_mtime), folder / name)
            notebooks.append(str(folder / name))


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
