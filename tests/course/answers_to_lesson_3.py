"""Answers to the exercises of lesson 3, as learners write them."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from sslcourse import evaluation, losses, models
from sslcourse.course.checks.lesson_3 import knn_predict, my_nt_xent, nt_xent_with


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


def step(views=lambda m, x: [m.augmentation(x), m.augmentation(x)], forward=models.SimCLR.project, joint=True, pair=lambda *z: z,
         mode=nn.Module.train, order=("zero_grad", "backward", "step"), keep=torch.Tensor.item):  # fmt: skip
    """An answer to 3.2 with one thing changed."""

    def train(method, loss_fn, optimizer, pictures):
        mode(method)
        both = views(method, pictures)
        z0, z1 = forward(method, torch.cat(both)).chunk(2) if joint else [forward(method, view) for view in both]
        loss = loss_fn(*pair(z0, z1))
        for name in order:
            getattr(loss if name == "backward" else optimizer, name)()
        return keep(loss)

    return train


def knn_by_loops(bank, bank_labels, queries, k, temperature):
    votes = torch.zeros(len(queries), int(bank_labels.max()) + 1)
    for row, query in zip(votes, queries, strict=True):
        alike = F.cosine_similarity(bank, query.unsqueeze(0))
        for i in alike.argsort(descending=True)[:k]:
            row[bank_labels[i]] += (alike[i] / temperature).exp()
    return votes.argmax(1)


RIGHT = {
    "3.1": [losses.nt_xent, loss_by_halves], "3.3": [knn_by_loops],
    "3.2": [
        step(order=("zero_grad", "backward", "step", "zero_grad"), pair=lambda z0, z1: (F.normalize(z1), F.normalize(z0))),
        step(lambda m, x: [m.augmentation(x.repeat_interleave(2, 0))], pair=lambda *z: torch.cat(z).unflatten(0, (-1, 2)).unbind(1)),
    ],
}

WRONG = {
    "3.1": {
        "no gradient reaches z1": lambda z0, z1, t: my_nt_xent(z0, z1.detach(), t), "its gradient is not": loss_candidates_detached,
        "single number": nt_xent_with(reduce=lambda rows: rows), "overflows": loss_unstable, "log(2N": lambda *a: my_nt_xent(*a) + 0.05,
    },
    "3.2": {
        "are the same picture": [step(lambda m, x: [m.augmentation(x)] * 2), step(pair=lambda z0, z1: (z0, z0))],
        "never augmented": step(lambda m, x: [x / 255, x / 128]), "one view of each": step(lambda m, x: [m.augmentation(x), x / 255]),
        "take a pass each": step(joint=False), "These are features": step(forward=lambda m, v: m.encoder(v)),
        "stays in it": [step(mode=nn.Module.eval), step(mode=id)], "between the loss": step(order=("step", "zero_grad", "backward")),
        "still there": step(order=("backward", "step", "zero_grad")), "finds no gradient": step(order=("zero_grad", "step", "backward")),
        "No gradient leads back": [torch.no_grad()(step()), step(forward=torch.no_grad()(models.SimCLR.project))],
        "In SimCLR both learn": step(pair=lambda z0, z1: (z0, z1.detach())), "of picture i": step(pair=lambda z0, z1: (z0, z1.flip(0))),
        "another gradient": step(pair=lambda *z: [one + one.detach() for one in z]),
        "as a tensor": step(keep=torch.Tensor.detach), "the number returned": step(keep=lambda loss: loss.item() / 2),
        "never called": lambda method, *_: method(torch.zeros(4, 3, 4, 4).byte()).item(),
    },
    "3.3": {
        "positions in the bank": lambda bank, labels, queries, k, t: (F.normalize(queries) @ F.normalize(bank).T).argmax(1),
        "votes of every class": lambda bank, labels, queries, k, t: evaluation.knn_scores(bank, labels, queries, 4, k, t),
        "have to be int64": lambda *a: knn_predict(*a).int(), "single query": lambda *a: knn_predict(*a).squeeze(),
        "predictions differ": lambda bank, labels, queries, k, t: knn_predict(bank, labels, queries, 3, t),
    },
}
