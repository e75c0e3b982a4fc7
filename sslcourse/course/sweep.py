"""The same lessons for several seeds, and one table of runs that lie in folders side by side, whoever ran them.

`sweep` runs every seed in a folder of its own, out/seed-K. `collect` reads such folders, those of a cluster's job array, or any others
whose subfolders are --out folders of runs.
"""

import contextlib
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

from sslcourse import results
from sslcourse.course import lesson as lessons
from sslcourse.course.execution import LessonRun, read_json
from sslcourse.course.runner import check, only_run, read_state, run_tasks, writable
from sslcourse.errors import CourseError
from sslcourse.files import write_atomically, write_json
from sslcourse.models import COMMITTED

KIND = "sslcourse sweep"
_SUMMARIES = f"{results.SUMMARY_PREFIX}*.json"
METRICS = ("top1", "top3")
_ELSEWHERE = {"TIER", "DATASET", "SEED", "DATA_DIR", "RESULTS_DIR"}  # parameters that a record itself names, or that change no result
_EXPERIMENT = ("lesson", "method", "dataset", "labels")
_TOGETHER = (*_EXPERIMENT, "tier", "image_size", "network")  # with the parameters, what the runs of one row share


@dataclass(frozen=True)
class Collected:
    """The rows of runs, for `results.table`, and a sentence for each that had to be left out."""

    rows: list[dict]
    left_out: list[str]

    def table(self) -> results.Table:
        """Lesson, method, data set, labels, seeds, runs, accuracies; what else makes two rows of one experiment differ is named too."""
        rows = [row | {"pixels": row["image_size"], "labels": "all" if row["labels"] is None else row["labels"]} for row in self.rows]
        also = {column: False for column in ("tier", "pixels", "network", "parameters")}
        for row in rows:
            same = [other for other in rows if all(other[key] == row[key] for key in _EXPERIMENT)]
            given = [other["parameters"] for other in same]
            names = [name for name in sorted({name for one in given for name in one}) if len({str(one.get(name)) for one in given}) > 1]
            row["differing"] = ", ".join(f"{name} {row['parameters'].get(name, '–')}" for name in names)
            for column in also:
                also[column] |= len({str(other[column]) for other in same}) > 1
        rows = [row | {"parameters": row["differing"]} for row in rows]
        shown = [m for m in METRICS if any(m in row["metrics"] for row in rows)]
        extra = [column for column, differs in also.items() if differs]
        return results.table(rows, ["lesson", "method", "dataset", "labels", *extra, "seeds", "runs", *shown])

    def text(self) -> str:
        return "\n".join([str(self.table()), *self.left_out])

    def markdown(self) -> str:
        return "\n".join([self.table()._repr_markdown_(), *(f"\n{sentence}" for sentence in self.left_out)])


def sweep(
    chosen: Sequence[str | int] | None,
    seeds: Sequence[int],
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
) -> tuple[list[LessonRun], Collected]:
    """Run lessons once for every seed, all in one pool of jobs, and return how each went and the table over the seeds.

    A seed's runs lie in out/seed-K, as `runner.run` with SEED = K leaves them, and are skipped by the next call if they are finished. The
    table is written as out/sweep.json and out/sweep.md. A lesson that failed with a seed is named under it, and counts for the others.
    Arguments and errors are those of `runner.run`; also raises CourseError for seeds that are no seeds, or are given twice.
    """
    seeds = [lessons.check_seed(seed) for seed in seeds]
    twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    if not seeds:
        raise CourseError("A sweep needs at least one seed.")
    if twice:
        raise CourseError(f"Seed {twice[0]} is given twice; a sweep takes different seeds.")
    if "SEED" in (parameters or {}):
        raise CourseError("Give several seeds with --seeds or one with -p SEED, not both.")
    asked = check(chosen, tier, dataset, dict(parameters or {}) | {"SEED": seeds[0]}, notebooks_dir, jobs)
    if warning := too_close(seeds, asked.tier):
        print(warning, file=sys.stderr, flush=True)
    out = writable(Path(out), "")
    with contextlib.ExitStack() as locks:
        locks.enter_context(only_run(out))
        folders = {seed: writable(out / f"seed-{seed}") for seed in seeds}
        for folder in folders.values():
            locks.enter_context(only_run(folder))
        tasks = [task for seed in seeds for task in asked.tasks(folders[seed], f", seed {seed}", SEED=seed)]
        runs = run_tasks(tasks, out, resume, timeout, progress, jobs)
        runs = [replace(done, name=task.name) for task, done in zip(tasks, runs, strict=True)]
        finished = {(task.out, task.notebook.stem) for task, done in zip(tasks, runs, strict=True) if done.ok}
        found = collect(folders.values(), lambda folder, lesson: (folder, lesson) in finished)
        missing = [f"Left out: {done.name} ({done.status}: {done.error})." for done in runs if not done.ok]
        found = replace(found, left_out=missing + found.left_out)
        write_json(out / "sweep.json", {"kind": KIND, "seeds": seeds, "rows": found.rows, "left_out": found.left_out})
        write_atomically(out / "sweep.md", (found.markdown() + "\n").encode())
    return runs, found


def too_close(seeds: Sequence[int], tier: str) -> str | None:
    """A sentence about seeds whose lessons share some of their runs; None if there are none."""
    within = lessons.SEEDS_WITHIN[lessons.resolve_tier(tier)]
    if all(abs(a - b) >= within for a, b in combinations(seeds, 2)):
        return None
    return (
        f"A lesson takes the seeds SEED to SEED + {within - 1}, so these share some of their runs and the standard error comes out too "
        f"small; seeds in steps of 10, such as {' '.join(str(10 * k) for k in range(len(seeds)))}, share none."
    )


def run_folders(folder: Path) -> list[Path]:
    """The subfolders that are --out folders of runs, or where a lesson left its results, in the order of the numbers in their names."""

    def is_run(path: Path) -> bool:
        return path.is_dir() and ((path / "run.json").is_file() or any((path / "results").glob(_SUMMARIES)))

    return sorted(filter(is_run, folder.iterdir()), key=lambda path: _natural(path.name))


def collect(folders: Iterable[Path], counts=lambda folder, lesson: True) -> Collected:
    """Rows over the runs in these folders: each row a lesson, method, data set, number of labels, tier, network and parameters.

    The value of a run is what its record says, itself a mean over the seeds within the lesson; the row's is the mean over the runs, with
    its standard error where there are two or more. counts: whether a lesson (by name) of a folder takes part. The same seed twice in a
    row is the same run twice, and counts once; networks that come with the package are the same in every run, and make no row.
    """
    rows, left_out = {}, []
    for folder in folders:
        left_out += [
            f"Left out: {path.name.removesuffix('.failed.ipynb')} of {folder.name} (failed)."
            for path in sorted(folder.glob("[0-9]*.failed.ipynb"))
            if counts(folder, path.name.removesuffix(".failed.ipynb"))
        ]
        for seed, parameters, record in _finished_records(folder, counts):
            about = {name: record[name] for name in _TOGETHER} | {"parameters": parameters, "encoder": record["settings"].get("encoder")}
            row = rows.setdefault(repr(about), about | {"seeds": [], "places": [], "found": []})
            if seed in row["seeds"]:
                first = row["places"][row["seeds"].index(seed)]
                left_out.append(f"Left out: lesson {record['lesson']} of {folder.name}, the same seed as in {first}.")
                continue
            for key, value in (("seeds", seed), ("places", folder.name), ("found", record["metrics"])):
                row[key].append(value)
    made, same = [], []
    for row in sorted(rows.values(), key=lambda row: (row["lesson"], row["dataset"], row["labels"] or float("inf"))):
        found = row.pop("found")
        if row.pop("encoder") == COMMITTED and len(found) > 1:
            same.append(row["method"])
            continue
        values = {m: [one[m]["value"] for one in found if m in one and one[m]["unit"] == "fraction"] for m in METRICS}
        metrics = {m: results.over_runs(of) for m, of in values.items() if of}
        if metrics:
            made.append(row | {"runs": len(found), "metrics": metrics})
    if same:
        left_out.append(f"Left out: {'; '.join(same)}: each measured on one network that comes with the package, the same in every run.")
    return Collected(made, list(dict.fromkeys(left_out)))


def _finished_records(folder: Path, counts) -> Iterable[tuple[int | str, dict, dict]]:
    """(seed, other parameters, record) of every lesson that finished in a folder.

    run.json says which lessons did, with which parameters, and which records are theirs. Without it, as after papermill itself, the
    lessons' own summaries name the records; the seed is the first of a record's, and for the last lesson, whose seeds draw labels, the
    folder's name stands in its place.
    """
    records = {results.file_name(record): record for record in results.read(folder / "results")}
    entries = read_state(folder)
    if not (folder / "run.json").is_file():
        entries = {path.stem: read_json(path) for path in sorted((folder / "results").glob(_SUMMARIES))}
    for name, entry in entries.items():
        if not counts(folder, name):
            continue
        parameters = entry["parameters"] if isinstance(entry.get("parameters"), dict) else {}
        other = {key: value for key, value in sorted(parameters.items()) if key not in _ELSEWHERE}
        for record in (records[file] for file in _names(entry.get("records")) if file in records):
            own = folder.name if record["lesson"] == max(lessons.TITLES) else record["seeds"][0]
            yield parameters.get("SEED", own), other, record


def _names(found) -> list[str]:
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []


def _natural(name: str) -> list:
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]
