"""What the tests of every lesson's exercises have in common: right answers pass, each mistake gets a hint of its own."""

import pytest

from sslcourse.course.exercises import judge


def judge_of(exercises):
    """judged(number, answer) -> (status, message), for a lesson's exercises."""
    return lambda number, answer: judge(exercises[number], answer)


def standard_tests(exercises, right, wrong, same_hint=()):
    """Three tests, for a module to bind to names that begin with test_.

    right: pairs (number, answer). wrong: triples (number, answer, part of the hint), whose hints all differ within an exercise.
    same_hint: more triples, which may share a hint.
    """
    judged = judge_of(exercises)

    @pytest.mark.parametrize("number, answer", right, ids=lambda v: getattr(v, "__name__", v))
    def right_answers_are_accepted(number, answer):
        status, message = judged(number, answer)
        assert status == "done", message

    @pytest.mark.parametrize("number, answer, hint", [*wrong, *same_hint], ids=lambda v: getattr(v, "__name__", v))
    def each_mistake_gets_its_own_hint(number, answer, hint):
        status, message = judged(number, answer)
        assert status == "hint"
        assert hint in message

    def hints_differ_within_an_exercise():
        for number in exercises:
            hints = [judged(number, answer)[1] for n, answer, _ in wrong if n == number]
            assert len(hints) == len(set(hints)) >= 3

    return right_answers_are_accepted, each_mistake_gets_its_own_hint, hints_differ_within_an_exercise
