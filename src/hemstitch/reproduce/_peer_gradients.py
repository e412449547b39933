"""Methods of other libraries in a run of ours: an optimizer of theirs, or the gradient preconditioned by their K-FAC.

Optional, and asked for only when a comparison runs: ``pytorch_optimizer`` (SOAP, Shampoo) and
``curvlinops-for-pytorch`` (Kronecker factors).
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from hemstitch.train._build import Run
from hemstitch.train._strategies import Batch, Gradient, SinglePass


def library(name: str) -> Any:
    """The module of this name; ``None`` if it is not installed, or built for another torch."""
    try:
        return import_module(name)
    except Exception:  # compiled parts that do not fit fail in many ways
        return None


def with_optimizer(run: Run, make: Callable[[Any], torch.optim.Optimizer]) -> Run:
    """The run with an optimizer that recipes do not know."""
    optimizer = make(run.model.parameters())
    return dataclasses.replace(run, optimizer=optimizer, strategy=SinglePass(run.strategy.gradient, optimizer))


def with_kfac(run: Run, damping: float) -> Run:
    """The run with its gradients multiplied by the inverse of K-FAC's Fisher matrix; the update as in the recipe."""
    gradient = KroneckerFactored(run.strategy.gradient, damping)
    return dataclasses.replace(run, strategy=SinglePass(gradient, run.optimizer))


class KroneckerFactored:
    """The gradient of a batch times the inverse of the Kronecker-factored Fisher matrix (Martens and Grosse 2015).

    The factors are those of the last ``period`` batches, with labels drawn from the network, computed afresh every
    ``period`` steps. That stands in for the running average of the paper, which the library does not have.

    Args:
        plain: computes the gradient.
        damping: lambda, shared out between the two factors as in section 6.3 of that paper.
        period: batches in the factors, and steps between their computation.
    """

    backward_cost = 1.0

    def __init__(self, plain: Gradient, damping: float, period: int = 10) -> None:
        self.plain, self.damping = plain, damping
        self.parameters = [p for p in plain.model.parameters() if p.requires_grad]
        self._recent: deque[tuple[Tensor, Tensor]] = deque(maxlen=period)
        self._calls, self._inverse = 0, None

    def __call__(self, batch: Batch) -> Any:
        """Forward and backward pass; leaves the natural gradient in ``.grad``."""
        objective = self.plain(batch)
        self._recent.append((batch.inputs, batch.targets.reshape(-1)))
        gradients = [p.grad.clone() for p in self.parameters]
        if self._calls % self._recent.maxlen == 0:
            self._inverse = self._invert()
        self._calls += 1
        for parameter, gradient in zip(self.parameters, self._inverse @ gradients, strict=True):
            parameter.grad = gradient
        return objective

    def _invert(self) -> Any:
        curvlinops = import_module("curvlinops")
        factors = curvlinops.KFACLinearOperator(
            _Flat(self.plain.model), nn.CrossEntropyLoss(), self.parameters, list(self._recent),
            check_deterministic=False, separate_weight_and_bias=False)  # fmt: skip
        return curvlinops.KFACInverseLinearOperator(factors, damping=self.damping, use_heuristic_damping=True)


class _Flat(nn.Module):
    """(batch, time, pdf) as rows."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        return self.model(inputs).flatten(0, -2)
