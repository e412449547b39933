"""Rows of convolutions for Fisher estimates, never written out as a matrix; see `hemstitch.curvature._fisher_rows`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


class WindowRows:
    """The input windows of a convolution, with an appended one if it has a bias.

    Args:
        layer: ``nn.Conv1d`` or ``nn.Conv2d``.
        x: its input, padded (batch, in, ...).
        outputs: shape of its outputs (batch, out, position...).
        mask: (batch, position...) true for the windows that count.
    """

    def __init__(self, layer: Any, x: Tensor, outputs: torch.Size, mask: Tensor | None) -> None:
        self.layer, self.like, self.outputs = layer, x, outputs
        self.mask = None if mask is None else mask.to(x.dtype).unsqueeze(1)
        self.filter = layer.weight.shape[1:]
        num_rows = math.prod((outputs[0], *outputs[2:])) if mask is None else int(mask.sum())
        self.shape = (num_rows, self.filter.numel() + self.has_bias)
        energy = self._convolve(x.square().sum(1, keepdim=True), x.new_ones(1, 1, *self.filter[1:]))
        self.norm = (energy.sum() + num_rows * self.has_bias).sqrt()

    @property
    def has_bias(self) -> bool:
        """Whether a one is appended."""
        return self.layer.bias is not None

    def double(self) -> WindowRows:
        """The same in double precision."""
        mask = None if self.mask is None else self.mask[:, 0] > 0
        return WindowRows(self.layer, self.like.double(), self.outputs, mask)

    def scores(self, factor: Tensor) -> Tensor:
        """(batch, rank, position...)."""
        filters = factor[:, : self.filter.numel()].reshape(-1, *self.filter)
        return self._convolve(self.like, filters, factor[:, -1] if self.has_bias else None)

    def scatter(self, scores: Tensor) -> Tensor:
        """(rank, rank)."""
        return _products(scores, scores)

    def cross(self, scores: Tensor) -> Tensor:
        """(rank, window + 1): the gradient of a convolution with these output derivatives."""
        gradient = torch.nn.grad.conv1d_weight if len(self.filter) == 2 else torch.nn.grad.conv2d_weight
        sums = gradient(self.like, (scores.shape[1], *self.filter), scores, self.layer.stride, 0, self.layer.dilation)
        sums = sums.flatten(1)
        return torch.cat([sums, scores.transpose(0, 1).flatten(1).sum(1, keepdim=True)], 1) if self.has_bias else sums

    def _convolve(self, x: Tensor, filters: Tensor, bias: Tensor | None = None) -> Tensor:
        convolve = F.conv1d if x.dim() == 3 else F.conv2d
        outputs = convolve(x, filters, bias, self.layer.stride, 0, self.layer.dilation)
        return outputs if self.mask is None else outputs * self.mask


class ChannelRows:
    """Output derivatives of a convolution: one row of channels per position.

    Args:
        dy: (batch, out, position...), zero where masked.
        num_rows: positions that count.
    """

    def __init__(self, dy: Tensor, num_rows: int) -> None:
        self.like, self.shape = dy, (num_rows, dy.shape[1])
        self.norm = torch.linalg.vector_norm(dy)

    def double(self) -> ChannelRows:
        """The same in double precision."""
        return ChannelRows(self.like.double(), self.shape[0])

    def scores(self, factor: Tensor) -> Tensor:
        """(batch, rank, position)."""
        return factor @ self.like.flatten(2)

    def scatter(self, scores: Tensor) -> Tensor:
        """(rank, rank)."""
        return _products(scores, scores)

    def cross(self, scores: Tensor) -> Tensor:
        """(rank, out)."""
        return _products(scores, self.like)


def _products(left: Tensor, right: Tensor) -> Tensor:
    """Sum over batch and positions of the products of channels."""
    return torch.bmm(left.flatten(2), right.flatten(2).transpose(1, 2)).sum(0)
