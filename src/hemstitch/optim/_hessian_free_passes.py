"""The passes of a Hessian-free step: sums over micro-batches, logical shards and workers, always over the same data.

The closure is called once per logical shard and role. Within a step every pass of a shard draws the same random
numbers (a function of seed, step and shard: dropout masks are part of the function that is minimised) and leaves no
trace in running statistics, except for the gradient's, which counts as the one forward pass of the step.

What crosses between workers is the gradient, the products, the loss and their weights; all decisions follow from these
sums, so all workers decide alike, and the shard sums make the result independent of how many there are.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hemstitch.comm import Reducer, shards_of, sum_shards
from hemstitch.curvature import FlatParameters, LinearOperator, gauss_newton_of_outputs, twice_differentiable
from hemstitch.errors import MisuseError
from hemstitch.optim._passes import kept_statistics
from hemstitch.sampling import generator, gradient_noise

Vector = Tensor
RoleClosure = Callable[[str], Iterable[tuple[Any, Any, float]]]
"""closure(role) -> micro-batches (outputs, loss_fn, weight), role ``gradient``, ``curvature`` or ``evaluate``."""

ROLES = ("gradient", "curvature", "evaluate")
HOW_TO = ("HessianFree needs closure(role) that yields (outputs, loss_fn, weight) for each micro-batch of role "
          "'gradient', 'curvature' or 'evaluate', with loss_fn(outputs) the loss SUMMED over the micro-batch: "
          "hemstitch.optim.batch_closure(model, loss, inputs, targets) makes one")


def check_closure(closure: object) -> None:
    """Refuse what does not take a role: a plain closure has one loss for what are three."""
    try:
        inspect.signature(closure).bind("gradient")
    except (TypeError, ValueError) as error:
        raise MisuseError(f"{HOW_TO}; got {closure!r}") from error


@dataclass(frozen=True, kw_only=True)
class Gradient:
    """The mean gradient over all workers.

    Attributes:
        flat: (param,) sum of gradients / sum of weights.
        loss: sum of losses / sum of weights.
        weight: the latter.
        noise: squared relative error of ``flat``, micro-batches as units.
        squares: (param,) sum of squared micro-batch gradients / weight, an estimate of the mean squared gradient of
            one sample (exact in expectation where gradients have mean zero); ``None`` unless asked for.
    """

    flat: Vector
    loss: float
    weight: float
    noise: float
    squares: Vector | None


class RolePasses:
    """Runs the closure of one step.

    Args:
        closure: see :data:`RoleClosure`.
        layout: the parameters.
        reducer, num_shards: how to sum.
        key: of the random numbers, (seed, step).
        model: see :func:`kept_statistics`.
        in_shard: context in which the closure runs for a shard.
        on_pass: called with (role, passes so far) after each pass.

    Attributes:
        weights: total weight of each role, once it has run.
        counts: passes of each role.
    """

    def __init__(
        self, closure: RoleClosure, layout: FlatParameters, reducer: Reducer, num_shards: int, key: tuple[int, ...],
        model: nn.Module | None, in_shard: Callable[[int], AbstractContextManager[None]],
        on_pass: Callable[[str, int], None] | None = None,
    ) -> None:
        self.closure, self.layout, self.reducer, self.num_shards = closure, layout, reducer, num_shards
        self.own = shards_of(reducer.rank, reducer.world, num_shards)
        self.key, self.model, self._in_shard, self.on_pass = key, model, in_shard, on_pass
        self.weights: dict[str, float] = {}
        self.counts = dict.fromkeys(ROLES, 0)

    def gradient(self, want_squares: bool = False) -> Gradient:
        """One pass over the gradient sample, forward and backward."""
        scalars: list[Tensor] = []
        squares: list[Tensor] = []

        def shard_sums() -> Iterator[Vector]:
            for shard in self.own:
                flat, square, row = self._zeros(), self._zeros() if want_squares else None, np.zeros(4)
                for outputs, loss_fn, weight in self._batches("gradient", shard):
                    with torch.enable_grad():
                        loss = _scalar(loss_fn(outputs))
                    part = self.layout.flatten_trainable(
                        torch.autograd.grad(loss, self.layout.trainable_params, allow_unused=True))
                    flat += part
                    row += (weight, torch.dot(part, part).item(), 1, loss.item())
                    if square is not None:
                        square.addcmul_(part, part)
                scalars.append(torch.from_numpy(row))
                if square is not None:
                    squares.append(square)
                yield flat

        flat = self._sum(shard_sums())
        weight, sum_of_squares, num_units, loss = self._sum(scalars).tolist()
        self._count("gradient", weight)
        return Gradient(flat=flat / weight, loss=loss / weight, weight=weight,
                        squares=self._sum(squares) / weight if want_squares else None,
                        noise=gradient_noise(sum_of_squares, torch.dot(flat, flat).item(), round(num_units)))

    def loss(self) -> float:
        """One pass over the held-out sample, forward only: the mean loss."""
        rows = []
        with kept_statistics(self.model):
            for shard in self.own:
                row = np.zeros(2)
                for outputs, loss_fn, weight in self._batches("evaluate", shard, record=False):
                    with torch.no_grad():
                        row += (_scalar(loss_fn(outputs)).item(), weight)
                rows.append(torch.from_numpy(row))
        loss, weight = self._sum(rows).tolist()
        self._count("evaluate", weight)
        return loss / weight

    def curvature(self, keep_graphs: bool = True) -> MeanCurvature:
        """The mean Gauss-Newton matrix of the curvature sample; use it within :func:`kept_statistics`."""
        return MeanCurvature(self, keep_graphs)

    def operators(self, shard: int) -> Iterator[tuple[LinearOperator, float]]:
        """The summed curvature matrix of each micro-batch of a shard, and its weight."""
        for outputs, loss_fn, weight in self._batches("curvature", shard):
            if isinstance(outputs, LinearOperator):
                operator = outputs
            else:
                operator = gauss_newton_of_outputs(outputs, loss_fn, self.layout.params)
            if operator.shape[0] != self.layout.numel:
                raise MisuseError(f"a curvature operator has {operator.shape[0]} parameters, the optimizer has "
                                  f"{self.layout.numel}: build it with params = those of the optimizer, in its order")
            yield operator, weight

    def _batches(self, role: str, shard: int, record: bool = True) -> Iterator[tuple[Any, Any, float]]:
        """The micro-batches of one shard that have weight, from the random state that belongs to it."""
        seed_all(generator(*self.key, shard).initial_seed(), self.layout.device)
        with self._in_shard(shard):
            with torch.enable_grad(), self._kernels(role):
                batches = self.closure(role)
            if isinstance(batches, Tensor) or not isinstance(batches, Iterable):
                raise MisuseError(f"{HOW_TO}; closure({role!r}) returned {type(batches).__name__}")
            iterator = iter(batches)
            while True:
                with torch.set_grad_enabled(record), self._kernels(role):       # a generator runs in here
                    batch = next(iterator, None)
                if batch is None:
                    return
                if not isinstance(batch, (tuple, list)) or len(batch) != 3 or not batch[2] >= 0:
                    raise MisuseError(f"{HOW_TO}; closure({role!r}) gave {batch!r}")
                if batch[2] > 0:
                    yield batch

    def _kernels(self, role: str) -> AbstractContextManager[None]:
        """Kernels with a second derivative, where one is needed."""
        if role != "curvature":
            return nullcontext()
        return twice_differentiable(
            recurrent=self.model is None or any(isinstance(module, nn.RNNBase) for module in self.model.modules()))

    def _zeros(self) -> Vector:
        return torch.zeros(self.layout.numel, dtype=self.layout.dtype, device=self.layout.device)

    def _sum(self, parts: Iterable[Tensor]) -> Tensor:
        return sum_shards(self.reducer, parts, self.num_shards)

    def _count(self, role: str, weight: float) -> None:
        if not weight > 0:
            raise MisuseError(f"closure({role!r}) gave no data: the weights of its micro-batches sum to {weight}")
        self.counts[role] += 1
        self.weights[role] = weight
        if self.on_pass is not None:
            self.on_pass(role, self.counts[role])


class MeanCurvature:
    """The mean curvature matrix over all workers, read through ``A @ v``.

    Args:
        passes: run the closure.
        keep_graphs: keep the graphs of all micro-batches between products; otherwise every product runs the closure
            again (about twice the time, memory of one micro-batch).
    """

    def __init__(self, passes: RolePasses, keep_graphs: bool) -> None:
        self.passes, layout = passes, passes.layout
        self.shape, self.dtype, self.device = (layout.numel, layout.numel), layout.dtype, layout.device
        self._kept = {shard: list(passes.operators(shard)) for shard in passes.own} if keep_graphs else None

    def __matmul__(self, v: Vector) -> Vector:
        """A v, shape (param,)."""
        weights: list[Tensor] = []

        def shard_sums() -> Iterator[Vector]:
            for shard in self.passes.own:
                total, weight = self.passes._zeros(), 0.0
                operators = self.passes.operators(shard) if self._kept is None else self._kept[shard]
                for operator, batch_weight in operators:
                    total += operator @ v
                    weight += batch_weight
                weights.append(torch.tensor([weight], dtype=torch.float64))
                yield total

        total = self.passes._sum(shard_sums())
        weight = self.passes._sum(weights).item()
        self.passes._count("curvature", weight)
        return total.div_(weight)


def seed_all(seed: int, device: torch.device) -> None:
    """Seed the global random numbers of Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def _scalar(loss: Tensor) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise MisuseError(f"loss_fn(outputs) must be one number, the sum over the micro-batch; got {got}")
    return loss
