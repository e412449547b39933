"""The statements of the theory, each on maps for which its right-hand side is known."""

import pytest
import torch
from order_problems import dense_derivatives, flat, here, mlp, regression_batches, slope, twin
from scipy.stats import ks_2samp
from torch import nn

from hemstitch.order import (
    Objective,
    backward_iterates,
    bracket_iterate,
    contraction_factor,
    fixed_tail_iterates,
    forward_iterates,
)

MSE = nn.MSELoss()


class Theta(nn.Module):
    """Parameters alone; batches say what the loss does with them."""

    def __init__(self, *values):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(values, dtype=torch.float64))


def thetas(iterates):
    return {k: p["theta"] for k, p in iterates.items()}


centre = Objective(lambda model, c: 0.5 * (model.theta - c).square().sum())
"""T_c(theta) = (1 - h) theta + h c."""

convex = Objective(lambda model, batch: 0.5 * (model.theta - batch["c"]) @ batch["A"] @ (model.theta - batch["c"]))


def convex_batches(num, low=0.5, high=3.0, dim=3, seed=0):
    """Quadratics with eigenvalues in [low, high], each with its own axes and minimum."""
    torch.manual_seed(seed)
    batches = []
    for _ in range(num):
        axes = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64)).Q
        values = low + (high - low) * torch.rand(dim, dtype=torch.float64)
        batches.append({"A": axes @ values.diag() @ axes.T, "c": torch.randn(dim, dtype=torch.float64)})
    return batches


def test_theorem_2_2_backward_converges_at_the_rate_of_the_maps():
    batches, lr = convex_batches(200), 0.3
    model = Theta(2.0, -1.0, 0.5)
    k = max(float(torch.linalg.matrix_norm(torch.eye(3) - lr * b["A"], 2)) for b in batches)
    assert k < 1
    reach = max(float((lr * b["A"] @ (model.theta.detach() - b["c"])).norm()) for b in batches)  # D of condition (2)
    at = [*range(1, 101), 200]
    backward = thetas(backward_iterates(model, convex, batches, lr, at))
    errors = {n: float((backward[n] - backward[200]).norm()) for n in range(1, 101)}
    assert all(error <= reach * k**n / (1 - k) + 1e-14 for n, error in errors.items())
    assert errors[100] < 1e-10
    forward = thetas(forward_iterates(model, convex, batches, lr, at))
    assert min(float((forward[n] - forward[n - 1]).norm()) for n in range(50, 101)) > 1e-3


def test_example_2_1_gradient_descent_contracts_below_two_over_the_largest_curvature():
    batch = {"A": torch.diag(torch.tensor([0.5, 4.0], dtype=torch.float64)), "c": torch.zeros(2, dtype=torch.float64)}
    model = Theta(1.0, 1.0)
    for lr, factor in [(0.2, 0.9), (0.49, 0.96), (0.51, 1.04)]:
        assert contraction_factor(model, convex, batch, lr, num_iterations=500) == pytest.approx(factor, abs=1e-6)
    iterates = thetas(forward_iterates(model, convex, [batch] * 50, 0.49, [10, 50]))
    assert float(iterates[50].norm()) <= 0.96**40 * float(iterates[10].norm())


def test_example_2_4_constant_maps():
    x0, y0 = torch.tensor([1.0]).double(), torch.tensor([-2.0]).double()
    batches = [y0, x0, x0, y0, x0, y0]  # at learning rate 1, T_c(theta) = c
    backward = thetas(backward_iterates(Theta(7.0), centre, batches, 1.0, range(1, 7)))
    forward = thetas(forward_iterates(Theta(7.0), centre, batches, 1.0, range(1, 7)))
    assert all(torch.allclose(theta, y0) for theta in backward.values())
    assert all(torch.allclose(forward[n], batches[n - 1]) for n in range(1, 7))


def test_lemma_2_5_contraction_of_strictly_convex_steps():
    lr, low, high = 0.1, 0.5, 3.0
    bound = (1 - 2 * lr * low + (lr * high) ** 2) ** 0.5
    for batch in convex_batches(20, low, high):
        ends = [thetas(forward_iterates(Theta(*start), convex, [batch], lr))[1] for start in ((1, 2, 3), (0, -1, 1))]
        assert float((ends[0] - ends[1]).norm()) <= bound * float(torch.tensor([1.0, 3.0, 2.0]).norm())


def test_example_3_1_closed_forms_in_both_orders():
    h, theta, n = 0.3, 1.5, 8
    torch.manual_seed(0)
    noise = list(torch.randn(n, 1, dtype=torch.float64))
    weights = [h * (1 - h) ** i for i in range(n)]
    decayed = (1 - h) ** n * theta
    forward = thetas(forward_iterates(Theta(theta), centre, noise, h))[n]
    backward = thetas(backward_iterates(Theta(theta), centre, noise, h))[n]
    torch.testing.assert_close(forward, decayed + sum(w * e for w, e in zip(weights, noise[::-1])))
    torch.testing.assert_close(backward, decayed + sum(w * e for w, e in zip(weights, noise)))


def test_example_3_2_closed_forms_near_a_minimum():
    h, n = 0.2, 12
    curvature = convex_batches(1)[0]["A"]
    torch.manual_seed(1)
    noise = list(0.1 * torch.randn(n, 3, dtype=torch.float64))
    near_minimum = Objective(lambda m, e: 0.5 * m.theta @ curvature @ m.theta - m.theta @ e)  # theta* = 0
    model = Theta(1.0, 2.0, -1.0)
    step = torch.eye(3, dtype=torch.float64) - h * curvature
    powers = [torch.linalg.matrix_power(step, i) for i in range(n + 1)]
    start = powers[n] @ model.theta.detach()
    forward = thetas(forward_iterates(model, near_minimum, noise, h))[n]
    backward = thetas(backward_iterates(model, near_minimum, noise, h))[n]
    torch.testing.assert_close(forward, start + h * sum(p @ e for p, e in zip(powers, noise[::-1])))
    torch.testing.assert_close(backward, start + h * sum(p @ e for p, e in zip(powers, noise)))


def endpoints(iterates, seed, n=40, num_runs=600, **options):
    """One end point of each of many independent one-dimensional runs with nonlinear, skewed maps."""
    torch.manual_seed(seed)
    skewed = Objective(lambda m, e: (torch.cosh(m.theta - e).log() + 0.1 * m.theta.square() + 0.3 * m.theta).sum())
    noise = list(torch.empty(n, num_runs, dtype=torch.float64).exponential_())
    return iterates(Theta(*[4.0] * num_runs), skewed, noise, 0.4, **options)[n]["theta"]


def test_theorem_2_6_end_points_have_the_law_of_forward_iterates():
    forward = endpoints(forward_iterates, seed=0)
    assert ks_2samp(forward, endpoints(backward_iterates, seed=1)).pvalue > 0.01
    assert ks_2samp(forward, endpoints(fixed_tail_iterates, seed=2, tail=10)).pvalue > 0.01
    assert ks_2samp(forward, endpoints(backward_iterates, seed=3, n=3)).pvalue < 1e-6  # before the law is stationary


def test_backward_runs_do_not_move_while_their_law_is_that_of_forward_runs():
    torch.manual_seed(0)
    noise = list(torch.randn(120, 300, dtype=torch.float64))
    backward = thetas(backward_iterates(Theta(*[0.0] * 300), centre, noise, 0.2, [100, 120]))
    forward = thetas(forward_iterates(Theta(*[0.0] * 300), centre, noise, 0.2, [100, 120]))
    stationary = 0.2 / (2 - 0.2)  # variance of the stationary law: h / (2 - h)
    assert float(backward[120].var()) == pytest.approx(stationary, rel=0.25)
    assert float((backward[120] - backward[100]).abs().max()) < 1e-8
    assert float((forward[120] - forward[100]).var()) == pytest.approx(2 * stationary, rel=0.25)


SIZES = [0.01, 0.005, 0.0025, 0.00125]


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2), (2, 2, 0), (1, 0, 1, 0, 3)])
def test_lemma_c1_for_arbitrary_orders(order):
    model, batches = mlp(2, 6, 1), regression_batches(4)
    g, h = dense_derivatives(model, batches)
    first = -sum(g[i] for i in order)
    second = sum(h[order[u]] @ g[order[v]] for u in range(len(order)) for v in range(u + 1, len(order)))
    errors = []
    for lr in SIZES:
        applied = [batches[i] for i in order][::-1]  # T_{i_1} is applied last
        exact = flat(twin(model, MSE, applied, lambda p: torch.optim.SGD(p, lr=lr)))
        errors.append(float((exact - here(model) - lr * first - lr**2 * second).norm()))
    assert 2.9 < slope(SIZES, errors) < 3.1


@pytest.mark.parametrize("n", [2, 5])
def test_theorem_c2_leaves_an_error_of_third_order(n):
    model, batches = mlp(2, 6, 1), regression_batches(n)
    corrected, plain = [], []
    for lr in SIZES:
        exact = flat(backward_iterates(model, MSE, batches, lr)[n])
        corrected.append(float((flat(bracket_iterate(model, MSE, batches, lr)) - exact).norm()))
        plain.append(float((flat(forward_iterates(model, MSE, batches, lr)[n]) - exact).norm()))
    assert 2.9 < slope(SIZES, corrected) < 3.1
    assert 1.9 < slope(SIZES, plain) < 2.1
