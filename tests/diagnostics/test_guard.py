"""NonFiniteGuard in a loop: it stops at the first bad step, keeps what is needed to repeat it, and touches nothing in a healthy run."""

import math
import pickle

import pytest
import torch
from test_search import Overflowing, made, plant
from tiny import Malicious, same_weights
from torch import nn

from sslcourse.diagnostics import NonFiniteError, NonFiniteGuard, find_nonfinite, load_bad_batch
from sslcourse.diagnostics.findings import finite
from sslcourse.diagnostics.guard import PATIENCE
from sslcourse.errors import CourseError

pytestmark = pytest.mark.usefixtures("one_thread")


def train(model, batches, guard=None, clip=None, lr=1e-3, checkpoint=None):
    """The loop of this course in short."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    torch.manual_seed(1)
    for step, batch in enumerate(batches):
        if guard:
            guard.before(model)
        loss = model(*batch)
        optimizer.zero_grad()
        loss.backward()
        if guard:
            guard.check(step, loss, model, optimizer, batch)
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        if checkpoint:
            if guard:
                guard.check_state(step, model, optimizer)
            torch.save(model.state_dict(), checkpoint)
    return model


def good(n=4):
    return (torch.ones(n, 3) + torch.arange(n)[:, None],)


BAD = (torch.zeros(4, 3),)  # for Overflowing


class Noisy(nn.Module):
    """Batch normalisation before a logarithm: it fails only where a number drawn in forward is bad."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(3, 8), nn.BatchNorm1d(8)

    def forward(self, x):
        return self.norm(self.layer(x)).square().mean() + (torch.rand(()) > 0.15).float().log()


def test_it_stops_at_an_infinite_gradient_before_the_weights_are_nan(tmp_path):
    model, checkpoint, evidence = made(Overflowing), tmp_path / "checkpoint.pt", tmp_path / "evidence"
    with pytest.raises(NonFiniteError, match="(?s)step 2, before.*SqrtBackward0.*Usual cause") as caught:
        train(model, [good(), good(), BAD, good()], NonFiniteGuard(evidence), 1000.0, checkpoint=checkpoint)
    error = caught.value
    assert isinstance(error, CourseError) and error.step == 2 and error.finding.kind == "gradient"
    assert same_weights(model, train(made(Overflowing), [good(), good()], None, 1000.0))  # those before the bad step
    last = torch.load(checkpoint, weights_only=True)  # the last good one is there and untouched
    assert all(torch.equal(value, last[name]) for name, value in model.state_dict().items())
    assert sorted(file.name for file in evidence.iterdir()) == ["bad_batch.pt", "nonfinite.txt"]
    assert str(evidence / "bad_batch.pt") in str(error)
    assert str(error.finding) in (evidence / "nonfinite.txt").read_text()


def test_what_it_saved_repeats_the_failure(tmp_path):
    model = made(Noisy)
    with pytest.raises(NonFiniteError, match="aten.log") as caught:
        train(model, [good(8)] * 50, NonFiniteGuard(tmp_path))
    assert caught.value.step > 0 and caught.value.finding.kind == "output"
    bad = load_bad_batch(tmp_path / "bad_batch.pt")
    assert bad.step == caught.value.step and bad.loss == -math.inf and bad.report == str(caught.value.finding)
    assert torch.equal(bad.batch[0], good(8)[0]) and isinstance(bad.batch, tuple)
    again = made(Noisy, seed=5)
    bad.put_back(again)
    assert same_weights(again, model)  # buffers too: the guard took back what the bad forward did to them
    assert again.norm.num_batches_tracked == bad.step
    assert find_nonfinite(again, bad.batch) == caught.value.finding


def test_weights_that_the_step_spoils_are_seen_at_the_next_check_or_before_the_checkpoint(tmp_path):
    with pytest.raises(NonFiniteError, match="(?s)step 1, before.*parameter after the step layer.weight"):
        train(made(Overflowing), [good(), good()], NonFiniteGuard(), lr=math.inf)
    checkpoint = tmp_path / "checkpoint.pt"
    with pytest.raises(NonFiniteError, match="(?s)step 0, after.*parameter after the step"):
        train(made(Overflowing), [good(), good()], NonFiniteGuard(tmp_path), lr=math.inf, checkpoint=checkpoint)
    assert not checkpoint.exists() and (tmp_path / "nonfinite.txt").exists()


def test_statistics_and_the_optimizers_state_are_looked_at_before_a_checkpoint():
    model, guard = made(Noisy), NonFiniteGuard()
    optimizer = torch.optim.AdamW(model.parameters())
    model.layer(good()[0]).sum().backward()
    optimizer.step()
    model.register_buffer("mask", torch.full((2, 2), -math.inf).triu(1))  # a mask is no fault
    guard.check_state(0, model, optimizer)
    plant(optimizer.state[model.layer.bias]["exp_avg"])
    with pytest.raises(NonFiniteError, match="optimizer state exp_avg of layer.bias"):
        guard.check_state(0, model, optimizer)
    plant(model.norm.running_mean, math.inf)
    with pytest.raises(NonFiniteError, match="buffer norm.running_mean"):
        guard.check_state(0, model, optimizer)


def test_a_scaler_may_have_bad_gradients_for_a_while_and_not_for_ever():
    model = made(Overflowing)
    optimizer, guard = torch.optim.SGD(model.parameters(), lr=0.0), NonFiniteGuard()

    def step(x):
        optimizer.zero_grad()
        loss = model(x)
        loss.backward()
        guard.check(0, loss, model, optimizer, (x,), scaler=torch.amp.GradScaler("cpu"))

    for x in [*[BAD[0]] * PATIENCE, good()[0], *[BAD[0]] * PATIENCE]:  # a good one begins to count anew
        step(x)
    with pytest.raises(NonFiniteError, match="SqrtBackward0"):
        step(BAD[0])


def test_a_step_that_cannot_be_repeated_and_a_folder_that_cannot_be_written(tmp_path):
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(NonFiniteError, match="could not be repeated"):
        NonFiniteGuard().check(0, torch.tensor(math.nan), model, optimizer, good(), forward=lambda batch: model(batch[0]).mean())
    (tmp_path / "file").write_text("")
    with pytest.raises(NonFiniteError, match="(?s)SqrtBackward0.*could not be written"):
        train(made(Overflowing), [BAD], NonFiniteGuard(tmp_path / "file"))


def test_a_file_that_is_no_saved_batch_is_refused_and_never_executed(tmp_path):
    file, witness = tmp_path / "bad_batch.pt", tmp_path / "witness"
    with pytest.raises(NonFiniteError):
        train(made(Overflowing), [BAD], NonFiniteGuard(tmp_path))
    whole = file.read_bytes()
    load_bad_batch(file)
    torch.save({"weight": torch.ones(1)}, file)
    for content in (file.read_bytes(), whole[: len(whole) // 2], pickle.dumps(Malicious(str(witness)), protocol=2)):
        file.write_bytes(content)
        with pytest.raises(CourseError, match="bad_batch.pt"):
            load_bad_batch(file)
    assert not witness.exists()


def test_finite():
    assert finite() and finite(torch.empty(0), torch.arange(3), torch.ones(2, dtype=torch.float64), torch.ones(2).half(), None, "a text")
    assert finite(torch.full((100,), 3e38), torch.full((100,), 60000.0, dtype=torch.float16))  # their norms overflow
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64):
        for value in (math.nan, math.inf, -math.inf):
            assert not finite(torch.ones(5, dtype=dtype), torch.tensor([[1, value]], dtype=dtype), torch.ones(2))
    sparse = nn.Embedding(4, 2, sparse=True)
    (sparse(torch.tensor([1])) * math.inf).sum().backward()
    assert not finite(torch.ones(2), sparse.weight.grad)
