"""The processes of `SimulatedClock` in real time: what waits for seconds really waits, and events come from futures.

So the replicas and decoders of the simulation run as they are, many of them in one thread: while one waits for the
server, another computes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator
from typing import Any

from hemstitch.parallel._clock import Event, SimulatedClock

IDLE_SECONDS = 0.05         # longest wait before looking whether to stop


class RealClock(SimulatedClock):
    """Real time and Ray's futures.

    Args:
        wait: ``ray.wait``.

    Attributes:
        now: seconds since 1970; the same on all machines whose clocks are set.
    """

    def __init__(self, wait: Callable[..., tuple[list[Any], list[Any]]]) -> None:
        super().__init__()
        self._wait = wait
        self._awaited: dict[Any, Event] = {}

    @property
    def now(self) -> float:
        """The time."""
        return time.time()

    @now.setter
    def now(self, moment: float) -> None:
        """Time passes by itself."""

    def done(self, future: Any) -> Event:
        """The event that a future has a result or an error."""
        return self._awaited.setdefault(future, self.event())

    def result_of(self, future: Any, get: Callable[[Any], Any]) -> Generator[Event, Any, Any]:
        """Wait for a future within a process; its result."""
        yield self.done(future)
        return get(future)

    def run(self, until: float = math.inf, stop: Callable[[], bool] | None = None) -> None:
        """Let the processes run until ``until`` or ``stop()``, or until nothing is awaited any more."""
        while self.now <= until and not (stop is not None and stop()):
            if self._due and self._due[0][0] <= self.now:
                self._run_next()
            elif self._awaited:
                self._collect(self._idle_seconds())
            elif self._due:
                time.sleep(self._idle_seconds())
            else:
                return

    def _idle_seconds(self) -> float:
        return min(IDLE_SECONDS, max(0.0, self._due[0][0] - self.now)) if self._due else IDLE_SECONDS

    def _collect(self, timeout: float) -> None:
        ready, _ = self._wait(list(self._awaited), num_returns=1, timeout=timeout)
        for future in ready:
            self._awaited.pop(future).happen()
