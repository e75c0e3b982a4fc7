"""What lesson 7 lays side by side: who takes part, the records of all lessons, the final table, and figures of repeated runs."""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from sslcourse import evaluation, models, plots, results
from sslcourse.datasets import prepared
from sslcourse.devices import one_thread, seeded  # noqa: F401  (one_thread: for the lesson's own small fits)

RANDOM = "random initialisation"


def taking_part(folder: Path | str, images, *, tier: str, device="cpu") -> dict[str, models.Network]:
    """Networks of these images that lessons 1 to 6 kept in a folder at this tier, filled from the committed ones, in the order of lessons.

    Networks of another preparation of the data set are left out, which is said. Where no encoder is left that is pretrained, encoders of
    any data set come in their place: what they show is transfer.
    """
    parts = []
    for part in (models.read_networks(folder, device), models.reference_networks(device)):
        strange = [name for name, n in part.items() if n.dataset == images.name and other_images(n, images)]
        if strange:
            print(f"Left out, trained on other images than these that were called {images.name} too: {', '.join(strange)}.")
        parts.append({name: n for name, n in part.items() if name not in strange})
    found = filled(*parts, tier=tier, dataset=images.name)
    if any(map(is_pretrained, found.values())):
        return found
    elsewhere = filled(*parts, tier=tier).items()
    return {name: network for name, network in elsewhere if is_pretrained(network) and name not in found} | found


def filled(own: Mapping, committed: Mapping, *, tier: str, dataset: str | None = None) -> dict[str, models.Network]:
    """One's own networks of this tier, and the committed ones, of any tier, of methods not among them: by method, in the order of lessons.

    Of several numbers of labels the fewest have the method's name alone, others are 'supervised, 5000 labels'. A lesson's own size, width
    and budget count first, then the smallest seed.
    """
    found = [n for n in own.values() if n.about.get("tier") == tier and dataset in (None, n.dataset)]
    methods = {n.method for n in found}
    found += [n for n in committed.values() if n.method not in methods and dataset in (None, n.dataset)]
    found = [n for n in found if (n.about.get("lesson") or 1) < 7]  # a transformer of lesson 8 is another question
    found.sort(key=lambda n: (n.about.get("variant") or "", n.about.get("seed") or 0))
    found.sort(key=lambda n: (n.about.get("lesson") or math.inf, n.method, -1 if n.labels is None else n.labels))
    named: dict[str, models.Network] = {}
    for network in found:
        first = named.setdefault(network.method, network)
        if network.labels != first.labels:
            named.setdefault(f"{network.method}, {network.labels} labels", network)
    return named


def is_pretrained(network: models.Network) -> bool:
    """Whether it is an encoder that saw no label."""
    return not network.is_classifier and not network.labels


def fresh(like: Iterable[models.Network], make_encoder: Callable, *, dataset: str, size: int, seed: int, device) -> models.Network:
    """An encoder that learned nothing, of the kind and size of the first of these networks, or else made by make_encoder for this size."""
    first = next(iter(like), None)
    with seeded(seed):
        encoder = make_encoder() if first is None else models.encoder_from_recipe(first.encoder.recipe)
    about = {"method": RANDOM, "dataset": dataset, "size": first.size if first else size, "labels": None, "block": None}
    return models.Network(encoder.to(device).eval(), about)


def other_images(network: models.Network, images) -> bool:
    """Whether a network is known to have been trained on other images than these, which may be another size of the same."""
    theirs, size = network.about.get("identity"), network.about.get("image_size")
    if images.name == "toybox" and size != images.size:  # which is drawn anew at each size
        return False
    return theirs not in (None, images.identity, prepared.resized_identity(images.identity, size))


def network_name(network: models.Network) -> str:
    """What its encoder is called in tables: "ResNet-9, width 16", "ResNet-18", "ViT, width 192, depth 6, patch 4"."""
    recipe = network.encoder.recipe
    name = recipe["name"].replace("resnet", "ResNet-").replace("alexnet", "AlexNet").replace("vit", "ViT")
    return ", ".join([name, *(f"{part} {recipe[part]}" for part in ("width", "depth", "patch") if part in recipe)])


def roster(networks: Mapping[str, models.Network]) -> results.Table:
    """Who takes part: what each network is, what it was trained on and for how long, and where it comes from."""
    rows = []
    for name, network in networks.items():
        minutes, block = network.about.get("minutes"), network.block
        what = "classifier" if network.is_classifier else f"encoder, block {block}" if block else "encoder, its output"
        learned, origin = ("–", "just made") if name == RANDOM else (network.dataset, network.origin)
        labels = f"{network.labels:,}" if network.labels else "none"
        rows.append([name, what, learned, labels, f"{network.size}", f"{minutes:.1f}" if minutes else "–", origin])
    return results.Table(["name", "what it is", "trained on", "labels", "pixels", "minutes", "origin"], rows)


def so_far(lesson, per_class: int | None = None) -> results.Table | None:
    """What earlier lessons reached on this data set with per_class labels of each class, or any number; None where nothing is known."""
    own = [r for r in results.read(lesson.results_dir) if r["tier"] == lesson.tier]
    known = [r for r in results.fill(own, results.reference()) if r["lesson"] < lesson.number and r["dataset"] == lesson.dataset]
    here = sorted((r for r in known if f"-{per_class}-a-class" in r["name"]), key=lambda r: r["lesson"])
    columns = ["lesson", "method", "labels", "network", "top1", "tier", "origin"]
    return results.table(here or sorted(known, key=lambda r: r["labels"]), columns) if known else None


def by_labels(records: Iterable[Mapping]) -> results.Table:
    """Records of one data set, a row a method of a lesson and a column a number of labels; of two the one with more runs counts."""
    records = sorted((r for r in records if "top1" in r["metrics"]), key=lambda r: len(r["seeds"]))
    counts = sorted({r["labels"] for r in records}, key=lambda n: math.inf if n is None else n)
    rows = {}
    for r in records:
        key = (r["lesson"], r["method"], r.get("network") or "–", r["tier"], r.get("origin", "–"))
        rows.setdefault(key, {})[r["labels"]] = _top1(r)
    header = ["lesson", "method", *("all" if n is None else f"{n:,}" for n in counts), "network", "tier", "origin"]
    body = [[k[0], k[1], *(cells.get(n, "–") for n in counts), *k[2:]] for k, cells in sorted(rows.items())]
    return results.Table(header, body, caption="top-1 on the test images, by labels")


def _top1(record: Mapping) -> str:
    return results.percent(record["metrics"]["top1"]["value"], record["metrics"]["top1"]["standard_error"])


def single_runs(record: Mapping) -> dict[int, float]:
    """seed -> top-1 accuracy in percent, of a record that kept its single runs; {} of one that did not."""
    values = record["metrics"].get("top1", {}).get("values") or []
    return {seed: 100 * value for seed, value in zip(record["seeds"], values, strict=True)} if len(values) == len(record["seeds"]) else {}


def label_curves(percents: Mapping[str, Mapping[int, Mapping[int, float]]], *, title: str, classes: int) -> None:
    """Test accuracy against labels per class, with standard errors over seeds. percents: way -> labels per class -> seed -> percent."""
    x, means, errors = {way: list(row) for way, row in percents.items()}, {}, {}
    for way, row in percents.items():
        means[way], errors[way] = zip(*(evaluation.mean_and_error([*runs.values()]) for runs in row.values()), strict=True)
    where = {"xlabel": "labelled images per class", "ylabel": "test accuracy, %", "log_x": True}
    plots.lines(x, means, errors=errors, title=title, chance=100 / classes, **where)


def whole_runs(records: Iterable[Mapping], labels: int) -> dict[str, dict[int, float]]:
    """Method -> seed -> top-1 in percent on the test images, of whole runs with so many labels: pretraining, labels and all anew each time.

    Of several lessons that kept single runs of a method the first counts, and of several supervised baselines in it the best on validation.
    """
    found: dict[str, dict[int, float]] = {}
    for r in sorted(records, key=lambda r: (r["lesson"], -r["metrics"].get("validation", {"value": 0})["value"])):
        fits = r["labels"] == labels and r["tier"] != LONG and not r["tier"].startswith(ONE_NETWORK)  # those are one network each
        method = {"supervised": "supervised", "untrained": RANDOM}.get(r["method"].split(",")[0], r["method"])
        if fits and len(runs := single_runs(r)) > 1:
            found.setdefault(method, runs)
    return found


def views_seen(records: Iterable[Mapping]) -> dict[str, int]:
    """Method -> how many views of unlabelled images went forward through a network in its training, of records that say so.

    A pass looks at each image in VIEWS: rotation in four; SimCLR and Barlow Twins in two; BYOL in two, through the network and its target;
    pseudo-labels and FixMatch in one that gets the label and one that learns.
    """
    found: dict[str, int] = {}
    for record in records:
        settings, method = record.get("settings", {}), record["method"].split(",")[0]
        passes = settings.get("pretraining_epochs", settings.get("epochs", settings.get("passes", 0)))
        both = {"rotation": settings.get("rotation_passes", 0), "FixMatch": passes}
        parts = both if method == "rotation + FixMatch" else {method: passes}
        seen = sum(VIEWS.get(part, 0) * n for part, n in parts.items()) * settings.get("unlabelled", settings.get("images", 0))
        found |= {method: round(seen)} if seen and method not in found else {}
    return found


VIEWS = {"rotation": 4, "SimCLR": 2, "BYOL": 4, "Barlow Twins": 2, "pseudo-labels": 2, "FixMatch": 2}
JPEG = {"cifar10-jpeg": "cifar10"}  # the same photographs, compressed
ONE_NETWORK = "one network, tier "  # what `evaluate` makes of a network that a lesson of this tier kept
LONG = "long run"  # the tier of what `pretrain` and `evaluate` have made, outside the lessons
STAND_INS = {"stl10": "cifar10"}  # ten classes too; with 5,000 labels and 45,000 unlabelled images it is much the same task

# What the original projects reported, what was published by whoever ran it, and the methods of our records that belong to the same task.
TASKS = json.loads((Path(results.__file__).parent / "reference" / "tasks.json").read_text(encoding="utf-8"))


def _protocol(method: str) -> str:
    """The method with one name for the linear probe, which is "frozen" or, at a block, "probe" in lessons and in `evaluate`."""
    return re.sub(", (frozen|probe|linear-probe)$", ", probe", method)


def _our_rows(records: Iterable[Mapping], dataset: str, task: Mapping) -> list[Mapping]:
    """For each method of a task our best record of the lessons and of longer runs: most labels up to the task's, most runs, newest."""
    fits = [r for r in records if JPEG.get(r["dataset"], r["dataset"]) == dataset and "top1" in r["metrics"] and r["labels"] is not None]
    fits = [r for r in fits if r["labels"] <= task["labels"] and not r["tier"].startswith(ONE_NETWORK)]
    fits = sorted(reversed(fits), key=lambda r: (r["labels"], len(r["seeds"]), r.get("date") or ""))
    best = {(_protocol(r["method"]), r["tier"] == LONG): r for r in fits}  # the last one stays
    return [best[key] for method in task["ours"] for long in (False, True) if (key := (_protocol(method), long)) in best]


def _row(source: str, found: Mapping, gain: str, differs: str) -> list[str]:
    """A row of the final table, of a record of ours or an entry of TASKS."""
    reported = found.get("top1")
    top1 = _top1(found) if "metrics" in found else "–" if reported is None else results.percent(reported)
    return [source, found["method"], top1, f"{found['labels']:,}", found.get("network") or "–", gain, differs]


def _differs(record: Mapping) -> str:
    epochs, long, runs = record["settings"].get("epochs"), record["tier"] == LONG, len(record["seeds"])
    if long and epochs:  # one network, whose labels were drawn anew
        ran = [f"one pretraining of {epochs} epochs", f"{runs} draws of labels"]
    else:
        ran = [f"{runs} seeds", LONG if long else f"tier {record['tier']}"]
    told = ["as JPEG" if record["dataset"] in JPEG else None, f"{record['image_size']} px", *ran, record.get("origin")]
    return ", ".join(filter(None, told))


def final_table(records: Iterable[Mapping]) -> results.Table:
    """What the original projects reported, what we have for the same task, and what was published; what is open stays open.

    gain: ours, with as many labels as the task has, less the reported number of the same kind (the first one where none is, but for
    supervised), with the standard errors of both, ours over seeds and theirs over test images. In an open task, ours on a stand-in for
    its data set (`STAND_INS`) is shown as such, without a gain.
    """
    records, rows = list(records), []
    for task in TASKS:
        found, stand_in = _our_rows(records, task["dataset"], task), STAND_INS.get(task["dataset"])
        of_task = [_row("original project", row, "", row["differs"]) for row in task["reported"]]
        of_task += [_row("ours", record, _gain(record, task), _differs(record)) for record in found]
        if not found:
            instead = [r for r in _our_rows(records, stand_in, task) if r["labels"] == task["labels"]]
            of_task += [_row("stand-in", record, "", f"{stand_in} in its place, {_differs(record)}") for record in instead]
            of_task.append(["ours", "–", "–", "–", "–", "", "open: not run yet"])
        of_task += [_row("published", row, "", row["differs"]) for row in task["published"]]
        rows += [[task["name"] if k == 0 else "", *row] for k, row in enumerate(of_task)]
    return results.Table(["task", "source", "method", "top-1", "labels", "network", "gain", "what differs"], rows)


def _gain(record: Mapping, task: Mapping) -> str:
    reported = [row for row in task["reported"] if row["top1"] is not None]
    if not reported:
        return "–"
    kind = _protocol(record["method"]).split(", ")[-1]
    same = [row for row in reported if row["method"] == record["method"] or _protocol(row["method"]).endswith(f", {kind}")]
    if record["labels"] != task["labels"] or not same and kind == "supervised":
        return "–"
    theirs, top1, n = (same or reported)[0]["top1"], record["metrics"]["top1"], task["test_images"]
    known = n and top1["standard_error"] is not None
    error = f" ± {100 * math.hypot(top1['standard_error'], evaluation.standard_error(theirs, n)):.1f}" if known else ""
    return f"{100 * (top1['value'] - theirs):+.1f}{error}".replace("-", "−")


def open_tasks(records: Iterable[Mapping]) -> list[str]:
    """The tasks of the final table for which there is no record of ours."""
    records = list(records)
    return [task["name"] for task in TASKS if not _our_rows(records, task["dataset"], task)]
