"""The reducer over processes: torch.distributed's groups, atomic sums, and a new group when a worker dies.

**All or nothing.** A worker may die at any moment, also in the middle of a reduction, when some of the others have its
result and some have not. A sum therefore goes in two phases, and nothing of the caller's is written before the second:

1. all exchange a header (size, weight), then the data;
2. when all have said that they hold everything, the outcome is fixed in the store by whoever asks first, and read by
   the others: ``commit``: every survivor takes the result; ``abort``: nobody does, all form a new group and all raise
   `MemberLost` from the same call.

So survivors never disagree about which sums were made, and repeating the step with the new group is always right.

**Which way the data takes.** Little tensors: gathered by all and added. Large ones: through shared memory where all
workers are on one machine; else each worker receives its part of the vector from all, adds, and gives the sum to all
(2 (n-1)/n of the vector per worker, the least possible). CUDA tensors use NCCL if asked for, else pass through the
host. In every way the additions are those of `tree_sum`, so all workers, and all ways, have the same bits.

**Death** is noticed at once: the connection to a dead process breaks. A stopped or cut-off worker is given up after
``timeout``, and is expelled if it comes back. All traffic is bound to the loopback address unless told otherwise.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from hemstitch.comm._membership import Membership, connect_store, host_store
from hemstitch.comm._reducer import MemberLost
from hemstitch.comm._shards import tree_sum
from hemstitch.comm._shared_arena import SharedArena, aligned_bytes, summed_dtype
from hemstitch.errors import ConfigError, MisuseError

SMALL = 1 << 14             # elements up to which every worker receives everything
CONNECT_SECONDS = 10.0      # all are known to be here when the connections are made
LOOPBACK = ("127.0.0.1", "localhost", "::1")
Backend = Literal["gloo", "nccl"]
Combine = Callable[[], None]


class _Broken(Exception):
    """A collective operation failed: somebody is not there."""


class ProcessGroupReducer:
    """Sums over worker processes; implements `hemstitch.comm.Reducer`.

    After a `MemberLost` the group has been formed anew already: ``rank``, ``world`` and ``generation`` are those of the
    survivors, and the caller repeats its step.

    Args:
        store: the common key-value store, see `host_store`; better not hosted by one of the workers.
        rank, world: this worker and how many begin; leave both out to join a group that is running.
        timeout: seconds to wait in a reduction for the slowest worker before it is given up.
        address: the local network address to bind to; the loopback address serves workers of one machine.
        backend: ``"nccl"`` to reduce CUDA tensors with NCCL, one device per worker.
        shared_memory: whether large tensors may go through shared memory.

    Attributes:
        rank: this worker, 0 <= rank < world.
        world: number of workers.
        generation: number of the group; grows with every loss and every admission.

    Raises:
        RunError: the store does not answer.
    """

    def __init__(
        self,
        store: dist.Store,
        rank: int | None = None,
        world: int | None = None,
        *,
        timeout: float = 60.0,
        address: str = "127.0.0.1",
        backend: Backend = "gloo",
        shared_memory: bool = True,
    ) -> None:
        if (rank is None) != (world is None) or (world is not None and not 0 <= rank < world):
            raise ConfigError(f"need 0 <= rank < world, or neither to join a running group; got {rank} of {world}")
        if timeout <= 0:
            raise ConfigError(f"timeout must be > 0 seconds, got {timeout}")
        self._timeout, self._address, self._backend = timeout, address, backend
        self._may_share = shared_memory
        self._scratch: Tensor | None = None
        self._members = Membership(store, rank, world or 0, timeout)
        self._form()

    @classmethod
    def from_environment(cls, *, timeout: float = 60.0, address: str | None = None,
                         backend: Backend = "gloo") -> ProcessGroupReducer:
        """The group of a job started by ``torchrun`` (or anything that sets the same variables).

        Args:
            timeout, backend: as above.
            address: this machine's address towards the others; needed if they are on several machines.

        Raises:
            ConfigError: a variable is missing, or the workers are on several machines and ``address`` is.
        """
        try:
            rank, world, port = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
            master = os.environ["MASTER_ADDR"]
        except KeyError as error:
            raise ConfigError(f"the environment variable {error} is not set: start the program with torchrun") from None
        if address is None:
            if master not in LOOPBACK and os.environ.get("LOCAL_WORLD_SIZE") != str(world):
                raise ConfigError("the workers are on several machines: give this machine's address towards the others "
                                  "(address=...)")
            address = "127.0.0.1"
        hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        store = host_store(master, port) if rank == 0 and not hosted else connect_store(master, port, timeout)
        prefix = f"hemstitch/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
        return cls(dist.PrefixStore(prefix, store), rank, world, timeout=timeout, address=address, backend=backend)

    def sum_(self, flat: Tensor, weight: float = 0.0) -> float:
        """See `hemstitch.comm.Reducer.sum_`; half precision is summed in single.

        Raises:
            MemberLost: a worker did not answer; ``flat`` is unchanged and the survivors form a new group.
            Expelled: it is this worker that was given up.
            MisuseError: the workers brought tensors of different size or type.
            RunError: the store does not answer.
        """
        return self.sum_tensors_([flat], 1.0, weight)

    @torch.no_grad()
    def sum_tensors_(self, tensors: Sequence[Tensor], scale: float = 1.0, weight: float = 0.0) -> float:
        """Replace each tensor, in place, by the sum over the workers of ``scale`` times it; all or none.

        A worker with scale 0 contributes nothing, whatever its tensors hold. Saves the caller a flat copy.

        Returns:
            The sum of the workers' ``weight``.

        Cost: two passes over the tensors in shared memory, four with sockets; three small messages.
        """
        tensors = [tensor.detach() for tensor in tensors if tensor.numel()]
        if self.world == 1:
            for tensor in tensors if scale != 1.0 else ():
                tensor.mul_(scale) if scale else tensor.zero_()
            return float(weight)
        self._operation += 1
        combine = None
        try:
            weights = self._open(tensors, weight)
            combine = self._exchange(tensors, scale)
            self._gather([0.0])                             # all hold everything
            outcome = self._members.settle(self._operation, "commit")
        except _Broken:
            outcome = self._members.settle(self._operation, "abort")
        if outcome == "abort":
            generation, before = self.generation, self._members.members
            self.regroup()
            raise MemberLost([r for r, member in enumerate(before) if member not in self._members.members], generation)
        combine()
        return sum(weights)

    @property
    def store(self) -> dist.Store:
        """The key-value store through which the workers found each other."""
        return self._members.store

    @property
    def member(self) -> int:
        """This worker's number among all that ever belonged to the job; unlike the rank it does not change."""
        return self._members.member

    def num_waiting(self) -> int:
        """How many workers ask to join; they are admitted by the next `regroup`."""
        return self._members.num_waiting()

    def regroup(self) -> None:
        """Form the group anew with those who are here and those who want to join; all members call it together."""
        self._close_groups()
        self._form()

    def close(self) -> None:
        """Leave: the others go on without this worker, at once."""
        self._members.leave()
        self._close_groups()

    def __enter__(self) -> ProcessGroupReducer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # -- the two phases --------------------------------------------------------------------------------------------

    def _open(self, tensors: Sequence[Tensor], weight: float) -> list[float]:
        """Exchange headers; returns the weights in the order of the ranks."""
        own = [float(sum(t.numel() for t in tensors)), float(sum(map(aligned_bytes, tensors))), float(weight)]
        rows = self._gather(own)
        if any(row[:2] != own[:2] for row in rows):
            sizes = ", ".join(f"{row[0]:.0f} numbers in {row[1]:.0f} bytes" for row in rows)
            raise MisuseError(f"the workers reduce different things (in the order of the ranks: {sizes}): they must "
                              "call the reducer at the same places with tensors of the same sizes and types")
        return [row[2] for row in rows]

    def _exchange(self, tensors: list[Tensor], scale: float) -> Combine:
        """Send and receive; what is returned writes the result."""
        size = sum(t.numel() for t in tensors)
        on_device = self._backend == "nccl" and all(t.is_cuda for t in tensors)
        if size > SMALL and self._may_share and not on_device:
            arena = self._arena_of(sum(map(aligned_bytes, tensors)))
            if arena.size:
                arena.publish(tensors, scale)
                return lambda: arena.sum_into(tensors)
        combines, scratch = [], self._scratch_of(tensors, tensors[0].device if on_device else torch.device("cpu"))
        for dtype in dict.fromkeys(summed_dtype(t.dtype) for t in tensors):
            chosen = [t for t in tensors if summed_dtype(t.dtype) == dtype]
            own, scratch = scratch.tensor_split([sum(map(aligned_bytes, chosen))])
            flat = _flatten(chosen, scale, own.view(dtype)[:sum(t.numel() for t in chosen)])
            combines.append((chosen, self._sum(flat)))

        def combine() -> None:
            for chosen, total in combines:
                _unflatten(total, chosen)

        return combine

    def _sum(self, flat: Tensor) -> Tensor:
        if flat.numel() <= SMALL:
            return self._sum_all(flat)
        if self.world > 2:
            return self._sum_parts(flat)
        self._wait(self._group(flat).allreduce([flat]))     # a + b = b + a: the same bits in whatever order
        return flat

    def _sum_all(self, flat: Tensor) -> Tensor:
        """Everybody receives everything: one message."""
        rows = flat.new_empty(self.world, flat.numel())
        self._wait(self._group(flat)._allgather_base(rows.view(-1), flat))
        return tree_sum(list(rows))

    def _sum_parts(self, flat: Tensor) -> Tensor:
        """Worker r adds the r-th part of everybody's vector and hands the sum to all."""
        part = math.ceil(flat.numel() / self.world)
        sent = [max(0, min(part, flat.numel() - rank * part)) for rank in range(self.world)]
        rows = flat.new_empty(self.world, sent[self.rank])
        self._wait(self._group(flat).alltoall_base(rows.view(-1), flat, [sent[self.rank]] * self.world, sent))
        own, total = flat.new_zeros(part), flat.new_empty(part * self.world)
        own[:sent[self.rank]] = tree_sum(list(rows))
        self._wait(self._group(flat)._allgather_base(total, own))
        return total[:flat.numel()]

    def _gather(self, values: Sequence[float]) -> list[list[float]]:
        """The values of all workers, in the order of their ranks; int64 if the values are integers."""
        own = torch.tensor(values, dtype=torch.int64 if isinstance(values[0], int) else torch.float64)
        rows = own.new_empty(self.world, len(values))
        self._wait(self._groups["cpu"]._allgather_base(rows.view(-1), own))
        return rows.tolist()

    def _wait(self, work: dist.Work) -> None:
        try:
            work.wait(timedelta(seconds=self._timeout))
            if self._backend == "nccl":
                torch.cuda.current_stream().synchronize()
        except RuntimeError as error:
            raise _Broken from error

    def _arena_of(self, size: int) -> SharedArena:
        """The shared memory, made or enlarged by all workers together."""
        if self._arena is None or 0 < self._arena.size < size:
            self._arena = None
            self._arena = SharedArena(self._gather, self.rank, size)
        return self._arena

    def _scratch_of(self, tensors: Sequence[Tensor], device: torch.device) -> Tensor:
        """Bytes for one copy of the tensors, kept for the next time."""
        size = sum(map(aligned_bytes, tensors))
        if self._scratch is None or self._scratch.device != device or self._scratch.numel() < size:
            self._scratch = torch.empty(size, dtype=torch.uint8, device=device)
        return self._scratch[:size]

    # -- groups ----------------------------------------------------------------------------------------------------

    def _form(self) -> None:
        """Agree on the members and connect them, again if one is lost on the way."""
        connected = False
        while not connected:
            self._members.form()
            self.rank, self.world = self._members.rank, len(self._members.members)
            self.generation, self._operation = self._members.generation, 0
            self._groups: dict[str, dist.Backend] = {}
            self._arena: SharedArena | None = None
            connected = self.world == 1 or self._connect()

    def _connect(self) -> bool:
        """Whether all are connected: the same answer for all."""
        try:
            self._groups["cpu"] = self._connect_gloo()
            self._gather([0.0])
        except (_Broken, RuntimeError):
            self._close_groups()
            return self._members.settle(0, "abort") == "commit"
        return self._members.settle(0, "commit") == "commit"

    def _connect_gloo(self) -> dist.Backend:
        options = dist.ProcessGroupGloo._Options()
        options._timeout = timedelta(seconds=min(self._timeout, CONNECT_SECONDS))
        options._devices = [dist.ProcessGroupGloo.create_device(hostname=self._address)]
        group = dist.ProcessGroupGloo(self._prefix("gloo"), self.rank, self.world, options)
        group._set_default_timeout(timedelta(seconds=self._timeout))
        return group

    def _group(self, flat: Tensor) -> dist.Backend:
        """The group that moves tensors of this kind."""
        if not flat.is_cuda:
            return self._groups["cpu"]
        if "cuda" not in self._groups:
            self._groups["cuda"] = dist.ProcessGroupNCCL(self._prefix("nccl"), self.rank, self.world)
        return self._groups["cuda"]

    def _prefix(self, name: str) -> dist.PrefixStore:
        return dist.PrefixStore(f"{name}/{self.generation}", self._members.store)

    def _close_groups(self) -> None:
        """Break the connections, so that the others notice."""
        if "cuda" in self._groups:
            self._groups["cuda"].abort()
        self._groups, self._arena = {}, None


def _flatten(tensors: Sequence[Tensor], scale: float, out: Tensor) -> Tensor:
    """``scale`` times the tensors, one after the other, in ``out``."""
    if scale == 0.0:
        return out.zero_()                                  # also where a tensor is not finite
    torch.cat([t.reshape(-1).to(out) for t in tensors], out=out)
    return out if scale == 1.0 else out.mul_(scale)


def _unflatten(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    for tensor, piece in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(piece.view(tensor.shape))
