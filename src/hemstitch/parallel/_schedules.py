"""How the number of workers, the learning rate and the phase of backstitch go together."""

from __future__ import annotations

from hemstitch.errors import ConfigError


def num_workers_at(progress: float, first: int, last: int) -> int:
    """How many workers train at a point of the run: from ``first`` linearly to ``last``, rounded.

    Args:
        progress: share of the run that is over, in [0, 1].
        first, last: number of workers at the beginning and the end, >= 1.

    Examples:
        >>> [num_workers_at(progress, 2, 6) for progress in (0.0, 0.3, 0.7, 1.0)]
        [2, 3, 5, 6]
    """
    _check(progress, first, last)
    return int(0.5 + first + (last - first) * progress)


def learning_rate_at(progress: float, num_workers: int, first: float, last: float) -> float:
    """The learning rate of each of n workers whose average is to move like one with the effective rate.

        lr = n first (last / first)^progress

    Args:
        progress: share of the run that is over, in [0, 1].
        num_workers: n, those that are averaged now.
        first, last: effective learning rates at the beginning and the end, > 0.

    Examples:
        >>> learning_rate_at(0.5, num_workers=4, first=1e-2, last=1e-4)
        0.004
    """
    _check(progress, first, last)
    return num_workers * first * (last / first) ** progress


def staggered_phase(rank: int, num_workers: int, interval: int) -> int:
    """The minibatch, counted modulo ``interval``, on which this worker makes its two-pass steps.

    Spread evenly over the workers, so that they do not all take twice as long at the same time.

    Examples:
        >>> [staggered_phase(rank, 3, interval=6) for rank in range(3)]
        [0, 2, 4]
        >>> [staggered_phase(rank, 4, interval=2) for rank in range(4)]
        [0, 0, 1, 1]
    """
    if not 0 <= rank < num_workers or interval < 1:
        raise ConfigError(f"need 0 <= rank < num_workers and interval >= 1, got {rank}, {num_workers}, {interval}")
    return rank * interval // num_workers


def _check(progress: float, first: float, last: float) -> None:
    if not (0 <= progress <= 1 and first > 0 and last > 0):
        raise ConfigError(f"need progress in [0, 1] and positive ends, got {progress}, {first} and {last}")
