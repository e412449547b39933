import copy

import pytest
import torch

from hemstitch.comm import run_workers
from hemstitch.criteria import CrossEntropy
from hemstitch.models import FeedForward
from hemstitch.sampling import BatchSource, ShuffledEpochs
from hemstitch.train._strategies import Batch, ClosureSteps, Gradient, SinglePass, clip_gradient

INPUTS, TARGETS = torch.randn(24, 1, 5), torch.randint(0, 3, (24, 1))


def source(worker=0, num_workers=1, batch_size=8):
    indices = ShuffledEpochs(24, batch_size, seed=1, worker=worker, num_workers=num_workers)
    return BatchSource(indices, lambda i: Batch(INPUTS[i], TARGETS[i], len(i)))


def new_model():
    torch.manual_seed(0)
    model = FeedForward(5, 3, (6,), left_context=0, right_context=0)
    torch.nn.init.normal_(model.layers[-1].weight)
    return model


def bare_steps(model, num_steps, clip=0.0):
    """The loop that anyone would write."""
    optimizer, batches = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), source()
    for _ in range(num_steps):
        batch = batches.next()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(batch.inputs)[:, 0], batch.targets[:, 0]).backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    return model


@pytest.mark.parametrize("steps", [SinglePass, ClosureSteps])
@pytest.mark.parametrize("clip", [0.0, 0.3])
def test_a_strategy_does_what_a_bare_loop_does(steps, clip):
    model = new_model()
    optimizer, batches = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), source()
    strategy = steps(Gradient(model, CrossEntropy()), optimizer, clip)
    reports = [strategy.step(batches) for _ in range(7)]
    assert all(r.applied and r.samples == r.forward == r.backward == 8 for r in reports)
    for ours, theirs in zip(model.parameters(), bare_steps(new_model(), 7, clip).parameters()):
        torch.testing.assert_close(ours, theirs)


def test_an_optimizer_that_needs_several_passes_counts_them():
    model = new_model()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4)
    report = ClosureSteps(Gradient(model, CrossEntropy()), optimizer).step(source(batch_size=24))
    assert report.forward == report.backward > 2 * 24


def test_workers_that_reduce_their_gradients_make_the_step_of_one_large_batch():
    def work(reducer):
        model = copy.deepcopy(start)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        strategy = SinglePass(Gradient(model, CrossEntropy(), reducer=reducer), optimizer)
        batches = source(reducer.rank, reducer.world, batch_size=8 if reducer.rank else 24)  # of unequal size
        strategy.step(batches)
        return [p.detach() for p in model.parameters()]

    start = new_model()
    both = run_workers(work, 2)
    union = torch.cat([source(0, 2, 24).indices.next(), source(1, 2, 8).indices.next()])
    alone = copy.deepcopy(start)
    optimizer = torch.optim.SGD(alone.parameters(), 0.1)
    torch.nn.functional.cross_entropy(alone(INPUTS[union])[:, 0], TARGETS[union][:, 0]).backward()
    optimizer.step()
    for a, b, c in zip(*both, alone.parameters()):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c.detach())


def test_a_gradient_that_is_not_finite_is_not_followed():
    model = new_model()
    before = [p.clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    batches = BatchSource(ShuffledEpochs(24, 8), lambda i: Batch(INPUTS[i] * float("inf"), TARGETS[i], len(i)))
    report = SinglePass(Gradient(model, CrossEntropy()), optimizer).step(batches)
    assert not report.applied
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before))


def test_clipping_returns_the_norm_before_it():
    parameters = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert clip_gradient(parameters, 1.0) == pytest.approx(5.0)
    assert parameters[1].grad.item() == pytest.approx(0.8)
    assert clip_gradient([torch.nn.Parameter(torch.zeros(1))], 1.0) == 0.0
