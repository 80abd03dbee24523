"""The bank of wrong answers: what learners plausibly get wrong in each exercise.

Each exercise of the notebooks needs at least four, each wrong in its own way: an off by one, the
wrong axis, a forgotten bias or padding, a unit, a float64 that slips in. `test_wrong_answers.py`
proves that the graders see through every one of them.

To add one: the key is the `grade_id` of the exercise's *solution* cell in the notebook's nbgrader
metadata; the value maps a short name of the mistake to the full source of that cell as the learner
would have written it. It must run by itself, and at least one test of the exercise must fail on it
with an AssertionError whose message helps.

    WRONG_ANSWERS = {
        "conv_output_size": {
            "forgets the plus one": '''
    def conv_output_size(size, kernel, stride=1, padding=0):
        return (size + 2 * padding - kernel) // stride
    ''',
        },
    }
"""

WRONG_ANSWERS: dict[str, dict[str, str]] = {}
