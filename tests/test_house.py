"""The order of the house: locked packages, named data, floors, no trace of a maker's machine."""

import ast
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

ROOT = Path(__file__).resolve().parent.parent

# A room imports only from rooms on the floors below it.
FLOORS = {
    "core.arrays": 0.5,
    "core.checks": 0,
    "core.compiler": 0.5,
    "core.datasets": 1,
    "core.files": 1,
    "core.threads": 1,
    "scaling.watchdog": 1,
    "measuring.machine": 2,
    "core.pretend_gpu": 2,
    "scaling.mpi": 2,
    "convolution.geometry": 2,
    "convolution.algorithms": 3.5,
    "convolution.blocked": 3,
    "convolution.im2col": 3,
    "convolution.loops": 3,
    "precision.formats": 2,
    "precision.products": 3,
    "binary.bits": 3,
    "measuring.evidence": 3,
    "measuring.recordings": 3.1,
    "measuring.published": 3.1,
    "convolution.gpu": 3,
    "convolution.winograd": 3,
    "nn.layers": 4,
    "nn.loss": 4,
    "precision.stored": 5,
    "binary.layers": 5,
    "nn.network": 6,
    "nn.zoo": 7,
    "binary.networks": 7,
    "course.train": 10,
    "binary.inference": 7,
    "measuring.costs": 3.2,
    "nn.optimizers": 7,
    "nn.checkpoints": 8,
    "binary.export_c": 8,
    "scaling.clusters": 7,
    "scaling.simulator": 8,
    "scaling.events": 9,
    "precision.mixed": 8,
    "measuring.timing": 3.3,
    "nn.training": 9,
    "measuring.speeds": 3.4,
    "figures.picture": 9,
    "figures.forms": 9.1,
    "figures.chapter_01": 9.2,
    "figures.chapter_02": 9.2,
    "figures.chapter_03": 9.2,
    "figures.chapter_04": 9.2,
    "figures.chapter_05": 9.2,
    "figures.chapter_06": 9.2,
    "scaling.curves": 9,
    "scaling.workers": 10,
    "figures.explore": 10,
    "course.machine_parts": 9.9,
    "course.record": 10,
    "course.ranks": 11,
    "course.chip": 11,
    "course.notebooks": 10,
    "course.release": 11,
}


def files() -> list[Path]:
    """Return what git tracks or would track."""
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
    return [path for name in listing.split("\0") if name and (path := ROOT / name).is_file()]


def text_of(path: Path) -> str:
    """Return the text of a file, nothing for a binary one."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


# --- requirements.txt -----------------------------------------------------------------------

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCK = [
    line
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    if line.strip() and not line.lstrip().startswith("#")
]


def test_requirements_are_pinned_and_end_in_the_package_itself():
    assert LOCK[-1] == "-e .", "the last line installs the course: run make lock"
    loose = [line for line in LOCK[:-1] if not re.fullmatch(r"[\w.-]+==[\w.]+( ; .+)?", line)]
    assert not loose, "run make lock"


@pytest.mark.parametrize(
    "line", [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]]
)
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
    extras = [line for extra in PROJECT["optional-dependencies"].values() for line in extra]
    asked = [Requirement(line).name for line in [*PROJECT["dependencies"], *extras, *LOCK[:-1]]]
    assert "cupy" not in asked
    bare = re.compile(r"pip install\b[^\n`]*?[\s\"']cupy(?![-\w])")
    assert not [path.name for path in files() if bare.search(text_of(path))]


# --- floors ---------------------------------------------------------------------------------


def rooms_imported(path: Path) -> set[str]:
    """Return the rooms of fastdl_lib that a room imports, wherever in its code."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = ".".join(filter(None, ["fastdl_lib" if node.level else "", node.module]))
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        rooms |= {
            ".".join(name.split(".")[1:3]) for name in names if name.startswith("fastdl_lib.")
        }
    return rooms


@pytest.mark.parametrize(
    "path", sorted((ROOT / "fastdl_lib").glob("*/[!_]*.py")), ids=lambda p: p.stem
)
def test_a_room_imports_only_from_the_floors_below(path):
    room = f"{path.parent.name}.{path.stem}"
    assert room in FLOORS, f"give {room} a floor in FLOORS, in tests/test_house.py"
    for other in rooms_imported(path):
        assert other in FLOORS, f"{room} imports {other}, which is no room"
        assert FLOORS[other] < FLOORS[room], (
            f"{room} (floor {FLOORS[room]}) imports {other} (floor {FLOORS[other]})"
        )


# --- files ----------------------------------------------------------------------------------


def test_every_data_file_is_named_in_the_data_readme():
    readme = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    names = [
        path.relative_to(ROOT / "data").as_posix()
        for path in files()
        if ROOT / "data" in path.parents
    ]
    assert len(names) > 8
    assert not [name for name in names if name != "README.md" and f"`{name}`" not in readme]


def test_no_file_tells_of_a_machine():
    # The folders of this machine, and of those this course was written on (put together here, so
    # that this file does not hold what it looks for).
    # A home of "/", as some containers have it, tells of nothing and would match every address.
    folders = [folder for folder in (ROOT, Path.home()) if len(str(folder)) > 1]
    here = [re.escape(f"{folder}{os.sep}") for folder in folders]
    there = [rf"/{name}/" for name in ("work", "root")] + [r"\.\./" + "shared"]
    trace = re.compile(rf"(?<![\w.])({'|'.join(here + there)})")
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
    """A folder with a Makefile and no .venv, and a PATH with no Python on it."""
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


@needs_make
@pytest.mark.parametrize("version", [None, "3, 10", "3, 15"])
def test_make_without_a_fitting_python(fresh, version):
    folder, python, make = fresh
    if version:
        python("python3", stand_in(version))
    result = make("setup")
    assert result.returncode != 0
    assert "No Python 3.11 to 3.14 found" in result.stderr
    assert not (folder / ".venv").exists()


@needs_make
@pytest.mark.parametrize("version", ["3, 11", "3, 14"])
def test_make_on_debian_without_python3_venv(fresh, version):
    folder, python, make = fresh
    python("python3", stand_in(version))
    result = make("setup")
    assert result.returncode != 0
    assert "python3 cannot make a virtual environment" in result.stderr
    assert "sudo apt install python3-venv" in result.stderr
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
