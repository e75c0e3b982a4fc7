"""The command `data`: `python data_setup.py ...` and `python -m sslcourse data ...`."""

import argparse
import sys

from sslcourse import datasets, files
from sslcourse.course.commands.arguments import DATA_DIR_HELP
from sslcourse.datasets import sources
from sslcourse.errors import CourseError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help=f"which data set: {', '.join(datasets.KNOWN)} (default: toybox)")
    parser.add_argument("--from", dest="source", metavar="PATH", help="your own images: a folder, a .zip, or a .tar of any kind")
    parser.add_argument("--name", dest="own_name", metavar="NAME", help="the name that your own images get")
    parser.add_argument("--size", type=int, metavar="PIXELS", help="height and width of the images, 8 to 512")
    parser.add_argument("--limit", type=int, metavar="N", help="take at most N images per class and split, for a quick look")
    parser.add_argument("--strict", action="store_true", help="refuse files that cannot be read, instead of skipping them")
    parser.add_argument("--data-dir", default="default", metavar="FOLDER", help=DATA_DIR_HELP)
    parser.add_argument("--force", action="store_true", help="prepare it again, even if it is there")
    parser.add_argument("--keep-archive", action="store_true", help="keep the downloaded archive after it has been unpacked")
    parser.add_argument("--list", action="store_true", help="only say what there is")


def run(args: argparse.Namespace) -> int:
    data_dir = files.folder_of(args.data_dir, "--data-dir", "data")
    if args.list:
        print(datasets.available(data_dir))
        return 0
    if args.own_name is not None and args.source is None:
        raise CourseError("--name is for your own images: add --from with a folder or archive.")
    if None not in (args.name, args.own_name) and args.name != args.own_name:
        raise CourseError(f"Two names are given, {args.name!r} and {args.own_name!r}. Keep one.")
    name = args.name if args.own_name is None else args.own_name
    if args.source is not None and name is None:
        raise CourseError(f"Give the images a name: --from {args.source} --name my-photos")
    options = {key: getattr(args, key) for key in ("source", "size", "strict", "limit", "force", "keep_archive")}
    try:
        report = sources.prepare("toybox" if name is None else name, data_dir, **options)
    except ValueError as error:
        raise CourseError(str(error)) from None
    except KeyboardInterrupt:
        print("\nNothing half-made was kept; a download continues where it stopped when you run the same again.", file=sys.stderr)
        raise
    print(report.sentence)
    if name is None:
        print(f"\nWhat else there is:\n\n{datasets.available(data_dir)}")
    else:
        print(*report.details, sep="\n")
        size = f", size={args.size}" if args.size is not None else ""
        print(f"Use it: datasets.load({datasets.known_spelling(name)!r}, data_dir={str(data_dir)!r}{size})")
    return 0
