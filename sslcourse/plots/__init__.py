"""Figures of the lessons, each with a text for readers who cannot see it."""

from sslcourse.plots.embeddings import BINS, TEN_MARKERS, neighbours, rotations, scatter, similarity_histogram  # noqa: F401
from sslcourse.plots.figures import (  # noqa: F401
    bars,
    confusion,
    images,
    lines,
    matrix,
    mistakes,
    pretraining_curves,
    probabilities,
    training_curves,
    unnormalise,
)
from sslcourse.plots.predictions import (  # noqa: F401
    SEEN,
    confusion_difference,
    confusions_over_time,
    cost_against_accuracy,
    coverage_and_precision,
    forest,
    reliability,
)
from sslcourse.plots.style import COLOURS, LINES, MARKERS, reference_line, show, use_style  # noqa: F401
