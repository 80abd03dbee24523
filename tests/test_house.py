"""The course as a whole: locked packages, named data, order of imports, no trace of a machine."""

import ast
import itertools
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fastdl_lib.course.notebooks import is_chapter

ROOT = Path(__file__).resolve().parent.parent


def files() -> list[Path]:
    """Return what git tracks or would track, without somebody's own notebooks."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("needs git and a checkout: git clone the course instead of unpacking it")
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
    ).stdout
    paths = [ROOT / name for name in listing.split("\0") if name]
    return [
        path for path in paths if path.is_file() and (path.suffix != ".ipynb" or is_chapter(path))
    ]


def text_of(path: Path) -> str:
    """Return the text of a file, nothing for a binary one."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


# --- requirements.txt -----------------------------------------------------------------------

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
LOCK = re.findall(r"^[^\s#].*", (ROOT / "requirements.txt").read_text(encoding="utf-8"), re.M)


def test_requirements_are_pinned_and_end_in_the_package_itself():
    assert LOCK[-1] == "-e .", "the last line installs the course: run make lock"
    loose = [line for line in LOCK[:-1] if not re.fullmatch(r"[\w.-]+==[\w.]+( ; .+)?", line)]
    assert not loose, "run make lock"


@pytest.mark.parametrize("line", [*PROJECT["dependencies"], *EXTRAS["test"]])
def test_every_direct_dependency_is_locked(line):
    wanted = Requirement(line)
    pins = [
        pin for pin in map(Requirement, LOCK[:-1]) if canonicalize_name(pin.name) == wanted.name
    ]
    assert pins, f"{wanted.name} is in pyproject.toml alone: run make lock"
    for pin in pins:
        (version,) = (part.version for part in pin.specifier)
        assert wanted.specifier.contains(version), f"{pin} against {wanted}: run make lock"


def test_cupy_is_never_asked_for_bare():
    """The package named cupy is a source build; cupy-cuda12x and cupy-cuda13x are wheels."""
    lines = [*PROJECT["dependencies"], *itertools.chain(*EXTRAS.values()), *LOCK[:-1]]
    asked = [Requirement(line).name for line in lines]
    assert "cupy" not in asked
    bare = re.compile(r"pip install\b[^\n`]*?[\s\"']cupy(?![-\w])")
    assert not [path.name for path in files() if bare.search(text_of(path))]


# --- imports --------------------------------------------------------------------------------


def places() -> dict[str, tuple[int, str, int]]:
    """Each module's number, package and place in its row of README's map."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    modules = [
        (f"{package}.{module}", (int(number), package, place))
        for number, package, row in re.findall(r"^\| (\d+) \| `(\w+)` \| ([^|]+) \|", text, re.M)
        for place, module in enumerate(re.findall(r"`(\w+)`", row))
    ]
    assert len(dict(modules)) == len(modules), "README's map names a module twice"
    return dict(modules)


def modules_imported(path: Path) -> set[str]:
    """The modules of fastdl_lib that a file imports, wherever in its code."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = ".".join(filter(None, ["fastdl_lib" if node.level else "", node.module]))
            names = [f"{module}.{alias.name}" for alias in node.names]
        modules |= {".".join(name.split(".")[1:3]) for name in names if name[:11] == "fastdl_lib."}
    return modules


MODULES = sorted((ROOT / "fastdl_lib").glob("*/[!_]*.py"))


def test_readme_names_every_module():
    named, there = places().keys(), {f"{path.parent.name}.{path.stem}" for path in MODULES}
    new, gone = sorted(there - named), sorted(named - there)
    assert not new, f"{new}: add it to its package's row of README's map, after what it imports"
    assert not gone, f"README's map names {gone}, no module: take it out of its row"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_imports_go_down(path):
    place, name = places(), f"{path.parent.name}.{path.stem}"
    for other in (name, *modules_imported(path)):
        assert other in place, f"{other}: add it to its package's row of README's map"
    number, package, position = place[name]
    for other in modules_imported(path):
        other_number, other_package, other_position = place[other]
        if other_package == package:
            assert other_position < position, f"{other} stands behind it in README's map"
        else:
            assert other_number < number, f"{other} does not stand below it in README's map"


# --- files ----------------------------------------------------------------------------------


def test_every_data_file_is_named_in_the_data_readme():
    readme = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    data = [path for path in files() if ROOT / "data" in path.parents]
    names = [path.relative_to(ROOT / "data").as_posix() for path in data]
    assert len(names) > 8
    untold = [name for name in names if name != "README.md" and f"`{name}`" not in readme]
    assert not untold, f"{untold}: give it a row in data/README.md"


def test_no_file_tells_of_a_machine():
    # A home of "/", as some containers have it, tells of nothing and would match every address.
    folders = [f"{folder}{os.sep}" for folder in (ROOT, Path.home()) if len(str(folder)) > 1]
    trace = re.compile(rf"(?<![\w.])({'|'.join(map(re.escape, folders))})")
    found = [
        f"{path.relative_to(ROOT).as_posix()}: {match[0]}"
        for path in files()
        if (match := trace.search(text_of(path)))
    ]
    assert not found


# --- Makefile -------------------------------------------------------------------------------

needs_make = pytest.mark.skipif(
    os.name == "nt" or shutil.which("make") is None, reason="needs make (see README.md for Windows)"
)


@pytest.fixture
def fresh(tmp_path):
    """A folder with a space in its name, a Makefile and no .venv, and a PATH without Python."""
    tmp_path = tmp_path / "a folder"
    tmp_path.mkdir()
    for name in ("Makefile", "requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("make", "sh", "sed", "awk", "mkdir", "rm", "ln", "touch"):
        found = shutil.which(name)
        assert found, name
        (tools / name).symlink_to(found)

    def python(name: str, body: str) -> None:
        (tools / name).write_text(f"#!{shutil.which('sh')}\n{body}\n", encoding="utf-8")
        (tools / name).chmod(0o755)

    def make(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [tools / "make", *arguments],
            cwd=tmp_path,
            env={"PATH": str(tools)},
            capture_output=True,
            text=True,
            timeout=60,
        )

    return tmp_path, python, make


@needs_make
def test_make_help_names_every_target(fresh):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.search(r"^\.PHONY: (.*)$", makefile, re.M)[1].split()
    _, _, make = fresh
    shown = make("help").stdout.splitlines()
    assert sorted(line.split()[1] for line in shown) == sorted(targets)


def stand_in(version: str) -> str:
    """Return a shell line: this Python under another version number, without ensurepip."""
    disguise = f"sys.version_info = ({version}, 0); sys.modules['ensurepip'] = None"
    return f'exec "{sys.executable}" -c "import sys; {disguise}; exec(sys.argv[1])" "$2"'


NO_PYTHON = "No Python 3.11 to 3.14 found"
NO_VENV = "python3 cannot make a virtual environment .* sudo apt install python3-venv"
FOUND = {
    None: NO_PYTHON,
    "3, 10": NO_PYTHON,
    "3, 15": NO_PYTHON,
    "3, 11": NO_VENV,
    "3, 14": NO_VENV,
}


@needs_make
@pytest.mark.parametrize(("version", "told"), FOUND.items())
def test_make_without_a_python_that_fits(fresh, version, told):
    """Too old, too new, or Debian's without python3-venv."""
    folder, python, make = fresh
    if version:
        python("python3", stand_in(version))
    result = make("setup")
    assert result.returncode != 0
    assert re.search(told, result.stderr)
    assert not (folder / ".venv").exists()


# A Python whose venv is a folder with a link to itself, and whose pip fails when told to.
FAKE = """
case "$1 $2" in
    "-m venv") echo venv >> log; mkdir -p "$3/bin"; ln -s ../../bin/python3 "$3/bin/python" ;;
    "-m pip") echo pip >> log; [ ! -e pip_fails ] ;;
esac
"""


@needs_make
def test_make_starts_anew_after_an_unfinished_setup(fresh):
    folder, python, make = fresh
    python("python3", FAKE)
    log, fails = folder / "log", folder / "pip_fails"

    fails.touch()
    assert make("setup").returncode != 0
    assert not (folder / ".venv" / ".installed").exists()

    fails.unlink()
    again = make("setup")
    assert again.returncode == 0, again.stderr
    assert "unfinished" in again.stdout
    assert log.read_text().split() == ["venv", "pip", "venv", "pip"]

    assert make("setup").returncode == 0
    assert len(log.read_text().split()) == 4, "a finished setup is not done again"

    stamp = folder / ".venv" / ".installed"
    os.utime(stamp, (0, 0))
    assert make("setup").returncode == 0
    assert log.read_text().split()[4:] == ["pip"], "changed requirements: install, keep .venv"
