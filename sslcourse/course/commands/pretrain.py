"""The command `pretrain`: one long run of pretraining, from the command line, that survives interruptions.

    python -m sslcourse pretrain --method simclr --dataset stl10 --epochs 200 --out runs/simclr
    torchrun --nproc-per-node=4 -m sslcourse pretrain ... the same

It calls what the lessons call (`models`, `training.pretrain`), and keeps an encoder that a notebook can load (`models.load_network`).
"""

import argparse
import ast
import inspect
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sslcourse.course.commands.arguments import check_device, count, not_negative, positive, seed, whole
from sslcourse.errors import CourseError

# what a method is trained with where nothing else is said: the settings of the lessons at tier gpu
DEFAULTS = {
    "rotation": {"batch_size": 128, "lr": 4e-3},
    "simclr": {"batch_size": 256, "lr": 3e-3},
    "byol": {"batch_size": 256, "lr": 1.5e-3, "lr_scales": {"predictor": 20.0}, "hidden_dim": 1024, "out_dim": 256, "tau0": 0.99},
    "barlow_twins": {"batch_size": 256, "lr": 2e-3, "weight_decay": 0.2, "hidden_dim": 2048, "out_dim": 2048, "lambda_param": 5e-3},
}
LESSONS = {"rotation": 2, "simclr": 3, "byol": 4, "barlow_twins": 5}
TITLES = {"rotation": "rotation", "simclr": "SimCLR", "byol": "BYOL", "barlow_twins": "Barlow Twins"}
TRAINING = ("batch_size", "lr", "weight_decay", "lr_scales")
NUMBERS = {"crop": 2, "ratio": 2, "jitter": 4, "sigma": 2, "mean": 3, "std": 3}  # what these options of the views take; others take one
NETWORKS = ("resnet9", "resnet18", "resnet50", "alexnet")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to an argparse parser."""
    parser.add_argument("--method", required=True, choices=tuple(DEFAULTS))
    parser.add_argument("--dataset", default="toybox", help="name of a prepared data set (default: toybox)")
    parser.add_argument("--data-dir", default="data", metavar="DIR", help="where data sets are kept (default: data)")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the run: checkpoints, metrics, log, encoder")
    parser.add_argument("--resume", action="store_true", help="go on with the run in the folder, or begin it if there is none")
    parser.add_argument("--epochs", type=whole, default=100, help="passes over the unlabelled images (default: 100)")
    parser.add_argument("--batch-size", type=whole, metavar="N", help="images a step, of all processes together")
    parser.add_argument("--lr", type=positive, help="the peak of the learning rate")
    parser.add_argument("--optimizer", default="adamw", choices=("adamw", "sgd", "lars"))
    parser.add_argument("--weight-decay", type=not_negative)
    parser.add_argument("--warmup", type=not_negative, default=0.1, help="part of the steps in which the rate rises (default: 0.1)")
    parser.add_argument("--clip-norm", type=positive, help="largest norm of the gradient")
    parser.add_argument("--size", type=whole, metavar="PIXELS", help="height and width of the images (default: as stored)")
    parser.add_argument("--view", type=whole, metavar="PIXELS", help="height and width of the views (default: those of the images)")
    parser.add_argument("--unlabeled", type=whole, metavar="N", help="only so many of the unlabelled images")
    parser.add_argument("--network", default="resnet18", choices=NETWORKS)
    parser.add_argument("--width", type=whole, help="channels of a ResNet-9's first convolution (default: 64)")
    option = {"nargs": 2, "action": "append", "default": [], "metavar": ("NAME", "VALUE")}
    parser.add_argument("--option", help="an option of the method's class, such as --option temperature 0.5; may be repeated", **option)
    views = "an option of the method's views (see sslcourse.augment), such as --augment crop 0.2 1 or --augment strength 0.5"
    parser.add_argument("--augment", nargs="+", action="append", default=[], metavar=("NAME", "VALUE"), help=f"{views}; may be repeated")
    parser.add_argument("--seed", type=seed, default=0)
    parser.add_argument("--device", help="cpu, cuda or cuda:1 (default: cuda where there is one)")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"))
    parser.add_argument("--compile", action="store_true", help="torch.compile the encoder; the log tells what the warm-up costs")
    parser.add_argument("--look-every", type=count, default=5, metavar="EPOCHS", help="epochs between two looks at the features")
    parser.add_argument("--checkpoint-every", type=count, default=0, metavar="STEPS", help="further checkpoints inside an epoch")
    parser.add_argument("--memory-limit", type=positive, metavar="GB", help="refuse a batch that needs more (default: what is free)")
    parser.add_argument("--guard", action="store_true", help="stop at the first step that is not finite, name the cause, keep the batch")
    parser.add_argument("--tensorboard", action="store_true", help="write the rows for TensorBoard as well")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    """Do what the parsed arguments say. -> exit status: 0; 143, 130 or 129 when a signal has stopped the run in good order."""
    import torch

    from sslcourse.training import distributed

    check_device(args.device)
    with distributed.process_group(args.device) as device:
        try:
            return _run(args, device or torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        except ValueError as error:  # what the package says of a value that cannot be
            raise CourseError(str(error)) from error
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise CourseError(_out_of_memory(args)) from error
        except RuntimeError as error:
            if "not enough memory" in str(error) or "can't allocate memory" in str(error):  # what PyTorch says on a CPU
                raise CourseError(_out_of_memory(args)) from error
            raise


def _out_of_memory(args: argparse.Namespace) -> str:
    batch_size = args.batch_size or DEFAULTS[args.method]["batch_size"]
    return (
        f"The memory ran out with batches of {batch_size} images. The checkpoints in {args.out} are whole: go on with --resume where more "
        "is free, or begin in another folder with a smaller --batch-size."
    )


def _run(args: argparse.Namespace, device) -> int:
    from sslcourse import datasets, diagnostics, memory, models, training
    from sslcourse.course.commands.run_folder import RunFolder, in_a_line
    from sslcourse.training import distributed

    rank, world = distributed.rank(), distributed.world_size()
    settings, options = _settings(args)
    with RunFolder(args.out, resume=args.resume, writes=rank == 0) as folder:
        images = distributed.first_then_others(lambda: datasets.load(args.dataset, args.data_dir, size=args.size))
        if args.unlabeled is not None:
            images = images.subset(unlabeled=args.unlabeled)
        images = images.subset(test=0)  # never looked at here
        method, described = _method(args, options, images.size, device)
        _check_batch(settings["batch_size"], world, len(images.unlabeled))
        limit = None if args.memory_limit is None else int(args.memory_limit * 1e9)
        if limit is None and world > 1 and device.type == "cpu" and (free := memory.available(device)) is not None:
            limit = int((1 - memory.HEADROOM) * free / world)  # they share it
        share = settings["batch_size"] // world
        memory.check_fits(method, share, images.size, device=device, precision=args.precision, optimizer=args.optimizer, limit=limit)
        folder.say(
            f"{TITLES[args.method]} on {images.name}, {len(images.unlabeled):,} images of {images.size} pixels, {described}, "
            f"{args.epochs} epochs, batches of {settings['batch_size']}" + (f" shared by {world} processes" * (world > 1)) + f", {device}"
        )
        if args.compile:
            folder.say(f"Compiled in {_compiled(method, share, images.size, device, args.precision):.0f} s.")
        hooks = training.Hooks(checkpoint_every=args.checkpoint_every)
        board = _board(folder.path) if args.tensorboard and rank == 0 else None

        def on_row(row, history):
            folder.write_metrics(history.rows)
            folder.say(in_a_line(row, args.epochs))
            if board is not None:
                for name, value in row.items():
                    board.add_scalar(name, value, row["step"])

        hooks.on_row = on_row
        with _orderly_stop(hooks) as stopped_by:
            try:
                history = training.pretrain(
                    method, images, args.epochs, optimizer=args.optimizer, warmup=args.warmup, clip_norm=args.clip_norm,
                    guard=_guard(args, folder), look_every=args.look_every, device=device, precision=args.precision, seed=args.seed,
                    checkpoint=folder.checkpoint, progress=not args.quiet, name=args.method, hooks=hooks, **settings,
                )  # fmt: skip
            except training.Stopped as stop:
                folder.say(f"{stop} Add --resume.")
                return 128 + stopped_by[0]
            except diagnostics.NonFiniteError as error:
                raise CourseError(str(error)) from error
        if history.stopped:
            folder.say(history.stopped)
            return 1
        if rank == 0:
            folder.write_metrics(history.rows)
            about = {"method": TITLES[args.method], "dataset": images.name, "size": args.view or images.size, "seed": args.seed}
            about |= {"lesson": LESSONS[args.method], "network": described, "epochs": args.epochs}
            about |= {"images_seen": args.epochs * len(images.unlabeled), "minutes": history.final["seconds"] / 60}
            models.save_network(folder.encoder, _plain(method.encoder), **about)
            folder.say(f"Kept: {folder.encoder}. Evaluate it: python -m sslcourse evaluate {folder.path} --dataset {args.dataset}")
        return 0


# --- what is trained --------------------------------------------------------------------------------------------------------------------


def _settings(args: argparse.Namespace) -> tuple[dict, dict]:
    """How to train, and the options of the method's class: the method's own settings, and over them what the arguments say."""
    chosen = dict(DEFAULTS[args.method])
    settings = {name: chosen.pop(name) for name in TRAINING if name in chosen}
    for name in ("batch_size", "lr", "weight_decay"):
        if getattr(args, name) is not None:
            settings[name] = getattr(args, name)
    return settings, chosen | _options(args)


def _options(args: argparse.Namespace) -> dict:
    from sslcourse import models

    kind = {"rotation": models.Rotation, "simclr": models.SimCLR, "byol": models.BYOL, "barlow_twins": models.BarlowTwins}[args.method]
    known = [name for name in inspect.signature(kind).parameters if name not in ("encoder", "augmentation")]
    found = {}
    for name, text in args.option:
        if name not in known:
            raise CourseError(f"{kind.__name__} has no option {name!r}; it has {', '.join(known)}.")
        try:
            found[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise CourseError(f"--option {name} {text}: the value has to be a number, True or False.") from None
        if not isinstance(found[name], int | float) or not math.isfinite(found[name]):
            raise CourseError(f"--option {name} {text}: the value has to be a number, True or False.")
    return found


def _views(args: argparse.Namespace, method, size: int):
    """The method's views of `size` pixels, with what --augment changes."""
    from sslcourse import augment

    known = ["strength"] if args.method == "simclr" else []
    known += [name for name in inspect.signature(augment.Augmentation).parameters if name != "size"]
    found = {}
    for name, *texts in args.augment:
        if name not in known:
            raise CourseError(f"--augment {name}: the views have no such option; they have {', '.join(known)}.")
        try:
            numbers = tuple(float(text) for text in texts)
        except ValueError:
            numbers = ()
        if len(numbers) != (wanted := NUMBERS.get(name, 1)) or not all(map(math.isfinite, numbers)):
            raise CourseError(f"--augment {' '.join([name, *texts])}: {name} takes {wanted} number{'s' * (wanted > 1)}.")
        found[name] = numbers[0] if len(numbers) == 1 else numbers
    try:
        return method.default_augmentation(size, **found)
    except ValueError as error:
        raise CourseError(f"--augment {', '.join(found)}: {error}") from error


def _method(args: argparse.Namespace, options: dict, size: int, device):
    """The method on its device, and its network in words."""
    import torch

    from sslcourse import models

    if args.width is not None and args.network != "resnet9":
        raise CourseError(f"--width is for resnet9; {args.network} has its own.")
    torch.manual_seed(args.seed)
    if args.network == "resnet9":
        encoder = models.resnet9(args.width or 64)
        described = f"ResNet-9, width {args.width or 64}"
    elif args.network == "alexnet":
        encoder, described = models.alexnet(), "AlexNet"
    else:
        made = {"resnet18": models.resnet18, "resnet50": models.resnet50}[args.network]
        view = args.view or size
        encoder, described = made(small_images=view < 96, max_pool=view >= 64), args.network.replace("resnet", "ResNet-")
    kind = {"rotation": models.Rotation, "simclr": models.SimCLR, "byol": models.BYOL, "barlow_twins": models.BarlowTwins}[args.method]
    try:
        method = kind(encoder, **options)
    except (TypeError, RuntimeError) as error:
        raise CourseError(f"{kind.__name__} cannot be made with these options: {error}") from error
    if args.view is not None or args.augment:
        method.augmentation = _views(args, method, args.view or size)
    return method.to(device), described


def _check_batch(batch_size: int, world: int, unlabeled: int) -> None:
    if batch_size % world:
        raise CourseError(
            f"A batch of {batch_size} cannot be shared by {world} processes: take --batch-size {math.ceil(batch_size / world) * world}."
        )
    if unlabeled < batch_size:
        raise CourseError(f"There are {unlabeled} unlabelled images, fewer than a batch of {batch_size}: take a smaller --batch-size.")


def _compiled(method, batch_size: int, size: int, device, precision: str) -> float:
    """Compile the encoder and run it once, forwards and backwards; returns the seconds that took."""
    import torch

    from sslcourse.devices import autocast, choose_precision, seeded

    method.encoder.compile()
    started = time.perf_counter()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    with seeded(0), autocast(device, choose_precision(device, precision)):
        try:
            method(torch.randint(0, 256, (batch_size, 3, size, size), dtype=torch.uint8, device=device)).backward()
        except Exception as error:
            raise CourseError(f"torch.compile does not work here ({type(error).__name__}). Leave --compile out.") from error
    method.zero_grad(set_to_none=True)
    method.load_state_dict(before)
    return time.perf_counter() - started


def _plain(encoder):
    """The encoder as it was made: a compiled one computes the same, and its file must not depend on that."""
    encoder._compiled_call_impl = None
    return encoder


# --- what happens around it -------------------------------------------------------------------------------------------------------------


def _guard(args: argparse.Namespace, folder):
    from sslcourse import diagnostics

    return diagnostics.NonFiniteGuard(folder.path) if args.guard else None


def _board(path):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise CourseError("--tensorboard needs the package tensorboard: pip install tensorboard.") from None
    return SummaryWriter(str(path / "tensorboard"))


@contextmanager
def _orderly_stop(hooks) -> Iterator[list[int]]:
    """Ctrl-C, a scheduler's SIGTERM and a terminal that closes (SIGHUP) end the run after the present step, with a checkpoint."""
    received: list[int] = []

    def ask(number, frame):
        if received and number == signal.SIGINT:  # asked again: at once
            raise KeyboardInterrupt
        received.append(number)
        hooks.asked = True

    names = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    try:
        before = {number: signal.signal(number, ask) for number in names}
    except ValueError:  # not in the main thread, where Python takes no signals
        before = {}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
