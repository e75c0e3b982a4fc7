"""Methods beside each other: bars, differences with their intervals, and single numbers."""

import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np

from sslcourse.plots.style import COLOURS, MARKERS, show


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


def strips(groups: Mapping[str, Sequence[float]], *, title: str, xlabel: str, mark: float | None = None, mark_name: str = "") -> None:
    """Every single number as a dot, a row a group, with mean and standard deviation. mark: a value to be marked across all rows."""
    values = {name: np.asarray(list(group), float) for name, group in groups.items()}
    figure, axis = plt.subplots(figsize=(7.6, 0.72 * len(values) + 1.2), layout="tight")
    told, generator = [], np.random.default_rng(0)
    for i, (name, group) in enumerate(values.items()):
        heights = i + generator.uniform(-0.17, 0.17, len(group)) * (len(group) > 1)
        axis.plot(group, heights, linestyle="", alpha=0.6, markersize=5, marker=MARKERS[i % 8], color=COLOURS[i % 8])
        axis.plot([group.mean()] * 2, [i - 0.32, i + 0.32], color="black", linestyle="-", marker="", linewidth=1.6)
        text = f"{group.mean():.1f}" + (f", deviation {group.std(ddof=1):.1f}" if len(group) > 1 else "")
        axis.text(1.02, i, text.replace("-", "−"), transform=axis.get_yaxis_transform(), va="center", fontsize=9)
        told.append(f"{name}: {len(group)} numbers from {group.min():.1f} to {group.max():.1f}, mean {text}")
    if mark is not None:
        axis.axvline(mark, color="0.35", linestyle=":", linewidth=1.3)
        axis.annotate(mark_name, (mark, 0), xycoords=("data", "axes fraction"), xytext=(3, 3), textcoords="offset points", fontsize=8.5)
        told.append(f"{mark_name or 'the mark'} is at {mark:.1f}")
    axis.set_yticks(range(len(values)), list(values))
    axis.set_ylim(len(values) - 0.5, -0.5)
    axis.grid(axis="y", visible=False)
    axis.set(xlabel=xlabel)
    axis.set_title(title, x=0)
    show(figure, f"{title}. {xlabel}: {'; '.join(told)}.")
