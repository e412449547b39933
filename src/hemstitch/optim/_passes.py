"""The one or two passes of a minibatch: how far each moves, and what makes two passes the same.

Both passes of a pair draw the same random numbers; running statistics and the Fisher estimate learn in one only. A
pair is all or nothing: if its second pass fails, the first is taken back, from a copy of the parameters.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim import Optimizer

from hemstitch.optim._moves import Mover, Scratch
from hemstitch.optim._update_rule import gradients


class Freezable(Protocol):
    """What is asked of a natural gradient."""

    frozen: bool

    def freeze(self, on: bool = True) -> None:
        """Stop or resume learning."""


class RandomState:
    """The state of torch's (CPU and given devices), Python's and NumPy's global random numbers.

    Args:
        devices: of the parameters; CUDA ones have generators of their own.
    """

    def __init__(self, devices: set[torch.device]) -> None:
        self.python, self.numpy, self.cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
        self.cuda = {device: torch.cuda.get_rng_state(device) for device in devices if device.type == "cuda"}

    def restore(self) -> None:
        """Draw the same numbers again from here."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        for device, state in self.cuda.items():
            torch.cuda.set_rng_state(state, device)


@contextmanager
def kept_statistics(model: nn.Module | None) -> Iterator[None]:
    """Leave no trace in the buffers (running statistics) of layers that run in training mode within.

    Args:
        model: whose buffers to keep; ``None``: those of every module that runs, found by a global hook, which
            compiled models do not call.
    """
    kept: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(module: nn.Module, _: Any = None) -> None:
        for buffer in module._buffers.values():
            if module.training and buffer is not None and id(buffer) not in kept:
                kept[id(buffer)] = (buffer, buffer.clone())

    handle = None
    if model is None:
        handle = register_module_forward_pre_hook(keep)
    else:
        for module in model.modules():
            keep(module)
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()
        with torch.no_grad():
            for buffer, before in kept.values():
                buffer.copy_(before)


@contextmanager
def frozen(natural_gradient: Freezable | None) -> Iterator[None]:
    """The Fisher estimates do not learn within."""
    if natural_gradient is None:
        yield
        return
    before = natural_gradient.frozen
    natural_gradient.freeze(True)
    try:
        yield
    finally:
        natural_gradient.freeze(before)


class Passes:
    """The passes of one minibatch, entered before the forward pass and applied after the backward pass.

    Args:
        optimizer: holds the parameters.
        mover: moves them.
        scale: alpha of a pair; ``None`` for an ordinary step.
        reverse: the positive move of the pair first.
        natural_gradient: frozen in the first pass.
        model: see `kept_statistics`.
        scratch: memory for the copy of the parameters.

    Attributes:
        names: ``ordinary``, or ``first`` and ``second``.
        num_entered, num_moved: passes begun, and passes that moved the parameters.
        is_stepped: whether `apply` was called in this pass.
        is_refused: whether a gradient was not finite.
    """

    def __init__(
        self, optimizer: Optimizer, mover: Mover, scale: float | None, reverse: bool,
        natural_gradient: Freezable | None, model: nn.Module | None, scratch: Scratch,
    ) -> None:
        self.scratch = scratch
        self.optimizer, self.mover, self.natural_gradient, self.model = optimizer, mover, natural_gradient, model
        self.names, self.moves = ("ordinary",), [(1.0, 1.0)]
        if scale is not None:
            self.names = ("first", "second")
            self.moves = [(-scale, 0.0), (1.0 + scale, 1.0 / (1.0 + scale))]  # multiple of the step, share of the decay
            if reverse:
                self.moves.reverse()
        self.num_entered = self.num_moved = 0
        self.is_stepped = self.is_refused = False
        self._contexts = ExitStack()
        self._origin: tuple[list[Tensor], list[Tensor]] = ([], [])
        self._random: RandomState | None = None

    @property
    def name(self) -> str:
        """Of the pass under way."""
        return self.names[max(0, self.num_entered - 1)]

    @property
    def is_complete(self) -> bool:
        """Whether all passes moved the parameters."""
        return self.num_moved == len(self.names)

    @property
    def is_over(self) -> bool:
        """Whether no pass is left."""
        return self.num_entered >= len(self.names)

    def enter(self) -> str:
        """Prepare the next forward pass; returns its name."""
        self._contexts.close()
        self.num_entered += 1
        self.is_stepped = False
        if self.name == "first":
            self._random = RandomState({p.device for group in self.optimizer.param_groups for p in group["params"]})
            self._contexts.enter_context(frozen(self.natural_gradient))
            self._contexts.enter_context(kept_statistics(self.model))
        elif self.name == "second":
            self._random.restore()
        return self.name

    def apply(self, is_finite: bool = True) -> None:
        """Move by the gradients of this pass, or take all back."""
        self.is_stepped = True
        self._contexts.close()
        if self.name == "first":
            parameters, _ = gradients(self.optimizer)
            self._origin = (parameters, self.scratch.copy(dict(zip(parameters, parameters, strict=True))))
        scale, decay = self.moves[self.num_entered - 1]
        if is_finite and self.mover.move(scale, decay=decay, commit=self.name != "first"):
            self.num_moved += 1
        else:
            self.is_refused = True
            self.undo()

    @torch.no_grad()
    def undo(self) -> None:
        """Back to the parameters before the minibatch, if it is not complete."""
        self._contexts.close()
        if self.num_moved and not self.is_complete:
            torch._foreach_copy_(*self._origin)
            self.num_moved = 0
