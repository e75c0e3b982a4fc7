"""The check that graded notebooks call: it believes the learner's own function and nothing else."""

import sys
import warnings

import pytest
import torch
from torch.nn import functional as F

from sslcourse import losses
from sslcourse.course import exercises
from sslcourse.course.handouts import grading
from sslcourse.errors import CourseError


def right(z0, z1, temperature):
    return wrong(z0, z1, temperature, -torch.inf)


def wrong(z0, z1, temperature, diagonal=0.0):
    z = F.normalize(torch.cat([z0, z1]), dim=1)
    return F.cross_entropy((z @ z.T / temperature).fill_diagonal_(diagonal), torch.arange(len(z)).roll(len(z0)))


def untouched(z0, z1, temperature):
    """The cross-entropy of finding the other view"""
    ...


@pytest.mark.parametrize("decorate", [exercises.exercise("3.1"), lambda answer: answer], ids=["decorated", "bare"])
def test_a_right_answer_passes_and_any_other_stops_the_cell(decorate):
    grading.check_answer("3.1", decorate(right))
    hint = exercises.judge(exercises.find_exercise("3.1"), wrong)[1]
    for answer, message in ((wrong, hint), (untouched, "not attempted yet.")):
        with pytest.raises(AssertionError) as stopped:
            grading.check_answer("3.1", decorate(answer))
        assert str(stopped.value) == f"Exercise 3.1: {message}"


def test_nothing_but_an_answer_of_ones_own_to_an_exercise_that_there_is_is_believed(monkeypatch):
    answer = exercises.exercise("3.1")(wrong)
    monkeypatch.setitem(exercises._statuses, "3.1", exercises.DONE)
    answer.status = exercises.DONE
    with pytest.raises(AssertionError, match="3.1"):
        grading.check_answer("3.1", answer)
    answer.learner = exercises.find_exercise("3.1").reference
    for borrowed in (losses.nt_xent, answer):
        with pytest.raises(AssertionError, match="a function of the course"):
            grading.check_answer("3.1", borrowed)
    with pytest.raises(AssertionError, match="None is not a function"):
        grading.check_answer("3.1", None)
    with pytest.raises(CourseError, match=r"3\.9"):
        grading.check_answer("3.9", right)


def test_what_the_answer_prints_is_not_shown_and_no_random_number_is_drawn(capfd):
    def talkative(z0, z1, temperature):
        print("here")
        print("there", file=sys.stderr)
        warnings.warn("a habit", stacklevel=1)
        return right(z0, z1, temperature)

    before = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        grading.check_answer("3.1", talkative)
    assert capfd.readouterr() == ("", "")
    assert torch.equal(before, torch.get_rng_state())
