"""Networks that are kept: what comes back, and what a file may not be."""

import copy
import json
import math
from unittest.mock import Mock

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import Malicious, encoder, image_set, new_model, same_weights
from torch import nn

from sslcourse import evaluation, models, training
from sslcourse.errors import CourseError
from sslcourse.models import saved
from sslcourse.training import checkpoints

pytestmark = pytest.mark.usefixtures("one_thread")

ABOUT = {"method": "SimCLR", "dataset": "toybox", "size": 16}
MAKERS = {"resnet9": lambda: models.resnet9(8), "resnet18": models.resnet18, "resnet50": models.resnet50, "alexnet": models.alexnet}
MAKERS["vit"] = lambda: models.vit(width=64, depth=2, heads=2, pool="class")


@pytest.fixture
def path(tmp_path):
    return models.save_network(tmp_path / "kept.safetensors", encoder(), **ABOUT)


@pytest.mark.parametrize("name", MAKERS)
def test_every_encoder_comes_back_as_it_was(name, tmp_path):
    torch.manual_seed(1)
    kept, x = MAKERS[name](), torch.randn(8, 3, 32, 32)
    kept(x)
    file = models.save_network(tmp_path / "kept", kept, **ABOUT)
    found = models.load_network(file)
    assert found.encoder is found.model and not found.is_classifier and not found.model.training
    assert found.encoder.recipe == kept.recipe
    assert file.stat().st_size < 2.2 * models.count_parameters(kept) + 60_000  # two bytes a number, and the names
    with torch.no_grad():
        expected, got = kept.eval()(x), found.model(x)
    assert (expected - got).abs().max() < 5e-3 * expected.abs().max()


def test_a_classifier_comes_back_with_its_answers(model, images, tmp_path):
    told = {"labels": 50, "class_names": tuple("abcde"), "minutes": torch.tensor(1.5), "rank": torch.tensor(7).numpy()}
    found = models.load_network(models.save_network(tmp_path / "kept", model, **told, **ABOUT))
    assert found.is_classifier and found.encoder is found.model.encoder and found.model.dropout.p == 0.5
    assert (found.method, found.dataset, found.size, found.labels, found.block) == ("SimCLR", "toybox", 16, 50, None)
    assert found.about == ABOUT | {"labels": 50, "class_names": list("abcde"), "minutes": 1.5, "rank": 7} and found.origin == "this run"
    expected, got = (evaluation.predict(m, images) for m in (model, found.model))
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-3 * expected.abs().max().item())
    assert torch.equal(got.argmax(1), expected.argmax(1))


def test_what_is_kept_is_exact_but_for_half_precision(tmp_path):
    kept = new_model().to(memory_format=torch.channels_last)  # laid out for speed, which is not kept
    with torch.no_grad():
        kept.encoder.blocks[0][0].weight[0, 0, 0, 0] = 1e6  # too large for half precision: this tensor keeps its bits
    found = models.load_network(models.save_network(tmp_path / "kept", kept, **ABOUT)).model
    for name, value in kept.state_dict().items():
        got = found.state_dict()[name]
        assert got.dtype == value.dtype and got.is_contiguous()
        half = value.dim() > 1 and value.abs().max() < 6e4
        assert torch.equal(got, value.half().float() if half else value), name


def test_keeping_and_reading_leave_everything_else_alone(tmp_path):
    kept = encoder().train()
    before, random_numbers = copy.deepcopy(kept.state_dict()), torch.get_rng_state()
    found = models.load_network(models.save_network(tmp_path / "kept", kept, **ABOUT))
    assert kept.training and all(torch.equal(before[k], v) for k, v in kept.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_numbers)
    (tmp_path / "kept").write_bytes(b"")  # what was read does not hang on the file
    classifier = models.Classifier(copy.deepcopy(found.encoder), 3).train()
    classifier(torch.randn(4, 3, 16, 16)).sum().backward()
    assert all(p.grad is not None and p.dtype == torch.float32 for p in classifier.parameters())
    again = models.load_network(models.save_network(tmp_path / "again", found.encoder, **ABOUT))
    assert same_weights(again.model, found.model)  # half precision costs once


@pytest.mark.parametrize(
    "change",
    [
        *[{"method": " "}, {"dataset": None}, {"tier": 3}, {"size": 0}, {"size": None}, {"seed": -1}, {"labels": 1.5}],
        *[{"lesson": 0}, {"block": 7}, {"block": 0}, {"class_names": ["a", "b"]}, {"class_names": "abc"}],
    ],
    ids=str,
)
def test_what_is_said_of_a_network_is_checked(change, tmp_path):
    (named,) = change
    with pytest.raises(ValueError, match=named):
        models.save_network(tmp_path / "kept", new_model(), **(ABOUT | change))
    assert not list(tmp_path.iterdir())


def with_nan(kept):
    kept.blocks[1][1].running_var[0] = math.nan
    return kept


@pytest.mark.parametrize(("make", "about", "named"), [
    (lambda: nn.Linear(2, 2), {}, "Linear"), (lambda: models.SimCLR(encoder()), {}, "SimCLR"),
    (lambda: with_nan(encoder()), {}, r"blocks\.1\.1\.running_var holds NaN"), (encoder, {"minutes": math.nan}, "plain"),
    (encoder, {"how": object()}, "plain"),
])  # fmt: skip
def test_what_cannot_be_made_again_is_not_kept(make, about, named, tmp_path):
    with pytest.raises(ValueError, match=named):
        models.save_network(tmp_path / "kept", make(), **ABOUT, **about)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_found_or_written_is_named_and_a_full_disk_keeps_the_old_network(path, monkeypatch):
    with pytest.raises(CourseError, match="no network .*missing"):
        models.load_network(path.with_name("missing"))
    with pytest.raises(CourseError, match="could not be written"):
        models.save_network(path / "within", encoder(), **ABOUT)
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(CourseError, match="could not be written: the disk is full"):
        models.save_network(path, encoder(1), **ABOUT)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_a_network_of_another_experiment_is_not_written_over(path):
    before = path.read_bytes()
    others = [(encoder(width=5), {}), (encoder(), {"dataset": "stl10"}), (encoder(), {"epochs": 3}), (models.Classifier(encoder(), 3), {})]
    for kept, about in others:
        with pytest.raises(CourseError, match="another experiment"):
            models.save_network(path, kept, **(ABOUT | about))
    assert path.read_bytes() == before
    models.save_network(path, encoder(1), minutes=3.0, **ABOUT)  # the same again
    assert path.read_bytes() != before
    path.write_text("a thesis")
    with pytest.raises(CourseError, match="cannot be read as a network"):
        models.save_network(path, encoder(), **ABOUT)
    assert path.read_text() == "a thesis"


def test_a_network_knows_the_images_that_it_was_trained_on(tmp_path):
    model, images = new_model(), image_set()
    images.known_identity = "0123"
    training.fit_classifier(model, images, 1, batch_size=16, precision="fp32", progress=False, validate_every=0)
    kept = models.load_network(models.save_network(tmp_path / "kept", model, **ABOUT))
    assert kept.about == ABOUT | {"identity": "0123", "image_size": images.size}
    again = models.load_network(models.save_network(tmp_path / "again", kept.encoder, **ABOUT))
    assert again.about["identity"] == "0123"


@pytest.mark.parametrize(("error", "told"), [
    (PermissionError(13, "no"), "no permission"), (OSError(5, "no"), "does not answer"), (OSError(12, "no"), "memory"),
])  # fmt: skip
def test_what_cannot_be_read_is_not_called_damaged(error, told, path, monkeypatch):
    checkpoints.previous(path).write_bytes(path.read_bytes())  # which does not come in its place
    for module, read, more in ((saved, models.load_network, ()), (checkpoints, checkpoints.load_checkpoint, ({}, None))):
        monkeypatch.setattr(module, "open", Mock(side_effect=error), raising=False)
        with pytest.raises(CourseError, match=told) as caught:
            read(path, *more)
        assert "elete" not in str(caught.value) and "damaged" not in str(caught.value)


NAME = "blocks.0.0.weight"


def rewritten(path, weights=(), **described):
    """The same file with some weights and parts of its description replaced; None takes a weight away."""
    kept = load_file(path) | dict(weights)
    with safe_open(path, "pt") as file:
        told = json.loads(file.metadata()[saved.DESCRIPTION]) | described
    save_file({k: v for k, v in kept.items() if v is not None}, path, metadata={saved.DESCRIPTION: json.dumps(told)})


DAMAGED = {
    "cut short": (lambda p: p.write_bytes(p.read_bytes()[:-1]), "cannot be read"),
    "pickled": (lambda p: torch.save(Malicious(str(p.with_name("witness"))), p), "cannot be read"),
    "text": (lambda p: p.write_text("these are not the weights you are looking for"), "cannot be read"),
    "only weights": (lambda p: save_file(load_file(p), p), "cannot be read"),
    "a description that is no JSON": (lambda p: save_file(load_file(p), p, metadata={saved.DESCRIPTION: "{"}), "damaged"),
    "a description that is a number": (lambda p: save_file(load_file(p), p, metadata={saved.DESCRIPTION: "3"}), "damaged"),
    "unknown encoder": (lambda p: rewritten(p, recipe={"name": "resnet1001", "width": 4}), "recipe"),
    "other arguments": (lambda p: rewritten(p, recipe={"name": "resnet9", "width": 4, "depth": 3}), "recipe"),
    "argument in words": (lambda p: rewritten(p, recipe={"name": "resnet9", "width": "4"}), "not a number"),
    "too large for any memory": (lambda p: rewritten(p, recipe={"name": "resnet9", "width": 10_000_000}), "damaged"),
    "a weight missing": (lambda p: rewritten(p, {NAME: None}), "layers"),
    "a weight more": (lambda p: rewritten(p, {"more": torch.zeros(1)}), "layers"),
    "a weight of another shape": (lambda p: rewritten(p, {NAME: torch.zeros(2, 2)}), NAME),
    "a weight that is NaN": (lambda p: rewritten(p, {NAME: torch.full((4, 3, 3, 3), math.nan)}), "NaN"),
    "nothing said": (lambda p: rewritten(p, about=None), "damaged"),
    "no size": (lambda p: rewritten(p, about={"method": "SimCLR", "dataset": "toybox"}), "size"),
    "a block that it has not": (lambda p: rewritten(p, about=ABOUT | {"block": 9}), "block"),
    "a head that is not there": (lambda p: rewritten(p, head={"classes": 3, "dropout": 0.2}), "layers"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_or_foreign_file_is_refused(kind, path):
    damage, told = DAMAGED[kind]
    rewritten(path)  # as it was: what is refused is the damage
    assert same_weights(models.load_network(path).model.half(), encoder().half())
    damage(path)
    with pytest.raises(CourseError, match=rf"kept\.safetensors .*{told}.* Delete it, or run the lesson again") as caught:
        models.load_network(path)
    assert "\n" not in str(caught.value) and list(path.parent.iterdir()) == [path]  # nothing in a file runs


def test_a_folder_is_read_in_order_and_what_is_damaged_is_named(tmp_path):
    for name in ("b", "a", "c"):
        models.save_network(tmp_path / f"{name}.safetensors", encoder(), **ABOUT)
    (tmp_path / "b.safetensors").write_text("damaged")
    (tmp_path / "notes.txt").write_text("not a network")
    with pytest.warns(UserWarning, match=r"Left out: .*b\.safetensors") as caught:
        found = models.read_networks(tmp_path)
    assert list(found) == ["a", "c"] and len(caught) == 1
    assert models.read_networks(tmp_path / "missing") == {}


def test_the_networks_that_come_with_the_package_can_be_read(recwarn):
    found = models.reference_networks()
    assert not recwarn.list and set(found) == {path.stem for path in saved.REFERENCE_NETWORKS.glob("*.safetensors")} and len(found) > 9
    assert all(network.about["tier"] == "cpu" and network.origin == "shipped" for network in found.values())
