"""What `import fastdl_lib` offers, and that it changes nothing."""

import importlib
import subprocess
import sys

import pytest

import fastdl_lib


@pytest.mark.parametrize("name", fastdl_lib.__all__)
def test_a_name_comes_from_where_it_is_defined(name):
    found = getattr(fastdl_lib, name)
    assert getattr(importlib.import_module(found.__module__), name) is found
    assert found.__module__ == f"fastdl_lib.{fastdl_lib._HOMES[name]}"
    assert dir(fastdl_lib) == sorted(fastdl_lib.__all__)


def test_an_unknown_name_is_an_error():
    with pytest.raises(AttributeError, match="no attribute 'alex_net'"):
        _ = fastdl_lib.alex_net


def test_importing_the_package_loads_nothing_else():
    code = "import sys; before = {*sys.modules}; import fastdl_lib; print({*sys.modules} - before)"
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert "fastdl_lib" in shown
    assert not [name for name in ("numpy", "matplotlib", "ctypes", "numba") if name in shown]
