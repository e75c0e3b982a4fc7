"""A metric of a result record: one number, how sure it is, and the single runs behind it.

A metric is a dict {"value", "standard_error", "n", "runs", "values", "unit"}: n is the number of test images of a run, runs how many runs
the value averages over, values those runs one by one, in the order of the seeds; unit is "fraction" (an accuracy) or "number". What is not
known is None.
"""

import math
import statistics
from collections.abc import Mapping, Sequence

from sslcourse.files import plain


def over_runs(values: Sequence[float], n: int | None = None, unit: str = "fraction") -> dict:
    """A metric from several runs: their mean, its standard error where there are two or more, and the runs themselves.

    values: one a run, in the order of the seeds. n: test images of each run.
    Raises ValueError for no values, and for one that is not finite.
    """
    values = [float(value) for value in values]
    if not values or not all(map(math.isfinite, values)):
        raise ValueError(f"over_runs needs one finite number a run, at least one, not {values}")
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return {"value": statistics.mean(values), "standard_error": error, "n": n, "runs": len(values), "values": values, "unit": unit}


def metric(given, runs: int = 1) -> dict:
    """A metric in its full form, from a number or a dict with some of its fields. runs: how many there are, where `given` does not say."""
    given = plain(given)
    given = given if isinstance(given, Mapping) else {"value": given}
    found = {"standard_error": None, "n": None, "runs": None, "values": None, "unit": "fraction"} | given
    return found | {"runs": found["runs"] or len(found["values"] or ()) or runs}
