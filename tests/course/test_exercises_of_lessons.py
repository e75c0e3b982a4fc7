"""The exercises of every lesson: right answers pass, and each known mistake gets a hint of its own, whoever wrote it."""

import functools
import importlib
import math

import pytest
import torch
from torch import nn

from sslcourse.course import clinic
from sslcourse.course.exercises import judge, lesson_exercises

TASKS = {id: task for number in range(1, 9) for id, task in lesson_exercises(number).items()}
LESSONS = [importlib.import_module(f"answers_to_lesson_{number}") for number in range(1, 9)]


def each(answers):
    """(id, word, answer) of tables id -> {word: answer or answers}; one row for every answer."""
    table = [(id, word, answer) for id, by_word in answers.items() for word, answer in by_word.items()]
    return [(id, word, one) for id, word, answer in table for one in (answer if isinstance(answer, list) else [answer])]


RIGHT = [row for lesson in LESSONS for row in each({id: {"": answers} for id, answers in lesson.RIGHT.items()})]
WRONG = [row for lesson in LESSONS for row in each(lesson.WRONG)]
MISTAKES = each({id: task.mistakes for id, task in TASKS.items()})


@functools.cache
def judged(id, answer):
    """How an answer is judged whose arguments have the reference's names."""
    return judge(TASKS[id], functools.wraps(TASKS[id].reference)(lambda *arguments: answer(*arguments)))


@pytest.mark.parametrize("id", TASKS)
def test_the_reference_is_right(id):
    assert judge(TASKS[id], TASKS[id].reference) == ("done", f"{TASKS[id].title}: right. The lesson uses your function from here on.")


@pytest.mark.parametrize("id", ["2.2", "3.1", "3.2", "4.2", "5.1", "5.2", "6.1"])
def test_gradients_are_checked_where_autograd_is_off(id):
    with torch.no_grad():
        assert judge(TASKS[id], TASKS[id].reference)[0] == "done"


@pytest.mark.parametrize("id, word, answer", RIGHT)
def test_other_right_answers_are_accepted(id, word, answer):
    status, message = judge(TASKS[id], answer)
    assert status == "done", message


@pytest.mark.parametrize("id, word, answer", WRONG + MISTAKES, ids=lambda value: value[:30] if isinstance(value, str) else "")
def test_every_mistake_gets_its_hint(id, word, answer):
    status, message = judged(id, answer)
    assert status == "hint" and word in message


@pytest.mark.parametrize("id", TASKS)
def test_every_exercise_is_tried_with_another_right_answer_and_three_wrong_ones_that_get_different_hints(id):
    assert any(number == id for number, _, _ in RIGHT)
    hints = [*{word: judged(id, answer)[1] for number, word, answer in WRONG if number == id}.values()]
    assert len(set(hints)) == len(hints) and len({*hints, *TASKS[id].mistakes}) >= 3


def test_no_hint_about_a_patient_names_its_true_fault():
    for name in clinic.SUSPECTS:
        message = judge(TASKS["5.4"], lambda patient, name=name: name)[1]
        assert message.count(name) <= 1  # what was answered
        assert not any(other in message for other in clinic.SUSPECTS if other != name)


def reference(id, *arguments):
    return TASKS[id].reference(*arguments)


def test_references_give_known_values():
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    steps = [(torch.ones(1, 1), torch.zeros(1, 1))] * 2
    assert reference("2.2", model, steps, nn.functional.mse_loss, 0.25) == [1.0, 0.25] and model.weight.item() == 0.25
    assert (reference("2.3", 0.70, 0.011, 2), reference("2.3", 0.9, 0.02, 2)) == (13885, 1800)
    rows = torch.ones(4, 3)
    assert reference("3.1", rows, 2 * rows, 0.5).item() == pytest.approx(math.log(7), rel=1e-5)
    bank, labels, query = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.5, 0.9]]), torch.tensor([1, 0, 0]), torch.tensor([[5.0, 0.5]])
    assert [reference("3.3", bank, labels, query, 3, t).item() for t in (0.1, 10.0)] == [1, 0]
    crossed = torch.tensor([[1.0, 0.0], [-2.0, 0.0], [0.0, 3.0], [0.0, -1.0]])
    assert [v.item() for v in reference("4.1", crossed)] == pytest.approx([1.0, 2.0])
    same = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    # agreeing; (−1 − 1)² twice; two zeros where ones should be, and two ones
    assert [reference("5.1", same, other, 1.0).item() for other in (same, -same, same.flip(1))] == pytest.approx([0, 8, 4], abs=1e-3)
    collapsed, copied = torch.zeros(2, 2), torch.tensor([[1.0, 1.0], [-1.0, -1.0]])  # a hinge of 0.99 for each view; covariances of 2
    for z, wanted in ((same, (0, 0, 0)), (collapsed, (0, 49.5, 0)), (copied, (0, 0, 8))):
        assert [v.item() for v in reference("5.2", z, z)] == pytest.approx(wanted)
    even = nn.Linear(2, 2)
    nn.init.zeros_(even.weight)
    nn.init.zeros_(even.bias)  # each class has one half, and no step from there moves a bias
    batch = torch.zeros(2, 2), torch.tensor([0, 1]), torch.zeros(5, 2)
    told = [reference("6.1", even, torch.optim.SGD(even.parameters(), 0.1), *[torch.clone] * 2, *batch, at) for at in (0.6, 0.5)]
    assert told == [pytest.approx((math.log(2), 0)), pytest.approx((2 * math.log(2), 1))]
    assert reference("6.2", torch.full((10,), 0.8), torch.arange(10) < 7, 10) == pytest.approx(0.1)
    first = torch.tensor([True] * 6 + [False] * 2)
    assert reference("7.1", first, ~first) == pytest.approx(2 * (1 + 8 + 28) / 256)
    assert reference("7.2", [1.0, 2.0, 3.0], [0.0] * 3) == pytest.approx((2, 2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))
    always, never = ((lambda x, y, setting, seed, said=said: lambda new: torch.full((len(new),), said), [0]) for said in (1, 0))
    part = torch.zeros(10, 1), (torch.arange(10) < 8).long()  # eight of ten are of class 1
    assert reference("7.3", always, never, lambda seed: part, part, part, [1, 2])[0] == pytest.approx(60)
