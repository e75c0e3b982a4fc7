"""Every figure of the course. Each carries a text that says what is to be seen, written from the data that it shows.

A function here draws, shows and closes its figure. Titles state the finding and are the caller's; the alternative text is made here and
begins with that title. Colours are Okabe and Ito's eight, which survive colour blindness; line style and marker differ too, for grey print.
"""

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":")


def use_style() -> None:
    """The course's look, set once in a lesson's set-up cell."""
    matplotlib.rcParams.update(
        {
            "figure.dpi": 90, "savefig.dpi": 90, "figure.facecolor": "white", "axes.facecolor": "white", "font.size": 10.5,
            "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25, "axes.axisbelow": True,
            "axes.titlesize": 11.5, "axes.titleweight": "bold", "axes.titlelocation": "left", "legend.frameon": False,
            "axes.prop_cycle": matplotlib.cycler(color=COLOURS, marker=MARKERS), "lines.markersize": 5,
        }
    )  # fmt: skip


def show(figure: Figure, alt: str) -> None:
    """Show a figure with its alternative text, then close it. In a notebook it is an <img alt=...>; elsewhere the text is printed."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", bbox_inches="tight", facecolor="white", metadata={"Software": None})
    plt.close(figure)
    encoded = base64.b64encode(picture.getvalue()).decode()
    style = "max-width:100%;height:auto;background:white"
    image = f'<img alt="{html.escape(alt, quote=True)}" style="{style}" src="data:image/png;base64,{encoded}">'
    from IPython.display import display

    display({"text/html": image, "text/plain": f"[figure: {alt}]"}, raw=True)


def _percent(values) -> np.ndarray:
    return 100 * np.asarray(values, float)


def _name(i: int, names: Sequence[str] | None) -> str:
    return names[i] if names is not None else str(i)


def images(pictures: Tensor, titles: Sequence[str] | None = None, columns: int = 10, title: str = "", zoom: float = 0.9) -> None:
    """A sheet of images with optional titles. pictures: uint8 (N, 3, H, W), or normalised views, which are scaled back to be shown."""
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
    show(figure, f"{title + '. ' if title else ''}{n} images in {rows} row{'s' if rows > 1 else ''} of {columns}: {told}.")


def unnormalise(views: Tensor) -> Tensor:
    """Normalised float views (N, 3, H, W) back to uint8, with the constants of `augment`."""
    from sslcourse import augment

    mean, std = (views.new_tensor(v).view(1, 3, 1, 1) for v in (augment.MEAN, augment.STD))
    return ((views * std + mean) * 255).round().clamp(0, 255).byte()


def lines(
    x: Sequence[float],
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
    ax=None,
) -> None:
    """One line a series over the same x, with error bars where given and a dotted line at the chance level."""
    figure, axis = (ax.figure, ax) if ax is not None else plt.subplots(figsize=(6.4, 3.6))
    told = []
    for i, (name, values) in enumerate(series.items()):
        values = np.asarray(values, float)
        style = {"label": name, "color": COLOURS[i % 8], "linestyle": LINES[i % 4], "marker": MARKERS[i % 8]}
        if len(values) > 25:
            style["markevery"] = len(values) // 12
        if errors and name in errors:
            axis.errorbar(x, values, yerr=np.nan_to_num(np.asarray(errors[name], float)), capsize=3, **style)
        else:
            axis.plot(x, values, **style)
        finite = values[np.isfinite(values)]
        gone = "" if len(finite) == len(values) else f", not finite from {xlabel} {x[int(np.argmax(~np.isfinite(values)))]:g}"
        if len(finite):
            told.append(f"{name} goes from {finite[0]:.3g} to {finite[-1]:.3g} (least {finite.min():.3g}, most {finite.max():.3g}{gone})")
        else:
            told.append(f"{name} is never finite")
    if chance is not None:
        axis.axhline(chance, color="black", linestyle=":", linewidth=1.2)
        axis.text(0.99, chance, chance_name, transform=axis.get_yaxis_transform(), ha="right", va="bottom", fontsize=8.5)
        told.append(f"{chance_name} is at {chance:.3g}")
    if log_x:
        axis.set_xscale("log")
        axis.set_xticks(list(x), [f"{v:g}" for v in x])
        axis.minorticks_off()
    if ylim:
        axis.set_ylim(*ylim)
    axis.set(xlabel=xlabel, ylabel=ylabel, title=title)
    if len(series) > 1:
        axis.legend()
    if ax is None:
        figure.tight_layout()
        show(figure, f"{title}. {ylabel} against {xlabel}, from {x[0]:g} to {x[-1]:g}: " + "; ".join(told) + ".")


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
        guessing, across = math.log(num_classes), left.get_yaxis_transform()
        left.axhline(guessing, color="black", linestyle=":", linewidth=1.2)
        left.text(0.99, guessing, f"guessing, ln {num_classes}", transform=across, ha="right", va="bottom", fontsize=8.5)
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
    if np.isfinite(accuracy).any():
        told.append(f"validation accuracy ends at {accuracy[-1]:.1f} percent, the best epoch had {np.nanmax(accuracy):.1f}")
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11.5)
    figure.tight_layout()
    show(figure, f"{title}. Two panels over {epochs[-1]:g} epochs: " + "; ".join(told) + ".")


def bars(
    values: Mapping[str, float], *, title: str, ylabel: str, errors: Mapping[str, float] | None = None, chance: float | None = None
) -> None:
    """One horizontal bar a name, with its number at the end and error bars where given."""
    names, numbers = list(values), [float(v) for v in values.values()]
    spread = [0.0 if errors is None or not math.isfinite(errors.get(n, math.nan)) else errors[n] for n in names]
    figure, axis = plt.subplots(figsize=(7.2, 0.42 * len(names) + 1.2))
    colours = [COLOURS[i % 6] for i in range(len(names))]
    axis.barh(names, numbers, xerr=spread if any(spread) else None, color=colours, capsize=3, height=0.65)
    for i, (number, error) in enumerate(zip(numbers, spread, strict=True)):
        axis.text(number + error, i, f"  {number:.1f}" + (f" ± {error:.1f}" if error else ""), va="center", fontsize=9)
    if chance is not None:
        axis.axvline(chance, color="black", linestyle=":", linewidth=1.2)
    axis.invert_yaxis()
    axis.margins(x=0.18)
    axis.set(xlabel=ylabel, title=title)
    figure.tight_layout()
    told = "; ".join(f"{n} {v:.1f}" + (f" ± {e:.1f}" if e else "") for n, v, e in zip(names, numbers, spread, strict=True))
    show(figure, f"{title}. {ylabel}: {told}" + (f"; chance {chance:.1f}" if chance is not None else "") + ".")


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
    axis.bar(range(len(numbers)), numbers, color=[COLOURS[2] if i == truth else COLOURS[0] for i in range(len(numbers))])
    axis.set_xticks(range(len(numbers)), class_names, rotation=35, ha="right")
    axis.set(ylabel="probability, %", title=title, ylim=(0, 100))
    figure.tight_layout()
    best = int(numbers.argmax())
    marked = f"; the true class, {_name(truth, class_names)}, gets {numbers[truth]:.0f}" if truth is not None else ""
    highest = f"highest {_name(best, class_names)} with {numbers[best]:.0f} percent{marked}"
    show(figure, f"{title}. Probabilities over {len(numbers)} classes: {highest}.")
