"""The exercises of lesson 5: the losses of Barlow Twins and of VICReg, the first module that is not finite, and a diagnosis."""

import math
from operator import itemgetter

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
    cut = "No .detach() on the mean or the deviation."
    expect.gradients(answer, my_barlow_twins_loss, two_views(6, 4, 2), 0.3, cut=cut, rtol=1e-2, atol=1e-4)
    z0, z1 = two_views(7, 5, 2)
    z0[:, 2] = 1.5
    z0.requires_grad_()
    value = answer(z0, z1, 0.3)
    reject_if(not value.isfinite(), "Right, but NaN where a dimension is the same for all images. Add a small eps to the variance.")
    slope = torch.autograd.grad(value, z0)[0]
    reject_if(not slope.isfinite().all(), "Finite where a dimension is constant, but its gradient is NaN. Put eps inside the root.")


def vicreg_by(
    distance=lambda a, b: (a - b).square().mean(), deviation=lambda z: (z.var(0) + 1e-4).sqrt(), hinge=lambda s: (1 - s).relu().mean(),
    matrices=lambda a, b: (a.T.cov(), b.T.cov()), squares=lambda c: terms(c)[1] / len(c), both=sum, weights=(25, 25, 1),
):  # fmt: skip
    """The terms of VICReg's loss with their weights (Bardes et al. 2022); wrong ones have another part. both: of the two views' numbers."""

    def answer(z0, z1):
        variance, covariance = both([hinge(deviation(z)) for z in (z0, z1)]), both([squares(c) for c in matrices(z0, z1)])
        return tuple(w * term for w, term in zip(weights, (distance(z0, z1), variance, covariance), strict=True))

    return answer


vicreg_terms = vicreg_by()
VICREG_MISTAKES = {
    "The squares are added up over a row. Take the mean of all N · D.": vicreg_by(lambda a, b: (a - b).square().sum(1).mean()),
    "The hinge is on the variance. Its slope is 0 at collapse: take the root.": vicreg_by(deviation=lambda z: z.var(0) + 1e-4),
    "Only one view counts. Variance and covariance are those of both, added up.": vicreg_by(both=lambda of: of[0]),
    "The two views are averaged (the authors' code does that with the variance). Add them.": vicreg_by(both=lambda of: sum(of) / 2),
    "This is the covariance between the views. Take that of the dimensions within each.":
        vicreg_by(matrices=lambda a, b: [(a - a.mean(0)).T @ (b - b.mean(0)) / (len(a) - 1)] * 2),
    "The variance divides by N. It has to be N − 1.": vicreg_by(deviation=lambda z: (z.var(0, correction=0) + 1e-4).sqrt()),
    "The diagonal is not left out: the variances are there too.": vicreg_by(squares=lambda c: c.square().sum() / len(c)),
    "The sum of the squared covariances is not divided by D.": vicreg_by(squares=lambda c: terms(c)[1]),
    "The weights are missing: 25, 25 and 1.": vicreg_by(weights=(1, 1, 1)),
}


def check_vicreg(answer) -> None:
    batches = [[z / 2 for z in two_views(*sizes)] for sizes in ((9, 4, 1), (12, 3, 5))]  # deviations below and above 1
    batches[1][0][:, 1] = batches[1][1][:, 2] = 0.3  # the same for all images
    got = answer(*batches[0])
    expect.kind(got, (tuple, list), "the three terms")
    reject_if(len(got) != 3, "Return the three terms with their weights: invariance, variance, covariance.")
    for term in got:
        expect.loss(term)
    hints = (
        "The first term is off. It is 25 times the mean of all squared differences.",
        "The second term is off. It is 25 times the two means of max(0, 1 − deviation), added.",
        "The third term is off. With D = 2 it is the squared covariance of the two dimensions, for each view, added.",
    )
    for batch in batches:
        for at, hint in enumerate(hints):
            expect.agree(answer, vicreg_terms, batch, hint, VICREG_MISTAKES, "the term", itemgetter(at))
        expect.gradients(lambda *z: sum(answer(*z)), lambda *z: sum(vicreg_terms(*z)), batch)


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
    nested[2].eval()
    whole = "A child of this module was done before: take the hook that fires first, not the first name."
    yield nested, "1.0", {
        None: "There is a NaN in this model, and the function returned None. Is every module looked at, the nested ones too?",
        "1": whole, "": whole, "0": "The child's own name is not enough. Use the full path, as named_modules() has it: 1.0.",
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


def check_first(answer) -> None:
    got = answer(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)), torch.ones(2, 3))
    reject_if(got is not None, f"All outputs of this model are finite, and the function returned {got!r} in place of None.")
    for model, wanted, hints in ill_models():
        modes, got = [m.training for m in model.modules()], answer(model, torch.ones(2, 3))
        reject_if(isinstance(got, nn.Module), "This is the module itself. Return its name, as named_modules() has it.")
        if got is not None:
            expect.kind(got, str, "the name")
        other = "The wrong module is named. Put a hook on every module; the first that fires with a bad output belongs to the culprit."
        reject_if(got != wanted, hints.get(got, other))
        left = any(m._forward_hooks for m in model.modules())
        reject_if(left, "A hook is left behind, and every later pass calls it: keep each handle and call its remove().")
        changed = "The modes of the modules have changed. Leave out eval() and train(): the model is examined as it comes."
        reject_if(modes != [m.training for m in model.modules()], changed)


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
    if loss.isfinite() and name in ("constant dimension", "variance in one pass"):
        return "isfinite on the loss excludes it: 0/0 and the root of a negative number show in the forward pass; this loss is finite."
    smallest = f"the smallest is {z.std(0).min():.2g}" if len(x) > 1 else "they cannot be had from this batch"
    return {
        "NaN in the data": "isfinite on the batch excludes it: all its numbers are finite.",
        "NaN in the weights": "isfinite on the parameters excludes it: all weights are finite.",
        "batch of one": f"len(batch) excludes it: this batch has {len(x)} rows.",
        "eps outside the power": "isfinite on the loss excludes it: with this fault only the gradient is NaN; here the loss is NaN.",
        "constant dimension": f"The stds of the dimensions do not show it: {smallest}.",
        "variance in one pass": f"Rounding needs a mean far larger than the std. Here the largest is {z.mean(0).abs().max():.2g}.",
    }[name]


def check_diagnosis(answer) -> None:
    for seed in range(24):
        truth, patient = clinic.drawn(seed)
        said = answer(patient)
        expect.kind(said, str, "the name of the fault")
        reject_if(said not in clinic.SUSPECTS, f"{said!r} is not among the suspects. They are: {', '.join(clinic.SUSPECTS)}.")
        reject_if(said != truth, f"The patient with seed {seed} does not have the fault {said!r}. {excluded(said, patient)}")


EXERCISES = [
    Exercise("5.1", "The loss of Barlow Twins", 20, 2, my_barlow_twins_loss, check_loss, BARLOW_MISTAKES),
    Exercise("5.2", "VICReg's loss", 30, 3, vicreg_terms, check_vicreg, VICREG_MISTAKES),
    Exercise("5.3", "The first module that is not finite", 20, 3, first_nonfinite, check_first),
    Exercise("5.4", "Diagnose a patient", 15, 2, diagnosis, check_diagnosis),
]
