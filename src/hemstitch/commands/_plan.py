"""``hemstitch plan``: what a run with many workers would take on the cluster that its [parallel] section describes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import rich.table

from hemstitch.commands._show import _print
from hemstitch.errors import ConfigError
from hemstitch.parallel import FetchPolicy, Plan, PlannedDecoding, Prices, plan_asynchronous, plan_averaging
from hemstitch.report._text import duration, number
from hemstitch.train import Console, Recipe
from hemstitch.train import _options as o
from hemstitch.train._build import build_run
from hemstitch.train._in_parallel import cluster_of
from hemstitch.train._outer_frames import OuterFrames
from hemstitch.train._recipe_files import read

MOST_GRADIENTS = 200_000        # simulated one by one; a longer run is a multiple of that


@dataclass(frozen=True)
class Work:
    """What there is to do.

    Attributes:
        samples: to train on.
        parameters: of the network.
        frames_per_utterance: where decoders feed the replicas; 0: they do not.
    """

    samples: float
    parameters: int
    frames_per_utterance: int = 0


def show_plan(
    name: str, settings: Sequence[str], workers: Sequence[int], prices: Prices, samples: float = 0.0,
    parameters: int = 0,
) -> int:  # fmt: skip
    """Wall time, speed-up, staleness and cost for each number of workers.

    Args:
        name: of the recipe, or its file.
        settings: on top of it.
        workers: numbers to compare; empty: the recipe's own.
        prices: of machines, per hour.
        samples, parameters: in the place of what the recipe's data and network have; with both, no data are read.
    """
    recipe = read(name, settings)
    options = recipe.parallel
    if not isinstance(options, o.SimulatedCluster):
        raise ConfigError(f"parallel.kind = {recipe.kinds['parallel']!r} describes no cluster: give --parallel.kind "
                          "simulated-async or virtual-averaging, and what is known of the cluster, such as "
                          "--parallel.compute_seconds 0.2 --parallel.bandwidth 1e9")  # fmt: skip
    if min([samples, parameters, prices.worker, prices.server, *(count - 1 for count in workers)]) < 0:
        raise ConfigError("expected --workers of 1 and more, and samples, parameters and prices of 0 and more")
    work = Work(samples, parameters) if samples and parameters else measured(recipe, samples, parameters)
    own = options.replicas if isinstance(options, o.SimulatedAsynchronous) else options.workers
    is_async = isinstance(options, o.SimulatedAsynchronous)
    ages = ("age, mean", "age, 95 %", *(("decoders' age",) if work.frames_per_utterance else ())) if is_async else ()
    table = rich.table.Table("workers", "wall time", "speed-up", "computing", *ages, "deaths", "cost", box=None)
    _print(f"{name}: {number(work.samples)} samples, {number(work.parameters)} parameters")
    for count in workers or [own]:
        found, share = planned(recipe, work, count, prices)
        stale = () if not is_async else (f"{found.inner.mean:.1f}", str(found.inner.quantile(0.95)))
        stale += (f"{found.outer.mean:.1f}",) if is_async and work.frames_per_utterance else ()
        table.add_row(str(count), duration(found.seconds / share), f"{found.speedup:.2f}", f"{found.busy:.0%}", *stale,
                      number(found.failures / share), f"{found.cost / share:.2f}")  # fmt: skip
    _print(table)
    return 0


def measured(recipe: Recipe, samples: float, parameters: int) -> Work:
    """From the recipe's data and network."""
    run = build_run(recipe, Console(quiet=True))
    source, frames = run.source, 0
    if isinstance(source, OuterFrames) and isinstance(recipe.parallel, o.SimulatedAsynchronous):
        frames = round(float(source.lengths.double().mean()))
    all_samples = recipe.train.epochs * source.indices.num_items
    return Work(samples or all_samples, parameters or sum(p.numel() for p in run.model.parameters()), frames)


def planned(recipe: Recipe, work: Work, workers: int, prices: Prices) -> tuple[Plan, float]:
    """The plan of a run, or of the beginning of a long one, and what share of it that is."""
    options, cluster, batch = recipe.parallel, cluster_of(recipe.parallel), recipe.train.batch_size
    share = min(1.0, max(MOST_GRADIENTS, 100 * workers) * batch / work.samples)
    common = {"num_replicas": workers, "samples": work.samples * share, "batch_size": batch,
              "num_parameters": work.parameters, "prices": prices}  # fmt: skip
    if not isinstance(options, o.SimulatedAsynchronous):
        return plan_averaging(cluster, every=options.every, **common), share
    decoding = None
    if work.frames_per_utterance:
        fetch = FetchPolicy(seconds=options.decoder_fetch_seconds, synchronous=options.decoder_fetch_synchronous)
        decoding = PlannedDecoding(frames_per_utterance=work.frames_per_utterance, fetch=fetch,
                                   lookahead=options.lookahead)  # fmt: skip
    return plan_asynchronous(cluster, fetch_every=options.fetch_every, num_shards=options.shards, decoding=decoding,
                             **common), share  # fmt: skip
