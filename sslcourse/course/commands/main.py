"""python -m sslcourse run | data | pretrain | evaluate | notebooks | handout | stamp | site | slides | results

Exit status: 0 if all went well, 1 if something has to be put right (one sentence says what), 2 for a wrong command line, 130 after Ctrl-C.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from sslcourse.course.commands import arguments
from sslcourse.errors import CourseError

# Everything heavy is imported by the command that needs it, so that --help answers at once.

# Commands with a module of their own, which has add_arguments(parser) and run(args) -> exit status: name -> (module, what help says).
_MODULES = {
    "data": ("data_command", "get a data set ready: draw, download or import it"),
    "pretrain": ("pretrain_command", "one long run of pretraining, which survives interruptions"),
    "evaluate": ("evaluate_command", "what a pretrained encoder is worth with few labels"),
    "handout": ("handouts.handout_command", "copies of the lessons for a class: without solutions, filled in, or for nbgrader"),
    "site": ("pages.site_command", "the lessons as web pages, which can be read without a network and without Python"),
    "slides": ("pages.slides_command", "the lessons as reveal.js slides with speaker's notes"),
    "stamp": ("stamp_command", "put the address of your fork into the badges and set-up cells"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        args = _parser(argv[0] if argv else "").parse_args(argv)
        return args.command(args)
    except SystemExit as stop:  # argparse has already said what is wrong
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except CourseError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser(named: str) -> argparse.ArgumentParser:
    """named: the command that is going to be parsed; of those with a module, only its own is imported."""
    from sslcourse import __version__

    parser = argparse.ArgumentParser(prog="python -m sslcourse", description="A course on self- and semi-supervised image learning.")
    parser.add_argument("--version", action="version", version=f"sslcourse {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    run = commands.add_parser("run", help="run lessons from top to bottom without a browser", description="Run lessons in order.")
    run.add_argument("lessons", nargs="*", metavar="LESSON", help="numbers (3), ranges (3-5) or names (simclr); all if left out")
    run.add_argument("--tier", default="auto", help="smoke, cpu, gpu, full or auto (default)")
    run.add_argument("--dataset", default="default", help="name of a data set; toybox at smoke and cpu, stl10 at gpu and full by default")
    run.add_argument("--out", default="runs", help="folder for executed notebooks, records and logs (default: runs)")
    parameter = {"nargs": 2, "action": "append", "default": [], "metavar": ("NAME", "VALUE")}
    run.add_argument("-p", "--parameter", help="a value for a lesson's parameters cell, such as -p SEED 3; may be repeated", **parameter)
    run.add_argument("--fresh", action="store_true", help="run finished lessons again")
    run.add_argument("--timeout", type=_seconds, help="seconds that one cell may take (default: no limit)")
    run.add_argument("--notebooks", metavar="DIR", help="folder of the lessons (default: the course's own)")
    run.add_argument("--record-costs", action="store_true", help="keep time and memory in the package, for the lessons to quote")
    run.add_argument("--quiet", action="store_true", help="no progress bars")
    at_once = (
        "lessons that may run at once, each with its share of the cores and without progress bars (default: 1); they wait for what they "
        "need, lesson 7 for all others, and the tables of results so far show what was there when a lesson began"
    )
    run.add_argument("--jobs", type=arguments.whole, default=1, metavar="N", help=at_once)
    several = (
        "run the lessons once for each seed, in OUT/seed-K, and tabulate the mean over the seeds; a lesson takes SEED and the next ones "
        "too, up to SEED + 4, so steps of 10, such as 0 10 20, keep them apart"
    )
    run.add_argument("--seeds", type=arguments.listed_seed, nargs="+", metavar="K", help=several)
    run.set_defaults(command=_run)

    for name, (module, told) in _MODULES.items():
        command = commands.add_parser(name, help=told)
        if name == named:
            its = importlib.import_module(f"sslcourse.course.{module}")
            its.add_arguments(command)
            command.set_defaults(command=its.run)

    notebooks = commands.add_parser("notebooks", help="check, clean or execute the stored notebooks")
    notebooks.add_argument("lessons", nargs="*", metavar="LESSON", help="numbers, ranges or names; all if left out")
    what = notebooks.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="list what is wrong with the files (default)")
    what.add_argument("--clean", action="store_true", help="put them into their stored form, keeping the outputs")
    what.add_argument("--execute", action="store_true", help="run each and store it with its outputs")
    what.add_argument("--strip", metavar="DIR", help="write copies without outputs into a folder")
    notebooks.add_argument("--tier", default="cpu", help="with --execute (default: cpu)")
    notebooks.add_argument("--dataset", default="toybox", help="with --execute (default: toybox)")
    notebooks.add_argument("--notebooks", metavar="DIR", help="folder of the lessons (default: the course's own)")
    notebooks.set_defaults(command=_notebooks)

    shown = commands.add_parser("results", help="print the table of a folder of result records, or of the committed ones")
    which = shown.add_mutually_exclusive_group()
    which.add_argument(
        "directory", nargs="?", metavar="DIR", help="a folder of records, the --out folder of a run or sweep, or one of several runs"
    )
    which.add_argument("--reference", action="store_true", help="the records of real runs that come with the package")
    which.add_argument("--update-readme", action="store_true", help="put the tables of those records into README.md")
    shown.add_argument("--markdown", action="store_true", help="as the Markdown table of README.md")
    shown.set_defaults(command=_results)
    return parser


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds above 0")
    return value


def _run(args: argparse.Namespace) -> int:
    from sslcourse.course import runner

    parameters = {}
    for name, value in args.parameter:
        if parameters.setdefault(name, value) != value:
            raise CourseError(f"{name} is given twice, as {parameters[name]!r} and as {value!r}.")
    if args.record_costs and (args.jobs > 1 or args.seeds):
        raise CourseError("--record-costs measures one lesson at a time: leave out --jobs and --seeds.")
    options = {"tier": args.tier, "dataset": args.dataset, "out": args.out, "parameters": parameters, "notebooks_dir": args.notebooks}
    options |= {"resume": not args.fresh, "timeout": args.timeout, "progress": not args.quiet, "jobs": args.jobs}
    if args.seeds:
        from sslcourse.course import sweep

        runs, found = sweep.sweep(args.lessons, args.seeds, **options)
        print(f"\n{runner.summary_table(runs)}\n\n{found.text()}")
        return 0 if all(lesson.ok for lesson in runs) else 1
    runs = runner.run(args.lessons, **options)
    print()
    print(runner.summary_table(runs))
    if args.record_costs:
        from sslcourse import results
        from sslcourse.course.lesson import resolve_tier

        tier = resolve_tier(args.tier)
        for lesson in runs:
            if lesson.ok:
                results.record_costs(lesson.number, tier, lesson.seconds, lesson.peak_memory, "cuda" if tier in ("gpu", "full") else "cpu")
    return 0 if all(lesson.ok for lesson in runs) else 1


def _notebooks(args: argparse.Namespace) -> int:
    from sslcourse.course import notebook_files, runner, selection
    from sslcourse.course.lesson import resolve_tier

    paths = selection.matching(args.lessons, selection.find_notebooks(args.notebooks))
    if args.execute:
        tier = resolve_tier(args.tier)
        for path in paths:
            print(f"{path.name}: tier {tier}, data set {args.dataset}", flush=True)
            runner.store(path, tier, args.dataset)
    elif args.clean:
        for path in paths:
            print(f"{path.name}: {'cleaned' if notebook_files.clean(path) else 'in its stored form already'}")
    elif args.strip:
        if Path(args.strip).resolve() == paths[0].parent:
            raise CourseError(f"{args.strip} is the folder of the lessons themselves. Choose another one for the copies.")
        for path in paths:
            print(notebook_files.strip_outputs(path, Path(args.strip) / path.name))
        return 0
    found = {path: notebook_files.problems(path) for path in paths}
    for path, problems in found.items():
        print("\n".join(f"{path.name}: {problem}" for problem in problems) if problems else f"{path.name}: in order")
    return int(any(found.values()))


def _results(args: argparse.Namespace) -> int:
    from sslcourse import results

    if args.update_readme:
        from sslcourse.course.commands import readme

        print("README.md: tables made anew" if readme.update() else "README.md: up to date already")
        return 0
    if args.directory is None and not args.reference:
        raise CourseError("Say which records: a folder, such as results or runs, or --reference for those that come with the package.")
    below = [] if args.reference else _runs_below(args.directory)
    if below:
        from sslcourse.course import sweep

        found = sweep.collect(below)
        together = found.markdown() if args.markdown else found.text()
        if not (Path(args.directory) / "results").is_dir():  # no run itself
            print(together)
            return 0
    records = results.reference() if args.reference else _records_of(args.directory)
    made = results.overview(records) if args.reference else results.table(records)
    print(results.readme_table(records) if args.markdown else made)
    if below:
        print(f"\n{together}")
    return 0


def _runs_below(directory: str) -> list:
    """The runs in the subfolders of a folder, such as a sweep's."""
    from sslcourse.course import sweep

    return sweep.run_folders(Path(directory)) if Path(directory).is_dir() else []


def _records_of(directory: str) -> list[dict]:
    from sslcourse import results

    folder = Path(directory)
    if not folder.is_dir():
        raise CourseError(f"There is no folder {folder}. Give the folder that holds the records, such as results or runs.")
    folder = folder / "results" if (folder / "results").is_dir() else folder
    records = results.read(folder)
    if not records:
        raise CourseError(f"There are no result records in {folder}; a lesson writes them in its last cell.")
    return records
