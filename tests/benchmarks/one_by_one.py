"""What both benchmarks need: the images, and a DataLoader that transforms PIL images one by one, with which this package is compared."""

import itertools
import sys

import torch
from torch.utils.data import DataLoader, Dataset

MISSING = "not installed (pip install -e .[bench])"


class Pictures(Dataset):
    """PIL images in memory, transformed one by one. It pretends to be endless, so that no pass ends while the clock runs."""

    def __init__(self, images, transform):
        from torchvision.transforms.v2.functional import to_pil_image

        self.pictures = [to_pil_image(image) for image in images]
        self.transform = transform

    def __len__(self):
        return 2**40

    def __getitem__(self, index):
        return self.transform(self.pictures[index % len(self.pictures)])


def from_workers(images, transform, batch_size, workers, **options):
    """A function that gives the next batch of a DataLoader, and how many batches its workers may hold ready."""
    loader = DataLoader(
        Pictures(images, transform), batch_size=batch_size, sampler=itertools.count(), num_workers=workers, persistent_workers=True,
        worker_init_fn=lambda _: torch.set_num_threads(1), multiprocessing_context="fork" if sys.platform == "linux" else None, **options,
    )  # fmt: skip
    batches = iter(loader)
    return lambda: next(batches), workers * loader.prefetch_factor


def smooth_images(count, size):
    """Random images without sharp edges, uint8 (count, 3, size, size)."""
    coarse = torch.randint(0, 256, (count, 3, size // 4, size // 4), generator=torch.Generator().manual_seed(0)).float()
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear").byte()
