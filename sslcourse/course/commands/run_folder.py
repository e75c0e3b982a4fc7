"""The folder of a long run: a lock, a log, metrics that any program can read, checkpoints, and the encoder at the end.

checkpoint.pt, checkpoint.previous.pt   everything to go on from (`checkpoints`)
metrics.csv, metrics.jsonl              a row an epoch; written anew with each row, so that they never hold a row twice
log.txt                                 what was said, with the date
encoder.safetensors                     what is kept (`models.load_network`), once the run has ended
"""

import csv
import io
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from sslcourse.errors import CourseError
from sslcourse.files import sweep, write_atomically

CHECKPOINT, ENCODER, LOG, LOCK = "checkpoint.pt", "encoder.safetensors", "log.txt", ".lock"


class RunFolder:
    """A context in which this process alone writes into a folder.

    resume: whether a run that is there already shall go on; without it such a folder is refused, so that nothing is lost by a typing error.
    writes: False for the further processes of one torchrun, which only read.
    Raises CourseError when another process is at work there, when there is a run already, and when the folder cannot be written.
    """

    def __init__(self, path: str | os.PathLike, *, resume: bool = False, writes: bool = True):
        self.path, self.resume, self.writes = Path(path), resume, writes
        self._lock = None

    @property
    def checkpoint(self) -> Path:
        return self.path / CHECKPOINT

    @property
    def encoder(self) -> Path:
        return self.path / ENCODER

    def __enter__(self) -> "RunFolder":
        if not self.writes:
            return self
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.path / LOCK)  # the system's own lock: it ends with the process, however that ends
            self._lock.acquire(timeout=0)
        except Timeout:
            raise CourseError(f"Another process is at work in {self.path}. Wait for its end, or choose another folder.") from None
        except OSError as error:
            raise CourseError(f"{self.path} cannot be written ({error.strerror or error}). Choose another folder.") from error
        if not self.resume and any((self.path / name).exists() for name in (CHECKPOINT, ENCODER)):
            self._lock.release()
            raise CourseError(f"There is a run in {self.path} already. Add --resume to go on with it, or choose another folder.")
        sweep(self.path)
        return self

    def __exit__(self, *_) -> None:
        if self._lock is not None:
            self._lock.release()

    def say(self, text: str) -> None:
        """A line for the reader and the log. A terminal that is gone, or a full disk, does not end a run."""
        if not self.writes:
            return
        try:
            print(text, flush=True)
        except OSError:  # nobody reads any more; Python would complain again at its end
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        try:
            with open(self.path / LOG, "a", encoding="utf-8") as log:
                log.write(f"{datetime.now().astimezone().isoformat(timespec='seconds')} {text}\n")
        except OSError:
            pass

    def write_metrics(self, rows: Sequence[Mapping[str, float]]) -> None:
        """metrics.csv and metrics.jsonl, a row an epoch. A number that is not finite is empty in the one and null in the other."""
        if not self.writes or not rows:
            return
        columns = list(dict.fromkeys(name for row in rows for name in row))
        table = io.StringIO()
        writer = csv.DictWriter(table, columns, lineterminator="\n")
        writer.writeheader()
        clean = [{name: value if math.isfinite(value) else None for name, value in row.items()} for row in rows]
        writer.writerows(clean)
        lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in clean)
        try:
            write_atomically(self.path / "metrics.csv", table.getvalue().encode())
            write_atomically(self.path / "metrics.jsonl", lines.encode())
        except OSError as error:  # they are made anew with the next row
            self.say(f"The metrics could not be written ({error.strerror}); the run goes on.")


def in_a_line(row: Mapping[str, float], epochs: int) -> str:
    """A row of a History as plain text: epoch, loss with its chance level, and what was looked at."""
    parts = [f"epoch {row['epoch']:.0f}/{epochs}", f"loss {row['loss']:.4f}"]
    if "chance_loss" in row:
        parts[-1] += f" (chance {row['chance_loss']:.4f})"
    for key, text, factor, unit in (
        ("rotation_accuracy", "rotations right", 100, " %"),
        ("positive_similarity", "similarity of views", 1, ""),
        ("target_similarity", "similarity to target", 1, ""),
        ("diagonal", "diagonal", 1, ""),
        ("feature_rank", "rank of features", 1, ""),
        ("knn_accuracy", "nearest neighbours", 100, " %"),
    ):
        if key in row:
            parts.append(f"{text} {factor * row[key]:.{1 if factor == 100 or key == 'feature_rank' else 3}f}{unit}")
    return ", ".join([*parts, f"{row['seconds']:.0f} s"])
