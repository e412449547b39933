"""Sharing the sequences of a batch out over threads, and the memory they work in.

The kernels hold no lock and give each sequence the same bits whichever thread computes it. Plain threads instead of a
thread pool: nothing is left behind that a fork could break, and starting one costs far less than a batch.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

_CACHE_LINE = 64
_KEPT_BYTES = 1 << 25
"""A workspace that grew larger is given back to the system."""


def share_out(part: Callable[[int, int], None], size: int, multiple: int = 1) -> None:
    """Call ``part(first, last)`` on contiguous parts of ``range(size)``, at most one per torch thread.

    Args:
        part: a function that leaves the interpreter's lock for most of its time.
        size: the number of sequences.
        multiple: parts begin at multiples of it.

    Raises:
        Exception: the first one raised by a part, after all have ended.
    """
    blocks = -(-size // multiple)
    num_parts = max(1, min(torch.get_num_threads(), blocks))
    bounds = [min(size, blocks * i // num_parts * multiple) for i in range(num_parts + 1)]
    errors: list[BaseException] = []

    def guarded(first: int, last: int) -> None:
        try:
            part(first, last)
        except BaseException as error:
            errors.append(error)

    mine, *others = itertools.pairwise(bounds)
    threads = [threading.Thread(target=guarded, args=ends) for ends in others]
    for thread in threads:
        thread.start()
    guarded(*mine)
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


class Workspace:
    """Arrays that begin on a cache line, in memory that is used again: fresh pages cost more than small batches do."""

    def __init__(self):
        self._memory, self._used = _aligned(0), 0

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An array of any content, to be left alone once the workspace is handed back."""
        num_bytes = math.prod(shape) * dtype.itemsize
        begin, self._used = self._used, self._used + -(-num_bytes // _CACHE_LINE) * _CACHE_LINE
        memory = self._memory[begin:] if self._used <= self._memory.size else _aligned(num_bytes)
        return memory[:num_bytes].view(dtype).reshape(shape)

    def rewind(self) -> None:
        """Take all arrays back; make room for as many the next time."""
        if self._used > self._memory.size:
            self._memory = _aligned(self._used if self._used <= _KEPT_BYTES else 0)
        self._used = 0


_idle: list[Workspace] = []


@contextmanager
def workspace() -> Iterator[Workspace]:
    """A workspace of one's own for a while."""
    try:
        mine = _idle.pop()
    except IndexError:
        mine = Workspace()
    try:
        yield mine
    finally:
        mine.rewind()
        _idle.append(mine)


def _aligned(num_bytes: int) -> np.ndarray:
    memory = np.empty(num_bytes + _CACHE_LINE, np.uint8)
    skipped = -memory.ctypes.data % _CACHE_LINE
    return memory[skipped:skipped + num_bytes]
