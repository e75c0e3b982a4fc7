"""The exercises of lesson 3: the loss of SimCLR, a whole step of it, and a vote of the nearest neighbours."""

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslcourse import augment, evaluation, losses, models
from sslcourse.course.checks import expect
from sslcourse.course.checks.expect import near, reject_if, two_views
from sslcourse.course.exercises import Exercise


def my_nt_xent(z0: Tensor, z1: Tensor, temperature: float) -> Tensor:
    """Mean over the 2N anchors of the cross-entropy of picking the other view among the 2N − 1 other rows. z0, z1 (N, D)."""
    return losses.nt_xent(z0, z1, temperature)


def nt_xent_with(unit=F.normalize, diagonal=-math.inf, targets=lambda n: torch.arange(2 * n).roll(n), reduce=torch.mean):
    """A wrong NT-Xent: rows prepared otherwise, something else on the diagonal, other targets, or reduced otherwise."""

    def loss(z0, z1, temperature):
        z = unit(torch.cat([z0, z1]))
        logits = z @ z.T / temperature
        if diagonal is not None:
            logits.fill_diagonal_(diagonal)
        return reduce(F.cross_entropy(logits, targets(len(z0)), reduction="none"))

    return loss


def other_view_only(z0, z1, temperature):
    return F.cross_entropy(F.normalize(z0) @ F.normalize(z1).T / temperature, torch.arange(len(z0)))


NT_XENT_MISTAKES = {
    "The diagonal is not masked: each row finds itself, with similarity 1. Put -inf there before the softmax.": nt_xent_with(diagonal=None),
    "The diagonal is masked with 0, and exp(0) = 1 is still a candidate. Put -inf there, so that exp gives 0.": nt_xent_with(diagonal=0.0),
    "The rows are not normalised: these are dot products. Divide each by its length, F.normalize(z).": nt_xent_with(unit=lambda z: z),
    "Only the N rows of one view are anchors. Both views take their turn: take the mean over all 2N rows.":
        [nt_xent_with(reduce=lambda rows: rows.chunk(2)[0].mean()), nt_xent_with(reduce=lambda rows: rows.chunk(2)[1].mean())],
    "The candidates are the N rows of the other view only. An anchor is compared with all 2N − 1 others: join both views first.":
        [other_view_only, lambda a, b, t: (other_view_only(a, b, t) + other_view_only(b, a, t)) / 2],
    "The target of row i is wrong. The rows are z0 first, then z1, so the other view of row i is row (i + N) mod 2N.":
        [nt_xent_with(targets=lambda n: torch.arange(2 * n), diagonal=None), nt_xent_with(targets=lambda n: torch.arange(2 * n) ^ 1)],
}


def check_nt_xent(answer) -> None:
    expect.loss(answer(*two_views(6, 5, 1), 0.5))
    for n, d, t in ((6, 5, 0.5), (4, 8, 1.0), (9, 3, 0.3)):
        hint = f"With N = {n} and temperature {t} the value is off. One test: where all rows are equal, it must be log(2N − 1)."
        expect.agree(answer, my_nt_xent, (*two_views(n, d, n), t), hint, NT_XENT_MISTAKES, "the loss", rtol=5e-4)
    cut = "No .detach() on the candidates or the lengths."
    expect.gradients(answer, my_nt_xent, two_views(6, 5, 2), 0.5, cut=cut)
    hint = "Right at temperature 0.5, but at 0.005 exp(200) overflows. logsumexp and F.cross_entropy take out the largest term."
    expect.agree(answer, my_nt_xent, (*two_views(8, 4, 3), 0.005), hint, what="the loss", rtol=2e-3, atol=1e-3)


def simclr_step(method: nn.Module, loss_fn: Callable, optimizer: torch.optim.Optimizer, pictures: Tensor) -> float:
    """One step of SimCLR in training mode, whatever the mode before, on uint8 pictures (N, 3, H, W). Returns loss_fn(z0, z1), a float."""
    method.train()
    first, second = method.augmentation(pictures), method.augmentation(pictures)
    z0, z1 = method.projector(method.encoder(torch.cat([first, second]))).chunk(2)
    loss = loss_fn(z0, z1)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def check_step(answer) -> None:
    for n, d in ((6, 5), (9, 4)):
        torch.manual_seed(n)
        pictures, seen = torch.randint(256, (n, 3, 4, 4)).byte(), []
        method = models.SimCLR(expect.small_encoder(), augment.simclr(4), hidden_dim=6, out_dim=d)
        twin = copy.deepcopy(method).train()
        watched = expect.Watched(method, method.parameters(), views=method.augmentation, encoder=method.encoder, head=method.projector)
        with expect.hints_for_errors(expect.STEP_ERRORS):
            got = answer(method, lambda z0, z1, seen=seen: seen.append((z0, z1)) or losses.nt_xent(z0, z1), watched.optimizer, pictures)
        reject_if(not seen, "loss_fn is never called. It takes the projections of both views: loss = loss_fn(z0, z1).")
        (z0, z1), calls = seen[0], watched.calls
        reject_if(z0.shape == (n, 8), "These are features. The loss compares projections, which method.projector makes of them.")
        expect.shape(z0, (n, d), "z0")
        reject_if(calls["views"] and near(z0, z1), "Both views are the same picture. Each call of method.augmentation draws one: use two.")
        views = watched.views(pictures)
        watched.check_mode("encoder", "head")
        reject_if(z0.requires_grad != z1.requires_grad, "One view gets no gradient. In SimCLR both learn: no .detach(), no no_grad().")
        passes = "The views take a pass each, so batch normalisation sees each view alone. Join them by torch.cat, and chunk(2) afterwards."
        reject_if(max(len(calls["encoder"]), len(calls["head"])) > 1, passes)
        wanted = twin.project(torch.cat(views)).chunk(2)
        found, here = F.normalize(torch.stack([z0, z1]), dim=2), F.normalize(torch.stack(wanted), dim=2)
        apart = "Row i of z0 and row i of z1 are not the two views of picture i. After torch.cat([first, second]) use chunk(2)."
        reject_if(not near(found, here) and not near(found, here.flip(0)), apart)
        loss = losses.nt_xent(*wanted)
        watched.check_step(loss, [*twin.parameters()])
        expect.plain_loss(got, loss)


def knn_predict(bank: Tensor, bank_labels: Tensor, queries: Tensor, k: int, temperature: float) -> Tensor:
    """The class of each query by a vote of its k most similar bank rows, each with the weight exp(cosine / temperature). int64 (Q,)."""
    return evaluation.knn_scores(bank, bank_labels, queries, int(bank_labels.max()) + 1, k, temperature).argmax(dim=1)


def vote(similar=lambda bank, queries: F.normalize(queries) @ F.normalize(bank).T, weigh=lambda s, t: (s / t).exp()):
    """A wrong vote: another similarity or another weight."""

    def predict(bank, bank_labels, queries, k, temperature):
        alike, at = similar(bank, queries).topk(k, dim=1)
        return (F.one_hot(bank_labels[at]) * weigh(alike, temperature).unsqueeze(2)).sum(1).argmax(1)

    return predict


VOTE_MISTAKES = {
    "The rows are not all normalised, so long rows win by their length. Use F.normalize(..., dim=1) for the bank and the queries.":
        [vote(lambda bank, queries: queries @ bank.T), vote(lambda bank, queries: F.normalize(queries) @ bank.T)],
    "Every neighbour has the same vote. Weigh each by exp(similarity / temperature), so that a near one counts for more.":
        [vote(weigh=lambda s, t, e=e: 1 + e * 0.5 ** torch.arange(s.shape[1]).expand_as(s)) for e in (0, 0.001)],  # or the first of equals
    "These are the k least similar rows. Take the largest similarities; of distances, the smallest.":
        vote(lambda bank, queries: torch.cdist(F.normalize(queries), F.normalize(bank))),
    "The weight of a neighbour is exp(similarity / temperature). Is the exp missing, or the temperature, or is it multiplied?":
        [vote(weigh=lambda s, t: s), vote(weigh=lambda s, t: s.exp()), vote(weigh=lambda s, t: (s * t).exp())],
}


def bank_and_queries(d: int, temperature: float, k: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A bank of overlapping classes with its labels, and queries whose vote is so clear that no rounding decides it."""
    torch.manual_seed(seed)
    bank, queries = ((0.3 + 2 * torch.rand(n, 1)) * F.normalize(torch.randn(n, d)) for n in (80, 400))
    labels = (F.normalize(bank) + 0.8 * torch.randn(80, d))[:, :4].argmax(1)
    votes = evaluation.knn_scores(bank, labels, queries, 4, k, temperature).topk(2, dim=1).values
    return bank, labels, queries[votes[:, 1] < 0.99 * votes[:, 0]]


def check_knn(answer) -> None:
    for d, k, temperature, seed in ((5, 9, 0.1, 1), (12, 5, 0.25, 9)):
        bank, labels, queries = bank_and_queries(d, temperature, k, seed)
        inputs = bank, labels, queries, k, temperature
        got, n = answer(*inputs), len(queries)
        expect.kind(got, Tensor, "the prediction")
        reject_if(got.shape == (n, 4), "These are the votes of every class. Return the class with the most: .argmax(dim=1).")
        expect.shape(got, (n,), "the prediction")
        reject_if(got.dtype != torch.int64, f"Predicted classes have to be int64, and these are {got.dtype}. argmax(dim=1) gives classes.")
        reject_if(got.min() < 0 or got.max() > 3, "These are positions in the bank. Look up their classes first: bank_labels[indices].")
        hint = f"{(got != knn_predict(*inputs)).sum()} of {n} predictions differ. List one query's {k} neighbours, classes and weights."
        expect.agree(answer, knn_predict, inputs, hint, VOTE_MISTAKES)
    expect.shape(answer(bank, labels, queries[:1], k, temperature), (1,), "the prediction for a single query")


EXERCISES = [
    Exercise("3.1", "NT-Xent, vectorised", 20, 3, my_nt_xent, check_nt_xent, NT_XENT_MISTAKES),
    Exercise("3.2", "A whole step of SimCLR", 30, 3, simclr_step, check_step),
    Exercise("3.3", "A vote of the nearest neighbours", 15, 2, knn_predict, check_knn, VOTE_MISTAKES),
]
