"""Sheets of images: a few of a data set, the worst mistakes, nearest neighbours, images in four rotations."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from sslcourse import augment
from sslcourse.plots.style import COLOURS, heading, show


def images(
    pictures: Tensor, titles: Sequence[str] | None = None, columns: int = 10, title: str = "", zoom: float = 0.9, also: str = ""
) -> None:
    """A sheet of images with optional titles. pictures: uint8 (N, 3, H, W), or normalised views, which are scaled back to be shown.

    zoom: inches a side of each. also: a sentence for the end of the alternative text.
    """
    n = len(pictures)
    pictures = unnormalise(pictures) if pictures.is_floating_point() else pictures
    titles = titles or [""] * n
    columns = min(columns, n)
    rows = -(-n // columns)
    # room for titles only above the rows that have some, a line of text each
    text_lines = sum(max((t.count("\n") + 1 for t in titles[r * columns : (r + 1) * columns] if t), default=0) for r in range(rows))
    height = (zoom + 0.05) * rows + 0.16 * text_lines + (0.3 if title else 0)
    figure, axes = plt.subplots(rows, columns, figsize=(zoom * columns, height), squeeze=False)
    for i, axis in enumerate(axes.flat):
        axis.axis("off")
        if i < n:
            axis.imshow(pictures[i].permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
            axis.set_title(titles[i], fontsize=8.5, fontweight="normal", loc="center", pad=2)
    if title:
        heading(figure, title)
    figure.tight_layout(pad=0.3)
    told = "; ".join(t.replace("\n", ", ") for t in titles if t) or "without titles"
    start, end = f"{title}. " if title else "", f" {also}" if also else ""
    show(figure, f"{start}{n} image{'s' if n > 1 else ''} in {rows} row{'s' if rows > 1 else ''} of {columns}: {told}.{end}")


def unnormalise(views: Tensor) -> Tensor:
    """Normalised float views (N, 3, H, W) back to uint8, with the constants of `augment`."""
    mean, std = (views.new_tensor(v).view(1, 3, 1, 1) for v in (augment.MEAN, augment.STD))
    return ((views * std + mean) * 255).round().clamp(0, 255).byte()


def mistakes(result, pictures: Tensor, k: int = 10, *, title: str) -> None:
    """The k most confident wrong predictions, each with what it is, what was said and how surely. pictures: the images of the result."""
    chosen, names = result.worst_mistakes(k), result.class_names
    if not len(chosen):
        return print("There are no mistakes to show.")
    rows = zip(result.labels[chosen], result.predictions[chosen], result.probabilities[chosen].max(1).values, strict=True)
    captions = [f"{names[true]}\nsaid {names[said]}\n{100 * sure:.0f} % sure" for true, said, sure in rows]
    images(pictures[chosen], captions, columns=min(k, 5), title=title, zoom=1.35)


def neighbours(queries: Tensor, found: Tensor, *, title: str, query_names: Sequence[str], right) -> None:
    """One row a query: the image asked for at the left, then a gap, then its k nearest images, nearest first.

    queries: uint8 (Q, 3, H, W), with Q names. found: uint8 (Q, k, 3, H, W). right: bool (Q, k), of the query's class.
    """
    right = torch.as_tensor(right).bool()
    n, k = found.shape[:2]
    width, height, widths = 0.98 * (k + 1) + 0.3, 1.18 * n + 0.4, {"width_ratios": [1, 0.3, *[1] * k]}
    figure, axes = plt.subplots(n, k + 2, figsize=(width, height), squeeze=False, gridspec_kw=widths)
    for row, axis in enumerate(axes):
        _framed(axis[0], queries[row], query_names[row], "black", "")
        axis[1].axis("off")
        for j in range(k):
            mark, colour, line = ("✓", COLOURS[2], "-") if right[row, j] else ("✗", COLOURS[1], (0, (2.5, 1.5)))
            _framed(axis[j + 2], found[row, j], mark, colour, line)
    heading(figure, title)
    figure.tight_layout(pad=0.4, w_pad=0.5, h_pad=0.6, rect=(0, 0, 1, 1 - 0.3 / height))
    told = "; ".join(f"{name}: {marks.sum()} right" for name, marks in zip(query_names, right, strict=True))
    total = f"{right.sum()} of {right.numel()} neighbours are of the query's class"
    show(figure, f"{title}. {n} {'queries, each' if n > 1 else 'query'} with {k} nearest images; {total}. {told}.")


def _framed(axis, picture: Tensor, caption: str, colour: str, line) -> None:
    """One image with a caption, and a frame where a line style is given."""
    axis.imshow(picture.permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
    axis.grid(False)
    axis.set(xticks=[], yticks=[])
    axis.set_title(caption, fontsize=8.5, fontweight="normal", loc="center", pad=3, color=colour)
    for spine in axis.spines.values():
        spine.set(visible=bool(line), color=colour, linewidth=2.5, linestyle=line or "-")


def rotations(
    pictures: Tensor, answers: Sequence[int] | None = None, truth: Sequence[int] | None = None, *, title: str = "", columns: int = 8
) -> None:
    """Images and by how many degrees they are turned, counter-clockwise. pictures: uint8 (N, 3, H, W) or normalised views.

    Pictures alone are upright, and each is a column that shows its four turns. With answers and truth, quarter turns (N,), they are shown
    as they are, and each answer is marked as right or wrong.
    """
    if answers is None:
        turned = torch.cat([torch.rot90(pictures, quarters, (2, 3)) for quarters in range(4)])
        captions = ["" if i % len(pictures) else _turned(i // len(pictures)) for i in range(len(turned))]  # each row's first image
        return images(turned, captions, columns=len(pictures), title=title, zoom=1.1)
    pairs = [(int(t), int(a)) for t, a in zip(truth, answers, strict=True)]
    captions = [f"{_turned(t)}\nsays {90 * a}° {'✓' if a == t else '✗'}" for t, a in pairs]
    good = sum(a == t for t, a in pairs)
    images(pictures, captions, columns=columns, title=title, zoom=1.1, also=f"{good} of {len(pairs)} answers are right.")


def _turned(quarters: int) -> str:
    return f"turned {90 * quarters}°" if quarters else "upright"
