"""The command `site`: `python -m sslcourse site --out build/site`."""

import argparse
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to an argparse parser."""
    parser.add_argument(
        "--out", default="build/site", metavar="DIR", help="folder for the pages (default: build/site); an earlier site there is replaced"
    )
    parser.add_argument("--notebooks", metavar="DIR", help="folder of the lessons (default: the course's own)")
    parser.add_argument("--list-links", action="store_true", help="also list the addresses elsewhere that the pages link to")


def run(args: argparse.Namespace) -> int:
    """Make the site and say what was made. -> 0, or 1 if a link leads nowhere or Sphinx warned; the site is there all the same."""
    from sslcourse.course.pages import site

    made = site.build(args.out, args.notebooks)
    problems = [*made.warnings, *made.links.problems]
    print(f"{made.pages} pages in {made.folder}: open {made.folder / 'index.html'} in a browser.")
    if args.list_links:
        for address, pages in sorted(made.links.outside.items()):
            print(f"{address}  ({', '.join(sorted(pages))})")
    if problems:
        print(f"{len(problems)} things to put right:", *problems, sep="\n", file=sys.stderr)
    return int(bool(problems))
