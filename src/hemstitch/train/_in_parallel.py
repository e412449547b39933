"""From the recipe's [parallel] section to the strategy of a run with many workers."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

from hemstitch.comm import Reducer
from hemstitch.errors import ConfigError
from hemstitch.parallel import Cluster, Delay, Failures, Network, Stragglers, staggered_phase
from hemstitch.train import _options as o
from hemstitch.train._recipe import Recipe
from hemstitch.train._strategies import ClosureSteps, Gradient, SinglePass, Strategy
from hemstitch.train._strategy_averaging import Ending, ProcessAveragingSteps, VirtualAveragingSteps
from hemstitch.train._strategy_data_parallel import DataParallelSteps
from hemstitch.train._strategy_hessian_free import HessianFreeSteps
from hemstitch.train._workers import Worker

MakeWorker = Callable[[int], Worker]


def in_parallel(recipe: Recipe, worker: Worker, make: MakeWorker, task: Any, reducer: Reducer) -> Strategy:
    """The strategy of the run.

    Args:
        recipe: its [parallel] section says which.
        worker: this process's worker, complete for a local run.
        make: rank -> a further virtual worker.
        task: evaluates what the last averages are combined to.
        reducer: speaks to the other processes.

    Raises:
        ConfigError: a combination that makes no sense, with the reason.
    """
    options = recipe.parallel
    if isinstance(options, o.LocalParallel):
        return worker.strategy
    if not isinstance(recipe.average, o.NoAverage):
        raise ConfigError(
            f"average.kind = {recipe.kinds['average']!r} follows every step, but the workers of parallel.kind = "
            f"{recipe.kinds['parallel']!r} have common parameters only now and then: take parallel.combine (averaging) "
            "or average.kind = 'none'"
        )
    if isinstance(worker.strategy, HessianFreeSteps):  # adds up the sums of all workers by itself, data-parallel only
        return worker.strategy
    if type(worker.strategy) not in (SinglePass, ClosureSteps):
        raise ConfigError(
            f"parallel.kind = {recipe.kinds['parallel']!r} hands every worker one batch at a time, but "
            f"{type(worker.strategy).__name__} draws its own data from the stream: use parallel.kind = 'local'"
        )
    if isinstance(options, o.DataParallel) and type(worker.strategy.gradient) is not Gradient:
        raise ConfigError(
            f"parallel.kind = 'data-parallel' sums gradients, which is not what order.kind = "
            f"{recipe.kinds['order']!r} makes: take parallel.kind = 'averaging' or 'local'"
        )
    if isinstance(options, o.DataParallel):
        return DataParallelSteps(worker, reducer, lambda: False)
    if isinstance(options, o.AveragingRule):
        return _averaging(recipe, worker, make, task, reducer)
    raise ConfigError(f"no strategy for {options}")


def backstitch_phase(recipe: Recipe, rank: int) -> int:
    """Which minibatches a worker makes its two-pass steps on, so that not all do so at the same time."""
    options = recipe.parallel
    if not isinstance(options, o.AveragingRule) or rank >= options.most_workers:
        return 0
    return staggered_phase(rank, options.most_workers, recipe.backstitch.interval)


def _averaging(recipe: Recipe, worker: Worker, make: MakeWorker, task: Any, reducer: Reducer) -> Strategy:
    options, epochs = recipe.parallel, recipe.train.epochs
    ending = Ending(options.combine, lambda model: task.evaluate(model)["loss"], epochs - 1)
    if isinstance(options, o.Averaging):
        return ProcessAveragingSteps(options, worker, reducer, epochs, ending, lambda: False)
    workers = [worker, *(make(rank) for rank in range(1, options.most_workers))]
    return VirtualAveragingSteps(options, workers, epochs, ending, cluster_of(options))


def cluster_of(options: o.SimulatedCluster) -> Cluster:
    """The cluster that a recipe describes."""
    is_async = isinstance(options, o.SimulatedAsynchronous)
    server = options.server_bandwidth if is_async else 0.0
    return Cluster(
        compute=Delay(options.compute_seconds, "gamma", options.compute_variation),
        decode=Delay(options.decode_seconds if is_async else 0.0, "gamma", options.compute_variation),
        network=Network(latency=options.latency, bandwidth=options.bandwidth or inf, server_bandwidth=server or inf),
        failures=Failures(mean_seconds_between=options.failure_seconds or inf, restart_seconds=options.restart_seconds)
        if is_async
        else Failures(),
        stragglers=Stragglers(
            slow_share=options.slow_share,
            slow_factor=options.slow_factor,
            probability=options.straggle_probability,
            factor=options.straggle_factor,
        ),
        seed=options.cluster_seed,
    )
