"""What a batch asks of a model: a scalar loss, with the randomness of its batch.

A map T_i must be the *same* map each time it is applied, so whatever is random in it (dropout, augmentation) is drawn
from a seed that belongs to the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hemstitch.errors import MisuseError

Parameters = dict[str, Tensor]
Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Objective:
    """A scalar loss of a model on a batch of any shape: ``function(model, batch)``.

    Pass one wherever this package asks for a ``loss`` when batches are not ``(inputs, targets)`` pairs, for example
    padded utterances with lengths and graphs. ``function`` must reach the parameters through the ``model`` it is given.

    Attributes:
        function: ``function(model, batch)`` -> scalar tensor, to be minimised.
        loss: the ``loss(outputs, targets)`` that it was made from, if it was; hand-written engines need it.
    """

    function: Callable[[nn.Module, Any], Tensor]
    loss: Loss | None = None

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """The loss of ``model`` on ``batch``."""
        return self.function(model, batch)

    @classmethod
    def of(cls, loss: Loss | Objective) -> Objective:
        """An objective as it is, or ``loss(model(inputs), targets)`` for batches ``(inputs, targets)``."""
        if isinstance(loss, cls):
            return loss

        def supervised(model: nn.Module, batch: Any) -> Tensor:
            if not isinstance(batch, Sequence) or len(batch) != 2:
                raise MisuseError(
                    f"order: loss(outputs, targets) needs batches (inputs, targets), got {type(batch).__name__}; "
                    "for other batches pass hemstitch.order.Objective(lambda model, batch: ...) as the loss"
                )
            return loss(model(batch[0]), batch[1])

        return cls(supervised, loss)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that need a gradient, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def device_of(model: nn.Module) -> torch.device:
    """Where the first parameter lives."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw from ``seed`` inside, on the CPU and on ``device``; the outer random streams go on as if nothing was."""
    is_cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if is_cuda else []):
        torch.default_generator.manual_seed(seed)
        if is_cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


@contextmanager
def kept_buffers(model: nn.Module) -> Iterator[None]:
    """Put the buffers (running statistics) back as they were on leaving."""
    saved = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(saved[name])
