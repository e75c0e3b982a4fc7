"""How many images a second does pretraining learn from? This package and lightly, side by side in one run, and what costs the time.

    python tests/benchmarks/throughput.py --device cpu --precision fp32

The same backbone (a ResNet-9), batch, image size, optimizer (AdamW) and arithmetic for all, and SimCLR's views as for CIFAR-10: crop scale
0.08 to 1, flip, jitter (0.4, 0.4, 0.4, 0.1) with probability 0.8, grayscale 0.2. The rows:

* ours: `training.pretrain` itself, from uint8 images in memory to the optimizer's step; seconds from its own History, without the first
  epoch of each round.
* ours, views made before: the same call, with an augmentation that gives the same two views each time. What the network alone allows.
* lightly: its SimCLRTransform, SimCLRProjectionHead and NTXentLoss in the loop of its documentation, which encodes one view
  after the other; PIL images in memory, a DataLoader with a worker process for each core, which run already when the clock starts.
* lightly, channels last: the same with images and weights stored channels-last, which its documentation does not do and this package does.

The contenders take turns, several rounds, and the median round counts. Run it on a quiet machine: between its turns lightly's workers
are idle, but its turn needs all cores.
"""

import argparse
import math
import os
import time
from functools import partial

import torch
from one_by_one import compared, from_workers, smooth_images, turn_of

from sslcourse import augment, datasets, models, training
from sslcourse.devices import autocast, choose_precision

STEPS = {"cpu": 16, "cuda": 100}  # batches an epoch; on a GPU more, as each epoch's end waits for it
LR = 1e-4  # it learns nothing for us; what counts is that nothing overflows


class MadeBefore(augment.Augmentation):
    """An augmentation that has done its work: gives the views that another one made of the first batch it saw."""

    def __init__(self, made_by):
        super().__init__(made_by.size)
        self.made_by, self.views = made_by, None

    def forward(self, images, generator=None):
        if self.views is None:
            self.views = self.made_by(images)
        return self.views


def image_set(images):
    """An ImageSet of unlabelled images only."""
    none, labels = images[:0], torch.zeros(0, dtype=torch.int64)
    return datasets.ImageSet("benchmark", ["a", "b"], augment.MEAN, augment.STD, none, labels, none, labels, none, labels, unlabeled=images)


def new_method(options, made_before=False):
    torch.manual_seed(0)
    views = augment.simclr(options.size, strength=0.5, blur=0.0)
    return models.SimCLR(models.resnet9(options.width), MadeBefore(views) if made_before else views)


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


def ours(options, images, made_before=False):
    method, images = new_method(options, made_before), images.to(options.device)
    note = "views made once, before" if made_before else "uint8 tensors in memory, views by whole batches"
    steps = len(images.unlabeled) // options.batch
    usual = epochs_of(method, images, 2, options)[1]

    def turn(seconds):
        epochs = max(1, math.ceil(seconds / usual))
        return epochs * steps * options.batch, sum(epochs_of(method, images, 1 + epochs, options)[1:])  # the first finds caches cold

    return turn, note


def lightly(options, images, channels_last=False):
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform

    torch.manual_seed(0)
    device, workers = torch.device(options.device), os.cpu_count()
    normalize = {"mean": augment.MEAN, "std": augment.STD}
    transform = SimCLRTransform(input_size=options.size, cj_strength=0.5, gaussian_blur=0.0, normalize=normalize)
    backbone = models.resnet9(options.width)
    model = torch.nn.Sequential(backbone, SimCLRProjectionHead(backbone.feature_dim, 256, 64)).to(device)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model.to(memory_format=layout)
    criterion, optimizer = NTXentLoss(temperature=0.2), training.make_optimizer("adamw", model, LR, 0.05)
    scaler = torch.amp.GradScaler(device.type, enabled=options.precision == "fp16")
    next_batch, held_ready = from_workers(images.unlabeled, transform, options.batch, workers, pin_memory=device.type == "cuda")

    def step():
        views = [view.to(device, non_blocking=True).contiguous(memory_format=layout) for view in next_batch()]
        with autocast(device, options.precision):
            z0, z1 = (model(view) for view in views)
            loss = criterion(z0, z1)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        return options.batch

    def now():
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    note = f"image by image, DataLoader with {workers} workers{', channels last' if channels_last else ''}"
    return turn_of(step, held_ready, workers, now), note


def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default="auto", choices=training.PRECISIONS, help="arithmetic of the forward pass, for all rows")
    parser.add_argument("--width", type=int, default=16, help="channels of the ResNet-9's first convolution")
    parser.add_argument("--batch", type=int, default=128, help="images a step")
    parser.add_argument("--size", type=int, default=32, help="pixels a side")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="time for a turn, at least; a turn is a whole number of epochs")
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
    print(f"SimCLR, ResNet-9 of width {options.width}, batches of {options.batch} at {options.size} px")
    images = image_set(smooth_images(STEPS.get(torch.device(options.device).type, 16) * options.batch, options.size))
    makers = {"ours": ours, "ours, views made before": partial(ours, made_before=True)}
    makers |= {"lightly": lightly, "lightly, channels last": partial(lightly, channels_last=True)}
    lines = compared({name: partial(make, options, images) for name, make in makers.items()}, options.rounds, options.seconds)
    print(f"median of {options.rounds} rounds of {options.seconds:g} s at least\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
