"""Workers that reduce (averaging, Hessian-free, data-parallel), as processes that Ray has started.

The same workers as `hemstitch.parallel.LocalWorkers`, on the machines of a cluster: the process groups live inside
actors, and the store in which they meet in this process, so that no worker's death takes it away. Ray tells at once
when one has died; one that is stopped or cut off is given up by the others after ``timeout``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import torch

from hemstitch.comm import ProcessGroupReducer, connect_store, declare_lost, host_store
from hemstitch.parallel._launcher import WorkerFailed
from hemstitch.parallel.ray._engine import connected
from hemstitch.parallel.ray._link import lost_errors

POLL_SECONDS = 0.2


class Member:
    """One worker's process."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)

    def pid(self) -> int:
        """A sign of life."""
        return os.getpid()

    def work(self, store: tuple[str, int], rank: int, world: int, timeout: float, worker: Callable[..., Any],
             args: Sequence[Any]) -> Any:
        """Join the group and run the program; what it returns."""
        import ray

        with ProcessGroupReducer(connect_store(*store), rank, world, timeout=timeout,
                                 address=ray.util.get_node_ip_address()) as reducer:
            return worker(reducer, *args)


class RayWorkers:
    """Worker processes that run ``worker(reducer, *args)``.

        with RayWorkers(train, 4, args=(recipe,), address="10.0.0.1:6379") as workers:
            results = workers.results()

    Args:
        worker: the program of one worker; pickled, as are its arguments and what it returns.
        num_workers: n, spread over the machines.
        args: further arguments.
        timeout: seconds to wait in a reduction before a worker is given up.
        threads: of torch in each worker.
        address: of a running cluster; empty: start one here, for as long as this lasts.

    Attributes:
        store: where the workers meet; hosted here, on the address of this machine in the cluster.
        pids: process id of each worker.

    Raises:
        ConfigError: the engine is not installed, or there is too little memory.
        RunError: the cluster cannot be joined.
    """

    def __init__(self, worker: Callable[..., Any], num_workers: int, *, args: Sequence[Any] = (), timeout: float = 60.0,
                 threads: int = 1, address: str = "") -> None:
        with ExitStack() as resources:                      # closed at once if anything here fails
            self._ray = resources.enter_context(
                connected(address, num_cpus=num_workers + 1, num_processes=num_workers))
            here = self._ray.util.get_node_ip_address()
            self.store = host_store(here)
            actor = self._ray.remote(num_cpus=1, max_restarts=0, scheduling_strategy="SPREAD")(Member)
            self._members = [actor.remote(threads) for _ in range(num_workers)]
            resources.callback(self._end_processes)
            self.pids: list[int] = self._ray.get([member.pid.remote() for member in self._members])
            place = here, self.store.port
            self._pending = {member.work.remote(place, rank, num_workers, timeout, worker, args): rank
                             for rank, member in enumerate(self._members)}
            self._outcomes: dict[int, tuple[str, Any]] = {}
            self._resources = resources.pop_all()

    def results(self, *, timeout: float | None = None, tolerate_losses: bool = False) -> list[Any]:
        """See `LocalWorkers.results`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._pending and (tolerate_losses or not self.losses()):
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"the workers did not finish within {timeout:g} s")
            ready, _ = self._ray.wait(list(self._pending), timeout=POLL_SECONDS)
            for future in ready:
                self._receive(future)
        good = [value for _, (kind, value) in sorted(self._outcomes.items()) if kind == "result"]
        if self.losses() and not (tolerate_losses and good):
            self.close()
            raise WorkerFailed("\n".join(self.losses()))
        return good

    def losses(self) -> list[str]:
        """What became of workers that died or failed so far, causes before consequences."""
        failures = [f"worker process {self.pids[rank]} {kind}: {value}" for rank, (kind, value) in
                    self._outcomes.items() if kind != "result"]
        return sorted(failures, key=lambda text: "MemberLost" in text)

    def close(self) -> None:
        """End the workers that still run, and the engine if it was started here."""
        self._resources.close()

    def __enter__(self) -> RayWorkers:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _receive(self, future: Any) -> None:
        rank = self._pending.pop(future)
        try:
            outcome = "result", self._ray.get(future)
        except lost_errors(self._ray):
            outcome = "died", "the engine cannot reach it any more"
        except self._ray.exceptions.RayTaskError as error:
            outcome = "error", str(error)
        declare_lost(self.store, rank)                      # it has left, in whatever way
        self._outcomes[rank] = outcome

    def _end_processes(self) -> None:
        for member in self._members:
            with suppress(Exception):
                self._ray.kill(member, no_restart=True)
