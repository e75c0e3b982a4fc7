"""The NaN clinic: small patients with one numerical fault each, their repaired twins, and the instruments that examine them.

A patient is one layer, a loss and the batch on which it fails. Words aside, whatever is said about a fault is measured by running it.
"""

import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslcourse.diagnostics import find_nonfinite
from sslcourse.errors import CourseError

EPS = 1e-5
SUSPECTS = ("NaN in the data", "NaN in the weights", "batch of one", "constant dimension", "eps outside the power", "variance in one pass")

LOSS_NAN, LOSS_INF, NO_GRADIENT, ALL_FINITE, AN_ERROR = "loss NaN", "loss infinite", "loss NaN, gradient 0", "all finite", "an error"
GRADIENT_NAN, GRADIENT_INF = "loss finite, gradient NaN", "loss finite, gradient infinite"


def rows(n: int = 8, d: int = 4, seed: int = 0) -> Tensor:
    """Normal random numbers (n, d), which do no harm."""
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


class Patient(nn.Module):
    """One layer, at first the identity, and a loss: forward(x) is loss(layer(x)). batch: the rows (N, D) on which it is examined."""

    def __init__(self, loss: Callable[[Tensor], Tensor], batch: Tensor):
        super().__init__()
        self.layer = nn.utils.skip_init(nn.Linear, batch.shape[1], batch.shape[1], bias=False)  # draws no random numbers
        nn.init.eye_(self.layer.weight)
        self.loss, self.batch = loss() if isinstance(loss, type) else loss, batch

    def forward(self, x: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*degrees of freedom")  # of a batch of one, which shall be seen by other means
            return self.loss(self.layer(x))


@dataclass(frozen=True)
class Fault:
    """What is wrong with a loss or with what it is given, and the repair, which gives the same value on a harmless batch."""

    name: str
    what_is_wrong: str
    symptom: str
    instrument: str  # the cheapest one that shows it
    repair: str
    broken: Callable[[Tensor], Tensor]  # loss of z (N, D), or a module class
    repaired: Callable[[Tensor], Tensor] | None = None  # None where the loss is right as it is
    harmful: Callable[[Tensor], Tensor] = lambda x: x  # makes of a harmless batch one that brings the fault out
    mended: Callable[[Tensor], Tensor] = lambda x: x  # where it is the batch that is repaired
    fall_ill: Callable[[Patient], object] = lambda patient: None  # what went wrong in an earlier step
    recover: Callable[[Patient], object] = lambda patient: None  # and how that is put right
    harmless: Callable[[], Tensor] = rows


def distance(z: Tensor) -> Tensor:
    """How far the correlations of standardised z (N, D) are from the identity. Like the loss of Barlow Twins, it ends with a power."""
    c = z.T @ z / len(z)
    return (c - torch.eye(len(c))).pow(2).sum()


def standardised_by(deviation: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The loss `distance` of z (N, D) whose mean is taken off, divided by deviation(z) (D)."""
    return lambda z: distance((z - z.mean(0)) / deviation(z))


by_std = standardised_by(lambda z: z.std(0))
eps_inside = standardised_by(lambda z: (z.var(0) + EPS).sqrt())


def similarities(z: Tensor) -> Tensor:
    """Products of all pairs of rows (N, N), with a mask on the diagonal: no row is its own partner."""
    return (z @ z.T).masked_fill(torch.eye(len(z)) > 0, -math.inf)


def partners(z: Tensor) -> Tensor:
    """Row i and row i + N/2 are two views of one image."""
    return torch.arange(len(z)).roll(len(z) // 2)


def log_sum_exp(z: Tensor) -> Tensor:
    return F.cross_entropy(similarities(z), partners(z))


def exp_then_log(similarity: Tensor) -> Tensor:
    """The contrastive loss without log-sum-exp."""
    weight = similarity.exp().masked_fill(torch.eye(len(similarity)) > 0, 0.0)
    return -(weight[torch.arange(len(weight)), partners(weight)] / weight.sum(1)).float().log().mean()


class Evaluated(nn.Module):
    """Standardises by the running statistics of batch normalisation, as a network does in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4, affine=False).eval()

    def see(self, z):
        """A pass in training mode, which moves the statistics."""
        self.norm.train()(z)
        self.norm.eval()

    def forward(self, z):
        return distance(self.norm(z))


def with_value(x: Tensor, value: float, row=0, column=-1) -> Tensor:
    """A copy with this value in one place, or in a whole row or column."""
    x = x.clone()
    x[row, column] = value
    return x


with_constant_column = partial(with_value, value=1.0, row=slice(None))
with_row_of_zeros = partial(with_value, value=0.0, column=slice(None))
INSIDE = "eps inside the root: (var + eps).sqrt()"
GRADIENTS = "isfinite on the gradients"

_FAULTS = [  # in the order in which a step meets them: what is there before, standardising, lengths, softmax, choosing, large numbers
    Fault("NaN in the data", "one number of the batch is NaN", LOSS_NAN, "isfinite on the batch", "leave the row out, and ask who made it",
          broken=eps_inside, harmful=lambda x: with_value(x, math.nan), mended=lambda x: x[x.isfinite().all(1)]),
    Fault("NaN in the weights", "an earlier step wrote NaN into the weights", LOSS_NAN, "isfinite on the parameters", "the last checkpoint",
          broken=eps_inside, fall_ill=lambda patient: nn.init.constant_(patient.layer.weight, math.nan),
          recover=lambda patient: nn.init.eye_(patient.layer.weight)),
    Fault("poisoned statistics", "one infinite activation, long ago, is still in the running statistics", LOSS_NAN,
          "isfinite on the buffers", "reset_running_stats(), and a pass in training mode", broken=Evaluated,
          fall_ill=lambda patient: patient.loss.see(with_value(patient.batch, math.inf)),
          recover=lambda patient: (patient.loss.norm.reset_running_stats(), patient.loss.see(patient.batch))),
    Fault("batch of one", "an epoch's last batch has one image, and one has no deviation", LOSS_NAN, "len(batch)", "drop_last",
          broken=by_std, harmful=lambda x: x[:1], mended=lambda x: rows()),
    Fault("constant dimension", "a dimension is the same for all images: 0/0", LOSS_NAN, "the smallest std of a dimension", INSIDE,
          broken=by_std, repaired=eps_inside, harmful=with_constant_column),
    Fault("eps outside the root", "var.sqrt() + eps, and a dimension is constant", GRADIENT_NAN, GRADIENTS, INSIDE,
          broken=standardised_by(lambda z: z.var(0).sqrt() + EPS), repaired=eps_inside, harmful=with_constant_column),
    Fault("eps outside the power", "var ** 0.5 + eps, and a dimension is constant", GRADIENT_NAN, GRADIENTS, INSIDE,
          broken=standardised_by(lambda z: z.var(0) ** 0.5 + EPS), repaired=eps_inside, harmful=with_constant_column),
    Fault("bare root", "the deviation of a constant dimension, as a loss", GRADIENT_NAN, GRADIENTS, INSIDE,
          broken=lambda z: F.relu(1 - z.var(0).sqrt()).mean(), repaired=lambda z: F.relu(1 - (z.var(0) + EPS).sqrt()).mean(),
          harmful=with_constant_column),
    Fault("variance in one pass", "E[x²] − E[x]² of numbers far from 0 falls below 0 by rounding", LOSS_NAN,
          "the mean of a dimension, in units of its std", "var(), which takes the mean off first",
          broken=standardised_by(lambda z: ((z * z).mean(0) - z.mean(0) ** 2).sqrt()),
          repaired=standardised_by(lambda z: (z.var(0, correction=0) + EPS).sqrt()), harmful=lambda x: 1e4 + 1e-2 * x),
    Fault("eps too large", "the features are small beside the root of eps", ALL_FINITE, "the diagonal of the correlation matrix",
          "a smaller eps, or larger features", broken=lambda z: distance(F.batch_norm(z, None, None, training=True, eps=EPS)),
          repaired=lambda z: distance(F.batch_norm(z, None, None, training=True, eps=1e-12)), harmful=lambda x: 1e-3 * x),
    Fault("row of zeros", "z / z.norm() of a row of zeros: 0/0", LOSS_NAN, "the smallest norm of a row", "F.normalize",
          broken=lambda z: (z / z.norm(dim=1, keepdim=True)).sum(1).mean(), repaired=lambda z: F.normalize(z, dim=1).sum(1).mean(),
          harmful=with_row_of_zeros),
    Fault("norm by hand", "sum(z²) ** 0.5 of a row of zeros", GRADIENT_NAN, GRADIENTS, ".norm()",
          broken=lambda z: (z.pow(2).sum(1) ** 0.5).mean(), repaired=lambda z: z.norm(dim=1).mean(), harmful=with_row_of_zeros),
    Fault("exp, then log", "exp(similarity / 0.01) passes the largest float32", LOSS_NAN, "the largest similarity", "log-sum-exp",
          broken=lambda z: exp_then_log(z @ z.T), repaired=log_sum_exp, harmful=lambda x: 10 * F.normalize(1 + 0.1 * x)),
    Fault("exp in half precision", "exp(similarity / 0.1), in float16", GRADIENT_NAN, GRADIENTS, "the loss in float32",
          broken=lambda z: exp_then_log((z @ z.T).half()), repaired=lambda z: exp_then_log(z @ z.T), harmful=lambda x: 10**0.5 * x,
          harmless=lambda: F.normalize(rows())),
    Fault("mask too low", "masked with −9e15 in float16, which ends at 65504", AN_ERROR, "the error's own words", "−inf, or finfo.min",
          broken=lambda z: F.cross_entropy((z @ z.T).half().masked_fill(torch.eye(len(z)) > 0, -9e15).float(), partners(z)),
          repaired=lambda z: F.cross_entropy(similarities(z).half().float(), partners(z))),
    Fault("mask by multiplying", "−inf times a mask of ones and zeros", LOSS_NAN, "isfinite on the similarities", "masked_fill",
          broken=lambda z: F.cross_entropy(z @ z.T + torch.eye(len(z)) * -math.inf, partners(z)), repaired=log_sum_exp),
    Fault("unused branch", "torch.where(z > 0, z.sqrt(), 0)", GRADIENT_NAN, GRADIENTS, "a harmless number in the unused branch too",
          broken=lambda z: torch.where(z > 0, z.sqrt(), 0.0).mean(),
          repaired=lambda z: torch.where(z > 0, torch.where(z > 0, z, 1.0).sqrt(), 0.0).mean(), harmful=lambda x: x - 1,
          harmless=lambda: rows().abs()),
    Fault("mean of nothing", "the mean over the images of which the network is sure, and there are none", NO_GRADIENT,
          "isfinite on the loss", "the mean of loss · mask",
          broken=lambda z: F.cross_entropy(z, z.argmax(1), reduction="none")[z.softmax(1).amax(1) > 0.95].mean(),
          repaired=lambda z: (F.cross_entropy(z, z.argmax(1), reduction="none") * (z.softmax(1).amax(1) > 0.95)).mean(),
          harmful=lambda x: 0.01 * x, harmless=lambda: 20 * torch.eye(4).repeat(2, 1)),
    Fault("overflowing gradient", "one enormous number in the batch, and nothing is standardised", GRADIENT_INF, GRADIENTS,
          "leave out the step, and look at its batch", broken=distance, harmful=lambda x: with_value(x, 1e10, column=0),
          mended=lambda x: x[x.abs().amax(1) < 1e6]),
    Fault("correlation in half precision", "features that are not standardised, in float16", LOSS_INF, "isfinite on the loss", "float32",
          broken=lambda z: (z.half().T @ z.half() / len(z)).float().abs().mean(), repaired=lambda z: (z.T @ z / len(z)).abs().mean(),
          harmful=lambda x: 1000 * x),
]  # fmt: skip


def faults() -> dict[str, Fault]:
    """All faults by name, in the order in which a step would meet them."""
    return {fault.name: fault for fault in _FAULTS}


def fault_named(name: str) -> Fault:
    if name not in faults():
        raise CourseError(f"There is no fault {name!r} in the clinic. It knows {', '.join(faults())}.")
    return faults()[name]


def patient(name: str, repaired: bool = False) -> Patient:
    """A network with this fault, and the batch that brings it out; or both after the repair."""
    fault = fault_named(name)
    loss, batch = fault.broken, fault.harmful(fault.harmless())
    if repaired:
        loss, batch = fault.repaired or loss, fault.mended(batch)
    made = Patient(loss, batch)
    fault.fall_ill(made)
    if repaired:
        fault.recover(made)
    return made


def unknown(seed: int) -> Patient:
    """A patient with one of SUSPECTS. Which, the instruments have to find out."""
    return drawn(seed)[1]


def drawn(seed: int) -> tuple[str, Patient]:
    """Name and patient: for the check of the exercise."""
    generator = torch.Generator().manual_seed(int(seed))
    number, n, d = (int(torch.randint(*limits, (), generator=generator)) for limits in ((0, len(SUSPECTS)), (6, 13), (3, 7)))
    fault = fault_named(SUSPECTS[number])
    while True:  # rounding decides whether a variance in one pass falls below 0, so draw until it does
        ill = Patient(fault.broken, fault.harmful(torch.randn(n, d, generator=generator))[:, torch.randperm(d, generator=generator)])
        fault.fall_ill(ill)
        if symptom(ill) == fault.symptom:
            return fault.name, ill


def symptom(model: nn.Module) -> str:
    """What the loss of a patient and its gradient look like."""
    try:
        loss = model(model.batch)
    except RuntimeError:
        return AN_ERROR
    gradient = torch.autograd.grad(loss, model.layer.weight)[0]
    if loss.isnan():
        return LOSS_NAN if gradient.any() else NO_GRADIENT
    if loss.isinf():
        return LOSS_INF
    return GRADIENT_NAN if gradient.isnan().any() else GRADIENT_INF if gradient.isinf().any() else ALL_FINITE


def anomaly_mode(model: Callable, batch) -> str:
    """What anomaly mode names when the loss model(batch) is differentiated: an operation and which of its outputs, or nothing."""
    try:
        with warnings.catch_warnings(), torch.autograd.set_detect_anomaly(True):
            warnings.simplefilter("ignore")
            loss = model(batch)
            torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], allow_unused=True)
    except RuntimeError as error:
        named = re.search(r"'(\w+)' returned nan values in its (\d+)th output", str(error))
        return f"{named[1]}, output {named[2]}" if named else "nothing"
    return "nothing"


@dataclass(frozen=True)
class Examination:
    """What the instruments say of a fault. All of it is measured."""

    fault: Fault
    symptom: str
    anomaly: str
    culprit: str  # what find_nonfinite names, in a few words
    healed: bool  # loss and gradient of the repaired twin are finite
    same: bool | None  # both losses give the same value on a harmless batch; None where no batch is harmless

    def __str__(self) -> str:
        lines = {"wrong": self.fault.what_is_wrong, "symptom": self.symptom, "anomaly mode": self.anomaly}
        lines |= {"find_nonfinite": self.culprit, "cheapest instrument": self.fault.instrument, "repair": self.fault.repair}
        lines["repaired twin"] = "finite" if self.healed else "still ill"
        lines["on a harmless batch"] = {True: "the same value", False: "another value", None: "never without the fault"}[self.same]
        return "\n".join([self.fault.name, *(f"  {name:20s}{text}" for name, text in lines.items())])


def examine(name: str) -> Examination:
    """Run the patient with this fault, its repaired twin, and both losses on a harmless batch."""
    fault, ill = fault_named(name), patient(name)
    seen = symptom(ill)
    found = find_nonfinite(ill, ill.batch) if seen != AN_ERROR else None
    culprit = f"{found.kind}: {found.operation or found.name}" if found else "nothing"
    before, after = (Patient(loss_of, fault.harmless()) for loss_of in (fault.broken, fault.repaired or fault.broken))
    harmless = symptom(before) == ALL_FINITE
    same = math.isclose(before(before.batch).item(), after(after.batch).item(), rel_tol=2e-3) if harmless else None
    return Examination(fault, seen, anomaly_mode(ill, ill.batch), culprit, symptom(patient(name, repaired=True)) == ALL_FINITE, same)
