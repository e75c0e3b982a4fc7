"""Images that are hard for colour operations, for the tests beside this file."""

import pytest
import torch

CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"))
DEVICES = ["cpu", CUDA]
# float32 keeps about 7 digits of numbers up to 1; a handful of operations may lose one of them
CLOSE = {"rtol": 0, "atol": 2e-6}


def colourful(n, height, width, device="cpu", seed=0):
    """Random smooth-ish uint8 images, with flat grey, black, white and pure-colour patches, where hue is hard."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 3, height, width), generator=generator, dtype=torch.uint8)
    images[:, :, :2, :2] = 128
    images[:, :, :2, 2:4] = 0
    images[:, :, 2:4, :2] = 255
    images[:, 0, 2:4, 2:4], images[:, 1:, 2:4, 2:4] = 255, 0
    images[:, 1, 4:6, 2:4], images[:, 2, 4:6, 2:4] = 200, 200  # two channels share the largest value
    return images.to(device)
