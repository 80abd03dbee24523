"""Execute, clean, check and release the notebooks: the tool of maintainers and instructors.

    python -m fastdl_lib.course.notebooks execute [NOTEBOOK ...]
    python -m fastdl_lib.course.notebooks clean [NOTEBOOK ...]
    python -m fastdl_lib.course.notebooks check [NOTEBOOK ...]
    python -m fastdl_lib.course.notebooks release

The notebooks in `notebooks/` are the instructor's copy: solutions and outputs stand in them.
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

from fastdl_lib.core.files import whole_file

ROOT = Path(__file__).resolve().parents[2]
ASSIGNMENT = "notebooks"
# What README.md shows of a notebook: the figure of its cell tagged readme-picture.
README_PICTURES = {"01_where_time_goes": "pie.png", "02_im2col": "race.png"}

MAX_CELL_LINES = 25
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

_WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
_KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
_MACHINE_PATH = re.compile(
    r"(?<![\w.])/(?:home|Users|root|tmp|private|var/folders)(?=/|\b)"
    r"|site-packages"
    r"|\b[A-Za-z]:[\\/]+Users\b"
)
# Account and host names that say nothing about who ran the notebook, or are ordinary words here.
_COMMON_NAMES = frozenset(
    {
        "admin",
        "codespace",
        "conda",
        "jovyan",
        "jupyter",
        "localhost",
        "python",
        "runner",
        "student",
        "ubuntu",
        "vscode",
    }
)


class CourseError(Exception):
    """Something the maintainer has to repair; the message says what and how."""


def notebook_paths(root: Path = ROOT) -> list[Path]:
    """Return the course's notebooks in reading order; raises CourseError when there is none."""
    paths = sorted((Path(root) / ASSIGNMENT).glob("*.ipynb"))
    if not paths:
        raise CourseError(f"no notebook in {Path(root) / ASSIGNMENT}")
    return paths


def read_notebook(path: Path) -> NotebookNode:
    """Read a notebook; raises CourseError, naming the file, when it is not one."""
    try:
        with warnings.catch_warnings():
            # A missing cell id is repaired by reading; the clean-up then writes it.
            warnings.simplefilter("ignore")
            return nbformat.read(path, as_version=4)
    except FileNotFoundError as error:
        raise CourseError(f"{path}: there is no such file") from error
    except Exception as error:
        reason = str(error).partition("\n")[0][:200]
        raise CourseError(f"{path}: not a readable notebook ({reason})") from error


# --- clean ---------------------------------------------------------------------------------------


def clean_notebook(notebook: NotebookNode) -> NotebookNode:
    """Bring a notebook to its normal form, in place, and return it.

    Dropped is what changes from run to run or only works while the kernel lives: widget views
    and their state, execution times, the state of the editor, the exact Python version.
    """
    metadata = notebook.metadata
    metadata.pop("widgets", None)
    metadata["kernelspec"] = dict(_KERNELSPEC)
    metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        for key in ("execution", "collapsed", "scrolled"):
            cell.metadata.pop(key, None)
        if cell.cell_type == "code":
            cell.outputs = _clean_outputs(cell.outputs)
    return notebook


def _clean_outputs(outputs: list[NotebookNode]) -> list[NotebookNode]:
    kept: list[NotebookNode] = []
    for output in outputs:
        if _WIDGET_VIEW in output.get("data", {}):
            del output.data[_WIDGET_VIEW]
            if not output.data:
                continue
        previous = kept[-1] if kept else None
        if (
            output.output_type == "stream"
            and previous is not None
            and previous.output_type == "stream"
            and previous.name == output.name
        ):
            previous.text += output.text
        else:
            kept.append(output)
    return kept


def clean(path: Path) -> bool:
    """Rewrite a notebook in its normal form; return whether the file had to change."""
    path = Path(path)
    before = path.read_bytes() if path.exists() else b""
    text = _normal_text(read_notebook(path))
    if text.encode() == before:
        return False
    _write(path, text)
    return True


def is_clean(path: Path) -> bool:
    """Return whether `clean` would leave the file as it is."""
    return _normal_text(read_notebook(path)).encode() == Path(path).read_bytes()


def _normal_text(notebook: NotebookNode) -> str:
    return nbformat.writes(clean_notebook(notebook)).rstrip("\n") + "\n"


def _write(path: Path, text: str) -> None:
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


# --- execute -------------------------------------------------------------------------------------


def execute(path: Path, cell_timeout_s: int = 120, progress: bool = False) -> float:
    """Run a notebook from top to bottom, clean it and write it back; return the seconds it took.

    It runs in this Python, whatever kernels are installed elsewhere, in the notebook's folder.
    The file is written only when every cell ran: raises CourseError, naming the cell, otherwise.
    """
    path = Path(path).resolve()
    notebook = read_notebook(path)
    code_cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in code_cells:
        cell.outputs, cell.execution_count = [], None
    reached = 0

    def on_cell_start(cell: NotebookNode, cell_index: int) -> None:
        nonlocal reached
        if cell.cell_type == "code":
            reached += 1
            if progress:
                _show_progress(f"{path.name}: cell {reached} of {len(code_cells)}")

    started = time.monotonic()
    try:
        _run(notebook, path.parent, cell_timeout_s, on_cell_start)
    except Exception as error:
        place = "before its first cell"
        if reached:
            source = code_cells[reached - 1].source
            place = f"in code cell {reached} ({_first_line(source)})"
        raise CourseError(
            f"{path.name}: stopped {place}: {_reason(error, cell_timeout_s)}. "
            "The file is unchanged."
        ) from error
    finally:
        if progress:
            _show_progress("")
    _write(path, _normal_text(notebook))
    seconds = time.monotonic() - started
    picture = readme_picture(notebook)
    if picture is not None and path.parent == ROOT / ASSIGNMENT:
        with whole_file(ROOT / README_PICTURES[path.stem]) as part:
            part.write_bytes(picture)
    return seconds


def readme_picture(notebook: NotebookNode) -> bytes | None:
    """The PNG stored in the cell tagged ``readme-picture``: what the README shows."""
    for cell in notebook.cells:
        if cell.cell_type == "code" and "readme-picture" in _tags(cell):
            for output in _pictures(cell):
                return base64.b64decode(output.data["image/png"])
    return None


def _run(notebook: NotebookNode, folder: Path, cell_timeout_s: int, on_cell_start) -> None:
    import ipykernel.kernelspec
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient
    from traitlets import default

    class ThisPython(KernelSpecManager):
        def get_kernel_spec(self, kernel_name):
            return KernelSpec(
                resource_dir=ipykernel.kernelspec.RESOURCES,
                **ipykernel.kernelspec.get_kernel_dict(),
            )

    class ThisPythonManager(AsyncKernelManager):
        @default("kernel_spec_manager")
        def _this_python(self):
            return ThisPython(parent=self)

    client = NotebookClient(
        notebook,
        timeout=cell_timeout_s,
        kernel_name="python3",
        kernel_manager_class=ThisPythonManager,
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
        return f"{error.ename}: {_shorten(error.evalue)}"
    if isinstance(error, CellTimeoutError):
        return f"it did not finish within {cell_timeout_s} s (--cell-timeout gives it more)"
    if isinstance(error, DeadKernelError):
        return "the kernel died (out of memory, or the code ended the process)"
    return f"{type(error).__name__}: {_shorten(str(error))}"


def _shorten(text: str) -> str:
    return text if len(text) <= 400 else text[:400] + " ..."


def _show_progress(text: str) -> None:
    if sys.stdout.isatty():
        print(f"\r\x1b[K{text}", end="", flush=True)


def _first_line(source: str) -> str:
    lines = [line for line in source.splitlines() if line.strip()]
    return lines[0].strip() if lines else "empty"


# --- check ---------------------------------------------------------------------------------------


def format_faults(path: Path) -> list[str]:
    """Return what is wrong with a notebook's format, one sentence a fault; empty when it is well.

    Nothing is run: executed in order, no errors, clean, no trace of a machine, short cells, each
    with something to see, figures with alternative text and an assertion, exercises, headings and
    links. Raises CourseError when the file is not a notebook.
    """
    path = Path(path).resolve()
    notebook = read_notebook(path)
    code_cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    faults = _validity_faults(path, notebook)
    never_run = all(cell.execution_count is None for cell in code_cells)
    if code_cells and never_run:
        # Said once, not of each cell.
        faults.append(f"never run: `python -m fastdl_lib.course.notebooks execute {_shown(path)}`")
    for number, cell in enumerate(code_cells, 1):
        where = f"code cell {number} ({_first_line(cell.source)})"
        count = None if never_run else number
        faults += [f"{where}: {fault}" for fault in _cell_faults(cell, count, path)]
        followers = code_cells[number - 1 : number + ASSERT_WITHIN]
        if _pictures(cell) and not any(_has_assertion(follower) for follower in followers):
            faults.append(
                f"{where}: no assertion beside the figure; put one in this code cell or in one "
                f"of the next {ASSERT_WITHIN}"
            )
    if code_cells:
        median = statistics.median(code_lines(cell.source) for cell in code_cells)
        if median > MAX_MEDIAN_LINES:
            faults.append(f"half of the code cells have {median:g} lines or more; at most 5 wanted")
    return [*faults, *_chapter_faults(path, notebook)]


def code_lines(source: str) -> int:
    """Count the code lines a learner sees: no blank lines, comments or hidden tests.

    >>> code_lines("# why\\n\\nx = 1\\n### BEGIN HIDDEN TESTS\\nassert x\\n### END HIDDEN TESTS")
    1
    """
    count, hidden = 0, False
    for line in source.splitlines():
        if "BEGIN HIDDEN TESTS" in line:
            hidden = True
        elif "END HIDDEN TESTS" in line:
            hidden = False
        elif not hidden and line.strip() and not line.strip().startswith("#"):
            count += 1
    return count


def _validity_faults(path: Path, notebook: NotebookNode) -> list[str]:
    faults = []
    try:
        nbformat.validate(notebook)
    except nbformat.ValidationError as error:
        faults.append(f"not a valid notebook: {str(error).partition(chr(10))[0]}")
    if "widgets" in notebook.metadata:
        faults.append("widget state in the notebook's metadata")
    if not is_clean(path):
        faults.append(
            f"not clean: run `python -m fastdl_lib.course.notebooks clean {_shown(path)}`"
        )
    return faults


def _cell_faults(cell: NotebookNode, count: int | None, path: Path) -> Iterator[str]:
    """Yield the faults of a code cell that ought to have been run as `[count]`."""
    if cell.execution_count != count:
        was = "never run" if cell.execution_count is None else f"run as [{cell.execution_count}]"
        yield f"{was}, not as [{count}]: run the notebook once, from top to bottom"
    for output in cell.outputs:
        if output.output_type == "error" and "raises-exception" not in _tags(cell):
            yield f"ends in {output.ename}"
        if output.output_type == "stream" and output.name == "stderr":
            yield f"writes to stderr: {_first_line(output.text)}"
    for trace in sorted(_machine_traces(cell, path)):
        yield f"names the machine that ran it: {trace!r}"
    lines = code_lines(cell.source)
    if lines > MAX_CELL_LINES:
        yield f"{lines} code lines; at most {MAX_CELL_LINES}: move plumbing into fastdl_lib"
    for picture in _pictures(cell):
        # The place where nbconvert looks for it.
        if not str(picture.metadata.get("image/png", {}).get("alt", "")).strip():
            yield 'figure without alternative text: set metadata["image/png"]["alt"]'
    try:
        tree = ast.parse(_python(cell.source))
    except SyntaxError as error:
        yield f"is not Python: {error.msg}"
        return
    was_run = cell.execution_count is not None
    is_answer = cell.metadata.get("nbgrader", {}).get("solution")
    if was_run and not is_answer and not cell.outputs and _is_silent(tree):
        yield "shows nothing and asserts nothing"
    if _has_trailing_semicolon(cell.source):
        yield "a line ends in `;`, which does not silence it in tests: assign to `_` instead"


def _machine_traces(cell: NotebookNode, path: Path) -> set[str]:
    output_text = "\n".join(_strings(cell.outputs))
    everything = f"{cell.source}\n{output_text}"
    traces = set(_MACHINE_PATH.findall(everything))
    checkout = path.parents[1]
    if len(checkout.parts) > 1 and re.search(rf"{re.escape(str(checkout))}(?![\w-])", everything):
        traces.add(str(checkout))
    for name in _machine_names():
        if re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", output_text):
            traces.add(name)
    return traces


def _machine_names() -> set[str]:
    names = {socket.gethostname(), socket.gethostname().partition(".")[0]}
    # getpass needs an account, and a container's user may have none.
    with contextlib.suppress(OSError, KeyError, ImportError):
        names.add(getpass.getuser())
    return {name for name in names if len(name) > 4 and name.lower() not in _COMMON_NAMES}


def _strings(value: object) -> Iterator[str]:
    """Every text in an output; pictures are not text."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not (key.startswith("image/") and isinstance(item, str)):
                yield from _strings(item)


def _tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def _pictures(cell: NotebookNode) -> list[NotebookNode]:
    return [output for output in cell.outputs if "image/png" in output.get("data", {})]


def _python(source: str) -> str:
    """The cell as plain Python: IPython's magics become calls."""
    from IPython.core.inputtransformer2 import TransformerManager

    return TransformerManager().transform_cell(source)


def _is_silent(tree: ast.Module) -> bool:
    told = (ast.Assert, ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
    return not any(isinstance(node, told) for node in ast.walk(tree))


def _has_assertion(cell: NotebookNode) -> bool:
    try:
        tree = ast.parse(_python(cell.source))
    except SyntaxError:
        return False
    return any(
        isinstance(node, ast.Assert)
        or (isinstance(node, ast.Call) and _called(node.func).startswith("assert_"))
        for node in ast.walk(tree)
    )


def _called(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def _has_trailing_semicolon(source: str) -> bool:
    previous = ""
    with contextlib.suppress(tokenize.TokenError, SyntaxError):
        for token in tokenize.generate_tokens(io.StringIO(_python(source)).readline):
            if token.type in (tokenize.NEWLINE, tokenize.ENDMARKER) and previous == ";":
                return True
            if token.type != tokenize.COMMENT:
                previous = token.string
    return False


def _chapter_faults(path: Path, notebook: NotebookNode) -> Iterator[str]:
    prose = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    prose = re.sub(r"^```.*?^```", "", prose, flags=re.DOTALL | re.MULTILINE)
    first = notebook.cells[0] if notebook.cells else None
    if first is None or first.cell_type != "markdown" or not first.source.startswith("# "):
        yield "the first cell is not a title (# ...)"
    chapter = re.match(r"(\d\d)_\w+$", path.stem)
    if chapter is None:
        yield "the file's name is not NN_words.ipynb"
        return
    is_start = int(chapter[1]) == 0
    graded = sum(1 for cell in notebook.cells if cell.metadata.get("nbgrader", {}).get("grade"))
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
    targets = set()
    for link in links:
        target = urllib.parse.unquote(link.partition("#")[0])
        if target and not re.match(r"[a-zA-Z][\w+.-]*:", target):
            targets.add(target.removeprefix("./"))
    for target in sorted(targets):
        if not (path.parent / target).exists():
            yield f"a link leads nowhere: {target}"
    chapters = [other.name for other in sorted(path.parent.glob("[0-9][0-9]_*.ipynb"))]
    place = chapters.index(path.name)
    for side, neighbour in (
        ("previous", chapters[place - 1] if place else None),
        ("next", chapters[place + 1] if place + 1 < len(chapters) else None),
    ):
        if neighbour and neighbour not in targets:
            yield f"no link to the {side} chapter, {neighbour}"


# --- release -------------------------------------------------------------------------------------


def release(root: Path = ROOT) -> list[Path]:
    """Generate the students' notebooks in `release/notebooks` under `root`; return their paths.

    nbgrader replaces the solutions, drops the hidden tests and all outputs, and enters the
    exercises in `gradebook.db`, from which submissions are graded. Raises CourseError when a
    notebook is not clean or nbgrader refuses one.
    """
    root = Path(root).resolve()
    # nbgrader would copy the widget state, with what the solutions show, to the students.
    unclean = [path.name for path in notebook_paths(root) if not is_clean(path)]
    if unclean:
        raise CourseError(
            f"not clean: {', '.join(unclean)}. Run `python -m fastdl_lib.course.notebooks clean` first."
        )
    from nbgrader.converters import GenerateAssignment
    from nbgrader.utils import capture_log

    generator = GenerateAssignment(coursedir=_course_directory(root), parent=None)
    generator.update_config(nbgrader_config(root))
    generator.force = generator.create_assignment = True
    # Nothing but the notebooks goes out: the folder may hold what a run has written there.
    generator.coursedir.ignore = ["*"]
    with programs_on_path():
        result = capture_log(generator)
    if not result["success"]:
        raise CourseError(f"nbgrader made no release: {_nbgrader_reason(result)}")
    paths = sorted((root / "release" / ASSIGNMENT).glob("*.ipynb"))
    for path in paths:
        _show_all_cells(path)
    return paths


def nbgrader_config(root: Path = ROOT):
    """Return the settings of `nbgrader_config.py`, as a traitlets Config."""
    from traitlets.config import PyFileConfigLoader

    return PyFileConfigLoader("nbgrader_config.py", path=str(root)).load_config()


def _course_directory(root: Path):
    from nbgrader.coursedir import CourseDirectory

    return CourseDirectory(root=str(root), assignment_id=ASSIGNMENT, config=nbgrader_config(root))


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


def _nbgrader_reason(result: dict) -> str:
    # nbgrader logs the cause and then raises a summary that points to the log.
    causes = [line for line in result.get("log", "").splitlines() if "Error" in line]
    return _shorten(" ".join(causes) or result["error"].strip().splitlines()[-1])


def _show_all_cells(path: Path) -> None:
    """Unfold the cells that are folded in the instructor's copy."""
    notebook = read_notebook(path)
    for cell in notebook.cells:
        view = cell.metadata.get("jupyter", {})
        view.pop("source_hidden", None)
        if not view:
            cell.metadata.pop("jupyter", None)
    _write(path, _normal_text(notebook))


# --- command line --------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        if options.verb == "release":
            for path in release():
                print(_shown(path))
            return 0
        paths = options.notebooks or notebook_paths()
        return max(_on_one(options, path) for path in paths)
    except CourseError as error:
        print(error, file=sys.stderr)
        return 1


def _on_one(options: argparse.Namespace, path: Path) -> int:
    try:
        if options.verb == "execute":
            seconds = execute(path, options.cell_timeout, progress=True)
            print(f"{_shown(path)}: {seconds:.1f} s")
        elif options.verb == "clean":
            if clean(path):
                print(f"cleaned {_shown(path)}")
        else:
            faults = format_faults(path)
            for fault in faults:
                print(f"{_shown(path)}: {fault}")
            return int(bool(faults))
    except CourseError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _shown(path: Path) -> str:
    path = Path(path)
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fastdl_lib.course.notebooks",
        description="Execute, clean, check and release the notebooks of the course.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    meaning = {
        "execute": "run notebooks from top to bottom, clean them and write them back",
        "clean": "bring notebooks to their normal form: no widget state, no times, no versions",
        "check": "say what is wrong with the format of notebooks; nothing is run or changed",
        "release": "generate the students' copies in release/notebooks with nbgrader",
    }
    for verb, help_text in meaning.items():
        command = verbs.add_parser(verb, help=help_text, description=help_text.capitalize() + ".")
        if verb != "release":
            command.add_argument(
                "notebooks",
                nargs="*",
                type=Path,
                metavar="NOTEBOOK",
                help="default: all in notebooks/",
            )
        if verb == "execute":
            command.add_argument(
                "--cell-timeout",
                type=int,
                default=120,
                metavar="SECONDS",
                help="stop a notebook when one cell takes longer (default: %(default)s)",
            )
    return parser


if __name__ == "__main__":
    sys.exit(main())
