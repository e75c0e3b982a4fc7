"""The library on an accelerator: no devices are mixed, nothing needs float64 there, and no step of a training waits."""

from functools import partial

import pytest
import torch
from cells import NOTEBOOKS, leave_out, run
from tiny import coloured, image_set, network_for

from sslcourse import augment, diagnostics, evaluation, loaders, losses, models, results, training
from sslcourse.training import tasks

accelerator = pytest.importorskip("accelerator", reason="this torch makes no device in Python", exc_type=(ImportError, AttributeError))
DEVICE = accelerator.DEVICE
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def device():
    with accelerator.Accelerator(float64=False) as entered:  # what does without it does so with it
        yield entered


def classifier():
    return models.Classifier(models.resnet9(2), 3)


def pretraining(kind):
    def train(images, **options):
        return training.pretrain(kind(network_for(kind, 2)).to(DEVICE), images, 1, batch_size=6, **options)

    return train


def supervised(images, **options):
    options.pop("look_every")
    return training.fit_classifier(classifier().to(DEVICE), images, 1, batch_size=6, **options)


def semi_supervised(kind):
    def train(images, **options):
        return training.fit_semi_supervised(kind(classifier()).to(DEVICE), images, 1, batch_size=2, unlabeled_ratio=3, **options)

    return train


METHODS = (models.Rotation, models.SimCLR, models.BYOL, models.BarlowTwins, models.MAE, models.DINO)
TRAININGS = {kind.__name__: pretraining(kind) for kind in METHODS}
TRAININGS |= {"fit_classifier": supervised} | {kind.__name__: semi_supervised(kind) for kind in (models.FixMatch, models.PseudoLabeling)}


def waits(entered, train, steps, **options):
    """Where a training of so many steps waits, and how often."""
    images = image_set(n=6 * steps)
    if train is not supervised:  # few labels, which go round often
        images.train_images, images.train_labels = images.train_images[:5], images.train_labels[:5]
    entered.waits.clear()
    train(images, **({"look_every": 0, "precision": "fp32", "clip_norm": 1.0, "progress": False} | options))
    return entered.waits.copy()


@pytest.mark.parametrize("name", TRAININGS)
def test_no_step_of_a_training_waits(name):
    with accelerator.Accelerator() as entered:
        few, many = (waits(entered, TRAININGS[name], steps) for steps in (3, 8))
    assert few, "the end of an epoch reads its means"
    assert not many - few, f"a step waits at {', '.join(many - few)}"


def test_a_wait_is_counted_and_its_place_is_named():
    class Curious(training.Callback):
        def after_step(self, run):
            run.loss.item()

    with accelerator.Accelerator() as entered:
        few, many = (waits(entered, TRAININGS["Rotation"], steps, callbacks=[Curious()]) for steps in (3, 8))
        assert (many - few).total() == 5 and "test_accelerator.py" in str(many - few) and "run.loss.item()" in str(many - few)
        x = torch.arange(3.0).to(DEVICE)
        for wait in (x.tolist, x.cpu, x.nonzero, lambda: x[x > 1], lambda: bool(x[0]), lambda: x.copy_(torch.ones(3))):
            entered.waits.clear()
            wait()
            assert entered.waits.total() == 1
        entered.waits.clear()
        x.copy_(torch.ones(3), non_blocking=True)
        assert not entered.waits and (2 * x).cpu().tolist() == [2, 2, 2]


def test_the_device_refuses_what_cuda_and_mps_refuse(device):
    x = torch.ones(3).to(DEVICE)
    assert (x + torch.tensor(1.0)).cpu().tolist() == [2, 2, 2]  # a scalar of the CPU is welcome
    for wrong in (lambda: x + torch.ones(3), lambda: torch.ones(3)[torch.zeros(1, dtype=torch.int64).to(DEVICE)]):
        with pytest.raises(RuntimeError, match="indices|two devices"):
            wrong()
    with pytest.raises(TypeError, match="numpy"):
        x.numpy()
    with pytest.raises(TypeError, match="float64"):
        x.double()


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_comes_to_what_it_comes_to_on_the_cpu(name, device, monkeypatch, tmp_path):
    options = {"look_every": 1, "precision": "fp32", "progress": False, "guard": diagnostics.NonFiniteGuard(tmp_path)}
    images = image_set(n=18)
    rows = []
    for where in (DEVICE, torch.device("cpu")):
        monkeypatch.setitem(globals(), "DEVICE", where)
        torch.manual_seed(0)
        rows.append(TRAININGS[name](images, checkpoint=tmp_path / where.type, checkpoint_every=2, **options).final)
    there, here = rows
    assert there.keys() == here.keys()
    for column in here.keys() - {"seconds"}:
        assert there[column] == pytest.approx(here[column], rel=0.02, abs=2e-3), column


def test_what_is_measured_or_searched_is_so_there(device):
    images, encoder = image_set(), models.resnet9(2).to(DEVICE)
    images.test_images, images.test_labels = coloured(30, 2)
    found = evaluation.feature_set(encoder, images, block=-1)
    assert found.train.device.type == "cpu" and evaluation.knn_accuracy(found).n == evaluation.linear_probe(found).n == 30
    tuned = evaluation.fine_tune(encoder, images, 1, progress=False)
    assert next(tuned.model.parameters()).device == DEVICE
    there = images.test_images.to(DEVICE)
    for kind in evaluation.CORRUPTIONS:
        assert torch.equal(evaluation.corrupt(there[:4], kind, 3).cpu(), evaluation.corrupt(images.test_images[:4], kind, 3))
    spread = diagnostics.collapse(torch.randn(8, 4).to(DEVICE))
    assert 0 < spread.std and spread.effective_rank > 1
    method = models.SimCLR(models.resnet9(2)).to(DEVICE)
    with torch.no_grad():
        next(method.encoder.parameters()).view(-1)[0] = torch.nan
    assert diagnostics.find_nonfinite(method, image_set().unlabeled[:6].to(DEVICE))


@pytest.mark.parametrize("name", ["simclr", "byol_views", "multi_crop", "crop_and_flip", "weak", "strong", "evaluation"])
def test_views_are_those_of_the_cpu_and_nothing_waits_for_them(name, device):
    images, view = image_set().unlabeled[:6], getattr(augment, name)(70)
    torch.manual_seed(0)
    here = view(images)
    torch.manual_seed(0)
    view, images = view.to(DEVICE), images.to(DEVICE)
    device.waits.clear()
    there = view(images)
    assert not device.waits
    pairs = [(here, there)] if isinstance(here, torch.Tensor) else zip(here, there, strict=True)
    assert all(torch.allclose(b.cpu(), a, atol=1e-4) for a, b in pairs)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_lesson_runs_there(path, device, monkeypatch, tmp_path):
    leave_out(path, unless=("04",))
    length = loaders.TensorLoader.__len__
    monkeypatch.setattr(loaders.TensorLoader, "__len__", lambda loader: min(2, length(loader)) if loader.drop_last else length(loader))
    whole = tasks.Run

    def short(model, loader, loss_of, epochs, options, facts):  # two epochs at most, of two steps, but where a NaN has to be met
        return whole(model, loader, loss_of, epochs if options.guard else min(2, epochs), options, facts)

    monkeypatch.setattr(tasks, "Run", short)
    monkeypatch.setenv("SSLCOURSE_RESULTS_DIR", str(tmp_path))
    monkeypatch.setenv("SSLCOURSE_HEADLESS", "1")
    lesson = run(path, TIER="smoke", DATASET="toybox", DEVICE=accelerator.NAME)["lesson"]
    assert lesson.device.type == accelerator.NAME
    assert {record["device"] for record in results.read(tmp_path)} == {accelerator.NAME}


TOLERANCE = 1e-4  # as losses.py says


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loss", [
    partial(losses.nt_xent, temperature=0.01), losses.nt_xent, losses.byol_loss, losses.barlow_twins_loss, losses.pseudo_label_loss,
])  # fmt: skip
def test_losses_there_are_those_of_the_cpu_in_float64(loss, dtype, device):
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(64, 128, generator=generator).to(dtype)
    second = (first + 0.5 * torch.randn(64, 128, generator=generator)).to(dtype)
    here, there = ([x.clone().to(where).requires_grad_() for x in (first, second)] for where in ("cpu", DEVICE))
    results = [loss(*here), loss(*there)]
    assert results[1].dtype == torch.float32 and results[1].device == DEVICE
    assert results[1].item() == pytest.approx(results[0].item(), rel=TOLERANCE)
    for result in results:
        result.backward()
    mine, theirs = there[0].grad, here[0].grad
    if theirs is not None:
        assert (mine.cpu() - theirs).float().norm() <= max(TOLERANCE, torch.finfo(dtype).eps) * theirs.float().norm()
    if loss in (losses.nt_xent, losses.byol_loss):  # a row without a direction is not waited for
        assert loss(there[0] * 0, there[1]).isnan()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
@pytest.mark.parametrize("free", [2**40, 1000])  # bytes: the images lie on the card, or come batch by batch
@pytest.mark.parametrize("kind", METHODS)
def test_the_card_is_never_waited_for_inside_an_epoch(kind, free, monkeypatch):
    """In the second epoch; the first allocates, and the end of each reads its means."""
    images = image_set(n=96)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))
    method = kind(network_for(kind)).cuda()
    counted = method.forward

    def forward(x):
        steps["done"] += 1
        torch.cuda.set_sync_debug_mode("error" if 12 < steps["done"] < 20 else "default")
        return counted(x)

    steps = {"done": 0}
    method.forward = forward
    try:
        training.pretrain(method, images, 2, batch_size=8, look_every=0, progress=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert steps["done"] == 24
