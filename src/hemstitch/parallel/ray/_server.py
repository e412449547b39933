"""The supervisor's view of the server: starts its shards, tells them what to do, and collects what they have done."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from hemstitch.errors import RunError
from hemstitch.parallel._bounded_step import StepRule
from hemstitch.parallel._server_shards import shard_cuts, shard_rule
from hemstitch.parallel._staleness import StalenessHistogram
from hemstitch.parallel.ray._link import RETRY_SECONDS, fetch_all, lost_errors
from hemstitch.parallel.ray._shard import ServerShard, first_snapshot, make_snapshot, write_snapshot

START_SECONDS = 120.0       # until a process must have shown itself: it imports torch, on a busy machine
Tell = Callable[[str], None]


class RemoteServer:
    """The shards, each an actor that the engine restarts.

    Args:
        ray: the engine.
        shard_class: `ServerShard`.
        folder: for snapshots and ledgers.
        parameters, rule, num_shards: see `hemstitch.parallel._server_shards.ServerShards`.
        snapshot_every: see `ServerShard`.
        first_batch: number of the first batch.
        patience: seconds without an answer after which a shard is restarted.
        tell: takes messages about failures.

    Attributes:
        shards, names: their handles, and the names by which other processes find them.
        cuts: their slices of the parameters.
        status: the latest known of each.
        inner, outer: ages, over all shards; of decoders' parameters.
    """

    def __init__(self, ray: Any, shard_class: type[ServerShard], folder: Path, parameters: Tensor, rule: StepRule,
                 num_shards: int, snapshot_every: int, first_batch: int, patience: float, tell: Tell) -> None:
        self._ray, self._patience, self._tell = ray, patience, tell
        self.cuts = tuple(shard_cuts(parameters.numel(), num_shards, rule))
        for old in folder.glob("shard-*"):
            old.unlink()
        for number, cut in enumerate(self.cuts):
            state = make_snapshot(parameters[cut].detach().clone(), shard_rule(rule, cut), first_batch)
            write_snapshot(first_snapshot(folder, number), state)
        actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=0)(shard_class)
        session = secrets.token_hex(8)
        self.names = [f"hemstitch-{session}-shard-{number}" for number in range(num_shards)]
        self.shards = [actor.options(name=name).remote(str(folder), number, snapshot_every)
                       for number, name in enumerate(self.names)]
        self._rule, self._limit = rule, first_batch
        self.inner, self.outer = StalenessHistogram(), StalenessHistogram()
        self._taken = [0] * num_shards                      # ages already collected
        self._asked: dict[Any, int] = {}
        self._replied_at = [time.monotonic()] * num_shards
        self._give_up_at = [time.monotonic() + START_SECONDS] * num_shards
        self._is_lost = [False] * num_shards                # the engine has told so, and starts it anew
        self.status: list[dict[str, Any]] = [self._call(number, "status") for number in range(num_shards)]

    @property
    def parameters(self) -> Tensor:
        """(parameter,) the current ones: a copy."""
        return fetch_all(self._ray, self.shards).parameters

    @property
    def rule(self) -> StepRule:
        """The rule, in terms of all parameters."""
        return self._rule

    @rule.setter
    def rule(self, rule: StepRule) -> None:
        self._rule = rule
        for number, cut in enumerate(self.cuts):
            self._call(number, "set_rule", shard_rule(rule, cut))

    def allow(self, limit: int) -> None:
        """Hand out the batches below this number; takes effect before it returns."""
        if limit != self._limit:
            self._call(0, "allow", limit)
            self._limit = limit

    def reset(self, parameters: Tensor) -> None:
        """Go on from other parameters; let nobody be under way."""
        for number, cut in enumerate(self.cuts):
            self._call(number, "reset", parameters[cut].numpy())

    def poll(self, timeout: float) -> None:
        """Ask every shard how it stands, and take the answers that come within ``timeout``."""
        waited_for = set(self._asked.values())
        for number in set(range(len(self.shards))) - waited_for:
            self._asked[self._ask(number)] = number
            self._give_up_at[number] = max(self._give_up_at[number], time.monotonic() + self._patience)
        ready, _ = self._ray.wait(list(self._asked), num_returns=len(self._asked), timeout=timeout)
        for future in ready:
            number = self._asked.pop(future)
            try:
                self._take(number, self._ray.get(future))
                self._replied_at[number] = time.monotonic()
                self._give_up_at[number], self._is_lost[number] = time.monotonic() + self._patience, False
            except lost_errors(self._ray):
                if not self._is_lost[number]:
                    self._give_up_at[number], self._is_lost[number] = time.monotonic() + START_SECONDS, True
                time.sleep(RETRY_SECONDS)
        for number, moment in enumerate(self._give_up_at):
            if time.monotonic() > moment:
                self._tell(f"shard {number} gave no sign of life: started anew")
                self._give_up_at[number] = time.monotonic() + START_SECONDS
                self._ray.kill(self.shards[number], no_restart=False)

    def refresh(self) -> None:
        """Ask, and wait for every answer; gives up on a shard that stays away."""
        self._asked.clear()
        before = list(self._replied_at)
        deadline = time.monotonic() + self._patience + START_SECONDS
        while any(new <= old for new, old in zip(self._replied_at, before)) and time.monotonic() < deadline:
            self.poll(timeout=1.0)

    def _ask(self, number: int) -> Any:
        outer = len(self.outer) if number == 0 else 0
        return self.shards[number].status.remote(self._taken[number], outer)

    def _take(self, number: int, status: dict[str, Any]) -> None:
        updates, seconds = status.pop("ages")
        self.inner.add(updates, seconds)
        self._taken[number] += len(updates)
        if number == 0:
            self.outer.add(*status.pop("outer"))
        if status["starts"] > self.status[number]["starts"]:
            lost = status["lost"] - self.status[number]["lost"]
            self._tell(f"shard {number} died and is back, {lost} of its updates are undone")
            self._call(number, "set_rule", shard_rule(self._rule, self.cuts[number]))
        self.status[number] = status

    def _call(self, number: int, method: str, *args: Any) -> Any:
        """The result of a call, repeated until there is one.

        Raises:
            RunError: there is none for minutes, or the shard raises when it starts.
        """
        deadline = time.monotonic() + self._patience + START_SECONDS
        while True:
            try:
                return self._ray.get(getattr(self.shards[number], method).remote(*args), timeout=START_SECONDS)
            except (*lost_errors(self._ray), self._ray.exceptions.GetTimeoutError) as error:
                if "creation task" in str(error):
                    raise RunError(f"shard {number} of the parameter server cannot start: {error}") from None
                if time.monotonic() > deadline:
                    raise RunError(
                        f"shard {number} of the parameter server has not answered for "
                        f"{self._patience + START_SECONDS:g} s ({type(error).__name__}). Is this machine, or the "
                        "cluster, too busy to start processes, or out of memory? Try fewer processes "
                        "(parallel.processes) and shards, or a longer parallel.patience."
                    ) from None
                time.sleep(RETRY_SECONDS)
