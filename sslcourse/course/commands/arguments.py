"""What commands accept as a number: the value, or a sentence."""

import argparse
import math
from contextlib import suppress

DATA_DIR_HELP = "where data sets are kept (default: the repository's folder data, or SSLCOURSE_DATA_DIR, as in the lessons)"


def _number(kind: type, least: float, what: str, above: bool = False):
    def read(text: str):
        value = math.nan
        with suppress(ValueError):
            value = kind(text)
        if not least <= value < 2**32 or (above and value == least):
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return value

    return read


whole = _number(int, 1, "a whole number from 1")
count = _number(int, 0, "a whole number from 0")
positive = _number(float, 0, "a number above 0", above=True)
not_negative = _number(float, 0, "a number from 0")
listed_seed = _number(int, 0, "a seed, a whole number from 0; name the lessons before --seeds")  # which take all words that follow
