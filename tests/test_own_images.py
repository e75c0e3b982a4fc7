"""The lessons at tier smoke on data sets such as people bring: every set in three lessons or more, every lesson with two sets."""

import warnings

import matplotlib
import numpy as np
import pytest
from cells import NOTEBOOKS, run
from PIL import Image

from sslcourse.datasets import sources
from sslcourse.plots import style

# name -> images of each class, the mode of the pictures, what a lesson says first, and the lessons
SETS = {
    "two": ({"$": 30, "$_$": 30}, "L", "dealt anew", (1, 2, 3, 5, 7)),
    "rare": ({"apple_pie": 40, "two words": 40, "中文": 40, "\\frac{": 5}, "RGB", "labels per class and not", (1, 2, 4, 5, 6, 7)),
    "many": ({f"class {k} with a long name": 14 for k in range(120)}, "RGB", "20 of its 120 classes", (3, 4, 6)),
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder, generator = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name, (classes, mode, *_) in SETS.items():
        for title, n in classes.items():
            (folder / "source" / name / title).mkdir(parents=True)
            colour = generator.integers(40, 215, 3)
            for i in range(n):
                pixels = (colour + generator.normal(0, 40, (16, 16, 3))).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).convert(mode).save(folder / "source" / name / title / f"{i}.png")
        sources.prepare(name, folder, source=folder / "source" / name)
    return folder


@pytest.mark.parametrize(("name", "number"), [(name, number) for name, (*_, numbers) in SETS.items() for number in numbers])
def test_lessons_run_to_their_end_on_own_images(data_dir, tmp_path, monkeypatch, capsys, one_thread, name, number):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(style, "png", lambda figure: figure.canvas.draw() or b"")  # drawn, and not written
    folders = {"DATA_DIR": str(data_dir), "RESULTS_DIR": str(tmp_path / "results")}
    with warnings.catch_warnings(), matplotlib.rc_context():
        warnings.filterwarnings("error", message="Glyph")
        run(NOTEBOOKS[number - 1], TIER="smoke", DEVICE="cpu", DATASET=name, SIZE=16, **folders)
    told = capsys.readouterr().out
    assert f"On {name}: " in told and SETS[name][2] in told.replace("\n", " ") and f"Lesson {number} took" in told
