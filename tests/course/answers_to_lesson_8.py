"""Answers to the exercises of lesson 8, as learners write them."""

import torch
from torch.nn import functional as F

from sslcourse import losses
from sslcourse.course.checks.lesson_8 import dino_by, dino_loss_and_center, hide


def hide_by_loops(tokens, noise, seen):
    mask, kept, places = torch.ones(noise.shape), [], []
    for i, row in enumerate(noise):
        order = sorted(range(len(row)), key=lambda k, row=row: float(row[k]))[:seen]
        mask[i, order] = 0
        kept.append(tokens[i, order])
        places.append(order)
    return torch.stack(kept), torch.tensor(places), mask


def step(take=hide, encode=lambda m, tokens, kept: m.encoder.transform(kept), target=lambda m, x: m.target(m.patchify(x))[0],
         loss_of=losses.mae_loss, order=("zero_grad", "backward", "step"), keep=torch.Tensor.item,
         tokens_of=lambda m, x: m.encoder.embed(x)):  # fmt: skip
    """An answer to 8.2 with one thing changed."""

    def train(method, optimizer, x, noise, seen):
        tokens = tokens_of(method, x)
        kept, places, mask = take(tokens, noise, seen)
        drawn = method.decode(encode(method, tokens, kept), places, x.shape)
        loss = loss_of(drawn, target(method, x), mask)
        for name in order:
            getattr(loss if name == "backward" else optimizer, name)()
        return keep(loss)

    return train


def over_hidden_rows(drawn, target, mask):
    return F.mse_loss(drawn[mask == 1], target[mask == 1])


def divided_by_less(patches):
    return (patches - patches.mean(2, keepdim=True)) / (patches.var(2, keepdim=True) + 1e-6).sqrt()


def dino_by_loops(student, teacher, center, tau_s, tau_t, momentum):
    total = 0
    for s, t in zip(student, teacher.detach(), strict=True):
        total = total + F.cross_entropy(s / tau_s, F.softmax((t - center) / tau_t, dim=0))
    return total / len(student), torch.lerp(teacher.detach().mean(0), center, momentum)


RIGHT = {
    "8.1": [hide_by_loops, lambda tokens, noise, seen: [part.clone() for part in hide(tokens, noise, seen)]],
    "8.2": [step(loss_of=over_hidden_rows), step(order=("zero_grad", "backward", "step", "zero_grad"))],
    "8.3": [dino_by_loops],
}

WRONG = {
    "8.1": {
        "three tensors": lambda *a: hide(*a)[:2], "tuple or list": lambda *a: hide(*a)[0],
        "has shape": lambda t, n, s: hide(t, n, s + 1), "kept is off": lambda t, n, s: (t[:, :s], *hide(t, n, s)[1:]),
        "indices, int64": lambda *a: [part.float() for part in hide(*a)],
        "so it holds floats": lambda *a: (*hide(*a)[:2], hide(*a)[2] > 0),
    },
    "8.2": {
        "gets all 16": step(take=lambda t, n, s: (*hide(t, n, 16)[:2], hide(t, n, s)[2])),
        "where seen is": step(take=lambda t, n, s: hide(t, n, s + 1)),
        "All patches count": step(loss_of=lambda d, t, m: F.mse_loss(d, t)),
        "and the hidden ones do not": step(loss_of=lambda d, t, m: losses.mae_loss(d, t, 1 - m)),
        "divided by all patches": step(loss_of=lambda d, t, m: ((d - t).square().mean(2) * m).mean()),
        "not normalised": step(target=lambda m, x: m.patchify(x)),
        "are added up": step(loss_of=lambda d, t, m: ((d - t).square().sum(2) * m).sum() / m.sum()),
        "divides by P − 1": step(target=lambda m, x: divided_by_less(m.patchify(x))),
        "between the loss": step(order=("step", "zero_grad", "backward")), "still there": step(order=("backward", "step", "zero_grad")),
        "finds no gradient": step(order=("zero_grad", "step", "backward")), "takes no step": step(order=("zero_grad", "backward")),
        "No gradient leads back": torch.no_grad()(step()), "as a tensor": step(keep=torch.Tensor.detach),
        "another gradient": step(encode=lambda m, t, k: m.encoder.transform(k).detach()),
        "Nothing is encoded": step(encode=lambda m, t, k: m.encoder.with_class_token(k)),
        "returned": step(keep=lambda loss: 2 * loss.item()),
        "have no positions": step(tokens_of=lambda m, x: m.encoder.patches_to_tokens(x).flatten(2).transpose(1, 2)),
    },
    "8.3": {
        "tuple or list": lambda *a: dino_loss_and_center(*a)[0], "two things": lambda *a: (*dino_loss_and_center(*a), 0),
        "one value for each row": dino_by(of=lambda p, log_q: -(p * log_q).sum(1)),
        "The loss is off": lambda *a: (dino_loss_and_center(*a)[0] + 0.1, dino_loss_and_center(*a)[1]),
        "The new centre is off": lambda *a: (dino_loss_and_center(*a)[0], dino_loss_and_center(*a)[1] + 0.1),
        "reaches the teacher": lambda s, t, c, a, b, m: (
            -(((t - c) / b).softmax(1) * (s / a).log_softmax(1)).sum(1).mean(), m * c + (1 - m) * t.detach().mean(0)),
        "carries a graph": lambda s, t, c, a, b, m: (losses.dino_loss(s, t, c, a, b), m * c + (1 - m) * t.mean(0)),
        "changes its input center in place": lambda s, t, c, a, b, m: (
            losses.dino_loss(s, t, c, a, b), c.mul_(m).add_(t.detach().mean(0), alpha=1 - m)),
        "no gradient": lambda s, t, c, a, b, m: dino_loss_and_center(s.detach(), t, c, a, b, m),
    },
}  # fmt: skip
