"""What commands accept as a number or a device: the value, or a sentence."""

import argparse
import math
from collections.abc import Callable

from sslcourse.errors import CourseError


def check_device(device: str | None) -> None:
    """Raise CourseError, with the way out, unless PyTorch has this device here; None is for it to choose."""
    import torch

    if device is None:
        return
    try:
        torch.device(device)
    except RuntimeError:
        raise CourseError(f"--device {device} is no device; try cpu, cuda or cuda:0.") from None
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise CourseError("--device cuda: PyTorch sees no GPU here. Leave it out, or take --device cpu.")


def _number(text: str, kind: Callable, accepted: Callable[[float], bool], what: str):
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not accepted(value) or not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return value


def whole(text: str) -> int:
    return _number(text, int, lambda v: 1 <= v < 2**31, "a whole number from 1")


def count(text: str) -> int:
    return _number(text, int, lambda v: 0 <= v < 2**31, "a whole number from 0")


def seed(text: str) -> int:
    return _number(text, int, lambda v: 0 <= v < 2**31, "a whole number from 0")


def listed_seed(text: str) -> int:
    """One of several seeds, which take all words that follow them."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not a seed, a whole number; name the lessons before --seeds")
    return int(text)


def positive(text: str) -> float:
    return _number(text, float, lambda v: v > 0, "a number above 0")


def not_negative(text: str) -> float:
    return _number(text, float, lambda v: v >= 0, "a number from 0")
