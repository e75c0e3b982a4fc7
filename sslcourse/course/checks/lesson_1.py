"""The exercises of lesson 1: the loss with label smoothing, and a whole evaluation."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslcourse.course.checks import expect
from sslcourse.course.checks.expect import near, reject_if
from sslcourse.course.exercises import Exercise
from sslcourse.devices import evaluation_mode


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


def honest_evaluation(model: nn.Module, images: Tensor, labels: Tensor, transform, batch_size: int) -> tuple[float, float, Tensor]:
    """Accuracy, its standard error, and right or wrong for each image: bool (N,). Every module is left in the mode in which it came."""
    with torch.no_grad(), evaluation_mode(model):
        pairs = zip(images.split(batch_size), labels.split(batch_size), strict=True)
        right = torch.cat([model(transform(x)).argmax(dim=1) == y for x, y in pairs])
    accuracy = right.sum().item() / len(right)
    return accuracy, math.sqrt(accuracy * (1 - accuracy) / len(right)), right


def evaluation_with(change):
    """A wrong evaluation: change(accuracy, number of images, right or wrong batch by batch) -> (accuracy, error)."""

    def wrong(model, images, labels, transform, batch_size):
        a, _, right = honest_evaluation(model, images, labels, transform, batch_size)
        return *change(a, len(right), right.double().split(batch_size)), right

    return wrong


EVALUATION_MISTAKES = {
    "This is the mean of the batches' accuracies, and the last batch is smaller. Count right answers and images.":
        evaluation_with(lambda a, n, batches: (sum(part.mean().item() for part in batches) / len(batches), 0.0)),
    "This is in percent. The formula of the standard error needs a fraction.": evaluation_with(lambda a, n, _: (100 * a, 0.0)),
    "That is the variance, a(1 − a)/n. The standard error is its square root.": evaluation_with(lambda a, n, _: (a, a * (1 - a) / n)),
    "That is the deviation of one answer. A mean's is smaller by sqrt(n).": evaluation_with(lambda a, n, _: (a, (a * (1 - a)) ** 0.5)),
}
MODES = {  # the modes in which a model and its five layers come: hint where they do not leave in them
    (True,) * 6: "The model came in training mode and was left in evaluation mode. Put back the mode it had.",
    (False,) * 6: "The model came in evaluation mode and was left in training mode. Put back the mode it had.",
    (True, True, False, True, True, True): "A frozen layer came in evaluation mode and was switched on. Put back the mode of every module.",
}
NO_TRANSFORM = "The transform was never called. The network expects what it makes of the bytes: model(transform(batch))."


class Trial:
    """One call of an answer, on n images of which the last are wrong far more often, with notes on how network and transform were used."""

    def __init__(self, answer, n: int = 55, batch_size: int = 25, modes=(True,) * 6):
        torch.manual_seed(5)
        self.model = nn.Sequential(nn.Conv2d(3, 8, 6), nn.BatchNorm2d(8), nn.Flatten(), nn.Dropout(0.5), nn.Linear(8, 3)).eval()
        images = torch.randint(256, (n, 3, 6, 6), dtype=torch.uint8)
        with torch.no_grad():
            said = self.model(self.transform(images)).argmax(1)
        labels = torch.where((torch.arange(n) % 5 == 0) | (torch.arange(n) >= 50), (said + 1) % 3, said)
        self.shown, self.used = [], []  # the batches that were transformed; of every layer, at every call, its mode and whether it recorded
        for layer, mode in zip(self.model.modules(), modes, strict=True):
            layer.training = mode
            layer.register_forward_hook(lambda layer, x, out: self.used.append((layer.training, out.requires_grad)))
        with expect.hints_for_errors({"(unsigned char) and bias": NO_TRANSFORM}):  # a convolution of bytes
            self.got = answer(self.model, images, labels, lambda x: (self.shown.append(x), self.transform(x))[1], batch_size)

    def transform(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.dtype != torch.uint8:
            raise ValueError(f"The transform takes a batch of bytes (B, 3, H, W) as it is, and was given {x.dtype} of shape {(*x.shape,)}")
        return (x.float() - 128) / 64


def check_use(trial: Trial) -> None:
    """Whatever came back: how network, transform and autograd were used."""
    training = "The network was in training mode: dropout was on, and batch normalisation learned from test images. Use model.eval()."
    reject_if(any(mode for mode, _ in trial.used), training)
    reject_if(not torch.is_grad_enabled(), "Autograd is still switched off after the function. Use `with torch.no_grad():`, which ends.")
    reject_if(any(kept for _, kept in trial.used), "Gradients were recorded, which costs memory: loop inside `with torch.no_grad():`.")
    sizes = [len(x) for x in trial.shown]
    reject_if(not sizes, NO_TRANSFORM)
    reject_if(max(sizes) > 25, f"{max(sizes)} images were transformed at once. No batch may have more than batch_size, here 25.")
    told = f"{sum(sizes)} images were shown to the network, in batches of {sizes}, and there are 55. Each counts once, the last five too."
    reject_if(sum(sizes) != 55, told)


def check_evaluation(answer) -> None:
    trial, wanted = Trial(answer), Trial(honest_evaluation).got
    check_use(trial)
    expect.kind(trial.got, (tuple, list))
    reject_if(len(trial.got) != 3, "Return three things: the accuracy, its standard error, and right or wrong for each image.")
    right = trial.got[2]
    expect.shape(right, (55,), "right or wrong")
    reject_if(right.dtype != torch.bool, f"Right or wrong has the type {right.dtype}. A comparison with == gives True and False.")
    judged = "Some answers are judged wrongly, or shuffled. Row i belongs to image i, and the answer is the class with the highest score."
    reject_if(not right.equal(wanted[2]), judged)
    for at, name in enumerate(("accuracy", "standard error")):
        told = f"On these images the {name} is {wanted[at]:.4f}, not {expect.number(trial.got[at], f'the {name}'):.4f}."
        expect.reject_mistakes(answer, honest_evaluation, EVALUATION_MISTAKES, lambda f, at=at: float(Trial(f).got[at]), rtol=0)
        reject_if(not near(trial.got[at], wanted[at], rtol=0), told)
    for modes, hint in MODES.items():
        model = Trial(answer, modes=modes).model
        reject_if(tuple(layer.training for layer in model.modules()) != modes, hint)
    expect.close(*(Trial(f, 7, 64).got[2] for f in (answer, honest_evaluation)), expect.WRITTEN_IN)


EXERCISES = [
    Exercise("1.1", "Cross-entropy with label smoothing", 15, 2, smoothed_cross_entropy, check_cross_entropy, SMOOTHING_MISTAKES),
    Exercise("1.2", "An evaluation that can be trusted", 40, 3, honest_evaluation, check_evaluation, EVALUATION_MISTAKES),
]
