"""Conjugate gradients against dense solves, scipy and golden numbers; why they stop; what the flexible form is for."""

import math

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hemstitch.curvature import PairStore, ProgressTest, conjugate_gradient, gauss_newton
from hemstitch.errors import MisuseError

SIZE = 40


def spd(seed=0, size=SIZE, condition=1e4, dtype=torch.float64):
    """A symmetric positive definite matrix with eigenvalues 1/condition ... 1, and a right-hand side."""
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    eigenvalues = torch.logspace(-math.log10(condition), 0, size, dtype=torch.float64)
    b = torch.randn(size, generator=generator, dtype=torch.float64)
    return (basis * eigenvalues @ basis.T).to(dtype), b.to(dtype)


def quadratic(A, b, x):
    return (0.5 * x @ A @ x - b @ x).item()


@pytest.mark.parametrize("flexible", [False, True])
@pytest.mark.parametrize("damping", [0.0, 0.03, torch.linspace(0.01, 0.1, SIZE, dtype=torch.float64)])
def test_solves_the_damped_system(damping, flexible):
    A, b = spd()
    result = conjugate_gradient(A, b, damping=damping, flexible=flexible, tol=1e-12, max_iter=1000)
    dense = A + torch.diag(torch.as_tensor(damping, dtype=A.dtype).expand(SIZE))
    assert result.reason == "residual"
    torch.testing.assert_close(result.x, torch.linalg.solve(dense, b), rtol=1e-7, atol=1e-9)
    assert result.residual_norm <= 1e-12 * b.norm()


@pytest.mark.parametrize("flexible", [False, True])
@pytest.mark.parametrize("preconditioned", [False, True])
@pytest.mark.parametrize("started", [False, True])
def test_iterates_are_those_of_scipy(preconditioned, flexible, started):
    A, b = spd(condition=100)
    M = torch.diag(1 / A.diag()) if preconditioned else None
    x0 = 0.1 * torch.ones(SIZE, dtype=A.dtype) if started else None
    for iterations in (1, 2, 5, 15):
        result = conjugate_gradient(A, b, x0=x0, preconditioner=M, flexible=flexible, tol=0.0, max_iter=iterations)
        expected, _ = scipy.sparse.linalg.cg(
            A.numpy(), b.numpy(), x0=None if x0 is None else x0.numpy(), rtol=0, atol=0, maxiter=iterations,
            M=None if M is None else M.numpy())
        np.testing.assert_allclose(result.x.numpy(), expected, rtol=1e-9, atol=1e-11)
        assert (result.iterations, result.reason) == (iterations, "max_iterations")


def test_tolerance_means_what_it_means_in_scipy():
    A, b = spd(condition=100)
    steps = []
    scipy.sparse.linalg.cg(A.numpy(), b.numpy(), rtol=1e-6, atol=0, callback=lambda x: steps.append(1))
    assert conjugate_gradient(A, b, tol=1e-6).iterations == len(steps)


def test_golden_damped_newton_step(shared_golden):
    golden = np.load(shared_golden / "mlp_ce_products.npz")
    model = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 24), nn.Sigmoid(), nn.Linear(24, 7)).double()
    model.load_state_dict({name: torch.from_numpy(golden[f"param_{name}"]) for name in model.state_dict()})
    A = gauss_newton(model, nn.CrossEntropyLoss(), torch.from_numpy(golden["X"]), torch.from_numpy(golden["Y"]))
    result = conjugate_gradient(A, -torch.from_numpy(golden["grad"]), damping=float(golden["damped_newton_lambda"]),
                                tol=1e-13)
    np.testing.assert_allclose(result.x.numpy(), golden["damped_newton_step"], rtol=1e-10, atol=1e-12)
    assert result.values[-1] == pytest.approx(float(golden["quad_at_step"]), rel=1e-12)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), flexible=st.booleans(), started=st.booleans())
def test_the_quadratic_falls_with_every_iterate(seed, flexible, started):
    A, b = spd(seed, size=12, condition=100)
    x0 = torch.ones(12, dtype=A.dtype) if started else None
    result = conjugate_gradient(A, b, x0=x0, flexible=flexible, tol=1e-10, iterate_growth=1.0001)
    assert all(later <= earlier for earlier, later in zip(result.values, result.values[1:]))
    for i, x in result.iterates:
        assert result.values[i] == pytest.approx(quadratic(A, b, x), rel=1e-8, abs=1e-10)


def changing_preconditioner(A):
    """Alternately the true inverse of another damping and a bad diagonal: positive definite at every call."""
    good = torch.linalg.inv(A + 0.01 * torch.eye(len(A), dtype=A.dtype))
    bad = torch.diag(torch.linspace(0.01, 10.0, len(A), dtype=A.dtype))
    calls = []

    def apply(r):
        calls.append(1)
        return (good if len(calls) % 2 else bad) @ r

    return apply


def test_standard_form_fails_where_the_preconditioner_changes_and_the_flexible_form_does_not():
    A, b = spd(condition=1e3)
    runs = {flexible: conjugate_gradient(A, b, preconditioner=changing_preconditioner(A), flexible=flexible, tol=1e-8,
                                         max_iter=100) for flexible in (False, True)}
    assert runs[True].reason == "residual"
    assert runs[False].reason == "max_iterations"
    assert runs[False].residual_norm > 1e4 * runs[True].residual_norm


def test_both_forms_agree_for_a_fixed_preconditioner():
    A, b = spd(condition=100)
    M = torch.linalg.inv(A + 0.1 * torch.eye(SIZE, dtype=A.dtype))
    standard, flexible = (conjugate_gradient(A, b, preconditioner=M, flexible=form, tol=0.0, max_iter=10)
                          for form in (False, True))
    torch.testing.assert_close(standard.x, flexible.x, rtol=1e-9, atol=1e-9)


def test_iterates_are_kept_at_growing_distances_and_at_the_end():
    A, b = spd()
    result = conjugate_gradient(A, b, tol=0.0, max_iter=30, iterate_growth=1.3)
    assert [i for i, _ in result.iterates] == [1, 2, 3, 4, 5, 7, 9, 11, 14, 18, 24, 30]
    for i, x in result.iterates:
        assert torch.equal(x, conjugate_gradient(A, b, tol=0.0, max_iter=i).x)


def test_pairs_are_the_differences_of_iterates_and_gradients():
    A, b = spd()
    pairs = PairStore(10, keep="first")
    result = conjugate_gradient(A, b, damping=0.1, tol=0.0, max_iter=10, iterate_growth=1.0001, pairs=pairs)
    x = torch.stack([torch.zeros_like(b), *(x for _, x in result.iterates)])
    steps, changes = pairs.pairs()
    torch.testing.assert_close(steps, x.diff(dim=0), rtol=1e-8, atol=1e-12)
    damped = A + 0.1 * torch.eye(SIZE, dtype=A.dtype)
    torch.testing.assert_close(changes, x.diff(dim=0) @ damped, rtol=1e-8, atol=1e-12)


def test_progress_rule_of_martens():
    rule = ProgressTest(tolerance=5e-4, window=10, share=0.1)
    flat = [0.0] + [-1.0] * 11
    assert rule(flat) and not rule(flat[:-1])                       # needs i > k = 10
    assert not rule([0.0] + [1.0] * 11)                             # q must be negative
    falling = [-1.0 - 0.01 * i for i in range(12)]
    assert not rule(falling)                                        # 0.1 / 1.11 > 10 * 5e-4
    slow = [-1.0 - 0.0004 * i for i in range(12)]
    assert rule(slow)                                               # 0.004 / 1.0044 < 10 * 5e-4
    long = [-1.0] + [-2.0] * 209                                    # k = 20 at i = 209: all within the window is flat
    assert rule(long)
    late_fall = [-1.0] * 190 + [-2.0] * 20
    assert not rule(late_fall) and ProgressTest(share=0.0)(late_fall)


def test_progress_stops_a_run_earlier_at_a_higher_value():
    A, b = spd(condition=1e6)
    full = conjugate_gradient(A, b, tol=1e-10)
    stopped = conjugate_gradient(A, b, tol=1e-10, progress=ProgressTest(tolerance=1e-2))
    assert stopped.reason == "progress"
    assert stopped.iterations < full.iterations and stopped.values[-1] > full.values[-1]


class NaNAfter:
    def __init__(self, A, products):
        self.A, self.left = A, products

    def __matmul__(self, v):
        self.left -= 1
        return self.A @ v if self.left >= 0 else torch.full_like(v, math.nan)


def test_reasons_to_stop():
    A, b = spd()
    nan, indefinite = torch.full_like(b, math.nan), A - 0.5 * torch.eye(SIZE, dtype=A.dtype)
    assert conjugate_gradient(A, 0 * b).reason == "residual"
    assert conjugate_gradient(indefinite, b).reason == "negative_curvature"
    assert conjugate_gradient(A, b, preconditioner=lambda r: -r).reason == "breakdown"
    assert conjugate_gradient(A, nan).reason == "non_finite"
    assert conjugate_gradient(A, b, max_iter=0).reason == "max_iterations"
    cut = conjugate_gradient(NaNAfter(A, products=3), b)
    assert (cut.iterations, cut.reason) == (3, "non_finite")
    assert torch.equal(cut.x, conjugate_gradient(A, b, max_iter=3).x)
    assert conjugate_gradient(A, b, preconditioner=lambda r: nan).reason == "non_finite"


def test_misuse():
    A, b = spd()
    with pytest.raises(MisuseError, match="one vector"):
        conjugate_gradient(A, torch.stack([b, b]))
    with pytest.raises(MisuseError, match="iterate_growth"):
        conjugate_gradient(A, b, iterate_growth=1.0)


def test_an_operator_may_hand_back_its_argument():
    class Identity:
        def __matmul__(self, v):
            return v

    b = torch.ones(4)
    assert conjugate_gradient(Identity(), b, damping=1.0).x.tolist() == [0.5] * 4


def test_neither_argument_is_changed():
    A, b = spd()
    x0, before, start = torch.ones_like(b), b.clone(), torch.ones_like(b)
    conjugate_gradient(A, b, x0=x0, max_iter=5, iterate_growth=1.3)
    assert torch.equal(b, before) and torch.equal(x0, start)
