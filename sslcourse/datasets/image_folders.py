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
from sslcourse.datasets.archives import Piece, Tree
from sslcourse.errors import CourseError

SPLIT_NAMES = {
    "train": ("train", "training"), "validation": ("validation", "val", "valid"), "test": ("test", "testing"),
    "unlabeled": ("unlabeled", "unlabelled"),
}  # fmt: skip
IGNORED = set(  # thumbnails, waste and notes that desktops and network drives keep among the images, besides what begins with a dot
    "__macosx|thumbs.db|ehthumbs.db|ehthumbs_vista.db|desktop.ini|icon\r|$recycle.bin|recycler|system volume information|lost+found"
    "|@eadir|@recycle|@recently-snapshot|@tmp|#recycle|#snapshot|network trash folder|temporary items|__pycache__".split("|")
)
NAMED = 10  # unreadable files, or reasons, that a message lists


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
        if not self.skipped:
            return ""
        reasons = {}
        for path, reason in self.skipped:
            reasons.setdefault(reason, []).append(path)
        told = listed([f"{listed(paths)} ({reason})" for reason, paths in reasons.items()])
        return f"{len(self.skipped):,} file{'s' if len(self.skipped) > 1 else ''} {what}: {told}."


def listed(names: Sequence[str]) -> str:
    """The first ten names and how many more there are."""
    return "; ".join(names[:NAMED]) + (f"; and {len(names) - NAMED:,} more" if len(names) > NAMED else "")


def spelled(name: str) -> str:
    """A file's name as people read it: composed (NFC); bytes that are not UTF-8 as the old code pages of DOS or Windows have them."""
    raw = name.encode("utf-8", "surrogateescape")
    with suppress(UnicodeDecodeError):
        return unicodedata.normalize("NFC", raw.decode())
    dos = all(byte < 0x80 or 0x80 <= byte <= 0xA5 for byte in raw)  # where DOS has its letters, Windows has signs
    return raw.decode("cp437" if dos else "cp1252", errors="backslashreplace")


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is left out."""
    return name.startswith(".") or name.lower() in IGNORED


def tree(folder: Path) -> Tree:
    """A folder on disk as `read` takes it. Links and devices are None in it: each folder is read where it is, and none outside."""
    found = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            name = os.fsencode(entry.name).decode("utf-8", "surrogateescape")
            if entry.is_dir(follow_symlinks=False):
                found[name] = tree(Path(entry.path))
            else:
                found[name] = Piece(Path(entry.path)) if entry.is_file(follow_symlinks=False) else None
    return found


def read(tree: Tree, work: Path, size: int | None = None, *, label: str, strict=False, limit: int | None = None) -> FolderImages:
    """Read image files by folders, from the `tree` of a folder or of `archives.spool`; the images are memory-mapped in the folder `work`.

    Layouts: train/<class>/..., test/<class>/..., if you like validation/<class>/... and unlabeled/...; or only <class>/... Without a test
    folder a stratified 20 % of train becomes the test set (`prepared.set_aside`, seed 0). Wrapping folders are looked through; hidden files
    and links are left out. Classes and files are taken in sorted order. Images become uint8 (N, 3, size, size): see `image_files.decode`.
    Every such decision is a sentence in `rules`.

    size: pixels, 8..512; None takes the images' own size if they are all square, equal, and at most 128, else 96. label: what messages call
    the folder. strict: refuse files that cannot be read instead of skipping them. limit: at most that many files a class and split.
    CourseError for a layout without images or without classes, a single class, an empty class, or a class in test that train lacks.
    """
    hidden, links, rules = Counter(), [], []
    tree = _clean("", tree, hidden, links)
    if hidden:
        rules.append(f"Hidden files and those of desktops and network drives were left out: {listed(sorted(hidden))}.")
    followed = "Links were not followed, lest an image be read twice or from elsewhere (cp -rL copies what they lead to): "
    rules += [f"{followed}{listed(links)}."] if links else []
    try:
        layout = _layout("", tree, label, rules)
    except CourseError as error:
        raise CourseError(f"{error} {followed}{listed(links)}." if links else str(error)) from None
    class_names = sorted(layout["train"])
    chosen = {}  # split -> [((path, file), label)]
    for split, classes in layout.items():
        if split == "unlabeled":
            chosen[split] = [(file, -1) for file in classes[:limit]]
            continue
        for name in sorted(classes):
            if name not in class_names:
                raise CourseError(f"{split}/{name} in {label} has no counterpart in train. Every class needs train/<class>; rename one.")
            if not classes[name]:
                raise CourseError(f"The folder of class {name!r} ({split}) in {label} is empty. Put images there, or remove it.")
        if absent := set(class_names) - set(classes):
            rules.append(f"There is no {split} folder for {listed(sorted(absent))}.")
        chosen[split] = [(file, class_names.index(name)) for name in sorted(classes) for file in classes[name][:limit]]
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
        for label in sorted({label for _, label in chosen[split]} - set(found.parts[f"{split}_labels"].tolist())):
            raise CourseError(f"Class {class_names[label]!r} has no readable image in {split}. {found.skipped_sentence()}")
    if "test_images" not in found.parts:
        images, labels = found.parts["train_images"], found.parts["train_labels"]
        kept, aside = prepared.set_aside(labels, fraction=0.2, seed=0, class_names=class_names)
        for split, rows in (("train", kept), ("test", aside)):
            found.parts |= {f"{split}_images": prepared.Rows(images, rows), f"{split}_labels": labels[rows]}
        rules.append("There is no test folder, so 20 % of each class were set aside for it.")
    return found


def _clean(path: str, tree: Tree, hidden: Counter, links: list[str]) -> Tree:
    # The same tree, sorted, without what is hidden, and without links.
    kept = {}
    for name in sorted(tree):
        if is_hidden(name):
            hidden[spelled(name)] += 1
        elif tree[name] is None:
            links.append(path + spelled(name))
        else:
            kept[name] = _clean(f"{path}{spelled(name)}/", tree[name], hidden, links) if isinstance(tree[name], dict) else tree[name]
    return kept


def _folders(tree: Tree) -> dict[str, Tree]:
    return {name: inner for name, inner in tree.items() if isinstance(inner, dict)}


def _files(path: str, tree: Tree) -> list[tuple[str, Piece]]:
    # All files below, with their paths, in a fixed order.
    files = []
    for name, inner in tree.items():
        files += _files(f"{path}{spelled(name)}/", inner) if isinstance(inner, dict) else [(path + spelled(name), inner)]
    return files


def _split_of(name: str, longer: bool = False) -> str | None:
    # Which split a folder's name says it is; longer: also in names such as training_set and seg_train.
    word = name.lower()
    if longer:
        word = re.split("[ _.-]", re.sub("[ _.-]?(set|data|images|split)$", "", word))[-1]
    return next((split for split, names in SPLIT_NAMES.items() if word in names), None)


def _splits(folders: dict[str, Tree], longer: bool) -> dict[str, list[str]]:
    # {split: names of its folders}. A class may well be called "train": then its images lie in it directly.
    names = {split: [name for name in folders if _split_of(name, longer) == split] for split in SPLIT_NAMES}
    names = {split: [name for name in names[split] if split == "unlabeled" or _folders(folders[name])] for split in names}
    return {split: found for split, found in names.items() if found}


def _layout(path: str, tree: Tree, label: str, rules: list[str]) -> dict:
    # {"train": {class: files}, ..., "unlabeled": files}
    folders = _folders(tree)
    if len(folders) == 1:
        ((name, inner),) = folders.items()
        if not _split_of(name) and _folders(inner):  # a wrapping
            return _layout(f"{path}{spelled(name)}/", inner, label, rules)
    rules += [f"The images were looked for in {path}, the only folder there is."] if path else []
    splits, longer = _splits(folders, longer=False), _splits(folders, longer=True)
    if "train" not in splits and "train" in longer and longer.keys() & {"validation", "test"}:
        splits = longer
    for split, names in splits.items():
        if len(names) > 1:
            raise CourseError(f"{label} has both {names[0]!r} and {names[1]!r} for {split}. Keep one of them.")
    flat = {name: _split_of(name) for name, inner in folders.items() if inner and not _folders(inner)}
    if len(flat) == len(folders) and "train" in (others := {_split_of(name, longer=True) for name in flat}) and None not in others:
        flat = {name: _split_of(name, longer=True) for name in flat}  # nothing but seg_train and seg_test
    flat = {name: split for name, split in flat.items() if split not in (None, "unlabeled")}
    loose = [spelled(name) for name, inner in tree.items() if not isinstance(inner, dict)]
    if "train" in splits:
        classes = {}
        for split, (name,) in splits.items():
            within, inside = f"{path}{spelled(name)}/", folders[name]
            while len(again := _folders(inside)) == 1 and _split_of(*again, longer=True) == split:  # train/train/<class>
                ((name, inside),) = again.items()
                within += f"{spelled(name)}/"
            classes[split] = (within, inside)
        rules += [f"The folder {within} was taken for {split}." for split, (within, _) in classes.items() if within != f"{split}/"]
        if others := [spelled(name) for name in folders if [name] not in splits.values()]:
            rules.append(f"Folders beside train without class folders in them, or with other names, were not read: {listed(others)}.")
    elif splits.keys() - {"unlabeled"}:
        raise CourseError(f"{label} has a test or validation folder but no train/<class>/ with images. Add one.")
    else:
        if len(set(flat.values())) > 1:
            way = "Nothing says what an image shows: sort them into train/<class>/ and test/<class>/, or into <class>/ alone."
            raise CourseError(f"{label} has the folders {' and '.join(flat)}, and no class folders in them. {way}")
        inside = {name: inner for name, inner in folders.items() if [name] not in splits.values()}
        if inside and all(_folders(inner) and all(map(_split_of, _folders(inner))) for inner in inside.values()):
            raise CourseError(f"{label} has the splits inside of the classes. Turn them round: train/<class>/ and test/<class>/.")
        rules += [f"The folder {name!r} was taken for a class, because images lie in it directly." for name in flat]
        classes = {"train": (path, inside)} | {name: (f"{path}{name}/", folders[name]) for (name,) in splits.values()}
    layout, forms, nested = {}, {}, []
    for split, (within, inside) in classes.items():
        if split == "unlabeled":
            layout |= {split: pictures} if (pictures := _files(within, inside)) else {}
            continue
        layout[split] = {}
        loose += [within + spelled(name) for name, inner in inside.items() if not isinstance(inner, dict)]
        for name, inner in _folders(inside).items():
            forms.setdefault(spelled(name), set()).add(name)
            layout[split].setdefault(spelled(name), []).extend(_files(f"{within}{spelled(name)}/", inner))
            nested += [f"{within}{spelled(name)}/{spelled(deeper)}" for deeper in _folders(inner)]
    if not any(layout["train"].values()):
        raise CourseError(f"{label} has no images in class folders. It needs train/<class>/*.jpg and test/<class>/*.jpg, or <class>/*.jpg.")
    if len(layout["train"]) == 1:
        raise CourseError(
            f"{label} has images of one class only, {[*layout['train']][0]!r}. A classifier needs at least two class folders."
        )
    if several := [name for name in sorted(forms) if len(forms[name]) > 1]:
        rules.append(f"Class folders with the same name in two spellings (Unicode forms) were taken for one class: {listed(several)}.")
    if guessed := [name for name in sorted(forms) if re.search("[\udc80-\udcff]", "".join(forms[name]))]:
        rules.append(f"Class names that are not UTF-8 were read as an old code page; rename the folders if wrong: {listed(guessed)}.")
    if nested:
        rules.append(f"Folders inside a class were read as part of it: {listed(nested)}.")
    if loose:
        rules.append(f"Files outside of the class folders were not read: {listed(loose)}.")
    return {split: layout[split] for split in SPLIT_NAMES if split in layout}


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
                if Path(path).suffix.lower() in image_files.RAW:
                    return "camera raw: develop it into JPEG, for instance with darktable"
                pixels, *told = image_files.decode(file, size)
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
                values.append(result[0])
                done.update(result[1])
                if result[1] & {"whole", "floats"}:
                    deep.append((images, row, pairs[row][0][1], result[0]))
        kept = images if len(good) == len(pairs) else prepared.Rows(images, np.array(good, np.int64))
        if split != "unlabeled":
            found.parts |= {f"{split}_images": kept, f"{split}_labels": np.array([label for _, label in pairs], np.int64)[good]}
        elif good:
            found.parts["unlabeled"] = kept
    if deep:  # one scale for all of them, or a bright image and a dark one would look alike
        scale = image_files.common_scale(min(low for *_, (low, _) in deep), max(high for *_, (_, high) in deep), not done["floats"])
        for images, row, file, _ in deep:
            images[row], _, notes = image_files.decode(file, size, scale)
            done.update(notes)
        how = f"{scale[0]:g}..{scale[1]:g} became 0..255, by one rule for the whole set"
        found.rules.append(f"{len(deep):,} images have more than 8 bits, a sign or fractions: {how}.")
    if values:
        found.values = min(low for low, _ in values), max(high for _, high in values)
    if done["upper"] and found.values[1] < 64:
        raise CourseError("The images have 16 bits a colour and use less than a quarter of them. Scale them to 8 bits a colour first.")
    found.rules += [f"{done[key]:,} of {len(values):,} images were {told}." for key, told in image_files.DONE.items() if done[key]]
