"""Make the students' copies of the notebooks: no solutions, no hidden tests, no outputs.

    python -m fastdl_lib.course.release

They go to `release/notebooks/`; nbgrader grades what comes back (see GRADING.md).
"""

import argparse
import contextlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from nbformat import NotebookNode

from fastdl_lib.core.files import check_destination
from fastdl_lib.course import notebooks as course
from fastdl_lib.course.notebooks import FOLDER, ROOT, CourseError


def release(root: Path = ROOT) -> list[Path]:
    """Make the students' chapters in `release/notebooks` under `root`; return their paths.

    nbgrader replaces the solutions, drops the hidden tests and all outputs, and enters the
    exercises in `gradebook.db`, from which submissions are graded. An earlier release and gradebook
    stay as they are until the new ones are whole.

    Raises: CourseError when a chapter is not clean, nbgrader refuses one, or there is no place for
    the copies.
    """
    root = Path(root).resolve()
    if found := re.search(r"\[|\?|%[0-9a-fA-F]{2}", str(root)):
        raise CourseError(
            f"nbgrader does not find its files in a folder with {found[0]!r} in its name or "
            f"above it: rename the folder, got {root}"
        )
    chapters = course.notebook_paths(root)
    # nbgrader would copy the widget state, with what the solutions show, to the students.
    unclean = [path.name for path in chapters if not course.is_clean(path)]
    if unclean:
        command = "python -m fastdl_lib.course.notebooks clean"
        raise CourseError(f"not clean: {', '.join(unclean)}. Run `{command}` first.")
    released, gradebook = root / "release" / FOLDER, root / "gradebook.db"
    try:
        check_destination(gradebook)
        released.mkdir(parents=True, exist_ok=True)
        check_destination(released / "chapter.ipynb")
    except OSError as error:
        raise CourseError(f"no place for release/{FOLDER} and gradebook.db: {error}") from error
    for left in released.parent.glob(".making-*"):  # by a process that died
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=released.parent, prefix=".making-") as work:
        if gradebook.exists():
            shutil.copy(gradebook, work)
        _generate(root, Path(work), {path.name for path in chapters})
        made = Path(work, "release", FOLDER)
        for path in made.glob("*.ipynb"):
            course.write_notebook(path, unfold(course.read_notebook(path)))
        os.replace(released, Path(work, "earlier"))
        os.replace(made, released)
        os.replace(Path(work, "gradebook.db"), gradebook)
    return sorted(released.glob("*.ipynb"))


def nbgrader_config(root: Path = ROOT):
    """The settings of `nbgrader_config.py`, as a traitlets Config."""
    from traitlets.config import PyFileConfigLoader

    return PyFileConfigLoader("nbgrader_config.py", path=str(root)).load_config()


def _generate(root: Path, work: Path, names: set[str]) -> None:
    """Let nbgrader convert these chapters, and nothing else that lies beside them, into `work`."""
    from nbgrader.converters import GenerateAssignment
    from nbgrader.coursedir import CourseDirectory
    from nbgrader.utils import capture_log

    class OfChapters(GenerateAssignment):
        def init_notebooks(self):
            super().init_notebooks()
            for found in self.assignments.values():
                found[:] = [path for path in found if Path(path).name in names]

    config = nbgrader_config(root)
    directory = CourseDirectory(root=str(root), assignment_id=FOLDER, config=config)
    directory.release_directory = str(work / "release")
    directory.db_url = f"sqlite:///{work / 'gradebook.db'}"
    # Files that a run has written beside the notebooks stay at home, too.
    directory.ignore = ["*"]
    generator = OfChapters(coursedir=directory, parent=None)
    generator.update_config(config)
    generator.force = generator.create_assignment = True
    with programs_on_path():
        result = capture_log(generator)
    if not result["success"]:
        # nbgrader logs the cause and then raises a summary that points to the log.
        causes = [line for line in result.get("log", "").splitlines() if "Error" in line]
        reason = " ".join(causes) or result["error"].strip().splitlines()[-1]
        raise CourseError(f"nbgrader made no release: {reason[:400]}")


@contextlib.contextmanager
def programs_on_path() -> Iterator[None]:
    """Put this environment's programs on PATH: nbgrader starts `alembic` by its bare name."""
    before = os.environ.get("PATH", "")
    programs = Path(sys.prefix) / ("Scripts" if os.name == "nt" else "bin")
    os.environ["PATH"] = f"{programs}{os.pathsep}{before}"
    try:
        yield
    finally:
        os.environ["PATH"] = before


def unfold(notebook: NotebookNode) -> NotebookNode:
    """Show the cells that are folded in the instructor's copy, in place; return the notebook."""
    for cell in notebook.cells:
        view = cell.metadata.get("jupyter", {})
        view.pop("source_hidden", None)
        if not view:
            cell.metadata.pop("jupyter", None)
    return notebook


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    about = "Write the students' copies of the chapters to release/notebooks/."
    program = "python -m fastdl_lib.course.release"
    argparse.ArgumentParser(prog=program, description=about).parse_args(arguments)
    try:
        for path in release():
            print(course.shown(path))
    except CourseError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
