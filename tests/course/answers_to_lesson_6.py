"""Answers to the exercises of lesson 6, as learners write them."""

import math

import numpy as np
import torch
from torch.nn import functional as F

from sslcourse import losses
from sslcourse.course.checks.lesson_6 import expected_calibration_error, fixmatch_step, loss_by, step_by


def step_by_one_hot(model, optimizer, weak, strong, x, y, u, threshold):
    model.eval()
    with torch.no_grad():
        p = torch.softmax(model(weak(u)), 1)
    aim = (p == p.amax(1, keepdim=True)) & (p >= threshold)
    model.train()
    log_p = model(torch.cat((strong(u), weak(x)))).log_softmax(1)
    loss = F.nll_loss(log_p[len(u) :], y) - (aim * log_p[: len(u)]).sum() / p.shape[0]
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss, aim.any(1).float().mean()


def in_modes(labelling=False, learning=True, after=True, no_graph=True, recorded=True, together=True):
    """A step with these modes for its passes and for the end."""

    def step(model, optimizer, weak, strong, x, y, u, threshold):
        model.train(labelling)
        with torch.set_grad_enabled(not no_graph):
            q = model(weak(u)).detach()
        model.train(learning)
        with torch.set_grad_enabled(recorded):
            logits = model(torch.cat([weak(x), strong(u)])) if together else torch.cat([model(weak(x)), model(strong(u))])
        loss = F.cross_entropy(logits[: len(x)], y) + losses.pseudo_label_loss(q, logits[len(x) :], threshold)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.train(after)
        return loss.item(), (q.softmax(1).amax(1) >= threshold).float().mean().item()

    return step


def ece_by_loops(gap_of_bin):
    """The error as a loop over bins adds it up; gap_of_bin(confidences, rights, number of all rows) of the rows in a bin."""

    def answer(confidence, right, bins):
        total = 0.0
        for b in range(bins):
            rows = [i for i, c in enumerate(confidence.tolist()) if b / bins < c <= (b + 1) / bins]
            total += gap_of_bin([float(confidence[i]) for i in rows], [float(right[i]) for i in rows], len(confidence))
        return total

    return answer


def ece_by_histogram(confidence, right, bins):
    number = np.clip((confidence.numpy() * bins).astype(int), 0, bins - 1)
    sums = np.bincount(number, weights=confidence.numpy() - right.numpy(), minlength=bins)
    return np.abs(sums).sum() / len(number)


RIGHT = {"6.1": [step_by_one_hot, in_modes()], "6.2": [ece_by_loops(lambda c, r, n: abs(sum(c) - sum(r)) / n), ece_by_histogram]}

WRONG = {
    "6.1": {
        "records a graph": in_modes(no_graph=False), "made in training mode": in_modes(labelling=True),
        "learns in evaluation mode": in_modes(learning=False), "left in evaluation mode": in_modes(after=False),
        "never sees both": in_modes(together=False), "No gradient leads back": in_modes(recorded=False),
        "other order": lambda *a: fixmatch_step(*a)[::-1], "Return two numbers": lambda *a: fixmatch_step(*a)[:1],
        "another gradient": step_by(loss_by(mean=lambda rows, passes: (rows * passes).sum() / 14)),
        "the loss returned": lambda *a: [v / 2 for v in fixmatch_step(*a)],
        ">= and not >": step_by(loss_by(lambda w: w.softmax(1).amax(1) - 1e-6)),
    },
    "6.2": {
        "is a number written into": lambda c, right, bins: expected_calibration_error(c, right, 5 if len(right) > 4 else bins),
        "NaN spreads": lambda c, right, bins: math.nan if (c * bins).ceil().unique().numel() < bins else 0.0,
        "without rows divides by 0": ece_by_loops(lambda c, r, n: abs(sum(c) - sum(r)) / len(c) * len(c) / n),
        "exactly 1": lambda c, right, bins: expected_calibration_error(c[c < 1], right[c < 1], bins) * (c < 1).float().mean(),
        "single number": lambda c, right, bins: torch.zeros(bins), "The error is off": lambda *a: expected_calibration_error(*a) + 0.01,
    },
}
