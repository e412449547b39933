"""Contraction factors against dense Hessians, and the comparison of orders against its parts."""

import copy
import itertools
import math

import pytest
import torch
from order_problems import backward_twin, dense_derivatives, flat, here, mlp, regression_batches, twin
from torch import nn

from hemstitch.errors import MisuseError
from hemstitch.order import (
    BackwardSGD,
    OrderProbe,
    compare_orders,
    contraction_along,
    contraction_factor,
    fixed_tail_iterates,
)

MSE = nn.MSELoss()


@pytest.mark.parametrize("lr", [0.1, 1.0, 5.0])
def test_contraction_factor_is_the_dense_norm(lr):
    model, batches = mlp(2, 5, 1), regression_batches(1)
    _, (hessian,) = dense_derivatives(model, batches)
    dense = float(torch.linalg.matrix_norm(torch.eye(len(hessian)) - lr * hessian, 2))
    assert contraction_factor(model, MSE, batches[0], lr, num_iterations=3000) == pytest.approx(dense, rel=1e-4)


def test_linear_model_contracts_along_the_run_as_its_curvature_says():
    model = nn.Linear(1, 1, bias=False).double()
    x, y = torch.tensor([[2.0]]).double(), torch.tensor([[1.0]]).double()
    factors = contraction_along(model, MSE, [(x, y)] * 5, 0.05)  # curvature 2 x^2 = 8
    assert factors == pytest.approx([abs(1 - 0.05 * 8)] * 5, rel=1e-6)


def test_factors_along_a_run_multiply_to_the_distance_of_two_runs():
    model, batches = mlp(2, 5, 1), regression_batches(10)
    factors = contraction_along(model, MSE, batches, 0.3, distance=1e-6, seed=3)
    generator = torch.Generator().manual_seed(3)
    shift = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in model.parameters()]
    length = torch.cat([s.reshape(-1) for s in shift]).norm()
    ends = [twin(model, MSE, batches, lambda p: torch.optim.SGD(p, lr=0.3))]
    with torch.no_grad():
        for p, s in zip(model.parameters(), shift):
            p.add_(s, alpha=float(1e-6 / length))
    ends.append(twin(model, MSE, batches, lambda p: torch.optim.SGD(p, lr=0.3)))
    apart = torch.cat([(ends[1][k] - ends[0][k]).reshape(-1) for k in ends[0]]).norm()
    assert float(apart / 1e-6) == pytest.approx(math.prod(factors), rel=1e-3)


def test_comparison_evaluates_each_order_and_counts_its_passes():
    model, batches = mlp(2, 5, 1), regression_batches(12)
    x, y = regression_batches(1, batch_size=20, seed=9)[0]

    def evaluate(m):
        with torch.no_grad():
            return MSE(m(x), y)

    def value(parameters):
        with torch.no_grad():
            return float(MSE(torch.func.functional_call(model, parameters, (x,)), y))

    comparison = compare_orders(model, MSE, batches, 0.1, [2, 8, 12], evaluate, tail=3)
    assert comparison.steps == [2, 8, 12]
    expected = [value(backward_twin(model, MSE, batches, k, 0.1)) for k in comparison.steps]
    assert comparison.backward == pytest.approx(expected, abs=1e-14)
    expected = [value(twin(model, MSE, batches[:k], lambda p: torch.optim.SGD(p, lr=0.1))) for k in comparison.steps]
    assert comparison.forward == pytest.approx(expected, abs=1e-14)
    tails = fixed_tail_iterates(model, MSE, batches, 0.1, [2, 8, 12], tail=3)
    assert comparison.fixed_tail == pytest.approx([value(tails[k]) for k in comparison.steps], abs=1e-14)
    assert comparison.passes == {"forward": 12, "backward": 22, "fixed_tail": 2 + 9 + 3 + 3}
    spreads = [torch.tensor(curve).std() for curve in (comparison.forward, comparison.backward, comparison.fixed_tail)]
    assert comparison.spread == pytest.approx(float(spreads[0] / spreads[1]), rel=1e-5)
    assert comparison.tail_spread == pytest.approx(float(spreads[2] / spreads[1]), rel=1e-5)


def test_one_step_has_no_spread():
    with pytest.raises(MisuseError, match="two steps"):
        compare_orders(mlp(2, 3, 1), MSE, regression_batches(4), 0.1, [4], lambda m: 0.0)


@pytest.mark.parametrize("mode", ["exact", "fixed_tail"])
def test_probe_sees_both_orders_and_the_stretch_of_the_newest_map(mode):
    model, batches = mlp(2, 4, 1), regression_batches(6)
    start, lr = copy.deepcopy(model), 0.1
    order = BackwardSGD(model, MSE, torch.optim.SGD(model.parameters(), lr=lr), mode=mode, tail=2)
    probe = OrderProbe(order, lambda m: float(here(m).norm()), distance=1e-6)
    found = []
    for batch in batches:
        order.observe(batch)
        before = here(model)
        found.append(probe.look())
        assert torch.equal(here(model), before)

    def norm(applied):
        return float(flat(twin(start, MSE, applied, lambda p: torch.optim.SGD(p, lr=lr))).norm())

    tail = 6 if mode == "exact" else 2
    forward = [norm(batches[:k] if mode == "exact" else batches[2:k]) for k in range(1, 7)]
    backward = [norm(batches[tail:k] + batches[: min(tail, k)][::-1]) for k in range(1, 7)]
    assert [f.forward for f in found] == pytest.approx(forward)
    assert [f.backward for f in found] == pytest.approx(backward)
    assert math.isnan(found[1].spread)
    forward, backward = (sum((b - a) ** 2 for a, b in itertools.pairwise(x)) for x in (forward, backward))
    assert found[-1].spread == pytest.approx((forward / backward) ** 0.5)


def test_probe_finds_the_largest_stretch_of_a_linear_model():
    torch.manual_seed(0)
    model = nn.Linear(3, 1, bias=False).double()
    x = torch.rand(20, 3, dtype=torch.float64)
    curvature = torch.linalg.eigvalsh(2 * x.T @ x / 20)
    order = BackwardSGD(model, MSE, torch.optim.SGD(model.parameters(), lr=0.1), start=0)
    probe = OrderProbe(order, lambda m: 0.0)
    for _ in range(30):
        order.observe((x, x.sum(1, keepdim=True)))
        found = probe.look()
    assert found.contraction == pytest.approx(float((1 - 0.1 * curvature).abs().max()), rel=1e-4)


def test_no_probe_without_a_backward_trajectory():
    model, (batch,) = mlp(2, 4, 1), regression_batches(1)
    order = BackwardSGD(model, MSE, torch.optim.SGD(model.parameters(), lr=0.1), start=3)
    with pytest.raises(MisuseError, match="observe"):
        order.stretched({})
    order.observe(batch)
    assert OrderProbe(order, lambda m: 0.0).look() is None
