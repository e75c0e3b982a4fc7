"""Headless runs: lessons in order through papermill, each checked before anything starts, and resumed where a run was interrupted.

`run` writes executed notebooks into the out folder, result records into out/results, what was printed into out/logs, and what is
finished into out/run.json.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from sslcourse import __version__, results
from sslcourse.course import lesson as lessons
from sslcourse.course import notebook_files
from sslcourse.course.execution import BEFORE, NOT_RUN, Failure, LessonRun, execute, read_json, run_one
from sslcourse.course.parallel_runs import LessonProcess, share, stop
from sslcourse.course.selection import Notebook, check_dataset, check_parameters, find_notebooks, lesson_parameters, select
from sslcourse.errors import CourseError
from sslcourse.files import write_json

__all__ = ["Failure", "LessonRun", "execute", "find_notebooks", "lesson_parameters", "run", "store", "summary_table"]

_STATE = "run.json"
_BUSY = "Another run{} is using {}. Wait for it, or choose another folder with --out."


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
    jobs: int = 1,
) -> list[LessonRun]:
    """Run lessons and return how each went, in the order of the course; one that fails does not stop those that do not need it.

    chosen: numbers, ranges ('3-5'), names ('simclr') or files; None for all. parameters: values for the cells tagged `parameters`;
    a text stands for whatever type the cell has. resume: skip lessons that already finished with the same parameters, notebook and code.
    timeout: seconds that one cell may take. jobs: lessons that may run at once, see `run_tasks`.
    Raises CourseError before anything starts if a lesson, parameter, tier, data set or folder is not right, and KeyboardInterrupt, with
    all that is finished kept, when interrupted.
    """
    asked = check(chosen, tier, dataset, parameters, notebooks_dir, jobs)
    out = writable(Path(out))
    with only_run(out):
        return run_tasks(asked.tasks(out), out, resume, timeout, progress, jobs)


@dataclass(frozen=True, eq=False)
class Task:
    """One lesson to be run in one folder."""

    notebook: Notebook
    out: Path
    injected: Mapping  # for the cell tagged `parameters`
    tier: str
    dataset: str
    fingerprint: str
    name: str  # for the reader: '02_rotation', or '02_rotation, seed 10'

    @property
    def target(self) -> Path:
        return self.out / self.notebook.path.name

    @property
    def parameters(self) -> dict:
        """Every parameter with its value, as JSON can hold it."""
        values = dict(self.notebook.parameters) | dict(self.injected)
        return {name: json.loads(json.dumps(value, default=str)) for name, value in values.items() if name != "RESULTS_DIR"}

    def waits_for(self, other: "Task") -> bool:
        """Whether it begins when the other has ended: it needs it, or is the last lesson, which reads what all others leave."""
        last = self.notebook.number == max(lessons.TITLES) > other.notebook.number
        return self.out == other.out and (last or other.notebook.number in self.notebook.requires)

    def arguments(self, share: Mapping[str, str], timeout: float | None) -> dict:
        """For `run_one`. share: environment variables that say what it may take of the machine."""
        records = self.out / "results"
        environment = {"SSLCOURSE_TIER": self.tier, "SSLCOURSE_DATASET": self.dataset, "SSLCOURSE_RESULTS_DIR": str(records)}
        return {
            "name": self.notebook.stem,
            "number": self.notebook.number,
            "source": self.notebook.path,
            "target": self.target,
            "parameters": dict(self.injected),
            "summary": records / lessons.summary_name(self.notebook.number),
            "environment": environment | dict(share),
            "timeout": timeout,
        }


@dataclass(frozen=True)
class Asked:
    """What a run was asked for, checked."""

    notebooks: list[Notebook]
    values: Mapping
    tier: str
    dataset: str

    def tasks(self, out: Path, note: str = "", **values) -> list[Task]:
        """The lessons to run in a folder. values: parameters on top of those asked for, checked already. note: ends each one's name."""
        code, made = _code_digest(), []
        for notebook in self.notebooks:
            injected = {"TIER": self.tier, "DATASET": self.dataset, "RESULTS_DIR": str(out / "results")}
            injected = {name: value for name, value in injected.items() if name in notebook.parameters} | dict(self.values) | values
            fingerprint = _fingerprint(notebook, injected, self.tier, self.dataset, code)
            made.append(Task(notebook, out, injected, self.tier, self.dataset, fingerprint, notebook.stem + note))
        return made


def check(chosen, tier: str, dataset: str, parameters: Mapping | None, notebooks_dir, jobs: int = 1) -> Asked:
    """What `run` is given, checked before anything starts. Raises CourseError for what is not right."""
    if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1:
        raise CourseError(f"jobs is {jobs!r}; it has to be a whole number from 1, how many lessons may run at once.")
    tier = lessons.resolve_tier(tier)
    dataset = lessons.resolve_dataset(dataset, tier)
    notebooks = select(chosen, notebooks_dir)
    values = check_parameters(notebooks, dict(parameters or {}))
    check_dataset(dataset, notebooks, values)
    if importlib.util.find_spec("ipykernel") is None:
        raise CourseError("Headless runs need ipykernel in this environment: pip install ipykernel.")
    return Asked(notebooks, values, tier, dataset)


def run_tasks(
    tasks: Sequence[Task], out: Path, resume: bool = True, timeout: float | None = None, progress: bool = True, jobs: int = 1
) -> list[LessonRun]:
    """Run lessons and return how each went, in the order given. Whoever calls holds their folders; out is the one above them all.

    jobs: with 1 the lessons run one after another, here. With more, up to that many run at once, each in a process of its own with its
    share of the cores and without progress bars. They wait for the lessons that they need, and the last lesson for all others; what
    a lesson shows of earlier ones is then what was there when it began.
    """
    jobs = min(jobs, len(tasks))
    states = {task.out: read_state(task.out) for task in tasks}
    before = {task: [other for other in tasks if task.waits_for(other)] for task in tasks}
    labels = {task: f"[{position}/{len(tasks)}] {task.name}" for position, task in enumerate(tasks, 1)}
    waiting, under_way, runs = list(tasks), {}, {}

    def settle(task: Task, done: LessonRun) -> None:
        under_way.pop(task)
        runs[task] = done
        if done.ok:
            states[task.out][task.notebook.stem] = asdict(done) | {"fingerprint": task.fingerprint, "parameters": task.parameters}
        write_json(task.out / _STATE, {"lessons": states[task.out]})
        if not done.ok:
            print(f"{labels[task]}: failed: {done.error}", flush=True)
        elif jobs > 1:
            print(f"{labels[task]}: done in {lessons.duration(done.seconds)}", flush=True)

    try:
        while waiting or under_way:
            ready = (task for task in waiting if all(other in runs for other in before[task]))
            task = next(ready, None) if len(under_way) < jobs else None
            if task is None:
                time.sleep(0.1)
                ended = {task: process.finished() for task, process in under_way.items()}
                for task in [task for task, done in ended.items() if done]:
                    settle(task, ended[task])
                continue
            waiting.remove(task)
            without = _without_running(task, before[task], runs, states[task.out] if resume else {})
            if without:
                why = f"not run, because it {without.error}" if without.error else "done before with the same parameters, skipped"
                print(f"{labels[task]}: {why}", flush=True)
                runs[task] = without
                continue
            print(f"{labels[task]}: tier {task.tier}, data set {task.dataset}", flush=True)
            states[task.out].pop(task.notebook.stem, None)
            if jobs == 1:
                under_way[task] = None
                settle(task, run_one(**task.arguments({}, timeout), progress=progress))
            else:
                slot = min(set(range(jobs)) - {process.slot for process in under_way.values()})
                under_way[task] = LessonProcess(task.arguments(share(slot, jobs), timeout), slot)
    except KeyboardInterrupt:
        stop(filter(None, under_way.values()))
        finished = sum(done.ok for done in runs.values())
        inside = f"Interrupted in {', '.join(task.name for task in under_way)}" if under_way else "Interrupted"
        print(f"\n{inside}; {finished} of {len(tasks)} lessons are finished and kept in {out}.")
        print("The same command again goes on from there; --fresh starts over.", flush=True)
        raise
    finally:
        stop(filter(None, under_way.values()))
    return [runs[task] for task in tasks]


def _without_running(task: Task, before: Sequence[Task], runs: Mapping, state: Mapping) -> LessonRun | None:
    """How a lesson went that need not run, or cannot; None for one that is to be run."""
    number, name = task.notebook.number, task.notebook.stem
    failed = [runs[other].name for other in before if other.notebook.number in task.notebook.requires and not runs[other].ok]
    if failed:
        return LessonRun(number, name, NOT_RUN, error=f"needs {', '.join(failed)}")
    earlier = state.get(name, {})
    if earlier.get("fingerprint") != task.fingerprint or not task.target.exists():
        return None
    facts = {key: earlier.get(key) for key in ("seconds", "peak_memory")}
    records = tuple(earlier.get("records", ()))
    return LessonRun(number, name, BEFORE, str(task.target), headline=earlier.get("headline", ""), records=records, **facts)


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


def _fingerprint(notebook: Notebook, injected: Mapping, tier: str, dataset: str, code: str) -> str:
    """What decides a lesson's result: its cells, its parameters, and the code of the package."""
    settings = {name: value for name, value in injected.items() if name != "RESULTS_DIR"}
    facts = [notebook.sources, settings, tier, dataset, __version__, code]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _code_digest() -> str:
    """Changes with any line of the package, so that what was run with other code is run again."""
    digest, package = hashlib.sha256(), Path(results.__file__).resolve().parents[1]
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def writable(out: Path, below: str = "results") -> Path:
    """The folder in full, made if need be together with the one below it. Raises CourseError where nothing can be written."""
    out = out.expanduser().resolve()
    try:
        (out / below).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise CourseError(f"The folder {out} cannot be written ({reason}). Choose another one with --out.") from None
    return out


@contextlib.contextmanager
def only_run(out: Path) -> Iterator[None]:
    """Hold the out folder for this run. The system's lock ends with the process, so one that was killed leaves nothing in the way."""
    lock, owner = FileLock(out / ".lock"), out / ".owner"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        with contextlib.suppress(OSError, ValueError):
            raise CourseError(_BUSY.format(f" (process {int(owner.read_text())})", out)) from None
        raise CourseError(_BUSY.format("", out)) from None
    try:
        owner.write_text(str(os.getpid()))
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def read_state(out: Path) -> dict:
    """Finished lessons by name; what is damaged counts as not finished."""
    state = read_json(out / _STATE).get("lessons", {})
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
