"""The parameter server as a state machine: what is done with a message, not how it travels.

A worker registers, fetches the parameters with their version, and pushes a gradient with the version from which it was
computed. What a network and dying processes do to messages is met by three numbers in each push:

- ``seq`` counts a worker's pushes. One that was answered is not applied again: a worker that got no reply may send it
  again, and the gradient is applied at most once.
- ``incarnation`` counts a worker's lives. Registering anew fences the former life: what a worker that was stopped or
  cut off sends when it comes back is refused.
- ``version`` tells how many updates have been made since, the staleness.

A gradient that is not finite is refused. The same class serves the simulated clock and a server process: it knows no
clock and no transport. All of it is in ``state_dict``, the numbers that guard against repetition included.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from hemstitch.errors import MisuseError
from hemstitch.parallel._bounded_step import Bound, StepRule, apply_step

PushStatus = Literal["accepted", "duplicate", "stale_incarnation", "nonfinite"]
STATE_VERSION = 1


@dataclass(frozen=True)
class PushReply:
    """The server's answer.

    Attributes:
        status: ``accepted``: applied; ``duplicate``: answered before, nothing done; ``stale_incarnation``: the worker
            has a newer life; ``nonfinite``: the gradient holds NaN or inf.
        version: of the parameters now.
        staleness: updates between the fetch and this one; 0 unless accepted.
    """

    status: PushStatus
    version: int
    staleness: int = 0


class ParameterServer:
    """The current parameters, or one shard of them, and the rule by which they move.

    Args:
        parameters: flat; copied.
        rule: learning rate and bounds; assign a new one at any time.

    Attributes:
        version: updates so far.
        parameters: flat, the current ones; replaced rather than changed as long as someone may read them.
        counts: how often each `PushStatus` was answered.

    Cost of a push: two passes over the gradient, one over the parameters; new memory if they were fetched meanwhile.

    Reference: Heigold et al., ICASSP 2014, section 3; Dean et al., "Large scale distributed deep networks", NIPS 2012.
    """

    def __init__(self, parameters: Tensor, rule: StepRule) -> None:
        self.parameters, self.rule = parameters.detach().clone(), rule
        self.version = 0
        self.counts: Counter[str] = Counter()
        self._lives: dict[int, tuple[int, int]] = {}        # worker -> (incarnation, last answered seq)
        self._is_read = False

    def register(self, worker: int) -> int:
        """Begin a new life of ``worker``; returns its incarnation. Its pushes start again from any ``seq`` >= 0."""
        incarnation = self._lives.get(worker, (0, -1))[0] + 1
        self._lives[worker] = (incarnation, -1)
        return incarnation

    def incarnation(self, worker: int) -> int:
        """The latest life of ``worker``; 0 if it never registered."""
        return self._lives.get(worker, (0, -1))[0]

    def fetch(self, *, is_kept: bool = True) -> tuple[int, Tensor]:
        """Version and parameters. The tensor is a snapshot: later updates leave it as it is; do not write to it.

        Args:
            is_kept: ``False`` if it will have been copied before the next push: then no update needs new memory.
        """
        self._is_read |= is_kept
        return self.version, self.parameters

    @torch.no_grad()
    def push(self, worker: int, seq: int, incarnation: int, version: int, gradient: Tensor,
             norm: float | None = None, *, may_overwrite: bool = False) -> PushReply:
        """Apply a gradient, or say why not.

        Args:
            worker: who sends.
            seq: number of this push, growing within an incarnation.
            incarnation: as `register` gave it.
            version: of the parameters from which the gradient was computed.
            gradient: flat, like the parameters.
            norm: of the whole gradient, if this server is one shard: all shards then refuse and shorten alike.
            may_overwrite: whether the gradient's memory may become that of the parameters.

        Raises:
            MisuseError: the worker never registered, the version is not yet, or the gradient has another size.
        """
        current, answered = self._lives.get(worker, (0, -1))
        if not 1 <= incarnation <= current or not 0 <= version <= self.version:
            raise MisuseError(f"push of worker {worker}, incarnation {incarnation}, from version {version}: the latest "
                              f"incarnation is {current} and the latest version {self.version}; call register() and "
                              "fetch() first")
        if gradient.shape != self.parameters.shape:
            raise MisuseError(f"the gradient has shape {tuple(gradient.shape)}, the parameters "
                              f"{tuple(self.parameters.shape)}")
        if incarnation < current:
            return self._reply("stale_incarnation")
        if seq <= answered:
            return self._reply("duplicate")
        self._lives[worker] = (incarnation, seq)
        factors = self.rule.factors(gradient, norm)
        if factors is None:
            return self._reply("nonfinite")
        out = self.parameters if not self._is_read else gradient if may_overwrite else torch.empty_like(gradient)
        self.parameters = apply_step(self.parameters, gradient, factors, out)
        self._is_read = False
        self.version += 1
        return self._reply("accepted", staleness=self.version - 1 - version)

    def _reply(self, status: PushStatus, staleness: int = 0) -> PushReply:
        self.counts[status] += 1
        return PushReply(status, self.version, staleness)

    def state_dict(self) -> dict[str, Any]:
        """Everything, for a snapshot: no push that was answered before it is applied again after it."""
        return {"format": STATE_VERSION, "parameters": self.parameters.clone(), "version": self.version,
                "lives": dict(self._lives), "counts": dict(self.counts), "rule": asdict(self.rule)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a snapshot."""
        if state["format"] > STATE_VERSION:
            raise MisuseError(f"this state has format {state['format']}, this version reads up to {STATE_VERSION}: "
                              "upgrade hemstitch")
        if state["parameters"].shape != self.parameters.shape:
            raise MisuseError(f"the state has {state['parameters'].numel()} parameters, this server "
                              f"{self.parameters.numel()}")
        self.parameters, self._is_read = state["parameters"].to(self.parameters, copy=True), False
        self.version, self.counts = state["version"], Counter(state["counts"])
        self._lives = {int(worker): tuple(life) for worker, life in state["lives"].items()}
        components = tuple(Bound(**bound) for bound in state["rule"]["components"])
        self.rule = StepRule(**{**state["rule"], "components": components})
