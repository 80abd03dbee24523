"""Chapter 03 where there is a GPU: its cells run against the strict stand-in."""

import linecache

from fastdl_lib.course import notebooks as course

(PATH,) = (path for path in course.notebook_paths() if path.stem.startswith("03"))
CELLS = [cell for cell in course.read_notebook(PATH).cells if cell.cell_type == "code"]
# What a GPU computes in no time, as small as a CPU can in a test.
SMALLER = {
    "2**25": "2**16",
    "2**23": "2**16",
    "(16, {": "(1, {",
    "photos(128)": "photos(2)",
    "256, 512, 1024, 2048)": "2048)",
    "2048": "256",
    "2**26": "2**10",
    "(4096, 4096)": "(64, 64)",
    "(10**7, *": "(10**12, *",
    # Numba's rung and steadier clocks are the CPU's, which the notebook's own run proves.
    '"algorithm": "compiled", ': "",
    "min_repeats=2, **how": "min_repeats=1, max_repeats=1, **how",
    '"expected": answers}': '"expected": answers, "min_repeats": 1}',
    '"min_repeats": 2, "max_repeats": 5': '"min_repeats": 1, "max_repeats": 1',
    '{"device": "gpu", "name"': '{"min_repeats": 1, "device": "gpu", "name"',
    "(1, 64)": "(1,)",
    "this_cpu[64]": "this_cpu[1]",
    "(16, 128) if": "(1,) if",
    "8192, dtype": "64, dtype",
    "n=1024, side=16": "n=4, side=2",
}


def test_every_cell_runs_where_there_is_a_gpu(monkeypatch, fake_gpu, capsys):
    monkeypatch.chdir(course.ROOT / "notebooks")
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("FASTDL_TIME_SCALE", "0.01")
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "1")  # for what runs in a process of its own
    made = {"__name__": "__main__"}
    sources = [cell.source for cell in CELLS if "nbgrader" not in cell.metadata]
    assert not [old for old in SMALLER if not any(old in source for source in sources)]
    for number, source in enumerate(sources):
        for old, new in SMALLER.items():
            source = source.replace(old, new)
        name = f"<cell {number} of chapter 03>"
        linecache.cache[name] = (len(source), None, source.splitlines(True), name)
        exec(compile(source, name, "exec"), made)
    text = capsys.readouterr().out
    assert "GPU: Stand-in GPU" in text and "GPU rows: measured here" in text
    assert "neither measured here" not in text and "not on the GPU" not in text
    for name in ("kernel_run", "lane", "calls", "bus", "best_gpu"):
        assert made[name].provenance == "measured here", name
        assert made[name].conditions["device"] == "gpu", name
    assert made["gpu_line"].keys() == made["cpu_line"].keys() and made["real"]
    assert "GPU: im2col, cuBLAS" in made["rungs"]
