"""Exercises that never block: the learner's function where it is right, the reference where it is not.

    @exercise("3.1")
    def my_nt_xent(z0, z1, temperature):
        ...

The exercises of lesson n live in `sslcourse/course/checks/lesson_n.py`, which exports EXERCISES, a dict of id -> Exercise. Its check
calls the function it is given on inputs of its own and raises `Wrong` with a hint to reject it; returning means that it is right.
"""

import ast
import dis
import functools
import html
import importlib
import inspect
import linecache
import random
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sslcourse.course import lesson as lessons
from sslcourse.errors import CourseError

DONE, HINT, OPEN = "done", "hint", "not attempted"
_MARKS = {DONE: ("✓", "#2e7d32"), HINT: ("✗", "#c62828"), OPEN: ("·", "#757575")}

_statuses: dict[str, str] = {}


class Wrong(Exception):
    """Raised by a check to reject an answer. The message is the hint that the learner reads."""


@dataclass(frozen=True)
class Exercise:
    """One exercise. check(fn) raises Wrong with a hint, or returns.

    may_change_inputs: for functions whose task is to change what they are given (an EMA update). Otherwise the function gets copies,
    and one that changes its inputs is rejected, because the lesson goes on using them.
    """

    id: str
    title: str
    minutes: int
    difficulty: int  # 1 (warm-up) to 3 (takes thought)
    reference: Callable
    check: Callable[[Callable], None]
    may_change_inputs: bool = False


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
        chosen = (
            _with_fallback(task, function) if status == DONE else functools.wraps(task.reference)(lambda *a, **k: task.reference(*a, **k))
        )
        chosen.status, chosen.learner = status, function
        return chosen

    return decorate


def lesson_exercises(number: int) -> dict[str, Exercise]:
    """The exercises of a lesson by id; {} for a lesson that has none."""
    name = f"sslcourse.course.checks.lesson_{number}"
    try:
        return importlib.import_module(name).EXERCISES
    except ModuleNotFoundError as error:
        if error.name and name.startswith(error.name):
            return {}
        raise


def report(number: int | None = None):
    """A table of the exercises of a lesson (the current one) and how each went."""
    from sslcourse.results import Table

    if number is None:
        begun = lessons.current()
        number = begun.number if begun else None
    tasks = lesson_exercises(number) if number else {id: find_exercise(id) for id in _statuses}
    words = {DONE: "✓ done", HINT: "✗ see the hint", OPEN: "· not attempted"}
    rows = [
        [task.id, task.title, "★" * task.difficulty, f"{task.minutes} min", words[_statuses.get(id, OPEN)]] for id, task in tasks.items()
    ]
    return Table(["exercise", "what it asks", "difficulty", "time", "status"], rows)


def find_exercise(id: str) -> Exercise:
    """The exercise with this number, such as "3.1". Raises CourseError for a text that is no number, or names no exercise."""
    if not isinstance(id, str) or not re.fullmatch(r"[1-9]\d*\.[1-9]\d*", id):
        raise CourseError(f"@exercise takes the exercise's number as a text, such as @exercise('3.1'), not {id!r}.")
    number = int(id.split(".")[0])
    tasks = lesson_exercises(number)
    if id not in tasks:
        known = f"its exercises are {', '.join(tasks)}" if tasks else "it has no exercises"
        raise CourseError(f"There is no exercise {id} in lesson {number}: {known}.")
    return tasks[id]


def judge(task: Exercise, function: Callable) -> tuple[str, str]:
    """How an answer to this exercise is: DONE, HINT or OPEN, and the sentence that the learner reads. Nothing that it does raises."""
    if _is_untouched(function):
        return OPEN, "Not attempted yet. The lesson goes on with the reference; fill in the function and run the cell again when you like."
    state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    guard = _Guard(task, function)
    try:
        # Whether an exercise is done must not change what the lesson draws later; and every check draws the same inputs.
        random.seed(0)
        np.random.seed(0)
        torch.default_generator.manual_seed(0)
        _check_signature(task, function)
        task.check(guard)
        if guard.changed:
            raise Wrong(
                f"The values are right, but the function changes its input {guard.changed} in place, and the lesson still needs it: "
                "make a new tensor instead (x = x / 2, not x /= 2), or .clone() first."
            )
        return DONE, f"{task.title}: right. The lesson uses your function from here on."
    except Wrong as wrong:
        return HINT, _with_placeholder(function, str(wrong))
    except Exception as error:  # the check stumbled over what the function returned: a hint, never a broken lesson
        return (
            HINT,
            f"The function returned {_describe(guard.last)}, which could not be checked ({type(error).__name__}: {_first_line(error)}).",
        )
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])
        torch.set_rng_state(state[2])


class _Guard:
    """What a check gets to call: the learner's function on copies of its inputs, its errors turned into hints."""

    def __init__(self, task: Exercise, function: Callable):
        self.task, self.function = task, function
        self.changed = self.last = None
        functools.update_wrapper(self, function)

    def __call__(self, *args, **kwargs):
        given_args, given_kwargs = args, kwargs
        if not self.task.may_change_inputs:
            given_args, given_kwargs = _copied(args), _copied(kwargs)
        try:
            self.last = self.function(*given_args, **given_kwargs)
        except Wrong:
            raise
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit too: an exit() in an answer must not end the lesson
            raise Wrong(_explain(error, self.function)) from error
        if not self.task.may_change_inputs:
            names = [*inspect.signature(self.task.reference).parameters]
            pairs = [*zip(names, args, given_args, strict=False), *((k, v, given_kwargs[k]) for k, v in kwargs.items())]
            self.changed = self.changed or next((name for name, before, after in pairs if not _equal(before, after)), None)
        return self.last


def _copied(value):
    """A copy of tensors, arrays and the containers around them; anything else (modules, generators) is passed on as it is."""
    if isinstance(value, torch.Tensor):
        return value.clone()  # keeps the graph, so that a check can ask for gradients
    if isinstance(value, np.ndarray):
        return value.copy()
    if type(value) in (list, tuple):
        return type(value)(_copied(item) for item in value)
    if type(value) is dict:
        return {key: _copied(item) for key, item in value.items()}
    return value


def _equal(before, after) -> bool:
    if isinstance(before, torch.Tensor):
        same_form = before.shape == after.shape and before.dtype == after.dtype
        return same_form and torch.allclose(before.detach().double(), after.detach().double(), rtol=0, atol=0, equal_nan=True)
    if isinstance(before, np.ndarray):
        return before.shape == after.shape and bool(np.array_equal(before, after, equal_nan=before.dtype.kind == "f"))
    if type(before) in (list, tuple):
        return len(before) == len(after) and all(map(_equal, before, after))
    if type(before) is dict:
        return before.keys() == after.keys() and all(_equal(before[key], after[key]) for key in before)
    return True


def _explain(error: BaseException, function: Callable) -> str:
    """An error inside the learner's function, with the line of their code that it came from."""
    file, steps, trace = getattr(getattr(function, "__code__", None), "co_filename", None), [], error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            steps.append(trace.tb_lineno)
        trace = trace.tb_next
    place = ""
    if steps:
        text = linecache.getline(file, steps[-1]).strip()
        place = f" in line {steps[-1]}" + (f" of the cell: `{text}`" if text else " of the cell")
    if isinstance(error, RecursionError):
        return f"The function calls itself without end{place}. Did you mean to call another function of nearly the same name?"
    if isinstance(error, NotImplementedError):
        return f"The function still raises NotImplementedError{place}. Replace that line with your code."
    return f"The function stopped with {type(error).__name__}: {_first_line(error)}{place}."


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else "no message"


def _check_signature(task: Exercise, function: Callable) -> None:
    """The lesson calls the answer as it calls the reference, by position or by name."""
    try:
        got = inspect.signature(function)
    except (TypeError, ValueError):
        return
    wanted = inspect.signature(task.reference)
    names = [p.name for p in wanted.parameters.values() if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    try:
        by_position = list(got.bind(*names).arguments) if not any(p.kind is p.KEYWORD_ONLY for p in wanted.parameters.values()) else names
        got.bind(**{name: None for name in wanted.parameters})
    except TypeError:
        by_position = None
    variadic = any(p.kind is p.VAR_POSITIONAL for p in got.parameters.values())
    if by_position is None or (not variadic and by_position != names):
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
    tree = _parse(function)
    if tree is not None:
        return all(_is_filler(statement) for statement in tree.body)
    code = getattr(function, "__code__", None)
    if code is None:
        return False
    fillers = {"RESUME", "NOP", "CACHE", "LOAD_CONST", "RETURN_VALUE", "RETURN_CONST", "PUSH_NULL", "PRECALL", "CALL", "CALL_FUNCTION"}
    fillers |= {"LOAD_GLOBAL", "RAISE_VARARGS"} if code.co_names == ("NotImplementedError",) else set()
    steps = list(dis.get_instructions(code))
    returned = [before.argval for before, after in zip(steps, steps[1:], strict=False) if after.opname == "RETURN_VALUE"]
    returned += [step.argval for step in steps if step.opname == "RETURN_CONST"]
    return all(step.opname in fillers for step in steps) and all(value is None or value is ... for value in returned)


def _is_filler(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Constant)
    if isinstance(statement, ast.Return):
        return statement.value is None or (isinstance(statement.value, ast.Constant) and statement.value.value in (None, ...))
    if isinstance(statement, ast.Raise) and statement.exc is not None:
        raised = statement.exc.func if isinstance(statement.exc, ast.Call) else statement.exc
        return isinstance(raised, ast.Name) and raised.id == "NotImplementedError"
    return isinstance(statement, ast.Pass)


def _with_placeholder(function: Callable, hint: str) -> str:
    """Point at a `...` that is still standing in a function that is partly written: it explains most errors better than they do."""
    tree = _parse(function)
    left = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and node.value is ...] if tree else []
    # x[..., 0] is code, not a placeholder
    inside = {id(child) for node in ast.walk(tree) if isinstance(node, ast.Subscript) for child in ast.walk(node.slice)} if tree else set()
    left = [node for node in left if id(node) not in inside]
    if not left:
        return hint
    line = inspect.getsource(function).splitlines()[left[0].lineno - 1].strip()
    return f"There is still a ... to fill in: `{line}`."


def _with_fallback(task: Exercise, function: Callable) -> Callable:
    """The learner's function; should it stop later (on a GPU, on a larger batch), the reference takes over and says so."""
    stopped = False

    @functools.wraps(function)
    def chosen(*args, **kwargs):
        nonlocal stopped
        if not stopped:
            try:
                return function(*args, **kwargs)
            except Exception as error:
                result = task.reference(*args, **kwargs)  # if this raises too, the call was wrong and not the function
                stopped = True
                _say(task, HINT, f"{_explain(error, function)} It passed its check, but not here, so the reference takes over.")
                return result
        return task.reference(*args, **kwargs)

    return chosen


def _say(task: Exercise, status: str, message: str) -> None:
    mark, colour = _MARKS[status]
    goes_on = " The lesson goes on with the reference; change the cell and run it again." if status == HINT else ""
    plain = f"{mark} Exercise {task.id}. {message}{goes_on}"
    body = f'<span style="color:{colour};font-weight:bold">{mark}</span> <strong>Exercise {task.id}.</strong> {html.escape(message)}'
    style = f"border-left:3px solid {colour};padding:0.3em 0.8em"
    lessons.show(f'<div style="{style}">{body}<span style="opacity:0.7">{goes_on}</span></div>', plain)


# What checks are written with. Each raises Wrong with a sentence that a learner can use.


def _describe(value) -> str:
    if value is None:
        return "None"
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return f"{'a tensor' if isinstance(value, torch.Tensor) else 'an array'} of shape {tuple(value.shape)}"
    return f"{type(value).__name__} {str(value)[:60]}"


def expect_type(got, kind: type | tuple[type, ...] = torch.Tensor, what: str = "the result") -> None:
    """Reject a result of another type; None and ... get a hint about the missing return."""
    if got is None or got is ...:
        raise Wrong("The function returned nothing. Is the return statement missing?" if got is None else "The function returned `...`.")
    if not isinstance(got, kind):
        wanted = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise Wrong(f"Expected {what} to be a {wanted}, and it is {_describe(got)}.")


def expect_shape(got, shape: Sequence[int], what: str = "the result") -> None:
    """Reject a tensor of another shape."""
    expect_type(got, (torch.Tensor, np.ndarray), what)
    if tuple(got.shape) != tuple(shape):
        kind = "a single number, of shape ()," if tuple(shape) == () else f"of shape {tuple(shape)}"
        raise Wrong(f"Expected {what} to be {kind} and it has shape {tuple(got.shape)}.")


def expect_close(got, wanted, hint: str, rtol: float = 1e-4, atol: float = 1e-6, what: str = "the result") -> None:
    """Reject a result that differs from the wanted one: by its form with a sentence about the form, by its values with the hint."""
    wanted = torch.as_tensor(wanted)
    expect_type(got, (torch.Tensor, np.ndarray, np.generic, int, float), what)
    got = torch.as_tensor(got)
    expect_shape(got, wanted.shape, what)
    if got.is_floating_point() and wanted.isfinite().all() and not got.isfinite().all():
        raise Wrong(f"Not all of {what} is finite. {hint}")
    if not _close(got, wanted, rtol, atol):
        raise Wrong(hint)


def expect_gradients(
    answer: Callable, reference: Callable, views: Sequence, *rest, blocked: str, cut: str, rtol: float, atol: float
) -> None:
    """Reject a loss answer(*views, *rest) whose gradient in the views is missing (hint blocked) or differs from the reference's (cut)."""
    views = [view.detach().requires_grad_() for view in views]
    value = answer(*views, *rest)
    if not value.requires_grad:
        raise Wrong("The value is right, but no gradient comes back. Leave out .detach(), .item(), torch.no_grad() and torch.tensor(...).")
    got = torch.autograd.grad(value, views, allow_unused=True)
    if any(g is None or not g.any() for g in got):
        raise Wrong(f"No gradient reaches one of the two views: is it detached? {blocked}")
    for g, wanted in zip(got, torch.autograd.grad(reference(*views, *rest), views), strict=True):
        hint = f"The value is right, but its gradient is not: a part of the graph is cut off. {cut}"
        expect_close(g, wanted, hint, rtol, atol, what="the gradient")


def _close(got: torch.Tensor, wanted: torch.Tensor, rtol: float, atol: float) -> bool:
    return got.shape == wanted.shape and torch.allclose(got.detach().double().cpu(), wanted.detach().double().cpu(), rtol, atol)


def try_mistakes(fn: Callable, inputs: Sequence, mistakes: Mapping[str, Callable], rtol: float = 1e-4, atol: float = 1e-6) -> None:
    """Raise the hint of the first known mistake that gives what fn gives. inputs: one tuple of arguments. mistakes: hint -> wrong function.

    Call it before `expect_close`, so that the hint that fits comes first, with inputs on which every mistake differs from the truth.
    """
    got = fn(*inputs)
    if not isinstance(got, (torch.Tensor, np.ndarray, np.generic, int, float)):
        return
    for hint, wrong in mistakes.items():
        try:
            same = _close(torch.as_tensor(got), torch.as_tensor(wrong(*_copied(tuple(inputs)))), rtol, atol)
        except Exception:  # a mistake may well not run on these inputs
            continue
        if same:
            raise Wrong(hint)
