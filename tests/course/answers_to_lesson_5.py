"""Answers to the exercises of lesson 5, as learners write them."""

import torch
from torch.nn import functional as F

from sslcourse import diagnostics, losses
from sslcourse.course import clinic
from sslcourse.course.checks.lesson_5 import diagnosis, first_nonfinite, my_barlow_twins_loss, of_views, safe_standardise


def loss_of(deviation, n_less=0):
    """A loss of columns divided by deviation(z), of a product divided by N or a little less."""
    return of_views(lambda z: (z - z.mean(0)) / deviation(z), lambda c, n: c / (n - n_less))


def root_of_variance(z, correction=0):
    return (z.var(0, correction=correction) + 1e-6).sqrt()


def first(bad=lambda o: not o.isfinite().all(), pick=lambda names, model: names[0], remove=True, modules="named_modules", none=None):
    """An answer with hooks, of which one thing is changed. pick(names of bad modules in the order of the pass, model)."""

    def answer(model, x):
        names, handles = [], []
        for name, module in getattr(model, modules)():
            handles.append(module.register_forward_hook(lambda m, i, o, name=name: names.append(name) if bad(o) else None))
        model(x)
        if remove:
            for handle in handles:
                handle.remove()
        return pick(names, model) if names else none

    return answer


def first_leaf_as_registered(names, model):
    leaves = [name for name, module in model.named_modules() if name in names and not [*module.children()]]
    return leaves[0] if leaves else names[0]


def first_clears_all_hooks(model, x):
    for module in model.modules():
        module._forward_hooks.clear()
    return first_nonfinite(model, x)


def safe_afterwards(z, eps):
    variance = z.var(0, correction=0)
    value = (z - z.mean(0)) / torch.where(variance > 0, (variance**0.5).square() + eps, eps).sqrt()
    return torch.where(value.isfinite(), value, 0.0)


def diagnosis_by_find_nonfinite(patient):
    found = diagnostics.find_nonfinite(patient, patient.batch)
    if found.kind in ("input", "parameter"):
        return {"input": "NaN in the data", "parameter": "NaN in the weights"}[found.kind]
    if found.kind == "gradient":
        return "eps outside the power"
    return {"aten.std": "batch of one", "aten.div": "constant dimension", "aten.sqrt": "variance in one pass"}[found.operation]


def diagnosis_without_the_loss(patient):
    z = patient.layer(patient.batch)
    if len(z) > 1 and z.isfinite().all():
        return "constant dimension" if z.std(0).min() == 0 else "variance in one pass"
    return diagnosis(patient)


def diagnosis_by_anomaly_mode(patient):
    named = clinic.anomaly_mode(patient, patient.batch)
    return "eps outside the power" if named.startswith("PowBackward0") else diagnosis(patient)


RIGHT = {
    "5.1": [
        losses.barlow_twins_loss, loss_of(lambda z: root_of_variance(z, correction=1), n_less=1),
        loss_of(lambda z: z.std(0, correction=0) + 1e-6),  # torch's std has a finite slope at 0
    ],
    "5.2": [first()],
    "5.3": [
        lambda z, eps: F.batch_norm(z, None, None, training=True, eps=eps),
        lambda z, eps: (z - z.mean(0, keepdim=True)) * (z.var(0, correction=0) + eps) ** -0.5,
    ],
    "5.4": [diagnosis_by_find_nonfinite],
}

WRONG = {
    "5.1": {
        "This is a matrix": lambda z0, z1, w: losses.cross_correlation(z0, z1),
        "no gradient reaches z1": lambda z0, z1, w: my_barlow_twins_loss(z0, z1.detach(), w),
        "its gradient is not": of_views(lambda z: (z - z.mean(0).detach()) / root_of_variance(z).detach()),
        "NaN where a dimension is the same": loss_of(lambda z: z.std(0, correction=0)),
        "its gradient is NaN": loss_of(lambda z: z.var(0, correction=0).sqrt() + 1e-6),
        "two equal views have a diagonal of 1": lambda *a: my_barlow_twins_loss(*a) + 0.05,
    },
    "5.2": {
        "left behind": first(remove=False), "was there before is gone": first_clears_all_hooks,
        "Infinity is overlooked": first(bad=lambda o: o.isnan().any()),
        "was done before": [first(pick=lambda names, model: names[-1]), first(modules="named_children")],
        "last module with a bad output": first(pick=lambda names, model: names[-2] if names[1:] else names[0]),
        "in which they were registered": first(pick=first_leaf_as_registered),
        "disappears later": lambda model, x: None if model(x).isfinite().all() else first_nonfinite(model, x),
        "modes of the modules": [lambda model, x, mode=mode: first_nonfinite(model.train(mode), x) for mode in (False, True)],
        "empty text": lambda model, x: first_nonfinite(model, x) or None,
        "the module itself": first(pick=lambda names, model: model.get_submodule(names[0])),
        "Expected the name to be a str": first(pick=lambda names, model: names[:1]), "in place of None": first(none=""),
        "child's own name": first(pick=lambda names, model: names[0].split(".")[-1]),
        "function returned None": first(pick=lambda names, model: None),
        "The wrong module is named": first(pick=lambda names, model: "layer"),
    },
    "5.3": {
        "mean is 10,000": lambda z, eps: (z - z.mean(0)) / ((z * z).mean(0) - z.mean(0) ** 2 + eps).clamp(min=eps / 2).sqrt(),
        "is a part of the graph cut off": lambda z, eps: (z - z.mean(0).detach()) / (z.var(0, correction=0).detach() + eps).sqrt(),
        "no gradient comes back": lambda z, eps: safe_standardise(z, eps).detach(), "Not all of the gradient is finite": safe_afterwards,
    },
    "5.4": {
        "isfinite on the batch excludes it": lambda patient: "NaN in the data",
        "isfinite on the parameters excludes it": lambda patient: "NaN in the weights",
        "len(batch) excludes it": lambda patient: "batch of one",
        "The stds of the dimensions do not show it": lambda patient: "constant dimension",
        "here the loss is NaN": [lambda patient: "eps outside the power", diagnosis_by_anomaly_mode],
        "Rounding needs a mean": lambda patient: "variance in one pass", "0/0 would show in the forward pass": diagnosis_without_the_loss,
        "is not among the suspects": lambda patient: "the batch", "Expected the name of the fault to be a str": lambda patient: 3,
    },
}
