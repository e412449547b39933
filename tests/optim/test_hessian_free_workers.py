"""Hessian-free steps over several workers: the same parameters, to the bit, whatever their number."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from hemstitch.comm import MemberLost, ProcessGroupReducer, connect_store, host_store, run_workers
from hemstitch.errors import MisuseError
from hemstitch.optim import HessianFree, batch_closure
from hemstitch.sampling import GrowingSample, SampleGrowth
from hemstitch.testing import tiny_mlp

NUM_SHARDS, NUM_ROWS = 8, 61


def flat(model):
    return torch.cat([value.detach().flatten() for value in model.state_dict().values()])


def train(problem, reducer, num_steps=3, **options):
    """One worker's program, on its own copy of the network; returns its parameters and reports."""
    problem = copy.deepcopy(problem)
    samples = {"gradient": GrowingSample(NUM_ROWS, SampleGrowth(start=40, theta=0.2)),
               "curvature": GrowingSample(NUM_ROWS, SampleGrowth(start=6, factor=1.3))}      # fewer than shards
    optimizer = HessianFree(
        problem.model.parameters(), reducer=reducer, num_shards=NUM_SHARDS, samples=samples, **options)
    closure = batch_closure(problem.model, problem.loss, *problem.batches[0], sample=optimizer.sample, batch_size=4)
    reports = []
    for _ in range(num_steps):
        optimizer.step(closure)
        reports.append(optimizer.report())
    return flat(problem.model), reports


@pytest.mark.parametrize("options", [dict(preconditioner="lbfgs"), dict(preconditioner="jacobi", keep_graphs=False),
                                     dict(preconditioner="fisher")], ids=lambda options: options["preconditioner"])
def test_parameters_do_not_depend_on_the_number_of_workers(options):
    problem = tiny_mlp(batch=NUM_ROWS)
    (alone, reports), = run_workers(lambda reducer: train(problem, reducer, **options), 1)
    assert all(report.accepted for report in reports)
    for world in (2, 3, 8):
        for parameters, others in run_workers(lambda reducer: train(problem, reducer, **options), world):
            assert torch.equal(parameters, alone)
            assert [(r.loss_after, r.rho, r.cg_iterations, r.weights, r.noise) for r in others] == \
                   [(r.loss_after, r.rho, r.cg_iterations, r.weights, r.noise) for r in reports]


def test_over_real_connections_too():
    problem, store = tiny_mlp(batch=NUM_ROWS), host_store()
    (alone, _), = run_workers(lambda reducer: train(problem, reducer), 1)

    def member(rank):
        with ProcessGroupReducer(connect_store("127.0.0.1", store.port), rank, 2, timeout=20.0) as reducer:
            return train(problem, reducer)[0]

    with ThreadPoolExecutor(2) as pool:
        assert all(torch.equal(parameters, alone) for parameters in pool.map(member, range(2)))


class Half:
    """Worker 1 of 2, without the other."""

    rank, world, generation = 1, 2, 0

    def sum_(self, flat, weight=0.0):
        return weight


def drawn_by_shard(reducer):
    """The random number that each shard's passes start with."""
    problem, drawn = tiny_mlp(batch=NUM_ROWS), {}
    optimizer = HessianFree(problem.model.parameters(), reducer=reducer, num_shards=NUM_SHARDS)

    def closure(role):
        share = tuple(optimizer.share(range(NUM_SHARDS)))
        drawn.setdefault(share, set()).add(torch.rand(()).item())
        return batch_closure(problem.model, problem.loss, *problem.batches[0])(role)

    optimizer.step(closure)
    return drawn


def test_random_numbers_belong_to_the_shard_and_not_to_the_worker():
    """So that dropout masks do not depend on the number of workers."""
    alone, half = drawn_by_shard(None), drawn_by_shard(Half())
    assert all(len(numbers) == 1 for numbers in alone.values())         # the same in every pass
    assert len(set.union(*alone.values())) == NUM_SHARDS
    assert half == {share: alone[share] for share in [(4,), (5,), (6,), (7,)]}


def test_a_lost_worker_leaves_the_survivors_as_they_were():
    problem = tiny_mlp(batch=NUM_ROWS)
    survivors = []

    def worker(reducer):
        local = copy.deepcopy(problem)
        optimizer = HessianFree(local.model.parameters(), reducer=reducer, num_shards=NUM_SHARDS)
        inner = batch_closure(local.model, local.loss, *local.batches[0], sample=optimizer.sample)
        calls = []

        def closure(role):
            calls.append(role)
            if reducer.rank == 1 and calls.count("evaluate") > 8:       # dies in the second evaluation of the loss
                raise ZeroDivisionError
            return inner(role)

        try:
            optimizer.step(closure)
        except MemberLost:
            survivors.append(torch.equal(flat(local.model), flat(problem.model)) and optimizer.num_steps == 0)
            raise

    with pytest.raises(ZeroDivisionError):
        run_workers(worker, 2, timeout=20)
    assert survivors == [True]


def test_data_that_is_not_shared_among_shards_is_refused():
    problem = tiny_mlp()
    optimizer = HessianFree(problem.model.parameters(), num_shards=2)
    with pytest.raises(MisuseError, match="optimizer.share"):
        optimizer.step(batch_closure(problem.model, problem.loss, *problem.batches[0]))
    inputs, targets = problem.batches[0]

    def closure(role):
        x, y = optimizer.share(inputs), optimizer.share(targets)
        return batch_closure(problem.model, problem.loss, x, y)(role)

    optimizer.step(closure)
    assert optimizer.report().accepted and optimizer.report().weights["gradient"] == len(inputs)
