"""SGD: its contract, torch's SGD as special case, bounds on the change, weight decay, momentum, bad numbers."""

import pytest
import torch
from torch import nn

from hemstitch.errors import ConfigError, MisuseError
from hemstitch.optim import SGD, component_groups
from hemstitch.testing import OptimizerContract, tiny_mlp

AT_LEAST_ZERO = ("lr", "l2", "lr_factor", "max_change", "global_max_change", "num_sequences")


class TestSGD(OptimizerContract):
    bad_options = (*({option: value} for option in AT_LEAST_ZERO for value in (-1.0, float("nan"))),
                   {"momentum": 1.0}, {"momentum": -0.1})

    def make(self, params, **options):
        return SGD(params, **{"lr": 0.2} | options)


class TestMomentumSGD(OptimizerContract):
    def make(self, params, **options):
        return SGD(params, **{"lr": 0.3, "momentum": 0.5, "l2": 1e-3, "max_change": 0.1} | options)


class TestComponents(OptimizerContract):
    def make(self, params, **options):
        return SGD(params, **{"lr": 0.2} | options)

    def build(self, problem):
        return SGD(component_groups(problem.model, max_change=0.05, l2=1e-3), lr=0.2, momentum=0.5)


def flat(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).clone()


def train(problem, optimizer, steps=6):
    for index in range(steps):
        optimizer.step(problem.closure(optimizer, index))
    return flat(problem.model)


def test_without_bounds_it_is_torch_sgd():
    """Momentum: torch's with the learning rate times 1 - m; weight decay: torch's is 2 l2 n."""
    ours, theirs = tiny_mlp(dtype=torch.float64), tiny_mlp(dtype=torch.float64)
    got = train(ours, SGD(ours.model.parameters(), lr=0.2, momentum=0.5, l2=0.01, num_sequences=3, global_max_change=0))
    expected = train(theirs, torch.optim.SGD(theirs.model.parameters(), lr=0.1, momentum=0.5, weight_decay=0.06))
    torch.testing.assert_close(got, expected)


def one_step(vectors, gradients, **options):
    """Move of each vector, a component each."""
    parameters = [nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in vectors]
    for p, gradient in zip(parameters, gradients):
        p.grad = torch.tensor(gradient, dtype=torch.float64)
    optimizer = SGD([{"params": [p]} for p in parameters], **{"lr": 1.0, "global_max_change": 0} | options)
    optimizer.step()
    return [(p.detach() - torch.tensor(v)).tolist() for p, v in zip(parameters, vectors)], optimizer.report()


def test_component_bound_then_global_bound():
    moves, report = one_step([[0.0, 0.0], [0.0]], [[3.0, 4.0], [12.0]], max_change=6.0, global_max_change=61**0.5 / 2)
    # lengths 5 and 12 -> 5 and 6, together sqrt(61), halved by the global bound
    assert moves == [pytest.approx([-1.5, -2.0]), pytest.approx([-3.0])]
    assert report.num_component == {"1": 1} and report.num_global == 1 and report.last_change == {"0": 5.0, "1": 12.0}


def test_bounds_hold_whatever_the_momentum():
    problem = tiny_mlp()
    optimizer = SGD(component_groups(problem.model, max_change=0.02), lr=5.0, momentum=0.9, global_max_change=0.03)
    for index in range(10):
        before = flat(problem.model)
        optimizer.step(problem.closure(optimizer, index))
        assert (flat(problem.model) - before).norm() <= 0.03 * (1 + 1e-5)
    assert optimizer.report().num_global > 0


def test_one_component_that_is_not_finite_refuses_the_whole_step():
    moves, report = one_step([[1.0], [1.0]], [[1.0], [float("inf")]])
    assert moves == [[0.0], [0.0]] and report.num_refused == 1


def test_learning_rate_factor():
    moves, _ = one_step([[0.0]], [[1.0]], lr=0.5, lr_factor=0.1)
    assert moves == [pytest.approx([-0.05])]


def test_momentum_of_a_bfloat16_parameter_is_float32():
    parameter = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    parameter.grad = torch.full((4,), 1e-3, dtype=torch.bfloat16)
    optimizer = SGD([parameter], lr=0.1, momentum=0.9)
    optimizer.step()
    assert optimizer.state[parameter]["velocity"].dtype == torch.float32


def test_state_of_a_newer_version_is_refused():
    optimizer = SGD(tiny_mlp().model.parameters())
    with pytest.raises(ConfigError, match="upgrade"):
        optimizer.load_state_dict(optimizer.state_dict() | {"version": 99})


def test_sparse_gradients_are_refused():
    embedding = nn.Embedding(5, 2, sparse=True)
    optimizer = SGD(embedding.parameters())
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(MisuseError, match="sparse=False"):
        optimizer.step()


# -- component groups ------------------------------------------------------------------------------------------

def network():
    return nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), nn.Linear(3, 1))


def test_one_group_per_layer():
    groups = component_groups(network(), lr=0.1)
    assert [g["name"] for g in groups] == ["0", "2.0", "2.1", "3"]
    assert groups[1]["param_names"] == ["2.0.weight", "2.0.bias"]
    assert all(g["max_change"] == 0.75 and g["lr"] == 0.1 for g in groups)


def test_overrides_by_regular_expression_last_wins():
    groups = component_groups(network(), overrides={r"^2": {"l2": 1.0, "lr": 1.0}, r"1$": {"l2": 2.0}})
    assert [g.get("l2") for g in groups] == [None, 1.0, 2.0, None] and groups[2]["lr"] == 1.0


def test_override_without_a_layer_is_refused():
    with pytest.raises(ConfigError, match="the layers are 0, 2.0, 2.1, 3"):
        component_groups(network(), overrides={"output": {"lr": 1.0}})


def test_shared_parameters_appear_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    assert [len(g["params"]) for g in component_groups(model)] == [2, 1]


def test_groups_suit_any_torch_optimizer():
    problem = tiny_mlp()
    optimizer = torch.optim.AdamW(component_groups(problem.model, lr=1e-2))
    before = problem.total()
    train(problem, optimizer, 20)
    assert problem.total() < before
