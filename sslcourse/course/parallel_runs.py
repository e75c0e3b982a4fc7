"""Lessons side by side: each in a process of its own, which ends together with the one that started it.

The process is this module, run with -m. It reads what to do from its standard input, which then stays open: as soon as that is closed,
on purpose or because the process at its other end is gone, the lesson is interrupted as by Ctrl-C, kernel included.
"""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from sslcourse.course.execution import FAILED, LessonRun, checkout_on_path, failed_path, partial_path, read_json, run_one
from sslcourse.files import write_json

_PATIENCE = 30  # seconds that an interrupted lesson has for shutting its kernel down


class LessonProcess:
    """A process in which `run_one` runs one lesson, given as its arguments; see there."""

    def __init__(self, lesson: Mapping, slot: int = 0):
        """slot: which of the places for processes it takes; it is only remembered."""
        self.lesson, self.slot, self._begun = lesson, slot, time.perf_counter()
        self._scratch = tempfile.TemporaryDirectory()
        self._result, self._said = Path(self._scratch.name, "result.json"), Path(self._scratch.name, "said")
        with open(self._said, "wb") as said:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sslcourse.course.parallel_runs"],
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=subprocess.STDOUT,
                env=os.environ | checkout_on_path(),
                start_new_session=True,  # Ctrl-C is for the first process alone, which passes it on in its own way
            )
        asked = pickle.dumps((self._result, dict(lesson)))
        with contextlib.suppress(OSError):  # it ended at once; `finished` says so
            self._process.stdin.write(b"%d\n" % len(asked) + asked)
            self._process.stdin.flush()

    def finished(self) -> LessonRun | None:
        """How the lesson went; None while it is running."""
        if self._process.poll() is None:
            return None
        self._close()
        found = read_json(self._result)
        said = [line.strip() for line in self._said.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        self._scratch.cleanup()
        if found:
            return LessonRun(**found | {"records": tuple(found["records"])})
        target, kept = self.lesson["target"], failed_path(self.lesson["target"])
        if partial_path(target).exists():
            os.replace(partial_path(target), kept)
        error = f"its process ended with exit status {self._process.returncode}" + (f" and said: {said[-1]}" if said else "")
        path = str(kept) if kept.exists() else None
        seconds = round(time.perf_counter() - self._begun, 3)
        return LessonRun(self.lesson["number"], self.lesson["name"], FAILED, path, seconds, error=error[:500])

    def _close(self) -> None:
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def _kill(self) -> None:
        """End what is left of it, kernel first, and take away what it had half made."""
        if self._process.poll() is None:
            for process in [*_children(self._process.pid), self._process]:
                with contextlib.suppress(Exception):  # gone by itself meanwhile
                    process.kill()
            self._process.wait()
        partial_path(self.lesson["target"]).unlink(missing_ok=True)
        self._scratch.cleanup()


def stop(processes: Iterable[LessonProcess]) -> None:
    """Interrupt these lessons, all at once, and return when they and their kernels have ended."""
    processes = list(processes)
    try:
        for process in processes:
            process._close()
        until = time.monotonic() + _PATIENCE
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process._process.wait(max(0.0, until - time.monotonic()))
    finally:  # a second Ctrl-C cuts the waiting short
        for process in processes:
            process._kill()


def _children(pid: int) -> list:
    try:
        import psutil

        return psutil.Process(pid).children(recursive=True)
    except Exception:  # no psutil, or no such process any more: a kernel whose parent is gone ends by itself
        return []


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share(slot: int, jobs: int) -> dict[str, str]:
    """What one of `jobs` processes side by side may take of this machine, as environment variables for its kernel.

    Its part of the cores, at least one, and no more than OMP_NUM_THREADS allows already; and of several GPUs one, in turn.
    """
    threads, own = max(1, cores() // jobs), os.environ.get("OMP_NUM_THREADS", "")
    if own.isdigit() and int(own) > 0:
        threads = min(threads, int(own))
    gpus = _gpus()
    return {"OMP_NUM_THREADS": str(threads)} | ({"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if len(gpus) > 1 else {})


def _gpus() -> list[str]:
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return [name.strip() for name in named.split(",")][:count] if named else [str(k) for k in range(count)]


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os.kill(os.getpid(), signal.SIGINT)


def _main() -> int:
    # Where whoever started the run ignores Ctrl-C, as a shell does for what runs behind it, this process must not.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        length = int(sys.stdin.buffer.readline())  # there is no end of file to read up to
        result, lesson = pickle.loads(sys.stdin.buffer.read(length))
        threading.Thread(target=_end_with_parent, daemon=True).start()
        write_json(result, asdict(run_one(**lesson, progress=False)))
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(_main())
