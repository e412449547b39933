"""Rows that a Fisher estimate learns from, however they are stored, and norms that nobody has to wait for."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

Scalar = float | Tensor
"""A float on the CPU; elsewhere a 0-d tensor, which nobody has to wait for."""


class Rows(Protocol):
    """Rows that an estimate can learn from, however they are stored.

    Attributes:
        shape: (N, D).
        like: a tensor of their type and device.
        norm: |X|.
    """

    shape: tuple[int, int]
    like: Tensor
    norm: Scalar

    def double(self) -> Rows:
        """The same in double precision."""

    def scores(self, factor: Tensor) -> Tensor:
        """H = X W', in any layout."""

    def scatter(self, scores: Tensor) -> Tensor:
        """L = H'H, (rank, rank)."""

    def cross(self, scores: Tensor) -> Tensor:
        """J = H'X, (rank, D)."""


class DenseRows:
    """`Rows` as a matrix (N, D)."""

    def __init__(self, x: Tensor) -> None:
        self.like, self.shape, self.norm = x, x.shape, norm(x)

    def double(self) -> DenseRows:
        """The same in double precision."""
        return DenseRows(self.like.double())

    def scores(self, factor: Tensor) -> Tensor:
        """H = X W', (N, rank)."""
        return self.like @ factor.T

    def scatter(self, scores: Tensor) -> Tensor:
        """L = H'H, (rank, rank)."""
        return scores.T @ scores

    def cross(self, scores: Tensor) -> Tensor:
        """J = H'X, (rank, D)."""
        return scores.T @ self.like


class AffineRows(DenseRows):
    """`Rows` [x, 1] of a matrix (N, D) and an appended one, which is never written."""

    def __init__(self, x: Tensor) -> None:
        super().__init__(x)
        self.shape = (x.shape[0], x.shape[1] + 1)
        self.norm = root(self.norm * self.norm + x.shape[0])

    def double(self) -> AffineRows:
        """The same in double precision."""
        return AffineRows(self.like.double())

    def scores(self, factor: Tensor) -> Tensor:
        """H = [X, 1] W', (N, rank)."""
        return torch.addmm(factor[:, -1], self.like, factor[:, :-1].T)

    def cross(self, scores: Tensor) -> Tensor:
        """J = H'[X, 1], (rank, D + 1)."""
        return torch.cat([scores.T @ self.like, scores.sum(0)[:, None]], 1)


def norm(x: Tensor) -> Scalar:
    """Root of the sum of squares."""
    return number(torch.linalg.vector_norm(x))


def number(x: Tensor) -> Scalar:
    """A number on the CPU; elsewhere left where it is, so that nothing waits for it."""
    return x.item() if x.device.type == "cpu" else x


def root(square: Scalar) -> Scalar:
    """Square root of a sum of squares, which rounding may have made negative."""
    return square.clamp(min=0).sqrt() if isinstance(square, Tensor) else math.sqrt(max(square, 0.0))


def ratio(before: Scalar, after: Scalar) -> Scalar:
    """before / after; 1 where both are zero, ``after`` underflowed, or a number is not finite."""
    if isinstance(before, Tensor) or isinstance(after, Tensor):
        return (before / after).nan_to_num(1.0, 1.0)
    return before / after if after > 0 and before < math.inf else 1.0
