"""The command `evaluate`: what a pretrained encoder is worth with few labels, by the protocols of the lessons.

python -m sslcourse evaluate cifar10-simclr --dataset my-photos --labels-per-class 20
python -m sslcourse evaluate runs/simclr --dataset stl10 --labels-per-class 10 100 --seeds 0 1 2 --protocol linear-probe supervised

Random crops enlarge what they show, so an encoder that was pretrained on small views may read larger images better (Touvron et al. 2019,
Fixing the train-test resolution discrepancy): try --size on the validation images.
"""

import argparse
import copy
import itertools
import time
from dataclasses import dataclass, field

import torch

from sslcourse import augment, datasets, evaluation, models, results, training
from sslcourse.course import comparison
from sslcourse.course.baseline import BATCH, ENCODER_LR_SCALE
from sslcourse.course.commands.arguments import DATA_DIR_HELP, count, whole
from sslcourse.course.commands.pretrain import LESSONS, TITLES
from sslcourse.devices import choose_device, seeded
from sslcourse.display import progress_bar
from sslcourse.errors import CourseError
from sslcourse.files import check_writable, folder_of, out_of_memory

# what the lessons' records call them; untrained: a probe on a random network; supervised: one from scratch; weight 0: FixMatch's control
PROTOCOLS = {"knn": "kNN", "linear-probe": "frozen", "mlp-probe": "frozen, MLP", "fine-tune": "fine-tuned"}
PROTOCOLS |= {"fixmatch": "FixMatch", "fixmatch-weight-0": "FixMatch, weight 0", "supervised": "supervised", "untrained": comparison.RANDOM}
PROBES = {"knn": evaluation.knn_accuracy, "mlp-probe": evaluation.mlp_probe}  # others are linear
FIXMATCH = {"fixmatch": {"weight": 1.0, "average": 0.999}, "fixmatch-weight-0": {"weight": 0.0, "average": 0.999}}
UNLABELED_RATIO = 3  # FixMatch's unlabelled images for each labelled one
TO_CHOOSE_BY = 10  # labels per class, for the block


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    names = ", ".join(models.pretrained_encoders()) or "none yet"
    add("network", metavar="NETWORK", help=f"a run of `pretrain`, a file that a lesson has kept, or an encoder of the package ({names})")
    add("--dataset", help="name of a prepared data set (default: the one it was trained on)")
    add("--data-dir", default="default", metavar="DIR", help=DATA_DIR_HELP)
    add("--labels-per-class", type=whole, nargs="+", default=[10], metavar="N", help="labelled images of each class")
    add("--seeds", type=count, nargs="+", default=[0, 1, 2], help="each draws its own labels (default: 0 1 2)")
    add("--protocol", nargs="+", choices=PROTOCOLS, default=["knn", "linear-probe"], help="(default: knn linear-probe)")
    add("--split", choices=("validation", "test"), default="validation", help="test only when everything is chosen")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--block", type=int, help="the block whose features are probed (default: the encoder's output)")
    lessons = "probe as the lessons do: the block that is best on validation images, labelled images in weak views"
    which.add_argument("--like-lessons", action="store_true", help=lessons)
    add("--size", type=whole, metavar="PIXELS", help="at which the images are looked at (default: that of the views in pretraining)")
    add("--steps", type=whole, default=250, help="of fine-tuning, at least; supervised has twice as many (default: 250)")
    add("--passes", type=whole, default=25, help="over the labels in fine-tuning, at least (default: 25)")
    add("--views", choices=("weak", "strong"), default="weak", help="of fine-tuning and of supervised training (default: weak)")
    add("--unlabeled-passes", type=whole, default=5, metavar="N", help="of FixMatch over the unlabelled images (default: 5)")
    add("--device", help="cpu or cuda (default: cuda where there is one)")
    add("--out", metavar="DIR", help="write result records there; with --split test only")
    add("--quiet", action="store_true", help="no progress bars")


def run(args: argparse.Namespace) -> int:
    try:
        return _run(args)
    except ValueError as error:  # what the package says of a value that cannot be
        raise CourseError(str(error)) from error
    except (MemoryError, RuntimeError) as error:
        if out_of_memory(error):
            raise CourseError("The memory ran out: try a smaller --size.") from error
        raise


def _run(args: argparse.Namespace) -> int:
    if args.out is not None:
        if args.split != "test":
            raise CourseError("--out keeps records, and records are of test images: add --split test, once everything is chosen.")
        args.out = folder_of(args.out, "RESULTS_DIR" if args.out == "default" else "--out", "results")
        check_writable(args.out, "--out")
    datasets.check_size(args.size)
    if len(set(args.seeds)) < len(args.seeds):
        raise CourseError(f"--seeds {' '.join(map(str, args.seeds))}: give different whole numbers from 0.")
    device = choose_device(args.device, "--device")
    network = models.load_network(args.network, device)
    about, dataset = network.about, args.dataset or network.dataset
    images = datasets.load(dataset, folder_of(args.data_dir, "--data-dir", "data"), size=None)
    smallest = int(torch.bincount(images.train_labels).min())
    if too_many := [n for n in args.labels_per_class if n > smallest]:
        raise CourseError(f"--labels-per-class {too_many[0]}: the smallest class of {dataset} has {smallest} labelled images.")
    if dataset == network.dataset and comparison.other_images(network, images):
        print(f"This network was trained on a data set that was called {dataset} too, with other images than these.")
    size = args.size or network.size
    like = {"dataset": dataset, "size": size, "device": device}
    fresh = {seed: comparison.fresh([network], None, seed=seed, **like).encoder for seed in args.seeds}
    blocks = dict.fromkeys(PROTOCOLS, network.block if args.block is None else args.block)
    if args.like_lessons:
        for protocol, encoders in {"linear-probe": dict.fromkeys(args.seeds, network.encoder), "untrained": fresh}.items():
            probed = evaluation.probe_blocks(encoders, images, min(TO_CHOOSE_BY, smallest), size=size) if protocol in args.protocol else {}
            blocks[protocol] = evaluation.best_block(probed) if probed else None
        blocks["mlp-probe"] = blocks["linear-probe"]
    lesson = about.get("lesson") or {title: LESSONS[method] for method, title in TITLES.items()}.get(network.method, 7)
    trained_there = "" if dataset == network.dataset else f" on {network.dataset}"
    tier = comparison.ONE_NETWORK + about["tier"] if "tier" in about else comparison.LONG  # a lesson's own records are of several networks
    protocols = _Protocols(args, network, images, size, fresh, blocks)
    records, runs, parts = [], {}, list(itertools.product(args.labels_per_class, args.protocol))
    with progress_bar(len(parts) * len(args.seeds), "evaluating", "run", hidden=args.quiet) as bar:
        for per_class, protocol in parts:
            started, found = time.perf_counter(), []
            for seed in args.seeds:
                bar.set_description(f"{protocol}, {per_class} per class, seed {seed}")
                found.append(protocols.run(protocol, per_class, seed))
                bar.update()
            kinds = ("top1", "top3") if images.num_classes > 3 else ("top1",)
            name, block = PROTOCOLS[protocol], blocks[protocol]
            settings = {"split": args.split, "block": block} | ({"views": "weak"} if args.like_lessons else {})
            if protocol in ("fine-tune", "supervised"):
                settings |= {"steps": args.steps, "passes": args.passes, "views": args.views}
            if protocol in FIXMATCH:
                settings |= FIXMATCH[protocol] | {"passes": args.unlabeled_passes, "unlabelled": len(images.unlabeled)}
            if protocol not in ("supervised", "untrained"):
                way = "probe" if protocol == "linear-probe" and args.block is not None else name
                name = f"{network.method}{trained_there}{' + ' if protocol in FIXMATCH else ', '}{way}"
                known = ("epochs", "minutes", "seed", "variant", "identity", "pretraining")
                settings |= {"view": about.get("view", network.size)} | {key: about[key] for key in known if key in about}
            runs.setdefault(per_class, {})[protocol] = found
            records.append(results.record(
                6 if protocol in FIXMATCH else lesson, f"{name}-{per_class}-a-class", method=name, dataset=dataset,
                labels=per_class * images.num_classes, seed=args.seeds,
                metrics={kind: results.over_runs([getattr(one, kind) for one in found], n=found[0].n) for kind in kinds}, device=device,
                tier=tier, seconds=time.perf_counter() - started, image_size=size, identity=images.identity,
                network=comparison.network_name(network), settings=settings,
            ))  # fmt: skip
    print(results.table(records, ["method", "dataset", "labels", "network", "top1", "top3"]))
    for n, ways in runs.items():
        for first, second in itertools.permutations(ways, 2):
            if second in ("supervised", "untrained") and first != "untrained" or (first, second) == ("fixmatch", "fixmatch-weight-0"):
                verdict = evaluation.paired_runs(ways[first], ways[second]).verdict(PROTOCOLS[first], PROTOCOLS[second])
                print(f"{n} labels per class: {verdict}.")
    draws = f"{len(args.seeds)} draw{'s' * (len(args.seeds) > 1)}"
    print(f"On {args.split} images, {draws} of labels. It is one network: the errors do not know how pretrainings differ.")
    for record in records if args.out else []:
        print(f"Written: {results.write(record, args.out, '--out')}")
    return 0


@dataclass
class _Protocols:
    """Each protocol with one draw of the labels -> its Result. fresh: networks that learned nothing, by seed; blocks: what probes read."""

    args: argparse.Namespace
    network: models.Network
    images: datasets.ImageSet
    size: int
    fresh: dict
    blocks: dict
    whole: dict = field(default_factory=dict)  # the images that are asked about are the same for all draws: (block, seed) -> FeatureSet

    def run(self, protocol: str, per_class: int, seed: int) -> evaluation.Result:
        labelled = self.images.few_labels(per_class, seed)
        labelled = labelled.subset(test=0) if self.args.split == "validation" else labelled
        if protocol in ("knn", "linear-probe", "mlp-probe", "untrained"):
            return self.read(protocol, labelled, seed)
        name = f"{protocol}, {per_class} per class, seed {seed}"
        how = {"seed": seed, "batch_size": BATCH, "progress": not self.args.quiet, "name": name}
        return (self.fixmatch if protocol in FIXMATCH else self.fine_tune)(protocol, labelled, how)

    def read(self, protocol: str, labelled, seed: int) -> evaluation.Result:
        encoder, block = self.fresh[seed] if protocol == "untrained" else self.network.encoder, self.blocks[protocol]
        of = (block, seed if protocol == "untrained" else None)
        if of not in self.whole:
            self.whole[of] = evaluation.feature_set(encoder, labelled, block=block, size=self.size)
        in_views = self.args.like_lessons and protocol != "knn"
        view, repeats = (augment.weak(self.size), 0) if in_views else (augment.evaluation(self.size), 1)
        seen = evaluation.in_views(self.whole[of], encoder, labelled, view, repeats=repeats, block=block, seed=seed)
        return PROBES.get(protocol, evaluation.linear_probe)(seen, split=self.args.split)

    def fixmatch(self, protocol: str, labelled, how: dict) -> evaluation.Result:
        options = {"weak": augment.weak(self.size), "strong": augment.strong(self.size), **FIXMATCH[protocol]}
        with seeded(how["seed"]):
            method = models.FixMatch(models.Classifier(copy.deepcopy(self.network.encoder), self.images.num_classes), **options)
        how |= {"unlabeled_ratio": UNLABELED_RATIO, "lr": 2e-3, "lr_scales": {"classifier.encoder": ENCODER_LR_SCALE}, "look_every": 0}
        method.to(next(self.network.encoder.parameters()).device)
        training.fit_semi_supervised(method, labelled, self.args.unlabeled_passes, **how)
        asked = (getattr(labelled, f"{self.args.split}_{part}") for part in ("images", "labels"))
        return evaluation.evaluate(method.averaged, *asked, self.images.class_names, size=self.size)

    def fine_tune(self, protocol: str, labelled, how: dict) -> evaluation.Result:
        encoder, scale = self.network.encoder, ENCODER_LR_SCALE
        epochs = training.epochs_for(len(labelled.train_labels), self.args.steps, self.args.passes)
        if protocol == "supervised":  # twice the steps, as in the lessons, and the whole network at the full rate
            encoder, epochs, scale = self.fresh[how["seed"]], 2 * epochs, 1.0
        how |= {"split": self.args.split, "validate_every": 0, "augmentation": getattr(augment, self.args.views)(self.size)}
        return evaluation.fine_tune(encoder, labelled, epochs, encoder_lr_scale=scale, **how)
