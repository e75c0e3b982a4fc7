"""Toybox: ten classes of simple drawn objects, made by code from a seed. The course's embedded data set.

It needs no network, comes in any size, and is drawn so that every method of the course has something to learn within minutes on two
CPU cores. Three properties do that, and each is a choice that can be undone to see what it is for:

* Objects stand upright, so that telling a rotation is a real task (`upright=False` takes that away).
* Backgrounds are plain and nearly grey, and the colours of an object share one hue. Two images can then be told apart only by shape,
  which is what a contrastive method has to learn. `shortcut=True` draws the opposite: cluttered backgrounds and many colours, where
  colour alone identifies an image and contrastive learning stops there.
* Pose, proportions, line of sight, brightness, blur and noise vary a lot from image to image, so that a hundred labels do not cover them.

Image `i` of a draw depends on `(seed, i)` alone: a longer draw begins with the shorter one.

How hard it is was tuned once, with a ResNet-9 of width 16 at 32 pixels, bf16, 4,000 unlabelled and 100 labelled images and 2,000 for the
test; pretraining is followed by a linear probe on 100 labels, mean of five draws of them where nothing else is said:

* as it is now: untrained 23 %; supervised, 400 steps with flips and shifts, 51, 56 and 60 % (three seeds); rotation 66 % (10 epochs, batch
  64); SimCLR 68 % (10 epochs, batch 128, temperature 0.2); Barlow Twins 70 % (15 epochs, batch 128, lambda 0.02; with batch 256 and
  lambda 0.005 it had 56 % after 20); BYOL 66 % (20 epochs of 6,000 images, batch 64, predictor at five times the learning rate, momentum
  from 0.98, batch normalisation without affine on the projector's output; 48 % was the best without that normalisation).
* milder poses (tilt 0.14, shear 0.12, scale from 0.55): supervised 65, 68 and 74 %, rotation 73 % on one draw of labels: too little room.
* stronger tilt, and bars of the background's colour in front of 70 % of the objects: supervised 33 to 37 %, SimCLR 48 % on one draw.
* a long tail of noise and haze: supervised 28 to 32 %; a weaker tail: 45 to 47 % with 100 labels, yet 98 % with 5,000 like without it.
* large objects in the middle, hardly turned: supervised 95 and 96 %, far above BYOL's probe (69 %, 10 epochs): nothing to gain.
"""

import colorsys
import math
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

CLASS_NAMES = ("airplane", "bird", "car", "cat", "fish", "house", "sailboat", "tree", "mushroom", "truck")
VERSION = 1  # part of every cache's name: raise it when a drawing changes

SUPERSAMPLING = 3  # drawn this many times larger, then averaged down: smooth edges


class Pen:
    """Draws in an object's own coordinates: x to the right and y down, both about 0..1, the object's middle at (0.5, 0.5)."""

    def __init__(self, canvas: ImageDraw.ImageDraw, width: int, rng: np.random.Generator, tilt: float):
        self.canvas, self.rng = canvas, rng
        scale = rng.uniform(0.5, 0.98) * width
        stretch = math.exp(rng.normal(0, 0.18))
        shear = rng.normal(0, 0.15)
        mirror = rng.choice((-1.0, 1.0))
        # pose = translate · rotate · shear · stretch · mirror, as one 2×2 matrix and an offset
        cos, sin = math.cos(tilt), math.sin(tilt)
        turn, slant = np.array([[cos, -sin], [sin, cos]]), np.array([[1, shear], [0, 1]])
        self.matrix = scale * turn @ slant @ np.diag([mirror * stretch, 1 / stretch])
        # a smaller object has more room to wander
        room = max(0.04, 0.5 - 0.5 * scale / width)
        self.offset = width * (0.5 + rng.uniform(-room, room, 2))

    def polygon(self, points, colour) -> None:
        points = (np.asarray(points, float) - 0.5) @ self.matrix.T + self.offset
        self.canvas.polygon([tuple(p) for p in points], fill=colour)

    def ellipse(self, centre, radius_x, radius_y, colour, turn=0.0, start=0.0, end=2 * math.pi) -> None:
        angle = np.linspace(start, end, 28)
        x, y = radius_x * np.cos(angle), radius_y * np.sin(angle)
        points = np.stack([x * math.cos(turn) - y * math.sin(turn), x * math.sin(turn) + y * math.cos(turn)], 1) + centre
        self.polygon(points, colour)

    def near(self, value, spread=0.04) -> float:
        """A coordinate that varies from object to object."""
        return value + self.rng.normal(0, spread)


def _airplane(pen, body, dark, light):
    near = pen.near
    pen.ellipse((0.5, 0.5), 0.46, abs(near(0.08, 0.015)), body)
    pen.polygon([(0.46, 0.52), (0.62, 0.52), (near(0.36), near(0.86)), (near(0.26), near(0.86))], dark)
    pen.polygon([(0.5, 0.46), (0.6, 0.46), (near(0.44), near(0.22)), (near(0.36), near(0.22))], dark)
    pen.polygon([(0.1, 0.49), (0.22, 0.48), (near(0.12), 0.24), (near(0.04), 0.24)], light)


def _bird(pen, body, dark, light):
    near = pen.near
    for x in (0.44, 0.54):
        pen.polygon([(x, 0.68), (x + 0.035, 0.68), (x + 0.035, near(0.94, 0.02)), (x, near(0.94, 0.02))], dark)
    pen.polygon([(0.22, 0.52), (near(0.0, 0.03), near(0.4)), (near(0.03, 0.03), near(0.64))], light)
    pen.ellipse((0.45, 0.56), 0.29, abs(near(0.17, 0.02)), body, turn=-0.2)
    pen.ellipse((0.74, near(0.36, 0.03)), 0.12, 0.12, body)
    pen.polygon([(0.84, 0.31), (0.99, near(0.37)), (0.84, 0.42)], dark)
    pen.polygon([(0.34, 0.5), (0.6, 0.52), (near(0.3), near(0.2, 0.06))], light)


def _car(pen, body, dark, light):
    near = pen.near
    pen.polygon([(0.03, 0.5), (0.97, near(0.52, 0.02)), (0.97, 0.72), (0.03, 0.72)], body)
    roof = near(0.31, 0.03)
    pen.polygon([(near(0.22), 0.51), (near(0.33), roof), (near(0.64), roof), (near(0.8), 0.51)], body)
    pen.polygon([(0.34, 0.49), (0.39, roof + 0.05), (0.6, roof + 0.05), (0.68, 0.49)], dark)
    for x in (near(0.24, 0.02), near(0.76, 0.02)):
        pen.ellipse((x, 0.73), 0.11, 0.11, light)


def _cat(pen, body, dark, light):
    near = pen.near
    pen.polygon([(0.19, 0.5), (near(0.2), near(0.1)), (0.46, 0.34)], body)
    pen.polygon([(0.81, 0.5), (near(0.8), near(0.1)), (0.54, 0.34)], body)
    pen.ellipse((0.5, 0.58), abs(near(0.34, 0.02)), abs(near(0.3, 0.02)), body)
    for x in (0.37, 0.63):
        pen.ellipse((x, 0.52), 0.06, 0.075, dark)
    pen.polygon([(0.45, 0.66), (0.55, 0.66), (0.5, 0.73)], light)


def _fish(pen, body, dark, light):
    near = pen.near
    pen.polygon([(0.72, 0.5), (0.98, near(0.26)), (near(0.93, 0.02), 0.5), (0.98, near(0.74))], dark)
    pen.polygon([(0.34, 0.38), (0.6, 0.36), (near(0.56), near(0.16))], dark)
    pen.ellipse((0.44, 0.5), 0.36, abs(near(0.2, 0.03)), body)
    pen.ellipse((0.24, 0.45), 0.05, 0.05, light)


def _house(pen, body, dark, light):
    near = pen.near
    pen.polygon([(0.15, 0.45), (0.85, 0.45), (0.85, 0.94), (0.15, 0.94)], body)
    pen.polygon([(0.05, 0.47), (near(0.5), near(0.1)), (0.95, 0.47)], dark)
    door = near(0.5, 0.06)
    pen.polygon([(door, 0.64), (door + 0.16, 0.64), (door + 0.16, 0.94), (door, 0.94)], light)
    pen.polygon([(0.22, 0.54), (0.37, 0.54), (0.37, 0.7), (0.22, 0.7)], light)


def _sailboat(pen, body, dark, light):
    near = pen.near
    pen.polygon([(0.07, 0.7), (0.93, 0.7), (near(0.78), 0.92), (near(0.22), 0.92)], body)
    pen.polygon([(0.48, 0.06), (0.52, 0.06), (0.52, 0.71), (0.48, 0.71)], light)
    pen.polygon([(0.54, near(0.12)), (0.54, 0.65), (near(0.9), 0.65)], dark)
    pen.polygon([(0.46, near(0.22)), (0.46, 0.65), (near(0.16), 0.65)], dark)


def _tree(pen, body, dark, light):
    near = pen.near
    pen.polygon([(0.44, 0.5), (0.56, 0.5), (0.58, 0.97), (0.42, 0.97)], light)
    for _ in range(pen.rng.integers(4, 7)):
        pen.ellipse((near(0.5, 0.13), near(0.33, 0.09)), abs(near(0.18, 0.02)), abs(near(0.16, 0.02)), body)
    pen.ellipse((near(0.46, 0.06), near(0.3, 0.05)), 0.09, 0.08, dark)


def _mushroom(pen, body, dark, light):
    near = pen.near
    pen.polygon([(0.4, 0.45), (0.6, 0.45), (near(0.66), 0.95), (near(0.34), 0.95)], light)
    pen.ellipse((0.5, 0.5), abs(near(0.45, 0.03)), abs(near(0.41, 0.04)), body, start=math.pi, end=2 * math.pi)
    for _ in range(pen.rng.integers(2, 5)):
        pen.ellipse((0.5 + pen.rng.uniform(-0.27, 0.27), 0.32 + pen.rng.uniform(-0.09, 0.1)), 0.055, 0.045, dark)


def _truck(pen, body, dark, light):
    near = pen.near
    pen.polygon([(0.02, near(0.25, 0.03)), (0.64, near(0.25, 0.03)), (0.64, 0.76), (0.02, 0.76)], body)
    pen.polygon([(0.67, near(0.42)), (near(0.84, 0.03), near(0.42)), (0.98, 0.58), (0.98, 0.76), (0.67, 0.76)], dark)
    for x in (0.17, near(0.46, 0.03), 0.82):
        pen.ellipse((x, 0.79), 0.09, 0.09, light)


_DRAWINGS = (_airplane, _bird, _car, _cat, _fish, _house, _sailboat, _tree, _mushroom, _truck)


def _plain_background(rng: np.random.Generator, width: int) -> np.ndarray:
    """Nearly grey, dark or light, with a faint gradient and sometimes a horizon. (width, width, 3) floats in 0..255."""
    first = rng.choice((28.0, 228.0)) + rng.normal(0, 10, 3)
    second = first + rng.normal(0, 12, 3)
    y, x = np.linspace(0, 1, width)[:, None, None], np.linspace(0, 1, width)[None, :, None]
    angle = rng.uniform(0, 2 * math.pi)
    blend = np.clip((math.cos(angle) * (x - 0.5) + math.sin(angle) * (y - 0.5)) + 0.5, 0, 1)
    field = first * (1 - blend) + second * blend
    if rng.random() < 0.4:
        field = np.where(y > rng.uniform(0.5, 0.85), first + rng.normal(0, 8, 3), field)
    return field


def _cluttered_background(rng: np.random.Generator, width: int) -> np.ndarray:
    """Coloured blotches of random scale: colour alone tells such an image from every other."""
    cells = int(rng.integers(1, 9))
    grid = rng.uniform(0, 255, (cells + 1, cells + 1, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(grid).resize((width, width), Image.BICUBIC), float)


def _colours(rng: np.random.Generator, background: float, shortcut: bool) -> list[tuple[int, int, int]]:
    """Three colours for an object: body, a darker and a lighter shade of one hue, or three unrelated ones with `shortcut`."""
    if shortcut:
        return [tuple(int(v) for v in rng.uniform(0, 255, 3)) for _ in range(3)]
    hue, saturation = rng.random(), rng.uniform(0.05, 0.8)
    # some distance from the background, or the object could not be seen
    value = rng.uniform(0.35, 0.8) if background < 128 else rng.uniform(0.3, 0.7)
    shades = [np.clip(value + step, 0.05, 1) for step in (0.0, -0.2, 0.2)]
    return [tuple(int(255 * c) for c in colorsys.hsv_to_rgb(hue, saturation, shade)) for shade in shades]


def draw(class_index: int, rng: np.random.Generator, size: int = 32, shortcut: bool = False, upright: bool = True) -> np.ndarray:
    """One image of a class: uint8, (size, size, 3)."""
    width = size * SUPERSAMPLING
    field = _cluttered_background(rng, width) if shortcut else _plain_background(rng, width)
    image = Image.fromarray(np.clip(field, 0, 255).astype(np.uint8))
    canvas = ImageDraw.Draw(image)
    if shortcut:
        for _ in range(rng.integers(0, 5)):
            x, y, radius = *rng.uniform(0, width, 2), rng.uniform(0.02, 0.1) * width
            canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tuple(int(v) for v in rng.uniform(0, 255, 3)))
    tilt = rng.normal(0, 0.2) if upright else rng.uniform(0, 2 * math.pi)
    pen = Pen(canvas, width, rng, tilt)
    _DRAWINGS[class_index](pen, *_colours(rng, float(field.mean()), shortcut))
    softness = rng.uniform(0, 0.5) * size / 32  # standard deviation of the blur, in pixels
    image = image.resize((size, size), Image.BOX).filter(ImageFilter.GaussianBlur(softness))
    pixels = np.asarray(image, np.float32)
    pixels = pixels + rng.normal(0, rng.uniform(0, 16), pixels.shape)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _draw_range(bounds: tuple[int, int], seed: int, size: int, shortcut: bool, upright: bool) -> np.ndarray:
    first, last = bounds
    images = np.empty((last - first, 3, size, size), np.uint8)
    for row, index in enumerate(range(first, last)):
        rng = np.random.default_rng((seed, index))
        images[row] = draw(index % len(CLASS_NAMES), rng, size, shortcut, upright).transpose(2, 0, 1)
    return images


def make(
    n: int,
    seed: int = 0,
    size: int = 32,
    shortcut: bool = False,
    upright: bool = True,
    progress: Callable[[int, int], None] | None = None,
    processes: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw n images, the classes in turn, so that any stretch of them is balanced.

    n: how many; at least 1. seed: a non-negative int. size: pixels a side, 8 to 512.
    shortcut, upright: see the head of this file. progress: called with (images done, n). processes: worker processes to draw with.
    Returns images uint8 (n, 3, size, size) and labels int64 (n,).
    Raises ValueError when a number is out of its range.
    """
    if n < 1:
        raise ValueError(f"n is the number of images to draw and must be at least 1, not {n}.")
    if not 8 <= size <= 512:
        raise ValueError(f"size is in pixels a side and must lie between 8 and 512, not {size}.")
    if seed < 0:
        raise ValueError(f"seed must be a non-negative whole number, not {seed}.")
    chunk = 250
    ranges = [(first, min(first + chunk, n)) for first in range(0, n, chunk)]
    work = partial(_draw_range, seed=seed, size=size, shortcut=shortcut, upright=upright)
    images = np.empty((n, 3, size, size), np.uint8)
    pool = ProcessPoolExecutor(processes) if processes > 1 and len(ranges) > 1 else None
    try:
        for (first, last), drawn in zip(ranges, pool.map(work, ranges) if pool else map(work, ranges), strict=True):
            images[first:last] = drawn
            if progress:
                progress(last, n)
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)
    return images, np.arange(n) % len(CLASS_NAMES)
