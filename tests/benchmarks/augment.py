"""How many augmented views a second? SimCLR's views by this package and by three others, measured side by side in one run.

    python tests/benchmarks/augment.py --sizes 32 96

Everybody starts from the same images in memory (uint8 tensors for this package and kornia, PIL images for torchvision and lightly, which
are quickest with those) and ends with normalised float batches of the same size. Crop scale 0.08 to 1, flip, jitter (0.8, 0.8, 0.8, 0.2)
with probability 0.8, grayscale 0.2, and blur with probability 0.5 from 64 pixels on, are the same for all, drawn anew for each image.
torchvision and lightly work image by image in a DataLoader with two worker processes, which run already when the clock starts; this
package and kornia work on whole batches with two threads. The contenders take turns, several times round, and the median round counts.
Run it on a machine that is quiet otherwise.
"""

import argparse
import os
import warnings
from functools import partial

import torch
from one_by_one import compared, from_workers, smooth_images, turn_of

from sslcourse import augment

WORKERS = 2
ROUNDS = 5


def ours(images, size, blur):
    transform = augment.simclr(size, blur=blur)
    return turn_of(lambda: len(transform(images))), "whole batches, one thread or two"


def one_by_one(images, transform):
    """A DataLoader as a contender; lightly's transform gives a list of two views."""
    next_batch, held_ready = from_workers(images, transform, len(images), WORKERS)

    def step():
        batch = next_batch()
        return sum(map(len, batch)) if isinstance(batch, list) else len(batch)

    return turn_of(step, held_ready, WORKERS), f"image by image, DataLoader with {WORKERS} workers"


def torchvision_v2(images, size, blur):
    from torchvision.transforms import v2

    steps = [
        v2.RandomResizedCrop(size, scale=(0.08, 1.0), antialias=True), v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8), v2.RandomGrayscale(0.2),
    ]
    if blur:
        steps.append(v2.RandomApply([v2.GaussianBlur(2 * max(1, round(0.05 * size)) + 1, (0.1, 2.0))], p=blur))
    steps += [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(augment.MEAN, augment.STD)]
    return one_by_one(images, v2.Compose(steps))


def lightly(images, size, blur):
    from lightly.transforms import SimCLRTransform

    normalize = {"mean": augment.MEAN, "std": augment.STD}
    return one_by_one(images, SimCLRTransform(input_size=size, gaussian_blur=blur, sigmas=(0.1, 2.0), normalize=normalize))


def kornia(images, size, blur):
    import kornia.augmentation as k

    steps = [
        k.RandomResizedCrop((size, size), scale=(0.08, 1.0)), k.RandomHorizontalFlip(p=0.5), k.ColorJitter(0.8, 0.8, 0.8, 0.2, p=0.8),
        k.RandomGrayscale(p=0.2),
    ]
    if blur:
        width = 2 * max(1, round(0.05 * size)) + 1
        steps.append(k.RandomGaussianBlur((width, width), (0.1, 2.0), p=blur))
    steps.append(k.Normalize(torch.tensor(augment.MEAN), torch.tensor(augment.STD)))
    transform = torch.nn.Sequential(*steps)

    @torch.no_grad()
    def step():
        return len(transform(images.float() / 255))

    return turn_of(step), "whole batches, two threads"


CONTENDERS = {"sslcourse": ours, "torchvision v2": torchvision_v2, "lightly": lightly, "kornia": kornia}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 96], help="pixels a side")
    parser.add_argument("--batch", type=int, default=256, help="images a batch")
    parser.add_argument("--seconds", type=float, default=10.0, help="time for each contender at each size, over all rounds")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(2)
    busy = f", load {os.getloadavg()[0]:.1f} before the start" if hasattr(os, "getloadavg") else ""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batches of {options.batch}, median of {ROUNDS} rounds{busy}")
    for size in options.sizes:
        images, blur = smooth_images(options.batch, size), 0.5 if size >= 64 else 0.0
        contenders = {name: partial(make, images, size, blur) for name, make in CONTENDERS.items()}
        print(f"\n{size} px{' with blur' if blur else ''}, each view counted as an image")
        print("\n".join(compared(contenders, ROUNDS, options.seconds / ROUNDS)))


if __name__ == "__main__":
    main()
