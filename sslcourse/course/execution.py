"""One lesson run headlessly through papermill, in this interpreter's environment: its notebook, its log, its time and its memory."""

import contextlib
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from sslcourse.course import notebook_files
from sslcourse.errors import CourseError

DONE, BEFORE, FAILED, NOT_RUN = "done", "done before", "failed", "not run"


@dataclass(frozen=True)
class Failure:
    """Where a notebook stopped: the number of the execution, the first line of the cell, and the error."""

    cell: int | None
    line: str
    error: str

    def __str__(self) -> str:
        where = f"cell [{self.cell}] ({self.line})" if self.cell else (f"the cell {self.line!r}" if self.line else "the notebook")
        return f"{where} stopped with {self.error}"


@dataclass(frozen=True)
class LessonRun:
    """How one lesson of a run went. seconds and peak_memory (bytes) are None where nothing ran or the system does not say."""

    number: int
    name: str
    status: str  # done, done before, failed, not run
    path: str | None = None
    seconds: float | None = None
    peak_memory: int | None = None
    headline: str = ""
    error: str = ""
    records: tuple[str, ...] = ()  # the files of its result records

    @property
    def ok(self) -> bool:
        return self.status in (DONE, BEFORE)


def run_one(
    name: str,
    number: int,
    source: Path,
    target: Path,
    parameters: Mapping,
    summary: Path,
    environment: Mapping[str, str],
    timeout: float | None = None,
    progress: bool = True,
) -> LessonRun:
    """Run a lesson's notebook in its folder and say how it went.

    source: the lesson's file. target: where the executed notebook goes; one that failed gets the ending .failed.ipynb, one that was
    interrupted is deleted. parameters: for the cell tagged `parameters`. summary: the file in which the lesson leaves its headline.
    environment: for the lesson's kernel. timeout: seconds that one cell may take.
    """
    summary.unlink(missing_ok=True)
    partial, log = partial_path(target), target.parent / "logs" / f"{name}.log"
    log.parent.mkdir(exist_ok=True)
    begun = time.perf_counter()
    try:
        with PeakMemory() as sampled, environment_with(**environment):
            failure = execute(source, partial, parameters, cwd=source.parent, log=log, timeout=timeout, progress=progress)
        seconds = round(time.perf_counter() - begun, 3)
        kept = failed_path(target) if failure else target
        if partial.exists():
            os.replace(partial, kept)
    finally:
        partial.unlink(missing_ok=True)
    own = read_json(summary)
    peak = own.get("peak_memory") if isinstance(own.get("peak_memory"), int) else sampled.bytes
    if failure:
        return LessonRun(number, name, FAILED, str(kept), seconds, peak, error=str(failure))
    failed_path(target).unlink(missing_ok=True)
    records = tuple(map(str, own["records"])) if isinstance(own.get("records"), list) else ()
    return LessonRun(number, name, DONE, str(target), seconds, peak, headline=str(own.get("headline", "")), records=records)


def partial_path(target: Path) -> Path:
    """Where the executed notebook is written while it runs."""
    return target.with_name(f".{target.stem}.partial.ipynb")


def failed_path(target: Path) -> Path:
    """Where the executed notebook stays if it failed."""
    return target.with_suffix(".failed.ipynb")


def execute(
    source: Path,
    target: Path,
    parameters: Mapping,
    *,
    cwd: Path,
    log: Path | None = None,
    timeout: float | None = None,
    progress: bool = True,
) -> Failure | None:
    """Run one notebook with papermill in this interpreter's environment and write it to target, finished or not; None if all went well."""
    import papermill
    from papermill.exceptions import PapermillExecutionError

    # papermill formats {} in paths
    names = [str(Path(path).resolve()).replace("{", "{{").replace("}", "}}") for path in (source, target)]
    with contextlib.ExitStack() as stack:
        kernel = stack.enter_context(_this_interpreter())
        stream = stack.enter_context(open(log, "w", encoding="utf-8")) if log else None
        if stream and progress:
            stream = _Echo(stream)
        try:
            papermill.execute_notebook(
                *names,
                dict(parameters),
                kernel_name=kernel,
                language="python",
                cwd=str(cwd),
                progress_bar=progress,
                stdout_file=stream,
                stderr_file=stream,
                execution_timeout=timeout,
            )
        except PapermillExecutionError as error:
            first = next(iter(error.source.strip().splitlines()), "")
            message = next(iter(str(error.evalue).strip().splitlines()), "")
            return Failure(error.exec_count, first, f"{error.ename}: {message}"[:500])
        except Exception as error:  # the kernel died, or a cell took longer than the timeout
            message = next((line for line in str(error).strip().splitlines() if line.strip()), "")
            return Failure(None, _last_started(target), f"{type(error).__name__}: {message}"[:500])
    return None


class _Echo:
    """A lesson's log, which also shows what the lesson prints, as it comes, above the progress bar: a cell can take minutes."""

    def __init__(self, log):
        self.log = log

    def write(self, text: str) -> None:
        self.log.write(text)
        for line in filter(str.strip, text.splitlines()):
            tqdm.write(f"    {line}", file=sys.stderr)

    def flush(self) -> None:
        self.log.flush()


def _last_started(path: Path) -> str:
    """The first line of the cell that was running when the notebook was written for the last time."""
    with contextlib.suppress(CourseError):
        cells = [cell for cell in notebook_files.load(path).cells if cell.cell_type == "code"]
        started = [cell for cell in cells if cell.metadata.get("papermill", {}).get("start_time")]
        return next(iter(started[-1].source.strip().splitlines()), "") if started else ""
    return ""


@contextlib.contextmanager
def _this_interpreter() -> Iterator[str]:
    """A kernel that is this very interpreter, whatever 'python3' means on the machine: a kernelspec that lives as long as the run."""
    from ipykernel.kernelspec import get_kernel_dict

    spec = get_kernel_dict()
    # Without the level, a kernel that is stopped in the middle of a cell prints a traceback of its own.
    spec["argv"] = [sys.executable, *spec["argv"][1:], "--log-level=CRITICAL"]
    # a progress bar in a stored output is a page of lines; papermill's own bar, in this process, stays
    spec["env"] = {"TQDM_DISABLE": "1"}
    name = "sslcourse-headless"
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "kernels", name)
        place.mkdir(parents=True)
        (place / "kernel.json").write_text(json.dumps(spec))
        changes = {"JUPYTER_PATH": os.pathsep.join(filter(None, [folder, os.environ.get("JUPYTER_PATH")])), "SSLCOURSE_HEADLESS": "1"}
        changes |= {"MPLBACKEND": None, "PYDEVD_DISABLE_FILE_VALIDATION": "1"}  # figures inline; no warning about the debugger
        with environment_with(**changes, **checkout_on_path()):
            yield name


def checkout_on_path() -> dict[str, str]:
    """PYTHONPATH for a process that is to import this very package: a checkout may not be installed, and its lessons run all the same."""
    home = Path(__file__).resolve().parents[2]
    if not (home / "pyproject.toml").exists():
        return {}
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(home), os.environ.get("PYTHONPATH")]))}


@contextlib.contextmanager
def environment_with(**changes: str | None) -> Iterator[None]:
    """While it is entered, this process has these environment variables too; None takes one away."""
    before = {name: os.environ.get(name) for name in changes}

    def put(values):
        for name, value in values.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    put(changes)
    try:
        yield
    finally:
        put(before)


class PeakMemory:
    """The most memory that the processes started by this one held together, looked at a few times a second."""

    def __enter__(self):
        self.bytes, self._stop = None, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._stop.set()
        self._thread.join()

    def _watch(self):
        try:
            import psutil
        except ImportError:
            return
        while not self._stop.wait(0.2):
            held = 0
            with contextlib.suppress(psutil.Error):
                for child in psutil.Process().children(recursive=True):
                    with contextlib.suppress(psutil.Error):
                        held += child.memory_info().rss
            if held:
                self.bytes = max(self.bytes or 0, held)


def read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
