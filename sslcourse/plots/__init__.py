"""Figures of the lessons. Each carries a text that says what is to be seen, written from the data that it shows.

A function here draws, shows and closes its figure. The title states the finding and begins the alternative text. Nothing is told by colour
alone: line style, marker, hatch or sign differ too. Wrong arguments get matplotlib's own errors.
"""

from sslcourse.plots.comparisons import bars, forest, strips  # noqa: F401
from sslcourse.plots.curves import lines, pretraining_curves, training_curves  # noqa: F401
from sslcourse.plots.embeddings import scatter  # noqa: F401
from sslcourse.plots.matrices import confusion, confusion_difference, confusions_over_time, matrix  # noqa: F401
from sslcourse.plots.pictures import images, mistakes, neighbours, rotations, unnormalise  # noqa: F401
from sslcourse.plots.predictions import coverage_and_precision, probabilities, reliability  # noqa: F401
from sslcourse.plots.style import COLOURS, LINES, MARKERS, fonts_for, reference_line, show, use_style  # noqa: F401
