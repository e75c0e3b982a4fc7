"""What a loss should start near: its value when nothing was learned."""

import math
from numbers import Integral

_NEEDS = {  # what chance_loss must know for each method, and the least it can be
    "supervised": {"num_classes": 2},
    "rotation": {},
    "simclr": {"batch_size": 2},
    "byol": {},
    "barlow_twins": {"dim": 1, "batch_size": 2},
}


def chance_loss(
    method: str,
    *,
    batch_size: int | None = None,
    num_classes: int | None = None,
    dim: int | None = None,
    temperature: float | None = None,
    lambda_param: float = 5e-3,
) -> float:
    """The value of a loss when nothing was learned: where training should start, and where a loss that stays there has learned nothing.

    batch_size: N images, so 2N views. dim: D of the projections. Arguments that the method does not need are ignored.

    * "supervised": ln(num_classes), each class equally probable. "rotation": ln 4.
    * "simclr": ln(2N − 1), each other view equally probable. It holds when all similarities are equal, or small beside the temperature τ.
      Random directions in D dimensions have similarities of variance 1/D, and the loss lies about 1/(2Dτ²) higher: 0.02 at D = 128 and
      τ = 0.5, but 0.4 at τ = 0.1. That is added when dim and temperature are given. Against simulated batches of N >= 128 it is right to
      0.06 as long as 2Dτ² >= 1; below that it is far too high, so it is refused.
    * "byol": 2, as 2 − 2·cosine of two independent directions.
    * "barlow_twins": D·N/(N − 1) + λ·D(D − 1)/(N − 1). The correlation of two independent normal columns, each normalised over N rows, has
      mean 0 and mean square exactly 1/(N − 1). The rule of thumb D + λD²/N is the same for a large batch and D/N lower else: at N = 32 and
      D = 256 it gives 266.2, this 274.8, simulated batches 274 ± 3. Columns that depend on each other raise it.

    Raises ValueError for an unknown method, and for an argument that is missing or too small.
    """
    if method not in _NEEDS:
        raise ValueError(f"chance_loss knows {', '.join(_NEEDS)}, not {method!r}.")
    given = {"batch_size": batch_size, "num_classes": num_classes, "dim": dim}
    for name, least in _NEEDS[method].items():
        if not isinstance(given[name], Integral) or given[name] < least:
            raise ValueError(f"chance_loss({method!r}) needs {name}, a whole number of at least {least}, not {given[name]}.")
    if method == "supervised":
        return math.log(num_classes)
    if method == "rotation":
        return math.log(4)
    if method == "byol":
        return 2.0
    if method == "barlow_twins":
        return dim * batch_size / (batch_size - 1) + lambda_param * dim * (dim - 1) / (batch_size - 1)
    return math.log(2 * batch_size - 1) + _spread_of_similarities(dim, temperature)


def _spread_of_similarities(dim: int | None, temperature: float | None) -> float:
    """ln of the mean of exp(s/τ) over similarities s of mean 0 and variance 1/D, to second order."""
    if dim is None or temperature is None:
        return 0.0
    if not (dim >= 1 and temperature > 0 and 2 * dim * temperature**2 >= 1):
        right = "a dim of at least 1 and a temperature of at least 1/sqrt(2·dim)"
        raise ValueError(f"chance_loss('simclr') corrects for {right}, not {dim} and {temperature}; leave them out for ln(2N − 1).")
    return 1 / (2 * dim * temperature**2)
