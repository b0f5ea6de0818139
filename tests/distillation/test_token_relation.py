import math

import pytest
import torch
from helpers import Net, equal, fit
from torch import nn

from lightning_objectives.callbacks import Distill
from lightning_objectives.distillation import TokenRelationDistillation
from lightning_objectives.distillation.token_relation import _local


def built(own=3, other=4, **settings):
    torch.manual_seed(0)
    method = TokenRelationDistillation(**settings)
    method.build(hidden=(own,), teacher_hidden=(other,))
    return method


def only(**weights):
    return {"inner_weight": 0.0, "local_weight": 0.0, "global_weight": 0.0} | weights


def called(method, own, other, seed=0):
    return method([own], [other], torch.Generator().manual_seed(seed))


def softmax(row):
    powers = [math.exp(value) for value in row]
    return [power / sum(powers) for power in powers]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b))


def unit(row):
    return [value / math.sqrt(dot(row, row)) for value in row]


def slow_graph(tokens, k, sigma):
    """For each token the nearness of the others, in order; 0 beyond the k nearest."""
    tokens, graph = [unit(token) for token in tokens], []
    for i, token in enumerate(tokens):
        squares = {j: sum((a - b) ** 2 for a, b in zip(token, other)) for j, other in enumerate(tokens) if j != i}
        nearest = sorted(squares, key=squares.get)[:k]
        graph.append([math.exp(-squares[j] / (2 * sigma)) if j in nearest else 0.0 for j in squares])
    return graph


def maps():
    generator = torch.Generator().manual_seed(3)
    own = torch.randn(3, 3, 2, 2, generator=generator, dtype=torch.float64)
    return own, torch.randn(3, 4, 2, 2, generator=generator, dtype=torch.float64)


def rows(values):
    """For each image the list of its tokens."""
    return values.flatten(2).mT.tolist()


def test_the_inner_term_equals_a_slow_loop():
    own, other = maps()
    expected = []
    for ours, theirs in zip(rows(own), rows(other)):
        squares = [
            (a - b) ** 2
            for f, g in zip(ours, theirs)
            for a, b in zip(
                softmax([dot(f, x) / math.sqrt(3) for x in ours]), softmax([dot(g, x) / math.sqrt(4) for x in theirs])
            )
        ]
        expected.append(sum(squares) / 16)
    values = called(built(**only(inner_weight=1.0)), own, other)
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(("k", "sigma"), [(2, 0.5), (5, 2.0), (100, 1.0)])
def test_the_local_term_equals_a_slow_loop(k, sigma):
    """All tokens are drawn: the order of the draws then means nothing."""
    own, other = maps()
    graphs = [slow_graph([token for image in rows(values) for token in image], k, sigma) for values in (own, other)]
    by_token = [
        sum(a * math.log(a / b) for a, b in zip(softmax(ours), softmax(theirs))) for ours, theirs in zip(*graphs)
    ]
    expected = torch.tensor(by_token, dtype=torch.float64).reshape(3, 4).mean(1)
    method = built(neighbours=k, bandwidth=sigma, **only(local_weight=1.0))
    torch.testing.assert_close(called(method, own, other), expected)


def test_the_global_term_equals_a_slow_loop():
    own, other = maps()
    method = built(temperature=0.2, **only(global_weight=1.0))
    ours = [unit(token) for token in method.projections[0](own.float().flatten(2).mT).flatten(0, 1).tolist()]
    theirs = [unit(token) for image in rows(other) for token in image]
    by_token = [-math.log(softmax([dot(z, g) / 0.2 for g in theirs])[i]) for i, z in enumerate(ours)]
    expected = torch.tensor(by_token).reshape(3, 4).mean(1)
    torch.testing.assert_close(called(method, own, other).float(), expected, rtol=1e-4, atol=1e-5)


def test_a_graph_by_hand():
    """A row (1, 0) beside (0, 1), and itself never: softmax of (1, 0) is (e, 1) / (e + 1)."""
    graph, other = torch.tensor([[-1e4, 1.0, 0.0]]), torch.tensor([[-1e4, 0.0, 1.0]])
    share = math.e / (math.e + 1)
    torch.testing.assert_close(_local(graph, other), torch.tensor([share - (1 - share)]))


def test_the_weights_and_the_layers_add_up():
    own, other = maps()
    weights = {"inner_weight": 3.0, "local_weight": 5.0, "global_weight": 0.5}
    parts = sum(called(built(**only(**{name: weight})), own, other) for name, weight in weights.items())
    torch.testing.assert_close(called(built(**weights), own, other), parts)
    two = TokenRelationDistillation(**weights)
    two.build(hidden=(3, 3), teacher_hidden=(4, 4))
    for projection in two.projections:
        projection.load_state_dict(built().projections[0].state_dict())
    both = two([own, own], [other, other], torch.Generator().manual_seed(0))
    torch.testing.assert_close(both, 2 * parts)


def test_a_student_with_the_teachers_relations_has_no_distance():
    """A rotation of the channels changes no relation."""
    own, _ = maps()
    turn, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    turned = torch.einsum("ij,njhw->nihw", turn, own)
    for weights in ({"inner_weight": 1.0}, {"local_weight": 1.0}):
        values = called(built(other=3, **only(**weights)), turned, own)
        torch.testing.assert_close(values, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-9)


def test_the_same_places_are_drawn_in_both_networks():
    """Each image has one token of its own direction; with one token drawn the right pairs have the product 1."""
    own = torch.eye(6).reshape(3, 2, 6).mT  # (3, 6 channels, 2 places)
    method = built(own=6, other=6, tokens=1, temperature=0.01, **only(global_weight=1.0))
    nn.init.eye_(method.projections[0].weight)
    nn.init.zeros_(method.projections[0].bias)
    for seed in range(5):
        assert called(method, own, own, seed=seed).max() < 1e-6
    seen = {tuple(called(built(tokens=1), *(m.float() for m in maps()), seed=seed).tolist()) for seed in range(5)}
    assert len(seen) > 1


def test_layers_without_places_compare_the_samples():
    own, other = torch.randn(5, 3), torch.randn(5, 4)
    values = called(built(), own, other)
    torch.testing.assert_close(values, called(built(), own[:, :, None], other[:, :, None]))


def test_one_token_teaches_nothing():
    own = torch.randn(1, 3, requires_grad=True)
    values = called(built(), own, torch.randn(1, 4))
    values.sum().backward()
    assert values.tolist() == [0.0]
    assert own.grad.abs().max() == 0


def test_gradients_are_finite_and_none_flows_to_the_teacher():
    method, (own, other) = built(), maps()
    own, other = (values.float() for values in (own, other))
    own[0] = 0
    other[1] = 0
    for scale in (1.0, 1e4):
        student, teacher = (scale * own).requires_grad_(), (scale * other).requires_grad_()
        called(method, student, teacher).sum().backward()
        assert teacher.grad is None
        assert student.grad.isfinite().all()
        assert student.grad.abs().sum() > 0


def test_in_a_training():
    def teacher():
        torch.manual_seed(5)
        return nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 3))

    callback = Distill(TokenRelationDistillation(), teacher=teacher(), layers="backbone.0", teacher_layers="0")
    net, _ = fit(callback)
    assert not equal(net, fit(net=Net)[0])
    assert callback.method.projections[0].weight.shape == (9, 6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokens": 0}, "tokens=0 must be >= 1"),
        ({"neighbours": 0}, "neighbours=0 must be >= 1"),
        ({"bandwidth": 0.0}, r"bandwidth=0\.0 must be > 0 and finite"),
        ({"temperature": math.nan}, "temperature=nan must be > 0 and finite"),
        ({"local_weight": -1.0}, r"local_weight=-1\.0 must be >= 0 and finite"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ValueError, match=message):
        TokenRelationDistillation(**settings)
    with pytest.raises(ValueError, match="1 layers of the student cannot be compared with 2 of the teacher"):
        built()([torch.ones(2, 3)], [torch.ones(2, 4), torch.ones(2, 4)], torch.Generator())
