"""The exercises of lesson 1: a fair choice of labels, the loss with label smoothing, and an accuracy measured in the right mode."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslcourse.course.exercises import Exercise, Wrong, expect_close, expect_type, try_mistakes

# --- 1.1 ------------------------------------------------------------------------------------------------------------------------------


def stratified_subset(labels: Tensor, per_class: int, seed: int) -> Tensor:
    """Indices of per_class random rows of each class. labels (N,) -> int64 (classes · per_class,)."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    chosen = [order[labels[order] == c][:per_class] for c in labels.unique()]
    return torch.cat(chosen)


def _check_subset(answer) -> None:
    labels = torch.tensor([2, 0, 1, 0, 2, 1, 0, 1, 2, 0, 1, 2] * 25)
    got = answer(labels, 4, 0)
    expect_type(got, Tensor, "the indices")
    if got.dtype == torch.bool:
        raise Wrong("These are True/False flags. Return the positions themselves: flags.nonzero().flatten().")
    if got.is_floating_point() or got.dim() != 1:
        raise Wrong(f"Indices are whole numbers in one row, (classes · per_class,); this is {got.dtype} of shape {tuple(got.shape)}.")
    if len(got) and (got.min() < 0 or got.max() >= len(labels)):
        raise Wrong("Some of these are not positions in `labels`. Did you return labels, or positions inside a class only?")
    if len(got) != 12:
        raise Wrong(f"With three classes and per_class 4 there should be 12 indices; there are {len(got)}. Is per_class for each class?")
    if len(got.unique()) != len(got):
        raise Wrong("An image was chosen twice. Draw without putting back: torch.randperm, not torch.randint.")
    counts = torch.bincount(labels[got], minlength=3).tolist()
    if counts != [4, 4, 4]:
        raise Wrong(f"The classes have {counts} images where each should have 4. A random draw from all images is not stratified.")
    if not torch.equal(got.sort().values, answer(labels, 4, 0).sort().values):
        raise Wrong("The same seed gave two different subsets. Use a generator made from the seed: torch.Generator().manual_seed(seed).")
    other = [answer(labels, 4, seed).sort().values for seed in (1, 2, 3)]
    if all(torch.equal(got.sort().values, o) for o in other):
        raise Wrong("Every seed gives the same subset. Taking the first images of a class is no random choice: shuffle before you take.")
    drawn = torch.cat([answer(labels, 4, seed) for seed in range(60)])
    if drawn.float().mean() < 0.35 * len(labels) or len(drawn.unique()) < 0.5 * len(labels):
        raise Wrong("Over many seeds only a part of the images is ever chosen. Shuffle all images of a class, then take per_class of them.")


# --- 1.2 ------------------------------------------------------------------------------------------------------------------------------


def smoothed_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Mean cross-entropy against targets that give 1 − smoothing to the label and share smoothing among all classes."""
    log_p = logits - logits.logsumexp(dim=1, keepdim=True)
    at_label = log_p.gather(1, labels.unsqueeze(1)).squeeze(1)
    return -((1 - smoothing) * at_label + smoothing * log_p.mean(dim=1)).mean()


def _smoothed_by(target, reduce=torch.mean):
    """A wrong loss: cross-entropy against the given target distribution, reduced as given."""

    def loss(logits, labels, smoothing):
        return reduce(-(target(logits, labels, smoothing) * logits.log_softmax(1)).sum(1))

    return loss


def _target(logits, labels, smoothing):
    classes = logits.shape[1]
    return F.one_hot(labels, classes) * (1 - smoothing) + smoothing / classes


def _check_cross_entropy(answer) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(7, 5, generator=generator)
    labels = torch.tensor([0, 4, 2, 2, 1, 3, 0])
    others_only = _smoothed_by(lambda z, y, s: torch.where(F.one_hot(y, z.shape[1]) > 0, 1 - s, s / (z.shape[1] - 1)))
    try_mistakes(
        answer,
        (logits, labels, 0.2),
        {
            "This is the sum over the batch. Take the mean, so that the loss does not depend on the batch size.": _smoothed_by(
                _target, torch.sum
            ),
            "The sign is turned round: a loss falls as the label's probability rises, so it is minus the logarithm.": lambda *a: (
                -smoothed_cross_entropy(*a)
            ),
            "Smoothing is ignored: this is the plain cross-entropy.": lambda z, y, s: F.cross_entropy(z, y),
            "Here only the other classes share `smoothing`. All classes do, the label too: it gets 1 − s + s/C.": others_only,
            "The label gets 1 and every class another s/C on top: the sum is 1 + s. Scale the label's part by 1 − s.": _smoothed_by(
                lambda z, y, s: F.one_hot(y, z.shape[1]) + s / z.shape[1]
            ),
            "The softmax runs over the batch. Classes are dimension 1.": lambda z, y, s: (
                -(_target(z, y, s) * z.log_softmax(0)).sum(1).mean()
            ),
            "This is the mean over images and classes. Sum over the classes, then take the mean over the images.": _smoothed_by(
                lambda z, y, s: _target(z, y, s) / z.shape[1]
            ),
        },
    )
    for smoothing in (0.2, 0.0, 0.1):
        expect_close(
            answer(logits, labels, smoothing),
            F.cross_entropy(logits, labels, label_smoothing=smoothing),
            f"With smoothing {smoothing} the value is off. Work one row by hand: the target is (1 − s) at the label plus s/C everywhere.",
            what="the loss",
        )
    large = torch.tensor([[300.0, -300.0, 0.0], [0.0, 300.0, 250.0]])
    expect_close(
        answer(large, torch.tensor([0, 2]), 0.1),
        F.cross_entropy(large, torch.tensor([0, 2]), label_smoothing=0.1),
        "Right for small logits, but logits of 300 overflow exp(). Use log_softmax, or subtract logsumexp: it never forms exp(300).",
        what="the loss",
    )


# --- 1.3 ------------------------------------------------------------------------------------------------------------------------------


def honest_accuracy(model: nn.Module, batches) -> tuple[float, float]:
    """Accuracy over all batches and its standard error, in evaluation mode; the model's mode is put back."""
    was_training = model.training
    model.eval()
    right, n = 0, 0
    with torch.no_grad():
        for x, y in batches:
            right += (model(x).argmax(dim=1) == y).sum().item()
            n += len(y)
    model.train(was_training)
    accuracy = right / n
    return accuracy, math.sqrt(accuracy * (1 - accuracy) / n)


def _small_network() -> nn.Sequential:
    generator = torch.Generator().manual_seed(5)
    model = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return model


def _uneven_batches() -> list[tuple[Tensor, Tensor]]:
    """55 rows in batches of 25, 25 and 5; the last is wrong far more often, so that a mean of means shows."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(55, 4, generator=generator)
    with torch.no_grad():
        said = _small_network().eval()(x).argmax(1)
    y = torch.where(torch.arange(55) % 5 == 0, (said + 1) % 3, said)
    y[50:] = (said[50:] + 1) % 3
    return list(zip(x.split(25), y.split(25), strict=True))


def _check_accuracy(answer) -> None:
    batches = _uneven_batches()
    wanted, wanted_error = honest_accuracy(_small_network(), batches)
    model = _small_network().train()
    got = answer(model, batches)
    if not isinstance(got, (tuple, list)) or len(got) != 2:
        expect_type(got, tuple, "the result")
        raise Wrong("Return two numbers: the accuracy and its standard error.")
    accuracy, error = (float(v) for v in got)
    if int(model[1].num_batches_tracked) > 0:
        raise Wrong(
            "The network was in training mode: dropout was on, and batch normalisation used (and learned!) the statistics of the test "
            "batches. Call model.eval() first."
        )
    if not model.training:
        raise Wrong(
            "The model came in training mode and was left in evaluation mode. Note model.training first and put it back at the end."
        )
    evaluated = _small_network().eval()
    answer(evaluated, batches)
    if evaluated.training:
        raise Wrong("The model came in evaluation mode and was left in training mode. Put back the mode it had: model.train(was_training).")
    means = [honest_accuracy(_small_network(), [batch])[0] for batch in batches]
    if abs(accuracy - sum(means) / len(means)) < 1e-6:
        raise Wrong(
            "This is the mean of the batches' accuracies, and the last batch is smaller than the others. Count right answers and rows."
        )
    if abs(accuracy - 100 * wanted) < 1e-3:
        raise Wrong("This is in percent. Return a fraction between 0 and 1: the formula of the standard error needs one.")
    if abs(accuracy - 55 * wanted) < 1e-6:
        raise Wrong("This is the number of right answers. Divide by the number of rows.")
    if abs(accuracy - wanted) > 1e-6:
        raise Wrong(f"On this test batch the accuracy is {wanted:.4f}, not {accuracy:.4f}. Is argmax taken over the classes, dimension 1?")
    if abs(error - wanted_error**2) < 1e-6:
        raise Wrong("That is the variance, a(1 − a)/n. The standard error is its square root.")
    if abs(error - math.sqrt(wanted * (1 - wanted))) < 1e-6:
        raise Wrong("That is the deviation of a single answer. The error of a mean over n answers is smaller by sqrt(n).")
    if abs(error - math.sqrt(wanted * (1 - wanted) / len(batches))) < 1e-6:
        raise Wrong("n in the standard error is the number of images, not of batches.")
    if abs(error - wanted_error) > 1e-6:
        raise Wrong(f"The standard error here is {wanted_error:.4f}, not {error:.4f}: sqrt(a · (1 − a) / n) with n images.")


EXERCISES = {
    "1.1": Exercise("1.1", "A fair choice of labels", 10, 1, stratified_subset, _check_subset),
    "1.2": Exercise("1.2", "Cross-entropy with label smoothing", 15, 2, smoothed_cross_entropy, _check_cross_entropy),
    "1.3": Exercise("1.3", "An accuracy that can be trusted", 15, 2, honest_accuracy, _check_accuracy),
}
