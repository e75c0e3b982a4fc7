"""Named data sets: the ImageSet, toybox on first use, prepared folders and what happens when they are damaged."""

import dataclasses
import json
import multiprocessing

import numpy as np
import pytest
import torch

from sslcourse import datasets
from sslcourse.datasets import prepared, toybox
from sslcourse.errors import CourseError

SMALL = {"unlabeled": 30, "train": 40, "validation": 20, "test": 20}


@pytest.fixture
def drawn(monkeypatch):
    """A stand-in for the drawing, quick and recognisable: pixel 0 holds the seed. Gives the list of what was drawn."""
    calls = []

    def make(n, seed, size, bar, **how):
        calls.append((n, seed, size, how))
        images = np.zeros((n, 3, size, size), np.uint8)
        images[:, :, 0, 0], images[:, :, 0, 1] = seed, np.arange(n)[:, None] % 256
        return images, np.arange(n) % 10

    monkeypatch.setattr(toybox, "make", make)
    return calls


def image_set(**changes):
    images = torch.arange(20, dtype=torch.uint8)[:, None, None, None].expand(20, 3, 8, 8).contiguous()
    values = dict(name="x", class_names=["cat", "dog"], mean=(0.5,) * 3, std=(0.2,) * 3)
    for split in prepared.SPLITS:
        values |= {f"{split}_images": images, f"{split}_labels": torch.arange(20) % 2}
    return datasets.ImageSet(**{**values, **changes})


def rows(images):
    return images.train_images[:, 0, 0, 0].tolist()


def write(folder, count=40, size=8, unlabeled=True):
    """A prepared data set with two classes of random images."""
    rng, parts = np.random.default_rng(1), {}
    for split in ("train", "test"):
        parts[f"{split}_images"] = rng.integers(0, 256, (count, 3, size, size), dtype=np.uint8)
        parts[f"{split}_labels"] = np.arange(count) % 2
    if unlabeled:
        parts["unlabeled"] = rng.integers(0, 256, (count, 3, size, size), dtype=np.uint8)
    prepared.write(folder, parts, class_names=["cat", "dog"], source="test", options={})
    return parts


def test_an_image_set_knows_its_size_and_prints_as_a_line():
    images = image_set()
    assert (images.size, images.num_classes) == (8, 2)
    assert repr(images) == "x: 2 classes, 8×8 · 20 unlabeled · 20 train · 20 validation · 20 test (unlabeled is train) · cpu"
    other = images.to("cuda" if torch.cuda.is_available() else "cpu")
    assert other.unlabeled is other.train_images and other.mean == images.mean


@pytest.mark.parametrize(("changes", "error", "match"), [
    ({"train_images": torch.zeros(20, 3, 8, 8)}, TypeError, "train_images .* not torch.float32"),
    ({"test_images": torch.zeros(20, 8, 8, 3, dtype=torch.uint8)}, ValueError, "test_images must have shape"),
    ({"unlabeled": torch.zeros(4, 3, 9, 9, dtype=torch.uint8)}, ValueError, "unlabeled must have shape"),
    ({"train_labels": torch.zeros(20)}, TypeError, "int64"), ({"train_images": None}, TypeError, "train_images .* not NoneType"),
    ({"test_labels": torch.zeros(19, dtype=torch.int64)}, ValueError, "one label an image"),
    ({"train_labels": torch.full((20,), -1)}, ValueError, "unlabelled images belong in .unlabeled"),
    ({"validation_labels": torch.full((20,), 2)}, ValueError, "contains 2, and there are 2 classes"),
    ({"mean": (0.5,)}, ValueError, "3 values"),
])  # fmt: skip
def test_wrong_tensors_are_refused(changes, error, match):
    with pytest.raises(error, match=match):
        image_set(**changes)


def test_few_labels_is_stratified_nested_and_repeatable():
    images = image_set()
    few = images.few_labels(3, seed=1)
    assert torch.bincount(few.train_labels).tolist() == [3, 3] and [row % 2 for row in rows(few)] == few.train_labels.tolist()
    assert set(rows(few)) < set(rows(images.few_labels(6, seed=1))) and rows(few) != rows(images.few_labels(3, seed=2))
    assert few.unlabeled is images.train_images and few.test_images is images.test_images and len(few.validation_images) == 20
    order = np.random.default_rng(1).permutation(20)  # the draw itself, on which stored results depend
    assert rows(few) == sorted([*order[order % 2 == 0][:3], *order[order % 2 == 1][:3]])
    for per_class in (0, -1, 2.5, True, 11):
        with pytest.raises(ValueError, match="per_class"):
            images.few_labels(per_class)


def test_a_subset_keeps_images_with_their_labels_in_order():
    images = image_set()
    less = images.subset(unlabeled=3, train=4, validation=0, seed=1)
    assert (len(less.unlabeled), len(less.train_images), len(less.validation_images)) == (3, 4, 0)
    assert less.test_images is images.test_images  # None: as it was
    assert rows(less) == sorted(rows(less)) and torch.equal(less.train_labels, images.train_labels[rows(less)])
    assert rows(less) == rows(images.subset(train=4, seed=1)) != rows(images.subset(train=4, seed=2))
    assert rows(images.subset(train=10**6)) == rows(images)  # at most
    odd = dataclasses.replace(images, train_labels=torch.tensor([0] * 19 + [1]), validation_labels=torch.tensor([1] + [0] * 19))
    for seed in range(8):  # no class is lost, though 19 of 20 images are of the other
        few = odd.subset(train=4, validation=2, seed=seed)
        assert few.train_labels.tolist() == [0, 0, 0, 1] and few.validation_labels.tolist() == [1, 0]
    for most in (-1, 2.0, True, "3"):
        with pytest.raises(ValueError, match="train is"):
            images.subset(train=most)


def test_rows_are_taken_class_by_class_where_a_draw_lacks_one_or_on_request():
    labels = torch.tensor([2, 0, 0, 0, 1, 2])
    assert datasets.first_of_each(labels, 5).tolist() == [1, 4, 0, 2, 5] and len(datasets.first_of_each(labels, 9)) == 6
    order = torch.tensor([3, 2, 1, 0, 5, 4])
    assert datasets.rows_of_every_class(order, labels, 3).tolist() == [3, 0, 4]
    assert datasets.rows_of_every_class(order, labels, 4, each=2).tolist() == [3, 0, 4, 2]
    assert datasets.rows_of_every_class(order[:4], labels, 2).tolist() == [3, 0]
    assert torch.equal(datasets.rows_of_every_class(order, labels, 6), order)


def test_toybox_is_drawn_once_and_then_read(tmp_path, drawn):
    images = datasets.load(data_dir=tmp_path)
    assert [call[0] for call in drawn] == [6000, 5000, 1000, 2000]
    assert images.size == 32 and torch.bincount(images.train_labels).tolist() == [500] * 10
    parts = (images.unlabeled, images.train_images, images.validation_images, images.test_images)
    assert [int(part[0, 0, 0, 0]) for part in parts] == [0, 1, 2, 3]  # no drawing in two splits
    again = datasets.load("toybox", tmp_path)
    assert len(drawn) == 4 and torch.equal(again.train_images, images.train_images) and again.class_names == list(toybox.CLASS_NAMES)
    assert [path.name for path in tmp_path.iterdir()] == ["toybox"]


def test_other_options_sizes_and_versions_are_kept_apart(tmp_path, drawn, monkeypatch):
    for _ in range(2):
        datasets.load("toybox", tmp_path, **SMALL)
        assert datasets.load("toybox", tmp_path, size=16, **SMALL).size == 16
        datasets.load("toybox", tmp_path, shortcut=True, upright=False, seed=3, **SMALL)
    assert len(drawn) == 12 and drawn[4][2] == 16 and drawn[8] == (30, 12, 32, {"shortcut": True, "upright": False})
    monkeypatch.setattr(toybox, "VERSION", 2)
    datasets.load("toybox", tmp_path, **SMALL)
    assert len(drawn) == 16


def test_a_damaged_toybox_is_drawn_again_and_a_folder_that_cannot_be_written_is_named(tmp_path, drawn):
    datasets.load("toybox", tmp_path)
    (tmp_path / "toybox" / "test_images.npy").unlink()
    with pytest.warns(UserWarning, match="test_images.npy is damaged"):
        assert len(datasets.load("toybox", tmp_path).test_images) == 2000
    assert [path.name for path in tmp_path.iterdir()] == ["toybox"]
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(CourseError, match="data_dir is .*file"):
        datasets.load("toybox", tmp_path / "file")


@pytest.mark.parametrize(("option", "value"), [
    ("trian", 5), ("train", 5), ("seed", -1), ("test", 2.0), ("size", 7), ("size", 513), ("size", 32.0),
])  # fmt: skip
def test_wrong_toybox_options(tmp_path, option, value):
    with pytest.raises(ValueError, match=option):
        datasets.load("toybox", tmp_path, **{option: value})


def _load_together(folder, barrier, made):
    barrier.wait()
    datasets.load("toybox", folder, size=8, **SMALL)
    made.put(json.loads(next(folder.glob("*/about.json")).read_text())["id"])


def test_processes_that_start_at_once_draw_it_once(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, made = context.Barrier(3), context.SimpleQueue()
    processes = [context.Process(target=_load_together, args=(tmp_path, barrier, made)) for _ in range(3)]
    for process in processes:
        process.start()
    ids = {made.get() for _ in processes}
    for process in processes:
        process.join()
    assert len(ids) == 1 and [process.exitcode for process in processes] == [0, 0, 0] and len(list(tmp_path.iterdir())) == 1


def test_what_was_written_is_read_mapped_from_disk(tmp_path):
    parts = write(tmp_path / "mine")
    images = datasets.load("mine", tmp_path)
    assert np.array_equal(images.unlabeled.numpy(), parts["unlabeled"]) and np.array_equal(images.test_images.numpy(), parts["test_images"])
    expected = np.concatenate([images.train_images.numpy(), parts["unlabeled"]]) / 255
    assert np.allclose(images.mean, expected.mean((0, 2, 3)), atol=1e-5) and np.allclose(images.std, expected.std((0, 2, 3)), atol=1e-5)
    images.test_images[0] = 0  # copy on write: the file stays as it is
    assert np.array_equal(datasets.load("mine", tmp_path).test_images.numpy(), parts["test_images"])
    write(tmp_path / "mine", count=60)  # replaces it
    assert len(datasets.load("mine", tmp_path).test_images) == 60 and [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("unlabeled", [True, False])
def test_a_missing_validation_split_is_cut_from_train(tmp_path, unlabeled):
    parts = write(tmp_path / "mine", unlabeled=unlabeled)
    images = datasets.load("mine", tmp_path)
    assert torch.bincount(images.validation_labels).tolist() == [2, 2] and torch.bincount(images.train_labels).tolist() == [18, 18]
    both = [image.tobytes() for image in torch.cat([images.train_images, images.validation_images]).numpy()]
    assert sorted(both) == sorted(image.tobytes() for image in parts["train_images"])
    write(tmp_path / "twin", unlabeled=unlabeled)
    assert torch.equal(datasets.load("twin", tmp_path).validation_images, images.validation_images)
    assert (images.unlabeled is images.train_images) != unlabeled and len(images.few_labels(2).unlabeled) == (40 if unlabeled else 36)


def test_another_size_is_made_once_and_follows_its_source(tmp_path, monkeypatch):
    write(tmp_path / "mine", size=16)
    small, full = datasets.load("mine", tmp_path, size=8), datasets.load("mine", tmp_path)
    expected = torch.nn.functional.interpolate(full.test_images.float(), size=(8, 8), mode="bilinear", antialias=True).round().byte()
    assert torch.equal(small.test_images, expected) and torch.equal(small.train_labels, full.train_labels)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "mine-8"]
    with monkeypatch.context() as patch:
        patch.setattr(prepared, "write", lambda *_, **__: pytest.fail("made twice"))
        assert torch.equal(datasets.load("mine", tmp_path, size=8).test_images, small.test_images)
    write(tmp_path / "mine", count=60, size=16)
    assert len(datasets.load("mine", tmp_path, size=8).test_images) == 60


def test_the_identity_is_that_of_the_contents_whatever_they_are_called(tmp_path):
    write(tmp_path / "mine", size=16)
    mine = datasets.load("mine", tmp_path)
    assert len(mine.identity) == 16 and mine.identity == mine.few_labels(2).identity == mine.subset(train=3).identity
    again = dataclasses.replace(mine, name="other", known_identity=None, test_labels=mine.test_labels.clone())
    assert again.few_labels(1).identity == again.identity == mine.identity
    again.test_labels[0] = 1 - again.test_labels[0]
    assert dataclasses.replace(again, known_identity=None).identity != mine.identity
    small = datasets.load("mine", tmp_path, size=8).identity
    (tmp_path / "mine").rename(tmp_path / "yours")
    yours = datasets.load("yours", tmp_path)
    assert (yours.name, yours.identity) == ("yours", mine.identity) and datasets.load("yours", tmp_path, size=8).identity == small
    assert small not in (mine.identity, datasets.load("yours", tmp_path, size=9).identity)
    assert [info.name for info in datasets.available(tmp_path) if info.prepared] == ["yours"]
    write(tmp_path / "yours", count=60)
    assert datasets.load("yours", tmp_path).identity != mine.identity


def change_about(folder, change):
    about = prepared.read_about(folder)
    change(about)
    (folder / "about.json").write_text(json.dumps(about))


@pytest.mark.parametrize(("match", "damage"), [
    ("test_labels.npy", lambda f: (f / "test_labels.npy").unlink()),
    ("train_images.npy", lambda f: (f / "train_images.npy").write_bytes((f / "train_images.npy").read_bytes()[:-1])),
    ("unlabeled.npy", lambda f: (f / "unlabeled.npy").write_bytes(b"hello" * 100)),
    ("test_images.npy", lambda f: np.save(f / "test_images.npy", np.zeros((39, 3, 8, 8), np.uint8))),
    ("test_labels.npy", lambda f: np.save(f / "test_labels.npy", np.zeros(40, np.float32))),
    ("test_labels.npy", lambda f: np.save(f / "test_labels.npy", np.full(40, 2))),
    ("about.json", lambda f: (f / "about.json").write_text("{")), ("about.json", lambda f: (f / "about.json").unlink()),
    ("about.json", lambda f: (f / "about.json").write_text("[]")),
    ("about.json.*format 99", lambda f: change_about(f, lambda about: about.update(format=99))),
    ("about.json.*test_images", lambda f: change_about(f, lambda about: about["counts"].clear())),
])  # fmt: skip
def test_damage_is_named_with_the_way_out(tmp_path, match, damage):
    write(tmp_path / "mine")
    damage(tmp_path / "mine")
    with pytest.raises(CourseError, match=f"{match}.*Delete the folder"):
        datasets.load("mine", tmp_path)


def test_names(tmp_path):
    write(tmp_path / "mine")
    (tmp_path / "photos").mkdir()
    for name, match in {
        "STL10": "'stl10' is not prepared.*python data_setup.py stl10 .*!python -m sslcourse data stl10",
        "photos": "is not a prepared data set.*--from", "cifar100": "Did you mean 'cifar10'",
        **dict.fromkeys(("", "../x", "a/b", ".hidden", None, "x" * 100), "cannot name a data set"),
    }.items():
        with pytest.raises(CourseError, match=match):
            datasets.load(name, tmp_path)
    with pytest.raises(ValueError, match="shortcut= can be used with toybox only"):
        datasets.load("mine", tmp_path, shortcut=True)


def test_available_lists_known_and_own_data_sets(tmp_path):
    write(tmp_path / "mine", size=16)
    datasets.load("mine", tmp_path, size=8)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "about.json").write_text("{")
    infos = datasets.available(tmp_path)
    assert [info.name for info in infos] == ["toybox", "stl10", "cifar10", "flowers", "cats-vs-dogs", "mine"]
    assert [info.prepared for info in infos] == [False] * 5 + [True]
    assert (infos[-1].classes, infos[-1].images, infos[-1].size) == (2, 120, 16)
    lines = str(infos).splitlines()
    assert len(lines) == 8 and "2.6 GB" in lines[2] and "python data_setup.py stl10" in lines[2]
    assert datasets.available(tmp_path / "missing")[0].images == 14_000
