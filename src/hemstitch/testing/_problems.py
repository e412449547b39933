"""Small training problems for tests and benchmarks: a model, a loss and a fixed list of batches.

Each is built from its seed alone, so that it is the same in every process, and leaves the global random numbers alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Problem:
    """A model to train on a few fixed batches.

    Attributes:
        model: the network.
        loss: (outputs, targets) -> scalar.
        batches: (inputs, targets) pairs; indexes wrap around.
    """

    model: nn.Module
    loss: Loss
    batches: list[tuple[Tensor, Tensor]]

    def evaluate(self, index: int = 0) -> Tensor:
        """Loss of one batch, with its graph."""
        inputs, targets = self.batches[index % len(self.batches)]
        return self.loss(self.model(inputs), targets)

    def closure(self, optimizer: torch.optim.Optimizer, index: int = 0) -> Callable[[], Tensor]:
        """What ``optimizer.step`` takes: clear the gradients, forward, backward, return the loss."""

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = self.evaluate(index)
            loss.backward()
            return loss

        return closure

    def total(self) -> float:
        """Mean loss over all batches, without changing the model."""
        with torch.no_grad():
            return sum(float(self.evaluate(index)) for index in range(len(self.batches))) / len(self.batches)


class _Point(nn.Module):
    """A parameter vector; the "network" is the vector itself."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(start)

    def forward(self, inputs: Tensor) -> Tensor:
        """Theta for each row of the batch."""
        return self.theta.expand_as(inputs)


def quadratic(
    dim: int = 4, condition: float = 10.0, noise: float = 0.0, *, num_batches: int = 4,
    dtype: torch.dtype = torch.float64, seed: int = 0,
) -> Problem:
    """The convex bowl f(theta; x) = 1/2 (theta - x)' H (theta - x), averaged over the rows x of a batch.

    Args:
        dim: number of parameters.
        condition: ratio of the largest to the smallest eigenvalue of H (diagonal, geometric, largest 1).
        noise: standard deviation of the rows x around zero, the optimum.
        num_batches: batches of 8 rows.
        dtype: of parameters and data.
        seed: of the start and the rows.
    """
    curvature = torch.logspace(0, 1, dim, base=1.0 / condition, dtype=dtype)
    with _seeded(seed):
        start = torch.randn(dim, dtype=dtype)
        rows = noise * torch.randn(num_batches, 8, dim, dtype=dtype)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return 0.5 * ((outputs - targets).square() * curvature).sum(-1).mean()

    return Problem(_Point(start), loss, [(batch, batch) for batch in rows])


def tiny_mlp(
    *, num_inputs: int = 5, width: int = 7, num_classes: int = 3, batch: int = 16, num_batches: int = 4,
    reduction: str = "mean", dtype: torch.dtype = torch.float32, seed: int = 0,
) -> Problem:
    """Classification by two tanh layers and cross-entropy; about a hundred parameters.

    Args:
        num_inputs, width, num_classes: layer sizes.
        batch: rows per batch.
        num_batches: how many batches.
        reduction: of the cross-entropy, ``mean`` or ``sum`` over the rows.
        dtype: of parameters and inputs.
        seed: of parameters and data.
    """
    with _seeded(seed):
        model = nn.Sequential(
            nn.Linear(num_inputs, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, num_classes))
        inputs = torch.randn(num_batches, batch, num_inputs)
        targets = (inputs @ torch.randn(num_inputs, num_classes)).argmax(-1)
    loss = nn.CrossEntropyLoss(reduction=reduction)
    return Problem(model.to(dtype), loss, list(zip(inputs.to(dtype), targets, strict=True)))


def tiny_convnet(
    *, channels: int = 4, dropout: float = 0.0, batch: int = 8, num_batches: int = 4,
    dtype: torch.dtype = torch.float32, seed: int = 0,
) -> Problem:
    """Classification of 6 x 6 images by a convolution, batch normalisation, ReLU, dropout and a linear layer.

    Args:
        channels: of the convolution.
        dropout: probability of dropping a unit.
        batch: images per batch.
        num_batches: how many batches.
        dtype: of parameters and inputs.
        seed: of parameters and data.
    """
    with _seeded(seed):
        model = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(), nn.Dropout(dropout),
            nn.Flatten(), nn.Linear(36 * channels, 3))
        images = torch.randn(num_batches, batch, 1, 6, 6)
        targets = images[..., :3].sum((2, 3, 4)).sign().long() + 1
    return Problem(model.to(dtype), nn.CrossEntropyLoss(), list(zip(images.to(dtype), targets, strict=True)))


_ONE_AT_A_TIME = threading.Lock()
"""Threads share torch's global generator: two that make the same problem at once would get different ones."""


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Random numbers from ``seed`` within, the global ones as before afterwards."""
    with _ONE_AT_A_TIME, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
