import importlib.machinery
import linecache
import random
import sys
import types

import numpy as np
import pytest
import torch

from sslcourse.course import exercises
from sslcourse.course.checks import expect
from sslcourse.course.checks.expect import reject_mistakes
from sslcourse.course.exercises import Exercise, Wrong, exercise
from sslcourse.errors import CourseError


def mean_square(x, y):
    return ((x - y) ** 2).mean()


def check_mean_square(fn):
    x, y = torch.randn(4, 3), torch.randn(4, 3)
    mistakes = {"You summed; take the mean.": lambda x, y: ((x - y) ** 2).sum(), "You forgot the square.": lambda x, y: (x - y).mean()}
    reject_mistakes(fn, mean_square, mistakes, lambda f: f(x, y))
    expect.close(fn(x, y), mean_square(x, y), "Square the difference, then take the mean over all entries.")


def double(x):
    x.value *= 2


def check_double(fn):
    x = types.SimpleNamespace(value=1)
    fn(x)
    expect.close(x.value, 2, "x.value has to be doubled.")


def with_option(x, power=2):
    return x**power


@pytest.fixture(autouse=True)
def lesson_9(monkeypatch):
    """A lesson of three exercises, as a module of checks would export it."""
    tasks = [
        Exercise("9.1", "Mean square", 5, 1, mean_square, check_mean_square),
        Exercise("9.2", "Double in place", 5, 2, double, check_double),
        Exercise("9.3", "A power", 5, 3, with_option, lambda fn: expect.close(fn(torch.tensor([3.0])), torch.tensor([9.0]), "Raise x.")),
    ]
    module = types.ModuleType("sslcourse.course.checks.lesson_9")
    module.EXERCISES, module.__spec__ = tasks, importlib.machinery.ModuleSpec(module.__name__, None)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(exercises, "_statuses", {})
    return module


def answer(source, id="9.1"):
    """Decorate a function written as a learner would in a cell."""
    name = f"<cell {abs(hash(source))}>"
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    space = {"torch": torch}
    exec(compile(source, name, "exec"), space)
    return exercise(id)(space["my"])


x, y = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 5.0])


def test_a_right_answer_is_used(capsys):
    chosen = answer("def my(x, y):\n    return torch.mean((y - x) * (y - x))")
    assert chosen.status == "done" and chosen.__name__ == "my" and chosen(x, y) == 6.5
    assert capsys.readouterr().out == "✓ Exercise 9.1. Mean square: right. The lesson uses your function from here on.\n"


RAISE = "raise NotImplementedError"


@pytest.mark.parametrize("body", ["...", "pass", "return", "return ...", RAISE, f"{RAISE}('your code')", "'What to do.'\n    ..."])
def test_an_untouched_function_gives_the_reference(body, capsys):
    chosen = answer(f"def my(x, y):\n    {body}")
    assert chosen.status == "not attempted" and chosen(x, y) == 6.5
    assert capsys.readouterr().out.startswith("· Exercise 9.1. Not attempted yet.")


@pytest.mark.parametrize(("body", "hint"), [
    ("return ((x - y) ** 2).sum()", "You summed; take the mean."), ("return (x - y).abs().mean()", "Square the difference"),
    ("return 3", "Square the difference"), ("z = (x - y) ** 2", "returned nothing. Is the return statement missing?"),
    ("return (x - y) ** 2", "single number, of shape (), and it has shape (4, 3)"), ("return 'text'", "it is str text"),
    ("return mean((x - y) ** 2)", "NameError: name 'mean' is not defined in line 2 of the cell: `return mean((x - y) ** 2)`."),
    ("return my(x, y)", "calls itself without end"), ("exit(1)", "stopped with SystemExit"),
    ("return ((x - y) ** 2).mean() / 0 * 0", "Not all of the result is finite"),
    ("x -= y\n    return (x ** 2).mean()", "changes its input x in place"),
    ("d = ...\n    return (d ** 2).mean()", "There is still a ... to fill in: `d = ...`."),
    ("d = (x - y) ** 2\n    return ...", "There is still a ... to fill in: `return ...`."),
    ("d = x[..., 0]\n    return d.sum()", "Square the difference"),  # here ... is no placeholder
])  # fmt: skip
def test_a_wrong_answer_gets_its_hint_and_the_lesson_the_reference(body, hint, capsys):
    chosen = answer(f"def my(x, y):\n    {body}")
    out = capsys.readouterr().out
    assert chosen.status == "hint" and chosen(x, y) == 6.5 and x[0] == 1
    assert out.startswith("✗ Exercise 9.1. ") and hint in out and "goes on with the reference" in out


@pytest.mark.parametrize("arguments", ["x", "y, x", "a, b", "x, y, z", "x, *, y"])
def test_other_arguments_get_a_hint_and_more_with_defaults_are_welcome(arguments, capsys):
    assert answer(f"def my({arguments}):\n    return 1.0").status == "hint"
    assert "it has to take (x, y), with these names and in this order" in capsys.readouterr().out
    for more in ("reduction='mean'", "**options"):
        assert answer(f"def my(x, y, {more}):\n    return ((x - y) ** 2).mean()").status == "done"


def test_changing_the_input_is_right_where_it_is_the_task_and_a_check_that_stumbles_is_a_hint():
    assert answer("def my(x):\n    x.value *= 2", "9.2").status == "done"
    assert answer("def my(x):\n    x = 2 * x.value", "9.2").status == "hint"
    task = Exercise("9.1", "x", 5, 1, mean_square, lambda fn: fn(1, 2).shape)
    status, message = exercises.judge(task, lambda x, y: [x, y])
    assert status == "hint" and "returned list [1, 2], which could not be checked (AttributeError" in message


def test_the_lesson_draws_the_same_whether_an_exercise_is_done_or_not():
    def draws(source):
        torch.manual_seed(1), np.random.seed(1), random.seed(1)
        answer(source)
        return torch.rand(1).item(), np.random.rand(), random.random()

    assert draws("def my(x, y):\n    ...") == draws("def my(x, y):\n    return torch.rand(3).sum()")


def test_an_answer_that_stops_later_hands_over_to_the_reference(capsys):
    chosen = answer("def my(x, y):\n    return ((x - y) ** 2).mean() if x.shape[0] == 4 else 1 / 0")
    assert chosen.status == "done"
    capsys.readouterr()
    assert chosen(x, y) == 6.5 and chosen(x, y) == 6.5
    assert capsys.readouterr().out.count("ZeroDivisionError") == 1
    again = answer("def my(x, y):\n    return ((x - y) ** 2).mean()")
    with pytest.raises(TypeError):
        again(x)  # a wrong call is nobody's answer


def test_the_report_names_every_exercise(monkeypatch):
    answer("def my(x, y):\n    return 0.0")
    assert [row[0] for row in exercises.report().rows] == ["9.1"]  # no lesson under way: what was tried so far
    monkeypatch.setattr(exercises.lessons, "current", lambda: types.SimpleNamespace(number=9))
    first, second, _ = exercises.report().rows
    assert first == ["9.1", "Mean square", "★", "5 min", "✗ see the hint"]
    assert second == ["9.2", "Double in place", "★★", "5 min", "· not attempted"]
    answer("def my(x, y):\n    return ((x - y) ** 2).mean()")
    assert exercises.report().rows[0][-1] == "✓ done"


@pytest.mark.parametrize("id, message", [("9.7", "it has 9.1, 9.2, 9.3"), ("88.1", "no exercises"), ("x", "as a text"), (9.1, "not 9.1")])
def test_unknown_ids_and_what_is_no_function_get_a_sentence(id, message):
    with pytest.raises(CourseError, match=message):
        exercise(id)
    with pytest.raises(CourseError, match="above a function"):
        exercise("9.1")(3)


def test_mistakes_that_do_not_run_or_are_none_here_are_passed_over():
    passed_over = {"broken": lambda x: 1 / 0, "other shape": lambda x: torch.ones(3), "right here": lambda x: 2 * x}
    mistakes = passed_over | {"this one": lambda x: x + 1}
    for answer in (lambda x: x + x, lambda x: None):
        reject_mistakes(answer, lambda x: x * 2, mistakes, lambda f: f(torch.tensor(2.0)))
    with pytest.raises(Wrong, match="this one"):
        reject_mistakes(lambda x: 1 + x, lambda x: x * 2, mistakes, lambda f: f(torch.tensor(2.0)))
