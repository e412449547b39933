"""Worker processes on this machine, started and looked after by this one.

The parent hosts the store through which the workers meet, so that no worker's death takes it away, and tells the
others at once when one has died. A worker ends with its parent, however that ends: nothing is left running.

Each worker is a fresh Python process (``spawn``): its program must be importable, and the main script guarded by
``if __name__ == "__main__"``.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from typing import Any

import torch

from hemstitch.comm import ProcessGroupReducer, connect_store, declare_lost, host_store
from hemstitch.errors import HemstitchError

Worker = Callable[..., Any]
GRACE_SECONDS = 5.0         # between asking a process to end and ending it
POLL_SECONDS = 0.1


class WorkerFailed(HemstitchError):
    """A worker process raised or died; the message holds its traceback or exit code."""


@dataclass
class _Process:
    """One worker as its parent sees it."""

    handle: SpawnProcess
    results: connection.Connection
    member: int | None                          # its number in the group; of one that joins, once it has
    outcome: tuple[str, Any] | None = None      # ("result", value), ("error", traceback) or ("died", exit code)


class LocalWorkers:
    """Worker processes that run ``worker(reducer, *args)``.

        with LocalWorkers(train, 4, args=(recipe,)) as workers:
            results = workers.results()

    Args:
        worker: the program of one worker, a function that can be imported; what it returns is pickled.
        num_workers: how many begin.
        args: further arguments, pickled.
        timeout: seconds to wait in a reduction before a worker is given up.
        threads: of torch in each worker; 0 shares the cores of the machine among ``num_workers``.

    Attributes:
        store: where the workers meet; hosted here, on the loopback address.
    """

    def __init__(self, worker: Worker, num_workers: int, *, args: Sequence[Any] = (), timeout: float = 60.0,
                 threads: int = 0) -> None:
        self.store = host_store()
        self._threads = threads or max(1, (os.cpu_count() or 1) // num_workers)
        self._program, self._timeout = (worker, tuple(args)), timeout
        self._founders = num_workers
        self._processes: list[_Process] = []
        self._changed = threading.Condition()
        self._closed = False
        for rank in range(num_workers):
            self._start(rank)
        self._monitor = threading.Thread(target=self._watch, name="hemstitch-workers", daemon=True)
        self._monitor.start()
        atexit.register(self.close)                         # before multiprocessing waits for its children

    @property
    def pids(self) -> list[int]:
        """Process id of each worker, in the order they were started."""
        return [process.handle.pid for process in self._processes]

    def add(self) -> int:
        """Start one more worker; it joins where the others next admit new ones. Returns its process id."""
        with self._changed:
            self._start(None)
        return self.pids[-1]

    def results(self, *, timeout: float | None = None, tolerate_losses: bool = False) -> list[Any]:
        """Wait for all workers; what each returned, in the order they were started.

        Args:
            timeout: seconds to wait at most.
            tolerate_losses: leave out workers that died or failed, as long as one has a result.

        Raises:
            WorkerFailed: a worker raised or died; the others are ended.
            TimeoutError: they were not done in time.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while any(process.outcome is None for process in self._processes):
                if not tolerate_losses and self._failures():
                    break
                remaining = None if deadline is None else deadline - time.monotonic()
                if remaining is not None and remaining <= 0:
                    raise TimeoutError(f"the workers did not finish within {timeout:g} s")
                self._changed.wait(remaining)
            outcomes = [process.outcome for process in self._processes]
        good = [outcome[1] for outcome in outcomes if outcome and outcome[0] == "result"]
        failures = self._failures()
        if failures and not (tolerate_losses and good):
            self.close()
            raise WorkerFailed("\n".join(failures))
        return good

    def losses(self) -> list[str]:
        """What became of workers that died or failed so far, causes before consequences."""
        with self._changed:
            return self._failures()

    def close(self) -> None:
        """End the workers that still run: first asked, then forced."""
        self._closed = True
        atexit.unregister(self.close)
        for process in self._processes:
            if process.handle.is_alive():
                process.handle.terminate()
        deadline = time.monotonic() + GRACE_SECONDS
        for process in self._processes:
            process.handle.join(max(0.0, deadline - time.monotonic()))
            if process.handle.is_alive():
                process.handle.kill()
                process.handle.join()
        self._monitor.join(GRACE_SECONDS)
        for process in self._processes:
            process.results.close()

    def __enter__(self) -> LocalWorkers:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _start(self, rank: int | None) -> None:
        context = multiprocessing.get_context("spawn")
        receiver, sender = context.Pipe(duplex=False)
        settings = _Settings(self.store.port, rank, self._founders, self._timeout, self._threads)
        handle = context.Process(target=_run, args=(settings, sender, pickle.dumps(self._program)))
        handle.start()
        sender.close()                                      # only the worker holds it now: its death closes the pipe
        self._processes.append(_Process(handle, receiver, member=rank))

    def _watch(self) -> None:
        """Collect results and announce deaths."""
        while not self._closed:
            waiting = {process.results: process for process in self._processes if process.outcome is None}
            if not waiting:
                time.sleep(POLL_SECONDS)
                continue
            for ready in connection.wait(list(waiting), timeout=POLL_SECONDS):
                self._receive(waiting[ready])

    def _receive(self, process: _Process) -> None:
        try:
            kind, value = process.results.recv()
        except (EOFError, OSError):
            process.handle.join(GRACE_SECONDS)
            kind, value = "died", f"exit code {process.handle.exitcode}"
        if kind == "member":
            process.member = value
            return
        if process.member is not None:
            declare_lost(self.store, process.member)
        with self._changed:
            process.outcome = kind, value
            self._changed.notify_all()

    def _failures(self) -> list[str]:
        outcomes = [(process.handle.pid, *process.outcome) for process in self._processes if process.outcome]
        failures = [f"worker process {pid} {kind}: {value}" for pid, kind, value in outcomes if kind != "result"]
        return sorted(failures, key=lambda text: "MemberLost" in text)      # causes before consequences


@dataclass(frozen=True)
class _Settings:
    """What a worker must know before it can ask."""

    port: int
    rank: int | None
    founders: int
    timeout: float
    threads: int


def _run(settings: _Settings, sender: connection.Connection, program: bytes) -> None:
    """The life of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)            # Ctrl-C reaches the parent, who decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(settings.threads)
    world = None if settings.rank is None else settings.founders
    with suppress(BrokenPipeError), _reported_to(sender):
        worker, args = pickle.loads(program)
        store = connect_store("127.0.0.1", settings.port)
        with ProcessGroupReducer(store, settings.rank, world, timeout=settings.timeout) as reducer:
            sender.send(("member", reducer.member))
            with _reported_to(sender):                      # before the others see that this one has left
                sender.send_bytes(pickle.dumps(("result", worker(reducer, *args))))     # tensors by value


@contextmanager
def _reported_to(sender: connection.Connection) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except Exception:
        sender.send(("error", traceback.format_exc()))


def _end_with_parent() -> None:
    connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
