import itertools
import math

import numpy as np
import pytest

from hemstitch.errors import MisuseError
from hemstitch.train._experiments._paired_bootstrap import PairedErrors


def speakers(random, num_units=60, seeds=1, rates=(0.1, 0.15), words=70):
    """Independent errors: (method, seed, unit) counts and (unit,) words."""
    sizes = random.integers(words - 20, words + 20, num_units)
    rates = np.array(rates)[:, None, None] * random.uniform(0.5, 1.5, num_units)
    return random.binomial(sizes, np.broadcast_to(rates, (len(rates), seeds, num_units))), sizes


def test_every_way_to_draw_three_speakers_is_as_likely_as_it_should_be():
    """Against all 27 draws: probability of a gain, and the distribution of each rate."""
    errors, words = np.array([[[1, 2, 5]], [[4, 2, 1]]]), np.array([10, 20, 30])
    pair = PairedErrors(errors, words, [0, 1, 2], replications=40_000)
    draws = np.array(list(itertools.product(range(3), repeat=3)))
    rates = errors[:, 0][:, draws].sum(axis=2) / words[draws].sum(axis=1)
    difference = rates[1] - rates[0]
    exact = (difference > 1e-12).mean() + (abs(difference) < 1e-12).mean() / 2
    assert pair.gain(0, 1).probability == pytest.approx(exact, abs=0.01)
    places = np.linspace(-0.01, 0.5, 23)
    for method in range(2):
        drawn = (pair.replicates[:, method, None] <= places).mean(axis=0)
        np.testing.assert_allclose(drawn, (rates[method][:, None] <= places).mean(axis=0), atol=0.01)


def test_many_speakers_give_the_interval_of_the_normal_approximation():
    """Linearised ratio: the standard error of sum(d) / sum(w) from the residuals d - w sum(d) / sum(w)."""
    errors, words = speakers(np.random.default_rng(0), num_units=400)
    pair = PairedErrors(errors, words, np.arange(400) % 5)
    gain, d = pair.gain(0, 1), errors[1, 0] - errors[0, 0]
    rest = d - words * d.sum() / words.sum()
    error = math.sqrt((rest**2).sum()) / words.sum()
    assert gain.absolute == pytest.approx(d.sum() / words.sum())
    assert gain.low == pytest.approx(gain.absolute - 1.96 * error, abs=0.06 * error)
    assert gain.high == pytest.approx(gain.absolute + 1.96 * error, abs=0.06 * error)
    assert gain.relative == pytest.approx(d.sum() / errors[1].sum())
    low, high = pair.interval(0)
    assert low < errors[0].sum() / words.sum() < high


def test_pairing_removes_what_is_hard_for_both():
    random = np.random.default_rng(1)
    hard = random.binomial(70, random.uniform(0.05, 0.5, 76))
    better = hard - random.binomial(hard, 0.05)
    pair = PairedErrors([[better], [hard]], np.full(76, 70), np.arange(76) % 5)
    (low, high), (other_low, other_high), gain = pair.interval(0), pair.interval(1), pair.gain(0, 1)
    assert low < other_low < high < other_high  # the intervals overlap
    assert gain.verdict == "better" and 0.03 < gain.relative_low < 0.05 < gain.relative_high < 0.07


@pytest.mark.parametrize("seeds", [1, 3, 4])
def test_equal_methods_are_tied(seeds):
    errors, words = speakers(np.random.default_rng(2), seeds=seeds, rates=(0.1,))
    gain = PairedErrors(np.concatenate([errors, errors]), words, np.arange(60) % 5, replications=500).gain(0, 1)
    assert (gain.absolute, gain.low, gain.high, gain.probability, gain.relative) == (0, 0, 0, 0.5, 0)
    assert gain.verdict == "unclear" and gain.by_seed == (0.0,) * seeds


def test_without_any_error_there_is_no_relative_gain():
    gain = PairedErrors(np.zeros((2, 1, 4)), [5, 5, 5, 5], [0, 0, 1, 1], replications=100).gain(0, 1)
    assert (gain.absolute, gain.probability) == (0, 0.5) and math.isnan(gain.relative) and math.isnan(gain.relative_low)


def test_the_order_of_the_methods_changes_the_sign_and_nothing_else():
    errors, words = speakers(np.random.default_rng(3), seeds=2)
    pair = PairedErrors(errors, words, np.arange(60) % 5)
    forth, back = pair.gain(0, 1), pair.gain(1, 0)
    assert forth.absolute == -back.absolute and forth.luck == back.luck
    assert forth.probability > 0.9 and forth.probability + back.probability == pytest.approx(1, abs=0.01)


def test_luck_of_networks_is_found_where_it_is_and_only_there():
    """400 simulated comparisons: the mean of the estimated variance is the planted one."""
    random, found = np.random.default_rng(4), []
    for planted in (0.0, 0.15):
        variances = []
        for _ in range(200):
            folds = np.arange(50) % 5
            luck = np.exp(planted * random.standard_normal((1, 2, 5)))[:, :, folds]
            errors = random.binomial(70, np.minimum(0.2 * luck, 1))
            pair = PairedErrors(errors, np.full(50, 70), folds, replications=1)
            variances.append(pair._luck(errors[0]) ** 2)
        found.append(np.mean(variances))
    one_network = (0.2 * 0.15) ** 2
    assert found[0] < 0.1 * one_network / 10  # not 0 on the mean, as it is cut off there
    assert found[1] == pytest.approx(one_network / 10, rel=0.25)  # pooled over 5 folds and 2 seeds


def test_lucky_networks_widen_the_interval():
    random = np.random.default_rng(5)
    folds = np.arange(60) % 5
    luck = np.array([0.7, 1.3])[None, :, None] * np.ones((2, 1, 60))
    luck[1] = luck[1, ::-1]
    lucky, plain = (random.binomial(70, 0.2 * x) for x in (luck, np.ones((2, 2, 60))))
    wide, narrow = (PairedErrors(x, np.full(60, 70), folds).gain(0, 1) for x in (lucky, plain))
    assert wide.luck > 5 * narrow.luck and wide.high - wide.low > 3 * (narrow.high - narrow.low)
    assert math.isnan(PairedErrors(lucky[:, :1], np.full(60, 70), folds, replications=10).gain(0, 1).luck)


def test_the_same_seed_gives_the_same_interval():
    errors, words = speakers(np.random.default_rng(6), seeds=2)
    gains = [PairedErrors(errors, words, np.arange(60) % 5, seed=seed).gain(0, 1) for seed in (1, 1, 2)]
    assert gains[0] == gains[1] and gains[0].low != gains[2].low


@pytest.mark.parametrize(
    ("errors", "words", "folds"),
    [
        (np.ones((2, 1, 3)), [1, 1], [0, 0]),
        (np.ones((2, 3)), [1, 1, 1], [0, 0, 0]),
        (np.ones((2, 1, 1)), [1], [0]),
        (np.ones((2, 1, 2)), [1, 0], [0, 0]),
    ],
)
def test_misfits_are_refused(errors, words, folds):
    with pytest.raises(MisuseError, match="unit"):
        PairedErrors(errors, words, folds)
