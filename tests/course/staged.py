"""The notebooks as git would commit them: the tests look at these, not at a learner's autosaves.

JupyterLab saves the notebooks of whoever works through the course, with other outputs and
counters. Those are no fault of the course, so they count only once they are staged.
"""

import atexit
import shutil
import subprocess
import tempfile
from pathlib import Path

from fastdl_lib.course import notebooks as course


def checkout(root: Path) -> Path:
    """Return a temporary copy of git's index; ``root`` itself where git or the checkout lacks.

    Everything is copied, not the notebooks alone: they may link to any other file.
    """
    git = shutil.which("git")
    # Without a .git of its own the course may lie inside another repository.
    if git is None or not (root / ".git").exists():
        return root
    # It fails where nothing is staged yet, and where git refuses a checkout of another owner.
    listing = subprocess.run(
        [git, "ls-files", "--error-unmatch", "notebooks"], cwd=root, capture_output=True
    )
    if listing.returncode:
        return root
    folder = Path(tempfile.mkdtemp(prefix="fastdl-staged-")).resolve()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    prefix = f"--prefix={folder.as_posix()}/"
    subprocess.run([git, "checkout-index", "--all", "--quiet", prefix], cwd=root, check=True)
    return folder


ROOT = checkout(course.ROOT)
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
