"""The command `run`: lessons without a browser, one after another or side by side, for one seed or for several."""

import argparse
import sys

from sslcourse.course.commands import arguments
from sslcourse.errors import CourseError
from sslcourse.files import folder_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("lessons", nargs="*", metavar="LESSON", help="numbers (3), ranges (3-5) or names (simclr); all if left out")
    parser.add_argument("--tier", default="auto", help="smoke, cpu, gpu, full or auto (default)")
    parser.add_argument("--device", default="auto", help="cuda, mps or cpu (default: the GPU if there is one)")
    by_tier = "by default toybox at smoke and cpu, cifar10 at gpu, stl10 at full"
    parser.add_argument("--dataset", default="default", help=f"a data set; {by_tier}")
    parser.add_argument("--data-dir", metavar="DIR", help="where data sets lie, as -p DATA_DIR says (default: the repository's data)")
    parser.add_argument("--out", default="runs", metavar="DIR", help="folder for notebooks, results and logs (default: runs)")
    parameter = {"action": "append", "nargs": 2, "default": [], "metavar": ("NAME", "VALUE")}
    parser.add_argument("-p", "--parameter", help="a value for a lesson's parameters cell, such as -p SEED 3; may be repeated", **parameter)
    parser.add_argument("--fresh", action="store_true", help="run finished lessons again")
    parser.add_argument("--timeout", type=arguments.positive, help="seconds that one cell may take, rounded up (default: no limit)")
    parser.add_argument("--notebooks", metavar="DIR", help="folder of the lessons (default: the course's own)")
    parser.add_argument("--record-costs", action="store_true", help="keep time and memory in the package, for the lessons to quote")
    parser.add_argument("--quiet", action="store_true", help="no progress bars, as in a log file")
    at_once = "lessons that may run at once, each with its share of the cores and without progress bars; lesson 7 waits for all others"
    parser.add_argument("--jobs", type=arguments.whole, default=1, metavar="N", help=f"{at_once} (default: 1)")
    several = "run all once a seed, in OUT/seed-K, and tabulate the mean; a lesson takes up to five seeds from K on: leave steps of 10"
    parser.add_argument("--seeds", type=arguments.listed_seed, nargs="+", metavar="K", help=several)


def run(args: argparse.Namespace) -> int:
    from sslcourse import display, results
    from sslcourse.course import lesson, runner, table_over_seeds

    parameters = {}
    for name, value in [*args.parameter, *([("DATA_DIR", args.data_dir)] if args.data_dir is not None else [])]:
        if parameters.setdefault(name, value) != value:
            raise CourseError(f"{name} is given twice, as {parameters[name]!r} and as {value!r}.")
    if args.record_costs and (args.jobs > 1 or args.seeds):
        raise CourseError("--record-costs measures one lesson at a time: leave out --jobs and --seeds.")
    runs = runner.run(
        args.lessons, tier=args.tier, device=args.device, dataset=args.dataset, out=args.out, parameters=parameters, seeds=args.seeds,
        jobs=args.jobs, notebooks_dir=args.notebooks, resume=not args.fresh, timeout=args.timeout,
        progress=not args.quiet and sys.stderr.isatty(),
    )  # fmt: skip
    rows = []
    for done in runs:
        took = "–" if done.seconds is None else display.duration(done.seconds)
        held = "–" if done.peak_memory is None else display.memory(done.peak_memory)
        rows.append([done.name, done.status, took, held, done.headline or done.error or "–"])
    print(f"\n{results.Table(['lesson', 'status', 'time', 'peak memory', 'result'], rows)}")
    if args.seeds:
        out = folder_of(args.out, "--out", "runs")
        print(f"\n{table_over_seeds.collect(out / f'seed-{seed}' for seed in args.seeds).text()}")
    if args.record_costs:
        device = lesson.resolve_device(args.device)
        for done in (done for done in runs if done.ok):
            results.record_costs(done.number, lesson.resolve_tier(args.tier, device), done.seconds, done.peak_memory, str(device))
    return 0 if all(done.ok for done in runs) else 1
