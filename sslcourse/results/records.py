"""Result records, small JSON files that say what was measured and how: making, writing, reading and choosing them.

A record is a plain dict of the form that schema.json beside this file describes. Its metrics are dicts {"value", "standard_error", "n",
"runs", "values", "unit"}: n test images of a run, how many runs the value averages over, those runs in the order of the seeds; unit is
"fraction" (an accuracy) or "number". What is not known is None.
"""

import copy
import hashlib
import importlib
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

import fastjsonschema
import torch

from sslcourse.errors import CourseError
from sslcourse.files import differences, plain, slug, write_json

SUMMARY_PREFIX = "run-summary-"  # a lesson's own summary lies beside its records; it is not one
_REFERENCE = Path(__file__).parent / "reference"
_fits_schema = fastjsonschema.compile(json.loads(Path(__file__).with_name("schema.json").read_text(encoding="utf-8")))
_LESSON_TIERS = ("smoke", "cpu", "gpu", "full")
# what of a record, and of its settings, may differ when the same experiment is made again
_MEASURED = ("metrics", "seconds", "minutes", "device", "date", "versions", "git_commit", "git_clean", "notes")


def record(
    lesson: int, name: str, *, method: str, dataset: str, labels: int | None, metrics: Mapping, seed: int | Sequence[int], tier: str,
    device, seconds: float, image_size: int | None = None, network: str | None = None, settings: Mapping | None = None,
    identity: str | None = None, notes: str | None = None, source: str = "ours", differs: str = "",
) -> dict:  # fmt: skip
    """Make one result record.

    lesson: 1–7. name: names the file. method: what the table shows. labels: how many labelled images were used, None for all.
    metrics: name -> number or some of a metric's fields, as `over_runs` makes them. seed: one, or all that the values average over.
    seconds: wall-clock time. settings: what else decides the result. identity: of the images, `ImageSet.identity`; None: not known.
    Raises ValueError, which names the field, for what is not finite, outside 0–1 as a fraction, or does not fit into JSON.
    """
    seeds = [int(s) for s in seed] if isinstance(seed, Sequence) and not isinstance(seed, str) else [int(seed)]
    commit, clean = git_state()
    versions = {name: importlib.import_module(name).__version__ for name in ("torch", "torchvision", "sslcourse")}
    versions["python"] = platform.python_version()
    result = {
        "kind": "sslcourse result", "schema": 1, "lesson": lesson, "name": name, "method": method, "source": source, "differs": differs,
        "dataset": dataset, "identity": identity, "image_size": plain(image_size), "network": network, "labels": plain(labels),
        "seeds": seeds, "tier": tier, "metrics": {str(key): metric(value, runs=len(seeds) or 1) for key, value in metrics.items()},
        "device": device_name(device), "seconds": round(float(seconds), 3), "settings": dict(settings or {}), "notes": notes,
        "versions": versions, "git_commit": commit, "git_clean": clean, "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }  # fmt: skip
    check(result)
    try:
        return json.loads(json.dumps(result, allow_nan=False))  # what is written is what is in memory: tuples become lists, and so on
    except (TypeError, ValueError) as error:
        raise ValueError(f"the record {name!r}, with its settings, does not fit into JSON: {error}") from None


def over_runs(values: Sequence[float], n: int | None = None, unit: str = "fraction") -> dict:
    """A metric from several runs, in the order of the seeds: their mean, its standard error, and the runs. n: test images of each run."""
    values = [float(value) for value in values]
    if not values or not all(map(math.isfinite, values)):
        raise ValueError(f"over_runs needs one finite number a run, at least one, not {values}")
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return {"value": statistics.mean(values), "standard_error": error, "n": n, "runs": len(values), "values": values, "unit": unit}


def metric(given, runs: int = 1) -> dict:
    """A metric in its full form, from a number or a dict with some of its fields. runs: how many there are, where `given` does not say."""
    given = plain(given)
    given = given if isinstance(given, Mapping) else {"value": given}
    found = {"standard_error": None, "n": None, "runs": None, "values": None, "unit": "fraction"} | given
    return found | {"runs": found["runs"] or len(found["values"] or ()) or runs}


def check(content) -> None:
    """Raise ValueError, in a sentence that names the field, unless this is a record."""
    try:
        _fits_schema(content)
    except fastjsonschema.JsonSchemaValueException as error:
        raise ValueError(error.message.replace("data", "record", 1)) from None
    for name, found in content["metrics"].items():
        values = found.get("values") or []
        if not all(map(math.isfinite, [found["value"], found.get("standard_error") or 0, *values])):
            raise ValueError(f"record.metrics.{name} is not finite: find where it became so before recording it")
        if values and found.get("runs") not in (None, len(values)):
            raise ValueError(f"record.metrics.{name} has {len(values)} values for {found['runs']} runs: one a run, in their order")
        if values and not math.isclose(statistics.mean(values), found["value"], rel_tol=1e-6, abs_tol=1e-9):
            raise ValueError(f"record.metrics.{name} is {found['value']:g}, and its runs have a mean of {statistics.mean(values):g}")


def device_name(device) -> str:
    """The name of the hardware behind a torch device: 'Tesla T4', 'Intel(R) Xeon(R) CPU @ 2.20GHz'. Unknown names come back as they are."""
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError):
        return str(device)
    if device.type != "cpu":
        return torch.cuda.get_device_name(device) if device.type == "cuda" and torch.cuda.is_available() else str(device)
    cpuinfo = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*:\s*(\S.*?)\s*$", cpuinfo.read_text(errors="replace") if cpuinfo.exists() else "", re.MULTILINE)
    return named[1] if named else platform.processor() or platform.machine() or "cpu"


@lru_cache(maxsize=1)
def git_state() -> tuple[str | None, bool | None]:
    """The commit of the checkout that this package is imported from, and whether nothing in it differs from that commit.

    (None, None) where the package is installed, even inside another checkout, and where git is missing or will not answer.
    """
    checkout = Path(__file__).resolve().parents[2]
    asked = ["git", "--no-optional-locks", "-C", str(checkout), "status", "--porcelain=v2", "--branch"]
    try:
        told = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True).stdout if (checkout / ".git").exists() else ""
    except (OSError, ValueError, subprocess.SubprocessError):
        told = ""
    commit = re.search(r"^# branch\.oid (\w+)$", told, flags=re.MULTILINE)
    return (commit[1], all(line.startswith("#") for line in told.splitlines())) if commit else (None, None)


def file_name(result: Mapping) -> str:
    """The name of a record's file, '01-supervised-toybox-100.json'; another tier than cpu and another seed than 0 are added.

    Outside the tiers of the lessons, network and image size are added too, and eight digits that stand for all that decides the result.
    """
    labels = "all" if result["labels"] is None else str(result["labels"])
    parts = [f"{int(result['lesson']):02d}", slug(result["name"]), slug(result["dataset"]), labels]
    parts += [slug(result["tier"])[:24]] if result["tier"] != "cpu" else []
    if result["tier"] not in _LESSON_TIERS:
        decides = hashlib.sha256(json.dumps(_experiment(result), sort_keys=True).encode()).hexdigest()
        parts += [slug(result["network"] or "network")[:24], f"{result['image_size'] or 0}px", decides[:8]]
    seeds = "_".join(map(str, result["seeds"]))
    seeds = seeds if len(seeds) <= 40 else hashlib.sha256(seeds.encode()).hexdigest()[:12]  # a file name has at most 255 bytes
    parts += ["seed" + seeds] if result["seeds"] != [0] else []
    return "-".join(parts) + ".json"


def _experiment(result: Mapping) -> dict:
    """What a record says of the experiment, and not of what came out, when and where."""
    settings = {f"settings.{name}": value for name, value in result["settings"].items() if name not in _MEASURED}
    return {name: value for name, value in result.items() if name not in (*_MEASURED, "settings")} | settings


def write(result: Mapping, directory: Path | str, named: str = "directory") -> Path:
    """Write one record into a folder, which is made if need be, and return its path. The same experiment replaces its older record.

    named: the option that gave the folder, for messages. CourseError where anything else is there, and where it cannot be written.
    """
    check(result)
    path = Path(directory) / file_name(result)
    way_out = f"Move that file away, or give another folder as {named}."
    try:
        if path.exists() and (found := differences(_experiment(read_one(path)), _experiment(result))):
            raise CourseError(f"{path} is the record of another experiment, and was not written over: {found}. {way_out}")
        return write_json(path, dict(result))
    except ValueError as error:
        raise CourseError(f"{path} is there already, and is no record ({error}). {way_out}") from None


def read_one(path: Path | str) -> dict:
    """Read one record. Raises ValueError, naming the file and the reason, when it cannot be read or is not a record."""
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        # NaN, 1e999 and half a surrogate pair are read without complaint, and cannot be written again
        json.dumps(content, allow_nan=False, ensure_ascii=False).encode()
        check(content)
    except (OSError, RecursionError, ValueError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise ValueError(f"{path.name}: {error}") from None
    return content


def read(directory: Path | str) -> list[dict]:
    """All records in a folder, in the order of their file names; other files are skipped with a warning that names file and reason."""
    records = []
    for path in sorted(path for path in Path(directory).glob("*.json") if not path.name.startswith(SUMMARY_PREFIX)):
        try:
            records.append(read_one(path))
        except ValueError as error:
            warnings.warn(f"skipped {path}: {error}", stacklevel=2)
    return records


def reference(lesson: int | None = None) -> list[dict]:
    """The records of real runs that come with the package, of one lesson or of all."""
    return [found for found in read(_REFERENCE / "records") if lesson in (None, found["lesson"])]


def original_projects(lesson: int | None = None) -> list[dict]:
    """What the original student projects reported, as rows for `table`, of one lesson or of all."""
    rows = json.loads((_REFERENCE / "original_projects.json").read_text(encoding="utf-8"))
    return [row for row in rows if lesson in (None, row["lesson"])]


def fill(own: Iterable[Mapping], committed: Iterable[Mapping]) -> list[dict]:
    """Copies of one's own records, then of committed ones whose experiments one's own lack; "origin" says which.

    One experiment: the lesson, method, data set and labels, and whether it is a lesson's or a longer run of its own.
    """

    def experiment(found: Mapping) -> tuple:
        return *(found[key] for key in ("lesson", "method", "dataset", "labels")), found["tier"] in _LESSON_TIERS

    filled = [copy.deepcopy(dict(found)) | {"origin": "this run"} for found in own]
    done = {experiment(found) for found in filled}
    return filled + [copy.deepcopy(dict(found)) | {"origin": "shipped"} for found in committed if experiment(found) not in done]


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
