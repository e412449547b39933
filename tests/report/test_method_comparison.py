"""The pages of cross-validated comparisons and of sweeps."""

import json
import re

import pytest

from hemstitch.errors import RunError
from hemstitch.report import method_comparison_page, sweep_page, verdict, write_method_comparison, write_sweep_page

HOSTILE = "</script></style><img src=x onerror=alert(1)>\"'&\x00\ud800"
COST = dict(runs=10, forward_passes=120.0, backward_passes=240.0, wall_seconds=1200.0, cpu_seconds=2000.0)


def method(name, rate, **more):
    rates = {"1": rate - 0.01, "2": rate + 0.01}
    return {
        "name": name, "rate": rate, "low": rate - 0.02, "high": rate + 0.02, "errors": 5616 * rate, "seeds": rates,
        "official": {"1": 0.2}, "cost": COST, "tuning": None, "paper": None, "settings": {"update.lr": 0.1}, **more,
    }  # fmt: skip


def pair(**more):
    return {
        "a": "new", "b": "old", "absolute": 0.015, "low": 0.006, "high": 0.024, "relative": 0.1, "relative_low": 0.04,
        "relative_high": 0.16, "probability": 0.9995, "luck": 0.001, "by_seed": [0.08, 0.12], "verdict": "better",
        **more,
    }  # fmt: skip


@pytest.fixture
def comparison():
    methods = [method("new", 0.135, paper="12.1 %", tuning=COST), method("old", 0.15)]
    design = dict(folds=5, fold_seed=0, seeds=[1, 2], units=76, words=5616, measure="WER")
    command = ["hemstitch", "cross-validate", "new.toml", "old.toml"]
    return {"methods": methods, "comparisons": [pair()], **design, "environment": {"command": command}}


@pytest.fixture
def swept():
    rows = [
        {"settings": {"update.lr": lr}, "scores": {"1": score, "2": score}, "score": score, "status": status,
         "cost": COST, "refinement": lr > 0.1, "folders": {}}
        for lr, score, status in ((0.1, 0.25, "finished"), (0.3, 0.24, "finished"), (9.0, None, "diverged"))
    ]  # fmt: skip
    best = {"settings": {"update.lr": 0.3}, "score": 0.24, "test": {"wer": 0.21}}
    return {"name": "an4", "by": "wer", "best": best, "rows": rows, "cost": COST, "remarks": ["1 of 3 diverged"]}


def test_says_which_is_better_by_how_much_and_how_sure(comparison, parse):
    page = parse(method_comparison_page(comparison))
    page.assert_self_contained()
    text = page.text.replace("\u00a0", " ")
    for expected in (
        "5,616 words of 76 speakers, 5 folds, seeds 1, 2",
        "new makes 10.0 % fewer errors than old (95 %: 4.0 to 16.0 %); it is the better one with a probability of more "
        "than 99.9 %.",
        "13.5 %11.5 to 15.5 %12.5 %, 14.5 %",  # mean, interval, each seed
        "1.50 points0.60 points to 2.40 points",
        "8.0 %, 12.0 %",  # gain with each seed
        "12.1 %",
        "33 min 20 s",
        "hemstitch cross-validate new.toml old.toml",
    ):
        assert expected in text, expected
    assert page.source.count("<svg") == 2


def test_bars_stand_for_rates_and_gains(comparison):
    rates, gains = re.findall(r"<figcaption>([^<]*)</figcaption>(.*?)</svg>", method_comparison_page(comparison))
    assert rates[0] == "WER, all folds" and gains[0] == "Relative gain"
    assert rates[1].count("<use") == 4 and gains[1].count("<use") == 2  # a dot a seed


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            dict(relative=-0.1, relative_low=-0.16, relative_high=-0.04, verdict="worse", probability=0.0),
            "new makes 10.0 % more errors than old (95 %: 4.0 to 16.0 %); it is the better one with a probability of "
            "less than 0.1 %.",
        ),
        (
            dict(relative=0.02, relative_low=-0.03, relative_high=0.07, verdict="unclear", probability=0.75),
            "The two cannot be told apart: new makes 2.0 % fewer errors than old (95 %: -3.0 to 7.0 %); it is the "
            "better one with a probability of 75.0 %.",
        ),
        (
            dict(relative=0.0, relative_low=0.0, relative_high=0.0, verdict="unclear", probability=0.5),
            "The two cannot be told apart: new makes 0.0 % fewer errors than old (95 %: 0.0 to 0.0 %); it is the "
            "better one with a probability of 50.0 %.",
        ),
        (
            dict(relative=None, absolute=-0.02),
            "old makes no errors, so there is no relative gain; new has 2.00 points more.",
        ),
    ],
)
def test_the_verdict_is_a_sentence(changes, expected):
    assert verdict(pair(**changes)).replace("\u00a0", " ") == expected


def test_one_seed_is_called_what_it_is(comparison, parse):
    for entry in comparison["methods"]:
        entry["seeds"] = {"1": entry["rate"]}
    comparison |= {"seeds": [1], "comparisons": [pair(by_seed=[0.1])]}
    assert "say nothing on what other seeds" in parse(method_comparison_page(comparison)).text


def test_without_a_relative_gain_there_is_still_a_page(comparison, parse):
    comparison["comparisons"] = [pair(relative=None, relative_low=None, relative_high=None, by_seed=[None, None])]
    page = parse(method_comparison_page(comparison))
    assert page.source.count("<svg") == 1 and "makes no errors" in page.text


def test_many_comparisons_carry_a_warning_and_one_method_is_a_page_too(comparison, parse):
    comparison["comparisons"] *= 3
    assert "3 comparisons were made" in parse(method_comparison_page(comparison)).text
    comparison |= {"methods": comparison["methods"][:1], "comparisons": []}
    parse(method_comparison_page(comparison)).assert_self_contained()


def test_a_sweep_shows_what_was_tried_what_dev_said_and_the_cost(swept, parse):
    page = parse(sweep_page(swept))
    page.assert_self_contained()
    text = page.text.replace("\u00a0", " ")
    for expected in ("update.lr = 0.3", "of 3 combinations", "24.0 %", "21.0 %", "33 min 20 s", "360",
                     "finished, beyond the grid", "diverged", "1 of 3 diverged"):  # fmt: skip
        assert expected in text, expected
    assert '<tr class="marked"><th scope="row">0.3' in page.source


def test_nothing_from_the_files_becomes_markup(comparison, swept, parse):
    comparison["methods"][0] |= {"name": HOSTILE, "paper": HOSTILE, "settings": {HOSTILE: HOSTILE}}
    comparison["comparisons"][0]["a"] = comparison["environment"]["command"][0] = HOSTILE
    swept |= {"name": HOSTILE, "remarks": [HOSTILE]}
    swept["rows"][0] |= {"settings": {"update.lr": HOSTILE}, "status": HOSTILE}
    for page in (parse(method_comparison_page(comparison)), parse(sweep_page(swept))):
        page.assert_self_contained()
        assert "onerror" in page.text


def test_pages_stand_beside_their_results(comparison, swept, tmp_path):
    (tmp_path / "cross-validation.json").write_text(json.dumps(comparison))
    (tmp_path / "sweep.json").write_text(json.dumps(swept))
    assert write_method_comparison(tmp_path) == tmp_path / "comparison.html"
    assert write_sweep_page(tmp_path) == tmp_path / "sweep.html"
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(RunError, match=r"sweep.json cannot be read .* run the experiment again"):
        write_sweep_page(tmp_path)
