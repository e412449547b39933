"""Averaging of virtual replicas: the same as real workers, and what the clock says of it; plans."""

import math
from itertools import cycle, islice

import pytest
import torch
from simulated import NOTHING, bowl, for_ever, mlp, no_gradient

from hemstitch.comm import run_workers
from hemstitch.errors import ConfigError, DataError, NonFiniteError
from hemstitch.parallel import (
    AveragingSimulation,
    Cluster,
    Delay,
    Failures,
    FetchPolicy,
    Network,
    ParameterAveraging,
    PlannedDecoding,
    Prices,
    StepRule,
    Stragglers,
    plan_asynchronous,
    plan_averaging,
)


def clockwork(num_replicas, cluster, every=10.0, **options):
    """Averages of nothing."""
    return AveragingSimulation(NOTHING, no_gradient, for_ever, num_replicas=num_replicas, every=every,
                               rule=StepRule(0.0), cluster=cluster, **options)


# -- the algorithm -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 3, 4])
def test_virtual_replicas_do_what_workers_do(world):
    """Against `ParameterAveraging` over a reducer, with torch's optimizer; one replica to the bit."""
    lr = 0.2 * world
    gradient, batches = mlp()
    simulation = AveragingSimulation(gradient.parameters, gradient, batches, num_replicas=world, every=48,
                                     rule=StepRule(lr))
    simulation.run(3)

    def worker(reducer):
        own, _ = mlp()
        optimizer = torch.optim.SGD(own.model.parameters(), lr=lr)
        with ParameterAveraging(own.model, reducer, every=48) as averaging:
            for batch in islice(batches(reducer.rank), 9):
                optimizer.zero_grad()
                loss, samples = own.loss(own.model, batch)
                loss.backward()
                optimizer.step()
                averaging.update(samples, loss)
        return own.parameters

    for result in run_workers(worker, world):
        torch.testing.assert_close(result, simulation.parameters, rtol=0, atol=0 if world == 1 else 1e-14)


@pytest.mark.parametrize("num_replicas", [1, 10, 50, 500])
def test_runs_are_reproducible_to_the_bit(num_replicas):
    theta, gradient, batches = bowl(noise=0.1)
    cluster = Cluster(compute=Delay(1.0, "gamma", 0.4), failures=Failures(mean_seconds_between=30.0), seed=4)

    def run():
        simulation = AveragingSimulation(theta, gradient, batches, num_replicas=num_replicas, every=24,
                                         rule=StepRule(0.2), cluster=cluster)
        return simulation.run(4), simulation.parameters

    (rounds, parameters), (again, same) = run(), run()
    assert torch.equal(parameters, same)
    assert [r.seconds for r in rounds] == [r.seconds for r in again]
    assert parameters.norm() < theta.norm()


def test_the_best_first_and_outliers_left_out():
    def gradient_of(replica):
        return lambda theta, batch: (torch.ones(1), [1.0, 0.5, 3.0][replica], 1.0)

    gradients = [gradient_of(replica) for replica in range(3)]
    simulation = AveragingSimulation(torch.zeros(1), gradients, for_ever, num_replicas=3, every=2,
                                     rule=StepRule(0.1), best_first=True, margin=1.0,
                                     evaluate=lambda theta: {"theta": theta.item()})
    first, second = simulation.run(2)
    assert first.shares == (0.0, 1.0, 0.0)
    assert second.shares == (0.5, 0.5, 0.0)
    assert second.losses == (1.0, 0.5, 3.0)
    assert first.values["theta"] == pytest.approx(-0.2)


def test_non_finite_gradients_are_left_out():
    def gradient(theta, batch):
        return torch.full((1,), math.nan if batch == 0 else 1.0), math.nan if batch == 0 else 1.0, 1.0

    simulation = AveragingSimulation(torch.zeros(1), gradient, lambda worker: cycle(range(4)), num_replicas=2, every=8,
                                     rule=StepRule(0.125))
    result, = simulation.run(1)
    assert simulation.num_refused == 4
    assert result.samples == (6.0, 6.0) and result.losses == (1.0, 1.0)
    assert simulation.parameters.item() == -0.75


def test_all_diverged_is_an_error():
    simulation = AveragingSimulation(torch.zeros(1), lambda theta, batch: (torch.ones(1), math.nan, 1.0), for_ever,
                                     num_replicas=2, every=1, rule=StepRule(0.1))
    with pytest.raises(NonFiniteError):
        simulation.run(1)


def test_the_number_of_replicas_may_change():
    theta, gradient, batches = bowl()
    simulation = AveragingSimulation(theta, gradient, batches, num_replicas=2, every=8, rule=StepRule(0.1))
    lengths = []
    for size in (2, 5, 3):
        simulation.resize(size)
        lengths.append(len(simulation.run(1)[0].shares))
    assert lengths == [2, 5, 3]


# -- the clock ---------------------------------------------------------------------------------------------------------


def test_all_wait_for_the_slowest_and_for_the_reduction():
    cluster = Cluster(compute=Delay(1.0), stragglers=Stragglers(slow_share=0.25, slow_factor=3.0),
                      network=Network(latency=0.5, bandwidth=1000.0))
    result, = clockwork(4, cluster, num_bytes=2000.0).run(1)
    reduction = 2 * 0.5 + 2 * 3 / 4 * 2.0
    assert result.seconds == pytest.approx(30.0 + reduction)
    assert result.waiting == pytest.approx(1 - (3 * 10 + 30) / (4 * (30 + reduction)))


def test_a_dead_replica_is_dropped_and_comes_back():
    cluster = Cluster(compute=Delay(1.0), failures=Failures(mean_seconds_between=60.0, restart_seconds=25.0), seed=1)
    rounds = clockwork(4, cluster).run(40)
    absent = [sum(samples == 0 for samples in r.samples) for r in rounds]
    assert sum(r.failures for r in rounds) > 5
    assert 0 < sum(absent) < 80 and 0 in absent
    for r in rounds:
        if any(r.samples):
            assert [share > 0 for share in r.shares] == [samples > 0 for samples in r.samples]
            assert sum(r.shares) == pytest.approx(1.0)


def test_lost_work_may_be_done_again_instead():
    cluster = Cluster(compute=Delay(1.0), failures=Failures(mean_seconds_between=60.0, restart_seconds=25.0), seed=1)
    dropped, rerun = clockwork(4, cluster).run(20), clockwork(4, cluster, lost_work="rerun").run(20)
    assert all(samples == 10.0 for r in rerun for samples in r.samples)
    assert rerun[-1].seconds > dropped[-1].seconds


def test_if_all_die_the_parameters_stay_and_time_goes_on():
    theta, gradient, batches = bowl()
    cluster = Cluster(compute=Delay(100.0), failures=Failures(mean_seconds_between=1.0, restart_seconds=5.0))
    simulation = AveragingSimulation(theta, gradient, batches, num_replicas=2, every=80, rule=StepRule(0.1),
                                     cluster=cluster)
    result, = simulation.run(1)
    assert torch.equal(simulation.parameters, theta)
    assert result.failures >= 2 and result.seconds > 5.0


@pytest.mark.parametrize("wrong", [dict(num_replicas=0), dict(every=0.0), dict(lost_work="keep"), dict(margin=0.0)])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(ConfigError):
        clockwork(**{"num_replicas": 1, "cluster": Cluster(), **wrong})


def test_data_must_not_end():
    simulation = AveragingSimulation(NOTHING, no_gradient, lambda worker: iter(range(3)), num_replicas=1, every=5,
                                     rule=StepRule(0.0))
    with pytest.raises(DataError, match="endless"):
        simulation.run(1)


# -- plans -------------------------------------------------------------------------------------------------------------


def test_a_plan_without_surprises_can_be_computed_by_hand():
    """64 samples a second and worker; each update waits 2 x 4 MB / (40 MB/s) for the network."""
    cluster = Cluster(compute=Delay(1.0), network=Network(bandwidth=40e6))
    plan = plan_asynchronous(cluster, num_replicas=1, samples=6400, batch_size=64, num_parameters=10**6,
                             prices=Prices(worker=3.0, server=1.0))
    assert plan.updates == 100 and plan.samples == 6400
    assert plan.seconds == pytest.approx(120.0)
    assert plan.speedup == pytest.approx(100 / 120)
    assert plan.cost == pytest.approx(120 / 3600 * 4.0)
    assert plan.inner.mean == 0 and len(plan.outer) == 0


def test_more_replicas_are_faster_and_staler_until_the_server_is_full():
    cluster = Cluster(compute=Delay(1.0, "gamma", 0.2), network=Network(server_bandwidth=400e6))
    plans = {n: plan_asynchronous(cluster, num_replicas=n, samples=64 * 1000, batch_size=64, num_parameters=10**6)
             for n in (1, 10, 50, 200)}
    assert plans[10].speedup == pytest.approx(10, rel=0.1)
    assert plans[50].speedup == pytest.approx(plans[200].speedup, rel=0.15)
    assert plans[200].speedup < 50.0 + 1                    # 2 x 4 MB per update through 400 MB/s: 50 a second
    assert plans[1].inner.mean < plans[10].inner.mean < plans[50].inner.mean < plans[200].inner.mean


def test_a_plan_tells_the_outer_staleness_too():
    cluster = Cluster(compute=Delay(0.1), decode=Delay(0.5))
    options = dict(num_replicas=50, samples=32 * 5000, batch_size=32, num_parameters=10**6)
    plan = plan_asynchronous(cluster, decoding=PlannedDecoding(frames_per_utterance=300), **options)
    late = plan_asynchronous(cluster, decoding=PlannedDecoding(frames_per_utterance=300,
                                                               fetch=FetchPolicy(seconds=60.0)), **options)
    assert plan.outer.mean > plan.inner.mean
    assert late.outer.mean_seconds > plan.outer.mean_seconds


def test_averaging_costs_little_if_it_is_rare():
    """Every 2 minutes, 10 million parameters, 100 MB/s: 0.8 s, less than 1 %."""
    cluster = Cluster(compute=Delay(0.1), network=Network(bandwidth=100e6))
    plan = plan_averaging(cluster, num_replicas=16, samples=16 * 512 * 1200 * 5, batch_size=512, every=512 * 1200,
                          num_parameters=10**7, prices=Prices(worker=1.0))
    assert plan.updates == 5
    assert plan.seconds == pytest.approx(5 * (120 + 2 * 15 / 16 * 0.4))
    assert plan.busy > 0.99 and plan.speedup == pytest.approx(16, rel=0.01)
    assert plan.cost == pytest.approx(plan.seconds / 3600 * 16)
