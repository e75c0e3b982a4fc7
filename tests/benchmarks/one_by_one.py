"""What both benchmarks need: images, a DataLoader that transforms PIL images one by one, turns that the contenders take, and their table.

A contender is a pair: its turn, which takes seconds and gives (images it dealt with, seconds they took), and a note; the turn is None where
it cannot take part, and the note says why.
"""

import itertools
import statistics
import sys
import time

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


def turn_of(step, held_ready=0, workers=1, now=time.perf_counter):
    """A turn of calls of `step`, which deals with a batch and gives its length. What workers hold ready at first is thrown away."""

    def turn(seconds):
        for _ in range(held_ready + 1):
            step()
        images, steps, started, elapsed = 0, 0, now(), 0.0
        while elapsed < seconds or not steps:
            images += sum(step() for _ in range(workers))  # workers deliver in turns, so only whole turns are counted
            steps, elapsed = steps + workers, now() - started
        if held_ready:
            time.sleep(1.5 * (held_ready + workers) * elapsed / steps)  # let them fill up, out of the others' way
        return images, elapsed

    return turn


def compared(contenders, rounds, seconds):
    """Lines of text: a row a contender, with its median rate, the range of its rounds, and how many times faster the first one is.

    contenders: name -> what makes one. They take turns of so many seconds, round after round.
    """
    rows, rates = {}, {name: [] for name in contenders}
    for name, make in contenders.items():
        try:
            rows[name] = make()
        except ImportError:
            rows[name] = None, MISSING
    for _ in range(rounds):
        for name, (turn, _) in rows.items():
            if turn is not None:
                images, elapsed = turn(seconds)
                rates[name].append(images / elapsed)
    lines, own = [f"{'':24}{'images/s':>10}{'lowest to highest':>22}{'ours is':>10}   how"], None
    for name, (_, note) in rows.items():
        if not rates[name]:
            lines.append(f"{name:24}{'–':>10}{'':32}   {note}")
            continue
        rate, span = statistics.median(rates[name]), f"{min(rates[name]):,.0f} to {max(rates[name]):,.0f}"
        ratio = f"{own / rate:.2f}×" if own else ""
        lines.append(f"{name:24}{rate:>10,.0f}{span:>22}{ratio:>10}   {note}")
        own = own or rate
    return lines
