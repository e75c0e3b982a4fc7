"""The command `slides`: `python -m sslcourse slides 3 --out build/slides`."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to an argparse parser."""
    parser.add_argument("lessons", nargs="*", metavar="LESSON", help="numbers (3), ranges (3-5) or names (simclr); all if left out")
    slides = "folder for the slides (default: build/slides); earlier slides there are replaced"
    parser.add_argument("--out", default="build/slides", metavar="DIR", help=slides)
    reveal = (
        "folder with reveal.js 4, 5 or 6, copied beside the slides, so that they need no network; "
        "get one with: npm pack reveal.js@5, then tar xzf reveal.js-5*.tgz, which makes the folder package"
    )
    parser.add_argument("--reveal", metavar="DIR", help=reveal)
    parser.add_argument("--notebooks", metavar="DIR", help="folder of the lessons (default: the course's own)")


def run(args: argparse.Namespace) -> int:
    """Write the slides and say where they are. -> 0"""
    from sslcourse.course.pages import slides

    made = slides.export(args.lessons, args.out, args.notebooks, args.reveal)
    print(f"Slides of {len(made.files)} lessons in {made.folder}: open {made.folder / 'index.html'} in a browser.")
    if made.needs_network:
        print(f"They load reveal.js from the network when they are shown. For a room without one: {slides.HOW_TO_GET_REVEAL}")
    return 0
