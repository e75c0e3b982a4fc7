"""Named data sets: `load("toybox")` gives an ImageSet, uint8 tensors with labels and class names."""

from sslcourse.datasets.image_set import (  # noqa: F401
    KNOWN,
    TOYBOX_OPTIONS,
    TOYBOX_SIZE,
    TOYBOX_SPLITS,
    Available,
    DatasetInfo,
    ImageSet,
    available,
    check_size,
    draw_toybox,
    few_rows,
    known_spelling,
    load,
)
