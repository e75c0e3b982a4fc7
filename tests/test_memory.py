"""Memory: what is counted while it lives, predictions against steps that were really taken, and refusals before any training."""

import copy

import pytest
import torch
from tiny import coloured, image_set
from torch import nn

from sslcourse import memory, models, training
from sslcourse.errors import CourseError
from sslcourse.memory import LiveMemory, available, check_fits, largest_batch, predict_peak

METHODS = {"rotation": models.Rotation, "simclr": models.SimCLR, "byol": models.BYOL, "barlow_twins": models.BarlowTwins}


def new(name, width=4):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return models.to_channels_last(METHODS[name](models.resnet9(width)))


def measured(method, batch_size, size, precision="fp32", optimizer="adamw", device="cpu"):
    """The peak of a training of two steps, with the weights; only the second finds gradients and the optimizer's state."""
    images, labels = coloured(2 * batch_size, 0, size=size)
    sets = image_set(size=size, unlabeled=images, train_images=images, train_labels=labels)
    method = copy.deepcopy(method).to(device)
    lasting = sum(t.nbytes for t in (*method.parameters(), *method.buffers()))
    with LiveMemory() as live:
        training.pretrain(
            method, sets, 1, batch_size=batch_size, lr=1e-4, optimizer=optimizer, look_every=0, precision=precision, progress=False
        )
    return lasting + live.peak


# --- counting ---------------------------------------------------------------------------------------------------------------------------


def test_what_lives_is_counted_and_the_most_of_it_kept():
    with LiveMemory() as live:
        first = torch.ones(250)
        second = first + 1
        assert live.bytes == 2_000
        del first
        assert (live.bytes, live.peak) == (1_000, 2_000)
        third = second.double()
        assert (live.bytes, live.peak) == (3_000, 3_000)
    del second
    assert live.bytes == 2_000  # followed on after the context
    del third
    assert (live.bytes, live.peak) == (0, 3_000)


def test_a_block_counts_once_and_only_when_it_is_new():
    before = torch.ones(250)
    with LiveMemory() as live:
        before.add_(1)
        torch.add(before, 1, out=before)
        seen = [before.view(10, 25), before[3:], before.expand(4, 250), before.detach()]
        assert live.bytes == 0
        inside = torch.ones(250)
        seen += [inside.view(10, 25), inside.mul_(2), inside.expand(4, 250), inside.numpy()]
        assert live.bytes == 1_000
    assert len(seen) == 8


def test_memory_that_is_enlarged_counts_anew():
    with LiveMemory() as live:
        out = torch.empty(0)
        torch.add(torch.ones(250), torch.ones(1), out=out.resize_(0))
        assert live.bytes == 1_000


def test_a_view_keeps_its_block_alive():
    with LiveMemory() as live:
        view = torch.ones(250)[:2]
        assert live.bytes == 1_000
        del view
        assert live.bytes == 0


def test_the_backward_pass_is_seen_and_what_the_graph_holds_is_freed_with_it():
    x = torch.ones(250, requires_grad=True)
    with LiveMemory() as live:
        y = x.exp().exp().sum()
        assert live.bytes == 2_004  # both results are needed for the derivatives
        y.backward()
        assert live.peak >= 3_000  # a gradient beside them
        assert live.bytes == 1_004 and x.grad is not None


def test_autocast_makes_copies_of_half_the_size():
    layer, x = nn.Linear(100, 100, bias=False), torch.ones(50, 100)
    with LiveMemory() as live:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = layer(x)
    assert y.dtype == torch.bfloat16
    x_half, weight_half, y_half = 2 * 50 * 100, 2 * 100 * 100, 2 * 50 * 100
    assert live.peak == x_half + weight_half + y_half
    assert live.bytes == x_half + y_half  # the graph holds the input's copy, for the gradient of the weight


# --- predicting -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", METHODS)
def test_the_prediction_is_what_a_real_step_takes(name, precision, one_thread):
    method = new(name)
    for batch_size in (96, 128, 200):
        taken = measured(method, batch_size, 32, precision)
        assert predict_peak(method, batch_size, 32, precision=precision) == pytest.approx(taken, rel=0.005)


@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
def test_other_optimizers_keep_less(optimizer, one_thread):
    method = new("rotation", width=16)  # many weights for its batch
    predicted = predict_peak(method, 8, 8, precision="fp32", optimizer=optimizer)
    assert predicted == pytest.approx(measured(method, 8, 8, optimizer=optimizer), rel=0.005)
    assert predicted < predict_peak(method, 8, 8, precision="fp32") - sum(p.nbytes for p in method.parameters()) / 2


def test_a_loss_that_outgrows_its_network_is_foreseen(one_thread):
    method = new("simclr")
    assert predict_peak(method, 700, 8, precision="fp32") == pytest.approx(measured(method, 700, 8), rel=0.005)
    matrix = 8 * (2 * 10_000) ** 2  # the similarities of ten thousand images, in float64
    assert predict_peak(method, 10_000, 8, precision="fp32") > 2 * matrix


def test_larger_images_and_blur_are_predicted_too(one_thread):
    method = new("byol")
    assert predict_peak(method, 24, 64, precision="fp32") == pytest.approx(measured(method, 24, 64), rel=0.005)


def test_a_method_that_does_other_things_with_other_sizes_gets_its_peaks_fitted(one_thread):
    class Chunked(models.Rotation):
        def forward(self, images):
            return sum(super(Chunked, self).forward(part) for part in images.split(2)) / len(images)

    method = Chunked(models.resnet9(8))
    assert predict_peak(method, 40, 16, precision="fp32") == pytest.approx(measured(method, 40, 16), rel=0.1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
@pytest.mark.parametrize("name", METHODS)
def test_the_prediction_holds_on_a_gpu(name):
    method = new(name, width=16).cuda()
    predicted = predict_peak(method, 200, 32, precision="bf16")
    images, labels = coloured(600, 0, size=32)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    lasting = sum(t.nbytes for t in (*method.parameters(), *method.buffers()))
    before = torch.cuda.memory_allocated()
    sets = image_set(size=32, unlabeled=images, train_images=images, train_labels=labels)
    training.pretrain(method, sets, 1, batch_size=200, lr=1e-4, look_every=0, precision="bf16", progress=False)
    assert predicted == pytest.approx(torch.cuda.max_memory_allocated() - before + lasting, rel=0.2)


def test_nothing_of_the_method_or_the_random_state_changes():
    method = new("byol")
    method.eval()
    method.encoder.requires_grad_(True)
    grads = {name: torch.ones_like(p) for name, p in method.named_parameters()}
    for name, p in method.named_parameters():
        p.grad = grads[name] if p.requires_grad else None
    states, random = copy.deepcopy(method.state_dict()), torch.get_rng_state()
    predict_peak(method, 64, 16)
    check_fits(method, 64, 16)
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(states[name], value) for name, value in method.state_dict().items())
    assert all(p.grad is (grads[name] if p.requires_grad else None) for name, p in method.named_parameters())
    assert not method.training and method.augmentation is None and method.metrics == {}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in method.modules())


def test_an_augmentation_of_ones_own_keeps_no_hooks():
    method = new("simclr")
    method.prepare(16)
    predict_peak(method, 8, 16)
    assert not method.augmentation._forward_hooks and not method.augmentation._forward_pre_hooks


def test_it_works_where_gradients_are_off():
    method = new("rotation")
    with torch.no_grad():
        assert predict_peak(method, 50, 8, precision="fp32") == predict_peak(method, 50, 8, precision="fp32")
    assert predict_peak(method, 50, 8, precision="fp32") > predict_peak(method, 49, 8, precision="fp32")


@pytest.mark.parametrize(
    ("batch_size", "size", "options", "sentence"),
    [
        (0, 8, {}, "batch_size.*not 0"),
        (1.5, 8, {}, "batch_size.*not 1.5"),
        (4, 0, {}, "size.*not 0"),
        (4, 8, {"precision": "fp8"}, "precision"),
        (4, 8, {"optimizer": "adam"}, "optimizer"),
    ],
)
def test_settings_that_cannot_be_are_refused(batch_size, size, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        predict_peak(new("rotation"), batch_size, size, **options)


# --- what fits --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rotation", "simclr"])
@pytest.mark.parametrize("limit", [8_000_000, 10**9, 3 * 10**11])
def test_the_largest_batch_is_the_largest(name, limit):
    method = new(name)
    most = largest_batch(method, 8, limit, precision="fp32")
    assert most >= 2
    assert predict_peak(method, most, 8, precision="fp32") <= limit < predict_peak(method, most + 1, 8, precision="fp32")


def test_no_batch_fits_into_nothing():
    assert largest_batch(new("rotation"), 8, 1_000) == 0


def test_what_does_not_fit_is_refused_with_the_largest_batch_that_does():
    method, limit = new("simclr"), 50_000_000
    most = largest_batch(method, 8, limit, precision="fp32")
    with pytest.raises(CourseError) as refusal:
        check_fits(method, 5_000, 8, precision="fp32", limit=limit)
    sentence, need = str(refusal.value), predict_peak(method, 5_000, 8, precision="fp32")
    for part in ("batch_size 5000 ", "SimCLR", "8 pixels", f"{need / 1e9:.1f} GB", "50.0 MB", "cpu", f"batch_size of at most {most},"):
        assert part in sentence
    assert check_fits(method, most, 8, precision="fp32", limit=limit) <= limit
    with pytest.raises(CourseError, match=f"batch_size {most + 1} does not fit"):
        check_fits(method, most + 1, 8, precision="fp32", limit=limit)


def test_where_nothing_fits_smaller_images_and_networks_are_named():
    with pytest.raises(CourseError, match="not even 2 images fit, so take smaller images .* smaller network"):
        check_fits(new("rotation"), 64, 8, precision="fp32", limit=100_000)


def test_a_limit_comes_from_what_is_free_and_what_the_method_takes_already(monkeypatch):
    method = new("rotation")
    need = predict_peak(method, 64, 8, precision="fp32")
    there = sum(t.nbytes for t in (*method.parameters(), *method.buffers()))
    enough = int((need - there) / (1 - memory.HEADROOM)) + 10
    monkeypatch.setattr(memory, "available", lambda device: enough)
    assert check_fits(method, 64, 8, precision="fp32") == need
    monkeypatch.setattr(memory, "available", lambda device: enough - 100)
    with pytest.raises(CourseError, match="batch_size 64 does not fit"):
        check_fits(method, 64, 8, precision="fp32")


def test_nothing_is_measured_where_the_system_does_not_say(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda device: None)
    monkeypatch.setattr(memory, "_measure", lambda *_: pytest.fail("measured"))
    assert check_fits(new("rotation"), 10**9, 8) is None


# --- what there is ----------------------------------------------------------------------------------------------------------------------


def tree(root, **contents):
    for path, text in contents.items():
        file = root / path.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


MEMINFO = "MemTotal:       8000 kB\nMemFree:        1000 kB\nMemAvailable:   5000 kB\n"


def test_without_a_limit_it_is_what_linux_calls_available(tmp_path):
    root = tree(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="0::/\n")
    assert memory._free_on_linux(root) == 5000 * 1024


def test_version_2_counts_every_group_above_and_gives_cached_files_back(tmp_path):
    root = tree(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="0::/job/task\n")
    groups = root / "sys/fs/cgroup"
    for folder, most, used, cached in (("job", "2000000", "1500000", 200_000), ("job/task", "max", "900000", 0)):
        (groups / folder).mkdir(parents=True)
        (groups / folder / "memory.max").write_text(most + "\n")
        (groups / folder / "memory.current").write_text(used + "\n")
        (groups / folder / "memory.stat").write_text(f"anon 1\ninactive_file {cached}\n")
    assert memory._free_on_linux(root) == 2_000_000 - 1_500_000 + 200_000


def test_version_1_counts_too_also_where_a_container_sees_only_its_own_root(tmp_path):
    root = tree(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="5:cpu:/x\n4:memory:/hidden/outside\n")
    base = root / "sys/fs/cgroup/memory"
    base.mkdir(parents=True)
    (base / "memory.limit_in_bytes").write_text("3000000\n")
    (base / "memory.usage_in_bytes").write_text("1000000\n")
    assert memory._free_on_linux(root) == 2_000_000
    (base / "memory.usage_in_bytes").write_text("4000000\n")
    assert memory._free_on_linux(root) == 0


def test_a_limit_above_what_there_is_changes_nothing(tmp_path):
    root = tree(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="4:memory:/\n")
    base = root / "sys/fs/cgroup/memory"
    base.mkdir(parents=True)
    (base / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    (base / "memory.usage_in_bytes").write_text("1000000\n")
    assert memory._free_on_linux(root) == 5000 * 1024


def test_a_system_without_these_files_does_not_say(tmp_path):
    assert memory._free_on_linux(tmp_path) is None


def test_devices_are_asked_their_own_way(monkeypatch):
    assert available("meta") is None
    monkeypatch.setattr(memory, "_free_on_linux", lambda root: 123)
    assert available("cpu") == 123
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 700)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 600)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1_000, 5_000))
    assert available("cuda") == 1_100


def test_fits_are_of_the_batch_size_alone_with_what_cuda_takes_beside():
    need = memory._Need((2, 4, 6), 100, 50, torch.tensor([[60, 54], [70, 66], [80, 86]]).numpy(), 3.0, (0, 10, 14))
    assert need(2) == 100 + 60 + 6 and need(4) == 100 + 70 + 10 and need(6) == 100 + 86 + 14
    assert need(10) == 100 + 150 + 22  # the second operation has 50 + t², and t = 10 is beyond where it overtakes the first
    assert need(100) == 100 + 10_050 + 202
