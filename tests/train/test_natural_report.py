"""What natural gradient and bounded steps tell of themselves in a run."""

import pytest
import torch

from hemstitch.optim import SGD, Backstitch, NaturalGradient, component_groups
from hemstitch.testing import tiny_mlp
from hemstitch.train._natural_report import bounds_met, fisher_values


def gradient(problem, factor=1.0):
    problem.model.zero_grad()
    (factor * problem.evaluate(0)).backward()


def test_state_of_the_estimates():
    problem = tiny_mlp()
    natural = NaturalGradient(problem.model, loss_reduction="mean")
    assert fisher_values(None) == {} and fisher_values(natural) == {}
    for factor in (1.0, 1.0, float("nan")):
        gradient(problem, factor)
    reports = [layer["out"] for layer in natural.report().values()]
    values = fisher_values(natural)
    assert values["fisher_updates_refused"] == len(reports)  # NaN in the derivatives, not in the inputs
    assert values["fisher_effective_rank_out"] == pytest.approx(sum(r.effective_rank for r in reports) / len(reports))
    assert values["fisher_condition_out"] >= 1


def test_counts_survive_saving():
    problem, other = tiny_mlp(), tiny_mlp()
    natural, restored = (NaturalGradient(p.model, loss_reduction="mean") for p in (problem, other))
    for factor in (1.0, float("inf")):
        gradient(problem, factor)
    restored.load_state_dict(natural.state_dict())
    assert fisher_values(restored) == fisher_values(natural)


@pytest.mark.parametrize("pairs", [False, True])
def test_bounds_that_were_met(pairs):
    problem = tiny_mlp()
    groups = component_groups(problem.model, max_change=0.0, overrides={"^0$": {"max_change": 1e-6}})
    optimizer = SGD(groups, lr=0.1, global_max_change=0.0)
    optimizer = Backstitch(optimizer, interval=2) if pairs else optimizer

    def closure():
        gradient(problem)
        return problem.evaluate(0)

    optimizer.step(closure)
    assert bounds_met(optimizer) == {"layers_shortened": 1 / len(groups), "steps_shortened": 0.0}
    assert bounds_met(torch.optim.SGD(problem.model.parameters())) == {}
