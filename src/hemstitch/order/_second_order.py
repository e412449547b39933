"""What the order of a few batches does to second order in the learning rate (Lemma C.1), without any Hessian.

Applying maps T_i = 1 - h grad L_i one after the other, T_{i_1} ... T_{i_k} with i_k first, gives

    theta - h sum_l g_{i_l} + h^2 sum_{u<v} H_{i_u} g_{i_v} + O(h^3),        g, H at theta

so all orders agree to first order, and every second-order question about order is a sum of products H_i v_i, where v_i
is a sum of other batches' gradients. One more backward pass through <g_i, v_i>, v_i held fixed, gives H_i v_i.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hemstitch.errors import MisuseError
from hemstitch.order._iterates import forward_iterates
from hemstitch.order._objective import Loss, Objective, Parameters, device_of, kept_buffers, seeded, trainable

Vector = tuple[Tensor, ...]
"""One tensor for each trainable parameter."""


class OrderWarning(UserWarning):
    """An expansion in the learning rate is used where it does not hold."""


def order_average_gradient(model: nn.Module, loss: Loss | Objective, batches: Sequence[Any]) -> Parameters:
    """The second-order term that all orders of some batches have in common, at the current parameters.

        r = sum_{i != j} H_i g_j = grad[ (|sum_i g_i|^2 - sum_i |g_i|^2) / 2 ]

    The average of SGD over all c! orders is theta - h sum_i g_i + h^2 r / 2 + O(h^3) (equation 9). Moving along +r
    raises the agreement sum_{i != j} g_i' g_j / 2 of the batches' gradients. One double backward, no permutation.

    Args:
        model: evaluated at its current parameters and left as it is.
        loss: ``loss(outputs, targets)``, or an :class:`Objective`.
        batches: c small batches, c >= 2.

    Returns:
        {name: tensor} for each trainable parameter.

    Raises:
        MisuseError: fewer than two batches.

    Cost: c gradients and their double backward, about 3 times a gradient on all the data, in memory as well.

    Reference: Dherin et al. (arXiv:2502.01557), section D.2.
    """
    return _pure_term(model, loss, batches, average_directions)


def single_order_gradient(model: nn.Module, loss: Loss | Objective, batches: Sequence[Any]) -> Parameters:
    """The second-order term of SGD over the batches in the order given, the first one first.

        r = sum_{j < i} H_i g_j,        T_c ... T_1(theta) = theta - h sum_i g_i + h^2 r + O(h^3)

    The implicit regularisation of small batches. Section D.1 prints the sum over i < j: that is the other order, since
    in Lemma C.1 the map applied last comes first. Arguments, errors and cost as for :func:`order_average_gradient`.
    """
    return _pure_term(model, loss, batches, single_order_directions)


def lie_bracket_correction(model: nn.Module, loss: Loss | Objective, batches: Sequence[Any]) -> Parameters:
    """The second-order difference between backward and forward SGD, at the current parameters.

        C_n = sum_{i<j} (H_i g_j - H_j g_i) = sum_j H_j (S_{>j} - S_{<j}),
        T_1 ... T_n(theta) = T_n ... T_1(theta) + h^2 C_n + O(h^3)

    S_{>j} and S_{<j} are sums of the gradients after and before batch j. The recursion of Corollary C.4 carries a sum
    of Hessians, which is a matrix, or else costs n - 1 products for each new batch; with prefix and suffix sums there
    are n products in all, for one n.

    Warning:
        A diagnostic, not a way to get backward iterates: the expansion needs h n |H| well below 1. On a small
        regression network at h = 0.05 it helps for n = 2 and is worse than no correction from n = 5 to 10 on.

    Args:
        model: evaluated at its current parameters and left as it is.
        loss: ``loss(outputs, targets)``, or an :class:`Objective`.
        batches: B_1, ..., B_n in the order in which they came; at least two.

    Returns:
        {name: tensor} for each trainable parameter.

    Raises:
        MisuseError: fewer than two batches.

    Cost: 2 n gradients and n double backwards; memory of three gradients.

    Reference: Dherin et al. (arXiv:2502.01557), Theorem C.2 and Corollary C.4.
    """
    _check_number(batches)
    objective, parameters = Objective.of(loss), trainable(model)
    with kept_buffers(model), torch.enable_grad():
        total = _zeros(parameters)
        for index, batch in enumerate(batches):
            total = _sum(total, _gradient(model, objective, batch, index)[1])
        before, correction = _zeros(parameters), _zeros(parameters)
        for index, batch in enumerate(batches):
            gradient = _gradient(model, objective, batch, index, create_graph=True)[1]
            here = tuple(g.detach() for g in gradient)
            direction = tuple(t - g - 2 * b for t, g, b in zip(total, here, before))  # S_{>j} - S_{<j}
            correction = _sum(correction, _hessian_products([gradient], [direction], parameters))
            before = _sum(before, here)
    return dict(zip(parameters, correction))


def bracket_iterate(model: nn.Module, loss: Loss | Objective, batches: Sequence[Any], lr: float) -> Parameters:
    """The approximate backward iterate of Definition C.3: the forward one and h^2 times the bracket.

        theta~_n = T_n ... T_1(theta_0) + h^2 C_n(theta_0)

    Warns with :class:`OrderWarning` when the correction is not small beside the distance travelled: on a regression
    network at learning rates 0.01 to 0.2, that ratio was at least 0.19 in every case where it did harm. Arguments as
    for :func:`lie_bracket_correction`; ``lr`` is h > 0. Cost: n gradients more than C_n.

    Returns:
        {name: parameter}, all parameters.
    """
    origin = {name: p.detach().clone() for name, p in model.named_parameters()}
    forward = forward_iterates(model, loss, batches, lr)[len(batches)]
    correction = {name: lr**2 * c for name, c in lie_bracket_correction(model, loss, batches).items()}
    travelled = _norm(forward[name] - origin[name] for name in correction)
    if (size := _norm(correction.values())) > WARNING_RATIO * travelled:
        warnings.warn(
            f"the bracket correction is {float(size / travelled):.2g} of the distance travelled: third and higher "
            f"orders matter for {len(batches)} batches at learning rate {lr}, and it may be worse than none; "
            "use backward_iterates or fixed_tail_iterates", OrderWarning, stacklevel=2)
    return {name: p + correction[name] if name in correction else p for name, p in forward.items()}


WARNING_RATIO = 0.15
"""Size of the bracket correction, relative to the distance travelled, above which it is warned of."""


def average_directions(gradients: Sequence[Vector]) -> list[Vector]:
    """v_i = sum_{j != i} g_j."""
    totals = tuple(torch.stack(parts).sum(0) for parts in zip(*gradients))
    return [tuple(t - g for t, g in zip(totals, gradient)) for gradient in gradients]


def single_order_directions(gradients: Sequence[Vector]) -> list[Vector]:
    """v_i = sum_{j < i} g_j."""
    directions = [tuple(torch.zeros_like(g) for g in gradients[0])]
    for gradient in gradients[:-1]:
        directions.append(_sum(directions[-1], gradient))
    return directions


def second_order_term(
    model: nn.Module,
    objective: Objective,
    batches: Sequence[Any],
    directions: Callable[[Sequence[Vector]], list[Vector]],
    scales: Sequence[float] | None = None,
) -> tuple[Tensor, Vector, Vector]:
    """Mean loss, mean gradient, and sum_i H_i D v_i in one double backward; D = diag(scales), one scale a parameter."""
    _check_number(batches)
    parameters = trainable(model)
    with torch.enable_grad():
        losses, gradients = zip(*(
            _gradient(model, objective, batch, index, create_graph=True) for index, batch in enumerate(batches)))
        values = [tuple(g.detach() for g in gradient) for gradient in gradients]
        vectors = directions(values)
        if scales is not None:
            vectors = [tuple(v * scale for v, scale in zip(vector, scales)) for vector in vectors]
        term = _hessian_products(gradients, vectors, parameters)
    mean = tuple(sum(parts) / len(values) for parts in zip(*values))
    return sum(value.detach() for value in losses) / len(losses), mean, term


def _pure_term(model, loss, batches, directions) -> Parameters:
    with kept_buffers(model):
        term = second_order_term(model, Objective.of(loss), batches, directions)[2]
    return dict(zip(trainable(model), term))


def _gradient(model, objective, batch, index: int, *, create_graph: bool = False) -> tuple[Tensor, Vector]:
    with seeded(index, device_of(model)):
        value = objective(model, batch)
    parameters = tuple(trainable(model).values())
    return value, torch.autograd.grad(
        value, parameters, create_graph=create_graph, allow_unused=True, materialize_grads=True)


def _hessian_products(gradients: Sequence[Vector], vectors: Sequence[Vector], parameters: Parameters) -> Vector:
    """sum_i H_i v_i, from gradients that kept their graph."""
    pairs = [(g, v) for gradient, vector in zip(gradients, vectors)
             for g, v in zip(gradient, vector) if g.requires_grad]
    if not pairs:  # every loss is linear in the parameters
        return _zeros(parameters)
    outputs, weights = zip(*pairs)
    return torch.autograd.grad(
        outputs, tuple(parameters.values()), weights, allow_unused=True, materialize_grads=True)


def _check_number(batches: Sequence[Any]) -> None:
    if len(batches) < 2:
        raise MisuseError(f"order: the order of batches needs at least two of them, got {len(batches)}")


def _zeros(parameters: Parameters) -> Vector:
    return tuple(torch.zeros_like(p) for p in parameters.values())


def _sum(a: Vector, b: Vector) -> Vector:
    return tuple(x + y for x, y in zip(a, b))


def _norm(tensors) -> Tensor:
    return torch.stack([t.norm() for t in tensors]).norm()
