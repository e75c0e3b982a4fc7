"""Toybox: ten classes of simple drawn objects, made by code from a seed. The course's embedded data set.

Objects stand upright, so that telling a rotation is a real task (`upright=False` takes that away). Backgrounds are plain and nearly grey,
and an object has one hue, so only shape tells images apart; `shortcut=True` draws clutter and many colours, where colour alone does, and
contrastive learning stops there. Pose, proportions, brightness, blur and noise vary so much that a hundred labels do not cover them.

Image `i` of a draw depends on `(seed, i)` alone: a longer draw begins with the shorter one.
"""

import colorsys
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from tqdm import tqdm

from sslcourse.datasets import prepared

CLASS_NAMES = ("airplane", "bird", "car", "cat", "fish", "house", "sailboat", "tree", "mushroom", "truck")
VERSION = 1  # raise it when a drawing changes: what older versions kept is then drawn again
SIZE = 32
SPLITS = ("unlabeled", *prepared.SPLITS)
OPTIONS = {"shortcut": False, "upright": True, "seed": 0, "unlabeled": 6000, "train": 5000, "validation": 1000, "test": 2000}

SUPERSAMPLING = 3  # drawn this many times larger, then averaged down: smooth edges
Colour = tuple[int, int, int]


class Pen:
    """Draws in an object's own coordinates: x to the right and y down, both about 0..1, the object's middle at (0.5, 0.5)."""

    def __init__(self, canvas: ImageDraw.ImageDraw, width: int, rng: np.random.Generator, tilt: float):
        self.canvas, self.rng = canvas, rng
        scale, stretch = rng.uniform(0.5, 0.98) * width, math.exp(rng.normal(0, 0.18))
        shear, mirror = rng.normal(0, 0.15), rng.choice((-1.0, 1.0))
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

    def near(self, value, spread=0.04) -> float:  # a coordinate that varies from object to object
        return value + self.rng.normal(0, spread)


def _draw_object(name: str, pen: Pen, near: Callable[..., float], body: Colour, dark: Colour, light: Colour) -> None:
    match name:
        case "airplane":
            pen.ellipse((0.5, 0.5), 0.46, abs(near(0.08, 0.015)), body)
            pen.polygon([(0.46, 0.52), (0.62, 0.52), (near(0.36), near(0.86)), (near(0.26), near(0.86))], dark)
            pen.polygon([(0.5, 0.46), (0.6, 0.46), (near(0.44), near(0.22)), (near(0.36), near(0.22))], dark)
            pen.polygon([(0.1, 0.49), (0.22, 0.48), (near(0.12), 0.24), (near(0.04), 0.24)], light)
        case "bird":
            for x in (0.44, 0.54):
                pen.polygon([(x, 0.68), (x + 0.035, 0.68), (x + 0.035, near(0.94, 0.02)), (x, near(0.94, 0.02))], dark)
            pen.polygon([(0.22, 0.52), (near(0.0, 0.03), near(0.4)), (near(0.03, 0.03), near(0.64))], light)
            pen.ellipse((0.45, 0.56), 0.29, abs(near(0.17, 0.02)), body, turn=-0.2)
            pen.ellipse((0.74, near(0.36, 0.03)), 0.12, 0.12, body)
            pen.polygon([(0.84, 0.31), (0.99, near(0.37)), (0.84, 0.42)], dark)
            pen.polygon([(0.34, 0.5), (0.6, 0.52), (near(0.3), near(0.2, 0.06))], light)
        case "car":
            pen.polygon([(0.03, 0.5), (0.97, near(0.52, 0.02)), (0.97, 0.72), (0.03, 0.72)], body)
            roof = near(0.31, 0.03)
            pen.polygon([(near(0.22), 0.51), (near(0.33), roof), (near(0.64), roof), (near(0.8), 0.51)], body)
            pen.polygon([(0.34, 0.49), (0.39, roof + 0.05), (0.6, roof + 0.05), (0.68, 0.49)], dark)
            for x in (near(0.24, 0.02), near(0.76, 0.02)):
                pen.ellipse((x, 0.73), 0.11, 0.11, light)
        case "cat":
            pen.polygon([(0.19, 0.5), (near(0.2), near(0.1)), (0.46, 0.34)], body)
            pen.polygon([(0.81, 0.5), (near(0.8), near(0.1)), (0.54, 0.34)], body)
            pen.ellipse((0.5, 0.58), abs(near(0.34, 0.02)), abs(near(0.3, 0.02)), body)
            for x in (0.37, 0.63):
                pen.ellipse((x, 0.52), 0.06, 0.075, dark)
            pen.polygon([(0.45, 0.66), (0.55, 0.66), (0.5, 0.73)], light)
        case "fish":
            pen.polygon([(0.72, 0.5), (0.98, near(0.26)), (near(0.93, 0.02), 0.5), (0.98, near(0.74))], dark)
            pen.polygon([(0.34, 0.38), (0.6, 0.36), (near(0.56), near(0.16))], dark)
            pen.ellipse((0.44, 0.5), 0.36, abs(near(0.2, 0.03)), body)
            pen.ellipse((0.24, 0.45), 0.05, 0.05, light)
        case "house":
            pen.polygon([(0.15, 0.45), (0.85, 0.45), (0.85, 0.94), (0.15, 0.94)], body)
            pen.polygon([(0.05, 0.47), (near(0.5), near(0.1)), (0.95, 0.47)], dark)
            door = near(0.5, 0.06)
            pen.polygon([(door, 0.64), (door + 0.16, 0.64), (door + 0.16, 0.94), (door, 0.94)], light)
            pen.polygon([(0.22, 0.54), (0.37, 0.54), (0.37, 0.7), (0.22, 0.7)], light)
        case "sailboat":
            pen.polygon([(0.07, 0.7), (0.93, 0.7), (near(0.78), 0.92), (near(0.22), 0.92)], body)
            pen.polygon([(0.48, 0.06), (0.52, 0.06), (0.52, 0.71), (0.48, 0.71)], light)
            pen.polygon([(0.54, near(0.12)), (0.54, 0.65), (near(0.9), 0.65)], dark)
            pen.polygon([(0.46, near(0.22)), (0.46, 0.65), (near(0.16), 0.65)], dark)
        case "tree":
            pen.polygon([(0.44, 0.5), (0.56, 0.5), (0.58, 0.97), (0.42, 0.97)], light)
            for _ in range(pen.rng.integers(4, 7)):
                pen.ellipse((near(0.5, 0.13), near(0.33, 0.09)), abs(near(0.18, 0.02)), abs(near(0.16, 0.02)), body)
            pen.ellipse((near(0.46, 0.06), near(0.3, 0.05)), 0.09, 0.08, dark)
        case "mushroom":
            pen.polygon([(0.4, 0.45), (0.6, 0.45), (near(0.66), 0.95), (near(0.34), 0.95)], light)
            pen.ellipse((0.5, 0.5), abs(near(0.45, 0.03)), abs(near(0.41, 0.04)), body, start=math.pi, end=2 * math.pi)
            for _ in range(pen.rng.integers(2, 5)):
                pen.ellipse((0.5 + pen.rng.uniform(-0.27, 0.27), 0.32 + pen.rng.uniform(-0.09, 0.1)), 0.055, 0.045, dark)
        case "truck":
            pen.polygon([(0.02, near(0.25, 0.03)), (0.64, near(0.25, 0.03)), (0.64, 0.76), (0.02, 0.76)], body)
            pen.polygon([(0.67, near(0.42)), (near(0.84, 0.03), near(0.42)), (0.98, 0.58), (0.98, 0.76), (0.67, 0.76)], dark)
            for x in (0.17, near(0.46, 0.03), 0.82):
                pen.ellipse((x, 0.79), 0.09, 0.09, light)


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


def _colours(rng: np.random.Generator, background: float, shortcut: bool) -> list[Colour]:
    """Body, a darker and a lighter shade of one hue, or three unrelated colours with `shortcut`."""
    if shortcut:
        return [tuple(int(v) for v in rng.uniform(0, 255, 3)) for _ in range(3)]
    hue, saturation = rng.random(), rng.uniform(0.05, 0.8)
    # some distance from the background, or the object could not be seen
    value = rng.uniform(0.35, 0.8) if background < 128 else rng.uniform(0.3, 0.7)
    shades = [np.clip(value + step, 0.05, 1) for step in (0.0, -0.2, 0.2)]
    return [tuple(int(255 * c) for c in colorsys.hsv_to_rgb(hue, saturation, shade)) for shade in shades]


def draw(class_index: int, rng: np.random.Generator, size: int = SIZE, shortcut: bool = False, upright: bool = True) -> np.ndarray:
    """One image of a class: uint8, (size, size, 3)."""
    width = size * SUPERSAMPLING
    field = _cluttered_background(rng, width) if shortcut else _plain_background(rng, width)
    image = Image.fromarray(np.clip(field, 0, 255).astype(np.uint8))
    canvas = ImageDraw.Draw(image)
    if shortcut:
        for _ in range(rng.integers(0, 5)):
            x, y, radius = *rng.uniform(0, width, 2), rng.uniform(0.02, 0.1) * width
            canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tuple(int(v) for v in rng.uniform(0, 255, 3)))
    pen = Pen(canvas, width, rng, tilt=rng.normal(0, 0.2) if upright else rng.uniform(0, 2 * math.pi))
    _draw_object(CLASS_NAMES[class_index], pen, pen.near, *_colours(rng, float(field.mean()), shortcut))
    softness = rng.uniform(0, 0.5) * size / 32  # standard deviation of the blur, in pixels
    pixels = np.asarray(image.resize((size, size), Image.BOX).filter(ImageFilter.GaussianBlur(softness)), np.float32)
    pixels = pixels + rng.normal(0, rng.uniform(0, 16), pixels.shape)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def make(n: int, seed=0, size=SIZE, shortcut=False, upright=True, bar: tqdm | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Draw n images of `size` pixels a side, the classes in turn: uint8 (n, 3, size, size) and labels int64 (n,). Options: see above."""
    images = np.empty((n, 3, size, size), np.uint8)
    for index in range(n):
        images[index] = draw(index % len(CLASS_NAMES), np.random.default_rng((seed, index)), size, shortcut, upright).transpose(2, 0, 1)
        if bar is not None:
            bar.update()
    return images, np.arange(n) % len(CLASS_NAMES)


def load(data_dir: Path, size: int | None = None, *, force: bool = False, **options) -> tuple[bool, dict, dict]:
    """Find toybox drawn in `data_dir`, or draw it and keep it there. -> (drawn now, about, parts), as `prepared.made_once` gives them.

    options: those of OPTIONS. Split k of seed s is drawn with seed 4 s + k, so no two splits share a drawing. ValueError for a wrong one.
    """
    if unknown := options.keys() - OPTIONS.keys():
        raise ValueError(f"toybox has no option {', '.join(sorted(unknown))}; it has {', '.join(OPTIONS)}.")
    options = {**OPTIONS, **options}
    for key, least in {"seed": 0, **dict.fromkeys(SPLITS, 10)}.items():
        if isinstance(options[key], bool) or not isinstance(options[key], int) or options[key] < least:
            raise ValueError(f"{key}={options[key]!r}: toybox needs a whole number of at least {least}.")
    how = {"size": size or SIZE, "shortcut": bool(options["shortcut"]), "upright": bool(options["upright"])}
    # The plain one is `toybox`; another size or other options get folders of their own, so that they do not push each other out.
    changed = {key: value for key, value in options.items() if value != OPTIONS[key]}
    mark = hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:8]
    folder = data_dir / ("toybox" + (f"-{size}" if size not in (None, SIZE) else "") + (f"-{mark}" if changed else ""))

    def drawn() -> dict[str, np.ndarray]:
        parts = {}
        with tqdm(total=sum(options[split] for split in SPLITS), desc="Drawing toybox", unit=" images") as bar:
            for index, split in enumerate(SPLITS):
                images, labels = make(options[split], seed=4 * options["seed"] + index, bar=bar, **how)
                parts |= {"unlabeled": images} if split == "unlabeled" else {f"{split}_images": images, f"{split}_labels": labels}
        return parts

    facts = dict(class_names=CLASS_NAMES, source=f"drawn by sslcourse.toybox version {VERSION}")
    return prepared.made_once(folder, drawn, options={**options, **how, "version": VERSION}, force=force, **facts)
