"""Summed path weights of graphs as differentiable functions of the network outputs.

The derivative of log sum_paths exp(score) by an output is its occupancy, which forward-backward yields with the value.
So the backward pass of autograd is one multiplication.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hemstitch.graphs import Graph, denominator_posteriors, numerator_posteriors


class WithDerivative(torch.autograd.Function):
    """Values whose derivative by ``outputs`` is known: ``apply(outputs, values, derivative)``.

    ``values``: a scalar or (batch,); ``derivative``: (batch, time, pdf).
    """

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, values: Tensor, derivative: Tensor) -> Tensor:
        """The values, unchanged."""
        ctx.save_for_backward(derivative)
        ctx.dtype = outputs.dtype
        return values.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """The chain rule."""
        (derivative,) = ctx.saved_tensors
        if grad.is_cuda or not (grad == 1.0).all():  # after a plain sum there is nothing to multiply
            derivative = grad.to(derivative.dtype).reshape(-1, 1, 1) * derivative
        return derivative.to(ctx.dtype), None, None


def denominator(
    graph: Graph, outputs: Tensor, lengths: Tensor, leak: float = 1e-5, clip: float | None = None
) -> Tensor:
    """(batch,) float64 log of the summed weights of all paths through one graph shared by the batch.

    Every state is final with probability 1; ``graph.final`` enters only the initial probabilities. Where outputs are
    NaN or +inf the result is NaN, where no path survives it is -inf; the gradient is zero in both cases.

    Args:
        graph: without epsilon arcs.
        outputs: (batch, time, pdf) log-likelihoods in nats; the gradient by them is the occupancy of each output.
        lengths: (batch,) number of frames; later ones are never read and get zero gradient.
        leak: weight of a jump from any state to the initial distribution.
        clip: clamp outputs at +- this before they are used, with the gradient of the unclamped value, as the reference
            does at 30; ``None``: not needed for the numerics here.

    Cost: see :func:`hemstitch.graphs.denominator_posteriors`; forward-backward runs in the forward pass.
    """
    needs_gradient = torch.is_grad_enabled() and outputs.requires_grad
    clipped = outputs if clip is None else outputs.detach().clamp(-clip, clip)
    found = denominator_posteriors(graph, clipped, lengths, leak, occupancies=needs_gradient)
    return WithDerivative.apply(outputs, found.logprob, found.occupancies) if needs_gradient else found.logprob


def numerator(graphs: Sequence[Graph | None], outputs: Tensor, lengths: Tensor) -> Tensor:
    """(batch,) float64 log of the summed weights of the paths from start to end of one graph per sequence.

    The graphs are taken as given: compose them with :func:`hemstitch.graphs.normalisation_graph` of the denominator
    first where the two are to be compared. A sequence without a path gives -inf, one with NaN outputs NaN, both with
    zero gradient.

    Args:
        graphs: acyclic or cyclic, without epsilons; ``None``: no path.
        outputs: (batch, time, pdf) log-likelihoods in nats.
        lengths: (batch,) number of frames; later ones are never read and get zero gradient.
    """
    needs_gradient = torch.is_grad_enabled() and outputs.requires_grad
    found = numerator_posteriors(graphs, outputs, lengths, occupancies=needs_gradient)
    return WithDerivative.apply(outputs, found.logprob, found.occupancies) if needs_gradient else found.logprob
