"""The exercises of lesson 1: a fair choice of labels, the loss with label smoothing, and an accuracy measured in the right mode."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslcourse.course.checks import expect
from sslcourse.course.checks.expect import reject_if
from sslcourse.course.exercises import Exercise
from sslcourse.devices import evaluation_mode


def stratified_subset(labels: Tensor, per_class: int, seed: int) -> Tensor:
    """Indices of per_class random rows of each class. labels (N,) -> int64 (classes · per_class,)."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    return torch.cat([order[labels[order] == c][:per_class] for c in labels.unique()])


def check_subset(answer) -> None:
    labels = torch.tensor([2, 0, 1, 0, 2, 1, 0, 1, 2, 0, 1, 2] * 25)
    got = answer(labels, 4, 0)
    expect.kind(got, Tensor, "the indices")
    reject_if(got.dtype == torch.bool, "These are True/False flags. Return the positions themselves: flags.nonzero().flatten().")
    reject_if(got.is_floating_point() or got.dim() != 1, "Indices are whole numbers in one row, of shape (classes · per_class,).")
    inside = (got >= 0) & (got < len(labels))
    reject_if(not inside.all(), "Some of these are not positions in `labels`. Are they labels, or positions inside a class?")
    reject_if(len(got) != 12, f"Three classes and per_class 4 make 12 indices, and there are {len(got)}. Is per_class for each class?")
    reject_if(len(got.unique()) != len(got), "An image was chosen twice. Draw without putting back: torch.randperm, not torch.randint.")
    counts = torch.bincount(labels[got], minlength=3).tolist()
    reject_if(counts != [4, 4, 4], f"The classes have {counts} images in place of 4 each. A random draw from all images is not stratified.")
    chosen = [set(answer(labels, 4, seed).tolist()) for seed in range(60)]
    reject_if(chosen[0] != {*got.tolist()}, "The same seed gave two different subsets. Use torch.Generator().manual_seed(seed).")
    reject_if(chosen[0] == chosen[1] == chosen[2], "Every seed gives the same subset. The first images of a class are no random choice.")
    few = len(set().union(*chosen)) < 0.5 * len(labels) or sum(map(sum, chosen)) / (60 * 12) < 0.35 * len(labels)
    reject_if(few, "Over many seeds only a part of the images is ever chosen. Shuffle all images of a class, then take per_class.")


def smoothed_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Mean cross-entropy against targets that give 1 − smoothing to the label and share smoothing among all classes."""
    return F.cross_entropy(logits, labels, label_smoothing=smoothing)


SMOOTHING_MISTAKES = {
    "This is the sum over the batch. Take the mean, so that the loss does not depend on the batch size.":
        lambda logits, labels, s: len(logits) * smoothed_cross_entropy(logits, labels, s),
    "The sign is turned round: the loss is minus the logarithm of a probability.": lambda *a: -smoothed_cross_entropy(*a),
    "Smoothing is ignored: this is the plain cross-entropy.": lambda logits, labels, s: F.cross_entropy(logits, labels),
    "Here only the other classes share `smoothing`. All do, the label too: it gets 1 − s + s/C.":
        lambda logits, labels, s: smoothed_cross_entropy(logits, labels, s * logits.shape[1] / (logits.shape[1] - 1)),
    "The label gets 1 and every class another s/C on top: the sum is 1 + s. Scale the label's part by 1 − s.":
        lambda logits, labels, s: F.cross_entropy(logits, labels) + s * smoothed_cross_entropy(logits, labels, 1.0),
}


def check_cross_entropy(answer) -> None:
    logits = 2 * torch.randn(7, 5, generator=torch.Generator().manual_seed(3))
    labels = torch.tensor([0, 4, 2, 2, 1, 3, 0])
    for s in (0.2, 0.0, 0.1):
        hint = f"With smoothing {s} the value is off. Work one row by hand: the target is (1 − s) at the label plus s/C everywhere."
        expect.agree(answer, smoothed_cross_entropy, (logits, labels, s), hint, SMOOTHING_MISTAKES, "the loss")
    large = torch.tensor([[300.0, -300.0, 0.0], [0.0, 300.0, 250.0]]), torch.tensor([0, 2]), 0.1
    hint = "Right for small logits, but logits of 300 overflow exp(). Use log_softmax, or subtract logsumexp: it never forms exp(300)."
    expect.agree(answer, smoothed_cross_entropy, large, hint, what="the loss")


def honest_accuracy(model: nn.Module, batches) -> tuple[float, float]:
    """Accuracy over all batches and its standard error, in evaluation mode; the model's mode is put back."""
    right, n = 0, 0
    with torch.no_grad(), evaluation_mode(model):
        for x, y in batches:
            right += (model(x).argmax(dim=1) == y).sum().item()
            n += len(y)
    accuracy = right / n
    return accuracy, math.sqrt(accuracy * (1 - accuracy) / n)


def accuracy_with(change):
    """A wrong accuracy: change(accuracy, number of rows, number of batches) -> (accuracy, error)."""
    return lambda model, batches: change(honest_accuracy(model, batches)[0], sum(len(y) for _, y in batches), len(batches))


ACCURACY_MISTAKES = {
    "This is the mean of the batches' accuracies, and the last batch is smaller. Count right answers and rows.":
        lambda model, batches: (sum(honest_accuracy(model, [batch])[0] for batch in batches) / len(batches), 0.0),
    "This is in percent. The formula of the standard error needs a fraction.": accuracy_with(lambda a, n, k: (100 * a, 0.0)),
    "This is the number of right answers. Divide by the number of rows.": accuracy_with(lambda a, n, k: (n * a, 0.0)),
    "That is the variance, a(1 − a)/n. The standard error is its square root.": accuracy_with(lambda a, n, k: (a, a * (1 - a) / n)),
    "That is the deviation of one answer. A mean's is smaller by sqrt(n).": accuracy_with(lambda a, n, k: (a, math.sqrt(a * (1 - a)))),
    "n in the standard error is the number of images, not of batches.": accuracy_with(lambda a, n, k: (a, math.sqrt(a * (1 - a) / k))),
}


def small_network() -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))


def uneven_batches() -> list[tuple[Tensor, Tensor]]:
    """55 rows in batches of 25, 25 and 5; the last is wrong far more often, so that a mean of means shows."""
    x = torch.randn(55, 4, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        said = small_network().eval()(x).argmax(1)
    wrong = (torch.arange(55) % 5 == 0) | (torch.arange(55) >= 50)
    return list(zip(x.split(25), torch.where(wrong, (said + 1) % 3, said).split(25), strict=True))


def check_accuracy(answer) -> None:
    batches, model = uneven_batches(), small_network().train()
    got = answer(model, batches)
    expect.two(got, "Return two numbers: the accuracy and its standard error.")
    training_mode = "The network was in training mode: dropout was on, and batch normalisation learned from test images. Use model.eval()."
    reject_if(model[1].num_batches_tracked > 0, training_mode)
    reject_if(not model.training, "The model came in training mode and was left in evaluation mode. Put back the mode it had.")
    model.eval()
    answer(model, batches)
    reject_if(model.training, "The model came in evaluation mode and was left in training mode: model.train(was_training).")
    hints = "Is argmax taken over the classes, dimension 1?", "The standard error is sqrt(a · (1 − a) / n) with n images."
    for at, (wanted, hint) in enumerate(zip(honest_accuracy(model, batches), hints, strict=True)):
        told = f"On these batches {('the accuracy', 'its standard error')[at]} is {wanted:.4f}, not {float(got[at]):.4f}. {hint}"
        expect.agree(answer, honest_accuracy, (model, batches), told, ACCURACY_MISTAKES, part=lambda r, at=at: float(r[at]), rtol=0)


EXERCISES = [
    Exercise("1.1", "A fair choice of labels", 10, 1, stratified_subset, check_subset),
    Exercise("1.2", "Cross-entropy with label smoothing", 15, 2, smoothed_cross_entropy, check_cross_entropy, SMOOTHING_MISTAKES),
    Exercise("1.3", "An accuracy that can be trusted", 15, 2, honest_accuracy, check_accuracy, ACCURACY_MISTAKES),
]
