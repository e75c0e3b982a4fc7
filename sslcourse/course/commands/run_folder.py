"""The folder of a long run: a lock, a log, metrics that any program can read, checkpoints, and the encoder at the end.

checkpoint.pt, checkpoint.previous.pt   everything to go on from (`training.checkpoints`)
metrics.csv                             a row an epoch; written anew with each row, so that it never holds a row twice
log.txt                                 what was said, with the date
encoder.safetensors                     what is kept (`models.load_network`), once the run has ended
encoder-8.safetensors                   the encoder after 8 epochs, where it was asked for
"""

import csv
import io
import math
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from sslcourse.errors import CourseError
from sslcourse.files import check_writable, reason, sweep, write_atomically


class RunFolder:
    """A context in which this process alone writes into a folder.

    resume: whether a run that is there already shall go on. writes: False for the further processes of one torchrun, which only read.
    Raises CourseError when another process is at work there, when there is a run already, and when the folder cannot be written.
    """

    def __init__(self, path: str | os.PathLike, *, resume: bool = False, writes: bool = True):
        self.path, self.resume, self.writes = Path(path), resume, writes
        self.checkpoint, self.encoder = self.path / "checkpoint.pt", self.path / "encoder.safetensors"
        self._lock = FileLock(self.path / ".lock")  # the system's own: it ends with the process, however that ends

    def __enter__(self) -> "RunFolder":
        if not self.writes:
            return self
        check_writable(self.path, "--out")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise CourseError(f"Another process is at work in {self.path}. Wait for its end, or choose another folder.") from None
        except OSError as error:  # somebody else's lock
            raise CourseError(f"{self.path} cannot be used: {reason(error)}. Give another folder as --out.") from error
        if not self.resume and (self.checkpoint.exists() or self.encoder.exists()):
            self._lock.release()
            raise CourseError(f"There is a run in {self.path} already. Add --resume to go on with it, or choose another folder.")
        sweep(self.path)
        return self

    def __exit__(self, *_) -> None:
        self._lock.release()

    def say(self, text: str) -> None:
        """A line for the reader and the log. A terminal that is gone, or a full disk, does not end a run."""
        if not self.writes:
            return
        try:
            print(text, flush=True)
        except OSError:  # nobody reads any more; Python would complain again at its end
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        with suppress(OSError), open(self.path / "log.txt", "a", encoding="utf-8") as log:
            log.write(f"{datetime.now().astimezone().isoformat(timespec='seconds')} {text}\n")

    def write_metrics(self, rows: Sequence[Mapping[str, float]]) -> None:
        """metrics.csv, a row an epoch. A number that is not finite is left empty."""
        if not self.writes:
            return
        table = io.StringIO()
        writer = csv.DictWriter(table, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: value if math.isfinite(value) else None for name, value in row.items()} for row in rows)
        try:
            write_atomically(self.path / "metrics.csv", table.getvalue().encode())
        except CourseError as error:  # it is made anew with the next row
            self.say(f"{error} The run goes on.")
