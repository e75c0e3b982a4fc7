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
import statistics
import sys
import time
import warnings

import torch
from one_by_one import MISSING, from_workers, smooth_images

from sslcourse import augment

WORKERS = 2
ROUNDS = 5


def ours(images, size, blur):
    transform = augment.simclr(size, blur=blur)
    return lambda: transform(images), 0


def torchvision_v2(images, size, blur):
    from torchvision.transforms import v2

    steps = [
        v2.RandomResizedCrop(size, scale=(0.08, 1.0), antialias=True), v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8), v2.RandomGrayscale(0.2),
    ]
    if blur:
        steps.append(v2.RandomApply([v2.GaussianBlur(2 * max(1, round(0.05 * size)) + 1, (0.1, 2.0))], p=blur))
    steps += [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(augment.MEAN, augment.STD)]
    return from_workers(images, v2.Compose(steps), len(images), WORKERS)


def lightly(images, size, blur):
    from lightly.transforms import SimCLRTransform

    normalize = {"mean": augment.MEAN, "std": augment.STD}
    transform = SimCLRTransform(input_size=size, gaussian_blur=blur, sigmas=(0.1, 2.0), normalize=normalize)
    return from_workers(images, transform, len(images), WORKERS)


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

    def batch():
        with torch.no_grad():
            return transform(images.float() / 255)

    return batch, 0


CONTENDERS = {
    "sslcourse": (ours, "whole batches, one thread or two"),
    "torchvision v2": (torchvision_v2, "image by image, DataLoader with 2 workers"),
    "lightly": (lightly, "image by image, two views each, DataLoader with 2 workers"), "kornia": (kornia, "whole batches, two threads"),
}


def views_in(batch):
    """Number of images of size (3, size, size) in a batch: lightly makes a list of two views, the others one tensor."""
    return sum(len(view) for view in batch) if isinstance(batch, list) else len(batch)


def one_round(make_batch, held_ready, seconds):
    """Views a second. Batches that workers had ready before the clock started are thrown away first."""
    for _ in range(held_ready + 1):
        make_batch()
    views, started = 0, time.perf_counter()
    while True:
        # workers deliver in turns, so only whole turns are counted
        views += sum(views_in(make_batch()) for _ in range(WORKERS if held_ready else 1))
        elapsed = time.perf_counter() - started
        if elapsed >= seconds:
            break
    if held_ready:
        time.sleep(1.5 * (held_ready + WORKERS) * elapsed * views_in(make_batch()) / views)  # let them fill up, out of the others' way
    return views / elapsed


def measure(size, batch_size, seconds):
    """Views a second of each contender at one size, a list over rounds each; None where one is missing."""
    images = smooth_images(batch_size, size)
    blur = 0.5 if size >= 64 else 0.0
    ready = {}
    for name, (prepare, _) in CONTENDERS.items():
        try:
            ready[name] = prepare(images, size, blur)
        except ImportError as error:
            print(f"{name}: {error}", file=sys.stderr)
    for make_batch, _ in ready.values():
        make_batch()
    time.sleep(1)
    rates = {name: [] for name in ready}
    for _ in range(ROUNDS):
        for name, (make_batch, held_ready) in ready.items():
            rates[name].append(one_round(make_batch, held_ready, seconds / ROUNDS))
    return {name: rates.get(name) for name in CONTENDERS}


def table(results, sizes):
    """Lines of text: a row a contender; for each size views a second, and how many times faster ours is."""
    heads = [f"{size} px{' with blur' if size >= 64 else ''}" for size in sizes]
    lines = [f"{'':16}" + "".join(f"{head:>18}{'ours is':>10}" for head in heads) + "   how"]
    for name, (_, how) in CONTENDERS.items():
        cells = ""
        for size in sizes:
            rates = results[size][name]
            if rates is None:
                cells, how = "", MISSING
                break
            rate, own = statistics.median(rates), statistics.median(results[size]["sslcourse"])
            cells += f"{rate:>10,.0f} views/s" + (f"{own / rate:>9.1f}×" if name != "sslcourse" else " " * 10)
        lines.append(f"{name:16}{cells}   {how}")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 96], help="pixels a side")
    parser.add_argument("--batch", type=int, default=256, help="images a batch")
    parser.add_argument("--seconds", type=float, default=10.0, help="time for each contender at each size, over all rounds")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(2)
    busy = f", load {os.getloadavg()[0]:.1f} before the start" if hasattr(os, "getloadavg") else ""
    results = {size: measure(size, options.batch, options.seconds) for size in options.sizes}
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batches of {options.batch}, median of {ROUNDS} rounds{busy}")
    print("\n".join(table(results, options.sizes)))


if __name__ == "__main__":
    main()
