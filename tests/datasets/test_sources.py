"""Preparing data sets: the original files of STL-10 and CIFAR-10, downloads from a server on this machine, and archives of one's own."""

import errno
import hashlib
import io
import os
import pickle
import re
import shutil
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10, STL10

from sslcourse import datasets
from sslcourse.datasets import image_folders, prepared, sources
from sslcourse.errors import CourseError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def publish(server, monkeypatch):
    """Offer an archive in place of the download of `name`, with its real checksum in the table."""

    def publish(name, archive, checksum=True):
        server.content = archive.read_bytes()
        md5 = f"md5:{hashlib.md5(server.content).hexdigest()}" if checksum else None
        monkeypatch.setitem(sources.SOURCES, name, (f"http://example.invalid/{archive.name}", md5, 1000))
        monkeypatch.setenv(sources.MIRROR, server.url.rpartition("/")[0])
        archive.unlink()

    return publish


def packed(folder):
    """The folder as a .tar.gz beside it, in its place."""
    archive = folder.with_name(folder.name + ".tar.gz")
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, folder.name)
    shutil.rmtree(folder)
    return archive


def sums(folder, *names):
    return [[name, hashlib.md5((folder / name).read_bytes()).hexdigest()] for name in names]


@pytest.fixture
def stl10(tmp_path, monkeypatch):
    """The files of STL-10, small, in the layout of the originals. -> folder, images by part, as they should look afterwards"""
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    rng = np.random.default_rng(0)
    images = {}
    for part, count in (("train", 40), ("test", 20), ("unlabeled", 7)):
        images[part] = rng.integers(0, 256, (count, 3, 96, 96), dtype=np.uint8)
        (folder / f"{part}_X.bin").write_bytes(images[part].transpose(0, 1, 3, 2).tobytes())  # column by column
        if part != "unlabeled":
            (folder / f"{part}_y.bin").write_bytes(bytes(1 + i % 10 for i in range(count)))
    (folder / "class_names.txt").write_text("\n".join("airplane bird car cat deer dog horse monkey ship truck".split()) + "\n")
    monkeypatch.setattr(STL10, "train_list", sums(folder, "train_X.bin", "train_y.bin", "unlabeled_X.bin"))
    monkeypatch.setattr(STL10, "test_list", sums(folder, "test_X.bin", "test_y.bin"))
    return folder, images


def test_stl10_is_read_pixel_by_pixel_as_torchvision_reads_it(tmp_path, stl10):
    folder, images = stl10
    class_names, parts = sources.read_stl10(image_folders.tree(folder))
    for part, key in (("train", "train_images"), ("test", "test_images"), ("unlabeled", "unlabeled")):
        assert np.array_equal(parts[key], images[part])
    assert parts["test_labels"].tolist() == [i % 10 for i in range(20)] and class_names[7] == "monkey"
    theirs = STL10(folder.parent, split="train")
    assert np.array_equal(np.asarray(theirs[3][0]).transpose(2, 0, 1), parts["train_images"][3])
    assert [int(theirs[i][1]) for i in range(40)] == parts["train_labels"].tolist()
    sources.prepare("stl10", tmp_path / "data", source=folder, limit=3)
    loaded = datasets.load("stl10", tmp_path / "data")
    assert torch.bincount(torch.cat([loaded.train_labels, loaded.validation_labels])).tolist() == [3] * 10 and len(loaded.test_images) == 20


def test_stl10_from_the_download_to_the_image_set_once_unless_forced(tmp_path, stl10, server, publish):
    folder, images = stl10
    publish("stl10", packed(folder))
    report = sources.prepare("stl10", tmp_path / "data", size=48)
    assert report.made and "30 train · 10 validation · 20 test" in report.sentence and "48×48" in report.sentence
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["stl10", "stl10-48"]
    loaded = datasets.load("stl10", tmp_path / "data")
    assert np.array_equal(loaded.unlabeled, images["unlabeled"]) and np.array_equal(loaded.test_images, images["test"])
    assert (len(loaded.train_images), len(loaded.validation_images), loaded.size) == (30, 10, 96)
    address = server.url.replace("file.bin", "stl10_binary.tar.gz")  # on the mirror
    assert prepared.read_about(tmp_path / "data" / "stl10")["source"] == address
    again = sources.prepare("STL10", tmp_path / "data")
    assert not again.made and "nothing was done" in again.sentence and len(server.asked) == 1
    assert sources.prepare("stl10", tmp_path / "data", force=True).made and len(server.asked) == 2
    (tmp_path / "data" / "stl10" / "test_labels.npy").unlink()
    assert sources.prepare("stl10", tmp_path / "data", keep_archive=True).made  # what is damaged is made again
    assert len(datasets.load("stl10", tmp_path / "data").test_labels) == 20
    assert (tmp_path / "data" / "downloads" / "stl10_binary.tar.gz").exists()


STL10_FILES = {"train_X.bin": b"x" * 1000, "test_y.bin": b"\1" * 20, "unlabeled_X.bin": None, "class_names.txt": b"cat dog"}


@pytest.mark.parametrize("file", STL10_FILES)
def test_damaged_stl10_files_are_named(tmp_path, stl10, file):
    (stl10[0] / file).write_bytes(STL10_FILES[file]) if STL10_FILES[file] else (stl10[0] / file).unlink()
    with pytest.raises(CourseError, match=file):
        sources.prepare("stl10", tmp_path / "data", source=stl10[0])
    assert list((tmp_path / "data").iterdir()) == []


@pytest.fixture
def cifar10(tmp_path, monkeypatch):
    """The files of CIFAR-10, small. -> folder, images and labels by file"""
    folder, rng, images, labels = tmp_path / "cifar-10-batches-py", np.random.default_rng(1), {}, {}
    folder.mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        images[name] = rng.integers(0, 256, (40, 3, 32, 32), dtype=np.uint8)
        labels[name] = [int(i) for i in rng.permutation(np.arange(40) % 10)]
        (folder / name).write_bytes(pickle.dumps({"data": images[name].reshape(40, 3072), "labels": labels[name]}, protocol=2))
    names = "airplane automobile bird cat deer dog frog horse ship truck".split()
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names, "num_vis": 3072}, protocol=2))
    monkeypatch.setattr(CIFAR10, "train_list", sums(folder, *list(images)[:5]))
    monkeypatch.setattr(CIFAR10, "test_list", sums(folder, "test_batch"))
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums(folder, "batches.meta")[0][1]})
    return folder, images, labels


def test_cifar10_from_the_download_to_the_image_set(tmp_path, cifar10, server, publish, capsys):
    folder, images, labels = cifar10
    publish("cifar10", packed(folder))
    assert sources.prepare("cifar10", tmp_path / "data").made
    assert "cifar10 is downloaded once: 170.5 MB from" in (said := capsys.readouterr().out) and "3 min at 1 MB/s" in said
    assert not sources.prepare("cifar10", tmp_path / "data").made and capsys.readouterr().out == ""
    loaded = datasets.load("cifar10", tmp_path / "data")
    assert np.array_equal(loaded.test_images, images["test_batch"]) and loaded.test_labels.tolist() == labels["test_batch"]
    assert (len(loaded.train_images), len(loaded.validation_images)) == (180, 20) and loaded.unlabeled is loaded.train_images
    known = {image.tobytes(): label for name in images for image, label in zip(images[name], labels[name], strict=True)}
    assert [known[image.numpy().tobytes()] for image in loaded.train_images] == loaded.train_labels.tolist()


def test_a_batch_that_is_damaged_or_runs_something_is_refused_by_name(tmp_path, cifar10):
    class Evil:
        def __reduce__(self):
            return (Path.write_text, (tmp_path / "evil", "ran"))

    batch = cifar10[0] / "data_batch_3"
    for content in (pickle.dumps({"data": Evil(), "labels": []}), batch.read_bytes()[:500]):
        batch.write_bytes(content)
        with pytest.raises(CourseError, match="data_batch_3"):
            sources.read_cifar10(image_folders.tree(cifar10[0]))
    assert not (tmp_path / "evil").exists()


def photos_zip(path, prefix="", classes=("Cat", "Dog"), broken=False):
    with zipfile.ZipFile(path, "w") as file:
        for label, name in enumerate(classes):
            for number in range(10):
                buffer = io.BytesIO()
                Image.new("RGB", (120, 100), (100 * label, 10 * number, 0)).save(buffer, "jpeg")
                file.writestr(f"{prefix}{name}/{number}.jpg", buffer.getvalue())
            if broken:
                file.writestr(f"{prefix}{name}/broken.jpg", b"")
        file.writestr("readme[1].txt", "hello")
    return path


def test_cats_and_dogs_with_their_corrupt_files(tmp_path, server, publish):
    archive = photos_zip(tmp_path / "kagglecatsanddogs_5340.zip", "PetImages/", broken=True)
    publish("cats-vs-dogs", archive, checksum=False)
    report = sources.prepare("cats-vs-dogs", tmp_path / "data")
    assert "2 files skipped: PetImages/Cat/broken.jpg" in report.sentence
    loaded = datasets.load("cats-vs-dogs", tmp_path / "data")
    assert loaded.class_names == ["Cat", "Dog"] and loaded.size == 96
    assert [len(part) for part in (loaded.train_images, loaded.validation_images, loaded.test_images)] == [14, 2, 4]
    assert ((loaded.test_images[:, 0].float().mean((1, 2)) > 50).long() == loaded.test_labels).all()
    with pytest.raises(CourseError, match="2 files cannot be read.*--strict"):
        sources.prepare("cats-vs-dogs", tmp_path / "data", strict=True, force=True)
    assert len(datasets.load("cats-vs-dogs", tmp_path / "data").test_images) == 4  # the old one is still there


def test_own_images_from_an_archive_and_from_a_folder(tmp_path):
    archive = photos_zip(tmp_path / "photos.zip", classes=("a", "b", "c"))
    sources.prepare("my-photos", tmp_path / "data", source=archive, size=24)
    shutil.unpack_archive(archive, tmp_path / "photos")
    sources.prepare("flowers", tmp_path / "data", source=tmp_path / "photos", size=24)  # a known name can be filled too
    ours, others = datasets.load("my-photos", tmp_path / "data"), datasets.load("flowers", tmp_path / "data")
    assert ours.size == 24 and torch.equal(ours.train_images, others.train_images) and torch.equal(ours.test_labels, others.test_labels)
    assert archive.exists() and sorted(path.name for path in (tmp_path / "data").iterdir()) == ["flowers", "my-photos"]


def test_what_was_read_is_said_and_another_preparation_of_the_same_name_is_refused(tmp_path):
    photos, data = tmp_path / "photos", tmp_path / "data"
    shutil.unpack_archive(photos_zip(tmp_path / "photos.zip", classes=("a", "b"), broken=True), photos)
    report = sources.prepare("mine", data, source=photos, size=24)
    told = "\n".join(report.details)
    assert "a 7 · 1 · 2; b 7 · 1 · 2." in told and "20 of 20 images were cut" in told
    assert re.search(r"pixels: 0\.\.10\d in the files, \d\.\.10\d as", told)
    (photos / "a" / ".DS_Store").write_bytes(b"a visit")
    again = sources.prepare("mine", data, source=photos, size=24)
    assert not again.made and again.details == report.details
    (photos / "a" / "new.jpg").write_bytes(b"")
    for match, options in {
        "another source, or before this one changed": {"size": 24}, "another source": {"source": tmp_path / "photos.zip"},
        "size 24": {}, "limit none, not 5": {"limit": 5}, "2 files skipped": {"strict": True},
    }.items():  # fmt: skip
        with pytest.raises(CourseError, match=f"prepared otherwise.*{match}.*--force"):
            sources.prepare("mine", data, **{"source": photos, **options})
    assert sources.prepare("mine", data, source=photos, size=32, force=True).made and datasets.load("mine", data).size == 32
    for name in ("data_batch_1", "test_batch", "train_X.bin"):  # called like the files of CIFAR-10 and STL-10
        shutil.copytree(photos / "a", photos / name)
    assert "data_batch_1" in str(sources.prepare("yours", data, source=photos).details)
    many = [f"class {number:03}" for number in range(120)]
    shown = "".join(sources.prepare("many", data, source=photos_zip(tmp_path / "many.zip", classes=many), size=8).details)
    assert "class 009" in shown and "class 010" not in shown and "110 more" in shown
    assert "The smallest class is class 000 7 · 1 · 2" in shown


def test_what_hinders_is_said_as_it_is(tmp_path, monkeypatch):
    archive, data = photos_zip(tmp_path / "p.zip"), tmp_path / "data"
    quota, forbidden = OSError(errno.EDQUOT, "Disk quota exceeded"), PermissionError(errno.EACCES, "Permission denied")
    with monkeypatch.context() as patch, pytest.raises(CourseError, match="your quota on this disk is used up"):
        patch.setattr(os, "posix_fallocate", Mock(side_effect=quota), raising=False)
        sources.prepare("mine", data, source=archive)
    assert list(data.iterdir()) == []
    (data / ".mine.lock").touch()
    with monkeypatch.context() as patch, pytest.raises(CourseError, match=r"\.mine\.lock is another user's"):
        patch.setattr(prepared.FileLock, "acquire", Mock(side_effect=forbidden))
        sources.prepare("mine", data, source=archive)
    sources.prepare("mine", data, source=archive)
    for place, name in ((np, "load"), (Path, "read_text"), (os, "listdir")):
        with monkeypatch.context() as patch, pytest.raises(CourseError, match="cannot be read: you have no permission for it") as error:
            patch.setattr(place, name, Mock(side_effect=forbidden))
            datasets.load("mine", data)
        assert "damaged" not in str(error.value) and "Delete" not in str(error.value)
    (data / "mine").rename(data / "toybox")  # somebody's images are not drawn over
    with pytest.raises(CourseError, match="holds another data set, from p.zip"):
        datasets.load("toybox", data)


@pytest.mark.parametrize("page", [True, False])
def test_broken_archives_leave_nothing_and_a_broken_download_can_be_got_again(tmp_path, server, publish, page):
    archive = photos_zip(tmp_path / "photos.zip")
    whole = archive.read_bytes()
    archive.write_bytes(b"<html>Please log in</html>" if page else whole[:-200])
    with pytest.raises(CourseError, match="photos.zip is broken or incomplete"):
        sources.prepare("mine", tmp_path / "data", source=archive)
    publish("cats-vs-dogs", archive, checksum=False)
    with pytest.raises(CourseError, match="photos.zip is broken or incomplete.*was removed"):
        sources.prepare("cats-vs-dogs", tmp_path / "data")
    assert list((tmp_path / "data").rglob("*")) == []
    server.content = whole
    assert sources.prepare("cats-vs-dogs", tmp_path / "data").made


def test_a_disk_without_room_or_that_becomes_full_is_named_and_keeps_nothing(tmp_path, server, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(CourseError, match="mine .*the disk is full"):
        patch.setattr(np.lib.format, "write_array_header_1_0", Mock(side_effect=OSError(28, "No space left on device")))
        sources.prepare("mine", tmp_path / "data", source=photos_zip(tmp_path / "p.zip"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5_000_000_000))
    with pytest.raises(CourseError, match=r"Preparing stl10 needs 9\.0 GB free, and .* has 5\.0 GB"):
        sources.prepare("stl10", tmp_path / "data")
    assert server.asked == [] and list((tmp_path / "data").iterdir()) == []


def test_names_limits_and_sizes_that_are_refused(tmp_path):
    archive = photos_zip(tmp_path / "p.zip")
    for name in ("", "../x", ".x", "Toybox", "downloads", "CON", "toybox-x", "photos-64", "x."):
        with pytest.raises(CourseError, match="name"):
            sources.prepare(name, tmp_path / "data", source=archive)
    for option, value in (("limit", 2), ("limit", True), ("size", 4)):
        with pytest.raises(ValueError, match=f"{option} is"):
            sources.prepare("stl10", tmp_path / "data", **{option: value})


def test_photos_are_never_overwritten(tmp_path):
    data, archive = tmp_path / "data", photos_zip(tmp_path / "p.zip")
    shutil.unpack_archive(archive, data / "pets")
    before = sorted(data.rglob("*"))
    for name, source in (("pets", data / "pets"), ("pets", archive), ("x", data)):
        with pytest.raises(CourseError, match="Choose"):
            sources.prepare(name, data, source=source, force=True)
    assert sorted(data.rglob("*")) == before


@pytest.mark.real_images
def test_real_photos(tmp_path):
    archive = next((path for folder in Path(__file__).parents if (path := folder / "shared/data/flowers.zip").exists()), None)
    if archive is None:
        pytest.skip("flowers.zip is not beside the project: the real photos are not part of it")
    assert "skipped" not in sources.prepare("photos", tmp_path, source=archive, limit=60).sentence
    loaded = datasets.load("photos", tmp_path)
    assert [len(part) for part in (loaded.train_images, loaded.validation_images, loaded.test_images)] == [270, 30, 300]
    assert loaded.size == 128 and torch.bincount(loaded.train_labels).tolist() == [54] * 5
