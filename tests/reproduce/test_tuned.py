"""Comparisons with tuned learning rates, and methods that no recipe knows."""

from functools import partial

import torch

from hemstitch.reproduce._method_runs import SGD, image_part
from hemstitch.reproduce._peer_gradients import library, with_optimizer
from hemstitch.reproduce._tuned import Contender, contender_parts, is_at_edge, mean_best, tuned_row, tuned_runs


def results(**dev):
    return {name.replace("_", ", "): {"best": best} for name, best in dev.items()}


RESULTS = results(**{"A_rate 1": 3.0, "A_rate 2": 1.0, "A_rate 4": 2.0, "A_rate 2_seed 2": 2.0, "AB_rate 1": 0.1,
                     "B_rate 1": None, "B_rate 2": 5.0})  # fmt: skip


def test_the_rate_is_chosen_with_the_first_seed():
    rate, runs = tuned_runs(RESULTS, "A")
    assert rate == 2 and [r["best"] for r in runs] == [1.0, 2.0] and mean_best(RESULTS, "A") == 1.5
    assert tuned_row(RESULTS, "A", "loss").seeds == 2


def test_a_rate_at_the_edge_is_told():
    assert not is_at_edge(RESULTS, "A")
    assert is_at_edge(RESULTS, "B")  # the smaller one diverged


def test_parts_of_contenders():
    method = Contender(settings={"a": 1}, rates=(1.0, 2.0), tuned=2.0)
    parts = contender_parts("laptop", lambda scale, settings, change: settings, {"A": method}, 2)
    assert parts["A, rate 2, seed 2"] == {"a": 1, "update.lr": 2.0, "seed": 2}
    assert list(parts) == ["A, rate 1", "A, rate 2", "A, rate 2, seed 2"]


def test_an_optimizer_that_recipes_do_not_know(tmp_path):
    change = partial(with_optimizer, make=partial(torch.optim.Adagrad, lr=0.01))
    result = image_part("smoke", SGD, change)(tmp_path)
    assert len(result["dev"]["y"]) == 2 and result["best"] < 1 and library("no_such_package") is None
