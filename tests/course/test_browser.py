"""JupyterLab in a real browser: notebooks run without an error and their sliders work.

The first chapter runs wholly; of each other one that has a slider, the cells that its cheapest
slider needs: all cells run once through nbval. FASTDL_WHOLE_COURSE=1 (the weekly schedule) runs
every chapter wholly here too.
"""

import contextlib
import dis
import http.client
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import types
from pathlib import Path

import nbformat
import psutil
import pytest
import toys

from fastdl_lib.course import notebooks as course

pytestmark = pytest.mark.browser

CHAPTERS = course.notebook_paths()
WHOLE = CHAPTERS if os.environ.get("FASTDL_WHOLE_COURSE") == "1" else CHAPTERS[:1]
SLIDER = "explore("
TRIED = [path for path in CHAPTERS if path in WHOLE or SLIDER in path.read_text(encoding="utf-8")]

START_TIMEOUT_S = 60
RUN_TIMEOUT_S = 300
SLIDER_TIMEOUT_S = 15

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
INSTALLED = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    r"C:\Program Files\Google\Chrome\Application\chrome.exe",
    r"C:\Program Files (x86)\Google\Chrome\Application\chrome.exe",
    os.path.expandvars(r"$LOCALAPPDATA\Google\Chrome\Application\chrome.exe"),
)
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    # Else the cells out of view are not in the page.
    "notebook-extension/tracker": {"windowingMode": "none"},
}
# The pictures inside live widgets, as text that changes when the picture does.
READ_PICTURES = """
images => Promise.all(images.map(async image => {
    const bytes = new Uint8Array(await (await fetch(image.src)).arrayBuffer());
    const digest = await crypto.subtle.digest("SHA-256", bytes);
    return Array.from(new Uint8Array(digest)).join(" ");
}))
"""
COMMAND = "async ([name, options]) => { await jupyterapp.commands.execute(name, options); }"


def wait(until, timeout_s, failure):
    """Ask until the answer is true, and return it."""
    deadline = time.monotonic() + timeout_s
    while not (answer := until()):
        assert time.monotonic() < deadline, f"{failure} within {timeout_s} s"
        time.sleep(0.2)
    return answer


def chromium_or_skip():
    """The program to start; without one the test is skipped, and fails where it is required."""
    found = [*map(shutil.which, PROGRAMS), *(path for path in INSTALLED if Path(path).exists())]
    program = next(filter(None, found), None)
    if program is None:
        give_up = pytest.fail if os.environ.get("FASTDL_REQUIRE_BROWSER") == "1" else pytest.skip
        give_up(
            "no Chromium found. Debian, Ubuntu: sudo apt install chromium; "
            "macOS, Windows: install Google Chrome"
        )
    return program


@pytest.fixture(scope="module")
def browser():
    program = chromium_or_skip()
    from playwright.sync_api import sync_playwright

    # Chromium's sandbox refuses root.
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    flags = ["--disable-gpu", *["--no-sandbox"] * is_root]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=flags)
        yield chromium
        chromium.close()


def names_in(cell):
    """The names that a cell makes, and those that it and its functions use."""
    made, used = set(), set()
    waiting = [compile(course.plain_python(cell.source), "cell", "exec")]
    while waiting:
        code = waiting.pop()
        waiting += [part for part in code.co_consts if isinstance(part, types.CodeType)]
        for step in dis.get_instructions(code):
            if step.opname in ("STORE_NAME", "STORE_GLOBAL"):
                made.add(step.argval)
            elif step.opname in ("LOAD_NAME", "LOAD_GLOBAL"):
                used.add(step.argval)
    return made, used


def cells_for_a_slider(cells):
    """The cells that the slider with the fewest needs: its own, the setup, what makes its names."""
    fewest = cells
    for place, cell in enumerate(cells):
        if SLIDER not in cell.source:
            continue
        kept, needed = [cell], names_in(cell)[1]
        for earlier in reversed(cells[:place]):
            made, used = names_in(earlier)
            if made & needed or "setup" in course.tags(earlier):
                kept.insert(0, earlier)
                needed = (needed - made) | used
        fewest = min(fewest, kept, key=len)
    return fewest


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


class Lab:
    """A JupyterLab server on a copy of notebooks, apart from all settings of its user."""

    def __init__(self, folder, notebooks):
        self.log = folder / "jupyterlab.log"
        self.notebooks = folder / "notebooks"
        self.notebooks.mkdir()
        for path in notebooks:
            self.copy(path)
        for name, values in SETTINGS.items():
            file = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(values))
        self.token = secrets.token_hex(16)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        environment = {
            **os.environ,
            "FASTDL_TIME_SCALE": "0.02",
            "IPYTHONDIR": str(folder / "ipython"),
            "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
            "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
            "JUPYTER_CONFIG_DIR": str(folder / "config"),
            "JUPYTER_DATA_DIR": str(folder / "data"),
            "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
            # This environment's kernel, not one installed elsewhere.
            "JUPYTER_PREFER_ENV_PATH": "1",
        }
        options = [
            "--no-browser",
            "--allow-root",
            f"--IdentityProvider.token={self.token}",
            "--ServerApp.ip=127.0.0.1",
            f"--ServerApp.port={self.port}",
            "--LabApp.expose_app_in_browser=True",
            "--ServerApp.port_retries=0",
            f"--ServerApp.root_dir={self.notebooks}",
        ]
        with self.log.open("w") as log:
            self.process = psutil.Popen(
                [sys.executable, "-m", "jupyterlab", *options],
                cwd=self.notebooks,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def copy(self, path):
        notebook = course.read_notebook(path)
        if path in set(CHAPTERS) - set(WHOLE):
            notebook.cells = cells_for_a_slider(code_cells(notebook))
        # What the saved file holds afterwards then comes from this run.
        for cell in code_cells(notebook):
            cell.outputs, cell.execution_count = [], None
        nbformat.write(notebook, self.notebooks / path.name)

    def request(self, method, path):
        # Straight to this machine's server: past any proxy, without a store of certificates.
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, 5)) as server:
            server.request(method, path, headers={"Authorization": f"token {self.token}"})
            return server.getresponse().read()

    def is_up(self):
        assert self.process.poll() is None, f"JupyterLab ended:\n{self.log.read_text()}"
        with contextlib.suppress(OSError):
            return self.request("GET", "/api/status")

    def sessions(self):
        return json.loads(self.request("GET", "/api/sessions"))

    def stop(self):
        processes = [self.process, *self.process.children(recursive=True)]
        with contextlib.suppress(OSError):
            self.request("POST", "/api/shutdown")
        _, left = psutil.wait_procs(processes, timeout=20)
        # The server, or a kernel that outlived it.
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    server = Lab(folder, [*TRIED, *toy_notebooks(folder / "made")])
    try:
        wait(server.is_up, START_TIMEOUT_S, f"JupyterLab (log: {server.log}) did not start")
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def opened(browser, lab, name, tmp_path):
    """A page with the notebook; a failure names the server's log and a screenshot.

    The first notebook is opened by its address, each other one in the same JupyterLab, which takes
    seconds to load; after a failure it is loaded anew.
    """
    size = {"width": 1400, "height": 1000}
    page = browser.contexts[0].pages[0] if browser.contexts else browser.new_page(viewport=size)
    try:
        if page.url == "about:blank":
            page.goto(f"{lab.url}/lab/tree/{name}?token={lab.token}&reset")
        else:
            page.evaluate(COMMAND, ["docmanager:open", {"path": name}])
        yield page
        page.evaluate(COMMAND, ["application:close-all", {}])
    except Exception as error:
        screenshot = tmp_path / f"{Path(name).stem}.png"
        with contextlib.suppress(Exception):
            page.screenshot(path=screenshot)
        error.add_note(f"screenshot: {screenshot}\nserver log: {lab.log}")
        page.close()
        raise
    finally:
        # One kernel at a time: two would compete for the cores.
        for session in lab.sessions():
            lab.request("DELETE", f"/api/sessions/{session['id']}")


def run_all_cells(page, lab):
    """Choose Run > Run All Cells once the kernel answers; a click before that is lost."""

    def answers():
        kernels = [session["kernel"] for session in lab.sessions()]
        return any(it["execution_state"] == "idle" and it["connections"] for it in kernels)

    wait(answers, START_TIMEOUT_S, "no kernel")
    page.locator("#jp-main-statusbar").get_by_text(re.compile(r"\| Idle$")).wait_for()
    page.locator(".lm-MenuBar-itemLabel", has_text=re.compile("^Run$")).click()
    page.locator(".lm-Menu-itemLabel", has_text=re.compile("^Run All Cells$")).click()


def read_when_run(page, path):
    """Wait until every cell has run, or one has failed; return the notebook as JupyterLab saves it.

    The saved file and not the page is judged: it holds all cells, in view or not.
    """

    def has_run():
        page.wait_for_timeout(300)
        if page.locator(".jp-InputPrompt", has_text="[*]").count():
            return None
        page.keyboard.press("Control+s")
        page.wait_for_timeout(500)
        notebook = course.read_notebook(path)
        is_through = all(cell.execution_count for cell in code_cells(notebook))
        return notebook if is_through or errors_in(notebook) else None

    return wait(has_run, RUN_TIMEOUT_S, "not all cells ran")


def errors_in(notebook):
    """Every error output, with the cell it stands in."""
    return [
        f"{cell.source.splitlines()[0]}: {output.ename}: {output.evalue}"
        for cell in code_cells(notebook)
        for output in cell.outputs
        if output.output_type == "error" and "raises-exception" not in course.tags(cell)
    ]


def has_slider_figure(notebook):
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return any({course.WIDGET_VIEW, "image/png"} <= out.get("data", {}).keys() for out in outputs)


def assert_slider_moves_its_figure(page):
    """Move the first slider that has a picture beside it; the picture has to change."""
    boxes = page.locator(".jp-OutputArea-output .widget-vbox")
    boxes = boxes.filter(has=page.locator(".noUi-handle")).filter(has=page.locator("img"))
    handle, images = boxes.first.locator(".noUi-handle").first, boxes.first.locator("img")
    handle.scroll_into_view_if_needed()
    before = images.evaluate_all(READ_PICTURES)

    def has_moved():
        # A picture's address is void while it is being replaced.
        with contextlib.suppress(Exception):
            return images.evaluate_all(READ_PICTURES) != before

    # One of the two ways is free; at its right end a handle goes left, or the wait is for nothing.
    at_end = handle.get_attribute("aria-valuenow") == handle.get_attribute("aria-valuemax")
    for key in ("ArrowLeft", "ArrowRight") if at_end else ("ArrowRight", "ArrowLeft"):
        handle.focus()
        handle.press(key)
        with contextlib.suppress(AssertionError):
            return wait(has_moved, SLIDER_TIMEOUT_S, "no change")
    raise AssertionError("the slider was moved, and its figure stayed as it was")


def try_notebook(browser, lab, name, tmp_path):
    with opened(browser, lab, name, tmp_path) as page:
        run_all_cells(page, lab)
        notebook = read_when_run(page, lab.notebooks / name)
        assert errors_in(notebook) == []
        assert page.get_by_text(re.compile("Error displaying widget|model not found")).count() == 0
        if any(SLIDER in cell.source for cell in code_cells(notebook)):
            assert has_slider_figure(notebook), "no slider figure"
            assert_slider_moves_its_figure(page)


@pytest.mark.parametrize("path", TRIED, ids=lambda path: path.stem)
def test_runs_in_the_browser(browser, lab, path, tmp_path):
    try_notebook(browser, lab, path.name, tmp_path)


# --- the test above, tried on made notebooks ---


def toy_notebooks(folder):
    """One whose slider moves nothing, and one with an error."""
    stuck = toys.chapter_cells()
    for cell in stuck:
        cell.source = cell.source.replace("[size]", "[4]")
    failing = [*toys.start_cells(), toys.code("1 / 0"), toys.code("print(1)")]
    made = {"stuck": stuck, "failing": failing}
    return [toys.write(folder / f"{name}.ipynb", cells) for name, cells in made.items()]


def test_an_error_is_seen(browser, lab, tmp_path):
    with pytest.raises(AssertionError, match="ZeroDivisionError") as failure:
        try_notebook(browser, lab, "failing.ipynb", tmp_path)
    assert str(lab.log) in failure.value.__notes__[0]
    assert (tmp_path / "failing.png").stat().st_size > 0


def test_a_slider_without_effect_is_seen(browser, lab, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "SLIDER_TIMEOUT_S", 1)
    with pytest.raises(AssertionError, match="its figure stayed as it was"):
        try_notebook(browser, lab, "stuck.ipynb", tmp_path)


def test_the_cells_that_a_slider_needs():
    sources = ["import math", "a = 1", "b = a", "a = 2", "def f():\n    return a", "explore(f)"]
    cells = [toys.code(source) for source in sources]
    cells[0].metadata["tags"] = ["setup"]
    kept = [sources[place] for place in (0, 3, 4, 5)]
    assert [cell.source for cell in cells_for_a_slider(cells)] == kept
    cells.append(toys.code("explore(math)"))
    assert [cell.source for cell in cells_for_a_slider(cells)] == ["import math", "explore(math)"]


def test_a_missing_browser_is_told(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys.modules[__name__], "INSTALLED", ())
    for required, outcome in (("", pytest.skip.Exception), ("1", pytest.fail.Exception)):
        monkeypatch.setenv("FASTDL_REQUIRE_BROWSER", required)
        with pytest.raises(outcome, match="sudo apt install chromium"):
            chromium_or_skip()
