"""The commands pretrain and evaluate: what they write, what a notebook can load, what they refuse before any work is lost."""

import contextlib
import copy
import csv
import itertools
import shutil
import signal
import sys

import example_records
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import pretrain_words

from sslcourse import augment, datasets, evaluation, models, results, training
from sslcourse.course.commands import pretrain as pretrain_command
from sslcourse.course.commands.main import main
from sslcourse.course.commands.run_folder import RunFolder
from sslcourse.models import saved
from sslcourse.training import distributed

pytestmark = pytest.mark.usefixtures("one_thread")


def arguments(data, out, *more, method="simclr"):
    return pretrain_words(data, out, "--look-every", "1", *more, method=method)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "simclr"
    assert main(arguments(data, out)) == 0
    return out


def test_what_a_run_leaves(finished):
    assert sorted(path.name for path in finished.iterdir()) == [
        ".lock", "checkpoint.previous.pt", "checkpoint.pt", "encoder.safetensors", "log.txt", "metrics.csv",
    ]  # fmt: skip
    rows = list(csv.DictReader((finished / "metrics.csv").open()))
    assert [(row["epoch"], row["step"]) for row in rows] == [("1", "3"), ("2", "6")]
    assert 0 <= float(rows[1]["knn_accuracy"]) <= 1 and float(rows[1]["loss"]) < 10
    log = (finished / "log.txt").read_text()
    assert "SimCLR on toybox, 96 images of 16 pixels, ResNet-9, width 4, 2 epochs, batches of 32, cpu" in log
    assert "training to come" in log and "epoch 2/2, loss " in log and "knn_accuracy" in log and "Kept: " in log


def test_an_encoder_on_the_way_that_cannot_be_kept_ends_no_run(data, tmp_path, capsys):
    (tmp_path / "run" / "encoder-1.safetensors").mkdir(parents=True)
    assert main(arguments(data, tmp_path / "run", "--keep-every", "1", "--look-every", "0")) == 0
    out = capsys.readouterr().out
    assert "encoder-1.safetensors" in out and "The run goes on." in out and (tmp_path / "run" / "encoder.safetensors").is_file()


def test_it_trains_as_the_lessons_do(finished, data):
    """The same call from a notebook ends with the same encoder."""
    images = datasets.load("toybox", data, size=16).subset(unlabeled=96).subset(test=0)
    torch.manual_seed(0)
    method = models.SimCLR(models.resnet9(4))
    how = {"batch_size": 32, "lr": 3e-3, "precision": "fp32", "look_every": 0, "progress": False}
    training.pretrain(method, images, 2, **how)
    kept = models.load_network(finished / "encoder.safetensors")
    assert (kept.method, kept.dataset, kept.size, kept.about["epochs"], kept.about["images_seen"]) == ("SimCLR", "toybox", 16, 2, 192)
    x = augment.evaluation(16)(images.validation_images[:8])
    torch.testing.assert_close(kept.encoder(x), method.encoder(x), rtol=2e-2, atol=2e-3)  # kept in half precision
    assert evaluation.features(kept.encoder, images.validation_images, size=kept.size).shape == (len(images.validation_images), 32)


def test_a_run_that_was_broken_off_ends_as_if_it_had_not_been(finished, data, tmp_path, monkeypatch):
    real = training.pretrain
    with monkeypatch.context() as patch:
        patch.setattr(training, "pretrain", lambda *a, **o: real(*a, stop_after=1, **o))
        assert main(arguments(data, tmp_path / "run")) == 0
    assert main(arguments(data, tmp_path / "run", "--resume")) == 0
    ends = [load_file(folder / "encoder.safetensors") for folder in (finished, tmp_path / "run")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert [row["epoch"] for row in csv.DictReader((tmp_path / "run" / "metrics.csv").open())] == ["1", "2"]


@pytest.mark.parametrize("method", pretrain_command.METHODS)
def test_each_method_with_views_and_optimizer_of_ones_own(data, tmp_path, method, capsys):
    heads = {"rotation": [], "simclr": ["--option", "temperature", "0.5"]}
    heads["mae"] = ["--network", "vit", "--width", "16", "--depth", "2", "--option", "mask_ratio", "0.5"]
    more = heads.get(method, ["--option", "hidden_dim", "32", "--option", "out_dim", "16"])
    more += ["--augment", "crop", "0.3", "1.0", "--augment", "jitter", "0.4", "0.4", "0.4", "0.1", "--view", "12", "--epochs", "1"]
    more += ["--optimizer", "lars", "--lr", "0.2", "--clip-norm", "1", "--look-every", "0", "--guard"]
    more += ["--checkpoint-every", "2", "--keep-every", "1"]
    assert main(arguments(data, tmp_path / "run", *more, method=method)) == 0
    settings = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["settings"]
    assert all(part in settings["augmentation"] for part in ("crop=(0.3, 1.0)", "jitter=(0.4, 0.4, 0.4, 0.1)", "size=12"))
    assert (settings["optimizer"], settings["lr"], settings["clip_norm"]) == ("lars", 0.2, 1.0)
    kept = models.load_network(tmp_path / "run" / "encoder.safetensors")
    assert (kept.method, kept.size) == (pretrain_command.TITLES[method], 12)
    ends = [load_file(tmp_path / "run" / f"encoder{of}.safetensors") for of in ("", "-1")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert "epoch 1/1, loss" in capsys.readouterr().out


@pytest.mark.parametrize(("more", "told"), [
    (["--option", "temprature", "1"], "hidden_dim, out_dim"), (["--option", "temperature", "open('x','w')"], "number"),
    (["--option", "temperature", "-1"], "temperature"), (["--augment", "zoom", "2"], "crop"),
    (["--augment", "crop", "0.2"], "crop takes 2 numbers"), (["--augment", "blur", "1e999"], "blur takes 1 number"),
    (["--batch-size", "97"], "--batch-size 97: there are only 96"), (["--view", "7"], "--view 7"),
    (["--lr-scale", "predictor", "2"], "encoder, projector"), (["--lr-scale", "encoder", "-1"], "must not be negative"),
    (["--data-dir", "s3://bucket/data"], "--data-dir"), (["--network", "resnet18", "--width", "4"], "--width"),
    (["--device", "abc"], "--device is 'abc'"), (["--device", "cuda"], "PyTorch has no such device here"),
    (["--dataset", "nowhere"], "nowhere"), (["--size", "7"], "size"),
])  # fmt: skip
def test_what_cannot_be_is_said_in_a_sentence(more, told, data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(arguments(data, tmp_path / "run", *more)) == 1
    said = capsys.readouterr().err
    assert told in said and "Traceback" not in said
    assert not (tmp_path / "run" / "checkpoint.pt").exists() and not (tmp_path / "run" / "encoder.safetensors").exists()


def test_numbers_that_cannot_be_end_with_the_usage(data, tmp_path, capsys):
    for name, value in (("--epochs", "0"), ("--lr", "nan"), ("--method", "moco"), ("--seed", "1e3")):
        assert main(arguments(data, tmp_path / "run", name, value)) == 2
        assert name in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_folder_with_a_run_is_not_written_over(finished, data, capsys):
    before = (finished / "encoder.safetensors").read_bytes()
    assert main(arguments(data, finished)) == 1
    assert "Add --resume to go on with it" in capsys.readouterr().err
    assert main(arguments(data, finished, "--resume", "--lr", "0.5", "--augment", "sigma", "0.1", "1", "--width", "5")) == 1
    told = capsys.readouterr().err
    assert "belongs to a run with other settings: lr 0.003 there and 0.5 here" in told and "Delete" not in told
    assert "'sigma=(0.1, 2.0)' there and 'sigma=(0.1, 1.0)' here" in told and "'width': 5" in told
    assert (finished / "encoder.safetensors").read_bytes() == before


def test_a_compiled_encoder_is_kept_like_any_other(data, tmp_path, monkeypatch, capsys):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(type(self).__name__))
    assert main(arguments(data, tmp_path / "run", "--compile")) == 0
    assert compiled == ["Encoder"] and models.load_network(tmp_path / "run" / "encoder.safetensors").method == "SimCLR"

    def no_compiler(self, images):
        raise torch._dynamo.exc.TorchDynamoException("no C++ compiler")

    monkeypatch.setattr(models.SimCLR, "forward", no_compiler)
    assert main(arguments(data, tmp_path / "none", "--compile")) == 1
    assert "--compile" in capsys.readouterr().err


def test_without_a_predictor_and_without_a_network_what_suits_is_taken_and_said(data, tmp_path, capsys):
    given = arguments(data, tmp_path / "run", *["--option", "hidden_dim", "16", "--option", "out_dim", "8"], method="byol")
    given = [word for word in given if word not in ("--network", "resnet9", "--width", "4")]
    assert main([*given, "--option", "predictor", "False", "--epochs", "1", "--unlabeled", "32"]) == 0
    told = capsys.readouterr().out
    assert "--network is not given: what suits a CPU is taken." in told and "ResNet-9, width 16, 1 epochs" in told


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="has no hang-up signal")
def test_a_signal_that_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with pretrain_command._signals_stop() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.asked
            signal.raise_signal(signal.SIGTERM)
            assert stop.asked and stop.number == signal.SIGTERM
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_process_whose_neighbour_ends_says_so(data, tmp_path, monkeypatch, capsys):
    def broken(*_, **__):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1234")

    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setattr(distributed, "process_group", contextlib.nullcontext)
    monkeypatch.setattr(training, "pretrain", broken)
    assert main(arguments(data, tmp_path / "run")) == 1
    assert "Another process of this run has ended" in capsys.readouterr().err


def test_images_that_were_exchanged_under_one_name_are_noticed(tmp_path, capsys):
    """resume refuses them, evaluate says so, and both records stay."""

    def prepare(seed):
        source = tmp_path / f"photos{seed}"
        for k, name in itertools.product(range(20), "ab"):
            (source / name).mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(100 * seed + k + 50 * (name == "b")).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(source / name / f"{k}.png")
        assert main(["data", "--from", str(source), "--name", "mine", "--size", "16", "--force", "--data-dir", str(tmp_path / "data")]) == 0

    given = [word for word in arguments(tmp_path / "data", tmp_path / "run", "--dataset", "mine") if word not in ("--unlabeled", "96")]
    given = [*given, "--batch-size", "8", "--look-every", "0"]
    how = ["--labels-per-class", 2, "--seeds", 0, "--protocol", "knn", "--split", "test", "--out", tmp_path / "records"]
    prepare(1)
    assert main(given) == 0 and evaluate(tmp_path / "data", tmp_path / "run", *how) == 0
    assert "other images" not in capsys.readouterr().out
    prepare(2)
    assert main([*given, "--resume"]) == 1
    assert "other settings: identity '" in capsys.readouterr().err
    assert evaluate(tmp_path / "data", tmp_path / "run", *how) == 0
    assert "called mine too, with other images" in capsys.readouterr().out
    assert len({record["identity"] for record in results.read(tmp_path / "records")}) == 2


def test_what_evaluate_makes_of_a_lessons_network_has_a_name_and_a_tier_of_its_own(finished, data, tmp_path):
    network = models.load_network(finished / "encoder.safetensors")
    about = {"method": "SimCLR", "dataset": "toybox", "size": 16, "lesson": 3, "tier": "cpu", "seed": 0}
    path = models.save_network(tmp_path / "networks" / "03-simclr-toybox.safetensors", network.encoder, **about)
    lessons_own = {"method": "SimCLR, frozen", "lesson": 3, "name": "SimCLR, frozen-3-a-class", "labels": 30, "seed": [0, 1, 2]}
    kept = results.write(example_records.make(**lessons_own), tmp_path)
    elsewhere = models.save_network(tmp_path / "elsewhere", network.encoder, **(about | {"dataset": "elsewhere"}))
    how = ["--labels-per-class", 3, "--protocol", "knn", "linear-probe", "--split", "test", "--out", tmp_path, "--dataset", "toybox"]
    assert evaluate(data, path, *how) == evaluate(data, path, *how, "--block", 2) == evaluate(data, elsewhere, *how) == 0
    found = results.read(tmp_path)
    assert len(found) == 7 and results.read_one(kept) in found
    assert [record["tier"] for record in found].count("one network, tier cpu") == 6
    assert "SimCLR on elsewhere, kNN" in [record["method"] for record in found]


def evaluate(data, path, *more):
    return main(["evaluate", str(path), "--data-dir", str(data), "--device", "cpu", "--quiet", *map(str, more)])


@pytest.mark.parametrize(("more", "seen"), [([], {"size": 16}), (["--size", 32, "--block", 2], {"size": 32, "block": 2})])
def test_evaluate_answers_what_the_package_does(finished, data, tmp_path, more, seen):
    network = models.load_network(finished / "encoder.safetensors")
    images = datasets.load("toybox", data).few_labels(3, 7)
    expected = evaluation.linear_probe(evaluation.feature_set(network.encoder, images, **seen), split="test").top1
    bent = evaluation.mlp_probe(evaluation.feature_set(network.encoder, images, **seen), split="test").top1
    how = ["--labels-per-class", 3, "--seeds", 7, "--protocol", "linear-probe", "mlp-probe", "--split", "test", "--out", tmp_path]
    assert evaluate(data, finished / "encoder.safetensors", *how, *more) == 0
    record, mlp = sorted(results.read(tmp_path), key=lambda record: len(record["method"]))
    assert mlp["metrics"]["top1"]["value"] == pytest.approx(bent, abs=1e-12) and mlp["method"] == "SimCLR, frozen, MLP"
    assert record["metrics"]["top1"]["value"] == pytest.approx(expected, abs=1e-12)
    assert record["image_size"] == seen["size"] and record["tier"] == "long run" and record["settings"]["block"] == seen.get("block")
    assert record["method"] == ("SimCLR, probe" if more else "SimCLR, frozen")
    assert record["settings"]["epochs"] == 2 and record["settings"]["minutes"] > 0


def test_evaluate_gives_a_table_and_records_and_can_train_the_same_network_from_scratch(finished, data, tmp_path, monkeypatch, capsys):
    trained, original = [], evaluation.fine_tune

    def fine_tune(encoder, images, epochs, **options):
        trained.append((copy.deepcopy(encoder), epochs, options["encoder_lr_scale"], len(images.train_labels)))
        return original(encoder, images, epochs, **options)

    monkeypatch.setattr(evaluation, "fine_tune", fine_tune)
    how = ["--labels-per-class", 3, "--seeds", 0, 1, "--protocol", "knn", "fine-tune", "supervised", "untrained", "--like-lessons"]
    how += ["--steps", 2, "--passes", 1]
    assert evaluate(data, finished, *how, "--split", "test", "--out", tmp_path) == 0
    assert [call[1:] for call in trained] == [(2, 0.5, 30)] * 2 + [(4, 1.0, 30)] * 2
    weights = [next(call[0].parameters()) for call in trained]
    same = next(models.load_network(finished / "encoder.safetensors").encoder.parameters())
    assert torch.equal(weights[0], same) and torch.equal(weights[1], same)
    assert weights[2].shape == same.shape and not torch.equal(weights[2], same) and not torch.equal(weights[2], weights[3])
    tuned, nearest, untrained, scratch = sorted(results.read(tmp_path), key=lambda record: record["method"])
    names = ["SimCLR, fine-tuned", "SimCLR, kNN", "random initialisation", "supervised"]
    assert [record["method"] for record in (tuned, nearest, untrained, scratch)] == names
    images, fresh = datasets.load("toybox", data), {}
    for seed in (0, 1):
        torch.manual_seed(seed)
        fresh[seed] = models.resnet9(4).eval()
    block = evaluation.best_block(evaluation.probe_blocks(fresh, images, 10, size=16))
    probes = []
    for seed, encoder in fresh.items():
        few = images.few_labels(3, seed)
        seen = evaluation.feature_set(encoder, few, size=16, block=block)
        seen = evaluation.in_views(seen, encoder, few, augment.weak(16), block=block, seed=seed)
        probes.append(evaluation.linear_probe(seen, split="test").top1)
    assert untrained["metrics"]["top1"]["values"] == pytest.approx(probes)
    assert untrained["settings"]["block"] == block
    assert tuned["settings"]["epochs"] == 2 and "epochs" not in scratch["settings"]
    assert all(r["seeds"] == [0, 1] and r["labels"] == 30 and r["lesson"] == 3 and r["image_size"] == 16 for r in (tuned, nearest))
    assert {record["network"] for record in (tuned, nearest, scratch)} == {"ResNet-9, width 4"}
    told = capsys.readouterr().out
    assert "SimCLR, kNN" in told and "On test images, 2 draws of labels." in told and told.count("3 labels per class: ") == 5


@pytest.mark.parametrize(("more", "told"), [
    (["--labels-per-class", 100_000], "smallest class"), (["--seeds", 1, 1], "--seeds"), (["--block", 17], "block"),
    (["--size", 4], "pixels"), (["--device", "abc"], "--device is 'abc'"), (["--out", "records"], "--split test")
])  # fmt: skip
def test_evaluate_refuses_what_cannot_be(finished, data, more, told, capsys):
    assert evaluate(data, finished, *more) == 1
    assert told in capsys.readouterr().err


def test_evaluate_wants_a_finished_run(data, tmp_path, capsys):
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "checkpoint.pt").write_bytes(b"")
    for path, told in ((tmp_path, "encoder.safetensors"), (tmp_path / "no.pt", "no.pt"), (tmp_path / "unfinished", "--resume")):
        assert evaluate(data, path) == 1 and told in capsys.readouterr().err


def test_a_log_line_reaches_the_file_where_nobody_reads(tmp_path, monkeypatch):
    class Gone:
        def write(self, text):
            raise OSError(5, "Input/output error")

        flush = write

    with RunFolder(tmp_path / "run") as folder:
        monkeypatch.setattr(sys, "stdout", Gone())
        folder.say("still here")
        folder.say("and again")
        sys.stdout.close()
    assert [line.split(" ", 1)[1] for line in (tmp_path / "run" / "log.txt").read_text().splitlines()] == ["still here", "and again"]


def test_an_encoder_that_comes_with_the_package_is_named_evaluated_and_trained_further(finished, data, tmp_path, monkeypatch, capsys):
    """A file of that name in the working folder would count first; another name gets the list."""
    (tmp_path / "shipped").mkdir()
    shutil.copy(finished / "encoder.safetensors", tmp_path / "shipped" / "drawn-simclr.safetensors")
    monkeypatch.setattr(saved, "ENCODERS", tmp_path / "shipped")
    monkeypatch.chdir(tmp_path)
    how = ["--labels-per-class", 3, "--seeds", 0, 1, "--protocol", "linear-probe"]
    assert evaluate(data, "drawn-simclr", *how) == evaluate(data, finished, *how) == 0
    first, second = capsys.readouterr().out.split("It is one network", 1)
    assert "SimCLR, frozen" in first and first.splitlines()[-1] in second
    assert evaluate(data, "photos-simclr", *how) == 1
    assert "name one that is here: drawn-simclr." in capsys.readouterr().err

    begun = [word for word in arguments(data, tmp_path / "run") if word not in ("--network", "resnet9", "--width", "4")]
    with monkeypatch.context() as patch, pytest.raises(Seen) as seen:
        patch.setattr(training, "pretrain", lambda method, *a, **o: (_ for _ in ()).throw(Seen(method)))
        main([*begun, "--start", "drawn-simclr", "--view", "12"])
    ours, theirs = (network.state_dict() for network in (seen.value.args[0].encoder, models.load_network("drawn-simclr").encoder))
    assert seen.value.args[0].encoder.training and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert main([*begun, "--resume", "--start", "drawn-simclr", "--width", "4"]) == 1
    assert "leave --network and --width out" in capsys.readouterr().err
    assert main([*begun, "--resume", "--start", "drawn-simclr"]) == 0
    before, after = (models.load_network(place).about for place in ("drawn-simclr", tmp_path / "run"))
    assert [after[name] / before[name] for name in ("epochs", "images_seen")] == [2, 2] and after["minutes"] > before["minutes"]


class Seen(Exception):
    pass


def test_fixmatch_goes_on_from_the_encoder_beside_its_control(finished, data, tmp_path, monkeypatch, capsys):
    trained, original = [], training.fit_semi_supervised

    def fit(method, images, passes, **options):
        trained.append((method.final_weight, copy.deepcopy(method.classifier), passes))
        return original(method, images, passes, **options)

    monkeypatch.setattr(training, "fit_semi_supervised", fit)
    monkeypatch.setattr(datasets, "load", lambda *a, real=datasets.load, **o: real(*a, **o).subset(unlabeled=96))
    how = ["--labels-per-class", 3, "--seeds", 0, 1, "--protocol", "fixmatch", "fixmatch-weight-0", "--unlabeled-passes", 2]
    assert evaluate(data, finished, *how, "--split", "test", "--out", tmp_path) == 0
    assert [(weight, passes) for weight, _, passes in trained] == [(1, 2), (1, 2), (0, 2), (0, 2)]
    weights = [next(classifier.parameters()) for _, classifier, _ in trained]
    assert all(torch.equal(weights[0], other) for other in weights)  # the encoder's own
    heads = [classifier.head.weight for _, classifier, _ in trained]
    assert torch.equal(heads[0], heads[2]) and not torch.equal(heads[0], heads[1])
    found = {record["method"]: record for record in results.read(tmp_path)}
    assert list(found) == ["SimCLR + FixMatch", "SimCLR + FixMatch, weight 0"]
    assert {record["lesson"] for record in found.values()} == {6} and found["SimCLR + FixMatch"]["settings"]["unlabelled"] == 96
    values = [100 * v for record in found.values() for v in record["metrics"]["top1"]["values"]]
    told = evaluation.paired_runs(values[:2], values[2:]).verdict("FixMatch", "FixMatch, weight 0")
    assert f"3 labels per class: {told}." in capsys.readouterr().out
