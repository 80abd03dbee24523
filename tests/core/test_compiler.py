"""The machine's C compiler: where it or a folder does not serve, it is said why."""

import ctypes
import sys
import tempfile

import pytest
from helpers import needs_a_compiler

from fastdl_lib.core import compiler
from fastdl_lib.core.compiler import compile_library

CODE = "int twice(int x) { return 2 * x; }"


@needs_a_compiler
@pytest.mark.parametrize("refused", [1, 2, 3])
def test_folders_that_take_no_programs_are_passed_by(refused, monkeypatch, tmp_path):
    """As one that is mounted noexec."""
    load, tried = ctypes.CDLL, []
    (tmp_path / ".cache").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def loads(path):
        tried.append(path)
        if len(tried) <= refused:
            raise OSError(f"{path}: failed to map segment from shared object")
        return load(path)

    monkeypatch.setattr(compiler.ctypes, "CDLL", loads)
    if refused < 3:
        assert compile_library(CODE).functions.twice(21) == 42
    else:
        with pytest.raises(RuntimeError, match=r"no folder takes compiled programs: .*failed"):
            compile_library(CODE)
    assert tried[0].startswith(tempfile.gettempdir()) and len(set(tried)) == min(refused + 1, 3)
    assert not [*tmp_path.glob("tmp*"), *(tmp_path / ".cache").iterdir()]


@needs_a_compiler
def test_who_has_no_home_or_no_temporary_folder_can_compile(monkeypatch, tmp_path):
    def none(*_):
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setitem(sys.modules, "pwd", None)  # an account that has no entry
    assert compile_library(CODE).functions.twice(21) == 42
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.gettempdir", none)
    assert compile_library(CODE).functions.twice(21) == 42
    monkeypatch.setattr("os.getcwd", none)
    with pytest.raises(RuntimeError, match="no folder takes compiled programs"):
        compile_library(CODE)


def test_a_compiler_that_is_none_or_no_program(tmp_path, monkeypatch):
    (tmp_path / "cc").write_bytes(b"\0\1")
    (tmp_path / "cc").chmod(0o755)
    monkeypatch.setattr(compiler, "c_compiler", lambda: str(tmp_path / "cc"))
    with pytest.raises(RuntimeError, match="cc does not run: "):
        compile_library(CODE)
    monkeypatch.setattr(compiler, "c_compiler", lambda: None)
    with pytest.raises(RuntimeError, match="there is no C compiler here: install one"):
        compile_library(CODE)
