"""The commands pretrain and evaluate: what they write, what a notebook can load, what they refuse before any work is lost."""

import copy
import csv
import json
import sys
import types

import pytest
import torch
from safetensors.torch import load_file

from sslcourse import augment, datasets, evaluation, models, results, training
from sslcourse.course.commands import pretrain as pretrain_command
from sslcourse.course.commands.main import main
from sslcourse.course.commands.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    datasets.load("toybox", folder, size=16)
    return folder


def arguments(data, out, *more, method="simclr"):
    base = ["pretrain", "--method", method, "--data-dir", str(data), "--out", str(out), "--epochs", "2", "--size", "16", "--device", "cpu"]
    base += ["--batch-size", "32", "--network", "resnet9", "--width", "4", "--unlabeled", "96", "--precision", "fp32", "--quiet"]
    return [*base, "--look-every", "1", *more]


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "simclr"
    assert main(arguments(data, out)) == 0
    return out


def test_what_a_run_leaves(finished):
    assert sorted(path.name for path in finished.iterdir()) == [
        ".lock", "checkpoint.previous.pt", "checkpoint.pt", "encoder.safetensors", "log.txt", "metrics.csv", "metrics.jsonl",
    ]  # fmt: skip
    rows = list(csv.DictReader((finished / "metrics.csv").open()))
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == ["1", "2"] and [line["step"] for line in lines] == [3, 6]
    assert float(rows[1]["loss"]) == lines[1]["loss"] and 0 <= lines[1]["knn_accuracy"] <= 1
    log = (finished / "log.txt").read_text()
    assert "SimCLR on toybox, 96 images of 16 pixels, ResNet-9, width 4, 2 epochs, batches of 32, cpu" in log
    assert "epoch 2/2, loss " in log and "nearest neighbours" in log and "Kept: " in log


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


@pytest.mark.parametrize("method", ["rotation", "byol", "barlow_twins"])
def test_the_other_methods(method, data, tmp_path, capsys):
    more = ["--epochs", "1", "--look-every", "0", "--guard"]
    more += [] if method == "rotation" else ["--option", "hidden_dim", "32", "--option", "out_dim", "16"]
    assert main(arguments(data, tmp_path / "run", *more, method=method)) == 0
    assert models.load_network(tmp_path / "run" / "encoder.safetensors").method == pretrain_command.TITLES[method]
    assert "epoch 1/1, loss" in capsys.readouterr().out


def test_a_run_that_was_broken_off_ends_as_if_it_had_not_been(finished, data, tmp_path, monkeypatch):
    real = training.pretrain
    with monkeypatch.context() as patch:
        patch.setattr(training, "pretrain", lambda *a, **o: real(*a, stop_after=1, **o))
        assert main(arguments(data, tmp_path / "run")) == 0
    assert main(arguments(data, tmp_path / "run", "--resume")) == 0
    ends = [load_file(folder / "encoder.safetensors") for folder in (finished, tmp_path / "run")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    columns = [[row["epoch"] for row in csv.DictReader((folder / "metrics.csv").open())] for folder in (finished, tmp_path / "run")]
    assert columns == [["1", "2"]] * 2


def test_views_of_another_size_and_optimizer_options(data, tmp_path):
    more = ["--view", "12", "--optimizer", "lars", "--lr", "0.2", "--clip-norm", "1", "--epochs", "1", "--option", "temperature", "0.5"]
    assert main(arguments(data, tmp_path / "run", *more, "--checkpoint-every", "2")) == 0
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert "size=12" in state["settings"]["augmentation"] and state["settings"]["optimizer"] == "lars"
    assert models.load_network(tmp_path / "run" / "encoder.safetensors").size == 12


@pytest.mark.parametrize("method", ["rotation", "simclr", "byol", "barlow_twins"])
def test_the_views_can_be_changed(data, tmp_path, method):
    heads = [] if method == "rotation" else ["--option", "hidden_dim", "32", "--option", "out_dim", "16"]
    more = ["--augment", "crop", "0.3", "1", "--augment", "jitter", "0.4", "0.4", "0.4", "0.1", "--epochs", "1", *heads]
    assert main(arguments(data, tmp_path / "run", *more, method=method)) == 0
    views = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["settings"]["augmentation"]
    assert "crop=(0.3, 1.0)" in views and "jitter=(0.4, 0.4, 0.4, 0.1)" in views and "size=16" in views


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--option", "temprature", "1"], "SimCLR has no option 'temprature'; it has hidden_dim, out_dim"),
        (["--option", "temperature", "open('x','w')"], "the value has to be a number, True or False"),
        (["--option", "temperature", "-1"], "temperature must be a positive number"),
        (["--augment", "zoom", "2"], "--augment zoom: the views have no such option; they have strength, crop"),
        (["--augment", "crop", "0.2"], "--augment crop 0.2: crop takes 2 numbers"),
        (["--augment", "blur", "open('x','w')"], "blur takes 1 number."),
        (["--augment", "crop", "0.5", "0.2"], "0 < smallest ≤ largest ≤ 1"),
        (["--batch-size", "97"], "There are 96 unlabelled images, fewer than a batch of 97"),
        (["--network", "resnet18", "--width", "4"], "--width is for resnet9"),
        (["--device", "abc"], "--device abc is no device"),
        (["--dataset", "nowhere"], "nowhere"),
        (["--size", "7"], "size is 7"),
        (["--warmup", "1"], "warmup is a part of the steps"),
        (["--memory-limit", "0.0001"], "batch"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(more, told, data, tmp_path, capsys):
    assert main(arguments(data, tmp_path / "run", *more)) == 1
    said = capsys.readouterr().err
    assert told in said and "Traceback" not in said
    assert not (tmp_path / "run" / "checkpoint.pt").exists() and not (tmp_path / "run" / "encoder.safetensors").exists()


@pytest.mark.parametrize("more", [["--epochs", "0"], ["--lr", "nan"], ["--method", "moco"], ["--look-every", "-1"], ["--seed", "1e3"]])
def test_numbers_that_cannot_be_end_with_the_usage(more, data, tmp_path, capsys):
    assert main(arguments(data, tmp_path / "run", *more)) == 2
    assert more[0] in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_gpu_that_is_not_there(data, tmp_path, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert main(arguments(data, tmp_path / "run", "--device", "cuda")) == 1
    assert "PyTorch sees no GPU here" in capsys.readouterr().err


def test_a_folder_with_a_run_is_not_written_over(finished, data, capsys):
    before = (finished / "encoder.safetensors").read_bytes()
    assert main(arguments(data, finished)) == 1
    assert "Add --resume to go on with it" in capsys.readouterr().err
    assert main(arguments(data, finished, "--resume", "--lr", "0.5")) == 1
    assert "belongs to a run with other settings: lr 0.003 there and 0.5 here" in capsys.readouterr().err
    assert (finished / "encoder.safetensors").read_bytes() == before


def test_tensorboard_gets_the_rows(data, tmp_path, monkeypatch, capsys):
    written = []
    writer = types.SimpleNamespace(add_scalar=lambda name, value, step: written.append((name, value, step)))
    fake = types.ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = lambda folder: writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    assert main(arguments(data, tmp_path / "run", "--tensorboard")) == 0
    assert {step for _, _, step in written} == {3, 6} and {"loss", "knn_accuracy"} <= {name for name, _, _ in written}
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert main(arguments(data, tmp_path / "other", "--tensorboard")) == 1
    assert "pip install tensorboard" in capsys.readouterr().err


def test_a_compiled_encoder_is_kept_like_any_other(data, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: compiled.append(type(self).__name__))
    assert main(arguments(data, tmp_path / "run", "--compile")) == 0
    assert compiled == ["ResNet9"] and "Compiled in " in (tmp_path / "run" / "log.txt").read_text()
    assert main(arguments(data, tmp_path / "plain")) == 0
    ends = [load_file(tmp_path / name / "encoder.safetensors") for name in ("run", "plain")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])  # the warm-up leaves no trace


# --- evaluate ---------------------------------------------------------------------------------------------------------------------------


def test_evaluate_gives_a_table_and_records_that_lessons_read(finished, data, tmp_path, capsys):
    typed = ["evaluate", str(finished), "--data-dir", str(data), "--labels-per-class", "2", "5", "--seeds", "0", "1", "--quiet"]
    assert (
        main(
            [
                *typed,
                "--protocol",
                "knn",
                "linear-probe",
                "fine-tune",
                "--steps",
                "2",
                "--passes",
                "1",
                "--split",
                "test",
                "--out",
                str(tmp_path),
            ]
        )
        == 0
    )
    told = capsys.readouterr().out
    assert all(f"SimCLR, {way}" in told for way in ("kNN", "frozen", "fine-tuned")) and "On test images, 2 draws of labels." in told
    records = results.read(tmp_path)
    assert len(records) == 6 and {r["labels"] for r in records} == {20, 50} and {r["lesson"] for r in records} == {3}
    assert all(r["seeds"] == [0, 1] and r["network"] == "ResNet-9, width 4" and r["image_size"] == 16 for r in records)


def test_evaluate_asks_what_the_package_would_answer(finished, data, tmp_path):
    network = models.load_network(finished / "encoder.safetensors")
    images = datasets.load("toybox", data).few_labels(3, 7)
    expected = evaluation.linear_probe(evaluation.feature_set(network.encoder, images, size=16), split="test").top1
    typed = [
        "evaluate",
        str(finished / "encoder.safetensors"),
        "--data-dir",
        str(data),
        "--labels-per-class",
        "3",
        "--seeds",
        "7",
        "--device",
        "cpu",
    ]
    assert main([*typed, "--protocol", "linear-probe", "--split", "test", "--out", str(tmp_path)]) == 0
    assert results.read(tmp_path)[0]["metrics"]["top1"]["value"] == pytest.approx(expected, abs=1e-12)


def test_evaluate_can_look_at_larger_images_and_at_another_block(finished, data, tmp_path):
    network = models.load_network(finished / "encoder.safetensors")
    images = datasets.load("toybox", data).few_labels(3, 7)
    typed = ["evaluate", str(finished), "--data-dir", str(data), "--labels-per-class", "3", "--seeds", "7", "--device", "cpu"]
    typed += ["--protocol", "linear-probe", "--split", "test", "--out", str(tmp_path), "--size", "32", "--block", "2"]
    assert main(typed) == 0
    (record,) = results.read(tmp_path)
    expected = evaluation.linear_probe(evaluation.feature_set(network.encoder, images, size=32, block=2), split="test").top1
    assert record["metrics"]["top1"]["value"] == pytest.approx(expected, abs=1e-12)
    assert record["method"] == "SimCLR, probe" and record["image_size"] == 32 and record["tier"] == "long run"
    assert record["settings"]["block"] == 2 and record["settings"]["epochs"] and record["settings"]["minutes"] > 0


def test_evaluate_can_train_the_same_network_from_scratch(finished, data, tmp_path, monkeypatch):
    trained, kept = [], models.load_network(finished / "encoder.safetensors")

    def fine_tune(encoder, images, epochs, **options):
        trained.append((copy.deepcopy(encoder), epochs, options["encoder_lr_scale"], len(images.train_labels)))
        return original(encoder, images, epochs, **options)

    original = evaluation.fine_tune
    monkeypatch.setattr(evaluation, "fine_tune", fine_tune)
    typed = [
        "evaluate",
        str(finished),
        "--data-dir",
        str(data),
        "--labels-per-class",
        "3",
        "--seeds",
        "0",
        "1",
        "--device",
        "cpu",
        "--quiet",
    ]
    typed += ["--protocol", "fine-tune", "supervised", "--steps", "2", "--passes", "1", "--split", "test", "--out", str(tmp_path)]
    assert main(typed) == 0
    assert [call[1:] for call in trained] == [(2, 0.5, 30)] * 2 + [(4, 1.0, 30)] * 2
    weights = [next(call[0].parameters()) for call in trained]
    same = next(kept.encoder.parameters())
    assert torch.equal(weights[0], same) and torch.equal(weights[1], same)
    assert weights[2].shape == same.shape and not torch.equal(weights[2], same) and not torch.equal(weights[2], weights[3])
    tuned, scratch = sorted(results.read(tmp_path), key=lambda record: record["method"])
    assert (tuned["method"], scratch["method"], scratch["network"]) == ("SimCLR, fine-tuned", "supervised", tuned["network"])
    assert tuned["settings"]["epochs"] == 2 and "epochs" not in scratch["settings"]


def test_a_record_of_another_data_set_says_where_the_network_was_trained(finished, data, tmp_path):
    network = models.load_network(finished / "encoder.safetensors")
    about = {"method": "SimCLR", "dataset": "elsewhere", "size": 16, "lesson": 3}
    models.save_network(tmp_path / "other.pt", network.encoder, **about)
    typed = ["evaluate", str(tmp_path / "other.pt"), "--data-dir", str(data), "--seeds", "0", "--protocol", "knn", "--out", str(tmp_path)]
    assert main([*typed, "--dataset", "toybox", "--split", "test"]) == 0
    (record,) = results.read(tmp_path)
    assert record["method"] == "SimCLR on elsewhere, kNN" and record["dataset"] == "toybox" and record["network"] == "ResNet-9, width 4"


def test_evaluate_refuses_in_sentences(finished, data, tmp_path, capsys):
    for typed, told in (
        ([str(tmp_path)], "no encoder.safetensors"),
        ([str(tmp_path / "no.pt")], "There is no network"),
        ([str(finished), "--labels-per-class", "100000"], "the smallest class of toybox has"),
        ([str(finished), "--seeds", "1", "1"], "give different whole numbers"),
        ([str(finished), "--block", "17"], "block"),
        ([str(finished), "--size", "4"], "between 8 and 512 pixels"),
        ([str(finished), "--device", "abc"], "--device abc is no device"),
        ([str(finished), "--out", str(tmp_path)], "records are of test images: add --split test"),
    ):
        assert main(["evaluate", *typed, "--data-dir", str(data)]) == 1
        assert told in capsys.readouterr().err
    (tmp_path / "checkpoint.pt").write_bytes(b"")
    assert main(["evaluate", str(tmp_path)]) == 1
    assert "It is not finished: call pretrain with --resume." in capsys.readouterr().err


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
