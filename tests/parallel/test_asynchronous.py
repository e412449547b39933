"""Asynchronous SGD on the simulated clock: the algorithm, its ages against theory, and what goes wrong."""

import math
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from scipy import stats
from simulated import NOTHING, bowl, for_ever, mlp, no_gradient

from hemstitch.errors import ConfigError, DataError, NonFiniteError
from hemstitch.parallel import (
    AsynchronousSimulation,
    Bound,
    Cluster,
    Decoding,
    Delay,
    Failures,
    FetchPolicy,
    Network,
    StepRule,
    Stragglers,
)


def clockwork(num_replicas, cluster, updates=20_000, **options):
    """The ages of a run in which nothing is computed, after its beginning."""
    simulation = AsynchronousSimulation(NOTHING, no_gradient, for_ever, num_replicas=num_replicas, rule=StepRule(0.0),
                                        cluster=cluster, **options)
    return simulation.run(updates=updates)


# -- the algorithm -----------------------------------------------------------------------------------------------------


def test_one_replica_is_serial_training_to_the_bit():
    gradient, batches = mlp(dtype=torch.float32)
    start = gradient.parameters
    cluster = Cluster(compute=Delay(1.0, "exponential"), network=Network(latency=0.1))
    simulation = AsynchronousSimulation(start, gradient, batches, rule=StepRule(lr=0.5), cluster=cluster)
    report = simulation.run(updates=30)
    model = gradient.load(start)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for batch in islice(batches(0), 30):
        optimizer.zero_grad()
        gradient.loss(model, batch)[0].backward()
        optimizer.step()
    assert torch.equal(simulation.parameters, gradient.parameters)
    assert report.inner.updates.tolist() == [0] * 30
    assert report.samples == 30 * 16


def test_the_order_of_events_by_hand():
    """Replica 1 takes 2.5 times as long as replica 0; gradients are of theta^2 / 2, lr 1/2."""
    cluster = Cluster(compute=Delay(1.0), stragglers=Stragglers(slow_share=0.5, slow_factor=2.5))
    simulation = AsynchronousSimulation(torch.ones(1, dtype=torch.float64), lambda theta, batch: (theta, 0.0, 1.0),
                                        for_ever, num_replicas=2, rule=StepRule(lr=0.5), cluster=cluster)
    report = simulation.run(seconds=5.0)
    theta = 0.5 * 0.5                                       # t = 1, 2: replica 0 halves
    fetched_by_0 = theta
    theta -= 0.5 * 1.0                                      # t = 2.5: replica 1, fetched at 0
    fetched_by_1 = theta
    theta -= 0.5 * fetched_by_0                             # t = 3
    theta -= 0.5 * theta                                    # t = 4
    fetched_by_0 = theta
    theta -= 0.5 * fetched_by_1                             # t = 5: replica 1 was scheduled first
    theta -= 0.5 * fetched_by_0
    assert simulation.parameters.item() == pytest.approx(theta, abs=1e-15)
    assert report.inner.updates.tolist() == [0, 0, 2, 1, 0, 2, 1]
    assert report.seconds == 5.0


@pytest.mark.parametrize("num_replicas", [1, 10, 50, 500])
def test_runs_are_reproducible_to_the_bit(num_replicas):
    theta, gradient, batches = bowl(noise=0.1)
    cluster = Cluster(compute=Delay(1.0, "gamma", 0.4), network=Network(latency=0.05, variation=1.0, reply_loss=0.05),
                      failures=Failures(mean_seconds_between=20.0, restart_seconds=2.0), seed=3)

    def run(cluster):
        simulation = AsynchronousSimulation(theta, gradient, batches, num_replicas=num_replicas, cluster=cluster,
                                            rule=StepRule(lr=0.2 / num_replicas))
        report = simulation.run(updates=1500)
        return simulation.parameters, report.seconds, report.inner.updates, report.counts

    first, again = run(cluster), run(cluster)
    assert torch.equal(first[0], again[0])
    assert first[1] == again[1] and np.array_equal(first[2], again[2]) and first[3] == again[3]
    assert first[0].norm() < theta.norm()


def test_a_run_may_be_cut_and_goes_on_with_another_learning_rate():
    theta, gradient, batches = bowl()
    cluster = Cluster(compute=Delay(1.0, "exponential"))
    whole, cut = (AsynchronousSimulation(theta, gradient, batches, num_replicas=5, rule=StepRule(0.1), cluster=cluster)
                  for _ in range(2))
    whole.run(updates=100)
    cut.run(updates=40)
    assert cut.run(updates=100).updates == 100
    assert torch.equal(whole.parameters, cut.parameters)
    cut.rule = StepRule(0.0)
    before = cut.parameters
    cut.run(updates=200)
    assert torch.equal(cut.parameters, before)


def test_stale_gradients_need_a_smaller_learning_rate():
    """A learning rate at which serial training converges fast diverges with many replicas."""
    theta, gradient, batches = bowl()

    def final(num_replicas, lr):
        simulation = AsynchronousSimulation(theta, gradient, batches, num_replicas=num_replicas, rule=StepRule(lr),
                                            cluster=Cluster(compute=Delay(1.0, "gamma", 0.3)))
        simulation.run(updates=2000)
        return float(simulation.parameters.norm())

    assert final(1, 0.5) < 1e-3
    assert final(50, 0.5) > 1e3
    assert final(50, 0.01) < 0.5


def test_non_finite_gradients_are_refused_and_counted():
    calls = iter(range(10**6))

    def gradient(theta, batch):
        return torch.full_like(theta, math.nan if next(calls) % 10 == 0 else 0.01), 1.0, 2.0

    simulation = AsynchronousSimulation(torch.zeros(4), gradient, for_ever, num_replicas=3, rule=StepRule(1.0))
    report = simulation.run(updates=45)
    assert report.counts["nonfinite"] == 5 and report.counts["accepted"] == 45
    assert report.samples == 90
    assert simulation.parameters.isfinite().all()


@pytest.mark.parametrize("num_shards", [2, 3])
def test_shards_together_are_the_server(num_shards):
    """With one replica nothing comes between, so shards change nothing; with many they are read at different times."""
    theta, gradient, batches = bowl(noise=0.3)
    components = tuple(Bound(i, i + 1, 0.05) for i in range(4))
    rule = StepRule(0.3, components=components)

    def run(num_replicas, num_shards):
        network = Network(latency=0.2, bandwidth=100.0, server_bandwidth=400.0, variation=0.5)
        simulation = AsynchronousSimulation(theta, gradient, lambda worker: islice(batches(worker), 60), rule=rule,
                                            num_replicas=num_replicas, num_shards=num_shards,
                                            cluster=Cluster(network=network))
        return simulation.run(updates=10**6), simulation.parameters

    (_, single), (report, sharded) = run(1, 1), run(1, num_shards)
    assert torch.equal(single, sharded)
    assert report.inner.counts.tolist() == [60 * num_shards]
    report, _ = run(8, num_shards)
    assert report.counts["accepted"] == len(report.inner) == 8 * 60 * num_shards
    assert report.inner.mean > 5


def test_the_servers_bounds_hold_across_shards():
    rule = StepRule(1.0, max_change=0.5)
    simulation = AsynchronousSimulation(torch.zeros(8), lambda theta, batch: (torch.ones(8), 0.0, 1.0), for_ever,
                                        rule=rule, num_shards=4)
    simulation.run(updates=1)
    simulation.clock.run(until=1.0)
    assert float(simulation.parameters.norm()) == pytest.approx(0.5)


def test_natural_gradients_have_a_state_per_replica():
    seen = [set(), set()]

    def gradient_of(replica):
        def gradient(theta, batch):
            seen[replica].add(batch)
            return theta, 0.0, 1.0
        return gradient

    AsynchronousSimulation(torch.ones(1), [gradient_of(0), gradient_of(1)], for_ever, num_replicas=2,
                           rule=StepRule(0.1)).run(updates=10)
    assert seen == [{0}, {1}]


def test_evaluation_replicas_look_at_given_times_and_updates():
    theta, gradient, batches = bowl()
    simulation = AsynchronousSimulation(theta, gradient, batches, num_replicas=4, rule=StepRule(0.1),
                                        evaluate=lambda parameters: {"norm": float(parameters.norm())})
    report = simulation.run(updates=20, evaluate_every=8, evaluate_at=[2.5])
    assert [(e.seconds, e.updates) for e in report.evaluations] == [(0, 0), (2.0, 8), (2.5, 8), (4.0, 16)]
    assert report.evaluations[0].values == {"norm": float(theta.norm())}
    assert math.isnan(report.evaluations[0].training_loss) and report.evaluations[1].training_loss > 0
    assert report.evaluations[1].samples == 64


def test_replicas_end_with_their_data():
    report = AsynchronousSimulation(NOTHING, no_gradient, lambda worker: iter(range(3)), num_replicas=2,
                                    rule=StepRule(0.0)).run(updates=100)
    assert report.updates == 6


# -- ages against theory -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_replicas", [2, 10, 50])
def test_exponential_computations_give_geometric_ages(num_replicas):
    """While one computes, each of the others is as likely to be next: P(age = k) = 1/n (1 - 1/n)^k."""
    report = clockwork(num_replicas, Cluster(compute=Delay(1.0, "exponential")), updates=30_000)
    ages = report.inner.updates[20 * num_replicas:]
    edges = np.unique(np.quantile(ages, np.linspace(0, 1, 13)).astype(int))[1:-1]
    observed = np.bincount(np.searchsorted(edges, ages, side="left"), minlength=len(edges) + 1)
    below = np.concatenate([[0.0], 1 - (1 - 1 / num_replicas) ** (edges + 1.0), [1.0]])
    assert stats.chisquare(observed, len(ages) * np.diff(below)).pvalue > 1e-3
    assert report.seconds == pytest.approx(30_000 / num_replicas, rel=0.05)


@pytest.mark.parametrize("delay", [Delay(1.0, "uniform", 0.1), Delay(1.0, "gamma", 0.5), Delay(1.0, "exponential")])
def test_the_mean_age_is_that_of_littles_law(delay):
    """n gradients are always under way and one is applied in each cycle: on average n - 1 others come between."""
    report = clockwork(20, Cluster(compute=delay))
    assert report.inner.updates[1000:].mean() == pytest.approx(19.0, rel=0.02)


def test_replicas_in_lockstep_are_0_to_n_minus_1_updates_old():
    report = clockwork(7, Cluster(compute=Delay(1.0)), updates=700)
    assert report.inner.counts.tolist() == [100] * 7
    assert report.inner.mean_seconds == 1.0


def test_ages_in_seconds_include_the_network():
    network = Network(latency=0.5, bandwidth=8.0)
    report = clockwork(1, Cluster(compute=Delay(1.0), network=network), updates=50, num_bytes=2.0)
    assert report.inner.mean_seconds == pytest.approx(0.75 + 1.0 + 0.75)
    assert report.busy == pytest.approx(1.0 / 2.5, rel=0.05)


def test_a_servers_link_limits_the_rate():
    """Two messages per update at 10 each per second: 5 updates per second, however many replicas there are."""
    network = Network(server_bandwidth=10.0)
    report = clockwork(100, Cluster(compute=Delay(1.0), network=network), updates=2000, num_bytes=1.0)
    assert report.updates / report.seconds == pytest.approx(5.0, rel=0.02)
    two_shards = clockwork(100, Cluster(compute=Delay(1.0), network=network), updates=2000, num_bytes=1.0, num_shards=2)
    assert two_shards.updates / two_shards.seconds == pytest.approx(10.0, rel=0.02)


def test_slow_replicas_are_staler_and_hold_up_nobody():
    cluster = Cluster(compute=Delay(1.0), stragglers=Stragglers(slow_share=0.5, slow_factor=10.0))
    report = clockwork(2, cluster, updates=1100)
    assert report.seconds == pytest.approx(1000.0, rel=0.01)
    assert set(np.unique(report.inner.updates[20:])) <= {0, 1, 9, 10}


def test_several_batches_per_fetch_age_further():
    report = clockwork(1, Cluster(compute=Delay(1.0)), updates=60, fetch_every=3)
    assert report.inner.updates.tolist() == [0, 1, 2] * 20


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def test_lost_replies_apply_no_gradient_twice():
    report = clockwork(4, Cluster(compute=Delay(1.0), network=Network(reply_loss=0.5, retry_seconds=0.1)), updates=2000)
    assert report.counts["accepted"] == 2000
    assert report.counts["duplicate"] == pytest.approx(2000, rel=0.1)       # one repetition per push on average
    assert report.samples == 2000


def test_replicas_die_and_return():
    failures = Failures(mean_seconds_between=10.0, restart_seconds=5.0)
    report = clockwork(10, Cluster(compute=Delay(1.0, "exponential"), failures=failures))
    available = 10.0 / (10.0 + 5.0)                         # work cut short costs nothing: it is memoryless
    assert report.updates / report.seconds == pytest.approx(10 * available, rel=0.05)
    assert report.failures == pytest.approx(report.seconds * 10 / 15.0, rel=0.1)
    assert report.gradients - report.updates <= 10


def test_what_a_dead_replica_had_sent_is_refused_once_it_lives_again():
    """Messages are five seconds under way, restarts take one: some arrive in the replica's next life."""
    cluster = Cluster(compute=Delay(1.0), network=Network(latency=5.0),
                      failures=Failures(mean_seconds_between=15.0, restart_seconds=1.0))
    report = clockwork(20, cluster, updates=3000)
    assert report.counts["stale_incarnation"] > 50
    assert sum(report.counts.values()) <= report.gradients


# -- decoders ----------------------------------------------------------------------------------------------------------


def decoding(num_frames=4, **options):
    """Outer gradients that tell which parameters made them: rows (theta, utterance)."""

    def outer_gradient(parameters, utterances):
        return [torch.tensor([[float(parameters[0]), u]] * num_frames) for u in utterances]

    return Decoding(outer_gradient=outer_gradient, utterances=lambda worker: iter(range(100 * worker, 10**9)),
                    **{"num_slots": 2, **options})


def counting(theta, batch):
    """Every update adds one to theta, so that theta is the version."""
    return -torch.ones_like(theta), 0.0, len(batch.frames)


def test_batches_walk_through_decoded_utterances():
    batches = []

    def gradient(theta, batch):
        batches.append((batch.utterances, batch.frames.tolist(), batch.outer[:, 1].tolist()))
        return counting(theta, batch)

    AsynchronousSimulation(torch.zeros(1), gradient, rule=StepRule(1.0), decoding=decoding(num_frames=2)).run(updates=4)
    assert batches[:4] == [([0, 1], [0, 0], [0.0, 1.0]), ([0, 1], [1, 1], [0.0, 1.0]),
                           ([2, 3], [0, 0], [2.0, 3.0]), ([2, 3], [1, 1], [2.0, 3.0])]


@pytest.mark.parametrize("fetch", [FetchPolicy(), FetchPolicy(seconds=7.0), FetchPolicy(seconds=7.0, synchronous=True)])
def test_outer_ages_are_exact_whatever_the_fetch_policy(fetch):
    """The rows themselves tell the version of the parameters that decoded them."""
    expected = Counter()

    def gradient(theta, batch):
        assert batch.outer[:, 0].tolist() == batch.versions.tolist()
        pending[tuple(batch.versions)] += 1
        return counting(theta, batch)

    pending = Counter()
    cluster = Cluster(compute=Delay(1.0, "gamma", 0.3), decode=Delay(0.4), network=Network(latency=0.05))
    simulation = AsynchronousSimulation(torch.zeros(1), gradient, num_replicas=5, rule=StepRule(1.0), cluster=cluster,
                                        decoding=decoding(fetch=fetch, num_frames=6))
    applied = simulation._applied

    def spy(batch, loss, weight):
        for version in batch.versions:
            expected[int(simulation.parameters[0]) - 1 - version] += 1
        applied(batch, loss, weight)

    for replica in simulation._replicas:
        replica.on_applied = spy
    report = simulation.run(updates=400)
    assert Counter(report.outer.updates.tolist()) == expected
    assert len(report.outer) == report.samples == 800
    assert report.outer.mean > report.inner.mean


def test_a_synchronous_fetch_gives_ages_spread_over_the_interval():
    """Decoding and use take little time: ages in seconds are uniform between 0 and the interval."""
    interval = 50.0
    cluster = Cluster(compute=Delay(0.5, "gamma", 0.5))
    simulation = AsynchronousSimulation(
        torch.zeros(1), counting, num_replicas=10, rule=StepRule(1.0), cluster=cluster,
        decoding=decoding(fetch=FetchPolicy(seconds=interval, synchronous=True), num_frames=1))
    report = simulation.run(seconds=600.0)
    ages = report.outer.seconds
    assert ages.max() < interval + 5.0
    assert stats.kstest(ages[::47] / interval, "uniform").pvalue > 1e-3


def test_the_longer_the_fetch_interval_the_older_the_outer_gradient():
    def mean_age(seconds):
        simulation = AsynchronousSimulation(torch.zeros(1), counting, num_replicas=4, rule=StepRule(1.0),
                                            decoding=decoding(fetch=FetchPolicy(seconds=seconds)))
        return simulation.run(updates=500).outer.mean_seconds

    always, ten, forty = (mean_age(seconds) for seconds in (0.0, 10.0, 40.0))
    assert ten - always == pytest.approx(10 / 2, abs=1.0)   # a decoding every 2 seconds
    assert forty - always == pytest.approx(40 / 2, abs=1.5)


def test_slow_decoders_hold_up_their_replica():
    """4 frames an utterance in 2 slots: an utterance is needed every 2 batches, and takes 10 seconds."""
    simulation = AsynchronousSimulation(torch.zeros(1), counting, rule=StepRule(1.0), decoding=decoding(),
                                        cluster=Cluster(compute=Delay(1.0), decode=Delay(10.0)))
    report = simulation.run(updates=40)
    assert report.seconds == pytest.approx(40 / 2 * 10.0, rel=0.1)


def test_frames_may_be_left_out_but_not_all_for_ever():
    lengths = {0: 0, 1: 2}
    some = Decoding(outer_gradient=lambda theta, utterances: [torch.ones(lengths[u % 2], 1) for u in utterances],
                    utterances=lambda worker: iter(range(10**9)), num_slots=3, utterances_per_call=2)
    simulation = AsynchronousSimulation(torch.zeros(1), counting, rule=StepRule(1.0), decoding=some)
    assert simulation.run(updates=20).samples == 60
    none = Decoding(outer_gradient=lambda theta, utterances: [[] for _ in utterances],
                    utterances=lambda worker: iter(range(10**9)))
    with pytest.raises(DataError, match="no frames"):
        AsynchronousSimulation(torch.zeros(1), counting, rule=StepRule(1.0), decoding=none).run(updates=1)


def test_decoders_end_with_their_utterances():
    few = Decoding(outer_gradient=lambda theta, utterances: [torch.ones(3, 1)] * len(utterances),
                   utterances=lambda worker: iter(range(5)), num_slots=2)
    report = AsynchronousSimulation(torch.zeros(1), counting, rule=StepRule(1.0), decoding=few).run(updates=100)
    assert report.samples == 15


# -- options -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [
    lambda: AsynchronousSimulation(NOTHING, no_gradient, rule=StepRule(0.0)),
    lambda: AsynchronousSimulation(NOTHING, no_gradient, for_ever, rule=StepRule(0.0), decoding=decoding()),
    lambda: AsynchronousSimulation(NOTHING, no_gradient, for_ever, rule=StepRule(0.0), num_replicas=0),
    lambda: AsynchronousSimulation(NOTHING, [no_gradient], for_ever, rule=StepRule(0.0), num_replicas=2),
    lambda: AsynchronousSimulation(torch.ones(3), no_gradient, for_ever, rule=StepRule(0.0), num_shards=4),
    lambda: clockwork(1, Cluster(), updates=None),
    lambda: AsynchronousSimulation(NOTHING, no_gradient, for_ever, rule=StepRule(0.0)).run(updates=1, evaluate_every=1),
    lambda: FetchPolicy(synchronous=True),
    lambda: decoding(num_slots=0),
])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(ConfigError):
        wrong()


def test_a_run_that_has_diverged_ends():
    simulation = AsynchronousSimulation(torch.ones(2), lambda theta, batch: (theta * math.inf, 0.0, 1.0), for_ever,
                                        num_replicas=3, rule=StepRule(lr=0.5))
    with pytest.raises(NonFiniteError, match="after 0 updates"):
        simulation.run(updates=10)
    assert simulation.report().counts["nonfinite"] > 100 and torch.equal(simulation.parameters, torch.ones(2))


def test_batches_that_end_are_shared_and_all_used():
    shared = iter(range(20))
    seen = []

    def gradient(theta, batch):
        seen.append(batch)
        return theta, 2.0, 1.0

    cluster = Cluster(compute=Delay(1.0, "exponential"))
    report = AsynchronousSimulation(torch.ones(2), gradient, lambda worker: shared, num_replicas=3, rule=StepRule(0.1),
                                    cluster=cluster).run(updates=10**6)
    assert report.has_ended and report.updates == 20 and sorted(seen) == list(range(20))
    assert report.loss == 2.0 and 20 / 3 / 3 < report.seconds < 20
