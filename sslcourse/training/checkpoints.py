"""What a run leaves: its History, and checkpoints from which it goes on exactly where it was."""

import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from sslcourse.devices import random_states, set_random_states
from sslcourse.errors import CourseError
from sslcourse.files import ZIP, differences, out_of_memory, reason, write_atomically

WAY_OUT = "Name another file. Delete it only if it was this run's own, which then starts anew."


@dataclass
class History:
    """One row of numbers an epoch (or every few), in order. `history["loss"]` is a column; NaN where a row has no such number."""

    rows: list[dict[str, float]] = field(default_factory=list)
    settings: dict = field(default_factory=dict)
    stopped: str = ""  # why the run ended early, in a sentence

    def __getitem__(self, name: str) -> list[float]:
        if not any(name in row for row in self.rows):
            known = sorted({key for row in self.rows for key in row})
            raise KeyError(f"History has no column {name!r}; it has {', '.join(known) or 'no rows yet'}.")
        return [row.get(name, math.nan) for row in self.rows]

    final = property(lambda self: self.rows[-1] if self.rows else {})


def previous(path) -> Path:
    """Where `save_checkpoint` keeps the checkpoint before the newest: run.pt -> run.previous.pt."""
    path = Path(path)
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def save_checkpoint(path, parts: dict[str, object], history: History, under_way: Mapping | None = None) -> None:
    """Write all that a run needs to go on exactly, atomically; the last file stays as `previous`. under_way: an unfinished epoch's sums."""
    state = {"settings": history.settings, "rows": history.rows, "under_way": dict(under_way or {}), "rng": random_states()}
    state["parts"] = {name: part.state_dict() for name, part in parts.items()}
    write_atomically(path, lambda stream: torch.save(state, stream), keep=previous(path))


def load_checkpoint(path, parts: dict[str, object], history: History) -> dict:
    """Put the states of `save_checkpoint` back into the parts, the history and the random generators; returns what was under way.

    A damaged file is passed over, with a warning, if the one before it is whole. Raises CourseError when neither is a checkpoint of this
    course, or when it belongs to a run with other settings. Nothing in a file is ever executed.
    """
    try:
        state = _read(path)
    except CourseError as error:
        may_not = isinstance(error.__cause__, OSError) and os.path.exists(path)  # whole, for all we know
        if may_not or not previous(path).exists():
            raise
        path = previous(path)
        state = _read(path)
        warnings.warn(f"{error} The checkpoint before it, {path.name}, was taken.", stacklevel=2)
    if found := differences({name: state["settings"].get(name) for name in history.settings}, history.settings):
        raise CourseError(f"{path} belongs to a run with other settings: {found}. Give the same ones, or begin in another file or folder.")
    try:
        for name, part in parts.items():
            part.load_state_dict(state["parts"].pop(name))  # taken out, so that there is no second copy for longer than needed
        history.rows[:], history.settings = state["rows"], state["settings"] | history.settings
        set_random_states(state["rng"])
        return dict(state["under_way"])
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        if out_of_memory(error):
            raise
        told = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise CourseError(f"{path} does not fit this model or optimizer ({told}). {WAY_OUT}") from error


def _read(path) -> dict:
    try:
        with open(path, "rb") as stream:
            if stream.read(len(ZIP)) != ZIP:
                raise ValueError("not a file of torch.save")
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {**state, "settings": dict(state["settings"])}
    except OSError as error:
        raise CourseError(f"{path} cannot be read: {reason(error)}.") from error
    except Exception as error:  # torch raises many kinds for what is not its file; each means the same to the reader
        if out_of_memory(error):
            raise
        raise CourseError(f"{path} cannot be read as a checkpoint of this course ({type(error).__name__}). {WAY_OUT}") from error
