"""Every figure of the course. Each carries a text that says what is to be seen, written from the data that it shows.

A function here draws, shows and closes its figure. Titles state the finding and are the caller's; the alternative text is made here and
begins with that title. Colours survive colour blindness; line style and marker differ too, for grey print (`figure_style`).
"""

import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from sslcourse.plots.style import COLOURS, LINES, MARKERS, reference_line, show, use_style

__all__ = [
    "COLOURS", "LINES", "MARKERS", "bars", "confusion", "images", "lines", "matrix", "mistakes", "pretraining_curves", "probabilities",
    "show", "training_curves", "unnormalise", "use_style",
]  # fmt: skip


def _percent(values) -> np.ndarray:
    return 100 * np.asarray(values, float)


def _name(i: int, names: Sequence[str] | None) -> str:
    return names[i] if names is not None else str(i)


def images(
    pictures: Tensor, titles: Sequence[str] | None = None, columns: int = 10, title: str = "", zoom: float = 0.9, also: str = ""
) -> None:
    """A sheet of images with optional titles. pictures: uint8 (N, 3, H, W), or normalised views, which are scaled back to be shown.

    also: a sentence for the end of the alternative text.
    """
    if not len(pictures):
        raise ValueError("There are no images to show.")
    if titles is not None and len(titles) != len(pictures):
        raise ValueError(f"Each image needs its title: {len(pictures)} images, {len(titles)} titles.")
    pictures = unnormalise(pictures) if pictures.is_floating_point() else pictures
    n = len(pictures)
    columns = min(columns, n)
    rows = -(-n // columns)
    # room for titles only above the rows that have some, a line of text each
    lines_of_text = [max((t.count("\n") + 1 for t in (titles or [])[r * columns : (r + 1) * columns] if t), default=0) for r in range(rows)]
    titled = sum(lines_of_text)
    figure, axes = plt.subplots(
        rows, columns, figsize=(zoom * columns, (zoom + 0.05) * rows + 0.16 * titled + (0.3 if title else 0)), squeeze=False
    )
    for i, axis in enumerate(axes.flat):
        axis.axis("off")
        if i < n:
            axis.imshow(pictures[i].permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
            if titles:
                axis.set_title(titles[i], fontsize=8.5, fontweight="normal", loc="center", pad=2)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11.5)
    figure.tight_layout(pad=0.3)
    told = "; ".join(t.replace("\n", ", ") for t in titles if t) if titles else "without titles"
    start, end = f"{title}. " if title else "", f" {also}" if also else ""
    show(figure, f"{start}{n} images in {rows} row{'s' if rows > 1 else ''} of {columns}: {told}.{end}")


def unnormalise(views: Tensor) -> Tensor:
    """Normalised float views (N, 3, H, W) back to uint8, with the constants of `augment`."""
    from sslcourse import augment

    mean, std = (views.new_tensor(v).view(1, 3, 1, 1) for v in (augment.MEAN, augment.STD))
    return ((views * std + mean) * 255).round().clamp(0, 255).byte()


def _line(axis, x, values, name: str, i: int, xlabel: str, ends: tuple[float, float], sparse: bool, errors=None) -> str:
    """Draw one series in the i-th style and say where it goes. ends: the x between which the figure runs; sparse: as in `lines`."""
    x, values = np.asarray(x, float), np.asarray(values, float)
    looked = ~np.isnan(values) if sparse else np.full(len(values), True)
    x, values = x[looked], values[looked]
    style = {"label": name, "color": COLOURS[i % 8], "linestyle": LINES[i % 4], "marker": MARKERS[i % 8]}
    if len(values) > 25:
        style["markevery"] = len(values) // 12
    if errors is not None:
        axis.errorbar(x, values, yerr=np.nan_to_num(np.asarray(errors, float)[looked]), capsize=3, **style)
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
    x: Sequence[float] | Mapping[str, Sequence[float]],
    series: Mapping[str, Sequence[float]],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    errors: Mapping[str, Sequence[float]] | None = None,
    chance: float | None = None,
    chance_name: str = "guessing",
    log_x: bool = False,
    ylim: tuple[float, float] | None = None,
    sparse: bool = False,
    ax=None,
) -> None:
    """One line a series over the same x, with error bars where given and a dotted line at the chance level.

    x may be a mapping from the names of the series to the x of each. sparse: a NaN is a place where nobody looked, and the points on
    both sides of it are joined; without it the line has a gap there and the alternative text says so.
    """
    own = {name: np.asarray(x.get(name, ()) if isinstance(x, Mapping) else x, float) for name in series}
    if wrong := [name for name, values in series.items() if len(own[name]) != len(values)]:
        raise ValueError(f"Each value needs its x: {wrong[0]!r} has {len(series[wrong[0]])} values and {len(own[wrong[0]])} x.")
    everywhere = np.sort(np.concatenate([*own.values()])) if isinstance(x, Mapping) else np.asarray(x, float)
    figure, axis = (ax.figure, ax) if ax is not None else plt.subplots(figsize=(6.4, 3.6))
    told, ends = [], (everywhere[0], everywhere[-1])
    for i, (name, values) in enumerate(series.items()):
        told.append(_line(axis, own[name], values, name, i, xlabel, ends, sparse, (errors or {}).get(name)))
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
        show(figure, f"{title}. {ylabel} against {xlabel}, from {everywhere[0]:g} to {everywhere[-1]:g}: " + "; ".join(told) + ".")


def training_curves(history, *, title: str, num_classes: int | None = None) -> None:
    """Training and validation loss on the left, validation accuracy on the right. history: a training.History."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.4, 3.4))
    epochs = history["epoch"]
    told = []
    for i, (column, name) in enumerate((("loss", "training loss"), ("validation_loss", "validation loss"))):
        values = np.asarray(history[column], float)
        look = {"color": COLOURS[i], "linestyle": LINES[i], "marker": MARKERS[i], "markevery": max(1, len(epochs) // 10)}
        left.plot(epochs, values, label=name, **look)
        if np.isfinite(values).any():
            told.append(f"{name} goes from {values[0]:.2f} to {values[-1]:.2f}, lowest {np.nanmin(values):.2f}")
        else:
            told.append(f"{name} is never finite")
    if num_classes:
        guessing = math.log(num_classes)
        reference_line(left, guessing, f"guessing, ln {num_classes}")
        told.append(f"the loss of guessing is {guessing:.2f}")
    shown = [v for column in ("loss", "validation_loss") for v in history[column] if math.isfinite(v) and v > 0]
    if shown and max(shown) > 30 * min(shown):
        left.set_yscale("log")
    left.set(xlabel="epoch", ylabel="cross-entropy")
    left.set_title("Loss")
    left.legend()
    accuracy = _percent(history["validation_accuracy"])
    right.plot(epochs, accuracy, color=COLOURS[2], marker=MARKERS[2], markevery=max(1, len(epochs) // 10))
    right.set(xlabel="epoch", ylabel="validation accuracy, %", ylim=(0, 100))
    right.set_title("Accuracy")
    if num_classes:
        reference_line(right, 100 / num_classes, "guessing")
        told.append(f"guessing has {100 / num_classes:.3g} percent")
    if np.isfinite(accuracy).any():
        told.append(f"validation accuracy ends at {accuracy[-1]:.1f} percent, the best epoch had {np.nanmax(accuracy):.1f}")
    for axis in (left, right):
        _whole_ticks(axis, np.asarray(epochs, float))
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11.5)
    figure.tight_layout()
    show(figure, f"{title}. Two panels over {epochs[-1]:g} epochs: " + "; ".join(told) + ".")


def _measured(history, name: str) -> tuple[np.ndarray, np.ndarray] | None:
    """The epochs whose rows have this number, and the numbers; None when no row has it."""
    try:
        values = np.asarray(history[name], float)
    except KeyError:
        return None
    has = np.array([name in row for row in history.rows]) if hasattr(history, "rows") else np.full(len(values), True)
    return np.asarray(history["epoch"], float)[has], values[has]


# heading, axis label, {column: name}, (column, name) of a constant to compare with
_PRETRAINING = (
    ("Loss", "loss", {"loss": "training loss"}, ("chance_loss", "chance")),
    ("Accuracy", "accuracy, %", {"knn_accuracy": "kNN validation", "rotation_accuracy": "rotation"}, None),
    ("Spread of the features", "standard deviation", {"feature_std": "feature spread"}, ("healthy_std", "healthy")),
    ("Rank of the features", "effective rank", {"feature_rank": "feature rank"}, None),
)


def pretraining_curves(history, *, title: str, num_classes: int | None = None) -> None:
    """Loss, accuracy on the way and the meters of collapse, a panel each. history: a training.History; what it lacks is left out.

    num_classes: of the data set, to draw where guessing them lies; guessing one of four rotations is drawn where they are measured.

    The columns: loss and the constant chance_loss; knn_accuracy and rotation_accuracy as fractions; feature_std, feature_rank and the
    constant healthy_std. All but the loss may be NaN in most rows: their points are joined.
    """
    panels = [panel for panel in _PRETRAINING if any(_measured(history, column) for column in panel[2])]
    if not panels:
        raise ValueError("The history has no column of pretraining, neither a loss nor an accuracy nor the spread of the features.")
    across = len(panels) if len(panels) < 4 else 2
    rows = len(panels) // across
    figure, axes = plt.subplots(rows, across, figsize=((5.4, 9.4, 10.8)[across - 1], 3.2 * rows + 0.2), squeeze=False)
    told, ends = "", (history["epoch"][0], history["epoch"][-1])
    for axis, (heading, ylabel, columns, constant) in zip(axes.flat, panels, strict=True):
        found = [(column, name, _measured(history, column)) for column, name in columns.items() if _measured(history, column)]
        goes = []
        for i, (column, name, (epochs, values)) in enumerate(found):
            goes.append(_line(axis, epochs, values * (100 if "%" in ylabel else 1), name, i, "epoch", ends, sparse=column != "loss"))
        levels = constant and _measured(history, constant[0])
        if levels and np.isfinite(levels[1]).any():
            level = levels[1][np.isfinite(levels[1])][-1]
            reference_line(axis, level, f"{constant[1]}, {level:.3g}")
            goes.append(f"{constant[1]} is {level:.3g}")
        if "%" in ylabel:
            guesses = {"knn_accuracy": num_classes, "rotation_accuracy": 4}
            for column, name, _ in found:
                if guesses[column]:
                    reference_line(axis, 100 / guesses[column], f"guessing, {name}" if len(found) > 1 else "guessing")
                    goes.append(f"guessing for {name} has {100 / guesses[column]:.3g}")
        told += f" {ylabel.capitalize()}: {'; '.join(goes)}."
        margin = 0.03 * (ends[1] - ends[0]) or 0.5  # of all epochs, so that a loss that broke off is seen to
        axis.set(xlabel="epoch", ylabel=ylabel, xlim=(ends[0] - margin, ends[1] + margin))
        _whole_ticks(axis, np.asarray(history["epoch"], float))
        axis.set_title(heading)
        if "%" in ylabel:
            axis.set_ylim(0, 100)
            axis.legend()
        else:
            low, high = axis.get_ylim()
            low = low if heading == "Loss" else 0
            axis.set_ylim(low, high + 0.1 * (high - low))
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11.5)
    figure.tight_layout()
    show(figure, f"{title}. {len(panels)} panel{'s' if len(panels) > 1 else ''} over {ends[1]:g} epochs.{told}")


def bars(
    values: Mapping[str, float], *, title: str, ylabel: str, errors: Mapping[str, float] | None = None, chance: float | None = None
) -> None:
    """One horizontal bar a name, with its number at the end and error bars where given."""
    names, numbers = list(values), [float(v) for v in values.values()]
    spread = [0.0 if errors is None or not math.isfinite(errors.get(n, math.nan)) else errors[n] for n in names]
    figure, axis = plt.subplots(figsize=(7.2, 0.42 * (len(names) + (chance is not None) / 2) + 1.2))
    colours = [COLOURS[i % 6] for i in range(len(names))]
    axis.barh(names, numbers, xerr=spread if any(spread) else None, color=colours, capsize=3, height=0.65)
    for i, (number, error) in enumerate(zip(numbers, spread, strict=True)):
        axis.text(number + error, i, f"  {number:.1f}" + (f" ± {error:.1f}" if error else ""), va="center", fontsize=9)
    axis.set_ylim(len(names) - 0.45, -0.55)
    if chance is not None:
        axis.axvline(chance, color="black", linestyle=":", linewidth=1.2)
        axis.set_ylim(len(names) + 0.05, -0.55)  # room for its name below the bars
        axis.text(chance, len(names) - 0.3, f"  guessing, {chance:.3g}", va="center", fontsize=8.5)
    axis.margins(x=0.18)
    axis.set(xlabel=ylabel, title=title)
    figure.tight_layout()
    told = "; ".join(f"{n} {v:.1f}" + (f" ± {e:.1f}" if e else "") for n, v, e in zip(names, numbers, spread, strict=True))
    show(figure, f"{title}. {ylabel}: {told}" + (f"; guessing {chance:.1f}" if chance is not None else "") + ".")


def confusion(result, *, title: str) -> None:
    """Confusion matrix as row percentages: row true, column predicted. result: an evaluation.Result."""
    counts = result.confusion.astype(float)
    percent = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    k = len(counts)
    side = min(0.5 * k + 1.9, 8)
    figure, axis = plt.subplots(figsize=(side + 0.6, side))
    axis.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    if k <= 20:
        for i in range(k):
            for j in range(k):
                if percent[i, j] >= 0.5:
                    ink = "white" if percent[i, j] > 55 else "black"
                    axis.text(j, i, f"{percent[i, j]:.0f}", ha="center", va="center", fontsize=8.5, color=ink)
    axis.set_xticks(range(k), result.class_names, rotation=45, ha="right")
    axis.set_yticks(range(k), result.class_names)
    axis.grid(False)
    axis.set(xlabel="predicted", ylabel="true", title=title)
    figure.tight_layout()
    pairs = ", ".join(f"{true} taken for {predicted} {count} times" for true, predicted, count in result.most_confused(3))
    diagonal = np.diag(percent)
    best, worst = result.class_names[int(diagonal.argmax())], result.class_names[int(diagonal.argmin())]
    show(
        figure,
        f"{title}. Confusion matrix of {k} classes in percent of each true class: best {best} with {diagonal.max():.0f}, "
        f"worst {worst} with {diagonal.min():.0f}" + (f"; most frequent mistakes: {pairs}" if pairs else "; no mistakes") + ".",
    )


def matrix(
    values,
    *,
    title: str,
    row_names: Sequence[str] | None = None,
    column_names: Sequence[str] | None = None,
    xlabel: str = "",
    ylabel: str = "",
    colour_label: str = "",
    limits: tuple[float, float] | None = None,
    numbers: bool | None = None,
) -> None:
    """A matrix as colours: red and blue about zero if it has both signs, else light to dark. Cells that are not finite are hatched.

    values: (rows, columns). limits: the values at the ends of the colours. numbers: write them into the cells (None: up to 12 × 12).
    """
    values = np.asarray(values.detach().cpu().float() if isinstance(values, Tensor) else values, float)
    if values.ndim != 2 or not np.isfinite(values).any():
        raise ValueError(f"A matrix has rows, columns and at least one finite number, not the shape {values.shape} or only NaN.")
    n, m = values.shape
    for names, number, kind in ((row_names, n, "row"), (column_names, m, "column")):
        if names is not None and len(names) != number:
            raise ValueError(f"Each {kind} needs its name: {number} {kind}s, {len(names)} names.")
    cells = np.ma.masked_invalid(values)
    low, high = float(cells.min()), float(cells.max())
    start, end = limits or (low, high)
    both = low < 0 < high or start < 0 < end
    start, end = (-max(-start, end), max(-start, end)) if both else (start, end)
    unit = min(0.55, 6.5 / max(n, m))
    figure, axis = plt.subplots(figsize=(max(unit * m, 2.2) + 2.4, max(unit * n, 1.6) + 1.1))
    axis.patch.set(facecolor="0.75", edgecolor="0.45", hatch="////", linewidth=0)
    drawn = axis.imshow(cells, cmap="RdBu_r" if both else "Blues", vmin=start, vmax=end, interpolation="nearest", aspect="auto")
    figure.colorbar(drawn, ax=axis, label=colour_label)
    if numbers if numbers is not None else max(n, m) <= 12:
        size = np.abs(cells).max()
        form = ".0f" if size >= 100 or (cells == cells.round()).all() else ".1f" if size >= 10 else ".2f"
        for i, j in zip(*np.nonzero(np.isfinite(values)), strict=True):
            red, green, blue, _ = drawn.cmap(drawn.norm(values[i, j]))
            ink = "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 0.5 else "black"
            axis.text(j, i, format(values[i, j], form), ha="center", va="center", fontsize=8.5, color=ink)
    if column_names is not None or m <= 12:
        slanted = {"rotation": 45, "ha": "right"} if column_names is not None else {}
        axis.set_xticks(range(m), column_names or range(m), **slanted)
    if row_names is not None or n <= 12:
        axis.set_yticks(range(n), row_names or range(n))
    axis.grid(False)
    axis.set(xlabel=xlabel, ylabel=ylabel, title=title)
    figure.tight_layout()
    told = f"{colour_label or 'values'} from {low:.3g} to {high:.3g}"
    if n == m and list(row_names or ()) == list(column_names or ()):  # the same things along both sides
        for name, where in (("on the diagonal", np.eye(n, dtype=bool)), ("off the diagonal", ~np.eye(n, dtype=bool))):
            part = cells[where].compressed()
            told += f", mean {name} {part.mean():.3g}" if len(part) else f", nothing {name}"
    else:
        for name, at in (("least", cells.argmin()), ("most", cells.argmax())):
            told += f", {name} in row {_name(at // m, row_names)}, column {_name(at % m, column_names)}"
    empty = f"; {cells.mask.sum()} cells are left empty" if np.ma.is_masked(cells) else ""
    show(figure, f"{title}. Matrix of {n} rows and {m} columns: {told}{empty}.")


def mistakes(result, pictures: Tensor, k: int = 10, *, title: str) -> None:
    """The k most confident wrong predictions, each with what it is, what was said and how surely. pictures: the images of the result."""
    chosen = result.worst_mistakes(k)
    if not len(chosen):
        print("There are no mistakes to show.")
        return
    names = result.class_names
    captions = [
        f"{names[result.labels[i]]}\nsaid {names[result.predictions[i]]}\n{100 * result.probabilities[i].max():.0f} % sure"
        for i in chosen.tolist()
    ]
    images(pictures[chosen], captions, columns=min(k, 5), title=title, zoom=1.35)


def probabilities(values: Tensor, class_names: Sequence[str], *, title: str, truth: int | None = None) -> None:
    """One bar a class for a single image's probabilities, the true class marked. values: (C,)."""
    figure, axis = plt.subplots(figsize=(6.4, 2.4))
    numbers = _percent(values)
    drawn = axis.bar(range(len(numbers)), numbers, color=COLOURS[0])
    if truth is not None:
        drawn[truth].set(facecolor=COLOURS[2], hatch="//", edgecolor="white")
        axis.legend(handles=[Patch(facecolor=COLOURS[2], hatch="//", edgecolor="white", label=f"true class: {_name(truth, class_names)}")])
    axis.set_xticks(range(len(numbers)), class_names, rotation=35, ha="right")
    axis.set(ylabel="probability, %", title=title, ylim=(0, 100))
    figure.tight_layout()
    best = int(numbers.argmax())
    marked = f"; the true class, {_name(truth, class_names)}, gets {numbers[truth]:.0f}" if truth is not None else ""
    highest = f"highest {_name(best, class_names)} with {numbers[best]:.0f} percent{marked}"
    show(figure, f"{title}. Probabilities over {len(numbers)} classes: {highest}.")
