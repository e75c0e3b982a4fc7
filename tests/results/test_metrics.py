"""A metric over runs, and in its full form."""

import math
from statistics import stdev

import numpy as np
import pytest
import torch

from sslcourse.results.metrics import metric, over_runs


def test_a_metric_over_runs_is_their_mean_with_its_standard_error():
    found = over_runs([0.5, 0.7, 0.6], n=1000)
    assert found["value"] == pytest.approx(0.6)
    assert found["standard_error"] == pytest.approx(0.1 / 3**0.5)  # sample deviation 0.1, three runs
    assert (found["n"], found["runs"], found["values"]) == (1000, 3, [0.5, 0.7, 0.6])  # in the order of the seeds
    alone = over_runs([0.5])
    assert alone["standard_error"] is None and alone["values"] == [0.5]  # one run says nothing about its own luck
    losses = over_runs(torch.tensor([2.0, 4.0]), unit="number")
    assert losses["values"] == [2.0, 4.0] and losses["standard_error"] == pytest.approx(stdev([2, 4]) / 2**0.5)


@pytest.mark.parametrize("values", [[], [0.5, math.nan], [math.inf]])
def test_over_runs_refuses_what_is_no_result(values):
    with pytest.raises(ValueError, match="one finite number a run"):
        over_runs(values)


@pytest.mark.parametrize("number", [0.5, torch.tensor(0.5), np.float64(0.5)])
def test_a_plain_number_gets_the_fields_that_are_not_known(number):
    known = {"standard_error": None, "n": None, "values": None, "unit": "fraction"}
    assert metric(number, runs=2) == metric({"value": number}, runs=2) == known | {"value": 0.5, "runs": 2}
    assert metric({"value": 0.5, "values": [0.25, 0.75]})["runs"] == 2  # as many as there are values
    made = over_runs([0.1, 0.2, 0.4])
    assert metric(made, runs=99) == made
