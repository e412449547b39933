"""Other orders of the updates as step strategies of a run: backward, and the average over the orders in a batch."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hemstitch.errors import NonFiniteError
from hemstitch.order import BackwardSGD, Objective, OrderAverage, OrderProbe
from hemstitch.sampling import BatchSource
from hemstitch.train._options import BackwardOrder, OrderAverageOptions
from hemstitch.train._strategies import Batch, Gradient, StepReport, clip_gradient


class BackwardSteps:
    """Steps in backward order: what is looked at are the iterates T_1 ... T_n of :class:`hemstitch.order.BackwardSGD`.

    A batch is kept as its indices and made again when it is due. A step in exact mode costs nothing, the look at the
    end of an epoch applies the batches since the origin; the passes of looks count as training.

    Args:
        gradient: computes the objective of a batch.
        optimizer: the inner optimizer; one step of it on batch i, clipped, is the map T_i.
        options: the recipe's [order] section.
        collate: makes the batch with the given indices.
        clip: largest gradient norm in a map; 0 for none.
        seed: of the randomness of the batches.
        score: ``score(model)``, lower is better, for ``reset = "better"`` and for probes.
        stateful: further parts that change in a step (natural gradient).
        leaves_out: maps whose gradient is not finite are left out when batches are applied again; otherwise they
            end the run.

    Attributes:
        look: state of the network that was shown last; ``None`` before the first look.
    """

    def __init__(
        self,
        gradient: Gradient,
        optimizer: torch.optim.Optimizer,
        options: BackwardOrder,
        *,
        collate: Callable[[Tensor], Batch],
        clip: float = 0.0,
        seed: int = 0,
        score: Callable[[nn.Module], float] | None = None,
        stateful: tuple[Any, ...] = (),
        leaves_out: bool = False,
    ) -> None:
        self.gradient, self.model = gradient, gradient.model
        self.map = CheckedOptimizer(optimizer, clip, leaves_out)
        self.order = BackwardSGD(
            self.model,
            Objective(self._objective),
            self.map,  # type: ignore[arg-type]
            mode=options.mode,
            tail=options.tail,
            head_horizon=options.head_horizon,
            window=options.window or None,
            reset=options.reset,
            score=score if options.reset == "better" else None,
            hold=options.hold,
            start=options.start,
            stop=options.stop or None,
            fresh_state=options.fresh_state,
            make_batch=collate,
            stateful=stateful,
            engine="loop",
            seed=(seed << 32) % 2**62,
            statistics_batches=options.statistics_batches,
        )
        self.probe = None if not options.diagnose_every or score is None else OrderProbe(self.order, score, seed=seed)
        self._diagnose_every = options.diagnose_every
        self.look: dict[str, Tensor] | None = None
        self._looked_at = -1
        self._passes = [0.0, 0.0]
        self._first: Value | None = None

    def step(self, source: BatchSource[Batch]) -> StepReport:
        """Hand the next batch to the order; a gradient that is not finite is not followed."""
        indices = source.indices.next()
        self._first, applied = None, True
        try:
            took_step = self.order.observe(indices) is not None
        except NonFiniteError:
            took_step, applied = True, False
        value = (self._first if took_step else None) or Value(0.0, 0.0, None)
        norm, extra = self.map.norm, self._diagnosis()
        forward, backward = self.spent()
        return StepReport(
            loss=value.loss,
            weight=value.weight,
            errors=value.errors,
            samples=len(indices),
            forward=forward,
            backward=backward,
            gradient_norm=norm if took_step else None,
            applied=applied,
            extra=extra,
        )

    def _diagnosis(self) -> dict[str, float]:
        """What a probe finds where one is due, for the metrics and the report."""
        if self.probe is None or self.order.num_steps % self._diagnose_every:
            return {}
        found = self.probe.look()
        if found is None:
            return {}
        values = {"order_contraction": found.contraction, "order_forward_dev_loss": found.forward,
                  "order_backward_dev_loss": found.backward, "order_spread": found.spread}  # fmt: skip
        return {name: value for name, value in values.items() if math.isfinite(value)}

    def _objective(self, model: nn.Module, batch: Batch) -> Tensor:
        objective = self.gradient.objective(batch)
        self._passes[0] += batch.samples
        self._passes[1] += batch.samples if torch.is_grad_enabled() else 0
        if self._first is None:
            errors = getattr(objective, "errors", None)
            self._first = Value(float(objective.loss.detach()), objective.weight, errors)
        if objective.weight > 0:
            return objective.loss / objective.weight
        return sum(p.sum() for p in model.parameters() if p.requires_grad) * 0.0

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The iterate of this step in the model, inside."""
        if self._looked_at != self.order.num_steps:
            with self.order.applied():
                self.look = copy.deepcopy(self.model.state_dict())
            self._looked_at = self.order.num_steps
        here = copy.deepcopy(self.model.state_dict())
        try:
            self.model.load_state_dict(self.look)
            yield
        finally:
            self.model.load_state_dict(here)

    def renewed(self) -> None:
        """The supervision has changed: what was learned from the old one becomes the origin of a new trajectory."""
        self.order.finish()

    def spent(self) -> tuple[float, float]:
        """Samples sent forward and backward since the last call (or step)."""
        forward, backward = self._passes
        self._passes = [0.0, 0.0]
        return forward, backward

    def totals(self) -> dict[str, float]:
        """Batches kept, resets, and maps left out as not finite."""
        report = self.order.report()
        return {
            "order_kept_batches": report.num_stored,
            "order_resets": report.num_resets,
            "order_left_out": self.map.num_left_out,
        }

    def state_dict(self) -> dict[str, Any]:
        """The batches that are kept, as indices, and where the trajectory stands."""
        probe = None if self.probe is None else self.probe.state_dict()
        return {"order": self.order.state_dict(), "left_out": self.map.num_left_out, "probe": probe}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.order.load_state_dict(state["order"])
        if self.probe is not None:
            self.probe.load_state_dict(state["probe"])
        self.map.num_left_out, self._looked_at = state["left_out"], -1


@dataclass(frozen=True)
class Value:
    """The objective of a batch without its graph."""

    loss: float
    weight: float
    errors: float | None


class CheckedOptimizer:
    """An optimizer as a map: gradients are clipped, and followed only where they are finite.

    Args:
        optimizer: any torch optimizer whose ``step`` needs no closure.
        clip: largest gradient norm; 0 for none.
        leaves_out: a gradient that is not finite leaves everything as it is; otherwise it is an error.

    Attributes:
        norm: of the last gradient, before clipping.
        num_left_out: gradients that were not followed.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, clip: float, leaves_out: bool) -> None:
        self.optimizer, self.clip, self.leaves_out = optimizer, clip, leaves_out
        self.norm, self.num_left_out = 0.0, 0

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizer's."""
        return self.optimizer.param_groups

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As the optimizer's."""
        self.optimizer.zero_grad(set_to_none)

    def step(self, closure: Callable[[], Tensor]) -> Tensor:
        """Compute the gradient and follow it.

        Raises:
            NonFiniteError: it is not finite.
        """
        loss = closure()
        self.norm = clip_gradient((p for group in self.param_groups for p in group["params"]), self.clip)
        if math.isfinite(self.norm) and math.isfinite(float(loss.detach())):
            self.optimizer.step()
        elif self.leaves_out:
            self.num_left_out += 1
        else:
            raise NonFiniteError(
                f"a batch that was applied again has loss {float(loss.detach()):g}, gradient norm {self.norm:g}. The "
                "parameters were not touched. Lower update.lr or set train.clip; --train.non_finite skip leaves such "
                "batches out."
            )
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Into the optimizer."""
        self.optimizer.load_state_dict(state)


class OrderAverageGradient(Gradient):
    """The gradient of a batch with the mean effect of the orders of its parts, see :class:`OrderAverage`.

    A batch whose size is no multiple of the number of parts is used up to the largest multiple, a smaller one as it is.

    Args:
        model, criterion, autocast: as for :class:`Gradient`.
        optimizer: gives the learning rates.
        options: the recipe's [order] section.
    """

    backward_cost = 4.0
    """Backward passes: one, and the double backward, which took about three in the measurements."""

    def __init__(
        self,
        model: nn.Module,
        criterion: Callable[[Tensor, Any], Any],
        optimizer: torch.optim.Optimizer,
        options: OrderAverageOptions,
        autocast: bool = False,
    ) -> None:
        super().__init__(model, criterion, autocast)
        self.num_parts = options.num_parts
        self.transform = OrderAverage(
            model,
            Objective(self._mean_loss),
            optimizer,
            num_parts=options.num_parts,
            strength=options.strength,
            order=options.order,
            split=split_batch,
        )
        self._objectives: list[Any] = []

    def _mean_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        objective = self.objective(batch)
        self._objectives.append(objective)
        return objective.loss / max(objective.weight, 1.0)

    def __call__(self, batch: Batch) -> Any:
        """Leave the transformed gradient in ``.grad``; returns the objective of the whole batch."""
        if batch.samples < self.num_parts:
            return super().__call__(batch)
        self._objectives.clear()
        finite = True
        try:
            self.transform.backward(batch)
        except NonFiniteError:
            finite = False
        parts = self._objectives
        loss = sum(part.loss.detach() for part in parts)
        return WholeObjective(
            loss=loss if finite else torch.full_like(loss, math.nan),
            weight=sum(part.weight for part in parts),
            errors=sum(part.errors for part in parts),
        )


@dataclass(frozen=True)
class WholeObjective:
    """The objective of a batch whose parts were computed one by one; carries no gradient."""

    loss: Tensor
    weight: float
    errors: float


def split_batch(batch: Batch, num_parts: int) -> list[Batch]:
    """Equal parts along the first axis; what is left over is not used."""
    size = batch.samples // num_parts
    cuts = [slice(k * size, (k + 1) * size) for k in range(num_parts)]
    return [Batch(batch.inputs[cut], batch.targets[cut], size) for cut in cuts]
