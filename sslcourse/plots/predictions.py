"""Figures of what classifiers answer: how sure they are, where two of them differ, what a threshold costs, and comparisons with intervals.

They follow the rules of `plots`: titles are the caller's, the alternative text is written from the data, and nothing is told by colour
alone.
"""

import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.transforms import Bbox

from sslcourse.evaluation.calibration import Calibration
from sslcourse.plots.style import COLOURS, LINES, MARKERS, show

SEEN = 0.01  # part of the images that a bin of a reliability diagram needs to have a point


def _array(values) -> np.ndarray:
    return torch.as_tensor(values).detach().cpu().double().numpy() if not isinstance(values, np.ndarray) else values.astype(float)


def reliability(calibrations: Mapping[str, Calibration], *, title: str) -> None:
    """Accuracy against confidence, a line a classifier, with the diagonal where promise and truth agree; below, how often it is how sure.

    calibrations: name -> Calibration. Points stand at a bin's mean confidence and are larger the more images the bin has; bins with less
    than a hundredth of the images have none, as a handful says nothing. The legend has the expected calibration error in percent.
    """
    if not calibrations:
        raise ValueError("There is no calibration to show.")
    figure, (top, below) = plt.subplots(2, 1, figsize=(7.6, 5.4), sharex=True, gridspec_kw={"height_ratios": [3.4, 1]})
    top.plot([0, 100], [0, 100], color="0.45", linestyle=":", linewidth=1.4, marker="")
    top.text(3, 7, "as sure as right", rotation=45, rotation_mode="anchor", transform_rotates_text=True, fontsize=8.5, color="0.35")
    told = []
    for i, (name, found) in enumerate(calibrations.items()):
        share = np.asarray(found.bin_count) / found.n
        there = share >= SEEN
        there[share.argmax()] = True
        x, y = 100 * np.asarray(found.bin_confidence)[there], 100 * np.asarray(found.bin_accuracy)[there]
        colour, line = COLOURS[i % 8], LINES[i % 4]
        label = f"{name}: ECE {100 * found.ece:.1f} %"
        top.plot(x, y, color=colour, linestyle=line, marker="", linewidth=1.4)
        top.scatter(x, y, s=20 + 180 * share[there], color=colour, marker=MARKERS[i % 8], zorder=3, edgecolors="white", linewidths=0.6)
        top.plot([], [], color=colour, linestyle=line, marker=MARKERS[i % 8], label=label)
        edges = np.linspace(0, 100, len(share) + 1)
        below.stairs(100 * share, edges, color=colour, linestyle=line, linewidth=1.6)
        told.append(
            f"{name} is {100 * found.mean_confidence:.1f} percent sure and {100 * found.accuracy:.1f} percent right, expected calibration "
            f"error {100 * found.ece:.1f}; its surest bin, with {100 * share[there][-1]:.0f} percent of the images, is {x[-1]:.0f} percent "
            f"sure and {y[-1]:.0f} percent right"
        )
    top.set(ylabel="accuracy, %", xlim=(0, 102), ylim=(0, 102))
    top.set_title(title)
    top.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9)  # beside: lines can run through every corner
    below.set(xlabel="confidence, %", ylabel="images, %")
    figure.tight_layout()
    show(figure, f"{title}. Accuracy against confidence; on the diagonal they agree: {'; '.join(told)}.")


def coverage_and_precision(thresholds, coverage, precision, *, title: str, chosen: float | None = None) -> None:
    """What a threshold of confidence lets through, and how much of that is right. All are fractions between 0 and 1.

    thresholds: (T,), rising. coverage: (T,), part of the images that are at least so sure. precision: (T,), part of those that are right,
    NaN where there are none. chosen: a threshold to be marked.
    """
    at, parts = _array(thresholds), {"coverage": _array(coverage), "precision": _array(precision)}
    if at.ndim != 1 or not len(at) or any(values.shape != at.shape for values in parts.values()):
        shapes = ", ".join(f"{name} {values.shape}" for name, values in {"thresholds": at, **parts}.items())
        raise ValueError(f"Each threshold needs its coverage and its precision, not {shapes}.")
    figure, axis = plt.subplots(figsize=(6.4, 3.6))
    told = []
    for i, (name, values) in enumerate(parts.items()):
        dots = {"marker": MARKERS[i], "markevery": max(1, len(at) // 12)}
        axis.plot(at, 100 * values, color=COLOURS[i], linestyle=LINES[i], label=name, **dots)
        finite = np.isfinite(values)
        if finite.any():
            first, last = 100 * values[finite][0], 100 * values[finite][-1]
            told.append(f"{name} goes from {first:.1f} to {last:.1f} percent" + ("" if finite.all() else f" at {at[finite][-1]:.3g}"))
        else:
            told.append(f"{name} is never known")
    if chosen is not None:
        axis.axvline(chosen, color="black", linestyle=":", linewidth=1.2)
        axis.annotate(f"{chosen:g}", (chosen, 1), xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=9)
        k = int(np.abs(at - chosen).argmin())
        told.append(
            f"at {at[k]:.3g}, nearest to the chosen {chosen:g}, {' and '.join(f'{name} {100 * v[k]:.1f}' for name, v in parts.items())}"
        )
    axis.set(xlabel="threshold of confidence", ylabel="%", ylim=(0, 103))
    axis.set_title(title, pad=16 if chosen is not None else None)
    axis.legend()
    figure.tight_layout()
    show(figure, f"{title}. Coverage and precision against the threshold, from {at[0]:.3g} to {at[-1]:.3g}: {'; '.join(told)}.")


def _row_percent(counts) -> np.ndarray:
    """Counts (C, C) as percent of each row; zeros where a class has no images."""
    counts = _array(counts)
    return 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)


def confusion_difference(first, second, *, title: str, names: Sequence[str]) -> None:
    """Where the second classifier answers otherwise than the first: its confusion matrix less the first's, in points of each true class.

    first, second: evaluation.Results on the same images. names: what the two are called. Blue with a plus is more often, red with a minus
    less often; blue is good on the diagonal and bad beside it.
    """
    if list(first.class_names) != list(second.class_names) or not torch.equal(first.labels, second.labels):
        raise ValueError("A difference of confusions needs two results on the same images with the same classes.")
    if len(names) != 2:
        raise ValueError(f"names are those of the two classifiers, not {list(names)}.")
    classes, (before, after) = list(first.class_names), names
    change = _row_percent(second.confusion) - _row_percent(first.confusion)
    k, largest = len(classes), max(float(np.abs(change).max()), 1.0)
    side = min(0.5 * k + 1.9, 8)
    figure, axis = plt.subplots(figsize=(side + 1.5, side + 0.1))
    drawn = axis.imshow(change, cmap="RdBu", vmin=-largest, vmax=largest)
    bar = figure.colorbar(drawn, ax=axis, label="points", shrink=0.85)
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:+.0f}" if value else "0")
    if k <= 20:
        for i, j in zip(*np.nonzero(np.abs(change) > 0.5), strict=True):
            ink = "white" if abs(change[i, j]) > 0.6 * largest else "black"
            axis.text(j, i, f"{change[i, j]:+.0f}".replace("-", "−"), ha="center", va="center", fontsize=8.5, color=ink)
    for i in range(k):  # the diagonal means something else than the rest
        axis.add_patch(plt.Rectangle((i - 0.5, i - 0.5), 1, 1, fill=False, edgecolor="black", linewidth=1))
    axis.set_xticks(range(k), classes, rotation=45, ha="right")
    axis.set_yticks(range(k), classes)
    axis.grid(False)
    axis.set(xlabel="predicted", ylabel="true")
    axis.set_title(title)
    figure.tight_layout()
    diagonal, beside = np.diag(change), change - np.diag(np.diag(change))
    told = f"{after} gets {(diagonal > 0.5).sum()} classes better than {before} and {(diagonal < -0.5).sum()} worse"
    best, worst = int(diagonal.argmax()), int(diagonal.argmin())
    told += f"; most gained by {classes[best]}, {diagonal[best]:+.0f} points, least by {classes[worst]}, {diagonal[worst]:+.0f}"
    for word, at in (("more", int(beside.argmax())), ("less", int(beside.argmin()))):
        i, j = divmod(at, k)
        told += f"; {classes[i]} taken for {classes[j]} {abs(beside[i, j]):.0f} points {word} often" if abs(beside[i, j]) >= 0.5 else ""
    show(figure, f"{title}. Confusion matrix of {after} less that of {before}, in points of each true class: {told}.")


def confusions_over_time(matrices: Sequence, titles: Sequence[str], class_names: Sequence[str], *, title: str) -> None:
    """How the confusion matrix changes while something is trained: small matrices in the order given, rows true, columns predicted.

    matrices: counts (C, C), each shown in percent of its rows. titles: one a matrix, such as "step 200". Above each panel
    stands the mean of its diagonal, the accuracy averaged over classes.
    """
    if not len(matrices) or len(titles) != len(matrices):
        raise ValueError(f"Each matrix needs its title, and there has to be one: {len(matrices)} matrices, {len(titles)} titles.")
    k = len(class_names)
    if any(_array(counts).shape != (k, k) for counts in matrices):
        raise ValueError(f"Each matrix has a row and a column for each of {k} classes.")
    rows = -(-len(matrices) // 4)
    across = -(-len(matrices) // rows)
    figure, axes = plt.subplots(rows, across, figsize=(2.35 * across + 1.5, 2.55 * rows + 1.5), squeeze=False, layout="constrained")
    figure.get_layout_engine().set(h_pad=0.09)
    told = []
    for i, axis in enumerate(axes.flat):
        if i >= len(matrices):
            axis.axis("off")
            continue
        percent = _row_percent(matrices[i])
        drawn = axis.imshow(percent, cmap="Blues", vmin=0, vmax=100)
        there = percent.any(1)  # a class without images has no row to speak of
        right = float(np.diag(percent)[there].mean()) if there.any() else math.nan
        axis.set_title(f"{titles[i]}\n{right:.0f} % right", fontsize=9.5, fontweight="normal")
        axis.grid(False)
        axis.set_xticks(range(k), class_names if i + across >= len(matrices) else [""] * k, rotation=90, fontsize=8)
        axis.set_yticks(range(k), class_names if i % across == 0 else [""] * k, fontsize=8)
        beside = percent - np.diag(np.diag(percent))
        true, said = divmod(int(beside.argmax()), k)
        worst = f", most often {class_names[true]} taken for {class_names[said]}, {beside[true, said]:.0f} percent" if beside.any() else ""
        told.append(f"{titles[i]}: {right:.0f} percent right{worst}")
    figure.colorbar(drawn, ax=axes, label="% of the true class", shrink=0.8, aspect=30)
    figure.supxlabel("predicted", fontsize=10)
    figure.supylabel("true", fontsize=10)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11.5)
    show(figure, f"{title}. {len(matrices)} confusion matrices of {k} classes, averaged over classes: {'; '.join(told)}.")


def forest(rows: Mapping[str, tuple[float, float, float]], *, title: str, xlabel: str) -> None:
    """Differences with their intervals about a line at zero, a row each. rows: name -> (difference, low, high).

    An interval that leaves zero out has a filled marker, one that holds it an open one; an interval of NaN is not drawn.
    """
    values = {name: tuple(float(v) for v in row) for name, row in rows.items()}
    if not values:
        raise ValueError("There is no difference to show.")

    def signed(points: float) -> str:
        return f"{round(points, 1) + 0.0:+.1f}"  # never -0.0

    for name, (difference, low, high) in values.items():
        if not math.isfinite(difference) or low > difference or high < difference:
            raise ValueError(f"{name!r} needs a finite difference that lies in its interval, not {difference:g} in {low:g} to {high:g}.")
    figure, axis = plt.subplots(figsize=(7.6, 0.42 * len(values) + 1.25))
    axis.axvline(0, color="black", linestyle=":", linewidth=1.2)
    told = []
    for i, (name, (difference, low, high)) in enumerate(values.items()):
        known = math.isfinite(low) and math.isfinite(high)
        clear = known and (low > 0 or high < 0)
        colour = COLOURS[0] if difference >= 0 else COLOURS[1]
        if known:
            axis.plot([low, high], [i, i], color=colour, linestyle="-", linewidth=2, marker="|", markersize=8)
        axis.plot(difference, i, color=colour, linestyle="", marker="o" if difference >= 0 else "s", markersize=7,
                  markerfacecolor=colour if clear else "white")  # fmt: skip
        interval = f"{signed(low)} to {signed(high)}" if known else "interval unknown"
        text = f"{signed(difference)}  ({interval})".replace("-", "−")
        axis.text(1.02, i, text, transform=axis.get_yaxis_transform(), va="center", fontsize=9)
        told.append(f"{name} {signed(difference)}, {interval}" + (", without zero" if clear else ", with zero" if known else ""))
    axis.set_yticks(range(len(values)), list(values))
    axis.set_ylim(len(values) - 0.5, -0.5)
    axis.margins(x=0.08)
    axis.grid(axis="y", visible=False)
    axis.set(xlabel=xlabel)
    axis.set_title(title, x=0)
    figure.tight_layout()
    show(figure, f"{title}. {xlabel}, with intervals: {'; '.join(told)}.")


def cost_against_accuracy(rows: Mapping[str, tuple[float, float, float]], *, title: str) -> None:
    """What accuracy was had for how much time: a labelled point a row, minutes on a logarithmic axis.

    rows: name -> (minutes, accuracy in percent, its error in points or NaN).
    """
    values = {name: tuple(float(v) for v in row) for name, row in rows.items()}
    if not values:
        raise ValueError("There is no point to show.")
    if wrong := [name for name, (minutes, accuracy, _) in values.items() if not (0 < minutes < math.inf and math.isfinite(accuracy))]:
        raise ValueError(f"{wrong[0]!r} needs more than 0 minutes, for the axis is logarithmic, and a finite accuracy.")
    figure, axis = plt.subplots(figsize=(7.2, 4.2))
    told = []
    for i, (name, (minutes, accuracy, error)) in enumerate(values.items()):
        known = math.isfinite(error)
        axis.errorbar(minutes, accuracy, yerr=error if known else None, color=COLOURS[i % 7], marker=MARKERS[i % 8], markersize=7,
                      capsize=3, linestyle="")  # fmt: skip
        told.append(f"{name} {accuracy:.1f}" + (f" ± {error:.1f}" if known else "") + f" percent in {minutes:.3g} min")
    axis.set_xscale("log")
    least, most = (f(v[0] for v in values.values()) for f in (min, max))
    axis.set_xlim(least / 1.35, most * 1.35 * (most / least) ** 0.35)  # room for the last names
    ticks = [t for t in (m * 10.0**e for e in range(-3, 5) for m in (1, 2, 5)) if least / 1.35 <= t <= most * 1.35]
    axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axis.minorticks_off()
    axis.margins(y=0.1)
    axis.set(xlabel="minutes of training", ylabel="accuracy, %")
    axis.set_title(title)
    figure.tight_layout()
    _name_points(axis, values)
    show(figure, f"{title}. Accuracy against minutes of training: {'; '.join(told)}.")


def _name_points(axis, points: Mapping[str, tuple[float, float, float]], away: float = 9) -> None:
    """Each point's name beside it, where it covers no other name and no point with its error bar, as far as there is such a place.

    points: name -> (x, y, error).
    """
    frame, taken, places = axis.get_window_extent(), [], {}
    for name, (x, y, error) in points.items():
        spread = error if math.isfinite(error) else 0.0
        (left, low), (_, high) = axis.transData.transform([(x, y - spread), (x, y + spread)])
        taken.append(Bbox([[left - 7, low - 7], [left + 7, high + 7]]))
        places[name] = (x, y)
    for name in sorted(places, key=lambda name: places[name][1]):
        text = axis.annotate(name, places[name], xytext=(away, 0), textcoords="offset points", va="center", fontsize=9)
        tried = []
        for lift, side in ((lift, side) for lift in sorted(range(-60, 61, 4), key=abs) for side in (1, -1)):
            text.set(ha="left" if side > 0 else "right", position=(side * away, lift))
            box = text.get_window_extent()
            outside = box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1
            tried.append((outside, sum(box.overlaps(other) for other in taken), abs(lift), lift, side))
            if not outside and not tried[-1][1]:
                break
        *_, lift, side = min(tried)
        text.set(ha="left" if side > 0 else "right", position=(side * away, lift))
        taken.append(text.get_window_extent())
