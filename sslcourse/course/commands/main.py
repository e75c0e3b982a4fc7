"""python -m sslcourse COMMAND ...; `python -m sslcourse --help` lists the commands.

Exit status: 0 if all went well, 1 if something has to be put right (one sentence says what), 2 for a wrong command line, 130 after Ctrl-C.
"""

import argparse
import codecs
import importlib
import os
import sys
import unicodedata
from collections.abc import Sequence

from sslcourse import __version__
from sslcourse.errors import CourseError
from sslcourse.files import reason

# name -> (module in sslcourse.course, what --help says of it). A module has add_arguments(parser) and run(args) -> exit status.
COMMANDS = {
    "run": ("commands.run", "run lessons from top to bottom without a browser"),
    "data": ("commands.data", "get a data set ready: draw, download or import it; alone, it draws toybox"),
    "pretrain": ("commands.pretrain", "one long run of pretraining, which survives interruptions"),
    "evaluate": ("commands.evaluate", "what a pretrained encoder is worth with few labels"),
    "handout": ("commands.handout", "copies of the lessons for a class: without solutions, filled in, or for nbgrader"),
    "notebooks": ("commands.notebooks", "check, clean or execute the stored notebooks"),
    "results": ("commands.results", "print the table of a folder of result records, or of the committed ones"),
}
_PLAIN = {"–": "-", "—": "-", "−": "-", "×": "x", "·": "*", "±": "+/-", "←": "<-", "→": "->", "“": '"', "”": '"', "’": "'"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command -> exit status. What can be put right is one sentence, in a terminal of any character set."""
    argv = list(sys.argv[1:] if argv is None else argv)
    codecs.register_error("plain", lambda error: ("".join(map(_plain, error.object[error.start : error.end])), error.end))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # what stands in for a terminal, in notebooks and tests, takes any text
            stream.reconfigure(errors="plain")
    try:
        args = _parser(argv[0] if argv else "").parse_args(argv)
        return args.run(args)
    except SystemExit as stop:  # argparse has already said what is wrong
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except CourseError as error:
        told = error
    except ModuleNotFoundError as error:  # installed without the extra that brings what only lessons and their runs need
        if (error.name or "sslcourse").startswith("sslcourse"):
            raise
        told = f"This command needs {error.name}, which is not installed here: pip install \"sslcourse[lab]\"."
    except OSError as error:
        told = f"{error.filename or 'The output'} cannot be used: {reason(error)}."
    print(told, file=sys.stderr)
    return 1


def _plain(character: str) -> str:
    """What stands for a character that the terminal does not have."""
    return _PLAIN.get(character) or unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode() or "?"


def _parser(named: str) -> argparse.ArgumentParser:
    """named: the command that is going to be parsed; only its module is imported, so that --help answers at once."""
    parser = argparse.ArgumentParser(prog="python -m sslcourse", description="A course on self- and semi-supervised image learning.")
    parser.add_argument("--version", action="version", version=f"sslcourse {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, (module, told) in COMMANDS.items():
        command = commands.add_parser(name, help=told, description=f"{told[0].upper()}{told[1:]}.")
        if name == named:
            its = importlib.import_module(f"sslcourse.course.{module}")
            its.add_arguments(command)
            command.set_defaults(run=its.run)
    return parser
