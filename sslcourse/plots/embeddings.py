"""Figures of embeddings: maps of the features."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from sslcourse.plots.style import heading, look, show


def scatter(panels: Mapping[str, Tensor], labels, class_names: Sequence[str], *, title: str) -> None:
    """Maps of the same images side by side, a colour and a marker for each class. panels: name -> points (N, 2); labels: (N,).

    More than 40 classes are named in no legend.
    """
    labels = torch.as_tensor(labels).cpu().numpy()
    points = {name: torch.as_tensor(value).detach().cpu().double().numpy() for name, value in panels.items()}
    across = 2 if len(points) == 4 else min(len(points), 3)
    rows = -(-len(points) // across)
    figure, axes = plt.subplots(rows, across, figsize=(3.9 * across, 3.6 * rows + 0.3), squeeze=False, layout="tight")
    size, edge = float(np.clip(18000 / len(labels), 14, 42)), {"edgecolors": "0.25", "linewidths": 0.2}
    for axis, (name, value) in zip(axes.flat, points.items(), strict=False):
        for c in np.unique(labels):
            axis.scatter(*value[labels == c].T, label=class_names[c], s=size, alpha=0.8, **look(c), **edge)
        axis.set(title=name, xticks=[], yticks=[])  # directions and units of such maps mean nothing
        axis.margins(0.04)
        for spine in axis.spines.values():
            spine.set(visible=True, color="0.75")
    for axis in axes.flat[len(points) :]:
        axis.axis("off")
    heading(figure, title)
    handles, names = axes[0, 0].get_legend_handles_labels()
    if len(names) <= 40:
        columns = 1 + (len(names) - 1) // 20
        legend = figure.legend(handles, names, loc="center left", bbox_to_anchor=(1.0, 0.5), ncols=columns, fontsize=9.5)
        for handle in legend.legend_handles:
            handle.set(sizes=[42], alpha=1)
    nearest = [NearestNeighbors(n_neighbors=1).fit(p).kneighbors(return_distance=False)[:, 0] for p in points.values()]  # never itself
    told = ", ".join(f"{name} {100 * (labels[n] == labels).mean():.0f} percent" for name, n in zip(points, nearest, strict=True))
    maps = f"{len(points)} map{'s' if len(points) > 1 else ''} of {len(labels)} images of {len(names)} classes"
    show(figure, f"{title}. {maps}; points whose nearest neighbour on the map is of the same class: {told}.")
