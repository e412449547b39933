"""Step strategies: how one step of the run uses data, gradient and optimizer.

The loop knows only ``strategy.step(source)``. A strategy draws its own data from the source, so that an optimizer with
two passes over a batch, one that wants samples of its own, and one that replays old batches all fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hemstitch.comm import LocalReducer, Reducer
from hemstitch.sampling import BatchSource
from hemstitch.train._natural_report import bounds_met


@dataclass(frozen=True)
class Batch:
    """Inputs and supervision of one step.

    Attributes:
        inputs: (batch, window, feature) or whatever the model takes.
        targets: what the criterion takes.
        samples: how many training samples (frames, images) the batch holds.
    """

    inputs: Tensor
    targets: Any
    samples: int


@dataclass(frozen=True)
class StepReport:
    """What one step did.

    Attributes:
        loss: summed loss before the step; may be non-finite, then ``applied`` is false.
        weight: what to divide it by.
        errors: number of wrong decisions, if the criterion counts them.
        samples: training samples consumed.
        forward, backward: samples sent forward and backward through the network.
        gradient_norm: before clipping; ``None`` if the strategy does not form it.
        applied: whether the parameters moved.
        extra: further values to log, by name.
        updates: of the parameters that this step stands for.
    """

    loss: float
    weight: float
    errors: float | None
    samples: int
    forward: float
    backward: float
    gradient_norm: float | None
    applied: bool
    extra: dict[str, float] = field(default_factory=dict)
    updates: int = 1


class Strategy(Protocol):
    """One step of training.

    What a strategy may have besides ``step``: ``state_dict`` and ``load_state_dict`` if it has a state of its own;
    ``at_rest``: whether the run can be saved after this step; ``totals()``: further values to log with the training
    loss; ``take_news()``: what went wrong since the last step; ``close()``: called when the run ends, in whatever way;
    ``diagrams()``: pictures for the report, by name: {"title", "x_label", "lines": [{"label", "x", "y"}]}.

    If the network to look at is not the one that is trained: ``shown()``, a context in which the model holds it;
    ``look``, the state of the network that was shown last (``None`` before), with which the run ends; ``spent()``,
    samples sent forward and backward for looks since the last call; ``renewed()``, the supervision has changed.
    """

    def step(self, source: BatchSource[Batch]) -> StepReport:
        """Take data from the source and change the parameters, or report why not."""



@dataclass
class Gradient:
    """Forward and backward on a batch: leaves the gradient of the mean loss in ``.grad``.

    Attributes:
        model: the network.
        criterion: (outputs, targets) -> objective with ``loss`` (a sum) and ``weight``.
        autocast: whether the forward pass runs in bfloat16.
        reducer: joins the gradients of several workers, weighted by what their batches hold.
    """

    model: nn.Module
    criterion: Callable[[Tensor, Any], Any]
    autocast: bool = False
    reducer: Reducer = field(default_factory=LocalReducer)

    backward_cost = 1.0
    """Backward passes over a batch that one call takes."""

    def objective(self, batch: Batch) -> Any:
        """Forward pass."""
        if not self.autocast:
            return self.criterion(self.model(batch.inputs), batch.targets)
        with torch.autocast(batch.inputs.device.type, dtype=torch.bfloat16):
            outputs = self.model(batch.inputs)
        heads = tuple(o.float() for o in outputs) if isinstance(outputs, tuple) else outputs.float()
        return self.criterion(heads, batch.targets)

    def __call__(self, batch: Batch) -> Any:
        """Forward and backward pass; returns this worker's objective."""
        objective = self.objective(batch)
        if objective.weight > 0:
            (objective.loss / objective.weight).backward()
        if self.reducer.world > 1:
            self.reduce(objective.weight)
        return objective

    def reduce(self, weight: float) -> None:
        """Replace the gradient of this worker's mean loss by that of the mean over all workers."""
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        pieces = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([piece.reshape(-1) for piece in pieces]) * weight
        flat /= max(self.reducer.sum_(flat, weight), 1.0)
        for parameter, mean in zip(parameters, flat.split([p.numel() for p in parameters])):
            parameter.grad = mean.view_as(parameter)


class SinglePass:
    """One gradient, one step: every ordinary optimizer.

    Args:
        gradient: computes the gradient of a batch.
        optimizer: any torch optimizer whose ``step`` needs no closure.
        clip: largest gradient norm; 0 for none.
    """

    def __init__(self, gradient: Gradient, optimizer: torch.optim.Optimizer, clip: float = 0.0) -> None:
        self.gradient, self.optimizer, self.clip = gradient, optimizer, clip
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def step(self, source: BatchSource[Batch]) -> StepReport:
        """Draw a batch, follow its gradient; a gradient that is not finite is not followed."""
        batch = source.next()
        self.optimizer.zero_grad(set_to_none=True)
        objective = self.gradient(batch)
        norm = clip_gradient(self.parameters, self.clip)
        loss = float(objective.loss.detach())
        applied = math.isfinite(loss) and math.isfinite(norm)
        if applied:
            self.optimizer.step()
        return StepReport(
            loss=loss,
            weight=objective.weight,
            errors=getattr(objective, "errors", None),
            samples=batch.samples,
            forward=batch.samples,
            backward=self.gradient.backward_cost * batch.samples,
            gradient_norm=norm,
            applied=applied,
            extra=getattr(objective, "extra", {}) | (bounds_met(self.optimizer) if applied else {}),
        )


class ClosureSteps:
    """Optimizers that compute the gradient themselves, once or more often in a step: backstitch, L-BFGS.

    Args:
        gradient: computes the gradient of a batch.
        optimizer: its ``step`` takes a closure. If it reports ``num_refused`` (batches left out because something was
            not finite), a refused batch counts as not applied.
        clip: largest gradient norm of each pass; 0 for none.
    """

    def __init__(self, gradient: Gradient, optimizer: torch.optim.Optimizer, clip: float = 0.0) -> None:
        self.gradient, self.optimizer, self.clip = gradient, optimizer, clip
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def step(self, source: BatchSource[Batch]) -> StepReport:
        """Draw a batch and let the optimizer pass over it as often as it needs."""
        batch = source.next()
        passes: list[tuple[Any, float]] = []

        def closure() -> Tensor:
            self.optimizer.zero_grad(set_to_none=True)
            objective = self.gradient(batch)
            passes.append((objective, clip_gradient(self.parameters, self.clip)))
            return objective.loss.detach() / max(objective.weight, 1.0)

        refused = self._num_refused()
        self.optimizer.step(closure)
        first, norm = passes[0]
        finite = all(math.isfinite(float(o.loss.detach())) and math.isfinite(n) for o, n in passes)
        return StepReport(
            loss=float(first.loss.detach()),
            weight=first.weight,
            errors=getattr(first, "errors", None),
            samples=batch.samples,
            forward=len(passes) * batch.samples,
            backward=len(passes) * self.gradient.backward_cost * batch.samples,
            gradient_norm=norm,
            applied=finite and self._num_refused() == refused,
            extra=getattr(first, "extra", {}) | bounds_met(self.optimizer),
        )

    def _num_refused(self) -> int:
        report = getattr(self.optimizer, "report", None)
        return report().num_refused if report else 0


def clip_gradient(parameters: Iterable[Tensor], largest: float) -> float:
    """Scale the gradients down to a common norm of at most ``largest`` (0: leave them); returns the norm before."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return 0.0
    norm = float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))))
    if largest > 0 and math.isfinite(norm) and norm > largest:
        torch._foreach_mul_(gradients, largest / norm)
    return norm
