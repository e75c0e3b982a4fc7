"""What happens around the steps of a training, a small class each: views, guard, rows, checkpoints, progress, stopping."""

import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from sslcourse.devices import rank, world_size
from sslcourse.diagnostics.search import as_found
from sslcourse.display import progress_bar, request
from sslcourse.errors import CourseError
from sslcourse.training.checkpoints import load_checkpoint, previous, save_checkpoint
from sslcourse.training.distributed import mean_over_ranks
from sslcourse.training.loop import Run


class Callback:
    """Called by `loop.train` with its Run at the moments that the methods name; a subclass has those that it needs."""

    def start(self, run: Run) -> None: ...
    def before_step(self, run: Run) -> None: ...
    def after_backward(self, run: Run) -> None: ...
    def after_step(self, run: Run) -> None: ...
    def after_epoch(self, run: Run) -> None: ...
    def end(self, run: Run) -> None: ...


class Guard(Callback):
    """Lets a `diagnostics.NonFiniteGuard` see every step: before clipping, which would spread an infinity to all weights."""

    def __init__(self, guard):
        self.guard = guard

    def before_step(self, run: Run) -> None:
        self.guard.before(run.model)

    def after_backward(self, run: Run) -> None:
        again = {"forward": lambda batch: run.loss_of(*batch)[0], "scaler": run.scaler}
        self.guard.check(run.step, run.loss, run.model, run.optimizer, run.batch, **again)

    def after_epoch(self, run: Run) -> None:
        self.guard.check_state(run.step, run.model, run.optimizer)


class Rows(Callback):
    """An epoch's means become a row of the History; a loss that is not finite ends the run. look(epoch, last) -> more columns or no row."""

    def __init__(self, look: Callable[[int, bool], dict | None]):
        self.look = look

    def after_step(self, run: Run) -> None:
        for name, value in {"loss": run.loss.detach(), **run.metrics}.items():
            run.totals[name] = run.totals[name] + value if name in run.totals else value.clone()

    def after_epoch(self, run: Run) -> None:
        steps = run.loader.batch or len(run.loader)  # of an epoch that was interrupted, those that were done
        means = mean_over_ranks({name: (total / steps).item() for name, total in run.totals.items()}, run.options.device)
        lr, run.totals = run.options.lr, {}
        if not math.isfinite(means["loss"]):
            run.history.stopped = f"The loss was {means['loss']} in epoch {run.epoch}; lower lr (it is {lr:g}) or look for bad inputs."
            warnings.warn(run.history.stopped, stacklevel=5)  # at the call of pretrain or fit_...
        rate = lr * run.schedule.lr_lambdas[0](run.schedule.last_epoch)  # before any factor of lr_scales
        seen, run.row = self.look(run.epoch, run.epoch == run.last_epoch or bool(run.history.stopped)) if rank() == 0 else {}, None
        if seen is not None:
            run.row = {"epoch": run.epoch, "step": run.step, "lr": rate, **means, **seen, "seconds": time.perf_counter() - run.started}
            run.history.rows.append(run.row)


class Checkpoint(Callback):
    """Goes on from the file if there is one, and writes it with each row and every so many steps, unless the loss is not finite."""

    def __init__(self, path):
        self.path = path

    def start(self, run: Run) -> None:
        run.checkpoint = self
        if Path(self.path).exists() or previous(self.path).exists():
            totals = load_checkpoint(self.path, run.parts, run.history)
            run.totals = {name: torch.as_tensor(value, device=run.options.device) for name, value in totals.items()}

    def after_step(self, run: Run) -> None:
        if run.options.checkpoint_every and run.step % run.options.checkpoint_every == 0:
            self.save_inside_epoch(run)

    def save_inside_epoch(self, run: Run) -> None:
        if run.may_break_off and math.isfinite(run.totals["loss"].item()):
            if run.options.guard is not None:
                run.options.guard.check_state(run.step, run.model, run.optimizer)
            save_checkpoint(self.path, run.parts, run.history, run.totals)

    def after_epoch(self, run: Run) -> None:
        if run.row is not None and not run.history.stopped and rank() == 0:
            save_checkpoint(self.path, run.parts, run.history)


class ProgressBar(Callback):
    """A bar over the steps, with the loss, read once a second, and the last row's accuracy and spread. On the first process only."""

    SHOWN = {"chance_loss": "chance {:.3f}", "validation_accuracy": "validation {:.1%}", "knn_accuracy": "kNN {:.1%}"}
    SHOWN |= {"feature_std": "std {:.3f}"}

    def start(self, run: Run) -> None:
        steps = {"total": run.steps, "initial": run.epoch * len(run.loader) + run.loader.start}
        self.bar = progress_bar(name=run.options.name, unit="step", hidden=not run.options.progress or rank() > 0, **steps)
        self.told = 0.0

    def after_step(self, run: Run) -> None:
        self.bar.update()
        if not self.bar.disable and time.monotonic() > self.told + 1:
            self._tell(run, run.loss.item())

    def after_epoch(self, run: Run) -> None:
        if run.row is not None and not self.bar.disable:
            self._tell(run, run.row["loss"])

    def _tell(self, run: Run, loss: float) -> None:
        seen = [text.format(run.row[name]) for name, text in self.SHOWN.items() if name in (run.row or {})]
        self.bar.set_postfix_str(", ".join([f"loss {loss:.3f}", *seen]), refresh=False)
        self.told = time.monotonic()

    def end(self, run: Run) -> None:
        self.bar.close()


class Stopped(CourseError):
    """A run was asked to stop, and has; if it has a checkpoint file, that is written."""


class StopWhenAsked(Callback):
    """Set `asked`, and the run writes its checkpoint and raises Stopped, after this step or, with several processes, after this epoch."""

    asked = False

    def after_step(self, run: Run) -> None:
        if self.asked and run.may_break_off:
            if run.checkpoint is not None:
                run.checkpoint.save_inside_epoch(run)
            self._stop(run)

    def after_epoch(self, run: Run) -> None:
        if mean_over_ranks({"asked": self.asked}, run.options.device)["asked"] > 0:  # any of the processes
            self._stop(run)

    def _stop(self, run: Run) -> None:
        way_on = "The same call goes on from there." if run.checkpoint else "It had no checkpoint file, so the same call begins anew."
        raise Stopped(f"Stopped as asked, after step {run.step}. {way_on}")


unfinished: dict[str, str] = {}  # trainings of this notebook that an interrupt ended, until they are run to their end: name -> request


class Interrupts(Callback):
    """In a notebook, an interrupt ends each training of its cell after a step, with what it has learned; a second one ends the cell."""

    interrupted = None  # the display.request in which that was

    def start(self, run: Run) -> None:
        self.here = request() if threading.current_thread() is threading.main_thread() else None
        if self.here is not None:
            self.before = signal.signal(signal.SIGINT, self._note)

    def _note(self, *_) -> None:
        if Interrupts.interrupted == self.here:
            raise KeyboardInterrupt
        Interrupts.interrupted = self.here

    def after_step(self, run: Run) -> None:
        if self.here is None or Interrupts.interrupted != self.here:
            return
        if run.checkpoint is not None:
            run.checkpoint.save_inside_epoch(run)
        where = f"Interrupted after step {run.step:,} of {run.steps:,}: the network is kept as it is now"
        run.history.stopped = f"{where}, and further trainings of this cell end after one step; run the cell again for whole ones."

    def end(self, run: Run) -> None:
        if self.here is None:
            return
        signal.signal(signal.SIGINT, self.before)
        unfinished.pop(run.options.name, None)
        if run.history.stopped.startswith("Interrupted"):
            if self.here not in unfinished.values():
                print(run.history.stopped)
            unfinished[run.options.name] = self.here


class FasterThreads(Callback):
    """Takes one thread for the steps on a CPU where that is a tenth faster than all, as beside a busy program; measured at the first step.

    How many they are decides in which order sums are made, on which the last bits of a run depend: so it is asked once, and a checkpoint
    keeps it, in `History.settings`. OMP_NUM_THREADS, where it is set, is taken unasked. say: called with a sentence about the choice.
    """

    def __init__(self, say: Callable[[str], object] = print):
        self.say, self.settled = say, False

    def before_step(self, run: Run) -> None:
        every = torch.get_num_threads()
        if self.settled or "OMP_NUM_THREADS" in os.environ or every == 1 or run.options.device.type != "cpu" or world_size() > 1:
            return
        threads = run.history.settings.get("threads") or self._measure(run, every)
        self.settled = run.history.settings["threads"] = threads
        self.say(f"{threads} of {every} threads: {'one was' if threads == 1 else 'all were'} faster when this run began.")
        torch.set_num_threads(threads)

    def _measure(self, run: Run, every: int) -> int:
        """Forward and backward passes of this step's batch, of which nothing stays."""
        seconds = {every: 0.0, 1: 0.0}
        with as_found(run.model):
            for turn in range(4):
                for threads in seconds:
                    torch.set_num_threads(threads)
                    began = time.perf_counter()
                    run.loss_of(*run.batch)[0].backward()
                    seconds[threads] += (time.perf_counter() - began) * (turn > 0)  # the first turn makes plans
        return 1 if seconds[1] < 0.9 * seconds[every] else every


def around(look: Callable[[int, bool], dict | None], options) -> list[Callback]:
    """The callbacks of a training with these options, in the order in which they are called."""
    guard = [Guard(options.guard)] if options.guard is not None else []
    checkpoint = [Checkpoint(options.checkpoint)] if options.checkpoint else []
    return [*guard, Rows(look), *checkpoint, ProgressBar(), *options.callbacks, Interrupts()]
