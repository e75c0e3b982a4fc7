"""What a metric may hold, made here or read from a file."""

import math
from statistics import stdev

import numpy as np
import pytest
import torch

from sslcourse.results import metrics as result_metrics


def test_a_metric_over_runs_is_their_mean_with_its_standard_error():
    metric = result_metrics.over_runs([0.5, 0.7, 0.6], n=1000)
    assert metric["value"] == pytest.approx(0.6)
    assert metric["standard_error"] == pytest.approx(0.1 / 3**0.5)  # sample deviation 0.1, three runs
    assert (metric["n"], metric["runs"]) == (1000, 3)
    assert metric["values"] == [0.5, 0.7, 0.6]  # in the order of the seeds
    alone = result_metrics.over_runs([0.5])
    assert alone["standard_error"] is None and alone["values"] == [0.5]  # one run says nothing about its own luck


def test_over_runs_takes_tensors_and_refuses_what_is_no_result():
    made = result_metrics.over_runs(torch.tensor([2.0, 4.0]), unit="number")
    assert made["values"] == [2.0, 4.0] and made["standard_error"] == pytest.approx(stdev([2, 4]) / 2**0.5)
    with pytest.raises(ValueError, match="at least one run"):
        result_metrics.over_runs([])
    with pytest.raises(ValueError, match="run 2 is nan"):
        result_metrics.over_runs([0.5, math.nan])


def test_what_over_runs_makes_is_a_metric_that_stays_as_it_is():
    for values, unit in (([0.1, 0.2, 0.4], "fraction"), ([0.25], "fraction"), ([1e9, 3.7, -2.0], "number"), ([0.0, 0.0], "fraction")):
        made = result_metrics.over_runs(values, unit=unit)
        assert result_metrics.metric("m", made, runs=99) == made and result_metrics.wrong_with("m", made) is None


def test_a_plain_number_gets_the_fields_that_are_not_known():
    known = {"standard_error": None, "n": None, "values": None}
    assert result_metrics.metric("top1", 0.5, runs=2) == known | {"value": 0.5, "runs": 2, "unit": "fraction"}
    given = {"value": 0.5, "values": np.array([0.25, 0.75])}
    assert result_metrics.metric("top1", given, runs=1)["runs"] == 2  # as many as there are values


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": [0.5, 0.7]}, "2 values for 3 runs"),
        ({"values": [0.5, 0.6, 0.8]}, "is 0.6, and its runs have a mean of 0.633"),
        ({"values": [0.5, 0.6, math.inf]}, "run 3 of metric top1 is inf"),
        ({"values": [0.2, 0.2, 1.4]}, "run 3 of metric top1 is 1.4; an accuracy is a fraction"),
        ({"values": [0.5, "high", 0.7]}, "run 2 of metric top1 is a number, not 'high'"),
        ({"values": "0.6"}, "a list with one number a run"),
        ({"values": 0.6}, "a list with one number a run"),
        ({"values": [], "runs": None}, "0 values for its runs"),
        ({"standard_error": -0.1}, "below zero"),
        ({"unit": "percent"}, "unit is one of fraction, number"),
        ({"mean": 0.6}, "give value and, where known"),
    ],
)
def test_wrong_metrics_are_refused_when_made_and_when_read(changes, message):
    good = {"value": 0.6, "runs": 3, "values": [0.5, 0.6, 0.7]}
    assert result_metrics.wrong_with("top1", good) is None
    with pytest.raises(ValueError, match=message):
        result_metrics.metric("top1", good | changes, runs=1)
    assert result_metrics.wrong_with("top1", good | changes)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (0.6, "wrong form"),
        ({}, "no finite value"),
        ({"value": "0.6"}, "no finite value"),  # a file holds numbers as numbers
        ({"value": True}, "no finite value"),
        ({"value": 10**400, "unit": "number"}, "no finite value"),
        ({"value": 0.6, "standard_error": "0.1"}, "standard error of metric 'top1'"),
        ({"value": 0.6, "n": 2.5}, "'n' of metric 'top1'"),
        ({"value": 0.6, "runs": 0}, "'runs' of metric 'top1'"),
        ({"value": 0.6, "values": ["0.6"]}, "list of finite numbers"),
        ({"value": 0.6, "values": {"0": 0.6}}, "list of finite numbers"),
        ({"value": 0.6, "unit": []}, "unit is one of"),
    ],
)
def test_what_a_file_may_not_say(given, message):
    assert message in result_metrics.wrong_with("top1", given)
