"""The L-BFGS preconditioner against the two-loop recursion, its properties, and which pairs each policy keeps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_conjugate_gradient import SIZE, spd

from hemstitch.curvature import LBFGSPreconditioner, PairStore, conjugate_gradient
from hemstitch.errors import MisuseError


def two_loop(steps, changes, r):
    """Algorithm 2 of paper 3, literally; pairs oldest first."""
    q, alphas = r.clone(), []
    for s, y in reversed(list(zip(steps, changes))):
        alphas.append((s @ q) / (s @ y))
        q = q - alphas[-1] * y
    z = (steps[-1] @ changes[-1]) / (changes[-1] @ changes[-1]) * q
    for s, y, alpha in zip(steps, changes, reversed(alphas)):
        z = z + s * (alpha - (y @ z) / (s @ y))
    return z


def filled(keep="last", capacity=6, run=9, dtype=torch.float64, condition=100.0, conjugate=False):
    """A store with random steps (or those of conjugate gradients) through a quadratic."""
    A, b = spd(condition=condition, dtype=dtype)
    pairs = PairStore(capacity, keep=keep)
    if conjugate:
        conjugate_gradient(A, b, max_iter=run, tol=0.0, pairs=pairs)
    else:
        for s in torch.randn(run, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype):
            pairs.add(s, A @ s)
    return A, pairs


@pytest.mark.parametrize("keep", ["even", "first", "last"])
@pytest.mark.parametrize("conjugate", [False, True])
@pytest.mark.parametrize("run", [1, 4, 9])
def test_compact_form_is_the_two_loop_recursion(keep, conjugate, run):
    _, pairs = filled(keep=keep, run=run, conjugate=conjugate)
    r = torch.randn(SIZE, dtype=torch.float64)
    torch.testing.assert_close(LBFGSPreconditioner(pairs)(r), two_loop(*pairs.pairs(), r), rtol=1e-9, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), keep=st.sampled_from(["even", "first", "last"]), run=st.integers(1, 30),
       condition=st.sampled_from([1.0, 1e2, 1e5]), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_it_is_symmetric_positive_definite_and_meets_the_secant_equation(seed, keep, run, condition, dtype):
    A, b = spd(seed, size=20, condition=condition, dtype=dtype)
    pairs = PairStore(8, keep=keep)
    conjugate_gradient(A, b, damping=1e-3, max_iter=run, tol=1e-6, pairs=pairs)
    M = LBFGSPreconditioner(pairs)
    matrix = torch.stack([M(unit) for unit in torch.eye(20, dtype=dtype)]).double()
    scale = torch.linalg.matrix_norm(matrix, 2)
    assert (matrix - matrix.T).abs().max() <= 1e-4 * scale
    assert torch.linalg.eigvalsh((matrix + matrix.T) / 2).min() > 0
    steps, changes = pairs.pairs()
    assert (M(changes[-1]) - steps[-1]).norm() <= 1e-3 * steps[-1].norm()


def kept_numbers(keep, capacity, run):
    """Which of the pairs offered are kept; pair number i is (e_i, e_i)."""
    pairs = PairStore(capacity, keep=keep)
    for unit in torch.eye(run):
        pairs.add(unit, unit)
    return pairs.pairs()[0].argmax(1).tolist()


def test_policies_keep_the_pairs_they_promise():
    assert kept_numbers("first", 4, 20) == [0, 1, 2, 3]
    assert kept_numbers("last", 4, 20) == [16, 17, 18, 19]
    assert kept_numbers("even", 4, 4) == [0, 1, 2, 3]
    assert kept_numbers("even", 4, 5) == [0, 2, 4]
    assert kept_numbers("even", 4, 7) == [0, 2, 4, 6]
    assert kept_numbers("even", 4, 9) == [0, 4, 8]
    assert kept_numbers("even", 4, 20) == [0, 8, 16]
    assert kept_numbers("even", 5, 21) == [0, 8, 16]


def test_pairs_of_bad_curvature_are_skipped():
    pairs, s = PairStore(4, floor=1e-3), torch.ones(3)
    assert not pairs.add(s, -s)                                     # negative curvature
    assert not pairs.add(s, 0 * s)
    assert not pairs.add(s, 1e4 * s)                                # s'y / y'y = 1e-4 < floor
    assert not pairs.add(s, torch.full((3,), float("nan")))
    assert pairs.add(s, s, scale=2.0) and len(pairs) == 1
    assert pairs.pairs()[1].tolist() == [[2.0, 2.0, 2.0]]


def test_without_pairs_it_is_the_identity():
    r = torch.randn(5)
    assert torch.equal(LBFGSPreconditioner(PairStore(3))(r), r)


def test_it_saves_iterations_on_the_same_matrix():
    A, b = spd(condition=1e4)
    pairs = PairStore(20, keep="first")
    plain = conjugate_gradient(A, b, damping=1e-3, tol=1e-5, pairs=pairs)
    again = conjugate_gradient(A, torch.randn(SIZE, dtype=A.dtype, generator=torch.Generator().manual_seed(5)),
                               damping=1e-3, tol=1e-5, preconditioner=LBFGSPreconditioner(pairs))
    assert again.iterations < 0.6 * plain.iterations


def test_rebuilt_within_the_run_it_needs_the_flexible_form():
    A, b = spd(size=200, condition=1e5)
    iterations = {}
    for flexible in (False, True):
        pairs = PairStore(16, keep="even")
        result = conjugate_gradient(A, b, tol=1e-6, max_iter=2000, flexible=flexible, pairs=pairs,
                                    preconditioner=LBFGSPreconditioner(pairs))
        iterations[flexible] = result.iterations
    assert iterations[True] < iterations[False]


@pytest.mark.parametrize("keep", ["even", "first", "last"])
def test_state_round_trip_goes_on_to_the_bit(keep):
    A, pairs = filled(keep=keep, run=9)
    restored = PairStore(6, keep=keep)
    restored.load_state_dict(pairs.state_dict())
    for store in (pairs, restored):
        for s in torch.eye(SIZE, dtype=torch.float64)[:7]:
            store.add(s, A @ s)
    r = torch.randn(SIZE, dtype=torch.float64)
    assert torch.equal(LBFGSPreconditioner(pairs)(r), LBFGSPreconditioner(restored)(r))
    empty = PairStore(2)
    empty.load_state_dict(PairStore(2).state_dict())
    assert len(empty) == 0
    with pytest.raises(MisuseError, match="do not fit"):
        PairStore(2).load_state_dict(pairs.state_dict())


def test_impossible_stores_are_refused():
    for options in (dict(capacity=0), dict(capacity=2, keep="odd")):
        with pytest.raises(MisuseError, match="capacity >= 1"):
            PairStore(**options)
    with pytest.raises(MisuseError, match="no pairs"):
        PairStore(1).pairs()
