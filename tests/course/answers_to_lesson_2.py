"""Answers to the exercises of lesson 2, as learners write them."""

import math

import torch
from torch.nn import functional as F

from sslcourse.course.checks.lesson_2 import exactly, images_needed, in_blocks, train_steps, turned
from sslcourse.models import four_rotations


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
    return torch.stack([turned(x, turns) for turns in range(4)], dim=1).flatten(0, 1), torch.arange(4).repeat(len(x))


def changed(images=lambda images: images, labels=lambda labels: labels):
    return lambda x: (images(four_rotations(x)[0]), labels(four_rotations(x)[1]))


def steps_without_dot_grad(model, batches, loss_fn, lr):
    losses, learning = [], [p for p in model.parameters() if p.requires_grad]
    for x, y in batches:
        loss = loss_fn(model(x), y)
        for p, g in zip(learning, torch.autograd.grad(loss, learning, allow_unused=True), strict=True):
            if g is not None:
                p.data = p.data - lr * g
        losses.append(loss.detach().item())
    return losses


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
    "2.1": [one_by_one], "2.2": [steps_without_dot_grad, steps(clear_first=True, clear="after")],
    "2.3": [lambda accuracy, difference, z: math.ceil((z * math.sqrt(2 * accuracy * (1 - accuracy)) / difference) ** 2)],
}

WRONG = {
    "2.1": {
        "the wrong dimensions were turned":
            [in_blocks(lambda x, turns, dims=dims: torch.rot90(x, turns, dims)) for dims in ((1, 2), (0, 3))],
        "is not image": [changed(torch.neg), changed(lambda images: images.flip(0), lambda labels: labels.flip(0))],
        "3N images": lambda x: [rows[len(x) :] for rows in four_rotations(x)], "image by image": interleaved,
        "images come in blocks, but": lambda x: (four_rotations(x)[0], torch.arange(4).repeat(len(x))),
        "have to be int64": changed(labels=lambda labels: labels.float()), "one-hot": changed(labels=lambda labels: F.one_hot(labels, 4)),
        "are angles": changed(labels=lambda labels: 90 * labels), "count from 1": changed(labels=lambda labels: labels + 1),
        "labels are a list": changed(labels=lambda labels: labels.tolist()),
        "Some labels are off": changed(labels=lambda labels: (labels + 1) % 4),
        "still in a list": changed(lambda images: list(images.chunk(4))),
        "five dimensions": changed(lambda images: images.unflatten(0, (4, -1))),
        "N images, one rotation for each": lambda x: (x, torch.zeros(len(x), dtype=torch.int64)),
        "Return two tensors": lambda x: [four_rotations(x)[0]],
    },
    "2.2": {
        "pile up over the whole run": [steps(clear="never"), steps(clear_first=True, clear="never")],
        "finds no gradient": [steps(guard=g, **one) for g in (True, False) for one in ({"clear": "between"}, {"backward": False})],
        "no parameter moved": steps(step=False),
        "parameters are not those": lambda model, batches, loss_fn, lr: train_steps(model, batches, loss_fn, 0.9 * lr),
        "not plain floats": [steps(keep=lambda loss: loss), steps(keep=lambda loss: loss.detach())],
        "came with old gradients": steps(clear="after"), "frozen or unused": steps(guard=False),
        "must not be recorded": steps(recorded=True), "no graph to go back": torch.no_grad()(train_steps),
        "Only one loss": lambda *a: train_steps(*a)[-1], "inside the loop": lambda model, batches, *a: train_steps(model, batches[:1], *a),
        "Go through the batches once": lambda *a: 2 * train_steps(*a), "one tensor": lambda *a: torch.tensor(train_steps(*a)),
        "the losses are not": lambda *a: train_steps(*a)[::-1], "return statement": lambda *a: train_steps(*a) and None,
    },
    "2.3": {
        "percent": lambda a, d, z: math.ceil(exactly(a, d / 100, z)), "rounded down": lambda *a: math.floor(exactly(*a)),
        "not an int": lambda *a: float(images_needed(*a)), "it takes": lambda *a: 3 * images_needed(*a),
    },
}
