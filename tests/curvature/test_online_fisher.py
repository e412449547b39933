"""The online Fisher estimate against golden numbers, a dense twin and its own promises."""

import json

import numpy as np
import pytest
import torch

from hemstitch.curvature import OnlineNaturalGradient, simple_natural_gradient
from hemstitch.errors import ConfigError, MisuseError

CASES = ["ng_online_B_n64_d20_r5", "ng_online_E_n6_d30_r12", "ng_online_G_freeze_from_start_pairs"]


def minibatches(golden, dtype):
    ends = np.cumsum(golden["n_rows"])[:-1]
    return [torch.from_numpy(block).to(dtype) for block in np.split(golden["x"], ends)]


def follow(golden, settings, schedule, dtype):
    """Run all minibatches; yields (output, scale, residual, eigenvalues, factor) after each."""
    fisher = OnlineNaturalGradient(**settings, schedule=schedule)
    freeze = golden["freeze"] if "freeze" in golden.files else np.zeros(len(golden["n_rows"]), bool)
    for block, frozen in zip(minibatches(golden, dtype), freeze):
        fisher.freeze(bool(frozen))
        output, scale = fisher.precondition(block)
        yield output.numpy(), float(scale), fisher.residual, fisher.eigenvalues.numpy(), fisher.factor.numpy()


def golden_runs():
    return [(name, index) for name in CASES for index in range(1 if "_G_" in name else 2)]


@pytest.mark.parametrize("name, index", golden_runs())
def test_golden_double(shared_golden, name, index):
    golden = np.load(shared_golden / f"{name}.npz")
    settings, prefix = json.loads(str(golden["settings_json"]))[index], f"s{index}_f64_"
    got = list(follow(golden, settings, "2025", torch.float64))
    close = lambda ours, theirs: np.testing.assert_allclose(ours, golden[prefix + theirs], rtol=1e-8)
    close([scale for _, scale, *_ in got], "scale")
    close([rho for _, _, rho, *_ in got], "rho")
    np.testing.assert_allclose([d for *_, d, _ in got], golden[prefix + "d"], rtol=1e-8, atol=1e-9)
    close([np.sum(y * y) for y, *_ in got], "y_sumsq")
    np.testing.assert_allclose(np.concatenate([got[k][0] for k in golden["keep"]]), golden[prefix + "y_keep"],
                               rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(np.concatenate([y for y, *_ in got]) @ golden["probe"], golden[prefix + "y_dot_probe"],
                               rtol=1e-8, atol=1e-9)
    for which, factor in (("W_first", got[0][4]), ("W_last", got[-1][4])):
        theirs = golden[prefix + which]
        np.testing.assert_allclose(factor.T @ factor, theirs.T @ theirs, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name, index", golden_runs())
def test_golden_single(shared_golden, name, index):
    golden = np.load(shared_golden / f"{name}.npz")
    settings, prefix = json.loads(str(golden["settings_json"]))[index], f"s{index}_f64_"
    got = list(follow(golden, settings, "2025", torch.float32))
    np.testing.assert_allclose([scale for _, scale, *_ in got], golden[prefix + "scale"], rtol=1e-5)
    assert got[-1][4].dtype == np.float32


def test_golden_2017(shared_golden):
    golden = np.load(shared_golden / "ng_online_2017.npz")
    run = json.loads(str(golden["runs_json"]))[0]
    got = list(follow(np.load(shared_golden / f"{run.pop('case')}.npz"), run, "2017", torch.float64))
    np.testing.assert_allclose([scale for _, scale, *_ in got], golden["r0_f64_scale"], rtol=1e-8)
    np.testing.assert_allclose([rho for _, _, rho, *_ in got], golden["r0_f64_rho"], rtol=1e-8)
    np.testing.assert_allclose([d for *_, d, _ in got], golden["r0_f64_d"], rtol=1e-8)


def test_golden_simple(shared_golden):
    golden = np.load(shared_golden / "ng_simple.npz")
    for index in range(2):
        got = simple_natural_gradient(torch.from_numpy(golden[f"x{index}"]).double(), float(golden[f"alpha{index}"]))
        np.testing.assert_allclose(got.numpy(), golden[f"y{index}_f64"], rtol=1e-8)


# -- dense twins ---------------------------------------------------------------------------------------------

def rows(num_rows, dim, seed=0, dtype=torch.float64):
    """Correlated rows: a few strong directions and a mean."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=generator, dtype=torch.float64) * torch.logspace(0, -2, dim)[:, None]
    return (torch.randn(num_rows, dim, generator=generator, dtype=torch.float64) @ mixing + 0.3).to(dtype)


def directions(fisher, dim):
    """R, d, rho of an estimate."""
    d, rho = fisher.eigenvalues, fisher.residual
    beta = rho * (1 + fisher.alpha) + fisher.alpha / dim * d.sum()
    return fisher.factor.double() / (1 / (beta / d + 1)).sqrt()[:, None], d, rho


def dense(fisher, dim):
    """F as a D x D matrix."""
    r, d, rho = directions(fisher, dim)
    return r.T @ torch.diag(d) @ r + rho * torch.eye(dim, dtype=torch.float64)


def test_preconditioning_is_the_inverse_of_the_smoothed_fisher():
    dim = 12
    fisher = OnlineNaturalGradient(rank=4)
    for seed in range(5):
        fisher.precondition(rows(40, dim, seed))
    matrix, x = dense(fisher, dim), rows(7, dim, 9)
    expected = torch.linalg.solve(matrix + fisher.alpha * matrix.trace() / dim * torch.eye(dim), x.T).T
    got, scale = fisher.precondition(x)
    torch.testing.assert_close(got / got.norm(), expected / expected.norm())
    torch.testing.assert_close(scale * got.norm(), x.norm())


def test_update_is_one_step_of_subspace_iteration():
    """The same update from D x D matrices, as the derivation reads."""
    dim, rank = 15, 5
    fisher = OnlineNaturalGradient(rank=rank, num_samples_history=200)
    fisher.precondition(rows(60, dim))
    for seed in range(1, 8):
        r, _, _ = directions(fisher, dim)
        before, x = dense(fisher, dim), rows(60, dim, seed)
        fisher.precondition(x)
        eta = fisher.forgetting(60)
        target = eta * x.T @ x / 60 + (1 - eta) * before
        y = r @ target
        c, u = torch.linalg.eigh(y @ y.T)
        root, new_r = c.sqrt(), (u.T @ y) / c.sqrt()[:, None]
        rho = (target.trace() - root.sum()) / (dim - rank)
        least = fisher.delta * root.max()
        d, rho = (root - rho).clamp(min=least), rho.clamp(min=least)
        expected = new_r.T @ torch.diag(d) @ new_r + rho * torch.eye(dim, dtype=torch.float64)
        torch.testing.assert_close(dense(fisher, dim), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", [(40, 16), (12, 30), (2, 5), (5, 1)])
def test_simple_method_excludes_each_row_from_its_own_fisher(shape):
    """Row by row: solve with the scatter of the other rows."""
    x, alpha = rows(*shape), 4.0
    num_rows, dim = shape
    smoothing = alpha * x.square().sum() / (num_rows * dim) * torch.eye(dim)
    expected = torch.stack([
        torch.linalg.solve(smoothing + (x.T @ x - torch.outer(row, row)) / (num_rows - 1), row) for row in x])
    torch.testing.assert_close(simple_natural_gradient(x, alpha), expected * x.norm() / expected.norm())


# -- edge cases ----------------------------------------------------------------------------------------------

def test_one_column_and_no_rows_pass_unchanged():
    fisher = OnlineNaturalGradient(rank=3)
    for x in (torch.randn(6, 1), torch.zeros(0, 4)):
        got, scale = fisher.precondition(x)
        assert torch.equal(got, x) and scale == 1


def test_zero_minibatches_first_and_later():
    fisher = OnlineNaturalGradient(rank=3)
    for x in (torch.zeros(8, 6), rows(8, 6).float(), torch.zeros(8, 6)):
        got, scale = fisher.precondition(x)
        assert torch.isfinite(got).all() and torch.isfinite(scale) and torch.isfinite(fisher.factor).all()
    assert scale == 1


def test_frozen_calls_change_nothing():
    fisher = OnlineNaturalGradient(rank=3)
    fisher.precondition(rows(20, 8))
    before = fisher.state_dict()
    fisher.freeze()
    fisher.precondition(rows(20, 8, seed=1))
    after = fisher.state_dict()
    assert torch.equal(before["factor"], after["factor"]) and before["calls"] == after["calls"]


def test_2025_schedule_starves_under_alternate_freezing_and_2017_does_not():
    """Counting frozen calls, period 4: unfrozen calls fall on odd counts, so nothing is due after the first ten."""
    counts = {}
    for schedule in ("2017", "2025"):
        fisher = OnlineNaturalGradient(rank=2, update_period=4, schedule=schedule)
        for call in range(103):
            fisher.freeze(call % 2 == 0)
            fisher.precondition(rows(8, 5, seed=call))
        counts[schedule] = fisher.report().num_updates - 3  # less those of the initialisation
    assert counts == {"2017": 10 + (51 - 10) // 4, "2025": 5}


def test_gain_equals_scaling_the_rows():
    plain, gained = OnlineNaturalGradient(rank=3), OnlineNaturalGradient(rank=3)
    for seed in range(6):
        x = rows(30, 9, seed)
        expected, _ = plain.precondition(64.0 * x)
        got, _ = gained.precondition(x, gain=64.0)
        torch.testing.assert_close(64.0 * got, expected, rtol=1e-10, atol=0)


def test_blocks_of_rows_make_no_difference(monkeypatch):
    """As many as fit in the cache, or all at once; with an appended one too."""
    results = []
    for size in (2**10, 2**30):
        monkeypatch.setattr("hemstitch.curvature._fisher_rows.BLOCK_BYTES", size)
        fisher, affine = OnlineNaturalGradient(rank=3), OnlineNaturalGradient(rank=3)
        results.append([part for seed in range(4) for x in [rows(150, 9, seed)]
                        for part in (*fisher.precondition_rows(x), *affine.precondition_affine(x))])
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-14)
    x = rows(150, 9)
    joined, _ = OnlineNaturalGradient(rank=3).precondition(torch.cat([x, x.new_ones(150, 1)], 1))
    y, ones, _ = OnlineNaturalGradient(rank=3).precondition_affine(x)
    torch.testing.assert_close(torch.cat([y, ones[:, None]], 1), joined)


def test_result_may_overwrite_the_rows():
    fisher, other = OnlineNaturalGradient(rank=3), OnlineNaturalGradient(rank=3)
    for seed in range(4):
        x = rows(30, 9, seed)
        expected, _ = fisher.precondition(x)
        got, _ = other.precondition(x, out=x)
        assert got.data_ptr() == x.data_ptr()
        torch.testing.assert_close(got, expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_bad_numbers_never_reach_the_state(bad):
    fisher = OnlineNaturalGradient(rank=3)
    poisoned = rows(20, 8).float()
    poisoned[3, 2] = bad
    for x in (poisoned, rows(20, 8, 1).float(), poisoned):
        before = fisher.state_dict()
        fisher.precondition(x)
        after = fisher.state_dict()
        if x is poisoned:
            assert ("factor" in before) == ("factor" in after)
            assert "factor" not in before or torch.equal(before["factor"], after["factor"])
    assert fisher.report().num_refused >= 2
    got, scale = fisher.precondition(rows(20, 8, 2).float())
    assert torch.isfinite(got).all() and torch.isfinite(scale)


def test_nan_reaches_the_output():
    """So that a GradScaler, or whoever checks gradients, sees it."""
    x = rows(20, 8).float()
    x[3, 2] = float("nan")
    got, _ = OnlineNaturalGradient(rank=3).precondition(x)
    assert torch.isnan(got).any()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 3e-3), (torch.float64, 1.1e-3)])
def test_directions_stay_orthonormal(dtype, tolerance):
    """Eigenvalues over eight decades, scales that jump by a thousand: R R' = I throughout."""
    dim, fisher = 60, OnlineNaturalGradient(rank=20, num_samples_history=500)
    spread = torch.logspace(0, -4, dim, dtype=torch.float64)
    for call in range(300):
        generator = torch.Generator().manual_seed(call)
        x = torch.randn(64, dim, generator=generator, dtype=torch.float64) * spread
        x *= 1000.0 if call % 37 == 5 else 1.0
        fisher.precondition(x.to(dtype))
        r, _, _ = directions(fisher, dim)
        assert (r @ r.T - torch.eye(20)).abs().max() < tolerance, f"call {call}"


def test_failed_factorisation_recovers_and_is_counted():
    """Rows of one direction only, suddenly larger by 1e12: the new directions are numerically dependent."""
    dim, fisher = 30, OnlineNaturalGradient(rank=8)
    direction = rows(1, dim)
    for call in range(40):
        size = 1e12 if call == 20 else 1.0
        got, scale = fisher.precondition((size * torch.randn(50, 1, dtype=torch.float64) * direction).float())
        assert torch.isfinite(got).all() and torch.isfinite(scale)
    r, _, _ = directions(fisher, dim)
    assert (r @ r.T - torch.eye(8)).abs().max() < 1e-2
    assert fisher.report().num_recovered > 0


def test_half_precision_rows_are_computed_in_single():
    fisher = OnlineNaturalGradient(rank=3)
    got, _ = fisher.precondition(rows(20, 8, dtype=torch.bfloat16))
    assert got.dtype == torch.bfloat16 and fisher.factor.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, _ = fisher.precondition(rows(20, 8, dtype=torch.float32))
    assert got.dtype == torch.float32


def test_state_round_trip_is_exact():
    first, second = OnlineNaturalGradient(rank=3, update_period=3), OnlineNaturalGradient(rank=3, update_period=3)
    for seed in range(14):
        first.precondition(rows(20, 8, seed))
    second.load_state_dict(first.state_dict())
    for seed in range(14, 20):
        for got, expected in zip(first.precondition(rows(20, 8, seed)), second.precondition(rows(20, 8, seed))):
            assert torch.equal(got, expected)


def test_report_of_known_fisher():
    fisher = OnlineNaturalGradient(rank=2, num_samples_history=1.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        fisher.precondition(torch.randn(4000, 6, generator=generator) * torch.tensor([10.0, 1, 1, 1, 1, 1]))
    report = fisher.report()
    assert report.condition == pytest.approx(100, rel=0.1)
    assert report.effective_rank == pytest.approx(105**2 / (100**2 + 5), rel=0.1)


@pytest.mark.parametrize("option", [
    {"rank": 0}, {"update_period": 0}, {"num_samples_history": 0}, {"num_minibatches_history": 1.0}, {"alpha": 0},
    {"alpha": float("nan")}, {"epsilon": 0}, {"delta": -1}, {"schedule": "2020"}])
def test_bad_options_are_refused(option):
    with pytest.raises(ConfigError, match=next(iter(option))):
        OnlineNaturalGradient(**option)


def test_misuse_is_refused():
    fisher = OnlineNaturalGradient(rank=3)
    with pytest.raises(MisuseError, match="flatten"):
        fisher.precondition(torch.randn(2, 3, 4))
    fisher.precondition(torch.randn(9, 4))
    with pytest.raises(MisuseError, match="4 columns, got 5"):
        fisher.precondition(torch.randn(9, 5))
    with pytest.raises(ConfigError, match="rank 3"):
        OnlineNaturalGradient(rank=2).load_state_dict(fisher.state_dict())
    with pytest.raises(ConfigError, match="upgrade"):
        fisher.load_state_dict({"version": 99})
