"""The theory behind backstitch: the telescoped step, and the finite-sample bias it is to cancel.

Equation numbers are those of Wang et al., Interspeech 2017. Expectations over training sets are exact where the data
take a few values (sums over multinomial counts), simulated for the Gaussian.
"""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hemstitch.optim import SGD, Backstitch
from hemstitch.testing import quadratic, tiny_mlp


def pair_and_telescoped(problem, nu, alpha, reverse=False):
    """Where a pair ends, and where equation 17 says it should: theta - nu g - nu^2 (alpha + alpha^2) H g."""
    parameters = list(problem.model.parameters())
    gradient = torch.autograd.grad(problem.evaluate(), parameters, create_graph=True)
    product = torch.autograd.grad(gradient, parameters, [g.detach() for g in gradient])
    flat = nn.utils.parameters_to_vector
    start = flat(parameters).detach()
    telescoped = start - nu * flat(gradient).detach() - nu**2 * (alpha + alpha**2) * flat(product)
    optimizer = Backstitch(SGD(parameters, lr=nu, global_max_change=0), alpha, interval=1, reverse=reverse)
    optimizer.step(problem.closure(optimizer))
    return flat(parameters).detach(), telescoped


@settings(deadline=None, max_examples=30)
@given(nu=st.floats(0.01, 1.0), alpha=st.floats(0.01, 2.0), seed=st.integers(0, 1000), reverse=st.booleans())
def test_telescoped_step_is_exact_for_a_quadratic(nu, alpha, seed, reverse):
    got, expected = pair_and_telescoped(quadratic(noise=1.0, seed=seed), nu, alpha, reverse)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


@settings(deadline=None, max_examples=20)
@given(alpha=st.floats(0.1, 1.5), seed=st.integers(0, 1000), reverse=st.booleans())
def test_telescoped_step_of_a_network_is_off_by_the_third_order(alpha, seed, reverse):
    """Halving nu divides the error by about eight, while the term in nu^2 falls to a quarter. In either order."""
    errors = []
    for nu in (0.02, 0.01):
        got, expected = pair_and_telescoped(tiny_mlp(dtype=torch.float64, seed=seed), nu, alpha, reverse)
        errors.append(float((got - expected).norm()))
    assert 7 < errors[0] / errors[1] < 9


# -- bias of estimates from I samples --------------------------------------------------------------------------


def atoms(hessian):
    """Three equally likely samples f_k = 1/2 (theta - x_k)' H_k (theta - x_k) whose H_k and x_k go together.

    The mean of H_k is ``hessian``, and the optimum of the mean of f is zero.
    """
    spread = torch.tensor([[[0.3, 0.1], [0.1, -0.2]], [[-0.2, 0.2], [0.2, 0.3]]], dtype=torch.float64)
    hessians = hessian + torch.stack([*spread, -spread.sum(0)])
    points = torch.tensor([[1.0, -0.5], [-2.0, 1.0]], dtype=torch.float64)
    last = -torch.linalg.solve(hessians[2], (hessians[:2] @ points[:, :, None]).sum(0))  # sum of H_k x_k is zero
    return hessians, torch.cat([points, last.T])


def bias(hessian, num_samples, estimate):
    """Exact expectation of ``estimate(weights, hessians, points)`` over all training sets of I samples."""
    hessians, points = atoms(hessian)
    total = torch.zeros(2, dtype=torch.float64)
    for a, b in itertools.product(range(num_samples + 1), repeat=2):
        if (c := num_samples - a - b) >= 0:
            log_probability = math.lgamma(num_samples + 1) - sum(math.lgamma(n + 1) for n in (a, b, c))
            weights = torch.tensor([a, b, c], dtype=torch.float64)[:, None, None] / num_samples
            total += math.exp(log_probability - num_samples * math.log(3)) * estimate(weights, hessians, points)
    return total


def fixed_point(strength, preconditioner):
    """Where the steps g_i + strength H_i P g_i of the training samples, equation 17, sum to zero."""
    def estimate(weights, hessians, points):
        corrected = weights * (torch.eye(2, dtype=torch.float64) + strength * hessians @ preconditioner) @ hessians
        return torch.linalg.solve(corrected.sum(0), (corrected @ points[:, :, None]).sum(0)[:, 0])
    return estimate


HESSIANS = {"identity": torch.eye(2, dtype=torch.float64),
            "general": torch.tensor([[2.0, 0.5], [0.5, 0.8]], dtype=torch.float64)}


@pytest.mark.parametrize("name", HESSIANS)
def test_bias_of_the_minimum_is_equation_11_and_13(name):
    """I times the bias tends to H^-1 E[H_x H^-1 g_x]; g_x, H_x of one sample at the true optimum."""
    hessian, inverse = HESSIANS[name], torch.linalg.inv(HESSIANS[name])
    hessians, points = atoms(hessian)
    gradients = -(hessians @ points[:, :, None])
    expected = (inverse @ (hessians @ inverse @ gradients).mean(0))[:, 0]
    scaled = {n: n * bias(hessian, n, fixed_point(0.0, inverse)) for n in (20, 80)}
    assert expected.norm() > 0.1
    assert (scaled[80] - expected).norm() < 0.3 * (scaled[20] - expected).norm() < 0.1 * expected.norm()


@pytest.mark.parametrize("name", HESSIANS)
def test_backstitch_of_strength_one_over_i_cancels_the_bias(name):
    """With nu (alpha + alpha^2) = 1/I, preconditioned by the inverse expected Hessian, O(1/I) becomes O(1/I^2)."""
    hessian, inverse = HESSIANS[name], torch.linalg.inv(HESSIANS[name])
    left = {n: n * bias(hessian, n, fixed_point(1.0 / n, inverse)).norm() for n in (20, 80)}
    before = {n: n * bias(hessian, n, fixed_point(0.0, inverse)).norm() for n in (20, 80)}
    assert left[20] < 0.2 * before[20] and left[80] < 0.05 * before[80]
    assert left[80] < 0.3 * left[20]


def test_without_the_preconditioner_a_general_hessian_is_not_cancelled():
    """The assumption of an identity Hessian is not idle: plain backstitch leaves a bias of the same order."""
    plain = 80 * bias(HESSIANS["general"], 80, fixed_point(1.0 / 80, torch.eye(2, dtype=torch.float64))).norm()
    natural = 80 * bias(HESSIANS["general"], 80, fixed_point(1.0 / 80, torch.linalg.inv(HESSIANS["general"]))).norm()
    assert plain > 5 * natural


def gaussian_bias(strength, num_samples=20, num_sets=20_000):
    """I times the bias of the variance of a unit Gaussian, estimated in (mu, v = sigma^2) by equation 17.

    Steps g + strength/I H g with, for e = x - mu,
    g = (-e/v, 1/(2v) - e^2/(2v^2)) and H = [[1/v, e/v^2], [e/v^2, e^2/v^3 - 1/(2v^2)]].
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_sets, num_samples, generator=generator, dtype=torch.float64)
    mu, v = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
    unbiased = v.mean() * num_samples / (num_samples - 1)  # control: its error is that of the simulation
    for _ in range(60):
        e = x - mu
        g_mu, g_v = -e / v, 0.5 / v - 0.5 * e**2 / v**2
        h_mu, h_v = g_mu / v + e / v**2 * g_v, e / v**2 * g_mu + (e**2 / v**3 - 0.5 / v**2) * g_v
        mu = mu - 0.5 * (g_mu + strength / num_samples * h_mu).mean(1, keepdim=True) * v
        v = v - 1.0 * (g_v + strength / num_samples * h_v).mean(1, keepdim=True) * v**2
    return float(num_samples * (v.mean() - unbiased))


def test_gaussian_variance_is_corrected_but_for_a_constant():
    """The bias -1/I of maximum likelihood is cancelled at a quarter of the predicted strength; at that, it is overdone.

    To first order I times the bias is -1 + 4 strength: E[H g]_v = -2 at mu = 0, v = 1, where the Hessian by v is 1/2.
    """
    assert gaussian_bias(0.0) == pytest.approx(-1.0, abs=0.05)
    assert gaussian_bias(0.25) == pytest.approx(-0.1, abs=0.1)
    assert gaussian_bias(1.0) > 1.5
