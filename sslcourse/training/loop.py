"""The loop that every training of this package goes through, and what it is asked before it starts.

Nothing inside it waits for the device: losses are added up where they are computed and read once an epoch.
"""

import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from sslcourse.devices import seeded
from sslcourse.diagnostics.guard import NonFiniteGuard
from sslcourse.errors import CourseError
from sslcourse.files import plain
from sslcourse.loaders import TensorLoader
from sslcourse.training import distributed
from sslcourse.training.checkpoints import History, load_checkpoint, previous, save_checkpoint
from sslcourse.training.optimizers import one_cycle


def run_loop(
    model: nn.Module,
    loader: TensorLoader,
    loss_of: Callable[..., tuple[Tensor, Mapping[str, Tensor]]],
    look: Callable[[int, bool], dict | None],
    *,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    lr: float,
    warmup: float,
    clip_norm: float | None,
    guard: NonFiniteGuard | None,
    device: torch.device,
    precision: str,
    seed: int,
    settings: dict,
    checkpoint: str | os.PathLike | None,
    stop_after: int | None,
    progress: bool,
    name: str,
    hooks: "Hooks | None" = None,
    stacklevel: int = 3,
) -> History:
    """The loop. loss_of(*batch) -> loss and further scalars; look(epoch, last) -> further columns, or None for no row at this epoch."""
    settings, hooks = plain(settings), hooks or Hooks()
    rank, alone = distributed.rank(), distributed.world_size() == 1
    schedule = one_cycle(optimizer, lr, epochs * len(loader), warmup)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule, "scaler": scaler, "loader": loader}
    history = History(settings=settings)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    after_step = getattr(model, "after_step", None)  # a moving average, where a method keeps one
    steps = epochs * len(loader)
    with seeded(seed):
        totals: dict[str, Tensor] = {}
        if checkpoint and _exists(checkpoint):
            totals = load_checkpoint(checkpoint, settings, parts, history)
            totals = {key: torch.as_tensor(value, device=device) for key, value in totals.items()}
        quiet = {} if progress and rank == 0 else {"disable": True}  # not disable=False: that would overrule the environment's TQDM_DISABLE
        started = time.perf_counter() - history.final.get("seconds", 0.0)
        bar = tqdm(total=epochs, initial=loader.epoch, desc=name, unit="epoch", leave=False, file=_bar_stream(), **quiet)
        model.train()
        last = epochs if stop_after is None else min(epochs, stop_after)
        step = loader.epoch * len(loader) + loader.start
        while loader.epoch < last and not history.stopped:
            totals = totals if loader.start else {}
            for batch in loader:
                step += 1
                if not alone:  # each process draws its own views, and the same ones when it begins here again
                    torch.manual_seed((seed * 1_000_003 + step) * 1_009 + rank)
                if guard is not None:
                    guard.before(step, model)
                loss, others = loss_of(*batch)
                optimizer.zero_grad(set_to_none=True)
                scaler.scale(loss).backward()
                if guard is not None:  # before clipping, which would spread an infinity to all weights
                    guard.check(step, loss, model, optimizer, batch, forward=lambda batch: loss_of(*batch)[0], scaler=scaler)
                if clip_norm is not None:
                    scaler.unscale_(optimizer)
                    nn.utils.clip_grad_norm_(trained, clip_norm)
                scaler.step(optimizer)
                scaler.update()
                _advance(schedule, scaler)
                if after_step is not None:
                    after_step(step, steps)
                for key, value in {"loss": loss.detach(), **others}.items():
                    totals[key] = totals[key] + value if key in totals else value.clone()
                if alone and loader.batch < len(loader) and hooks.wants_checkpoint(step):
                    if checkpoint and math.isfinite(totals["loss"].item()):  # the last good one stays
                        if guard is not None:
                            guard.check_state(step, model, optimizer)
                        save_checkpoint(checkpoint, settings, parts, history, totals)
                    hooks.stop_if_asked(step, bool(checkpoint))
            if guard is not None:
                guard.check_state(step, model, optimizer)
            epoch = loader.epoch
            means = distributed.mean_over_ranks({key: (total / len(loader)).item() for key, total in totals.items()}, device)
            bar.update()
            if not math.isfinite(means["loss"]):
                history.stopped = f"The loss was {means['loss']} in epoch {epoch}; lower lr (it is {lr:g}) or look for bad inputs."
                warnings.warn(history.stopped, stacklevel=stacklevel)
            more = look(epoch, epoch == last or bool(history.stopped)) if rank == 0 else {}
            if more is not None:
                rate = lr * schedule.lr_lambdas[0](schedule.last_epoch)  # before any factor of lr_scales
                row = {"epoch": epoch, "step": step, "lr": rate, **means, **more}
                row["seconds"] = time.perf_counter() - started
                history.rows.append(row)
                bar.set_postfix_str(_in_short(row))
                if checkpoint and not history.stopped and rank == 0:  # the last good one stays
                    save_checkpoint(checkpoint, settings, parts, history)
                if hooks.on_row is not None and rank == 0:
                    hooks.on_row(row, history)
            if distributed.any_rank(hooks.asked, device):
                hooks.asked = True
                hooks.stop_if_asked(step, bool(checkpoint))
        bar.close()
    model.eval()
    return history


def _bar_stream():
    """Where the progress bar is drawn: in a notebook among what is printed, where the next line covers it; stderr leaves a coloured gap."""
    return sys.stdout if type(sys.stdout).__module__.startswith("ipykernel.") else sys.stderr


def _exists(checkpoint: str | os.PathLike) -> bool:
    return Path(checkpoint).exists() or previous(checkpoint).exists()


class Stopped(CourseError):
    """A run was asked to stop, and has; if it has a checkpoint file, that is written."""


@dataclass
class Hooks:
    """What whoever runs a long training may want of it, beside its end.

    on_row(row, history): called after every row, with several processes on the first only. checkpoint_every: steps between two checkpoints
    inside an epoch, 0 for none; the end of each epoch has one in any case. asked: set it, from a signal handler for example, to make the
    run write a checkpoint after the present step and raise Stopped; with several processes, at the end of the epoch.
    """

    on_row: Callable[[dict, History], None] | None = None
    checkpoint_every: int = 0
    asked: bool = False

    def wants_checkpoint(self, step: int) -> bool:
        return self.asked or bool(self.checkpoint_every) and step % self.checkpoint_every == 0

    def stop_if_asked(self, step: int, kept: bool) -> None:
        """kept: whether there is a checkpoint to go on from."""
        if self.asked:
            way_on = "The same call goes on from there." if kept else "It had no checkpoint file, so the same call begins anew."
            raise Stopped(f"Stopped as asked, after step {step}. {way_on}")


def _advance(schedule: torch.optim.lr_scheduler.LambdaLR, scaler: torch.amp.GradScaler) -> None:
    if scaler.is_enabled() and schedule.last_epoch == 0:
        with warnings.catch_warnings():  # in fp16 the scaler leaves out first steps until its scale fits; torch takes that for a mistake
            warnings.filterwarnings("ignore", message=".*lr_scheduler")
            schedule.step()
    else:
        schedule.step()


def _in_short(row: Mapping[str, float]) -> str:
    """What the progress bar says beside the time."""
    texts = [f"loss {row['loss']:.3f}" + (f" (chance {row['chance_loss']:.3f})" if "chance_loss" in row else "")]
    texts += [
        f"{label} {100 * row[key]:.1f} %" for key, label in (("validation_accuracy", "validation"), ("knn_accuracy", "kNN")) if key in row
    ]
    texts += [f"std {row['feature_std']:.3f}"] if "feature_std" in row else []
    return ", ".join(texts)


def epochs_for(labels: int, steps: int, passes: int = 1, batch_size: int = 64) -> int:
    """Epochs for training on a few or on many labelled images: as many as make `steps` steps, and at least `passes` passes.

    labels: labelled images, of which an epoch takes whole batches only, and one of all where they are fewer than batch_size. The steps
    keep training on few labels long enough, the passes that on many; both rules together give a baseline that is fair at either end.
    """
    return max(1, passes, steps // max(1, labels // batch_size))


def check_budget(images, part: str, epochs: int, lr: float, seed: int) -> tuple[int, float, int]:
    """Epochs, rate and seed as Python's own numbers, which checkpoints can hold; or a sentence on what is wrong. part: learned from."""
    if not hasattr(images, part) or not hasattr(images, "validation_images"):
        raise TypeError(f"images must be a datasets.ImageSet, such as datasets.load gives, not {type(images).__name__}.")
    if int(epochs) != epochs or epochs < 1:
        raise ValueError(f"epochs is the number of passes over {part} and must be a whole number of at least 1, not {epochs}.")
    if not (lr > 0 and math.isfinite(lr)):
        raise ValueError(f"lr must be positive, not {lr}.")
    return int(epochs), float(lr), int(seed)
