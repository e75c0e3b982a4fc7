"""Figures as files: a palette that keeps the colours, a smaller file, the same file each time; and their look."""

import io

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from sslcourse.plots.style import png


def pixels(picture):
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)


def test_a_palette_makes_the_file_smaller_and_hardly_changes_a_pixel():
    figure, axis = plt.subplots(figsize=(4, 3))
    axis.plot([0, 1, 2], [1, 0, 2], color="#D55E00", linewidth=4)
    axis.imshow(np.random.default_rng(0).random((16, 16, 3)), extent=(0, 1, 0, 1))
    full = io.BytesIO()
    figure.savefig(full, format="png", bbox_inches="tight", facecolor="white")
    before, after = full.getvalue(), png(figure)
    assert len(after) < 0.7 * len(before) and after == png(figure)
    plt.close(figure)
    difference = np.abs(pixels(before) - pixels(after))
    assert difference.shape == pixels(before).shape and difference.mean() < 3
    assert (pixels(after) == (255, 255, 255)).all(2).mean() > 0.3  # white stays white
