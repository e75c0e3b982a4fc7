"""The cut-out square against torchvision's erase, and what `augment.strong` makes of it. The other operations: test_augment.py."""

import pytest
import torch
from torchvision.transforms.v2 import functional as tvf

from sslcourse import augment
from sslcourse.augment.operations import cut_out


@pytest.mark.parametrize("height, width", [(32, 32), (20, 31)])
def test_cut_out_equals_torchvisions_erase(height, width):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(40, 3, height, width, generator=generator)
    top = torch.randint(0, 9, (40,), generator=generator)
    left = torch.randint(0, 9, (40,), generator=generator)
    side = torch.randint(1, 10, (40,), generator=generator)
    centre = torch.stack([top + side / 2, left + side / 2], dim=1)
    squares = zip(x, top.tolist(), left.tolist(), side.tolist(), strict=True)
    expected = torch.stack([tvf.erase(image, i, j, h, h, v=torch.tensor(0.5)) for image, i, j, h in squares])
    assert torch.equal(cut_out(x.clone(), centre, side.float()), expected)


def test_cut_out_is_cut_off_at_the_edges_and_leaves_images_with_side_0():
    x = torch.rand(2, 3, 8, 8)
    done = cut_out(x.clone(), torch.tensor([[0.0, 8.0], [4.0, 4.0]]), torch.tensor([4.0, 0.0]))
    assert (done[0, :, :2, 6:] == 0.5).all()
    changed = (done != x).any(1)  # (2, 8, 8)
    assert changed[0].sum() == 4 and not changed[1].any()


def test_strong_views_differ_in_their_squares():
    images = torch.full((200, 3, 32, 32), 255, dtype=torch.uint8)
    view = augment.strong(32, jitter=(0, 0, 0, 0), grayscale=0.0)
    torch.manual_seed(0)
    covered = (view(images)[:, 0] == 0).float().mean((1, 2))  # grey is 0 after normalisation, white is 2
    assert covered.max() <= 0.25 + 1e-6, "a square has at most half the side"
    assert 0.04 < covered.mean() < 0.09  # a third of (1/2)² in the mean, less what the edges cut off
    assert covered.unique().numel() > 50


@pytest.mark.parametrize("cutout", [-0.1, 1.1, float("nan")])
def test_cutout_outside_its_range_is_refused(cutout):
    with pytest.raises(ValueError, match="cutout is a part of the side"):
        augment.weak(32, cutout=cutout)


def test_without_cutout_the_random_numbers_are_the_same_as_ever():
    torch.manual_seed(3)
    augment.weak(32)(torch.zeros(5, 3, 32, 32, dtype=torch.uint8))
    after = torch.rand(1)
    torch.manual_seed(3)
    torch.rand(5, 14)
    assert torch.equal(after, torch.rand(1))
