"""Curves: numbers over epochs, labels or steps, and what a training run has measured on its way."""

import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator

from sslcourse.plots.style import COLOURS, LINES, MARKERS, heading, reference_line, show


def _line(axis, x, values, name: str, i: int, xlabel: str, ends: tuple[float, float], errors=None) -> str:
    """Draw one series in the i-th style and say where it goes. ends: the x between which the figure runs."""
    values = np.asarray(values, float)
    style = {"label": name, "color": COLOURS[i % 8], "linestyle": LINES[i % 4], "marker": MARKERS[i % 8]}
    if len(values) > 25:
        style["markevery"] = len(values) // 12
    if errors is not None:
        axis.errorbar(x, values, yerr=np.nan_to_num(np.asarray(errors, float)), capsize=3, **style)
    else:
        axis.plot(x, values, **style)
    finite = np.isfinite(values)
    if not finite.any():
        return f"{name} is never finite"
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
) -> None:  # fmt: skip
    """One line a series, with error bars where given and a dotted line at the chance level; values that are not finite leave gaps.

    x: of all series, or name -> x of each. ax: a panel of the caller's, who then shows the figure.
    """
    own = {name: np.asarray(x[name] if isinstance(x, Mapping) else x, float) for name in series}
    everywhere = np.sort(np.concatenate([*own.values()])) if isinstance(x, Mapping) else np.asarray(x, float)
    figure, axis = (ax.figure, ax) if ax is not None else plt.subplots(figsize=(6.4, 3.6))
    ends = (everywhere[0], everywhere[-1])
    told = [_line(axis, own[name], values, name, i, xlabel, ends, errors.get(name)) for i, (name, values) in enumerate(series.items())]
    if chance is not None:
        reference_line(axis, chance, chance_name)
        told.append(f"{chance_name} is at {chance:.3g}")
    if log_x:
        axis.set_xscale("log")
        ticks = np.unique(everywhere)
        axis.set_xticks(ticks, [f"{v:g}" for v in ticks])
        axis.minorticks_off()
    else:
        _whole_ticks(axis, everywhere)
    if ylim:
        axis.set_ylim(*ylim)
    axis.set(xlabel=xlabel, ylabel=ylabel, title=title)
    if len(series) > 1:
        axis.legend()
    if ax is None:
        figure.tight_layout()
        show(figure, f"{title}. {ylabel} against {xlabel}, from {ends[0]:g} to {ends[1]:g}: {'; '.join(told)}.")


def training_curves(history, *, title: str, num_classes: int) -> None:
    """Training and validation loss on the left, validation accuracy on the right, with what guessing has. history: a training.History."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.4, 3.4))
    epochs, guessing, told = history["epoch"], math.log(num_classes), []
    sparse = {"markevery": max(1, len(epochs) // 10)}
    for i, (column, name) in enumerate((("loss", "training loss"), ("validation_loss", "validation loss"))):
        values = np.asarray(history[column], float)
        left.plot(epochs, values, label=name, color=COLOURS[i], linestyle=LINES[i], marker=MARKERS[i], **sparse)
        finite = f"goes from {values[0]:.2f} to {values[-1]:.2f}, lowest {np.nanmin(values):.2f}" if np.isfinite(values).any() else ""
        told.append(f"{name} {finite or 'is never finite'}")
    reference_line(left, guessing, f"guessing, ln {num_classes}")
    told.append(f"the loss of guessing is {guessing:.2f}")
    shown = [v for column in ("loss", "validation_loss") for v in history[column] if math.isfinite(v) and v > 0]
    if shown and max(shown) > 30 * min(shown):
        left.set_yscale("log")
    left.set(xlabel="epoch", ylabel="cross-entropy", title="Loss")
    left.legend()
    accuracy = 100 * np.asarray(history["validation_accuracy"], float)
    right.plot(epochs, accuracy, color=COLOURS[2], marker=MARKERS[2], **sparse)
    right.set(xlabel="epoch", ylabel="validation accuracy, %", ylim=(0, 100), title="Accuracy")
    reference_line(right, 100 / num_classes, "guessing")
    told.append(f"guessing has {100 / num_classes:.3g} percent")
    if np.isfinite(accuracy).any():
        told.append(f"validation accuracy ends at {accuracy[-1]:.1f} percent, the best epoch had {np.nanmax(accuracy):.1f}")
    for axis in (left, right):
        _whole_ticks(axis, np.asarray(epochs, float))
    heading(figure, title)
    figure.tight_layout()
    show(figure, f"{title}. Two panels over {epochs[-1]:g} epochs: {'; '.join(told)}.")


# heading, axis label, {column: name}, (column, name) of a constant to compare with
_PRETRAINING = (
    ("Loss", "loss", {"loss": "training loss"}, ("chance_loss", "chance")),
    ("Accuracy", "accuracy, %", {"knn_accuracy": "kNN validation", "rotation_accuracy": "rotation"}, None),
    ("Spread of the features", "standard deviation", {"feature_std": "feature spread"}, ("healthy_std", "healthy")),
    ("Rank of the features", "effective rank", {"feature_rank": "feature rank"}, None),
)


def pretraining_curves(history, *, title: str, num_classes: int) -> None:
    """Loss, accuracy and the meters of collapse, a panel each. history: a training.History; what it lacks is left out.

    Columns: loss, the constant chance_loss; knn_accuracy, rotation_accuracy; feature_std, feature_rank, the constant healthy_std.
    All but the loss may be NaN in most rows: their points are joined.
    """
    measured = {}  # column -> epochs and values of the rows that have it, and but for the loss are not NaN
    for column in {name: None for row in history.rows for name in row}:
        rows = [row for row in history.rows if column in row and (column == "loss" or not math.isnan(row[column]))]
        measured[column] = np.array([row["epoch"] for row in rows], float), np.array([row[column] for row in rows], float)
    panels = [panel for panel in _PRETRAINING if any(column in measured for column in panel[2])]
    across = len(panels) if len(panels) < 4 else 2
    rows = len(panels) // across
    figure, axes = plt.subplots(rows, across, figsize=((5.4, 9.4, 10.8)[across - 1], 3.2 * rows + 0.2), squeeze=False)
    epochs, told = np.asarray(history["epoch"], float), ""
    ends = (epochs[0], epochs[-1])
    for axis, (name, ylabel, columns, constant) in zip(axes.flat, panels, strict=True):
        percent = ylabel == "accuracy, %"
        found, goes = [column for column in columns if column in measured], []
        for i, column in enumerate(found):
            x, values = measured[column]
            goes.append(_line(axis, x, values * (100 if percent else 1), columns[column], i, "epoch", ends))
        if constant and constant[0] in measured and np.isfinite(measured[constant[0]][1]).any():
            level = measured[constant[0]][1]
            level = level[np.isfinite(level)][-1]
            reference_line(axis, level, f"{constant[1]}, {level:.3g}")
            goes.append(f"{constant[1]} is {level:.3g}")
        for column in found if percent else ():
            guessing = 100 / {"knn_accuracy": num_classes, "rotation_accuracy": 4}[column]
            reference_line(axis, guessing, f"guessing, {columns[column]}" if len(found) > 1 else "guessing")
            goes.append(f"guessing for {columns[column]} has {guessing:.3g}")
        told += f" {ylabel.capitalize()}: {'; '.join(goes)}."
        margin = 0.03 * (ends[1] - ends[0]) or 0.5  # of all epochs, so that a loss that broke off is seen to
        axis.set(xlabel="epoch", ylabel=ylabel, xlim=(ends[0] - margin, ends[1] + margin), title=name)
        _whole_ticks(axis, epochs)
        if percent:
            axis.set_ylim(0, 100)
            axis.legend()
        else:
            low, high = axis.get_ylim()
            low = low if name == "Loss" else 0
            axis.set_ylim(low, high + 0.1 * (high - low))
    heading(figure, title)
    figure.tight_layout()
    show(figure, f"{title}. {len(panels)} panel{'s' if len(panels) > 1 else ''} over {ends[1]:g} epochs.{told}")
