"""What the test cells of graded notebooks call: a check that stops the cell for an answer that is not right."""

import contextlib
import inspect
import io
import warnings
from collections.abc import Callable

from sslcourse.course.exercises import DONE, OPEN, find_exercise, judge


def check_answer(id: str, answer: Callable) -> None:
    """Return if the answer to exercise `id` is right, and raise AssertionError with the hint if it is not, or not attempted.

    answer: the function after @exercise, judged on the spot: neither what @exercise found earlier, nor the reference that took over, nor a
    function of the package counts. Raises CourseError for an id that no lesson has.
    """
    task = find_exercise(id)
    learner = getattr(answer, "learner", answer)
    if not callable(learner):
        raise AssertionError(f"Exercise {id}: {learner!r} is not a function.")
    if str(getattr(inspect.unwrap(learner), "__module__", "")).partition(".")[0] == "sslcourse":
        raise AssertionError(f"Exercise {id}: this is a function of the course. Write one of your own.")
    # nbgrader takes any output on stderr for a failure
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        status, message = judge(task, learner)
    if status != DONE:
        raise AssertionError(f"Exercise {id}: {'not attempted yet.' if status == OPEN else message}")
