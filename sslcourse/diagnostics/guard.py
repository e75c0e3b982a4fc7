"""A guard for training loops: it stops at the first step that is not finite, before the optimizer spreads it, and keeps the evidence."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from sslcourse.devices import random_states, random_states_kept, set_random_states
from sslcourse.diagnostics.findings import STANDING, Finding, finite
from sslcourse.diagnostics.search import find_nonfinite
from sslcourse.errors import CourseError
from sslcourse.files import write_atomically

PATIENCE = 25  # bad gradients in a row that a GradScaler may have: from 65536 it halves its scale 16 times until it is 1


class NonFiniteError(CourseError):
    """Training met a NaN or an infinity. finding: what `find_nonfinite` says, or None. step: when."""

    def __init__(self, message: str, finding: Finding | None = None, step: int = 0):
        super().__init__(message)
        self.finding, self.step = finding, step


class NonFiniteGuard:
    """Stops training at the first step whose loss or gradients are not finite, before the optimizer's step makes NaN weights of them.

    >>> guard = NonFiniteGuard("runs")
    >>> for step, batch in enumerate(batches):
    ...     guard.before(model)              # notes the random state and the buffers
    ...     loss = model(*batch)
    ...     loss.backward()
    ...     guard.check(step, loss, model, optimizer, batch)  # before clipping: it would turn inf into NaN
    ...     optimizer.step()
    ... guard.check_state(step, model, optimizer)  # before each checkpoint

    It raises NonFiniteError, which names the culprit (`find_nonfinite`); weights and buffers are those before the step. folder: where
    bad_batch.pt (see `load_bad_batch`) and nonfinite.txt are then written; None writes nothing. A check makes the device wait once.
    """

    def __init__(self, folder: str | os.PathLike | None = None):
        self.folder = Path(folder) if folder is not None else None
        self._random = random_states()
        self._buffers: list[tuple[Tensor, Tensor]] = []
        self._bad_in_a_row = 0
        self._stepped = False  # on gradients that were seen to be finite

    def before(self, model: nn.Module) -> None:
        """Call it before the forward pass, so that a bad step can be repeated with the same random numbers and statistics."""
        self._random = random_states()
        self._buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]

    def check(
        self, step: int, loss: Tensor, model: nn.Module, optimizer: Optimizer, batch, *,
        forward: Callable | None = None, scaler: GradScaler | None = None,
    ) -> None:  # fmt: skip
        """Call it after backward, before clipping and the optimizer's step.

        loss: before a scaler's factor. forward: as in `find_nonfinite`. scaler: in fp16 a GradScaler leaves out steps with bad gradients by
        itself while it looks for its scale; PATIENCE of them in a row are let pass. Raises NonFiniteError.
        """
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        good = finite(loss, *gradients)
        self._bad_in_a_row = 0 if good else self._bad_in_a_row + 1
        if good or (scaler is not None and scaler.is_enabled() and self._bad_in_a_row <= PATIENCE and finite(loss)):
            self._stepped = True
            return
        with torch.no_grad():
            for buffer, before in self._buffers:
                buffer.copy_(before)
        with random_states_kept():
            set_random_states(self._random)
            finding = find_nonfinite(model, batch, forward=forward)
        evidence = {"loss": loss.item(), "batch": batch, "report": str(finding), "model": dict(model.state_dict()), "random": self._random}
        evidence = tree_map_only(Tensor, lambda tensor: tensor.detach().cpu(), evidence)
        self._stop(step, "before the optimizer's step", finding, evidence)

    def check_state(self, step: int, model: nn.Module, optimizer: Optimizer) -> None:
        """Call it before writing a checkpoint. Raises NonFiniteError where weights, statistics or the optimizer's state are not finite."""
        state = [value for entries in optimizer.state.values() for value in entries.values()]
        healthy = finite(*model.parameters(), *model.buffers(), *state)
        if not healthy and (finding := find_nonfinite(model, optimizer=optimizer)):  # None for a buffer that is a mask of -inf
            self._stop(step, "after the optimizer's step", finding)

    def _stop(self, step: int, when: str, finding: Finding | None, evidence: dict | None = None) -> None:
        if finding is not None and finding.kind == "parameter" and self._stepped:
            finding = replace(finding, kind="parameter after the step", cause=STANDING["parameter after the step"])
        text = str(finding) if finding is not None else "The step could not be repeated: on the same batch everything was finite."
        message = f"Training stopped at step {step}, {when}. {text}"
        if self.folder is not None:
            try:
                write_atomically(self.folder / "nonfinite.txt", (message + "\n").encode())
                if evidence is not None:
                    file = write_atomically(self.folder / "bad_batch.pt", partial(torch.save, {"step": step, **evidence}))
                    message += f"\nThe batch and the weights before the step are in {file}: see load_bad_batch."
            except CourseError as error:
                message += f"\n{error}"
        raise NonFiniteError(message, finding, step)


@dataclass(frozen=True)
class BadBatch:
    """What `NonFiniteGuard` saved of a step."""

    step: int
    loss: float
    batch: object  # as the loop had it, on the CPU
    report: str  # what find_nonfinite said
    model: dict[str, Tensor]  # the state_dict before the step
    random: dict

    def put_back(self, model: nn.Module) -> None:
        """Give the model the weights and statistics, and torch the random state, from which the step fails again."""
        model.load_state_dict(self.model)
        set_random_states(self.random)


def load_bad_batch(path: str | os.PathLike) -> BadBatch:
    """Read a bad_batch.pt of `NonFiniteGuard` (nothing in it is executed): after bad.put_back(method), find_nonfinite(method, bad.batch).

    Raises CourseError when it is not such a file, or is damaged.
    """
    try:
        return BadBatch(**torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # torch raises many kinds for what is not its file
        raise CourseError(f"{path} cannot be read as a batch that NonFiniteGuard saved ({type(error).__name__}). Name its file.") from error
