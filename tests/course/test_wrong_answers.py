"""Every grader gives the solution its points and takes them from each wrong answer.

An exercise is run as a learner's answer is: the notebook's cells tagged `setup`, the answer, then
its tests. (The untouched stub is tried where it is made: test_release.py.)
"""

import itertools
import random
import re

import numpy as np
import pytest
import toys
from toys import Exercise, exercises_of
from wrong_answers import WRONG_ANSWERS

from fastdl_lib.course import notebooks as course

SEEDS = range(5)
LEAST = 4


def answer_from(solution, change):
    """The wrong answer: the solution with the changes made, or the text that stands alone."""
    if isinstance(change, str):
        return change
    answer = solution
    for old, new in [change] if isinstance(change, tuple) else change:
        if old not in answer:
            raise ValueError(f"{old!r} does not stand in the solution (any more):\n{answer}")
        answer = answer.replace(old, new)
    return answer


EXERCISES = [exercise for path in course.notebook_paths() for exercise in exercises_of(path)]
BANK = [
    pytest.param(exercise, change, id=f"{exercise.grade_id}: {name}")
    for exercise in EXERCISES
    for name, change in WRONG_ANSWERS.get(exercise.grade_id, {}).items()
]


@pytest.fixture(autouse=True)
def as_in_a_notebook(monkeypatch):
    monkeypatch.chdir(course.ROOT / "notebooks")
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("FASTDL_TIME_SCALE", "0.02")


def judge(exercise, answer, seed):
    """Run an answer in a fresh namespace; return the exceptions of the failed tests."""
    random.seed(seed)
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


def code_of(answer):
    """The lines of an answer without the marks of the solution."""
    return tuple(line for line in answer.splitlines() if line.strip() and "### " not in line)


def bank_faults(exercises, bank):
    """Return what is wrong with a bank of wrong answers for these exercises."""
    ids = [exercise.grade_id for exercise in exercises]
    faults = [f"{unknown}: no such exercise" for unknown in bank.keys() - set(ids)]
    faults += [f"{twice}: two exercises of this name" for twice in ids if ids.count(twice) > 1]
    for exercise in exercises:
        changes = bank.get(exercise.grade_id, {}).values()
        answers = {code_of(answer_from(exercise.solution, change)) for change in changes}
        found = {
            f"{len(changes)} wrong answers, {LEAST} wanted": len(changes) < LEAST,
            "two equal wrong answers": len(answers) < len(changes),
            "the solution stands among the wrong answers": code_of(exercise.solution) in answers,
            "no graded cell": not exercise.tests,
        }
        faults += [f"{exercise.grade_id}: {fault}" for fault, here in found.items() if here]
    return faults


def test_bank_fits_the_exercises():
    assert EXERCISES
    assert bank_faults(EXERCISES, WRONG_ANSWERS) == []


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda it: it.grade_id)
@pytest.mark.parametrize("seed", SEEDS)
def test_solution_passes(exercise, seed):
    assert judge(exercise, exercise.solution, seed) == []


@pytest.mark.parametrize(("exercise", "change"), BANK)
def test_wrong_answer_loses_its_points(exercise, change):
    failures = judge(exercise, answer_from(exercise.solution, change), 0)
    assert failures, "every test passed"
    assert teaches(failures), failures


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda it: it.grade_id)
def test_a_useless_answer_is_told_what_is_wrong(exercise):
    name = re.findall(r"^def (\w+)", exercise.solution, re.MULTILINE)[-1]
    for answer in ("None", "0", "''", "()", "{}", "(None, None, None)", "np.zeros(3)"):
        useless = f"import numpy as np\n{exercise.solution}\n{name} = lambda *_, **__: {answer}"
        for error in judge(exercise, useless, 0):
            assert teaches([error]), (answer, error)


# --- the tests above, tried on made exercises ---


@pytest.fixture
def toy(tmp_path):
    (exercise,) = exercises_of(toys.write_chapters(tmp_path)[1])
    return exercise


def test_right_and_wrong_are_told_apart(toy):
    assert (toy.grade_id, toy.setup, len(toy.tests)) == ("area", [toys.SETUP], 3)
    assert judge(toy, toy.solution, 0) == []
    # Only the hidden test sees this one.
    memorised = "def area(a, b):\n    return {(2, 3): 6, (10, 10): 100, (0, 5): 0}.get((a, b))"
    assert teaches(judge(toy, memorised, 0))
    failures = judge(toy, "def area(a, b):\n    raise NotImplementedError", 0)
    assert len(failures) == 3
    assert not teaches(failures)


def test_random_inputs_differ_by_seed_and_repeat():
    test = "import numpy as np\nraise AssertionError(str(np.random.default_rng().random()))"
    drawn = Exercise("toy", [], "", [test, test])
    first, again, other = ([str(error) for error in judge(drawn, "", seed)] for seed in (0, 0, 1))
    assert first == again
    assert len({*first, *other}) == 4


def test_a_wrong_answer_is_made_of_the_solution():
    solution = "def half(x):\n    return x / 2"
    assert answer_from(solution, ("/ 2", "// 2")) == "def half(x):\n    return x // 2"
    assert answer_from(solution, [("x", "y"), ("y / 2", "y")]) == "def half(y):\n    return y"
    assert answer_from(solution, "half = None") == "half = None"
    with pytest.raises(ValueError, match="'/ 3' does not stand in the solution"):
        answer_from(solution, [("/ 2", "// 2"), ("/ 3", "")])


def test_faults_of_a_bank_are_found(toy):
    four = {str(number): ("height * width", str(number)) for number in range(4)}
    twice, right = ("height * width", "3"), ("height * width", "height * width")
    for bank, faults in (
        ({"area": four}, []),
        ({}, ["area: 0 wrong answers, 4 wanted"]),
        ({"area": four, "volume": four}, ["volume: no such exercise"]),
        ({"area": four | {"4": twice}}, ["area: two equal wrong answers"]),
        ({"area": four | {"4": right}}, ["area: the solution stands among the wrong answers"]),
    ):
        assert bank_faults([toy], bank) == faults
    assert "area: two exercises of this name" in bank_faults([toy, toy], {"area": four})
    toy.tests.clear()
    assert bank_faults([toy], {"area": four}) == ["area: no graded cell"]
