"""What lesson 7 lays side by side: who takes part, the records of all lessons, the final table, and figures of repeated runs."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

from sslcourse import evaluation, models, plots, results
from sslcourse.devices import (
    one_thread,  # noqa: F401  (for the lesson's own small fits)
    seeded,
)
from sslcourse.evaluation import uncertainty

RANDOM = "random initialisation"


# --- who takes part -------------------------------------------------------------------------------------------------------------------


def taking_part(folder: Path | str, *, dataset: str, tier: str, device="cpu") -> dict[str, models.Network]:
    """The networks that lessons 1 to 6 kept in a folder, filled from the committed ones: name -> Network, in the order of lessons.

    Networks of this data set, and one's own of this tier. Where there is not one pretrained encoder among them, encoders of any data set
    come in their place: what they show is transfer.
    """
    own, committed = models.read_networks(folder, device), models.reference_networks(device)
    found = models.fill_networks(own, committed, dataset=dataset, tier=tier)
    if not any(is_pretrained(network) for network in found.values()):
        elsewhere = models.fill_networks(own, committed, tier=tier)
        found = {name: n for name, n in elsewhere.items() if is_pretrained(n) and name not in found} | found
    return found


def is_pretrained(network: models.Network) -> bool:
    """Whether it is an encoder that saw no label."""
    return not network.is_classifier and not network.labels


def fresh(
    like: Iterable[models.Network], make_encoder: Callable[[], nn.Module], *, dataset: str, size: int, seed: int, device
) -> models.Network:
    """An encoder that learned nothing, of the kind of the first of these networks, or as make_encoder has it where there is none.

    size: pixels a side at which it is evaluated, where there is no network to take that from.
    """
    first = next(iter(like), None)
    with seeded(seed):
        encoder = make_encoder() if first is None else models.encoder_from_recipe(first.encoder.recipe)
    about = {"method": RANDOM, "dataset": dataset, "size": first.size if first else size, "labels": None, "block": None}
    return models.Network(encoder.to(device).eval(), about)


def best_block(network: models.Network, images, per_class: int, seeds: Sequence[int]) -> int:
    """The block whose features a linear probe with per_class labels reads best on the validation images, averaged over label draws."""
    scores = {}
    for block in range(1, len(network.encoder.blocks) + 1):
        found = evaluation.feature_set(network.encoder, images, block=block, size=network.size)
        scores[block] = sum(evaluation.linear_probe(found.few_labels(per_class, s)).top1 for s in seeds)
    return max(scores, key=scores.get)


def network_name(network: models.Network) -> str:
    """What its encoder is called in tables: "ResNet-9, width 16", "ResNet-18"."""
    recipe = network.encoder.recipe
    names = {"resnet9": f"ResNet-9, width {recipe.get('width')}", "resnet18": "ResNet-18", "resnet50": "ResNet-50", "alexnet": "AlexNet"}
    return names[recipe["name"]]


def roster(networks: Mapping[str, models.Network]) -> results.Table:
    """Who takes part: what each network is, what it was trained on and for how long, and where it comes from."""
    rows = []
    for name, network in networks.items():
        minutes, block = network.about.get("minutes"), network.block
        what = "classifier" if network.is_classifier else f"encoder, block {block}" if block else "encoder, its output"
        learned = "–" if name == RANDOM else network.dataset
        labels = f"{network.labels:,}" if network.labels else "none"
        origin = "just made" if name == RANDOM else network.origin
        rows.append([name, what, learned, labels, f"{network.size}", f"{minutes:.1f}" if minutes else "–", origin])
    return results.Table(["name", "what it is", "trained on", "labels", "pixels", "minutes", "origin"], rows)


# --- records --------------------------------------------------------------------------------------------------------------------------


def by_labels(records: Iterable[Mapping]) -> results.Table:
    """Records of one data set, a row a method of a lesson and a column a number of labels; of two the one with more runs counts."""
    records = sorted((r for r in records if "top1" in r["metrics"]), key=lambda r: len(r["seeds"]))
    counts = sorted({r["labels"] for r in records}, key=lambda n: math.inf if n is None else n)
    rows = {}
    for r in records:
        key = (r["lesson"], r["method"], r.get("network") or "–", r["tier"], r.get("origin", "–"))
        metric = r["metrics"]["top1"]
        rows.setdefault(key, {})[r["labels"]] = results.percent(metric["value"], metric["standard_error"])
    header = ["lesson", "method", *("all" if n is None else f"{n:,}" for n in counts), "network", "tier", "origin"]
    body = [[k[0], k[1], *(cells.get(n, "–") for n in counts), *k[2:]] for k, cells in sorted(rows.items())]
    return results.Table(header, body, caption="top-1 on the test images, by labels")


def single_runs(record: Mapping, metric: str = "top1") -> dict[int, float]:
    """seed -> accuracy in percent, of a record that kept its single runs; {} of one that did not."""
    values = record["metrics"].get(metric, {}).get("values") or []
    return {seed: 100 * value for seed, value in zip(record["seeds"], values, strict=True)} if len(values) == len(record["seeds"]) else {}


def images_seen(records: Iterable[Mapping]) -> dict[str, int]:
    """Method -> how many unlabelled images its pretraining looked at, a pass over N images counting N; of records that say so."""
    found = {}
    for record in records:
        settings, method = record.get("settings", {}), record["method"].split(",")[0]
        epochs = settings.get("pretraining_epochs", settings.get("epochs"))
        pictures = settings.get("unlabelled", settings.get("images"))
        if epochs and pictures and record["method"] != method:  # "SimCLR, frozen" was pretrained, "supervised" was not
            found.setdefault(method, round(epochs * pictures))
    return found


# --- the final table ------------------------------------------------------------------------------------------------------------------

JPEG = {"cifar10-jpeg": "cifar10"}  # the same photographs, compressed
LONG = "long run"  # the tier of what `pretrain` and `evaluate` have made, outside the lessons
STAND_INS = {"stl10": "cifar10"}  # ten classes too; with 5,000 labels and 45,000 unlabelled images it is much the same task


def _task(name, dataset, labels, reported, ours, published=(), test_images=None):
    return {
        "name": name, "dataset": dataset, "labels": labels, "reported": reported, "ours": ours, "published": published, "n": test_images,
    }  # fmt: skip


# Reported: method, top-1, labels, network, what differs. Published: the same, from whoever ran it, which need not be the method's own
# paper. Ours: methods of our records.
TASKS = (
    _task(
        "STL-10, supervised", "stl10", 5000,
        [("supervised", 0.7332, 5000, "ResNet-9", "tested in training mode")],
        ["supervised"],
        [("supervised", 0.733, 5000, "ResNet-18", "")], 8000,
    ),
    _task(
        "STL-10, pseudo-labels", "stl10", 5000,
        [("pseudo-labels", 0.78, 5000, "ResNet-9", "no threshold; out of memory before the end")],
        ["pseudo-labels", "FixMatch"],
        [("pseudo-labels", 0.674, 1000, "WRN-37-2", "a later comparison; a fifth of the labels"),
         ("FixMatch", 0.938, 1000, "WRN-37-2", "the same")],
        8000,
    ),
    _task(
        "STL-10, Barlow Twins", "stl10", 5000,
        [("Barlow Twins", None, 5000, "ResNet-9", "loss NaN after 13 and 23 epochs")],
        ["Barlow Twins, frozen", "Barlow Twins, fine-tuned"],
        [("Barlow Twins, linear", 0.910, 5000, "ResNet-18", "mixed samples, 64 px, 2,000 epochs")], 8000,
    ),
    _task(
        "cats and dogs, rotations", "cats-vs-dogs", 1250,
        [("rotation", 0.706, 1250, "small CNN", "two rotations, gradients never cleared"),
         ("supervised", 0.695, 2500, "small CNN", "half the learning rate, all labels")],
        ["rotation, probe", "rotation, fine-tuned", "supervised"], (), 623,
    ),
    _task(
        "flowers", "flowers", 350,
        [("rotation", 0.75, 350, "CNN", "read from a curve, validation images"),
         ("supervised", 0.72, 350, "CNN", "read from a curve, validation images")],
        ["rotation, probe", "rotation, fine-tuned", "SimCLR, frozen", "SimCLR, fine-tuned", "supervised"],
    ),
    _task(
        "CIFAR-10, a tenth of the labels", "cifar10", 5000,
        [("SimCLR, frozen", 0.713, 5000, "ResNet-50", "labels cut from the test loader"),
         ("SimCLR, fine-tuned", 0.774, 5000, "ResNet-50", "labels cut from the test loader")],
        ["SimCLR, frozen", "SimCLR, fine-tuned", "BYOL, frozen", "BYOL, fine-tuned", "Barlow Twins, frozen", "Barlow Twins, fine-tuned"],
        [("SimCLR, linear", 0.907, 50_000, "ResNet-18", "solo-learn: all labels, 1,000 epochs"),
         ("BYOL, linear", 0.926, 50_000, "ResNet-18", "solo-learn: all labels, 1,000 epochs"),
         ("Barlow Twins, linear", 0.921, 50_000, "ResNet-18", "solo-learn: all labels, 1,000 epochs"),
         ("FixMatch", 0.957, 4000, "WRN", "a later comparison")], 10_000,
    ),
    _task(
        "STL-10, BYOL", "stl10", 5000,
        [("BYOL, frozen", 0.722, 5000, "ResNet-18", "features without the normalisation of training"),
         ("BYOL, fine-tuned", 0.7689, 5000, "ResNet-18", "no colour jitter"),
         ("BYOL, fine-tuned", 0.886, 5000, "ResNet-18", "from ImageNet weights: a million labels, transfer")],
        ["BYOL, frozen", "BYOL, fine-tuned"],
        [("BYOL, linear", 0.752, 5000, "ResNet-18", "80 epochs")], 8000,
    ),
)  # fmt: skip


def our_best(records: Iterable[Mapping], dataset: str, method: str, labels: int) -> Mapping | None:
    """Our record of a method with as many labels, or else the most labels below that; of two, the one with more runs, then the newer."""
    fits = [r for r in records if JPEG.get(r["dataset"], r["dataset"]) == dataset and r["method"] == method]
    fits = [r for r in fits if r["labels"] is not None and r["labels"] <= labels and "top1" in r["metrics"]]
    return max(fits, key=lambda r: (r["labels"], len(r["seeds"]), r.get("date") or ""), default=None)


def _our_rows(records: Sequence[Mapping], dataset: str, method: str, labels: int) -> list[Mapping]:
    """Our best of the lessons, and our best of longer runs with the commands `pretrain` and `evaluate`, where there are any."""
    by_kind = ([r for r in records if (r["tier"] == LONG) == long] for long in (False, True))
    return [best for kind in by_kind if (best := our_best(kind, dataset, method, labels))]


def _differs(record: Mapping) -> str:
    about = ["as JPEG"] if record["dataset"] in JPEG else []
    about.append(f"{record['image_size']} px")
    epochs = record["settings"].get("epochs")
    if record["tier"] == LONG and epochs:  # one network, whose labels were drawn anew
        about += [f"one pretraining of {epochs} epochs", f"{len(record['seeds'])} draws of labels"]
    else:
        about += [f"{len(record['seeds'])} seeds", LONG if record["tier"] == LONG else f"tier {record['tier']}"]
    return ", ".join([*about, *filter(None, [record.get("origin")])])


def final_table(records: Iterable[Mapping]) -> results.Table:
    """What the original projects reported, what we have for the same task, and what was published; what is open stays open.

    The column `gain` is ours less the reported number of the same kind (the first one where none is), with the standard errors of both
    added as squares: that of ours over seeds, that of the reported from the number of its test images. What its seed brought is unknown.
    Where a task is open, what we have on a stand-in for its data set (`STAND_INS`) is shown as such.
    """
    records, rows = list(records), []
    for task in TASKS:
        rows += [[task["name"], "original project", *_numbers(*row[:4]), "", row[4]] for row in task["reported"]]
        found = [record for method in task["ours"] for record in _our_rows(records, task["dataset"], method, task["labels"])]
        for record in found:
            top1 = record["metrics"]["top1"]
            shown = results.percent(top1["value"], top1["standard_error"])
            cells = [record["method"], shown, f"{record['labels']:,}", record.get("network") or "–"]
            rows.append([task["name"], "ours", *cells, _gain(record, task), _differs(record)])
        if not found:
            rows += [[task["name"], "stand-in", *cells] for cells in _stand_ins(records, task)]
            rows.append([task["name"], "ours", "–", "–", "–", "–", "", "open: not run yet"])
        rows += [[task["name"], "published", *_numbers(*row[:4]), "", row[4]] for row in task["published"]]
    for row, before in zip(rows[:0:-1], rows[-2::-1], strict=True):  # each task's name once
        row[0] = "" if row[0] == before[0] else row[0]
    return results.Table(["task", "source", "method", "top-1", "labels", "network", "gain", "what differs"], rows)


def _stand_ins(records: Sequence[Mapping], task: Mapping) -> list[list[str]]:
    """Our records of the task's methods with as many labels, on a data set of the same kind; they fill no row, and have no gain."""
    dataset = STAND_INS.get(task["dataset"])
    found = [record for method in task["ours"] for record in _our_rows(records, dataset, method, task["labels"])]
    rows = []
    for record in (r for r in found if r["labels"] == task["labels"]):
        top1 = record["metrics"]["top1"]
        cells = [record["method"], results.percent(top1["value"], top1["standard_error"]), f"{record['labels']:,}"]
        rows.append([*cells, record.get("network") or "–", "", f"{dataset} in its place, {_differs(record)}"])
    return rows


def _numbers(method, top1, labels, network) -> list[str]:
    return [method, "–" if top1 is None else results.percent(top1), f"{labels:,}", network]


def _gain(record: Mapping, task: Mapping) -> str:
    reported = [row for row in task["reported"] if row[1] is not None]
    if not reported:
        return "–"
    kind = record["method"].split(", ")[-1]
    same = next((row for row in reported if row[0] == record["method"] or row[0].endswith(f", {kind}")), reported[0])[1]
    top1 = record["metrics"]["top1"]
    errors = [top1["standard_error"] or 0.0, uncertainty.standard_error(same, task["n"]) if task["n"] else 0.0]
    both = f" ± {100 * math.hypot(*errors):.1f}" if task["n"] and top1["standard_error"] is not None else ""
    return f"{100 * (top1['value'] - same):+.1f}{both}".replace("-", "−")


def open_tasks(records: Iterable[Mapping]) -> list[str]:
    """The tasks of the final table for which there is no record of ours."""
    records = list(records)
    return [t["name"] for t in TASKS if not any(our_best(records, t["dataset"], method, t["labels"]) for method in t["ours"])]


# --- figures --------------------------------------------------------------------------------------------------------------------------


def strips(groups: Mapping[str, Sequence[float]], *, title: str, xlabel: str, mark: float | None = None, mark_name: str = "") -> None:
    """Every single number as a dot, a row a group, with mean and standard deviation. mark: a value to be marked across all rows."""
    values = {name: np.asarray(list(group), float) for name, group in groups.items()}
    if not values or not all(len(group) and np.isfinite(group).all() for group in values.values()):
        raise ValueError("Each row of a strip needs at least one number, and all of them finite.")
    figure, axis = plt.subplots(figsize=(7.6, 0.72 * len(values) + 1.2))
    told, generator = [], np.random.default_rng(0)
    for i, (name, group) in enumerate(values.items()):
        colour = plots.COLOURS[i % 8]
        heights = i + generator.uniform(-0.17, 0.17, len(group)) * (len(group) > 1)
        axis.plot(group, heights, linestyle="", marker=plots.MARKERS[i % 8], color=colour, alpha=0.6, markersize=5)
        mean, spread = group.mean(), group.std(ddof=1) if len(group) > 1 else math.nan
        axis.plot([mean, mean], [i - 0.32, i + 0.32], color="black", linestyle="-", marker="", linewidth=1.6)
        text = f"{mean:.1f}, deviation {spread:.1f}" if len(group) > 1 else f"{mean:.1f}"
        axis.text(1.02, i, text.replace("-", "−"), transform=axis.get_yaxis_transform(), va="center", fontsize=9)
        told.append(f"{name}: {len(group)} numbers from {group.min():.1f} to {group.max():.1f}, mean {text}")
    if mark is not None:
        axis.axvline(mark, color="0.35", linestyle=":", linewidth=1.3)
        axis.annotate(mark_name, (mark, 0), xycoords=("data", "axes fraction"), xytext=(3, 3), textcoords="offset points", fontsize=8.5)
        told.append(f"{mark_name or 'the mark'} is at {mark:.1f}")
    axis.set_yticks(range(len(values)), list(values))
    axis.set_ylim(len(values) - 0.5, -0.5)
    axis.grid(axis="y", visible=False)
    axis.set(xlabel=xlabel)
    axis.set_title(title, x=0)
    figure.tight_layout()
    plots.show(figure, f"{title}. {xlabel}: {'; '.join(told)}.")


def curves(x, series: Mapping[str, Sequence[float]], *, title: str, xlabel: str, ylabel: str = "accuracy, %", **options) -> None:
    """`plots.lines` with the legend beside the figure, for many series that leave no corner free."""
    figure, axis = plt.subplots(figsize=(8.8, 4.2))
    plots.lines(x, series, title=title, xlabel=xlabel, ylabel=ylabel, ax=axis, **options)
    if len(series) > 1:
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9.5)
    figure.tight_layout()
    told = [f"{name} goes from {values[0]:.1f} to {values[-1]:.1f}" for name, values in series.items() if len(values)]
    plots.show(figure, f"{title}. {ylabel} against {xlabel}: {'; '.join(told)}.")


# --- simulations ----------------------------------------------------------------------------------------------------------------------


def coverage(runs: int, trials: int = 20_000, seed: int = 0) -> dict[str, float]:
    """How often the 95 % interval of a few runs holds the true mean, with the factor of many runs and with Student's, by simulation."""
    from scipy import stats

    drawn = torch.randn(trials, runs, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    away = drawn.mean(1).abs() / (drawn.std(1) / math.sqrt(runs))
    factors = {"± 1.96 standard errors": 1.959964, f"± {stats.t.ppf(0.975, runs - 1):.2f}, Student": stats.t.ppf(0.975, runs - 1)}
    return {name: (away < factor).double().mean().item() for name, factor in factors.items()}
