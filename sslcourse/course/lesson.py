"""What a lesson's set-up cell needs: checked parameters, the tier, seeds, the device and a short report; and the lesson's last cell."""

import contextlib
import math
import os
import platform
import random
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy
import torch

from sslcourse import __version__, datasets, display, models, results, training
from sslcourse.datasets import sources
from sslcourse.devices import choose_device, cores, peak_memory
from sslcourse.display import duration, memory
from sslcourse.errors import CourseError
from sslcourse.files import check_writable, folder_of, repository_root, slug, write_json

_TITLES = ("A supervised baseline", "Rotation as a pretext task", "SimCLR", "BYOL", "Barlow Twins", "Pseudo-labelling", "Evaluation")
_TITLES += ("Masks, tokens and teachers",)  # after the seven that the course consists of
TITLES = dict(enumerate(_TITLES, start=1))
COURSE = 7  # lessons; the last of them reads what all others before it leave
BUDGETS = {"smoke": "40 seconds at most on two CPU cores; what it measures means nothing", "cpu": "3 to 10 minutes on two CPU cores"}
BUDGETS |= {"gpu": "15 minutes at most on a T4", "full": "hours: the budgets of the papers"}
TIERS = tuple(BUDGETS)
_current = None


def _asked(value, named: str, parameter: str) -> tuple:
    """The value, and what the user calls it: where none was chosen, the environment variable of the parameter, if that is set."""
    told = os.environ.get(f"SSLCOURSE_{parameter}")
    return (told, f"The environment variable SSLCOURSE_{parameter}") if told and value in ("auto", "default") else (value, named)


def resolve_device(device="auto", named: str = "DEVICE"):
    """The torch.device to run on. 'auto' asks the environment variable SSLCOURSE_DEVICE, and without it takes the GPU if there is one."""
    return choose_device(*_asked(device, named, "DEVICE"))


def resolve_tier(tier: str = "auto", device=None, named: str = "TIER") -> str:
    """The tier to run at. 'auto' asks the environment variable SSLCOURSE_TIER, and without it takes gpu for a CUDA device, else cpu."""
    tier, named = _asked(tier, named, "TIER")
    if tier == "auto":
        return "gpu" if (device or resolve_device()).type == "cuda" else "cpu"
    if tier not in TIERS:
        raise CourseError(f"{named} is {tier!r}; it has to be one of 'smoke', 'cpu', 'gpu', 'full' or 'auto'.")
    return tier


def resolve_dataset(dataset: str, tier: str, named: str = "DATASET") -> str:
    """The data set to use. 'default' asks SSLCOURSE_DATASET; without it it is toybox at smoke and cpu, cifar10 at gpu, stl10 at full."""
    dataset, named = _asked(dataset, named, "DATASET")
    if not isinstance(dataset, str) or not dataset.strip():
        raise CourseError(f"{named} is {dataset!r}; it has to be the name of a data set, such as 'toybox' or 'cifar10', or 'default'.")
    if dataset == "default":
        dataset = {"gpu": "cifar10", "full": "stl10"}.get(tier, "toybox")
    return datasets.known_spelling(dataset.strip())


# What a whole number may be, and in words.
_WHOLE = {
    "SEED": (range(2**32), "from 0 to 4294967295, such as 0"),  # NumPy takes no larger one
    "SIZE": ((0, *range(16, 513)), "of pixels from 16 to 512, or 0 for the data set's own size"),
    "LABELS_PER_CLASS": (range(1, 10**9), "of at least 1, such as 10"), "EPOCHS": (range(1, 10**9), "of at least 1, such as 20"),
    "WIDTH": (range(513), "of channels up to 512, or 0 for the network that suits the tier"),
}


def check_parameter(name: str, value):
    """The value, if a lesson can take it; else CourseError."""
    told = f"{name} is {value!r}; it has to be a"
    allowed, words = _WHOLE.get(name, (None, ""))
    if allowed and (type(value) is not int or value not in allowed):
        raise CourseError(f"{told} whole number {words}.")
    if name == "BUDGET" and not (type(value) in (int, float) and 0 < value <= 1000):
        raise CourseError(f"{told} number above 0 and up to 1000, such as 1.0.")
    if isinstance(value, (int, float)) and not 0 <= value < math.inf:
        raise CourseError(f"{told} number that is not negative.")
    return value


def find_data(dataset: str, data_dir: Path, labels_per_class: int = 1, fetch: bool = False) -> str | None:
    """The identity of a data set that is ready; None for toybox, which is drawn on first use. fetch: download what is not there.

    Raises CourseError, with the way out, for a data set that is not there, or whose classes have fewer images than labels are asked for.
    """
    identity, most = None, datasets.toybox.OPTIONS["train"] // len(datasets.toybox.CLASS_NAMES)
    if dataset != "toybox":
        try:
            if fetch and not (data_dir / dataset).exists():
                size = datasets.KNOWN[dataset].download_bytes
                told = f"{dataset} is not there yet and is downloaded now: {memory(size)}, which takes about {math.ceil(size / 3e8)} min"
                print(f"{told}. DATASET = 'toybox' needs no download.", flush=True)
                sources.prepare(dataset, data_dir)
            images = datasets.load(dataset, data_dir)  # mapped from disk, so it costs next to nothing
        except CourseError as error:
            raise CourseError(f"{error} DATA_DIR names another folder, and DATASET = 'toybox' needs no download.") from None
        identity, most = images.identity, int(images.train_labels.bincount().max())
    if labels_per_class > max(most, 10):  # with the lessons' own number, small sets take what they have
        told = f"LABELS_PER_CLASS is {labels_per_class}, and no class of {dataset} has more than {most} training images"
        raise CourseError(f"{told}; it has to be a whole number from 1 to {most}.")
    return identity


def network_file_name(method: str, dataset: str, lesson: int | None = None, labels=None, tier="cpu", seed=0, variant="", **_) -> str:
    """'03-simclr-toybox.safetensors', '01-supervised-toybox-100-smoke-seed3.safetensors': a smoke run replaces no real network."""
    parts = [lesson and f"{lesson:02d}", slug(method), slug(dataset), labels and str(labels), tier != "cpu" and slug(tier)]
    parts += [seed and f"seed{seed}", variant and slug(variant)]
    return "-".join(filter(None, parts)) + ".safetensors"


@dataclass
class Lesson:
    """A lesson under way: what was asked for, where it runs, and how long it has taken. Made by `start`."""

    number: int
    tier: str
    dataset: str
    seed: int
    device: object  # torch.device
    data_dir: Path
    results_dir: Path
    size: int = 0
    variant: str = ""  # what SIZE, WIDTH and BUDGET change of the lesson's own experiment, as a part of names: "24px-budget-2"
    started: float = field(default_factory=time.perf_counter)

    def pick(self, **values):
        """The value for this tier: pick(smoke=1, cpu=20, gpu=100). full falls back to gpu, and gpu to cpu; smoke and cpu are required."""
        if not {"smoke", "cpu"} <= set(values) <= set(TIERS):
            raise TypeError(f"pick needs smoke and cpu, and may have gpu and full; it got {sorted(values)}")
        return next(values[tier] for tier in reversed(TIERS[: TIERS.index(self.tier) + 1]) if tier in values)

    def network(self, size: int, width: int = 0) -> tuple[str, Callable]:
        """The encoder that suits the tier, for images of this size, or a ResNet-9 of `width`: its name, and a function that makes one."""
        if width or self.tier != "full":
            width = width or self.pick(smoke=8, cpu=16, gpu=32)
            return f"ResNet-9, width {width}", lambda: models.resnet9(width)
        return "ResNet-18", lambda: models.resnet18(small_images=size < 96, max_pool=size >= 64)

    def fit(self, images, labels: int = 10):
        """An ImageSet with which this lesson runs to its end, after a sentence about what that leaves out; see `course.fitting.fitted`."""
        from sslcourse.course import fitting

        batch = self.pick(smoke=32, cpu=64, gpu=256) if 1 < self.number < 7 else 0  # the first and the last lesson learn from labels alone
        images, told = fitting.fitted(images, labels, batch)
        print(textwrap.fill(told, 110), end="\n" if told else "")
        return images

    def record(self, name: str, **fields) -> dict:
        """A result record with this lesson's number, data set, seed, tier, device and seconds filled in; see `sslcourse.results.record`."""
        known = {"dataset": self.dataset, "seed": self.seed, "tier": self.tier, "device": self.device}
        name = f"{name}-{self.variant}" if self.variant else name
        return results.record(self.number, name, **(known | {"seconds": time.perf_counter() - self.started} | fields))

    def record_runs(self, method: str, runs: Sequence, images, per_class: int, **fields) -> dict:
        """A record of one method over the seeds fields["seed"]: top-1, and top-3 where that says something.

        runs: the `evaluation.Result` of each. images: the ImageSet, of which per_class labels of each class were used.
        """
        kinds = ("top1", "top3") if images.num_classes > 3 else ("top1",)
        metrics = {kind: results.over_runs([getattr(run, kind) for run in runs], n=runs[0].n) for kind in kinds}
        about = {"method": method, "labels": per_class * images.num_classes, "metrics": metrics, "image_size": images.size}
        about["identity"] = getattr(images, "identity", None)
        return self.record(f"{method}-{per_class}-a-class", **(about | fields))

    def keep(self, model, **about) -> Path:
        """Keep an encoder or Classifier beside the results, for lesson 7 to compare, and return the file's path.

        about: method, size and others of `sslcourse.models.save_network`; lesson, data set, tier and seed are filled in.
        """
        about = {"lesson": self.number, "dataset": self.dataset, "tier": self.tier, "seed": self.seed} | about
        about |= {"variant": self.variant} if self.variant else {}
        path = self.results_dir / models.NETWORKS_FOLDER / network_file_name(**about)
        return _keeping_others(path, lambda: models.save_network(path, model, **about))

    def finish(self, headline: str, records: Iterable[Mapping] = ()) -> None:
        """The last cell: write the records, print the headline with time and memory, and leave a summary for headless runs."""
        if training.unfinished:
            names = ", ".join(training.unfinished)
            raise CourseError(f"Nothing is kept of trainings that were interrupted ({names}): run their cells again, and then this one.")
        seconds, peak = time.perf_counter() - self.started, peak_memory()
        written = []
        for record in records:
            path = self.results_dir / results.file_name(record)
            written.append(_keeping_others(path, partial(results.write, record, self.results_dir, "RESULTS_DIR")).name)
        summary = {"lesson": self.number, "headline": headline, "seconds": round(seconds, 3), "tier": self.tier}
        summary |= {"dataset": self.dataset, "peak_memory": peak, "records": written}
        write_json(self.results_dir / f"{results.SUMMARY_PREFIX}{self.number:02d}.json", summary)
        print(headline)
        print(f"Lesson {self.number} took {duration(seconds)} and at most {memory(peak)} of memory.")
        if written:
            root = repository_root() or Path.cwd()  # no notebook carries anybody's home folder
            folder = self.results_dir.relative_to(root) if self.results_dir.is_relative_to(root) else self.results_dir.name
            print(f"{len(written)} result record{'s' * (len(written) > 1)} written to {folder}.")


def _keeping_others(path: Path, write: Callable[[], Path]) -> Path:
    """Write a file; what a run with other settings left under its name is renamed, and the reader told, for no lesson can end here."""
    try:
        return write()
    except CourseError:
        if not path.exists():
            raise
        older = path.with_name(f"{path.name}.{int(path.stat().st_mtime)}")
        os.replace(path, older)
        print(f"{path.name} was there from a run with other settings; that one is called {older.name} now.")
        return write()


def start(
    lesson: int, *, tier: str = "auto", device: str = "auto", dataset: str = "default", seed: int = 0, data_dir: str | Path = "default",
    results_dir: str | Path = "default", size: int = 0, **parameters,
) -> Lesson:  # fmt: skip
    """Begin a lesson: check every parameter, seed Python, NumPy and PyTorch, choose the device, and print a short report.

    size: pixels, 0 for the data set's own. What tier gpu begins with is downloaded. Raises CourseError that names the right values.
    """
    global _current
    if lesson not in TITLES:
        raise ValueError(f"there are lessons 1 to {max(TITLES)}, not {lesson!r}")
    device = resolve_device(device)
    tier = resolve_tier(tier, device)
    for name, value in {"seed": seed, "size": size, **parameters}.items():
        check_parameter(name.upper(), value)
    asked, dataset = dataset, resolve_dataset(dataset, tier)
    root = repository_root() or Path.cwd()
    data_dir, results_dir = folder_of(data_dir, "DATA_DIR", "data", root), folder_of(results_dir, "RESULTS_DIR", "results", root)
    check_writable(results_dir, "RESULTS_DIR")
    find_data(dataset, data_dir, parameters.get("labels_per_class", 1), asked == "default" and (tier, dataset) == ("gpu", "cifar10"))

    from sslcourse import plots  # matplotlib takes a second, which headless runs need not wait

    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)
    plots.use_style()
    width, budget = parameters.get("width", 0), parameters.get("budget", 1)
    changed = {f"{size}px": size != 0, f"width-{width}": width != 0, f"budget-{budget}": budget != 1}
    variant = "-".join(part for part, differs in changed.items() if differs)
    _current = Lesson(lesson, tier, dataset, seed, device, data_dir, results_dir, size, variant)
    print(_report(_current))
    return _current


def current() -> Lesson | None:
    """The lesson that was started last, None before any."""
    return _current


def _report(lesson: Lesson) -> str:
    total = None
    with contextlib.suppress(AttributeError, OSError, ValueError):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    kind, colab = "CPU" if lesson.device.type == "cpu" else "GPU", " · Colab" if "google.colab" in sys.modules else ""
    lines = [
        f"Lesson {lesson.number}{f' of {COURSE}' if lesson.number <= COURSE else ', after the seven'}: {TITLES[lesson.number]}",
        f"tier {lesson.tier} ({BUDGETS[lesson.tier]}) · data set {lesson.dataset} · seed {lesson.seed}",
        f"{kind} {results.device_name(lesson.device)} · {cores()} CPU cores · {memory(total)} of memory",
        f"Python {platform.python_version()} · torch {torch.__version__} · sslcourse {__version__}{colab}",
    ]
    costs = results.measured_costs(lesson.number)
    told = [f"{tier} {duration(costs[tier]['seconds'])}, {memory(costs[tier]['peak_memory'])}" for tier in TIERS if tier in costs]
    if told:
        measured, unmeasured = next(iter(costs.values())), " and ".join(tier for tier in TIERS if tier not in costs)
        rest = f" · {unmeasured} not measured" if unmeasured else ""
        lines.append(f"measured on {measured['cores']} cores of {measured['device']}: {' · '.join(told)}{rest}")
    if lesson.tier in ("gpu", "full") and lesson.device.type == "cpu":
        lines.append(f"There is no CUDA device here, so tier {lesson.tier!r} will take very long; TIER = 'cpu' is made for this machine.")
    return "\n".join(lines)


@contextlib.contextmanager
def expect_error(*exceptions: type[BaseException]):
    """Print an error that is shown on purpose, in three lines at most, and go on. AssertionError if nothing is raised."""
    exceptions = exceptions or (Exception,)
    try:
        yield
    except exceptions as error:
        print("\n".join(f"{type(error).__name__}: {str(error).strip()}".splitlines()[:3]).rstrip())
    else:
        raise AssertionError(f"This cell was expected to raise {' or '.join(kind.__name__ for kind in exceptions)}, and it did not.")


def say(text: str) -> None:
    """Show a sentence with computed numbers in it, as Markdown, where dollars stay dollars; plain text outside a notebook."""
    text = textwrap.dedent(text).strip()
    display.show(text, {"text/markdown": text.replace("$", r"\$")})
