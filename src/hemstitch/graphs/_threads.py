"""Sharing the sequences of a batch out over threads.

The kernels hold no lock and give each sequence the same bits whichever thread computes it. Plain threads instead of a
thread pool: nothing is left behind that a fork could break, and starting one costs far less than a batch. Numbers too
small for full precision are taken as zero there: peaked outputs produce many, and processors are slow on them.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable

import torch


def share_out(part: Callable[[int, int], None], size: int, multiple: int = 1) -> None:
    """Call ``part(first, last)`` on contiguous parts of ``range(size)``, in as many new threads as torch uses at most.

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
        torch.set_flush_denormal(True)  # of this thread, which ends here: the caller's setting is not touched
        try:
            part(first, last)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=ends) for ends in itertools.pairwise(bounds)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
