"""Folders of images: which layouts are understood, what is done to each image, and what is refused."""

import io
import os
import struct
import unicodedata
import zlib

import numpy as np
import pytest
from PIL import Image

from sslcourse.datasets import image_files, image_folders
from sslcourse.datasets.archives import Piece
from sslcourse.errors import CourseError


def save(path, size=(16, 16), colour=(200, 30, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def fill(folder, classes=("cat", "dog"), count=5, size=(16, 16)):
    """`count` images per class, each with its own grey value: 10 * class + number."""
    for label, name in enumerate(classes):
        for number in range(count):
            save(folder / name / f"{number:03}.png", size, (10 * label + number,) * 3)


@pytest.fixture
def read(tmp_path_factory):
    def read(folder, **options):
        return image_folders.read(image_folders.tree(folder), tmp_path_factory.mktemp("work"), label="photos", **options)

    return read


def counts(found):
    return {part: len(array) for part, array in found.parts.items() if "labels" not in part}


def values(array):
    return array[0 : len(array)][:, 0, 0, 0].tolist()


def test_folders_for_each_split(tmp_path, read):
    fill(tmp_path / "train")
    fill(tmp_path / "test", count=2)
    found = read(tmp_path)
    assert found.class_names == ["cat", "dog"] and found.skipped == [] and found.skipped_sentence() == ""
    assert found.parts["train_images"].shape == (10, 3, 16, 16) and found.parts["train_images"].dtype == np.uint8
    assert values(found.parts["train_images"]) == [0, 1, 2, 3, 4, 10, 11, 12, 13, 14]
    assert found.parts["train_labels"].tolist() == [0] * 5 + [1] * 5 and found.parts["train_labels"].dtype == np.int64
    assert found.parts["test_labels"].tolist() == [0, 0, 1, 1]
    fill(tmp_path / "Val", count=1)
    for path in ("deep/x.png", "y.png"):
        save(tmp_path / "unlabeled" / path)
    assert counts(read(tmp_path)) == {"train_images": 10, "validation_images": 2, "test_images": 4, "unlabeled": 2}
    limited = read(tmp_path, limit=1)
    assert values(limited.parts["train_images"]) == [0, 10] and counts(limited)["test_images"] == 2 and counts(limited)["unlabeled"] == 1


def test_only_class_folders_are_split_by_class_and_always_alike(tmp_path, read):
    fill(tmp_path, ("a", "b", "c"), count=10)
    found = read(tmp_path)
    assert np.bincount(found.parts["train_labels"]).tolist() == [8, 8, 8]
    assert np.bincount(found.parts["test_labels"]).tolist() == [2, 2, 2]
    test = values(found.parts["test_images"])
    assert test == values(read(tmp_path).parts["test_images"]) and [value // 10 for value in test] == found.parts["test_labels"].tolist()
    assert sorted(values(found.parts["train_images"]) + test) == [10 * label + number for label in range(3) for number in range(10)]


@pytest.mark.parametrize("name", ["{}", "photos/photos/{}", "{}ing", "seg_{0}/seg_{0}", "{}_set", "{}-images", "{0}/{0}", "my {}"])
@pytest.mark.parametrize("spell", [str, str.upper])
def test_split_folders_by_other_names_doubled_and_in_capitals(tmp_path, read, name, spell):
    fill(tmp_path / spell(name.format("train")))
    fill(tmp_path / spell(name.format("test")), count=2)
    found = read(tmp_path)
    assert found.class_names == ["cat", "dog"] and counts(found) == {"train_images": 10, "test_images": 4}
    assert any("looked for in photos/photos/," in rule.lower() for rule in found.rules) == name.startswith("photos")
    assert any("was taken for test" in rule for rule in found.rules) == (spell(name) != "{}" or spell is str.upper)


def test_what_lies_beside_the_classes_is_said(tmp_path, read):
    fill(tmp_path / "train", ("cat", "dog", "fish"))
    fill(tmp_path / "test", count=1)
    save(tmp_path / "val" / "x.png")
    save(tmp_path / "train" / "y.png")
    save(tmp_path / "train" / "cat" / "indoors" / "z.png")
    found = read(tmp_path, limit=3)
    rules = " ".join(found.rules)
    assert counts(found) == {"train_images": 9, "test_images": 2}
    assert "no test folder for: fish" in rules and "not read: val" in rules and "train/y.png" in rules and "train/cat/indoors" in rules
    assert "At most 3" in rules
    fill(tmp_path / "flat", ("cat", "test"))
    found = read(tmp_path / "flat")
    assert found.class_names == ["cat", "test"] and "'test' was taken for a class" in found.rules[0] and "20 %" in found.rules[-1]


def test_names_in_two_spellings_and_in_other_encodings(tmp_path, read):
    for split, form in (("train", "NFC"), ("test", "NFD")):
        fill(tmp_path / split, [unicodedata.normalize(form, name) for name in ("Bär", "Löwe")], count=2)
    for raw in (b"B\xe4r", b"L\x94we"):  # as Windows and DOS wrote them
        (tmp_path / "train" / os.fsdecode(raw)).mkdir()
        save(tmp_path / "train" / os.fsdecode(raw) / "old.png", colour=(99, 0, 0))
    found = read(tmp_path)
    assert found.class_names == ["Bär", "Löwe"] and counts(found) == {"train_images": 6, "test_images": 4}
    assert sorted(values(found.parts["train_images"])) == [0, 1, 10, 11, 99, 99]
    assert "two spellings" in " ".join(found.rules) and "not UTF-8" in " ".join(found.rules)


def test_links_are_not_followed_and_circles_end(tmp_path, read):
    fill(tmp_path / "photos")
    save(tmp_path / "elsewhere" / "x.png")
    links = {"kitten": "cat", "cow": "../elsewhere", "cat/x.png": "../../elsewhere/x.png", "dog/all": "..", "bird": "gone"}
    for link, target in links.items():
        (tmp_path / "photos" / link).symlink_to(target)
    os.mkfifo(tmp_path / "photos" / "dog" / "pipe.png")
    found = read(tmp_path / "photos")
    assert found.class_names == ["cat", "dog"] and counts(found) == {"train_images": 8, "test_images": 2} and found.skipped == []
    assert all(name in found.rules[0] for name in (*links, "dog/pipe.png"))
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "cat").symlink_to(tmp_path / "photos" / "cat")
    with pytest.raises(CourseError, match="no images.*Links were not followed.*cat"):
        read(tmp_path / "linked")


def test_wrapping_folders_are_looked_through_and_rubbish_is_ignored(tmp_path, read):
    photos = tmp_path / "download" / "flower_photos"
    fill(photos)
    (photos / "LICENSE.txt").write_text("free")
    (tmp_path / "download" / "readme.txt").write_text("hello")
    save(tmp_path / "__MACOSX" / "cat" / "x.png")
    save(tmp_path / ".cache" / "cat" / "x.png")
    for name in ("@eaDir", "#recycle", "$RECYCLE.BIN", ".thumbnails", ".AppleDouble"):
        save(photos / "dog" / name / "000.png" / "thumb.jpg")
    for name in (".DS_Store", "._000.png", "Thumbs.db"):
        (photos / "cat" / name).write_bytes(b"rubbish")
    found = read(tmp_path)
    assert found.class_names == ["cat", "dog"] and counts(found) == {"train_images": 8, "test_images": 2} and found.skipped == []
    assert "@eaDir" in found.rules[0] and "__MACOSX" in found.rules[0] and "LICENSE.txt" in " ".join(found.rules)
    fill(tmp_path / "one" / "train")
    assert counts(read(tmp_path / "one")) == {"train_images": 8, "test_images": 2}
    fill(tmp_path / "two", ("boat", "train", "plane"))  # a class called train
    assert read(tmp_path / "two").class_names == ["boat", "plane", "train"]


@pytest.mark.parametrize(("size", "asked", "given"), [(24, None, 24), (24, 12, 12), (130, None, 96)])
def test_sizes(tmp_path, read, size, asked, given):
    fill(tmp_path, size=(size, size))
    assert read(tmp_path, size=asked).parts["train_images"].shape[2:] == (given, given)
    save(tmp_path / "cat" / "wide.png", (size + 6, size))
    assert read(tmp_path, size=asked).parts["train_images"].shape[2:] == (asked or 96,) * 2


def test_the_centre_is_kept_and_exif_orientation_respected(tmp_path):
    image = Image.new("RGB", (30, 10), "black")
    image.paste("white", (10, 0, 20, 10))
    image.save(tmp_path / "wide.png")
    assert (image_files.decode("wide.png", Piece(tmp_path / "wide.png"), 10)[0] == 255).all()
    assert image_files.decode("wide.png", Piece(tmp_path / "wide.png"), 5)[0][:, :, 1:4].min() > 250
    image = Image.new("RGB", (16, 16), "black")
    image.paste("white", (0, 0, 16, 8))  # upper half
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise by 90 degrees: the upper half becomes the right one
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    pixels, _, done = image_files.decode("turned.jpg", Piece(tmp_path / "turned.jpg"), 16)
    assert pixels[:, :, 10:].min() > 240 and pixels[:, :, :6].max() < 15 and done == {"turned"}


@pytest.mark.parametrize(("mode", "colour", "ending", "value"), [
    ("L", 77, "png", 77), ("CMYK", (0, 0, 0, 0), "jpg", 255), ("RGBA", (10, 20, 30, 0), "png", 255), ("P", 0, "gif", 0),
])  # fmt: skip
def test_every_mode_becomes_rgb(tmp_path, mode, colour, ending, value):
    Image.new(mode, (16, 16), colour).save(tmp_path / f"x.{ending}")
    pixels, _, _ = image_files.decode("x", Piece(tmp_path / f"x.{ending}"), 16)
    assert pixels.shape == (3, 16, 16) and np.abs(pixels.astype(int) - value).max() <= 1


@pytest.mark.parametrize(("low", "high", "dtype", "expected"), [
    (0.0, 1.0, np.float32, (0, 255)), (0.0, 200.0, np.float32, (0, 200)), (-1.5, 2.5, np.float32, (0, 255)),
    (0, 200, np.int32, (0, 200)), (-1000, 3000, np.int32, (0, 255)), (0, 4095, np.uint16, (0, 255)), (0, 65535, np.uint16, (0, 255)),
    (0, 1, np.int32, (0, 255)),
])  # fmt: skip
def test_images_of_other_depths_are_scaled_by_one_rule_that_is_said(tmp_path, read, low, high, dtype, expected):
    for name, level in (("dark", low), ("bright", high)):
        for split in ("train", "test"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.fromarray(np.full((16, 16), level).astype(dtype)).save(tmp_path / split / name / "x.tif")
    found = read(tmp_path)
    assert sorted(values(found.parts["test_images"])) == sorted(values(found.parts["train_images"])) == list(expected)
    assert found.values == (low, high) and any("4 images have more than 8 bits" in rule for rule in found.rules)
    Image.fromarray(np.full((16, 16), np.nan, np.float32)).save(tmp_path / "train" / "dark" / "nan.tif")
    assert found.skipped == [] and read(tmp_path).skipped == [("train/dark/nan.tif", "it holds values that are not finite")]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_metadata_around_a_good_picture(tmp_path):
    save(tmp_path / "good.png")
    whole = (tmp_path / "good.png").read_bytes()
    broken = (b"junk" * 4, zlib.crc32(b"eXIf" + b"junk" * 4)), (b"MM\0*", 0)
    for content, checksum in broken:
        chunk = struct.pack(">I4s", len(content), b"eXIf") + content + struct.pack(">I", checksum)
        (tmp_path / "x.png").write_bytes(whole[:33] + chunk + whole[33:])
        pixels, _, done = image_files.decode("x.png", Piece(tmp_path / "x.png"), 16)
        assert pixels[:, 0, 0].tolist() == [200, 30, 30] and done == ({"kept"} if checksum else set())
    Image.new("RGB", (16, 16)).save(tmp_path / "x.jpg", exif=b"Exif\0\0MM\0*" + b"junk" * 3)
    assert image_files.decode("x.jpg", Piece(tmp_path / "x.jpg"), 16)[2] == {"kept"}


@pytest.mark.parametrize(("name", "content", "word"), [
    ("x.heic", b"", "HEIC: convert it to JPEG"), ("x.jpg", b"\0\0\0\x18ftypheic\0\0", "HEIC"), ("x.nef", b"II*\0", "camera raw"),
    ("x.svg", b"<svg></svg>", "SVG"), ("x.avif", b"", "AVIF"), ("x.tif", b"II*\0", "TIFF"), ("x.eps", b"%!PS-Adobe", "export"),
    ("x.mp4", b"", "film"), ("x.txt", b"hello", "not an image"),
])  # fmt: skip
def test_what_is_not_read_says_which_conversion_helps(tmp_path, read, name, content, word):
    fill(tmp_path)
    (tmp_path / "cat" / name).write_bytes(content)
    ((path, reason),) = read(tmp_path).skipped
    assert path == f"cat/{name}" and word in reason


def test_unreadable_files_are_named_counted_and_skipped_or_refused(tmp_path, read, monkeypatch):
    fill(tmp_path / "train", size=(64, 64))
    fill(tmp_path / "test", size=(64, 64), count=2)
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(buffer, "jpeg")
    for name, content in {"cut.jpg": buffer.getvalue()[:1500], "empty.jpg": b"", "notes.txt": b"my cats"}.items():
        (tmp_path / "train" / "cat" / name).write_bytes(content)
    save(tmp_path / "train" / "cat" / "bomb.png", (65, 64))
    monkeypatch.setattr(image_files, "MAX_PIXELS", 64 * 64)
    found = read(tmp_path)
    skipped = dict(found.skipped)
    assert sorted(skipped) == [f"train/cat/{name}" for name in ("bomb.png", "cut.jpg", "empty.jpg", "notes.txt")]
    assert skipped["train/cat/notes.txt"] == "not an image" and "65×64" in skipped["train/cat/bomb.png"]
    assert values(found.parts["train_images"]) == [0, 1, 2, 3, 4, 10, 11, 12, 13, 14]
    assert found.parts["train_labels"].tolist() == [0] * 5 + [1] * 5 and found.parts["train_images"].shape[2] == 96
    with pytest.raises(CourseError, match="4 files cannot be read.*cut.jpg"):
        read(tmp_path, strict=True)
    found.skipped = [(f"{number:02}.jpg", "cut") for number in range(13)]
    assert "09.jpg" in found.skipped_sentence() and "10.jpg" not in found.skipped_sentence() and "3 more" in found.skipped_sentence()


LAYOUTS = {
    "a.png b.png": "no images in class folders", "train/a.png train/b.png test/c.png": "test and train, and no class folders",
    "seg_train/a.png seg_test/c.png": "no class folders",
    "cat/train/a.png cat/test/b.png dog/train/a.png dog/test/a.png": "splits inside of the classes",
    "cat/a.png cat/b.png": "one class only, 'cat'", "train/cat/a.png test/cat/b.png": "one class only, 'cat'",
    "cat/a.png cat/b.png dog/": "class 'dog'.*is empty", "train/cat/a.png train/dog/a.png test/cat/a.png test/cow/a.png": "test/cow",
    "test/cat/a.png test/dog/b.png": "no train/<class>/", "train/a/a.png train/b/a.png val/a/a.png valid/a/a.png": "both 'val' and 'valid'",
    "cat/a.png cat/b.png dog/a.png": "Class 'dog' has 1 usable",
    "cat/a.jpg dog/a.jpg": "Class 'cat' has no readable image in train.*dog/a.jpg",
}


@pytest.mark.parametrize("paths", LAYOUTS)
def test_layouts_that_are_refused(tmp_path, read, paths):
    for path in paths.split():
        if path.endswith(".png"):
            save(tmp_path / path)
            continue
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).mkdir() if path.endswith("/") else (tmp_path / path).write_text("no image")
    with pytest.raises(CourseError, match=LAYOUTS[paths]):
        read(tmp_path)
