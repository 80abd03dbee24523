"""Execute, clean and check the notebooks: the tool of who writes them.

    python -m fastdl_lib.course.notebooks execute [NOTEBOOK ...]
    python -m fastdl_lib.course.notebooks clean [NOTEBOOK ...]
    python -m fastdl_lib.course.notebooks check [NOTEBOOK ...]

The notebooks in `notebooks/` are the instructor's copy: solutions and outputs stand in them. The
course's chapters are those named NN_words.ipynb; other notebooks there, copies such as
NN_words-Copy1.ipynb among them, are somebody's own.
"""

import argparse
import ast
import base64
import contextlib
import getpass
import io
import os
import re
import socket
import statistics
import sys
import tempfile
import time
import tokenize
import urllib.parse
import warnings
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from fastdl_lib.core.files import check_destination, whole_file
from fastdl_lib.measuring.evidence import Provenance

ROOT = Path(__file__).resolve().parents[2]
FOLDER = "notebooks"
# What README.md shows of a chapter: the figure of its cell tagged readme-picture.
README_PICTURES = {"01_where_time_goes": ".github/pie.png", "02_im2col": ".github/race.png"}

MAX_CELL_LINES = 25
MAX_SETUP_LINES = 12
MAX_MEDIAN_LINES = 5
# A figure's assertion stands in its own cell or in one of the next two code cells.
ASSERT_WITHIN = 2
HEADINGS = (
    "what you will do",
    "what you will learn",
    "what you will need",
    "claims",
    "exercises",
    "on your own",
    "in practice",
    "sources",
)
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"

_KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
_MACHINE_PATH = re.compile(
    r"(?<![\w.])/(?:home|Users|root|tmp|private|var/folders)(?=/|\b)"
    r"|site-packages"
    r"|\b[A-Za-z]:[\\/]+Users\b"
)
_TYPED_PROVENANCE = re.compile(rf"(?<= )\((?:{'|'.join(Provenance)})\b")
_HIDDEN = re.compile("### BEGIN HIDDEN TESTS.*?### END HIDDEN TESTS", re.DOTALL)
_CLOCKS = {"time", "time_ns", "perf_counter", "perf_counter_ns", "monotonic", "monotonic_ns"}
_CLOCKS |= {"process_time", "timeit", "benchmark"}
# Account and host names that say nothing about who ran the notebook, or are ordinary words here.
_COMMON_NAME = re.compile(
    "admin|codespace|conda|jovyan|jupyter|localhost|python|runner|student|ubuntu|vscode", re.I
)


class CourseError(Exception):
    """Something the maintainer has to repair; the message says what and how."""


def is_chapter(path: Path) -> bool:
    """Whether a file is named as a chapter is: NN_words.ipynb, words of letters, digits and _."""
    return re.fullmatch(r"\d\d_\w+\.ipynb", Path(path).name) is not None


def notebook_paths(root: Path = ROOT) -> list[Path]:
    """The chapters under `root` in reading order; raises CourseError when there is none."""
    paths = _chapters(Path(root) / FOLDER)
    if not paths:
        raise CourseError(f"no chapter (NN_words.ipynb) in {Path(root) / FOLDER}")
    return paths


def _chapters(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.ipynb") if is_chapter(path))


def read_notebook(path: Path) -> NotebookNode:
    """Read a notebook; raises CourseError, naming the file, when it is not one."""
    try:
        with warnings.catch_warnings():
            # A missing cell id is repaired by reading; the clean-up then writes it, and drops an
            # editor's byte-order mark.
            warnings.simplefilter("ignore")
            text = Path(path).read_text(encoding="utf-8-sig")
            notebook = nbformat.reads(text, as_version=4)
            nbformat.validate(notebook)
    except FileNotFoundError as error:
        raise CourseError(f"{path}: there is no such file") from error
    except Exception as error:
        reason = str(error).partition("\n")[0][:200] or type(error).__name__
        raise CourseError(f"{path}: not a readable notebook ({reason})") from error
    return notebook


def write_notebook(path: Path, notebook: NotebookNode) -> None:
    """Write a notebook in its normal form."""
    with whole_file(path) as part:
        part.write_text(_normal_text(notebook), encoding="utf-8", newline="\n")


def tags(cell: NotebookNode) -> list[str]:
    """The tags of a cell."""
    return cell.metadata.get("tags", [])


def grading(cell: NotebookNode) -> dict:
    """What nbgrader is told of a cell; empty where it is no part of an exercise."""
    return cell.metadata.get("nbgrader") or {}


def _code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


# --- clean ---------------------------------------------------------------------------------------


def clean_notebook(notebook: NotebookNode) -> NotebookNode:
    """Bring a notebook to its normal form, in place, and return it.

    Dropped is what changes from run to run or only works while the kernel lives: widget views
    and their state, execution times, the state of the editor, the exact Python version.
    """
    notebook.metadata.pop("widgets", None)
    notebook.metadata["kernelspec"] = dict(_KERNELSPEC)
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        for key in ("execution", "collapsed", "scrolled"):
            cell.metadata.pop(key, None)
    for cell in _code_cells(notebook):
        kept: list[NotebookNode] = []
        for output in cell.outputs:
            if output.get("data", {}).pop(WIDGET_VIEW, None) and not output.data:
                continue
            # Two pieces of one stream become one; nothing but a stream has a name.
            if kept and output.get("name") and kept[-1].get("name") == output.name:
                kept[-1].text += output.text
            else:
                kept.append(output)
        cell.outputs = kept
    return notebook


def clean(path: Path) -> bool:
    """Rewrite a notebook in its normal form; return whether the file had to change."""
    if is_clean(path):
        return False
    write_notebook(Path(path), read_notebook(path))
    return True


def is_clean(path: Path) -> bool:
    """Return whether `clean` would leave the file as it is."""
    return _normal_text(read_notebook(path)).encode() == Path(path).read_bytes()


def _normal_text(notebook: NotebookNode) -> str:
    return nbformat.writes(clean_notebook(notebook)).rstrip("\n") + "\n"


# --- execute -------------------------------------------------------------------------------------


def execute(path: Path, cell_timeout_s: int = 120) -> float:
    """Run a notebook from top to bottom, clean it and write it back; return the seconds it took.

    It runs in this Python, whatever kernels are installed elsewhere, in the notebook's folder.

    Raises: CourseError before the run where the results cannot be written; where a cell fails,
    naming it; and where the file was edited meanwhile. The file is then as it was.
    """
    path = Path(path).resolve()
    notebook, before = read_notebook(path), path.read_bytes()
    picture_path = None
    if path.parent == ROOT / FOLDER and path.stem in README_PICTURES:
        picture_path = ROOT / README_PICTURES[path.stem]
    try:
        for place in filter(None, (path, picture_path)):
            check_destination(place)
    except OSError as error:
        raise CourseError(f"{path.name}: not run: {error}") from error
    code_cells = _code_cells(notebook)
    for cell in code_cells:
        cell.outputs, cell.execution_count = [], None
    reached: list[NotebookNode] = []

    def on_cell_start(cell: NotebookNode, cell_index: int) -> None:
        if cell.cell_type == "code":
            reached.append(cell)
            _show_progress(f"{path.name}: cell {len(reached)} of {len(code_cells)}")

    started = time.monotonic()
    try:
        _run(notebook, path.parent, cell_timeout_s, on_cell_start)
    except Exception as error:
        place = "before its first cell"
        if reached:
            place = f"in code cell {len(reached)} ({_first_line(reached[-1].source)})"
        reason = _reason(error, cell_timeout_s)
        message = f"{path.name}: stopped {place}: {reason}. The file is unchanged."
        raise CourseError(message) from error
    finally:
        _show_progress("")
    if not path.exists() or path.read_bytes() != before:
        raise CourseError(f"{path.name}: edited while it ran; nothing is written, run it again")
    write_notebook(path, notebook)
    if picture_path and (picture := readme_picture(notebook)):
        with whole_file(picture_path) as part:
            part.write_bytes(picture)
    return time.monotonic() - started


def readme_picture(notebook: NotebookNode) -> bytes | None:
    """The PNG stored in the cell tagged ``readme-picture``: what the README shows."""
    for cell in _code_cells(notebook):
        if "readme-picture" in tags(cell):
            for output in _pictures(cell):
                return base64.b64decode(output.data["image/png"])
    return None


def _run(notebook: NotebookNode, folder: Path, cell_timeout_s: int, on_cell_start) -> None:
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient
    from traitlets import default

    class ThisPython(AsyncKernelManager):
        @default("kernel_spec_manager")
        def _no_installed_kernels(self):
            return KernelSpecManager(parent=self, kernel_dirs=[])

    client = NotebookClient(
        notebook,
        timeout=cell_timeout_s,
        kernel_name="python3",
        kernel_manager_class=ThisPython,
        # The kernel warns of unencrypted transport, which here never leaves the machine.
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        # A progress bar keeps its last state; every refresh would be stored.
        coalesce_streams=True,
        # Without the state nbclient stumbles over Output widgets; cleaning drops it again.
        store_widget_state=True,
        on_cell_start=on_cell_start,
    )
    # Windows keeps the history of a dying kernel locked for a moment.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # The start-up files of the person who runs it would leak into the outputs.
        client.execute(env={**os.environ, "IPYTHONDIR": profile})


def _reason(error: Exception, cell_timeout_s: int) -> str:
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    if isinstance(error, CellExecutionError):
        return f"{error.ename}: {error.evalue[:400]}"
    if isinstance(error, CellTimeoutError):
        return f"it did not finish within {cell_timeout_s} s (--cell-timeout gives it more)"
    if isinstance(error, DeadKernelError):
        return "the kernel died (out of memory, or the code ended the process)"
    return f"{type(error).__name__}: {str(error)[:400]}"


def _show_progress(text: str) -> None:
    if sys.stdout.isatty():
        print(f"\r\x1b[K{text}", end="", flush=True)


def _first_line(source: str) -> str:
    return next((line.strip() for line in source.splitlines() if line.strip()), "empty")


# --- check ---------------------------------------------------------------------------------------


def format_faults(path: Path) -> list[str]:
    """Return what is wrong with a notebook's format, one sentence a fault; empty when it is well.

    Nothing is run: executed in order, no errors, clean, no trace of a machine, short cells, each
    with something to see, figures with alternative text and an assertion, exercises, headings and
    links. Raises CourseError when the file is not a notebook.
    """
    path = Path(path).resolve()
    notebook = read_notebook(path)
    code_cells = _code_cells(notebook)
    faults = []
    if not is_clean(path):
        command = f"python -m fastdl_lib.course.notebooks clean {shown(path)}"
        faults.append(f"not clean: run `{command}`")
    # Said once, not of each cell.
    never_run = all(cell.execution_count is None for cell in code_cells)
    if code_cells and never_run:
        faults.append(f"never run: `python -m fastdl_lib.course.notebooks execute {shown(path)}`")
    for number, cell in enumerate(code_cells, 1):
        found = [
            *_run_faults(cell, None if never_run else number, path),
            *_source_faults(cell),
            *_figure_faults(code_cells[number - 1 : number + ASSERT_WITHIN]),
        ]
        where = f"code cell {number} ({_first_line(cell.source)})"
        faults += [f"{where}: {fault}" for fault in found]
    median = statistics.median([code_lines(cell.source) for cell in code_cells] or [0])
    if median > MAX_MEDIAN_LINES:
        faults.append(f"half of the code cells have {median:g} lines or more; at most 5 wanted")
    prose = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    prose = re.sub(r"^```.*?^```", "", prose, flags=re.DOTALL | re.MULTILINE)
    return [*faults, *_exercise_faults(code_cells), *_chapter_faults(path, notebook, prose)]


def code_lines(source: str) -> int:
    """Count the code lines a learner sees: no blank lines, comments or hidden tests.

    >>> code_lines("# why\\n\\nx = 1\\n### BEGIN HIDDEN TESTS\\nassert x\\n### END HIDDEN TESTS")
    1
    """
    lines = [line.strip() for line in _HIDDEN.sub("", source).splitlines()]
    return sum(1 for line in lines if line and not line.startswith("#"))


def _run_faults(cell: NotebookNode, count: int | None, path: Path) -> Iterator[str]:
    """Yield what is wrong with a cell that ought to have been run as `[count]`, and its outputs."""
    if cell.execution_count != count:
        was = "never run" if cell.execution_count is None else f"run as [{cell.execution_count}]"
        yield f"{was}, not as [{count}]: run the notebook once, from top to bottom"
    for output in cell.outputs:
        if output.output_type == "error" and "raises-exception" not in tags(cell):
            yield f"ends in {output.ename}"
        if output.output_type == "stream" and output.name == "stderr":
            yield f"writes to stderr: {_first_line(output.text)}"
    for trace in sorted(_machine_traces(cell, path)):
        yield f"names the machine that ran it: {trace!r}"


def _source_faults(cell: NotebookNode) -> Iterator[str]:
    lines = code_lines(cell.source)
    most = MAX_SETUP_LINES if "setup" in tags(cell) else MAX_CELL_LINES
    if lines > most:
        yield f"{lines} code lines; at most {most}: move plumbing into fastdl_lib"
    if typed := _TYPED_PROVENANCE.search(cell.source):
        yield f"types a label by hand, {typed[0]!r}: print the Measurement, which says it"
    nodes = _nodes(cell.source)
    if nodes is None:
        yield "is not Python"
        return
    told = (ast.Assert, ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
    is_silent = not any(isinstance(node, told) for node in nodes)
    was_run = cell.execution_count is not None and not grading(cell).get("solution")
    if was_run and is_silent and not cell.outputs:
        yield "shows nothing and asserts nothing"
    if _has_trailing_semicolon(cell.source):
        yield "a line ends in `;`, which does not silence it in tests: assign to `_` instead"


def _figure_faults(cells: list[NotebookNode]) -> Iterator[str]:
    """Yield what the figures of the first cell lack, in it or in the cells after it."""
    pictures = _pictures(cells[0])
    for picture in pictures:
        # The place where nbconvert looks for it.
        if not str(picture.metadata.get("image/png", {}).get("alt", "")).strip():
            yield 'figure without alternative text: set metadata["image/png"]["alt"]'
    if pictures and not any(_asserts(node) for cell in cells for node in _nodes(cell.source) or ()):
        yield f"no assertion beside the figure, in this code cell or the next {ASSERT_WITHIN}"


def _machine_traces(cell: NotebookNode, path: Path) -> set[str]:
    output_text = "\n".join(texts(cell.outputs))
    everything = f"{cell.source}\n{output_text}"
    traces = set(_MACHINE_PATH.findall(everything))
    checkout = path.parent.parent
    if len(checkout.parts) > 1 and re.search(rf"{re.escape(str(checkout))}(?![\w-])", everything):
        traces.add(str(checkout))
    words = (rf"(?<![\w-]){re.escape(name)}(?![\w-])" for name in machine_names())
    return traces.union(*(re.findall(word, output_text) for word in words))


def machine_names() -> set[str]:
    """This computer's and its user's names, where they tell something."""
    names = {socket.gethostname(), socket.gethostname().partition(".")[0]}
    # getpass needs an account, and a container's user may have none.
    with contextlib.suppress(OSError, KeyError, ImportError):
        names.add(getpass.getuser())
    return {name for name in names if len(name) > 4 and not _COMMON_NAME.fullmatch(name)}


def texts(value: object) -> Iterator[str]:
    """Every text in a notebook or a part of it; pictures are not text."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not (key.startswith("image/") and isinstance(item, str)):
                yield from texts(item)


def _pictures(cell: NotebookNode) -> list[NotebookNode]:
    return [output for output in cell.outputs if "image/png" in output.get("data", {})]


def plain_python(source: str) -> str:
    """The cell as plain Python: IPython's magics become calls."""
    from IPython.core.inputtransformer2 import TransformerManager

    return TransformerManager().transform_cell(source)


def _nodes(source: str) -> list[ast.AST] | None:
    """What a cell is made of; None when it is not Python."""
    try:
        return list(ast.walk(ast.parse(plain_python(source))))
    except SyntaxError:
        return None


def _asserts(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return getattr(node.func, "attr", getattr(node.func, "id", "")).startswith("assert_")
    return isinstance(node, ast.Assert)


def _has_trailing_semicolon(source: str) -> bool:
    previous = ""
    with contextlib.suppress(tokenize.TokenError, SyntaxError):
        for token in tokenize.generate_tokens(io.StringIO(plain_python(source)).readline):
            if token.type in (tokenize.NEWLINE, tokenize.ENDMARKER) and previous == ";":
                return True
            if token.type != tokenize.COMMENT:
                previous = token.string
    return False


def _exercise_faults(cells: list[NotebookNode]) -> Iterator[str]:
    """Yield what is wrong with the exercises: an answer, then its tests, some of them hidden."""
    ids = [grading(cell)["grade_id"] for cell in cells if grading(cell)]
    for twice in sorted({name for name in ids if ids.count(name) > 1}):
        yield f"two cells of the name {twice}: nbgrader tells them apart by grade_id"
    tests: dict[str, list[str]] = {}
    for cell in cells:
        mark = grading(cell)
        if mark.get("solution"):
            tests[mark["grade_id"]] = []
            found = _answer_faults(cell.source)
        elif mark.get("grade"):
            found = _test_faults(cell.source, mark)
            if not tests:
                yield f"{mark['grade_id']}: a test before any answer"
            else:
                tests[[*tests][-1]].append(cell.source)
        else:
            continue
        yield from (f"{mark['grade_id']}: {fault}" for fault in found)
    for answer, sources in tests.items():
        if not any(_HIDDEN.search(source) for source in sources):
            yield f"{answer}: no hidden tests; an answer could learn the visible ones by heart"


def _answer_faults(source: str) -> Iterator[str]:
    if re.findall(r"### (BEGIN|END) SOLUTION", source) != ["BEGIN", "END"]:
        yield "the solution stands between one ### BEGIN SOLUTION and one ### END SOLUTION"


def _test_faults(source: str, mark: dict) -> Iterator[str]:
    if not mark.get("points"):
        yield "a test without points"
    if not mark.get("locked"):
        yield "not locked: a learner could edit the test"
    marks = re.findall(r"### (BEGIN|END) HIDDEN TESTS", source)
    if marks != ["BEGIN", "END"] * (len(marks) // 2):
        yield "hidden tests stand between ### BEGIN HIDDEN TESTS and ### END HIDDEN TESTS"
    nodes = _nodes(source) or []
    if any(isinstance(node, ast.Assert) and node.msg is None for node in nodes):
        yield "an assertion without a message, which is what the learner reads"
    called = {
        getattr(node.func, "attr", getattr(node.func, "id", ""))
        for node in nodes
        if isinstance(node, ast.Call)
    }
    if clocks := sorted(called & _CLOCKS):
        yield f"calls {clocks[0]}(): a time is never graded"


def _chapter_faults(path: Path, notebook: NotebookNode, prose: str) -> Iterator[str]:
    first = notebook.cells[0] if notebook.cells else None
    if first is None or first.cell_type != "markdown" or not first.source.startswith("# "):
        yield "the first cell is not a title (# ...)"
    if not is_chapter(path):
        yield "the file's name is not NN_words.ipynb"
        return
    is_start = path.name.startswith("00")
    graded = sum(1 for cell in notebook.cells if grading(cell).get("grade"))
    wanted = 1 if is_start else 3
    if graded < wanted:
        yield f"{graded} graded cells; at least {wanted} wanted"
    # A bold phrase at the head of a paragraph serves as well as a heading of its own.
    headings = "\n".join(re.findall(r"^(?:#+ .*|\*\*.+?\*\*)", prose, flags=re.MULTILINE)).lower()
    for heading in () if is_start else HEADINGS:
        if heading not in headings:
            yield f"no heading {heading!r}"
    yield from _link_faults(path, prose)


def _link_faults(path: Path, prose: str) -> Iterator[str]:
    links = re.findall(r"\]\(([^)\s]+)", prose) + re.findall(r"""href=["']([^"']+)""", prose)
    files = {urllib.parse.unquote(link.partition("#")[0]).removeprefix("./") for link in links}
    # Not a place within the notebook, and not an address.
    targets = {file for file in files if file and not re.match(r"[a-zA-Z][\w+.-]*:", file)}
    for target in sorted(targets):
        if not (path.parent / target).exists():
            yield f"a link leads nowhere: {target}"
    chapters = [other.name for other in _chapters(path.parent)]
    place = chapters.index(path.name)
    neighbours = {"previous": chapters[:place][-1:], "next": chapters[place + 1 : place + 2]}
    for side, names in neighbours.items():
        for name in set(names) - targets:
            yield f"no link to the {side} chapter, {name}"


# --- command line --------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m fastdl_lib.course.notebooks",
        description="""execute: run notebooks from top to bottom, clean them and write them back;
        clean: drop widget state, times and versions; check: say what is wrong with the format of
        notebooks, nothing is run or changed.""",
    )
    parser.add_argument("verb", choices=("execute", "clean", "check"))
    paths = {"nargs": "*", "type": Path, "metavar": "NOTEBOOK", "help": "default: all chapters"}
    parser.add_argument("notebooks", **paths)
    limit = {"type": int, "default": 120, "metavar": "SECONDS"}
    meaning = "execute stops when one cell takes longer (default: %(default)s)"
    parser.add_argument("--cell-timeout", **limit, help=meaning)
    options = parser.parse_intermixed_args(arguments)
    if options.cell_timeout < 1:
        parser.error(f"--cell-timeout must be at least 1 second, got {options.cell_timeout}")
    try:
        return max(_on_one(options, path) for path in options.notebooks or notebook_paths())
    except CourseError as error:
        print(error, file=sys.stderr)
        return 1


def _on_one(options: argparse.Namespace, path: Path) -> int:
    try:
        if options.verb == "execute":
            seconds = execute(path, options.cell_timeout)
            print(f"{shown(path)}: {seconds:.1f} s")
        elif options.verb == "clean":
            if clean(path):
                print(f"cleaned {shown(path)}")
        else:
            faults = format_faults(path)
            for fault in faults:
                print(f"{shown(path)}: {fault}")
            return int(bool(faults))
    except (CourseError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def shown(path: Path) -> str:
    """A path as it is told to people: from the top of the course, where it lies in it."""
    path = Path(path)
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


if __name__ == "__main__":
    sys.exit(main())
