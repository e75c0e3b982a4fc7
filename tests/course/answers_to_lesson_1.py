"""Answers to the exercises of lesson 1, as learners write them."""

import torch

from sslcourse.course.checks.lesson_1 import honest_accuracy, smoothed_cross_entropy, stratified_subset


def subset_by_class(draw):
    """A subset made of draw(rows of a class, per_class, generator) for every class."""

    def answer(labels, per_class, seed):
        generator = torch.Generator().manual_seed(seed)
        return torch.cat([draw((labels == c).nonzero().flatten(), per_class, generator) for c in range(int(labels.max()) + 1)])

    return answer


def loss_of(log_p, labels, smoothing):
    return -((1 - smoothing) * log_p.gather(1, labels[:, None]).mean() + smoothing * log_p.mean())


def accuracy_collected(model, batches, training=False):
    mode = model.training
    model.train(training)
    with torch.inference_mode():
        hits = torch.cat([model(x).argmax(1).eq(y) for x, y in batches]).double()
    model.train(mode)
    a = hits.mean().item()
    return a, (a * (1 - a) / len(hits)) ** 0.5


RIGHT = {
    "1.1": [subset_by_class(lambda rows, n, generator: rows[torch.randperm(len(rows), generator=generator)[:n]])],
    "1.2": [lambda logits, labels, smoothing: loss_of(logits.log_softmax(1), labels, smoothing)], "1.3": [accuracy_collected],
}

WRONG = {
    "1.1": {
        "not stratified": lambda labels, n, seed: torch.randperm(300, generator=torch.Generator().manual_seed(seed))[:12],
        "no random choice": subset_by_class(lambda rows, n, generator: rows[:n]),
        "chosen twice": subset_by_class(lambda rows, n, generator: rows[torch.randint(3, (n,), generator=generator)]),
        "same seed gave two": subset_by_class(lambda rows, n, generator: rows[torch.randperm(len(rows))[:n]]),
        "only a part": subset_by_class(lambda rows, n, generator: rows[torch.randperm(2 * n, generator=generator)[:n]]),
        "True/False flags": lambda labels, n, seed: torch.isin(torch.arange(300), stratified_subset(labels, n, seed)),
        "in one row": lambda *a: stratified_subset(*a).view(3, 4), "not positions": lambda *a: stratified_subset(*a) + 1000,
        "for each class": lambda labels, n, seed: stratified_subset(labels, n // 2, seed),
    },
    "1.2": {
        "overflow": lambda z, labels, s: loss_of((z.exp() / z.exp().sum(1, keepdim=True)).log(), labels, s),
        "the value is off": lambda *a: smoothed_cross_entropy(*a) + 0.01,
    },
    "1.3": {
        "was in training mode": lambda model, batches: accuracy_collected(model, batches, training=True),
        "left in evaluation mode": lambda model, batches: accuracy_collected(model.eval(), batches),
        "left in training mode": lambda model, batches: (accuracy_collected(model, batches), model.train())[0],
        "Return two numbers": lambda *a: (*honest_accuracy(*a), 55), "argmax taken over": lambda *a: (0.5, 0.07),
        "its standard error is": lambda *a: (honest_accuracy(*a)[0], 0.07),
    },
}
