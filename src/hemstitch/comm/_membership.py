"""Who belongs to the group, agreed through a key-value store that outlives any worker.

A *generation* is one group of members. It is formed by agreement: every survivor says in the store that it is here, and
one of them writes the list down as soon as nobody is missing, or at the deadline without those who are. The first list
written counts (compare-and-set), so that two members cannot decide differently. Whoever is not on the list is out: a
worker that was stopped or cut off for too long comes back to find itself expelled, and its late work is refused.

Keys: ``ids`` (members ever), ``generation`` (the latest one), ``here/G/M``, ``members/G``, ``gone/M``, ``outcome/G/K``.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta

import torch.distributed as dist

from hemstitch.comm._reducer import MemberLost
from hemstitch.errors import RunError

POLL_SECONDS = 0.01
PATIENCE = 2.0          # seconds after the deadline at which any member may decide, in case the first one is stopped


class Expelled(MemberLost):
    """This worker itself was away for too long and was left out. It may join again as a new one."""

    def __init__(self, rank: int, generation: int) -> None:
        super().__init__((rank,), generation)
        self.args = (f"worker {rank} of generation {generation} was away for longer than the timeout and the others "
                     "went on without it; what it did since the last reduction is refused. Join again as a new "
                     "worker, or raise the timeout",)


def host_store(address: str = "127.0.0.1", port: int = 0) -> dist.TCPStore:
    """Open a store in this process that listens on ``address`` alone; its ``port`` attribute tells where.

    Host it in the process that starts the workers, not in one of them, so that it outlives each. (torch's own server
    listens on every interface of the machine; this one does not.)
    """
    listener = socket.create_server((address, port), backlog=1024)
    return dist.TCPStore(address, listener.getsockname()[1], is_master=True, wait_for_workers=False,
                         master_listen_fd=listener.detach())


def connect_store(address: str, port: int, timeout: float = 60.0) -> dist.TCPStore:
    """A connection to the store that another process hosts."""
    return dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=timeout))


def declare_lost(store: dist.Store, member: int) -> None:
    """Tell the others that ``member`` is dead or has left, so that they need not wait for it.

    Called by whoever supervises the processes; without it a dead worker is given up at the timeout.
    """
    store.set(f"gone/{member}", "1")


class Membership:
    """One member's view of the group.

    Args:
        store: the common key-value store.
        member: this worker's number among all that ever were, or ``None`` to draw a new one and join.
        founders: members of the first generation.
        timeout: seconds to wait for a member that may be alive.

    Attributes:
        generation: number of the current group, -1 before the first.
        members: its members, in the order of their ranks.
    """

    def __init__(self, store: dist.Store, member: int | None, founders: int, timeout: float) -> None:
        self.store, self.timeout = store, timeout
        self.generation, self.members = -1, list(range(founders))
        self._known = set(self.members)
        self._joins = member is None
        self.member = -1 if member is None else member
        try:
            if not self._joins:
                store.compare_set("ids", "", str(founders))
        except RuntimeError as error:
            raise self._store_lost(error) from None

    @property
    def rank(self) -> int:
        """Place of this member in the group."""
        return self.members.index(self.member)

    def form(self) -> None:
        """Agree on the next generation with the members of this one and those who want to join.

        Raises:
            Expelled: the others went on without this worker.
            RunError: the store is gone.
        """
        try:
            while not self._agree():
                if not self._joins:
                    raise Expelled(self.rank, self.generation - 1)
        except RuntimeError as error:
            raise self._store_lost(error) from None
        self._joins = False

    def num_waiting(self) -> int:
        """How many workers wait to join and have not been given a chance yet."""
        return sum(member not in self._known and not self._is_gone(member) for member in self._ever())

    def settle(self, operation: int, outcome: str) -> str:
        """Propose the outcome of an operation; returns the one that the first proposer fixed for all."""
        key = f"outcome/{self.generation}/{operation}"
        try:
            settled = self.store.compare_set(key, "", outcome).decode()
            if self.rank == 0 and operation > 0:
                self.store.delete_key(f"outcome/{self.generation}/{operation - 1}")
        except RuntimeError as error:
            raise self._store_lost(error) from None
        return settled

    def leave(self) -> None:
        """Say that this worker will not come to further reductions."""
        with suppress(RuntimeError):                        # the store has ended: nobody is left to be told
            declare_lost(self.store, self.member)

    def _agree(self) -> bool:
        """Whether this member belongs to the generation that was agreed on."""
        if self._joins:
            self._draw_number()
        target = self.generation + 1
        key = f"members/{target}"
        self.store.set(f"here/{target}/{self.member}", "1")
        deadline = time.monotonic() + self.timeout
        while not self.store.check([key]):
            present = [m for m in self._ever() if self.store.check([f"here/{target}/{m}"]) and not self._is_gone(m)]
            if self.member not in present:                  # declared lost while alive
                return False
            missing = [m for m in self.members if m not in present and not self._is_gone(m)]
            if self._may_decide(present, missing, late=time.monotonic() - deadline):
                self.store.compare_set(key, "", json.dumps({"members": present, "known": max(self._ever()) + 1}))
            else:
                time.sleep(POLL_SECONDS)
        decided = json.loads(self.store.get(key))
        self.store.set("generation", str(target))
        self._known |= set(range(decided["known"]))
        self.generation = target
        if self.member not in decided["members"]:
            return False
        self.members = decided["members"]
        return True

    def _may_decide(self, present: Iterable[int], missing: Iterable[int], late: float) -> bool:
        if self._joins:                                     # it does not know whom to wait for
            return False
        first = self.member == min(member for member in present if member in self.members)
        return (first and (not missing or late > 0)) or late > PATIENCE

    def _ever(self) -> range:
        return range(int(self.store.get("ids")))

    def _is_gone(self, member: int) -> bool:
        return self.store.check([f"gone/{member}"])

    def _draw_number(self) -> None:
        """Take a new number, after reading the generation: no list before the next one can have counted it."""
        self.store.wait(["generation"])
        self.generation, self.members = max(self.generation, int(self.store.get("generation"))), []
        self.member = self.store.add("ids", 1) - 1

    def _store_lost(self, error: RuntimeError) -> RunError:
        return RunError("the store through which the workers find each other does not answer "
                        f"({str(error).splitlines()[0]}): the process that hosts it has ended. Start the run again; it "
                        "continues from its checkpoint")
