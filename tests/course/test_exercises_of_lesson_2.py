"""Lesson 2's exercises: the solution and other right answers pass, and each likely mistake gets its own hint."""

import math

import pytest
import torch
from answers import judge_of, standard_tests
from torch.nn import functional as F

from sslcourse.course.checks.lesson_2 import EXERCISES, images_needed, rotate_all, train_steps

judged = judge_of(EXERCISES)


# --- 2.1 ---


def blocks(*turns):
    """An answer that joins the given functions of x, with the right labels."""
    return lambda x: (torch.cat([turn(x) for turn in turns]), torch.arange(len(turns)).repeat_interleave(len(x)))


def turned(k, dims=(2, 3)):
    return lambda x: torch.rot90(x, k, dims=dims)


def one_by_one(x):
    images, labels = [], []
    for turns in range(4):
        for image in x:
            for _ in range(turns):
                image = image.transpose(1, 2).flip(1)  # a transpose and a flip make a quarter turn
            images.append(image)
            labels.append(turns)
    return torch.stack(images), torch.tensor(labels)


def rotations_as_list(x):
    return [
        torch.cat([x, x.rot90(1, (-2, -1)), x.flip(-1, -2), x.rot90(-1, (-2, -1))]),
        torch.tensor([0, 1, 2, 3]).repeat_interleave(len(x)),
    ]


clockwise = blocks(*[turned(-k) for k in range(4)])
wrong_dims = blocks(*[turned(k, (1, 2)) for k in range(4)])
batch_turned = blocks(*[turned(k, (0, 3)) for k in range(4)])
half_turn_as_flip = blocks(turned(0), turned(1), lambda x: x.flip(2), turned(3))
quarter_as_transpose = blocks(turned(0), lambda x: x.transpose(2, 3), turned(2), turned(3))
unturned_missing = blocks(turned(1), turned(2), turned(3))
half_turn_twice = blocks(turned(0), turned(1), turned(2), turned(2))


def wrong_dims_written_into(x):
    out = x.new_zeros(4 * len(x), *x.shape[1:])
    for k in range(4):
        out[k * len(x) : (k + 1) * len(x)] = torch.rot90(x, k, dims=(1, 2))
    return out, rotate_all(x)[1]


def channels_flipped(x):
    images, labels = rotate_all(x)
    return images.flip(1), labels


def labels_interleaved(x):
    return rotate_all(x)[0], torch.arange(4).repeat(len(x))


def interleaved(x):
    return torch.stack([torch.rot90(x, k, dims=(2, 3)) for k in range(4)], dim=1).flatten(0, 1), torch.arange(4).repeat(len(x))


def images_interleaved(x):
    return interleaved(x)[0], rotate_all(x)[1]


def other_order(x):
    images, labels = rotate_all(x)
    return images.flip(0), labels.flip(0)


def labels_changed(change):
    def rotations(x):
        images, labels = rotate_all(x)
        return images, change(labels)

    return rotations


def images_changed(change):
    def rotations(x):
        images, labels = rotate_all(x)
        return change(images, len(x)), labels

    return rotations


labels_float = labels_changed(lambda v: v.float())
labels_one_hot = labels_changed(lambda v: F.one_hot(v, 4))
labels_in_degrees = labels_changed(lambda v: 90 * v)
labels_from_one = labels_changed(lambda v: v + 1)
labels_list = labels_changed(lambda v: v.tolist())
labels_shuffled = labels_changed(lambda v: (v + 1) % 4)
images_listed = images_changed(lambda v, n: list(v.split(n)))
images_stacked = images_changed(lambda v, n: v.unflatten(0, (4, n)))


def one_rotation_each(x):
    labels = torch.randint(4, (len(x),))
    return torch.stack([torch.rot90(v, int(k), dims=(1, 2)) for v, k in zip(x, labels, strict=True)]), labels


def images_only(x):
    return rotate_all(x)[0]


# --- 2.2 ---


def steps_of_torch(model, batches, loss_fn, lr):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    losses = []
    for x, y in batches:
        loss = loss_fn(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses += [loss.item()]
    return losses


def steps_without_dot_grad(model, batches, loss_fn, lr):
    losses, learning = [], [p for p in model.parameters() if p.requires_grad]
    for x, y in batches:
        loss = loss_fn(model(x), y)
        for p, g in zip(learning, torch.autograd.grad(loss, learning, allow_unused=True), strict=True):
            if g is not None:
                p.data = p.data - lr * g
        losses.append(loss.detach().item())
    return losses


def steps(clear_first=False, clear="before", sign=-1.0, scale=None, step="each", backward=True, guard=True, keep=lambda loss: loss.item()):
    """An answer with one thing changed."""

    def train(model, batches, loss_fn, lr):
        if clear_first:
            model.zero_grad()
        losses = []
        for x, y in batches:
            if clear == "before":
                model.zero_grad()
            loss = loss_fn(model(x), y)
            if backward:
                loss.backward()
            if clear == "between":
                model.zero_grad()
            factor = sign * (lr if scale is None else scale(lr, batches, y))
            with torch.no_grad():
                for p in model.parameters():
                    if step == "each" and (not guard or p.grad is not None):
                        p += factor * p.grad
            if clear == "after":
                model.zero_grad()
            losses.append(keep(loss))
        return losses

    return train


def with_optimizer(kind, **settings):
    def train(model, batches, loss_fn, lr):
        optimizer, losses = kind(model.parameters(), lr=lr, **settings), []
        for x, y in batches:
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    return train


def step_recorded(model, batches, loss_fn, lr):
    for x, y in batches:
        loss_fn(model(x), y).backward()
        for p in model.parameters():
            p -= lr * p.grad
    return []


def step_renamed(model, batches, loss_fn, lr):
    losses = []
    for x, y in batches:
        model.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        for p in model.parameters():
            p = p - lr * p.grad
        losses.append(loss.item())
    return losses


def no_grad_everywhere(model, batches, loss_fn, lr):
    with torch.no_grad():
        return train_steps(model, batches, loss_fn, lr)


def sum_of_losses(model, batches, loss_fn, lr):
    total, losses = 0, []
    for x, y in batches:
        total = total + loss_fn(model(x), y)
        total.backward()
        losses.append(total.item())
    return losses


def single_step(model, batches, loss_fn, lr):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    losses = [loss_fn(model(x), y) for x, y in batches]
    optimizer.zero_grad()
    sum(losses).backward()
    optimizer.step()
    return [loss.item() for loss in losses]


def last_loss(model, batches, loss_fn, lr):
    return train_steps(model, batches, loss_fn, lr)[-1]


def first_batch_only(model, batches, loss_fn, lr):
    return train_steps(model, batches[:1], loss_fn, lr)


def two_epochs(model, batches, loss_fn, lr):
    return train_steps(model, batches, loss_fn, lr) + train_steps(model, batches, loss_fn, lr)


def losses_stacked(model, batches, loss_fn, lr):
    return torch.tensor(train_steps(model, batches, loss_fn, lr))


def losses_after(model, batches, loss_fn, lr):
    losses = []
    for x, y in batches:
        train_steps(model, [(x, y)], loss_fn, lr)
        losses.append(loss_fn(model(x), y).item())
    return losses


def losses_added_up(model, batches, loss_fn, lr):
    return torch.tensor(train_steps(model, batches, loss_fn, lr)).cumsum(0).tolist()


def nothing_returned(model, batches, loss_fn, lr):
    train_steps(model, batches, loss_fn, lr)


# --- 2.3 ---


def images_from_error(accuracy, difference, z):
    return int(math.ceil((z * math.sqrt(2 * accuracy * (1 - accuracy)) / difference) ** 2))


def images_by_search(accuracy, difference, z):
    n = 1
    while math.sqrt(2 * accuracy * (1 - accuracy) / n) * z > difference:
        n += 1
    return n


def count(formula, to=math.ceil):
    return lambda accuracy, difference, z: to(formula(accuracy, difference, z))


def exactly(a, d, z):
    return 2 * a * (1 - a) * (z / d) ** 2


RIGHT = [
    ("2.1", rotate_all),
    ("2.1", one_by_one),
    ("2.1", rotations_as_list),
    ("2.2", train_steps),
    ("2.2", steps_of_torch),
    ("2.2", steps_without_dot_grad),
    ("2.2", with_optimizer(torch.optim.SGD)),
    ("2.2", steps(clear_first=True, clear="after")),
    ("2.3", images_needed),
    ("2.3", images_from_error),
    ("2.3", images_by_search),
]

WRONG = [
    ("2.1", clockwise, "turned clockwise"),
    ("2.1", wrong_dims, "no longer fit together"),
    ("2.1", channels_flipped, "no turned version"),
    ("2.1", half_turn_as_flip, "A flip along one axis"),
    ("2.1", quarter_as_transpose, "A transpose is not"),
    ("2.1", unturned_missing, "3N images"),
    ("2.1", half_turn_twice, "once in each rotation"),
    ("2.1", labels_interleaved, "The images come in blocks, but the labels"),
    ("2.1", images_interleaved, "The labels come in blocks, but the images"),
    ("2.1", interleaved, "agree, but they come image by image"),
    ("2.1", other_order, "their order is another"),
    ("2.1", labels_float, "have to be int64"),
    ("2.1", labels_one_hot, "one-hot"),
    ("2.1", labels_in_degrees, "are angles"),
    ("2.1", labels_from_one, "count from 1"),
    ("2.1", labels_list, "labels are a list"),
    ("2.1", labels_shuffled, "its label says"),
    ("2.1", images_listed, "still in a list"),
    ("2.1", images_stacked, "five dimensions"),
    ("2.1", one_rotation_each, "N images, one rotation for each"),
    ("2.1", images_only, "Return two tensors"),
    ("2.2", steps(clear="never"), "pile up over the whole run"),
    ("2.2", steps(clear="between"), "cleared between backward() and the step"),
    ("2.2", steps(step="none"), "no parameter moved"),
    ("2.2", steps(backward=False), "No gradient was computed"),
    ("2.2", steps(sign=1.0), "uphill"),
    ("2.2", steps(scale=lambda lr, batches, y: 1.0), "learning rate is ignored"),
    ("2.2", steps(scale=lambda lr, batches, y: lr / len(batches)), "divided by a number"),
    ("2.2", steps(scale=lambda lr, batches, y: 0.01), "not those of plain SGD"),
    ("2.2", steps(keep=lambda loss: loss), "whole graph alive"),
    ("2.2", steps(keep=lambda loss: loss.detach()), "not plain floats"),
    ("2.2", steps(clear="after"), "came with old gradients"),
    ("2.2", steps(guard=False), "frozen or unused"),
    ("2.2", with_optimizer(torch.optim.SGD, momentum=0.9), "momentum"),
    ("2.2", with_optimizer(torch.optim.Adam), "Adam rescales"),
    ("2.2", step_recorded, "must not be recorded"),
    ("2.2", no_grad_everywhere, "no graph to go back"),
    ("2.2", sum_of_losses, "earlier batch"),
    ("2.2", single_step, "a single step"),
    ("2.2", last_loss, "Only one loss"),
    ("2.2", first_batch_only, "inside the loop"),
    ("2.2", two_epochs, "Go through the batches once"),
    ("2.2", losses_stacked, "one tensor"),
    ("2.2", losses_after, "losses after each step"),
    ("2.2", losses_added_up, "added up"),
    ("2.2", nothing_returned, "return statement"),
    ("2.3", count(lambda a, d, z: a * (1 - a) * (z / d) ** 2), "error of one accuracy"),
    ("2.3", count(lambda a, d, z: (z * 2 * math.sqrt(a * (1 - a)) / d) ** 2), "twice too many"),
    ("2.3", count(lambda a, d, z: 2 * a * (1 - a) / d**2), "z is ignored"),
    ("2.3", count(lambda a, d, z: 2 * a * (1 - a) * z / d**2), "z is not squared"),
    ("2.3", count(lambda a, d, z: 2 * a * (1 - a) * z**2 / d), "The difference is not squared"),
    ("2.3", count(lambda a, d, z: 2 * a * (1 - a) * z / d), "Neither"),
    ("2.3", count(lambda a, d, z: 2 * math.sqrt(a * (1 - a)) * (z / d) ** 2), "sqrt(a(1 − a)) stands"),
    ("2.3", count(lambda a, d, z: math.sqrt(exactly(a, d, z))), "square root of n"),
    ("2.3", count(lambda a, d, z: exactly(a, d / 100, z)), "percent"),
    ("2.3", count(exactly, math.floor), "rounded down"),
    ("2.3", count(exactly, round), "nearest number"),
    ("2.3", count(exactly, float), "no part of an image"),
    ("2.3", count(exactly, lambda n: float(math.ceil(n))), "not an int"),
    ("2.3", count(lambda a, d, z: 3 * exactly(a, d, z)), "it takes"),
]


test_right_answers_are_accepted, test_each_mistake_gets_its_own_hint, test_hints_differ_within_an_exercise = standard_tests(
    EXERCISES, RIGHT, WRONG
)


@pytest.mark.parametrize("answer", [wrong_dims_written_into, batch_turned], ids=lambda v: v.__name__)
def test_turning_the_wrong_dimensions_names_the_right_ones(answer):
    status, message = judged("2.1", answer)
    assert status == "hint" and "wrong dimensions" in message and "dims=(2, 3)" in message


def test_clearing_once_before_the_loop_counts_as_never():
    assert judged("2.2", steps(clear_first=True, clear="never")) == judged("2.2", steps(clear="never"))


def test_a_missing_gradient_at_the_step_is_explained():
    assert "cleared between" in judged("2.2", steps(clear="between", guard=False))[1]
    assert "No gradient was computed" in judged("2.2", steps(backward=False, guard=False))[1]


def test_untouched_functions_are_not_attempted():
    def rotate_all(x):
        """Four rotations."""
        ...

    def train_steps(model, batches, loss_fn, lr): ...

    def images_needed(accuracy, difference, z):
        raise NotImplementedError

    for number, answer in (("2.1", rotate_all), ("2.2", train_steps), ("2.3", images_needed)):
        assert judged(number, answer)[0] == "not attempted"


def test_references_give_known_values():
    x = torch.arange(12.0).view(1, 3, 2, 2)
    images, labels = rotate_all(x)
    assert images[1, 0].tolist() == [[1, 3], [0, 2]] and labels.tolist() == [0, 1, 2, 3]
    assert images_needed(0.70, 0.011, 2) == 13885
    assert images_needed(0.9, 0.02, 2) == 1800 and isinstance(images_needed(0.9, 0.02, 2), int)
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(model.weight)
    losses = train_steps(model, [(torch.ones(1, 1), torch.zeros(1, 1))] * 2, F.mse_loss, 0.25)
    assert losses == [1.0, 0.25] and model.weight.item() == 0.25
