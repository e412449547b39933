"""The simulated clock: order, waiting, interruption."""

import doctest

import numpy as np
import pytest

from hemstitch.errors import ConfigError
from hemstitch.parallel import (
    Cluster,
    Delay,
    Failures,
    Interrupted,
    Network,
    SimulatedClock,
    Stragglers,
    _clock,
    _schedules,
    _staleness,
)
from hemstitch.parallel._cluster import WorkerTimes


@pytest.mark.parametrize("module", [_clock, _schedules, _staleness])
def test_examples(module):
    assert doctest.testmod(module).failed == 0


@pytest.fixture
def clock():
    return SimulatedClock()


def test_what_is_due_together_runs_in_the_order_of_scheduling(clock):
    log = []

    def process(name, *delays):
        for delay in delays:
            yield delay
            log.append((clock.now, name))

    for name, delays in {"a": (2.0, 1.0), "b": (1.0, 1.0, 1.0), "c": (3.0,)}.items():
        clock.start(process(name, *delays))
    clock.run()
    assert log == [(1.0, "b"), (2.0, "a"), (2.0, "b"), (3.0, "c"), (3.0, "a"), (3.0, "b")]


def test_processes_wait_for_events_and_for_each_other(clock):
    log, gate = [], clock.event()

    def opener():
        yield 5.0
        gate.happen()

    def waiter(process):
        yield gate
        log.append(clock.now)
        yield process
        yield gate                                          # has happened: no time passes
        log.append(clock.now)

    clock.start(waiter(clock.start(opener())))
    clock.run()
    assert log == [5.0, 5.0]


def test_an_interrupted_process_ends_and_its_timer_is_void(clock):
    log = []

    def victim():
        try:
            yield 10.0
            log.append("finished")
        except Interrupted:
            log.append(clock.now)
            yield 1.0
            log.append(clock.now)

    process = clock.start(victim())

    def interrupter():
        yield 4.0
        process.interrupt()

    clock.start(interrupter())
    clock.run()
    assert log == [4.0, 5.0] and process.has_happened
    process.interrupt()                                     # too late: nothing happens


def test_it_stops_at_a_time_or_on_a_condition_and_goes_on(clock):
    ticks = []

    def ticking():
        while True:
            yield 1.0
            ticks.append(clock.now)

    clock.start(ticking())
    clock.run(until=3.0)
    assert ticks == [1.0, 2.0, 3.0]
    clock.run(stop=lambda: len(ticks) == 5)
    assert ticks[-1] == 5.0


# -- delays ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay", [
    Delay(2.0), Delay(2.0, "exponential"), Delay(2.0, "gamma", 0.5), Delay(2.0, "lognormal", 0.5),
    Delay(2.0, "uniform", 0.5), Delay(0.0, "gamma", 0.5), Delay(2.0, "gamma"),
])
def test_delays_have_the_mean_and_variation_they_say(delay):
    draw = delay.sampler(np.random.default_rng(0))
    numbers = np.array([draw() for _ in range(40_000)])
    expected = {"constant": 0.0, "exponential": 1.0}.get(delay.shape, delay.variation)
    assert (numbers >= 0).all()
    assert numbers.mean() == pytest.approx(delay.mean, rel=0.03)
    assert numbers.std() == pytest.approx(expected * delay.mean, rel=0.05, abs=1e-12)


def test_a_workers_delays_do_not_depend_on_the_others():
    cluster = Cluster(compute=Delay(1.0, "gamma", 0.3), seed=5)
    first, again, other = (WorkerTimes(cluster, worker) for worker in (3, 3, 4))
    numbers = [first.compute() for _ in range(10)]
    assert numbers == [again.compute() for _ in range(10)]
    assert numbers != [other.compute() for _ in range(10)]


def test_stragglers():
    cluster = Cluster(compute=Delay(1.0), stragglers=Stragglers(slow_share=0.25, slow_factor=3.0, probability=0.5,
                                                                 factor=10.0))
    assert sum(map(cluster.is_slow, range(100))) == 25
    normal, slow = WorkerTimes(cluster, 0), WorkerTimes(cluster, 3)
    assert {normal.compute() for _ in range(50)} == {1.0, 10.0}
    assert {slow.compute() for _ in range(50)} == {3.0, 30.0}


@pytest.mark.parametrize("wrong", [
    lambda: Delay(-1.0), lambda: Delay(1.0, "normal"), lambda: Delay(1.0, "uniform", 0.6), lambda: Network(bandwidth=0),
    lambda: Network(reply_loss=1.0), lambda: Stragglers(slow_share=2.0), lambda: Failures(mean_seconds_between=0.0),
])
def test_impossible_clusters_are_refused(wrong):
    with pytest.raises(ConfigError):
        wrong()
