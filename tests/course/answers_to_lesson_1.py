"""Answers to the exercises of lesson 1, as learners write them."""

import math

import torch
from torch.nn import functional as F

from sslcourse.course.checks.lesson_1 import honest_accuracy, smoothed_cross_entropy, stratified_subset


def subset_by_class(draw):
    """A subset made of draw(rows of a class, per_class, generator) for every class."""

    def answer(labels, per_class, seed):
        generator = torch.Generator().manual_seed(seed)
        return torch.cat([draw((labels == c).nonzero().flatten(), per_class, generator) for c in range(int(labels.max()) + 1)])

    return answer


def subset_as_flags(labels, per_class, seed):
    flags = torch.zeros(len(labels), dtype=torch.bool)
    flags[stratified_subset(labels, per_class, seed)] = True
    return flags


def loss_of_target(target):
    """A loss that forms exp(): target(one-hot label, smoothing, number of classes)."""

    def answer(logits, labels, smoothing):
        p = logits.exp() / logits.exp().sum(1, keepdim=True)
        wanted = target(F.one_hot(labels, logits.shape[1]), smoothing, logits.shape[1])
        return -(wanted * p.log()).sum(1).mean()

    return answer


def accuracy_collected(model, batches):
    mode = model.training
    model.train(False)
    with torch.inference_mode():
        hits = torch.cat([model(x).argmax(1).eq(y) for x, y in batches]).double()
    model.train(mode)
    a = hits.mean().item()
    return a, (a * (1 - a) / len(hits)) ** 0.5


def accuracy_in_training_mode(model, batches):
    with torch.no_grad():
        hits = torch.cat([model(x).argmax(1).eq(y) for x, y in batches]).double()
    a = hits.mean().item()
    return a, math.sqrt(a * (1 - a) / len(hits))


def accuracy_left_in_eval(model, batches):
    model.eval()
    return accuracy_collected(model, batches)


def accuracy_left_in_train(model, batches):
    result = accuracy_collected(model, batches)
    model.train()
    return result


RIGHT = {
    "1.1": [subset_by_class(lambda rows, n, generator: rows[torch.randperm(len(rows), generator=generator)[:n]])],
    "1.2": [lambda logits, labels, smoothing: F.cross_entropy(logits, labels, label_smoothing=smoothing)],
    "1.3": [accuracy_collected],
}

WRONG = {
    "1.1": {
        "not stratified": lambda labels, per_class, seed: torch.randperm(300, generator=torch.Generator().manual_seed(seed))[:12],
        "no random choice": subset_by_class(lambda rows, n, generator: rows[:n]),
        "chosen twice": subset_by_class(lambda rows, n, generator: rows[torch.randint(3, (n,), generator=generator)]),
        "same seed gave two": subset_by_class(lambda rows, n, generator: rows[torch.randperm(len(rows))[:n]]),
        "only a part": subset_by_class(lambda rows, n, generator: rows[torch.randperm(2 * n, generator=generator)[:n]]),
        "True/False flags": subset_as_flags,
        "in one row": lambda labels, per_class, seed: stratified_subset(labels, per_class, seed).view(3, 4),
        "not positions": lambda labels, per_class, seed: stratified_subset(labels, per_class, seed) + 1000,
        "for each class": lambda labels, per_class, seed: stratified_subset(labels, per_class // 2, seed),
    },
    "1.2": {
        "overflow": loss_of_target(lambda label, s, classes: label * (1 - s) + s / classes),
        "only the other classes": loss_of_target(lambda label, s, classes: torch.where(label > 0, 1 - s, s / (classes - 1))),
        "the value is off": lambda logits, labels, smoothing: smoothed_cross_entropy(logits, labels, smoothing) + 0.01,
    },
    "1.3": {
        "was in training mode": accuracy_in_training_mode,
        "left in evaluation mode": accuracy_left_in_eval,
        "left in training mode": accuracy_left_in_train,
        "Return two numbers": lambda model, batches: (*honest_accuracy(model, batches), 55),
        "argmax taken over": lambda model, batches: (0.5, 0.07),
        "standard error here": lambda model, batches: (honest_accuracy(model, batches)[0], 0.07),
    },
}
