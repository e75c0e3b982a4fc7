"""Lesson 3's exercises: the solution and other right answers pass, and each likely mistake gets its own hint."""

import math
from collections import Counter

import pytest
import torch
from answers import judge_of, standard_tests
from torch.nn import functional as F

from sslcourse.course.checks.lesson_3 import EXERCISES, alignment_and_uniformity, knn_predict, my_nt_xent

judged = judge_of(EXERCISES)


# --- 3.1 ---


def loss_by_loops(z0, z1, temperature):
    rows = [v / v.norm() for v in torch.cat([z0, z1])]
    n, total = len(z0), 0
    for i, anchor in enumerate(rows):
        others = torch.stack([anchor @ other / temperature for j, other in enumerate(rows) if j != i])
        partner = anchor @ rows[(i + n) % (2 * n)] / temperature
        total = total + others.logsumexp(0) - partner
    return total / (2 * n)


def loss_by_cosine_similarity(z0, z1, temperature):
    z = torch.cat([z0, z1])
    logits = F.cosine_similarity(z[:, None], z[None], dim=-1) / temperature
    logits = logits - 1e9 * torch.eye(len(z))
    p = logits.log_softmax(1)
    return -(p.diagonal(len(z0)).sum() + p.diagonal(-len(z0)).sum()) / len(z)


def loss_by_halves(z0, z1, temperature):
    a, b = (z.double() / z.double().norm(dim=1, keepdim=True) for z in (z0, z1))
    n, total = len(a), 0
    for one, other in ((a, b), (b, a)):
        own = (one @ one.T / temperature)[~torch.eye(n, dtype=torch.bool)].view(n, n - 1)
        total = total + F.cross_entropy(torch.cat([one @ other.T / temperature, own], dim=1), torch.arange(n))
    return (total / 2).float()


def parts(z0, z1, temperature, diagonal=-math.inf, dim=1):
    z = F.normalize(torch.cat([z0, z1]), dim=dim)
    logits = (z @ z.T / temperature).masked_fill(torch.eye(len(z), dtype=torch.bool), diagonal)
    return logits, (torch.arange(len(z)) + len(z0)) % len(z)


def loss_unstable(z0, z1, temperature):
    logits, targets = parts(z0, z1, temperature, diagonal=0.0)
    weights = logits.exp() * (1 - torch.eye(len(logits)))
    return -(weights.gather(1, targets[:, None])[:, 0] / weights.sum(1)).log().mean()


def loss_diagonal_kept(z0, z1, temperature):
    z = F.normalize(torch.cat([z0, z1]))
    return F.cross_entropy(z @ z.T / temperature, parts(z0, z1, 1)[1])


def loss_diagonal_zero(z0, z1, temperature):
    return F.cross_entropy(*parts(z0, z1, temperature, diagonal=0.0))


def loss_not_normalised(z0, z1, temperature):
    z = torch.cat([z0, z1])
    return F.cross_entropy((z @ z.T / temperature).fill_diagonal_(-math.inf), parts(z0, z1, 1)[1])


def loss_normalised_over_batch(z0, z1, temperature):
    return F.cross_entropy(*parts(z0, z1, temperature, dim=0))


def loss_one_view(z0, z1, temperature):
    logits, targets = parts(z0, z1, temperature)
    return F.cross_entropy(logits[: len(z0)], targets[: len(z0)])


def loss_other_view_only(z0, z1, temperature):
    logits = F.normalize(z0) @ F.normalize(z1).T / temperature
    targets = torch.arange(len(z0))
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def loss_twice(z0, z1, temperature):
    return F.cross_entropy(*parts(z0, z1, temperature), reduction="sum") / len(z0)


def loss_summed(z0, z1, temperature):
    return F.cross_entropy(*parts(z0, z1, temperature), reduction="sum")


def loss_negative(z0, z1, temperature):
    return -F.cross_entropy(*parts(z0, z1, temperature))


def loss_multiplied(z0, z1, temperature):
    z = F.normalize(torch.cat([z0, z1]))
    return F.cross_entropy((z @ z.T * temperature).fill_diagonal_(-math.inf), parts(z0, z1, 1)[1])


def loss_without_temperature(z0, z1, temperature):
    return F.cross_entropy(*parts(z0, z1, 1.0))


def loss_decoupled(z0, z1, temperature):
    logits, targets = parts(z0, z1, temperature)
    others = logits.scatter(1, targets[:, None], -math.inf)
    return (others.logsumexp(1) - logits.gather(1, targets[:, None])[:, 0]).mean()


def loss_positive_twice(z0, z1, temperature):
    logits, targets = parts(z0, z1, temperature)
    positive = logits.gather(1, targets[:, None])
    return (torch.cat([logits, positive], 1).logsumexp(1) - positive[:, 0]).mean()


def loss_log_of_mean(z0, z1, temperature):
    logits, targets = parts(z0, z1, temperature)
    return -logits.softmax(1).gather(1, targets[:, None]).mean().log()


def loss_own_index(z0, z1, temperature):
    z = F.normalize(torch.cat([z0, z1]))
    return F.cross_entropy(z @ z.T / temperature, torch.arange(len(z)))


def loss_own_index_masked(z0, z1, temperature):
    return F.cross_entropy(parts(z0, z1, temperature)[0], torch.arange(2 * len(z0)))


def loss_pairs_as_neighbours(z0, z1, temperature):
    return F.cross_entropy(parts(z0, z1, temperature)[0], torch.arange(2 * len(z0)) ^ 1)


def loss_as_number(z0, z1, temperature):
    return my_nt_xent(z0, z1, temperature).item()


def loss_without_graph(z0, z1, temperature):
    return my_nt_xent(z0, z1, temperature).detach()


def loss_one_view_detached(z0, z1, temperature):
    return my_nt_xent(z0, z1.detach(), temperature)


def loss_candidates_detached(z0, z1, temperature):
    z = F.normalize(torch.cat([z0, z1]))
    logits = (z @ z.detach().T / temperature).masked_fill(torch.eye(len(z), dtype=torch.bool), -math.inf)
    return F.cross_entropy(logits, parts(z0, z1, 1)[1])


def loss_per_anchor(z0, z1, temperature):
    return F.cross_entropy(*parts(z0, z1, temperature), reduction="none")


def loss_off_by_a_little(z0, z1, temperature):
    return my_nt_xent(z0, z1, temperature) + 0.05


# --- 3.2 ---


def geometry_from_cosines(z0, z1):
    a, b = (z / z.norm(dim=1, keepdim=True) for z in (z0, z1))
    squared = (2 - 2 * a @ a.T)[~torch.eye(len(a), dtype=torch.bool)]
    return (2 - 2 * (a * b).sum(1)).mean(), torch.logsumexp(-2 * squared, 0) - math.log(len(squared))


def geometry_by_loops(z0, z1):
    a, b = F.normalize(z0.double()), F.normalize(z1.double())
    n = len(a)
    near = [math.exp(-2 * float(((a[i] - a[j]) ** 2).sum())) for i in range(n) for j in range(i)]
    return sum(float(((a[i] - b[i]) ** 2).sum()) for i in range(n)) / n, math.log(sum(near) / len(near))


def geometry(align=None, uniform=None):
    """An answer with one of the two measures changed; both get normalised rows."""

    def answer(z0, z1):
        a, b = F.normalize(z0), F.normalize(z1)
        right = alignment_and_uniformity(z0, z1)
        return align(a, b) if align else right[0], uniform(a, b) if uniform else right[1]

    return answer


def spread(power=2, factor=-2.0):
    return lambda a, b: (factor * torch.pdist(a) ** power).exp().mean().log()


def geometry_not_normalised(z0, z1):
    return (z0 - z1).pow(2).sum(1).mean(), (-2 * torch.pdist(z0).pow(2)).exp().mean().log()


def geometry_uniformity_not_normalised(z0, z1):
    return alignment_and_uniformity(z0, z1)[0], geometry_not_normalised(z0, z1)[1]


def geometry_over_batch(z0, z1):
    return geometry_not_normalised(F.normalize(z0, dim=0), F.normalize(z1, dim=0))


def geometry_swapped(z0, z1):
    return alignment_and_uniformity(z0, z1)[::-1]


def geometry_one_value(z0, z1):
    return alignment_and_uniformity(z0, z1)[0]


# --- 3.3 ---


def knn_by_loops(bank, bank_labels, queries, k, temperature):
    predicted = []
    for query in queries:
        similarity = F.cosine_similarity(bank, query.unsqueeze(0))
        votes = {}
        for i in similarity.argsort(descending=True)[:k].tolist():
            c = int(bank_labels[i])
            votes[c] = votes.get(c, 0.0) + math.exp(float(similarity[i]) / temperature)
        predicted.append(max(votes, key=votes.get))
    return torch.tensor(predicted)


def knn_by_distance(bank, bank_labels, queries, k, temperature):
    bank, queries = F.normalize(bank.double()), F.normalize(queries.double())
    distance, index = torch.cdist(queries, bank).topk(k, largest=False)
    weights = ((2 - distance**2) / 2 / temperature).exp()
    return (F.one_hot(bank_labels)[index] * weights.unsqueeze(-1)).sum(1).argmax(1)


def voted(bank, labels, queries, k, t, weigh=lambda s, t: (s / t).exp(), largest=True, dim=1):
    similarity = F.normalize(queries, dim=dim) @ F.normalize(bank, dim=dim).T
    values, index = similarity.topk(k, largest=largest)
    return (F.one_hot(labels)[index] * weigh(values, t).unsqueeze(-1)).sum(1)


def knn(**settings):
    return lambda bank, bank_labels, queries, k, temperature: voted(bank, bank_labels, queries, k, temperature, **settings).argmax(1)


def knn_not_normalised(bank, bank_labels, queries, k, temperature):
    values, index = (queries @ bank.T).topk(k)
    return (F.one_hot(bank_labels)[index] * (values / temperature).softmax(1).unsqueeze(-1)).sum(1).argmax(1)


def knn_bank_not_normalised(bank, bank_labels, queries, k, temperature):
    values, index = (F.normalize(queries) @ bank.T).topk(k)
    return (F.one_hot(bank_labels)[index] * (values / temperature).exp().unsqueeze(-1)).sum(1).argmax(1)


def knn_queries_not_normalised(bank, bank_labels, queries, k, temperature):
    values, index = (queries @ F.normalize(bank).T).topk(k)
    return (F.one_hot(bank_labels)[index] * (values / temperature).exp().unsqueeze(-1)).sum(1).argmax(1)


def knn_majority(bank, bank_labels, queries, k, temperature):
    index = (F.normalize(queries) @ F.normalize(bank).T).topk(k).indices
    return F.one_hot(bank_labels)[index].sum(1).argmax(1)


def knn_most_common(bank, bank_labels, queries, k, temperature):
    classes = bank_labels[(F.normalize(queries) @ F.normalize(bank).T).topk(k).indices]
    return torch.tensor([Counter(row).most_common(1)[0][0] for row in classes.tolist()])


def knn_nearest_only(bank, bank_labels, queries, k, temperature):
    return bank_labels[(F.normalize(queries) @ F.normalize(bank).T).argmax(1)]


def knn_all_vote(bank, bank_labels, queries, k, temperature):
    return ((F.normalize(queries) @ F.normalize(bank).T / temperature).exp() @ F.one_hot(bank_labels).float()).argmax(1)


def knn_positions(bank, bank_labels, queries, k, temperature):
    return (F.normalize(queries) @ F.normalize(bank).T).argmax(1)


def knn_votes(bank, bank_labels, queries, k, temperature):
    return voted(bank, bank_labels, queries, k, temperature)


def knn_scores(bank, bank_labels, queries, k, temperature):
    return voted(bank, bank_labels, queries, k, temperature).max(1).values


def knn_neighbours(bank, bank_labels, queries, k, temperature):
    return bank_labels[(F.normalize(queries) @ F.normalize(bank).T).topk(k).indices]


def knn_int32(bank, bank_labels, queries, k, temperature):
    return knn_predict(bank, bank_labels, queries, k, temperature).int()


def knn_squeezed(bank, bank_labels, queries, k, temperature):
    return knn_predict(bank, bank_labels, queries, k, temperature).squeeze()


def knn_fewer(bank, bank_labels, queries, k, temperature):
    return knn_predict(bank, bank_labels, queries, k - 2, temperature)


RIGHT = [
    ("3.1", my_nt_xent),
    ("3.1", loss_by_loops),
    ("3.1", loss_by_cosine_similarity),
    ("3.1", loss_by_halves),
    ("3.2", alignment_and_uniformity),
    ("3.2", geometry_from_cosines),
    ("3.2", geometry_by_loops),
    ("3.3", knn_predict),
    ("3.3", knn_by_loops),
    ("3.3", knn_by_distance),
    ("3.3", knn()),
]

WRONG = [
    ("3.1", loss_diagonal_kept, "diagonal is not masked"),
    ("3.1", loss_diagonal_zero, "masked with 0"),
    ("3.1", loss_not_normalised, "not normalised"),
    ("3.1", loss_normalised_over_batch, "over the batch"),
    ("3.1", loss_one_view, "one view are anchors"),
    ("3.1", loss_other_view_only, "rows of the other view only"),
    ("3.1", loss_twice, "Twice the value"),
    ("3.1", loss_summed, "sum over the anchors"),
    ("3.1", loss_negative, "sign is turned round"),
    ("3.1", loss_multiplied, "multiplied by the temperature"),
    ("3.1", loss_without_temperature, "temperature is ignored"),
    ("3.1", loss_decoupled, "missing from the denominator"),
    ("3.1", loss_positive_twice, "counted twice"),
    ("3.1", loss_log_of_mean, "logarithm of the mean"),
    ("3.1", loss_own_index, "target of row i"),
    ("3.1", loss_as_number, "plain number"),
    ("3.1", loss_without_graph, "no gradient comes back"),
    ("3.1", loss_one_view_detached, "one of the two views"),
    ("3.1", loss_candidates_detached, "its gradient is not"),
    ("3.1", loss_per_anchor, "single number"),
    ("3.1", loss_unstable, "overflows"),
    ("3.1", loss_off_by_a_little, "log(2N − 1)"),
    ("3.2", geometry_not_normalised, "not normalised"),
    ("3.2", geometry_over_batch, "over the batch"),
    ("3.2", geometry(lambda a, b: (a - b).norm(dim=1).mean()), "alignment takes the distance as it is"),
    ("3.2", geometry(lambda a, b: (a - b).pow(2).sum()), "sum over the images"),
    ("3.2", geometry(F.mse_loss), "D times too small"),
    ("3.2", geometry(lambda a, b: -(a - b).pow(2).sum(1).mean()), "alignment has the wrong sign"),
    ("3.2", geometry(lambda a, b: F.cosine_similarity(a, b).mean()), "cosine similarity"),
    ("3.2", geometry(lambda a, b: torch.cdist(a, b).pow(2).mean()), "every row with every row"),
    ("3.2", geometry(uniform=spread(power=1)), "uniformity takes the distances as they are"),
    ("3.2", geometry(uniform=lambda a, b: (-2 * torch.cdist(a, a).pow(2)).exp().mean().log()), "compared with itself"),
    ("3.2", geometry(uniform=lambda a, b: (-2 * torch.pdist(a).pow(2)).exp().log().mean()), "mean of logarithms"),
    ("3.2", geometry(uniform=spread(factor=-1.0)), "factor 2 is missing"),
    ("3.2", geometry(uniform=lambda a, b: -spread()(a, b)), "uniformity has the wrong sign"),
    ("3.2", geometry(uniform=spread(factor=2.0)), "sign in the exponent"),
    ("3.2", geometry(uniform=lambda a, b: (-2 * torch.pdist(a).pow(2)).exp().sum().log()), "sums over the pairs"),
    ("3.2", geometry(uniform=lambda a, b: (-2 * torch.pdist(a).pow(2)).exp().mean()), "logarithm is missing"),
    ("3.2", geometry(uniform=lambda a, b: spread()(torch.cat([a, b]), b)), "rows of both views"),
    ("3.2", geometry(uniform=lambda a, b: spread()(b, a)), "uniformity of z1"),
    ("3.2", geometry(uniform=lambda a, b: (-2 * torch.cdist(a, b).pow(2)).exp().mean().log()), "compares z0 with z1"),
    ("3.2", geometry(uniform=spread(factor=-3.0)), "value of the uniformity is off"),
    ("3.2", geometry(align=lambda a, b: (a - b).pow(2).sum() / 7), "Right for 7 rows"),
    ("3.2", geometry_swapped, "other order"),
    ("3.2", geometry_one_value, "Expected"),
    ("3.3", knn_not_normalised, "not all normalised"),
    ("3.3", knn(dim=0), "Normalised over the rows"),
    ("3.3", knn_majority, "the same vote"),
    ("3.3", knn(weigh=lambda s, t: s), "the similarities themselves"),
    ("3.3", knn(largest=False), "least similar"),
    ("3.3", knn(weigh=lambda s, t: (-s / t).exp()), "wrong sign"),
    ("3.3", knn(weigh=lambda s, t: s.exp()), "temperature is ignored"),
    ("3.3", knn(weigh=lambda s, t: (s * t).exp()), "multiplied by the temperature"),
    ("3.3", knn_nearest_only, "Only the nearest neighbour"),
    ("3.3", knn_all_vote, "Every row of the bank"),
    ("3.3", knn_positions, "positions in the bank"),
    ("3.3", knn_votes, "votes of every class"),
    ("3.3", knn_scores, "scores, and not classes"),
    ("3.3", knn_neighbours, "one value for each neighbour"),
    ("3.3", knn_int32, "have to be int64"),
    ("3.3", knn_squeezed, "single query"),
    ("3.3", knn_fewer, "predictions differ"),
]

SAME_HINT = [
    ("3.1", loss_own_index_masked, "target of row i"),
    ("3.1", loss_pairs_as_neighbours, "target of row i"),
    ("3.2", geometry_uniformity_not_normalised, "not normalised"),
    ("3.3", knn_most_common, "the same vote"),
    ("3.3", knn_bank_not_normalised, "not all normalised"),
    ("3.3", knn_queries_not_normalised, "not all normalised"),
]


test_right_answers_are_accepted, test_each_mistake_gets_its_own_hint, test_hints_differ_within_an_exercise = standard_tests(
    EXERCISES, RIGHT, WRONG, SAME_HINT
)


def test_untouched_functions_are_not_attempted():
    def my_nt_xent(z0, z1, temperature):
        """The loss of SimCLR."""
        ...

    def alignment_and_uniformity(z0, z1): ...

    def knn_predict(bank, bank_labels, queries, k, temperature):
        raise NotImplementedError

    for number, answer in (("3.1", my_nt_xent), ("3.2", alignment_and_uniformity), ("3.3", knn_predict)):
        assert judged(number, answer)[0] == "not attempted"


def test_gradients_are_checked_where_autograd_is_off():
    with torch.no_grad():
        assert judged("3.1", my_nt_xent)[0] == "done"


def test_references_give_known_values():
    rows = torch.ones(4, 3)
    assert my_nt_xent(rows, 2 * rows, 0.5).item() == pytest.approx(math.log(7), rel=1e-5)
    z = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    alignment, uniformity = alignment_and_uniformity(z, z.flip(0))
    assert (alignment.item(), uniformity.item()) == (pytest.approx(2.0), pytest.approx(-4.0))
    bank, labels = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.5, 0.9]]), torch.tensor([1, 0, 0])
    query = torch.tensor([[5.0, 0.5]])
    assert knn_predict(bank, labels, query, 3, 0.1).tolist() == [1] and knn_predict(bank, labels, query, 3, 10.0).tolist() == [0]
