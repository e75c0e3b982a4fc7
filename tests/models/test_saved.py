"""Networks that are kept: what comes back, what a file may not be, and whose networks fill whose gaps."""

import copy
import math
import pickle
import tarfile

import pytest
import torch
from tiny import Malicious, new_model, same_weights
from torch import nn

from sslcourse import evaluation, models
from sslcourse.errors import CourseError
from sslcourse.models import saved as networks

pytestmark = pytest.mark.usefixtures("one_thread")

ABOUT = {"method": "SimCLR", "dataset": "toybox", "size": 16}
MAKERS = {
    "resnet9": lambda: models.resnet9(8),
    "resnet18": models.resnet18,
    "resnet18 large": lambda: models.resnet18(small_images=False, max_pool=False),
    "resnet50": models.resnet50,
    "alexnet": models.alexnet,
}


def encoder(seed=0, width=4):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = models.resnet9(width)
        made(torch.randn(8, 3, 16, 16))  # statistics that are not the first ones
    return made


# --- there and back -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAKERS)
def test_every_encoder_comes_back_as_it_was(name, tmp_path):
    torch.manual_seed(1)
    kept, x = MAKERS[name](), torch.randn(8, 3, 32, 32)
    kept(x)
    found = networks.load_network(networks.save_network(tmp_path / "kept.pt", kept, **ABOUT))
    assert found.encoder is found.model and not found.is_classifier and not found.model.training
    assert found.encoder.recipe == kept.recipe
    with torch.no_grad():
        expected, got = kept.eval()(x), found.model(x)
    assert (expected - got).abs().max() < 5e-3 * expected.abs().max(), (expected - got).abs().max() / expected.abs().max()


def test_a_classifier_comes_back_with_its_answers(model, images, tmp_path):
    path = networks.save_network(tmp_path / "kept.pt", model, labels=50, class_names=list("abcde"), minutes=1.5, **ABOUT)
    found = networks.load_network(path)
    assert found.is_classifier and found.encoder is found.model.encoder and found.model.dropout.p == 0.5
    assert (found.method, found.dataset, found.size, found.labels, found.block) == ("SimCLR", "toybox", 16, 50, None)
    assert found.about == ABOUT | {"labels": 50, "class_names": list("abcde"), "minutes": 1.5} and found.origin == "this run"
    expected, got = (evaluation.predict(m, images) for m in (model, found.model))
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-3 * expected.abs().max().item())
    assert torch.equal(got.argmax(1), expected.argmax(1))


def test_what_is_kept_is_exact_but_for_half_precision(model, tmp_path):
    found = networks.load_network(networks.save_network(tmp_path / "kept.pt", model, **ABOUT)).model.state_dict()
    for name, value in model.state_dict().items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value.half().float() if value.dim() > 1 else value), name


def test_numbers_too_large_for_half_precision_keep_their_bits(tmp_path):
    kept = encoder()
    with torch.no_grad():
        kept.blocks[0][0].weight[0, 0, 0, 0] = 1e6
    found = networks.load_network(networks.save_network(tmp_path / "kept.pt", kept, **ABOUT)).model
    assert torch.equal(found.blocks[0][0].weight, kept.blocks[0][0].weight)
    assert not torch.equal(found.blocks[1][0].weight, kept.blocks[1][0].weight)  # each tensor for itself


def test_a_file_has_about_two_bytes_a_parameter(tmp_path):
    kept = models.resnet9(16)
    size = networks.save_network(tmp_path / "kept.pt", kept, **ABOUT).stat().st_size
    assert 2 * models.count_parameters(kept) < size < 2.2 * models.count_parameters(kept)


def test_keeping_and_reading_change_nothing_else(tmp_path):
    kept = encoder().train()
    before, random_numbers = copy.deepcopy(kept.state_dict()), torch.get_rng_state()
    found = networks.load_network(networks.save_network(tmp_path / "kept.pt", kept, **ABOUT))
    assert kept.training and all(torch.equal(before[k], v) for k, v in kept.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_numbers)
    with torch.no_grad():
        found.encoder.blocks[0][0].weight.zero_()
    assert not kept.blocks[0][0].weight.eq(0).all()


def test_what_was_read_can_be_trained_and_kept_again(tmp_path):
    first = networks.load_network(networks.save_network(tmp_path / "a.pt", encoder(), **ABOUT))
    classifier = models.Classifier(copy.deepcopy(first.encoder), 3).train()
    classifier(torch.randn(4, 3, 16, 16)).sum().backward()
    assert all(p.grad is not None and p.dtype == torch.float32 for p in classifier.parameters())
    again = networks.load_network(networks.save_network(tmp_path / "b.pt", first.encoder, **ABOUT))
    assert same_weights(again.model, first.model)  # half precision costs once


def test_a_network_that_was_laid_out_for_speed_is_kept_all_the_same(tmp_path):
    kept = models.to_channels_last(encoder())
    found = networks.load_network(networks.save_network(tmp_path / "kept.pt", kept, **ABOUT)).model
    assert found.blocks[1][0].weight.is_contiguous()
    torch.testing.assert_close(found.blocks[1][0].weight, kept.blocks[1][0].weight.contiguous(), rtol=1e-3, atol=1e-6)


def test_numbers_of_other_libraries_become_plain(tmp_path):
    numbers = {"minutes": torch.tensor(2.5), "labels": torch.tensor(100).numpy(), "class_names": ("a", "b", "c")}
    found = networks.load_network(networks.save_network(tmp_path / "kept.pt", new_model(), **ABOUT, **numbers))
    assert found.about == ABOUT | {"minutes": 2.5, "labels": 100, "class_names": ["a", "b", "c"]}


# --- what is not kept -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"method": ""}, "method has to be a text, not ''"),
        ({"dataset": None}, "dataset has to be a text, not None"),
        ({"tier": 3}, "tier has to be a text, not 3"),
        ({"size": 0}, "size has to be a number of pixels, not 0"),
        ({"size": None}, "size has to be a number of pixels, not None"),
        ({"seed": -1}, "seed has to be a whole number from 0, not -1"),
        ({"labels": 1.5}, "labels has to be a whole number from 0"),
        ({"labels": True}, "labels has to be a whole number from 0, not True"),
        ({"lesson": 0}, "lesson has to be a whole number from 1"),
        ({"block": 7}, "one of its 6 blocks, counted from 1, or None, not 7"),
        ({"block": 0}, "one of its 6 blocks"),
        ({"class_names": ["a", "b"]}, "2 class_names for 3 classes"),
        ({"class_names": "abc"}, "list of texts"),
        ({"minutes": math.nan}, "plain: finite numbers"),
        ({"how": object()}, "plain: finite numbers"),
    ],
)
def test_what_is_said_of_a_network_is_checked(change, told, tmp_path):
    with pytest.raises(ValueError, match=f"cannot be kept: .*{told}"):
        networks.save_network(tmp_path / "kept.pt", new_model(), **(ABOUT | change))
    assert not list(tmp_path.iterdir())


def test_only_encoders_with_a_recipe_are_kept(tmp_path):
    for foreign in (nn.Linear(2, 2), models.ResNet9(4), models.Classifier(models.ResNet9(4), 3), models.SimCLR(encoder())):
        with pytest.raises(ValueError, match="does not say how it was made"):
            networks.save_network(tmp_path / "kept.pt", foreign, **ABOUT)


def test_an_encoder_that_was_changed_afterwards_is_not_kept(tmp_path):
    shorter = encoder()
    shorter.blocks = shorter.blocks[:3]
    other = encoder()
    other.blocks[0][0] = nn.Conv2d(3, 4, 5, padding=2, bias=False)
    for changed, told in ((shorter, "layers are not those of its recipe"), (other, r"blocks\.0\.0\.weight is not \(4, 3, 3, 3\)")):
        with pytest.raises(ValueError, match=rf"was changed after resnet9 had made it \(.*{told}"):
            networks.save_network(tmp_path / "kept.pt", changed, **ABOUT)


def test_a_network_with_nan_is_not_kept(tmp_path):
    broken = encoder()
    broken.blocks[1][1].running_var[0] = math.nan
    with pytest.raises(ValueError, match=r"blocks\.1\.1\.running_var holds NaN or inf; diagnostics\.find_nonfinite"):
        networks.save_network(tmp_path / "kept.pt", broken, **ABOUT)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CourseError, match="could not be written.*another folder"):
        networks.save_network(tmp_path / "file" / "kept.pt", encoder(), **ABOUT)


def test_a_full_disk_keeps_the_old_network(tmp_path, monkeypatch):
    path = networks.save_network(tmp_path / "kept.pt", encoder(), **ABOUT)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CourseError, match="No space left on device"):
        networks.save_network(path, encoder(1), **ABOUT)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


# --- what is not read -----------------------------------------------------------------------------------------------------------------


def hollow():
    """A network of 230 GB whose tensors are one number each, said to be repeated."""
    recipe = {"name": "resnet9", "width": 6_000}
    expected = networks._empty(recipe, None).state_dict()
    return {"recipe": recipe, "weights": {name: torch.zeros((), dtype=v.dtype).expand(v.shape) for name, v in expected.items()}}


def spoil(kind, path, witness):
    content = torch.load(path, weights_only=True)
    weights, name = content["weights"], "blocks.0.0.weight"
    changed = {
        "malicious weights": {"weights": Malicious(str(witness))},
        "malicious about": {"about": {**ABOUT, "notes": Malicious(str(witness))}},
        "of another kind": {"kind": "sslcourse result"},
        "newer": {"format": 99},
        "format in words": {"format": "new"},
        "no recipe": {"recipe": None},
        "unknown encoder": {"recipe": {"name": "resnet1001", "width": 4}},
        "dangerous name": {"recipe": {"name": "__import__", "width": "os"}},
        "other arguments": {"recipe": {"name": "resnet9", "width": 4, "depth": 3}},
        "argument in words": {"recipe": {"name": "resnet9", "width": "4"}},
        "a network too large for any memory": {"recipe": {"name": "resnet9", "width": 10_000_000}},
        "fewer numbers than claimed": hollow() if kind == "fewer numbers than claimed" else {},
        "no weights": {"weights": None},
        "a weight missing": {"weights": {k: v for k, v in weights.items() if k != name}},
        "a weight more": {"weights": {**weights, "more": torch.zeros(1)}},
        "a weight of another shape": {"weights": {**weights, name: torch.zeros(2, 2)}},
        "a weight of text": {"weights": {**weights, name: "text"}},
        "a weight of whole numbers": {"weights": {**weights, name: weights[name].int()}},
        "a weight that is NaN": {"weights": {**weights, name: weights[name] * math.nan}},
        "nothing said": {"about": None},
        "no size": {"about": {"method": "SimCLR", "dataset": "toybox"}},
        "a block that it has not": {"about": ABOUT | {"block": 9}},
        "a head of text": {"head": "large"},
        "a head that is not there": {"head": {"classes": 3, "dropout": 0.2}},
    }  # fmt: skip
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("these are not the weights you are looking for")
    elif kind == "a malicious pickle":
        path.write_bytes(pickle.dumps(Malicious(str(witness)), protocol=2))
    elif kind == "a malicious file of the whole":
        torch.save(Malicious(str(witness)), path)
    elif kind == "torch's format of old":
        torch.save(content, path, _use_new_zipfile_serialization=False)
    elif kind == "a tar":
        with tarfile.open(path, "w") as tar:
            tar.add(__file__, "storages")
    elif kind == "only weights":
        torch.save(weights, path)
    elif kind == "a list":
        torch.save([1, 2, 3], path)
    else:
        torch.save({**content, **changed[kind]}, path)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        *((kind, "cannot be read as a network of this course") for kind in (
            "truncated", "empty", "text", "a malicious pickle", "a malicious file of the whole", "malicious weights", "malicious about",
            "torch's format of old", "a tar", "only weights", "a list")),
        *((kind, "is not a network of this course") for kind in ("of another kind", "format in words")),
        ("newer", "network format 99; this version reads 1"),
        *((kind, "is damaged") for kind in (
            "no recipe", "no weights", "nothing said", "no size", "a head of text", "a weight of text", "a weight of whole numbers")),
        *((kind, "is none of this version's encoders") for kind in ("unknown encoder", "dangerous name", "other arguments")),
        ("argument in words", "an argument that is not a number"),
        ("a network too large for any memory", "is damaged"),
        ("fewer numbers than claimed", "fewer numbers than it says"),
        *((kind, "its layers are not those of its recipe") for kind in ("a weight missing", "a weight more", "a head that is not there")),
        ("a weight of another shape", r"blocks\.0\.0\.weight is not \(4, 3, 3, 3\)"),
        ("a weight that is NaN", "a weight is NaN or inf"),
        ("a block that it has not", "one of its 6 blocks"),
    ],
)  # fmt: skip
def test_a_damaged_or_foreign_file_is_refused_and_nothing_in_it_runs(kind, told, tmp_path):
    path, witness = networks.save_network(tmp_path / "kept.pt", encoder(), **ABOUT), tmp_path / "witness"
    spoil(kind, path, witness)
    with pytest.raises(CourseError, match=rf"kept\.pt .*{told}.* Delete it, or run the lesson again that wrote it\.$") as caught:
        networks.load_network(path)
    assert not witness.exists() and "\n" not in str(caught.value)


def test_the_malicious_files_of_these_tests_would_run(tmp_path):
    """Else the test above would pass whatever the reader does."""
    witness = tmp_path / "witness"
    torch.save(Malicious(str(witness)), tmp_path / "kept.pt")
    torch.load(tmp_path / "kept.pt", weights_only=False).close()
    assert witness.exists()


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CourseError, match=r"There is no network .*kept\.pt\. Run the lesson that writes it\."):
        networks.load_network(tmp_path / "kept.pt")


# --- names and folders ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "name"),
    [
        ({"lesson": 3}, "03-simclr-toybox.pt"),
        ({"lesson": 3, "labels": None, "tier": "cpu", "seed": 0}, "03-simclr-toybox.pt"),
        ({"lesson": 1, "method": "supervised", "labels": 100}, "01-supervised-toybox-100.pt"),
        ({"lesson": 3, "method": "SimCLR, fine-tuned", "labels": 100, "tier": "smoke"}, "03-simclr-fine-tuned-toybox-100-smoke.pt"),
        ({"lesson": 4, "dataset": "my photos/2", "seed": 7, "tier": "gpu"}, "04-simclr-my-photos-2-gpu-seed7.pt"),
        ({"method": "../../evil"}, "evil-toybox.pt"),
    ],
)
def test_names_of_files(more, name):
    assert networks.network_file_name(ABOUT | more) == name


def test_a_network_without_a_method_has_no_name():
    with pytest.raises(ValueError, match="cannot be named: method has to be a text, not None"):
        networks.network_file_name({"dataset": "toybox", "size": 16})


def test_a_folder_is_read_in_order_and_what_is_damaged_is_named(tmp_path):
    for name in ("b", "a", "c"):
        networks.save_network(tmp_path / f"{name}.pt", encoder(), **ABOUT)
    (tmp_path / "b.pt").write_text("damaged")
    (tmp_path / "notes.txt").write_text("not a network")
    with pytest.warns(UserWarning, match=r"Left out: .*b\.pt cannot be read") as caught:
        found = networks.read_networks(tmp_path)
    assert list(found) == ["a", "c"] and len(caught) == 1
    assert networks.read_networks(tmp_path / "missing") == {}


def test_the_networks_of_the_package_say_so(tmp_path, monkeypatch):
    networks.save_network(tmp_path / "a.pt", encoder(), **ABOUT)
    monkeypatch.setattr(networks, "_REFERENCE", tmp_path)
    assert [n.origin for n in networks.reference_networks().values()] == ["committed"]


def test_the_networks_that_come_with_the_package_can_be_read(recwarn):
    found = networks.reference_networks()
    assert not recwarn.list
    for name, network in found.items():
        assert networks.network_file_name(network.about) == f"{name}.pt" and network.about["tier"] == "cpu"


def kept(method, lesson=None, **about):
    return networks.Network(nn.Identity(), {"method": method, "dataset": "toybox", "size": 32, "tier": "cpu", "lesson": lesson} | about)


def test_committed_networks_fill_in_for_methods_not_trained():
    own = {"x": kept("BYOL", 4)}
    committed = {"a": kept("SimCLR", 3), "b": kept("BYOL", 4, minutes=9), "c": kept("rotation", 2)}
    filled = networks.fill_networks(own, committed)
    assert {name: n.origin for name, n in filled.items()} == {"rotation": "committed", "SimCLR": "committed", "BYOL": "this run"}
    assert list(filled) == ["rotation", "SimCLR", "BYOL"] and "minutes" not in filled["BYOL"].about
    assert committed["a"].origin == "this run"  # those that were given are left alone
    assert networks.fill_networks({}, {}) == {}


def test_numbers_of_labels_and_seeds_of_one_method():
    own = {
        "d": kept("supervised", 1, labels=5000), "a": kept("supervised", 1, labels=100, seed=3),
        "b": kept("supervised", 1, labels=100), "c": kept("supervised", 1, labels=5000, seed=1),
    }  # fmt: skip
    filled = networks.fill_networks(own, {"e": kept("supervised", 1, labels=20)})
    assert list(filled) == ["supervised", "supervised, 5000 labels"]
    assert [(n.labels, n.about.get("seed", 0)) for n in filled.values()] == [(100, 0), (5000, 0)]


def test_another_data_set_or_a_quick_run_does_not_stand_in():
    own = {"a": kept("SimCLR", 3, tier="smoke"), "b": kept("SimCLR", 3, dataset="flowers"), "c": kept("BYOL", 4)}
    committed = {"d": kept("SimCLR", 3), "e": kept("rotation", 2, dataset="flowers")}
    filled = networks.fill_networks(own, committed, dataset="toybox", tier="cpu")
    assert {name: n.origin for name, n in filled.items()} == {"SimCLR": "committed", "BYOL": "this run"}
    quick = networks.fill_networks(own, committed, dataset="toybox", tier="smoke")
    assert {name: (n.origin, n.about["tier"]) for name, n in quick.items()} == {"SimCLR": ("this run", "smoke")}
