"""What commands accept as a number or a device: the value, or a sentence."""

import argparse
import math
from contextlib import suppress

from sslcourse.errors import CourseError


def check_device(device: str | None) -> None:
    """Raise CourseError, with the way out, unless PyTorch has this device here; None is for it to choose."""
    import torch

    try:
        kind = torch.device(device).type if device is not None else "cpu"
    except RuntimeError:
        raise CourseError(f"--device {device} is no device; try cpu, cuda or cuda:0.") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise CourseError("--device cuda: PyTorch sees no GPU here. Leave it out, or take --device cpu.")


def _number(kind: type, least: float, what: str, above: bool = False):
    def read(text: str):
        value = math.nan
        with suppress(ValueError):
            value = kind(text)
        if not least <= value < 2**31 or (above and value == least):
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return value

    return read


whole = _number(int, 1, "a whole number from 1")
count = _number(int, 0, "a whole number from 0")
positive = _number(float, 0, "a number above 0", above=True)
not_negative = _number(float, 0, "a number from 0")


def listed_seed(text: str) -> int:
    """One of several seeds, which take all words that follow them."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not a seed, a whole number; name the lessons before --seeds")
    return int(text)
