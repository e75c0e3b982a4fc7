"""A metric of a result record: one number, how sure it is, and the single runs behind it.

A metric is a dict {"value", "standard_error", "n", "runs", "values", "unit"}: n is the number of test images of a run, runs how many runs
the value averages over, values those runs one by one, in the order of the seeds. What is not known is None.
"""

import math
import statistics
from collections.abc import Mapping, Sequence

UNITS = ("fraction", "number")
_FIELDS = ("value", "standard_error", "n", "runs", "values", "unit")


def over_runs(values: Sequence[float], n: int | None = None, unit: str = "fraction") -> dict:
    """A metric from several runs: their mean, its standard error where there are two or more, and the runs themselves.

    values: one a run, in the order of the seeds. n: test images of each run.
    Raises ValueError for no values, and for one that is not finite.
    """
    values = [finite(f"run {k}", value) for k, value in enumerate(values, 1)]
    if not values:
        raise ValueError("over_runs needs the value of at least one run")
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return {"value": statistics.mean(values), "standard_error": error, "n": n, "runs": len(values), "values": values, "unit": unit}


def finite(name: str, value) -> float:
    """value as a float; ValueError, which names it, where it is no finite number."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} is a number, not {value!r}") from None
    if not math.isfinite(number):
        raise ValueError(f"{name} is {number}, which is not a result: find where it became so before recording it")
    return number


def metric(name: str, given, runs: int) -> dict:
    """A metric in its full form from a number, or from a dict with some of its fields; see above.

    runs: how many runs there are, where `given` says it neither in "runs" nor by its "values".
    Raises ValueError, naming the metric, for what is not finite, accuracies outside 0–1, and values that are not the runs of this mean.
    """
    given = dict(given) if isinstance(given, Mapping) else {"value": given}
    if set(given) - set(_FIELDS) or "value" not in given:
        raise ValueError(f"metric {name}: give value and, where known, {', '.join(_FIELDS[1:])}; not {sorted(map(str, given))}")
    unit = given.get("unit", "fraction")
    if unit not in UNITS:
        raise ValueError(f"metric {name}: unit is one of {', '.join(UNITS)}, not {unit!r}")
    value = _in_unit(f"metric {name}", given["value"], unit)
    error = given.get("standard_error")
    if error is not None:
        error = finite(f"the standard error of metric {name}", error)
        if error < 0:
            raise ValueError(f"the standard error of metric {name} is {error:g}, below zero")
    n, values = given.get("n"), given.get("values")
    if values is not None:
        values = _runs_of(name, values, value, given.get("runs"), unit)
        runs = len(values)
    return {
        "value": value,
        "standard_error": error,
        "n": None if n is None else int(n),
        "runs": int(given.get("runs") or runs),
        "values": values,
        "unit": unit,
    }


def wrong_with(name: str, given) -> str | None:
    """Why this, read from a file, is not a metric; None if it is one. A file's numbers are JSON's own: no text that looks like one."""
    if not isinstance(given, Mapping):
        return f"metric {name!r} has the wrong form"
    if not is_finite_number(given.get("value")):
        return f"metric {name!r} has no finite value"
    error, values = given.get("standard_error"), given.get("values")
    if not (error is None or is_finite_number(error)):
        return f"the standard error of metric {name!r} is not a finite number"
    for key, least in (("n", 0), ("runs", 1)):
        if not (given.get(key) is None or type(given[key]) is int and given[key] >= least):
            return f"{key!r} of metric {name!r} is not a whole number from {least}"
    if values is not None and not (isinstance(values, list) and all(map(is_finite_number, values))):
        return f"the values of metric {name!r} are not a list of finite numbers"
    try:
        metric(name, given, runs=1)
    except ValueError as reason:
        return str(reason)
    return None


def is_finite_number(value) -> bool:
    """Whether this is an int or a float, no bool and no text, that arithmetic can take."""
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:  # a whole number beyond every float
        return False


def _in_unit(name: str, value, unit: str) -> float:
    value = finite(name, value)
    if unit == "fraction" and not 0 <= value <= 1:
        raise ValueError(f"{name} is {value:g}; an accuracy is a fraction between 0 and 1, anything else needs unit='number'")
    return value


def _runs_of(name: str, values, mean: float, runs: int | None, unit: str) -> list[float]:
    """The single runs, checked: as many as there were, each possible, and the mean is theirs."""
    if isinstance(values, (str, Mapping)) or not hasattr(values, "__iter__"):
        raise ValueError(f"the values of metric {name} are a list with one number a run, not {values!r}")
    values = [_in_unit(f"run {k} of metric {name}", value, unit) for k, value in enumerate(values, 1)]
    if not values or runs is not None and len(values) != runs:
        raise ValueError(f"metric {name} has {len(values)} values for {runs or 'its'} runs; give one a run, in the order of the seeds")
    if not math.isclose(statistics.mean(values), mean, rel_tol=1e-6, abs_tol=1e-9):
        raise ValueError(f"metric {name} is {mean:g}, and its runs have a mean of {statistics.mean(values):g}")
    return values
