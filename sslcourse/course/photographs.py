"""The same methods on photographs: what long runs on CIFAR-10 found, from committed records and facts, without a photograph at hand."""

import json
from collections.abc import Iterable, Mapping, Sequence

import torch

from sslcourse import evaluation, models, plots, results
from sslcourse.course import comparison, widgets
from sslcourse.course.baseline import METHOD as SUPERVISED
from sslcourse.course.lesson import say

CIFAR10 = ("cifar10", *comparison.JPEG)
MAIN = 50  # labels per class, where one number is told


def long_runs(records: Iterable[Mapping]) -> dict[str, list[Mapping]]:
    """Way -> its records of long runs on CIFAR-10, by labels: of several pretrainings of a method, of that with most records."""
    runs: dict[tuple, list[Mapping]] = {}
    for r in sorted(records, key=lambda r: r["labels"] or 0):
        if r["tier"] == comparison.LONG and r["dataset"] in CIFAR10:
            pretraining = r["method"].partition(", ")[0], r["settings"].get("epochs", 0), r["settings"].get("seed", 0)
            runs.setdefault(pretraining, []).append(r)
    ordered = sorted(runs.items(), key=lambda run: (len(run[1]), run[0][1], -run[0][2]))
    chosen, ways = {method: found for (method, _, _), found in ordered}, {}  # the last one stays
    for r in (r for found in chosen.values() for r in found):
        ways.setdefault(r["method"], []).append(r)
    return ways


def percents() -> dict[str, dict[int, dict[int, float]]]:
    """Way -> labels per class -> draw of the labels -> top-1 on test images of CIFAR-10, in percent, of the committed long runs."""
    found = long_runs(results.reference())
    return {way: {r["labels"] // 10: comparison.single_runs(r) for r in records} for way, records in found.items()}


def curves(method: str, rivals: Sequence[str] = (SUPERVISED, comparison.RANDOM)) -> None:
    """What a pretraining is worth on CIFAR-10, frozen and fine-tuned, beside the rivals, with verdicts against each."""
    known = percents()
    ways = [way for way in (f"{method}, frozen", f"{method}, fine-tuned", *rivals) if way in known]
    said = {way: " ".join(reversed(way.split(", "))) for way in ways} | {SUPERVISED: "supervised training"}  # frozen SimCLR
    pairs = [(way, rival) for way in ways if way.startswith(method) for rival in rivals if rival in known and rival != comparison.RANDOM]
    both = [(way, rival, n) for way, rival in pairs for n in known[way] if n in known[rival]]
    found = {(way, rival, n): evaluation.paired_runs(known[way][n], known[rival][n]) for way, rival, n in both}
    main = found.get((ways[0], SUPERVISED, MAIN))
    title = f"CIFAR-10, {MAIN} labels per class: {main.headline(said[ways[0]], SUPERVISED)}" if main else f"CIFAR-10: {method}"
    comparison.label_curves({way: known[way] for way in ways}, title=title, classes=10)
    told = [f"* {n} labels per class: {pair.verdict(said[way], said[rival])}" for (way, rival, n), pair in found.items()]
    say("\n".join(["One pretraining on photographs, over draws of the labels:\n", *told]))


def _facts(name: str) -> dict:
    return json.loads((models.saved.ENCODERS / f"{name}.json").read_text(encoding="utf-8"))


def along(name: str) -> dict[int, float]:
    """Passes of an encoder's pretraining -> a linear probe on its output then, 50 labels per class, in percent of validation images."""
    return {int(passes): percent for passes, percent in _facts(name)["probe"].items()}


def seen_by(name: str) -> None:
    """How an encoder of the package came to see photographs, from facts beside it: maps and a probe along pretraining, alike classes."""
    kept = _facts(name)
    names, labels, passes = kept["class_names"], torch.tensor(kept["labels"]), [*kept["maps"]]
    titles = [f"after {n} passes" if int(n) else "untrained" for n in passes]

    def draw(*frames: int) -> None:
        maps = {titles[k]: torch.tensor(kept["maps"][passes[k]]) for k in frames}
        plots.scatter(maps, labels, names, title=f"{name}: t-SNE of {len(labels)} test images")

    last = len(passes) - 1
    draw(0, last)
    widgets.explore(lambda frame: draw(frame), frame=(0, last, 1, last))
    probe = along(name)
    where = {"xlabel": "passes over the images", "ylabel": "validation accuracy, %", "chance": 100 / len(names)}
    curve = {"linear probe, 50 labels per class": [*probe.values()]}
    plots.lines([*probe], curve, title=f"{name}: a probe along pretraining", **where)
    alike, title = torch.tensor(kept["similarity"]), f"{name}: which classes look alike"
    plots.matrix(alike, title=title, row_names=names, column_names=names, colour_label="mean cosine")


def pictures(name: str, images, k: int = 7) -> None:
    """Neighbours and mistakes in an encoder's features, as pictures, where the lesson's images are CIFAR-10; else how to see them."""
    if images.name not in CIFAR10:
        return say("With `DATASET = \"cifar10\"` this cell shows neighbours and mistakes of the network as pictures.")
    network = models.load_network(name, images.unlabeled.device)
    few = images.subset(train=5000, validation=500, test=500)
    seen = evaluation.feature_set(network.encoder, few, size=network.size)
    near, chosen = evaluation.retrieve(seen, k=k), [int((few.validation_labels == c).nonzero()[0]) for c in range(min(5, few.num_classes))]
    names = [few.class_names[few.validation_labels[row]] for row in chosen]
    title = f"Nearest of 5,000 photographs: {100 * near.precision:.0f} % of the neighbours show the class that was asked for"
    queries, found = few.validation_images[chosen], few.train_images[near.indices[chosen]]
    plots.neighbours(queries, found, title=title, query_names=names, right=near.right[chosen])
    probe = evaluation.linear_probe(seen)
    plots.mistakes(probe, few.validation_images, title=f"Surest mistakes of a probe on all these labels; on validation {probe}")
