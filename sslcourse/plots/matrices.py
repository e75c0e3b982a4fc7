"""Matrices as colours: similarities, correlations, and who is taken for whom."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from sslcourse.plots.style import heading, show

NAMED = 20  # classes that a figure has room to name


def matrix(
    values, *, title: str, row_names: Sequence[str] | None = None, column_names: Sequence[str] | None = None, xlabel: str = "",
    ylabel: str = "", colour_label: str = "", limits: tuple[float, float] | None = None, numbers: bool | None = None,
) -> None:  # fmt: skip
    """A matrix as colours: red and blue about zero if it has both signs, else light to dark. Cells that are not finite are hatched.

    values: (rows, columns). limits: the values at the ends of the colours. numbers: write them into the cells (None: up to 12 × 12).
    Neither names nor numbers are written along a side with more than 20.
    """
    values = np.asarray(values.detach().cpu().float() if isinstance(values, Tensor) else values, float)
    n, m = values.shape
    cells = np.ma.masked_invalid(values)
    low, high = float(cells.min()), float(cells.max())
    start, end = limits or (low, high)
    both = low < 0 < high or start < 0 < end
    start, end = (-max(-start, end), max(-start, end)) if both else (start, end)
    unit = min(0.55, 6.5 / max(n, m))
    figure, axis = plt.subplots(figsize=(max(unit * m, 2.2) + 2.4, max(unit * n, 1.6) + 1.1), layout="tight")
    axis.patch.set(facecolor="0.75", edgecolor="0.45", hatch="////", linewidth=0)
    drawn = axis.imshow(cells, cmap="RdBu_r" if both else "Blues", vmin=start, vmax=end, interpolation="nearest", aspect="auto")
    figure.colorbar(drawn, ax=axis, label=colour_label)
    if max(n, m) <= (NAMED if numbers else 12) and numbers is not False:
        size = np.abs(cells).max()
        form = ".0f" if size >= 100 or (cells == cells.round()).all() else ".1f" if size >= 10 else ".2f"
        for i, j in zip(*np.nonzero(np.isfinite(values)), strict=True):
            red, green, blue, _ = drawn.cmap(drawn.norm(values[i, j]))
            _write(axis, i, j, format(values[i, j], form), dark=0.3 * red + 0.59 * green + 0.11 * blue < 0.5)
    if m <= (12 if column_names is None else NAMED):
        slanted = {"rotation": 45, "ha": "right"} if column_names is not None else {}
        axis.set_xticks(range(m), column_names or range(m), **slanted)
    if n <= (12 if row_names is None else NAMED):
        axis.set_yticks(range(n), row_names or range(n))
    axis.grid(False)
    axis.set(xlabel=xlabel, ylabel=ylabel, title=title)
    told = f"{colour_label or 'values'} from {low:.3g} to {high:.3g}"
    if n == m and list(row_names or ()) == list(column_names or ()):  # the same things along both sides
        for name, where in (("on the diagonal", np.eye(n, dtype=bool)), ("off the diagonal", ~np.eye(n, dtype=bool))):
            part = cells[where].compressed()
            told += f", mean {name} {part.mean():.3g}" if len(part) else f", nothing {name}"
    else:
        for name, at in (("least", cells.argmin()), ("most", cells.argmax())):
            told += f", {name} in row {(row_names or range(n))[at // m]}, column {(column_names or range(m))[at % m]}"
    empty = f"; {cells.mask.sum()} cells are left empty" if np.ma.is_masked(cells) else ""
    show(figure, f"{title}. Matrix of {n} rows and {m} columns: {told}{empty}.")


def _write(axis, row: int, column: int, text: str, dark: bool) -> None:
    """A number into a cell, in white where the cell is dark."""
    axis.text(column, row, text, ha="center", va="center", fontsize=8.5, color="white" if dark else "black")


def _row_percent(counts) -> np.ndarray:
    """Counts (C, C) as percent of each row; zeros where a class has no images."""
    counts = np.asarray(counts, float)
    return 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)


def _beside(cells: np.ndarray) -> np.ndarray:
    """The same with zeros on the diagonal."""
    return cells - np.diag(np.diag(cells))


def _most_telling(cells: np.ndarray) -> np.ndarray:
    """The classes (at most 20) in whose rows and columns of (C, C) the most lies beside the diagonal, in their order."""
    beside = np.abs(_beside(cells))
    return np.sort(np.argsort(-(beside.sum(0) + beside.sum(1)), kind="stable")[:NAMED])


def confusion(result, *, title: str) -> None:
    """Confusion matrix as row percentages: row true, column predicted. result: an evaluation.Result.

    Of many classes, here and in the two functions below, the 20 that are confused most are drawn; the text is about all of them.
    """
    percent, classes = _row_percent(result.confusion), result.class_names
    look = {"cmap": "Blues", "vmin": 0, "vmax": 100}
    figure, *_ = _class_grid(percent, classes, title, (0.6, 0), percent >= 0.5, ".0f", percent > 55, **look)
    pairs = ", ".join(f"{true} taken for {predicted} {count} times" for true, predicted, count in result.most_confused(3))
    diagonal = np.diag(percent)
    told = f"best {classes[diagonal.argmax()]} with {diagonal.max():.0f}, worst {classes[diagonal.argmin()]} with {diagonal.min():.0f}; "
    told += f"most frequent mistakes: {pairs}" if pairs else "no mistakes"
    show(figure, f"{title}. Confusion matrix of {len(percent)} classes in percent of each true class: {told}.")


def confusion_difference(first, second, *, title: str, names: Sequence[str]) -> None:
    """The second classifier's confusion matrix less the first's, in points of each true class: blue and + is more often, red and − less.

    first, second: evaluation.Results on the same images. names: what the two are called.
    """
    if list(first.class_names) != list(second.class_names) or not torch.equal(first.labels, second.labels):
        raise ValueError("A difference of confusions needs two results on the same images with the same classes.")
    classes, (before, after) = list(first.class_names), names
    change = _row_percent(second.confusion) - _row_percent(first.confusion)
    k, size = len(classes), np.abs(change)
    largest = max(float(size.max()), 1.0)
    look = {"cmap": "RdBu", "vmin": -largest, "vmax": largest}
    figure, axis, drawn = _class_grid(change, classes, title, (1.5, 0.1), size > 0.5, "+.0f", size > 0.6 * largest, **look)
    bar = figure.colorbar(drawn, ax=axis, label="points", shrink=0.85)
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:+.0f}" if value else "0")
    for i in range(min(k, NAMED)):  # the diagonal means something else than the rest
        axis.add_patch(plt.Rectangle((i - 0.5, i - 0.5), 1, 1, fill=False, edgecolor="black", linewidth=1))
    diagonal, beside = np.diag(change), _beside(change)
    told = f"{after} gets {(diagonal > 0.5).sum()} classes better than {before} and {(diagonal < -0.5).sum()} worse"
    best, worst = int(diagonal.argmax()), int(diagonal.argmin())
    told += f"; most gained by {classes[best]}, {diagonal[best]:+.0f} points, least by {classes[worst]}, {diagonal[worst]:+.0f}"
    for word, at in (("more", int(beside.argmax())), ("less", int(beside.argmin()))):
        i, j = divmod(at, k)
        told += f"; {classes[i]} taken for {classes[j]} {abs(beside[i, j]):.0f} points {word} often" if abs(beside[i, j]) >= 0.5 else ""
    show(figure, f"{title}. Confusion matrix of {after} less that of {before}, in points of each true class: {told}.")


def _class_grid(cells: np.ndarray, classes: Sequence[str], title: str, more: tuple[float, float], written, form: str, dark, **look):
    """(C, C) cells as colours, with numbers in those that are `written`. more: inches beside the grid."""
    shown, of = _most_telling(cells), f" ({NAMED} of {len(cells)} classes)" if len(cells) > NAMED else ""
    cells, written, dark = (values[np.ix_(shown, shown)] for values in (cells, written, dark))
    classes = [classes[c] for c in shown]
    side = min(0.5 * len(classes) + 1.9, 8)
    figure, axis = plt.subplots(figsize=(side + more[0], side + more[1]), layout="tight")
    drawn = axis.imshow(cells, **look)
    for i, j in zip(*np.nonzero(written), strict=True):
        _write(axis, i, j, format(cells[i, j], form).replace("-", "−"), dark[i, j])
    axis.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    axis.set_yticks(range(len(classes)), classes)
    axis.grid(False)
    axis.set(xlabel="predicted" + of, ylabel="true", title=title)
    return figure, axis, drawn


def confusions_over_time(matrices: Sequence, titles: Sequence[str], class_names: Sequence[str], *, title: str) -> None:
    """Small confusion matrices, in percent of each row, under their accuracy averaged over classes. matrices: counts (C, C), rows true."""
    panels = [_row_percent(counts) for counts in matrices]
    shown = _most_telling(sum(panels))
    k, names = len(shown), [class_names[c] for c in shown]
    rows = -(-len(panels) // 4)
    across = -(-len(panels) // rows)
    figure, axes = plt.subplots(rows, across, figsize=(2.35 * across + 1.5, 2.55 * rows + 1.5), squeeze=False, layout="constrained")
    figure.get_layout_engine().set(h_pad=0.09)
    told = []
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for i, (axis, percent) in enumerate(zip(axes.flat, panels, strict=False)):
        drawn = axis.imshow(percent[np.ix_(shown, shown)], cmap="Blues", vmin=0, vmax=100)
        right = np.diag(percent)[percent.any(1)].mean()  # a class without images has no row to speak of
        axis.set_title(f"{titles[i]}\n{right:.0f} % right", fontsize=9.5, fontweight="normal")
        axis.grid(False)
        axis.set_xticks(range(k), names if i + across >= len(panels) else [""] * k, rotation=90, fontsize=8)
        axis.set_yticks(range(k), names if i % across == 0 else [""] * k, fontsize=8)
        beside = _beside(percent)
        true, said = divmod(int(beside.argmax()), len(beside))
        worst = f", most often {class_names[true]} taken for {class_names[said]}, {beside[true, said]:.0f} percent" if beside.any() else ""
        told.append(f"{titles[i]}: {right:.0f} percent right{worst}")
    figure.colorbar(drawn, ax=axes, label="% of the true class", shrink=0.8, aspect=30)
    figure.supxlabel("predicted", fontsize=10)
    figure.supylabel("true", fontsize=10)
    heading(figure, title)
    show(figure, f"{title}. {len(panels)} confusion matrices of {len(class_names)} classes, averaged over classes: {'; '.join(told)}.")
