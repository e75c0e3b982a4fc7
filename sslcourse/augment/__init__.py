"""Batched image augmentation on the device: every image of a batch draws its own parameters."""
# ruff: noqa: F401, I001

from sslcourse.augment.augmentation import (
    MEAN, STD, Augmentation, MultiCrop, TwoViews, barlow_views, byol_views, crop_and_flip, evaluation, multi_crop, simclr, strong, weak,
)  # fmt: skip
