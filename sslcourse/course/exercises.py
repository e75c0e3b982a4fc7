"""Exercises that never block: the learner's function, below @exercise("3.1"), where it is right, the reference where it is not.

The exercises of lesson n are listed in `sslcourse/course/checks/lesson_n.py`. A check calls the function it is given on inputs of its
own and raises `Wrong` with a hint to reject it; returning means that it is right.
"""

import ast
import functools
import html
import importlib.util
import inspect
import random
import re
import textwrap
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.utils._pytree import tree_map_only

from sslcourse import display
from sslcourse.course import lesson as lessons
from sslcourse.devices import random_states_kept
from sslcourse.errors import CourseError
from sslcourse.results import Table

DONE, HINT, OPEN = "done", "hint", "not attempted"
_MARKS = {DONE: ("✓", "#2e7d32"), HINT: ("✗", "#c62828"), OPEN: ("·", "#757575")}

_statuses: dict[str, str] = {}


class Wrong(Exception):
    """Raised by a check to reject an answer. The message is the hint that the learner reads."""


@dataclass(frozen=True)
class Exercise:
    """One exercise. check(function) raises Wrong with a hint, or returns.

    mistakes: hint -> a wrong answer that the check recognises, or a list of them; called as the reference is.
    The function gets copies of tensors, and one that changes them is rejected, because the lesson goes on using them.
    """

    id: str
    title: str
    minutes: int
    difficulty: int  # 1 (warm-up) to 3 (takes thought)
    reference: Callable
    check: Callable[[Callable], None]
    mistakes: Mapping[str, Callable | list[Callable]] = field(default_factory=dict)


def exercise(id: str) -> Callable[[Callable], Callable]:
    """Decorator: check the function at once, say how it went, and return the one that the lesson goes on with.

    Raises CourseError for an id that the lesson does not have; nothing that the learner's function does raises.
    """
    task = find_exercise(id)

    def decorate(function: Callable) -> Callable:
        if not callable(function):
            raise CourseError(f"@exercise({id!r}) belongs on the line above a function; here it was given {function!r}.")
        status, message = judge(task, function)
        _statuses[id] = status
        _say(task, status, message)
        chosen = _with_fallback(task, function if status == DONE else None)
        chosen.status, chosen.learner = status, function  # graded notebooks judge the learner's own function
        return chosen

    return decorate


def lesson_exercises(number: int) -> dict[str, Exercise]:
    """The exercises of a lesson by id; {} for a lesson that has none."""
    name = f"sslcourse.course.checks.lesson_{number}"
    return {} if importlib.util.find_spec(name) is None else {task.id: task for task in importlib.import_module(name).EXERCISES}


def find_exercise(id: str) -> Exercise:
    """The exercise with this number, such as "3.1". Raises CourseError for a text that is no number, or names no exercise."""
    if not isinstance(id, str) or not re.fullmatch(r"[1-9]\d*\.[1-9]\d*", id):
        raise CourseError(f"@exercise takes the exercise's number as a text, such as @exercise('3.1'), not {id!r}.")
    number = id.split(".")[0]
    tasks = lesson_exercises(int(number))
    if id not in tasks:
        raise CourseError(f"There is no exercise {id} in lesson {number}; it has {', '.join(tasks) or 'no exercises'}.")
    return tasks[id]


def report():
    """A table of the exercises of the current lesson, or of those that were tried where there is none, and how each went."""
    begun = lessons.current()
    tasks = lesson_exercises(begun.number) if begun else {id: find_exercise(id) for id in _statuses}
    words = {DONE: "✓ done", HINT: "✗ see the hint", OPEN: "· not attempted"}
    rows = [[id, t.title, "★" * t.difficulty, f"{t.minutes} min", words[_statuses.get(id, OPEN)]] for id, t in tasks.items()]
    return Table(["exercise", "what it asks", "difficulty", "time", "status"], rows)


def judge(task: Exercise, function: Callable) -> tuple[str, str]:
    """How an answer to this exercise is: DONE, HINT or OPEN, and the sentence that the learner reads. Nothing that it does raises."""
    if _is_untouched(function):
        return OPEN, "Not attempted yet. The lesson goes on with the reference; fill in the function and run the cell again when you like."
    guard = _Guard(task, function)
    with random_states_kept(), torch.enable_grad():  # whether an exercise is done must not change what the lesson draws later
        random.seed(0)  # and every check draws the same inputs
        np.random.seed(0)
        torch.default_generator.manual_seed(0)
        try:
            _check_signature(task, function)
            task.check(guard)
        except Wrong as wrong:
            return HINT, _with_placeholder(function, str(wrong))
        except Exception as error:  # the check stumbled over what the function returned: a hint, never a broken lesson
            stumbled = f"{type(error).__name__}: {_first_line(error)}"
            return HINT, f"The function returned {describe(guard.last)}, which could not be checked ({stumbled})."
    if guard.changed:
        changed = f"The values are right, but the function changes its input {guard.changed} in place, and the lesson still needs it"
        return HINT, f"{changed}: make a new tensor instead (x = x / 2, not x /= 2), or .clone() first."
    return DONE, f"{task.title}: right. The lesson uses your function from here on."


def describe(value) -> str:
    """What an answer returned, in a few words for a hint."""
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return f"{'a tensor' if isinstance(value, torch.Tensor) else 'an array'} of shape {tuple(value.shape)}"
    return "None" if value is None else f"{type(value).__name__} {str(value)[:60]}"


class _Guard:
    """What a check gets to call: the learner's function on copies of its inputs, its errors turned into hints."""

    def __init__(self, task: Exercise, function: Callable):
        self.task, self.function = task, function
        self.changed = self.last = None

    def __call__(self, *args):
        # Clones keep the graph, so that a check can ask for gradients; modules and generators are passed on as they are.
        given = tree_map_only(torch.Tensor, torch.clone, args)
        try:
            self.last = self.function(*given)
        except (Exception, SystemExit) as error:  # an exit() in an answer must not end the lesson
            raise Wrong(_explain(error, self.function)) from error
        inputs = zip(inspect.signature(self.task.reference).parameters, args, given, strict=True)
        self.changed = self.changed or next((name for name, before, after in inputs if not _equal(before, after)), None)
        return self.last


def _equal(before, after) -> bool:
    if isinstance(before, torch.Tensor):
        values = (tensor.detach().cpu().double() for tensor in (before, after))
        return before.dtype == after.dtype and np.array_equal(*values, equal_nan=True)
    if type(before) in (list, tuple):
        return len(before) == len(after) and all(map(_equal, before, after))
    return before is after or before == after


def _explain(error: BaseException, function: Callable) -> str:
    """An error inside the learner's function, with the line of their code that it came from."""
    file = getattr(getattr(function, "__code__", None), "co_filename", None)
    steps = [step for step in traceback.extract_tb(error.__traceback__) if step.filename == file]
    place = f" in line {steps[-1].lineno} of the cell: `{steps[-1].line}`" if steps else ""
    if isinstance(error, RecursionError):
        return f"The function calls itself without end{place}. Did you mean to call another function of nearly the same name?"
    if isinstance(error, NotImplementedError):
        return f"The function still raises NotImplementedError{place}. Replace that line with your code."
    return f"The function stopped with {type(error).__name__}: {_first_line(error)}{place}."


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:300] or "no message"


def _check_signature(task: Exercise, function: Callable) -> None:
    """The lesson calls the answer as it calls the reference, by position or by name."""
    wanted = inspect.signature(task.reference)
    names = list(wanted.parameters)
    try:
        got = inspect.signature(function)
        got.bind(**dict.fromkeys(names))
        fits = list(got.bind(*names).arguments) == names or any(p.kind is p.VAR_POSITIONAL for p in got.parameters.values())
    except ValueError:  # built-in functions have none
        return
    except TypeError:
        fits = False
    if not fits:
        raise Wrong(f"The function takes {got}; it has to take {wanted}, with these names and in this order.")


def _parse(function: Callable) -> ast.FunctionDef | None:
    """The function's own source as a tree; None where there is none, or it is that of something else."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    except (OSError, TypeError, SyntaxError, IndexError, ValueError):
        return None
    return tree if isinstance(tree, ast.FunctionDef) and tree.name == getattr(function, "__name__", None) else None


def _is_untouched(function: Callable) -> bool:
    """Whether the body is still only a docstring, `...`, `pass`, a bare return, or raise NotImplementedError."""
    filler = re.compile(r"pass|return( None| \.\.\.)?|raise NotImplementedError(\(.*\))?", re.DOTALL)
    tree = _parse(function)
    return tree is not None and all(
        isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) or filler.fullmatch(ast.unparse(line)) for line in tree.body
    )


def _with_placeholder(function: Callable, hint: str) -> str:
    """Point at a `...` that is still standing in a function that is partly written: it explains most errors better than they do."""
    tree = _parse(function)
    if tree is None:
        return hint
    # x[..., 0] is code, not a placeholder
    inside = {id(child) for node in ast.walk(tree) if isinstance(node, ast.Subscript) for child in ast.walk(node.slice)}
    left = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and node.value is ... and id(node) not in inside]
    line = inspect.getsource(function).splitlines()[left[0].lineno - 1].strip() if left else ""
    return f"There is still a ... to fill in: `{line}`." if left else hint


def _with_fallback(task: Exercise, function: Callable | None) -> Callable:
    """The learner's function, if any; should it stop later (on a GPU, on a larger batch), the reference takes over and says so."""

    @functools.wraps(function or task.reference)
    def chosen(*args, **kwargs):
        nonlocal function
        if function is None:
            return task.reference(*args, **kwargs)
        try:
            return function(*args, **kwargs)
        except Exception as error:
            result = task.reference(*args, **kwargs)  # if this raises too, the call was wrong and not the function
            _say(task, HINT, f"{_explain(error, function)} It passed its check, but not here, so the reference takes over.")
            function = None
            return result

    return chosen


def _say(task: Exercise, status: str, message: str) -> None:
    mark, colour = _MARKS[status]
    goes_on = " The lesson goes on with the reference; change the cell and run it again." if status == HINT else ""
    plain = f"{mark} Exercise {task.id}. {message}{goes_on}"
    body = f'<span style="color:{colour};font-weight:bold">{mark}</span> <strong>Exercise {task.id}.</strong> {html.escape(message)}'
    style = f"border-left:3px solid {colour};padding:0.3em 0.8em"
    display.show(plain, {"text/html": f'<div style="{style}">{body}<span style="opacity:0.7">{goes_on}</span></div>'})
