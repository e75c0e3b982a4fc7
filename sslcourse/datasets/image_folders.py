"""Read folders of images, train/<class>/*.jpg and the like, into uint8 arrays of one size."""

import os
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from sslcourse.datasets import image_files, prepared
from sslcourse.datasets.archives import Files, Piece
from sslcourse.errors import CourseError

SPLIT_NAMES = {
    "train": ("train", "training"), "validation": ("validation", "val", "valid"), "test": ("test", "testing"),
    "unlabeled": ("unlabeled", "unlabelled"),
}  # fmt: skip
IGNORED = set(  # thumbnails, waste and notes that desktops and network drives keep among the images, besides what begins with a dot
    "__macosx|thumbs.db|ehthumbs.db|ehthumbs_vista.db|desktop.ini|icon\r|$recycle.bin|recycler|system volume information|lost+found"
    "|@eadir|@recycle|@recently-snapshot|@tmp|#recycle|#snapshot|network trash folder|temporary items|__pycache__".split("|")
)
NAMED = 10  # names that a message lists


@dataclass
class FolderImages:
    """What `read` found. `parts` has train_images, train_labels and so on, as `prepared.write` takes them."""

    class_names: list[str]
    parts: dict
    skipped: list[tuple[str, str]] = field(default_factory=list)  # (path relative to the folder, reason)
    rules: list[str] = field(default_factory=list)  # a sentence for each thing that was decided on the way
    values: tuple[float, float] = (0, 255)  # the lowest and the highest in the files

    def skipped_sentence(self, what: str = "skipped") -> str:
        """The files that were left out by their reasons, the first ten of each by name; '' if there are none."""
        reasons = {}
        for path, reason in self.skipped:
            reasons.setdefault(reason, []).append(path)
        told = listed([f"{listed(paths)} ({reason})" for reason, paths in reasons.items()])
        return f"{len(self.skipped):,} file{'s' if len(self.skipped) > 1 else ''} {what}: {told}." if told else ""


def listed(names: Sequence[str]) -> str:
    """The first ten names and how many more there are."""
    return "; ".join(names[:NAMED]) + (f"; and {len(names) - NAMED:,} more" if len(names) > NAMED else "")


def _told(what: str, paths: Sequence[str]) -> list[str]:
    return [f"{what}: {listed([*map(spelled, paths)])}."] if paths else []


def spelled(path: str) -> str:
    """A path as people read it: composed (NFC); names that are not UTF-8 as the old code pages of DOS or Windows have them."""
    names = []
    for raw in path.encode("utf-8", "surrogateescape").split(b"/"):
        try:
            names.append(unicodedata.normalize("NFC", raw.decode()))
        except UnicodeDecodeError:
            dos = all(byte < 0x80 or 0x80 <= byte <= 0xA5 for byte in raw)  # where DOS has its letters, Windows has signs
            names.append(raw.decode("cp437" if dos else "cp1252", errors="backslashreplace"))
    return "/".join(names)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is left out."""
    return name.startswith(".") or name.lower() in IGNORED


def tree(folder: Path, within: str = "") -> Files:
    """The files in a folder on disk, as `read` takes them. Links are not followed: each folder is read where it is, and none outside."""
    found = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            path = within + os.fsencode(entry.name).decode("utf-8", "surrogateescape")
            if entry.is_dir(follow_symlinks=False):
                found |= {f"{path}/": None} | ({} if is_hidden(entry.name) else tree(Path(entry.path), f"{path}/"))
            else:
                found[path] = Piece(Path(entry.path)) if entry.is_file(follow_symlinks=False) else None
    return found


def read(found: Files, work: Path, size: int | None = None, *, label: str, strict=False, limit: int | None = None) -> FolderImages:
    """Read image files by folders, as `tree` or `archives.spool` found them; the images are memory-mapped in the folder `work`.

    Layouts: train/<class>/..., test/<class>/..., if you like validation/<class>/... and unlabeled/...; or only <class>/... Without a test
    folder a stratified 20 % of train becomes the test set (`prepared.set_aside`, seed 0). Wrapping folders are looked through; hidden files
    and links are left out: a sentence in `rules` says so. Images, in sorted order, become uint8 (N, 3, size, size) (`image_files.decode`).
    size: pixels, 8..512; None takes the images' own size if they are all square, equal, and at most 128, else 96. label: what messages call
    the folder. strict: refuse files that cannot be read instead of skipping them. limit: at most that many files per class and split.
    CourseError for a layout without images or without classes, a single class, an empty class, or a class in test that train lacks.
    """
    hidden, links, kept = set(), [], {}
    for path in sorted(found, key=lambda path: path.split("/")):
        if marks := [name for name in path.split("/") if is_hidden(name)]:
            hidden.add(marks[0])
        elif found[path] is None and not path.endswith("/"):
            links.append(path)
        else:
            kept[path] = found[path]
    followed = "Links were not followed, lest an image be read twice or from elsewhere (cp -rL copies what they lead to)"
    rules = _told("Hidden files and those of desktops and network drives were left out", sorted(hidden)) + _told(followed, links)
    try:
        layout = _layout(kept, label, rules)
    except CourseError as error:
        raise CourseError(" ".join([str(error), *_told(followed, links)])) from None
    class_names = sorted(layout["train"])
    labels = {name: number for number, name in enumerate(class_names)} | {"": -1}
    chosen = {}  # split -> [((path, file), label)]
    for split, classes in layout.items():
        for name in sorted(classes):
            if name not in labels:
                raise CourseError(f"{split}/{name} in {label} has no counterpart in train. Every class needs train/<class>; rename one.")
            if not classes[name]:
                raise CourseError(f"The folder of class {name!r} ({split}) in {label} is empty. Put images there, or remove it.")
        if split != "unlabeled":
            rules += _told(f"There is no {split} folder for", [name for name in class_names if name not in classes])
        chosen[split] = [(file, labels[name]) for name in sorted(classes) for file in classes[name][:limit]]
    if limit is not None:
        rules.append(f"At most {limit:,} images of each class and split were taken, the first by name (--limit).")
    found = FolderImages(class_names, {}, rules=rules)
    with tqdm(total=sum(map(len, chosen.values())), desc="Reading images", unit=" images") as bar, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL's remarks about odd EXIF data and large files: what cannot be read is reported anyway
        size = size or _common_size([file for split in chosen.values() for (_, file), _ in split])
        _read_images(found, chosen, size, work, bar)
    if strict and found.skipped:
        raise CourseError(f"{found.skipped_sentence('cannot be read, and --strict refuses that')} Remove them, or leave out --strict.")
    for split in chosen.keys() - {"unlabeled"}:
        for number in sorted({number for _, number in chosen[split]} - set(found.parts[f"{split}_labels"].tolist())):
            raise CourseError(f"Class {class_names[number]!r} has no readable image in {split}. {found.skipped_sentence()}")
    if "test_images" not in found.parts:
        found.parts = prepared.set_aside(found.parts, "test", 0.2, class_names)
        rules.append("There is no test folder, so 20 % of each class were set aside for it.")
    return found


def _folders(files: Files) -> dict[str, Files]:
    # The folders at the top, and what is in each.
    folders = {}
    for path, file in files.items():
        name, slash, rest = path.partition("/")
        if slash:
            folders.setdefault(name, {}).update({rest: file} if rest else {})
    return folders


def _split_of(name: str, longer: bool = False) -> str | None:
    # Which split a folder's name says it is; longer: also in names such as training_set and seg_train.
    word = name.lower()
    if longer:
        word = re.split("[ _.-]", re.sub("[ _.-]?(set|data|images|split)$", "", word))[-1]
    return next((split for split, names in SPLIT_NAMES.items() if word in names), None)


def _splits(folders: dict[str, Files], longer: bool) -> dict[str, list[str]]:
    # {split: names of its folders}. A class may well be called "train": then its images lie in it directly.
    splits = {}
    for name, inner in folders.items():
        split = _split_of(name, longer)
        if split == "unlabeled" or (split and _folders(inner)):
            splits.setdefault(split, []).append(name)
    return splits


def _layout(files: Files, label: str, rules: list[str]) -> dict[str, dict[str, list[tuple[str, Piece]]]]:
    # {"train": {class: [(path, file)]}, ..., "unlabeled": {"": [(path, file)]}}
    path, folders = "", _folders(files)
    while len(folders) == 1 and not _split_of(*folders) and (inside := _folders(*folders.values())):  # a wrapping
        ((name, files),) = folders.items()
        path, folders = f"{path}{name}/", inside
    rules += [f"The images were looked for in {spelled(path)}, the only folder there is."] if path else []
    splits, longer = _splits(folders, longer=False), _splits(folders, longer=True)
    if "train" not in splits and "train" in longer and longer.keys() & {"validation", "test"}:
        splits = longer
    for split, names in splits.items():
        if len(names) > 1:
            raise CourseError(f"{label} has both {names[0]!r} and {names[1]!r} for {split}. Keep one of them.")
    splits = {split: name for split, (name,) in splits.items()}
    others = {name: inner for name, inner in folders.items() if name not in splits.values()}
    classes = {split: (f"{path}{name}/", folders[name]) for split, name in splits.items()}  # split -> (path, what is in it)
    loose = [name for name in files if "/" not in name]
    if "train" in splits:
        for split, (within, inside) in classes.items():
            while len(again := _folders(inside)) == 1 and _split_of(*again, longer=True) == split:  # train/train/<class>
                ((name, inside),) = again.items()
                within += f"{name}/"
            classes[split] = (within, inside)
            rules += [f"The folder {spelled(within)} was taken for {split}."] if within != f"{split}/" else []
        rules += _told("Folders beside train without class folders in them, or with other names, were not read", [*others])
    elif splits.keys() - {"unlabeled"}:
        raise CourseError(f"{label} has a test or validation folder but no train/<class>/ with images. Add one.")
    else:
        flat = [name for name, inner in folders.items() if inner and not _folders(inner)]
        said = {_split_of(name, longer=True) for name in flat}
        longer = len(flat) == len(folders) and "train" in said and None not in said  # nothing but seg_train and seg_test
        flat = {name: split for name in flat if (split := _split_of(name, longer)) not in (None, "unlabeled")}
        if len(set(flat.values())) > 1:
            way = "Nothing says what an image shows: sort them into train/<class>/ and test/<class>/, or into <class>/ alone."
            raise CourseError(f"{label} has the folders {' and '.join(flat)}, and no class folders in them. {way}")
        if others and all(_folders(inner) and all(map(_split_of, _folders(inner))) for inner in others.values()):
            raise CourseError(f"{label} has the splits inside of the classes. Turn them round: train/<class>/ and test/<class>/.")
        rules += [f"The folder {name!r} was taken for a class, because images lie in it directly." for name in flat]
        classes["train"] = (path, {inside: file for inside, file in files.items() if inside.partition("/")[0] in others})
    layout, forms, nested = {}, {}, []
    for split in (split for split in SPLIT_NAMES if split in classes):
        within, inside = classes[split]
        if split == "unlabeled":
            pictures = [(spelled(within + path), file) for path, file in inside.items() if file]
            layout |= {split: {"": pictures}} if pictures else {}
            continue
        layout[split] = {}
        loose += [within + name for name in inside if "/" not in name]
        for name, inner in _folders(inside).items():
            forms.setdefault(spelled(name), set()).add(name)
            pictures = layout[split].setdefault(spelled(name), [])
            pictures += [(spelled(f"{within}{name}/{path}"), file) for path, file in inner.items() if file]
            nested += [f"{within}{name}/{deeper}" for deeper in _folders(inner)]
    if not any(layout["train"].values()):
        raise CourseError(f"{label} has no images in class folders. It needs train/<class>/*.jpg and test/<class>/*.jpg, or <class>/*.jpg.")
    if len(layout["train"]) == 1:
        raise CourseError(f"{label} has images of one class only, {min(layout['train'])!r}. A classifier needs at least two class folders.")
    several = [name for name in sorted(forms) if len(forms[name]) > 1]
    guessed = [name for name in sorted(forms) if re.search("[\udc80-\udcff]", "".join(forms[name]))]
    rules += _told("Class folders with the same name in two spellings (Unicode forms) were taken for one class", several)
    rules += _told("Class names that are not UTF-8 were read as an old code page; rename the folders if wrong", guessed)
    rules += _told("Folders inside a class were read as part of it", nested)
    rules += _told("Files outside of the class folders were not read", loose)
    return layout


def _common_size(files: Sequence[Piece]) -> int:
    sizes = set()
    for file in files[:: max(1, len(files) // 64)]:
        with suppress(Exception), file.open() as stream, Image.open(stream) as image:  # they are reported when all files are read
            sizes.add(image.size)
    width, height = sizes.pop() if len(sizes) == 1 else (0, 0)
    return width if width == height and 8 <= width <= 128 else 96


def _read_images(found: FolderImages, chosen: dict[str, list], size: int, work: Path, bar: tqdm) -> None:
    done, values, deep = Counter(), [], []  # deep: what needs a common scale
    for split, pairs in chosen.items():
        images = prepared.new_map(work / f"decoded-{split}.npy", (len(pairs), 3, size, size))

        def attempt(row: int, images=images, pairs=pairs) -> tuple | str:
            (path, file), _ = pairs[row]
            try:
                pixels, *told = image_files.decode(path, file, size)
                images[row] = 0 if pixels is None else pixels
                return told
            except Exception as error:  # a damaged file can make a decoder raise nearly anything
                return image_files.reason(path, file, error)

        good = []
        with ThreadPool(min(8, os.cpu_count() or 1)) as pool:
            for row, result in enumerate(pool.imap(attempt, range(len(pairs)), chunksize=64)):
                bar.update()
                if isinstance(result, str):
                    found.skipped.append((pairs[row][0][0], result))
                    continue
                good.append(row)
                values += result[0]
                done.update(result[1])
                if result[1] & {"whole", "floats"}:
                    deep.append((images, row, *pairs[row][0], *result[0]))
        kept = images if len(good) == len(pairs) else prepared.Rows(images, np.array(good, np.int64))
        if split != "unlabeled":
            found.parts |= {f"{split}_images": kept, f"{split}_labels": np.array([label for _, label in pairs], np.int64)[good]}
        elif good:
            found.parts["unlabeled"] = kept
    if deep:  # one scale for all of them, or a bright image and a dark one would look alike
        scale = image_files.common_scale(min(low for *_, low, _ in deep), max(high for *_, high in deep), not done["floats"])
        for images, row, path, file, *_ in deep:
            images[row], _, notes = image_files.decode(path, file, size, scale)
            done.update(notes)
        how = f"{scale[0]:g}..{scale[1]:g} became 0..255, by one rule for the whole set"
        found.rules.append(f"{len(deep):,} images have more than 8 bits, a sign or fractions: {how}.")
    found.values = min(values, default=0), max(values, default=255)
    if done["upper"] and found.values[1] < 64:
        raise CourseError("The images have 16 bits a colour and use less than a quarter of them. Scale them to 8 bits a colour first.")
    found.rules += [f"{done[key]:,} of {len(values) // 2:,} images were {told}." for key, told in image_files.DONE.items() if done[key]]
