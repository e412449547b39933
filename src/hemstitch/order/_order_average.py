"""The order-average regulariser as a gradient transform, for any optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hemstitch.errors import MisuseError, NonFiniteError
from hemstitch.order._objective import Loss, Objective, trainable
from hemstitch.order._second_order import average_directions, second_order_term, single_order_directions


class OrderAverage:
    """Give an optimizer the gradient of a large batch with the effect of its parts' orders added.

        grad := g_B - strength * sum_i H_i D v_i,    v_i = sum_{j != i} g_j ("average") or sum_{j < i} g_j ("single")

    g_B is the mean of the c parts' gradients, D the diagonal of learning rates h, read from the optimizer's groups.
    With SGD the step is theta - h g_B + strength * h^2 sum_{i != j} H_i g_j: ``strength`` is the paper's lambda in
    units of h^2. The average over all orders of SGD on the parts at learning rate h / c (equation 9) has strength
    1 / (2 c^2), one order alone (D.1) is order="single" with strength 1 / c^2; the paper tries lambda up to 4 h^2.
    With several learning rates D keeps its place between H and g, where the expansion of T_i = 1 - D g_i puts it.

    >>> import torch
    >>> net = torch.nn.Linear(2, 1)
    >>> adam = torch.optim.AdamW(net.parameters(), lr=1e-3)
    >>> average = OrderAverage(net, torch.nn.MSELoss(), adam, num_parts=4)
    >>> loss = adam.step(average.closure((torch.rand(8, 2), torch.rand(8, 1))))

    Args:
        model: the network.
        loss: ``loss(outputs, targets)`` averaged over the batch, or an :class:`Objective`.
        optimizer: the one that takes the gradient; only its learning rates are read.
        num_parts: c >= 2, small batches in each large one.
        strength: lambda / h^2.
        order: "average" of all orders, or the "single" one in which the parts come.
        split: ``split(batch, c)`` -> c parts; the default cuts every tensor of a nested batch along its first axis.

    Raises:
        MisuseError: an option is out of range; a batch cannot be cut into c equal parts.
        NonFiniteError: the transformed gradient is not finite; ``.grad`` is left as it was.

    Cost: about 3 gradients of the large batch, in time and in memory for activations.

    Reference: Dherin et al. (arXiv:2502.01557), sections D.1 and D.2.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss | Objective,
        optimizer: Optimizer,
        *,
        num_parts: int = 4,
        strength: float = 1.0,
        order: Literal["average", "single"] = "average",
        split: Callable[[Any, int], Sequence[Any]] | None = None,
    ):
        if num_parts < 2:
            raise MisuseError(f"OrderAverage: num_parts must be at least 2, got {num_parts}")
        if order not in ("average", "single"):
            raise MisuseError(f"OrderAverage: order must be 'average' or 'single', got {order!r}")
        self.num_parts, self.strength = num_parts, strength
        self._model, self._objective, self._optimizer = model, Objective.of(loss), optimizer
        self._directions = average_directions if order == "average" else single_order_directions
        self._split = split or split_batch

    def backward(self, batch: Any) -> Tensor:
        """Add the transformed gradient of ``batch`` to ``.grad``, as ``loss.backward()`` would. Returns the loss."""
        parameters = trainable(self._model)
        rates = {id(p): float(group["lr"]) for group in self._optimizer.param_groups for p in group["params"]}
        scales = [rates.get(id(p), 0.0) for p in parameters.values()]
        loss, mean, term = second_order_term(
            self._model, self._objective, self._split(batch, self.num_parts), self._directions, scales)
        gradients = [g.sub_(t, alpha=self.strength) for g, t in zip(mean, term)]
        if not all(torch.isfinite(g).all() for g in gradients):
            raise NonFiniteError(f"OrderAverage: the gradient is not finite (loss {loss.item()}, strength "
                                 f"{self.strength}); lower the strength or the learning rate")
        for p, g in zip(parameters.values(), gradients):
            p.grad = g if p.grad is None else p.grad.add_(g)
        return loss

    def closure(self, batch: Any) -> Callable[[], Tensor]:
        """A closure for ``optimizer.step``: clear ``.grad``, then :meth:`backward`."""
        def step_closure() -> Tensor:
            self._optimizer.zero_grad(set_to_none=True)
            return self.backward(batch)

        return step_closure


def split_batch(batch: Any, num_parts: int) -> list[Any]:
    """Cut every tensor of nested tuples, lists and dictionaries into equal parts along its first axis."""
    if isinstance(batch, Tensor):
        if batch.dim() == 0 or batch.shape[0] % num_parts:
            raise MisuseError(
                f"OrderAverage: a tensor of shape {tuple(batch.shape)} cannot be cut into {num_parts} equal parts "
                "along its first axis; choose a batch size that num_parts divides, or pass split=")
        return list(batch.chunk(num_parts))
    if isinstance(batch, dict):
        parts = {key: split_batch(value, num_parts) for key, value in batch.items()}
        return [{key: value[i] for key, value in parts.items()} for i in range(num_parts)]
    if isinstance(batch, tuple | list):
        return [list(part) for part in zip(*(split_batch(value, num_parts) for value in batch))]
    raise MisuseError(f"OrderAverage: cannot cut a {type(batch).__name__}; pass split=")
