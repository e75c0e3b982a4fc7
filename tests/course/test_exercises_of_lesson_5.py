"""Lesson 5's exercises: the solution and other right answers pass, and each likely mistake gets its own hint."""

import math

import pytest
import torch
from answers import judge_of, standard_tests
from torch import nn
from torch.nn import functional as F

from sslcourse import diagnostics, losses
from sslcourse.course import clinic
from sslcourse.course.checks.lesson_5 import EXERCISES, diagnosis, first_nonfinite, my_barlow_twins_loss, safe_standardise

judged = judge_of(EXERCISES)


# --- 5.1 ---


def loss_by_loops(z0, z1, lambda_param):
    n, d = z0.shape
    a, b = ((z - z.mean(0)) / (z.var(0, correction=0) + 1e-6).sqrt() for z in (z0.double(), z1.double()))
    total = 0
    for i in range(d):
        for j in range(d):
            c = (a[:, i] * b[:, j]).sum() / n
            total = total + ((c - 1) ** 2 if i == j else lambda_param * c**2)
    return total.float()


def loss_by_batch_norm(z0, z1, lambda_param):
    a, b = (F.batch_norm(z, None, None, training=True) for z in (z0, z1))
    difference = (a.T @ b / len(a) - torch.eye(a.shape[1])).pow(2)
    weight = torch.full_like(difference, lambda_param).fill_diagonal_(1)
    return (weight * difference).sum()


def loss_of_the_package(z0, z1, lambda_param):
    return losses.barlow_twins_loss(z0, z1, lambda_param)


def loss_with_n_minus_1_twice(z0, z1, lambda_param):
    a, b = ((z - z.mean(0)) / (z.var(0) + 1e-6).sqrt() for z in (z0, z1))
    return terms(a.T @ b / (len(a) - 1), lambda_param)


def loss_with_a_constant_outside(z0, z1, lambda_param):
    a, b = ((z - z.mean(0)) / (z.std(0, correction=0) + 1e-6) for z in (z0, z1))  # torch's std has a finite slope at 0
    return terms(a.T @ b / len(a), lambda_param)


def standard(z, correction=0, dim=0):
    return (z - z.mean(dim, keepdim=True)) / (z.var(dim, correction=correction, keepdim=True) + 1e-6).sqrt()


def beside(c):
    return c[~torch.eye(len(c), dtype=torch.bool)]


def terms(c, lambda_param):
    return (c.diagonal() - 1).pow(2).sum() + lambda_param * beside(c).pow(2).sum()


def loss_of(function, prepare=standard):
    """A loss: function(correlation matrix, lambda), of columns prepared in some way."""

    def answer(z0, z1, lambda_param):
        return function(prepare(z0).T @ prepare(z1) / len(z0), lambda_param)

    return answer


def loss_joint(z0, z1, lambda_param):
    a, b = standard(torch.cat([z0, z1])).chunk(2)
    return terms(a.T @ b / len(a), lambda_param)


def loss_of_the_original_project(z0, z1, lambda_param):
    a, b = ((z - z.mean(0)) / (z.var(0, correction=0).sqrt() + 1e-9) for z in (z0, z1))
    c = a.T @ b / len(a)
    mask = torch.full_like(c, lambda_param).fill_diagonal_(0)
    return ((c - torch.eye(len(c))).pow(2) * mask).sum()


def loss_not_divided(z0, z1, lambda_param):
    return terms(standard(z0).T @ standard(z1), lambda_param)


def loss_divided_by_d(z0, z1, lambda_param):
    return terms(standard(z0).T @ standard(z1) / z0.shape[1], lambda_param)


def loss_one_view(z0, z1, lambda_param):
    return terms(standard(z0).T @ standard(z0) / len(z0), lambda_param)


def loss_unit_rows(z0, z1, lambda_param):
    return terms(F.normalize(z0).T @ F.normalize(z1) / len(z0), lambda_param)


def loss_mean_of_the_matrix(z0, z1, lambda_param):
    return my_barlow_twins_loss(z0, z1, lambda_param) / z0.shape[1] ** 2


def loss_as_number(z0, z1, lambda_param):
    return my_barlow_twins_loss(z0, z1, lambda_param).item()


def loss_detached(z0, z1, lambda_param):
    return my_barlow_twins_loss(z0, z1, lambda_param).detach()


def loss_one_view_detached(z0, z1, lambda_param):
    return my_barlow_twins_loss(z0, z1.detach(), lambda_param)


def loss_statistics_detached(z0, z1, lambda_param):
    a, b = ((z - z.mean(0).detach()) / (z.var(0, correction=0).detach() + 1e-6).sqrt() for z in (z0, z1))
    return terms(a.T @ b / len(a), lambda_param)


def loss_without_eps(z0, z1, lambda_param):
    a, b = ((z - z.mean(0)) / z.std(0, correction=0) for z in (z0, z1))
    return terms(a.T @ b / len(a), lambda_param)


def loss_with_eps_outside(z0, z1, lambda_param):
    a, b = ((z - z.mean(0)) / (z.var(0, correction=0).sqrt() + 1e-6) for z in (z0, z1))
    return terms(a.T @ b / len(a), lambda_param)


def loss_as_matrix(z0, z1, lambda_param):
    return standard(z0).T @ standard(z1) / len(z0)


def loss_off_by_a_little(z0, z1, lambda_param):
    return my_barlow_twins_loss(z0, z1, lambda_param) + 0.05


# --- 5.2 ---


def first_by_an_exception(model, x):
    class Found(Exception):
        pass

    handles, where = [], []

    def hook(module, inputs, output):
        if output.isnan().any() or output.isinf().any():
            where.append(module)
            raise Found

    for module in model.modules():
        handles.append(module.register_forward_hook(hook))
    try:
        with torch.no_grad():
            model(x)
    except Found:
        return next(name for name, module in model.named_modules() if module is where[0])
    finally:
        for handle in handles:
            handle.remove()


def first_by_find_nonfinite_like_recording(model, x):
    order = []
    handles = [m.register_forward_hook(lambda m, i, o, n=n: order.append((n, o.detach().clone()))) for n, m in model.named_modules()]
    model(x)
    [handle.remove() for handle in handles]
    return next((name for name, output in order if not torch.isfinite(output).all()), None)


def first(bad=lambda o: not o.isfinite().all(), pick=lambda names: names[0], remove=True, modules=lambda m: m.named_modules(), none=None):
    """An answer with hooks, of which one thing is changed."""

    def answer(model, x):
        names, handles = [], []
        for name, module in modules(model):
            handles.append(module.register_forward_hook(lambda m, i, o, name=name: names.append(name) if bad(o) else None))
        model(x)
        if remove:
            for handle in handles:
                handle.remove()
        return pick(names) if names else none

    return answer


def first_in_registration_order(model, x):
    outputs, handles = {}, []
    for name, module in model.named_modules():
        handles.append(module.register_forward_hook(lambda m, i, o, name=name: outputs.__setitem__(name, o)))
    model(x)
    for handle in handles:
        handle.remove()
    return next((name for name, _ in reversed([*model.named_modules()]) if not outputs[name].isfinite().all()), None)


def first_leaf_in_registration_order(model, x):
    names, handles = [], []
    for name, module in model.named_modules():
        handles.append(module.register_forward_hook(lambda m, i, o, name=name: names.append(name) if not o.isfinite().all() else None))
    model(x)
    for handle in handles:
        handle.remove()
    leaves = [name for name, module in model.named_modules() if name in names and not [*module.children()]]
    return leaves[0] if leaves else names[0] if names else None


def first_of_modules_in_names_order(model, x):
    bad = set()
    handles = [
        m.register_forward_hook(lambda m, i, o, n=n: bad.add(n) if not o.isfinite().all() else None) for n, m in model.named_modules()
    ]
    model(x)
    for handle in handles:
        handle.remove()
    return next((name for name, _ in model.named_children() if name in bad), None)


def first_only_if_the_output_is_bad(model, x):
    return None if model(x).isfinite().all() else first_nonfinite(model, x)


def first_clears_all_hooks(model, x):
    name = first_nonfinite(model, x)
    for module in model.modules():
        module._forward_hooks.clear()
    return name


def first_in_evaluation_mode(model, x):
    return first_nonfinite(model.eval(), x)


def first_with_modes_put_back_wrongly(model, x):
    model.eval()
    name = first_nonfinite(model, x)
    model.train()
    return name


def first_or_none(model, x):
    return first_nonfinite(model, x) or None


def first_short_name(model, x):
    name = first_nonfinite(model, x)
    return name and name.split(".")[0] if name and "." not in name else name and name.split(".")[-1]


def first_module(model, x):
    name = first_nonfinite(model, x)
    return model.get_submodule(name) if name is not None else None


def first_as_list(model, x):
    name = first_nonfinite(model, x)
    return [name] if name is not None else None


# --- 5.3 ---


def safe_by_batch_norm(z, eps):
    return F.batch_norm(z, None, None, training=True, eps=eps)


def safe_by_power(z, eps):
    return (z - z.mean(0, keepdim=True)) * (z.var(0, correction=0) + eps) ** -0.5


def safe_by_columns(z, eps):
    return torch.stack([(c - c.mean()) / torch.sqrt(((c - c.mean()) ** 2).sum() / len(c) + eps) for c in z.T], dim=1)


def safe(denominator, centre=True):
    return lambda z, eps: (z - z.mean(0) if centre else z) / denominator(z, eps)


def safe_afterwards(z, eps):
    bad = (z - z.mean(0)) / z.var(0, correction=0).sqrt()
    return torch.where(bad.isfinite(), safe_standardise(z, eps).detach() + 0 * bad, 0.0)


def safe_detached(z, eps):
    return (z - z.mean(0).detach()) / (z.var(0, correction=0).detach() + eps).sqrt()


def safe_without_graph(z, eps):
    return safe_standardise(z, eps).detach()


def safe_in_one_pass(z, eps):
    return (z - z.mean(0)) / ((z * z).mean(0) - z.mean(0) ** 2 + eps).clamp(min=eps / 2).sqrt()


# --- 5.4 ---


def diagnosis_by_find_nonfinite(patient):
    found = diagnostics.find_nonfinite(patient, patient.batch)
    if found.kind in ("input", "parameter"):
        return {"input": "NaN in the data", "parameter": "NaN in the weights"}[found.kind]
    if found.kind == "gradient":
        return "eps outside the power"
    return {"aten.std": "batch of one", "aten.div": "constant dimension", "aten.sqrt": "variance in one pass"}[found.operation]


def always(name):
    return lambda patient: name


def diagnosis_without_the_loss(patient):
    z = patient.layer(patient.batch)
    if len(z) > 1 and z.isfinite().all():
        return "constant dimension" if z.std(0).min() == 0 else "variance in one pass"
    return diagnosis(patient)


def diagnosis_by_anomaly_mode(patient):
    named = clinic.anomaly_mode(patient, patient.batch)
    return "eps outside the power" if named.startswith("PowBackward0") else diagnosis(patient)


RIGHT = [
    ("5.1", my_barlow_twins_loss),
    ("5.1", loss_by_loops),
    ("5.1", loss_by_batch_norm),
    ("5.1", loss_of_the_package),
    ("5.1", loss_with_n_minus_1_twice),
    ("5.1", loss_with_a_constant_outside),
    ("5.2", first_nonfinite),
    ("5.2", first_by_an_exception),
    ("5.2", first_by_find_nonfinite_like_recording),
    ("5.2", first()),
    ("5.3", safe_standardise),
    ("5.3", safe_by_batch_norm),
    ("5.3", safe_by_power),
    ("5.3", safe_by_columns),
    ("5.4", diagnosis),
    ("5.4", diagnosis_by_find_nonfinite),
]

WRONG = [
    ("5.1", loss_of_the_original_project, "The diagonal has no part"),
    ("5.1", loss_joint, "share mean and deviation"),
    ("5.1", loss_of(terms, lambda z: standard(z, correction=1)), "ends below 1"),
    ("5.1", lambda z0, z1, lambda_param: terms(standard(z0).T @ standard(z1) / (len(z0) - 1), lambda_param), "passes 1"),
    ("5.1", loss_of(terms, lambda z: standard(z, dim=1)), "over each row"),
    ("5.1", loss_of(terms, lambda z: z / z.square().mean(0).sqrt()), "mean is not taken off"),
    ("5.1", loss_of(terms, lambda z: z - z.mean(0)), "this is a covariance"),
    ("5.1", loss_of(terms, lambda z: z), "not normalised at all"),
    ("5.1", loss_not_divided, "not divided by N"),
    ("5.1", loss_divided_by_d, "Divided by D"),
    ("5.1", loss_of(lambda c, w: w * (c.diagonal() - 1).pow(2).sum() + beside(c).pow(2).sum()), "stands on the diagonal"),
    ("5.1", loss_of(lambda c, w: w * terms(c, 1)), "multiplies both"),
    ("5.1", loss_of(lambda c, w: terms(c, 1)), "λ is ignored"),
    ("5.1", loss_of(lambda c, w: terms(c, w * w)), "λ is squared"),
    ("5.1", loss_of(lambda c, w: (c.diagonal() - 1).pow(2).sum() + w * beside(c).pow(2).mean()), "beside the diagonal are averaged"),
    ("5.1", loss_of(lambda c, w: (c.diagonal() - 1).pow(2).mean() + w * beside(c).pow(2).sum()), "The diagonal's terms are averaged"),
    ("5.1", loss_of(lambda c, w: (c.diagonal() - 1).pow(2).mean() + w * beside(c).pow(2).mean()), "each term over its own entries"),
    ("5.1", loss_mean_of_the_matrix, "D² times too small"),
    ("5.1", loss_of(lambda c, w: terms(c, w) / len(c)), "D times too small"),
    ("5.1", loss_of(lambda c, w: (c.diagonal() - 1).pow(2).sum() + w * c.pow(2).sum()), "counted beside itself"),
    ("5.1", loss_of(lambda c, w: (c.diagonal() - 1).pow(2).sum() + w * beside(c).sum()), "beside the diagonal are not squared"),
    ("5.1", loss_of(lambda c, w: (c.diagonal() - 1).pow(2).sum() + w * beside(c).abs().sum()), "absolute values"),
    ("5.1", loss_of(lambda c, w: (1 - c.diagonal()).sum() + w * beside(c).pow(2).sum()), "distances from 1 are not squared"),
    ("5.1", loss_of(lambda c, w: (c.diagonal() - 1).pow(2).sum() + w * c.triu(1).pow(2).sum()), "half of the matrix"),
    ("5.1", loss_one_view, "one view with itself"),
    ("5.1", loss_of(lambda c, w: terms(c, w).sqrt()), "the root of the loss"),
    ("5.1", loss_of(lambda c, w: -terms(c, w)), "sign is turned round"),
    ("5.1", loss_as_number, "plain number"),
    ("5.1", loss_as_matrix, "This is a matrix"),
    ("5.1", loss_detached, "no gradient comes back"),
    ("5.1", loss_one_view_detached, "one of the two views"),
    ("5.1", loss_statistics_detached, "its gradient is not"),
    ("5.1", loss_without_eps, "NaN where a dimension is the same"),
    ("5.1", loss_with_eps_outside, "its gradient is NaN"),
    ("5.1", loss_off_by_a_little, "two equal views have a diagonal of 1"),
    ("5.2", first(remove=False), "left behind"),
    ("5.2", first_clears_all_hooks, "was there before is gone"),
    ("5.2", first(bad=lambda o: o.isnan().any()), "Infinity is overlooked"),
    ("5.2", first(bad=lambda o: not o.sum().isfinite()), "only their sum overflows"),
    ("5.2", first(pick=lambda names: names[-1]), "the whole model"),
    ("5.2", first(pick=lambda names: sorted(names)[1] if len(names) > 1 else names[0]), "the container"),
    ("5.2", first_leaf_in_registration_order, "in which they were registered"),
    ("5.2", first_only_if_the_output_is_bad, "disappears later"),
    ("5.2", first_in_evaluation_mode, "modes of the modules"),
    ("5.2", first_or_none, "empty text"),
    ("5.2", first_module, "the module itself"),
    ("5.2", first_as_list, "Expected the name to be a str"),
    ("5.2", first(none=""), "in place of None"),
    ("5.2", first_short_name, "child's own name"),
    ("5.3", safe(lambda z, e: z.var(0, correction=0).sqrt() + e), "outside the root"),
    ("5.3", safe(lambda z, e: z.std(0, correction=0)), "eps is ignored"),
    ("5.3", safe(lambda z, e: (z.var(0) + e).sqrt()), "divides by N − 1. Divide"),
    ("5.3", safe(lambda z, e: z.std(0) + e), "divides by N − 1, and"),
    ("5.3", safe(lambda z, e: z.var(0, correction=0) + e), "Divided by the variance"),
    ("5.3", safe(lambda z, e: (z.var(0, correction=0) + e).sqrt(), centre=False), "mean is not taken off"),
    ("5.3", safe(lambda z, e: (z.var(0, correction=0) + e**2).sqrt()), "eps is squared"),
    ("5.3", lambda z, eps: safe_standardise(z.T, eps).T, "over each row"),
    ("5.3", lambda z, eps: (z - z.mean()) / (z.var(correction=0) + eps).sqrt(), "whole matrix"),
    ("5.3", safe(lambda z, e: z.std(0, correction=0).clamp(min=e)), "replaced by the limit"),
    ("5.3", safe(lambda z, e: z.var(0, correction=0).clamp(min=e).sqrt()), "replaced by eps"),
    ("5.3", safe_in_one_pass, "mean is 10,000"),
    ("5.3", safe_detached, "mean and variance depend on z"),
    ("5.3", safe_without_graph, "no gradient comes back"),
    ("5.3", lambda z, eps: safe_standardise(z, eps).flatten(), "shape"),
    ("5.3", lambda z, eps: safe_standardise(z, eps) + 0.1, "the values are off"),
    ("5.4", always("NaN in the data"), "isfinite on the batch excludes it"),
    ("5.4", always("NaN in the weights"), "isfinite on the parameters excludes it"),
    ("5.4", always("batch of one"), "len(batch) excludes it"),
    ("5.4", always("constant dimension"), "The stds of the dimensions do not show it"),
    ("5.4", always("eps outside the power"), "here the loss is NaN"),
    ("5.4", always("variance in one pass"), "Rounding needs a mean"),
    ("5.4", diagnosis_without_the_loss, "0/0 would show in the forward pass"),
    ("5.4", always("the batch"), "is not among the suspects"),
    ("5.4", always(3), "Expected the name of the fault to be a str"),
]

SAME_HINT = [
    ("5.1", loss_unit_rows, "over each row"),
    ("5.1", loss_of(lambda c, w: (c.diagonal() - 1).pow(2).sum() + w * c.tril(-1).pow(2).sum()), "half of the matrix"),
    ("5.2", first(modules=lambda m: m.named_children()), "the container"),
    ("5.2", first_with_modes_put_back_wrongly, "modes of the modules"),
    ("5.4", diagnosis_by_anomaly_mode, "excludes it"),
]


test_right_answers_are_accepted, test_each_mistake_gets_its_own_hint, test_hints_differ_within_an_exercise = standard_tests(
    EXERCISES, RIGHT, WRONG, SAME_HINT
)


def test_untouched_functions_are_not_attempted():
    def my_barlow_twins_loss(z0, z1, lambda_param):
        """The loss of Barlow Twins."""
        ...

    def first_nonfinite(model, x): ...

    def safe_standardise(z, eps):
        pass

    def diagnosis(patient):
        raise NotImplementedError

    for number, answer in (("5.1", my_barlow_twins_loss), ("5.2", first_nonfinite), ("5.3", safe_standardise), ("5.4", diagnosis)):
        assert judged(number, answer)[0] == "not attempted"


def test_no_hint_about_a_patient_names_its_true_fault():
    for name in clinic.SUSPECTS:
        message = judged("5.4", always(name))[1]
        assert message.count(name) <= 1  # what was answered
        assert not any(other in message for other in clinic.SUSPECTS if other != name)


def test_references_agree_with_the_package_and_give_known_values():
    z0, z1 = torch.randn(16, 5), torch.randn(16, 5)
    assert my_barlow_twins_loss(z0, z1, 0.02).item() == pytest.approx(losses.barlow_twins_loss(z0, z1, 0.02).item(), rel=1e-4)
    same = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert my_barlow_twins_loss(same, same, 1.0).item() == pytest.approx(0.0, abs=1e-6)
    assert my_barlow_twins_loss(same, -same, 1.0).item() == pytest.approx(8.0, rel=1e-4)  # (−1 − 1)² twice
    assert my_barlow_twins_loss(same, same.flip(1), 1.0).item() == pytest.approx(
        4.0, rel=1e-4
    )  # two zeros where ones should be, and two ones
    assert safe_standardise(torch.tensor([[1.0, 5.0], [3.0, 5.0]]), 0.0)[:, 0].tolist() == [-1.0, 1.0]
    assert safe_standardise(torch.tensor([[1.0, 5.0], [3.0, 5.0]]), 1e-5)[:, 1].tolist() == [0.0, 0.0]
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), nn.Linear(2, 2)))
    assert first_nonfinite(model, torch.ones(1, 2)) is None
    with torch.no_grad():
        model[1][1].bias[0] = math.inf
    assert first_nonfinite(model, torch.ones(1, 2)) == "1.1"
    assert all(diagnosis(ill) == name for name, ill in map(clinic.drawn, range(30)))


def test_hooks_are_removed_when_the_model_fails():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(2, 2))
    with pytest.raises(RuntimeError):
        first_nonfinite(model, torch.ones(1, 2))
    assert not any(module._forward_hooks for module in model.modules())
