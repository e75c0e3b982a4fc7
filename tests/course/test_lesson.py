import json
import os
import random
import sys
import types
from unittest.mock import Mock

import numpy
import pytest
import torch
from jupyter_client.manager import start_new_kernel

from sslcourse import evaluation, models, plots, results
from sslcourse.course import lesson as lessons
from sslcourse.datasets import prepared
from sslcourse.errors import CourseError


def test_start_reports_and_registers(begin, capsys, tmp_path, monkeypatch):
    begun = begin(3, tier="smoke", seed=5, size=32, temperature=0.5)
    out = capsys.readouterr().out
    assert "Lesson 3 of 7: SimCLR" in out and "tier smoke (40 seconds" in out and "toybox" in out and torch.__version__ in out
    assert lessons.current() is begun and "Colab" not in out
    assert (begun.number, begun.tier, begun.dataset, begun.seed, begun.size) == (3, "smoke", "toybox", 5, 32)
    assert isinstance(begun.device, torch.device) and begun.results_dir == tmp_path / "results"
    assert str(tmp_path) not in out  # no notebook carries anybody's folders
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    begin(1, tier="smoke")
    assert "· Colab" in capsys.readouterr().out


def test_start_seeds_everything_and_sets_the_style(begin):
    def draw():
        begin(1, tier="smoke", seed=7)
        return random.random(), numpy.random.rand(), torch.rand(1).item()

    first = draw()
    assert draw() == first and plots.use_style.call_count == 2
    begin(1, tier="smoke", seed=8)
    assert random.random() != first[0]


@pytest.mark.parametrize("name, value", [
    *(("tier", tier) for tier in ("huge", None)), *(("seed", seed) for seed in (True, -1, 2**32, 1.0)),
    *(("dataset", name) for name in (" ", 3)), *(("size", size) for size in (8, 513, "32", True)),
    *(("data_dir", folder) for folder in ("", 5)), *(("epochs", number) for number in (-2, 1.5)),
    *(("labels_per_class", number) for number in ("10", 2.5, 0, True)),
    *(("budget", number) for number in ("x", 0, -1.0, float("nan"), float("inf"), True)), *(("width", number) for number in (-1, 8.0)),
    *(("temperature", number) for number in (-2, float("nan"))),
])  # fmt: skip
def test_wrong_parameters_get_a_sentence_that_names_them(begin, name, value):
    with pytest.raises(CourseError, match=f"{name.upper()} is {value!r}; it has to be"):
        begin(1, **({"tier": "smoke"} | {name: value}))


def own_images(data_dir, counts):
    """A prepared data set `mine` with so many training images in its classes."""
    names = [f"class {number}" for number in range(len(counts))]
    parts = {}
    for split in prepared.SPLITS:
        labels = numpy.repeat(numpy.arange(len(counts)), counts)
        parts |= {f"{split}_images": numpy.zeros((len(labels), 3, 8, 8), numpy.uint8), f"{split}_labels": labels}
    prepared.write(data_dir / "mine", parts, name="mine", class_names=names, source="made here", options={})


def test_labels_are_compared_with_the_data_set_before_anything_runs(begin, tmp_path):
    with pytest.raises(CourseError, match="LABELS_PER_CLASS is 100000, .* toybox has more than 500 .* from 1 to 500"):
        begin(2, tier="smoke", labels_per_class=100000)
    own_images(tmp_path / "data", [12, 40])
    mine = {"tier": "smoke", "dataset": "mine", "data_dir": tmp_path / "data"}
    with pytest.raises(CourseError, match="LABELS_PER_CLASS is 41, .* mine has more than 40"):
        begin(2, labels_per_class=41, **mine)
    assert begin(2, labels_per_class=40, **mine).dataset == "mine"  # the rare class gives what it has
    with pytest.raises(CourseError, match=r"'mine' in .*nowhere.* DATA_DIR names another"):
        begin(2, **(mine | {"data_dir": tmp_path / "nowhere"}))


def test_tier_gpu_says_what_it_downloads_and_a_data_set_asked_for_by_name_is_not_fetched(begin, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sslcourse.datasets.sources.prepare", Mock(side_effect=CourseError("No network.")))
    with pytest.raises(CourseError, match="No network. DATA_DIR .* DATASET = 'toybox' needs no download"):
        begin(1, tier="gpu")
    assert "cifar10 is not there yet and is downloaded now: 170 MB, which takes about 1 min" in capsys.readouterr().out
    for asked in ({"tier": "full"}, {"tier": "gpu", "dataset": "cifar10"}):
        with pytest.raises(CourseError, match="is not prepared in"):
            begin(1, **asked)
    assert begin(1, tier="gpu", dataset="toybox").dataset == "toybox" and not (tmp_path / "data").exists()


def test_a_folder_that_is_a_file_is_refused_at_the_start_and_at_the_end(begin, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(CourseError, match="RESULTS_DIR .* is a file"):
        begin(1, tier="smoke", results_dir=tmp_path / "taken")
    begun = begin(1, tier="smoke")
    begun.results_dir = tmp_path / "taken" / "below"
    with pytest.raises(CourseError, match="below/.* could not be written"):
        begun.finish(headline="x")


def test_tier_and_data_set_ask_the_environment_then_the_machine_and_the_tier(monkeypatch):
    monkeypatch.setenv("SSLCOURSE_TIER", "smoke")
    assert lessons.resolve_tier("auto") == "smoke" and lessons.resolve_tier("cpu") == "cpu"
    monkeypatch.setenv("SSLCOURSE_TIER", "tiny")
    with pytest.raises(CourseError, match="environment variable SSLCOURSE_TIER is 'tiny'"):
        lessons.resolve_tier("auto")
    monkeypatch.delenv("SSLCOURSE_TIER")
    for cuda, tier in ((True, "gpu"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        assert lessons.resolve_tier("auto") == tier and lessons.resolve_tier("auto", torch.device("cpu")) == "cpu"
    assert [lessons.resolve_dataset("default", tier) for tier in lessons.TIERS] == ["toybox", "toybox", "cifar10", "stl10"]
    monkeypatch.setenv("SSLCOURSE_DATASET", "cifar10")
    assert lessons.resolve_dataset("default", "smoke") == "cifar10" and lessons.resolve_dataset("flowers", "smoke") == "flowers"


def test_the_device_that_is_asked_for_is_taken_or_refused_with_its_parameter_or_variable(begin, monkeypatch):
    with pytest.raises(CourseError, match="^DEVICE is 'xpu'"):
        begin(1, tier="smoke", device="xpu")
    monkeypatch.setenv("SSLCOURSE_DEVICE", "meta")
    with pytest.raises(CourseError, match="^The environment variable SSLCOURSE_DEVICE is 'meta'"):
        begin(1, tier="smoke")
    assert begin(1, tier="smoke", device="cpu").device.type == "cpu"


def test_pick_falls_back_towards_smaller_tiers(begin):
    begun = [begin(1, tier=tier, dataset="toybox") for tier in lessons.TIERS]
    assert [one.pick(smoke=1, cpu=2, gpu=3) for one in begun] == [1, 2, 3, 3] and begun[-1].pick(smoke=1, cpu=2) == 2
    for wrong in ({"smoke": 1}, {"smoke": 1, "cpu": 2, "tpu": 3}):
        with pytest.raises(TypeError, match="pick needs smoke and cpu"):
            begun[0].pick(**wrong)


@pytest.mark.parametrize("tier, size, width, name, like", [
    ("smoke", 32, 0, "ResNet-9, width 8", models.resnet9(8)), ("cpu", 96, 0, "ResNet-9, width 16", models.resnet9(16)),
    ("full", 32, 0, "ResNet-18", models.resnet18(small_images=True)),
    ("full", 64, 0, "ResNet-18", models.resnet18(small_images=True, max_pool=True)),
    ("full", 96, 0, "ResNet-18", models.resnet18(small_images=False)), ("full", 96, 6, "ResNet-9, width 6", models.resnet9(6)),
])  # fmt: skip
def test_the_network_suits_the_tier_and_its_stem_the_images(begin, tier, size, width, name, like):
    found, make = begin(1, tier=tier, dataset="toybox").network(size, width)
    assert found == name and make() is not make()
    assert make().recipe == like.recipe


def test_finish_writes_records_and_a_summary(begin, capsys, tmp_path):
    begun = begin(3, tier="smoke")
    made = begun.record("simclr", method="SimCLR", labels=100, metrics={"top1": 0.5})
    begun.finish(headline="SimCLR: 50 %", records=[made])
    out = capsys.readouterr().out
    assert "SimCLR: 50 %" in out and "\n1 result record written to " in out and str(tmp_path) not in out
    assert results.read(begun.results_dir) == [made]  # and the summary beside it raises no warning
    summary = json.loads((begun.results_dir / "run-summary-03.json").read_text())
    assert summary["headline"] == "SimCLR: 50 %" and summary["records"] == ["03-simclr-toybox-100-smoke.json"]
    assert summary["peak_memory"] > 10e6 and summary["seconds"] >= 0


@pytest.mark.parametrize("classes, kinds", [(4, {"top1", "top3"}), (3, {"top1"})])
def test_record_runs_makes_one_record_of_several_seeds(begin, classes, kinds):
    torch.manual_seed(0)
    runs = [evaluation.Result(torch.randn(50, classes), torch.randint(classes, (50,)), [*map(str, range(classes))]) for _ in range(3)]
    images = types.SimpleNamespace(num_classes=classes, size=24)
    made = begin(5, tier="cpu").record_runs("BYOL, frozen", runs, images, 7, seed=[0, 1, 2], network="ResNet-9", settings={"block": 5})
    assert made["labels"] == 7 * classes and made["image_size"] == 24 and made["seeds"] == [0, 1, 2]
    assert made["method"] == "BYOL, frozen" and made["settings"] == {"block": 5} and set(made["metrics"]) == kinds
    for kind in kinds:
        metric = made["metrics"][kind]
        assert metric["values"] == [getattr(run, kind) for run in runs] and metric["n"] == 50
        assert metric["standard_error"] == pytest.approx(torch.tensor(metric["values"], dtype=torch.float64).std().item() / 3**0.5)
    assert results.file_name(made).startswith(f"05-byol-frozen-7-a-class-toybox-{7 * classes}")


def test_keep_leaves_a_network_beside_the_results(begin, capsys):
    begun = begin(3, tier="smoke", seed=5)
    classifier = models.Classifier(models.resnet9(4), 2)
    capsys.readouterr()
    path = begun.keep(classifier, method="SimCLR, fine-tuned", size=32, labels=100, class_names=["cat", "dog"])
    assert path == begun.results_dir / "networks" / "03-simclr-fine-tuned-toybox-100-smoke-seed5.safetensors"
    assert capsys.readouterr().out == ""
    kept = models.read_networks(path.parent)[path.stem]
    known = {"lesson": 3, "dataset": "toybox", "tier": "smoke", "seed": 5, "method": "SimCLR, fine-tuned", "size": 32, "labels": 100}
    assert kept.about == known | {"class_names": ["cat", "dog"]} and kept.is_classifier
    begun.keep(models.resnet9(4), method="SimCLR", size=32, block=2, seed=0)  # what is known can be said otherwise
    assert (path.parent / "03-simclr-toybox-smoke.safetensors").exists() and not list(path.parent.glob(".*"))
    begun.finish(headline="x")
    assert results.read(begun.results_dir) == []  # and the folder beside the records raises no warning


def test_peak_memory_grows_with_what_is_held():
    before = lessons.peak_memory()
    block = numpy.ones(100_000_000, dtype=numpy.uint8)
    assert lessons.peak_memory() >= before and lessons.peak_memory() > block.nbytes


def test_expect_error_prints_the_error_and_insists_on_one_and_say_prints_its_text(capsys):
    with lessons.expect_error(ValueError):
        raise ValueError("shapes differ\nsecond\nthird\nfourth")
    assert capsys.readouterr().out == "ValueError: shapes differ\nsecond\nthird\n"
    with lessons.expect_error():
        raise RuntimeError
    assert capsys.readouterr().out == "RuntimeError:\n"
    with pytest.raises(AssertionError, match="raise ValueError or KeyError, and it did not"), lessons.expect_error(ValueError, KeyError):
        pass
    with pytest.raises(TypeError), lessons.expect_error(ValueError):
        raise TypeError("another one")
    lessons.say("\n    With **10** labels\n    it is 5 $.\n")
    assert capsys.readouterr().out == "With **10** labels\nit is 5 $.\n"


def test_names_of_networks_files():
    named = lessons.network_file_name("../../SimCLR", "my photos/2", lesson=4, seed=7, tier="gpu", variant="24px", minutes=2.5)
    assert named == "04-simclr-my-photos-2-gpu-seed7-24px.safetensors"
    assert all(lessons.network_file_name(**network.about) == f"{name}.safetensors" for name, network in models.reference_networks().items())


def test_a_lesson_with_other_settings_keeps_what_it_left_before(begin, capsys):
    begun = begin(3, tier="smoke")
    about = {"method": "SimCLR", "size": 32, "labels": None}
    for epochs in (1, 1, 2):
        begun.keep(models.resnet9(4), **about, epochs=epochs)
        record = begun.record("simclr", method="SimCLR", labels=100, metrics={"top1": epochs / 10}, settings={"epochs": epochs})
        begun.finish(headline="x", records=[record])
    assert results.read(begun.results_dir) == [record] and len(models.read_networks(begun.results_dir / "networks")) == 1
    assert len(list(begun.results_dir.glob("03-simclr*"))) == len(list((begun.results_dir / "networks").iterdir())) == 2
    assert capsys.readouterr().out.count("was there from a run with other settings") == 2


INTERRUPTED = """
from tiny import image_set, new_model
from sslcourse import training
class Tell(training.Callback):
    def after_step(self, run):
        print("going") if run.step == 3 else None
def train(name, epochs):
    return training.fit_classifier(new_model(), image_set(), epochs, batch_size=16, name=name, callbacks=[Tell()], progress=False)
histories = [train("long", 100_000), train("next", 100_000)]
"""


def test_an_interrupt_in_a_training_cell_leaves_a_sentence_and_histories_and_no_record_of_them(tmp_path):
    manager, client = start_new_kernel(env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, cwd=tmp_path)
    said = []

    def run(code, interrupt=False):
        def hook(message):
            said.append(message["content"].get("text", "") or str(message["content"].get("traceback", "")))
            if interrupt and "going" in said[-1]:
                manager.interrupt_kernel()

        said.clear()
        return client.execute_interactive(code, output_hook=hook, timeout=300)["content"]["status"], "".join(said)

    try:
        status, told = run(INTERRUPTED, interrupt=True)
        assert status == "ok" and told.count("Interrupted after step") == 1, told
        status, told = run("first, second = histories; print(second['step'], first['validation_accuracy'][-1] >= 0, first.stopped[:11])")
        assert (status, told) == ("ok", "[1] True Interrupted\n")
        status, told = run(f"from sslcourse.course import lesson; l = lesson.start(1, tier='smoke', results_dir={str(tmp_path)!r})")
        status, told = run("l.finish('found')")
        assert status == "error" and "(long, next): run their cells again" in told and "line" not in told
        assert run("train('long', 1), train('next', 1); l.finish('found')")[0] == "ok"
        assert run("import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)") == ("ok", "True\n")
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
