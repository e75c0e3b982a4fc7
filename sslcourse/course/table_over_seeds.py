"""One table of runs that lie in folders side by side: those of `run --seeds`, of a cluster's job array, or any other --out folders."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sslcourse import results
from sslcourse.course import lesson as lessons
from sslcourse.course.runner import read_json, read_state
from sslcourse.models import COMMITTED

METRICS = ("top1", "top3")
_SUMMARIES = f"{results.SUMMARY_PREFIX}*.json"
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
        extra = dict.fromkeys(("tier", "pixels", "network", "parameters"), False)
        for row in rows:
            same = [other for other in rows if all(other[key] == row[key] for key in _EXPERIMENT)]
            for column in extra:
                extra[column] |= len({str(other[column]) for other in same}) > 1
            names = sorted({name for other in same for name in other["parameters"]})
            differing = [name for name in names if len({str(other["parameters"].get(name)) for other in same}) > 1]
            row["differing"] = ", ".join(f"{name} {row['parameters'].get(name, '–')}" for name in differing)
        rows = [row | {"parameters": row["differing"]} for row in rows]
        shown = [m for m in METRICS if any(m in row["metrics"] for row in rows)]
        return results.table(rows, [*_EXPERIMENT, *(column for column, differs in extra.items() if differs), "seeds", "runs", *shown])

    def text(self) -> str:
        return "\n".join([str(self.table()), *self.left_out])

    def markdown(self) -> str:
        return "\n".join([self.table()._repr_markdown_(), *(f"\n{sentence}" for sentence in self.left_out)])


def run_folders(folder: Path) -> list[Path]:
    """The subfolders that are --out folders of runs, or where a lesson left its results, in the order of the numbers in their names."""

    def natural(path: Path) -> list:
        return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", path.name) if part]

    below = [path for path in folder.iterdir() if path.is_dir()]
    return sorted((path for path in below if (path / "run.json").is_file() or any((path / "results").glob(_SUMMARIES))), key=natural)


def collect(folders: Iterable[Path]) -> Collected:
    """Rows over the runs in these folders: each row a lesson, method, data set, number of labels, tier, network and parameters.

    The value of a run is what its record says, itself a mean over the seeds within the lesson; the row's is the mean over the runs, with
    its standard error where there are two or more. The same seed twice in a row is the same run twice, and counts once; networks that come
    with the package are the same in every run, and make no row.
    """
    rows, left_out = {}, []
    for folder in folders:
        left_out += [
            f"Left out: {path.name.removesuffix('.failed.ipynb')} of {folder.name} (failed)."
            for path in sorted(folder.glob("[0-9]*.failed.ipynb"))
        ]
        for seed, parameters, record in _finished_records(folder):
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


def _finished_records(folder: Path) -> Iterable[tuple[int | str, dict, dict]]:
    """(seed, other parameters, record) of every lesson that finished in a folder.

    run.json says which lessons did, with which parameters, and which records are theirs. Without it, as after papermill itself, the
    lessons' own summaries name the records; the seed is the first of a record's, and for the last lesson, whose seeds draw labels, the
    folder's name stands in its place.
    """
    records = {results.file_name(record): record for record in results.read(folder / "results")}
    entries = read_state(folder)
    if not (folder / "run.json").is_file():
        entries = {path.stem: read_json(path) for path in sorted((folder / "results").glob(_SUMMARIES))}
    for entry in entries.values():
        parameters = entry.get("parameters", {})
        other = {key: value for key, value in sorted(parameters.items()) if key not in _ELSEWHERE}
        for record in (records[name] for name in entry.get("records", []) if name in records):
            own = folder.name if record["lesson"] == max(lessons.TITLES) else record["seeds"][0]
            yield parameters.get("SEED", own), other, record
