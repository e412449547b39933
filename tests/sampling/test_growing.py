"""Growing samples: sizes of each rule, nesting, frames, determinism, and the variance test against its definition."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hemstitch.errors import ConfigError
from hemstitch.sampling import GrowingSample, SampleGrowth, gradient_noise


def sizes(sample, steps, noise=None):
    result = []
    for _ in range(steps):
        result.append(sample.size)
        sample.advance(noise)
    return result


def test_fixed_geometric_and_capped_sizes():
    assert sizes(GrowingSample(100, SampleGrowth(start=30)), 3) == [30, 30, 30]
    assert sizes(GrowingSample(100, SampleGrowth(start=10, factor=2.0)), 5) == [10, 20, 40, 80, 100]
    assert sizes(GrowingSample(100, SampleGrowth(start=10, factor=2.0, cap=50)), 4) == [10, 20, 40, 50]
    assert sizes(GrowingSample(5, SampleGrowth(start=10)), 1) == [5]


@pytest.mark.parametrize(("share", "factor"), [(0.04, 1.2), (0.01, 1.3)])
def test_the_papers_factors_reach_all_data_at_half_of_35_iterations(share, factor):
    sample = GrowingSample(100_000, SampleGrowth(start=int(100_000 * share), factor=factor))
    assert sizes(sample, 35).index(100_000) == 18


def test_variance_rule_grows_only_where_the_test_fails():
    growth = SampleGrowth(start=100, theta=0.5)
    assert growth.after(100, 1, 1000, noise=0.2) == 100             # 0.2 <= 0.25
    assert growth.after(100, 1, 1000, noise=1.0) == 400             # 100 * 1 / 0.25
    assert growth.after(400, 1, 1000, noise=1.0) == 1000
    assert growth.after(100, 1, 1000, noise=None) == growth.after(100, 1, 1000, noise=math.inf) == 100


def test_geometric_growth_hands_over_to_the_variance_rule():
    growth = SampleGrowth(start=10, factor=2.0, theta=0.5, switch_share=0.3)
    assert growth.after(10, 1, 100, noise=100.0) == 20              # the variance of a small sample is not trusted
    assert growth.after(20, 2, 100, noise=0.0) == 40
    assert growth.after(40, 3, 100, noise=0.0) == 40                # 40 >= 30: handed over
    assert growth.after(40, 3, 100, noise=0.5) == 80


def test_noise_is_the_relative_variance_of_the_mean():
    rows = torch.randn(12, 7, dtype=torch.float64) + 1
    expected = rows.var(0, unbiased=True).sum() / 12 / rows.mean(0).square().sum()
    noise = gradient_noise(rows.square().sum().item(), rows.sum(0).square().sum().item(), 12)
    assert noise == pytest.approx(expected.item())
    assert gradient_noise(1.0, 1.0, 1) == math.inf and gradient_noise(1.0, 0.0, 5) == math.inf
    assert gradient_noise(2.0, 4.0, 2) == 0.0                       # equal gradients


@pytest.mark.parametrize("theta", [0.1, 0.4])
def test_the_size_asked_for_passes_the_test(theta):
    """With i.i.d. unit gradients the noise falls as 1 / S: at the new size it is theta^2."""
    size, noise = 50, 3.0
    new = SampleGrowth(start=50, theta=theta).after(size, 1, 10**9, noise)
    assert noise * size / new <= theta**2 < noise * size / (new - 1)


@given(st.integers(1, 200), st.floats(1.0, 3.0), st.integers(0, 100))
def test_nested_samples_contain_each_other(start, factor, seed):
    sample = GrowingSample(200, SampleGrowth(start=start, factor=factor), seed)
    before = torch.tensor([], dtype=torch.int64)
    for _ in range(5):
        now = sample.indices()
        assert now[: len(before)].equal(before) and len(set(now.tolist())) == len(now)
        before = now
        sample.advance()


def test_fresh_samples_differ_and_all_are_functions_of_seed_and_step():
    make = lambda seed, nested: GrowingSample(1000, SampleGrowth(start=20), seed, nested=nested)
    fresh, nested = make(3, False), make(3, True)
    first, same = fresh.indices(), nested.indices()
    fresh.advance(), nested.advance()
    assert not first.equal(fresh.indices()) and same.equal(nested.indices())
    again = make(3, False)
    again.advance()
    assert again.indices().equal(fresh.indices())
    assert not make(4, True).indices().equal(same)


def test_frames_are_counted_and_the_sample_is_the_shortest_that_reaches_them():
    lengths = torch.randint(5, 50, (300,), generator=torch.Generator().manual_seed(0))
    sample = GrowingSample(lengths, SampleGrowth(start=400, factor=1.5))
    for _ in range(6):
        chosen = lengths[sample.indices()]
        assert chosen.sum() >= sample.size > chosen[:-1].sum()
        sample.advance()
    everything = GrowingSample(lengths, SampleGrowth(start=10**9))
    assert len(everything.indices()) == 300


def test_state_round_trip_and_foreign_states():
    growth = SampleGrowth(start=10, theta=0.2)
    sample = GrowingSample(500, growth, seed=1, nested=False)
    sample.advance(noise=0.1)
    restored = GrowingSample(500, growth, seed=1, nested=False)
    restored.load_state_dict(sample.state_dict())
    for each in (sample, restored):
        each.advance(noise=0.07)
    assert restored.size == sample.size > 10 and restored.indices().equal(sample.indices())
    with pytest.raises(ConfigError, match="seed = 1, this one has 2"):
        GrowingSample(500, growth, seed=2, nested=False).load_state_dict(sample.state_dict())


@pytest.mark.parametrize("options", [
    dict(start=0), dict(start=5, cap=4), dict(start=5, factor=0.9), dict(start=5, theta=0.0), dict(start=5, theta=1.0)])
def test_impossible_growth_is_refused(options):
    with pytest.raises(ConfigError):
        SampleGrowth(**options)


def test_empty_data_is_refused():
    for items in (0, torch.tensor([3, 0])):
        with pytest.raises(ConfigError, match="at least one"):
            GrowingSample(items, SampleGrowth(start=1))
