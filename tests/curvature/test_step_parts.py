"""Diagonal preconditioners, damping, backtracking and Armijo's rule, each alone."""

import math

import pytest
import torch
from curvature_cases import CASES, dense_gauss_newton
from hypothesis import given
from hypothesis import strategies as st
from test_conjugate_gradient import spd
from torch import nn

from hemstitch.curvature import (
    DiagonalPreconditioner,
    LevenbergMarquardt,
    armijo,
    backtrack,
    conjugate_gradient,
    fisher,
    fisher_diagonal,
    gauss_newton,
    jacobi_diagonal,
)
from hemstitch.errors import ConfigError, MisuseError

CASE = next(case for case in CASES if case.name == "mlp")


def test_jacobi_diagonal_exactly_and_in_expectation():
    A = gauss_newton(CASE.model, CASE.loss, CASE.inputs, CASE.targets)
    exact = dense_gauss_newton(CASE).diag()
    torch.testing.assert_close(jacobi_diagonal(A), exact)
    estimates = torch.stack([jacobi_diagonal(A, 50, torch.Generator().manual_seed(seed)) for seed in range(8)])
    error, spread = estimates.mean(0) - exact, estimates.std(0) / math.sqrt(8)
    assert (error.abs() <= 6 * spread + 1e-12).all()                # 7 degrees of freedom, 60 parameters
    assert (estimates.mean(0) - exact).norm() < 0.3 * exact.norm()
    with pytest.raises(MisuseError, match="num_probes"):
        jacobi_diagonal(A, 0)


def test_fisher_diagonal_is_that_of_the_empirical_matrix():
    for name in ("mlp", "conv", "frozen", "unused"):
        case = next(case for case in CASES if case.name == name)
        loss = nn.CrossEntropyLoss()
        expected = fisher(case.model, loss, case.inputs, case.targets, kind="empirical").dense().diag()
        actual = fisher_diagonal(case.model, loss, case.inputs, case.targets, chunk_size=2)
        torch.testing.assert_close(actual, expected)


def test_diagonal_preconditioner_mends_bad_scaling():
    A, b = spd(condition=10)
    scale = torch.logspace(-2, 2, len(b), dtype=A.dtype)
    A = scale[:, None] * A * scale
    preconditioner = DiagonalPreconditioner(A.diag(), damping=1e-6)
    plain = conjugate_gradient(A, b, tol=1e-6)
    assert conjugate_gradient(A, b, tol=1e-6, preconditioner=preconditioner).iterations < plain.iterations / 2
    root = DiagonalPreconditioner(torch.tensor([3.0, -1.0]), 1.0, exponent=0.5)
    assert root(torch.ones(2)).tolist() == [0.5, 1.0]
    with pytest.raises(MisuseError, match="positive"):
        DiagonalPreconditioner(torch.zeros(2), 0.0)


def test_damping_rises_when_the_model_failed_and_falls_when_it_held():
    rule = LevenbergMarquardt(minimum=1e-3, maximum=2.0)
    assert rule.adjust(1.0, 0.1) == 1.5 and rule.adjust(1.0, -3.0) == 1.5
    assert rule.adjust(1.0, 0.25) == rule.adjust(1.0, 0.75) == 1.0
    assert rule.adjust(1.0, 0.8) == pytest.approx(2 / 3)
    assert rule.adjust(1.0, math.nan) == rule.adjust(1.0, -math.inf) == 1.5
    assert rule.adjust(1.9, 0.0) == 2.0 and rule.adjust(1e-3, 1.0) == 1e-3
    for bad in (dict(increase=0.9), dict(decrease=1.1), dict(low=0.9), dict(minimum=2.0, maximum=1.0)):
        with pytest.raises(ConfigError, match="need increase"):
            LevenbergMarquardt(**bad)


def run_backtrack(losses, before):
    tried = []

    def loss_at(k):
        tried.append(k)
        return losses[k]

    return backtrack(loss_at, range(len(losses)), before), tried


def test_backtracking_stops_at_the_first_rise_after_an_improvement():
    result, tried = run_backtrack([0.1, 9.0, 2.0, 1.0, 3.0], before=5.0)
    assert (result.index, result.loss, result.last_loss, result.evaluations) == (3, 1.0, 3.0, 3)
    assert tried == [4, 3, 2]


def test_backtracking_goes_on_while_nothing_improves_and_keeps_the_best():
    result, tried = run_backtrack([4.0, 7.0, 9.0, 6.0, 8.0], before=5.0)
    assert (result.index, result.loss) == (0, 4.0) and tried == [4, 3, 2, 1, 0]
    result, _ = run_backtrack([9.0, 7.0, 9.0, 6.0, 8.0], before=5.0)
    assert (result.index, result.loss) == (3, 6.0)                  # the loop as printed would return 9


ANY_LOSS = st.one_of(st.floats(-10, 10), st.sampled_from([math.nan, math.inf, -math.inf]))


@given(st.lists(ANY_LOSS, min_size=1, max_size=12), st.floats(-10, 10))
def test_backtracking_returns_the_smallest_loss_it_saw(losses, before):
    result, tried = run_backtrack(losses, before)
    seen = [losses[k] if math.isfinite(losses[k]) else math.inf for k in tried]
    assert result.loss == min(seen) and result.evaluations == len(tried)
    assert tried == list(range(len(losses) - 1, len(losses) - 1 - len(tried), -1))


@given(st.floats(0.1, 100.0), st.floats(-50.0, -0.1))
def test_armijo_takes_the_first_sufficient_step(curvature, slope):
    """On L(a) = slope a + curvature a^2 / 2 the rule holds for a <= 2 (c - 1) slope / curvature."""
    trials = []

    def loss_at(alpha):
        trials.append(alpha)
        return slope * alpha + 0.5 * curvature * alpha**2

    result = armijo(loss_at, 0.0, slope)
    assert result.step == trials[-1] and result.evaluations == len(trials)
    bound = 2 * (1 - 1e-2) * -slope / curvature
    assert result.step <= bound * (1 + 1e-9)
    assert result.step == 1.0 or result.step / 0.8 > bound * (1 - 1e-9)
    assert result.loss <= 0.01 * result.step * slope


def test_armijo_refuses_what_does_not_descend():
    assert armijo(lambda a: -a, 0.0, slope=0.5).step == 0.0
    assert armijo(lambda a: -a, 0.0, slope=math.nan).step == 0.0
    for hopeless in (1.0, math.nan, math.inf, -math.inf):
        result = armijo(lambda a: hopeless, 0.0, slope=-1.0, max_trials=7)
        assert (result.step, result.loss, result.evaluations) == (0.0, 0.0, 7)


def test_armijo_uses_what_is_known():
    result = armijo(lambda a: 1 / 0, 1.0, slope=-1.0, start_loss=0.0)
    assert (result.step, result.loss, result.evaluations) == (1.0, 0.0, 0)
