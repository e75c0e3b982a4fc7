"""Methods beside each other: bars, differences with their intervals, and what accuracy was had for how much time."""

import itertools
import math
from collections.abc import Mapping

import matplotlib.pyplot as plt
from matplotlib.transforms import Bbox

from sslcourse.plots.style import COLOURS, MARKERS, show


def bars(values: Mapping[str, float], *, title: str, ylabel: str, errors: Mapping[str, float] = {}, chance: float | None = None):
    """One horizontal bar a name, with its number at the end and error bars where given."""
    names, numbers = list(values), [float(v) for v in values.values()]
    spread = [errors[n] if math.isfinite(errors.get(n, math.nan)) else 0.0 for n in names]
    room = 0.5 * (chance is not None)  # for its name, below the bars
    figure, axis = plt.subplots(figsize=(7.2, 0.42 * (len(names) + room) + 1.2))
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
    figure.tight_layout()
    told = "; ".join(f"{name} {text}" for name, text in zip(names, shown, strict=True))
    show(figure, f"{title}. {ylabel}: {told}" + (f"; guessing {chance:.1f}" if chance is not None else "") + ".")


def forest(rows: Mapping[str, tuple[float, float, float]], *, title: str, xlabel: str) -> None:
    """Differences with their intervals; filled where 0 is outside. rows: name -> (difference, low, high), NaN where not known."""
    figure, axis = plt.subplots(figsize=(7.6, 0.42 * len(rows) + 1.25))
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
    figure.tight_layout()
    show(figure, f"{title}. {xlabel}, with intervals: {'; '.join(told)}.")


def cost_against_accuracy(rows: Mapping[str, tuple[float, float, float]], *, title: str) -> None:
    """A labelled point a row, minutes on a logarithmic axis. rows: name -> (minutes, accuracy in percent, its error in points or NaN)."""
    figure, axis = plt.subplots(figsize=(7.2, 4.2))
    told = []
    for i, (name, (minutes, accuracy, error)) in enumerate(rows.items()):
        known = math.isfinite(error)
        look = {"color": COLOURS[i % 7], "marker": MARKERS[i % 8], "markersize": 7, "capsize": 3, "linestyle": ""}
        axis.errorbar(minutes, accuracy, yerr=error if known else None, **look)
        told.append(f"{name} {accuracy:.1f}" + (f" ± {error:.1f}" if known else "") + f" percent in {minutes:.3g} min")
    axis.set_xscale("log")
    least, most = (end(minutes for minutes, _, _ in rows.values()) for end in (min, max))
    axis.set_xlim(least / 1.35, most * 1.35 * (most / least) ** 0.35)  # room for the last names
    ticks = [t for t in (m * 10.0**e for e in range(-3, 5) for m in (1, 2, 5)) if least / 1.35 <= t <= most * 1.35]
    axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axis.minorticks_off()
    axis.margins(y=0.1)
    axis.set(xlabel="minutes of training", ylabel="accuracy, %", title=title)
    figure.tight_layout()
    _name_points(axis, rows)
    show(figure, f"{title}. Accuracy against minutes of training: {'; '.join(told)}.")


def _name_points(axis, points: Mapping[str, tuple[float, float, float]], away: float = 9) -> None:
    """Each point's name beside it, where it covers no other name and no error bar, if it can. points: name -> (x, y, error)."""
    frame, taken = axis.get_window_extent(), []
    for x, y, error in points.values():
        spread = error if math.isfinite(error) else 0.0
        (left, low), (_, high) = axis.transData.transform([(x, y - spread), (x, y + spread)])
        taken.append(Bbox([[left - 7, low - 7], [left + 7, high + 7]]))
    for name, (x, y, _) in sorted(points.items(), key=lambda point: point[1][1]):
        text, tried = axis.annotate(name, (x, y), xytext=(away, 0), textcoords="offset points", va="center", fontsize=9), []
        for lift, side in itertools.product(sorted(range(-60, 61, 4), key=abs), (1, -1)):  # the nearest first
            text.set(ha="left" if side > 0 else "right", position=(side * away, lift))
            box = text.get_window_extent()
            tried.append((frame.count_contains(box.get_points()) < 2, box.count_overlaps(taken), abs(lift), lift, side))
            if tried[-1][:2] == (False, 0):
                break
        *_, lift, side = min(tried)
        text.set(ha="left" if side > 0 else "right", position=(side * away, lift))
        taken.append(text.get_window_extent())
