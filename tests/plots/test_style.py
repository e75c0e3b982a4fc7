"""Figures as files: a palette that keeps the colours, a smaller file, the same file each time; and their look."""

import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from sslcourse import plots
from sslcourse.plots.style import png


@pytest.fixture
def drawn():
    figure, axis = plt.subplots(figsize=(4, 3))
    axis.plot([0, 1, 2], [1, 0, 2], color="#D55E00", linewidth=4)
    axis.imshow(np.random.default_rng(0).random((16, 16, 3)), extent=(0, 1, 0, 1))
    yield figure
    plt.close(figure)


def pixels(picture):
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)


def test_a_palette_makes_the_file_smaller_and_hardly_changes_a_pixel(drawn):
    full = io.BytesIO()
    drawn.savefig(full, format="png", bbox_inches="tight", facecolor="white")
    before, after = full.getvalue(), png(drawn)
    assert len(after) < 0.7 * len(before) and after == png(drawn)
    difference = np.abs(pixels(before) - pixels(after))
    assert difference.shape == pixels(before).shape and difference.mean() < 3
    assert (pixels(after) == (255, 255, 255)).all(2).mean() > 0.3  # white stays white


def test_a_title_cannot_break_out_of_its_attribute(shown):
    title = "a \"quoted\" <b>title</b> & 'more'"
    plots.bars({"x": 1.0}, title=title, ylabel="y")
    assert shown[0].alt.startswith(title)
