"""The command `notebooks`: check the stored notebooks, bring them into their stored form, execute them, or copy them without outputs."""

import argparse

from sslcourse.errors import CourseError
from sslcourse.files import check_writable, folder_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("lessons", nargs="*", metavar="LESSON", help="numbers, ranges or names; all if left out")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="list what is wrong with the files (default)")
    what.add_argument("--clean", action="store_true", help="put them into their stored form, keeping the outputs")
    what.add_argument("--execute", action="store_true", help="run each and store it with its outputs")
    what.add_argument("--strip", metavar="DIR", help="write copies without outputs into a folder")
    parser.add_argument("--tier", default="cpu", help="with --execute (default: cpu)")
    parser.add_argument("--dataset", default="toybox", help="with --execute (default: toybox)")
    parser.add_argument("--notebooks", metavar="DIR", help="folder of the lessons (default: the course's own)")


def run(args: argparse.Namespace) -> int:
    from sslcourse.course import notebook_files, runner, selection
    from sslcourse.course.lesson import resolve_tier

    paths = selection.select(args.lessons, args.notebooks)
    if args.strip:
        out = folder_of(args.strip, "--strip", "copies")
        if there := [path.name for path in paths if (out / path.name).exists()]:
            raise CourseError(f"{', '.join(there)} would be replaced in {args.strip}. Choose another folder for the copies.")
        check_writable(out, "--strip")
        for path in paths:
            notebook_files.save(notebook_files.strip_outputs(notebook_files.load(path)), out / path.name)
            print(out / path.name)
        return 0
    if args.execute or args.clean:
        check_writable(paths[0].parent, "--notebooks")
    if args.execute:
        tier = resolve_tier(args.tier)
        for path in paths:
            print(f"{path.name}: tier {tier}, data set {args.dataset}", flush=True)
            runner.store(path, tier, args.dataset)
    elif args.clean:
        for path in paths:
            print(f"{path.name}: {'cleaned' if notebook_files.clean(path) else 'in its stored form already'}")
    found = {path: notebook_files.problems(path) for path in paths}
    for path, problems in found.items():
        print("\n".join(f"{path.name}: {problem}" for problem in problems) if problems else f"{path.name}: in order")
    return int(any(found.values()))
