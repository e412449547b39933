"""Diagonal preconditioners, the baselines of paper 3 (section 3.1.2): they mend scaling, not the spectrum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from hemstitch.curvature._forward import same_randomness
from hemstitch.curvature._operator import LinearOperator
from hemstitch.curvature._parameters import FlatParameters, Vector
from hemstitch.errors import MisuseError


class DiagonalPreconditioner:
    """M r = r / (diagonal + damping)^exponent.

    Args:
        diagonal: (param,) of the curvature matrix or of the Fisher matrix; negative estimates count as 0.
        damping: lambda > 0, one number or one per parameter.
        exponent: 1 is the Jacobi preconditioner; Martens takes 0.75 with the Fisher diagonal, to damp its noise.

    Reference: Martens 2010, section 4.7.
    """

    def __init__(self, diagonal: Vector, damping: float | Vector, exponent: float = 1.0) -> None:
        base = diagonal.clamp_min(0) + damping
        if not bool((base > 0).all()):
            raise MisuseError("diagonal + damping must be positive everywhere: raise the damping")
        self._scale = base.pow(-exponent)

    def __call__(self, r: Vector) -> Vector:
        """M r, shape (param,)."""
        return self._scale * r


def jacobi_diagonal(
    A: LinearOperator, num_probes: int | None = None, generator: torch.Generator | None = None
) -> Vector:
    """The diagonal of A, exactly or by random signs: the mean of v * (A v) over probes v in {-1, 1}^n.

    Args:
        A: the matrix.
        num_probes: products to spend; ``None``: the exact diagonal at n products, for small networks.
        generator: draws the probes, on the CPU.

    Reference: Bekas, Kokiopoulou and Saad 2007; as a preconditioner, Chapelle and Erhan 2011.
    """
    if num_probes is None:
        return A.dense().diagonal().clone()
    if num_probes < 1:
        raise MisuseError(f"num_probes must be at least 1, got {num_probes}")
    total = torch.zeros(A.shape[0], dtype=A.dtype, device=A.device)
    for _ in range(num_probes):
        signs = torch.randint(2, (A.shape[0],), generator=generator).to(total) * 2 - 1
        total += signs * (A @ signs)
    return total / num_probes


def fisher_diagonal(
    model: nn.Module, loss: Callable[[Tensor, Any], Tensor], inputs: Tensor, targets: Tensor, chunk_size: int = 64
) -> Vector:
    """The mean over examples of the squared gradient: the diagonal of the empirical Fisher matrix of a mean loss.

    Args:
        model: treats the examples (first axis) independently: batch-norm in eval mode only.
        loss: for one example as a batch of one.
        inputs, targets: one entry per example.
        chunk_size: examples whose gradients are held at once.

    Reference: Martens 2010, section 4.7.
    """
    named = dict(model.named_parameters())
    layout = FlatParameters(named.values())
    moving = {name: param.detach() for name, param in named.items() if param.requires_grad}

    def example_loss(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return loss(functional_call(model, params, (x[None],)), y[None])

    squares = [torch.zeros_like(param) for param in moving.values()]
    with same_randomness(layout.device):
        for x, y in zip(inputs.split(chunk_size), targets.split(chunk_size), strict=True):
            slopes = vmap(grad(example_loss), in_dims=(None, 0, 0), randomness="different")(moving, x, y)
            for total, name in zip(squares, moving, strict=True):
                total += slopes[name].square().sum(0)
    return layout.flatten_trainable([total / len(inputs) for total in squares])
