"""Headless runs: lessons in order through papermill, each checked before anything starts, and resumed where a run was interrupted.

`run` writes executed notebooks into the out folder, result records into out/results, what was printed into out/logs, and what is
finished into out/run.json.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from sslcourse import __version__, results
from sslcourse.course import lesson as lessons
from sslcourse.course import notebook_files
from sslcourse.course.selection import Notebook, check_dataset, check_parameters, find_notebooks, lesson_parameters, select
from sslcourse.errors import CourseError
from sslcourse.files import write_json

__all__ = ["Failure", "LessonRun", "execute", "find_notebooks", "lesson_parameters", "run", "summary_table"]

DONE, BEFORE, FAILED, NOT_RUN = "done", "done before", "failed", "not run"
_STATE = "run.json"


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

    @property
    def ok(self) -> bool:
        return self.status in (DONE, BEFORE)


def run(
    chosen: Sequence[str | int] | None = None,
    *,
    tier: str = "auto",
    dataset: str = "default",
    out: str | Path = "runs",
    parameters: Mapping | None = None,
    notebooks_dir: str | Path | None = None,
    resume: bool = True,
    timeout: float | None = None,
    progress: bool = True,
) -> list[LessonRun]:
    """Run lessons in order and return how each went; a lesson that fails does not stop those that do not need it.

    chosen: numbers, ranges ('3-5'), names ('simclr') or files; None for all. parameters: values for the cells tagged `parameters`;
    a text stands for whatever type the cell has. resume: skip lessons that already finished with the same parameters, notebook and code.
    timeout: seconds that one cell may take. Raises CourseError before anything starts if a lesson, parameter, tier, data set or folder
    is not right, and KeyboardInterrupt, with all that is finished kept, when interrupted.
    """
    tier = lessons.resolve_tier(tier)
    dataset = lessons.resolve_dataset(dataset, tier)
    notebooks = select(chosen, notebooks_dir)
    values = check_parameters(notebooks, dict(parameters or {}))
    check_dataset(dataset, notebooks, values)
    if importlib.util.find_spec("ipykernel") is None:
        raise CourseError("Headless runs need ipykernel in this environment: pip install ipykernel.")
    out = _writable(Path(out))
    with _only_run(out):
        return _run_all(notebooks, values, tier, dataset, out, resume, timeout, progress)


def _run_all(notebooks, values, tier, dataset, out, resume, timeout, progress) -> list[LessonRun]:
    state, code = _read_state(out), _code_digest()
    runs: list[LessonRun] = []
    for position, notebook in enumerate(notebooks, 1):
        injected = {"TIER": tier, "DATASET": dataset, "RESULTS_DIR": str(out / "results")}
        injected = {name: value for name, value in injected.items() if name in notebook.parameters} | values
        fingerprint, target = _fingerprint(notebook, injected, tier, dataset, code), out / notebook.path.name
        earlier = state.get(notebook.stem, {})
        label = f"[{position}/{len(notebooks)}] {notebook.stem}"
        failed = [r.name for r in runs if r.number in notebook.requires and not r.ok]
        if failed:
            print(f"{label}: not run, because it needs {', '.join(failed)}", flush=True)
            runs.append(LessonRun(notebook.number, notebook.stem, NOT_RUN, error=f"needs {', '.join(failed)}"))
            continue
        if resume and earlier.get("fingerprint") == fingerprint and target.exists():
            print(f"{label}: done before with the same parameters, skipped", flush=True)
            facts = {key: earlier.get(key) for key in ("seconds", "peak_memory")}
            runs.append(LessonRun(notebook.number, notebook.stem, BEFORE, str(target), headline=earlier.get("headline", ""), **facts))
            continue
        print(f"{label}: tier {tier}, data set {dataset}", flush=True)
        state.pop(notebook.stem, None)
        try:
            done = _run_one(notebook, target, injected, {"SSLCOURSE_TIER": tier, "SSLCOURSE_DATASET": dataset}, timeout, progress)
        except KeyboardInterrupt:
            finished = sum(r.ok for r in runs)
            print(f"\nInterrupted in {notebook.stem}; {finished} of {len(notebooks)} lessons are finished and kept in {out}.")
            print("The same command again goes on from there; --fresh starts over.", flush=True)
            raise
        runs.append(done)
        if done.ok:
            state[notebook.stem] = asdict(done) | {"fingerprint": fingerprint}
        else:
            print(f"{label}: failed: {done.error}", flush=True)
        write_json(out / _STATE, {"lessons": state})
    return runs


def _run_one(notebook: Notebook, target: Path, injected: Mapping, environment: Mapping, timeout, progress) -> LessonRun:
    out = target.parent
    summary = out / "results" / lessons.summary_name(notebook.number)
    summary.unlink(missing_ok=True)
    partial, log = out / f".{notebook.stem}.partial.ipynb", out / "logs" / f"{notebook.stem}.log"
    log.parent.mkdir(exist_ok=True)
    begun = time.perf_counter()
    try:
        with _PeakMemory() as sampled, _environment(SSLCOURSE_RESULTS_DIR=str(out / "results"), **environment):
            failure = execute(notebook.path, partial, injected, cwd=notebook.path.parent, log=log, timeout=timeout, progress=progress)
        seconds = round(time.perf_counter() - begun, 3)
        kept = target.with_suffix(".failed.ipynb") if failure else target
        if partial.exists():
            os.replace(partial, kept)
    finally:
        partial.unlink(missing_ok=True)
    own = _read_json(summary)
    peak = own.get("peak_memory") if isinstance(own.get("peak_memory"), int) else sampled.bytes
    if failure:
        return LessonRun(notebook.number, notebook.stem, FAILED, str(kept), seconds, peak, error=str(failure))
    target.with_suffix(".failed.ipynb").unlink(missing_ok=True)
    return LessonRun(notebook.number, notebook.stem, DONE, str(target), seconds, peak, headline=str(own.get("headline", "")))


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


def store(path: Path | str, tier: str = "cpu", dataset: str = "toybox", progress: bool = True) -> None:
    """Run a notebook from the top and replace it by the result, in its stored form and with its parameters cell as it was.

    Raises CourseError, naming the cell, if a cell fails; the file is then left as it was. Result records go to a temporary folder.
    """
    path = Path(path).resolve()
    given = lesson_parameters(notebook_files.load(path), path.name)
    with tempfile.TemporaryDirectory() as scratch:
        values = {"TIER": tier, "DATASET": dataset, "RESULTS_DIR": str(Path(scratch) / "results")}
        values = {name: value for name, value in values.items() if name in given}
        done = Path(scratch) / path.name
        failure = execute(path, done, values, cwd=path.parent, progress=progress)
        if failure is not None:
            raise CourseError(f"{path.name} was not stored, because {failure}")
        notebook_files.save(notebook_files.normalise(notebook_files.load(done)), path)


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
        home = Path(__file__).resolve().parents[2]
        if (home / "pyproject.toml").exists():  # a checkout that may not be installed: its lessons run anywhere all the same
            changes["PYTHONPATH"] = os.pathsep.join(filter(None, [str(home), os.environ.get("PYTHONPATH")]))
        with _environment(**changes):
            yield name


@contextlib.contextmanager
def _environment(**changes: str | None) -> Iterator[None]:
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


class _PeakMemory:
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


def _fingerprint(notebook: Notebook, injected: Mapping, tier: str, dataset: str, code: str) -> str:
    """What decides a lesson's result: its cells, its parameters, and the code of the package."""
    settings = {name: value for name, value in injected.items() if name != "RESULTS_DIR"}
    facts = [notebook.sources, settings, tier, dataset, __version__, code]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _code_digest() -> str:
    """Changes with any line of the package, so that what was run with other code is run again."""
    digest, package = hashlib.sha256(), Path(results.__file__).resolve().parent
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _writable(out: Path) -> Path:
    out = out.expanduser().resolve()
    try:
        (out / "results").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise CourseError(f"The folder {out} cannot be written ({reason}). Choose another one with --out.") from None
    return out


@contextlib.contextmanager
def _only_run(out: Path) -> Iterator[None]:
    """Hold the out folder for this run. The lock goes with the process, so that one that was killed leaves nothing in the way."""
    busy = "Another run{} is using {}. Wait for it, or choose another folder with --out."
    path = out / ".lock"
    with open(path, "a+", encoding="utf-8") as lock:
        lock.seek(0)
        owner = re.match(r"\d+", lock.read())
        try:
            import fcntl
        except ImportError:  # Windows
            import psutil

            if owner and int(owner[0]) != os.getpid() and psutil.pid_exists(int(owner[0])):
                raise CourseError(busy.format(f" (process {owner[0]})", out)) from None
        else:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise CourseError(busy.format(f" (process {owner[0]})" if owner else "", out)) from None
        lock.seek(0)
        lock.truncate()
        lock.write(str(os.getpid()))
        lock.flush()
        yield
        lock.seek(0)
        lock.truncate()


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _read_state(out: Path) -> dict:
    """Finished lessons by name; what is damaged counts as not finished."""
    state = _read_json(out / _STATE).get("lessons", {})
    return {name: entry for name, entry in state.items() if isinstance(entry, dict)} if isinstance(state, dict) else {}


def summary_table(runs: Sequence[LessonRun]) -> results.Table:
    """The table at the end of a run."""
    rows = [
        [
            r.name,
            r.status,
            "–" if r.seconds is None else lessons.duration(r.seconds),
            "–" if r.peak_memory is None else lessons.memory(r.peak_memory),
            r.headline or r.error or "–",
        ]
        for r in runs
    ]
    return results.Table(["lesson", "status", "time", "peak memory", "result"], rows)
