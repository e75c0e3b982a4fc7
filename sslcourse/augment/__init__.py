"""Batched image augmentation on the device: every image of a batch draws its own parameters."""

from sslcourse.augment.augmentation import (  # noqa: F401
    CHUNK_VALUES,
    CROP_ATTEMPTS,
    MEAN,
    STD,
    Augmentation,
    TwoViews,
    barlow_views,
    byol_views,
    evaluation,
    simclr,
    strong,
    weak,
)
from sslcourse.augment.operations import (  # noqa: F401
    GREY,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    along_axes,
    blur_matrix,
    cut_out,
    gaussian_blur,
    grayscale,
    grey,
    resize_matrix,
    solarize,
    translation_matrix,
    where_asked,
)
