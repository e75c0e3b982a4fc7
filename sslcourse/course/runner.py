"""Headless runs: lessons through papermill, in order or side by side, checked before anything starts, and resumed where a run stopped.

`run` writes executed notebooks into the out folder, result records into out/results, what was printed into out/logs, and what is
finished into out/run.json; with several seeds all of this goes into out/seed-K.
"""

import contextlib
import hashlib
import importlib.util
import io
import json
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from itertools import combinations
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from sslcourse.course import lesson as lessons
from sslcourse.course import notebook_files
from sslcourse.course.notebook_files import first_line
from sslcourse.course.selection import Notebook, check_dataset, check_parameters, read_notebook, select
from sslcourse.devices import cores
from sslcourse.display import duration
from sslcourse.errors import CourseError
from sslcourse.files import check_writable, folder_of, reason, write_json
from sslcourse.results import SUMMARY_PREFIX

DONE, BEFORE, FAILED = "done", "done before", "failed"
STATE = "run.json"
_PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class LessonRun:
    """How one lesson of a run went. Both measurements are None for a lesson whose process died."""

    number: int
    name: str
    status: str  # done, done before, failed
    seconds: float | None = None
    peak_memory: int | None = None  # bytes
    headline: str = ""
    error: str = ""
    records: Sequence[str] = ()  # the files of its result records

    ok = property(lambda self: self.status != FAILED)


@dataclass(frozen=True, eq=False)
class Task:
    """One lesson to be run in one folder."""

    name: str  # for the reader: '02_rotation', or '02_rotation, seed 10'
    notebook: Notebook
    out: Path
    tier: str
    device: str
    dataset: str
    injected: Mapping  # for the cell tagged `parameters`
    fingerprint: str

    target = property(lambda self: self.out / self.notebook.path.name)
    partial = property(lambda self: self.out / f".{self.notebook.path.stem}.partial.ipynb")  # while it runs

    def went(self, status: str, **how) -> LessonRun:
        return LessonRun(self.notebook.number, self.name, status, **how)


def run(
    chosen: Sequence[str | int] | None = None, *, tier: str = "auto", device: str = "auto", dataset: str = "default",
    out: str | Path = "runs", parameters: Mapping | None = None, seeds: Sequence[int] | None = None,
    notebooks_dir: str | Path | None = None, resume: bool = True, timeout: float | None = None, progress: bool = True, jobs: int = 1,
) -> list[LessonRun]:  # fmt: skip
    """Run lessons and return how each went, in the order of the course; one that fails does not stop the others.

    chosen: numbers, ranges ('3-5'), names ('simclr') or files; None for all. parameters: values for the cells tagged `parameters`; a text
    stands for whatever type the cell has. seeds: run all once for each, in out/seed-K. resume: skip lessons that finished with the same
    parameters, notebook, code, device and images. timeout: seconds that one cell may take, rounded up. jobs: how many lessons run at once,
    each in a process of its own; the last waits for all others. Raises CourseError before anything starts if what is asked for is wrong.
    """
    device = lessons.resolve_device(device, "--device")
    tier = lessons.resolve_tier(tier, device, "--tier")
    dataset = lessons.resolve_dataset(dataset, tier, "--dataset")
    notebooks, given = [read_notebook(path) for path in select(chosen, notebooks_dir)], dict(parameters or {})
    if seeds is not None:
        _check_seeds(seeds, tier)
        if "SEED" in given:
            raise CourseError("Give several seeds with --seeds or one with -p SEED, not both.")
        given["SEED"] = seeds[0]
    values = check_parameters(notebooks, given)
    images = check_dataset(dataset, notebooks, values)
    if missing := [name for name in ("papermill", "ipykernel") if importlib.util.find_spec(name) is None]:
        raise CourseError(f"Headless runs need {' and '.join(missing)} in this environment: pip install \"sslcourse[lab]\".")
    out, code, tasks = folder_of(out, "--out", "runs"), code_digest(), []
    places = {out / f"seed-{seed}": (f", seed {seed}", values | {"SEED": seed}) for seed in seeds or []} or {out: ("", values)}
    for folder in {out, *places}:
        _check_out(folder, notebooks[0].path.parent)
    for folder, (note, own) in places.items():
        for notebook in notebooks:
            chosen_here = {"TIER": tier, "DEVICE": str(device), "DATASET": dataset, "RESULTS_DIR": str(folder / "results")}
            # What decides the result.
            facts = json.dumps([notebook.sources, own, tier, str(device), dataset, images, code], sort_keys=True)
            fingerprint, injected = hashlib.sha256(facts.encode()).hexdigest(), own | notebook.takes(chosen_here)
            tasks.append(Task(notebook.path.stem + note, notebook, folder, tier, str(device), dataset, injected, fingerprint))
    with contextlib.ExitStack() as locks:
        for folder in sorted({out, *places}):
            locks.enter_context(_hold(folder))
        return _run_tasks(tasks, out, resume, timeout, progress, jobs)


def _check_seeds(seeds: Sequence[int], tier: str) -> None:
    """Raises CourseError for seeds that are no seeds, or are given twice; warns of seeds whose lessons share some of their runs."""
    if not seeds or len({lessons.check_parameter("SEED", seed) for seed in seeds}) < len(seeds):
        raise CourseError(f"The seeds are {list(seeds)}; there has to be at least one, and each only once.")
    within = 2 if tier == "smoke" else 5  # the most seeds that a lesson takes, SEED and the next ones
    if any(abs(a - b) < within for a, b in combinations(seeds, 2)):
        told = f"A lesson takes the seeds SEED to SEED + {within - 1}, so these share some runs and the standard error comes out too small"
        print(f"{told}; seeds in steps of 10, such as 0 10 20, share none.", file=sys.stderr, flush=True)


def _check_out(out: Path, lessons_folder: Path) -> None:
    """Raise CourseError for a folder where executed notebooks would lie among the lessons, or replace files that no run made."""
    others = [path for path in out.glob("[0-9][0-9]_*.ipynb") if not any((out / name).exists() for name in (STATE, ".lock"))]
    if others or lessons_folder in (out, *out.parents):
        raise CourseError(f"--out is {out}, where the lessons are kept. Name a folder outside it, such as runs, for the executed copies.")
    check_writable(out, "--out")


def _hold(folder: Path) -> contextlib.AbstractContextManager:
    """Make a folder and hold it for this run, or as long as its process lives. Raises CourseError where another run holds it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / ".lock", timeout=0).acquire()
    except Timeout:
        raise CourseError(f"Another run is using {folder}. Wait for it, or choose another folder with --out.") from None


def _run_tasks(tasks: Sequence[Task], out: Path, resume: bool, timeout: float | None, progress: bool, jobs: int) -> list[LessonRun]:
    """Run lessons, whose folders are held, and return how each went, in the order given. out: the folder above them all."""
    jobs, last = max(1, min(jobs, len(tasks))), lessons.COURSE  # the last lesson of the seven reads what those before it leave
    states = {task.out: read_json(task.out / STATE).get("lessons", {}) for task in tasks}
    labels = {task: f"[{position}/{len(tasks)}] {task.name}" for position, task in enumerate(tasks, 1)}
    runs: dict[Task, LessonRun] = {}
    begun: dict[Task, Future | None] = {}  # None for one that runs here
    places: dict[Task, int] = {}  # which of the places for processes it has

    def settle(task: Task, done: LessonRun) -> None:
        runs[task] = done
        if done.ok:
            if done.status == DONE and task.notebook.number < last:  # what the last lesson read is no longer what lies there
                states[task.out] = {name: entry for name, entry in states[task.out].items() if entry.get("number") != last}
            kept = {"status": DONE, "fingerprint": task.fingerprint, "parameters": task.notebook.parameters | task.injected}
            states[task.out][task.notebook.path.stem] = asdict(done) | kept
        try:
            write_json(task.out / STATE, {"lessons": states[task.out]})
        except CourseError as error:
            print(f"{error} The same command will run {task.name} again.", file=sys.stderr)
        told = {FAILED: f"failed: {done.error}", BEFORE: "done before, skipped"}
        print(f"{labels[task]}: {told.get(done.status) or f'done in {duration(done.seconds)}'}", flush=True)

    alive, hold = multiprocessing.Pipe(duplex=False)
    try:
        while len(runs) < len(tasks):
            running = {future: task for task, future in begun.items() if task not in runs}
            left = [task for task in tasks if task not in begun and task not in runs]
            unread = {task.out for task in tasks if task.notebook.number < last and task not in runs}
            ready = (task for task in left if task.notebook.number != last or task.out not in unread)
            task = next(ready, None) if len(running) < jobs else None
            if task is None:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    task = running[future]
                    try:
                        done = future.result()
                    except Exception as error:
                        task.partial.unlink(missing_ok=True)
                        done = task.went(FAILED, error=f"its process ended with {_said(error)}")
                    settle(task, done)
                continue
            earlier = states[task.out].pop(task.notebook.path.stem, {})
            if resume and earlier.get("fingerprint") == task.fingerprint and task.target.exists():
                settle(task, task.went(BEFORE, **{key: earlier[key] for key in ("seconds", "peak_memory", "headline", "records")}))
                continue
            print(f"{labels[task]}: tier {task.tier}, data set {task.dataset}", flush=True)
            begun[task] = None
            if jobs == 1:
                settle(task, run_one(task, {}, timeout, progress))
            else:
                places[task] = min(set(range(jobs)) - {places[other] for other in running.values()})
                begun[task] = _begin(task, share(places[task], jobs, task.device), timeout, alive)
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

    alive: a pipe; the lesson is interrupted, kernel included, when its other end is closed, or the process that holds it is gone.
    """
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_end_with_pipe, initargs=(alive,))
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


def share(slot: int, jobs: int, device: str = "cuda") -> dict[str, str]:
    """Environment for one of `jobs` lessons side by side: its part of the cores that OMP_NUM_THREADS allows, and of several GPUs one."""
    threads, own = max(1, cores() // jobs), os.environ.get("OMP_NUM_THREADS", "")
    if own.isdigit() and int(own) > 0:
        threads = min(threads, int(own))
    named, count = os.environ.get("CUDA_VISIBLE_DEVICES"), torch.cuda.device_count()
    gpus = [name.strip() for name in named.split(",")][:count] if named else [str(k) for k in range(count)]
    shared_out = len(gpus) > 1 and device == "cuda"  # and not cuda:1
    return {"OMP_NUM_THREADS": str(threads)} | ({"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if shared_out else {})


def run_one(task: Task, share: Mapping[str, str], timeout: float | None = None, progress: bool = True) -> LessonRun:
    """Run a lesson's notebook and say how it went; one that was interrupted is deleted. share: environment variables, see `share`."""
    records, log = task.out / "results", task.out / "logs" / f"{task.notebook.path.stem}.log"
    failed = task.out / f"{task.notebook.path.stem}.failed.ipynb"
    summary = records / f"{SUMMARY_PREFIX}{task.notebook.number:02d}.json"
    environment = {"SSLCOURSE_TIER": task.tier, "SSLCOURSE_DEVICE": task.device, "SSLCOURSE_DATASET": task.dataset}
    environment |= {"SSLCOURSE_RESULTS_DIR": str(records)} | dict(share)
    begun = time.perf_counter()
    try:
        records.mkdir(exist_ok=True)
        log.parent.mkdir(exist_ok=True)
        summary.unlink(missing_ok=True)
        failure = execute(task.notebook.path, task.partial, task.injected, environment, log, timeout, progress)
        seconds = round(time.perf_counter() - begun, 3)
        if task.partial.exists():
            os.replace(task.partial, failed if failure else task.target)
    except OSError as error:
        return task.went(FAILED, error=f"{task.out} cannot be written: {reason(error)}")
    except CourseError as error:
        return task.went(FAILED, error=str(error))
    finally:
        with contextlib.suppress(OSError):
            task.partial.unlink(missing_ok=True)
    own = read_json(summary)
    cost = {"seconds": seconds, "peak_memory": own.get("peak_memory")}
    if failure:
        return task.went(FAILED, error=failure, **cost)
    failed.unlink(missing_ok=True)
    return task.went(DONE, headline=own.get("headline", ""), records=own.get("records", []), **cost)


def execute(source: Path, target: Path, parameters: Mapping, environment: Mapping, log: Path, timeout=None, progress=True) -> str | None:
    """Run one notebook with papermill in this interpreter's environment, in its own folder, and write it to target, finished or not.

    environment: variables for its kernel. log: where what it prints goes. Returns None, or in which cell it stopped, with what error.
    Raises OSError or CourseError where the files cannot be written.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError

    notebook_files.save(notebook_files.load(source), target)  # whole, whatever the source leaves out
    name = str(Path(target).resolve()).replace("{", "{{").replace("}", "}}")  # papermill formats {}
    options = {"language": "python", "cwd": str(source.parent), "progress_bar": progress}
    options |= {"execution_timeout": None if timeout is None else math.ceil(timeout)}  # it takes no fraction
    options |= {"kernel_name": "python3", "kernel_manager_class": _kernel(environment)}
    with (_Echo if progress else io.TextIOWrapper)(open(log, "wb"), encoding="utf-8") as stream:
        try:
            papermill.execute_notebook(name, name, dict(parameters), stdout_file=stream, stderr_file=stream, **options)
        except PapermillExecutionError as error:
            cell = f"cell [{error.exec_count}] ({first_line(error.source)})"
            return f"{cell} stopped with {error.ename}: {first_line(error.evalue)}"[:500]
        except Exception as error:  # the kernel died, or a cell took longer than the timeout
            if isinstance(error, OSError) and error.errno:
                raise
            started = [cell for cell in read_json(target).get("cells", []) if cell["metadata"].get("papermill", {}).get("start_time")]
            line = first_line("".join(started[-1]["source"])) if started else ""
            return f"{f'the cell {line!r}' if line else 'the notebook'} stopped with {_said(error)}"
    return None


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(str(error))}"[:400]


class _Echo(io.TextIOWrapper):
    """A lesson's log, which also shows what the lesson prints, as it comes, above the progress bar: a cell can take minutes."""

    def write(self, text: str) -> int:
        for line in filter(str.strip, text.splitlines()):
            tqdm.write(f"    {line}", file=sys.stderr)
        return super().write(text)


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


def store(path: Path | str, tier: str, dataset: str) -> None:
    """Run a notebook from the top and replace it by the result, in its stored form and with its parameters cell as it was.

    Raises CourseError, naming the cell, if a cell fails; the file is then left as it was. Result records go to a temporary folder.
    """
    notebook = read_notebook(Path(path).resolve())
    with tempfile.TemporaryDirectory() as scratch:
        values = notebook.takes({"TIER": tier, "DATASET": dataset, "RESULTS_DIR": f"{scratch}/results"})
        done = Path(scratch) / notebook.path.name
        if failure := execute(notebook.path, done, values, {}, Path(scratch) / "log"):
            raise CourseError(f"{notebook.path.name} was not stored, because {failure}")
        notebook_files.save(notebook_files.normalise(notebook_files.load(done)), notebook.path)


def code_digest(package: Path = _PACKAGE) -> str:
    """Changes with any line of the package, so that what was run with other code is run again."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def read_json(path: Path) -> dict:
    """The object in a file, {} where there is none or it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
