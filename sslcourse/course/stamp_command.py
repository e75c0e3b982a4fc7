"""The command `stamp`: put the address of a fork into the badges, the set-up cells and the links of the course."""

import argparse
from pathlib import Path

from sslcourse.course import lesson as lessons
from sslcourse.course import stamp
from sslcourse.errors import CourseError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to an argparse parser."""
    parser.description = (
        "Badges and set-up cells name the repository that Colab opens the lessons from. In a fork, write its own name into all of them, "
        "and into the other links, once; nothing else in the files changes."
    )
    parser.add_argument("repository", nargs="?", metavar="OWNER/REPO", help="the fork on GitHub (default: the one the course names now)")
    parser.add_argument("--branch", help="the branch that Colab opens and installs from (default: main; with --check, the course's)")
    parser.add_argument("--check", action="store_true", help="change nothing; only say whether all files agree")


def run(args: argparse.Namespace) -> int:
    """Do what the parsed arguments say. -> exit status: 1 if something does not carry the address (afterwards, without --check)."""
    root = lessons.repository_root() or lessons.repository_root(Path(__file__).parent)
    if root is None:
        raise CourseError("There is no course here to stamp. Run this inside the folder of your fork.")
    if args.repository is None and args.branch is None and not args.check:
        raise CourseError("Say which repository: python -m sslcourse stamp OWNER/REPO; or --check to see whether all files agree.")
    now = stamp.current(root)
    if args.check:
        branch = now.branch if args.branch is None else args.branch
        address = stamp.parse(args.repository or f"{now.owner}/{now.name}", branch)
    else:
        address = stamp.parse(args.repository or f"{now.owner}/{now.name}", "main" if args.branch is None else args.branch)
        changed = stamp.stamp(root, address)
        for name, places in changed.items():
            print(f"{name}: {places} place{'s' if places > 1 else ''}")
        if changed:
            print(f"{len(changed)} file{'s' if len(changed) > 1 else ''} stamped with {address}.")
    wrong = stamp.disagreements(root, address)
    print("\n".join(wrong) if wrong else f"All files agree: {address}.")
    return int(bool(wrong))
