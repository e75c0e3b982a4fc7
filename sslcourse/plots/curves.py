"""Curves: numbers over epochs, labels or steps, and what a training run has measured on its way."""

import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator

from sslcourse.plots.style import LINES, heading, look, reference_line, show


def _line(axis, x, values, name: str, i: int, xlabel: str, ends: tuple[float, float], errors=None) -> str:
    """Draw one series in the i-th style and say where it goes. ends: the x between which the figure runs."""
    values = np.asarray(values, float)
    style = {"label": name, "linestyle": LINES[i % 4], **look(i)}
    style["markevery"] = len(values) // 12 if len(values) > 25 else 1
    if errors is not None:
        axis.errorbar(x, values, yerr=np.nan_to_num(np.asarray(errors, float)), capsize=3, **style)
    else:
        axis.plot(x, values, **style)
    finite = np.isfinite(values)
    if not finite.any():
        return f"{name} is never finite"
    if len(values) == 1:
        error = f" ± {errors[0]:.2g}" if errors is not None and math.isfinite(errors[0]) else ""
        return f"{name} has {values[0]:.3g}{error} at {xlabel} {x[0]:.3g}"
    first, last, low, high = *values[finite][[0, -1]], values[finite].min(), values[finite].max()
    also = "" if finite.all() else f", not finite from {xlabel} {x[~finite][0]:g}"
    also += "" if (x[0], x[-1]) == ends else f", {xlabel} {x[0]:g} to {x[-1]:g}"
    return f"{name} goes from {first:.3g} to {last:.3g} (least {low:.3g}, most {high:.3g}{also})"


def _whole_ticks(axis, x: np.ndarray) -> None:
    """Ticks at whole numbers only, where x are whole: passes, epochs, steps; there are no halves of them."""
    if x.size and (x % 1 == 0).all():
        axis.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))


def lines(
    x: Sequence[float] | Mapping[str, Sequence[float]], series: Mapping[str, Sequence[float]], *, title: str, xlabel: str, ylabel: str,
    errors: Mapping[str, Sequence[float]] = {}, chance: float | None = None, chance_name: str = "guessing", log_x: bool = False,
    ylim: tuple[float, float] | None = None, ax=None,
) -> str | None:  # fmt: skip
    """One line a series, with error bars where given and a dotted line at the chance level; values that are not finite leave gaps.

    x: of all series, or name -> x of each. The legend of more than three series stands beside the panel, where it covers no curve.
    ax: a panel of the caller's, who then shows the figure with what the text says of the lines, which is returned.
    """
    own = {name: np.asarray(x[name] if isinstance(x, Mapping) else x, float) for name in series}
    everywhere = np.sort(np.concatenate([*own.values()])) if isinstance(x, Mapping) else np.asarray(x, float)
    figure, axis = (ax.figure, ax) if ax is not None else plt.subplots(figsize=(8.8, 4.2) if len(own) > 3 else (6.4, 3.6), layout="tight")
    ends = (everywhere[0], everywhere[-1])
    told = [_line(axis, own[name], values, name, i, xlabel, ends, errors.get(name)) for i, (name, values) in enumerate(series.items())]
    if chance is not None:
        reference_line(axis, chance, chance_name)
        told.append(f"{chance_name} is at {chance:.3g}")
    if log_x:
        axis.set_xscale("log")
        ticks, steps = np.unique(everywhere), 10.0 ** np.arange(-4, 7)
        if (ticks[1:] < 1.25 * ticks[:-1]).any():  # whose numbers would cover each other
            ticks = np.array([t for step in steps for t in (step, 2 * step, 5 * step) if ticks[0] / 1.3 < t < 1.3 * ticks[-1]])
        axis.set_xticks(ticks, [f"{v:g}" for v in ticks])
        axis.minorticks_off()
    else:
        _whole_ticks(axis, everywhere)
    if ylim:
        axis.set_ylim(*ylim)
    axis.set(xlabel=xlabel, ylabel=ylabel, title=title)
    if len(series) > 1:
        axis.legend(**({"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "fontsize": 9.5} if len(series) > 3 else {}))
    if ax is None:
        show(figure, f"{title}. {ylabel} against {xlabel}, from {ends[0]:.4g} to {ends[1]:.4g}: {'; '.join(told)}.")
    return "; ".join(told) if ax is not None else None  # which a notebook would show below the figure


# heading, axis label, {column: name}
_PANELS = (
    ("Loss", "loss", {"loss": "training loss", "validation_loss": "validation loss"}),
    ("Accuracy", "accuracy, %", {"knn_accuracy": "kNN validation", "rotation_accuracy": "rotation", "validation_accuracy": "validation"}),
    ("Spread of the features", "standard deviation", {"feature_std": "feature spread"}),
    ("Rank of the features", "effective rank", {"feature_rank": "feature rank"}),
)


def training_curves(history, *, title: str, num_classes: int) -> None:
    """Losses, accuracies and the meters of collapse, a panel each. history: a training.History; what it lacks is left out.

    Columns: loss, validation_loss, the constant chance_loss; knn_accuracy, rotation_accuracy, validation_accuracy; feature_std,
    feature_rank, the constant healthy_std. All but the losses may be NaN in most rows: their points are joined.
    """
    measured = {}  # column -> epochs and values of the rows that have it, and but for the losses are not NaN
    for column in {name: None for row in history.rows for name in row}:
        rows = [row for row in history.rows if column in row and (column in _PANELS[0][2] or not math.isnan(row[column]))]
        measured[column] = np.array([row["epoch"] for row in rows], float), np.array([row[column] for row in rows], float)
    guessing = "guessing", 100 / num_classes
    levels = {"knn_accuracy": guessing, "validation_accuracy": guessing, "rotation_accuracy": ("guessing", 100 / 4)}
    levels |= {"loss": (f"guessing, ln {num_classes}", math.log(num_classes))} if "validation_loss" in measured else {}
    for column, constant, name in (("loss", "chance_loss", "chance"), ("feature_std", "healthy_std", "healthy")):
        if constant in measured and measured[constant][1].size:
            levels[column] = name, measured[constant][1][-1]
    panels = [panel for panel in _PANELS if any(column in measured for column in panel[2])]
    across = len(panels) if len(panels) < 4 else 2
    rows = len(panels) // across
    figure, axes = plt.subplots(rows, across, figsize=((5.4, 9.4, 10.8)[across - 1], 3.2 * rows + 0.2), squeeze=False, layout="tight")
    epochs, told = np.asarray(history["epoch"], float), ""
    ends = (epochs[0], epochs[-1])
    for axis, (heads, ylabel, columns) in zip(axes.flat, panels, strict=True):
        percent, goes = ylabel == "accuracy, %", []
        found = [column for column in columns if column in measured]
        for i, column in enumerate(found):
            x, values = measured[column]
            goes.append(_line(axis, x, values * (100 if percent else 1), columns[column], i, "epoch", ends))
        for column in filter(levels.get, found):
            name, level = levels[column]
            more = f", {level:.3g}" if not percent else f", {columns[column]}" if len(found) > 1 else ""
            reference_line(axis, level, name + more)
            goes.append(f"{name} for {columns[column]} is {level:.3g}" if percent else f"{name} is {level:.3g}")
        told += f" {ylabel.capitalize()}: {'; '.join(goes)}."
        margin = 0.03 * (ends[1] - ends[0]) or 0.5  # of all epochs, so that a loss that broke off is seen to
        axis.set(xlabel="epoch", ylabel=ylabel, xlim=(ends[0] - margin, ends[1] + margin), title=heads)
        _whole_ticks(axis, epochs)
        shown = [v for column in found for v in measured[column][1] if math.isfinite(v) and v > 0]
        if percent or len(found) > 1:
            axis.legend()
        if percent:
            axis.set_ylim(0, 100)
        elif len(found) > 1 and shown and max(shown) > 30 * min(shown):
            axis.set_yscale("log")
        else:
            low, high = axis.get_ylim()
            low = low if heads == "Loss" else 0
            axis.set_ylim(low, high + 0.1 * (high - low))
    heading(figure, title)
    show(figure, f"{title}. {len(panels)} panel{'s' if len(panels) > 1 else ''} over {ends[1]:g} epochs.{told}")


pretraining_curves = training_curves
