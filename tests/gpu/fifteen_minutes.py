"""What a GPU says in fifteen minutes: its tests, speed, half precision, every lesson at smoke, and the reference recipe.

    make test-gpu                                                or: python tests/gpu/fifteen_minutes.py --minutes 9 --out build/gpu
    python tests/gpu/fifteen_minutes.py --device cpu --minutes 0.2 --lessons 2                            tries the script itself

Needs torch, torchvision, scikit-learn, matplotlib, tqdm and safetensors; no network, no Jupyter. CIFAR-10 is taken if it is prepared, else
toybox is drawn. Each part leaves a file in --out when it is done, or its error; the recipe gets the minutes that the others leave.
Without the device it says so and ends with status 0.
"""

import argparse
import importlib.util
import json
import sys
import time
import traceback
from contextlib import redirect_stdout, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "benchmarks")]

import throughput as benchmark  # noqa: E402
import torch  # noqa: E402
from cells import NOTEBOOKS, run  # noqa: E402
from torch.utils.benchmark import Timer  # noqa: E402

from sslcourse import augment, datasets, evaluation, models, results, training  # noqa: E402
from sslcourse.devices import choose_device  # noqa: E402
from sslcourse.errors import CourseError  # noqa: E402

FILES = [str(ROOT / "tests" / name) for name in ("test_accelerator.py", "test_loaders.py", "augment")]
RECIPE = {"batch_size": 256, "lr": 3e-3, "precision": "auto", "progress": False}  # of SimCLR, with a ResNet-18


def tests(options):
    """Those that are left out where there is no GPU."""
    if importlib.util.find_spec("pytest") is None:
        return {"status": "there is no pytest here"}
    import pytest

    return {"status": int(pytest.main(["-q", "-p", "no:cacheprovider", *FILES]))}


def speed(options):
    """Training from end to end beside the network alone and lightly's loop (the table is printed), and views a second by size."""
    words = ["--device", options.device, "--rounds", "2", "--seconds", str(options.seconds), "--width", str(options.width)]
    benchmark.main(words)
    rates = {}
    for size in (32, 96):
        images = torch.randint(0, 256, (512, 3, size, size), dtype=torch.uint8, device=options.device)
        timer = Timer("view(images)", globals={"view": augment.simclr(size).to(options.device), "images": images})
        rates[size] = len(images) / timer.blocked_autorange(min_run_time=options.seconds / 4).median
    return {"views a second": rates}


def simclr(options):
    torch.manual_seed(0)
    encoder = models.resnet18() if options.real else models.resnet9(4)
    return models.SimCLR(encoder, augment.simclr(options.images.size, strength=0.5)).to(options.device)


def precisions(options):
    """Loss and seconds of three epochs in each arithmetic."""
    images, told = options.images.subset(unlabeled=10_240 if options.real else 512), {}
    for precision in ("fp32", "bf16", "fp16")[: 3 if options.real else 1]:  # CPUs are slow in the others
        told[precision] = training.pretrain(simclr(options), images, 3, look_every=0, **RECIPE | {"precision": precision}).rows
    return told


def lessons(options):
    """Seconds of each lesson, its cells run in this process, or its error."""
    told, where = {}, {"DATA_DIR": str(options.data_dir), "RESULTS_DIR": str(options.out / "results"), "DEVICE": options.device}
    for path in NOTEBOOKS:
        if int(path.name[:2]) in options.lessons:
            started = time.perf_counter()
            try:
                run(path, TIER="smoke", DATASET="toybox", **where)
                told[path.stem] = time.perf_counter() - started
            except Exception as error:
                told[path.stem] = told["error"] = "".join(traceback.format_exception(error))
    return told


class UntilThen(training.Callback):
    """Ends the run before the time is over; a probe every fifth epoch."""

    def __init__(self, options):
        self.options, self.rows, self.longest, self.last = options, [], 0.0, time.perf_counter()

    def after_epoch(self, run):
        row = dict(run.row)
        if run.epoch % 5 == 1:
            found = evaluation.feature_set(run.model.encoder, self.options.images.subset(train=5_000, validation=2_000, test=0))
            row["probe_accuracy"] = evaluation.linear_probe(found, penalties=(0.01,)).top1
        self.rows.append(row)
        _write(self.options, "recipe so far", self.rows)
        now = time.perf_counter()
        self.longest, self.last = max(self.longest, now - self.last), now
        if now + self.longest > self.options.until:
            raise training.Stopped


def recipe(options):
    """As many epochs as the minutes allow; the learning rate falls as if there were 200. Rows with kNN and, now and then, a probe."""
    watch = UntilThen(options)
    with suppress(training.Stopped):
        training.pretrain(simclr(options), options.images, 200 if options.real else 2, look_every=1, callbacks=[watch], **RECIPE)
    return {"data": str(options.images), "settings": RECIPE, "rows": watch.rows}


PARTS = {part.__name__: part for part in (tests, speed, precisions, lessons, recipe)}


def _write(options, name, told):
    (options.out / f"{name}.json").write_text(json.dumps(told, indent=1), encoding="utf-8")


def main(words=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all of it")
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), help="folder of the results")
    parser.add_argument("--data-dir", type=Path, default=ROOT / "data")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--lessons", nargs="*", type=int, default=range(1, 9))
    options = parser.parse_args(words)
    try:
        device = choose_device(options.device, "--device")
    except CourseError as error:
        print(f"Nothing was done: {error}")
        return 0
    options.until = time.perf_counter() + 60 * options.minutes
    options.out.mkdir(parents=True, exist_ok=True)
    options.real = device.type != "cpu"  # else this is only tried
    options.seconds, options.width = (6.0, 64) if options.real else (0.1, 4)
    name = "cifar10" if options.real and (options.data_dir / "cifar10").exists() else "toybox"
    options.images = datasets.load(name, options.data_dir, size=32)
    if not options.real:
        options.images = options.images.subset(unlabeled=512, train=100, validation=100, test=10)
    summary = {"torch": torch.__version__, "device": results.device_name(device), "data": str(options.images)}
    for name in options.parts:
        started = time.perf_counter()
        with open(options.out / f"{name}.txt", "w", encoding="utf-8") as file, redirect_stdout(file):
            try:
                told = PARTS[name](options)
            except Exception as error:
                told = {"error": "".join(traceback.format_exception(error))}
        _write(options, name, told)
        summary[name] = {"seconds": time.perf_counter() - started, "error": told.get("error", "")[-400:]}
        _write(options, "summary", summary)
        print(name, summary[name], flush=True)
    return int(any(summary[name]["error"] for name in options.parts))


if __name__ == "__main__":
    sys.exit(main())
