"""The exercises of lesson 3: the loss of SimCLR, alignment and uniformity, and a vote of the nearest neighbours."""

import math
from operator import itemgetter

import torch
from torch import Tensor
from torch.nn import functional as F

from sslcourse import evaluation, losses
from sslcourse.course.checks import expect
from sslcourse.course.checks.expect import reject_if, two_views
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
    expect.gradients(answer, my_nt_xent, two_views(6, 5, 2), 0.5, names=("z0", "z1"), cut=cut)
    hint = "Right at temperature 0.5, but at 0.005 exp(200) overflows. logsumexp and F.cross_entropy take out the largest term."
    expect.agree(answer, my_nt_xent, (*two_views(8, 4, 3), 0.005), hint, what="the loss", rtol=2e-3, atol=1e-3)


def alignment_and_uniformity(z0: Tensor, z1: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared distance between the views of an image, and log of the mean of exp(−2·distance²) over pairs of rows of z0."""
    return geometry()(z0, z1)


def geometry(
    align=lambda a, b: (a - b).square().sum(1).mean(), spread=lambda d: d.square().mul(-2).exp().mean().log(),
    distances=lambda a, b: torch.pdist(a), unit=F.normalize,
):  # fmt: skip
    """The two numbers; wrong ones have another measure of the views a and b or of distances, other distances, or other rows."""
    return lambda z0, z1: (align(unit(z0), unit(z1)), spread(distances(unit(z0), unit(z1))))


GEOMETRY_MISTAKES = {
    "The rows are not normalised. Both numbers live on the unit sphere: F.normalize(z, dim=1) first.": geometry(unit=lambda z: z),
    "The alignment is a mean over the features as well, D times too small. Sum over the features.": geometry(F.mse_loss),
    "This alignment is the mean cosine similarity. The squared distance is 2 − 2 · cosine.": geometry(lambda a, b: (a * b).sum(1).mean()),
    "Each row is compared with itself too. Take distinct pairs: torch.pdist.": geometry(distances=lambda a, b: torch.cdist(a, a)),
    "The uniformity is a mean of logarithms. Take the mean of exp(...) first.": geometry(spread=lambda d: d.square().mul(-2).mean()),
    "The uniformity is taken over the rows of both views. Take z0 alone.": geometry(distances=lambda a, b: torch.pdist(torch.cat([a, b]))),
}


def check_geometry(answer) -> None:
    views = two_views(7, 4, 5)
    expect.pair(answer(*views), alignment_and_uniformity(*views), "alignment", "uniformity")
    for at, name in enumerate(("the alignment", "the uniformity")):
        hint = f"The value of {name} is off. Try two rows by hand, such as (1, 0) and (0, 1)."
        expect.agree(answer, alignment_and_uniformity, views, hint, GEOMETRY_MISTAKES, name, itemgetter(at), more=[two_views(20, 9, 6)])


def knn_predict(bank: Tensor, bank_labels: Tensor, queries: Tensor, k: int, temperature: float) -> Tensor:
    """The class of each query by a vote of its k most similar bank rows, each with the weight exp(cosine / temperature). int64 (Q,)."""
    return evaluation.knn_scores(bank, bank_labels, queries, int(bank_labels.max()) + 1, k, temperature).argmax(dim=1)


def vote(similar=lambda bank, queries: F.normalize(queries) @ F.normalize(bank).T, weigh=lambda s, t: (s / t).exp(), largest=True):
    """A wrong vote: another similarity, another weight, or the least similar rows."""

    def predict(bank, bank_labels, queries, k, temperature):
        nearest = similar(bank, queries).topk(k, dim=1, largest=largest)
        votes = nearest.values.new_zeros(len(queries), int(bank_labels.max()) + 1)
        return votes.scatter_add(1, bank_labels[nearest.indices], weigh(nearest.values, temperature)).argmax(1)

    return predict


VOTE_MISTAKES = {
    "The rows are not all normalised, so long rows win by their length. Use F.normalize(..., dim=1) for the bank and the queries.":
        [vote(lambda bank, queries: queries @ bank.T), vote(lambda bank, queries: F.normalize(queries) @ bank.T)],
    "Every neighbour has the same vote. Weigh each by exp(similarity / temperature), so that a near one counts for more.":
        [vote(weigh=lambda s, t, e=e: 1 + e * 0.5 ** torch.arange(s.shape[1]).expand_as(s)) for e in (0, 0.001)],  # or the first of equals
    "The weights are the similarities themselves. The weight is exp(similarity / temperature).": vote(weigh=lambda s, t: s),
    "These are the k least similar rows. Take the largest similarities; of distances, the smallest.":
        [vote(largest=False), vote(lambda bank, queries: torch.cdist(F.normalize(queries), F.normalize(bank)))],
    "The temperature is ignored. The weight is exp(similarity / temperature).": vote(weigh=lambda s, t: s.exp()),
    "The similarity is multiplied by the temperature. Divide by it: a low temperature sharpens.": vote(weigh=lambda s, t: (s * t).exp()),
}


def bank_and_queries(d: int, temperature: float, k: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A bank of overlapping classes with its labels, and those queries whose vote is so clear that no rounding decides it."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(4, d, generator=generator)
    labels = torch.randint(4, (80,), generator=generator)
    bank = centres[labels] + 1.2 * torch.randn(80, d, generator=generator)
    queries = centres[torch.randint(4, (400,), generator=generator)] + 1.2 * torch.randn(400, d, generator=generator)
    bank, queries = (F.normalize(z) * (0.3 + 2 * torch.rand(len(z), 1, generator=generator)) for z in (bank, queries))
    edge = evaluation.neighbours(bank, queries, k + 1)[0]
    votes = evaluation.knn_scores(bank, labels, queries, 4, k, temperature).topk(2, dim=1).values
    clear = (edge[:, k - 1] - edge[:, k] > 1e-4) & (votes[:, 1] < 0.99 * votes[:, 0])
    return bank, labels, queries[clear]


def check_vote_form(got, n: int, classes: int, k: int) -> None:
    expect.kind(got, Tensor, "the prediction")
    reject_if(tuple(got.shape) == (n, classes), "These are the votes of every class. Return the class with the most: .argmax(dim=1).")
    reject_if(tuple(got.shape) == (n, k), "This is one value for each neighbour. Add the weights up for each class; the largest wins.")
    expect.shape(got, (n,), "the prediction")
    reject_if(got.is_floating_point(), "These are scores, and not classes. max(dim=1) gives values too; argmax(dim=1) gives the class.")
    reject_if(got.dtype != torch.int64, f"Predicted classes have to be int64, and these are {got.dtype}: .long().")
    reject_if(got.min() < 0 or got.max() >= classes, "These are positions in the bank. Look up their classes first: bank_labels[indices].")


def check_knn(answer) -> None:
    for d, k, temperature, seed in ((5, 9, 0.1, 8), (12, 5, 0.25, 9)):
        bank, labels, queries = bank_and_queries(d, temperature, k, seed)
        inputs = bank, labels, queries, k, temperature
        got = answer(*inputs)
        check_vote_form(got, len(queries), 4, k)
        n = int((got.cpu() != knn_predict(*inputs)).sum())
        hint = f"{n} of {len(queries)} predictions differ at k = {k}. For one query, list its k neighbours, classes and weights."
        expect.agree(answer, knn_predict, inputs, hint, VOTE_MISTAKES)
    expect.shape(answer(bank, labels, queries[:1], k, temperature), (1,), "the prediction for a single query")


EXERCISES = [
    Exercise("3.1", "NT-Xent, vectorised", 20, 3, my_nt_xent, check_nt_xent, NT_XENT_MISTAKES),
    Exercise("3.2", "Alignment and uniformity", 10, 2, alignment_and_uniformity, check_geometry, GEOMETRY_MISTAKES),
    Exercise("3.3", "A vote of the nearest neighbours", 15, 2, knn_predict, check_knn, VOTE_MISTAKES),
]
