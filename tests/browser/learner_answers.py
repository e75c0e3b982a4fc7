"""What a learner may type into an exercise's cell: the solution that the lesson has folded away, and a wrong answer with its hint."""

import importlib
import inspect
import re
import sys
import types
from pathlib import Path

_COURSE_TESTS = Path(__file__).resolve().parents[1] / "course"
# what a cell may need to import so that an answer from the tests of the checks runs in it
_IMPORTS = {
    "math": "import math", "torch": "import torch", "nn": "from torch import nn", "F": "from torch.nn import functional as F",
    "stats": "from scipy import stats",
}  # fmt: skip

# For exercises whose wrong answers in tests/course/ are made by other functions, and so have no text of their own.
_TYPED = {
    "2.3": (
        "def images_needed(accuracy, difference, z):\n    return math.ceil(2 * accuracy * (1 - accuracy) * z / difference**2)",
        "z is not squared",
    ),
    "5.4": ('def diagnosis(patient):\n    return "batch of one"', "len(batch) excludes it"),
    "7.2": (
        "def paired_interval(first, second):\n"
        "    d = torch.tensor(first, dtype=torch.double) - torch.tensor(second, dtype=torch.double)\n"
        "    half = 1.96 * d.std().item() / math.sqrt(len(d))\n"
        "    return d.mean().item(), d.mean().item() - half, d.mean().item() + half",
        "4.30 for R = 3",
    ),
}


def exercise_of(source: str) -> tuple[str, str] | None:
    """The number and the function's name of a cell that asks for an answer; None for another cell."""
    found = re.match(r'@exercise\("(\d+\.\d+)"\)\ndef (\w+)\(', source)
    return found and found.groups()


def right_answer(number: str, name: str, cells: list[dict]) -> str:
    """The text of an exercise's cell, filled in with the solution that stands in the notebook."""
    head = f"# Solution of exercise {number}\n"
    (solution,) = (cell["source"] for cell in cells if "solution" in cell["tags"] and cell["source"].startswith(head))
    return _cell(number, name, solution.removeprefix(head))


def wrong_answer(number: str, name: str) -> tuple[str, str]:
    """The text of an exercise's cell with a plausible mistake, and a part of the hint that it deserves."""
    if number in _TYPED:
        text, hint = _TYPED[number]
        return _cell(number, name, text), hint
    if str(_COURSE_TESTS) not in sys.path:
        sys.path.insert(0, str(_COURSE_TESTS))
    tests = importlib.import_module(f"test_exercises_of_lesson_{number.split('.')[0]}")
    for of, answer, hint in tests.WRONG:
        if of == number and (needed := _needed(answer, tests)) is not None:
            return _cell(number, name, inspect.getsource(answer), needed), hint
    raise LookupError(f"No wrong answer to exercise {number} in {tests.__name__} has a text that can be typed into a cell.")


def _needed(answer, module) -> list[str] | None:
    """The imports that an answer's own text needs; None if it needs more of its module than imports."""
    if not inspect.isfunction(answer) or answer.__closure__ or answer.__name__ == "<lambda>":
        return None
    names = _names(answer.__code__) & vars(module).keys()
    same = all(name in _IMPORTS and isinstance(vars(module)[name], types.ModuleType) for name in names)
    return [_IMPORTS[name] for name in sorted(names)] if same else None


def _names(code: types.CodeType) -> set[str]:
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _cell(number: str, name: str, text: str, imports: list[str] = ()) -> str:
    """A function's text under the decorator, with the name that the lesson calls."""
    text = re.sub(r"^def \w+\(", f"def {name}(", text.strip(), count=1)
    return "\n".join([*imports, f'@exercise("{number}")', text])
