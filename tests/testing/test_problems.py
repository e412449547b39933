"""The small problems are repeatable, learnable and of the stated form."""

import pytest
import torch

from hemstitch.testing import quadratic, tiny_convnet, tiny_mlp


@pytest.mark.parametrize("build", [quadratic, tiny_mlp, tiny_convnet])
def test_problem_is_repeatable_and_leaves_random_numbers_alone(build):
    before = torch.get_rng_state()
    first, second = build(), build()
    assert torch.equal(before, torch.get_rng_state())
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(first.evaluate(1), second.evaluate(1))


def test_quadratic_has_the_stated_condition():
    problem = quadratic(dim=5, condition=100.0)
    hessian = torch.autograd.functional.hessian(
        lambda theta: problem.loss(theta.expand(8, 5), problem.batches[0][1]), problem.model.theta.detach())
    eigenvalues = torch.linalg.eigvalsh(hessian)
    assert eigenvalues[-1] / eigenvalues[0] == pytest.approx(100.0)


def test_sum_reduction_is_mean_times_rows():
    mean, total = tiny_mlp(reduction="mean"), tiny_mlp(reduction="sum")
    torch.testing.assert_close(total.evaluate(), 16 * mean.evaluate())
