"""PseudoLabeling and FixMatch as modules: the loss against an independent computation, pseudo-labels, averaged weights, refusals."""

import copy

import pytest
import torch
from tiny import coloured, undecided
from torch import nn
from torch.nn import functional as F

from sslcourse import augment, models

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = {"plain": models.PseudoLabeling, "fixmatch": models.FixMatch}
EACH = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


class Half(nn.Module):
    """A strong view without randomness: darker, and mirrored."""

    def forward(self, images, generator=None):
        return augment.evaluation(images.shape[-1])((images // 2).flip(3))


def method(kind=models.FixMatch, dropout=0.2, **options):
    return kind(undecided(dropout), **options)


def batch():
    x, y = coloured(5, 1)
    return x, y, coloured(11, 2)[0]


def threshold_for(passing, network):
    """A threshold that so many of the eleven unlabelled images of the batch reach, as the network sees them."""
    sureness = network.eval()(augment.evaluation(8)(batch()[2])).softmax(1).amax(1).sort(descending=True).values.tolist()
    bounds = [1.0, *sureness, 0.0]
    return (bounds[passing] + bounds[passing + 1]) / 2


@pytest.mark.parametrize("passing", [0, 4, 11])
@pytest.mark.parametrize("strong", [Half(), None], ids=["strong", "same view"])
def test_the_loss_equals_an_independent_computation(strong, passing):
    weight, plain = 1.7, augment.evaluation(8)
    threshold = threshold_for(passing, undecided(dropout=0.0))
    options = {"threshold": threshold, "weight": weight, "ramp": (0, 0), "strong": strong}
    made = method(models.PseudoLabeling, dropout=0.0, weak=plain, **options)
    before = copy.deepcopy(made.classifier).double()
    x, y, u = batch()
    loss = made.train()(x, y, u)

    weak = before.eval()(plain(u).double()).softmax(1)
    sureness, said = weak.max(1)
    learns = plain(u) if strong is None else strong(u)
    log_p = before.train()(torch.cat([plain(x), learns]).double()).log_softmax(1)  # batch statistics of both together
    n = len(x)
    supervised = -log_p[torch.arange(n), y].mean()
    rows = [-log_p[n + i, said[i]] for i in range(len(u)) if sureness[i] >= threshold]
    pseudo = sum(rows) / len(u) if rows else torch.zeros(())
    assert len(rows) == passing
    assert loss.item() == pytest.approx((supervised + weight * pseudo).item(), rel=1e-4)
    metrics = {name: value.item() for name, value in made.metrics.items()}
    wanted = {"supervised_loss": supervised.item(), "pseudo_loss": pseudo.item(), "pseudo_weight": weight, "coverage": len(rows) / len(u)}
    assert metrics == pytest.approx(wanted, rel=1e-4)
    for (name, ours), theirs in zip(made.classifier.named_buffers(), before.buffers(), strict=True):
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=1e-4, atol=1e-6, msg=name)


def test_the_gradient_is_that_of_the_labelled_loss_where_nobody_is_sure():
    made = method(models.PseudoLabeling, dropout=0.0, weak=augment.evaluation(8), threshold=1.0, ramp=(0, 0))
    twin = copy.deepcopy(made.classifier).train()
    x, y, u = batch()
    made.train()(x, y, u).backward()
    assert made.metrics["coverage"] == 0 and made.metrics["pseudo_loss"] == 0
    F.cross_entropy(twin(torch.cat([made.weak(x), made.weak(u)]))[: len(x)], y).backward()
    for ours, theirs in zip(made.classifier.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_pseudo_labels_come_without_dropout_and_leave_the_statistics_alone():
    made = method(weak=augment.evaluation(8), dropout=0.9).train()
    made.classifier.encoder.blocks[1].eval()  # a part that somebody froze stays so
    modes = [module.training for module in made.modules()]
    statistics = {name: b.clone() for name, b in made.named_buffers()}
    u = batch()[2]
    first, second = made.pseudo_logits(u), made.pseudo_logits(u)
    assert torch.equal(first, second) and not first.requires_grad
    torch.testing.assert_close(first, copy.deepcopy(made.classifier).eval()(made.weak(u)).detach())
    assert all(torch.equal(b, statistics[name]) for name, b in made.named_buffers())
    assert [module.training for module in made.modules()] == modes


@pytest.mark.parametrize("average", [0.5, 0.99, 1.0])
def test_the_averaged_weights_follow_the_classifiers(average):
    made = method(average=average)
    for step in (1, 2, 3, 80):
        before = {name: value.clone() for name, value in made.averaged.state_dict().items()}
        with torch.no_grad():
            for tensor in (*made.classifier.parameters(), *made.classifier.buffers()):
                tensor.add_(step)
        made.after_step(step, 100)
        keeps = min(average, (1 + step) / (10 + step))  # the first step keeps 2/11 of a random start
        now = made.classifier.state_dict()
        for name, value in made.averaged.state_dict().items():
            wanted = keeps * before[name] + (1 - keeps) * now[name] if value.is_floating_point() else now[name]  # batches are counted
            torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-5, msg=name)


def test_the_averaged_weights_are_never_trained_and_without_an_average_the_classifier_itself_is_evaluated():
    made = method(average=1.0)
    made.train()(*batch()).backward()
    assert all(p.grad is None and not p.requires_grad for p in made.averaged.parameters())
    without = method(average=0.0)
    assert without.averaged is without.classifier


@EACH
@pytest.mark.parametrize("name, wrong", [
    ("threshold", 1.5), ("average", 1.01), ("weight", -1),
    ("ramp", (0.5, 0.2)), ("ramp", (0, 40)), ("ramp", (0.1,)),
])  # fmt: skip
def test_options_and_labels_that_cannot_be_are_refused(kind, name, wrong):
    with pytest.raises(ValueError, match=name):
        method(kind, **{name: wrong})
    assert method(kind, threshold=1.0, average=0.0, ramp=(0, 1), weight=0.0).threshold == 1.0
    x, y, u = batch()
    with pytest.raises(ValueError, match="label is -1"):
        method(kind)(x, y.index_fill(0, torch.tensor([3]), -1), u)
