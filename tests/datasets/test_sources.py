"""Preparing data sets: the original files of STL-10 and CIFAR-10, downloads from a server on this machine, and archives of one's own."""

import hashlib
import http.server
import io
import pickle
import shutil
import tarfile
import threading
import zipfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from sslcourse import datasets
from sslcourse.datasets import downloads
from sslcourse.datasets import sources as prepare
from sslcourse.errors import CourseError

REAL = Path(__file__).parents[3] / "shared" / "data"


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A folder whose files a server on this machine offers, in the place of the real addresses."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    requests = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            requests.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv(prepare.MIRROR, f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setattr(prepare.downloads, "fetch", partial(downloads.fetch, pause=0, retries=1))
    yield SimpleNamespace(folder=folder, requests=requests)
    server.shutdown()
    server.server_close()


def publish(mirror, monkeypatch, name, archive, checksum=True):
    """Offer `archive` as the download of `name`, with its real checksum in the table."""
    md5 = f"md5:{hashlib.md5(archive.read_bytes()).hexdigest()}" if checksum else None
    monkeypatch.setitem(prepare.SOURCES, name, prepare.Source(f"http://example.invalid/{archive.name}", md5, 1000))
    shutil.move(archive, mirror.folder / archive.name)


def quiet(name, data_dir, **options):
    return prepare.prepare(name, data_dir, progress=False, **options)


def left_behind(data_dir):
    return sorted(path.name for path in data_dir.rglob("*") if ".partial" in path.name or path.name.startswith("."))


# --- STL-10 ---

FOLDS = np.stack([np.random.default_rng(seed).permutation(40)[:8] for seed in range(10)])


def stl10_folder(folder):
    """The files of STL-10, small, in the layout of the originals. -> images by part, as they should look afterwards."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    images = {}
    for part, count in (("train", 40), ("test", 20), ("unlabeled", 7)):
        images[part] = rng.integers(0, 256, (count, 3, 96, 96), dtype=np.uint8)
        with open(folder / f"{part}_X.bin", "wb") as file:
            for image in images[part]:
                for channel in image:
                    file.write(channel.tobytes(order="F"))  # column by column
    for part in ("train", "test"):
        (folder / f"{part}_y.bin").write_bytes(bytes(1 + i % 10 for i in range(len(images[part]))))
    (folder / "class_names.txt").write_text("\n".join("airplane bird car cat deer dog horse monkey ship truck".split()) + "\n")
    (folder / "fold_indices.txt").write_text("\n".join(" ".join(map(str, fold)) + " " for fold in FOLDS) + "\n")
    return images


def stl10_archive(tmp_path):
    images = stl10_folder(tmp_path / "stl" / "stl10_binary")
    with tarfile.open(tmp_path / "stl10_binary.tar.gz", "w:gz") as file:
        file.add(tmp_path / "stl" / "stl10_binary", "stl10_binary")
    shutil.rmtree(tmp_path / "stl")
    return tmp_path / "stl10_binary.tar.gz", images


def test_stl10_is_read_pixel_by_pixel(tmp_path):
    images = stl10_folder(tmp_path / "stl10_binary")
    class_names, parts = prepare.read_stl10(tmp_path / "stl10_binary")
    for part, key in (("train", "train_images"), ("test", "test_images"), ("unlabeled", "unlabeled")):
        assert np.array_equal(parts[key], images[part])
    assert parts["test_labels"].tolist() == [i % 10 for i in range(20)] and class_names[7] == "monkey"
    assert np.array_equal(parts["folds"], FOLDS)


def test_stl10_agrees_with_torchvision(tmp_path, monkeypatch):
    from torchvision.datasets import STL10

    stl10_folder(tmp_path / "stl10_binary")
    monkeypatch.setattr(STL10, "_check_integrity", lambda self: True)
    theirs = STL10(tmp_path, split="train")
    _, parts = prepare.read_stl10(tmp_path / "stl10_binary")
    assert np.array_equal(np.asarray(theirs[3][0]).transpose(2, 0, 1), parts["train_images"][3])
    assert [int(theirs[i][1]) for i in range(40)] == parts["train_labels"].tolist()


def test_stl10_from_the_download_to_the_image_set(tmp_path, mirror, monkeypatch):
    archive, images = stl10_archive(tmp_path)
    publish(mirror, monkeypatch, "stl10", archive)
    report = quiet("stl10", tmp_path / "data")
    assert report.made and "30 train · 10 validation · 20 test" in report.sentence
    loaded = datasets.load("stl10", tmp_path / "data")
    assert np.array_equal(loaded.unlabeled, images["unlabeled"]) and np.array_equal(loaded.test_images, images["test"])
    assert (len(loaded.train_images), len(loaded.validation_images), loaded.size) == (30, 10, 96)
    both = torch.cat([loaded.train_images, loaded.validation_images]).numpy()
    assert np.array_equal(both[loaded.folds.numpy()[4]], images["train"][FOLDS[4]])
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["stl10"] and left_behind(tmp_path / "data") == []


def test_a_second_call_does_nothing_and_force_does_it_again(tmp_path, mirror, monkeypatch):
    publish(mirror, monkeypatch, "stl10", stl10_archive(tmp_path)[0])
    quiet("stl10", tmp_path / "data")
    again = quiet("STL10", tmp_path / "data")
    assert not again.made and "was ready already, nothing was done" in again.sentence and len(mirror.requests) == 1
    assert quiet("stl10", tmp_path / "data", force=True).made and len(mirror.requests) == 2
    (tmp_path / "data" / "stl10" / "test_labels.npy").unlink()
    assert quiet("stl10", tmp_path / "data", keep_archive=True).made  # what is damaged is made again
    assert len(datasets.load("stl10", tmp_path / "data").test_labels) == 20
    assert (tmp_path / "data" / "downloads" / "stl10_binary.tar.gz").exists()


def test_another_size_of_stl10_is_a_copy(tmp_path, mirror, monkeypatch):
    publish(mirror, monkeypatch, "stl10", stl10_archive(tmp_path)[0])
    assert "A copy at 48×48 is ready too" in quiet("stl10", tmp_path / "data", size=48).sentence
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["stl10", "stl10-48"]
    assert datasets.load("stl10", tmp_path / "data", size=48).unlabeled.shape == (7, 3, 48, 48)


def test_limit_takes_a_few_of_each_class(tmp_path):
    stl10_folder(tmp_path / "stl10_binary")
    quiet("stl10", tmp_path / "data", source=tmp_path / "stl10_binary", limit=3)
    loaded = datasets.load("stl10", tmp_path / "data")
    assert torch.bincount(torch.cat([loaded.train_labels, loaded.validation_labels])).tolist() == [3] * 10 and len(loaded.test_images) == 20


@pytest.mark.parametrize(
    ("file", "content", "match"),
    [
        ("train_X.bin", b"x" * 1000, "train_X.bin has 1,000 bytes"),
        ("test_y.bin", b"\0" * 20, "test_y.bin does not hold 20 labels"),
        ("test_y.bin", b"\1" * 19, "test_y.bin does not hold 20 labels"),
        ("unlabeled_X.bin", None, "unlabeled_X.bin is missing"),
        ("class_names.txt", b"cat dog", "names 2 classes"),
        ("fold_indices.txt", b"1 2\n3 400", "fold_indices.txt is not a table"),
        ("fold_indices.txt", b"1 2\n3 x", "fold_indices.txt is not a table"),
    ],
)
def test_damaged_stl10_files_are_named(tmp_path, file, content, match):
    stl10_folder(tmp_path / "stl10_binary")
    path = tmp_path / "stl10_binary" / file
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(CourseError, match=match):
        quiet("stl10", tmp_path / "data", source=tmp_path / "stl10_binary")
    assert list((tmp_path / "data").iterdir()) == []


# --- CIFAR-10 ---


def python2_batch(data, labels):
    """The bytes of a CIFAR-10 batch as Python 2 wrote it: protocol 2, byte strings, an array of the old module name."""

    def text(value):
        return b"U" + bytes([len(value)]) + value  # SHORT_BINSTRING

    raw = data.tobytes()
    array = b"cnumpy.core.multiarray\n_reconstruct\n" + b"cnumpy\nndarray\n" + b"K\x00\x85" + text(b"b") + b"\x87R"
    shape = b"".join(b"J" + int(n).to_bytes(4, "little") for n in data.shape) + b"\x86"
    dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + text(b"|") + b"NNN" + b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array += b"(K\x01" + shape + dtype + b"\x89" + b"T" + len(raw).to_bytes(4, "little") + raw + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + numbers + b"u."


def cifar10_folder(folder, python2=True):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    images, labels = {}, {}
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        images[name] = rng.integers(0, 256, (40, 3, 32, 32), dtype=np.uint8)
        labels[name] = [int(i) for i in rng.permutation(np.arange(40) % 10)]
        data = images[name].reshape(40, 3072)
        content = python2_batch(data, labels[name]) if python2 else pickle.dumps({"data": data, "labels": labels[name]}, protocol=2)
        (folder / name).write_bytes(content)
    names = "airplane automobile bird cat deer dog frog horse ship truck".split()
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names, "num_vis": 3072}, protocol=2))
    return images, labels


@pytest.mark.parametrize("python2", [True, False])
def test_cifar10_from_the_download_to_the_image_set(tmp_path, mirror, monkeypatch, python2):
    images, labels = cifar10_folder(tmp_path / "cifar-10-batches-py", python2)
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as file:
        file.add(tmp_path / "cifar-10-batches-py", "cifar-10-batches-py")
    publish(mirror, monkeypatch, "cifar10", tmp_path / "cifar-10-python.tar.gz")
    assert quiet("cifar10", tmp_path / "data").made
    loaded = datasets.load("cifar10", tmp_path / "data")
    assert np.array_equal(loaded.test_images, images["test_batch"]) and loaded.test_labels.tolist() == labels["test_batch"]
    assert (len(loaded.train_images), len(loaded.validation_images)) == (180, 20) and loaded.unlabeled is loaded.train_images
    batches = [f"data_batch_{i}" for i in range(1, 6)]
    known = {image.tobytes(): label for name in batches for image, label in zip(images[name], labels[name], strict=True)}
    assert [known[image.numpy().tobytes()] for image in loaded.train_images] == loaded.train_labels.tolist()


def test_a_pickle_that_runs_something_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.write_text, (tmp_path / "evil", "ran"))

    cifar10_folder(tmp_path / "cifar")
    (tmp_path / "cifar" / "data_batch_3").write_bytes(pickle.dumps({"data": Evil(), "labels": []}))
    with pytest.raises(CourseError, match="data_batch_3 is not a file of CIFAR-10 .*it asks for"):
        prepare.read_cifar10(tmp_path / "cifar")
    assert not (tmp_path / "evil").exists()


def test_damaged_cifar10_files(tmp_path):
    cifar10_folder(tmp_path / "cifar")
    batch = tmp_path / "cifar" / "data_batch_2"
    batch.write_bytes(batch.read_bytes()[:500])
    with pytest.raises(CourseError, match="data_batch_2 is not a file"):
        prepare.read_cifar10(tmp_path / "cifar")
    batch.write_bytes(pickle.dumps({"data": np.zeros((4, 3072), np.uint8), "labels": [1, 2]}))
    with pytest.raises(CourseError, match="train images and labels do not fit"):
        prepare.read_cifar10(tmp_path / "cifar")
    batch.unlink()
    with pytest.raises(CourseError, match="data_batch_2 is missing"):
        prepare.read_cifar10(tmp_path / "cifar")


# --- Public archives of photos, and one's own ---


def photos_zip(path, prefix="PetImages/", classes=("Cat", "Dog"), broken=True):
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


def test_cats_and_dogs_with_their_corrupt_files(tmp_path, mirror, monkeypatch):
    publish(mirror, monkeypatch, "cats-vs-dogs", photos_zip(tmp_path / "kagglecatsanddogs_5340.zip"), checksum=False)
    report = quiet("cats-vs-dogs", tmp_path / "data")
    assert len(report.skipped) == 2 and "2 files skipped: PetImages/Cat/broken.jpg" in report.sentence
    loaded = datasets.load("cats-vs-dogs", tmp_path / "data")
    assert loaded.class_names == ["Cat", "Dog"] and loaded.size == 96
    assert [len(part) for part in (loaded.train_images, loaded.validation_images, loaded.test_images)] == [14, 2, 4]
    assert ((loaded.test_images[:, 0].float().mean((1, 2)) > 50).long() == loaded.test_labels).all()
    with pytest.raises(CourseError, match="2 files cannot be read.*--strict"):
        quiet("cats-vs-dogs", tmp_path / "data", strict=True, force=True)
    assert len(datasets.load("cats-vs-dogs", tmp_path / "data").test_images) == 4  # the old one is still there


def test_own_images_from_an_archive_and_from_a_folder(tmp_path):
    archive = photos_zip(tmp_path / "photos.zip", prefix="", classes=("a", "b", "c"), broken=False)
    quiet("my-photos", tmp_path / "data", source=archive, size=24)
    shutil.unpack_archive(archive, tmp_path / "photos")
    quiet("others", tmp_path / "data", source=tmp_path / "photos", size=24)
    ours, others = datasets.load("my-photos", tmp_path / "data"), datasets.load("others", tmp_path / "data")
    assert ours.size == 24 and torch.equal(ours.train_images, others.train_images) and torch.equal(ours.test_labels, others.test_labels)
    assert archive.exists() and left_behind(tmp_path / "data") == []
    assert "my-photos" in str(datasets.available(tmp_path / "data"))


def test_a_known_name_can_be_filled_from_an_archive(tmp_path):
    quiet("flowers", tmp_path / "data", source=photos_zip(tmp_path / "f.tmp.zip", broken=False))
    assert datasets.load("flowers", tmp_path / "data").name == "flowers"


def test_broken_archives_leave_nothing(tmp_path, mirror, monkeypatch):
    archive = photos_zip(tmp_path / "photos.zip")
    archive.write_bytes(archive.read_bytes()[:-200])
    with pytest.raises(CourseError, match="photos.zip is broken or incomplete"):
        quiet("mine", tmp_path / "data", source=archive)
    publish(mirror, monkeypatch, "flowers", photos_zip(tmp_path / "flower_photos.zip"))
    (mirror.folder / "flower_photos.zip").write_bytes(b"something else")
    with pytest.raises(CourseError, match="does not match its published md5"):
        quiet("flowers", tmp_path / "data")
    assert list((tmp_path / "data").rglob("*")) == []


def test_the_disk_is_checked_before_the_download(tmp_path, mirror, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5_000_000_000))
    with pytest.raises(CourseError, match=r"Preparing stl10 needs 9\.0 GB free, and .* has 5\.0 GB"):
        quiet("stl10", tmp_path / "data")
    assert mirror.requests == [] and list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize("name", ["", "a/b", "../x", ".x", "toybox", "Toybox", "downloads", "CON", "toybox-x", "photos-64", "x."])
def test_names_that_are_refused(tmp_path, name):
    with pytest.raises(CourseError, match="name"):
        quiet(name, tmp_path / "data", source=photos_zip(tmp_path / "p.zip"))


def test_photos_are_never_overwritten(tmp_path):
    shutil.unpack_archive(photos_zip(tmp_path / "p.zip", prefix="", broken=False), tmp_path / "data" / "pets")
    before = sorted(path for path in (tmp_path / "data" / "pets").rglob("*"))
    for name, source in (("pets", tmp_path / "data" / "pets"), ("pets", tmp_path / "p.zip"), ("x", tmp_path / "data")):
        with pytest.raises(CourseError, match="Choose"):
            quiet(name, tmp_path / "data", source=source, force=True)
    assert sorted(path for path in (tmp_path / "data" / "pets").rglob("*")) == before


def test_other_wrong_arguments(tmp_path):
    with pytest.raises(CourseError, match="no data set 'mnist' to download.*--from"):
        quiet("mnist", tmp_path)
    with pytest.raises(CourseError, match="no file or folder"):
        quiet("mine", tmp_path / "data", source=tmp_path / "missing.zip")
    with pytest.raises(ValueError, match="limit is 2"):
        quiet("stl10", tmp_path, limit=2)
    with pytest.raises(ValueError, match="size is 4"):
        quiet("stl10", tmp_path, size=4)
    (tmp_path / "file").write_text("x")
    with pytest.raises(CourseError, match="--data-dir"):
        quiet("stl10", tmp_path / "file")


def test_toybox_is_drawn_once(tmp_path):
    options = {"unlabeled": 20, "train": 20, "validation": 20, "test": 20}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "TOYBOX_OPTIONS", {**datasets.TOYBOX_OPTIONS, **options})
        report = quiet("toybox", tmp_path, size=16)
        assert report.made and report.folder == tmp_path / "toybox-16" and (report.folder / "about.json").exists()
        again = quiet("toybox", tmp_path, size=16)
        assert not again.made and "nothing was done" in again.sentence
        assert datasets.load("toybox", tmp_path, size=16).size == 16


# --- Real photos ---


def real(name):
    path = REAL / name
    if not path.exists():
        pytest.skip(f"{path.name} is not beside the project: the real photos are not part of it")
    return path


@pytest.mark.real_images
def test_real_cifar10(tmp_path):
    assert quiet("cifar10", tmp_path, source=real("cifar10.tar.xz")).skipped == []
    loaded = datasets.load("cifar10", tmp_path)
    names = "airplane automobile bird cat deer dog frog horse ship truck".split()
    assert loaded.class_names == names and loaded.size == 32
    assert [len(part) for part in (loaded.train_images, loaded.validation_images, loaded.test_images)] == [45_000, 5_000, 10_000]
    assert torch.bincount(loaded.train_labels).tolist() == [4500] * 10 and torch.bincount(loaded.validation_labels).tolist() == [500] * 10
    assert np.allclose(loaded.mean, (0.491, 0.482, 0.447), atol=0.01) and np.allclose(loaded.std, (0.247, 0.243, 0.262), atol=0.01)


@pytest.mark.real_images
def test_real_flowers(tmp_path):
    quiet("flowers", tmp_path, source=real("flowers.zip"))
    loaded = datasets.load("flowers", tmp_path)
    assert loaded.num_classes == 5 and loaded.size == 128 and "daisy" in loaded.class_names
    assert sum(len(part) for part in (loaded.train_images, loaded.validation_images, loaded.test_images)) == 4317


@pytest.mark.real_images
def test_real_cats_and_dogs(tmp_path):
    quiet("pets", tmp_path, source=real("cats-vs-dogs.zip"), limit=300, size=48)
    loaded = datasets.load("pets", tmp_path)
    assert loaded.num_classes == 2 and loaded.size == 48
    assert [len(part) for part in (loaded.train_images, loaded.validation_images, loaded.test_images)] == [540, 60, 600]


def test_a_download_that_never_began_leaves_no_empty_folder(tmp_path, monkeypatch):
    monkeypatch.setenv(prepare.MIRROR, "http://127.0.0.1:9")  # nobody listens on the discard port
    monkeypatch.setattr(prepare.storage, "require_free", lambda *a: None)
    monkeypatch.setattr(prepare.downloads.fetch, "__kwdefaults__", prepare.downloads.fetch.__kwdefaults__ | {"retries": 0})
    with pytest.raises(CourseError, match="cannot be reached"):
        prepare.prepare("cifar10", tmp_path / "data", progress=False)
    assert list((tmp_path / "data").iterdir()) == []
