"""Figures of what a network has learned to see: nearest neighbours, maps of the features, similarities, and turned images.

They follow the rules of `plots`: titles are the caller's, the alternative text is written from the data, and nothing is told by colour
alone.
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from sslcourse.plots.figures import images
from sslcourse.plots.style import COLOURS, LINES, MARKERS, show

RIGHT, WRONG = COLOURS[2], COLOURS[1]  # green with a tick, orange-red with a cross
BINS = 40
TEN_MARKERS = (*MARKERS, "<", ">")  # so that ten classes can be told apart in grey print


def neighbours(
    queries: Tensor,
    found: Tensor,
    *,
    title: str,
    query_names: Sequence[str] | None = None,
    found_names: Sequence[Sequence[str]] | None = None,
    right=None,
) -> None:
    """One row a query: the image asked for at the left, then a gap, then its k nearest images, nearest first.

    queries: uint8 (Q, 3, H, W). found: uint8 (Q, k, 3, H, W). query_names: Q texts, found_names: Q times k texts. right: bool (Q, k),
    whether a neighbour is of the query's class; it is shown by a frame and a mark.
    """
    if queries.dim() != 4 or found.dim() != 5 or len(queries) != len(found) or not found.shape[:2].numel():
        raise ValueError(f"Each query needs its neighbours: queries are {tuple(queries.shape)}, found is {tuple(found.shape)}.")
    n, k = found.shape[:2]
    marks = None if right is None else torch.as_tensor(right).cpu().numpy().astype(bool)
    if marks is not None and marks.shape != (n, k):
        raise ValueError(f"right needs one value for each of {n} × {k} neighbours, not the shape {marks.shape}.")
    if query_names is not None and len(query_names) != n:
        raise ValueError(f"Each query needs its name: {n} queries, {len(query_names)} names.")
    if found_names is not None and [len(row) for row in found_names] != [k] * n:
        raise ValueError(f"Each neighbour needs its name: found_names is {n} rows of {k} texts.")
    captioned = bool(query_names or found_names) or marks is not None
    figure, axes = plt.subplots(
        n,
        k + 2,
        figsize=(0.98 * (k + 1) + 0.3, height := (0.98 + 0.2 * captioned) * n + 0.4),
        squeeze=False,
        gridspec_kw={"width_ratios": [1, 0.3, *[1] * k]},
    )
    for row in range(n):
        _picture(axes[row, 0], queries[row], query_names[row] if query_names is not None else "")
        axes[row, 1].axis("off")
        for j in range(k):
            name = found_names[row][j] if found_names is not None else ""
            _picture(axes[row, j + 2], found[row, j], name, None if marks is None else bool(marks[row, j]))
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11.5)
    figure.tight_layout(pad=0.4, w_pad=0.5, h_pad=0.6, rect=(0, 0, 1, 1 - 0.3 / height))
    told = []
    for row in range(n):
        of = query_names[row] if query_names is not None else f"query {row + 1}"
        about = [", ".join(map(str, found_names[row]))] if found_names is not None else []
        about += [f"{marks[row].sum()} right"] if marks is not None else []
        told += [f"{of}: {', '.join(about)}"] if about else []
    total = f"; {marks.sum()} of {marks.size} neighbours are of the query's class" if marks is not None else ""
    each = f". {'; '.join(told)}" if told else ""
    show(figure, f"{title}. {n} {'queries, each' if n > 1 else 'query'} with {k} nearest images{total}{each}.")


def _picture(axis, picture: Tensor, name: str, right: bool | None = None) -> None:
    """One image with a caption; with a frame and a mark where it is right or wrong."""
    axis.imshow(picture.permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
    axis.grid(False)
    axis.set_xticks([])
    axis.set_yticks([])
    mark = "" if right is None else "✓" if right else "✗"
    colour = "black" if right is None else RIGHT if right else WRONG
    axis.set_title(f"{mark} {name}".strip(), fontsize=8.5, fontweight="normal", loc="center", pad=3, color=colour)
    for spine in axis.spines.values():
        spine.set(visible=right is not None, color=colour, linewidth=2.5, linestyle="-" if right else (0, (2.5, 1.5)))


def scatter(panels: Mapping[str, Tensor], labels, class_names: Sequence[str], *, title: str) -> None:
    """Maps of the same images side by side, a colour and a marker for each class. panels: name -> points (N, 2); labels: (N,).

    The axes have no ticks, as directions and units of such maps mean nothing. The alternative text says which part of the points has
    a nearest neighbour of the same class on the map.
    """
    labels = torch.as_tensor(labels).cpu().numpy()
    points = {name: torch.as_tensor(value).detach().cpu().double().numpy() for name, value in panels.items()}
    if not points:
        raise ValueError("There are no maps to show.")
    for name, value in points.items():
        if value.shape != (len(labels), 2) or len(labels) < 2 or not np.isfinite(value).all():
            raise ValueError(f"The map {name!r} needs a finite point (x, y) for each of {len(labels)} labels, two or more.")
    if labels.min() < 0 or labels.max() >= len(class_names):
        raise ValueError(f"Labels lie between 0 and {len(class_names) - 1}, one below the number of class names.")
    across = 2 if len(points) == 4 else min(len(points), 3)
    rows = -(-len(points) // across)
    figure, axes = plt.subplots(rows, across, figsize=(3.9 * across, 3.6 * rows + 0.3), squeeze=False)
    size = float(np.clip(18000 / len(labels), 14, 42))
    for axis, (name, value) in zip(axes.flat, points.items(), strict=False):
        for c in np.unique(labels):
            colour, marker = COLOURS[c % 8], TEN_MARKERS[c % 10]
            of = labels == c
            edge = {"edgecolors": "0.25", "linewidths": 0.2}
            axis.scatter(*value[of].T, s=size, c=colour, marker=marker, alpha=0.8, label=class_names[c], **edge)
        axis.set_title(name)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.margins(0.04)
        for spine in axis.spines.values():
            spine.set(visible=True, color="0.75")
    for axis in axes.flat[len(points) :]:
        axis.axis("off")
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11.5)
    figure.tight_layout()
    handles, names = axes[0, 0].get_legend_handles_labels()
    columns = 1 + (len(names) - 1) // 20
    legend = figure.legend(handles, names, loc="center left", bbox_to_anchor=(1.0, 0.5), ncols=columns, fontsize=9.5)
    for handle in legend.legend_handles:
        handle.set(sizes=[42], alpha=1)
    told = [f"{name} {100 * _same_class(value, labels):.0f} percent" for name, value in points.items()]
    panels_told = f"{len(points)} map{'s' if len(points) > 1 else ''} of {len(labels)} images of {len(names)} classes"
    show(figure, f"{title}. {panels_told}; points whose nearest neighbour on the map is of the same class: {', '.join(told)}.")


def _same_class(points: np.ndarray, labels: np.ndarray) -> float:
    """The part of the points whose nearest other point has the same label."""
    from sklearn.neighbors import NearestNeighbors

    nearest = NearestNeighbors(n_neighbors=1).fit(points).kneighbors(return_distance=False)[:, 0]  # a point is not its own neighbour
    return float((labels[nearest] == labels).mean())


def similarity_histogram(groups: Mapping[str, Tensor], *, title: str, xlabel: str = "cosine similarity") -> None:
    """How similarities are distributed, one outline a group. groups: name -> values (n,)."""
    values = {name: torch.as_tensor(group).detach().cpu().double().flatten().numpy() for name, group in groups.items()}
    lost = {name: int((~np.isfinite(group)).sum()) for name, group in values.items()}
    values = {name: group[np.isfinite(group)] for name, group in values.items()}
    if not values or not all(map(len, values.values())):
        raise ValueError("A histogram needs at least one group, and each group at least one finite value.")
    low, high = min(group.min() for group in values.values()), max(group.max() for group in values.values())
    if high - low < 1e-3:  # a collapsed network: all the same
        low, high = low - 0.05, high + 0.05
    edges = np.linspace(low, high, BINS + 1)
    figure, axis = plt.subplots(figsize=(6.4, 3.4))
    told = []
    for i, (name, group) in enumerate(values.items()):
        colour, line = COLOURS[i % 8], LINES[i % 4]
        axis.hist(group, edges, density=True, histtype="step", color=colour, linestyle=line, linewidth=1.8, label=name)
        gone = f", and {lost[name]} not finite" if lost[name] else ""
        told.append(f"{name} has mean {group.mean():.3g} and standard deviation {group.std():.3g} ({len(group)} values{gone})")
    axis.set(xlabel=xlabel, ylabel="density", title=title)
    if len(values) > 1:
        handles = [plt.Line2D([], [], color=COLOURS[i % 8], linestyle=LINES[i % 4], linewidth=1.8, marker="") for i in range(len(values))]
        axis.legend(handles, list(values))
    figure.tight_layout()
    show(figure, f"{title}. Distribution of {xlabel}: {'; '.join(told)}.")


def rotations(
    pictures: Tensor,
    answers: Sequence[int] | None = None,
    truth: Sequence[int] | None = None,
    *,
    title: str = "",
    columns: int = 8,
    zoom: float = 1.1,
) -> None:
    """Images and by how many degrees they are turned, counter-clockwise. pictures: uint8 (N, 3, H, W) or normalised views.

    Without truth the pictures are upright, and each is a column that shows its four turns, row by row. With truth, one number of
    quarter turns a picture, they are shown as they are; answers are the quarter turns that a network sees, marked as right or wrong.
    """
    if truth is None:
        if answers is not None:
            raise ValueError("Answers need the truth to be compared with.")
        if pictures.dim() != 4 or pictures.shape[2] != pictures.shape[3]:
            raise ValueError(f"Only square images fit on a sheet in each turn, not those of shape {tuple(pictures.shape)}.")
        turned = torch.cat([torch.rot90(pictures, quarters, (2, 3)) for quarters in range(4)])
        captions = ["" if i % len(pictures) else _turned(i // len(pictures)) for i in range(len(turned))]  # each row's first image
        images(turned, captions, columns=max(1, len(pictures)), title=title, zoom=zoom)
        return
    truth = [int(t) for t in truth]
    said = None if answers is None else [int(a) for a in answers]
    if len(truth) != len(pictures) or (said is not None and len(said) != len(pictures)):
        numbers = f"{len(pictures)} images, {len(truth)} truths" + (f", {len(said)} answers" if said is not None else "")
        raise ValueError(f"Each image needs its number of quarter turns: {numbers}.")
    if any(quarters not in range(4) for quarters in [*truth, *(said or [])]):
        raise ValueError("Quarter turns are 0, 1, 2 or 3.")
    if said is None:
        images(pictures, [_turned(t) for t in truth], columns=columns, title=title, zoom=zoom)
        return
    captions = [f"{_turned(t)}\nsays {90 * a}° {'✓' if a == t else '✗'}" for t, a in zip(truth, said, strict=True)]
    good = sum(a == t for t, a in zip(truth, said, strict=True))
    images(pictures, captions, columns=columns, title=title, zoom=zoom, also=f"{good} of {len(truth)} answers are right.")


def _turned(quarters: int) -> str:
    return f"turned {90 * quarters}°" if quarters else "upright"
