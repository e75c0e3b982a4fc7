"""The exercises of lesson 5: the loss of Barlow Twins, the first module that is not finite, a safe standardisation, and a diagnosis."""

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from sslcourse import losses
from sslcourse.course import clinic
from sslcourse.course.checks import expect
from sslcourse.course.checks.expect import reject_if, two_views
from sslcourse.course.exercises import Exercise


def my_barlow_twins_loss(z0: Tensor, z1: Tensor, lambda_param: float) -> Tensor:
    """Distance of the cross-correlation matrix from the identity: (diagonal − 1)² summed, plus lambda_param times the other squares."""
    return losses.barlow_twins_loss(z0, z1, lambda_param)


def standard(z, correction=0):
    return (z - z.mean(0)) / (z.var(0, correction=correction) + 1e-5).sqrt()


def terms(c):
    """The sums of squares that the matrix adds to the loss: on its diagonal, and beside it."""
    return (c.diagonal() - 1).square().sum(), c[~torch.eye(len(c), dtype=torch.bool)].square().sum()


def of_views(prepare=standard, divide=lambda c, n: c / n, weigh=lambda on, off, w: on + w * off):
    """A wrong loss: of the matrix of views that are prepared or divided otherwise, or its terms put together otherwise."""
    return lambda z0, z1, lambda_param: weigh(*terms(divide(prepare(z0).T @ prepare(z1), len(z0))), lambda_param)


BARLOW_MISTAKES = {
    "The diagonal has no part: nothing asks the views to agree. Add the sum of (C_ii − 1)².": of_views(weigh=lambda on, off, w: w * off),
    "The deviation divides by N − 1, the correlation by N, so the diagonal ends below 1.": of_views(lambda z: standard(z, correction=1)),
    "The deviation divides by N and the correlation by N − 1, so the diagonal passes 1.": of_views(divide=lambda c, n: c / (n - 1)),
    "The columns are not divided by their deviation: this is a covariance.": of_views(lambda z: z - z.mean(0)),
    "λ stands on the diagonal. It weighs the terms beside it.": of_views(weigh=lambda on, off, w: w * on + off),
}


def check_loss(answer) -> None:
    got = answer(*two_views(7, 5, 1), 0.3)
    reject_if(isinstance(got, Tensor) and tuple(got.shape) == (5, 5), "This is a matrix. The loss is one number: the sum of its terms.")
    expect.loss(got)
    for n, d, w in ((7, 5, 0.3), (12, 3, 0.005), (5, 9, 1.0)):
        hint = f"With N = {n}, D = {d} and λ = {w} the value is off. One test: two equal views have a diagonal of 1."
        expect.agree(answer, my_barlow_twins_loss, (*two_views(n, d, n), w), hint, BARLOW_MISTAKES, "the loss", rtol=2e-3)
    told = {"names": ("z0", "z1"), "cut": "No .detach() on the mean or the deviation."}
    expect.gradients(answer, my_barlow_twins_loss, two_views(6, 4, 2), 0.3, **told, rtol=1e-2, atol=1e-4)
    z0, z1 = two_views(7, 5, 2)
    z0[:, 2] = 1.5
    z0.requires_grad_()
    value = answer(z0, z1, 0.3)
    reject_if(not value.isfinite(), "Right, but NaN where a dimension is the same for all images. Add a small eps to the variance.")
    slope = torch.autograd.grad(value, z0)[0]
    reject_if(not slope.isfinite().all(), "Finite where a dimension is constant, but its gradient is NaN. Put eps inside the root.")


def first_nonfinite(model: nn.Module, x: Tensor) -> str | None:
    """Name of the first module, in the order of the forward pass, whose output is not finite; None if there is none."""
    names, found = {module: name for name, module in model.named_modules()}, []

    def look(module, inputs, output):
        if module in names and not output.isfinite().all():
            found.append(names[module])

    with register_module_forward_hook(look):
        model(x)
    return found[0] if found else None


class Backwards(nn.Sequential):
    """Calls its parts in the other order than they are registered in, and then a function of its own."""

    def __init__(self, function, *parts: nn.Module):
        super().__init__(*parts)
        self.function = function

    def forward(self, x):
        for part in reversed([*self.children()]):
            x = part(x)
        return self.function(x)


def make(value: float) -> nn.Module:
    return Backwards(lambda x: torch.where(torch.arange(x.shape[1]) == 1, value, x))


def ill_models():
    """Models, the right name of each, and hints for wrong ones."""
    nested = nn.Sequential(nn.Linear(3, 3), nn.Sequential(make(math.nan), nn.Linear(3, 3)), nn.Linear(3, 3))
    nested[0].register_forward_hook(lambda *a: None)
    nested[2].eval()
    whole = "A child of this module was done before: take the hook that fires first, not the first name."
    yield nested, "1.0", {
        None: "There is a NaN in this model, and the function returned None. Is every module looked at, the nested ones too?",
        "1": whole, "": whole, "0": "The child's own name is not enough. Use the full path, as named_modules() has it: 1.0.",
        "2": "This is the last module with a bad output. The first one is the culprit.",
    }  # fmt: skip
    infinite = nn.Sequential(nn.Linear(3, 3), make(math.inf), Backwards(lambda x: x - x), nn.Linear(3, 3))
    yield infinite, "1", {"2": "Infinity is overlooked: it became NaN one module later. isfinite() finds both."}
    vanishing = nn.Sequential(nn.Linear(3, 3), make(-math.inf), Backwards(torch.exp), nn.Linear(3, 3))
    gone = "An infinity that disappears later is overlooked: exp(−inf) is 0. Look at every output, not at the last one."
    yield vanishing, "1", {None: gone}
    order = "These are the first in the order in which they were registered. Take the order in which the forward pass calls them."
    yield Backwards(nn.Identity(), nn.Linear(3, 3), make(math.nan), nn.Linear(3, 3)), "1", {"0": order}
    itself = "The model itself can be the culprit, and its name is the empty text, which counts as False: ask `is not None`."
    yield Backwards(lambda x: x / 0, nn.Linear(3, 3)), "", {None: itself}


def hooks_and_modes(model: nn.Module) -> tuple[int, list[bool]]:
    modules = list(model.modules())
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules), [m.training for m in modules]


def check_first(answer) -> None:
    got = answer(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)), torch.ones(2, 3))
    reject_if(got is not None, f"All outputs of this model are finite, and the function returned {got!r} in place of None.")
    for model, wanted, hints in ill_models():
        (hooks, modes), got = hooks_and_modes(model), answer(model, torch.ones(2, 3))
        hooks_after, modes_after = hooks_and_modes(model)
        reject_if(isinstance(got, nn.Module), "This is the module itself. Return its name, as named_modules() has it.")
        if got is not None:
            expect.kind(got, str, "the name")
        other = "The wrong module is named. Put a hook on every module; the first that fires with a bad output belongs to the culprit."
        reject_if(got != wanted, hints.get(got, other))
        reject_if(hooks_after > hooks, "A hook is left behind, and every later pass calls it: keep each handle and call its remove().")
        reject_if(hooks_after < hooks, "A hook that was there before is gone. Remove only your own, by their handles.")
        reject_if(modes_after != modes, "The modes of the modules have changed: batch normalisation and dropout act otherwise now.")


def safe_standardise(z: Tensor, eps: float) -> Tensor:
    """Every column to mean 0 and deviation 1 over the N rows, with eps added to the variance: finite, and with finite gradients, always."""
    z = z - z.mean(0)
    return z / (z.square().mean(0) + eps).sqrt()


SAFE_MISTAKES = {
    "eps is added outside the root. Inside, the slope stays finite where the variance is 0.":
        lambda z, eps: (z - z.mean(0)) / (z.std(0, correction=0) + eps),
    "eps is ignored.": lambda z, eps: (z - z.mean(0)) / z.std(0, correction=0),
    "The variance divides by N − 1. Divide by N: correction=0.": lambda z, eps: (z - z.mean(0)) / (z.var(0) + eps).sqrt(),
    "Divided by the variance. The deviation is its root.": lambda z, eps: (z - z.mean(0)) / (z.var(0, correction=0) + eps),
    "The mean is not taken off.": lambda z, eps: z / (z.var(0, correction=0) + eps).sqrt(),
    "Standardised over each row. Take each column, over the batch: dim=0.": lambda z, eps: safe_standardise(z.T, eps).T,
}


def check_safe(answer) -> None:
    z = two_views(9, 4, 3)[0]
    z[:, 1] *= 0.2
    expect.shape(answer(z, 0.5), (9, 4))
    for eps in (0.5, 1e-5):
        hint = f"With eps = {eps} the values are off. Take the mean off each column and divide by the root of variance plus eps."
        expect.agree(answer, safe_standardise, (z, eps), hint, SAFE_MISTAKES, rtol=1e-3, atol=1e-4)
    hint = "Right near 0, but not where the mean is 10,000: E[x²] − E[x]² loses its digits there. Take the mean off first."
    expect.agree(answer, safe_standardise, (1e4 + z.round(decimals=1), 1e-5), hint, rtol=0.05, atol=0.05)
    z[:, 2] = 0.3
    reject_if(not answer(z, 1e-5).isfinite().all(), "Not finite where a column is constant: 0/0. Is eps inside the root?")

    def weighted(f):
        return lambda z: (f(z, 1e-5) * torch.arange(36.0).view(9, 4).cos()).sum()

    cut = "Mean and variance depend on z too. To mend values afterwards (nan_to_num) leaves a slope of NaN: the root must never see 0."
    told = {"names": ["z"], "learns": [0], "cut": cut}
    expect.gradients(weighted(answer), weighted(safe_standardise), [z], **told, rtol=1e-2, atol=1e-3)


def diagnosis(patient: nn.Module) -> str:
    """The name of a patient's fault, one of clinic.SUSPECTS. The questions are asked in the order in which a step meets the faults."""
    x = patient.batch
    if not x.isfinite().all():
        return "NaN in the data"
    if not patient.layer.weight.isfinite().all():
        return "NaN in the weights"
    if len(x) == 1:
        return "batch of one"
    if patient(x).isfinite():
        return "eps outside the power"  # the loss is finite: what is wrong comes in backward
    return "constant dimension" if patient.layer(x).std(0).min() == 0 else "variance in one pass"


def excluded(name: str, patient: nn.Module) -> str:
    """What speaks against this fault, or a word on where to look further. Does not say which fault it is."""
    x = patient.batch
    with torch.no_grad():
        loss, z = patient(x), patient.layer(x)
    forward = "isfinite on the loss excludes it: {} would show in the forward pass, and this loss is finite."
    smallest = f"the smallest is {z.std(0).min():.2g}" if len(x) > 1 else "they cannot be had from this batch"
    largest = f"Here the largest mean of a dimension is {z.mean(0).abs().max():.2g}."
    finite = bool(loss.isfinite())
    return {
        "NaN in the data": "isfinite on the batch excludes it: all its numbers are finite.",
        "NaN in the weights": "isfinite on the parameters excludes it: all weights are finite.",
        "batch of one": f"len(batch) excludes it: this batch has {len(x)} rows.",
        "eps outside the power": "isfinite on the loss excludes it: with this fault only the gradient is NaN; here the loss is NaN.",
        "constant dimension": forward.format("0/0") if finite else f"The stds of the dimensions do not show it: {smallest}.",
        "variance in one pass":
            forward.format("the root of a negative number") if finite else f"Rounding needs a mean far larger than the std. {largest}",
    }[name]  # fmt: skip


def check_diagnosis(answer) -> None:
    for seed in range(24):
        truth, patient = clinic.drawn(seed)
        said = answer(patient)
        expect.kind(said, str, "the name of the fault")
        reject_if(said not in clinic.SUSPECTS, f"{said!r} is not among the suspects. They are: {', '.join(clinic.SUSPECTS)}.")
        reject_if(said != truth, f"The patient with seed {seed} does not have the fault {said!r}. {excluded(said, patient)}")


EXERCISES = [
    Exercise("5.1", "The loss of Barlow Twins", 20, 2, my_barlow_twins_loss, check_loss, BARLOW_MISTAKES),
    Exercise("5.2", "The first module that is not finite", 20, 3, first_nonfinite, check_first),
    Exercise("5.3", "A standardisation that survives", 10, 2, safe_standardise, check_safe, SAFE_MISTAKES),
    Exercise("5.4", "Diagnose a patient", 15, 2, diagnosis, check_diagnosis),
]
