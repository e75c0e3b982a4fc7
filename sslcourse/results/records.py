"""Result records, small JSON files that say what was measured and how, and the tables made from them.

A record is a plain dict. `record` makes one, `write` stores it, `read` collects a folder of them, and `table` lays them out beside
numbers from elsewhere (an original project, a paper). Reading never executes anything: a file is JSON of the expected form, or is skipped.
"""

import copy
import hashlib
import json
import os
import platform
import subprocess
import warnings
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

import torch

from sslcourse.files import slug, write_json
from sslcourse.results.metrics import finite, is_finite_number, metric, over_runs, wrong_with  # noqa: F401 (over_runs is public here too)
from sslcourse.results.tables import SOURCES, Table, overview, percent, readme_table, table  # noqa: F401 (public here too)

SCHEMA = 1
KIND = "sslcourse result"
SUMMARY_PREFIX = "run-summary-"  # a lesson's own summary lies beside its records; it is not one
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
    metrics: name -> number, or name -> {"value", "standard_error", "n", "runs", "values", "unit"}; `over_runs` makes one. Accuracies are
    fractions (0.873, not 87.3); anything else says unit="number". n is the number of test images, runs the number of repetitions behind
    the value, and values those repetitions one by one.
    seed: the seed, or all the seeds that the value averages over. device: a torch.device or its name. seconds: wall-clock time.

    Raises ValueError for values that are not finite (the message names the metric), accuracies outside 0–1, values that are not
    the runs of their mean, and settings that JSON cannot hold.
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
        "metrics": {str(key): metric(str(key), value, runs=len(seeds)) for key, value in metrics.items()},
        "seeds": seeds,
        "tier": tier,
        "device": device_name(device),
        "seconds": round(finite("seconds", seconds), 3),
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
    package = Path(__file__).resolve().parents[1]
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
    parts = [f"{result['lesson']:02d}", slug(result["name"]), slug(result["dataset"]), labels]
    parts += [slug(result["tier"])] if result["tier"] != "cpu" else []
    seeds = "_".join(map(str, result["seeds"]))
    seeds = seeds if len(seeds) <= 40 else hashlib.sha256(seeds.encode()).hexdigest()[:12]  # a file name has at most 255 bytes
    parts += ["seed" + seeds] if result["seeds"] != [0] else []
    return "-".join(parts) + ".json"


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
        # 1e999 and half a surrogate pair are read without complaint, and cannot be written again
        json.dumps(content, allow_nan=False, ensure_ascii=False).encode()
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


def reference(lesson: int | None = None) -> list[dict]:
    """The records of real runs that come with the package, of one lesson or of all."""
    return [found for found in read(_REFERENCE / "records") if lesson in (None, found["lesson"])]


def original_projects(lesson: int | None = None) -> list[dict]:
    """What the original student projects reported, as rows for `table`, of one lesson or of all."""
    rows = json.loads((_REFERENCE / "original_projects.json").read_text(encoding="utf-8"))
    return [row for row in rows if lesson in (None, row["lesson"])]


def select(records: Iterable[Mapping], **fields) -> list:
    """The records whose fields have these values, in the order given: select(found, dataset="toybox", labels=(100, 500), tier="cpu").

    A list, tuple, set or range holds several accepted values. Raises ValueError for a field that no record has.
    """
    records = list(records)
    known = dict.fromkeys(key for record in records for key in record)
    unknown = [name for name in fields if name not in known]
    if records and unknown:
        raise ValueError(f"no record has a field {unknown[0]!r}; choose from {', '.join(known)}")

    def fits(value, wanted) -> bool:
        several = isinstance(wanted, (list, tuple, set, frozenset, range))
        return value == wanted or several and any(value == one for one in wanted)

    return [r for r in records if all(name in r and fits(r[name], wanted) for name, wanted in fields.items())]


def fill(own: Iterable[Mapping], committed: Iterable[Mapping], tier: str | None = None) -> list[dict]:
    """One's own records, then those committed ones whose experiment one's own lack; each a copy with "origin".

    own: records of this run, such as `read(lesson.results_dir)`; their origin is "this run". committed: such as `reference()`; their
    origin is "committed". The same experiment means the same lesson, method, data set and number of labels: settings and seeds may differ.
    tier: leave out what was made at another tier, one's own too; None keeps every tier, and then a quick smoke record of one's own stands
    where a committed one of tier cpu would, so show the columns tier and origin.
    """
    own, committed = ([r for r in records if tier in (None, r["tier"])] for records in (own, committed))
    done = {_experiment(record) for record in own}
    kept = [(record, "this run") for record in own]
    kept += [(record, "committed") for record in committed if _experiment(record) not in done]
    return [copy.deepcopy(dict(record)) | {"origin": origin} for record, origin in kept]


def _experiment(record: Mapping) -> tuple:
    return tuple(record[key] for key in ("lesson", "method", "dataset", "labels"))


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
    text, whole, maybe = (str,), (int,), (type(None),)
    kinds = dict.fromkeys(("name", "method", "dataset", "tier", "device", "differs"), text) | {"lesson": whole, "seconds": (int, float)}
    kinds |= {"labels": whole + maybe, "image_size": whole + maybe} | dict.fromkeys(("network", "notes", "git_commit"), text + maybe)
    kinds |= {"metrics": (dict,), "seeds": (list,), "settings": (dict,), "versions": (dict,)}
    for key, accepted in kinds.items():
        if key not in content or type(content[key]) not in accepted:
            return f"{key!r} is missing or has the wrong type"
    for key, least in (("lesson", 1), ("labels", 0), ("image_size", 1), ("seconds", 0)):
        number = content[key]
        if number is not None and not (is_finite_number(number) and least <= number < 2**63):
            return f"{key!r} is no possible number"
    if content.get("source") not in SOURCES:
        return f"'source' is not one of {', '.join(SOURCES)}"
    if not content["seeds"] or not all(type(seed) is int and abs(seed) < 2**63 for seed in content["seeds"]):
        return "'seeds' is not a list of whole numbers"
    if not content["metrics"]:
        return "'metrics' is empty"
    return next(filter(None, (wrong_with(name, metric) for name, metric in content["metrics"].items())), None)
