"""What a classifier answers and how sure it is: the probabilities of one image, confidence against accuracy, what a threshold costs."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Patch
from torch import Tensor

from sslcourse.plots.curves import lines
from sslcourse.plots.style import COLOURS, LINES, MARKERS, show


def probabilities(values: Tensor, class_names: Sequence[str], *, title: str, truth: int) -> None:
    """One bar per class for a single image's probabilities, the true class marked. values: (C,)."""
    figure, axis = plt.subplots(figsize=(6.4, 2.4), layout="tight")
    numbers = 100 * np.asarray(values, float)
    look = {"facecolor": COLOURS[2], "hatch": "//", "edgecolor": "white"}
    axis.bar(range(len(numbers)), numbers, color=COLOURS[0])[truth].set(**look)
    axis.legend(handles=[Patch(label=f"true class: {class_names[truth]}", **look)])
    axis.set_xticks(range(len(numbers)), class_names, rotation=35, ha="right")
    axis.set(ylabel="probability, %", title=title, ylim=(0, 100))
    best = int(numbers.argmax())
    told = f"highest {class_names[best]} with {numbers[best]:.0f} percent; the true class, {class_names[truth]}, gets {numbers[truth]:.0f}"
    show(figure, f"{title}. Probabilities over {len(numbers)} classes: {told}.")


def reliability(calibrations: Mapping, *, title: str) -> None:
    """Accuracy against confidence, a line a classifier, with the diagonal where they agree; below, how often it is how sure.

    calibrations: name -> evaluation.Calibration. Points are larger the more images a bin has; bins with less than 1 % have none.
    """
    figure, (top, below) = plt.subplots(2, 1, figsize=(7.6, 5.4), sharex=True, gridspec_kw={"height_ratios": [3.4, 1]}, layout="tight")
    top.plot([0, 100], [0, 100], color="0.45", linestyle=":", linewidth=1.4, marker="")
    top.text(3, 7, "as sure as right", rotation=45, rotation_mode="anchor", transform_rotates_text=True, fontsize=8.5, color="0.35")
    told = []
    for i, (name, found) in enumerate(calibrations.items()):
        share = np.asarray(found.bin_count) / sum(found.bin_count)
        there = share >= 0.01
        there[share.argmax()] = True
        x, y = 100 * np.asarray(found.bin_confidence)[there], 100 * np.asarray(found.bin_accuracy)[there]
        look, marker = {"color": COLOURS[i % 8], "linestyle": LINES[i % 4]}, MARKERS[i % 8]
        top.plot(x, y, marker="", linewidth=1.4, **look)
        top.scatter(x, y, s=20 + 180 * share[there], color=COLOURS[i % 8], marker=marker, zorder=3, edgecolors="white", linewidths=0.6)
        top.plot([], [], marker=marker, label=f"{name}: ECE {100 * found.ece:.1f} %", **look)
        below.stairs(100 * share, np.linspace(0, 100, len(share) + 1), linewidth=1.6, **look)
        sure, right, ece = (100 * part for part in (found.mean_confidence, found.accuracy, found.ece))
        surest = f"with {100 * share[there][-1]:.0f} percent of the images, is {x[-1]:.0f} percent sure and {y[-1]:.0f} percent right"
        about = f"{sure:.1f} percent sure and {right:.1f} percent right, expected calibration error {ece:.1f}"
        told.append(f"{name} is {about}; its surest bin, {surest}")
    top.set(ylabel="accuracy, %", xlim=(0, 102), ylim=(0, 102), title=title)
    top.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9)  # beside: lines can run through every corner
    below.set(xlabel="confidence, %", ylabel="images, %")
    show(figure, f"{title}. Accuracy against confidence; on the diagonal they agree: {'; '.join(told)}.")


def coverage_and_precision(thresholds, coverage, precision, *, title: str, chosen: float) -> None:
    """What a threshold of confidence lets through, and how much of that is right, as fractions (T,). chosen: a threshold to be marked.

    coverage: part of the images that are at least so sure. precision: part of those that are right, NaN where there are none.
    """
    at = np.asarray(thresholds, float)
    parts = {"coverage": 100 * np.asarray(coverage, float), "precision": 100 * np.asarray(precision, float)}
    figure, axis = plt.subplots(figsize=(6.4, 3.6), layout="tight")
    told = lines(at, parts, title="", xlabel="threshold of confidence", ylabel="%", ylim=(0, 103), ax=axis)
    axis.axvline(chosen, color="black", linestyle=":", linewidth=1.2)
    axis.annotate(f"{chosen:g}", (chosen, 1), xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=9)
    axis.set_title(title, pad=16)
    k = int(np.abs(at - chosen).argmin())
    there = " and ".join(f"{name} {values[k]:.1f}" for name, values in parts.items())
    told += f"; at {at[k]:.3g}, nearest to the chosen {chosen:g}, {there} percent"
    show(figure, f"{title}. Coverage and precision in percent against the threshold, from {at[0]:.3g} to {at[-1]:.3g}: {told}.")
