"""The command `pretrain`: one long run of pretraining, from the command line, that survives interruptions.

python -m sslcourse pretrain --method simclr --dataset stl10 --epochs 200 --out runs/simclr
torchrun --nproc-per-node=4 -m sslcourse pretrain ... the same
"""

import argparse
import ast
import inspect
import math
import os
import re
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from sslcourse import augment, datasets, diagnostics, models, training
from sslcourse.course import comparison
from sslcourse.course.commands.arguments import DATA_DIR_HELP, count, not_negative, positive, whole
from sslcourse.course.commands.run_folder import RunFolder
from sslcourse.devices import PRECISIONS, choose_device, rank, world_size
from sslcourse.display import duration
from sslcourse.errors import CourseError
from sslcourse.files import folder_of, out_of_memory
from sslcourse.training import distributed

METHODS = {"rotation": models.Rotation, "simclr": models.SimCLR, "byol": models.BYOL, "barlow_twins": models.BarlowTwins}
METHODS |= {"mae": models.MAE, "dino": models.DINO}
TITLES = {"rotation": "rotation", "simclr": "SimCLR", "byol": "BYOL", "barlow_twins": "Barlow Twins", "mae": "MAE", "dino": "DINO"}
LESSONS = {"rotation": 2, "simclr": 3, "byol": 4, "barlow_twins": 5, "mae": 8, "dino": 8}
# what a method is trained with where nothing else is said: the settings of the lessons at tier gpu
TRAINING = {
    "rotation": {"batch_size": 128, "lr": 4e-3}, "simclr": {"batch_size": 256, "lr": 3e-3},
    "byol": {"batch_size": 256, "lr": 1.5e-3, "lr_scales": {"predictor": 20.0}},
    "barlow_twins": {"batch_size": 256, "lr": 2e-3, "weight_decay": 0.2},
    "mae": {"batch_size": 256, "lr": 1e-3}, "dino": {"batch_size": 256, "lr": 5e-4},
}
GIVEN = ("batch_size", "lr", "weight_decay", "optimizer", "warmup", "clip_norm", "look_every", "precision", "seed", "checkpoint_every")
OPTIONS = {
    "byol": {"hidden_dim": 1024, "out_dim": 256, "tau0": 0.99}, "barlow_twins": {"hidden_dim": 2048, "out_dim": 2048, "lambda_param": 5e-3},
    "dino": {"hidden_dim": 1024, "bottleneck_dim": 256, "out_dim": 4096, "tau0": 0.996},
}
NUMBERS = {"crop": 2, "ratio": 2, "jitter": 4, "sigma": 2, "mean": 3, "std": 3}  # what these options of the views take; others take one


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    repeated = {"action": "append", "default": [], "metavar": ("NAME", "VALUE")}
    add("--method", required=True, choices=tuple(METHODS))
    add("--dataset", default="toybox", help="name of a prepared data set (default: toybox)")
    add("--data-dir", default="default", metavar="DIR", help=DATA_DIR_HELP)
    add("--out", required=True, metavar="DIR", help="folder of the run: checkpoints, metrics, log, encoder")
    add("--resume", action="store_true", help="go on with the run in the folder, or begin it if there is none")
    add("--epochs", type=whole, default=100, help="passes over the unlabelled images (default: 100)")
    add("--batch-size", type=whole, metavar="N", help="images a step, of all processes together")
    add("--lr", type=positive, help="the peak of the learning rate")
    add("--optimizer", default="adamw", choices=("adamw", "sgd", "lars"))
    add("--weight-decay", type=not_negative)
    add("--lr-scale", nargs=2, help="a factor on the rate of a part of the method, such as predictor 20; may be repeated", **repeated)
    add("--warmup", type=not_negative, default=0.1, help="part of the steps in which the rate rises (default: 0.1)")
    add("--clip-norm", type=positive, help="largest norm of the gradient")
    add("--size", type=whole, metavar="PIXELS", help="height and width of the images (default: as stored)")
    add("--view", type=whole, metavar="PIXELS", help="height and width of the views (default: those of the images)")
    add("--unlabeled", type=whole, metavar="N", help="only so many of the unlabelled images")
    suits = "(default: vit for mae and dino; resnet18 on a GPU; on a CPU, which takes many times as long, resnet9 of width 16)"
    add("--network", choices=("resnet9", "resnet18", "resnet50", "alexnet", "vit"), help=suits)
    add("--width", type=whole, help="channels of a ResNet-9's first convolution (default: 64), or of a ViT's tokens (default: 192)")
    add("--depth", type=whole, help="blocks of a ViT (default: 6)")
    add("--patch", type=whole, metavar="PIXELS", help="height and width of a ViT's patches (default: 4)")
    add("--start", metavar="NETWORK", help="an encoder to begin with: a run's folder, a file, or a name that `evaluate` knows")
    add("--option", nargs=2, help="an option of the method's class, such as temperature 0.5; may be repeated", **repeated)
    add("--augment", nargs="+", help="an option of its views (sslcourse.augment), such as crop 0.2 1; may be repeated", **repeated)
    add("--seed", type=count, default=0)
    add("--device", help="cpu, cuda or cuda:1 (default: cuda where there is one)")
    add("--precision", default="auto", choices=PRECISIONS)
    add("--compile", action="store_true", help="torch.compile the encoder; the log tells what the warm-up costs")
    add("--look-every", type=count, default=5, metavar="EPOCHS", help="epochs between two looks at the features")
    add("--checkpoint-every", type=count, default=0, metavar="STEPS", help="further checkpoints inside an epoch")
    add("--keep-every", type=count, default=0, metavar="EPOCHS", help="keep the encoder of each such epoch too, to see how features change")
    add("--guard", action="store_true", help="stop at the first step that is not finite, name the cause, keep the batch")
    add("--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    """Do what the parsed arguments say. -> exit status: 0; 143, 130 or 129 when a signal has stopped the run in good order."""
    device, out = choose_device(args.device, "--device"), folder_of(args.out, "--out", "runs")
    try:
        with distributed.process_group(device) as own_device:
            return _run(args, own_device, out)
    except ValueError as error:  # what the package says of a value that cannot be, with its name first
        named = str(error).split()[0] if str(error) else ""
        raise CourseError(f"--{named.replace('_', '-')}: {error}" if named in vars(args) else str(error)) from error
    except (MemoryError, RuntimeError) as error:
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise CourseError(f"torch.compile does not work here ({type(error).__name__}). Leave --compile out.") from error
        if out_of_memory(error):
            way_out = "Add --resume where more is free, or begin in another folder with a smaller --batch-size."
            raise CourseError(f"The memory ran out. The checkpoints in {out} are whole. {way_out}") from error
        if "TORCHELASTIC_RUN_ID" not in os.environ or not re.search(r"gloo|nccl|peer|store", str(error), flags=re.IGNORECASE):
            raise
        raise CourseError(f"Another process of this run has ended, so this one ends too. Add --resume: {out} is whole.") from error


def _run(args: argparse.Namespace, device: torch.device, out: Path) -> int:
    given = {name: value for name in GIVEN if (value := getattr(args, name)) is not None}
    settings = TRAINING[args.method] | given | {"name": args.method, "progress": not args.quiet}
    with RunFolder(out, resume=args.resume, writes=rank() == 0) as folder:
        data_dir = folder_of(args.data_dir, "--data-dir", "data")
        images = distributed.first_then_others(lambda: datasets.load(args.dataset, data_dir, size=args.size))
        if args.unlabeled is not None:
            images = images.subset(unlabeled=args.unlabeled)
        images, found = images.subset(test=0), len(images.unlabeled)  # test images are never looked at here
        if args.batch_size is not None and args.batch_size > found:
            raise CourseError(f"--batch-size {args.batch_size}: there are only {found} unlabelled images.")
        settings["batch_size"] = min(settings["batch_size"], found)
        if args.network is None and args.start is None and LESSONS[args.method] == 8:
            args.network = "vit"
        elif args.network is None and args.start is None:
            args.network, args.width = ("resnet9", args.width or 16) if device.type == "cpu" or args.width else ("resnet18", None)
            folder.say(f"--network is not given: what suits {'a CPU' if device.type == 'cpu' else 'a GPU'} is taken.")
        method, network = _method(args, images.size)
        parts = [name for name, part in method.named_children() if any(p.requires_grad for p in part.parameters())]
        usual = {name: scale for name, scale in settings.get("lr_scales", {}).items() if name in parts}
        settings["lr_scales"] = usual | _numbers("--lr-scale", args.lr_scale, parts)
        method.to(device)
        if args.compile:
            method.encoder.compile()
        shared = f" shared by {world_size()} processes" if world_size() > 1 else ""
        what = f"{TITLES[args.method]} on {images.name}, {len(images.unlabeled):,} images of {images.size} pixels, {network}"
        folder.say(f"{what}, {args.epochs} epochs, batches of {settings['batch_size']}{shared}, {device}")
        about = {"method": TITLES[args.method], "lesson": LESSONS[args.method], "dataset": images.name, "network": network}
        about |= {"size": args.view or images.size, "seed": args.seed} | ({"start": Path(args.start).name} if args.start else {})
        before = models.load_network(args.start).about if args.start else {}  # what the encoder that it begins with has cost

        def kept(row: dict) -> dict:  # with an encoder, at a row of the history
            spent = {"epochs": row["epoch"], "images_seen": row["epoch"] * len(images.unlabeled), "minutes": row["seconds"] / 60}
            return about | {name: value + (before.get(name) or 0) for name, value in spent.items()}

        with _signals_stop() as stop:
            settings["guard"] = diagnostics.NonFiniteGuard(folder.path) if args.guard else None
            settings["callbacks"] = [training.FasterThreads(folder.say), _Report(folder, args.keep_every, kept), stop]
            try:
                history = training.pretrain(method, images, args.epochs, device=device, checkpoint=folder.checkpoint, **settings)
            except training.Stopped as stopped:
                folder.say(f"{stopped} Add --resume.")
                return 128 + stop.number
        folder.write_metrics(history.rows)
        if history.stopped:
            folder.say(history.stopped)
        elif rank() == 0:
            method.encoder._compiled_call_impl = None  # a compiled encoder computes the same, and its file must not depend on that
            own, last = shlex.quote(str(folder.path)), kept(history.final | {"epoch": args.epochs})
            models.save_network(folder.encoder, method.encoder, pretraining=history.settings, **last)
            folder.say(f"Kept: {folder.encoder}. Evaluate it: python -m sslcourse evaluate {own} --dataset {args.dataset}")
        return int(bool(history.stopped))


def _method(args: argparse.Namespace, size: int) -> tuple[torch.nn.Module, str]:
    if args.start is not None and (args.network or args.width or args.depth or args.patch):
        raise CourseError("--start brings its network: leave --network and --width out.")
    shape = {name: value for name in ("width", "depth", "patch") if (value := getattr(args, name)) is not None}
    for name in shape.keys() - {"resnet9": {"width"}, "vit": {"width", "depth", "patch"}}.get(args.network, set()):
        raise CourseError(f"--{name} is for {'resnet9 and ' * (name == 'width')}vit; {args.network} has its own.")
    if args.view is not None and args.view < 8:
        raise CourseError(f"--view {args.view}: the networks need views of at least 8 pixels.")
    view, kind = args.view or size, METHODS[args.method]
    torch.manual_seed(args.seed)
    if args.start is not None:
        encoder = models.load_network(args.start).encoder.train()
    else:
        tokens = shape | {"heads": max(1, shape.get("width", 192) // 64), "image_size": view}
        makes = {"resnet9": {"width": 64} | shape, "alexnet": {}, "vit": tokens}
        makes = makes.get(args.network, {"small_images": view < 96, "max_pool": view >= 64})
        encoder = getattr(models, args.network)(**makes)
    network = comparison.network_name(models.Network(encoder))
    known = [name for name in inspect.signature(kind).parameters if name not in ("encoder", "augmentation")]
    options = OPTIONS.get(args.method, {}) | _numbers("--option", args.option, known)
    try:
        method = kind(encoder, **options)
    except (TypeError, RuntimeError) as error:
        raise CourseError(f"{kind.__name__} cannot be made with these options: {error}") from error
    if args.view is not None or args.augment:
        known = [name for name in inspect.signature(augment.Augmentation).parameters if name != "size"]
        known += ["strength"] if args.method == "simclr" else []
        method.augmentation = method.default_augmentation(view, **_numbers("--augment", args.augment, known))
    return method, network


def _numbers(option: str, given: list[list[str]], known: list[str]) -> dict[str, float | tuple]:
    """The number, or the numbers, that stand behind each name, where an option of the command line was repeated."""
    found = {}
    for name, *texts in given:
        if name not in known:
            raise CourseError(f"{option} {name}: there is no such option; there are {', '.join(known)}.")
        wanted, values = NUMBERS.get(name, 1), ()
        with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            values = tuple(ast.literal_eval(text) for text in texts)
        if len(values) != wanted or not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
            raise CourseError(f"{option} {' '.join([name, *texts])}: {name} takes {wanted} number{'s' * (wanted > 1)}, or True or False.")
        found[name] = values[0] if wanted == 1 else values
    return found


class _Report(training.Callback):
    """Writes and says each row, and once how long the run may take; keeps the encoder every so many epochs (0: never)."""

    def __init__(self, folder: RunFolder, keep_every: int, kept: Callable):
        self.folder, self.keep_every, self.kept, self.begun, self.estimated = folder, keep_every, kept, None, False

    def after_step(self, run) -> None:
        self.begun = self.begun or (run.step, time.perf_counter())  # counted from here, for the first step is slower than all others
        steps, seconds = run.step - self.begun[0], time.perf_counter() - self.begun[1]
        if not self.estimated and steps and (steps >= 20 or seconds > 15 or run.loader.batch == len(run.loader)):
            run.loss.item()  # what is queued on a GPU is done then
            left = (run.steps - run.step) * (time.perf_counter() - self.begun[1]) / steps
            self.folder.say(f"About {duration(left)} of training to come.")
            self.estimated = True

    def after_epoch(self, run) -> None:
        numbers = [f"{name} {value:.4g}" for name, value in run.row.items() if name not in ("epoch", "step", "lr", "seconds")]
        self.folder.write_metrics(run.history.rows)
        self.folder.say(f"epoch {run.epoch}/{run.epochs}, {', '.join(numbers)}, {run.row['seconds']:.0f} s")
        if self.keep_every and run.epoch % self.keep_every == 0 and rank() == 0:
            try:
                models.save_network(self.folder.path / f"encoder-{run.epoch}.safetensors", run.model.encoder, **self.kept(run.row))
            except CourseError as error:  # a frame of the film is missing then, and the run is worth more
                self.folder.say(f"{error} The run goes on.")


@contextmanager
def _signals_stop() -> Iterator[training.StopWhenAsked]:
    """Ctrl-C, a scheduler's SIGTERM and a terminal that closes (SIGHUP) end the run after the present step, with a checkpoint."""
    stop = training.StopWhenAsked()
    stop.number = signal.SIGTERM  # where another process was asked

    def ask(number, frame) -> None:
        if stop.asked and number == signal.SIGINT:  # asked again: at once
            raise KeyboardInterrupt
        stop.asked, stop.number = True, number

    before = {}
    with suppress(ValueError):  # not in the main thread, where Python takes no signals
        for number in (number for number in signal.Signals if number.name in ("SIGINT", "SIGTERM", "SIGHUP")):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or a shell that runs this behind itself, wants it ignored
                before[number] = signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
