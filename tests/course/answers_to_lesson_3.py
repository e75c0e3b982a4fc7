"""Answers to the exercises of lesson 3, as learners write them."""

import math

import torch
from torch.nn import functional as F

from sslcourse import evaluation, losses
from sslcourse.course.checks.lesson_3 import geometry, knn_predict, my_nt_xent, nt_xent_with


def loss_by_halves(z0, z1, temperature):
    a, b = (z.double() / z.double().norm(dim=1, keepdim=True) for z in (z0, z1))
    n, total = len(a), 0
    for one, other in ((a, b), (b, a)):
        own = (one @ one.T / temperature)[~torch.eye(n, dtype=torch.bool)].view(n, n - 1)
        total = total + F.cross_entropy(torch.cat([one @ other.T / temperature, own], dim=1), torch.arange(n))
    return (total / 2).float()


def loss_unstable(z0, z1, temperature):
    z = F.normalize(torch.cat([z0, z1]))
    weights = (z @ z.T / temperature).exp() * (1 - torch.eye(len(z)))
    return -((weights.diagonal(len(z0)).repeat(2) / weights.sum(1)).log().mean())


def loss_candidates_detached(z0, z1, temperature):
    z = F.normalize(torch.cat([z0, z1]))
    return F.cross_entropy((z @ z.detach().T / temperature).fill_diagonal_(-math.inf), torch.arange(len(z)).roll(len(z0)))


def geometry_from_cosines(z0, z1):
    a, b = (z / z.norm(dim=1, keepdim=True) for z in (z0, z1))
    squared = (2 - 2 * a @ a.T)[~torch.eye(len(a), dtype=torch.bool)]
    return (2 - 2 * (a * b).sum(1)).mean(), torch.logsumexp(-2 * squared, 0) - math.log(len(squared))


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


RIGHT = {"3.1": [losses.nt_xent, loss_by_halves], "3.2": [geometry_from_cosines], "3.3": [knn_by_loops]}

WRONG = {
    "3.1": {
        "no gradient reaches z1": lambda z0, z1, t: my_nt_xent(z0, z1.detach(), t), "its gradient is not": loss_candidates_detached,
        "single number": nt_xent_with(reduce=lambda rows: rows), "overflows": loss_unstable,
        "log(2N − 1)": lambda *a: my_nt_xent(*a) + 0.05,
    },
    "3.2": {
        "value of the uniformity is off": geometry(spread=lambda d: (-3 * d.square()).exp().mean().log()),
        "is a number written into": geometry(lambda a, b: (a - b).pow(2).sum() / 7),
    },
    "3.3": {
        "positions in the bank": lambda bank, labels, queries, k, t: (F.normalize(queries) @ F.normalize(bank).T).argmax(1),
        "votes of every class": lambda bank, labels, queries, k, t: evaluation.knn_scores(bank, labels, queries, 4, k, t),
        "scores, and not classes": lambda bank, labels, queries, k, t: evaluation.knn_scores(bank, labels, queries, 4, k, t).amax(1),
        "one value for each neighbour": lambda bank, labels, queries, k, t: labels[(queries @ bank.T).topk(k).indices],
        "have to be int64": lambda *a: knn_predict(*a).int(), "single query": lambda *a: knn_predict(*a).squeeze(),
        "predictions differ": lambda bank, labels, queries, k, t: knn_predict(bank, labels, queries, 3, t),
    },
}
