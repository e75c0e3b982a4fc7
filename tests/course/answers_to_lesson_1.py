"""Answers to the exercises of lesson 1, as learners write them."""

import copy

import torch

from sslcourse.course.checks.lesson_1 import honest_evaluation, smoothed_cross_entropy


def loss_of(log_p, labels, smoothing):
    return -((1 - smoothing) * log_p.gather(1, labels[:, None]).mean() + smoothing * log_p.mean())


def on_a_copy(model, images, labels, transform, batch_size):
    model, batches = copy.deepcopy(model).eval(), torch.utils.data.DataLoader([*zip(images, labels, strict=True)], batch_size)
    with torch.inference_mode():
        right = torch.cat([model(transform(x)).max(1).indices.eq(y) for x, y in batches])
    a = right.sum() / len(right)
    return a, torch.sqrt(a * (1 - a) / len(right)), right


def batchwise(training=False, back=lambda own, whole: own, grad=torch.no_grad, step=0, leave=0, order=torch.arange, show=lambda f, x: f(x)):
    """An answer with one thing changed. back(mode of a module, of the model) -> the mode in which the module is left."""

    def answer(model, images, labels, transform, batch_size):
        modes, rows, right = {m: m.training for m in model.modules()}, order(len(images) - leave), torch.zeros(len(images)).bool()
        model.train(training)
        with grad():
            for n in range(0, len(rows), step or batch_size):
                chosen = slice(n, n + (step or batch_size))
                right[chosen] = model(show(transform, images[rows[chosen]])).argmax(1) == labels[rows[chosen]]
        for module, mode in modes.items():
            module.training = back(mode, modes[model])
        a = right.double().mean().item()
        return a, (a * (1 - a) / len(images)) ** 0.5, right

    return answer


def returning(change):
    return lambda *inputs: change(*honest_evaluation(*inputs))


RIGHT = {"1.1": [lambda logits, labels, smoothing: loss_of(logits.log_softmax(1), labels, smoothing)], "1.2": [on_a_copy, batchwise()]}
WRONG = {
    "1.1": {
        "overflow": lambda z, labels, s: loss_of((z.exp() / z.exp().sum(1, keepdim=True)).log(), labels, s),
        "the value is off": lambda *a: smoothed_cross_entropy(*a) + 0.01,
    },
    "1.2": {
        "was in training mode": batchwise(training=True), "left in evaluation mode": batchwise(back=lambda own, whole: False),
        "left in training mode": batchwise(back=lambda own, whole: True), "frozen layer": batchwise(back=lambda own, whole: whole),
        "Gradients were recorded": batchwise(grad=torch.enable_grad), "transformed at once": batchwise(step=55),
        "still switched off": batchwise(order=lambda n: (torch.arange(n), torch.set_grad_enabled(False))[0]),
        "shown to the network": batchwise(leave=5), "never called": [batchwise(show=lambda t, x: x), batchwise(show=lambda t, x: x / 255)],
        "as it is": [batchwise(show=lambda t, x: t(x / 255)), batchwise(show=lambda t, x: torch.stack([t(one) for one in x]))],
        "judged wrongly": batchwise(order=torch.randperm), "Return three things": returning(lambda *all: all[:2]),
        "has the type": returning(lambda a, e, right: (a, e, right.long())), "has shape": returning(lambda a, e, right: (a, e, right[:9])),
        "the accuracy is": returning(lambda a, e, right: (0.5, e, right)), "error is 0": returning(lambda a, e, right: (a, 0.07, right)),
    },
}
