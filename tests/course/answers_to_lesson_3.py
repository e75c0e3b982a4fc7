"""Answers to the exercises of lesson 3, as learners write them."""

import math

import torch
from torch.nn import functional as F

from sslcourse import losses
from sslcourse.course.checks.lesson_3 import alignment_and_uniformity, knn_predict, my_nt_xent


def loss_by_halves(z0, z1, temperature):
    a, b = (z.double() / z.double().norm(dim=1, keepdim=True) for z in (z0, z1))
    n, total = len(a), 0
    for one, other in ((a, b), (b, a)):
        own = (one @ one.T / temperature)[~torch.eye(n, dtype=torch.bool)].view(n, n - 1)
        total = total + F.cross_entropy(torch.cat([one @ other.T / temperature, own], dim=1), torch.arange(n))
    return (total / 2).float()


def loss_of(change, dim=1, **options):
    """A loss whose logits (2N, 2N), without the diagonal masked, are changed by change(logits, targets) before the cross-entropy."""

    def answer(z0, z1, temperature):
        z = F.normalize(torch.cat([z0, z1]), dim=dim)
        targets = (torch.arange(len(z)) + len(z0)) % len(z)
        return F.cross_entropy(*change(z @ z.T / temperature, targets), **options)

    return answer


def masked(logits, targets):
    return logits.masked_fill(torch.eye(len(logits), dtype=torch.bool), -math.inf), targets


def loss_unstable(z0, z1, temperature):
    z = F.normalize(torch.cat([z0, z1]))
    weights = (z @ z.T / temperature).exp() * (1 - torch.eye(len(z)))
    return -((weights.diagonal(len(z0)).repeat(2) / weights.sum(1)).log().mean())


def loss_candidates_detached(z0, z1, temperature):
    z = F.normalize(torch.cat([z0, z1]))
    return F.cross_entropy(*masked(z @ z.detach().T / temperature, torch.arange(len(z)).roll(len(z0))))


def geometry_from_cosines(z0, z1):
    a, b = (z / z.norm(dim=1, keepdim=True) for z in (z0, z1))
    squared = (2 - 2 * a @ a.T)[~torch.eye(len(a), dtype=torch.bool)]
    return (2 - 2 * (a * b).sum(1)).mean(), torch.logsumexp(-2 * squared, 0) - math.log(len(squared))


def geometry(align=None, uniform=None):
    """An answer with one of the two measures changed; both get normalised rows."""

    def answer(z0, z1):
        a, b = F.normalize(z0), F.normalize(z1)
        right = alignment_and_uniformity(z0, z1)
        return align(a, b) if align else right[0], uniform(a, b) if uniform else right[1]

    return answer


def knn_by_loops(bank, bank_labels, queries, k, temperature):
    predicted = []
    for query in queries:
        similarity = F.cosine_similarity(bank, query.unsqueeze(0))
        votes = {}
        for i in similarity.argsort(descending=True)[:k].tolist():
            c = int(bank_labels[i])
            votes[c] = votes.get(c, 0.0) + math.exp(float(similarity[i]) / temperature)
        predicted.append(max(votes, key=votes.get))
    return torch.tensor(predicted)


def knn(decide):
    """An answer that decides by the votes of the classes in its own way."""

    def answer(bank, bank_labels, queries, k, temperature):
        values, index = (F.normalize(queries) @ F.normalize(bank).T).topk(k)
        return decide((F.one_hot(bank_labels)[index] * (values / temperature).exp().unsqueeze(-1)).sum(1))

    return answer


def knn_of_right_one(change):
    return lambda bank, bank_labels, queries, k, temperature: change(knn_predict(bank, bank_labels, queries, k, temperature))


RIGHT = {
    "3.1": [losses.nt_xent, loss_by_halves, loss_of(masked)],
    "3.2": [geometry_from_cosines],
    "3.3": [knn_by_loops],
}

WRONG = {
    "3.1": {
        "one of the two views": lambda z0, z1, temperature: my_nt_xent(z0, z1.detach(), temperature),
        "its gradient is not": loss_candidates_detached,
        "single number": loss_of(masked, reduction="none"),
        "overflows": loss_unstable,
        "log(2N − 1)": lambda z0, z1, temperature: my_nt_xent(z0, z1, temperature) + 0.05,
    },
    "3.2": {
        "value of the uniformity is off": geometry(uniform=lambda a, b: (-3 * torch.pdist(a).pow(2)).exp().mean().log()),
        "Right for 7 rows": geometry(lambda a, b: (a - b).pow(2).sum() / 7),
    },
    "3.3": {
        "positions in the bank": lambda bank, bank_labels, queries, k, temperature: (F.normalize(queries) @ F.normalize(bank).T).argmax(1),
        "votes of every class": knn(lambda votes: votes),
        "scores, and not classes": knn(lambda votes: votes.max(1).values),
        "one value for each neighbour": lambda bank, bank_labels, queries, k, temperature: bank_labels[(queries @ bank.T).topk(k).indices],
        "have to be int64": knn_of_right_one(lambda classes: classes.int()),
        "single query": knn_of_right_one(lambda classes: classes.squeeze()),
        "predictions differ": lambda bank, bank_labels, queries, k, temperature: knn_predict(bank, bank_labels, queries, 3, temperature),
    },
}
