"""Averages of the parameters along a run: ordinary steps, another network to look at.

    moving average:  a := a + (theta - a) max(1 / horizon, 1 / n)    after step n; the first steps are a plain mean
    plain mean:      a := a + (theta - a) / k                        k-th member; SWA

Training goes on as if there was no average. A look is shown the averaged parameters, with batch-norm statistics
estimated at them; this is also the network that the run ends with.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from hemstitch.models import reestimate_batch_norm
from hemstitch.sampling import BatchSource
from hemstitch.train._options import MovingAverage, WeightAverage
from hemstitch.train._strategies import Batch, StepReport, Strategy


class AveragedSteps:
    """Another strategy's steps, with an average of the parameters beside them.

    Args:
        inner: makes the steps.
        model: the network that it trains.
        options: which average.
        epochs: length of the run.
        statistics: a source of training batches of its own, for batch-norm statistics.

    Attributes:
        look: state of the network that was shown last; ``None`` before the first look.

    Reference: Izmailov et al., "Averaging weights leads to wider optima and better generalization", UAI 2018.
    """

    def __init__(
        self,
        inner: Strategy,
        model: nn.Module,
        options: MovingAverage | WeightAverage,
        epochs: int,
        statistics: BatchSource[Batch],
    ) -> None:
        self.inner, self.model, self.options, self.epochs = inner, model, options, epochs
        self.statistics = statistics
        self.look: dict[str, Tensor] | None = None
        self._average: dict[str, Tensor] = {}
        self._num_steps, self._num_members = 0, 0
        self._forward = 0.0

    def step(self, source: BatchSource[Batch]) -> StepReport:
        """A step of the inner strategy; the average follows if it moved."""
        report = self.inner.step(source)
        if report.applied:
            self._num_steps += 1
            indices = source.indices
            if self._is_member(indices.epoch + indices.position / indices.items_per_epoch):
                self._add()
        return report

    def _is_member(self, epochs: float) -> bool:
        match self.options:
            case WeightAverage(start=start, interval=interval):
                return epochs > start * self.epochs and self._num_steps % interval == 0
        return True

    def _add(self) -> None:
        self._num_members += 1
        weight = 1 / self._num_members
        if isinstance(self.options, MovingAverage):
            weight = max(weight, 1 / self.options.horizon)
        for name, parameter in self.model.named_parameters():
            if weight == 1:
                self._average[name] = parameter.detach().clone()
            else:
                self._average[name].lerp_(parameter.detach(), weight)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The averaged network in the model, inside."""
        here = copy.deepcopy(self.model.state_dict())
        try:
            if self._num_members:
                self.model.load_state_dict(here | self._average)
                self._estimate_statistics()
            self.look = copy.deepcopy(self.model.state_dict())
            yield
        finally:
            self.model.load_state_dict(here)

    def _estimate_statistics(self) -> None:
        def forward(batch: Batch) -> Any:
            self._forward += batch.samples
            return self.model(batch.inputs)

        indices = self.statistics.indices
        indices.epoch, indices.position = 0, 0
        count = min(self.options.statistics_batches, indices.batches_per_epoch)
        passes: Iterator[Callable[[], Any]] = (partial(forward, self.statistics.next()) for _ in range(count))
        reestimate_batch_norm(self.model, passes)

    def spent(self) -> tuple[float, float]:
        """Samples sent forward and backward for looks since the last call."""
        spent, self._forward = (self._forward, 0.0), 0.0
        return spent

    @property
    def at_rest(self) -> bool:
        """Whether the run can be saved after this step."""
        return getattr(self.inner, "at_rest", True)

    def totals(self) -> dict[str, float]:
        """What the inner strategy tells, and how many networks are in the average."""
        return {**getattr(self.inner, "totals", dict)(), "average_members": self._num_members}

    def diagrams(self) -> dict[str, Any]:
        """The inner strategy's."""
        return getattr(self.inner, "diagrams", dict)()

    def state_dict(self) -> dict[str, Any]:
        """The average so far, and the inner strategy's state."""
        inner = self.inner.state_dict() if hasattr(self.inner, "state_dict") else None
        return {"average": self._average, "steps": self._num_steps, "members": self._num_members, "inner": inner}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        device = next(self.model.parameters()).device
        self._average = {name: value.clone().to(device) for name, value in state["average"].items()}
        self._num_steps, self._num_members = state["steps"], state["members"]
        if state["inner"] is not None:
            self.inner.load_state_dict(state["inner"])  # type: ignore[attr-defined]
