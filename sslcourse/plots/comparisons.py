"""Methods beside each other: bars, and differences with their intervals."""

import math
from collections.abc import Mapping

import matplotlib.pyplot as plt

from sslcourse.plots.style import COLOURS, show


def bars(values: Mapping[str, float], *, title: str, ylabel: str, errors: Mapping[str, float] = {}, chance: float | None = None):
    """One horizontal bar a name, with its number at the end and error bars where given."""
    names, numbers = list(values), [float(v) for v in values.values()]
    spread = [errors[n] if math.isfinite(errors.get(n, math.nan)) else 0.0 for n in names]
    room = 0.5 * (chance is not None)  # for its name, below the bars
    figure, axis = plt.subplots(figsize=(7.2, 0.42 * (len(names) + room) + 1.2), layout="tight")
    colours = [COLOURS[i % 6] for i in range(len(names))]
    axis.barh(names, numbers, xerr=spread if any(spread) else None, color=colours, capsize=3, height=0.65)
    shown = [f"{number:.1f}" + (f" ± {error:.1f}" if error else "") for number, error in zip(numbers, spread, strict=True)]
    for i, text in enumerate(shown):
        axis.text(numbers[i] + spread[i], i, f"  {text}", va="center", fontsize=9)
    if chance is not None:
        axis.axvline(chance, color="black", linestyle=":", linewidth=1.2)
        axis.text(chance, len(names) - 0.3, f"  guessing, {chance:.3g}", va="center", fontsize=8.5)
    axis.set_ylim(len(names) - 0.45 + room, -0.55)
    axis.margins(x=0.18)
    axis.set(xlabel=ylabel, title=title)
    told = "; ".join(f"{name} {text}" for name, text in zip(names, shown, strict=True))
    show(figure, f"{title}. {ylabel}: {told}" + (f"; guessing {chance:.1f}" if chance is not None else "") + ".")


def forest(rows: Mapping[str, tuple[float, float, float]], *, title: str, xlabel: str) -> None:
    """Differences with their intervals; filled where 0 is outside. rows: name -> (difference, low, high), NaN where not known."""
    figure, axis = plt.subplots(figsize=(7.6, 0.42 * len(rows) + 1.25), layout="tight")
    axis.axvline(0, color="black", linestyle=":", linewidth=1.2)
    told = []
    for i, (name, (difference, low, high)) in enumerate(rows.items()):
        known = math.isfinite(low) and math.isfinite(high)
        clear = known and (low > 0 or high < 0)
        colour, marker = (COLOURS[0], "o") if difference >= 0 else (COLOURS[1], "s")
        if known:
            axis.plot([low, high], [i, i], color=colour, linestyle="-", linewidth=2, marker="|", markersize=8)
        axis.plot(difference, i, color=colour, linestyle="", marker=marker, markersize=7, markerfacecolor=colour if clear else "white")
        at, start, end = (f"{round(points, 1) + 0.0:+.1f}" for points in (difference, low, high))  # never -0.0
        interval = f"{start} to {end}" if known else "interval unknown"
        axis.text(1.02, i, f"{at}  ({interval})".replace("-", "−"), transform=axis.get_yaxis_transform(), va="center", fontsize=9)
        told.append(f"{name} {at}, {interval}" + (", without zero" if clear else ", with zero" if known else ""))
    axis.set_yticks(range(len(rows)), list(rows))
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.margins(x=0.08)
    axis.grid(axis="y", visible=False)
    axis.set(xlabel=xlabel)
    axis.set_title(title, x=0)
    show(figure, f"{title}. {xlabel}, with intervals: {'; '.join(told)}.")
