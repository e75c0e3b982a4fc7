"""How many images a second does pretraining learn from? This package and lightly, side by side in one run, and what costs the time.

    python tests/benchmarks/throughput.py --device cpu --precision fp32

The same backbone (a ResNet-9), batch, image size, optimizer (AdamW) and arithmetic for all, and SimCLR's views as for CIFAR-10: crop scale
0.08 to 1, flip, jitter (0.4, 0.4, 0.4, 0.1) with probability 0.8, grayscale 0.2. The rows:

* ours: `training.pretrain` itself, from uint8 images in memory to the optimizer's step; seconds from its own History, without the first
  epoch of each round.
* ours, views made before: the same call, with an augmentation that gives the same two views each time. What the network alone allows.
* ours, compiled (--compile): the first row with `encoder.compile()`; the seconds of the first step stand beside it, and count nowhere.
* lightly (SimCLR only): its SimCLRTransform, SimCLRProjectionHead and NTXentLoss in the loop of its documentation, which encodes one view
  after the other; PIL images in memory, a DataLoader with a worker process for each core, which run already when the clock starts.
* lightly, channels last: the same with images and weights stored channels-last, which its documentation does not do and this package does.

The contenders take turns, several rounds, and the median round counts. Run it on a quiet machine: between its turns lightly's workers
are idle, but its turn needs all cores.
"""

import argparse
import functools
import math
import os
import statistics
import sys
import time

import torch
from one_by_one import Pictures, endless_order
from torch.utils.data import DataLoader

from sslcourse import augment, datasets, files, models, training
from sslcourse.devices import autocast, choose_precision

STEPS = {"cpu": 16, "cuda": 100}  # batches an epoch; on a GPU more, as each epoch's end waits for it
MISSING = "not installed (pip install -e .[bench])"
METHODS = {"simclr": models.SimCLR, "byol": models.BYOL, "barlow_twins": models.BarlowTwins, "rotation": models.Rotation}
LR = 1e-4  # it learns nothing for us; what counts is that nothing overflows


# --- ours -------------------------------------------------------------------------------------------------------------------------------


class MadeBefore(augment.Augmentation):
    """An augmentation that has done its work: gives the views that another one made of the first batch it saw."""

    def __init__(self, made_by):
        super().__init__(getattr(made_by, "first", made_by).size)
        self.made_by, self.views = made_by, None

    def forward(self, images, generator=None):
        if self.views is None:
            pair = isinstance(self.made_by, augment.TwoViews)  # which is given each image once, and other augmentations each image twice
            self.views = torch.cat(self.made_by(images[: len(images) // 2])) if pair else self.made_by(images)
        return self.views


def image_set(images):
    """An ImageSet of unlabelled images only."""
    none, labels = images[:0], torch.zeros(0, dtype=torch.int64)
    return datasets.ImageSet("benchmark", ["a", "b"], augment.MEAN, augment.STD, none, labels, none, labels, none, labels, unlabeled=images)


def pictures(count, size):
    """Smooth random images, uint8 (count, 3, size, size)."""
    coarse = torch.randint(0, 256, (count, 3, max(1, size // 4), max(1, size // 4)), generator=torch.Generator().manual_seed(0)).float()
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear").byte()


def new_method(options, made_before=False):
    torch.manual_seed(0)
    method = METHODS[options.method](models.resnet9(options.width))
    if options.method == "simclr":
        method.augmentation = augment.simclr(options.size, strength=0.5, blur=0.0)
    method.prepare(options.size)
    if made_before:
        method.augmentation = MadeBefore(method.augmentation)
    return method


def epochs_of(method, images, epochs, options):
    """Seconds that each of these epochs took, as `training.pretrain` wrote them down."""
    history = training.pretrain(
        method, images, epochs, batch_size=options.batch, lr=LR, look_every=0, device=options.device, precision=options.precision,
        progress=False,
    )  # fmt: skip
    if history.stopped:
        raise RuntimeError(history.stopped)
    ends = [0.0, *history["seconds"]]
    return [end - start for start, end in zip(ends, ends[1:], strict=False)]


def ours(options, images, made_before=False, compiled=False):
    """A turn: seconds -> (images learned from, seconds they took). And what to say about it."""
    method, images = new_method(options, made_before), images.to(options.device)
    note = "views made once, before" if made_before else "uint8 tensors in memory, views by whole batches"
    if compiled:
        method.to(options.device).encoder.compile()
        first = epochs_of(method, image_set(images.unlabeled[: options.batch]), 1, options)[0]
        note = f"encoder.compile(), first step {first:.1f} s"
    steps = len(images.unlabeled) // options.batch
    usual = epochs_of(method, images, 2, options)[1]

    def turn(seconds):
        epochs = max(1, math.ceil(seconds / usual))
        return epochs * steps * options.batch, sum(epochs_of(method, images, 1 + epochs, options)[1:])  # the first finds caches cold

    return turn, note


# --- lightly ----------------------------------------------------------------------------------------------------------------------------


def lightly(options, images, channels_last=False):
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform

    torch.manual_seed(0)
    device, workers = torch.device(options.device), os.cpu_count()
    normalize = {"mean": augment.MEAN, "std": augment.STD}
    transform = SimCLRTransform(input_size=options.size, cj_strength=0.5, gaussian_blur=0.0, normalize=normalize)
    loader = DataLoader(
        Pictures(images.unlabeled, transform), batch_size=options.batch, sampler=endless_order(), num_workers=workers,
        persistent_workers=True, pin_memory=device.type == "cuda", worker_init_fn=lambda _: torch.set_num_threads(1),
        multiprocessing_context="fork" if sys.platform == "linux" else None,
    )  # fmt: skip
    backbone = models.resnet9(options.width)
    model = torch.nn.Sequential(backbone, SimCLRProjectionHead(backbone.feature_dim, 256, 64)).to(device)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model.to(memory_format=layout)
    criterion, optimizer = NTXentLoss(temperature=0.2), training.make_optimizer("adamw", model, LR, 0.05)
    scaler = torch.amp.GradScaler(device.type, enabled=options.precision == "fp16")
    batches, held_ready = iter(loader), workers * loader.prefetch_factor

    def step():
        views = [view.to(device, non_blocking=True).contiguous(memory_format=layout) for view in next(batches)]
        with autocast(device, options.precision):
            z0, z1 = (model(view) for view in views)
            loss = criterion(z0, z1)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    def now():
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    def turn(seconds):
        for _ in range(held_ready + 1):  # what the workers had ready before the clock started counts for nothing
            step()
        steps, started, elapsed = 0, now(), 0.0
        while elapsed < seconds or not steps:
            for _ in range(workers):  # workers deliver in turns, so only whole turns are counted
                step()
            steps, elapsed = steps + workers, now() - started
        time.sleep(1.5 * (held_ready + workers) * elapsed / steps)  # let them fill up, out of the others' way
        return steps * options.batch, elapsed

    step()
    return turn, f"image by image, DataLoader with {workers} workers{', channels last' if channels_last else ''}"


# --- taking turns -----------------------------------------------------------------------------------------------------------------------


def contenders(options, images):
    """Name -> (turn, note), in the table's order; turn is None where the contender cannot take part, and the note says why."""
    ready = {
        "ours": functools.partial(ours, options, images),
        "ours, views made before": functools.partial(ours, options, images, made_before=True),
    }
    if options.compile:
        ready["ours, compiled"] = functools.partial(ours, options, images, compiled=True)
    if options.method == "simclr":
        ready["lightly"] = functools.partial(lightly, options, images)
        ready["lightly, channels last"] = functools.partial(lightly, options, images, channels_last=True)
    rows = {}
    for name, prepare in ready.items():
        try:
            rows[name] = prepare()
        except ImportError:
            rows[name] = None, MISSING
        except Exception as error:
            if name != "ours, compiled":
                raise
            rows[name] = None, f"does not compile here ({type(error).__name__})"
    return rows


def take_turns(rows, rounds, seconds):
    """Images a second of each contender in each round, in turns of so many seconds: name -> list, empty where it has no turn."""
    rates = {name: [] for name in rows}
    for _ in range(rounds):
        for name, (turn, _) in rows.items():
            if turn is not None:
                images, elapsed = turn(seconds)
                rates[name].append(images / elapsed)
    return rates


def table(rows, rates):
    """Lines of text: a row a contender, with its median rate, the range of its rounds, and how many times faster ours is."""
    lines = [f"{'':24}{'images/s':>10}{'lowest to highest':>22}{'ours is':>10}   how"]
    own = statistics.median(rates["ours"])
    for name, (_, note) in rows.items():
        if not rates[name]:
            lines.append(f"{name:24}{'–':>10}{'':32}   {note}")
            continue
        rate, span = statistics.median(rates[name]), f"{min(rates[name]):,.0f} to {max(rates[name]):,.0f}"
        ratio = "" if name == "ours" else f"{own / rate:.2f}×"
        lines.append(f"{name:24}{rate:>10,.0f}{span:>22}{ratio:>10}   {note}")
    return lines


# --- command line -----------------------------------------------------------------------------------------------------------------------


def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default="auto", choices=training.PRECISIONS, help="arithmetic of the forward pass, for all rows")
    parser.add_argument("--method", default="simclr", choices=METHODS, help="lightly takes part with simclr only")
    parser.add_argument("--width", type=int, default=16, help="channels of the ResNet-9's first convolution")
    parser.add_argument("--batch", type=int, default=128, help="images a step")
    parser.add_argument("--size", type=int, default=32, help="pixels a side")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="time for a turn, at least; a turn is a whole number of epochs")
    parser.add_argument("--compile", action="store_true", help="a row with a compiled encoder")
    parser.add_argument("--json", metavar="FILE", help="write the numbers of every round to this file too")
    options = parser.parse_args(arguments)
    if min(options.rounds, options.batch - 1, options.size - 7, options.width) < 1:
        parser.error("--rounds and --width need at least 1, --batch at least 2 and --size at least 8")
    options.precision = choose_precision(torch.device(options.device), options.precision)
    return options


def main(arguments=None):
    options = parse(arguments)
    load = f", load {os.getloadavg()[0]:.1f} before the start" if hasattr(os, "getloadavg") else ""
    device = torch.cuda.get_device_name(options.device) if options.device.startswith("cuda") else f"{torch.get_num_threads()} threads"
    os.environ.setdefault("TQDM_DISABLE", "1")
    print(f"torch {torch.__version__}, {options.device} ({device}), {options.precision}{load}")
    print(f"{options.method}, ResNet-9 of width {options.width}, batches of {options.batch} at {options.size} px")
    rows = contenders(options, image_set(pictures(STEPS.get(torch.device(options.device).type, 16) * options.batch, options.size)))
    rates = take_turns(rows, options.rounds, options.seconds)
    print(f"median of {options.rounds} rounds of {options.seconds:g} s at least\n" + "\n".join(table(rows, rates)))
    result = {"images_per_second": rates, "notes": {name: note for name, (_, note) in rows.items()}}
    if options.json:
        files.write_json(options.json, {"torch": torch.__version__, "options": vars(options), **result})


if __name__ == "__main__":
    main()
