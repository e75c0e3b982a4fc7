"""Folders of images: which layouts are understood, what is done to each image, and what is refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from sslcourse.datasets import image_folders
from sslcourse.errors import CourseError


def save(path, size=(16, 16), colour=(200, 30, 30), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)


def fill(folder, classes=("cat", "dog"), count=5, size=(16, 16)):
    """`count` images a class, each with its own grey value: 10 * class + number."""
    for label, name in enumerate(classes):
        for number in range(count):
            save(folder / name / f"{number:03}.png", size, (10 * label + number,) * 3)


def read(folder, *arguments, **options):
    return image_folders.read(folder, *arguments, progress=False, **options)


def counts(found):
    return {part: len(array) for part, array in found.parts.items() if "labels" not in part}


def values(array):
    return array[0 : len(array)][:, 0, 0, 0].tolist()


def test_train_and_test_folders(tmp_path):
    fill(tmp_path / "train")
    fill(tmp_path / "test", count=2)
    found = read(tmp_path)
    assert found.class_names == ["cat", "dog"] and found.size == 16 and found.skipped == []
    assert found.parts["train_images"].shape == (10, 3, 16, 16) and found.parts["train_images"].dtype == np.uint8
    assert values(found.parts["train_images"]) == [0, 1, 2, 3, 4, 10, 11, 12, 13, 14]
    assert found.parts["train_labels"].tolist() == [0] * 5 + [1] * 5 and found.parts["train_labels"].dtype == np.int64
    assert found.parts["test_labels"].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("name", ["validation", "val", "valid", "Val"])
def test_validation_and_unlabeled_folders(tmp_path, name):
    fill(tmp_path / "train")
    fill(tmp_path / "test", count=2)
    fill(tmp_path / name, count=1)
    save(tmp_path / "unlabeled" / "deep" / "x.png")
    save(tmp_path / "unlabeled" / "y.png")
    assert counts(read(tmp_path)) == {"train_images": 10, "test_images": 4, "validation_images": 2, "unlabeled": 2}


def test_only_class_folders_are_split_by_class_and_always_alike(tmp_path):
    fill(tmp_path, ("a", "b", "c"), count=10)
    found, again = read(tmp_path), read(tmp_path, threads=3)
    assert np.bincount(found.parts["train_labels"]).tolist() == [8, 8, 8]
    assert np.bincount(found.parts["test_labels"]).tolist() == [2, 2, 2]
    assert values(found.parts["test_images"]) == values(again.parts["test_images"])
    both = values(found.parts["train_images"]) + values(found.parts["test_images"])
    assert sorted(both) == sorted(10 * label + number for label in range(3) for number in range(10))
    # labels went along with their images
    assert [value // 10 for value in values(found.parts["test_images"])] == found.parts["test_labels"].tolist()


def test_wrapping_folders_are_looked_through_and_rubbish_is_ignored(tmp_path):
    fill(tmp_path / "download" / "flower_photos")
    (tmp_path / "download" / "flower_photos" / "LICENSE.txt").write_text("free")
    (tmp_path / "download" / "readme.txt").write_text("hello")
    save(tmp_path / "__MACOSX" / "cat" / "x.png")
    save(tmp_path / ".cache" / "cat" / "x.png")
    for name in (".DS_Store", "._000.png", "Thumbs.db"):
        (tmp_path / "download" / "flower_photos" / "cat" / name).write_bytes(b"rubbish")
    found = read(tmp_path)
    assert found.class_names == ["cat", "dog"] and counts(found) == {"train_images": 8, "test_images": 2} and found.skipped == []


def test_a_lone_train_folder_and_a_class_called_train(tmp_path):
    fill(tmp_path / "one" / "train")
    assert counts(read(tmp_path / "one")) == {"train_images": 8, "test_images": 2}
    fill(tmp_path / "two", ("boat", "train", "plane"))
    assert read(tmp_path / "two").class_names == ["boat", "plane", "train"]


def test_sizes(tmp_path):
    fill(tmp_path / "equal", size=(24, 24))
    assert read(tmp_path / "equal").size == 24
    assert read(tmp_path / "equal", 12).parts["train_images"].shape[2:] == (12, 12)
    fill(tmp_path / "mixed", size=(24, 24))
    save(tmp_path / "mixed" / "cat" / "other.png", (24, 30))
    assert read(tmp_path / "mixed").size == 96
    fill(tmp_path / "large", size=(130, 130), count=2)
    assert read(tmp_path / "large").size == 96


def test_the_centre_is_kept(tmp_path):
    image = Image.new("RGB", (30, 10), "black")
    image.paste("white", (10, 0, 20, 10))
    image.save(tmp_path / "wide.png")
    assert (image_folders.decode(tmp_path / "wide.png", 10) == 255).all()
    assert image_folders.decode(tmp_path / "wide.png", 5)[:, :, 1:4].min() > 250


def test_exif_orientation_is_respected(tmp_path):
    image = Image.new("RGB", (16, 16), "black")
    image.paste("white", (0, 0, 16, 8))  # upper half
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise by 90 degrees: the upper half becomes the right one
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    pixels = image_folders.decode(tmp_path / "turned.jpg", 16)
    assert pixels[:, :, 10:].min() > 240 and pixels[:, :, :6].max() < 15


def test_every_mode_becomes_rgb(tmp_path):
    Image.new("L", (16, 16), 77).save(tmp_path / "grey.png")
    Image.new("CMYK", (16, 16), (0, 0, 0, 0)).save(tmp_path / "print.jpg")
    Image.new("RGBA", (16, 16), (10, 20, 30, 0)).save(tmp_path / "glass.png")
    Image.new("P", (16, 16), 0).save(tmp_path / "palette.gif")
    Image.fromarray(np.full((16, 16), 257 * 100, np.uint16)).save(tmp_path / "deep.png")
    expected = {"grey.png": 77, "print.jpg": 255, "glass.png": 255, "deep.png": 100}
    for name, value in expected.items():
        pixels = image_folders.decode(tmp_path / name, 16)
        assert pixels.shape == (3, 16, 16) and np.abs(pixels.astype(int) - value).max() <= 1, name
    assert image_folders.decode(tmp_path / "palette.gif", 16).shape == (3, 16, 16)


def bomb(width, height):
    """A small .png that claims to be width × height."""

    def piece(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + piece(b"IHDR", head) + piece(b"IDAT", zlib.compress(b"")) + piece(b"IEND", b"")


@pytest.fixture
def damaged(tmp_path):
    fill(tmp_path / "train", size=(64, 64))
    fill(tmp_path / "test", size=(64, 64), count=2)
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(buffer, "jpeg")
    cat = tmp_path / "train" / "cat"
    (cat / "cut.jpg").write_bytes(buffer.getvalue()[:1500])
    (cat / "empty.jpg").write_bytes(b"")
    (cat / "notes.txt").write_text("these are my cats")
    (cat / "bomb.png").write_bytes(bomb(12_000, 11_000))
    (cat / "worse.png").write_bytes(bomb(60_000, 60_000))
    return tmp_path


def test_unreadable_files_are_named_counted_and_skipped(damaged):
    found = read(damaged, workspace=None)
    skipped = dict(found.skipped)
    assert sorted(skipped) == [f"train/cat/{name}" for name in ("bomb.png", "cut.jpg", "empty.jpg", "notes.txt", "worse.png")]
    assert skipped["train/cat/notes.txt"] == "not an image" and "12000×11000" in skipped["train/cat/bomb.png"]
    assert values(found.parts["train_images"]) == [0, 1, 2, 3, 4, 10, 11, 12, 13, 14]
    assert found.parts["train_labels"].tolist() == [0] * 5 + [1] * 5
    assert found.skipped_sentence().startswith("5 files skipped: train/cat/bomb.png (")


def test_strict_refuses_them(damaged):
    with pytest.raises(CourseError, match="5 files cannot be read.*cut.jpg.*--strict"):
        read(damaged, strict=True)


def test_a_long_list_is_shortened(tmp_path):
    fill(tmp_path)
    for number in range(13):
        (tmp_path / "cat" / f"z{number:02}.jpg").write_bytes(b"x")
    sentence = read(tmp_path).skipped_sentence()
    assert "z09.jpg" in sentence and "z10.jpg" not in sentence and sentence.endswith("and 3 more.")


def test_a_workspace_holds_the_pixels(tmp_path):
    fill(tmp_path / "images")
    (tmp_path / "work").mkdir()
    mapped = read(tmp_path / "images", workspace=tmp_path / "work")
    assert values(mapped.parts["train_images"]) == values(read(tmp_path / "images").parts["train_images"])
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["decoded-train.npy"]


def test_limit_takes_the_first_of_each_class(tmp_path):
    fill(tmp_path / "train")
    fill(tmp_path / "test", count=4)
    found = read(tmp_path, limit=3)
    assert values(found.parts["train_images"]) == [0, 1, 2, 10, 11, 12] and counts(found)["test_images"] == 6


def test_layouts_that_are_refused(tmp_path):
    def refused(name, match, *paths, empty=()):
        for path in paths:
            save(tmp_path / name / path)
        for path in empty:
            (tmp_path / name / path).mkdir(parents=True)
        with pytest.raises(CourseError, match=match):
            read(tmp_path / name)

    with pytest.raises(CourseError, match="no folder"):
        read(tmp_path / "missing")
    refused("nothing", "no images in class folders.*train/<class>", empty=["."])
    refused("flat", "no images in class folders", "a.png", "b.png")
    refused("single", "one class only, 'cat'", "cat/a.png", "cat/b.png")
    refused("alone", "one class only, 'cat'", "train/cat/a.png", "test/cat/b.png")
    refused("hollow", "class 'dog'.*is empty", "cat/a.png", "cat/b.png", empty=["dog"])
    refused("stranger", "test/cow .*no counterpart in train", "train/cat/a.png", "train/dog/a.png", "test/cat/a.png", "test/cow/a.png")
    refused("trainless", "no train/<class>/", "test/cat/a.png", "test/dog/b.png")
    refused("twice", "both 'val' and 'valid'", "train/a/a.png", "train/b/a.png", "val/a/a.png", "valid/a/a.png")
    refused("few", "Class 'dog' has 1 usable", "cat/a.png", "cat/b.png", "dog/a.png")
    for path in ("unreadable/cat/a.jpg", "unreadable/dog/a.jpg"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text("no image")
    with pytest.raises(CourseError, match="Class 'cat' has no readable image in train.*dog/a.jpg"):
        read(tmp_path / "unreadable")
