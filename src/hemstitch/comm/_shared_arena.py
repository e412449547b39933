"""Memory shared by the workers of one machine: a sum costs two passes over the tensors and no copy through a socket.

Each worker owns one anonymous segment (``memfd``), which the others map through ``/proc/PID/fd/FD``. It has no name:
nothing is left behind however the processes end, and the size of /dev/shm does not matter. Where mapping is refused
(another machine, another user or container, no Linux) the group falls back to its sockets.
"""

from __future__ import annotations

import mmap
import os
import secrets
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hemstitch.comm._shards import tree_sum
from hemstitch.errors import RunError

CHUNK = 1 << 18             # elements that are summed at once: a few of these stay in the cache
HEADER = 16                 # bytes before the data: the token by which a mapping is recognised

Gather = Callable[[Sequence[int]], list[list[int]]]


class SharedArena:
    """The segments of all workers of a group, ``size`` bytes each.

    Args:
        gather: gives every worker the integers of all, in the order of the ranks.
        rank: this worker.
        size: bytes per worker.

    Attributes:
        size: bytes per worker; 0 where the memory cannot be shared.
    """

    def __init__(self, gather: Gather, rank: int, size: int) -> None:
        self._rank = rank
        descriptor, token = _create(size + HEADER)
        try:
            offers = gather([os.getpid(), descriptor, token])
            maps = [_open(*offer, size + HEADER) for offer in offers]
            understood = all(row[0] for row in gather([int(all(m is not None for m in maps))]))
        finally:
            if descriptor >= 0:
                os.close(descriptor)                        # after all have mapped it
        self.size = size if understood else 0
        self._maps = maps if understood else []

    def publish(self, tensors: Sequence[Tensor], scale: float) -> None:
        """Write ``scale`` times the tensors where the others can read it."""
        for tensor, own in zip(tensors, self._views(tensors, self._rank), strict=True):
            if scale == 1.0:
                own.copy_(tensor)
            elif scale == 0.0:
                own.zero_()                                 # also where the tensor is not finite
            elif tensor.dtype == own.dtype and tensor.device.type == "cpu":
                torch.mul(tensor, scale, out=own)
            else:
                own.copy_(tensor).mul_(scale)

    def sum_into(self, tensors: Sequence[Tensor]) -> None:
        """Replace the tensors by the sums over all workers of what was published, added as in `tree_sum`."""
        parts = [self._views(tensors, rank) for rank in range(len(self._maps))]
        for tensor, sources in zip(tensors, zip(*parts, strict=True), strict=True):
            if not tensor.is_contiguous() or tensor.device.type != "cpu":
                tensor.copy_(tree_sum(sources))
                continue
            flat, rows = tensor.view(-1), [source.view(-1) for source in sources]
            for start in range(0, flat.numel(), CHUNK):
                pieces = [row[start:start + CHUNK] for row in rows]
                if len(pieces) == 2 and flat.dtype == rows[0].dtype:
                    torch.add(*pieces, out=flat[start:start + CHUNK])
                else:
                    flat[start:start + CHUNK] = tree_sum(pieces)

    def _views(self, tensors: Sequence[Tensor], rank: int) -> list[Tensor]:
        views, offset = [], HEADER
        for tensor in tensors:
            dtype = summed_dtype(tensor.dtype)
            view = torch.frombuffer(self._maps[rank], dtype=dtype, count=tensor.numel(), offset=offset)
            views.append(view.view(tensor.shape))
            offset += aligned_bytes(tensor)
        return views


def summed_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which numbers of ``dtype`` are summed: half precision in single."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def aligned_bytes(tensor: Tensor) -> int:
    """Bytes that the tensor takes in a segment."""
    return -(-tensor.numel() * summed_dtype(tensor.dtype).itemsize // HEADER) * HEADER


def _create(size: int) -> tuple[int, int]:
    """A new segment: descriptor and token; (-1, 0) where there is no such thing."""
    if not hasattr(os, "memfd_create"):
        return -1, 0
    descriptor = os.memfd_create("hemstitch", os.MFD_CLOEXEC)
    try:
        os.posix_fallocate(descriptor, 0, size)             # too little memory is an error here, not a crash later
    except OSError as error:
        os.close(descriptor)
        raise RunError(f"{size / 2**20:.0f} MiB of memory to share with the other workers could not be had "
                       f"({error.strerror}): use fewer workers or a smaller network") from None
    token = secrets.randbits(62)
    os.pwrite(descriptor, token.to_bytes(8, "little"), 0)
    return descriptor, token


def _open(process: int, descriptor: int, token: int, size: int) -> mmap.mmap | None:
    """Map another worker's segment, if it can be reached and is the one meant."""
    if descriptor < 0:
        return None
    try:
        number = os.open(f"/proc/{process}/fd/{descriptor}", os.O_RDWR)
    except OSError:
        return None
    try:
        mapped = mmap.mmap(number, size)
    except (OSError, ValueError):
        return None
    finally:
        os.close(number)
    return mapped if int.from_bytes(mapped[:8], "little") == token else None
