"""The exercises of lesson 3: the loss of SimCLR, alignment and uniformity, and a vote of the nearest neighbours."""

import math
from numbers import Real

import torch
from torch import Tensor
from torch.nn import functional as F

from sslcourse.course.exercises import Exercise, Wrong, expect_close, expect_gradients, expect_shape, expect_type, try_mistakes

# --- 3.1 ------------------------------------------------------------------------------------------------------------------------------


def my_nt_xent(z0: Tensor, z1: Tensor, temperature: float) -> Tensor:
    """Mean over the 2N anchors of the cross-entropy of picking the other view among the 2N − 1 other rows. z0, z1 (N, D)."""
    n = len(z0)
    z = F.normalize(torch.cat([z0, z1]), dim=1)
    logits = z @ z.T / temperature
    logits = logits.masked_fill(torch.eye(2 * n, dtype=torch.bool, device=z.device), -math.inf)
    targets = (torch.arange(2 * n, device=z.device) + n) % (2 * n)
    return F.cross_entropy(logits, targets)


def _logits(z0, z1, temperature, diagonal=-math.inf, dim=1, normalised=True):
    z = torch.cat([z0, z1])
    z = F.normalize(z, dim=dim) if normalised else z
    logits = z @ z.T / temperature
    return logits if diagonal is None else logits.masked_fill(torch.eye(len(z), dtype=torch.bool), diagonal)


def _partners(z0):
    return (torch.arange(2 * len(z0)) + len(z0)) % (2 * len(z0))


def _variant(targets=_partners, reduce=torch.mean, **settings):
    """A wrong NT-Xent: other logits, other targets, or reduced otherwise."""
    return lambda z0, z1, t: reduce(F.cross_entropy(_logits(z0, z1, t, **settings), targets(z0), reduction="none"))


def _other_view_only(z0, z1, t):
    return F.cross_entropy(F.normalize(z0) @ F.normalize(z1).T / t, torch.arange(len(z0)))


def _denominator(z0, z1, t, extra):
    """With the positive counted 1 + extra times in the denominator."""
    logits = _logits(z0, z1, t)
    positive = logits.gather(1, _partners(z0).unsqueeze(1)).squeeze(1)
    return -(positive - (logits.exp().sum(1) + extra * positive.exp()).log()).mean()


def _log_of_mean(z0, z1, t):
    return -_logits(z0, z1, t).softmax(1).gather(1, _partners(z0).unsqueeze(1)).mean().log()


_ONE_VIEW = "Only the N rows of one view are anchors. Both views take their turn: take the mean over all 2N rows."
_OTHER_ONLY = "The candidates are the N rows of the other view only. An anchor is compared with all 2N − 1 others: join both views first."
_TARGETS = "The target of row i is wrong. The rows are z0 first, then z1, so the other view of row i is row (i + N) mod 2N."
_NT_XENT_MISTAKES = [
    (
        "The diagonal is not masked: each row finds itself among its candidates, with similarity 1. Put -inf there before the softmax.",
        _variant(diagonal=None),
    ),
    ("The diagonal is masked with 0, and exp(0) = 1 is still a candidate. Put -inf there, so that exp gives 0.", _variant(diagonal=0.0)),
    (
        "The rows are not normalised: these are dot products. Divide each row by its length, F.normalize(z, dim=1).",
        _variant(normalised=False),
    ),
    ("Normalised over the batch. Each row gets length 1 over its features: dim=1.", _variant(dim=0)),
    (_ONE_VIEW, _variant(reduce=lambda v: v[: len(v) // 2].mean())),
    (_ONE_VIEW, _variant(reduce=lambda v: v[len(v) // 2 :].mean())),
    (_OTHER_ONLY, _other_view_only),
    (_OTHER_ONLY, lambda a, b, t: (_other_view_only(a, b, t) + _other_view_only(b, a, t)) / 2),
    (_OTHER_ONLY, lambda a, b, t: _other_view_only(a, b, t) + _other_view_only(b, a, t)),
    ("Twice the value: there are 2N anchors, so divide by 2N and not by N.", lambda *a: 2 * my_nt_xent(*a)),
    ("This is the sum over the anchors. Take the mean.", _variant(reduce=torch.sum)),
    ("The sign is turned round: the loss is minus the logarithm.", lambda *a: -my_nt_xent(*a)),
    ("The similarities are multiplied by the temperature. Divide: a low temperature sharpens.", lambda a, b, t: my_nt_xent(a, b, 1 / t)),
    ("The temperature is ignored. Divide the similarities by it before the softmax.", lambda a, b, t: my_nt_xent(a, b, 1.0)),
    (
        "The positive is missing from the denominator. It is one of the 2N − 1 candidates: mask the diagonal only.",
        lambda a, b, t: _denominator(a, b, t, -1),
    ),
    ("The positive is counted twice in the denominator. It is already among the 2N − 1 others.", lambda a, b, t: _denominator(a, b, t, 1)),
    ("This is the logarithm of the mean. Take the logarithm for each anchor first, then the mean.", _log_of_mean),
    (_TARGETS, _variant(targets=lambda z0: torch.arange(2 * len(z0)), diagonal=None)),
    (_TARGETS, _variant(targets=lambda z0: torch.arange(2 * len(z0)) ^ 1)),
    (_TARGETS, _variant(targets=lambda z0: torch.arange(2 * len(z0)))),
]


def _views(n: int, d: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two views that belong together, with rows of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    z0 = torch.randn(n, d, generator=generator)
    z1 = z0 + 0.7 * torch.randn(n, d, generator=generator)
    lengths = 0.5 + torch.rand(2, n, 1, generator=generator)
    return z0 * lengths[0], z1 * lengths[1]


def _check_nt_xent(answer) -> None:
    with torch.enable_grad():
        z0, z1 = _views(6, 5, 1)
        got = answer(z0, z1, 0.5)
        if isinstance(got, Real):
            raise Wrong("The loss comes back as a plain number, and backward() needs the tensor. Leave .item() out.")
        expect_shape(got, (), "the loss")
        for hint, wrong in _NT_XENT_MISTAKES:
            try_mistakes(answer, (z0, z1, 0.5), {hint: wrong})
        for n, d, temperature in ((6, 5, 0.5), (4, 8, 1.0), (9, 3, 0.3)):
            z0, z1 = _views(n, d, n)
            expect_close(
                answer(z0, z1, temperature),
                my_nt_xent(z0, z1, temperature),
                f"With N = {n} and temperature {temperature} the value is off. One test: where all rows are equal, it must be log(2N − 1).",
                rtol=5e-4,
                what="the loss",
            )
        hints = {"blocked": "In SimCLR both branches learn.", "cut": "No .detach() on the candidates or the lengths."}
        expect_gradients(answer, my_nt_xent, _views(6, 5, 2), 0.5, **hints, rtol=1e-3, atol=1e-5)
        z0, z1 = _views(8, 4, 3)
        expect_close(
            answer(z0, z1, 0.005),
            my_nt_xent(z0, z1, 0.005),
            "Right at temperature 0.5, but at 0.005 exp(200) overflows. Use logsumexp or F.cross_entropy, which take out the largest term.",
            rtol=2e-3,
            atol=1e-3,
            what="the loss",
        )


# --- 3.2 ------------------------------------------------------------------------------------------------------------------------------


def alignment_and_uniformity(z0: Tensor, z1: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared distance between the views of an image, and log of the mean of exp(−2·distance²) over pairs of rows of z0."""
    z0, z1 = F.normalize(z0, dim=1), F.normalize(z1, dim=1)
    alignment = (z0 - z1).square().sum(dim=1).mean()
    uniformity = torch.pdist(z0).square().mul(-2).exp().mean().log()
    return alignment, uniformity


def _unit(z0, z1):
    return F.normalize(z0, dim=1), F.normalize(z1, dim=1)


def _rows(measure):
    """A wrong alignment: `measure` of the normalised views."""
    return lambda z0, z1: measure(*_unit(z0, z1))


def _pairs(measure):
    """A wrong uniformity: `measure` of the distances of the distinct pairs of normalised rows of z0."""
    return lambda z0, z1: measure(torch.pdist(_unit(z0, z1)[0]))


def _uniform(distances):
    return distances.square().mul(-2).exp().mean().log()


_UNIT = "The rows are not normalised. Alignment and uniformity live on the unit sphere: F.normalize(z, dim=1) first, for both."
_OVER_BATCH = "Normalised over the batch. Each row gets length 1 over its features: dim=1."
_SQUARE_0 = "The alignment takes the distance as it is. It is the squared distance: no square root."
_BAD_ALIGNMENTS = {
    _UNIT: lambda a, b: (a - b).square().sum(1).mean(),
    _OVER_BATCH: lambda a, b: (F.normalize(a, dim=0) - F.normalize(b, dim=0)).square().sum(1).mean(),
    _SQUARE_0: _rows(lambda a, b: (a - b).norm(dim=1).mean()),
    "The alignment is a sum over the images. Take the mean.": _rows(lambda a, b: (a - b).square().sum()),
    "The alignment is a mean over the features as well, D times too small. Sum over the features, then the mean over the images.": _rows(
        lambda a, b: (a - b).square().mean()
    ),
    "The alignment has the wrong sign: it is a mean of squared distances, 0 or more.": _rows(lambda a, b: -(a - b).square().sum(1).mean()),
    "This alignment is the mean cosine similarity. The squared distance on the sphere is 2 − 2 · cosine.": _rows(
        lambda a, b: (a * b).sum(1).mean()
    ),
    "The alignment compares every row with every row. It compares row i of z0 with row i of z1 only.": _rows(
        lambda a, b: torch.cdist(a, b).square().mean()
    ),
}
_BAD_UNIFORMITIES = {
    _UNIT: lambda a, b: _uniform(torch.pdist(a)),
    _OVER_BATCH: lambda a, b: _uniform(torch.pdist(F.normalize(a, dim=0))),
    "The uniformity takes the distances as they are. Square them: exp(−2 · distance²).": _pairs(lambda d: d.mul(-2).exp().mean().log()),
    "Each row is compared with itself too, at distance 0. Take distinct pairs only: torch.pdist, or leave out the diagonal.": lambda a, b: (
        _uniform(torch.cdist(_unit(a, b)[0], _unit(a, b)[0]))
    ),
    "The uniformity is a mean of logarithms. Take the mean of exp(...) first, and then its logarithm.": _pairs(
        lambda d: d.square().mul(-2).mean()
    ),
    "The factor 2 is missing in the uniformity: exp(−2 · distance²).": _pairs(lambda d: d.square().neg().exp().mean().log()),
    "The uniformity has the wrong sign. The logarithm of a mean of numbers below 1 is negative, and lower is more uniform.": _pairs(
        lambda d: -_uniform(d)
    ),
    "The sign in the exponent is wrong: exp(−2 · distance²) is large for near pairs.": _pairs(
        lambda d: d.square().mul(2).exp().mean().log()
    ),
    "The uniformity sums over the pairs. Take the mean before the logarithm.": _pairs(lambda d: d.square().mul(-2).exp().sum().log()),
    "The logarithm is missing in the uniformity.": _pairs(lambda d: d.square().mul(-2).exp().mean()),
    "The uniformity is taken over the rows of both views. Here it is defined for z0 alone.": _rows(
        lambda a, b: _uniform(torch.pdist(torch.cat([a, b])))
    ),
    "This is the uniformity of z1. Here it is defined for z0.": _rows(lambda a, b: _uniform(torch.pdist(b))),
    "The uniformity compares z0 with z1. It compares the rows of z0 with each other.": _rows(lambda a, b: _uniform(torch.cdist(a, b))),
}


def _check_geometry(answer) -> None:
    z0, z1 = _views(7, 4, 5)
    got = answer(z0, z1)
    if not isinstance(got, (tuple, list)) or len(got) != 2:
        expect_type(got, (tuple, list))
        raise Wrong("Return two numbers: return alignment, uniformity.")
    wanted = alignment_and_uniformity(z0, z1)
    values = [torch.as_tensor(v) for v in got if isinstance(v, (Tensor, Real))]
    if len(values) == 2 and all(v.shape == () for v in values):
        near = [torch.isclose(v.double(), w.double(), rtol=1e-4) for v, w in zip(values[::-1], wanted, strict=True)]
        if all(near):
            raise Wrong("Both values are right, in the other order. Return the alignment first.")
    for at, name, mistakes in ((0, "the alignment", _BAD_ALIGNMENTS), (1, "the uniformity", _BAD_UNIFORMITIES)):
        try_mistakes(lambda a, b, at=at: answer(a, b)[at], (z0, z1), mistakes)
        expect_close(got[at], wanted[at], f"The value of {name} is off. Try two rows by hand, such as (1, 0) and (0, 1).", what=name)
    z0, z1 = _views(20, 9, 6)
    for value, w, name in zip(answer(z0, z1), alignment_and_uniformity(z0, z1), ("the alignment", "the uniformity"), strict=True):
        expect_close(value, w, f"Right for 7 rows, but not for 20: is a number of rows or features written into {name}?", what=name)


# --- 3.3 ------------------------------------------------------------------------------------------------------------------------------


def knn_predict(bank: Tensor, bank_labels: Tensor, queries: Tensor, k: int, temperature: float) -> Tensor:
    """The class of each query by a vote of its k most similar bank rows, each with the weight exp(cosine / temperature). int64 (Q,)."""
    similarity = F.normalize(queries, dim=1) @ F.normalize(bank, dim=1).T
    nearest = similarity.topk(k, dim=1)
    weights = (nearest.values / temperature).softmax(dim=1)  # exp(), divided by one number for each query: the winner is the same
    votes = weights.new_zeros(len(queries), int(bank_labels.max()) + 1)
    return votes.scatter_add(1, bank_labels[nearest.indices], weights).argmax(dim=1)


def _scores(similarity, labels, k, weigh, largest=True):
    nearest = similarity.topk(k, dim=1, largest=largest)
    votes = torch.zeros(len(similarity), int(labels.max()) + 1, dtype=similarity.dtype)
    return votes.scatter_add(1, labels[nearest.indices], weigh(nearest.values))


def _cosine(bank, queries, dim=1):
    return F.normalize(queries, dim=dim) @ F.normalize(bank, dim=dim).T


def _vote(similar=_cosine, weigh=lambda s, t: (s / t).exp(), count=lambda k, bank: k, largest=True):
    """A wrong vote: another similarity, another weight, or another number of neighbours."""

    def predict(bank, labels, queries, k, t):
        return _scores(similar(bank, queries), labels, count(k, bank), lambda s: weigh(s, t), largest).argmax(1)

    return predict


_LENGTHS = "The rows are not all normalised, so long rows win by their length. Use F.normalize(..., dim=1) for the bank and the queries."
_FARTHEST = "These are the k least similar rows. Take the largest similarities; of distances, the smallest."
_SAME_VOTE = "Every neighbour has the same vote. Weigh each by exp(similarity / temperature), so that a near one counts for more."
_VOTE_MISTAKES = [
    (_LENGTHS, _vote(lambda bank, queries: queries @ bank.T)),
    (_LENGTHS, _vote(lambda bank, queries: F.normalize(queries) @ bank.T)),
    (_LENGTHS, _vote(lambda bank, queries: queries @ F.normalize(bank).T)),
    (_LENGTHS, _vote(lambda bank, queries: -torch.cdist(queries, bank))),
    ("Normalised over the rows. Each row gets length 1 over its features: dim=1.", _vote(lambda bank, queries: _cosine(bank, queries, 0))),
    (_SAME_VOTE, _vote(weigh=lambda s, t: torch.ones_like(s))),
    (_SAME_VOTE, _vote(weigh=lambda s, t: 1 + 0.001 * 0.5 ** torch.arange(s.shape[1]).expand_as(s))),  # of equals, the first met wins
    ("The weights are the similarities themselves. The weight is exp(similarity / temperature).", _vote(weigh=lambda s, t: s)),
    (_FARTHEST, _vote(largest=False)),
    (_FARTHEST, _vote(lambda bank, queries: torch.cdist(F.normalize(queries), F.normalize(bank)))),
    (_FARTHEST, _vote(largest=False, weigh=lambda s, t: torch.ones_like(s))),
    ("The weights have the wrong sign: a near neighbour counts for less.", _vote(weigh=lambda s, t: (-s / t).exp())),
    ("The temperature is ignored. The weight is exp(similarity / temperature).", _vote(weigh=lambda s, t: s.exp())),
    ("The similarity is multiplied by the temperature. Divide by it: a low temperature sharpens.", _vote(weigh=lambda s, t: (s * t).exp())),
    ("Only the nearest neighbour is asked. The k most similar ones vote.", _vote(count=lambda k, bank: 1)),
    ("Every row of the bank votes. Keep the k most similar rows only: topk(k, dim=1).", _vote(count=lambda k, bank: len(bank))),
]


def _bank(d: int, temperature: float, k: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A bank of overlapping classes, and those queries whose vote is so clear that no rounding decides it."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(4, d, generator=generator)
    labels = torch.randint(4, (80,), generator=generator)
    bank = centres[labels] + 1.2 * torch.randn(80, d, generator=generator)
    queries = centres[torch.randint(4, (400,), generator=generator)] + 1.2 * torch.randn(400, d, generator=generator)
    bank, queries = (F.normalize(z) * (0.3 + 2 * torch.rand(len(z), 1, generator=generator)) for z in (bank, queries))
    similarity = _cosine(bank.double(), queries.double())
    edge = similarity.topk(k + 1, dim=1).values
    votes = _scores(similarity, labels, k, lambda s: (s / temperature).exp()).topk(2, dim=1).values
    clear = (edge[:, k - 1] - edge[:, k] > 1e-4) & (votes[:, 1] < 0.99 * votes[:, 0])
    return bank, labels, queries[clear]


def _check_vote_form(got, n: int, classes: int, k: int) -> None:
    expect_type(got, Tensor, "the prediction")
    if tuple(got.shape) == (n, classes):
        raise Wrong("These are the votes of every class. Return the class with the most: .argmax(dim=1).")
    if tuple(got.shape) == (n, k):
        raise Wrong("This is one value for each neighbour. Add the weights up for each class, and return the class with the most.")
    expect_shape(got, (n,), "the prediction")
    if got.is_floating_point():
        raise Wrong("These are scores, and not classes. max(dim=1) returns values and positions; argmax(dim=1) gives the class.")
    if got.dtype != torch.int64:
        raise Wrong(f"Predicted classes have to be int64, and these are {got.dtype}: .long().")
    if got.min() < 0 or got.max() >= classes:
        raise Wrong("These are positions in the bank. Look up the neighbours' classes, bank_labels[indices], before the vote.")


def _check_knn(answer) -> None:
    for d, k, temperature, seed in ((5, 9, 0.1, 8), (12, 5, 0.25, 9)):
        bank, labels, queries = _bank(d, temperature, k, seed)
        inputs = bank, labels, queries, k, temperature
        got = answer(*inputs)
        _check_vote_form(got, len(queries), 4, k)
        for hint, wrong in _VOTE_MISTAKES:
            try_mistakes(answer, inputs, {hint: wrong})
        wanted = knn_predict(*inputs)
        differ = int((got.cpu() != wanted).sum())
        if differ:
            raise Wrong(
                f"{differ} of {len(queries)} predictions differ at k = {k}. For one query, list its k neighbours, classes and weights."
            )
    expect_shape(answer(bank, labels, queries[:1], k, temperature), (1,), "the prediction for a single query")


EXERCISES = {
    "3.1": Exercise("3.1", "NT-Xent, vectorised", 20, 3, my_nt_xent, _check_nt_xent),
    "3.2": Exercise("3.2", "Alignment and uniformity", 10, 2, alignment_and_uniformity, _check_geometry),
    "3.3": Exercise("3.3", "A vote of the nearest neighbours", 15, 2, knn_predict, _check_knn),
}
