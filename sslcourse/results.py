"""Result records, small JSON files that say what was measured and how, and the tables made from them.

A record is a plain dict. `record` makes one, `write` stores it, `read` collects a folder of them, and `table` lays them out beside
numbers from elsewhere (an original project, a paper). Reading never executes anything: a file is JSON of the expected form, or is skipped.
"""

import html
import json
import math
import os
import platform
import re
import statistics
import subprocess
import warnings
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

import torch

from sslcourse.files import write_json

SCHEMA = 1
KIND = "sslcourse result"
SUMMARY_PREFIX = "run-summary-"  # a lesson's own summary lies beside its records; it is not one
SOURCES = ("ours", "original project", "paper")
UNITS = ("fraction", "number")
_REFERENCE = Path(__file__).parent / "reference"
_LARGEST_FILE = 1_000_000  # bytes; a record has a few kilobytes


def record(
    lesson: int,
    name: str,
    *,
    method: str,
    dataset: str,
    labels: int | None,
    metrics: Mapping,
    seed: int | Sequence[int],
    tier: str,
    device,
    seconds: float,
    image_size: int | None = None,
    network: str | None = None,
    settings: Mapping | None = None,
    notes: str | None = None,
    source: str = "ours",
    differs: str = "",
) -> dict:
    """Make one result record.

    lesson: 1–7. name: a short identifier within the lesson; it names the file. method: what a reader sees in the table.
    labels: how many labelled images were used, None for all of them.
    metrics: name -> number, or name -> {"value", "standard_error", "n", "runs", "unit"}. Accuracies are fractions (0.873, not 87.3);
    anything else says unit="number". n is the number of test images, runs the number of repetitions behind the value.
    seed: the seed, or all the seeds that the value averages over. device: a torch.device or its name. seconds: wall-clock time.

    Raises ValueError for values that are not finite (the message names the metric), accuracies outside 0–1, and settings that JSON
    cannot hold.
    """
    if isinstance(lesson, bool) or not isinstance(lesson, int) or lesson < 1:
        raise ValueError(f"lesson is a number from 1, not {lesson!r}")
    for label, text in (("name", name), ("method", method), ("dataset", dataset), ("tier", tier)):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{label} is a text that is not empty, not {text!r}")
    if source not in SOURCES:
        raise ValueError(f"source is one of {', '.join(SOURCES)}, not {source!r}")
    if labels is not None and (isinstance(labels, bool) or int(labels) != labels or labels < 0):
        raise ValueError(f"labels is a number of images or None for all, not {labels!r}")
    if not metrics:
        raise ValueError("a record needs at least one metric")
    seeds = [int(s) for s in seed] if isinstance(seed, Sequence) and not isinstance(seed, str) else [int(seed)]
    if not seeds:
        raise ValueError("a record needs at least one seed")
    result = {
        "kind": KIND,
        "schema": SCHEMA,
        "lesson": lesson,
        "name": name,
        "method": method,
        "source": source,
        "differs": differs,
        "dataset": dataset,
        "image_size": None if image_size is None else int(image_size),
        "network": network,
        "labels": None if labels is None else int(labels),
        "metrics": {str(key): _metric(str(key), value, runs=len(seeds)) for key, value in metrics.items()},
        "seeds": seeds,
        "tier": tier,
        "device": device_name(device),
        "seconds": round(_finite("seconds", seconds), 3),
        "settings": dict(settings or {}),
        "notes": notes,
        "versions": versions(),
        "git_commit": git_commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    try:
        return json.loads(json.dumps(result, allow_nan=False))  # what is written is what is in memory: tuples become lists, and so on
    except (TypeError, ValueError) as error:
        raise ValueError(f"the settings of the record {name!r} do not fit into JSON: {error}") from None


def _finite(name: str, value) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} is a number, not {value!r}") from None
    if not math.isfinite(number):
        raise ValueError(f"{name} is {number}, which is not a result: find where it became so before recording it")
    return number


def _metric(name: str, given, runs: int) -> dict:
    given = dict(given) if isinstance(given, Mapping) else {"value": given}
    unknown = set(given) - {"value", "standard_error", "n", "runs", "unit"}
    if unknown or "value" not in given:
        raise ValueError(f"metric {name}: give value and, where known, standard_error, n, runs, unit; not {sorted(given)}")
    value, unit = _finite(f"metric {name}", given["value"]), given.get("unit", "fraction")
    if unit not in UNITS:
        raise ValueError(f"metric {name}: unit is one of {', '.join(UNITS)}, not {unit!r}")
    if unit == "fraction" and not 0 <= value <= 1:
        raise ValueError(f"metric {name} is {value:g}; an accuracy is a fraction between 0 and 1, anything else needs unit='number'")
    error = given.get("standard_error")
    if error is not None:
        error = _finite(f"the standard error of metric {name}", error)
        if error < 0:
            raise ValueError(f"the standard error of metric {name} is {error:g}, below zero")
    n = given.get("n")
    return {
        "value": value,
        "standard_error": error,
        "n": None if n is None else int(n),
        "runs": int(given.get("runs") or runs),
        "unit": unit,
    }


def device_name(device) -> str:
    """The name of the hardware behind a torch device: 'Tesla T4', 'Intel(R) Xeon(R) CPU @ 2.20GHz'. Unknown names come back as they are."""
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError):
        return str(device)
    if device.type == "cuda" and torch.cuda.is_available():
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        try:
            lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        except OSError:
            lines = []
        named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name") and ":" in line]
        return (named and named[0]) or platform.processor() or platform.machine() or "cpu"
    return str(device)


def versions() -> dict:
    """Versions of Python and of the packages that decide a result."""
    import torchvision

    from sslcourse import __version__

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "sslcourse": __version__,
    }


@lru_cache(maxsize=1)
def git_commit() -> str | None:
    """The commit of the checkout that this package is imported from; None when it is installed, or git is missing. Never fails."""
    package = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "-C", str(package), "rev-parse", "--show-toplevel", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        )
        top, commit = done.stdout.split("\n")[:2]
        # An installed package may lie inside somebody else's checkout: that commit says nothing about this code.
        return commit.strip() if Path(top).resolve() == package.parent else None
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def file_name(result: Mapping) -> str:
    """The name of a record's file, from lesson, name, data set and labels: '01-supervised-toybox-100.json'.

    Another tier than cpu and another seed than 0 are added, so that a quick smoke run never replaces a real result.
    """
    labels = "all" if result["labels"] is None else str(result["labels"])
    parts = [f"{result['lesson']:02d}", _slug(result["name"]), _slug(result["dataset"]), labels]
    parts += [_slug(result["tier"])] if result["tier"] != "cpu" else []
    parts += ["seed" + "_".join(map(str, result["seeds"][:8]))] if result["seeds"] != [0] else []
    return "-".join(parts) + ".json"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "unnamed"


def write(result: Mapping, directory: Path | str) -> Path:
    """Write one record into a folder, which is made if need be, and return its path. The same experiment replaces its older record."""
    reason = _wrong_with(result)
    if reason:
        raise ValueError(f"this is not a record made by results.record: {reason}")
    return write_json(Path(directory) / file_name(result), dict(result))


def read_one(path: Path | str) -> dict:
    """Read one record. Raises ValueError, naming the file and the reason, when it is truncated or not a record."""
    path = Path(path)
    if path.stat().st_size > _LARGEST_FILE:
        raise ValueError(f"{path.name}: larger than any record")
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError(f"{path.name}: nested too deeply to be a record") from None
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise ValueError(f"{path.name}: not readable as JSON ({error})") from None
    reason = _wrong_with(content)
    if reason:
        raise ValueError(f"{path.name}: {reason}")
    return content


def _refuse_constant(text: str):
    raise ValueError(f"{text} is not a number that JSON knows")


def read(directory: Path | str) -> list[dict]:
    """All records in a folder, in the order of their file names; [] if there is no folder.

    Files that are truncated, or something else altogether, are skipped with a warning that names the file and the reason.
    """
    records = []
    for path in sorted(Path(directory).glob("*.json")):
        if path.name.startswith(SUMMARY_PREFIX):
            continue
        try:
            records.append(read_one(path))
        except (ValueError, OSError) as error:
            warnings.warn(f"skipped {path}: {error}", stacklevel=2)
    return records


def over_runs(values: Sequence[float], n: int | None = None, unit: str = "fraction") -> dict:
    """A metric from several runs: their mean, and its standard error where there are two or more. n: test images of each run."""
    values = [float(value) for value in values]
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return {"value": statistics.mean(values), "standard_error": error, "n": n, "runs": len(values), "unit": unit}


def reference(lesson: int | None = None) -> list[dict]:
    """The records of real runs that come with the package, of one lesson or of all."""
    return [found for found in read(_REFERENCE / "records") if lesson in (None, found["lesson"])]


def original_projects(lesson: int | None = None) -> list[dict]:
    """What the original student projects reported, as rows for `table`, of one lesson or of all."""
    rows = json.loads((_REFERENCE / "original_projects.json").read_text(encoding="utf-8"))
    return [row for row in rows if lesson in (None, row["lesson"])]


def measured_costs(lesson: int) -> dict[str, dict]:
    """tier -> {"seconds", "peak_memory", "device", ...} as measured when the lesson was last stored; {} for what was not measured."""
    return json.loads((_REFERENCE / "costs.json").read_text(encoding="utf-8")).get(str(lesson), {})


def record_costs(lesson: int, tier: str, seconds: float, peak_memory: int | None, device) -> None:
    """Write down in the package what a lesson cost at a tier, for its set-up cell and the README to quote."""
    path = _REFERENCE / "costs.json"
    costs = json.loads(path.read_text(encoding="utf-8"))
    measured = {"seconds": round(seconds, 1), "peak_memory": peak_memory, "device": device_name(device), "cores": os.cpu_count()}
    measured |= {"torch": torch.__version__, "date": datetime.now(UTC).strftime("%Y-%m-%d")}
    costs.setdefault(str(lesson), {})[tier] = measured
    write_json(path, costs)


def _wrong_with(content) -> str | None:
    """Why this is not a record, or None if it is one."""
    if not isinstance(content, Mapping) or content.get("kind") != KIND:
        return "not a result record of this course"
    if content.get("schema") != SCHEMA:
        return f"written in form {content.get('schema')!r}, and this version reads form {SCHEMA}"
    kinds = {"lesson": int, "name": str, "method": str, "dataset": str, "tier": str, "device": str, "seconds": (int, float)}
    kinds |= {"metrics": Mapping, "seeds": list, "versions": Mapping}
    for key, kind in kinds.items():
        if not isinstance(content.get(key), kind) or isinstance(content[key], bool):
            return f"{key!r} is missing or has the wrong type"
    if not (content.get("labels") is None or type(content["labels"]) is int):
        return "'labels' has the wrong type"
    if content.get("source") not in SOURCES:
        return f"'source' is not one of {', '.join(SOURCES)}"
    if not content["seeds"] or not all(type(seed) is int for seed in content["seeds"]):
        return "'seeds' is not a list of whole numbers"
    for name, metric in content["metrics"].items():
        if not isinstance(metric, Mapping) or metric.get("unit", "fraction") not in UNITS:
            return f"metric {name!r} has the wrong form"
        numbers = [metric.get("value")] + [metric[key] for key in ("standard_error",) if metric.get(key) is not None]
        if not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
            return f"metric {name!r} has no finite value"
    return None


def percent(value: float, standard_error: float | None = None) -> str:
    """A fraction as text: 0.873 and 0.004 give '87.3 ± 0.4 %'."""
    return f"{100 * value:.1f} %" if standard_error is None else f"{100 * value:.1f} ± {100 * standard_error:.1f} %"


class Table:
    """Rows of text under a header: HTML in a notebook, Markdown for a README, aligned plain text elsewhere."""

    def __init__(self, header: Sequence[str], rows: Iterable[Sequence[str]], caption: str = ""):
        self.header = [str(cell) for cell in header]
        self.rows = [[str(cell) for cell in row] for row in rows]
        self.caption = caption

    def _repr_html_(self) -> str:
        def line(cells, tag):
            return "<tr>" + "".join(f'<{tag} style="text-align:left">{html.escape(cell)}</{tag}>' for cell in cells) + "</tr>"

        caption = f"<caption>{html.escape(self.caption)}</caption>" if self.caption else ""
        body = "".join(line(row, "td") for row in self.rows)
        return f"<table>{caption}<thead>{line(self.header, 'th')}</thead><tbody>{body}</tbody></table>"

    def _repr_markdown_(self) -> str:
        def line(cells):
            return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

        return "\n".join([line(self.header), "|" + " --- |" * len(self.header), *map(line, self.rows)])

    def __str__(self) -> str:
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [self.header, *self.rows]
        ]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join(([self.caption] if self.caption else []) + lines)

    __repr__ = __str__


def table(rows: Iterable[Mapping], columns: Sequence[str] | None = None, caption: str = "") -> Table:
    """Lay out records and plain rows, in the order given.

    A plain row is a dict such as
    {"source": "paper", "method": "SimCLR", "dataset": "CIFAR-10", "metrics": {"top1": 0.906}, "differs": "ResNet-50"};
    source is 'ours' (if left out), 'original project' or 'paper', and differs says what makes the row not comparable.
    columns: names of fields and of metrics. By default method, source, dataset, labels, then every metric that occurs, then differs
    if any row has it.
    A field that a row does not have is shown as '–'.
    """
    rows = list(rows)
    for row in rows:
        if row.get("source", "ours") not in SOURCES:
            raise ValueError(f"the source of a row is one of {', '.join(SOURCES)}, not {row['source']!r}")
    metric_names = list(dict.fromkeys(name for row in rows for name in row.get("metrics", {})))
    if columns is None:
        columns = ["method", "source", "dataset", "labels", *metric_names]
        columns += ["differs"] if any(row.get("differs") for row in rows) else []
    return Table(columns, [[_cell(row, column) for column in columns] for row in rows], caption)


def readme_table(records: Iterable[Mapping]) -> str:
    """Records as the Markdown table of a README: what was found, with how many labels and runs, where and in what time."""
    order = sorted(records, key=lambda r: (r["lesson"], r["dataset"], r["labels"] or math.inf, r["method"]))
    rows = [r | {"runs": len(r["seeds"]), "pixels": r["image_size"], "lesson took": f"{r['seconds'] / 60:.1f} min"} for r in order]
    columns = ["lesson", "method", "dataset", "pixels", "labels", "network", "top1", "top3", "runs", "tier", "lesson took"]
    return table(rows, columns)._repr_markdown_()


def _cell(row: Mapping, column: str) -> str:
    if column in row.get("metrics", {}):
        metric = row["metrics"][column]
        metric = _metric(column, metric, runs=1)
        if metric["unit"] == "number":
            error = metric["standard_error"]
            return f"{metric['value']:.4g}" + ("" if error is None else f" ± {error:.2g}")
        return percent(metric["value"], metric["standard_error"])
    if column == "source":
        return row.get("source", "ours")
    if column == "labels" and "kind" in row and row["labels"] is None:
        return "all"
    value = row.get(column)
    if value is None or value == "":
        return "–"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
