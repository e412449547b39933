"""One of several workers that train together, and how the batches of one stream are dealt out to them.

All workers walk through the *same* stream of batches, and worker w takes every n-th one. So the data of an epoch are
divided without gaps whatever n is and whenever it changes, the position is the same number on all workers, and one
worker alone sees what a local run would see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hemstitch.comm import MemberLost, Reducer
from hemstitch.optim import NaturalGradient
from hemstitch.sampling import BatchSource
from hemstitch.train._checkpoint import from_bytes, to_bytes
from hemstitch.train._strategies import Batch, Strategy


@dataclass(frozen=True)
class Worker:
    """What one worker trains with.

    Attributes:
        model: its own copy of the network.
        optimizer, natural: its own update rule and natural gradient (or ``None``).
        strategy: how it makes a step of a batch.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    natural: NaturalGradient | None
    strategy: Strategy

    @property
    def stateful(self) -> list[Any]:
        """Optimizer and natural gradient."""
        return [self.optimizer, *([] if self.natural is None else [self.natural])]

    def state_dict(self) -> dict[str, Any]:
        """The state of optimizer and natural gradient."""
        return {"stateful": [part.state_dict() for part in self.stateful]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it."""
        for part, saved in zip(self.stateful, state["stateful"], strict=True):
            part.load_state_dict(saved)


class Handed:
    """A source that hands out one batch: what a worker's strategy draws from."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def next(self) -> Batch:
        """The batch."""
        return self.batch


def deal(source: BatchSource[Batch], workers: int) -> list[Tensor]:
    """The next batches as indices, one for each worker; fewer at the end of an epoch."""
    hands = [source.indices.next()]
    while len(hands) < workers and not source.indices.at_epoch_end:
        hands.append(source.indices.next())
    return hands


@contextmanager
def scaled_rates(optimizers: Sequence[torch.optim.Optimizer], factor: float) -> Iterator[None]:
    """Give all optimizers the learning rates of the first one times ``factor``."""
    rates = [group["lr"] * factor for group in optimizers[0].param_groups]
    for optimizer in optimizers:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
    yield


def insist(reduce: Callable[[], Any], reducer: Reducer) -> Any:
    """Repeat a reduction with the survivors as often as a worker is lost in it."""
    while True:
        try:
            return reduce()
        except MemberLost as lost:
            if reducer.generation == lost.generation:
                raise


def sum_values(reducer: Reducer, values: Sequence[float]) -> list[float]:
    """The sums over the workers."""
    line = torch.tensor(values, dtype=torch.float64)
    insist(lambda: reducer.sum_(line), reducer)
    return line.tolist()


def own_random_numbers(rank: int, seed: int) -> None:
    """Let workers other than the first draw other random numbers (dropout), now that all have the same network."""
    if rank > 0:
        torch.manual_seed(seed + 1_000_003 * rank)


def gather(reducer: Reducer, state: dict[str, Any]) -> list[dict[str, Any]]:
    """The states of all workers, in the order of their ranks; all workers call it together.

    Cost: the states of all workers in the memory of each.
    """
    if reducer.world == 1:
        return [state]
    content = to_bytes(state)

    def reduce() -> list[dict[str, Any]]:
        sizes = torch.zeros(reducer.world, dtype=torch.int64)
        sizes[reducer.rank] = len(content)
        reducer.sum_(sizes)
        rows = torch.zeros(reducer.world, -(-int(sizes.max()) // 8), dtype=torch.int64)
        own = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        rows[reducer.rank].view(torch.uint8)[: len(content)] = own
        reducer.sum_(rows)
        return [from_bytes(row.numpy().tobytes()[:size]) for row, size in zip(rows, sizes.tolist(), strict=True)]

    return insist(reduce, reducer)
