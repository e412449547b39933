import json

import numpy as np
import pytest

from hemstitch.errors import ConfigError, RunError
from hemstitch.train._experiments import detection_power, measured_agreement, model_words, words_like

AN4 = [74] * 76
"""AN4 pooled: 76 speakers, 5,616 words."""


def repeated(chances, random, draws=200):
    """Share of the errors of one network that another repeats."""
    one, other = (random.random((draws, len(chances))) < chances for _ in range(2))
    return (one & other).sum() / one.sum()


def test_a_tenth_less_errors_on_pooled_an4_is_seen_in_four_of_five_comparisons_or_more():
    detection = detection_power(model_words(AN4), gain=0.1, trials=150, replications=400)
    assert detection.better >= 0.8 and detection.worse == 0
    assert detection.gain == pytest.approx(0.1, abs=0.01) and detection.error_rate == pytest.approx(0.15, abs=0.01)
    assert 0.9 <= detection.covered <= 0.99


def test_what_is_not_there_is_seen_in_one_of_twenty_comparisons():
    detection = detection_power(model_words(AN4), gain=0.0, trials=400, replications=400)
    assert 0.02 <= detection.better + detection.worse <= 0.09
    assert detection.gain == pytest.approx(0, abs=0.01)


def test_one_seed_raises_false_alarms_where_networks_have_luck():
    alarms = {}
    for seeds in (1, 2):
        found = detection_power(
            model_words(AN4), gain=0, seeds=seeds, network_deviation=0.12, trials=150, replications=300
        )
        alarms[seeds] = found.better + found.worse
    assert alarms[1] > 0.25 and alarms[2] < 0.12


def test_the_model_has_the_rate_spread_and_agreement_that_it_is_given():
    random = np.random.default_rng(0)
    chances, speakers = model_words([500] * 400, error_rate=0.2, speaker_deviation=0.08, agreement=0.6)(random)
    rates = np.bincount(speakers, chances) / 500
    assert rates.mean() == pytest.approx(0.2, abs=0.015)
    within = (chances.var() - rates.var()) / 500
    assert rates.var() - within == pytest.approx(0.08**2, rel=0.2)
    assert repeated(chances, random, 5) == pytest.approx(0.6, abs=0.02)


def test_words_like_those_of_a_real_test_keep_its_rate_and_have_the_agreement():
    random = np.random.default_rng(0)
    counts = {f"{s}-{k}": (f"s{s}", 10, int(random.binomial(10, 0.1 + 0.03 * s))) for s in range(10) for k in range(8)}
    counts["s0-long"] = ("s0", 2, 5)  # more errors than words
    chances, speakers = words_like(counts, agreement=0.7, num_speakers=2000)(random)
    words, wrong = (sum(min(c[k], c[1]) for c in counts.values()) for k in (1, 2))
    assert chances.mean() == pytest.approx(wrong / words, abs=0.01)
    assert repeated(chances, random, 5) == pytest.approx(0.7, abs=0.02)
    assert len(np.unique(speakers)) == 2000 and (np.diff(speakers) >= 0).all()


def test_agreement_is_the_share_of_errors_that_another_run_repeats(tmp_path):
    heard = {"one": ["a x c d", "x b"], "other": ["a x y d e", "a b", "z"]}
    for name, hypotheses in heard.items():
        rows = [
            dict(id=str(k), speaker="s", reference=r, hypothesis=h)
            for k, (r, h) in enumerate(zip(["a b c d", "a b", "a"], hypotheses))
        ]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    # one: b and the second a are wrong; other, in the utterances of both: b and c
    assert measured_agreement(tmp_path / "one", tmp_path / "other") == 0.5
    with pytest.raises(RunError, match="no agreement to measure"):
        (tmp_path / "none").write_text("")
        measured_agreement(tmp_path / "one", tmp_path / "none")


@pytest.mark.parametrize("options", [dict(agreement=0.1), dict(error_rate=0.0), dict(speaker_deviation=0.4)])
def test_impossible_models_are_refused(options):
    with pytest.raises(ConfigError, match="need 0 < error_rate < agreement < 1"):
        model_words(AN4, **options)


def test_a_test_without_errors_tells_nothing():
    with pytest.raises(ConfigError, match="need 0 < error rate"):
        words_like({"u": ("s", 5, 0)}, 0.7, 10)
