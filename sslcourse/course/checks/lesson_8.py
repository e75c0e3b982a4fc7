"""The exercises of lesson 8: hiding tokens, a whole step of a masked autoencoder, and DINO's loss with its centre."""

import copy
from operator import itemgetter

import torch
from torch import Tensor, nn

from sslcourse import losses, models
from sslcourse.course.checks import expect
from sslcourse.course.checks.expect import reject_if
from sslcourse.course.exercises import Exercise


def hide(tokens: Tensor, noise: Tensor, seen: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of tokens (N, L, D) the `seen` ones of each image with the smallest noise (N, L), their places (N, seen), the mask (N, L)."""
    places = noise.argsort(1)[:, :seen]
    kept = tokens.gather(1, places.unsqueeze(2).expand(-1, -1, tokens.shape[2]))
    return kept, places, torch.ones_like(noise).scatter(1, places, 0.0)


def hide_by(order=lambda noise, seen: noise.argsort(1)[:, :seen], fill=(1.0, 0.0)):
    """A wrong way to hide: other places stay, or the mask has other numbers."""

    def hidden(tokens, noise, seen):
        places = order(noise, seen)
        kept = tokens.gather(1, places.unsqueeze(2).expand(-1, -1, tokens.shape[2]))
        return kept, places, torch.full_like(noise, fill[0]).scatter(1, places, fill[1])

    return hidden


HIDE_MISTAKES = {
    "These have the largest noise. The tokens with the smallest stay: argsort sorts upwards.": hide_by(lambda n, s: n.argsort(1)[:, -s:]),
    "All images keep the places of the first one. Sort the noise of each image: argsort(1).":
        hide_by(lambda n, s: n[:1].argsort(1)[:, :s].expand(len(n), s)),
    "The right tokens, in the order in which they lay. Return them in the order of their noise.":
        hide_by(lambda n, s: n.argsort(1)[:, :s].sort(1).values),
    "These are ranks: the place of each token in the order. argsort once gives the tokens in that order.":
        hide_by(lambda n, s: n.argsort(1).argsort(1)[:, :s]),
    "The mask is the other way round: 1 where a token is hidden, 0 where it stays.": hide_by(fill=(0.0, 1.0)),
}


def check_hide(answer) -> None:
    for n, length, d, seen in ((4, 9, 5, 3), (6, 16, 2, 7)):
        generator = torch.Generator().manual_seed(n)
        inputs = torch.randn(n, length, d, generator=generator), torch.rand(n, length, generator=generator), seen
        got = answer(*inputs)
        expect.kind(got, (tuple, list), "the result")
        reject_if(len(got) != 3, "Return three tensors: kept, places, mask.")
        for tensor, name, form in zip(got, ("kept", "places", "mask"), ((n, seen, d), (n, seen), (n, length)), strict=True):
            expect.shape(tensor, form, name)
        reject_if(got[1].dtype != torch.int64, f"places are indices, int64, and these are {got[1].dtype}.")
        reject_if(not got[2].is_floating_point(), f"The mask weighs errors, so it holds floats; this one is {got[2].dtype}.")
        hints = ("places is off. Sort one image's noise by hand.", "kept is off: gather the rows at these places.", "The mask is off.")
        for at, hint in zip((1, 0, 2), hints, strict=True):
            expect.agree(answer, hide, inputs, hint, HIDE_MISTAKES, ("kept", "places", "mask")[at], itemgetter(at))


def mae_step(method: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, noise: Tensor, seen: int) -> float:
    """One step of a `models.MAE` on normalised images x (N, 3, H, W), whose tokens with the smallest noise (N, L) are seen. The loss."""
    kept, places, mask = hide(method.encoder.embed(x), noise, seen)
    drawn = method.decode(method.encoder.transform(kept), places, x.shape)
    loss = losses.mae_loss(drawn, method.target(method.patchify(x))[0], mask)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def check_mae_step(answer) -> None:
    for n, seen in ((5, 4), (3, 7)):
        torch.manual_seed(n)
        method = models.MAE(models.vit(2, 8, 1, 2, 8), decoder_width=8, decoder_depth=1, decoder_heads=2)
        twin, x, noise = copy.deepcopy(method), torch.randn(n, 3, 8, 8) * torch.rand(n, 1, 8, 8), torch.rand(n, 16)
        watched = expect.Watched(method, method.parameters(), encoded=method.encoder.norm, drawn=method.to_pixels)
        with expect.hints_for_errors(expect.STEP_ERRORS):
            got = answer(method, watched.optimizer, x, noise, seen)
        encoded, drawn = watched.calls["encoded"], watched.calls["drawn"]
        reject_if(not encoded, "Nothing is encoded. method.encoder.transform(kept) takes the tokens that stay.")
        tokens = encoded[0][0].shape[1] - 1
        reject_if(tokens == 16, "The encoder gets all 16 tokens. It must not see the hidden ones: give it what hide has kept.")
        reject_if(tokens != seen, f"The encoder gets {tokens} tokens of an image where seen is {seen}.")
        reject_if(not drawn, "Nothing is drawn. method.decode(encoded, places, x.shape) makes every patch.")
        _, places, mask = hide(twin.encoder.embed(x), noise, seen)
        patches, made = twin.patchify(x), twin.predict(x, places)
        target, every = twin.target(patches)[0], torch.ones_like(mask)
        bare = twin.encoder.patches_to_tokens(x).flatten(2).transpose(1, 2)
        blind = twin.decode(twin.encoder.transform(hide(bare, noise, seen)[0]), places, x.shape)
        loose = (patches - patches.mean(2, keepdim=True)) / (patches.var(2, keepdim=True) + 1e-6).sqrt()
        whole = (patches - patches.mean()) / patches.std()
        mistakes = {
            "The tokens have no positions. Start from method.encoder.embed(x).": [losses.mae_loss(blind, target, mask)],
            "All patches count. The seen ones must not: multiply the errors by the mask.": [losses.mae_loss(made, target, every)],
            "The seen patches count, and the hidden ones do not. The mask is 1 where a patch is hidden.":
                [losses.mae_loss(made, target, 1 - mask)],
            "The sum of the errors is divided by all patches. Divide it by the number of hidden ones, mask.sum().":
                [losses.mae_loss(made, target, mask) * mask.mean()],
            "The target is not normalised. Take each patch's own mean off, and divide by its own deviation.":
                [losses.mae_loss(made, patches, mask), losses.mae_loss(made, whole, mask)],
            "The variance of a patch divides by P − 1. Here it divides by P: var(2, correction=0).": [losses.mae_loss(made, loose, mask)],
            "The errors of a patch are added up. Take their mean over its numbers.":
                [losses.mae_loss(made, target, mask) * patches.shape[2]],
        }  # fmt: skip
        loss = losses.mae_loss(made, target, mask)
        watched.check_step(loss, [*twin.parameters()], mistakes)
        expect.plain_loss(got, loss)


def dino_loss_and_center(
    student: Tensor, teacher: Tensor, center: Tensor, tau_s: float, tau_t: float, momentum: float
) -> tuple[Tensor, Tensor]:
    """DINO's loss of logits (N, K) with the old center (K,), and the new one."""
    loss = losses.dino_loss(student, teacher, center, tau_s, tau_t)
    return loss, momentum * center + (1 - momentum) * teacher.detach().mean(0)


def dino_by(shift=lambda t, c, new: t - c, cold=lambda s, t: (s, t), of=lambda p, log_q: -(p * log_q).sum(1).mean(), side=1,
            keep=lambda m: m):  # fmt: skip
    """A wrong loss or centre: the teacher shifted otherwise, other temperatures, another reduction, a centre of something else."""

    def wrong(student, teacher, center, tau_s, tau_t, momentum):
        m = keep(momentum)
        new = m * center + (1 - m) * (student, teacher.detach())[side].mean(0)
        s, t = cold(tau_s, tau_t)
        p = (shift(teacher.detach(), center, new) / t).softmax(1)
        return of(p, (student / s).log_softmax(1)), new

    return wrong


DINO_MISTAKES = {
    "The centre is not taken off the teacher's logits.": dino_by(shift=lambda t, c, new: t),
    "The centre is added. Take it off.": dino_by(shift=lambda t, c, new: t + c),
    "The loss uses the new centre. The new one is for the next step.": dino_by(shift=lambda t, c, new: t - new),
    "The temperatures are swapped: the teacher's is the low one that sharpens.": dino_by(cold=lambda s, t: (t, s)),
    "The teacher's logits are divided by the student's temperature.": dino_by(cold=lambda s, t: (s, s)),
    "The rows are added up. Take their mean.": dino_by(of=lambda p, log_q: -(p * log_q).sum()),
    "This is the mean over all numbers. Sum over the classes, then take the mean over the rows.": dino_by(of=lambda p, q: -(p * q).mean()),
    "This is a KL divergence. The cross-entropy does not take the teacher's own entropy off.":
        dino_by(of=lambda p, log_q: (torch.special.entr(p) * -1 - p * log_q).sum(1).mean()),
    "Student and teacher are swapped: the target is the teacher's distribution, and the student's has the logarithm.":
        dino_by(of=lambda p, log_q: -(log_q.exp() * p.log()).sum(1).mean()),
    "momentum weighs the batch. It is the part of the old centre that stays.": dino_by(keep=lambda m: 1 - m),
    "The new centre is a mean of the student's logits. It is the teacher's.": dino_by(side=0),
}


def check_dino(answer) -> None:
    for n, k, cold, momentum in ((6, 5, 0.4, 0.9), (9, 3, 0.2, 0.7)):
        generator = torch.Generator().manual_seed(n)
        student, teacher, center = (torch.randn(*shape, generator=generator) for shape in ((n, k), (n, k), (k,)))
        inputs = student.requires_grad_(), teacher.requires_grad_(), center, 0.8, cold, momentum
        got = answer(*inputs)
        expect.two(got, "Return two things: the loss and the new centre.")
        expect.loss(got[0], rows=n)
        expect.shape(got[1], (k,), "the new centre")
        expect.agree(answer, dino_loss_and_center, inputs, "The loss is off.", DINO_MISTAKES, "the loss", itemgetter(0))
        expect.agree(answer, dino_loss_and_center, inputs, "The new centre is off.", DINO_MISTAKES, "the new centre", itemgetter(1))
        reject_if(not got[0].requires_grad, expect.NO_GRADIENT)
        slope, of_teacher = torch.autograd.grad(got[0], (student, teacher), allow_unused=True)
        reject_if(of_teacher is not None and of_teacher.any(), "A gradient reaches the teacher. It only tells: teacher.detach().")
        reject_if(slope is None, "The value is right, but no gradient reaches the student, which has to learn.")
        wanted = torch.autograd.grad(dino_loss_and_center(*inputs)[0], student)[0]
        expect.close(slope, wanted, "The value is right, but the student's gradient is not: is a part of the graph cut off?")
        reject_if(got[1].requires_grad, "The new centre carries a graph from step to step. Make it of detached logits.")


EXERCISES = [
    Exercise("8.1", "Hiding tokens", 15, 2, hide, check_hide, HIDE_MISTAKES),
    Exercise("8.2", "A whole step of MAE", 40, 3, mae_step, check_mae_step),
    Exercise("8.3", "DINO's loss and the new centre", 20, 2, dino_loss_and_center, check_dino, DINO_MISTAKES),
]
