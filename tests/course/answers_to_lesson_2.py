"""Answers to the exercises of lesson 2, as learners write them."""

import math

import torch
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import functional as F

from sslcourse.course.checks.lesson_2 import choose_block, exactly, images_needed, train_steps


def by_gradient_descent(found):
    reached = {}
    for block, rows in found.items():
        x, new = ((part - rows.train.mean(0)) / (rows.train.std(0) + 1e-8) for part in (rows.train, rows.validation))
        w = torch.zeros(x.shape[1], len(rows.class_names), requires_grad=True)
        for _ in range(100):
            w.data -= 0.5 * torch.autograd.grad(F.cross_entropy(x @ w, rows.train_labels), w)[0]
        reached[block] = (new @ w).argmax(1).eq(rows.validation_labels).double().mean()
    return max(reached, key=reached.get), max(reached.values())


def probing(fit=("train",), by=("train",), judge="validation", kind=LogisticRegression, pick=max, scale=lambda x, m, s: (x - m) / s):
    """A choice with one thing changed: the splits to fit to, those of mean and deviation, that of the choice, how it is made and scaled."""

    def answer(found):
        reached = {}
        for block, rows in ((block, vars(rows)) for block, rows in found.items()):
            of_all, x, y = (torch.cat([rows[split + end] for split in splits]) for splits, end in ((by, ""), (fit, ""), (fit, "_labels")))
            mean, std = of_all.mean(0), torch.where(of_all.std(0) > 0, of_all.std(0), 1)
            probe = kind().fit(scale(x, mean, std).numpy(), y.numpy())
            reached[block] = probe.score(scale(rows[judge], mean, std).numpy(), rows[f"{judge}_labels"].numpy())
        best = pick(reached, key=reached.get)
        return best, reached[best]

    return answer


def choosing(change):
    return lambda found: change(found, *choose_block(found))


def steps(clear_first=False, clear="before", step=True, backward=True, guard=True, keep=torch.Tensor.item, recorded=False):
    """An answer with one thing changed."""

    def train(model, batches, loss_fn, lr):
        if clear_first:
            model.zero_grad()
        losses = []
        for x, y in batches:
            if clear == "before":
                model.zero_grad()
            loss = loss_fn(model(x), y)
            if backward:
                loss.backward()
            if clear == "between":
                model.zero_grad()
            with torch.set_grad_enabled(recorded):
                for p in model.parameters():
                    if step and (not guard or p.grad is not None):
                        p -= lr * p.grad
            if clear == "after":
                model.zero_grad()
            losses.append(keep(loss))
        return losses

    return train


RIGHT = {
    "2.1": [by_gradient_descent, probing(kind=RidgeClassifier)], "2.2": [steps(clear_first=True, clear="after")],
    "2.3": [lambda accuracy, difference, z: math.ceil((z * math.sqrt(2 * accuracy * (1 - accuracy)) / difference) ** 2)],
}

WRONG = {
    "2.1": {
        "by heart": [*(probing(fit, kind=RidgeClassifier) for fit in (("validation",), ("train", "validation"))), probing(judge="train")],
        "No linear classifier": probing(kind=KNeighborsClassifier), "by themselves": probing(scale=lambda x, m, s: (x - x.mean(0)) / s),
        "one scale": [probing(scale=lambda x, m, s: x), probing(by=("train", "validation"))],
        "0/0 is NaN": probing(scale=lambda x, m, s: (x - m) / x.std(0)), "last and the worst": lambda found: (max(found), 0.4),
        "test rows were read": choosing(lambda found, block, a: (block, a, found[block].test)[:2]),
        "in place": choosing(lambda found, block, a: (block, a, found[block].train.sub_(1))[:2]),
        "Return two things": choosing(lambda found, *got: got[:1]), "accuracy comes first": choosing(lambda found, *got: got[::-1]),
        "not its place": choosing(lambda found, block, a: ([*found].index(block), a)),
        "came back": choosing(lambda found, block, a: (block, 100 * a)),
    },
    "2.2": {
        "pile up over the whole run": steps(clear_first=True, clear="never"), "no parameter moved": steps(step=False),
        "finds no gradient": [steps(clear="between"), steps(backward=False, guard=False)],
        "parameters are not those": lambda model, batches, loss_fn, lr: train_steps(model, batches, loss_fn, 0.9 * lr),
        "not plain floats": steps(keep=lambda loss: loss),
        "came with old gradients": steps(clear="after"), "frozen or unused": steps(guard=False),
        "must not be recorded": steps(recorded=True), "no graph to go back": torch.no_grad()(train_steps),
        "to be a list": lambda *a: train_steps(*a)[-1], "inside the loop": lambda model, batches, *a: train_steps(model, batches[:1], *a),
        "the losses are not": lambda *a: train_steps(*a)[::-1], "return statement": lambda *a: train_steps(*a) and None,
    },
    "2.3": {
        "percent": lambda a, d, z: math.ceil(exactly(a, d / 100, z)), "rounded down": lambda *a: math.floor(exactly(*a)),
        "not an int": lambda *a: float(images_needed(*a)), "it takes": lambda *a: 3 * images_needed(*a),
    },
}
