"""The command `results`: the tables of a folder of records, of several runs, or of the records that come with the package."""

import argparse
from pathlib import Path

from sslcourse.errors import CourseError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    folder = "a folder of records, the --out folder of a run, or one of several runs"
    which.add_argument("directory", nargs="?", metavar="DIR", help=folder)
    which.add_argument("--reference", action="store_true", help="the records of real runs that come with the package")
    parser.add_argument("--markdown", action="store_true", help="as a Markdown table")


def run(args: argparse.Namespace) -> int:
    folder = Path(args.directory or ".")
    if not folder.is_dir():
        raise CourseError(f"There is no folder {folder}. Give the folder that holds the records, such as results or runs.")
    from sslcourse import results
    from sslcourse.course import table_over_seeds

    if args.reference:
        found = results.overview(results.reference())
        print(found._repr_markdown_() if args.markdown else found)
        return 0
    own, below, shown = folder / "results", table_over_seeds.run_folders(folder), []
    own = own if own.is_dir() else folder
    if own != folder or not below:
        if not (records := results.read(own)):
            raise CourseError(f"There are no result records in {own}; a lesson writes them in its last cell.")
        shown.append(results.overview(records)._repr_markdown_() if args.markdown else str(results.table(records)))
    if below:
        shown.append(table_over_seeds.collect(below).text(args.markdown))
    print("\n\n".join(shown))
    return 0
