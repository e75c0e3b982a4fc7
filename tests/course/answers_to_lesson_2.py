"""Answers to the exercises of lesson 2, as learners write them."""

import math

import torch
from torch.nn import functional as F

from sslcourse.course.checks.lesson_2 import images_needed, rotate_all, train_steps


def blocks(*turns):
    """An answer that joins the given functions of x, with the right labels."""
    return lambda x: (torch.cat([turn(x) for turn in turns]), torch.arange(len(turns)).repeat_interleave(len(x)))


def turned(k, dims=(2, 3)):
    return lambda x: torch.rot90(x, k, dims=dims)


def one_by_one(x):
    images, labels = [], []
    for turns in range(4):
        for image in x:
            for _ in range(turns):
                image = image.transpose(1, 2).flip(1)  # a transpose and a flip make a quarter turn
            images.append(image)
            labels.append(turns)
    return torch.stack(images), torch.tensor(labels)


def interleaved(x):
    return torch.stack([torch.rot90(x, k, dims=(2, 3)) for k in range(4)], dim=1).flatten(0, 1), torch.arange(4).repeat(len(x))


def changed(images=lambda images: images, labels=lambda labels: labels):
    return lambda x: (images(rotate_all(x)[0]), labels(rotate_all(x)[1]))


def steps_without_dot_grad(model, batches, loss_fn, lr):
    losses, learning = [], [p for p in model.parameters() if p.requires_grad]
    for x, y in batches:
        loss = loss_fn(model(x), y)
        for p, g in zip(learning, torch.autograd.grad(loss, learning, allow_unused=True), strict=True):
            if g is not None:
                p.data = p.data - lr * g
        losses.append(loss.detach().item())
    return losses


def steps(clear_first=False, clear="before", lr_scale=1.0, step=True, backward=True, guard=True, keep=torch.Tensor.item, recorded=False):
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
                        p -= lr_scale * lr * p.grad
            if clear == "after":
                model.zero_grad()
            losses.append(keep(loss))
        return losses

    return train


def sum_of_losses(model, batches, loss_fn, lr):
    total = 0
    for x, y in batches:
        total = total + loss_fn(model(x), y)
        total.backward()
    return []


def returned(change):
    """The right steps, and another result, made of the right losses."""
    return lambda model, batches, loss_fn, lr: change(train_steps(model, batches, loss_fn, lr))


def count(formula, to=math.ceil):
    return lambda accuracy, difference, z: to(formula(accuracy, difference, z))


def exactly(a, d, z):
    return (z * math.sqrt(2 * a * (1 - a)) / d) ** 2


RIGHT = {
    "2.1": [one_by_one],
    "2.2": [steps_without_dot_grad, steps(clear_first=True, clear="after")],
    "2.3": [count(exactly)],
}

WRONG = {
    "2.1": {
        "turned clockwise": blocks(*[turned(-k) for k in range(4)]),
        "the wrong dimensions were turned": [blocks(*[turned(k, dims) for k in range(4)]) for dims in ((1, 2), (0, 3))],
        "no turned version": changed(lambda images: images.flip(1)),
        "A flip along one axis": blocks(turned(0), turned(1), lambda x: x.flip(2), turned(3)),
        "A transpose is not": blocks(turned(0), lambda x: x.transpose(2, 3), turned(2), turned(3)),
        "3N images": blocks(turned(1), turned(2), turned(3)),
        "once in each rotation": blocks(turned(0), turned(1), turned(2), turned(2)),
        "images come in blocks, but": lambda x: (rotate_all(x)[0], torch.arange(4).repeat(len(x))),
        "labels come in blocks, but": lambda x: (interleaved(x)[0], rotate_all(x)[1]),
        "agree, but they come image by image": interleaved,
        "their order is another": changed(lambda images: images.flip(0), lambda labels: labels.flip(0)),
        "have to be int64": changed(labels=lambda labels: labels.float()),
        "one-hot": changed(labels=lambda labels: F.one_hot(labels, 4)),
        "are angles": changed(labels=lambda labels: 90 * labels),
        "count from 1": changed(labels=lambda labels: labels + 1),
        "labels are a list": changed(labels=lambda labels: labels.tolist()),
        "its label says": changed(labels=lambda labels: (labels + 1) % 4),
        "still in a list": changed(lambda images: list(images.chunk(4))),
        "five dimensions": changed(lambda images: images.unflatten(0, (4, -1))),
        "N images, one rotation for each": lambda x: (x, torch.zeros(len(x), dtype=torch.int64)),
        "Return two tensors": lambda x: [rotate_all(x)[0]],
    },
    "2.2": {
        "pile up over the whole run": [steps(clear="never"), steps(clear_first=True, clear="never")],
        "cleared between backward() and the step": [steps(clear="between"), steps(clear="between", guard=False)],
        "no parameter moved": steps(step=False),
        "No gradient was computed": [steps(backward=False), steps(backward=False, guard=False)],
        "parameters are not those": steps(lr_scale=0.9),
        "whole graph alive": steps(keep=lambda loss: loss),
        "not plain floats": steps(keep=lambda loss: loss.detach()),
        "came with old gradients": steps(clear="after"),
        "frozen or unused": steps(guard=False),
        "must not be recorded": steps(recorded=True),
        "no graph to go back": torch.no_grad()(train_steps),
        "earlier batch": sum_of_losses,
        "Only one loss": returned(lambda losses: losses[-1]),
        "inside the loop": lambda model, batches, loss_fn, lr: train_steps(model, batches[:1], loss_fn, lr),
        "Go through the batches once": returned(lambda losses: losses + losses),
        "one tensor": returned(torch.tensor),
        "the losses are not": returned(lambda losses: losses[::-1]),
        "return statement": returned(lambda losses: None),
    },
    "2.3": {
        "percent": count(lambda a, d, z: exactly(a, d / 100, z)),
        "rounded down": count(exactly, math.floor),
        "not an int": count(exactly, lambda n: float(math.ceil(n))),
        "it takes": lambda accuracy, difference, z: 3 * images_needed(accuracy, difference, z),
    },
}
