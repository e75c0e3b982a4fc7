"""Headless runs: lessons through papermill, in order or side by side, checked before anything starts, and resumed where a run stopped.

`run` writes executed notebooks into the out folder, result records into out/results, what was printed into out/logs, and what is
finished into out/run.json; with several seeds all of this goes into out/seed-K.
"""

import contextlib
import hashlib
import importlib.util
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from itertools import combinations
from multiprocessing.connection import Connection
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

from sslcourse import __version__, results
from sslcourse.course import lesson as lessons
from sslcourse.course import notebook_files
from sslcourse.course.selection import Notebook, check_dataset, check_parameters, lesson_parameters, select
from sslcourse.errors import CourseError
from sslcourse.files import write_json

DONE, BEFORE, FAILED, NOT_RUN = "done", "done before", "failed", "not run"
_STATE = "run.json"
_PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class LessonRun:
    """How one lesson of a run went. seconds and peak_memory (bytes) are None where nothing ran."""

    number: int
    name: str
    status: str  # done, done before, failed, not run
    path: str | None = None
    seconds: float | None = None
    peak_memory: int | None = None
    headline: str = ""
    error: str = ""
    records: Sequence[str] = ()  # the files of its result records

    @property
    def ok(self) -> bool:
        return self.status in (DONE, BEFORE)


@dataclass(frozen=True, eq=False)
class Task:
    """One lesson to be run in one folder."""

    name: str  # for the reader: '02_rotation', or '02_rotation, seed 10'
    notebook: Notebook
    out: Path
    tier: str
    dataset: str
    injected: Mapping  # for the cell tagged `parameters`
    fingerprint: str

    @property
    def target(self) -> Path:
        return self.out / self.notebook.path.name

    @property
    def partial(self) -> Path:  # while it runs
        return self.out / f".{self.notebook.stem}.partial.ipynb"

    @property
    def failed(self) -> Path:
        return self.out / f"{self.notebook.stem}.failed.ipynb"

    def waits_for(self, other: "Task") -> bool:
        """Whether it begins when the other has ended: it needs it, or is the last lesson, which reads what all others leave."""
        last = self.notebook.number == max(lessons.TITLES) > other.notebook.number
        return self.out == other.out and (last or other.notebook.number in self.notebook.requires)

    def went(self, status: str, **how) -> LessonRun:
        return LessonRun(self.notebook.number, self.name, status, **how)


def run(
    chosen: Sequence[str | int] | None = None,
    *,
    tier: str = "auto",
    dataset: str = "default",
    out: str | Path = "runs",
    parameters: Mapping | None = None,
    seeds: Sequence[int] | None = None,
    notebooks_dir: str | Path | None = None,
    resume: bool = True,
    timeout: float | None = None,
    progress: bool = True,
    jobs: int = 1,
) -> list[LessonRun]:
    """Run lessons and return how each went, in the order of the course; one that fails does not stop those that do not need it.

    chosen: numbers, ranges ('3-5'), names ('simclr') or files; None for all. parameters: values for the cells tagged `parameters`;
    a text stands for whatever type the cell has. seeds: run all of it once for each, in out/seed-K with SEED = K. resume: skip lessons
    that already finished with the same parameters, notebook and code. timeout: seconds that one cell may take.
    jobs: with 1 the lessons run one after another, here. With more, up to that many run at once, each in a process of its own with its
    share of the cores and without progress bars. They wait for the lessons that they need, and the last lesson for all others; what
    a lesson shows of earlier ones is then what was there when it began.
    Raises CourseError before anything starts if a lesson, parameter, seed, tier, data set or folder is not right, and KeyboardInterrupt,
    with all that is finished kept, when interrupted.
    """
    if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1:
        raise CourseError(f"jobs is {jobs!r}; it has to be a whole number from 1, how many lessons may run at once.")
    tier = lessons.resolve_tier(tier)
    dataset = lessons.resolve_dataset(dataset, tier)
    notebooks, given = select(chosen, notebooks_dir), dict(parameters or {})
    if seeds is not None:
        _check_seeds(seeds, tier)
        if "SEED" in given:
            raise CourseError("Give several seeds with --seeds or one with -p SEED, not both.")
        given["SEED"] = seeds[0]
    values = check_parameters(notebooks, given)
    check_dataset(dataset, notebooks, values)
    if importlib.util.find_spec("ipykernel") is None:
        raise CourseError("Headless runs need ipykernel in this environment: pip install ipykernel.")
    out, code, tasks = Path(out).expanduser().resolve(), code_digest(), []
    with contextlib.ExitStack() as locks:
        locks.enter_context(_held(out))
        for seed in [None] if seeds is None else seeds:
            folder, note, own = (out, "", {}) if seed is None else (out / f"seed-{seed}", f", seed {seed}", {"SEED": seed})
            if folder != out:
                locks.enter_context(_held(folder))
            for notebook in notebooks:
                injected = {"TIER": tier, "DATASET": dataset, "RESULTS_DIR": str(folder / "results")}
                injected = {name: value for name, value in injected.items() if name in notebook.parameters} | values | own
                fingerprint = _fingerprint(notebook, injected, tier, dataset, code)
                tasks.append(Task(notebook.stem + note, notebook, folder, tier, dataset, injected, fingerprint))
        return _run_tasks(tasks, out, resume, timeout, progress, jobs)


def _check_seeds(seeds: Sequence[int], tier: str) -> None:
    """Raises CourseError for seeds that are no seeds, or are given twice; warns of seeds whose lessons share some of their runs."""
    if not seeds or len({lessons.check_seed(seed) for seed in seeds}) < len(seeds):
        raise CourseError(f"The seeds are {list(seeds)}; there has to be at least one, and each only once.")
    within = lessons.SEEDS_WITHIN[tier]
    if any(abs(a - b) < within for a, b in combinations(seeds, 2)):
        told = (
            f"A lesson takes the seeds SEED to SEED + {within - 1}, so these share some of their runs and the standard error comes out too"
        )
        print(f"{told} small; seeds in steps of 10, such as 0 10 20, share none.", file=sys.stderr, flush=True)


def _run_tasks(tasks: Sequence[Task], out: Path, resume: bool, timeout: float | None, progress: bool, jobs: int) -> list[LessonRun]:
    """Run lessons, whose folders are held, and return how each went, in the order given. out: the folder above them all."""
    jobs = min(jobs, len(tasks))
    states = {task.out: read_state(task.out) for task in tasks}
    before = {task: [other for other in tasks if task.waits_for(other)] for task in tasks}
    labels = {task: f"[{position}/{len(tasks)}] {task.name}" for position, task in enumerate(tasks, 1)}
    waiting, runs = list(tasks), {}
    begun: dict[Task, Future | None] = {}  # None for one that runs here
    taken: dict[Task, int] = {}  # which of the places for processes it has

    def settle(task: Task, done: LessonRun) -> None:
        runs[task] = done
        if done.ok:
            parameters = {name: value for name, value in (task.notebook.parameters | task.injected).items() if name != "RESULTS_DIR"}
            kept = asdict(done) | {"status": DONE, "fingerprint": task.fingerprint, "parameters": parameters}
            states[task.out][task.notebook.stem] = kept
        write_json(task.out / _STATE, {"lessons": states[task.out]})
        told = {FAILED: f"failed: {done.error}", NOT_RUN: f"not run, because it {done.error}", BEFORE: "done before, skipped"}
        print(f"{labels[task]}: {told.get(done.status) or f'done in {lessons.duration(done.seconds)}'}", flush=True)

    alive, hold = multiprocessing.Pipe(duplex=False)
    try:
        while len(runs) < len(tasks):
            under_way = {future: task for task, future in begun.items() if task not in runs}
            ready = (task for task in waiting if all(other in runs for other in before[task]))
            task = next(ready, None) if len(under_way) < jobs else None
            if task is None:
                for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                    settle(under_way[future], _outcome(under_way[future], future))
                continue
            waiting.remove(task)
            needed = [other for other in before[task] if other.notebook.number in task.notebook.requires]
            failed = [other.name for other in needed if not runs[other].ok]
            earlier = states[task.out].pop(task.notebook.stem, {})
            if failed:
                settle(task, task.went(NOT_RUN, error=f"needs {', '.join(failed)}"))
            elif resume and earlier.get("fingerprint") == task.fingerprint and task.target.exists():
                facts = {key: earlier[key] for key in ("path", "seconds", "peak_memory", "headline", "records")}
                settle(task, task.went(BEFORE, **facts))
            else:
                print(f"{labels[task]}: tier {task.tier}, data set {task.dataset}", flush=True)
                begun[task] = None
                if jobs == 1:
                    settle(task, run_one(task, {}, timeout, progress))
                else:
                    slots = [slot for other, slot in taken.items() if other not in runs]
                    taken[task] = min(set(range(jobs)) - set(slots))
                    begun[task] = _begin(task, share(taken[task], jobs), timeout, alive)
    except KeyboardInterrupt:
        inside = ", ".join(task.name for task in begun if task not in runs)
        hold.close()
        wait(filter(None, begun.values()))
        finished = sum(done.ok for done in runs.values())
        print(f"\nInterrupted{' in ' * bool(inside)}{inside}; {finished} of {len(tasks)} lessons are finished and kept in {out}.")
        print("The same command again goes on from there; --fresh starts over.", flush=True)
        raise
    finally:
        hold.close()
    return [runs[task] for task in tasks]


def _begin(task: Task, share: Mapping[str, str], timeout: float | None, alive: Connection) -> Future:
    """Run a lesson in a process of its own, which ends with it: one that dies takes no other lesson along.

    alive: a pipe. The lesson is interrupted as by Ctrl-C, kernel included, when its other end is closed, on purpose or because the
    process that holds it is gone.
    """
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(1, mp_context=context, initializer=_end_with_pipe, initargs=(alive,))
    future = pool.submit(_in_worker, task, share, timeout)
    pool.shutdown(wait=False)
    return future


def _end_with_pipe(alive: Connection) -> None:
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C in the terminal is for the first process alone, which passes it on by closing the pipe
    # Where whoever started the run ignores Ctrl-C, as a shell does for what runs behind it, this process must not.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def watch():
        alive.poll(None)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=watch, daemon=True).start()


def _in_worker(task: Task, share: Mapping[str, str], timeout: float | None) -> LessonRun:
    try:
        return run_one(task, share, timeout, progress=False)
    except KeyboardInterrupt:
        os._exit(130)  # nobody waits for an answer, and a pool whose owner is gone would wait for another lesson
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _outcome(task: Task, future: Future) -> LessonRun:
    """How a lesson went whose process has ended."""
    try:
        return future.result()
    except Exception as error:
        task.partial.unlink(missing_ok=True)
        return task.went(FAILED, error=f"its process ended with {_first_line(error)}")


def share(slot: int, jobs: int) -> dict[str, str]:
    """What one of `jobs` lessons side by side may take of this machine, as environment variables for its kernel.

    Its part of the cores, at least one, and no more than OMP_NUM_THREADS allows already; and of several GPUs one, in turn.
    """
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads, own = max(1, cores // jobs), os.environ.get("OMP_NUM_THREADS", "")
    if own.isdigit() and int(own) > 0:
        threads = min(threads, int(own))
    named, count = os.environ.get("CUDA_VISIBLE_DEVICES"), torch.cuda.device_count()
    gpus = [name.strip() for name in named.split(",")][:count] if named else [str(k) for k in range(count)]
    return {"OMP_NUM_THREADS": str(threads)} | ({"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if len(gpus) > 1 else {})


def run_one(task: Task, share: Mapping[str, str], timeout: float | None = None, progress: bool = True) -> LessonRun:
    """Run a lesson's notebook and say how it went; one that was interrupted is deleted. share: environment variables, see `share`."""
    records, log = task.out / "results", task.out / "logs" / f"{task.notebook.stem}.log"
    for folder in (records, log.parent):
        folder.mkdir(exist_ok=True)
    summary = records / lessons.summary_name(task.notebook.number)
    summary.unlink(missing_ok=True)
    environment = {"SSLCOURSE_TIER": task.tier, "SSLCOURSE_DATASET": task.dataset, "SSLCOURSE_RESULTS_DIR": str(records)} | dict(share)
    begun = time.perf_counter()
    try:
        failure = execute(task.notebook.path, task.partial, task.injected, environment, log, timeout, progress)
        seconds = round(time.perf_counter() - begun, 3)
        kept = task.failed if failure else task.target
        if task.partial.exists():
            os.replace(task.partial, kept)
    finally:
        task.partial.unlink(missing_ok=True)
    own = read_json(summary)
    cost = {"path": str(kept), "seconds": seconds, "peak_memory": own.get("peak_memory")}
    if failure:
        return task.went(FAILED, error=failure, **cost)
    task.failed.unlink(missing_ok=True)
    return task.went(DONE, headline=own.get("headline", ""), records=own.get("records", []), **cost)


def execute(
    source: Path,
    target: Path,
    parameters: Mapping,
    environment: Mapping[str, str],
    log: Path | None = None,
    timeout: float | None = None,
    progress: bool = True,
) -> str | None:
    """Run one notebook with papermill in this interpreter's environment, in its own folder, and write it to target, finished or not.

    environment: variables for its kernel. Returns None if all went well, else in which cell it stopped, and with what error.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError

    # papermill formats {} in paths
    names = [str(Path(path).resolve()).replace("{", "{{").replace("}", "}}") for path in (source, target)]
    options = {"language": "python", "cwd": str(source.parent), "progress_bar": progress, "execution_timeout": timeout}
    options |= {"kernel_name": "python3", "kernel_manager_class": _kernel(environment)}
    with open(log or os.devnull, "w", encoding="utf-8") as stream:
        stream = _Echo(stream) if log and progress else stream
        try:
            papermill.execute_notebook(*names, dict(parameters), stdout_file=stream, stderr_file=stream, **options)
        except PapermillExecutionError as error:
            message = next(iter(str(error.evalue).strip().splitlines()), "")
            line = next(iter(error.source.strip().splitlines()), "")
            return f"cell [{error.exec_count}] ({line}) stopped with {error.ename}: {message}"[:500]
        except Exception as error:  # the kernel died, or a cell took longer than the timeout
            line = _last_started(target)
            return f"{f'the cell {line!r}' if line else 'the notebook'} stopped with {_first_line(error)}"
    return None


def _first_line(error: Exception) -> str:
    message = next((line for line in str(error).strip().splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {message}"[:400]


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


def _kernel(environment: Mapping[str, str]) -> type:
    """The manager of a kernel that is this very interpreter, whatever 'python3' means on the machine, with these variables."""
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec

    # A progress bar in a stored output is a page of lines; papermill's own bar, in this process, stays. Figures come inline.
    variables = {"SSLCOURSE_HEADLESS": "1", "TQDM_DISABLE": "1", "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    variables |= {"PYDEVD_DISABLE_FILE_VALIDATION": "1"} | dict(environment)  # no warning about the debugger
    if (_PACKAGE.parent / "pyproject.toml").exists():  # a checkout need not be installed, and its lessons run all the same
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    # Without the level, a kernel that is stopped in the middle of a cell prints a traceback of its own.
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=CRITICAL"]
    spec = KernelSpec(argv=argv, language="python", env={name: value.replace("$", "$$") for name, value in variables.items()})
    return type("ThisInterpreter", (AsyncKernelManager,), {"kernel_spec": spec})


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
        if failure := execute(path, done, values, {}, progress=progress):
            raise CourseError(f"{path.name} was not stored, because {failure}")
        notebook_files.save(notebook_files.normalise(notebook_files.load(done)), path)


def _fingerprint(notebook: Notebook, injected: Mapping, tier: str, dataset: str, code: str) -> str:
    """What decides a lesson's result: its cells, its parameters, and the code of the package."""
    settings = {name: value for name, value in injected.items() if name != "RESULTS_DIR"}
    facts = [notebook.sources, settings, tier, dataset, __version__, code]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def code_digest(package: Path = _PACKAGE) -> str:
    """Changes with any line of the package, so that what was run with other code is run again."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Make a folder and hold it for this run. The system's lock ends with the process, so one that was killed leaves nothing in the way.

    Raises CourseError where another run holds it, or nothing can be written.
    """
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise CourseError(f"Another run is using {folder}. Wait for it, or choose another folder with --out.") from None
    except OSError as error:
        raise CourseError(f"The folder {folder} cannot be written ({error.strerror}). Choose another one with --out.") from None
    try:
        yield
    finally:
        lock.release()


def read_state(folder: Path) -> dict:
    """Finished lessons by name; what is damaged counts as not finished."""
    state = read_json(folder / _STATE).get("lessons", {})
    return {name: entry for name, entry in state.items() if isinstance(entry, dict)} if isinstance(state, dict) else {}


def read_json(path: Path) -> dict:
    """The object in a file, {} where there is none or it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def summary_table(runs: Sequence[LessonRun]) -> results.Table:
    """The table at the end of a run."""
    rows = []
    for run in runs:
        took = "–" if run.seconds is None else lessons.duration(run.seconds)
        held = "–" if run.peak_memory is None else lessons.memory(run.peak_memory)
        rows.append([run.name, run.status, took, held, run.headline or run.error or "–"])
    return results.Table(["lesson", "status", "time", "peak memory", "result"], rows)
