"""Named data sets: `load("toybox")` gives an ImageSet, uint8 tensors with labels and class names."""
# ruff: noqa: F401, I001

from sslcourse.datasets.image_set import KNOWN, DatasetInfo, ImageSet, available, check_size, known_spelling, load
from sslcourse.datasets.image_set import few_rows, first_of_each, rows_of_every_class
