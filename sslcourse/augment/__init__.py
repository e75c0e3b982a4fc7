"""Batched image augmentation on the device: every image of a batch draws its own parameters."""
# ruff: noqa: F401

from sslcourse.augment.augmentation import MEAN, STD, Augmentation, TwoViews, barlow_views, byol_views, evaluation, simclr, strong, weak
