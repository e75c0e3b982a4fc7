"""One table of runs that lie in folders side by side: those of `run --seeds`, of a cluster's job array, or any other --out folders."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sslcourse import results
from sslcourse.course import lesson as lessons
from sslcourse.course.runner import STATE, read_json
from sslcourse.models import SHIPPED

METRICS = ("top1", "top3")
_SUMMARIES = f"{results.SUMMARY_PREFIX}*.json"
_ELSEWHERE = {"TIER", "DATASET", "SEED", "DATA_DIR", "RESULTS_DIR"}  # parameters that a record itself names, or that change no result
_EXPERIMENT = ("lesson", "method", "dataset", "labels")


@dataclass(frozen=True)
class Collected:
    """The rows of runs, for `results.table`, and a sentence for each that had to be left out."""

    rows: list[dict]
    left_out: list[str]

    def text(self, markdown: bool = False) -> str:
        """Lesson, method, data set, labels, seeds, runs, accuracies; where settings make two rows of one experiment, what differs."""
        rows = []
        for row in self.rows:
            alike = [other["settings"] for other in self.rows if all(other[key] == row[key] for key in _EXPERIMENT)]
            told = [f"{name} {value}" for name, value in row["settings"].items() if any(value != other.get(name) for other in alike)]
            rows.append(row | {"labels": "all" if row["labels"] is None else row["labels"], "differs": ", ".join(told)})
        differs = ["differs"] if any(row["differs"] for row in rows) else []
        shown = [m for m in METRICS if any(m in row["metrics"] for row in rows)]
        table = results.table(rows, [*_EXPERIMENT, *differs, "seeds", "runs", *shown])
        return "\n\n".join([table._repr_markdown_(), *self.left_out]) if markdown else "\n".join([str(table), *self.left_out])


def run_folders(folder: Path) -> list[Path]:
    """The subfolders that are --out folders of runs, or where a lesson left its results, in the order of the numbers in their names."""
    below = [path for path in folder.iterdir() if (path / STATE).is_file() or any((path / "results").glob(_SUMMARIES))]
    return sorted(below, key=lambda path: re.sub(r"\d+", lambda number: number[0].zfill(12), path.name))


def collect(folders: Iterable[Path]) -> Collected:
    """Rows over the runs in these folders: each row a lesson, method, data set, number of labels, and settings.

    The value of a run is what its record says, itself a mean over the seeds within the lesson; the row's is the mean over the runs, with
    its standard error from two on. A seed counts once in a row; networks that come with the package, the same in every run, make no row.
    """
    rows, left_out = {}, []
    for folder in folders:
        failed = [path.name.removesuffix(".failed.ipynb") for path in sorted(folder.glob("[0-9]*.failed.ipynb"))]
        left_out += [f"Left out: {name} of {folder.name} (failed)." for name in failed]
        for seed, parameters, record in _finished_records(folder):
            about = {key: record[key] for key in _EXPERIMENT} | {"encoder": record["settings"].get("encoder")}
            about["settings"] = {"tier": record["tier"], "pixels": record["image_size"], "network": record["network"]} | parameters
            row = rows.setdefault(repr(about), about | {"found": {}})
            if seed in row["found"]:
                first, _ = row["found"][seed]
                left_out.append(f"Left out: lesson {record['lesson']} of {folder.name}, the same seed as in {first}.")
            else:
                row["found"][seed] = folder.name, record["metrics"]
    made, same = [], []
    for row in sorted(rows.values(), key=lambda row: (row["lesson"], row["dataset"], row["labels"] or float("inf"))):
        found = row.pop("found")
        if row.pop("encoder") == SHIPPED and len(found) > 1:
            same.append(row["method"])
            continue
        values = {m: [one[m]["value"] for _, one in found.values() if m in one and one[m]["unit"] == "fraction"] for m in METRICS}
        if metrics := {m: results.over_runs(of) for m, of in values.items() if of}:
            made.append(row | {"seeds": list(found), "runs": len(found), "metrics": metrics})
    if same:
        left_out.append(f"Left out: {'; '.join(same)}: each measured on one network that comes with the package, the same in every run.")
    return Collected(made, list(dict.fromkeys(left_out)))


def _finished_records(folder: Path) -> Iterable[tuple[int | str, dict, dict]]:
    """(seed, other parameters, record) of every lesson that finished in a folder, as run.json says.

    Without it, as after papermill itself, the lessons' own summaries name the records. The seed is then the first of a record's, or, for
    the last lesson, whose seeds draw labels, the folder's name.
    """
    records = {results.file_name(record): record for record in results.read(folder / "results")}
    entries = read_json(folder / STATE).get("lessons", {})
    if not (folder / STATE).is_file():
        entries = {path.stem: read_json(path) for path in sorted((folder / "results").glob(_SUMMARIES))}
    for entry in entries.values():
        parameters = entry.get("parameters", {})
        other = {key: value for key, value in sorted(parameters.items()) if key not in _ELSEWHERE}
        for record in (records[name] for name in entry.get("records", []) if name in records):
            own = folder.name if record["lesson"] == lessons.COURSE else record["seeds"][0]
            yield parameters.get("SEED", own), other, record
