"""The maps T_i of a run, and how to apply a suffix of them to parameters, newest first.

A map is what one training step does: an inner optimizer with the settings it had at that step (learning rates may
have been scheduled), on that step's batch, with that batch's random seed. Optimizer state is part of the point it acts
on: it starts as it was at the starting point and follows the order in which the maps are applied.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hemstitch.errors import MisuseError, NonFiniteError
from hemstitch.order._engines import Rates, Refused, VmapEngine
from hemstitch.order._fused import FusedEngine
from hemstitch.order._objective import Objective, Parameters, device_of, seeded

EngineName = Literal["auto", "fused", "vmap", "loop"]
_SCHEDULED = ("lr", "weight_decay", "momentum", "betas", "l2")
"""Settings that a scheduler may change and that belong to the step; other entries of a group may be optimizer state."""


class Stateful(Protocol):
    """Anything else that changes with each step, such as a natural gradient's factors."""

    def state_dict(self) -> dict: ...
    def load_state_dict(self, state: dict, /) -> Any: ...


@dataclass(frozen=True)
class Point:
    """Where a map acts: parameters, buffers, and the state of the optimizer and of other stateful parts."""

    parameters: Parameters
    buffers: Parameters = field(default_factory=dict)
    states: list[dict] = field(default_factory=list)

    def to(self, device: torch.device) -> Point:
        """The same point with parameters and buffers on ``device``."""
        moved = ({name: t.to(device) for name, t in part.items()} for part in (self.parameters, self.buffers))
        return Point(*moved, self.states)


@dataclass(frozen=True)
class Update:
    """What it takes to apply map T_i again: its batch (or what makes it), its seed, the scheduled settings."""

    item: Any
    seed: int
    settings: tuple[dict, ...]


@dataclass
class Passes:
    """Forward and backward passes over a batch spent so far."""

    forward: int = 0
    backward: int = 0

    def spend(self, forward: int, backward: int) -> None:
        """Count some more."""
        self.forward += forward
        self.backward += backward


class Maps:
    """The maps of one inner optimizer on one model.

    Args:
        model: the network; a workspace: its parameters, buffers and gradients are put back after every descent.
        objective: what a batch asks of it.
        optimizer: the inner optimizer; it is stepped with a closure.
        make_batch: makes a batch from what was observed, under the batch's seed; ``None``: items are batches.
        stateful: further parts that change in a step.
        engine: "fused", "vmap" or "loop" to insist on one, "auto" for the first of them that can serve.
        memory: bytes for stacked trajectories; ``None``: half of the free memory of a GPU; on a CPU what fits a cache.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        optimizer: Optimizer,
        *,
        make_batch: Callable[[Any], Any] | None = None,
        stateful: Sequence[Stateful] = (),
        engine: EngineName = "auto",
        memory: int | None = None,
    ):
        if engine not in ("auto", "fused", "vmap", "loop"):
            raise MisuseError(f"order: engine must be 'auto', 'fused', 'vmap' or 'loop', got {engine!r}")
        if memory is not None and memory <= 0:
            raise MisuseError(f"order: memory must be a positive number of bytes, got {memory}")
        self.model, self.objective, self.optimizer = model, objective, optimizer
        self.passes = Passes()
        self.engine_note = "none yet"
        self._make_batch, self._engine, self._memory = make_batch, engine, memory
        self._parts = (optimizer, *stateful)
        self._names = {id(p): name for name, p in model.named_parameters()}
        self._settings: tuple[dict, ...] = ()
        self.modes: dict[str, bool] = {}  # of training, by module
        self._rates: tuple[tuple[dict, ...] | None, Rates] = (None, {})
        self._device = device_of(model)

    def update(self, item: Any, seed: int) -> Update:
        """The map of ``item`` under the optimizer's settings of now; the model is in the mode for training."""
        settings = self._settings_of_now()
        if settings != self._settings:
            self._settings = settings
        self.modes = modes_of(self.model)
        return Update(item, seed, self._settings)

    def batch(self, update: Update) -> Any:
        """The batch of a map, made again under its seed if it was not stored."""
        if self._make_batch is None:
            return update.item
        with seeded(update.seed, self._device):
            return self._make_batch(update.item)

    def snapshot(self) -> Point:
        """A copy of where the model is."""
        return Point(
            {name: p.detach().clone() for name, p in self.model.named_parameters()},
            {name: b.clone() for name, b in self.model.named_buffers()},
            [copy.deepcopy(part.state_dict()) for part in self._parts],
        )

    def restore(self, point: Point, *, states: bool = True) -> None:
        """Put the model, and with ``states`` the optimizer, at ``point``; scheduled settings stay those of now."""
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                p.copy_(point.parameters[name])
            for name, b in self.model.named_buffers():
                b.copy_(point.buffers[name])
        if states:
            settings = self._settings_of_now()
            for part, state in zip(self._parts, point.states, strict=True):
                part.load_state_dict(copy.deepcopy(state))
            self._set(settings)

    def _settings_of_now(self) -> tuple[dict, ...]:
        groups = self.optimizer.param_groups
        return tuple({key: copy.copy(group[key]) for key in _SCHEDULED if key in group} for group in groups)

    def _set(self, settings: tuple[dict, ...]) -> None:
        for group, values in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(values)

    def apply(self, update: Update, *, guarded: bool = False) -> Tensor:
        """Move the model by one map: one optimizer step. Returns its loss before the step.

        ``guarded`` refuses a loss or gradient that is not finite before it reaches the parameters; descents need no
        such check at each map, their end point is checked.
        """
        self._set(update.settings)
        batch = self.batch(update)

        def closure() -> Tensor:
            self.optimizer.zero_grad(set_to_none=True)
            with torch.enable_grad(), seeded(update.seed, self._device):
                loss = self.objective(self.model, batch)
            loss.backward()
            self.passes.spend(1, 1)
            if guarded:
                self._check_gradient(loss)
            return loss

        return self.optimizer.step(closure)

    def _check_gradient(self, loss: Tensor) -> None:
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        if not torch.isfinite(sum(g.abs().sum(dtype=torch.float64) for g in gradients) + loss.detach()):
            raise NonFiniteError(f"order: a map has loss {loss.item()} or a gradient that is not finite; it was not "
                                 "applied. Lower the learning rate, or clip in the inner optimizer")

    @contextmanager
    def workspace(self) -> Iterator[None]:
        """Use the model freely inside; everything is put back on leaving."""
        here, settings = self.snapshot(), self._settings_of_now()
        gradients = [(p, p.grad) for p in self.model.parameters()]
        try:
            yield
        finally:
            self.restore(here)
            self._set(settings)
            for p, gradient in gradients:
                p.grad = gradient

    @contextmanager
    def _training(self) -> Iterator[None]:
        """The train or eval mode of each module as it was when the last batch was observed."""
        modes = modes_of(self.model)
        try:
            set_modes(self.model, self.modes)
            yield
        finally:
            set_modes(self.model, modes)

    def descend(
        self, updates: Sequence[Update], trajectories: Sequence[tuple[Point, int]]
    ) -> Iterator[tuple[int, Point]]:
        """Apply updates[count - 1], ..., updates[0] to each starting point.

        Args:
            updates: the maps, oldest first.
            trajectories: (start, count) pairs.

        Yields:
            (index into ``trajectories``, end point), in an order that suits the engine.

        Raises:
            NonFiniteError: an end point is not finite.
        """
        engine = self._choose(updates, trajectories)
        ends = self._descend_loop(updates, trajectories) if engine is None else (
            self._descend_stacked(engine, updates, trajectories))
        for index, end in ends:
            if not torch.stack([torch.isfinite(p).all() for p in end.parameters.values()]).all():
                raise NonFiniteError(f"order: the iterate over {trajectories[index][1]} batches is not finite: the "
                                     "maps diverge in this order. Lower the learning rate or shorten the window")
            yield index, end

    def _descend_loop(self, updates, trajectories) -> Iterator[tuple[int, Point]]:
        with self.workspace():
            for index, (start, count) in enumerate(trajectories):
                self.restore(start)
                with self._training():
                    for update in reversed(updates[:count]):
                        self.apply(update)
                yield index, self.snapshot()

    def _descend_stacked(self, engine, updates, trajectories) -> Iterator[tuple[int, Point]]:
        longest_first = sorted(range(len(trajectories)), key=lambda i: -trajectories[i][1])
        size = self._chunk_size(engine, trajectories[0][0])
        for begin in range(0, len(longest_first), size):
            chunk = longest_first[begin : begin + size]
            counts = [trajectories[i][1] for i in chunk]
            stack = engine.stack([trajectories[i][0].parameters for i in chunk])
            with self._training():
                self._move(engine, stack, updates, counts)
            for row, index in enumerate(chunk):
                start = trajectories[index][0]
                yield index, replace(start, parameters=start.parameters | engine.unstack(stack, row))

    def _move(self, engine, stack: Parameters, updates: Sequence[Update], counts: list[int]) -> None:
        """Apply updates[counts[k] - 1], ..., updates[0] to row k; counts descend, so the rows in use are a prefix."""
        num_active, active = 0, stack
        for step in range(counts[0], 0, -1):
            if num_active < len(counts) and counts[num_active] >= step:
                num_active = sum(count >= step for count in counts)
                active = {name: value[:num_active] for name, value in stack.items()}
            update = updates[step - 1]
            engine.step(active, self.batch(update), self._rates_of(update), update.seed)
        self.passes.spend(sum(counts), sum(counts))

    def _chunk_size(self, engine, start: Point) -> int:
        one = engine.bytes_per_trajectory(engine.stack([start.parameters]))
        if self._memory is not None:
            return max(1, self._memory // one)
        if self._device.type == "cuda":
            return max(1, torch.cuda.mem_get_info(self._device)[0] // 2 // one)
        return max(2, engine.cpu_budget // one)

    def _rates_of(self, update: Update) -> Rates:
        settings, rates = self._rates
        if settings is not update.settings:
            rates = {
                self._names[id(p)]: (float(values["lr"]), float(values["weight_decay"]))
                for group, values in zip(self.optimizer.param_groups, update.settings)
                for p in group["params"] if p.requires_grad
            }
            self._rates = update.settings, rates
        return rates

    def _choose(self, updates: Sequence[Update], trajectories: Sequence) -> FusedEngine | VmapEngine | None:
        """The first engine that can serve; ``None``: the loop."""
        if not any(count for _, count in trajectories):
            return None  # nothing to apply
        reasons = []
        for engine in (FusedEngine, VmapEngine):
            if self._engine in ("auto", engine.name):
                try:
                    chosen = self._build(engine, updates, len(trajectories))
                except Refused as refused:
                    reasons.append(f"not {engine.name}: {refused}")
                else:
                    self.engine_note = "; ".join([engine.name, *reasons])
                    return chosen
        if self._engine in ("fused", "vmap"):
            raise MisuseError(f"order: engine={self._engine!r} cannot serve here: {'; '.join(reasons)}. "
                              "Leave engine='auto', which falls back to a loop with the same results")
        self.engine_note = "; ".join(["loop", *reasons])
        return None

    def _build(self, engine, updates: Sequence[Update], num_trajectories: int) -> FusedEngine | VmapEngine:
        self._check_stackable(updates)
        if self._engine == "auto" and engine is VmapEngine and (num_trajectories == 1 or not engine.pays(self.model)):
            raise Refused("the loop is faster for one trajectory, and for large models on a CPU")
        batch = self.batch(updates[0])
        with self._training():
            chosen = engine(self.model, self.objective, batch)
            stack = chosen.stack([{name: p.detach() for name, p in self.model.named_parameters()}] * 2)
            try:
                chosen.step(stack, batch, {}, seed=0)
            except Exception as error:  # whatever a model or loss raises; if it is a mistake, the loop raises it too
                raise Refused(f"torch.func.vmap cannot take it: {str(error).splitlines()[0]}") from error
        return chosen

    def _check_stackable(self, updates: Sequence[Update]) -> None:
        """Refuse maps that must follow each trajectory on its own."""
        if len(self._parts) > 1:
            raise Refused("a stateful part follows each trajectory on its own")
        if type(self.optimizer) is not torch.optim.SGD:
            raise Refused(f"{type(self.optimizer).__name__} is not plain gradient descent")
        if any(group["momentum"] for update in updates for group in update.settings):
            raise Refused("momentum is state that follows each trajectory on its own")
        if any(group["maximize"] for group in self.optimizer.param_groups):
            raise Refused("the optimizer maximizes")
        hooks = [p for p in self.model.parameters() if p._backward_hooks or p._post_accumulate_grad_hooks]
        if hooks or self.optimizer._optimizer_step_pre_hooks or self.optimizer._optimizer_step_post_hooks:
            raise Refused("hooks on parameters or on the optimizer's step")


def modes_of(model: nn.Module) -> dict[str, bool]:
    """Which modules are in training mode."""
    return {name: module.training for name, module in model.named_modules()}


def set_modes(model: nn.Module, modes: dict[str, bool]) -> None:
    """Put each module into its own train or eval mode."""
    for name, module in model.named_modules():
        module.training = modes.get(name, module.training)
