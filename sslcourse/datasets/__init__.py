"""Named data sets: `load("toybox")` gives an ImageSet, uint8 tensors with labels and class names."""
# ruff: noqa: F401

from sslcourse.datasets.image_set import KNOWN, DatasetInfo, ImageSet, available, check_size, few_rows, known_spelling, load
