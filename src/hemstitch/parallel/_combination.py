"""The final model: an average of the last models, as many of them as is best on held-out data.

With theta_1 the newest model, theta_2 the one before, and so on, the candidates are the running averages

    m_n = (theta_1 + ... + theta_n) / n         n = 1, 2, ..., N

and the one with the least held-out loss is taken. Statistics of batch normalisation are not those of an average of
models, whatever is done to them: they are computed afresh for each candidate by a callback, for instance

    refresh = lambda model: torch.optim.swa_utils.update_bn(loader, model)

Reference: the reference recipes take up to 20 models; the rule is theirs.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hemstitch.errors import MisuseError, NonFiniteError

Weights = Mapping[str, Tensor]


class LastModels:
    """Copies, in main memory, of the last models of a run.

    Args:
        num_models: how many are kept, >= 1.
    """

    def __init__(self, num_models: int = 20) -> None:
        self._models: deque[dict[str, Tensor]] = deque(maxlen=num_models)

    def add(self, model: nn.Module) -> None:
        """Keep a copy of the model as it is now."""
        self.add_weights({name: value.detach().to("cpu", copy=True) for name, value in model.state_dict().items()})

    def add_weights(self, weights: dict[str, Tensor]) -> None:
        """Keep this state_dict itself."""
        self._models.appendleft(weights)

    @property
    def newest_first(self) -> list[dict[str, Tensor]]:
        """The copies."""
        return list(self._models)


@dataclass(frozen=True)
class Combination:
    """What `combine_models` chose.

    Attributes:
        num_models: how many of the newest models the result averages.
        losses: held-out loss of the averages of 1, 2, ... models.
    """

    num_models: int
    losses: tuple[float, ...]


@torch.no_grad()
def combine_models(
    model: nn.Module,
    models: Sequence[Weights],
    evaluate: Callable[[nn.Module], float],
    refresh: Callable[[nn.Module], None] | None = None,
) -> Combination:
    """Load the best running average of the last models into ``model``.

    Args:
        model: receives the result.
        models: state_dicts, newest first (`LastModels.newest_first`).
        evaluate: held-out loss of the model, which is in evaluation mode; lower is better.
        refresh: computes statistics of batch normalisation anew, before each evaluation and for the result.

    Raises:
        MisuseError: no models.
        NonFiniteError: no average has a finite loss.

    Cost: one evaluation and one refresh per model; a float64 sum of the parameters, and a copy of the best average.
    """
    if not models:
        raise MisuseError("there are no models to combine: add() at least one")
    training, losses = model.training, []
    best: dict[str, Tensor] = {}
    for average in _running_averages(models):
        model.load_state_dict(average)
        if refresh is not None:
            refresh(model)
        model.eval()
        losses.append(float(evaluate(model)))
        if losses[-1] < min((loss for loss in losses[:-1] if not math.isnan(loss)), default=math.inf):
            best = {name: value.clone() for name, value in model.state_dict().items()}
    if not best:
        raise NonFiniteError(f"none of the averages of the last {len(models)} models has a finite held-out loss")
    model.load_state_dict(best)
    model.train(training)
    return Combination(losses.index(min(loss for loss in losses if not math.isnan(loss))) + 1, tuple(losses))


def _running_averages(models: Sequence[Weights]) -> Iterator[dict[str, Tensor]]:
    """m_1, m_2, ...; what is not floating-point is the newest model's."""
    newest = models[0]
    total = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in newest.items()
             if value.is_floating_point()}
    for count, weights in enumerate(models, start=1):
        for name, value in total.items():
            value += weights[name]
        yield {**newest, **{name: (value / count).to(newest[name].dtype) for name, value in total.items()}}
