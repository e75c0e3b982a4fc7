"""The loop that every training of this package goes through: the step is in `train`, what happens around it in `callbacks`.

Nothing inside a step waits for the device: losses are added up where they are computed and read once an epoch,
and once a second by a progress bar that is shown.
"""

import math
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sslcourse.devices import choose_device, choose_precision, cudnn, rank, seeded, threads_kept, world_size
from sslcourse.diagnostics.guard import NonFiniteGuard
from sslcourse.files import plain
from sslcourse.training.checkpoints import History
from sslcourse.training.optimizers import WEIGHT_DECAY, make_optimizer, one_cycle


@dataclass(kw_only=True)
class Options:
    """What `pretrain`, `fit_classifier` and `fit_semi_supervised` have in common; each takes these by name."""

    batch_size: int  # images a step
    warmup: float  # part of the steps in which the learning rate rises along a line, before it falls along a cosine
    name: str  # of the progress bar
    lr: float = 2e-3  # the peak of the learning rate
    optimizer: str = "adamw"  # or sgd, lars
    weight_decay: float | None = None  # None: 0.05, 5e-4 and 1e-6 for the three; never on biases and normalisation
    lr_scales: Mapping[str, float] | None = None  # part of the model -> factor on its learning rate, such as {"encoder": 0.1}
    clip_norm: float | None = None  # largest norm of the whole gradient; None does not clip
    precision: str = "auto"  # or fp32, bf16, fp16
    device: str | torch.device | None = None  # None: where the model is
    seed: int = 0  # of the images' order, augmentation and dropout; the caller's random state is left alone
    guard: NonFiniteGuard | None = None  # stops at the first step that is not finite, names the cause, keeps batch and last checkpoint
    checkpoint: str | os.PathLike | None = None  # a file, written with every row; where it exists, the run goes on from it exactly
    checkpoint_every: int = 0  # steps between further checkpoints inside an epoch; 0: none
    stop_after: int | None = None  # stop when this epoch is done, as if interrupted
    progress: bool = True  # whether there is a progress bar
    identity: str | None = None  # of the images; filled in
    callbacks: Sequence = ()  # further `Callback`s, called after the package's own


NOT_SETTINGS = {"name", "device", "guard", "checkpoint", "checkpoint_every", "stop_after", "progress", "callbacks"}  # change no number


def make_ready(model: nn.Module, images, learned_from: str, epochs: int, **options) -> Options:
    """Put the model on its device, with its augmentations settled, and fill in what the options left open. learned_from: part of images."""
    options = Options(**options)
    if not hasattr(images, learned_from) or not hasattr(images, "validation_images"):
        raise TypeError(f"images must be a datasets.ImageSet, such as datasets.load gives, not {type(images).__name__}.")
    if int(epochs) != epochs or epochs < 1:
        raise ValueError(f"epochs is the number of passes over {learned_from} and must be a whole number of at least 1, not {epochs}.")
    if not (options.lr > 0 and math.isfinite(options.lr)):
        raise ValueError(f"lr must be positive, not {options.lr}.")
    if options.clip_norm is not None and not options.clip_norm > 0:
        raise ValueError(f"clip_norm is the largest norm of the gradient and must be positive, or None, not {options.clip_norm}.")
    device = choose_device(options.device) if options.device is not None else next(model.parameters()).device
    precision = choose_precision(device, options.precision)
    if hasattr(model, "prepare"):
        model.prepare(images.size)
    if getattr(images, "known_identity", None):
        for encoder in (part for part in model.modules() if hasattr(part, "recipe")):
            encoder.trained_on = {"identity": images.known_identity, "image_size": images.size}  # for `models.save_network`
    model.to(device, memory_format=torch.channels_last)  # convolutions are faster so, on CPUs and tensor cores
    decay = options.weight_decay if options.weight_decay is not None else WEIGHT_DECAY.get(options.optimizer, 0.0)
    # images that were made in memory are hashed for the sake of a checkpoint alone
    identity = getattr(images, "identity" if options.checkpoint else "known_identity", None)
    found = {"device": device, "precision": precision, "weight_decay": decay, "identity": identity}
    return replace(options, lr=float(options.lr), seed=int(options.seed), **found)


class Run:
    """A training under way: what its steps need, and where it stands. Callbacks read it, and add what is theirs.

    loader: a TensorLoader or PairedLoader. loss_of(*batch) -> loss and further scalars to be averaged, by name.
    facts: what a checkpoint must agree with, beside the options.
    """

    batch: tuple = ()
    loss: Tensor | None = None
    metrics: Mapping[str, Tensor] = {}
    row: dict[str, float] | None = None  # what the epoch came to, once it is over; None where it gets no row
    checkpoint = None  # the Checkpoint among the callbacks
    step = 0

    def __init__(self, model: nn.Module, loader, loss_of: Callable, epochs: int, options: Options, facts: dict):
        self.model, self.loader, self.loss_of, self.epochs, self.options = model, loader, loss_of, int(epochs), options
        self.optimizer = make_optimizer(options.optimizer, model, options.lr, options.weight_decay, lr_scales=options.lr_scales)
        self.steps = self.epochs * len(loader)
        self.schedule = one_cycle(self.optimizer, options.lr, self.steps, options.warmup)
        self.scaler = torch.amp.GradScaler(options.device.type, enabled=options.precision == "fp16")
        self.last_epoch = self.epochs if options.stop_after is None else min(self.epochs, options.stop_after)
        self.totals: dict[str, Tensor] = {}  # what the present epoch has added up
        chosen = {name: value for name, value in vars(options).items() if name not in NOT_SETTINGS}
        chosen |= {"lr_scales": dict(options.lr_scales or {}), "epochs": self.epochs}
        recipe = next((part.recipe for part in model.modules() if hasattr(part, "recipe")), {})
        chosen["network"] = f"{recipe} {sum(p.numel() for p in model.parameters()):,} parameters"
        self.history = History(settings=plain({**chosen, **facts}))

    # what has a state that a checkpoint keeps
    parts = property(lambda self: {name: getattr(self, name) for name in ("model", "optimizer", "schedule", "scaler", "loader")})
    epoch = property(lambda self: self.loader.epoch)  # number of the present one, from 1; between two, of the one that is over

    @property
    def may_break_off(self) -> bool:
        """Whether a checkpoint can be made here: inside an epoch, by the only process, which alone knows all that was added up."""
        return self.loader.batch < len(self.loader) and world_size() == 1


def train(run: Run, callbacks: Sequence) -> History:
    """Train, from where the run stands, to its last epoch. The callbacks are called in their order at each moment."""
    model, optimizer, scaler, clip_norm = run.model, run.optimizer, run.scaler, run.options.clip_norm
    trained = [p for group in optimizer.param_groups for p in group["params"]]

    def tell(moment: str) -> None:
        for callback in callbacks:
            getattr(callback, moment)(run)

    # where the user has not asked for the same bits each time, cuDNN tries its algorithms on the first batch and takes the fastest
    by_trial = cudnn(benchmark=not torch.backends.cudnn.deterministic)
    with seeded(run.options.seed), threads_kept(), by_trial, warnings.catch_warnings(), ExitStack() as at_end:
        # in fp16 the scaler leaves out the first steps until its scale fits, which torch takes for a mistake
        warnings.filterwarnings("ignore", message=".*lr_scheduler")
        tell("start")
        at_end.callback(tell, "end")
        run.step = run.loader.epoch * len(run.loader) + run.loader.start
        run.started = time.perf_counter() - run.history.final.get("seconds", 0.0)
        model.train()
        while run.epoch < run.last_epoch and not run.history.stopped:
            for batch in run.loader:
                run.batch, run.step = batch, run.step + 1
                if world_size() > 1:  # each process draws its own views, and the same ones when it begins at this step again
                    torch.manual_seed((run.options.seed * 1_000_003 + run.step) * 1_009 + rank())
                tell("before_step")
                run.loss, run.metrics = run.loss_of(*batch)  # draws the views of the images, and compares what comes out
                optimizer.zero_grad(set_to_none=True)
                scaler.scale(run.loss).backward()
                tell("after_backward")
                if clip_norm is not None:
                    scaler.unscale_(optimizer)
                    nn.utils.clip_grad_norm_(trained, clip_norm)
                scaler.step(optimizer)
                scaler.update()
                run.schedule.step()
                if hasattr(model, "after_step"):  # BYOL moves its target, FixMatch its average
                    model.after_step(run.step, run.steps)
                tell("after_step")
                if run.history.stopped:
                    break
            tell("after_epoch")
    model.eval()
    return run.history
