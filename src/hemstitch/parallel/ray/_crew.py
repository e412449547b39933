"""Processes as their supervisor sees them: asked for signs of life, and replaced when there are none."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from hemstitch.errors import HemstitchError
from hemstitch.parallel._launcher import WorkerFailed
from hemstitch.parallel.ray._link import lost_errors
from hemstitch.parallel.ray._server import START_SECONDS, Tell

MOST_FALSE_STARTS = 3       # processes one after the other that die before they show themselves
PING_SECONDS = 0.5


class Crew:
    """Some replicas and the process in which they live now.

    Args:
        ray: the engine.
        start: makes a new process; returns its handle.
        workers: numbers of the replicas.
        patience: seconds without a sign of life after which the process is replaced.
        tell: takes messages about failures.

    Attributes:
        facts: of the latest sign of life: process id, share of time spent computing.
        num_failures: processes lost.
        has_ended: whether the replicas ran out of data.
    """

    def __init__(self, ray: Any, start: Callable[[], Any], workers: list[int], patience: float, tell: Tell) -> None:
        self._ray, self._start, self.workers, self._patience, self._tell = ray, start, workers, patience, tell
        self.facts: dict[str, Any] = {}
        self.num_failures = self._false_starts = 0
        self.has_ended = False
        self._begin()

    def poll(self) -> None:
        """See how the process is; replace it if it is gone.

        Raises:
            WorkerFailed: the program raised, or the process dies again and again before it begins.
        """
        if self.has_ended:
            return
        ready, _ = self._ray.wait([self._training, self._ping], num_returns=2, timeout=0)
        try:
            if self._ping in ready:
                self.facts = self._ray.get(self._ping)
                self._false_starts, self._shown_at = 0, time.monotonic()
            if self._training in ready:
                outcome = self._ray.get(self._training)
                self.has_ended = outcome == "ended"
                if outcome == "fenced":
                    self._replace("was given up and came back")
        except lost_errors(self._ray) as error:
            self._false_starts += not self.facts
            if "creation task" in str(error) or self._false_starts >= MOST_FALSE_STARTS:
                raise WorkerFailed(f"the process of replicas {self.workers} cannot start: {error}") from None
            self._replace("died")
        except HemstitchError as error:
            raise getattr(error, "cause", error) from None
        except self._ray.exceptions.RayTaskError as error:
            raise WorkerFailed(f"replicas {self.workers}: {error}") from None
        now = time.monotonic()
        if now - self._shown_at > (self._patience if self.facts else START_SECONDS):
            self._replace(f"gave no sign of life for {now - self._shown_at:.0f} s")
        elif self._ping in ready and now - self._pinged_at > PING_SECONDS:
            self._send_ping()

    def call(self, method: str, *args: Any) -> None:
        """Tell the process something; whether it hears it is not known."""
        getattr(self._handle, method).remote(*args)

    def wait_for_end(self, deadline: float) -> None:
        """Wait until its work has ended, after it was told to."""
        self._ray.wait([self._training], timeout=max(0.0, deadline - time.monotonic()))

    def kill(self) -> None:
        """End the process."""
        self._ray.kill(self._handle, no_restart=True)

    def _begin(self) -> None:
        self._handle = self._start()
        self._training = self._handle.train.remote()
        self._shown_at = time.monotonic()
        self._send_ping()

    def _send_ping(self) -> None:
        self._ping, self._pinged_at = self._handle.ping.remote(), time.monotonic()

    def _replace(self, what: str) -> None:
        self.num_failures += 1
        self._tell(f"the process of replicas {self.workers} (pid {self.facts.get('pid')}) {what}: a new one begins")
        self.facts = {}
        self.kill()
        self._begin()


class Attendant:
    """A process that others call: a decoder or the evaluation replica.

    The engine starts it anew, under the same handle, when it dies; this does when it is stopped or cut off.

    Args:
        ray: the engine.
        handle: of the process, whose method ``ping`` is answered while others run (concurrency group ``signs``).
        name: for messages.
        patience: seconds without a sign of life after which the process is started anew.
        tell: takes messages about failures.
        on_return: called when a new process has shown itself.

    Attributes:
        facts: of the latest sign of life: process id; empty while it is started.
    """

    def __init__(self, ray: Any, handle: Any, name: str, patience: float, tell: Tell,
                 on_return: Callable[[], None]) -> None:
        self._ray, self.handle, self._name, self._patience, self._tell = ray, handle, name, patience, tell
        self.facts: dict[str, Any] = {}
        self._on_return = on_return
        self._pid: int | None = None
        self._give_up_at = time.monotonic() + START_SECONDS
        self._send_ping()

    def poll(self) -> None:
        """See how the process is; start it anew if it is gone without the engine's knowing."""
        now = time.monotonic()
        ready, _ = self._ray.wait([self._ping], timeout=0)
        if ready and now - self._pinged_at > PING_SECONDS:
            try:
                self._take(self._ray.get(self._ping))
            except lost_errors(self._ray):
                self.is_lost()
            self._send_ping()
        if now > self._give_up_at:
            self._tell(f"{self._name} (pid {self._pid}) gave no sign of life: started anew")
            self._give_up_at = now + START_SECONDS
            self._ray.kill(self.handle, no_restart=False)

    def is_lost(self) -> None:
        """Take note that the engine has found it dead, and starts it anew."""
        if self.facts:
            self.facts, self._give_up_at = {}, time.monotonic() + START_SECONDS

    def _take(self, facts: dict[str, Any]) -> None:
        if self._pid not in (None, facts["pid"]):
            self._tell(f"{self._name} (pid {self._pid}) died and is back")
            self._on_return()
        self.facts, self._pid, self._give_up_at = facts, facts["pid"], time.monotonic() + self._patience

    def _send_ping(self) -> None:
        self._ping = self.handle.ping.options(concurrency_group="signs").remote()
        self._pinged_at = time.monotonic()
