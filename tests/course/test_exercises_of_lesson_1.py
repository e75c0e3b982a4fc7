"""Lesson 1's exercises: the solution and other right answers pass, and each likely mistake gets its own hint."""

import math

import torch
from answers import judge_of, standard_tests
from torch.nn import functional as F

from sslcourse.course.checks.lesson_1 import EXERCISES, honest_accuracy, smoothed_cross_entropy, stratified_subset

judged = judge_of(EXERCISES)


# --- 1.1 ---


def subset_by_class_shuffle(labels, per_class, seed):
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for c in range(int(labels.max()) + 1):
        mine = (labels == c).nonzero().flatten()
        chosen += mine[torch.randperm(len(mine), generator=generator)[:per_class]].tolist()
    return torch.tensor(chosen)


def subset_not_stratified(labels, per_class, seed):
    return torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[: 3 * per_class]


def subset_first_of_each(labels, per_class, seed):
    return torch.cat([(labels == c).nonzero().flatten()[:per_class] for c in labels.unique()])


def subset_with_repeats(labels, per_class, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = [(labels == c).nonzero().flatten() for c in labels.unique()]
    return torch.cat([mine[torch.randint(3, (per_class,), generator=generator)] for mine in rows])


def subset_unseeded(labels, per_class, seed):
    order = torch.randperm(len(labels))
    return torch.cat([order[labels[order] == c][:per_class] for c in labels.unique()])


def subset_as_flags(labels, per_class, seed):
    flags = torch.zeros(len(labels), dtype=torch.bool)
    flags[stratified_subset(labels, per_class, seed)] = True
    return flags


# --- 1.2 ---


def loss_of_torch(logits, labels, smoothing):
    return F.cross_entropy(logits, labels, label_smoothing=smoothing)


def loss_unstable(logits, labels, smoothing):
    p = logits.exp() / logits.exp().sum(1, keepdim=True)
    target = F.one_hot(labels, logits.shape[1]) * (1 - smoothing) + smoothing / logits.shape[1]
    return -(target * p.log()).sum(1).mean()


def loss_summed(logits, labels, smoothing):
    return F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="sum")


def loss_plain(logits, labels, smoothing):
    return F.cross_entropy(logits, labels)


def loss_others_only(logits, labels, smoothing):
    target = torch.full_like(logits, smoothing / (logits.shape[1] - 1)).scatter(1, labels[:, None], 1 - smoothing)
    return -(target * logits.log_softmax(1)).sum(1).mean()


def loss_over_batch(logits, labels, smoothing):
    target = F.one_hot(labels, logits.shape[1]) * (1 - smoothing) + smoothing / logits.shape[1]
    return -(target * F.log_softmax(logits, 0)).sum(1).mean()


# --- 1.3 ---


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


def accuracy_mean_of_means(model, batches):
    means = [honest_accuracy(model, [batch])[0] for batch in batches]
    a = sum(means) / len(means)
    return a, math.sqrt(a * (1 - a) / 55)


def accuracy_in_percent(model, batches):
    a, error = honest_accuracy(model, batches)
    return 100 * a, 100 * error


def accuracy_with_variance(model, batches):
    a, error = honest_accuracy(model, batches)
    return a, error**2


RIGHT = [
    ("1.1", stratified_subset),
    ("1.1", subset_by_class_shuffle),
    ("1.2", smoothed_cross_entropy),
    ("1.2", loss_of_torch),
    ("1.3", honest_accuracy),
    ("1.3", accuracy_collected),
]

WRONG = [
    ("1.1", subset_not_stratified, "not stratified"),
    ("1.1", subset_first_of_each, "no random choice"),
    ("1.1", subset_with_repeats, "chosen twice"),
    ("1.1", subset_unseeded, "same seed gave two different"),
    ("1.1", subset_as_flags, "True/False flags"),
    ("1.2", loss_unstable, "overflow"),
    ("1.2", loss_summed, "sum over the batch"),
    ("1.2", loss_plain, "Smoothing is ignored"),
    ("1.2", loss_others_only, "only the other classes"),
    ("1.2", loss_over_batch, "softmax runs over the batch"),
    ("1.3", accuracy_in_training_mode, "was in training mode"),
    ("1.3", accuracy_left_in_eval, "left in evaluation mode"),
    ("1.3", accuracy_left_in_train, "left in training mode"),
    ("1.3", accuracy_mean_of_means, "mean of the batches' accuracies"),
    ("1.3", accuracy_in_percent, "percent"),
    ("1.3", accuracy_with_variance, "variance"),
]


test_right_answers_are_accepted, test_each_mistake_gets_its_own_hint, test_hints_differ_within_an_exercise = standard_tests(
    EXERCISES, RIGHT, WRONG
)
