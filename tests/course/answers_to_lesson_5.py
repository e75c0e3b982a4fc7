"""Answers to the exercises of lesson 5, as learners write them."""

import torch
from torch.nn import functional as F

from sslcourse import diagnostics, losses
from sslcourse.course.checks.lesson_5 import diagnosis, first_nonfinite, my_barlow_twins_loss, of_views, vicreg_by, vicreg_terms


def loss_of(deviation, n_less=0):
    """A loss of columns divided by deviation(z), of a product divided by N or a little less."""
    return of_views(lambda z: (z - z.mean(0)) / deviation(z), lambda c, n: c / (n - n_less))


def root_of_variance(z, correction=0):
    return (z.var(0, correction=correction) + 1e-6).sqrt()


def vicreg_in_one_matrix(z0, z1):
    """Both views side by side; of their covariances the two blocks on the diagonal count."""
    c, d = torch.cat([z0, z1], 1).T.cov(), z0.shape[1]
    squares = sum(block.square().sum() - block.diagonal().square().sum() for block in (c[:d, :d], c[d:, d:]))
    return 25 * (z0 - z1).pow(2).sum() / z0.numel(), 50 * F.relu(1 - (c.diagonal() + 1e-4) ** 0.5).mean(), squares / d


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


def diagnosis_by_find_nonfinite(patient):
    found = diagnostics.find_nonfinite(patient, patient.batch)
    if found.kind in ("input", "parameter"):
        return {"input": "NaN in the data", "parameter": "NaN in the weights"}[found.kind]
    if found.kind == "gradient":
        return "eps outside the power"
    return {"aten.std": "batch of one", "aten.div": "constant dimension", "aten.sqrt": "variance in one pass"}[found.operation]


RIGHT = {
    "5.1": [
        losses.barlow_twins_loss, loss_of(lambda z: root_of_variance(z, correction=1), n_less=1),
        loss_of(lambda z: z.std(0, correction=0) + 1e-6),  # torch's std has a finite slope at 0
    ],
    "5.2": [
        vicreg_in_one_matrix,
        lambda z0, z1: [25 * F.mse_loss(z0, z1), 25 * sum(F.relu(1 - (z.var(0) + 1e-4) ** 0.5).mean() for z in (z0, z1)),
                        sum(z.T.cov().triu(1).square().sum() * 2 / z.shape[1] for z in (z0, z1))],
    ],
    "5.3": [first()], "5.4": [diagnosis_by_find_nonfinite],
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
        "Return the three": lambda *z: vicreg_terms(*z)[:2], "no gradient reaches z1": lambda z0, z1: vicreg_terms(z0, z1.detach()),
        "its gradient is not": vicreg_by(deviation=lambda z: (z.var(0) + 1e-4).sqrt().detach()),
        "The first term is off": vicreg_by(lambda a, b: (a - b).abs().mean()),
        "The second term is off": vicreg_by(hinge=lambda s: (1 - s).relu().square().mean()),
        "The third term is off": vicreg_by(squares=lambda c: c.triu(1).abs().sum() / len(c)),
    },
    "5.3": {
        "left behind": first(remove=False), "Infinity is overlooked": first(bad=lambda o: o.isnan().any()),
        "was done before": [first(pick=lambda names, model: names[-1]), first(modules="named_children")],
        "in which they were registered": first(pick=first_leaf_as_registered),
        "disappears later": lambda model, x: None if model(x).isfinite().all() else first_nonfinite(model, x),
        "modes of the modules": lambda model, x: first_nonfinite(model.eval(), x),
        "empty text": lambda model, x: first_nonfinite(model, x) or None,
        "the module itself": first(pick=lambda names, model: model.get_submodule(names[0])),
        "Expected the name to be a str": first(pick=lambda names, model: names[:1]), "in place of None": first(none=""),
        "child's own name": first(pick=lambda names, model: names[0].split(".")[-1]),
        "function returned None": first(pick=lambda names, model: None),
        "The wrong module is named": first(pick=lambda names, model: "layer"),
    },
    "5.4": {
        "isfinite on the batch excludes it": lambda patient: "NaN in the data",
        "isfinite on the parameters excludes it": lambda patient: "NaN in the weights",
        "len(batch) excludes it": lambda patient: "batch of one",
        "The stds of the dimensions do not show it": lambda patient: "constant dimension",
        "here the loss is NaN": lambda patient: "eps outside the power",
        "Rounding needs a mean": lambda patient: "variance in one pass",
        "show in the forward pass": lambda patient: diagnosis(patient).replace("eps outside the power", "constant dimension"),
        "is not among the suspects": lambda patient: "the batch", "Expected the name of the fault to be a str": lambda patient: 3,
    },
}
