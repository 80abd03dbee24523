"""Every grader gives the solution its points and takes them from the stub and each wrong answer.

An exercise is a solution cell and the graded cells after it, up to the next solution cell. It is
run as a learner's answer is: the notebook's cells tagged `setup`, the answer, then its tests.
"""

import itertools
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import staged
import toys
from staged import NOTEBOOKS
from wrong_answers import WRONG_ANSWERS

from fastdl_lib.course import notebooks as course

SEEDS = range(5)
LEAST = 4


@dataclass
class Exercise:
    """One solution cell with what it needs and what judges it."""

    notebook: str
    grade_id: str
    setup: list[str]
    solution: str
    tests: list[str]


def exercises_of(path):
    """Return the exercises of a notebook in order."""
    cells = [cell for cell in course.read_notebook(path).cells if cell.cell_type == "code"]
    setup = [cell.source for cell in cells if "setup" in cell.metadata.get("tags", [])]
    found = []
    for cell in cells:
        mark = cell.metadata.get("nbgrader", {})
        if mark.get("solution") and not mark.get("grade"):
            found.append(Exercise(Path(path).stem, mark.grade_id, setup, cell.source, []))
        elif mark.get("grade"):
            assert found, f"{mark.grade_id} in {path}: a test before any exercise"
            found[-1].tests.append(cell.source)
    return found


EXERCISES = [exercise for path in NOTEBOOKS for exercise in exercises_of(path)]
BANK = [
    pytest.param(exercise, wrong, id=f"{exercise.grade_id}: {name}")
    for exercise in EXERCISES
    for name, wrong in WRONG_ANSWERS.get(exercise.grade_id, {}).items()
]
each_exercise = pytest.mark.parametrize("exercise", EXERCISES, ids=lambda it: it.grade_id)


@pytest.fixture(autouse=True)
def as_in_a_notebook(monkeypatch):
    monkeypatch.chdir(course.ROOT / "notebooks")
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("FASTDL_TIME_SCALE", "0.02")


def judge(exercise, answer, seed):
    """Run an answer in a fresh namespace; return the exceptions of the failed tests."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - for tests that still draw from the global generator
    draws, default_rng = itertools.count(), np.random.default_rng

    def seeded(given=None):
        return default_rng([seed, next(draws)] if given is None else given)

    namespace = {"__name__": "__main__"}
    failures = []
    with pytest.MonkeyPatch.context() as patch:
        # Unseeded generators, too, so that a failure can be repeated.
        patch.setattr(np.random, "default_rng", seeded)
        for source in exercise.setup:
            exec(compile(source, "setup cell", "exec"), namespace)
        exec(compile(answer, exercise.grade_id, "exec"), namespace)
        for source in exercise.tests:
            try:
                exec(compile(source, f"test of {exercise.grade_id}", "exec"), namespace)
            except Exception as error:
                failures.append(error)
    return failures


def teaches(failures):
    """Whether a learner would be told what is wrong."""
    return any(isinstance(error, AssertionError) and str(error).strip() for error in failures)


def bank_faults(exercises, bank):
    """Return what is wrong with a bank of wrong answers for these exercises."""
    ids = [exercise.grade_id for exercise in exercises]
    faults = [f"{unknown}: no such exercise" for unknown in bank.keys() - set(ids)]
    faults += [f"{twice}: two exercises of this name" for twice in ids if ids.count(twice) > 1]
    for exercise in exercises:
        answers = bank.get(exercise.grade_id, {})
        if len(answers) < LEAST:
            faults.append(f"{exercise.grade_id}: {len(answers)} wrong answers, {LEAST} wanted")
        sources = [source.strip() for source in answers.values()]
        if len(set(sources)) < len(sources):
            faults.append(f"{exercise.grade_id}: two equal wrong answers")
        without_marks = "\n".join(
            line for line in exercise.solution.splitlines() if "### " not in line
        )
        if {exercise.solution.strip(), without_marks.strip()} & set(sources):
            faults.append(f"{exercise.grade_id}: the solution stands among the wrong answers")
        if not exercise.tests:
            faults.append(f"{exercise.grade_id}: no graded cell")
    return faults


def test_bank_fits_the_exercises():
    assert EXERCISES
    assert bank_faults(EXERCISES, WRONG_ANSWERS) == []


@each_exercise
def test_cells_are_plain_python(exercise):
    for source in [*exercise.setup, exercise.solution, *exercise.tests]:
        compile(source, exercise.grade_id, "exec")


@each_exercise
@pytest.mark.parametrize("seed", SEEDS)
def test_solution_passes(exercise, seed):
    assert judge(exercise, exercise.solution, seed) == []


@pytest.mark.parametrize(("exercise", "wrong"), BANK)
def test_wrong_answer_loses_its_points(exercise, wrong):
    failures = judge(exercise, wrong, 0)
    assert failures, "every test passed"
    assert teaches(failures), failures


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """The learners' copies of all exercises, by grade_id."""
    root = tmp_path_factory.mktemp("released")
    shutil.copytree(staged.ROOT / "notebooks", root / "notebooks")
    shutil.copy(course.ROOT / "nbgrader_config.py", root)
    return {stub.grade_id: stub for path in course.release(root) for stub in exercises_of(path)}


@each_exercise
def test_stub_loses_its_points(exercise, released):
    answer = released[exercise.grade_id].solution
    try:
        failures = judge(exercise, answer, 0)
    except NotImplementedError as error:
        failures = [error]
    assert any(
        isinstance(error, NotImplementedError) and "Replace this line" in str(error)
        for error in failures
    ), failures


# --- the tests above, tried on made exercises ---


@pytest.fixture
def toy(tmp_path):
    path = toys.write_chapters(tmp_path)[1]
    (exercise,) = exercises_of(path)
    return exercise


def test_exercises_are_found(toy):
    assert (toy.notebook, toy.grade_id, len(toy.tests)) == ("01_measure", "area", 3)
    assert toy.setup == [toys.SETUP]


def test_right_and_wrong_are_told_apart(toy):
    for seed in SEEDS:
        assert judge(toy, toy.solution, seed) == []
    # Only the hidden test sees this one.
    memorised = "def area(a, b):\n    return {(2, 3): 6, (10, 10): 100, (0, 5): 0}.get((a, b))"
    assert teaches(judge(toy, memorised, 0))
    stub = "def area(a, b):\n    raise NotImplementedError"
    failures = judge(toy, stub, 0)
    assert len(failures) == 3
    assert not teaches(failures)


def test_random_inputs_differ_by_seed_and_repeat():
    test = "import numpy as np\nraise AssertionError(str(np.random.default_rng().random()))"
    drawn = Exercise("toy", "toy", [], "", [test, test])
    first, again, other = ([str(error) for error in judge(drawn, "", seed)] for seed in (0, 0, 1))
    assert first == again
    assert len({*first, *other}) == 4


def test_faults_of_a_bank_are_found(toy):
    four = {str(number): f"def area(a, b):\n    return {number}" for number in range(4)}
    assert bank_faults([toy], {"area": four}) == []
    assert bank_faults([toy], {}) == ["area: 0 wrong answers, 4 wanted"]
    assert bank_faults([toy], {"area": four, "volume": four}) == ["volume: no such exercise"]
    assert bank_faults([toy], {"area": four | {"4": four["3"]}}) == [
        "area: two equal wrong answers"
    ]
    assert bank_faults([toy], {"area": four | {"4": toys.SOLUTION}}) == [
        "area: the solution stands among the wrong answers"
    ]
    toy.tests.clear()
    assert bank_faults([toy], {"area": four}) == ["area: no graded cell"]
