"""Workers emulated by threads of one process: the reducer for tests, examples and virtual replicas."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from hemstitch.comm._reducer import MemberLost, Reducer
from hemstitch.comm._shards import tree_sum
from hemstitch.comm._shared_arena import summed_dtype

ResultT = TypeVar("ResultT")


class _Meeting:
    """Where the threads meet: one slot per worker and a barrier."""

    def __init__(self, world: int, timeout: float) -> None:
        self.slots: list[tuple[list[Tensor], float] | None] = [None] * world
        self.barrier = threading.Barrier(world, timeout=timeout)


class ThreadReducer:
    """One of ``world`` workers that live in threads of one process. Made by :func:`run_workers`."""

    def __init__(self, meeting: _Meeting, rank: int) -> None:
        self._meeting = meeting
        self.rank, self.world, self.generation = rank, len(meeting.slots), 0

    def sum_(self, flat: Tensor, weight: float = 0.0) -> float:
        """See :meth:`hemstitch.comm.Reducer.sum_`."""
        return self.sum_tensors_([flat], 1.0, weight)

    @torch.no_grad()
    def sum_tensors_(self, tensors: Sequence[Tensor], scale: float = 1.0, weight: float = 0.0) -> float:
        """See :meth:`hemstitch.comm.ProcessGroupReducer.sum_tensors_`: to the bit what processes would make of it."""
        slots = self._meeting.slots
        slots[self.rank] = ([_scaled(tensor.detach(), scale) for tensor in tensors], float(weight))
        self._wait()
        totals = [tree_sum(parts) for parts in zip(*(slot[0] for slot in slots))]
        weight = sum(slot[1] for slot in slots)
        self._wait()                                        # nobody writes before all have read
        slots[self.rank] = None
        for tensor, total in zip(tensors, totals):
            tensor.detach().copy_(total)
        return weight

    def _wait(self) -> None:
        try:
            self._meeting.barrier.wait()
        except threading.BrokenBarrierError:
            missing = [rank for rank, slot in enumerate(self._meeting.slots) if slot is None]
            raise MemberLost(missing or [rank for rank in range(self.world) if rank != self.rank]) from None


def _scaled(tensor: Tensor, scale: float) -> Tensor:
    tensor = tensor.to(summed_dtype(tensor.dtype))
    return tensor if scale == 1.0 else tensor * scale if scale else torch.zeros_like(tensor)


def run_workers(worker: Callable[[Reducer], ResultT], world: int, timeout: float = 60.0) -> list[ResultT]:
    """Run ``worker(reducer)`` in ``world`` threads at once and return their results in the order of the ranks.

    Threads share what is global to a process: random numbers and module hooks. A worker that raises breaks the
    meeting: the others see :class:`MemberLost`, the caller sees the first cause.

    Args:
        worker: the program of one worker; it must not share mutable state with the others.
        world: number of workers.
        timeout: seconds to wait for the slowest worker in a reduction.
    """
    meeting = _Meeting(world, timeout)

    def guarded(rank: int) -> ResultT:
        try:
            return worker(ThreadReducer(meeting, rank))
        except BaseException:
            meeting.barrier.abort()
            raise

    with ThreadPoolExecutor(world) as pool:
        futures = [pool.submit(guarded, rank) for rank in range(world)]
    errors = [error for future in futures if (error := future.exception()) is not None]
    if errors:
        raise next((error for error in errors if not isinstance(error, MemberLost)), errors[0])
    return [future.result() for future in futures]
